//! Writers that wait because the local disk is about to be full of what the object store does not have yet.
//!
//! Invariants
//!   * a held client is not read and nothing of it is carried out; the requests that it has sent before its write are
//!     answered, and so is everybody else;
//!   * nobody waits for a store that has failed for [`HELD_MAX`]: the disk's own end decides then, with ENOSPC.
//!
//! Not here: when the room is short (`blockstore`'s `Pool::look_at_room`).

use super::Server;
use crate::metrics;
use crate::object::CachedStore;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Between looks at the room while clients write, and while they do not.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOK_IDLE: Duration = Duration::from_secs(1);
/// Looks take one part in so many of the time.
const LOOK_SHARE: u32 = 50;
/// For how long writers wait for a store that fails.
const HELD_MAX: Duration = Duration::from_secs(300);
/// Without a held writer for this long, the shortage is over.
const OVER: Duration = Duration::from_secs(5);

/// Who waits for room.
#[derive(Default)]
pub(super) struct Room {
    held: BTreeSet<u64>,
    /// Times that writers had to wait.
    times: u64,
    looked: Option<Instant>,
    /// How long that took: with very many volumes it is rarer.
    look_time: Duration,
    /// When writers were last held, while the shortage lasts.
    short: Option<Instant>,
    failing_since: Option<Instant>,
    gave_up: bool,
}

impl Room {
    /// Whether a client waits.
    pub(super) fn holds(&self, token: u64) -> bool {
        self.held.contains(&token)
    }

    /// Whether any does.
    pub(super) fn is_short(&self) -> bool {
        !self.held.is_empty()
    }

    /// A client's next request is a write, for which there is no room yet.
    pub(super) fn hold(&mut self, token: u64) {
        self.held.insert(token);
    }

    /// A client has gone.
    pub(super) fn left(&mut self, token: u64) {
        self.held.remove(&token);
    }
}

impl Server {
    /// The cache of what is read from the object store, for the metrics.
    pub fn set_cache(&mut self, cache: Arc<CachedStore>) {
        self.cache = Some(cache);
    }

    /// Looks at the room when it is time to, and lets writers go on as far as there is some.
    pub(super) fn tend_room(&mut self) {
        let Some(tier) = &self.tier else { return };
        let busy = self.room.is_short() || self.written_seen.1.elapsed() < LOOK_IDLE;
        let every = if busy { LOOK_EVERY } else { LOOK_IDLE }.max(self.room.look_time * LOOK_SHARE);
        if self.room.looked.is_some_and(|at| at.elapsed() < every) && !self.pool.must_look_at_room() {
            return;
        }
        let now = Instant::now();
        self.room.looked = Some(now);
        let failing = tier.failing().map(|_| self.room.failing_since.unwrap_or(now));
        self.room.failing_since = failing;
        let patient = failing.is_none_or(|since| since.elapsed() < HELD_MAX);
        self.pool.look_at_room(patient);
        if self.room.is_short() && self.pool.slows_writers() {
            if self.room.short.is_none() {
                self.room.times += 1;
                let (local_bytes, unsent_bytes) = (self.pool.local().bytes, self.pool.unsent_bytes());
                warn!(
                    local_bytes,
                    unsent_bytes, "writers wait: the room on this disk is full of what is not in the object store yet"
                );
            }
            self.room.short = Some(now);
        } else if self.room.short.is_some_and(|at| at.elapsed() > OVER) {
            self.room.short = None;
            info!("writers do not wait any more");
        }
        if !patient && !self.room.gave_up && self.room.short.is_some() {
            warn!("the object store has failed for too long: writers go on until the disk is full");
        }
        self.room.gave_up = !patient;
        self.room.look_time = now.elapsed();
        if !self.pool.holds_writers() {
            self.resume_held();
        }
    }

    /// The daemon ends: what it has read is carried out, whatever the room.
    pub(super) fn release_held(&mut self) {
        self.pool.look_at_room(false);
        self.resume_held();
    }

    fn resume_held(&mut self) {
        for token in std::mem::take(&mut self.room.held) {
            let Some(conn) = self.conns.get_mut(&token) else { continue };
            if !conn.yielded {
                conn.yielded = true;
                self.yielded.push_back(token);
            }
        }
    }

    /// The part of the metrics that is about the local disk of a pool with an object store.
    pub(super) fn render_room(&self, page: &mut String) {
        let local = self.pool.local();
        let cache = self.cache.as_ref().map(|cache| cache.counts()).unwrap_or_default();
        for (name, help, value) in [
            ("cairn_local_bytes", "Bytes of segment files, spare ones included.", local.bytes),
            ("cairn_evicted_bytes", "Live bytes in the object store alone.", self.pool.stats().evicted),
            ("cairn_held_writers", "Clients whose writes wait for uploads.", self.room.held.len() as u64),
            ("cairn_writers_held_total", "Times that writers had to wait so.", self.room.times),
            ("cairn_cache_bytes", "Bytes of the local cache of the object store.", cache.bytes),
            ("cairn_cache_hits_total", "Reads that the cache answered.", cache.hits),
            ("cairn_cache_misses_total", "Reads that the object store answered.", cache.misses),
            ("cairn_cache_evicted_total", "Parts that gave way to others in the cache.", cache.evicted),
        ] {
            metrics::figure(page, name, help, value);
        }
    }
}
