//! Imports of raw images: a copy from a file to an NBD session.
//!
//! Invariants
//!   * no volume ever shows half a copy under its final name: it gets that by a fork, when all bytes are
//!     durable;
//!   * holes stay holes, and zeros become holes;
//!   * a file in another format is refused, unless its bytes are asked for: a guest would see the wrong disk.

use crate::client::{Failure, Intent};
use crate::link::{ask_long, Link};
use crate::output::Progress;
use nbd_client::Nbd;
use serde_json::{json, Value};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of one request.
const PIECE: u64 = 1 << 20;
/// Granularity at which zeros are left out.
const GRAIN: usize = 64 << 10;
/// Requests on the way.
const WINDOW: usize = 8;
const BLOCK: u64 = 4096;

static ZEROES: [u8; GRAIN] = [0; GRAIN];

/// Formats that are not raw: where their magic stands, the magic, the name.
const FORMATS: [(u64, &[u8], &str); 7] = [
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "QED"),
    (0, b"KDMV", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "VDI"),
];

/// The format of `file`, if it is one of [`FORMATS`].
fn format_of(file: &File) -> Option<&'static str> {
    let is = |at: u64, magic: &[u8]| {
        let mut found = vec![0; magic.len()];
        file.read_exact_at(&mut found, at).is_ok() && found == magic
    };
    FORMATS.iter().find(|(at, magic, _)| is(*at, magic)).map(|(_, _, name)| *name)
}

/// The next stretch of `file` from `at` on that is not a hole; `None` when there is none.
fn next_data(file: &File, at: u64, len: u64) -> Option<(u64, u64)> {
    // SAFETY: plain system calls on an open descriptor; offsets are below i64::MAX.
    let seek = |from: u64, whence| unsafe { libc::lseek(file.as_raw_fd(), from as i64, whence) };
    match seek(at, libc::SEEK_DATA) {
        begin if begin >= 0 => {
            let end = seek(begin as u64, libc::SEEK_HOLE);
            Some((begin as u64, if end < 0 { len } else { (end as u64).min(len) }))
        }
        _ if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => None,
        // Not every file knows its holes.
        _ => Some((at, len)),
    }
    .filter(|(begin, _)| *begin < len)
}

/// Makes the volume `name` from `file`, which may look like another format only if it is meant `raw`.
pub fn import(folder: &Path, file: &Path, name: &str, raw: bool) -> Result<Value, Failure> {
    if file.as_os_str() == "-" {
        let text = "standard input has no size, which a volume needs first: import a file, or make the volume with \
                    cairn volume create and fill it with nbdcopy - 'nbd+unix:///NAME?socket=…'";
        return Err(Failure::new("invalid", text));
    }
    let explain = Failure::of_file(file);
    let mut source = File::open(file).map_err(&explain)?;
    let kind = source.metadata().map_err(&explain)?.file_type();
    if kind.is_dir() {
        return Err(Failure::new("invalid", format!("{} is a folder: give a raw disk image", file.display())));
    }
    let len = source.seek(SeekFrom::End(0)).map_err(&explain)?;
    if len == 0 {
        return Err(Failure::new("invalid", format!("{} is empty: there is nothing to import", file.display())));
    }
    if let Some(format) = format_of(&source).filter(|_| !raw) {
        let text = format!(
            "{0} is a {format} image, not a raw one: convert it (qemu-img convert -O raw {0} {0}.raw) and import \
             that, or give --raw to import its bytes as they are",
            file.display()
        );
        return Err(Failure::new("invalid", text));
    }
    let size = len.next_multiple_of(BLOCK);
    let link = Link::open(folder, Intent::Create)?;
    let mut progress = Progress::new("import", true);
    let mut stream = link.connect()?;
    let request = json!({"op": "import", "volume": name, "size_bytes": size});
    let begun = ask_long(&mut stream, &request, &mut progress)?;
    let temporary = begun["export"].as_str().unwrap_or_default().to_owned();
    let mut nbd = Nbd::new(stream, &temporary)?;
    if nbd.size != size {
        return Err(Failure::new("io", format!("the new volume has {} bytes instead of {size}", nbd.size)));
    }
    let (mut at, mut sent, mut buf) = (0, 0, vec![0; PIECE as usize]);
    while let Some((begin, end)) = next_data(&source, at, len) {
        at = begin;
        while at < end {
            let step = (PIECE - at % PIECE).min(end - at);
            let piece = &mut buf[..step as usize];
            source.read_exact_at(piece, at).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => {
                    Failure::new("io", format!("{} was cut off while it was read: import it again", file.display()))
                }
                _ => explain(e),
            })?;
            sent += send(&mut nbd, at, piece)?;
            at += step;
            progress.show(at, len);
        }
    }
    nbd.flush()?;
    let now = source.seek(SeekFrom::End(0)).map_err(&explain)?;
    if now != len {
        let text = format!("{} had {len} bytes and has {now} now: nothing was imported, try again", file.display());
        return Err(Failure::new("io", text));
    }
    let request = json!({"op": "fork", "volume": temporary, "name": name});
    let made = ask_long(&mut link.connect()?, &request, &mut progress)?;
    nbd.disconnect()?;
    progress.end(len);
    link.close()?;
    Ok(json!({"name": name, "size_bytes": made["size_bytes"], "file_bytes": len, "stored_bytes": sent}))
}

/// Sends what is not zero of `piece`; returns how much that is.
fn send(nbd: &mut Nbd, at: u64, piece: &[u8]) -> Result<u64, Failure> {
    let (mut sent, mut from) = (0, 0);
    let is_zero = |grain: &[u8]| ZEROES.get(..grain.len()).is_some_and(|zeroes| zeroes == grain);
    while from < piece.len() {
        let rest = piece.get(from..).unwrap_or_default();
        let data: usize = rest.chunks(GRAIN).take_while(|grain| !is_zero(grain)).map(<[u8]>::len).sum();
        if data == 0 {
            from += rest.len().min(GRAIN);
            continue;
        }
        while nbd.in_flight >= WINDOW {
            nbd.next_chunk()?;
        }
        nbd.write(at + from as u64, rest.get(..data).unwrap_or_default())?;
        sent += data as u64;
        from += data;
    }
    Ok(sent)
}
