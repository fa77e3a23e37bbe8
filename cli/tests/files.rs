//! Files out of checkpoints, beside a daemon and without one.

mod common;

use common::{flush, text, write, Pool};
use std::fs;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

fn program(name: &str, args: &[&str]) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let out = Command::new(name).args(args).env("PATH", path).output().unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(out.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Writes an image to the start of a volume, block by block where it is not zero.
fn put(pool: &Pool, volume: &str, image: &Path) {
    let (bytes, mut client) = (fs::read(image).expect("an image"), pool.nbd(volume));
    for (at, piece) in bytes.chunks(1 << 20).enumerate().filter(|(_, piece)| piece.iter().any(|byte| *byte != 0)) {
        write(&mut client, (at << 20) as u64, piece);
    }
    flush(&mut client);
}

fn stdout(out: &std::process::Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// A disk with files, checkpoint `v1`; some of them changed, checkpoint `v2`.
fn disk() -> Pool {
    let mut pool = Pool::new();
    pool.serve(&[]);
    let (folder, image) = (pool.path("folder"), pool.path("image"));
    fs::create_dir_all(folder.join("etc/deep")).expect("folders");
    fs::write(folder.join("etc/hosts"), "127.0.0.1 localhost\n").expect("a file");
    fs::write(folder.join("etc/deep/large"), common::noise(1, 3 << 20)).expect("a file");
    fs::write(folder.join("tool"), "#!/bin/sh\n").expect("a file");
    fs::set_permissions(folder.join("tool"), fs::Permissions::from_mode(0o4755)).expect("a mode");
    fs::hard_link(folder.join("tool"), folder.join("same")).expect("a link");
    symlink("/etc/passwd", folder.join("out")).expect("a link");
    program("mke2fs", &["-q", "-F", "-t", "ext4", "-d", text(&folder), text(&image), "64M"]);
    pool.json(&["volume", "create", "disk", "--size", "64M"]);
    put(&pool, "disk", &image);
    pool.json(&["checkpoint", "create", "disk"]);
    let (new, commands) = (pool.path("new"), pool.path("commands"));
    fs::write(&new, "new\n").expect("a file");
    let lines = [
        format!("write {} etc/new", text(&new)),
        "rm etc/hosts".to_owned(),
        "ln etc/deep/large etc/moved".to_owned(),
        "unlink etc/deep/large".to_owned(),
        "set_inode_field tool mode 0100700".to_owned(),
    ];
    fs::write(&commands, lines.join("\n")).expect("commands");
    program("debugfs", &["-w", "-f", text(&commands), text(&image)]);
    put(&pool, "disk", &image);
    pool.json(&["checkpoint", "create", "disk"]);
    pool
}

#[test]
fn files_are_compared_printed_and_copied() {
    let mut pool = disk();
    for daemon in [true, false] {
        if !daemon {
            assert!(pool.end(libc::SIGTERM).success());
        }
        let out = pool.run(&["checkpoint", "diff", "disk", "v1", "v2", "--files"]);
        let lines = stdout(&out);
        let expected = [
            "removed    etc/hosts  20 B",
            "renamed    etc/moved  from etc/deep/large",
            "added      etc/new  4 B",
            "attributes same  4755 0:0 -> 0700 0:0",
            "attributes tool  4755 0:0 -> 0700 0:0",
        ];
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected, "{}", String::from_utf8_lossy(&out.stderr));
        let json = pool.json(&["checkpoint", "diff", "disk", "v2", "v1", "--files"]);
        assert_eq!((&json[0]["change"], &json[0]["path"]), (&"renamed".into(), &"etc/deep/large".into()), "{json}");
        assert_eq!(stdout(&pool.run(&["checkpoint", "diff", "disk", "v2", "Current", "--files"])), "no file differs\n");
        assert_eq!(stdout(&pool.run(&["checkpoint", "cat", "disk", "v1", "/etc/hosts"])), "127.0.0.1 localhost\n");
        assert_eq!(stdout(&pool.run(&["checkpoint", "cat", "disk", "Current", "etc/new"])), "new\n");
        for (id, path, code, why) in [
            ("v2", "etc/hosts", 3, "no such file"),
            ("v1", "etc", 2, "folder"),
            ("v1", "out", 2, "not followed"),
            ("v1", "out/x", 3, "no such file"),
            ("v1", "../etc/hosts", 3, "no such file"),
            ("v9", "etc/hosts", 3, "v9"),
        ] {
            let (found, text) = pool.fails(&["checkpoint", "cat", "disk", id, path]);
            assert!(found == code && text.contains(why), "{id} {path}: {found} {text}");
        }
        let copy = pool.path(if daemon { "copy" } else { "again" });
        let made = pool.json(&["checkpoint", "cp", "disk", "v1", "/", text(&copy)]);
        assert_eq!(made["skipped"].as_array().map(Vec::len), Some(0), "{made}");
        assert!(fs::read(copy.join("etc/deep/large")).expect("a file") == common::noise(1, 3 << 20));
        assert_eq!(fs::read_link(copy.join("out")).expect("a link"), Path::new("/etc/passwd"));
        let (tool, same) = (fs::metadata(copy.join("tool")).expect("it"), fs::metadata(copy.join("same")).expect("it"));
        assert_eq!((tool.ino(), tool.mode() & 0o7777), (same.ino(), 0o755), "no set-id bit");
        let (code, text) = pool.fails(&["checkpoint", "cp", "disk", "v1", "/", common::text(&copy.join("etc"))]);
        assert!(code == 4 && text.contains("exists"), "{text}");
        pool.json(&["checkpoint", "cp", "disk", "v2", "etc/new", common::text(&copy)]);
        assert_eq!(fs::read(copy.join("new")).expect("a file"), b"new\n");
    }
}

#[test]
fn what_cannot_be_read_says_what_it_is() {
    let pool = Pool::serving();
    pool.json(&["volume", "create", "empty", "--size", "16M"]);
    pool.json(&["checkpoint", "create", "empty"]);
    let (code, text) = pool.fails(&["checkpoint", "cat", "empty", "v1", "x"]);
    assert!(code == 2 && text.contains("empty"), "{code} {text}");
    let mut client = pool.nbd("empty");
    write(&mut client, 0, &[&b"XFSB"[..], &[7; 508]].concat());
    flush(&mut client);
    let (code, text) = pool.fails(&["checkpoint", "cp", "empty", "Current", "x", common::text(&pool.path("to"))]);
    assert!(code == 2 && text.contains("xfs"), "{code} {text}");
    let (_, text) = pool.fails(&["checkpoint", "diff", "empty", "v1", "Current", "--files"]);
    assert!(text.contains("without --files"), "{text}");
}
