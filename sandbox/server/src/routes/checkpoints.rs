//! Checkpoints: taking, listing, going back. Taking and going back are told line by line.

use super::answers::{BadRequest, Busy, Gone, Name, NameAndId, Refused};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::lifecycle::App;
use crate::registry::Sandbox;
use crate::time::{now, rfc3339};
use crate::wire::{parse, Checkpoint, CheckpointCreate, Line};
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{header, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Lines that wait for a client at most: all that there are.
const LINES: usize = 32;

/// Where the lines of one answer go.
#[derive(Clone)]
struct Lines(mpsc::Sender<Result<Bytes, Infallible>>);

impl Lines {
    async fn say(&self, kind: &str, data: &str) {
        // An error says what it is under its own name.
        let (data, error) = if kind == "error" { (None, Some(data)) } else { (Some(data), None) };
        let (data, error) = (data.map(str::to_owned), error.map(str::to_owned));
        let line = Line { r#type: kind.to_owned(), data, error, time: now() };
        let line = serde_json::to_string(&line).unwrap_or_default();
        let _ = self.0.send(Ok(format!("{line}\n").into())).await;
    }

    async fn info(&self, data: impl AsRef<str>) {
        self.say("info", data.as_ref()).await;
    }
}

/// An answer that is told while `work` goes on; a client that goes away does not stop it.
fn told<F: Future<Output = ()> + Send + 'static>(work: impl FnOnce(Lines) -> F) -> Response {
    let (to, lines) = mpsc::channel(LINES);
    tokio::spawn(work(Lines(to)));
    let body = Body::from_stream(ReceiverStream::new(lines));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// Name the present state of a sandbox's disk, or of disk and memory. Told line by line.
#[utoipa::path(post, path = "/v1/sprites/{name}/checkpoint", tag = "checkpoints", params(Name,
    ("wait" = Option<String>, Query, description = "`remote`: the end is told when it is in the object store")),
    request_body = CheckpointCreate, responses(
    (status = 200, description = "Lines; the last is `complete` or `error`", body = Line, content_type = "application/x-ndjson"),
    BadRequest, Refused, Gone))]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    body: Bytes,
) -> ApiResult<Response> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let body: CheckpointCreate = parse(&body)?;
    let (comment, memory) = (body.comment.unwrap_or_default(), body.memory == Some(true));
    let remote = match query.get("wait").map(String::as_str).or(body.wait.as_deref()) {
        None | Some("local") => false,
        Some("remote") => true,
        Some(_) => return Err(ApiError::bad("wait is local or remote")),
    };
    Ok(told(move |lines| async move {
        let _caller = caller;
        lines.info("Creating checkpoint...").await;
        let change = app.change(&sandbox.machine).await;
        let machine = sandbox.machine.clone();
        let made = app
            .blocking(move |app| {
                let mut held = app.machines.get(&machine)?;
                let cut = match memory {
                    true => held.checkpoint_with_memory(&*app.pool, &comment)?,
                    false => held.checkpoint(&*app.pool, &comment)?,
                };
                Ok((cut, app.pool.checkpoints(&machine)?))
            })
            .await;
        drop(change);
        let made = match made {
            Ok(made) if remote => {
                lines.info("Waiting until it is in the object store...").await;
                let machine = sandbox.machine.clone();
                let synced = app.blocking(move |app| app.pool.sync(&machine)).await;
                synced.map(|()| made).map_err(|e| ApiError::internal(format!("it was made, and is here alone: {e}")))
            }
            other => other,
        };
        match made {
            Ok((cut, all)) => {
                let info = all.iter().find(|info| info["id"] == cut.id.as_str());
                let time = info.and_then(|info| info["create_time"].as_str()).unwrap_or_default();
                let time = time.get(..19).unwrap_or(time).replace('T', " ");
                lines.info("Checkpoint created successfully").await;
                lines.info("\nCheckpoint Details:").await;
                lines.info(format!("  ID: {}", cut.id)).await;
                lines.info(format!("  Created: {time}")).await;
                lines.info(format!("  Path: checkpoints/{}", cut.id)).await;
                if let Some(why) = &cut.why {
                    lines.info(format!("  As after a power loss: {why}")).await;
                }
                lines.info("\nTo restore this checkpoint:").await;
                lines.info(format!("  sprite checkpoint restore {}", cut.id)).await;
                lines.info(format!("  curl -X POST /checkpoints/{}/restore", cut.id)).await;
                lines.say("complete", &format!("Checkpoint {} created successfully", cut.id)).await;
            }
            Err(e) => lines.say("error", &format!("Failed to create checkpoint: {e}")).await,
        }
    }))
}

/// A checkpoint of the pool, as the API tells it.
fn described(info: &Value, sandbox: &Sandbox, with_memory: &HashSet<String>) -> Checkpoint {
    let text = |key: &str| info[key].as_str().map(str::to_owned);
    let id = text("id").unwrap_or_default();
    Checkpoint {
        has_memory: Some(with_memory.contains(&id)),
        create_time: text("create_time").unwrap_or_default(),
        comment: text("comment"),
        is_auto: info["is_auto"] == true,
        durability: text("durability"),
        bytes_exclusive: info["exclusive_bytes"].as_u64(),
        source_id: Some(sandbox.id.clone()),
        size_bytes: info["size_bytes"].as_u64(),
        history: Vec::new(),
        id,
    }
}

