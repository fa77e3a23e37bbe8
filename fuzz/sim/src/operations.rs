//! The operations of a history: choosing one, telling the model, doing it.

use crate::history::{History, Step, Stop, Structure, Volume};
use crate::model::{Past, Shown, UNNAMED};
use blockstore::limits::{ATOMIC_BYTES_MAX, AUTO_CHECKPOINTS_KEPT};
use blockstore::testing::{ReferenceDisk, Sparse};
use blockstore::{AnchorJob, CheckpointName, CleanJob, Cleaned, Cleaning, FlushJob, Pool, Result, VolumeId};
use std::io;

const VOLUMES_MAX: usize = 5;
const CHECKPOINTS_MAX: usize = 8;
const SIZES: [u64; 7] = [4096, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 20 << 20, 1 << 30];

/// Work that other threads would do, between its steps.
pub struct Job {
    work: Work,
    outcome: Option<Outcome>,
    /// States that are promised when it succeeds.
    promises: Vec<(String, u64)>,
}

enum Work {
    Flush(FlushJob),
    Settle(FlushJob),
    Anchor(Box<AnchorJob>),
    Clean(CleanJob),
}

enum Outcome {
    Io(io::Result<()>),
    Clean(Result<Cleaned>),
}

impl History {
    /// One operation.
    pub fn operate(&mut self) -> Step {
        let kind = self.rng.below(100);
        let names: Vec<String> = self.volumes.keys().cloned().collect();
        if names.is_empty() || (kind < 2 && names.len() < VOLUMES_MAX) {
            return self.create();
        }
        let name = self.rng.pick(&names).clone();
        self.trace(&[kind as u64]);
        match kind {
            0..=29 => self.write(&name),
            30..=33 => self.arrive(&name),
            34..=38 => self.write_many(&name),
            39..=44 => self.zero(&name),
            45..=49 => self.trim(&name),
            50..=56 => self.flush(&name),
            57..=61 => self.checkpoint(&name),
            62..=64 => self.restore(&name),
            65..=67 => self.delete_checkpoint(&name),
            68 | 69 if names.len() < VOLUMES_MAX => self.fork(&name),
            70 if names.len() > 1 || self.rng.one_in(4) => self.delete(&name),
            71 | 72 => self.resize(&name),
            73..=76 => self.begin_anchor(),
            77..=80 => self.begin_clean(),
            81..=84 => self.go_on_with_a_job(),
            85 | 86 => self.reap(),
            87 => self.settle_ahead(&name),
            88 | 89 => self.seal(&name),
            90 if self.rng.one_in(8) => self.spare(),
            91 if self.rng.one_in(4) => self.audit(),
            92 if self.rng.one_in(4) => self.check().map_err(Stop::Violation),
            93 if self.rng.one_in(4) => self.everything_in_the_background(),
            _ => self.read(&name),
        }
    }

    pub fn id(&self, name: &str) -> VolumeId {
        self.volumes[name].id
    }

    fn past(&mut self, name: &str) -> &mut Past {
        &mut self.volumes.get_mut(name).expect("operations name volumes that exist").past
    }

    pub fn size(&mut self, name: &str) -> usize {
        self.past(name).head().len()
    }

    /// Asks for one change of a volume; what it gave, unless it failed.
    pub fn change<T>(
        &mut self,
        name: &str,
        model: impl FnOnce(&mut ReferenceDisk, &str),
        act: impl FnOnce(&mut Pool, VolumeId) -> Result<T>,
    ) -> Step<Option<T>> {
        self.past(name).ask(model);
        let id = self.id(name);
        match act(self.pool(), id) {
            Ok(done) => {
                self.past(name).answer();
                Ok(Some(done))
            }
            Err(e) => self.failed(Some(name), &e).map(|()| None),
        }
    }

    /// Where a request goes: mostly a few busy places, so that changes meet.
    pub fn place(&mut self, size: usize, len: usize) -> usize {
        let room = size - len;
        let base = *self.rng.pick(&[0, 0, size / 3, size / 2, room.saturating_sub(1 << 17)]);
        let at = (base + self.rng.below(1 << 18)).min(room);
        match self.rng.below(4) {
            0 => at,
            1 => at / 512 * 512,
            _ => at / 4096 * 4096,
        }
    }

