//! What a pool knows of its object store, and the rounds that keep the store up to date.
//!
//! Invariants
//!   * a volume is uploaded only after its newest manifest has been seen and is this pool's, or its name is free;
//!   * the number of a volume's next manifest is that of the last one seen plus one: whoever else wrote one is
//!     noticed with the next;
//!   * while a round runs, the cleaner touches no file that it reads;
//!   * a round begins with an anchor that holds every creation, deletion and fork before its cut: the tail of a
//!     volume's log then concerns that volume alone.

use super::claim::{ClaimJob, Claimed};
use super::clean::{CleanJob, Cleaner};
use super::pins::makers;
use super::survey::{adopt_part, gaps};
use super::upload::{anchored_slot, fresh_parts, Chapter, SegmentAtCut, Slots, Task, UploadJob, Verdict};
use super::{Entropy, ObjectStore};
use crate::error::{Error, ErrorKind, Result};
use crate::format::anchor::Anchor;
use crate::format::manifest::{Manifest, Tenure};
use crate::format::object::{within, ObjectId};
use crate::format::record::Record;
use crate::format::segment::{Place, SegmentKind};
use crate::limits::{BLOCK, BLOCK_U64, OBJECT_SLOT_BYTES};
use crate::log::Payload;
use crate::pool::{Pool, POOL_STREAM};
use crate::types::{Lsn, SegmentId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

/// The object store of a pool.
#[derive(Clone)]
pub struct ObjectTier {
    /// Where objects are.
    pub store: Arc<dyn ObjectStore>,
    /// For the nonces of manifests.
    pub entropy: Arc<dyn Entropy>,
}

/// What a volume is to the object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its newest manifest has not been looked at yet.
    Unknown,
    /// This pool writes its manifests.
    Owned,
    /// Its name belongs to another volume there, or its history there is not the one here: it stays local.
    Refused(String),
    /// Attaching it was interrupted: it is given up here, and can be attached again.
    Interrupted,
    /// Another host has taken it over: nothing is accepted for it any more.
    Fenced(String),
}

/// A volume's manifests.
pub(crate) struct Chain {
    pub standing: Standing,
    /// Number of the newest manifest.
    pub number: u64,
    pub epoch: u64,
    /// The watermark: every change before it is in the store.
    pub cut: Lsn,
    /// Number behind the last change.
    pub changed: Lsn,
    /// When the store last showed that nobody else writes the volume, by what passes here.
    pub seen_us: u64,
    /// Not served before this: another host may not know yet that it has lost the volume.
    pub serve_from_us: u64,
    /// Nonces that may have been put under the next number.
    pub pending: Vec<[u8; 16]>,
    /// The newest manifest.
    pub last: Option<Arc<Manifest>>,
    /// The pools at which this one has put a pin for the volume since it was opened.
    pub pinned: BTreeSet<[u8; 16]>,
    /// When the newest manifest was last known to be `number`.
    pub known_us: u64,
    /// It names what is dead.
    pub refresh: bool,
}

impl Chain {
    pub(crate) fn new(changed: Lsn) -> Self {
        let (number, epoch, cut) = (0, 1, Lsn(0));
        let (seen_us, serve_from_us, known_us) = (0, 0, 0);
        let (standing, pending, last) = (Standing::Unknown, Vec::new(), None);
        Self {
            standing,
            number,
            epoch,
            cut,
            changed,
            seen_us,
            serve_from_us,
            pending,
            last,
            pinned: BTreeSet::new(),
            known_us,
            refresh: false,
        }
    }

    /// Somebody else has written the manifest `there`.
    pub(crate) fn lose(&mut self, there: &Manifest) {
        self.standing = Standing::Fenced(format!(
            "pool {} has taken the volume {:?} over (epoch {}): nothing more is accepted for it here; delete it here, \
             or attach it again with --takeover",
            hex(&there.pool),
            there.name,
            there.epoch
        ));
    }
}

/// A last manifest to put for a name that is no longer here.
pub(crate) struct Farewell {
    pub manifest: Manifest,
    pub pending: Vec<[u8; 16]>,
    /// Where there may be pins for the volume.
    pub pinned: BTreeSet<[u8; 16]>,
}

/// The object tier's state.
pub(crate) struct Tier {
    pub config: ObjectTier,
    pub chains: BTreeMap<VolumeId, Chain>,
    /// The newest durable anchor.
    pub anchor: Option<Arc<Anchor>>,
    /// An anchor has to hold everything before this.
    pub structure: Lsn,
    next_object: u64,
    busy: bool,
    /// Segments whose files a round reads.
    pub pinned: BTreeSet<SegmentId>,
    pub farewells: BTreeMap<VolumeId, Farewell>,
    pub sent: Sent,
    pub cleaner: Cleaner,
}

