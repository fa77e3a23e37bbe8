//! Volumes in the object store: uploaded, taken over by other hosts, lost and found.

use blockstore::limits::LEASE_US;
use blockstore::object::{ObjectTier, Standing};
use blockstore::testing::{sim_tier, tier_step, ReferenceDisk, Rng, SimClock, SimDisk, SimStore, StoreFault, StoreOp};
use blockstore::{CheckpointName, Cleaning, ErrorKind, Pool, PoolOptions, VolumeId};
use std::sync::Arc;

const BLOCK: usize = 4096;

/// One host: a pool of its own, and the store that all share.
struct Host {
    disk: SimDisk,
    pool: Pool,
    tier: ObjectTier,
    clock: Arc<SimClock>,
}

fn options() -> PoolOptions {
    PoolOptions { map_cache: 1 << 20, anchor_bytes: 256 << 10 }
}

impl Host {
    fn new(store: &SimStore, name: &str) -> Self {
        let disk = SimDisk::new();
        let mut id = [0; 16];
        id.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        Pool::create(&disk.handle(), &SimClock::default(), id).unwrap();
        Self::open(disk, sim_tier(store, name))
    }

    fn open(disk: SimDisk, tier: ObjectTier) -> Self {
        Self::open_at(disk, tier, Arc::new(SimClock::default()))
    }

    fn open_at(disk: SimDisk, tier: ObjectTier, clock: Arc<SimClock>) -> Self {
        let (pool, _) = Pool::open_with(disk.handle(), clock.clone(), options(), Some(tier.clone())).unwrap();
        Self { disk, pool, tier, clock }
    }

    fn id(&self, volume: &str) -> VolumeId {
        self.pool.volume_id(volume).unwrap()
    }

    fn create(&mut self, volume: &str, size: usize) -> VolumeId {
        let (id, job) = self.pool.create_volume(volume, size as u64).unwrap();
        self.pool.finish(job).unwrap();
        id
    }

    /// Background work as a daemon does it: an anchor when one is due.
    fn tend(&mut self) {
        while self.pool.wants_anchor() {
            self.pool.anchor(Cleaning::Busy).unwrap();
        }
    }

    fn step(&mut self) -> blockstore::Result<bool> {
        tier_step(&mut self.pool)
    }

    fn sync(&mut self) {
        while self.step().unwrap() {}
    }

    fn attach(&mut self, volume: &str, takeover: bool) -> blockstore::Result<VolumeId> {
        let job = self.pool.attach_job(volume, takeover)?;
        job.run()?;
        let id = self.pool.attached(job)?;
        self.pool.anchor(Cleaning::Busy)?;
        // Whoever had it knows by now.
        self.clock.advance_us(2 * LEASE_US);
        self.sync();
        Ok(id)
    }

    fn contents(&mut self, volume: &str, checkpoint: Option<CheckpointName>) -> Vec<u8> {
        let view = self.pool.view(self.id(volume), checkpoint).unwrap();
        let mut out = vec![0; self.pool.view_size(view).unwrap() as usize];
        self.pool.read(view, 0, &mut out).unwrap();
        out
    }

    fn write(&mut self, volume: &str, at: usize, byte: u8, blocks: usize) {
        let id = self.id(volume);
        self.pool.write(id, (at * BLOCK) as u64, &vec![byte; blocks * BLOCK]).unwrap();
    }
}

