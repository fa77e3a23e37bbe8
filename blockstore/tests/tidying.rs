//! Map pages stay well filled under scattered writes, with checkpoints, forks and restarts, and every
//! state and every account stays as it was.

use blockstore::testing::{ReferenceDisk, Rng, SimClock, SimDisk};
use blockstore::{CheckpointName, Cleaning, Pool, PoolOptions, VolumeId};
use std::sync::Arc;

const BLOCK: usize = 4096;
/// Those of four level-1 nodes with 64 leaves each, of which a turn changes one in seven.
const BLOCKS: usize = 4 * 64 * 64;

/// What one run does besides writing.
#[derive(Clone, Copy, Debug, Default)]
struct Habits {
    /// A checkpoint every so many anchors; the oldest goes when there are three.
    checkpoints: Option<usize>,
    /// A fork every so many anchors; it is written to, and goes later.
    forks: Option<usize>,
    /// Killed, or without power, and opened again every so many anchors.
    restarts: Option<usize>,
    /// The map is written ahead of each anchor, while writing goes on.
    ahead: bool,
}

fn open(disk: &SimDisk) -> Pool {
    let options = PoolOptions { map_cache: 64 << 20, anchor_bytes: 1 << 40 };
    Pool::open(disk.handle(), Arc::new(SimClock::default()), options).unwrap().0
}

struct Run {
    disk: SimDisk,
    pool: Pool,
    model: ReferenceDisk,
    rng: Rng,
    seed: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new();
        Pool::create(&disk.handle(), &SimClock::default(), [7; 16]).unwrap();
        let mut run = Self { pool: open(&disk), disk, model: ReferenceDisk::default(), rng: Rng::new(seed), seed };
        let (_, job) = run.pool.create_volume("disk", (BLOCKS * BLOCK) as u64).unwrap();
        run.pool.finish(job).unwrap();
        run.model.create("disk", BLOCKS * BLOCK);
        run
    }

    fn id(&self, volume: &str) -> VolumeId {
        self.pool.volume_id(volume).unwrap()
    }

    /// Writes blocks at random places of `volume`.
    fn scatter(&mut self, volume: &str, count: usize) {
        let id = self.id(volume);
        for _ in 0..count {
            let (at, data) = (self.rng.below(BLOCKS) * BLOCK, [self.rng.below(255) as u8 + 1; BLOCK]);
            self.pool.write(id, at as u64, &data).unwrap();
            self.model.write(volume, at, &data);
        }
    }

    /// Writes leaves ahead of the anchor that comes, and sometimes blocks between.
    fn write_ahead(&mut self) {
        while self.pool.write_map_ahead().unwrap() {
            if self.rng.one_in(3) {
                self.scatter("disk", 1);
            }
        }
    }

    fn anchor(&mut self) {
        self.pool.anchor(Cleaning::Busy).unwrap();
        while let Some(job) = self.pool.clean_job() {
            let outcome = job.run();
            self.pool.cleaned(job, outcome).unwrap();
        }
    }

    fn checkpoint(&mut self) {
        let id = self.id("disk");
        let (info, job) = self.pool.create_checkpoint(id, "").unwrap();
        self.pool.finish(job).unwrap();
        self.model.checkpoint("disk", &info.name.to_string());
        let names: Vec<CheckpointName> = self.pool.checkpoints(id).unwrap().iter().map(|c| c.name).collect();
        if let [.., _, _, _] = names[..] {
            let oldest = *names.iter().min_by_key(|name| name.number).unwrap();
            let job = self.pool.delete_checkpoint(id, oldest).unwrap();
            self.pool.finish(job).unwrap();
            self.model.delete_checkpoint("disk", &oldest.to_string());
        }
    }

    /// A fork that there was goes, and a new one comes.
    fn fork(&mut self) {
        if let Ok(id) = self.pool.volume_id("fork") {
            let job = self.pool.delete_volume(id).unwrap();
            self.pool.finish(job).unwrap();
            self.model.delete("fork");
        }
        let (_, job) = self.pool.fork(self.id("disk"), None, "fork").unwrap();
        self.pool.finish(job).unwrap();
        self.model.fork("disk", None, "fork");
        self.scatter("fork", 100);
    }

    /// Stops in the middle of an anchor, of what is written ahead of it, or of a log, and opens again.
    fn restart(&mut self) {
        self.scatter("disk", 20);
        for _ in 0..self.rng.below(3) {
            self.pool.write_map_ahead().unwrap();
        }
        for name in self.model.heads.keys() {
            let id = self.pool.volume_id(name).unwrap();
            self.pool.flush(id).unwrap();
        }
        match self.rng.below(3) {
            0 => drop(self.pool.begin_anchor(Cleaning::Busy).unwrap()),
            1 => drop(self.pool.begin_anchor(Cleaning::Busy).unwrap().run()),
            _ => {}
        }
        let rng = &mut self.rng;
        self.disk = match rng.below(2) {
            0 => self.disk.after_kill(),
            _ => self.disk.after_power_loss(&mut || rng.below(3) > 0),
        };
        self.pool = open(&self.disk);
        self.verify();
    }

    fn verify(&mut self) {
        while self.pool.reap(1 << 10).unwrap() {}
        assert_eq!(self.pool.check().unwrap().problems, Vec::<String>::new(), "seed {}", self.seed);
        let mut buf = vec![0; BLOCKS * BLOCK];
        let heads = self.model.heads.iter().map(|(volume, want)| (volume, None, want));
        let saved = self.model.checkpoints.iter().map(|((volume, name), want)| (volume, Some(name), want));
        for (volume, name, want) in heads.chain(saved) {
            let id = self.pool.volume_id(volume).unwrap();
            let at = name.map(|name| CheckpointName::parse(name).unwrap());
            let view = self.pool.view(id, at).unwrap();
            self.pool.read(view, 0, &mut buf).unwrap();
            assert!(buf == want.to_vec(), "seed {}: {volume}@{name:?} differs from the model", self.seed);
        }
    }

    /// Bytes of map pages in memory, all of them loaded and no other ones.
    fn map_bytes(&mut self) -> u64 {
        self.anchor();
        self.pool = open(&self.disk.after_kill());
        self.pool.volume_usage(self.id("disk")).unwrap();
        self.pool.stats().map_cache
    }
}

