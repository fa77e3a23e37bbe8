//! Numbers that segments of one pool have in another.
//!
//! Promise: of two addresses the order stays, and they never get further apart. So what is packed as differences in a
//! map page can be written over in place, and a volume that is taken over needs about as many numbers as it has
//! segments, however many its maker has used.
//!
//! Invariants
//!   * runs follow one another in both numberings, here by no more than there;
//!   * where numbers there lie between two runs, at least one lies between them here; the number before the first run
//!     and the one behind the last are kept free, too. What a run does not hold, segments in which nothing lives,
//!     falls there: it names nobody else's.

#![expect(clippy::arithmetic_side_effects, reason = "numbers of segments have 27 bits, addresses 40")]

use super::codec::{Append, Reader};
use crate::error::{Error, Result};
use crate::limits::{SEGMENT_BITS, SLOT_BITS};
use crate::types::{SegmentId, SlotAddr};

/// Segments whose numbers differ by one distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    there: u32,
    here: u32,
    count: u32,
}

impl Run {
    fn there_end(&self) -> u32 {
        self.there + self.count
    }
    fn here_end(&self) -> u32 {
        self.here + self.count
    }
}

/// The numbers here of segments of another pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renumbering {
    runs: Vec<Run>,
}

impl Renumbering {
    /// Numbers from `free` on for segments that have the numbers `there`, in order, in another pool. Returns the first
    /// number that is free afterwards, which may be more than there can be.
    pub fn dense(there: impl Iterator<Item = SegmentId>, free: u32) -> (Self, u64) {
        let mut runs: Vec<Run> = Vec::new();
        for id in there {
            let between = runs.last().map(|run| id.0.saturating_sub(run.there_end()));
            match (runs.last_mut(), between) {
                // A single number between two runs is the one that would be kept free.
                (Some(run), Some(between @ 0..=1)) => run.count += between + 1,
                (Some(run), _) => {
                    let here = run.here_end().saturating_add(1);
                    runs.push(Run { there: id.0, here, count: 1 });
                }
                (None, _) => runs.push(Run { there: id.0, here: free.saturating_add(1), count: 1 }),
            }
        }
        let free = runs.last().map_or(u64::from(free), |run| u64::from(run.here) + u64::from(run.count) + 1);
        (Self { runs }, free)
    }

    /// Of segments whose numbers there and here are known, in order.
    pub fn of(pairs: impl Iterator<Item = (SegmentId, SegmentId)>) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (there, here) in pairs {
            match runs.last_mut() {
                Some(run) if there.0.wrapping_sub(run.there) == here.0.wrapping_sub(run.here) => {
                    run.count = there.0 - run.there + 1;
                }
                _ => runs.push(Run { there: there.0, here: here.0, count: 1 }),
            }
        }
        Self { runs }
    }

    /// The number here of a segment that has `id` there.
    pub fn here(&self, id: SegmentId) -> Option<SegmentId> {
        let behind = self.runs.partition_point(|run| run.there <= id.0);
        let run = self.runs.get(behind.checked_sub(1)?)?;
        (id.0 < run.there_end()).then(|| SegmentId(id.0 - run.there + run.here))
    }

    /// The number there of a segment that has `id` here.
    pub fn there(&self, id: SegmentId) -> Option<SegmentId> {
        let behind = self.runs.partition_point(|run| run.here <= id.0);
        let run = self.runs.get(behind.checked_sub(1)?)?;
        (id.0 < run.here_end()).then(|| SegmentId(id.0 - run.here + run.there))
    }

    /// An address in the other pool, here. One that no run holds gets one that nobody has. `None` when there is no run.
    pub fn addr(&self, addr: SlotAddr) -> Option<SlotAddr> {
        let id = addr.segment().0;
        let behind = self.runs.partition_point(|run| run.there <= id);
        let before = behind.checked_sub(1).and_then(|at| self.runs.get(at));
        let moved = |run: &Run| {
            let (there, here) = (u64::from(run.there) << SLOT_BITS, u64::from(run.here) << SLOT_BITS);
            SlotAddr((addr.0 + here).saturating_sub(there))
        };
        if let Some(run) = before.filter(|run| id < run.there_end()) {
            return Some(moved(run));
        }
        // Together with what follows, as far as that leaves it behind what comes before.
        let next = self.runs.get(behind);
        let free = before.map_or_else(|| next.map(|run| run.here.saturating_sub(1)), |run| Some(run.here_end()))?;
        let floor = SlotAddr(u64::from(free) << SLOT_BITS);
        Some(next.map_or(floor, moved).max(floor))
    }

    /// Appends the runs.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.runs.len() as u32);
        for run in &self.runs {
            out.put_u32(run.there);
            out.put_u32(run.here);
            out.put_u32(run.count);
        }
    }

    /// Reads runs.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let mut all = Self::default();
        for _ in 0..r.u32()? {
            all.push(Run { there: r.u32()?, here: r.u32()?, count: r.u32()? })?;
        }
        if all.runs.is_empty() {
            return Err(Error::corrupt("it takes over nothing from somebody"));
        }
        Ok(all)
    }

    fn push(&mut self, run: Run) -> Result<()> {
        let sums = (run.there.checked_add(run.count), run.here.checked_add(run.count));
        let (Some(there_end), Some(here_end)) = sums else { return Err(impossible()) };
        let between = self
            .runs
            .last()
            .map(|last| (run.there.checked_sub(last.there_end()), run.here.checked_sub(last.here_end())));
        let follows = match between {
            None => run.here > 0,
            Some((Some(there), Some(here))) => here <= there && (here > 0 || there == 0),
            Some(_) => false,
        };
        if run.count == 0 || there_end.max(here_end) > 1 << SEGMENT_BITS || !follows {
            return Err(impossible());
        }
        self.runs.push(run);
        Ok(())
    }

    /// All numbers from 1 on, `distance` more here.
    pub fn by_distance(distance: u32) -> Result<Self> {
        let here = distance.saturating_add(1);
        let mut all = Self::default();
        all.push(Run { there: 1, here, count: (1u32 << SEGMENT_BITS).saturating_sub(here) })?;
        Ok(all)
    }
}

