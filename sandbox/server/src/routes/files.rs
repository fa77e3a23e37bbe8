//! Files of a sandbox, through the agent's `fs` verbs: the guest's kernel decides who may do what.

use super::answers::{BadRequest, Busy, Gone, Name, NoRange, Place, Refused};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::exec::Watched;
use crate::lifecycle::App;
use crate::registry::Sandbox;
use crate::session::{Event, Session};
use crate::wire::{
    parse, FileList, FileWritten, FilesChanged, FilesCopied, FilesDeleted, FromTo, FromToRequest, ModeRequest,
    OwnerRequest,
};
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{header, HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Json;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{json, Value};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Bytes of what the agent says of files.
const ANSWER_MAX: usize = 64 << 20;
/// The first line of an answer, and what it says of an error, are no longer.
const LINE_MAX: usize = 64 << 10;
/// Pieces of a file that wait for a slow client.
const PIECES: usize = 16;

pub type Words = Query<HashMap<String, String>>;

/// The guest's path that a request means.
pub fn place(path: Option<&str>, folder: Option<&str>) -> ApiResult<String> {
    let path = path.filter(|path| !path.is_empty()).ok_or_else(|| ApiError::bad("path is required"))?;
    if path.contains('\0') {
        return Err(ApiError::bad("a path has no NUL in it"));
    }
    let folder = folder.filter(|folder| !folder.is_empty()).unwrap_or("/");
    Ok(if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", folder.trim_end_matches('/')) })
}

pub fn of_query(query: &HashMap<String, String>) -> ApiResult<String> {
    place(query.get("path").map(String::as_str), query.get("workingDir").map(String::as_str))
}

pub fn is(query: &HashMap<String, String>, keys: &[&str]) -> bool {
    keys.iter().any(|key| query.get(*key).is_some_and(|value| value == "true" || value == "1"))
}

/// What the agent says on standard error when it cannot.
fn said_no(said: &[u8]) -> ApiError {
    let found: Value = serde_json::from_slice(said).unwrap_or_default();
    match found["code"].is_string() {
        true => refusal(&found),
        false => ApiError::internal(String::from_utf8_lossy(said).chars().take(500).collect::<String>()),
    }
}

/// A refusal with a code as in errno.
pub fn refusal(found: &Value) -> ApiError {
    let code = found["code"].as_str().unwrap_or_default();
    let status = match code {
        "ENOENT" => StatusCode::NOT_FOUND,
        "EEXIST" | "ENOTEMPTY" | "EBUSY" => StatusCode::CONFLICT,
        "EACCES" | "EPERM" => StatusCode::FORBIDDEN,
        "ENOSPC" => StatusCode::INSUFFICIENT_STORAGE,
        "EIO" => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    };
    ApiError { status, body: json!({"error": found["error"], "code": code, "path": found["path"]}) }
}

async fn answer<T: DeserializeOwned>(begun: Watched) -> ApiResult<T> {
    let (out, err, code) = begun.collect(ANSWER_MAX).await?;
    if code != 0 {
        return Err(said_no(&err));
    }
    serde_json::from_slice(&out).map_err(|e| ApiError::internal(format!("the guest's agent gave no answer: {e}")))
}

async fn ask<T: DeserializeOwned>(app: &Arc<App>, sandbox: &Sandbox, words: &[&str]) -> ApiResult<T> {
    let begun = app.agent(sandbox, words).await?;
    begun.session.end_input().await;
    answer(begun).await
}

/// What is in a folder; of a file, itself.
#[utoipa::path(get, path = "/v1/sprites/{name}/fs/list", tag = "files", params(Name, Place,
    ("recursive" = Option<bool>, Query, description = "With all that is below")), responses(
    (status = 200, description = "It", body = FileList), BadRequest, Refused, Gone, Busy))]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Words,
) -> ApiResult<Json<FileList>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let path = place(query.get("path").map(String::as_str).or(Some("/")), query.get("workingDir").map(String::as_str))?;
    let mut words = vec!["fs", "list"];
    words.extend(is(&query, &["recursive"]).then_some("--recursive"));
    words.extend(["--", &path]);
    ask(&app, &sandbox, &words).await.map(Json)
}

