//! Manifests: a volume's state in the object store, and who may write the next one.
//!
//! A volume's manifests are numbered without gaps, and each is put only if its key is free. So of two hosts that
//! believe to own the volume one loses with its next manifest, and knows.
//!
//! The state is that of the maker's anchor at `anchor_lsn`, whose map pages are in the objects, and behind it the
//! records in the objects of the tail up to `cut`: a host that opens the volume replays them. All numbers are the
//! maker's; `origins` say which segments it took over from others, and under which numbers those made the objects.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "lengths that are compared with bounds, and indexes into what is there"
)]

use super::anchor::{put_root, root, RootEntry};
use super::codec::{checksum_without, seal_checksum, Append, Reader};
use super::object::ObjectId;
use super::origin::Origins;
use super::segment::SegmentKind;
use super::MANIFEST_VERSION;
use crate::error::{Error, Result};
use crate::limits::{MANIFEST_BYTES_MAX, MANIFEST_WINDOW_LOG_MAX, SEGMENT_BITS, SEGMENT_SLOTS};
use crate::types::{Durability, Lsn, RootId, SegmentId, VolumeId};
use std::collections::{BTreeMap, HashMap};
use std::io::Read;

const MAGIC: &[u8; 8] = b"CAIRNMF\n";
const CRC_AT: usize = 12;
const HEADER: usize = 24;
const ZSTD_LEVEL: i32 = 1;
/// From this version on a manifest says whether the volume can be changed.
const KNOWS_READ_ONLY: u16 = 2;

/// What a volume is in the object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// The owner writes.
    Owned,
    /// The last owner has put everything here and let go.
    Detached,
    /// It was deleted; the name is free, its numbers go on.
    Deleted,
}

/// What is known of an object without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its length, bytes.
    pub len: u64,
    /// Bytes of its directory.
    pub directory: u32,
    /// [`super::object::Directory::check`] of its directory.
    pub check: u64,
}

/// Slots of a segment in an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first.
    pub first: u32,
    /// One past the last.
    pub end: u32,
    /// Where.
    pub object: ObjectId,
}

/// Where a segment's slots are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentParts {
    /// Log or map.
    pub kind: SegmentKind,
    /// Whose log.
    pub volume: VolumeId,
    /// In the order of slots. None where all that lived in the anchor has died before the cut.
    pub parts: Vec<Part>,
}

/// One manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The volume's name.
    pub name: String,
    /// Its place among the volume's manifests, from 1.
    pub number: u64,
    /// How often the volume has changed hands.
    pub epoch: u64,
    /// Tells a manifest from any other of its number.
    pub nonce: [u8; 16],
    /// Whether the owner still has it.
    pub tenure: Tenure,
    /// The owner: the pool that wrote it.
    pub pool: [u8; 16],
    /// The opening of that pool.
    pub pool_epoch: u64,
    /// The maker: the pool whose numbers stand in it. Another one than the owner's only in a claim.
    pub maker: [u8; 16],
    /// When, by the maker's clock; for people.
    pub time_us: u64,
    /// The watermark: every change before this is here.
    pub cut: Lsn,
    /// Changes before this are in the map pages.
    pub anchor_lsn: Lsn,
    /// The volume's number in the maker's pool.
    pub volume: VolumeId,
    /// Creation time.
    pub created_us: u64,
    /// Its head, among the roots.
    pub head: RootId,
    /// Number of the next checkpoint.
    pub next_checkpoint: u32,
    /// Number of the next automatic one.
    pub next_auto: u32,
    /// What its flushes wait for.
    pub durability: Durability,
    /// Whether its head can be changed by nobody.
    pub read_only: bool,
    /// No number of a segment in it, nor in its map pages, reaches this.
    pub next_segment: u32,
    /// Whose it was before, and under which number there; the last is the latest.
    pub predecessors: Vec<([u8; 16], VolumeId)>,
    /// Head, checkpoints and ghosts; a parent that is not among them is left out.
    pub roots: Vec<RootEntry>,
    /// What the maker took over from others.
    pub origins: Origins,
    /// All objects that the state needs.
    pub objects: BTreeMap<ObjectId, ObjectInfo>,
    /// Where segments are.
    pub segments: BTreeMap<SegmentId, SegmentParts>,
    /// Objects with records behind the anchor, in the order of the log.
    pub tail: Vec<ObjectId>,
}