/// The present, which is no checkpoint.
fn current(sandbox: &Sandbox) -> Checkpoint {
    Checkpoint {
        id: "Current".to_owned(),
        create_time: rfc3339(sandbox.created_us),
        comment: None,
        is_auto: false,
        durability: None,
        bytes_exclusive: None,
        source_id: None,
        size_bytes: None,
        has_memory: None,
        history: Vec::new(),
    }
}

/// Checkpoints of a sandbox, the newest first; before them `Current`.
#[utoipa::path(get, path = "/v1/sprites/{name}/checkpoints", tag = "checkpoints", params(Name,
    ("includeAuto" = Option<bool>, Query, description = "What restores replaced, too"),
    ("history" = Option<String>, Query, description = "Only what is this checkpoint or came of it")), responses(
    (status = 200, description = "They", body = Vec<Checkpoint>), Refused, Gone))]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> ApiResult<Json<Vec<Checkpoint>>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let is = |key: &str| query.get(key).is_some_and(|value| value == "true" || value == "1");
    let with_auto = is("includeAuto") || is("include_auto");
    let machine = sandbox.machine.clone();
    let look = move |app: &App| Ok((app.pool.checkpoints(&machine)?, app.machines.with_memory(&*app.pool, &machine)?));
    let (all, memory) = app.blocking(look).await?;
    let shown = all.iter().rev().filter(|info| with_auto || info["is_auto"] != true);
    let told = std::iter::once(current(&sandbox)).chain(shown.map(|info| described(info, &sandbox, &memory)));
    let wanted = query.get("history").map(String::as_str);
    Ok(Json(super::history::told(told.collect(), &all, &sandbox.machine, wanted)))
}

/// One checkpoint.
#[utoipa::path(get, path = "/v1/sprites/{name}/checkpoints/{id}", tag = "checkpoints", params(NameAndId), responses(
    (status = 200, description = "It", body = Checkpoint), Refused, Gone))]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
) -> ApiResult<Json<Checkpoint>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    if id == "Current" {
        return Ok(Json(current(&sandbox)));
    }
    let machine = sandbox.machine.clone();
    let look = move |app: &App| {
        Ok((app.pool.checkpoint_info(&machine, &id)?, app.machines.with_memory(&*app.pool, &machine)?))
    };
    let (info, memory) = app.blocking(look).await?;
    Ok(Json(described(&info, &sandbox, &memory)))
}

/// Delete a checkpoint, with the memory beside it.
#[utoipa::path(delete, path = "/v1/sprites/{name}/checkpoints/{id}", tag = "checkpoints", params(NameAndId), responses(
    (status = 204, description = "It is gone"), BadRequest, Refused, Gone, Busy))]
pub async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
) -> ApiResult<StatusCode> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let _change = app.change(&sandbox.machine).await;
    app.blocking(move |app| app.machines.get(&sandbox.machine)?.delete_checkpoint(&*app.pool, &id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a sandbox what it was, with its memory if that was saved; what it is now is kept as `auto-N`. Told line by line.
#[utoipa::path(post, path = "/v1/sprites/{name}/checkpoints/{id}/restore", tag = "checkpoints", params(NameAndId), responses(
    (status = 200, description = "Lines; the last is `complete` or `error`", body = Line, content_type = "application/x-ndjson"),
    Refused, Gone))]
pub async fn restore(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
) -> ApiResult<Response> {
    let sandbox = caller.sandbox(&app, &name).await?;
    Ok(told(move |lines| async move {
        let _caller = caller;
        lines.info(format!("Restoring from checkpoint {id}...")).await;
        let (machine, wanted) = (sandbox.machine.clone(), id.clone());
        let known = app.blocking(move |app| app.pool.checkpoint_info(&machine, &wanted)).await;
        let outcome = match known {
            Err(e) if e.status == StatusCode::NOT_FOUND || e.status == StatusCode::BAD_REQUEST => {
                let text = format!("checkpoint not found: checkpoint with path checkpoints/{id} not found");
                Err(ApiError::not_found(format!("failed to restore checkpoint: {text}")))
            }
            Err(e) => Err(e),
            Ok(_) => {
                let change = app.change(&sandbox.machine).await;
                app.sessions.end_all(&sandbox.machine);
                let (machine, wanted) = (sandbox.machine.clone(), id.clone());
                let outcome = app.blocking(move |app| app.machines.get(&machine)?.restore(&*app.pool, &wanted)).await;
                drop(change);
                outcome
            }
        };
        match outcome {
            Ok(_) => {
                app.relay(&sandbox);
                lines.info("Container components started successfully").await;
                lines.say("complete", &format!("Restore from {id} complete")).await;
            }
            Err(e) => lines.say("error", &format!("Failed to restore checkpoint: {e}")).await,
        }
    }))
}
