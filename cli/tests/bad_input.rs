//! Bad names, sizes, files, sockets and disks: each gives the documented exit code and a sentence that
//! says what is wrong, nothing panics, and nothing acknowledged is lost.

mod common;

use common::{flush, in_own_mounts, noise, read, text, write, Pool};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let pool = Pool::serving();
    let mut client = pool.nbd("disk");
    let (code, said) = pool.fails(&["serve", "--nbd", &format!("unix:{}", text(&pool.path("other.sock")))]);
    assert!(code == 4 && said.contains("in use by another process"), "{code} {said}");
    write(&mut client, 0, &[1; 4096]);
    assert_eq!(pool.volumes(), ["disk"], "its control socket was not taken away");
}

#[test]
fn sizes_that_cannot_be() {
    for daemon in [false, true] {
        let pool = if daemon { Pool::serving() } else { Pool::new() };
        for size in ["0", "5", "4097", "65P", "64P1", "-1", "1.5G", "99999999999999999999", "16384P", "", "G"] {
            let (code, said) = pool.fails(&["volume", "create", "new", &format!("--size={size}")]);
            assert!(code == 2 && said.contains("size"), "{size}: {code} {said}");
        }
        pool.json(&["volume", "create", "large", "--size", "64P"]);
        assert_eq!(pool.fails(&["volume", "resize", "large", "65P"]).0, 2);
        assert_eq!(pool.fails(&["volume", "resize", "large", "0"]).0, 2);
        pool.json(&["volume", "resize", "large", "4K", "--shrink"]);
    }
}

#[test]
fn names_that_cannot_be() {
    let long = "n".repeat(5000);
    let pool = Pool::serving();
    for name in ["", "a/b", "..", ".", "../../etc", "-n", "a b", "ä", "disk@v1", "a\nb", "Current@", &long] {
        for args in [
            &["volume", "create", "--size=1M", "--", name][..],
            &["fork", "disk", "--", name],
            &["volume", "import", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "--", name],
        ] {
            let (code, said) = pool.fails(args);
            assert!(code == 2 && said.contains("name"), "{args:?}: {code} {said}");
            assert!(said.len() < 1000, "the answer to a long name is short");
        }
        for args in [&["volume", "info", "--", name][..], &["volume", "delete", "--", name], &["scrub", "--", name]] {
            let (code, said) = pool.fails(args);
            assert!(code == 2 || code == 3, "{args:?}: {code} {said}");
            assert!(said.len() < 1000, "the answer to a long name is short: {said}");
        }
    }
    // A NUL cannot be an argument; on the control socket it can.
    let answer = pool.control().ask(r#"{"op":"volume.create","volume":"a\u0000b","size_bytes":4096}"#);
    assert_eq!(answer["error"]["kind"], "invalid");
    assert_eq!(pool.volumes(), ["disk"]);
}

#[test]
fn what_does_not_exist_says_where_to_look() {
    let pool = Pool::serving();
    pool.json(&["checkpoint", "create", "disk"]);
    for args in [
        &["volume", "info", "dusk"][..],
        &["checkpoint", "list", "dusk"],
        &["checkpoint", "get", "disk", "v2"],
        &["restore", "disk", "v2"],
        &["fork", "disk@v2", "new"],
        &["checkpoint", "diff", "disk", "v1", "v2"],
        &["volume", "export", "disk@v2", "copy"],
    ] {
        let (code, said) = pool.fails(args);
        assert!(code == 3 && said.contains("see cairn"), "{args:?}: {code} {said}");
    }
    for args in [&["checkpoint", "get", "disk", "2"][..], &["restore", "disk", "v0"], &["fork", "disk@", "new"]] {
        let (code, said) = pool.fails(args);
        assert!(code == 2 && said.contains("v1"), "{args:?}: {code} {said}");
    }
    let nowhere = Pool::new();
    for args in [&["volume", "list"][..], &["check"], &["stats"], &["volume", "export", "disk", "copy"]] {
        let (code, said) = nowhere.fails(args);
        assert!(code == 3 && said.contains("no pool"), "{args:?}: {code} {said}");
    }
    let mut without = Command::new(common::CAIRN);
    let out = without.args(["volume", "list"]).env_remove("CAIRN_POOL").output().expect("cairn runs");
    assert!(out.status.code() == Some(2) && String::from_utf8_lossy(&out.stderr).contains("--pool"));
}

/// A closed pool with data in it.
fn closed() -> Pool {
    let mut pool = Pool::serving();
    let mut client = pool.nbd("disk");
    write(&mut client, 0, &noise(1, 1 << 20));
    flush(&mut client);
    drop(client);
    pool.end(libc::SIGTERM);
    pool
}

fn file(pool: &Pool, prefix: &str) -> std::path::PathBuf {
    let entries = fs::read_dir(pool.pool()).expect("the pool").map(|e| e.expect("an entry").path());
    let mut found: Vec<_> =
        entries.filter(|p| p.file_name().is_some_and(|n| n.as_bytes().starts_with(prefix.as_bytes()))).collect();
    found.sort();
    found.pop().expect("such a file")
}

fn patch(path: &std::path::Path, at: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).expect("a file").write_all_at(bytes, at).expect("a patch");
}

