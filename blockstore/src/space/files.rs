//! Segment files: names, open handles, and reading slots with their checksums verified.

use super::remote::Remote;
use super::table::{Segment, SegmentTable};
use crate::disk::{Disk, File};
use crate::error::{Error, ErrorKind, Result};
use crate::format::page;
use crate::format::segment::{
    directory_crc, directory_offset, directory_place, verify_directory_page, Bitmap, Layout, Place, SegmentHeader,
    PACKED_DATA_OFFSET,
};
use crate::limits::{BLOCK, BLOCK_U64, END_SLOT, SEGMENT_HANDLES_MAX};
use crate::map::{PageCache, PageSource};
use crate::object::ObjectStore;
use crate::types::{SegmentId, SlotAddr};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// File name of a segment.
pub fn segment_name(id: SegmentId) -> String {
    format!("seg-{:08x}", id.0)
}

/// An open segment file, and how its slots lie in it.
#[derive(Clone)]
pub struct Handle {
    /// The file.
    pub file: Arc<dyn File>,
    packed: Option<Arc<Bitmap>>,
}

impl Handle {
    /// Where directory page `index` is, bytes.
    pub fn directory_offset(&self, index: u32) -> u64 {
        directory_offset(self.packed.is_some(), index)
    }

    /// Where `slot` is, bytes; `None` when the file does not hold it.
    pub fn offset(&self, slot: u32) -> Option<u64> {
        let Some(bitmap) = &self.packed else { return Some(u64::from(slot) * BLOCK_U64) };
        let (word, bit) = (slot as usize / 64, slot % 64);
        if bitmap[word] >> bit & 1 == 0 {
            return None;
        }
        let before: u32 = bitmap[..word].iter().map(|w| w.count_ones()).sum();
        let rank = before + (bitmap[word] & ((1u64 << bit) - 1)).count_ones();
        Some(PACKED_DATA_OFFSET + u64::from(rank) * BLOCK_U64)
    }
}

/// The segments of a pool: table, files, and the checksums of those still being written.
pub struct Segments {
    /// Where the files are.
    pub disk: Arc<dyn Disk>,
    /// Which pool they belong to.
    pub pool: [u8; 16],
    /// Accounts.
    pub table: SegmentTable,
    /// Checksums by slot of segments without a directory yet.
    pub open_crcs: HashMap<SegmentId, Vec<u32>>,
    /// The next segment number.
    pub next_id: u32,
    /// Prepared files, ready to take over.
    pub spares: Vec<(SegmentId, Arc<dyn File>)>,
    /// What is in the object store, if there is one.
    pub remote: Option<Remote>,
    handles: RefCell<BTreeMap<SegmentId, Handle>>,
}

impl Segments {
    /// No segments yet.
    pub fn new(disk: Arc<dyn Disk>, pool: [u8; 16]) -> Self {
        let table = SegmentTable::default();
        let handles = RefCell::default();
        Self { disk, pool, table, open_crcs: HashMap::new(), next_id: 1, spares: Vec::new(), remote: None, handles }
    }

    /// A file for a new segment: a spare, or one made now (then names must be synced: `true`).
    pub fn take(&mut self) -> Result<(SegmentId, Arc<dyn File>, bool)> {
        let Some((id, file)) = self.spares.pop() else { return self.make() };
        self.remember(id, file.clone(), None);
        Ok((id, file, false))
    }

    /// As [`Segments::take`], but always one made now, which takes space only as it grows.
    pub fn make(&mut self) -> Result<(SegmentId, Arc<dyn File>, bool)> {
        let id = self.reserve_id()?;
        let file = self.disk.create(&segment_name(id)).map_err(|e| Error::io("creating a segment", e))?;
        self.remember(id, file.clone(), None);
        Ok((id, file, true))
    }

    /// A number for a segment that somebody else prepares.
    pub fn reserve_id(&mut self) -> Result<SegmentId> {
        let id = self.next_id;
        if id >> crate::limits::SEGMENT_BITS != 0 {
            return Err(Error::new(crate::error::ErrorKind::NoSpace, "the pool has used up all segment numbers"));
        }
        self.next_id += 1;
        Ok(SegmentId(id))
    }

