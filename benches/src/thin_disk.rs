//! A disk that keeps the store's own structures and forgets the guest's data.
//!
//! With it a pool of 1 TiB is made in minutes: the log's headers, directories, map pages and anchors
//! are real files, the data blocks are holes. Such a pool opens, maps, checkpoints, forks and trims
//! like any other; only reading an old block fails its checksum, as it should.

use blockstore::disk::{Disk, File, OsDisk};
use std::io::{self, IoSlice};
use std::sync::Arc;

/// A folder whose log data is not stored.
pub struct ThinDisk(pub OsDisk);

struct ThinFile(Arc<dyn File>);

fn thin(file: Arc<dyn File>) -> Arc<dyn File> {
    Arc::new(ThinFile(file))
}

impl Disk for ThinDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.0.create(name).map(thin)
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.0.open(name).map(thin)
    }
    fn list(&self, prefix: &str) -> io::Result<Vec<String>> {
        self.0.list(prefix)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.link(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}

impl File for ThinFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }
    /// A batch is a header, at the start of a segment two, and data slices behind it: everything else
    /// the store writes comes in one slice.
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let kept = if offset == 0 { 2 } else { 1 };
        self.0.write_at(bufs.get(..kept).unwrap_or(bufs), offset)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn start_writeback(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn allocate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn allocated(&self) -> io::Result<u64> {
        self.0.allocated()
    }
}
