//! A daemon one of whose volumes is in an object store alone.

use super::{wire, Daemon};
use blockstore::object::{ObjectStore, ObjectTier};
use blockstore::testing::{tier_step, SimClock, SimDisk, SimEntropy};
use blockstore::{Cleaning, Pool, PoolOptions};
use nbd_server::open_pool;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

pub const BLOCK: usize = 4096;

fn sync(pool: &mut Pool) {
    while tier_step(pool).expect("work for the store") {}
}

/// Serves `disk` of 64 MiB, which is here, and `far` of `size` bytes, which another pool has made of `writes` and
/// uploaded through `maker`; the daemon reads it through `taker`.
pub fn daemon(
    maker: Arc<dyn ObjectStore>,
    taker: Arc<dyn ObjectStore>,
    size: u64,
    writes: impl Iterator<Item = (u64, Vec<u8>)>,
) -> Daemon {
    let disk = SimDisk::new();
    Pool::create(&disk.handle(), &SimClock::default(), [1; 16]).expect("a pool");
    let tier = ObjectTier { store: maker, entropy: Arc::new(SimEntropy::of("maker")) };
    let clock = Arc::new(SimClock::default());
    let (mut pool, _) = Pool::open_with(disk.handle(), clock, PoolOptions::default(), Some(tier)).expect("it opens");
    let (far, job) = pool.create_volume("far", size).expect("a volume");
    pool.finish(job).expect("a durable volume");
    for (at, data) in writes {
        pool.write(far, at, &data).expect("written");
    }
    pool.anchor(Cleaning::Busy).expect("an anchor");
    sync(&mut pool);
    let job = pool.detach(far).expect("all of it is there");
    pool.finish(job).expect("let go");
    sync(&mut pool);

    let folder = tempfile::tempdir().expect("a folder");
    let (lock, mut pool, _) = open_pool(&folder.path().join("pool"), true, PoolOptions::default()).expect("a pool");
    let (_, job) = pool.create_volume("disk", 64 << 20).expect("a volume");
    pool.finish(job).expect("a durable volume");
    pool.set_object_tier(ObjectTier { store: taker, entropy: Arc::new(SimEntropy::of("taker")) });
    let job = pool.attach_job("far", false).expect("an object store");
    job.run().expect("claimed");
    pool.attached(job).expect("attached");
    pool.anchor(Cleaning::Busy).expect("an anchor");
    sync(&mut pool);
    Daemon::serve(folder, lock, pool, &[], None).expect("the daemon starts")
}

/// A client of `export`, with simple replies.
pub fn open(daemon: &Daemon, export: &str) -> UnixStream {
    let mut stream = daemon.connect();
    wire::greet(&mut stream).expect("a greeting");
    let replies = wire::ask(&mut stream, 7, &wire::named(export, &[0, 0])).expect("replies");
    assert_eq!(replies.last().map(|r| r.0), Some(1), "GO is acknowledged");
    stream
}
