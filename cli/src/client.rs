//! Talking to the daemon, or being it for one command.

use blockstore::{Pool, PoolOptions, RecoveryReport};
use nbd_server::{control, open_pool, while_in_use, PoolLock};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Why a command failed.
pub struct Failure {
    kind: String,
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

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new("io", error.to_string())
    }
}

/// The daemon of the pool in `folder`, if one listens.
pub fn connect(folder: &Path) -> Result<Option<UnixStream>, Failure> {
    let path = folder.join("control.sock");
    match UnixStream::connect(&path) {
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
pub fn gone() -> Failure {
    Failure::new("io", "the daemon closed the connection before it answered: it was stopped, or see its log")
}

/// A line of the control socket as an answer or a failure.
pub fn answer(line: &str) -> Result<Value, Failure> {
    let answer: Value = serde_json::from_str(line).map_err(io::Error::from)?;
    Failure::of(&answer).map_or(Ok(answer), Err)
}

/// Sends one command and reads its answer.
pub fn ask(stream: &mut UnixStream, request: &Value) -> Result<Value, Failure> {
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line)? == 0 {
        return Err(gone());
    }
    answer(&line)
}

/// What carries out a command.
pub enum Reached {
    /// The daemon of the pool.
    Daemon(UnixStream),
    /// This process: it holds the pool.
    Own(Box<(PoolLock, Pool, RecoveryReport)>),
}

/// Finds the daemon of the pool in `folder`, or opens the pool; `create` makes the pool if need be. A daemon
/// that is about to answer is waited for.
pub fn reach(folder: &Path, create: bool) -> Result<Reached, Failure> {
    let is_busy = |failure: &Failure| failure.kind == "busy";
    while_in_use(is_busy, || {
        if let Some(stream) = connect(folder)? {
            return Ok(Reached::Daemon(stream));
        }
        Ok(Reached::Own(Box::new(open_pool(folder, create, PoolOptions::default())?)))
    })
}

/// Carries out one command, by the daemon or on the pool itself.
pub fn carry_out(folder: &Path, request: &Value) -> Result<Value, Failure> {
    let create = request.get("op").and_then(Value::as_str) == Some("volume.create");
    let (_lock, mut pool, report) = match reach(folder, create)? {
        Reached::Daemon(mut stream) => return ask(&mut stream, request),
        Reached::Own(own) => *own,
    };
    report.dropped.iter().for_each(|why| eprintln!("cairn: recovery dropped {why}"));
    let outcome = control::handle(&mut pool, request)?;
    if let Some(job) = outcome.job {
        pool.finish(job)?;
    }
    Ok(outcome.answer)
}