/// The first line of what a command says, and what came behind it.
async fn first_line(begun: &mut Watched) -> ApiResult<(Value, Vec<u8>)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(event) = begun.events.recv().await {
        match event {
            Event::Stdout(bytes) => out.extend(&bytes[..]),
            Event::Stderr(bytes) => err.extend(&bytes[..]),
            Event::Exit(0) => break,
            Event::Exit(_) => return Err(said_no(&err)),
        }
        if let Some(end) = out.iter().position(|byte| *byte == b'\n') {
            let rest = out.split_off(end);
            let line = serde_json::from_slice(&out).map_err(|e| ApiError::internal(e.to_string()))?;
            return Ok((line, rest.get(1..).unwrap_or_default().to_vec()));
        }
        if out.len() + err.len() > LINE_MAX {
            break;
        }
    }
    Err(ApiError::internal("the guest's agent gave no answer"))
}

/// As [`range`], of a file that was listed.
pub fn ranged(headers: &HeaderMap, found: &FileList) -> ApiResult<Option<(u64, u64)>> {
    range(headers, found.entries.first().map_or(0, |entry| entry.size))
}

/// `bytes=FROM-TO` of a file of this size: where it begins, and how much it is.
fn range(headers: &HeaderMap, size: u64) -> ApiResult<Option<(u64, u64)>> {
    let Some(text) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else { return Ok(None) };
    let Some(text) = text.strip_prefix("bytes=").filter(|text| !text.contains(',')) else { return Ok(None) };
    let Some((from, to)) = text.split_once('-') else { return Ok(None) };
    let bad = || ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("the file has {size} bytes"));
    let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
    let (from, to) = match (from, to) {
        ("", last) => (size.saturating_sub(number(last)?), size),
        (from, "") => (number(from)?, size),
        (from, to) => (number(from)?, number(to)?.saturating_add(1).min(size)),
    };
    if from >= to {
        return Err(bad());
    }
    Ok(Some((from, to - from)))
}

/// Read a file, or a part of it (`Range`).
#[utoipa::path(get, path = "/v1/sprites/{name}/fs/read", tag = "files", params(Name, Place), responses(
    (status = 200, description = "Its bytes", body = Vec<u8>, content_type = "application/octet-stream"),
    (status = 206, description = "A part of them", body = Vec<u8>, content_type = "application/octet-stream"),
    BadRequest, Refused, Gone, NoRange, Busy))]
pub async fn read(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Words,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let path = of_query(&query)?;
    let mut part = None;
    if headers.contains_key(header::RANGE) {
        let found: FileList = ask(&app, &sandbox, &["fs", "list", "--", &path]).await?;
        part = ranged(&headers, &found)?;
    }
    let (from, len) =
        part.map_or_else(|| ("0".to_owned(), u64::MAX.to_string()), |(a, b)| (a.to_string(), b.to_string()));
    let mut begun = app.agent(&sandbox, &["fs", "read", &from, &len, "--", &path]).await?;
    begun.session.end_input().await;
    let (entry, rest) = first_line(&mut begun).await?;
    let size = entry["size"].as_u64().unwrap_or_default();
    let (to, pieces) = mpsc::channel::<Result<Bytes, std::io::Error>>(PIECES);
    // Counted as open as long as it is sent.
    tokio::spawn(async move {
        let _caller = caller;
        stream(begun, rest, to).await;
    });
    let body = Body::from_stream(ReceiverStream::new(pieces));
    let kind = (header::CONTENT_TYPE, "application/octet-stream".to_owned());
    Ok(match part {
        // Files without a size, in /proc, say 0; one that grows is sent as far as it goes.
        None => ([kind], body).into_response(),
        Some((from, len)) => {
            let range = (header::CONTENT_RANGE, format!("bytes {from}-{}/{size}", from + len - 1));
            (StatusCode::PARTIAL_CONTENT, [kind, range], body).into_response()
        }
    })
}

