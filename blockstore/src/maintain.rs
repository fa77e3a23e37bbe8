//! Background work in small pieces: reaping, cleaning, preparing segments.

use crate::anchor::{Cleaning, Victim};
use crate::checkpoint::reap_step;
use crate::disk::{allocate, Disk};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::Record;
use crate::log::{Payload, Stream};
use crate::pool::Pool;
use crate::space::{compact, segment_name, CompactJob, Purpose};
use crate::types::{SegmentId, VolumeId};
use std::io::{self, IoSlice};
use std::sync::Arc;

/// One file to clean; runs on any thread.
pub struct CleanJob {
    victim: Victim,
    disk: Arc<dyn Disk>,
    recycle: Option<SegmentId>,
}

/// What became of a cleaned file.
pub enum Cleaned {
    /// It is gone.
    Removed,
    /// It serves again under a new number: its space is allocated and was written before, and its
    /// stale batches name the old number, so no scan takes them up.
    Recycled(SegmentId, Arc<dyn crate::disk::File>),
    /// It keeps this many slots; what was its file serves again.
    Packed(u32, Option<(SegmentId, Arc<dyn crate::disk::File>)>),
}

impl CleanJob {
    /// Removes, recycles or packs the file; blocks. An error of the kind `Closed` is a failed sync.
    pub fn run(&self) -> Result<Cleaned> {
        match &self.victim {
            Victim::Remove(id) | Victim::GiveUp(id) => self.remove(*id),
            Victim::Pack(job) => {
                let kept = compact(job, self.recycle)?;
                Ok(Cleaned::Packed(kept, self.recycle.and_then(|id| self.spare(id))))
            }
        }
    }

    fn remove(&self, id: SegmentId) -> Result<Cleaned> {
        if let Some(new) = self.recycle {
            let name = segment_name(new);
            if self.disk.rename(&segment_name(id), &name).is_ok() {
                self.disk.sync_names().map_err(|e| Error::sync("reusing a dead segment", &e))?;
                return Ok(self.spare(new).map_or(Cleaned::Removed, |(new, file)| Cleaned::Recycled(new, file)));
            }
        }
        match self.disk.remove(&segment_name(id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("removing a dead segment", e)),
            _ => Ok(Cleaned::Removed),
        }
    }

    /// The file that now has the name of segment `id`; one that cannot be opened is no loss.
    fn spare(&self, id: SegmentId) -> Option<(SegmentId, Arc<dyn crate::disk::File>)> {
        let name = segment_name(id);
        let opened = self.disk.open(&name);
        Some((id, opened.inspect_err(|_| drop(self.disk.remove(&name))).ok()?))
    }

    fn id(&self) -> SegmentId {
        self.victim.id()
    }
}

/// A prepared segment file: space is allocated and written once, so that a later sync has data to
/// write and no metadata. Runs on any thread.
pub fn prepare_segment(disk: &Arc<dyn Disk>, id: SegmentId) -> io::Result<Arc<dyn crate::disk::File>> {
    static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
    let file = disk.create(&segment_name(id))?;
    let bytes = u64::from(crate::limits::SEGMENT_SLOTS) * crate::limits::BLOCK_U64;
    let filled = allocate(&*file, bytes)
        .and_then(|()| (0..bytes).step_by(ZEROES.len()).try_for_each(|at| file.write_at(&[IoSlice::new(&ZEROES)], at)));
    if let Err(e) = filled.and_then(|()| file.sync()).and_then(|()| disk.sync_names()) {
        let _ = disk.remove(&segment_name(id));
        return Err(e);
    }
    Ok(file)
}

impl Pool {
    /// Gives back blocks of what was deleted; `false` when there is nothing to do, or what it needs has to be
    /// fetched first.
    pub fn reap(&mut self, steps: usize) -> Result<bool> {
        if self.roots.ghosts().is_empty() || self.poisoned.is_some() {
            return Ok(false);
        }
        let demands = self.demands();
        match reap_step(&mut self.roots, &mut self.map, &mut self.segments, steps) {
            Err(e) if e.kind() == ErrorKind::Absent => {
                self.forget_demands(demands);
                Ok(false)
            }
            done => done,
        }
    }

    /// The next file to clean, if the newest anchor allows one.
    pub fn clean_job(&mut self) -> Option<CleanJob> {
        if self.anchors.cleaning || self.anchors.running || self.anchors.audited {
            return None;
        }
        let pinned = |id: &SegmentId| self.tier.as_ref().is_some_and(|tier| tier.pinned.contains(id));
        let victims = &self.anchors.victims;
        let free = victims.iter().rposition(|victim| !pinned(&victim.id()));
        let victim = self.anchors.victims.remove(free?);
        self.anchors.cleaning = true;
        // A packed file is short: as a spare it would have to grow again.
        let whole = |id| self.segments.table.get(id).is_some_and(|s| s.stored == s.used);
        let id = victim.id();
        // On a full disk the file system needs the space more than the log.
        let wanted = whole(id) && self.segments.spares.len() < self.room.spares_max() && self.reserve.is_whole();
        let recycle = if wanted { self.segments.reserve_id().ok() } else { None };
        Some(CleanJob { victim, disk: self.disk.clone(), recycle })
    }

