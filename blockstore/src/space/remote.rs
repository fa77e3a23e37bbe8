//! Reading slots that are in the object store.
//!
//! Invariants
//!   * nothing is returned that does not verify: directories by the manifest's word for them, data by the checksums
//!     of their directory, map pages by their own;
//!   * what was read is kept, within bounds: objects never change;
//!   * in `patient` mode what is missing is fetched here and now; otherwise it is noted as wanted, and the
//!     answer is an error of kind `Absent`: run the fetches, report them, ask again.

use super::kept::Kept;
use super::wants::{Arrival, Batch, FrameAt, Piece, Wants, FRAMES_PER_FETCH};
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::{ObjectInfo, Part};
use crate::format::object::{open_frame, Directory, Frame, ObjectId, RangeEntry, FRAME_SLOTS};
use crate::format::origin::Origins;
use crate::format::page;
use crate::format::segment::{encode_directory_page, SegmentKind};
use crate::limits::{
    BLOCK, CRCS_PER_PAGE, OBJECT_DIRECTORIES_KEPT, OBJECT_DIRECTORY_MAX, OBJECT_FRAMES_KEPT, OBJECT_MAP_FRAMES_KEPT,
};
use crate::object::{ObjectStore, Range, StoreError, StoreErrorKind};
use crate::types::{SegmentId, SlotAddr};
use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A store's error as one of ours.
pub fn store_error(context: &str, e: &StoreError) -> Error {
    let kind = match e.kind {
        StoreErrorKind::Unavailable => ErrorKind::Unavailable,
        StoreErrorKind::NotFound | StoreErrorKind::Corrupt => ErrorKind::Corrupt,
        StoreErrorKind::Denied | StoreErrorKind::Invalid => ErrorKind::Denied,
    };
    Error::new(kind, format!("{context}: {e}"))
}

/// One request to the object store; runs on any thread.
pub struct FetchJob {
    store: Arc<dyn ObjectStore>,
    info: Option<ObjectInfo>,
    batch: Batch,
}

/// What came of a fetch.
pub enum Fetched {
    /// A directory.
    Directory(Arc<Directory>),
    /// Slots of frames.
    Frames(Vec<Arc<Vec<u8>>>),
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
    /// Fetches and verifies; blocks.
    pub fn run(&self) -> Result<Fetched> {
        let fetched = self.fetch();
        if fetched.as_ref().is_err_and(|e| e.kind() == ErrorKind::Corrupt) {
            // It may have been damaged on its way, or in a cache: the next try is a fresh one.
            self.store.distrust(&self.batch.object.key());
        }
        fetched
    }

