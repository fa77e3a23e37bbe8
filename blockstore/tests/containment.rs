//! Damage stays where it is: what is damaged is named, and everything else opens and reads.

use blockstore::testing::{SimClock, SimDisk};
use blockstore::{Cleaning, ErrorKind, Pool, PoolOptions, RecoveryReport, VolumeId};
use std::io::IoSlice;
use std::sync::Arc;

const BLOCK: usize = 4096;
const SIZE: u64 = 64 << 20;

fn try_open(disk: &SimDisk) -> blockstore::Result<(Pool, RecoveryReport)> {
    Pool::open(disk.handle(), Arc::new(SimClock::default()), PoolOptions::default())
}

fn create(pool: &mut Pool, name: &str) -> VolumeId {
    let (id, job) = pool.create_volume(name, SIZE).unwrap();
    pool.finish(job).unwrap();
    id
}

/// Two volumes; in the log of the first, batches of two blocks at slots 1, 4, 7, …
fn two_volumes(batches: u64) -> (SimDisk, Pool, VolumeId, VolumeId) {
    let disk = SimDisk::new();
    Pool::create(&disk.handle(), &SimClock::default(), [7; 16]).unwrap();
    let mut pool = try_open(&disk).unwrap().0;
    let (a, b) = (create(&mut pool, "a"), create(&mut pool, "b"));
    for at in 0..batches {
        pool.write(a, at * 2 * BLOCK as u64, &[1 + at as u8; 2 * BLOCK]).unwrap();
    }
    pool.write(b, 0, &[9; BLOCK]).unwrap();
    pool.flush(a).unwrap();
    pool.flush(b).unwrap();
    (disk, pool, a, b)
}

fn read(pool: &mut Pool, id: VolumeId, block: u64) -> blockstore::Result<[u8; BLOCK]> {
    let mut buf = [0; BLOCK];
    let view = pool.view(id, None)?;
    pool.read(view, block * BLOCK as u64, &mut buf)?;
    Ok(buf)
}

/// The file that holds the log of "a": the one with three blocks to a batch.
fn log_of_a(disk: &SimDisk) -> String {
    let holds = |name: &String| {
        let mut found = false;
        disk.edit(name, |bytes| found = bytes.get(2 * BLOCK) == Some(&1) && bytes.get(3 * BLOCK) == Some(&1));
        found
    };
    disk.names().into_iter().filter(|name| name.starts_with("seg-")).find(holds).unwrap()
}

/// One damaged header in the anchored part of an open segment stopped the whole pool.
#[test]
fn a_damaged_header_in_the_anchored_part_costs_its_blocks_only() {
    for slot in [1, 4, 7, 10] {
        let (disk, mut pool, a, b) = two_volumes(4);
        pool.anchor(Cleaning::Busy).unwrap();
        pool.write(a, 20 * BLOCK as u64, &[8; BLOCK]).unwrap();
        pool.flush(a).unwrap();
        drop(pool);
        let disk = disk.after_kill();
        disk.edit(&log_of_a(&disk), |bytes| bytes[slot * BLOCK + 20] ^= 1);
        let (mut pool, report) = try_open(&disk).unwrap();
        assert!(report.dropped.iter().any(|why| why.contains("volume 1")), "{report:?}");
        for batch in 0..4u64 {
            for block in [2 * batch, 2 * batch + 1] {
                match read(&mut pool, a, block) {
                    Ok(data) => assert_eq!(data, [1 + batch as u8; BLOCK]),
                    Err(e) => {
                        assert_eq!(batch as usize, (slot - 1) / 3, "{e}");
                        assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains("\"a\""), "{e}");
                    }
                }
            }
        }
        assert!(read(&mut pool, a, (slot as u64 - 1) / 3 * 2).is_err(), "no checksum, no data");
        assert_eq!(read(&mut pool, a, 20).unwrap(), [8; BLOCK], "the tail goes on");
        assert_eq!(read(&mut pool, b, 0).unwrap(), [9; BLOCK]);
        pool.write(a, 0, &[5; 2 * BLOCK]).unwrap();
        assert_eq!(pool.check().unwrap().problems, Vec::<String>::new());
    }
}

/// The same for the header of the open segment; it is made anew from what is known.
#[test]
fn a_damaged_header_of_an_open_segment_is_made_anew() {
    let (disk, mut pool, a, b) = two_volumes(4);
    pool.anchor(Cleaning::Busy).unwrap();
    drop(pool);
    let disk = disk.after_kill();
    disk.edit(&log_of_a(&disk), |bytes| bytes[20] ^= 1);
    for _ in 0..2 {
        let (mut pool, _) = try_open(&disk).unwrap();
        assert_eq!(read(&mut pool, a, 0).unwrap(), [1; BLOCK]);
        assert_eq!(read(&mut pool, a, 7).unwrap(), [4; BLOCK]);
        assert_eq!(read(&mut pool, b, 0).unwrap(), [9; BLOCK]);
    }
}

/// A damaged header in the tail looked like the end of the log: what followed was lost without a word.
#[test]
fn what_follows_a_damaged_header_in_the_tail_is_reported() {
    let (disk, pool, a, b) = two_volumes(4);
    drop(pool);
    let disk = disk.after_kill();
    assert_eq!(try_open(&disk.after_kill()).unwrap().1.dropped, Vec::<String>::new(), "a plain end says nothing");
    disk.edit(&log_of_a(&disk), |bytes| bytes[4 * BLOCK + 20] ^= 1);
    let (mut pool, report) = try_open(&disk).unwrap();
    let why = report.dropped.join("; ");
    assert!(why.contains("volume 1") && why.contains("slot 4") && why.contains("36864 bytes"), "{why}");
    assert_eq!(read(&mut pool, a, 0).unwrap(), [1; BLOCK]);
    assert_eq!(read(&mut pool, a, 2).unwrap(), [0; BLOCK], "the log is a prefix");
    assert_eq!(read(&mut pool, b, 0).unwrap(), [9; BLOCK]);
}

