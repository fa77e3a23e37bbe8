//! `cairn-agent relay`: connections to `/.sprite/api.sock`, carried to the host over standard input and output.
//!
//! Invariants
//!   * memory is bounded: no connection is read beyond what the host takes of it, none while much waits for the host, and
//!     there are never more of them than [`HELD_MAX`];
//!   * a connection that nobody reads holds up itself alone;
//!   * it ends when the host goes; the next one takes its place in one step.

mod connection;

use crate::place::Place;
use crate::sys::{is_later, poll, set_nonblocking, wait_for};
use connection::{Connection, Turn};
use sandbox_protocol::{Decoder, Relay, Relayed, Side, RELAY_CONNECTIONS};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Instant;

/// Bytes that wait for the host, at which no more are read for it.
const OUT_MAX: usize = 256 << 10;
/// Connections that are held, those that are being refused included; more wait to be taken.
const HELD_MAX: usize = RELAY_CONNECTIONS + 8;

struct Relaying {
    stdin: File,
    stdout: File,
    listener: UnixListener,
    decoder: Decoder,
    relay: Relay,
    out: Vec<u8>,
    connections: Vec<Connection>,
}

/// Relays until the host goes.
pub(crate) fn carry_out(root: &Path) -> io::Result<()> {
    let place = Place::at(root);
    // A file that cannot be written is told, and no reason to do without the rest.
    place.fill(&mut |e| eprintln!("{e}"));
    let listener = place.listen()?;
    listener.set_nonblocking(true)?;
    let mut relaying = Relaying {
        stdin: unbuffered(&io::stdin())?,
        stdout: unbuffered(&io::stdout())?,
        listener,
        decoder: Decoder::default(),
        relay: Relay::new(Side::Agent),
        out: Vec::new(),
        connections: Vec::new(),
    };
    let _ = Relayed::Ready.encode(&mut relaying.out);
    while relaying.turn()? {}
    Ok(())
}

/// A standard stream as a file, without a buffer.
fn unbuffered(stream: &impl AsFd) -> io::Result<File> {
    let file = File::from(stream.as_fd().try_clone_to_owned()?);
    set_nonblocking(&file)?;
    Ok(file)
}

impl Relaying {
    /// Waits until something can be done, and does it; `false` when the host is gone.
    fn turn(&mut self) -> io::Result<bool> {
        let has_room = self.out.len() < OUT_MAX;
        let unless = |idle: bool, fd| if idle { -1 } else { fd };
        let mut fds = vec![
            wait_for(unless(!has_room, self.stdin.as_raw_fd()), libc::POLLIN),
            wait_for(unless(self.out.is_empty(), self.stdout.as_raw_fd()), libc::POLLOUT),
            wait_for(unless(self.connections.len() >= HELD_MAX, self.listener.as_raw_fd()), libc::POLLIN),
        ];
        fds.extend(self.connections.iter().map(|connection| connection.wanted(&self.relay, has_room)));
        let until = self.connections.iter().filter_map(|connection| connection.until).min();
        poll(&mut fds, until.map(|until| until.saturating_duration_since(Instant::now())))?;
        let happened: Vec<i16> = fds.iter().map(|fd| fd.revents).collect();
        let [stdin, stdout, listener, connections @ ..] = happened.as_slice() else { return Ok(true) };
        let mut happened = connections.iter().copied();
        let (relay, out) = (&mut self.relay, &mut self.out);
        self.connections.retain_mut(|connection| match happened.next() {
            Some(happened) => connection.turn(happened, relay, out) == Turn::GoesOn,
            None => true,
        });
        if *listener != 0 {
            self.accept();
        }
        if *stdin != 0 && !self.hear()? {
            return Ok(false);
        }
        // What was just made goes at once, if it can.
        if *stdout != 0 || !self.out.is_empty() {
            return self.say();
        }
        Ok(true)
    }

    fn accept(&mut self) {
        while self.connections.len() < HELD_MAX {
            let Ok((stream, _)) = self.listener.accept() else { return };
            if set_nonblocking(&stream).is_err() {
                continue;
            }
            self.connections.push(match self.relay.open(&mut self.out) {
                Some(id) => Connection::new(stream, id),
                None => Connection::refused(stream),
            });
        }
    }

    /// Reads what the host says; `false` when it is gone.
    fn hear(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        match self.stdin.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(n) => self.decoder.push(buffer.get(..n).unwrap_or_default()),
            Err(e) if is_later(&e) => return Ok(true),
            Err(e) => return Err(e),
        }
        let wrong = |e: sandbox_protocol::ProtocolError| io::Error::new(io::ErrorKind::InvalidData, e.to_string());
        while let Some((kind, payload)) = self.decoder.frame().map_err(wrong)? {
            let said = Relayed::decode(kind, payload).and_then(|said| self.relay.take(said)).map_err(wrong)?;
            let id = match &said {
                Some(Relayed::Data(id, _) | Relayed::End(id) | Relayed::Close(id)) => *id,
                _ => continue,
            };
            let Some(at) = self.connections.iter().position(|connection| connection.id == Some(id)) else { continue };
            let (Some(connection), Some(said)) = (self.connections.get_mut(at), said) else { continue };
            if connection.hear(said, &mut self.relay, &mut self.out) == Turn::Over {
                self.connections.swap_remove(at);
            }
        }
        Ok(true)
    }

    /// Writes what waits for the host; `false` when it is gone.
    fn say(&mut self) -> io::Result<bool> {
        let mut sent = 0;
        let outcome = loop {
            let rest = self.out.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(true);
            }
            match self.stdout.write(rest) {
                Ok(n) => sent += n,
                Err(e) if is_later(&e) => break Ok(true),
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => break Ok(false),
                Err(e) => break Err(e),
            }
        };
        self.out.drain(..sent);
        outcome
    }
}
