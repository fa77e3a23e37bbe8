//! Cleaning the object store: nothing that a volume needs is ever deleted, and nothing else stays.
//!
//! After every step of random histories of several hosts that share a bucket, an observer who knows only the bucket
//! checks every volume's newest manifest and all objects that it names.

mod bucket_world;

use blockstore::object::{check_bucket, sweep, Standing, TierJob};
use blockstore::testing::{Rng, StoreFault, StoreOp};
use blockstore::{Cleaning, ErrorKind};
use bucket_world::*;
use std::collections::BTreeMap;

#[test]
fn trimming_and_deleting_return_the_bucket_to_its_former_size() {
    let mut world = World::new(1, 1);
    let mut rng = Rng::new(1);
    let host = &mut world.hosts[0];
    host.create("disk");
    for at in 0..BLOCKS / 40 {
        let block = data(&mut rng, 40);
        host.write("disk", at * 40, &block);
        host.sync();
    }
    world.quiesce("written");
    let full = bytes_under(&world.store, "");
    assert!(full > BLOCKS * BLOCK);
    // Half of each object dies, and a little more: they are packed anew.
    let host = &mut world.hosts[0];
    let id = host.id("disk");
    for at in 0..BLOCKS / 4 {
        host.pool.trim(id, (at * 4 * BLOCK) as u64, (3 * BLOCK) as u64).unwrap();
    }
    world.quiesce("thinned");
    let cleaning = world.hosts[0].pool.object_cleaning();
    assert!(cleaning.repacked > 0, "{cleaning:?}");
    let thin = bytes_under(&world.store, "");
    assert!(thin < full / 2, "{full} bytes, now {thin}: {cleaning:?}");
    let host = &mut world.hosts[0];
    host.pool.trim(id, 0, (BLOCKS * BLOCK) as u64).unwrap();
    world.quiesce("trimmed");
    let report = observe(&world.store, "trimmed");
    assert_eq!(report.orphans, 0);
    assert!(bytes_under(&world.store, "") < full / 50, "{} of {full}", bytes_under(&world.store, ""));
    // The next life of the pool finds the same, and a deleted volume leaves one small manifest.
    let host = &mut world.hosts[0];
    let disk = host.disk.after_kill();
    host.reopen(disk);
    let block = data(&mut rng, 40);
    host.write("disk", 7, &block);
    host.sync();
    host.delete("disk");
    world.quiesce("deleted");
    let left = world.store.keys();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(bytes_under(&world.store, "") < 500);
    // The name is free, its numbers go on.
    world.hosts[0].create("disk");
    world.hosts[0].write("disk", 3, &block);
    world.quiesce("again");
    assert!(world.hosts[0].contents("disk", None).unwrap()[3 * BLOCK..43 * BLOCK] == block);
    assert_eq!(observe(&world.store, "again").volumes.len(), 1);
}

#[test]
fn a_fork_on_another_host_keeps_its_data_when_the_origin_deletes_everything() {
    assert_eq!(origin_deletes_everything(false), Ok(()));
}

/// The harness can fail: a cleaner that does not ask who else needs an object is caught.
#[test]
fn canary_a_cleaner_that_does_not_mark_is_caught() {
    let caught = origin_deletes_everything(true).unwrap_err();
    assert!(caught.contains("objects/"), "{caught}");
}

