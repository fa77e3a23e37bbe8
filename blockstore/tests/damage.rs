//! Bit rot, torn and misdirected writes, stale blocks, lost writes, truncated and foreign files: the
//! damage is noticed, or does not matter; never is wrong data returned, and nothing panics.
//!
//! Every byte of every kind of metadata is flipped in turn. "Noticed" means that opening fails, or
//! that the report of the opening or a read names it; a structure that exists twice may serve instead.

use blockstore::testing::{Fault, SimClock, SimDisk};
use blockstore::{CheckpointName, Cleaning, ErrorKind, Pool, PoolOptions, VolumeId};
use std::sync::Arc;

const BLOCK: usize = 4096;
const BLOCKS: usize = 192;
const SIZE: usize = BLOCKS * BLOCK;
/// First of the nine directory pages of a full segment.
const DIRECTORY_SLOT: usize = 8183;

fn try_open(disk: &SimDisk) -> blockstore::Result<(Pool, Vec<String>)> {
    let options = PoolOptions { map_cache: 1 << 18, anchor_bytes: 64 << 20 };
    let opened = Pool::open(disk.handle(), Arc::new(SimClock::default()), options);
    opened.map(|(pool, report)| (pool, report.dropped))
}

fn v1() -> CheckpointName {
    CheckpointName::parse("v1").unwrap()
}

/// A pool that holds every structure there is, and where they are.
struct Sample {
    disk: SimDisk,
    id: VolumeId,
    head: Vec<u8>,
    /// What the head was at each batch of the tail, oldest first, the head itself left out.
    earlier: Vec<Vec<u8>>,
    checkpoint: Vec<u8>,
    anchor: String,
    sealed: String,
    packed: String,
    open: String,
    map: String,
    map_pages: usize,
    /// Slots of batch headers of the open segment: those the anchor covers, and the tail's.
    anchored: Vec<usize>,
    tail: Vec<usize>,
}

fn is_header(bytes: &[u8]) -> bool {
    bytes.starts_with(b"CBAT")
}

fn sample() -> Sample {
    let disk = SimDisk::new();
    Pool::create(&disk.handle(), &SimClock::default(), [7; 16]).unwrap();
    let mut pool = try_open(&disk).unwrap().0;
    let (id, job) = pool.create_volume("disk", SIZE as u64).unwrap();
    pool.finish(job).unwrap();
    let mut head = vec![0; SIZE];
    let mut write = |pool: &mut Pool, block: usize, count: usize, byte: u8| {
        for i in block..block + count {
            head[i * BLOCK..(i + 1) * BLOCK].fill(byte.wrapping_add(i as u8) | 1);
        }
        pool.write(id, (block * BLOCK) as u64, &head[block * BLOCK..(block + count) * BLOCK]).unwrap();
        head.clone()
    };
    // The segment to be packed: most of it dies.
    write(&mut pool, 0, 64, 10);
    pool.seal_log(id).unwrap();
    write(&mut pool, 0, 60, 20);
    let checkpoint = write(&mut pool, 64, 32, 30);
    let (_, job) = pool.create_checkpoint(id, "").unwrap();
    pool.finish(job).unwrap();
    pool.seal_log(id).unwrap();
    for _ in 0..3 {
        pool.anchor(Cleaning::Thorough).unwrap();
        while let Some(job) = pool.clean_job() {
            let outcome = job.run();
            pool.cleaned(job, outcome).unwrap();
        }
    }
    write(&mut pool, 100, 4, 40);
    let last = write(&mut pool, 110, 4, 50);
    pool.anchor(Cleaning::Busy).unwrap();
    let states = [write(&mut pool, 120, 4, 60), write(&mut pool, 4, 4, 70), write(&mut pool, 130, 2, 80)];
    pool.flush(id).unwrap();
    drop(pool);
    let disk = disk.after_kill();
    let names = disk.names();
    let segments: Vec<String> = names.iter().filter(|n| n.starts_with("seg-")).cloned().collect();
    let header = |name: &String| disk.peek(name, 0, BLOCK);
    let own = |name: &&String| header(name)[32] == id.0 as u8;
    let find = |what: &dyn Fn(&String) -> bool| segments.iter().find(|name| what(name)).unwrap().clone();
    let packed = find(&|name| header(name)[7] == 1);
    let map = find(&|name| header(name)[6] == 1 && header(name)[7] == 0);
    let sealed =
        find(&|name| own(&name) && header(name)[7] == 0 && disk.peek(name, DIRECTORY_SLOT * BLOCK, 4) == b"CDIR");
    let open = find(&|name| own(&name) && *name != packed && *name != sealed && header(name)[6] == 0);
    let batches: Vec<usize> = (1..64).filter(|slot| is_header(&disk.peek(&open, slot * BLOCK, 4))).collect();
    let (anchored, tail) = batches.split_at(2);
    assert_eq!((anchored.len(), tail.len()), (2, 3), "{batches:?}");
    let map_pages = (1..).take_while(|slot| disk.peek(&map, slot * BLOCK, 4) == b"CMAP").count();
    let anchor = names.iter().find(|n| n.starts_with("anchor-")).unwrap().clone();
    let earlier = vec![last, states[0].clone(), states[1].clone()];
    let (anchored, tail) = (anchored.to_vec(), tail.to_vec());
    Sample {
        head: states[2].clone(),
        earlier,
        disk,
        id,
        checkpoint,
        anchor,
        sealed,
        packed,
        open,
        map,
        map_pages,
        anchored,
        tail,
    }
}

