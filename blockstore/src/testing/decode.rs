//! Any bytes through every decoder of the format: for the fuzzer and the replay of its corpus.
//!
//! What must hold: no panic, no allocation beyond a small multiple of the input's own size, and whatever is accepted
//! is the same after being encoded and decoded again.

use crate::format::anchor::Anchor;
use crate::format::batch::{Batch, Identity};
use crate::format::codec::{seal_checksum, Append, Reader};
use crate::format::manifest::{manifest_key, Manifest};
use crate::format::object::{open_frame, present, Directory, Frame, ObjectId, FRAME_SLOTS};
use crate::format::page::{self, NodeView};
use crate::format::record::Record;
use crate::format::renumbering::Renumbering;
use crate::format::segment::{self, SegmentHeader};
use crate::format::superblock::Superblock;
use crate::format::MANIFEST_VERSION;
use crate::limits::{BLOCK, CRCS_PER_PAGE};
use crate::map::FANOUT;
use crate::types::{SegmentId, SlotAddr, VolumeId};

/// Decodes `input`. Its first byte chooses the structure, and in its top bit whether the checksum is
/// set right first, without which nearly everything ends at the checksum.
pub fn decode(input: &[u8]) {
    let Some((choice, bytes)) = input.split_first() else { return };
    let seal = choice & 0x80 != 0;
    match choice & 0x7f {
        0 => superblock(&block(bytes, seal.then_some(12))),
        1 => header(&block(bytes, seal.then_some(8))),
        2 => directory(&block(bytes, seal.then_some(8))),
        3 => batch(&block(bytes, seal.then_some(8))),
        4 => map_page(&block(bytes, seal.then_some(4))),
        5 => anchor(bytes, seal),
        7 => object_directory(bytes, seal),
        8 => frame(bytes),
        9 => renumbered_page(bytes, seal),
        10 => manifest(bytes, seal),
        11 => manifest_body(bytes),
        _ => record(bytes),
    }
}

fn block(bytes: &[u8], checksum_at: Option<usize>) -> Vec<u8> {
    let mut block = bytes.to_vec();
    block.resize(BLOCK, 0);
    checksum_at.map(|at| seal_checksum(&mut block, at));
    block
}

fn superblock(bytes: &[u8]) {
    if let Ok(found) = Superblock::decode(bytes) {
        assert_eq!(Superblock::decode(&found.encode()).ok(), Some(found));
    }
}

fn header(bytes: &[u8]) {
    if let Ok(Some(found)) = SegmentHeader::decode(bytes) {
        assert_eq!(SegmentHeader::decode(&found.encode()).ok().flatten(), Some(found));
    }
}

