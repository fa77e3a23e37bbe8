//! Segments that are given up because the object store has them: nothing that was promised goes with their files.

use blockstore::object::ObjectTier;
use blockstore::testing::{sim_tier, Fault, Rng, SimClock, SimDisk, SimStore};
use blockstore::{CheckpointName, Cleaning, ErrorKind, Pool, PoolOptions, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

const BLOCK: usize = 4096;
const BLOCKS: usize = 256;
/// Less than what the tests write, more than what cannot be given up.
const LIMIT: u64 = 80 * BLOCK as u64;

/// What a volume, or its checkpoint, holds: a byte for each block.
type Model = BTreeMap<(String, Option<CheckpointName>), Vec<u8>>;

struct Host {
    disk: SimDisk,
    pool: Pool,
    tier: ObjectTier,
    model: Model,
}

fn try_open(disk: &SimDisk, tier: &ObjectTier) -> blockstore::Result<Pool> {
    let options = PoolOptions { map_cache: 1 << 20, anchor_bytes: 256 << 10 };
    Ok(Pool::open_with(disk.handle(), Arc::new(SimClock::default()), options, Some(tier.clone()))?.0)
}

impl Host {
    fn new(store: &SimStore, name: &str) -> Self {
        let disk = SimDisk::new();
        let id = name.as_bytes()[0];
        Pool::create(&disk.handle(), &SimClock::default(), [id; 16]).unwrap();
        let tier = sim_tier(store, name);
        let pool = try_open(&disk, &tier).unwrap();
        Self { disk, pool, tier, model: Model::new() }
    }

    fn reopen(self, disk: SimDisk) -> Self {
        let pool = try_open(&disk, &self.tier).unwrap();
        Self { disk, pool, ..self }
    }

    fn id(&self, volume: &str) -> VolumeId {
        self.pool.volume_id(volume).unwrap()
    }

    fn create(&mut self, volume: &str) {
        let (_, job) = self.pool.create_volume(volume, (BLOCKS * BLOCK) as u64).unwrap();
        self.pool.finish(job).unwrap();
        self.model.insert((volume.to_owned(), None), vec![0; BLOCKS]);
    }

    fn write(&mut self, volume: &str, at: usize, byte: u8, blocks: usize) {
        self.pool.write(self.id(volume), (at * BLOCK) as u64, &vec![byte; blocks * BLOCK]).unwrap();
        self.model.get_mut(&(volume.to_owned(), None)).unwrap()[at..at + blocks].fill(byte);
    }

    /// A segment of its own, durable here.
    fn write_segment(&mut self, volume: &str, at: usize, byte: u8, blocks: usize) {
        self.write(volume, at, byte, blocks);
        let id = self.id(volume);
        self.pool.seal_log(id).unwrap();
        self.pool.flush(id).unwrap();
    }

    fn checkpoint(&mut self, volume: &str) -> CheckpointName {
        let (info, job) = self.pool.create_checkpoint(self.id(volume), "").unwrap();
        self.pool.finish(job).unwrap();
        let now = self.model[&(volume.to_owned(), None)].clone();
        self.model.insert((volume.to_owned(), Some(info.name)), now);
        info.name
    }

    fn fork(&mut self, volume: &str, checkpoint: Option<CheckpointName>, name: &str) {
        let (_, job) = self.pool.fork(self.id(volume), checkpoint, name).unwrap();
        self.pool.finish(job).unwrap();
        let then = self.model[&(volume.to_owned(), checkpoint)].clone();
        self.model.insert((name.to_owned(), None), then);
    }

    fn tend(&mut self) -> blockstore::Result<()> {
        for turn in 0.. {
            if !self.pool.wants_anchor() {
                break;
            }
            assert!(turn < 20, "anchors without end");
            self.pool.anchor(Cleaning::Busy)?;
            self.clean()?;
        }
        Ok(())
    }

    fn clean(&mut self) -> blockstore::Result<()> {
        while let Some(job) = self.pool.clean_job() {
            let outcome = job.run();
            self.pool.cleaned(job, outcome)?;
        }
        Ok(())
    }

    /// All that can be uploaded.
    fn sync(&mut self) -> blockstore::Result<()> {
        for turn in 0.. {
            assert!(turn < 50, "rounds without end");
            self.tend()?;
            let Some(job) = self.pool.tier_job()? else { return Ok(()) };
            let outcome = job.run();
            self.pool.tier_done(job, outcome)?;
        }
        Ok(())
    }

    /// What the daemon does when the room is short, until nothing more helps.
    fn make_room(&mut self) -> blockstore::Result<()> {
        self.pool.set_local_limit(Some(LIMIT));
        for _ in 0..8 {
            self.pool.look_at_room(true);
            self.tend()?;
        }
        Ok(())
    }

    fn contents(&mut self, volume: &str, checkpoint: Option<CheckpointName>) -> blockstore::Result<Vec<u8>> {
        let view = self.pool.view(self.id(volume), checkpoint)?;
        let mut out = vec![0; BLOCKS * BLOCK];
        self.pool.read(view, 0, &mut out)?;
        Ok(out)
    }

    fn verify(&mut self, context: &str) {
        for ((volume, checkpoint), blocks) in self.model.clone() {
            let found = self.contents(&volume, checkpoint).unwrap_or_else(|e| panic!("{context}: {volume}: {e}"));
            let same = found.chunks_exact(BLOCK).zip(&blocks).all(|(block, byte)| block.iter().all(|b| b == byte));
            assert!(same, "{context}: {volume} {checkpoint:?}");
        }
        let check = self.pool.check().unwrap();
        assert!(check.problems.is_empty(), "{context}: {:?}", check.problems);
    }

    /// As a command beside the running daemon does it.
    fn scrub(&mut self) -> Vec<String> {
        let (anchor, audit) = self.pool.begin_audit().unwrap();
        let outcome = anchor.run();
        self.pool.anchored(anchor, outcome).unwrap();
        let mut audit = audit.open().unwrap();
        assert_eq!(audit.check(&mut |_, _| true).unwrap().problems, Vec::<String>::new());
        let report = audit.scrub(None, &mut |_, _| true).unwrap();
        self.pool.end_audit();
        report.damaged
    }

    fn evicted(&self) -> u64 {
        self.pool.stats().evicted / BLOCK as u64
    }
}

/// Ten segments of ten blocks, a checkpoint and a fork between them, all of it in the store.
fn filled(store: &SimStore) -> Host {
    let mut host = Host::new(store, "host");
    host.create("disk");
    for i in 0..10 {
        host.write_segment("disk", i * 12, i as u8 + 1, 10);
        if i == 4 {
            let v1 = host.checkpoint("disk");
            host.fork("disk", Some(v1), "fork");
            host.write_segment("fork", 3, 99, 4);
            host.write_segment("disk", 5, 77, 20);
        }
    }
    host.pool.anchor(Cleaning::Busy).unwrap();
    host.sync().unwrap();
    host
}

#[test]
fn what_the_store_has_is_given_up_and_read_there() {
    let store = SimStore::new(1);
    let mut host = filled(&store);
    host.verify("all is here");
    assert_eq!(host.evicted(), 0);
    host.make_room().unwrap();
    let stats = host.pool.stats();
    assert!(host.evicted() > 60 && stats.stored <= LIMIT, "{stats:?}");
    // The oldest go first.
    let files = |host: &Host| host.disk.names().into_iter().filter(|name| name.starts_with("seg-")).collect::<Vec<_>>();
    assert!(!files(&host).contains(&"seg-00000002".to_owned()), "{:?}", files(&host));
    host.verify("given up");
    assert_eq!(host.scrub(), Vec::<String>::new());
    let disk = host.disk.after_kill();
    let mut host = host.reopen(disk);
    assert!(host.evicted() > 60);
    host.verify("opened again");
    // What is written there now is uploaded and given up, too.
    for i in 0..10 {
        host.write_segment("disk", i * 9, i as u8 + 100, 9);
        host.sync().unwrap();
        host.make_room().unwrap();
    }
    host.verify("written over");
    // Trims reach what was given up.
    let id = host.id("disk");
    host.pool.trim(id, 0, (BLOCKS * BLOCK) as u64).unwrap();
    host.model.get_mut(&("disk".to_owned(), None)).unwrap().fill(0);
    host.pool.maintain().unwrap();
    host.sync().unwrap();
    host.verify("trimmed");
    let disk = host.disk.after_kill();
    host.reopen(disk).verify("trimmed and opened again");
}

#[test]
fn without_a_limit_everything_stays() {
    let store = SimStore::new(2);
    let mut host = filled(&store);
    for _ in 0..5 {
        host.pool.look_at_room(true);
        host.pool.maintain().unwrap();
    }
    assert_eq!(host.evicted(), 0);
    assert!(!host.pool.holds_writers());
}

/// The power fails, or the process dies, at any call to the disk while segments are given up.
#[test]
fn giving_up_survives_power_loss_and_death_at_every_call() {
    let (mut points, mut partly, mut whole) = (0, 0, 0);
    for call in 1.. {
        let mut fired = true;
        for image in 0..4 {
            let store = SimStore::new(3);
            let mut host = filled(&store);
            host.disk.inject(host.disk.calls() + call, Fault::PowerLoss);
            let outcome = host.make_room().and_then(|()| host.pool.maintain()).and_then(|()| host.sync());
            fired = host.disk.is_dead();
            assert!(fired || outcome.is_ok(), "{outcome:?}");
            let mut rng = Rng::new(call);
            let disk = match image {
                0 => host.disk.after_kill(),
                1 => host.disk.after_power_loss(&mut || false),
                2 => host.disk.after_power_loss(&mut || true),
                _ => host.disk.after_power_loss(&mut || rng.one_in(2)),
            };
            let context = format!("call {call} image {image}");
            let mut host = host.reopen(disk);
            host.verify(&context);
            *(if host.evicted() > 0 { &mut partly } else { &mut whole }) += 1;
            host.write("disk", 200, 5, 3);
            host.sync().unwrap();
            host.make_room().unwrap();
            assert!(host.pool.stats().stored <= LIMIT, "{context}: {:?}", host.pool.stats());
            let known = host.pool.stats().segments;
            let files = host.disk.names().iter().filter(|name| name.starts_with("seg-")).count() as u64;
            assert!(files < known, "{context}: {files} files of {known} segments");
            host.verify(&format!("{context}, room made"));
        }
        points += 1;
        if !fired {
            break;
        }
    }
    println!("{points} points, {partly} images with segments in the store alone, {whole} without");
    assert!(points > 20 && partly > 20 && whole > 20, "{points} {partly} {whole}");
}

/// Every call to the disk fails once while segments are given up: nothing is lost, and it is done later.
#[test]
fn giving_up_survives_a_failure_of_every_call() {
    for fault in [Fault::NoSpace, Fault::Io] {
        for call in 1.. {
            let store = SimStore::new(4);
            let mut host = filled(&store);
            host.disk.inject(host.disk.calls() + call, fault);
            let _ = host.make_room().and_then(|()| host.pool.maintain());
            let fired = host.disk.fault_fired();
            host.disk.inject(u64::MAX, fault);
            host.verify(&format!("{fault:?} at {call}"));
            if host.pool.poisoned().is_none() {
                host.pool.maintain().unwrap();
                host.make_room().unwrap();
                assert!(host.evicted() > 60, "{fault:?} at {call}");
                host.verify(&format!("{fault:?} at {call}, room made"));
            }
            let disk = host.disk.after_kill();
            host.reopen(disk).verify(&format!("{fault:?} at {call}, opened again"));
            if !fired {
                break;
            }
        }
    }
}

#[test]
fn a_store_that_does_not_answer_is_named_and_heals() {
    let store = SimStore::new(5);
    let mut host = filled(&store);
    host.make_room().unwrap();
    store.cut_off("host");
    // Directories that were just put are kept; blocks are not.
    let e = host.contents("disk", None).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    assert!(e.to_string().contains("objects/"), "{e}");
    // What is here goes on.
    host.write_segment("disk", 240, 9, 3);
    let view = host.pool.view(host.id("disk"), None).unwrap();
    let mut block = [0; BLOCK];
    host.pool.read(view, 240 * BLOCK as u64, &mut block).unwrap();
    assert_eq!(block, [9; BLOCK]);
    store.resume("host");
    host.verify("it answers again");
}

/// A block that is damaged here is read from the store, and nothing else is when that does not answer.
#[test]
fn what_is_damaged_here_is_read_there() {
    let store = SimStore::new(10);
    let mut host = filled(&store);
    let mut damaged = 0;
    for name in host.disk.names().iter().filter(|name| name.starts_with("seg-")) {
        host.disk.edit(name, |bytes| {
            let data =
                bytes.chunks_exact_mut(BLOCK).filter(|block| block[1..].iter().all(|b| *b == block[0] && *b != 0));
            data.for_each(|block| {
                block[77] ^= 1;
                damaged += 1;
            });
        });
    }
    assert!(damaged > 100, "{damaged}");
    store.cut_off("host");
    let e = host.contents("disk", None).unwrap_err();
    assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains("damaged"), "{e}");
    store.resume("host");
    host.verify("from the store");
}

