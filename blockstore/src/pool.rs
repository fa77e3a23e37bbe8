//! The pool: owner of every volume, and the only holder of mutable state.
//!
//! Invariants
//!   * every change is appended to a log first and then applied by `apply`, the same code that
//!     replays it after a crash: the running state equals the replayed one;
//!   * lsn of everything durable <= lsn of everything applied == `next_lsn - 1`;
//!   * after a failed sync nothing is accepted any more (`poisoned`), because the kernel may have
//!     dropped what it could not write.
//!
//! Not here: sockets, threads and time. Work that blocks (syncing, packing) is handed out as jobs
//! that any thread can run.

use crate::checkpoint::Roots;
use crate::disk::{Disk, File};
use crate::error::{Error, ErrorKind, Result};
use crate::format::superblock::Superblock;
use crate::limits::BLOCK;
use crate::log::{note_failed_sync, FlushJob, Payload, Stream, WriteBack};
use crate::map::Map;
use crate::space::{Reserve, Segments};
use crate::types::{CheckpointName, Clock, Durability, Lsn, RootId, SegmentId, VolumeId};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice};
use std::sync::Arc;

/// Name of the superblock file.
pub const SUPERBLOCK_NAME: &str = "cairn.pool";
/// The pool's own stream, which holds creations and deletions of volumes.
pub const POOL_STREAM: VolumeId = VolumeId(0);

/// How a pool is opened.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Bound of the cache for map and directory pages, bytes.
    pub map_cache: u64,
    /// Log bytes between anchors; bounds replay.
    pub anchor_bytes: u64,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { map_cache: 256 << 20, anchor_bytes: crate::limits::ANCHOR_LOG_BYTES }
    }
}

/// One volume.
pub(crate) struct Volume {
    pub name: String,
    pub created_us: u64,
    pub head: RootId,
    pub checkpoints: BTreeMap<CheckpointName, RootId>,
    pub next_checkpoint: u32,
    pub next_auto: u32,
    /// Volumes it descends from: in their logs lie blocks that it shares.
    pub origins: Vec<VolumeId>,
    /// What a flush waits for.
    pub durability: Durability,
    /// Whether its head can be changed.
    pub read_only: bool,
}

/// A creation, deletion or fork that may not be durable yet. A flush of any volume covers it, because
/// the volume's own log may build on it.
pub(crate) struct Structural {
    volume: VolumeId,
    lsn: Lsn,
    files: Vec<Arc<dyn File>>,
}

/// A folder of volumes, opened.
pub struct Pool {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) options: PoolOptions,
    pub(crate) pool_id: [u8; 16],
    pub(crate) segments: Segments,
    pub(crate) map: Map,
    pub(crate) roots: Roots,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    pub(crate) names: HashMap<String, VolumeId>,
    pub(crate) streams: BTreeMap<VolumeId, Stream>,
    pub(crate) epoch: u64,
    pub(crate) next_lsn: Lsn,
    pub(crate) next_volume: u64,
    pub(crate) anchors: crate::anchor::AnchorState,
    pub(crate) poisoned: Option<String>,
    pub(crate) map_open: Option<(SegmentId, Arc<dyn File>, u32)>,
    pub(crate) counts: HashMap<crate::map::Ref, u64>,
    pub(crate) structural: Vec<Structural>,
    pub(crate) reserve: Reserve,
    pub(crate) room: crate::room::Room,
    pub(crate) tier: Option<crate::object::Tier>,
    pub(crate) appended_bytes: u64,
    pub(crate) readers: crate::read_ahead::Readers,
}

impl Pool {
    /// Makes an empty pool on `disk`, with the identity `pool_id` (random bytes).
    pub fn create(disk: &Arc<dyn Disk>, clock: &dyn Clock, pool_id: [u8; 16]) -> Result<()> {
        let wrap = |e| Error::io("creating the pool", e);
        if disk.list(SUPERBLOCK_NAME).map_err(wrap)?.iter().any(|name| name == SUPERBLOCK_NAME) {
            return Err(Error::new(ErrorKind::Exists, "there is a pool here already"));
        }
        let block = Superblock { pool: pool_id, created_us: clock.now_us() }.encode();
        let temporary = "tmp-cairn.pool";
        let _ = disk.remove(temporary);
        let file = disk.create(temporary).map_err(wrap)?;
        file.write_at(&[IoSlice::new(&block)], 0).map_err(wrap)?;
        file.sync().map_err(wrap)?;
        crate::anchor::write_first(disk, pool_id).map_err(wrap)?;
        disk.rename(temporary, SUPERBLOCK_NAME).map_err(wrap)?;
        disk.sync_names().map_err(wrap)
    }

