//! The object store's side of the daemon: rounds of uploading, and who waits for them.
//!
//! Invariants
//!   * one piece of work runs at a time; what it failed at is tried again, ever more slowly, and told in the log once;
//!   * a waiter is answered when the watermark has passed what it waits for, or when its volume can no longer be
//!     uploaded;
//!   * clients are let in to a volume that is being attached only when a manifest of our own is there (the pool
//!     refuses them before), and a volume is let go only when all of it is in the store.

use super::flush::Waiter;
use super::Server;
use crate::control::{self, error_json, text, Taken};
use crate::jobs::Job;
use crate::metrics;
use blockstore::object::{AttachJob, ObjectStore, Standing, SweepReport, TierJob};
use blockstore::{Durability, Error, ErrorKind, Lsn, Pool, Result, VolumeId};
use serde_json::{json, Value};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// Bytes written since the last round began that are worth another one at once.
const ROUND_BYTES: u64 = 64 << 20;
/// Between tries after the store has failed: doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Between sweeps of the whole store.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3600);
/// What others wait for may come with time alone.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// Between lines of progress for somebody who waits.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Somebody who waits for the object store.
struct Wait {
    volume: VolumeId,
    /// Everything before this has to be there.
    upto: Lsn,
    then: Then,
}

pub(super) enum Then {
    /// Answer a request whose changes are durable here.
    Answer(Waiter),
    /// Answer a command.
    Say(u64, Value),
    /// Answer a command whose volume can be opened from now on.
    Attached(u64, Value),
    /// Let go of the volume of this name.
    Detach(u64, String),
    /// Answer a command when the last manifest of a volume that was let go is there.
    Gone(u64, Value),
}

/// What flushes of a volume have seen.
struct Reached {
    /// When they found it at which number.
    seen: VecDeque<(Instant, Lsn)>,
    /// All before this was seen longer ago than the volume may lag behind.
    due: Lsn,
}

impl Reached {
    fn new() -> Self {
        Self { seen: VecDeque::new(), due: Lsn(0) }
    }

    /// A flush finds the volume at `changed`; what has to be in the store before it is answered.
    fn flush(&mut self, changed: Lsn, now: Instant, lag: Duration) -> Lsn {
        if self.seen.back().is_none_or(|(_, lsn)| *lsn < changed) {
            self.seen.push_back((now, changed));
        }
        while let Some((_, lsn)) = self.seen.pop_front_if(|(at, _)| now.duration_since(*at) >= lag) {
            self.due = lsn;
        }
        self.due
    }
}

/// The daemon's work for its object store.
pub(super) struct Tier {
    /// Between the beginnings of two rounds: half the lag that is allowed.
    every: Duration,
    busy: bool,
    began: Instant,
    written_then: u64,
    failures: u32,
    not_before: Instant,
    /// Why the store failed last, until it works again.
    failing: Option<String>,
    waits: Vec<Wait>,
    told: Instant,
    polled: Instant,
    /// Of volumes that may lag behind by a bounded time.
    reached: BTreeMap<VolumeId, Reached>,
    swept: Instant,
    fenced: Vec<VolumeId>,
}

impl Tier {
    pub(super) fn new(lag: Duration) -> Self {
        let now = Instant::now();
        Self {
            every: lag / 2,
            busy: false,
            began: now,
            written_then: 0,
            failures: 0,
            not_before: now,
            failing: None,
            waits: Vec::new(),
            told: now,
            polled: now,
            reached: BTreeMap::new(),
            swept: now,
            fenced: Vec::new(),
        }
    }

    /// What of a client waits here: nobody else will answer it.
    pub(super) fn take_waits(&mut self, token: u64, taken: &mut Vec<Waiter>) {
        let of_it = |wait: &mut Wait| matches!(&wait.then, Then::Answer(waiter) if waiter.is_of(token));
        taken.extend(self.waits.extract_if(.., of_it).filter_map(|wait| match wait.then {
            Then::Answer(waiter) => Some(waiter),
            _ => None,
        }));
    }

    /// Why the store fails, if it does.
    pub(super) fn failing(&self) -> Option<&str> {
        self.failing.as_deref()
    }

