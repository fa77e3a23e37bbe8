//! Hosts that share a bucket, for tests of what moves and what is deleted there.

#![allow(dead_code, reason = "each test takes what it needs")]

use blockstore::object::{check_bucket, list_volumes, sweep, BucketReport, ObjectTier, Standing, Tenure};
use blockstore::testing::{sim_tier, Rng, SimClock, SimDisk, SimStore};
use blockstore::{Census, CheckpointName, Cleaning, Pool, PoolOptions, VolumeId};
use std::sync::Arc;

pub const BLOCK: usize = 4096;
pub const BLOCKS: usize = 400;
pub const MINUTE: u64 = 60_000_000;

pub struct Host {
    pub disk: SimDisk,
    pub clock: Arc<SimClock>,
    pub pool: Pool,
    pub tier: ObjectTier,
}

impl Host {
    pub fn new(store: &SimStore, name: &str, clock: &Arc<SimClock>) -> Self {
        let disk = SimDisk::new();
        let mut id = [0; 16];
        id.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        Pool::create(&disk.handle(), &**clock, id).unwrap();
        Self::open(disk, sim_tier(store, name), clock.clone())
    }

    pub fn open(disk: SimDisk, tier: ObjectTier, clock: Arc<SimClock>) -> Self {
        let options = PoolOptions { map_cache: 1 << 20, anchor_bytes: 256 << 10 };
        let (pool, _) = Pool::open_with(disk.handle(), clock.clone(), options, Some(tier.clone())).unwrap();
        Self { disk, clock, pool, tier }
    }

    pub fn reopen(&mut self, disk: SimDisk) {
        let host = Self::open(disk.clone(), self.tier.clone(), self.clock.clone());
        *self = host;
    }

    pub fn id(&self, volume: &str) -> VolumeId {
        self.pool.volume_id(volume).unwrap()
    }

    pub fn create(&mut self, volume: &str) -> VolumeId {
        let (id, job) = self.pool.create_volume(volume, (BLOCKS * BLOCK) as u64).unwrap();
        self.pool.finish(job).unwrap();
        id
    }

    pub fn write(&mut self, volume: &str, at: usize, data: &[u8]) {
        let id = self.id(volume);
        self.pool.write(id, (at * BLOCK) as u64, data).unwrap();
    }

    pub fn delete(&mut self, volume: &str) {
        let job = self.pool.delete_volume(self.id(volume)).unwrap();
        self.pool.finish(job).unwrap();
    }

    pub fn contents(&mut self, volume: &str, checkpoint: Option<CheckpointName>) -> blockstore::Result<Vec<u8>> {
        let view = self.pool.view(self.pool.volume_id(volume)?, checkpoint)?;
        let mut out = vec![0; self.pool.view_size(view)? as usize];
        self.pool.read(view, 0, &mut out)?;
        Ok(out)
    }

    /// One piece of work for the object store; `false` when there is none.
    pub fn step(&mut self) -> blockstore::Result<bool> {
        while self.pool.wants_anchor() {
            self.pool.anchor(Cleaning::Busy)?;
        }
        let Some(job) = self.pool.tier_job()? else { return Ok(false) };
        let outcome = job.run();
        self.pool.tier_done(job, outcome)?;
        Ok(true)
    }

    /// Counts what lives of volumes that came from other hosts; `None` when there is nothing to count, or it is not the
    /// time. Hand it to [`Host::counted`].
    pub fn count(&mut self) -> blockstore::Result<Option<Census>> {
        if !self.pool.wants_census() || !self.pool.can_audit() {
            return Ok(None);
        }
        let (anchor, job) = self.pool.begin_audit()?;
        let outcome = anchor.run();
        let census = self.pool.anchored(anchor, outcome).and_then(|()| job.open()?.census(&mut |_, _| true));
        if census.is_err() {
            self.pool.end_audit();
        }
        census.map(Some)
    }

    pub fn counted(&mut self, census: Census) {
        self.pool.counted(census);
        self.pool.end_audit();
    }

    pub fn sync(&mut self) {
        while self.step().unwrap() {}
    }

    /// Forks a volume that is another host's.
    pub fn fork_from(&mut self, volume: &str, new: &str, read_only: bool) -> blockstore::Result<VolumeId> {
        let job = self.pool.fork_job(volume, new, read_only)?;
        job.run()?;
        let id = self.pool.attached(job)?;
        self.pool.anchor(Cleaning::Busy)?;
        Ok(id)
    }

    pub fn attach(&mut self, volume: &str, takeover: bool) -> blockstore::Result<VolumeId> {
        let job = self.pool.attach_job(volume, takeover)?;
        job.run()?;
        let id = self.pool.attached(job)?;
        self.pool.anchor(Cleaning::Busy)?;
        // Whoever had it knows by now.
        self.clock.advance_us(2 * blockstore::limits::LEASE_US);
        Ok(id)
    }

    pub fn detach(&mut self, volume: &str) -> blockstore::Result<()> {
        let job = self.pool.detach(self.pool.volume_id(volume)?)?;
        self.pool.finish(job)
    }
}

