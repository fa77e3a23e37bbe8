//! Images of every feature that mke2fs makes of folders, compared with the folders: names, what `stat` tells, contents,
//! holes, extended attributes. `CAIRN_IMAGES` and `CAIRN_SEED` for the long form.

mod common;

use common::{debugfs, fill, mke2fs, path, tree, xattr, xattr_names, Rng};
use fs_inspect::{FileKind, Inode, Tree};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const FEATURES: [&[&str]; 12] = [
    &["-t", "ext4"],
    &["-t", "ext2"],
    &["-t", "ext3", "-b", "1024"],
    &["-t", "ext4", "-b", "1024", "-O", "metadata_csum,64bit"],
    &["-t", "ext4", "-b", "2048", "-O", "^flex_bg,^64bit"],
    &["-t", "ext4", "-O", "inline_data", "-I", "256"],
    &["-t", "ext4", "-O", "bigalloc", "-C", "16384"],
    &["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"],
    &["-t", "ext4", "-O", "ea_inode,large_dir", "-I", "512"],
    &["-t", "ext4", "-I", "128"],
    &["-t", "ext4", "-O", "^extent,^has_journal,^64bit,sparse_super2,^resize_inode"],
    &["-t", "ext4", "-O", "metadata_csum_seed,project,quota,uninit_bg", "-I", "1024"],
];

#[test]
fn images_agree_with_the_folders_that_they_were_made_of() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let (images, seed) = (number("CAIRN_IMAGES").unwrap_or(FEATURES.len() as u64), number("CAIRN_SEED").unwrap_or(1));
    for n in 0..images {
        let scratch = tempfile::tempdir().expect("a folder");
        let (folder, image) = (scratch.path().join("folder"), scratch.path().join("image"));
        fs::create_dir(&folder).expect("a folder");
        fill(&folder, &mut Rng(seed * 1000 + n));
        let options = FEATURES[n as usize % FEATURES.len()];
        mke2fs(&image, Some(&folder), "64M", options);
        let context = format!("image {n} of seed {seed}, {options:?}");

        let files = compare(&*tree(&image), 2, &folder, &context);
        assert!(files > 24, "{context}: {files} files");
    }
}

/// A kernel makes a directory's first block the root of its index and leaves the end of what was there: it looks like a
/// checksum of names, which the block does not have. (Every directory that a guest had filled was damaged, it seemed.)
#[test]
fn an_index_that_a_kernel_made_is_no_block_of_names() {
    let scratch = tempfile::tempdir().expect("a folder");
    let (folder, image) = (scratch.path().join("folder"), scratch.path().join("image"));
    fs::create_dir_all(folder.join("many")).expect("a folder");
    for n in 0..400 {
        fs::write(folder.join(format!("many/a-name-that-takes-some-room-{n}")), "").expect("a file");
    }
    mke2fs(&image, Some(&folder), "12M", &["-t", "ext4", "-b", "1024"]);
    // Makes the indexes; it says by its status that it changed something.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    std::process::Command::new("e2fsck").args(["-fyD"]).arg(&image).env("PATH", path).output().expect("e2fsck");
    let block: u64 =
        debugfs(&image, "bmap many 0\n").lines().last().expect("a block").trim().parse().expect("a number");
    let file = fs::OpenOptions::new().write(true).open(&image).expect("the image");
    std::os::unix::fs::FileExt::write_all_at(&file, &[12, 0, 0, 0xde], (block + 1) * 1024 - 8).expect("a tail");
    let tree = tree(&image);
    let many = tree.lookup(tree.root(), b"many").expect("the directory");
    let mut names = 0;
    tree.entries(many, 0, &mut |_| (names += 1, true).1).expect("its names");
    assert_eq!(names, 400);
}

fn kind(mode: u32) -> FileKind {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Link,
        libc::S_IFCHR => FileKind::Character,
        libc::S_IFBLK => FileKind::Block,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        _ => FileKind::File,
    }
}

