//! Sandboxes: making, looking at, changing, deleting.

use super::answers::{BadRequest, Failed, Gone, Name, Refused, Taken, TooMany, TooNarrow};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::lifecycle::{self, App, Origin};
use crate::registry::Sandbox;
use crate::time::{now, rfc3339};
use crate::wire::{
    parse, Check, Counts, Organization, OrganizationInfo, Restarted, Source, Sprite, SpriteCreate, SpritePage,
    SpriteStatus, SpriteUpdate, Upgraded, UrlSettings,
};
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

/// Letters, digits and `-`, as in a host's name.
fn check_name(name: &str) -> ApiResult<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good =
        (1..=63).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('-') && !name.ends_with('-');
    good.then_some(()).ok_or_else(|| ApiError::invalid("invalid sprite name format"))
}

/// `running` with a machine that runs, `warm` with memory that was saved, `cold` without.
fn status(status: Option<&Status>) -> SpriteStatus {
    match status.map(|status| status.state.as_str()) {
        Some("running" | "paused" | "busy" | "unresponsive") => SpriteStatus::Running,
        Some("suspended") => SpriteStatus::Warm,
        _ => SpriteStatus::Cold,
    }
}

fn described(sandbox: &Sandbox, found: Option<&Status>) -> Sprite {
    Sprite {
        id: sandbox.id.clone(),
        name: sandbox.name.clone(),
        status: status(found),
        version: None,
        url: format!("http://{}-{}.localhost", sandbox.name, sandbox.suffix),
        created_at: rfc3339(sandbox.created_us),
        updated_at: rfc3339(sandbox.updated_us),
        last_active_at: sandbox.last_active_us.map(rfc3339),
        organization: sandbox.org.clone(),
        url_settings: UrlSettings { auth: Some(sandbox.url_auth.clone()) },
        environment_version: None,
        labels: sandbox.labels.clone(),
        config: sandbox.config.clone(),
    }
}

/// How many of these are how.
fn counts(org: &str, all: impl Iterator<Item = SpriteStatus> + Clone) -> Counts {
    let count = |what| all.clone().filter(|status| *status == what).count();
    let (running, warm, cold) = (count(SpriteStatus::Running), count(SpriteStatus::Warm), count(SpriteStatus::Cold));
    Counts { name: org.to_owned(), running, warm, cold }
}

async fn described_now(app: &Arc<App>, sandbox: &Sandbox) -> ApiResult<Sprite> {
    let machine = sandbox.machine.clone();
    let found = app.blocking(move |app| app.machines.status(&machine)).await.ok();
    Ok(described(sandbox, found.as_ref()))
}

fn auth_of(settings: Option<&UrlSettings>) -> ApiResult<Option<&str>> {
    match settings.and_then(|settings| settings.auth.as_deref()) {
        Some(auth) if !AUTHS.contains(&auth) => {
            Err(ApiError::invalid("invalid auth type, must be one of: sprite, public"))
        }
        auth => Ok(auth),
    }
}

async fn source(app: &App, caller: &Caller, from: Option<&Source>) -> ApiResult<Origin> {
    let usual = Source::default();
    let Source { image, sprite, checkpoint } = from.unwrap_or(&usual);
    Ok(match (image, sprite, checkpoint.as_deref()) {
        (Some(image), ..) => Origin::Image(image.clone()),
        (None, None, _) => Origin::Image(app.image.clone()),
        (None, Some(name), None | Some("Current")) => Origin::Machine(caller.sandbox(app, name).await?.machine),
        (None, Some(name), Some(id)) => Origin::Machine(format!("{}@{id}", caller.sandbox(app, name).await?.machine)),
    })
}

async fn make(app: &Arc<App>, caller: &Caller, name: &str, body: &SpriteCreate) -> ApiResult<Sprite> {
    caller.whole_organization()?;
    check_name(name)?;
    auth_of(body.url_settings.as_ref())?;
    let from = source(app, caller, body.from.as_ref()).await?;
    let made = app.create(lifecycle::row(&caller.org, &caller.token, name, body)?, from).await?;
    described_now(app, &made).await
}

