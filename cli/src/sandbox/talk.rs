//! A command in a sandbox, with our standard input, output and error, or a terminal, at its ends.
//!
//! Invariants
//!   * every byte of output is written, in order, before the status is told; what cannot be written is not read;
//!   * input is read when what was read before is sent: little is held, and whoever feeds us feels the command's pace;
//!   * whatever the end, the caller hears of it here: nothing exits beneath a terminal in raw mode.

use super::fds::{read, wait, Outlet, Signals};
use super::socket::{Heard, Socket};
use serde_json::{json, Value};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;
use tungstenite::{Bytes, Message};
use vmm_glue::Terminal;

/// Kinds of frames.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;
const STDIN_END: u8 = 4;
/// The key that leaves a session: Ctrl-\.
const LEAVE: u8 = 0x1c;
/// What ends the input of a terminal: Ctrl-D.
const TERMINAL_END: u8 = 4;
/// Bytes of input in one message.
const INPUT: usize = 32 << 10;
/// Between two looks whether the server is there.
const LOOK: Duration = Duration::from_secs(5);
/// How often somebody asks a command to end before it is left alone.
const ASKED: u32 = 3;
/// How long the server may take to say what runs.
const BEGIN: Duration = Duration::from_secs(60);

/// How it went.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The command ended with this status.
    Exited(u8),
    /// It goes on without us.
    Left,
    /// Nobody reads its output any more.
    Unread,
    /// We were told to end.
    Told(i32),
}

/// What runs.
pub struct Running {
    pub id: String,
    pub tty: bool,
}

/// Where input comes from, and output goes.
pub struct Ends {
    pub stdin: Option<RawFd>,
    pub stdout: RawFd,
    pub stderr: RawFd,
}

impl Ends {
    /// This process's own.
    pub fn own() -> Self {
        Self { stdin: Some(0), stdout: 1, stderr: 2 }
    }
}

/// A command whose server was asked for it.
pub struct Talk {
    socket: Socket,
    /// Output that came before we were told what runs.
    early: VecDeque<Bytes>,
    pub running: Running,
}

/// What becomes of a message.
enum Step {
    On,
    End(u8),
}