fn origin_deletes_everything(careless: bool) -> Result<(), String> {
    let mut world = World::new(2, 2);
    let mut rng = Rng::new(2);
    let block = data(&mut rng, 300);
    let [first, second] = &mut world.hosts[..] else { panic!("two hosts") };
    let id = first.create("disk");
    first.write("disk", 0, &block);
    let (_, job) = first.pool.fork(id, None, "fork").unwrap();
    first.pool.finish(job).unwrap();
    first.sync();
    first.detach("fork").unwrap();
    first.sync();
    second.attach("fork", false).unwrap();
    second.sync();
    if careless {
        first.pool.clean_carelessly();
    }
    first.delete("disk");
    for _ in 0..20 {
        for host in &mut world.hosts {
            host.pool.maintain().unwrap();
            host.sync();
        }
        let report = check_bucket(&world.store.observer(), true, &mut |_, _| true).unwrap();
        if let Some(problem) = report.problems.first() {
            return Err(problem.clone());
        }
        world.pass(4 * MINUTE);
    }
    let second = &mut world.hosts[1];
    let disk = second.disk.after_kill();
    second.reopen(disk);
    assert!(second.contents("fork", None).unwrap()[..300 * BLOCK] == block);
    // When the fork is gone, too, nothing of the first host stays.
    second.delete("fork");
    world.quiesce("all deleted");
    world.pass(25 * 60 * MINUTE);
    world.quiesce("a day later");
    world.sweep();
    assert_eq!(bytes_under(&world.store, "objects/"), 0);
    assert_eq!(bytes_under(&world.store, "pins/"), 0);
    Ok(())
}

/// The grace of the sweep matters: without it objects that a round has put, and is about to name, are deleted.
#[test]
fn canary_a_sweep_without_grace_is_caught() {
    for (grace, caught) in [(24 * 60 * MINUTE, false), (0, true)] {
        use blockstore::Clock;
        let mut world = World::new(3, 1);
        let block = data(&mut Rng::new(3), 40);
        let host = &mut world.hosts[0];
        host.create("disk");
        host.write("disk", 0, &block);
        while host.pool.wants_anchor() {
            host.pool.anchor(Cleaning::Busy).unwrap();
        }
        let job = loop {
            match host.pool.tier_job().unwrap() {
                Some(TierJob::Upload(job)) => break job,
                Some(TierJob::Claim(job)) => {
                    job.run().unwrap();
                    host.pool.tier_done(TierJob::Claim(job), Ok(())).unwrap();
                }
                _ => panic!("an upload is due"),
            }
        };
        job.prepare().unwrap();
        while job.put_next().unwrap() {}
        let report = sweep(&world.store.observer(), host.clock.now_us(), grace, false).unwrap();
        assert_eq!(report.orphans > 0, caught);
        job.commit().unwrap();
        host.pool.tier_done(TierJob::Upload(job), Ok(())).unwrap();
        let report = check_bucket(&world.store.observer(), false, &mut |_, _| true).unwrap();
        assert_eq!(!report.problems.is_empty(), caught, "{:?}", report.problems);
        if caught {
            let text = report.problems.concat();
            assert!(text.contains("\"disk\"") && text.contains("objects/") && text.contains("missing"), "{text}");
        }
    }
}

/// A stale owner does not write into the past, where old manifests have been deleted.
#[test]
fn an_owner_that_slept_for_long_finds_out_that_it_is_none() {
    let mut world = World::new(4, 2);
    let block = data(&mut Rng::new(4), 10);
    let [first, second] = &mut world.hosts[..] else { panic!("two hosts") };
    let id = first.create("disk");
    first.write("disk", 0, &block);
    first.sync();
    second.attach("disk", true).unwrap();
    second.sync();
    for round in 0..20 {
        world.hosts[1].write("disk", round, &block);
        world.hosts[1].sync();
        world.pass(4 * MINUTE);
    }
    let manifests = world.store.keys().iter().filter(|key| key.starts_with("volumes/disk/")).count();
    assert!(manifests < 8, "old manifests are deleted: {manifests}");
    // The manifest that took the place of its next one is gone: only a list tells whose the volume is.
    let first = &mut world.hosts[0];
    let job = first.pool.lease_job(&[id]).unwrap();
    job.run();
    first.pool.lease_seen(&job);
    let e = first.pool.write(id, 0, &block).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
}

