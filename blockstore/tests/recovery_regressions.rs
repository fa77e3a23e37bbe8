//! Crash windows that were found by reading the code against `docs/FORMAT.md`. Each test tells how
//! the store used to fail; none of them may come back.

use blockstore::testing::{SimClock, SimDisk};
use blockstore::{Cleaning, Pool, PoolOptions, VolumeId};
use std::io::IoSlice;
use std::sync::Arc;

const BLOCK: usize = 4096;
const SIZE: u64 = 64 << 20;
const POOL_ID: [u8; 16] = [7; 16];

fn try_open(disk: &SimDisk) -> blockstore::Result<Pool> {
    Pool::open(disk.handle(), Arc::new(SimClock::default()), PoolOptions::default()).map(|(pool, _)| pool)
}

fn open(disk: &SimDisk) -> Pool {
    try_open(disk).unwrap()
}

fn new_pool() -> (SimDisk, Pool) {
    let disk = SimDisk::new();
    Pool::create(&disk.handle(), &SimClock::default(), POOL_ID).unwrap();
    let pool = open(&disk);
    (disk, pool)
}

fn create(pool: &mut Pool, name: &str) -> VolumeId {
    let (id, job) = pool.create_volume(name, SIZE).unwrap();
    pool.finish(job).unwrap();
    id
}

fn block(pool: &mut Pool, volume: &str, number: u64) -> Vec<u8> {
    let view = pool.view(pool.volume_id(volume).unwrap(), None).unwrap();
    let mut buf = vec![0; BLOCK];
    pool.read(view, number * BLOCK as u64, &mut buf).unwrap();
    buf
}

/// Everything that was not synced is gone.
fn power_loss(disk: &SimDisk) -> SimDisk {
    disk.after_power_loss(&mut || false)
}

/// Puts the checksum of `bytes` at `at`, as the format's structures carry it.
fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let crc = crc32fast::hash(bytes);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A recycled segment still holds the blocks that guests once wrote. A block made to look like a
/// batch of a newer format needs no secret, and where it followed the last batch the whole pool
/// refused to open.
#[test]
fn a_guest_block_that_looks_like_a_batch_does_not_stop_the_opening() {
    let (disk, mut pool) = new_pool();
    let a = create(&mut pool, "a");
    pool.write(a, 0, &[1; BLOCK]).unwrap();
    pool.flush(a).unwrap();
    drop(pool);
    for (version, blocks) in [(2u16, 0u16), (1, 9999), (1, 3)] {
        let mut guest = vec![0u8; BLOCK];
        guest[..4].copy_from_slice(b"CBAT");
        guest[4..6].copy_from_slice(&version.to_le_bytes());
        guest[50..52].copy_from_slice(&blocks.to_le_bytes());
        seal(&mut guest, 8);
        let disk = disk.after_kill();
        // Slot 0 header, slot 1 batch, slot 2 its data, slot 3 what an earlier life left behind.
        disk.edit("seg-00000002", |bytes| {
            bytes.resize(3 * BLOCK, 0);
            bytes.extend_from_slice(&guest);
        });
        let mut pool = open(&disk);
        assert_eq!(block(&mut pool, "a", 0), [1; BLOCK]);
    }
}

/// The fork is in its origin's log, the deletion in the pool's. Power loss kept the deletion only,
/// and the pool did not open: "volume number 2 does not exist any more".
#[test]
fn a_deletion_survives_power_loss_without_the_fork_that_it_deletes() {
    let (disk, mut pool) = new_pool();
    let a = create(&mut pool, "a");
    pool.write(a, 0, &[1; BLOCK]).unwrap();
    pool.flush(a).unwrap();
    // The deletion's record is in the pool's log with that of a creation; only that log is kept.
    let (b, _unsynced) = pool.fork(a, None, "b").unwrap();
    let _unsynced = pool.delete_volume(b).unwrap();
    let disk = disk.after_kill();
    disk.edit("seg-00000002", |bytes| bytes[3 * BLOCK..].fill(0));
    let mut pool = open(&disk);
    assert!(pool.volume_id("b").is_err());
    assert_eq!(block(&mut pool, "a", 0), [1; BLOCK]);
}

/// A name was freed and given to a fork at once; power loss took the deletion and left the fork.
/// Two volumes had one name, and one of them could never be reached again.
#[test]
fn a_name_given_again_belongs_to_the_newer_volume_after_power_loss() {
    let (disk, mut pool) = new_pool();
    let a = create(&mut pool, "a");
    let x = create(&mut pool, "x");
    pool.write(a, 0, &[1; BLOCK]).unwrap();
    pool.write(x, 0, &[2; BLOCK]).unwrap();
    pool.flush(x).unwrap();
    let len = disk.handle().open("seg-00000001").unwrap().len().unwrap();
    let _unsynced = pool.delete_volume(x).unwrap();
    let (_, job) = pool.fork(a, None, "x").unwrap();
    pool.finish(job).unwrap();
    let disk = disk.after_kill();
    disk.edit("seg-00000001", |bytes| bytes[len as usize..].fill(0));
    let mut pool = open(&disk);
    assert_eq!(pool.volumes().len(), 2);
    assert_eq!(block(&mut pool, "x", 0), [1; BLOCK]);
    assert_eq!(pool.check().unwrap().problems, Vec::<String>::new());
}

