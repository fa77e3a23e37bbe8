//! The routes, one file for each part of the contract.

mod checkpoints;
mod commands;
mod exec;
mod files;
mod proxy;
mod socket;
mod sprites;

use crate::error::ApiError;
use crate::lifecycle::App;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use axum::Router;
use std::sync::Arc;

/// Bytes of a request in JSON.
const JSON_MAX: usize = 1 << 20;
/// Bytes of standard input in a request that is no WebSocket's.
const INPUT_MAX: usize = 16 << 20;
/// What SDKs take for the version of what runs in the guest: one that knows `/exec/{id}`.
const VERSION: &str = "v0.0.1-rc43";

async fn version(mut response: Response) -> Response {
    response.headers_mut().insert(HeaderName::from_static("sprite-version"), HeaderValue::from_static(VERSION));
    response
}

/// Everything that the server answers.
pub fn all(app: Arc<App>) -> Router {
    let within = Router::new()
        .route("/exec", get(exec::begin_or_list).post(commands::run).layer(DefaultBodyLimit::max(INPUT_MAX)))
        .route("/exec/{id}", get(exec::attach))
        .route("/exec/{id}/kill", post(commands::kill))
        .route("/checkpoint", post(checkpoints::create))
        .route("/checkpoints", get(checkpoints::list))
        .route("/checkpoints/{id}", get(checkpoints::get).delete(checkpoints::delete))
        .route("/checkpoints/{id}/restore", post(checkpoints::restore))
        .route("/fs/read", get(files::read))
        .route("/fs/write", put(files::write).layer(DefaultBodyLimit::disable()))
        .route("/fs/list", get(files::list))
        .route("/fs/delete", delete(files::delete))
        .route("/fs/rename", files::from_to("rename"))
        .route("/fs/copy", files::from_to("copy"))
        .route("/fs/chmod", files::chmod())
        .route("/fs/chown", files::chown())
        .route("/proxy", get(proxy::proxy))
        .route("/fs/watch", get(proxy::files))
        .route("/ports/watch", get(proxy::ports))
        .layer(axum::middleware::map_response(version));
    Router::new()
        .route("/v1/sprites", get(sprites::list).post(sprites::create))
        .route("/v1/sprites/{name}", get(sprites::get).put(sprites::put).post(sprites::put).delete(sprites::delete))
        .route("/v1/sprites/{name}/restart", post(sprites::restart))
        .route("/v1/sprites/{name}/upgrade", post(sprites::upgrade))
        .route("/v1/sprites/{name}/check", get(sprites::check))
        .route("/v1/organization", get(sprites::organization))
        .nest("/v1/sprites/{name}", within)
        .fallback(|| async { ApiError::not_found("there is no such route") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(axum::http::StatusCode::METHOD_NOT_ALLOWED, "this route does not take this method")
        })
        .layer(DefaultBodyLimit::max(JSON_MAX))
        .with_state(app)
}
