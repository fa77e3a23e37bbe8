//! Measuring, on a pool that `make` has made, what must not grow with the size of a disk.

use crate::make::VOLUME_BYTES;
use blockstore::disk::{Disk, OsDisk};
use blockstore::{Cleaning, FlushJob, Pool, PoolOptions, Result, VolumeId};
use nbd_server::SystemClock;
use serde_json::{json, Value};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TIMES: usize = 200;
const REGION: u64 = 256 << 10;

fn open(folder: &Path) -> Result<(Pool, f64)> {
    let begin = Instant::now();
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new(folder));
    let (pool, _) = Pool::open(disk, Arc::new(SystemClock), PoolOptions::default())?;
    Ok((pool, begin.elapsed().as_secs_f64() * 1e3))
}

/// Milliseconds of a change and of the sync that makes it durable: median, 99th percentile, worst.
#[derive(Default)]
struct Times {
    change: Vec<f64>,
    whole: Vec<f64>,
}

impl Times {
    fn time<T>(&mut self, pool: &mut Pool, act: impl FnOnce(&mut Pool) -> Result<(T, FlushJob)>) -> Result<T> {
        let begin = Instant::now();
        let (made, job) = act(pool)?;
        self.change.push(begin.elapsed().as_secs_f64() * 1e3);
        pool.finish(job)?;
        self.whole.push(begin.elapsed().as_secs_f64() * 1e3);
        Ok(made)
    }

    fn figures(mut self) -> Value {
        let spread = |v: &mut Vec<f64>| {
            v.sort_by(f64::total_cmp);
            let at = |p: usize| v.get(v.len() * p / 100).or(v.last()).copied();
            json!({"p50_ms": at(50), "p99_ms": at(99), "max_ms": v.last()})
        };
        json!({"pause": spread(&mut self.change), "durable": spread(&mut self.whole)})
    }
}

/// A generator of places: reproducible, and good enough to be scattered.
fn places(count: usize, span: u64) -> impl Iterator<Item = u64> {
    (1..=count as u64).map(move |i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (span / 4096) * 4096)
}

fn write_some(pool: &mut Pool, volume: VolumeId, count: usize) -> Result<()> {
    let data = [0x77; 4096];
    places(count, VOLUME_BYTES / 4).try_for_each(|at| pool.write(volume, at, &data))
}

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// Measures everything; prints nothing.
pub fn measure(folder: &Path) -> Result<Value> {
    let (mut pool, first_open) = open(folder)?;
    let big = pool.volume_id("big")?;
    let mapped = pool.stats().live;

    let before = resident();
    let begin = Instant::now();
    pool.volume_usage(big)?;
    let walk = begin.elapsed().as_secs_f64();
    let cached = pool.stats().map_cache;

    // A tail as long as it gets before an anchor is due, then no goodbye.
    write_some(&mut pool, big, 8_000)?;
    pool.flush(big)?;
    drop(pool);
    let (mut pool, open_after_kill) = open(folder)?;
    pool.anchor(Cleaning::Busy)?;

    let mut anchors = Vec::new();
    let (mut checkpoints, mut restores, mut forks, mut deletes) =
        (Times::default(), Times::default(), Times::default(), Times::default());
    let mut last = None;
    for _ in 0..TIMES {
        write_some(&mut pool, big, 64)?;
        last = Some(checkpoints.time(&mut pool, |pool| pool.create_checkpoint(big, ""))?.name);
    }
    let last = last.expect("there were several");
    for turn in 0..TIMES {
        write_some(&mut pool, big, 64)?;
        restores.time(&mut pool, |pool| pool.restore(big, last))?;
        let name = format!("fork-{turn}");
        forks.time(&mut pool, |pool| pool.fork(big, (turn % 2 == 0).then_some(last), &name))?;
    }
    for info in pool.checkpoints(big)?.iter().filter(|c| c.name != last).take(TIMES) {
        deletes.time(&mut pool, |pool| pool.delete_checkpoint(big, info.name).map(|job| ((), job)))?;
    }
    while pool.reap(4096)? {}

    let after_gib = checkpoints_after_a_gib(&mut pool, big)?;

    // The part of an anchor that the clients wait for, with a map that has changed everywhere.
    for count in [1_000, 16_000] {
        write_some(&mut pool, big, count)?;
        let changed = pool.stats().changed_nodes;
        let mut pause: f64 = 0.0;
        let mut goes_on = true;
        while goes_on {
            let begin = Instant::now();
            goes_on = pool.write_map_ahead()?;
            pause = pause.max(begin.elapsed().as_secs_f64() * 1e3);
        }
        let begin = Instant::now();
        let job = pool.begin_anchor(Cleaning::Busy)?;
        pause = pause.max(begin.elapsed().as_secs_f64() * 1e3);
        let outcome = job.run();
        pool.anchored(job, outcome)?;
        anchors.push(json!({"changed_nodes": changed, "pause_ms": pause}));
    }

    let (regions, bytes) = bytes_per_region(&mut pool, big)?;
    let begin = Instant::now();
    pool.trim(big, 0, VOLUME_BYTES)?;
    let trim = begin.elapsed().as_secs_f64() * 1e3;
    pool.flush(big)?;
    Ok(json!({
        "mapped_bytes": mapped,
        "open_ms": first_open,
        "open_after_kill_ms": open_after_kill,
        "checkpoint": checkpoints.figures(),
        "checkpoint_after_gib": after_gib.figures(),
        "restore": restores.figures(),
        "fork": forks.figures(),
        "delete_checkpoint": deletes.figures(),
        "anchor": anchors,
        "trim_2_tib_ms": trim,
        "regions": regions,
        "bytes_per_region": bytes,
        "map_walk_s": walk,
        "map_cache_bytes": cached,
        "resident_before_walk_bytes": before,
        "resident_bytes": resident(),
    }))
}

