//! Everything the fuzzer starts from, and everything it has ever found, once more; and how its seeds were made.

mod common;

use common::{debugfs, mke2fs, Rng};
use fs_inspect::testing::{image, packed, unpacked, MODE_CHECKED};
use std::fs;
use std::path::{Path, PathBuf};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/ext4_image")
}

fn inputs() -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(corpus()).expect("the corpus is part of the source");
    let mut all: Vec<_> = entries.map(|entry| entry.expect("an input").path()).collect();
    all.sort();
    all.into_iter().map(|path| (path.clone(), fs::read(path).expect("an input"))).collect()
}

#[test]
fn ext4_images() {
    let all = inputs();
    assert!(all.len() >= SEEDS.len(), "only {} inputs", all.len());
    for (path, input) in all {
        eprintln!("{}", path.display());
        image(&input);
    }
}

/// What a fuzzer does first, without one: a few bytes of each input changed, the same ones in every run.
#[test]
fn ext4_images_with_bytes_changed() {
    let mut rng = Rng(5);
    for (path, input) in inputs() {
        for n in 0..60 {
            let mut changed = input.clone();
            for _ in 0..=rng.below(4) {
                let at = rng.below(changed.len() as u64) as usize;
                changed[at] = rng.next() as u8;
            }
            eprintln!("{} {n}", path.display());
            image(&changed);
        }
    }
}

/// Name, features, and whether the checksums stay.
const SEEDS: [(&str, &[&str], u8); 9] = [
    ("plain", &["-t", "ext4", "-b", "1024"], 0),
    ("checked", &["-t", "ext4", "-b", "1024", "-O", "metadata_csum,64bit"], MODE_CHECKED),
    ("inline", &["-t", "ext4", "-b", "1024", "-O", "inline_data", "-I", "256"], 0),
    ("pointers", &["-t", "ext2", "-b", "1024"], 0),
    ("blocks-of-4096", &["-t", "ext4", "-b", "4096"], 0),
    ("meta-bg", &["-t", "ext4", "-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode,^flex_bg"], 0),
    ("ea-inode", &["-t", "ext4", "-b", "1024", "-O", "ea_inode", "-I", "512"], 0),
    ("clusters", &["-t", "ext4", "-b", "1024", "-O", "bigalloc,^resize_inode", "-C", "4096"], 0),
    ("journal", &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-J", "size=1"], 0),
];

/// Makes the seeds anew, in the folder that `CAIRN_SEEDS_INTO` names.
#[test]
#[ignore = "writes the corpus"]
fn seeds_are_made() {
    let into = PathBuf::from(std::env::var_os("CAIRN_SEEDS_INTO").expect("CAIRN_SEEDS_INTO"));
    let scratch = tempfile::tempdir().expect("a folder");
    let path = scratch.path().join("image");
    for (name, options, mode) in SEEDS {
        let folder = scratch.path().join(name);
        fs::create_dir_all(folder.join("a/b")).expect("a folder");
        small(&folder);
        let journal = name == "journal";
        let size = if journal { "3M" } else { "1500K" };
        let without: &[&str] = if journal || options.contains(&"ext2") { &[] } else { &["-O", "^has_journal"] };
        mke2fs(&path, Some(&folder), size, &[options, without, &["-N", "80"]].concat());
        // A file that lies in many pieces, so that its extents need a block of their own.
        let pieces: String = (0..10).map(|n| format!("fallocate a/pieces {0} {0}\n", n * 3)).collect();
        debugfs(&path, &format!("write /dev/null a/pieces\n{pieces}set_inode_field a/pieces size 30000\n"));
        if journal {
            let block = scratch.path().join("block");
            fs::write(&block, [7; 1024]).expect("a file");
            let block = block.display();
            debugfs(&path, &format!("jo\njw -b 700 {block}\njw -r 701\njw -b 702 {block}\njc\n"));
        }
        let whole = fs::read(&path).expect("an image");
        let input = packed(mode, &whole);
        assert!(unpacked(&input).is_some_and(|found| found.len() == whole.len()), "{name}");
        fs::write(into.join(name), input).expect("a seed");
        fs::remove_file(&path).expect("it goes");
    }
}

/// One of each kind of file, most of them empty.
fn small(folder: &Path) {
    use std::os::unix::fs::symlink;
    for (name, len) in [("empty", 0), ("short", 50), ("long", 3000), ("a/other", 1100)] {
        fs::write(folder.join(name), vec![b'x'; len]).expect("a file");
    }
    symlink("a/b", folder.join("link")).expect("a link");
    symlink("x".repeat(90), folder.join("slow")).expect("a link");
    (0..30).for_each(|n| fs::write(folder.join(format!("a/b/entry-{n}-{}", "n".repeat(30))), "").expect("a file"));
    let _ = fs::hard_link(folder.join("short"), folder.join("a/again"));
    common::set_xattr(&folder.join("short"), "user.short", b"value");
    common::set_xattr(&folder.join("long"), "user.long", &[9; 700]);
}
