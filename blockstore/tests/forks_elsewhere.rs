//! Forks, read-only or not, of volumes that another host has and goes on with.

mod bucket_world;

use blockstore::object::{
    check_bucket, list_volumes, Created, ObjectEntry, ObjectStore, ObjectTier, Range, Standing, StoreResult, Tenure,
};
use blockstore::testing::{sim_tier, Rng, SimStore, StoreFault, StoreOp};
use blockstore::{CheckpointName, ErrorKind};
use bucket_world::*;
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn v1() -> CheckpointName {
    CheckpointName::parse("v1").unwrap()
}

/// Two hosts, the first of which has 300 blocks and a checkpoint of them in "disk".
fn world(seed: u64) -> (World, Vec<u8>) {
    let mut world = World::new(seed, 2);
    let block = data(&mut Rng::new(seed), 300);
    let host = &mut world.hosts[0];
    let id = host.create("disk");
    host.write("disk", 0, &block);
    let (_, job) = host.pool.create_checkpoint(id, "before").unwrap();
    host.pool.finish(job).unwrap();
    host.sync();
    (world, block)
}

/// What is attached to be read is as it was, whatever its owner does, and cannot be changed; the owner goes on.
#[test]
fn a_reader_sees_one_moment_and_its_owner_goes_on() {
    let (mut world, block) = world(31);
    let [first, second] = &mut world.hosts[..] else { panic!("two hosts") };
    let id = second.fork_from("disk", "disk-ro", true).unwrap();
    second.sync();
    assert!(second.pool.volume_info(id).unwrap().read_only);
    for (what, refused) in [
        ("write", second.pool.write(id, 0, &block[..BLOCK])),
        ("part of a block", second.pool.write(id, 100, &block[..7])),
        ("trim", second.pool.trim(id, 0, BLOCK as u64)),
        ("zeroes", second.pool.write_zeroes(id, 0, BLOCK as u64, false)),
        ("resize", second.pool.resize_volume(id, 1 << 30).map(drop)),
        ("restore", second.pool.restore(id, v1()).map(drop)),
    ] {
        let e = refused.unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("read-only"), "{what}: {e}");
    }
    // The owner overwrites all of it, deletes the checkpoint, and its cleaner is done with it.
    let other = data(&mut Rng::new(7), 300);
    let owned = first.id("disk");
    first.write("disk", 0, &other);
    let job = first.pool.delete_checkpoint(owned, v1()).unwrap();
    first.pool.finish(job).unwrap();
    world.quiesce("overwritten");
    let [first, second] = &mut world.hosts[..] else { panic!("two hosts") };
    assert_eq!(first.pool.remote_status(owned).unwrap().standing, Standing::Owned);
    assert!(first.contents("disk", None).unwrap()[..300 * BLOCK] == other);
    // After a restart, too, of which nothing is in memory.
    let disk = second.disk.after_kill();
    second.reopen(disk);
    second.sync();
    let id = second.id("disk-ro");
    assert!(second.pool.volume_info(id).unwrap().read_only);
    assert!(second.contents("disk-ro", None).unwrap()[..300 * BLOCK] == block);
    assert!(second.contents("disk-ro", Some(v1())).unwrap()[..300 * BLOCK] == block);
    // A fork of it can be written, and it can be let go: then the owner's cleaner has the rest.
    let (_, job) = second.pool.fork(id, None, "mine").unwrap();
    second.pool.finish(job).unwrap();
    second.sync();
    second.write("mine", 5, &other[..BLOCK]);
    second.delete("mine");
    second.delete("disk-ro");
    world.quiesce("deleted");
    world.pass(25 * 60 * MINUTE);
    world.quiesce("a day later");
    let left = bytes_under(&world.store, "objects/");
    assert!(left < 330 * BLOCK, "{left} bytes for 300 blocks");
}

/// The mark is in the manifest, too: whoever attaches the volume next finds it read-only, and can make it writable.
#[test]
fn read_only_moves_with_the_volume() {
    let (mut world, block) = world(32);
    let [first, second] = &mut world.hosts[..] else { panic!("two hosts") };
    let id = first.id("disk");
    let job = first.pool.set_read_only(id, true).unwrap();
    first.pool.finish(job).unwrap();
    let disk = first.disk.after_kill();
    first.reopen(disk);
    first.sync();
    assert_eq!(first.pool.write(id, 0, &block[..BLOCK]).unwrap_err().kind(), ErrorKind::Invalid);
    first.detach("disk").unwrap();
    first.sync();
    second.attach("disk", false).unwrap();
    second.sync();
    let id = second.id("disk");
    assert_eq!(second.pool.write(id, 0, &block[..BLOCK]).unwrap_err().kind(), ErrorKind::Invalid);
    let job = second.pool.set_read_only(id, false).unwrap();
    second.pool.finish(job).unwrap();
    second.write("disk", 0, &block[..BLOCK]);
    // Checkpoints are no change of what the volume is.
    let job = second.pool.set_read_only(id, true).unwrap();
    second.pool.finish(job).unwrap();
    let (_, job) = second.pool.create_checkpoint(id, "after").unwrap();
    second.pool.finish(job).unwrap();
}

