//! Appending batches to a stream.
//!
//! Invariants
//!   * a batch is in the kernel when `append` returns, so it survives the death of the process;
//!   * each header carries the checksum of the one before: a scan cannot skip a batch;
//!   * a failed append leaves the stream where it was: the next one overwrites what was begun;
//!   * `unsynced` holds every file written since it was last synced: a flush syncs exactly these.

use super::jobs::{FlushJob, WriteBack};
use crate::disk::{Disk, File};
use crate::error::{Error, ErrorKind, Result};
use crate::format::batch::Batch;
use crate::format::record::Record;
use crate::format::segment::{directory_offset, encode_directory_page, Layout, SegmentHeader, SegmentKind};
use crate::limits::{
    BLOCK, BLOCK_U64, CRCS_PER_PAGE, DIRECTORY_PAGES, END_SLOT, FIRST_SLOT, SMALL_FLUSHES_HABIT, SMALL_FLUSH_BYTES,
    WRITEBACK_BYTES,
};
use crate::map::PageCache;
use crate::space::{Segment, Segments};
use crate::types::{Lsn, SegmentId, SlotAddr, VolumeId};
use std::io::IoSlice;
use std::sync::Arc;

/// The segment a stream appends to.
pub struct OpenSegment {
    /// Its number.
    pub id: SegmentId,
    /// Its file.
    pub file: Arc<dyn File>,
    /// The next free slot.
    pub next_slot: u32,
}

impl OpenSegment {
    /// Writing a batch failed for the reason `why`. For want of space the log goes on, so what got
    /// through of it is wiped out: what was refused must not happen after a restart.
    fn take_back(&self, why: Error) -> Error {
        if why.kind() != ErrorKind::NoSpace {
            return why;
        }
        let offset = u64::from(self.next_slot) * BLOCK_U64;
        // Only what the file already holds: a full disk could not take more, not even in place of a hole.
        let wiped = self.file.len().and_then(|len| {
            let mut there = [0; BLOCK];
            let there = &mut there[..len.saturating_sub(offset).min(BLOCK_U64) as usize];
            self.file.read_at(there, offset)?;
            if there.iter().all(|b| *b == 0) {
                return Ok(());
            }
            there.fill(0);
            self.file.write_at(&[IoSlice::new(there)], offset)?;
            self.file.sync()
        });
        match wiped {
            Ok(()) => why,
            Err(e) => Error::new(ErrorKind::Io, format!("{why}; taking it back failed: {e}")),
        }
    }
}

/// The data of one batch.
#[derive(Default)]
pub struct Payload<'a> {
    /// Whole blocks in total, in any slicing, without those that are in place.
    pub slices: &'a [IoSlice<'a>],
    /// Checksums of all blocks.
    pub crcs: Vec<u32>,
    /// So many blocks at the front are where the next batch has them (see [`super::Ahead`]).
    pub in_place: u32,
}

/// One volume's log.
pub struct Stream {
    /// The owner; `VolumeId(0)` is the pool itself.
    pub volume: VolumeId,
    /// Place of the open (or last) segment in the stream, from 1.
    pub sequence: u32,
    /// Checksum of the last batch header.
    pub previous_crc: u32,
    /// Where the next batch goes.
    pub open: Option<OpenSegment>,
    unsynced: Vec<(Arc<dyn File>, Lsn)>,
    unsynced_names: Option<Lsn>,
    writeback_from: u64,
    since_flush: u64,
    small_flushes: u32,
    /// Sealed files, or names, are being synced ahead of a flush.
    settling: bool,
    /// Who was the last to put data behind the last batch, ahead of its own.
    pub(super) ahead: Option<super::ahead::Claim>,
}

impl Stream {
    /// An empty stream.
    pub fn new(volume: VolumeId) -> Self {
        Self {
            volume,
            sequence: 0,
            previous_crc: 0,
            open: None,
            unsynced: Vec::new(),
            unsynced_names: None,
            writeback_from: 0,
            since_flush: 0,
            small_flushes: 0,
            settling: false,
            ahead: None,
        }
    }

