//! One client's socket, its role, and its buffers.
//!
//! Invariants
//!   * `start <= end <= input.len()` and `sent <= out.len()`;
//!   * the input buffer grows only as bytes come, so that announcing much costs the client as much.

use crate::nbd::{Gate, Handshake};
use crate::session::Session;
use crate::vhost::Guest;
use blockstore::{View, VolumeId};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Size of a client's input buffer; it grows for larger requests, up to two of a session's pieces.
const INPUT_BYTES: usize = 256 << 10;
/// Size of the buffer of a client that has not been let in yet: one option of the longest kind fits.
const STRANGER_BYTES: usize = 16 << 10;

pub(super) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    pub(super) fn fd(&self) -> RawFd {
        match self {
            Socket::Unix(s) => s.as_raw_fd(),
            Socket::Tcp(s) => s.as_raw_fd(),
        }
    }
    pub(super) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(s) => s.read(buf),
            Socket::Tcp(s) => s.read(buf),
        }
    }
    pub(super) fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(s) => s.write(buf),
            Socket::Tcp(s) => s.write(buf),
        }
    }
}

pub(super) enum Role {
    Gate(Gate, Instant),
    Handshake(Handshake, Instant),
    Session(Box<Session>),
    Guest(Box<Guest>),
    Control,
}

impl Role {
    /// What a client that has been let in has open, and its name.
    pub(super) fn open(&self) -> Option<(&View, &str)> {
        match self {
            Role::Session(session) => Some((&session.view, session.export())),
            Role::Guest(guest) => Some((&guest.view, guest.export())),
            Role::Gate(..) | Role::Handshake(..) | Role::Control => None,
        }
    }
}

pub(super) struct Conn {
    pub socket: Socket,
    pub role: Role,
    pub input: Vec<u8>,
    pub start: usize,
    pub end: usize,
    pub out: Vec<u8>,
    pub sent: usize,
    pub interest: u32,
    pub closing: bool,
    /// Why it closes, for the log.
    pub why: &'static str,
    /// Requests are left that wait for the output to be sent, or for others' turns.
    pub more: bool,
    /// Among `Server::yielded`.
    pub yielded: bool,
    /// Not read until the disk has taken what it wrote (see `pace`).
    pub held: bool,
    /// Log bytes it has written beside clients that flush, since it was last held or synced.
    pub unwritten: u64,
    /// A volume that ends with the connection.
    pub temporary: Option<VolumeId>,
    /// Replies that wait for a sync, and commands that wait for the object store.
    pub waiting: usize,
    /// Nothing more is read before something has come from the object store.
    pub stalled: bool,
}

/// Reads once into the input buffer; `false` at the end of the stream.
pub(super) fn fill(conn: &mut Conn) -> io::Result<bool> {
    let size = match conn.role {
        Role::Session(_) => INPUT_BYTES,
        Role::Gate(..) | Role::Handshake(..) => STRANGER_BYTES,
        // A guest's socket is read by itself.
        Role::Control | Role::Guest(_) => 4096,
    };
    if conn.input.len() < size {
        conn.input.resize(size, 0);
    }
    make_room(conn, 0);
    let n = conn.socket.read(&mut conn.input[conn.end..])?;
    conn.end += n;
    Ok(n > 0)
}

/// Moves pending bytes to the front when room is short, and grows the buffer for a request of
/// `whole` bytes: by doubling, as the bytes come, so that announcing much costs the client as much.
pub(super) fn make_room(conn: &mut Conn, whole: usize) {
    if conn.start == conn.end {
        (conn.start, conn.end) = (0, 0);
    }
    let pending = conn.end - conn.start;
    if conn.start > 0 && (conn.input.len() - conn.end < 4096 || conn.start + whole > conn.input.len()) {
        conn.input.copy_within(conn.start..conn.end, 0);
        (conn.start, conn.end) = (0, pending);
    }
    let least = whole.min(2 * pending).max(pending + 1);
    if conn.input.len() < least {
        conn.input.resize(least.next_power_of_two(), 0);
    }
}
