//! Machines of a pool: what each is, and what can be done with it.
//!
//! Invariants
//!   * a machine's folder `vms/NAME` and its volume NAME come and go together;
//!   * who changes a machine holds its lock; who looks, or runs a command in it, does not;
//!   * a machine sleeps when its record says at which checkpoint; it runs when a keeper holds it.

mod cut;
mod life;
mod memories;
mod sleep;

pub use cut::Cut;
pub use life::Ended;

use crate::accel::Accel;
use crate::files::{check_name, read_json, write_json, Lock};
use crate::image::Images;
use crate::{keeper, Error, Kind, Qemu, Result, Transport, Vmm};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const RECORD: &str = "vm.json";
/// How long another command on the machine is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How long a VMM may take to answer before it counts as hung; it may just be writing memory.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a VMM may take to say how its guest is.
const LOOK: Duration = Duration::from_secs(1);

/// Bounds of what a machine may have.
const CPUS: std::ops::RangeInclusive<u32> = 1..=64;
const MEMORY_MIB: std::ops::RangeInclusive<u64> = 64..=1 << 20;

/// What a new machine is to be.
#[derive(Clone, Debug)]
pub struct New {
    /// Its name, and its volume's.
    pub name: String,
    /// The image it starts from.
    pub image: String,
    /// Processors.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory: u64,
    /// Size of its disk, bytes; the image's if `None`.
    pub disk: Option<u64>,
    /// How its disk is reached.
    pub transport: Transport,
}

/// What is written down of a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    /// How its disk is reached. It stays so: saved memory fits no other device.
    #[serde(default)]
    pub(crate) transport: Transport,
    /// Who commands run as, unless somebody says otherwise; root if `None`.
    #[serde(default)]
    pub(crate) user: Option<String>,
    /// What it was started with last.
    pub(crate) accel: Option<Accel>,
    /// The checkpoint beside which its memory was saved, while it sleeps.
    pub(crate) asleep_at: Option<String>,
}

/// How a machine is.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its name, and its volume's.
    pub name: String,
    /// `running`, `paused`, `suspended`, `stopped`, `busy` while a command changes it, or `unresponsive` when its VMM
    /// does not answer.
    pub state: String,
    /// The image it came from.
    pub image: String,
    /// Processors.
    pub cpus: u32,
    /// The guest's memory.
    pub memory_bytes: u64,
    /// `kvm` or `tcg`, while it runs.
    pub accel: Option<&'static str>,
    /// The VMM's process.
    pub pid: Option<u32>,
    /// Memory of this machine that the VMM has.
    pub resident_bytes: Option<u64>,
    /// Processor time of the VMM.
    pub cpu_ms: Option<u64>,
}

/// The machines of one pool.
pub struct Machines {
    folder: PathBuf,
    /// The pool's images.
    pub images: Images,
    accel: PathBuf,
    keeper: Vec<String>,
}

/// One machine, held for changes.
pub struct Machine {
    pub(crate) folder: PathBuf,
    pub(crate) record: Record,
    keeper: Vec<String>,
    accel: PathBuf,
    _lock: Lock,
}

impl Machines {
    /// The machines of the pool in `pool`. `keeper` is the command that, with a machine's name behind it, calls
    /// [`crate::keep`] on the machine's folder.
    pub fn of(pool: &Path, keeper: Vec<String>) -> Self {
        Self { folder: pool.join("vms"), images: Images::of(pool), accel: pool.join("accel.json"), keeper }
    }

    /// What guests are started with here, and why.
    ///
    /// # Errors
    /// `CAIRN_ACCEL` cannot be understood.
    pub fn acceleration(&self) -> Result<crate::Probe> {
        let image = self.images.list()?.into_iter().next();
        let guest = image.map(|image| (self.images.kernel(&image.name), self.images.initrd(&image.name)));
        crate::Probe::find(&self.accel, guest.as_ref().map(|(kernel, initrd)| (kernel.as_path(), initrd.as_path())))
    }

