//! Guests over vhost-user: where their VMMs come in, and their turns.
//!
//! A volume is served at `vhost/NAME.sock` in the pool's folder once somebody has asked for that. The file is the record of
//! it: a daemon that starts listens at every one again, so that VMMs find their way back.
//!
//! Invariants
//!   * one VMM at a time is served at a socket, which the pool's owner alone can use;
//!   * a guest that is not asked to ring is looked at in every round of the loop, for no longer than the loop spins;
//!   * what a guest asks for is carried out under the same rules as what an NBD client does: leases, room, pace, turns.

use super::conn::{Role, Socket};
use super::flush::Waiter;
use super::listen::{check_socket_path, listen_unix};
use super::{Server, SPIN};
use crate::control::text;
use crate::exports::resolve;
use crate::poll;
use crate::vhost::{Guest, GuestWait, Next};
use blockstore::{Error, ErrorKind, Result};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tracing::{info, warn};

/// Guests at a time: one more is refused. Each has up to three descriptors for each of its queues.
const GUESTS_MAX: usize = 64;
/// VMMs let in at a socket in one turn.
const ACCEPTS_PER_TURN: usize = 4;
/// Marks the token of what rings for a guest, beside that of its socket.
const BELL: u64 = 1 << 63;
const FOLDER: &str = "vhost";
const EXTENSION: &str = "sock";

/// A socket at which a VMM comes in.
struct Door {
    listener: UnixListener,
    export: String,
    path: PathBuf,
}

/// Where guests come in, and who is looked at.
pub(super) struct Guests {
    folder: PathBuf,
    doors: BTreeMap<u64, Door>,
    awake: Vec<u64>,
}

impl Guests {
    pub(super) fn new(pool: &Path) -> Self {
        Self { folder: pool.join(FOLDER), doors: BTreeMap::new(), awake: Vec::new() }
    }

    /// Whether there are guests that do not ring: the loop must not sleep then.
    pub(super) fn are_awake(&self) -> bool {
        !self.awake.is_empty()
    }
}

impl Server {
    /// Serves what a command names to a VMM; answers where.
    pub(super) fn listen_for_guests(&mut self, request: &Value) -> Result<Value> {
        let export = text(request, "volume")?;
        resolve(&self.pool, export)?;
        let known = self.guests.doors.values().find(|door| door.export == export).map(|door| door.path.clone());
        let path = known.map_or_else(|| self.open_door(export), Ok)?;
        let path = std::path::absolute(&path).unwrap_or(path);
        Ok(json!({"volume": export, "socket": path}))
    }

