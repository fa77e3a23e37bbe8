//! Anchors: writing the state down from time to time, so that opening replays little.
//!
//! Invariants
//!   * an anchor is renamed into place only when everything it refers to is durable: log, map pages,
//!     directories of sealed segments;
//!   * nothing that an anchor refers to is removed or packed before a later anchor is durable in
//!     which it is dead (`settled`, and the victims chosen at `begin_anchor`);
//!   * an anchor under its final name is complete: if it does not verify, it is damaged.

use crate::disk::{Disk, File};
use crate::error::{Error, ErrorKind, Result};
use crate::format::anchor::{Anchor, RootEntry, SegmentEntry, StreamEntry, VolumeEntry};
use crate::format::segment::Place;
use crate::limits::{BLOCK, END_SLOT, FIRST_SLOT};
use crate::log::{note_failed_sync, Stream};
use crate::pool::Pool;
use crate::space::{give_up, CompactJob, Purpose};
use crate::types::{Lsn, SegmentId};
use crate::write_map::Progress;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Prefix of anchor file names.
pub const ANCHOR_PREFIX: &str = "anchor-";

/// Bookkeeping between anchors.
pub(crate) struct AnchorState {
    /// Number of the newest anchor.
    pub sequence: u64,
    /// Log bytes since then.
    pub log_bytes: u64,
    /// Size of the newest anchor, bytes.
    pub bytes: u64,
    /// Files to sync with the next anchor besides those of the streams.
    pub extra_files: Vec<Arc<dyn File>>,
    /// An anchor is being written.
    pub running: bool,
    /// A file is being cleaned: no anchor chooses victims meanwhile.
    pub cleaning: bool,
    /// An audit is held: nothing is cleaned meanwhile.
    pub audited: bool,
    /// What the newest anchor allows to clean.
    pub victims: Vec<Victim>,
    /// Counts dead slots at the last anchor: anything new to clean?
    pub live_blocks: u64,
    /// How far the map has been written ahead of the next anchor.
    pub ahead: Progress,
    /// `log_bytes` when an anchor found no space: the next one waits until something has changed.
    pub no_space_at: Option<u64>,
}

impl AnchorState {
    pub(crate) fn new(sequence: u64) -> Self {
        Self {
            sequence,
            log_bytes: 0,
            bytes: 0,
            extra_files: Vec::new(),
            running: false,
            cleaning: false,
            audited: false,
            victims: Vec::new(),
            live_blocks: 0,
            ahead: Progress::default(),
            no_space_at: None,
        }
    }

    fn idle(&self) -> bool {
        !self.running && !self.cleaning && self.no_space_at != Some(self.log_bytes)
    }
}

/// How much work the cleaner may make of giving back dead space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleaning {
    /// Clients are busy: segments that are half dead and lose no more blocks.
    Busy,
    /// Nobody is: segments that are half dead.
    Idle,
    /// It was asked for: segments of which a quarter is dead.
    Thorough,
}

/// A segment that may be cleaned.
pub enum Victim {
    /// Nothing lives in it: remove the file.
    Remove(SegmentId),
    /// Little lives in it: pack the file.
    Pack(CompactJob),
    /// All that lives in it is in the object store: remove the file.
    GiveUp(SegmentId),
}

impl Victim {
    /// Its segment.
    pub fn id(&self) -> SegmentId {
        match self {
            Self::Remove(id) | Self::GiveUp(id) => *id,
            Self::Pack(job) => job.id,
        }
    }
}

/// The blocking part of an anchor; runs on any thread.
pub struct AnchorJob {
    disk: Arc<dyn Disk>,
    files: Vec<Arc<dyn File>>,
    state: Anchor,
    encoded: OnceLock<Vec<u8>>,
    sequence: u64,
    upto: Lsn,
    log_bytes: u64,
    settled: Vec<SegmentId>,
    victims: Vec<Victim>,
    reserve_spent: AtomicBool,
}

fn anchor_name(sequence: u64) -> String {
    format!("{ANCHOR_PREFIX}{sequence:016x}")
}

