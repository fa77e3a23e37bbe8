//! Random histories against the executable model: restarts, power loss, and the accounts.

use blockstore::testing::{ReferenceDisk, Rng, SimClock, SimDisk, Sparse};
use blockstore::{Cleaning, Pool, PoolOptions, VolumeId};
use std::sync::Arc;

const SIZE: usize = 8 << 20;

fn content(rng: &mut Rng, len: usize) -> Vec<u8> {
    if rng.one_in(5) {
        return vec![0; len];
    }
    rng.bytes(len)
}

fn open(disk: &SimDisk) -> Pool {
    let options = PoolOptions { map_cache: 1 << 18, anchor_bytes: 1 << 20 };
    Pool::open(disk.handle(), Arc::new(SimClock::default()), options).unwrap().0
}

fn new_pool() -> (SimDisk, Pool) {
    let disk = SimDisk::new();
    Pool::create(&disk.handle(), &SimClock::default(), [7; 16]).unwrap();
    let pool = open(&disk);
    (disk, pool)
}

fn compare(pool: &mut Pool, model: &ReferenceDisk, seed: u64) {
    let mut buf = vec![0; SIZE];
    for (name, want) in &model.heads {
        let id = pool.volume_id(name).unwrap();
        let view = pool.view(id, None).unwrap();
        pool.read(view, 0, &mut buf).unwrap();
        assert!(buf == want.to_vec(), "seed {seed}: head of {name} differs from the model");
    }
    for ((volume, name), want) in &model.checkpoints {
        let id = pool.volume_id(volume).unwrap();
        let view = pool.view(id, blockstore::CheckpointName::parse(name)).unwrap();
        pool.read(view, 0, &mut buf).unwrap();
        assert!(buf == want.to_vec(), "seed {seed}: {volume}@{name} differs from the model");
    }
    let problems = |pool: &mut Pool| pool.check().unwrap().problems;
    while pool.reap(64).unwrap() {}
    let found = problems(pool);
    let waiting = pool.stats().reaping > 0;
    let real: Vec<_> = found.iter().filter(|p| !waiting || !p.contains("accounted live")).collect();
    assert!(real.is_empty(), "seed {seed}: {real:?}");
}

fn step(pool: &mut Pool, model: &mut ReferenceDisk, rng: &mut Rng, forks: &mut usize) {
    let names: Vec<String> = model.heads.keys().cloned().collect();
    let name = names[rng.below(names.len())].clone();
    let id: VolumeId = pool.volume_id(&name).unwrap();
    let saved: Vec<String> = model.checkpoints.keys().filter(|(v, _)| *v == name).map(|(_, c)| c.clone()).collect();
    match rng.below(20) {
        0..=8 => {
            let len = [512, 4096, 5000, 65536, 300_000][rng.below(5)];
            let offset = rng.below(SIZE - len);
            let offset = if rng.below(2) == 0 { offset / 4096 * 4096 } else { offset };
            let data = content(rng, len);
            pool.write(id, offset as u64, &data).unwrap();
            model.write(&name, offset, &data);
        }
        9 | 10 => {
            let offset = rng.below(SIZE - 4096);
            let len = if rng.below(3) == 0 { SIZE - offset } else { rng.below(SIZE - offset) + 1 };
            pool.write_zeroes(id, offset as u64, len as u64, rng.below(4) == 0 && len < 1 << 20).unwrap();
            model.zero(&name, offset, len);
        }
        11 => {
            let (offset, len) = (rng.below(1000) * 4096, (rng.below(1040) + 1) * 4096);
            pool.trim(id, offset as u64, len as u64).unwrap();
            model.zero(&name, offset, len);
        }
        12 | 13 => {
            let (info, job) = pool.create_checkpoint(id, "test").unwrap();
            pool.finish(job).unwrap();
            model.checkpoint(&name, &info.name.to_string());
        }
        14 if !saved.is_empty() => {
            let from = saved[rng.below(saved.len())].clone();
            let (undo, job) = pool.restore(id, blockstore::CheckpointName::parse(&from).unwrap()).unwrap();
            pool.finish(job).unwrap();
            model.restore(&name, &from, &undo.name.to_string());
            let kept: Vec<String> = pool.checkpoints(id).unwrap().iter().map(|c| c.name.to_string()).collect();
            model.checkpoints.retain(|(v, c), _| *v != name || kept.contains(c));
        }
        15 if !saved.is_empty() => {
            let gone = saved[rng.below(saved.len())].clone();
            let job = pool.delete_checkpoint(id, blockstore::CheckpointName::parse(&gone).unwrap()).unwrap();
            pool.finish(job).unwrap();
            model.delete_checkpoint(&name, &gone);
        }
        16 if names.len() < 4 => {
            *forks += 1;
            let new = format!("fork-{forks}");
            let from = (!saved.is_empty() && rng.below(2) == 0).then(|| saved[rng.below(saved.len())].clone());
            let at = from.as_deref().map(|f| blockstore::CheckpointName::parse(f).unwrap());
            let (_, job) = pool.fork(id, at, &new).unwrap();
            pool.finish(job).unwrap();
            model.fork(&name, from.as_deref(), &new);
        }
        17 if names.len() > 1 && rng.below(3) == 0 => {
            let job = pool.delete_volume(id).unwrap();
            pool.finish(job).unwrap();
            model.delete(&name);
        }
        18 => drop(pool.reap(1 + rng.below(40)).unwrap()),
        _ => {
            pool.anchor(if rng.below(2) == 0 { Cleaning::Thorough } else { Cleaning::Busy }).unwrap();
            while let Some(job) = pool.clean_job() {
                let outcome = job.run();
                pool.cleaned(job, outcome).unwrap();
            }
        }
    }
}

