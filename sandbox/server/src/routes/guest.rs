//! What a guest may ask over its relay: about itself, and nothing else.
//!
//! Invariants
//!   * a request names no sandbox: which one it is of is the relay's, and checked again for each request;
//!   * a path is one of those below, of plain characters, before anything looks at what it means;
//!   * no more than [`UNDER_WAY`] requests of one guest are under way, whether or not it waits for their answers, and
//!     [`LOOKS`] looks into checkpoints, so that the server's are not one guest's.

use super::{checkpoints, past};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::lifecycle::App;
use crate::registry::{Sandbox, State as Life};
use crate::time::{now, rfc3339};
use crate::wire::Line;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Extension, Path, Request, State};
use axum::http::{header, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{json, Value};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{watch, Semaphore};

/// Bytes of a request's body: a comment fits.
const BODY_MAX: usize = 64 << 10;
/// Requests of one guest at a time.
const UNDER_WAY: usize = 16;
/// Looks into checkpoints of one guest at a time; the others wait for their turn.
const LOOKS: usize = 1;
/// How long a guest may take to hear that it is going to be restored.
const ANSWERED: Duration = Duration::from_secs(3);
/// How long the command that asked for it has to end by itself.
const GRACE: Duration = Duration::from_millis(400);

/// Told, by its end, when a connection's answer has arrived.
pub type Answered = watch::Receiver<()>;

/// A guest that asks.
pub struct Guest {
    app: Arc<App>,
    sandbox: Sandbox,
    looks: Arc<Semaphore>,
    is_restoring: AtomicBool,
}

impl Guest {
    pub fn new(app: Arc<App>, sandbox: &Sandbox) -> Arc<Self> {
        let (looks, is_restoring) = (Arc::new(Semaphore::new(LOOKS)), AtomicBool::new(false));
        Arc::new(Self { app, sandbox: sandbox.clone(), looks, is_restoring })
    }

    fn caller(&self) -> ApiResult<Caller> {
        Caller::guest(&self.app, &self.sandbox, UNDER_WAY)
    }

    /// Its sandbox as it is now, and not one that has its name since.
    async fn now(&self) -> ApiResult<Sandbox> {
        let found = self.app.registry.find(&self.sandbox.org, &self.sandbox.name).await?;
        let found = found.filter(|found| found.id == self.sandbox.id && found.state == Life::Ready);
        found.ok_or_else(|| ApiError::not_found("sprite not found"))
    }

    /// Has a request answered as if its sandbox's owner had made it.
    async fn ask(&self, request: Request, caller: Caller) -> ApiResult<Response> {
        let sandbox = self.now().await?;
        let (mut parts, body) = request.into_parts();
        let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let path = within(parts.uri.path()).ok_or_else(nothing)?;
        let uri = format!("/v1/sprites/{}{path}{query}", sandbox.name);
        parts.uri = uri.parse().map_err(|_| nothing())?;
        parts.extensions.clear();
        parts.extensions.insert(caller);
        let Ok(answer) = TowerToHyperService::new(outside(&self.app)).call(Request::from_parts(parts, body)).await;
        Ok(answer)
    }
}

fn nothing() -> ApiError {
    ApiError::not_found("there is no such route")
}

/// Everything that a guest may ask.
pub fn of(guest: &Arc<Guest>) -> Router {
    Router::new()
        .route("/v1/info", get(info))
        .route("/v1/checkpoint", post(pass))
        .route("/v1/checkpoints", get(pass))
        .route("/v1/checkpoints/{id}", get(pass).delete(pass))
        .route("/v1/checkpoints/{id}/restore", post(restore))
        .route("/v1/checkpoints/{id}/fs/list", get(look))
        .route("/v1/checkpoints/{id}/fs/read", get(look))
        .route("/v1/checkpoints/{id}/diff/{other}", get(look))
        .fallback(|| async { nothing() })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not take this method")
        })
        .with_state(guest.clone())
}

/// The same routes where everybody else has them.
fn outside(app: &Arc<App>) -> Router {
    let within = Router::new()
        .route("/checkpoint", post(checkpoints::create))
        .route("/checkpoints", get(checkpoints::list))
        .route("/checkpoints/{id}", get(checkpoints::get).delete(checkpoints::delete))
        .route("/checkpoints/{id}/restore", post(checkpoints::restore))
        .route("/checkpoints/{id}/fs/list", get(past::list))
        .route("/checkpoints/{id}/fs/read", get(past::read))
        .route("/checkpoints/{id}/diff/{other}", get(past::diff));
    Router::new().nest("/v1/sprites/{name}", within).layer(DefaultBodyLimit::max(BODY_MAX)).with_state(app.clone())
}

/// What comes behind a sandbox's path outside, if `path` is of plain characters alone.
fn within(path: &str) -> Option<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let good = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain);
    let rest = path.strip_prefix("/v1")?;
    rest.strip_prefix('/').filter(|rest| rest.split('/').all(good)).map(|_| rest)
}

