//! What clients wait for from the object store.
//!
//! Invariants
//!   * at most `FETCHES_MAX` fetches are handed out; what else is wanted stays with the pool, which hands out what
//!     somebody waits for first;
//!   * whoever waited for what has come is given a turn, whether it came or not.

use super::conn::{Conn, Role};
use super::Server;
use crate::control;
use crate::session::{Awaited, STORE_TIME};
use blockstore::{Error, ErrorKind, FetchJob, Fetched, Result};
use serde_json::Value;
use std::time::{Duration, Instant};
use tracing::warn;

/// Fetches handed to the worker threads at a time: enough to keep all of them busy.
const FETCHES_MAX: usize = 32;
/// How long a command that reads a map from the object store may take, and how often it is tried: a map that does not
/// stay in memory would be read again and again.
const COMMAND_TIME: Duration = Duration::from_secs(600);
const COMMAND_ROUNDS: u32 = 1000;
/// Failed fetches are told of no more often.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// A command that waits for the object store.
struct Asked {
    token: u64,
    request: Value,
    awaited: Awaited,
}

/// What is being fetched, and the commands that wait for it.
#[derive(Default)]
pub(super) struct Fetching {
    running: usize,
    commands: Vec<Asked>,
    told: Option<Instant>,
}

impl Server {
    /// Hands out what is wanted from the object store.
    pub(super) fn start_fetches(&mut self) {
        for job in self.pool.take_fetches(FETCHES_MAX.saturating_sub(self.fetching.running)) {
            self.fetching.running += 1;
            self.workers.fetch(job);
        }
    }

    /// A fetch is over.
    pub(super) fn fetched(&mut self, job: FetchJob, outcome: Result<Fetched>) {
        self.fetching.running -= 1;
        if let Err(error) = &outcome {
            self.metrics.failed_fetches += 1;
            if self.fetching.told.is_none_or(|told| told.elapsed() > TOLD_EVERY) {
                self.fetching.told = Some(Instant::now());
                let limit = STORE_TIME.as_secs();
                warn!(%error, "fetching from the object store failed: requests that need it wait up to {limit} s, then fail");
            }
        } else {
            self.metrics.fetches += 1;
        }
        let arrival = self.pool.fetched(job, outcome);
        let go_on = |conn: &mut Conn| match &mut conn.role {
            // Room for more may have come with anything.
            Role::Session(session) if session.is_waiting() => session.arrived(&arrival) || conn.stalled,
            Role::Guest(guest) if guest.is_waiting() => guest.arrived(&arrival) || conn.stalled,
            _ => false,
        };
        let ready = self.conns.iter_mut().filter_map(|(token, conn)| go_on(conn).then_some(*token));
        for token in ready.collect::<Vec<_>>() {
            if let Some(conn) = self.conns.get_mut(&token) {
                conn.more = true;
            }
            self.send(token);
        }
        for asked in &mut self.fetching.commands {
            asked.awaited.note(&arrival);
        }
        while let Some(at) = self.fetching.commands.iter().position(|asked| asked.awaited.is_over()) {
            let asked = self.fetching.commands.swap_remove(at);
            self.ask_again(asked);
        }
        self.start_fetches();
    }

    /// A command cannot be carried out yet; `again` when it was tried before.
    pub(super) fn wait_for_store(&mut self, token: u64, request: &Value, again: Option<Awaited>) {
        let awaited = Awaited::new(&mut self.pool, again);
        if awaited.is_beyond(COMMAND_TIME, COMMAND_ROUNDS) {
            let text =
                "the volume's map cannot be read from the object store in time: give the daemon more --map-cache";
            return self.say(token, &control::error_json(&Error::new(ErrorKind::Unavailable, text)));
        }
        if let Some(conn) = self.conns.get_mut(&token) {
            conn.waiting += 1;
            self.fetching.commands.push(Asked { token, request: request.clone(), awaited });
        }
        self.start_fetches();
    }

    fn ask_again(&mut self, asked: Asked) {
        let Asked { token, request, mut awaited } = asked;
        let Some(conn) = self.conns.get_mut(&token) else { return };
        conn.waiting = conn.waiting.saturating_sub(1);
        match awaited.take_failure() {
            Some(e) => self.say(token, &control::error_json(&e)),
            None => self.command(token, &request, Some(awaited)),
        }
        self.send(token);
    }
}
