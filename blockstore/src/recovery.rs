//! Opening a pool: newest anchor, then every log's tail, merged in the order of LSNs.
//!
//! Invariants
//!   * what is applied of each volume is a prefix of its log, up to the first batch that does not
//!     verify; everything synced verifies;
//!   * every opening has its own epoch, written into each batch, so that a batch that was dropped
//!     once can never be taken up by a later scan;
//!   * the first act of a recovered pool is an anchor: recovery itself can be interrupted anywhere;
//!   * what is read after a failed sync is written again, so that the anchor's sync covers it: the note
//!     of the failure goes only when that anchor is durable.

use crate::anchor::Cleaning;
use crate::anchor::{old_anchors, read_newest, AnchorState};
use crate::checkpoint::{Root, Roots};
use crate::disk::{Disk, File};
use crate::error::{Error, ErrorKind, Result};
use crate::format::anchor::{Anchor, RootKind};
use crate::format::segment::Place;
use crate::format::segment::{SegmentHeader, SegmentKind};
use crate::limits::BLOCK;
use crate::log::{scan_stream, Candidates, Stream, StreamEnd, TailStart, SYNC_FAILED_NAME};
use crate::map::{Map, MapRoot, Ref};
use crate::object::{ObjectTier, TierJob};
use crate::pool::{Pool, PoolOptions, Volume, POOL_STREAM};
use crate::space::{give_up, segment_name, Purpose, Reserve, Segment, Segments};
use crate::types::{Clock, Lsn, SegmentId, VolumeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What opening did.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    /// Batches replayed.
    pub batches: usize,
    /// Changes replayed.
    pub records: usize,
    /// Bytes of data verified in the tails.
    pub bytes: u64,
    /// What was found behind the last good batch of a log, or not applied, and why.
    pub dropped: Vec<String>,
}

impl Pool {
    /// Opens the pool on `disk`. The caller holds the pool's lock. On a full disk the reserve makes
    /// room for what opening writes.
    pub fn open(disk: Arc<dyn Disk>, clock: Arc<dyn Clock>, options: PoolOptions) -> Result<(Self, RecoveryReport)> {
        Self::open_with(disk, clock, options, None)
    }

    /// Opens a pool whose volumes have a home in an object store. Without an answer from it the pool opens only if
    /// all that it holds is here.
    pub fn open_with(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: PoolOptions,
        tier: Option<ObjectTier>,
    ) -> Result<(Self, RecoveryReport)> {
        let mut done = Self::recover(disk.clone(), clock.clone(), options, tier.clone());
        for part in [Purpose::Anchors, Purpose::Freeing] {
            let full = done.as_ref().is_err_and(|e| e.kind() == ErrorKind::NoSpace);
            if full && give_up(&*disk, part) {
                done = Self::recover(disk.clone(), clock.clone(), options, tier.clone());
            }
        }
        done
    }

    fn recover(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: PoolOptions,
        tier: Option<ObjectTier>,
    ) -> Result<(Self, RecoveryReport)> {
        let superblock = Self::read_superblock(&disk)?;
        let (anchor, anchor_bytes) = read_newest(&disk)?;
        if anchor.pool != superblock.pool {
            return Err(Error::corrupt("the anchor belongs to another pool: were files copied between pools?"));
        }
        let mut report = RecoveryReport::default();
        let (candidates, strangers) = find_candidates(&disk, &anchor, &mut report)?;
        let notes = disk.list(SYNC_FAILED_NAME).map_err(|e| Error::io("looking for a note of a failed sync", e))?;
        let starts = tail_starts(&anchor, &candidates, !notes.is_empty());
        let mut pool = Self::from_anchor(disk, clock, options, anchor, anchor_bytes)?;
        let interrupted = match tier {
            Some(tier) => pool.connect(tier, &mut report)?,
            None => Vec::new(),
        };
        let mut batches = Vec::new();
        let mut ends = Vec::new();
        for start in starts {
            ends.push((start.volume, scan_stream(start, &candidates, &pool.segments, &mut batches)?));
        }
        pool.adopt_segments(&ends);
        // What neither the anchor nor a log's tail knows was prepared, dropped or begun by an anchor
        // that was not finished. The numbers are about to be given again.
        let unknown = strangers.into_iter().filter(|id| pool.segments.table.get(*id).is_none());
        pool.remove_all(unknown.map(segment_name).collect())?;
        pool.replay(batches, &mut report)?;
        for (volume, end) in ends {
            report
                .dropped
                .extend(end.damaged.iter().chain(&end.stopped).map(|why| format!("log of volume {}: {why}", volume.0)));
            pool.adopt_stream(volume, end)?;
        }
        pool.find_given_up()?;
        pool.tier_recovered();
        pool.give_up_interrupted(interrupted)?;
        pool.anchor(Cleaning::Busy)?;
        let over = old_anchors(&pool.disk, pool.anchors.sequence)?.into_iter().chain(notes);
        pool.remove_all(over.collect())?;
        pool.keep_reserve();
        Ok((pool, report))
    }

