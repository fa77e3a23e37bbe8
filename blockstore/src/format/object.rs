//! Data objects: ranges of slots as they lie in the object store.
//!
//! An object is a directory, which says which slots it holds and what their checksums are, and behind it the slots
//! themselves in frames of up to 16, compressed each for itself, so that one can be fetched alone.
//!
//! Only slots that lived when the object was made are in it. A range of a log also carries its batches' records,
//! without the data: a host that opens the volume replays them.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "slot numbers are below 2^13, lengths below 2^32, sums of few of them"
)]

use super::codec::{checksum_without, seal_checksum, Append, Reader};
use super::live::{pack, unpack, Form};
use super::record::Record;
use super::segment::{Bitmap, SegmentKind, BITMAP_WORDS};
use crate::error::{Error, Result};
use crate::limits::{BLOCK, OBJECT_DIRECTORY_MAX, OBJECT_RANGES_MAX, OBJECT_SLOT_BYTES, SEGMENT_BITS, SEGMENT_SLOTS};
use crate::types::{Lsn, SegmentId, VolumeId};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"CAIRNOB\n";
/// Version written into objects and manifests.
pub const OBJECT_VERSION: u16 = 1;
const CRC_AT: usize = 12;
const LEN_AT: usize = 16;
/// Slots of a frame: what is fetched and decompressed at a time, 64 KiB.
pub const FRAME_SLOTS: usize = 16;
/// In a frame's length: it is not compressed.
const RAW: u32 = 1 << 31;
/// Fast, and most of what more effort would gain.
const ZSTD_LEVEL: i32 = 1;

/// An object's name: which pool made it, of the log of which volume (0: map pages), and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// The pool.
    pub pool: [u8; 16],
    /// The volume.
    pub volume: VolumeId,
    /// Given once: the pool's epoch in the upper 32 bits.
    pub number: u64,
}

impl ObjectId {
    /// Its key in the store.
    pub fn key(&self) -> String {
        let pool = self.pool.iter().fold(String::with_capacity(32), |text, byte| text + &format!("{byte:02x}"));
        format!("objects/{pool}/{:x}/{:016x}", self.volume.0, self.number)
    }
}

/// Records of one batch, which may have had data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchEntry {
    /// Number of the first record.
    pub first_lsn: Lsn,
    /// Slot of the batch's header: its data follows.
    pub slot: u32,
    /// The changes.
    pub records: Vec<Record>,
}

/// Where a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// From the object's start, bytes.
    pub offset: u64,
    /// Stored length, bytes.
    pub len: u32,
    /// Not compressed.
    pub raw: bool,
    /// Slots in it.
    pub slots: usize,
}

/// A range of slots in an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeEntry {
    /// Their segment, by the number that its maker gave it.
    pub segment: SegmentId,
    /// Log or map.
    pub kind: SegmentKind,
    /// First slot.
    pub first: u32,
    /// One past the last.
    pub end: u32,
    /// The slots that are there.
    pub bits: Arc<Bitmap>,
    /// Their checksums, in order; none for map pages, which verify themselves.
    pub crcs: Vec<u32>,
    /// The range's batches that a replay may need, in order.
    pub batches: Vec<BatchEntry>,
    /// Their frames.
    pub frames: Vec<Frame>,
}

impl RangeEntry {
    /// The place of `slot` among those that are there.
    pub fn rank(&self, slot: u32) -> Option<usize> {
        let (word, bit) = (slot as usize / 64, slot % 64);
        let own = self.bits.get(word)?;
        if slot < self.first || slot >= self.end || own >> bit & 1 == 0 {
            return None;
        }
        let before: u32 = self.bits.iter().take(word).map(|w| w.count_ones()).sum();
        Some((before + (own & ((1u64 << bit) - 1)).count_ones()) as usize)
    }
}

