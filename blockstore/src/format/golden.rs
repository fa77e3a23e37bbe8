//! `docs/FORMAT.md` against the code: its hex blocks are what the encoders write and the decoders
//! read, its constants are ours. Neither can change without the other.

use super::anchor::{Anchor, RootEntry, RootKind, SegmentEntry, StreamEntry, VolumeEntry};
use super::batch::{Batch, Identity};
use super::codec::Reader;
use super::manifest::{manifest_key, Manifest, ObjectInfo, Part, SegmentParts, Tenure};
use super::object::{open_frame, BatchEntry, Directory, Frame, ObjectId, RangeEntry};
use super::origin::{Origin, Origins};
use super::page::{verify, NodeView, PageBuilder};
use super::record::Record;
use super::renumbering::Renumbering;
use super::segment::{
    directory_crc, encode_directory_page, verify_directory_page, Layout, Place, SegmentHeader, SegmentKind,
};
use super::superblock::Superblock;
use crate::limits;
use crate::map::Ref;
use crate::types::{CheckpointName, Durability, Lsn, RootId, SegmentId, SlotAddr, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

const DOCUMENT: &str = include_str!("../../../docs/FORMAT.md");
const POOL: [u8; 16] = *b"0123456789abcdef";
const TIME: u64 = 1_700_000_000_000_000;
const V3: CheckpointName = CheckpointName { is_auto: false, number: 3 };
const AUTO1: CheckpointName = CheckpointName { is_auto: true, number: 1 };

/// The document's blocks fenced as `hex NAME LENGTH`: rows of offset and 16 bytes, rows of zeros left out.
pub(crate) fn documented() -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        let Some(head) = line.strip_prefix("```hex ") else { continue };
        let (name, len) = head.split_once(' ').expect("a hex block has a name and a length");
        let mut bytes = vec![0; len.parse().expect("a length")];
        for row in lines.by_ref().take_while(|row| *row != "```") {
            let (offset, row) = row.split_once("  ").expect("offset, two spaces, bytes");
            let at = usize::from_str_radix(offset, 16).unwrap();
            let row: Vec<u8> = row.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            bytes[at..at + row.len()].copy_from_slice(&row);
        }
        assert!(out.insert(name.to_owned(), bytes).is_none(), "{name} is in the document twice");
    }
    out
}

fn dump(name: &str, bytes: &[u8]) -> String {
    let mut out = format!("```hex {name} {}\n", bytes.len());
    for (i, row) in bytes.chunks(16).enumerate().filter(|(_, row)| row.iter().any(|b| *b != 0)) {
        let row: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
        out += &format!("{:04x}  {}\n", i * 16, row.join(" "));
    }
    out + "```\n"
}

fn superblock() -> Superblock {
    Superblock { pool: POOL, created_us: TIME }
}

fn header(layout: Layout) -> SegmentHeader {
    let (segment, volume) = (SegmentId(0x0102_0304), VolumeId(5));
    SegmentHeader {
        pool: POOL,
        segment,
        kind: SegmentKind::Log,
        volume,
        sequence: 6,
        previous_crc: 0x0a0b_0c0d,
        layout,
    }
}

fn packed() -> SegmentHeader {
    let mut bits = [0; 128];
    (bits[0], bits[127]) = (0b110, 1 << 54);
    header(Layout::Packed(Arc::new(bits)))
}

fn records() -> Vec<(&'static str, Record)> {
    let id = VolumeId(9);
    let name = || "disk".to_owned();
    vec![
        ("write", Record::Write { block: 0x0001_0203, count: 2 }),
        ("trim", Record::Trim { block: 64, count: 1 << 32 }),
        ("create-volume", Record::CreateVolume { id, name: name(), size: 100 << 30, time_us: TIME }),
        ("delete-volume", Record::DeleteVolume { id }),
        ("resize", Record::Resize { size: 200 << 30 }),
        ("checkpoint", Record::Checkpoint { name: V3, time_us: TIME, comment: "before the upgrade".to_owned() }),
        ("delete-checkpoint", Record::DeleteCheckpoint { name: AUTO1 }),
        ("restore", Record::Restore { name: V3, undo: AUTO1, time_us: TIME }),
        ("fork", Record::Fork { from: Some(V3), id, name: name(), time_us: TIME }),
        ("fork-of-head", Record::Fork { from: None, id, name: name(), time_us: TIME }),
        ("set-durability", Record::SetDurability { durability: Durability::Bounded { ms: 500 } }),
        ("set-read-only", Record::SetReadOnly { read_only: true }),
    ]
}

