//! Failures that `cairn-sim` found the store to handle badly. Each test tells how; none of them may
//! come back.

use blockstore::testing::{Fault, SimClock, SimDisk};
use blockstore::{Cleaning, ErrorKind, Pool, PoolOptions, VolumeId};
use std::sync::Arc;

const BLOCK: usize = 4096;
const SIZE: u64 = 64 << 20;

fn open(disk: &SimDisk) -> Pool {
    Pool::open(disk.handle(), Arc::new(SimClock::default()), PoolOptions::default()).unwrap().0
}

fn new_pool() -> (SimDisk, Pool, VolumeId) {
    let disk = SimDisk::new();
    Pool::create(&disk.handle(), &SimClock::default(), [7; 16]).unwrap();
    let mut pool = open(&disk);
    let (id, job) = pool.create_volume("disk", SIZE).unwrap();
    pool.finish(job).unwrap();
    (disk, pool, id)
}

/// A pool in which one segment is worth packing and one is dead, ready to be cleaned.
fn with_dead_space() -> (SimDisk, Pool, VolumeId) {
    let (disk, mut pool, id) = new_pool();
    for at in 0..64u64 {
        pool.write(id, at * BLOCK as u64, &[1; BLOCK]).unwrap();
    }
    pool.seal_log(id).unwrap();
    pool.write(id, SIZE / 2, &[2; 64 * BLOCK]).unwrap();
    pool.seal_log(id).unwrap();
    pool.trim(id, 0, 60 * BLOCK as u64).unwrap();
    pool.trim(id, SIZE / 2, 64 * BLOCK as u64).unwrap();
    pool.anchor(Cleaning::Thorough).unwrap();
    pool.anchor(Cleaning::Thorough).unwrap();
    (disk, pool, id)
}

fn content(pool: &mut Pool, id: VolumeId, block: u64) -> [u8; BLOCK] {
    let mut buf = [0; BLOCK];
    pool.read(pool.view(id, None).unwrap(), block * BLOCK as u64, &mut buf).unwrap();
    buf
}

/// The disk was full when the record was written, but not before its last byte that mattered: the
/// caller heard *no space*, and after the next restart the checkpoint was there, or the restore done.
#[test]
fn what_failed_for_want_of_space_does_not_happen_after_a_restart() {
    let (disk, mut pool, id) = new_pool();
    // A prepared file is as long as it will ever be.
    let number = pool.spares_wanted(1).unwrap().unwrap();
    pool.add_spare(number, blockstore::prepare_segment(&disk.handle(), number).unwrap());
    pool.write(id, 0, &[1; BLOCK]).unwrap();
    disk.inject(disk.calls() + 1, Fault::NoSpace);
    let failed = pool.create_checkpoint(id, "").map(drop).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::NoSpace);
    drop(pool);
    for disk in [disk.after_kill(), disk.after_power_loss(&mut || true)] {
        let pool = open(&disk);
        assert!(pool.checkpoints(id).unwrap().is_empty(), "a checkpoint that nobody was promised");
    }
}

/// A failed packing left its temporary file behind, until the pool was opened again.
#[test]
fn a_failed_packing_leaves_no_file_behind() {
    let mut failed = 0;
    for call in 1.. {
        let (disk, mut pool, id) = with_dead_space();
        disk.inject(disk.calls() + call, Fault::NoSpace);
        while let Some(job) = pool.clean_job() {
            let outcome = job.run();
            failed += u32::from(pool.cleaned(job, outcome).is_err());
        }
        let fired = disk.fault_fired();
        disk.inject(0, Fault::Io);
        assert_eq!(content(&mut pool, id, 60), [1; BLOCK]);
        if pool.poisoned().is_none() {
            let left = disk.names().into_iter().find(|name| name.starts_with("tmp-"));
            assert_eq!(left, None, "call {call}");
        }
        if !fired {
            break;
        }
    }
    assert!(failed > 5, "packing makes more calls than that");
}

