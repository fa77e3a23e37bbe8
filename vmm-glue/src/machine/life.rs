//! Starting and ending machines.
//!
//! Invariants
//!   * a machine that cannot be made leaves neither a volume nor a folder; one that was made and does not boot stays, so
//!     that its console can be read;
//!   * a guest is asked to end before it is ended, unless force is asked for.

use super::{has_ended, Machine, Machines, New, Record};
use crate::console::evidence;
use crate::files::write_json;
use crate::keeper::{self, Order};
use crate::qemu::{command, Incoming, Settings};
use crate::{cgroup, Agent, Error, Kind, Probe, Qemu, Result, Store, Transport, Vmm};
use serde::Serialize;
use std::fs::{self, File};
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

/// How long QEMU may take until it takes commands.
const START: Duration = Duration::from_secs(30);
/// How long a guest may take until its agent answers; two seconds are usual, translated on a loaded machine many more.
const BOOT: Duration = Duration::from_secs(120);
/// How long a guest may take to turn itself off.
const POWER_OFF: Duration = Duration::from_secs(20);
/// How long a VMM may take to end when it is told.
const QUIT: Duration = Duration::from_secs(10);
/// How long a guest whose state is given up may take to write back first.
const LAST_SYNC: Duration = Duration::from_secs(3);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// How a machine was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// The guest turned itself off.
    Orderly,
    /// The VMM was ended under it.
    Forced,
    /// It did not run.
    Already,
}

impl Machines {
    /// Makes a machine and starts it; returns when its agent answers.
    ///
    /// # Errors
    /// There is one of this name, there is no such image, or it does not boot: then with the end of its console.
    pub fn run(&self, store: &dyn Store, new: &New) -> Result<Machine> {
        let mut machine = self.make(store, new)?;
        machine.start(store, None)?;
        Ok(machine)
    }

    /// Makes a machine that does not run yet.
    ///
    /// # Errors
    /// There is one of this name, or there is no such image.
    pub fn make(&self, store: &dyn Store, new: &New) -> Result<Machine> {
        let memory_mib = new.check()?;
        if self.has(&new.name) {
            return Err(super::exists(&new.name));
        }
        let image = self.images.get(&new.image)?;
        if new.transport == Transport::Nbd {
            // Found before anything is made.
            store.disk(&new.name, new.transport)?;
        }
        if store.has(&new.name)? {
            let text =
                format!("there is a volume {:?}, which the machine's disk would be: choose another name", new.name);
            return Err(Error::new(Kind::Exists, text));
        }
        let record = Record {
            name: new.name.clone(),
            image: image.name.clone(),
            cpus: new.cpus,
            memory_mib,
            transport: new.transport,
            user: image.user.clone(),
            accel: None,
            asleep_at: None,
        };
        let (kernel, initrd) = (self.images.kernel(&image.name), self.images.initrd(&image.name));
        let machine = self.create(record, &kernel, &initrd)?;
        machine.fill(store, &format!("{}@{}", image.volume, image.checkpoint), new.disk.or(image.disk_bytes))?;
        Ok(machine)
    }
}

impl Machine {
    /// Gives a machine that was created its disk and its record; without success nothing of it stays.
    pub(super) fn fill(&self, store: &dyn Store, source: &str, size: Option<u64>) -> Result<()> {
        let outcome = store.fork(source, self.name()).and_then(|()| {
            let grown = size.map_or(Ok(()), |size| store.grow(self.name(), size));
            grown.and_then(|()| self.save_record()).inspect_err(|_| drop(store.delete(self.name())))
        });
        outcome.inspect_err(|_| drop(fs::remove_dir_all(&self.folder)))
    }

    /// Starts it; returns when its agent answers. With `memory` it goes on where that was saved.
    ///
    /// # Errors
    /// It runs already, or does not start: then with the end of its console.
    pub fn start(&mut self, store: &dyn Store, memory: Option<&Path>) -> Result<()> {
        if self.vmm()?.is_some() {
            return Err(Error::new(Kind::Exists, format!("the machine {} runs already", self.name())));
        }
        if !keeper::wait_for_end(&self.folder, QUIT)? {
            return Err(Error::new(Kind::Busy, "the machine has not ended yet: try again"));
        }
        let kernel = (self.folder.join("vmlinuz"), self.folder.join("initrd"));
        let accel = Probe::find(&self.accel, Some((&kernel.0, &kernel.1)))?.accel;
        let disk = store.disk(self.name(), self.record.transport)?;
        let settings = Settings {
            name: &self.record.name,
            cpus: self.record.cpus,
            memory_mib: self.record.memory_mib,
            accel,
            kernel: Path::new("vmlinuz"),
            initrd: Path::new("initrd"),
            disk: Some(&disk),
            incoming: if memory.is_some() { Incoming::Memory } else { Incoming::Boot },
        };
        let (name, cpus, memory_mib) = (self.record.name.clone(), self.record.cpus, self.record.memory_mib);
        let order = Order { argv: command(&settings), limits: cgroup::Limits { name, cpus, memory_mib } };
        self.record.accel = Some(accel);
        self.record.asleep_at = None;
        self.save_record()?;
        let _ = fs::remove_file(self.folder.join(crate::qemu::SOCKET));
        let mut keeper = keeper::spawn(&self.keeper, &self.folder, &order)?;
        let outcome = self.bring_up(&mut keeper, memory);
        outcome.map_err(|e| self.explain(e))
    }