    fn request(&mut self, size: usize) -> (usize, Vec<u8>) {
        let len = match self.rng.below(16) {
            0 => 1 + self.rng.below(ATOMIC_BYTES_MAX as usize),
            1 => 1 + self.rng.below(5000),
            2 => 65536,
            3 => 512,
            4..=8 => 4096,
            _ => 4096 * (1 + self.rng.below(12)),
        };
        let len = len.min(size);
        let mut data = self.rng.bytes(len);
        if self.rng.one_in(4) {
            for block in data.chunks_mut(4096) {
                if self.rng.one_in(2) {
                    block.fill(0);
                }
            }
        }
        (self.place(size, len), data)
    }

    fn write(&mut self, name: &str) -> Step {
        let size = self.size(name);
        let (at, data) = self.request(size);
        self.say(|| format!("write {name} {at} +{}", data.len()));
        let model = |m: &mut ReferenceDisk, v: &str| m.write(v, at, &data);
        let done = self.change(name, model, |pool, id| pool.write(id, at as u64, &data))?;
        // Forced unit access is a write and a flush.
        match done {
            Some(()) if self.rng.one_in(8) => self.flush_now(name),
            _ => Ok(()),
        }
    }

    fn write_many(&mut self, name: &str) -> Step {
        let size = self.size(name);
        let requests: Vec<_> = (0..2 + self.rng.below(6)).map(|_| self.request(size)).collect();
        self.say(|| format!("write {name} {:?}", requests.iter().map(|(at, d)| (*at, d.len())).collect::<Vec<_>>()));
        let slices: Vec<(u64, &[u8])> = requests.iter().map(|(at, data)| (*at as u64, &data[..])).collect();
        // Each is a change of its own: after a crash some of them may be there.
        for (at, data) in &requests {
            self.past(name).ask(|m, v| m.write(v, *at, data));
        }
        let id = self.id(name);
        match self.pool().write_many(id, &slices) {
            Ok(()) => self.past(name).answer(),
            Err(e) => self.failed(Some(name), &e)?,
        }
        Ok(())
    }

    fn zero(&mut self, name: &str) -> Step {
        let size = self.size(name);
        let len = 1 + self.rng.below(size.min(ATOMIC_BYTES_MAX as usize));
        let len = if self.rng.one_in(2) { len } else { len.min(20_000) };
        let (at, allocate) = (self.place(size, len), self.rng.one_in(3));
        self.say(|| format!("zero {name} {at} +{len} allocate {allocate}"));
        let model = |m: &mut ReferenceDisk, v: &str| m.zero(v, at, len);
        self.change(name, model, |pool, id| pool.write_zeroes(id, at as u64, len as u64, allocate)).map(drop)
    }

    fn trim(&mut self, name: &str) -> Step {
        let size = self.size(name);
        let whole = self.rng.one_in(6);
        let len = if whole { size } else { 1 + self.rng.below(size.min(300_000)) };
        let at = self.place(size, len);
        self.say(|| format!("trim {name} {at} +{len}"));
        // Only whole blocks go.
        let from = at.next_multiple_of(4096);
        let to = if at + len == size { size } else { (at + len) / 4096 * 4096 };
        let model = |m: &mut ReferenceDisk, v: &str| m.zero(v, from, to.saturating_sub(from));
        self.change(name, model, |pool, id| pool.trim(id, at as u64, len as u64)).map(drop)
    }

    fn read(&mut self, name: &str) -> Step {
        let shown = Shown::of(self.past(name).now());
        let checkpoints: Vec<_> = shown.checkpoints.iter().collect();
        let (checkpoint, state) = match checkpoints.is_empty() || self.rng.one_in(2) {
            true => (None, &shown.head),
            false => {
                let (name, state) = *self.rng.pick(&checkpoints);
                (CheckpointName::parse(name), state)
            }
        };
        let len = (1 + self.rng.below(100_000)).min(state.len());
        let at = self.place(state.len(), len);
        let (mut found, mut want) = (vec![1; len], vec![0; len]);
        state.read(&mut want, at);
        let id = self.id(name);
        self.say(|| format!("read {name} {checkpoint:?} {at} +{len}"));
        let view = self.pool().view(id, checkpoint);
        match view.and_then(|view| self.pool().read(view, at as u64, &mut found)) {
            Ok(()) if found == want => Ok(()),
            Ok(()) => Err(Stop::Violation(format!("{name}@{checkpoint:?} reads wrong bytes between {at} and +{len}"))),
            Err(e) => self.failed(None, &e),
        }
    }

    fn promises(&self, name: &str) -> Vec<(String, u64)> {
        self.volumes.get(name).map(|v| (name.to_owned(), v.past.number())).into_iter().collect()
    }

