//! A journal that was not replayed: what it holds, for reading in place of older blocks.
//!
//! Invariants
//!   * only transactions that were committed count, in their order, and only up to the first that does not verify;
//!   * a block that a later transaction revoked is not replayed from an earlier one;
//!   * memory is bounded by the journal's length, and that by `JOURNAL_BLOCKS_MAX`.

use super::block::{Blocks, Replayed};
use super::inode::Node;
use super::superblock::checksum;
use crate::le::{be16, be32};
use crate::limits::JOURNAL_BLOCKS_MAX;
use crate::tree::TreeError;
use std::collections::{BTreeMap, HashMap};

pub const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;
const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const INCOMPAT_KNOWN: u32 = 0x1 | INCOMPAT_64BIT | 0x4 | INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3 | INCOMPAT_FAST_COMMIT;
const FAST_COMMIT_BLOCKS: u32 = 256;
const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

fn damaged(what: &str) -> TreeError {
    TreeError::Damaged(format!("its journal: {what}"))
}

struct Journal<'a> {
    blocks: &'a Blocks,
    node: Node,
    features: u32,
    /// Where checksums begin, if there are any.
    seed: Option<u32>,
    first: u32,
    end: u32,
}

/// A block that a transaction wrote.
struct Tag {
    block: u64,
    replayed: Replayed,
}

/// What one transaction did.
#[derive(Default)]
struct Transaction {
    tags: Vec<Tag>,
    revoked: Vec<u64>,
}

/// What counts in place of older blocks.
pub fn replay(blocks: &Blocks) -> Result<BTreeMap<u64, Replayed>, TreeError> {
    if blocks.superblock.journal == 0 {
        return Err(TreeError::Unsupported("a journal on another device, which was not replayed".to_owned()));
    }
    let node = Node::read(blocks, blocks.superblock.journal.into())?;
    let mut head = vec![0; 1024];
    if node.read_at(blocks, 0, &mut head)? < head.len() || be32(&head, 0) != MAGIC {
        return Err(damaged("there is none"));
    }
    let is_v2 = be32(&head, 4) == SUPERBLOCK_V2;
    let (features, start) = (if is_v2 { be32(&head, 0x28) } else { 0 }, be32(&head, 0x1c));
    let (end, first) = (be32(&head, 0x10), be32(&head, 0x14));
    if features & !INCOMPAT_KNOWN != 0 {
        return Err(TreeError::Unsupported(format!("a journal with features {features:#x}")));
    }
    let held = node.size / blocks.size();
    if u64::from(be32(&head, 0xc)) != blocks.size() || end > JOURNAL_BLOCKS_MAX || u64::from(end) > held || first == 0 {
        return Err(damaged("its geometry cannot be"));
    }
    let mut fast = if features & INCOMPAT_FAST_COMMIT != 0 { be32(&head, 0x54) } else { 0 };
    if features & INCOMPAT_FAST_COMMIT != 0 && fast == 0 {
        fast = FAST_COMMIT_BLOCKS;
    }
    let summed = features & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0;
    let seed = summed.then(|| checksum(!0, &head[0x30..0x40]));
    let journal = Journal { blocks, node, features, seed, first, end: end.saturating_sub(fast) };
    if start == 0 {
        return Ok(BTreeMap::new());
    }
    if start < first || start >= journal.end {
        return Err(damaged("it begins outside of itself"));
    }
    journal.collect(start, be32(&head, 0x18))
}

