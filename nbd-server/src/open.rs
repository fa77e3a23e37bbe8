//! Opening a pool folder: lock, clock, identity.
//!
//! Invariants
//!   * whoever finds the lock held says so only after [`LOCK_WAIT`]: a daemon that starts, a daemon that ends
//!     and a command without a daemon each hold it for a moment during which nobody answers.

use blockstore::disk::{Disk, OsDisk};
use blockstore::{Clock, Error, ErrorKind, Pool, PoolOptions, RecoveryReport, Result};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a lock that somebody else holds is asked for.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Time between two tries.
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// The machine's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_us(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
    }
}

/// Held as long as a process uses a pool.
pub struct PoolLock {
    _file: File,
}

impl PoolLock {
    /// Takes the lock of `folder`, or says that somebody else has it.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join("lock");
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
        // SAFETY: a plain system call on an open descriptor.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let text = format!(
                "the pool {} is in use by another process, which does not answer commands yet: try again, or stop it",
                folder.display()
            );
            return Err(Error::new(ErrorKind::Busy, text));
        }
        Ok(Self { _file: file })
    }
}

/// Calls `attempt` until it says something else than that the pool is in use, or [`LOCK_WAIT`] is over.
///
/// # Errors
/// What the last attempt said.
pub fn while_in_use<T, E>(
    is_busy: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let begin = Instant::now();
    loop {
        match attempt() {
            Err(e) if is_busy(&e) && begin.elapsed() < LOCK_WAIT => thread::sleep(LOCK_RETRY),
            outcome => return outcome,
        }
    }
}

/// Sixteen random bytes.
pub fn random_id() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(id)
}

/// Opens the pool in `folder`; makes it first if `create` and the folder is empty or absent.
pub fn open_pool(folder: &Path, create: bool, options: PoolOptions) -> Result<(PoolLock, Pool, RecoveryReport)> {
    if create {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|e| Error::io(format!("making the folder {}", folder.display()), e))?;
    }
    if !folder.is_dir() {
        let text =
            format!("there is no pool folder {}: cairn serve or cairn volume create makes one", folder.display());
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    let lock = PoolLock::take(folder)?;
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new(folder));
    if create && !Pool::exists(&disk)? {
        let foreign =
            fs::read_dir(folder).map_err(|e| Error::io("listing the pool folder", e))?.filter_map(io::Result::ok);
        let foreign = foreign.map(|e| e.file_name()).find(|n| {
            n != "lock"
                && !n.to_string_lossy().starts_with("tmp-")
                && n != "control.sock"
                && !n.to_string_lossy().starts_with("anchor-")
        });
        if let Some(name) = &foreign {
            if name.to_string_lossy().starts_with("seg-") {
                let text = format!(
                    "cairn.pool is missing in {}, which holds a pool's segments: put it back from a copy of the pool",
                    folder.display()
                );
                return Err(Error::new(ErrorKind::NotFound, text));
            }
            let text = format!("{} holds {name:?} and no pool: give an empty folder", folder.display());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let id = random_id().map_err(|e| Error::io("reading random bytes", e))?;
        Pool::create(&disk, &SystemClock, id)?;
    }
    let (pool, report) = Pool::open(disk, Arc::new(SystemClock), options)?;
    Ok((lock, pool, report))
}
