//! Map pages: blocks that hold encoded map nodes, read in place.
//!
//! Nodes cost what they hold: a bitmap says which of the 64 entries are present. Inner nodes store
//! 8 bytes for each, leaves its difference from the smallest address in as many bits as the largest
//! needs: blocks that were written about the same time lie near one another. A leaf that has all its
//! entries needs no bitmap. Sixteen full leaves share a page where addresses differ by up to 30 bits.
//!
//! Leaves of format version 1, 5 bytes for each entry, are read for ever and no longer written.

#![expect(clippy::arithmetic_side_effects, reason = "sums of constants and of numbers below 2^41 cannot overflow")]

use super::bits::{self, Packed};
use super::codec::{checksum_without, seal_checksum, Append};
use super::renumbering::Renumbering;
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

/// In the place of the level: a leaf of addresses in few bits.
const DENSE: u8 = 0x80;
/// The same without a bitmap: every entry is present.
const DENSE_FULL: u8 = 0xc0;
const KIND: usize = size_of::<u8>();
const BITMAP: usize = size_of::<u64>();
/// Smallest address and number of bits.
const FRAME: usize = 5 + size_of::<u8>();
/// Bits of an entry: of an address at most, of a reference always.
const ADDRESS_BITS: u32 = SlotAddr::BITS;
const REF_BITS: u32 = u64::BITS;

/// The largest nodes fit an empty page, and a packed address the eight bytes in which it begins.
const _: () = {
    assert!(TABLE_AT + 2 + KIND + BITMAP + 8 * FANOUT <= BLOCK);
    assert!(TABLE_AT + 2 + KIND + BITMAP + FRAME + 5 * FANOUT <= BLOCK);
    assert!(ADDRESS_BITS + 7 <= u64::BITS && NODES_MAX <= u8::MAX as usize);
};

/// Collects nodes until a page is full.
#[derive(Default)]
pub struct PageBuilder {
    body: Vec<u8>,
    starts: Vec<u16>,
}

impl PageBuilder {
    /// Adds a node and returns its place in the page, or `None` when it no longer fits.
    pub fn push(&mut self, level: u8, entries: &[u64; FANOUT]) -> Option<u8> {
        let bitmap = entries.iter().enumerate().fold(0u64, |map, (i, e)| map | u64::from(*e != 0) << i);
        let present = || entries.iter().copied().filter(|e| *e != 0);
        let count = bitmap.count_ones() as usize;
        if level > 0 {
            let place = self.begin(KIND + BITMAP + 8 * count)?;
            self.body.put_u8(level);
            self.body.put_u64(bitmap);
            present().for_each(|entry| self.body.put_u64(entry));
            return Some(place);
        }
        let (base, last) = present().fold((u64::MAX, 0), |(low, high), e| (low.min(e), high.max(e)));
        let base = base.min(last);
        debug_assert!(last >> ADDRESS_BITS == 0, "a slot address has 40 bits");
        let width = u64::BITS - (last - base).leading_zeros();
        let full = bitmap == u64::MAX;
        let place = self.begin(KIND + if full { 0 } else { BITMAP } + FRAME + bits::bytes(count, width))?;
        self.body.put_u8(if full { DENSE_FULL } else { DENSE });
        if !full {
            self.body.put_u64(bitmap);
        }
        self.body.put_u40(base);
        self.body.put_u8(width as u8);
        bits::pack(present().map(|e| e - base), width, &mut self.body);
        Some(place)
    }

    /// Adds a node of another page as it is; like [`PageBuilder::push`].
    pub fn push_copy(&mut self, node: &NodeView<'_>) -> Option<u8> {
        let place = self.begin(node.bytes.len())?;
        self.body.extend_from_slice(node.bytes);
        Some(place)
    }

