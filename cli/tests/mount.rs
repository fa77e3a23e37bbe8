//! Checkpoints as folders, through the kernel: what they show, what happens when things go away, what the inspector can do.

mod common;

use common::{flush, text, until, write, Pool, CAIRN};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{symlink, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;

/// A mount that goes away with the value.
struct Mounted {
    at: PathBuf,
    keeper: i32,
}

impl Mounted {
    fn new(pool: &Pool, volume: Option<&str>) -> Self {
        let at = pool.path("mnt");
        fs::create_dir_all(&at).expect("a folder");
        let mut args = vec!["mount"];
        args.extend(volume);
        args.push(text(&at));
        let answer = pool.json(&args);
        Self { at, keeper: answer["process"].as_i64().expect("a process") as i32 }
    }

    /// The process that looks at images: the keeper's child.
    fn worker(&self) -> i32 {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.keeper)).expect("a keeper");
        children.trim().parse().expect("one child")
    }

    fn is_mounted(&self) -> bool {
        fs::read_to_string("/proc/self/mounts").expect("mounts").contains(text(&self.at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new(CAIRN).args(["umount", "--lazy", text(&self.at)]).output();
    }
}

/// Makes an image of `folder` and writes it to the volume.
fn put(pool: &Pool, volume: &str, folder: &Path) {
    let image = pool.path("image");
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let args = ["-q", "-F", "-t", "ext4", "-d", text(folder), text(&image), "32M"];
    let out = Command::new("mke2fs").args(args).env("PATH", path).output().expect("mke2fs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let (bytes, mut client) = (fs::read(&image).expect("an image"), pool.nbd(volume));
    for (at, piece) in bytes.chunks(MIB as usize).enumerate().filter(|(_, piece)| piece.iter().any(|byte| *byte != 0)) {
        write(&mut client, at as u64 * MIB, piece);
    }
    flush(&mut client);
}

/// A pool with a daemon, and a disk with files on it.
fn disk() -> Pool {
    let mut pool = Pool::new();
    pool.serve(&[]);
    let folder = pool.path("folder");
    fs::create_dir_all(folder.join("etc")).expect("a folder");
    fs::write(folder.join("etc/hosts"), "127.0.0.1 localhost\n").expect("a file");
    fs::write(folder.join("large"), common::noise(3, 3 << 20)).expect("a file");
    let sparse = File::create(folder.join("sparse")).expect("a file");
    sparse.write_all_at(b"end", 5 << 20).expect("an end");
    symlink("/etc/passwd", folder.join("out")).expect("a link");
    pool.json(&["volume", "create", "disk", "--size", "32M"]);
    put(&pool, "disk", &folder);
    pool
}

fn checkpoint(pool: &Pool, volume: &str) {
    pool.json(&["checkpoint", "create", volume]);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn checkpoints_are_folders_and_new_ones_appear() {
    let pool = disk();
    (0..2).for_each(|_| checkpoint(&pool, "disk"));
    let mounted = Mounted::new(&pool, None);
    let (volume, v1) = (mounted.at.join("disk"), mounted.at.join("disk/v1"));
    assert_eq!(names(&mounted.at), ["disk"]);
    assert_eq!(names(&volume), [".all", ".info", ".raw", "latest", "v1", "v2"]);
    assert_eq!(names(&v1), ["etc", "large", "lost+found", "out", "sparse"]);
    assert_eq!(fs::read_to_string(volume.join("latest/etc/hosts")).expect("a file"), "127.0.0.1 localhost\n");
    assert!(fs::read(v1.join("large")).expect("a file") == common::noise(3, 3 << 20));
    assert_eq!(fs::read_link(v1.join("out")).expect("a link"), Path::new("/etc/passwd"));
    assert_eq!(fs::read_link(volume.join("latest")).expect("a link"), Path::new("v2"));
    let info: Value = serde_json::from_slice(&fs::read(volume.join(".info/v1.json")).expect("a file")).expect("JSON");
    assert_eq!(info["id"], "v1");
    assert_eq!(fs::read(v1.join("none")).expect_err("nothing").kind(), io::ErrorKind::NotFound);
    assert_eq!(fs::write(v1.join("new"), "x").expect_err("read-only").raw_os_error(), Some(libc::EROFS));
    // Numbers are the same each time, and different in each checkpoint.
    let number = |path: &str| fs::metadata(volume.join(path)).expect("a file").ino();
    assert!(number("v1/large") == number("v1/large") && number("v1/large") != number("v2/large"));
    // The disk itself, with its holes.
    let (image, raw) = (fs::read(pool.path("image")).expect("it"), File::open(volume.join(".raw/v1.img")).expect("it"));
    let mut bytes = Vec::new();
    (&raw).read_to_end(&mut bytes).expect("its bytes");
    assert!(bytes == image);
    let seek = |file: &File, at: i64, whence: i32| {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open.
        unsafe { libc::lseek(file.as_raw_fd(), at, whence) }
    };
    let hole = seek(&raw, 0, libc::SEEK_HOLE);
    assert!(hole > 0 && (hole as u64) < 32 * MIB, "{hole}");
    // It takes what the volume takes, and what is no data is zeros.
    let taken = raw.metadata().expect("its attributes").blocks() * 512;
    let told = pool.json(&["volume", "info", "disk"])["mapped_bytes"].as_u64().expect("a number");
    assert!(taken == told && taken < 16 * MIB, "{taken} of {told}");
    let (mut at, mut data, mut runs) = (0, 0, 0);
    while let Ok(from) = u64::try_from(seek(&raw, at, libc::SEEK_DATA)) {
        assert!(bytes[at as usize..from as usize].iter().all(|byte| *byte == 0), "a hole from {at}");
        at = seek(&raw, from as i64, libc::SEEK_HOLE);
        (data, runs) = (data + (at as u64 - from), runs + 1);
        assert!(at as u64 > from, "data at {from}");
    }
    assert!(bytes[at as usize..].iter().all(|byte| *byte == 0), "a hole from {at} on");
    assert!(data == taken && runs > 2, "{data} bytes of data in {runs} runs");
    let sparse = File::open(v1.join("sparse")).expect("a file");
    assert_eq!((seek(&sparse, 0, libc::SEEK_DATA), seek(&sparse, 0, libc::SEEK_HOLE)), (5 << 20, 0));
    // New ones appear, the sixth-oldest leaves for .all.
    (0..5).for_each(|_| checkpoint(&pool, "disk"));
    until(&pool, "the last five are shown", || {
        names(&volume) == [".all", ".info", ".raw", "latest", "v3", "v4", "v5", "v6", "v7"]
    });
    assert_eq!(fs::read_link(volume.join("latest")).expect("a link"), Path::new("v7"));
    assert!(volume.join(".all/v1/etc/hosts").exists() && !v1.exists());
    let (_, why) = pool.fails(&["umount", text(&mounted.at)]);
    assert!(why.contains("somebody is in it"), "{why}");
    drop((raw, sparse));
    let out = pool.run(&["umount", text(&mounted.at)]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(!mounted.is_mounted() && names(&mounted.at).is_empty());
}

#[test]
fn what_goes_away_is_told_and_the_rest_stays() {
    let mut pool = disk();
    (0..2).for_each(|_| checkpoint(&pool, "disk"));
    let mounted = Mounted::new(&pool, Some("disk"));
    let open = File::open(mounted.at.join("v1/large")).expect("a file");
    let mut byte = [0];
    open.read_exact_at(&mut byte, 0).expect("a byte");
    // Deleted while a file of it is open; a moment after the last read nobody has to be forced.
    until(&pool, "nobody has it open", || pool.run(&["checkpoint", "delete", "disk", "v1"]).status.success());
    until(&pool, "it is stale", || {
        open.read_exact_at(&mut byte, 2 * MIB).is_err_and(|e| e.raw_os_error() == Some(libc::ESTALE))
    });
    until(&pool, "it is gone", || names(&mounted.at) == [".all", ".info", ".raw", "latest", "v2"]);
    assert_eq!(fs::read_to_string(mounted.at.join("v2/etc/hosts")).expect("a file"), "127.0.0.1 localhost\n");
    // The daemon is restarted: the mount finds it again.
    assert!(pool.end(libc::SIGTERM).success());
    pool.serve(&[]);
    assert!(fs::read(mounted.at.join("v2/large")).expect("a file") == common::noise(3, 3 << 20));
    // The inspector is killed: its mount goes, and disturbs nobody.
    let mut client = pool.nbd("disk");
    // SAFETY: the worker is this mount's own.
    assert_eq!(unsafe { libc::kill(mounted.worker(), libc::SIGKILL) }, 0);
    until(&pool, "the mount is gone", || !mounted.is_mounted());
    write(&mut client, 0, &[7; 4096]);
    flush(&mut client);
}

#[test]
fn what_cannot_be_shown_has_a_readme() {
    let pool = disk();
    pool.json(&["volume", "create", "odd", "--size", "16M"]);
    checkpoint(&pool, "odd");
    let mut client = pool.nbd("odd");
    write(&mut client, 0, &[&b"XFSB"[..], &[7; 508]].concat());
    flush(&mut client);
    checkpoint(&pool, "odd");
    // A disk with a table of partitions, one of them empty.
    let mut table = vec![0; 512];
    table[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    write(&mut client, 0, &table);
    flush(&mut client);
    checkpoint(&pool, "odd");
    let mounted = Mounted::new(&pool, Some("odd"));
    for (at, what) in [("v1", "empty"), ("v2", "xfs"), ("v3/p1", "empty")] {
        assert_eq!(names(&mounted.at.join(at)), ["README"], "{at}");
        let readme = fs::read_to_string(mounted.at.join(at).join("README")).expect("a README");
        assert!(readme.contains(what), "{at}: {readme}");
    }
    assert_eq!(names(&mounted.at.join("v3")), ["p1"]);
    assert_eq!(fs::metadata(mounted.at.join(".raw/v2.img")).expect("it").len(), 16 * MIB);
}

/// The inspector tells what it could do when it is in its jail: nothing.
#[test]
fn the_inspector_can_do_nothing_else() {
    let pool = disk();
    checkpoint(&pool, "disk");
    let at = pool.path("mnt");
    fs::create_dir(&at).expect("a folder");
    let mut command = pool.command(&["mount", "--foreground", "disk", text(&at)]);
    let mut keeper =
        command.env("CAIRN_TRY_ESCAPES", "1").stdout(std::process::Stdio::piped()).spawn().expect("it runs");
    let mut out = io::BufReader::new(keeper.stdout.take().expect("its output"));
    let mut line = String::new();
    io::BufRead::read_line(&mut out, &mut line).expect("a line");
    assert_eq!(line, "escapes: []\n");
    // And serves all the same, as a user that owns nothing.
    let mounted = Mounted { at, keeper: keeper.id() as i32 };
    until(&pool, "it is mounted", || mounted.at.join("v1/etc/hosts").exists());
    let status = fs::read_to_string(format!("/proc/{}/status", mounted.worker())).expect("a worker");
    for expected in ["Uid:\t65534\t65534\t65534\t65534", "NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
        assert!(status.contains(expected), "{expected} in {status}");
    }
    assert!(pool.run(&["umount", text(&mounted.at)]).status.success());
    assert!(keeper.wait().expect("a keeper").success());
}

#[test]
fn a_daemon_can_mount_by_itself() {
    let mut pool = disk();
    checkpoint(&pool, "disk");
    assert!(pool.end(libc::SIGTERM).success());
    let at = pool.path("mnt");
    fs::create_dir(&at).expect("a folder");
    pool.serve(&["--mount", text(&at)]);
    let hosts = at.join("disk/v1/etc/hosts");
    until(&pool, "it is mounted", || hosts.exists());
    assert_eq!(fs::read_to_string(hosts).expect("a file"), "127.0.0.1 localhost\n");
    assert!(pool.end(libc::SIGTERM).success());
    assert!(names(&at).is_empty(), "it goes with the daemon");
}

/// The keeper of a mount that was taken away lazily took away the one that had been made in its place.
#[test]
fn a_mount_that_ends_leaves_the_next_one_alone() {
    let pool = disk();
    checkpoint(&pool, "disk");
    let first = Mounted::new(&pool, Some("disk"));
    let open = File::open(first.at.join("v1/etc/hosts")).expect("a file");
    assert!(pool.run(&["umount", "--lazy", text(&first.at)]).status.success());
    let second = Mounted::new(&pool, Some("disk"));
    // The file that is open keeps the first one's worker.
    drop(open);
    until(&pool, "the first keeper has ended", || {
        let status = fs::read_to_string(format!("/proc/{}/stat", first.keeper)).unwrap_or_default();
        status.is_empty() || status.contains(") Z ")
    });
    assert!(second.is_mounted());
    assert_eq!(names(&second.at.join("v1/etc")), ["hosts"]);
}

#[test]
fn what_cannot_be_mounted_is_said_at_once() {
    let pool = disk();
    let (folder, file) = (pool.path("mnt"), pool.path("file"));
    fs::create_dir(&folder).expect("a folder");
    fs::write(&file, "").expect("a file");
    for (args, why) in [
        (vec!["mount", "none", text(&folder)], "none"),
        (vec!["mount", text(&file)], "no folder"),
        (vec!["mount", "/no/such/folder"], "No such file"),
        (vec!["umount", text(&folder)], "nothing is mounted"),
    ] {
        let (_, text) = pool.fails(&args);
        assert!(text.contains(why), "{args:?}: {text}");
    }
}
