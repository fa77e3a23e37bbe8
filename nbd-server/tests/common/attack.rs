//! Clients that mean harm, or are merely broken. Each runs until `stop` is set.

use super::wire::{self, FLUSH, READ, STATUS, TRIM, WRITE, ZEROES};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// Where the attackers' part of the disk begins.
const THEIRS: u64 = 64 << 20;

pub type Attack = fn(&Path, &AtomicBool);

/// All attacks, by name.
pub const ATTACKS: [(&str, Attack); 12] = [
    ("rubbish", rubbish),
    ("half a request", half_a_request),
    ("4 GiB option", giant_option),
    ("slow handshakes", slow_handshakes),
    ("slow requests", slow_requests),
    ("1,000 connections", crowd),
    ("deaf readers", deaf),
    ("greedy readers", greedy),
    ("floods of small requests", floods),
    ("vanishing writers", vanishing),
    ("storers of zeros", zeros),
    ("storers of data", data),
];

fn connect(socket: &Path) -> Option<UnixStream> {
    let stream = UnixStream::connect(socket).ok()?;
    for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
        set(&stream, Some(Duration::from_millis(500))).ok()?;
    }
    Some(stream)
}

fn inside(socket: &Path) -> Option<UnixStream> {
    let mut stream = connect(socket)?;
    wire::go(&mut stream).ok()?;
    Some(stream)
}

fn go_on(stop: &AtomicBool) -> bool {
    !stop.load(Ordering::Relaxed)
}

pub fn rubbish(socket: &Path, stop: &AtomicBool) {
    let mut seed = 7u64;
    while go_on(stop) {
        let Some(mut stream) = connect(socket) else { continue };
        let noise: Vec<u8> = (0..4096)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) as u8
            })
            .collect();
        let _ = stream.write_all(&noise);
        let _ = stream.read(&mut [0; 64]);
        let Some(mut stream) = inside(socket) else { continue };
        let _ = stream.write_all(&noise);
        let _ = stream.read(&mut [0; 64]);
        sleep(Duration::from_millis(2));
    }
}

pub fn half_a_request(socket: &Path, stop: &AtomicBool) {
    let mut held = Vec::new();
    while go_on(stop) {
        let Some(mut stream) = inside(socket) else { continue };
        let _ = stream.write_all(&wire::request(WRITE, 0, 1, THEIRS, 1 << 20)[..14]);
        held.push(stream);
        held.truncate(50);
        sleep(Duration::from_millis(5));
    }
}

pub fn giant_option(socket: &Path, stop: &AtomicBool) {
    while go_on(stop) {
        let Some(mut stream) = connect(socket) else { continue };
        if wire::greet(&mut stream).is_ok() {
            let _ = stream.write_all(&[&b"IHAVEOPT"[..], &[0, 0, 0, 7], &[0xff; 4]].concat());
            while stream.write(&[0; 65536]).is_ok() {}
        }
        sleep(Duration::from_millis(2));
    }
}

fn drip(mut clients: Vec<UnixStream>, bytes: &[u8], stop: &AtomicBool) {
    for byte in bytes.iter().cycle() {
        clients.iter_mut().for_each(|client| drop(client.write(&[*byte])));
        for _ in 0..20 {
            if !go_on(stop) {
                return;
            }
            sleep(Duration::from_millis(50));
        }
    }
}

pub fn slow_handshakes(socket: &Path, stop: &AtomicBool) {
    let clients = (0..100).filter_map(|_| connect(socket)).collect();
    drip(clients, &[&[0, 0, 0, 3], &wire::option(3, &[])[..]].concat(), stop);
}

pub fn slow_requests(socket: &Path, stop: &AtomicBool) {
    let clients = (0..100).filter_map(|_| inside(socket)).collect();
    drip(clients, &wire::request(WRITE, 0, 1, THEIRS, 32 << 20), stop);
}

pub fn crowd(socket: &Path, stop: &AtomicBool) {
    let crowd: Vec<_> = (0..1000).filter_map(|i| if i % 2 == 0 { connect(socket) } else { inside(socket) }).collect();
    while go_on(stop) {
        sleep(Duration::from_millis(20));
    }
    drop(crowd);
}

