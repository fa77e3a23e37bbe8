//! The messages: what a host asks for, and what an agent answers.

use crate::fields::{put_bytes, Fields};
use crate::frame::put;
use crate::{ProtocolError, WORDS_MAX};

/// A terminal's size, characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// The program, looked for in the guest's PATH, and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// Variables beside, or instead of, the agent's own.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// The folder to begin in; the home folder if empty.
    pub cwd: Vec<u8>,
    /// A terminal of this size instead of pipes.
    pub tty: Option<Window>,
}

/// What a host asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Run a command: `Started` or `Failed`, output, then `Exited`.
    Exec(Exec),
    /// Bytes for its standard input, as far as they were credited.
    Stdin(Vec<u8>),
    /// Its standard input ends.
    StdinEnd,
    /// A signal for the command and what it started.
    Signal(u8),
    /// The terminal has another size.
    Resize(Window),
    /// Freeze all file systems, and thaw them by yourself after so many milliseconds: `Frozen` or `Failed`.
    Freeze {
        /// Milliseconds from the request on.
        deadline_ms: u32,
    },
    /// Thaw them: `Done`, or `Failed` if they were thawed before.
    Thaw,
    /// What a sleeper missed, the time since 1970 in microseconds and fresh entropy: `Done`.
    Wake {
        /// Microseconds since 1970.
        unix_us: u64,
        /// For the guest's random numbers.
        entropy: Vec<u8>,
    },
    /// Write everything back, then `Done`.
    Sync,
    /// Turn the guest off: `Done`, and then it goes.
    PowerOff,
}

/// What an agent answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The command runs.
    Started {
        /// Its number in the guest.
        pid: u32,
    },
    /// Bytes of its standard output, or of its terminal.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// So many bytes of standard input were taken.
    Credit(u32),
    /// It ended by itself with this status, or by a signal.
    Exited {
        /// The exit status; of no meaning with a signal.
        code: u8,
        /// The signal that ended it, or 0.
        signal: u8,
    },
    /// It is done.
    Done,
    /// It cannot be done.
    Failed {
        /// The system's number for the reason, or 0.
        errno: u32,
        /// The reason for a person.
        message: String,
    },
    /// The file systems are frozen.
    Frozen {
        /// How many.
        file_systems: u16,
        /// How long it took, microseconds.
        took_us: u64,
    },
}

fn words(fields: &mut Fields<'_>) -> Result<usize, ProtocolError> {
    let count = fields.u16()? as usize;
    if count > WORDS_MAX {
        return Err(ProtocolError("too many arguments or variables"));
    }
    Ok(count)
}

fn put_window(out: &mut Vec<u8>, window: Window) {
    out.extend(window.rows.to_le_bytes());
    out.extend(window.columns.to_le_bytes());
}

fn window(fields: &mut Fields<'_>) -> Result<Window, ProtocolError> {
    Ok(Window { rows: fields.u16()?, columns: fields.u16()? })
}

impl Exec {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend((self.argv.len() as u16).to_le_bytes());
        self.argv.iter().for_each(|word| put_bytes(out, word));
        out.extend((self.env.len() as u16).to_le_bytes());
        for (name, value) in &self.env {
            put_bytes(out, name);
            put_bytes(out, value);
        }
        put_bytes(out, &self.cwd);
        out.push(u8::from(self.tty.is_some()));
        put_window(out, self.tty.unwrap_or(Window { rows: 0, columns: 0 }));
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, ProtocolError> {
        let mut exec = Self::default();
        for _ in 0..words(fields)? {
            exec.argv.push(fields.bytes()?.to_vec());
        }
        for _ in 0..words(fields)? {
            exec.env.push((fields.bytes()?.to_vec(), fields.bytes()?.to_vec()));
        }
        exec.cwd = fields.bytes()?.to_vec();
        let has_tty = match fields.u8()? {
            0 => false,
            1 => true,
            _ => return Err(ProtocolError("neither with nor without a terminal")),
        };
        let window = window(fields)?;
        exec.tty = has_tty.then_some(window);
        Ok(exec)
    }
}

impl Request {
    /// Appends the request's frame.
    ///
    /// # Errors
    /// It does not fit into one.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        match self {
            Self::Exec(exec) if exec.argv.len() > WORDS_MAX || exec.env.len() > WORDS_MAX => {
                Err(ProtocolError("too many arguments or variables"))
            }
            Self::Exec(exec) => put(out, 1, |out| exec.put(out)),
            Self::Stdin(bytes) => put(out, 2, |out| out.extend(bytes)),
            Self::StdinEnd => put(out, 3, |_| {}),
            Self::Signal(signal) => put(out, 4, |out| out.push(*signal)),
            Self::Resize(window) => put(out, 5, |out| put_window(out, *window)),
            Self::Freeze { deadline_ms } => put(out, 6, |out| out.extend(deadline_ms.to_le_bytes())),
            Self::Thaw => put(out, 7, |_| {}),
            Self::Wake { unix_us, entropy } => put(out, 8, |out| {
                out.extend(unix_us.to_le_bytes());
                out.extend(entropy);
            }),
            Self::Sync => put(out, 9, |_| {}),
            Self::PowerOff => put(out, 10, |_| {}),
        }
    }

    /// The request in a frame.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let request = match kind {
            1 => Self::Exec(Exec::decode(&mut fields)?),
            2 => Self::Stdin(fields.rest().to_vec()),
            3 => Self::StdinEnd,
            4 => Self::Signal(fields.u8()?),
            5 => Self::Resize(window(&mut fields)?),
            6 => Self::Freeze { deadline_ms: fields.u32()? },
            7 => Self::Thaw,
            8 => Self::Wake { unix_us: fields.u64()?, entropy: fields.rest().to_vec() },
            9 => Self::Sync,
            10 => Self::PowerOff,
            _ => return Err(ProtocolError("a request of a kind that there is not")),
        };
        fields.end().map(|()| request)
    }
}