fn compare(tree: &dyn Tree, inode: Inode, folder: &Path, context: &str) -> usize {
    let mut found = BTreeMap::new();
    tree.entries(inode, 0, &mut |entry| found.insert(entry.name.clone(), entry).is_none()).expect(context);
    // Read again from the middle: nothing is told twice or left out.
    let (mut again, mut after) = (Vec::new(), 0);
    loop {
        let before = again.len();
        tree.entries(inode, after, &mut |entry| {
            after = entry.next;
            again.push(entry.name);
            (again.len() - before) % 7 != 0
        })
        .expect(context);
        if again.len() == before {
            break;
        }
    }
    again.sort();
    assert!(again.iter().eq(found.keys()), "{context}: {}", folder.display());
    let expected: Vec<_> = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")).collect();
    found.remove(&b"lost+found"[..]);
    assert_eq!(found.len(), expected.len(), "{context}: {}", folder.display());
    let mut files = 0;
    for entry in expected {
        let name = entry.file_name().as_bytes().to_vec();
        let here = path(folder, &name);
        let what = format!("{context}: {}", here.display());
        let told = found.get(&name).unwrap_or_else(|| panic!("{what} is missing"));
        assert_eq!(tree.lookup(inode, &name).expect(&what), told.inode);
        let (is, meta) = (tree.attributes(told.inode).expect(&what), fs::symlink_metadata(&here).expect(&what));
        assert_eq!((is.kind, told.kind), (kind(meta.mode()), Some(is.kind)), "{what}");
        assert_eq!((u32::from(is.mode), is.uid, is.gid), (meta.mode() & 0o7777, meta.uid(), meta.gid()), "{what}");
        // mke2fs copies the lower 32 bits of whole seconds; later ones may copy more.
        let time = (is.modified.seconds, i64::from(is.modified.nanoseconds));
        let copied = [(meta.mtime(), meta.mtime_nsec()), (i64::from(meta.mtime() as i32), 0)];
        assert!(copied.contains(&time), "{what}: {time:?} of {copied:?}");
        match is.kind {
            FileKind::Directory => {
                assert_eq!(tree.parent(told.inode).expect(&what), inode, "{what}");
                files += compare(tree, told.inode, &here, context);
            }
            FileKind::Link => {
                let target = fs::read_link(&here).expect(&what);
                assert_eq!(tree.link_target(told.inode).expect(&what), target.as_os_str().as_bytes(), "{what}");
            }
            FileKind::Character | FileKind::Block => {
                assert_eq!(is.device, (libc::major(meta.rdev()), libc::minor(meta.rdev())), "{what}");
            }
            FileKind::File => {
                assert_eq!((is.size, u64::from(is.links)), (meta.len(), meta.nlink()), "{what}");
                same_bytes(tree, told.inode, &here, &what);
            }
            FileKind::Fifo | FileKind::Socket => {}
        }
        let names = xattr_names(&here);
        let mut told_names = tree.xattr_names(told.inode).expect(&what);
        told_names.sort();
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(told_names, sorted, "{what}");
        for name in names {
            assert_eq!(Some(tree.xattr(told.inode, &name).expect(&what)), xattr(&here, &name), "{what}");
        }
        files += 1;
    }
    files
}

fn same_bytes(tree: &dyn Tree, inode: Inode, file: &Path, what: &str) {
    let expected = fs::read(file).expect(what);
    let mut found = vec![0xaa; expected.len() + 100];
    assert_eq!(tree.read(inode, 0, &mut found).expect(what), expected.len(), "{what}");
    assert!(found[..expected.len()] == expected, "{what}: other bytes");
    // Pieces that begin and end anywhere.
    for (at, len) in [(1, 4095), (4095, 2), (4096, 4096), (5000, 70_000), (expected.len().saturating_sub(3), 50)] {
        let mut piece = vec![0xaa; len];
        let got = tree.read(inode, at as u64, &mut piece).expect(what);
        let rest = expected.get(at..).unwrap_or_default();
        assert!(piece[..got] == rest[..got] && got == len.min(rest.len()), "{what}: {len} bytes at {at}");
    }
    // What is not told as data is zeros.
    let mut at = 0;
    while let Some(data) = tree.next_data(inode, at).expect(what) {
        assert!(expected[at as usize..data.start as usize].iter().all(|byte| *byte == 0), "{what}: a hole at {at}");
        at = data.end;
    }
    assert!(expected[(at as usize).min(expected.len())..].iter().all(|byte| *byte == 0), "{what}: the last hole");
}
