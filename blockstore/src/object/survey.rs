//! Which objects of a pool still hold something: what is dead is forgotten, what is mostly dead is put again.
//!
//! Invariants
//!   * only between rounds: a round in flight sees what was known when it began;
//!   * a part is forgotten when nothing in it lives, in the accounts and in the newest anchor, and no record in it is
//!     needed for a replay; or when its slots are here and the next round puts them again;
//!   * a part put again covers every part that was forgotten for it: of two that overlap the later one has all.

use super::tier::{Chain, Standing};
use super::upload::anchored_slot;
use super::worn::is_settled;
use crate::format::anchor::Anchor;
use crate::format::manifest::{ObjectInfo, Part};
use crate::format::object::{within, ObjectId};
use crate::format::segment::{Place, SegmentKind};
use crate::limits::{FENCE_FRESH_US, FIRST_SLOT, REPACK_SLOTS_MAX, UNNAMED_US_MAX};
use crate::pool::Pool;
use crate::types::{SegmentId, VolumeId};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Objects measured at a time.
const MEASURED_MAX: usize = 64;

/// What is known of an object.
#[derive(Default)]
struct Held {
    live: u32,
    /// Slots between the ends of its parts: no fewer than it holds.
    span: u32,
    /// It can be put again from here.
    here: bool,
    /// It is known what lives in it, and that no record in it is needed.
    settled: bool,
}

/// What of a segment's slots up to `end` is in no part.
pub(crate) fn gaps(parts: &[Part], end: u32) -> Vec<(u32, u32)> {
    let starts = std::iter::once(FIRST_SLOT).chain(parts.iter().map(|part| part.end));
    let ends = parts.iter().map(|part| part.first).chain([end]);
    starts.zip(ends).filter(|(first, end)| first < end).collect()
}

/// Adds a part that a manifest names to those known of its segment.
pub(crate) fn adopt_part(parts: &mut Vec<Part>, part: Part) {
    let overlaps = |have: &Part| have.first < part.end && part.first < have.end;
    let later = |have: &Part| have.object.number > part.object.number || *have == part;
    if parts.iter().any(|have| overlaps(have) && later(have)) {
        return;
    }
    parts.retain(|have| !overlaps(have));
    parts.push(part);
    parts.sort_by_key(|part| part.first);
}

impl Pool {
    /// Forgets what is dead, condemns what no manifest names, and marks volumes whose manifest names what is dead.
    /// Returns objects to measure; `None` when it is not the time.
    pub(crate) fn survey(&mut self, now_us: u64) -> Option<Vec<(ObjectId, ObjectInfo)>> {
        let tier = self.tier.as_ref()?;
        let anchor = tier.anchor.clone()?;
        if tier.chains.values().any(|chain| chain.standing == Standing::Unknown) {
            return None;
        }
        self.drop_imported();
        self.remember_put();
        let held = self.forget_dead(&anchor);
        let measure = self.repack(&held);
        let known: HashSet<ObjectId> = {
            let parts = self.segments.remote.as_ref()?.parts.values().flatten();
            parts.map(|part| part.object).collect()
        };
        let remote = self.segments.remote.as_mut()?;
        let tier = self.tier.as_mut()?;
        let mut named: HashSet<ObjectId> = known.clone();
        let mut settled = tier.farewells.is_empty();
        for chain in tier.chains.values_mut() {
            settled &= chain.standing != Standing::Owned || chain.pending.is_empty();
            if let Some(last) = &chain.last {
                named.extend(last.objects.keys().copied());
                chain.refresh = last.objects.keys().any(|id| !known.contains(id) || tier.cleaner.worn.contains(id));
                tier.cleaner.unnamed.retain(|id, _| !last.objects.contains_key(id));
            }
        }
        tier.cleaner.spare(|id| named.contains(id));
        // A manifest whose outcome is not known may name what is to be condemned.
        if settled {
            let dead: Vec<_> = remote.objects.iter().filter(|(id, _)| !named.contains(id)).collect();
            let dead: Vec<(ObjectId, ObjectInfo)> = dead.into_iter().map(|(id, info)| (*id, *info)).collect();
            for (id, info) in dead {
                Arc::make_mut(&mut remote.objects).remove(&id);
                if id.pool == self.pool_id {
                    tier.cleaner.condemn(id, info, now_us);
                }
            }
        }
        Some(measure)
    }

