//! The event loop: one thread that owns the pool and every socket.
//!
//! Invariants
//!   * nothing here blocks but [`Poll::wait`] and a lone client's sync: what may block is a job of a
//!     worker thread, whose outcome is collected here;
//!   * every turn of a client and of background work is bounded.
//!
//! Not here: what one request does (`session`), what one command does (`control`).

mod abandoned;
mod accept;
mod background;
mod census;
mod close;
mod commands;
mod conn;
mod fetch;
mod flush;
mod guest;
mod lease;
mod listen;
mod long;
mod pace;
mod room;
mod tier;
mod turns;

use crate::audits::AuditCall;
use crate::jobs::Workers;
use crate::metrics::Metrics;
use crate::object::{CachedStore, Counted};
use crate::poll::{self, Poll};
use crate::tls::Tls;
use accept::{CONNECTIONS_MAX, DESCRIPTORS_EACH, DESCRIPTORS_KEPT};
use blockstore::disk::{Disk, OsDisk};
use blockstore::{Pool, VolumeId};
use conn::Conn;
use fetch::Fetching;
use flush::Syncing;
pub use listen::Listen;
use listen::{explain, listen_unix, Listener};
use pace::Pace;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How the daemon runs.
pub struct ServerOptions {
    /// The pool's folder.
    pub folder: PathBuf,
    /// Where commands are taken; without it, at `control.sock` in the folder.
    pub control: Option<PathBuf>,
    /// NBD listeners.
    pub listen: Vec<Listen>,
    /// Prepared segments to keep ready.
    pub spares: usize,
    /// Required of every TCP client when given.
    pub tls: Option<Tls>,
    /// How far the object store of the pool, if it has one, may lag behind.
    pub lag: Duration,
    /// What counts the requests to it.
    pub counted: Option<Counted>,
}

/// How far the object store lags behind unless told otherwise.
pub const LAG: Duration = Duration::from_secs(2);

/// How long the loop asks for more work before it sleeps: a sleeping thread costs tens of
/// microseconds to wake, which is most of a small request's time.
const SPIN: Duration = Duration::from_micros(50);
/// Clients with work left served in one turn: new requests of others come first.
const YIELDED_PER_TURN: usize = 2;

const TOKEN_SIGNAL: u64 = 0;
const TOKEN_WAKE: u64 = 1;
const TOKEN_CONTROL: u64 = 2;
const TOKEN_LISTEN: u64 = 3;

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
    pace: Pace,
    metrics: Metrics,
    spares: usize,
    tls: Option<Tls>,
    spare_pending: bool,
    audit: Option<AuditCall>,
    census: census::Counting,
    tier: Option<tier::Tier>,
    leases: lease::Leases,
    counted: Option<Counted>,
    fetching: Fetching,
    cache: Option<Arc<CachedStore>>,
    room: room::Room,
    guests: guest::Guests,
    poison_told: bool,
    /// Requests refused for want of space, when that last changed, and when space was last looked for.
    no_space_seen: (u64, Instant, Instant),
    last_activity: Instant,
    /// Bytes that clients have written, and when that last changed.
    written_seen: (u64, Instant),
}

impl Server {
    /// Binds the sockets and starts the workers.
    pub fn new(pool: Pool, options: ServerOptions) -> io::Result<Self> {
        let descriptors = poll::raise_descriptor_limit()?.saturating_sub(DESCRIPTORS_KEPT) / DESCRIPTORS_EACH;
        let connections_max = CONNECTIONS_MAX.min(descriptors as usize).max(16);
        let signals = poll::signal_fd()?;
        let wake = poll::event_fd()?;
        let wake_fd = wake.as_raw_fd();
        let mut workers = Workers::start(move || poll::signal_event(wake_fd))?;
        let stop = Stopper(Arc::new((AtomicBool::new(false), wake.try_clone()?)));
        let poll = Poll::new()?;
        poll.add(signals.as_raw_fd(), TOKEN_SIGNAL, poll::READ)?;
        poll.add(wake.as_raw_fd(), TOKEN_WAKE, poll::READ)?;
        let control_path = options.control.unwrap_or_else(|| options.folder.join("control.sock"));
        let control = listen_unix(&control_path).map_err(|e| explain(&control_path.display(), &e))?;
        poll.add(control.as_raw_fd(), TOKEN_CONTROL, poll::READ)?;
        let (mut listeners, mut sockets) = (Vec::new(), vec![control_path]);
        for (i, listen) in options.listen.iter().enumerate() {
            let listener = listen.bind(options.tls.is_some())?;
            if let Listen::Unix(path) = listen {
                sockets.push(path.clone());
            }
            let fd = match &listener {
                Listener::Unix(listener) => listener.as_raw_fd(),
                Listener::Tcp(listener) => listener.as_raw_fd(),
            };
            poll.add(fd, TOKEN_LISTEN + i as u64, poll::READ)?;
            listeners.push(listener);
        }
        let next_token = TOKEN_LISTEN + listeners.len() as u64;
        let tier = pool.has_object_tier().then(|| tier::Tier::new(options.lag));
        if tier.is_some() {
            workers.start_uploads()?;
        }
        Ok(Self {
            tier,
            leases: lease::Leases::new(),
            counted: options.counted,
            cache: None,
            room: room::Room::default(),
            guests: guest::Guests::new(&options.folder),
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
            pace: Pace::default(),
            metrics: Metrics::default(),
            spares: options.spares,
            tls: options.tls,
            spare_pending: false,
            audit: None,
            census: census::Counting::new(),
            fetching: Fetching::default(),
            poison_told: false,
            no_space_seen: (0, Instant::now(), Instant::now()),
            last_activity: Instant::now(),
            written_seen: (0, Instant::now()),
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
        self.pool.set_patient(false);
        self.look_for_abandoned();
        self.listen_again();
        let mut events = Vec::new();
        let mut housekeeping = Instant::now();
        let mut running = true;
        while running {
            self.look_at_guests();
            let awake = !self.yielded.is_empty() || self.guests.are_awake();
            let busy = awake || self.last_activity.elapsed() < SPIN;
            let more = self.background();
            self.poll.wait(&mut events, if busy || more { 0 } else { 100 })?;
            for &(token, ready) in &events {
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
                        if !self.guest_event(token) {
                            self.serve(token, ready);
                        }
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
}