    /// Appends one batch of `records` and their data; returns where the first data block is.
    pub fn append(
        &mut self,
        segments: &mut Segments,
        cache: &mut PageCache,
        epoch: u64,
        first_lsn: Lsn,
        records: Vec<Record>,
        payload: Payload<'_>,
    ) -> Result<SlotAddr> {
        let Payload { slices: data, crcs, in_place } = payload;
        let need = 1 + crcs.len() as u32;
        if self.open.as_ref().is_some_and(|open| open.next_slot + need > END_SLOT) {
            self.seal(segments, cache, first_lsn)?;
        }
        let fresh = self.open.is_none();
        if fresh {
            self.open_segment(segments, first_lsn)?;
        }
        let open = self.open.as_mut().expect("just opened");
        let addr = SlotAddr::new(open.id, open.next_slot);
        let last_lsn = Lsn(first_lsn.0 + records.len() as u64);
        let batch =
            Batch { volume: self.volume, epoch, addr, first_lsn, previous_crc: self.previous_crc, records, crcs };
        let (block, crc) = batch.encode();
        let mut slices = Vec::with_capacity(data.len() + 2);
        let segment_header;
        let mut offset = u64::from(open.next_slot) * BLOCK_U64;
        if open.next_slot == FIRST_SLOT {
            segment_header = SegmentHeader {
                pool: segments.pool,
                segment: open.id,
                kind: SegmentKind::Log,
                volume: self.volume,
                sequence: self.sequence,
                previous_crc: self.previous_crc,
                layout: Layout::Full,
            }
            .encode();
            slices.push(IoSlice::new(&segment_header));
            offset = 0;
        }
        slices.push(IoSlice::new(&block));
        // Even a write that fails may have changed what lies there.
        self.ahead = None;
        let written = if in_place == 0 {
            slices.extend_from_slice(data);
            open.file.write_at(&slices, offset)
        } else {
            // The header last: what it describes is there.
            let rest = u64::from(open.next_slot + 1 + in_place) * BLOCK_U64;
            let written = if data.is_empty() { Ok(()) } else { open.file.write_at(data, rest) };
            written.and_then(|()| open.file.write_at(&slices, offset))
        };
        if let Err(e) = written {
            return Err(open.take_back(Error::io("writing the log", e)));
        }
        open.next_slot += need;
        self.since_flush += u64::from(need) * BLOCK_U64;
        self.previous_crc = crc;
        let crcs = segments.open_crcs.entry(open.id).or_default();
        crcs.resize(addr.slot() as usize + 1, 0);
        crcs.extend_from_slice(&batch.crcs);
        let file = open.file.clone();
        let (id, used) = (open.id, open.next_slot);
        if let Some(account) = segments.table.get_mut(id) {
            account.used = used;
            account.stored = used;
        }
        self.touch(file, last_lsn);
        Ok(SlotAddr::new(addr.segment(), addr.slot() + 1))
    }

    fn open_segment(&mut self, segments: &mut Segments, lsn: Lsn) -> Result<()> {
        // A spare has all its space already. Thousands of forks that are written once are not worth that.
        let lasting = self.sequence > 0 || self.expects_flush();
        let (id, file, names_changed) = if lasting { segments.take() } else { segments.make() }?;
        segments.table.insert(id, Segment::new(SegmentKind::Log, self.volume));
        segments.open_crcs.insert(id, Vec::new());
        if names_changed {
            self.unsynced_names = Some(lsn);
        }
        self.sequence += 1;
        self.writeback_from = 0;
        self.open = Some(OpenSegment { id, file, next_slot: FIRST_SLOT });
        Ok(())
    }

    /// Says that `file` holds bytes that may not be durable.
    pub fn mark_unsynced(&mut self, file: Arc<dyn File>, lsn: Lsn) {
        self.unsynced_names = Some(lsn);
        self.touch(file, lsn);
    }

    fn touch(&mut self, file: Arc<dyn File>, lsn: Lsn) {
        match self.unsynced.last_mut() {
            Some((last, at)) if Arc::ptr_eq(last, &file) => *at = lsn,
            _ => self.unsynced.push((file, lsn)),
        }
    }