/// The same when nobody asks for a lease: its next round finds out.
#[test]
fn a_round_of_an_owner_that_slept_for_long_promises_nothing() {
    let mut world = World::new(4, 2);
    let block = data(&mut Rng::new(4), 10);
    let [first, second] = &mut world.hosts[..] else { panic!("two hosts") };
    let id = first.create("disk");
    first.write("disk", 0, &block);
    first.sync();
    second.attach("disk", true).unwrap();
    second.sync();
    for round in 0..20 {
        world.hosts[1].write("disk", round, &block);
        world.hosts[1].sync();
        world.pass(4 * MINUTE);
    }
    let first = &mut world.hosts[0];
    let before = first.pool.remote_status(id).unwrap().watermark;
    first.write("disk", 99, &block);
    first.sync();
    let status = first.pool.remote_status(id).unwrap();
    assert!(matches!(status.standing, Standing::Fenced(_)), "{status:?}");
    assert_eq!(status.watermark, before, "nothing is promised that nobody will find");
    observe(&world.store, "in the end");
}

#[test]
fn an_interrupted_deletion_is_reported_and_can_be_ended() {
    let mut world = World::new(5, 1);
    let block = data(&mut Rng::new(5), 40);
    let host = &mut world.hosts[0];
    let id = host.create("disk");
    host.write("disk", 0, &block);
    let (_, job) = host.pool.fork(id, None, "fork").unwrap();
    host.pool.finish(job).unwrap();
    host.sync();
    // The host dies before the last word on "disk" is in the store.
    host.delete("disk");
    let disk = host.disk.after_kill();
    host.reopen(disk);
    // The fork, with which it shares everything, goes, too: what "disk" needs stays.
    host.delete("fork");
    world.quiesce("interrupted");
    assert_eq!(observe(&world.store, "interrupted").volumes.len(), 1);
    let seen = world.sweep().volumes;
    let host = &mut world.hosts[0];
    assert_eq!(host.pool.abandoned(&seen), ["disk"]);
    host.pool.end_abandoned("disk", &seen["disk"]).unwrap();
    assert!(host.pool.end_abandoned("disk", &seen["disk"]).is_err());
    world.quiesce("ended");
    world.pass(25 * 60 * MINUTE);
    world.quiesce("a day later");
    world.sweep();
    assert_eq!(bytes_under(&world.store, "objects/"), 0);
    assert_eq!(bytes_under(&world.store, "pins/"), 0);
}

/// Until its first round, the newest manifest of a volume that came back is in the words, and with the number, that it
/// had before it went.
#[test]
fn a_volume_that_came_back_is_not_abandoned() {
    let mut world = World::new(7, 1);
    let block = data(&mut Rng::new(7), 40);
    let host = &mut world.hosts[0];
    host.create("disk");
    host.write("disk", 0, &block);
    host.sync();
    host.detach("disk").unwrap();
    host.sync();
    host.attach("disk", false).unwrap();
    let seen = world.sweep().volumes;
    let host = &mut world.hosts[0];
    assert_eq!(host.pool.abandoned(&seen), [""; 0]);
    let ended = host.pool.end_abandoned("disk", &seen["disk"]);
    assert!(ended.is_err(), "what is attached here was deleted in the object store");
}

#[test]
fn whatever_cannot_be_read_keeps_everything() {
    let mut world = World::new(6, 2);
    let block = data(&mut Rng::new(6), 100);
    let [first, second] = &mut world.hosts[..] else { panic!("two hosts") };
    let id = first.create("disk");
    first.write("disk", 0, &block);
    let (_, job) = first.pool.fork(id, None, "fork").unwrap();
    first.pool.finish(job).unwrap();
    first.sync();
    first.detach("fork").unwrap();
    first.sync();
    second.attach("fork", false).unwrap();
    second.sync();
    // A manifest of a version to come, of a volume that has nothing to do with it.
    second.create("zeta");
    second.sync();
    let strange = world.store.keys().into_iter().find(|key| key.starts_with("volumes/zeta/")).unwrap();
    let good = world.store.body(&strange).unwrap();
    let mut bad = good.clone();
    bad[8] += 1;
    world.store.replace(&strange, Some(&bad));
    let before = bytes_under(&world.store, "objects/");
    first_deletes(&mut world, true);
    assert_eq!(bytes_under(&world.store, "objects/"), before);
    let e = sweep(&world.store.observer(), 0, 0, true).unwrap_err();
    assert_ne!(e.kind(), ErrorKind::Unavailable, "{e}");
    world.store.replace(&strange, Some(&good));
    first_deletes(&mut world, false);
    observe(&world.store, "in the end");
}