    /// Begins a node of `len` bytes.
    fn begin(&mut self, len: usize) -> Option<u8> {
        let used = TABLE_AT + 2 * (self.starts.len() + 1) + self.body.len();
        if used + len > BLOCK || self.starts.len() == NODES_MAX {
            return None;
        }
        self.starts.push(self.body.len() as u16);
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

/// Gives every address in a verified page of another pool the number that its segment has here. The page's checksum
/// no longer holds. Nodes that overlap, which no writer makes, would be moved twice: they are damage.
pub fn renumber(page: &mut [u8], numbers: &Renumbering) -> Result<()> {
    let moved = |stored: u64| {
        let addr = Some(SlotAddr(stored & ((1 << ADDRESS_BITS) - 1))).filter(|addr| addr.0 != 0)?;
        let here = numbers.addr(addr).filter(|here| here.0 != 0 && here.0 >> ADDRESS_BITS == 0)?;
        Some(stored - addr.0 + here.0)
    };
    let nodes = word(page, COUNT_AT).ok_or_else(misplaced)?;
    let mut free = TABLE_AT + 2 * nodes;
    for index in 0..nodes {
        let start = word(page, TABLE_AT + 2 * index).filter(|start| *start >= free).ok_or_else(misplaced)?;
        let node = NodeView::of(page, index.try_into().map_err(|_| misplaced())?)?;
        free = start + node.bytes.len();
        let written = node.renumbered(&moved).ok_or_else(misplaced)?;
        page.get_mut(start..free).ok_or_else(misplaced)?.copy_from_slice(&written);
    }
    Ok(())
}

fn misplaced() -> Error {
    Error::corrupt("a map page holds addresses that cannot be")
}

fn word(page: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(page.get(at..at + 2)?.try_into().ok()?)))
}

/// How many nodes a verified page holds, and in how many of its bytes.
pub fn fill(page: &[u8]) -> Option<(usize, usize)> {
    let nodes = word(page, COUNT_AT)?;
    let last = nodes.checked_sub(1)?;
    let node = NodeView::at(page, last.try_into().ok()?)?;
    Some((nodes, word(page, TABLE_AT + 2 * last)? + node.bytes.len()))
}

/// A node read in place from a verified page.
#[derive(Clone, Copy)]
pub struct NodeView<'a> {
    level: u8,
    bitmap: u64,
    /// What is added to each entry of a dense leaf.
    base: u64,
    entries: Packed<'a>,
    /// The node's own bytes.
    bytes: &'a [u8],
}

impl<'a> NodeView<'a> {
    /// Node `index` of a verified `page`.
    pub fn of(page: &'a [u8], index: u8) -> Result<Self> {
        Self::at(page, index).ok_or_else(|| Error::corrupt(format!("a map page has no good node {index}")))
    }

