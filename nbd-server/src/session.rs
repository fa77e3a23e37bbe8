//! Executing one client's requests on the pool: from the bytes of its buffer to the bytes of its
//! replies. Requests that need a sync are handed back as [`Wait`]s.

use crate::metrics::Metrics;
use crate::nbd::limits::{EXTENTS_MAX, PAYLOAD_MAX};
use crate::nbd::{self, Command, Errno, MetaContext, Negotiated, Parsed, Request};
use blockstore::{CheckpointName, Error, ErrorKind, Pool, View};

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
    /// The output is long enough: send first.
    Send,
    /// The client is done, or not a client.
    Close,
}

/// A client in the transmission phase.
pub struct Session {
    agreed: Negotiated,
    /// What it reads, and writes unless it is a checkpoint.
    pub view: View,
}

/// Output beyond this is sent before more requests are carried out: bounds memory per client.
const OUTPUT_MAX: usize = 4 << 20;

impl Session {
    /// A session on `view`.
    pub fn new(agreed: Negotiated, view: View) -> Self {
        Self { agreed, view }
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
        let mut used = 0;
        loop {
            if out.len() >= OUTPUT_MAX {
                return (used, Next::Send);
            }
            let rest = input.get(used..).unwrap_or_default();
            let request = match nbd::parse(rest, self.agreed.extended) {
                Parsed::NeedMore => return (used, Next::Read(0)),
                Parsed::Fatal(_) => return (used, Next::Close),
                Parsed::Request(request) => request,
            };
            let whole = request.header + request.payload as usize;
            if rest.len() < whole {
                return (used, Next::Read(whole));
            }
            if request.command == Command::Disconnect {
                return (used + whole, Next::Close);
            }
            if request.command == Command::Write && !self.agreed.export.read_only {
                used += self.write_run(pool, metrics, rest, out, waits);
                continue;
            }
            used += whole;
            self.execute(pool, metrics, &request, out, waits);
        }
    }

    /// Carries out all complete writes at the front of `input` as one group.
    fn write_run(
        &self,
        pool: &mut Pool,
        metrics: &mut Metrics,
        input: &[u8],
        out: &mut Vec<u8>,
        waits: &mut Vec<Wait>,
    ) -> usize {
        const RUN_MAX: usize = 128;
        let mut used = 0;
        let mut requests: Vec<Request> = Vec::with_capacity(32);
        let mut data: Vec<(u64, &[u8])> = Vec::with_capacity(32);
        while requests.len() < RUN_MAX {
            let rest = input.get(used..).unwrap_or_default();
            let Parsed::Request(request) = nbd::parse(rest, self.agreed.extended) else { break };
            let whole = request.header + request.payload as usize;
            let Some(payload) = rest.get(request.header..whole).filter(|_| request.command == Command::Write) else {
                break;
            };
            used += whole;
            if let Err((errno, why)) = self.bounds(&request) {
                self.fail(out, &request, errno, why);
                metrics.errors += 1;
                continue;
            }
            data.push((request.offset, payload));
            requests.push(request);
        }
        metrics.requests[1] += requests.len() as u64;
        metrics.written_bytes += data.iter().map(|(_, d)| d.len() as u64).sum::<u64>();
        match pool.write_many(self.view.volume, &data) {
            Ok(()) => requests.iter().for_each(|request| self.done(out, request, waits)),
            Err(_) => {
                // One by one, so that each reply says what became of its own request.
                for (request, piece) in requests.iter().zip(&data) {
                    match pool.write(self.view.volume, piece.0, piece.1) {
                        Ok(()) => self.done(out, request, waits),
                        Err(e) => self.fail_with(out, metrics, request, &e),
                    }
                }
            }
        }
        used
    }

    fn execute(
        &self,
        pool: &mut Pool,
        metrics: &mut Metrics,
        request: &Request,
        out: &mut Vec<u8>,
        waits: &mut Vec<Wait>,
    ) {
        let kind = match request.command {
            Command::Read => 0,
            Command::Write => 1,
            Command::Trim | Command::WriteZeroes => 2,
            Command::Flush => 3,
            _ => 4,
        };
        metrics.requests[kind] += 1;
        if let Err((errno, why)) = self.bounds(request) {
            metrics.errors += 1;
            return self.fail(out, request, errno, why);
        }
        let volume = self.view.volume;
        let result = match request.command {
            Command::Read => {
                metrics.read_bytes += request.length;
                return self.read(pool, metrics, request, out);
            }
            Command::BlockStatus => return self.block_status(pool, metrics, request, out),
            Command::Flush => {
                waits.push(Wait { cookie: request.cookie, offset: request.offset });
                return;
            }
            Command::Trim => pool.trim(volume, request.offset, request.length),
            Command::WriteZeroes => {
                let store = request.flags & nbd::FLAG_NO_HOLE != 0;
                if store && request.flags & nbd::FLAG_FAST_ZERO != 0 {
                    return self.fail(out, request, Errno::NotSup, "storing zeros is not faster than writing them");
                }
                pool.write_zeroes(volume, request.offset, request.length, store)
            }
            // Everything is served from the kernel's cache on the first read anyway.
            Command::Cache => return self.ok(out, request.cookie, request.offset),
            Command::Write | Command::Disconnect | Command::Unknown(_) => {
                return self.fail(out, request, Errno::Inval, "unknown command");
            }
        };
        match result {
            Ok(()) => self.done(out, request, waits),
            Err(e) => self.fail_with(out, metrics, request, &e),
        }
    }