    /// The number that has to be in the store before a flush of a volume is answered that now stands at `changed`.
    fn bound(&mut self, volume: VolumeId, changed: Lsn, durability: Durability) -> Option<Lsn> {
        let ms = match durability {
            Durability::Local => return None,
            Durability::Remote => return Some(changed),
            Durability::Bounded { ms } => ms,
        };
        let reached = self.reached.entry(volume).or_insert_with(Reached::new);
        Some(reached.flush(changed, Instant::now(), Duration::from_millis(ms.into())))
    }
}

/// Whether all before `upto` is in the store; an error when it never will be.
fn is_there(pool: &Pool, volume: VolumeId, upto: Lsn) -> Result<bool> {
    let Some(status) = pool.remote_status(volume) else {
        return Err(Error::new(ErrorKind::NotFound, "the volume was deleted"));
    };
    match status.standing {
        Standing::Fenced(why) | Standing::Refused(why) => Err(Error::new(ErrorKind::Fenced, why)),
        Standing::Interrupted => Err(Error::new(ErrorKind::Busy, "attaching the volume was interrupted")),
        Standing::Unknown => Ok(false),
        Standing::Owned => Ok(status.watermark >= upto && status.manifest > 0),
    }
}

impl Server {
    /// Begins the next round when it is due.
    pub(super) fn tend_tier(&mut self) {
        self.tend_sweep();
        let written = self.metrics.written_bytes;
        let Some(tier) = &mut self.tier else { return };
        let now = Instant::now();
        if !tier.waits.is_empty() && tier.polled.elapsed() > POLL_EVERY {
            tier.polled = now;
            self.release_waits();
        }
        let Some(tier) = &mut self.tier else { return };
        if tier.busy || now < tier.not_before {
            return;
        }
        let hurry = !tier.waits.is_empty() || self.room.is_short() || written - tier.written_then >= ROUND_BYTES;
        if !hurry && now < tier.began + tier.every {
            return;
        }
        match self.pool.tier_job() {
            Ok(None) => {}
            Ok(Some(job)) => {
                if !matches!(job, TierJob::Clean(_)) {
                    (tier.busy, tier.began, tier.written_then) = (true, now, written);
                }
                self.workers.submit(Job::Tier(job));
            }
            Err(e) => {
                tier.not_before = now + RETRY_MAX;
                error!(error = %e, "an upload could not be begun");
            }
        }
    }

