//! P3 with real processes and HTTP: clients write over NBD and keep the history of what they changed, the daemon is
//! killed at random moments and its pool removed, and another host attaches the volumes from the bucket. Each must be
//! what a prefix of its history made of it, at or past everything that was said to be in the bucket.
//!
//! `CAIRN_KILLS` sets how often the host is lost; a third of the hosts see a store that fails. `CAIRN_CHAIN` sets after how many
//! of them everything begins anew in another part of the bucket: several volumes that move together need more numbers of
//! segments each time, and after 15 hosts or so there are none left.

mod common;

use common::history::{read_stamps, Found, History, BLOCK, BLOCKS};
use common::tier::{take_over, trouble, Bucket};
use common::{noise, wire, Pool};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const KILLS: u64 = 4;
const CHAIN: u64 = 10;
/// One volume of each durability.
const MODES: [&str; 3] = ["local", "bounded=150", "remote"];
const BOUND: Duration = Duration::from_millis(150);
const LAG: &str = "--lag=0.3";

/// A stream of random numbers.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut seed = seed << 32;
    move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        wire::be(&noise(seed, 8))
    }
}

fn volume(mode: &str) -> String {
    format!("disk-{}", mode.split('=').next().unwrap_or_default())
}

/// The connections of one client of one volume.
struct Client {
    disk: UnixStream,
    control: UnixStream,
    volume: String,
    mode: &'static str,
}

impl Client {
    fn of(pool: &Pool, mode: &'static str) -> Self {
        let control = UnixStream::connect(pool.pool().join("control.sock")).expect("the daemon listens");
        Self { disk: pool.nbd(&volume(mode)), control, volume: volume(mode), mode }
    }

    /// A command's answer, behind its lines of progress; `None` when the daemon is gone.
    fn command(&mut self, op: &str, more: &str) -> Option<Value> {
        writeln!(self.control, "{{\"op\":\"{op}\",\"volume\":\"{}\"{more}}}", self.volume).ok()?;
        let mut lines = BufReader::new(&self.control);
        loop {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut lines, &mut line).ok()?;
            let answer: Value = serde_json::from_str(&line).ok()?;
            if answer.get("progress").is_none() {
                return Some(answer);
            }
        }
    }
}

/// What a client knows across the hosts it lived on.
struct Story {
    history: History,
    /// The newest checkpoint that was said to be in the bucket, and what it must hold.
    checkpoint: Option<(String, Vec<u64>)>,
    acknowledged: usize,
    flushes: usize,
    promises: usize,
}

impl Story {
    fn new() -> Self {
        Self { history: History::new(), checkpoint: None, acknowledged: 0, flushes: 0, promises: 0 }
    }

    /// Writes until the daemon is gone; what it says about the bucket raises the floor.
    fn write_on(&mut self, mut client: Client, mut random: impl FnMut() -> u64) {
        // Numbers of the daemon at which so many changes were done, and flushes with what they covered.
        let (mut stood, mut flushed) = (VecDeque::new(), VecDeque::new());
        loop {
            if !self.history.change(&mut client.disk, random()).unwrap_or(false) {
                return;
            }
            let done = self.history.acknowledged;
            let alive = match random() % 1000 {
                0..=24 => self.look(&mut client, &mut stood),
                25..=27 => {
                    client.command("volume.sync", "").map(|answer| self.promise(&answer["durability"], done)).is_some()
                }
                28..=30 => self.take_checkpoint(&mut client),
                31..=130 => self.flush(&mut client, &mut flushed),
                _ => true,
            };
            if !alive {
                return;
            }
        }
    }

    fn promise(&mut self, durability: &Value, changes: usize) {
        if durability == "remote" {
            self.promises += 1;
            self.history.must_survive(changes);
        }
    }

    /// What `volume info` says: the number reached now, and the watermark that earlier numbers are below.
    fn look(&mut self, client: &mut Client, stood: &mut VecDeque<(u64, usize)>) -> bool {
        let Some(info) = client.command("volume.info", "") else { return false };
        let number = |key: &str| info["object_store"][key].as_u64().expect("a number");
        stood.push_back((number("changed"), self.history.acknowledged));
        while stood.front().is_some_and(|(changed, _)| *changed <= number("watermark")) {
            let changes = stood.pop_front().map_or(0, |(_, changes)| changes);
            self.promises += 1;
            self.history.must_survive(changes);
        }
        true
    }

