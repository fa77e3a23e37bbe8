//! Sandboxes: making, looking at, changing, deleting.

use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::lifecycle::{self, App, Origin};
use crate::registry::Sandbox;
use crate::time::{now, rfc3339};
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{header, HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde_json::{json, Value};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use vmm_glue::Status;

/// Names in one page.
const PAGE: usize = 50;
/// Sandboxes that are watched at once.
const WATCHED: usize = 10_000;
/// Between two looks of who watches, and looks without news after which that is said.
const LOOK: Duration = Duration::from_millis(500);
const HEARTBEAT: u32 = 20;
const AUTHS: [&str; 2] = ["sprite", "public"];

type AppState = State<Arc<App>>;

/// The body as JSON; none is an empty object.
pub fn object(bytes: &Bytes) -> ApiResult<Value> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(json!({}));
    }
    match serde_json::from_slice(bytes) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(ApiError::bad("the body is no JSON object")),
        Err(e) => Err(ApiError::bad(format!("the body is no JSON: {e}"))),
    }
}

/// Letters, digits and `-`, as in a host's name.
fn check_name(name: &str) -> ApiResult<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good =
        (1..=63).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('-') && !name.ends_with('-');
    good.then_some(()).ok_or_else(|| ApiError::invalid("invalid sprite name format"))
}

/// `running` with a machine that runs, `warm` with memory that was saved, `cold` without.
fn status(status: Option<&Status>) -> &'static str {
    match status.map(|status| status.state.as_str()) {
        Some("running" | "paused" | "busy" | "unresponsive") => "running",
        Some("suspended") => "warm",
        _ => "cold",
    }
}

fn described(sandbox: &Sandbox, found: Option<&Status>) -> Value {
    json!({
        "id": sandbox.id,
        "name": sandbox.name,
        "status": status(found),
        "version": null,
        "url": format!("http://{}-{}.localhost", sandbox.name, sandbox.suffix),
        "created_at": rfc3339(sandbox.created_us),
        "updated_at": rfc3339(sandbox.updated_us),
        "last_active_at": sandbox.last_active_us.map(rfc3339),
        "organization": sandbox.org,
        "url_settings": {"auth": sandbox.url_auth},
        "environment_version": null,
        "labels": sandbox.labels,
        "config": sandbox.config,
    })
}

async fn described_now(app: &Arc<App>, sandbox: &Sandbox) -> ApiResult<Value> {
    let machine = sandbox.machine.clone();
    let found = app.blocking(move |app| app.machines.status(&machine)).await.ok();
    Ok(described(sandbox, found.as_ref()))
}

fn auth_of(body: &Value) -> ApiResult<Option<&str>> {
    match &body["url_settings"]["auth"] {
        Value::Null => Ok(None),
        Value::String(auth) if AUTHS.contains(&auth.as_str()) => Ok(Some(auth)),
        _ => Err(ApiError::invalid("invalid auth type, must be one of: sprite, public")),
    }
}

/// What a sandbox is made from: `from` in the body.
async fn source(app: &App, caller: &Caller, body: &Value) -> ApiResult<Origin> {
    let from = &body["from"];
    if let Some(image) = from["image"].as_str() {
        return Ok(Origin::Image(image.to_owned()));
    }
    let Some(name) = from["sprite"].as_str() else { return Ok(Origin::Image(app.image.clone())) };
    let origin = caller.sandbox(app, name).await?;
    Ok(Origin::Machine(match from["checkpoint"].as_str() {
        None | Some("Current") => origin.machine,
        Some(id) => format!("{}@{id}", origin.machine),
    }))
}

async fn make(app: &Arc<App>, caller: &Caller, name: &str, body: &Value) -> ApiResult<Value> {
    caller.whole_organization()?;
    check_name(name)?;
    auth_of(body)?;
    let from = source(app, caller, body).await?;
    let made = app.create(lifecycle::row(&caller.org, name, body)?, from).await?;
    described_now(app, &made).await
}

pub async fn create(State(app): AppState, caller: Caller, body: Bytes) -> ApiResult<Response> {
    let body = object(&body)?;
    let name = body["name"].as_str().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ApiError::bad("name is required"))?;
    Ok((StatusCode::CREATED, Json(make(&app, &caller, name, &body).await?)).into_response())
}

/// Changes a sandbox, or makes one that is not there.
pub async fn put(State(app): AppState, caller: Caller, Path(name): Path<String>, body: Bytes) -> ApiResult<Response> {
    let body = object(&body)?;
    let sandbox = match caller.sandbox(&app, &name).await {
        Ok(sandbox) => sandbox,
        Err(e) if e.status == StatusCode::NOT_FOUND && caller.whole_organization().is_ok() => {
            return Ok((StatusCode::CREATED, Json(make(&app, &caller, &name, &body).await?)).into_response());
        }
        Err(e) => return Err(e),
    };
    let auth = auth_of(&body)?.unwrap_or(&sandbox.url_auth);
    let labels: Vec<String> = match (&body["labels"], body["clear_labels"].as_bool()) {
        (_, Some(true)) => Vec::new(),
        (Value::Array(all), _) => all.iter().filter_map(|label| label.as_str().map(str::to_owned)).collect(),
        _ => sandbox.labels.clone(),
    };
    app.registry.update(&sandbox.id, &labels, auth).await?;
    let sandbox = caller.sandbox(&app, &name).await?;
    Ok(Json(described_now(&app, &sandbox).await?).into_response())
}

pub async fn get(State(app): AppState, caller: Caller, Path(name): Path<String>) -> ApiResult<Json<Value>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    Ok(Json(described_now(&app, &sandbox).await?))
}