#[test]
fn what_is_not_in_the_store_is_not_given_up() {
    let store = SimStore::new(6);
    let mut host = filled(&store);
    store.cut_off("host");
    for i in 0..10 {
        host.write_segment("disk", i * 11, i as u8 + 50, 11);
    }
    let before = host.evicted();
    host.make_room().unwrap();
    let kept = host.pool.unsent_bytes();
    assert!(host.evicted() > before && kept >= 110 * BLOCK as u64);
    assert!(host.pool.holds_writers(), "nothing is left to give up");
    let disk = host.disk.after_kill();
    store.resume("host");
    let mut host = host.reopen(disk);
    host.verify("what was not uploaded was here");
    host.sync().unwrap();
    host.make_room().unwrap();
    assert!(!host.pool.holds_writers());
    host.verify("uploaded and given up");
}

/// The only manifest that says where a fork's blocks are is its parent's: it stays until the fork has its own.
#[test]
fn no_volume_goes_while_a_fork_needs_its_manifest() {
    let store = SimStore::new(7);
    let mut host = filled(&store);
    host.make_room().unwrap();
    host.fork("disk", None, "late");
    let disk = host.id("disk");
    let e = host.pool.delete_volume(disk).map(drop).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(e.to_string().contains("late"), "{e}");
    assert!(host.pool.detach(disk).is_err());
    host.sync().unwrap();
    let job = host.pool.delete_volume(disk).unwrap();
    host.pool.finish(job).unwrap();
    host.model.retain(|(volume, _), _| volume != "disk");
    let image = host.disk.after_kill();
    let mut host = host.reopen(image);
    host.verify("the parent is gone");
    host.sync().unwrap();
    host.pool.maintain().unwrap();
    let image = host.disk.after_kill();
    host.reopen(image).verify("and so is its manifest");
}