    fn take_checkpoint(&mut self, client: &mut Client) -> bool {
        let (state, done) = (self.history.state(), self.history.acknowledged);
        let Some(answer) = client.command("checkpoint.create", ",\"wait\":\"remote\"") else { return false };
        if let Some(id) = answer["id"].as_str() {
            self.promise(&answer["durability"], done);
            self.checkpoint = Some((id.to_owned(), state));
        }
        true
    }

    /// What the completed flush of a volume of this mode promises.
    fn flush(&mut self, client: &mut Client, flushed: &mut VecDeque<(Instant, usize)>) -> bool {
        let begin = Instant::now();
        if !self.history.flush(&mut client.disk).unwrap_or(false) {
            return false;
        }
        self.flushes += 1;
        let done = self.history.acknowledged;
        match client.mode {
            "local" => {}
            "remote" => self.history.must_survive(done),
            _ => {
                while flushed.front().is_some_and(|(at, _)| begin.duration_since(*at) >= BOUND) {
                    let changes = flushed.pop_front().map_or(0, |(_, changes)| changes);
                    self.history.must_survive(changes);
                }
                flushed.push_back((Instant::now(), done));
            }
        }
        true
    }

    fn audit(&mut self, pool: &Pool, volume: &str) -> Found {
        self.acknowledged += self.history.acknowledged;
        let found =
            self.history.audit(&mut pool.nbd(volume)).unwrap_or_else(|e| panic!("{volume}: {e}\n{}", pool.log()));
        if let Some((id, state)) = &self.checkpoint {
            let there = read_stamps(&mut pool.nbd(&format!("{volume}@{id}")));
            assert!(
                there.as_ref() == Ok(state),
                "{volume}@{id} is not what it was when it was said to be in the bucket ({:?})\n{}",
                there.err(),
                pool.log()
            );
        }
        found
    }
}

/// The first host, with an empty volume of each mode that the bucket knows.
fn first_host(bucket: &Bucket) -> Pool {
    let pool = bucket.host(&[LAG]);
    let size = (BLOCKS as usize * BLOCK).to_string();
    for mode in MODES {
        pool.json(&["volume", "create", &volume(mode), "--size", &size]);
        pool.json(&["volume", "set", &volume(mode), "--durability", mode]);
        pool.json(&["volume", "sync", &volume(mode)]);
    }
    pool
}

/// Lets a client of each volume write until the host is lost after `delay`.
fn lose(bucket: &Bucket, pool: &mut Pool, stories: &mut [Story], seed: u64, faults: bool, delay: Duration) {
    let over = AtomicBool::new(false);
    let clients: Vec<_> = MODES.iter().map(|mode| Client::of(pool, mode)).collect();
    thread::scope(|scope| {
        for ((story, client), i) in stories.iter_mut().zip(clients).zip(1..) {
            scope.spawn(move || story.write_on(client, random(seed * 10 + i)));
        }
        if faults {
            scope.spawn(|| trouble(&bucket.proxy, random(seed * 10), &over));
        }
        thread::sleep(delay);
        pool.end(libc::SIGKILL);
        over.store(true, Ordering::SeqCst);
    });
    std::fs::remove_dir_all(pool.pool()).expect("the pool is removed");
    assert!(!Path::new(&pool.pool()).exists());
}

/// What is counted over all chains.
#[derive(Default)]
struct Sum {
    lost: [usize; MODES.len()],
    prefixes: usize,
    acknowledged: usize,
    flushes: usize,
    promises: usize,
    attaching: Vec<Duration>,
}

/// Attaches all volumes side by side: each may have to wait until the lost host's time is over. How long it took.
fn attach_all(pool: &Pool) -> Vec<Duration> {
    let attach = |mode| {
        let begin = Instant::now();
        take_over(pool, &volume(mode));
        begin.elapsed()
    };
    thread::scope(|scope| {
        let all: Vec<_> = MODES.iter().map(|mode| scope.spawn(move || attach(mode))).collect();
        all.into_iter().map(|one| one.join().expect("an attachment")).collect()
    })
}

