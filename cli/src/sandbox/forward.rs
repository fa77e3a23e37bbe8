//! A port of this machine that stands for one of a sandbox: each connection goes through a WebSocket of its own.
//!
//! Invariants
//!   * only loopback addresses are bound: nobody else on the network reaches a sandbox through us;
//!   * a connection holds what was read and not sent on, one piece in each direction, and no more;
//!   * at most `CONNECTIONS_MAX` connections at once: a guest takes few.

use super::fds::{read, wait, Outlet};
use super::remote::Sandbox;
use super::socket::{Heard, Socket};
use serde_json::json;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tungstenite::{Bytes, Message};

/// Connections of one port at once.
const CONNECTIONS_MAX: usize = 32;
/// Between two looks whether to go on.
const LOOK: Duration = Duration::from_millis(200);
/// How long the guest may take to accept a connection.
const ACCEPT: Duration = Duration::from_secs(30);
/// Bytes that are read at once.
const PIECE: usize = 32 << 10;

/// A port that is forwarded until the value is dropped.
pub struct Forward {
    /// The port here.
    pub local: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What is told of connections that cannot be made.
pub type Told = Arc<dyn Fn(&str) + Send + Sync>;

/// Listens on loopback, of both kinds where there are both.
fn bind(port: u16) -> io::Result<(u16, Vec<TcpListener>)> {
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let port = first.local_addr()?.port();
    let second = match TcpListener::bind(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) {
        Ok(second) => Some(second),
        // Who has the other half of localhost would get some of the connections.
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => return Err(e),
        Err(_) => None,
    };
    Ok((port, std::iter::once(first).chain(second).collect()))
}

impl Forward {
    /// Forwards the port `local` of this machine, or any if it is 0, to `remote` of a sandbox.
    pub fn start(sandbox: &Arc<Sandbox>, local: u16, remote: u16, told: Told) -> io::Result<Self> {
        let (local, listeners) = bind(local)?;
        for listener in &listeners {
            listener.set_nonblocking(true)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (ending, sandbox) = (stop.clone(), sandbox.clone());
        let thread = std::thread::spawn(move || accept(&listeners, &sandbox, remote, &ending, &told));
        Ok(Self { local, stop, thread: Some(thread) })
    }

    /// The same, with another port of this machine when that one is taken or not for us.
    pub fn start_somewhere(sandbox: &Arc<Sandbox>, port: u16, told: Told) -> io::Result<Self> {
        Self::start(sandbox, port, port, told.clone()).or_else(|_| Self::start(sandbox, 0, port, told))
    }

    /// Waits for as long as it goes on.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listeners: &[TcpListener], sandbox: &Arc<Sandbox>, port: u16, stop: &AtomicBool, told: &Told) {
    let open = Arc::new(AtomicUsize::new(0));
    while !stop.load(Ordering::Relaxed) {
        let mut wanted = [None, None];
        let room = open.load(Ordering::Relaxed) < CONNECTIONS_MAX;
        for (to, listener) in wanted.iter_mut().zip(listeners.iter().filter(|_| room)) {
            *to = Some((listener.as_raw_fd(), libc::POLLIN));
        }
        if wait(wanted, Some(LOOK)).is_err() {
            return;
        }
        for listener in listeners.iter().filter(|_| room) {
            let Ok((tcp, _)) = listener.accept() else { continue };
            let (open, sandbox, told) = (open.clone(), sandbox.clone(), told.clone());
            open.fetch_add(1, Ordering::Relaxed);
            std::thread::spawn(move || {
                if let Err(why) = carry(&sandbox, &tcp, port) {
                    told(&why);
                }
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

/// Carries one connection until either side ends it.
fn carry(sandbox: &Sandbox, tcp: &TcpStream, port: u16) -> Result<(), String> {
    let mut socket = Socket::open(&sandbox.remote, &sandbox.path("/proxy")).map_err(|failure| failure.message)?;
    let broken = |e: io::Error| format!("port {port}: {e}");
    socket.say(&json!({"host": "localhost", "port": port})).map_err(broken)?;
    let mut early = Vec::new();
    let said = socket.text(ACCEPT, &mut |bytes| early.push(bytes)).map_err(broken)?.unwrap_or_default();
    if said["status"] != "connected" {
        let why = said["error"].as_str().unwrap_or("it was refused").to_owned();
        return Err(format!("port {port} of {}: {why}", sandbox.name));
    }
    tcp.set_nonblocking(true).map_err(broken)?;
    let _ = tcp.set_nodelay(true);
    let mut out = Outlet::of_socket(tcp.as_raw_fd());
    early.into_iter().for_each(|bytes| out.put(bytes));
    // One of the two that ends is no error: the other learns it by that.
    if pump(&mut socket, tcp, &mut out).is_ok() {
        socket.close();
    }
    Ok(())
}

fn pump(socket: &mut Socket, tcp: &TcpStream, out: &mut Outlet) -> io::Result<()> {
    let (fd, mut buffer, mut reading, mut ended) = (tcp.as_raw_fd(), vec![0; PIECE], true, false);
    loop {
        while out.is_clear() && !ended {
            match socket.next()? {
                Heard::Bytes(bytes) => out.put(bytes),
                Heard::Text(_) => {}
                Heard::Nothing => break,
                Heard::End => ended = true,
            }
        }
        if ended && out.is_clear() {
            let _ = tcp.shutdown(std::net::Shutdown::Write);
            return Ok(());
        }
        let source = (reading && !ended && socket.is_clear()).then_some((fd, libc::POLLIN));
        let listen = out.is_clear();
        let [_, input, output] = wait([socket.wanted(listen), source, out.wanted()], Some(Duration::from_secs(5)))?;
        socket.go()?;
        socket.look(listen)?;
        if output {
            out.go()?;
        }
        if input {
            match read(fd, &mut buffer)? {
                None => {}
                Some(0) => {
                    reading = false;
                    // A message of no bytes is the end of what we send; what comes is still read.
                    socket.send(Message::Binary(Bytes::new()))?;
                }
                Some(got) => {
                    let bytes = buffer.get(..got).unwrap_or_default();
                    socket.send(Message::Binary(Bytes::copy_from_slice(bytes)))?;
                }
            }
        }
    }
}
