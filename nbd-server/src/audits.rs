//! Checks, scrubs and censuses on a thread of their own, at the lowest priority.
//!
//! Invariants
//!   * the pool's thread does no part of the work but the anchor that it begins with;
//!   * whoever called for it can call it off; it ends at the next block or map node.

use crate::exports::split;
use crate::jobs::Done;
use blockstore::{AuditJob, Error, Result};
use serde_json::{json, Value};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

/// Time between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// The kindest there is.
const NICE: i32 = 19;

/// What is to be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditKind {
    /// The accounts against what the roots reach.
    Check,
    /// The data of one volume with its checkpoints, of one checkpoint, or of all.
    Scrub(Option<String>),
}

/// Work that somebody on the control socket called for.
pub struct AuditCall {
    /// Who.
    pub token: u64,
    /// What.
    pub kind: AuditKind,
    /// The caller is gone.
    pub called_off: Arc<AtomicBool>,
    /// It runs; until then it waits for the pool to come to rest.
    pub running: bool,
}

/// A census that goes on.
pub struct Running(Arc<AtomicBool>);

impl Running {
    /// It ends at the next map node.
    pub fn call_off(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Counts what lives of volumes that came from another pool; `report` is told the outcome.
pub fn count(job: AuditJob, report: impl Fn(Done) + Send + 'static) -> io::Result<Running> {
    let running = Running(Arc::default());
    let called_off = running.0.clone();
    on_a_thread("cairn-census", move || {
        let census = job.open().and_then(|mut audit| audit.census(&mut |_, _| !called_off.load(Ordering::Relaxed)));
        report(Done::Counted(census));
    })?;
    Ok(running)
}

/// Runs `job`; `report` is told how far it has come and how it ended.
pub fn start(call: &AuditCall, job: AuditJob, report: impl Fn(Done) + Send + 'static) -> io::Result<()> {
    let (token, kind, called_off) = (call.token, call.kind.clone(), call.called_off.clone());
    on_a_thread("cairn-audit", move || {
        let outcome = verify(job, &kind, &called_off, &|line| report(Done::AuditProgress(token, line)));
        report(Done::Audited(token, outcome));
    })
}

fn on_a_thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let kindly = move || {
        // SAFETY: a plain system call; on Linux 0 stands for the calling thread. A refusal costs speed only.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
        work();
    };
    thread::Builder::new().name(name.to_owned()).spawn(kindly).map(drop)
}

fn verify(job: AuditJob, kind: &AuditKind, called_off: &AtomicBool, report: &dyn Fn(Value)) -> Result<Value> {
    let unit = if *kind == AuditKind::Check { "nodes" } else { "bytes" };
    let mut told = Instant::now();
    let mut ticker = |done: u64, total: u64| {
        if total > 0 && told.elapsed() > PROGRESS_EVERY {
            told = Instant::now();
            report(json!({"progress": {"done": done, "total": total, "unit": unit}}));
        }
        !called_off.load(Ordering::Relaxed)
    };
    let mut audit = job.open()?;
    match kind {
        AuditKind::Check => audit
            .check(&mut ticker)
            .map(|report| json!({"roots": report.roots, "blocks": report.blocks, "problems": report.problems})),
        AuditKind::Scrub(volume) => audit
            .scrub(volume.as_deref().map(split).transpose()?, &mut ticker)
            .map(|report| json!({"volume": volume, "blocks": report.blocks, "damaged": report.damaged})),
    }
}

/// Why a second audit is refused.
pub fn busy() -> Error {
    Error::new(blockstore::ErrorKind::Busy, "a check or scrub of this pool runs already: wait for it, or end it")
}