/// A fork that is not in the store keeps what it shares here; once it is there, it does not keep its parent's new
/// segments, of which it has nothing.
#[test]
fn a_fork_keeps_what_it_shares_until_it_is_uploaded() {
    let store = SimStore::new(8);
    let mut host = filled(&store);
    store.cut_off("host");
    host.fork("disk", None, "late");
    host.make_room().unwrap();
    // Only what the other fork has for itself.
    assert_eq!(host.evicted(), 4);
    store.resume("host");
    host.sync().unwrap();
    for i in 0..10 {
        host.write_segment("disk", i * 12, i as u8 + 60, 12);
    }
    host.pool.anchor(Cleaning::Busy).unwrap();
    host.sync().unwrap();
    host.make_room().unwrap();
    assert!(host.pool.stats().stored <= LIMIT);
    host.verify("both");
}

/// Writes while the store is away, until writers are held; then it comes back.
fn fill_and_upload(host: &mut Host, store: &SimStore, most: u64) {
    const MIB: u64 = 1 << 20;
    host.create("disk");
    host.sync().unwrap();
    let id = host.id("disk");
    store.cut_off("host");
    let data = vec![7; MIB as usize];
    let mut written = 0;
    host.pool.look_at_room(true);
    let (_, job) = host.pool.create_volume("big", 256 * MIB).unwrap();
    host.pool.finish(job).unwrap();
    let big = host.id("big");
    while !host.pool.holds_writers() || host.pool.must_look_at_room() {
        host.pool.write(big, written % (256 * MIB), &data).unwrap();
        written += MIB;
        host.pool.look_at_room(true);
        host.tend().unwrap();
        assert!(written < most + most / 2, "they are held");
    }
    assert!(host.pool.stats().stored <= most + MIB, "{:?}", host.pool.stats());
    assert!(written > most / 8 * 5, "{written}");
    // Others go on.
    host.pool.trim(id, 0, BLOCK as u64).unwrap();
    host.pool.flush(big).unwrap();
    let mut block = [0; BLOCK];
    host.pool.read(host.pool.view(big, None).unwrap(), 0, &mut block).unwrap();
    // Nobody waits for a store that is given up.
    host.pool.look_at_room(false);
    assert!(!host.pool.holds_writers());
    host.pool.look_at_room(true);
    assert!(host.pool.holds_writers());
    store.resume("host");
    host.sync().unwrap();
    for _ in 0..4 {
        host.pool.look_at_room(true);
        host.tend().unwrap();
    }
    host.pool.look_at_room(true);
    assert!(!host.pool.holds_writers() && host.evicted() > 0);
}