/// Loses so many hosts one after the other.
fn chain(bucket: &Bucket, hosts: std::ops::Range<u64>, sum: &mut Sum) {
    let mut pool = first_host(bucket);
    let mut stories: Vec<Story> = MODES.iter().map(|_| Story::new()).collect();
    let mut random = random(hosts.start);
    for kill in hosts {
        let delay = Duration::from_millis(random() % 1500);
        lose(bucket, &mut pool, &mut stories, kill + 1, kill % 3 == 1, delay);
        pool = bucket.host(&[LAG]);
        sum.attaching.extend(attach_all(&pool));
        for ((mode, story), lost) in MODES.iter().zip(&mut stories).zip(&mut sum.lost) {
            *lost += story.audit(&pool, &volume(mode)).lost;
            sum.prefixes += 1;
        }
    }
    for mode in MODES {
        pool.json(&["volume", "sync", &volume(mode)]);
    }
    assert!(pool.end(libc::SIGTERM).success());
    sum.acknowledged += stories.iter().map(|s| s.acknowledged).sum::<usize>();
    sum.flushes += stories.iter().map(|s| s.flushes).sum::<usize>();
    sum.promises += stories.iter().map(|s| s.promises).sum::<usize>();
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn a_lost_host_leaves_a_prefix_in_the_bucket() {
    let (kills, length) = (setting("CAIRN_KILLS", KILLS), setting("CAIRN_CHAIN", CHAIN));
    let bucket = Bucket::new("prefixes");
    let mut sum = Sum::default();
    for first in (0..kills).step_by(length as usize) {
        chain(&bucket.part(first), first..kills.min(first + length), &mut sum);
    }
    sum.attaching.sort_unstable();
    let (middle, worst) = (sum.attaching[sum.attaching.len() / 2], sum.attaching[sum.attaching.len() - 1]);
    println!(
        "hosts lost {kills}, prefixes {} of {}, acknowledged {}, flushes {}, promises kept {}; acknowledged and lost: \
         local {}, bounded {}, remote {}; attached in {middle:.1?} (median), {worst:.1?} (longest)",
        sum.prefixes,
        kills * MODES.len() as u64,
        sum.acknowledged,
        sum.flushes,
        sum.promises,
        sum.lost[0],
        sum.lost[1],
        sum.lost[2],
    );
    assert!(sum.acknowledged as u64 > 100 * kills && sum.promises as u64 > kills, "the clients were let work");
}

#[test]
fn canary_what_is_no_prefix_or_too_short_is_noticed() {
    let bucket = Bucket::new("canary");
    let pool = first_host(&bucket);
    let (name, mut history, mut random) = (volume("local"), History::new(), random(3));
    let mut write = |history: &mut History| {
        let mut disk = pool.nbd(&name);
        (0..200).for_each(|_| assert!(history.change(&mut disk, random()).expect("a change"), "it is done"));
    };
    write(&mut history);
    let stranger = History::new().audit(&mut pool.nbd(&name)).expect_err("nobody made these changes");
    assert!(stranger.contains("no prefix"), "{stranger}");
    assert_eq!(history.audit(&mut pool.nbd(&name)).expect("all are there").prefix, 200);
    write(&mut history);
    history.forget_one();
    let hole = history.audit(&mut pool.nbd(&name)).expect_err("one change was never made");
    assert!(hole.contains("no prefix"), "{hole}");

    let mut history = History::new();
    pool.json(&["volume", "create", "other", "--size", &(BLOCKS as usize * BLOCK).to_string()]);
    pool.json(&["checkpoint", "create", "other"]);
    let mut disk = pool.nbd("other");
    while history.acknowledged < 100 {
        history.change(&mut disk, random()).expect("a change");
    }
    history.must_survive(100);
    pool.json(&["restore", "other", "v1", "--force"]);
    let short = history.audit(&mut pool.nbd("other")).expect_err("the volume went back in time");
    assert!(short.contains("100 must be"), "{short}");
}
