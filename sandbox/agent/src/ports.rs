//! The guest's virtio-serial ports: finding them, and waiting on each for its host.

use crate::session::serve;
use crate::sys::check;
use crate::system::grow_root;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// Ports of ours are called so, with a number behind it.
const NAME: &str = "cairn.";
/// How long ports may take to appear.
const APPEAR: Duration = Duration::from_secs(30);
/// Pause between two looks for what has no event.
const PAUSE: Duration = Duration::from_millis(20);

/// The devices of our ports.
fn devices() -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten();
    let ours = entries.filter(|entry| fs::read_to_string(entry.path().join("name")).is_ok_and(|n| n.starts_with(NAME)));
    ours.map(|entry| PathBuf::from("/dev").join(entry.file_name())).filter(|device| device.exists()).collect()
}

/// Serves the host on all ports, for as long as the guest runs.
///
/// # Errors
/// There are no ports.
pub fn run() -> io::Result<()> {
    let _ = grow_root().map_err(|e| eprintln!("cairn-agent: the root file system keeps its size: {e}"));
    let begin = Instant::now();
    let mut found = devices();
    while found.is_empty() && begin.elapsed() < APPEAR {
        thread::sleep(PAUSE);
        found = devices();
    }
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "this guest has no virtio-serial port called cairn.N"));
    }
    let threads: Vec<_> = found.into_iter().map(|device| thread::spawn(move || keep(&device))).collect();
    threads.into_iter().for_each(|thread| {
        let _ = thread.join();
    });
    Ok(())
}

/// Serves one port, connection after connection.
fn keep(device: &PathBuf) {
    loop {
        let ended = open(device).and_then(|mut port| loop {
            wait_for_host(&port)?;
            serve(&mut port)?;
        });
        let Err::<(), io::Error>(e) = ended else { continue };
        eprintln!("cairn-agent: {}: {e}", device.display());
        thread::sleep(Duration::from_secs(1));
    }
}

fn open(device: &PathBuf) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(device)
}

/// Sleeps until a host is connected. A port without one is "hung up" all the time, so that only changes are told.
fn wait_for_host(port: &File) -> io::Result<()> {
    // SAFETY: the calls make, fill and use plain memory and a descriptor that nobody else owns.
    unsafe {
        let epoll = OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?);
        let events = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events, u64: 0 };
        check(libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, port.as_raw_fd(), &mut event))?;
        loop {
            let mut fds = [crate::sys::wait_for(port.as_raw_fd(), libc::POLLIN | libc::POLLOUT)];
            crate::sys::poll(&mut fds, Some(Duration::ZERO))?;
            if fds[0].revents & libc::POLLHUP == 0 {
                return Ok(());
            }
            match check(libc::epoll_wait(epoll.as_raw_fd(), &mut event, 1, -1)) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
        }
    }
}