/// What an object holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Its name: an object copied to another key is noticed.
    pub id: ObjectId,
    /// BLAKE3 of everything behind the directory.
    pub digest: [u8; 32],
    /// Bytes of the directory.
    pub len: u32,
    /// The ranges.
    pub ranges: Vec<RangeEntry>,
}

/// Puts an object together.
pub struct ObjectBuilder {
    id: ObjectId,
    ranges: Vec<RangeEntry>,
    payload: Vec<u8>,
}

impl ObjectBuilder {
    /// An object without ranges.
    pub fn new(id: ObjectId) -> Self {
        Self { id, ranges: Vec::new(), payload: Vec::new() }
    }

    /// Adds a range whose slots, in order, are `data`. Its frames are made here.
    pub fn push(&mut self, mut range: RangeEntry, data: &[u8]) -> Result<()> {
        range.frames.clear();
        for frame in data.chunks(FRAME_SLOTS * BLOCK) {
            let packed = zstd::bulk::compress(frame, ZSTD_LEVEL).map_err(|e| Error::io("compressing", e))?;
            // What saves less than an eighth is not worth decompressing.
            let raw = packed.len() + packed.len() / 8 >= frame.len();
            let stored = if raw { frame } else { &packed };
            let (offset, slots) = (self.payload.len() as u64, frame.len() / BLOCK);
            range.frames.push(Frame { offset, len: stored.len() as u32, raw, slots });
            self.payload.extend_from_slice(stored);
        }
        self.ranges.push(range);
        Ok(())
    }

    /// The object's bytes, and its directory as [`Directory::decode`] reads it.
    pub fn finish(self) -> Result<(Vec<u8>, Directory)> {
        let digest = *blake3::hash(&self.payload).as_bytes();
        let mut out = Directory { id: self.id, digest, len: 0, ranges: self.ranges }.encode();
        // Longer ones are not read: better not put than put in vain.
        if out.len() > OBJECT_DIRECTORY_MAX as usize {
            return Err(Error::invalid(format!("object {}: a directory of {} bytes", self.id.key(), out.len())));
        }
        let directory = Directory::decode(&out, &self.id)?;
        out.extend_from_slice(&self.payload);
        Ok((out, directory))
    }
}

fn put_range(out: &mut Vec<u8>, range: &RangeEntry) {
    out.put_u32(range.segment.0);
    let (form, bits) = pack(&range.bits, None);
    out.put_u8(u8::from(range.kind == SegmentKind::Map) | form.flags());
    out.put_u16(range.first as u16);
    out.put_u16(range.end as u16);
    out.extend_from_slice(&bits);
    range.crcs.iter().for_each(|crc| out.put_u32(*crc));
    out.put_u32(range.batches.len() as u32);
    for batch in &range.batches {
        out.put_u64(batch.first_lsn.0);
        out.put_u16(batch.slot as u16);
        out.put_u16(batch.records.len() as u16);
        batch.records.iter().for_each(|record| record.encode(out));
    }
    range.frames.iter().for_each(|frame| out.put_u32(frame.len | if frame.raw { RAW } else { 0 }));
}

