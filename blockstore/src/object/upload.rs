//! One round of uploading: everything that lives at one cut and is not in the store yet, then manifests.
//!
//! Invariants
//!   * the local log is synced before anything is put: the store is never ahead of the local disk;
//!   * a slot that was dead at the cut is not sent; a slot is sent once;
//!   * a manifest is put only when every object that it names is there;
//!   * a round that fails loses nothing: what was put counts, the next round does the rest at its own cut;
//!   * what of one volume cannot be read, or was written by somebody else, keeps no other volume from being uploaded.

use super::claim::newer_than;
use super::pins::{makers, pin, unpin};
use super::worn::{pack_anew, Worn};
use super::{Created, ObjectStore, Range};
use crate::disk::File;
use crate::error::{Error, ErrorKind, Result};
use crate::format::anchor::{Anchor, RootEntry};
use crate::format::batch::{Batch, Identity};
use crate::format::manifest::{manifest_key, Manifest, ObjectInfo, Part, SegmentParts, Tenure};
use crate::format::object::{present, within, BatchEntry, Directory, ObjectBuilder, ObjectId, RangeEntry};
use crate::format::origin::{Origin, Origins};
use crate::format::page;
use crate::format::segment::{directory_crc, directory_place, verify_directory_page, Bitmap, Place, SegmentKind};
use crate::limits::{BLOCK, BLOCK_U64, END_SLOT, FENCE_FRESH_US, FIRST_SLOT};
use crate::log::FlushJob;
use crate::space::{store_error, Handle};
use crate::types::{Clock, Lsn, RootId, SegmentId, SlotAddr, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A range of slots to put, as it was at the cut.
pub(crate) struct Slots {
    pub segment: SegmentId,
    pub kind: SegmentKind,
    pub volume: VolumeId,
    pub first: u32,
    pub end: u32,
    pub live: Arc<Bitmap>,
    pub handle: Handle,
    /// Checksums by slot of a segment that has no directory yet.
    pub crcs: Option<Vec<u32>>,
    /// Records from this slot on are part of the tail.
    pub records_from: u32,
}

/// An object to put.
pub(crate) struct Task {
    pub id: ObjectId,
    pub source: Source,
}

/// What an object is made of.
pub(crate) enum Source {
    /// Slots that are here.
    Here(Vec<Slots>),
    /// What lives of another object.
    Store(Worn),
}

impl Task {
    /// Slots that the object will hold: segment here, first, one past the last.
    fn parts(&self) -> Vec<(SegmentId, u32, u32)> {
        match &self.source {
            Source::Here(ranges) => ranges.iter().map(|slots| (slots.segment, slots.first, slots.end)).collect(),
            Source::Store(worn) => worn.parts.iter().map(|part| (part.segment, part.first, part.end)).collect(),
        }
    }

    fn replaces(&self) -> Option<ObjectId> {
        match &self.source {
            Source::Here(_) => None,
            Source::Store(worn) => Some(worn.id),
        }
    }
}

/// A segment as it was at the cut.
pub(crate) struct SegmentAtCut {
    pub id: SegmentId,
    pub kind: SegmentKind,
    pub volume: VolumeId,
    pub place: Place,
    /// What lives: of map segments in the anchor, of others at the cut.
    pub live: Arc<Bitmap>,
}

/// A manifest to put.
pub(crate) struct Chapter {
    pub volume: VolumeId,
    pub name: String,
    pub number: u64,
    pub epoch: u64,
    pub nonce: [u8; 16],
    /// Nonces that earlier rounds may have put under this number.
    pub pending: Vec<[u8; 16]>,
    pub tenure: Tenure,
    /// Whose it was before.
    pub predecessors: Vec<([u8; 16], VolumeId)>,
    /// Volumes whose logs hold blocks of this one.
    pub owners: BTreeSet<VolumeId>,
    /// The pools at which there is a pin for the volume already.
    pub pinned: BTreeSet<[u8; 16]>,
    /// When the newest manifest was last known to be this pool's.
    pub confirmed_us: Option<u64>,
    /// What is put as it is, whatever the anchor says: the last word on a volume that is no longer here.
    pub whole: Option<Box<Manifest>>,
}

/// A put object.
#[derive(Clone)]
pub(crate) struct Put {
    pub info: ObjectInfo,
    pub directory: Arc<Directory>,
    /// Segment here, first slot, one past the last.
    pub parts: Vec<(SegmentId, u32, u32)>,
    /// The object in whose place it comes.
    pub replaces: Option<ObjectId>,
}

/// What became of a manifest.
pub(crate) enum Verdict {
    /// It is there.
    Written(Box<Manifest>),
    /// One of ours was there already: of an earlier round, or of an earlier life.
    Earlier(Box<Manifest>),
    /// Somebody else's is there.
    Lost(Box<Manifest>),
}

/// One round; owns all it needs. Puts run on any number of threads.
pub struct UploadJob {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) pool: [u8; 16],
    pub(crate) pool_epoch: u64,
    pub(crate) time_us: u64,
    /// When it began, by what passes here.
    pub(crate) began_us: u64,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) cut: Lsn,
    pub(crate) anchor: Arc<Anchor>,
    pub(crate) flushes: Vec<FlushJob>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) segments: Vec<SegmentAtCut>,
    pub(crate) parts: Arc<BTreeMap<SegmentId, Vec<Part>>>,
    pub(crate) objects: Arc<BTreeMap<ObjectId, ObjectInfo>>,
    pub(crate) origins: Origins,
    pub(crate) next_segment: u32,
    pub(crate) chapters: Vec<Chapter>,
    pub(crate) next_task: AtomicUsize,
    pub(crate) puts: Mutex<BTreeMap<ObjectId, Put>>,
    /// Objects that could not be made, and why.
    pub(crate) unread: Mutex<BTreeMap<ObjectId, String>>,
    /// Worn objects that could not be packed anew.
    pub(crate) stubborn: Mutex<BTreeSet<ObjectId>>,
    pub(crate) verdicts: Mutex<Vec<(VolumeId, Verdict)>>,
    pub(crate) flushed: Mutex<Option<io::Result<()>>>,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl UploadJob {
    /// The whole round, here and now.
    pub fn run(&self) -> Result<()> {
        self.prepare()?;
        while self.put_next()? {}
        self.commit()
    }

    /// Makes everything before the cut durable here; the first step.
    pub fn prepare(&self) -> Result<()> {
        let outcome = self.flushes.iter().try_for_each(FlushJob::run);
        let failure = outcome.as_ref().err().map(|e| Error::sync("before an upload", e));
        *locked(&self.flushed) = Some(outcome);
        failure.map_or(Ok(()), Err)
    }

    /// Objects that there are to put.
    pub fn objects(&self) -> usize {
        self.tasks.len()
    }

    /// Puts one more object; `false` when none is left. Several threads may do so at once.
    pub fn put_next(&self) -> Result<bool> {
        let Some(task) = self.tasks.get(self.next_task.fetch_add(1, Ordering::Relaxed)) else { return Ok(false) };
        let built = match &task.source {
            Source::Here(ranges) => build(task.id, ranges),
            Source::Store(worn) => pack_anew(worn, task.id, &*self.store),
        };
        let (bytes, directory) = match (built, &task.source) {
            (Ok(built), _) => built,
            (Err(e), Source::Here(_)) => {
                locked(&self.unread).insert(task.id, e.to_string());
                return Ok(true);
            }
            (Err(_), Source::Store(worn)) => {
                locked(&self.stubborn).insert(worn.id);
                return Ok(true);
            }
        };
        let key = task.id.key();
        let put = self.store.put_if_absent(&key, &bytes).map_err(|e| store_error("uploading", &e))?;
        let own = bytes.get(..directory.len as usize).unwrap_or_default();
        let info = ObjectInfo { len: bytes.len() as u64, directory: directory.len, check: Directory::check(own) };
        if put == Created::Exists {
            // A repeated request meets its first attempt; anything else means that this pool exists twice.
            let there = self.store.get(&key, Range::All).map_err(|e| store_error("uploading", &e))?;
            if there != bytes {
                let text = format!(
                    "object {key} is there already with other contents: is a copy of this pool's folder in use elsewhere?"
                );
                return Err(Error::new(ErrorKind::Fenced, text));
            }
        }
        let (parts, replaces) = (task.parts(), task.replaces());
        locked(&self.puts).insert(task.id, Put { info, directory: Arc::new(directory), parts, replaces });
        Ok(true)
    }

    /// Puts the manifests; the last step, when every object is there that could be read. What failed for one volume is
    /// told when the others are done.
    pub fn commit(&self) -> Result<()> {
        let (puts, unread) = (locked(&self.puts).clone(), locked(&self.unread).clone());
        if puts.len() + unread.len() + locked(&self.stubborn).len() != self.tasks.len() {
            return Err(Error::new(ErrorKind::Unavailable, "not every object of the round is there"));
        }
        let mut outcome = Ok(());
        for chapter in &self.chapters {
            match self.commit_one(chapter, &puts, &unread) {
                Ok(verdict) => locked(&self.verdicts).push((chapter.volume, verdict)),
                Err(e) if matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Denied) => return Err(e),
                Err(e) => outcome = outcome.and(Err(e)),
            }
        }
        outcome
    }

    fn commit_one(
        &self,
        chapter: &Chapter,
        puts: &BTreeMap<ObjectId, Put>,
        unread: &BTreeMap<ObjectId, String>,
    ) -> Result<Verdict> {
        let manifest = match &chapter.whole {
            Some(whole) => (**whole).clone(),
            None => {
                // Neither its blocks nor its records may be missing from what the manifest names.
                if let Some((_, why)) = unread.iter().find(|(id, _)| chapter.owners.contains(&id.volume)) {
                    return Err(Error::corrupt(format!("{:?} is not uploaded: {why}", chapter.name)));
                }
                self.manifest(chapter, puts)?
            }
        };
        self.pin(chapter, &manifest)?;
        let verdict = put_manifest(&*self.store, manifest, &chapter.pending)?;
        self.confirm(chapter, verdict)
    }

    /// Before a manifest names objects, their makers can see that it may.
    fn pin(&self, chapter: &Chapter, manifest: &Manifest) -> Result<()> {
        if manifest.tenure == Tenure::Deleted {
            return Ok(());
        }
        let mut missing = makers(manifest);
        missing.insert(self.pool);
        missing.retain(|maker| !chapter.pinned.contains(maker));
        pin(&*self.store, &missing, &self.pool, &manifest.name, manifest.number, self.time_us)
    }

    /// Whether a manifest that was put is the newest. Manifests that are no longer the newest stay for twice as long
    /// as this pool may rely on what it knows: only one that was held for longer has to ask.
    fn confirm(&self, chapter: &Chapter, verdict: Verdict) -> Result<Verdict> {
        let Verdict::Written(manifest) = verdict else { return Ok(verdict) };
        let now_us = self.clock.monotonic_us();
        if chapter.confirmed_us.is_none_or(|since_us| since_us.saturating_add(FENCE_FRESH_US) <= now_us) {
            if let Some(newest) = newer_than(&*self.store, &manifest.name, manifest.number)? {
                return Ok(Verdict::Lost(Box::new(newest)));
            }
        }
        if manifest.tenure == Tenure::Deleted {
            unpin(&*self.store, &chapter.pinned, &self.pool, &manifest.name);
        }
        Ok(Verdict::Written(manifest))
    }

    /// The state of a volume at the cut.
    fn manifest(&self, chapter: &Chapter, puts: &BTreeMap<ObjectId, Put>) -> Result<Manifest> {
        let entry = self.anchor.volumes.iter().find(|v| v.id == chapter.volume);
        let entry = entry.ok_or_else(|| Error::corrupt("a volume to upload is not in the anchor"))?;
        let mut manifest = Manifest {
            name: chapter.name.clone(),
            number: chapter.number,
            epoch: chapter.epoch,
            nonce: chapter.nonce,
            tenure: chapter.tenure,
            pool: self.pool,
            pool_epoch: self.pool_epoch,
            maker: self.pool,
            time_us: self.time_us,
            cut: self.cut,
            anchor_lsn: self.anchor.next_lsn,
            volume: chapter.volume,
            created_us: entry.created_us,
            head: entry.head,
            next_checkpoint: entry.next_checkpoint,
            next_auto: entry.next_auto,
            durability: entry.durability,
            read_only: entry.read_only,
            next_segment: self.next_segment,
            predecessors: chapter.predecessors.clone(),
            roots: roots_of(&self.anchor, chapter.volume),
            origins: Origins::default(),
            objects: BTreeMap::new(),
            segments: BTreeMap::new(),
            tail: Vec::new(),
        };
        let (fresh, replaced) = (fresh_parts(puts), replaced(puts));
        let mut tail = BTreeSet::new();
        for segment in self.segments.iter().filter(|s| chapter.owners.contains(&s.volume)) {
            let from = match segment.kind {
                SegmentKind::Log if segment.volume == chapter.volume => anchored_slot(&self.anchor, segment.id),
                _ => END_SLOT,
            };
            let old = self.parts.get(&segment.id).map_or(&[][..], Vec::as_slice);
            let new = fresh.get(&segment.id).map_or(&[][..], Vec::as_slice);
            let (mut parts, mut homeless) = (Vec::new(), *segment.live);
            for part in old.iter().filter(|part| !replaced.contains(&part.object)).chain(new) {
                let is_tail = part.end > from;
                let inside = within(&segment.live, part.first, part.end);
                let lives = inside.iter().any(|word| *word != 0);
                homeless.iter_mut().zip(&inside).for_each(|(word, inside)| *word &= !inside);
                if is_tail {
                    tail.insert(part.object);
                }
                if lives || is_tail {
                    parts.push(*part);
                    let info = self.objects.get(&part.object).or(puts.get(&part.object).map(|put| &put.info));
                    let info = info.ok_or_else(|| Error::corrupt("a part lies in an object that is not known"))?;
                    manifest.objects.insert(part.object, *info);
                }
            }
            // Of what was taken over it is not known what lives, only what may.
            if let Some(slot) = present(&homeless).first().filter(|_| segment.place != Place::Imported) {
                let addr = SlotAddr::new(segment.id, *slot);
                let text = format!(
                    "{addr} of {:?}, {:?}, is in use and in no object: the round is not put",
                    segment.kind, segment.place
                );
                return Err(Error::corrupt(text));
            }
            // What was put again fills gaps between what was there.
            parts.sort_by_key(|part| part.first);
            // What the tail's replay releases is listed, too: whoever takes the volume over keeps a number free for it.
            if !parts.is_empty() || lived(&self.anchor, segment.id) {
                let parts = SegmentParts { kind: segment.kind, volume: segment.volume, parts };
                manifest.segments.insert(segment.id, parts);
            }
        }
        let listed = &manifest.segments;
        let named =
            |origin: &&Origin| origin.made.iter().any(|(first, last)| listed.range(first..=last).next().is_some());
        let named: Vec<&Origin> = self.origins.iter().filter(named).collect();
        named.into_iter().try_for_each(|origin| manifest.origins.learn(origin.clone()))?;
        manifest.tail = tail.into_iter().collect();
        Ok(manifest)
    }
}

