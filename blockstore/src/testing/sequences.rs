//! Every sequence of a few operations, stopped at every call to the disk: by power loss with several
//! fates of the unsynced sectors, by the death of the process, by EIO and by ENOSPC. Opening the pool
//! is part of each run, so that recovery itself is stopped at each of its calls, too.
//!
//! Oracle
//!   * power loss: the head is a state of its history at or past the last one that was promised;
//!   * death of the process: at or past the last one that was acknowledged;
//!   * every promised checkpoint and fork is byte-equal; the checker finds nothing.
//!
//! A violation is a panic that names the sequence and the call.

use super::{Fault, Rng, SimClock, SimDisk};
use crate::{CheckpointName, Cleaning, Pool, PoolOptions, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

const SIZE: usize = 64 * 4096;

/// An operation of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Three blocks.
    Write,
    /// Five blocks that overlap those.
    Overlap,
    /// Bytes across blocks.
    Unaligned,
    /// A trim.
    Trim,
    /// Zeros across blocks.
    Zeroes,
    /// A flush.
    Flush,
    /// A checkpoint.
    Checkpoint,
    /// A restore of the first checkpoint.
    Restore,
    /// Its deletion.
    Delete,
    /// An anchor, and everything that can be cleaned after it.
    Anchor,
    /// A fork of the head.
    Fork,
    /// A smaller or larger size.
    Resize,
    /// Zeros stored as blocks.
    StoredZeroes,
}

/// All of them.
pub const OPS: [Op; 13] = [
    Op::Write,
    Op::Overlap,
    Op::Unaligned,
    Op::Trim,
    Op::Zeroes,
    Op::Flush,
    Op::Checkpoint,
    Op::Restore,
    Op::Delete,
    Op::Anchor,
    Op::Fork,
    Op::Resize,
    Op::StoredZeroes,
];

/// What may and what must be found afterwards.
#[derive(Clone)]
struct Model {
    /// The head after each change, in order.
    states: Vec<Vec<u8>>,
    /// Index of the newest state that was acknowledged, and that was promised to survive power loss.
    acknowledged: usize,
    promised: usize,
    checkpoints: BTreeMap<CheckpointName, Vec<u8>>,
    forks: BTreeMap<String, Vec<u8>>,
    /// A fork that was asked for and not promised.
    begun: Option<(String, Vec<u8>)>,
}

impl Model {
    fn head(&self) -> Vec<u8> {
        self.states.last().unwrap().clone()
    }
}

fn open(disk: &SimDisk) -> crate::Result<Pool> {
    let options = PoolOptions { map_cache: 1 << 18, anchor_bytes: 1 << 20 };
    Ok(Pool::open(disk.handle(), Arc::new(SimClock::default()), options)?.0)
}

fn read(pool: &mut Pool, id: VolumeId, name: Option<CheckpointName>) -> Vec<u8> {
    let view = pool.view(id, name).unwrap();
    let mut bytes = vec![0; pool.view_size(view).unwrap() as usize];
    pool.read(view, 0, &mut bytes).unwrap();
    bytes
}

fn v1() -> CheckpointName {
    CheckpointName::parse("v1").unwrap()
}

fn prepared() -> (SimDisk, Model) {
    let disk = SimDisk::new();
    Pool::create(&disk.handle(), &SimClock::default(), [7; 16]).unwrap();
    let mut pool = open(&disk).unwrap();
    let (id, job) = pool.create_volume("disk", SIZE as u64).unwrap();
    pool.finish(job).unwrap();
    let state = [vec![1; SIZE / 2], vec![0; SIZE / 2]].concat();
    pool.write(id, 0, &state[..SIZE / 2]).unwrap();
    let (info, job) = pool.create_checkpoint(id, "").unwrap();
    pool.finish(job).unwrap();
    let checkpoints = BTreeMap::from([(info.name, state.clone())]);
    pool.write(id, 4096, &[2; 8192]).unwrap();
    let mut head = state.clone();
    head[4096..12288].fill(2);
    pool.flush(id).unwrap();
    drop(pool);
    (
        disk.after_kill(),
        Model { states: vec![head], acknowledged: 0, promised: 0, checkpoints, forks: BTreeMap::new(), begun: None },
    )
}

