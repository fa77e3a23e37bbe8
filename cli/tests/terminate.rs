//! SIGTERM: the daemon ends by itself, whatever its clients do or leave undone, and what it answered
//! on the way out is there afterwards.

mod common;

use common::{noise, wire, Pool};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Ends the daemon and tells how long that took; it must not hang.
fn terminate(pool: &mut Pool) -> Duration {
    let begin = Instant::now();
    pool.signal(libc::SIGTERM);
    let mut daemon = pool.daemon.take().expect("a daemon");
    loop {
        if let Some(status) = daemon.try_wait().expect("a child") {
            assert!(status.success(), "{status}: {}", pool.log());
            return begin.elapsed();
        }
        if begin.elapsed() > Duration::from_secs(30) {
            let _ = daemon.kill();
            panic!("the daemon does not end");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn clients_that_hold_connections_do_not_keep_the_daemon() {
    let mut pool = Pool::serving();
    let idle: Vec<_> = (0..20).map(|_| pool.nbd("disk")).collect();
    let stranger = UnixStream::connect(pool.path("nbd.sock")).expect("a connection");
    let mut half = pool.nbd("disk");
    half.write_all(&wire::request(wire::WRITE, 0, 1, 0, 1 << 20)[..20]).expect("half a request");
    let mut deaf = pool.nbd("disk");
    for i in 0..64 {
        deaf.write_all(&wire::request(wire::READ, 0, i, 0, 1 << 20)).expect("a request");
    }
    let mut control = pool.control();
    control.send(r#"{"op":"import","volume":"new","size_bytes":1048576}"#);
    let time = terminate(&mut pool);
    println!("ended after {time:.1?} with 23 clients, one of which reads nothing");
    drop((idle, stranger, half, deaf, control));
    assert!(!pool.path("nbd.sock").exists() && !pool.pool().join("control.sock").exists(), "sockets are gone");
    assert_eq!(pool.volumes(), ["disk"], "the import that was cut off is gone");
}

#[test]
fn what_is_answered_on_the_way_out_is_there_afterwards() {
    for round in 0..5u64 {
        let mut pool = Pool::serving();
        let mut client = pool.nbd("disk");
        let mut sender = client.try_clone().expect("a second handle");
        let writer = thread::spawn(move || {
            for i in 0..4000u64 {
                let fua = if i % 50 == 0 { 1 } else { 0 };
                let mut bytes = wire::request(wire::WRITE, fua, i, i * 4096, 4096);
                bytes.extend(noise(i + 1, 4096));
                if sender.write_all(&bytes).is_err() {
                    return;
                }
            }
        });
        let mut answered = Vec::new();
        let mut header = [0; 16];
        for i in 0.. {
            if i == 100 * round {
                pool.signal(libc::SIGTERM);
            }
            match client.read(&mut header[..1]) {
                Ok(1) => client.read_exact(&mut header[1..]).expect("a reply is whole"),
                _ => break,
            }
            assert_eq!(wire::be(&header[4..8]), 0);
            answered.push(wire::be(&header[8..]));
        }
        drop(client);
        writer.join().expect("the writer ends");
        assert!(pool.daemon.take().expect("a daemon").wait().expect("a child").success());
        pool.serve(&[]);
        let mut client = pool.nbd("disk");
        for i in &answered {
            assert!(common::read(&mut client, i * 4096, 4096) == noise(i + 1, 4096), "write {i} was answered");
        }
        assert!(answered.len() as u64 >= 100 * round, "{} answers", answered.len());
    }
}

#[test]
fn cve_2024_7409_connections_during_the_end_do_not_crash_it() {
    let mut pool = Pool::serving();
    let (path, over) = (pool.path("nbd.sock"), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut held = Vec::new();
                while !over.load(Ordering::Relaxed) && held.len() < 250 {
                    held.extend(UnixStream::connect(&path));
                }
            });
        }
        thread::sleep(Duration::from_millis(3));
        terminate(&mut pool);
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(pool.volumes(), ["disk"]);
}
