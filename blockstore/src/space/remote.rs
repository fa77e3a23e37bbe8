//! Reading slots that are in the object store.
//!
//! Invariants
//!   * nothing is returned that does not verify: directories by the manifest's word for them, data by the checksums
//!     of their directory, map pages by their own;
//!   * what was read is kept, within bounds: objects never change;
//!   * in `patient` mode what is missing is fetched here and now; otherwise it is noted as wanted, and the
//!     answer is an error of kind `Absent`: run the fetches, report them, ask again.

use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::{ObjectInfo, Origin, Part};
use crate::format::object::{open_frame, Directory, Frame, ObjectId, FRAME_SLOTS};
use crate::format::page;
use crate::format::segment::encode_directory_page;
use crate::limits::{
    BLOCK, CRCS_PER_PAGE, OBJECT_DIRECTORIES_KEPT, OBJECT_DIRECTORY_MAX, OBJECT_FRAMES_KEPT, SLOT_BITS,
};
use crate::object::{ObjectStore, Range, StoreError, StoreErrorKind};
use crate::types::{SegmentId, SlotAddr};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// Frames fetched at a time for somebody who reads on: 1 MiB.
const FRAMES_AHEAD: usize = 16;

/// A store's error as one of ours.
pub fn store_error(context: &str, e: &StoreError) -> Error {
    let kind = match e.kind {
        StoreErrorKind::Unavailable => ErrorKind::Unavailable,
        StoreErrorKind::NotFound | StoreErrorKind::Corrupt => ErrorKind::Corrupt,
        StoreErrorKind::Denied | StoreErrorKind::Invalid => ErrorKind::Denied,
    };
    Error::new(kind, format!("{context}: {e}"))
}

/// The last few of something, by key: the one that came first goes first.
struct Kept<K, V> {
    by_key: HashMap<K, V>,
    order: VecDeque<K>,
    most: usize,
}

impl<K: Copy + Eq + std::hash::Hash, V: Clone> Kept<K, V> {
    fn new(most: usize) -> Self {
        Self { by_key: HashMap::new(), order: VecDeque::new(), most }
    }

    fn put(&mut self, key: K, value: V) {
        if self.by_key.insert(key, value).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > self.most {
            let Some(first) = self.order.pop_front() else { break };
            self.by_key.remove(&first);
        }
    }
}

/// What has to come from the store before an answer is possible.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Directory(ObjectId),
    /// The frame at this offset, in this range of the directory.
    Frame(ObjectId, usize, u64),
}

/// One request to the object store; runs on any thread.
pub struct FetchJob {
    store: Arc<dyn ObjectStore>,
    object: ObjectId,
    info: ObjectInfo,
    /// Frames that follow one another; none for the directory.
    frames: Vec<Frame>,
    wanted: Wanted,
}

/// What came of a fetch.
pub enum Fetched {
    /// A directory.
    Directory(Box<Directory>),
    /// Slots of frames.
    Frames(Vec<(u64, Vec<u8>)>),
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(directory) => write!(f, "directory of {}", directory.id.key()),
            Self::Frames(frames) => write!(f, "{} frames", frames.len()),
        }
    }
}

impl FetchJob {
    /// Fetches; blocks.
    pub fn run(&self) -> Result<Fetched> {
        let fetched = self.fetch();
        if fetched.as_ref().is_err_and(|e| e.kind() == ErrorKind::Corrupt) {
            // It may have been damaged on its way, or in a cache: the next try is a fresh one.
            self.store.distrust(&self.object.key());
        }
        fetched
    }

    fn fetch(&self) -> Result<Fetched> {
        let key = self.object.key();
        let get = |offset, len: u64| {
            let bytes = self.store.get(&key, Range::Part { offset, len });
            let bytes = bytes.map_err(|e| store_error(&format!("reading object {key}"), &e))?;
            if bytes.len() as u64 != len {
                let text = format!("object {key} is cut off: {len} bytes at {offset} wanted, {} there", bytes.len());
                return Err(Error::corrupt(text));
            }
            Ok(bytes)
        };
        let (Some(first), Some(last)) = (self.frames.first(), self.frames.last()) else {
            return fetch_directory(&*self.store, &self.object, &self.info).map(|d| Fetched::Directory(Box::new(d)));
        };
        let bytes = get(first.offset, last.offset + u64::from(last.len) - first.offset)?;
        let open = |frame: &Frame| {
            let from = (frame.offset - first.offset) as usize;
            let stored = bytes.get(from..from + frame.len as usize).unwrap_or_default();
            Ok((frame.offset, open_frame(frame, stored, &self.object)?))
        };
        self.frames.iter().map(open).collect::<Result<_>>().map(Fetched::Frames)
    }
}