/// Make a sandbox: it costs nothing until it is used, and its guest starts with the first request that needs it.
#[utoipa::path(post, path = "/v1/sprites", tag = "sprites", request_body = SpriteCreate, responses(
    (status = 201, description = "Made", body = Sprite), BadRequest, Refused, TooNarrow, Taken, TooMany))]
pub async fn create(State(app): AppState, caller: Caller, body: Bytes) -> ApiResult<Response> {
    caller.whole_organization()?;
    let body: SpriteCreate = parse(&body)?;
    let name = body.name.as_deref().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ApiError::bad("name is required"))?;
    Ok((StatusCode::CREATED, Json(make(&app, &caller, name, &body).await?)).into_response())
}

/// Change a sandbox, or make one that is not there.
#[utoipa::path(put, path = "/v1/sprites/{name}", tag = "sprites", params(Name), request_body = SpriteUpdate, responses(
    (status = 200, description = "Changed", body = Sprite), (status = 201, description = "Made", body = Sprite),
    BadRequest, Refused, TooNarrow, Gone, Taken, TooMany))]
pub async fn put(State(app): AppState, caller: Caller, Path(name): Path<String>, body: Bytes) -> ApiResult<Response> {
    let body: SpriteUpdate = parse(&body)?;
    let sandbox = match caller.sandbox(&app, &name).await {
        Ok(sandbox) => sandbox,
        Err(e) if e.status == StatusCode::NOT_FOUND && caller.whole_organization().is_ok() => {
            let SpriteUpdate { labels, url_settings, config, environment, from, .. } = body;
            let body = SpriteCreate { name: None, config, environment, url_settings, labels, from };
            return Ok((StatusCode::CREATED, Json(make(&app, &caller, &name, &body).await?)).into_response());
        }
        Err(e) => return Err(e),
    };
    let auth = auth_of(body.url_settings.as_ref())?.unwrap_or(&sandbox.url_auth);
    let labels = match (body.labels, body.clear_labels) {
        (_, Some(true)) => Vec::new(),
        (Some(labels), _) => labels,
        (None, _) => sandbox.labels.clone(),
    };
    app.registry.update(&sandbox.id, &labels, auth).await?;
    let sandbox = caller.sandbox(&app, &name).await?;
    Ok(Json(described_now(&app, &sandbox).await?).into_response())
}

/// As `PUT`.
#[utoipa::path(post, path = "/v1/sprites/{name}", tag = "sprites", params(Name), request_body = SpriteUpdate, responses(
    (status = 200, description = "Changed", body = Sprite), (status = 201, description = "Made", body = Sprite),
    BadRequest, Refused, TooNarrow, Gone, Taken, TooMany))]
pub async fn post(state: AppState, caller: Caller, name: Path<String>, body: Bytes) -> ApiResult<Response> {
    put(state, caller, name, body).await
}

/// Look at a sandbox.
#[utoipa::path(get, path = "/v1/sprites/{name}", tag = "sprites", params(Name), responses(
    (status = 200, description = "It", body = Sprite), Refused, Gone))]
pub async fn get(State(app): AppState, caller: Caller, Path(name): Path<String>) -> ApiResult<Json<Sprite>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    Ok(Json(described_now(&app, &sandbox).await?))
}

/// Lines that tell what becomes of the organization's sandboxes, and now and then that nothing does.
fn watched(app: Arc<App>, caller: Caller) -> Response {
    let (to, lines) = mpsc::channel::<Result<Bytes, Infallible>>(16);
    tokio::spawn(async move {
        let (mut before, mut silent) = (HashMap::new(), 0u32);
        while let Ok(now) = states(&app, &caller).await {
            let org = counts(&caller.org, now.values().copied());
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
async fn states(app: &Arc<App>, caller: &Caller) -> ApiResult<HashMap<String, SpriteStatus>> {
    let (sandboxes, statuses) = (app.registry.list(&caller.org, "", "", WATCHED).await?, app.statuses().await?);
    let seen = sandboxes.into_iter().filter(|sandbox| caller.sees(&sandbox.name));
    Ok(seen.map(|sandbox| (sandbox.name, status(statuses.get(&sandbox.machine)))).collect())
}

/// Sandboxes, by name; or, to who accepts `application/x-ndjson`, lines that tell what becomes of them.
#[utoipa::path(get, path = "/v1/sprites", tag = "sprites", params(
    ("prefix" = Option<String>, Query, description = "Only those whose names begin so"),
    ("max_results" = Option<u32>, Query, description = "At most 50"),
    ("continuation_token" = Option<String>, Query, description = "From the page before")), responses(
    (status = 200, description = "A page", body = SpritePage), Refused))]
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
    let sprites: Vec<Sprite> = seen.map(|sandbox| described(sandbox, statuses.get(&sandbox.machine))).collect();
    let counts = counts(&caller.org, sprites.iter().map(|sprite| sprite.status));
    Ok(Json(SpritePage {
        sprites,
        has_more,
        next_continuation_token: next,
        counts: counts.clone(),
        running_limit: None,
        warm_limit: None,
        org: counts,
    })
    .into_response())
}

