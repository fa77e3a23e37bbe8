//! The few system calls of the event loop and its threads: epoll, an event to wake it, signals as a
//! descriptor, priorities.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Interest in reading.
pub const READ: u32 = libc::EPOLLIN as u32;
/// Interest in writing.
pub const WRITE: u32 = libc::EPOLLOUT as u32;

/// Told once for each time that it becomes ready, so that it need not be emptied.
pub const EDGE: u32 = libc::EPOLLET as u32;

/// Told whatever the interest is: the other side is gone.
pub const GONE: u32 = libc::EPOLLHUP as u32;

/// An epoll instance.
pub struct Poll(OwnedFd);

fn check(code: i32) -> io::Result<i32> {
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(code)
}

/// Owns a descriptor that a system call has just made.
fn own(fd: i32) -> OwnedFd {
    // SAFETY: `fd` is open, was made by the caller's system call, and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl Poll {
    /// A new instance.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a plain system call.
        check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(own).map(Self)
    }

    /// Ready when something that it watches is: it can be watched itself.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn control(&self, op: i32, fd: RawFd, token: u64, interest: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest, u64: token };
        // SAFETY: `event` lives through the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), op, fd, &mut event) }).map(drop)
    }

    /// Watches `fd`.
    pub fn add(&self, fd: RawFd, token: u64, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    /// Changes what is watched.
    pub fn modify(&self, fd: RawFd, token: u64, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    /// Stops watching `fd`, which lives on elsewhere.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    /// Waits up to `timeout_ms` (-1: for ever); fills `out` with token and events.
    pub fn wait(&self, out: &mut Vec<(u64, u32)>, timeout_ms: i32) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        // SAFETY: `events` is a live array of 64 entries.
        let n = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 64, timeout_ms) };
        out.clear();
        match check(n) {
            Ok(n) => out.extend(events.iter().take(n as usize).map(|e| (e.u64, e.events))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// Asks for room for `bytes` of replies in the kernel, so that a slow reader delays the next request
/// less; the kernel gives what its limits allow.
pub fn set_send_buffer(fd: RawFd, bytes: i32) {
    for option in [libc::SO_SNDBUFFORCE, libc::SO_SNDBUF] {
        let (value, len) = ((&raw const bytes).cast(), size_of::<i32>() as libc::socklen_t);
        // SAFETY: reads four bytes from a live integer.
        if unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value, len) } == 0 {
            return;
        }
    }
}

/// A counter that wakes the loop.
pub fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: a plain system call.
    check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).map(own)
}

/// Adds one to an event counter.
pub fn signal_event(fd: RawFd) {
    let one = 1u64;
    // SAFETY: writes eight bytes from a live integer.
    unsafe { libc::write(fd, (&raw const one).cast(), 8) };
}

/// Empties an event counter or signal queue.
pub fn drain(fd: RawFd) {
    let mut buf = [0u8; 256];
    // SAFETY: reads into a live buffer of the given length.
    while unsafe { libc::read(fd, buf.as_mut_ptr().cast(), buf.len()) } > 0 {}
}

/// SIGTERM and SIGINT as a readable descriptor; call before any thread is started.
pub fn signal_fd() -> io::Result<OwnedFd> {
    signals(true).map(|fd| fd.expect("asked for"))
}

/// Keeps SIGTERM and SIGINT from this thread and those it starts, until a [`signal_fd`] takes them: a thread that
/// was started before would be ended by them, and the process with it.
pub fn hold_signals() -> io::Result<()> {
    signals(false).map(drop)
}

fn signals(take: bool) -> io::Result<Option<OwnedFd>> {
    // SAFETY: `set` is initialised by sigemptyset before use; the calls only read or write it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        check(libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        if !take {
            return Ok(None);
        }
        check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)).map(own).map(Some)
    }
}

/// Interest of [`wait_two`] in reading.
pub const READ_EVENTS: i16 = libc::POLLIN;
/// Interest of [`wait_two`] in writing.
pub const WRITE_EVENTS: i16 = libc::POLLOUT;

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ready {
    /// Bytes, or the end, can be read.
    pub read: bool,
    /// Bytes can be written.
    pub write: bool,
    /// The other side is gone.
    pub closed: bool,
}

/// Waits up to `timeout_ms` (-1: for ever) for either of two descriptors; `None` is left out.
pub fn wait_two(
    first: (Option<RawFd>, i16),
    second: (Option<RawFd>, i16),
    timeout_ms: i32,
) -> io::Result<(Ready, Ready)> {
    let mut fds = [first, second].map(|(fd, events)| libc::pollfd { fd: fd.unwrap_or(-1), events, revents: 0 });
    // SAFETY: `fds` is a live array of two entries.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout_ms) }) {
        Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
        _ => {}
    }
    let ready = fds.map(|fd| {
        let closed = fd.revents & (libc::POLLHUP | libc::POLLERR) != 0;
        Ready {
            read: fd.revents & libc::POLLIN != 0 || closed && fd.events & libc::POLLIN != 0,
            write: fd.revents & libc::POLLOUT != 0 || closed && fd.events & libc::POLLOUT != 0,
            closed,
        }
    });
    Ok((ready[0], ready[1]))
}

/// Lets the process open as many files as it may; returns how many that is.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through both calls.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0 {
            limit = raised;
        }
    }
    Ok(limit.rlim_cur)
}

/// Gives this thread the lowest share of the processors (nice 19); one that may not stays as it is.
pub fn yield_to_others() {
    // SAFETY: a plain system call; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}
