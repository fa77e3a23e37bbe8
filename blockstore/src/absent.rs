//! What is in the object store alone, for an owner that cannot wait for it.
//!
//! A pool is patient at first: what a request needs is fetched before it returns. An impatient one
//! ([`Pool::set_patient`], [`Pool::impatient`]) answers with an error of kind `Absent` instead. Then
//! [`Pool::missing`] says what was missing, [`Pool::take_fetches`] hands out the fetches that bring it, to be run on
//! any thread and reported to [`Pool::fetched`], and the request is made again.
//!
//! Invariants
//!   * a request that was answered with `Absent` has changed nothing;
//!   * a change first looks at all that it will read; then it is made patiently: once it is in the log it must not
//!     fail, and what it looked at is in memory, if only as frames of objects, so that it does not wait;
//!   * one piece is fetched once, however many wait for it.

use crate::checkpoint::prepare;
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::Record;
use crate::limits::{BLOCK, BLOCK_U64, OBJECT_FRAMES_KEPT, TRIM_INLINE_BLOCKS};
use crate::map::{span, FANOUT};
use crate::pool::Pool;
use crate::space::{Arrival, FetchJob, Fetched, Missing};
use crate::types::VolumeId;
use crate::volume::View;
use std::ops::Range;

/// All of several outcomes, so that everything absent is asked for at once.
pub(crate) fn all_present(outcomes: impl IntoIterator<Item = Result<()>>) -> Result<()> {
    let mut absent = Ok(());
    for outcome in outcomes {
        match outcome {
            Err(e) if e.kind() == ErrorKind::Absent => absent = Err(e),
            outcome => outcome?,
        }
    }
    absent
}

impl Pool {
    /// Whether what is not here is fetched at once, which blocks; returns how it was.
    pub fn set_patient(&mut self, patient: bool) -> bool {
        self.segments.set_patient(patient)
    }

    /// Does `act` without waiting for the object store: it may be answered with `Absent`.
    pub fn impatient<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> T {
        let patient = self.set_patient(false);
        let done = act(self);
        self.set_patient(patient);
        done
    }

    pub(crate) fn patiently<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> T {
        if self.segments.remote.is_none() {
            return act(self);
        }
        let patient = self.set_patient(true);
        let done = act(self);
        self.set_patient(patient);
        done
    }

    /// Does `change`; one that must not wait only after `look` has found all that it will read.
    pub(crate) fn prepared<T>(
        &mut self,
        look: impl FnOnce(&mut Self) -> Result<()>,
        change: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        if !self.segments.is_hasty() {
            return change(self);
        }
        look(self)?;
        self.patiently(change)
    }

    /// What the requests answered with `Absent` since the last call wait for.
    pub fn missing(&mut self) -> Missing {
        self.segments.remote.as_ref().map_or_else(Missing::default, |remote| remote.wants().take_missing())
    }

    /// Whether so much is wanted that whoever can wait should not ask for more.
    pub fn is_fetching_much(&self) -> bool {
        self.segments.remote.as_ref().is_some_and(|remote| remote.wants().len() > OBJECT_FRAMES_KEPT / 2)
    }

    /// Asks for all that reading `len` bytes at `offset` will miss, as a read that is answered with `Absent` does.
    pub fn want(&mut self, view: View, offset: u64, len: u64) {
        if !self.segments.is_hasty() || self.bounds(view, offset, len).is_err() {
            return;
        }
        let (first, last) = (offset / BLOCK_U64, (offset + len).div_ceil(BLOCK_U64));
        self.demand(view, first, (last - first) as usize);
    }

    /// Asks for all that writing `len` bytes at `offset` of a head, or making holes of them, will miss.
    pub fn want_for_change(&mut self, volume: VolumeId, offset: u64, len: u64) {
        if self.segments.is_hasty() {
            // Whatever is wrong will be told when the change is made.
            drop(self.head_view(volume).and_then(|view| self.prepare_write(view, offset, len)));
        }
    }

    pub(crate) fn demands(&self) -> usize {
        self.segments.remote.as_ref().map_or(0, |remote| remote.wants().demands())
    }

