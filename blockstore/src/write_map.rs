//! Writing the maps down: with an anchor all that has changed, before it some leaves at a time.
//!
//! Invariants
//!   * a pass that fails has changed nothing: neither the trees nor the accounts;
//!   * what is written ahead is referred to by the running trees alone: after a crash the anchor before
//!     serves, and the pages ahead are as if they had never been.

use crate::checkpoint::{release_node, tidy, tidy_below, Root};
use crate::disk::File;
use crate::error::{Error, ErrorKind, Result};
use crate::format::segment::{Layout, SegmentHeader, SegmentKind};
use crate::limits::{BLOCK_U64, END_SLOT, FIRST_SLOT};
use crate::map::{Map, Moves, PageSink, Parents, Target, WriteOut, Written};
use crate::pool::{Pool, POOL_STREAM};
use crate::space::{Purpose, Segment, Segments};
use crate::types::{RootId, SegmentId, SlotAddr};
use std::io::IoSlice;
use std::sync::Arc;

/// Leaves written ahead at a time: some 0.1 ms of the clients' time.
const LEAVES_AHEAD: usize = 128;
/// Changed nodes that an anchor may well write itself.
const ENOUGH: usize = 1024;
/// Passes over all heads before an anchor: what changes during one is left for the next, and a client that is
/// fast enough never lets it end.
const PASSES_MAX: u8 = 3;

/// How far the map has been written ahead of the next anchor.
#[derive(Clone, Copy)]
pub(crate) struct Progress {
    passes: u8,
    head: RootId,
    block: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Self { passes: 0, head: RootId(0), block: 0 }
    }
}

/// Writes map pages behind one another; accounts only when the whole pass succeeded.
struct Sink<'a> {
    segments: &'a mut Segments,
    open: Option<(SegmentId, Arc<dyn File>, u32)>,
    written: Vec<(SlotAddr, usize)>,
    filled: Vec<SegmentId>,
    files: Vec<Arc<dyn File>>,
}

impl PageSink for Sink<'_> {
    fn next_addr(&mut self) -> Result<SlotAddr> {
        if let Some((id, _, slot)) = &self.open {
            if *slot == END_SLOT {
                self.filled.push(*id);
                self.open = None;
            }
        }
        if let Some((id, _, slot)) = &self.open {
            return Ok(SlotAddr::new(*id, *slot));
        }
        let (id, file, _) = self.segments.take()?;
        let header = SegmentHeader {
            pool: self.segments.pool,
            segment: id,
            kind: SegmentKind::Map,
            volume: POOL_STREAM,
            sequence: 0,
            previous_crc: 0,
            layout: Layout::Full,
        };
        file.write_at(&[IoSlice::new(&header.encode())], 0).map_err(|e| Error::io("writing map pages", e))?;
        self.segments.table.insert(id, Segment::new(SegmentKind::Map, POOL_STREAM));
        self.files.push(file.clone());
        self.open = Some((id, file, FIRST_SLOT));
        Ok(SlotAddr::new(id, FIRST_SLOT))
    }

    fn write(&mut self, addr: SlotAddr, page: &[u8], nodes: usize) -> Result<()> {
        let Some((_, file, slot)) = &mut self.open else {
            return Err(Error::new(ErrorKind::Io, "no segment is open for map pages"));
        };
        let written = file.write_at(&[IoSlice::new(page)], u64::from(addr.slot()) * BLOCK_U64);
        written.map_err(|e| Error::io("writing map pages", e))?;
        *slot = addr.slot() + 1;
        self.written.push((addr, nodes));
        Ok(())
    }
}

impl Pool {
    /// On a full disk the reserve makes room for the map pages of one more anchor.
    pub(crate) fn write_map_with_reserve(&mut self) -> Result<()> {
        let moves = tidy(&self.roots, &mut self.map, &mut self.segments.table);
        match self.write_map(&moves) {
            Err(e) if e.kind() == ErrorKind::NoSpace && self.reserve.give_up(&*self.disk, Purpose::Anchors) => {
                self.write_map(&Moves::default())
            }
            done => done,
        }
    }