impl Directory {
    /// The directory's bytes. Its length and where frames lie follow from what it holds.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.put_u16(OBJECT_VERSION);
        out.put_u16(0);
        out.put_u32(0);
        out.put_u32(0);
        out.put_u32(self.ranges.len() as u32);
        out.extend_from_slice(&self.id.pool);
        out.put_u64(self.id.volume.0);
        out.put_u64(self.id.number);
        out.extend_from_slice(&self.digest);
        self.ranges.iter().for_each(|range| put_range(&mut out, range));
        let len = out.len() as u32;
        if let Some(field) = out.get_mut(LEN_AT..LEN_AT + 4) {
            field.copy_from_slice(&len.to_le_bytes());
        }
        seal_checksum(&mut out, CRC_AT);
        out
    }

    /// Verifies and reads the directory of `id` from the first bytes of an object.
    pub fn decode(bytes: &[u8], id: &ObjectId) -> Result<Self> {
        let damaged = |what: &str| Error::corrupt(format!("object {}: {what}", id.key()));
        let mut r = Reader::new(bytes, "object");
        if r.bytes(8)? != MAGIC {
            return Err(damaged("not an object of cairn (wrong magic)"));
        }
        let version = r.u16()?;
        r.u16()?;
        let (crc, len) = (r.u32()?, r.u32()?);
        let own = bytes.get(..len as usize).ok_or_else(|| damaged("the directory is cut off"))?;
        if crc != checksum_without(own, CRC_AT) {
            return Err(damaged("the directory is damaged (checksum mismatch)"));
        }
        if version != OBJECT_VERSION {
            let text = format!("format version {version}, this program reads {OBJECT_VERSION}: use a newer cairn");
            return Err(Error::invalid(format!("object {}: {text}", id.key())));
        }
        let mut r = Reader::new(own, "object");
        r.bytes(LEN_AT + 4)?;
        let count = r.u32()?;
        if count > OBJECT_RANGES_MAX {
            return Err(damaged("the directory has too many ranges"));
        }
        let mut pool = [0; 16];
        pool.copy_from_slice(r.bytes(16)?);
        let found = ObjectId { pool, volume: VolumeId(r.u64()?), number: r.u64()? };
        if found != *id {
            return Err(damaged(&format!("holds object {}: was it copied or renamed?", found.key())));
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(r.bytes(32)?);
        let mut offset = u64::from(len);
        let mut ranges = Vec::new();
        for _ in 0..count {
            ranges.push(range(&mut r, &mut offset)?);
        }
        if r.left() != 0 {
            return Err(damaged("the directory has bytes too many"));
        }
        Ok(Self { id: *id, digest, len, ranges })
    }

    /// How long the directory is that an object's first bytes claim to begin; nothing is verified.
    pub fn claimed_len(bytes: &[u8]) -> Option<u32> {
        let field = bytes.get(LEN_AT..LEN_AT + 4)?;
        field.first_chunk().map(|len| u32::from_le_bytes(*len))
    }

    /// Length of the whole object, bytes.
    pub fn object_len(&self) -> u64 {
        let frames = self.ranges.iter().flat_map(|range| &range.frames);
        frames.map(|frame| u64::from(frame.len)).sum::<u64>() + u64::from(self.len)
    }

    /// Names the directory's contents: what a manifest says of an object, so that another one in its place is noticed.
    pub fn check(bytes: &[u8]) -> u64 {
        let hash = blake3::hash(bytes);
        hash.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
    }

    /// Verifies a whole object: its length and the digest of its frames.
    pub fn verify_all(&self, object: &[u8]) -> Result<()> {
        let payload = object.get(self.len as usize..).unwrap_or_default();
        if object.len() as u64 == self.object_len() && blake3::hash(payload).as_bytes() == &self.digest {
            return Ok(());
        }
        Err(Error::corrupt(format!("object {} is damaged or incomplete", self.id.key())))
    }
}