    fn remember(&self, id: SegmentId, file: Arc<dyn File>, packed: Option<Arc<Bitmap>>) {
        let mut handles = self.handles.borrow_mut();
        if handles.len() >= SEGMENT_HANDLES_MAX {
            let victim = handles.keys().find(|id| !self.open_crcs.contains_key(id)).copied();
            victim.map(|id| handles.remove(&id));
        }
        handles.insert(id, Handle { file, packed });
    }

    /// Drops the handle: the file was replaced or removed.
    pub fn forget(&self, id: SegmentId) {
        self.handles.borrow_mut().remove(&id);
    }

    /// The file of a segment that is here.
    pub fn handle(&self, id: SegmentId) -> Result<Handle> {
        if let Some(handle) = self.handles.borrow().get(&id) {
            return Ok(handle.clone());
        }
        let lost = |e| Error::io(format!("opening segment {}", id.0), e);
        let file = self.disk.open(&segment_name(id)).map_err(lost)?;
        let mut block = [0; BLOCK];
        file.read_at(&mut block, 0).map_err(lost)?;
        let packed = match SegmentHeader::decode(&block)? {
            Some(h) if h.segment == id && h.pool == self.pool => match h.layout {
                Layout::Full => None,
                Layout::Packed(bitmap) => Some(bitmap),
            },
            _ => return Err(Error::corrupt(format!("{} does not hold segment {}", segment_name(id), id.0))),
        };
        self.remember(id, file.clone(), packed.clone());
        Ok(Handle { file, packed })
    }

    /// The file of a segment that is still being written, so that nothing was packed; its header is not
    /// looked at.
    pub fn file_of_open(&self, id: SegmentId) -> Result<Arc<dyn File>> {
        let file = self.disk.open(&segment_name(id)).map_err(|e| Error::io(format!("opening segment {}", id.0), e))?;
        self.remember(id, file.clone(), None);
        Ok(file)
    }

    /// The file of a segment.
    pub fn file(&self, id: SegmentId) -> Result<Arc<dyn File>> {
        Ok(self.handle(id)?.file)
    }

    /// The key of the object that `addr` is read from, if it is not read from a file.
    pub fn object_of(&self, addr: SlotAddr) -> Option<String> {
        self.elsewhere(addr.segment()).ok()??.key_of(addr)
    }