#[test]
fn a_fork_elsewhere_is_refused_where_it_cannot_be() {
    let (mut world, _) = world(33);
    let [first, second] = &mut world.hosts[..] else { panic!("two hosts") };
    second.create("mine");
    second.sync();
    let refused = |host: &mut Host, from: &str, new: &str, kind: ErrorKind, says: &str| {
        let e = host.fork_from(from, new, true).unwrap_err();
        assert!(e.kind() == kind && e.to_string().contains(says), "{from} {new}: {e}");
    };
    refused(second, "nobody", "x", ErrorKind::NotFound, "nobody");
    refused(second, "disk", "mine", ErrorKind::Exists, "mine");
    refused(second, "disk", "disk", ErrorKind::Exists, "--as");
    refused(second, "disk", "no/name", ErrorKind::Invalid, "name");
    refused(first, "disk", "x", ErrorKind::Invalid, "cairn fork disk x");
    refused(first, "disk", "mine", ErrorKind::Exists, "--as");
    let pins = world.store.keys().into_iter().filter(|key| key.starts_with("pins/") && key.ends_with("/x")).count();
    assert_eq!(pins, 0);
}

/// A store whose manifests are put when somebody lets them be.
struct Gated {
    store: SimStore,
    asked: SyncSender<String>,
    go: Mutex<Receiver<()>>,
}

impl ObjectStore for Gated {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        self.store.put(key, body)
    }
    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        self.asked.send(key.to_owned()).unwrap();
        self.go.lock().unwrap().recv().unwrap();
        self.store.put_if_absent(key, body)
    }
    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        self.store.get(key, range)
    }
    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        self.store.list(prefix, after, max)
    }
    fn delete(&self, key: &str) -> StoreResult<()> {
        self.store.delete(key)
    }
}

/// A volume that was written between its newest manifest and the fork's is asked again; one that never rests is let be,
/// and nothing of the fork stays.
#[test]
#[expect(clippy::disallowed_methods, reason = "the job runs while its owner goes on")]
fn a_fork_of_what_is_being_written_names_nothing_old() {
    for times in [0, 3, 100] {
        let (mut world, _) = world(34);
        let block = data(&mut Rng::new(1), 1);
        let ((asked, questions), (answer, go)) = (sync_channel(1), sync_channel(1));
        let gated = Gated { store: world.store.client("host1"), asked, go: Mutex::new(go) };
        let tier = ObjectTier { store: Arc::new(gated), ..sim_tier(&world.store, "host1") };
        let second = Host::open(world.hosts[1].disk.after_kill(), tier, world.clock.clone());
        let job = second.pool.fork_job("disk", "copy", false).unwrap();
        // The owner has something to say before each manifest of the fork.
        let first = &mut world.hosts[0];
        let asking = std::thread::spawn(move || (job.run(), job, second));
        let mut rounds = 0;
        while !asking.is_finished() {
            let Ok(key) = questions.recv_timeout(Duration::from_millis(10)) else { continue };
            assert!(key.starts_with("volumes/copy/"), "{key}");
            if rounds < times {
                rounds += 1;
                first.write("disk", rounds, &block);
                first.sync();
            }
            answer.send(()).unwrap();
        }
        let (outcome, job, second) = asking.join().unwrap();
        let seen = list_volumes(&world.store.observer()).unwrap();
        if times == 100 {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Busy);
            assert_eq!(seen["copy"].tenure, Tenure::Deleted);
            let pins = world.store.keys().into_iter().filter(|key| key.starts_with("pins/") && key.ends_with("/copy"));
            assert_eq!(pins.count(), 0);
        } else {
            outcome.unwrap();
            assert_eq!(seen["copy"].number, times as u64 + 1);
            let mut second = second;
            second.tier = sim_tier(&world.store, "host1");
            drop(job);
            let disk = second.disk.after_kill();
            second.reopen(disk);
            // It died before it knew; what it put can be attached.
            second.attach("copy", false).unwrap();
            second.sync();
            assert!(times == 0 || second.contents("copy", None).unwrap()[3 * BLOCK..4 * BLOCK] == block);
        }
        let report = check_bucket(&world.store.observer(), true, &mut |_, _| true).unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
    }
}

/// A volume that was claimed, of which the pool died before it spoke of it, is not taken for a fork that was begun.
#[test]
fn a_claim_that_was_interrupted_is_no_fork() {
    let (mut world, block) = world(35);
    let [first, second] = &mut world.hosts[..] else { panic!("two hosts") };
    first.create("other");
    first.sync();
    second.pool.attach_job("disk", true).unwrap().run().unwrap();
    let e = second.fork_from("other", "disk", true).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Exists, "{e}");
    second.attach("disk", false).unwrap();
    second.sync();
    assert!(second.contents("disk", None).unwrap()[..300 * BLOCK] == block);
}

/// Whatever fails while it is made, it can be made again.
#[test]
fn a_fork_whose_requests_fail_can_be_made_again() {
    for seed in 0..40 {
        let (mut world, block) = world(seed);
        for op in [StoreOp::Put, StoreOp::PutIfAbsent, StoreOp::Get, StoreOp::List] {
            world.store.fail_one_in(op, 8, StoreFault::Unavailable);
            if op == StoreOp::PutIfAbsent {
                world.store.fail_one_in(op, 3, StoreFault::LostReply);
            }
        }
        let tries = (0..200).map(|_| world.hosts[1].fork_from("disk", "copy", false)).take_while(Result::is_err);
        assert!(tries.count() < 200, "seed {seed}");
        world.store.calm();
        world.hosts[1].sync();
        assert!(world.hosts[1].contents("copy", None).unwrap()[..300 * BLOCK] == block, "seed {seed}");
        observe(&world.store, "in the end");
    }
}
