//! The worker: mounts, goes into the jail, serves.

use super::jail;
use super::pool::Daemon;
use crate::client::Failure;
use fs_inspect::mount::Mount;
use fuser::{Config, MountOption, Session, SessionACL};
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::{env, io, thread};

/// The descriptor of the socket to the keeper, in the worker.
pub const KEEPER: i32 = 100;
/// Names the test of the jail: the worker tells what it could do, and ends.
pub const TRY_ESCAPES: &str = "CAIRN_TRY_ESCAPES";
/// Requests served at a time.
const THREADS: usize = 4;

/// Serves `volume`, or all volumes, at `folder`. Says `mounted` on standard output when it is there.
pub fn work(volume: Option<String>, folder: &Path, allow_other: bool) -> Result<(), Failure> {
    // SAFETY: the keeper put its socket there, and nothing else in this process knows the number.
    let keeper = UnixStream::from(unsafe { OwnedFd::from_raw_fd(KEEPER) });
    let mount = Mount::new(Box::new(Daemon::new(keeper)), volume);
    let watch = mount.watch();
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoExec,
        MountOption::FSName("cairn".to_owned()),
    ];
    if allow_other {
        // Others see what the guest's permissions let others see.
        config.mount_options.push(MountOption::DefaultPermissions);
        config.acl = SessionACL::All;
    }
    config.n_threads = Some(THREADS);
    let explain = |e: io::Error| Failure::new("io", format!("mounting at {}: {e}", folder.display()));
    let session = Session::new(mount, folder, &config).map_err(explain)?;
    let mut notices = Vec::new();
    jail::enter(&mut |notice| notices.push(notice.to_owned()))?;
    notices.iter().for_each(|notice| eprintln!("cairn: the inspector runs {notice}"));
    if env::var_os(TRY_ESCAPES).is_some() {
        println!("escapes: {:?}", jail::escapes());
    }
    println!("mounted");
    io::stdout().flush()?;
    thread::Builder::new().name("cairn-watch".to_owned()).spawn(watch)?;
    Ok(session.run()?)
}
