//! 4 KiB random requests, 32 at a time, of a guest over vhost-user and of an NBD client of the same daemon:
//! `cargo bench -p nbd-server --bench vhost_user`. The clients are the main thread of this process, and share the machine's
//! cores with the daemon; none does anything with the data. A word behind `--` is the time of a slot in milliseconds.
//!
//! Of NBD there are two: one sends each request by a call and reads each reply by one for its header and one for its data, as
//! libnbd and QEMU do; the other sends and takes as many at once as there are, which is the best that can be done.
//!
//! Machines drift: the ways take turns for some rounds, and each figure is the median of the rounds, the ratio that of
//! the rounds' own ratios.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{wire, Daemon, DISK_BYTES};
use nbd_server::testing::{Front, Setup};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const ROUNDS: usize = 9;
const DEPTH: usize = 32;
const BLOCK: usize = 4096;
const BLOCKS: u64 = DISK_BYTES / BLOCK as u64;
/// How often the clock is read.
const LOOK: u64 = 256;

struct Random(u64);

impl Random {
    fn block(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % BLOCKS
    }
}

/// Requests per second of a guest.
fn guest(front: &mut Front, write: bool, slot: Duration, data: &[u8]) -> f64 {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (begin, mut done, mut busy) = (Instant::now(), 0u64, 0);
    let mut over = false;
    while !over || busy > 0 {
        while !over && busy < DEPTH {
            let sector = random.block() * (BLOCK / 512) as u64;
            let sent = match write {
                true => front.submit(0, 1, sector, data, 0),
                false => front.submit(0, 0, sector, &[], BLOCK as u32),
            };
            sent.expect("sent").expect("a slot");
            busy += 1;
        }
        front.ring(0).expect("rung");
        let mut answer = Some(front.wait(0).expect("an answer"));
        while let Some(found) = answer {
            assert_eq!(found.status, 0);
            (done, busy) = (done + 1, busy - 1);
            if done.is_multiple_of(LOOK) {
                over = begin.elapsed() > slot;
            }
            answer = front.poll(0).expect("a ring");
        }
    }
    done as f64 / begin.elapsed().as_secs_f64()
}

/// The same of an NBD client, which takes all replies that have come with one call and sends as many requests with one.
fn client(stream: &mut UnixStream, write: bool, slot: Duration, data: &[u8]) -> f64 {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (kind, reply) = if write { (wire::WRITE, 16) } else { (wire::READ, 16 + BLOCK) };
    let (mut out, mut input, mut have) = (Vec::new(), vec![0; 2 * DEPTH * (16 + BLOCK)], 0);
    let (begin, mut done, mut busy) = (Instant::now(), 0u64, 0);
    let mut over = false;
    while !over || busy > 0 {
        out.clear();
        while !over && busy < DEPTH {
            let at = random.block() * BLOCK as u64;
            out.extend(wire::request(kind, 0, done + busy as u64, at, BLOCK as u32));
            out.extend(if write { data } else { &[] });
            busy += 1;
        }
        stream.write_all(&out).expect("heard");
        have += stream.read(&mut input[have..]).expect("answered");
        let replies = have / reply;
        for answer in input[..replies * reply].chunks_exact(reply) {
            assert_eq!(answer[4..8], [0; 4]);
            (done, busy) = (done + 1, busy - 1);
            if done.is_multiple_of(LOOK) {
                over = begin.elapsed() > slot;
            }
        }
        input.copy_within(replies * reply..have, 0);
        have -= replies * reply;
    }
    done as f64 / begin.elapsed().as_secs_f64()
}

/// The same of one that makes calls for each request and each reply.
fn plain(stream: &mut UnixStream, write: bool, slot: Duration, data: &[u8]) -> f64 {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let kind = if write { wire::WRITE } else { wire::READ };
    let (mut header, mut page) = ([0; 16], vec![0; BLOCK]);
    let (begin, mut done, mut busy) = (Instant::now(), 0u64, 0);
    let mut over = false;
    while !over || busy > 0 {
        while !over && busy < DEPTH {
            let at = random.block() * BLOCK as u64;
            let mut out = wire::request(kind, 0, done + busy as u64, at, BLOCK as u32);
            out.extend(if write { data } else { &[] });
            stream.write_all(&out).expect("heard");
            busy += 1;
        }
        stream.read_exact(&mut header).expect("answered");
        assert_eq!(header[4..8], [0; 4]);
        if !write {
            stream.read_exact(&mut page).expect("the data follows");
        }
        (done, busy) = (done + 1, busy - 1);
        if done.is_multiple_of(LOOK) {
            over = begin.elapsed() > slot;
        }
    }
    done as f64 / begin.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let daemon = Daemon::start();
    let slot = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1000);
    let slot = Duration::from_millis(slot);
    let answer = daemon.control(r#"{"op":"vhost.listen","volume":"disk"}"#);
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let setup = Setup { entries: 128, data: 1 << 20, ..Setup::default() };
    let mut front = Front::connect(answer["socket"].as_str().expect("a path").as_ref(), setup).expect("a guest");
    let mut stream = daemon.connect();
    wire::go(&mut stream).expect("let in");
    let data: Vec<u8> = (0..BLOCK as u32).map(|i| (i * 31 % 251) as u8 | 1).collect();
    let all = data.repeat(256);
    for at in (0..DISK_BYTES).step_by(1 << 20) {
        assert_eq!(front.call(0, 1, at / 512, &all, 0).expect("an answer").0, 0);
    }
    println!("| 4 KiB random, q{DEPTH}, 1/s | vhost-user | NBD | ratio | NBD, many at a call | ratio |\n|---|---|---|---|---|---|");
    for (what, write) in [("read", false), ("write", true)] {
        let mut rounds = Vec::new();
        for round in 0..=ROUNDS {
            let of_guest = guest(&mut front, write, slot, &data);
            let found = [of_guest, plain(&mut stream, write, slot, &data), client(&mut stream, write, slot, &data)];
            // The first one warms all up.
            if round > 0 {
                rounds.push(found);
            }
        }
        let rate = |way: usize| median(rounds.iter().map(|found| found[way]).collect());
        let ratio = |way: usize| median(rounds.iter().map(|found| found[0] / found[way]).collect());
        let (guest, plain, many) = (rate(0), rate(1), rate(2));
        println!("| {what} | {guest:.0} | {plain:.0} | {:.2} | {many:.0} | {:.2} |", ratio(1), ratio(2));
    }
}
