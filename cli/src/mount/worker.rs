//! The worker: mounts, goes into the jail, serves.

use super::pool::Daemon;
use crate::client::Failure;
use crate::jail;
use fs_inspect::mount::Mount;
use fuser::{Config, MountOption, Session, SessionACL};
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::{env, fs, io, thread};

/// The descriptor of the socket to the keeper, in the worker.
pub const KEEPER: i32 = 100;
/// Names the test of the jail: the worker tells what it could do, and ends.
pub const TRY_ESCAPES: &str = "CAIRN_TRY_ESCAPES";
/// How far the kernel reads ahead: several of its largest requests (1 MiB).
const READ_AHEAD_KIB: u32 = 4096;
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
    let place = fs::canonicalize(folder).map_err(explain)?;
    let session = Session::new(mount, folder, &config).map_err(explain)?;
    read_ahead(&place);
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

/// Lets the kernel read ahead as far as pays with requests that cross two sockets; only root may, for others its usual
/// distance serves. The mount's device is found in a table: asking the mount itself would have to be answered here.
fn read_ahead(place: &Path) {
    let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else { return };
    let is_here = |line: &&str| line.split(' ').nth(4).is_some_and(|at| unescaped(at) == place.as_os_str().as_bytes());
    if let Some(device) = table.lines().rfind(is_here).and_then(|line| line.split(' ').nth(2)) {
        let _ = fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KIB.to_string());
    }
}

/// A path of the table of mounts, which has `\040` for a space.
fn unescaped(text: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, behind)) = rest.split_first() {
        let code = behind.get(..3).filter(|_| *first == b'\\').and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = behind.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_table_of_mounts_are_read() {
        assert_eq!(unescaped("/mnt/a\\040b\\134"), b"/mnt/a b\\");
        assert_eq!(unescaped("/mnt\\9"), b"/mnt\\9");
    }
}
