//! Promise P7 on a full disk: a write says that there is no space, and nothing else suffers. Reading,
//! trimming, deleting, anchors and opening the pool work, and nothing acknowledged is lost.

use blockstore::testing::{Fault, SimClock, SimDisk};
use blockstore::{Cleaning, ErrorKind, Pool, PoolOptions, VolumeId};
use std::sync::Arc;

const BLOCK: usize = 4096;
const SIZE: u64 = 64 << 20;

fn try_open(disk: &SimDisk) -> blockstore::Result<Pool> {
    Pool::open(disk.handle(), Arc::new(SimClock::default()), PoolOptions::default()).map(|(pool, _)| pool)
}

fn filled() -> (SimDisk, Pool, VolumeId) {
    let disk = SimDisk::new();
    Pool::create(&disk.handle(), &SimClock::default(), [7; 16]).unwrap();
    let mut pool = try_open(&disk).unwrap();
    let (id, job) = pool.create_volume("disk", SIZE).unwrap();
    pool.finish(job).unwrap();
    pool.write(id, 0, &[7; 16 * BLOCK]).unwrap();
    pool.flush(id).unwrap();
    (disk, pool, id)
}

fn expect(pool: &mut Pool, id: VolumeId, block: u64, byte: u8) {
    let mut buf = [0; BLOCK];
    pool.read(pool.view(id, None).unwrap(), block * BLOCK as u64, &mut buf).unwrap();
    assert_eq!(buf, [byte; BLOCK], "block {block}");
}

/// An anchor that met a full disk closed the pool for trims and deletions, which alone could have
/// made space. Only a failed sync may do that, whatever the system calls its reason.
#[test]
fn an_anchor_that_finds_no_space_closes_nothing() {
    let mut failed = 0;
    for call in 1.. {
        let (disk, mut pool, id) = filled();
        pool.write(id, 0, &[8; BLOCK]).unwrap();
        disk.inject(disk.calls() + call, Fault::NoSpace);
        let outcome = pool.anchor(Cleaning::Thorough);
        let fired = disk.fault_fired();
        match pool.poisoned().map(str::to_owned) {
            Some(why) => assert!(why.contains("sync"), "call {call}: {why}"),
            None => {
                failed += u32::from(outcome.is_err());
                pool.trim(id, BLOCK as u64, BLOCK as u64).unwrap();
                pool.flush(id).unwrap();
                pool.anchor(Cleaning::Thorough).unwrap();
                expect(&mut pool, id, 1, 0);
            }
        }
        expect(&mut pool, id, 0, 8);
        expect(&mut pool, id, 2, 7);
        drop(pool);
        let mut pool = try_open(&disk.after_kill()).unwrap();
        expect(&mut pool, id, 0, 8);
        expect(&mut pool, id, 2, 7);
        assert_eq!(pool.check().unwrap().problems, Vec::<String>::new(), "call {call}");
        if !fired {
            assert!(call > 5, "the anchor makes more calls than that");
            break;
        }
    }
    assert_eq!(failed, 0, "the reserve made room for the second try");
}

/// The pool was killed on a full disk and could not be opened, because opening writes an anchor.
#[test]
fn a_pool_on_a_full_disk_opens_with_the_help_of_its_reserve() {
    for call in 1.. {
        let (disk, mut pool, id) = filled();
        pool.write(id, 0, &[8; BLOCK]).unwrap();
        drop(pool);
        let disk = disk.after_kill();
        disk.inject(disk.calls() + call, Fault::NoSpace);
        let opened = try_open(&disk);
        if !disk.fault_fired() {
            assert!(call > 10, "opening makes more calls than that");
            break;
        }
        match opened {
            Ok(mut pool) => expect(&mut pool, id, 0, 8),
            // A sync that fails for want of space is a failed sync: what it was to write may be gone.
            Err(e) => assert_eq!(e.kind(), ErrorKind::Io, "call {call}: {e}"),
        }
    }
}

/// The map pages of an anchor that failed were left in a segment that nobody owned: 32 MiB for ever.
#[test]
fn a_failed_anchor_leaves_no_segment_behind() {
    let mut counts = Vec::new();
    for call in 1.. {
        let (disk, mut pool, id) = filled();
        pool.write(id, 0, &[8; BLOCK]).unwrap();
        disk.inject(disk.calls() + call, Fault::NoSpace);
        let _ = pool.anchor(Cleaning::Busy);
        if pool.poisoned().is_some() {
            continue;
        }
        let fired = disk.fault_fired();
        disk.inject(u64::MAX, Fault::NoSpace);
        (0..3).for_each(|_| pool.maintain().unwrap());
        counts.push(pool.stats().segments);
        if !fired {
            break;
        }
    }
    assert!(counts.len() > 2 && counts.iter().all(|n| Some(n) == counts.last()), "segments: {counts:?}");
}