impl Reply {
    /// Appends the reply's frame.
    ///
    /// # Errors
    /// It does not fit into one.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        match self {
            Self::Started { pid } => put(out, 1, |out| out.extend(pid.to_le_bytes())),
            Self::Stdout(bytes) => put(out, 2, |out| out.extend(bytes)),
            Self::Stderr(bytes) => put(out, 3, |out| out.extend(bytes)),
            Self::Credit(count) => put(out, 4, |out| out.extend(count.to_le_bytes())),
            Self::Exited { code, signal } => put(out, 5, |out| out.extend([*code, *signal])),
            Self::Done => put(out, 6, |_| {}),
            Self::Failed { errno, message } => put(out, 7, |out| {
                out.extend(errno.to_le_bytes());
                out.extend(message.as_bytes());
            }),
            Self::Frozen { file_systems, took_us } => put(out, 8, |out| {
                out.extend(file_systems.to_le_bytes());
                out.extend(took_us.to_le_bytes());
            }),
        }
    }

    /// The reply in a frame.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let reply = match kind {
            1 => Self::Started { pid: fields.u32()? },
            2 => Self::Stdout(fields.rest().to_vec()),
            3 => Self::Stderr(fields.rest().to_vec()),
            4 => Self::Credit(fields.u32()?),
            5 => Self::Exited { code: fields.u8()?, signal: fields.u8()? },
            6 => Self::Done,
            7 => Self::Failed { errno: fields.u32()?, message: String::from_utf8_lossy(fields.rest()).into_owned() },
            8 => Self::Frozen { file_systems: fields.u16()?, took_us: fields.u64()? },
            _ => return Err(ProtocolError("a reply of a kind that there is not")),
        };
        fields.end().map(|()| reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Decoder;

    fn requests() -> Vec<Request> {
        let window = Window { rows: 24, columns: 80 };
        let exec = Exec {
            argv: vec![b"sh".to_vec(), b"-c".to_vec(), Vec::new()],
            env: vec![(b"A".to_vec(), b"\xff".to_vec())],
            cwd: b"/tmp".to_vec(),
            tty: Some(window),
        };
        vec![
            Request::Exec(exec.clone()),
            Request::Exec(Exec { tty: None, ..exec }),
            Request::Stdin(b"in".to_vec()),
            Request::StdinEnd,
            Request::Signal(15),
            Request::Resize(window),
            Request::Freeze { deadline_ms: 5000 },
            Request::Thaw,
            Request::Wake { unix_us: u64::MAX, entropy: vec![1; 32] },
            Request::Sync,
            Request::PowerOff,
        ]
    }

    fn replies() -> Vec<Reply> {
        vec![
            Reply::Started { pid: 7 },
            Reply::Stdout(b"out".to_vec()),
            Reply::Stderr(Vec::new()),
            Reply::Credit(12),
            Reply::Exited { code: 3, signal: 9 },
            Reply::Done,
            Reply::Failed { errno: 2, message: "no such file".to_owned() },
            Reply::Frozen { file_systems: 1, took_us: 1234 },
        ]
    }

    #[test]
    fn what_is_encoded_is_decoded_to_the_same() {
        let (mut bytes, mut decoder) = (Vec::new(), Decoder::default());
        requests().iter().for_each(|request| request.encode(&mut bytes).expect("it fits"));
        decoder.push(&bytes);
        for request in requests() {
            let (kind, payload) = decoder.frame().expect("a frame").expect("all of it");
            assert_eq!(Request::decode(kind, payload), Ok(request));
        }
        bytes.clear();
        replies().iter().for_each(|reply| reply.encode(&mut bytes).expect("it fits"));
        decoder.push(&bytes);
        for reply in replies() {
            let (kind, payload) = decoder.frame().expect("a frame").expect("all of it");
            assert_eq!(Reply::decode(kind, payload), Ok(reply));
        }
    }

    #[test]
    fn cut_and_changed_messages_are_errors_or_other_messages_and_nothing_worse() {
        let mut frames: Vec<Vec<u8>> = Vec::new();
        for request in requests() {
            let mut bytes = Vec::new();
            request.encode(&mut bytes).expect("it fits");
            frames.push(bytes);
        }
        for frame in frames {
            let (kind, payload) = (frame[4], &frame[5..]);
            for cut in 0..payload.len() {
                let _ = Request::decode(kind, &payload[..cut]);
                let _ = Reply::decode(kind, &payload[..cut]);
            }
            for at in 0..payload.len() {
                for value in [0, 1, 0x7f, 0xff] {
                    let mut changed = payload.to_vec();
                    changed[at] = value;
                    let _ = Request::decode(kind, &changed);
                    let _ = Reply::decode(kind, &changed);
                }
            }
        }
        assert!(Request::decode(1, b"\x01\x00\xff\xff\xff\xff").is_err(), "a word longer than its frame");
        assert!(Request::decode(1, b"\xff\xff").is_err(), "more words than there may be");
        assert!(Request::decode(3, b"x").is_err(), "bytes behind the end");
        assert!(Request::decode(0, b"").is_err() && Reply::decode(200, b"").is_err());
    }

    #[test]
    fn a_command_that_does_not_fit_is_refused_by_its_sender() {
        let long = Exec { argv: vec![vec![b'a'; 70_000]], ..Exec::default() };
        assert!(Request::Exec(long).encode(&mut Vec::new()).is_err());
        let many = Exec { argv: vec![Vec::new(); WORDS_MAX + 1], ..Exec::default() };
        assert!(Request::Exec(many).encode(&mut Vec::new()).is_err());
    }
}
