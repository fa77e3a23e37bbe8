//! Processes that reach for one pool at the same moment: a command beside a daemon that is starting or
//! ending waits for it, a daemon beside a command that holds the pool waits for that.

mod common;

use common::{text, Pool};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Holds the pool's lock as another process would.
fn hold(pool: &Pool) -> File {
    fs::create_dir_all(pool.pool()).expect("a folder");
    let file = File::options().create(true).append(true).open(pool.pool().join("lock")).expect("the lock");
    // SAFETY: a plain system call on an open descriptor.
    assert_eq!(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }, 0);
    file
}

#[test]
fn a_daemon_and_commands_started_at_once_all_do_their_work() {
    for round in 0..5 {
        let mut pool = Pool::new();
        let nbd = format!("unix:{}", text(&pool.path("nbd.sock")));
        let log = File::create(pool.path("log")).expect("a log");
        let mut serve = pool.command(&["serve", "--nbd", &nbd]);
        let mut names: Vec<String> = (0..4).map(|i| format!("disk{i}")).collect();
        let start = |name: &String| {
            let mut command = pool.command(&["volume", "create", name, "--size", "64M"]);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("cairn runs")
        };
        // In half of the rounds a command comes first.
        let first = (round % 2 == 1).then(|| start(&names[0]));
        let daemon = serve.stdout(Stdio::null()).stderr(log).spawn().expect("the daemon starts");
        let commands: Vec<_> = first.into_iter().chain(names.iter().skip(round % 2).map(start)).collect();
        pool.daemon = Some(daemon);
        for command in commands {
            let out = command.wait_with_output().expect("cairn runs");
            assert!(out.status.success(), "round {round}: {}", String::from_utf8_lossy(&out.stderr));
        }
        let mut made = pool.volumes();
        made.sort();
        names.sort();
        assert_eq!(made, names, "round {round}");
        let begin = Instant::now();
        while !pool.path("nbd.sock").exists() {
            assert!(begin.elapsed() < Duration::from_secs(10), "the daemon has not come up: {}", pool.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(pool.end(libc::SIGTERM).success(), "{}", pool.log());
    }
}

#[test]
fn a_command_waits_for_a_lock_but_not_for_ever() {
    let pool = Pool::new();
    pool.json(&["volume", "create", "disk", "--size", "64M"]);
    let lock = hold(&pool);
    for args in [&["volume", "list"][..], &["check"], &["serve"]] {
        let begin = Instant::now();
        let (code, said) = pool.fails(args);
        assert!(code == 4 && said.contains("in use by another process"), "{args:?}: {code} {said}");
        assert!(begin.elapsed() > Duration::from_secs(1) && begin.elapsed() < Duration::from_secs(10), "{args:?}");
    }
    let waiting = pool.command(&["volume", "list"]).stdout(Stdio::piped()).spawn().expect("cairn runs");
    std::thread::sleep(Duration::from_millis(300));
    drop(lock);
    assert!(waiting.wait_with_output().expect("cairn runs").status.success());
}