/// A sync that fails for want of space is a failed sync all the same: what it was to write may be gone.
fn synced(outcome: io::Result<()>) -> io::Result<()> {
    outcome.map_err(|e| io::Error::other(format!("a sync failed: {e}")))
}

fn install(disk: &dyn Disk, sequence: u64, bytes: &[u8]) -> io::Result<()> {
    let temporary = "tmp-anchor";
    let _ = disk.remove(temporary);
    let file = disk.create(temporary)?;
    file.write_at(&[IoSlice::new(bytes)], 0)?;
    synced(file.sync())?;
    disk.rename(temporary, &anchor_name(sequence))?;
    synced(disk.sync_names())?;
    if let Some(before) = sequence.checked_sub(1) {
        let _ = disk.remove(&anchor_name(before));
    }
    Ok(())
}

/// The anchor of a new, empty pool.
pub(crate) fn write_first(disk: &Arc<dyn Disk>, pool: [u8; 16]) -> io::Result<()> {
    let anchor = Anchor {
        pool,
        sequence: 0,
        epoch: 0,
        next_lsn: Lsn(1),
        next_segment: 1,
        next_volume: 1,
        next_root: 1,
        map_tail: None,
        volumes: Vec::new(),
        streams: Vec::new(),
        roots: Vec::new(),
        segments: Vec::new(),
    };
    install(&**disk, 0, &anchor.encode())
}

/// Numbers of the anchor files on `disk`; names that are not exactly an anchor's are somebody else's.
fn numbers(disk: &Arc<dyn Disk>) -> Result<Vec<u64>> {
    let names = disk.list(ANCHOR_PREFIX).map_err(|e| Error::io("looking for anchors", e))?;
    let number = |name: &String| {
        let number = u64::from_str_radix(name.strip_prefix(ANCHOR_PREFIX)?, 16).ok()?;
        (anchor_name(number) == *name).then_some(number)
    };
    Ok(names.iter().filter_map(number).collect())
}

/// Names of the anchor files before number `sequence`.
pub(crate) fn old_anchors(disk: &Arc<dyn Disk>, sequence: u64) -> Result<Vec<String>> {
    Ok(numbers(disk)?.into_iter().filter(|n| *n < sequence).map(anchor_name).collect())
}

/// The newest anchor on `disk`.
pub(crate) fn read_newest(disk: &Arc<dyn Disk>) -> Result<(Anchor, u64)> {
    let wrap = |e| Error::io("reading the anchor", e);
    let newest = numbers(disk)?.into_iter().max();
    let newest = newest.ok_or_else(|| Error::corrupt("the pool has no anchor file: it is damaged or incomplete"))?;
    let name = anchor_name(newest);
    let file = disk.open(&name).map_err(wrap)?;
    let len = file.len().map_err(wrap)?;
    if len > crate::limits::ANCHOR_BYTES_MAX {
        return Err(Error::corrupt(format!("{name} is {len} bytes long, more than any anchor")));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, 0).map_err(wrap)?;
    let anchor = Anchor::decode(&bytes).map_err(|e| Error::new(e.kind(), format!("{name}: {e}")))?;
    if anchor.sequence != newest {
        return Err(Error::corrupt(format!("{name} holds anchor {:x}: was it renamed or copied?", anchor.sequence)));
    }
    Ok((anchor, len))
}

impl AnchorJob {
    /// The anchor itself, encoded when it is first asked for: with a large pool that takes tens of
    /// milliseconds, which are not the pool's owner's to wait for.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.encoded.get_or_init(|| self.state.encode())
    }

    /// Makes everything durable and installs the anchor; blocks.
    pub fn run(&self) -> io::Result<()> {
        let log = self.files.iter().try_for_each(|file| file.sync()).and_then(|()| self.disk.sync_names());
        synced(log.inspect_err(|_| note_failed_sync(&*self.disk)))?;
        match install(&*self.disk, self.sequence, self.bytes()) {
            Err(e) if Error::is_no_space(&e) => {
                give_up(&*self.disk, Purpose::Anchors);
                self.reserve_spent.store(true, Ordering::Relaxed);
                install(&*self.disk, self.sequence, self.bytes())
            }
            done => done,
        }
    }
}