    fn at(page: &'a [u8], index: u8) -> Option<Self> {
        if usize::from(index) >= word(page, COUNT_AT)? {
            return None;
        }
        let node = page.get(word(page, TABLE_AT + 2 * usize::from(index))?..)?;
        let (&kind, rest) = node.split_first()?;
        let (bitmap, rest) = match rest.split_first_chunk() {
            _ if kind == DENSE_FULL => (u64::MAX, rest),
            Some((bitmap, rest)) => (u64::from_le_bytes(*bitmap), rest),
            None => return None,
        };
        let (level, base, width, rest) = match kind {
            DENSE | DENSE_FULL => {
                let ([base @ .., width], rest) = rest.split_first_chunk::<FRAME>()?;
                (0, base.iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b)), u32::from(*width), rest)
            }
            0 => (0, 0, ADDRESS_BITS, rest),
            level if level & DENSE == 0 => (level, 0, REF_BITS, rest),
            _ => return None,
        };
        if level == 0 && width > ADDRESS_BITS {
            return None;
        }
        let behind = rest.get(bits::bytes(bitmap.count_ones() as usize, width)..)?;
        let bytes = node.get(..node.len() - behind.len())?;
        Some(Self { level, bitmap, base, entries: Packed::new(rest, width), bytes })
    }

    /// The node's bytes with its addresses `moved`; just as many. `None` when one cannot be, or is too far from another.
    fn renumbered(&self, moved: &impl Fn(u64) -> Option<u64>) -> Option<Vec<u8>> {
        let (kind, count) = (*self.bytes.first()?, self.bitmap.count_ones() as usize);
        let head = KIND + if kind == DENSE_FULL { 0 } else { BITMAP };
        let mut out = self.bytes.get(..head)?.to_vec();
        if kind & DENSE != 0 && count > 0 {
            let (base, width) = (moved(self.base)?, self.entries.width());
            out.put_u40(base);
            out.put_u8(width as u8);
            let largest = u64::MAX.checked_shr(u64::BITS - width).unwrap_or(0);
            let near = |rank| Some(moved(self.nth(rank).ok()?)?.checked_sub(base)?).filter(|near| *near <= largest);
            let all: Vec<u64> = (0..count).map(near).collect::<Option<_>>()?;
            bits::pack(all.into_iter(), width, &mut out);
        } else if kind & DENSE != 0 {
            out.extend_from_slice(self.bytes.get(head..)?);
        } else {
            for rank in 0..count {
                let stored = self.entries.get(rank);
                let hole = self.level > 0 && stored >> 62 == 0;
                let stored = if hole { stored } else { moved(stored)? };
                if self.level > 0 {
                    out.put_u64(stored);
                } else {
                    out.put_u40(stored);
                }
            }
        }
        (out.len() == self.bytes.len()).then_some(out)
    }

    /// Entry `i`, by its place among those present; 0 when absent.
    fn entry(&self, i: usize) -> Result<u64> {
        if i >= FANOUT || self.bitmap >> i & 1 == 0 {
            return Ok(0);
        }
        self.nth((self.bitmap & ((1u64 << i) - 1)).count_ones() as usize)
    }

    /// Entry `rank` of those present.
    fn nth(&self, rank: usize) -> Result<u64> {
        let stored = self.entries.get(rank);
        if self.level > 0 {
            return Ok(stored);
        }
        let addr = self.base + stored;
        if addr >> ADDRESS_BITS != 0 {
            return Err(Error::corrupt(format!("a leaf holds {addr:#x}, more than a slot address can be")));
        }
        Ok(addr)
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
        self.entry(i)
    }

    /// Child `i` of an inner node.
    pub fn child(&self, i: usize) -> Result<Ref> {
        self.expect(false)?;
        Ref::from_stored(self.entry(i)?)
    }

    /// All entries of a node that is expected at `level`: slot addresses in leaves, [`Ref`] bits elsewhere.
    pub fn entries(&self, level: u8) -> Result<Box<[u64; FANOUT]>> {
        if level != self.level {
            return Err(Error::corrupt(format!("a map node of level {} stands where {level} belongs", self.level)));
        }
        let mut out = Box::new([0; FANOUT]);
        let present = out.iter_mut().enumerate().filter(|(i, _)| self.bitmap >> i & 1 == 1);
        for (rank, (_, entry)) in present.enumerate() {
            let stored = self.nth(rank)?;
            *entry = if level == 0 { stored } else { Ref::from_stored(stored)?.bits() };
        }
        Ok(out)
    }

    /// Whether this is how a leaf is written today.
    pub fn is_dense_leaf(&self) -> bool {
        self.bytes.first().is_some_and(|kind| kind & DENSE != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SegmentId;
    use proptest::prelude::*;

    const HIGHEST: u64 = (1 << ADDRESS_BITS) - 1;
    const ADDR: SlotAddr = SlotAddr(77);

    /// The only node of a page that holds `entries` as a leaf, as it is read again.
    fn again(entries: &[u64; FANOUT]) -> ([u64; FANOUT], usize) {
        let mut builder = PageBuilder::default();
        assert_eq!(builder.push(0, entries), Some(0));
        let page = builder.finish(ADDR);
        verify(&page, ADDR).unwrap();
        let node = NodeView::of(&page, 0).unwrap();
        let all = *node.entries(0).unwrap();
        (0..FANOUT).for_each(|i| assert_eq!(node.slot(i).unwrap(), all[i], "entry {i}"));
        assert_eq!(node.slot(FANOUT).unwrap(), 0);
        assert_eq!(fill(&page), Some((1, TABLE_AT + 2 + node.bytes.len())));
        (all, node.bytes.len())
    }

    #[test]
    fn leaves_of_every_kind_read_as_they_were_written() {
        let mut leaf = [0; FANOUT];
        assert_eq!(again(&leaf), (leaf, 15));
        for i in [0, 31, 63] {
            for addr in [1, HIGHEST] {
                leaf = [0; FANOUT];
                leaf[i] = addr;
                assert_eq!(again(&leaf), (leaf, 15), "only entry {i}");
            }
        }
        leaf = [5; FANOUT];
        assert_eq!(again(&leaf), (leaf, 7));
        for spread in 0..ADDRESS_BITS {
            leaf = std::array::from_fn(|i| if i % 2 == 0 { 1 } else { 1 << spread });
            let width = if spread == 0 { 0 } else { spread as usize };
            assert_eq!(again(&leaf), (leaf, 7 + 8 * width), "{spread} bits");
        }
        leaf = std::array::from_fn(|i| if i == 40 { HIGHEST } else { 1 + i as u64 });
        assert_eq!(again(&leaf), (leaf, 7 + 320));
    }

    /// A page of the leaves that its docs speak of, and nodes copied from page to page.
    #[test]
    fn sixteen_full_leaves_share_a_page_and_can_be_copied() {
        let leaf = |n: u64| std::array::from_fn(|i| (1 << 39) + (((i as u64) << 24 | n) & ((1 << 30) - 1)));
        let (mut first, mut second) = (PageBuilder::default(), PageBuilder::default());
        let pushed = (0..).take_while(|n| first.push(0, &leaf(*n)).is_some()).count();
        assert_eq!(pushed, 16);
        let page = first.finish(ADDR);
        for n in (0..16).rev() {
            let node = NodeView::of(&page, n).unwrap();
            assert!(node.is_dense_leaf());
            assert_eq!(second.push_copy(&node), Some(15 - n));
        }
        let copied = second.finish(ADDR);
        assert_eq!(fill(&copied), fill(&page));
        for n in 0..16 {
            assert_eq!(*NodeView::of(&copied, 15 - n).unwrap().entries(0).unwrap(), leaf(n.into()));
        }
    }

    /// A page of one node that consists of `bytes`.
    fn page_of(bytes: &[u8]) -> Vec<u8> {
        let mut page = vec![0; BLOCK];
        (page[COUNT_AT], page[TABLE_AT]) = (1, 20);
        page[20..20 + bytes.len()].copy_from_slice(bytes);
        page
    }

    #[test]
    fn leaves_of_version_1_are_read() {
        let page = page_of(&[0, 0b101, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let node = NodeView::of(&page, 0).unwrap();
        let found: Vec<u64> = (0..4).map(|i| node.slot(i).unwrap()).collect();
        assert_eq!(found, [0x05_0403_0201, 0, 0x0a_0908_0706, 0]);
        assert!(!node.is_dense_leaf());
    }

    /// Moves all segments by five.
    fn by_five() -> Renumbering {
        Renumbering::of([(0, 5), (1 << 26, (1 << 26) + 5)].map(|(a, b)| (SegmentId(a), SegmentId(b))).into_iter())
    }

    #[test]
    fn a_renumbered_page_holds_the_addresses_here() {
        let leaf: [u64; FANOUT] = std::array::from_fn(|i| if i % 3 == 0 { 0 } else { 1000 + 7 * i as u64 });
        let full: [u64; FANOUT] = std::array::from_fn(|i| 1 + i as u64);
        let mut inner = [0; FANOUT];
        inner[3] = Ref::page(SlotAddr(70), 9).bits();
        inner[5] = Ref::run(SlotAddr(9000)).bits();
        let mut builder = PageBuilder::default();
        for (level, entries) in [(0, &leaf), (0, &full), (2, &inner), (0, &[0; FANOUT])] {
            builder.push(level, entries).unwrap();
        }
        let mut page = builder.finish(ADDR);
        renumber(&mut page, &by_five()).unwrap();
        let moved = |e: u64| if e == 0 { 0 } else { e + (5 << 13) };
        assert_eq!(*NodeView::of(&page, 0).unwrap().entries(0).unwrap(), leaf.map(moved));
        assert_eq!(*NodeView::of(&page, 1).unwrap().entries(0).unwrap(), full.map(moved));
        let node = NodeView::of(&page, 2).unwrap();
        assert_eq!(node.child(3).unwrap(), Ref::page(SlotAddr(70 + (5 << 13)), 9));
        assert_eq!(node.child(5).unwrap(), Ref::run(SlotAddr(9000 + (5 << 13))));
        assert_eq!(node.child(4).unwrap(), Ref::HOLE);
        assert!(renumber(&mut page, &Renumbering::default()).is_err());
        page.copy_within(TABLE_AT..TABLE_AT + 2, TABLE_AT + 2);
        assert!(renumber(&mut page, &by_five()).is_err(), "two nodes in one place");
        let mut old = page_of(&[0, 0b101, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        renumber(&mut old, &by_five()).unwrap();
        assert_eq!(NodeView::of(&old, 0).unwrap().slot(0).unwrap(), 0x05_0403_0201 + (5 << 13));
    }

    /// Segments that come closer together in one leaf, with dead ones between them.
    #[test]
    fn a_packed_leaf_is_renumbered_in_place() {
        let at = |id: u32, slot: u32| SlotAddr::new(SegmentId(id), slot).0;
        let mut leaf = [0; FANOUT];
        (leaf[0], leaf[1], leaf[9], leaf[63]) = (at(900, 8191), at(10, 7), at(500, 3), at(10, 8191));
        let (numbers, free) = Renumbering::dense([SegmentId(10), SegmentId(900)].into_iter(), 20);
        let mut builder = PageBuilder::default();
        builder.push(0, &leaf).unwrap();
        let mut page = builder.finish(ADDR);
        renumber(&mut page, &numbers).unwrap();
        let found = NodeView::of(&page, 0).unwrap();
        let slot = |i| found.slot(i).unwrap();
        assert_eq!([1, 63, 0].map(slot), [at(21, 7), at(21, 8191), at(23, 8191)]);
        let dead = SlotAddr(slot(9)).segment();
        assert_eq!((dead, free), (SegmentId(22), 25));
    }

    #[test]
    fn what_no_writer_writes_is_damage() {
        let header = |width: u8| [DENSE, 1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, width];
        let kind = |page: &[u8]| NodeView::of(page, 0).and_then(|n| n.slot(0)).map_err(|e| e.kind());
        assert_eq!(kind(&page_of(&header(40))), Ok(HIGHEST));
        let corrupt = Err(crate::ErrorKind::Corrupt);
        assert_eq!(kind(&page_of(&header(41))), corrupt);
        assert_eq!(kind(&page_of(&header(255))), corrupt);
        assert_eq!(kind(&page_of(&[&header(8)[..], &[1]].concat())), corrupt, "one more than the highest address");
        for unknown in [0x81, 0xbf, 0xc1, 0xff] {
            assert_eq!(kind(&page_of(&[unknown, 1])), corrupt, "kind {unknown:#x}");
        }
        // Cut by the page's end.
        for begin in [BLOCK - 1, BLOCK - 8, BLOCK - 14, BLOCK - 15] {
            let mut page = page_of(&[]);
            page[TABLE_AT..TABLE_AT + 2].copy_from_slice(&(begin as u16).to_le_bytes());
            page[begin] = DENSE;
            page[begin + 1..].iter_mut().take(8).for_each(|b| *b = 0xff);
            page[BLOCK - 1] = 40;
            assert_eq!(kind(&page), corrupt, "begun at {begin}");
        }
    }

    proptest! {
        #[test]
        fn any_leaf_reads_as_it_was_written(
            present in any::<u64>(),
            base in 1..=HIGHEST,
            spread in 0..ADDRESS_BITS,
            seeds in proptest::collection::vec(any::<u64>(), FANOUT),
        ) {
            let entry = |i: usize| (base + (seeds[i] & ((1 << spread) - 1))).min(HIGHEST) * (present >> i & 1);
            let leaf = std::array::from_fn(entry);
            prop_assert_eq!(again(&leaf).0, leaf);
        }
    }
}