#[test]
fn a_volume_outlives_its_host() {
    let store = SimStore::new(1);
    let mut first = Host::new(&store, "first");
    let id = first.create("disk", 4096 * BLOCK);
    first.write("disk", 0, 1, 300);
    first.write("disk", 1000, 2, 5);
    let (v1, job) = first.pool.create_checkpoint(id, "before").unwrap();
    first.pool.finish(job).unwrap();
    first.write("disk", 10, 3, 20);
    first.sync();
    // The tail: written behind the anchor.
    first.write("disk", 2000, 4, 7);
    first.pool.trim(id, 0, (5 * BLOCK) as u64).unwrap();
    first.sync();
    let (head, then) = (first.contents("disk", None), first.contents("disk", Some(v1.name)));
    // Never uploaded: lost with the host.
    first.write("disk", 50, 9, 1);
    drop(first);

    let mut second = Host::new(&store, "second");
    second.create("other", 64 * BLOCK);
    second.write("other", 0, 77, 64);
    assert_eq!(second.attach("disk", false).unwrap_err().kind(), ErrorKind::Busy);
    second.attach("disk", true).unwrap();
    assert!(second.contents("disk", None) == head);
    assert!(second.contents("disk", Some(v1.name)) == then);
    second.write("disk", 3000, 5, 3);
    second.write("disk", 12, 6, 2);
    second.sync();
    let head = second.contents("disk", None);

    // Restarted, and taken over by a third host.
    let mut second = Host::open(second.disk.after_kill(), second.tier);
    assert!(second.contents("disk", None) == head);
    assert!(second.contents("disk", Some(v1.name)) == then);
    second.write("disk", 1, 7, 1);
    let second = Host::open(second.disk.after_kill(), second.tier);
    let mut second = second;
    second.sync();
    let head = second.contents("disk", None);
    drop(second);
    let mut third = Host::new(&store, "third");
    third.create("more", 64 * BLOCK);
    third.attach("disk", true).unwrap();
    assert!(third.contents("disk", None) == head);
    assert!(third.contents("disk", Some(v1.name)) == then);
    let check = third.pool.check().unwrap();
    assert!(check.problems.is_empty(), "{:?}", check.problems);
}

#[test]
fn whoever_lost_a_volume_stops_and_says_so() {
    let store = SimStore::new(2);
    let mut first = Host::new(&store, "first");
    let id = first.create("disk", 64 * BLOCK);
    first.write("disk", 0, 1, 10);
    first.sync();
    let mut second = Host::new(&store, "second");
    second.attach("disk", true).unwrap();
    second.write("disk", 0, 2, 1);
    first.write("disk", 1, 3, 1);
    first.sync();
    let e = first.pool.write(id, 0, &[4; BLOCK]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
    assert!(matches!(first.pool.remote_status(id).unwrap().standing, Standing::Fenced(_)));
    second.sync();
    let mut expected = vec![0; 64 * BLOCK];
    expected[..10 * BLOCK].fill(1);
    expected[..BLOCK].fill(2);
    assert!(second.contents("disk", None) == expected);
    // A restart does not forget it.
    let mut first = Host::open(first.disk.after_kill(), first.tier);
    assert_eq!(first.pool.write(id, 0, &[4; BLOCK]).unwrap_err().kind(), ErrorKind::Fenced);
}

#[test]
fn a_detached_volume_goes_from_host_to_host() {
    let store = SimStore::new(3);
    let mut hosts = [Host::new(&store, "first"), Host::new(&store, "second")];
    hosts[0].create("disk", 64 * BLOCK);
    let mut expected = vec![0; 64 * BLOCK];
    for turn in 0..6usize {
        let host = &mut hosts[turn % 2];
        if turn > 0 {
            host.attach("disk", false).unwrap();
        }
        assert!(host.contents("disk", None) == expected, "turn {turn}");
        host.write("disk", turn * 3, turn as u8 + 1, 5);
        expected[turn * 3 * BLOCK..(turn * 3 + 5) * BLOCK].fill(turn as u8 + 1);
        let id = host.id("disk");
        assert!(host.pool.detach(id).is_err(), "not all is uploaded");
        host.sync();
        let job = host.pool.detach(id).unwrap();
        host.pool.finish(job).unwrap();
        host.sync();
        assert!(host.pool.volume_id("disk").is_err());
    }
}

/// A host is lost at any moment, or goes on after its power failed: whatever another one finds is a prefix of the
/// history, at or past the watermark.
#[test]
fn any_loss_leaves_a_prefix_at_or_past_the_watermark() {
    let seeds = std::env::var("CAIRN_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    for seed in 0..seeds {
        lose_hosts(seed);
    }
}

/// The store may fail; what has to be damaged for that is damaged nowhere.
fn tolerate(outcome: blockstore::Result<bool>) {
    if let Err(e) = outcome {
        assert!(matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Corrupt), "{e}");
    }
}

