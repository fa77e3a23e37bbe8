//! Background work, a bounded piece at a time: reaping, anchors, cleaning, spare segments.

use super::Server;
use crate::jobs::{Done, Job, Urgency};
use blockstore::Cleaning;
use std::time::{Duration, Instant};
use tracing::{debug, error, warn};

/// Segments are prepared by writing zeros when nobody has written for this long, or when writers flush all
/// the time: any other writer would pay twice for the disk's bandwidth, for syncs it does not ask for.
const SPARE_QUIET: Duration = Duration::from_millis(200);
/// How long after a client was told that the disk is full space is looked for, and how often.
const SHORT_TIME: Duration = Duration::from_secs(10);
const SHORT_EVERY: Duration = Duration::from_millis(200);
/// Idle time after which the map is written down and dead space is given back.
const IDLE: Duration = Duration::from_millis(500);
/// Without requests for this long, the space of spare segments goes back to the file system.
const SPARES_KEPT: Duration = Duration::from_secs(60);

impl Server {
    /// A bounded piece of background work; `true` when there is more at once.
    pub(super) fn background(&mut self) -> bool {
        if let Some(why) = self.pool.poisoned().filter(|_| !self.poison_told) {
            self.poison_told = true;
            error!(reason = why, "the pool accepts no more changes: restart the daemon to recover it");
        }
        self.tend_room();
        self.tend_tier();
        self.tend_leases();
        self.tend_census();
        let audit = self.begin_audit();
        let short = self.is_short_of_space();
        let idle = short || self.last_activity.elapsed() > IDLE;
        let more = self.pool.reap(if idle { 256 } else { 8 }).unwrap_or_else(|e| {
            warn!(error = %e, "giving back space failed");
            false
        });
        self.start_fetches();
        let ahead = !short
            && self.pool.write_map_ahead().unwrap_or_else(|e| {
                warn!(error = %e, "the map could not be written ahead");
                false
            });
        if !ahead && (self.pool.wants_anchor() || idle && !more && self.pool.wants_idle_anchor()) {
            let cleaning = match (short, idle) {
                (true, _) => Cleaning::Thorough,
                (_, true) => Cleaning::Idle,
                _ => Cleaning::Busy,
            };
            match self.pool.begin_anchor(cleaning) {
                Ok(job) => self.workers.submit(Job::Anchor(Box::new(job))),
                Err(e) => warn!(error = %e, "an anchor could not be begun"),
            }
        }
        let spent = short || self.last_activity.elapsed() > SPARES_KEPT;
        let mut next = || self.pool.clean_job().or_else(|| spent.then(|| self.pool.shrink_job(self.spares)).flatten());
        // An audit that waits begins before the next file is cleaned.
        if let Some(job) = (!audit).then(&mut next).flatten() {
            let urgency = if short || self.pool.is_crowded() { Urgency::Now } else { Urgency::Whenever };
            self.workers.submit(Job::Clean(job, urgency));
        }
        if self.metrics.written_bytes != self.written_seen.0 {
            self.written_seen = (self.metrics.written_bytes, Instant::now());
        }
        let flushes = self.pool.expects_flushes();
        let wanted = flushes || self.written_seen.1.elapsed() > SPARE_QUIET;
        if wanted && !self.spare_pending && self.metrics.written_bytes > 0 {
            if let Ok(Some(id)) = self.pool.spares_wanted(self.spares) {
                self.spare_pending = true;
                let urgency = if flushes { Urgency::Now } else { Urgency::Whenever };
                self.workers.submit(Job::Spare(id, self.disk.clone(), urgency));
            }
        }
        more || ahead
    }

    /// Whether clients have just been told that the disk is full, and it is time to look for space:
    /// what they trim must come back although they keep trying.
    fn is_short_of_space(&mut self) -> bool {
        let (count, since, looked) = self.no_space_seen;
        if count != self.metrics.no_space {
            if count == 0 || since.elapsed() > SHORT_TIME {
                warn!("clients are told that no space is left: trim, or delete checkpoints or volumes");
            }
            self.no_space_seen = (self.metrics.no_space, Instant::now(), looked);
        } else if count == 0 || since.elapsed() > SHORT_TIME {
            return false;
        }
        let due = looked.elapsed() > SHORT_EVERY;
        if due {
            self.no_space_seen.2 = Instant::now();
        }
        due
    }

    pub(super) fn collect(&mut self) {
        while let Ok(done) = self.workers.done.try_recv() {
            match done {
                Done::Flush(job, outcome) => self.flushed(job, outcome),
                Done::Settle(job, outcome) => {
                    if let Err(e) = self.pool.settled(&job, outcome) {
                        error!(error = %e, "the log could not be synced");
                    }
                }
                Done::Awaited(client, outcome) => self.taken_by_disk(client, outcome),
                Done::Anchor(job, outcome) => {
                    self.metrics.anchors += 1;
                    debug!(ok = outcome.is_ok(), "anchor written");
                    if let Err(e) = self.pool.anchored(*job, outcome) {
                        error!(error = %e, "an anchor could not be written");
                    }
                    self.pool.keep_reserve();
                }
                Done::AuditProgress(token, line) => self.progress(token, &line),
                Done::Tier(job, outcome) => self.tier_done(job, outcome),
                Done::Sweep(outcome) => self.swept(outcome),
                Done::Look(asked, outcome) => self.looked_through(asked, outcome),
                Done::Lease(job) => self.looked(&job),
                Done::Attach(token, job, outcome) => self.attach_done(token, *job, outcome),
                Done::Audited(token, outcome) => self.audited(token, outcome),
                Done::Counted(outcome) => self.counted(outcome),
                Done::Clean(job, outcome) => {
                    self.metrics.cleaned += 1;
                    if let Err(e) = self.pool.cleaned(job, outcome) {
                        warn!(error = %e, "cleaning failed");
                    }
                    if !self.pool.has_reserve() {
                        self.pool.keep_reserve();
                    }
                }
                Done::Fetch(job, outcome) => self.fetched(*job, outcome),
                Done::Spare(id, outcome) => {
                    self.spare_pending = false;
                    match outcome {
                        Ok(file) => self.pool.add_spare(id, file),
                        // No space for spares is no error: segments are made when they are needed.
                        Err(_) => self.spares = 0,
                    }
                }
            }
        }
    }
}
