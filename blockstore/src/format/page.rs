//! Map pages: blocks that hold encoded map nodes, read in place.
//!
//! Sparse nodes cost what they hold: a bitmap says which of the 64 entries are present, 5 bytes
//! each in leaves, 8 in inner nodes. Twelve full leaves share a page.

#![expect(clippy::arithmetic_side_effects, reason = "sums of constants and of numbers below 2^17 cannot overflow")]

use super::codec::{checksum_without, seal_checksum, Append};
use crate::error::{Error, Result};
use crate::limits::BLOCK;
use crate::map::{Ref, FANOUT};
use crate::types::SlotAddr;

const MAGIC: u32 = u32::from_le_bytes(*b"CMAP");
const CRC_AT: usize = 4;
const COUNT_AT: usize = 16;
const TABLE_AT: usize = COUNT_AT + size_of::<u16>();
/// Most nodes one page holds.
pub const NODES_MAX: usize = 120;
const NODE_HEADER: usize = size_of::<u8>() + size_of::<u64>();
/// The largest node fits an empty page.
const _: () = assert!(TABLE_AT + 2 + NODE_HEADER + 8 * FANOUT <= BLOCK);

/// Bytes of an entry: a slot address in leaves, a reference elsewhere.
fn width(level: u8) -> usize {
    if level == 0 {
        5
    } else {
        8
    }
}

/// Collects nodes until a page is full.
#[derive(Default)]
pub struct PageBuilder {
    body: Vec<u8>,
    starts: Vec<u16>,
}

impl PageBuilder {
    /// Adds a node and returns its place in the page, or `None` when it no longer fits.
    pub fn push(&mut self, level: u8, entries: &[u64; FANOUT]) -> Option<u8> {
        let present = entries.iter().filter(|e| **e != 0).count();
        let used = TABLE_AT + 2 * (self.starts.len() + 1) + self.body.len();
        if used + NODE_HEADER + present * width(level) > BLOCK || self.starts.len() == NODES_MAX {
            return None;
        }
        self.starts.push(self.body.len() as u16);
        self.body.put_u8(level);
        let bitmap = entries.iter().enumerate().fold(0u64, |map, (i, e)| map | u64::from(*e != 0) << i);
        self.body.put_u64(bitmap);
        for entry in entries.iter().filter(|e| **e != 0) {
            if level == 0 {
                self.body.put_u40(*entry);
            } else {
                self.body.put_u64(*entry);
            }
        }
        Some((self.starts.len() - 1) as u8)
    }

    /// Nodes so far.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// The finished block, to be written at `addr`; the builder is empty again.
    pub fn finish(&mut self, addr: SlotAddr) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK);
        out.put_u32(MAGIC);
        out.put_u32(0);
        out.put_u64(addr.0);
        out.put_u16(self.starts.len() as u16);
        let base = TABLE_AT + 2 * self.starts.len();
        self.starts.iter().for_each(|start| out.put_u16(base as u16 + start));
        out.extend_from_slice(&self.body);
        out.resize(BLOCK, 0);
        seal_checksum(&mut out, CRC_AT);
        *self = Self::default();
        out
    }
}

/// Verifies that `bytes` are the map page of `addr`.
pub fn verify(bytes: &[u8], addr: SlotAddr) -> Result<()> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let own = bytes.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let crc = checksum_without(bytes, CRC_AT);
    if bytes.len() != BLOCK || word(0) != Some(MAGIC) || own != Some(addr.0) || word(CRC_AT) != Some(crc) {
        return Err(Error::corrupt(format!("map page at {addr} is damaged")));
    }
    Ok(())
}

/// A node read in place from a verified page.
#[derive(Clone, Copy)]
pub struct NodeView<'a> {
    level: u8,
    bitmap: u64,
    entries: &'a [u8],
}

impl<'a> NodeView<'a> {
    /// Node `index` of a verified `page`.
    pub fn of(page: &'a [u8], index: u8) -> Result<Self> {
        Self::at(page, index).ok_or_else(|| Error::corrupt(format!("a map page has no node {index}")))
    }

    fn at(page: &'a [u8], index: u8) -> Option<Self> {
        let word = |at: usize| Some(usize::from(u16::from_le_bytes(page.get(at..at + 2)?.try_into().ok()?)));
        if usize::from(index) >= word(COUNT_AT)? {
            return None;
        }
        let node = page.get(word(TABLE_AT + 2 * usize::from(index))?..)?;
        let level = *node.first()?;
        let bitmap = u64::from_le_bytes(node.get(1..NODE_HEADER)?.try_into().ok()?);
        let len = bitmap.count_ones() as usize * width(level);
        let entries = node.get(NODE_HEADER..)?.get(..len)?;
        Some(Self { level, bitmap, entries })
    }

    /// Entry `i`, by its place among those present; 0 when absent.
    fn entry(&self, i: usize) -> u64 {
        if i >= FANOUT || self.bitmap >> i & 1 == 0 {
            return 0;
        }
        let rank = (self.bitmap & ((1u64 << i) - 1)).count_ones() as usize;
        let width = width(self.level);
        let mut word = [0; 8];
        if let Some(bytes) = self.entries.get(rank * width..(rank + 1) * width) {
            word.iter_mut().zip(bytes).for_each(|(w, b)| *w = *b);
        }
        u64::from_le_bytes(word)
    }

    fn expect(&self, leaf: bool) -> Result<()> {
        if leaf == (self.level == 0) {
            return Ok(());
        }
        Err(Error::corrupt(format!("a map node of level {} stands where another level belongs", self.level)))
    }

    /// The slot address of block `i` of a leaf; 0 for a hole.
    pub fn slot(&self, i: usize) -> Result<u64> {
        self.expect(true)?;
        Ok(self.entry(i))
    }

    /// Child `i` of an inner node.
    pub fn child(&self, i: usize) -> Result<Ref> {
        self.expect(false)?;
        Ref::from_stored(self.entry(i))
    }

    /// All entries of a node that is expected at `level`: slot addresses in leaves, [`Ref`] bits elsewhere.
    pub fn entries(&self, level: u8) -> Result<Box<[u64; FANOUT]>> {
        if level != self.level {
            return Err(Error::corrupt(format!("a map node of level {} stands where {level} belongs", self.level)));
        }
        let mut out = Box::new([0; FANOUT]);
        for (i, entry) in out.iter_mut().enumerate() {
            *entry = if level == 0 { self.entry(i) } else { Ref::from_stored(self.entry(i))?.bits() };
        }
        Ok(out)
    }
}
