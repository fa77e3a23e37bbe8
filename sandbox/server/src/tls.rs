//! TLS for the API's clients.
//!
//! Invariant: a client that does not finish its handshake holds up nobody: handshakes go on beside each other, no more than
//! `HANDSHAKES` and none for longer than `PATIENCE`.

use axum::serve::Listener;
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, Semaphore};
use tokio_rustls::server::TlsStream;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

/// Handshakes at a time.
const HANDSHAKES: usize = 64;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients that have finished their handshake.
pub struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    local: SocketAddr,
}

impl TlsListener {
    /// Begins to take clients.
    pub fn new(plain: TcpListener, config: Arc<ServerConfig>) -> io::Result<Self> {
        let local = plain.local_addr()?;
        let (to, ready) = mpsc::channel(1);
        tokio::spawn(take(plain, TlsAcceptor::from(config), to));
        Ok(Self { ready, local })
    }
}

async fn take(mut plain: TcpListener, acceptor: TlsAcceptor, to: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    while let Ok(place) = places.clone().acquire_owned().await {
        // Waits, too, when there are no descriptors left.
        let (socket, from) = tokio::select! {
            client = Listener::accept(&mut plain) => client,
            () = to.closed() => return,
        };
        let (acceptor, to) = (acceptor.clone(), to.clone());
        tokio::spawn(async move {
            let outcome = tokio::time::timeout(PATIENCE, acceptor.accept(socket)).await;
            drop(place);
            match outcome {
                Ok(Ok(stream)) => drop(to.send((stream, from)).await),
                Ok(Err(e)) => debug!(client = %from, error = %e, "a TLS handshake failed"),
                Err(_) => debug!(client = %from, "a TLS handshake took too long"),
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(client) => client,
            // Nobody takes clients any more: there will be none.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.local)
    }
}
