//! Reading a stream's tail after a restart: everything since the last anchor that verifies.
//!
//! What lies behind the last good batch may be writes that power loss took before they were flushed,
//! or damage: the bytes cannot tell. It is never applied, and never passed over in silence.

use super::known::known_checksums;
use crate::disk::File;
use crate::error::{Error, Result};
use crate::format::batch::{Batch, Identity};
use crate::format::segment::SegmentHeader;
use crate::limits::{BATCH_BLOCKS_MAX, BLOCK, BLOCK_U64, END_SLOT, FIRST_SLOT};
use crate::space::Segments;
use crate::types::{SegmentId, SlotAddr, VolumeId};
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

/// Where an anchor says a stream ended.
#[derive(Clone, Copy, Debug)]
pub struct TailStart {
    /// The stream.
    pub volume: VolumeId,
    /// Place of the open (or last) segment.
    pub sequence: u32,
    /// The open segment and its next free slot; `None` when the last one was sealed.
    pub open: Option<(SegmentId, u32)>,
    /// Checksum of the last batch header.
    pub previous_crc: u32,
    /// The opening that wrote the anchor: everything since was written by it, too.
    pub epoch: u64,
    /// The kernel's memory may hold what the medium does not, and call it clean: what verifies is written
    /// again.
    pub rewrite: bool,
}

/// A batch that verified, data included.
pub struct ScannedBatch {
    /// Its header.
    pub batch: Batch,
    /// Where its data begins.
    pub data: SlotAddr,
}

/// A segment that a tail runs through: number, file, next free slot, checksums by slot.
pub type TailSegment = (SegmentId, Arc<dyn File>, u32, Vec<u32>);

/// Where the verified log of a stream ends now.
pub struct StreamEnd {
    /// Place of the last segment.
    pub sequence: u32,
    /// Checksum of the last good batch header.
    pub previous_crc: u32,
    /// Segments of the tail, in order.
    pub segments: Vec<TailSegment>,
    /// Why the scan stopped, when it was not the plain end of the log.
    pub stopped: Option<String>,
    /// Damage found in the part that the anchor covers.
    pub damaged: Vec<String>,
}

/// Segments that the anchor does not know, by the place they claim. Left-overs of an earlier opening
/// may claim a place that was given again; the header's chain checksum tells which one follows.
pub type Candidates = HashMap<(VolumeId, u32), Vec<(SegmentId, SegmentHeader)>>;

/// Scans one stream from `start`.
pub fn scan_stream(
    start: TailStart,
    candidates: &Candidates,
    segments: &Segments,
    batches: &mut Vec<ScannedBatch>,
) -> Result<StreamEnd> {
    let mut end = StreamEnd {
        sequence: start.sequence,
        previous_crc: start.previous_crc,
        segments: Vec::new(),
        stopped: None,
        damaged: Vec::new(),
    };
    if let Some((id, next_slot)) = start.open {
        let (file, crcs) = known_checksums(segments, &start, id, next_slot, &mut end.damaged)?;
        scan_segment(&start, id, file, next_slot, crcs, &mut end, batches)?;
    }
    loop {
        let place = candidates.get(&(start.volume, end.sequence + 1)).map_or(&[][..], Vec::as_slice);
        let Some((id, _)) = place.iter().find(|(_, header)| header.previous_crc == end.previous_crc) else { break };
        // The log goes on there, so that what looked wrong behind its last batch was only left over.
        let (before, suspicion) = (batches.len(), end.stopped.take());
        end.sequence += 1;
        scan_segment(&start, *id, segments.file(*id)?, FIRST_SLOT, Vec::new(), &mut end, batches)?;
        if batches.len() == before {
            end.stopped = end.stopped.take().or(suspicion);
            break;
        }
    }
    let later = candidates.keys().filter(|(volume, at)| *volume == start.volume && *at > end.sequence).count();
    if later > 0 && end.stopped.is_none() {
        end.stopped = Some(format!("{later} later segments do not continue it and were dropped"));
    }
    Ok(end)
}

