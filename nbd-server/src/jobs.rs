//! Worker threads for what blocks. Syncs have a thread of their own, so that no flush waits behind
//! cleaning.

use blockstore::disk::{Disk, File};
use blockstore::{prepare_segment, AnchorJob, CleanJob, Cleaned, FlushJob, SegmentId, WriteBack};
use serde_json::Value;
use std::io;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::thread;

/// Work.
pub enum Job {
    /// Sync a log.
    Flush(FlushJob),
    /// Install an anchor.
    Anchor(Box<AnchorJob>),
    /// Remove or pack a segment file.
    Clean(CleanJob),
    /// Start write-back of a range.
    WriteBack(WriteBack),
    /// Prepare a segment.
    Spare(SegmentId, Arc<dyn Disk>),
}

/// Work that is done, with its outcome.
pub enum Done {
    /// A log was synced.
    Flush(FlushJob, io::Result<()>),
    /// An anchor was installed.
    Anchor(Box<AnchorJob>, io::Result<()>),
    /// A segment file was cleaned.
    Clean(CleanJob, blockstore::Result<Cleaned>),
    /// A segment was prepared.
    Spare(SegmentId, io::Result<Arc<dyn File>>),
    /// An audit goes on: a line for its caller.
    AuditProgress(u64, Value),
    /// An audit is over.
    Audited(u64, blockstore::Result<Value>),
}

/// The workers and their mailboxes.
pub struct Workers {
    sync: Sender<Job>,
    background: Sender<Job>,
    write_back: Sender<Job>,
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
        let start = |name: &str| -> io::Result<Sender<Job>> {
            let (send, receive) = channel::<Job>();
            let (report, wake) = (report.clone(), wake.clone());
            thread::Builder::new().name(name.to_owned()).stack_size(256 << 10).spawn(move || {
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
            sync: start("cairn-sync")?,
            background: start("cairn-clean")?,
            write_back: start("cairn-writeback")?,
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

    /// Hands a job to its thread.
    pub fn submit(&self, job: Job) {
        let to = match job {
            Job::Flush(_) => &self.sync,
            Job::WriteBack(..) => &self.write_back,
            _ => &self.background,
        };
        // The threads end only with the process.
        let _ = to.send(job);
    }
}

fn run(job: Job) -> Option<Done> {
    match job {
        Job::Flush(job) => {
            let outcome = job.run();
            Some(Done::Flush(job, outcome))
        }
        Job::Anchor(job) => {
            let outcome = job.run();
            Some(Done::Anchor(job, outcome))
        }
        Job::Clean(job) => {
            let outcome = job.run();
            Some(Done::Clean(job, outcome))
        }
        Job::WriteBack(range) => {
            range.start();
            None
        }
        Job::Spare(id, disk) => Some(Done::Spare(id, prepare_segment(&disk, id))),
    }
}
