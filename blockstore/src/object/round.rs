//! Which work the object store is due: looking volumes up, a round of uploading, cleaning.
//!
//! Invariants
//!   * a volume is uploaded only after its newest manifest has been seen and is this pool's, or its name is free;
//!   * the number of a volume's next manifest is that of the last one seen plus one: whoever else wrote one is
//!     noticed with the next;
//!   * while a round runs, the cleaner touches no file that it reads;
//!   * a round begins with an anchor that holds every creation, deletion and fork before its cut: the tail of a
//!     volume's log then concerns that volume alone.

use super::claim::ClaimJob;
use super::survey::gaps;
use super::tier::{Farewell, Standing, TierJob};
use super::upload::{anchored_slot, Chapter, SegmentAtCut, Slots, Source, Task, UploadJob};
use crate::error::{Error, Result};
use crate::format::anchor::Anchor;
use crate::format::manifest::{Manifest, Tenure};
use crate::format::object::{within, ObjectId};
use crate::format::segment::{Place, SegmentKind};
use crate::limits::{BLOCK, OBJECT_SLOT_BYTES};
use crate::pool::{Pool, POOL_STREAM};
use crate::types::{SegmentId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

impl Pool {
    /// The next piece of work for the object store, if there is any: how often to ask decides the lag.
    pub fn tier_job(&mut self) -> Result<Option<TierJob>> {
        if self.poisoned.is_some() {
            return Ok(None);
        }
        self.refuse_older();
        let Some(tier) = &mut self.tier else { return Ok(None) };
        if tier.busy {
            return Ok(None);
        }
        let unknown = tier.chains.iter().filter(|(_, chain)| chain.standing == Standing::Unknown);
        let names = unknown.filter_map(|(id, _)| Some((*id, self.volumes.get(id)?.name.clone())));
        // A name is taken until the last word on the volume that had it is spoken.
        let names = names.filter(|(_, name)| tier.farewells.values().all(|going| going.manifest.name != *name));
        let names: Vec<_> = names.collect();
        if !names.is_empty() {
            tier.busy = true;
            let began_us = self.clock.monotonic_us();
            return Ok(Some(TierJob::Claim(ClaimJob::new(tier.config.store.clone(), names, began_us))));
        }
        if let Some(job) = self.clean_store() {
            return Ok(Some(TierJob::Clean(Box::new(job))));
        }
        let (ready, passed_us) = (self.ready_farewells(), self.clock.monotonic_us());
        let Some(tier) = &mut self.tier else { return Ok(None) };
        if ready.is_empty() && !tier.chains.values().any(|chain| chain.is_due(passed_us)) {
            return Ok(None);
        }
        let Some(anchor) = tier.anchor.clone().filter(|anchor| anchor.next_lsn >= tier.structure) else {
            return Ok(None);
        };
        self.begin_upload(anchor, &ready).map(|job| Some(TierJob::Upload(Box::new(job))))
    }

    /// Last manifests that can be put. A volume's last word is spoken when its states are given back: until then what
    /// they refer to is read, and where it is in the store alone, the manifest before keeps it there. What it shares
    /// with a fork the manifests of the fork keep.
    fn ready_farewells(&self) -> BTreeSet<VolumeId> {
        let Some(tier) = self.tier.as_ref().filter(|tier| !tier.farewells.is_empty()) else { return BTreeSet::new() };
        let going: BTreeSet<VolumeId> = self.roots.iter().map(|(_, root)| root.volume).collect();
        let ready = |id: &VolumeId, farewell: &Farewell| {
            let shared = || self.volumes.values().any(|volume| volume.origins.contains(id));
            farewell.manifest.tenure != Tenure::Deleted || !going.contains(id) || shared()
        };
        tier.farewells.iter().filter(|(id, farewell)| ready(id, farewell)).map(|(id, _)| *id).collect()
    }

    fn begin_upload(&mut self, anchor: Arc<Anchor>, ready: &BTreeSet<VolumeId>) -> Result<UploadJob> {
        let began_us = self.clock.monotonic_us();
        self.forget_unnamed(self.clock.now_us());
        let (ranges, worn) = (self.slots_to_put(&anchor)?, self.worn_objects(&anchor));
        let cut = self.next_lsn;
        let flushes = self.streams.values().map(|stream| stream.flush_job(cut, &self.disk)).collect();
        let (Some(tier), Some(remote)) = (&mut self.tier, &self.segments.remote) else {
            return Err(Error::invalid("the pool has no object store"));
        };
        tier.pinned = ranges.iter().map(|slots| slots.segment).collect();
        let first = self.epoch << 32 | tier.next_object;
        let mut tasks = group(ranges, self.pool_id, first);
        for worn in worn {
            let id = ObjectId { pool: self.pool_id, volume: worn.volume, number: first + tasks.len() as u64 };
            tasks.push(Task { id, source: Source::Store(worn) });
        }
        tier.next_object += tasks.len() as u64;
        let mut chapters = Vec::new();
        let mut nonce = [0; 16];
        for (id, chain) in &mut tier.chains {
            let Some(volume) = self.volumes.get(id) else { continue };
            if !chain.is_due(began_us) {
                continue;
            }
            let owners: BTreeSet<VolumeId> = volume.origins.iter().copied().chain([*id, POOL_STREAM]).collect();
            // Its origin was taken over before it had a manifest of its own, and the pool was opened since.
            let lost = |(id, s): (SegmentId, &crate::space::Segment)| {
                matches!(s.place, Place::Imported | Place::Counted)
                    && s.live > 0
                    && owners.contains(&s.volume)
                    && !remote.parts.contains_key(&id)
            };
            if chain.last.is_none() && self.segments.table.iter().any(lost) {
                let text = "what it shares with its origin went to another pool with that: it stays local";
                chain.standing = Standing::Refused(text.to_owned());
                continue;
            }
            tier.config.entropy.fill(&mut nonce);
            chapters.push(Chapter {
                volume: *id,
                name: volume.name.clone(),
                number: chain.number + 1,
                epoch: chain.epoch,
                nonce,
                pending: chain.pending.clone(),
                tenure: Tenure::Owned,
                predecessors: chain.last.as_ref().map_or_else(Vec::new, |last| last.predecessors.clone()),
                owners,
                pinned: chain.pinned.clone(),
                confirmed_us: chain.confirmed_us,
                whole: None,
            });
            chain.pending.push(nonce);
        }
        for (id, farewell) in tier.farewells.iter().filter(|(id, _)| ready.contains(id)) {
            let Manifest { name, number, epoch, nonce, tenure, .. } = farewell.manifest.clone();
            chapters.push(Chapter {
                volume: *id,
                name,
                number,
                epoch,
                nonce,
                pending: farewell.pending.clone(),
                tenure,
                predecessors: Vec::new(),
                owners: BTreeSet::new(),
                pinned: farewell.pinned.clone(),
                confirmed_us: None,
                whole: Some(Box::new(farewell.manifest.clone())),
            });
        }
        tier.busy = true;
        let in_anchor = anchor.segments.iter().filter(|s| s.kind == SegmentKind::Map);
        let map: BTreeMap<_, _> = in_anchor.map(|s| (s.id, &s.bits)).collect();
        let segments = self.segments.table.iter().filter_map(|(id, s)| {
            let live = match s.kind {
                SegmentKind::Map => (*map.get(&id)?).clone(),
                SegmentKind::Log => s.bits.clone(),
            };
            Some(SegmentAtCut { id, kind: s.kind, volume: s.volume, place: s.place, live })
        });
        Ok(UploadJob {
            store: tier.config.store.clone(),
            pool: self.pool_id,
            pool_epoch: self.epoch,
            time_us: self.clock.now_us(),
            began_us,
            clock: self.clock.clone(),
            cut,
            segments: segments.collect(),
            anchor,
            flushes,
            tasks,
            parts: remote.parts.clone(),
            objects: remote.objects.clone(),
            origins: remote.origins.clone(),
            next_segment: self.segments.next_id,
            chapters,
            next_task: AtomicUsize::new(0),
            puts: Mutex::default(),
            unread: Mutex::default(),
            stubborn: Mutex::default(),
            verdicts: Mutex::default(),
            flushed: Mutex::default(),
        })
    }

    /// All slots that live and are not in the store: of logs now, of the map in the anchor.
    fn slots_to_put(&self, anchor: &Anchor) -> Result<Vec<Slots>> {
        let (Some(tier), Some(remote)) = (&self.tier, &self.segments.remote) else { return Ok(Vec::new()) };
        let owned = |id: &VolumeId| tier.chains.get(id).is_some_and(|chain| chain.standing == Standing::Owned);
        // Blocks of a volume that stays local, or does not exist any more, may live on in its forks.
        let mut needed = BTreeSet::new();
        for (id, volume) in self.volumes.iter().filter(|(id, _)| owned(id)) {
            needed.extend(volume.origins.iter().copied().chain([*id]));
        }
        let mut ranges = Vec::new();
        for (id, segment) in self.segments.table.iter().filter(|(_, s)| s.place == Place::Here) {
            let (end, bits, records_from) = match segment.kind {
                SegmentKind::Log if !needed.contains(&segment.volume) => continue,
                SegmentKind::Log => (segment.used, &segment.bits, anchored_slot(anchor, id)),
                SegmentKind::Map => {
                    let Ok(at) = anchor.segments.binary_search_by_key(&id, |s| s.id) else { continue };
                    let Some(entry) = anchor.segments.get(at) else { continue };
                    (entry.used, &entry.bits, entry.used)
                }
            };
            let missing = if tier.cleaner.forgotten.contains(&id) {
                gaps(remote.parts.get(&id).map_or(&[][..], Vec::as_slice), end)
            } else {
                vec![(remote.uploaded(id), end)]
            };
            for (first, end) in missing.into_iter().filter(|(first, end)| first < end) {
                let live = within(bits, first, end);
                let needs_records = records_from < end && owned(&segment.volume);
                if live.iter().all(|word| *word == 0) && !needs_records {
                    continue;
                }
                ranges.push(Slots {
                    segment: id,
                    kind: segment.kind,
                    volume: segment.volume,
                    first,
                    end,
                    live: Arc::new(live),
                    handle: self.segments.handle(id)?,
                    crcs: self.segments.open_crcs.get(&id).cloned(),
                    records_from: if needs_records { records_from } else { end },
                });
            }
        }
        Ok(ranges)
    }
}

/// Puts ranges of one log together into objects.
fn group(ranges: Vec<Slots>, pool: [u8; 16], first: u64) -> Vec<Task> {
    let mut by_volume: BTreeMap<VolumeId, Vec<Slots>> = BTreeMap::new();
    for slots in ranges {
        by_volume.entry(slots.volume).or_default().push(slots);
    }
    let mut tasks: Vec<Task> = Vec::new();
    for (volume, ranges) in by_volume {
        // Each log begins an object of its own.
        let mut room = None;
        for slots in ranges {
            let bytes = weight(&slots) * BLOCK;
            let fits = room.is_some_and(|room| bytes <= room);
            match tasks.last_mut().map(|task| &mut task.source) {
                Some(Source::Here(ranges)) if fits => ranges.push(slots),
                _ => {
                    let id = ObjectId { pool, volume, number: first + tasks.len() as u64 };
                    tasks.push(Task { id, source: Source::Here(vec![slots]) });
                    room = Some(OBJECT_SLOT_BYTES);
                }
            }
            room = room.map(|room| room.saturating_sub(bytes));
        }
    }
    tasks
}

/// Slots that a range brings into its object, or of which at most the records: it is never 0.
fn weight(slots: &Slots) -> usize {
    let count = |first| within(&slots.live, first, slots.end).iter().map(|w| w.count_ones() as usize).sum::<usize>();
    let records_from = slots.records_from.max(slots.first);
    count(slots.first) + (slots.end.saturating_sub(records_from) as usize).saturating_sub(count(records_from))
}
