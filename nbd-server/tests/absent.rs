//! Clients of volumes whose blocks are in the object store alone, while the store is slow, fails, or does not answer:
//! who needs it waits, everybody else does not.

mod common;

use blockstore::testing::{SimStore, StoreFault, StoreOp};
use common::far::{self, BLOCK};
use common::wire::{self, DISC, FLUSH, READ, TRIM, WRITE};
use common::Daemon;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// What block `i` of the volume `far` holds.
fn content(i: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block.chunks_exact_mut(8).zip(i + 1..).for_each(|(to, n)| to.copy_from_slice(&(n * 0x9e37_79b9).to_le_bytes()));
    block
}

/// A daemon with the volumes `disk`, which is here, and `far` of 64 MiB, 48 of them written, which is in the store.
/// Its requests to the store are those of the client `taker`.
fn daemon() -> (SimStore, Daemon) {
    let store = SimStore::new(1);
    // Backwards, so that the map has pages.
    let blocks = (0..48 * MIB / 4096).rev().map(|i| (i * 4096, content(i).to_vec()));
    let daemon = far::daemon(Arc::new(store.client("maker")), Arc::new(store.client("taker")), 64 * MIB, blocks);
    (store, daemon)
}

fn open(daemon: &Daemon, export: &str) -> UnixStream {
    far::open(daemon, export)
}

fn ask(stream: &mut UnixStream, kind: u16, cookie: u64, offset: u64, length: usize, data: &[u8]) {
    let mut bytes = wire::request(kind, 0, cookie, offset, length as u32);
    bytes.extend(data);
    stream.write_all(&bytes).unwrap();
}

/// The next reply: its cookie, error and, for a read, its data.
fn reply(stream: &mut UnixStream, lengths: impl Fn(u64) -> usize) -> (u64, u32, Vec<u8>) {
    let header = wire::take(stream, 16).unwrap();
    let (error, cookie) = (wire::be(&header[4..8]) as u32, wire::be(&header[8..]));
    let length = if error == 0 { lengths(cookie) } else { 0 };
    (cookie, error, wire::take(stream, length).unwrap())
}

