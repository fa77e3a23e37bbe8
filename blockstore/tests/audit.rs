//! An audit sees the pool as it was when it was begun, whatever happens meanwhile, and finds damage.

use blockstore::disk::{Disk, OsDisk};
use blockstore::testing::SimClock;
use blockstore::{Audit, Pool, PoolOptions, VolumeId};
use std::sync::Arc;

fn open(folder: &std::path::Path) -> (Pool, VolumeId) {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new(folder));
    let clock = Arc::new(SimClock::default());
    Pool::create(&disk, &*clock, [7; 16]).expect("a pool");
    let (mut pool, _) = Pool::open(disk, clock, PoolOptions::default()).expect("an open pool");
    let (id, job) = pool.create_volume("disk", 64 << 20).expect("a volume");
    pool.finish(job).expect("a durable volume");
    (pool, id)
}

fn fill(pool: &mut Pool, id: VolumeId, seed: u8) {
    for at in 0..40u64 {
        let data: Vec<u8> = (0..1 << 20).map(|i| (i / 4096) as u8 ^ at as u8 ^ seed | 1).collect();
        pool.write(id, at << 20, &data).expect("a write");
    }
}

fn begin(pool: &mut Pool) -> Audit {
    let (anchor, audit) = pool.begin_audit().expect("an audit");
    let outcome = anchor.run();
    pool.anchored(anchor, outcome).expect("an anchor");
    audit.open().expect("the accounts")
}

#[test]
fn an_audit_is_not_disturbed_by_what_happens_meanwhile() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut pool, id) = open(folder.path());
    fill(&mut pool, id, 1);
    let (info, job) = pool.create_checkpoint(id, "").expect("a checkpoint");
    pool.finish(job).expect("a durable checkpoint");
    fill(&mut pool, id, 2);
    let mut audit = begin(&mut pool);
    assert!(!pool.can_audit(), "one at a time");
    // Everything the audit looks at dies.
    let job = pool.delete_checkpoint(id, info.name).expect("a deletion");
    pool.finish(job).expect("a durable deletion");
    pool.trim(id, 0, 64 << 20).expect("a trim");
    fill(&mut pool, id, 3);
    pool.maintain().expect("maintenance");
    let report = audit.check(&mut |_, _| true).expect("a check");
    assert_eq!((report.problems, report.blocks), (Vec::<String>::new(), 2 * 40 * 256));
    let (mut told, bytes) = ((0, 0), 80 << 20);
    let report = audit.scrub(Some(("disk", None)), &mut |done, total| (told = (done, total), true).1).expect("a scrub");
    assert_eq!((report.damaged, report.blocks), (Vec::<String>::new(), 2 * 40 * 256));
    assert_eq!(told, (bytes, bytes), "progress ends at all of it");
    // Afterwards the space comes back.
    let held = pool.stats().stored;
    pool.end_audit();
    pool.maintain().expect("maintenance");
    assert!(pool.stats().stored * 3 < held * 2, "{} of {held}", pool.stats().stored);
    assert_eq!(pool.check().expect("a check").problems, Vec::<String>::new());
}

#[test]
fn without_the_rest_of_the_cleaner_an_audit_would_fail() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut pool, id) = open(folder.path());
    fill(&mut pool, id, 1);
    let mut audit = begin(&mut pool);
    pool.end_audit();
    pool.trim(id, 0, 64 << 20).expect("a trim");
    pool.maintain().expect("maintenance");
    pool.maintain().expect("maintenance");
    let report = audit.scrub(None, &mut |_, _| true).expect("a scrub");
    assert!(!report.damaged.is_empty(), "the data is gone from under it");
}

#[test]
fn an_audit_can_be_called_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut pool, id) = open(folder.path());
    fill(&mut pool, id, 1);
    let mut audit = begin(&mut pool);
    assert!(audit.check(&mut |_, _| false).is_err());
    let mut left = 300;
    let stopped = audit.scrub(None, &mut |_, _| (left -= 1, left > 0).1);
    assert!(stopped.is_err() && left == 0);
}
