//! TLS for clients beyond this machine's sockets: the daemon's certificate, and a relay per client.
//!
//! Invariants
//!   * a client whose certificate is not accepted never reaches the event loop's negotiation: not a
//!     byte of its plaintext is passed on before the TLS handshake is complete;
//!   * with a client authority configured, a client without a certificate of that authority is
//!     refused;
//!   * relays are bounded in number and in memory, and none outlives its end in the event loop by
//!     more than `DRAIN_TIME`.
//!
//! Not here: when TLS is required (`nbd::Gate`), deadlines of handshakes (`server`). Why a relay and
//! not a state of the connection: `docs/decisions/0010-tls.md`.

mod relay;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;

/// Relays at a time: one more client is closed instead of secured.
const RELAYS_MAX: usize = 256;

/// Files of the daemon's identity, all PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, followed by those it depends on.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities whose clients are let in; without them every client is.
    pub client_ca: Option<PathBuf>,
}

/// What the daemon needs to speak TLS.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    relays: Arc<AtomicUsize>,
}

fn invalid(path: &Path, why: impl std::fmt::Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, format!("{}: {why}", path.display()))
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path).map_err(|e| invalid(path, e))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|e| invalid(path, e))?;
    if found.is_empty() {
        let key = PrivateKeyDer::from_pem_file(path).is_ok();
        let why = if key {
            "this is a private key: were certificate and key swapped?"
        } else {
            "no certificate in the file: it must be PEM"
        };
        return Err(invalid(path, why));
    }
    Ok(found)
}

/// Why there is no key in `path`.
fn no_key(path: &Path, e: &rustls::pki_types::pem::Error) -> String {
    match CertificateDer::from_pem_file(path) {
        Ok(_) => "this is a certificate, no private key: were certificate and key swapped?".to_owned(),
        Err(_) => e.to_string(),
    }
}

/// One relay's place among `RELAYS_MAX`, given back when the relay ends in whatever way.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// `InvalidInput`, with the file's name, when one cannot be read, is not PEM, or does not fit the
    /// others.
    pub fn load(files: &TlsFiles) -> io::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(io::Error::other)?;
        let builder = match &files.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|e| invalid(path, e))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(|e| invalid(path, e))?)
            }
        };
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| invalid(&files.key, no_key(&files.key, &e)))?;
        let chain = certificates(&files.cert)?;
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|e| invalid(&files.cert, format!("{e} (the key is {})", files.key.display())))?;
        // Sessions last for days; resumption would only keep secrets in memory.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), relays: Arc::new(AtomicUsize::new(0)) })
    }

    /// What a server of another protocol needs.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// Takes over a client that was told to start TLS. `unsent` plaintext (the acknowledgement) goes
    /// out first. Returns the inside of the channel, non-blocking.
    ///
    /// # Errors
    /// When there are too many relays already, or the system gives no thread or socket.
    pub fn start(&self, socket: TcpStream, unsent: Vec<u8>) -> io::Result<UnixStream> {
        let others = self.relays.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.relays.clone());
        if others >= RELAYS_MAX {
            return Err(io::Error::new(ErrorKind::WouldBlock, "too many TLS clients"));
        }
        let channel = ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
        let (inside, outside) = UnixStream::pair()?;
        inside.set_nonblocking(true)?;
        outside.set_nonblocking(true)?;
        thread::Builder::new().name("cairn-tls".to_owned()).stack_size(256 << 10).spawn(move || {
            let _place = place;
            // An outcome other than a clean end is the client's affair: both sockets are closed.
            let _ = relay::run(channel, socket, outside, unsent);
        })?;
        Ok(inside)
    }
}
