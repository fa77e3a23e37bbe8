//! Opening a pool folder: lock, clock, identity.
//!
//! Invariants
//!   * whoever finds the lock held says so only after [`LOCK_WAIT`]: a daemon that starts, a daemon that ends
//!     and a command without a daemon each hold it for a moment during which nobody answers.

use blockstore::disk::{Disk, OsDisk, Overlay};
use blockstore::object::ObjectTier;
use blockstore::{Clock, Error, ErrorKind, Pool, PoolOptions, RecoveryReport, Result};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
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

    fn monotonic_us(&self) -> u64 {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call fills plain memory that lives through it.
        unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
        now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
    }
}

/// The machine's time, microseconds since 1970.
pub(crate) fn now_us() -> u64 {
    SystemClock.now_us()
}

/// Held as long as a process uses a pool.
pub struct PoolLock {
    _file: Option<File>,
}

impl PoolLock {
    /// Takes the lock of `folder`, or says that somebody else has it.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join("lock");
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
        Self::of(file, folder)
    }

    fn of(file: File, folder: &Path) -> Result<Self> {
        // SAFETY: a plain system call on an open descriptor.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let text = format!(
                "the pool {} is in use by another process, which does not answer commands yet: try again, or stop it",
                folder.display()
            );
            return Err(Error::new(ErrorKind::Busy, text));
        }
        Ok(Self { _file: Some(file) })
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
///
/// # Errors
/// Why it cannot, with the folder's name and what to do.
pub fn open_pool(folder: &Path, create: bool, options: PoolOptions) -> Result<(PoolLock, Pool, RecoveryReport)> {
    open_pool_with(folder, create, options, None)
}

/// As [`open_pool`], for a pool whose volumes have a home in an object store.
///
/// # Errors
/// As [`open_pool`]; and when a part of the pool is in the store, which does not answer.
pub fn open_pool_with(
    folder: &Path,
    create: bool,
    options: PoolOptions,
    tier: Option<ObjectTier>,
) -> Result<(PoolLock, Pool, RecoveryReport)> {
    let shown = folder.display();
    if folder.exists() && !folder.is_dir() {
        return Err(Error::new(ErrorKind::Invalid, format!("{shown} is a file: a pool is a folder")));
    }
    if create {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|e| Error::io(format!("making the folder {shown}"), e))?;
    }
    if !folder.is_dir() {
        let text = format!("there is no pool folder {shown}: cairn serve or cairn volume create makes one");
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    if is_read_only(folder) {
        let text = format!(
            "{shown} is on a read-only file system: remount it (mount -o remount,rw); until then volume list, volume info, \
             volume export, check and scrub work"
        );
        return Err(Error::new(ErrorKind::Io, text));
    }
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new(folder));
    // A folder without a pool is left without a lock, too.
    if !create && !Pool::exists(&disk)? {
        return Err(no_pool(folder));
    }
    let lock = PoolLock::take(folder)?;
    if create && !Pool::exists(&disk)? {
        make_pool(folder, &disk)?;
    }
    let (pool, report) = recover(folder, disk, options, tier)?;
    Ok((lock, pool, report))
}

/// Whether `folder` lies on a file system, or below a mount, that takes no changes.
pub fn is_read_only(folder: &Path) -> bool {
    let Ok(path) = CString::new(folder.as_os_str().as_bytes()) else { return false };
    // SAFETY: the call fills plain memory that lives through it, and reads a string that ends in NUL.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        libc::statvfs(path.as_ptr(), &mut found) == 0 && found.f_flag & libc::ST_RDONLY != 0
    }
}

/// Opens the pool in `folder` to look at it: what recovery writes, and every change, stays in memory.
///
/// # Errors
/// As [`open_pool`].
pub fn open_to_look(folder: &Path, options: PoolOptions) -> Result<(PoolLock, Pool, RecoveryReport)> {
    // Whoever can write here by another way holds the lock; where there is none, nobody ever has.
    let path = folder.join("lock");
    let lock = match File::open(&path) {
        Ok(file) => PoolLock::of(file, folder)?,
        Err(_) => PoolLock { _file: None },
    };
    let disk: Arc<dyn Disk> = Arc::new(Overlay::over(Arc::new(OsDisk::read_only(folder))));
    let (pool, report) = recover(folder, disk, options, None)?;
    Ok((lock, pool, report))
}

fn no_pool(folder: &Path) -> Error {
    let text = format!(
        "there is no pool in {} (cairn.pool is missing): name another folder, or make one with cairn serve or cairn \
         volume create",
        folder.display()
    );
    Error::new(ErrorKind::NotFound, text)
}

fn recover(
    folder: &Path,
    disk: Arc<dyn Disk>,
    options: PoolOptions,
    tier: Option<ObjectTier>,
) -> Result<(Pool, RecoveryReport)> {
    if !Pool::exists(&disk)? {
        return Err(no_pool(folder));
    }
    let shown = folder.display();
    Pool::open_with(disk, Arc::new(SystemClock), options, tier).map_err(|e| match e.kind() {
        ErrorKind::Corrupt => {
            let text = format!("the pool {shown} cannot be opened: {e}: put the file back from a backup of the pool");
            Error::new(ErrorKind::Corrupt, text)
        }
        _ => e,
    })
}

/// Makes a pool in an empty folder.
fn make_pool(folder: &Path, disk: &Arc<dyn Disk>) -> Result<()> {
    let shown = folder.display();
    let names = fs::read_dir(folder).map_err(|e| Error::io("listing the pool folder", e))?;
    let names = names.filter_map(io::Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ours = |name: &str| {
        name == "lock" || name == "control.sock" || name.starts_with("tmp-") || name.starts_with("anchor-")
    };
    match names.filter(|name| !ours(name)).min_by_key(|name| !name.starts_with("seg-")) {
        None => {}
        Some(name) if name.starts_with("seg-") => {
            let text = format!(
                "cairn.pool is missing in {shown}, which holds a pool's segments: put it back from a copy of the pool"
            );
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        Some(name) => {
            let text = format!("{shown} holds {name:?} and no pool: give an empty folder");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
    }
    let id = random_id().map_err(|e| Error::io("reading random bytes", e))?;
    Pool::create(disk, &SystemClock, id)
}
