//! Descriptors: waiting for several, writing without waiting for ever, signals as something to read.
//!
//! Invariants
//!   * no byte that was taken for writing is lost or written twice, and no write waits, but to a terminal that is not ours to open;
//!   * a signal that is taken here does not end the process: whoever reads it decides.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};
use tungstenite::Bytes;

/// What can be written to a pipe at once when the kernel says that it takes something.
const PIECE: usize = 4096;
/// What is written at once where nobody has to wait.
const FILE_PIECE: usize = 1 << 20;

/// Waits until one of these can be used, at most for `time`; for each whether it can be (or has ended).
pub fn wait<const N: usize>(wanted: [Option<(RawFd, i16)>; N], time: Option<Duration>) -> io::Result<[bool; N]> {
    // What is below zero is passed over.
    let mut all = wanted.map(|one| {
        let (fd, events) = one.unwrap_or((-1, 0));
        libc::pollfd { fd, events, revents: 0 }
    });
    let ms = time.map_or(-1, |time| i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1));
    // SAFETY: the array lives through the call, and its length is given.
    let found = unsafe { libc::poll(all.as_mut_ptr(), all.len() as libc::nfds_t, ms) };
    if found < 0 {
        let e = io::Error::last_os_error();
        return if e.kind() == io::ErrorKind::Interrupted { Ok([false; N]) } else { Err(e) };
    }
    Ok(all.map(|one| one.revents != 0))
}

/// Reads what is there; `None` when there is nothing just now.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: no more is written than there is room.
    let got = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    match usize::try_from(got) {
        Ok(got) => Ok(Some(got)),
        Err(_) => match io::Error::last_os_error() {
            e if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => Ok(None),
            e => Err(e),
        },
    }
}

/// A descriptor that is written to, and what it has not taken yet.
pub struct Outlet {
    fd: RawFd,
    /// A terminal of which some room is left would still hold up a larger write: it is opened once more, for writes that do not wait.
    /// Not changed itself, because the shell has it, too.
    _own: Option<OwnedFd>,
    waiting: VecDeque<Bytes>,
    piece: usize,
}

impl Outlet {
    /// For a pipe, a terminal, a file or a socket.
    pub fn new(fd: RawFd) -> Self {
        // SAFETY: the calls fill plain memory that lives through them, and look at a descriptor.
        let (is_file, is_terminal) = unsafe {
            let mut found: libc::stat = std::mem::zeroed();
            let is_file = libc::fstat(fd, &mut found) == 0 && found.st_mode & libc::S_IFMT == libc::S_IFREG;
            (is_file, libc::isatty(fd) == 1)
        };
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let own = || OpenOptions::new().write(true).custom_flags(flags).open(format!("/proc/self/fd/{fd}")).ok();
        let own = is_terminal.then(own).flatten().map(OwnedFd::from);
        let piece = if is_file || own.is_some() { FILE_PIECE } else { PIECE };
        let fd = own.as_ref().map_or(fd, AsRawFd::as_raw_fd);
        Self { fd, _own: own, waiting: VecDeque::new(), piece }
    }

    /// For a socket that does not wait.
    pub fn of_socket(fd: RawFd) -> Self {
        Self { fd, _own: None, waiting: VecDeque::new(), piece: FILE_PIECE }
    }

    /// Takes bytes; whoever does not read on until `is_clear` keeps it small.
    pub fn put(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.waiting.push_back(bytes);
        }
    }

    /// Whether everything was written.
    pub fn is_clear(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Writes on for at most `time`.
    pub fn go_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_clear() && Instant::now() < until {
            if wait([self.wanted()], Some(until.saturating_duration_since(Instant::now()))).is_err()
                || self.go().is_err()
            {
                return;
            }
        }
    }

    /// What to wait for before `go`.
    pub fn wanted(&self) -> Option<(RawFd, i16)> {
        (!self.is_clear()).then_some((self.fd, libc::POLLOUT))
    }

    /// Writes a piece: what the kernel says it takes.
    pub fn go(&mut self) -> io::Result<()> {
        let Some(first) = self.waiting.front_mut() else { return Ok(()) };
        let len = first.len().min(self.piece);
        // SAFETY: the bytes live through the call, and there are so many of them.
        let put = unsafe { libc::write(self.fd, first.as_ptr().cast(), len) };
        match usize::try_from(put) {
            Ok(put) => {
                let _ = first.split_to(put.min(len));
                if first.is_empty() {
                    self.waiting.pop_front();
                }
                Ok(())
            }
            Err(_) => match io::Error::last_os_error() {
                e if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => Ok(()),
                e => Err(e),
            },
        }
    }
}

/// The signals that end or change a command, as they come.
pub struct Signals {
    fd: OwnedFd,
    /// Which did not come to this thread before.
    before: libc::sigset_t,
}

/// Which.
const TAKEN: [i32; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGWINCH];

impl Signals {
    /// Takes them from now on until the value is dropped, in threads that are started meanwhile, too.
    pub fn take() -> io::Result<Self> {
        // SAFETY: the calls fill and read plain memory that lives through them; the descriptor is nobody else's.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in TAKEN {
                libc::sigaddset(&mut set, signal);
            }
            let mut before: libc::sigset_t = std::mem::zeroed();
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
            if failed != 0 {
                return Err(io::Error::from_raw_os_error(failed));
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { fd: OwnedFd::from_raw_fd(fd), before })
        }
    }

    /// What to wait for.
    pub fn wanted(&self) -> Option<(RawFd, i16)> {
        Some((self.fd.as_raw_fd(), libc::POLLIN))
    }

    /// The next one that has come.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0; std::mem::size_of::<libc::signalfd_siginfo>()];
        let got = read(self.fd.as_raw_fd(), &mut info).ok()??;
        // The number comes first.
        let number = info.get(..4).filter(|_| got == info.len())?;
        i32::try_from(u32::from_ne_bytes(number.try_into().ok()?)).ok()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: the call reads plain memory that lives through it.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_a_slow_reader_has_not_taken_waits() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut outlet = Outlet::new(writer.as_raw_fd());
        let all: Vec<u8> = (0..300_000_u32).map(|i| (i / 7) as u8).collect();
        all.chunks(70_000).for_each(|piece| outlet.put(Bytes::copy_from_slice(piece)));
        let mut steps = 0;
        // As much as a pipe takes goes without anybody reading.
        while wait([outlet.wanted()], Some(Duration::from_millis(20))).is_ok_and(|[can]| can) {
            outlet.go().expect("a pipe");
            steps += 1;
        }
        assert!(steps > 1 && !outlet.is_clear());
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).map(|_| got)
        });
        while !outlet.is_clear() {
            wait([outlet.wanted()], None).expect("a pipe");
            outlet.go().expect("a pipe");
        }
        drop(writer);
        assert!(reading.join().expect("a thread").is_ok_and(|got| got == all));
    }

    #[test]
    fn a_reader_that_went_is_told() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let mut outlet = Outlet::new(writer.as_raw_fd());
        outlet.put(Bytes::from_static(b"x"));
        assert_eq!(wait([outlet.wanted(), None], None).ok(), Some([true, false]));
        assert_eq!(outlet.go().map_err(|e| e.kind()), Err(io::ErrorKind::BrokenPipe));
    }
}