/// A segment was renamed to serve again, the sync of the names failed, and the pool went on: the name
/// that a flush would rely on was perhaps not there after power loss, and the file belonged to nobody.
#[test]
fn a_failed_sync_of_names_while_cleaning_closes_the_pool() {
    let mut closed = 0;
    for call in 1.. {
        let (disk, mut pool, id) = with_dead_space();
        disk.inject(disk.calls() + call, Fault::Io);
        while let Some(job) = pool.clean_job() {
            let outcome = job.run();
            let _ = pool.cleaned(job, outcome);
        }
        let fired = disk.fault_fired();
        disk.inject(0, Fault::Io);
        match pool.poisoned() {
            Some(why) => {
                assert!(why.contains("sync"), "call {call}: {why}");
                closed += 1;
            }
            None => {
                (0..3).for_each(|_| pool.maintain().unwrap());
                let mut known = pool.known_segments();
                known.sort();
                let files: Vec<_> = disk.names().into_iter().filter(|name| name.starts_with("seg-")).collect();
                assert_eq!(files, known, "call {call}");
            }
        }
        assert_eq!(content(&mut pool, id, 60), [1; BLOCK], "call {call}");
        drop(pool);
        assert_eq!(content(&mut open(&disk.after_kill()), id, 60), [1; BLOCK], "call {call}");
        if !fired {
            break;
        }
    }
    assert!(closed >= 2, "packing and recycling sync names: {closed}");
}

/// A spare that could not be removed was forgotten, and its file stayed until the next opening.
#[test]
fn a_spare_that_could_not_be_removed_is_removed_later() {
    let (disk, mut pool, _) = new_pool();
    let number = pool.spares_wanted(1).unwrap().unwrap();
    let file = blockstore::prepare_segment(&disk.handle(), number).unwrap();
    pool.add_spare(number, file);
    let job = pool.shrink_job(0).unwrap();
    disk.inject(disk.calls() + 1, Fault::Io);
    let outcome = job.run();
    pool.cleaned(job, outcome).unwrap_err();
    pool.maintain().unwrap();
    let files: Vec<_> = disk.names().into_iter().filter(|name| name.starts_with("seg-")).collect();
    assert_eq!(files.len(), pool.known_segments().len());
}

/// A batch was dropped, because its data had not reached the disk; its header stayed behind the end of
/// the log. After a restart it was taken for a sign of damage, which ended the search, and the segment
/// that the log went on in was dropped, with all that had been flushed to it.
#[test]
fn a_left_over_header_does_not_hide_the_next_segment() {
    let (disk, mut pool, id) = new_pool();
    pool.write(id, 0, &[1; BLOCK]).unwrap();
    pool.write(id, BLOCK as u64, &[2; BLOCK]).unwrap();
    drop(pool);
    let disk = disk.after_kill();
    let holds = |name: &String| disk.peek(name, 4 * BLOCK, BLOCK) == [2; BLOCK];
    let log = disk.names().into_iter().find(holds).unwrap();
    disk.poke(&log, 4 * BLOCK, &[0; BLOCK]);
    let mut pool = open(&disk);
    assert_eq!(content(&mut pool, id, 1), [0; BLOCK]);
    pool.seal_log(id).unwrap();
    pool.write(id, 2 * BLOCK as u64, &[3; BLOCK]).unwrap();
    pool.flush(id).unwrap();
    drop(pool);
    let mut pool = open(&disk.after_kill());
    assert_eq!(content(&mut pool, id, 0), [1; BLOCK]);
    assert_eq!(content(&mut pool, id, 2), [3; BLOCK]);
}

