//! Folders full of all kinds of files, and images that mke2fs makes of them.

#![allow(dead_code, reason = "each test file uses its own part")]

use fs_inspect::{open, Contents, FileImage, Tree};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Numbers that only look random.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) ^ self.0 >> 7
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

pub fn run(program: &str, args: &[&OsStr]) -> Vec<u8> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let out = Command::new(program).args(args).env("PATH", path).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

pub fn mke2fs(image: &Path, folder: Option<&Path>, size: &str, options: &[&str]) {
    let mut args: Vec<&OsStr> = ["-q", "-F"].map(OsStr::new).to_vec();
    args.extend(options.iter().map(OsStr::new));
    if let Some(folder) = folder {
        args.extend([OsStr::new("-d"), folder.as_os_str()]);
    }
    args.extend([image.as_os_str(), OsStr::new(size)]);
    run("mke2fs", &args);
}

/// Commands to debugfs, which may write.
pub fn debugfs(image: &Path, commands: &str) -> String {
    let file = image.with_extension("commands");
    fs::write(&file, commands).expect("a script");
    let out = run("debugfs", &["-w".as_ref(), "-f".as_ref(), file.as_os_str(), image.as_os_str()]);
    String::from_utf8_lossy(&out).into_owned()
}

pub fn tree(image: &Path) -> Arc<dyn Tree> {
    match contents(image) {
        Contents::Tree(tree) => tree,
        Contents::Partitions(_) => panic!("partitions"),
        Contents::Unreadable { why } => panic!("{why}"),
    }
}

pub fn contents(image: &Path) -> Contents {
    open(Arc::new(FileImage::new(File::open(image).expect("an image")).expect("a size"))).expect("a readable image")
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL")
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> bool {
    let (path, name) = (c(path), CString::new(name).expect("no NUL"));
    // SAFETY: both strings end with NUL, and the value is as long as said.
    unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) == 0 }
}

pub fn xattr(path: &Path, name: &[u8]) -> Option<Vec<u8>> {
    let (path, name) = (c(path), CString::new(name).expect("no NUL"));
    let mut out = vec![0u8; 64 << 10];
    // SAFETY: both strings end with NUL, and no more is written than there is room.
    let len = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), out.as_mut_ptr().cast(), out.len()) };
    out.truncate(usize::try_from(len).ok()?);
    Some(out)
}

pub fn xattr_names(path: &Path) -> Vec<Vec<u8>> {
    let path = c(path);
    let mut out = vec![0u8; 64 << 10];
    // SAFETY: the string ends with NUL, and no more is written than there is room.
    let len = unsafe { libc::llistxattr(path.as_ptr(), out.as_mut_ptr().cast(), out.len()) };
    out.truncate(usize::try_from(len).unwrap_or(0));
    out.split(|b| *b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

fn node(path: &Path, mode: u32, device: u64) {
    // SAFETY: the string ends with NUL.
    assert_eq!(unsafe { libc::mknod(c(path).as_ptr(), mode, device) }, 0, "a node: the test runs as root");
}

fn set_times(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    // SAFETY: the string ends with NUL, and there are two times.
    unsafe { libc::utimensat(libc::AT_FDCWD, c(path).as_ptr(), [time, time].as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
}

/// Fills a folder with every kind of file.
pub fn fill(folder: &Path, rng: &mut Rng) {
    let names: [&[u8]; 6] =
        [b"plain", b"with space", b"line\nbreak", "n\u{e4}me \u{1f4be}".as_bytes(), b"\xff\xfe raw", b"-dash"];
    let mut folders = vec![folder.to_owned()];
    for depth in 0..3 {
        let name = OsStr::from_bytes(names[rng.below(6) as usize]).to_owned();
        let path = folders[rng.below(folders.len() as u64) as usize].join(name).join(format!("d{depth}"));
        fs::create_dir_all(&path).expect("a folder");
        folders.push(path);
    }
    let long = folder.join("l".repeat(255));
    fs::write(&long, b"a name of 255 bytes").expect("a file");
    for n in 0..12 + rng.below(12) {
        let path = folders[rng.below(folders.len() as u64) as usize].join(format!("file {n}"));
        let len = [0, 1, 59, 60, 61, 100, 160, 1023, 4096, 4097, 70_000, 1_300_000][rng.below(12) as usize];
        fs::write(&path, rng.bytes(len)).expect("a file");
        let mode = 0o600 | rng.below(0o200) as u32 | [0, 0o4000, 0o2000, 0o1000][rng.below(4) as usize];
        std::os::unix::fs::chown(&path, Some(rng.below(100_000) as u32), Some(rng.below(100_000) as u32))
            .expect("root");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
        if rng.below(3) == 0 {
            set_xattr(&path, "user.small", &rng.bytes(5));
            set_xattr(&path, "user.large", &rng.bytes(600));
            set_xattr(&path, "security.tag", b"value");
        }
        if rng.below(4) == 0 {
            let entries: [(u16, u16, u32); 5] =
                [(1, 6, !0), (2, 4, 1000 + n as u32), (4, 4, !0), (16, 6, !0), (32, 4, !0)];
            let mut acl = 2u32.to_le_bytes().to_vec();
            for (tag, rights, id) in entries {
                acl.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()).chain(id.to_le_bytes()));
            }
            set_xattr(&path, "system.posix_acl_access", &acl);
        }
        set_times(&path, [0, 1_700_000_000, 4_000_000_000, -5][rng.below(4) as usize], rng.below(1_000_000_000) as i64);
        if rng.below(5) == 0 {
            fs::hard_link(&path, folder.join(format!("link to {n}"))).expect("a link");
        }
    }
    let sparse = File::create(folder.join("sparse")).expect("a file");
    // It ends with data: mke2fs with inline_data forgets a hole at the end.
    for at in [0, 3 << 20, (40 << 20) + 777] {
        sparse.write_all_at(&rng.bytes(5000), at).expect("a piece");
    }
    // More extents, and more pointers, than an inode and one block hold.
    let broken = File::create(folder.join("broken up")).expect("a file");
    for at in 0..900 {
        broken.write_all_at(&rng.bytes(100), at * 8192).expect("a piece");
    }
    symlink("short/target", folder.join("short link")).expect("a link");
    symlink("x/".repeat(100), folder.join("long link")).expect("a link");
    symlink("/etc/passwd", folder.join("out")).expect("a link");
    node(&folder.join("null"), libc::S_IFCHR | 0o666, libc::makedev(1, 3));
    node(&folder.join("disk"), libc::S_IFBLK | 0o640, libc::makedev(259, 70_000));
    node(&folder.join("pipe"), libc::S_IFIFO | 0o600, 0);
    node(&folder.join("socket"), libc::S_IFSOCK | 0o600, 0);
    let many = folder.join("many");
    fs::create_dir(&many).expect("a folder");
    for n in 0..rng.below(3) * 700 {
        fs::write(many.join(format!("{n:05} a name that takes some room in its directory")), []).expect("a file");
    }
}

pub fn path(base: &Path, name: &[u8]) -> PathBuf {
    base.join(OsStr::from_bytes(name))
}
