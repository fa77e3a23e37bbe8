//! Directories: read from their first block to their last, whether or not they have an index.
//!
//! An index is skipped: its blocks look like ones without entries. Lookups in directories keep their names.

use super::block::Blocks;
use super::inode::Node;
use super::superblock::checksum;
use crate::le;
use crate::limits::{DIRECTORY_BLOCKS_MAX, NAMES_KEPT};
use crate::tree::{Entry, FileKind, Inode, TreeError};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

const HEADER: usize = 8;
const TAIL: usize = 12;
const TAIL_KIND: u8 = 0xde;
/// Inline directories begin with their parent's number.
const INLINE_PARENT: usize = 4;
/// Bytes of entries in the inode itself; others are in an attribute.
const INLINE_FIRST: usize = 60;

fn damaged(node: &Node, what: &str) -> TreeError {
    TreeError::Damaged(format!("directory {}: {what}", node.number))
}

fn kind(byte: u8) -> Option<FileKind> {
    Some(match byte {
        1 => FileKind::File,
        2 => FileKind::Directory,
        3 => FileKind::Character,
        4 => FileKind::Block,
        5 => FileKind::Fifo,
        6 => FileKind::Socket,
        7 => FileKind::Link,
        _ => return None,
    })
}

/// One entry's place and what it says; `None` for one that is not in use.
struct Raw<'a> {
    len: usize,
    found: Option<(&'a [u8], Inode, Option<FileKind>)>,
}

fn raw<'a>(blocks: &Blocks, node: &Node, region: &'a [u8], at: usize) -> Result<Raw<'a>, TreeError> {
    let bytes = region.get(at..).filter(|bytes| bytes.len() >= HEADER).ok_or_else(|| damaged(node, "it is cut off"))?;
    let len = match le::u16(bytes, 4) {
        // Blocks of 64 KiB.
        0 | 0xffff if region.len() == 1 << 16 => (1 << 16) - at,
        len => usize::from(len),
    };
    let name = usize::from(bytes[6]);
    if len < HEADER || len % 4 != 0 || len > bytes.len() {
        return Err(damaged(node, "an entry does not fit its block"));
    }
    let inode = le::u32(bytes, 0);
    if inode == 0 || bytes[7] == TAIL_KIND && name == 0 {
        return Ok(Raw { len, found: None });
    }
    let name = bytes.get(HEADER..HEADER + name).filter(|name| HEADER + name.len() <= len);
    let name = name.ok_or_else(|| damaged(node, "a name does not fit its entry"))?;
    let kind = if blocks.superblock.filetype { kind(bytes[7]) } else { None };
    Ok(Raw { len, found: Some((name, inode.into(), kind)) })
}

/// Whether whoever walks a tree can join it.
fn is_good(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
}

/// Whether a block is a part of an index, which is not used: an entry without a name, or the one of the parent, covers it up
/// to its end, where names have their checksum. A kernel that makes one out of a block of names leaves that in place.
fn is_index(block: &[u8]) -> bool {
    let covers = |at: usize| match le::u16(block, at + 4) {
        0 | 0xffff if block.len() == 1 << 16 => true,
        len => usize::from(len) == block.len() - at,
    };
    covers(0) || le::u16(block, 4) == TAIL as u16 && covers(TAIL)
}

/// A block of a directory, its checksum verified.
fn block(blocks: &Blocks, node: &Node, index: u64) -> Result<Option<Arc<Vec<u8>>>, TreeError> {
    let Some(from) = node.map(blocks, index)?.from else { return Ok(None) };
    let block = blocks.get(from)?;
    let tail = block.len() - TAIL;
    let has_tail =
        block[tail + 7] == TAIL_KIND && le::u16(&block, tail + 4) == TAIL as u16 && le::u32(&block, tail) == 0;
    if let Some(seed) = node.seed.filter(|_| has_tail && !is_index(&block)) {
        if checksum(seed, &block[..tail]) != le::u32(&block, tail + 8) {
            return Err(damaged(node, "the checksum of a block does not match"));
        }
    }
    Ok(Some(block))
}

