//! The checker: walks every root and recomputes what the running store keeps up to date; and the
//! scrubber: reads every block that some root reaches and verifies its checksum.
//!
//! Invariants
//!   * a damaged page or block is reported and passed over: one finding never hides the others;
//!   * memory follows the map's size, not the data's.

use crate::error::{Error, ErrorKind, Result};
use crate::format::segment::{Bitmap, SegmentKind, BITMAP_WORDS};
use crate::limits::{BLOCK, BLOCK_U64, SEGMENT_SLOTS};
use crate::map::{Ref, FANOUT};
use crate::pool::Pool;
use crate::types::{RootId, SegmentId, SlotAddr, VolumeId};
use std::collections::{BTreeMap, HashMap, HashSet};

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

/// What a scrub found.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Data blocks read.
    pub blocks: u64,
    /// Damage found, in words.
    pub damaged: Vec<String>,
}

#[derive(Default)]
struct Found {
    live: BTreeMap<SegmentId, Box<Bitmap>>,
    nodes: HashMap<SlotAddr, usize>,
    seen: HashSet<Ref>,
}

impl Found {
    fn mark(&mut self, addr: SlotAddr) {
        let map = self.live.entry(addr.segment()).or_insert_with(|| Box::new([0; BITMAP_WORDS]));
        map[addr.slot() as usize / 64] |= 1 << (addr.slot() % 64);
    }

    fn blocks(&self) -> u64 {
        self.live.values().flat_map(|bits| bits.iter()).map(|w| u64::from(w.count_ones())).sum()
    }
}

fn tick(ticker: &mut Ticker<'_>, done: u64, total: u64) -> Result<()> {
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
            let walked = self.walk(tree.top, tree.level, &mut found, &mut |done| tick(ticker, done, nodes));
            match walked {
                Err(e) if e.kind() == ErrorKind::Closed => return Err(e),
                Err(e) => report.problems.push(format!("root {}: {e}", id.0)),
                Ok(()) => {}
            }
        }
        self.compare(&found, &mut report);
        Ok(report)
    }

    /// Map nodes in the accounts.
    fn nodes(&self) -> u64 {
        let counts = self.segments.table.iter().filter_map(|(_, s)| s.nodes.as_ref());
        counts.flat_map(|counts| counts.iter()).map(|n| u64::from(*n)).sum()
    }

    fn walk(&mut self, at: Ref, level: u8, found: &mut Found, visit: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        if at == Ref::HOLE || !found.seen.insert(at) {
            return Ok(());
        }
        visit(found.seen.len() as u64)?;
        if let Some(page) = at.page_addr() {
            *found.nodes.entry(page).or_default() += 1;
        }
        if level == 0 {
            let leaf = self.map.leaf_of(at, &self.segments)?;
            leaf.iter().filter(|bits| **bits != 0).for_each(|bits| found.mark(SlotAddr(*bits)));
            return Ok(());
        }
        for i in 0..FANOUT {
            let child = self.map.child(at, i, &self.segments)?;
            self.walk(child, level - 1, found, visit)?;
        }
        Ok(())
    }

    fn compare(&self, found: &Found, report: &mut CheckReport) {
        let none = Box::new([0; BITMAP_WORDS]);
        for (id, segment) in self.segments.table.iter() {
            if segment.kind == SegmentKind::Map {
                let counts = segment.nodes.as_ref().map_or(&[][..], |n| &n[..]);
                for (slot, count) in counts.iter().enumerate() {
                    let addr = SlotAddr::new(id, slot as u32);
                    let real = found.nodes.get(&addr).copied().unwrap_or(0);
                    if real != usize::from(*count) {
                        report.problems.push(format!("map page at {addr}: {count} nodes accounted, {real} reached"));
                    }
                }
                continue;
            }
            let real = found.live.get(&id).unwrap_or(&none);
            report.blocks += real.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
            for slot in 0..SEGMENT_SLOTS {
                let reached = real[slot as usize / 64] >> (slot % 64) & 1 == 1;
                match (segment.is_live(slot), reached) {
                    (false, true) => {
                        report.problems.push(format!("segment {} slot {slot} is in use but accounted dead", id.0));
                    }
                    (true, false) => report.leaked += 1,
                    _ => {}
                }
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

    /// Reads every block that `volume` (or the pool) reaches; `ticker` is told of bytes.
    pub(crate) fn scrub_with(&mut self, volume: Option<VolumeId>, ticker: &mut Ticker<'_>) -> Result<ScrubReport> {
        let (mut found, mut report) = (Found::default(), ScrubReport::default());
        let chosen = self.roots.iter().filter(|(_, root)| volume.is_none_or(|volume| root.volume == volume));
        let roots: Vec<RootId> = chosen.map(|(id, _)| id).collect();
        for id in roots {
            let tree = self.roots.get(id).map;
            match self.walk(tree.top, tree.level, &mut found, &mut |_| tick(ticker, 0, 0)) {
                Err(e) if e.kind() == ErrorKind::Closed => return Err(e),
                Err(e) => report.damaged.push(format!("map: {e}")),
                Ok(()) => {}
            }
        }
        let total = found.blocks() * BLOCK_U64;
        for (id, bits) in &found.live {
            self.scrub_segment(*id, bits, &mut report, &mut |done| tick(ticker, done, total))?;
        }
        Ok(report)
    }

    fn scrub_segment(
        &mut self,
        id: SegmentId,
        bits: &Bitmap,
        report: &mut ScrubReport,
        visit: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut block = [0; BLOCK];
        for slot in (0..SEGMENT_SLOTS).filter(|slot| bits[*slot as usize / 64] >> (slot % 64) & 1 == 1) {
            let addr = SlotAddr::new(id, slot);
            report.blocks += 1;
            let read = self.segments.read_slots(addr, &mut block);
            match read.and_then(|()| self.segments.crc(addr, self.map.cache())) {
                Ok(crc) if crc == crc32fast::hash(&block) => {}
                Ok(_) => report.damaged.push(format!("{addr}: checksum mismatch")),
                Err(e) => report.damaged.push(e.to_string()),
            }
            visit(report.blocks * BLOCK_U64)?;
        }
        Ok(())
    }
}