    /// Nobody waits for what has been demanded since there were so many demands: it is fetched all the same.
    pub(crate) fn forget_demands(&self, since: usize) {
        if let Some(remote) = &self.segments.remote {
            remote.wants().forget_demands(since);
        }
    }

    /// Up to `max` fetches to run, what somebody waits for first.
    pub fn take_fetches(&mut self, max: usize) -> Vec<FetchJob> {
        let Some(remote) = &self.segments.remote else { return Vec::new() };
        std::iter::from_fn(|| remote.take_fetch()).take(max).collect()
    }

    /// Takes note of a fetch; tell those who wait of what it returns.
    pub fn fetched(&mut self, job: FetchJob, outcome: Result<Fetched>) -> Arrival {
        match &self.segments.remote {
            Some(remote) => remote.fetched(job, outcome),
            None => Arrival { numbers: Vec::new(), failure: outcome.err() },
        }
    }

    /// Looks at what writing `len` bytes at `offset` will read.
    pub(crate) fn prepare_write(&mut self, view: View, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let end = self.bounds(view, offset, len)?;
        let (first, last) = (offset / BLOCK_U64, end.div_ceil(BLOCK_U64));
        let mut whole = [0; BLOCK];
        let mut ragged = |pool: &mut Self, at: u64| match at % BLOCK_U64 {
            0 => Ok(()),
            _ => pool.read_blocks(view, at / BLOCK_U64, &mut whole),
        };
        let ends = all_present([ragged(self, offset), ragged(self, end)]);
        all_present([ends, self.prepare_blocks(view.volume, first..last)])
    }

    /// Looks at what turning whole blocks into holes will read.
    pub(crate) fn prepare_trim(&mut self, volume: VolumeId, range: Range<u64>) -> Result<()> {
        let head = self.volume(volume)?.head;
        let range = range.start..range.end.min(span(self.roots.get(head).map.level));
        if range.is_empty() {
            return Ok(());
        }
        if range.end - range.start <= TRIM_INLINE_BLOCKS {
            return self.prepare_blocks(volume, range);
        }
        // What lies between its ends is cut off as a whole, and the reaper's.
        let (first, last) = (range.start, range.end - 1);
        all_present([self.prepare_blocks(volume, first..first + 1), self.prepare_blocks(volume, last..last + 1)])
    }

    /// Looks at what applying a record of a log's tail will read, where some of it is not here: it fails before anything is
    /// changed.
    pub(crate) fn prepare_record(&mut self, volume: VolumeId, record: &Record) -> Result<()> {
        match record {
            _ if !self.segments.table.away => Ok(()),
            Record::Write { block, count } => self.prepare_blocks(volume, *block..block + count),
            Record::Trim { block, count } => self.prepare_trim(volume, *block..block + count),
            _ => Ok(()),
        }
    }

    fn prepare_blocks(&mut self, volume: VolumeId, range: Range<u64>) -> Result<()> {
        let head = self.volume(volume)?.head;
        let leaves = range.start / FANOUT as u64..range.end.div_ceil(FANOUT as u64);
        let (roots, map, segments) = (&self.roots, &mut self.map, &self.segments);
        all_present(leaves.map(|leaf| prepare(roots, map, segments, head, leaf * FANOUT as u64, 0)))
    }

    /// A read found that something is absent: what else it will miss is asked for, too.
    #[cold]
    pub(crate) fn demand_rest(&mut self, e: &Error, view: View, first: u64, count: usize) {
        if e.kind() == ErrorKind::Absent {
            self.demand(view, first, count);
        }
    }

    fn demand(&mut self, view: View, first: u64, count: usize) {
        let tree = self.roots.get(view.root).map;
        let (mut at, end) = (first, first + count as u64);
        let mut nothing = Vec::new();
        while at < end {
            match self.run_at(tree, at, (end - at) as usize) {
                Ok((run, addr)) => {
                    if let Some(addr) = addr {
                        // Only what it asks for matters.
                        drop(self.segments.read_slots_onto(addr, &mut nothing, run));
                        nothing.clear();
                    }
                    at += run as u64;
                }
                Err(_) => at = (at / FANOUT as u64 + 1) * FANOUT as u64,
            }
        }
    }
}
