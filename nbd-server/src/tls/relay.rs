//! One TLS client: ciphertext on its socket, plaintext on a socket pair to the event loop.
//!
//! Invariants
//!   * at most one TLS read's plaintext waits for the event loop, and at most `CHUNK` plaintext bytes
//!     wait encrypted for the client: whoever does not read stops the other side from being read;
//!   * nothing is read from the event loop until the TLS handshake is complete;
//!   * the relay ends when the event loop has closed its end, after at most `DRAIN_TIME` for what the
//!     client has not received yet.

use crate::poll::{wait_two, READ_EVENTS, WRITE_EVENTS};
use rustls::ServerConnection;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Plaintext taken from the event loop at a time.
const CHUNK: usize = 64 << 10;
/// How long a client may take to receive its last replies.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// `None` when the call would block.
fn unless_blocked<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}

struct Relay {
    channel: ServerConnection,
    client: TcpStream,
    inside: UnixStream,
    /// Plaintext that goes to the client as it is: the acknowledgement of STARTTLS.
    unsent: Vec<u8>,
    /// Decrypted, for the event loop.
    decrypted: Vec<u8>,
    chunk: Vec<u8>,
    client_done: bool,
    /// Set when the event loop has closed its end.
    drain_until: Option<Instant>,
}

/// Relays until both sides are done.
pub fn run(channel: ServerConnection, client: TcpStream, inside: UnixStream, unsent: Vec<u8>) -> io::Result<()> {
    let (decrypted, chunk) = (Vec::new(), vec![0; CHUNK]);
    let mut relay = Relay { channel, client, inside, unsent, decrypted, chunk, client_done: false, drain_until: None };
    while relay.turn()? {}
    Ok(())
}

impl Relay {
    fn owes_client(&self) -> bool {
        !self.unsent.is_empty() || self.channel.wants_write()
    }

    /// Waits for something to do and does it; `false` when the relay is over.
    fn turn(&mut self) -> io::Result<bool> {
        let owes = self.owes_client();
        let left = match self.drain_until {
            None => -1,
            Some(_) if !owes => return Ok(false),
            Some(end) => match end.checked_duration_since(Instant::now()) {
                None => return Ok(false),
                Some(left) => left.as_millis() as i32 + 1,
            },
        };
        let open = self.drain_until.is_none();
        let mut client = if owes { WRITE_EVENTS } else { 0 };
        if open && self.decrypted.is_empty() && self.unsent.is_empty() && !self.client_done {
            client |= READ_EVENTS;
        }
        let mut inside = if self.decrypted.is_empty() { 0 } else { WRITE_EVENTS };
        if !owes && !self.channel.is_handshaking() {
            inside |= READ_EVENTS;
        }
        // Without interest a hang-up would be reported for ever.
        let client_fd = if client != 0 { Some(self.client.as_raw_fd()) } else { None };
        let inside_fd = open.then(|| self.inside.as_raw_fd());
        let (client, inside) = wait_two((client_fd, client), (inside_fd, inside), left)?;
        if client.write {
            self.send()?;
        }
        if client.read && open {
            self.receive()?;
        }
        if inside.write {
            self.deliver()?;
        }
        if inside.read && !self.owes_client() && !self.channel.is_handshaking() {
            self.collect()?;
        } else if inside.closed && self.drain_until.is_none() {
            self.finish();
        }
        Ok(true)
    }

    /// Sends what waits for the client.
    fn send(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let Some(n) = unless_blocked(self.client.write(&self.unsent))? else { return Ok(()) };
            self.unsent.drain(..n);
        }
        while self.channel.wants_write() {
            if unless_blocked(self.channel.write_tls(&mut self.client))?.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes in what the client sent and decrypts it.
    fn receive(&mut self) -> io::Result<()> {
        match unless_blocked(self.channel.read_tls(&mut self.client))? {
            None => return Ok(()),
            Some(0) => self.client_done = true,
            Some(_) => {}
        }
        let state = match self.channel.process_new_packets() {
            Ok(state) => state,
            Err(e) => {
                // The alert tells the client why; nobody waits for it to be read.
                let _ = self.send();
                return Err(io::Error::new(ErrorKind::InvalidData, e));
            }
        };
        self.client_done |= state.peer_has_closed();
        let waiting = state.plaintext_bytes_to_read();
        if waiting > 0 {
            self.decrypted.resize(waiting, 0);
            self.channel.reader().read_exact(&mut self.decrypted)?;
        }
        self.send()?;
        self.deliver()
    }

    /// Hands decrypted bytes to the event loop.
    fn deliver(&mut self) -> io::Result<()> {
        while !self.decrypted.is_empty() {
            let Some(n) = unless_blocked(self.inside.write(&self.decrypted))? else { return Ok(()) };
            self.decrypted.drain(..n);
        }
        if self.client_done {
            self.inside.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// Encrypts what the event loop has to say.
    fn collect(&mut self) -> io::Result<()> {
        match unless_blocked(self.inside.read(&mut self.chunk))? {
            None => return Ok(()),
            Some(0) => self.finish(),
            Some(n) => {
                let said = self.chunk.get(..n).unwrap_or_default();
                self.channel.writer().write_all(said)?;
            }
        }
        self.send()
    }

    /// The event loop has closed its end: what is encrypted already may still be received.
    fn finish(&mut self) {
        self.channel.send_close_notify();
        self.drain_until = Some(Instant::now() + DRAIN_TIME);
    }
}
