//! Packing: rewriting a segment's file with only its live slots.
//!
//! Addresses do not change, so no map is touched, however many checkpoints and forks share the
//! segment; the old file is replaced by one rename, so a crash leaves either, and both serve.

use super::files::segment_name;
use crate::disk::{Disk, File};
use crate::error::{Error, Result};
use crate::format::segment::{
    directory_offset, Bitmap, Layout, SegmentHeader, SegmentKind, BITMAP_WORDS, PACKED_DATA_OFFSET,
};
use crate::limits::{BLOCK, BLOCK_U64, DIRECTORY_PAGES};
use crate::types::SegmentId;
use std::io::IoSlice;
use std::sync::Arc;

/// Slots read at a time (1 MiB).
const PIECE_SLOTS: usize = 256;

/// What to pack. Owns everything it needs, so that it can run on another thread.
pub struct CompactJob {
    /// The segment.
    pub id: SegmentId,
    /// Slots to keep: all that live (more may have died since).
    pub keep: Arc<Bitmap>,
    /// The pool's folder.
    pub disk: Arc<dyn Disk>,
}

/// Packs one segment; returns the number of slots kept. Until the rename nothing has changed, and a
/// failure leaves no file behind. What was the segment's file then has only the name of segment
/// `spare`, if one is asked for and the disk can.
pub fn compact(job: &CompactJob, spare: Option<SegmentId>) -> Result<u32> {
    let name = segment_name(job.id);
    let temporary = format!("tmp-{name}");
    let _ = job.disk.remove(&temporary);
    let wrap = |e| Error::io(format!("packing segment {}", job.id.0), e);
    let packed = write_packed(job, &name, &temporary).and_then(|kept| {
        if let Some(spare) = spare {
            let _ = job.disk.link(&name, &segment_name(spare));
        }
        job.disk.rename(&temporary, &name).map_err(wrap)?;
        Ok(kept)
    });
    let kept = packed.inspect_err(|_| {
        let _ = job.disk.remove(&temporary);
        spare.map(|spare| job.disk.remove(&segment_name(spare)));
    })?;
    job.disk.sync_names().map_err(|e| Error::sync("packing a segment", &e))?;
    Ok(kept)
}

fn write_packed(job: &CompactJob, name: &str, temporary: &str) -> Result<u32> {
    let wrap = |e| Error::io(format!("packing segment {}", job.id.0), e);
    let old = job.disk.open(name).map_err(wrap)?;
    let mut block = vec![0; BLOCK];
    old.read_at(&mut block, 0).map_err(wrap)?;
    let header =
        SegmentHeader::decode(&block)?.ok_or_else(|| Error::corrupt(format!("{name} has no segment header")))?;
    let new = job.disk.create(temporary).map_err(wrap)?;
    let packed = matches!(header.layout, Layout::Packed(_));
    if header.kind == SegmentKind::Log {
        for page in 0..DIRECTORY_PAGES {
            old.read_at(&mut block, directory_offset(packed, page)).map_err(wrap)?;
            new.write_at(&[IoSlice::new(&block)], directory_offset(true, page)).map_err(wrap)?;
        }
    }
    let kept = copy_slots(&header.layout, &job.keep, &*old, &*new).map_err(wrap)?;
    let header = SegmentHeader { layout: Layout::Packed(job.keep.clone()), ..header };
    new.write_at(&[IoSlice::new(&header.encode())], 0).map_err(wrap)?;
    new.sync().map_err(wrap)?;
    Ok(kept)
}

/// Copies the slots in `keep` behind one another, in pieces of the old file: one read and one write each,
/// however scattered the slots lie.
fn copy_slots(layout: &Layout, keep: &Bitmap, old: &dyn File, new: &dyn File) -> std::io::Result<u32> {
    let (stored, mut from) = match layout {
        Layout::Full => ([u64::MAX; BITMAP_WORDS], 0),
        Layout::Packed(bitmap) => (**bitmap, PACKED_DATA_OFFSET),
    };
    let bit = |map: &Bitmap, slot: &usize| map[slot / 64] >> (slot % 64) & 1 == 1;
    let slots: Vec<usize> = (0..BITMAP_WORDS * 64).filter(|slot| bit(&stored, slot)).collect();
    let mut to = PACKED_DATA_OFFSET;
    let mut piece = vec![0; PIECE_SLOTS * BLOCK];
    for group in slots.chunks(PIECE_SLOTS) {
        let wanted = |slot: &usize| bit(keep, slot);
        if let (Some(first), Some(last)) = (group.iter().position(wanted), group.iter().rposition(wanted)) {
            let (piece, at) = (&mut piece[..(last + 1 - first) * BLOCK], from + (first * BLOCK) as u64);
            let group = &group[first..=last];
            if old.read_at(piece, at).is_err() {
                // What is dead may be unreadable: that is no reason to keep it.
                let blocks = piece.chunks_exact_mut(BLOCK).zip(group).zip((at..).step_by(BLOCK));
                for ((block, _), at) in blocks.filter(|((_, slot), _)| wanted(slot)) {
                    old.read_at(block, at)?;
                }
            }
            let blocks = piece.chunks_exact(BLOCK).zip(group).filter(|(_, slot)| wanted(slot));
            let live: Vec<IoSlice<'_>> = blocks.map(|(block, _)| IoSlice::new(block)).collect();
            new.write_at(&live, to)?;
            to += (live.len() * BLOCK) as u64;
        }
        from += (group.len() * BLOCK) as u64;
    }
    Ok(((to - PACKED_DATA_OFFSET) / BLOCK_U64) as u32)
}