#[test]
fn random_histories_with_kills_match_the_model() {
    for seed in 1..=25u64 {
        let (mut disk, mut pool) = new_pool();
        let mut rng = Rng::new(seed);
        let mut model = ReferenceDisk::default();
        let (_, job) = pool.create_volume("disk", SIZE as u64).unwrap();
        pool.finish(job).unwrap();
        model.create("disk", SIZE);
        let mut forks = 0;
        for turn in 0..120 {
            step(&mut pool, &mut model, &mut rng, &mut forks);
            if turn % 30 == 29 {
                compare(&mut pool, &model, seed);
                drop(pool);
                disk = disk.after_kill();
                pool = open(&disk);
                compare(&mut pool, &model, seed);
            }
        }
        pool.maintain().unwrap();
        compare(&mut pool, &model, seed);
    }
}

#[test]
fn flushed_histories_survive_power_loss() {
    for seed in 1..=25u64 {
        let (mut disk, mut pool) = new_pool();
        let mut rng = Rng::new(seed + 1000);
        let mut model = ReferenceDisk::default();
        let (_, job) = pool.create_volume("disk", SIZE as u64).unwrap();
        pool.finish(job).unwrap();
        model.create("disk", SIZE);
        let mut forks = 0;
        for _ in 0..4 {
            for _ in 0..20 {
                step(&mut pool, &mut model, &mut rng, &mut forks);
            }
            for name in model.heads.keys() {
                let id = pool.volume_id(name).unwrap();
                pool.flush(id).unwrap();
            }
            // What is written from here on was never promised, and may come back in any prefix.
            let id = pool.volume_id(model.heads.keys().next().unwrap()).unwrap();
            let name = model.heads.keys().next().unwrap().clone();
            let before = model.heads[&name].to_vec();
            let mut prefixes = vec![before.clone()];
            for _ in 0..3 {
                let offset = rng.below(SIZE / 4096 - 64) * 4096;
                let data = content(&mut rng, 64 * 4096);
                pool.write(id, offset as u64, &data).unwrap();
                model.write(&name, offset, &data);
                prefixes.push(model.heads[&name].to_vec());
            }
            drop(pool);
            disk = disk.after_power_loss(&mut || rng.below(3) > 0);
            pool = open(&disk);
            let view = pool.view(pool.volume_id(&name).unwrap(), None).unwrap();
            let mut buf = vec![0; SIZE];
            pool.read(view, 0, &mut buf).unwrap();
            assert!(prefixes.contains(&buf), "seed {seed}: the state after power loss is no prefix of the history");
            model.heads.insert(name, Arc::new(Sparse::from_slice(&buf)));
            compare(&mut pool, &model, seed);
        }
    }
}

#[test]
fn canary_a_lost_flushed_block_is_noticed() {
    let (disk, mut pool) = new_pool();
    let (id, job) = pool.create_volume("disk", SIZE as u64).unwrap();
    pool.finish(job).unwrap();
    pool.write(id, 0, &[9; 4096]).unwrap();
    pool.flush(id).unwrap();
    drop(pool);
    let disk = disk.after_kill();
    for name in disk.names().iter().filter(|n| n.starts_with("seg-")) {
        disk.edit(name, |bytes| bytes.iter_mut().skip(8192).for_each(|b| *b = 0));
    }
    let mut pool = open(&disk);
    let view = pool.view(pool.volume_id("disk").unwrap(), None).unwrap();
    let mut buf = [0; 4096];
    pool.read(view, 0, &mut buf).unwrap();
    assert_ne!(buf, [9; 4096], "the damage went unnoticed: the harness cannot fail");
}
