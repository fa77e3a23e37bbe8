//! Executing one client's requests on the pool: from the bytes of its buffer to the bytes of its
//! replies. Requests that need a sync are handed back as [`Wait`]s.
//!
//! Invariants
//!   * every request is answered exactly once, in its own name, or the client is disconnected;
//!   * one call of [`Session::process`] does a bounded amount of work (`TURN_COST`) and leaves at most
//!     `OUTPUT_MAX` and one piece of output, so that no client holds up or outgrows the others;
//!   * nothing waits for the object store: what is absent is fetched meanwhile (`parked`). Changes keep the order in
//!     which they came. A FLUSH covers what was replied to before it came, so nothing that is parked.
//!
//! Not here: sockets and turns (`server`), the protocol's bytes (`nbd`).

mod bounds;
mod large;
mod parked;
mod status;

use crate::metrics::Metrics;
use crate::nbd::{self, Command, Errno, Negotiated, Parsed, Request};
use blockstore::{Ahead, Error, ErrorKind, Pool, View};
use large::{Kind, Large, Piece};
pub(crate) use parked::{Awaited, STORE_TIME};
use parked::{Parked, What};
use std::collections::VecDeque;

/// A reply that waits for a sync.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    cookie: u64,
    offset: u64,
}

/// How a round of processing ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Read more; the pending request, if any, needs this many bytes in all.
    Read(usize),
    /// The output is long enough: send first, then go on.
    Send,
    /// Others first, then go on: the turn's work is done.
    Yield,
    /// Nothing more can be begun before something has come from the object store.
    Wait,
    /// The next request is a write, and there is no room for it yet: go on when there is.
    Hold,
    /// The client is done, or not a client: why.
    Close(&'static str),
}

/// How a request in turn, or a piece of it, went.
enum Step {
    /// So much input was used, and so much work done.
    On(usize, u64),
    /// So much input was used, and the turn ends so.
    Over(usize, Next),
}

/// A client in the transmission phase.
pub struct Session {
    agreed: Negotiated,
    /// What it reads, and writes unless it is a checkpoint.
    pub view: View,
    large: Option<Large>,
    /// Its large writes are split more finely: somebody else would wait for them.
    pub small_pieces: bool,
    /// What of a write's payload, which is still arriving, is in the log already.
    ahead: Ahead,
    /// Reads that wait for the object store.
    parked: VecDeque<Parked>,
    /// The request in turn waits for the object store, and those behind it with it.
    stalled: Option<Awaited>,
    /// How long the request in turn has waited already.
    retried: Option<Awaited>,
    /// Replies that came up in the middle of an answer.
    late: Vec<u8>,
}

/// Output beyond this is sent before more requests are carried out: bounds memory per client.
const OUTPUT_MAX: usize = 1 << 20;
/// Payload of a large write carried out at a time; what the store makes all-or-nothing.
const PIECE: usize = 1 << 20;
/// Zeros stored at a time, and payload while others flush.
const SMALL_PIECE: usize = 256 << 10;
/// Data of a large read carried out at a time.
const READ_PIECE: usize = 128 << 10;
/// Work of one turn: a request counts 1, 16 KiB of data 1.
const TURN_COST: u64 = 9;
/// Cost of asking for extents, and of forgetting blocks.
const STATUS_COST: u64 = 16;
const CHANGE_COST: u64 = 4;
const BROKEN: &str = "an answer that had begun could not be completed";
const STORED_ZEROS_ARE_SLOW: &str = "storing zeros is not faster than writing them";
/// Payload bytes in one group of writes.
const RUN_BYTES_MAX: usize = PIECE;

/// Work that moving `bytes` takes.
fn cost(bytes: u64) -> u64 {
    1 + bytes / (16 << 10)
}

impl Session {
    /// A session on `view`.
    pub fn new(agreed: Negotiated, view: View) -> Self {
        let (parked, late) = (VecDeque::new(), Vec::new());
        let (small_pieces, ahead) = (false, Ahead::default());
        Self { agreed, view, large: None, small_pieces, ahead, parked, stalled: None, retried: None, late }
    }

    /// Name of the export.
    pub fn export(&self) -> &str {
        &self.agreed.export.name
    }

