//! Writers of much beside clients that flush: they write no faster than the disk takes it.
//!
//! A flush waits for all that was written to its log before, and every disk has one queue: a client that
//! writes without end would keep it full, and everybody's flushes behind it. So while one client
//! flushes, each other one waits after every `HOLD_BYTES` until the disk has taken them. Without
//! flushes of others nobody waits.
//!
//! Invariants
//!   * at most one write-back is waited for at a time; held clients take turns, in the order in which they came;
//!   * a held client is neither read nor carried on with, and still gets its replies;
//!   * nobody is held by his own flushes.

use super::Server;
use crate::jobs::Job;
use blockstore::VolumeId;
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};
use tracing::error;

/// Log bytes that a client may write ahead of the disk while others flush: what a flush finds to wait for.
pub(super) const HOLD_BYTES: u64 = 256 << 10;
/// So long after a flush the next one is expected.
const EXPECTED: Duration = Duration::from_secs(1);

/// Who flushes, and who waits for the disk.
#[derive(Default)]
pub(super) struct Pace {
    /// The last flushes of two clients, the latest first: one of them is not the client that is asked about.
    flushes: [Option<(u64, Instant)>; 2],
    held: VecDeque<(u64, VolumeId)>,
    waiting: bool,
}

impl Pace {
    /// `client` flushes.
    pub(super) fn note_flush(&mut self, client: u64, now: Instant) {
        if self.flushes[0].is_some_and(|(latest, _)| latest != client) {
            self.flushes[1] = self.flushes[0];
        }
        self.flushes[0] = Some((client, now));
    }

    /// `client` is gone: nobody waits for its flushes.
    pub(super) fn forget(&mut self, client: u64) {
        for flush in &mut self.flushes {
            *flush = flush.filter(|(of, _)| *of != client);
        }
    }

    /// Whether a client other than this one flushes.
    pub(super) fn is_beside_flushes(&self, client: u64, now: Instant) -> bool {
        self.flushes.iter().flatten().any(|(other, at)| *other != client && now.duration_since(*at) < EXPECTED)
    }
}

impl Server {
    /// Stops a client until the disk has taken what is in the log of `volume`.
    pub(super) fn hold(&mut self, token: u64, volume: VolumeId) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        (conn.held, conn.unwritten) = (true, 0);
        self.pace.held.push_back((token, volume));
        self.await_disk();
    }

    /// Has the disk take what the client held for longest waits for.
    fn await_disk(&mut self) {
        while !self.pace.waiting {
            let Some((token, volume)) = self.pace.held.pop_front() else { return };
            match self.pool.take_rest(volume) {
                Some(range) => {
                    self.pace.waiting = true;
                    self.workers.submit(Job::Await(token, range, self.disk.clone()));
                }
                None => self.let_go(token),
            }
        }
    }

    /// The disk has taken what a client waited for.
    pub(super) fn taken_by_disk(&mut self, token: u64, outcome: io::Result<()>) {
        if let Err(e) = self.pool.written_back(outcome) {
            error!(error = %e, "the log could not be written back");
        }
        self.pace.waiting = false;
        self.let_go(token);
        self.await_disk();
    }

    fn let_go(&mut self, token: u64) {
        if let Some(conn) = self.conns.get_mut(&token) {
            conn.held = false;
            self.send(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flushes_of_others_count_and_only_for_a_while() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::default();
        assert!(!pace.is_beside_flushes(1, start));
        pace.note_flush(1, at(0));
        assert!(!pace.is_beside_flushes(1, at(1)), "its own");
        assert!(pace.is_beside_flushes(2, at(999)));
        assert!(!pace.is_beside_flushes(2, at(1000)), "long ago");
        // Whoever flushes often does not hide the other one from himself.
        pace.note_flush(2, at(1100));
        (1101..1110).for_each(|ms| pace.note_flush(1, at(ms)));
        assert!(pace.is_beside_flushes(1, at(1110)) && pace.is_beside_flushes(2, at(1110)));
        assert!(!pace.is_beside_flushes(1, at(2101)));
        pace.forget(1);
        assert!(!pace.is_beside_flushes(2, at(1110)) && pace.is_beside_flushes(1, at(1110)), "one is gone");
    }
}
