//! One connection: a hello, then requests until the host goes.
//!
//! Invariants
//!   * `out` holds at most [`OUT_MAX`] and one frame: while it is fuller nothing is read from the command;
//!   * `input` holds at most the protocol's window of standard input;
//!   * a frame that does not go on is given up: its host is gone, and the next one begins with a hello.

use crate::child::{read_some, Running};
use crate::freeze::Frozen;
use crate::sys::{is_later, poll, set_nonblocking, wait_for};
use crate::system;
use sandbox_protocol::{Decoder, Exec, Hello, Reply, Request, Side, OUTPUT_MAX, STDIN_WINDOW};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Bytes that wait for the host.
const OUT_MAX: usize = 128 << 10;
/// How long the rest of a frame may take.
const FRAME_WAIT: Duration = Duration::from_secs(2);

/// What became of reading or writing.
#[derive(PartialEq, Eq)]
enum Flow {
    GoesOn,
    HungUp,
}

struct Session<'a, P> {
    port: &'a mut P,
    decoder: Decoder,
    /// When a frame that is not complete began.
    partial_since: Option<Instant>,
    out: Vec<u8>,
    running: Option<Running>,
    /// Standard input that the command has not taken.
    input: Vec<u8>,
    input_ends: bool,
    frozen: Option<Frozen>,
}

/// Serves one host on `port` until it goes. `port` does not wait, or is made so.
///
/// # Errors
/// The port cannot be used.
pub fn serve<P>(port: &mut P) -> io::Result<()>
where
    P: Read + Write + AsRawFd,
{
    set_nonblocking(port)?;
    let mut session = Session {
        port,
        decoder: Decoder::default(),
        partial_since: None,
        out: Vec::new(),
        running: None,
        input: Vec::new(),
        input_ends: false,
        frozen: None,
    };
    loop {
        let rest = std::mem::take(&mut session.decoder).into_rest();
        let Some(rest) = session.greet(rest)? else { return Ok(()) };
        session.partial_since = None;
        session.decoder.push(&rest);
        if session.requests()? == Flow::HungUp {
            return Ok(());
        }
        // What came was no request: whoever sent it is gone. What it had goes with it.
        session.running = None;
        session.frozen = None;
        session.input.clear();
        session.input_ends = false;
        session.out.clear();
    }
}