    fn fetch(&self) -> Result<Fetched> {
        let object = &self.batch.object;
        let key = object.key();
        let frames = self.batch.frames.iter().map(|at| &at.frame);
        let (Some(first), Some(last)) = (frames.clone().next(), frames.clone().next_back()) else {
            let info = self.info.ok_or_else(|| Error::corrupt(format!("object {key} is not known")))?;
            return fetch_directory(&*self.store, object, &info).map(|d| Fetched::Directory(Arc::new(d)));
        };
        let (offset, len) = (first.offset, last.offset + u64::from(last.len) - first.offset);
        let bytes = self.store.get(&key, Range::Part { offset, len });
        let bytes = bytes.map_err(|e| store_error(&format!("reading object {key}"), &e))?;
        if bytes.len() as u64 != len {
            let text = format!("object {key} is cut off: {len} bytes at {offset} wanted, {} there", bytes.len());
            return Err(Error::corrupt(text));
        }
        let open = |frame: &Frame| {
            let from = (frame.offset - offset) as usize;
            let stored = bytes.get(from..from + frame.len as usize).unwrap_or_default();
            open_frame(frame, stored, object).map(Arc::new)
        };
        frames.map(open).collect::<Result<_>>().map(Fetched::Frames)
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
    /// Segments taken over from other pools.
    pub origins: Origins,
    /// All objects that are known.
    pub objects: Arc<BTreeMap<ObjectId, ObjectInfo>>,
    /// Where slots are, by segment.
    pub parts: Arc<BTreeMap<SegmentId, Vec<Part>>>,
    directories: RefCell<Kept<ObjectId, Arc<Directory>>>,
    /// Frames of blocks, and apart from them those of map pages: every request needs map pages.
    frames: RefCell<Kept<Piece, Arc<Vec<u8>>>>,
    map_frames: RefCell<Kept<Piece, Arc<Vec<u8>>>>,
    patient: Cell<bool>,
    /// Blocks read from here so far.
    reads: Cell<u64>,
    wants: RefCell<Wants>,
    /// Where the frames last fetched patiently end: who goes on there reads on.
    reading_on: Cell<Option<Piece>>,
}

impl Remote {
    /// Nothing known of `store` yet.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store,
            origins: Origins::default(),
            objects: Arc::default(),
            parts: Arc::default(),
            directories: RefCell::new(Kept::new(OBJECT_DIRECTORIES_KEPT)),
            frames: RefCell::new(Kept::new(OBJECT_FRAMES_KEPT)),
            map_frames: RefCell::new(Kept::new(OBJECT_MAP_FRAMES_KEPT)),
            patient: Cell::new(true),
            reads: Cell::new(0),
            wants: RefCell::default(),
            reading_on: Cell::new(None),
        }
    }

    /// Whether what is missing is fetched at once.
    pub fn is_patient(&self) -> bool {
        self.patient.get()
    }

    /// The same for another reader, who keeps what he reads for himself.
    pub fn same(&self) -> Self {
        let (objects, parts) = (self.objects.clone(), self.parts.clone());
        Self { origins: self.origins.clone(), objects, parts, ..Self::new(self.store.clone()) }
    }

    /// Whether what is missing is fetched at once; returns how it was.
    pub fn set_patient(&self, patient: bool) -> bool {
        self.patient.replace(patient)
    }

    /// Blocks read from here so far.
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// The number that stands in the objects for a segment's number here.
    pub fn original(&self, id: SegmentId) -> SegmentId {
        self.origins.of(id).map_or(id, |(_, there)| there)
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

    /// The key of the object that holds `addr`.
    pub fn key_of(&self, addr: SlotAddr) -> Option<String> {
        self.part(addr).ok().map(|part| part.object.key())
    }

    /// The pieces wanted and under way.
    pub fn wants(&self) -> RefMut<'_, Wants> {
        self.wants.borrow_mut()
    }

    /// What is missing: noted, or brought here and now.
    fn bring(&self, piece: Piece, frame: Option<(FrameAt, &RangeEntry)>) -> Result<()> {
        if !self.patient.get() {
            self.wants.borrow_mut().demand(piece, frame.map(|(at, _)| at));
            return Err(Error::new(ErrorKind::Absent, "what is asked for has to be fetched from the object store"));
        }
        let mut frames = Vec::new();
        if let Some((first, range)) = frame {
            let most = if self.reading_on.get() == Some(piece) { FRAMES_PER_FETCH } else { 1 };
            let rest = range.frames.iter().skip_while(|frame| **frame != first.frame).take(most);
            frames.extend(rest.map(|frame| FrameAt { frame: *frame, kind: first.kind }));
            let end = frames.last().map(|at| at.frame.offset + u64::from(at.frame.len));
            self.reading_on.set(Some((piece.0, end)));
        }
        let job = self.job(Batch { object: piece.0, frames, numbers: Vec::new() });
        let fetched = job.run()?;
        self.keep(&job.batch, fetched);
        Ok(())
    }

    fn job(&self, batch: Batch) -> FetchJob {
        FetchJob { store: self.store.clone(), info: self.objects.get(&batch.object).copied(), batch }
    }

    /// The next piece of what is wanted.
    pub fn take_fetch(&self) -> Option<FetchJob> {
        let batch = self.wants.borrow_mut().take()?;
        Some(self.job(batch))
    }

    fn keep(&self, batch: &Batch, fetched: Fetched) {
        match fetched {
            Fetched::Directory(directory) => self.keep_directory(directory),
            Fetched::Frames(frames) => {
                for (at, slots) in batch.frames.iter().zip(frames) {
                    self.frames_of(at.kind).put((batch.object, Some(at.frame.offset)), slots);
                }
            }
        }
    }

    /// Keeps what a job has brought, and tells those who wait for it.
    pub fn fetched(&self, job: FetchJob, outcome: Result<Fetched>) -> Arrival {
        self.wants.borrow_mut().done(&job.batch);
        let failure = outcome.map(|fetched| self.keep(&job.batch, fetched)).err();
        Arrival { numbers: job.batch.numbers, failure }
    }

    /// Keeps a directory that was just written.
    pub fn keep_directory(&self, directory: Arc<Directory>) {
        self.directories.borrow_mut().put(directory.id, directory);
    }

    /// The directory of an object.
    pub fn directory(&self, object: &ObjectId) -> Result<Arc<Directory>> {
        let held = self.directories.borrow_mut().get(object);
        if let Some(directory) = held {
            return Ok(directory);
        }
        self.bring((*object, None), None)?;
        let held = self.directories.borrow_mut().get(object);
        held.ok_or_else(|| Error::corrupt("a fetched directory is gone again"))
    }

    fn frames_of(&self, kind: SegmentKind) -> RefMut<'_, Kept<Piece, Arc<Vec<u8>>>> {
        match kind {
            SegmentKind::Log => self.frames.borrow_mut(),
            SegmentKind::Map => self.map_frames.borrow_mut(),
        }
    }

    fn frame(&self, object: &ObjectId, range: &RangeEntry, frame: &Frame) -> Result<Arc<Vec<u8>>> {
        let piece = (*object, Some(frame.offset));
        let held = self.frames_of(range.kind).get(&piece);
        if let Some(slots) = held {
            return Ok(slots);
        }
        self.bring(piece, Some((FrameAt { frame: *frame, kind: range.kind }, range)))?;
        let held = self.frames_of(range.kind).get(&piece);
        held.ok_or_else(|| Error::corrupt("a fetched frame is gone again"))
    }

    /// Hands `take` the slots from `addr` on, frame by frame: the object, its range, the frame, where in it, and the
    /// number of slots. All that is missing is asked for at once.
    fn walk(
        &self,
        addr: SlotAddr,
        count: usize,
        mut take: impl FnMut(&ObjectId, &RangeEntry, &Frame, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let (mut done, mut outcome) = (0, Ok(()));
        while done < count {
            let at = SlotAddr(addr.0 + done as u64);
            let part = self.part(at)?;
            let here = (count - done).min((part.end - at.slot()) as usize);
            let directory = match self.directory(&part.object) {
                Err(e) if e.kind() == ErrorKind::Absent => {
                    outcome = Err(e);
                    done += here;
                    continue;
                }
                directory => directory?,
            };
            let original = SlotAddr::new(self.original(at.segment()), at.slot());
            let missing =
                || Error::corrupt(format!("object {} does not hold {at}, which is in use", part.object.key()));
            let mut found = directory.ranges.iter().filter(|range| range.segment == original.segment());
            let found = found.find_map(|range| Some((range, range.rank(original.slot())?)));
            let (range, rank) = found.ok_or_else(missing)?;
            let frame = range.frames.get(rank / FRAME_SLOTS).ok_or_else(missing)?;
            // Slots that follow one another and live lie together.
            let (from, most) = (rank % FRAME_SLOTS, here.min((range.end - original.slot()) as usize));
            let lives = |i: &usize| {
                let slot = original.slot() as usize + i;
                range.bits.get(slot / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
            };
            let run = (0..most.min(FRAME_SLOTS - from)).take_while(lives).count().max(1);
            match take(&part.object, range, frame, from, run) {
                Err(e) if e.kind() == ErrorKind::Absent => outcome = Err(e),
                other => other?,
            }
            done += run;
        }
        outcome
    }

    /// Fills `buf` with the slots from `addr` on, as they were put. Their checksums are not verified here.
    pub fn slots(&self, addr: SlotAddr, buf: &mut [u8]) -> Result<()> {
        let count = buf.len() / BLOCK;
        self.reads.set(self.reads.get() + count as u64);
        let mut at = 0;
        let mut whole = true;
        self.walk(addr, count, |object, range, frame, from, run| {
            let slots = self.frame(object, range, frame).inspect_err(|_| whole = false)?;
            // Nobody looks at the rest of what is not whole.
            if !whole {
                return Ok(());
            }
            let held = slots.get(from * BLOCK..(from + run) * BLOCK);
            let held = held.ok_or_else(|| Error::corrupt(format!("a frame of object {} is short", object.key())))?;
            let to = buf.get_mut(at..at + held.len());
            to.ok_or_else(|| Error::corrupt("more slots than were asked for"))?.copy_from_slice(held);
            at += held.len();
            Ok(())
        })
    }

    /// The slots from `addr` on may be asked for soon. Returns how many of them could be found already.
    pub fn hint(&self, addr: SlotAddr, count: usize) -> Result<usize> {
        let mut at = SlotAddr(addr.0);
        let end = addr.0 + count as u64;
        while at.0 < end {
            let part = self.part(at)?;
            let here = (end - at.0).min(u64::from(part.end - at.slot()));
            if !self.directories.borrow().holds(&part.object) {
                self.wants.borrow_mut().hint((part.object, None), None);
                break;
            }
            self.walk(at, here as usize, |object, range, frame, _, _| {
                let piece = (*object, Some(frame.offset));
                if !self.frames_of(range.kind).holds(&piece) {
                    let at = FrameAt { frame: *frame, kind: range.kind };
                    self.wants.borrow_mut().hint(piece, Some(at));
                }
                Ok(())
            })?;
            at = SlotAddr(at.0 + here);
        }
        Ok((at.0 - addr.0) as usize)
    }

    /// The directory of the object that holds `addr` may be asked for soon.
    pub fn hint_directory(&self, addr: SlotAddr) {
        let Ok(part) = self.part(addr) else { return };
        if !self.directories.borrow().holds(&part.object) {
            self.wants.borrow_mut().hint((part.object, None), None);
        }
    }

    /// The map page at `addr`, verified, with the numbers that its addresses have here.
    pub fn map_page(&self, addr: SlotAddr) -> Result<Box<[u8; BLOCK]>> {
        let mut block = Box::new([0; BLOCK]);
        self.slots(addr, &mut block[..])?;
        let there = SlotAddr::new(self.original(addr.segment()), addr.slot());
        page::verify(&block[..], there).map_err(|e| {
            let key = self.key_of(addr).unwrap_or_default();
            Error::new(e.kind(), format!("object {key}: {e}"))
        })?;
        if let Some((origin, _)) = self.origins.of(addr.segment()) {
            page::renumber(&mut block[..], &origin.numbers)?;
        }
        Ok(block)
    }

    /// Page `index` of the directory that segment `id` would have, from those of its objects.
    pub fn directory_page(&self, id: SegmentId, index: u32) -> Result<Box<[u8; BLOCK]>> {
        let first = index * CRCS_PER_PAGE;
        let mut crcs = vec![0; CRCS_PER_PAGE as usize];
        let original = self.original(id);
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