fn first_deletes(world: &mut World, delete: bool) {
    if delete {
        world.hosts[0].delete("disk");
    }
    for _ in 0..12 {
        let host = &mut world.hosts[0];
        host.pool.maintain().unwrap();
        while matches!(host.step(), Ok(true)) {}
        world.pass(4 * MINUTE);
    }
}

/// The checker sees damage and says whose it is; the sweep deletes nothing that is not what its key says.
#[test]
fn damage_is_named_and_left_alone() {
    let mut world = World::new(7, 1);
    let block = data(&mut Rng::new(7), 40);
    world.hosts[0].create("disk");
    world.hosts[0].write("disk", 0, &block);
    world.hosts[0].sync();
    let check = |deep| check_bucket(&world.store.observer(), deep, &mut |_, _| true).unwrap();
    let keys = world.store.keys();
    let key =
        keys.iter().filter(|key| key.starts_with("objects/")).max_by_key(|key| world.store.body(key).unwrap().len());
    let key = key.unwrap();
    let good = world.store.body(key).unwrap();
    let report = check(true);
    assert_eq!((report.problems.len(), report.volumes["disk"].bytes, report.shared), (0, report.bytes, 0));
    // A byte of the data: only a deep check reads it. One of the directory, and a missing end: every check.
    for (at, len, shallow) in [(good.len() - 1, good.len(), 0), (30, good.len(), 1), (0, good.len() - 1, 1)] {
        let mut bad = good[..len].to_vec();
        bad[at] ^= 1;
        world.store.replace(key, Some(&bad));
        assert_eq!(usize::from(!check(false).problems.is_empty()), shallow, "byte {at} of {len}");
        let problems = check(true).problems.concat();
        assert!(problems.contains(key) && problems.contains("\"disk\""), "{problems}");
    }
    world.store.replace(key, Some(&good));
    // What a stranger put there, or copied.
    let pool = key.split('/').nth(1).unwrap();
    let copy = format!("objects/{pool}/9/0000000000000007");
    world.store.replace(&copy, Some(&good));
    world.store.replace("objects/readme", Some(b"hello"));
    world.pass(25 * 60 * MINUTE);
    let report = world.sweep();
    assert_eq!((report.orphans, report.strange.len()), (0, 2), "{report:?}");
    assert!(world.store.body(&copy).is_some() && world.store.body("objects/readme").is_some());
    // A clock that runs ahead would make everything old.
    world.clock.advance_us(60 * MINUTE);
    use blockstore::Clock;
    let e = sweep(&world.store.observer(), world.clock.now_us(), 24 * 60 * MINUTE, false).unwrap_err();
    assert!(e.to_string().contains("clock"), "{e}");
}

/// Found by seed 93: what a pool had condemned while another one used it was deleted when it had the volume back.
#[test]
fn a_pool_that_takes_a_volume_back_spares_its_objects() {
    let mut world = World::new(8, 2);
    let block = data(&mut Rng::new(8), 200);
    let [first, second] = &mut world.hosts[..] else { panic!("two hosts") };
    first.create("disk");
    first.write("disk", 0, &block);
    first.sync();
    second.attach("disk", true).unwrap();
    second.sync();
    first.write("disk", 0, &block[..BLOCK]);
    first.sync();
    first.delete("disk");
    world.quiesce("lost");
    let [first, second] = &mut world.hosts[..] else { panic!("two hosts") };
    assert!(first.pool.object_cleaning().waiting > 0, "the second host uses them");
    second.detach("disk").unwrap();
    second.sync();
    first.attach("disk", false).unwrap();
    first.sync();
    // The second host's pin is removed after a day: then the first one asks nobody.
    for _ in 0..3 {
        world.pass(25 * 60 * MINUTE);
        world.quiesce("back");
    }
    assert!(world.hosts[0].contents("disk", None).unwrap()[..200 * BLOCK] == block);
}

