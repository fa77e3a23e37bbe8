//! Anchors: the whole state of a pool at one LSN, small because maps are only referred to.
//!
//! The file holds the encoded state twice, each copy under its own checksum, so that one damaged
//! block does not cost the pool.

use super::codec::{checksum_without, seal_checksum, Append, Reader};
use super::live::{pack, unpack, Form};
use super::segment::{Bitmap, Place, SegmentKind};
use super::ANCHOR_VERSION;
use crate::error::{Error, Result};
use crate::limits::SEGMENT_SLOTS;
use crate::map::Ref;
use crate::types::{CheckpointName, Durability, Lsn, RootId, SegmentId, VolumeId};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"CAIRNAN\n";
const CRC_AT: usize = 12;
const LEN_AT: usize = 16;
const HEADER: usize = 24;
const _: () = assert!(HEADER == LEN_AT + size_of::<u64>() && LEN_AT == CRC_AT + size_of::<u32>());
/// The tallest tree covers `VOLUME_BYTES_MAX`.
const LEVEL_MAX: u8 = 7;

/// From this version on an anchor says what volumes descend from.
const KNOWS_ORIGINS: u16 = 3;
/// From this one on, which of them cannot be changed.
const KNOWS_READ_ONLY: u16 = 4;
/// Flags of a segment that is not in the pool's folder.
const IN_STORE: u8 = 32;
const IMPORTED: u8 = 64;

/// A volume in an anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    pub id: VolumeId,
    pub name: String,
    pub size: u64,
    pub created_us: u64,
    pub head: RootId,
    pub next_checkpoint: u32,
    pub next_auto: u32,
    pub origins: Vec<VolumeId>,
    pub durability: Durability,
    pub read_only: bool,
}

/// A stream's end in an anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEntry {
    pub volume: VolumeId,
    pub sequence: u32,
    pub open: Option<(SegmentId, u32)>,
    pub previous_crc: u32,
}

/// What a root is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootKind {
    /// The writable end of a volume.
    Head,
    /// A named state.
    Checkpoint { name: CheckpointName, time_us: u64, comment: String, lsn: Lsn },
    /// A state without a name whose blocks are being given back, up to the block `cursor`.
    Ghost { cursor: u64 },
}

/// A root in an anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootEntry {
    pub id: RootId,
    pub volume: VolumeId,
    pub parent: Option<RootId>,
    pub top: u64,
    pub level: u8,
    pub size: u64,
    pub kind: RootKind,
}

/// A segment in an anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    pub id: SegmentId,
    pub kind: SegmentKind,
    pub volume: VolumeId,
    pub sealed: bool,
    pub place: Place,
    pub used: u32,
    pub stored: u32,
    pub bits: Arc<Bitmap>,
    pub nodes: Option<Arc<[u8; SEGMENT_SLOTS as usize]>>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    pub pool: [u8; 16],
    pub sequence: u64,
    pub epoch: u64,
    pub next_lsn: Lsn,
    pub next_segment: u32,
    pub next_volume: u64,
    pub next_root: u64,
    pub map_tail: Option<(SegmentId, u32)>,
    pub volumes: Vec<VolumeEntry>,
    pub streams: Vec<StreamEntry>,
    pub roots: Vec<RootEntry>,
    pub segments: Vec<SegmentEntry>,
}

fn put_place(out: &mut Vec<u8>, place: Option<(SegmentId, u32)>) {
    let (segment, slot) = place.map_or((0, 0), |(s, n)| (s.0, n));
    out.put_u32(segment);
    out.put_u32(slot);
}

fn place(r: &mut Reader<'_>) -> Result<Option<(SegmentId, u32)>> {
    let (segment, slot) = (r.u32()?, r.u32()?);
    Ok((segment != 0).then_some((SegmentId(segment), slot)))
}

impl Anchor {
    /// The bytes of an anchor file.
    pub fn encode(&self) -> Vec<u8> {
        let mut copy = self.copy();
        copy.extend_from_within(..);
        copy
    }