#[test]
fn pool_files_that_are_damaged_foreign_or_newer() {
    type Harm = (&'static str, fn(&Pool), i32, &'static str);
    let cases: [Harm; 9] = [
        ("rubbish", |p| fs::write(p.pool().join("cairn.pool"), noise(1, 4096)).expect("a file"), 5, "cairn.pool"),
        ("truncated", |p| fs::write(p.pool().join("cairn.pool"), b"CAIRN").expect("a file"), 5, "truncated"),
        ("gone", |p| fs::remove_file(p.pool().join("cairn.pool")).expect("a file"), 3, "cairn.pool is missing"),
        ("anchor gone", |p| fs::remove_file(file(p, "anchor-")).expect("a file"), 5, "anchor"),
        ("anchor truncated", |p| fs::write(file(p, "anchor-"), [0; 100]).expect("a file"), 5, "anchor"),
        ("anchor empty", |p| fs::write(file(p, "anchor-"), []).expect("a file"), 5, "anchor"),
        (
            "anchor is a folder",
            |p| {
                let path = file(p, "anchor-");
                fs::remove_file(&path).expect("a file");
                fs::create_dir(path).expect("a folder");
            },
            1,
            "anchor",
        ),
        (
            "lock is a folder",
            |p| {
                let _ = fs::remove_file(p.pool().join("lock"));
                fs::create_dir(p.pool().join("lock")).expect("a folder");
            },
            1,
            "lock",
        ),
        ("newer", |p| patch(&p.pool().join("cairn.pool"), 8, &99u32.to_le_bytes()), 0, ""),
    ];
    for (what, harm, want, words) in cases {
        let pool = closed();
        harm(&pool);
        for args in [&["volume", "list"][..], &["check"], &["serve"]] {
            let (code, said) = pool.fails(args);
            assert!((want == 0 || code == want) && said.contains(words), "{what}: {args:?}: {code} {said}");
        }
    }
}

#[test]
fn a_folder_of_somebody_else_is_left_alone() {
    let pool = Pool::new();
    fs::create_dir(pool.pool()).expect("a folder");
    fs::write(pool.pool().join("letters"), "dear").expect("a file");
    for args in [&["serve"][..], &["volume", "create", "new", "--size=1M"]] {
        let (code, said) = pool.fails(args);
        assert!(code == 2 && said.contains("letters"), "{args:?}: {code} {said}");
    }
    let entries: Vec<_> =
        fs::read_dir(pool.pool()).expect("the folder").map(|e| e.expect("an entry").file_name()).collect();
    assert!(entries.iter().all(|n| n == "letters" || n == "lock"), "{entries:?}");
    fs::write(pool.path("file"), "").expect("a file");
    let mut command = pool.command(&["volume", "list"]);
    let out = command.env("CAIRN_POOL", pool.path("file")).output().expect("cairn runs");
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("folder"));
}