fn batch() -> Batch {
    let records = vec![Record::Write { block: 7, count: 2 }, Record::Trim { block: 100, count: 50 }];
    let (volume, addr) = (VolumeId(5), SlotAddr::new(SegmentId(0x0102_0304), 17));
    let crcs = vec![0x1111_1111, 0x2222_2222];
    Batch { volume, epoch: 3, addr, first_lsn: Lsn(4711), previous_crc: 0x0a0b_0c0d, records, crcs }
}

fn page_addr() -> SlotAddr {
    SlotAddr::new(SegmentId(2), 1)
}

fn nodes() -> [(u8, Box<[u64; 64]>); 3] {
    let full = Box::new(std::array::from_fn(|i| SlotAddr::new(SegmentId(1), 5 * i as u32 + 7).0));
    let (mut leaf, mut inner) = (Box::new([0; 64]), Box::new([0; 64]));
    leaf[0] = SlotAddr::new(SegmentId(0x0102_0304), 18).0;
    leaf[63] = SlotAddr::new(SegmentId(1), 2).0;
    inner[0] = Ref::page(page_addr(), 0).bits();
    inner[2] = Ref::run(SlotAddr::new(SegmentId(1), 100)).bits();
    [(0, leaf), (1, inner), (0, full)]
}

fn page() -> Vec<u8> {
    let mut builder = PageBuilder::default();
    for (place, (level, entries)) in nodes().iter().enumerate() {
        assert_eq!(builder.push(*level, entries), Some(place as u8));
    }
    builder.finish(page_addr())
}

fn anchor() -> Anchor {
    let place = |segment, slot| Some((SegmentId(segment), slot));
    let root = |id, parent: u64, kind| RootEntry {
        id: RootId(id),
        volume: VolumeId(1),
        parent: (parent != 0).then_some(RootId(parent)),
        top: Ref::page(page_addr(), 1).bits(),
        level: 2,
        size: 1 << 30,
        kind,
    };
    let segment = |id, kind, sealed, live| {
        let mut bits = [0; 128];
        bits[0] = live;
        let bits = Arc::new(bits);
        let mut nodes = (kind == SegmentKind::Map).then_some([0; 8192]);
        nodes.iter_mut().filter(|_| live != 0).for_each(|nodes| nodes[1] = 2);
        SegmentEntry {
            id: SegmentId(id),
            kind,
            volume: VolumeId(1),
            sealed,
            place: if live == 0 { Place::Here } else { Place::Store },
            used: 8183,
            stored: 12,
            bits,
            nodes: nodes.map(Arc::new),
        }
    };
    Anchor {
        pool: POOL,
        sequence: 12,
        epoch: 3,
        next_lsn: Lsn(4711),
        next_segment: 7,
        next_volume: 2,
        next_root: 4,
        map_tail: place(2, 2),
        volumes: vec![VolumeEntry {
            id: VolumeId(1),
            name: "disk".to_owned(),
            size: 1 << 30,
            created_us: TIME,
            head: RootId(1),
            next_checkpoint: 4,
            next_auto: 2,
            origins: vec![VolumeId(4), VolumeId(8)],
            durability: Durability::Bounded { ms: 500 },
            read_only: true,
        }],
        streams: vec![
            StreamEntry { volume: VolumeId(0), sequence: 1, open: None, previous_crc: 0x0102_0304 },
            StreamEntry { volume: VolumeId(1), sequence: 2, open: place(4, 17), previous_crc: 0x0a0b_0c0d },
        ],
        roots: vec![
            root(1, 2, RootKind::Head),
            root(2, 3, RootKind::Checkpoint { name: V3, time_us: TIME, comment: "nightly".to_owned(), lsn: Lsn(4700) }),
            root(3, 0, RootKind::Ghost { cursor: 4096 }),
        ],
        segments: vec![
            segment(1, SegmentKind::Log, true, 0),
            segment(2, SegmentKind::Map, false, 0b10),
            segment(4, SegmentKind::Log, true, 0b110),
            segment(5, SegmentKind::Log, true, 0b110),
            segment(6, SegmentKind::Log, false, 0x5555_5555_5555_5554),
        ],
    }
}