/// Lines that tell what becomes of the organization's sandboxes, and now and then that nothing does.
fn watched(app: Arc<App>, caller: Caller) -> Response {
    let (to, lines) = mpsc::channel::<Result<Bytes, Infallible>>(16);
    tokio::spawn(async move {
        let (mut before, mut silent) = (HashMap::new(), 0u32);
        while let Ok(now) = states(&app, &caller).await {
            let count = |what: &str| now.values().filter(|status| **status == what).count();
            let (running, warm, cold) = (count("running"), count("warm"), count("cold"));
            let org = json!({"name": caller.org, "running": running, "warm": warm, "cold": cold});
            let line = |more: Value| with(json!({"timestamp": crate::time::now(), "org": org}), more);
            let changed = now.iter().filter(|(name, status)| before.get(*name) != Some(*status));
            let mut told: Vec<Value> =
                changed.map(|(name, status)| line(json!({"name": name, "status": status}))).collect();
            silent = if told.is_empty() { silent + 1 } else { 0 };
            if silent >= HEARTBEAT {
                silent = 0;
                told.push(line(json!({"type": "heartbeat"})));
            }
            for line in told {
                if to.send(Ok(format!("{line}\n").into())).await.is_err() {
                    return;
                }
            }
            before = now;
            tokio::time::sleep(LOOK).await;
            if to.is_closed() {
                return;
            }
        }
    });
    let body = axum::body::Body::from_stream(ReceiverStream::new(lines));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

fn with(mut value: Value, more: Value) -> Value {
    if let (Some(fields), Value::Object(more)) = (value.as_object_mut(), more) {
        fields.extend(more);
    }
    value
}

/// The status of each sandbox that the caller sees, by name.
async fn states(app: &Arc<App>, caller: &Caller) -> ApiResult<HashMap<String, &'static str>> {
    let (sandboxes, statuses) = (app.registry.list(&caller.org, "", "", WATCHED).await?, app.statuses().await?);
    let seen = sandboxes.into_iter().filter(|sandbox| caller.sees(&sandbox.name));
    Ok(seen.map(|sandbox| (sandbox.name, status(statuses.get(&sandbox.machine)))).collect())
}

pub async fn list(
    State(app): AppState,
    caller: Caller,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accepts.contains("application/x-ndjson") {
        return Ok(watched(app, caller));
    }
    let text = |key: &str| query.get(key).map_or("", String::as_str);
    let max = text("max_results").parse().unwrap_or(PAGE).clamp(1, PAGE);
    let mut found = app.registry.list(&caller.org, text("prefix"), text("continuation_token"), max + 1).await?;
    let has_more = found.len() > max;
    found.truncate(max);
    let next = has_more.then(|| found.last().map(|last| last.name.clone())).flatten();
    let statuses = app.statuses().await?;
    let seen = found.iter().filter(|sandbox| caller.sees(&sandbox.name));
    let sprites: Vec<Value> = seen.map(|sandbox| described(sandbox, statuses.get(&sandbox.machine))).collect();
    let count = |what: &str| sprites.iter().filter(|sprite| sprite["status"] == what).count();
    let (running, warm, cold) = (count("running"), count("warm"), count("cold"));
    Ok(Json(json!({
        "sprites": sprites, "has_more": has_more, "next_continuation_token": next,
        "running": running, "warm": warm, "cold": cold, "name": caller.org, "running_limit": null, "warm_limit": null,
        "org": {"name": caller.org, "running": running, "warm": warm, "cold": cold},
    }))
    .into_response())
}

/// What runs in a sandbox is what its image has: there is nothing to do.
pub async fn upgrade(State(app): AppState, caller: Caller, Path(name): Path<String>) -> ApiResult<Json<Value>> {
    caller.sandbox(&app, &name).await?;
    Ok(Json(json!({"name": name, "status": "upgraded"})))
}

pub async fn delete(State(app): AppState, caller: Caller, Path(name): Path<String>) -> ApiResult<StatusCode> {
    caller.whole_organization()?;
    let sandbox = caller.sandbox(&app, &name).await?;
    app.delete(&sandbox).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn restart(State(app): AppState, caller: Caller, Path(name): Path<String>) -> ApiResult<Json<Value>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    app.restart(&sandbox).await?;
    Ok(Json(json!({"sprite_name": name, "machine_id": sandbox.machine, "message": "restarted"})))
}

/// Whether its agent answers, if it runs.
pub async fn check(State(app): AppState, caller: Caller, Path(name): Path<String>) -> ApiResult<Json<Value>> {
    let (sandbox, begin) = (caller.sandbox(&app, &name).await?, Instant::now());
    let machine = sandbox.machine.clone();
    let found = app.blocking(move |app| app.machines.status(&machine)).await;
    let (status, reason) = match &found {
        Err(e) => ("error", e.message()),
        Ok(found) if found.state == "running" => ("healthy", String::new()),
        Ok(found) if found.state == "unresponsive" => ("unhealthy", "its VMM does not answer".to_owned()),
        Ok(found) => ("hibernated", format!("it is {}: a request wakes it", found.state)),
    };
    Ok(Json(json!({
        "sprite_name": name, "sprite_id": sandbox.id, "status": status, "reason": reason, "checked_at": now(),
        "elapsed": format!("{:.1}ms", begin.elapsed().as_secs_f64() * 1e3),
    })))
}

pub async fn organization(State(app): AppState, caller: Caller) -> ApiResult<Json<Value>> {
    let active = app.statuses().await?.values().filter(|found| found.state == "running").count();
    Ok(Json(json!({"organization": {
        "slug": caller.org, "sprites_enabled": true, "active_sprites": active, "max_sprites": null,
        "active_sprite_limit": null,
    }})))
}
