//! One connection of the relay: a program of the guest at one end, a number of the host's at the other.
//!
//! Invariant: `incoming` is no longer than the relay's window: the host sends no more before it is told that it was taken.

use crate::sys::{is_later, wait_for};
use sandbox_protocol::{Relay, Relayed};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a client may take to read what the host, which has closed, has sent before.
const DRAIN: Duration = Duration::from_secs(10);
/// How long one that is refused may take to read that.
const REFUSED: Duration = Duration::from_secs(2);
/// What it reads.
const REFUSAL: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 75\r\n\
    Connection: close\r\n\r\n{\"error\":\"too many connections to the host at once: try again in a moment\"}";

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    GoesOn,
    Over,
}

pub(super) struct Connection {
    stream: UnixStream,
    /// Its number; `None` when the host does not know it, or not any more.
    pub(super) id: Option<u32>,
    /// What the host sent and the client has not taken.
    incoming: Vec<u8>,
    /// The host sends no more: when the rest is taken, the client is told.
    host_ended: bool,
    was_told: bool,
    client_ended: bool,
    /// When it is over, whatever the client does.
    pub(super) until: Option<Instant>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, id: u32) -> Self {
        let (incoming, until) = (Vec::new(), None);
        Self { stream, id: Some(id), incoming, host_ended: false, was_told: false, client_ended: false, until }
    }

    /// One too many: it is told so. Closed at once, it might not hear that while it still writes.
    pub(super) fn refused(stream: UnixStream) -> Self {
        let (incoming, until) = (REFUSAL.as_bytes().to_vec(), Some(Instant::now() + REFUSED));
        Self { stream, id: None, incoming, host_ended: true, was_told: false, client_ended: false, until }
    }

    /// What it waits for.
    pub(super) fn wanted(&self, relay: &Relay, has_room: bool) -> libc::pollfd {
        let reads = !self.client_ended && self.id.is_none_or(|id| has_room && relay.room(id) > 0);
        let writes = !self.incoming.is_empty();
        let events = if reads { libc::POLLIN } else { 0 } | if writes { libc::POLLOUT } else { 0 };
        // One that is gone says so all the time, also while there is no room for what it sent before.
        let waits = events != 0 || self.client_ended || self.id.is_none();
        wait_for(if waits { self.stream.as_raw_fd() } else { -1 }, events)
    }

    /// Does what can be done.
    pub(super) fn turn(&mut self, happened: i16, relay: &mut Relay, out: &mut Vec<u8>) -> Turn {
        let readable = happened & libc::POLLIN != 0;
        let is_gone = happened & (libc::POLLHUP | libc::POLLERR) != 0;
        if is_gone {
            // Nobody takes it any more; what was sent before is still read.
            self.id.iter().for_each(|id| relay.took(*id, self.incoming.len(), out));
            self.incoming.clear();
        }
        let goes_on = (!readable || self.read(relay, out))
            && (self.incoming.is_empty() && !self.host_ended || self.write(relay, out))
            && (readable || !is_gone || self.id.is_some() && !self.client_ended)
            && self.until.is_none_or(|until| Instant::now() < until);
        if goes_on {
            return Turn::GoesOn;
        }
        self.id.iter().for_each(|id| relay.close(*id, out));
        Turn::Over
    }

    /// Takes what the host says about it.
    pub(super) fn hear(&mut self, said: Relayed, relay: &mut Relay, out: &mut Vec<u8>) -> Turn {
        match said {
            Relayed::Data(_, bytes) => self.incoming.extend(bytes),
            Relayed::End(_) => self.host_ended = true,
            Relayed::Close(_) => {
                (self.id, self.host_ended) = (None, true);
                self.until = Some(Instant::now() + DRAIN);
            }
            _ => {}
        }
        self.turn(0, relay, out)
    }

    /// Reads from the client; `false` when it is gone.
    fn read(&mut self, relay: &mut Relay, out: &mut Vec<u8>) -> bool {
        let mut buffer = [0; 8 << 10];
        let max = self.id.map_or(buffer.len(), |id| relay.room(id).min(buffer.len()));
        let Some(room) = buffer.get_mut(..max).filter(|room| !room.is_empty()) else { return true };
        match self.stream.read(room) {
            Ok(0) => {
                self.client_ended = true;
                self.id.iter().for_each(|id| relay.end(*id, out));
                // Nobody waits for more from it.
                self.id.is_some() || !self.incoming.is_empty()
            }
            Ok(n) => {
                // No more was read than there is room for. What one says that the host does not hear is passed over.
                self.id.map(|id| relay.send(id, room.get(..n).unwrap_or_default(), out));
                true
            }
            Err(e) => is_later(&e),
        }
    }

    /// Writes to the client; `false` when it is gone, or has all and the host has closed.
    fn write(&mut self, relay: &mut Relay, out: &mut Vec<u8>) -> bool {
        let mut taken = 0;
        let outcome = loop {
            let rest = self.incoming.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                break true;
            }
            match self.stream.write(rest) {
                Ok(n) => taken += n,
                Err(e) => break is_later(&e),
            }
        };
        self.incoming.drain(..taken);
        self.id.iter().for_each(|id| relay.took(*id, taken, out));
        if outcome && self.host_ended && self.incoming.is_empty() {
            if !self.was_told {
                self.was_told = true;
                let _ = self.stream.shutdown(Shutdown::Write);
            }
            // One that is refused may still be writing: it is heard to its end, or for a while.
            return self.id.is_some() || !self.client_ended;
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_length_that_it_says() {
        let (head, body) = REFUSAL.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