/// Prefix of the keys of a volume's manifests.
pub fn manifest_prefix(name: &str) -> String {
    format!("volumes/{name}/")
}

/// Key of manifest `number`: the newest comes first in a list.
pub fn manifest_key(name: &str, number: u64) -> String {
    format!("volumes/{name}/{:016x}", u64::MAX - number)
}

/// The number that a manifest's key stands for.
pub fn manifest_number(key: &str) -> Option<u64> {
    let digits = key.rsplit('/').next()?;
    let good = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    good.then(|| u64::from_str_radix(digits, 16).ok())?.map(|inverse| u64::MAX - inverse)
}

impl Manifest {
    /// The bytes of a manifest.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let body = self.body();
        if body.len() > MANIFEST_BYTES_MAX {
            let text = format!("the manifest of {:?} has {} bytes, more than any reader takes", self.name, body.len());
            return Err(Error::invalid(text));
        }
        let packed = zstd::bulk::compress(&body, ZSTD_LEVEL).map_err(|e| Error::io("compressing a manifest", e))?;
        let mut out = Vec::with_capacity(HEADER + packed.len());
        out.extend_from_slice(MAGIC);
        out.put_u16(MANIFEST_VERSION);
        out.put_u16(0);
        out.put_u32(0);
        out.put_u64(body.len() as u64);
        out.extend_from_slice(&packed);
        seal_checksum(&mut out, CRC_AT);
        Ok(out)
    }

    /// What is compressed.
    pub fn body(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_text(&self.name);
        out.put_u64(self.number);
        out.put_u64(self.epoch);
        out.extend_from_slice(&self.nonce);
        out.put_u8(match self.tenure {
            Tenure::Owned => 0,
            Tenure::Detached => 1,
            Tenure::Deleted => 2,
        });
        out.extend_from_slice(&self.pool);
        out.put_u64(self.pool_epoch);
        out.extend_from_slice(&self.maker);
        out.put_u64(self.time_us);
        out.put_u64(self.cut.0);
        out.put_u64(self.anchor_lsn.0);
        out.put_u64(self.volume.0);
        out.put_u64(self.created_us);
        out.put_u64(self.head.0);
        out.put_u32(self.next_checkpoint);
        out.put_u32(self.next_auto);
        out.put_u32(self.durability.bits());
        out.put_u8(u8::from(self.read_only));
        out.put_u32(self.next_segment);
        out.put_u32(self.predecessors.len() as u32);
        for (pool, volume) in &self.predecessors {
            out.extend_from_slice(pool);
            out.put_u64(volume.0);
        }
        out.put_u32(self.roots.len() as u32);
        self.roots.iter().for_each(|root| put_root(&mut out, root));
        self.origins.encode(&mut out);
        out.put_u32(self.objects.len() as u32);
        for (id, info) in &self.objects {
            out.extend_from_slice(&id.pool);
            out.put_u64(id.volume.0);
            out.put_u64(id.number);
            out.put_u64(info.len);
            out.put_u32(info.directory);
            out.put_u64(info.check);
        }
        let places: HashMap<&ObjectId, u32> = self.objects.keys().zip(0..).collect();
        let place = |id: &ObjectId| places.get(id).copied().unwrap_or(u32::MAX);
        out.put_u32(self.segments.len() as u32);
        for (id, segment) in &self.segments {
            out.put_u32(id.0);
            out.put_u8(u8::from(segment.kind == SegmentKind::Map));
            out.put_u64(segment.volume.0);
            out.put_u16(segment.parts.len() as u16);
            for part in &segment.parts {
                out.put_u16(part.first as u16);
                out.put_u16(part.end as u16);
                out.put_u32(place(&part.object));
            }
        }
        out.put_u32(self.tail.len() as u32);
        self.tail.iter().for_each(|id| out.put_u32(place(id)));
        out
    }

    /// Verifies and reads the manifest under `key`.
    pub fn decode(bytes: &[u8], key: &str) -> Result<Self> {
        let named = |e: Error| Error::new(e.kind(), format!("manifest {key}: {e}"));
        let manifest = Self::decode_unnamed(bytes).map_err(named)?;
        if manifest_key(&manifest.name, manifest.number) != key {
            let text = format!(
                "manifest {key} holds number {} of volume {:?}: was it copied or renamed?",
                manifest.number, manifest.name
            );
            return Err(Error::corrupt(text));
        }
        Ok(manifest)
    }

    fn decode_unnamed(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(bytes, "manifest");
        if r.bytes(8)? != MAGIC {
            return Err(Error::corrupt("not a manifest of cairn (wrong magic)"));
        }
        let version = r.u16()?;
        r.u16()?;
        let (crc, len) = (r.u32()?, r.u64()?);
        if crc != checksum_without(bytes, CRC_AT) {
            return Err(Error::corrupt("damaged (checksum mismatch)"));
        }
        if version == 0 || version > MANIFEST_VERSION {
            return Err(Error::invalid(format!(
                "format version {version}, this program reads 1 to {MANIFEST_VERSION}: use a newer cairn"
            )));
        }
        if len > MANIFEST_BYTES_MAX as u64 {
            return Err(Error::corrupt(format!("it claims {len} bytes, more than any manifest")));
        }
        let body = unpack(bytes.get(HEADER..).unwrap_or_default(), len)
            .map_err(|_| Error::corrupt("damaged (it does not decompress)"))?;
        if body.len() as u64 != len {
            return Err(Error::corrupt(format!("it claims {len} bytes and has others")));
        }
        Self::from_body(&body, version)
    }

    /// Reads what was compressed, in a manifest of this version.
    pub fn from_body(body: &[u8], version: u16) -> Result<Self> {
        let mut r = Reader::new(body, "manifest");
        let manifest = Self::decode_body(&mut r, version)?;
        if r.left() != 0 {
            return Err(Error::corrupt("it has bytes too many"));
        }
        manifest.make_sense()?;
        Ok(manifest)
    }

    fn decode_body(r: &mut Reader<'_>, version: u16) -> Result<Self> {
        let (name, number, epoch, nonce) = (r.text()?, r.u64()?, r.u64()?, sixteen(r)?);
        let tenure = match r.u8()? {
            0 => Tenure::Owned,
            1 => Tenure::Detached,
            2 => Tenure::Deleted,
            other => return Err(Error::corrupt(format!("tenure {other} is unknown"))),
        };
        let mut manifest = Self {
            name,
            number,
            epoch,
            nonce,
            tenure,
            pool: sixteen(r)?,
            pool_epoch: r.u64()?,
            maker: sixteen(r)?,
            time_us: r.u64()?,
            cut: Lsn(r.u64()?),
            anchor_lsn: Lsn(r.u64()?),
            volume: VolumeId(r.u64()?),
            created_us: r.u64()?,
            head: RootId(r.u64()?),
            next_checkpoint: r.u32()?,
            next_auto: r.u32()?,
            durability: Durability::of_bits(r.u32()?),
            read_only: version >= KNOWS_READ_ONLY && r.flag()?,
            next_segment: r.u32()?,
            predecessors: predecessors(r)?,
            roots: Vec::new(),
            origins: Origins::default(),
            objects: BTreeMap::new(),
            segments: BTreeMap::new(),
            tail: Vec::new(),
        };
        if u64::from(manifest.next_segment) > 1 << SEGMENT_BITS {
            return Err(Error::corrupt("it names more segments than there can be"));
        }
        for _ in 0..r.u32()? {
            manifest.roots.push(root(r)?);
        }
        manifest.origins = Origins::decode(r, version)?;
        let mut ids = Vec::new();
        for _ in 0..r.u32()? {
            let id = ObjectId { pool: sixteen(r)?, volume: VolumeId(r.u64()?), number: r.u64()? };
            let info = ObjectInfo { len: r.u64()?, directory: r.u32()?, check: r.u64()? };
            if ids.last().is_some_and(|before| *before >= id) || u64::from(info.directory) > info.len {
                return Err(Error::corrupt(format!("object {} is out of place or cannot be", id.key())));
            }
            manifest.objects.insert(id, info);
            ids.push(id);
        }
        let object = |place: u32| {
            let id = ids.get(place as usize).copied();
            id.ok_or_else(|| Error::corrupt("it names an object that it does not list"))
        };
        for _ in 0..r.u32()? {
            let (id, kind, volume) = (SegmentId(r.u32()?), r.u8()?, VolumeId(r.u64()?));
            let kind = match kind {
                0 => SegmentKind::Log,
                1 => SegmentKind::Map,
                other => return Err(Error::corrupt(format!("segment kind {other} is unknown"))),
            };
            let behind = manifest.segments.last_key_value().is_none_or(|(before, _)| *before < id);
            if id.0 >= manifest.next_segment || !behind {
                return Err(Error::corrupt(format!("segment {} is out of place", id.0)));
            }
            let mut parts: Vec<Part> = Vec::new();
            for _ in 0..r.u16()? {
                let part = Part { first: r.u16()?.into(), end: r.u16()?.into(), object: object(r.u32()?)? };
                let behind = parts.last().is_none_or(|before| before.end <= part.first);
                if part.first >= part.end || part.end > SEGMENT_SLOTS || !behind {
                    return Err(Error::corrupt(format!("the parts of segment {} do not fit", id.0)));
                }
                parts.push(part);
            }
            manifest.segments.insert(id, SegmentParts { kind, volume, parts });
        }
        for _ in 0..r.u32()? {
            manifest.tail.push(object(r.u32()?)?);
        }
        Ok(manifest)
    }

    /// What its parts have to do with one another.
    fn make_sense(&self) -> Result<()> {
        if self.number == 0 || self.anchor_lsn > self.cut {
            return Err(Error::corrupt("its number or its cut cannot be"));
        }
        let head = self.roots.iter().any(|root| root.id == self.head && root.volume == self.volume);
        if !head && self.tenure != Tenure::Deleted {
            return Err(Error::corrupt("its head is not among its roots"));
        }
        Ok(())
    }
}

