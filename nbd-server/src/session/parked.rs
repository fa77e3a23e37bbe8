//! Requests that wait for the object store.
//!
//! A read whose data is absent is parked: it is carried out again once what it lacks has come, and the requests
//! behind it go on. What changes something, and what can no longer be answered out of its place, stalls the session
//! instead: nothing behind it is begun, so that changes keep their order.
//!
//! Invariants
//!   * what is parked holds no data, and what it has asked for is bounded: `PARKED_MAX` requests and
//!     `PARKED_BYTES_MAX` bytes, beyond which the session takes no more until something has come;
//!   * a request waits for the store at most `STORE_TIME` after it was first parked, and then fails;
//!   * one that was carried out `ROUNDS_MAX` times in vain, because what came was dropped again, waits on the spot.

use super::large::Large;
use super::{cost, Session};
use crate::metrics::Metrics;
use crate::nbd::{self, Command, Parsed, Request};
use blockstore::{Arrival, Error, ErrorKind, Missing, Pool};
use std::time::{Duration, Instant};

/// Requests parked per session.
const PARKED_MAX: usize = 64;
/// Bytes that the parked requests of a session read.
const PARKED_BYTES_MAX: u64 = 8 << 20;
/// Bytes of a long read that are asked for at once.
pub(super) const WANTED_BYTES: u64 = 4 << 20;
/// How long a request waits for a store that does not answer, before it fails with EIO.
pub(crate) const STORE_TIME: Duration = Duration::from_secs(30);
/// Fruitless rounds after which a request blocks everybody rather than go on.
const ROUNDS_MAX: u32 = 64;

/// What a request waits for.
pub(crate) struct Awaited {
    missing: Missing,
    since: Instant,
    rounds: u32,
    failure: Option<Error>,
}

impl Awaited {
    /// The request that `pool` has just answered with `Absent`, for the first time or `again`.
    pub(crate) fn new(pool: &mut Pool, again: Option<Awaited>) -> Self {
        let (since, rounds) = again.map_or_else(|| (Instant::now(), 0), |before| (before.since, before.rounds + 1));
        Self { missing: pool.missing(), since, rounds, failure: None }
    }

    /// Takes note of a fetch; `true` once it is time to ask again.
    pub(crate) fn note(&mut self, arrival: &Arrival) -> bool {
        if !self.missing.note(arrival) {
            return false;
        }
        if let Some(e) = &arrival.failure {
            if is_final(e.kind(), self.since.elapsed()) {
                self.failure.get_or_insert_with(|| Error::new(e.kind(), e.to_string()));
            }
        }
        self.is_over()
    }

    /// Whether it is time to ask again.
    pub(crate) fn is_over(&self) -> bool {
        self.missing.is_over() || self.failure.is_some()
    }

    /// Why asking again is in vain.
    pub(crate) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Whether asking again is no use: it has taken more than `time`, or `rounds`.
    pub(crate) fn is_beyond(&self, time: Duration, rounds: u32) -> bool {
        self.since.elapsed() > time || self.rounds > rounds
    }
}

/// Whether a request that has waited for `age` fails with a fetch that ended so.
fn is_final(kind: ErrorKind, age: Duration) -> bool {
    kind != ErrorKind::Unavailable || age > STORE_TIME
}

/// A parked request.
pub(super) struct Parked {
    pub what: What,
    pub awaited: Awaited,
}

/// What is parked.
pub(super) enum What {
    /// A read or a question about extents.
    Whole(Request),
    /// A read that is answered in pieces.
    Pieces(Large),
}

impl What {
    pub fn request(&self) -> &Request {
        match self {
            What::Whole(request) => request,
            What::Pieces(large) => large.request(),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            What::Whole(request) if request.command == Command::Read => request.length,
            What::Whole(_) => 0,
            What::Pieces(large) => large.rest().min(WANTED_BYTES),
        }
    }
}

impl Session {
    /// Takes note of a fetch; `true` when something can go on.
    pub fn arrived(&mut self, arrival: &Arrival) -> bool {
        let all = self.stalled.iter_mut().chain(self.parked.iter_mut().map(|parked| &mut parked.awaited));
        all.filter_map(|awaited| awaited.note(arrival).then_some(())).count() > 0
    }

