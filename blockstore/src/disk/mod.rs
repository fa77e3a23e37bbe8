//! The disk as the store sees it: named files in one folder, written and synced explicitly.
//!
//! Everything the store knows of storage goes through these two traits, so that a simulator can
//! lose power between any two calls. Contract:
//!   * bytes written are visible to reads at once, and survive the death of the process;
//!   * they survive power loss only after `File::sync` of their file returned, and a new, renamed
//!     or removed name only after `Disk::sync_names` returned;
//!   * a write that was interrupted by power loss may have changed any of its 512-byte sectors.

mod os;
mod overlay;

pub use os::OsDisk;
pub use overlay::Overlay;

use std::io::{self, IoSlice};
use std::sync::Arc;

/// Space of a disk, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// What can be written yet.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// A folder of files.
pub trait Disk: Send + Sync {
    /// Creates an empty file; fails if the name exists.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// All names whose text starts with `prefix`.
    fn list(&self, prefix: &str) -> io::Result<Vec<String>>;
    /// Gives a file a new name, replacing what had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Gives a file a second name, which must be free; not every file system can.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_names(&self) -> io::Result<()>;
    /// How much space there is; `None` where the medium cannot tell.
    fn space(&self) -> io::Result<Option<DiskSpace>> {
        Ok(None)
    }
}

/// One open file.
#[expect(clippy::len_without_is_empty, reason = "a length in bytes, of which zero is nothing special")]
pub trait File: Send + Sync {
    /// Fills `buf` from `offset`; end of file is an error (`UnexpectedEof`).
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Appends `len` bytes from `offset` to `out`; on an error `out` is as before.
    fn read_onto(&self, out: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<()> {
        let start = out.len();
        out.resize(start + len, 0);
        self.read_at(&mut out[start..], offset).inspect_err(|_| out.truncate(start))
    }
    /// Writes all of `bufs` one after another at `offset`.
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Makes all written bytes durable. After a failure every later sync of this file fails, also one that
    /// runs at the same time: the system tells only one of them.
    fn sync(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Starts writing back `len` bytes at `offset` without waiting; a hint.
    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Returns when `len` bytes at `offset` have been handed to the medium and taken by it, so that a sync of the
    /// file waits for little. Nothing becomes durable by it, but a failure is one of a sync.
    fn wait_for_writeback(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    /// Makes sure that `len` bytes of space exist. Where the file system cannot, it says so or does nothing.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Bytes the file occupies.
    fn allocated(&self) -> io::Result<u64>;
}

/// As [`File::allocate`], for who can do without: a file system that cannot promise space does not lack it.
pub(crate) fn allocate(file: &dyn File, len: u64) -> io::Result<()> {
    match file.allocate(len) {
        Err(e) if e.kind() == io::ErrorKind::Unsupported || e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        outcome => outcome,
    }
}
