//! The event loop: one thread that owns the pool and every socket.

use crate::control;
use crate::exports::{resolve, split_export, PoolExports};
use crate::jobs::{Done, Job, Workers};
use crate::metrics::Metrics;
use crate::nbd::{Gate, GateStep, Handshake, HandshakeStep};
use crate::poll::{self, Poll};
use crate::session::{Next, Session, Wait};
use crate::tls::Tls;
use blockstore::disk::{Disk, OsDisk};
use blockstore::{Cleaning, FlushJob, Pool, VolumeId};
use serde_json::{json, Value};
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where NBD clients are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address; beyond loopback only with TLS.
    Tcp(String),
}

/// How the daemon runs.
pub struct ServerOptions {
    /// The pool's folder.
    pub folder: PathBuf,
    /// NBD listeners.
    pub listen: Vec<Listen>,
    /// Prepared segments to keep ready.
    pub spares: usize,
    /// Required of every TCP client when given.
    pub tls: Option<Tls>,
}

/// Connections at a time: one more is closed at once.
const CONNECTIONS_MAX: usize = 1024;
/// A handshake that takes longer is cut off.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Longest line on the control socket.
const CONTROL_LINE_MAX: usize = 64 << 10;
/// Size of a client's input buffer; it grows for larger requests, up to two of a session's pieces.
const INPUT_BYTES: usize = 256 << 10;
/// Size of the buffer of a client that has not been let in yet: one option of the longest kind fits.
const STRANGER_BYTES: usize = 16 << 10;
/// Clients accepted in one turn, and clients with work left served in one turn: new requests of
/// others come first.
const ACCEPTS_PER_TURN: usize = 16;
const YIELDED_PER_TURN: usize = 2;
/// Requests of one client that may wait for a sync: it is not read until they are answered.
const WAITS_MAX: usize = 4096;
/// Descriptors that are not clients': segment files, listeners, the pool's own.
const DESCRIPTORS_KEPT: u64 = 640;
/// Descriptors of one client: a socket, and two more for a TLS relay.
const DESCRIPTORS_EACH: u64 = 3;
/// Replies that the kernel holds for a client on a Unix socket; TCP sizes its own.
const SEND_BUFFER_BYTES: i32 = 1 << 20;
/// Output buffer kept by a client between requests.
const OUTPUT_KEPT: usize = 8 << 20;
/// Segments are prepared by writing zeros only when a log has not needed a new one for this long:
/// a fast writer would pay twice for the disk's bandwidth.
const SPARE_QUIET: Duration = Duration::from_millis(200);
/// How long the loop asks for more work before it sleeps: a sleeping thread costs tens of
/// microseconds to wake, which is most of a small request's time.
const SPIN: Duration = Duration::from_micros(50);
/// Without requests for this long, the space of spare segments goes back to the file system.
const SPARES_KEPT: Duration = Duration::from_secs(60);
/// Idle time after which the map is written down and dead space is given back.
const IDLE: Duration = Duration::from_millis(500);

const TOKEN_SIGNAL: u64 = 0;
const TOKEN_WAKE: u64 = 1;
const TOKEN_CONTROL: u64 = 2;
const TOKEN_LISTEN: u64 = 3;

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    fn fd(&self) -> RawFd {
        match self {
            Socket::Unix(s) => s.as_raw_fd(),
            Socket::Tcp(s) => s.as_raw_fd(),
        }
    }
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(s) => s.read(buf),
            Socket::Tcp(s) => s.read(buf),
        }
    }
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(s) => s.write(buf),
            Socket::Tcp(s) => s.write(buf),
        }
    }
}

enum Role {
    Gate(Gate, Instant),
    Handshake(Handshake, Instant),
    Session(Session),
    Control,
}