    /// Looks up what the object store has of the pool's volumes. Returns those whose attaching was interrupted.
    fn connect(&mut self, tier: ObjectTier, report: &mut RecoveryReport) -> Result<Vec<VolumeId>> {
        self.set_object_tier(tier);
        let Some(TierJob::Claim(job)) = self.tier_job()? else { return Ok(Vec::new()) };
        let outcome = job.run();
        self.tier_done(TierJob::Claim(job), Ok(()))?;
        let elsewhere = self.segments.table.iter().any(|(_, segment)| segment.place != Place::Here);
        if let Err(e) = outcome {
            if elsewhere {
                let text = format!("the pool cannot be opened without its object store, where a part of it is: {e}");
                return Err(Error::new(e.kind(), text));
            }
            report
                .dropped
                .push(format!("nothing, but the object store does not answer; volumes are served from here: {e}"));
        }
        Ok(self.interrupted())
    }

    /// Which files of segments that were given up are still here: the first anchor has them removed.
    fn find_given_up(&mut self) -> Result<()> {
        let names = self.disk.list("seg-").map_err(|e| Error::io("looking for segments", e))?;
        let names: BTreeSet<String> = names.into_iter().collect();
        for (id, segment) in self.segments.table.iter_mut().filter(|(_, segment)| segment.place == Place::Store) {
            segment.stored = if names.contains(&segment_name(id)) { segment.stored.max(1) } else { 0 };
        }
        Ok(())
    }

    /// Removes left-over files, durably: their names may be given again.
    fn remove_all(&self, names: Vec<String>) -> Result<()> {
        let wrap = |e| Error::io("removing left-over files", e);
        if names.is_empty() {
            return Ok(());
        }
        names.iter().try_for_each(|name| self.disk.remove(name)).map_err(wrap)?;
        self.disk.sync_names().map_err(wrap)
    }

