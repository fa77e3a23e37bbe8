//! Programs that make images, and the folder that they work in.
//!
//! Invariants
//!   * a program that fails is told of with the end of what it said, one that is missing with Debian's name of its package;
//!   * who is told to stop ends the program and all that it has started, and leaves no folder behind; a folder that was left
//!     by a kill is removed by the next one who makes one.

use crate::files::Lock;
use crate::{Error, Kind, Result};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// What a program said last, for its error: so many lines, of so many bytes at most.
const TAIL_LINES: usize = 15;
const LINE_MAX: u64 = 4096;
/// How long a program that is told to stop may take to clean up.
const STOP: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);
/// Folders to work in are called so, with a random number behind it.
const PREFIX: &str = "cairn-image-";

/// What is heard while an image is made.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// The next thing is begun.
    Step(&'a str),
    /// How it goes on: a program's last line.
    Detail(&'a str),
}

/// Who hears it.
pub type Listener<'a> = dyn FnMut(Progress) + 'a;

static STOPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    STOPPED.store(true, Ordering::Relaxed);
}

/// While it lives, signals that ask this process to end let the work at hand end in order instead.
pub struct Interruptible {
    before: Vec<(libc::c_int, libc::sighandler_t)>,
}

impl Interruptible {
    /// From now on.
    #[allow(clippy::new_without_default)] // It changes the process.
    pub fn new() -> Self {
        let handler = note as extern "C" fn(libc::c_int);
        // SAFETY: the handler stores one atomic flag and does nothing else.
        let set = |signal| unsafe { (signal, libc::signal(signal, handler as libc::sighandler_t)) };
        Self { before: [libc::SIGINT, libc::SIGTERM, libc::SIGHUP].map(set).to_vec() }
    }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        for (signal, handler) in &self.before {
            // SAFETY: what is put back is what was there.
            unsafe { libc::signal(*signal, *handler) };
        }
    }
}

/// Whether to go on.
pub(super) fn check() -> Result<()> {
    if STOPPED.load(Ordering::Relaxed) {
        return Err(Error::failed("it was told to stop, and nothing of the new image is left"));
    }
    Ok(())
}

/// A folder that is gone when the value is.
pub(super) struct Work {
    pub(super) path: PathBuf,
    _lock: Lock,
}

impl Work {
    pub(super) fn new() -> Result<Self> {
        let parent = std::env::temp_dir();
        remove_left(&parent);
        let mut id = [0; 8];
        fs::File::open("/dev/urandom")?.read_exact(&mut id)?;
        let path = parent.join(format!("{PREFIX}{:016x}", u64::from_le_bytes(id)));
        // Others may pass through: what unpacks packages for a user who is not root is another user to the kernel.
        fs::DirBuilder::new().mode(0o711).create(&path).map_err(Error::of_file(&path))?;
        let lock = Lock::take(&path.join("lock"), Duration::ZERO)?;
        let lock = lock.ok_or_else(|| Error::failed(format!("{} is somebody else's", path.display())))?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    if fs::remove_dir_all(path).is_ok() || is_root() {
        return;
    }
    // What mmdebstrap left when it was ended belongs to a user of its namespaces, and it alone gets there again.
    for left in fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let mut helper = Command::new("mmdebstrap");
        helper.args(["--unshare-helper", "find"]).arg(left).args(["-mindepth", "1", "-delete"]);
        let _ = helper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
    let _ = fs::remove_dir_all(path);
}

/// Removes folders of ours whose makers were killed.
fn remove_left(parent: &Path) {
    // SAFETY: the call takes nothing.
    let me = unsafe { libc::geteuid() };
    for path in fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let is_ours = path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(PREFIX))
            && fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir() && found.uid() == me);
        // One that has no lock yet is just being made.
        if is_ours && path.join("lock").is_file() {
            if let Ok(Some(_lock)) = Lock::take(&path.join("lock"), Duration::ZERO) {
                remove(&path);
            }
        }
    }
}

pub(super) fn missing(package: &str, what: &str, why: &str) -> Error {
    Error::new(Kind::Missing, format!("{what}: {why}: install Debian's package {package}"))
}

/// A program to be run.
pub(super) struct Tool {
    name: String,
    package: &'static str,
    command: Command,
}

