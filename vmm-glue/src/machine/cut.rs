//! Checkpoints of machines that run, going back to them, and copies.
//!
//! Invariants
//!   * a checkpoint never waits for a guest beyond the deadline: without its help it is what a power loss would leave,
//!     and is marked so;
//!   * a checkpoint with memory has disk and memory of one instant: the guest is paused from before the one until after
//!     the other.

use super::{Machine, Machines, Record};
use crate::files::check_name;
use crate::{Agent, Error, Kind, Qemu, Result, Store, Vmm};
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a guest may take to freeze, and how long it stays frozen if nobody thaws it.
const FREEZE: Duration = Duration::from_secs(5);
/// How long an agent may take to answer before a checkpoint goes on without it.
const AGENT: Duration = Duration::from_secs(2);
/// What is added to the comment of a checkpoint that the guest did not help with.
const CRASH: &str = "crash-consistent";

/// A checkpoint that was taken.
#[derive(Clone, Debug, Serialize)]
pub struct Cut {
    /// Its name.
    pub id: String,
    /// `frozen`: the file systems are whole; `crash`: as after a power loss; `memory`: with the guest's memory;
    /// `stopped`: it did not run.
    pub consistency: &'static str,
    /// How long freezing took in the guest, or pausing it, milliseconds.
    pub freeze_ms: f64,
    /// How long the guest could not write beside that, milliseconds.
    pub pause_ms: f64,
    /// Why it is not `frozen`, if the guest did not help.
    pub why: Option<String>,
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

impl Machine {
    /// Names the present state of its disk, with the guest's help if it runs.
    ///
    /// # Errors
    /// The store failed. A guest that does not help is no error.
    pub fn checkpoint(&mut self, store: &dyn Store, comment: &str) -> Result<Cut> {
        let ((id, why), freeze_ms, pause_ms, consistency) = self.frozen(|consistency, why| {
            let comment = match (consistency, comment) {
                ("crash", "") => CRASH.to_owned(),
                ("crash", comment) => format!("{comment} ({CRASH})"),
                _ => comment.to_owned(),
            };
            Ok((store.checkpoint(&self.record.name, &comment)?, why))
        })?;
        Ok(Cut { id, consistency, freeze_ms, pause_ms, why })
    }

