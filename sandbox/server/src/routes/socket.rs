//! A WebSocket that watches a command: frames with a byte that says which stream they are of, or a terminal's bytes.
//!
//! Invariants
//!   * the last that a client gets is the status, as a frame and as text, and then the socket is closed at once;
//!   * what a client sends is taken beside what it gets: a command that neither reads nor ends holds up nobody.

use crate::session::{Event, Hold, Session};
use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::{json, Value};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Some clients take silence for a broken connection.
const ALIVE: Duration = Duration::from_secs(15);
/// How long a client may take to say that it closes, too.
const CLOSING: Duration = Duration::from_secs(2);
/// Kinds of frames.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;
const STDIN_END: u8 = 4;
/// Close codes: a good end, and the first of those that tell a terminal's client of another status.
const CLOSE_GOOD: u16 = 1000;
const CLOSE_STATUS: u16 = 4000;

/// Who watches what.
pub struct Watcher {
    pub session: Arc<Session>,
    pub events: mpsc::Receiver<Event>,
    /// What came before.
    pub kept: Vec<u8>,
    pub is_owner: bool,
    /// Its command goes on for as long as it may when this has gone.
    pub hold: Hold,
}

/// A signal's number by its name.
pub fn signal(name: &str) -> Option<u8> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let known = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("WINCH", libc::SIGWINCH),
    ];
    let found = known.iter().find(|(known, _)| *known == name).map(|(_, number)| *number as u8);
    found.or_else(|| name.parse().ok().filter(|number| (1..=64).contains(number)))
}

/// What a client may say as text.
async fn control(session: &Session, text: &str) {
    let Ok(said) = serde_json::from_str::<Value>(text) else { return };
    let number = |key: &str| said[key].as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    match said["type"].as_str() {
        Some("resize") => {
            if let (Some(rows), Some(columns)) = (number("rows"), number("cols")) {
                session.resize(rows, columns).await;
            }
        }
        Some("signal") => {
            if let Some(signal) = said["signal"].as_str().and_then(signal) {
                session.signal(signal).await;
            }
        }
        _ => {}
    }
}

/// Takes what the client sends until it goes.
async fn take(session: Arc<Session>, mut from: SplitStream<WebSocket>, gone: oneshot::Sender<()>) {
    while let Some(Ok(message)) = from.next().await {
        match message {
            Message::Binary(bytes) if session.meta.tty => {
                // One SDK sends what is text elsewhere as bytes.
                match bytes.starts_with(b"{\"type\":").then(|| std::str::from_utf8(&bytes)) {
                    Some(Ok(text)) if serde_json::from_str::<Value>(text).is_ok() => control(&session, text).await,
                    _ => drop(session.write(&bytes).await),
                }
            }
            Message::Binary(bytes) => match bytes.split_first() {
                Some((&STDIN, bytes)) => drop(session.write(bytes).await),
                Some((&STDIN_END, _)) => session.end_input().await,
                Some((&b'{', _)) => control(&session, std::str::from_utf8(&bytes).unwrap_or_default()).await,
                _ => {}
            },
            Message::Text(text) => control(&session, &text).await,
            Message::Close(_) => break,
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
    let _ = gone.send(());
}

fn framed(kind: u8, bytes: &[u8]) -> Message {
    Message::Binary(Bytes::from([&[kind], bytes].concat()))
}

/// Sends what the command says until its end, or the client's; whether it was the command's.
async fn tell(
    watcher: &mut Watcher,
    to: &mut SplitSink<WebSocket, Message>,
    mut gone: oneshot::Receiver<()>,
) -> Option<u8> {
    let session = watcher.session.clone();
    let tty = session.meta.tty;
    session.begun().await;
    let info = json!({
        "type": "session_info", "session_id": session.id(), "command": session.meta.command,
        "created": session.created_us / 1_000_000, "cols": session.meta.columns, "rows": session.meta.rows,
        "is_owner": watcher.is_owner, "tty": tty,
    });
    to.send(Message::Text(info.to_string().into())).await.ok()?;
    if !watcher.kept.is_empty() {
        let kept = std::mem::take(&mut watcher.kept);
        to.send(if tty { Message::Binary(kept.into()) } else { framed(STDOUT, &kept) }).await.ok()?;
    }
    let mut alive = tokio::time::interval(ALIVE);
    alive.tick().await;
    loop {
        let message = tokio::select! {
            event = watcher.events.recv() => match event {
                Some(Event::Stdout(bytes) | Event::Stderr(bytes)) if tty => Message::Binary(bytes),
                Some(Event::Stdout(bytes)) => framed(STDOUT, &bytes),
                Some(Event::Stderr(bytes)) => framed(STDERR, &bytes),
                Some(Event::Exit(code)) => return Some(code),
                None => return Some(crate::session::LOST),
            },
            _ = &mut gone => return None,
            _ = alive.tick() => {
                to.send(Message::Ping(Bytes::new())).await.ok()?;
                // A terminal's client would show it.
                if tty {
                    continue;
                }
                Message::Text(json!({"type": "debug", "msg": "alive"}).to_string().into())
            }
        };
        to.send(message).await.ok()?;
    }
}

/// Serves a client until the command ends or it goes.
pub async fn serve(socket: WebSocket, mut watcher: Watcher) {
    let (mut to, from) = socket.split();
    let (gone, has_gone) = oneshot::channel();
    let session = watcher.session.clone();
    let taking = tokio::spawn(take(session.clone(), from, gone));
    let ended = tell(&mut watcher, &mut to, has_gone).await;
    // The events go first: whoever looks for watchers finds none.
    let Watcher { events, hold, .. } = watcher;
    drop(events);
    drop(hold);
    match ended {
        Some(code) => {
            if !session.meta.tty {
                let _ = to.send(framed(EXIT, &[code])).await;
            }
            let _ = to.send(Message::Text(json!({"type": "exit", "exit_code": code}).to_string().into())).await;
            let close = if code == 0 || !session.meta.tty { CLOSE_GOOD } else { CLOSE_STATUS + u16::from(code) };
            let _ = to.send(Message::Close(Some(CloseFrame { code: close, reason: "".into() }))).await;
            // What the client still sends is read: a connection that is closed before would be reset, and the client would
            // lose what it has not read yet.
            let abort = taking.abort_handle();
            if tokio::time::timeout(CLOSING, taking).await.is_err() {
                abort.abort();
            }
        }
        None => taking.abort(),
    }
}

#[cfg(test)]
mod tests {
    use super::signal;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!((signal("TERM"), signal("SIGTERM"), signal("15")), (Some(15), Some(15), Some(15)));
        assert_eq!((signal(""), signal("0"), signal("SIGNOTHING"), signal("65")), (None, None, None, None));
    }
}
