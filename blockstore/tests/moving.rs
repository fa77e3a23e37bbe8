//! Volumes that move from host to host, many together and many times.

mod bucket_world;

use blockstore::object::check_bucket;
use blockstore::testing::{Rng, StoreFault, StoreOp};
use blockstore::{CheckpointName, Cleaning, ErrorKind};
use bucket_world::{bytes_under, data, observe, World, BLOCK, BLOCKS, MINUTE};

/// Three volumes with checkpoints go to and fro between two hosts, written at each. The numbers of segments that a host
/// uses follow what there is, not what there was.
#[test]
fn volumes_that_move_together_use_few_numbers() {
    const MOVES: u64 = 40;
    let mut world = World::new(11, 2);
    let mut rng = Rng::new(5);
    let names = ["one", "two", "three"];
    for name in names {
        let host = &mut world.hosts[0];
        let id = host.create(name);
        host.write(name, 0, &data(&mut rng, BLOCKS));
        let (_, job) = host.pool.create_checkpoint(id, "first").unwrap();
        host.pool.finish(job).unwrap();
    }
    let mut most = 0;
    for turn in 0..MOVES {
        let [from, to] = [turn % 2, (turn + 1) % 2].map(|at| at as usize);
        for name in names {
            let at = rng.below(BLOCKS - 8);
            let piece = data(&mut rng, 8);
            world.hosts[from].write(name, at, &piece);
            let (head, first) = (world.hosts[from].contents(name, None).unwrap(), CheckpointName::parse("v1"));
            let first = first.map(|v1| world.hosts[from].contents(name, Some(v1)).unwrap());
            world.hosts[from].sync();
            let gone = world.hosts[from].detach(name);
            gone.unwrap_or_else(|e| panic!("turn {turn}: {e}"));
            world.hosts[from].sync();
            world.pass(MINUTE);
            world.hosts[to].attach(name, false).unwrap_or_else(|e| panic!("turn {turn}: {e}"));
            world.hosts[to].sync();
            assert!(world.hosts[to].contents(name, None).unwrap() == head, "turn {turn}: {name}");
            assert!(first == CheckpointName::parse("v1").map(|v1| world.hosts[to].contents(name, Some(v1)).unwrap()));
        }
        world.quiesce(&format!("turn {turn}"));
        let check = world.hosts[to].pool.check().unwrap();
        assert!(check.problems.is_empty(), "turn {turn}: {:?}", check.problems);
        for name in names {
            let newest = blockstore::object::newest_manifest(&world.store.observer(), name).unwrap().unwrap();
            most = most.max(newest.next_segment);
        }
    }
    observe(&world.store, "at the end");
    assert!(most < 200 * MOVES as u32, "{most} numbers");
}

/// The log of a volume that another host has by now is applied as far as its map can be read, and no other volume waits for
/// the rest (seed 236 of the random histories, in which a fork kept the whole pool shut).
#[test]
fn a_volume_that_was_lost_does_not_keep_the_pool_shut() {
    let mut world = World::new(12, 3);
    let block = data(&mut Rng::new(12), 200);
    world.hosts[0].create("disk");
    world.hosts[0].write("disk", 0, &block);
    world.hosts[0].sync();
    world.hosts[1].attach("disk", true).unwrap();
    world.hosts[1].create("other");
    world.hosts[1].write("other", 3, &block[..BLOCK]);
    world.hosts[1].sync();
    world.hosts[1].write("disk", 7, &block[..BLOCK]);
    world.hosts[2].attach("disk", true).unwrap();
    world.hosts[2].sync();
    let second = &mut world.hosts[1];
    let disk = second.disk.after_kill();
    second.reopen(disk);
    assert!(second.contents("other", None).unwrap()[3 * BLOCK..4 * BLOCK] == block[..BLOCK]);
    let id = second.id("disk");
    assert_eq!(second.pool.write(id, 0, &block[..BLOCK]).unwrap_err().kind(), ErrorKind::Fenced);
    second.delete("disk");
    world.quiesce("in the end");
    let problems = world.hosts[1].pool.check().unwrap().problems;
    assert!(problems.is_empty(), "{problems:?}");
}