fn impossible() -> Error {
    Error::corrupt("it takes over segments that cannot be")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn listed(max: u32) -> impl Strategy<Value = BTreeSet<u32>> {
        proptest::collection::btree_set(prop_oneof![1..40u32, 1..max], 1..40)
    }

    fn addresses(max: u32) -> impl Strategy<Value = Vec<SlotAddr>> {
        let slot = prop_oneof![Just(0u32), 1..8190u32, Just(8191)];
        let one = (prop_oneof![1..42u32, 1..max], slot).prop_map(|(id, slot)| SlotAddr::new(SegmentId(id), slot));
        proptest::collection::vec(one, 1..60)
    }

    fn ids(numbers: &BTreeSet<u32>) -> impl Iterator<Item = SegmentId> + '_ {
        numbers.iter().copied().map(SegmentId)
    }

    /// What the module's head promises, of any renumbering that holds `listed`.
    fn judge(all: &Renumbering, listed: &BTreeSet<u32>, addresses: &[SlotAddr]) {
        let here: BTreeSet<SegmentId> = ids(listed).map(|id| all.here(id).unwrap()).collect();
        assert_eq!(here.len(), listed.len());
        for id in ids(listed) {
            assert_eq!(all.here(id).and_then(|id| all.there(id)), Some(id));
        }
        let mut addresses: Vec<SlotAddr> = addresses.to_vec();
        addresses.extend(ids(listed).flat_map(|id| [SlotAddr::new(id, 0), SlotAddr::new(id, 8191)]));
        addresses.sort();
        let moved: Vec<SlotAddr> = addresses.iter().map(|addr| all.addr(*addr).unwrap()).collect();
        for (addr, moved) in addresses.iter().zip(&moved) {
            let id = addr.segment();
            match listed.contains(&id.0) {
                true => assert_eq!(*moved, SlotAddr::new(all.here(id).unwrap(), addr.slot())),
                false => assert!(!here.contains(&moved.segment()), "{addr} is not listed and becomes {moved}"),
            }
        }
        for (from, to) in addresses.windows(2).zip(moved.windows(2)) {
            assert!(to[0] <= to[1] && to[1].0 - to[0].0 <= from[1].0 - from[0].0, "{from:?} become {to:?}");
        }
    }

    fn coded(all: &Renumbering) -> Result<Renumbering> {
        let mut bytes = Vec::new();
        all.encode(&mut bytes);
        Renumbering::decode(&mut Reader::new(&bytes, "runs"))
    }

    proptest! {
        #[test]
        fn order_stays_and_distances_do_not_grow(
            listed in listed(1 << 27),
            addresses in addresses(1 << 27),
            free in 1..1000u32,
        ) {
            let (all, end) = Renumbering::dense(ids(&listed), free);
            judge(&all, &listed, &addresses);
            prop_assert!(end - u64::from(free) <= 2 * listed.len() as u64 + 1);
            let ends = [listed.first(), listed.last()].map(|id| all.here(SegmentId(*id.unwrap())).unwrap().0);
            prop_assert!(ends[0] > free && u64::from(ends[1]) + 1 < end);
            prop_assert_eq!(coded(&all).unwrap(), all);
        }

        /// A volume that moves on and loses segments on its way: the numbers of its first maker, at its third owner.
        #[test]
        fn what_was_taken_over_can_be_taken_over(
            first in listed(1 << 20),
            keep in any::<u64>(),
            own in 1..30u32,
            addresses in addresses(1 << 20),
        ) {
            let (second, free) = Renumbering::dense(ids(&first), 500);
            let left: BTreeSet<u32> = first.iter().zip(0..).filter(|(_, i)| keep >> (i % 64) & 1 == 1).map(|(id, _)| *id).collect();
            prop_assume!(!left.is_empty());
            let there: BTreeSet<u32> =
                ids(&left).map(|id| second.here(id).unwrap().0).chain((0..own).map(|i| free as u32 + i)).collect();
            let (third, _) = Renumbering::dense(ids(&there), 77);
            let pairs = ids(&left).map(|id| (id, third.here(second.here(id).unwrap()).unwrap()));
            let all = Renumbering::of(pairs);
            judge(&all, &left, &addresses);
            judge(&third, &there, &addresses);
            prop_assert_eq!(coded(&all).unwrap(), all);
        }
    }

    #[test]
    fn nothing_is_read_that_breaks_the_invariants() {
        let run = |there, here, count| Run { there, here, count };
        let coded = |runs: &[Run]| coded(&Renumbering { runs: runs.to_vec() }).is_ok();
        assert!(coded(&[run(5, 1, 2), run(9, 4, 99)]));
        let broken: [&[Run]; 10] = [
            &[],
            &[run(5, 0, 1)],
            &[run(5, 1, 0)],
            &[run(5, (1 << 27) - 1, 2)],
            &[run(1 << 27, 1, 1)],
            &[run(u32::MAX, 1, 2)],
            &[run(5, u32::MAX, 2)],
            &[run(5, 1, 2), run(7, 4, 1)],
            &[run(5, 1, 2), run(9, 3, 1)],
            &[run(5, 1, 2), run(6, 3, 1)],
        ];
        broken.iter().for_each(|runs| assert!(!coded(runs), "{runs:?}"));
    }
}
