//! A client's turn: from the bytes of its socket to the bytes of its replies.

use super::conn::{fill, make_room, Conn, Role, Socket};
use super::flush::Waiter;
use super::pace::HOLD_BYTES;
use super::Server;
use crate::exports::{resolve, PoolExports};
use crate::jobs::Job;
use crate::nbd::{GateStep, Handshake, HandshakeStep};
use crate::poll;
use crate::session::{Next, Session};
use blockstore::VolumeId;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// A handshake that takes longer is cut off.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Requests of one client that may wait for a sync: it is not read until they are answered.
const WAITS_MAX: usize = 4096;
/// Replies that the kernel holds for a client on a Unix socket; TCP sizes its own.
const SEND_BUFFER_BYTES: i32 = 1 << 20;
/// Output buffer kept by a client between requests.
const OUTPUT_KEPT: usize = 8 << 20;

impl Server {
    /// Reads what a client sent, carries it out, and sends the replies.
    pub(super) fn serve(&mut self, token: u64, ready: u32) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        if matches!(conn.role, Role::Guest(_)) {
            return self.hear_guest(token);
        }
        if conn.sent < conn.out.len() {
            // What is readable can wait until the client has read its replies.
            return self.send(token);
        }
        if conn.yielded || conn.held {
            if ready & poll::GONE != 0 {
                // Nobody would hear the replies to what is left.
                self.close(token, "it hung up");
            }
            return;
        }
        match fill(conn) {
            Ok(true) => {}
            Ok(false) => return self.close(token, "it hung up"),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return self.close(token, "its socket failed"),
        }
        self.process(token);
        self.send(token);
    }

    pub(super) fn process(&mut self, token: u64) {
        loop {
            let Some(conn) = self.conns.get_mut(&token) else { return };
            if conn.closing {
                return;
            }
            match &mut conn.role {
                Role::Gate(..) => return self.pass_gate(token),
                Role::Handshake(..) => {
                    if !self.negotiate(token) {
                        return;
                    }
                }
                Role::Session(_) => return self.transmit(token),
                Role::Guest(_) => return self.guest_turn(token),
                Role::Control => {
                    if !self.commands(token) {
                        return;
                    }
                }
            }
        }
    }

    /// The plaintext stage of a TCP client that must use TLS.
    fn pass_gate(&mut self, token: u64) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let Role::Gate(gate, _) = &mut conn.role else { return };
        let (used, step) = gate.step(&conn.input[conn.start..conn.end], &mut conn.out);
        conn.start += used;
        match step {
            GateStep::NeedMore => {}
            GateStep::Close => conn.closing = true,
            GateStep::Secure(handshake) => self.secure(token, handshake),
        }
    }

    /// Hands a client's socket to a TLS relay; `inside` goes on with the plaintext that comes out.
    fn secure(&mut self, token: u64, inside: Handshake) {
        let (Some(conn), Some(tls)) = (self.conns.remove(&token), &self.tls) else { return };
        let Socket::Tcp(socket) = conn.socket else { return };
        if self.poll.remove(socket.as_raw_fd()).is_err() {
            return;
        }
        match tls.start(socket, conn.out[conn.sent..].to_vec()) {
            Ok(stream) => self.add(Socket::Unix(stream), Role::Handshake(inside, Instant::now()), Vec::new()),
            Err(e) => warn!(error = %e, "a TLS session could not be begun"),
        }
    }

    /// `true` when the client has become a session.
    fn negotiate(&mut self, token: u64) -> bool {
        let Some(conn) = self.conns.get_mut(&token) else { return false };
        let Role::Handshake(handshake, _) = &mut conn.role else { return false };
        let input = &conn.input[conn.start..conn.end];
        let (used, step) = handshake.step(input, &mut PoolExports(&mut self.pool), &mut conn.out);
        conn.start += used;
        conn.more = step == HandshakeStep::Send;
        match step {
            HandshakeStep::NeedMore | HandshakeStep::Send => false,
            HandshakeStep::Close => {
                conn.closing = true;
                false
            }
            HandshakeStep::Serve(agreed) => match resolve(&self.pool, &agreed.export.name) {
                Ok(view) => {
                    if let Socket::Unix(socket) = &conn.socket {
                        poll::set_send_buffer(socket.as_raw_fd(), SEND_BUFFER_BYTES);
                    }
                    info!(client = token, export = agreed.export.name, "a client has opened an export");
                    conn.role = Role::Session(Box::new(Session::new(*agreed, view)));
                    true
                }
                Err(_) => {
                    conn.closing = true;
                    false
                }
            },
        }
    }

    fn transmit(&mut self, token: u64) {
        if self.room.holds(token) || !self.may_answer(token) {
            return;
        }
        let mut waits = Vec::new();
        let (paced, before) = (self.pace.is_beside_flushes(token, Instant::now()), self.pool.appended_bytes());
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let Role::Session(session) = &mut conn.role else { return };
        let volume = session.view.volume;
        session.small_pieces = paced;
        let input = &conn.input[conn.start..conn.end];
        let (used, next) = session.process(&mut self.pool, &mut self.metrics, input, &mut conn.out, &mut waits);
        conn.start += used;
        conn.more = matches!(next, Next::Send | Next::Yield);
        conn.waiting += waits.len();
        match next {
            Next::Close(why) => (conn.closing, conn.why) = (true, why),
            Next::Read(whole) => make_room(conn, whole),
            Next::Hold => self.room.hold(token),
            Next::Send | Next::Yield | Next::Wait => {}
        }
        conn.stalled = next == Next::Wait;
        let waits = waits.into_iter().map(|wait| Waiter::Nbd(token, wait)).collect();
        self.after_turn(token, volume, paced.then_some(before), waits);
    }

    /// What a client's turn on `volume` leads to: writing back, fetching, syncing. When others flush, `paced` says how long
    /// the log was before.
    pub(super) fn after_turn(&mut self, token: u64, volume: VolumeId, paced: Option<u64>, waits: Vec<Waiter>) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        conn.unwritten = paced.map_or(0, |before| conn.unwritten + self.pool.appended_bytes() - before);
        let hold = conn.unwritten >= HOLD_BYTES;
        match self.pool.take_writeback(volume) {
            // Now, so that the disk works while the reply travels and the client prepares its flush.
            Some(range) if range.urgent => range.start(),
            Some(range) => self.workers.submit(Job::WriteBack(range)),
            None => {}
        }
        if let Some(job) = self.pool.settle_job(volume) {
            self.workers.submit(Job::Settle(job));
        }
        self.start_fetches();
        if !waits.is_empty() {
            waits.into_iter().for_each(|wait| self.wait_for_sync(volume, wait));
            self.start_sync(volume);
        }
        if hold {
            self.hold(token, volume);
        }
    }

    /// Sends what there is. Requests that are left wait for the next turn.
    pub(super) fn send(&mut self, token: u64) {
        let Some(conn) = self.conns.get(&token) else { return };
        if conn.sent < conn.out.len() && !self.may_answer(token) {
            return self.watch(token, 0);
        }
        let Some(conn) = self.conns.get_mut(&token) else { return };
        while conn.sent < conn.out.len() {
            match conn.socket.write(&conn.out[conn.sent..]) {
                Ok(n) => conn.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return self.watch(token, poll::WRITE);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.close(token, "it does not take its replies"),
            }
        }
        conn.out.clear();
        conn.sent = 0;
        conn.out.shrink_to(OUTPUT_KEPT);
        if conn.closing && conn.waiting == 0 {
            let why = conn.why;
            return self.close(token, why);
        }
        let takes = !conn.closing && !conn.held && conn.waiting < WAITS_MAX && !self.room.holds(token);
        if conn.more && takes && !conn.yielded {
            conn.yielded = true;
            self.yielded.push_back(token);
        }
        let reads = match &conn.role {
            // Its requests do not come through its socket.
            Role::Guest(guest) => !guest.is_stopping(),
            _ => takes && !conn.stalled,
        };
        self.watch(token, if reads { poll::READ } else { 0 });
    }

    /// Gives the client that has waited for longest another turn.
    pub(super) fn resume(&mut self) {
        let Some(token) = self.yielded.pop_front() else { return };
        let Some(conn) = self.conns.get_mut(&token) else { return };
        conn.yielded = false;
        self.last_activity = Instant::now();
        if conn.sent == conn.out.len() {
            self.process(token);
            self.send(token);
        }
    }

    pub(super) fn watch(&mut self, token: u64, interest: u32) {
        if let Some(conn) = self.conns.get_mut(&token) {
            if conn.interest != interest && self.poll.modify(conn.socket.fd(), token, interest).is_ok() {
                conn.interest = interest;
            }
        }
    }

    pub(super) fn close(&mut self, token: u64, why: &str) {
        self.room.left(token);
        if let Some(conn) = self.conns.remove(&token) {
            self.pace.forget(token);
            match &conn.role {
                Role::Session(session) => info!(client = token, export = session.export(), why, "a client has gone"),
                Role::Guest(guest) => info!(client = token, export = guest.export(), why, "a guest has gone"),
                Role::Control => debug!(client = token, why, "a command connection has ended"),
                Role::Gate(..) | Role::Handshake(..) => debug!(client = token, why, "a stranger has gone"),
            }
            self.left(token, conn.temporary);
        }
    }

    pub(super) fn expire(&mut self) {
        self.close_doors();
        let late = |conn: &Conn| matches!(&conn.role, Role::Gate(_, since) | Role::Handshake(_, since) if since.elapsed() > HANDSHAKE_TIME);
        let late: Vec<u64> = self.conns.iter().filter(|(_, conn)| late(conn)).map(|(token, _)| *token).collect();
        late.into_iter().for_each(|token| self.close(token, "it negotiated for too long"));
    }
}