struct Conn {
    socket: Socket,
    role: Role,
    input: Vec<u8>,
    start: usize,
    end: usize,
    out: Vec<u8>,
    sent: usize,
    interest: u32,
    closing: bool,
    /// Requests are left that wait for the output to be sent, or for others' turns.
    more: bool,
    /// Among `Server::yielded`.
    yielded: bool,
    /// Replies that wait for a sync.
    waiting: usize,
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Who waits for a sync of a volume's log.
enum Waiter {
    Nbd(u64, Wait),
    Control(u64, Value),
}

#[derive(Default)]
struct Syncing {
    running: bool,
    now: Vec<Waiter>,
    next: Vec<Waiter>,
}

/// Ends a server from another thread, as SIGTERM does.
#[derive(Clone)]
pub struct Stopper(Arc<(AtomicBool, OwnedFd)>);

impl Stopper {
    /// Asks the server to close cleanly; `run` returns when it has.
    pub fn stop(&self) {
        self.0 .0.store(true, Ordering::Release);
        poll::signal_event(self.0 .1.as_raw_fd());
    }
}

/// The daemon.
pub struct Server {
    pool: Pool,
    disk: Arc<dyn Disk>,
    poll: Poll,
    wake: OwnedFd,
    stop: Stopper,
    signals: OwnedFd,
    control: UnixListener,
    listeners: Vec<Listener>,
    sockets: Vec<PathBuf>,
    conns: HashMap<u64, Conn>,
    /// Clients with work left, the longest waiting first.
    yielded: VecDeque<u64>,
    connections_max: usize,
    next_token: u64,
    workers: Workers,
    syncing: HashMap<VolumeId, Syncing>,
    metrics: Metrics,
    spares: usize,
    tls: Option<Tls>,
    spare_pending: bool,
    last_activity: Instant,
    /// Log segments begun, and when that last changed.
    segments_seen: (u64, Instant),
}

fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    // A socket left by a killed daemon: the pool's lock says that nobody listens there any more.
    if UnixStream::connect(path).is_err() && fs::symlink_metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn listen_tcp(address: &str, tls: bool) -> io::Result<TcpListener> {
    let explain = |e: io::Error| io::Error::new(e.kind(), format!("listening on {address}: {e}"));
    let found = address.to_socket_addrs().map_err(explain)?.collect::<Vec<_>>();
    if !tls && found.iter().any(|a| !a.ip().is_loopback()) {
        let text = format!(
            "{address} is not a loopback address: give --tls-cert and --tls-key, and --tls-client-ca to let in only \
             clients you know; without TLS, NBD is served on loopback and Unix sockets only"
        );
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    let listener = TcpListener::bind(found.as_slice()).map_err(explain)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Server {
    /// Binds the sockets and starts the workers.
    pub fn new(pool: Pool, options: ServerOptions) -> io::Result<Self> {
        let descriptors = poll::raise_descriptor_limit()?.saturating_sub(DESCRIPTORS_KEPT) / DESCRIPTORS_EACH;
        let connections_max = CONNECTIONS_MAX.min(descriptors as usize).max(16);
        let signals = poll::signal_fd()?;
        let wake = poll::event_fd()?;
        let wake_fd = wake.as_raw_fd();
        let workers = Workers::start(move || poll::signal_event(wake_fd))?;
        let stop = Stopper(Arc::new((AtomicBool::new(false), wake.try_clone()?)));
        let poll = Poll::new()?;
        poll.add(signals.as_raw_fd(), TOKEN_SIGNAL, poll::READ)?;
        poll.add(wake.as_raw_fd(), TOKEN_WAKE, poll::READ)?;
        let control_path = options.folder.join("control.sock");
        let control = listen_unix(&control_path)
            .map_err(|e| io::Error::new(e.kind(), format!("listening on {}: {e}", control_path.display())))?;
        poll.add(control.as_raw_fd(), TOKEN_CONTROL, poll::READ)?;
        let (mut listeners, mut sockets) = (Vec::new(), vec![control_path]);
        for (i, listen) in options.listen.iter().enumerate() {
            let (listener, fd) = match listen {
                Listen::Unix(path) => {
                    let made = listen_unix(path);
                    let listener =
                        made.map_err(|e| io::Error::new(e.kind(), format!("listening on {}: {e}", path.display())))?;
                    sockets.push(path.clone());
                    let fd = listener.as_raw_fd();
                    (Listener::Unix(listener), fd)
                }
                Listen::Tcp(address) => {
                    let listener = listen_tcp(address, options.tls.is_some())?;
                    let fd = listener.as_raw_fd();
                    (Listener::Tcp(listener), fd)
                }
            };
            poll.add(fd, TOKEN_LISTEN + i as u64, poll::READ)?;
            listeners.push(listener);
        }
        let next_token = TOKEN_LISTEN + listeners.len() as u64;
        Ok(Self {
            pool,
            disk: Arc::new(OsDisk::new(&options.folder)),
            poll,
            wake,
            stop,
            signals,
            control,
            listeners,
            sockets,
            conns: HashMap::new(),
            yielded: VecDeque::new(),
            connections_max,
            next_token,
            workers,
            syncing: HashMap::new(),
            metrics: Metrics::default(),
            spares: options.spares,
            tls: options.tls,
            spare_pending: false,
            last_activity: Instant::now(),
            segments_seen: (0, Instant::now()),
        })
    }

    /// A handle that ends [`Server::run`] from elsewhere.
    pub fn stopper(&self) -> Stopper {
        self.stop.clone()
    }

    /// Where TCP clients are accepted; tells the port when port 0 was asked for.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let address = |l: &Listener| match l {
            Listener::Tcp(l) => l.local_addr().ok(),
            Listener::Unix(_) => None,
        };
        self.listeners.iter().filter_map(address).collect()
    }

    /// Serves until SIGTERM or SIGINT, or until its [`Stopper`] is used, then closes cleanly.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Vec::new();
        let mut housekeeping = Instant::now();
        let mut running = true;
        while running {
            let busy = self.last_activity.elapsed() < SPIN || !self.yielded.is_empty();
            let more = self.background();
            self.poll.wait(&mut events, if busy || more { 0 } else { 100 })?;
            for &(token, _) in &events {
                match token {
                    TOKEN_SIGNAL => running = false,
                    TOKEN_WAKE => {
                        poll::drain(self.wake.as_raw_fd());
                        self.collect();
                        running &= !self.stop.0 .0.load(Ordering::Acquire);
                    }
                    TOKEN_CONTROL => self.accept_control(),
                    token if token < TOKEN_LISTEN + self.listeners.len() as u64 => {
                        self.accept_nbd((token - TOKEN_LISTEN) as usize);
                    }
                    token => {
                        self.serve(token);
                        // Taken last: a sync may have taken longer than the loop spins.
                        self.last_activity = Instant::now();
                    }
                }
            }
            for _ in 0..YIELDED_PER_TURN.min(self.yielded.len()) {
                self.resume();
            }
            if housekeeping.elapsed() > Duration::from_secs(1) {
                housekeeping = Instant::now();
                self.expire();
            }
        }
        self.shut_down()
    }

