//! Closing: what has been asked is answered, what has been answered is durable, and it takes seconds
//! whatever clients do.
//!
//! Invariants
//!   * from the signal on nobody is let in and no client's bytes are read;
//!   * requests that had been read whole are carried out and answered, unless their client does not
//!     take the answers before `DRAIN_TIME` is over.

use super::conn::{Conn, Role};
use super::{Server, TOKEN_WAKE};
use crate::poll;
use blockstore::Cleaning;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Time for clients to take their last answers.
const DRAIN_TIME: Duration = Duration::from_secs(3);

impl Server {
    pub(super) fn shut_down(mut self) -> io::Result<()> {
        info!(clients = self.conns.len(), "asked to end");
        poll::drain(self.signals.as_raw_fd());
        self.sockets.iter().for_each(|path| drop(fs::remove_file(path)));
        self.listeners.clear();
        self.end_guests();
        self.release_held();
        self.drain()?;
        let left: Vec<u64> = self.conns.keys().copied().collect();
        left.into_iter().for_each(|token| self.close(token, "the daemon ends and it took no replies"));
        self.pool.set_patient(true);
        if self.pool.poisoned().is_none() {
            for id in self.pool.volumes() {
                self.pool.flush(id).map_err(io::Error::other)?;
            }
            // What is written down need not be replayed by the next opening.
            if self.pool.wants_idle_anchor() {
                if let Err(e) = self.pool.anchor(Cleaning::Busy) {
                    warn!(error = %e, "the last anchor could not be written");
                }
            }
        }
        info!("ended");
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + DRAIN_TIME;
        let mut events = Vec::new();
        while !self.conns.is_empty() && Instant::now() < deadline {
            self.resume();
            self.tend_leases();
            let over = self.conns.iter().filter(|(token, conn)| is_over(conn) && !self.leases.doubts(**token));
            let over: Vec<u64> = over.map(|(token, _)| *token).collect();
            over.into_iter().for_each(|token| self.close(token, "the daemon ends"));
            let busy = !self.yielded.is_empty() || self.conns.is_empty();
            self.poll.wait(&mut events, if busy { 0 } else { 10 })?;
            for &(token, ready) in &events {
                if token == TOKEN_WAKE {
                    poll::drain(self.wake.as_raw_fd());
                    self.collect();
                } else if ready & !poll::READ != 0 {
                    self.send(token);
                }
            }
            // Nothing is read any more: what is readable must not wake the loop again and again.
            let readable = self.conns.iter().filter(|(_, conn)| conn.interest & poll::READ != 0);
            let readable: Vec<u64> = readable.map(|(token, _)| *token).collect();
            readable.into_iter().for_each(|token| self.watch(token, 0));
        }
        Ok(())
    }
}

/// All that was read is answered, and the answers are sent.
fn is_over(conn: &Conn) -> bool {
    let absent = match &conn.role {
        Role::Session(session) => session.is_waiting(),
        // What it has begun and not answered is carried out again by the next daemon.
        Role::Guest(guest) => !guest.is_idle(),
        _ => false,
    };
    conn.sent == conn.out.len() && !conn.more && conn.waiting == 0 && !absent
}
