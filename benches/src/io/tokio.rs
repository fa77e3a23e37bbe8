//! The file through tokio-uring: a current-thread runtime, owned buffers that come back with the result.

use super::bench::{place, Bench, Run, BLOCK, DEPTH, MIB};
use io_uring::IoUring;
use std::future::{poll_fn, Future};
use std::io;
use std::pin::Pin;
use std::task::Poll;
use tokio_uring::fs::File;
use tokio_uring::BufResult;

/// Runs `future` in a runtime, which panics where there is no io_uring: that is an error here.
pub fn start<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    IoUring::new(1)?;
    tokio_uring::start(future)
}

/// The bench's file as the runtime wants it.
fn file(bench: &Bench) -> io::Result<File> {
    bench.file.try_clone().map(File::from_std)
}

/// The buffer of a request that moved `expected` bytes.
fn whole(result: BufResult<usize, Vec<u8>>, expected: usize) -> io::Result<Vec<u8>> {
    match result {
        (Ok(done), buf) if done == expected => Ok(buf),
        (Ok(_), _) => Err(io::Error::other("a short request")),
        (Err(e), _) => Err(e),
    }
}

/// The results of futures that run together.
async fn joined<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut open: Vec<_> = futures.map(|future| Some(Box::pin(future))).collect();
    let mut done: Vec<Option<T>> = open.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, out) in open.iter_mut().zip(&mut done) {
            let Some(running) = future else { continue };
            if let Poll::Ready(result) = Pin::as_mut(running).poll(context) {
                (*future, *out) = (None, Some(result));
            }
        }
        if open.iter().any(Option::is_some) {
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Writes of `bytes` in sequence, one at a time.
fn write(bench: &Bench, bytes: usize, sync: bool) -> io::Result<Run> {
    start(async {
        let (file, mut buf) = (file(bench)?, vec![0x44; bytes]);
        let mut watch = bench.watch(bytes);
        while let Some(at) = watch.next(1) {
            buf = whole(file.write_at(buf, at).submit().await, bytes)?;
            if sync {
                file.sync_data().await?;
            }
        }
        Ok(watch.stop())
    })
}

pub fn append_one(bench: &Bench) -> io::Result<Run> {
    write(bench, 2 * BLOCK, false)
}

pub fn flush(bench: &Bench) -> io::Result<Run> {
    write(bench, 2 * BLOCK, true)
}

pub fn long(bench: &Bench) -> io::Result<Run> {
    write(bench, MIB, false)
}

/// A header and a block each, many at a time.
pub fn append_many(bench: &Bench) -> io::Result<Run> {
    const EACH: usize = 2 * BLOCK;
    start(async {
        let (file, mut bufs) = (file(bench)?, vec![vec![0x44; EACH]; DEPTH]);
        let mut watch = bench.watch(DEPTH * EACH);
        while let Some(at) = watch.next(DEPTH) {
            let places = (at..).step_by(EACH);
            let writes = bufs.into_iter().zip(places).map(|(buf, at)| file.write_at(buf, at).submit());
            bufs = joined(writes).await.into_iter().map(|r| whole(r, EACH)).collect::<io::Result<_>>()?;
        }
        Ok(watch.stop())
    })
}

/// Scattered blocks from the page cache, `depth` at a time.
fn read(bench: &Bench, depth: usize) -> io::Result<Run> {
    start(async {
        let (file, mut bufs) = (file(bench)?, vec![vec![0; BLOCK]; depth]);
        let mut watch = bench.endless();
        while let Some(turn) = watch.next(depth) {
            let places = (turn * depth as u64..).map(place);
            let reads = bufs.into_iter().zip(places).map(|(buf, at)| file.read_at(buf, at));
            bufs = joined(reads).await.into_iter().map(|r| whole(r, BLOCK)).collect::<io::Result<_>>()?;
        }
        Ok(watch.stop())
    })
}

pub fn read_one(bench: &Bench) -> io::Result<Run> {
    read(bench, 1)
}

pub fn read_many(bench: &Bench) -> io::Result<Run> {
    read(bench, DEPTH)
}