async fn pass(State(guest): State<Arc<Guest>>, request: Request) -> ApiResult<Response> {
    let caller = guest.caller()?;
    guest.ask(request, caller).await
}

/// One look behind the other: the next begins when the guest has all of this one.
async fn look(State(guest): State<Arc<Guest>>, request: Request) -> ApiResult<Response> {
    let caller = guest.caller()?;
    let turn = guest.looks.clone().acquire_owned().await;
    let held = (turn.map_err(|_| ApiError::internal("the server ends"))?, caller.clone());
    let (parts, body) = guest.ask(request, caller).await?.into_parts();
    let body = body.into_data_stream().map(move |piece| {
        let _until_the_end = &held;
        piece
    });
    Ok(Response::from_parts(parts, Body::from_stream(body)))
}

async fn info(State(guest): State<Arc<Guest>>) -> ApiResult<Json<Value>> {
    let _caller = guest.caller()?;
    let sandbox = guest.now().await?;
    let machine = sandbox.machine.clone();
    let found = guest.app.blocking(move |app| app.machines.status(&machine)).await?;
    Ok(Json(json!({
        "name": sandbox.name, "id": sandbox.id, "status": "running", "created_at": rfc3339(sandbox.created_us),
        "image": found.image, "cpus": found.cpus, "memory_bytes": found.memory_bytes, "labels": sandbox.labels,
    })))
}

/// Answers first: whoever asked for it is not there any more when it has been done.
async fn restore(
    State(guest): State<Arc<Guest>>,
    Path(id): Path<String>,
    Extension(mut answered): Extension<Answered>,
    request: Request,
) -> ApiResult<Response> {
    within(request.uri().path()).ok_or_else(nothing)?;
    let (caller, machine) = (guest.caller()?, guest.now().await?.machine);
    let wanted = id.clone();
    let known = guest.app.blocking(move |app| app.pool.checkpoint_info(&machine, &wanted)).await;
    known.map_err(|e| match e.status {
        StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => ApiError::not_found(format!("there is no checkpoint {id}")),
        _ => e,
    })?;
    if guest.is_restoring.swap(true, Ordering::AcqRel) {
        return Err(ApiError::new(StatusCode::CONFLICT, "this machine is being restored already"));
    }
    let line = |kind: &str, data: String| {
        let line = Line { r#type: kind.to_owned(), data: Some(data), error: None, time: now() };
        serde_json::to_string(&line).unwrap_or_default() + "\n"
    };
    let told = line("info", format!("Restoring from checkpoint {id}..."))
        + &line("complete", format!("Restore from {id} has begun: the environment restarts now"));
    tokio::spawn(async move {
        let _ = tokio::time::timeout(ANSWERED, answered.changed()).await;
        tokio::time::sleep(GRACE).await;
        let (method, uri) = (axum::http::Method::POST, format!("/v1/checkpoints/{id}/restore"));
        let asked = Request::builder().method(method).uri(uri).body(Body::empty());
        let outcome = match asked.map_err(|_| nothing()) {
            Ok(asked) => guest.ask(asked, caller).await,
            Err(e) => Err(e),
        };
        let said = match outcome {
            Ok(answer) => axum::body::to_bytes(answer.into_body(), BODY_MAX).await.unwrap_or_default(),
            Err(e) => e.message().into(),
        };
        guest.is_restoring.store(false, Ordering::Release);
        let last = String::from_utf8_lossy(&said).trim_end().lines().last().unwrap_or_default().to_owned();
        let name = &guest.sandbox.name;
        match last.contains("\"type\":\"complete\"") {
            true => tracing::info!(sandbox = name, checkpoint = id, "a guest had itself restored"),
            false => tracing::error!(sandbox = name, checkpoint = id, last, "a guest was not restored"),
        }
    });
    let head = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CONNECTION, "close")];
    Ok((head, told).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_plain_leads_nowhere() {
        let good = [("/v1/checkpoints", "/checkpoints"), ("/v1/checkpoints/v1/restore", "/checkpoints/v1/restore")];
        for (path, wanted) in good {
            assert_eq!(within(path), Some(wanted));
        }
        for bad in [
            "",
            "/",
            "*",
            "/v1",
            "/v1/",
            "/v2/checkpoints",
            "/v1checkpoints",
            "/v1/checkpoints/",
            "/v1//checkpoints",
            "/v1/checkpoints/..",
            "/v1/checkpoints/../../other",
            "/v1/checkpoints/%2e%2e",
            "/v1/checkpoints/..%2fother",
            "/v1/checkpoints/v1%00",
            "/v1/checkpoints/v1;x",
            "/v1/checkpoints/v1@other",
            "/v1/checkpoints/.hidden",
            "/v1/checkpoints/\u{e4}",
        ] {
            assert_eq!(within(bad), None, "{bad}");
        }
    }
}