impl<P: Read + Write + AsRawFd> Session<'_, P> {
    /// Waits for a hello, which may be in `bytes`, and answers it; what follows it is returned, or `None` when the host is gone.
    fn greet(&mut self, mut bytes: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = [0; 4096];
        loop {
            let (found, used) = Hello::find(&bytes, Side::Host).unwrap_or((None, bytes.len()));
            bytes.drain(..used);
            if let Some(hello) = found {
                self.out.extend(Hello::new(Side::Agent, hello.nonce).encode());
                return Ok(Some(bytes));
            }
            match self.port.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => bytes.extend(buffer.get(..n).unwrap_or_default()),
                Err(e) if is_later(&e) => {
                    let mut fds = [wait_for(self.port.as_raw_fd(), libc::POLLIN)];
                    poll(&mut fds, None)?;
                }
                Err(e) if is_hang_up(&e) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    fn reply(&mut self, reply: &Reply) {
        // Every reply of ours fits; a message that does not is cut where it is made.
        let _ = reply.encode(&mut self.out);
    }

    fn fail(&mut self, what: &str, e: &io::Error) {
        let errno = e.raw_os_error().unwrap_or(0) as u32;
        self.reply(&Reply::Failed { errno, message: format!("{what}: {e}") });
    }

    /// Carries out requests until the host hangs up, or sends what is none.
    fn requests(&mut self) -> io::Result<Flow> {
        loop {
            loop {
                match self.decoder.frame() {
                    Ok(Some((kind, payload))) => match Request::decode(kind, payload) {
                        Ok(request) => self.carry_out(request),
                        Err(_) => return Ok(Flow::GoesOn),
                    },
                    Ok(None) => break,
                    Err(_) => return Ok(Flow::GoesOn),
                }
            }
            let now = Instant::now();
            self.partial_since = self.decoder.is_within_frame().then(|| self.partial_since.unwrap_or(now));
            if self.partial_since.is_some_and(|since| now.duration_since(since) > FRAME_WAIT) {
                return Ok(Flow::GoesOn);
            }
            if self.frozen.as_ref().is_some_and(|frozen| now >= frozen.until) {
                self.frozen = None;
            }
            self.write_input();
            if self.write_out()? == Flow::HungUp {
                return Ok(Flow::HungUp);
            }
            if self.turn()? == Flow::HungUp {
                return Ok(Flow::HungUp);
            }
        }
    }

    /// Waits until something can be done, and reads what has come.
    fn turn(&mut self) -> io::Result<Flow> {
        let has_room = self.out.len() < OUT_MAX;
        let port = libc::POLLIN | if self.out.is_empty() { 0 } else { libc::POLLOUT };
        let mut fds = vec![wait_for(self.port.as_raw_fd(), port)];
        if let Some(running) = &self.running {
            if has_room {
                let outputs = [&running.stdout, &running.stderr].into_iter().flatten();
                fds.extend(outputs.map(|file| wait_for(file.as_raw_fd(), libc::POLLIN)));
                fds.push(wait_for(running.ended.as_raw_fd(), libc::POLLIN));
            }
            if let Some(stdin) = running.stdin.as_ref().filter(|_| !self.input.is_empty()) {
                fds.push(wait_for(stdin.as_raw_fd(), libc::POLLOUT));
            }
        }
        poll(&mut fds, self.timeout())?;
        if has_room {
            self.read_output();
        }
        let mut buffer = [0; 16 << 10];
        match self.port.read(&mut buffer) {
            Ok(0) => return Ok(Flow::HungUp),
            Ok(n) => self.decoder.push(buffer.get(..n).unwrap_or_default()),
            Err(e) if is_later(&e) => {}
            Err(e) if is_hang_up(&e) => return Ok(Flow::HungUp),
            Err(e) => return Err(e),
        }
        Ok(Flow::GoesOn)
    }

    fn timeout(&self) -> Option<Duration> {
        let frame = self.partial_since.map(|since| FRAME_WAIT.saturating_sub(since.elapsed()));
        let thaw = self.frozen.as_ref().map(|frozen| frozen.until.saturating_duration_since(Instant::now()));
        frame.into_iter().chain(thaw).min()
    }

    /// Reads what the command has written, and then whether it has ended.
    fn read_output(&mut self) {
        let Some(running) = &mut self.running else { return };
        // Before its output is read: what it wrote before its end is read for certain then.
        let mut fds = [wait_for(running.ended.as_raw_fd(), libc::POLLIN)];
        let has_ended = poll(&mut fds, Some(Duration::ZERO)).is_ok() && fds[0].revents != 0;
        let mut buffer = [0; OUTPUT_MAX];
        let mut is_idle = true;
        for is_error in [false, true] {
            let file = if is_error { &mut running.stderr } else { &mut running.stdout };
            let Some(open) = file else { continue };
            match read_some(open, &mut buffer) {
                None => *file = None,
                Some(0) => {}
                Some(n) => {
                    is_idle = false;
                    let bytes = buffer.get(..n).unwrap_or_default().to_vec();
                    let reply = if is_error { Reply::Stderr(bytes) } else { Reply::Stdout(bytes) };
                    let _ = reply.encode(&mut self.out);
                }
            }
        }
        // What it started may go on and hold its pipes: that is no reason to wait.
        if has_ended && is_idle {
            if let Some(mut running) = self.running.take() {
                let (code, signal) = running.status().unwrap_or((255, 0));
                self.reply(&Reply::Exited { code, signal });
            }
            self.input.clear();
            self.input_ends = false;
        }
    }

    fn write_out(&mut self) -> io::Result<Flow> {
        let mut sent = 0;
        let outcome = loop {
            let rest = self.out.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(Flow::GoesOn);
            }
            match self.port.write(rest) {
                Ok(0) => break Ok(Flow::HungUp),
                Ok(n) => sent += n,
                Err(e) if is_later(&e) => break Ok(Flow::GoesOn),
                Err(e) if is_hang_up(&e) => break Ok(Flow::HungUp),
                Err(e) => break Err(e),
            }
        };
        self.out.drain(..sent);
        outcome
    }

    fn write_input(&mut self) {
        let Some(running) = &mut self.running else { return };
        let mut taken = 0;
        while let Some(stdin) = running.stdin.as_mut().filter(|_| taken < self.input.len()) {
            match stdin.write(self.input.get(taken..).unwrap_or_default()) {
                Ok(n) => taken += n,
                Err(e) if is_later(&e) => break,
                // It does not read any more.
                Err(_) => running.stdin = None,
            }
        }
        if running.stdin.is_none() {
            taken = self.input.len();
        }
        self.input.drain(..taken);
        if self.input_ends && self.input.is_empty() && !running.has_terminal() {
            running.stdin = None;
        }
        if taken > 0 {
            self.reply(&Reply::Credit(taken as u32));
        }
    }

    fn carry_out(&mut self, request: Request) {
        match request {
            Request::Exec(exec) => self.start(&exec),
            Request::Stdin(bytes) => {
                let room = STDIN_WINDOW.saturating_sub(self.input.len());
                self.input.extend(bytes.get(..room.min(bytes.len())).unwrap_or_default());
            }
            Request::StdinEnd => {
                self.input_ends = true;
                // A terminal's input ends by its end-of-file character.
                if self.running.as_ref().is_some_and(Running::has_terminal) && self.input.len() < STDIN_WINDOW {
                    self.input.push(4);
                }
            }
            Request::Signal(signal) => {
                // It may have ended by itself.
                let _ = self.running.as_ref().map(|running| running.signal(signal));
            }
            Request::Resize(window) => {
                let _ = self.running.as_ref().map(|running| running.resize(window));
            }
            Request::Freeze { deadline_ms } => self.freeze(Duration::from_millis(deadline_ms.into())),
            Request::Thaw => match self.frozen.take() {
                Some(frozen) => {
                    drop(frozen);
                    self.reply(&Reply::Done);
                }
                None => {
                    let message = "nothing is frozen any more: the deadline had passed".to_owned();
                    self.reply(&Reply::Failed { errno: 0, message });
                }
            },
            Request::Wake { unix_us, entropy } => match system::wake(unix_us, &entropy) {
                Ok(()) => self.reply(&Reply::Done),
                Err(e) => self.fail("the clock", &e),
            },
            Request::Sync => {
                system::sync();
                self.reply(&Reply::Done);
            }
            Request::PowerOff => match system::power_off() {
                Ok(()) => self.reply(&Reply::Done),
                Err(e) => self.fail("poweroff", &e),
            },
        }
    }

    fn start(&mut self, exec: &Exec) {
        if self.running.is_some() {
            return self.reply(&Reply::Failed { errno: 16, message: "this connection has its command".to_owned() });
        }
        match Running::start(exec) {
            Ok(running) => {
                self.reply(&Reply::Started { pid: running.pid() });
                self.running = Some(running);
            }
            Err(e) => {
                let name = exec.argv.first().map(|word| String::from_utf8_lossy(word).into_owned());
                let name: String = name.unwrap_or_default().chars().take(200).collect();
                self.fail(&name, &e);
            }
        }
    }

    fn freeze(&mut self, deadline: Duration) {
        match Frozen::freeze(deadline) {
            Ok(frozen) => {
                let took_us = frozen.took.as_micros() as u64;
                self.reply(&Reply::Frozen { file_systems: frozen.count(), took_us });
                self.frozen = Some(frozen);
            }
            Err(e) => self.fail("freezing the file systems", &e),
        }
    }
}

/// The other side is gone.
fn is_hang_up(e: &io::Error) -> bool {
    let kinds = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    kinds.contains(&e.kind()) || e.raw_os_error() == Some(libc::EPIPE) || e.raw_os_error() == Some(libc::ENODEV)
}
