//! Checkpoints: taking, listing, going back. Taking and going back are told line by line.

use super::sprites::object;
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::lifecycle::App;
use crate::registry::Sandbox;
use crate::time::{now, rfc3339};
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{header, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde_json::{json, Value};
use std::collections::HashMap;
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
        let key = if kind == "error" { "error" } else { "data" };
        let line = json!({"type": kind, key: data, "time": now()});
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

pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> ApiResult<Response> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let body = object(&body)?;
    let (comment, memory) = (body["comment"].as_str().unwrap_or_default().to_owned(), body["memory"] == true);
    Ok(told(move |lines| async move {
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
fn described(info: &Value, sandbox: &Sandbox) -> Value {
    json!({
        "id": info["id"], "create_time": info["create_time"], "comment": info["comment"], "is_auto": info["is_auto"],
        "durability": info["durability"], "bytes_exclusive": info.get("exclusive_bytes"), "source_id": sandbox.id,
        "size_bytes": info["size_bytes"],
    })
}

pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> ApiResult<Json<Value>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let is = |key: &str| query.get(key).is_some_and(|value| value == "true" || value == "1");
    let with_auto = is("includeAuto") || is("include_auto");
    let machine = sandbox.machine.clone();
    let all = app.blocking(move |app| app.pool.checkpoints(&machine)).await?;
    let shown = all.iter().rev().filter(|info| with_auto || info["is_auto"] != true);
    let current = json!({"id": "Current", "create_time": rfc3339(sandbox.created_us), "is_auto": false});
    Ok(Json(std::iter::once(current).chain(shown.map(|info| described(info, &sandbox))).collect()))
}

pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
) -> ApiResult<Json<Value>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let machine = sandbox.machine.clone();
    let info = app.blocking(move |app| app.pool.checkpoint_info(&machine, &id)).await?;
    Ok(Json(described(&info, &sandbox)))
}

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

pub async fn restore(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
) -> ApiResult<Response> {
    let sandbox = caller.sandbox(&app, &name).await?;
    Ok(told(move |lines| async move {
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
                lines.info("Container components started successfully").await;
                lines.say("complete", &format!("Restore from {id} complete")).await;
            }
            Err(e) => lines.say("error", &format!("Failed to restore checkpoint: {e}")).await,
        }
    }))
}