/// A client wrote to a new volume and flushed before the creation itself was synced: the flush
/// covered the volume's log and not the record that makes the volume.
#[test]
fn a_flush_of_a_new_volume_makes_its_creation_durable() {
    let (disk, mut pool) = new_pool();
    let (c, _unsynced) = pool.create_volume("c", SIZE).unwrap();
    pool.write(c, 0, &[3; BLOCK]).unwrap();
    pool.flush(c).unwrap();
    assert_eq!(block(&mut open(&power_loss(&disk)), "c", 0), [3; BLOCK]);
}

/// The same for a fork, and for a fork of that fork.
#[test]
fn a_flush_of_a_new_fork_makes_all_forks_before_it_durable() {
    let (disk, mut pool) = new_pool();
    let a = create(&mut pool, "a");
    pool.write(a, 0, &[1; BLOCK]).unwrap();
    let (b, _unsynced) = pool.fork(a, None, "b").unwrap();
    let (c, _unsynced) = pool.fork(b, None, "c").unwrap();
    pool.write(c, BLOCK as u64, &[3; BLOCK]).unwrap();
    pool.flush(c).unwrap();
    let mut pool = open(&power_loss(&disk));
    assert_eq!(block(&mut pool, "c", 0), [1; BLOCK]);
    assert_eq!(block(&mut pool, "c", 1), [3; BLOCK]);
}

/// The first batch of a segment met a full disk, so the file stayed empty; an anchor then named it
/// as the log's open segment, and the pool did not open again.
#[test]
fn a_segment_that_could_not_be_begun_does_not_stop_the_opening() {
    let (disk, mut pool) = new_pool();
    let a = create(&mut pool, "a");
    disk.inject(disk.calls() + 2, blockstore::testing::Fault::NoSpace);
    assert!(pool.write(a, 0, &[1; BLOCK]).is_err());
    disk.edit("seg-00000002", Vec::clear);
    pool.anchor(Cleaning::Busy).unwrap();
    drop(pool);
    let disk = disk.after_kill();
    let mut pool = open(&disk);
    let a = pool.volume_id("a").unwrap();
    pool.write(a, 0, &[2; BLOCK]).unwrap();
    pool.flush(a).unwrap();
    drop(pool);
    assert_eq!(block(&mut open(&power_loss(&disk)), "a", 0), [2; BLOCK]);
}

fn segment_header(segment: u32, volume: VolumeId, sequence: u32, previous_crc: u32) -> Vec<u8> {
    let mut header = vec![0u8; BLOCK];
    header[..4].copy_from_slice(b"CSEG");
    header[4..6].copy_from_slice(&1u16.to_le_bytes());
    header[12..16].copy_from_slice(&segment.to_le_bytes());
    header[16..32].copy_from_slice(&POOL_ID);
    header[32..40].copy_from_slice(&volume.0.to_le_bytes());
    header[40..44].copy_from_slice(&sequence.to_le_bytes());
    header[44..48].copy_from_slice(&previous_crc.to_le_bytes());
    seal(&mut header, 8);
    header
}

/// A segment dropped by an earlier recovery came back (its removal had not been synced) and claimed
/// the same place in the log as its successor: the one listed last won, and flushed data was lost.
#[test]
fn a_left_over_segment_does_not_displace_the_one_that_took_its_place() {
    let (disk, mut pool) = new_pool();
    let a = create(&mut pool, "a");
    let mib = vec![5; 1 << 20];
    for at in 0..40u64 {
        pool.write(a, at << 20, &mib).unwrap();
    }
    pool.flush(a).unwrap();
    drop(pool);
    let disk = disk.after_kill();
    for number in [0x3u32, 0xffff] {
        let name = format!("seg-{number:08x}");
        if !disk.names().contains(&name) {
            let file = disk.handle().create(&name).unwrap();
            file.write_at(&[IoSlice::new(&segment_header(number, a, 2, 0x0bad_cafe))], 0).unwrap();
        }
    }
    let mut pool = open(&disk);
    for at in 0..40u64 {
        assert_eq!(block(&mut pool, "a", at << 8), [5; BLOCK], "MiB {at} was flushed");
    }
}

