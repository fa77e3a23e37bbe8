//! Counting what lives of volumes that came from another host, on a thread of its own at the lowest priority.
//!
//! Invariants
//!   * it waits until the pool has come to rest, and rests itself while somebody wants an audit or space is needed;
//!   * what it cannot read now it tries again later: until then what is dead stays, and nothing is lost.

use super::Server;
use crate::audits::{self, Running};
use crate::jobs::Job;
use blockstore::{Census, Error, ErrorKind, Result};
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// How often is looked whether there is something to count.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After one that was called off, or had no store, and after one that met damage.
const AGAIN: Duration = Duration::from_secs(30);
const AGAIN_DAMAGED: Duration = Duration::from_secs(3600);

/// What is known of counting.
pub(super) struct Counting {
    running: Option<Running>,
    not_before: Instant,
}

impl Counting {
    pub(super) fn new() -> Self {
        Self { running: None, not_before: Instant::now() + LOOK_EVERY }
    }
}

impl Server {
    /// Begins a census when it is time, or calls one off; cheap otherwise.
    pub(super) fn tend_census(&mut self) {
        if let Some(running) = &self.census.running {
            if self.audit.is_some() || self.pool.is_crowded() {
                running.call_off();
            }
            return;
        }
        if self.audit.is_some() || self.census.not_before > Instant::now() {
            return;
        }
        self.census.not_before = Instant::now() + LOOK_EVERY;
        if self.pool.poisoned().is_some() || !self.pool.wants_census() || !self.pool.can_audit() {
            return;
        }
        let begun = self.pool.begin_audit().and_then(|(anchor, job)| {
            self.workers.submit(Job::Anchor(Box::new(anchor)));
            audits::count(job, self.workers.reporter()).map_err(|e| Error::io("starting a thread", e))
        });
        match begun {
            Ok(running) => self.census.running = Some(running),
            Err(e) => self.counted(Err(e)),
        }
    }

    /// A census is over.
    pub(super) fn counted(&mut self, outcome: Result<Census>) {
        self.census.running = None;
        let again = match outcome {
            Ok(census) => {
                self.pool.counted(census);
                info!("what lives of attached volumes is known");
                LOOK_EVERY
            }
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                warn!(error = %e, "what lives of an attached volume cannot be counted: nothing of it is given back");
                AGAIN_DAMAGED
            }
            Err(e) => {
                debug!(error = %e, "counting what lives of attached volumes begins again later");
                AGAIN
            }
        };
        self.pool.end_audit();
        self.census.not_before = Instant::now() + again;
    }
}
