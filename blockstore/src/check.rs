//! The checker: walks every root and recomputes what the running store keeps up to date; and the
//! scrubber: reads every live slot and verifies its checksum.

use crate::error::Result;
use crate::format::segment::{Bitmap, SegmentKind, BITMAP_WORDS};
use crate::limits::{BLOCK, SEGMENT_SLOTS};
use crate::map::{Ref, FANOUT};
use crate::pool::Pool;
use crate::types::{RootId, SegmentId, SlotAddr};
use std::collections::{HashMap, HashSet};

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

/// How far a scrub has come.
#[derive(Clone, Debug, Default)]
pub struct ScrubProgress {
    /// The next segment.
    pub next: Option<SegmentId>,
    /// Blocks verified.
    pub blocks: u64,
    /// Damage found.
    pub damaged: Vec<String>,
    /// Nothing is left.
    pub done: bool,
}

#[derive(Default)]
struct Found {
    live: HashMap<SegmentId, Box<Bitmap>>,
    nodes: HashMap<SlotAddr, usize>,
    seen: HashSet<Ref>,
}

impl Found {
    fn mark(&mut self, addr: SlotAddr) {
        let map = self.live.entry(addr.segment()).or_insert_with(|| Box::new([0; BITMAP_WORDS]));
        map[addr.slot() as usize / 64] |= 1 << (addr.slot() % 64);
    }
}

impl Pool {
    /// Recomputes the accounts from the roots.
    pub fn check(&mut self) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let mut found = Found::default();
        let roots: Vec<RootId> = self.roots.iter().map(|(id, _)| id).collect();
        for id in roots {
            report.roots += 1;
            let tree = self.roots.get(id).map;
            if let Err(e) = self.walk(tree.top, tree.level, &mut found) {
                report.problems.push(format!("root {}: {e}", id.0));
            }
        }
        self.compare(&found, &mut report);
        Ok(report)
    }

    fn walk(&mut self, at: Ref, level: u8, found: &mut Found) -> Result<()> {
        if at == Ref::HOLE || !found.seen.insert(at) {
            return Ok(());
        }
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
            self.walk(child, level - 1, found)?;
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

    /// Verifies the data of one more segment.
    pub fn scrub(&mut self, progress: &mut ScrubProgress) -> Result<()> {
        let from = progress.next.unwrap_or(SegmentId(0));
        let next = self.segments.table.iter().find(|(id, s)| *id >= from && s.kind == SegmentKind::Log && s.live > 0);
        let Some((id, segment)) = next else {
            progress.done = true;
            return Ok(());
        };
        let live: Vec<u32> = (0..SEGMENT_SLOTS).filter(|slot| segment.is_live(*slot)).collect();
        progress.next = Some(SegmentId(id.0 + 1));
        let mut block = [0; BLOCK];
        for slot in live {
            let addr = SlotAddr::new(id, slot);
            progress.blocks += 1;
            let read = self.segments.read_slots(addr, &mut block);
            match read.and_then(|()| self.segments.crc(addr, self.map.cache())) {
                Ok(crc) if crc == crc32fast::hash(&block) => {}
                Ok(_) => progress.damaged.push(format!("{addr}: checksum mismatch")),
                Err(e) => progress.damaged.push(e.to_string()),
            }
        }
        Ok(())
    }
}
