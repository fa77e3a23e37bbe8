//! Commands by POST, and ending those that run.

use super::answers::{BadRequest, Busy, Gone, Name, NameAndSession, Refused};
use super::exec::Words;
use super::socket::signal;
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::lifecycle::App;
use crate::session::Event;
use crate::time::duration;
use crate::wire::{parse, ExecRequest, ExecResult, KillRequest, Seconds};
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use vmm_glue::Exec;

/// Output of a command that is answered as a whole.
const OUTPUT_MAX: usize = 16 << 20;
/// How long a command may take to end by its signal before it is killed.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a frame at which it takes no more.
const FRAME_MAX: usize = 256 << 10;
/// Between two frames.
const APART: Duration = Duration::from_millis(40);
/// Lines that a slow client may have before it.
const LINES: usize = 16;

/// Run a command. With `cmd=` output comes in chunks, each with a byte before it that says what it is (1 standard output,
/// 2 standard error, 3 the end, and then one byte is the status) and the body is its standard input; with a body in JSON
/// the answer comes as a whole.
#[utoipa::path(post, path = "/v1/sprites/{name}/exec", tag = "commands", params(Name,
    ("cmd" = Option<Vec<String>>, Query, description = "Each word of the command"),
    ("dir" = Option<String>, Query, description = "The folder to begin in"),
    ("env" = Option<Vec<String>>, Query, description = "NAME=VALUE"),
    ("stdin" = Option<bool>, Query, description = "Whether the body is standard input")), request_body = ExecRequest, responses(
    (status = 200, description = "It ended, or its output", content(
        (ExecResult = "application/json"), (Vec<u8> = "application/octet-stream"))), BadRequest, Refused, Gone, Busy))]
pub async fn run(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(words): Query<Vec<(String, String)>>,
    body: Bytes,
) -> ApiResult<Response> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let words = Words(words);
    if words.get("cmd").is_none() {
        let body: ExecRequest = parse(&body)?;
        let command = body.command.as_deref();
        let command = command.ok_or_else(|| ApiError::bad("say what to run: cmd=…, or {\"command\": \"…\"}"))?;
        let argv = ["sh", "-c", command].map(|word| word.as_bytes().to_vec()).to_vec();
        let dir = body.dir.unwrap_or_default().into_bytes();
        let begun = app.begin(&sandbox, Exec { argv, cwd: dir, ..Exec::default() }, None).await?;
        begun.session.end_input().await;
        let (out, err, code) = begun.collect(OUTPUT_MAX).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        return Ok(Json(ExecResult { stdout: text(&out), stderr: text(&err), exit_code: code }).into_response());
    }
    let (exec, _) = words.exec()?;
    let begun = app.begin(&sandbox, exec, None).await?;
    let (session, has_stdin) = (begun.session.clone(), words.is("stdin"));
    tokio::spawn(async move {
        if has_stdin {
            session.write(&body).await;
        }
        session.end_input().await;
    });
    let (to, chunks) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    tokio::spawn(async move {
        let _caller = caller;
        let mut begun = begun;
        let mut next = begun.events.recv().await;
        while let Some(event) = next.take() {
            let (kind, mut frame) = match event {
                Event::Stdout(bytes) => (1, [&[1], &bytes[..]].concat()),
                Event::Stderr(bytes) => (2, [&[2], &bytes[..]].concat()),
                Event::Exit(code) => (3, vec![3, code]),
            };
            // What has come in the meantime of the same stream goes with it.
            let until = tokio::time::Instant::now() + APART;
            while let Ok(Some(more)) = tokio::time::timeout_at(until, begun.events.recv()).await {
                match (kind, &more) {
                    (1, Event::Stdout(bytes)) | (2, Event::Stderr(bytes)) if frame.len() < FRAME_MAX => {
                        frame.extend(&bytes[..]);
                    }
                    _ => {
                        next = Some(more);
                        break;
                    }
                }
            }
            if to.send(Ok(frame.into())).await.is_err() {
                begun.session.give_up();
                return;
            }
            if kind == 3 {
                return;
            }
            // Frames have no length: a client tells them apart by how they arrive.
            tokio::time::sleep(APART).await;
            if next.is_none() {
                next = begun.events.recv().await;
            }
        }
    });
    let body = Body::from_stream(ReceiverStream::new(chunks));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// Send a command a signal, and hear line by line what becomes of it: `signal`, `timeout`, `exited`, `killed`, `complete`.
#[utoipa::path(post, path = "/v1/sprites/{name}/exec/{id}/kill", tag = "commands", params(NameAndSession,
    ("signal" = Option<String>, Query, description = "SIGTERM without"),
    ("timeout" = Option<String>, Query, description = "When it is killed if it has not ended: 10s")),
    request_body = KillRequest, responses(
    (status = 200, description = "Lines", content_type = "application/x-ndjson"), BadRequest, Refused, Gone))]
pub async fn kill(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
    Query(words): Query<Vec<(String, String)>>,
    body: Bytes,
) -> ApiResult<Response> {
    let sandbox = caller.sandbox(&app, &name).await?;
    let (words, body) = (Words(words), parse::<KillRequest>(&body)?);
    let session = app.sessions.find(&sandbox.machine, &id);
    let session = session.ok_or_else(|| ApiError::not_found(format!("session not found: {id}")))?;
    let wanted = words.get("signal").or(body.signal.as_deref()).unwrap_or("SIGTERM").to_owned();
    let number = signal(&wanted).ok_or_else(|| ApiError::bad(format!("{wanted:?} is no signal")))?;
    let timeout = words.get("timeout").map(str::to_owned).or_else(|| {
        Some(match body.timeout? {
            Seconds::Number(seconds) => seconds.to_string(),
            Seconds::Text(text) => text,
        })
    });
    let timeout = match timeout.map(|text| duration(&text)) {
        None => TIMEOUT,
        Some(Some(timeout)) => timeout,
        Some(None) => return Err(ApiError::bad("timeout is no time: use 10s, 1m")),
    };
    let (_, mut events) = session.watch();
    let (to, lines) = mpsc::channel::<Result<Bytes, Infallible>>(LINES);
    tokio::spawn(async move {
        let _caller = caller;
        let say = |line: serde_json::Value| {
            let to = to.clone();
            async move { to.send(Ok(format!("{line}\n").into())).await.is_ok() }
        };
        session.signal(number).await;
        let text = format!("Signaling {wanted} to process group {id}");
        say(json!({"type": "signal", "message": text, "pid": id.parse::<u64>().ok(), "signal": wanted})).await;
        let until_end = async {
            loop {
                match events.recv().await {
                    Some(Event::Exit(code)) => return code,
                    Some(_) => {}
                    None => return crate::session::LOST,
                }
            }
        };
        tokio::pin!(until_end);
        let mut ended = tokio::time::timeout(timeout, &mut until_end).await.ok();
        if ended.is_none() && !timeout.is_zero() {
            say(json!({"type": "timeout", "message": "it did not end in time: killing it"})).await;
            session.signal(libc::SIGKILL as u8).await;
            ended = tokio::time::timeout(TIMEOUT, &mut until_end).await.ok();
        }
        if let Some(code) = ended {
            let kind = if code == 128 + libc::SIGKILL as u8 { "killed" } else { "exited" };
            say(json!({"type": kind, "message": format!("it ended with {code}")})).await;
        }
        say(json!({"type": "complete", "exit_code": ended})).await;
    });
    let body = Body::from_stream(ReceiverStream::new(lines));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}