/// What has been sent since the pool was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Objects put.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the blocks in them.
    pub block_bytes: u64,
    /// Manifests put.
    pub manifests: u64,
}

/// A volume as the object store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteStatus {
    /// Whether this pool writes it.
    pub standing: Standing,
    /// Every change before this is in the store.
    pub watermark: Lsn,
    /// Number behind the last change here.
    pub changed: Lsn,
    /// Number of the newest manifest.
    pub manifest: u64,
    /// How often the volume has changed hands.
    pub epoch: u64,
    /// When the newest manifest was made, microseconds since 1970.
    pub time_us: u64,
}

/// Work of the object tier; runs on any thread.
pub enum TierJob {
    /// Looks up the newest manifests of volumes.
    Claim(ClaimJob),
    /// Uploads.
    Upload(Box<UploadJob>),
    /// Deletes what nobody needs. While it runs there can be other work, too.
    Clean(Box<CleanJob>),
}

impl TierJob {
    /// Does it, here and now.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Claim(job) => job.run(),
            Self::Upload(job) => job.run(),
            Self::Clean(job) => job.run(),
        }
    }
}

impl Pool {
    /// Connects the pool with an object store. Volumes are looked up by the next [`Pool::tier_job`].
    pub fn set_object_tier(&mut self, config: ObjectTier) {
        self.segments.connect(config.store.clone());
        let changed = self.next_lsn;
        self.tier = Some(Tier {
            config,
            chains: self.volumes.keys().map(|id| (*id, Chain::new(changed))).collect(),
            anchor: None,
            structure: changed,
            next_object: 0,
            busy: false,
            pinned: BTreeSet::new(),
            farewells: BTreeMap::new(),
            sent: Sent::default(),
            cleaner: Cleaner::default(),
        });
    }

    /// The object store.
    pub fn object_store(&self) -> Option<Arc<dyn ObjectStore>> {
        self.tier.as_ref().map(|tier| tier.config.store.clone())
    }

    /// Whether there is an object store.
    pub fn has_object_tier(&self) -> bool {
        self.tier.is_some()
    }

    /// Whether an anchor has to come before anything can be uploaded.
    pub(crate) fn tier_wants_anchor(&self) -> bool {
        let Some(tier) = &self.tier else { return false };
        !tier.busy && tier.anchor.as_ref().is_none_or(|anchor| anchor.next_lsn < tier.structure)
    }

    /// Takes note of a change.
    pub(crate) fn tier_note(&mut self, volume: VolumeId, structural: bool) {
        let Some(tier) = &mut self.tier else { return };
        let next = self.next_lsn;
        if structural {
            tier.structure = next;
            tier.chains.retain(|id, _| self.volumes.contains_key(id));
            for id in self.volumes.keys() {
                tier.chains.entry(*id).or_insert_with(|| Chain::new(next));
            }
        }
        if let Some(chain) = tier.chains.get_mut(&volume) {
            chain.changed = next;
        }
    }

    /// A volume's state in the object store; `None` without one.
    pub fn remote_status(&self, id: VolumeId) -> Option<RemoteStatus> {
        let chain = self.tier.as_ref()?.chains.get(&id)?;
        Some(RemoteStatus {
            standing: chain.standing.clone(),
            watermark: chain.cut,
            changed: chain.changed,
            manifest: chain.number,
            epoch: chain.epoch,
            time_us: chain.last.as_ref().map_or(0, |last| last.time_us),
        })
    }

    /// Bytes of the objects that a volume's newest manifest names. Volumes may share some.
    pub fn object_bytes(&self, id: VolumeId) -> u64 {
        let last = self.tier.as_ref().and_then(|tier| tier.chains.get(&id)?.last.clone());
        last.map_or(0, |last| last.objects.values().map(|info| info.len).sum())
    }

    /// Whether the last manifest of a volume that is no longer here has still to be put.
    pub fn is_letting_go(&self, id: VolumeId) -> bool {
        self.tier.as_ref().is_some_and(|tier| tier.farewells.contains_key(&id))
    }

    /// Refuses to use a volume that was taken over so lately that there is no manifest of our own yet.
    pub(crate) fn not_arriving(&self, id: VolumeId) -> Result<()> {
        let Some(chain) = self.tier.as_ref().and_then(|tier| tier.chains.get(&id)) else { return Ok(()) };
        let claimed = chain.last.as_ref().is_some_and(|last| last.maker != self.pool_id);
        if claimed || chain.serve_from_us > 0 && self.clock.monotonic_us() < chain.serve_from_us {
            return Err(arriving());
        }
        Ok(())
    }