    /// Carries out the requests in `input`; returns the bytes used.
    pub fn process(
        &mut self,
        pool: &mut Pool,
        metrics: &mut Metrics,
        input: &[u8],
        out: &mut Vec<u8>,
        waits: &mut Vec<Wait>,
    ) -> (usize, Next) {
        let (mut used, mut spent) = (0, 0);
        loop {
            if out.len() >= OUTPUT_MAX {
                return (used, Next::Send);
            }
            if spent >= TURN_COST {
                return (used, Next::Yield);
            }
            let mid_answer = self.large.as_ref().is_some_and(|large| large.is_mid_answer(self));
            if !mid_answer {
                out.append(&mut self.late);
                if let Some(cost) = self.unpark(pool, metrics, out) {
                    spent += cost;
                    continue;
                }
            }
            let rest = input.get(used..).unwrap_or_default();
            match self.stalled.take() {
                None => {}
                Some(awaited) if awaited.is_over() => match self.go_on(awaited, metrics, rest, out) {
                    Ok(0) => {}
                    Ok(n) => {
                        used += n;
                        continue;
                    }
                    Err(why) => return (used, Next::Close(why)),
                },
                Some(awaited) => {
                    self.stalled = Some(awaited);
                    return (used, Next::Wait);
                }
            }
            if self.large.is_none() && !self.has_room(pool) {
                return (used, Next::Wait);
            }
            let patient = self.is_desperate() && !pool.set_patient(true);
            let done = self.next_step(pool, metrics, rest, out, waits);
            if self.stalled.is_some() && self.large.is_none() {
                self.look_ahead(pool, rest);
            }
            if patient {
                pool.set_patient(false);
            }
            match done {
                Step::On(n, cost) => (used, spent) = (used + n, spent + cost),
                Step::Over(n, next) => return (used + n, next),
            }
        }
    }

    /// Carries out the request in turn, or the next piece of it.
    fn next_step(
        &mut self,
        pool: &mut Pool,
        metrics: &mut Metrics,
        rest: &[u8],
        out: &mut Vec<u8>,
        waits: &mut Vec<Wait>,
    ) -> Step {
        if self.large.as_ref().is_some_and(|large| large.kind() != Kind::Data) && pool.holds_writers() {
            return Step::Over(0, Next::Hold);
        }
        if let Some(large) = self.large.take() {
            let cost = cost(large.piece_bytes());
            return match self.piece(large, pool, metrics, rest, out, waits) {
                Piece::More(n) | Piece::Over(n, _) => Step::On(n, cost),
                Piece::Absent => Step::On(0, cost),
                Piece::Need(whole) => Step::Over(0, Next::Read(whole)),
                Piece::Broken => Step::Over(0, Next::Close(BROKEN)),
            };
        }
        let request = match nbd::parse(rest, self.agreed.extended) {
            Parsed::NeedMore => return Step::Over(0, Next::Read(0)),
            Parsed::Fatal(why) => return Step::Over(0, Next::Close(why)),
            Parsed::Request(request) => request,
        };
        if self.takes_room(&request) && pool.holds_writers() {
            return Step::Over(0, Next::Hold);
        }
        if self.is_large(&request) {
            self.begin(request, metrics, out);
            return Step::On(request.header, 1);
        }
        let whole = request.header + request.payload as usize;
        let Some(payload) = rest.get(request.header..whole) else {
            if request.command == Command::Write && self.bounds(&request).is_ok() {
                let arrived = rest.get(request.header..).unwrap_or_default();
                let len = u64::from(request.payload);
                pool.write_ahead(self.view.volume, request.offset, len, arrived, &mut self.ahead);
            }
            return Step::Over(0, Next::Read(whole));
        };
        if request.command == Command::Disconnect {
            if self.is_waiting() {
                return Step::Over(0, Next::Wait);
            }
            return Step::Over(whole, Next::Close("it said goodbye"));
        }
        if request.command == Command::Write && !self.agreed.export.read_only {
            let bytes = self.write_run(pool, metrics, rest, out, waits);
            return Step::On(bytes, cost(bytes as u64) + bytes as u64 / (8 << 10));
        }
        match self.execute(pool, metrics, &request, payload, out, waits) {
            Some(cost) => {
                self.retried = None;
                Step::On(whole, cost)
            }
            None => Step::On(0, 1),
        }
    }