    pub(super) fn tier_done(&mut self, job: TierJob, outcome: Result<()>) {
        let cleaning = matches!(job, TierJob::Clean(_));
        let outcome = self.pool.tier_done(job, outcome);
        if cleaning {
            if let Err(e) = outcome {
                warn!(error = %e, "cleaning the object store failed: it is tried again");
            }
            return self.find_fenced();
        }
        let Some(tier) = &mut self.tier else { return };
        tier.busy = false;
        match outcome {
            Ok(()) => {
                if tier.failing.take().is_some() {
                    info!("the object store works again");
                }
                (tier.failures, tier.not_before) = (0, Instant::now());
            }
            Err(e) => {
                // What is wrong with one volume does not make the others wait.
                let everybody = matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Denied);
                let pause = if everybody { RETRY_FIRST * 2u32.pow(tier.failures.min(10)) } else { tier.every };
                tier.not_before = Instant::now() + RETRY_MAX.min(pause);
                tier.failures += u32::from(everybody);
                let text = e.to_string();
                if tier.failing.as_ref() != Some(&text) {
                    warn!(error = text, "uploading failed: it is tried again, and volumes are served from here");
                }
                tier.failing = Some(text);
            }
        }
        self.find_fenced();
        self.release_waits();
    }

    pub(super) fn find_fenced(&mut self) {
        for id in self.pool.volumes() {
            let (Some(tier), Some(status)) = (&mut self.tier, self.pool.remote_status(id)) else { continue };
            let is_fenced = matches!(status.standing, Standing::Fenced(_));
            let (Standing::Fenced(why) | Standing::Refused(why)) = status.standing else { continue };
            if !tier.fenced.contains(&id) {
                tier.fenced.push(id);
                let volume = self.pool.volume_info(id).map(|info| info.name).unwrap_or_default();
                error!(volume, why, "the object store does not take this volume");
                if is_fenced {
                    // What they were not told yet must not be told any more.
                    let users = self.users(&Taken::all_of(id));
                    users.into_iter().for_each(|user| self.close(user, "its volume was taken over by another host"));
                }
            }
        }
    }

    /// Waiters whose changes are durable here: they are answered, or wait for the object store as their volume wants it.
    pub(super) fn durable_here(&mut self, volume: VolumeId, waiters: Vec<Waiter>, failure: Option<&str>) {
        let status = self.pool.remote_status(volume).filter(|_| failure.is_none());
        let (Some(tier), Some(status)) = (&mut self.tier, status) else { return self.answer(waiters, failure) };
        let durability = self.pool.volume_info(volume).map_or(Durability::Local, |info| info.durability);
        let bound = tier.bound(volume, status.changed, durability).filter(|upto| status.watermark < *upto);
        let mut now = Vec::new();
        for waiter in waiters {
            let upto = match &waiter {
                Waiter::Remote(..) => Some(status.changed),
                Waiter::Nbd(..) | Waiter::Guest(..) | Waiter::Control(..) | Waiter::Made(..) => bound,
            };
            match upto {
                None => now.push(waiter),
                Some(upto) => tier.waits.push(Wait { volume, upto, then: Then::Answer(waiter) }),
            }
        }
        self.answer(now, None);
        self.release_waits();
    }

    /// Answers those whose changes are in the object store, or never will be.
    pub(super) fn release_waits(&mut self) {
        let Some(tier) = &mut self.tier else { return };
        let (mut left, mut over) = (Vec::new(), Vec::new());
        for wait in std::mem::take(&mut tier.waits) {
            let there = match &wait.then {
                Then::Gone(..) => Ok(!self.pool.is_letting_go(wait.volume)),
                Then::Attached(..) if self.pool.view(wait.volume, None).is_err() => Ok(false),
                _ => is_there(&self.pool, wait.volume, wait.upto),
            };
            match there {
                Ok(false) => left.push(wait),
                Ok(true) => over.push((wait, None)),
                Err(e) => over.push((wait, Some(e))),
            }
        }
        tier.waits = left;
        for (wait, failure) in over {
            match failure {
                None => self.arrived(wait),
                Some(e) => self.never(wait, &e),
            }
        }
        self.tell_waiting();
    }

    fn arrived(&mut self, wait: Wait) {
        match wait.then {
            Then::Answer(waiter) => self.answer(vec![waiter], None),
            Then::Say(token, answer) | Then::Attached(token, answer) | Then::Gone(token, answer) => {
                self.say_last(token, &answer);
            }
            Then::Detach(token, name) => match self.pool.detach(wait.volume) {
                Ok(job) => {
                    let outcome = job.run();
                    if let Err(e) = self.pool.flushed(&job, outcome) {
                        return self.say_last(token, &error_json(&e));
                    }
                    info!(volume = name, "a volume is let go");
                    self.wait_gone(wait.volume, Then::Gone(token, json!({ "detached": name })));
                }
                // Somebody changed it meanwhile.
                Err(e) if e.kind() == ErrorKind::Busy => self.wait_for_all(wait.volume, Then::Detach(token, name)),
                Err(e) => self.say_last(token, &error_json(&e)),
            },
        }
    }

    fn never(&mut self, wait: Wait, e: &Error) {
        match wait.then {
            Then::Answer(waiter) => self.answer(vec![waiter], Some(&e.to_string())),
            Then::Say(token, _) | Then::Attached(token, _) | Then::Detach(token, _) | Then::Gone(token, _) => {
                self.say_last(token, &error_json(e));
            }
        }
    }

    fn wait(&mut self, volume: VolumeId, upto: Lsn, then: Then) {
        if let Some(tier) = &mut self.tier {
            tier.waits.push(Wait { volume, upto, then });
        }
    }

    /// Waits for the last manifest of a volume.
    pub(super) fn wait_gone(&mut self, volume: VolumeId, then: Then) {
        self.wait(volume, Lsn(0), then);
    }

    pub(super) fn wait_for_all(&mut self, volume: VolumeId, then: Then) {
        let upto = self.pool.remote_status(volume).map_or(Lsn(0), |status| status.changed);
        self.wait(volume, upto, then);
    }

    /// The answer of a command whose connection was kept for it.
    pub(super) fn say_last(&mut self, token: u64, answer: &Value) {
        self.say(token, answer);
        if let Some(conn) = self.conns.get_mut(&token) {
            conn.waiting = conn.waiting.saturating_sub(1);
            self.send(token);
        }
    }

    /// Tells those who wait for an upload how far it is.
    fn tell_waiting(&mut self) {
        let Some(tier) = self.tier.as_mut().filter(|tier| tier.told.elapsed() > TELL_EVERY) else { return };
        let token = |wait: &Wait| match wait.then {
            Then::Say(token, _) | Then::Detach(token, _) => Some(token),
            Then::Answer(_) | Then::Attached(..) | Then::Gone(..) => None,
        };
        let tokens: Vec<u64> = tier.waits.iter().filter_map(token).collect();
        if tokens.is_empty() {
            return;
        }
        tier.told = Instant::now();
        let (sent, left) = (self.pool.sent().block_bytes, self.pool.unsent_bytes());
        let line = json!({"progress": {"done": sent, "total": sent + left}});
        tokens.into_iter().for_each(|token| self.progress(token, &line));
    }

    /// Once a day the whole store is looked through.
    fn tend_sweep(&mut self) {
        let Some(tier) = &mut self.tier else { return };
        let due = tier.swept.elapsed() > SWEEP_EVERY;
        if let Some(store) = due.then(|| self.pool.object_store()).flatten() {
            tier.swept = Instant::now();
            self.workers.submit(Job::Sweep(store, crate::open::now_us()));
        }
    }

    pub(super) fn swept(&mut self, outcome: Result<SweepReport>) {
        match outcome {
            Ok(report) => {
                info!(?report, "the object store was swept");
                self.tell_abandoned(&report.volumes);
            }
            Err(e) => warn!(error = %e, "sweeping the object store failed: nothing more is deleted until tomorrow"),
        }
    }

    /// Carries out what is between the pool and its object store; `false` when `request` is something else.
    pub(super) fn tier_command(&mut self, token: u64, request: &Value) -> bool {
        let outcome = match request.get("op").and_then(Value::as_str) {
            Some("volume.attach") => self.begin_attach(token, request),
            Some("volume.detach") => self.begin_detach(token, request),
            Some("volume.sync") => self.begin_sync(token, request),
            Some("volume.delete_abandoned") => self.begin_end_abandoned(token, request),
            _ => return false,
        };
        match outcome {
            Ok(()) => {
                if let Some(conn) = self.conns.get_mut(&token) {
                    conn.waiting += 1;
                }
                self.release_waits();
            }
            Err(e) => self.say(token, &error_json(&e)),
        }
        true
    }

    fn begin_attach(&mut self, token: u64, request: &Value) -> Result<()> {
        let (name, read_only) = (text(request, "volume")?, control::is_set(request, "read_only"));
        let job = match request.get("as").and_then(Value::as_str) {
            Some(new) => self.pool.fork_job(name, new, read_only)?,
            None if read_only => self.pool.fork_job(name, &format!("{name}-ro"), true)?,
            None => self.pool.attach_job(name, control::is_set(request, "takeover"))?,
        };
        info!(%request, "attaching a volume");
        self.workers.submit(Job::Attach(token, Box::new(job)));
        Ok(())
    }

    pub(super) fn attach_done(&mut self, token: u64, job: AttachJob, outcome: Result<()>) {
        let attached = outcome.and_then(|()| {
            let id = self.pool.attached(job)?;
            Ok((id, control::describe(&mut self.pool, id)?))
        });
        match attached {
            Ok((id, answer)) => self.wait_for_all(id, Then::Attached(token, answer)),
            Err(e) => {
                warn!(error = %e, "a volume was not attached");
                self.say_last(token, &error_json(&e));
            }
        }
    }

    fn begin_detach(&mut self, token: u64, request: &Value) -> Result<()> {
        let name = text(request, "volume")?;
        let id = self.pool.volume_id(name)?;
        self.connected()?;
        let users = self.users(&Taken::all_of(id));
        if !users.is_empty() && !control::is_set(request, "force") {
            let message = format!("clients have {} open: disconnect them, or give --force", self.exports(&users));
            return Err(Error::new(ErrorKind::Busy, message));
        }
        users.into_iter().for_each(|user| self.dismiss(user));
        self.wait_for_all(id, Then::Detach(token, name.to_owned()));
        Ok(())
    }

    fn begin_sync(&mut self, token: u64, request: &Value) -> Result<()> {
        let name = text(request, "volume")?;
        let id = self.pool.volume_id(name)?;
        self.connected()?;
        let upto = self.pool.remote_status(id).map_or(0, |status| status.changed.0);
        self.wait_for_all(id, Then::Say(token, json!({"volume": name, "durability": "remote", "watermark": upto})));
        Ok(())
    }

    /// The object store's part of the metrics.
    pub(super) fn render_tier(&self, page: &mut String) {
        let (Some(tier), Some(counted)) = (&self.tier, &self.counted) else { return };
        let (counts, sent) = (counted.counts(), self.pool.sent());
        let figures = [
            ("cairn_object_put_requests_total", "Puts, conditional or not.", counts.puts),
            ("cairn_object_get_requests_total", "Gets.", counts.gets),
            ("cairn_object_list_requests_total", "Lists.", counts.lists),
            ("cairn_object_delete_requests_total", "Deletes.", counts.deletes),
            ("cairn_object_failures_total", "Requests that failed.", counts.failures),
            ("cairn_object_sent_bytes_total", "Bytes put.", counts.put_bytes),
            ("cairn_object_received_bytes_total", "Bytes got.", counts.get_bytes),
            ("cairn_object_sent_block_bytes_total", "Bytes of the blocks in what was put.", sent.block_bytes),
            ("cairn_object_unsent_bytes", "Live bytes that are not in the store yet.", self.pool.unsent_bytes()),
            ("cairn_object_failing", "1 while the store fails.", u64::from(tier.failing().is_some())),
        ];
        for (name, help, value) in figures {
            metrics::figure(page, name, help, value);
        }
        self.render_room(page);
        for (metric, help) in [
            ("cairn_object_watermark", "Every change of the volume before this number is in the store."),
            ("cairn_object_changed", "Number behind the volume's last change."),
            ("cairn_object_lag_bytes", "Live bytes written to the volume that are not in the store yet."),
        ] {
            metrics::describe(page, metric, help);
            for id in self.pool.volumes() {
                let (Ok(info), Some(status)) = (self.pool.volume_info(id), self.pool.remote_status(id)) else {
                    continue;
                };
                let value = match metric {
                    "cairn_object_watermark" => status.watermark.0,
                    "cairn_object_changed" => status.changed.0,
                    _ => self.pool.lag_bytes(id),
                };
                let _ = writeln!(page, "{metric}{{volume=\"{}\"}} {value}", info.name);
            }
        }
    }

    fn connected(&self) -> Result<()> {
        self.connected_store().map(drop)
    }

    pub(super) fn connected_store(&self) -> Result<Arc<dyn ObjectStore>> {
        let store = self.tier.as_ref().and_then(|_| self.pool.object_store());
        store.ok_or_else(|| {
            let text = "the pool has no object store: start the daemon with --object-store URL";
            Error::new(ErrorKind::Invalid, text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second of two flushes that come together waits for what the first waits for.
    #[test]
    fn what_is_due_stays_due() {
        let (mut reached, begin, lag) = (Reached::new(), Instant::now(), Duration::from_millis(500));
        let at = |ms| begin + Duration::from_millis(ms);
        assert_eq!(reached.flush(Lsn(10), at(0), lag), Lsn(0));
        assert_eq!(reached.flush(Lsn(20), at(400), lag), Lsn(0));
        assert_eq!(reached.flush(Lsn(30), at(600), lag), Lsn(10));
        assert_eq!(reached.flush(Lsn(30), at(601), lag), Lsn(10));
        assert_eq!(reached.flush(Lsn(40), at(900), lag), Lsn(20));
    }
}