/// A creation was lost with the power, so its number was given again; when the lost volume's first
/// segment came back, its writes were replayed into the new volume.
#[test]
fn a_segment_of_an_earlier_opening_is_not_replayed_into_a_volume_with_the_same_number() {
    let (disk, mut pool) = new_pool();
    let lost = create(&mut pool, "lost");
    pool.write(lost, 0, &[1; BLOCK]).unwrap();
    pool.flush(lost).unwrap();
    drop(pool);
    let disk = disk.after_kill();
    let mut stale = Vec::new();
    disk.edit("seg-00000002", |bytes| stale.clone_from(bytes));
    disk.edit("seg-00000001", |bytes| bytes.fill(0));
    let mut pool = open(&disk);
    let new = create(&mut pool, "new");
    assert_eq!(new, lost, "the scenario needs a number that is given again");
    pool.maintain().unwrap();
    pool.maintain().unwrap();
    drop(pool);
    let disk = disk.after_kill();
    assert!(!disk.names().contains(&"seg-00000002".to_owned()), "the cleaner removed it");
    disk.handle().create("seg-00000002").unwrap().write_at(&[IoSlice::new(&stale)], 0).unwrap();
    assert_eq!(block(&mut open(&disk), "new", 0), [0; BLOCK]);
}

/// Killed between installing an anchor and removing the one before, the older file stayed for ever;
/// a foreign file whose name begins like an anchor's was taken for the newest one.
#[test]
fn old_anchors_go_and_foreign_names_are_no_anchors() {
    let (disk, mut pool) = new_pool();
    create(&mut pool, "a");
    let name = disk.names().into_iter().find(|n| n.starts_with("anchor-")).unwrap();
    let mut old = Vec::new();
    disk.edit(&name, |bytes| old.clone_from(bytes));
    pool.anchor(Cleaning::Busy).unwrap();
    pool.anchor(Cleaning::Busy).unwrap();
    drop(pool);
    let disk = disk.after_kill();
    disk.handle().create(&name).unwrap().write_at(&[IoSlice::new(&old)], 0).unwrap();
    disk.handle().create("anchor-notes.txt").unwrap();
    drop(open(&disk));
    let anchors = |n: &String| n.starts_with("anchor-") && n != "anchor-notes.txt";
    assert_eq!(disk.names().iter().filter(|n| anchors(n)).count(), 1);
    assert!(disk.names().contains(&"anchor-notes.txt".to_owned()), "what is not ours is left alone");
}

/// An old anchor under a newer name is a copy that somebody made: opening it would lose everything
/// since, so it is refused.
#[test]
fn an_anchor_under_another_number_is_refused() {
    let (disk, mut pool) = new_pool();
    create(&mut pool, "a");
    pool.anchor(Cleaning::Busy).unwrap();
    drop(pool);
    let disk = disk.after_kill();
    let name = disk.names().into_iter().find(|n| n.starts_with("anchor-")).unwrap();
    disk.handle().rename(&name, "anchor-00000000000000ff").unwrap();
    let error = try_open(&disk).map(drop).unwrap_err();
    assert!(error.to_string().contains("anchor-00000000000000ff"), "{error}");
}

/// Segments prepared or begun since the newest anchor kept their numbers, which the opening gave to
/// its first map segment: "creating a segment: File exists", at every attempt. A kill soon after the
/// start of a daemon that keeps spares was enough.
#[test]
fn a_spare_does_not_stop_the_opening() {
    let (disk, mut pool) = new_pool();
    let a = create(&mut pool, "a");
    pool.write(a, 0, &[1; BLOCK]).unwrap();
    let number = pool.spares_wanted(1).unwrap().unwrap();
    let file = blockstore::prepare_segment(&disk.handle(), number).unwrap();
    pool.add_spare(number, file);
    drop(pool);
    assert_eq!(block(&mut open(&disk.after_kill()), "a", 0), [1; BLOCK]);
}

/// A segment begun since the newest anchor could not be read for a moment while the pool was opened;
/// it was taken for a left-over and removed, with all it held.
#[test]
fn a_segment_that_cannot_be_read_is_not_given_up() {
    let (disk, mut pool) = new_pool();
    let a = create(&mut pool, "a");
    pool.write(a, 0, &[1; BLOCK]).unwrap();
    pool.flush(a).unwrap();
    drop(pool);
    for call in 1.. {
        let disk = disk.after_kill();
        disk.inject(disk.calls() + call, blockstore::testing::Fault::Io);
        let opened = try_open(&disk).map(drop);
        let fired = disk.fault_fired();
        assert!(!fired || call > 6 || opened.is_err(), "call {call}: the error went unnoticed");
        assert_eq!(block(&mut open(&disk.after_kill()), "a", 0), [1; BLOCK], "call {call}");
        if !fired {
            break;
        }
    }
}
