//! Volumes that the object store says are here, and are not.
//!
//! A volume's last manifest is put after it is gone here. A pool that dies in between, or cannot reach the store,
//! leaves a volume behind that nobody writes: its data stays, and it can be attached again, by this pool too. Whether
//! it was to be deleted or to be detached nobody knows any more; so it ends only when somebody says so.

use super::attach::nothing;
use super::tier::Farewell;
use super::Seen;
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::{Manifest, Tenure};
use crate::pool::Pool;
use std::collections::BTreeMap;

impl Pool {
    /// Those of the volumes that a sweep has seen which belong to this pool and are not here.
    pub fn abandoned(&self, seen: &BTreeMap<String, Seen>) -> Vec<String> {
        seen.iter().filter(|(name, seen)| self.is_abandoned(name, seen)).map(|(name, _)| name.clone()).collect()
    }

    fn is_abandoned(&self, name: &str, seen: &Seen) -> bool {
        let Some(tier) = &self.tier else { return false };
        let own = seen.tenure == Tenure::Owned && seen.pool == self.pool_id && seen.maker == self.pool_id;
        // One that was attached again has another number here than its newest manifest says, until its first round:
        // nothing is ended whose name is here.
        let back = self.names.contains_key(name);
        let known = back || self.volumes.contains_key(&seen.volume) || seen.volume.0 >= self.next_volume;
        // A later opening of this pool, in another folder, may have it.
        let ours = seen.pool_epoch <= self.epoch;
        own && ours && !known && tier.farewells.values().all(|going| going.manifest.name != name)
    }

    /// Deletes an abandoned volume in the object store, with the next round.
    ///
    /// # Errors
    /// `Invalid` when it is not abandoned.
    pub fn end_abandoned(&mut self, name: &str, seen: &Seen) -> Result<()> {
        self.writable()?;
        if !self.is_abandoned(name, seen) {
            let text = format!("volume {name:?} is not an abandoned volume of this pool");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let (pool, pool_epoch, time_us) = (self.pool_id, self.epoch, self.clock.now_us());
        let Some(tier) = &mut self.tier else { return Ok(()) };
        let mut nonce = [0; 16];
        tier.config.entropy.fill(&mut nonce);
        let last = nothing(name, seen.volume, seen.epoch, pool);
        let manifest = Manifest { number: seen.number + 1, nonce, pool_epoch, time_us, ..last };
        let mut pinned = seen.makers.clone();
        pinned.insert(pool);
        tier.farewells.insert(seen.volume, Farewell { manifest, pending: Vec::new(), pinned });
        Ok(())
    }
}
