//! Blocks and map pages in the object store alone, for an owner that cannot wait: what is absent is asked for before
//! anything is changed, and what comes of it is what a patient owner gets.

use blockstore::testing::{sim_tier, tier_step, ReferenceDisk, Rng, SimClock, SimDisk, SimStore, StoreFault, StoreOp};
use blockstore::{CheckpointName, Cleaning, ErrorKind, Missing, Pool, PoolOptions, Result, VolumeId};
use std::sync::Arc;

const BLOCK: usize = 4096;

fn new_pool(store: &SimStore, name: &str) -> Pool {
    let disk = SimDisk::new();
    let mut id = [0; 16];
    id.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    Pool::create(&disk.handle(), &SimClock::default(), id).unwrap();
    let tier = sim_tier(store, name);
    let options = PoolOptions { map_cache: 0, anchor_bytes: 16 << 20 };
    Pool::open_with(disk.handle(), Arc::new(SimClock::default()), options, Some(tier)).unwrap().0
}

fn sync(pool: &mut Pool) {
    while tier_step(pool).unwrap() {}
}

/// The volume `disk`, made, filled and uploaded by another pool.
fn attached(store: &SimStore, fill: impl FnOnce(&mut Pool, VolumeId), size: usize) -> (Pool, VolumeId) {
    let mut maker = new_pool(store, "maker");
    let (id, job) = maker.create_volume("disk", size as u64).unwrap();
    maker.finish(job).unwrap();
    fill(&mut maker, id);
    maker.anchor(Cleaning::Busy).unwrap();
    sync(&mut maker);
    let job = maker.detach(id).unwrap();
    maker.finish(job).unwrap();
    sync(&mut maker);
    let mut pool = new_pool(store, "taker");
    let job = pool.attach_job("disk", false).unwrap();
    job.run().unwrap();
    let id = pool.attached(job).unwrap();
    pool.anchor(Cleaning::Busy).unwrap();
    sync(&mut pool);
    (pool, id)
}

/// What a request must not have changed.
fn state(pool: &Pool) -> (u64, u64, u64, u64, u64) {
    let s = pool.stats();
    (s.next_lsn, s.live, s.reaping, s.changed_nodes, s.stored)
}

fn fetch_all(pool: &mut Pool, missing: &mut Missing) {
    let jobs = pool.take_fetches(usize::MAX);
    assert!(!jobs.is_empty() && !missing.is_over(), "what is absent is asked for");
    for job in jobs {
        let outcome = job.run();
        let arrival = pool.fetched(job, outcome);
        assert!(arrival.failure.is_none(), "{:?}", arrival.failure);
        missing.note(&arrival);
    }
    assert!(missing.is_over(), "all that was waited for was fetched");
}

/// Does `act` as a daemon does; returns the rounds that it took, too.
fn drive<T>(pool: &mut Pool, store: &SimStore, mut act: impl FnMut(&mut Pool) -> Result<T>) -> (Result<T>, usize) {
    for round in 0..100 {
        let (before, gets) = (state(pool), store.counts().gets);
        let outcome = pool.impatient(&mut act);
        assert_eq!(store.counts().gets, gets, "the owner never asks the store");
        match outcome {
            Err(e) if e.kind() == ErrorKind::Absent => {
                assert_eq!(state(pool), before, "a request that was refused has changed something");
                let mut missing = pool.missing();
                fetch_all(pool, &mut missing);
            }
            outcome => return (outcome, round),
        }
    }
    panic!("it never ends");
}

fn reap(pool: &mut Pool, store: &SimStore) {
    for _ in 0..10_000 {
        let gets = store.counts().gets;
        let more = pool.impatient(|pool| pool.reap(3)).unwrap();
        assert_eq!(store.counts().gets, gets);
        let jobs = pool.take_fetches(usize::MAX);
        if !more && jobs.is_empty() {
            return;
        }
        for job in jobs {
            let outcome = job.run();
            pool.fetched(job, outcome);
        }
    }
    panic!("reaping never ends");
}

const BLOCKS: usize = 6000;

