//! Journals that were not replayed: what is read then is what e2fsck makes of a copy.

mod common;

use common::{debugfs, mke2fs, run, tree};
use fs_inspect::Tree;
use std::fs;
use std::path::Path;

fn file(tree: &dyn Tree, name: &[u8]) -> Vec<u8> {
    let inode = tree.lookup(tree.root(), name).expect("a file");
    let mut bytes = vec![0; tree.attributes(inode).expect("a file").size as usize];
    tree.read(inode, 0, &mut bytes).expect("its bytes");
    bytes
}

fn block_of(image: &Path, name: &str) -> u64 {
    debugfs(image, &format!("bmap {name} 0\n"))
        .lines()
        .last()
        .and_then(|line| line.trim().parse().ok())
        .expect("a block")
}

#[test]
fn what_a_journal_holds_is_read_as_e2fsck_replays_it() {
    for (options, open) in [
        (&["-t", "ext4", "-b", "1024"][..], "jo"),
        (&["-t", "ext4", "-b", "4096"], "jo -c"),
        (&["-t", "ext4", "-b", "1024", "-O", "^64bit,^metadata_csum"], "jo"),
        (&["-t", "ext3", "-b", "1024"], "jo"),
    ] {
        let scratch = tempfile::tempdir().expect("a folder");
        let at = |name: &str| scratch.path().join(name);
        let size: usize = options.iter().find_map(|option| option.parse().ok()).expect("a block size");
        fs::create_dir(at("folder")).expect("a folder");
        for name in ["one", "two", "three"] {
            fs::write(at("folder").join(name), vec![b'a'; size]).expect("a file");
        }
        let image = at("image");
        mke2fs(&image, Some(&at("folder")), "32M", options);
        let [one, two, three] = ["one", "two", "three"].map(|name| block_of(&image, name));
        // The journal's own magic at a block's start is escaped there.
        let magic = [&[0xc0, 0x3b, 0x39, 0x98][..], &vec![b'm'; size - 4]].concat();
        for (name, bytes) in [("b", vec![b'b'; size]), ("c", vec![b'c'; size]), ("m", magic.clone())] {
            fs::write(at(name), bytes).expect("a file");
        }
        let [b, c, m] = ["b", "c", "m"].map(|name| at(name).display().to_string());
        let script =
            format!("{open}\njw -b {one} {b}\njw -b {two} {b}\njw -b {one} {c}\njw -r {two}\njw -b {three} {m}\njc\n");
        debugfs(&image, &script);
        let unclean = tree(&image);
        assert!(!unclean.overlaid().is_empty(), "{options:?}: there is something to replay");
        assert!(file(&*unclean, b"one") == vec![b'c'; size], "{options:?}: the later of two");
        assert!(file(&*unclean, b"two") == vec![b'a'; size], "{options:?}: revoked");
        assert!(file(&*unclean, b"three") == magic, "{options:?}: escaped");
        let copy = at("copy");
        fs::copy(&image, &copy).expect("a copy");
        run("e2fsck", &["-p".as_ref(), "-E".as_ref(), "journal_only".as_ref(), copy.as_os_str()]);
        let clean = tree(&copy);
        assert!(clean.overlaid().is_empty(), "{options:?}: it was replayed");
        for name in [&b"one"[..], b"two", b"three"] {
            assert!(file(&*clean, name) == file(&*unclean, name), "{options:?}");
        }
        // Without its commit the last transaction does not count; those before it do.
        let mut bytes = fs::read(&image).expect("an image");
        let commit = |at: &usize| bytes[*at..].starts_with(&[0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2]);
        let last = (0..bytes.len()).step_by(size).filter(commit).max_by_key(|at| bytes[at + 8..at + 12].to_vec());
        bytes[last.expect("a commit")..][..size].fill(0);
        fs::write(&image, bytes).expect("an image");
        let cut = tree(&image);
        assert!(file(&*cut, b"three") == vec![b'a'; size] && file(&*cut, b"one") == vec![b'c'; size], "{options:?}");
    }
}