    /// Segments that were taken over with a volume which is gone, with all that came from it: nothing lives there.
    fn drop_imported(&mut self) {
        let imported = |s: &crate::space::Segment| matches!(s.place, Place::Imported | Place::Counted) && s.live > 0;
        if !self.segments.table.iter().any(|(_, s)| imported(s)) {
            return;
        }
        // A state that is still being given back may lead anywhere.
        if self.roots.iter().any(|(_, root)| !self.volumes.contains_key(&root.volume)) {
            return;
        }
        let needed = self.logs_in_use();
        let gone = self.segments.table.iter().filter(|(_, s)| imported(s) && !needed.contains(&s.volume));
        let gone: Vec<SegmentId> = gone.map(|(id, _)| id).collect();
        gone.into_iter().for_each(|id| self.segments.table.empty(id));
    }

    /// The volumes whose logs may hold what a volume needs: its own, and those of its origins.
    pub(crate) fn logs_in_use(&self) -> BTreeSet<VolumeId> {
        self.volumes.iter().flat_map(|(id, v)| v.origins.iter().copied().chain([*id])).collect()
    }

    /// Whether something of a part is in use, and how much of it.
    fn live_slots(&self, anchor: &Anchor, id: SegmentId, part: &Part) -> Option<u32> {
        let segment = self.segments.table.get(id)?;
        let count = |bits| within(bits, part.first, part.end).iter().map(|w| w.count_ones()).sum::<u32>();
        let live = count(&segment.bits);
        let in_anchor = || {
            let at = anchor.segments.binary_search_by_key(&id, |s| s.id).ok()?;
            anchor.segments.get(at).map(|s| count(&s.bits))
        };
        let needed = match segment.kind {
            SegmentKind::Log => part.end > anchored_slot(anchor, id) && segment.place == Place::Here,
            SegmentKind::Map => in_anchor().is_some_and(|live| live > 0),
        };
        (live > 0 || needed).then_some(live)
    }

    /// Segments of which everything was put again.
    fn remember_put(&mut self) {
        let (Some(tier), Some(remote)) = (&mut self.tier, &self.segments.remote) else { return };
        let table = &self.segments.table;
        tier.cleaner.forgotten.retain(|id| {
            let (Some(segment), Some(parts)) = (table.get(*id), remote.parts.get(id)) else { return true };
            let end = remote.uploaded(*id).min(segment.used);
            let missing = |(first, end): (u32, u32)| within(&segment.bits, first, end).iter().any(|word| *word != 0);
            gaps(parts, end).into_iter().any(missing)
        });
        tier.cleaner.forgotten.retain(|id| table.get(*id).is_some());
    }

    fn forget_dead(&mut self, anchor: &Anchor) -> BTreeMap<ObjectId, Held> {
        let mut held: BTreeMap<ObjectId, Held> = BTreeMap::new();
        let Some(remote) = &self.segments.remote else { return held };
        let (parts, mut dead) = (remote.parts.clone(), HashSet::new());
        for (id, part) in parts.iter().flat_map(|(id, parts)| parts.iter().map(move |part| (*id, part))) {
            let Some(live) = self.live_slots(anchor, id, part) else {
                dead.insert((id, part.first));
                continue;
            };
            let here = self.segments.table.get(id).is_some_and(|s| s.place == Place::Here && part.end <= s.used)
                && part.end <= anchored_slot(anchor, id);
            let place = self.segments.table.get(id).map_or(Place::Imported, |s| s.place);
            let entry = held.entry(part.object).or_insert(Held { here: true, settled: true, ..Held::default() });
            entry.settled &= is_settled(place, anchor, id, part.end);
            entry.live += live;
            entry.span += part.end - part.first;
            entry.here &= here;
        }
        drop(parts);
        if !dead.is_empty() {
            self.forget(&mut |id, part| dead.contains(&(id, part.first)));
        }
        held
    }

    fn forget(&mut self, over: &mut dyn FnMut(SegmentId, &Part) -> bool) {
        let Some(remote) = &mut self.segments.remote else { return };
        Arc::make_mut(&mut remote.parts).retain(|id, parts| {
            parts.retain(|part| !over(*id, part));
            !parts.is_empty()
        });
    }