    /// Does `cut` while the guest's file systems are frozen, if that can be; tells `cut` how it is, and why.
    fn frozen<T>(
        &self,
        cut: impl FnOnce(&'static str, Option<String>) -> Result<T>,
    ) -> Result<(T, f64, f64, &'static str)> {
        if matches!(self.vmm(), Ok(None)) {
            return cut("stopped", None).map(|made| (made, 0.0, 0.0, "stopped"));
        }
        let frozen = self.agent(AGENT).and_then(|mut agent: Agent| agent.freeze(FREEZE).map(|how| (agent, how)));
        let begin = Instant::now();
        match frozen {
            Err(e) => cut("crash", Some(e.message)).map(|made| (made, 0.0, 0.0, "crash")),
            Ok((mut agent, (_, took))) => {
                let outcome = cut("frozen", None);
                let cut_time = begin.elapsed();
                // It thaws by itself at its deadline, or when this connection ends: a failure costs time alone.
                let thawed = agent.thaw();
                let pause = begin.elapsed();
                let made = outcome?;
                // Thawed before the cut was done: what was written in between may be half there.
                let is_whole = thawed.is_ok() || cut_time + took < FREEZE;
                Ok((made, ms(took), ms(pause), if is_whole { "frozen" } else { "crash" }))
            }
        }
    }

    /// Names the present state of disk and memory. The guest goes on afterwards, unless `and_sleep`.
    ///
    /// # Errors
    /// It does not run, or the memory cannot be written; then it goes on as before.
    pub fn checkpoint_with_memory(&mut self, store: &dyn Store, comment: &str) -> Result<Cut> {
        let mut vmm = self.running()?;
        // Whoever looks into the disk alone is to find there what the guest had written: as far as it answers.
        let _ = self.agent(AGENT).and_then(|mut agent: Agent| agent.freeze(FREEZE).and_then(|_| agent.thaw()));
        let cut = self.cut_paused(store, &mut vmm, comment);
        // Whatever has happened: the guest is not to stay paused.
        let resumed = vmm.resume();
        let cut = cut?;
        resumed.map(|()| cut)
    }

    pub(super) fn running(&self) -> Result<Qemu> {
        self.vmm()?.ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                format!("the machine {0} does not run: start it with cairn vm run {0}", self.name()),
            )
        })
    }

    /// Pauses the guest, writes its memory and cuts its disk; it is paused afterwards.
    pub(super) fn cut_paused(&self, store: &dyn Store, vmm: &mut Qemu, comment: &str) -> Result<Cut> {
        self.forget_deleted(store);
        let new = self.folder.join("memory.new");
        let begin = Instant::now();
        vmm.pause()?;
        let paused = begin.elapsed();
        let _ = fs::remove_file(&new);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
        let file: File = file.map_err(Error::of_file(&new))?;
        let outcome = vmm.save(&file).and_then(|()| {
            file.sync_all()?;
            store.checkpoint(&self.record.name, comment)
        });
        let id = outcome.inspect_err(|_| drop(fs::remove_file(&new)))?;
        let kept = self.memory(store, &id).and_then(|to| fs::rename(&new, &to).map_err(Error::of_file(&to)));
        if let Err(e) = kept {
            let _ = store.delete_checkpoint(&self.record.name, &id);
            return Err(e);
        }
        let (freeze_ms, pause_ms) = (ms(paused), ms(begin.elapsed()));
        Ok(Cut { id, consistency: "memory", freeze_ms, pause_ms, why: None })
    }

    /// Makes the disk what it was and starts again, with the memory of that moment if it was saved. Returns the name of
    /// what it was until now.
    ///
    /// # Errors
    /// There is no such checkpoint (and nothing has happened), or the machine does not start on it.
    pub fn restore(&mut self, store: &dyn Store, id: &str) -> Result<String> {
        // Said before anything is ended.
        store.differs(self.name(), id)?;
        self.give_up()?;
        let undo = store.restore(self.name(), id)?;
        let slept_at = self.record.asleep_at.clone().filter(|slept_at| slept_at != id);
        let memory = self.memory(store, id)?;
        self.start(store, memory.exists().then_some(memory.as_path()))?;
        // A sleeper's memory belongs to the state that was replaced.
        slept_at.iter().for_each(|slept_at| self.forget(store, slept_at));
        Ok(undo)
    }

    /// Deletes a checkpoint of its disk, with the memory that was saved beside it.
    ///
    /// # Errors
    /// There is no such checkpoint, or the machine sleeps at it.
    pub fn delete_checkpoint(&self, store: &dyn Store, id: &str) -> Result<()> {
        if self.record.asleep_at.as_deref() == Some(id) {
            return Err(Error::new(Kind::Busy, format!("the machine {} sleeps at {id}: wake it first", self.name())));
        }
        store.delete_checkpoint(self.name(), id)?;
        self.forget_deleted(store);
        Ok(())
    }

    fn copy_of(&self, name: &str) -> Record {
        Record { name: name.to_owned(), accel: None, asleep_at: None, ..self.record.clone() }
    }
}

impl Machines {
    /// Makes a machine like `source` (NAME, or NAME@ID) and starts it. A head is copied with the guest's help; a
    /// checkpoint with memory goes on from there.
    ///
    /// # Errors
    /// There is no such machine or checkpoint, the name is taken, or the copy does not start.
    pub fn fork(&self, store: &dyn Store, source: &str, name: &str) -> Result<Machine> {
        let (mut machine, memory) = self.copied(store, source, name)?;
        machine.start(store, memory.as_deref())?;
        Ok(machine)
    }

    /// As [`Machines::fork`], of the disk alone, and the copy does not run yet.
    ///
    /// # Errors
    /// There is no such machine or checkpoint, or the name is taken.
    pub fn copy(&self, store: &dyn Store, source: &str, name: &str) -> Result<Machine> {
        self.copied(store, source, name).map(|(machine, _)| machine)
    }

    /// A copy, and the memory that it can go on with.
    fn copied(&self, store: &dyn Store, source: &str, name: &str) -> Result<(Machine, Option<PathBuf>)> {
        check_name(name)?;
        let (from, id) = match source.split_once('@') {
            Some((from, "Current")) => (from, None),
            Some((from, id)) => (from, Some(id)),
            None => (source, None),
        };
        if self.has(name) {
            return Err(super::exists(name));
        }
        if store.has(name)? {
            let text = format!("there is a volume {name:?}, which the machine's disk would be: choose another name");
            return Err(Error::new(Kind::Exists, text));
        }
        let origin = self.get(from)?;
        // Found before anything is made.
        id.map(|id| store.identity(from, id)).transpose()?;
        let record = origin.copy_of(name);
        let machine = self.create(record, &origin.folder.join("vmlinuz"), &origin.folder.join("initrd"))?;
        let mut memory = None;
        match id {
            None => drop(origin.frozen(|_, _| machine.fill(store, from, None))?),
            Some(id) => {
                machine.fill(store, source, None)?;
                memory = Some(origin.memory(store, id)?).filter(|memory| memory.exists());
            }
        }
        Ok((machine, memory))
    }
}
