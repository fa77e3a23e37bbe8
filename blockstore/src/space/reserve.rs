//! Space kept aside, so that a full disk can be emptied again, and its pool opened.
//!
//! Two files without content: one makes room for what frees space (records of trims and deletions, and
//! packing a segment), the other for what an anchor writes, without which nothing is freed and no pool opens.
//!
//! Invariants
//!   * guests' data is taken only while both stand, and what frees space only while either does: otherwise a
//!     client that keeps trying would fill what was kept for others;
//!   * when both are gone, what was the second's is left for anchors and packing alone;
//!   * the anchors' is made first.

use crate::disk::{allocate, Disk};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{RESERVE_ANCHORS_BYTES, RESERVE_FREEING_BYTES};

/// What a part of the reserve is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Map pages, and the anchor itself.
    Anchors,
    /// What frees space.
    Freeing,
}

/// How long after a vain attempt a missing part is not tried again for the sake of one more request.
const RETRY_US: u64 = 1_000_000;

/// Which parts stand.
#[derive(Default)]
pub struct Reserve {
    anchors: bool,
    freeing: bool,
    tried_us: Option<u64>,
}

fn file(purpose: Purpose) -> (&'static str, u64) {
    match purpose {
        Purpose::Anchors => ("reserve-anchors", RESERVE_ANCHORS_BYTES),
        Purpose::Freeing => ("reserve", RESERVE_FREEING_BYTES),
    }
}

/// Removes one part, which makes its space free; `false` when it was not there. To be told to
/// [`Reserve::lost`].
pub fn give_up(disk: &dyn Disk, purpose: Purpose) -> bool {
    disk.remove(file(purpose).0).is_ok()
}

fn exists(disk: &dyn Disk, purpose: Purpose) -> bool {
    let (name, _) = file(purpose);
    disk.list(name).is_ok_and(|names| names.iter().any(|found| found == name))
}

fn make(disk: &dyn Disk, purpose: Purpose) -> bool {
    let (name, bytes) = file(purpose);
    let made = exists(disk, purpose) || disk.create(name).and_then(|file| allocate(&*file, bytes)).is_ok();
    if !made {
        let _ = disk.remove(name);
    }
    made
}

impl Reserve {
    /// Makes what is missing, as far as there is space.
    pub fn keep(&mut self, disk: &dyn Disk) {
        self.anchors = self.anchors || make(disk, Purpose::Anchors);
        let may_be = |disk| if self.anchors { make(disk, Purpose::Freeing) } else { exists(disk, Purpose::Freeing) };
        self.freeing = self.freeing || may_be(disk);
    }

    /// One part has been given up.
    pub fn lost(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Anchors => self.anchors = false,
            Purpose::Freeing => self.freeing = false,
        }
    }

    /// Gives one part up; `false` when it had gone before.
    pub fn give_up(&mut self, disk: &dyn Disk, purpose: Purpose) -> bool {
        self.lost(purpose);
        give_up(disk, purpose)
    }

    /// Whether everything stands.
    pub fn is_whole(&self) -> bool {
        self.anchors && self.freeing
    }

    /// Refuses more data while a part is missing and cannot be made.
    pub fn allow_data(&mut self, disk: &dyn Disk, now_us: impl FnOnce() -> u64) -> Result<()> {
        if self.is_whole() {
            return Ok(());
        }
        let now = now_us();
        if self.tried_us.is_none_or(|tried| now.saturating_sub(tried) >= RETRY_US) {
            self.keep(disk);
            self.tried_us = (!self.is_whole()).then_some(now);
        }
        if self.is_whole() {
            return Ok(());
        }
        let text = format!(
            "the disk is full: what is left ({} MiB) is kept for trims and deletions; trim, delete checkpoints or \
             volumes, or give the pool's file system more space",
            (RESERVE_ANCHORS_BYTES + RESERVE_FREEING_BYTES) >> 20
        );
        Err(Error::new(ErrorKind::NoSpace, text))
    }

    /// Refuses what frees space while only anchors can be written.
    pub fn allow_freeing(&mut self, disk: &dyn Disk) -> Result<()> {
        if !self.anchors && !self.freeing {
            self.keep(disk);
        }
        if self.anchors || self.freeing {
            return Ok(());
        }
        let text = "the disk is full: wait until the cleaner has given space back, or give the file system more";
        Err(Error::new(ErrorKind::NoSpace, text))
    }
}
