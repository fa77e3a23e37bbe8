//! The host's side of the agent: one connection for each command, over one of the machine's ports.
//!
//! Invariants
//!   * every byte from the guest is hostile: lengths are bounded, kinds checked, and waiting has a deadline unless it is
//!     for a command that a person may end;
//!   * a port has one user at a time: a lock beside its socket says so;
//!   * no more standard input is sent than the agent has credited.

use crate::files::{connect, Lock};
use crate::{Error, Kind, Result, Terminal};
use sandbox_protocol::{Decoder, Exec, Hello, Reply, Request, Side, OUTPUT_MAX, STDIN_WINDOW};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// After so long a silence a hello is sent again: an agent may have waited for the rest of something else.
const HELLO_AGAIN: Duration = Duration::from_secs(5);
/// How long a port that others use is waited for.
const PORT_WAIT: Duration = Duration::from_secs(5);
/// How long the reason for a connection's end is waited for.
const WHY: Duration = Duration::from_secs(2);
/// Bytes of one read.
const READ: usize = 16 << 10;
/// Time between two looks at the terminal's size.
const LOOK: Duration = Duration::from_millis(250);

/// The socket of a port, in the machine's folder.
pub(crate) fn socket(port: usize) -> String {
    format!("agent{port}.sock")
}

/// How a command in the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    /// With this status.
    Exited(u8),
    /// By this signal.
    Signalled(u8),
    /// It could not be started: the guest's number for the reason.
    NotStarted(u32),
}

/// A command that was begun in a guest, for a caller that goes on with its frames itself.
pub struct Begun {
    /// Where its frames come from and go to.
    pub stream: UnixStream,
    /// What has come of them.
    pub decoder: Decoder,
    /// The port is its own while this lives.
    pub port: Port,
}

impl Begun {
    /// A command over a connection that is nobody else's.
    pub fn over(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::default(), port: Port { _lock: None } }
    }
}

/// A port that nobody else uses.
pub struct Port {
    _lock: Option<Lock>,
}

/// A connection to a guest's agent.
pub struct Agent {
    stream: UnixStream,
    decoder: Decoder,
    _port: Option<Lock>,
}

fn broken(e: impl std::fmt::Display) -> Error {
    Error::failed(format!("the guest's agent does not speak as it should: {e}"))
}

fn ended() -> Error {
    Error::failed("the connection to the guest's agent ended")
}

