//! A server that sends 4 KiB requests back over a Unix socket, in the ways an event loop can wait.
//!
//! Promises: the client is the same blocking code for all of them; what differs is the server.

use super::bench::{Bench, Run, BLOCK, DEPTH};
use io_uring::opcode::{Recv, Send};
use io_uring::types::Fixed;
use io_uring::IoUring;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use tokio_uring::buf::BoundedBuf;

/// How long the daemon's loop asks for more work before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// All that a client has in flight.
const ROOM: usize = DEPTH * BLOCK;

/// Runs a server beside a client that keeps `depth` requests in flight until its time is over.
fn with_client(bench: &Bench, depth: usize, serve: impl FnOnce(UnixStream) -> io::Result<()>) -> io::Result<Run> {
    let (ours, theirs) = UnixStream::pair()?;
    std::thread::scope(|scope| {
        let client = scope.spawn(move || client(bench, depth, theirs));
        serve(ours)?;
        client.join().map_err(|_| io::Error::other("the client has panicked"))?
    })
}

fn client(bench: &Bench, depth: usize, mut stream: UnixStream) -> io::Result<Run> {
    let (mut buf, mut watch) = (vec![0x55; ROOM], bench.endless());
    stream.write_all(&buf[..depth * BLOCK])?;
    let mut answered = 0;
    while watch.next(0).is_some() {
        let got = stream.read(&mut buf)?;
        if got == 0 {
            break;
        }
        answered += got;
        stream.write_all(&buf[..got])?;
    }
    let run = watch.stop();
    stream.shutdown(Shutdown::Write)?;
    while stream.read(&mut buf)? > 0 {}
    let requests = (answered as f64 / BLOCK as f64).max(1.0);
    Ok(Run { us: run.us / requests, cpu_us: run.cpu_us / requests, ..run })
}

/// epoll, receive, send: what the daemon does, without the requests.
fn epoll(mut stream: UnixStream, spin: Duration) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    // SAFETY: a plain system call; the descriptor is ours alone once it is known to be one.
    let poll = match unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) } {
        fd if fd < 0 => return Err(io::Error::last_os_error()),
        fd => unsafe { OwnedFd::from_raw_fd(fd) },
    };
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: `event` lives through the call.
    if unsafe { libc::epoll_ctl(poll.as_raw_fd(), libc::EPOLL_CTL_ADD, stream.as_raw_fd(), &mut event) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut buf = vec![0; ROOM];
    loop {
        let begin = Instant::now();
        loop {
            let wait = if spin.is_zero() || begin.elapsed() > spin { -1 } else { 0 };
            // SAFETY: `event` is room for one event, and lives through the call.
            match unsafe { libc::epoll_wait(poll.as_raw_fd(), &mut event, 1, wait) } {
                1 => break,
                n if n < 0 => return Err(io::Error::last_os_error()),
                _ => {}
            }
        }
        let got = stream.read(&mut buf)?;
        if got == 0 {
            return Ok(());
        }
        // All in flight fits into the socket's buffer, so that this never has to wait.
        stream.write_all(&buf[..got])?;
    }
}

/// Sends and the next receive go to the kernel together: it is entered once per turn.
fn ring(stream: UnixStream, spin: Duration) -> io::Result<()> {
    let mut ring = IoUring::builder().setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag().build(4)?;
    ring.submitter().register_files(&[stream.as_raw_fd()])?;
    let (mut receiving, mut sending) = (vec![0u8; ROOM], vec![0u8; ROOM]);
    let mut send = 0;
    loop {
        let receive = Recv::new(Fixed(0), receiving.as_mut_ptr(), ROOM as u32).build().user_data(1);
        let answer = Send::new(Fixed(0), sending.as_ptr(), send as u32).flags(libc::MSG_WAITALL).build();
        let mut queue = ring.submission();
        // SAFETY: both buffers are left alone until both results are there.
        unsafe {
            if send > 0 {
                queue.push(&answer).expect("the ring has room for two");
            }
            queue.push(&receive).expect("the ring has room for two");
        }
        drop(queue);
        let (mut left, mut got, mut sent) = (if send > 0 { 2 } else { 1 }, 0, send as i32);
        while left > 0 {
            submit(&mut ring, left, spin);
            for done in ring.completion() {
                left -= 1;
                if done.user_data() == 1 {
                    got = done.result();
                } else {
                    sent = done.result();
                }
            }
        }
        if sent != send as i32 {
            return Err(io::Error::other("not all was sent"));
        }
        if got <= 0 {
            return if got < 0 { Err(io::Error::from_raw_os_error(-got)) } else { Ok(()) };
        }
        std::mem::swap(&mut receiving, &mut sending);
        send = got as usize;
    }
}

/// Hands over what is queued and waits for `count` results, for `spin` without sleeping. The kernel may
/// still use our memory if it cannot be entered, so that there is no way to return from that.
fn submit(ring: &mut IoUring, count: usize, spin: Duration) {
    let checked = |entered: io::Result<usize>| match entered {
        Err(e) if e.kind() != io::ErrorKind::Interrupted => std::process::abort(),
        _ => {}
    };
    if !spin.is_zero() {
        checked(ring.submit());
        let begin = Instant::now();
        while ring.completion().len() < count && begin.elapsed() < spin {
            // The flag says in shared memory that a result waits for us to enter.
            if ring.submission().taskrun() {
                checked(ring.submitter().submit_and_wait(0));
            }
            std::hint::spin_loop();
        }
    }
    if ring.completion().len() < count {
        checked(ring.submit_and_wait(count));
    }
}

fn tokio(stream: UnixStream) -> io::Result<()> {
    super::tokio::start(async {
        let (stream, mut buf) = (tokio_uring::net::UnixStream::from_std(stream), vec![0; ROOM]);
        loop {
            let (got, filled) = stream.read(buf).await;
            let got = got?;
            if got == 0 {
                return Ok(());
            }
            let (sent, slice) = stream.write_all(filled.slice(..got)).await;
            sent?;
            buf = slice.into_inner();
        }
    })
}

pub fn epoll_one(bench: &Bench) -> io::Result<Run> {
    with_client(bench, 1, |stream| epoll(stream, Duration::ZERO))
}

pub fn epoll_many(bench: &Bench) -> io::Result<Run> {
    with_client(bench, DEPTH, |stream| epoll(stream, Duration::ZERO))
}

pub fn epoll_one_spinning(bench: &Bench) -> io::Result<Run> {
    with_client(bench, 1, |stream| epoll(stream, SPIN))
}

pub fn epoll_many_spinning(bench: &Bench) -> io::Result<Run> {
    with_client(bench, DEPTH, |stream| epoll(stream, SPIN))
}

pub fn ring_one(bench: &Bench) -> io::Result<Run> {
    with_client(bench, 1, |stream| ring(stream, Duration::ZERO))
}

pub fn ring_many(bench: &Bench) -> io::Result<Run> {
    with_client(bench, DEPTH, |stream| ring(stream, Duration::ZERO))
}

pub fn ring_one_spinning(bench: &Bench) -> io::Result<Run> {
    with_client(bench, 1, |stream| ring(stream, SPIN))
}

pub fn ring_many_spinning(bench: &Bench) -> io::Result<Run> {
    with_client(bench, DEPTH, |stream| ring(stream, SPIN))
}

pub fn tokio_one(bench: &Bench) -> io::Result<Run> {
    with_client(bench, 1, tokio)
}

pub fn tokio_many(bench: &Bench) -> io::Result<Run> {
    with_client(bench, DEPTH, tokio)
}
