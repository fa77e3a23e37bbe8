//! Large writes whose data is put into the log while they are still arriving: whatever comes between,
//! fails or crashes, they are like writes that came at once.

use blockstore::testing::{Fault, SimClock, SimDisk};
use blockstore::{Ahead, Pool, PoolOptions, VolumeId};
use std::sync::Arc;

const SIZE: usize = 4 << 20;
const LEN: usize = 512 << 10;
const BLOCK: usize = 4096;

fn open(disk: &SimDisk) -> Pool {
    Pool::open(disk.handle(), Arc::new(SimClock::default()), PoolOptions::default()).unwrap().0
}

/// A pool with one volume full of sevens, everything synced.
fn filled() -> (SimDisk, Pool, VolumeId) {
    let disk = SimDisk::new();
    Pool::create(&disk.handle(), &SimClock::default(), [7; 16]).unwrap();
    let mut pool = open(&disk);
    let (id, job) = pool.create_volume("disk", SIZE as u64).unwrap();
    pool.finish(job).unwrap();
    pool.write(id, 0, &vec![7; SIZE]).unwrap();
    pool.flush(id).unwrap();
    (disk, pool, id)
}

fn content(pool: &mut Pool) -> Vec<u8> {
    let view = pool.view(pool.volume_id("disk").unwrap(), None).unwrap();
    let mut buf = vec![0; SIZE];
    pool.read(view, 0, &mut buf).unwrap();
    buf
}

fn with(parts: &[(usize, usize, u8)]) -> Vec<u8> {
    let mut all = vec![7; SIZE];
    parts.iter().for_each(|(at, len, byte)| all[*at..at + len].fill(*byte));
    all
}

/// Tells the pool of `data` at 0 in parts of `part` bytes, all but the last.
fn tell(pool: &mut Pool, id: VolumeId, data: &[u8], part: usize, ahead: &mut Ahead) {
    for told in (part..data.len()).step_by(part) {
        pool.write_ahead(id, 0, data.len() as u64, &data[..told], ahead);
    }
}

fn both_lives(disk: &SimDisk, mut pool: Pool, expected: &[u8], what: &str) {
    assert!(content(&mut pool) == expected, "{what}, before the kill");
    assert!(pool.check().unwrap().problems.is_empty(), "{what}");
    drop(pool);
    let mut pool = open(&disk.after_kill());
    assert!(content(&mut pool) == expected, "{what}, after the kill");
    assert!(pool.check().unwrap().problems.is_empty(), "{what}");
}

#[test]
fn what_is_in_place_is_not_written_again() {
    let (disk, mut pool, id) = filled();
    let (data, mut ahead) = (vec![9; LEN], Ahead::default());
    tell(&mut pool, id, &data, LEN / 4, &mut ahead);
    let calls = disk.calls();
    pool.write_arrived(id, 0, &data, ahead).unwrap();
    assert_eq!(disk.calls() - calls, 2, "the rest and the header");
    both_lives(&disk, pool, &with(&[(0, LEN, 9)]), "a write in parts");
}

#[test]
fn without_its_end_nothing_has_happened() {
    let (disk, mut pool, id) = filled();
    tell(&mut pool, id, &vec![9; LEN], LEN / 4, &mut Ahead::default());
    both_lives(&disk, pool, &with(&[]), "half a write");
}

#[test]
fn another_write_may_come_between() {
    let (disk, mut pool, id) = filled();
    let (data, mut ahead) = (vec![9; LEN], Ahead::default());
    tell(&mut pool, id, &data, LEN / 4, &mut ahead);
    pool.write(id, (LEN + BLOCK) as u64, &[8; BLOCK]).unwrap();
    tell(&mut pool, id, &data, LEN / 8, &mut ahead);
    pool.write_arrived(id, 0, &data, ahead).unwrap();
    both_lives(&disk, pool, &with(&[(0, LEN, 9), (LEN + BLOCK, BLOCK, 8)]), "a write between");
}

/// Both would have had their data at the same place.
#[test]
fn two_may_arrive_at_once() {
    for first_ends_first in [true, false] {
        let (disk, mut pool, id) = filled();
        let (one, two) = (vec![9; LEN], vec![8; LEN]);
        let (mut ahead, mut behind) = (Ahead::default(), Ahead::default());
        pool.write_ahead(id, 0, LEN as u64, &one[..LEN / 2], &mut ahead);
        pool.write_ahead(id, LEN as u64, LEN as u64, &two[..LEN / 2], &mut behind);
        pool.write_ahead(id, 0, LEN as u64, &one[..LEN / 4 * 3], &mut ahead);
        if first_ends_first {
            pool.write_arrived(id, 0, &one, ahead).unwrap();
            pool.write_arrived(id, LEN as u64, &two, behind).unwrap();
        } else {
            pool.write_arrived(id, LEN as u64, &two, behind).unwrap();
            pool.write_arrived(id, 0, &one, ahead).unwrap();
        }
        both_lives(&disk, pool, &with(&[(0, LEN, 9), (LEN, LEN, 8)]), "two at once");
    }
}

/// A write that fails half-way leaves the end of the log where it was, and other bytes behind it.
#[test]
fn a_write_that_failed_between_does_not_spoil_it() {
    let (disk, mut pool, id) = filled();
    let (data, mut ahead) = (vec![9; LEN], Ahead::default());
    tell(&mut pool, id, &data, LEN / 4, &mut ahead);
    disk.inject(disk.calls() + 1, Fault::NoSpace);
    pool.write(id, LEN as u64, &[8; 4 * BLOCK]).unwrap_err();
    pool.write_arrived(id, 0, &data, ahead).unwrap();
    both_lives(&disk, pool, &with(&[(0, LEN, 9)]), "a failed write between");
}

/// Zero blocks are not stored, so that the data behind them lies elsewhere than it was put.
#[test]
fn zeros_may_be_anywhere_in_it() {
    for zero in [0, 3, LEN / BLOCK - 1] {
        let (disk, mut pool, id) = filled();
        let (mut data, mut ahead) = (vec![9; LEN], Ahead::default());
        data[zero * BLOCK..(zero + 1) * BLOCK].fill(0);
        tell(&mut pool, id, &data, LEN / 4, &mut ahead);
        pool.write_arrived(id, 0, &data, ahead).unwrap();
        both_lives(&disk, pool, &with(&[(0, LEN, 9), (zero * BLOCK, BLOCK, 0)]), "zeros");
    }
}

#[test]
fn it_is_all_or_nothing_after_a_crash() {
    let mut crashes = 0;
    for call in 1.. {
        let (disk, mut pool, id) = filled();
        let (data, mut ahead) = (vec![9; LEN], Ahead::default());
        disk.inject(disk.calls() + call, Fault::PowerLoss);
        tell(&mut pool, id, &data, LEN / 4, &mut ahead);
        let _ = pool.write_arrived(id, 0, &data, ahead).and_then(|()| pool.flush(id));
        let crashed = disk.fault_fired();
        for keep in 0..4 {
            let mut count = 0;
            let survived = disk.after_power_loss(&mut || {
                count += 1;
                count % 3 < keep
            });
            let found = content(&mut open(&survived));
            let whole = found == with(&[(0, LEN, 9)]);
            assert!(whole || crashed && found == with(&[]), "call {call}, keep {keep}: a part survived");
        }
        if !crashed {
            break;
        }
        crashes += 1;
    }
    assert!(crashes >= 5, "three parts, a rest and a header are five calls, not {crashes}");
}
