//! Clients of a volume are answered only while it is known to be ours (`blockstore::object`, leases).
//!
//! Invariants
//!   * neither is a request carried out, nor a reply sent, on a lease that is over: the client waits until the store
//!     has been asked, which takes one request;
//!   * volumes that are in use are looked at before their leases end, so that clients seldom wait;
//!   * when another host has the volume its clients are disconnected, and what was not sent never is.

use super::Server;
use crate::jobs::Job;
use blockstore::limits::LEASE_US;
use blockstore::object::{LeaseJob, Standing};
use blockstore::{Lsn, VolumeId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tracing::warn;

/// Between looks at the manifests of volumes that are in use.
const LOOK_EVERY: Duration = Duration::from_micros(LEASE_US / 3);
/// So long clients wait for the store to say whose a volume is: then it counts as one that is down.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// So long after its last change a volume is in use.
const IN_USE: Duration = Duration::from_secs(30);

/// Who waits for a look at the store, and which volumes are in use.
pub(super) struct Leases {
    /// Since when the store has been asked.
    looking: Option<Instant>,
    looked: Instant,
    doubted: Vec<u64>,
    changed: BTreeMap<VolumeId, (Lsn, Instant)>,
}

impl Leases {
    pub(super) fn new() -> Self {
        Self { looking: None, looked: Instant::now(), doubted: Vec::new(), changed: BTreeMap::new() }
    }
}

impl Leases {
    /// Whether a client waits for a look.
    pub(super) fn doubts(&self, token: u64) -> bool {
        self.doubted.contains(&token)
    }
}

impl Server {
    /// Whether a client may be answered now; if not, it is as soon as the store has been asked.
    pub(super) fn may_answer(&mut self, token: u64) -> bool {
        if self.tier.is_none() {
            return true;
        }
        let Some(conn) = self.conns.get_mut(&token) else { return true };
        let Some((view, _)) = conn.role.open() else { return true };
        let (volume, is_head) = (view.volume, view.checkpoint.is_none());
        if !is_head || self.pool.is_lease_held(volume) {
            return true;
        }
        conn.held = true;
        if !self.leases.doubted.contains(&token) {
            self.leases.doubted.push(token);
        }
        self.look_at(&[volume]);
        false
    }

    fn look_at(&mut self, volumes: &[VolumeId]) {
        if self.leases.looking.is_some() {
            return;
        }
        if let Some(job) = self.pool.lease_job(volumes) {
            self.leases.looking = Some(Instant::now());
            self.workers.submit(Job::Lease(Box::new(job)));
        }
    }

    /// Renews the leases of volumes that are in use.
    pub(super) fn tend_leases(&mut self) {
        if self.tier.is_none() {
            return;
        }
        if !self.leases.doubted.is_empty() && self.leases.looking.is_some_and(|since| since.elapsed() > ANSWER_TIME) {
            let volume = |token| self.conns.get(token)?.role.open().map(|(view, _)| view.volume);
            let doubted: Vec<VolumeId> = self.leases.doubted.iter().filter_map(volume).collect();
            self.pool.lease_unanswered(&doubted);
            self.let_doubted_go();
        }
        if self.leases.looked.elapsed() < LOOK_EVERY {
            return;
        }
        self.leases.looked = Instant::now();
        let mut in_use = Vec::new();
        for id in self.pool.volumes() {
            let Some(status) = self.pool.remote_status(id) else { continue };
            let seen = self.leases.changed.entry(id).or_insert((status.changed, Instant::now()));
            if seen.0 != status.changed {
                *seen = (status.changed, Instant::now());
            }
            if seen.1.elapsed() < IN_USE {
                in_use.push(id);
            }
        }
        self.leases.changed.retain(|id, _| self.pool.volume_info(*id).is_ok());
        if !in_use.is_empty() {
            self.look_at(&in_use);
        }
    }

    /// The store was asked.
    pub(super) fn looked(&mut self, job: &LeaseJob) {
        self.leases.looking = None;
        self.pool.lease_seen(job);
        self.find_fenced();
        self.let_doubted_go();
    }

    fn let_doubted_go(&mut self) {
        for token in std::mem::take(&mut self.leases.doubted) {
            let Some(conn) = self.conns.get_mut(&token) else { continue };
            let Some((view, _)) = conn.role.open() else { continue };
            let volume = view.volume;
            conn.held = false;
            let standing = self.pool.remote_status(volume).map(|status| status.standing);
            if let Some(Standing::Fenced(why)) = standing {
                warn!(client = token, why, "a client's volume was lost");
                self.close(token, "its volume was taken over by another host");
                continue;
            }
            // Another volume may have been asked about: then it waits on.
            self.process(token);
            self.send(token);
        }
    }
}
