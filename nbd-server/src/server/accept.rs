//! Letting clients in, and how many there may be.
//!
//! Invariants
//!   * a client that has not been let in yet makes room for a new one; one that has been never does.

use super::conn::{Conn, Role, Socket};
use super::listen::Listener;
use super::Server;
use crate::nbd::{Gate, Handshake};
use crate::poll;
use std::io::Write;
use std::time::Instant;

/// Connections at a time: one more is closed at once.
pub(super) const CONNECTIONS_MAX: usize = 1024;
/// Connections to the control socket at a time: one more is refused.
const CONTROLS_MAX: usize = 64;
const TOO_MANY: &[u8] = b"{\"error\":{\"kind\":\"busy\",\"message\":\"too many commands at a time: try again\"}}\n";
/// Clients accepted in one turn.
const ACCEPTS_PER_TURN: usize = 16;
/// Descriptors that are not clients': segment files, listeners, the pool's own.
pub(super) const DESCRIPTORS_KEPT: u64 = 640;
/// Descriptors of one client: a socket, and two more for a TLS relay.
pub(super) const DESCRIPTORS_EACH: u64 = 3;

impl Server {
    pub(super) fn add(&mut self, socket: Socket, role: Role, out: Vec<u8>) {
        if self.conns.len() >= self.connections_max && !matches!(role, Role::Control) && !self.evict_stranger() {
            return;
        }
        let token = self.next_token;
        self.next_token += 1;
        if self.poll.add(socket.fd(), token, poll::READ).is_err() {
            return;
        }
        self.metrics.connections += 1;
        let interest = poll::READ;
        let conn = Conn {
            socket,
            role,
            input: Vec::new(),
            start: 0,
            end: 0,
            out,
            sent: 0,
            interest,
            closing: false,
            why: "it ended the negotiation, or broke the protocol",
            more: false,
            yielded: false,
            held: false,
            unwritten: 0,
            temporary: None,
            waiting: 0,
            stalled: false,
        };
        self.conns.insert(token, conn);
        self.send(token);
    }

    /// Makes room by closing the client that has been negotiating for longest; `false` when all
    /// clients have been let in.
    fn evict_stranger(&mut self) -> bool {
        let since = |conn: &Conn| match &conn.role {
            Role::Gate(_, since) | Role::Handshake(_, since) => Some(*since),
            Role::Session(_) | Role::Guest(_) | Role::Control => None,
        };
        let oldest = self.conns.iter().filter_map(|(token, conn)| Some((since(conn)?, *token))).min();
        oldest.map(|(_, token)| self.close(token, "it makes room for another")).is_some()
    }

    pub(super) fn accept_control(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Ok((stream, _)) = self.control.accept() else { return };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let open = self.conns.values().filter(|conn| matches!(conn.role, Role::Control)).count();
            if open >= CONTROLS_MAX {
                // It fits the socket's buffer, and whoever does not read it learns less.
                let _ = (&stream).write_all(TOO_MANY);
                continue;
            }
            self.add(Socket::Unix(stream), Role::Control, Vec::new());
        }
    }

    pub(super) fn accept_nbd(&mut self, index: usize) {
        for _ in 0..ACCEPTS_PER_TURN {
            let accepted = match self.listeners.get(index) {
                Some(Listener::Unix(l)) => {
                    l.accept().and_then(|(s, _)| s.set_nonblocking(true).map(|()| Socket::Unix(s)))
                }
                Some(Listener::Tcp(l)) => l.accept().and_then(|(s, _)| {
                    s.set_nodelay(true)?;
                    s.set_nonblocking(true).map(|()| Socket::Tcp(s))
                }),
                None => return,
            };
            let Ok(socket) = accepted else { return };
            let mut greeting = Vec::new();
            let gated = self.tls.is_some() && matches!(socket, Socket::Tcp(_));
            let role = if gated {
                Role::Gate(Gate::new(&mut greeting), Instant::now())
            } else {
                Role::Handshake(Handshake::new(&mut greeting), Instant::now())
            };
            self.add(socket, role, greeting);
        }
    }
}
