//! Segment header (slot 0) and directory pages (the last slots), and where slots lie in a file.
//!
//! A full segment keeps slot `n` at byte `n * 4096`. A packed one keeps only the slots of its
//! bitmap, in order, behind header and directory: addresses stay, the file shrinks.

#![expect(clippy::arithmetic_side_effects, reason = "sums of constants, slots and page numbers cannot overflow")]

use super::codec::{checksum_without, seal_checksum, Append, Reader};
use super::VERSION;
use crate::error::{Error, Result};
use crate::limits::{BLOCK, CRCS_PER_PAGE, DIRECTORY_PAGES, END_SLOT, SEGMENT_SLOTS, SLOT_BITS};
use crate::types::{SegmentId, VolumeId};
use std::sync::Arc;

const MAGIC: u32 = u32::from_le_bytes(*b"CSEG");
const DIRECTORY_MAGIC: u32 = u32::from_le_bytes(*b"CDIR");
const CRC_AT: usize = 8;
const BITMAP_AT: usize = 1024;
const DIRECTORY_HEADER: usize = 16;
/// Words of a slot bitmap.
pub const BITMAP_WORDS: usize = SEGMENT_SLOTS as usize / 64;

/// The bitmap fits the header's block, the directory names every slot, and an address every segment.
const _: () = {
    assert!(BITMAP_AT + BITMAP_WORDS * size_of::<u64>() <= BLOCK);
    assert!(DIRECTORY_HEADER + CRCS_PER_PAGE as usize * size_of::<u32>() == BLOCK);
    assert!(DIRECTORY_PAGES * CRCS_PER_PAGE >= END_SLOT && SEGMENT_SLOTS == 1 << SLOT_BITS);
};

/// One bit per slot.
pub type Bitmap = [u64; BITMAP_WORDS];

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Record batches of one volume.
    Log,
    /// Map pages.
    Map,
}

/// Where a segment's slots can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// In a file of the pool.
    #[default]
    Here,
    /// In the object store alone: the file was given up.
    Store,
    /// In the object store, where another pool put them: what lives in it is known only as "no more than that".
    Imported,
    /// The same, and what lives in it is known.
    Counted,
}

/// How the slots lie in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Slot `n` at block `n`.
    Full,
    /// Only the slots whose bit is set.
    Packed(Arc<Bitmap>),
}

/// Slot 0 of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The pool: a file copied in from elsewhere is noticed.
    pub pool: [u8; 16],
    /// The segment itself: a renamed or swapped file is noticed.
    pub segment: SegmentId,
    /// Log or map.
    pub kind: SegmentKind,
    /// The owner of the stream.
    pub volume: VolumeId,
    /// Place of this segment in its stream, from 1.
    pub sequence: u32,
    /// Checksum of the last batch header of the stream before this segment.
    pub previous_crc: u32,
    /// Placement of slots.
    pub layout: Layout,
}

impl SegmentHeader {
    /// One block of bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK);
        out.put_u32(MAGIC);
        out.put_u16(VERSION);
        out.put_u8(match self.kind {
            SegmentKind::Log => 0,
            SegmentKind::Map => 1,
        });
        out.put_u8(u8::from(matches!(self.layout, Layout::Packed(_))));
        out.put_u32(0);
        out.put_u32(self.segment.0);
        out.extend_from_slice(&self.pool);
        out.put_u64(self.volume.0);
        out.put_u32(self.sequence);
        out.put_u32(self.previous_crc);
        if let Layout::Packed(bitmap) = &self.layout {
            out.resize(BITMAP_AT, 0);
            bitmap.iter().for_each(|word| out.put_u64(*word));
        }
        out.resize(BLOCK, 0);
        seal_checksum(&mut out, CRC_AT);
        out
    }

    /// Verifies and reads; `None` when the bytes are not a segment header at all.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>> {
        let mut r = Reader::new(bytes, "segment header");
        if r.u32()? != MAGIC {
            return Ok(None);
        }
        let version = r.u16()?;
        let kind = r.u8()?;
        let packed = r.u8()?;
        if r.u32()? != checksum_without(bytes, CRC_AT) {
            return Err(Error::corrupt("segment header is damaged (checksum mismatch)"));
        }
        if version != VERSION {
            return Err(Error::invalid(format!("segment has format version {version}, this program reads {VERSION}")));
        }
        let kind = match kind {
            0 => SegmentKind::Log,
            1 => SegmentKind::Map,
            other => return Err(Error::corrupt(format!("segment kind {other} is unknown"))),
        };
        let segment = SegmentId(r.u32()?);
        let mut pool = [0; 16];
        pool.copy_from_slice(r.bytes(16)?);
        let (volume, sequence, previous_crc) = (VolumeId(r.u64()?), r.u32()?, r.u32()?);
        let layout = if packed == 0 {
            Layout::Full
        } else {
            let mut map = [0; BITMAP_WORDS];
            let mut r = Reader::new(bytes.get(BITMAP_AT..).unwrap_or_default(), "segment bitmap");
            for word in map.iter_mut() {
                *word = r.u64()?;
            }
            Layout::Packed(Arc::new(map))
        };
        Ok(Some(Self { pool, segment, kind, volume, sequence, previous_crc, layout }))
    }
}

/// Byte offset of directory page `page` in the file.
pub fn directory_offset(packed: bool, page: u32) -> u64 {
    let block = if packed { 1 + page } else { END_SLOT + page };
    u64::from(block) * BLOCK as u64
}

/// Byte offset of the first packed slot.
pub const PACKED_DATA_OFFSET: u64 = (1 + DIRECTORY_PAGES as u64) * BLOCK as u64;

/// The directory page that holds the checksum of `slot`, and its place there.
pub fn directory_place(slot: u32) -> (u32, usize) {
    (slot / CRCS_PER_PAGE, (slot % CRCS_PER_PAGE) as usize)
}

/// Encodes directory page `page`; `crcs` are those of the page's slots, short at the end.
pub fn encode_directory_page(segment: SegmentId, page: u32, crcs: &[u32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK);
    out.put_u32(DIRECTORY_MAGIC);
    out.put_u32(segment.0);
    out.put_u32(0);
    out.put_u32(page);
    crcs.iter().take(CRCS_PER_PAGE as usize).for_each(|crc| out.put_u32(*crc));
    out.resize(BLOCK, 0);
    seal_checksum(&mut out, CRC_AT);
    out
}

/// Verifies that `bytes` are directory page `page` of `segment`.
pub fn verify_directory_page(bytes: &[u8], segment: SegmentId, page: u32) -> Result<()> {
    let mut r = Reader::new(bytes, "segment directory");
    let (magic, owner, crc, index) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
    if magic != DIRECTORY_MAGIC || owner != segment.0 || index != page || crc != checksum_without(bytes, CRC_AT) {
        return Err(Error::corrupt(format!("directory page {page} of segment {} is damaged", segment.0)));
    }
    Ok(())
}

/// The checksum at `place` of a verified directory page.
pub fn directory_crc(bytes: &[u8], place: usize) -> Option<u32> {
    let at = DIRECTORY_HEADER + place * size_of::<u32>();
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