/// The roots of a volume in an anchor; what they descend from in other volumes is left out.
fn roots_of(anchor: &Anchor, volume: VolumeId) -> Vec<RootEntry> {
    let own = || anchor.roots.iter().filter(|root| root.volume == volume);
    let ids: BTreeSet<RootId> = own().map(|root| root.id).collect();
    own().map(|root| RootEntry { parent: root.parent.filter(|id| ids.contains(id)), ..root.clone() }).collect()
}

/// Whether anything in a segment lived in an anchor.
fn lived(anchor: &Anchor, id: SegmentId) -> bool {
    let at = anchor.segments.binary_search_by_key(&id, |s| s.id).ok();
    let segment = at.and_then(|at| anchor.segments.get(at));
    segment.is_some_and(|segment| segment.bits.iter().any(|word| *word != 0))
}

/// Where the part of a segment begins that an anchor does not cover.
pub(crate) fn anchored_slot(anchor: &Anchor, id: SegmentId) -> u32 {
    let Ok(at) = anchor.segments.binary_search_by_key(&id, |s| s.id) else { return FIRST_SLOT };
    match anchor.segments.get(at) {
        Some(segment) if segment.sealed => END_SLOT,
        Some(segment) => segment.used,
        None => FIRST_SLOT,
    }
}

