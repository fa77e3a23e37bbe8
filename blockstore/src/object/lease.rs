//! Whether a volume is still ours: nobody has written the manifest that would be our next.
//!
//! A host that was stopped for a while, or cut off, does not know that another one has taken its volume over. So an
//! owner answers nobody on the strength of what it saw longer ago than a lease; and whoever takes a volume over waits
//! for as long, after its claim is in the store, before it serves the volume. Then no change is acknowledged by both.
//!
//! Invariants
//!   * time is what passes on one host (`Clock::monotonic_us`), also while it sleeps: clocks are never compared;
//!   * a lease counts from before the request that proved it;
//!   * a store that does not answer takes no lease away: volumes are served from here while it is down. Only then can
//!     a takeover leave two hosts that serve; what the loser does is never part of the volume.

use super::upload::locked;
use super::{ObjectStore, Range, Standing, StoreErrorKind};
use crate::error::Result;
use crate::format::manifest::{manifest_key, Manifest};
use crate::limits::LEASE_US;
use crate::pool::Pool;
use crate::space::store_error;
use crate::types::VolumeId;
use std::sync::{Arc, Mutex};

/// Longer than a lease, by what clocks may differ in speed.
pub(crate) const TAKEOVER_WAIT_US: u64 = LEASE_US + LEASE_US / 10;

enum Seen {
    /// Nothing of others.
    Ours,
    /// The store does not say.
    Silence,
    /// Another host's manifest.
    Theirs(Box<Manifest>),
}

/// Looks for the next manifests of volumes; runs on any thread.
pub struct LeaseJob {
    store: Arc<dyn ObjectStore>,
    pool: [u8; 16],
    began_us: u64,
    volumes: Vec<(VolumeId, String, u64)>,
    seen: Mutex<Vec<(VolumeId, Seen)>>,
}

impl LeaseJob {
    /// Asks the store; blocks.
    pub fn run(&self) {
        for (id, name, next) in &self.volumes {
            let seen = self.look(name, *next).unwrap_or(Seen::Silence);
            locked(&self.seen).push((*id, seen));
        }
    }

    fn look(&self, name: &str, next: u64) -> Result<Seen> {
        let key = manifest_key(name, next);
        match self.store.get(&key, Range::All) {
            Err(e) if e.kind == StoreErrorKind::NotFound => Ok(Seen::Ours),
            Err(e) => Err(store_error("looking for a manifest", &e)),
            Ok(bytes) => {
                let there = Manifest::decode(&bytes, &key)?;
                Ok(if there.pool == self.pool { Seen::Ours } else { Seen::Theirs(Box::new(there)) })
            }
        }
    }
}

impl Pool {
    /// Whether requests for the head of a volume may be answered on what is known of its ownership.
    pub fn is_lease_held(&self, id: VolumeId) -> bool {
        let Some(tier) = &self.tier else { return true };
        let Some(chain) = tier.chains.get(&id).filter(|chain| chain.standing == Standing::Owned) else { return true };
        chain.seen_us + LEASE_US > self.clock.monotonic_us()
    }

    /// What shows that these volumes are still ours.
    pub fn lease_job(&self, ids: &[VolumeId]) -> Option<LeaseJob> {
        let tier = self.tier.as_ref()?;
        let volume = |id: &VolumeId| {
            let chain = tier.chains.get(id).filter(|chain| chain.standing == Standing::Owned)?;
            Some((*id, self.volumes.get(id)?.name.clone(), chain.number + 1))
        };
        let volumes = ids.iter().filter_map(volume).collect();
        let (store, began_us) = (tier.config.store.clone(), self.clock.monotonic_us());
        Some(LeaseJob { store, pool: self.pool_id, began_us, volumes, seen: Mutex::default() })
    }

    /// Takes note of what a job has seen.
    pub fn lease_seen(&mut self, job: &LeaseJob) {
        let now = self.clock.monotonic_us();
        for (id, seen) in std::mem::take(&mut *locked(&job.seen)) {
            match seen {
                Seen::Ours => self.renew(id, job.began_us),
                Seen::Silence => self.renew(id, now),
                Seen::Theirs(there) => {
                    if let Some(chain) = self.tier.as_mut().and_then(|tier| tier.chains.get_mut(&id)) {
                        chain.lose(&there);
                    }
                }
            }
        }
    }

    /// The store has not answered in time: what is in doubt goes on until it does.
    pub fn lease_unanswered(&mut self, ids: &[VolumeId]) {
        let now = self.clock.monotonic_us();
        ids.iter().for_each(|id| self.renew(*id, now));
    }

    fn renew(&mut self, id: VolumeId, seen_us: u64) {
        if let Some(chain) = self.tier.as_mut().and_then(|tier| tier.chains.get_mut(&id)) {
            chain.seen_us = chain.seen_us.max(seen_us);
        }
    }
}