fn lose_hosts(seed: u64) {
    const BLOCKS: usize = 700;
    let store = SimStore::new(seed);
    let mut rng = Rng::new(seed);
    let mut host = Host::new(&store, "host0");
    let faulty = seed % 2 == 1;
    host.create("disk", BLOCKS * BLOCK);
    let mut model = ReferenceDisk::default();
    model.create("disk", BLOCKS * BLOCK);
    // Every state that may still be found, by the number behind its last change.
    let mut states = Vec::new();
    for turn in 1..6 {
        let id = host.id("disk");
        states.push((host.pool.stats().next_lsn, model.clone()));
        if faulty {
            for op in [StoreOp::PutIfAbsent, StoreOp::Get, StoreOp::List] {
                store.fail_one_in(op, 12, StoreFault::Unavailable);
            }
            store.fail_one_in(StoreOp::Get, 15, StoreFault::Short);
            store.fail_one_in(StoreOp::PutIfAbsent, 6, StoreFault::LostReply);
        }
        for _ in 0..rng.below(60) + 5 {
            match rng.below(12) {
                0 => {
                    let (info, job) = host.pool.create_checkpoint(id, "").unwrap();
                    host.pool.finish(job).unwrap();
                    model.checkpoint("disk", &info.name.to_string());
                }
                1 => {
                    let names: Vec<_> = host.pool.checkpoints(id).unwrap().iter().map(|c| c.name).collect();
                    if !names.is_empty() {
                        let name = *rng.pick(&names);
                        let (undo, job) = host.pool.restore(id, name).unwrap();
                        host.pool.finish(job).unwrap();
                        model.restore("disk", &name.to_string(), &undo.name.to_string());
                        // Automatic ones are pruned.
                        let kept: Vec<_> =
                            host.pool.checkpoints(id).unwrap().iter().map(|c| c.name.to_string()).collect();
                        model.checkpoints.retain(|(_, name), _| kept.contains(name));
                    }
                }
                2 => {
                    let at = rng.below(BLOCKS - 1);
                    let len = rng.below(BLOCKS - at) + 1;
                    host.pool.trim(id, (at * BLOCK) as u64, (len * BLOCK) as u64).unwrap();
                    model.zero("disk", at * BLOCK, len * BLOCK);
                }
                3 | 4 => tolerate(host.step()),
                5 => host.pool.maintain().unwrap(),
                _ => {
                    let at = rng.below(BLOCKS - 40);
                    let len = (rng.below(40) + 1) * BLOCK;
                    let data = rng.bytes(len);
                    host.pool.write(id, (at * BLOCK) as u64, &data).unwrap();
                    model.write("disk", at * BLOCK, &data);
                }
            }
            host.tend();
            states.push((host.pool.stats().next_lsn, model.clone()));
        }
        store.calm();
        let status = host.pool.remote_status(id).unwrap();
        let watermark = status.watermark.0;
        let mut attached = false;
        if rng.one_in(3) {
            let lost = rng.one_in(2);
            let disk = if lost { host.disk.after_power_loss(&mut || rng.one_in(2)) } else { host.disk.after_kill() };
            host = Host::open(disk, host.tier);
        } else {
            let mut next = Host::new(&store, &format!("host{turn}"));
            match next.attach("disk", true) {
                Ok(_) => {}
                // Nothing was ever promised to be there.
                Err(e) if status.manifest == 0 && e.kind() == ErrorKind::NotFound => return,
                Err(e) => panic!("seed {seed} turn {turn}: {e}"),
            }
            (host, attached) = (next, true);
        }
        let found = host.contents("disk", None);
        let prefix = states.iter().rposition(|(lsn, state)| {
            *lsn >= watermark && state.heads["disk"].to_vec() == found && {
                let names = host.pool.checkpoints(host.id("disk")).unwrap();
                names.len() == state.checkpoints.len()
                    && names.iter().all(|c| state.checkpoints.contains_key(&("disk".to_owned(), c.name.to_string())))
            }
        });
        let Some(at) = prefix else {
            panic!("seed {seed} turn {turn}: no state from {watermark} on is what was found")
        };
        model = states[at].1.clone();
        states.truncate(at + 1);
        if attached {
            states.clear();
        }
        for info in host.pool.checkpoints(host.id("disk")).unwrap() {
            let expected = &model.checkpoints[&("disk".to_owned(), info.name.to_string())];
            assert!(
                host.contents("disk", Some(info.name)) == expected.to_vec(),
                "seed {seed} turn {turn} {}",
                info.name
            );
        }
        let check = host.pool.check().unwrap();
        assert!(check.problems.is_empty(), "seed {seed} turn {turn}: {:?}", check.problems);
    }
}