    /// A bounded piece of background work; `true` when there is more at once.
    fn background(&mut self) -> bool {
        let idle = self.last_activity.elapsed() > IDLE;
        let more = self.pool.reap(if idle { 256 } else { 8 }).unwrap_or_else(|e| {
            eprintln!("cairn: giving back space: {e}");
            false
        });
        if self.pool.wants_anchor() || idle && !more && self.pool.wants_idle_anchor() {
            match self.pool.begin_anchor(if idle { Cleaning::Idle } else { Cleaning::Busy }) {
                Ok(job) => self.workers.submit(Job::Anchor(Box::new(job))),
                Err(e) => eprintln!("cairn: anchor: {e}"),
            }
        }
        let spent = self.last_activity.elapsed() > SPARES_KEPT;
        let job = self.pool.clean_job().or_else(|| spent.then(|| self.pool.shrink_job(self.spares)).flatten());
        if let Some(job) = job {
            self.workers.submit(Job::Clean(job));
        }
        let segments = self.pool.segments_used();
        if segments != self.segments_seen.0 {
            self.segments_seen = (segments, Instant::now());
        }
        let quiet = self.segments_seen.1.elapsed() > SPARE_QUIET;
        if quiet && !self.spare_pending && self.metrics.written_bytes > 0 {
            if let Ok(Some(id)) = self.pool.spares_wanted(self.spares) {
                self.spare_pending = true;
                self.workers.submit(Job::Spare(id, self.disk.clone()));
            }
        }
        more
    }

