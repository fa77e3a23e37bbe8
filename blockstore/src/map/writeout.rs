//! Writing changed nodes into map pages: leaves first, then the nodes above them.
//!
//! Leaves live long and inner nodes do not: kept apart, they do not leave half-dead pages behind.
//! Leaves that lie in such pages all the same are moved along with their changed neighbours: which
//! ones is the caller's choice ([`Moves`]). Nothing in memory changes before the whole pass has
//! succeeded.

use super::cache::NumberMap;
use super::node::{Ref, Target, FANOUT};
use super::tree::Map;
use crate::error::Result;
use crate::format::page::{NodeView, PageBuilder};
use crate::limits::BLOCK;
use crate::types::SlotAddr;

/// Takes finished map pages.
pub trait PageSink {
    /// Where the next page will be written.
    fn next_addr(&mut self) -> Result<SlotAddr>;
    /// Writes the page at the address that [`PageSink::next_addr`] gave; it holds `nodes` nodes.
    fn write(&mut self, addr: SlotAddr, page: &[u8], nodes: usize) -> Result<()>;
}

/// Unchanged leaves to write again: a bit for each child of a changed node of level 1.
#[derive(Default)]
pub struct Moves(NumberMap<u32, u64>);

impl Moves {
    /// The children `chosen` of the changed node behind `parent`.
    pub fn add(&mut self, parent: Ref, chosen: u64) {
        if let Target::Memory(id) = parent.target() {
            self.0.insert(id, chosen);
        }
    }
}

/// What a pass has written.
pub struct Written {
    /// What replaces the tops, in their order.
    pub tops: Vec<Ref>,
    /// Where the leaves were that have been moved: nobody refers to these any more.
    pub moved: Vec<Ref>,
}

const FITS: &str = "an empty page takes any node";

/// One pass over all roots. Nodes shared by several roots are written once and stay shared.
pub struct WriteOut<'a> {
    sink: &'a mut dyn PageSink,
    moves: &'a Moves,
    moved: Vec<Ref>,
    /// Inner nodes below which all leaves have been written; in those of level 1 their references.
    below: NumberMap<u32, Option<Box<[u64; FANOUT]>>>,
    written: NumberMap<u32, Ref>,
    builder: PageBuilder,
    addr: Option<SlotAddr>,
}

impl<'a> WriteOut<'a> {
    /// A pass that writes to `sink` and moves `moves`.
    pub fn new(sink: &'a mut dyn PageSink, moves: &'a Moves) -> Self {
        Self {
            sink,
            moves,
            moved: Vec::new(),
            below: NumberMap::default(),
            written: NumberMap::default(),
            builder: PageBuilder::default(),
            addr: None,
        }
    }

    /// Writes what changed below `tops`, after which the changed nodes are forgotten.
    pub fn run(mut self, map: &mut Map, tops: &[Ref]) -> Result<Written> {
        tops.iter().try_for_each(|top| self.leaves(map, *top))?;
        let tops = tops.iter().map(|top| self.inner(map, *top)).collect::<Result<_>>()?;
        self.finish_page(map)?;
        map.arena = Default::default();
        Ok(Written { tops, moved: self.moved })
    }

    fn leaves(&mut self, map: &mut Map, at: Ref) -> Result<()> {
        let Target::Memory(id) = at.target() else { return Ok(()) };
        let level = map.arena.get(id).level;
        if level == 0 {
            return self.leaf(map, id).map(|_| ());
        }
        if self.below.contains_key(&id) {
            return Ok(());
        }
        let mut entries = None;
        if level == 1 {
            entries = Some(self.children(map, id)?);
        } else {
            (0..FANOUT).try_for_each(|i| self.leaves(map, Ref::from_bits(map.arena.get(id).entries[i])))?;
        }
        self.below.insert(id, entries);
        Ok(())
    }

