//! The control socket: a line of JSON in, a line of JSON out.
//!
//! Invariants
//!   * lines are bounded; what is not JSON is answered and ends nothing;
//!   * what takes a volume away from its users asks for `force`.
//!
//! Not here: what a command does (`control`).

use super::conn::{fill, make_room, Conn, Role};
use super::flush::Waiter;
use super::Server;
use crate::control::{self, Taken};
use crate::session::Awaited;
use blockstore::ErrorKind;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use tracing::{debug, info};

/// Longest line on the control socket.
const CONTROL_LINE_MAX: usize = 64 << 10;

impl Server {
    /// `true` when the connection goes on in another role.
    pub(super) fn commands(&mut self, token: u64) -> bool {
        loop {
            let Some(conn) = self.conns.get_mut(&token) else { return false };
            if !matches!(conn.role, Role::Control) {
                return true;
            }
            let input = &conn.input[conn.start..conn.end];
            let Some(end) = input.iter().position(|b| *b == b'\n') else {
                let endless = input.len() > CONTROL_LINE_MAX;
                conn.closing |= endless;
                make_room(conn, 0);
                if endless {
                    let message = format!("a command is a line of at most {CONTROL_LINE_MAX} bytes");
                    self.say(token, &json!({"error": {"kind": "invalid", "message": message}}));
                }
                return false;
            };
            let parsed = serde_json::from_slice::<Value>(&input[..end]);
            conn.start += end + 1;
            let Ok(request) = parsed else {
                self.say(token, &json!({"error": {"kind": "invalid", "message": "the command is not JSON"}}));
                continue;
            };
            if !self.long_command(token, &request) && !self.tier_command(token, &request) {
                self.command(token, &request, None);
            }
        }
    }

    /// Carries out a command, for the first time or `again`, now that something has come from the object store.
    pub(super) fn command(&mut self, token: u64, request: &Value, again: Option<Awaited>) {
        if request.get("op").and_then(Value::as_str) == Some("metrics") {
            let mut page = self.metrics.render(&self.pool.stats(), self.conns.len(), self.pool.poisoned().is_some());
            self.render_tier(&mut page);
            return self.say(token, &Value::String(page));
        }
        if request.get("op").and_then(Value::as_str) == Some("sockets") {
            let nbd: Vec<_> = self.sockets.iter().skip(1).filter_map(|path| std::path::absolute(path).ok()).collect();
            return self.say(token, &json!({"nbd": nbd}));
        }
        if request.get("op").and_then(Value::as_str) == Some("vhost.listen") {
            let answer = self.listen_for_guests(request).unwrap_or_else(|e| control::error_json(&e));
            return self.say(token, &answer);
        }
        let taken = match control::takes_away(&self.pool, request) {
            // Nobody is disconnected for a command that cannot be carried out.
            Err(e) => return self.say(token, &control::error_json(&e)),
            Ok(taken) => taken,
        };
        if let Some(taken) = taken {
            let users = self.users(&taken);
            if !users.is_empty() && request.get("force").and_then(Value::as_bool) != Some(true) {
                let message = format!("clients have {} open: disconnect them, or give --force", self.exports(&users));
                return self.say(token, &json!({"error": {"kind": "busy", "message": message}}));
            }
            users.into_iter().for_each(|user| self.dismiss(user));
        }
        match control::handle(&mut self.pool, request) {
            Err(e) if e.kind() == ErrorKind::Absent => self.wait_for_store(token, request, again),
            Err(e) => {
                debug!(%request, error = %e, "a command failed");
                self.say(token, &control::error_json(&e));
            }
            Ok(control::Outcome { answer, job: None, .. }) => self.say(token, &answer),
            Ok(control::Outcome { answer, job: Some(job), made }) => {
                info!(%request, %answer, "the pool was changed");
                self.tell_guests(request);
                if let Some(conn) = self.conns.get_mut(&token) {
                    conn.waiting += 1;
                }
                let remote = request.get("wait").and_then(Value::as_str) == Some("remote");
                let waiter = match made.filter(|made| self.pool.is_arriving(*made)) {
                    Some(made) => Waiter::Made(token, made, answer),
                    None if remote => Waiter::Remote(token, answer),
                    None => Waiter::Control(token, answer),
                };
                self.wait_for_sync(job.volume, waiter);
                self.start_sync(job.volume);
            }
        }
    }

    /// Disconnects a client whose export is taken away. What it has asked for and not been answered is refused,
    /// as far as it takes the refusals at once.
    pub(super) fn dismiss(&mut self, token: u64) {
        let waits = self.take_waits(token);
        if let Some(conn) = self.conns.get_mut(&token) {
            if !matches!(conn.role, Role::Guest(_)) {
                // Requests may lie in the socket; whether there are any does not matter.
                let _ = fill(conn);
            }
            match &mut conn.role {
                Role::Session(session) => {
                    let waits = waits.into_iter().filter_map(|waiter| match waiter {
                        Waiter::Nbd(_, wait) => Some(wait),
                        _ => None,
                    });
                    session.end(waits.collect(), &conn.input[conn.start..conn.end], &mut conn.out);
                }
                Role::Guest(guest) => {
                    let waits = waits.into_iter().filter_map(|waiter| match waiter {
                        Waiter::Guest(_, wait) => Some(wait),
                        _ => None,
                    });
                    guest.end(waits.collect());
                }
                Role::Gate(..) | Role::Handshake(..) | Role::Control => {}
            }
            while conn.sent < conn.out.len() {
                let Ok(n) = conn.socket.write(&conn.out[conn.sent..]) else { break };
                conn.sent += n;
            }
        }
        self.close(token, "what it had open is taken away (--force)");
    }

    /// Clients that use what a command takes away.
    pub(super) fn users(&self, taken: &Taken) -> Vec<u64> {
        let uses = |conn: &Conn| {
            let can_be_told = matches!(conn.role, Role::Guest(_));
            conn.role.open().is_some_and(|(view, _)| taken.holds(view, can_be_told))
        };
        self.conns.iter().filter(|(_, conn)| uses(conn)).map(|(token, _)| *token).collect()
    }

    /// What these clients have open, with how many have it.
    pub(super) fn exports(&self, users: &[u64]) -> String {
        let mut open: BTreeMap<&str, usize> = BTreeMap::new();
        for user in users {
            if let Some((_, export)) = self.conns.get(user).and_then(|conn| conn.role.open()) {
                *open.entry(export).or_default() += 1;
            }
        }
        open.iter().map(|(export, n)| format!("{export} ({n})")).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn say(&mut self, token: u64, answer: &Value) {
        if let Some(conn) = self.conns.get_mut(&token) {
            conn.out.extend(answer.to_string().into_bytes());
            conn.out.push(b'\n');
        }
    }
}
