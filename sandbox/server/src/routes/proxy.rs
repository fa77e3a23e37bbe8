//! TCP connections into a guest, the ports that somebody listens on there, and files that change, over WebSockets.

use super::answers::{Busy, Gone, Name, Refused};
use super::files::place;
use crate::caller::Caller;
use crate::error::ApiResult;
use crate::exec::Watched;
use crate::lifecycle::App;
use crate::registry::Sandbox;
use crate::session::Event;
use crate::time::rfc3339;
use crate::upgrade::Upgrade;
use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket};
use axum::extract::{Path, State};
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use serde_json::{json, Value};
use std::sync::Arc;
use std::time::Duration;

/// How long a client may take to say where to.
const FIRST: Duration = Duration::from_secs(10);
/// A line of the agent's.
const LINE_MAX: usize = 64 << 10;

/// A TCP connection in the guest: `{"host", "port"}` as the first message, bytes afterwards. Needs an upgrade to WebSocket.
#[utoipa::path(get, path = "/v1/sprites/{name}/proxy", tag = "streams", params(Name), responses(
    (status = 101, description = "Say where to"), (status = 400, description = "Ask for an upgrade"), Refused, Gone, Busy))]
pub async fn proxy(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Upgrade(socket): Upgrade,
) -> ApiResult<Response> {
    let sandbox = caller.sandbox(&app, &name).await?;
    Ok(socket.on_upgrade(move |socket| async move {
        let _caller = caller;
        connect(app, sandbox, socket).await;
    }))
}

async fn refuse(mut socket: WebSocket, why: &str) {
    let _ = socket.send(Message::Text(json!({"status": "error", "error": why}).to_string().into())).await;
    let _ = socket.send(Message::Close(None)).await;
}

/// Where a client wants to, by its first message.
async fn wanted(socket: &mut WebSocket) -> Option<(String, String)> {
    let first = tokio::time::timeout(FIRST, socket.recv()).await.ok()??.ok()?;
    let said: Value = serde_json::from_str(first.to_text().ok()?).ok()?;
    let port = said["port"].as_u64().filter(|port| (1..=65535).contains(port))?;
    let host = said["host"].as_str().filter(|host| !host.is_empty()).unwrap_or("localhost");
    Some((host.to_owned(), port.to_string()))
}

async fn connect(app: Arc<App>, sandbox: Sandbox, mut socket: WebSocket) {
    let Some((host, port)) = wanted(&mut socket).await else {
        return refuse(socket, "say where to first: {\"host\": \"localhost\", \"port\": 8080}").await;
    };
    let mut begun = match app.agent(&sandbox, &["proxy", &host, &port]).await {
        Ok(begun) => begun,
        Err(e) => return refuse(socket, &e.message()).await,
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let end = loop {
        match begun.events.recv().await {
            Some(Event::Stdout(bytes)) => out.extend(&bytes[..]),
            Some(Event::Stderr(bytes)) if err.len() < LINE_MAX => err.extend(&bytes[..]),
            Some(Event::Stderr(_)) => {}
            Some(Event::Exit(_)) | None => {
                let said: Value = serde_json::from_slice(&err).unwrap_or_default();
                let why = said["error"].as_str().unwrap_or("nobody listens there");
                return refuse(socket, why).await;
            }
        }
        if let Some(end) = out.iter().position(|byte| *byte == b'\n') {
            break end;
        }
    };
    let rest = out.split_off(end);
    if socket.send(Message::Text(String::from_utf8_lossy(&out).into_owned().into())).await.is_err() {
        return begun.session.give_up();
    }
    let (mut to, mut from) = socket.split();
    let session = begun.session.clone();
    let taking = tokio::spawn(async move {
        while let Some(Ok(message)) = from.next().await {
            match message {
                // The end of what the client sends; it may still read.
                Message::Binary(bytes) if bytes.is_empty() => session.end_input().await,
                Message::Binary(bytes) if !session.write(&bytes).await => break,
                Message::Close(_) => break,
                _ => {}
            }
        }
        session.end_input().await;
    });
    let mut next = Some(Bytes::from(rest).slice(1..)).filter(|rest| !rest.is_empty());
    loop {
        if let Some(bytes) = next.take() {
            if to.send(Message::Binary(bytes)).await.is_err() {
                break;
            }
        }
        match begun.events.recv().await {
            Some(Event::Stdout(bytes)) => next = Some(bytes),
            Some(Event::Stderr(_)) => {}
            Some(Event::Exit(_)) | None => break,
        }
    }
    let _ = to.send(Message::Close(None)).await;
    begun.session.give_up();
    taking.abort();
}

/// Ports that somebody listens on in the guest: those there are, then `port_opened` and `port_closed`. Needs an upgrade to
/// WebSocket.
#[utoipa::path(get, path = "/v1/sprites/{name}/ports/watch", tag = "streams", params(Name), responses(
    (status = 101, description = "They are told"), (status = 400, description = "Ask for an upgrade"), Refused, Gone, Busy))]