/// Bytes of map pages after many anchors.
fn bytes_after(habits: Habits, seed: u64) -> u64 {
    let mut run = Run::new(seed);
    let due = |every: Option<usize>, turn: usize| every.is_some_and(|every| turn % every == every - 1);
    // Every block once, so that leaves are full.
    let id = run.id("disk");
    for at in 0..BLOCKS {
        let (at, data) = ((at * 4099) % BLOCKS * BLOCK, [1; BLOCK]);
        run.pool.write(id, at as u64, &data).unwrap();
        run.model.write("disk", at, &data);
    }
    for turn in 0..40 {
        run.scatter("disk", 40);
        if due(habits.checkpoints, turn) {
            run.checkpoint();
        }
        if due(habits.forks, turn) {
            run.fork();
        }
        if run.rng.one_in(2) {
            run.pool.reap(10).unwrap();
        }
        if habits.ahead {
            run.write_ahead();
        }
        run.anchor();
        if due(habits.restarts, turn) {
            run.restart();
        }
    }
    run.verify();
    run.map_bytes()
}

/// 256 full leaves and their parents take 10 pages at least; without tidying it is more than 40.
#[test]
fn pages_stay_well_filled() {
    for seed in 1..=2 {
        let plain = bytes_after(Habits::default(), seed) / BLOCK as u64;
        assert!(plain <= 20, "seed {seed}: {plain} pages");
        let restarted = bytes_after(Habits { restarts: Some(7), ..Habits::default() }, seed) / BLOCK as u64;
        assert!(restarted <= 24, "seed {seed}, with restarts: {restarted} pages");
        let ahead = bytes_after(Habits { ahead: true, ..Habits::default() }, seed) / BLOCK as u64;
        assert!(ahead <= 20, "seed {seed}, written ahead: {ahead} pages");
    }
}

/// How full pages can be depends on what is shared: only states and accounts are judged.
#[test]
fn checkpoints_and_forks_keep_what_they_share() {
    let all = Habits { checkpoints: Some(5), forks: Some(11), restarts: Some(8), ahead: false };
    bytes_after(all, 1);
    bytes_after(Habits { ahead: true, ..all }, 2);
    bytes_after(Habits { checkpoints: Some(2), ..Habits::default() }, 3);
    bytes_after(Habits { forks: Some(3), restarts: Some(4), ..Habits::default() }, 4);
}

/// Clients wait for what an anchor has to write: the leaves are not among it any more.
#[test]
fn what_is_written_ahead_is_not_left_for_the_anchor() {
    let mut run = Run::new(1);
    run.scatter("disk", 2000);
    run.checkpoint();
    run.scatter("disk", 2000);
    let before = run.pool.stats().changed_nodes;
    while run.pool.write_map_ahead().unwrap() {}
    // What the checkpoint shares is the anchor's: its own 256 leaves with the few nodes above, and those of the head.
    let after = run.pool.stats().changed_nodes;
    assert!(before > 512 && after < 280, "{before} changed nodes, of which {after} are left");
    run.verify();
    run.anchor();
    run.verify();
}