    /// The folder of a machine that there is.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        let folder = self.folder.join(name);
        if folder.join(RECORD).exists() {
            return Ok(folder);
        }
        Err(Error::new(Kind::NotFound, format!("there is no machine {name:?}: cairn vm list shows those there are")))
    }

    /// Takes hold of a machine.
    ///
    /// # Errors
    /// There is none of this name, or another command has hold of it.
    pub fn get(&self, name: &str) -> Result<Machine> {
        let folder = self.folder(name)?;
        let lock = self.lock(&folder, name)?;
        let record = read_json(&folder.join(RECORD))?;
        Ok(Machine { folder, record, keeper: self.keeper_of(name), accel: self.accel.clone(), _lock: lock })
    }

    /// Whether there is a machine of this name.
    pub fn has(&self, name: &str) -> bool {
        self.folder(name).is_ok()
    }

    /// Who commands in a machine run as when nobody says otherwise; root if `None`.
    ///
    /// # Errors
    /// There is none of this name, or its record is damaged.
    pub fn user(&self, name: &str) -> Result<Option<String>> {
        let record: Record = read_json(&self.folder(name)?.join(RECORD))?;
        Ok(record.user)
    }

    /// How a machine is.
    ///
    /// # Errors
    /// There is none of this name, or its record is damaged.
    pub fn status(&self, name: &str) -> Result<Status> {
        let folder = self.folder(name)?;
        Ok(status(&folder, &read_json(&folder.join(RECORD))?))
    }

    /// How all machines are.
    ///
    /// # Errors
    /// The folder cannot be read. A machine whose record is damaged is `damaged`.
    pub fn list(&self) -> Result<Vec<Status>> {
        let mut names: Vec<String> = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::of_file(&self.folder)(e)),
            Ok(entries) => entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect(),
        };
        names.sort();
        Ok(names
            .iter()
            .filter(|name| self.has(name))
            .map(|name| self.status(name).unwrap_or_else(|_| damaged(name)))
            .collect())
    }

    fn lock(&self, folder: &Path, name: &str) -> Result<Lock> {
        let lock = Lock::take(&folder.join("lock"), LOCK_WAIT)?;
        lock.ok_or_else(|| Error::new(Kind::Busy, format!("another command works on the machine {name}: try again")))
    }

    fn keeper_of(&self, name: &str) -> Vec<String> {
        let mut keeper = self.keeper.clone();
        keeper.push(name.to_owned());
        keeper
    }

    /// A folder for a new machine, with its record.
    fn create(&self, record: Record, kernel: &Path, initrd: &Path) -> Result<Machine> {
        let name = record.name.clone();
        fs::create_dir_all(&self.folder).map_err(Error::of_file(&self.folder))?;
        let folder = self.folder.join(&name);
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            // One that was not finished has no record.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && !folder.join(RECORD).exists() => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Err(exists(&name)),
            other => other.map_err(Error::of_file(&folder))?,
        }
        let lock = self.lock(&folder, &name)?;
        if folder.join(RECORD).exists() {
            return Err(exists(&name));
        }
        // A machine keeps its kernel when the image gets another one: saved memory needs the same devices.
        for (from, to) in [(kernel, "vmlinuz"), (initrd, "initrd")] {
            let to = folder.join(to);
            let _ = fs::remove_file(&to);
            fs::hard_link(from, &to).or_else(|_| fs::copy(from, &to).map(drop)).map_err(Error::of_file(from))?;
        }
        let machine = Machine { folder, record, keeper: self.keeper_of(&name), accel: self.accel.clone(), _lock: lock };
        Ok(machine)
    }
}

fn exists(name: &str) -> Error {
    Error::new(Kind::Exists, format!("there is a machine {name:?} already: choose another name, or cairn vm rm {name}"))
}

impl New {
    fn check(&self) -> Result<u32> {
        check_name(&self.name)?;
        let invalid = |text: String| Err(Error::new(Kind::Invalid, text));
        if !CPUS.contains(&self.cpus) {
            return invalid(format!("--cpus {}: a machine has 1 to 64 processors", self.cpus));
        }
        let mib = self.memory >> 20;
        if !MEMORY_MIB.contains(&mib) {
            return invalid(format!("--memory {} bytes: a machine has 64M to 1T", self.memory));
        }
        let here = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total =
            here.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
        if let Some(total) = total.map(|kib: u64| kib >> 10).filter(|total| mib > *total) {
            return invalid(format!("--memory {mib}M: this machine has {total}M"));
        }
        Ok(mib as u32)
    }
}

impl Machine {
    /// Its name, and its volume's.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// How it is.
    pub fn status(&self) -> Status {
        status(&self.folder, &self.record)
    }

    fn save_record(&self) -> Result<()> {
        write_json(&self.folder.join(RECORD), &self.record)
    }

    /// Its VMM; `None` when it does not run.
    fn vmm(&self) -> Result<Option<Qemu>> {
        Qemu::find(&self.folder, ANSWER)
    }
}

fn status(folder: &Path, record: &Record) -> Status {
    let mut out = Status {
        name: record.name.clone(),
        state: if record.asleep_at.is_some() { "suspended" } else { "stopped" }.to_owned(),
        image: record.image.clone(),
        cpus: record.cpus,
        memory_bytes: u64::from(record.memory_mib) << 20,
        accel: None,
        pid: None,
        resident_bytes: None,
        cpu_ms: None,
    };
    match Qemu::find(folder, LOOK).map(|found| found.map(|mut vmm| vmm.stats())) {
        Ok(None) => {}
        Ok(Some(Ok(stats))) => {
            out.state = stats.state;
            out.accel = record.accel.map(Accel::name);
            (out.pid, out.resident_bytes, out.cpu_ms) =
                (Some(stats.pid), Some(stats.resident_bytes), Some(stats.cpu_ms));
        }
        // The monitor serves one at a time: who changes the machine has it now.
        Ok(Some(Err(_))) | Err(_) => {
            let is_held = Lock::take(&folder.join("lock"), Duration::ZERO).is_ok_and(|lock| lock.is_none());
            out.state = if is_held { "busy" } else { "unresponsive" }.to_owned();
        }
    }
    out
}

fn damaged(name: &str) -> Status {
    Status {
        name: name.to_owned(),
        state: "damaged".to_owned(),
        image: String::new(),
        cpus: 0,
        memory_bytes: 0,
        accel: None,
        pid: None,
        resident_bytes: None,
        cpu_ms: None,
    }
}

/// Whether the machine's VMM has ended, and why that is an error for who waits for it.
fn has_ended(folder: &Path) -> Option<String> {
    keeper::ended(folder).map(|end| end.describe())
}
