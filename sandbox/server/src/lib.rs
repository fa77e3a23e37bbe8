//! The sandbox API: machines with checkpoints, over HTTP and WebSocket, as the SDKs of Sprites speak it.
//!
//! The server holds no guest memory and no block data: a sandbox is a machine of `vmm-glue` on a volume of the storage
//! daemon, and a row in the [`Registry`]. It can end at any moment; what was half made or half deleted is put in order
//! when it starts.
//!
//! Invariants
//!   * a sandbox is seen only by tokens of its organization: to all others it is not there (404);
//!   * what a guest sends is bounded before it is kept: a client that does not read holds up its own command and nothing
//!     else;
//!   * every command's client hears how it ended, also when its guest is restored or ends under it.

mod caller;
mod error;
mod exec;
mod inspect;
mod lifecycle;
mod limits;
mod pool;
mod registry;
mod relay;
mod routes;
mod session;
mod time;
mod tls;
mod token;
mod tokens;
mod upgrade;
mod wire;

pub use limits::Limits;
pub use pool::Pool;
pub use registry::Registry;
pub use time::{duration, rfc3339};
pub use token::{Scope, Token, TokenInfo};
pub use tokens::{create_token, first_token, revoke_token, tokens};

use lifecycle::App;
use rustls::ServerConfig;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tls::TlsListener;
use tokio::net::TcpListener;
use tokio::signal::unix::{signal, SignalKind};
use vmm_glue::Machines;

/// What a sandbox is made from when its creator does not say.
pub const DEFAULT_IMAGE: &str = "tiny";

/// Where the API listens unless told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7420";
/// The registry's file in a pool's folder.
pub const REGISTRY: &str = "sandboxes.db";
/// How long requests may take to end when the server does.
const DRAIN: Duration = Duration::from_secs(3);

/// What the server is started with.
pub struct Options {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// The registry's file.
    pub registry: PathBuf,
    /// The machines of the pool.
    pub machines: Machines,
    /// The pool.
    pub pool: Box<dyn Pool>,
    /// What sandboxes are made from.
    pub image: String,
    /// What one token may have.
    pub limits: Limits,
    /// How to speak TLS; plain HTTP without.
    pub tls: Option<Arc<ServerConfig>>,
}

/// Serves until SIGTERM or SIGINT; `ready` hears where.
///
/// # Errors
/// The address is taken, or the registry cannot be read.
pub fn run(options: Options, ready: impl FnOnce(SocketAddr)) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("cairn-api").build()?;
    runtime.block_on(serve(options, ready))?;
    // What blocks on a guest ends with the process.
    runtime.shutdown_background();
    Ok(())
}

async fn serve(options: Options, ready: impl FnOnce(SocketAddr)) -> std::io::Result<()> {
    let Options { listen, registry, machines, pool, image, limits, tls } = options;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let registry = Registry::open(&registry).await.map_err(std::io::Error::other)?;
    let app = Arc::new(App::new(registry, machines, pool, image, limits));
    app.put_in_order().await.map_err(std::io::Error::other)?;
    let relayed = app.clone();
    tokio::spawn(async move {
        if let Err(e) = relayed.relay_all().await {
            tracing::warn!(error = %e, "guests that run cannot ask their host");
        }
    });
    let listener = TcpListener::bind(listen).await?;
    ready(listener.local_addr()?);
    let (told, mut over) = tokio::sync::watch::channel(false);
    let until = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        let _ = told.send(true);
    };
    let routes = routes::all(app);
    let serving = async move {
        match tls {
            None => axum::serve(listener, routes).with_graceful_shutdown(until).await,
            Some(config) => {
                axum::serve(TlsListener::new(listener, config)?, routes).with_graceful_shutdown(until).await
            }
        }
    };
    let drained = async {
        // The sender goes only when it has spoken.
        let _ = over.wait_for(|over| *over).await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        outcome = serving => outcome,
        () = drained => Ok(()),
    }
}