/// What hosts do to each other's volumes, at random.
#[test]
fn random_histories_lose_and_leak_nothing() {
    let (mut steps, mut deleted, mut swept) = (0, 0, 0);
    let one: Option<u64> = std::env::var("CAIRN_GC_SEED").ok().and_then(|n| n.parse().ok());
    let seeds = std::env::var("CAIRN_GC_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    for seed in one.map_or(0..seeds, |one| one..one + 1) {
        let (a, b, c) = history(seed);
        (steps, deleted, swept) = (steps + a, deleted + b, swept + c);
    }
    println!("{seeds} seeds, {steps} steps, {deleted} objects deleted by pools, {swept} by sweeps, 0 too early");
    assert!(one.is_some() || deleted > 0 && swept > 0);
}

fn history(seed: u64) -> (u64, u64, u64) {
    let mut world = World::new(seed, 3);
    let mut rng = Rng::new(seed);
    // What detached volumes must hold when they are attached again.
    let mut parted: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    // A census that goes on, and whose.
    let mut census = None;
    let (mut steps, mut deleted, mut swept, mut names) = (0, 0, 0, 0);
    for step in 0..250 {
        let context = format!("seed {seed} step {step}");
        if rng.one_in(40) {
            let ops = [StoreOp::Put, StoreOp::PutIfAbsent, StoreOp::Get, StoreOp::List, StoreOp::Delete];
            for op in ops {
                world.store.fail_one_in(op, 6, StoreFault::Unavailable);
                if !matches!(op, StoreOp::Get | StoreOp::List) {
                    world.store.fail_one_in(op, 6, StoreFault::LostReply);
                }
            }
            for fault in [StoreFault::Missing, StoreFault::Corrupt, StoreFault::Short] {
                world.store.fail_one_in(StoreOp::Get, 20, fault);
            }
        } else if rng.one_in(10) {
            world.store.calm();
        }
        steps += 1;
        let at = rng.below(world.hosts.len());
        let all: Vec<String> = volumes_in(&world.store);
        let host = &mut world.hosts[at];
        let own: Vec<String> = host.pool.volumes().iter().map(|id| host.pool.volume_info(*id).unwrap().name).collect();
        let volume = (!own.is_empty()).then(|| rng.pick(&own).clone());
        let choice = rng.below(23);
        if std::env::var("CAIRN_GC_SEED").is_ok() {
            println!("{step} host{at} {choice} {volume:?}");
        }
        match (choice, volume) {
            (0, _) | (_, None) if own.len() < 4 => {
                names += 1;
                let name = if rng.one_in(3) { "again".to_owned() } else { format!("v{names}") };
                if host.pool.volume_id(&name).is_err() {
                    host.create(&name);
                }
            }
            (1..=6, Some(volume)) => {
                let blocks = rng.below(30) + 1;
                let (id, block) = (host.id(&volume), data(&mut rng, blocks));
                let place = rng.below(BLOCKS - blocks);
                let _ = host.pool.write(id, (place * BLOCK) as u64, &block);
            }
            (7, Some(volume)) => {
                let (id, from) = (host.id(&volume), rng.below(BLOCKS));
                let len = rng.below(BLOCKS - from) + 1;
                let _ = host.pool.trim(id, (from * BLOCK) as u64, (len * BLOCK) as u64);
            }
            (8, Some(volume)) => {
                let id = host.id(&volume);
                if let Ok((_, job)) = host.pool.create_checkpoint(id, "") {
                    host.pool.finish(job).unwrap();
                }
            }
            (9, Some(volume)) => {
                let id = host.id(&volume);
                if let Some(info) = host.pool.checkpoints(id).unwrap().first() {
                    let _ = if rng.one_in(2) {
                        host.pool.restore(id, info.name).map(drop)
                    } else {
                        host.pool.delete_checkpoint(id, info.name).map(drop)
                    };
                }
            }
            (10, Some(volume)) => {
                names += 1;
                let id = host.id(&volume);
                if let Ok((_, job)) = host.pool.fork(id, None, &format!("f{names}")) {
                    host.pool.finish(job).unwrap();
                }
            }
            (11, Some(volume)) if rng.one_in(2) => {
                if let Ok(job) = host.pool.delete_volume(host.id(&volume)) {
                    host.pool.finish(job).unwrap();
                }
            }
            (12, Some(volume)) => {
                let contents = host.contents(&volume, None);
                if let (Ok(contents), Ok(())) = (contents, host.detach(&volume)) {
                    parted.insert(volume, contents);
                }
            }
            (13, _) if !all.is_empty() => {
                let name = rng.pick(&all).clone();
                let takeover = rng.one_in(3);
                let attached = host.pool.volume_id(&name).is_err() && host.attach(&name, takeover).is_ok();
                // It is attached when this pool has spoken of it; one that cannot is restarted, and gives it up.
                let spoken = attached && (0..30).all(|_| host.step().is_ok());
                if attached && !spoken {
                    world.store.calm();
                    census.take_if(|(whose, _)| *whose == at);
                    let disk = host.disk.after_kill();
                    host.reopen(disk);
                }
                if spoken {
                    let found = host.contents(&name, None);
                    match (parted.remove(&name), found) {
                        (Some(expected), Ok(found)) if !takeover => assert!(found == expected, "{context} {name}"),
                        (_, Err(e)) => {
                            // What a faulty read pretends is in the reader's mind, not in the bucket.
                            world.store.calm();
                            let found = world.hosts[at].contents(&name, None);
                            assert!(found.is_ok(), "{context} {name}: {e}, and then {:?}", found.err());
                        }
                        _ => {}
                    }
                }
            }
            (14, _) if rng.one_in(3) => {
                world.store.calm();
                census.take_if(|(whose, _)| *whose == at);
                let disk = if rng.one_in(2) {
                    host.disk.after_power_loss(&mut || rng.one_in(2))
                } else {
                    host.disk.after_kill()
                };
                host.reopen(disk);
            }
            (15, _) => drop(host.pool.maintain()),
            (16, _) => world.pass((rng.below(8) + 1) as u64 * MINUTE),
            (17, _) if rng.one_in(6) => {
                world.pass(25 * 60 * MINUTE);
                use blockstore::Clock;
                let now_us = world.clock.now_us();
                if let Ok(report) = sweep(&world.store, now_us, 24 * 60 * MINUTE, rng.one_in(4)) {
                    swept += report.orphans;
                }
            }
            (18, _) if census.is_none() => census = host.count().ok().flatten().map(|census| (at, census)),
            (18 | 19, _) => {
                if let Some((whose, census)) = census.take() {
                    world.hosts[whose].counted(census);
                    let checked = world.hosts[whose].pool.check();
                    let problems = checked.map(|report| report.problems);
                    let unread = |found: &Vec<String>| found.iter().any(|line| line.contains("cannot be read"));
                    let good = problems.as_ref().is_ok_and(|found| found.is_empty() || unread(found));
                    assert!(good, "{context}: {problems:?}");
                }
            }
            (22, _) if !all.is_empty() && own.len() < 5 => {
                names += 1;
                let (name, new, read_only) = (rng.pick(&all).clone(), format!("e{names}"), rng.one_in(2));
                if host.fork_from(&name, &new, read_only).is_ok() && !(0..30).all(|_| host.step().is_ok()) {
                    world.store.calm();
                    census.take_if(|(whose, _)| *whose == at);
                    let disk = host.disk.after_kill();
                    host.reopen(disk);
                }
            }
            _ => drop(host.step()),
        }
        let host = &mut world.hosts[at];
        if host.pool.poisoned().is_some() {
            census.take_if(|(whose, _)| *whose == at);
            world.store.calm();
            let disk = host.disk.after_kill();
            host.reopen(disk);
        }
        let report = check_bucket(&world.store.observer(), step % 10 == 0, &mut |_, _| true).unwrap();
        assert!(report.problems.is_empty(), "{context}: {:?}", report.problems);
    }
    world.store.calm();
    if let Some((whose, census)) = census {
        world.hosts[whose].counted(census);
    }
    end(&mut world, seed, &mut deleted);
    (steps, deleted, swept)
}