    /// Whether `disk` holds a pool.
    pub fn exists(disk: &Arc<dyn Disk>) -> Result<bool> {
        let names = disk.list(SUPERBLOCK_NAME).map_err(|e| Error::io("listing the pool folder", e))?;
        Ok(names.iter().any(|name| name == SUPERBLOCK_NAME))
    }

    pub(crate) fn read_superblock(disk: &Arc<dyn Disk>) -> Result<Superblock> {
        let file = disk.open(SUPERBLOCK_NAME).map_err(|e| {
            if e.kind() == io::ErrorKind::NotFound {
                return Error::new(
                    ErrorKind::NotFound,
                    "no pool here (cairn.pool is missing): check --pool, or create one",
                );
            }
            Error::io("opening cairn.pool", e)
        })?;
        let mut block = vec![0; BLOCK];
        file.read_at(&mut block, 0).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::corrupt("cairn.pool is truncated"),
            _ => Error::io("reading cairn.pool", e),
        })?;
        Superblock::decode(&block)
    }

    /// Refuses when a sync failed before.
    pub(crate) fn writable(&self) -> Result<()> {
        match &self.poisoned {
            None => Ok(()),
            Some(why) => Err(Error::new(
                ErrorKind::Closed,
                format!("the pool stopped accepting changes ({why}): restart the daemon to recover it"),
            )),
        }
    }

    /// The volume called `name`.
    pub fn volume_id(&self, name: &str) -> Result<VolumeId> {
        self.names.get(name).copied().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no volume {name:?}: see cairn volume list"))
        })
    }

    pub(crate) fn volume(&self, id: VolumeId) -> Result<&Volume> {
        self.volumes
            .get(&id)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("volume number {} does not exist any more", id.0)))
    }

    pub(crate) fn stream(&mut self, id: VolumeId) -> &mut Stream {
        self.streams.entry(id).or_insert_with(|| Stream::new(id))
    }

    /// Appends records without data and applies them.
    pub(crate) fn log(&mut self, volume: VolumeId, records: Vec<crate::format::record::Record>) -> Result<()> {
        self.allow_data()?;
        self.append(volume, records, Payload::default())
    }

    /// Refuses what takes space while the disk is full.
    pub(crate) fn allow_data(&mut self) -> Result<()> {
        self.writable()?;
        self.reserve.allow_data(&*self.disk, || self.clock.now_us())
    }

    /// Appends one batch to the log of `volume`, then applies it.
    pub(crate) fn append(
        &mut self,
        volume: VolumeId,
        records: Vec<crate::format::record::Record>,
        payload: Payload<'_>,
    ) -> Result<()> {
        self.writable()?;
        self.not_fenced(volume)?;
        self.not_read_only(volume, &records)?;
        self.patiently(|pool| pool.append_and_apply(volume, records, payload))
    }

    fn append_and_apply(
        &mut self,
        volume: VolumeId,
        records: Vec<crate::format::record::Record>,
        payload: Payload<'_>,
    ) -> Result<()> {
        let blocks = payload.crcs.len() as u64;
        let structural = records.iter().any(crate::format::record::Record::is_structural);
        let (epoch, lsn) = (self.epoch, self.next_lsn);
        let stream = self.streams.entry(volume).or_insert_with(|| Stream::new(volume));
        let appended = stream.append(&mut self.segments, self.map.cache(), epoch, lsn, records.clone(), payload);
        let mut addr = match appended {
            Ok(addr) => addr,
            Err(e) => {
                if e.kind() == ErrorKind::Io {
                    self.poison(e.to_string());
                }
                return Err(e);
            }
        };
        self.anchors.log_bytes += (blocks + 1) * BLOCK as u64;
        self.appended_bytes += (blocks + 1) * BLOCK as u64;
        self.room.took((blocks + 1) * BLOCK as u64);
        if structural {
            let files = stream.flush_job(lsn, &self.disk).files;
            self.structural.push(Structural { volume, lsn, files });
        }
        for record in records {
            let lsn = self.next_lsn;
            self.next_lsn = Lsn(lsn.0 + 1);
            let count = record.data_blocks();
            if let Err(e) = self.apply(volume, lsn, &record, addr) {
                // The log holds what the maps do not: only a replay can mend that.
                self.poison(e.to_string());
                return Err(e);
            }
            addr = crate::types::SlotAddr(addr.0 + count);
        }
        self.tier_note(volume, structural);
        Ok(())
    }

    /// What must be synced for everything written to `volume` so far to survive power loss.
    pub fn flush_job(&mut self, volume: VolumeId) -> Result<FlushJob> {
        self.writable()?;
        let (upto, disk) = (self.next_lsn, self.disk.clone());
        if volume != POOL_STREAM {
            self.volume(volume)?;
        }
        let stream = self.stream(volume);
        stream.note_flush();
        let own = stream.flush_job(upto, &disk);
        if self.structural.is_empty() {
            return Ok(own);
        }
        let mut files: Vec<_> = self.structural.iter().flat_map(|s| s.files.iter().cloned()).collect();
        files.extend(own.files);
        files.dedup_by(|a, b| Arc::ptr_eq(a, b));
        Ok(FlushJob { files, names: true, ..own })
    }

    /// Creations, deletions and forks before `upto` are durable: those in the log of `volume`, or all.
    pub(crate) fn structure_is_durable(&mut self, volume: Option<VolumeId>, upto: Lsn) {
        self.structural.retain(|s| s.lsn >= upto || volume.is_some_and(|volume| volume != s.volume));
    }

    /// Takes note of a flush job's outcome; after a failure nothing is accepted any more.
    pub fn flushed(&mut self, job: &FlushJob, outcome: io::Result<()>) -> Result<()> {
        match outcome {
            Ok(()) => {
                // The volume may have been deleted while the job ran.
                if let Some(stream) = self.streams.get_mut(&job.volume) {
                    stream.flushed(job.upto);
                }
                self.structure_is_durable(Some(job.volume), job.upto);
                Ok(())
            }
            Err(e) => Err(self.sync_failed(&e)),
        }
    }

    /// What of the log of `volume` can be synced already, so that a flush waits for less: run it on any thread
    /// and report it to [`Pool::settled`].
    pub fn settle_job(&mut self, volume: VolumeId) -> Option<FlushJob> {
        let (upto, disk) = (self.next_lsn, self.disk.clone());
        self.poisoned.is_none().then(|| self.streams.get_mut(&volume)?.settle_job(upto, &disk)).flatten()
    }

    /// Takes note of a settling job's outcome; a failed one is a failed sync.
    pub fn settled(&mut self, job: &FlushJob, outcome: io::Result<()>) -> Result<()> {
        if let Some(stream) = self.streams.get_mut(&job.volume) {
            stream.settled(job, outcome.is_ok());
        }
        outcome.map_err(|e| self.sync_failed(&e))
    }

    fn sync_failed(&mut self, e: &io::Error) -> Error {
        self.poison(format!("a sync failed: {e}"));
        Error::io("syncing the log", io::Error::new(e.kind(), e.to_string()))
    }

    /// Runs a job here and now.
    pub fn finish(&mut self, job: FlushJob) -> Result<()> {
        let outcome = job.run();
        self.flushed(&job, outcome)
    }

    /// Makes everything written to `volume` survive power loss; blocks.
    pub fn flush(&mut self, volume: VolumeId) -> Result<()> {
        let job = self.flush_job(volume)?;
        self.finish(job)
    }

    /// Log ranges whose write-back is worth starting now, so that a later flush waits for little.
    pub fn take_writeback(&mut self, volume: VolumeId) -> Option<WriteBack> {
        self.streams.get_mut(&volume)?.take_writeback()
    }

    /// What write-back has not been started for: for a writer that is to wait for it.
    pub fn take_rest(&mut self, volume: VolumeId) -> Option<WriteBack> {
        self.streams.get_mut(&volume)?.take_rest()
    }

    /// Takes note of a write-back that was waited for; a failed one is a failed sync.
    pub fn written_back(&mut self, outcome: io::Result<()>) -> Result<()> {
        outcome.map_err(|e| self.sync_failed(&e))
    }

    /// Bytes that were ever appended to logs.
    pub fn appended_bytes(&self) -> u64 {
        self.appended_bytes
    }

    /// Accepts no more changes, for the reason `why`, and leaves a note for the next opening.
    pub(crate) fn poison(&mut self, why: String) {
        self.poisoned.get_or_insert(why);
        note_failed_sync(&*self.disk);
    }

    /// Why nothing is accepted any more, if so.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.as_deref()
    }
}
