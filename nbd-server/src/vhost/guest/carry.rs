//! One request, or the next piece of it.
//!
//! Invariants
//!   * data is copied into memory of our own before the pool sees it: the guest cannot change it under a checksum;
//!   * a piece is carried out as a whole, waits for the object store as a whole, or fails with its request.

use super::{Guest, GuestWait};
use crate::metrics::Metrics;
use crate::session::Awaited;
use crate::vhost::request::{gather, scatter, Status, Wanted, ID_BYTES};
use crate::vhost::work::{Answer, Work, PIECE, SMALL_PIECE};
use blockstore::{Error, ErrorKind, Pool};
use tracing::{debug, error};

/// Cost of a change of the map alone.
const CHANGE_COST: u64 = 4;
/// Writes carried out as one.
const RUN_MAX: usize = 128;

fn cost(bytes: u64) -> u64 {
    1 + bytes / (16 << 10)
}

impl Guest {
    /// Carries out the first request, or its next piece, and writes that follow with it; what that cost.
    pub(super) fn step(&mut self, pool: &mut Pool, metrics: &mut Metrics, waits: &mut Vec<GuestWait>) -> u64 {
        let Some(work) = self.active.pop_front() else { return 0 };
        let most = if self.small_pieces { SMALL_PIECE } else { PIECE };
        match work.request.wanted {
            Wanted::Read(_) | Wanted::Write(_) if work.request.length == 0 => {
                self.answer(Answer::to(&work, Status::Ok));
                1
            }
            Wanted::Read(offset) => self.read(work, offset, pool, metrics),
            Wanted::Write(_) if is_small(&work) => self.write_run(work, pool, metrics, waits),
            Wanted::Write(offset) => {
                let (at, length) = work.piece(offset, most);
                self.scratch.resize(length as usize, 0);
                let copied = self.gather(&work, work.done, 0);
                let outcome = copied.and_then(|()| pool.write(self.view.volume, at, &self.scratch));
                self.advance(work, length, outcome, pool, metrics, waits);
                cost(length)
            }
            Wanted::Discard(_) | Wanted::Zero(_) => {
                let zero = matches!(work.request.wanted, Wanted::Zero(_));
                let Some(range) = work.range() else {
                    self.finish(&work, metrics, waits);
                    return 1;
                };
                let (volume, at, length) = (self.view.volume, range.offset, range.length);
                let outcome = match zero {
                    true => pool.write_zeroes(volume, at, length, range.store),
                    false => pool.trim(volume, at, length),
                };
                self.advance(work, length, outcome, pool, metrics, waits);
                CHANGE_COST + if range.store { cost(length) } else { 0 }
            }
            Wanted::Flush => {
                metrics.requests[3] += 1;
                waits.push(GuestWait(Answer::to(&work, Status::Ok)));
                1
            }
            Wanted::Id => {
                metrics.requests[4] += 1;
                let mut id = [0; ID_BYTES];
                id.iter_mut().zip(self.export.bytes()).for_each(|(to, from)| *to = from);
                let memory = self.device.memory.as_ref();
                let put = memory.is_some_and(|memory| scatter(memory, &work.request.buffers, 0, &id).is_ok());
                self.answer(Answer::to(&work, if put { Status::Ok } else { Status::IoError }));
                1
            }
        }
    }

    fn read(&mut self, mut work: Work, offset: u64, pool: &mut Pool, metrics: &mut Metrics) -> u64 {
        let (at, length) = work.piece(offset, SMALL_PIECE);
        self.scratch.clear();
        let read = pool.read_onto(self.view, at, length as usize, &mut self.scratch);
        let outcome = read.and_then(|()| {
            let memory = self.device.memory.as_ref();
            let put = memory.map(|memory| scatter(memory, &work.request.buffers, work.done, &self.scratch));
            put.and_then(Result::ok).ok_or_else(gone)
        });
        match outcome {
            Ok(()) => {
                (work.done, work.awaited) = (work.done.saturating_add(length), None);
                metrics.read_bytes += length;
                if work.done < work.request.length {
                    self.active.push_front(work);
                } else {
                    metrics.requests[0] += 1;
                    self.answer(Answer::to(&work, Status::Ok));
                }
            }
            Err(e) => self.failed(work, pool, metrics, &e),
        }
        cost(length)
    }

