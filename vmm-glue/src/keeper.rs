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
const PROCESS: &str = "process.json";

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
    let process = Process { pid: child.id(), began: began(child.id()).unwrap_or(0) };
    if let Err(e) = write_json(&folder.join(PROCESS), &process) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(e);
    }
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
    let _ = fs::remove_file(folder.join(PROCESS));
    if let Ok(group) = group {
        group.remove();
    }
    Ok(End { status: status.code(), signal: status.signal(), error: None })
}

/// The VMM's process: its number, and when it began, which tells it from a later one of the same number.
#[derive(Debug, Serialize, Deserialize)]
struct Process {
    pid: u32,
    began: u64,
}

fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields are counted from behind the name, which may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Ends, by force, the VMM of a folder, whether or not it answers. Nothing happens when none runs.
pub(crate) fn kill(folder: &Path) -> Result<()> {
    let Ok(process) = read_json::<Process>(&folder.join(PROCESS)) else { return Ok(()) };
    // SAFETY: the call makes a descriptor that nobody else owns.
    let held = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, process.pid as libc::pid_t, 0);
        if fd < 0 {
            return Ok(());
        }
        OwnedFd::from_raw_fd(fd as libc::c_int)
    };
    // Looked at while the descriptor holds it: what it says is about the process that gets the signal.
    if began(process.pid) != Some(process.began) {
        return Ok(());
    }
    // SAFETY: a plain system call on an open descriptor.
    if unsafe { libc::syscall(libc::SYS_pidfd_send_signal, held.as_raw_fd(), libc::SIGKILL, 0, 0) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn order(script: &str) -> Order {
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        Order { argv, limits: cgroup::Limits { name: "test".to_owned(), cpus: 1, memory_mib: 64 } }
    }

    #[test]
    fn a_keeper_takes_the_console_down_and_notes_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        write_json(&folder.path().join(ORDER), &order("echo out; echo err >&2; exit 3")).expect("an order");
        keep(folder.path()).expect("kept");
        let end = ended(folder.path()).expect("an end");
        assert_eq!((end.status, end.describe().as_str()), (Some(3), "the VMM ended with status 3"));
        let console = String::from_utf8(crate::tail(folder.path(), 1000)).expect("text");
        assert!(console.contains("out\n") && console.contains("err\n"), "{console}");
    }

    #[test]
    fn a_vmm_that_does_not_answer_is_ended_and_its_number_is_not_trusted_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        write_json(&path.join(ORDER), &order("exec sleep 600")).expect("an order");
        let keeper = std::thread::spawn(move || keep(&path));
        while !folder.path().join(PROCESS).exists() {
            std::thread::sleep(Duration::from_millis(2));
        }
        // Another process of the same number is not this one.
        let told: Process = read_json(&folder.path().join(PROCESS)).expect("a process");
        let other = tempfile::tempdir().expect("a folder");
        write_json(&other.path().join(PROCESS), &Process { began: told.began + 1, ..told }).expect("another");
        kill(other.path()).expect("nothing to do");
        assert!(!wait_for_end(folder.path(), Duration::from_millis(50)).expect("a lock"), "it lives");
        kill(folder.path()).expect("ended");
        keeper.join().expect("a thread").expect("kept");
        assert_eq!(ended(folder.path()).expect("an end").signal, Some(9));
    }

    #[test]
    fn a_program_that_is_missing_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = Order { argv: vec!["no-such-vmm".to_owned()], ..order("") };
        write_json(&folder.path().join(ORDER), &missing).expect("an order");
        keep(folder.path()).expect("kept");
        assert!(ended(folder.path()).expect("an end").describe().contains("not installed"));
    }
}