impl Pool {
    /// Whether it is time for an anchor.
    pub fn wants_anchor(&self) -> bool {
        let due = self.options.anchor_bytes.max(4 * self.anchors.bytes);
        let asked = self.tier_wants_anchor() || self.room.wants_anchor();
        self.anchors.idle() && self.poisoned.is_none() && (self.anchors.log_bytes >= due || asked)
    }

    /// Whether an anchor would let the cleaner give back space, or save replay, though none is due.
    pub fn wants_idle_anchor(&self) -> bool {
        let died = self.segments.table.live_blocks < self.anchors.live_blocks;
        self.anchors.idle() && self.poisoned.is_none() && (self.anchors.log_bytes > 0 || died)
    }

    /// Writes changed map nodes to map pages and takes the state down.
    pub fn begin_anchor(&mut self, cleaning: Cleaning) -> Result<AnchorJob> {
        self.writable()?;
        self.anchors.ahead = Progress::default();
        if let Err(e) = self.write_map_with_reserve() {
            self.anchors.no_space_at = (e.kind() == ErrorKind::NoSpace).then_some(self.anchors.log_bytes);
            return Err(e);
        }
        self.give_up_segments();
        let upto = self.next_lsn;
        let mut files = std::mem::take(&mut self.anchors.extra_files);
        for stream in self.streams.values() {
            files.extend(stream.flush_job(upto, &self.disk).files);
        }
        let sequence = self.anchors.sequence + 1;
        let state = self.take_down(sequence);
        let unsettled = self.segments.table.iter().filter(|(_, s)| s.sealed && !s.settled);
        let settled = unsettled.map(|(id, _)| id).collect();
        let victims = self.choose_victims(cleaning);
        self.anchors.running = true;
        let log_bytes = std::mem::take(&mut self.anchors.log_bytes);
        self.anchors.live_blocks = self.segments.table.live_blocks;
        Ok(AnchorJob {
            disk: self.disk.clone(),
            files,
            state,
            encoded: OnceLock::new(),
            sequence,
            upto,
            log_bytes,
            settled,
            victims,
            reserve_spent: AtomicBool::new(false),
        })
    }

    /// Takes note of an anchor job's outcome.
    pub fn anchored(&mut self, job: AnchorJob, outcome: io::Result<()>) -> Result<()> {
        self.anchors.running = false;
        if job.reserve_spent.load(Ordering::Relaxed) {
            self.reserve.lost(Purpose::Anchors);
        }
        if let Err(e) = outcome {
            let error = Error::io("writing an anchor", e);
            // Without space the anchor before still serves, and trims and deletions must go on.
            if error.kind() == ErrorKind::NoSpace {
                self.anchors.log_bytes += job.log_bytes;
                self.anchors.no_space_at = Some(self.anchors.log_bytes);
            } else {
                self.poison(error.to_string());
            }
            return Err(error);
        }
        self.anchors.no_space_at = None;
        self.room.anchored();
        self.anchors.sequence = job.sequence;
        self.anchors.bytes = job.bytes().len() as u64;
        self.streams.values_mut().for_each(|stream| stream.flushed(job.upto));
        self.structure_is_durable(None, job.upto);
        if let Some(tier) = &mut self.tier {
            tier.anchor = Some(Arc::new(job.state));
        }
        for id in job.settled {
            if let Some(segment) = self.segments.table.get_mut(id) {
                segment.settled = true;
            }
        }
        // The newest choice replaces what is left of the one before: it knows all of it but the spares.
        let table = &self.segments.table;
        self.anchors.victims.retain(|victim| matches!(victim, Victim::Remove(id) if table.get(*id).is_none()));
        self.anchors.victims.extend(job.victims);
        Ok(())
    }

    /// An anchor, here and now.
    pub fn anchor(&mut self, cleaning: Cleaning) -> Result<()> {
        let job = self.begin_anchor(cleaning)?;
        let outcome = job.run();
        self.anchored(job, outcome)
    }

