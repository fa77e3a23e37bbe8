//! Deleting what a pool has put and nobody needs: dead objects and old manifests.
//!
//! Two phases: [`Pool::survey`] condemns, a [`CleanJob`] deletes after a grace period.
//!
//! Invariants
//!   * an object is condemned when no newest manifest of this pool names it, and from then on the pool does not name
//!     it: what it knew of it is forgotten. A pool that takes back a volume which it lost spares what that one names.
//!     While the outcome of a manifest is not known nothing is condemned;
//!   * a condemned object is deleted after the grace period, and then only if the pool's manifests are still the
//!     newest, if no other pool has a pin here or no volume in the bucket names it, and if the directory that lies
//!     there is the object's own;
//!   * whatever fails leaves everything where it is: the job is done again later;
//!   * the newest manifest of a volume is never deleted. A tombstone is a newest manifest: it stays for ever, so that
//!     numbers go on and a stale owner meets it.
//!
//! Not here: orphans of a pool that died (`sweep`).

use super::claim::newest_manifest;
use super::pins::{pin_key, pins_at, Pin};
use super::reach::{each, erase, manifest_place, mark, newest_numbers, Marked};
use super::ObjectStore;
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::{manifest_key, manifest_prefix, Manifest, ObjectInfo};
use crate::format::object::{Directory, ObjectId};
use crate::limits::{CLEAN_OBJECTS_MAX, OBJECT_GRACE_US};
use crate::pool::Pool;
use crate::space::{fetch_directory, store_error};
use crate::types::Clock;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Chains beyond which one list of all manifests is cheaper than asking for each.
const CHAINS_ASKED: usize = 16;
/// How long an object that another pool uses is left alone.
const HELD_US: u64 = 3600 * 1_000_000;

/// Counts of what the cleaner did since the pool was opened, and what waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectCleaning {
    /// Objects deleted.
    pub deleted: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Old manifests deleted.
    pub manifests: u64,
    /// Objects whose live slots were put again.
    pub repacked: u64,
    /// Objects that no manifest of this pool names, waiting for the grace period or used elsewhere.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Objects that are not what they should be, and were left.
    pub strange: Vec<String>,
}

struct Condemned {
    info: ObjectInfo,
    since_us: u64,
}

/// The cleaner's state.
pub(crate) struct Cleaner {
    pub grace_us: u64,
    pub running: bool,
    pub next_survey_us: u64,
    condemned: BTreeMap<ObjectId, Condemned>,
    /// Manifests that are no longer the newest: name, number, since when.
    old: Vec<(String, u64, u64)>,
    /// Volumes whose older manifests are not known yet, and the number below which they are.
    backlog: BTreeMap<String, u64>,
    /// Slots in objects, where known.
    pub fill: BTreeMap<ObjectId, u32>,
    /// Objects that no manifest has named yet, and when they were put.
    pub unnamed: BTreeMap<ObjectId, u64>,
    /// Segments of which some slots are to be put again.
    pub forgotten: BTreeSet<crate::types::SegmentId>,
    /// Objects that the next round packs anew, out of the store.
    pub worn: BTreeSet<ObjectId>,
    /// Those with which that failed: they stay as they are while the pool is open.
    pub stubborn: BTreeSet<ObjectId>,
    pub done: ObjectCleaning,
    careless: bool,
}

impl Default for Cleaner {
    fn default() -> Self {
        Self {
            grace_us: OBJECT_GRACE_US,
            running: false,
            next_survey_us: 0,
            condemned: BTreeMap::new(),
            old: Vec::new(),
            backlog: BTreeMap::new(),
            fill: BTreeMap::new(),
            unnamed: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            worn: BTreeSet::new(),
            stubborn: BTreeSet::new(),
            done: ObjectCleaning::default(),
            careless: false,
        }
    }
}

impl Cleaner {
    /// Manifests `numbers` of a volume are not the newest any more.
    pub fn superseded(&mut self, name: &str, numbers: Range<u64>, now_us: u64) {
        let new = numbers.filter(|number| *number > 0).map(|number| (name.to_owned(), number, now_us));
        self.old.extend(new);
    }