impl Tool {
    /// The program, and Debian's package that has it.
    pub(super) fn new(name: &str, package: &'static str) -> Self {
        let mut command = Command::new(name);
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        command.env("LC_ALL", "C.UTF-8").env("PATH", path).current_dir("/").stdin(Stdio::null());
        // Ctrl-C is for us: the program is told when we have seen it.
        command.process_group(0);
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(end_with_us) };
        Self { name: name.to_owned(), package, command }
    }

    /// The same, of a program that mounts and starts others: as root it gets namespaces of its own, so that all of that is
    /// gone when it ends or is ended, and nothing of this machine is found where its folder is removed. For another user it
    /// makes them itself.
    pub(super) fn contained(name: &str, package: &'static str) -> Result<Self> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut folders = path.split(':').chain(["/usr/sbin", "/sbin"]);
        if !folders.any(|folder| Path::new(folder).join(name).is_file()) {
            return Err(missing(package, name, "is not on this machine"));
        }
        if !is_root() {
            return Ok(Self::new(name, package));
        }
        let own =
            ["--mount", "--propagation=private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--", name];
        Ok(Self { name: name.to_owned(), ..Self::new("unshare", "util-linux").args(own) })
    }

    pub(super) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(super) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(super) fn folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Runs it to its end; what it wrote.
    pub(super) fn output(self) -> Result<String> {
        let read = |mut out: ChildStdout| {
            let mut bytes = Vec::new();
            out.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        self.feed(&mut |_| {}, read).map(|(out, _)| out)
    }

    /// Runs it to its end; its output goes to `take`, its lines of standard error to `progress`. Returns what `take` does,
    /// and the last of those lines.
    pub(super) fn feed<T: Send>(
        mut self,
        progress: &mut Listener,
        take: impl FnOnce(ChildStdout) -> Result<T> + Send,
    ) -> Result<(T, String)> {
        check()?;
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => missing(self.package, &self.name, "is not on this machine"),
            _ => Error::failed(format!("{}: {e}", self.name)),
        })?;
        let pipes = child.stdout.take().zip(child.stderr.take());
        let (out, err) = pipes.ok_or_else(|| Error::failed(format!("{} has no pipes", self.name)))?;
        let (taken, tail) = thread::scope(|scope| {
            let (lines, said) = channel();
            let taking = scope.spawn(move || take(out));
            scope.spawn(move || read_lines(err, &lines));
            let mut tail = VecDeque::new();
            let mut told = None::<Instant>;
            loop {
                match said.recv_timeout(LOOK) {
                    Ok(line) => {
                        progress(Progress::Detail(&line));
                        tail.push_back(line);
                        if tail.len() > TAIL_LINES {
                            tail.pop_front();
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                if check().is_err() {
                    stop(&child, &mut told);
                }
            }
            (taking.join(), Vec::from(tail).join("\n"))
        });
        let status = child.wait()?;
        check()?;
        let taken = taken.map_err(|_| Error::failed(format!("what {} wrote could not be read", self.name)))?;
        match (status.success(), taken) {
            (true, taken) => Ok((taken?, tail)),
            (false, taken) => Err(self.failed(status, &tail, taken.err())),
        }
    }

    fn failed(&self, status: ExitStatus, tail: &str, reading: Option<Error>) -> Error {
        let mut text = format!("{} failed ({status})", self.name);
        if let Some(e) = reading {
            text.push_str(&format!("; taking what it wrote: {e}"));
        }
        for line in tail.lines() {
            let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            text.push_str(&format!("\n  {line}"));
        }
        Error::failed(text)
    }
}

fn end_with_us() -> std::io::Result<()> {
    // SAFETY: a plain system call.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    Ok(())
}

fn is_root() -> bool {
    // SAFETY: the call takes nothing.
    unsafe { libc::geteuid() == 0 }
}

/// Ends a program with all that it has started. What root has mounted goes with it; another user's program is first told to,
/// so that it removes what belongs to nobody outside of its namespaces.
fn stop(child: &Child, told: &mut Option<Instant>) {
    let signal = match told {
        None if !is_root() => libc::SIGTERM,
        Some(at) if !is_root() && at.elapsed() < STOP => return,
        _ => libc::SIGKILL,
    };
    told.get_or_insert_with(Instant::now);
    // SAFETY: a plain system call; the group is that of a child that has not been waited for.
    unsafe { libc::kill(-(child.id() as libc::pid_t), signal) };
}

fn read_lines(err: ChildStderr, lines: &Sender<String>) {
    let mut err = BufReader::new(err);
    loop {
        let mut line = Vec::new();
        match err.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                // Bars of progress are many lines with carriage returns: the last one counts.
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end().rsplit('\r').next().unwrap_or_default().trim_end();
                if !text.is_empty() && lines.send(text.to_owned()).is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_is_told_with_its_last_words() {
        let script = "for i in $(seq 99); do echo line $i >&2; done; exit 3";
        let failed = Tool::new("sh", "dash").args(["-c", script]).output().expect_err("status 3").message;
        assert!(
            failed.contains("sh failed") && failed.contains("\n  line 99") && !failed.contains("line 80\n"),
            "{failed}"
        );
        let none = Tool::new("cairn-no-such-program", "nowhere").output().expect_err("there is none");
        assert!(none.kind == Kind::Missing && none.message.contains("package nowhere"), "{}", none.message);
    }

    #[test]
    fn output_is_taken_and_what_is_said_is_heard() {
        let mut heard = Vec::new();
        let mut listen = |said: Progress| {
            if let Progress::Detail(line) = said {
                heard.push(line.to_owned());
            }
        };
        let count = |mut out: ChildStdout| Ok(std::io::copy(&mut out, &mut std::io::sink())?);
        let tool = Tool::new("sh", "dash").args(["-c", "head -c 1000000 /dev/zero; printf '1%%\\r2%%\\n' >&2"]);
        let (len, _) = tool.feed(&mut listen, count).expect("it ran");
        assert_eq!((len, heard), (1_000_000, vec!["2%".to_owned()]));
        let refuse = |_: ChildStdout| Err::<(), Error>(Error::failed("no room"));
        let tool = Tool::new("sh", "dash").args(["-c", "head -c 1000000 /dev/zero || exit 1"]);
        assert!(tool.feed(&mut |_| {}, refuse).expect_err("refused").message.contains("no room"));
    }

    #[test]
    fn a_folder_goes_with_its_value_and_one_that_was_left_with_the_next() {
        let work = Work::new().expect("a folder");
        let (path, parent) = (work.path.clone(), std::env::temp_dir());
        let left = parent.join(format!("{PREFIX}test-{}", std::process::id()));
        fs::create_dir(&left).expect("a folder");
        fs::write(left.join("lock"), "").expect("a lock that nobody has");
        remove_left(&parent);
        assert!(path.exists() && !left.exists());
        drop(work);
        assert!(!path.exists());
    }
}
