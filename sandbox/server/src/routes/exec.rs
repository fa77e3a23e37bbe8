//! Commands over a WebSocket: begin one, attach to one that runs, list them.

use super::answers::{BadRequest, Busy, Gone, Name, NameAndSession, Refused};
use super::socket::{serve, Watcher};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::lifecycle::App;
use crate::session::{Hold, Meta};
use crate::time::duration;
use crate::upgrade::Upgrade;
use crate::wire::SessionList;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::Json;
use std::sync::Arc;
use std::time::Duration;
use vmm_glue::{Exec, Window};

/// How long a command without a terminal goes on when nobody watches it, unless its client says otherwise.
const AFTER_DISCONNECT: Duration = Duration::from_secs(10);
/// Bytes of one message of a client.
const MESSAGE_MAX: usize = 16 << 20;

/// The words of a query, which may have one name several times.
pub struct Words(pub Vec<(String, String)>);

impl Words {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub fn is(&self, key: &str) -> bool {
        matches!(self.get(key), Some("true" | "1"))
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The command that they tell of.
    pub fn exec(&self) -> ApiResult<(Exec, Meta)> {
        let mut argv: Vec<Vec<u8>> = self.all("cmd").map(|word| word.as_bytes().to_vec()).collect();
        if argv.is_empty() {
            argv.extend(self.get("path").map(|path| path.as_bytes().to_vec()));
        }
        if argv.is_empty() {
            return Err(ApiError::bad("say what to run: cmd=…"));
        }
        let command = argv.iter().map(|word| String::from_utf8_lossy(word)).collect::<Vec<_>>().join(" ");
        let mut env = Vec::new();
        for variable in self.all("env") {
            let parts = variable.split_once('=').filter(|(name, _)| !name.is_empty());
            let (name, value) = parts.ok_or_else(|| ApiError::bad(format!("{variable:?} is no NAME=VALUE")))?;
            env.push((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        }
        let size = |key: &str, usual: u16| {
            self.get(key).and_then(|text| text.parse().ok()).filter(|n| *n > 0).unwrap_or(usual)
        };
        let (tty, rows, columns) = (self.is("tty"), size("rows", 24), size("cols", 80));
        let after_disconnect = match self.get("max_run_after_disconnect").map(duration) {
            Some(Some(Duration::ZERO)) => None,
            Some(Some(time)) => Some(time),
            Some(None) => return Err(ApiError::bad("max_run_after_disconnect is no time: use 30s, 5m, 1h")),
            None => (!tty && !self.is("detachable")).then_some(AFTER_DISCONNECT),
        };
        let dir = self.get("dir").unwrap_or_default().to_owned();
        let tty_size = tty.then_some(Window { rows, columns });
        let exec = Exec { argv, env, cwd: dir.clone().into_bytes(), tty: tty_size };
        let (rows, columns) = if tty { (rows, columns) } else { (0, 0) };
        Ok((exec, Meta { command, dir, tty, rows, columns, after_disconnect }))
    }
}

fn watched(socket: WebSocketUpgrade, watcher: Watcher, caller: Caller) -> Response {
    let mut response = socket.max_message_size(MESSAGE_MAX).on_upgrade(|socket| async move {
        let _caller = caller;
        serve(socket, watcher).await;
    });
    response.headers_mut().insert(HeaderName::from_static("x-sprite-capabilities"), HeaderValue::from_static("signal"));
    response
}

async fn attach_to(
    app: &Arc<App>,
    caller: &Caller,
    name: &str,
    id: &str,
    socket: WebSocketUpgrade,
) -> ApiResult<Response> {
    let sandbox = caller.sandbox(app, name).await?;
    let session = app.sessions.find(&sandbox.machine, id);
    let session = session.ok_or_else(|| ApiError::not_found(format!("session not found: {id}")))?;
    let (kept, events) = session.watch();
    let watcher = Watcher { hold: Hold(session.clone()), session, events, kept, is_owner: false };
    Ok(watched(socket, watcher, caller.clone()))
}

/// Commands that run; with an upgrade to WebSocket a command begins. Frames are a byte (0 standard input, 1 standard output,
/// 2 standard error, 3 the status, 4 the end of standard input) and bytes; with `tty` bytes alone.
#[utoipa::path(get, path = "/v1/sprites/{name}/exec", tag = "commands", params(Name,
    ("cmd" = Option<Vec<String>>, Query, description = "Each word of the command"),
    ("dir" = Option<String>, Query, description = "The folder to begin in"),
    ("env" = Option<Vec<String>>, Query, description = "NAME=VALUE"),
    ("tty" = Option<bool>, Query, description = "With a terminal"),
    ("rows" = Option<u16>, Query, description = "Of the terminal"),
    ("cols" = Option<u16>, Query, description = "Of the terminal"),
    ("detachable" = Option<bool>, Query, description = "It goes on when nobody watches"),
    ("max_run_after_disconnect" = Option<String>, Query, description = "For so long: 30s; 0 is for ever")), responses(
    (status = 101, description = "The command begins"), (status = 200, description = "They", body = SessionList),
    BadRequest, Refused, Gone, Busy))]
pub async fn begin_or_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(words): Query<Vec<(String, String)>>,
    socket: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> ApiResult<Response> {
    let words = Words(words);
    let Ok(socket) = socket else {
        let sandbox = caller.sandbox(&app, &name).await?;
        let mut sessions = app.sessions.listed(&sandbox.machine);
        sessions.sort_by_key(|session| session.created_us);
        let sessions: Vec<_> = sessions.iter().map(|session| session.told()).collect();
        return Ok(Json(SessionList { count: sessions.len(), sessions }).into_response());
    };
    if let Some(id) = words.get("id").filter(|id| !id.is_empty()) {
        return attach_to(&app, &caller, &name, id, socket).await;
    }
    let (exec, meta) = words.exec()?;
    let sandbox = caller.sandbox(&app, &name).await?;
    let begun = app.begin(&sandbox, exec, Some(meta)).await?;
    let watcher =
        Watcher { hold: begun.hold, session: begun.session, events: begun.events, kept: Vec::new(), is_owner: true };
    Ok(watched(socket, watcher, caller))
}

/// Attach to a command that runs: what it wrote last comes first. Needs an upgrade to WebSocket.
#[utoipa::path(get, path = "/v1/sprites/{name}/exec/{id}", tag = "commands", params(NameAndSession), responses(
    (status = 101, description = "What it wrote last, then all that comes"), BadRequest, Refused, Gone,
    (status = 426, description = "Ask for an upgrade")))]
pub async fn attach(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
    Upgrade(socket): Upgrade,
) -> ApiResult<Response> {
    attach_to(&app, &caller, &name, &id, socket).await
}
