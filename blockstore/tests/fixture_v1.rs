//! A pool as format version 1 left it must open for ever, with the same contents; and so with every
//! version after it.
//!
//! A fixture is text: `file NAME LENGTH`, then `OFFSET COUNT HEX`: COUNT repetitions of 16 bytes;
//! what is not mentioned is zero. It was made by `write_the_fixture`, killed in the middle of a log:
//! it holds a packed segment, map pages, an anchor and an unanchored tail.

use blockstore::testing::{SimClock, SimDisk};
use blockstore::{CheckpointName, Cleaning, Pool, PoolOptions, VolumeId};
use std::fmt::Write;
use std::io::IoSlice;
use std::sync::Arc;

const BLOCK: u64 = 4096;
const ROW: usize = 16;
const FIXTURES: [&str; 4] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pool-v1.txt"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pool-v2.txt"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pool-v3.txt"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pool-v4.txt"),
];
/// What `write_the_fixture` writes.
const NEWEST: &str = FIXTURES[FIXTURES.len() - 1];

fn open(disk: &SimDisk) -> Pool {
    let options = PoolOptions { map_cache: 1 << 20, anchor_bytes: 1 << 40 };
    Pool::open(disk.handle(), Arc::new(SimClock::default()), options).unwrap().0
}

fn load(text: &str) -> SimDisk {
    let disk = SimDisk::new();
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let mut word = || words.next().expect("three words in a line");
        let (first, second, third) = (word(), word(), word());
        if first == "file" {
            files.push((second.to_owned(), vec![0; third.parse().unwrap()]));
            continue;
        }
        let row: Vec<u8> =
            (0..third.len()).step_by(2).map(|i| u8::from_str_radix(&third[i..i + 2], 16).unwrap()).collect();
        let bytes = row.repeat(second.parse().unwrap());
        let at = usize::from_str_radix(first, 16).unwrap();
        files.last_mut().expect("a file line comes first").1[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    for (name, bytes) in files {
        disk.handle().create(&name).unwrap().write_at(&[IoSlice::new(&bytes)], 0).unwrap();
    }
    disk.handle().sync_names().unwrap();
    disk
}

fn save(disk: &SimDisk) -> String {
    let mut out = String::new();
    for name in disk.names() {
        let mut content = Vec::new();
        disk.edit(&name, |bytes| content.clone_from(bytes));
        writeln!(out, "file {name} {}", content.len()).unwrap();
        let rows: Vec<&[u8]> = content.chunks(ROW).collect();
        let mut at = 0;
        while at < rows.len() {
            let count = rows[at..].iter().take_while(|row| **row == rows[at]).count();
            if rows[at].iter().any(|b| *b != 0) {
                let hex: String = rows[at].iter().map(|b| format!("{b:02x}")).collect();
                writeln!(out, "{:x} {count} {hex}", at * ROW).unwrap();
            }
            at += count;
        }
    }
    out
}

fn checkpoint(pool: &mut Pool, volume: VolumeId, comment: &str) {
    let (_, job) = pool.create_checkpoint(volume, comment).unwrap();
    pool.finish(job).unwrap();
}

#[test]
#[ignore = "writes the fixture; run it by hand, once, for a new format version"]
#[expect(clippy::disallowed_methods, reason = "the fixture is a real file")]
fn write_the_fixture() {
    let disk = SimDisk::new();
    Pool::create(&disk.handle(), &SimClock::default(), *b"fixture of v1 \xc3\xa9").unwrap();
    let mut pool = open(&disk);
    let (main, job) = pool.create_volume("main", 1 << 30).unwrap();
    pool.finish(job).unwrap();
    // One segment and a little more; nearly all of it dies, so that it is packed.
    for mib in 0..34u64 {
        pool.write(main, mib << 20, &[mib as u8 + 1; 1 << 20]).unwrap();
    }
    checkpoint(&mut pool, main, "first");
    pool.trim(main, BLOCK, (34 << 20) - 2 * BLOCK).unwrap();
    let job = pool.delete_checkpoint(main, CheckpointName::parse("v1").unwrap()).unwrap();
    pool.finish(job).unwrap();
    pool.maintain().unwrap();
    checkpoint(&mut pool, main, "two blocks: the first and the last");
    // An unaligned write, a fork of a checkpoint, a restore with its undo, a resize.
    pool.write(main, 5 * BLOCK + 100, &[0xaa; 300]).unwrap();
    let (fork, job) = pool.fork(main, CheckpointName::parse("v2"), "fork").unwrap();
    pool.finish(job).unwrap();
    pool.write(fork, 7 * BLOCK, &[0xbb; 2 * BLOCK as usize]).unwrap();
    pool.anchor(Cleaning::Busy).unwrap();
    let (_, job) = pool.restore(main, CheckpointName::parse("v2").unwrap()).unwrap();
    pool.finish(job).unwrap();
    pool.write(main, 9 * BLOCK, &[0xcc; BLOCK as usize]).unwrap();
    let job = pool.resize_volume(fork, 2 << 30).unwrap();
    pool.finish(job).unwrap();
    let (gone, job) = pool.create_volume("gone", 1 << 20).unwrap();
    pool.finish(job).unwrap();
    pool.write(gone, 0, &[0xdd; BLOCK as usize]).unwrap();
    let job = pool.delete_volume(gone).unwrap();
    pool.finish(job).unwrap();
    drop(pool);
    std::fs::write(NEWEST, save(&disk.after_kill())).unwrap();
}

/// Blocks that are not zero, each with the byte at offset 100 and the one at offset 4000.
fn contents(pool: &mut Pool, volume: &str, at: Option<&str>) -> Vec<(u64, u8, u8)> {
    let id = pool.volume_id(volume).unwrap();
    let view = pool.view(id, at.map(|name| CheckpointName::parse(name).unwrap())).unwrap();
    let size = pool.view_size(view).unwrap();
    let mut found = Vec::new();
    let mut offset = 0;
    for extent in pool.extents(view, 0, size, 1000).unwrap() {
        for at in (offset..offset + extent.len).step_by(BLOCK as usize).filter(|_| !extent.hole) {
            let mut block = [0; BLOCK as usize];
            pool.read(view, at, &mut block).unwrap();
            found.push((at / BLOCK, block[100], block[4000]));
        }
        offset += extent.len;
    }
    assert_eq!(offset, size);
    found
}

fn verify(pool: &mut Pool) {
    let last = (34 << 8) - 1;
    assert_eq!(contents(pool, "main", None), [(0, 1, 1), (9, 0xcc, 0xcc), (last, 34, 34)]);
    assert_eq!(contents(pool, "main", Some("v2")), [(0, 1, 1), (last, 34, 34)]);
    assert_eq!(contents(pool, "main", Some("auto-1")), [(0, 1, 1), (5, 0xaa, 0), (last, 34, 34)]);
    assert_eq!(contents(pool, "fork", None), [(0, 1, 1), (7, 0xbb, 0xbb), (8, 0xbb, 0xbb), (last, 34, 34)]);
    assert!(pool.volume_id("gone").is_err());
    let main = pool.volume_id("main").unwrap();
    let names: Vec<_> =
        pool.checkpoints(main).unwrap().iter().map(|c| (c.name.to_string(), c.comment.clone())).collect();
    let comment = |text: &str| text.to_owned();
    let v2 = ("v2".to_owned(), comment("two blocks: the first and the last"));
    assert_eq!(names, [v2, ("auto-1".to_owned(), comment("before restore of v2"))]);
    let fork = pool.volume_info(pool.volume_id("fork").unwrap()).unwrap();
    assert_eq!(
        (fork.size, fork.parent.map(|(volume, name)| format!("{volume}@{name}"))),
        (2 << 30, Some("main@v2".into()))
    );
}

#[test]
fn a_pool_of_every_version_opens_with_its_contents() {
    FIXTURES.iter().for_each(|path| opens_with_its_contents(path));
}

fn opens_with_its_contents(path: &str) {
    let disk = load(&std::fs::read_to_string(path).unwrap());
    let mut pool = open(&disk);
    verify(&mut pool);
    // What this program makes of it serves as well: cleaned, anchored, written to, opened again.
    let main = pool.volume_id("main").unwrap();
    pool.write(main, 9 * BLOCK, &[0xcc; BLOCK as usize]).unwrap();
    pool.flush(main).unwrap();
    pool.maintain().unwrap();
    assert_eq!(pool.check().unwrap().problems, Vec::<String>::new());
    drop(pool);
    verify(&mut open(&disk.after_kill()));
}

/// The fixtures are no easy ones: they have all that a pool can have.
#[test]
fn the_fixtures_have_a_packed_segment_and_an_unanchored_tail() {
    FIXTURES.iter().for_each(|path| has_a_packed_segment_and_an_unanchored_tail(path));
}

fn has_a_packed_segment_and_an_unanchored_tail(path: &str) {
    let disk = load(&std::fs::read_to_string(path).unwrap());
    let packed = disk.names().iter().filter(|name| name.starts_with("seg-")).any(|name| {
        let mut packed = false;
        disk.edit(name, |bytes| packed = bytes[7] == 1);
        packed
    });
    assert!(packed);
    let options = PoolOptions::default();
    let (_, report) = Pool::open(disk.handle(), Arc::new(SimClock::default()), options).unwrap();
    assert_eq!((report.batches, report.records), (6, 6));
}

/// Each is of its version: the anchor says so.
#[test]
fn the_fixtures_are_of_different_versions() {
    let version = |path: &str| {
        let disk = load(&std::fs::read_to_string(path).unwrap());
        let anchor = disk.names().into_iter().find(|name| name.starts_with("anchor-")).unwrap();
        let mut version = 0;
        disk.edit(&anchor, |bytes| version = bytes[8]);
        version
    };
    assert_eq!(FIXTURES.map(version), [1, 2, 3, 4]);
}