/// A log segment that lived in the anchor and died before the cut: what replays the tail releases blocks of it, and must
/// not take a segment of its own for it.
#[test]
fn what_died_between_anchor_and_cut_is_nobody_elses() {
    let store = SimStore::new(4);
    let mut first = Host::new(&store, "first");
    let id = first.create("disk", 64 * BLOCK);
    first.write("disk", 0, 1, 10);
    first.pool.seal_log(id).unwrap();
    first.pool.anchor(Cleaning::Busy).unwrap();
    first.sync();
    first.write("disk", 0, 2, 10);
    first.sync();
    let mut second = Host::new(&store, "second");
    let other = second.create("other", 64 * BLOCK);
    second.write("other", 0, 3, 10);
    second.pool.anchor(Cleaning::Busy).unwrap();
    second.pool.seal_log(other).unwrap();
    second.write("other", 10, 4, 30);
    second.attach("disk", true).unwrap();
    let check = second.pool.check().unwrap();
    assert!(check.problems.is_empty(), "{:?}", check.problems);
    let expected: Vec<u8> = (0..64 * BLOCK).map(|at| if at < 10 * BLOCK { 2 } else { 0 }).collect();
    assert!(second.contents("disk", None) == expected);
}

#[test]
fn an_attachment_that_was_interrupted_is_done_again() {
    let store = SimStore::new(1);
    let mut first = Host::new(&store, "first");
    first.create("disk", 64 * BLOCK);
    first.write("disk", 0, 1, 10);
    first.sync();
    let mut second = Host::new(&store, "second");
    let job = second.pool.attach_job("disk", true).unwrap();
    job.run().unwrap();
    let id = second.pool.attached(job).unwrap();
    second.pool.anchor(Cleaning::Busy).unwrap();
    // Nothing can be promised yet.
    assert_eq!(second.pool.write(id, 0, &[2; BLOCK]).unwrap_err().kind(), ErrorKind::Busy);
    assert!(second.pool.create_checkpoint(id, "").is_err());
    assert!(second.pool.view(id, None).is_err());
    let mut second = Host::open(second.disk.after_kill(), second.tier);
    assert!(second.pool.volume_id("disk").is_err(), "it was given up");
    second.attach("disk", false).unwrap();
    assert_eq!(second.contents("disk", None)[9 * BLOCK], 1);
}

#[test]
fn a_name_clash_with_a_volume_that_changed_hands() {
    let store = SimStore::new(1);
    let mut first = Host::new(&store, "first");
    first.create("disk", 64 * BLOCK);
    first.write("disk", 0, 1, 10);
    first.sync();
    let mut second = Host::new(&store, "second");
    second.attach("disk", true).unwrap();
    second.write("disk", 0, 5, 1);
    second.sync();
    let mut third = Host::new(&store, "third");
    let id = third.create("disk", 64 * BLOCK);
    third.pool.anchor(Cleaning::Busy).unwrap();
    third.write("disk", 3, 7, 1);
    third.pool.flush(id).unwrap();
    let mut third = Host::open(third.disk.after_kill(), third.tier);
    assert!(matches!(third.pool.remote_status(id).unwrap().standing, Standing::Refused(_)));
    assert_eq!(third.contents("disk", None)[3 * BLOCK], 7);
}

#[test]
fn a_replayed_creation_is_uploaded() {
    let store = SimStore::new(1);
    let mut first = Host::new(&store, "first");
    let id = first.create("disk", 64 * BLOCK);
    first.write("disk", 0, 1, 10);
    first.pool.flush(id).unwrap();
    let mut first = Host::open(first.disk.after_kill(), first.tier);
    first.sync();
    first.write("disk", 1, 1, 10);
    first.sync();
    assert!(first.pool.remote_status(id).is_some_and(|s| s.manifest > 0));
}

