//! The keeper: a process that holds one VMM, takes its console down and notes its end.
//!
//! Invariants
//!   * as long as it lives it holds the lock `keeper`: who gets that lock knows that no VMM of ours runs here;
//!   * `ended.json` tells how the VMM ended, and is there before the lock is free.

use crate::console::Ring;
use crate::files::{read_json, write_json, Lock};
use crate::{cgroup, Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) const LOCK: &str = "keeper";
pub(crate) const ORDER: &str = "command.json";
pub(crate) const ENDED: &str = "ended.json";

/// What a keeper is to run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) argv: Vec<String>,
    pub(crate) limits: cgroup::Limits,
}

/// How a VMM ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct End {
    /// Its exit status, if it ended by itself.
    pub(crate) status: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// Why it was not even started.
    pub(crate) error: Option<String>,
}

impl End {
    pub(crate) fn describe(&self) -> String {
        match (&self.error, self.signal, self.status) {
            (Some(error), _, _) => error.clone(),
            (_, Some(signal), _) => format!("the VMM was ended by signal {signal}"),
            (_, _, Some(0)) => "the guest turned itself off".to_owned(),
            (_, _, status) => format!("the VMM ended with status {}", status.unwrap_or(-1)),
        }
    }
}

/// Starts a keeper as a process of its own, which goes on when we end.
pub(crate) fn spawn(program: &[String], folder: &Path, order: &Order) -> Result<Child> {
    write_json(&folder.join(ORDER), order)?;
    let _ = fs::remove_file(folder.join(ENDED));
    let (first, rest) = program.split_first().ok_or_else(|| Error::failed("no keeper to start"))?;
    let mut command = Command::new(first);
    command.args(rest).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec only one system call is made.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    command.spawn().map_err(Error::of_file(Path::new(first)))
}

/// Runs the VMM that the folder's order names, until it ends: what the keeper's process does.
///
/// # Errors
/// There is no order, or another keeper is there.
pub fn keep(folder: &Path) -> Result<()> {
    let lock = Lock::take(&folder.join(LOCK), Duration::from_secs(1))?;
    let _lock = lock.ok_or_else(|| Error::new(Kind::Busy, "another keeper holds this machine"))?;
    let order: Order = read_json(&folder.join(ORDER))?;
    let end = match run(folder, &order) {
        Ok(end) => end,
        Err(e) => End { status: None, signal: None, error: Some(e.message) },
    };
    write_json(&folder.join(ENDED), &end)
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: the call fills two descriptors, which nobody else owns.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

fn run(folder: &Path, order: &Order) -> Result<End> {
    let (program, arguments) = order.argv.split_first().ok_or_else(|| Error::failed("an empty command"))?;
    let mut ring = Ring::open(folder)?;
    let (ours, theirs) = pipe()?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command.stdout(theirs.try_clone()?).stderr(theirs);
    // SAFETY: between fork and exec only one system call is made: what the VMM executes gains no privileges.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            Error::new(Kind::Missing, format!("{program} is not installed: install qemu-system-x86"))
        }
        _ => Error::failed(format!("{program}: {e}")),
    })?;
    // The command holds our side of the pipe's other end as long as it lives.
    drop(command);
    let group = order.limits.apply(folder, child.id());
    if let Err(why) = &group {
        let _ = ring.write(format!("cairn: limits are not enforced: {why}\n").as_bytes());
    }
    let mut buffer = vec![0; 16 << 10];
    let mut console = fs::File::from(ours);
    loop {
        match console.read(&mut buffer) {
            Ok(0) => break,
            // A full disk loses parts of the console, not the guest.
            Ok(n) => drop(ring.write(buffer.get(..n).unwrap_or_default())),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let status = child.wait()?;
    if let Ok(group) = group {
        group.remove();
    }
    Ok(End { status: status.code(), signal: status.signal(), error: None })
}

/// Waits until no keeper holds the folder.
pub(crate) fn wait_for_end(folder: &Path, wait: Duration) -> Result<bool> {
    Lock::take(&folder.join(LOCK), wait).map(|lock| lock.is_some())
}

/// How the VMM ended, if it has.
pub(crate) fn ended(folder: &Path) -> Option<End> {
    read_json(&folder.join(ENDED)).ok()
}

/// The process at the other end of a socket.
pub(crate) fn peer(socket: &impl AsRawFd) -> io::Result<u32> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = std::mem::size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the call fills plain memory of the length given.
    let result = unsafe {
        let out = (&raw mut who).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, out, &mut len)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(who.pid as u32)
}
