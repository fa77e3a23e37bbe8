//! What a log asks of other threads: starting write-back, and syncing.

use crate::disk::{Disk, File};
use crate::types::{Lsn, VolumeId};
use std::io;
use std::sync::Arc;

/// Log bytes whose write-back is worth starting.
pub struct WriteBack {
    /// Where they are.
    pub file: Arc<dyn File>,
    /// From here, bytes.
    pub offset: u64,
    /// So many.
    pub len: u64,
    /// They are few, and a flush is about to ask for them.
    pub urgent: bool,
}

impl WriteBack {
    /// Starts it. A hint: what fails here shows up at the next sync.
    pub fn start(&self) {
        let _ = self.file.start_writeback(self.offset, self.len);
    }

    /// Starts it and waits for its end. A failure is a failed sync: report it to [`crate::Pool::written_back`].
    pub fn wait(&self, disk: &dyn Disk) -> io::Result<()> {
        self.file.wait_for_writeback(self.offset, self.len).inspect_err(|_| note_failed_sync(disk))
    }
}

/// Note that a sync failed, for the next opening: an empty file.
pub const SYNC_FAILED_NAME: &str = "sync-failed";

/// Leaves a note for the next opening: the kernel may call clean what the medium does not have. Whose
/// sync fails leaves it, at once: the process may die before anybody else hears of it.
pub fn note_failed_sync(disk: &dyn Disk) {
    // Where not even this works there is nothing left to do; a note that power loss takes, along with
    // the kernel's memory, is not missed.
    let _ = disk.create(SYNC_FAILED_NAME);
}

/// What a flush has to sync; runs on any thread.
pub struct FlushJob {
    /// Covers every change before this one.
    pub upto: Lsn,
    /// The stream.
    pub volume: VolumeId,
    /// Files to sync.
    pub files: Vec<Arc<dyn File>>,
    /// Whether file names must be synced, too.
    pub names: bool,
    /// Where they are.
    pub disk: Arc<dyn Disk>,
}

impl FlushJob {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && !self.names
    }

    /// Syncs; blocks.
    pub fn run(&self) -> io::Result<()> {
        let synced = self.files.iter().try_for_each(|file| file.sync());
        let synced = synced.and_then(|()| if self.names { self.disk.sync_names() } else { Ok(()) });
        synced.inspect_err(|_| note_failed_sync(&*self.disk))
    }
}