    fn collect(&mut self) {
        while let Ok(done) = self.workers.done.try_recv() {
            match done {
                Done::Flush(job, outcome) => self.flushed(job, outcome),
                Done::Anchor(job, outcome) => {
                    self.metrics.anchors += 1;
                    if let Err(e) = self.pool.anchored(*job, outcome) {
                        eprintln!("cairn: {e}");
                    }
                    self.pool.keep_reserve();
                }
                Done::Clean(job, outcome) => {
                    self.metrics.cleaned += 1;
                    if let Err(e) = self.pool.cleaned(job, outcome) {
                        eprintln!("cairn: cleaning: {e}");
                    }
                }
                Done::Spare(id, outcome) => {
                    self.spare_pending = false;
                    match outcome {
                        Ok(file) => self.pool.add_spare(id, file),
                        // No space for spares is no error: segments are made when they are needed.
                        Err(_) => self.spares = 0,
                    }
                }
            }
        }
    }

    fn flushed(&mut self, job: FlushJob, outcome: io::Result<()>) {
        let failure = self.pool.flushed(&job, outcome).err().map(|e| e.to_string());
        let Some(entry) = self.syncing.get_mut(&job.volume) else { return };
        entry.running = false;
        let waiters = std::mem::take(&mut entry.now);
        self.answer(waiters, failure.as_deref());
        self.start_sync(job.volume);
    }