    fn take_down(&self, sequence: u64) -> Anchor {
        let volumes = self.volumes.iter().map(|(id, v)| VolumeEntry {
            id: *id,
            name: v.name.clone(),
            size: self.roots.get(v.head).size,
            created_us: v.created_us,
            head: v.head,
            next_checkpoint: v.next_checkpoint,
            next_auto: v.next_auto,
            origins: v.origins.clone(),
            durability: v.durability,
            read_only: v.read_only,
        });
        // A segment that has been taken but holds no batch yet is no part of a log: its file may not
        // even have a header. Recovery finds it as it finds any segment begun after the anchor.
        let begun = |s: &&Stream| s.open.as_ref().is_some_and(|open| open.next_slot == FIRST_SLOT);
        let unused: Vec<_> = self.streams.values().filter(begun).filter_map(|s| Some(s.open.as_ref()?.id)).collect();
        let streams = self.streams.values().map(|s| StreamEntry {
            volume: s.volume,
            sequence: s.sequence - u32::from(begun(&s)),
            open: s.open.as_ref().filter(|_| !begun(&s)).map(|open| (open.id, open.next_slot)),
            previous_crc: s.previous_crc,
        });
        let roots = self.roots.iter().map(|(id, r)| RootEntry {
            id,
            volume: r.volume,
            parent: r.parent,
            top: r.map.top.bits(),
            level: r.map.level,
            size: r.size,
            kind: r.kind.clone(),
        });
        let segments = self.segments.table.iter().filter(|(id, _)| !unused.contains(id)).map(|(id, s)| SegmentEntry {
            id,
            kind: s.kind,
            volume: s.volume,
            sealed: s.sealed,
            place: s.place,
            used: s.used,
            stored: s.stored,
            bits: s.bits.clone(),
            nodes: s.nodes.clone(),
        });
        Anchor {
            pool: self.pool_id,
            sequence,
            epoch: self.epoch,
            next_lsn: self.next_lsn,
            next_segment: self.segments.next_id,
            next_volume: self.next_volume,
            next_root: self.roots.next_id,
            map_tail: self.map_open.as_ref().map(|(id, _, slot)| (*id, *slot)),
            volumes: volumes.collect(),
            streams: streams.collect(),
            roots: roots.collect(),
            segments: segments.collect(),
        }
    }

    /// Segments worth cleaning, by what lives in them now: what is dead now is dead in the anchor
    /// that is being written, too. A segment that lost blocks since the last anchor will soon be
    /// cheaper to pack, or dead: it is left alone unless much dead space has gathered.
    fn choose_victims(&mut self, cleaning: Cleaning) -> Vec<Victim> {
        let crowded = self.segments.table.crowded();
        let away = self.segments.table.iter().any(|(_, segment)| segment.place != Place::Here);
        self.segments.table.away = away;
        let mut victims = Vec::new();
        for (id, segment) in self.segments.table.iter_mut() {
            let settling = segment.live != std::mem::replace(&mut segment.live_before, segment.live);
            if !segment.sealed || !segment.settled {
                continue;
            }
            let overhead = crate::limits::DIRECTORY_PAGES + 1;
            let after = segment.live + overhead;
            let worth = match cleaning {
                Cleaning::Thorough => after * 4 <= segment.stored * 3,
                Cleaning::Busy | Cleaning::Idle => after * 2 <= segment.stored,
            };
            let ready = cleaning != Cleaning::Busy || crowded || !settling;
            if segment.live == 0 {
                victims.push(Victim::Remove(id));
            } else if segment.place == Place::Store && segment.stored > 0 {
                victims.push(Victim::GiveUp(id));
            } else if worth && ready && segment.place == Place::Here && segment.stored - after.min(segment.stored) >= 16
            {
                victims.push(Victim::Pack(CompactJob { id, keep: segment.bits.clone(), disk: self.disk.clone() }));
            }
        }
        // The last is taken first: what gives back most for least, which a full disk may be the sooner able to do.
        victims.sort_by_key(|victim| match victim {
            Victim::Remove(_) | Victim::GiveUp(_) => 0,
            Victim::Pack(job) => self.segments.table.get(job.id).map_or(0, |s| s.live),
        });
        victims.reverse();
        victims
    }
}

const _: () = assert!(END_SLOT as usize * BLOCK <= u32::MAX as usize);
