//! Map pages: blocks that hold encoded map nodes, read in place.
//!
//! Sparse nodes cost what they hold: a bitmap says which of the 64 entries are present, 5 bytes
//! each in leaves, 8 in inner nodes. Twelve full leaves share a page.

use super::codec::{checksum_without, seal_checksum, Append};
use crate::error::{Error, Result};
use crate::limits::BLOCK;
use crate::map::{Ref, FANOUT};
use crate::types::SlotAddr;

const MAGIC: u32 = u32::from_le_bytes(*b"CMAP");
const CRC_AT: usize = 4;
const TABLE_AT: usize = 18;
/// Most nodes one page holds.
pub const NODES_MAX: usize = 120;
const NODE_HEADER: usize = 9;

/// Collects nodes until a page is full.
#[derive(Default)]
pub struct PageBuilder {
    body: Vec<u8>,
    starts: Vec<u16>,
}

impl PageBuilder {
    /// Adds a node and returns its place in the page, or `None` when it no longer fits.
    pub fn push(&mut self, level: u8, entries: &[u64; FANOUT]) -> Option<u8> {
        let width = if level == 0 { 5 } else { 8 };
        let present = entries.iter().filter(|e| **e != 0).count();
        let used = TABLE_AT + 2 * (self.starts.len() + 1) + self.body.len();
        if used + NODE_HEADER + present * width > BLOCK || self.starts.len() == NODES_MAX {
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
        return Err(Error::corrupt(format!("map page at {addr} is damaged: run cairn check")));
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
        let broken = || Error::corrupt(format!("map page has no node {index}"));
        let at = TABLE_AT + 2 * usize::from(index);
        let start = page.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes).ok_or_else(broken)?;
        let node = page.get(usize::from(start)..).ok_or_else(broken)?;
        let level = *node.first().ok_or_else(broken)?;
        let bitmap = node.get(1..9).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).ok_or_else(broken)?;
        let width = if level == 0 { 5 } else { 8 };
        let entries = node.get(9..9 + bitmap.count_ones() as usize * width).ok_or_else(broken)?;
        Ok(Self { level, bitmap, entries })
    }

    /// Entry `i`: a slot address in leaves, [`Ref`] bits elsewhere; 0 when absent.
    pub fn entry(&self, i: usize) -> u64 {
        if i >= FANOUT || self.bitmap >> i & 1 == 0 {
            return 0;
        }
        let rank = (self.bitmap & ((1u64 << i) - 1)).count_ones() as usize;
        let width = if self.level == 0 { 5 } else { 8 };
        let mut word = [0; 8];
        match self.entries.get(rank * width..(rank + 1) * width) {
            Some(bytes) => word.iter_mut().zip(bytes).for_each(|(w, b)| *w = *b),
            None => return 0,
        }
        u64::from_le_bytes(word)
    }

    /// All entries.
    pub fn entries(&self) -> Box<[u64; FANOUT]> {
        let mut out = Box::new([0; FANOUT]);
        out.iter_mut().enumerate().for_each(|(i, e)| *e = self.entry(i));
        out
    }

    /// Entry `i` of an inner node.
    pub fn child(&self, i: usize) -> Ref {
        Ref::from_bits(self.entry(i))
    }
}
