//! A daemon in this process, on a pool of its own, and the smallest honest client.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod attack;
pub mod far;
pub mod honest;
pub mod wire;

use blockstore::{Pool, PoolOptions};
use nbd_server::{open_pool, Listen, PoolLock, Server, ServerOptions, Stopper, Tls};
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::os::unix::thread::JoinHandleExt;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of the volume `disk`.
pub const DISK_BYTES: u64 = 256 << 20;

/// A running daemon; ends with the value.
pub struct Daemon {
    pub folder: tempfile::TempDir,
    pub tcp: Vec<SocketAddr>,
    stopper: Stopper,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Daemon {
    /// Serves `disk` on `nbd.sock` in a new folder.
    pub fn start() -> Self {
        Self::with(&[], None).expect("the daemon starts")
    }

    /// Also serves TCP on `tcp`, with or without TLS.
    pub fn with(tcp: &[&str], tls: Option<Tls>) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (lock, mut pool, _) = open_pool(&folder.path().join("pool"), true, PoolOptions::default()).expect("a pool");
        let (_, job) = pool.create_volume("disk", DISK_BYTES).expect("a volume");
        pool.finish(job).expect("a durable volume");
        Self::serve(folder, lock, pool, tcp, tls)
    }

    /// Serves a pool that lies in `folder`, in `pool`.
    pub fn serve(
        folder: tempfile::TempDir,
        lock: PoolLock,
        pool: Pool,
        tcp: &[&str],
        tls: Option<Tls>,
    ) -> io::Result<Self> {
        let mut listen = vec![Listen::Unix(folder.path().join("nbd.sock"))];
        listen.extend(tcp.iter().map(|address| Listen::Tcp((*address).to_owned())));
        let options = ServerOptions {
            folder: folder.path().join("pool"),
            control: None,
            listen,
            spares: 0,
            tls,
            lag: nbd_server::LAG,
            counted: None,
        };
        let server = Server::new(pool, options)?;
        let (stopper, tcp) = (server.stopper(), server.addresses());
        let thread = std::thread::spawn(move || {
            let outcome = server.run();
            drop(lock);
            outcome
        });
        Ok(Self { folder, tcp, stopper, thread: Some(thread) })
    }

    /// Ends it, and starts another one on its pool.
    pub fn again(mut self) -> Self {
        self.stop().expect("it ends well");
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder"));
        let (lock, pool, _) = open_pool(&folder.path().join("pool"), true, PoolOptions::default()).expect("a pool");
        Self::serve(folder, lock, pool, &[], None).expect("the daemon starts")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd.sock")
    }

    /// A plain connection, with a time limit on every read and write.
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("the daemon accepts");
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(&stream, Some(Duration::from_secs(30))).expect("a time limit");
        }
        stream
    }

    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// One command on the control socket; its answer.
    pub fn control(&self, line: &str) -> String {
        let mut stream = UnixStream::connect(self.folder.path().join("pool/control.sock")).expect("a control socket");
        stream.write_all(format!("{line}\n").as_bytes()).expect("heard");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("an answer");
        assert!(!answer.contains("\"error\""), "{line}: {answer}");
        answer
    }

    /// Sends SIGTERM to the daemon's thread, as a system would to its process.
    pub fn terminate(&self) {
        let thread = self.thread.as_ref().expect("the daemon runs");
        // SAFETY: the thread has not been joined, so its handle is valid; the signal is blocked in it.
        assert_eq!(unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGTERM) }, 0);
    }

    /// Ends the daemon and tells how it ended.
    pub fn stop(&mut self) -> io::Result<()> {
        self.stopper.stop();
        self.join()
    }

    /// Waits for a daemon that was told to end.
    pub fn join(&mut self) -> io::Result<()> {
        self.thread.take().map_or(Ok(()), |thread| thread.join().expect("the daemon does not panic"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
