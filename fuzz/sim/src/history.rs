//! One history: lives of a pool, each ended by a crash, and the recoveries between them.

use crate::arrivals::Arrival;
use crate::model::Past;
use crate::operations::Job;
use crate::report::{Report, Violation};
use blockstore::testing::{Fault, Rng, SimClock, SimDisk};
use blockstore::{Error, Pool, PoolOptions, VolumeId};
use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Instant;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides everything.
    pub seed: u64,
    /// Operations, or as many as the seed says (1,000 to 10,000).
    pub operations: Option<u64>,
    /// Plants a defect: syncs that do nothing.
    pub canary: bool,
    /// Prints each operation.
    pub verbose: bool,
}

/// Why a life ended.
pub enum Stop {
    /// The disk is dead, or the pool has closed itself.
    Crash,
    /// Something that must not happen.
    Violation(String),
}

pub type Step<T = ()> = Result<T, Stop>;

/// A creation, deletion or fork that was asked for and not answered.
pub enum Structure {
    Create { name: String, size: u64 },
    Delete { name: String },
    Fork { origin: String, name: String, from: Option<String> },
}

pub struct Volume {
    pub id: VolumeId,
    pub past: Past,
}

pub struct History {
    pub plan: Plan,
    pub rng: Rng,
    pub disk: SimDisk,
    /// There is one, except while it is being opened.
    pub pool: Option<Pool>,
    pub volumes: BTreeMap<String, Volume>,
    pub in_flight: Option<Structure>,
    pub jobs: Vec<Job>,
    pub arrivals: Vec<Arrival>,
    pub names_given: u64,
    /// A failure was injected in this life: jobs tell of it later.
    pub faulty: bool,
    pub report: Report,
    options: PoolOptions,
}

/// Runs one history; a panic of the store is a violation like any other.
pub fn run(plan: Plan) -> Report {
    let begin = Instant::now();
    let mut history = History::new(plan);
    let outcome = catch_unwind(AssertUnwindSafe(|| history.live()));
    let what = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(what)) => Some(what),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(format!("panic: {}", text.unwrap_or_default()))
        }
    };
    let mut report = history.report;
    let operation = report.operations;
    report.violations.extend(what.map(|what| Violation { seed: plan.seed, operation, what }));
    report.elapsed = begin.elapsed();
    report
}

impl History {
    fn new(plan: Plan) -> Self {
        let mut rng = Rng::new(plan.seed);
        let options = PoolOptions {
            map_cache: *rng.pick(&[1 << 18, 1 << 20]),
            anchor_bytes: *rng.pick(&[1 << 16, 1 << 20, 64 << 20]),
        };
        let report = Report { histories: 1, trace: plan.seed, ..Report::default() };
        Self {
            plan,
            rng,
            disk: SimDisk::new(),
            pool: None,
            volumes: BTreeMap::new(),
            in_flight: None,
            jobs: Vec::new(),
            arrivals: Vec::new(),
            names_given: 0,
            faulty: false,
            report,
            options,
        }
    }

    /// Mixes `what` into the trace.
    pub fn trace(&mut self, what: &[u64]) {
        for word in what {
            let mixed = (self.report.trace ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.report.trace = mixed ^ mixed >> 31;
        }
    }

    /// The pool, which is open.
    pub fn pool(&mut self) -> &mut Pool {
        self.pool.as_mut().expect("operations run while the pool is open")
    }

    /// Says what happens, to who wants to see it.
    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.plan.verbose {
            println!("{:6} call {:6}  {}", self.report.operations, self.disk.calls(), what());
        }
    }

    fn live(&mut self) -> Result<(), String> {
        Pool::create(&self.disk.handle(), &SimClock::default(), [7; 16])
            .map_err(|e| format!("creating a pool: {e}"))?;
        if self.plan.canary {
            self.disk.lie_about_syncs();
        }
        self.open(&mut false)?;
        let total = self.plan.operations.unwrap_or_else(|| 1000 + self.rng.below(9001) as u64);
        while self.report.operations < total {
            let operations = (1 + self.rng.below(300) as u64).min(total - self.report.operations);
            match self.one_life(operations) {
                Ok(()) | Err(Stop::Crash) => {}
                Err(Stop::Violation(what)) => return Err(what),
            }
            if self.report.operations < total || self.rng.one_in(2) {
                self.crash()?;
            }
        }
        if !self.disk.is_dead() {
            self.disk.inject(0, Fault::Io);
            if let Err(Stop::Violation(what)) = self.jobs_to_the_end() {
                return Err(what);
            }
        }
        if self.disk.is_dead() || self.pool.as_ref().is_none_or(|pool| pool.poisoned().is_some()) {
            self.crash()?;
        }
        self.quiesce()
    }

