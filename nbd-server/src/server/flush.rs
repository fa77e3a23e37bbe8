//! Group commit: clients that wait for a sync of the same log share it.
//!
//! Invariants
//!   * at most one sync of a log runs at a time; whoever comes while it runs waits for the next one;
//!   * a waiter is answered after a sync that began when its change was already in the log.

use super::conn::{Conn, Role};
use super::tier::Then;
use super::Server;
use crate::jobs::Job;
use crate::session::Wait;
use crate::vhost::GuestWait;
use blockstore::{FlushJob, VolumeId};
use serde_json::{json, Value};
use std::io;
use std::time::Instant;

/// Who waits for a sync of a volume's log.
pub(super) enum Waiter {
    Nbd(u64, Wait),
    Guest(u64, GuestWait),
    Control(u64, Value),
    /// A command that asked for its change to be in the object store.
    Remote(u64, Value),
    /// A command that made a volume which can be used when it is in the object store.
    Made(u64, VolumeId, Value),
}

impl Waiter {
    /// Whether it is a request of this client.
    pub(super) fn is_of(&self, client: u64) -> bool {
        matches!(self, Waiter::Nbd(of, _) | Waiter::Guest(of, _) if *of == client)
    }
}

#[derive(Default)]
pub(super) struct Syncing {
    running: bool,
    now: Vec<Waiter>,
    next: Vec<Waiter>,
}

impl Server {
    pub(super) fn flushed(&mut self, job: FlushJob, outcome: io::Result<()>) {
        let failure = self.pool.flushed(&job, outcome).err().map(|e| e.to_string());
        let Some(entry) = self.syncing.get_mut(&job.volume) else { return };
        entry.running = false;
        let waiters = std::mem::take(&mut entry.now);
        self.durable_here(job.volume, waiters, failure.as_deref());
        self.start_sync(job.volume);
    }

    pub(super) fn answer(&mut self, waiters: Vec<Waiter>, failure: Option<&str>) {
        let mut touched = Vec::new();
        for waiter in waiters {
            match waiter {
                Waiter::Nbd(token, wait) => {
                    if let Some(Conn { role: Role::Session(session), out, waiting, unwritten, .. }) =
                        self.conns.get_mut(&token)
                    {
                        session.synced(out, wait, failure);
                        *waiting -= 1;
                        *unwritten = 0;
                        touched.push(token);
                    }
                }
                Waiter::Guest(token, wait) => self.guest_synced(token, wait, failure),
                Waiter::Made(token, made, answer) if failure.is_none() => {
                    self.wait_for_all(made, Then::Say(token, answer))
                }
                Waiter::Control(token, answer) | Waiter::Remote(token, answer) | Waiter::Made(token, _, answer) => {
                    let answer = failure.map_or(answer, |why| json!({"error": {"kind": "io", "message": why}}));
                    self.say(token, &answer);
                    if let Some(conn) = self.conns.get_mut(&token) {
                        conn.waiting = conn.waiting.saturating_sub(1);
                        touched.push(token);
                    }
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        touched.into_iter().for_each(|token| self.send(token));
    }

    /// Takes what a client waits for: nobody else will answer it.
    pub(super) fn take_waits(&mut self, token: u64) -> Vec<Waiter> {
        let mut taken = Vec::new();
        for waiters in self.syncing.values_mut().flat_map(|entry| [&mut entry.now, &mut entry.next]) {
            taken.extend(waiters.extract_if(.., |waiter| waiter.is_of(token)));
        }
        if let Some(tier) = &mut self.tier {
            tier.take_waits(token, &mut taken);
        }
        taken
    }

    pub(super) fn wait_for_sync(&mut self, volume: VolumeId, waiter: Waiter) {
        // Who has a command synced does not go on doing so.
        if let Waiter::Nbd(client, _) | Waiter::Guest(client, _) = &waiter {
            self.pace.note_flush(*client, Instant::now());
        }
        self.syncing.entry(volume).or_default().next.push(waiter);
    }

    /// Starts a sync for those who came while the last one ran; they share it.
    pub(super) fn start_sync(&mut self, volume: VolumeId) {
        let alone = self.conns.len() == 1;
        let Some(entry) = self.syncing.get_mut(&volume) else { return };
        if entry.running {
            return;
        }
        if entry.next.is_empty() {
            self.syncing.remove(&volume);
            return;
        }
        match self.pool.flush_job(volume) {
            Ok(job) if job.is_empty() => {
                let waiters = std::mem::take(&mut entry.next);
                self.syncing.remove(&volume);
                self.durable_here(volume, waiters, None);
            }
            Ok(job) if alone => {
                // Nobody else is there to be delayed: two thread switches are saved.
                let waiters = std::mem::take(&mut entry.next);
                self.syncing.remove(&volume);
                let outcome = job.run();
                let failure = self.pool.flushed(&job, outcome).err().map(|e| e.to_string());
                self.durable_here(volume, waiters, failure.as_deref());
            }
            Ok(job) => {
                entry.now = std::mem::take(&mut entry.next);
                entry.running = true;
                self.workers.submit(Job::Flush(job));
            }
            Err(e) => {
                let waiters = std::mem::take(&mut entry.next);
                self.answer(waiters, Some(&e.to_string()));
            }
        }
    }
}