/// A segment begun since the newest anchor whose header was damaged was taken for a left-over, and
/// removed with all that had been flushed to it.
#[test]
fn a_segment_with_a_damaged_header_is_kept_aside() {
    let (disk, pool, a, _) = two_volumes(4);
    drop(pool);
    let disk = disk.after_kill();
    let name = log_of_a(&disk);
    disk.edit(&name, |bytes| bytes[20] ^= 1);
    let (mut pool, report) = try_open(&disk).unwrap();
    let why = report.dropped.join("; ");
    assert!(why.contains(&name) && why.contains("damaged"), "{why}");
    assert!(disk.names().contains(&format!("damaged-{name}")), "{:?}", disk.names());
    assert_eq!(read(&mut pool, a, 0).unwrap(), [0; BLOCK]);
}

fn seal(bytes: &mut [u8]) {
    bytes[8..12].fill(0);
    let crc = crc32fast::hash(bytes);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// A record that reaches past its volume was applied: other blocks changed, or memory was asked for.
#[test]
fn a_record_that_does_not_fit_its_volume_is_not_applied() {
    const RECORD: usize = 56;
    let past = (SIZE / BLOCK as u64).to_le_bytes();
    for (at, patch) in [(RECORD + 1, &past[..]), (RECORD + 1, &[0xff; 8]), (RECORD, &[4, 2, 0, 0, 0, 0, 0, 0, 0])] {
        let (disk, pool, a, b) = two_volumes(1);
        drop(pool);
        let disk = disk.after_kill();
        disk.edit(&log_of_a(&disk), |bytes| {
            let header = &mut bytes[BLOCK..2 * BLOCK];
            header[at..at + patch.len()].copy_from_slice(patch);
            if patch.len() == 9 {
                // A deletion of the other volume, with no data behind it.
                header[50..52].fill(0);
            }
            seal(header);
        });
        let (mut pool, report) = try_open(&disk).unwrap();
        assert!(report.dropped.iter().any(|why| why.contains("does not fit")), "{report:?}");
        assert_eq!(read(&mut pool, a, 0).unwrap(), [0; BLOCK]);
        assert_eq!(read(&mut pool, b, 0).unwrap(), [9; BLOCK]);
        assert_eq!(pool.check().unwrap().problems, Vec::<String>::new());
    }
}

/// A flush of a deleted volume began a log for it again, which every later anchor then carried.
#[test]
fn a_flush_of_a_deleted_volume_is_refused() {
    let (_disk, mut pool, a, _) = two_volumes(1);
    let job = pool.delete_volume(a).unwrap();
    pool.finish(job).unwrap();
    assert_eq!(pool.flush(a).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(pool.take_writeback(a).is_none());
    assert_eq!(pool.flush_job(a).map(drop).unwrap_err().kind(), ErrorKind::NotFound);
}

/// An anchor that gives one volume's segment to the log of another is damaged: blocks of both would
/// be mixed.
#[test]
fn an_anchor_that_mixes_up_logs_is_refused() {
    let (disk, mut pool, a, b) = two_volumes(2);
    pool.anchor(Cleaning::Busy).unwrap();
    drop(pool);
    let disk = disk.after_kill();
    let name = disk.names().into_iter().find(|name| name.starts_with("anchor-")).unwrap();
    let segment = u32::from_str_radix(&log_of_a(&disk)["seg-".len()..], 16).unwrap();
    disk.edit(&name, |bytes| {
        let half = bytes.len() / 2;
        let mut copy = bytes[..half].to_vec();
        // A segment's entry: number, flags, owner.
        let (number, owner) = (segment.to_le_bytes(), a.0.to_le_bytes());
        let entry = |window: &[u8]| window[..4] == number && window[5..] == owner;
        let place = copy.windows(4 + 1 + 8).position(entry).unwrap() + 5;
        copy[place..place + 8].copy_from_slice(&b.0.to_le_bytes());
        copy[12..16].fill(0);
        let crc = crc32fast::hash(&copy);
        copy[12..16].copy_from_slice(&crc.to_le_bytes());
        *bytes = [&copy[..], &copy].concat();
    });
    let refused = try_open(&disk).map(drop).unwrap_err();
    assert!(refused.kind() == ErrorKind::Corrupt && refused.to_string().contains("belongs"), "{refused}");
}

/// A file of another pool that was copied in is left out, whatever its number.
#[test]
fn a_segment_of_another_pool_is_not_taken_up() {
    let (disk, pool, a, _) = two_volumes(2);
    drop(pool);
    let (disk, mut bytes) = (disk.after_kill(), Vec::new());
    disk.edit(&log_of_a(&disk), |found| bytes.clone_from(found));
    bytes[16] ^= 1;
    seal(&mut bytes[..BLOCK]);
    disk.handle().create("seg-0000ffff").unwrap().write_at(&[IoSlice::new(&bytes)], 0).unwrap();
    let (mut pool, _) = try_open(&disk).unwrap();
    assert_eq!(read(&mut pool, a, 0).unwrap(), [1; BLOCK]);
}