    /// Where to read a segment whose file is not here; `None` for one that is.
    fn elsewhere(&self, id: SegmentId) -> Result<Option<&Remote>> {
        // What is given up is read here until its file is gone.
        let is_here = |s: &Segment| s.place == Place::Here || s.place == Place::Store && s.stored > 0;
        if self.handles.borrow().contains_key(&id) || self.table.get(id).is_none_or(is_here) {
            return Ok(None);
        }
        let text = || format!("segment {} is in the object store alone: start with --object-store", id.0);
        let remote = self.remote.as_ref().ok_or_else(|| Error::new(ErrorKind::Unavailable, text()))?;
        let imported = self.table.get(id).is_some_and(|s| matches!(s.place, Place::Imported | Place::Counted));
        if imported && !remote.parts.contains_key(&id) {
            let text = format!("segment {} came with a volume that belongs to another pool now: delete it here", id.0);
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        Ok(Some(remote))
    }

    /// From now on slots may be in `store`.
    pub fn connect(&mut self, store: Arc<dyn ObjectStore>) {
        let patient = self.set_patient(true);
        self.remote.insert(Remote::new(store)).set_patient(patient);
    }

    /// Whether a change may come upon what is not here, and must not wait for it: then it has to be looked for before
    /// anything is changed.
    pub fn is_hasty(&self) -> bool {
        match &self.remote {
            None => false,
            Some(remote) => !remote.is_patient() && (self.table.away || remote.reads() > 0),
        }
    }

    /// Whether what is not here is fetched at once; returns how it was.
    pub fn set_patient(&self, patient: bool) -> bool {
        self.remote.as_ref().is_none_or(|remote| remote.set_patient(patient))
    }

    /// The `count` slots from `addr` on may be asked for soon. Returns how many of them could be found already.
    pub fn hint(&self, addr: SlotAddr, count: usize) -> Result<usize> {
        self.elsewhere(addr.segment())?.map_or(Ok(count), |remote| remote.hint(addr, count))
    }

    /// What tells where `addr` is may be asked for soon.
    pub fn hint_directory(&self, addr: SlotAddr) {
        if let Ok(Some(remote)) = self.elsewhere(addr.segment()) {
            remote.hint_directory(addr);
        }
    }

    fn locate(&self, addr: SlotAddr) -> Result<(Arc<dyn File>, u64)> {
        let handle = self.handle(addr.segment())?;
        let offset = handle
            .offset(addr.slot())
            .ok_or_else(|| Error::corrupt(format!("{addr} was dropped by the cleaner although it is in use")))?;
        Ok((handle.file, offset))
    }

    /// Fills `buf` with whole blocks from consecutive slots at `addr`; checksums are not verified
    /// here (see [`Segments::crc`]).
    pub fn read_slots(&self, addr: SlotAddr, buf: &mut [u8]) -> Result<()> {
        if let Some(remote) = self.elsewhere(addr.segment())? {
            return remote.slots(addr, buf);
        }
        let (file, offset) = self.locate(addr)?;
        file.read_at(buf, offset).map_err(|e| Error::io(format!("reading {addr}"), e))
    }

    /// Appends `count` blocks from consecutive slots at `addr` to `out`, as [`Segments::read_slots`].
    pub fn read_slots_onto(&self, addr: SlotAddr, out: &mut Vec<u8>, count: usize) -> Result<()> {
        if let Some(remote) = self.elsewhere(addr.segment())? {
            let start = out.len();
            out.resize(start + count * BLOCK, 0);
            return remote.slots(addr, &mut out[start..]).inspect_err(|_| out.truncate(start));
        }
        let (file, offset) = self.locate(addr)?;
        file.read_onto(out, count * BLOCK, offset).map_err(|e| Error::io(format!("reading {addr}"), e))
    }

    /// Fills `block` with the copy that the object store has of a slot whose file is here; `false` if it has none, or
    /// none that can be had. Its checksum is not verified here.
    pub fn read_copy(&self, addr: SlotAddr, block: &mut [u8]) -> Result<bool> {
        let is_here = self.table.get(addr.segment()).is_some_and(|segment| segment.place == Place::Here);
        let Some(remote) = self.remote.as_ref().filter(|remote| is_here && remote.has(addr)) else { return Ok(false) };
        match remote.slots(addr, block) {
            // It has to be fetched first.
            Err(e) if e.kind() == ErrorKind::Absent => Err(e),
            outcome => Ok(outcome.is_ok()),
        }
    }

    /// The recorded checksum of a data slot.
    pub fn crc(&self, addr: SlotAddr, cache: &mut PageCache) -> Result<u32> {
        let missing = || Error::corrupt(format!("no checksum is recorded for {addr}"));
        if let Some(crcs) = self.open_crcs.get(&addr.segment()) {
            return crcs.get(addr.slot() as usize).copied().ok_or_else(missing);
        }
        let (page, place) = directory_place(addr.slot());
        let page = cache.get(SlotAddr::new(addr.segment(), END_SLOT + page), self)?;
        directory_crc(page, place).ok_or_else(missing)
    }
}

impl PageSource for Segments {
    fn load(&self, addr: SlotAddr) -> Result<Box<[u8; BLOCK]>> {
        if let Some(remote) = self.elsewhere(addr.segment())? {
            return match addr.slot().checked_sub(END_SLOT) {
                Some(index) => remote.directory_page(addr.segment(), index),
                None => remote.map_page(addr),
            };
        }
        let mut block = Box::new([0; BLOCK]);
        if addr.slot() >= END_SLOT {
            let handle = self.handle(addr.segment())?;
            let index = addr.slot() - END_SLOT;
            let read = handle.file.read_at(&mut block[..], handle.directory_offset(index));
            read.map_err(|e| Error::io(format!("reading the directory of segment {}", addr.segment().0), e))?;
            verify_directory_page(&block[..], addr.segment(), index)?;
        } else {
            self.read_slots(addr, &mut block[..])?;
            page::verify(&block[..], addr)?;
        }
        Ok(block)
    }
}
