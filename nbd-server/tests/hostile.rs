//! An honest client beside hostile ones: every request of it is answered, and correctly; the daemon
//! stays small. How fast it is answered is measured by `benches/hostile_p99.rs`.

mod common;

use common::attack::{self, during, ATTACKS};
use common::honest::Honest;
use common::{wire, Daemon};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The tests look at the memory of the one process they share.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resident bytes of this process, which holds the daemon and the attackers.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
}

#[test]
fn an_honest_client_is_served_correctly_through_every_attack() {
    let _alone = alone();
    let daemon = Daemon::start();
    let mut honest = Honest::new(daemon.connect());
    for (name, attack) in ATTACKS {
        eprintln!("{name}");
        during(attack, 2, &daemon.socket(), || (0..500).for_each(|_| honest.turn()));
    }
    honest.audit();
    // Whoever comes after the storm is let in, and reads the same.
    honest.moved_to(daemon.connect()).audit();
}

/// Bulk writers are held back while others flush: they still get every reply, and all that they wrote is there.
#[test]
fn much_is_written_correctly_beside_a_client_that_flushes() {
    const BYTES: usize = 24 << 20;
    const NO_HOLE: u16 = 2;
    let _alone = alone();
    let daemon = Daemon::start();
    let stop = AtomicBool::new(false);
    let mut honest = Honest::new(daemon.connect());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                (0..20).for_each(|_| honest.turn());
            }
        });
        let writers: Vec<_> = (1..3u64)
            .map(|i| {
                let mut client = daemon.connect();
                scope.spawn(move || {
                    wire::go(&mut client).expect("let in");
                    let offset = i * (64 << 20) + 512;
                    let mut data: Vec<u8> = (0..BYTES).map(|at| (at >> 9) as u8 ^ at as u8 | 1).collect();
                    client.write_all(&wire::request(wire::WRITE, 0, 1, offset, BYTES as u32)).expect("heard");
                    client.write_all(&data).expect("heard");
                    assert_eq!(wire::simple(&mut client, 1).expect("answered"), 0);
                    let (at, len) = (5 << 20, 9 << 20);
                    client.write_all(&wire::request(wire::ZEROES, NO_HOLE, 2, offset + at, len)).expect("heard");
                    assert_eq!(wire::simple(&mut client, 2).expect("answered"), 0);
                    data[at as usize..(at + u64::from(len)) as usize].fill(0);
                    client.write_all(&wire::request(wire::READ, 0, 3, offset, BYTES as u32)).expect("heard");
                    assert_eq!(wire::simple(&mut client, 3).expect("answered"), 0);
                    assert!(wire::take(&mut client, BYTES).expect("the data") == data, "writer {i}");
                })
            })
            .collect();
        let outcomes: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::Relaxed);
        outcomes.into_iter().for_each(|outcome| outcome.expect("a writer is content"));
    });
    honest.audit();
}

#[test]
fn a_newcomer_is_let_in_beside_a_thousand_connections() {
    let _alone = alone();
    let daemon = Daemon::start();
    let mut honest = Honest::new(daemon.connect());
    during(attack::crowd, 1, &daemon.socket(), || {
        for _ in 0..20 {
            honest = honest.moved_to(daemon.connect());
            (0..20).for_each(|_| honest.turn());
        }
    });
}

#[test]
fn a_client_that_never_reads_costs_a_bounded_amount_of_memory() {
    let _alone = alone();
    const CLIENTS: u64 = 64;
    let daemon = Daemon::start();
    let mut honest = Honest::new(daemon.connect());
    (0..200).for_each(|_| honest.turn());
    let before = resident();
    during(attack::deaf, 1, &daemon.socket(), || {
        (0..2000).for_each(|_| honest.turn());
        let each = resident().saturating_sub(before) / CLIENTS;
        // 512 reads of 32 MiB were asked for by each.
        assert!(each < 4 << 20, "{each} bytes for each deaf client");
    });
}

#[test]
fn announcing_a_large_write_costs_no_memory() {
    let _alone = alone();
    let daemon = Daemon::start();
    let before = resident();
    let mut clients: Vec<UnixStream> = (0..200).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        wire::go(client).expect("let in");
        client.write_all(&wire::request(wire::WRITE, 0, 1, 0, 32 << 20)).expect("heard");
        client.write_all(&[1; 100]).expect("heard");
    }
    Honest::new(daemon.connect()).turn();
    let each = resident().saturating_sub(before) / 200;
    assert!(each < 1 << 20, "{each} bytes for each announcement");
}

#[test]
fn cve_2017_15119_a_stranger_costs_little_memory() {
    let _alone = alone();
    let daemon = Daemon::start();
    let before = resident();
    let mut clients: Vec<UnixStream> = (0..500).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        wire::greet(client).expect("a greeting");
        client.write_all(&wire::option(7, &[0; 8192])[..8000]).expect("heard");
    }
    Honest::new(daemon.connect()).turn();
    let each = resident().saturating_sub(before) / 500;
    assert!(each < 64 << 10, "{each} bytes for each stranger");
}

#[test]
fn a_list_asked_for_without_end_waits_for_its_reader() {
    let _alone = alone();
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    wire::greet(&mut client).expect("a greeting");
    let many: Vec<u8> = (0..256).flat_map(|_| wire::option(3, &[])).collect();
    client.write_all(&many).expect("heard");
    for _ in 0..256 {
        let replies = wire::option_replies(&mut client).expect("each is answered");
        assert_eq!(replies.len(), 2);
    }
    client.write_all(&wire::option(3, &[])).expect("heard");
    assert_eq!(client.read(&mut [0; 16]).unwrap_or(0), 0, "one option too many");
}

#[test]
fn cve_2024_7409_a_thousand_connects_during_shutdown() {
    let _alone = alone();
    let mut daemon = Daemon::start();
    let socket = daemon.socket();
    let mut honest = Honest::new(daemon.connect());
    (0..50).for_each(|_| honest.turn());
    let stopper = daemon.stopper();
    std::thread::scope(|scope| {
        let connects = scope.spawn(|| {
            let mut held = Vec::new();
            for i in 0..1000 {
                if i == 300 {
                    stopper.stop();
                }
                if let Ok(mut client) = UnixStream::connect(&socket) {
                    let _ = client.write_all(&3u32.to_be_bytes());
                    held.push(client);
                }
            }
            held
        });
        let held = connects.join().expect("connecting never fails badly");
        daemon.stop().expect("a clean end");
        drop(held);
    });
    assert!(!socket.exists(), "the socket is gone");
}