pub async fn ports(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Upgrade(socket): Upgrade,
) -> ApiResult<Response> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let begun = app.agent(&sandbox, &["ports"]).await?;
    Ok(socket.on_upgrade(|socket| async move {
        let _caller = caller;
        lines(begun, socket).await;
    }))
}

/// Changes of files: `{"type": "subscribe", "paths", "recursive"}` as the first message. Needs an upgrade to WebSocket.
#[utoipa::path(get, path = "/v1/sprites/{name}/fs/watch", tag = "streams", params(Name), responses(
    (status = 101, description = "Say what to watch"), (status = 400, description = "Ask for an upgrade"), Refused, Gone, Busy))]
pub async fn files(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Upgrade(socket): Upgrade,
) -> ApiResult<Response> {
    let sandbox = caller.sandbox(&app, &name).await?;
    Ok(socket.on_upgrade(move |socket| async move {
        let _caller = caller;
        watch_files(app, sandbox, socket).await;
    }))
}

async fn watch_files(app: Arc<App>, sandbox: Sandbox, mut socket: WebSocket) {
    let error = |text: &str| Message::Text(json!({"type": "error", "message": text}).to_string().into());
    let first = tokio::time::timeout(FIRST, socket.recv()).await;
    let said = match &first {
        Ok(Some(Ok(Message::Text(text)))) => serde_json::from_str(text).unwrap_or(Value::Null),
        _ => Value::Null,
    };
    let folder = said["workingDir"].as_str();
    let paths = said["paths"].as_array().into_iter().flatten();
    let paths: ApiResult<Vec<String>> = paths.map(|path| place(path.as_str(), folder)).collect();
    let Some(paths) = paths.ok().filter(|paths| !paths.is_empty()) else {
        let text = "say what to watch first: {\"type\": \"subscribe\", \"paths\": [\"/root\"]}";
        return drop(socket.send(error(text)).await);
    };
    let mut words = vec!["watch"];
    words.extend((said["recursive"] == true).then_some("--recursive"));
    words.push("--");
    words.extend(paths.iter().map(String::as_str));
    match app.agent(&sandbox, &words).await {
        Ok(begun) => lines(begun, socket).await,
        Err(e) => drop(socket.send(error(&e.message())).await),
    }
}

async fn lines(mut begun: Watched, mut socket: WebSocket) {
    let mut said = Vec::new();
    loop {
        tokio::select! {
            event = begun.events.recv() => match event {
                Some(Event::Stdout(bytes)) => said.extend(&bytes[..]),
                Some(Event::Stderr(bytes)) => {
                    let found: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                    let line = json!({"type": "error", "message": found["error"], "path": found["path"]});
                    if socket.send(Message::Text(line.to_string().into())).await.is_err() {
                        break;
                    }
                }
                Some(Event::Exit(_)) | None => break,
            },
            message = socket.recv() => if !matches!(message, Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_)))) {
                break;
            },
        }
        while let Some(end) = said.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = said.drain(..=end).collect();
            let mut said: Value = serde_json::from_slice(&line).unwrap_or_default();
            if let Some(us) = said["timestampUs"].as_i64() {
                said["timestamp"] = json!(rfc3339(us));
                said.as_object_mut().map(|fields| fields.remove("timestampUs"));
            }
            let text = said.to_string();
            if socket.send(Message::Text(text.into())).await.is_err() {
                return begun.session.give_up();
            }
        }
        if said.len() > LINE_MAX {
            break;
        }
    }
    begun.session.give_up();
    let _ = socket.send(Message::Close(None)).await;
}
