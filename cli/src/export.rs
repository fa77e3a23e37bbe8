//! Exports to raw images: a copy from an NBD session to a file, or to standard output.
//!
//! Invariants
//!   * no file ever shows half a copy under its final name: it gets that by a rename, when all bytes are
//!     durable; an export that is interrupted takes its half away;
//!   * holes stay holes in a file; a stream gets every byte, in order.

use crate::client::{Failure, Intent};
use crate::link::{ask_long, Link};
use crate::output::Progress;
use nbd_client::{Chunk, Nbd};
use serde_json::{json, Value};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::{mem, process, ptr, thread};

/// Bytes of one request.
const PIECE: u64 = 1 << 20;
/// Requests on the way to a file; to a stream there is one, because answers may overtake each other.
const WINDOW: usize = 8;

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A file that goes away unless it is completed.
struct Partial(Option<PathBuf>);

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// From here on an interruption removes `part` before it ends the process.
fn remove_when_interrupted(part: &Path) -> io::Result<()> {
    // SAFETY: a set of signals is plain memory, initialised by the first call before it is used.
    let set = unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&mut set, signal);
        }
        if libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        set
    };
    let part = part.to_owned();
    let wait = move || {
        let mut signal = 0;
        // SAFETY: plain memory of this thread's own.
        if unsafe { libc::sigwait(&set, &mut signal) } == 0 {
            let _ = fs::remove_file(&part);
            process::exit(128 + signal);
        }
    };
    thread::Builder::new().name("cairn-signals".to_owned()).spawn(wait).map(drop)
}

/// Where an export goes.
enum Sink<'a> {
    /// Holes are left out.
    File(&'a File),
    /// All bytes, in order; so many have been written.
    Stream(io::StdoutLock<'a>, u64),
}

impl Sink<'_> {
    fn window(&self) -> usize {
        if matches!(self, Sink::File(_)) {
            WINDOW
        } else {
            1
        }
    }

    fn put(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Sink::File(file) => file.write_all_at(data, at),
            Sink::Stream(..) => {
                self.fill(at)?;
                let Sink::Stream(out, done) = self else { return Ok(()) };
                *done += data.len() as u64;
                out.write_all(data)
            }
        }
    }

    /// Zeros up to `at`.
    fn fill(&mut self, at: u64) -> io::Result<()> {
        let Sink::Stream(out, done) = self else { return Ok(()) };
        if *done > at {
            return Err(io::Error::other("the daemon sends what it has sent already"));
        }
        while *done < at {
            let step = (at - *done).min(ZEROES.len() as u64);
            out.write_all(&ZEROES[..step as usize])?;
            *done += step;
        }
        Ok(())
    }
}

/// Writes the volume or checkpoint `source` to `file`.
pub fn export(folder: &Path, source: &str, file: &Path) -> Result<Value, Failure> {
    let to_stdout = file.as_os_str() == "-";
    if !to_stdout && fs::symlink_metadata(file).is_ok() {
        return Err(Failure::new("exists", format!("{} exists: remove it, or choose another name", file.display())));
    }
    let link = Link::open(folder, Intent::Look)?;
    let mut progress = Progress::new("export", true);
    let mut stream = link.connect()?;
    let begun = ask_long(&mut stream, &json!({"op": "export", "volume": source}), &mut progress)?;
    let mut nbd = Nbd::new(stream, begun["export"].as_str().unwrap_or_default())?;
    if Some(nbd.size) != begun["size_bytes"].as_u64() {
        return Err(Failure::new("io", format!("{source} changed its size while it was opened: try again")));
    }
    let size = nbd.size;
    let written = if to_stdout {
        let mut sink = Sink::Stream(io::stdout().lock(), 0);
        let explain = Failure::of_file(Path::new("standard output"));
        pull(&mut nbd, &mut sink, &mut progress)
            .and_then(|n| sink.fill(size).map(|()| n).map_err(Stopped::File))
            .map_err(|e| e.explain(&explain, source))?
    } else {
        to_file(&mut nbd, &link, source, file, &mut progress)?
    };
    nbd.disconnect()?;
    progress.end(size);
    link.close()?;
    Ok(json!({"file": file, "source": source, "size_bytes": size, "written_bytes": written}))
}

fn to_file(nbd: &mut Nbd, link: &Link, source: &str, file: &Path, progress: &mut Progress) -> Result<u64, Failure> {
    // It is the file that was asked for that errors are about.
    let explain = Failure::of_file(file);
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let target = File::create_new(&part).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            let text = format!("{} exists: another export runs, or was killed; then remove it", part.display());
            Failure::new("exists", text)
        }
        _ => explain(e),
    })?;
    let mut partial = Partial(Some(part.clone()));
    // A daemon in this process ends on a signal by itself, and the copy with it.
    if !link.is_own() {
        remove_when_interrupted(&part)?;
    }
    target.set_len(nbd.size).map_err(&explain)?;
    let written = pull(nbd, &mut Sink::File(&target), progress).map_err(|e| e.explain(&explain, source))?;
    target.sync_all().map_err(&explain)?;
    let (len, size) = (target.metadata().map_err(&explain)?.len(), nbd.size);
    if len != size {
        return Err(Failure::new("io", format!("{} has {len} bytes instead of {size}", file.display())));
    }
    fs::rename(&part, file).map_err(&explain)?;
    partial.0 = None;
    Ok(written)
}

/// Why a copy stopped.
enum Stopped {
    File(io::Error),
    Daemon(Failure),
}

impl Stopped {
    fn explain(self, of_file: &impl Fn(io::Error) -> Failure, source: &str) -> Failure {
        match self {
            Stopped::File(e) => of_file(e),
            Stopped::Daemon(failure) => failure.about(&format!("exporting {source}")),
        }
    }
}

impl From<nbd_client::Error> for Stopped {
    fn from(error: nbd_client::Error) -> Self {
        Stopped::Daemon(error.into())
    }
}

/// Copies every run of data to `sink`; returns its bytes.
fn pull(nbd: &mut Nbd, sink: &mut Sink<'_>, progress: &mut Progress) -> Result<u64, Stopped> {
    let (mut at, mut written, size, window) = (0, 0, nbd.size, sink.window());
    let mut store = |nbd: &mut Nbd| -> Result<(), Stopped> {
        if let Chunk::Data(at) = nbd.next_chunk()? {
            sink.put(at, nbd.payload()).map_err(Stopped::File)?;
            written += nbd.payload().len() as u64;
        }
        Ok(())
    };
    while at < size {
        for (len, hole) in nbd.extents(at)? {
            let end = (at + len).min(size);
            while at < end && !hole {
                let step = PIECE.min(end - at);
                while nbd.in_flight >= window {
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
