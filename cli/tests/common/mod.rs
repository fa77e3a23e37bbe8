//! The real `cairn` as a process: a pool of its own, a daemon that ends with the value, commands.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod history;
pub mod ledger;
#[path = "../../../nbd-server/tests/common/moto.rs"]
pub mod moto;
#[path = "../../../nbd-server/src/testing/slow_proxy.rs"]
pub mod slow_proxy;
pub mod tier;
#[path = "../../../nbd-server/tests/common/wire.rs"]
pub mod wire;

use serde_json::Value;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");

/// A folder with a pool, and what runs on it.
pub struct Pool {
    pub folder: tempfile::TempDir,
    pub daemon: Option<Child>,
    /// What commands and daemons find in their environment besides.
    pub environment: Vec<(&'static str, String)>,
}

/// Runs `script` as root of its own mounts; `$POOL` is the pool, `$CAIRN` the command. Not every
/// machine allows that, but every machine that runs these tests must: nothing is skipped.
pub fn in_own_mounts(pool: &Pool, script: &str) -> Command {
    std::fs::create_dir_all(pool.pool()).expect("a folder");
    let mut command = Command::new("unshare");
    let set = format!("set -e; {script}");
    command.args(["-rm", "sh", "-c", &set]).env("POOL", pool.pool()).env("CAIRN", CAIRN);
    command.env("CAIRN_POOL", pool.pool()).env("NBD", pool.path("nbd.sock")).stdin(Stdio::null());
    command
}

impl Pool {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), daemon: None, environment: Vec::new() }
    }

    /// A pool with a daemon and a volume `disk` of 64 MiB.
    pub fn serving() -> Self {
        let mut pool = Self::new();
        pool.json(&["volume", "create", "disk", "--size", "64M"]);
        pool.serve(&[]);
        pool
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn pool(&self) -> PathBuf {
        self.path("pool")
    }

    /// Starts a daemon and waits until it accepts.
    pub fn serve(&mut self, more: &[&str]) {
        let nbd = format!("unix:{}", self.path("nbd.sock").display());
        let mut command = self.command(&["serve", "--nbd", &nbd]);
        let log = std::fs::File::create(self.path("log")).expect("a log");
        command.args(more).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(command.spawn().expect("the daemon starts"));
        let begin = Instant::now();
        while UnixStream::connect(self.path("nbd.sock")).is_err() {
            let ended = self.daemon.as_mut().and_then(|d| d.try_wait().expect("a child"));
            assert!(ended.is_none(), "the daemon ended at once: {}", self.log());
            assert!(begin.elapsed() < Duration::from_secs(30), "the daemon does not accept");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> i32 {
        self.daemon.as_ref().expect("a daemon").id() as i32
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a plain system call; the process is a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Sends a signal and waits for the end.
    pub fn end(&mut self, signal: i32) -> ExitStatus {
        self.signal(signal);
        self.daemon.take().expect("a daemon").wait().expect("a child")
    }

    pub fn command(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(CAIRN);
        command.args(args).env("CAIRN_POOL", self.pool()).env_remove("CAIRN_LOG").stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn run(&self, args: &[impl AsRef<OsStr>]) -> Output {
        self.command(args).output().expect("cairn runs")
    }

    /// Runs a command that works; its answer.
    pub fn json(&self, args: &[&str]) -> Value {
        let out = self.run(&[&["--json"], args].concat());
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{args:?}: {said}");
        serde_json::from_slice(&out.stdout).expect("JSON")
    }

    /// Runs a command that fails; its code and what it says.
    pub fn fails(&self, args: &[impl AsRef<OsStr>]) -> (i32, String) {
        let out = self.run(args);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success(), "this should fail: {}", String::from_utf8_lossy(&out.stdout));
        assert!(!said.contains("panicked"), "{said}");
        (out.status.code().expect("an exit code"), said)
    }

    pub fn control(&self) -> Control {
        let stream = UnixStream::connect(self.pool().join("control.sock")).expect("the daemon listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit");
        Control(BufReader::new(stream))
    }

    /// An NBD session on `export`.
    pub fn nbd(&self, export: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.path("nbd.sock")).expect("the daemon accepts");
        limit(&stream);
        go(&mut stream, export);
        stream
    }

    pub fn volumes(&self) -> Vec<String> {
        let all = self.json(&["volume", "list"]);
        let names = all.as_array().expect("an array").iter().map(|v| v["name"].as_str().expect("a name").to_owned());
        names.collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// A connection to the control socket.
pub struct Control(pub BufReader<UnixStream>);

impl Control {
    pub fn send(&mut self, request: &str) {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).expect("the daemon listens");
    }

    pub fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("the daemon answers");
        serde_json::from_str(&line).unwrap_or(Value::Null)
    }

    pub fn ask(&mut self, request: &str) -> Value {
        self.send(request);
        self.line()
    }
}

fn limit(stream: &UnixStream) {
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit");
    stream.set_write_timeout(Some(Duration::from_secs(30))).expect("a time limit");
}

/// Waits until `done`; tells the daemon's log when that takes more than a minute.
pub fn until(pool: &Pool, what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}: {}", pool.log());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Negotiates `export` with simple replies.
pub fn go(stream: &mut UnixStream, export: &str) {
    wire::greet(stream).expect("a greeting");
    let replies = wire::ask(stream, 7, &wire::named(export, &[0, 0])).expect("replies");
    assert_eq!(replies.last().map(|r| r.0), Some(1), "{export} is opened");
}

/// Writes and waits for the reply.
pub fn write(stream: &mut UnixStream, offset: u64, data: &[u8]) {
    let mut bytes = wire::request(wire::WRITE, 0, 7, offset, data.len() as u32);
    bytes.extend(data);
    stream.write_all(&bytes).expect("the daemon listens");
    assert_eq!(wire::simple(stream, 7).expect("a reply"), 0);
}

pub fn flush(stream: &mut UnixStream) {
    stream.write_all(&wire::request(wire::FLUSH, 0, 8, 0, 0)).expect("the daemon listens");
    assert_eq!(wire::simple(stream, 8).expect("a reply"), 0);
}

pub fn read(stream: &mut UnixStream, offset: u64, len: usize) -> Vec<u8> {
    stream.write_all(&wire::request(wire::READ, 0, 9, offset, len as u32)).expect("the daemon listens");
    assert_eq!(wire::simple(stream, 9).expect("a reply"), 0);
    wire::take(stream, len).expect("the data")
}

/// Bytes that depend on `seed`, none of them runs of zeros.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Flips a bit of the stored block that begins with `start`.
pub fn damage(pool: &Path, start: &[u8]) {
    for entry in std::fs::read_dir(pool).expect("the pool").map(|e| e.expect("an entry").path()) {
        let bytes = std::fs::read(&entry).unwrap_or_default();
        let Some(at) = bytes.windows(start.len()).position(|window| window == start) else { continue };
        let file = std::fs::OpenOptions::new().write(true).open(&entry).expect("a segment");
        return file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("a flipped bit");
    }
    panic!("the block is nowhere in the pool");
}
