//! A host's way to a simulated object store, and all the work that it has for it.

use super::SimStore;
use crate::error::Result;
use crate::object::{Entropy, ObjectTier};
use crate::{Cleaning, Pool};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Bytes that are never the same twice, and the same in every run.
pub struct SimEntropy(AtomicU64);

impl SimEntropy {
    /// Those of the host called `name`.
    pub fn of(name: &str) -> Self {
        let host = name.bytes().fold(1u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        Self(AtomicU64::new(host << 32))
    }
}

impl Entropy for SimEntropy {
    fn fill(&self, out: &mut [u8]) {
        let next = self.0.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        out.iter_mut().zip(next.iter().cycle()).for_each(|(to, from)| *to = *from);
    }
}

/// The object tier of the host called `name`, in a store that several may share.
pub fn sim_tier(store: &SimStore, name: &str) -> ObjectTier {
    ObjectTier { store: Arc::new(store.client(name)), entropy: Arc::new(SimEntropy::of(name)) }
}

/// One piece of work for the object store, here and now, behind the anchors that it needs, as a daemon does it; `false`
/// when there is none.
///
/// # Errors
/// Those of the work; the pool has taken note of them.
pub fn tier_step(pool: &mut Pool) -> Result<bool> {
    while pool.wants_anchor() {
        pool.anchor(Cleaning::Busy)?;
    }
    let Some(job) = pool.tier_job()? else { return Ok(false) };
    let outcome = job.run();
    pool.tier_done(job, outcome)?;
    Ok(true)
}
