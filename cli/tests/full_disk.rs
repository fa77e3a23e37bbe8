//! A daemon whose pool is on a small file system of its own, which gets full: writes are refused, nothing
//! acknowledged is lost, and what frees space works, also after a kill.

mod common;

use common::{flush, in_own_mounts, noise, read, text, wire, Pool};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const NO_SPACE: u32 = 28;
/// What is kept aside, and a segment that is being packed, leave that much for sure.
const WRITTEN_MIN: u64 = 60;

/// A pool with a volume `disk` on a file system of 140 MiB that lives as long as the shell that mounted it, and
/// in which a daemon is started again when one has been killed.
struct Small {
    pool: Pool,
}

impl Small {
    fn start() -> Self {
        let mut pool = Pool::new();
        let script = "mount -t tmpfs -o size=140m cairn-test $POOL; $CAIRN volume create disk --size 1G >/dev/null; \
                      code=137; while [ $code = 137 ]; do code=0; $CAIRN serve --nbd unix:$NBD --spares 0 & \
                      echo $! >$NBD.pid; wait $! || code=$?; done; exit $code";
        let log = std::fs::File::create(pool.path("log")).expect("a log");
        pool.daemon = Some(in_own_mounts(&pool, script).stderr(log).spawn().expect("unshare runs"));
        let mut small = Self { pool };
        small.wait();
        small
    }