    fn open_door(&mut self, export: &str) -> Result<PathBuf> {
        let path = self.guests.folder.join(format!("{export}.{EXTENSION}"));
        let failed = |e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Invalid, format!("{export} cannot be served at {}: {e}", path.display()))
        };
        let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(&self.guests.folder);
        made.map_err(|e| failed(&e))?;
        // A VMM uses the absolute path.
        let absolute = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        check_socket_path(&absolute).map_err(|e| failed(&e))?;
        let listener = listen_unix(&path).map_err(|e| failed(&e))?;
        let token = self.next_token;
        self.next_token += 1;
        self.poll.add(listener.as_raw_fd(), token, poll::READ).map_err(|e| failed(&e))?;
        info!(export, path = %path.display(), "a volume is served to VMMs");
        self.guests.doors.insert(token, Door { listener, export: export.to_owned(), path: path.clone() });
        Ok(path)
    }

    /// Listens wherever a daemon before this one did, as far as the volumes are still there.
    pub(super) fn listen_again(&mut self) {
        let Ok(entries) = fs::read_dir(&self.guests.folder) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let is_socket = path.extension().is_some_and(|extension| extension == EXTENSION);
            let Some(export) = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_socket) else { continue };
            match resolve(&self.pool, export).and_then(|_| self.open_door(export)) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => drop(fs::remove_file(&path)),
                Err(e) => warn!(error = %e, "a volume is not served to VMMs any more"),
            }
        }
    }

    /// Closes the doors of what is no longer there.
    pub(super) fn close_doors(&mut self) {
        let gone = |door: &Door| resolve(&self.pool, &door.export).is_err_and(|e| e.kind() == ErrorKind::NotFound);
        let gone: Vec<u64> = self.guests.doors.iter().filter(|(_, door)| gone(door)).map(|(token, _)| *token).collect();
        for door in gone.iter().filter_map(|token| self.guests.doors.remove(token)) {
            let _ = self.poll.remove(door.listener.as_raw_fd());
            let _ = fs::remove_file(&door.path);
        }
    }

    /// Something has happened at a door or a bell; `false` when `token` is neither.
    pub(super) fn guest_event(&mut self, token: u64) -> bool {
        if self.guests.doors.contains_key(&token) {
            self.let_guests_in(token);
        } else if token & BELL != 0 {
            let token = token & !BELL;
            let Some(conn) = self.conns.get_mut(&token) else { return true };
            let Role::Guest(guest) = &conn.role else { return true };
            guest.heard();
            // A held guest is carried on with when it is let go, and one that has yielded in its turn.
            if conn.held || conn.yielded {
                conn.more = true;
                return true;
            }
            self.guest_turn(token);
            self.send(token);
        } else {
            return false;
        }
        true
    }

    fn let_guests_in(&mut self, door: u64) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(Door { listener, export, .. }) = self.guests.doors.get(&door) else { return };
            let Ok((stream, _)) = listener.accept() else { return };
            let export = export.clone();
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            // One that has hung up may not have been noticed yet.
            let there = |server: &Self| {
                let mut all = server.conns.iter().filter(|(_, conn)| matches!(conn.role, Role::Guest(_)));
                all.find(|(_, conn)| conn.role.open().is_some_and(|(_, name)| name == export)).map(|(token, _)| *token)
            };
            if let Some(before) = there(self) {
                self.hear_guest(before);
            }
            let count = self.conns.values().filter(|conn| matches!(conn.role, Role::Guest(_))).count();
            if there(self).is_some() || count >= GUESTS_MAX {
                warn!(export, "a VMM is turned away: the volume has one already, or there are too many");
                continue;
            }
            let view = resolve(&self.pool, &export)
                .and_then(|view| Ok((view, self.pool.view_size(view)?, self.pool.volume_info(view.volume)?.read_only)));
            let made = view.map_err(|e| e.to_string()).and_then(|(view, size, read_only)| {
                Guest::new(&stream, export.clone(), view, size, read_only).map_err(|e| e.to_string())
            });
            match made {
                Ok(guest) => self.add_guest(Socket::Unix(stream), guest),
                Err(why) => warn!(export, why, "a VMM is turned away"),
            }
        }
    }

    fn add_guest(&mut self, socket: Socket, guest: Guest) {
        let (token, bell) = (self.next_token, guest.bell());
        info!(client = token, export = guest.export(), "a guest has come");
        self.add(socket, Role::Guest(Box::new(guest)), Vec::new());
        if self.conns.contains_key(&token) && self.poll.add(bell, token | BELL, poll::READ).is_err() {
            self.close(token, "it cannot be heard");
        }
    }

    /// Hears what a guest's VMM says, and what the guest asks for now.
    pub(super) fn hear_guest(&mut self, token: u64) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let Role::Guest(guest) = &mut conn.role else { return };
        if let Err(why) = guest.listen() {
            return self.close(token, why);
        }
        if conn.held || conn.yielded {
            conn.more = true;
        } else {
            self.guest_turn(token);
        }
        self.send(token);
    }

    /// Carries out what a guest asks for, up to the end of its turn.
    pub(super) fn guest_turn(&mut self, token: u64) {
        if self.room.holds(token) || !self.may_answer(token) {
            return;
        }
        let now = Instant::now();
        let paced = self.pace.is_beside_flushes(token, now).then(|| self.pool.appended_bytes());
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let Role::Guest(guest) = &mut conn.role else { return };
        guest.small_pieces = paced.is_some();
        let (volume, mut waits) = (guest.view.volume, Vec::new());
        let next = match guest.process(&mut self.pool, &mut self.metrics, &mut waits) {
            Ok(next) => next,
            Err(why) => return self.close(token, why),
        };
        conn.more = next == Next::Yield;
        conn.stalled = next == Next::Wait;
        conn.waiting += waits.len();
        match next {
            Next::Hold => self.room.hold(token),
            Next::Idle if !self.guests.awake.contains(&token) => self.guests.awake.push(token),
            Next::Idle | Next::Wait | Next::Yield => {}
        }
        let waits = waits.into_iter().map(|wait| Waiter::Guest(token, wait)).collect();
        self.after_turn(token, volume, paced, waits);
        // Taken last, as elsewhere: a sync may have taken longer than the loop spins.
        self.last_activity = Instant::now();
    }

    /// Looks at the guests that are not asked to ring; those that have been quiet for a while are, from now on.
    pub(super) fn look_at_guests(&mut self) {
        let mut at = 0;
        while let Some(&token) = self.guests.awake.get(at) {
            let quiet = match self.conns.get_mut(&token) {
                // Its turn comes anyway.
                Some(conn) if conn.held || conn.yielded => {
                    conn.more = true;
                    true
                }
                Some(conn) => match &mut conn.role {
                    Role::Guest(guest) if guest.has_more() => false,
                    Role::Guest(guest) if guest.busy_at.elapsed() < SPIN => {
                        at += 1;
                        continue;
                    }
                    Role::Guest(guest) => !guest.rest(),
                    _ => true,
                },
                None => true,
            };
            self.guests.awake.swap_remove(at);
            if !quiet {
                self.guest_turn(token);
                self.send(token);
            }
        }
    }

    /// The sync that a guest's request waited for is over.
    pub(super) fn guest_synced(&mut self, token: u64, wait: GuestWait, failure: Option<&str>) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let Role::Guest(guest) = &mut conn.role else { return };
        guest.synced(wait, failure);
        (conn.waiting, conn.unwritten) = (conn.waiting.saturating_sub(1), 0);
        if !self.may_answer(token) {
            // Its turn comes when that is known, and begins with what it was not shown.
            return;
        }
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let Role::Guest(guest) = &mut conn.role else { return };
        match guest.show() {
            Ok(()) => self.send(token),
            Err(why) => self.close(token, why),
        }
    }

    /// Tells the guests of a volume that was resized, and closes the doors of one that was deleted.
    pub(super) fn tell_guests(&mut self, request: &Value) {
        match request.get("op").and_then(Value::as_str) {
            Some("volume.resize") => {}
            Some("volume.delete" | "checkpoint.delete") => return self.close_doors(),
            _ => return,
        }
        let Ok(volume) = text(request, "volume").and_then(|name| Ok(resolve(&self.pool, name)?.volume)) else { return };
        for conn in self.conns.values_mut() {
            let Role::Guest(guest) = &mut conn.role else { continue };
            if guest.view.volume == volume && guest.view.checkpoint.is_none() {
                let size = self.pool.view_size(guest.view).unwrap_or(0);
                guest.resized(size);
            }
        }
    }

    /// The daemon ends: nothing more is taken of any guest, and nobody is let in.
    pub(super) fn end_guests(&mut self) {
        // The sockets stay: they say what the next daemon serves.
        self.guests.doors.clear();
        for conn in self.conns.values_mut() {
            if let Role::Guest(guest) = &mut conn.role {
                guest.closing = true;
                let _ = self.poll.remove(guest.bell());
            }
        }
    }
}
