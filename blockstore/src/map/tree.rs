//! Lookup and path-copying update.

use super::cache::{PageCache, PageSource};
use super::node::{Arena, Ref, Target, FANOUT};
use super::span;
use crate::error::Result;
use crate::format::page::NodeView;
use crate::limits::BLOCK;
use crate::types::SlotAddr;
use std::ops::Range;

/// The slots of the 64 blocks of one leaf; 0 where nothing is mapped.
pub type Leaf = [u64; FANOUT];

/// A volume's or checkpoint's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRoot {
    /// The top node.
    pub top: Ref,
    /// Its level.
    pub level: u8,
}

/// What an update took out of a tree; the caller decides whether anything else still holds it.
#[derive(Default)]
pub struct Replaced {
    /// Block and slot address.
    pub slots: Vec<(u64, SlotAddr)>,
    /// Page nodes: level, first block, reference.
    pub nodes: Vec<(u8, u64, Ref)>,
}

/// All trees of a pool.
pub struct Map {
    pub(super) arena: Arena,
    pub(super) cache: PageCache,
}

impl Map {
    /// Empty, with a page cache of `cache_bytes`.
    pub fn new(cache_bytes: u64) -> Self {
        Self { arena: Arena::default(), cache: PageCache::new(cache_bytes) }
    }

    /// The page cache, shared with segment directories.
    pub fn cache(&mut self) -> &mut PageCache {
        &mut self.cache
    }

    /// Bytes of cached pages.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Changed nodes held since the last anchor.
    pub fn changed_nodes(&self) -> usize {
        self.arena.len()
    }

    /// The page at `addr`, if it is in memory.
    pub fn resident(&self, addr: SlotAddr) -> Option<&[u8; BLOCK]> {
        self.cache.held(addr)
    }

    /// Level and entries of a changed node to which one parent or root alone refers.
    pub fn sole(&self, at: Ref) -> Option<(u8, [u64; FANOUT])> {
        let Target::Memory(id) = at.target() else { return None };
        let node = self.arena.get(id);
        (node.references == 1).then_some((node.level, *node.entries))
    }

    /// One more root refers to `top`.
    pub fn retain(&mut self, top: Ref) {
        if let Target::Memory(id) = top.target() {
            self.arena.get_mut(id).references += 1;
        }
    }

    /// One root or parent fewer refers to `top`; changed nodes nobody refers to are dropped.
    pub fn release(&mut self, top: Ref) {
        if let Target::Memory(id) = top.target() {
            let node = self.arena.get_mut(id);
            node.references -= 1;
            if node.references == 0 {
                let node = self.arena.remove(id);
                if node.level > 0 {
                    node.entries.iter().for_each(|bits| self.release(Ref::from_bits(*bits)));
                }
            }
        }
    }

    /// Has the page of a stored node in memory.
    pub fn load(&mut self, at: Ref, source: &dyn PageSource) -> Result<()> {
        match at.target() {
            Target::Page(addr, _) => self.cache.get(addr, source).map(drop),
            _ => Ok(()),
        }
    }

    /// The child `i` of the node behind `of`.
    pub fn child(&mut self, of: Ref, i: usize, source: &dyn PageSource) -> Result<Ref> {
        Ok(match of.target() {
            Target::Hole | Target::Run(_) => Ref::HOLE,
            Target::Memory(id) => Ref::from_bits(self.arena.get(id).entries[i]),
            Target::Page(addr, node) => NodeView::of(self.cache.get(addr, source)?, node)?.child(i)?,
        })
    }

    /// The reference that `root` holds at the node of `level` starting at `block`; `None` when the
    /// tree is not that tall.
    pub fn ref_at(&mut self, root: MapRoot, level: u8, block: u64, source: &dyn PageSource) -> Result<Option<Ref>> {
        if level > root.level {
            return Ok(None);
        }
        if block >= span(root.level) {
            return Ok(Some(Ref::HOLE));
        }
        let (mut at, mut height) = (root.top, root.level);
        while height > level && at != Ref::HOLE {
            let i = (block / span(height - 1)) as usize % FANOUT;
            at = self.child(at, i, source)?;
            height -= 1;
        }
        Ok(Some(at))
    }

    /// The leaf behind a level-0 reference.
    pub fn leaf_of(&mut self, at: Ref, source: &dyn PageSource) -> Result<Leaf> {
        Ok(match at.target() {
            Target::Hole => [0; FANOUT],
            Target::Run(first) => std::array::from_fn(|i| first.0 + i as u64),
            Target::Memory(id) => *self.arena.get(id).entries,
            Target::Page(addr, node) => *NodeView::of(self.cache.get(addr, source)?, node)?.entries(0)?,
        })
    }

    /// The leaf that holds `block`.
    pub fn leaf(&mut self, root: MapRoot, block: u64, source: &dyn PageSource) -> Result<Leaf> {
        match self.ref_at(root, 0, block, source)? {
            Some(at) => self.leaf_of(at, source),
            None => Ok([0; FANOUT]),
        }
    }