    fn copy(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.put_u16(ANCHOR_VERSION);
        out.put_u16(0);
        out.put_u32(0);
        out.put_u64(0);
        out.extend_from_slice(&self.pool);
        out.put_u64(self.sequence);
        out.put_u64(self.epoch);
        out.put_u64(self.next_lsn.0);
        out.put_u32(self.next_segment);
        out.put_u64(self.next_volume);
        out.put_u64(self.next_root);
        put_place(&mut out, self.map_tail);
        out.put_u32(self.volumes.len() as u32);
        for v in &self.volumes {
            out.put_u64(v.id.0);
            out.put_text(&v.name);
            out.put_u64(v.size);
            out.put_u64(v.created_us);
            out.put_u64(v.head.0);
            out.put_u32(v.next_checkpoint);
            out.put_u32(v.next_auto);
            out.put_u32(v.origins.len() as u32);
            v.origins.iter().for_each(|origin| out.put_u64(origin.0));
            out.put_u32(v.durability.bits());
            out.put_u8(u8::from(v.read_only));
        }
        out.put_u32(self.streams.len() as u32);
        for s in &self.streams {
            out.put_u64(s.volume.0);
            out.put_u32(s.sequence);
            put_place(&mut out, s.open);
            out.put_u32(s.previous_crc);
        }
        out.put_u32(self.roots.len() as u32);
        self.roots.iter().for_each(|root| put_root(&mut out, root));
        out.put_u32(self.segments.len() as u32);
        let mut before = None;
        for segment in &self.segments {
            put_segment(&mut out, segment, before);
            before = Some(&segment.bits);
        }
        let body = out.len().saturating_sub(HEADER) as u64;
        if let Some(field) = out.get_mut(LEN_AT..HEADER) {
            field.copy_from_slice(&body.to_le_bytes());
        }
        seal_checksum(&mut out, CRC_AT);
        out
    }

    /// Verifies and reads the bytes of an anchor file.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        // The copies have the same length, so the second starts in the middle.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        Self::decode_copy(first).or_else(|why| Self::decode_copy(second).map_err(|_| why))
    }

    fn decode_copy(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(bytes, "anchor");
        if r.bytes(8)? != MAGIC {
            return Err(Error::corrupt("the anchor file is damaged (wrong magic)"));
        }
        let version = r.u16()?;
        r.u16()?;
        let (crc, len) = (r.u32()?, r.u64()?);
        if crc != checksum_without(bytes, CRC_AT) {
            return Err(Error::corrupt("the anchor file is damaged (checksum mismatch)"));
        }
        if !(1..=ANCHOR_VERSION).contains(&version) {
            return Err(Error::invalid(format!(
                "the anchor has format version {version}, this program reads 1 to {ANCHOR_VERSION}: use a newer cairn"
            )));
        }
        if len != r.left() as u64 {
            return Err(Error::corrupt(format!("the anchor claims {len} bytes and has {}", r.left())));
        }
        let anchor = Self::decode_body(&mut r, version)?;
        if r.left() != 0 {
            return Err(Error::corrupt(format!("the anchor has {} bytes too many", r.left())));
        }
        Ok(anchor)
    }

    /// An older anchor does not say what its volumes descend from: it may be all that have segments.
    fn guess_origins(&mut self) {
        let mut owners: Vec<VolumeId> = self.segments.iter().map(|segment| segment.volume).collect();
        owners.sort_unstable();
        owners.dedup();
        for volume in &mut self.volumes {
            volume.origins = owners.iter().copied().filter(|owner| *owner != volume.id && owner.0 != 0).collect();
        }
    }

    fn decode_body(r: &mut Reader<'_>, version: u16) -> Result<Self> {
        let mut pool = [0; 16];
        pool.copy_from_slice(r.bytes(16)?);
        let mut anchor = Self {
            pool,
            sequence: r.u64()?,
            epoch: r.u64()?,
            next_lsn: Lsn(r.u64()?),
            next_segment: r.u32()?,
            next_volume: r.u64()?,
            next_root: r.u64()?,
            map_tail: place(r)?,
            volumes: Vec::new(),
            streams: Vec::new(),
            roots: Vec::new(),
            segments: Vec::new(),
        };
        for _ in 0..r.u32()? {
            anchor.volumes.push(VolumeEntry {
                id: VolumeId(r.u64()?),
                name: r.text()?,
                size: r.u64()?,
                created_us: r.u64()?,
                head: RootId(r.u64()?),
                next_checkpoint: r.u32()?,
                next_auto: r.u32()?,
                origins: if version < KNOWS_ORIGINS { Vec::new() } else { origins(r)? },
                durability: Durability::of_bits(if version < KNOWS_ORIGINS { 0 } else { r.u32()? }),
                read_only: version >= KNOWS_READ_ONLY && r.flag()?,
            });
        }
        for _ in 0..r.u32()? {
            anchor.streams.push(StreamEntry {
                volume: VolumeId(r.u64()?),
                sequence: r.u32()?,
                open: place(r)?,
                previous_crc: r.u32()?,
            });
        }
        for _ in 0..r.u32()? {
            anchor.roots.push(root(r)?);
        }
        for _ in 0..r.u32()? {
            let before = anchor.segments.last().map(|segment| &segment.bits);
            let segment = segment(r, before)?;
            anchor.segments.push(segment);
        }
        if version < KNOWS_ORIGINS {
            anchor.guess_origins();
        }
        Ok(anchor)
    }
}