    fn answer(&mut self, waiters: Vec<Waiter>, failure: Option<&str>) {
        let mut touched = Vec::new();
        for waiter in waiters {
            match waiter {
                Waiter::Nbd(token, wait) => {
                    if let Some(Conn { role: Role::Session(session), out, waiting, .. }) = self.conns.get_mut(&token) {
                        session.synced(out, wait, failure);
                        *waiting -= 1;
                        touched.push(token);
                    }
                }
                Waiter::Control(token, answer) => {
                    let answer = failure.map_or(answer, |why| json!({"error": {"kind": "io", "message": why}}));
                    self.say(token, &answer);
                    touched.push(token);
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        touched.into_iter().for_each(|token| self.send(token));
    }

    fn wait_for_sync(&mut self, volume: VolumeId, waiter: Waiter) {
        self.syncing.entry(volume).or_default().next.push(waiter);
    }

    /// Starts a sync for those who came while the last one ran; they share it.
    fn start_sync(&mut self, volume: VolumeId) {
        let alone = self.conns.len() == 1;
        let Some(entry) = self.syncing.get_mut(&volume) else { return };
        if entry.running {
            return;
        }
        if entry.next.is_empty() {
            self.syncing.remove(&volume);
            return;
        }
        match self.pool.flush_job(volume) {
            Ok(job) if job.is_empty() => {
                let waiters = std::mem::take(&mut entry.next);
                self.syncing.remove(&volume);
                self.answer(waiters, None);
            }
            Ok(job) if alone => {
                // Nobody else is there to be delayed: two thread switches are saved.
                let waiters = std::mem::take(&mut entry.next);
                self.syncing.remove(&volume);
                let outcome = job.run();
                let failure = self.pool.flushed(&job, outcome).err().map(|e| e.to_string());
                self.answer(waiters, failure.as_deref());
            }
            Ok(job) => {
                entry.now = std::mem::take(&mut entry.next);
                entry.running = true;
                self.workers.submit(Job::Flush(job));
            }
            Err(e) => {
                let waiters = std::mem::take(&mut entry.next);
                self.answer(waiters, Some(&e.to_string()));
            }
        }
    }

    fn add(&mut self, socket: Socket, role: Role, out: Vec<u8>) {
        if self.conns.len() >= self.connections_max && !matches!(role, Role::Control) && !self.evict_stranger() {
            return;
        }
        let token = self.next_token;
        self.next_token += 1;
        if self.poll.add(socket.fd(), token, poll::READ).is_err() {
            return;
        }
        self.metrics.connections += 1;
        let interest = poll::READ;
        let conn = Conn {
            socket,
            role,
            input: Vec::new(),
            start: 0,
            end: 0,
            out,
            sent: 0,
            interest,
            closing: false,
            more: false,
            yielded: false,
            waiting: 0,
        };
        self.conns.insert(token, conn);
        self.send(token);
    }

    /// Makes room by closing the client that has been negotiating for longest; `false` when all
    /// clients have been let in.
    fn evict_stranger(&mut self) -> bool {
        let since = |conn: &Conn| match &conn.role {
            Role::Gate(_, since) | Role::Handshake(_, since) => Some(*since),
            Role::Session(_) | Role::Control => None,
        };
        let oldest = self.conns.iter().filter_map(|(token, conn)| Some((since(conn)?, *token))).min();
        oldest.map(|(_, token)| self.close(token)).is_some()
    }

    fn accept_control(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Ok((stream, _)) = self.control.accept() else { return };
            if stream.set_nonblocking(true).is_ok() {
                self.add(Socket::Unix(stream), Role::Control, Vec::new());
            }
        }
    }

    fn accept_nbd(&mut self, index: usize) {
        for _ in 0..ACCEPTS_PER_TURN {
            let accepted = match self.listeners.get(index) {
                Some(Listener::Unix(l)) => {
                    l.accept().and_then(|(s, _)| s.set_nonblocking(true).map(|()| Socket::Unix(s)))
                }
                Some(Listener::Tcp(l)) => l.accept().and_then(|(s, _)| {
                    s.set_nodelay(true)?;
                    s.set_nonblocking(true).map(|()| Socket::Tcp(s))
                }),
                None => return,
            };
            let Ok(socket) = accepted else { return };
            let mut greeting = Vec::new();
            let gated = self.tls.is_some() && matches!(socket, Socket::Tcp(_));
            let role = if gated {
                Role::Gate(Gate::new(&mut greeting), Instant::now())
            } else {
                Role::Handshake(Handshake::new(&mut greeting), Instant::now())
            };
            self.add(socket, role, greeting);
        }
    }

    /// Reads what a client sent, carries it out, and sends the replies.
    fn serve(&mut self, token: u64) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        if conn.sent < conn.out.len() {
            // What is readable can wait until the client has read its replies.
            return self.send(token);
        }
        if conn.yielded {
            return;
        }
        match fill(conn) {
            Ok(true) => {}
            Ok(false) => return self.close(token),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return self.close(token),
        }
        self.process(token);
        self.send(token);
    }

    fn process(&mut self, token: u64) {
        loop {
            let Some(conn) = self.conns.get_mut(&token) else { return };
            if conn.closing {
                return;
            }
            match &mut conn.role {
                Role::Gate(..) => return self.pass_gate(token),
                Role::Handshake(..) => {
                    if !self.negotiate(token) {
                        return;
                    }
                }
                Role::Session(_) => return self.transmit(token),
                Role::Control => return self.commands(token),
            }
        }
    }

    /// The plaintext stage of a TCP client that must use TLS.
    fn pass_gate(&mut self, token: u64) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let Role::Gate(gate, _) = &mut conn.role else { return };
        let (used, step) = gate.step(&conn.input[conn.start..conn.end], &mut conn.out);
        conn.start += used;
        match step {
            GateStep::NeedMore => {}
            GateStep::Close => conn.closing = true,
            GateStep::Secure(handshake) => self.secure(token, handshake),
        }
    }

    /// Hands a client's socket to a TLS relay; `inside` goes on with the plaintext that comes out.
    fn secure(&mut self, token: u64, inside: Handshake) {
        let (Some(conn), Some(tls)) = (self.conns.remove(&token), &self.tls) else { return };
        let Socket::Tcp(socket) = conn.socket else { return };
        if self.poll.remove(socket.as_raw_fd()).is_err() {
            return;
        }
        match tls.start(socket, conn.out[conn.sent..].to_vec()) {
            Ok(stream) => self.add(Socket::Unix(stream), Role::Handshake(inside, Instant::now()), Vec::new()),
            Err(e) => eprintln!("cairn: TLS: {e}"),
        }
    }