/// The bytes an operation changes: where, and to what.
fn change(op: Op, turn: usize) -> Option<(usize, Vec<u8>)> {
    let fill = 10 + turn as u8;
    match op {
        Op::Write => Some((8192, vec![fill; 3 * 4096])),
        Op::Overlap => Some((12288, vec![fill + 10; 5 * 4096])),
        Op::Unaligned => Some((6000, vec![fill + 20; 9000])),
        Op::Trim => Some((4096, vec![0; 4 * 4096])),
        Op::Zeroes | Op::StoredZeroes => Some((5000, vec![0; 12_345])),
        _ => None,
    }
}

fn apply(pool: &mut Pool, id: VolumeId, op: Op, turn: usize, model: &mut Model) -> crate::Result<()> {
    if let Some((offset, data)) = change(op, turn) {
        let mut next = model.head();
        next[offset..offset + data.len()].copy_from_slice(&data);
        model.states.push(next);
        match op {
            Op::Trim => pool.trim(id, offset as u64, data.len() as u64)?,
            Op::Zeroes | Op::StoredZeroes => {
                pool.write_zeroes(id, offset as u64, data.len() as u64, op == Op::StoredZeroes)?;
            }
            _ => pool.write(id, offset as u64, &data)?,
        }
        model.acknowledged = model.states.len() - 1;
        return Ok(());
    }
    match op {
        Op::Flush => pool.flush(id)?,
        Op::Checkpoint => {
            let (info, job) = pool.create_checkpoint(id, "")?;
            pool.finish(job)?;
            model.checkpoints.insert(info.name, model.head());
        }
        Op::Restore => {
            let Some(target) = model.checkpoints.get(&v1()).cloned() else { return Ok(()) };
            let before = model.head();
            model.states.push(target);
            let (undo, job) = pool.restore(id, v1())?;
            pool.finish(job)?;
            model.checkpoints.insert(undo.name, before);
        }
        Op::Delete => {
            if model.checkpoints.remove(&v1()).is_some() {
                let job = pool.delete_checkpoint(id, v1())?;
                pool.finish(job)?;
            }
        }
        Op::Fork => {
            let name = format!("fork-{turn}");
            model.begun = Some((name.clone(), model.head()));
            let (_, job) = pool.fork(id, None, &name)?;
            pool.finish(job)?;
            model.forks.extend(model.begun.take());
        }
        Op::Resize => {
            let mut next = model.head();
            next.resize(if next.len() == SIZE { SIZE * 3 / 4 } else { SIZE }, 0);
            let size = next.len() as u64;
            model.states.push(next);
            let job = pool.resize_volume(id, size)?;
            pool.finish(job)?;
        }
        _ => {
            pool.anchor(Cleaning::Thorough)?;
            while pool.reap(64)? {}
            while let Some(job) = pool.clean_job() {
                let outcome = job.run();
                pool.cleaned(job, outcome)?;
            }
            return Ok(());
        }
    }
    model.acknowledged = model.states.len() - 1;
    model.promised = model.acknowledged;
    Ok(())
}

/// Opens the pool and carries out `ops`. After a failure that did not stop the pool, the head must be
/// what it was or what was asked for.
fn run(disk: &SimDisk, ops: &[Op], model: &mut Model) {
    let Ok(mut pool) = open(disk) else { return };
    let id = pool.volume_id("disk").unwrap();
    for (turn, &op) in ops.iter().enumerate() {
        let before = model.states.len();
        if apply(&mut pool, id, op, turn, model).is_ok() {
            continue;
        }
        if disk.is_dead() || pool.poisoned().is_some() {
            return;
        }
        let found = read(&mut pool, id, None);
        assert!(model.states[before - 1..].contains(&found), "{ops:?}: a failed {op:?} left something else");
        model.states.truncate(before);
        if model.states[before - 1] != found {
            model.states.push(found);
        }
        model.acknowledged = model.states.len() - 1;
        // A fork that failed may be there nevertheless: from now on it stays as it is.
        let made = model.begun.take().filter(|(name, _)| pool.volume_id(name).is_ok());
        model.forks.extend(made);
    }
}