/// Where slots lie in objects that were just put.
pub(crate) fn fresh_parts(puts: &BTreeMap<ObjectId, Put>) -> BTreeMap<SegmentId, Vec<Part>> {
    let mut parts: BTreeMap<SegmentId, Vec<Part>> = BTreeMap::new();
    for (object, put) in puts {
        for (segment, first, end) in &put.parts {
            parts.entry(*segment).or_default().push(Part { first: *first, end: *end, object: *object });
        }
    }
    parts.values_mut().for_each(|parts| parts.sort_by_key(|part| part.first));
    parts
}

/// Objects in whose place others were put.
pub(crate) fn replaced(puts: &BTreeMap<ObjectId, Put>) -> BTreeSet<ObjectId> {
    puts.values().filter_map(|put| put.replaces).collect()
}

/// Puts a manifest, and finds out who was first if it was not this one.
pub(crate) fn put_manifest(store: &dyn ObjectStore, manifest: Manifest, pending: &[[u8; 16]]) -> Result<Verdict> {
    let key = manifest_key(&manifest.name, manifest.number);
    let bytes = manifest.encode()?;
    let wrap = |e| store_error(&format!("writing manifest {key}"), &e);
    if store.put_if_absent(&key, &bytes).map_err(wrap)? == Created::Yes {
        return Ok(Verdict::Written(Box::new(manifest)));
    }
    let there = Manifest::decode(&store.get(&key, Range::All).map_err(wrap)?, &key)?;
    if there.nonce == manifest.nonce {
        return Ok(Verdict::Written(Box::new(manifest)));
    }
    let own_earlier = there.pool == manifest.pool && there.pool_epoch < manifest.pool_epoch;
    let ours = pending.contains(&there.nonce) || own_earlier;
    Ok(if ours { Verdict::Earlier(Box::new(there)) } else { Verdict::Lost(Box::new(there)) })
}