    fn bring_up(&self, keeper: &mut Child, memory: Option<&Path>) -> Result<()> {
        let begin = Instant::now();
        let mut alive = || match keeper.try_wait()? {
            None => Ok(()),
            Some(_) => Err(Error::failed(has_ended(&self.folder).unwrap_or("its keeper failed".to_owned()))),
        };
        let mut vmm = loop {
            if let Some(vmm) = Qemu::find(&self.folder, START)? {
                break vmm;
            }
            alive()?;
            if begin.elapsed() > START {
                return Err(Error::failed(format!("QEMU took no commands within {} s", START.as_secs())));
            }
            thread::sleep(PAUSE);
        };
        if let Some(memory) = memory {
            let file = File::open(memory).map_err(Error::of_file(memory))?;
            let outcome = vmm.load(&file).and_then(|()| vmm.resume());
            if let Err(e) = outcome {
                let _ = vmm.stop(QUIT);
                return Err(e.about("its saved memory"));
            }
        }
        drop(vmm);
        let mut agent = Agent::control(&self.folder, Instant::now() + BOOT, &mut alive)?;
        agent.wake()
    }

    /// Adds what the console says.
    fn explain(&self, e: Error) -> Error {
        let text = format!("the machine {} does not start: {}{}", self.name(), e.message, evidence(&self.folder));
        Error::new(e.kind, text)
    }

    /// Ends it: the guest is asked, and if it does not end in time, or with `force`, the VMM is ended.
    ///
    /// # Errors
    /// Not even that is possible.
    pub fn stop(&mut self, force: bool) -> Result<Ended> {
        let vmm = match self.vmm() {
            Ok(None) => {
                return Ok(Ended::Already);
            }
            Ok(Some(vmm)) => vmm,
            // A VMM that does not answer is ended all the same.
            Err(_) => {
                keeper::kill(&self.folder)?;
                return self.after_end().map(|()| Ended::Forced);
            }
        };
        if !force && self.agent(Duration::from_secs(5)).and_then(|mut agent| agent.power_off()).is_ok() {
            let is_over = vmm.wait_for_end(POWER_OFF);
            if is_over {
                return self.after_end().map(|()| Ended::Orderly);
            }
        }
        self.quit(vmm)?;
        Ok(Ended::Forced)
    }

    /// Ends the VMM; what the guest holds in its memory is lost.
    pub(super) fn quit(&self, mut vmm: Qemu) -> Result<()> {
        vmm.stop(QUIT)?;
        self.after_end()
    }

    /// Ends a guest whose state is about to be replaced: it may write back first, but not for long.
    pub(super) fn give_up(&self) -> Result<()> {
        match self.vmm() {
            Ok(None) => Ok(()),
            Ok(Some(vmm)) => {
                let _ = self.agent(Duration::from_secs(2)).and_then(|mut agent| agent.sync(LAST_SYNC));
                self.quit(vmm)
            }
            Err(_) => keeper::kill(&self.folder).and_then(|()| self.after_end()),
        }
    }

    fn after_end(&self) -> Result<()> {
        if keeper::wait_for_end(&self.folder, QUIT)? {
            return Ok(());
        }
        Err(Error::failed("the machine's keeper does not end"))
    }

    /// Its agent, for short requests.
    pub(super) fn agent(&self, wait: Duration) -> Result<Agent> {
        let mut alive = || match has_ended(&self.folder) {
            None => Ok(()),
            Some(why) => Err(Error::failed(why)),
        };
        Agent::control(&self.folder, Instant::now() + wait, &mut alive)
    }

    /// Ends it by force, and removes it with its volume.
    ///
    /// # Errors
    /// It runs and `force` is not given, or its volume cannot be deleted.
    pub fn remove(self, store: &dyn Store, force: bool) -> Result<()> {
        match self.vmm() {
            Ok(None) => {}
            _ if !force => {
                let text = format!("the machine {0} runs: cairn vm stop {0}, or give --force", self.name());
                return Err(Error::new(Kind::Busy, text));
            }
            Ok(Some(vmm)) => self.quit(vmm)?,
            Err(_) => keeper::kill(&self.folder).and_then(|()| self.after_end())?,
        }
        if store.has(self.name())? {
            store.delete(self.name())?;
        }
        // The record goes first: what is left without it is no machine.
        let record = self.folder.join(super::RECORD);
        fs::remove_file(&record).map_err(Error::of_file(&record))?;
        fs::remove_dir_all(&self.folder).map_err(Error::of_file(&self.folder))
    }

    /// Writes down what is not the same any more.
    pub(super) fn note(&mut self, asleep_at: Option<String>) -> Result<()> {
        self.record.asleep_at = asleep_at;
        write_json(&self.folder.join(super::RECORD), &self.record)
    }
}