/// What runs in a sandbox is what its image has: there is nothing to do.
#[utoipa::path(post, path = "/v1/sprites/{name}/upgrade", tag = "sprites", params(Name), responses(
    (status = 200, description = "Done", body = Upgraded), Refused, Gone))]
pub async fn upgrade(State(app): AppState, caller: Caller, Path(name): Path<String>) -> ApiResult<Json<Upgraded>> {
    caller.sandbox(&app, &name).await?;
    Ok(Json(Upgraded { name, status: "upgraded".to_owned() }))
}

/// End a sandbox with its disk and checkpoints.
#[utoipa::path(delete, path = "/v1/sprites/{name}", tag = "sprites", params(Name), responses(
    (status = 204, description = "It is gone"), Refused, TooNarrow, Gone, Failed))]
pub async fn delete(State(app): AppState, caller: Caller, Path(name): Path<String>) -> ApiResult<StatusCode> {
    caller.whole_organization()?;
    let sandbox = caller.sandbox(&app, &name).await?;
    app.delete(&sandbox).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// End its guest and start it anew.
#[utoipa::path(post, path = "/v1/sprites/{name}/restart", tag = "sprites", params(Name), responses(
    (status = 200, description = "It runs", body = Restarted), Refused, Gone, Failed))]
pub async fn restart(State(app): AppState, caller: Caller, Path(name): Path<String>) -> ApiResult<Json<Restarted>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    app.restart(&sandbox).await?;
    Ok(Json(Restarted { sprite_name: name, machine_id: sandbox.machine, message: "restarted".to_owned() }))
}

/// How its guest is, without waking it.
#[utoipa::path(get, path = "/v1/sprites/{name}/check", tag = "sprites", params(Name), responses(
    (status = 200, description = "So it is", body = Check), Refused, Gone))]
pub async fn check(State(app): AppState, caller: Caller, Path(name): Path<String>) -> ApiResult<Json<Check>> {
    let (sandbox, begin) = (caller.sandbox(&app, &name).await?, Instant::now());
    let machine = sandbox.machine.clone();
    let found = app.blocking(move |app| app.machines.status(&machine)).await;
    let (status, reason) = match &found {
        Err(e) => ("error", e.message()),
        Ok(found) if found.state == "running" => ("healthy", String::new()),
        Ok(found) if found.state == "unresponsive" => ("unhealthy", "its VMM does not answer".to_owned()),
        Ok(found) => ("hibernated", format!("it is {}: a request wakes it", found.state)),
    };
    Ok(Json(Check {
        sprite_name: name,
        sprite_id: sandbox.id,
        status: status.to_owned(),
        reason,
        checked_at: now(),
        elapsed: format!("{:.1}ms", begin.elapsed().as_secs_f64() * 1e3),
    }))
}

/// The organization that the token is good for.
#[utoipa::path(get, path = "/v1/organization", tag = "sprites", responses(
    (status = 200, description = "It", body = Organization), Refused))]
pub async fn organization(State(app): AppState, caller: Caller) -> ApiResult<Json<Organization>> {
    let active = app.statuses().await?.values().filter(|found| found.state == "running").count();
    Ok(Json(Organization {
        organization: OrganizationInfo {
            slug: caller.org,
            sprites_enabled: true,
            active_sprites: active,
            max_sprites: Some(app.limits.sandboxes as u64),
            active_sprite_limit: None,
        },
    }))
}
