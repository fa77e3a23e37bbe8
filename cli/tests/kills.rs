//! P1 on a real daemon: clients write over NBD and keep a ledger of what was acknowledged, the daemon
//! is killed at random moments (also while it opens the pool), and after each restart every block and
//! the newest checkpoint of every volume are compared.
//!
//! `CAIRN_KILLS` sets how often it is killed.

mod common;

use common::ledger::{audit_state, Ledger, BLOCK, BLOCKS};
use common::{noise, wire, Pool};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const VOLUMES: usize = 3;
const KILLS: usize = 20;

fn name(i: usize) -> String {
    format!("disk{i}")
}

/// A stream of random numbers.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut seed = seed;
    move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        wire::be(&noise(seed, 8))
    }
}

/// Takes a checkpoint; `None` when the daemon dies meanwhile.
fn checkpoint(control: &Path, volume: &str) -> Option<String> {
    let mut stream = UnixStream::connect(control).ok()?;
    stream.write_all(format!("{{\"op\":\"checkpoint.create\",\"volume\":\"{volume}\"}}\n").as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    Some(serde_json::from_str::<serde_json::Value>(&line).ok()?["id"].as_str()?.to_owned())
}

/// Writes until the daemon is gone.
fn write_on(ledger: &mut Ledger, mut stream: UnixStream, control: &Path, volume: &str, seed: u64) {
    let mut random = random(seed);
    let limits = [UnixStream::set_read_timeout, UnixStream::set_write_timeout];
    limits.iter().for_each(|set| set(&stream, Some(Duration::from_secs(30))).expect("a time limit"));
    loop {
        if random().is_multiple_of(200) {
            while !ledger.is_idle() {
                if ledger.reply(&mut stream).is_err() {
                    return;
                }
            }
            let state = ledger.state();
            let Some(id) = checkpoint(control, volume) else { return };
            ledger.checkpoint = Some((id, state));
        }
        if ledger.turn(&mut stream, random()).is_err() {
            // What had been answered before the end is acknowledged, too.
            while ledger.reply(&mut stream).is_ok() {}
            return;
        }
    }
}

fn audit(pool: &Pool, ledgers: &mut [Ledger]) -> Vec<String> {
    let mut lost = Vec::new();
    for (i, ledger) in ledgers.iter_mut().enumerate() {
        lost.extend(ledger.audit(&mut pool.nbd(&name(i))));
        if let Some((id, state)) = &ledger.checkpoint {
            lost.extend(audit_state(&mut pool.nbd(&format!("{}@{id}", name(i))), state));
        }
    }
    lost
}

fn new_pool() -> Pool {
    let pool = Pool::new();
    let size = (BLOCKS as usize * BLOCK).to_string();
    (0..VOLUMES).for_each(|i| drop(pool.json(&["volume", "create", &name(i), "--size", &size])));
    pool
}

#[test]
fn acknowledged_writes_survive_sigkill_at_any_moment() {
    let kills = std::env::var("CAIRN_KILLS").map_or(KILLS, |text| text.parse().expect("CAIRN_KILLS is a number"));
    let mut pool = new_pool();
    let mut ledgers: Vec<Ledger> = (0..VOLUMES).map(|_| Ledger::new()).collect();
    let (mut random, mut openings) = (random(1), Vec::new());
    for kill in 0..kills {
        let begin = Instant::now();
        pool.serve(&[]);
        openings.push(begin.elapsed());
        let lost = audit(&pool, &mut ledgers);
        assert!(lost.is_empty(), "after {kill} kills: {} lost: {:?}", lost.len(), &lost[..lost.len().min(5)]);
        let clients: Vec<_> = (0..VOLUMES).map(|i| pool.nbd(&name(i))).collect();
        let (control, delay) = (pool.pool().join("control.sock"), Duration::from_micros(random() % 200_000));
        thread::scope(|scope| {
            for (i, (ledger, client)) in ledgers.iter_mut().zip(clients).enumerate() {
                let (control, seed) = (&control, random());
                scope.spawn(move || write_on(ledger, client, control, &name(i), seed));
            }
            thread::sleep(delay);
            pool.end(libc::SIGKILL);
        });
        if random() % 3 == 0 {
            // Once more, while it opens what the last kill left.
            let mut opening = pool.command(&["serve"]).stderr(std::process::Stdio::null()).spawn().expect("a daemon");
            thread::sleep(Duration::from_micros(random() % 20_000));
            opening.kill().expect("a kill");
            opening.wait().expect("a child");
        }
    }
    pool.serve(&[]);
    let lost = audit(&pool, &mut ledgers);
    assert!(lost.is_empty(), "at the end: {lost:?}");
    pool.end(libc::SIGTERM);
    assert_eq!(pool.json(&["check"])["problems"], serde_json::json!([]));
    openings.sort_unstable();
    let acknowledged: u64 = ledgers.iter().map(|l| l.acknowledged).sum();
    let (middle, worst) = (openings[openings.len() / 2], openings[openings.len() - 1]);
    println!("kills {kills}, acknowledged {acknowledged}, lost 0, reopening median {middle:.1?}, longest {worst:.1?}");
    assert!(acknowledged > 100 * kills as u64, "the clients were let work: {acknowledged}");
}

#[test]
fn canary_a_lost_write_is_noticed() {
    let mut pool = new_pool();
    pool.json(&["checkpoint", "create", &name(0)]);
    pool.serve(&[]);
    let mut ledgers: Vec<Ledger> = (0..VOLUMES).map(|_| Ledger::new()).collect();
    let (mut client, mut random) = (pool.nbd(&name(0)), random(7));
    while ledgers[0].acknowledged < 100 {
        ledgers[0].turn(&mut client, random()).expect("a turn");
    }
    pool.end(libc::SIGKILL);
    pool.json(&["restore", &name(0), "v1"]);
    pool.serve(&[]);
    assert!(!audit(&pool, &mut ledgers).is_empty(), "the volume went back in time");
}
