//! The file by system calls, as the store does it (`blockstore/src/disk/os.rs`).

use super::bench::{place, records, Aligned, Bench, Run, BLOCK, DEPTH, MIB};
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;

fn check(done: isize, expected: usize) -> io::Result<()> {
    match usize::try_from(done) {
        Ok(done) if done == expected => Ok(()),
        Ok(_) => Err(io::Error::other("a short write")),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

fn pwritev(file: &File, bufs: &[IoSlice<'_>], at: u64) -> io::Result<()> {
    let total = bufs.iter().map(|buf| buf.len()).sum();
    // SAFETY: `bufs` is a live array of what std promises to be iovecs; the kernel only reads them.
    let done = unsafe { libc::pwritev(file.as_raw_fd(), bufs.as_ptr().cast(), bufs.len() as i32, at as libc::off_t) };
    check(done, total)
}

fn start_writeback(file: &File, at: u64, len: usize) -> io::Result<()> {
    // SAFETY: a plain system call on an open descriptor; it touches no memory of ours.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), at as i64, len as i64, libc::SYNC_FILE_RANGE_WRITE) };
    check(done as isize, 0)
}

/// A header and a block, one at a time.
pub fn append(bench: &Bench) -> io::Result<Run> {
    let record = records(1);
    bench.turns(2 * BLOCK, 1, |at| pwritev(&bench.file, &record, at))
}

/// As many, each with its header, in one call.
pub fn append_together(bench: &Bench) -> io::Result<Run> {
    let batch = records(DEPTH);
    bench.turns(DEPTH * 2 * BLOCK, DEPTH, |at| pwritev(&bench.file, &batch, at))
}

/// As many behind one header, which is what the log's batches are.
pub fn append_batch(bench: &Bench) -> io::Result<Run> {
    let batch = records(DEPTH);
    bench.turns((DEPTH + 1) * BLOCK, DEPTH, |at| pwritev(&bench.file, &batch[..DEPTH + 1], at))
}

/// A header and a block, made durable by the thread that wrote them.
pub fn flush(bench: &Bench) -> io::Result<Run> {
    let record = records(1);
    bench.turns(2 * BLOCK, 1, |at| {
        pwritev(&bench.file, &record, at)?;
        bench.file.sync_data()
    })
}

/// The same with write-back started before, as for a client that has flushed often.
pub fn flush_started(bench: &Bench) -> io::Result<Run> {
    let record = records(1);
    bench.turns(2 * BLOCK, 1, |at| {
        pwritev(&bench.file, &record, at)?;
        start_writeback(&bench.file, at, 2 * BLOCK)?;
        bench.file.sync_data()
    })
}

/// The same with a worker thread for the sync, as when there are other clients.
pub fn flush_worker(bench: &Bench) -> io::Result<Run> {
    let (record, gone) = (records(1), || io::Error::other("the other thread has ended"));
    let (ask, asked) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || asked.iter().try_for_each(|()| tell.send(bench.file.sync_data())));
        let run = bench.turns(2 * BLOCK, 1, |at| {
            pwritev(&bench.file, &record, at)?;
            ask.send(()).map_err(|_| gone())?;
            told.recv().map_err(|_| gone())?
        });
        drop(ask);
        run
    })
}

/// Scattered blocks from the page cache.
pub fn read(bench: &Bench) -> io::Result<Run> {
    let (mut block, mut watch) = ([0; BLOCK], bench.endless());
    while let Some(turn) = watch.next(1) {
        bench.file.read_exact_at(&mut block, place(turn))?;
    }
    Ok(watch.stop())
}

/// Long writes into the page cache.
pub fn long(bench: &Bench) -> io::Result<Run> {
    let data = vec![0x33; MIB];
    bench.turns(MIB, 1, |at| pwritev(&bench.file, &[IoSlice::new(&data)], at))
}

/// Long writes that reach the disk: through the page cache, each sent on at once, a sync at the end.
pub fn long_started(bench: &Bench) -> io::Result<Run> {
    let (data, mut watch) = (vec![0x33; MIB], bench.watch(MIB));
    while let Some(at) = watch.next(1) {
        pwritev(&bench.file, &[IoSlice::new(&data)], at)?;
        start_writeback(&bench.file, at, MIB)?;
    }
    bench.file.sync_data()?;
    Ok(watch.stop())
}

/// Long writes around the page cache, one at a time.
pub fn long_direct(bench: &Bench) -> io::Result<Run> {
    let (data, mut watch) = (Aligned::new(MIB), bench.watch(MIB));
    while let Some(at) = watch.next(1) {
        pwritev(&bench.direct, &[IoSlice::new(data.bytes())], at)?;
    }
    bench.direct.sync_data()?;
    Ok(watch.stop())
}