    fn one_life(&mut self, operations: u64) -> Step {
        let fault = *self.rng.pick(&[
            None,
            Some(Fault::PowerLoss),
            Some(Fault::PowerLoss),
            Some(Fault::Io),
            Some(Fault::NoSpace),
            Some(Fault::FailedSync),
        ]);
        self.arm(fault, operations as usize * 4);
        self.faulty = false;
        for _ in 0..operations {
            self.report.operations += 1;
            self.operate()?;
            let calls = self.disk.calls();
            self.trace(&[calls]);
            if self.disk.is_dead() {
                return Err(Stop::Crash);
            }
            // Faults that do not kill come several to a life.
            if fault.is_some_and(|fault| fault != Fault::PowerLoss) && self.disk.fault_fired() {
                self.report.faults += 1;
                self.faulty = true;
                let next = *self.rng.pick(&[Fault::Io, Fault::NoSpace, Fault::NoSpace, Fault::FailedSync]);
                self.arm(Some(next), 400);
            }
        }
        Ok(())
    }

    /// Injects a failure at one of the next `calls`, or none.
    pub fn arm(&mut self, fault: Option<Fault>, calls: usize) {
        let at = self.disk.calls() + 1 + self.rng.below(calls) as u64;
        match fault {
            Some(fault) => self.disk.inject(at, fault),
            None => self.disk.inject(0, Fault::Io),
        }
    }

    /// An operation failed. If the pool goes on, the failure must have had a reason, and the volume
    /// must be what it was or what was asked for.
    pub fn failed(&mut self, volume: Option<&str>, error: &Error) -> Step {
        self.say(|| format!("  failed: {error}"));
        self.trace(&[error.kind() as u64]);
        if self.disk.is_dead() {
            return Err(Stop::Crash);
        }
        if !self.faulty && !self.disk.fault_fired() {
            return Err(Stop::Violation(format!("failed without a reason: {error}")));
        }
        if self.pool().poisoned().is_some() {
            self.report.poisoned += 1;
            self.refuses_changes()?;
            return Err(Stop::Crash);
        }
        self.settle_structure()?;
        if let Some(name) = volume {
            self.settle(name)?;
        }
        Ok(())
    }

    /// The process dies or the power goes, once or several times; then the pool is open again.
    fn crash(&mut self) -> Result<(), String> {
        self.pool = None;
        self.jobs.clear();
        self.arrivals.clear();
        let mut power_lost = false;
        self.fall(&mut power_lost);
        self.open(&mut power_lost)?;
        self.judge_everything(power_lost)
    }

    fn fall(&mut self, power_lost: &mut bool) {
        if self.rng.one_in(3) {
            self.report.kills += 1;
            self.disk = self.disk.after_kill();
            self.say(|| "process killed".to_owned());
            return;
        }
        self.report.power_losses += 1;
        *power_lost = true;
        let survives = *self.rng.pick(&[0, 1, 4, 7, 8]);
        let rng = &mut self.rng;
        self.disk = self.disk.after_power_loss(&mut || rng.below(8) < survives);
        self.say(|| format!("power lost, {survives} of 8 sectors survive"));
    }

    /// Opens the pool, in spite of crashes meanwhile.
    fn open(&mut self, power_lost: &mut bool) -> Result<(), String> {
        loop {
            let faults = [Fault::PowerLoss, Fault::Io, Fault::NoSpace, Fault::FailedSync];
            let fault = if self.rng.below(2) == 0 { None } else { Some(*self.rng.pick(&faults)) };
            self.arm(fault, 80);
            let begin = Instant::now();
            let opened = Pool::open(self.disk.handle(), Arc::new(SimClock::default()), self.options);
            let time = begin.elapsed();
            let calls = self.disk.calls();
            self.trace(&[calls, u64::from(opened.is_ok())]);
            let fired = fault.is_some() && self.disk.fault_fired();
            match opened {
                Ok((pool, _)) if !self.disk.is_dead() && pool.poisoned().is_none() => {
                    self.report.faults += u64::from(fired);
                    self.report.recoveries += 1;
                    self.report.recovery_times.push(time);
                    self.disk.inject(0, Fault::Io);
                    self.pool = Some(pool);
                    return Ok(());
                }
                Err(e) if !fired => return Err(format!("the pool does not open: {e}")),
                _ => {
                    self.say(|| format!("{fault:?} in recovery"));
                    self.report.crashes_in_recovery += 1;
                    self.fall(power_lost);
                }
            }
        }
    }
}