#[derive(Default, Debug, PartialEq, Eq)]
struct Seen {
    refused: bool,
    reported: bool,
    read_errors: usize,
    /// The head is a shorter prefix of its history.
    older: bool,
}

impl Seen {
    fn noticed(&self) -> bool {
        self.refused || self.reported || self.read_errors > 0
    }
}

impl Sample {
    /// Opens the damaged pool and reads everything, block by block where that fails.
    fn look(&self, disk: &SimDisk, what: &str) -> Seen {
        let (mut pool, dropped) = match try_open(disk) {
            Ok(opened) => opened,
            Err(e) => {
                let named =
                    matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Io);
                assert!(named, "{what}: {e}");
                return Seen { refused: true, ..Seen::default() };
            }
        };
        let mut seen = Seen { reported: !dropped.is_empty(), ..Seen::default() };
        let Ok(head) = pool.view(self.id, None) else { return seen };
        let mut candidates: Vec<&Vec<u8>> = self.earlier.iter().chain([&self.head]).collect();
        seen.read_errors += read(
            &mut pool,
            head,
            |at, bytes| {
                candidates.retain(|state| state[at..at + bytes.len()] == *bytes);
                !candidates.is_empty()
            },
            what,
        );
        seen.older = !candidates.contains(&&self.head);
        if let Ok(view) = pool.view(self.id, Some(v1())) {
            let right = |at: usize, bytes: &[u8]| self.checkpoint[at..at + bytes.len()] == *bytes;
            seen.read_errors += read(&mut pool, view, right, what);
        } else {
            assert!(seen.reported, "{what}: the checkpoint is gone without a word");
        }
        // A log that ends between two batches looks whole: nothing says that there was more.
        let looks_whole = what.starts_with(&format!("{} cut", self.open));
        assert!(!seen.older || seen.noticed() || looks_whole, "{what}: changes are gone without a word");
        seen
    }

    /// Flips each byte of `len` at `offset` in turn, every `step`th; `judge` says whether what is seen is right.
    fn flip(&self, name: &str, offset: usize, len: usize, step: usize, judge: impl Fn(&Seen) -> bool) -> usize {
        let mut flipped = 0;
        for at in (offset..offset + len).step_by(step) {
            let disk = self.disk.after_kill();
            disk.poke(name, at, &[disk.peek(name, at, 1)[0] ^ (1 << (at % 8))]);
            let what = format!("{name} byte {at} flipped");
            let seen = self.look(&disk, &what);
            assert!(judge(&seen), "{what}: {seen:?}");
            flipped += 1;
        }
        flipped
    }
}

/// Reads all of a view; returns the number of blocks that gave an error.
fn read(pool: &mut Pool, view: blockstore::View, mut right: impl FnMut(usize, &[u8]) -> bool, what: &str) -> usize {
    let mut all = vec![0; SIZE];
    if pool.read(view, 0, &mut all).is_ok() {
        assert!(right(0, &all), "{what}: wrong data");
        return 0;
    }
    let mut errors = 0;
    for at in (0..SIZE).step_by(BLOCK) {
        match pool.read(view, at as u64, &mut all[..BLOCK]) {
            Ok(()) => assert!(right(at, &all[..BLOCK]), "{what}: wrong data in block {}", at / BLOCK),
            Err(_) => errors += 1,
        }
    }
    errors
}

