//! Any bytes through every decoder of the format: for the fuzzer and the replay of its corpus.
//!
//! What must hold: no panic, no allocation beyond the input's own size, and whatever is accepted is
//! the same after being encoded and decoded again.

use crate::format::anchor::Anchor;
use crate::format::batch::Batch;
use crate::format::codec::{seal_checksum, Reader};
use crate::format::page::{self, NodeView};
use crate::format::record::Record;
use crate::format::segment::{self, SegmentHeader};
use crate::format::superblock::Superblock;
use crate::limits::{BLOCK, CRCS_PER_PAGE};
use crate::map::FANOUT;
use crate::types::{SegmentId, SlotAddr};

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
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    for at in [4, 12, 16, 20] {
        for page in 0..4 {
            if segment::verify_directory_page(bytes, SegmentId(word(at)), page).is_ok() {
                assert!(segment::directory_crc(bytes, CRCS_PER_PAGE as usize).is_none());
            }
        }
    }
}

fn batch(bytes: &[u8]) {
    if let Ok(Some((found, _))) = Batch::decode(bytes) {
        let (again, crc) = found.encode();
        assert_eq!(Batch::decode(&again).ok().flatten(), Some((found, crc)));
    }
}

fn map_page(bytes: &[u8]) {
    let own = bytes.get(8..16).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    if page::verify(bytes, SlotAddr(own)).is_err() {
        return;
    }
    for index in 0..=u8::MAX {
        let Ok(node) = NodeView::of(bytes, index) else { continue };
        let entries = node.entries();
        (0..=FANOUT).for_each(|i| assert_eq!(entries.get(i).copied().unwrap_or(0), node.entry(i)));
    }
}

fn anchor(bytes: &[u8], seal: bool) {
    const HEADER: usize = 24;
    let mut bytes = bytes.to_vec();
    if let (true, Some(body)) = (seal, bytes.get(HEADER..).map(<[u8]>::to_vec)) {
        for (at, field) in [(12, &crc32fast::hash(&body).to_le_bytes()[..]), (16, &(body.len() as u64).to_le_bytes())] {
            if let Some(place) = bytes.get_mut(at..at + field.len()) {
                place.copy_from_slice(field);
            }
        }
    }
    if let Ok(found) = Anchor::decode(&bytes) {
        assert_eq!(Anchor::decode(&found.encode()).ok(), Some(found));
    }
}

fn record(bytes: &[u8]) {
    if let Ok(found) = Record::decode(&mut Reader::new(bytes, "record")) {
        let mut again = Vec::new();
        found.encode(&mut again);
        assert_eq!(Record::decode(&mut Reader::new(&again, "record")).ok(), Some(found));
    }
}