fn object_id() -> ObjectId {
    ObjectId { pool: POOL, volume: VolumeId(5), number: 3 << 32 | 1 }
}

/// Two slots in a compressed frame, and one in a raw one.
fn object_directory() -> Directory {
    let range = |segment, kind, first: u32, slots: std::ops::Range<u32>| {
        let mut bits = [0; 128];
        slots.clone().for_each(|slot| bits[0] |= 1 << slot);
        let (bits, end) = (Arc::new(bits), slots.end);
        let segment = SegmentId(segment);
        RangeEntry { segment, kind, first, end, bits, crcs: Vec::new(), batches: Vec::new(), frames: Vec::new() }
    };
    let mut log = range(0x0102_0304, SegmentKind::Log, 17, 18..20);
    let Batch { first_lsn, records, crcs, .. } = batch();
    (log.batches, log.crcs) = (vec![BatchEntry { first_lsn, slot: 17, records }], crcs);
    // Header and two ranges.
    let len = 88 + 71 + 23;
    log.frames.push(Frame { offset: len, len: 20, raw: false, slots: 2 });
    let mut map = range(2, SegmentKind::Map, 1, 1..2);
    map.frames.push(Frame { offset: len + 20, len: 4096, raw: true, slots: 1 });
    Directory { id: object_id(), digest: [0x5a; 32], len: len as u32, ranges: vec![log, map] }
}

fn manifest() -> Manifest {
    let imported = ObjectId { pool: *b"ghijklmnopqrstuv", volume: VolumeId(0), number: 9 << 32 };
    let log = |first, end, object| Part { first, end, object };
    let segment = |kind, volume, parts| SegmentParts { kind, volume: VolumeId(volume), parts };
    let Anchor { roots, .. } = anchor();
    Manifest {
        name: "disk".to_owned(),
        number: 12,
        epoch: 2,
        nonce: *b"once and no more",
        tenure: Tenure::Owned,
        pool: POOL,
        pool_epoch: 3,
        maker: POOL,
        time_us: TIME,
        cut: Lsn(4713),
        anchor_lsn: Lsn(4711),
        volume: VolumeId(1),
        created_us: TIME,
        head: RootId(1),
        next_checkpoint: 4,
        next_auto: 2,
        durability: Durability::Remote,
        read_only: true,
        next_segment: 0x0300,
        predecessors: vec![(*b"another pool's!!", VolumeId(2))],
        roots,
        origins: origins(Renumbering::of(
            [(1, 2), (2, 3)].map(|(there, here)| (SegmentId(there), SegmentId(here))).into_iter(),
        )),
        objects: [
            (object_id(), ObjectInfo { len: 5000, directory: 300, check: 0x0102_0304_0506_0708 }),
            (imported, ObjectInfo { len: 70_000, directory: 200, check: 0x1112_1314_1516_1718 }),
        ]
        .into(),
        segments: [
            (SegmentId(2), segment(SegmentKind::Map, 1, vec![log(1, 8183, imported)])),
            (SegmentId(4), segment(SegmentKind::Log, 1, vec![log(1, 9, object_id()), log(17, 20, object_id())])),
        ]
        .into(),
        tail: vec![object_id()],
    }
}

