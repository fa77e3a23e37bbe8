//! What one volume cannot upload keeps no other from it.

use blockstore::testing::{sim_tier, tier_step, SimClock, SimDisk, SimStore};
use blockstore::{ErrorKind, Pool, PoolOptions, VolumeId};
use std::sync::Arc;

const BLOCK: usize = 4096;

fn pool(store: &SimStore, disk: &SimDisk) -> Pool {
    Pool::create(&disk.handle(), &SimClock::default(), [1; 16]).unwrap();
    let clock = Arc::new(SimClock::default());
    Pool::open_with(disk.handle(), clock, PoolOptions::default(), Some(sim_tier(store, "host"))).unwrap().0
}

fn filled(pool: &mut Pool, name: &str, byte: u8) -> VolumeId {
    let (id, job) = pool.create_volume(name, (64 * BLOCK) as u64).unwrap();
    pool.finish(job).unwrap();
    pool.write(id, 0, &vec![byte; 8 * BLOCK]).unwrap();
    id
}

/// Works for the store until nothing is left or nothing goes any more; what failed.
fn work(pool: &mut Pool) -> Option<blockstore::Error> {
    let mut failure = None;
    for _ in 0..10 {
        match tier_step(pool) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => failure = Some(e),
        }
    }
    failure
}

fn is_there(pool: &Pool, id: VolumeId) -> bool {
    pool.remote_status(id).is_some_and(|status| status.manifest > 0 && status.watermark >= status.changed)
}

#[test]
fn a_damaged_block_stops_the_uploads_of_its_volume_alone() {
    let (store, disk) = (SimStore::new(1), SimDisk::new());
    let mut pool = pool(&store, &disk);
    let (bad, good) = (filled(&mut pool, "bad", 0x5a), filled(&mut pool, "good", 0x33));
    for name in disk.names().iter().filter(|name| name.starts_with("seg-")) {
        disk.edit(name, |bytes| {
            let block = bytes.chunks_exact_mut(BLOCK).find(|block| block.iter().all(|byte| *byte == 0x5a));
            block.into_iter().for_each(|block| block[7] ^= 1);
        });
    }
    let failure = work(&mut pool).expect("the damage is told");
    assert_eq!(failure.kind(), ErrorKind::Corrupt, "{failure}");
    assert!(is_there(&pool, good), "{:?}", pool.remote_status(good));
    assert!(!is_there(&pool, bad), "{:?}", pool.remote_status(bad));
    // What is overwritten is not needed any more.
    pool.write(bad, 0, &[1; 8 * BLOCK]).unwrap();
    assert!(work(&mut pool).is_none_or(|e| e.kind() == ErrorKind::Corrupt));
    assert!(is_there(&pool, bad), "{:?}", pool.remote_status(bad));
}

/// Records without data are a part of the history, too: a range that cannot be read is not left out.
#[test]
fn a_damaged_header_behind_the_anchor_stops_its_volume_alone() {
    let (store, disk) = (SimStore::new(2), SimDisk::new());
    let mut pool = pool(&store, &disk);
    let (bad, good) = (filled(&mut pool, "bad", 0x5a), filled(&mut pool, "good", 0x33));
    assert!(work(&mut pool).is_none());
    pool.trim(bad, 0, (4 * BLOCK) as u64).unwrap();
    pool.write(good, 0, &[2; BLOCK]).unwrap();
    let trim = [&b"CBAT"[..], &[1, 0]].concat();
    let mut flipped = 0;
    for name in disk.names().iter().filter(|name| name.starts_with("seg-")) {
        disk.edit(name, |bytes| {
            let of_bad = |block: &&mut [u8]| block.starts_with(&trim) && block[16..24] == bad.0.to_le_bytes();
            if let Some(last) = bytes.chunks_exact_mut(BLOCK).filter(of_bad).last() {
                last[60] ^= 1;
                flipped += 1;
            }
        });
    }
    assert_eq!(flipped, 1);
    let failure = work(&mut pool).expect("the damage is told");
    assert_eq!(failure.kind(), ErrorKind::Corrupt, "{failure}");
    assert!(is_there(&pool, good) && !is_there(&pool, bad));
}
