//! The daemon's log tells its story: what was opened, who came and went and why, what was changed.

mod common;

use common::Pool;
use serde_json::Value;

fn story(pool: &Pool) -> Vec<Value> {
    let log = pool.log();
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
}

#[test]
fn the_log_tells_who_came_what_changed_and_why_somebody_left() {
    let mut pool = Pool::new();
    pool.json(&["volume", "create", "disk", "--size", "64M"]);
    pool.serve(&["--log-format", "json"]);
    let mut client = pool.nbd("disk");
    common::write(&mut client, 0, &[1; 4096]);
    pool.json(&["checkpoint", "create", "disk", "--comment", "before"]);
    pool.json(&["restore", "disk", "v1", "--force"]);
    pool.json(&["fork", "disk@v1", "two"]);
    drop(pool.nbd("two"));
    pool.json(&["check"]);
    pool.json(&["volume", "delete", "two", "--force"]);
    assert!(pool.end(libc::SIGTERM).success());
    let story = story(&pool);
    let mut at = story.iter();
    for (message, field, words) in [
        ("the pool is open", "changes", "1"),
        ("serving", "nbd", "nbd.sock"),
        ("a client has opened an export", "export", "disk"),
        ("the pool was changed", "request", "before"),
        ("a client has gone", "why", "--force"),
        ("the pool was changed", "answer", "auto-1"),
        ("the pool was changed", "request", "fork"),
        ("a client has opened an export", "export", "two"),
        ("long work begins", "op", "check"),
        ("the pool was verified", "message", ""),
        ("the pool was changed", "request", "volume.delete"),
        ("asked to end", "message", ""),
        ("ended", "message", ""),
    ] {
        let told = |e: &&Value| e["message"] == message && e[field].to_string().contains(words);
        assert!(at.any(|e| told(&e)), "{message} {words} is missing, or not in its place: {story:#?}");
    }
}

#[test]
fn a_goodbye_and_a_breach_of_the_protocol_are_told_apart() {
    use std::io::{Read, Write};
    let mut pool = Pool::serving();
    for (bytes, why) in [
        (common::wire::request(common::wire::DISC, 0, 1, 0, 0), "it said goodbye"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2), "wrong request magic"),
        (Vec::new(), "it hung up"),
    ] {
        let mut client = pool.nbd("disk");
        client.write_all(&bytes).expect("the daemon listens");
        client.shutdown(std::net::Shutdown::Write).expect("an end");
        let _ = client.read(&mut [0; 16]);
        while !pool.log().contains(why) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    assert!(pool.end(libc::SIGTERM).success());
}

#[test]
fn the_level_is_chosen_by_option_or_environment() {
    let mut pool = Pool::new();
    pool.serve(&["--log-level", "error"]);
    pool.json(&["volume", "create", "disk", "--size", "64M"]);
    pool.end(libc::SIGTERM);
    assert_eq!(pool.log(), "");
    pool.serve(&["--log-level", "debug"]);
    pool.fails(&["volume", "info", "dusk"]);
    pool.end(libc::SIGTERM);
    assert!(pool.log().contains("a command failed") && !pool.log().contains('\x1b'), "{}", pool.log());
    let (code, said) = pool.fails(&["serve", "--log-level", "loud"]);
    assert!(code == 2 && said.contains("debug"), "{said}");
    let out = pool.command(&["serve"]).env("CAIRN_LOG", "loud").output().expect("cairn runs");
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn damage_that_a_client_meets_is_in_the_log() {
    let mut pool = Pool::serving();
    let data = common::noise(5, 4096);
    common::write(&mut pool.nbd("disk"), 0, &data);
    pool.end(libc::SIGTERM);
    common::damage(&pool.pool(), &data[..64]);
    pool.serve(&[]);
    let mut client = pool.nbd("disk");
    use std::io::Write;
    client.write_all(&common::wire::request(common::wire::READ, 0, 1, 0, 4096)).expect("the daemon listens");
    assert_eq!(common::wire::simple(&mut client, 1).expect("a reply"), 5);
    assert!(pool.log().contains("a request failed") && pool.log().contains("segment"), "{}", pool.log());
}