/// A fork of a volume that came from elsewhere can be used when its own manifest names what they share: before that it
/// would be lost with its origin, whatever was written to it.
#[test]
fn a_fork_of_an_attached_volume_waits_for_its_manifest() {
    let mut world = World::new(15, 3);
    let block = data(&mut Rng::new(15), 200);
    world.hosts[0].create("disk");
    world.hosts[0].write("disk", 0, &block);
    world.hosts[0].sync();
    let second = &mut world.hosts[1];
    second.attach("disk", true).unwrap();
    second.sync();
    let id = second.id("disk");
    let (fork, job) = second.pool.fork(id, None, "fork").unwrap();
    second.pool.finish(job).unwrap();
    assert!(second.pool.is_arriving(fork));
    assert_eq!(second.pool.write(fork, 0, &block[..BLOCK]).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(second.contents("fork", None).unwrap_err().kind(), ErrorKind::Busy);
    second.sync();
    second.write("fork", 100, &block[..BLOCK]);
    world.hosts[2].attach("disk", true).unwrap();
    world.quiesce("taken over");
    let second = &mut world.hosts[1];
    let disk = second.disk.after_kill();
    second.reopen(disk);
    let found = second.contents("fork", None).unwrap();
    assert!(found[..100 * BLOCK] == block[..100 * BLOCK] && found[100 * BLOCK..101 * BLOCK] == block[..BLOCK]);
    // One whose origin is gone first stays out of use, and says so.
    let host = &mut world.hosts[2];
    host.sync();
    let id = host.id("disk");
    let (fork, job) = host.pool.fork(id, None, "late").unwrap();
    host.pool.finish(job).unwrap();
    world.hosts[0].delete("disk");
    world.hosts[0].attach("disk", true).unwrap();
    world.hosts[0].sync();
    let host = &mut world.hosts[2];
    let disk = host.disk.after_kill();
    host.reopen(disk);
    host.sync();
    let e = host.pool.write(fork, 0, &block[..BLOCK]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
}

/// What is taken over elsewhere is lost here; its forks are not, and what was written to them is there after a restart.
#[test]
fn forks_of_a_volume_that_was_lost_stay() {
    let mut world = World::new(16, 2);
    let block = data(&mut Rng::new(16), 200);
    let first = &mut world.hosts[0];
    let id = first.create("disk");
    first.write("disk", 0, &block);
    first.sync();
    // In the log's tail, behind the last anchor.
    let (_, job) = first.pool.fork(id, None, "fork").unwrap();
    first.pool.finish(job).unwrap();
    first.write("fork", 50, &block[..BLOCK]);
    world.hosts[1].attach("disk", true).unwrap();
    world.hosts[1].sync();
    let first = &mut world.hosts[0];
    let disk = first.disk.after_kill();
    first.reopen(disk);
    assert_eq!(first.pool.write(id, 0, &block[..BLOCK]).unwrap_err().kind(), ErrorKind::Fenced);
    let found = first.contents("fork", None).unwrap();
    assert!(found[..50 * BLOCK] == block[..50 * BLOCK] && found[50 * BLOCK..51 * BLOCK] == block[..BLOCK]);
    world.quiesce("in the end");
    assert_eq!(world.hosts[0].pool.check().unwrap().problems, Vec::<String>::new());
}

/// Found by seed 318 of the random histories: each of two forks that are not in the store kept the other from being deleted.
#[test]
fn forks_that_stay_local_can_be_deleted() {
    let mut world = World::new(17, 2);
    let block = data(&mut Rng::new(17), 200);
    let names = ["one", "two"];
    for name in ["disk"].iter().chain(&names) {
        world.hosts[0].create(name);
        world.hosts[0].write(name, 0, &block);
    }
    world.hosts[0].sync();
    let second = &mut world.hosts[1];
    let id = second.attach("disk", true).unwrap();
    second.sync();
    for name in names {
        let (_, job) = second.pool.fork(id, None, name).unwrap();
        second.pool.finish(job).unwrap();
    }
    // Their names are another host's there.
    second.sync();
    assert!(second.pool.delete_volume(id).is_err_and(|e| e.kind() == ErrorKind::Busy));
    names.iter().for_each(|name| second.delete(name));
    second.delete("disk");
}

/// Found by the random histories: a volume whose tail could not be applied was left half made.
#[test]
fn an_attachment_that_fails_leaves_nothing_behind() {
    let mut world = World::new(13, 2);
    let block = data(&mut Rng::new(13), 200);
    world.hosts[0].create("disk");
    world.hosts[0].write("disk", 0, &block);
    world.hosts[0].sync();
    world.hosts[0].write("disk", 10, &block[..20 * BLOCK]);
    world.hosts[0].sync();
    let second = &mut world.hosts[1];
    let job = second.pool.attach_job("disk", true).unwrap();
    job.run().unwrap();
    world.store.fail_one_in(StoreOp::Get, 1, StoreFault::Unavailable);
    let e = second.pool.attached(job).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert_eq!(second.pool.volume_id("disk").unwrap_err().kind(), ErrorKind::NotFound);
    world.store.calm();
    second.attach("disk", false).unwrap();
    second.sync();
    let found = second.contents("disk", None).unwrap();
    assert!(found[10 * BLOCK..30 * BLOCK] == block[..20 * BLOCK] && found[..10 * BLOCK] == block[..10 * BLOCK]);
    world.quiesce("attached");
    let problems = world.hosts[1].pool.check().unwrap().problems;
    assert!(problems.is_empty(), "{problems:?}");
}

/// What lives of a volume that came from elsewhere is not known at first; when it is counted, what was dead already and what
/// dies from then on goes, and a restart does not forget it.
#[test]
fn what_lives_of_an_attached_volume_is_counted() {
    let mut world = World::new(14, 2);
    let mut rng = Rng::new(14);
    world.hosts[0].create("disk");
    for at in 0..10 {
        let block = data(&mut rng, 40);
        world.hosts[0].write("disk", at * 40, &block);
        world.hosts[0].sync();
    }
    // Dead before the taking over, and named by the manifest all the same: too little of it to be packed anew.
    let id = world.hosts[0].id("disk");
    world.hosts[0].pool.trim(id, 0, 10 * BLOCK as u64).unwrap();
    world.hosts[0].sync();
    let head = world.hosts[0].contents("disk", None).unwrap();
    world.hosts[0].detach("disk").unwrap();
    world.quiesce("detached");
    let second = &mut world.hosts[1];
    second.attach("disk", false).unwrap();
    second.sync();
    assert!(second.pool.wants_census());
    assert_eq!(second.pool.stats().live, 0, "nothing is known to live");
    let census = second.count().unwrap().unwrap();
    // Between the counting and its result.
    let id = second.id("disk");
    second.pool.trim(id, 40 * BLOCK as u64, 80 * BLOCK as u64).unwrap();
    second.counted(census);
    assert!(!second.pool.wants_census());
    assert_eq!(second.pool.stats().live, (390 - 80) * BLOCK as u64);
    assert_eq!(second.pool.check().unwrap().problems, Vec::<String>::new());
    second.pool.anchor(Cleaning::Busy).unwrap();
    let disk = second.disk.after_kill();
    second.reopen(disk);
    assert!(!second.pool.wants_census());
    let found = second.contents("disk", None).unwrap();
    assert!(found[..40 * BLOCK] == head[..40 * BLOCK] && found[120 * BLOCK..] == head[120 * BLOCK..]);
    let full = bytes_under(&world.store, "objects/");
    let id = world.hosts[1].id("disk");
    world.hosts[1].pool.trim(id, 0, 399 * BLOCK as u64).unwrap();
    world.quiesce("trimmed");
    world.pass(25 * 60 * MINUTE);
    world.sweep();
    world.pass(25 * 60 * MINUTE);
    world.sweep();
    observe(&world.store, "trimmed");
    let left = bytes_under(&world.store, "objects/");
    assert!(left < full / 5, "{left} of {full} bytes");
    assert!(world.hosts[1].contents("disk", None).unwrap()[399 * BLOCK..] == head[399 * BLOCK..]);
}

/// Objects of another host of which little lives are packed anew out of the store; a third host reads what is left.
#[test]
fn what_is_mostly_dead_is_packed_anew_out_of_the_store() {
    let mut world = World::new(18, 3);
    let mut rng = Rng::new(18);
    world.hosts[0].create("disk");
    for at in 0..10 {
        let block = data(&mut rng, 40);
        world.hosts[0].write("disk", at * 40, &block);
        world.hosts[0].sync();
    }
    world.hosts[0].detach("disk").unwrap();
    world.quiesce("detached");
    let full = bytes_under(&world.store, "objects/");
    world.hosts[1].attach("disk", false).unwrap();
    world.quiesce("attached");
    let id = world.hosts[1].id("disk");
    for at in 0..BLOCKS / 10 {
        world.hosts[1].pool.trim(id, (at * 10 * BLOCK) as u64, 9 * BLOCK as u64).unwrap();
    }
    let head = world.hosts[1].contents("disk", None).unwrap();
    world.quiesce("thinned");
    let cleaning = world.hosts[1].pool.object_cleaning();
    assert!(cleaning.repacked >= 10, "{cleaning:?}");
    assert!(world.hosts[1].contents("disk", None).unwrap() == head);
    assert_eq!(world.hosts[1].pool.check().unwrap().problems, Vec::<String>::new());
    for _ in 0..2 {
        world.pass(25 * 60 * MINUTE);
        world.sweep();
    }
    let report = check_bucket(&world.store.observer(), true, &mut |_, _| true).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let left = bytes_under(&world.store, "objects/");
    assert!(left < full / 6, "{left} of {full} bytes");
    // Restarted, and moved on.
    let disk = world.hosts[1].disk.after_kill();
    world.hosts[1].reopen(disk);
    assert!(world.hosts[1].contents("disk", None).unwrap() == head);
    world.hosts[2].attach("disk", true).unwrap();
    world.hosts[2].sync();
    assert!(world.hosts[2].contents("disk", None).unwrap() == head);
}

/// One that cannot be read stays where it is, and keeps nothing else from being uploaded.
#[test]
fn what_cannot_be_packed_anew_stays_where_it_is() {
    let mut world = World::new(19, 2);
    let block = data(&mut Rng::new(19), 40);
    world.hosts[0].create("disk");
    world.hosts[0].write("disk", 0, &block);
    world.hosts[0].sync();
    world.hosts[0].detach("disk").unwrap();
    world.quiesce("detached");
    world.hosts[1].attach("disk", false).unwrap();
    world.quiesce("attached");
    let keys = world.store.keys();
    let objects = keys.iter().filter(|key| key.starts_with("objects/"));
    let key = objects.max_by_key(|key| world.store.body(key).unwrap().len()).unwrap();
    let good = world.store.body(key).unwrap();
    let mut bad = good.clone();
    bad[good.len() - 1] ^= 1;
    bad[good.len() - 2000] ^= 1;
    world.store.replace(key, Some(&bad));
    let id = world.hosts[1].id("disk");
    world.hosts[1].pool.trim(id, 0, 30 * BLOCK as u64).unwrap();
    world.hosts[1].write("disk", 100, &block);
    world.quiesce("thinned");
    assert_eq!(world.hosts[1].pool.object_cleaning().repacked, 0);
    let status = world.hosts[1].pool.remote_status(id).unwrap();
    assert_eq!(status.watermark, status.changed);
    world.store.replace(key, Some(&good));
    let found = world.hosts[1].contents("disk", None).unwrap();
    assert!(found[30 * BLOCK..40 * BLOCK] == block[30 * BLOCK..] && found[100 * BLOCK..140 * BLOCK] == block);
}