/// The bytes of a file that is being read; an end that is none breaks the body off.
async fn stream(mut begun: Watched, rest: Vec<u8>, to: mpsc::Sender<Result<Bytes, std::io::Error>>) {
    if !rest.is_empty() && to.send(Ok(rest.into())).await.is_err() {
        return begun.session.give_up();
    }
    while let Some(event) = begun.events.recv().await {
        let piece = match event {
            Event::Stdout(bytes) => Ok(bytes),
            Event::Stderr(_) => continue,
            Event::Exit(0) => return,
            Event::Exit(_) => Err(std::io::Error::other("the file was not read to its end")),
        };
        if to.send(piece).await.is_err() {
            return begun.session.give_up();
        }
    }
}

async fn send_body(session: &Session, body: Body) -> ApiResult<()> {
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|e| ApiError::bad(format!("the body broke off: {e}")))?;
        // One that has ended says why by itself.
        if !session.write(&piece).await {
            return Ok(());
        }
    }
    session.end_input().await;
    Ok(())
}

/// Write a file: the body is its contents. Folders above it are made.
#[utoipa::path(put, path = "/v1/sprites/{name}/fs/write", tag = "files", params(Name, Place,
    ("mode" = Option<String>, Query, description = "Permissions in octal digits; 0644 without")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses(
    (status = 200, description = "Written", body = FileWritten), BadRequest, Refused, Gone, Busy))]
pub async fn write(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Words,
    body: Body,
) -> ApiResult<Json<FileWritten>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let path = of_query(&query)?;
    let mode = query.get("mode").map_or("0644", String::as_str);
    // SDKs make a folder by writing a file into it, and expect that to work.
    let begun = app.agent(&sandbox, &["fs", "write", mode, "--parents", "--", &path]).await?;
    if let Err(e) = send_body(&begun.session, body).await {
        begun.session.give_up();
        return Err(e);
    }
    answer(begun).await.map(Json)
}

/// Delete a file, or with `recursive` a folder and all that is in it.
#[utoipa::path(delete, path = "/v1/sprites/{name}/fs/delete", tag = "files", params(Name, Place,
    ("recursive" = Option<bool>, Query, description = "A folder with all that is in it")), responses(
    (status = 200, description = "Deleted", body = FilesDeleted), BadRequest, Refused, Gone, Busy))]
pub async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Words,
) -> ApiResult<Json<FilesDeleted>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let path = of_query(&query)?;
    let mut words = vec!["fs", "delete"];
    words.extend(is(&query, &["recursive"]).then_some("--recursive"));
    words.extend(["--", &path]);
    ask(&app, &sandbox, &words).await.map(Json)
}

/// Words of a verb that takes a file from one place to another.
fn from_to<'a>(verb: &'a str, flag: Option<&'a str>, from: &'a str, to: &'a str) -> Vec<&'a str> {
    let mut words = vec!["fs", verb];
    words.extend(flag);
    words.extend(["--", from, to]);
    words
}

/// Move a file or folder.
#[utoipa::path(post, path = "/v1/sprites/{name}/fs/rename", tag = "files", params(Name), request_body = FromToRequest, responses(
    (status = 200, description = "Moved", body = FromTo), BadRequest, Refused, Gone, Busy))]
pub async fn rename(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> ApiResult<Json<FromTo>> {
    let (sandbox, body) = (caller.sandbox(&app, &name).await?, parse::<FromToRequest>(&body)?);
    let folder = body.working_dir.as_deref();
    let (from, to) = (place(body.source.as_deref(), folder)?, place(body.dest.as_deref(), folder)?);
    ask(&app, &sandbox, &from_to("rename", None, &from, &to)).await.map(Json)
}

/// Copy a file, or with `recursive` a folder.
#[utoipa::path(post, path = "/v1/sprites/{name}/fs/copy", tag = "files", params(Name), request_body = FromToRequest, responses(
    (status = 200, description = "Copied", body = FilesCopied), BadRequest, Refused, Gone, Busy))]
