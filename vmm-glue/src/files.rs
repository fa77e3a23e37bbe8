//! Files of a machine's folder: written as a whole, locked, and sockets whose paths may be long.

use crate::{Error, Kind, Result};
use serde::de::DeserializeOwned;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest state file; ours are far shorter.
const STATE_MAX: u64 = 1 << 20;
/// How long a listener may take to take a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// Pause between two tries of a lock or connection.
const RETRY: Duration = Duration::from_millis(10);

/// Puts `value` at `path`: all of it, or what was there before.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let explain = Error::of_file(path);
    let text = serde_json::to_vec_pretty(value).map_err(|e| Error::failed(e.to_string()))?;
    let new = path.with_extension("new");
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new).map_err(&explain)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(&explain)?;
    fs::rename(&new, path).map_err(&explain)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(&explain)
}

/// Reads what [`write_json`] wrote.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let explain = Error::of_file(path);
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(STATE_MAX).read_to_string(&mut text)).map_err(&explain)?;
    serde_json::from_str(&text).map_err(|e| Error::failed(format!("{} is damaged: {e}", path.display())))
}

/// A lock on a file, held as long as the value lives.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or gives `None` when somebody else has it for longer than `wait`.
    pub(crate) fn take(path: &Path, wait: Duration) -> Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
        let file = file.map_err(Error::of_file(path))?;
        let begin = Instant::now();
        loop {
            // SAFETY: a plain system call on an open descriptor.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
                return Ok(Some(Self { _file: file }));
            }
            if begin.elapsed() >= wait {
                return Ok(None);
            }
            std::thread::sleep(RETRY);
        }
    }
}

/// Connects to the socket `name` in `folder`, however long the folder's path is. A listener that hangs does not take
/// connections: it is given up after [`CONNECT`], with `TimedOut`.
pub(crate) fn connect(folder: &Path, name: &str) -> io::Result<UnixStream> {
    let folder = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(folder)?;
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    // SAFETY: an address without pointers, for which zeros are a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(path.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the call makes a descriptor that nobody else owns.
    let stream = unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        UnixStream::from_raw_fd(fd)
    };
    let (begin, len) = (Instant::now(), size_of::<libc::sockaddr_un>() as libc::socklen_t);
    // SAFETY: the call reads an address of the length given, which lives through it.
    while unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
        let e = io::Error::last_os_error();
        match e.kind() {
            io::ErrorKind::WouldBlock if begin.elapsed() < CONNECT => std::thread::sleep(RETRY),
            io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            _ => return Err(e),
        }
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Whether `name` can be a machine's or an image's: it becomes a folder's and a volume's name.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && name.len() <= 64 && name.chars().all(is_plain) {
        return Ok(());
    }
    let text = "use 1 to 64 letters, digits, '.', '_' and '-', and begin with a letter or digit";
    Err(Error::new(Kind::Invalid, format!("{name:?} cannot be a name: {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_folder_are_refused() {
        for bad in ["", ".", "..", "a/b", "-x", ".hidden", "a b", "a@b", "ä", &"n".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name("web-1.test_A").is_ok());
    }

    #[test]
    fn a_lock_has_one_owner_and_a_state_file_is_never_half_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let first = Lock::take(&path, Duration::ZERO).expect("a lock").expect("free");
        assert!(Lock::take(&path, Duration::ZERO).expect("a lock").is_none());
        drop(first);
        assert!(Lock::take(&path, Duration::ZERO).expect("a lock").is_some());
        let path = folder.path().join("state.json");
        write_json(&path, &vec![1, 2]).expect("written");
        fs::write(path.with_extension("new"), "[1, 2, 3").expect("half of the next");
        assert_eq!(read_json::<Vec<u8>>(&path).expect("whole"), [1, 2]);
        fs::write(&path, "{").expect("damage");
        assert!(read_json::<Vec<u8>>(&path).expect_err("damaged").message.contains("damaged"));
    }

    #[test]
    fn a_socket_in_a_folder_with_a_long_path_is_reached() {
        let folder = tempfile::tempdir().expect("a folder");
        let deep = folder.path().join("n".repeat(150));
        fs::create_dir(&deep).expect("a folder");
        let at = File::open(&deep).expect("a folder");
        let _listener = std::os::unix::net::UnixListener::bind(format!("/proc/self/fd/{}/s", at.as_raw_fd()));
        assert!(connect(&deep, "s").is_ok());
        assert_eq!(connect(&deep, "none").expect_err("no socket").kind(), io::ErrorKind::NotFound);
    }

    /// A hung VMM held up `cairn vm stop` for ever: its queue was full of connections that it did not take.
    #[test]
    fn a_listener_that_takes_no_connection_is_given_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let _listener = std::os::unix::net::UnixListener::bind(folder.path().join("s")).expect("a socket");
        let mut held = Vec::new();
        let refused = loop {
            match connect(folder.path(), "s") {
                Ok(stream) => held.push(stream),
                Err(e) => break e,
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        assert!(!held.is_empty());
    }
}
