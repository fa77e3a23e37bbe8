//! A WebSocket to the server that never waits by itself: who uses it waits for it and for other things at once.
//!
//! Invariants
//!   * what was taken for sending is sent, in order; nothing else is taken before (`is_clear`), so that little is held;
//!   * a server that says nothing for `SILENCE`, although it is asked every `ASK`, counts as gone.

use super::fds::wait;
use super::remote::{Remote, ANSWER, CONNECT};
use crate::client::Failure;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::HandshakeError;
use tungstenite::http::{header, HeaderValue};
use tungstenite::protocol::{WebSocket, WebSocketConfig};
use tungstenite::{Bytes, Error, Message};

/// Bytes of a message of the server's.
const MESSAGE_MAX: usize = 16 << 20;
/// Between two questions whether the server is there.
const ASK: Duration = Duration::from_secs(15);
/// After this much silence it is not.
const SILENCE: Duration = Duration::from_secs(45);
/// How long a goodbye may take to be sent.
const GOODBYE: Duration = Duration::from_secs(2);

/// Bytes to the server and back, in the clear or not.
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

/// What the server says.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Text(Value),
    Bytes(Bytes),
    /// Nothing more just now.
    Nothing,
    /// It has closed the connection.
    End,
}

/// A connection.
pub struct Socket {
    socket: WebSocket<Stream>,
    /// Something that was taken is not sent yet.
    pending: bool,
    /// When the server last said something, or was not listened to.
    heard: Instant,
    asked: Instant,
}

fn connect(remote: &Remote) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("there is no host {}", remote.url.host));
    for address in (remote.url.host.as_str(), remote.url.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(tcp) => return Ok(tcp),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn secured(remote: &Remote, mut tcp: TcpStream) -> Result<Stream, Failure> {
    let other = |e: &dyn std::fmt::Display| Failure::new("io", format!("{}: {e}", remote.url.text));
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(remote.roots.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| other(&e))?.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(remote.url.host.clone()).map_err(|e| other(&e))?;
    let mut tls = ClientConnection::new(Arc::new(config), name).map_err(|e| other(&e))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp).map_err(|e| remote.not_connected(&e))?;
    }
    Ok(Stream::Tls(Box::new(StreamOwned::new(tls, tcp))))
}

impl Socket {
    /// Connects; `path` is below the server, with its query.
    pub fn open(remote: &Remote, path: &str) -> Result<Self, Failure> {
        let failed = |e: io::Error| remote.not_connected(&e);
        let tcp = connect(remote).map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        tcp.set_read_timeout(Some(ANSWER)).map_err(failed)?;
        let stream = if remote.url.tls { secured(remote, tcp)? } else { Stream::Plain(tcp) };
        let bad = |e: &dyn std::fmt::Display| Failure::new("invalid", format!("{path}: {e}"));
        let request = format!("{}{path}", remote.url.for_sockets()).into_client_request();
        let mut request = request.map_err(|e| bad(&e))?;
        let token = HeaderValue::from_str(&format!("Bearer {}", remote.token)).map_err(|e| bad(&e))?;
        request.headers_mut().insert(header::AUTHORIZATION, token);
        let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
        let socket = match tungstenite::client::client_with_config(request, stream, Some(config)) {
            Ok((socket, _)) => socket,
            Err(HandshakeError::Failure(Error::Http(answer))) => {
                let said = answer.body().as_deref().unwrap_or_default();
                return Err(remote.refused(answer.status().as_u16(), said));
            }
            Err(HandshakeError::Failure(Error::Io(e))) => return Err(remote.not_connected(&e)),
            Err(HandshakeError::Failure(e)) => {
                return Err(Failure::new("io", format!("{} does not speak WebSocket: {e}", remote.url.text)));
            }
            Err(HandshakeError::Interrupted(_)) => {
                return Err(Failure::new("unavailable", format!("{} does not answer in time", remote.url.text)));
            }
        };
        let tcp = socket.get_ref().tcp();
        tcp.set_read_timeout(None).and_then(|()| tcp.set_nonblocking(true)).map_err(failed)?;
        let now = Instant::now();
        Ok(Self { socket, pending: false, heard: now, asked: now })
    }

