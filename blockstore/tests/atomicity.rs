//! Promise P5: a request of up to 1 MiB is all-or-nothing after a crash, whatever its kind and
//! alignment. Power goes at every disk call of the request, and any part of what was not synced stays.

use blockstore::testing::{Fault, SimClock, SimDisk};
use blockstore::{Pool, PoolOptions};
use std::sync::Arc;

const SIZE: usize = 4 << 20;
const MIB: usize = 1 << 20;

fn open(disk: &SimDisk) -> Pool {
    Pool::open(disk.handle(), Arc::new(SimClock::default()), PoolOptions::default()).unwrap().0
}

fn content(pool: &mut Pool) -> Vec<u8> {
    let view = pool.view(pool.volume_id("disk").unwrap(), None).unwrap();
    let mut buf = vec![0; SIZE];
    pool.read(view, 0, &mut buf).unwrap();
    buf
}

/// A pool with one volume full of sevens, everything synced.
fn filled() -> (SimDisk, Pool) {
    let disk = SimDisk::new();
    Pool::create(&disk.handle(), &SimClock::default(), [7; 16]).unwrap();
    let mut pool = open(&disk);
    let (id, job) = pool.create_volume("disk", SIZE as u64).unwrap();
    pool.finish(job).unwrap();
    pool.write(id, 0, &vec![7; SIZE]).unwrap();
    pool.flush(id).unwrap();
    (disk, pool)
}

/// Runs `request` with power loss at each of its disk calls; `after` is what it leaves when complete.
/// Returns the number of crash points.
fn all_or_nothing(request: impl Fn(&mut Pool) -> blockstore::Result<()>, after: &[u8]) -> u64 {
    let before = vec![7; SIZE];
    for call in 1.. {
        let (disk, mut pool) = filled();
        disk.inject(disk.calls() + call, Fault::PowerLoss);
        let outcome = request(&mut pool);
        let crashed = disk.fault_fired();
        if !crashed {
            outcome.unwrap();
        }
        drop(pool);
        for keep in [0, 1, 2, u64::MAX] {
            let mut dice = call.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let survived = disk.after_power_loss(&mut || {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                keep == u64::MAX || dice % 3 < keep
            });
            let found = content(&mut open(&survived));
            assert!(found == before || found == after, "call {call}, keep {keep}: a part of the request survived");
        }
        if !crashed {
            return call - 1;
        }
    }
    unreachable!("the loop ends when no fault fires")
}

fn with(range: std::ops::Range<usize>, byte: u8) -> Vec<u8> {
    let mut all = vec![7; SIZE];
    all[range].fill(byte);
    all
}

#[test]
fn writes() {
    for (offset, len) in [(0, MIB), (4096, 4096), (100, 300), (4000, 200), (5000, MIB)] {
        let write = |pool: &mut Pool| pool.write(pool.volume_id("disk")?, offset as u64, &vec![9; len]);
        assert!(all_or_nothing(write, &with(offset..offset + len, 9)) > 0);
    }
}

/// The ends and the middle of an unaligned request were three batches.
#[test]
fn zeroes_of_any_alignment() {
    for (offset, len) in [(0, MIB), (100, 300), (4000, 200), (100, 8092), (5000, MIB), (5000, 4 * 4096)] {
        let zero = |pool: &mut Pool| pool.write_zeroes(pool.volume_id("disk")?, offset as u64, len as u64, false);
        assert!(all_or_nothing(zero, &with(offset..offset + len, 0)) > 0);
    }
}

/// Stored zeros were written in batches of 256 KiB.
#[test]
fn stored_zeroes_of_any_alignment() {
    for (offset, len) in [(0, MIB), (100, 300), (5000, MIB)] {
        let zero = |pool: &mut Pool| pool.write_zeroes(pool.volume_id("disk")?, offset as u64, len as u64, true);
        assert!(all_or_nothing(zero, &with(offset..offset + len, 0)) > 0);
    }
}

#[test]
fn trims() {
    let trim = |pool: &mut Pool| pool.trim(pool.volume_id("disk")?, 4096, (SIZE - 8192) as u64);
    assert!(all_or_nothing(trim, &with(4096..SIZE - 4096, 0)) > 0);
}

/// The harness can fail: two requests are not one.
#[test]
#[should_panic(expected = "a part of the request survived")]
fn canary_two_requests_are_not_atomic() {
    let two = |pool: &mut Pool| {
        let id = pool.volume_id("disk")?;
        pool.write(id, 0, &[9; 4096])?;
        pool.write(id, 4096, &[9; 4096])
    };
    all_or_nothing(two, &with(0..8192, 9));
}