#[test]
fn rubbish_on_the_control_socket() {
    let pool = Pool::serving();
    let mut client = pool.nbd("disk");
    let mut control = pool.control();
    for line in [
        "",
        "rubbish",
        "\u{1}\u{2}",
        "[]",
        "7",
        "null",
        "{}",
        r#"{"op":7}"#,
        r#"{"op":"explode"}"#,
        r#"{"op":"volume.create"}"#,
        r#"{"op":"volume.create","volume":7,"size_bytes":"x"}"#,
        r#"{"op":"volume.create","volume":"x","size_bytes":-1}"#,
        r#"{"op":"restore","volume":"disk","id":{"a":1}}"#,
        r#"{"op":"scrub","volume":"dusk"}"#,
        &"[".repeat(60_000),
    ] {
        let kind = control.ask(line)["error"]["kind"].as_str().map(str::to_owned);
        assert!(matches!(kind.as_deref(), Some("invalid" | "not_found")), "{line:.60}: {kind:?}");
    }
    control.0.get_mut().write_all(&[0xff, 0xfe, 0, b'\n']).expect("the daemon listens");
    assert_eq!(control.line()["error"]["kind"], "invalid");
    // A line without an end is cut off, with a reason.
    let mut endless = UnixStream::connect(pool.pool().join("control.sock")).expect("a connection");
    let sent = (0..1000).take_while(|_| endless.write_all(&[b'a'; 4096]).is_ok()).count();
    assert!(sent < 1000, "no more than a bound is taken");
    let mut said = String::new();
    let _ = endless.read_to_string(&mut said);
    assert!(said.is_empty() || said.contains("at most"), "{said}");
    // More connections than anybody needs.
    let mut held: Vec<_> = (0..200).map(|_| pool.control()).collect();
    let last = held.last_mut().expect("connections");
    assert_eq!(last.line()["error"]["kind"], "busy");
    for _ in 0..20 {
        let (code, said) = pool.fails(&["stats"]);
        assert!(
            code == 4 && said.contains("try again"),
            "a command is told why, whenever it is cut off: {code} {said}"
        );
    }
    drop(held);
    read(&mut client, 0, 512);
    while pool.run(&["stats"]).status.code() == Some(4) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(pool.volumes(), ["disk"]);
}

#[test]
fn a_read_only_disk_can_be_looked_at_and_says_why_it_cannot_be_changed() {
    let pool = closed();
    let before: Vec<_> =
        fs::read_dir(pool.pool()).expect("the pool").map(|e| e.expect("an entry").file_name()).collect();
    let script = "mount --bind $POOL $POOL; mount -o remount,bind,ro $POOL; \
                  $CAIRN volume list; $CAIRN volume info disk; $CAIRN check; $CAIRN scrub disk; \
                  $CAIRN volume export disk $OUT; cd $POOL; \
                  for verb in serve 'volume create new --size 1M' 'checkpoint create disk' 'volume import cairn.pool new'; do \
                  $CAIRN $verb && exit 99; echo code $?; done";
    let copy = pool.path("copy");
    let out = in_own_mounts(&pool, script).env("OUT", &copy).output().expect("unshare runs");
    let (shown, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(
        ["mapped  ", "problems               none", "damaged                none"].iter().all(|w| shown.contains(w)),
        "{shown}{said}"
    );
    assert_eq!(fs::read(&copy).expect("the copy")[..1 << 20], noise(1, 1 << 20));
    assert_eq!(shown.matches("code 1\n").count(), 4, "{shown}{said}");
    assert_eq!(said.matches("read-only file system").count(), 4, "{said}");
    assert!(said.contains("remount"), "{said}");
    let after: Vec<_> =
        fs::read_dir(pool.pool()).expect("the pool").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(before, after);
    assert_eq!(pool.volumes(), ["disk"], "the pool is as it was");
}