/// A connection that ends does so a moment before it is known why.
fn why_ended(alive: &mut dyn FnMut() -> Result<()>) -> Error {
    let begin = Instant::now();
    while begin.elapsed() < WHY {
        if let Err(why) = alive() {
            return why;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    ended()
}

fn nonce() -> Result<[u8; 16]> {
    let mut nonce = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(nonce)
}

impl Agent {
    /// The port for short requests; it is waited for until `deadline`, and `alive` is asked now and then whether that
    /// is of use.
    ///
    /// # Errors
    /// No agent answers, or `alive` says why none will.
    pub fn control(folder: &Path, deadline: Instant, alive: &mut dyn FnMut() -> Result<()>) -> Result<Self> {
        let lock = Lock::take(&folder.join("agent0.lock"), PORT_WAIT)?;
        let lock = lock.ok_or_else(|| Error::new(Kind::Busy, "another command talks to the guest: try again"))?;
        let stream = connect(folder, &socket(0)).map_err(|_| not_running())?;
        Self::greet(stream, Some(lock), deadline, alive)
    }

    /// A port for a command.
    ///
    /// # Errors
    /// All are in use, or no agent answers within `wait`.
    pub fn session(folder: &Path, wait: Duration) -> Result<Self> {
        for port in 1..crate::qemu::PORTS {
            let Some(lock) = Lock::take(&folder.join(format!("agent{port}.lock")), Duration::ZERO)? else { continue };
            let stream = connect(folder, &socket(port)).map_err(|_| not_running())?;
            return Self::greet(stream, Some(lock), Instant::now() + wait, &mut || Ok(()));
        }
        let text = format!("{} commands run in the guest already: end one of them", crate::qemu::PORTS - 1);
        Err(Error::new(Kind::Busy, text))
    }

    /// Begins on a connection.
    ///
    /// # Errors
    /// As [`Agent::control`].
    pub(crate) fn greet(
        stream: UnixStream,
        port: Option<Lock>,
        deadline: Instant,
        alive: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        let (mut bytes, mut buffer) = (Vec::new(), [0; READ]);
        let (mut nonce, mut sent_at) = (nonce()?, None::<Instant>);
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
        loop {
            if sent_at.is_none_or(|at| at.elapsed() > HELLO_AGAIN) {
                nonce = self::nonce()?;
                // A guest that does not read cannot be told.
                match (&stream).write_all(&Hello::new(Side::Host, nonce).encode()) {
                    Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(ended()),
                    _ => sent_at = Some(Instant::now()),
                }
            }
            match (&stream).read(&mut buffer) {
                Ok(0) => return Err(why_ended(alive)),
                Ok(n) => bytes.extend(buffer.get(..n).unwrap_or_default()),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => alive()?,
                Err(_) => return Err(why_ended(alive)),
            }
            loop {
                let (found, used) = Hello::find(&bytes, Side::Agent).map_err(broken)?;
                bytes.drain(..used);
                let Some(hello) = found else { break };
                if hello.nonce == nonce {
                    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
                    let mut decoder = Decoder::default();
                    decoder.push(&bytes);
                    return Ok(Self { stream, decoder, _port: port });
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::failed("the guest's agent does not answer"));
            }
        }
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
        self.stream.write_all(&bytes).map_err(|_| ended())
    }

    fn buffered(&mut self) -> Result<Option<Reply>> {
        let Some((kind, payload)) = self.decoder.frame().map_err(broken)? else { return Ok(None) };
        Reply::decode(kind, payload).map(Some).map_err(broken)
    }

    fn reply(&mut self, deadline: Instant) -> Result<Reply> {
        let mut buffer = [0; READ];
        loop {
            if let Some(reply) = self.buffered()? {
                return Ok(reply);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::failed("the guest's agent does not answer in time"));
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ended()),
                Ok(n) => self.decoder.push(buffer.get(..n).unwrap_or_default()),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => return Err(ended()),
            }
        }
    }

    fn done(&mut self, request: &Request, wait: Duration) -> Result<()> {
        self.send(request)?;
        match self.reply(Instant::now() + wait)? {
            Reply::Done => Ok(()),
            Reply::Failed { message, .. } => Err(Error::failed(format!("the guest: {}", printable(&message)))),
            _ => Err(broken("it answered something else than it was asked")),
        }
    }

    /// Freezes the guest's file systems, for no longer than `deadline`; returns how many and how long it took.
    ///
    /// # Errors
    /// They are not frozen within `deadline`.
    pub fn freeze(&mut self, deadline: Duration) -> Result<(u16, Duration)> {
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        self.send(&Request::Freeze { deadline_ms })?;
        match self.reply(Instant::now() + deadline)? {
            Reply::Frozen { file_systems, took_us } => Ok((file_systems, Duration::from_micros(took_us))),
            Reply::Failed { message, .. } => Err(Error::failed(format!("the guest: {}", printable(&message)))),
            _ => Err(broken("it answered something else than it was asked")),
        }
    }

    /// Thaws what was frozen.
    ///
    /// # Errors
    /// It was thawed before, or the guest does not answer.
    pub fn thaw(&mut self) -> Result<()> {
        self.done(&Request::Thaw, Duration::from_secs(10))
    }

    /// Gives the guest the time and fresh entropy.
    ///
    /// # Errors
    /// The guest does not take them.
    pub fn wake(&mut self) -> Result<()> {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut entropy = nonce()?.to_vec();
        entropy.extend(nonce()?);
        self.done(&Request::Wake { unix_us: since.as_micros() as u64, entropy }, Duration::from_secs(10))
    }

    /// Has the guest write everything back.
    ///
    /// # Errors
    /// It does not within `wait`.
    pub fn sync(&mut self, wait: Duration) -> Result<()> {
        self.done(&Request::Sync, wait)
    }

    /// Asks the guest to turn itself off.
    ///
    /// # Errors
    /// It does not hear.
    pub fn power_off(&mut self) -> Result<()> {
        self.done(&Request::PowerOff, Duration::from_secs(5))
    }

    /// Begins a command, and leaves the rest to the caller: its standard input comes as far as it is credited.
    ///
    /// # Errors
    /// The guest ended, or the command is too long.
    pub fn begin(mut self, exec: Exec) -> Result<Begun> {
        // A guest that is being checkpointed takes nothing for a while.
        self.stream.set_write_timeout(None)?;
        self.stream.set_read_timeout(None)?;
        self.send(&Request::Exec(exec))?;
        Ok(Begun { stream: self.stream, decoder: self.decoder, port: Port { _lock: self._port } })
    }

    /// Runs a command: standard input from `input` (a descriptor, or nothing), output to the two writers.
    ///
    /// # Errors
    /// The guest ended, or does not speak as it should; or one of ours cannot be read or written.
    pub fn exec(
        mut self,
        exec: Exec,
        input: Option<RawFd>,
        out: &mut dyn Write,
        err: &mut dyn Write,
    ) -> Result<ExecEnd> {
        let has_tty = exec.tty.is_some();
        let (mut window, mut room) = (exec.tty, STDIN_WINDOW);
        // A guest that is being checkpointed takes nothing for a while.
        self.stream.set_write_timeout(None)?;
        self.send(&Request::Exec(exec))?;
        let mut input = input;
        if input.is_none() {
            self.send(&Request::StdinEnd)?;
        }
        let mut buffer = [0; READ];
        loop {
            while let Some(reply) = self.buffered()? {
                match reply {
                    Reply::Started { .. } | Reply::Done => {}
                    Reply::Stdout(bytes) => out.write_all(&bytes).and_then(|()| out.flush())?,
                    Reply::Stderr(bytes) => err.write_all(&bytes).and_then(|()| err.flush())?,
                    Reply::Credit(taken) => room = room.saturating_add(taken as usize).min(STDIN_WINDOW),
                    Reply::Exited { code, signal: 0 } => return Ok(ExecEnd::Exited(code)),
                    Reply::Exited { signal, .. } => return Ok(ExecEnd::Signalled(signal)),
                    Reply::Failed { errno, message } => {
                        writeln!(err, "cairn: the guest: {}", printable(&message))?;
                        return Ok(ExecEnd::NotStarted(errno));
                    }
                    Reply::Frozen { .. } => return Err(broken("it answered something else than it was asked")),
                }
            }
            let wanted = input.filter(|_| room > 0);
            let (readable, has_input) = wait_for(self.stream.as_raw_fd(), wanted, has_tty.then_some(LOOK))?;
            if has_tty && window != Some(Terminal::size()) {
                let now = Terminal::size();
                window = Some(now);
                self.send(&Request::Resize(now))?;
            }
            if let Some(fd) = wanted.filter(|_| has_input) {
                let max = room.min(OUTPUT_MAX).min(buffer.len());
                match read(fd, buffer.get_mut(..max).unwrap_or_default())? {
                    0 => {
                        input = None;
                        self.send(&Request::StdinEnd)?;
                    }
                    n => {
                        room = room.saturating_sub(n);
                        self.send(&Request::Stdin(buffer.get(..n).unwrap_or_default().to_vec()))?;
                    }
                }
            }
            if readable {
                match self.stream.read(&mut buffer) {
                    Ok(0) => return Err(Error::failed("the guest ended while the command ran in it")),
                    Ok(n) => self.decoder.push(buffer.get(..n).unwrap_or_default()),
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                    Err(_) => return Err(Error::failed("the guest ended while the command ran in it")),
                }
            }
        }
    }
}