    fn fd(&self) -> RawFd {
        self.socket.get_ref().tcp().as_raw_fd()
    }

    /// What to wait for: that something can be sent, and, if `listen`, that something comes.
    pub fn wanted(&self, listen: bool) -> Option<(RawFd, i16)> {
        let events = if listen { libc::POLLIN } else { 0 } | if self.pending { libc::POLLOUT } else { 0 };
        (events != 0).then_some((self.fd(), events))
    }

    /// Whether all that was taken is sent.
    pub fn is_clear(&self) -> bool {
        !self.pending
    }

    fn sent(&mut self, outcome: Result<(), Error>) -> io::Result<()> {
        match outcome {
            Ok(()) => self.pending = false,
            Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => self.pending = true,
            Err(Error::Io(e)) => return Err(e),
            // Who closes says that when it is read.
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => self.pending = false,
            Err(Error::Protocol(tungstenite::error::ProtocolError::SendAfterClosing)) => self.pending = false,
            Err(e) => return Err(io::Error::other(e.to_string())),
        }
        Ok(())
    }

    /// Takes a message for sending.
    pub fn send(&mut self, message: Message) -> io::Result<()> {
        let outcome = self.socket.send(message);
        self.sent(outcome)
    }

    /// Takes JSON for sending.
    pub fn say(&mut self, value: &Value) -> io::Result<()> {
        self.send(Message::text(value.to_string()))
    }

    /// Sends on, when that is possible.
    pub fn go(&mut self) -> io::Result<()> {
        if self.pending {
            let outcome = self.socket.flush();
            self.sent(outcome)?;
        }
        Ok(())
    }

    /// What comes next. To be asked until there is nothing before it is waited for: something may have been read already.
    pub fn next(&mut self) -> io::Result<Heard> {
        loop {
            let message = match self.socket.read() {
                Ok(message) => message,
                Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Nothing),
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Ok(Heard::End),
                Err(Error::Io(e)) => return Err(e),
                Err(e) => return Err(io::Error::other(e.to_string())),
            };
            self.heard = Instant::now();
            match message {
                Message::Binary(bytes) => return Ok(Heard::Bytes(bytes)),
                Message::Text(text) => return Ok(Heard::Text(serde_json::from_str(&text).unwrap_or(Value::Null))),
                Message::Close(_) => self.pending = true,
                _ => {}
            }
        }
    }

    /// To be called now and then, and whether the server was listened to: asks whether it is there.
    pub fn look(&mut self, listened: bool) -> io::Result<()> {
        if !listened {
            self.heard = Instant::now();
        }
        if self.heard.elapsed() > SILENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came from the server for 45 seconds"));
        }
        if self.asked.elapsed() > ASK && self.is_clear() {
            self.asked = Instant::now();
            self.send(Message::Ping(Bytes::new()))?;
        }
        Ok(())
    }

    /// Waits for the next text, at most for `time`; what comes before it is handed over, too.
    pub fn text(&mut self, time: Duration, before: &mut dyn FnMut(Bytes)) -> io::Result<Option<Value>> {
        let (until, mut held) = (Instant::now() + time, 0);
        loop {
            match self.next()? {
                Heard::Text(value) => return Ok(Some(value)),
                Heard::Bytes(bytes) => {
                    held += bytes.len();
                    if held > MESSAGE_MAX {
                        return Err(io::Error::other("the server does not say what it sends"));
                    }
                    before(bytes);
                }
                Heard::End => return Ok(None),
                Heard::Nothing => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer in time"));
                    }
                    wait([self.wanted(true)], Some(left))?;
                    self.go()?;
                }
            }
        }
    }

    /// Sends what is left, and that this is the end.
    pub fn close(mut self) {
        let until = Instant::now() + GOODBYE;
        let outcome = self.socket.close(None);
        let mut going = self.sent(outcome).is_ok();
        while going && self.pending && Instant::now() < until {
            let waited = wait([self.wanted(false)], Some(until.saturating_duration_since(Instant::now())));
            going = waited.is_ok() && self.go().is_ok();
        }
    }
}