/// Fetches and verifies a directory.
pub fn fetch_directory(store: &dyn ObjectStore, object: &ObjectId, info: &ObjectInfo) -> Result<Directory> {
    let key = object.key();
    if info.directory > OBJECT_DIRECTORY_MAX {
        return Err(Error::corrupt(format!("object {key} claims a directory of {} bytes", info.directory)));
    }
    let range = Range::Part { offset: 0, len: info.directory.into() };
    let bytes = store.get(&key, range).map_err(|e| store_error(&format!("reading object {key}"), &e))?;
    if bytes.len() as u64 != u64::from(info.directory) || Directory::check(&bytes) != info.check {
        return Err(Error::corrupt(format!("object {key} is not the one that the manifest names, or damaged")));
    }
    Directory::decode(&bytes, object)
}

/// The part of a pool that is in the object store.
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    /// Segments taken over from other pools, by first segment.
    pub origins: Vec<Origin>,
    /// All objects that are known.
    pub objects: Arc<BTreeMap<ObjectId, ObjectInfo>>,
    /// Where slots are, by segment.
    pub parts: Arc<BTreeMap<SegmentId, Vec<Part>>>,
    directories: RefCell<Kept<ObjectId, Arc<Directory>>>,
    frames: RefCell<Kept<(ObjectId, u64), Arc<Vec<u8>>>>,
    patient: Cell<bool>,
    wanted: RefCell<BTreeSet<Wanted>>,
    /// Where the last fetched frames of an object end: who goes on there reads on.
    reading_on: RefCell<Kept<ObjectId, u64>>,
}