#[test]
fn a_volume_goes_through_many_hands() {
    let store = SimStore::new(9);
    let mut host = Host::new(&store, "h0");
    host.create("disk", 256 * BLOCK);
    let mut expected = vec![0; 256 * BLOCK];
    for turn in 1..12usize {
        for k in 0..6 {
            let at = (turn * 37 + k * 11) % 250;
            host.write("disk", at, (turn * 7 + k) as u8, 5);
            expected[at * BLOCK..(at + 5) * BLOCK].fill((turn * 7 + k) as u8);
            let id = host.id("disk");
            match k {
                2 => {
                    host.pool.seal_log(id).unwrap();
                    host.pool.anchor(Cleaning::Busy).unwrap();
                }
                3 => {
                    let (info, job) = host.pool.create_checkpoint(id, "").unwrap();
                    host.pool.finish(job).unwrap();
                    if turn % 2 == 0 {
                        let job = host.pool.delete_checkpoint(id, info.name).unwrap();
                        host.pool.finish(job).unwrap();
                    }
                }
                4 => host.pool.maintain().unwrap(),
                _ => {}
            }
            if k % 2 == 1 {
                host.sync();
            }
        }
        host.sync();
        let mut next = Host::new(&store, &format!("h{turn}"));
        let other = next.create("other", 256 * BLOCK);
        for block in 0..turn * 3 {
            next.write("other", block * 2, 99, 2);
            next.pool.seal_log(other).unwrap();
        }
        next.attach("disk", true).unwrap();
        assert!(next.contents("disk", None) == expected, "turn {turn}");
        next.pool.maintain().unwrap();
        next.sync();
        let check = next.pool.check().unwrap();
        assert!(check.problems.is_empty(), "turn {turn} {:?}", check.problems);
        host = next;
    }
}

/// Two hosts, one of which is stopped at any moment and goes on later, with clocks that are wrong: no change is
/// acknowledged by both, and what the loser did is nowhere.
#[test]
fn two_hosts_never_both_acknowledge() {
    let (mut acknowledged, mut refused) = (0, 0);
    for seed in 0..200 {
        let store = SimStore::new(seed);
        let mut rng = Rng::new(seed);
        let mut first = Host::new(&store, "first");
        let id = first.create("disk", 64 * BLOCK);
        first.write("disk", 0, 1, 10);
        first.sync();
        // Time that passes before the first host is stopped, or while it is.
        first.clock.advance_us(rng.below(LEASE_US as usize) as u64);
        let second = Host::new(&store, "second");
        let mut second = Host::open_at(second.disk, second.tier, Arc::new(SimClock::skewed(rng.word() >> 14)));
        let job = second.pool.attach_job("disk", true).unwrap();
        // As a daemon does: it answers on a lease.
        let acknowledge = |first: &mut Host| {
            if !first.pool.is_lease_held(id) {
                let job = first.pool.lease_job(&[id]).unwrap();
                job.run();
                first.pool.lease_seen(&job);
            }
            first.pool.is_lease_held(id) && first.pool.write(id, 0, &[9; BLOCK]).is_ok()
        };
        acknowledged += usize::from(acknowledge(&mut first));
        job.run().unwrap();
        let taken = second.pool.attached(job).unwrap();
        second.pool.anchor(Cleaning::Busy).unwrap();
        second.sync();
        // Both clocks go on alike; the second host serves when it may.
        let mut passed = 0;
        while second.pool.write(taken, 0, &[7; BLOCK]).is_err() {
            let step = rng.below(LEASE_US as usize / 3) as u64;
            first.clock.advance_us(step);
            second.clock.advance_us(step);
            second.sync();
            passed += step;
            if rng.one_in(3) {
                acknowledged += usize::from(acknowledge(&mut first));
            }
            assert!(passed < 3 * LEASE_US, "seed {seed}");
        }
        for _ in 0..5 {
            assert!(!acknowledge(&mut first), "seed {seed}: acknowledged by both");
            refused += 1;
            first.clock.advance_us(rng.below(2 * LEASE_US as usize) as u64);
        }
        // What it has is not uploaded, either.
        first.sync();
        second.sync();
        assert!(matches!(first.pool.remote_status(id).unwrap().standing, Standing::Fenced(_)), "seed {seed}");
        let mut third = Host::new(&store, "third");
        third.attach("disk", true).unwrap();
        assert_eq!(third.contents("disk", None)[..BLOCK], [7; BLOCK], "seed {seed}");
    }
    assert!(acknowledged > 100 && refused == 1000, "{acknowledged} {refused}");
}