/// Decompresses `len` bytes, or some more if there are more; takes memory for what comes, not for what is claimed.
fn unpack(packed: &[u8], len: u64) -> std::io::Result<Vec<u8>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
    decoder.window_log_max(MANIFEST_WINDOW_LOG_MAX)?;
    let mut body = Vec::new();
    decoder.take(len + 1).read_to_end(&mut body)?;
    Ok(body)
}

fn predecessors(r: &mut Reader<'_>) -> Result<Vec<([u8; 16], VolumeId)>> {
    let mut predecessors = Vec::new();
    for _ in 0..r.u32()? {
        predecessors.push((sixteen(r)?, VolumeId(r.u64()?)));
    }
    Ok(predecessors)
}

fn sixteen(r: &mut Reader<'_>) -> Result<[u8; 16]> {
    let mut out = [0; 16];
    out.copy_from_slice(r.bytes(16)?);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::origin::Origin;
    use super::super::renumbering::Renumbering;
    use super::*;
    use crate::format::anchor::RootKind;

    fn manifest() -> Manifest {
        let object = ObjectId { pool: [7; 16], volume: VolumeId(3), number: 1 };
        let info = ObjectInfo { len: 5000, directory: 300, check: 99 };
        let parts = vec![Part { first: 1, end: 40, object }];
        let numbers = [(1, 5), (5, 9)].map(|(there, here)| (SegmentId(there), SegmentId(here)));
        let mut origins = Origins::default();
        let made = vec![(SegmentId(5), SegmentId(9))];
        origins.learn(Origin { numbers: Renumbering::of(numbers.into_iter()), made }).unwrap();
        let root = RootEntry {
            id: RootId(4),
            volume: VolumeId(3),
            parent: None,
            top: 0,
            level: 2,
            size: 1 << 30,
            kind: RootKind::Head,
        };
        Manifest {
            name: "disk".into(),
            number: 12,
            epoch: 2,
            nonce: [9; 16],
            tenure: Tenure::Owned,
            pool: [7; 16],
            pool_epoch: 5,
            maker: [8; 16],
            time_us: 77,
            cut: Lsn(100),
            anchor_lsn: Lsn(90),
            volume: VolumeId(3),
            created_us: 70,
            head: RootId(4),
            next_checkpoint: 1,
            next_auto: 1,
            durability: Durability::Local,
            read_only: false,
            next_segment: 10,
            predecessors: vec![([8; 16], VolumeId(2))],
            roots: vec![root],
            origins,
            objects: [(object, info)].into(),
            segments: [(SegmentId(6), SegmentParts { kind: SegmentKind::Log, volume: VolumeId(3), parts })].into(),
            tail: vec![object],
        }
    }

    #[test]
    fn a_manifest_reads_as_it_was_written_and_newer_ones_come_first() {
        let manifest = manifest();
        let key = manifest_key("disk", 12);
        assert_eq!(Manifest::decode(&manifest.encode().unwrap(), &key).unwrap(), manifest);
        assert_eq!(manifest_number(&key), Some(12));
        assert_eq!(manifest_number("volumes/disk/rubbish"), None);
        assert!(manifest_key("disk", 13) < key);
        assert!(Manifest::decode(&manifest.encode().unwrap(), &manifest_key("disk", 13)).is_err());
    }

    #[test]
    fn every_flipped_or_missing_byte_is_noticed() {
        let (bytes, key) = (manifest().encode().unwrap(), manifest_key("disk", 12));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Manifest::decode(&bad, &key).is_err(), "byte {at}");
            assert!(Manifest::decode(&bytes[..at], &key).is_err(), "cut at {at}");
        }
    }

    /// A length or a window that is claimed takes no memory.
    #[test]
    fn a_manifest_has_what_it_claims_or_is_damaged() {
        let (good, key) = (manifest().encode().unwrap(), manifest_key("disk", 12));
        let refused = |len: u64, packed: &[u8]| {
            let mut bytes = good[..HEADER].to_vec();
            bytes[16..].copy_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(packed);
            seal_checksum(&mut bytes, CRC_AT);
            Manifest::decode(&bytes, &key).is_err()
        };
        let body = manifest().body();
        let len = body.len() as u64;
        assert!(!refused(len, &good[HEADER..]));
        for wrong in [0, len - 1, len + 1, MANIFEST_BYTES_MAX as u64, u64::MAX] {
            assert!(refused(wrong, &good[HEADER..]), "{wrong} bytes claimed");
        }
        for (log, wide) in [(MANIFEST_WINDOW_LOG_MAX, false), (MANIFEST_WINDOW_LOG_MAX + 1, true)] {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL).unwrap();
            encoder.window_log(log).unwrap();
            std::io::Write::write_all(&mut encoder, &body).unwrap();
            std::io::Write::flush(&mut encoder).unwrap();
            assert_eq!(refused(len, &encoder.finish().unwrap()), wide, "a window of 2^{log} bytes");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_damage() {
        let refused = |change: &dyn Fn(&mut Manifest)| {
            let mut bad = manifest();
            change(&mut bad);
            Manifest::from_body(&bad.body(), MANIFEST_VERSION).is_err()
        };
        assert!(!refused(&|_| {}));
        assert!(refused(&|m| m.number = 0), "no number");
        assert!(refused(&|m| m.anchor_lsn = Lsn(101)), "an anchor behind the cut");
        assert!(refused(&|m| m.head = RootId(5)), "no head");
        assert!(refused(&|m| m.objects.clear()), "parts in an object that is not there");
        let far = |m: &mut Manifest| m.segments.insert(SegmentId(1 << 27), m.segments[&SegmentId(6)].clone());
        assert!(refused(&|m| drop(far(m))), "no such segment");
        assert!(refused(&|m| m.segments.values_mut().for_each(|s| s.parts.push(s.parts[0]))), "a part twice");
        assert!(!refused(&|m| m.segments.values_mut().for_each(|s| s.parts.clear())), "nothing left in it");
        assert!(!refused(&|m| (m.roots.clear(), m.tenure = Tenure::Deleted).1), "a deleted volume has no roots");
    }
}