#[test]
fn writers_wait_for_uploads_and_go_on_after_them() {
    let store = SimStore::new(9);
    let mut host = Host::new(&store, "host");
    host.pool.set_local_limit(Some(80 << 20));
    fill_and_upload(&mut host, &store, 80 << 20);
}

/// Without a limit it is the disk's end that counts: a quarter of a small one is left free.
#[test]
fn a_disk_that_gets_full_is_a_limit_too() {
    let store = SimStore::new(11);
    let mut host = Host::new(&store, "host");
    host.disk.set_total(128 << 20);
    fill_and_upload(&mut host, &store, 96 << 20);
}

/// Everything at random, with deaths in between; whatever was done is there.
#[test]
fn any_history_with_segments_given_up_is_kept() {
    let mut evicted = 0;
    for seed in 0..40 {
        let store = SimStore::new(seed);
        let mut rng = Rng::new(seed);
        let mut host = Host::new(&store, "host");
        host.create("disk");
        for turn in 0..120 {
            let heads = host.model.keys().filter(|(_, checkpoint)| checkpoint.is_none());
            let volumes: Vec<String> = heads.map(|(volume, _)| volume.clone()).collect();
            let volume = rng.pick(&volumes).clone();
            let context = format!("seed {seed} turn {turn}");
            match rng.below(20) {
                0 => drop(host.checkpoint(&volume)),
                1 if volumes.len() < 5 => host.fork(&volume, None, &format!("fork-{turn}")),
                2 if volumes.len() > 1 => match host.pool.delete_volume(host.id(&volume)) {
                    Ok(job) => {
                        host.pool.finish(job).unwrap();
                        host.model.retain(|(name, _), _| *name != volume);
                    }
                    Err(e) => assert_eq!(e.kind(), ErrorKind::Busy, "{context}"),
                },
                3 => {
                    let (at, len) = (rng.below(BLOCKS - 40), rng.below(40) + 1);
                    host.pool.trim(host.id(&volume), (at * BLOCK) as u64, (len * BLOCK) as u64).unwrap();
                    host.model.get_mut(&(volume, None)).unwrap()[at..at + len].fill(0);
                }
                4 => store.cut_off("host"),
                5 => store.resume("host"),
                6 => drop(host.sync()),
                7 | 8 => host.make_room().unwrap(),
                9 => host.pool.maintain().unwrap(),
                10 => {
                    store.resume("host");
                    evicted += host.evicted();
                    let disk = host.disk.after_kill();
                    host = host.reopen(disk);
                    host.verify(&context);
                }
                _ => {
                    let (at, len) = (rng.below(BLOCKS - 20), rng.below(20) + 1);
                    host.write_segment(&volume, at, rng.below(255) as u8 + 1, len);
                }
            }
        }
        store.resume("host");
        host.verify(&format!("seed {seed}"));
        host.sync().unwrap();
        host.make_room().unwrap();
        host.verify(&format!("seed {seed}, at the end"));
    }
    assert!(evicted > 1000, "{evicted}");
}
