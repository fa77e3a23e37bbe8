//! Whether a volume is still ours: nobody has written the manifest that would be our next.
//!
//! A host that was stopped for a while, or cut off, does not know that another one has taken its volume over. So an
//! owner answers nobody on the strength of what it saw longer ago than a lease; and whoever takes a volume over waits
//! for as long, after its claim is in the store, before it serves the volume. Then no change is acknowledged by both.
//!
//! Invariants
//!   * time is what passes on one host (`Clock::monotonic_us`), also while it sleeps: clocks are never compared;
//!   * a lease counts from before the request that proved it;
//!   * whoever has not asked for so long that the manifest in question may have been deleted asks for the newest one;
//!   * a store that does not answer takes no lease away: volumes are served from here while it is down. Only then can
//!     a takeover leave two hosts that serve; what the loser does is never part of the volume.

use super::claim::newest_manifest;
use super::upload::locked;
use super::{ObjectStore, Range, Standing, StoreErrorKind};
use crate::error::{ErrorKind, Result};
use crate::format::manifest::{manifest_key, Manifest};
use crate::limits::LEASE_US;
use crate::pool::Pool;
use crate::space::store_error;
use crate::types::VolumeId;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// A manifest of a version that this program does not write.
    Strange(String),
}

/// A volume whose next manifest is looked for.
struct Asked {
    id: VolumeId,
    name: String,
    next: u64,
    /// It may have come and gone.
    silent: bool,
}

/// Looks for the next manifests of volumes; runs on any thread.
pub struct LeaseJob {
    store: Arc<dyn ObjectStore>,
    pool: [u8; 16],
    began_us: u64,
    volumes: Vec<Asked>,
    next: AtomicUsize,
    seen: Mutex<Vec<(VolumeId, Seen)>>,
}

impl LeaseJob {
    /// Asks the store; blocks.
    pub fn run(&self) {
        while self.look_next() {}
    }

    /// Asks about one more volume; `false` when none is left. Several threads may do so at once.
    pub fn look_next(&self) -> bool {
        let asked = self.volumes.get(self.next.fetch_add(1, Ordering::Relaxed));
        if let Some(asked) = asked {
            let seen = self.look(asked).unwrap_or_else(|e| match e.kind() {
                ErrorKind::Invalid => Seen::Strange(e.to_string()),
                // Damaged, too: it may be our own, whose reply was lost.
                _ => Seen::Silence,
            });
            locked(&self.seen).push((asked.id, seen));
        }
        asked.is_some()
    }

    /// Volumes that it asks about.
    pub fn volumes(&self) -> usize {
        self.volumes.len()
    }

    fn look(&self, asked: &Asked) -> Result<Seen> {
        let there = if asked.silent {
            newest_manifest(&*self.store, &asked.name)?.filter(|newest| newest.number >= asked.next)
        } else {
            let key = manifest_key(&asked.name, asked.next);
            match self.store.get(&key, Range::All) {
                Err(e) if e.kind == StoreErrorKind::NotFound => None,
                Err(e) => return Err(store_error("looking for a manifest", &e)),
                Ok(bytes) => Some(Manifest::decode(&bytes, &key)?),
            }
        };
        Ok(match there {
            Some(there) if there.pool != self.pool => Seen::Theirs(Box::new(there)),
            _ => Seen::Ours,
        })
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
        let (tier, began_us) = (self.tier.as_ref()?, self.clock.monotonic_us());
        let volume = |id: &VolumeId| {
            let chain = tier.chains.get(id).filter(|chain| chain.standing == Standing::Owned)?;
            let (name, silent) = (self.volumes.get(id)?.name.clone(), chain.is_silent(began_us));
            Some(Asked { id: *id, name, next: chain.number + 1, silent })
        };
        let volumes = ids.iter().filter_map(volume).collect();
        let store = tier.config.store.clone();
        Some(LeaseJob {
            store,
            pool: self.pool_id,
            began_us,
            volumes,
            next: AtomicUsize::new(0),
            seen: Mutex::default(),
        })
    }

    /// Takes note of what a job has seen.
    pub fn lease_seen(&mut self, job: &LeaseJob) {
        let now = self.clock.monotonic_us();
        for (id, seen) in std::mem::take(&mut *locked(&job.seen)) {
            let Some(chain) = self.tier.as_mut().and_then(|tier| tier.chains.get_mut(&id)) else { continue };
            match seen {
                Seen::Ours => {
                    chain.seen_us = chain.seen_us.max(job.began_us);
                    chain.confirmed_us = chain.confirmed_us.max(Some(job.began_us));
                }
                Seen::Silence => chain.seen_us = chain.seen_us.max(now),
                Seen::Theirs(there) => chain.lose(&there),
                Seen::Strange(why) => {
                    chain.standing = Standing::Fenced(format!(
                        "somebody else has written the next manifest of the volume, which cannot be read here ({why}): \
                         nothing more is accepted for it"
                    ));
                }
            }
        }
    }

    /// The store has not answered in time: what is in doubt goes on until it does.
    pub fn lease_unanswered(&mut self, ids: &[VolumeId]) {
        let now = self.clock.monotonic_us();
        for (_, chain) in self.tier.iter_mut().flat_map(|tier| &mut tier.chains).filter(|(id, _)| ids.contains(id)) {
            chain.seen_us = chain.seen_us.max(now);
        }
    }
}
