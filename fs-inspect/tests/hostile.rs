//! Images that somebody made to harm: whatever they hold, reading ends, in few reads, without a panic.
//! `CAIRN_MUTANTS` for the long form.

mod common;

use common::{debugfs, fill, mke2fs, tree, Rng};
use fs_inspect::diff;
use fs_inspect::testing::survive;
use std::fs;
use std::io::Read;
use std::path::Path;

fn image(scratch: &Path, options: &[&str], seed: u64) -> Vec<u8> {
    let (folder, image) = (scratch.join(format!("folder {seed}")), scratch.join(format!("image {seed}")));
    fs::create_dir(&folder).expect("a folder");
    fill(&folder, &mut Rng(seed));
    mke2fs(&image, Some(&folder), "20M", options);
    fs::read(&image).expect("an image")
}

/// Without checksums nothing is noticed before it is used. Half of the changes are in the first blocks, where everything
/// begins, the others where metadata is found by its marks.
#[test]
fn mutants_end_without_panics() {
    let mutants = std::env::var("CAIRN_MUTANTS").ok().and_then(|n| n.parse().ok()).unwrap_or(120);
    let scratch = tempfile::tempdir().expect("a folder");
    let bases = [
        image(scratch.path(), &["-t", "ext4", "-O", "^metadata_csum", "-b", "1024"], 1),
        image(scratch.path(), &["-t", "ext4", "-O", "^metadata_csum,inline_data"], 2),
        image(scratch.path(), &["-t", "ext2", "-b", "1024"], 3),
    ];
    let mut rng = Rng(99);
    for n in 0..mutants {
        let mut bytes = bases[n % bases.len()].clone();
        let marks: Vec<usize> = (0..bytes.len() - 2)
            .step_by(128)
            .filter(|at| {
                bytes[at + 40..].starts_with(&[0x0a, 0xf3])
                    || bytes[*at..].starts_with(&[0x0a, 0xf3])
                    || bytes[at + 4..].starts_with(&[12, 0, 1])
            })
            .collect();
        for _ in 0..1 + rng.below(12) {
            let near = match rng.below(3) {
                0 => 1024 + rng.below(1024) as usize,
                1 => rng.below(400 << 10) as usize,
                _ => marks[rng.below(marks.len() as u64) as usize] + rng.below(200) as usize,
            };
            let at = near.min(bytes.len() - 8);
            match rng.below(4) {
                0 => bytes[at] ^= 1 << rng.below(8),
                1 => bytes[at] = rng.next() as u8,
                2 => bytes[at..at + 4].fill(0xff),
                _ => {
                    let from = rng.below(bytes.len() as u64 - 64) as usize;
                    bytes.copy_within(from..from + 8, at);
                }
            }
        }
        survive(bytes, &format!("mutant {n}"));
    }
}

