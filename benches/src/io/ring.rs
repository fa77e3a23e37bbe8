//! The file through io_uring, set up as favourably as the kernel allows: a registered file, one
//! issuer, completions only when they are asked for.

use super::bench::{place, records, Aligned, Bench, Run, BLOCK, DEPTH, MIB};
use io_uring::opcode::{Fsync, Read, Write, Writev};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::IoUring;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How long a ring whose kernel thread takes the requests is watched before the wait is a sleep.
const WATCHED: Duration = Duration::from_micros(50);
const FILE: Fixed = Fixed(0);

/// A ring on one registered file.
struct Ring {
    ring: IoUring,
    /// A kernel thread takes the requests: nothing is entered while it is awake.
    polled: bool,
    failed: Option<io::Error>,
}

impl Ring {
    fn new(file: &File, polled: bool) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer();
        if polled {
            builder.setup_sqpoll(1000);
        } else {
            builder.setup_coop_taskrun().setup_defer_taskrun();
        }
        let ring = builder.build(2 * DEPTH as u32)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        Ok(Self { ring, polled, failed: None })
    }

    /// Queues a request whose result is to be `expected`.
    ///
    /// # Safety
    /// What the entry points to stays untouched until `wait` has seen its result.
    unsafe fn push(&mut self, entry: Entry, expected: usize) {
        let entry = entry.user_data(expected as u64);
        // SAFETY: passed on to the caller.
        unsafe { self.ring.submission().push(&entry) }.expect("the ring has room for all that is in flight");
    }

    /// Hands over what is queued and waits for `count` results; takes all that are there. The kernel
    /// may still use our memory if it cannot be entered, so that there is no way to return from that.
    fn wait(&mut self, count: usize) -> usize {
        if self.polled {
            let begin = Instant::now();
            let mut sent = self.ring.submit();
            while sent.is_ok() && self.ring.completion().len() < count && begin.elapsed() < WATCHED {
                std::hint::spin_loop();
                sent = Ok(0);
            }
        }
        while self.ring.completion().len() < count {
            match self.ring.submit_and_wait(count) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => std::process::abort(),
                _ => {}
            }
        }
        let mut seen = 0;
        for done in self.ring.completion() {
            seen += 1;
            if done.result() < 0 {
                self.failed = Some(io::Error::from_raw_os_error(-done.result()));
            } else if done.result() as u64 != done.user_data() {
                self.failed = Some(io::Error::other("a short request"));
            }
        }
        seen
    }

    /// Hands over what is queued and takes all `count` results.
    fn all(&mut self, mut count: usize) -> io::Result<()> {
        while count > 0 {
            count -= self.wait(count).min(count);
        }
        self.failed.take().map_or(Ok(()), Err)
    }
}

fn writev(bufs: &[IoSlice<'_>], at: u64) -> Entry {
    Writev::new(FILE, bufs.as_ptr().cast(), bufs.len() as u32).offset(at).build()
}

/// A header and a block each, `depth` at a time.
fn append(bench: &Bench, depth: usize, polled: bool) -> io::Result<Run> {
    let (record, mut ring) = (records(1), Ring::new(&bench.file, polled)?);
    bench.turns(depth * 2 * BLOCK, depth, |at| {
        for i in 0..depth {
            // SAFETY: `record` is never changed, and there until `all` has returned.
            unsafe { ring.push(writev(&record, at + (i * 2 * BLOCK) as u64), 2 * BLOCK) };
        }
        ring.all(depth)
    })
}

pub fn append_one(bench: &Bench) -> io::Result<Run> {
    append(bench, 1, false)
}

pub fn append_one_polled(bench: &Bench) -> io::Result<Run> {
    append(bench, 1, true)
}

pub fn append_many(bench: &Bench) -> io::Result<Run> {
    append(bench, DEPTH, false)
}

pub fn append_many_polled(bench: &Bench) -> io::Result<Run> {
    append(bench, DEPTH, true)
}

/// A header and a block, and a sync that the kernel starts when they are written.
pub fn flush(bench: &Bench) -> io::Result<Run> {
    let (record, mut ring) = (records(1), Ring::new(&bench.file, false)?);
    bench.turns(2 * BLOCK, 1, |at| {
        let sync = Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build();
        // SAFETY: `record` is never changed, and there until `all` has returned; a sync points to nothing.
        unsafe {
            ring.push(writev(&record, at).flags(Flags::IO_LINK), 2 * BLOCK);
            ring.push(sync, 0);
        }
        ring.all(2)
    })
}

/// Scattered blocks from the page cache, `depth` at a time.
fn read(bench: &Bench, depth: usize, polled: bool) -> io::Result<Run> {
    let mut blocks = vec![0u8; depth * BLOCK];
    let (mut ring, mut watch) = (Ring::new(&bench.file, polled)?, bench.endless());
    while let Some(turn) = watch.next(depth) {
        for (i, block) in blocks.chunks_exact_mut(BLOCK).enumerate() {
            let at = place(turn * depth as u64 + i as u64);
            let entry = Read::new(FILE, block.as_mut_ptr(), BLOCK as u32).offset(at).build();
            // SAFETY: the block is left alone until `all` has seen the result.
            unsafe { ring.push(entry, BLOCK) };
        }
        ring.all(depth)?;
    }
    Ok(watch.stop())
}

pub fn read_one(bench: &Bench) -> io::Result<Run> {
    read(bench, 1, false)
}

pub fn read_one_polled(bench: &Bench) -> io::Result<Run> {
    read(bench, 1, true)
}

pub fn read_many(bench: &Bench) -> io::Result<Run> {
    read(bench, DEPTH, false)
}

pub fn read_many_polled(bench: &Bench) -> io::Result<Run> {
    read(bench, DEPTH, true)
}

/// Long writes into the page cache.
pub fn long(bench: &Bench) -> io::Result<Run> {
    let (data, mut ring) = (vec![0x33u8; MIB], Ring::new(&bench.file, false)?);
    bench.turns(MIB, 1, |at| {
        // SAFETY: `data` is never changed, and there until `all` has returned.
        unsafe { ring.push(Write::new(FILE, data.as_ptr(), MIB as u32).offset(at).build(), MIB) };
        ring.all(1)
    })
}

/// Long writes around the page cache, four in flight, a sync at the end.
pub fn long_direct(bench: &Bench) -> io::Result<Run> {
    const FLYING: usize = 4;
    let data = Aligned::new(MIB);
    let (mut ring, mut watch, mut flying) = (Ring::new(&bench.direct, false)?, bench.watch(MIB), 0);
    while let Some(at) = watch.next(1) {
        let entry = Write::new(FILE, data.bytes().as_ptr(), MIB as u32).offset(at).build();
        // SAFETY: `data` is never changed, and there until `all` has returned.
        unsafe { ring.push(entry, MIB) };
        flying += 1;
        if flying == FLYING {
            flying -= ring.wait(1);
        }
    }
    ring.all(flying)?;
    bench.direct.sync_data()?;
    Ok(watch.stop())
}