    /// `true` when the client has become a session.
    fn negotiate(&mut self, token: u64) -> bool {
        let Some(conn) = self.conns.get_mut(&token) else { return false };
        let Role::Handshake(handshake, _) = &mut conn.role else { return false };
        let input = &conn.input[conn.start..conn.end];
        let (used, step) = handshake.step(input, &mut PoolExports(&mut self.pool), &mut conn.out);
        conn.start += used;
        conn.more = step == HandshakeStep::Send;
        match step {
            HandshakeStep::NeedMore | HandshakeStep::Send => false,
            HandshakeStep::Close => {
                conn.closing = true;
                false
            }
            HandshakeStep::Serve(agreed) => match resolve(&self.pool, &agreed.export.name) {
                Ok(view) => {
                    if let Socket::Unix(socket) = &conn.socket {
                        poll::set_send_buffer(socket.as_raw_fd(), SEND_BUFFER_BYTES);
                    }
                    conn.role = Role::Session(Session::new(*agreed, view));
                    true
                }
                Err(_) => {
                    conn.closing = true;
                    false
                }
            },
        }
    }

    fn transmit(&mut self, token: u64) {
        let mut waits = Vec::new();
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let Role::Session(session) = &mut conn.role else { return };
        let volume = session.view.volume;
        let input = &conn.input[conn.start..conn.end];
        let (used, next) = session.process(&mut self.pool, &mut self.metrics, input, &mut conn.out, &mut waits);
        conn.start += used;
        conn.more = matches!(next, Next::Send | Next::Yield);
        conn.waiting += waits.len();
        match next {
            Next::Close => conn.closing = true,
            Next::Read(whole) => make_room(conn, whole),
            Next::Send | Next::Yield => {}
        }
        match self.pool.take_writeback(volume) {
            // Now, so that the disk works while the reply travels and the client prepares its flush.
            Some(range) if range.urgent => range.start(),
            Some(range) => self.workers.submit(Job::WriteBack(range)),
            None => {}
        }
        if !waits.is_empty() {
            waits.into_iter().for_each(|wait| self.wait_for_sync(volume, Waiter::Nbd(token, wait)));
            self.start_sync(volume);
        }
    }

    fn commands(&mut self, token: u64) {
        loop {
            let Some(conn) = self.conns.get_mut(&token) else { return };
            let input = &conn.input[conn.start..conn.end];
            let Some(end) = input.iter().position(|b| *b == b'\n') else {
                conn.closing |= input.len() > CONTROL_LINE_MAX;
                return make_room(conn, 0);
            };
            let parsed = serde_json::from_slice::<Value>(&input[..end]);
            conn.start += end + 1;
            let Ok(request) = parsed else {
                self.say(token, &json!({"error": {"kind": "invalid", "message": "the command is not JSON"}}));
                continue;
            };
            if request.get("op").and_then(Value::as_str) == Some("nbd") {
                if let Some(conn) = self.conns.get_mut(&token) {
                    conn.role = Role::Handshake(Handshake::new(&mut conn.out), Instant::now());
                }
                return;
            }
            self.command(token, &request);
        }
    }

    fn command(&mut self, token: u64, request: &Value) {
        if request.get("op").and_then(Value::as_str) == Some("metrics") {
            let page = self.metrics.render(&self.pool.stats(), self.conns.len());
            return self.say(token, &Value::String(page));
        }
        if let Some(name) = control::takes_away(request) {
            let users = self.users(&name);
            if !users.is_empty() && request.get("force").and_then(Value::as_bool) != Some(true) {
                let message = format!("{} client(s) have {name} open: disconnect them, or give --force", users.len());
                return self.say(token, &json!({"error": {"kind": "busy", "message": message}}));
            }
            users.into_iter().for_each(|user| self.close(user));
        }
        match control::handle(&mut self.pool, request) {
            Err(e) => self.say(token, &control::error_json(&e)),
            Ok(control::Outcome { answer, job: None }) => self.say(token, &answer),
            Ok(control::Outcome { answer, job: Some(job) }) => {
                self.wait_for_sync(job.volume, Waiter::Control(token, answer));
                self.start_sync(job.volume);
            }
        }
    }

    /// Clients that use a volume (its head), or exactly one checkpoint.
    fn users(&self, name: &str) -> Vec<u64> {
        let uses = |conn: &Conn| match &conn.role {
            Role::Session(session) => {
                let export = session.export();
                export == name || split_export(export).is_some_and(|(volume, at)| volume == name && at.is_none())
            }
            _ => false,
        };
        self.conns.iter().filter(|(_, conn)| uses(conn)).map(|(token, _)| *token).collect()
    }

