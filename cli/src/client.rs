//! Talking to the daemon, or being it for one command.

use blockstore::{Pool, PoolOptions, RecoveryReport};
use nbd_server::{control, is_read_only, open_pool, open_to_look, while_in_use, PoolLock};
use serde_json::{json, Value};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Name of a daemon's control socket in its pool's folder.
pub const CONTROL: &str = "control.sock";

/// Why a command failed.
pub struct Failure {
    /// One of the control protocol's kinds.
    pub kind: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Failure {
    /// A failure of `kind`, one of the control protocol's.
    pub fn new(kind: &str, message: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), message: message.into() }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self.kind.as_str() {
            "invalid" => 2,
            "not_found" => 3,
            "exists" | "busy" => 4,
            "corrupt" => 5,
            "no_space" => 6,
            _ => 1,
        }
    }

    /// Turns failures of the system on `file` into ones that name it.
    pub fn of_file(file: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |e| {
            let kind = match e.kind() {
                io::ErrorKind::NotFound => "not_found",
                io::ErrorKind::AlreadyExists => "exists",
                io::ErrorKind::StorageFull => "no_space",
                _ => "io",
            };
            Self::new(kind, format!("{}: {e}", file.display()))
        }
    }

    /// The same failure, with what was being done.
    pub fn about(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    /// As the control socket tells it.
    pub fn json(&self) -> Value {
        json!({"error": {"kind": self.kind, "message": self.message}})
    }

    fn of(answer: &Value) -> Option<Self> {
        let error = answer.get("error")?;
        let field = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned();
        Some(Self { kind: field("kind"), message: field("message") })
    }
}

impl From<blockstore::Error> for Failure {
    fn from(error: blockstore::Error) -> Self {
        Self::of(&control::error_json(&error)).unwrap_or_else(|| Self::new("io", error.to_string()))
    }
}

impl From<nbd_client::Error> for Failure {
    fn from(error: nbd_client::Error) -> Self {
        match error {
            nbd_client::Error::Connection(e) => e.into(),
            nbd_client::Error::Server { errno: 28, why } => Self::new("no_space", why),
            nbd_client::Error::Server { errno: 5, why } => {
                Self::new("io", format!("{why}: cairn scrub names all that is damaged"))
            }
            other => Self::new("io", other.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new("io", error.to_string())
    }
}

/// The daemon whose control socket is at `path`, if one listens.
pub fn connect(path: &Path) -> Result<Option<UnixStream>, Failure> {
    match UnixStream::connect(path) {
        Ok(stream) => Ok(Some(stream)),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let text = format!("{}: {e}: be the user that runs the daemon, or root", path.display());
            Err(Failure::new("io", text))
        }
        // No socket, or one that a killed daemon left: the pool's lock will tell.
        Err(_) => Ok(None),
    }
}

/// The daemon ended while it was asked something.
const GONE: &str = "the daemon closed the connection before it answered: it was stopped, or see its log";

/// Bytes of an answer: of a list of 10,000 checkpoints 4 MiB, of the extents of a large difference 60 MiB.
const ANSWER_MAX: usize = 256 << 20;

/// The next line of the control socket, and not a byte of what follows it: that may be another protocol.
pub fn line(mut stream: &UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        // Looked at first, so that lines of any length take few calls.
        let mut ahead = [0; 4096];
        let seen = peek(stream, &mut ahead)?;
        let end = ahead[..seen].iter().position(|byte| *byte == b'\n');
        let take = end.map_or(seen, |end| end + 1);
        stream.read_exact(&mut ahead[..take])?;
        line.extend(&ahead[..end.unwrap_or(take)]);
        if end.is_some() {
            return String::from_utf8(line).map_err(io::Error::other);
        }
        if seen == 0 || line.len() > ANSWER_MAX {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, GONE));
        }
    }
}