    /// What was put long ago and is in no manifest may have been swept away: before every round.
    pub(crate) fn forget_unnamed(&mut self, now_us: u64) {
        let Some(tier) = &mut self.tier else { return };
        let over = |put_us: &u64| put_us.saturating_add(UNNAMED_US_MAX) <= now_us;
        if !tier.cleaner.unnamed.values().any(over) {
            return;
        }
        let named: HashSet<ObjectId> =
            tier.chains.values().filter_map(|c| c.last.as_ref()).flat_map(|m| m.objects.keys().copied()).collect();
        let unnamed = &mut tier.cleaner.unnamed;
        unnamed.retain(|id, _| !named.contains(id));
        let old = unnamed.iter().filter(|(_, put_us)| over(put_us));
        let old: BTreeSet<ObjectId> = old.map(|(id, _)| *id).collect();
        if !old.is_empty() {
            unnamed.retain(|id, _| !old.contains(id));
            self.put_again(&old);
        }
    }

    /// The slots of `objects` belong to the next round, where their segments are here.
    fn put_again(&mut self, objects: &BTreeSet<ObjectId>) {
        let here = self.segments.table.iter().filter(|(_, s)| s.place == Place::Here).map(|(id, _)| id);
        let (here, mut segments) = (here.collect::<HashSet<SegmentId>>(), BTreeSet::new());
        self.forget(&mut |id, part| {
            let over = objects.contains(&part.object) && here.contains(&id);
            segments.extend(over.then_some(id));
            over
        });
        if let Some(tier) = &mut self.tier {
            tier.cleaner.forgotten.extend(segments);
        }
    }

    /// Puts the live slots of objects again that are mostly dead, as many as a round may take; returns those of
    /// which it is not known how full they were.
    fn repack(&mut self, held: &BTreeMap<ObjectId, Held>) -> Vec<(ObjectId, ObjectInfo)> {
        let (Some(tier), Some(remote)) = (&self.tier, &self.segments.remote) else { return Vec::new() };
        let poor = held.iter().filter(|(id, held)| {
            let possible = held.here && id.pool == self.pool_id || held.settled && !tier.cleaner.stubborn.contains(id);
            possible && held.live > 0 && held.live * 2 < held.span
        });
        let (mut measure, mut again, mut room) = (Vec::new(), BTreeSet::new(), REPACK_SLOTS_MAX);
        let mut worn = BTreeSet::new();
        for (id, held) in poor {
            match (tier.cleaner.fill.get(id), remote.objects.get(id)) {
                (Some(slots), _) if held.live * 2 < *slots && held.live <= room => {
                    room -= held.live;
                    let chosen = if held.here && id.pool == self.pool_id { &mut again } else { &mut worn };
                    chosen.insert(*id);
                }
                (None, Some(info)) if measure.len() < MEASURED_MAX => measure.push((*id, *info)),
                _ => {}
            }
        }
        if !again.is_empty() {
            self.put_again(&again);
        }
        if let Some(tier) = &mut self.tier {
            tier.cleaner.done.repacked += again.len() as u64;
            tier.cleaner.worn = worn;
        }
        measure
    }
}

impl Chain {
    /// Whether a round has to put a manifest.
    pub(crate) fn is_due(&self, now_us: u64) -> bool {
        let changed = self.changed > self.cut || self.number == 0 || self.refresh;
        self.standing == Standing::Owned && changed && self.serve_from_us <= now_us
    }

    /// Whether so much time has passed that others may have come and gone: what took the place of our next manifest
    /// may have been deleted since, so that only a list tells.
    pub(crate) fn is_silent(&self, now_us: u64) -> bool {
        self.confirmed_us.is_none_or(|since_us| since_us.saturating_add(FENCE_FRESH_US) <= now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(first: u32, end: u32, number: u64) -> Part {
        Part { first, end, object: ObjectId { pool: [1; 16], volume: VolumeId(1), number } }
    }

    #[test]
    fn gaps_are_what_no_part_holds() {
        assert_eq!(gaps(&[], 10), [(1, 10)]);
        assert_eq!(gaps(&[part(1, 4, 1), part(6, 10, 2)], 10), [(4, 6)]);
        assert_eq!(gaps(&[part(3, 4, 1)], 10), [(1, 3), (4, 10)]);
    }

    #[test]
    fn of_two_parts_that_overlap_the_later_one_stays() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let all = [part(10, 50, 1), part(60, 70, 2), part(8, 52, 3)];
            let mut parts = Vec::new();
            order.iter().for_each(|at| adopt_part(&mut parts, all[*at]));
            assert_eq!(parts, [part(8, 52, 3), part(60, 70, 2)]);
        }
    }
}
