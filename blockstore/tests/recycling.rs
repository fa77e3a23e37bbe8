//! Files of cleaned segments serve again as prepared ones. Whatever fails on the way, what lived in
//! them is still there.

use blockstore::testing::{Fault, SimClock, SimDisk};
use blockstore::{prepare_segment, Cleaning, Pool, PoolOptions, Result, VolumeId};
use std::sync::Arc;

const BLOCK: usize = 4096;
const SIZE: u64 = 64 << 20;
const LIVE: std::ops::Range<u64> = 60..64;

fn open(disk: &SimDisk) -> Pool {
    Pool::open(disk.handle(), Arc::new(SimClock::default()), PoolOptions::default()).unwrap().0
}

/// A pool in which one segment is worth packing and one is dead, ready to be cleaned.
fn with_dead_space() -> (SimDisk, Pool, VolumeId) {
    let disk = SimDisk::new();
    Pool::create(&disk.handle(), &SimClock::default(), [7; 16]).unwrap();
    let mut pool = open(&disk);
    let (id, job) = pool.create_volume("disk", SIZE).unwrap();
    pool.finish(job).unwrap();
    for at in 0..LIVE.end {
        pool.write(id, at * BLOCK as u64, &[1; BLOCK]).unwrap();
    }
    pool.seal_log(id).unwrap();
    pool.write(id, SIZE / 2, &[2; 64 * BLOCK]).unwrap();
    pool.seal_log(id).unwrap();
    pool.trim(id, 0, LIVE.start * BLOCK as u64).unwrap();
    pool.trim(id, SIZE / 2, 64 * BLOCK as u64).unwrap();
    pool.anchor(Cleaning::Thorough).unwrap();
    pool.anchor(Cleaning::Thorough).unwrap();
    (disk, pool, id)
}

fn clean(pool: &mut Pool) -> Result<usize> {
    let mut cleaned = 0;
    while let Some(job) = pool.clean_job() {
        let outcome = job.run();
        pool.cleaned(job, outcome)?;
        cleaned += 1;
    }
    Ok(cleaned)
}

/// Begins a new segment with one block of `byte`, and flushes it.
fn begin_segment(pool: &mut Pool, id: VolumeId, block: u64, byte: u8) -> Result<()> {
    pool.seal_log(id)?;
    pool.write(id, block * BLOCK as u64, &[byte; BLOCK])?;
    pool.flush(id)
}

fn content(pool: &mut Pool, id: VolumeId, block: u64) -> [u8; BLOCK] {
    let mut buf = [0; BLOCK];
    pool.read(pool.view(id, None).unwrap(), block * BLOCK as u64, &mut buf).unwrap();
    buf
}

fn segment_files(disk: &SimDisk) -> usize {
    disk.names().iter().filter(|name| name.starts_with("seg-")).count()
}

#[test]
fn the_log_goes_on_in_the_files_of_packed_and_dead_segments() {
    let (disk, mut pool, id) = with_dead_space();
    let before = segment_files(&disk);
    assert_eq!(clean(&mut pool).unwrap(), 2);
    // The packed segment has a new file, and both old ones are spares.
    assert_eq!(segment_files(&disk), before + 1);
    begin_segment(&mut pool, id, 100, 3).unwrap();
    begin_segment(&mut pool, id, 101, 4).unwrap();
    assert_eq!(segment_files(&disk), before + 1, "a new file although there were spares");
    for disk in [disk.after_kill(), disk.after_power_loss(&mut || false)] {
        let mut pool = open(&disk);
        LIVE.for_each(|block| assert_eq!(content(&mut pool, id, block), [1; BLOCK]));
        assert_eq!((content(&mut pool, id, 100), content(&mut pool, id, 101)), ([3; BLOCK], [4; BLOCK]));
        assert!(pool.check().unwrap().problems.is_empty());
    }
}

#[test]
fn cleaning_may_fail_or_be_stopped_at_any_call() {
    for fault in [Fault::PowerLoss, Fault::Io, Fault::NoSpace] {
        for call in 1.. {
            let (disk, mut pool, id) = with_dead_space();
            disk.inject(disk.calls() + call, fault);
            let _ = clean(&mut pool);
            let promised = begin_segment(&mut pool, id, 100, 3).is_ok();
            if !disk.fault_fired() {
                assert!(call > 10, "only {call} calls could fail");
                break;
            }
            drop(pool);
            let mut coin = false;
            let mut sometimes = || {
                coin = !coin;
                coin
            };
            let states = [
                disk.after_kill(),
                disk.after_power_loss(&mut || false),
                disk.after_power_loss(&mut || true),
                disk.after_power_loss(&mut sometimes),
            ];
            for (state, disk) in states.into_iter().enumerate() {
                let place = format!("{fault:?} at call {call}, state {state}");
                let mut pool = open(&disk);
                LIVE.for_each(|block| assert_eq!(content(&mut pool, id, block), [1; BLOCK], "{place}"));
                assert!(!promised || content(&mut pool, id, 100) == [3; BLOCK], "{place}");
                assert_eq!(pool.check().unwrap().problems, Vec::<String>::new(), "{place}");
                // Nothing is left over: an opening keeps what the log and the map need, and no spares.
                pool.maintain().unwrap();
                drop(pool);
                drop(open(&disk));
                assert!(segment_files(&disk) <= 5, "{place}: {:?}", disk.names());
            }
        }
    }
}

/// A thousand forks that are written once took 32 GiB, and a prepared segment each.
#[test]
fn a_log_begins_without_a_prepared_segment() {
    let (disk, mut pool, id) = with_dead_space();
    let fork = pool.fork(id, None, "fork").and_then(|(fork, job)| pool.finish(job).map(|()| fork)).unwrap();
    let spare = pool.spares_wanted(1).unwrap().expect("there is none yet");
    pool.add_spare(spare, prepare_segment(&disk.handle(), spare).unwrap());
    let before = segment_files(&disk);
    pool.write(fork, 0, &[5; BLOCK]).unwrap();
    assert_eq!(segment_files(&disk), before + 1, "the fork's log took the prepared segment");
    begin_segment(&mut pool, id, 100, 3).unwrap();
    assert_eq!(segment_files(&disk), before + 1, "a log that lasts did not take it");
}