/// What has come and was not read; waits for the first byte.
fn peek(stream: &UnixStream, out: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: no more is written than there is room.
        let got = unsafe { libc::recv(stream.as_raw_fd(), out.as_mut_ptr().cast(), out.len(), libc::MSG_PEEK) };
        match usize::try_from(got) {
            Ok(got) => return Ok(got),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
}

/// A line of the control socket as an answer or a failure.
pub fn answer(line: &str) -> Result<Value, Failure> {
    let answer: Value = serde_json::from_str(line).map_err(io::Error::from)?;
    Failure::of(&answer).map_or(Ok(answer), Err)
}

/// Sends one command. A daemon that does not listen any more may have said why: that is read next.
pub fn send(stream: &mut UnixStream, request: &Value) -> Result<(), Failure> {
    match stream.write_all(format!("{request}\n").as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// Sends one command and reads lines until its answer. Those before it tell how far it is: `told` gets done and total.
pub fn ask_telling(stream: &mut UnixStream, request: &Value, mut told: impl FnMut(u64, u64)) -> Result<Value, Failure> {
    send(stream, request)?;
    loop {
        let answer = answer(&line(stream)?)?;
        let Some(progress) = answer.get("progress") else { return Ok(answer) };
        let field = |key: &str| progress.get(key).and_then(Value::as_u64).unwrap_or(0);
        told(field("done"), field("total"));
    }
}

/// Sends one command and reads its answer.
pub fn ask(stream: &mut UnixStream, request: &Value) -> Result<Value, Failure> {
    ask_telling(stream, request, |_, _| ())
}

/// What carries out a command.
pub enum Reached {
    /// The daemon of the pool.
    Daemon(UnixStream),
    /// This process: it holds the pool.
    Own(Box<(PoolLock, Pool, RecoveryReport)>),
}

/// What a command means to do with a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Look at it: that works on a read-only file system, too.
    Look,
    /// Change it.
    Change,
    /// Change it, and make it if there is none.
    Create,
}

/// Finds the daemon of the pool in `folder`, or opens the pool. A daemon that is about to answer is waited for.
pub fn reach(folder: &Path, intent: Intent) -> Result<Reached, Failure> {
    let (is_busy, options) = (|failure: &Failure| failure.kind == "busy", PoolOptions::default());
    while_in_use(is_busy, || {
        if let Some(stream) = connect(&folder.join(CONTROL))? {
            return Ok(Reached::Daemon(stream));
        }
        Ok(Reached::Own(Box::new(if intent == Intent::Look && is_read_only(folder) {
            open_to_look(folder, options)?
        } else {
            open_pool(folder, intent == Intent::Create, options)?
        })))
    })
}

/// Who carried out a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A daemon, which goes on with what is left to do in the background.
    Daemon,
    /// This process, which ends.
    Us,
}

/// Carries out one command, by the daemon or on the pool itself.
pub fn carry_out(folder: &Path, request: &Value) -> Result<(Value, Who), Failure> {
    let intent = match request.get("op").and_then(Value::as_str) {
        Some("volume.create") => Intent::Create,
        Some("volume.list" | "volume.info" | "stats") => Intent::Look,
        Some("checkpoint.list" | "checkpoint.get" | "checkpoint.diff") => Intent::Look,
        _ => Intent::Change,
    };
    let (_lock, mut pool, report) = match reach(folder, intent)? {
        Reached::Daemon(mut stream) => return ask(&mut stream, request).map(|answer| (answer, Who::Daemon)),
        Reached::Own(own) => *own,
    };
    report.dropped.iter().for_each(|why| eprintln!("cairn: recovery dropped {why}"));
    let outcome = control::handle(&mut pool, request)?;
    if let Some(job) = outcome.job {
        pool.finish(job)?;
    }
    Ok((outcome.answer, Who::Us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_is_not_the_answer() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let lines = "{\"progress\":{\"done\":1,\"total\":3}}\n{\"progress\":{}}\n{\"forked\":\"last\"}\n";
        theirs.write_all(lines.as_bytes()).expect("lines");
        let mut told = Vec::new();
        let request = json!({"op": "fork"});
        let answer = ask_telling(&mut ours, &request, |done, total| told.push((done, total))).ok();
        assert_eq!((answer, told), (Some(json!({"forked": "last"})), vec![(1, 3), (0, 0)]));
        theirs.write_all(lines.as_bytes()).expect("lines");
        assert_eq!(ask(&mut ours, &request).ok(), Some(json!({"forked": "last"})));
    }
}
