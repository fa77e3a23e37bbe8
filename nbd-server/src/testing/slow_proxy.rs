//! A proxy between an S3 client and a server on this machine that adds latency and makes HTTP fail.
//!
//! Each answer is held back for the latency, also on connections that carry many requests, so that every
//! request costs what it would cost to a store so far away. Requests are numbered as they arrive, over all connections;
//! a fault hits one of them, or all.
//!
//! It understands as much of HTTP/1.1 as is needed to find where messages end: `Content-Length`, chunked bodies and
//! `Expect: 100-continue`. Messages are passed on whole, so bodies must fit in memory.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Longest head of a message: a longer one ends the connection.
const HEAD_BYTES_MAX: u64 = 64 << 10;
/// Longest body.
const BODY_BYTES_MAX: u64 = 512 << 20;
/// How often a held connection looks whether the proxy has ended.
const LOOK: Duration = Duration::from_millis(20);

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpFault {
    /// The server never sees it; the client gets this status and XML body.
    Answer(u16, String),
    /// The server does it; the answer's body breaks off halfway.
    CutBody,
    /// The server never sees it, and nobody answers.
    Hang,
    /// The server does it; the connection breaks before the answer.
    DropReply,
}

impl HttpFault {
    /// An error in the words of S3.
    pub fn error(status: u16, code: &str) -> Self {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>");
        Self::Answer(status, body)
    }
}

struct Shared {
    upstream: SocketAddr,
    latency_us: AtomicU64,
    requests: AtomicU64,
    planned: Mutex<BTreeMap<u64, HttpFault>>,
    always: Mutex<Option<HttpFault>>,
    ended: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Numbers a request and decides about it.
    fn next(&self) -> Option<HttpFault> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        locked(&self.planned).remove(&number).or_else(|| locked(&self.always).clone())
    }

    fn latency(&self) -> Duration {
        Duration::from_micros(self.latency_us.load(Ordering::Relaxed))
    }
}

/// A running proxy; ends with the value, and its connections with their clients.
pub struct SlowProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl SlowProxy {
    /// Listens on a free loopback port for clients of the server at `upstream`.
    ///
    /// # Errors
    /// When the system gives no port or thread.
    pub fn start(upstream: SocketAddr, latency: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let shared = Arc::new(Shared {
            upstream,
            latency_us: AtomicU64::default(),
            requests: AtomicU64::default(),
            planned: Mutex::default(),
            always: Mutex::default(),
            ended: AtomicBool::default(),
        });
        let proxy = Self { address: listener.local_addr()?, shared: shared.clone() };
        proxy.set_latency(latency);
        thread::Builder::new().name("slow-proxy".to_owned()).spawn(move || {
            for client in listener.incoming() {
                if shared.ended.load(Ordering::SeqCst) {
                    break;
                }
                let (Ok(client), shared) = (client, shared.clone()) else { continue };
                // An outcome other than a clean end is what the client sees, too.
                thread::spawn(move || drop(serve(&client, &shared)));
            }
        })?;
        Ok(proxy)
    }

    /// Where clients connect, as an endpoint's URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Holds back answers for so long from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.latency_us.store(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The `nth` request from now on (1 is the next) fails so.
    pub fn fail_nth(&self, nth: u64, fault: HttpFault) {
        locked(&self.shared.planned).insert(self.requests() + nth, fault);
    }

    /// Every request fails so from now on, or none does.
    pub fn fail_all(&self, fault: Option<HttpFault>) {
        *locked(&self.shared.always) = fault;
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

impl Drop for SlowProxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the listening thread, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

/// One HTTP message as it came.
struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_owned())
}

/// Lines up to the empty one that ends a head; nothing at the end of a connection.
fn read_head(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    loop {
        let left = HEAD_BYTES_MAX - head.len() as u64;
        let before = head.len();
        from.take(left).read_until(b'\n', &mut head)?;
        match &head[before..] {
            [] if before == 0 => return Ok(head),
            [.., b'\n'] if head[before..].trim_ascii().is_empty() => return Ok(head),
            [.., b'\n'] => {}
            _ => return Err(broken("a head that does not end")),
        }
    }
}