    fn write_map(&mut self, moves: &Moves) -> Result<()> {
        let (ids, tops): (Vec<_>, Vec<_>) = self.roots.iter().map(|(id, root)| (id, root.map.top)).unzip();
        let Written { tops, moved } = self.write_pages(|map, sink| WriteOut::new(sink, moves).run(map, &tops))?;
        for (id, top) in ids.into_iter().zip(tops) {
            self.roots.get_mut(id).map.top = top;
        }
        for node in moved {
            release_node(&mut self.map, &mut self.segments, node);
        }
        Ok(())
    }

    /// Has `pass` write map pages, and accounts for them if all of it succeeded.
    fn write_pages<T>(&mut self, pass: impl FnOnce(&mut Map, &mut Sink<'_>) -> Result<T>) -> Result<T> {
        let mut sink = Sink {
            segments: &mut self.segments,
            open: self.map_open.clone(),
            written: Vec::new(),
            filled: Vec::new(),
            files: Vec::new(),
        };
        sink.files.extend(sink.open.iter().map(|(_, file, _)| file.clone()));
        let outcome = pass(&mut self.map, &mut sink);
        let Sink { open, written, filled, files, .. } = sink;
        let done = match outcome {
            Ok(done) => done,
            Err(e) => {
                // Nothing refers to the segments begun in this pass: they are the cleaner's.
                let before = self.map_open.as_ref().map(|(id, ..)| *id);
                let begun = filled.into_iter().chain(open.map(|(id, ..)| id)).filter(|id| Some(*id) != before);
                begun.for_each(|id| {
                    if let Some(segment) = self.segments.table.get_mut(id) {
                        segment.sealed = true;
                    }
                });
                return Err(e);
            }
        };
        for (addr, nodes) in written {
            self.segments.table.add_nodes(addr, nodes);
            if let Some(segment) = self.segments.table.get_mut(addr.segment()) {
                segment.used = addr.slot() + 1;
                segment.stored = segment.used;
            }
        }
        for id in filled {
            if let Some(segment) = self.segments.table.get_mut(id) {
                segment.sealed = true;
            }
        }
        self.map_open = open;
        self.anchors.extra_files.extend(files);
        Ok(done)
    }

    /// Writes some changed leaves to map pages, so that little is left for the anchor that is due, and for
    /// clients to wait for; `false` when it is time for the anchor. Call it between requests.
    pub fn write_map_ahead(&mut self) -> Result<bool> {
        if self.writable().is_err() || self.anchors.ahead.passes >= PASSES_MAX {
            return Ok(false);
        }
        let Progress { passes, head, block } = self.anchors.ahead;
        let changed = |root: &Root| matches!(root.map.top.target(), Target::Memory(_));
        let next = self.roots.heads_from(head).find(|(_, root)| changed(root));
        let Some((id, root)) = next else {
            let passes = if self.map.changed_nodes() < ENOUGH { PASSES_MAX } else { passes + 1 };
            self.anchors.ahead = Progress { passes, ..Progress::default() };
            return Ok(passes < PASSES_MAX);
        };
        let (tree, from) = (root.map, if id == head { block } else { 0 });
        let Parents { nodes, next } = self.map.parents_of_changed(tree, from, LEAVES_AHEAD);
        let moves = tidy_below(&self.roots, &mut self.map, &mut self.segments.table, id, &nodes);
        let done = self.write_pages(|map, sink| WriteOut::new(sink, &moves).run_leaves(map, &nodes));
        match done {
            Ok(moved) => moved.into_iter().for_each(|node| release_node(&mut self.map, &mut self.segments, node)),
            // The anchor will say what is wrong, and has a reserve.
            Err(e) if e.kind() == ErrorKind::NoSpace => {
                self.anchors.ahead.passes = PASSES_MAX;
                return Ok(false);
            }
            Err(e) => return Err(e),
        }
        self.anchors.ahead = match next {
            Some(block) => Progress { passes, head: id, block },
            None => Progress { passes, head: RootId(id.0 + 1), block: 0 },
        };
        Ok(true)
    }
}
