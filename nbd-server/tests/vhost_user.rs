//! A volume over vhost-user: an own VMM and driver against a real daemon.

mod common;

use blockstore::testing::SimStore;
use blockstore::PoolOptions;
use common::{far, wire, Daemon};
use nbd_server::testing::{feature, Front, Setup};
use nbd_server::{open_pool, Server, ServerOptions};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const ID: u32 = 8;
const DISCARD: u32 = 11;
const ZERO: u32 = 13;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn listen(daemon: &Daemon, volume: &str) -> PathBuf {
    let answer = daemon.control(&format!(r#"{{"op":"vhost.listen","volume":"{volume}"}}"#));
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    answer["socket"].as_str().expect("a path").into()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut out = sector.to_le_bytes().to_vec();
    out.extend(sectors.to_le_bytes());
    out.extend(flags.to_le_bytes());
    out
}

#[test]
fn every_kind_of_request_does_what_it_says() {
    let daemon = Daemon::start();
    let socket = listen(&daemon, "disk");
    for features in [feature::USUAL, feature::USUAL & !feature::INDIRECT, feature::USUAL & !feature::EVENT_IDX] {
        let mut guest = Front::connect(&socket, Setup { features, ..Setup::default() }).expect("a guest");
        let data: Vec<u8> = (0..8192u32).map(|i| (i % 251) as u8).collect();
        assert_eq!(guest.call(0, WRITE, 8, &data, 0).expect("an answer").0, OK);
        assert_eq!(guest.call(0, FLUSH, 0, &[], 0).expect("an answer").0, OK);
        assert_eq!(guest.call(0, READ, 8, &[], 8192).expect("an answer"), (OK, data.clone()));
        // Part of a block.
        assert_eq!(guest.call(0, WRITE, 9, &[7; 512], 0).expect("an answer").0, OK);
        let read = guest.call(0, READ, 8, &[], 1536).expect("an answer").1;
        assert!(read[..512] == data[..512] && read[512..1024] == [7; 512] && read[1024..] == data[1024..1536]);
        assert_eq!(guest.call(0, DISCARD, 0, &range(8, 8, 0), 0).expect("an answer").0, OK);
        assert_eq!(guest.call(0, ZERO, 0, &range(16, 4, 1), 0).expect("an answer").0, OK);
        let read = guest.call(0, READ, 8, &[], 8192).expect("an answer").1;
        assert!(read[..6144].iter().all(|byte| *byte == 0) && read[6144..] == data[6144..]);
        let (status, id) = guest.call(0, ID, 0, &[], 20).expect("an answer");
        assert_eq!((status, &id[..5]), (OK, &b"disk\0"[..]));
        assert_eq!(guest.call(0, 99, 0, &[], 0).expect("an answer").0, UNSUPPORTED);
        let beyond = common::DISK_BYTES / 512;
        for (kind, sector, out, space) in [
            (READ, beyond, 0, 512),
            (READ, u64::MAX, 0, 512),
            (READ, beyond - 1, 0, 1024),
            (WRITE, beyond, 512, 0),
            (READ, 0, 0, 100),
            (ID, 0, 0, 19),
            (DISCARD, 0, 15, 0),
        ] {
            let (status, _) = guest.call(0, kind, sector, &vec![1; out], space).expect("an answer");
            assert_eq!(status, IO_ERROR, "{kind} at {sector}");
        }
        assert_eq!(guest.call(0, DISCARD, 0, &range(8, 8, 1), 0).expect("an answer").0, UNSUPPORTED);
        assert_eq!(guest.call(0, DISCARD, 0, &range(beyond, 8, 0), 0).expect("an answer").0, IO_ERROR);
    }
}

/// An NBD client of the same daemon that reads.
fn read_over_nbd(daemon: &Daemon, offset: u64, len: usize) -> Vec<u8> {
    let mut stream = daemon.connect();
    wire::go(&mut stream).expect("let in");
    stream.write_all(&wire::request(wire::READ, 0, 7, offset, len as u32)).expect("heard");
    assert_eq!(wire::simple(&mut stream, 7).expect("answered"), 0);
    wire::take(&mut stream, len).expect("the data follows")
}

#[test]
fn what_a_guest_writes_an_nbd_client_reads() {
    let daemon = Daemon::start();
    let mut guest = Front::connect(&listen(&daemon, "disk"), Setup::default()).expect("a guest");
    let data: Vec<u8> = (0..65536u32).map(|i| (i * 7 % 253) as u8).collect();
    assert_eq!(guest.call(0, WRITE, 128, &data, 0).expect("an answer").0, OK);
    assert!(read_over_nbd(&daemon, 65536, 65536) == data);
}

#[test]
fn several_queues_work_at_once_and_each_request_is_answered_once() {
    let daemon = Daemon::start();
    let setup = Setup { queues: 4, entries: 64, data: 4096, ..Setup::default() };
    let mut guest = Front::connect(&listen(&daemon, "disk"), setup).expect("a guest");
    for round in 0..50u64 {
        for queue in 0..4u16 {
            let mut sent = 0;
            while let Some(slot) = guest
                .submit(queue, WRITE, 8 * (u64::from(queue) * 64 + sent), &page(round, queue, sent), 0)
                .expect("sent")
            {
                assert!(slot < 21);
                sent += 1;
            }
            assert_eq!(sent, 21);
            guest.ring(queue).expect("rung");
        }
        for queue in 0..4 {
            for _ in 0..21 {
                assert_eq!(guest.wait(queue).expect("an answer").status, OK);
            }
            assert_eq!(guest.poll(queue).expect("a ring"), None);
        }
    }
    for queue in 0..4u16 {
        for sent in 0..21 {
            let read = guest.call(queue, READ, 8 * (u64::from(queue) * 64 + sent), &[], 4096).expect("an answer");
            assert!(read == (OK, page(49, queue, sent)));
        }
    }
}

fn page(round: u64, queue: u16, sent: u64) -> Vec<u8> {
    let word = round << 32 | u64::from(queue) << 16 | sent;
    word.to_le_bytes().repeat(512)
}

#[test]
fn a_driver_that_does_not_flush_gets_durable_writes() {
    let daemon = Daemon::start();
    let features = feature::USUAL & !feature::FLUSH;
    let mut guest = Front::connect(&listen(&daemon, "disk"), Setup { features, ..Setup::default() }).expect("a guest");
    assert_eq!(guest.call(0, WRITE, 0, &[5; 4096], 0).expect("an answer").0, OK);
    assert_eq!(guest.call(0, READ, 0, &[], 4096).expect("an answer"), (OK, vec![5; 4096]));
}

#[test]
fn a_guest_is_told_of_a_new_size_and_stays() {
    let daemon = Daemon::start();
    let mut guest = Front::connect(&listen(&daemon, "disk"), Setup::default()).expect("a guest");
    let sectors = |guest: &mut Front| u64::from_le_bytes(guest.config().expect("a config")[..8].try_into().expect("8"));
    assert_eq!(sectors(&mut guest), common::DISK_BYTES / 512);
    let beyond = common::DISK_BYTES / 512;
    assert_eq!(guest.call(0, WRITE, beyond, &[1; 512], 0).expect("an answer").0, IO_ERROR);
    daemon.control(&format!(r#"{{"op":"volume.resize","volume":"disk","size_bytes":{}}}"#, 2 * common::DISK_BYTES));
    guest.await_config_change().expect("told");
    assert_eq!(sectors(&mut guest), 2 * beyond);
    assert_eq!(guest.call(0, WRITE, beyond, &[1; 512], 0).expect("an answer").0, OK);
}

#[test]
fn a_checkpoint_can_be_read_and_not_written() {
    let daemon = Daemon::start();
    daemon.control(r#"{"op":"checkpoint.create","volume":"disk"}"#);
    let mut guest = Front::connect(&listen(&daemon, "disk@v1"), Setup::default()).expect("a guest");
    assert_eq!(guest.offered & feature::RO, feature::RO);
    assert_eq!(guest.call(0, READ, 0, &[], 512).expect("an answer").0, OK);
    assert_eq!(guest.call(0, WRITE, 0, &[1; 512], 0).expect("an answer").0, IO_ERROR);
    assert_eq!(guest.call(0, ZERO, 0, &range(0, 8, 0), 0).expect("an answer").0, IO_ERROR);
}

#[test]
fn a_volume_that_becomes_read_only_can_be_read_and_not_written() {
    let daemon = Daemon::start();
    let socket = listen(&daemon, "disk");
    let mut guest = Front::connect(&socket, Setup::default()).expect("a guest");
    assert_eq!(guest.call(0, WRITE, 0, &[3; 4096], 0).expect("an answer").0, OK);
    let said = try_control(&daemon, r#"{"op":"volume.set","volume":"disk","read_only":true}"#);
    assert!(said.contains("busy") && said.contains("disk (1)"), "{said}");
    assert_eq!(guest.call(0, WRITE, 0, &[4; 4096], 0).expect("an answer").0, OK);
    daemon.control(r#"{"op":"volume.set","volume":"disk","read_only":true,"force":true}"#);
    drop(guest);
    let mut guest = Front::connect(&socket, Setup::default()).expect("a guest");
    assert_eq!(guest.offered & feature::RO, feature::RO);
    assert_eq!(guest.call(0, READ, 0, &[], 4096).expect("an answer"), (OK, vec![4; 4096]));
    assert_eq!(guest.call(0, WRITE, 0, &[5; 4096], 0).expect("an answer").0, IO_ERROR);
    assert_eq!(guest.call(0, ZERO, 0, &range(0, 8, 0), 0).expect("an answer").0, IO_ERROR);
}

#[test]
fn a_queue_stops_when_all_is_answered_and_goes_on() {
    let daemon = Daemon::start();
    let socket = listen(&daemon, "disk");
    let mut guest = Front::connect(&socket, Setup::default()).expect("a guest");
    for sector in 0..21 {
        guest.submit(0, WRITE, 8 * sector, &[9; 4096], 0).expect("sent").expect("a slot");
        guest.submit(0, FLUSH, 0, &[], 0).expect("sent");
    }
    guest.ring(0).expect("rung");
    // Some are taken and some are not; those that were taken are answered now.
    let base = guest.stop_queue(0).expect("a base");
    let mut answered = 0;
    while guest.poll(0).expect("a ring").is_some() {
        answered += 1;
    }
    assert_eq!(base, answered);
    guest.start_again(0).expect("started");
    for _ in answered..42 {
        assert_eq!(guest.wait(0).expect("an answer").status, OK);
    }
}

#[test]
fn one_guest_at_a_time_and_force_takes_the_disk_away() {
    let daemon = Daemon::start();
    let socket = listen(&daemon, "disk");
    daemon.control(r#"{"op":"checkpoint.create","volume":"disk"}"#);
    let mut guest = Front::connect(&socket, Setup::default()).expect("a guest");
    assert!(Front::connect(&socket, Setup::default()).is_err(), "there is one already");
    assert_eq!(guest.call(0, WRITE, 0, &[3; 4096], 0).expect("an answer").0, OK);
    let said = try_control(&daemon, r#"{"op":"restore","volume":"disk","id":"v1"}"#);
    assert!(said.contains("busy") && said.contains("disk (1)"), "{said}");
    daemon.control(r#"{"op":"restore","volume":"disk","id":"v1","force":true}"#);
    assert!(guest.call(0, READ, 0, &[], 512).is_err(), "its connection has ended");
    guest.reconnect(&socket).expect("let in again");
    // What was made available meanwhile is carried out now.
    assert_eq!(guest.wait(0).expect("an answer").status, OK);
    assert_eq!(guest.call(0, READ, 0, &[], 512).expect("an answer"), (OK, vec![0; 512]));
    let said = try_control(&daemon, r#"{"op":"volume.delete","volume":"disk"}"#);
    assert!(said.contains("busy"), "{said}");
    drop(guest);
    let (disk, _) = (Front::connect(&socket, Setup::default()).expect("a guest"), ());
    drop(disk);
    daemon.control(r#"{"op":"volume.delete","volume":"disk","force":true}"#);
    assert!(!socket.exists(), "nothing is served there any more");
}

fn try_control(daemon: &Daemon, line: &str) -> String {
    let mut stream = UnixStream::connect(daemon.folder.path().join("pool/control.sock")).expect("a socket");
    stream.write_all(format!("{line}\n").as_bytes()).expect("heard");
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).expect("an answer");
    answer
}

#[test]
fn hostile_rings_cost_a_request_or_a_queue_and_never_the_daemon() {
    let daemon = Daemon::start();
    let socket = listen(&daemon, "disk");
    let setup = Setup { queues: 2, ..Setup::default() };
    let mut guest = Front::connect(&socket, setup).expect("a guest");
    let (table, place) = (guest.table(0), guest.place(0, 41));
    // Each of these is given back; a status is there where it is known.
    let malformed: [&[(u64, u32, u16, u16)]; 6] = [
        &[(place, 16, 1, 123)],
        &[(place, 16, 1, 124), (u64::MAX - 7, 512, 3, 125), (place + 64, 1, 2, 0)],
        &[(place, 16, 0, 0)],
        &[(place, 0, 1, 124), (place + 64, 1, 2, 0)],
        &[(place, 1 << 31, 4, 0)],
        &[(place + 64, 1, 3, 124), (place, 16, 0, 0)],
    ];
    for chain in malformed {
        for (i, (at, len, flags, next)) in (0u16..).zip(chain) {
            guest.describe(table, 123 + i, *at, *len, *flags, *next).expect("inside");
        }
        guest.reserve(0, 41);
        guest.offer(0, 123).expect("offered");
        guest.ring(0).expect("rung");
        let done = guest.wait(0).expect("it is given back");
        assert_eq!(done.slot, 41);
    }
    assert_eq!(guest.call(0, WRITE, 0, &[1; 512], 0).expect("the queue goes on").0, OK);
    // An index that runs away takes the queue with it, and nothing else.
    guest.set(guest.avail(0) + 2, 0x7fffu16).expect("inside");
    guest.ring_loudly(0);
    assert!(guest.is_broken(0));
    assert_eq!(guest.call(1, READ, 0, &[], 512).expect("the other queue goes on"), (OK, vec![1; 512]));
    guest.stop_queue(0).expect("a broken queue can be stopped");
    assert!(read_over_nbd(&daemon, 0, 512) == [1; 512]);
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("a list").count()
}

#[test]
fn hostile_messages_are_refused_and_leave_no_descriptor_open() {
    // In a process of its own: other tests open files, too.
    if std::env::var_os("ALONE").is_none() {
        return alone("hostile_messages_are_refused_and_leave_no_descriptor_open");
    }
    let daemon = Daemon::start();
    let socket = listen(&daemon, "disk");
    let words = |all: &[u64]| -> Vec<u8> { all.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let halves = |all: &[u32]| -> Vec<u8> { all.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let memory =
        |guest: u64, len: u64, user: u64, offset: u64| [halves(&[1, 0]), words(&[guest, len, user, offset])].concat();
    let bad: Vec<(&str, u32, Vec<u8>, usize)> = vec![
        ("a region that wraps around", 5, memory(u64::MAX - 4096, 8192, 0, 0), 1),
        ("a region that is longer than its file", 5, memory(0, 1 << 40, 0, 0), 1),
        ("an offset that overflows", 5, memory(0, 4096, 0, u64::MAX - 100), 1),
        ("a region of no length", 5, memory(0, 0, 0, 0), 1),
        ("memory without a file", 5, memory(0, 4096, 0, 0), 0),
        ("features that were not offered", 2, words(&[1 << 34]), 0),
        ("a size that is no power of two", 8, halves(&[0, 100]), 0),
        ("a queue beyond the last", 8, halves(&[16, 128]), 0),
        ("a base beyond 16 bits", 10, halves(&[0, 65536]), 0),
        ("in-flight memory of a foreign size", 32, words(&[u64::MAX, u64::MAX, 0]), 1),
        ("a log that is too long", 6, words(&[u64::MAX, 0]), 1),
        ("a kick that is no counter", 12, words(&[0]), 1),
        ("a kick that never comes", 12, words(&[1 << 8]), 0),
        ("something that was not offered", 22, vec![], 0),
    ];
    let before = open_files();
    for (what, request, payload, files) in bad {
        let mut guest = Front::agreed(&socket, Setup::default()).expect("a guest");
        let file = guest.file();
        let said = guest.order(request, &payload, (files > 0).then_some(&file));
        assert!(said.is_err(), "{what}");
        drop((guest, file));
        settle(before, what);
    }
    // More descriptors than a message has, in every part of it.
    let mut guest = Front::agreed(&socket, Setup::default()).expect("a guest");
    guest.say_with_surplus(32, &words(&[4096, 0, 0]), 7).expect("said");
    assert!(guest.hear(32).expect("answered").0 != [0; 8], "it is refused");
    // Perhaps before all of it is said.
    let said = guest.say_with_surplus(32, &words(&[4096, 0, 0]), 20);
    assert!(said.is_err() || guest.hear(32).is_err(), "its connection ends");
    drop(guest);
    settle(before, "surplus descriptors");
    // Size, places and base are frozen while a queue runs.
    let mut guest = Front::connect(&socket, Setup::default()).expect("a guest");
    assert!(guest.order(8, &halves(&[0, 64]), None).is_err());
    assert!(guest.order(10, &halves(&[0, 5]), None).is_err());
    assert!(guest.order(9, &[halves(&[0, 0]), words(&[0x1000, 0, 0x2000, 0])].concat(), None).is_err());
    assert!(guest.order(2, &words(&[0]), None).is_err());
    assert_eq!(guest.call(0, READ, 0, &[], 512).expect("it goes on").0, OK);
    drop(guest);
    settle(before, "a guest that went");
}

/// The daemon notices after a moment that a guest has gone.
fn settle(before: usize, what: &str) {
    let until = Instant::now() + Duration::from_secs(10);
    while open_files() > before {
        assert!(Instant::now() < until, "{what}: {} descriptors instead of {before}", open_files());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs one test of this file in a process of its own.
fn alone(test: &str) {
    let exe = std::env::current_exe().expect("this test");
    let status = Command::new(exe).args(["--exact", test, "--nocapture"]).env("ALONE", "1").status();
    assert!(status.expect("it runs").success());
}

#[test]
fn memory_that_is_taken_away_costs_its_guest_alone() {
    let daemon = Daemon::start();
    let mut guest = Front::unsealed(&listen(&daemon, "disk"), Setup::default()).expect("a guest");
    assert_eq!(guest.call(0, WRITE, 0, &[1; 512], 0).expect("an answer").0, OK);
    guest.submit(0, READ, 0, &[], 512).expect("sent");
    guest.shrink().expect("shorter");
    guest.ring_loudly(0);
    assert!(guest.hear(1).is_err(), "its connection ends");
    assert!(read_over_nbd(&daemon, 0, 512) == [1; 512]);
}

#[test]
fn what_is_in_the_object_store_alone_holds_up_nothing_else() {
    let store = SimStore::new(1);
    let blocks = (0..4096u64).rev().map(|i| (i * 4096, page(0, 1, i)));
    let daemon = far::daemon(Arc::new(store.client("maker")), Arc::new(store.client("taker")), 64 << 20, blocks);
    let mut guest = Front::connect(&listen(&daemon, "far"), Setup::default()).expect("a guest");
    store.pause("taker", None);
    let reads = guest.submit(0, READ, 8 * 100, &[], 4096).expect("sent").expect("a slot");
    let writes = guest.submit(0, WRITE, 8 * 3000, &[9; 512], 0).expect("sent").expect("a slot");
    guest.ring(0).expect("rung");
    let until = Instant::now() + Duration::from_secs(20);
    while store.waiting("taker") == 0 {
        assert!(Instant::now() < until, "the store is asked");
    }
    assert_eq!(guest.call(0, ID, 0, &[], 20).expect("an answer").0, OK);
    assert_eq!(guest.call(0, FLUSH, 0, &[], 0).expect("an answer").0, OK);
    store.resume("taker");
    let mut done = [guest.wait(0).expect("an answer"), guest.wait(0).expect("an answer")];
    done.sort_by_key(|done| done.slot != reads);
    assert_eq!(done.map(|done| (done.slot, done.status)), [(reads, OK), (writes, OK)]);
    assert!(guest.data(0, reads, 4096).expect("inside") == page(0, 1, 100));
    let (_, data) = guest.call(0, READ, 8 * 3000, &[], 4096).expect("an answer");
    assert!(data[..512] == [9; 512] && data[512..] == page(0, 1, 3000)[512..]);
}

#[test]
fn a_guest_stays_through_an_orderly_restart() {
    let daemon = Daemon::start();
    let socket = listen(&daemon, "disk");
    let mut guest = Front::connect(&socket, Setup::default()).expect("a guest");
    assert_eq!(guest.call(0, WRITE, 0, &[4; 4096], 0).expect("an answer").0, OK);
    let daemon = daemon.again();
    assert!(guest.submit(0, READ, 0, &[], 4096).expect("sent").is_some());
    soon(|| guest.reconnect(&socket));
    assert_eq!(guest.wait(0).expect("an answer").status, OK);
    assert!(read_over_nbd(&daemon, 0, 4096) == [4; 4096]);
}

/// Not a test of its own: the daemon that the next test kills.
#[test]
#[ignore = "the next test starts it"]
fn daemon_to_be_killed() {
    let Some(folder) = std::env::var_os("DAEMON_FOLDER").map(PathBuf::from) else { return };
    let (_lock, pool, _) = open_pool(&folder, true, PoolOptions::default()).expect("a pool");
    let options = ServerOptions {
        folder,
        control: None,
        listen: Vec::new(),
        spares: 0,
        tls: None,
        lag: nbd_server::LAG,
        counted: None,
    };
    Server::new(pool, options).expect("a daemon").run().expect("it ends");
}

fn spawn(folder: &Path) -> Child {
    let exe = std::env::current_exe().expect("this test");
    let mut command = Command::new(exe);
    command.args(["--exact", "daemon_to_be_killed", "--ignored"]).env("DAEMON_FOLDER", folder);
    command.stdout(Stdio::null()).spawn().expect("a daemon")
}

/// Tries until the daemon is there.
fn soon<T>(mut what: impl FnMut() -> std::io::Result<T>) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match what() {
            Ok(done) => return done,
            Err(e) => assert!(Instant::now() < until, "the daemon does not come back: {e}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_daemon_that_is_killed_loses_and_repeats_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let pool = folder.path().join("pool");
    {
        let (_lock, mut made, _) = open_pool(&pool, true, PoolOptions::default()).expect("a pool");
        let (_, job) = made.create_volume("disk", 64 << 20).expect("a volume");
        made.finish(job).expect("durable");
    }
    let mut daemon = spawn(&pool);
    let control = soon(|| UnixStream::connect(pool.join("control.sock")));
    (&control).write_all(b"{\"op\":\"vhost.listen\",\"volume\":\"disk\"}\n").expect("heard");
    let mut answer = String::new();
    BufReader::new(&control).read_line(&mut answer).expect("an answer");
    let socket = pool.join("vhost/disk.sock");
    let setup = Setup { queues: 2, entries: 128, data: 4096, ..Setup::default() };
    let mut guest = Front::connect(&socket, setup).expect("a guest");
    // Of every block, the value that was answered last and the one under way, if any.
    let mut answered = vec![0u64; 256];
    let mut under_way: HashMap<(u16, u16), (usize, u64)> = HashMap::new();
    let (mut value, mut seed, mut kills) = (0u64, 1u64, 0);
    let mut next_kill = Instant::now() + Duration::from_millis(50);
    while kills < 20 {
        for queue in 0..2u16 {
            while guest.free(queue) > 0 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let block = (seed >> 33) as usize % 256;
                if under_way.values().any(|(busy, _)| *busy == block) {
                    break;
                }
                value += 1;
                let data = value.to_le_bytes().repeat(512);
                let slot = guest.submit(queue, WRITE, 8 * block as u64, &data, 0).expect("sent").expect("a slot");
                under_way.insert((queue, slot), (block, value));
            }
            guest.ring(queue).expect("rung");
            while let Some(done) = guest.poll(queue).expect("each is answered once") {
                assert_eq!(done.status, OK);
                let (block, value) = under_way.remove(&(queue, done.slot)).expect("it was asked");
                answered[block] = value;
            }
        }
        if Instant::now() > next_kill {
            daemon.kill().expect("killed");
            daemon.wait().expect("gone");
            daemon = spawn(&pool);
            soon(|| guest.reconnect(&socket));
            kills += 1;
            next_kill = Instant::now() + Duration::from_millis(20 + seed % 60);
        }
    }
    while !under_way.is_empty() {
        for queue in 0..2 {
            while let Some(done) = guest.poll(queue).expect("each is answered once") {
                let (block, value) = under_way.remove(&(queue, done.slot)).expect("it was asked");
                answered[block] = value;
            }
        }
    }
    for (block, value) in answered.iter().enumerate() {
        let (status, data) = guest.call(0, READ, 8 * block as u64, &[], 4096).expect("an answer");
        assert!(status == OK && data == value.to_le_bytes().repeat(512), "block {block}");
    }
    eprintln!("{value} writes over {kills} kills");
    daemon.kill().expect("killed");
    daemon.wait().expect("gone");
}