pub async fn copy(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> ApiResult<Json<FilesCopied>> {
    let (sandbox, body) = (caller.sandbox(&app, &name).await?, parse::<FromToRequest>(&body)?);
    let folder = body.working_dir.as_deref();
    let (from, to) = (place(body.source.as_deref(), folder)?, place(body.dest.as_deref(), folder)?);
    let flag = (body.recursive == Some(true)).then_some("--recursive");
    ask(&app, &sandbox, &from_to("copy", flag, &from, &to)).await.map(Json)
}

/// Changes what a file, or with `recursive` all in a folder, has.
async fn change(
    app: &Arc<App>,
    sandbox: &Sandbox,
    values: &[&str],
    path: &str,
    recursive: Option<bool>,
) -> ApiResult<Json<FilesChanged>> {
    let mut words = vec!["fs"];
    words.extend(values);
    words.extend((recursive == Some(true)).then_some("--recursive"));
    words.extend(["--", path]);
    ask(app, sandbox, &words).await.map(Json)
}

/// Change permissions.
#[utoipa::path(post, path = "/v1/sprites/{name}/fs/chmod", tag = "files", params(Name), request_body = ModeRequest, responses(
    (status = 200, description = "Changed", body = FilesChanged), BadRequest, Refused, Gone, Busy))]
pub async fn chmod(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> ApiResult<Json<FilesChanged>> {
    let (sandbox, body) = (caller.sandbox(&app, &name).await?, parse::<ModeRequest>(&body)?);
    let path = place(body.path.as_deref(), body.working_dir.as_deref())?;
    let mode = body.mode.ok_or_else(|| ApiError::bad("mode is required, as in \"0755\""))?;
    change(&app, &sandbox, &["chmod", &mode], &path, body.recursive).await
}

/// Change owner and group.
#[utoipa::path(post, path = "/v1/sprites/{name}/fs/chown", tag = "files", params(Name), request_body = OwnerRequest, responses(
    (status = 200, description = "Changed", body = FilesChanged), BadRequest, Refused, Gone, Busy))]
pub async fn chown(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> ApiResult<Json<FilesChanged>> {
    let (sandbox, body) = (caller.sandbox(&app, &name).await?, parse::<OwnerRequest>(&body)?);
    let path = place(body.path.as_deref(), body.working_dir.as_deref())?;
    let (Some(uid), Some(gid)) = (body.uid, body.gid) else { return Err(ApiError::bad("uid and gid are required")) };
    change(&app, &sandbox, &["chown", &uid.to_string(), &gid.to_string()], &path, body.recursive).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_from_their_folder() {
        assert_eq!(place(Some("a b"), Some("/root/")).expect("a path"), "/root/a b");
        assert_eq!(place(Some("a"), None).expect("a path"), "/a");
        assert_eq!(place(Some("/x"), Some("/root")).expect("a path"), "/x");
        assert!(place(None, None).is_err() && place(Some(""), None).is_err() && place(Some("a\0"), None).is_err());
    }

    #[test]
    fn ranges() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, text.parse().expect("a header"));
            range(&headers, 100).map_err(|e| e.status.as_u16())
        };
        assert_eq!(of("bytes=0-9"), Ok(Some((0, 10))));
        assert_eq!(of("bytes=90-"), Ok(Some((90, 10))));
        assert_eq!(of("bytes=-5"), Ok(Some((95, 5))));
        assert_eq!(of("bytes=50-1000"), Ok(Some((50, 50))));
        assert_eq!((of("bytes=100-"), of("bytes=9-3"), of("bytes=x-")), (Err(416), Err(416), Err(416)));
        assert_eq!((of("lines=1-2"), of("bytes=0-1,5-6")), (Ok(None), Ok(None)));
    }
}
