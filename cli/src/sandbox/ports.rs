//! Ports that are opened in a sandbox, brought to this machine for as long as a command or console runs there.
//!
//! Each is told once, on standard error: what listens there, and where it is reached. One that is closed is given back here, and
//! one that is opened again is at the same place if that is still free.

use super::forward::{Forward, Told};
use super::remote::Sandbox;
use super::socket::{Heard, Socket};
use crate::output::printable;
use serde_json::{json, Value};
use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

/// Ports that are forwarded at once.
const PORTS_MAX: usize = 64;
/// Between two looks whether the server is there.
const LOOK: Duration = Duration::from_secs(5);

/// Lines on standard error beside a command that has the terminal.
pub struct Voice {
    /// The terminal is in raw mode: a line begins and ends where it would not by itself.
    pub raw: bool,
    pub json: bool,
}

impl Voice {
    /// Says one line, as a whole.
    pub fn say(&self, line: &str) {
        let (begin, end) = if self.raw { ("\r\x1b[K", "\r\n") } else { ("", "\n") };
        let _ = io::stderr().write_all(format!("{begin}{line}{end}").as_bytes());
    }

    /// A port that can be reached.
    pub fn forwarded(&self, sandbox: &str, local: u16, remote: u16) {
        match self.json {
            true => {
                self.say(&json!({"forwarded": {"sandbox": sandbox, "port": remote, "local_port": local}}).to_string())
            }
            false => self.say(&format!("cairn: localhost:{local} → {sandbox}:{remote}")),
        }
    }
}

/// Forwards what is opened, from `after` on, until the process ends.
pub fn forward_all(sandbox: Arc<Sandbox>, voice: Voice, after: Duration) {
    std::thread::spawn(move || {
        // Most commands are over before.
        std::thread::sleep(after);
        // A server that has no such route, or no more room, has nothing to be forwarded.
        if let Ok(socket) = Socket::open(&sandbox.remote, &sandbox.path("/ports/watch")) {
            let _ = watch(&sandbox, &voice, socket);
        }
    });
}

fn watch(sandbox: &Arc<Sandbox>, voice: &Voice, mut socket: Socket) -> io::Result<()> {
    let (mut open, mut places) = (HashMap::new(), HashMap::new());
    loop {
        match socket.next()? {
            Heard::Text(said) => took(sandbox, voice, &said, &mut open, &mut places),
            Heard::Bytes(_) => {}
            Heard::End => return Ok(()),
            Heard::Nothing => {
                super::fds::wait([socket.wanted(true)], Some(LOOK))?;
                socket.go()?;
                socket.look(true)?;
            }
        }
    }
}

fn port_of(said: &Value) -> Option<u16> {
    said["port"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
}

/// What the server says of ports; `places` is where each was last.
fn took(
    sandbox: &Arc<Sandbox>,
    voice: &Voice,
    said: &Value,
    open: &mut HashMap<u16, Forward>,
    places: &mut HashMap<u16, u16>,
) {
    let opened: Vec<u16> = match said["type"].as_str() {
        Some("port_list") => said["ports"].as_array().into_iter().flatten().filter_map(port_of).collect(),
        Some("port_opened") => port_of(said).into_iter().collect(),
        Some("port_closed") => {
            port_of(said).map(|port| open.remove(&port));
            return;
        }
        _ => return,
    };
    // A connection that somebody refuses is the client's to see: a line would get into the command's output.
    let told: Told = Arc::new(|_| {});
    for port in opened {
        if open.len() >= PORTS_MAX || open.contains_key(&port) {
            continue;
        }
        let before = places.get(&port).copied();
        let again = before.and_then(|local| Forward::start(sandbox, local, port, told.clone()).ok());
        let found = again.map_or_else(|| Forward::start_somewhere(sandbox, port, told.clone()), Ok);
        match found {
            Ok(forward) => {
                if places.insert(port, forward.local) != Some(forward.local) {
                    voice.forwarded(&sandbox.name, forward.local, port);
                }
                open.insert(port, forward);
            }
            Err(e) => {
                voice.say(&printable(&format!("cairn: port {port} of {} cannot be reached here: {e}", sandbox.name)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_that_can_be() {
        let of = |text: &str| port_of(&serde_json::from_str(text).unwrap_or_default());
        assert_eq!(
            (of("{\"port\": 8080}"), of("{\"port\": 0}"), of("{\"port\": 65536}"), of("{}")),
            (Some(8080), None, None, None)
        );
    }
}