fn fill(pool: &mut Pool, id: VolumeId, model: &mut ReferenceDisk, rng: &mut Rng) {
    model.create("disk", BLOCKS * BLOCK);
    for turn in 0..400 {
        let at = rng.below(BLOCKS - 60);
        let len = (rng.below(60) + 1) * BLOCK;
        let data = rng.bytes(len);
        pool.write(id, (at * BLOCK) as u64, &data).unwrap();
        model.write("disk", at * BLOCK, &data);
        if turn % 60 == 50 {
            let (info, job) = pool.create_checkpoint(id, "").unwrap();
            pool.finish(job).unwrap();
            model.checkpoint("disk", &info.name.to_string());
        }
    }
}

fn one_step(pool: &mut Pool, store: &SimStore, model: &mut ReferenceDisk, rng: &mut Rng) {
    let names: Vec<String> = model.heads.keys().cloned().collect();
    let name = names[rng.below(names.len())].clone();
    let id = pool.volume_id(&name).unwrap();
    let saved: Vec<String> = model.checkpoints.keys().filter(|(v, _)| *v == name).map(|(_, c)| c.clone()).collect();
    let checkpoint = |name: &str| CheckpointName::parse(name).unwrap();
    let size = BLOCKS * BLOCK;
    match rng.below(16) {
        0..=4 => {
            let len = [512, 4096, 5000, 65536, 300_000][rng.below(5)];
            let offset = rng.below(size - len);
            let offset = if rng.one_in(2) { offset / BLOCK * BLOCK } else { offset };
            let data = rng.bytes(len);
            drive(pool, store, |pool| pool.write(id, offset as u64, &data)).0.unwrap();
            model.write(&name, offset, &data);
        }
        5 => {
            let offset = rng.below(size - BLOCK);
            let len = if rng.one_in(3) { size - offset } else { rng.below(size - offset) + 1 };
            let store_them = rng.one_in(4) && len < 1 << 20;
            drive(pool, store, |pool| pool.write_zeroes(id, offset as u64, len as u64, store_them)).0.unwrap();
            model.zero(&name, offset, len);
        }
        6 | 7 => {
            let (at, len) = (rng.below(BLOCKS - 1200) * BLOCK, (rng.below(1200) + 1) * BLOCK);
            drive(pool, store, |pool| pool.trim(id, at as u64, len as u64)).0.unwrap();
            model.zero(&name, at, len);
        }
        8 => {
            let (info, job) = drive(pool, store, |pool| pool.create_checkpoint(id, "")).0.unwrap();
            pool.finish(job).unwrap();
            model.checkpoint(&name, &info.name.to_string());
        }
        9 if !saved.is_empty() => {
            let from = rng.pick(&saved).clone();
            let (undo, job) = drive(pool, store, |pool| pool.restore(id, checkpoint(&from))).0.unwrap();
            pool.finish(job).unwrap();
            model.restore(&name, &from, &undo.name.to_string());
            let kept: Vec<String> = pool.checkpoints(id).unwrap().iter().map(|c| c.name.to_string()).collect();
            model.checkpoints.retain(|(v, c), _| *v != name || kept.contains(c));
        }
        10 if !saved.is_empty() => {
            let gone = rng.pick(&saved).clone();
            let job = drive(pool, store, |pool| pool.delete_checkpoint(id, checkpoint(&gone))).0.unwrap();
            pool.finish(job).unwrap();
            model.delete_checkpoint(&name, &gone);
        }
        11 if names.len() < 3 => {
            let new = format!("fork-{}", pool.stats().next_lsn);
            let from = (!saved.is_empty() && rng.one_in(2)).then(|| rng.pick(&saved).clone());
            let at = from.as_deref().map(checkpoint);
            let (_, job) = drive(pool, store, |pool| pool.fork(id, at, &new)).0.unwrap();
            pool.finish(job).unwrap();
            model.fork(&name, from.as_deref(), &new);
            // Of a volume that came from elsewhere: it can be used when it is in the store itself.
            while tier_step(pool).unwrap() {}
        }
        12 => reap(pool, store),
        13 => {
            let usage = drive(pool, store, |pool| pool.volume_usage(id)).0.unwrap();
            assert_eq!(usage.mapped, usage.exclusive + usage.shared);
            let view = pool.view(id, None).unwrap();
            let extents = drive(pool, store, |pool| pool.extents(view, 0, size as u64, usize::MAX - 1)).0.unwrap();
            let mapped: u64 = extents.iter().filter(|e| !e.hole).map(|e| e.len).sum();
            assert_eq!(mapped, usage.mapped);
            if let Some(name) = saved.first() {
                let from = pool.view(id, Some(checkpoint(name))).unwrap();
                drive(pool, store, |pool| pool.changes(from, view, 0, size as u64, 10_000)).0.unwrap();
            }
        }
        14 => pool.anchor(Cleaning::Busy).unwrap(),
        _ => {
            let of = saved.first().filter(|_| rng.one_in(3));
            let view = pool.view(id, of.map(|of| checkpoint(of))).unwrap();
            let (at, len) = (rng.below(size - 400_000), [1, 512, 4096, 70_000, 400_000][rng.below(5)]);
            let mut out = vec![7];
            drive(pool, store, |pool| pool.read_onto(view, at as u64, len, &mut out)).0.unwrap();
            let expected = match of {
                None => model.heads[&name].to_vec(),
                Some(of) => model.checkpoints[&(name, of.clone())].to_vec(),
            };
            assert!(out[1..] == expected[at..at + len], "wrong data at {at}");
        }
    }
}