/// Asks for far more than any socket holds, and reads none of it.
pub fn deaf(socket: &Path, stop: &AtomicBool) {
    let asked: Vec<u8> = (0..512).flat_map(|i| wire::request(READ, 0, i, THEIRS, 32 << 20)).collect();
    let mut clients: Vec<_> = (0..64).filter_map(|_| inside(socket)).collect();
    for client in &mut clients {
        let _ = client.set_nonblocking(true);
        let _ = client.write(&asked);
    }
    while go_on(stop) {
        sleep(Duration::from_millis(20));
    }
}

/// Reads 32 MiB at a time as fast as it can.
pub fn greedy(socket: &Path, stop: &AtomicBool) {
    let Some(mut stream) = inside(socket) else { return };
    let mut sink = vec![0; 1 << 20];
    let asked: Vec<u8> = (0..4).flat_map(|i| wire::request(READ, 0, i, THEIRS, 32 << 20)).collect();
    while go_on(stop) && stream.write_all(&asked).is_ok() {
        let mut left = 4 * (16 + (32 << 20));
        while left > 0 {
            let most = sink.len().min(left);
            match stream.read(&mut sink[..most]) {
                Ok(n) if n > 0 => left -= n,
                _ => return,
            }
        }
    }
}

/// Keeps thousands of small requests under way.
pub fn floods(socket: &Path, stop: &AtomicBool) {
    let Some(mut stream) = inside(socket) else { return };
    let one = |i: u64| match i % 4 {
        0 => wire::request(READ, 0, i, THEIRS + i % 1024 * 4096, 4096),
        1 => wire::request(TRIM, 0, i, THEIRS + i % 1024 * 4096, 1 << 20),
        2 => wire::request(FLUSH, 0, i, 0, 0),
        _ => wire::request(STATUS, 0, i, 0, 256 << 20),
    };
    let asked: Vec<u8> = (0..4096).flat_map(one).collect();
    let Ok(mut reader) = stream.try_clone() else { return };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut sink = vec![0; 1 << 16];
            while matches!(reader.read(&mut sink), Ok(n) if n > 0) {}
        });
        while go_on(stop) && stream.write_all(&asked).is_ok() {}
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
}

/// Leaves in the middle of a write, and with answers under way.
pub fn vanishing(socket: &Path, stop: &AtomicBool) {
    while go_on(stop) {
        let Some(mut stream) = inside(socket) else { continue };
        let _ = stream.write_all(&wire::request(READ, 0, 1, THEIRS, 8 << 20));
        let _ = stream.write_all(&wire::request(FLUSH, 0, 2, 0, 0));
        let _ = stream.write_all(&wire::request(WRITE, 0, 3, THEIRS, 8 << 20));
        let _ = stream.set_nonblocking(true);
        let _ = stream.write(&vec![9; 3 << 20]);
    }
}

/// Runs `work` while `attackers` copies of an attack are under way.
pub fn during<T>(attack: Attack, attackers: usize, socket: &Path, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..attackers {
            scope.spawn(|| attack(socket, &stop));
        }
        // They end also when the work panics.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        sleep(Duration::from_millis(200));
        work()
    })
}

/// Few bytes ask for much writing.
pub fn zeros(socket: &Path, stop: &AtomicBool) {
    const NO_HOLE: u16 = 2;
    while go_on(stop) {
        let Some(mut stream) = inside(socket) else { continue };
        for _ in 0..4 {
            let _ = stream.write_all(&wire::request(ZEROES, NO_HOLE, 1, THEIRS, 128 << 20));
        }
        let _ = stream.read(&mut [0; 64]);
    }
}

/// Writes 32 MiB at a time as fast as it is taken.
pub fn data(socket: &Path, stop: &AtomicBool) {
    const BYTES: u32 = 32 << 20;
    let Some(mut stream) = inside(socket) else { return };
    let mut noise = 1u64;
    let payload: Vec<u8> = (0..1 << 20)
        .map(|_| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (noise >> 33) as u8
        })
        .collect();
    let mut place = 0;
    while go_on(stop) {
        place = (place + 1) % 4;
        if stream.write_all(&wire::request(WRITE, 0, place, THEIRS + place * u64::from(BYTES), BYTES)).is_err() {
            return;
        }
        for _ in 0..BYTES >> 20 {
            if !go_on(stop) || stream.write_all(&payload).is_err() {
                return;
            }
        }
        if stream.read(&mut [0; 64]).is_err() {
            return;
        }
    }
}