/// The same with a journal that is not clean, changed in its own blocks.
#[test]
fn mutants_of_journals_end_without_panics() {
    let scratch = tempfile::tempdir().expect("a folder");
    let path = scratch.path().join("image");
    mke2fs(&path, None, "16M", &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-J", "size=1"]);
    fs::write(scratch.path().join("b"), [7; 1024]).expect("a file");
    let b = scratch.path().join("b");
    debugfs(&path, &format!("jo\njw -b 300 {0}\njw -r 400\njw -b 301 {0}\njc\n", b.display()));
    let base = fs::read(&path).expect("an image");
    let blocks: Vec<usize> =
        (0..base.len()).step_by(1024).filter(|at| base[*at..].starts_with(&[0xc0, 0x3b, 0x39, 0x98])).collect();
    assert!(blocks.len() > 3, "the journal's blocks are found");
    let mut rng = Rng(7);
    for n in 0..150 {
        let mut bytes = base.clone();
        for _ in 0..1 + rng.below(6) {
            let at = blocks[rng.below(blocks.len() as u64) as usize] + rng.below(128) as usize;
            bytes[at] = [0, 0xff, rng.next() as u8][rng.below(3) as usize];
        }
        survive(bytes, &format!("journal {n}"));
    }
}

#[test]
fn crafted_images_end() {
    let scratch = tempfile::tempdir().expect("a folder");
    let path = scratch.path().join("image");
    let small = scratch.path().join("small");
    fs::write(&small, [b'x'; 3000]).expect("a file");
    let craft = |commands: &str| {
        mke2fs(&path, None, "16M", &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"]);
        debugfs(&path, commands);
        // A superblock that claims more makes debugfs lengthen the file.
        let mut bytes = Vec::new();
        fs::File::open(&path).expect("an image").take(16 << 20).read_to_end(&mut bytes).expect("its bytes");
        fs::remove_file(&path).expect("it goes");
        bytes
    };
    // A folder in itself, one in two places, a deep chain.
    survive(craft("mkdir a\nmkdir a/b\nln a a/b/a\nln / a/root\nln a second\n"), "folders in themselves");
    let deep: String = (0..700)
        .scan(String::from("d"), |path, _| {
            let line = format!("mkdir {path}\n");
            path.push_str("/d");
            (path.len() < 900).then_some(line)
        })
        .collect();
    survive(craft(&deep), "a deep chain");
    // Sizes beyond all disks, with and without blocks.
    survive(craft("mkdir a\nset_inode_field a size 0x7fffffff\n"), "a large folder");
    for field in [
        "size 0x7fffffff",
        "size_high 0x7fffffff",
        "block[0] 0xfffffff0",
        "flags 0x10000000",
        "flags 0",
        "file_acl 0xfffffff0",
    ] {
        survive(craft(&format!("mkdir a\nwrite {} a/file\nset_inode_field a/file {field}\n", small.display())), field);
    }
    for field in [
        "log_block_size 60",
        "inodes_per_group 0",
        "blocks_per_group 0",
        "inode_size 0",
        "inode_size 65535",
        "blocks_count 0xffffffff",
        "first_data_block 0xffffffff",
        "desc_size 1",
        "inodes_count 0xffffffff",
    ] {
        survive(craft(&format!("set_super_value {field}\n")), field);
    }
}

/// Found by the fuzz target `ext4_image`: the descriptors' place was computed to lie before the disk.
#[test]
fn a_first_block_that_lies_anywhere_is_damage() {
    let scratch = tempfile::tempdir().expect("a folder");
    let path = scratch.path().join("image");
    for block in [2u32, 3, 1000, u32::MAX] {
        mke2fs(&path, None, "4M", &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,meta_bg,^resize_inode"]);
        let mut bytes = fs::read(&path).expect("an image");
        bytes[1024 + 0x14..1024 + 0x18].copy_from_slice(&block.to_le_bytes());
        // Descriptors lie in their own groups from the first one on.
        bytes[1024 + 0x104..1024 + 0x108].fill(0);
        survive(bytes, &format!("a first block {block}"));
    }
}

/// Makes `name` a file of four million blocks, all of them its first one: tables of pointers that lead to one table each.
fn repeat_first_block(path: &Path, scratch: &Path, name: &str) {
    let block = |name: &str| {
        let told = debugfs(path, &format!("bmap {name} 0\n"));
        told.trim().lines().last().and_then(|line| line.trim().parse::<u32>().ok()).expect("a block")
    };
    let mut below = block(name);
    for (table, field) in [("one", "IND"), ("two", "DIND"), ("three", "TIND")] {
        let bytes = scratch.join(table);
        fs::write(&bytes, below.to_le_bytes().repeat(256)).expect("a table");
        debugfs(path, &format!("write {} {table}\n", bytes.display()));
        below = block(table);
        debugfs(path, &format!("set_inode_field {name} block[{field}] {below}\n"));
    }
    debugfs(path, &format!("set_inode_field {name} size 0xfffffc00\n"));
}

/// Listing it took seconds, and a lookup as long.
#[test]
fn a_directory_of_one_block_over_and_over_is_damage() {
    let scratch = tempfile::tempdir().expect("a folder");
    let path = scratch.path().join("image");
    mke2fs(&path, None, "4M", &["-t", "ext2", "-b", "1024"]);
    debugfs(&path, "mkdir a\n");
    repeat_first_block(&path, scratch.path(), "a");
    let tree = tree(&path);
    let a = tree.lookup(tree.root(), b"a").expect("the directory");
    let listed = tree.entries(a, 0, &mut |_| true).expect_err("it is longer than any");
    assert!(listed.to_string().contains("longer than any"), "{listed}");
    assert!(tree.lookup(a, b"name").is_err());
    survive(fs::read(&path).expect("an image"), "one block over and over");
}

/// Found by the fuzz target `ext4_image`: what is compared at most followed from the size that the superblock claims.
#[test]
fn a_disk_that_claims_to_be_large_is_compared_no_longer() {
    let scratch = tempfile::tempdir().expect("a folder");
    let path = scratch.path().join("image");
    mke2fs(&path, None, "4M", &["-t", "ext2", "-b", "1024"]);
    let content = scratch.path().join("content");
    fs::write(&content, [7; 1024]).expect("a file");
    debugfs(&path, &format!("write {} file\n", content.display()));
    repeat_first_block(&path, scratch.path(), "file");
    let mut bytes = fs::read(&path).expect("an image");
    // Of blocks.
    bytes[1024 + 4..1024 + 8].fill(0xff);
    fs::write(&path, bytes).expect("an image");
    let tree = tree(&path);
    let compared = diff(&*tree, &*tree, std::iter::once(0..u64::MAX).collect());
    let why = compared.expect_err("its files claim more than it has").to_string();
    assert!(why.contains("more than the disk has"), "{why}");
}