    /// What the entries of a changed node of level 1 are to be, all its leaves being written.
    fn children(&mut self, map: &mut Map, id: u32) -> Result<Box<[u64; FANOUT]>> {
        let mut entries = map.arena.get(id).entries.clone();
        let moves = self.moves.0.get(&id).copied().unwrap_or(0);
        for (i, entry) in entries.iter_mut().enumerate() {
            let child = Ref::from_bits(*entry);
            *entry = match child.target() {
                Target::Memory(leaf) => self.leaf(map, leaf)?.bits(),
                Target::Page(from, node) if moves >> i & 1 == 1 => self.move_leaf(map, child, from, node)?.bits(),
                _ => continue,
            };
        }
        Ok(entries)
    }

    fn leaf(&mut self, map: &mut Map, id: u32) -> Result<Ref> {
        if let Some(done) = self.written.get(&id) {
            return Ok(*done);
        }
        let done = if map.arena.get(id).entries.iter().all(|e| *e == 0) {
            Ref::HOLE
        } else {
            self.place(map, |map, page| page.push(0, &map.arena.get(id).entries))?.expect(FITS)
        };
        self.written.insert(id, done);
        Ok(done)
    }

    /// Writes a leaf of a page in memory again. One that is no longer there, or no good leaf, stays
    /// where it is: whoever reads it will say what is wrong with it.
    fn move_leaf(&mut self, map: &mut Map, at: Ref, from: SlotAddr, node: u8) -> Result<Ref> {
        if map.resident(from).is_none() {
            return Ok(at);
        }
        let again = |map: &Map, page: &mut PageBuilder| {
            let node = NodeView::of(map.resident(from)?, node).ok()?;
            if node.is_dense_leaf() {
                return page.push_copy(&node);
            }
            page.push(0, &*node.entries(0).ok()?)
        };
        let Some(new) = self.place(map, again)? else { return Ok(at) };
        self.moved.push(at);
        Ok(new)
    }

    /// The reference that replaces `at`, all leaves being written.
    fn inner(&mut self, map: &mut Map, at: Ref) -> Result<Ref> {
        let Target::Memory(id) = at.target() else { return Ok(at) };
        if let Some(done) = self.written.get(&id) {
            return Ok(*done);
        }
        let level = map.arena.get(id).level;
        let entries = match self.below.get_mut(&id).and_then(Option::take) {
            Some(entries) => entries,
            None => {
                let mut entries = map.arena.get(id).entries.clone();
                for entry in entries.iter_mut() {
                    *entry = self.inner(map, Ref::from_bits(*entry))?.bits();
                }
                entries
            }
        };
        let done = if entries.iter().all(|e| *e == 0) {
            Ref::HOLE
        } else {
            self.place(map, |_, page| page.push(level, &entries))?.expect(FITS)
        };
        self.written.insert(id, done);
        Ok(done)
    }

    /// Where `push` puts a node: in the page under way or, if that is full, in the next one. `None` if
    /// it puts it nowhere.
    fn place(&mut self, map: &mut Map, push: impl Fn(&Map, &mut PageBuilder) -> Option<u8>) -> Result<Option<Ref>> {
        if let Some(addr) = self.addr {
            if let Some(node) = push(map, &mut self.builder) {
                return Ok(Some(Ref::page(addr, node)));
            }
        }
        let addr = self.next_page(map)?;
        Ok(push(map, &mut self.builder).map(|node| Ref::page(addr, node)))
    }

    fn next_page(&mut self, map: &mut Map) -> Result<SlotAddr> {
        self.finish_page(map)?;
        let addr = self.sink.next_addr()?;
        self.addr = Some(addr);
        Ok(addr)
    }

    fn finish_page(&mut self, map: &mut Map) -> Result<()> {
        let Some(addr) = self.addr.take() else { return Ok(()) };
        let nodes = self.builder.len();
        if nodes == 0 {
            // Begun for a leaf that was gone when it was to be moved: the address serves again.
            return Ok(());
        }
        let page = self.builder.finish(addr);
        self.sink.write(addr, &page, nodes)?;
        let mut frame = Box::new([0; BLOCK]);
        frame.copy_from_slice(&page);
        map.cache.put(addr, frame);
        Ok(())
    }
}
