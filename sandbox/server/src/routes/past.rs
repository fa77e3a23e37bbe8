//! Files out of checkpoints, without restoring them, and what differs between two.

use super::answers::{BadRequest, Gone, NameAndId, NoRange, Place, Refused};
use super::files::{is, of_query, place, ranged, Words};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::inspect::look;
use crate::lifecycle::App;
use crate::wire::{Differences, FileList};
use axum::extract::{Path, Query, State};
use axum::http::{header, HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Json;
use std::sync::Arc;

/// What a checkpoint can be called: words of a command are made of it.
fn name_of(id: &str) -> ApiResult<&str> {
    let good = !id.is_empty() && id.len() <= 64 && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let good = good && !id.starts_with('-');
    good.then_some(id).ok_or_else(|| ApiError::not_found(format!("checkpoint not found: {}", id.escape_debug())))
}

/// What is in a folder of a checkpoint, without restoring it.
#[utoipa::path(get, path = "/v1/sprites/{name}/checkpoints/{id}/fs/list", tag = "checkpoints", params(NameAndId, Place,
    ("recursive" = Option<bool>, Query, description = "With all that is below")), responses(
    (status = 200, description = "It", body = FileList), BadRequest, Refused, Gone))]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
    Query(query): Words,
) -> ApiResult<Json<FileList>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let path = place(query.get("path").map(String::as_str).or(Some("/")), query.get("workingDir").map(String::as_str))?;
    let mut words = vec!["list"];
    words.extend(is(&query, &["recursive"]).then_some("--recursive"));
    words.extend(["--", &sandbox.machine, name_of(&id)?, &path]);
    look(&app, &words).await.map(Json)
}

/// Read a file of a checkpoint, or a part of it (`Range`).
#[utoipa::path(get, path = "/v1/sprites/{name}/checkpoints/{id}/fs/read", tag = "checkpoints", params(NameAndId, Place), responses(
    (status = 200, description = "Its bytes", body = Vec<u8>, content_type = "application/octet-stream"),
    (status = 206, description = "A part of them", body = Vec<u8>, content_type = "application/octet-stream"),
    BadRequest, Refused, Gone, NoRange))]
pub async fn read(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
    Query(query): Words,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let (path, id) = (of_query(&query)?, name_of(&id)?);
    let mut part = None;
    if headers.contains_key(header::RANGE) {
        let found: FileList = look(&app, &["list", "--", &sandbox.machine, id, &path]).await?;
        part = ranged(&headers, &found)?;
    }
    let (from, len) = part.unwrap_or((0, u64::MAX));
    let (from_text, len_text) = (from.to_string(), len.to_string());
    let mut begun = app.inspect(&["read", "--", &sandbox.machine, id, &path, &from_text, &len_text]).await?;
    let size = begun.line().await?["size"].as_u64().unwrap_or_default();
    let kind = (header::CONTENT_TYPE, "application/octet-stream".to_owned());
    Ok(match part {
        None => ([kind, (header::CONTENT_LENGTH, size.to_string())], begun.body(caller)).into_response(),
        Some((from, len)) => {
            let range = (header::CONTENT_RANGE, format!("bytes {from}-{}/{size}", from + len - 1));
            (StatusCode::PARTIAL_CONTENT, [kind, range], begun.body(caller)).into_response()
        }
    })
}

/// What differs between two checkpoints: files, and how many bytes of the disk.
#[utoipa::path(get, path = "/v1/sprites/{name}/checkpoints/{id}/diff/{other}", tag = "checkpoints", params(NameAndId,
    ("other" = String, Path, description = "The newer one, or `Current`")), responses(
    (status = 200, description = "It", body = Differences), BadRequest, Refused, Gone))]
pub async fn diff(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, id, other)): Path<(String, String, String)>,
) -> ApiResult<Json<Differences>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    look(&app, &["diff", "--", &sandbox.machine, name_of(&id)?, name_of(&other)?]).await.map(Json)
}