fn origins(numbers: Renumbering) -> Origins {
    let mut all = Origins::default();
    all.learn(Origin { numbers, made: vec![(SegmentId(2), SegmentId(3))] }).unwrap();
    all
}

fn encoded() -> Vec<(String, Vec<u8>)> {
    let mut all = vec![
        ("superblock".to_owned(), superblock().encode()),
        ("segment-header".to_owned(), header(Layout::Full).encode()),
        ("segment-header-packed".to_owned(), packed().encode()),
        ("directory-page".to_owned(), encode_directory_page(SegmentId(4), 1, &[0x1111_1111, 0, 0x3333_3333])),
        ("batch-header".to_owned(), batch().encode().0),
        ("map-page".to_owned(), page()),
    ];
    for (name, record) in records() {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        all.push((format!("record-{name}"), bytes));
    }
    let whole = anchor().encode();
    let (first, second) = whole.split_at(whole.len() / 2);
    assert_eq!(first, second, "an anchor file holds two equal copies");
    all.push(("anchor-copy".to_owned(), first.to_vec()));
    all.extend(crate::object::sealed::examples());
    all.push(("object-directory".to_owned(), object_directory().encode()));
    all.push(("manifest-body".to_owned(), manifest().body()));
    all
}

/// What is no longer written, or compressed, and so may be written otherwise, is shown under these names.
const ONLY_READ: [&str; 4] = ["map-page-of-version-1", "object-frame", "manifest", "manifest-body-of-version-1"];

/// The slots of the frame that the document shows.
fn framed() -> Vec<u8> {
    [[0x11; limits::BLOCK], [0x22; limits::BLOCK]].concat()
}

#[test]
fn the_encoders_write_what_the_document_shows() {
    let mut documented = documented();
    ONLY_READ.iter().for_each(|name| assert!(documented.remove(*name).is_some(), "{name} is not in the document"));
    let encoded = encoded().into_iter();
    let wrong = encoded.filter(|(name, bytes)| documented.remove(name).as_ref() != Some(bytes));
    let wrong: Vec<String> = wrong.map(|(name, bytes)| dump(&name, &bytes)).collect();
    assert!(wrong.is_empty(), "docs/FORMAT.md should show\n\n{}", wrong.join("\n"));
    assert!(documented.is_empty(), "no code writes these: {:?}", documented.keys());
}

#[test]
fn the_decoders_read_what_the_document_shows() {
    let documented = documented();
    let shown = |name: &str| documented.get(name).unwrap_or_else(|| panic!("{name} is not in the document")).as_slice();
    assert_eq!(Superblock::decode(shown("superblock")).unwrap(), superblock());
    assert_eq!(SegmentHeader::decode(shown("segment-header")).unwrap(), Some(header(Layout::Full)));
    assert_eq!(SegmentHeader::decode(shown("segment-header-packed")).unwrap(), Some(packed()));
    let directory = shown("directory-page");
    verify_directory_page(directory, SegmentId(4), 1).unwrap();
    assert_eq!(directory_crc(directory, 2), Some(0x3333_3333));
    let Batch { volume, addr, previous_crc, .. } = batch();
    let next = Identity { volume, epoch: Some(3), addr, previous_crc };
    let (read, crc) = Batch::decode(shown("batch-header"), &next).unwrap().unwrap();
    assert_eq!((read, crc), (batch(), batch().encode().1));
    for (name, record) in records() {
        let mut reader = Reader::new(shown(&format!("record-{name}")), "record");
        assert_eq!((Record::decode(&mut reader).unwrap(), reader.left()), (record, 0));
    }
    for (name, count) in [("map-page", 3), ("map-page-of-version-1", 2)] {
        let page = shown(name);
        verify(page, page_addr()).unwrap();
        for (index, (level, entries)) in nodes().into_iter().enumerate().take(count) {
            assert_eq!(NodeView::of(page, index as u8).unwrap().entries(level).unwrap(), entries);
        }
        assert!(NodeView::of(page, count as u8).is_err());
    }
    assert_eq!(Anchor::decode(&shown("anchor-copy").repeat(2)).unwrap(), anchor());
    assert_eq!(Directory::decode(shown("object-directory"), &object_id()).unwrap(), object_directory());
    let old = origins(Renumbering::by_distance(1).unwrap());
    let old = Manifest { origins: old, read_only: false, ..manifest() };
    assert_eq!(Manifest::from_body(shown("manifest-body-of-version-1"), 1).unwrap(), old);
    assert_eq!(Manifest::from_body(shown("manifest-body"), super::MANIFEST_VERSION).unwrap(), manifest());
    assert_eq!(Manifest::decode(shown("manifest"), &manifest_key("disk", 12)).unwrap(), manifest());
    let (stored, raw) = (shown("object-frame"), framed());
    for (stored, raw) in [(stored, false), (raw.as_slice(), true)] {
        let frame = Frame { offset: 0, len: stored.len() as u32, raw, slots: 2 };
        assert_eq!(open_frame(&frame, stored, &object_id()).unwrap(), framed());
        assert!(open_frame(&Frame { slots: 3, ..frame }, stored, &object_id()).is_err());
    }
}

