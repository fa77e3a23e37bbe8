//! Opening a pool folder: lock, clock, identity.

use blockstore::disk::{Disk, OsDisk};
use blockstore::{Clock, Error, ErrorKind, Pool, PoolOptions, RecoveryReport, Result};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

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
                "the pool {} is in use by another process: stop it, or use its control socket",
                folder.display()
            );
            return Err(Error::new(ErrorKind::Busy, text));
        }
        Ok(Self { _file: file })
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
                && !n.to_string_lossy().starts_with("reserve")
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