/// Hands the entries behind `after` to `each` until it returns `false`.
pub fn entries(blocks: &Blocks, node: &Node, after: u64, each: &mut dyn FnMut(Entry) -> bool) -> Result<(), TreeError> {
    if node.kind != FileKind::Directory {
        return Err(TreeError::WrongKind);
    }
    if node.is_inline() {
        let data = node.inline(blocks)?;
        let middle = INLINE_FIRST.min(data.len());
        for region in [INLINE_PARENT.min(middle)..middle, middle..data.len()] {
            let base = region.start as u64;
            if !region_entries(blocks, node, &data[region], base, after, each)? {
                return Ok(());
            }
        }
        return Ok(());
    }
    let size = blocks.size();
    let (mut index, mut seen) = (after / size, 0);
    while index < node.size.div_ceil(size) {
        let mapping = node.map(blocks, index)?;
        if mapping.from.is_none() {
            index = index.saturating_add(mapping.blocks);
            continue;
        }
        seen += 1;
        if seen > DIRECTORY_BLOCKS_MAX {
            return Err(damaged(node, "it is longer than any"));
        }
        let block = block(blocks, node, index)?.unwrap_or_default();
        if !region_entries(blocks, node, &block, index * size, after, each)? {
            return Ok(());
        }
        index += 1;
    }
    Ok(())
}

/// Entries of one block, which is at `base`; `false` when no more are wanted.
fn region_entries(
    blocks: &Blocks,
    node: &Node,
    region: &[u8],
    base: u64,
    after: u64,
    each: &mut dyn FnMut(Entry) -> bool,
) -> Result<bool, TreeError> {
    let mut at = 0;
    while at + HEADER <= region.len() {
        let raw = raw(blocks, node, region, at)?;
        let (begin, next) = (base + at as u64, base + (at + raw.len) as u64);
        at += raw.len;
        let Some((name, inode, kind)) = raw.found.filter(|(name, ..)| begin >= after && is_good(name)) else {
            continue;
        };
        if !each(Entry { name: name.to_vec(), inode, kind, next }) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The directory that a directory is in.
pub fn parent(blocks: &Blocks, node: &Node) -> Result<Inode, TreeError> {
    if node.kind != FileKind::Directory {
        return Err(TreeError::WrongKind);
    }
    if node.is_inline() {
        return Ok(le::u32(node.body(), 0).into());
    }
    let block = block(blocks, node, 0)?.ok_or_else(|| damaged(node, "it has no first block"))?;
    let second = raw(blocks, node, &block, 0)?.len;
    match raw(blocks, node, &block, second)?.found {
        Some((b"..", parent, _)) => Ok(parent),
        _ => Err(damaged(node, "it does not say what it is in")),
    }
}

#[derive(Default)]
struct Known {
    directories: HashMap<Inode, Arc<HashMap<Vec<u8>, Inode>>>,
    order: VecDeque<Inode>,
    names: usize,
}

/// Names of directories that were looked into lately.
#[derive(Default)]
pub struct Names(Mutex<Known>);

impl Names {
    pub fn lookup(
        &self,
        directory: Inode,
        name: &[u8],
        node: impl FnOnce() -> Result<Node, TreeError>,
        blocks: &Blocks,
    ) -> Result<Inode, TreeError> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).directories.get(&directory).cloned();
        let all = match held {
            Some(all) => all,
            None => self.keep(directory, &node()?, blocks)?,
        };
        all.get(name).copied().ok_or(TreeError::NotFound)
    }

    fn keep(&self, directory: Inode, node: &Node, blocks: &Blocks) -> Result<Arc<HashMap<Vec<u8>, Inode>>, TreeError> {
        let mut all = HashMap::new();
        entries(blocks, node, 0, &mut |entry| {
            all.insert(entry.name, entry.inode);
            all.len() < NAMES_KEPT * 16
        })?;
        let all = Arc::new(all);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut *known;
        if known.directories.insert(directory, all.clone()).is_none() {
            known.order.push_back(directory);
            known.names += all.len();
        }
        while known.names > NAMES_KEPT && known.order.len() > 1 {
            let oldest = known.order.pop_front();
            let gone = oldest.and_then(|oldest| known.directories.remove(&oldest));
            known.names -= gone.map_or(0, |gone| gone.len());
        }
        Ok(all)
    }
}