    /// The slot of one block; `None` for a hole.
    pub fn lookup(&mut self, root: MapRoot, block: u64, source: &dyn PageSource) -> Result<Option<SlotAddr>> {
        let at = self.ref_at(root, 0, block, source)?.unwrap_or(Ref::HOLE);
        let i = (block % FANOUT as u64) as usize;
        let bits = match at.target() {
            Target::Hole => 0,
            Target::Run(first) => first.0 + i as u64,
            Target::Memory(id) => self.arena.get(id).entries[i],
            Target::Page(addr, node) => NodeView::of(self.cache.get(addr, source)?, node)?.slot(i)?,
        };
        Ok((bits != 0).then_some(SlotAddr(bits)))
    }

    /// Makes a tree at least `level` tall.
    pub fn grow(&mut self, root: &mut MapRoot, level: u8) {
        while root.level < level {
            if root.top != Ref::HOLE {
                // A run stands for a leaf and may be the child of a level-1 node like any leaf.
                let mut entries = Box::new([0; FANOUT]);
                entries[0] = root.top.bits();
                root.top = Ref::memory(self.arena.insert(root.level + 1, entries));
            }
            root.level += 1;
        }
    }

    /// Maps the blocks `range` to consecutive slots from `first`, or to holes for `None`. What they
    /// were mapped to goes to `old`; with `kept`, subtrees that go as a whole are not reported,
    /// because another root is known to hold them.
    pub fn set(
        &mut self,
        root: &mut MapRoot,
        range: Range<u64>,
        first: Option<SlotAddr>,
        kept: bool,
        old: &mut Replaced,
        source: &dyn PageSource,
    ) -> Result<()> {
        debug_assert!(range.end <= span(root.level));
        let mut change = Change { start: range.start, end: range.end, first, kept, old, source };
        root.top = self.set_below(root.top, root.level, 0, &mut change)?;
        Ok(())
    }

    fn set_below(&mut self, at: Ref, level: u8, base: u64, change: &mut Change<'_>) -> Result<Ref> {
        let whole = change.start <= base && base + span(level) <= change.end;
        if whole && (change.first.is_none() || level == 0) {
            if !change.kept {
                self.collect(at, level, base, change)?;
            }
            self.release(at);
            return Ok(change.first.map_or(Ref::HOLE, |first| Ref::run(SlotAddr(first.0 + (base - change.start)))));
        }
        if at == Ref::HOLE && change.first.is_none() {
            return Ok(at);
        }
        let id = self.own(at, level, base, change)?;
        if level == 0 {
            let (from, to) = (change.start.max(base), change.end.min(base + span(0)));
            for block in from..to {
                let new = change.first.map_or(0, |first| first.0 + (block - change.start));
                let entry = &mut self.arena.get_mut(id).entries[(block - base) as usize];
                let before = std::mem::replace(entry, new);
                if before != 0 {
                    change.old.slots.push((block, SlotAddr(before)));
                }
            }
        } else {
            let step = span(level - 1);
            let first = change.start.saturating_sub(base) / step;
            let last = (change.end - base).div_ceil(step).min(FANOUT as u64);
            for i in first..last {
                let child = Ref::from_bits(self.arena.get(id).entries[i as usize]);
                let new = self.set_below(child, level - 1, base + i * step, change)?;
                self.arena.get_mut(id).entries[i as usize] = new.bits();
            }
        }
        Ok(Ref::memory(id))
    }

    /// A changed node in the place of `at` that nobody else refers to.
    fn own(&mut self, at: Ref, level: u8, base: u64, change: &mut Change<'_>) -> Result<u32> {
        let entries = match at.target() {
            Target::Memory(id) if self.arena.get(id).references == 1 => return Ok(id),
            Target::Memory(id) => {
                self.arena.get_mut(id).references -= 1;
                let entries = self.arena.get(id).entries.clone();
                if level > 0 {
                    entries.iter().for_each(|bits| self.retain(Ref::from_bits(*bits)));
                }
                entries
            }
            Target::Page(addr, node) => {
                change.old.nodes.push((level, base, at));
                NodeView::of(self.cache.get(addr, change.source)?, node)?.entries(level)?
            }
            Target::Hole => Box::new([0; FANOUT]),
            Target::Run(first) => Box::new(std::array::from_fn(|i| first.0 + i as u64)),
        };
        Ok(self.arena.insert(level, entries))
    }

    fn collect(&mut self, at: Ref, level: u8, base: u64, change: &mut Change<'_>) -> Result<()> {
        if at == Ref::HOLE {
            return Ok(());
        }
        if matches!(at.target(), Target::Page(..)) {
            change.old.nodes.push((level, base, at));
        }
        if level == 0 {
            let leaf = self.leaf_of(at, change.source)?;
            let mapped = leaf.iter().enumerate().filter(|(_, bits)| **bits != 0);
            change.old.slots.extend(mapped.map(|(i, bits)| (base + i as u64, SlotAddr(*bits))));
            return Ok(());
        }
        for i in 0..FANOUT {
            let child = self.child(at, i, change.source)?;
            self.collect(child, level - 1, base + i as u64 * span(level - 1), change)?;
        }
        Ok(())
    }
}

struct Change<'a> {
    start: u64,
    end: u64,
    first: Option<SlotAddr>,
    kept: bool,
    old: &'a mut Replaced,
    source: &'a dyn PageSource,
}