    /// Whether requests wait for the object store.
    pub fn is_waiting(&self) -> bool {
        self.stalled.is_some() || !self.parked.is_empty()
    }

    /// Whether more may be parked.
    pub(super) fn has_room(&self, pool: &Pool) -> bool {
        let bytes: u64 = self.parked.iter().map(|parked| parked.what.bytes()).sum();
        self.parked.is_empty() || self.parked.len() < PARKED_MAX && bytes < PARKED_BYTES_MAX && !pool.is_fetching_much()
    }

    pub(super) fn park(&mut self, pool: &mut Pool, what: What) {
        let awaited = Awaited::new(pool, self.retried.take());
        self.parked.push_back(Parked { what, awaited });
    }

    /// The request in turn cannot go on, nor can those behind it.
    pub(super) fn stall(&mut self, pool: &mut Pool) {
        self.stalled = Some(Awaited::new(pool, self.retried.take()));
    }

    /// The request at the front of `input` has stalled: what those behind it will miss is asked for meanwhile.
    pub(super) fn look_ahead(&self, pool: &mut Pool, input: &[u8]) {
        let (mut rest, mut bytes) = (input, 0);
        while let Parsed::Request(request) = nbd::parse(rest, self.agreed.extended) {
            let (offset, length) = (request.offset, request.length);
            bytes += length;
            if bytes > PARKED_BYTES_MAX || pool.is_fetching_much() {
                break;
            }
            match request.command {
                _ if self.bounds(&request).is_err() => {}
                Command::Read => pool.want(self.view, offset, length),
                Command::Write => pool.want_for_change(self.view.volume, offset, length),
                _ => {}
            }
            let Some(behind) = rest.get(request.header + request.payload as usize..) else { break };
            rest = behind;
        }
        // The stalled one does not wait for it.
        drop(pool.missing());
    }

    /// Whether the request in turn has waited in vain for so often that it is to block.
    pub(super) fn is_desperate(&self) -> bool {
        self.retried.as_ref().is_some_and(|awaited| awaited.rounds > ROUNDS_MAX)
    }

    /// Puts a parked request that has what it waited for in turn again: answers it, or makes it the large one. Its
    /// cost; `None` when there is none.
    pub(super) fn unpark(&mut self, pool: &mut Pool, metrics: &mut Metrics, out: &mut Vec<u8>) -> Option<u64> {
        let free = self.large.is_none();
        let ready = |parked: &Parked| parked.awaited.is_over() && (free || matches!(parked.what, What::Whole(_)));
        let at = self.parked.iter().position(ready)?;
        let Parked { what, mut awaited } = self.parked.remove(at)?;
        if let Some(e) = awaited.take_failure() {
            self.fail_with(out, metrics, what.request(), &e);
            return Some(1);
        }
        let before = self.retried.replace(awaited);
        match what {
            What::Pieces(large) => {
                self.large = Some(large);
                Some(0)
            }
            What::Whole(request) => {
                let patient = self.is_desperate() && !pool.set_patient(true);
                if !self.answer(pool, metrics, &request, &[], out) {
                    self.park(pool, What::Whole(request));
                }
                if patient {
                    pool.set_patient(false);
                }
                self.retried = before;
                Some(cost(request.length))
            }
        }
    }

    /// The stall is over: the request in turn is tried again, or it fails. Returns the input used, or why the
    /// session must end.
    pub(super) fn go_on(
        &mut self,
        mut awaited: Awaited,
        metrics: &mut Metrics,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<usize, &'static str> {
        let Some(e) = awaited.take_failure() else {
            self.retried = Some(awaited);
            return Ok(0);
        };
        match self.large.take() {
            Some(large) => self.fail_large(large, metrics, &e, out).map(|()| 0),
            None => {
                let Parsed::Request(request) = nbd::parse(input, self.agreed.extended) else { return Ok(0) };
                self.fail_with(out, metrics, &request, &e);
                Ok(request.header + request.payload as usize)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_does_not_answer_is_waited_for_but_not_for_ever() {
        let young = Duration::from_secs(20);
        assert!(!is_final(ErrorKind::Unavailable, young));
        assert!(is_final(ErrorKind::Unavailable, STORE_TIME * 2));
        assert!(is_final(ErrorKind::Corrupt, young) && is_final(ErrorKind::Denied, young));
    }
}