fn scan_segment(
    start: &TailStart,
    id: SegmentId,
    file: Arc<dyn File>,
    mut slot: u32,
    mut crcs: Vec<u32>,
    end: &mut StreamEnd,
    batches: &mut Vec<ScannedBatch>,
) -> Result<()> {
    let mut block = [0; BLOCK];
    let mut data = Vec::new();
    while slot < END_SLOT {
        let addr = SlotAddr::new(id, slot);
        match file.read_at(&mut block, u64::from(slot) * BLOCK_U64) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(Error::io(format!("reading {addr}"), e)),
        }
        let expected =
            Identity { volume: start.volume, epoch: Some(start.epoch), addr, previous_crc: end.previous_crc };
        let Some((batch, crc)) = Batch::decode(&block, &expected)? else {
            end.stopped = batches_behind(start, &*file, addr)?;
            if end.stopped.is_none() && expected.resembles(&block) {
                end.stopped = Some(format!("the batch header at {addr} is damaged or was not completely written"));
            }
            break;
        };
        if slot as usize + 1 + batch.crcs.len() > END_SLOT as usize {
            end.stopped = Some(format!("the batch at {addr} reaches past its segment"));
            break;
        }
        data.resize(batch.crcs.len() * BLOCK, 0);
        if let Err(e) = file.read_at(&mut data, u64::from(slot + 1) * BLOCK_U64) {
            if e.kind() != io::ErrorKind::UnexpectedEof {
                return Err(Error::io(format!("reading the batch at {addr}"), e));
            }
            end.stopped = Some(format!("the batch at {addr} was not completely written"));
            break;
        }
        if !data.chunks_exact(BLOCK).zip(&batch.crcs).all(|(block, crc)| crc32fast::hash(block) == *crc) {
            end.stopped = Some(format!("the batch at {addr} was not completely written"));
            break;
        }
        if start.rewrite {
            write_again(&*file, slot, &block, &data).map_err(|e| Error::io(format!("writing {addr} again"), e))?;
        }
        crcs.resize(slot as usize + 1, 0);
        crcs.extend_from_slice(&batch.crcs);
        slot += 1 + batch.crcs.len() as u32;
        end.previous_crc = crc;
        batches.push(ScannedBatch { data: SlotAddr::new(id, addr.slot() + 1), batch });
    }
    end.segments.push((id, file, slot, crcs));
    Ok(())
}

/// Writes a batch at `slot` over itself, and with the first one the segment's header.
fn write_again(file: &dyn File, slot: u32, header: &[u8], data: &[u8]) -> io::Result<()> {
    if slot == FIRST_SLOT {
        let mut first = [0; BLOCK];
        file.read_at(&mut first, 0)?;
        file.write_at(&[IoSlice::new(&first)], 0)?;
    }
    file.write_at(&[IoSlice::new(header), IoSlice::new(data)], u64::from(slot) * BLOCK_U64)
}

/// Looks for batches of this opening behind the place `gap`, where none verifies: as far as one batch
/// reaches, and from there along their chain. Says what is dropped with them.
fn batches_behind(start: &TailStart, file: &dyn File, gap: SlotAddr) -> Result<Option<String>> {
    let mut block = [0; BLOCK];
    let last = (gap.slot() + 1 + BATCH_BLOCKS_MAX as u32).min(END_SLOT - 1);
    let (mut slot, mut first) = (gap.slot() + 1, None);
    while slot < END_SLOT && (first.is_some() || slot <= last) {
        let addr = SlotAddr::new(gap.segment(), slot);
        match file.read_at(&mut block, u64::from(slot) * BLOCK_U64) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(Error::io(format!("reading {addr}"), e)),
        }
        match Batch::decode(&block, &Identity::claimed(&block, start.volume, Some(start.epoch), addr)) {
            Ok(Some((batch, _))) => {
                first.get_or_insert(addr);
                slot += 1 + batch.crcs.len() as u32;
            }
            _ if first.is_some() => break,
            _ => slot += 1,
        }
    }
    Ok(first.map(|first| {
        let bytes = u64::from(slot - gap.slot()) * BLOCK_U64;
        format!(
            "no batch verifies at {gap}, but one does at {first}: {bytes} bytes dropped, because of damage, or as \
             writes that were not flushed before power was lost"
        )
    }))
}
