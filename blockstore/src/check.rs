//! The checker: walks every root and recomputes what the running store keeps up to date.
//!
//! Invariants
//!   * a damaged page is reported and passed over: one finding never hides the others, except that accounts
//!     are compared only with roots that were read whole;
//!   * what is wrong with many slots of a segment is one finding;
//!   * memory follows the map's size, not the data's.
//!
//! Not here: reading the data (`scrub`).

use crate::error::{Error, ErrorKind, Result};
use crate::format::anchor::RootKind;
use crate::format::segment::{Bitmap, Place, SegmentKind, BITMAP_WORDS};
use crate::limits::SEGMENT_SLOTS;
use crate::map::{span, Ref, FANOUT};
use crate::pool::Pool;
use crate::types::{RootId, SegmentId, SlotAddr};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Map pages of one segment that are named one by one.
const PAGES_SHOWN: usize = 4;

/// Told how much is done and how much there is, in the work's own unit; `false` ends the work.
pub type Ticker<'a> = dyn FnMut(u64, u64) -> bool + 'a;

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Roots walked.
    pub roots: usize,
    /// Live data blocks found.
    pub blocks: u64,
    /// Every disagreement between the accounts and what the roots reach.
    pub problems: Vec<String>,
    /// Blocks that live in the accounts but that no named root reaches: waiting for the reaper.
    pub leaked: u64,
}

/// Map nodes that could not be read for one reason.
struct Lost {
    nodes: u64,
    /// The first block below them, and the last.
    blocks: (u64, u64),
}

/// What the roots reach.
#[derive(Default)]
pub(crate) struct Found {
    pub live: BTreeMap<SegmentId, Box<Bitmap>>,
    nodes: HashMap<SlotAddr, usize>,
    seen: HashSet<Ref>,
    /// By what was said when reading.
    lost: BTreeMap<String, Lost>,
}

impl Found {
    fn lose(&mut self, why: &Error, base: u64, level: u8) {
        let last = base + (span(level) - 1);
        let entry = self.lost.entry(why.to_string()).or_insert(Lost { nodes: 0, blocks: (base, last) });
        entry.nodes += 1;
        entry.blocks = (entry.blocks.0.min(base), entry.blocks.1.max(last));
    }

    /// What could not be read below the root called `label`; empties it.
    pub fn take_lost(&mut self, label: &str) -> Vec<String> {
        let line = |(why, lost): (String, Lost)| {
            let (first, last) = lost.blocks;
            let among = if lost.nodes == 1 { String::new() } else { format!(", {} map nodes", lost.nodes) };
            format!("{label} blocks {first} to {last}{among}: where their data is cannot be read: {why}")
        };
        std::mem::take(&mut self.lost).into_iter().map(line).collect()
    }

    fn mark(&mut self, addr: SlotAddr) {
        let map = self.live.entry(addr.segment()).or_insert_with(|| Box::new([0; BITMAP_WORDS]));
        map[addr.slot() as usize / 64] |= 1 << (addr.slot() % 64);
    }

    /// Nodes of a map page that were reached.
    pub fn nodes_of(&self, page: SlotAddr) -> usize {
        self.nodes.get(&page).copied().unwrap_or(0)
    }

    pub fn blocks(&self) -> u64 {
        self.live.values().flat_map(|bits| bits.iter()).map(|w| u64::from(w.count_ones())).sum()
    }
}

pub(crate) fn tick(ticker: &mut Ticker<'_>, done: u64, total: u64) -> Result<()> {
    if ticker(done, total) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Closed, "the work was called off"))
}

impl Pool {
    /// Recomputes the accounts from the roots.
    pub fn check(&mut self) -> Result<CheckReport> {
        self.check_with(&mut |_, _| true)
    }

    pub(crate) fn check_with(&mut self, ticker: &mut Ticker<'_>) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let mut found = Found::default();
        let roots: Vec<RootId> = self.roots.iter().map(|(id, _)| id).collect();
        let nodes = self.nodes();
        for id in roots {
            report.roots += 1;
            let tree = self.roots.get(id).map;
            self.walk(tree.top, tree.level, 0, &mut found, &mut |done| tick(ticker, done, nodes))?;
            report.problems.extend(found.take_lost(&self.label(id)));
        }
        if report.problems.is_empty() {
            self.compare(&found, &mut report);
        } else {
            report.blocks = found.blocks();
            report.problems.push("the accounts were not compared, because parts of the map cannot be read".to_owned());
        }
        Ok(report)
    }