/// The kernel calls pages clean whose write-back failed. An opening took them from its cache and wrote
/// an anchor over them; a sync wrote nothing, said that all was well, and power loss took them.
#[test]
fn what_a_failed_sync_left_in_the_cache_is_written_again() {
    for segments in [1, 2] {
        let (disk, mut pool, id) = new_pool();
        pool.flush(id).unwrap();
        pool.write(id, 0, &[1; BLOCK]).unwrap();
        if segments == 2 {
            pool.seal_log(id).unwrap();
            pool.write(id, BLOCK as u64, &[2; BLOCK]).unwrap();
        }
        disk.inject(disk.calls() + 1, Fault::FailedSync);
        assert_eq!(pool.flush(id).unwrap_err().kind(), ErrorKind::Io);
        assert!(pool.poisoned().is_some());
        drop(pool);
        let disk = disk.after_kill();
        let mut pool = open(&disk);
        assert_eq!(content(&mut pool, id, 0), [1; BLOCK]);
        pool.flush(id).unwrap();
        drop(pool);
        let disk = disk.after_power_loss(&mut || false);
        let mut pool = open(&disk);
        assert_eq!(content(&mut pool, id, 0), [1; BLOCK]);
        assert_eq!(content(&mut pool, id, 1), [if segments == 2 { 2 } else { 0 }; BLOCK]);
        assert_eq!(disk.handle().list("sync-failed").unwrap(), Vec::<String>::new());
    }
}

/// The thread that synced had failed, and the process was killed before the pool's owner heard of it: there was
/// no note, and the next opening trusted the kernel's cache (simulator, seed 9025).
#[test]
fn a_failed_sync_is_noted_although_its_outcome_is_never_reported() {
    let flush = |pool: &mut Pool, id: VolumeId| pool.flush_job(id).unwrap().run();
    let settle = |pool: &mut Pool, id: VolumeId| pool.settle_job(id).unwrap().run();
    let anchor = |pool: &mut Pool, _: VolumeId| pool.begin_anchor(Cleaning::Busy).unwrap().run();
    type Job = fn(&mut Pool, VolumeId) -> std::io::Result<()>;
    for job in [flush as Job, settle as Job, anchor as Job] {
        let (disk, mut pool, id) = new_pool();
        pool.flush(id).unwrap();
        pool.write(id, 0, &[1; BLOCK]).unwrap();
        pool.seal_log(id).unwrap();
        disk.inject(disk.calls() + 1, Fault::FailedSync);
        job(&mut pool, id).unwrap_err();
        drop(pool);
        let disk = disk.after_kill();
        let mut pool = open(&disk);
        pool.flush(id).unwrap();
        drop(pool);
        let mut pool = open(&disk.after_power_loss(&mut || false));
        assert_eq!(content(&mut pool, id, 0), [1; BLOCK]);
    }
}

/// An anchor's sync failed while a flush of the same file ran: the flush found nothing left to write, and
/// promised what was lost.
#[test]
fn the_other_sync_of_a_file_fails_too() {
    let mut refused = 0;
    for call in 1..8 {
        let (disk, mut pool, id) = new_pool();
        pool.write(id, 0, &[1; BLOCK]).unwrap();
        let (anchor, flush) = (pool.begin_anchor(Cleaning::Busy).unwrap(), pool.flush_job(id).unwrap());
        disk.inject(disk.calls() + call, Fault::FailedSync);
        let (anchored, flushed) = (anchor.run(), flush.run());
        let promised = pool.flushed(&flush, flushed).is_ok();
        refused += usize::from(!promised);
        let _ = pool.anchored(anchor, anchored);
        drop(pool);
        let mut pool = open(&disk.after_power_loss(&mut || false));
        assert!(!promised || content(&mut pool, id, 0) == [1; BLOCK], "sync after call {call}");
    }
    assert!(refused > 0);
}

/// The kernel tells of a write-back that failed only once: who waits for one and hears of it is who says so.
#[test]
fn a_write_back_that_failed_is_a_failed_sync() {
    let (disk, mut pool, id) = new_pool();
    pool.write(id, 0, &[1; BLOCK]).unwrap();
    let range = pool.take_rest(id).unwrap();
    assert_eq!((range.offset, range.len % BLOCK as u64), (0, 0));
    assert!(range.len >= 2 * BLOCK as u64);
    assert_eq!(pool.take_rest(id).unwrap().len, 0, "it is taken once");
    pool.written_back(range.wait(&*disk.handle())).unwrap();
    pool.written_back(Err(std::io::Error::other("a broken medium"))).unwrap_err();
    assert_eq!(pool.write(id, 0, &[2; BLOCK]).unwrap_err().kind(), ErrorKind::Closed);
}
