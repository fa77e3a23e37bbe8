//! Imports and exports of raw images: a copy between a file and an NBD session.
//!
//! Invariants
//!   * neither end ever shows half a copy under its final name: a volume gets it by a fork, a file by a
//!     rename, both when all bytes are durable;
//!   * holes stay holes both ways, and zeros in a file become holes.

use crate::client::Failure;
use crate::link::{ask_long, Link};
use crate::nbd::{Chunk, Nbd};
use crate::output::Progress;
use serde_json::{json, Value};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of one request.
const PIECE: u64 = 1 << 20;
/// Granularity at which zeros are left out.
const GRAIN: usize = 64 << 10;
/// Requests on the way.
const WINDOW: usize = 8;
const BLOCK: u64 = 4096;

static ZEROES: [u8; GRAIN] = [0; GRAIN];

fn of_file(file: &Path) -> impl Fn(io::Error) -> Failure + '_ {
    move |e| {
        let kind = match e.kind() {
            io::ErrorKind::NotFound => "not_found",
            io::ErrorKind::AlreadyExists => "exists",
            io::ErrorKind::StorageFull => "no_space",
            _ => "io",
        };
        Failure::new(kind, format!("{}: {e}", file.display()))
    }
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

/// Makes the volume `name` from `file`.
pub fn import(folder: &Path, file: &Path, name: &str) -> Result<Value, Failure> {
    let explain = of_file(file);
    let mut source = File::open(file).map_err(&explain)?;
    let kind = source.metadata().map_err(&explain)?.file_type();
    if kind.is_dir() {
        return Err(Failure::new("invalid", format!("{} is a folder: give a raw disk image", file.display())));
    }
    let len = source.seek(SeekFrom::End(0)).map_err(&explain)?;
    if len == 0 {
        return Err(Failure::new("invalid", format!("{} is empty: there is nothing to import", file.display())));
    }
    let size = len.next_multiple_of(BLOCK);
    let link = Link::open(folder, true)?;
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
            nbd.next()?;
        }
        nbd.write(at + from as u64, rest.get(..data).unwrap_or_default())?;
        sent += data as u64;
        from += data;
    }
    Ok(sent)
}

/// A file that goes away unless it is completed.
struct Partial(Option<PathBuf>);

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Writes the volume or checkpoint `source` to `file`.
pub fn export(folder: &Path, source: &str, file: &Path) -> Result<Value, Failure> {
    if fs::symlink_metadata(file).is_ok() {
        return Err(Failure::new("exists", format!("{} exists: remove it, or choose another name", file.display())));
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let explain = of_file(&part);
    let link = Link::open(folder, false)?;
    let mut progress = Progress::new("export", true);
    let mut stream = link.connect()?;
    let begun = ask_long(&mut stream, &json!({"op": "export", "volume": source}), &mut progress)?;
    let mut nbd = Nbd::new(stream, begun["export"].as_str().unwrap_or_default())?;
    let target = File::create_new(&part).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            let text = format!("{} exists: another export runs, or was cut off; then remove it", part.display());
            Failure::new("exists", text)
        }
        _ => explain(e),
    })?;
    let mut partial = Partial(Some(part.clone()));
    target.set_len(nbd.size).map_err(&explain)?;
    let written = pull(&mut nbd, &target, &mut progress).map_err(|e| e.or(&explain))?;
    target.sync_all().map_err(&explain)?;
    let (len, size) = (target.metadata().map_err(&explain)?.len(), nbd.size);
    if len != size || Some(size) != begun["size_bytes"].as_u64() {
        return Err(Failure::new("io", format!("{} has {len} bytes instead of {size}", part.display())));
    }
    fs::rename(&part, file).map_err(&explain)?;
    partial.0 = None;
    nbd.disconnect()?;
    progress.end(size);
    link.close()?;
    Ok(json!({"file": file, "source": source, "size_bytes": size, "written_bytes": written}))
}

/// Why a copy stopped.
enum Stopped {
    File(io::Error),
    Daemon(Failure),
}

impl Stopped {
    fn or(self, explain: &impl Fn(io::Error) -> Failure) -> Failure {
        match self {
            Stopped::File(e) => explain(e),
            Stopped::Daemon(failure) => failure,
        }
    }
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Stopped::Daemon(failure)
    }
}

/// Copies every run of data to `target`; returns its bytes.
fn pull(nbd: &mut Nbd, target: &File, progress: &mut Progress) -> Result<u64, Stopped> {
    let (mut at, mut written, size) = (0, 0, nbd.size);
    let mut store = |nbd: &mut Nbd| -> Result<(), Stopped> {
        if let Chunk::Data(at) = nbd.next()? {
            target.write_all_at(nbd.payload(), at).map_err(Stopped::File)?;
            written += nbd.payload().len() as u64;
        }
        Ok(())
    };
    while at < size {
        for (len, hole) in nbd.extents(at)? {
            let end = (at + len).min(size);
            while at < end && !hole {
                let step = PIECE.min(end - at);
                while nbd.in_flight >= WINDOW {
                    store(nbd)?;
                }
                nbd.read(at, step)?;
                at += step;
                progress.show(at, size);
            }
            at = end;
        }
        while nbd.in_flight > 0 {
            store(nbd)?;
        }
    }
    Ok(written)
}