impl Talk {
    /// Waits until the server says what runs.
    pub fn begin(mut socket: Socket) -> io::Result<Self> {
        let mut early = VecDeque::new();
        loop {
            let said = socket.text(BEGIN, &mut |bytes| early.push_back(bytes))?;
            let said = said.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "nothing was begun"))?;
            if said["type"] == "session_info" {
                let id = said["session_id"].as_str().unwrap_or_default().to_owned();
                return Ok(Self { socket, early, running: Running { id, tty: said["tty"] == true } });
            }
        }
    }

    /// Carries bytes to and fro until an end. With `keys`, Ctrl-\ leaves.
    pub fn run(mut self, ends: &Ends, signals: &Signals, keys: bool) -> io::Result<End> {
        let end = self.carry(ends, signals, keys)?;
        self.socket.close();
        Ok(end)
    }

    fn carry(&mut self, ends: &Ends, signals: &Signals, keys: bool) -> io::Result<End> {
        let (mut out, mut err) = (Outlet::new(ends.stdout), Outlet::new(ends.stderr));
        let (mut stdin, mut buffer, mut asked) = (ends.stdin, vec![0; INPUT], 0);
        let mut status = None;
        if self.running.tty {
            self.resize()?;
        }
        loop {
            // What has been read already is not waited for.
            while status.is_none() && out.is_clear() && err.is_clear() {
                let heard = self.early.pop_front().map(|bytes| Ok(Heard::Bytes(bytes)));
                match heard.unwrap_or_else(|| self.socket.next())? {
                    Heard::Nothing => break,
                    Heard::End => {
                        return Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            "the connection ended before the command did",
                        ));
                    }
                    Heard::Text(said) => status = exit_of(&said),
                    Heard::Bytes(bytes) => match self.took(bytes, &mut out, &mut err) {
                        Step::On => {}
                        Step::End(code) => status = Some(code),
                    },
                }
            }
            let listen = out.is_clear() && err.is_clear();
            if let (true, Some(code)) = (listen, status) {
                return Ok(End::Exited(code));
            }
            let source = stdin.filter(|_| status.is_none() && self.socket.is_clear());
            let source = source.map(|fd| (fd, libc::POLLIN));
            let socket = self.socket.wanted(listen);
            let wanted = [socket, source, out.wanted(), err.wanted(), signals.wanted()];
            let [_, input, more_out, more_err, signal] = wait(wanted, Some(LOOK))?;
            self.socket.go()?;
            self.socket.look(listen)?;
            for (outlet, can) in [(&mut out, more_out), (&mut err, more_err)] {
                match if can { outlet.go() } else { Ok(()) } {
                    Ok(()) => {}
                    Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                        // As a pipe would tell it, if the command ran here.
                        self.socket.say(&json!({"type": "signal", "signal": "PIPE"}))?;
                        return Ok(End::Unread);
                    }
                    Err(e) => return Err(e),
                }
            }
            if let Some(fd) = stdin.filter(|_| input) {
                match read(fd, &mut buffer).unwrap_or(Some(0)) {
                    None => {}
                    Some(0) => {
                        stdin = None;
                        self.end_input()?;
                    }
                    Some(got) => {
                        let bytes = buffer.get(..got).unwrap_or_default();
                        if let Some(at) = bytes.iter().position(|byte| keys && self.running.tty && *byte == LEAVE) {
                            self.input(bytes.get(..at).unwrap_or_default())?;
                            return Ok(End::Left);
                        }
                        self.input(bytes)?;
                    }
                }
            }
            while let Some(number) = signal.then(|| signals.next()).flatten() {
                match number {
                    libc::SIGWINCH if self.running.tty => self.resize()?,
                    libc::SIGWINCH => {}
                    libc::SIGQUIT if keys => return Ok(End::Left),
                    // A terminal's keys come as bytes: what comes as a signal is meant for us.
                    number if self.running.tty => return Ok(End::Told(number)),
                    number => {
                        asked += 1;
                        if asked > ASKED {
                            return Ok(End::Told(number));
                        }
                        self.socket.say(&json!({"type": "signal", "signal": name(number)}))?;
                    }
                }
            }
        }
    }

    /// A message of bytes.
    fn took(&self, bytes: Bytes, out: &mut Outlet, err: &mut Outlet) -> Step {
        if self.running.tty {
            out.put(bytes);
            return Step::On;
        }
        match bytes.first() {
            Some(&STDOUT) => out.put(bytes.slice(1..)),
            Some(&STDERR) => err.put(bytes.slice(1..)),
            Some(&EXIT) => return Step::End(bytes.get(1).copied().unwrap_or(0)),
            _ => {}
        }
        Step::On
    }

    fn input(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let message = if self.running.tty { bytes.to_vec() } else { [&[STDIN], bytes].concat() };
        self.socket.send(Message::binary(message))
    }

    fn end_input(&mut self) -> io::Result<()> {
        let message = if self.running.tty { TERMINAL_END } else { STDIN_END };
        self.socket.send(Message::binary(vec![message]))
    }

    fn resize(&mut self) -> io::Result<()> {
        let size = Terminal::size();
        self.socket.say(&json!({"type": "resize", "rows": size.rows, "cols": size.columns}))
    }
}

/// The status, if that is what a text tells.
fn exit_of(said: &Value) -> Option<u8> {
    (said["type"] == "exit").then(|| said["exit_code"].as_u64().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn name(signal: i32) -> &'static str {
    match signal {
        libc::SIGINT => "INT",
        libc::SIGHUP => "HUP",
        libc::SIGQUIT => "QUIT",
        _ => "TERM",
    }
}
