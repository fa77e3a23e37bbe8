//! Worker threads for what blocks. Syncs have a thread of their own, so that no flush waits behind
//! cleaning; what can wait has one that takes only the computing that clients leave.

use crate::poll;
use blockstore::disk::{Disk, File};
use blockstore::{
    prepare_segment, AnchorJob, CleanJob, Cleaned, ErrorKind, FetchJob, Fetched, FlushJob, SegmentId, WriteBack,
};
use serde_json::Value;
use std::io;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Work.
pub enum Job {
    /// Sync a log.
    Flush(FlushJob),
    /// Sync what of a log needs no waiting for.
    Settle(FlushJob),
    /// Install an anchor.
    Anchor(Box<AnchorJob>),
    /// Remove or pack a segment file; at once, or when there is time.
    Clean(CleanJob, Urgency),
    /// Start write-back of a range.
    WriteBack(WriteBack),
    /// Prepare a segment; at once, or when there is time.
    Spare(SegmentId, Arc<dyn Disk>, Urgency),
}

/// Whether clients need what a job brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Soon: space or prepared segments run short.
    Now,
    /// Not yet: it may take only what they leave of the processors.
    Whenever,
}

/// Work that is done, with its outcome.
pub enum Done {
    /// A log was synced.
    Flush(FlushJob, io::Result<()>),
    /// What of a log could be synced ahead was.
    Settle(FlushJob, io::Result<()>),
    /// An anchor was installed.
    Anchor(Box<AnchorJob>, io::Result<()>),
    /// A segment file was cleaned.
    Clean(CleanJob, blockstore::Result<Cleaned>),
    /// A segment was prepared.
    Spare(SegmentId, io::Result<Arc<dyn File>>),
    /// Something has come from the object store, or not.
    Fetch(Box<FetchJob>, blockstore::Result<Fetched>),
    /// An audit goes on: a line for its caller.
    AuditProgress(u64, Value),
    /// An audit is over.
    Audited(u64, blockstore::Result<Value>),
}

/// Fetches that run at a time: with 1 MiB each and 30 ms for an answer, some 500 MB/s.
const FETCHERS: usize = 16;
/// How long one fetch tries to reach the store, and the pauses between its tries.
const FETCH_TIME: Duration = Duration::from_secs(5);
const FETCH_PAUSE: Duration = Duration::from_millis(100);
const FETCH_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The workers and their mailboxes.
pub struct Workers {
    sync: Sender<Job>,
    settle: Sender<Job>,
    background: Sender<Job>,
    patient: Sender<Job>,
    write_back: Sender<Job>,
    /// Started with the first fetch.
    fetch: Option<Sender<Box<FetchJob>>>,
    report: Sender<Done>,
    wake: Arc<dyn Fn() + Send + Sync>,
    /// Finished work.
    pub done: Receiver<Done>,
}

impl Workers {
    /// Starts the threads; `wake` is called after each finished job.
    pub fn start(wake: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        let (report, done) = channel();
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(wake);
        let start = |name: &str, nice: bool| -> io::Result<Sender<Job>> {
            let (send, receive) = channel::<Job>();
            let (report, wake) = (report.clone(), wake.clone());
            thread::Builder::new().name(name.to_owned()).stack_size(256 << 10).spawn(move || {
                if nice {
                    poll::yield_to_others();
                }
                for job in receive {
                    if let Some(done) = run(job) {
                        if report.send(done).is_err() {
                            return;
                        }
                        wake();
                    }
                }
            })?;
            Ok(send)
        };
        Ok(Self {
            sync: start("cairn-sync", false)?,
            settle: start("cairn-settle", false)?,
            background: start("cairn-clean", false)?,
            patient: start("cairn-patient", true)?,
            write_back: start("cairn-writeback", false)?,
            fetch: None,
            report: report.clone(),
            wake: wake.clone(),
            done,
        })
    }

    /// Tells the pool's thread of work that is done elsewhere.
    pub fn reporter(&self) -> impl Fn(Done) + Send + 'static {
        let (report, wake) = (self.report.clone(), self.wake.clone());
        move |done| {
            // The receiver ends only with the pool's thread.
            if report.send(done).is_ok() {
                wake();
            }
        }
    }

    /// Hands a fetch to one of the threads for fetches: how many wait for one is the caller's to bound.
    pub fn fetch(&mut self, job: FetchJob) {
        let fetchers = match self.fetch.take() {
            Some(running) => running,
            None => self.start_fetchers(),
        };
        // The threads end only with the process.
        let _ = fetchers.send(Box::new(job));
        self.fetch = Some(fetchers);
    }

    fn start_fetchers(&self) -> Sender<Box<FetchJob>> {
        let (send, receive) = channel::<Box<FetchJob>>();
        let receive = Arc::new(Mutex::new(receive));
        for _ in 0..FETCHERS {
            let (receive, report) = (receive.clone(), self.reporter());
            let next = move || receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let fetcher = thread::Builder::new().name("cairn-fetch".to_owned()).stack_size(256 << 10);
            let started = fetcher.spawn(move || {
                while let Ok(job) = next() {
                    let outcome = fetch(&job);
                    report(Done::Fetch(job, outcome));
                }
            });
            if let Err(error) = started {
                tracing::warn!(%error, "a thread for fetches could not be started");
            }
        }
        send
    }

    /// Hands a job to its thread.
    pub fn submit(&self, job: Job) {
        let to = match job {
            Job::Flush(_) => &self.sync,
            Job::Settle(_) => &self.settle,
            Job::WriteBack(..) => &self.write_back,
            Job::Clean(_, Urgency::Whenever) | Job::Spare(_, _, Urgency::Whenever) => &self.patient,
            _ => &self.background,
        };
        // The threads end only with the process.
        let _ = to.send(job);
    }
}

/// Fetches; a store that does not answer is asked again for a while.
fn fetch(job: &FetchJob) -> blockstore::Result<Fetched> {
    let (begin, mut pause) = (Instant::now(), FETCH_PAUSE);
    loop {
        match job.run() {
            Err(e) if e.kind() == ErrorKind::Unavailable && begin.elapsed() < FETCH_TIME => {
                thread::sleep(pause);
                pause = (pause * 2).min(FETCH_PAUSE_MAX);
            }
            outcome => return outcome,
        }
    }
}

fn run(job: Job) -> Option<Done> {
    match job {
        Job::Flush(job) => {
            let outcome = job.run();
            Some(Done::Flush(job, outcome))
        }
        Job::Settle(job) => {
            let outcome = job.run();
            Some(Done::Settle(job, outcome))
        }
        Job::Anchor(job) => {
            let outcome = job.run();
            Some(Done::Anchor(job, outcome))
        }
        Job::Clean(job, _) => {
            let outcome = job.run();
            Some(Done::Clean(job, outcome))
        }
        Job::WriteBack(range) => {
            range.start();
            None
        }
        Job::Spare(id, disk, _) => Some(Done::Spare(id, prepare_segment(&disk, id))),
    }
}