fn directory(bytes: &[u8]) {
    for at in [4, 12, 16, 20] {
        for page in 0..4 {
            if segment::verify_directory_page(bytes, SegmentId(number(bytes, at, 4) as u32), page).is_ok() {
                assert!(segment::directory_crc(bytes, CRCS_PER_PAGE as usize).is_none());
            }
        }
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.iter().skip(at).take(len).rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn batch(bytes: &[u8]) {
    // The header is expected to be what it says of itself: else no more of it would be read.
    let expected = Identity {
        volume: VolumeId(number(bytes, 16, 8)),
        epoch: None,
        addr: SlotAddr(number(bytes, 32, 8)),
        previous_crc: number(bytes, 12, 4) as u32,
    };
    if let Ok(Some((found, _))) = Batch::decode(bytes, &expected) {
        let (again, crc) = found.encode();
        assert_eq!(Batch::decode(&again, &expected).ok().flatten(), Some((found, crc)));
        let other = Identity { previous_crc: expected.previous_crc ^ 1, ..expected };
        assert_eq!(Batch::decode(&again, &other).ok().flatten(), None, "a batch of another chain is accepted");
    }
}

fn map_page(bytes: &[u8]) {
    if page::verify(bytes, SlotAddr(number(bytes, 8, 8))).is_err() {
        return;
    }
    for index in 0..=u8::MAX {
        let Ok(node) = NodeView::of(bytes, index) else { continue };
        for level in 0..=16 {
            let Ok(entries) = node.entries(level) else { continue };
            for (i, entry) in entries.iter().enumerate() {
                if level == 0 {
                    assert_eq!(node.slot(i).ok(), Some(*entry));
                } else {
                    assert_eq!(node.child(i).ok().map(|child| child.bits()), Some(*entry));
                }
            }
        }
        let _ = (node.slot(FANOUT), node.child(FANOUT));
    }
}

/// The input is one copy; the file has two.
fn anchor(bytes: &[u8], seal: bool) {
    const HEADER: usize = 24;
    let mut copy = bytes.to_vec();
    if seal {
        let body = (bytes.len().saturating_sub(HEADER) as u64).to_le_bytes();
        copy.iter_mut().skip(16).zip(body).for_each(|(place, byte)| *place = byte);
        seal_checksum(&mut copy, 12);
    }
    if let Ok(found) = Anchor::decode(&[&copy[..], &copy].concat()) {
        assert_eq!(Anchor::decode(&found.encode()).ok(), Some(found));
    }
}

/// The object is named as it names itself: else nothing of it would be read.
pub(super) fn object_directory(bytes: &[u8], seal: bool) {
    let mut bytes = bytes.to_vec();
    if seal {
        let len = (bytes.len() as u32).to_le_bytes();
        bytes.iter_mut().skip(16).zip(len).for_each(|(place, byte)| *place = byte);
        seal_checksum(&mut bytes, 12);
    }
    let mut pool = [0; 16];
    pool.iter_mut().zip(bytes.iter().skip(24)).for_each(|(to, from)| *to = *from);
    let id = ObjectId { pool, volume: VolumeId(number(&bytes, 40, 8)), number: number(&bytes, 48, 8) };
    let Ok(found) = Directory::decode(&bytes, &id) else { return };
    for range in &found.ranges {
        let slots = present(&range.bits);
        assert!(slots.iter().enumerate().all(|(rank, slot)| range.rank(*slot) == Some(rank)));
        assert_eq!((range.rank(range.end), range.frames.len()), (None, slots.len().div_ceil(FRAME_SLOTS)));
        assert_eq!(range.frames.iter().map(|frame| frame.slots).sum::<usize>(), slots.len());
    }
    assert!(found.object_len() >= u64::from(found.len));
    let again = found.encode();
    let expected = Directory { len: again.len() as u32, ..found.clone() };
    let again = Directory::decode(&again, &id).expect("what was read can be written and read");
    // A bitmap may have been stored in a longer form than it needs: then frames lie elsewhere.
    if expected.len == found.len {
        assert_eq!(again, found);
    } else {
        assert_eq!((again.len, again.object_len() < found.object_len()), (expected.len, expected.len < found.len));
    }
}

/// The first byte says how many slots are expected, and whether they are stored as they are.
pub(super) fn frame(bytes: &[u8]) {
    let Some((first, stored)) = bytes.split_first() else { return };
    let slots = usize::from(first & 0x0f) + 1;
    let frame = Frame { offset: 0, len: stored.len() as u32, raw: first & 0x80 != 0, slots };
    let object = ObjectId { pool: [0; 16], volume: VolumeId(0), number: 0 };
    if let Ok(opened) = open_frame(&frame, stored, &object) {
        assert_eq!(opened.len(), slots * BLOCK);
    }
}

/// A page whose segments have numbers here as the first twelve bytes say.
pub(super) fn renumbered_page(bytes: &[u8], seal: bool) {
    let Some((numbers, bytes)) = bytes.split_first_chunk::<12>() else { return };
    let mut runs = Vec::new();
    runs.put_u32(1);
    runs.extend_from_slice(numbers);
    let Ok(numbers) = Renumbering::decode(&mut Reader::new(&runs, "runs")) else { return };
    let page = block(bytes, seal.then_some(4));
    let mut moved = page.clone();
    if page::verify(&page, SlotAddr(number(&page, 8, 8))).is_err() || page::renumber(&mut moved, &numbers).is_err() {
        return;
    }
    const ADDRESS: u64 = (1 << SlotAddr::BITS) - 1;
    for index in 0..=u8::MAX {
        let (Ok(before), Ok(after)) = (NodeView::of(&page, index), NodeView::of(&moved, index)) else { continue };
        for level in 0..=16 {
            let (Ok(before), Ok(after)) = (before.entries(level), after.entries(level)) else { continue };
            let hole = |entry: u64| if level == 0 { entry == 0 } else { entry >> 62 == 0 };
            let here =
                |entry: u64| numbers.addr(SlotAddr(entry & ADDRESS)).expect("there is a run").0 | entry & !ADDRESS;
            let expected = before.map(|entry| if hole(entry) { entry } else { here(entry) });
            assert!(*after == expected, "node {index}, level {level}");
        }
    }
}

pub(super) fn manifest(bytes: &[u8], seal: bool) {
    let mut bytes = bytes.to_vec();
    if seal {
        seal_checksum(&mut bytes, 12);
    }
    assert!(Manifest::decode(&bytes, "volumes/of no volume").is_err());
}

pub(super) fn manifest_body(bytes: &[u8]) {
    let Ok(found) = Manifest::from_body(bytes, MANIFEST_VERSION) else { return };
    let again = found.encode().expect("what was read can be written");
    let key = manifest_key(&found.name, found.number);
    assert_eq!(Manifest::decode(&again, &key).ok(), Some(found));
}

fn record(bytes: &[u8]) {
    if let Ok(found) = Record::decode(&mut Reader::new(bytes, "record")) {
        let mut again = Vec::new();
        found.encode(&mut again);
        assert_eq!(Record::decode(&mut Reader::new(&again, "record")).ok(), Some(found));
    }
}