    /// Whether a request stores blocks.
    fn takes_room(&self, request: &Request) -> bool {
        let stores = match request.command {
            Command::Write => true,
            Command::WriteZeroes => request.flags & nbd::FLAG_NO_HOLE != 0,
            _ => false,
        };
        stores && !self.agreed.export.read_only
    }

    /// Starts a request that is carried out in pieces, or passes over its payload.
    fn begin(&mut self, request: Request, metrics: &mut Metrics, out: &mut Vec<u8>) {
        let slow = nbd::FLAG_NO_HOLE | nbd::FLAG_FAST_ZERO;
        let bounds = match self.bounds(&request) {
            Ok(()) if request.command == Command::WriteZeroes && request.flags & slow == slow => {
                Err((Errno::NotSup, STORED_ZEROS_ARE_SLOW))
            }
            bounds => bounds,
        };
        if request.payload == 0 {
            metrics.requests[if request.command == Command::Read { 0 } else { 2 }] += 1;
            if let Err((errno, why)) = bounds {
                metrics.errors += 1;
                return self.fail(out, &request, errno, why);
            }
        } else {
            metrics.requests[if request.command == Command::Write { 1 } else { 4 }] += 1;
            metrics.errors += u64::from(bounds.is_err());
        }
        let refused = match bounds {
            Ok(()) if request.payload > 0 && request.command != Command::Write => {
                Some((Errno::Inval, "a payload of this length belongs to no such command"))
            }
            bounds => bounds.err(),
        };
        self.large = Some(Large::new(request, refused));
    }

    /// Carries out the next piece of a large request.
    fn piece(
        &mut self,
        mut large: Large,
        pool: &mut Pool,
        metrics: &mut Metrics,
        input: &[u8],
        out: &mut Vec<u8>,
        waits: &mut Vec<Wait>,
    ) -> Piece {
        let piece = match large.kind() {
            Kind::Data => large.load(self, pool, metrics, out),
            Kind::Payload => large.store(self, pool, metrics, input),
            Kind::Zeros => large.zero(self, pool, metrics),
        };
        if matches!(piece, Piece::Absent) {
            // A read can come in later, unless its answer has begun and must be told without a break.
            if large.kind() == Kind::Data && !large.is_mid_answer(self) {
                self.park(pool, What::Pieces(large));
            } else {
                self.stall(pool);
                self.large = Some(large);
            }
            return piece;
        }
        if !matches!(piece, Piece::Need(_)) {
            self.retried = None;
        }
        match &piece {
            Piece::Absent => {}
            Piece::Over(_, Some(Ok(request))) => self.done(out, request, waits),
            Piece::Over(_, Some(Err((request, errno, why)))) => self.fail(out, request, *errno, why),
            Piece::Over(_, None) | Piece::Broken => {}
            Piece::More(_) | Piece::Need(_) => self.large = Some(large),
        }
        piece
    }

    /// Carries out all complete writes at the front of `input` as one group; returns the bytes used, 0 when
    /// they have to wait.
    fn write_run(
        &mut self,
        pool: &mut Pool,
        metrics: &mut Metrics,
        input: &[u8],
        out: &mut Vec<u8>,
        waits: &mut Vec<Wait>,
    ) -> usize {
        const RUN_MAX: usize = 128;
        let (mut used, start, mut refused) = (0, out.len(), 0);
        let mut ahead = std::mem::take(&mut self.ahead);
        let mut requests: Vec<Request> = Vec::with_capacity(32);
        let mut data: Vec<(u64, &[u8])> = Vec::with_capacity(32);
        while requests.len() < RUN_MAX && used < RUN_BYTES_MAX {
            let rest = input.get(used..).unwrap_or_default();
            let Parsed::Request(request) = nbd::parse(rest, self.agreed.extended) else { break };
            let whole = request.header + request.payload as usize;
            let small_write = request.command == Command::Write && !self.is_large(&request);
            let Some(payload) = rest.get(request.header..whole).filter(|_| small_write) else { break };
            used += whole;
            if let Err((errno, why)) = self.bounds(&request) {
                self.fail(out, &request, errno, why);
                refused += 1;
                // What is ahead may have been this one's.
                ahead = Ahead::default();
                continue;
            }
            data.push((request.offset, payload));
            requests.push(request);
        }
        let outcome = match data.as_slice() {
            &[(offset, piece)] => pool.write_arrived(self.view.volume, offset, piece, ahead),
            several => pool.write_many(self.view.volume, several),
        };
        if outcome.as_ref().is_err_and(|e| e.kind() == ErrorKind::Absent) {
            out.truncate(start);
            self.stall(pool);
            return 0;
        }
        self.retried = None;
        metrics.errors += refused;
        metrics.requests[1] += requests.len() as u64;
        metrics.written_bytes += data.iter().map(|(_, d)| d.len() as u64).sum::<u64>();
        match outcome {
            Ok(()) => requests.iter().for_each(|request| self.done(out, request, waits)),
            Err(_) => {
                // One by one, so that each reply says what became of its own request.
                let patient = pool.set_patient(true);
                for (request, piece) in requests.iter().zip(&data) {
                    match pool.write(self.view.volume, piece.0, piece.1) {
                        Ok(()) => self.done(out, request, waits),
                        Err(e) => self.fail_with(out, metrics, request, &e),
                    }
                }
                pool.set_patient(patient);
            }
        }
        used
    }