    /// Carries out a small write, and those that follow it, as one.
    fn write_run(&mut self, first: Work, pool: &mut Pool, metrics: &mut Metrics, waits: &mut Vec<GuestWait>) -> u64 {
        let mut bytes = first.request.length;
        let mut run = vec![first];
        while let Some(next) = self.active.front() {
            bytes = bytes.saturating_add(next.request.length);
            if !is_small(next) || run.len() >= RUN_MAX || bytes > PIECE {
                break;
            }
            run.extend(self.active.pop_front());
        }
        let whole: u64 = run.iter().map(|work| work.request.length).sum();
        self.scratch.resize(whole as usize, 0);
        let (mut at, mut copied) = (0, Ok(()));
        for work in &run {
            copied = copied.and_then(|()| self.gather(work, 0, at));
            at += work.request.length as usize;
        }
        let mut rest = self.scratch.as_slice();
        let mut pieces = Vec::with_capacity(run.len());
        for work in &run {
            let (piece, behind) = rest.split_at((work.request.length as usize).min(rest.len()));
            rest = behind;
            if let Wanted::Write(offset) = work.request.wanted {
                pieces.push((offset, piece));
            }
        }
        let volume = self.view.volume;
        let outcome = copied.and_then(|()| pool.write_many(volume, &pieces));
        if outcome.is_ok() || run.len() == 1 {
            let mut outcome = Some(outcome);
            for work in run {
                let length = work.request.length;
                self.advance(work, length, outcome.take().unwrap_or(Ok(())), pool, metrics, waits);
            }
            return cost(whole) + whole / (8 << 10);
        }
        // One by one, so that each answer says what became of its own request, and only what is absent waits.
        drop(pool.missing());
        for work in run {
            let length = work.request.length;
            self.scratch.resize(length as usize, 0);
            let copied = self.gather(&work, 0, 0);
            let Wanted::Write(offset) = work.request.wanted else { continue };
            let outcome = copied.and_then(|()| pool.write(volume, offset, &self.scratch));
            self.advance(work, length, outcome, pool, metrics, waits);
        }
        cost(whole) + whole / (8 << 10)
    }

    /// Copies data of a request, from its byte `skip` on, into our own memory, from its byte `at` on.
    fn gather(&mut self, work: &Work, skip: u64, at: usize) -> blockstore::Result<()> {
        let length = work.request.length.saturating_sub(skip) as usize;
        let end = at.saturating_add(length).min(self.scratch.len());
        let memory = self.device.memory.as_ref().ok_or_else(gone)?;
        let into = self.scratch.get_mut(at..end).ok_or_else(gone)?;
        gather(memory, &work.request.buffers, skip, into).map_err(|_| gone())
    }

    /// A piece of a change is made, or not.
    fn advance(
        &mut self,
        mut work: Work,
        length: u64,
        outcome: blockstore::Result<()>,
        pool: &mut Pool,
        metrics: &mut Metrics,
        waits: &mut Vec<GuestWait>,
    ) {
        if let Err(e) = outcome {
            return self.failed(work, pool, metrics, &e);
        }
        (work.done, work.awaited) = (work.done.saturating_add(length), None);
        if matches!(work.request.wanted, Wanted::Write(_)) {
            metrics.written_bytes += length;
        }
        if work.done < work.request.length {
            self.active.push_front(work);
        } else {
            self.finish(&work, metrics, waits);
        }
    }

    /// A change is made: the answer is due, or is after a sync when the driver never flushes.
    fn finish(&mut self, work: &Work, metrics: &mut Metrics, waits: &mut Vec<GuestWait>) {
        let [_, writes, trims, ..] = &mut metrics.requests;
        *if matches!(work.request.wanted, Wanted::Write(_)) { writes } else { trims } += 1;
        let answer = Answer::to(work, Status::Ok);
        if self.device.has_flush() {
            self.answer(answer);
        } else {
            waits.push(GuestWait(answer));
        }
    }

    /// A request waits for the object store, or has failed.
    fn failed(&mut self, mut work: Work, pool: &mut Pool, metrics: &mut Metrics, e: &Error) {
        if e.kind() == ErrorKind::Absent {
            work.awaited = Some(Awaited::new(pool, work.awaited.take()));
            self.parked.push(work);
        } else {
            self.fail(&work, metrics, e);
        }
    }

    pub(super) fn fail(&mut self, work: &Work, metrics: &mut Metrics, e: &Error) {
        metrics.errors += 1;
        if e.kind() == ErrorKind::NoSpace {
            metrics.no_space += 1;
            debug!(export = self.export, error = %e, "a request found no space");
        } else {
            error!(export = self.export, error = %e, "a request failed");
        }
        self.answer(Answer::to(work, Status::IoError));
    }
}

fn is_small(work: &Work) -> bool {
    matches!(work.request.wanted, Wanted::Write(_)) && work.done == 0 && work.request.length <= SMALL_PIECE
}

fn gone() -> Error {
    Error::new(ErrorKind::Invalid, "the guest's memory is gone")
}