impl Journal<'_> {
    fn read(&self, at: u32) -> Result<(u64, Vec<u8>), TreeError> {
        let from = self.node.map(self.blocks, at.into())?.from.ok_or_else(|| damaged("it has a hole"))?;
        let mut bytes = vec![0; self.blocks.size() as usize];
        self.blocks.read(from, &mut bytes)?;
        Ok((from, bytes))
    }

    fn next(&self, at: u32) -> u32 {
        if at + 1 >= self.end {
            self.first
        } else {
            at + 1
        }
    }

    fn collect(&self, start: u32, sequence: u32) -> Result<BTreeMap<u64, Replayed>, TreeError> {
        let mut done: Vec<Transaction> = Vec::new();
        let (mut at, mut open, mut steps) = (start, Transaction::default(), 0);
        // Each block of it belongs to one transaction.
        while steps < self.end {
            let (_, block) = self.read(at)?;
            let expected = sequence.wrapping_add(done.len() as u32);
            if be32(&block, 0) != MAGIC || be32(&block, 8) != expected {
                break;
            }
            (at, steps) = (self.next(at), steps + 1);
            match be32(&block, 4) {
                DESCRIPTOR if self.is_whole(&block) => {
                    for mut tag in self.tags(&block)? {
                        tag.replayed.from =
                            self.node.map(self.blocks, at.into())?.from.ok_or_else(|| damaged("it has a hole"))?;
                        open.tags.push(tag);
                        (at, steps) = (self.next(at), steps + 1);
                    }
                }
                REVOKE if self.is_whole(&block) => self.revoked(&block, &mut open.revoked),
                COMMIT if self.is_committed(&block) => done.push(std::mem::take(&mut open)),
                _ => break,
            }
        }
        Ok(settle(done))
    }

    /// Whether a descriptor's or a revocation's checksum, at its end, matches.
    fn is_whole(&self, block: &[u8]) -> bool {
        let Some(seed) = self.seed else { return true };
        let tail = block.len() - 4;
        checksum(checksum(seed, &block[..tail]), &[0; 4]) == be32(block, tail)
    }

    fn is_committed(&self, block: &[u8]) -> bool {
        let Some(seed) = self.seed else { return true };
        checksum(checksum(checksum(seed, &block[..0x10]), &[0; 4]), &block[0x14..]) == be32(block, 0x10)
    }

    fn tags(&self, block: &[u8]) -> Result<Vec<Tag>, TreeError> {
        let (mut tags, mut at) = (Vec::new(), 12);
        let end = block.len() - if self.seed.is_some() { 4 } else { 0 };
        let v3 = self.features & INCOMPAT_CSUM_V3 != 0;
        let wide = self.features & INCOMPAT_64BIT != 0;
        let summed = if self.features & INCOMPAT_CSUM_V2 != 0 { 2 } else { 0 };
        let size = match (v3, wide) {
            (true, _) => 16,
            (false, true) => 12 + summed,
            (false, false) => 8 + summed,
        };
        while at + size <= end {
            let flags = if v3 { be32(block, at + 4) } else { be16(block, at + 6).into() };
            let high = if wide { be32(block, at + 8) } else { 0 };
            let number = u64::from(be32(block, at)) | u64::from(high) << 32;
            if number >= self.blocks.superblock.blocks {
                return Err(damaged("it holds a block that lies beyond the file system's end"));
            }
            let replayed = Replayed { from: 0, escaped: flags & TAG_ESCAPED != 0 };
            tags.push(Tag { block: number, replayed });
            at += size + if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(tags)
    }

    fn revoked(&self, block: &[u8], out: &mut Vec<u64>) {
        let used = (be32(block, 12) as usize).min(block.len());
        let wide = self.features & INCOMPAT_64BIT != 0;
        let numbers = block.get(16..used).unwrap_or_default();
        if wide {
            out.extend(numbers.chunks_exact(8).map(|n| u64::from(be32(n, 0)) << 32 | u64::from(be32(n, 4))));
        } else {
            out.extend(numbers.chunks_exact(4).map(|n| u64::from(be32(n, 0))));
        }
    }
}

/// Of each block what was written last, unless it was revoked in the same transaction or later.
fn settle(done: Vec<Transaction>) -> BTreeMap<u64, Replayed> {
    let mut revoked: HashMap<u64, usize> = HashMap::new();
    for (at, transaction) in done.iter().enumerate() {
        revoked.extend(transaction.revoked.iter().map(|block| (*block, at)));
    }
    let mut all = BTreeMap::new();
    for (at, transaction) in done.into_iter().enumerate() {
        for tag in transaction.tags {
            if revoked.get(&tag.block).is_none_or(|last| *last < at) {
                all.insert(tag.block, tag.replayed);
            }
        }
    }
    all
}