fn origins(r: &mut Reader<'_>) -> Result<Vec<VolumeId>> {
    let mut origins = Vec::new();
    for _ in 0..r.u32()? {
        origins.push(VolumeId(r.u64()?));
    }
    Ok(origins)
}

/// Appends a root.
pub fn put_root(out: &mut Vec<u8>, root: &RootEntry) {
    out.put_u64(root.id.0);
    out.put_u64(root.volume.0);
    out.put_u64(root.parent.map_or(0, |p| p.0));
    out.put_u64(root.top);
    out.put_u8(root.level);
    out.put_u64(root.size);
    match &root.kind {
        RootKind::Head => out.put_u8(0),
        RootKind::Checkpoint { name, time_us, comment, lsn } => {
            out.put_u8(1);
            out.put_u8(u8::from(name.is_auto));
            out.put_u32(name.number);
            out.put_u64(*time_us);
            out.put_text(comment);
            out.put_u64(lsn.0);
        }
        RootKind::Ghost { cursor } => {
            out.put_u8(2);
            out.put_u64(*cursor);
        }
    }
}

/// Reads a root.
pub fn root(r: &mut Reader<'_>) -> Result<RootEntry> {
    let (id, volume, parent) = (RootId(r.u64()?), VolumeId(r.u64()?), r.u64()?);
    let (top, level, size) = (r.u64()?, r.u8()?, r.u64()?);
    let kind = match r.u8()? {
        0 => RootKind::Head,
        1 => RootKind::Checkpoint {
            name: CheckpointName { is_auto: r.u8()? != 0, number: r.u32()? },
            time_us: r.u64()?,
            comment: r.text()?,
            lsn: Lsn(r.u64()?),
        },
        2 => RootKind::Ghost { cursor: r.u64()? },
        other => return Err(Error::corrupt(format!("root kind {other} is unknown"))),
    };
    if level > LEVEL_MAX {
        return Err(Error::corrupt(format!("root level {level} is out of range")));
    }
    let top = Ref::from_stored(top)?.bits();
    Ok(RootEntry { id, volume, parent: (parent != 0).then_some(RootId(parent)), top, level, size, kind })
}

fn put_segment(out: &mut Vec<u8>, segment: &SegmentEntry, before: Option<&Arc<Bitmap>>) {
    out.put_u32(segment.id.0);
    let (form, bits) = pack(&segment.bits, before);
    let kind = u8::from(segment.kind == SegmentKind::Map);
    let place = match segment.place {
        Place::Here => 0,
        Place::Store => IN_STORE,
        Place::Imported => IMPORTED,
        Place::Counted => IN_STORE | IMPORTED,
    };
    out.put_u8(kind | u8::from(segment.sealed) << 1 | form.flags() | place);
    out.put_u64(segment.volume.0);
    out.put_u16(segment.used as u16);
    out.put_u16(segment.stored as u16);
    out.extend_from_slice(&bits);
    if let Some(nodes) = segment.nodes.as_ref().filter(|_| form != Form::Empty) {
        out.extend_from_slice(&nodes[..]);
    }
}

fn segment(r: &mut Reader<'_>, before: Option<&Arc<Bitmap>>) -> Result<SegmentEntry> {
    let (id, flags) = (SegmentId(r.u32()?), r.u8()?);
    let (volume, used, stored) = (VolumeId(r.u64()?), u32::from(r.u16()?), u32::from(r.u16()?));
    let kind = if flags & 1 == 0 { SegmentKind::Log } else { SegmentKind::Map };
    let form = Form::of(flags)?;
    let place = match flags & (IN_STORE | IMPORTED) {
        0 => Place::Here,
        IN_STORE => Place::Store,
        IMPORTED => Place::Imported,
        _ => Place::Counted,
    };
    let bits = unpack(r, form, before)?;
    let nodes = match (kind, form) {
        (SegmentKind::Log, _) => None,
        (SegmentKind::Map, Form::Empty) => Some([0; SEGMENT_SLOTS as usize]),
        (SegmentKind::Map, _) => {
            let mut nodes = [0; SEGMENT_SLOTS as usize];
            nodes.copy_from_slice(r.bytes(SEGMENT_SLOTS as usize)?);
            Some(nodes)
        }
    };
    let live = || bits.iter().flat_map(|word| (0..64).map(move |bit| word >> bit & 1 == 1));
    if nodes.as_ref().is_some_and(|nodes| nodes.iter().zip(live()).any(|(count, live)| (*count > 0) != live)) {
        return Err(Error::corrupt(format!("anchor: segment {}: live pages and node counts differ", id.0)));
    }
    let sealed = flags & 2 != 0;
    Ok(SegmentEntry { id, kind, volume, sealed, place, used, stored, bits, nodes: nodes.map(Arc::new) })
}
