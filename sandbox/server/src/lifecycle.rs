//! Sandboxes and their machines: making, waking, deleting, and putting in order what a server that ended left.

use crate::error::{ApiError, ApiResult};
use crate::limits::{too_many, Limits, Open};
use crate::pool::Pool;
use crate::registry::{Registry, Sandbox, State};
use crate::relay::Relays;
use crate::session::Sessions;
use crate::time::now_us;
use crate::token::random_hex;
use crate::wire::SpriteCreate;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
use tracing::{error, info, warn};
use vmm_glue::{Kind, Machines, New, Status, Transport};

/// What a sandbox is made of when its creator does not say.
const CPUS: u32 = 1;
const MEMORY_MIB: u64 = 512;
/// Processes that look into checkpoints at a time, each with memory of its own.
const INSPECTIONS: usize = 4;
/// Machines of sandboxes are called so, with a random number behind it.
const PREFIX: &str = "sandbox-";

/// The server's state.
pub struct App {
    pub registry: Registry,
    pub machines: Machines,
    pub pool: Box<dyn Pool>,
    pub image: String,
    pub sessions: Sessions,
    pub limits: Limits,
    /// Requests and streams.
    pub open: Open,
    /// Looks into checkpoints that may go on at a time.
    pub inspections: Arc<Semaphore>,
    pub relays: Relays,
    /// One change of a machine at a time.
    changes: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// What a new sandbox begins as.
pub enum Origin {
    Image(String),
    /// Another machine: its name, or NAME@ID.
    Machine(String),
}

impl App {
    pub fn new(registry: Registry, machines: Machines, pool: Box<dyn Pool>, image: String, limits: Limits) -> Self {
        let inspections = Arc::new(Semaphore::new(INSPECTIONS));
        let (sessions, open, relays) = (Sessions::default(), Open::default(), Relays::default());
        let changes = Mutex::default();
        Self { registry, machines, pool, image, sessions, limits, open, inspections, relays, changes }
    }