    /// A volume was found with manifest `newest`: older ones may be there.
    pub fn found(&mut self, name: &str, newest: u64) {
        if newest > 1 {
            self.backlog.insert(name.to_owned(), newest);
        }
    }

    /// An object was put.
    pub fn put(&mut self, directory: &Directory, now_us: u64) {
        let slots = directory.ranges.iter().flat_map(|range| range.bits.iter()).map(|w| w.count_ones()).sum();
        self.fill.insert(directory.id, slots);
        self.unnamed.insert(directory.id, now_us);
    }

    /// Of what is condemned, some is in use again.
    pub fn spare(&mut self, used: impl Fn(&ObjectId) -> bool) {
        self.condemned.retain(|id, _| !used(id));
    }

    /// An object is named by no manifest of this pool, and can be named by none any more.
    pub fn condemn(&mut self, id: ObjectId, info: ObjectInfo, now_us: u64) {
        self.fill.remove(&id);
        self.unnamed.remove(&id);
        self.condemned.insert(id, Condemned { info, since_us: now_us });
    }
}

/// What was done of a job.
#[derive(Default)]
struct Done {
    old: BTreeSet<(String, u64)>,
    listed: BTreeMap<String, Vec<u64>>,
    fill: BTreeMap<ObjectId, u32>,
    deleted: Vec<ObjectId>,
    held: Vec<ObjectId>,
    strange: Vec<(ObjectId, String)>,
    /// Manifests that are newer than what was known.
    newer: Vec<Manifest>,
    /// Every volume's newest manifest is the one that was known.
    confirmed: bool,
}

/// Deletes what has been dead for long enough; runs on any thread.
pub struct CleanJob {
    store: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    pool: [u8; 16],
    grace_us: u64,
    begun_us: u64,
    old: Vec<(String, u64)>,
    backlog: Vec<(String, u64)>,
    /// Objects of which it is to be found out how many slots they hold.
    pub(crate) measure: Vec<(ObjectId, ObjectInfo)>,
    condemned: Vec<(ObjectId, ObjectInfo)>,
    /// Volumes of this pool, with the number of the newest manifest.
    chains: BTreeMap<String, u64>,
    /// Those that have not been heard of for long.
    silent: Vec<String>,
    /// For a test that must fail: nobody else is asked.
    careless: bool,
    done: Mutex<Done>,
}

impl CleanJob {
    /// Asks and deletes; blocks.
    pub fn run(&self) -> Result<()> {
        // One that cannot be done does not keep back the others.
        let outcomes = [self.delete_manifests(), self.find_manifests(), self.measure(), self.delete_objects()];
        outcomes.into_iter().collect()
    }

    /// Objects that it may delete.
    pub fn condemned(&self) -> usize {
        self.condemned.len()
    }

