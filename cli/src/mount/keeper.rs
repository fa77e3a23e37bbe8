//! The keeper of a mount, and the command that starts one.

use super::broker;
use super::worker::KEEPER;
use crate::beside::Beside;
use crate::client::{self, Failure, CONTROL};
use serde_json::{json, Value};
use std::ffi::CString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::{env, fs, thread};

/// What `cairn mount` was asked for.
pub struct Wanted<'a> {
    pub pool: &'a Path,
    pub volume: Option<&'a str>,
    pub folder: &'a Path,
    pub allow_other: bool,
}

impl Wanted<'_> {
    fn arguments(&self, role: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap_or_else(|_| "cairn".into()));
        command.arg("--pool").arg(self.pool).arg("mount").arg(role);
        command.args(self.allow_other.then_some("--allow-other"));
        command.args(self.volume).arg(self.folder);
        command
    }

    /// What would otherwise be found out where nobody sees it.
    fn check(&self) -> Result<(), Failure> {
        let of_folder = Failure::of_file(self.folder);
        if !fs::metadata(self.folder).map_err(of_folder)?.is_dir() {
            return Err(Failure::new("invalid", format!("{} is no folder", self.folder.display())));
        }
        if client::connect(&self.pool.join(CONTROL))?.is_none() {
            let text = "no daemon runs on this pool: start cairn serve, which the mount reads from";
            return Err(Failure::new("invalid", text));
        }
        if let Some(volume) = self.volume {
            client::carry_out(self.pool, &json!({"op": "volume.info", "volume": volume}))?;
        }
        if fs::metadata("/dev/fuse").is_err() {
            return Err(Failure::new("invalid", "this machine has no /dev/fuse: load the kernel's module fuse"));
        }
        Ok(())
    }
}

/// Mounts in the background; returns when the folder is there.
pub fn start(wanted: &Wanted<'_>, as_json: bool) -> Result<(), Failure> {
    wanted.check()?;
    let mut command = wanted.arguments("--foreground");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut keeper = command.spawn()?;
    let out = keeper.stdout.take().map(BufReader::new);
    let mut first = String::new();
    out.map(|mut out| out.read_line(&mut first)).transpose()?;
    if first.trim() != "mounted" {
        let mut why = String::new();
        keeper.stderr.take().map(|mut err| io::Read::read_to_string(&mut err, &mut why)).transpose()?;
        keeper.wait()?;
        let why = why.trim().trim_start_matches("cairn: ");
        return Err(Failure::new("io", if why.is_empty() { "the mount ended at once" } else { why }));
    }
    let answer = json!({"mounted": wanted.folder, "process": keeper.id()});
    crate::output::print(&answer, as_json, &[]);
    Ok(())
}

/// Keeps a mount until it is taken away.
pub fn keep(wanted: &Wanted<'_>) -> Result<(), Failure> {
    wanted.check()?;
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut command = wanted.arguments("--worker");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let descriptor = theirs.as_raw_fd();
    // SAFETY: between fork and exec only calls that are allowed there.
    unsafe {
        command.pre_exec(move || {
            // The worker does not outlive whoever takes its mount away.
            let outcome = match libc::dup2(descriptor, KEEPER) {
                KEEPER => libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL),
                _ => -1,
            };
            // The same number already: then it was only marked to be closed.
            if descriptor == KEEPER {
                libc::fcntl(KEEPER, libc::F_SETFD, 0);
            }
            if outcome < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
    let mut worker = command.spawn()?;
    drop(theirs);
    let control = wanted.pool.join(CONTROL);
    let broker = thread::spawn(move || broker::serve(&mut ours, &control));
    let mut told = false;
    for line in worker.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let line = line?;
        told |= line == "mounted";
        println!("{line}");
        io::stdout().flush()?;
    }
    let ended = worker.wait()?;
    let _ = broker.join();
    end(wanted.folder, ended, told)
}

/// Mounts all volumes at `folder` beside a daemon that is about to answer, and again whenever the mount's process ends.
pub fn serve_beside(pool: &Path, folder: &Path) -> io::Result<Beside> {
    let (pool, at) = (pool.to_owned(), folder.to_owned());
    Beside::keep("mount", move || {
        let wanted = Wanted { pool: &pool, volume: None, folder: &at, allow_other: false };
        let mut command = wanted.arguments("--foreground");
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        command
    })
}

/// Takes a mount beside a daemon away: its process ends then.
pub fn end_beside(mounted: Beside, folder: &Path) {
    mounted.end_by(|_| drop(detach(folder, true)));
}

/// The worker is gone: so is the mount.
fn end(folder: &Path, ended: ExitStatus, told: bool) -> Result<(), Failure> {
    // It may be taken away already: that is how a mount ends. Another one may be in its place.
    let left = told && is_dead(folder) && detach(folder, true).is_ok();
    if ended.success() || !left && told {
        return Ok(());
    }
    Err(Failure::new("io", format!("the inspector of {} ended: {ended}; mount it again", folder.display())))
}

/// Whether what is mounted there has nobody who serves it. Asked in a way that no cache answers.
fn is_dead(folder: &Path) -> bool {
    let Ok(path) = CString::new(folder.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path ends with NUL, and both values live to the end of the call.
    let outcome = unsafe {
        let mut about = std::mem::zeroed();
        libc::statfs(path.as_ptr(), &mut about)
    };
    outcome != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOTCONN)
}

/// Takes a mount away.
pub fn unmount(folder: &Path, lazy: bool) -> Result<Value, Failure> {
    detach(folder, lazy).map_err(|e| {
        let hint = match e.raw_os_error() {
            Some(libc::EBUSY) => ": somebody is in it; leave it, or give --lazy",
            Some(libc::EINVAL) => ": nothing is mounted there",
            _ => "",
        };
        Failure::new("io", format!("{}: {e}{hint}", folder.display()))
    })?;
    Ok(json!({"unmounted": folder}))
}

fn detach(folder: &Path, lazy: bool) -> io::Result<()> {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        let status =
            Command::new("fusermount3").args(["-u"]).args(lazy.then_some("-z")).arg("--").arg(folder).status()?;
        return status.success().then_some(()).ok_or_else(|| io::Error::other("fusermount3 could not unmount it"));
    }
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: the path ends with NUL and lives to the end of the call.
    match unsafe { libc::umount2(path.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
