//! A pool that may use little of the disk: while its object store fails writers wait, and nobody else does; then they
//! go on, and what was given up here is read from the store, also after a kill.

mod common;

use common::{flush, noise, read, text, until, wire, write, Pool};
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Three quarters of 256 MiB are for segments.
const SEGMENTS: u64 = 192 * MIB;
const WRITTEN: u64 = 320;

fn metric(pool: &Pool, name: &str) -> u64 {
    let page = pool.json(&["stats", "--metrics"]);
    let page = page.as_str().expect("a page").to_owned();
    let line = page.lines().find(|line| line.split(' ').next() == Some(name));
    let value = line.and_then(|line| line.split(' ').nth(1)).unwrap_or_else(|| panic!("{name} in {page}"));
    value.parse().expect("a number")
}

fn start(pool: &mut Pool, store: &Path) {
    let url = format!("file://{}", store.display());
    pool.serve(&["--object-store", &url, "--cache-size", "256M", "--spares", "0", "--lag", "0.2"]);
}

fn write_patiently(mut client: UnixStream) {
    client.set_read_timeout(Some(Duration::from_secs(120))).expect("a time limit");
    (0..WRITTEN).for_each(|i| write(&mut client, i * MIB, &noise(i + 1, MIB as usize)));
    flush(&mut client);
}

/// A write that was read whole is carried out and answered although there is no room for it.
#[test]
fn a_daemon_that_ends_answers_whom_it_holds() {
    let mut pool = Pool::new();
    let (store, away) = (pool.path("store"), pool.path("away"));
    fs::create_dir(&store).expect("a folder");
    start(&mut pool, &store);
    pool.json(&["volume", "create", "disk", "--size", "1G"]);
    pool.json(&["volume", "sync", "disk"]);
    fs::rename(&store, &away).expect("the store is away");
    let mut client = pool.nbd("disk");
    // So small that it is read whole or not at all.
    let data = noise(1, 8 << 10);
    let mut sent = 0;
    client.set_read_timeout(Some(Duration::from_secs(1))).expect("a time limit");
    'held: loop {
        let mut bytes = wire::request(wire::WRITE, 0, 1, sent * data.len() as u64, data.len() as u32);
        bytes.extend(&data);
        client.write_all(&bytes).expect("the daemon listens");
        // A machine that is busy answers late, too.
        while wire::simple(&mut client, 1).is_err() {
            if metric(&pool, "cairn_held_writers") == 1 {
                break 'held;
            }
        }
        sent += 1;
        assert!(sent < 4 * WRITTEN * MIB / data.len() as u64, "it is held");
    }
    pool.signal(libc::SIGTERM);
    client.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
    assert_eq!(wire::simple(&mut client, 1).expect("a reply"), 0, "{}", pool.log());
    assert!(pool.daemon.take().expect("a daemon").wait().expect("a child").success());
    fs::rename(&away, &store).expect("the store is back");
    start(&mut pool, &store);
    assert!(read(&mut pool.nbd("disk"), sent * data.len() as u64, data.len()) == data);
}

#[test]
fn writers_wait_for_the_store_and_what_is_given_up_is_read_there() {
    let mut pool = Pool::new();
    let (store, away) = (pool.path("store"), pool.path("away"));
    fs::create_dir(&store).expect("a folder");
    start(&mut pool, &store);
    pool.json(&["volume", "create", "disk", "--size", "1G"]);
    pool.json(&["volume", "sync", "disk"]);
    let mut other = pool.nbd("disk");
    fs::rename(&store, &away).expect("the store is away");
    let writer = pool.nbd("disk");
    let writer = thread::spawn(|| write_patiently(writer));
    until(&pool, "writers are held", || metric(&pool, "cairn_held_writers") == 1);
    // First they are slowed, then they get nothing.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(metric(&pool, "cairn_held_writers"), 1, "the store is still away");
    let local = metric(&pool, "cairn_local_bytes");
    assert!((SEGMENTS / 8 * 7..SEGMENTS + 4 * MIB).contains(&local), "{local}");
    assert!(pool.log().contains("writers wait"), "{}", pool.log());
    // Others read, trim and flush.
    assert!(read(&mut other, 0, MIB as usize) == noise(1, MIB as usize));
    other.write_all(&wire::request(wire::TRIM, 0, 3, 900 * MIB, MIB as u32)).expect("the daemon listens");
    assert_eq!(wire::simple(&mut other, 3).expect("a reply"), 0);
    flush(&mut other);
    // A second writer waits, and may leave.
    let mut second = pool.nbd("disk");
    let mut bytes = wire::request(wire::WRITE, 0, 1, 900 * MIB, 4096);
    bytes.extend([1; 4096]);
    second.write_all(&bytes).expect("the daemon listens");
    until(&pool, "the second is held", || metric(&pool, "cairn_held_writers") == 2);
    drop(second);
    until(&pool, "it has left", || metric(&pool, "cairn_held_writers") == 1);
    fs::rename(&away, &store).expect("the store is back");
    writer.join().expect("all is written");
    pool.json(&["volume", "sync", "disk"]);
    until(&pool, "segments are given up", || metric(&pool, "cairn_local_bytes") < SEGMENTS / 8 * 7);
    assert!(metric(&pool, "cairn_evicted_bytes") > 100 * MIB);
    let check = |pool: &Pool| {
        let mut client = pool.nbd("disk");
        for i in 0..WRITTEN {
            assert!(read(&mut client, i * MIB, MIB as usize) == noise(i + 1, MIB as usize), "MiB {i}");
        }
    };
    check(&pool);
    assert!(metric(&pool, "cairn_cache_bytes") > 0);
    let size = fs::metadata(pool.pool().join("cache")).expect("the cache").len();
    assert!(size <= 64 * MIB, "{size}");
    pool.end(libc::SIGKILL);
    let held: u64 = fs::read_dir(pool.pool())
        .expect("the pool")
        .map(|e| e.expect("an entry").metadata().expect("a file").len())
        .sum();
    assert!(held < 340 * MIB, "{held} bytes are here, text {}", text(&pool.pool()));
    start(&mut pool, &store);
    check(&pool);
}