    fn note(&self, note: impl FnOnce(&mut Done)) {
        note(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn delete_manifests(&self) -> Result<()> {
        for (name, number) in &self.old {
            let key = manifest_key(name, *number);
            self.store.delete(&key).map_err(|e| store_error(&format!("deleting manifest {key}"), &e))?;
            self.note(|done| done.old.extend([(name.clone(), *number)]));
        }
        Ok(())
    }

    fn find_manifests(&self) -> Result<()> {
        for (name, newest) in &self.backlog {
            let mut numbers = Vec::new();
            each(&*self.store, &manifest_prefix(name), &mut |entry| {
                let (_, number) = manifest_place(&entry.key)?;
                numbers.extend((number < *newest).then_some(number));
                Ok(())
            })?;
            self.note(|done| done.listed.extend([(name.clone(), numbers)]));
        }
        Ok(())
    }

    fn measure(&self) -> Result<()> {
        for (id, info) in &self.measure {
            let directory = fetch_directory(&*self.store, id, info)?;
            let slots = directory.ranges.iter().flat_map(|range| range.bits.iter()).map(|w| w.count_ones()).sum();
            self.note(|done| done.fill.extend([(*id, slots)]));
        }
        Ok(())
    }

    fn delete_objects(&self) -> Result<()> {
        if self.condemned.is_empty() {
            return Ok(());
        }
        if !self.confirm()? {
            return Ok(());
        }
        let marked = self.marked()?;
        for (id, info) in &self.condemned {
            if marked.as_ref().is_some_and(|marked| marked.objects.contains(id)) {
                self.note(|done| done.held.push(*id));
                continue;
            }
            match erase(&*self.store, id, Some(info)) {
                Ok(()) => self.note(|done| done.deleted.push(*id)),
                Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
                    self.note(|done| done.strange.push((*id, e.to_string())));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// That nobody else has written manifests of this pool's volumes. Otherwise the pool has to hear of it first.
    fn confirm(&self) -> Result<bool> {
        let mut found = BTreeMap::new();
        if self.silent.len() > CHAINS_ASKED {
            found = newest_numbers(&*self.store)?;
        } else {
            for name in &self.silent {
                let first = self.store.list(&manifest_prefix(name), None, 1);
                let first = first.map_err(|e| store_error(&format!("looking for the manifests of {name:?}"), &e))?;
                if let Some(entry) = first.first() {
                    found.insert(name.clone(), manifest_place(&entry.key)?.1);
                }
            }
        }
        let mut confirmed = true;
        for name in self.silent.iter().filter(|name| found.get(*name) != self.chains.get(*name)) {
            let (Some(newest), Some(known)) = (newest_manifest(&*self.store, name)?, self.chains.get(name)) else {
                return Err(Error::corrupt(format!("the manifests of {name:?} are gone: nothing is deleted")));
            };
            if newest.number < *known {
                return Err(Error::corrupt(format!("the newest manifest of {name:?} is gone: nothing is deleted")));
            }
            confirmed &= newest.number == *known;
            self.note(|done| done.newer.push(newest));
        }
        self.note(|done| done.confirmed = confirmed);
        Ok(confirmed)
    }

    /// What the whole bucket needs; `None` when nobody but this pool can need its objects.
    fn marked(&self) -> Result<Option<Marked>> {
        let pins = pins_at(&*self.store, Some(&self.pool))?;
        let own = |pin: &Pin| pin.pool == self.pool && self.chains.contains_key(&pin.name);
        if self.careless || pins.iter().all(own) {
            return Ok(None);
        }
        let begun = self.clock.now_us();
        let marked = mark(&*self.store)?;
        let now = self.clock.now_us();
        // Old manifests stay that long: a volume that changed hands meanwhile was seen.
        if now.saturating_sub(begun) > self.grace_us {
            return Err(Error::new(ErrorKind::Unavailable, "reading all manifests took too long: nothing is deleted"));
        }
        for pin in pins.iter().filter(|pin| !own(pin) && pin.is_spent(&pins, &marked, now)) {
            let key = pin_key(&pin.maker, &pin.pool, &pin.name);
            self.store.delete(&key).map_err(|e| store_error(&format!("removing {key}"), &e))?;
        }
        Ok(Some(marked))
    }
}

impl Pool {
    /// How long what is dead stays in the object store; for old manifests no less than the default.
    pub fn set_object_grace_us(&mut self, grace_us: u64) {
        if let Some(tier) = &mut self.tier {
            tier.cleaner.grace_us = grace_us;
        }
    }

    /// From now on the cleaner asks nobody else before it deletes: for a test that must fail.
    #[cfg(any(test, feature = "testing"))]
    pub fn clean_carelessly(&mut self) {
        if let Some(tier) = &mut self.tier {
            tier.cleaner.careless = true;
        }
    }

    /// What the cleaner of the object store did, and what waits.
    pub fn object_cleaning(&self) -> ObjectCleaning {
        let Some(cleaner) = self.tier.as_ref().map(|tier| &tier.cleaner) else { return ObjectCleaning::default() };
        let waiting_bytes = cleaner.condemned.values().map(|condemned| condemned.info.len).sum();
        ObjectCleaning { waiting: cleaner.condemned.len() as u64, waiting_bytes, ..cleaner.done.clone() }
    }

    /// A survey when one is due, and the work that it leaves.
    pub(crate) fn clean_store(&mut self) -> Option<CleanJob> {
        let (now_us, begun_us) = (self.clock.now_us(), self.clock.monotonic_us());
        let tier = self.tier.as_ref()?;
        if tier.cleaner.running || now_us < tier.cleaner.next_survey_us {
            return None;
        }
        let measure = self.survey(now_us)?;
        let tier = self.tier.as_mut()?;
        let cleaner = &mut tier.cleaner;
        cleaner.next_survey_us = now_us + cleaner.grace_us / 4;
        let over = |since_us: u64, grace_us: u64| since_us.saturating_add(grace_us) <= now_us;
        let kept = cleaner.grace_us.max(OBJECT_GRACE_US);
        let old = cleaner.old.iter().filter(|(_, _, since_us)| over(*since_us, kept));
        let dead = cleaner.condemned.iter().filter(|(_, condemned)| over(condemned.since_us, cleaner.grace_us));
        let owned = tier.chains.iter().filter(|(_, chain)| chain.standing == super::Standing::Owned);
        let named = owned.filter_map(|(id, chain)| Some((self.volumes.get(id)?.name.clone(), chain)));
        let (mut chains, mut silent) = (BTreeMap::new(), Vec::new());
        for (name, chain) in named.filter(|(_, chain)| chain.number > 0) {
            if chain.is_silent(begun_us) {
                silent.push(name.clone());
            }
            chains.insert(name, chain.number);
        }
        let job = CleanJob {
            store: tier.config.store.clone(),
            clock: self.clock.clone(),
            pool: self.pool_id,
            grace_us: kept,
            begun_us,
            old: old.map(|(name, number, _)| (name.clone(), *number)).take(4 * CLEAN_OBJECTS_MAX).collect(),
            backlog: cleaner.backlog.iter().map(|(name, newest)| (name.clone(), *newest)).collect(),
            measure,
            condemned: dead.map(|(id, dead)| (*id, dead.info)).take(CLEAN_OBJECTS_MAX).collect(),
            chains,
            silent,
            careless: cleaner.careless,
            done: Mutex::default(),
        };
        let idle = job.old.is_empty() && job.backlog.is_empty() && job.measure.is_empty() && job.condemned.is_empty();
        cleaner.running = !idle;
        (!idle).then_some(job)
    }

    /// Takes note of what a job has done, whether it got to its end or not.
    pub(crate) fn store_cleaned(&mut self, job: CleanJob) {
        let now_us = self.clock.now_us();
        let Some(tier) = &mut self.tier else { return };
        let cleaner = &mut tier.cleaner;
        let done = job.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        cleaner.running = false;
        cleaner.done.manifests += done.old.len() as u64;
        cleaner.old.retain(|(name, number, _)| !done.old.contains(&(name.clone(), *number)));
        for (name, numbers) in done.listed {
            cleaner.backlog.remove(&name);
            let known: BTreeSet<u64> = cleaner.old.iter().filter(|old| old.0 == name).map(|old| old.1).collect();
            let new = numbers.into_iter().filter(|number| !known.contains(number));
            cleaner.old.extend(new.map(|number| (name.clone(), number, now_us)));
        }
        cleaner.fill.extend(done.fill);
        for id in done.deleted {
            if let Some(condemned) = cleaner.condemned.remove(&id) {
                cleaner.done.deleted += 1;
                cleaner.done.deleted_bytes += condemned.info.len;
            }
        }
        for id in done.held {
            if let Some(condemned) = cleaner.condemned.get_mut(&id) {
                condemned.since_us = now_us.saturating_add(HELD_US).saturating_sub(cleaner.grace_us);
            }
        }
        for name in job.silent.iter().filter(|_| done.confirmed) {
            let chain = self.names.get(name).and_then(|id| tier.chains.get_mut(id));
            if let Some(chain) = chain.filter(|chain| job.chains.get(name) == Some(&chain.number)) {
                chain.confirmed_us = chain.confirmed_us.max(Some(job.begun_us));
            }
        }
        for newer in done.newer {
            let id = self.names.get(&newer.name).copied();
            // One of this life is a round's own, of which it has not heard yet.
            let own = newer.pool == self.pool_id && newer.pool_epoch == self.epoch;
            if let Some(chain) = id.filter(|_| !own).and_then(|id| tier.chains.get_mut(&id)) {
                if newer.number > chain.number {
                    chain.lose(&newer);
                }
            }
        }
        for (id, text) in done.strange {
            cleaner.condemned.remove(&id);
            cleaner.done.strange.push(text);
        }
    }
}