/// The claim of a takeover is in the store, and whoever had the volume may not know yet: neither a restart nor another
/// attempt shortens the wait.
#[test]
fn a_takeover_that_is_begun_again_waits_again() {
    for restarts_after_anchor in [false, true] {
        let store = SimStore::new(6);
        let mut first = Host::new(&store, "first");
        first.create("disk", 64 * BLOCK);
        first.write("disk", 0, 1, 10);
        first.sync();
        let mut second = Host::new(&store, "second");
        let job = second.pool.attach_job("disk", true).unwrap();
        job.run().unwrap();
        if restarts_after_anchor {
            second.pool.attached(job).unwrap();
            second.pool.anchor(Cleaning::Busy).unwrap();
            second.sync();
        }
        let clock = second.clock.clone();
        let mut second = Host::open_at(second.disk.after_kill(), second.tier, clock);
        assert!(second.pool.volume_id("disk").is_err(), "given up, to be attached again");
        let job = second.pool.attach_job("disk", false).unwrap();
        job.run().unwrap();
        let id = second.pool.attached(job).unwrap();
        second.pool.anchor(Cleaning::Busy).unwrap();
        second.sync();
        second.clock.advance_us(LEASE_US);
        second.sync();
        let e = second.pool.write(id, 0, &[2; BLOCK]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Busy, "the other host's lease may not be over: {e}");
        second.clock.advance_us(LEASE_US);
        second.sync();
        second.pool.write(id, 0, &[2; BLOCK]).unwrap();
    }
}

/// Whoever wrote a manifest that cannot be read here has the volume.
#[test]
fn a_manifest_from_the_future_ends_the_lease() {
    let store = SimStore::new(7);
    let mut first = Host::new(&store, "first");
    let id = first.create("disk", 64 * BLOCK);
    first.write("disk", 0, 1, 10);
    first.sync();
    let mut second = Host::new(&store, "second");
    second.attach("disk", true).unwrap();
    for key in store.keys().iter().filter(|key| key.starts_with("volumes/disk/")).take(2) {
        let mut body = store.body(key).unwrap();
        body[8] = 99;
        body[12..16].fill(0);
        let checksum = crc32fast::hash(&body).to_le_bytes();
        body[12..16].copy_from_slice(&checksum);
        store.replace(key, Some(&body));
    }
    first.clock.advance_us(2 * LEASE_US);
    let job = first.pool.lease_job(&[id]).unwrap();
    job.run();
    first.pool.lease_seen(&job);
    assert_eq!(first.pool.write(id, 0, &[9; BLOCK]).unwrap_err().kind(), ErrorKind::Fenced);
}

#[test]
fn the_lag_in_bytes_is_that_of_each_volume() {
    let store = SimStore::new(77);
    let mut host = Host::new(&store, "host");
    let (busy, idle) = (host.create("busy", 64 * BLOCK), host.create("idle", 64 * BLOCK));
    host.sync();
    host.pool.write(busy, 0, &[7; 5 * BLOCK]).unwrap();
    // Blocks that were overwritten will not be sent.
    host.pool.write(busy, 0, &[8; 2 * BLOCK]).unwrap();
    assert_eq!((host.pool.lag_bytes(busy), host.pool.lag_bytes(idle)), (5 * BLOCK as u64, 0));
    host.pool.write(idle, 0, &[9; BLOCK]).unwrap();
    assert_eq!(host.pool.lag_bytes(idle), BLOCK as u64);
    assert_eq!(host.pool.unsent_bytes(), 6 * BLOCK as u64);
    host.sync();
    assert_eq!((host.pool.lag_bytes(busy), host.pool.lag_bytes(idle)), (0, 0));
}