    fn say(&mut self, token: u64, answer: &Value) {
        if let Some(conn) = self.conns.get_mut(&token) {
            conn.out.extend(answer.to_string().into_bytes());
            conn.out.push(b'\n');
        }
    }

    /// Sends what there is. Requests that are left wait for the next turn.
    fn send(&mut self, token: u64) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        while conn.sent < conn.out.len() {
            match conn.socket.write(&conn.out[conn.sent..]) {
                Ok(n) => conn.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return self.watch(token, poll::WRITE);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.close(token),
            }
        }
        conn.out.clear();
        conn.sent = 0;
        conn.out.shrink_to(OUTPUT_KEPT);
        if conn.closing && conn.waiting == 0 {
            return self.close(token);
        }
        let reads = !conn.closing && conn.waiting < WAITS_MAX;
        if conn.more && reads && !conn.yielded {
            conn.yielded = true;
            self.yielded.push_back(token);
        }
        self.watch(token, if reads { poll::READ } else { 0 });
    }

    /// Gives the client that has waited for longest another turn.
    fn resume(&mut self) {
        let Some(token) = self.yielded.pop_front() else { return };
        let Some(conn) = self.conns.get_mut(&token) else { return };
        conn.yielded = false;
        self.last_activity = Instant::now();
        if conn.sent == conn.out.len() {
            self.process(token);
            self.send(token);
        }
    }

    fn watch(&mut self, token: u64, interest: u32) {
        if let Some(conn) = self.conns.get_mut(&token) {
            if conn.interest != interest && self.poll.modify(conn.socket.fd(), token, interest).is_ok() {
                conn.interest = interest;
            }
        }
    }

    fn close(&mut self, token: u64) {
        self.conns.remove(&token);
    }

    fn expire(&mut self) {
        let late = |conn: &Conn| matches!(&conn.role, Role::Gate(_, since) | Role::Handshake(_, since) if since.elapsed() > HANDSHAKE_TIME);
        self.conns.retain(|_, conn| !late(conn));
    }

    fn shut_down(mut self) -> io::Result<()> {
        poll::drain(self.signals.as_raw_fd());
        self.sockets.iter().for_each(|path| drop(fs::remove_file(path)));
        self.listeners.clear();
        let deadline = Instant::now() + Duration::from_secs(3);
        while !self.syncing.is_empty() && Instant::now() < deadline {
            self.collect();
            std::thread::sleep(Duration::from_millis(1));
        }
        self.conns.clear();
        if self.pool.poisoned().is_none() {
            for id in self.pool.volumes() {
                self.pool.flush(id).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }
}

/// Reads once into the input buffer; `false` at the end of the stream.
fn fill(conn: &mut Conn) -> io::Result<bool> {
    let size = match conn.role {
        Role::Session(_) => INPUT_BYTES,
        Role::Gate(..) | Role::Handshake(..) => STRANGER_BYTES,
        Role::Control => 4096,
    };
    if conn.input.len() < size {
        conn.input.resize(size, 0);
    }
    make_room(conn, 0);
    let n = conn.socket.read(&mut conn.input[conn.end..])?;
    conn.end += n;
    Ok(n > 0)
}

/// Moves pending bytes to the front when room is short, and grows the buffer for a request of
/// `whole` bytes: by doubling, as the bytes come, so that announcing much costs the client as much.
fn make_room(conn: &mut Conn, whole: usize) {
    if conn.start == conn.end {
        (conn.start, conn.end) = (0, 0);
    }
    let pending = conn.end - conn.start;
    if conn.start > 0 && (conn.input.len() - conn.end < 4096 || conn.start + whole > conn.input.len()) {
        conn.input.copy_within(conn.start..conn.end, 0);
        (conn.start, conn.end) = (0, pending);
    }
    let least = whole.min(2 * pending).max(pending + 1);
    if conn.input.len() < least {
        conn.input.resize(least.next_power_of_two(), 0);
    }
}
