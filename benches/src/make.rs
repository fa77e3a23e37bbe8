//! Making a large pool quickly.

use crate::thin_disk::ThinDisk;
use blockstore::disk::{Disk, OsDisk};
use blockstore::{Cleaning, Pool, PoolOptions, Result};
use nbd_server::SystemClock;
use serde_json::{json, Value};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Size of the volume `big`, bytes: twice what the cost table maps.
pub const VOLUME_BYTES: u64 = 2 << 40;
const MIB: u64 = 1 << 20;

/// Makes the pool in `folder`, with `gib` GiB of `big` mapped.
pub fn make(folder: &Path, gib: u64, scattered: bool) -> Result<Value> {
    std::fs::create_dir_all(folder).map_err(|e| blockstore::Error::io("making the folder", e))?;
    let disk: Arc<dyn Disk> = Arc::new(ThinDisk(OsDisk::new(folder)));
    Pool::create(&disk, &SystemClock, [7; 16])?;
    let (mut pool, _) = Pool::open(disk, Arc::new(SystemClock), PoolOptions::default())?;
    let begin = Instant::now();
    let (volume, job) = pool.create_volume("big", VOLUME_BYTES)?;
    pool.finish(job)?;
    let data = vec![0x5a; 2 * MIB as usize];
    let (first, second) = data.split_at(MIB as usize);
    let blocks: Vec<&[u8]> = data.chunks_exact(4096).take(256).collect();
    for mib in (0..gib << 10).step_by(if scattered { 1 } else { 2 }) {
        if scattered {
            // An odd multiplier visits every block once (of a power of two), far from the one before.
            let place = |i: u64| (mib * 256 + i).wrapping_mul(0x9e37_79b1) % (gib << 18) * 4096;
            let requests: Vec<(u64, &[u8])> = (0..).map(place).zip(blocks.iter().copied()).collect();
            pool.write_many(volume, &requests)?;
        } else {
            pool.write_many(volume, &[(mib * MIB, first), ((mib + 1) * MIB, second)])?;
        }
        if pool.wants_anchor() {
            pool.anchor(Cleaning::Busy)?;
        }
    }
    pool.anchor(Cleaning::Busy)?;
    let stats = pool.stats();
    Ok(json!({
        "mapped_bytes": stats.live,
        "segments": stats.segments,
        "seconds": begin.elapsed().as_secs_f64(),
    }))
}