    fn keep_promises(&mut self, promises: &[(String, u64)]) {
        for (name, number) in promises {
            if let Some(volume) = self.volumes.get_mut(name) {
                volume.past.promise(*number);
            }
        }
    }

    /// Runs a flush job now, or leaves it for later.
    fn take_job(&mut self, name: &str, job: FlushJob) -> Step {
        let promises = self.promises(name);
        self.jobs.push(Job { work: Work::Flush(job), outcome: None, promises });
        if self.rng.one_in(4) && self.jobs.len() < 6 {
            return Ok(());
        }
        self.finish_job(self.jobs.len() - 1)
    }

    fn flush(&mut self, name: &str) -> Step {
        self.say(|| format!("flush {name}"));
        let id = self.id(name);
        match self.pool().flush_job(id) {
            Ok(job) => self.take_job(name, job),
            Err(e) => self.failed(Some(name), &e),
        }
    }

    /// Syncs what of a log needs no waiting for, which promises nothing.
    fn settle_ahead(&mut self, name: &str) -> Step {
        let id = self.id(name);
        let Some(job) = self.pool().settle_job(id) else { return Ok(()) };
        self.say(|| format!("settle {name}"));
        self.jobs.push(Job { work: Work::Settle(job), outcome: None, promises: Vec::new() });
        self.maybe_now()
    }

    fn flush_now(&mut self, name: &str) -> Step {
        let (id, promises) = (self.id(name), self.promises(name));
        match self.pool().flush(id) {
            Ok(()) => self.keep_promises(&promises),
            Err(e) => self.failed(Some(name), &e)?,
        }
        Ok(())
    }

    fn checkpoint(&mut self, name: &str) -> Step {
        if self.past(name).now().checkpoints.len() >= CHECKPOINTS_MAX + AUTO_CHECKPOINTS_KEPT {
            return self.delete_checkpoint(name);
        }
        self.say(|| format!("checkpoint {name}"));
        let model = |m: &mut ReferenceDisk, v: &str| m.checkpoint(v, UNNAMED);
        let Some((info, job)) = self.change(name, model, |pool, id| pool.create_checkpoint(id, "sim"))? else {
            return Ok(());
        };
        self.past(name).answer_named(&info.name.to_string());
        self.take_job(name, job)
    }

    fn saved(&mut self, name: &str) -> Option<String> {
        let saved: Vec<String> = Shown::of(self.past(name).now()).checkpoints.into_keys().collect();
        (!saved.is_empty()).then(|| self.rng.pick(&saved).clone())
    }

    fn restore(&mut self, name: &str) -> Step {
        let Some(from) = self.saved(name) else { return self.checkpoint(name) };
        self.say(|| format!("restore {name} {from}"));
        let model = |m: &mut ReferenceDisk, v: &str| {
            m.restore(v, &from, UNNAMED);
            // Automatic checkpoints beyond the newest few go; the new one is among those.
            let auto = |name: &String| CheckpointName::parse(name).filter(|name| name.is_auto);
            let mut autos: Vec<_> = m.checkpoints.keys().filter_map(|(_, name)| auto(name)).collect();
            autos.sort();
            for old in autos.iter().take((autos.len() + 1).saturating_sub(AUTO_CHECKPOINTS_KEPT)) {
                m.delete_checkpoint(v, &old.to_string());
            }
        };
        let parsed = CheckpointName::parse(&from);
        let act = |pool: &mut Pool, id| pool.restore(id, parsed.expect("the pool gave this name"));
        let Some((undo, job)) = self.change(name, model, act)? else { return Ok(()) };
        self.past(name).answer_named(&undo.name.to_string());
        self.take_job(name, job)
    }

    fn delete_checkpoint(&mut self, name: &str) -> Step {
        let Some(gone) = self.saved(name) else { return self.checkpoint(name) };
        self.say(|| format!("delete {name} {gone}"));
        let parsed = CheckpointName::parse(&gone);
        let model = |m: &mut ReferenceDisk, v: &str| m.delete_checkpoint(v, &gone);
        let act = |pool: &mut Pool, id| pool.delete_checkpoint(id, parsed.expect("the pool gave this name"));
        match self.change(name, model, act)? {
            Some(job) => self.take_job(name, job),
            None => Ok(()),
        }
    }

    fn resize(&mut self, name: &str) -> Step {
        let (before, given) = (self.size(name), *self.rng.pick(&SIZES));
        let near = before as u64 + 4096 * self.rng.below(64) as u64;
        let size = if self.rng.one_in(2) { given } else { near.saturating_sub(4096 * 32).max(4096) };
        self.say(|| format!("resize {name} {before} to {size}"));
        let model = |m: &mut ReferenceDisk, v: &str| m.resize(v, size as usize);
        match self.change(name, model, |pool, id| pool.resize_volume(id, size))? {
            Some(job) => self.take_job(name, job),
            None => Ok(()),
        }
    }