    pub(crate) fn from_anchor(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: PoolOptions,
        anchor: Anchor,
        bytes: u64,
    ) -> Result<Self> {
        let mut segments = Segments::new(disk.clone(), anchor.pool);
        segments.next_id = anchor.next_segment;
        check_owners(&anchor)?;
        for s in anchor.segments {
            let live = s.bits.iter().map(|w| w.count_ones()).sum();
            let segment = Segment {
                kind: s.kind,
                volume: s.volume,
                sealed: s.sealed,
                place: s.place,
                settled: s.sealed,
                used: s.used,
                live,
                bits: s.bits,
                nodes: s.nodes,
                enough: Vec::new(),
                stored: s.stored,
                live_before: 0,
            };
            segments.table.insert(s.id, segment);
        }
        let mut roots = Roots::default();
        let mut checkpoints: HashMap<VolumeId, BTreeMap<_, _>> = HashMap::new();
        let mut entries = Vec::new();
        for r in anchor.roots {
            if let RootKind::Checkpoint { name, .. } = &r.kind {
                checkpoints.entry(r.volume).or_default().insert(*name, r.id);
            }
            let map = MapRoot { top: Ref::from_bits(r.top), level: r.level };
            let root =
                Root { volume: r.volume, map, size: r.size, parent: r.parent, children: Vec::new(), kind: r.kind };
            entries.push((r.id, root));
        }
        if !roots.load(entries, anchor.next_root) {
            return Err(Error::corrupt("the anchor names a parent that does not exist"));
        }
        let mut pool = Self {
            disk,
            clock,
            options,
            pool_id: anchor.pool,
            segments,
            map: Map::new(options.map_cache),
            roots,
            volumes: BTreeMap::new(),
            names: HashMap::new(),
            streams: BTreeMap::new(),
            epoch: anchor.epoch + 1,
            next_lsn: anchor.next_lsn,
            next_volume: anchor.next_volume,
            anchors: AnchorState::new(anchor.sequence),
            poisoned: None,
            map_open: None,
            counts: HashMap::new(),
            structural: Vec::new(),
            reserve: Reserve::default(),
            room: crate::room::Room::default(),
            tier: None,
            appended_bytes: 0,
            readers: crate::read_ahead::Readers::default(),
        };
        pool.anchors.bytes = bytes;
        pool.anchors.live_blocks = pool.segments.table.live_blocks;
        for v in anchor.volumes {
            if pool.roots.find(v.head).is_none() {
                return Err(Error::corrupt(format!("the anchor has no head for volume {:?}", v.name)));
            }
            pool.names.insert(v.name.clone(), v.id);
            let volume = Volume {
                name: v.name,
                created_us: v.created_us,
                head: v.head,
                checkpoints: checkpoints.remove(&v.id).unwrap_or_default(),
                next_checkpoint: v.next_checkpoint,
                next_auto: v.next_auto,
                origins: v.origins,
                durability: v.durability,
                read_only: v.read_only,
            };
            pool.volumes.insert(v.id, volume);
        }
        if let Some((id, slot)) = anchor.map_tail {
            pool.map_open = Some((id, pool.segments.file_of_open(id)?, slot));
        }
        Ok(pool)
    }

    /// Accounts for the segments that the tails run through, before their records are applied.
    fn adopt_segments(&mut self, ends: &[(VolumeId, StreamEnd)]) {
        for (volume, end) in ends {
            for (id, _, used, crcs) in &end.segments {
                if self.segments.table.get(*id).is_none() {
                    self.segments.table.insert(*id, Segment::new(SegmentKind::Log, *volume));
                }
                if let Some(segment) = self.segments.table.get_mut(*id) {
                    segment.used = *used;
                    segment.stored = *used;
                }
                self.segments.open_crcs.insert(*id, crcs.clone());
                self.segments.next_id = self.segments.next_id.max(id.0 + 1);
            }
        }
    }

    /// Continues a stream where its good part ends; all its segments but the last are sealed.
    fn adopt_stream(&mut self, volume: VolumeId, end: StreamEnd) -> Result<()> {
        let mut stream = Stream::new(volume);
        stream.sequence = end.sequence;
        stream.previous_crc = end.previous_crc;
        let lsn = self.next_lsn;
        for (id, file, used, _) in end.segments {
            stream.seal(&mut self.segments, self.map.cache(), lsn)?;
            stream.resume(id, file, used, lsn);
        }
        self.streams.insert(volume, stream);
        if volume != POOL_STREAM && !self.volumes.contains_key(&volume) {
            self.retire_stream(volume)?;
        }
        Ok(())
    }
}

/// Every open segment belongs to the log that goes on in it, and map pages go to a map segment:
/// otherwise blocks of two volumes would be mixed.
fn check_owners(anchor: &Anchor) -> Result<()> {
    let owners: HashMap<_, _> = anchor.segments.iter().map(|s| (s.id, (s.kind, s.volume))).collect();
    let logs = anchor.streams.iter().filter_map(|s| Some((s.open?.0, SegmentKind::Log, s.volume)));
    let map = anchor.map_tail.map(|(id, _)| (id, SegmentKind::Map, POOL_STREAM));
    for (id, kind, volume) in logs.chain(map) {
        if owners.get(&id) != Some(&(kind, volume)) {
            let text = format!(
                "the anchor continues the log of volume {} in segment {}, which belongs elsewhere",
                volume.0, id.0
            );
            return Err(Error::corrupt(text));
        }
    }
    Ok(())
}