    /// Map nodes in the accounts.
    fn nodes(&self) -> u64 {
        let counts = self.segments.table.iter().filter_map(|(_, s)| s.nodes.as_ref());
        counts.flat_map(|counts| counts.iter()).map(|n| u64::from(*n)).sum()
    }

    /// What a person calls a root.
    pub(crate) fn label(&self, id: RootId) -> String {
        let root = self.roots.get(id);
        match (&root.kind, self.volumes.get(&root.volume)) {
            (RootKind::Head, Some(volume)) => format!("{}@Current", volume.name),
            (RootKind::Checkpoint { name, .. }, Some(volume)) => format!("{}@{name}", volume.name),
            _ => "a deleted state".to_owned(),
        }
    }

    /// Adds what lies below `at` to `found`, and what cannot be read to what is lost. Fails only when `visit` does.
    pub(crate) fn walk(
        &mut self,
        at: Ref,
        level: u8,
        base: u64,
        found: &mut Found,
        visit: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        if at == Ref::HOLE || !found.seen.insert(at) {
            return Ok(());
        }
        visit(found.seen.len() as u64)?;
        if let Some(page) = at.page_addr() {
            *found.nodes.entry(page).or_default() += 1;
        }
        if level == 0 {
            match self.map.leaf_of(at, &self.segments) {
                Ok(leaf) => leaf.iter().filter(|bits| **bits != 0).for_each(|bits| found.mark(SlotAddr(*bits))),
                Err(e) => found.lose(&e, base, level),
            }
            return Ok(());
        }
        for i in 0..FANOUT {
            match self.map.child(at, i, &self.segments) {
                Ok(child) => self.walk(child, level - 1, base + i as u64 * span(level - 1), found, visit)?,
                Err(e) => {
                    found.lose(&e, base, level);
                    break;
                }
            }
        }
        Ok(())
    }

    fn compare(&self, found: &Found, report: &mut CheckReport) {
        let (none, in_use) = (Box::new([0; BITMAP_WORDS]), self.logs_in_use());
        for (id, segment) in self.segments.table.iter() {
            // Of what another pool uploaded, only that is known which cannot live, until it is counted; and what came with
            // a volume that is gone is given back as a whole.
            let exact = match segment.place {
                Place::Imported => false,
                Place::Counted => in_use.contains(&segment.volume),
                Place::Here | Place::Store => true,
            };
            if segment.kind == SegmentKind::Map && !exact {
                continue;
            }
            if segment.kind == SegmentKind::Map {
                let counts = segment.nodes.as_ref().map_or(&[][..], |n| &n[..]);
                let mut wrong = Vec::new();
                for (slot, count) in counts.iter().enumerate() {
                    let addr = SlotAddr::new(id, slot as u32);
                    let real = found.nodes_of(addr);
                    if real != usize::from(*count) {
                        wrong.push(format!("map page at {addr}: {count} nodes accounted, {real} reached"));
                    }
                }
                let more = wrong.len().saturating_sub(PAGES_SHOWN);
                report.problems.extend(wrong.into_iter().take(PAGES_SHOWN));
                if more > 0 {
                    report.problems.push(format!("segment {}: the same of {more} more map pages", id.0));
                }
                continue;
            }
            let real = found.live.get(&id).unwrap_or(&none);
            report.blocks += real.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
            let mut dead = Vec::new();
            for slot in 0..SEGMENT_SLOTS {
                let reached = real[slot as usize / 64] >> (slot % 64) & 1 == 1;
                match (segment.is_live(slot), reached) {
                    (false, true) => dead.push(slot),
                    (true, false) => report.leaked += u64::from(exact),
                    _ => {}
                }
            }
            match dead.as_slice() {
                [] => {}
                [slot] => report.problems.push(format!("segment {} slot {slot} is in use but accounted dead", id.0)),
                [slot, ..] => report.problems.push(format!(
                    "segment {}: {} slots are in use but accounted dead, the first is {slot}",
                    id.0,
                    dead.len()
                )),
            }
        }
        for id in found.live.keys().filter(|id| self.segments.table.get(**id).is_none()) {
            report.problems.push(format!("segment {} is in use but unknown", id.0));
        }
        if report.leaked > 0 {
            report.problems.push(format!("{} blocks are accounted live but no root reaches them", report.leaked));
        }
        if self.segments.table.double_releases > 0 {
            report.problems.push(format!("{} slots were released twice", self.segments.table.double_releases));
        }
    }
}