/// A frame and a manifest as this program's library compresses them, for the document.
#[test]
#[ignore = "prints what the document may show; run it by hand when their contents change"]
fn print_what_is_compressed() {
    let frame = zstd::bulk::compress(&framed(), 1).unwrap();
    panic!("{}\n{}", dump("object-frame", &frame), dump("manifest", &manifest().encode().unwrap()));
}

/// Rows of the document's table of constants: "| `NAME` | value | …".
#[test]
fn the_document_states_our_constants() {
    let ours = [
        ("BLOCK", limits::BLOCK as u64),
        ("SEGMENT_SLOTS", limits::SEGMENT_SLOTS.into()),
        ("SLOT_BITS", limits::SLOT_BITS.into()),
        ("SEGMENT_BITS", limits::SEGMENT_BITS.into()),
        ("FIRST_SLOT", limits::FIRST_SLOT.into()),
        ("END_SLOT", limits::END_SLOT.into()),
        ("DIRECTORY_PAGES", limits::DIRECTORY_PAGES.into()),
        ("CRCS_PER_PAGE", limits::CRCS_PER_PAGE.into()),
        ("BATCH_BLOCKS_MAX", limits::BATCH_BLOCKS_MAX as u64),
        ("NODES_MAX", super::page::NODES_MAX as u64),
        ("FANOUT", crate::map::FANOUT as u64),
        ("NAME_BYTES_MAX", limits::NAME_BYTES_MAX as u64),
        ("COMMENT_BYTES_MAX", limits::COMMENT_BYTES_MAX as u64),
        ("AUTO_CHECKPOINTS_KEPT", limits::AUTO_CHECKPOINTS_KEPT as u64),
        ("VERSION", super::VERSION.into()),
        ("ANCHOR_VERSION", super::ANCHOR_VERSION.into()),
        ("CHUNK", crate::object::sealed::CHUNK as u64),
        ("SEALED_CHUNK", crate::object::sealed::SEALED_CHUNK as u64),
        ("KEY_ID_BYTES_MAX", crate::object::sealed::KEY_ID_BYTES_MAX as u64),
        ("WRAPPED_BYTES_MAX", crate::object::sealed::WRAPPED_BYTES_MAX as u64),
        ("OBJECT_VERSION", super::object::OBJECT_VERSION.into()),
        ("MANIFEST_VERSION", super::MANIFEST_VERSION.into()),
        ("FRAME_SLOTS", super::object::FRAME_SLOTS as u64),
        ("OBJECT_BYTES_MAX", crate::object::OBJECT_BYTES_MAX),
        ("OBJECT_DIRECTORY_MAX", limits::OBJECT_DIRECTORY_MAX.into()),
        ("OBJECT_RANGES_MAX", limits::OBJECT_RANGES_MAX.into()),
        ("MANIFEST_BYTES_MAX", limits::MANIFEST_BYTES_MAX as u64),
        ("MANIFEST_WINDOW_LOG_MAX", limits::MANIFEST_WINDOW_LOG_MAX.into()),
    ];
    for (name, value) in ours {
        let row = format!("| `{name}` | {value} |");
        assert!(DOCUMENT.contains(&row), "docs/FORMAT.md should have a row beginning {row}");
    }
}

