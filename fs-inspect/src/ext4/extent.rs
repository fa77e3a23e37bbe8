//! Where a file's blocks are: extent trees, and the block pointers of ext2 and ext3.
//!
//! Invariants: a tree is at most `EXTENT_DEPTH_MAX` deep, each level less than the one above it, so a walk ends; what is
//! mapped lies inside the file system, or reading it fails.

use super::block::Blocks;
use super::inode::Node;
use super::superblock::checksum;
use crate::le;
use crate::limits::EXTENT_DEPTH_MAX;
use crate::tree::TreeError;
use std::sync::Arc;

const MAGIC: u16 = 0xf30a;
const HEADER: usize = 12;
const ENTRY: usize = 12;
/// Longer ones are allocated, and never written.
const LENGTH_WRITTEN_MAX: u16 = 0x8000;

/// Blocks of a file that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first, or nothing: a hole, or never written.
    pub from: Option<u64>,
    /// How many; never 0.
    pub blocks: u64,
}

/// A hole up to the end of what can be numbered.
const REST: u64 = 1 << 32;

fn damaged(node: &Node, what: &str) -> TreeError {
    TreeError::Damaged(format!("inode {}: {what}", node.number))
}

/// The bytes of a node of the tree: in the inode, or in a block.
enum Bytes<'a> {
    Inode(&'a [u8]),
    Block(Arc<Vec<u8>>),
}

impl Bytes<'_> {
    fn all(&self) -> &[u8] {
        match self {
            Self::Inode(bytes) => bytes,
            Self::Block(bytes) => bytes,
        }
    }
}

/// Looks `block` up in an extent tree.
pub fn by_extents(blocks: &Blocks, node: &Node, block: u64) -> Result<Mapping, TreeError> {
    let Ok(wanted) = u32::try_from(block) else { return Ok(Mapping { from: None, blocks: REST }) };
    let mut bytes = Bytes::Inode(node.body());
    let (mut depth, mut limit) = (le::u16(node.body(), 6), REST);
    if depth > EXTENT_DEPTH_MAX {
        return Err(damaged(node, "its extent tree is too deep"));
    }
    loop {
        let all = bytes.all();
        let (count, room) = (usize::from(le::u16(all, 2)), usize::from(le::u16(all, 4)));
        if le::u16(all, 0) != MAGIC || le::u16(all, 6) != depth || count > room || HEADER + ENTRY * room > all.len() {
            return Err(damaged(node, "a node of its extent tree is none"));
        }
        let entry = |index: usize| all.get(HEADER + ENTRY * index..HEADER + ENTRY * (index + 1)).unwrap_or_default();
        let first = |index: usize| le::u32(entry(index), 0);
        // The last that begins at or before it; what begins behind it ends a hole.
        let (mut behind, mut end) = (0, count);
        while behind < end {
            let middle = behind + (end - behind) / 2;
            match first(middle) <= wanted {
                true => behind = middle + 1,
                false => end = middle,
            }
        }
        if behind < count {
            limit = limit.min(u64::from(first(behind)));
        }
        let Some(index) = behind.checked_sub(1) else { return hole(node, wanted, limit) };
        let entry = entry(index);
        if depth == 0 {
            let (start, len) = (first(index), le::u16(entry, 4));
            let written = len <= LENGTH_WRITTEN_MAX;
            let len = u64::from(if written { len } else { len - LENGTH_WRITTEN_MAX });
            let skip = u64::from(wanted - start);
            if skip >= len {
                return hole(node, wanted, limit);
            }
            let from = u64::from(le::u32(entry, 8)) | u64::from(le::u16(entry, 6)) << 32;
            let blocks = (len - skip).min(limit.saturating_sub(wanted.into()).max(1));
            return Ok(Mapping { from: written.then_some(from + skip), blocks });
        }
        let child = u64::from(le::u32(entry, 4)) | u64::from(le::u16(entry, 8)) << 32;
        let held = blocks.get(child)?;
        verify(node, &held)?;
        (bytes, depth) = (Bytes::Block(held), depth - 1);
    }
}

fn hole(node: &Node, wanted: u32, limit: u64) -> Result<Mapping, TreeError> {
    let blocks = limit.checked_sub(wanted.into()).filter(|blocks| *blocks > 0);
    blocks.map(|blocks| Mapping { from: None, blocks }).ok_or_else(|| damaged(node, "its extents are out of order"))
}

fn verify(node: &Node, block: &[u8]) -> Result<(), TreeError> {
    let Some(seed) = node.seed else { return Ok(()) };
    let tail = HEADER + ENTRY * usize::from(le::u16(block, 4));
    let matches = block.get(..tail).is_some_and(|own| checksum(seed, own) == le::u32(block, tail));
    matches.then_some(()).ok_or_else(|| damaged(node, "the checksum of a node of its extent tree does not match"))
}

/// Looks `block` up in the twelve pointers of the inode and the three trees behind them.
pub fn by_pointers(blocks: &Blocks, node: &Node, block: u64) -> Result<Mapping, TreeError> {
    let each = blocks.size() / 4;
    if block < 12 {
        return Ok(run(node.body(), block as usize, 12));
    }
    let (mut at, mut span) = (block - 12, each);
    for level in 1..=3usize {
        if at < span {
            let mut pointer = u64::from(le::u32(node.body(), 4 * (11 + level)));
            for _ in 0..level {
                if pointer == 0 {
                    return Ok(Mapping { from: None, blocks: span - at % span });
                }
                span /= each;
                let (index, held) = (at / span, blocks.get(pointer)?);
                if span == 1 {
                    return Ok(run(&held, index as usize, each as usize));
                }
                (pointer, at) = (u64::from(le::u32(&held, 4 * index as usize)), at % span);
            }
        }
        at = at.saturating_sub(span);
        span = span.saturating_mul(each);
    }
    Ok(Mapping { from: None, blocks: REST })
}

/// Pointers from `index` on that follow one another, or are all nothing.
fn run(pointers: &[u8], index: usize, end: usize) -> Mapping {
    let pointer = |index: usize| u64::from(le::u32(pointers, 4 * index));
    let first = pointer(index);
    let step = u64::from(first != 0);
    let follows = |(n, index): &(u64, usize)| pointer(*index) == first + n * step;
    let count = (0..).zip(index..end).take_while(follows).count() as u64;
    Mapping { from: (first != 0).then_some(first), blocks: count.max(1) }
}
