//! Guests that ask their host: one relay for each machine that runs, begun and kept here.
//!
//! A relay is a command of the agent's, `cairn-agent relay`, whose input and output carry the connections that programs of
//! the guest make to `/.sprite/api.sock`. Each is served HTTP by the routes of [`crate::routes::guest`].
//!
//! Invariants
//!   * a machine has one relay at most, which takes one of its agent's ports, and is nobody's session;
//!   * it is begun for machines that run, and never starts one; a machine that ends ends it;
//!   * no token goes into a guest: who asks is known by the port that it came from.

mod serve;
mod streams;
#[cfg(test)]
mod tests;

use crate::error::{ApiError, ApiResult};
use crate::exec::Watched;
use crate::lifecycle::App;
use crate::registry::Sandbox;
use crate::routes::guest::Guest;
use crate::session::{Event, Hold, Meta, Session};
use axum::http::StatusCode;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use streams::{News, Streams};
use tokio::sync::watch;
use tracing::{debug, info, warn};
use vmm_glue::{Agent, Exec};

/// How long a guest's agent may take to answer; so long nobody else changes its machine.
const AGENT: Duration = Duration::from_secs(5);
/// Pauses before a relay that has ended is begun again: each twice the one before.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// One that was there for so long did not fail at once.
const STEADY: Duration = Duration::from_secs(10);
/// How long a machine that has just started is waited for to have its relay.
const READY: Duration = Duration::from_secs(2);

/// A machine whose relay is kept.
struct Kept {
    /// It was asked for again: whoever keeps it looks once more before it ends.
    again: bool,
    tried: watch::Receiver<bool>,
}

/// The relays that are kept, by machine.
#[derive(Default)]
pub struct Relays {
    all: Mutex<HashMap<String, Kept>>,
}

impl Relays {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody keeps it any more, unless it was asked for meanwhile.
    fn is_over(&self, machine: &str) -> bool {
        let mut all = self.all();
        let asked_again = all.get_mut(machine).is_some_and(|kept| std::mem::take(&mut kept.again));
        if !asked_again {
            all.remove(machine);
        }
        !asked_again
    }
}

/// How a relay ended.
enum End {
    /// Its machine does not run.
    Stopped,
    Lost,
}

impl App {
    /// Has a sandbox's guest reach its host, as long as it runs. What is returned is true when that was tried.
    pub fn relay(self: &Arc<Self>, sandbox: &Sandbox) -> watch::Receiver<bool> {
        let mut all = self.relays.all();
        if let Some(kept) = all.get_mut(&sandbox.machine) {
            kept.again = true;
            return kept.tried.clone();
        }
        let (told, tried) = watch::channel(false);
        all.insert(sandbox.machine.clone(), Kept { again: false, tried: tried.clone() });
        tokio::spawn(keep(self.clone(), sandbox.clone(), told));
        tried
    }

    /// The same, and waits a moment until the guest has it.
    pub async fn relay_now(self: &Arc<Self>, sandbox: &Sandbox) {
        let mut tried = self.relay(sandbox);
        let _ = tokio::time::timeout(READY, tried.wait_for(|tried| *tried)).await;
    }

    /// Begins the relays of all machines that run already.
    pub async fn relay_all(self: &Arc<Self>) -> ApiResult<()> {
        let statuses = self.statuses().await?;
        let runs = |sandbox: &Sandbox| statuses.get(&sandbox.machine).is_some_and(|status| status.pid.is_some());
        self.registry
            .ready()
            .await?
            .iter()
            .filter(|sandbox| runs(sandbox))
            .for_each(|sandbox| drop(self.relay(sandbox)));
        Ok(())
    }

    /// Begins the command; `None` if the machine does not run.
    async fn begin_relay(self: &Arc<Self>, sandbox: &Sandbox) -> ApiResult<Option<Watched>> {
        // Between two states nobody knows whether it runs: whoever changes it is waited for, and waits for this.
        let change = self.change(&sandbox.machine).await;
        let machine = sandbox.machine.clone();
        let status = self.blocking(move |app| app.machines.status(&machine)).await;
        match status.as_ref().map(|status| status.state.as_str()) {
            Ok("running" | "paused") => {}
            Ok("busy" | "unresponsive") => return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "it is busy")),
            Ok(_) => return Ok(None),
            Err(e) if e.status == StatusCode::NOT_FOUND => return Ok(None),
            Err(_) => return status.map(|_| None),
        }
        let machine = sandbox.machine.clone();
        let begun = self.blocking(move |app| {
            let argv = ["cairn-agent", "relay"].map(|word| word.as_bytes().to_vec()).to_vec();
            Agent::session(&app.machines.folder(&machine)?, AGENT)?.begin(Exec { argv, ..Exec::default() })
        });
        let begun = begun.await?;
        drop(change);
        let begun = Session::start(begun, sandbox.machine.clone(), false, Meta::default());
        let (session, events) = begun.map_err(|e| ApiError::internal(e.to_string()))?;
        // What ends all commands of a machine ends this one, too.
        self.sessions.add(&session);
        Ok(Some(Watched { hold: Hold(session.clone()), session, events }))
    }

    /// Relays until that ends.
    async fn relay_once(self: &Arc<Self>, sandbox: &Sandbox, told: &watch::Sender<bool>) -> ApiResult<End> {
        let Some(mut begun) = self.begin_relay(sandbox).await? else { return Ok(End::Stopped) };
        let (streams, guest) = (Streams::new(), Guest::new(self.clone(), sandbox));
        let (from, session) = (streams.clone(), begun.session.clone());
        let sending = tokio::spawn(async move { while session.write(&from.to_send().await).await {} });
        while let Some(event) = begun.events.recv().await {
            let heard = match event {
                Event::Stdout(bytes) => streams.hear(&bytes),
                Event::Stderr(bytes) => {
                    let text: String =
                        String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).take(500).collect();
                    debug!(sandbox = sandbox.name, text, "a guest's relay complains");
                    continue;
                }
                Event::Exit(_) => break,
            };
            match heard {
                Ok(news) => news.into_iter().for_each(|news| match news {
                    News::Ready => {
                        info!(sandbox = sandbox.name, "its guest can ask its host");
                        told.send_replace(true);
                    }
                    News::Opened(id) => drop(tokio::spawn(serve::serve(streams.clone(), id, guest.clone()))),
                }),
                Err(e) => {
                    warn!(sandbox = sandbox.name, error = %e, "a guest's relay does not speak as it should");
                    break;
                }
            }
        }
        streams.end();
        sending.abort();
        Ok(End::Lost)
    }
}

/// Keeps a machine's relay as long as the machine runs.
async fn keep(app: Arc<App>, sandbox: Sandbox, told: watch::Sender<bool>) {
    let mut pause = PAUSE_MIN;
    loop {
        let begin = Instant::now();
        let outcome = app.relay_once(&sandbox, &told).await;
        told.send_replace(true);
        match outcome {
            Ok(End::Stopped) if app.relays.is_over(&sandbox.machine) => return,
            Ok(_) => {}
            Err(e) => debug!(sandbox = sandbox.name, error = %e, "a relay cannot be begun now"),
        }
        pause = if begin.elapsed() > STEADY { PAUSE_MIN } else { pause.saturating_mul(2).min(PAUSE_MAX) };
        tokio::time::sleep(pause).await;
    }
}