    /// What is wrong with a request, if anything.
    fn bounds(&self, request: &Request) -> Result<(), (Errno, &'static str)> {
        let (known, changes) = match request.command {
            Command::Read => (nbd::FLAG_DF, false),
            Command::Write | Command::Trim => (nbd::FLAG_FUA, true),
            Command::WriteZeroes => (nbd::FLAG_FUA | nbd::FLAG_NO_HOLE | nbd::FLAG_FAST_ZERO, true),
            Command::BlockStatus => (nbd::FLAG_REQ_ONE, false),
            Command::Flush | Command::Cache | Command::Disconnect => (nbd::FLAG_FUA, false),
            Command::Unknown(_) => return Err((Errno::Inval, "unknown command")),
        };
        let framing = if self.agreed.extended && request.command == Command::Write { nbd::FLAG_PAYLOAD_LEN } else { 0 };
        if request.flags & !(known | framing | nbd::FLAG_FUA) != 0 {
            return Err((Errno::Inval, "a flag that this command does not have"));
        }
        if changes && self.agreed.export.read_only {
            return Err((Errno::Perm, "the export is read-only"));
        }
        if request.command == Command::Flush {
            return Ok(());
        }
        if request.command == Command::Read && request.length > u64::from(PAYLOAD_MAX) {
            return Err((Errno::Inval, "a read beyond 32 MiB"));
        }
        match request.offset.checked_add(request.length) {
            Some(end) if end <= self.agreed.export.size => Ok(()),
            _ if request.command == Command::Write => Err((Errno::NoSpace, "past the end of the export")),
            _ => Err((Errno::Inval, "past the end of the export")),
        }
    }

    fn read(&self, pool: &mut Pool, metrics: &mut Metrics, request: &Request, out: &mut Vec<u8>) {
        const HOLES_FROM: u64 = 64 << 10;
        let (cookie, extended, start) = (request.cookie, self.agreed.extended, out.len());
        let length = request.length as u32;
        if !self.agreed.structured {
            nbd::simple(out, cookie, 0);
        } else if request.length >= HOLES_FROM && request.flags & nbd::FLAG_DF == 0 {
            return self.read_sparse(pool, metrics, request, out);
        } else {
            nbd::data_header(out, extended, cookie, request.offset, request.offset, length, true);
        }
        let body = out.len();
        out.resize(body + length as usize, 0);
        if let Err(e) = pool.read(self.view, request.offset, &mut out[body..]) {
            out.truncate(start);
            self.fail_with(out, metrics, request, &e);
        }
    }

    fn read_sparse(&self, pool: &mut Pool, metrics: &mut Metrics, request: &Request, out: &mut Vec<u8>) {
        let (cookie, extended, start) = (request.cookie, self.agreed.extended, out.len());
        let result = pool.extents(self.view, request.offset, request.length, usize::MAX - 1).and_then(|extents| {
            let mut at = request.offset;
            let end = at + request.length;
            for extent in extents {
                let (length, done) = (extent.len as u32, at + extent.len == end);
                if extent.hole {
                    nbd::hole(out, extended, cookie, request.offset, at, length, done);
                } else {
                    nbd::data_header(out, extended, cookie, request.offset, at, length, done);
                    let body = out.len();
                    out.resize(body + length as usize, 0);
                    pool.read(self.view, at, &mut out[body..])?;
                }
                at += extent.len;
            }
            Ok(())
        });
        if let Err(e) = result {
            out.truncate(start);
            self.fail_with(out, metrics, request, &e);
        }
    }

    fn block_status(&self, pool: &mut Pool, metrics: &mut Metrics, request: &Request, out: &mut Vec<u8>) {
        if self.agreed.contexts.is_empty() || request.length == 0 {
            return self.fail(out, request, Errno::Inval, "no metadata context was agreed on, or the range is empty");
        }
        let max = if request.flags & nbd::FLAG_REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
        let start = out.len();
        for (i, context) in self.agreed.contexts.iter().enumerate() {
            let extents = match context {
                MetaContext::Allocation => pool.extents(self.view, request.offset, request.length, max),
                MetaContext::ChangedSince(name) => CheckpointName::parse(name)
                    .ok_or_else(|| Error::new(ErrorKind::NotFound, "no such checkpoint"))
                    .and_then(|name| pool.view(self.view.volume, Some(name)))
                    .and_then(|from| pool.changes(from, self.view, request.offset, request.length, max)),
            };
            let allocation = *context == MetaContext::Allocation;
            // base:allocation: a hole that reads as zeros is 3; changed-since: 1 marks a change.
            let flags = |hole| match (allocation, hole) {
                (true, true) => 3,
                (false, false) => 1,
                _ => 0,
            };
            match extents {
                Ok(extents) => {
                    let done = i + 1 == self.agreed.contexts.len();
                    let (cookie, extended) = (request.cookie, self.agreed.extended);
                    nbd::block_status(out, extended, cookie, request.offset, i as u32 + 1, &extents, flags, done);
                }
                Err(e) => {
                    out.truncate(start);
                    return self.fail_with(out, metrics, request, &e);
                }
            }
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
    pub fn synced(&self, out: &mut Vec<u8>, wait: Wait, failure: Option<&str>) {
        match failure {
            None => self.ok(out, wait.cookie, wait.offset),
            Some(why) => self.refuse(out, wait.cookie, wait.offset, Errno::Io, why),
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
        metrics.errors += 1;
        let errno = match error.kind() {
            ErrorKind::Invalid => Errno::Inval,
            ErrorKind::NoSpace => Errno::NoSpace,
            ErrorKind::NotFound => Errno::Shutdown,
            _ => Errno::Io,
        };
        if errno == Errno::Io {
            eprintln!("cairn: {}: {error}", self.agreed.export.name);
        }
        self.fail(out, request, errno, &error.to_string());
    }
}
