//! Long work beside clients: imports and exports as NBD sessions on the control socket, checks and
//! scrubs on a thread of their own.
//!
//! Invariants
//!   * an import is written to a volume of its own, `NAME.importing`, which its connection takes along
//!     when it ends: `NAME` exists only once the caller has forked it from there;
//!   * an export of a head reads a fork of it, so that the file is the state of one moment;
//!   * at most one audit runs; it ends with its caller.

use super::conn::Role;
use super::Server;
use crate::audits::{self, AuditCall, AuditKind};
use crate::control::{self, text};
use crate::exports::{resolve, split_export};
use crate::jobs::Job;
use crate::nbd::Handshake;
use blockstore::{Error, ErrorKind, Result, VolumeId};
use serde_json::{json, Value};
use std::sync::atomic::Ordering;
use std::time::Instant;
use tracing::{error, info, warn};

/// Findings of a check or scrub that go into the log.
const FINDINGS_LOGGED: usize = 20;
/// Bytes of a volume's name that go into the name of a temporary one.
const STEM_MAX: usize = 200;

impl Server {
    /// Carries out what is not one step on the pool; `false` when `request` is something else.
    pub(super) fn long_command(&mut self, token: u64, request: &Value) -> bool {
        let op = request.get("op").and_then(Value::as_str);
        let outcome = match op {
            Some("nbd") => {
                self.upgrade(token);
                Ok(())
            }
            Some("import") => self.begin_import(token, request),
            Some("export") => self.begin_export(token, request),
            Some("check") => self.call_audit(token, AuditKind::Check),
            Some("scrub") => {
                let volume = request.get("volume").and_then(Value::as_str);
                let known = volume.map_or(Ok(()), |name| resolve(&self.pool, name).map(drop));
                known.and_then(|()| self.call_audit(token, AuditKind::Scrub(volume.map(str::to_owned))))
            }
            _ => return false,
        };
        if !matches!(op, Some("nbd")) {
            info!(op, request = %request, error = outcome.as_ref().err().map(ToString::to_string), "long work begins");
        }
        if let Err(e) = outcome {
            self.say(token, &control::error_json(&e));
        }
        true
    }

    /// From here on the connection speaks NBD.
    fn upgrade(&mut self, token: u64) {
        if let Some(conn) = self.conns.get_mut(&token) {
            conn.role = Role::Handshake(Handshake::new(&mut conn.out), Instant::now());
        }
    }

    fn hand_over(&mut self, token: u64, export: &str, size: u64, temporary: Option<VolumeId>) {
        self.say(token, &json!({"export": export, "size_bytes": size}));
        if let Some(conn) = self.conns.get_mut(&token) {
            conn.temporary = temporary;
        }
        self.upgrade(token);
    }

    fn begin_import(&mut self, token: u64, request: &Value) -> Result<()> {
        let (name, size) = (text(request, "volume")?, control::number(request, "size_bytes")?);
        self.pool.check_new_name(name)?;
        let temporary = format!("{}.importing", stem(name));
        let made = self.pool.create_volume(&temporary, size);
        let (id, _) = made.map_err(|e| match e.kind() {
            ErrorKind::Exists => Error::new(
                ErrorKind::Exists,
                format!("{temporary} exists: another import runs, or was cut off; then delete it (cairn volume delete {temporary})"),
            ),
            _ => e,
        })?;
        self.hand_over(token, &temporary, size, Some(id));
        Ok(())
    }

    fn begin_export(&mut self, token: u64, request: &Value) -> Result<()> {
        let name = text(request, "volume")?;
        let view = resolve(&self.pool, name)?;
        let size = self.pool.view_size(view)?;
        if view.checkpoint.is_some() {
            self.hand_over(token, name, size, None);
            return Ok(());
        }
        let volume = split_export(name).map_or(name, |(volume, _)| volume);
        let free = |name: &String| self.pool.volume_id(name).is_err();
        let temporary = (1u32..).map(|n| format!("{}.exporting-{n}", stem(volume))).find(free).unwrap_or_default();
        let (id, _) = self.pool.fork(view.volume, None, &temporary)?;
        self.hand_over(token, &temporary, size, Some(id));
        Ok(())
    }

    /// Deletes the volume that lived as long as a connection.
    pub(super) fn drop_temporary(&mut self, id: VolumeId) {
        // Durable with the next sync; until then recovery may bring it back, under its telling name.
        if let Err(e) = self.pool.delete_volume(id) {
            warn!(error = %e, "a temporary volume could not be deleted");
        }
    }

    fn call_audit(&mut self, token: u64, kind: AuditKind) -> Result<()> {
        if self.audit.is_some() {
            return Err(audits::busy());
        }
        self.audit = Some(AuditCall { token, kind, called_off: std::sync::Arc::default(), running: false });
        Ok(())
    }

    /// Begins the audit that waits, once the pool has come to rest; `true` while one waits.
    pub(super) fn begin_audit(&mut self) -> bool {
        let Some(call) = self.audit.as_mut().filter(|call| !call.running) else { return false };
        if !self.pool.can_audit() {
            return true;
        }
        let begun = self.pool.begin_audit().and_then(|(anchor, job)| {
            self.workers.submit(Job::Anchor(Box::new(anchor)));
            call.running = true;
            let started = audits::start(call, job, self.workers.reporter());
            started.map_err(|e| Error::io("starting a thread", e))
        });
        if let Err(e) = begun {
            let token = call.token;
            self.audited(token, Err(e));
        }
        false
    }

    /// A line for somebody who waits.
    pub(super) fn progress(&mut self, token: u64, line: &Value) {
        // Whoever does not read is not told again.
        if self.conns.get(&token).is_some_and(|conn| conn.out.is_empty()) {
            self.say(token, line);
            self.send(token);
        }
    }

    pub(super) fn audited(&mut self, token: u64, outcome: Result<Value>) {
        self.audit = None;
        self.pool.end_audit();
        let listed = |key| outcome.as_ref().ok().and_then(|answer| answer.get(key)?.as_array()).into_iter().flatten();
        let findings: Vec<&str> = listed("problems").chain(listed("damaged")).filter_map(Value::as_str).collect();
        match (&outcome, findings.len()) {
            (Ok(_), 0) => info!("the pool was verified"),
            (Ok(_), found) => {
                // Each is a line of its own, which no log cuts off; the caller has them all.
                error!(found, "the pool is damaged");
                findings.iter().take(FINDINGS_LOGGED).for_each(|finding| error!(finding, "damage"));
            }
            (Err(e), _) => warn!(error = %e, "verifying the pool was not completed"),
        }
        let answer = outcome.unwrap_or_else(|e| control::error_json(&e));
        self.say(token, &answer);
        self.send(token);
    }

    /// What a connection that has ended leaves behind.
    pub(super) fn left(&mut self, token: u64, temporary: Option<VolumeId>) {
        if let Some(id) = temporary {
            self.drop_temporary(id);
        }
        match &self.audit {
            Some(call) if call.token == token && call.running => call.called_off.store(true, Ordering::Relaxed),
            Some(call) if call.token == token => self.audit = None,
            _ => {}
        }
    }
}

fn stem(name: &str) -> &str {
    name.get(..STEM_MAX).unwrap_or(name)
}
