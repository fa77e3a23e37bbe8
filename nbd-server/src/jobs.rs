//! Worker threads for what blocks. Syncs have a thread of their own, so that no flush waits behind
//! cleaning; what can wait has one that takes only the computing that clients leave.

use crate::poll;
use blockstore::disk::{Disk, File};
use blockstore::limits::SWEEP_GRACE_US;
use blockstore::object::{
    list_volumes, sweep, volume_seen, AttachJob, LeaseJob, ObjectStore, Seen, SweepReport, TierJob, UploadJob,
};
use blockstore::{
    prepare_segment, AnchorJob, Census, CleanJob, Cleaned, Error, ErrorKind, FetchJob, Fetched, FlushJob, SegmentId,
    WriteBack,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Volumes whose manifests are asked for at the same time.
const LOOKS_AT_ONCE: usize = 16;
/// Stack of a worker. A request to S3 takes hundreds of KiB; what is not used is only address space.
const STACK_BYTES: usize = 2 << 20;
/// Objects that are put at the same time: each is up to 32 MiB in memory, and what it is compressed to.
const PUTS_AT_ONCE: usize = 4;

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
    /// Write back a range that a client waits for.
    Await(u64, WriteBack, Arc<dyn Disk>),
    /// Prepare a segment; at once, or when there is time.
    Spare(SegmentId, Arc<dyn Disk>, Urgency),
    /// Upload, or look something up in the object store.
    Tier(TierJob),
    /// Look through the whole object store for what nobody needs.
    Sweep(Arc<dyn ObjectStore>, u64),
    /// Look up the volumes in the object store; only one, for this connection.
    Look(Arc<dyn ObjectStore>, Option<(u64, String)>),
    /// Look whether volumes are still ours.
    Lease(Box<LeaseJob>),
    /// Take a volume over from the object store, for this connection.
    Attach(u64, Box<AttachJob>),
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
    /// What a client waited for is written back.
    Awaited(u64, io::Result<()>),
    /// An anchor was installed.
    Anchor(Box<AnchorJob>, io::Result<()>),
    /// A segment file was cleaned.
    Clean(CleanJob, blockstore::Result<Cleaned>),
    /// A segment was prepared.
    Spare(SegmentId, io::Result<Arc<dyn File>>),
    /// Work with the object store is over.
    Tier(TierJob, blockstore::Result<()>),
    /// The object store was swept.
    Sweep(blockstore::Result<SweepReport>),
    /// Volumes were looked up in the object store.
    Look(Option<(u64, String)>, blockstore::Result<BTreeMap<String, Seen>>),
    /// The store was asked whose volumes are.
    Lease(Box<LeaseJob>),
    /// A volume was claimed, or not.
    Attach(u64, Box<AttachJob>, blockstore::Result<()>),
    /// Something has come from the object store, or not.
    Fetch(Box<FetchJob>, blockstore::Result<Fetched>),
    /// An audit goes on: a line for its caller.
    AuditProgress(u64, Value),
    /// An audit is over.
    Audited(u64, blockstore::Result<Value>),
    /// A census is over.
    Counted(blockstore::Result<Census>),
}

/// Fetches that run at a time: with 1 MiB each and 30 ms for an answer, some 500 MB/s.
const FETCHERS: usize = 16;
/// How long one fetch tries to reach the store, and the pauses between its tries.
const FETCH_TIME: Duration = Duration::from_secs(5);
const FETCH_PAUSE: Duration = Duration::from_millis(100);
const FETCH_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Threads that speak with the object store.
struct StoreWorkers {
    rounds: Sender<Job>,
    /// What must not wait for a round.
    claims: Sender<Job>,
    /// What rounds must not wait for.
    cleaning: Sender<Job>,
    /// What clients wait for.
    leases: Sender<Job>,
}

