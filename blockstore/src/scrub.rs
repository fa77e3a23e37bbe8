//! The scrubber: reads every block that some root reaches, verifies its checksum, and says whose block it is.
//!
//! Invariants
//!   * a damaged page or block is reported and passed over: one finding never hides the others;
//!   * a finding names who holds the block (`disk@v1`, or `disk@Current` for a head), its number, its segment
//!     and its slot; what is wrong with many blocks of a segment, as when its file is gone, is one finding;
//!   * memory follows the size of the map and of the damage, not of the data.
//!
//! Not here: the accounts (`check`).

use crate::check::{tick, Found, Ticker};
use crate::error::Result;
use crate::format::anchor::RootKind;
use crate::format::segment::{Bitmap, Place};
use crate::limits::{BLOCK, BLOCK_U64, SEGMENT_SLOTS};
use crate::map::{span, Ref, FANOUT};
use crate::pool::Pool;
use crate::space::segment_name;
use crate::types::{RootId, SegmentId, SlotAddr, VolumeId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write;

/// Blocks of one segment with the same damage that are named one by one.
const BLOCKS_SHOWN: usize = 8;
/// Holders that one finding names.
const HOLDERS_SHOWN: usize = 4;
/// Map nodes looked at to find out who holds what is damaged: beyond it holders are missing from the findings.
const NODES_SEARCHED_MAX: u64 = 4 << 20;

/// What is to be read.
pub(crate) enum ScrubPart {
    /// All that the pool holds.
    Pool,
    /// A volume with its checkpoints.
    Volume(VolumeId),
    /// One checkpoint.
    State(RootId),
}

/// What a scrub found.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Data blocks read, or meant to be.
    pub blocks: u64,
    /// Damage found, in words: one line for each block, or one for each file with many.
    pub damaged: Vec<String>,
}

/// What is wrong with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Harm {
    /// Its bytes, or its checksum, cannot be had.
    Unreadable,
    /// They do not belong together.
    Mismatch,
}

/// Damaged slots by segment and harm.
type Damage = BTreeMap<(SegmentId, Harm), Group>;

#[derive(Default)]
struct Group {
    slots: Vec<SlotAddr>,
    /// What was said of the first.
    why: String,
    /// The file as a whole is unreadable.
    whole: bool,
}

/// Who holds a damaged slot, and as which block.
type Holders = HashMap<SlotAddr, Vec<(RootId, u64)>>;

/// A search for holders.
struct Search<'a> {
    damaged: &'a HashSet<SlotAddr>,
    /// Nodes below which nothing is damaged.
    clean: HashSet<Ref>,
    left: u64,
    holders: Holders,
}

fn slots_of(id: SegmentId, bits: &Bitmap) -> impl Iterator<Item = SlotAddr> + '_ {
    let set = (0..SEGMENT_SLOTS).filter(|slot| bits[*slot as usize / 64] >> (slot % 64) & 1 == 1);
    set.map(move |slot| SlotAddr::new(id, slot))
}

impl Pool {
    /// Reads every block of `part`; `ticker` is told of bytes.
    pub(crate) fn scrub_with(&mut self, part: ScrubPart, ticker: &mut Ticker<'_>) -> Result<ScrubReport> {
        let (mut found, mut report, mut damage) = (Found::default(), ScrubReport::default(), Damage::new());
        let chosen = self.roots.iter().filter(|(id, root)| match part {
            ScrubPart::Pool => true,
            ScrubPart::Volume(volume) => root.volume == volume,
            ScrubPart::State(state) => *id == state,
        });
        let roots: Vec<RootId> = chosen.map(|(id, _)| id).collect();
        for id in roots {
            let tree = self.roots.get(id).map;
            self.walk(tree.top, tree.level, 0, &mut found, &mut |_| tick(ticker, 0, 0))?;
            report.damaged.extend(found.take_lost(&self.label(id)));
        }
        let total = found.blocks() * BLOCK_U64;
        for (id, bits) in &found.live {
            self.scrub_segment(*id, bits, &mut report, &mut damage, &mut |done| tick(ticker, done, total))?;
        }
        let damaged: HashSet<SlotAddr> = damage.values().flat_map(|group| group.slots.iter().copied()).collect();
        let holders = self.find_holders(&damaged, &mut || tick(ticker, total, total))?;
        for ((id, _), group) in &damage {
            self.describe(*id, group, &holders, &mut report.damaged);
        }
        Ok(report)
    }