/// Every single-byte change of every protected structure is noticed.
#[test]
fn every_flipped_byte_is_noticed() {
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 0x41;
        bytes
    };
    let Batch { volume, addr, previous_crc, .. } = batch();
    let next = Identity { volume, epoch: Some(3), addr, previous_crc };
    for at in 0..limits::BLOCK {
        assert!(Superblock::decode(&flipped(&superblock().encode(), at)).is_err(), "superblock byte {at}");
        assert!(!matches!(SegmentHeader::decode(&flipped(&packed().encode(), at)), Ok(Some(_))), "header byte {at}");
        assert!(!matches!(Batch::decode(&flipped(&batch().encode().0, at), &next), Ok(Some(_))), "batch byte {at}");
        assert!(verify(&flipped(&page(), at), page_addr()).is_err(), "map page byte {at}");
        let directory = flipped(&encode_directory_page(SegmentId(4), 1, &[1, 2, 3]), at);
        assert!(verify_directory_page(&directory, SegmentId(4), 1).is_err(), "directory byte {at}");
    }
}

/// Anchors of every version so far are read; a newer one is refused as what it is.
#[test]
fn an_anchor_says_which_version_it_needs() {
    // Before version 3 an anchor did not say what its volumes descend from, before version 4 not which are read-only.
    let expected = |version: u8| {
        let mut old = anchor();
        old.volumes[0].read_only &= version >= 4;
        if version < 3 {
            old.volumes[0].origins.clear();
            old.volumes[0].durability = Durability::Local;
        }
        old
    };
    let of_version = |version: u8| {
        let mut copy = expected(version).encode();
        copy.truncate(copy.len() / 2);
        if version < 4 {
            let counters = [4, 0, 0, 0, 2, 0, 0, 0];
            let origins = copy.windows(8).position(|bytes| bytes == counters).unwrap() + 8;
            let unknown = if version < 3 { origins..origins + 9 } else { origins + 24..origins + 25 };
            copy.drain(unknown);
            let body = copy.len() as u64 - 24;
            copy[16..24].copy_from_slice(&body.to_le_bytes());
        }
        copy[8] = version;
        super::codec::seal_checksum(&mut copy, 12);
        Anchor::decode(&copy.repeat(2))
    };
    for version in 1..=super::ANCHOR_VERSION as u8 {
        assert_eq!(of_version(version).unwrap(), expected(version), "version {version}");
    }
    for version in [0, super::ANCHOR_VERSION as u8 + 1] {
        let e = of_version(version).unwrap_err();
        let both = [format!("version {version}"), format!("reads 1 to {}", super::ANCHOR_VERSION)];
        assert!(e.kind() == crate::ErrorKind::Invalid && both.iter().all(|text| e.to_string().contains(text)), "{e}");
    }
}

/// One damaged byte anywhere in an anchor file costs nothing; damage to both copies is noticed.
#[test]
fn an_anchor_survives_the_damage_of_either_copy() {
    let whole = anchor().encode();
    let half = whole.len() / 2;
    for at in 0..half {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        assert_eq!(Anchor::decode(&bytes).unwrap(), anchor(), "byte {at} of the first copy");
        bytes[half + at] ^= 0x41;
        assert!(Anchor::decode(&bytes).is_err(), "byte {at} of both copies");
    }
    for len in [0, 1, 23, half, whole.len() - 1] {
        assert!(Anchor::decode(&whole[..len]).is_err(), "cut to {len} bytes");
    }
}
