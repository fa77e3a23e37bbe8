//! What every way of reaching the disk is measured with: the file, the buffers, the clock.
//!
//! Promises: a write never covers the same bytes twice in one measurement, so that every way finds
//! pages in the same state; each measurement has a thread to itself, whose kernel workers end with it.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Size of the file, bytes.
pub const FILE: u64 = 1 << 30;
/// A block, and the header in front of it.
pub const BLOCK: usize = 4096;
pub const MIB: usize = 1 << 20;
/// Requests at a time where there are several.
pub const DEPTH: usize = 32;

/// The files, and how long one measurement takes.
pub struct Bench {
    /// Written before, and in the page cache.
    pub file: File,
    /// Another of the same size, written around the page cache.
    pub direct: File,
    pub slot: Duration,
}

/// What one measurement found.
pub struct Run {
    /// Microseconds of a request.
    pub us: f64,
    /// Processor time of a request, of all threads of the process, the kernel's workers among them.
    pub cpu_us: f64,
    /// Threads that the kernel had made to do what it would not do at once.
    pub workers: usize,
}

impl Bench {
    /// Makes both files in `folder`, which the caller removes.
    pub fn new(folder: &Path, slot: Duration) -> io::Result<Self> {
        let make = |name: &str| -> io::Result<File> {
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(folder.join(name))?;
            let zeros = vec![0; MIB];
            (0..FILE).step_by(MIB).try_for_each(|at| file.write_all_at(&zeros, at))?;
            file.sync_all()?;
            Ok(file)
        };
        let file = make("warm")?;
        drop(make("direct")?);
        let mut options = OpenOptions::new();
        let direct = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(folder.join("direct"))?;
        // SAFETY: a plain system call on an open descriptor; it touches no memory of ours.
        unsafe { libc::posix_fadvise(direct.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        Ok(Self { file, direct, slot })
    }

    /// What the files lie in: what io_uring does at once depends on it.
    pub fn file_system(&self) -> io::Result<String> {
        // SAFETY: a plain structure of integers, for which zeros are valid; the call only fills it.
        let kind = unsafe {
            let mut about: libc::statfs = std::mem::zeroed();
            if libc::fstatfs(self.file.as_raw_fd(), &mut about) < 0 {
                return Err(io::Error::last_os_error());
            }
            about.f_type
        };
        Ok(match kind {
            libc::EXT4_SUPER_MAGIC => "ext4".into(),
            libc::XFS_SUPER_MAGIC => "xfs".into(),
            libc::BTRFS_SUPER_MAGIC => "btrfs".into(),
            libc::TMPFS_MAGIC => "tmpfs".into(),
            other => format!("{other:#x}"),
        })
    }

    /// Runs `act` with the place of one request after another, `bytes` apart, `requests` per call.
    pub fn turns(&self, bytes: usize, requests: usize, mut act: impl FnMut(u64) -> io::Result<()>) -> io::Result<Run> {
        let mut watch = self.watch(bytes);
        while let Some(at) = watch.next(requests) {
            act(at)?;
        }
        Ok(watch.stop())
    }

    /// A clock for writes of so many bytes.
    pub fn watch(&self, bytes: usize) -> Watch {
        let most = FILE / bytes as u64;
        Watch {
            begin: Instant::now(),
            cpu: cpu_us(),
            slot: self.slot,
            bytes: bytes as u64,
            most,
            turns: 0,
            requests: 0,
        }
    }

    /// A clock for what may be repeated without an end: its places are 0, 1, 2, ...
    pub fn endless(&self) -> Watch {
        Watch { most: u64::MAX, ..self.watch(1) }
    }
}

/// Counts requests until the time is over or the file is full.
pub struct Watch {
    begin: Instant,
    cpu: f64,
    slot: Duration,
    bytes: u64,
    most: u64,
    turns: u64,
    requests: u64,
}

impl Watch {
    /// Where the next turn of so many requests writes; asks the time only now and then.
    pub fn next(&mut self, requests: usize) -> Option<u64> {
        if self.turns == self.most || self.turns % 32 == 31 && self.begin.elapsed() > self.slot {
            return None;
        }
        self.turns += 1;
        self.requests += requests as u64;
        Some((self.turns - 1).wrapping_mul(self.bytes))
    }

    /// The figures of the requests counted.
    pub fn stop(self) -> Run {
        let (time, cpu) = (self.begin.elapsed().as_secs_f64() * 1e6, cpu_us() - self.cpu);
        let requests = self.requests.max(1) as f64;
        Run { us: time / requests, cpu_us: cpu / requests, workers: workers() }
    }
}

/// Processor time that other processes take, to say how quiet the machine was.
pub struct Others(f64, Instant);

impl Others {
    pub fn start() -> Self {
        Self(busy_us() - cpu_us(), Instant::now())
    }

    /// How many cores they kept busy on average.
    pub fn cores(&self) -> f64 {
        (busy_us() - cpu_us() - self.0) / (self.1.elapsed().as_secs_f64() * 1e6)
    }
}

/// Microseconds that all cores together have not been idle (proc_stat(5)).
fn busy_us() -> f64 {
    const TICK_US: f64 = 1e4;
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = text.lines().next().unwrap_or_default().split_whitespace().skip(1).map(|n| n.parse().unwrap_or(0.0));
    // user, nice, system, idle, iowait, irq, softirq
    all.take(7).enumerate().filter(|(i, _)| !(3..5).contains(i)).map(|(_, ticks): (_, f64)| ticks * TICK_US).sum()
}

/// Microseconds of processor time that the process has taken.
fn cpu_us() -> f64 {
    // SAFETY: a plain structure of integers, for which zeros are valid; the call only fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let us = |time: libc::timeval| time.tv_sec as f64 * 1e6 + time.tv_usec as f64;
    us(usage.ru_utime) + us(usage.ru_stime)
}

/// Threads of the process that io_uring has made to block in its stead.
fn workers() -> usize {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let name = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
    threads.flatten().map(name).filter(|n| n.starts_with("iou-wrk")).count()
}

/// Where the block lies that is read as number `count`: all over the file, the same for every way.
pub fn place(count: u64) -> u64 {
    const BITS: u32 = FILE.trailing_zeros() - BLOCK.trailing_zeros();
    (count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - BITS)) * BLOCK as u64
}

/// Memory that may be written around the page cache: aligned to a page.
pub struct Aligned {
    memory: Vec<u8>,
    skip: usize,
    len: usize,
}

impl Aligned {
    pub fn new(len: usize) -> Self {
        let memory = vec![0x5a; len + BLOCK];
        let skip = memory.as_ptr().align_offset(BLOCK);
        Self { memory, skip, len }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.skip..self.skip + self.len]
    }
}

/// `records` of a header and a block each, as the vectored calls want them.
pub fn records(records: usize) -> Vec<IoSlice<'static>> {
    static HEADER: [u8; BLOCK] = [0x11; BLOCK];
    static DATA: [u8; BLOCK] = [0x22; BLOCK];
    (0..records).flat_map(|_| [IoSlice::new(&HEADER), IoSlice::new(&DATA)]).collect()
}