fn range(r: &mut Reader<'_>, offset: &mut u64) -> Result<RangeEntry> {
    let (segment, flags) = (SegmentId(r.u32()?), r.u8()?);
    let (first, end) = (u32::from(r.u16()?), u32::from(r.u16()?));
    let kind = if flags & 1 == 0 { SegmentKind::Log } else { SegmentKind::Map };
    let known = segment.0 >> SEGMENT_BITS == 0 && Form::of(flags)? != Form::Same;
    if first >= end || end > SEGMENT_SLOTS || !known {
        return Err(Error::corrupt(format!("object: slots {first} to {end} of segment {} are impossible", segment.0)));
    }
    let bits = unpack(r, Form::of(flags)?, None)?;
    let slots = present(&bits);
    if slots.first().is_some_and(|slot| *slot < first) || slots.last().is_some_and(|slot| *slot >= end) {
        return Err(Error::corrupt(format!("object: segment {}: slots outside of their range", segment.0)));
    }
    let mut crcs = Vec::new();
    if kind == SegmentKind::Log {
        for _ in 0..slots.len() {
            crcs.push(r.u32()?);
        }
    }
    let mut batches = Vec::new();
    let (mut free, mut next) = (first, 0);
    for _ in 0..r.u32()? {
        let (first_lsn, slot, count) = (Lsn(r.u64()?), u32::from(r.u16()?), r.u16()?);
        let mut records = Vec::new();
        for _ in 0..count {
            records.push(Record::decode(r)?);
        }
        let blocks: u64 = records.iter().map(Record::data_blocks).sum();
        let behind = first_lsn.0.checked_add(count.into()).filter(|_| slot >= free && first_lsn.0 >= next);
        let Some(behind) = behind.filter(|_| u64::from(slot) + blocks < u64::from(end)) else {
            return Err(Error::corrupt(format!("object: segment {}: a batch outside of its place", segment.0)));
        };
        (free, next) = (slot + 1 + blocks as u32, behind);
        batches.push(BatchEntry { first_lsn, slot, records });
    }
    if slots.is_empty() && batches.is_empty() {
        return Err(Error::corrupt(format!("object: a range of segment {} holds nothing", segment.0)));
    }
    let mut frames = Vec::new();
    for slots in slots.chunks(FRAME_SLOTS).map(<[u32]>::len) {
        let len = r.u32()?;
        let (raw, len) = (len & RAW != 0, len & !RAW);
        let whole = slots * BLOCK;
        if len as usize > whole || raw && (len as usize) < whole {
            return Err(Error::corrupt(format!("object: a frame of {len} bytes for {slots} slots is impossible")));
        }
        frames.push(Frame { offset: *offset, len, raw, slots });
        *offset += u64::from(len);
    }
    Ok(RangeEntry { segment, kind, first, end, bits, crcs, batches, frames })
}

/// The slots of a bitmap, in order.
pub fn present(bits: &Bitmap) -> Vec<u32> {
    let mut slots = Vec::new();
    for (word, at) in bits.iter().zip((0u32..).step_by(64)) {
        let mut rest = *word;
        while rest != 0 {
            slots.push(at + rest.trailing_zeros());
            rest &= rest - 1;
        }
    }
    slots
}

/// Those of the slots in `bits` that lie in `first..end`.
pub fn within(bits: &Bitmap, first: u32, end: u32) -> Bitmap {
    let mut out = [0; BITMAP_WORDS];
    for (to, (from, at)) in out.iter_mut().zip(bits.iter().zip((0u32..).step_by(64))) {
        let (low, high) = (first.clamp(at, at + 64) - at, end.clamp(at, at + 64) - at);
        let below = |n: u32| if n == 64 { u64::MAX } else { (1 << n) - 1 };
        *to = from & below(high) & !below(low);
    }
    out
}

/// The slots of a frame, from its stored bytes.
pub fn open_frame(frame: &Frame, stored: &[u8], object: &ObjectId) -> Result<Vec<u8>> {
    let damaged = || Error::corrupt(format!("object {}: the frame at byte {} is damaged", object.key(), frame.offset));
    if stored.len() != frame.len as usize {
        return Err(damaged());
    }
    let whole = frame.slots * BLOCK;
    let slots =
        if frame.raw { stored.to_vec() } else { zstd::bulk::decompress(stored, whole).map_err(|_| damaged())? };
    if slots.len() != whole {
        return Err(damaged());
    }
    Ok(slots)
}

