//! The checksums of an open segment's anchored part, rebuilt from its batch headers.
//!
//! Invariants
//!   * a checksum is taken only from a header that is chained to the segment's header or to where the
//!     anchor says that the log ended;
//!   * a damaged header costs the blocks it describes: their checksum stays 0, and reading them is an
//!     error. Everything else is as it was.

use super::scan::TailStart;
use crate::disk::File;
use crate::error::{Error, ErrorKind, Result};
use crate::format::batch::{Batch, Identity};
use crate::format::segment::{Layout, SegmentHeader, SegmentKind};
use crate::limits::{BLOCK, BLOCK_U64, FIRST_SLOT};
use crate::space::Segments;
use crate::types::{SegmentId, SlotAddr};
use std::io::{self, IoSlice};
use std::sync::Arc;

struct Part<'a> {
    file: &'a dyn File,
    start: &'a TailStart,
    id: SegmentId,
    next_slot: u32,
}

/// The file of the open segment `id` and the checksums of its slots before `next_slot`; what is
/// damaged is added to `damaged`.
pub fn known_checksums(
    segments: &Segments,
    start: &TailStart,
    id: SegmentId,
    next_slot: u32,
    damaged: &mut Vec<String>,
) -> Result<(Arc<dyn File>, Vec<u32>)> {
    let file = segments.file_of_open(id)?;
    let part = Part { file: &*file, start, id, next_slot };
    let header = part.header(segments)?;
    let (mut slot, mut crcs) = (FIRST_SLOT, vec![0]);
    let mut previous = header.as_ref().map(|header| header.previous_crc);
    while slot < next_slot {
        let found = match previous {
            Some(_) => part.batch(slot, previous)?,
            None if part.leads_to_the_end(slot)? => part.batch(slot, None)?,
            None => None,
        };
        if let Some((batch, crc)) = found {
            crcs.resize(slot as usize + 1, 0);
            crcs.extend_from_slice(&batch.crcs);
            slot += 1 + batch.crcs.len() as u32;
            previous = Some(crc);
            continue;
        }
        let from = slot;
        slot += 1;
        while slot < next_slot && !part.leads_to_the_end(slot)? {
            slot += 1;
        }
        crcs.resize(slot as usize, 0);
        damaged.push(format!(
            "the batch header at {} is damaged: the blocks before slot {slot} cannot be verified",
            SlotAddr::new(id, from)
        ));
        previous = (slot == next_slot).then_some(start.previous_crc);
        if slot < next_slot {
            previous = None;
        }
    }
    if slot != next_slot || previous != Some(start.previous_crc) {
        damaged.push(format!("segment {} is not the one that the anchor knows: its blocks cannot be verified", id.0));
        crcs = vec![0; next_slot as usize];
    } else if header.is_none() && crcs.iter().any(|crc| *crc != 0) {
        damaged.push(format!("the header of segment {} was damaged and is written anew", id.0));
        part.mend_header(segments)?;
    }
    Ok((file, crcs))
}

impl Part<'_> {
    /// The block at `slot`; `None` behind the end of the file.
    fn block(&self, slot: u32) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        match self.file.read_at(&mut block, u64::from(slot) * BLOCK_U64) {
            Ok(()) => Ok(Some(block)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            // It may be readable again tomorrow: what cannot be read is not given up.
            Err(e) => Err(Error::io(format!("reading {}", SlotAddr::new(self.id, slot)), e)),
        }
    }

    fn header(&self, segments: &Segments) -> Result<Option<SegmentHeader>> {
        let Some(block) = self.block(0)? else { return Ok(None) };
        match SegmentHeader::decode(&block) {
            Err(e) if e.kind() == ErrorKind::Invalid => Err(e),
            Ok(Some(header)) if header.segment == self.id && header.pool == segments.pool => Ok(Some(header)),
            _ => Ok(None),
        }
    }

    /// The batch at `slot` that follows `previous`, or any.
    fn batch(&self, slot: u32, previous: Option<u32>) -> Result<Option<(Batch, u32)>> {
        let Some(block) = self.block(slot)? else { return Ok(None) };
        let claimed = Identity::claimed(&block, self.start.volume, None, SlotAddr::new(self.id, slot));
        let expected = Identity { previous_crc: previous.unwrap_or(claimed.previous_crc), ..claimed };
        let fits = |(batch, _): &(Batch, u32)| slot + 1 + batch.crcs.len() as u32 <= self.next_slot;
        Ok(Batch::decode(&block, &expected).ok().flatten().filter(fits))
    }

    /// Whether a chain of batches begins at `slot` that ends where the anchor says.
    fn leads_to_the_end(&self, mut slot: u32) -> Result<bool> {
        let mut previous = None;
        while slot < self.next_slot {
            let Some((batch, crc)) = self.batch(slot, previous)? else { return Ok(false) };
            slot += 1 + batch.crcs.len() as u32;
            previous = Some(crc);
        }
        Ok(previous == Some(self.start.previous_crc))
    }

    fn mend_header(&self, segments: &Segments) -> Result<()> {
        let first = self.batch(FIRST_SLOT, None)?;
        let header = SegmentHeader {
            pool: segments.pool,
            segment: self.id,
            kind: SegmentKind::Log,
            volume: self.start.volume,
            sequence: self.start.sequence,
            previous_crc: first.map_or(0, |(batch, _)| batch.previous_crc),
            layout: Layout::Full,
        };
        let written = self.file.write_at(&[IoSlice::new(&header.encode())], 0);
        written.map_err(|e| Error::io(format!("writing the header of segment {}", self.id.0), e))
    }
}