impl Remote {
    /// Nothing known of `store` yet.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store,
            origins: Vec::new(),
            objects: Arc::default(),
            parts: Arc::default(),
            directories: RefCell::new(Kept::new(OBJECT_DIRECTORIES_KEPT)),
            frames: RefCell::new(Kept::new(OBJECT_FRAMES_KEPT)),
            patient: Cell::new(true),
            wanted: RefCell::default(),
            reading_on: RefCell::new(Kept::new(OBJECT_DIRECTORIES_KEPT)),
        }
    }

    /// The same for another reader, who keeps what he reads for himself.
    pub fn same(&self) -> Self {
        let (objects, parts) = (self.objects.clone(), self.parts.clone());
        Self { origins: self.origins.clone(), objects, parts, ..Self::new(self.store.clone()) }
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Whether what is missing is fetched at once; returns how it was.
    pub fn set_patient(&self, patient: bool) -> bool {
        self.patient.replace(patient)
    }

    /// What stands in the objects for a segment's number here: less this.
    pub fn shift(&self, id: SegmentId) -> u32 {
        let at = self.origins.partition_point(|origin| origin.first <= id);
        let origin = at.checked_sub(1).and_then(|at| self.origins.get(at));
        origin.filter(|origin| id <= origin.last).map_or(0, |origin| origin.shift)
    }

    fn original(&self, addr: SlotAddr) -> SlotAddr {
        SlotAddr(addr.0 - (u64::from(self.shift(addr.segment())) << SLOT_BITS))
    }

    /// Whether an object is known to hold a slot.
    pub fn has(&self, addr: SlotAddr) -> bool {
        self.part(addr).is_ok()
    }

    fn part(&self, addr: SlotAddr) -> Result<&Part> {
        let parts = self.parts.get(&addr.segment()).map_or(&[][..], Vec::as_slice);
        let part = parts.iter().find(|part| (part.first..part.end).contains(&addr.slot()));
        part.ok_or_else(|| Error::corrupt(format!("no object is known to hold {addr}")))
    }

    fn fetch(&self, wanted: Wanted) -> Result<()> {
        if !self.patient.get() {
            self.wanted.borrow_mut().insert(wanted);
            return Err(Error::new(ErrorKind::Absent, "what is asked for has to be fetched from the object store"));
        }
        let job = self.job(wanted)?;
        let fetched = job.run()?;
        self.fetched(&job, fetched);
        Ok(())
    }

    fn job(&self, wanted: Wanted) -> Result<FetchJob> {
        let (Wanted::Directory(object) | Wanted::Frame(object, ..)) = &wanted;
        let info = self.objects.get(object).copied();
        let info = info.ok_or_else(|| Error::corrupt(format!("object {} is not known", object.key())))?;
        let mut frames = Vec::new();
        if let Wanted::Frame(object, range, offset) = &wanted {
            let directory = self.directory(object)?;
            let all = directory.ranges.get(*range).map_or(&[][..], |range| &range.frames);
            let ahead = match self.reading_on.borrow().by_key.get(object) {
                Some(end) if end == offset => FRAMES_AHEAD,
                _ => 1,
            };
            frames.extend(all.iter().skip_while(|frame| frame.offset != *offset).take(ahead));
        }
        Ok(FetchJob { store: self.store.clone(), object: *object, info, frames, wanted })
    }

    /// What is wanted, as jobs: each once.
    pub fn take_fetches(&self) -> Vec<Result<FetchJob>> {
        let wanted = std::mem::take(&mut *self.wanted.borrow_mut());
        wanted.into_iter().map(|wanted| self.job(wanted)).collect()
    }

    /// Keeps what a job has brought.
    pub fn fetched(&self, job: &FetchJob, fetched: Fetched) {
        match fetched {
            Fetched::Directory(directory) => self.directories.borrow_mut().put(job.object, Arc::new(*directory)),
            Fetched::Frames(frames) => {
                if let Some(last) = job.frames.last() {
                    self.reading_on.borrow_mut().put(job.object, last.offset + u64::from(last.len));
                }
                let mut kept = self.frames.borrow_mut();
                frames.into_iter().for_each(|(at, slots)| kept.put((job.object, at), Arc::new(slots)));
            }
        }
        self.wanted.borrow_mut().remove(&job.wanted);
    }

    /// Keeps a directory that was just written.
    pub fn keep_directory(&self, directory: Arc<Directory>) {
        self.directories.borrow_mut().put(directory.id, directory);
    }

    /// The directory of an object.
    pub fn directory(&self, object: &ObjectId) -> Result<Arc<Directory>> {
        if let Some(directory) = self.directories.borrow().by_key.get(object) {
            return Ok(directory.clone());
        }
        self.fetch(Wanted::Directory(*object))?;
        let kept = self.directories.borrow();
        kept.by_key.get(object).cloned().ok_or_else(|| Error::corrupt("a fetched directory is gone again"))
    }

    fn frame(&self, object: &ObjectId, range: usize, offset: u64) -> Result<Arc<Vec<u8>>> {
        if let Some(frame) = self.frames.borrow().by_key.get(&(*object, offset)) {
            return Ok(frame.clone());
        }
        self.fetch(Wanted::Frame(*object, range, offset))?;
        let kept = self.frames.borrow();
        kept.by_key.get(&(*object, offset)).cloned().ok_or_else(|| Error::corrupt("a fetched frame is gone again"))
    }

    /// Copies the slot at `addr` to `out`, as it was put.
    fn slot(&self, addr: SlotAddr, out: &mut [u8]) -> Result<()> {
        let object = self.part(addr)?.object;
        let directory = self.directory(&object)?;
        let original = self.original(addr);
        let missing = || Error::corrupt(format!("object {} does not hold {addr}, which is in use", object.key()));
        let found = directory.ranges.iter().enumerate().filter(|(_, range)| range.segment == original.segment());
        let (place, range, rank) = found
            .filter_map(|(place, range)| Some((place, range, range.rank(original.slot())?)))
            .next()
            .ok_or_else(missing)?;
        let frame = range.frames.get(rank / FRAME_SLOTS).ok_or_else(missing)?;
        let slots = self.frame(&object, place, frame.offset)?;
        let at = rank % FRAME_SLOTS * BLOCK;
        out.copy_from_slice(slots.get(at..at + BLOCK).ok_or_else(missing)?);
        Ok(())
    }

    /// Fills `buf` with the slots from `addr` on. Their checksums are not verified here.
    pub fn slots(&self, addr: SlotAddr, buf: &mut [u8]) -> Result<()> {
        let mut outcome = Ok(());
        for (block, i) in buf.chunks_exact_mut(BLOCK).zip(0..) {
            // All that is missing is asked for at once.
            match self.slot(SlotAddr(addr.0 + i), block) {
                Err(e) if e.kind() == ErrorKind::Absent => outcome = Err(e),
                other => other?,
            }
        }
        outcome
    }

    /// The map page at `addr`, verified, with the numbers that its addresses have here.
    pub fn map_page(&self, addr: SlotAddr) -> Result<Box<[u8; BLOCK]>> {
        let mut block = Box::new([0; BLOCK]);
        self.slot(addr, &mut block[..])?;
        page::verify(&block[..], self.original(addr))?;
        let shift = self.shift(addr.segment());
        if shift != 0 {
            page::shift(&mut block[..], u64::from(shift) << SLOT_BITS)?;
        }
        Ok(block)
    }

    /// Page `index` of the directory that segment `id` would have, from those of its objects.
    pub fn directory_page(&self, id: SegmentId, index: u32) -> Result<Box<[u8; BLOCK]>> {
        let first = index * CRCS_PER_PAGE;
        let mut crcs = vec![0; CRCS_PER_PAGE as usize];
        let original = self.original(SlotAddr::new(id, 0)).segment();
        for part in self.parts.get(&id).into_iter().flatten() {
            if part.end <= first || part.first >= first + CRCS_PER_PAGE {
                continue;
            }
            let directory = self.directory(&part.object)?;
            for range in directory.ranges.iter().filter(|range| range.segment == original) {
                for slot in range.first.max(first)..range.end.min(first + CRCS_PER_PAGE) {
                    let crc = range.rank(slot).and_then(|rank| range.crcs.get(rank));
                    if let Some(crc) = crc {
                        crcs[(slot - first) as usize] = *crc;
                    }
                }
            }
        }
        let mut block = Box::new([0; BLOCK]);
        block.copy_from_slice(&encode_directory_page(id, index, &crcs));
        Ok(block)
    }

    /// One past the last slot of `id` that is in the store.
    pub fn uploaded(&self, id: SegmentId) -> u32 {
        self.parts.get(&id).and_then(|parts| parts.last()).map_or(crate::limits::FIRST_SLOT, |part| part.end)
    }
}