    /// Carries out one request that is not a write; returns its cost, or `None` when it and those behind it have
    /// to wait.
    fn execute(
        &mut self,
        pool: &mut Pool,
        metrics: &mut Metrics,
        request: &Request,
        payload: &[u8],
        out: &mut Vec<u8>,
        waits: &mut Vec<Wait>,
    ) -> Option<u64> {
        let kind = match request.command {
            Command::Read => 0,
            Command::Write => 1,
            Command::Trim | Command::WriteZeroes => 2,
            Command::Flush => 3,
            _ => 4,
        };
        if let Err((errno, why)) = self.bounds(request) {
            metrics.requests[kind] += 1;
            metrics.errors += 1;
            self.fail(out, request, errno, why);
            return Some(1);
        }
        let volume = self.view.volume;
        let mut spent = CHANGE_COST;
        let result = match request.command {
            Command::Read | Command::BlockStatus => {
                if !self.answer(pool, metrics, request, payload, out) {
                    if !payload.is_empty() {
                        self.stall(pool);
                        return None;
                    }
                    self.park(pool, What::Whole(*request));
                }
                metrics.requests[kind] += 1;
                return Some(if request.command == Command::Read { cost(request.length) } else { STATUS_COST });
            }
            Command::Flush => {
                waits.push(Wait { cookie: request.cookie, offset: request.offset });
                Ok(None)
            }
            Command::Trim => pool.trim(volume, request.offset, request.length).map(Some),
            Command::WriteZeroes => {
                let store = request.flags & nbd::FLAG_NO_HOLE != 0;
                if store && request.flags & nbd::FLAG_FAST_ZERO != 0 {
                    self.fail(out, request, Errno::NotSup, STORED_ZEROS_ARE_SLOW);
                    Ok(None)
                } else {
                    if store {
                        spent += cost(request.length);
                    }
                    pool.write_zeroes(volume, request.offset, request.length, store).map(Some)
                }
            }
            // Everything is served from the kernel's cache on the first read anyway.
            Command::Cache => {
                self.ok(out, request.cookie, request.offset);
                Ok(None)
            }
            Command::Write | Command::Disconnect | Command::Unknown(_) => {
                self.fail(out, request, Errno::Inval, "unknown command");
                Ok(None)
            }
        };
        if result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Absent) {
            self.stall(pool);
            return None;
        }
        metrics.requests[kind] += 1;
        match result {
            Ok(None) => return Some(1),
            Ok(Some(())) => self.done(out, request, waits),
            Err(e) => self.fail_with(out, metrics, request, &e),
        }
        Some(spent)
    }

    /// Answers a request that changes nothing; `false` when it has to wait.
    fn answer(
        &self,
        pool: &mut Pool,
        metrics: &mut Metrics,
        request: &Request,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> bool {
        let start = out.len();
        let outcome = if request.command == Command::Read {
            self.read(pool, request, out)
        } else {
            self.block_status(pool, request, payload, out)
        };
        match outcome {
            Ok(()) if request.command == Command::Read => metrics.read_bytes += request.length,
            Ok(()) => {}
            Err(e) => {
                out.truncate(start);
                if e.kind() == ErrorKind::Absent {
                    return false;
                }
                self.fail_with(out, metrics, request, &e);
            }
        }
        true
    }

    fn read(&self, pool: &mut Pool, request: &Request, out: &mut Vec<u8>) -> blockstore::Result<()> {
        const HOLES_FROM: u64 = 64 << 10;
        let (at, length) = (request.offset, request.length);
        if length == 0 && self.agreed.structured {
            nbd::none(out, self.agreed.extended, request.cookie, at);
            Ok(())
        } else if length >= HOLES_FROM && self.chunked(request) {
            self.read_chunks(pool, request, at, length, true, out)
        } else {
            self.whole_header(request, out);
            self.read_bytes(pool, at, length as usize, out)
        }
    }

    /// A change is made: reply now, or after a sync when the client asked for FUA.
    fn done(&self, out: &mut Vec<u8>, request: &Request, waits: &mut Vec<Wait>) {
        if request.flags & nbd::FLAG_FUA != 0 {
            waits.push(Wait { cookie: request.cookie, offset: request.offset });
        } else {
            self.ok(out, request.cookie, request.offset);
        }
    }

    fn ok(&self, out: &mut Vec<u8>, cookie: u64, offset: u64) {
        if self.agreed.extended {
            nbd::none(out, true, cookie, offset);
        } else {
            nbd::simple(out, cookie, 0);
        }
    }

    /// The sync that a reply waited for is over.
    pub fn synced(&mut self, out: &mut Vec<u8>, wait: Wait, failure: Option<&str>) {
        // An answer that is told in one piece takes several turns: what comes up meanwhile follows it.
        let mid_answer = self.large.as_ref().is_some_and(|large| large.is_mid_answer(self));
        let mut late = std::mem::take(&mut self.late);
        let to = if mid_answer { &mut late } else { out };
        match failure {
            None => self.ok(to, wait.cookie, wait.offset),
            Some(why) => self.refuse(to, wait.cookie, wait.offset, Errno::Io, why),
        }
        self.late = late;
    }

    /// The session is ended by the server: what `waits` for a sync, and every request in `input` that was not
    /// carried out, is refused with ESHUTDOWN. Nothing can be said in the middle of an answer.
    pub fn end(&self, waits: Vec<Wait>, input: &[u8], out: &mut Vec<u8>) {
        const WHY: &str = "the export is taken away";
        if self.large.is_some() {
            return;
        }
        for wait in waits {
            self.refuse(out, wait.cookie, wait.offset, Errno::Shutdown, WHY);
        }
        for parked in &self.parked {
            self.fail(out, parked.what.request(), Errno::Shutdown, WHY);
        }
        let mut rest = input;
        while let Parsed::Request(request) = nbd::parse(rest, self.agreed.extended) {
            if request.command == Command::Disconnect {
                return;
            }
            self.fail(out, &request, Errno::Shutdown, WHY);
            rest = rest.get(request.header + request.payload as usize..).unwrap_or_default();
        }
    }

    fn fail(&self, out: &mut Vec<u8>, request: &Request, errno: Errno, why: &str) {
        self.refuse(out, request.cookie, request.offset, errno, why);
    }

    fn refuse(&self, out: &mut Vec<u8>, cookie: u64, offset: u64, errno: Errno, why: &str) {
        if self.agreed.structured {
            nbd::error(out, self.agreed.extended, cookie, offset, errno, why);
        } else {
            nbd::simple(out, cookie, errno as u32);
        }
    }

    fn fail_with(&self, out: &mut Vec<u8>, metrics: &mut Metrics, request: &Request, error: &Error) {
        let errno = self.errno(metrics, error);
        self.fail(out, request, errno, &error.to_string());
    }

    /// The protocol's number for a failure of the store, which is counted and, if it is the store's
    /// own, logged.
    fn errno(&self, metrics: &mut Metrics, error: &Error) -> Errno {
        metrics.errors += 1;
        let errno = match error.kind() {
            ErrorKind::Invalid => Errno::Inval,
            ErrorKind::NoSpace => Errno::NoSpace,
            ErrorKind::NotFound => Errno::Shutdown,
            _ => Errno::Io,
        };
        metrics.no_space += u64::from(errno == Errno::NoSpace);
        match errno {
            Errno::Io => tracing::error!(export = self.agreed.export.name, %error, "a request failed"),
            Errno::NoSpace => tracing::debug!(export = self.agreed.export.name, %error, "a request found no space"),
            _ => {}
        }
        errno
    }
}