/// The workers and their mailboxes.
pub struct Workers {
    sync: Sender<Job>,
    settle: Sender<Job>,
    background: Sender<Job>,
    patient: Sender<Job>,
    write_back: Sender<Job>,
    /// With an object store.
    store: Option<StoreWorkers>,
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
        let start = |name: &str, nice: bool| start(name, nice, &report, &wake);
        Ok(Self {
            sync: start("cairn-sync", false)?,
            settle: start("cairn-settle", false)?,
            background: start("cairn-clean", false)?,
            patient: start("cairn-patient", true)?,
            write_back: start("cairn-writeback", false)?,
            store: None,
            fetch: None,
            report: report.clone(),
            wake: wake.clone(),
            done,
        })
    }

    /// Starts the threads that speak with the object store.
    pub fn start_uploads(&mut self) -> io::Result<()> {
        let start = |name: &str, nice: bool| start(name, nice, &self.report, &self.wake);
        self.store = Some(StoreWorkers {
            rounds: start("cairn-upload", true)?,
            claims: start("cairn-claim", false)?,
            cleaning: start("cairn-objects", true)?,
            leases: start("cairn-lease", false)?,
        });
        Ok(())
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
            let fetcher = thread::Builder::new().name("cairn-fetch".to_owned()).stack_size(STACK_BYTES);
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
            Job::WriteBack(..) | Job::Await(..) => &self.write_back,
            Job::Tier(_) | Job::Sweep(..) | Job::Look(..) | Job::Attach(..) | Job::Lease(_) => {
                match (&self.store, &job) {
                    (Some(store), Job::Tier(TierJob::Clean(_)) | Job::Sweep(..) | Job::Look(_, None)) => {
                        &store.cleaning
                    }
                    (Some(store), Job::Tier(_)) => &store.rounds,
                    (Some(store), Job::Lease(_)) => &store.leases,
                    (Some(store), _) => &store.claims,
                    // Nobody asks for this without an object store.
                    (None, _) => &self.background,
                }
            }
            Job::Clean(_, Urgency::Whenever) | Job::Spare(_, _, Urgency::Whenever) => &self.patient,
            _ => &self.background,
        };
        // The threads end only with the process.
        let _ = to.send(job);
    }
}

/// Starts a thread that takes jobs.
fn start(name: &str, nice: bool, report: &Sender<Done>, wake: &Arc<dyn Fn() + Send + Sync>) -> io::Result<Sender<Job>> {
    let (send, receive) = channel::<Job>();
    let (report, wake) = (report.clone(), wake.clone());
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(move || {
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
        Job::Await(client, range, disk) => Some(Done::Awaited(client, range.wait(&*disk))),
        Job::Spare(id, disk, _) => Some(Done::Spare(id, prepare_segment(&disk, id))),
        Job::Tier(job) => {
            let outcome = match &job {
                TierJob::Upload(job) => upload(job),
                other => other.run(),
            };
            Some(Done::Tier(job, outcome))
        }
        Job::Sweep(store, now_us) => Some(Done::Sweep(sweep(&*store, now_us, SWEEP_GRACE_US, false))),
        Job::Look(store, None) => Some(Done::Look(None, list_volumes(&*store))),
        Job::Look(store, Some((token, name))) => {
            let found = volume_seen(&*store, &name);
            let found = found.map(|found| found.map(|seen| (name.clone(), seen)).into_iter().collect());
            Some(Done::Look(Some((token, name)), found))
        }
        Job::Lease(job) => {
            thread::scope(|scope| {
                let look = || while job.look_next() {};
                (1..LOOKS_AT_ONCE.min(job.volumes())).for_each(|_| drop(scope.spawn(look)));
                look();
            });
            Some(Done::Lease(job))
        }
        Job::Attach(token, job) => {
            let outcome = job.run();
            Some(Done::Attach(token, job, outcome))
        }
    }
}

/// One round, with several puts at a time.
fn upload(job: &UploadJob) -> blockstore::Result<()> {
    job.prepare()?;
    let puts = || {
        while job.put_next()? {}
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..PUTS_AT_ONCE.min(job.objects())).map(|_| scope.spawn(puts)).collect();
        let own = puts();
        let joined = others.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(panicked())));
        joined.fold(own, |outcome, next| outcome.and(next))
    })?;
    job.commit()
}

fn panicked() -> Error {
    Error::new(ErrorKind::Closed, "a thread that uploads has failed")
}