    /// Does what blocks on a thread that may.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> vmm_glue::Result<T> + Send + 'static,
    ) -> ApiResult<T> {
        let app = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&app)).await;
        Ok(done.map_err(|_| ApiError::internal("the request failed in a way that was not foreseen"))??)
    }

    /// Does what must not be left half done when the client that asked for it goes away: its request is dropped then.
    pub async fn to_the_end<T: Send + 'static>(
        work: impl std::future::Future<Output = ApiResult<T>> + Send + 'static,
    ) -> ApiResult<T> {
        let done = tokio::spawn(work).await;
        done.map_err(|_| ApiError::internal("the request failed in a way that was not foreseen"))?
    }

    /// Held while a machine is changed.
    pub async fn change(&self, machine: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
            // What nobody holds or waits for is forgotten.
            changes.retain(|_, lock| Arc::strong_count(lock) > 1);
            changes.entry(machine.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// Finishes what a server that ended had begun.
    pub async fn put_in_order(self: &Arc<Self>) -> ApiResult<()> {
        for sandbox in self.registry.unfinished().await? {
            info!(sandbox = sandbox.name, state = ?sandbox.state, "finishing what was begun");
            // One that cannot be finished now keeps the others from nothing: its name stays taken until it can.
            match self.remove_machine(&sandbox.machine).await {
                Ok(()) => self.registry.remove(&sandbox.id).await?,
                Err(e) => error!(sandbox = sandbox.name, error = %e, "it cannot be removed: tried at the next start"),
            }
        }
        Ok(())
    }

    async fn remove_machine(self: &Arc<Self>, machine: &str) -> ApiResult<()> {
        let machine = machine.to_owned();
        self.blocking(move |app| match app.machines.get(&machine) {
            Ok(found) => found.remove(&*app.pool, true),
            // Its record was not written yet: its volume may be there.
            Err(e) if e.kind == Kind::NotFound => match app.pool.has(&machine)? {
                true => app.pool.delete(&machine),
                false => Ok(()),
            },
            Err(e) => Err(e),
        })
        .await
    }

    /// Makes a sandbox that does not run yet.
    pub async fn create(self: &Arc<Self>, new: Sandbox, from: Origin) -> ApiResult<Sandbox> {
        let app = self.clone();
        Self::to_the_end(async move { app.make(new, from).await }).await
    }

    async fn make(self: &Arc<Self>, mut new: Sandbox, from: Origin) -> ApiResult<Sandbox> {
        let config = |key: &str| new.config[key].as_u64();
        // Two that come at once are counted one after the other.
        let turn = self.change(&format!("token {}", new.token)).await;
        let count = self.registry.count(&new.token).await?;
        if count >= self.limits.sandboxes {
            let what = "this token has made as many sandboxes as may be: delete one";
            return Err(too_many("concurrent_sprite_limit_exceeded", what, self.limits.sandboxes, count));
        }
        let cpus = config("cpus").map_or(CPUS, |cpus| cpus.min(u64::from(u32::MAX)) as u32);
        let memory = config("ram_mb").unwrap_or(MEMORY_MIB).saturating_mul(1 << 20);
        let disk = config("storage_gb").map(|gb| gb.saturating_mul(1 << 30));
        if !self.registry.add(&new).await? {
            let text = format!("A sprite named '{}' already exists. Please choose a different name.", new.name);
            return Err(ApiError::new(axum::http::StatusCode::CONFLICT, text));
        }
        drop(turn);
        let machine = new.machine.clone();
        let made = self.blocking(move |app| {
            let made = match from {
                Origin::Image(image) => app.machines.make(
                    &*app.pool,
                    &New { name: machine, image, cpus, memory, disk, transport: Transport::VhostUser },
                ),
                Origin::Machine(source) => app.machines.copy(&*app.pool, &source, &machine),
            };
            made.map(drop)
        });
        if let Err(e) = made.await {
            self.remove_machine(&new.machine).await?;
            self.registry.remove(&new.id).await?;
            return Err(e);
        }
        self.registry.set_state(&new.id, State::Ready).await?;
        new.state = State::Ready;
        info!(sandbox = new.name, machine = new.machine, "a sandbox was made");
        Ok(new)
    }

    /// Ends a sandbox with all that it holds.
    pub async fn delete(self: &Arc<Self>, sandbox: &Sandbox) -> ApiResult<()> {
        let (app, sandbox) = (self.clone(), sandbox.clone());
        Self::to_the_end(async move { app.remove(&sandbox).await }).await
    }

    /// Ends its guest and starts it anew.
    pub async fn restart(self: &Arc<Self>, sandbox: &Sandbox) -> ApiResult<()> {
        let (app, machine) = (self.clone(), sandbox.machine.clone());
        Self::to_the_end(async move {
            let _change = app.change(&machine).await;
            app.sessions.end_all(&machine);
            app.blocking(move |app| {
                let mut machine = app.machines.get(&machine)?;
                machine.stop(false)?;
                machine.start(&*app.pool, None)
            })
            .await
        })
        .await?;
        self.relay(sandbox);
        Ok(())
    }

    async fn remove(self: &Arc<Self>, sandbox: &Sandbox) -> ApiResult<()> {
        let _change = self.change(&sandbox.machine).await;
        self.registry.set_state(&sandbox.id, State::Deleting).await?;
        self.sessions.end_all(&sandbox.machine);
        if let Err(e) = self.remove_machine(&sandbox.machine).await {
            // What could not be deleted is still there, and can be asked to go again.
            if self.machines.has(&sandbox.machine) {
                self.registry.set_state(&sandbox.id, State::Ready).await?;
            }
            return Err(e);
        }
        self.registry.remove(&sandbox.id).await?;
        info!(sandbox = sandbox.name, "a sandbox was deleted");
        Ok(())
    }

    /// The folder of a machine that runs: one that does not is started.
    pub async fn awake(self: &Arc<Self>, sandbox: &Sandbox) -> ApiResult<PathBuf> {
        let machine = sandbox.machine.clone();
        let running = |status: &Status| status.state == "running" || status.state == "paused";
        let look = machine.clone();
        if self.blocking(move |app| Ok(running(&app.machines.status(&look)?))).await? {
            self.relay(sandbox);
            return Ok(self.machines.folder(&machine)?);
        }
        let (app, begin) = (self.clone(), std::time::Instant::now());
        let folder = Self::to_the_end(async move {
            let _change = app.change(&machine).await;
            app.blocking(move |app| {
                if !running(&app.machines.status(&machine)?) {
                    app.machines.get(&machine)?.boot_or_wake(&*app.pool)?;
                }
                app.machines.folder(&machine)
            })
            .await
        })
        .await?;
        self.relay_now(sandbox).await;
        info!(sandbox = sandbox.name, time_ms = begin.elapsed().as_millis() as u64, "a sandbox is awake");
        if let Err(e) = self.registry.was_active(&sandbox.id).await {
            warn!(error = %e, "when it was active is not noted");
        }
        Ok(folder)
    }

    /// How the sandboxes' machines are, by name.
    pub async fn statuses(self: &Arc<Self>) -> ApiResult<HashMap<String, Status>> {
        self.blocking(|app| Ok(app.machines.list()?.into_iter().map(|status| (status.name.clone(), status)).collect()))
            .await
    }
}

/// A row for a sandbox that is about to be made.
pub fn row(org: &str, token: &str, name: &str, body: &SpriteCreate) -> ApiResult<Sandbox> {
    let random = |bytes| random_hex(bytes).map_err(|e| ApiError::internal(e.to_string()));
    let hex = random(16)?;
    let uuid = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| hex.get(part).unwrap_or_default().to_owned()).join("-");
    let (short, now) = (hex.get(..16).unwrap_or_default().to_owned(), now_us());
    Ok(Sandbox {
        id: format!("sprite-{uuid}"),
        org: org.to_owned(),
        name: name.to_owned(),
        machine: format!("{PREFIX}{short}"),
        state: State::Creating,
        token: token.to_owned(),
        labels: body.labels.clone().unwrap_or_default(),
        environment: body.environment.clone().unwrap_or_default().into_iter().collect(),
        config: body.config.as_ref().and_then(|config| serde_json::to_value(config).ok()).unwrap_or_default(),
        url_auth: body.url_settings.as_ref().and_then(|url| url.auth.clone()).unwrap_or_else(|| "sprite".to_owned()),
        suffix: random(2)?,
        created_us: now,
        updated_us: now,
        last_active_us: None,
    })
}
