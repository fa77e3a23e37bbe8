//! One name for one thing: `disk@v1` names a checkpoint wherever a volume can be named, `disk@Current` is
//! `disk`, and where a checkpoint cannot stand the error says what to write instead.

mod common;

use common::{noise, write, Pool};

#[test]
fn a_checkpoint_is_named_as_a_volume_is() {
    let mut pool = Pool::serving();
    write(&mut pool.nbd("disk"), 0, &noise(1, 8192));
    pool.json(&["checkpoint", "create", "disk", "--comment", "one"]);
    write(&mut pool.nbd("disk"), 0, &noise(2, 4096));
    for daemon in [true, false] {
        if !daemon {
            pool.end(libc::SIGTERM);
        }
        let info = pool.json(&["volume", "info", "disk@v1"]);
        assert_eq!(
            (&info["id"], &info["comment"], &info["exclusive_bytes"]),
            (&"v1".into(), &"one".into(), &4096.into())
        );
        assert_eq!(info["size_bytes"], 64 << 20);
        assert_eq!(pool.json(&["checkpoint", "get", "disk@v1"]), info);
        assert_eq!(pool.json(&["checkpoint", "get", "disk", "v1"]), info);
        assert_eq!(pool.json(&["volume", "info", "disk@Current"])["name"], "disk");
        assert_eq!(pool.json(&["checkpoint", "get", "disk@Current"])["id"], "Current");
        assert_eq!(pool.json(&["checkpoint", "list", "disk@Current"]).as_array().map(Vec::len), Some(1));
        assert_eq!(pool.json(&["checkpoint", "diff", "disk@Current", "v1", "Current"])["changed_bytes"], 4096);
        for (name, blocks) in [("disk@v1", 2), ("disk", 3), ("disk@Current", 3)] {
            let found = pool.json(&["scrub", name]);
            assert_eq!((&found["volume"], &found["blocks"]), (&name.into(), &blocks.into()), "{name}");
        }
    }
    pool.serve(&[]);
    pool.json(&["checkpoint", "create", "disk@Current"]);
    pool.json(&["volume", "resize", "disk@Current", "65M"]);
    assert_eq!(pool.json(&["checkpoint", "delete", "disk@v2"])["deleted"], "v2");
    assert_eq!(pool.json(&["restore", "disk@v1"])["restored"], "v1");
    assert_eq!(pool.json(&["volume", "delete", "disk@Current"])["deleted"], "disk");
}

#[test]
fn where_a_checkpoint_cannot_stand_the_error_says_what_to_use() {
    let pool = Pool::serving();
    pool.json(&["checkpoint", "create", "disk"]);
    for args in [
        &["checkpoint", "create", "disk@v1"][..],
        &["checkpoint", "list", "disk@v1"],
        &["checkpoint", "diff", "disk@v1", "v1", "Current"],
        &["checkpoint", "get", "disk@v1", "v1"],
        &["volume", "resize", "disk@v1", "128M"],
        &["volume", "delete", "disk@v1"],
        &["restore", "disk@v1", "v1"],
    ] {
        let (code, said) = pool.fails(args);
        assert!(code == 2 && said.contains("disk@v1 is a checkpoint: use disk"), "{args:?}: {code} {said}");
    }
    for args in [&["checkpoint", "get", "disk"][..], &["checkpoint", "delete", "disk"], &["restore", "disk"]] {
        let (code, said) = pool.fails(args);
        assert!(code == 2 && said.contains("disk@v1"), "{args:?}: {code} {said}");
    }
    for name in ["disk@v9", "dusk@v1"] {
        assert_eq!(pool.fails(&["volume", "info", name]).0, 3, "{name}");
        assert_eq!(pool.fails(&["scrub", name]).0, 3, "{name}");
    }
    let (code, said) = pool.fails(&["checkpoint", "get", "disk", "current"]);
    assert!(code == 2 && said.contains("or Current"), "{said}");
    let (code, said) = pool.fails(&["restore", "disk", "Current"]);
    assert!(code == 2 && said.contains("what the volume is now"), "{said}");
}

#[test]
fn a_volume_becomes_smaller_only_when_that_is_meant() {
    let pool = Pool::serving();
    let mut client = pool.nbd("disk");
    write(&mut client, 40 << 20, &noise(1, 4096));
    for more in [&[][..], &["--force"]] {
        let (code, said) = pool.fails(&[&["volume", "resize", "disk", "32M"], more].concat());
        assert!(code == 2 && said.contains("--shrink") && said.contains("67108864"), "{code} {said}");
    }
    assert_eq!(common::read(&mut client, 40 << 20, 4096), noise(1, 4096), "nobody was disconnected, nothing is lost");
    drop(client);
    let resized = |args: &[&str]| pool.json(&[&["volume", "resize", "disk"], args].concat())["size_bytes"].clone();
    while pool.run(&["volume", "resize", "disk", "64M"]).status.code() == Some(4) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(resized(&["32M", "--shrink"]), 32 << 20);
    assert_eq!(resized(&["128M"]), 128 << 20);
}

#[test]
fn wrong_numbers_on_the_control_socket_are_called_wrong_not_missing() {
    let pool = Pool::serving();
    let mut control = pool.control();
    let mut said = |line: &str| control.ask(line)["error"]["message"].as_str().unwrap_or_default().to_owned();
    let negative = said(r#"{"op":"volume.create","volume":"x","size_bytes":-1}"#);
    assert!(negative.contains("whole number") && negative.contains("-1"), "{negative}");
    assert!(said(r#"{"op":"volume.create","volume":"x"}"#).contains("missing"));
    assert!(said(r#"{"op":"volume.create","volume":7,"size_bytes":4096}"#).contains("must be a string"));
}