/// Segment files that the anchor does not know: those with a log header by their place in their
/// stream, and all of them as possible left-overs.
fn find_candidates(
    disk: &Arc<dyn Disk>,
    anchor: &Anchor,
    report: &mut RecoveryReport,
) -> Result<(Candidates, Vec<SegmentId>)> {
    let wrap = |e| Error::io("looking for segments", e);
    let known: BTreeSet<SegmentId> = anchor.segments.iter().map(|s| s.id).collect();
    let (mut candidates, mut strangers) = (Candidates::new(), Vec::new());
    for name in disk.list("seg-").map_err(wrap)? {
        let Ok(number) = u32::from_str_radix(&name["seg-".len()..], 16) else { continue };
        let id = SegmentId(number);
        if known.contains(&id) || name != segment_name(id) {
            continue;
        }
        let mut block = [0; BLOCK];
        match disk.open(&name).and_then(|file| file.read_at(&mut block, 0)) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                strangers.push(id);
                continue;
            }
            // No segment of ours: it only stands where one may come to be.
            Err(e) if e.kind() == std::io::ErrorKind::IsADirectory => {
                let aside = format!("stray-{name}");
                disk.rename(&name, &aside).map_err(wrap)?;
                report.dropped.push(format!("{name}, which is a folder, is kept as {aside}"));
                continue;
            }
            // It may hold promised changes: what cannot be read is not given up.
            Err(e) => return Err(wrap(e)),
        }
        match SegmentHeader::decode(&block) {
            Ok(Some(header))
                if header.pool == anchor.pool && header.segment == id && header.kind == SegmentKind::Log =>
            {
                candidates.entry((header.volume, header.sequence)).or_default().push((id, header));
            }
            Err(e) if e.kind() == ErrorKind::Invalid => return Err(e),
            // A write that power loss tore looks like this, and so does damage to what was promised.
            Err(_) => {
                let aside = format!("damaged-{name}");
                disk.rename(&name, &aside).map_err(wrap)?;
                report.dropped.push(format!("{name}, whose header is damaged, is kept as {aside}"));
                continue;
            }
            Ok(_) => {}
        }
        strangers.push(id);
    }
    for name in disk.list("tmp-").map_err(wrap)? {
        let _ = disk.remove(&name);
    }
    Ok((candidates, strangers))
}

/// Where each stream's tail begins: as the anchor says, or at its first segment.
fn tail_starts(anchor: &Anchor, candidates: &Candidates, rewrite: bool) -> Vec<TailStart> {
    let mut starts: BTreeMap<VolumeId, TailStart> = BTreeMap::new();
    let epoch = anchor.epoch;
    for s in &anchor.streams {
        let (volume, sequence, previous_crc) = (s.volume, s.sequence, s.previous_crc);
        let start = TailStart { volume, sequence, open: s.open, previous_crc, epoch, rewrite };
        starts.insert(s.volume, start);
    }
    for (volume, sequence) in candidates.keys() {
        if *sequence == 1 {
            let start = TailStart { volume: *volume, sequence: 0, open: None, previous_crc: 0, epoch, rewrite };
            starts.entry(*volume).or_insert(start);
        }
    }
    starts.into_values().collect()
}

impl Stream {
    /// Takes up appending to a segment that recovery found, whose bytes may not be durable yet.
    fn resume(&mut self, id: SegmentId, file: Arc<dyn File>, next_slot: u32, lsn: Lsn) {
        self.open = Some(crate::log::OpenSegment { id, file: file.clone(), next_slot });
        self.mark_unsynced(file, lsn);
    }
}
