//! The control socket: a line of JSON in, a line of JSON out.
//!
//! Invariants
//!   * lines are bounded; what is not JSON is answered and ends nothing;
//!   * what takes a volume away from its users asks for `force`.
//!
//! Not here: what a command does (`control`).

use super::conn::{make_room, Conn, Role};
use super::flush::Waiter;
use super::Server;
use crate::control;
use crate::exports::split_export;
use crate::nbd::Handshake;
use serde_json::{json, Value};
use std::time::Instant;

/// Longest line on the control socket.
const CONTROL_LINE_MAX: usize = 64 << 10;

impl Server {
    pub(super) fn commands(&mut self, token: u64) {
        loop {
            let Some(conn) = self.conns.get_mut(&token) else { return };
            let input = &conn.input[conn.start..conn.end];
            let Some(end) = input.iter().position(|b| *b == b'\n') else {
                conn.closing |= input.len() > CONTROL_LINE_MAX;
                return make_room(conn, 0);
            };
            let parsed = serde_json::from_slice::<Value>(&input[..end]);
            conn.start += end + 1;
            let Ok(request) = parsed else {
                self.say(token, &json!({"error": {"kind": "invalid", "message": "the command is not JSON"}}));
                continue;
            };
            if request.get("op").and_then(Value::as_str) == Some("nbd") {
                if let Some(conn) = self.conns.get_mut(&token) {
                    conn.role = Role::Handshake(Handshake::new(&mut conn.out), Instant::now());
                }
                return;
            }
            self.command(token, &request);
        }
    }

    fn command(&mut self, token: u64, request: &Value) {
        if request.get("op").and_then(Value::as_str) == Some("metrics") {
            let page = self.metrics.render(&self.pool.stats(), self.conns.len());
            return self.say(token, &Value::String(page));
        }
        if let Some(name) = control::takes_away(request) {
            let users = self.users(&name);
            if !users.is_empty() && request.get("force").and_then(Value::as_bool) != Some(true) {
                let message = format!("{} client(s) have {name} open: disconnect them, or give --force", users.len());
                return self.say(token, &json!({"error": {"kind": "busy", "message": message}}));
            }
            users.into_iter().for_each(|user| self.close(user));
        }
        match control::handle(&mut self.pool, request) {
            Err(e) => self.say(token, &control::error_json(&e)),
            Ok(control::Outcome { answer, job: None }) => self.say(token, &answer),
            Ok(control::Outcome { answer, job: Some(job) }) => {
                self.wait_for_sync(job.volume, Waiter::Control(token, answer));
                self.start_sync(job.volume);
            }
        }
    }

    /// Clients that use a volume (its head), or exactly one checkpoint.
    fn users(&self, name: &str) -> Vec<u64> {
        let uses = |conn: &Conn| match &conn.role {
            Role::Session(session) => {
                let export = session.export();
                export == name || split_export(export).is_some_and(|(volume, at)| volume == name && at.is_none())
            }
            _ => false,
        };
        self.conns.iter().filter(|(_, conn)| uses(conn)).map(|(token, _)| *token).collect()
    }

    pub(super) fn say(&mut self, token: u64, answer: &Value) {
        if let Some(conn) = self.conns.get_mut(&token) {
            conn.out.extend(answer.to_string().into_bytes());
            conn.out.push(b'\n');
        }
    }
}
