//! Reading a stream's tail after a restart: everything since the last anchor that verifies.

use crate::disk::File;
use crate::error::{Error, Result};
use crate::format::batch::{Batch, Identity};
use crate::format::segment::SegmentHeader;
use crate::limits::{BLOCK, BLOCK_U64, END_SLOT, FIRST_SLOT};
use crate::types::{SegmentId, SlotAddr, VolumeId};
use std::collections::HashMap;
use std::io;
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
}

/// Segments that the anchor does not know, by the place they claim. Left-overs of an earlier opening
/// may claim a place that was given again; the header's chain checksum tells which one follows.
pub type Candidates = HashMap<(VolumeId, u32), Vec<(SegmentId, SegmentHeader)>>;

/// Scans one stream from `start`; `open` opens a segment's file.
pub fn scan_stream(
    start: TailStart,
    candidates: &Candidates,
    open: &dyn Fn(SegmentId) -> Result<Arc<dyn File>>,
    batches: &mut Vec<ScannedBatch>,
) -> Result<StreamEnd> {
    let mut end =
        StreamEnd { sequence: start.sequence, previous_crc: start.previous_crc, segments: Vec::new(), stopped: None };
    if let Some((id, next_slot)) = start.open {
        let file = open(id)?;
        let crcs = known_crcs(&*file, &start, id, next_slot)?;
        scan_segment(&start, id, file, next_slot, crcs, &mut end, batches)?;
    }
    while end.stopped.is_none() {
        let place = candidates.get(&(start.volume, end.sequence + 1)).map_or(&[][..], Vec::as_slice);
        let Some((id, _)) = place.iter().find(|(_, header)| header.previous_crc == end.previous_crc) else { break };
        let before = batches.len();
        end.sequence += 1;
        scan_segment(&start, *id, open(*id)?, FIRST_SLOT, Vec::new(), &mut end, batches)?;
        if batches.len() == before {
            break;
        }
    }
    Ok(end)
}

/// Rebuilds the checksums of an open segment's anchored part from its batch headers, along their
/// chain from the segment header to where the anchor says that the log ended.
fn known_crcs(file: &dyn File, start: &TailStart, id: SegmentId, next_slot: u32) -> Result<Vec<u32>> {
    let mut block = [0; BLOCK];
    let mut read = |slot: u32| -> Result<[u8; BLOCK]> {
        let addr = SlotAddr::new(id, slot);
        file.read_at(&mut block, u64::from(slot) * BLOCK_U64).map_err(|e| Error::io(format!("reading {addr}"), e))?;
        Ok(block)
    };
    let damaged = |slot: u32| Error::corrupt(format!("the log is damaged at {}", SlotAddr::new(id, slot)));
    let mut previous_crc = SegmentHeader::decode(&read(0)?)?.ok_or_else(|| damaged(0))?.previous_crc;
    let mut crcs = Vec::new();
    let mut slot = FIRST_SLOT;
    while slot < next_slot {
        let addr = SlotAddr::new(id, slot);
        let expected = Identity { volume: start.volume, epoch: None, addr, previous_crc };
        let (batch, crc) = Batch::decode(&read(slot)?, &expected)?.ok_or_else(|| damaged(slot))?;
        crcs.resize(slot as usize + 1, 0);
        crcs.extend_from_slice(&batch.crcs);
        slot += 1 + batch.crcs.len() as u32;
        previous_crc = crc;
    }
    if slot != next_slot || previous_crc != start.previous_crc {
        return Err(damaged(slot));
    }
    Ok(crcs)
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
        let Some((batch, crc)) = Batch::decode(&block, &expected)? else { break };
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
        crcs.resize(slot as usize + 1, 0);
        crcs.extend_from_slice(&batch.crcs);
        slot += 1 + batch.crcs.len() as u32;
        end.previous_crc = crc;
        batches.push(ScannedBatch { data: SlotAddr::new(id, addr.slot() + 1), batch });
    }
    end.segments.push((id, file, slot, crcs));
    Ok(())
}
