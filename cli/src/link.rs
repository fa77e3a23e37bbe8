//! The way to a pool for long work: its daemon's control socket, or a daemon in this process that
//! lives as long as the work.

use crate::client::{self, Failure, Intent, Reached, CONTROL};
use crate::output::Progress;
use blockstore::{Pool, RecoveryReport};
use nbd_server::{is_read_only, random_id, PoolLock, Server, ServerOptions, Stopper, LAG};
use serde_json::Value;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

struct Own {
    stopper: Stopper,
    thread: JoinHandle<io::Result<()>>,
    _lock: PoolLock,
    /// Where its control socket is, when the pool's folder takes none.
    _aside: Option<Aside>,
}

/// A folder of our own for as long as the value lives.
struct Aside(PathBuf);

impl Aside {
    fn new() -> Result<Self, Failure> {
        let name: String = random_id()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = std::env::temp_dir().join(format!("cairn-{name}"));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(Failure::of_file(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A pool that answers.
pub struct Link {
    control: PathBuf,
    own: Option<Own>,
}

impl Link {
    /// Finds the daemon of the pool in `folder`, or becomes it.
    pub fn open(folder: &Path, intent: Intent) -> Result<Self, Failure> {
        let control = folder.join(CONTROL);
        match client::reach(folder, intent)? {
            Reached::Daemon(_) => Ok(Self { control, own: None }),
            Reached::Own(own) => {
                let aside = is_read_only(folder).then(Aside::new).transpose()?;
                let control = aside.as_ref().map_or(control, |aside| aside.0.join(CONTROL));
                Ok(Self { own: Some(Own::start(folder, &control, aside, *own)?), control })
            }
        }
    }

    /// Whether the daemon is our own.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// A connection to the control socket.
    pub fn connect(&self) -> Result<UnixStream, Failure> {
        client::connect(&self.control)?.ok_or_else(|| Failure::new("io", "the daemon has just gone away: try again"))
    }

    /// Ends the daemon, if it is our own, and tells whether it closed well.
    pub fn close(mut self) -> Result<(), Failure> {
        self.own.take().map_or(Ok(()), Own::end)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(Err(failure)) = self.own.take().map(Own::end) {
            eprintln!("cairn: {}", failure.message);
        }
    }
}

impl Own {
    fn start(
        folder: &Path,
        control: &Path,
        aside: Option<Aside>,
        opened: (PoolLock, Pool, RecoveryReport),
    ) -> Result<Self, Failure> {
        let (lock, pool, report) = opened;
        // A log of its own would say twice what the command says.
        report.dropped.iter().for_each(|why| eprintln!("cairn: recovery dropped {why}"));
        let (folder, control) = (folder.to_owned(), Some(control.to_owned()));
        let server = Server::new(
            pool,
            ServerOptions { folder, control, listen: Vec::new(), spares: 0, tls: None, lag: LAG, counted: None },
        )?;
        let stopper = server.stopper();
        let thread = std::thread::Builder::new().name("cairn-pool".to_owned()).spawn(move || server.run())?;
        Ok(Self { stopper, thread, _lock: lock, _aside: aside })
    }

    fn end(self) -> Result<(), Failure> {
        self.stopper.stop();
        let outcome = self.thread.join().map_err(|_| Failure::new("io", "the pool's thread failed"))?;
        Ok(outcome?)
    }
}

/// Sends `request` and reads its answer, and shows how far it is meanwhile.
pub fn ask_long(stream: &mut UnixStream, request: &Value, progress: &mut Progress) -> Result<Value, Failure> {
    client::ask_telling(stream, request, |done, total| progress.show(done, total))
}