    fn wait(&mut self) {
        let begin = Instant::now();
        while UnixStream::connect(self.pool.path("nbd.sock")).is_err() {
            let ended = self.pool.daemon.as_mut().and_then(|d| d.try_wait().expect("a child"));
            assert!(ended.is_none() && begin.elapsed() < Duration::from_secs(30), "{}", self.pool.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn daemon(&self) -> i32 {
        let pid = std::fs::read_to_string(self.pool.path("nbd.sock.pid")).expect("the shell wrote it");
        pid.trim().parse().expect("a number")
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a plain system call on the daemon, which its shell has not waited for.
        assert_eq!(unsafe { libc::kill(self.daemon(), signal) }, 0);
    }

    /// Kills the daemon; the next one has opened the pool when this returns.
    fn kill(&mut self) {
        let before = self.daemon();
        self.signal(libc::SIGKILL);
        let begin = Instant::now();
        while self.daemon() == before {
            assert!(begin.elapsed() < Duration::from_secs(10), "the shell starts another: {}", self.pool.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.wait();
    }

    /// A command, from outside the daemon's mounts, which are seen through its own root.
    fn cairn(&self, args: &[&str]) -> (Option<i32>, String) {
        let seen = format!("/proc/{}/root{}", self.daemon(), text(&self.pool.pool()));
        let out = Command::new(common::CAIRN).args(args).env("CAIRN_POOL", &seen).output().expect("cairn runs");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    }

    fn end(mut self) {
        self.signal(libc::SIGTERM);
        let mut shell = self.pool.daemon.take().expect("a shell");
        assert!(shell.wait().expect("a child").success(), "{}", self.pool.log());
    }
}

/// After a failure: the shell first, which would start another daemon.
impl Drop for Small {
    fn drop(&mut self) {
        if let Some(mut shell) = self.pool.daemon.take() {
            let _ = shell.kill();
            let _ = shell.wait();
            self.signal(libc::SIGKILL);
        }
    }
}

fn write(client: &mut UnixStream, offset: u64, data: &[u8]) -> u32 {
    let mut bytes = wire::request(wire::WRITE, 0, 1, offset, data.len() as u32);
    bytes.extend_from_slice(data);
    client.write_all(&bytes).expect("the daemon listens");
    wire::simple(client, 1).expect("a reply")
}

fn trim(client: &mut UnixStream, offset: u64, len: u32) -> u32 {
    client.write_all(&wire::request(wire::TRIM, 0, 2, offset, len)).expect("the daemon listens");
    wire::simple(client, 2).expect("a reply")
}

/// Writes MiB after MiB until there is no space; how many went.
fn fill(client: &mut UnixStream, log: impl Fn() -> String) -> u64 {
    let full = (0..1000).find(|i| match write(client, i * MIB, &noise(i + 1, MIB as usize)) {
        0 => false,
        errno => {
            assert_eq!(errno, NO_SPACE, "after {i} MiB: {}", log());
            true
        }
    });
    full.filter(|written| *written >= WRITTEN_MIN).expect("the disk gets full, and not too soon")
}

fn holds(client: &mut UnixStream, range: std::ops::Range<u64>) {
    for i in range {
        assert!(read(client, i * MIB, MIB as usize) == noise(i + 1, MIB as usize), "MiB {i} was acknowledged");
    }
}

/// The cleaner gives space back within seconds.
fn write_until_it_goes(small: &Small, client: &mut UnixStream, offset: u64) {
    let begin = Instant::now();
    while write(client, offset, &noise(7, MIB as usize)) != 0 {
        assert!(begin.elapsed() < Duration::from_secs(30), "space does not come back: {}", small.pool.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_space_can_be_freed() {
    let small = Small::start();
    assert_eq!(small.cairn(&["checkpoint", "create", "disk"]).0, Some(0));
    let mut client = small.pool.nbd("disk");
    let written = fill(&mut client, || small.pool.log());
    holds(&mut client, 0..written);
    let (code, said) = small.cairn(&["volume", "create", "more", "--size", "1G"]);
    assert!(code == Some(0) || code == Some(6) && said.to_lowercase().contains("space"), "{code:?} {said}");
    assert_eq!(small.cairn(&["checkpoint", "delete", "disk", "v1"]).0, Some(0), "deleting works");
    assert_eq!(trim(&mut client, MIB, (written as u32 - 1) << 20), 0, "trimming works");
    write_until_it_goes(&small, &mut client, 500 * MIB);
    flush(&mut client);
    holds(&mut client, 0..1);
    small.end();
}

/// A client that kept trying, as guests do, used up what was kept for trims and deletions, and then for
/// the anchor without which no pool opens: it could not be freed, and after a kill not be opened.
#[test]
fn what_is_kept_aside_is_not_taken_by_a_client_that_keeps_trying() {
    let mut small = Small::start();
    let mut client = small.pool.nbd("disk");
    let written = fill(&mut client, || small.pool.log());
    for round in 0..3 {
        let went = (0..2000u64).filter(|i| write(&mut client, 600 * MIB + i * 4096, &noise(*i, 4096)) == 0).count();
        assert!(went < 500, "round {round}: {went} blocks went into what was kept aside");
        assert_eq!(trim(&mut client, 900 * MIB, 4096), 0, "round {round}: {}", small.pool.log());
    }
    drop(client);
    small.kill();
    let mut client = small.pool.nbd("disk");
    holds(&mut client, 0..written);
    assert_eq!(trim(&mut client, MIB, (written as u32 - 1) << 20), 0, "trimming works: {}", small.pool.log());
    write_until_it_goes(&small, &mut client, 500 * MIB);
    holds(&mut client, 0..1);
    small.end();
}

/// Every segment is half dead, none dead: space comes back by packing, which needs some.
#[test]
fn a_full_disk_of_half_dead_segments_gives_space_back() {
    let small = Small::start();
    let mut client = small.pool.nbd("disk");
    let written = fill(&mut client, || small.pool.log());
    for i in 0..written {
        assert_eq!(trim(&mut client, i * MIB, MIB as u32 / 4 * 3), 0, "MiB {i}: {}", small.pool.log());
    }
    write_until_it_goes(&small, &mut client, 500 * MIB);
    for i in 0..written {
        let (at, len) = (MIB as usize / 4 * 3, MIB as usize / 4);
        assert!(read(&mut client, i * MIB + at as u64, len) == noise(i + 1, MIB as usize)[at..], "MiB {i}");
    }
    small.end();
}