fn done(stream: &mut UnixStream, cookie: u64) {
    assert_eq!(wire::simple(stream, cookie).unwrap(), 0);
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < Duration::from_secs(30), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Nothing is there to be read.
fn is_silent(stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut byte = [0];
    let silent = matches!((&mut &*stream).read(&mut byte), Err(e) if e.kind() == ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    silent
}

#[test]
fn a_client_that_waits_for_the_store_delays_nobody_else() {
    let (store, mut daemon) = daemon();
    let (mut near, mut far, mut other) = (open(&daemon, "disk"), open(&daemon, "far"), open(&daemon, "far"));
    store.pause("taker", None);
    ask(&mut far, READ, 1, 8 * MIB, BLOCK, &[]);
    wait_until("the store is asked", || store.waiting("taker") > 0);
    // The same blocks for another client: nothing is asked for twice.
    ask(&mut other, READ, 2, 8 * MIB, BLOCK, &[]);
    for cookie in 10..30 {
        ask(&mut near, WRITE, cookie, cookie * 4096, BLOCK, &content(cookie));
        done(&mut near, cookie);
        ask(&mut near, FLUSH, cookie, 0, 0, &[]);
        done(&mut near, cookie);
        ask(&mut near, READ, cookie, cookie * 4096, BLOCK, &[]);
        assert!(reply(&mut near, |_| BLOCK).2 == content(cookie));
    }
    assert!(daemon.control(r#"{"op":"volume.list"}"#).contains("far"));
    assert!(is_silent(&far) && is_silent(&other));
    assert_eq!(store.waiting("taker"), 1, "one request for two clients");
    store.resume("taker");
    for stream in [&mut far, &mut other] {
        assert!(reply(stream, |_| BLOCK).2 == content(8 * MIB / 4096));
    }
    daemon.stop().unwrap();
}

#[test]
fn reads_of_one_client_overtake_each_other_and_changes_keep_their_order() {
    let (store, mut daemon) = daemon();
    let mut far = open(&daemon, "far");
    let length = |cookie| if cookie < 100 { BLOCK } else { 0 };
    // What is behind the data is a hole, known once the map is there.
    ask(&mut far, READ, 1, 0, BLOCK, &[]);
    assert_eq!(reply(&mut far, length).0, 1);
    ask(&mut far, READ, 2, 60 * MIB, BLOCK, &[]);
    assert_eq!(reply(&mut far, length).2, [0; BLOCK]);
    store.pause("taker", None);
    ask(&mut far, READ, 3, 30 * MIB, BLOCK, &[]);
    wait_until("the store is asked", || store.waiting("taker") > 0);
    // Behind the parked read: one from memory, a write to a hole, a flush.
    ask(&mut far, READ, 4, 0, BLOCK, &[]);
    assert!(reply(&mut far, length).2 == content(0));
    ask(&mut far, WRITE, 100, 60 * MIB, BLOCK, &[7; BLOCK]);
    done(&mut far, 100);
    ask(&mut far, FLUSH, 101, 0, 0, &[]);
    done(&mut far, 101);
    // Half a block of what is absent, twice: the second comes after the first, and so does the flush.
    ask(&mut far, WRITE, 102, 20 * MIB + 512, 512, &[8; 512]);
    ask(&mut far, WRITE, 103, 20 * MIB + 512, 256, &[9; 256]);
    ask(&mut far, FLUSH, 104, 0, 0, &[]);
    ask(&mut far, TRIM, 105, 60 * MIB, BLOCK, &[]);
    std::thread::sleep(Duration::from_millis(50));
    assert!(is_silent(&far));
    store.resume("taker");
    let mut order: Vec<u64> = (0..5).map(|_| reply(&mut far, length).0).collect();
    order.retain(|cookie| *cookie != 3);
    let at = |cookie| order.iter().position(|c| *c == cookie).unwrap();
    assert!(at(102) < at(103) && at(103) < at(104), "{order:?}");
    ask(&mut far, READ, 5, 20 * MIB, BLOCK, &[]);
    let mut expected = content(20 * MIB / 4096);
    expected[512..1024].fill(8);
    expected[512..768].fill(9);
    assert!(reply(&mut far, length).2 == expected);
    daemon.stop().unwrap();
}

#[test]
fn what_is_behind_a_change_that_waits_is_fetched_meanwhile() {
    let (store, mut daemon) = daemon();
    let mut far = open(&daemon, "far");
    let length = |cookie| if cookie < 100 { BLOCK } else { 0 };
    // The map and the objects' directories.
    for cookie in 0..48 {
        ask(&mut far, READ, cookie, cookie * MIB, BLOCK, &[]);
        assert!(reply(&mut far, length).2 == content(cookie * MIB / 4096));
    }
    store.pause("taker", None);
    let mut both = wire::request(WRITE, 0, 100, 20 * MIB + (512 << 10) + 512, 512);
    both.extend([1; 512]);
    both.extend(wire::request(READ, 0, 1, 40 * MIB + (512 << 10), 4096));
    far.write_all(&both).unwrap();
    wait_until("both are asked for", || store.waiting("taker") >= 2);
    assert!(is_silent(&far));
    store.resume("taker");
    assert_eq!(reply(&mut far, length).0, 100);
    assert!(reply(&mut far, length).2 == content(40 * MIB / 4096 + 128));
    daemon.stop().unwrap();
}

#[test]
fn many_scattered_and_large_reads_come_back_right() {
    let (store, mut daemon) = daemon();
    let mut far = open(&daemon, "far");
    let whole: Vec<u8> =
        (0..64 * MIB / 4096).flat_map(|i| if i < 48 * MIB / 4096 { content(i) } else { [0; BLOCK] }).collect();
    let mut asked = std::collections::BTreeMap::new();
    let lengths = [512, 4096, 70_000, 300 << 10, 1 << 20, 3 << 20];
    for cookie in 0..400u64 {
        let length = lengths[cookie as usize % lengths.len()];
        let offset = cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (64 * MIB - length as u64) / 512 * 512;
        asked.insert(cookie, (offset as usize, length));
    }
    let mut sender = far.try_clone().unwrap();
    let requests = asked.clone();
    let thread = std::thread::spawn(move || {
        for (cookie, (offset, length)) in requests {
            ask(&mut sender, READ, cookie, offset as u64, length, &[]);
            // Flushes between them, whose replies must not come in the middle of another's.
            if cookie % 7 == 0 {
                ask(&mut sender, FLUSH, 1000 + cookie, 0, 0, &[]);
            }
        }
        ask(&mut sender, DISC, 0, 0, 0, &[]);
    });
    let flushes = (0..400).filter(|cookie| cookie % 7 == 0).count();
    for _ in 0..400 + flushes {
        let (cookie, error, data) = reply(&mut far, |cookie| asked.get(&cookie).map_or(0, |(_, length)| *length));
        assert_eq!(error, 0);
        if cookie < 1000 {
            let (offset, length) = asked.remove(&cookie).expect("answered once");
            assert!(data == whole[offset..offset + length], "wrong data at {offset}");
        }
    }
    thread.join().unwrap();
    assert!(asked.is_empty());
    assert!(store.counts().gets > 0);
    // It said goodbye, and everything was answered.
    assert_eq!(far.read(&mut [0]).unwrap(), 0);
    daemon.stop().unwrap();
}

#[test]
fn what_does_not_come_is_an_error_for_who_asked() {
    let (store, mut daemon) = daemon();
    let mut far = open(&daemon, "far");
    // The store does not answer for a moment: nobody notices.
    store.fail_nth(StoreOp::Get, 1, StoreFault::Unavailable);
    ask(&mut far, READ, 1, 0, BLOCK, &[]);
    assert!(reply(&mut far, |_| BLOCK).2 == content(0));
    // What it answers is damaged.
    store.fail_one_in(StoreOp::Get, 1, StoreFault::Corrupt);
    ask(&mut far, READ, 2, 40 * MIB, BLOCK, &[]);
    assert_eq!(reply(&mut far, |_| BLOCK).1, 5);
    ask(&mut far, WRITE, 3, 40 * MIB + 512, 512, &[1; 512]);
    assert_eq!(reply(&mut far, |_| 0).1, 5);
    let large = vec![1; 2 << 20];
    ask(&mut far, WRITE, 4, 30 * MIB + 512, large.len(), &large);
    assert_eq!(reply(&mut far, |_| 0).1, 5);
    store.calm();
    ask(&mut far, READ, 5, 40 * MIB, BLOCK, &[]);
    assert!(reply(&mut far, |_| BLOCK).2 == content(40 * MIB / 4096));
    daemon.stop().unwrap();
}

#[test]
fn who_leaves_while_it_waits_leaves_nothing_behind() {
    let (store, mut daemon) = daemon();
    store.pause("taker", None);
    for turn in 0..5u64 {
        let mut far = open(&daemon, "far");
        for cookie in 0..200 {
            let request = wire::request(READ, 0, cookie, (cookie * 200 + turn) * 4096 % (48 * MIB), 4096);
            // It is not read any more once too much waits.
            far.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
            if far.write_all(&request).is_err() {
                break;
            }
        }
        ask(&mut far, WRITE, 300, 4096 * turn + 512, 512, &[1; 512]);
    }
    let mut near = open(&daemon, "disk");
    ask(&mut near, READ, 1, 0, BLOCK, &[]);
    done(&mut near, 1);
    wire::take(&mut near, BLOCK).unwrap();
    store.resume("taker");
    let mut far = open(&daemon, "far");
    ask(&mut far, READ, 2, 47 * MIB, BLOCK, &[]);
    assert!(reply(&mut far, |_| BLOCK).2 == content(47 * MIB / 4096));
    daemon.stop().unwrap();
}

#[test]
fn commands_wait_for_the_map_and_delay_nobody() {
    let (store, mut daemon) = daemon();
    store.pause("taker", None);
    let path = daemon.folder.path().join("pool/control.sock");
    let mut asking = UnixStream::connect(path).unwrap();
    asking.write_all(b"{\"op\":\"volume.info\",\"volume\":\"far\"}\n").unwrap();
    wait_until("the store is asked", || store.waiting("taker") > 0);
    assert!(daemon.control(r#"{"op":"volume.info","volume":"disk"}"#).contains("\"mapped_bytes\":0"));
    assert!(is_silent(&asking));
    store.resume("taker");
    let mut answer = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(asking), &mut answer).unwrap();
    assert!(answer.contains(&format!("\"mapped_bytes\":{}", 48 * MIB)), "{answer}");
    daemon.stop().unwrap();
}

#[test]
fn the_daemon_ends_although_the_store_does_not_answer() {
    let (store, mut daemon) = daemon();
    let mut far = open(&daemon, "far");
    store.pause("taker", None);
    ask(&mut far, READ, 1, 0, BLOCK, &[]);
    ask(&mut far, WRITE, 2, 8 * MIB + 1, 100, &[1; 100]);
    wait_until("the store is asked", || store.waiting("taker") > 0);
    daemon.stop().unwrap();
    assert_eq!(far.read(&mut [0]).unwrap(), 0, "nothing was answered");
    store.resume("taker");
}

/// Chunks of a read's answer may come between those of others'.
#[test]
fn structured_reads_come_back_right_in_pieces() {
    let (_store, mut daemon) = daemon();
    let mut far = daemon.connect();
    wire::greet(&mut far).unwrap();
    assert_eq!(wire::ask(&mut far, 8, &[]).unwrap().last().map(|r| r.0), Some(1), "structured replies");
    let replies = wire::ask(&mut far, 7, &wire::named("far", &[0, 0])).unwrap();
    assert_eq!(replies.last().map(|r| r.0), Some(1), "GO is acknowledged");
    let lengths = [4096, 100 << 10, 256 << 10, 1 << 20, 6 << 20];
    let mut asked = std::collections::BTreeMap::new();
    for cookie in 0..60u64 {
        let length = lengths[cookie as usize % lengths.len()];
        let offset = cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (64 * MIB - length as u64) / 4096 * 4096;
        asked.insert(cookie, (offset, vec![None; length / BLOCK]));
    }
    let mut sender = far.try_clone().unwrap();
    let requests: Vec<(u64, u64, usize)> = asked.iter().map(|(c, (at, blocks))| (*c, *at, blocks.len())).collect();
    let thread = std::thread::spawn(move || {
        requests.into_iter().for_each(|(cookie, at, blocks)| ask(&mut sender, READ, cookie, at, blocks * BLOCK, &[]));
    });
    let mut whole = 0;
    while whole < 60 {
        let header = wire::take(&mut far, 20).unwrap();
        assert_eq!(wire::be(&header[..4]) as u32, wire::CHUNK_REPLY);
        let (flags, kind, cookie) = (wire::be(&header[4..6]), wire::be(&header[6..8]), wire::be(&header[8..16]));
        let body = wire::take(&mut far, wire::be(&header[16..]) as usize).unwrap();
        let (first, blocks) = asked.get_mut(&cookie).expect("asked, and not answered before");
        let at = wire::be(&body[..8]);
        let data = match kind {
            1 => body[8..].to_vec(),
            2 => vec![0; wire::be(&body[8..]) as usize],
            other => panic!("a chunk of type {other}"),
        };
        for (block, i) in data.chunks(BLOCK).zip((at - *first) / 4096..) {
            assert!(blocks[i as usize].replace(block.to_vec()).is_none(), "a block comes once");
        }
        if flags & 1 != 0 {
            let (first, blocks) = asked.remove(&cookie).unwrap();
            for (block, i) in blocks.into_iter().zip(first / 4096..) {
                let expected = if i < 48 * MIB / 4096 { content(i) } else { [0; BLOCK] };
                assert!(block.unwrap() == expected, "wrong data in block {i}");
            }
            whole += 1;
        }
    }
    thread.join().unwrap();
    daemon.stop().unwrap();
}