    /// A spare beyond `keep` to remove: its space goes back to the file system.
    pub fn shrink_job(&mut self, keep: usize) -> Option<CleanJob> {
        if self.anchors.cleaning || self.anchors.running || self.segments.spares.len() <= keep {
            return None;
        }
        let (id, _) = self.segments.spares.remove(0);
        self.anchors.cleaning = true;
        Some(CleanJob { victim: Victim::Remove(id), disk: self.disk.clone(), recycle: None })
    }

    /// Takes note of a cleaning job's outcome.
    pub fn cleaned(&mut self, job: CleanJob, outcome: Result<Cleaned>) -> Result<()> {
        self.anchors.cleaning = false;
        let id = job.id();
        let cleaned = match outcome {
            Ok(cleaned) => cleaned,
            Err(e) => {
                if e.kind() == ErrorKind::Closed {
                    self.poison(e.to_string());
                } else if e.kind() == ErrorKind::NoSpace && self.reserve.give_up(&*self.disk, Purpose::Freeing) {
                    self.anchors.victims.push(job.victim);
                } else if self.segments.table.get(id).is_none() {
                    // No anchor will choose a spare: it stays a victim until it is gone.
                    self.anchors.victims.insert(0, job.victim);
                }
                return Err(e);
            }
        };
        self.segments.forget(id);
        match cleaned {
            Cleaned::Removed => self.file_is_gone(&job.victim),
            Cleaned::Recycled(new, file) => {
                self.file_is_gone(&job.victim);
                self.add_spare(new, file);
            }
            Cleaned::Packed(kept, spare) => {
                if let Some((new, file)) = spare {
                    self.add_spare(new, file);
                }
                if let Some(segment) = self.segments.table.get_mut(id) {
                    segment.stored = kept + crate::limits::DIRECTORY_PAGES + 1;
                }
            }
        }
        Ok(())
    }

    fn file_is_gone(&mut self, victim: &Victim) {
        match victim {
            Victim::GiveUp(id) => {
                if let Some(segment) = self.segments.table.get_mut(*id) {
                    segment.stored = 0;
                }
            }
            Victim::Remove(id) | Victim::Pack(CompactJob { id, .. }) => self.segments.table.remove(*id),
        }
    }

    /// Whether dead space has gathered that should be given back although clients are busy.
    pub fn is_crowded(&self) -> bool {
        self.segments.table.crowded()
    }

    /// All background work there is, here and now.
    pub fn maintain(&mut self) -> Result<()> {
        while self.reap(1 << 10)? {}
        for _ in 0..2 {
            self.anchor(Cleaning::Thorough)?;
            while let Some(job) = self.clean_job() {
                let outcome = job.run();
                self.cleaned(job, outcome)?;
            }
        }
        self.keep_reserve();
        Ok(())
    }

    /// How many prepared segments are missing from `target`.
    pub fn spares_wanted(&mut self, target: usize) -> Result<Option<SegmentId>> {
        if self.segments.spares.len() >= target || self.poisoned.is_some() {
            return Ok(None);
        }
        self.segments.reserve_id().map(Some)
    }

    /// Whether clients wait for flushes of little each: they would notice a segment that is not prepared.
    pub fn expects_flushes(&self) -> bool {
        self.streams.values().any(Stream::expects_flush)
    }

    /// Hands over a prepared segment.
    pub fn add_spare(&mut self, id: SegmentId, file: Arc<dyn crate::disk::File>) {
        self.segments.spares.push((id, file));
    }

    /// Makes sure that the reserve exists; a full disk is no error.
    pub fn keep_reserve(&mut self) {
        self.reserve.keep(&*self.disk);
    }

    /// Whether there is the space for data. While there is not, writes are refused and what frees space is
    /// taken.
    pub fn has_reserve(&self) -> bool {
        self.reserve.is_whole()
    }

    /// Logs a change that frees space: on a full disk the reserve makes room for its record.
    pub(crate) fn log_with_reserve(&mut self, volume: VolumeId, records: Vec<Record>) -> Result<()> {
        self.writable()?;
        self.reserve.allow_freeing(&*self.disk)?;
        let mut done = self.append(volume, records.clone(), Payload::default());
        // The anchors' part only while a segment is being packed, which gives back more than it takes.
        for part in [Purpose::Freeing, Purpose::Anchors] {
            let full = done.as_ref().is_err_and(|e| e.kind() == ErrorKind::NoSpace) && self.poisoned.is_none();
            if full && self.reserve.give_up(&*self.disk, part) {
                done = self.append(volume, records.clone(), Payload::default());
            }
        }
        done
    }
}