/// Reads the slots of a task and packs them.
fn build(id: ObjectId, ranges: &[Slots]) -> Result<(Vec<u8>, Directory)> {
    let mut builder = ObjectBuilder::new(id);
    for slots in ranges {
        let batches = if slots.records_from < slots.end { read_batches(slots)? } else { Vec::new() };
        let here = present(&slots.live);
        let data = read_live(slots, &here)?;
        let crcs = if slots.kind == SegmentKind::Log { checksums(slots, &here)? } else { Vec::new() };
        for (i, (slot, block)) in here.iter().zip(data.chunks_exact(BLOCK)).enumerate() {
            let addr = SlotAddr::new(slots.segment, *slot);
            match crcs.get(i) {
                None => page::verify(block, addr)?,
                Some(crc) if crc32fast::hash(block) == *crc => {}
                Some(_) => return Err(Error::corrupt(format!("the data at {addr} is damaged: it is not uploaded"))),
            }
        }
        let range = RangeEntry {
            segment: slots.segment,
            kind: slots.kind,
            first: slots.first,
            end: slots.end,
            bits: slots.live.clone(),
            crcs,
            batches,
            frames: Vec::new(),
        };
        builder.push(range, &data)?;
    }
    builder.finish()
}

/// The slots `here` behind one another, runs of them at a time.
fn read_live(slots: &Slots, here: &[u32]) -> Result<Vec<u8>> {
    let mut data = vec![0; here.len() * BLOCK];
    let mut done = 0;
    while let Some(first) = here.get(done) {
        let run = here.iter().skip(done).zip(*first..).take_while(|(slot, expected)| *slot == expected).count();
        let addr = SlotAddr::new(slots.segment, *first);
        let offset = slots.handle.offset(*first);
        let offset = offset.ok_or_else(|| Error::corrupt(format!("{addr} was dropped although it is in use")))?;
        let piece = &mut data[done * BLOCK..(done + run) * BLOCK];
        slots.handle.file.read_at(piece, offset).map_err(|e| Error::io(format!("reading {addr}"), e))?;
        done += run;
    }
    Ok(data)
}