    /// What has been sent so far.
    pub fn sent(&self) -> Sent {
        self.tier.as_ref().map_or_else(Sent::default, |tier| tier.sent)
    }

    /// Bytes of live blocks and map pages that are not in the store yet: the lag.
    pub fn unsent_bytes(&self) -> u64 {
        let Some(remote) = &self.segments.remote else { return 0 };
        let here = self.segments.table.iter().filter(|(_, s)| s.place == Place::Here && s.kind == SegmentKind::Log);
        let blocks = here.map(|(id, s)| {
            let live = within(&s.bits, remote.uploaded(id).min(s.used), s.used);
            live.iter().map(|w| u64::from(w.count_ones())).sum::<u64>()
        });
        blocks.sum::<u64>() * BLOCK_U64
    }

    /// Refuses changes of a volume that another host has taken over.
    pub(crate) fn not_fenced(&self, volume: VolumeId) -> Result<()> {
        let standing = self.tier.as_ref().and_then(|tier| Some(&tier.chains.get(&volume)?.standing));
        match standing {
            Some(Standing::Fenced(why)) => Err(Error::new(ErrorKind::Fenced, why.clone())),
            Some(Standing::Interrupted) => Err(arriving()),
            _ => self.not_arriving(volume),
        }
    }

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
        let ready = self.ready_farewells();
        let Some(tier) = &mut self.tier else { return Ok(None) };
        if ready.is_empty() && !tier.chains.values().any(Chain::is_due) {
            return Ok(None);
        }
        let Some(anchor) = tier.anchor.clone().filter(|anchor| anchor.next_lsn >= tier.structure) else {
            return Ok(None);
        };
        self.begin_upload(anchor, &ready).map(|job| Some(TierJob::Upload(Box::new(job))))
    }

    fn begin_upload(&mut self, anchor: Arc<Anchor>, ready: &BTreeSet<VolumeId>) -> Result<UploadJob> {
        self.forget_unnamed(self.clock.now_us());
        let ranges = self.slots_to_put(&anchor)?;
        let cut = self.next_lsn;
        let flushes = self.streams.values().map(|stream| stream.flush_job(cut, &self.disk)).collect();
        let (Some(tier), Some(remote)) = (&mut self.tier, &self.segments.remote) else {
            return Err(Error::invalid("the pool has no object store"));
        };
        tier.pinned = ranges.iter().map(|slots| slots.segment).collect();
        let first = self.epoch << 32 | tier.next_object;
        let tasks = group(ranges, self.pool_id, first);
        tier.next_object += tasks.len() as u64;
        let mut chapters = Vec::new();
        let mut nonce = [0; 16];
        for (id, chain) in &mut tier.chains {
            let Some(volume) = self.volumes.get(id) else { continue };
            if !chain.is_due() {
                continue;
            }
            let owners: BTreeSet<VolumeId> = volume.origins.iter().copied().chain([*id, POOL_STREAM]).collect();
            // Its origin was taken over before it had a manifest of its own, and the pool was opened since.
            let lost = |(id, s): (SegmentId, &crate::space::Segment)| {
                s.place == Place::Imported
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
                known_us: chain.known_us,
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
                known_us: 0,
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
            began_us: self.clock.monotonic_us(),
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

    /// Takes note of what came of a piece of work.
    pub fn tier_done(&mut self, job: TierJob, outcome: Result<()>) -> Result<()> {
        let job = match job {
            TierJob::Clean(job) => {
                self.store_cleaned(*job);
                return outcome;
            }
            other => other,
        };
        if let Some(tier) = &mut self.tier {
            tier.busy = false;
            tier.pinned.clear();
        }
        match job {
            TierJob::Claim(job) => {
                let began_us = job.began_us;
                let found = job.take().into_iter();
                found.map(|(id, found)| self.claimed(id, found, began_us)).fold(outcome, Result::and)
            }
            TierJob::Upload(job) => {
                let noted = self.uploaded(*job);
                outcome.and(noted)
            }
            TierJob::Clean(_) => outcome,
        }
    }

    fn claimed(&mut self, id: VolumeId, found: Claimed, began_us: u64) -> Result<()> {
        let (pool_id, epoch) = (self.pool_id, self.epoch);
        let Some(volume) = self.volumes.get(&id) else { return Ok(()) };
        let name = volume.name.clone();
        let Some(chain) = self.tier.as_mut().and_then(|tier| tier.chains.get_mut(&id)) else { return Ok(()) };
        chain.seen_us = began_us;
        let Some(manifest) = found else {
            chain.standing = Standing::Owned;
            return Ok(());
        };
        if manifest.tenure == Tenure::Deleted {
            (chain.standing, chain.number, chain.epoch) = (Standing::Owned, manifest.number, manifest.epoch + 1);
            self.found_manifest(&name, manifest.number);
            return Ok(());
        }
        if manifest.maker == pool_id && manifest.volume == id {
            // Whoever has the volume now: this says where what was given up here lies.
            self.adopt(&manifest);
        }
        let Some(chain) = self.tier.as_mut().and_then(|tier| tier.chains.get_mut(&id)) else { return Ok(()) };
        if manifest.pool == pool_id && manifest.maker != pool_id {
            // Nothing was promised for it yet: it is as if it had not begun, and can be done again.
            chain.standing = Standing::Interrupted;
            self.adopt_interrupted(id, &manifest);
            return Ok(());
        }
        let ours = manifest.pool == pool_id && manifest.volume == id;
        if !ours {
            let text = if manifest.pool == pool_id {
                format!(
                    "the name {name:?} belongs to another volume of this pool in the object store, which is no longer \
                     here: end that one, or attach it under this name again when this volume has another"
                )
            } else {
                format!(
                    "the name {name:?} is taken in the object store by pool {}: this volume stays local",
                    hex(&manifest.pool)
                )
            };
            let was_ours = chain.last.is_some() || manifest.predecessors.contains(&(pool_id, id));
            chain.standing = if was_ours { Standing::Fenced(text) } else { Standing::Refused(text) };
            return Ok(());
        }
        if manifest.pool_epoch > epoch {
            chain.standing = Standing::Fenced(copied_back(&name));
            return Ok(());
        }
        chain.standing = Standing::Owned;
        chain.number = manifest.number;
        chain.epoch = manifest.epoch;
        chain.cut = manifest.cut;
        let number = manifest.number;
        chain.last = Some(Arc::new(*manifest));
        self.found_manifest(&name, number);
        Ok(())
    }

    /// The logs have been replayed: what changed since the newest manifests is not known, so all of it may have.
    pub(crate) fn tier_recovered(&mut self) {
        let next = self.next_lsn;
        if let Some(tier) = &mut self.tier {
            tier.structure = next;
            // The log's tail may have made volumes, and deleted some.
            tier.chains.retain(|id, _| self.volumes.contains_key(id));
            for id in self.volumes.keys() {
                tier.chains.entry(*id).or_insert_with(|| Chain::new(next));
            }
            // What was given back before a manifest, but not in the anchor, lives again, and is in no object.
            tier.cleaner.forgotten = self.segments.table.iter().map(|(id, _)| id).collect();
            tier.chains.values_mut().for_each(|chain| chain.changed = next);
        }
        self.refuse_older();
    }

    /// What was put was synced here first: a pool that does not know it is an older copy of its folder.
    pub(crate) fn refuse_older(&mut self) {
        let next_lsn = self.next_lsn;
        let chains = self.tier.iter_mut().flat_map(|tier| &mut tier.chains);
        for (id, chain) in chains.filter(|(_, chain)| chain.standing == Standing::Owned && chain.cut > next_lsn) {
            let name = self.volumes.get(id).map_or("", |volume| &volume.name);
            chain.standing = Standing::Fenced(copied_back(name));
        }
    }

    /// Volumes whose attaching did not get to its end before the pool was closed.
    pub(crate) fn interrupted(&self) -> Vec<VolumeId> {
        let chains = self.tier.iter().flat_map(|tier| &tier.chains);
        chains.filter(|(_, chain)| chain.standing == Standing::Interrupted).map(|(id, _)| *id).collect()
    }

    /// Nothing was promised for these yet: they can be attached again.
    pub(crate) fn give_up_interrupted(&mut self, volumes: Vec<VolumeId>) -> Result<()> {
        volumes
            .into_iter()
            .try_for_each(|id| self.append(POOL_STREAM, vec![Record::DeleteVolume { id }], Payload::default()))
    }

    fn found_manifest(&mut self, name: &str, number: u64) {
        if let Some(tier) = &mut self.tier {
            tier.cleaner.found(name, number);
        }
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

    /// Takes over what a manifest of this pool says of segments that are known here.
    pub(crate) fn adopt(&mut self, manifest: &Manifest) {
        let Some(remote) = &mut self.segments.remote else { return };
        let (known, objects) = (Arc::make_mut(&mut remote.parts), Arc::make_mut(&mut remote.objects));
        for (id, segment) in &manifest.segments {
            if self.segments.table.get(*id).is_none() {
                continue;
            }
            let parts = known.entry(*id).or_default();
            for part in &segment.parts {
                adopt_part(parts, *part);
                if let Some(info) = manifest.objects.get(&part.object) {
                    objects.insert(part.object, *info);
                }
            }
        }
        for origin in &manifest.origins {
            if !remote.origins.contains(origin) {
                remote.origins.push(*origin);
            }
        }
        remote.origins.sort_by_key(|origin| origin.first);
    }

    fn uploaded(&mut self, job: UploadJob) -> Result<()> {
        let flushed = job.flushed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        match flushed {
            None => {}
            Some(Err(e)) => {
                let first = job.flushes.first();
                return first.map_or(Ok(()), |first| self.flushed(first, Err(e)));
            }
            Some(Ok(())) => {
                for flush in &job.flushes {
                    self.flushed(flush, Ok(()))?;
                }
            }
        }
        let puts = job.puts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop((job.parts, job.objects));
        let now_us = self.clock.now_us();
        if let (Some(remote), Some(tier)) = (&mut self.segments.remote, &mut self.tier) {
            for (id, mut parts) in fresh_parts(&puts) {
                if self.segments.table.get(id).is_some() {
                    let known = Arc::make_mut(&mut remote.parts).entry(id).or_default();
                    known.append(&mut parts);
                    known.sort_by_key(|part| part.first);
                }
            }
            for (id, put) in puts {
                tier.sent.objects += 1;
                tier.sent.bytes += put.info.len;
                let slots = put.directory.ranges.iter().map(|range| range.crcs.len());
                tier.sent.block_bytes += slots.sum::<usize>() as u64 * BLOCK_U64;
                tier.cleaner.put(&put.directory, now_us);
                Arc::make_mut(&mut remote.objects).insert(id, put.info);
                remote.keep_directory(put.directory);
            }
        }
        let verdicts = job.verdicts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (id, verdict) in verdicts {
            self.judge(id, verdict, (job.time_us, job.began_us), now_us);
        }
        Ok(())
    }

    /// A manifest put by a round that began at this time of day, and by what passes here, is there, or another one.
    fn judge(&mut self, id: VolumeId, verdict: Verdict, (known_us, began_us): (u64, u64), now_us: u64) {
        let Some(tier) = &mut self.tier else { return };
        if let Some(farewell) = tier.farewells.get_mut(&id) {
            match verdict {
                Verdict::Written(there) if there.nonce == farewell.manifest.nonce => {
                    tier.cleaner.superseded(&there.name, there.number.saturating_sub(1)..there.number, now_us);
                    tier.farewells.remove(&id);
                }
                // An earlier round's manifest took the number: the farewell takes the next.
                Verdict::Written(there) | Verdict::Earlier(there) => {
                    tier.cleaner.superseded(&there.name, farewell.manifest.number - 1..there.number, now_us);
                    farewell.manifest.number = there.number + 1;
                }
                Verdict::Lost(_) => drop(tier.farewells.remove(&id)),
            }
            return;
        }
        let Some(chain) = tier.chains.get_mut(&id) else { return };
        match verdict {
            Verdict::Written(manifest) => {
                tier.sent.manifests += 1;
                tier.cleaner.superseded(&manifest.name, chain.number..manifest.number, now_us);
                chain.pinned.extend(makers(&manifest).into_iter().chain([manifest.pool]));
                (chain.known_us, chain.refresh) = (known_us, false);
                (chain.number, chain.cut) = (manifest.number, manifest.cut);
                chain.seen_us = chain.seen_us.max(began_us);
                chain.pending.clear();
                chain.last = Some(Arc::new(*manifest));
            }
            Verdict::Earlier(there) => {
                tier.cleaner.superseded(&there.name, chain.number..there.number, now_us);
                chain.number = there.number;
            }
            Verdict::Lost(there) => {
                chain.lose(&there);
            }
        }
    }
}

fn copied_back(name: &str) -> String {
    format!(
        "the pool's folder is older than what it has put into the object store of {name:?}: was it copied back? Delete \
         the volume here and attach it again"
    )
}

/// Nothing can be promised for a volume before a manifest of our own is there.
fn arriving() -> Error {
    Error::new(ErrorKind::Busy, "the volume is being attached: try again in a moment")
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
            match tasks.last_mut().filter(|_| fits) {
                Some(task) => task.ranges.push(slots),
                None => {
                    let id = ObjectId { pool, volume, number: first + tasks.len() as u64 };
                    tasks.push(Task { id, ranges: vec![slots] });
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

/// Bytes as people write them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
