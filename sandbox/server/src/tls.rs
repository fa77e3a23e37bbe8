//! TLS for the API's clients.
//!
//! Invariant: a client that does not finish its handshake holds up nobody: handshakes go on beside each other, none for
//! longer than `PATIENCE`, and when `HANDSHAKES` are under way the oldest makes room for the next.

use axum::serve::Listener;
use rustls::ServerConfig;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
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
        let (to, ready) = mpsc::channel(HANDSHAKES);
        tokio::spawn(take(plain, TlsAcceptor::from(config), to));
        Ok(Self { ready, local })
    }
}

async fn take(mut plain: TcpListener, acceptor: TlsAcceptor, to: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>) {
    let mut under_way: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        // Waits, too, when there are no descriptors left.
        let (socket, from) = tokio::select! {
            client = Listener::accept(&mut plain) => client,
            () = to.closed() => return,
        };
        under_way.retain(|handshake| !handshake.is_finished());
        if under_way.len() >= HANDSHAKES {
            under_way.pop_front().inspect(AbortHandle::abort);
        }
        let (acceptor, to) = (acceptor.clone(), to.clone());
        let handshake = tokio::spawn(async move {
            match tokio::time::timeout(PATIENCE, acceptor.accept(socket)).await {
                Ok(Ok(stream)) => drop(to.send((stream, from)).await),
                Ok(Err(e)) => debug!(client = %from, error = %e, "a TLS handshake failed"),
                Err(_) => debug!(client = %from, "a TLS handshake took too long"),
            }
        });
        under_way.push_back(handshake.abort_handle());
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::TlsConnector;

    /// A server's configuration, and that of a client who trusts it.
    fn configs() -> (ServerConfig, ClientConfig) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let cert: CertificateDer<'static> = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let server = server.expect("versions").with_no_client_auth().with_single_cert(vec![cert.clone()], key);
        let mut roots = RootCertStore::empty();
        roots.add(cert).expect("an authority");
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = client.expect("versions").with_root_certificates(roots).with_no_client_auth();
        (server.expect("a configuration"), client)
    }

    #[tokio::test]
    async fn clients_that_say_nothing_keep_nobody_out() {
        let (server, client) = configs();
        let plain = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut listener = TlsListener::new(plain, Arc::new(server)).expect("a listener");
        let at = listener.local_addr().expect("an address");
        let mut silent = Vec::new();
        for _ in 0..2 * HANDSHAKES {
            silent.push(TcpStream::connect(at).await.expect("a connection"));
        }
        let connector = TlsConnector::from(Arc::new(client));
        let socket = TcpStream::connect(at).await.expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        // Before the silent ones are given up: they would have to be waited for.
        let shaken = tokio::time::timeout(PATIENCE / 2, connector.connect(name, socket)).await;
        shaken.expect("others are not waited for").expect("a handshake");
        let (_, from) = listener.accept().await;
        assert!(from.ip().is_loopback());
    }
}