#[test]
fn every_flipped_byte_of_metadata_is_noticed() {
    let s = sample();
    let fine = Seen::default();
    assert_eq!(s.look(&s.disk.after_kill(), "undamaged"), fine);
    let mut flipped = s.flip("cairn.pool", 0, BLOCK, 1, |seen| seen.refused);
    let anchor = s.disk.handle().open(&s.anchor).unwrap().len().unwrap() as usize;
    // The anchor is there twice: damage of one copy does not matter, of both it stops the opening.
    flipped += s.flip(&s.anchor, 0, anchor, 7, |seen| *seen == fine);
    for at in (0..anchor / 2).step_by(3) {
        let disk = s.disk.after_kill();
        for place in [at, at + anchor / 2] {
            disk.poke(&s.anchor, place, &[disk.peek(&s.anchor, place, 1)[0] ^ 0x10]);
        }
        assert!(s.look(&disk, &format!("both anchors' byte {at} flipped")).refused);
        flipped += 2;
    }
    for page in 1..=s.map_pages {
        let live = |seen: &Seen| seen.noticed() || page < s.map_pages;
        flipped += s.flip(&s.map, page * BLOCK, BLOCK, if page == s.map_pages { 1 } else { 64 }, live);
    }
    // An open map segment's header is not needed as long as it is open.
    flipped += s.flip(&s.map, 0, BLOCK, 16, |seen| !seen.older);
    for name in [&s.sealed, &s.packed] {
        flipped += s.flip(name, 0, BLOCK, 1, |seen| seen.read_errors > 0);
    }
    flipped += s.flip(&s.sealed, DIRECTORY_SLOT * BLOCK, BLOCK, 1, |seen| seen.read_errors > 0);
    flipped += s.flip(&s.packed, BLOCK, BLOCK, 1, |seen| seen.read_errors > 0);
    flipped += s.flip(&s.open, 0, BLOCK, 1, |seen| seen.reported && seen.read_errors == 0);
    for slot in &s.anchored {
        flipped += s.flip(&s.open, slot * BLOCK, BLOCK, 1, |seen| seen.reported && seen.read_errors > 0);
    }
    for slot in &s.tail {
        flipped += s.flip(&s.open, slot * BLOCK, BLOCK, 1, |seen| seen.reported && seen.older);
    }
    println!("{flipped} bytes of metadata flipped, 100 % noticed or of no consequence, 0 wrong reads");
    assert!(flipped > 40_000);
}

#[test]
fn every_flipped_block_of_data_is_noticed() {
    let s = sample();
    let mut flipped = 0;
    for slot in 1..128 {
        for name in [&s.sealed, &s.packed, &s.open] {
            let at = slot * BLOCK + (slot * 97) % BLOCK;
            let disk = s.disk.after_kill();
            disk.poke(name, at, &[disk.peek(name, at, 1)[0] ^ 4]);
            s.look(&disk, &format!("{name} slot {slot} flipped"));
            flipped += 1;
        }
    }
    // Data that lives is data whose damage shows.
    let disk = s.disk.after_kill();
    disk.poke(&s.open, (s.anchored[0] + 1) * BLOCK, &[0xee]);
    assert_eq!(s.look(&disk, "live data flipped").read_errors, 1);
    println!("{flipped} blocks of data flipped, 0 wrong reads");
}

/// A misdirected write puts a good block in the wrong place; a stale one was good in its time.
#[test]
fn swapped_and_stale_blocks_are_noticed() {
    let s = sample();
    let files = [&s.sealed, &s.packed, &s.open, &s.map];
    let mut swaps = 0;
    for (i, name) in files.iter().enumerate() {
        for slot in 0..12 {
            for (other, place) in
                [(*name, slot + 1), (*name, slot + 5), (files[(i + 1) % 4], slot), (files[(i + 2) % 4], slot + 2)]
            {
                let disk = s.disk.after_kill();
                let (a, b) = (disk.peek(name, slot * BLOCK, BLOCK), disk.peek(other, place * BLOCK, BLOCK));
                disk.poke(name, slot * BLOCK, &b);
                disk.poke(other, place * BLOCK, &a);
                s.look(&disk, &format!("{name} slot {slot} swapped with {other} slot {place}"));
                swaps += 1;
            }
        }
    }
    let disk = s.disk.after_kill();
    let (a, b) = (s.anchored[0] + 1, s.anchored[0] + 3);
    let (first, second) = (disk.peek(&s.open, a * BLOCK, BLOCK), disk.peek(&s.open, b * BLOCK, BLOCK));
    disk.poke(&s.open, a * BLOCK, &second);
    disk.poke(&s.open, b * BLOCK, &first);
    assert_eq!(s.look(&disk, "live data swapped").read_errors, 2);
    println!("{swaps} pairs of blocks swapped, 0 wrong reads");
}

#[test]
fn truncated_and_missing_files_are_noticed() {
    let s = sample();
    let mut cases = 0;
    for name in s.disk.names().into_iter().filter(|name| !name.starts_with("reserve")) {
        let len = s.disk.handle().open(&name).unwrap().len().unwrap() as usize;
        let near = (0..=40).map(|i| i * BLOCK / 2).chain([len / 2, len - 1, len.saturating_sub(BLOCK)]);
        for cut in near.filter(|cut| *cut < len) {
            let disk = s.disk.after_kill();
            disk.truncate(&name, cut);
            s.look(&disk, &format!("{name} cut to {cut}"));
            cases += 1;
        }
        let disk = s.disk.after_kill();
        disk.handle().remove(&name).unwrap();
        let seen = s.look(&disk, &format!("{name} removed"));
        assert!(seen.noticed() || !name.starts_with("seg-"), "{name} removed: {seen:?}");
        cases += 1;
    }
    println!("{cases} files cut or removed, 0 wrong reads");
}