fn judge(disk: &SimDisk, model: &Model, floor: usize, what: &dyn Fn() -> String) {
    let mut pool = open(disk).unwrap_or_else(|e| panic!("{}: the pool does not open: {e}", what()));
    let id = pool.volume_id("disk").unwrap();
    let head = read(&mut pool, id, None);
    assert!(model.states[floor..].contains(&head), "{}: the head is no allowed state", what());
    for (name, want) in &model.checkpoints {
        assert!(&read(&mut pool, id, Some(*name)) == want, "{}: {name} changed", what());
    }
    for (name, want) in &model.forks {
        let fork = pool.volume_id(name).unwrap_or_else(|e| panic!("{}: {e}", what()));
        assert!(&read(&mut pool, fork, None) == want, "{}: {name} changed", what());
    }
    if let Some((name, want)) = &model.begun {
        if let Ok(fork) = pool.volume_id(name) {
            assert!(&read(&mut pool, fork, None) == want, "{}: {name} is something else", what());
        }
    }
    while pool.reap(64).unwrap() {}
    let problems = pool.check().unwrap().problems;
    assert!(problems.is_empty(), "{}: {problems:?}", what());
}

/// All sequences of `len` operations.
pub fn sequences(len: u32) -> impl Iterator<Item = Vec<Op>> {
    (0..OPS.len().pow(len))
        .map(move |number| (0..len).map(|place| OPS[number / OPS.len().pow(place) % OPS.len()]).collect())
}

/// Runs `ops` with `fault` at each call in turn; `after` judges. Returns the number of points.
fn at_every_call(ops: &[Op], fault: Fault, mut after: impl FnMut(&SimDisk, &Model, u64)) -> u64 {
    let (start, model) = prepared();
    for call in 1.. {
        let (disk, mut model) = (start.after_kill(), model.clone());
        disk.inject(call, fault);
        run(&disk, ops, &mut model);
        if !disk.fault_fired() {
            return call - 1;
        }
        after(&disk, &model, call);
    }
    unreachable!("the loop ends when no fault fires")
}

/// Stops `ops` at every call, by power loss and by the death of the process; the numbers of crash
/// points and of disk images judged.
pub fn crash_everywhere(ops: &[Op]) -> (u64, u64) {
    let mut images = 0;
    let points = at_every_call(ops, Fault::PowerLoss, |disk, model, call| {
        let mut rng = Rng::new(call);
        for fate in 0..4 {
            let image = disk.after_power_loss(&mut || fate == 0 || fate > 1 && rng.one_in(2));
            judge(&image, model, model.promised, &|| format!("{ops:?}, power lost at call {call}, fate {fate}"));
        }
        judge(&disk.after_kill(), model, model.acknowledged, &|| format!("{ops:?}, killed at call {call}"));
        images += 5;
    });
    (points, images)
}

/// Lets every call of `ops` fail, with EIO and with ENOSPC; the number of failures.
pub fn fail_everywhere(ops: &[Op]) -> u64 {
    let mut points = 0;
    for fault in [Fault::Io, Fault::NoSpace] {
        points += at_every_call(ops, fault, |disk, model, call| {
            judge(&disk.after_kill(), model, model.acknowledged, &|| format!("{ops:?}, {fault:?} at call {call}"));
        });
    }
    points
}

/// Judges a disk that lost a promised change: must panic.
pub fn canary() {
    let (disk, mut model) = prepared();
    let before = disk.after_kill();
    run(&disk, &[Op::Write, Op::Flush], &mut model);
    judge(&before, &model, model.promised, &|| "canary".into());
}
