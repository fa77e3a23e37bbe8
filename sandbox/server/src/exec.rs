//! Beginning commands in a guest.

use crate::error::{ApiError, ApiResult};
use crate::lifecycle::App;
use crate::registry::Sandbox;
use crate::session::{Event, Hold, Meta, Session};
use axum::http::StatusCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use vmm_glue::{Agent, Exec, Kind};

/// A command and its first watcher.
pub struct Watched {
    pub session: Arc<Session>,
    pub events: Receiver<Event>,
    pub hold: Hold,
}

/// How long a guest's agent may take to answer.
const AGENT: Duration = Duration::from_secs(30);

impl App {
    /// Begins a command in a sandbox, which is woken for it. One with `meta` is a session that can be listed.
    pub async fn begin(self: &Arc<Self>, sandbox: &Sandbox, mut exec: Exec, meta: Option<Meta>) -> ApiResult<Watched> {
        let folder = self.awake(sandbox).await?;
        let bytes = |text: &String| text.clone().into_bytes();
        let own = sandbox.environment.iter().map(|(name, value)| (bytes(name), bytes(value)));
        exec.env = own.chain(exec.env).collect();
        let machine = sandbox.machine.clone();
        let begun = self.blocking(move |app| {
            let exec = match app.machines.user(&machine)? {
                Some(user) => vmm_glue::run_as(exec, &user),
                None => exec,
            };
            let begun = Agent::session(&folder, AGENT).and_then(|agent| agent.begin(exec));
            begun.map_err(|e| match app.machines.status(&machine) {
                Ok(status) if status.state == "running" => e,
                // It was ended between being woken and this: to ask again is of use.
                _ => vmm_glue::Error::new(Kind::Busy, e.message),
            })
        });
        let begun = begun.await?;
        let (session, events) =
            Session::start(begun, sandbox.machine.clone(), meta.is_some(), meta.unwrap_or_default())
                .map_err(|e| ApiError::internal(format!("the guest's agent cannot be reached: {e}")))?;
        self.sessions.add(&session);
        Ok(Watched { hold: Hold(session.clone()), session, events })
    }

    /// Begins something that the agent itself does.
    pub async fn agent(self: &Arc<Self>, sandbox: &Sandbox, words: &[&str]) -> ApiResult<Watched> {
        let argv = std::iter::once("cairn-agent").chain(words.iter().copied()).map(|word| word.as_bytes().to_vec());
        self.begin(sandbox, Exec { argv: argv.collect(), ..Exec::default() }, None).await
    }
}

impl Watched {
    /// Waits for the end: standard output, standard error, status. What is longer than `max` is given up.
    pub async fn collect(mut self, max: usize) -> ApiResult<(Vec<u8>, Vec<u8>, u8)> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(event) = self.events.recv().await {
            match event {
                Event::Stdout(bytes) => out.extend(&bytes[..]),
                Event::Stderr(bytes) => err.extend(&bytes[..]),
                Event::Exit(code) => return Ok((out, err, code)),
            }
            if out.len() + err.len() > max {
                self.session.give_up();
                return Err(ApiError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the command wrote more than {max} bytes: use the WebSocket, or cmd= for a stream"),
                ));
            }
        }
        Err(ApiError::internal("the command's end was lost"))
    }
}
