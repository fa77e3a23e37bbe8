//! Files of a sandbox, through the agent's `fs` verbs: the guest's kernel decides who may do what.

use super::sprites::object;
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::exec::Watched;
use crate::lifecycle::App;
use crate::registry::Sandbox;
use crate::session::{Event, Session};
use crate::time::rfc3339;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{header, HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{post, MethodRouter};
use axum::Json;
use futures_util::StreamExt;
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

type Words = Query<HashMap<String, String>>;

/// The guest's path that a request means.
pub fn place(path: Option<&str>, folder: Option<&str>) -> ApiResult<String> {
    let path = path.filter(|path| !path.is_empty()).ok_or_else(|| ApiError::bad("path is required"))?;
    if path.contains('\0') {
        return Err(ApiError::bad("a path has no NUL in it"));
    }
    let folder = folder.filter(|folder| !folder.is_empty()).unwrap_or("/");
    Ok(if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", folder.trim_end_matches('/')) })
}

fn of_query(query: &HashMap<String, String>) -> ApiResult<String> {
    place(query.get("path").map(String::as_str), query.get("workingDir").map(String::as_str))
}

fn is(query: &HashMap<String, String>, keys: &[&str]) -> bool {
    keys.iter().any(|key| query.get(*key).is_some_and(|value| value == "true" || value == "1"))
}

/// What the agent says on standard error when it cannot.
fn refusal(said: &[u8]) -> ApiError {
    let found: Value = serde_json::from_slice(said).unwrap_or_default();
    let Some(code) = found["code"].as_str() else {
        return ApiError::internal(String::from_utf8_lossy(said).chars().take(500).collect::<String>());
    };
    let status = match code {
        "ENOENT" => StatusCode::NOT_FOUND,
        "EEXIST" | "ENOTEMPTY" => StatusCode::CONFLICT,
        "EACCES" | "EPERM" => StatusCode::FORBIDDEN,
        "ENOSPC" => StatusCode::INSUFFICIENT_STORAGE,
        "EIO" => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    };
    ApiError { status, body: json!({"error": found["error"], "code": code, "path": found["path"]}) }
}

async fn answer(begun: Watched) -> ApiResult<Value> {
    let (out, err, code) = begun.collect(ANSWER_MAX).await?;
    if code != 0 {
        return Err(refusal(&err));
    }
    serde_json::from_slice(&out).map_err(|e| ApiError::internal(format!("the guest's agent gave no answer: {e}")))
}

async fn ask(app: &Arc<App>, sandbox: &Sandbox, words: &[&str]) -> ApiResult<Value> {
    let begun = app.agent(sandbox, words).await?;
    begun.session.end_input().await;
    answer(begun).await
}

/// Times as the API writes them, in what the agent says of a file.
fn with_time(entry: &mut Value) {
    let ns = entry["modTimeNs"].as_i64().unwrap_or_default();
    if let Some(fields) = entry.as_object_mut() {
        fields.remove("modTimeNs");
        fields.insert("modTime".to_owned(), json!(rfc3339(ns / 1000)));
    }
}

pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Words,
) -> ApiResult<Json<Value>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let path = place(query.get("path").map(String::as_str).or(Some("/")), query.get("workingDir").map(String::as_str))?;
    let mut words = vec!["fs", "list"];
    words.extend(is(&query, &["recursive"]).then_some("--recursive"));
    words.extend(["--", &path]);
    let mut found = ask(&app, &sandbox, &words).await?;
    if let Some(entries) = found["entries"].as_array_mut() {
        entries.iter_mut().for_each(with_time);
    }
    Ok(Json(found))
}

/// The first line of what a command says, and what came behind it.
async fn first_line(begun: &mut Watched) -> ApiResult<(Value, Vec<u8>)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(event) = begun.events.recv().await {
        match event {
            Event::Stdout(bytes) => out.extend(&bytes[..]),
            Event::Stderr(bytes) => err.extend(&bytes[..]),
            Event::Exit(0) => break,
            Event::Exit(_) => return Err(refusal(&err)),
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
        let found = ask(&app, &sandbox, &["fs", "list", "--", &path]).await?;
        part = range(&headers, found["entries"][0]["size"].as_u64().unwrap_or_default())?;
    }
    let (from, len) =
        part.map_or_else(|| ("0".to_owned(), u64::MAX.to_string()), |(a, b)| (a.to_string(), b.to_string()));
    let mut begun = app.agent(&sandbox, &["fs", "read", &from, &len, "--", &path]).await?;
    begun.session.end_input().await;
    let (entry, rest) = first_line(&mut begun).await?;
    let size = entry["size"].as_u64().unwrap_or_default();
    let (to, pieces) = mpsc::channel::<Result<Bytes, std::io::Error>>(PIECES);
    tokio::spawn(stream(begun, rest, to));
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

pub async fn write(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Words,
    body: Body,
) -> ApiResult<Json<Value>> {
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

pub async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Words,
) -> ApiResult<Json<Value>> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let path = of_query(&query)?;
    let mut words = vec!["fs", "delete"];
    words.extend(is(&query, &["recursive"]).then_some("--recursive"));
    words.extend(["--", &path]);
    ask(&app, &sandbox, &words).await.map(Json)
}

/// A verb that takes a file from one place to another.
pub fn from_to(verb: &'static str) -> MethodRouter<Arc<App>> {
    let answer = move |State(app): State<Arc<App>>, caller: Caller, Path(name): Path<String>, body: Bytes| async move {
        let (sandbox, body) = (caller.sandbox(&app, &name).await?, object(&body)?);
        let folder = body["workingDir"].as_str();
        let (from, to) = (place(body["source"].as_str(), folder)?, place(body["dest"].as_str(), folder)?);
        let mut words = vec!["fs", verb];
        words.extend((verb == "copy" && body["recursive"] == true).then_some("--recursive"));
        words.extend(["--", &from, &to]);
        ask(&app, &sandbox, &words).await.map(Json)
    };
    post(answer)
}

/// A verb that changes what a file, or all in a folder, has; `values` are its words from the body.
fn change(verb: &'static str, values: fn(&Value) -> ApiResult<Vec<String>>) -> MethodRouter<Arc<App>> {
    let answer = move |State(app): State<Arc<App>>, caller: Caller, Path(name): Path<String>, body: Bytes| async move {
        let (sandbox, body) = (caller.sandbox(&app, &name).await?, object(&body)?);
        let path = place(body["path"].as_str(), body["workingDir"].as_str())?;
        let values = values(&body)?;
        let mut words = vec!["fs", verb];
        words.extend(values.iter().map(String::as_str));
        words.extend((body["recursive"] == true).then_some("--recursive"));
        words.extend(["--", &path]);
        ask(&app, &sandbox, &words).await.map(Json)
    };
    post(answer)
}

pub fn chmod() -> MethodRouter<Arc<App>> {
    change("chmod", |body| {
        let mode = body["mode"].as_str().ok_or_else(|| ApiError::bad("mode is required, as in \"0755\""))?;
        Ok(vec![mode.to_owned()])
    })
}

pub fn chown() -> MethodRouter<Arc<App>> {
    change("chown", |body| {
        let number = |key: &str| {
            body[key].as_u64().map(|n| n.to_string()).ok_or_else(|| ApiError::bad(format!("{key} is required")))
        };
        Ok(vec![number("uid")?, number("gid")?])
    })
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
