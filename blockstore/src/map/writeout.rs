//! Writing changed nodes into map pages, children before parents.

use super::node::{Ref, Target};
use super::tree::Map;
use crate::error::Result;
use crate::format::page::PageBuilder;
use crate::limits::BLOCK;
use crate::types::SlotAddr;
use std::collections::HashMap;

/// Takes finished map pages.
pub trait PageSink {
    /// Where the next page will be written.
    fn next_addr(&mut self) -> Result<SlotAddr>;
    /// Writes the page at the address that [`PageSink::next_addr`] gave; it holds `nodes` nodes.
    fn write(&mut self, addr: SlotAddr, page: &[u8], nodes: usize) -> Result<()>;
}

/// One pass over all roots. Nodes shared by several roots are written once and stay shared.
pub struct WriteOut<'a> {
    sink: &'a mut dyn PageSink,
    written: HashMap<u32, Ref>,
    builder: PageBuilder,
    addr: Option<SlotAddr>,
}

impl<'a> WriteOut<'a> {
    /// Starts a pass.
    pub fn new(sink: &'a mut dyn PageSink) -> Self {
        Self { sink, written: HashMap::new(), builder: PageBuilder::default(), addr: None }
    }

    /// Writes what changed below `top` and returns the reference that replaces it.
    pub fn write(&mut self, map: &mut Map, top: Ref) -> Result<Ref> {
        let Target::Memory(id) = top.target() else { return Ok(top) };
        if let Some(done) = self.written.get(&id) {
            return Ok(*done);
        }
        let (level, mut entries) = (map.arena.get(id).level, map.arena.get(id).entries.clone());
        if level > 0 {
            for entry in entries.iter_mut() {
                *entry = self.write(map, Ref::from_bits(*entry))?.bits();
            }
        }
        let done = if entries.iter().all(|e| *e == 0) { Ref::HOLE } else { self.place(map, level, &entries)? };
        self.written.insert(id, done);
        Ok(done)
    }

    fn place(&mut self, map: &mut Map, level: u8, entries: &[u64; super::FANOUT]) -> Result<Ref> {
        if let Some(addr) = self.addr {
            if let Some(node) = self.builder.push(level, entries) {
                return Ok(Ref::page(addr, node));
            }
        }
        self.finish_page(map)?;
        let addr = self.sink.next_addr()?;
        self.addr = Some(addr);
        let node = self.builder.push(level, entries).expect("an empty page takes any node");
        Ok(Ref::page(addr, node))
    }

    fn finish_page(&mut self, map: &mut Map) -> Result<()> {
        let Some(addr) = self.addr.take() else { return Ok(()) };
        let nodes = self.builder.len();
        let page = self.builder.finish(addr);
        self.sink.write(addr, &page, nodes)?;
        let mut frame = Box::new([0; BLOCK]);
        frame.copy_from_slice(&page);
        map.cache.put(addr, frame);
        Ok(())
    }

    /// Ends the pass: the last page is written, and the changed nodes are forgotten.
    pub fn finish(mut self, map: &mut Map) -> Result<()> {
        self.finish_page(map)?;
        map.arena = Default::default();
        Ok(())
    }
}
