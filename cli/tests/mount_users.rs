//! Whose mounts are: other users see nothing of a mount unless they are let in, and then what the guest lets others see; a
//! user who is not root mounts, too, by way of the setuid program `fusermount3`.

mod common;

use common::{text, Pool, CAIRN};
use std::fs::{self, Permissions};
use std::os::unix::fs::{chown, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const NOBODY: u32 = 65_534;

/// An image with a file for everybody and one for its owner alone, and an empty folder to mount at.
fn image(pool: &Pool) -> PathBuf {
    let (folder, image) = (pool.path("folder"), pool.path("image"));
    fs::create_dir_all(pool.path("mnt")).expect("a folder");
    fs::create_dir_all(&folder).expect("a folder");
    for (name, mode) in [("open", 0o644), ("closed", 0o600)] {
        fs::write(folder.join(name), name).expect("a file");
        fs::set_permissions(folder.join(name), Permissions::from_mode(mode)).expect("a mode");
    }
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let args = ["-q", "-F", "-t", "ext4", "-d", text(&folder), text(&image), "16M"];
    let made = Command::new("mke2fs").args(args).env("PATH", path).output().expect("mke2fs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // The folder of the pool is this user's alone.
    fs::set_permissions(pool.folder.path(), Permissions::from_mode(0o755)).expect("a mode");
    image
}

/// What `program` says as a user who owns nothing.
fn nobodys(program: &Path, args: &[&str], pool: &Pool) -> Output {
    let mut command = Command::new(program);
    command.args(args).env("CAIRN_POOL", pool.pool()).stdin(Stdio::null()).uid(NOBODY).gid(NOBODY);
    command.output().expect("it runs")
}

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// Ends a mount with the test.
struct Ends<'a>(&'a Path);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let _ = Command::new(CAIRN).args(["umount", "--lazy", text(self.0)]).output();
    }
}

#[test]
fn others_see_nothing_or_what_the_guest_lets_others_see() {
    let mut pool = Pool::new();
    let (image, at) = (image(&pool), pool.path("mnt"));
    pool.serve(&[]);
    pool.json(&["volume", "import", text(&image), "disk"]);
    pool.json(&["checkpoint", "create", "disk"]);
    let cat = |name: &str| nobodys(Path::new("cat"), &[text(&at.join("disk/v1").join(name))], &pool);
    {
        pool.json(&["mount", text(&at)]);
        let _mounted = Ends(&at);
        assert_eq!(fs::read(at.join("disk/v1/closed")).expect("it is root's"), b"closed");
        for name in ["open", "closed"] {
            assert!(said(&cat(name)).contains("Permission denied"), "{}", said(&cat(name)));
        }
    }
    pool.json(&["mount", "--allow-other", text(&at)]);
    let _mounted = Ends(&at);
    assert_eq!(fs::read(at.join("disk/v1/closed")).expect("it is root's"), b"closed");
    assert_eq!(said(&cat("open")), "open");
    assert!(said(&cat("closed")).contains("Permission denied"), "{}", said(&cat("closed")));
}

/// What a user does, in mounts of its own; the first line of what comes out is the file, the last the empty folder.
const USERS: &str = r#"
set -e
"$CAIRN" serve --nbd "unix:$CAIRN_POOL/nbd.sock" 2>"$CAIRN_POOL.log" &
daemon=$!
trap '"$CAIRN" umount --lazy "$AT" 2>/dev/null || true; kill $daemon; wait $daemon' EXIT
for i in $(seq 500); do [ -e "$CAIRN_POOL/nbd.sock" ] && break; sleep 0.02; done
"$CAIRN" volume import "$IMAGE" disk >/dev/null
"$CAIRN" checkpoint create disk >/dev/null
"$CAIRN" mount disk "$AT" >/dev/null
cat "$AT/v1/closed"
echo
stat -c %u "$AT/v1/closed"
"$CAIRN" umount "$AT" >/dev/null
ls -A "$AT" | wc -l
"#;

#[test]
fn a_user_who_is_not_root_mounts() {
    let pool = Pool::new();
    let (image, at) = (image(&pool), pool.path("mnt"));
    // A program and folders that this user can reach, and the device as most machines have it: everybody's.
    let (cairn, script, device) = (pool.path("cairn"), pool.path("script"), pool.path("fuse"));
    fs::copy(CAIRN, &cairn).expect("a copy");
    fs::write(&script, USERS).expect("a script");
    fs::create_dir(pool.pool()).expect("a folder");
    for path in [pool.folder.path(), &pool.pool(), &image, &at] {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("another owner");
    }
    let enter = r#"mknod "$DEVICE" c 10 229 && chmod 666 "$DEVICE" && mount --bind "$DEVICE" /dev/fuse &&
        exec setpriv --reuid 65534 --regid 65534 --clear-groups sh "$SCRIPT""#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", enter]).stdin(Stdio::null());
    let values = [("CAIRN", &cairn), ("SCRIPT", &script), ("DEVICE", &device), ("IMAGE", &image), ("AT", &at)];
    command.envs(values).env("CAIRN_POOL", pool.pool());
    let out = command.output().expect("unshare");
    let told = format!("{}\n{}", said(&out), fs::read_to_string(pool.path("pool.log")).unwrap_or_default());
    assert!(out.status.success(), "{told}");
    assert_eq!(String::from_utf8_lossy(&out.stdout).lines().collect::<Vec<_>>(), ["closed", "0", "0"], "{told}");
}