    fn new_name(&mut self) -> String {
        self.names_given += 1;
        format!("vol-{}", self.names_given)
    }

    /// Structure is promised before anything else happens: a job must not be left for later.
    fn finish_structure<T>(&mut self, started: Result<(T, FlushJob)>) -> Step<Option<T>> {
        let done = started.and_then(|(made, job)| self.pool().finish(job).map(|()| made));
        match done {
            Ok(made) => {
                self.in_flight = None;
                Ok(Some(made))
            }
            Err(e) => self.failed(None, &e).map(|()| None),
        }
    }

    fn create(&mut self) -> Step {
        let (name, size) = (self.new_name(), *self.rng.pick(&SIZES));
        self.say(|| format!("create {name} of {size}"));
        self.in_flight = Some(Structure::Create { name: name.clone(), size });
        let started = self.pool().create_volume(&name, size);
        if let Some(id) = self.finish_structure(started)? {
            let mut empty = Sparse::default();
            empty.resize(size as usize);
            let shown = Shown { head: empty.into(), checkpoints: Default::default() };
            self.volumes.insert(name, Volume { id, past: Past::new(&shown) });
        }
        Ok(())
    }

    fn fork(&mut self, origin: &str) -> Step {
        let name = self.new_name();
        let from = if self.rng.one_in(2) { self.saved(origin) } else { None };
        self.say(|| format!("fork {origin} {from:?} as {name}"));
        self.in_flight = Some(Structure::Fork { origin: origin.to_owned(), name: name.clone(), from: from.clone() });
        let (id, parsed) = (self.id(origin), from.as_deref().and_then(CheckpointName::parse));
        let promises = self.promises(origin);
        let shown = Shown::of(self.past(origin).now());
        let started = self.pool().fork(id, parsed, &name);
        if let Some(id) = self.finish_structure(started)? {
            self.keep_promises(&promises);
            let head = from.and_then(|from| shown.checkpoints.get(&from).cloned()).unwrap_or(shown.head);
            let shown = Shown { head, checkpoints: Default::default() };
            self.volumes.insert(name, Volume { id, past: Past::new(&shown) });
        }
        Ok(())
    }

    fn delete(&mut self, name: &str) -> Step {
        self.say(|| format!("delete {name}"));
        self.in_flight = Some(Structure::Delete { name: name.to_owned() });
        let id = self.id(name);
        let started = self.pool().delete_volume(id).map(|job| ((), job));
        if self.finish_structure(started)?.is_some() {
            self.volumes.remove(name);
        }
        Ok(())
    }

    fn busy(&self) -> bool {
        self.jobs.iter().any(|job| !matches!(job.work, Work::Flush(_) | Work::Settle(_)))
    }

    fn begin_anchor(&mut self) -> Step {
        if self.busy() {
            return self.go_on_with_a_job();
        }
        let cleaning = *self.rng.pick(&[Cleaning::Busy, Cleaning::Idle, Cleaning::Thorough]);
        self.say(|| format!("anchor {cleaning:?}"));
        match self.pool().begin_anchor(cleaning) {
            Ok(job) => {
                let names: Vec<String> = self.volumes.keys().cloned().collect();
                let promises = names.iter().flat_map(|name| self.promises(name)).collect();
                self.jobs.push(Job { work: Work::Anchor(Box::new(job)), outcome: None, promises });
                self.maybe_now()
            }
            Err(e) => self.failed(None, &e),
        }
    }

    fn begin_clean(&mut self) -> Step {
        if self.busy() {
            return self.go_on_with_a_job();
        }
        let job = match self.rng.one_in(6) {
            true => self.pool().shrink_job(2),
            false => self.pool().clean_job(),
        };
        let Some(job) = job else { return Ok(()) };
        self.say(|| "clean".to_owned());
        self.jobs.push(Job { work: Work::Clean(job), outcome: None, promises: Vec::new() });
        self.maybe_now()
    }

    fn maybe_now(&mut self) -> Step {
        if self.rng.one_in(3) {
            return Ok(());
        }
        self.finish_job(self.jobs.len() - 1)
    }