    /// Writes the open segment's directory and closes it for appending. `next_lsn` is that of the
    /// next change: a flush begun earlier does not cover the directory.
    pub fn seal(&mut self, segments: &mut Segments, cache: &mut PageCache, next_lsn: Lsn) -> Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        let crcs = segments.open_crcs.get(&open.id).map_or(&[][..], Vec::as_slice);
        write_directory(&*open.file, open.id, crcs, cache)?;
        let (id, file) = (open.id, open.file.clone());
        segments.open_crcs.remove(&id);
        if let Some(account) = segments.table.get_mut(id) {
            account.sealed = true;
        }
        self.touch(file, Lsn(next_lsn.0 + 1));
        self.open = None;
        Ok(())
    }

    /// What a flush of everything appended before `upto` has to sync.
    pub fn flush_job(&self, upto: Lsn, disk: &Arc<dyn Disk>) -> FlushJob {
        FlushJob {
            upto,
            volume: self.volume,
            files: self.unsynced.iter().map(|(file, _)| file.clone()).collect(),
            names: self.unsynced_names.is_some(),
            disk: disk.clone(),
        }
    }

    /// What can be synced already, so that a flush finds little more than the open segment: sealed
    /// segments, to which nothing is added any more, and new names.
    pub fn settle_job(&mut self, upto: Lsn, disk: &Arc<dyn Disk>) -> Option<FlushJob> {
        let open = self.open.as_ref().map(|open| &open.file);
        let sealed = |file: &Arc<dyn File>| !open.is_some_and(|open| Arc::ptr_eq(open, file));
        let due = self.unsynced_names.is_some() || self.unsynced.iter().any(|(file, _)| sealed(file));
        if self.settling || !due {
            return None;
        }
        self.settling = true;
        let files = self.unsynced.iter().map(|(file, _)| file.clone()).filter(sealed).collect();
        Some(FlushJob { upto, volume: self.volume, files, names: self.unsynced_names.is_some(), disk: disk.clone() })
    }

    /// A settling job is over; if it succeeded, what it covered is clean.
    pub fn settled(&mut self, job: &FlushJob, succeeded: bool) {
        self.settling = false;
        if succeeded {
            self.unsynced.retain(|(file, _)| !job.files.iter().any(|done| Arc::ptr_eq(done, file)));
            if job.names {
                self.names_synced(job.upto);
            }
        }
    }

    fn names_synced(&mut self, upto: Lsn) {
        if self.unsynced_names.is_some_and(|lsn| lsn < upto) {
            self.unsynced_names = None;
        }
    }

    /// A flush job succeeded: what it covered is clean, unless written again since.
    pub fn flushed(&mut self, upto: Lsn) {
        self.unsynced.retain(|(_, lsn)| *lsn > upto);
        self.names_synced(upto);
    }

    /// A client asked for a flush: remembers whether this one flushes after every few writes.
    pub fn note_flush(&mut self) {
        match std::mem::take(&mut self.since_flush) {
            0 => {}
            1..=SMALL_FLUSH_BYTES => self.small_flushes = self.small_flushes.saturating_add(1),
            _ => self.small_flushes = 0,
        }
        if let Some(open) = &self.open {
            self.writeback_from = u64::from(open.next_slot) * BLOCK_U64;
        }
    }

    /// Whether a flush is likely to follow the next few writes.
    pub fn expects_flush(&self) -> bool {
        self.small_flushes >= SMALL_FLUSHES_HABIT && self.since_flush <= SMALL_FLUSH_BYTES
    }

    /// Log bytes worth starting write-back for: when there are enough, or when a flush is likely to
    /// follow at once, so that the disk works while the client prepares it.
    pub fn take_writeback(&mut self) -> Option<WriteBack> {
        let open = self.open.as_ref()?;
        let end = u64::from(open.next_slot) * BLOCK_U64;
        let (offset, len) = (self.writeback_from, end.saturating_sub(self.writeback_from));
        let urgent = self.expects_flush() && len > 0 && len < WRITEBACK_BYTES;
        if len < WRITEBACK_BYTES && !urgent {
            return None;
        }
        self.writeback_from = end;
        Some(WriteBack { file: open.file.clone(), offset, len, urgent })
    }

    /// All of the open segment that write-back has not been started for; it may be nothing.
    pub fn take_rest(&mut self) -> Option<WriteBack> {
        let open = self.open.as_ref()?;
        let end = u64::from(open.next_slot) * BLOCK_U64;
        let offset = self.writeback_from.min(end);
        self.writeback_from = end;
        Some(WriteBack { file: open.file.clone(), offset, len: end - offset, urgent: false })
    }
}

/// Writes the directory pages of a full segment and hands them to the cache.
pub fn write_directory(file: &dyn File, id: SegmentId, crcs: &[u32], cache: &mut PageCache) -> Result<()> {
    let mut chunks = crcs.chunks(CRCS_PER_PAGE as usize);
    let mut all = Vec::with_capacity(DIRECTORY_PAGES as usize * BLOCK);
    for page in 0..DIRECTORY_PAGES {
        let bytes = encode_directory_page(id, page, chunks.next().unwrap_or_default());
        let mut frame = Box::new([0; BLOCK]);
        frame.copy_from_slice(&bytes);
        cache.put(SlotAddr::new(id, END_SLOT + page), frame);
        all.extend_from_slice(&bytes);
    }
    let written = file.write_at(&[IoSlice::new(&all)], directory_offset(false, 0));
    written.map_err(|e| Error::io(format!("writing the directory of segment {}", id.0), e))
}