/// The value of a header, in lower case.
fn header(head: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|v| v.trim().to_owned()));
    value
}

fn append(from: &mut impl Read, len: u64, body: &mut Vec<u8>) -> io::Result<()> {
    if body.len() as u64 + len > BODY_BYTES_MAX {
        return Err(broken("a body too large for this proxy"));
    }
    match from.take(len).read_to_end(body)? as u64 == len {
        true => Ok(()),
        false => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// The bytes of a body behind `head`, with the framing of its chunks.
fn read_body(from: &mut impl BufRead, head: &[u8]) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if header(head, "transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
        loop {
            let begin = body.len();
            from.take(HEAD_BYTES_MAX).read_until(b'\n', &mut body)?;
            let line = String::from_utf8_lossy(&body[begin..]).into_owned();
            let size = u64::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
            let size = size.map_err(|_| broken("a chunk without a size"))?;
            append(from, size.saturating_add(2), &mut body)?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length = header(head, "content-length").map_or(Ok(0), |length| length.parse());
    append(from, length.map_err(|_| broken("a length that is no number"))?, &mut body)?;
    Ok(body)
}

/// A connection to the server, opened when it is first needed and when the server has closed it.
struct Upstream {
    address: SocketAddr,
    open: Option<BufReader<TcpStream>>,
}

impl Upstream {
    fn ask(&mut self, request: &Message) -> io::Result<Message> {
        if let Some(kept) = self.open.as_mut() {
            match exchange(kept, request) {
                // The server closed it while nothing was asked.
                Ok(None) => {}
                Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
                outcome => return outcome?.ok_or_else(|| broken("no answer")),
            }
        }
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        exchange(self.open.insert(BufReader::new(stream)), request)?.ok_or_else(|| broken("no answer"))
    }
}

/// One request and its answer; nothing if the connection had ended before.
fn exchange(server: &mut BufReader<TcpStream>, request: &Message) -> io::Result<Option<Message>> {
    server.get_mut().write_all(&request.head)?;
    server.get_mut().write_all(&request.body)?;
    let head = read_head(server)?;
    if head.is_empty() {
        return Ok(None);
    }
    let status = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let bodiless = request.head.starts_with(b"HEAD ") || status == b"204" || status == b"304";
    let body = if bodiless { Vec::new() } else { read_body(server, &head)? };
    Ok(Some(Message { head, body }))
}

/// Serves a client until either side ends the connection.
fn serve(client: &TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut upstream = Upstream { address: shared.upstream, open: None };
    let (mut from, mut to) = (BufReader::new(client), client);
    loop {
        let head = read_head(&mut from)?;
        if head.is_empty() {
            return Ok(());
        }
        if header(&head, "expect").is_some_and(|what| what == "100-continue") {
            to.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let body = read_body(&mut from, &head)?;
        let fault = shared.next();
        let request = Message { head, body };
        let mut answer = match &fault {
            Some(HttpFault::Hang) => {
                while !shared.ended.load(Ordering::SeqCst) {
                    thread::sleep(LOOK);
                }
                return client.shutdown(Shutdown::Both);
            }
            Some(HttpFault::Answer(status, body)) => {
                let length = body.len();
                let head = format!("HTTP/1.1 {status} On Purpose\r\ncontent-length: {length}\r\n\r\n");
                Message { head: head.into_bytes(), body: body.clone().into_bytes() }
            }
            _ => upstream.ask(&request)?,
        };
        thread::sleep(shared.latency());
        if fault == Some(HttpFault::DropReply) {
            return client.shutdown(Shutdown::Both);
        }
        if fault == Some(HttpFault::CutBody) {
            answer.body.truncate(answer.body.len() / 2);
        }
        to.write_all(&answer.head)?;
        to.write_all(&answer.body)?;
        if fault == Some(HttpFault::CutBody) {
            return client.shutdown(Shutdown::Both);
        }
        if header(&answer.head, "connection").is_some_and(|what| what == "close") {
            return client.shutdown(Shutdown::Both);
        }
    }
}
