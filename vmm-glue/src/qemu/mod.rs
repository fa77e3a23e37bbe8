//! QEMU, 7.2 and newer, as a VMM.

mod command;
mod qmp;

pub(crate) use command::{command, Incoming, Settings, PORTS};
pub(crate) use qmp::SOCKET;

use crate::keeper::peer;
use crate::vmm::{Stats, Vmm};
use crate::{Error, Kind, Result};
use qmp::Qmp;
use serde_json::json;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long a command on the monitor may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long memory may take to be written or read.
const MOVE: Duration = Duration::from_secs(120);
/// Pause between two looks at how far it is.
const PAUSE: Duration = Duration::from_millis(5);

/// A QEMU that runs.
pub struct Qemu {
    qmp: Qmp,
    pid: u32,
    process: OwnedFd,
}

impl Qemu {
    /// Finds the QEMU of a machine's folder; `None` when none runs.
    ///
    /// # Errors
    /// It runs and does not answer within `wait`.
    pub fn find(folder: &Path, wait: Duration) -> Result<Option<Self>> {
        let socket = match crate::files::connect(folder, SOCKET) {
            Ok(socket) => socket,
            Err(e) if e.kind() == std::io::ErrorKind::TimedOut => {
                return Err(Error::new(Kind::Busy, "the VMM does not answer: it hangs"));
            }
            Err(_) => return Ok(None),
        };
        let pid = peer(&socket)?;
        // SAFETY: the call makes a descriptor that nobody else owns.
        let process = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0);
            if fd < 0 {
                return Ok(None);
            }
            OwnedFd::from_raw_fd(fd as libc::c_int)
        };
        let unheard = Self { qmp: Qmp::new(socket), pid, process };
        unheard.greeted(wait).map(Some)
    }

    fn greeted(mut self, wait: Duration) -> Result<Self> {
        match self.qmp.greet(wait) {
            Ok(()) => Ok(self),
            Err(e) => Err(e.about(&format!("the VMM (process {}) does not answer", self.pid))),
        }
    }

    /// Waits until the process has ended; `false` when it has not by then.
    pub fn wait_for_end(&self, wait: Duration) -> bool {
        let mut fds = [libc::pollfd { fd: self.process.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        let ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the array lives through the call, which writes within it.
        unsafe { libc::poll(fds.as_mut_ptr(), 1, ms) > 0 }
    }

    fn state(&mut self) -> Result<String> {
        let status = self.qmp.execute("query-status", &json!({}), ANSWER)?;
        Ok(status["status"].as_str().unwrap_or("unknown").to_owned())
    }

    /// Waits for a migration's end.
    fn moved(&mut self) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < MOVE {
            let info = self.qmp.execute("query-migrate", &json!({}), ANSWER)?;
            match info["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    let why = info["error-desc"].as_str().unwrap_or("no reason was given");
                    return Err(Error::failed(format!("the VMM could not move the guest's memory: {why}")));
                }
                _ => thread::sleep(PAUSE),
            }
        }
        let _ = self.qmp.execute("migrate_cancel", &json!({}), ANSWER);
        Err(Error::failed(format!("the guest's memory was not written within {} s", MOVE.as_secs())))
    }
}

impl Vmm for Qemu {
    fn resume(&mut self) -> Result<()> {
        self.qmp.execute("cont", &json!({}), ANSWER).map(drop)
    }

    fn pause(&mut self) -> Result<()> {
        self.qmp.execute("stop", &json!({}), ANSWER).map(drop)
    }

    fn save(&mut self, to: &File) -> Result<()> {
        // A paused guest changes no memory: there is no reason to be slow.
        let fast = json!({"max-bandwidth": 1_u64 << 40});
        self.qmp.execute("migrate-set-parameters", &fast, ANSWER)?;
        self.qmp.execute_with("getfd", &json!({"fdname": "memory"}), to, ANSWER)?;
        self.qmp.execute("migrate", &json!({"uri": "fd:memory"}), ANSWER)?;
        self.moved()
    }

    fn load(&mut self, from: &File) -> Result<()> {
        self.qmp.execute_with("getfd", &json!({"fdname": "memory"}), from, ANSWER)?;
        self.qmp.execute("migrate-incoming", &json!({"uri": "fd:memory"}), ANSWER)?;
        let begin = Instant::now();
        while begin.elapsed() < MOVE {
            match self.state()?.as_str() {
                "inmigrate" => thread::sleep(PAUSE),
                "paused" | "running" => return Ok(()),
                other => return Err(Error::failed(format!("the VMM is {other} after it has read the memory"))),
            }
        }
        Err(Error::failed(format!("the guest's memory was not read within {} s", MOVE.as_secs())))
    }

    fn stop(&mut self, wait: Duration) -> Result<()> {
        // It may end before it answers.
        let _ = self.qmp.execute("quit", &json!({}), wait);
        if self.wait_for_end(wait) {
            return Ok(());
        }
        // SAFETY: a plain system call on an open descriptor.
        let killed =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.process.as_raw_fd(), libc::SIGKILL, 0, 0) };
        if killed != 0 || !self.wait_for_end(wait) {
            return Err(Error::failed(format!("the VMM (process {}) cannot be ended", self.pid)));
        }
        Ok(())
    }

    fn stats(&mut self) -> Result<Stats> {
        let state = self.state()?;
        let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", self.pid)).unwrap_or_default();
        // Fields are counted from behind the name, which may hold anything.
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let field = |n: usize| fields.get(n).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        // SAFETY: the calls take nothing but a number.
        let (ticks, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
        let cpu_ms = field(11).saturating_add(field(12)).saturating_mul(1000) / (ticks.max(1) as u64);
        Ok(Stats { state, resident_bytes: field(21).saturating_mul(page.max(1) as u64), cpu_ms, pid: self.pid })
    }
}
