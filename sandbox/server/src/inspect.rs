//! Files of checkpoints, which a process of its own looks at: what a guest made is not parsed here.
//!
//! Invariants
//!   * a client that goes away, or reads nothing for `PATIENCE`, ends its process;
//!   * no more of an answer is kept than `ANSWER_MAX`.

use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::lifecycle::App;
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::{mpsc, OwnedSemaphorePermit};
use tokio_stream::wrappers::ReceiverStream;

/// Bytes of a list.
const ANSWER_MAX: u64 = 64 << 20;
/// Bytes of a refusal.
const REFUSAL_MAX: u64 = 64 << 10;
/// Bytes of a file that are handed on at a time, and pieces that wait for a slow client.
const PIECE: usize = 64 << 10;
const PIECES: usize = 8;
/// How long a client may take none of them.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the first line may take: a large disk's differences are many reads.
const ANSWER: Duration = Duration::from_secs(90);

/// A look into a state, under way.
pub struct Inspection {
    out: BufReader<ChildStdout>,
    err: ChildStderr,
    /// Killed with this value.
    child: Child,
    _permit: OwnedSemaphorePermit,
}

impl App {
    /// Begins a look: `words` as [`crate::Pool::inspector`] takes them.
    pub async fn inspect(&self, words: &[&str]) -> ApiResult<Inspection> {
        let permit = self.inspections.clone().acquire_owned().await;
        let permit = permit.map_err(|_| ApiError::internal("the server ends"))?;
        let failed = |e: io::Error| ApiError::internal(format!("files of checkpoints cannot be read: {e}"));
        let mut command = Command::from(self.pool.inspector());
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(ApiError::internal("a process has no output"));
        };
        Ok(Inspection { out: BufReader::new(out), err, child, _permit: permit })
    }
}

impl Inspection {
    /// The first line of the answer, or the refusal.
    pub async fn line(&mut self) -> ApiResult<Value> {
        let mut line = Vec::new();
        let read = async {
            let mut out = (&mut self.out).take(ANSWER_MAX);
            out.read_until(b'\n', &mut line).await
        };
        match tokio::time::timeout(ANSWER, read).await {
            Err(_) => {
                return Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, "looking into the checkpoint takes too long"))
            }
            Ok(read) => read.map_err(|e| ApiError::internal(e.to_string()))?,
        };
        if line.last() == Some(&b'\n') {
            return serde_json::from_slice(&line).map_err(|e| ApiError::internal(e.to_string()));
        }
        Err(self.refusal().await)
    }

    async fn refusal(&mut self) -> ApiError {
        let mut said = Vec::new();
        let _ = (&mut self.err).take(REFUSAL_MAX).read_to_end(&mut said).await;
        let ended = self.child.wait().await;
        // Lines before the last are notices.
        let last = said.trim_ascii().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let found: Value = serde_json::from_slice(last).unwrap_or_default();
        if found["code"].is_string() {
            return crate::routes::refusal(&found);
        }
        let text = found["error"]["message"].as_str().map(str::to_owned);
        let status = match found["error"]["kind"].as_str() {
            Some("not_found") => StatusCode::NOT_FOUND,
            Some("invalid") => StatusCode::BAD_REQUEST,
            Some("corrupt") => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let how = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
        ApiError::new(status, text.unwrap_or_else(|| format!("looking into the checkpoint failed: {how}")))
    }

    /// What comes behind the first line, as a body; `caller` counts as busy until it is sent.
    pub fn body(self, caller: Caller) -> Body {
        let (to, pieces) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            let _caller = caller;
            self.send(to).await;
        });
        Body::from_stream(ReceiverStream::new(pieces))
    }

    async fn send(mut self, to: mpsc::Sender<io::Result<Bytes>>) {
        let mut piece = vec![0; PIECE];
        loop {
            let next = match self.out.read(&mut piece).await {
                // An end that is none breaks the body off.
                Ok(0) => match self.child.wait().await {
                    Ok(status) if status.success() => return,
                    _ => Err(io::Error::other("the file was not read to its end")),
                },
                Ok(got) => Ok(Bytes::copy_from_slice(piece.get(..got).unwrap_or_default())),
                Err(e) => Err(e),
            };
            let is_last = next.is_err();
            let sent = tokio::time::timeout(PATIENCE, to.send(next)).await;
            if is_last || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }
}

/// Does one look whose answer is one line.
pub async fn look<T: DeserializeOwned>(app: &Arc<App>, words: &[&str]) -> ApiResult<T> {
    let said = app.inspect(words).await?.line().await?;
    serde_json::from_value(said).map_err(|e| ApiError::internal(format!("the inspector gave no answer: {e}")))
}
