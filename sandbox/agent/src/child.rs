//! A command that runs, with pipes or a terminal.
//!
//! Invariant: a command leads a session of its own, so that a signal reaches all that it started and did not detach.

use crate::sys::{check, pidfd, set_nonblocking};
use sandbox_protocol::{Exec, Window};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Where programs are looked for, unless the host says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The program that stands for the agent itself.
const OWN: &str = "cairn-agent";
/// How long a command may take to end after it was hung up on.
const HANG_UP: Duration = Duration::from_secs(2);

/// A command that was started.
pub(crate) struct Running {
    child: Child,
    /// Readable when it has ended.
    pub(crate) ended: OwnedFd,
    /// Takes its standard input; `None` when that has ended.
    pub(crate) stdin: Option<File>,
    /// Its standard output or terminal; `None` when that has ended.
    pub(crate) stdout: Option<File>,
    /// Its standard error.
    pub(crate) stderr: Option<File>,
    /// Its terminal.
    terminal: Option<File>,
}

fn open_terminal(window: Window) -> io::Result<(OwnedFd, OwnedFd)> {
    let size = libc::winsize { ws_row: window.rows, ws_col: window.columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut ours, mut theirs): (RawFd, RawFd) = (-1, -1);
    // SAFETY: the call fills two descriptors, which nobody else owns; names and attributes are not asked for.
    unsafe {
        check(libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null(), &size))?;
        let pair = (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs));
        check(libc::fcntl(ours, libc::F_SETFD, libc::FD_CLOEXEC))?;
        check(libc::fcntl(theirs, libc::F_SETFD, libc::FD_CLOEXEC))?;
        Ok(pair)
    }
}

fn command(exec: &Exec) -> io::Result<Command> {
    let mut words = exec.argv.iter().map(|word| OsStr::from_bytes(word));
    let program = words.next().filter(|program| !program.is_empty());
    let program = program.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no command was given"))?;
    // The agent itself, wherever the image has it.
    let own = (program == OWN).then(std::env::current_exe).transpose()?;
    let mut command = Command::new(own.as_deref().map_or(program, |path| path.as_os_str()));
    command.args(words).env_clear().env("PATH", PATH).env("HOME", "/root").env("USER", "root");
    command.env("LANG", "C.UTF-8");
    if exec.tty.is_some() {
        command.env("TERM", "xterm-256color");
    }
    command.envs(exec.env.iter().map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))));
    if !exec.cwd.is_empty() {
        command.current_dir(OsStr::from_bytes(&exec.cwd));
    } else if std::path::Path::new("/root").is_dir() {
        command.current_dir("/root");
    }
    Ok(command)
}

impl Running {
    /// Starts a command.
    pub(crate) fn start(exec: &Exec) -> io::Result<Self> {
        let mut command = command(exec)?;
        let mut terminal = None;
        match exec.tty {
            None => {
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            Some(window) => {
                let (ours, theirs) = open_terminal(window)?;
                command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
                terminal = Some(File::from(ours));
            }
        }
        let is_terminal = terminal.is_some();
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(move || {
                check(libc::setsid())?;
                // Whoever started the agent may ignore signals: a command does not, unless it says so.
                for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGTSTP, libc::SIGCHLD] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                if is_terminal {
                    check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
                }
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        let ended = pidfd(child.id())?;
        let (stdin, stdout, stderr) = match &terminal {
            Some(terminal) => (Some(terminal.try_clone()?), Some(terminal.try_clone()?), None),
            None => (
                child.stdin.take().map(|pipe| File::from(OwnedFd::from(pipe))),
                child.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe))),
                child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe))),
            ),
        };
        for file in [&stdin, &stdout, &stderr].into_iter().flatten() {
            set_nonblocking(file)?;
        }
        Ok(Self { child, ended, stdin, stdout, stderr, terminal })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Sends a signal to the command and what it started.
    pub(crate) fn signal(&self, signal: u8) -> io::Result<()> {
        // SAFETY: a plain system call; the group is the child's, which has not been waited for.
        check(unsafe { libc::kill(-(self.child.id() as libc::pid_t), libc::c_int::from(signal)) }).map(drop)
    }

    pub(crate) fn resize(&self, window: Window) -> io::Result<()> {
        let size = libc::winsize { ws_row: window.rows, ws_col: window.columns, ws_xpixel: 0, ws_ypixel: 0 };
        let Some(terminal) = &self.terminal else { return Ok(()) };
        // SAFETY: the call reads plain memory that lives through it.
        check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) }).map(drop)
    }

    /// Its exit status and signal; it has ended.
    pub(crate) fn status(&mut self) -> io::Result<(u8, u8)> {
        let status = self.child.wait()?;
        Ok((status.code().unwrap_or(0) as u8, status.signal().unwrap_or(0) as u8))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let _ = self.signal(libc::SIGHUP as u8);
        let mut fds = [crate::sys::wait_for(self.ended.as_raw_fd(), libc::POLLIN)];
        let _ = crate::sys::poll(&mut fds, Some(HANG_UP));
        if fds[0].revents == 0 {
            let _ = self.signal(libc::SIGKILL as u8);
        }
        let _ = self.child.wait();
    }
}

/// Reads what is there, at most `room` bytes; an empty answer says that there is nothing now, `None` that it has ended.
pub(crate) fn read_some(file: &mut File, buffer: &mut [u8]) -> Option<usize> {
    match file.read(buffer) {
        Ok(0) => None,
        Ok(n) => Some(n),
        Err(e) if crate::sys::is_later(&e) => Some(0),
        // A terminal whose other side is closed says EIO.
        Err(_) => None,
    }
}