/// The same command as another user of the guest, in that user's home unless it says where. An agent from an image that has
/// users knows how.
pub fn run_as(exec: Exec, user: &str) -> Exec {
    let words = [b"cairn-agent".to_vec(), b"as".to_vec(), user.as_bytes().to_vec(), exec.cwd];
    Exec { argv: words.into_iter().chain(exec.argv).collect(), cwd: Vec::new(), ..exec }
}

fn not_running() -> Error {
    Error::new(Kind::Invalid, "the machine does not run: start it with cairn vm run NAME")
}

/// What a guest says, so that a terminal can show it.
fn printable(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn wait_for(socket: RawFd, input: Option<RawFd>, timeout: Option<Duration>) -> io::Result<(bool, bool)> {
    let entry = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // A negative descriptor is passed over.
    let mut fds = [entry(socket), entry(input.unwrap_or(-1))];
    let ms = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: the array lives through the call, which writes within it.
    let result = unsafe { libc::poll(fds.as_mut_ptr(), 2, ms) };
    match io::Error::last_os_error() {
        e if result < 0 && e.kind() != io::ErrorKind::Interrupted => Err(e),
        _ if result < 0 => Ok((false, false)),
        _ => Ok((fds[0].revents != 0, fds[1].revents != 0)),
    }
}

fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer lives through the call, which writes within it.
    let n = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    match usize::try_from(n) {
        Ok(n) => Ok(n),
        // A terminal that is gone ends, too.
        Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::EIO) => Ok(0),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// An agent that answers a hello with its number and then says `bytes`.
    fn guest(bytes: Vec<u8>) -> (UnixStream, thread::JoinHandle<()>) {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let thread = thread::spawn(move || {
            let mut hello = [0; sandbox_protocol::HELLO_LEN];
            theirs.read_exact(&mut hello).expect("a hello");
            let (hello, _) = Hello::find(&hello, Side::Host).expect("ours");
            let answer = Hello::new(Side::Agent, hello.expect("a hello").nonce).encode();
            // An old connection's rest comes first.
            let _ = theirs.write_all(b"old rest");
            let _ = theirs.write_all(&Hello::new(Side::Agent, [0; 16]).encode());
            let _ = theirs.write_all(&answer);
            let _ = theirs.write_all(&bytes);
            let _ = theirs.shutdown(std::net::Shutdown::Write);
            let _ = theirs.read_to_end(&mut Vec::new());
        });
        (ours, thread)
    }

    fn talk(bytes: Vec<u8>) -> Agent {
        let deadline = Instant::now() + Duration::from_secs(10);
        Agent::greet(guest(bytes).0, None, deadline, &mut || Ok(())).expect("greeted")
    }

    fn frames(replies: &[Reply]) -> Vec<u8> {
        let mut out = Vec::new();
        replies.iter().for_each(|reply| reply.encode(&mut out).expect("it fits"));
        out
    }

    #[test]
    fn a_command_runs_to_its_end() {
        let replies = [
            Reply::Started { pid: 1 },
            Reply::Stdout(b"out".to_vec()),
            Reply::Stderr(b"err".to_vec()),
            Reply::Exited { code: 3, signal: 0 },
        ];
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let end = talk(frames(&replies)).exec(Exec::default(), None, &mut out, &mut err).expect("ended");
        assert_eq!((end, out.as_slice(), err.as_slice()), (ExecEnd::Exited(3), &b"out"[..], &b"err"[..]));
    }

    #[test]
    fn a_hostile_agent_gets_an_error_and_neither_memory_nor_time() {
        let endless = [&[0xff; 4][..], &[2], &[0; 100]].concat();
        let cut = [&[100, 0, 0, 0, 2][..], b"short"].concat();
        for bytes in [endless, cut, vec![0, 0, 0, 0, 99], frames(&[Reply::Frozen { file_systems: 1, took_us: 1 }])] {
            let outcome = talk(bytes.clone()).exec(Exec::default(), None, &mut io::sink(), &mut io::sink());
            assert!(outcome.is_err(), "{bytes:?}");
        }
        assert!(talk(frames(&[Reply::Done])).freeze(Duration::from_secs(5)).is_err(), "an answer to something else");
        assert!(talk(Vec::new()).thaw().is_err(), "an end");
    }

    #[test]
    fn an_agent_that_does_not_answer_is_given_up() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let refused = Agent::greet(ours, None, Instant::now(), &mut || Ok(())).err().expect("silence");
        assert!(refused.message.contains("does not answer"));
    }

    #[test]
    fn what_a_guest_says_cannot_move_the_cursor() {
        let failed = Reply::Failed { errno: 2, message: "\x1b[2Jx".to_owned() };
        let mut err = Vec::new();
        let end = talk(frames(&[failed])).exec(Exec::default(), None, &mut io::sink(), &mut err).expect("ended");
        assert_eq!(end, ExecEnd::NotStarted(2));
        assert!(!err.contains(&0x1b));
    }
}