#[test]
fn an_impatient_owner_gets_what_a_patient_one_gets() {
    for seed in 0..12 {
        let (store, mut rng) = (SimStore::new(seed), Rng::new(seed));
        let mut model = ReferenceDisk::default();
        let (mut pool, _) = attached(&store, |pool, id| fill(pool, id, &mut model, &mut rng), BLOCKS * BLOCK);
        for _ in 0..120 {
            one_step(&mut pool, &store, &mut model, &mut rng);
        }
        reap(&mut pool, &store);
        for (name, expected) in &model.heads {
            let view = pool.view(pool.volume_id(name).unwrap(), None).unwrap();
            let mut out = Vec::new();
            let whole = drive(&mut pool, &store, |pool| pool.read_onto(view, 0, BLOCKS * BLOCK, &mut out));
            whole.0.unwrap();
            assert!(out == expected.to_vec(), "seed {seed}: head of {name} differs");
        }
        for ((volume, name), expected) in &model.checkpoints {
            let view = pool.view(pool.volume_id(volume).unwrap(), CheckpointName::parse(name)).unwrap();
            let mut out = vec![0; BLOCKS * BLOCK];
            drive(&mut pool, &store, |pool| pool.read(view, 0, &mut out)).0.unwrap();
            assert!(out == expected.to_vec(), "seed {seed}: {volume}@{name} differs");
        }
        let check = pool.check().unwrap();
        assert!(check.problems.is_empty(), "seed {seed}: {:?}", check.problems);
    }
}

/// One group of writes that needs more map pages than the cache holds, on a volume with a checkpoint to compare with.
#[test]
fn what_a_change_has_looked_at_does_not_have_to_be_fetched_again() {
    const LEAVES: usize = 2304;
    let store = SimStore::new(7);
    let fill = |pool: &mut Pool, id: VolumeId| {
        // The blocks of a leaf lie far apart: all leaves take room in pages.
        for i in 0..25 {
            if i == 24 {
                // The head's pages and the checkpoint's: a change looks at both.
                let (_, job) = pool.create_checkpoint(id, "").unwrap();
                pool.finish(job).unwrap();
                pool.anchor(Cleaning::Busy).unwrap();
            }
            let data = [i as u8 + 1; BLOCK];
            for leaves in (0..LEAVES).collect::<Vec<_>>().chunks(128) {
                let block = |leaf: usize| ((leaf * 64 + i * 2) * BLOCK) as u64;
                let group: Vec<(u64, &[u8])> = leaves.iter().map(|leaf| (block(*leaf), &data[..])).collect();
                pool.write_many(id, &group).unwrap();
            }
        }
        pool.anchor(Cleaning::Busy).unwrap();
        // 64 pages are the least that a cache has.
        let (pages, cached) = (pool.stats().map_stored >> 12, pool.stats().map_cache >> 12);
        assert!(cached <= 64 && pages > 80, "{pages} pages of map, {cached} in memory");
    };
    let (mut pool, id) = attached(&store, fill, LEAVES * 64 * BLOCK);
    let data = [99; BLOCK];
    let group: Vec<(u64, &[u8])> = (0..128).map(|i| (((i * 18 * 64 + 5) * BLOCK) as u64, &data[..])).collect();
    let (outcome, rounds) = drive(&mut pool, &store, |pool| pool.write_many(id, &group));
    outcome.unwrap();
    assert!(rounds < 20, "{rounds} rounds");
    let view = pool.view(id, None).unwrap();
    for (offset, _) in group {
        let mut out = [0; BLOCK];
        drive(&mut pool, &store, |pool| pool.read(view, offset, &mut out)).0.unwrap();
        assert!(out == data);
    }
    let check = pool.check().unwrap();
    assert!(check.problems.is_empty(), "{:?}", check.problems);
}

