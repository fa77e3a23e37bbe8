//! Tidying: choosing the unchanged leaves that the next anchor writes again, so that map pages stay
//! well filled.
//!
//! The leaves of a page die one by one, as they change; the page stays, on disk and in memory, until
//! the last one is gone. So those that are left in a page of which little lives are moved to a new
//! one, when their parent has changed and is written anyway.
//!
//! Invariants
//!   * a leaf that a neighbour holds too stays: moving it would end the sharing;
//!   * only a path that one head alone refers to is followed;
//!   * the work follows what has changed, and nothing is read for it: what is not in memory takes no
//!     room there;
//!   * nothing is logged. Until the anchor is durable the one before refers to the leaf's old place,
//!     which stays, like everything that dies, until a durable anchor calls it dead.

use super::roots::Roots;
use crate::error::{Error, Result};
use crate::format::anchor::RootKind;
use crate::format::page;
use crate::format::segment::SegmentKind;
use crate::limits::{BLOCK, SEGMENT_SLOTS};
use crate::map::{span, Map, Moves, NumberMap, PageSource, Ref, Target, FANOUT};
use crate::space::{Segment, SegmentTable};
use crate::types::{RootId, SegmentId, SlotAddr};

/// A page is tidied when no more of its bytes live than this. More makes pages fuller, and moves leaves
/// more often: of sixteen, eleven are moved for five that have changed.
const POOR_BYTES: usize = BLOCK / 16 * 11;
/// Leaves moved for each node that has changed, at most.
const MOVES_PER_CHANGE: usize = 2;

/// Chooses the leaves to move with the changed nodes of all heads.
pub fn tidy(roots: &Roots, map: &mut Map, table: &mut SegmentTable) -> Moves {
    let heads = roots.iter().filter(|(_, root)| matches!(root.kind, RootKind::Head));
    let heads: Vec<_> = heads.map(|(id, root)| (id, root.map)).collect();
    let pages = Pages(table.iter_mut().filter(|(_, segment)| segment.kind == SegmentKind::Map).collect());
    let mut tidy = Tidy { roots, map, pages, credit: 0, moves: Moves::default() };
    for (head, tree) in heads {
        tidy.walk(head, tree.top, 0);
    }
    tidy.moves
}

struct Tidy<'a> {
    roots: &'a Roots,
    map: &'a mut Map,
    pages: Pages<'a>,
    credit: usize,
    moves: Moves,
}

impl Tidy<'_> {
    fn walk(&mut self, head: RootId, at: Ref, base: u64) {
        let Some((level, entries)) = self.map.sole(at) else { return };
        self.credit += MOVES_PER_CHANGE;
        match level {
            0 => {}
            1 => self.choose(head, at, base, &entries),
            _ => {
                let children = entries.iter().zip((base..).step_by(span(level - 1) as usize));
                children.for_each(|(bits, base)| self.walk(head, Ref::from_bits(*bits), base));
            }
        }
    }

    /// Chooses among the leaves of a changed node.
    fn choose(&mut self, head: RootId, parent: Ref, base: u64, leaves: &[u64; FANOUT]) {
        let changed = leaves.iter().filter(|bits| matches!(Ref::from_bits(**bits).target(), Target::Memory(_)));
        self.credit += MOVES_PER_CHANGE * changed.count();
        let (mut chosen, mut neighbours) = (0, None);
        for (i, bits) in leaves.iter().enumerate() {
            let at = Ref::from_bits(*bits);
            if self.credit == 0 {
                break;
            }
            if !at.page_addr().is_some_and(|addr| self.pages.poor(addr, self.map)) {
                continue;
            }
            let neighbours = neighbours.get_or_insert_with(|| self.neighbours(head, base));
            // What cannot be known without reading is taken for held.
            if neighbours.iter().any(|near| self.holds(*near, base, i, at).unwrap_or(true)) {
                continue;
            }
            chosen |= 1 << i;
            self.credit -= 1;
        }
        if chosen != 0 {
            self.moves.add(parent, chosen);
        }
    }

    /// The neighbours of `head` at any of the leaves below `base`, and what each has in the place of
    /// their parent.
    fn neighbours(&mut self, head: RootId, base: u64) -> Vec<(RootId, Option<Ref>)> {
        let (mut found, mut last) = (Vec::new(), Vec::new());
        self.roots.neighbours(head, base, &mut found);
        self.roots.neighbours(head, base + span(1) - 1, &mut last);
        found.extend(last);
        found.sort_unstable();
        found.dedup();
        let mut parent = |near| self.map.ref_at(self.roots.get(near).map, 1, base, &InMemory).unwrap_or(None);
        found.into_iter().map(|near| (near, parent(near))).collect()
    }

    fn holds(&mut self, (near, parent): (RootId, Option<Ref>), base: u64, i: usize, at: Ref) -> Result<bool> {
        let block = base + i as u64 * span(0);
        let theirs = match parent {
            Some(parent) => Some(self.map.child(parent, i, &InMemory)?),
            None => self.map.ref_at(self.roots.get(near).map, 0, block, &InMemory)?,
        };
        Ok(theirs == Some(at))
    }
}

/// The map segments' accounts.
struct Pages<'a>(NumberMap<SegmentId, &'a mut Segment>);

impl Pages<'_> {
    /// Whether the page at `addr` is in memory and little lives in it. It is looked into once in its life.
    fn poor(&mut self, addr: SlotAddr, map: &Map) -> bool {
        let Some(segment) = self.0.get_mut(&addr.segment()) else { return false };
        let Some(live) = &segment.nodes else { return false };
        if segment.enough.is_empty() {
            segment.enough = vec![0; SEGMENT_SLOTS as usize];
        }
        let slot = addr.slot() as usize;
        let (live, enough) = (live[slot], &mut segment.enough[slot]);
        if *enough == 0 {
            *enough = map.resident(addr).map_or(0, enough_of);
        }
        live < *enough && map.resident(addr).is_some()
    }
}

/// How many nodes like those of `page`, on average, take more than [`POOR_BYTES`].
fn enough_of(page: &[u8; BLOCK]) -> u8 {
    page::fill(page).map_or(0, |(nodes, bytes)| (POOR_BYTES * nodes / bytes + 1).min(u8::MAX.into()) as u8)
}

/// Reads nothing.
struct InMemory;

impl PageSource for InMemory {
    fn load(&self, addr: SlotAddr) -> Result<Box<[u8; BLOCK]>> {
        Err(Error::corrupt(format!("the page at {addr} is not in memory")))
    }
}