/// Lengths leave room for the bit, and a directory for all that a writer puts into one: a batch's records are shorter
/// than their slot, and what else there is of a slot, and of a range that holds but one, is shorter than 64 bytes.
const _: () = assert!(OBJECT_DIRECTORY_MAX < RAW && FRAME_SLOTS * BLOCK < RAW as usize);
const _: () = assert!(OBJECT_SLOT_BYTES + 64 * OBJECT_RANGES_MAX as usize <= OBJECT_DIRECTORY_MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> (ObjectId, Vec<u8>, Directory, Vec<u8>) {
        let id = ObjectId { pool: *b"0123456789abcdef", volume: VolumeId(7), number: 1 << 32 | 5 };
        let mut bits = [0; BITMAP_WORDS];
        (2..40u32).filter(|slot| slot % 3 != 0).for_each(|slot| bits[0] |= 1 << slot);
        let slots = present(&bits);
        let data: Vec<u8> = slots.iter().flat_map(|slot| vec![*slot as u8; BLOCK]).collect();
        let crcs = data.chunks(BLOCK).map(crc32fast::hash).collect();
        let batches =
            vec![BatchEntry { first_lsn: Lsn(9), slot: 1, records: vec![Record::Write { block: 4, count: 38 }] }];
        let (segment, kind, bits) = (SegmentId(3), SegmentKind::Log, Arc::new(bits));
        let range = RangeEntry { segment, kind, first: 1, end: 40, bits, crcs, batches, frames: Vec::new() };
        let mut builder = ObjectBuilder::new(id);
        builder.push(range, &data).unwrap();
        let (bytes, directory) = builder.finish().unwrap();
        (id, bytes, directory, data)
    }

    #[test]
    fn slots_come_back_frame_by_frame() {
        let (id, bytes, directory, data) = object();
        assert_eq!(Directory::decode(&bytes, &id).unwrap(), directory);
        directory.verify_all(&bytes).unwrap();
        let [range] = &directory.ranges[..] else { panic!("one range") };
        let rank = range.rank(38).unwrap();
        let frame = range.frames[rank / FRAME_SLOTS];
        let stored = &bytes[frame.offset as usize..][..frame.len as usize];
        let slots = open_frame(&frame, stored, &id).unwrap();
        assert_eq!(slots[rank % FRAME_SLOTS * BLOCK..][..BLOCK], data[rank * BLOCK..][..BLOCK]);
        assert_eq!((range.rank(39), range.rank(40)), (None, None), "the one was dead, the other is not in the range");
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let (id, bytes, directory, _) = object();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            let read = Directory::decode(&bad, &id).and_then(|found| found.verify_all(&bad));
            assert!(read.is_err(), "byte {at}");
        }
        for len in [0, 7, 87, directory.len as usize - 1, bytes.len() - 1] {
            let read = Directory::decode(&bytes[..len], &id).and_then(|found| found.verify_all(&bytes[..len]));
            assert!(read.is_err(), "cut at {len}");
        }
        assert!(Directory::decode(&bytes, &ObjectId { number: 6, ..id }).is_err(), "another object's place");
    }

    #[test]
    fn what_no_writer_writes_is_damage() {
        let (id, _, good, _) = object();
        let refused = |change: &dyn Fn(&mut RangeEntry)| {
            let mut bad = good.clone();
            bad.ranges.iter_mut().for_each(change);
            Directory::decode(&bad.encode(), &id).is_err()
        };
        assert!(!refused(&|_| {}));
        assert!(refused(&|range| range.segment = SegmentId(1 << 27)), "no such segment");
        assert!(refused(&|range| range.end = 38), "slots behind the range");
        assert!(refused(&|range| range.batches.push(range.batches[0].clone())), "two batches in one place");
        assert!(refused(&|range| range.batches[0].first_lsn = Lsn(u64::MAX)), "numbers beyond all numbers");
        assert!(refused(&|range| range.frames[0] = Frame { raw: true, ..range.frames[0] }), "a raw frame cut short");
        let nothing = Arc::new([0; BITMAP_WORDS]);
        let empty = |range: &mut RangeEntry| {
            (range.bits, range.crcs, range.frames) = (nothing.clone(), Vec::new(), Vec::new());
        };
        assert!(!refused(&empty), "records alone");
        assert!(refused(&|range| (empty(range), range.batches.clear()).1), "a range of nothing");
    }
}