pub fn data(rng: &mut Rng, blocks: usize) -> Vec<u8> {
    rng.bytes(blocks * BLOCK)
}

/// What an observer finds, who knows only the bucket; nothing may be wrong in it.
pub fn observe(store: &SimStore, context: &str) -> BucketReport {
    let report = check_bucket(&store.observer(), false, &mut |_, _| true).unwrap();
    assert!(report.problems.is_empty(), "{context}: {:?}", report.problems);
    report
}

/// Names of the volumes that somebody may still want.
pub fn volumes_in(store: &SimStore) -> Vec<String> {
    let all = list_volumes(&store.observer()).unwrap().into_iter();
    all.filter(|(_, seen)| seen.tenure != Tenure::Deleted).map(|(name, _)| name).collect()
}

pub fn bytes_under(store: &SimStore, prefix: &str) -> usize {
    let keys = store.keys().into_iter().filter(|key| key.starts_with(prefix));
    keys.map(|key| store.body(&key).map_or(0, |body| body.len())).sum()
}

/// Hosts with one clock, and the store's beside it.
pub struct World {
    pub store: SimStore,
    pub clock: Arc<SimClock>,
    pub hosts: Vec<Host>,
}

impl World {
    pub fn new(seed: u64, hosts: usize) -> Self {
        let (store, clock) = (SimStore::new(seed), Arc::new(SimClock::default()));
        let hosts = (0..hosts).map(|n| Host::new(&store, &format!("host{n}"), &clock)).collect();
        Self { store, clock, hosts }
    }

    pub fn pass(&self, us: u64) {
        self.clock.advance_us(us);
        self.store.advance_us(us);
    }

    /// Time passes, and all hosts do what there is to do.
    pub fn quiesce(&mut self, context: &str) {
        for _ in 0..12 {
            for host in &mut self.hosts {
                host.pool.maintain().unwrap();
                while host.step().unwrap_or_else(|e| panic!("{context}: {e}")) {}
                if let Some(census) = host.count().unwrap_or_else(|e| panic!("{context}: {e}")) {
                    host.counted(census);
                }
            }
            observe(&self.store, context);
            self.pass(4 * MINUTE);
        }
    }

    pub fn sweep(&self) -> blockstore::object::SweepReport {
        use blockstore::Clock;
        sweep(&self.store.observer(), self.clock.now_us(), 24 * 60 * MINUTE, false).unwrap()
    }
}

/// All hosts come to rest, a sweep finds the rest; then every volume is deleted, and nothing stays.
pub fn end(world: &mut World, seed: u64, deleted: &mut u64) {
    let context = format!("seed {seed} at the end");
    world.quiesce(&context);
    world.pass(25 * 60 * MINUTE);
    world.quiesce(&context);
    world.sweep();
    let report = observe(&world.store, &context);
    assert_eq!(report.orphans, 0, "{context}: {} bytes leaked", report.orphan_bytes);
    for host in &mut world.hosts {
        let ids = host.pool.volumes();
        let names: Vec<String> = ids.iter().map(|id| host.pool.volume_info(*id).unwrap().name).collect();
        let mut lost = false;
        for name in &names {
            let status = host.pool.remote_status(host.id(name)).unwrap();
            lost |= status.standing != Standing::Owned;
            if status.standing == Standing::Owned {
                let found = host.contents(name, None);
                assert!(found.is_ok(), "{context} {name} {status:?}: {:?}", found.err());
            }
        }
        // A fork that stays local goes before its origin.
        let mut left = names.clone();
        while !left.is_empty() {
            let before = left.len();
            left.retain(|name| {
                host.pool.delete_volume(host.id(name)).map(|job| host.pool.finish(job).unwrap()).is_err()
            });
            assert!(left.len() < before, "{context}: {left:?} cannot be deleted");
        }
        let check = host.pool.check().unwrap();
        assert!(lost || check.problems.is_empty(), "{context}: {:?}", check.problems);
    }
    world.quiesce(&context);
    // Volumes that nobody has: detached, abandoned, or lost with a host's disk.
    for name in volumes_in(&world.store) {
        let seen = list_volumes(&world.store.observer()).unwrap().remove(&name);
        world.hosts[0].attach(&name, true).unwrap();
        world.hosts[0].sync();
        if let Err(e) = world.hosts[0].contents(&name, None) {
            panic!("{context}: {name} {seen:?}: {e}");
        }
        world.hosts[0].delete(&name);
    }
    world.quiesce(&context);
    world.pass(25 * 60 * MINUTE);
    world.quiesce(&context);
    world.sweep();
    world.pass(25 * 60 * MINUTE);
    world.sweep();
    let left: Vec<String> = world.store.keys().into_iter().filter(|key| !key.starts_with("volumes/")).collect();
    assert_eq!(left, ["sweeps/last"], "{context}");
    assert!(bytes_under(&world.store, "volumes/") < 300 * world.store.keys().len(), "{context}");
    *deleted += world.hosts.iter().map(|host| host.pool.object_cleaning().deleted).sum::<u64>();
}