/// A disk that loses a write and says that it did not: the loss shows when it is read.
#[test]
fn a_lost_write_is_noticed() {
    let mut lost = 0;
    for call in 1.. {
        let disk = SimDisk::new();
        Pool::create(&disk.handle(), &SimClock::default(), [7; 16]).unwrap();
        let mut pool = try_open(&disk).unwrap().0;
        let (id, job) = pool.create_volume("disk", SIZE as u64).unwrap();
        pool.finish(job).unwrap();
        pool.write(id, 0, &[1; 8 * BLOCK]).unwrap();
        pool.flush(id).unwrap();
        let at = disk.calls() + call;
        disk.inject(at, Fault::LostWrite);
        pool.write(id, 0, &[2; 4 * BLOCK]).unwrap();
        pool.write(id, 16384, &[3; 2 * BLOCK]).unwrap();
        pool.seal_log(id).unwrap();
        pool.anchor(Cleaning::Busy).unwrap();
        let past = disk.calls() < at;
        drop(pool);
        let want = [&[2u8; 4 * BLOCK][..], &[3; 2 * BLOCK], &[1; 2 * BLOCK]].concat();
        match try_open(&disk.after_kill()) {
            Err(e) => assert_eq!(e.kind(), ErrorKind::Corrupt, "call {call}: {e}"),
            Ok((mut pool, _)) => {
                let view = pool.view(id, None).unwrap();
                for at in (0..want.len()).step_by(BLOCK) {
                    let mut buf = [0; BLOCK];
                    match pool.read(view, at as u64, &mut buf) {
                        Ok(()) => assert_eq!(buf, want[at..at + BLOCK], "call {call}: wrong data"),
                        Err(_) => lost += 1,
                    }
                }
            }
        }
        if past {
            break;
        }
    }
    assert!(lost > 4, "writes were lost, and it showed: {lost}");
}

/// What is not ours, and what a newer program made, is told from damage, and says what to do.
#[test]
fn foreign_and_newer_files_are_refused_in_clear_words() {
    let s = sample();
    let seal = |bytes: &mut [u8], at: usize| {
        bytes[at..at + 4].fill(0);
        let crc = crc32fast::hash(bytes);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    };
    let refusal = |disk: &SimDisk| try_open(disk).map(drop).unwrap_err();
    let disk = s.disk.after_kill();
    disk.edit("cairn.pool", |bytes| bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03"));
    let e = refusal(&disk);
    assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains("not a Cairn pool"), "{e}");
    let disk = s.disk.after_kill();
    disk.edit("cairn.pool", |bytes| {
        bytes[8] = 9;
        seal(bytes, 12);
    });
    let e = refusal(&disk);
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("newer cairn"), "{e}");
    let disk = s.disk.after_kill();
    disk.edit(&s.anchor, |bytes| {
        let half = bytes.len() / 2;
        for copy in bytes.chunks_mut(half) {
            copy[8] = 9;
            seal(copy, 12);
        }
    });
    let e = refusal(&disk);
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("version 9"), "{e}");
    let disk = s.disk.after_kill();
    disk.edit("cairn.pool", |bytes| {
        bytes[16] ^= 1;
        seal(bytes, 12);
    });
    let e = refusal(&disk);
    assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains("another pool"), "{e}");
    let e = refusal(&SimDisk::new());
    assert!(e.kind() == ErrorKind::NotFound && e.to_string().contains("--pool"), "{e}");
}

/// The harness can fail: damage that carries a right checksum is wrong data.
#[test]
#[should_panic(expected = "wrong data")]
fn canary_data_that_was_changed_with_its_checksum() {
    let s = sample();
    let disk = s.disk.after_kill();
    // The last batch of the tail: a changed block, its checksum, and that of the header.
    let slot = s.tail[2];
    let mut header = disk.peek(&s.open, slot * BLOCK, BLOCK);
    let mut data = disk.peek(&s.open, (slot + 1) * BLOCK, BLOCK);
    let old = crc32fast::hash(&data).to_le_bytes();
    data[0] ^= 1;
    let at = header.windows(4).position(|window| window == old).unwrap();
    header[at..at + 4].copy_from_slice(&crc32fast::hash(&data).to_le_bytes());
    header[8..12].fill(0);
    let crc = crc32fast::hash(&header);
    header[8..12].copy_from_slice(&crc.to_le_bytes());
    disk.poke(&s.open, slot * BLOCK, &header);
    disk.poke(&s.open, (slot + 1) * BLOCK, &data);
    s.look(&disk, "canary");
}