    fn go_on_with_a_job(&mut self) -> Step {
        if self.jobs.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.jobs.len());
        if self.jobs[at].outcome.is_some() {
            return self.finish_job(at);
        }
        self.run_job(at);
        Ok(())
    }

    fn run_job(&mut self, at: usize) {
        let job = &mut self.jobs[at];
        job.outcome = Some(match &job.work {
            Work::Flush(flush) | Work::Settle(flush) => Outcome::Io(flush.run()),
            Work::Anchor(anchor) => Outcome::Io(anchor.run()),
            Work::Clean(clean) => Outcome::Clean(clean.run()),
        });
    }

    fn finish_job(&mut self, at: usize) -> Step {
        if self.jobs[at].outcome.is_none() {
            self.run_job(at);
        }
        let Job { work, outcome, promises } = self.jobs.swap_remove(at);
        let pool = self.pool();
        let done = match (work, outcome) {
            (Work::Flush(job), Some(Outcome::Io(outcome))) => pool.flushed(&job, outcome),
            (Work::Settle(job), Some(Outcome::Io(outcome))) => pool.settled(&job, outcome),
            (Work::Anchor(job), Some(Outcome::Io(outcome))) => pool.anchored(*job, outcome),
            (Work::Clean(job), Some(Outcome::Clean(outcome))) => pool.cleaned(job, outcome),
            _ => Ok(()),
        };
        match done {
            Ok(()) => self.keep_promises(&promises),
            Err(e) => self.failed(None, &e)?,
        }
        Ok(())
    }

    /// Finishes all jobs there are.
    pub fn jobs_to_the_end(&mut self) -> Step {
        while !self.jobs.is_empty() {
            self.finish_job(0)?;
        }
        Ok(())
    }

    fn reap(&mut self) -> Step {
        let steps = 1 + self.rng.below(60);
        let done = match self.rng.one_in(2) {
            true => self.pool().reap(steps),
            false => self.pool().write_map_ahead(),
        };
        match done {
            Ok(_) => Ok(()),
            Err(e) => self.failed(None, &e),
        }
    }

    fn seal(&mut self, name: &str) -> Step {
        self.say(|| format!("seal {name}"));
        let id = self.id(name);
        let sealed = match self.rng.below(6) {
            0 => self.pool().seal_log(VolumeId(0)),
            1 if !self.busy() => {
                self.pool().seal_map();
                Ok(())
            }
            _ => self.pool().seal_log(id),
        };
        match sealed {
            Ok(()) => Ok(()),
            Err(e) => self.failed(Some(name), &e),
        }
    }

    fn spare(&mut self) -> Step {
        self.say(|| "prepare a spare".to_owned());
        let wanted = match self.pool().spares_wanted(2) {
            Ok(Some(id)) => id,
            _ => return Ok(()),
        };
        if let Ok(file) = blockstore::prepare_segment(&self.disk.handle(), wanted) {
            self.pool().add_spare(wanted, file);
        }
        Ok(())
    }

    /// An audit, as another thread would do it on its own copy of the accounts.
    fn audit(&mut self) -> Step {
        if self.busy() || !self.pool().can_audit() {
            return Ok(());
        }
        self.say(|| "audit".to_owned());
        let names: Vec<String> = self.volumes.keys().cloned().collect();
        let promises: Vec<_> = names.iter().flat_map(|name| self.promises(name)).collect();
        let (anchor, audit) = match self.pool().begin_audit() {
            Ok(begun) => begun,
            Err(e) => return self.failed(None, &e),
        };
        let outcome = anchor.run();
        let found = self.pool().anchored(anchor, outcome).and_then(|()| {
            let mut audit = audit.open()?;
            let problems = audit.check(&mut |_, _| true)?.problems;
            Ok(problems.into_iter().chain(audit.scrub(None, &mut |_, _| true)?.damaged).collect::<Vec<_>>())
        });
        self.pool().end_audit();
        match found {
            Ok(found) => {
                self.keep_promises(&promises);
                match found.first() {
                    Some(what) if !self.disk.is_dead() && !self.faulty && !self.disk.fault_fired() => {
                        Err(Stop::Violation(format!("an audit finds: {what}")))
                    }
                    _ => Ok(()),
                }
            }
            Err(e) => self.failed(None, &e),
        }
    }

    fn everything_in_the_background(&mut self) -> Step {
        self.jobs_to_the_end()?;
        let names: Vec<String> = self.volumes.keys().cloned().collect();
        let promises: Vec<_> = names.iter().flat_map(|name| self.promises(name)).collect();
        match self.pool().maintain() {
            Ok(()) => self.keep_promises(&promises),
            Err(e) => self.failed(None, &e)?,
        }
        Ok(())
    }
}