#[test]
fn a_failed_fetch_is_told_and_can_be_made_again() {
    let store = SimStore::new(3);
    let fill = |pool: &mut Pool, id: VolumeId| pool.write(id, 0, &[5; 100 * BLOCK]).unwrap();
    let (mut pool, id) = attached(&store, fill, 256 * BLOCK);
    let view = pool.view(id, None).unwrap();
    let mut out = vec![0; 100 * BLOCK];
    for (fault, kind) in [
        (StoreFault::Unavailable, ErrorKind::Unavailable),
        (StoreFault::Missing, ErrorKind::Corrupt),
        (StoreFault::Short, ErrorKind::Corrupt),
        (StoreFault::Corrupt, ErrorKind::Corrupt),
    ] {
        let e = pool.impatient(|pool| pool.read(view, 0, &mut out)).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Absent);
        let mut missing = pool.missing();
        let mut jobs = pool.take_fetches(1);
        assert_eq!(jobs.len(), 1);
        // Who asks meanwhile waits for the same fetch.
        pool.impatient(|pool| pool.read(view, 0, &mut out)).unwrap_err();
        assert!(pool.take_fetches(9).is_empty());
        let mut other = pool.missing();
        store.fail_nth(StoreOp::Get, 1, fault);
        let job = jobs.remove(0);
        let outcome = job.run();
        let arrival = pool.fetched(job, outcome);
        assert_eq!(arrival.failure.as_ref().unwrap().kind(), kind, "{fault:?}");
        assert!(missing.note(&arrival) && missing.is_over() && other.note(&arrival) && other.is_over());
    }
    drive(&mut pool, &store, |pool| pool.read(view, 0, &mut out)).0.unwrap();
    assert!(out == [5; 100 * BLOCK]);
}

#[test]
fn who_reads_on_finds_what_was_fetched_ahead() {
    const SIZE: usize = 96 << 20;
    let store = SimStore::new(5);
    let fill = |pool: &mut Pool, id: VolumeId| {
        for at in (0..SIZE).step_by(1 << 20) {
            pool.write(id, at as u64, &vec![(at >> 20) as u8 + 1; 1 << 20]).unwrap();
        }
    };
    let (mut pool, id) = attached(&store, fill, SIZE);
    let view = pool.view(id, None).unwrap();
    let mut absent = 0;
    for at in (0..SIZE).step_by(256 << 10) {
        let mut out = Vec::new();
        let (outcome, rounds) = drive(&mut pool, &store, |pool| pool.read_onto(view, at as u64, 256 << 10, &mut out));
        outcome.unwrap();
        assert!(out.iter().all(|byte| *byte == (at >> 20) as u8 + 1));
        absent += usize::from(rounds > 0);
        // A fast store: what was asked for ahead is there before the next request.
        for job in pool.take_fetches(usize::MAX) {
            let outcome = job.run();
            pool.fetched(job, outcome);
        }
    }
    assert!(absent < 8, "{absent} of {} requests had to wait", SIZE / (256 << 10));
    let counts = store.counts();
    assert!(counts.gets < 400, "{} requests for {SIZE} bytes", counts.gets);
}