    fn scrub_segment(
        &mut self,
        id: SegmentId,
        bits: &Bitmap,
        report: &mut ScrubReport,
        damage: &mut Damage,
        visit: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let is_here = self.segments.table.get(id).is_none_or(|segment| segment.place == Place::Here);
        if let (true, Err(e)) = (is_here, self.segments.file(id)) {
            let slots: Vec<SlotAddr> = slots_of(id, bits).collect();
            report.blocks += slots.len() as u64;
            damage.insert((id, Harm::Unreadable), Group { slots, why: e.to_string(), whole: true });
            return visit(report.blocks * BLOCK_U64);
        }
        let mut block = [0; BLOCK];
        for addr in slots_of(id, bits) {
            report.blocks += 1;
            let read = self.segments.read_slots(addr, &mut block);
            let harm = match read.and_then(|()| self.segments.crc(addr, self.map.cache())) {
                Ok(crc) if crc == crc32fast::hash(&block) => None,
                Ok(_) => Some((Harm::Mismatch, "checksum mismatch".to_owned())),
                Err(e) => Some((Harm::Unreadable, e.to_string())),
            };
            if let Some((harm, why)) = harm {
                let group = damage.entry((id, harm)).or_default();
                group.slots.push(addr);
                if group.why.is_empty() {
                    group.why = why;
                }
            }
            visit(report.blocks * BLOCK_U64)?;
        }
        Ok(())
    }

    /// Which heads and checkpoints of the whole pool map the damaged slots.
    fn find_holders(&mut self, damaged: &HashSet<SlotAddr>, visit: &mut dyn FnMut() -> Result<()>) -> Result<Holders> {
        let (clean, holders) = (HashSet::new(), Holders::new());
        let mut search = Search { damaged, clean, left: NODES_SEARCHED_MAX, holders };
        if damaged.is_empty() {
            return Ok(search.holders);
        }
        let named = self.roots.iter().filter(|(_, root)| !matches!(root.kind, RootKind::Ghost { .. }));
        let mut roots: Vec<(VolumeId, bool, RootId)> =
            named.map(|(id, root)| (root.volume, !matches!(root.kind, RootKind::Head), id)).collect();
        roots.sort_unstable();
        for (_, _, id) in roots {
            visit()?;
            let tree = self.roots.get(id).map;
            self.search(id, tree.top, tree.level, 0, &mut search);
        }
        Ok(search.holders)
    }

    /// Whether a damaged slot, or something that cannot be read, lies below `at`.
    fn search(&mut self, root: RootId, at: Ref, level: u8, base: u64, search: &mut Search<'_>) -> bool {
        if at == Ref::HOLE || search.clean.contains(&at) || search.left == 0 {
            return false;
        }
        search.left -= 1;
        let mut hit = false;
        if level == 0 {
            let Ok(leaf) = self.map.leaf_of(at, &self.segments) else { return true };
            for (bits, block) in leaf.iter().zip(base..) {
                if search.damaged.contains(&SlotAddr(*bits)) {
                    hit = true;
                    search.holders.entry(SlotAddr(*bits)).or_default().push((root, block));
                }
            }
        } else {
            for i in 0..FANOUT {
                let Ok(child) = self.map.child(at, i, &self.segments) else { return true };
                hit |= self.search(root, child, level - 1, base + i as u64 * span(level - 1), search);
            }
        }
        if !hit {
            search.clean.insert(at);
        }
        hit
    }

    fn describe(&self, id: SegmentId, group: &Group, holders: &Holders, out: &mut Vec<String>) {
        let (nobody, why) = (Vec::new(), &group.why);
        let of = |addr: &SlotAddr| holders.get(addr).unwrap_or(&nobody);
        if !group.whole && group.slots.len() <= BLOCKS_SHOWN {
            for addr in &group.slots {
                let all = of(addr).iter().map(|(root, block)| format!("{} block {block}", self.label(*root)));
                out.push(format!("{}: {addr}: {why}", some_of(all)));
            }
            return;
        }
        let roots: BTreeSet<RootId> = group.slots.iter().flat_map(of).map(|(root, _)| *root).collect();
        let (count, name) = (group.slots.len(), segment_name(id));
        let mut line = format!("{count} blocks of {}", some_of(roots.iter().map(|root| self.label(*root))));
        let first = group.slots.iter().find_map(|addr| of(addr).first());
        if let Some((root, block)) = first {
            let _ = write!(line, ", for one {} block {block}", self.label(*root));
        }
        out.push(format!("{line}: segment {} ({name}): {why}", id.0));
    }
}

/// The first few of `all`, and how many more there are.
fn some_of(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    let more = all.len().saturating_sub(HOLDERS_SHOWN);
    let shown = all[..all.len() - more].join(", ");
    match (all.len(), more) {
        (0, _) => "nobody that was found".to_owned(),
        (_, 0) => shown,
        _ => format!("{shown} and {more} more"),
    }
}