fn checksums(slots: &Slots, here: &[u32]) -> Result<Vec<u32>> {
    if let Some(crcs) = &slots.crcs {
        let crc = |slot: &u32| crcs.get(*slot as usize).copied();
        let all: Option<Vec<u32>> = here.iter().map(crc).collect();
        return all.ok_or_else(|| Error::corrupt(format!("segment {} lacks checksums", slots.segment.0)));
    }
    let mut pages: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut crcs = Vec::with_capacity(here.len());
    for slot in here {
        let (index, place) = directory_place(*slot);
        if let std::collections::btree_map::Entry::Vacant(vacant) = pages.entry(index) {
            let mut block = vec![0; BLOCK];
            let offset = slots.handle.directory_offset(index);
            let read = slots.handle.file.read_at(&mut block, offset);
            read.map_err(|e| Error::io(format!("reading the directory of segment {}", slots.segment.0), e))?;
            verify_directory_page(&block, slots.segment, index)?;
            vacant.insert(block);
        }
        let crc = pages.get(&index).and_then(|page| directory_crc(page, place));
        crcs.push(crc.ok_or_else(|| Error::corrupt("a directory page is too short"))?);
    }
    Ok(crcs)
}

/// The batches from `records_from` on: the log as it stands in the file.
fn read_batches(slots: &Slots) -> Result<Vec<BatchEntry>> {
    let mut batches = Vec::new();
    let mut slot = slots.records_from.max(slots.first);
    let mut block = [0; BLOCK];
    while slot < slots.end {
        let addr = SlotAddr::new(slots.segment, slot);
        let file: &dyn File = &*slots.handle.file;
        let read = file.read_at(&mut block, u64::from(slot) * BLOCK_U64);
        read.map_err(|e| Error::io(format!("reading {addr}"), e))?;
        let claimed = Identity::claimed(&block, slots.volume, None, addr);
        let (batch, _) = Batch::decode(&block, &claimed)?
            .ok_or_else(|| Error::corrupt(format!("the batch header at {addr} is damaged: it is not uploaded")))?;
        batches.push(BatchEntry { first_lsn: batch.first_lsn, slot, records: batch.records });
        slot += 1 + batch.crcs.len() as u32;
    }
    Ok(batches)
}