/// Checkpoints right behind 1 GiB that was written evenly in the second before, handed to the disk and cleaned up
/// behind as the daemon does.
fn checkpoints_after_a_gib(pool: &mut Pool, volume: VolumeId) -> Result<Times> {
    const MIB: u64 = 1 << 20;
    let (mut times, data) = (Times::default(), vec![0x44; MIB as usize]);
    for _ in 0..20 {
        let begin = Instant::now();
        for mib in 0..1024 {
            let due = Duration::from_micros(mib * 1_000_000 / 1024);
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
            pool.write(volume, mib * MIB, &data)?;
            if let Some(range) = pool.take_writeback(volume) {
                range.start();
            }
            if let Some(job) = pool.settle_job(volume) {
                let outcome = job.run();
                pool.settled(&job, outcome)?;
            }
            if pool.wants_anchor() {
                pool.anchor(Cleaning::Busy)?;
            }
            if let Some(job) = pool.clean_job() {
                let outcome = job.run();
                pool.cleaned(job, outcome)?;
            }
        }
        times.time(pool, |pool| pool.create_checkpoint(volume, ""))?;
        // What the checkpoint holds would fill the disk.
        let oldest = pool.checkpoints(volume)?.last().map(|c| c.name);
        if let Some(name) = oldest {
            let job = pool.delete_checkpoint(volume, name)?;
            pool.finish(job)?;
            while pool.reap(4096)? {}
        }
    }
    Ok(times)
}

/// Map bytes that a checkpoint costs per 256 KiB region written since the one before.
fn bytes_per_region(pool: &mut Pool, volume: VolumeId) -> Result<(u64, f64)> {
    const REGIONS: u64 = 4096;
    let (_, job) = pool.create_checkpoint(volume, "")?;
    pool.finish(job)?;
    pool.anchor(Cleaning::Busy)?;
    let map_bytes = |pool: &Pool| pool.stats().map_stored;
    let before = map_bytes(pool);
    let data = [0x33; 4096];
    // Regions far apart share nothing above their leaves: the worst case.
    for i in 0..REGIONS {
        pool.write(volume, i * (VOLUME_BYTES / 4 / REGIONS) / REGION * REGION, &data)?;
    }
    let (_, job) = pool.create_checkpoint(volume, "")?;
    pool.finish(job)?;
    pool.anchor(Cleaning::Busy)?;
    Ok((REGIONS, (map_bytes(pool) - before) as f64 / REGIONS as f64))
}
