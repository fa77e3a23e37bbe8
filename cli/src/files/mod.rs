//! Files out of states of a volume, without mounting anything: what differs, one file, copies of folders.
//!
//! Invariants
//!   * guests' file systems are read by `fs_inspect` alone, from read-only sessions;
//!   * what a guest calls its files is printed escaped where it could move a terminal's cursor.

mod copy;
mod differences;
mod inspect;

pub use copy::copy;
pub use differences::differences;
pub use inspect::inspect;

use crate::client::{Failure, Intent};
use crate::link::{ask_long, Link};
use crate::output::Progress;
use fs_inspect::{find, open, Contents, FileKind, NbdImage, Place, ReadAt, TreeError};
use nbd_client::Nbd;
use serde_json::json;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// The files of a state, and what keeps them there.
pub struct State {
    contents: Contents,
    /// The daemon, when it is this process: it ends with the value.
    _link: Arc<Link>,
}

impl State {
    /// Opens `volume` at `id`, `v1`, `auto-1` or `Current`, in the pool behind `link`.
    pub fn open(link: &Arc<Link>, volume: &str, id: &str) -> Result<Self, Failure> {
        Ok(Self { contents: open(image(link, volume, id)?)?, _link: link.clone() })
    }

    /// What `path` leads to.
    pub fn find(&self, path: &str) -> Result<Place, Failure> {
        find(&self.contents, path.as_bytes()).map_err(|e| failure(&e, path))
    }
}

/// The disk of a state. None of it has been looked at.
fn image(link: &Arc<Link>, volume: &str, id: &str) -> Result<Arc<dyn ReadAt>, Failure> {
    let (source, way) = (format!("{volume}@{id}"), link.clone());
    let session = move || -> Result<Nbd, Failure> {
        let mut stream = way.connect()?;
        let request = json!({"op": "export", "volume": source});
        let begun = ask_long(&mut stream, &request, &mut Progress::new("open", true))?;
        Ok(Nbd::new(stream, begun["export"].as_str().unwrap_or_default())?)
    };
    let first = session()?;
    let again = move || session().map_err(|failure| io::Error::other(failure.message));
    Ok(Arc::new(NbdImage::new(first, again)))
}

/// A pool's daemon, or this process in its place.
pub fn link(folder: &Path) -> Result<Arc<Link>, Failure> {
    Link::open(folder, Intent::Look).map(Arc::new)
}

/// What is wrong with a file, with its path.
pub fn failure(e: &TreeError, path: &str) -> Failure {
    let kind = match e {
        TreeError::NotFound => "not_found",
        TreeError::WrongKind | TreeError::Unsupported(_) => "invalid",
        TreeError::Damaged(_) => "corrupt",
        TreeError::Io(_) => "io",
    };
    Failure::new(kind, format!("{path}: {e}"))
}

/// Writes a file to standard output.
pub fn print_file(folder: &Path, volume: &str, id: &str, path: &str) -> Result<(), Failure> {
    let state = State::open(&link(folder)?, volume, id)?;
    let Place { tree, inode } = state.find(path)?;
    let what = tree.attributes(inode).map_err(|e| failure(&e, path))?;
    if what.kind != FileKind::File {
        let other = match what.kind {
            FileKind::Directory => "a folder: cairn checkpoint cp copies it",
            FileKind::Link => "a symbolic link, which is not followed: name what it points to",
            _ => "no file with contents",
        };
        return Err(Failure::new("invalid", format!("{path} is {other}")));
    }
    let (mut out, mut at, mut piece) = (io::stdout().lock(), 0, vec![0; PIECE]);
    while at < what.size {
        let got = tree.read(inode, at, &mut piece).map_err(|e| failure(&e, path))?;
        if got == 0 {
            break;
        }
        out.write_all(&piece[..got])?;
        at += got as u64;
    }
    Ok(out.flush()?)
}
