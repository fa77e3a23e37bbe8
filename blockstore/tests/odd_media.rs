//! Media that cannot do everything: file systems without `fallocate`, and disks with a bad spot.

use blockstore::disk::{Disk, File};
use blockstore::testing::{SimClock, SimDisk};
use blockstore::{prepare_segment, Cleaned, Cleaning, Pool, PoolOptions, SegmentId, VolumeId};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::{Arc, Mutex};

const BLOCK: usize = 4096;
const SIZE: u64 = 64 << 20;

/// Bytes of a file.
type Spot = (String, Range<u64>);

/// A simulated disk with its faults.
#[derive(Clone)]
struct Odd {
    disk: Arc<dyn Disk>,
    /// What allocating space ends with.
    allocate: Option<i32>,
    /// What cannot be read.
    bad: Arc<Mutex<Option<Spot>>>,
}

impl Odd {
    fn new(allocate: Option<i32>) -> Self {
        Self { disk: SimDisk::new().handle(), allocate, bad: Arc::default() }
    }

    fn file(&self, name: &str, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(OddFile { odd: self.clone(), name: name.to_owned(), file })
    }

    fn handle(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }
}

impl Disk for Odd {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.disk.create(name).map(|file| self.file(name, file))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.disk.open(name).map(|file| self.file(name, file))
    }
    fn list(&self, prefix: &str) -> io::Result<Vec<String>> {
        self.disk.list(prefix)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.link(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_names(&self) -> io::Result<()> {
        self.disk.sync_names()
    }
}

struct OddFile {
    odd: Odd,
    name: String,
    file: Arc<dyn File>,
}

impl File for OddFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let wanted = offset..offset + buf.len() as u64;
        match &*self.odd.bad.lock().unwrap() {
            Some((name, bad)) if *name == self.name && bad.start < wanted.end && wanted.start < bad.end => {
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            _ => self.file.read_at(buf, offset),
        }
    }
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.write_at(bufs, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.start_writeback(offset, len)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.odd.allocate.map_or_else(|| self.file.allocate(len), |code| Err(io::Error::from_raw_os_error(code)))
    }
    fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }
}

fn new_pool(odd: &Odd) -> (Pool, VolumeId) {
    Pool::create(&odd.handle(), &SimClock::default(), [7; 16]).unwrap();
    let mut pool = Pool::open(odd.handle(), Arc::new(SimClock::default()), PoolOptions::default()).unwrap().0;
    let (id, job) = pool.create_volume("disk", SIZE).unwrap();
    pool.finish(job).unwrap();
    (pool, id)
}

fn read(pool: &mut Pool, id: VolumeId, block: u64) -> blockstore::Result<[u8; BLOCK]> {
    let mut buf = [0; BLOCK];
    pool.read(pool.view(id, None).unwrap(), block * BLOCK as u64, &mut buf).map(|()| buf)
}

/// Space that cannot be promised is no space that is missing: segments are prepared by filling them, and the
/// pool takes data.
#[test]
fn a_file_system_without_fallocate_serves() {
    for code in [libc::EOPNOTSUPP, libc::ENOSYS] {
        let odd = Odd::new(Some(code));
        let (mut pool, id) = new_pool(&odd);
        pool.keep_reserve();
        assert!(pool.has_reserve());
        let number = pool.spares_wanted(1).unwrap().unwrap();
        let spare = prepare_segment(&odd.handle(), number).unwrap();
        assert_eq!(spare.len().unwrap(), 32 << 20);
        pool.add_spare(number, spare);
        pool.write(id, 0, &[1; BLOCK]).unwrap();
        pool.flush(id).unwrap();
        assert_eq!(read(&mut pool, id, 0).unwrap(), [1; BLOCK]);
    }
}

#[test]
fn a_disk_that_is_full_prepares_nothing_and_leaves_nothing_behind() {
    let odd = Odd::new(Some(libc::ENOSPC));
    let failed = prepare_segment(&odd.handle(), SegmentId(1)).map(drop).unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
    assert_eq!(odd.list("seg-").unwrap(), Vec::<String>::new());
}

/// A pool whose segment to be packed cannot be read where block `bad` lies. Blocks 30 and 60 to 63 live, the
/// others are dead.
fn with_bad_spot(bad: u64) -> (Odd, Pool, VolumeId) {
    let odd = Odd::new(None);
    let (mut pool, id) = new_pool(&odd);
    for at in 0..64u64 {
        pool.write(id, at * BLOCK as u64, &[at as u8 + 1; BLOCK]).unwrap();
    }
    pool.seal_log(id).unwrap();
    pool.trim(id, 0, 30 * BLOCK as u64).unwrap();
    pool.trim(id, 31 * BLOCK as u64, 29 * BLOCK as u64).unwrap();
    pool.anchor(Cleaning::Thorough).unwrap();
    pool.anchor(Cleaning::Thorough).unwrap();
    let holds = |name: &str, at: u64| {
        let mut there = [0; BLOCK];
        odd.open(name).and_then(|file| file.read_at(&mut there, at)).is_ok() && there == [bad as u8 + 1; BLOCK]
    };
    let places = odd.list("seg-").unwrap().into_iter().flat_map(|name| (0..200).map(move |slot| (name.clone(), slot)));
    let found = places.map(|(name, slot)| (name, slot * BLOCK as u64)).find(|(name, at)| holds(name, *at));
    let (name, at) = found.expect("the block is in a segment");
    *odd.bad.lock().unwrap() = Some((name, at..at + BLOCK as u64));
    (odd, pool, id)
}

/// Dead blocks between live ones are read along with them, for one read is cheaper than many. One that cannot
/// be read is no reason not to pack, which is how the bad spot is got rid of.
#[test]
fn a_dead_block_that_cannot_be_read_does_not_keep_a_segment_from_being_packed() {
    let (odd, mut pool, id) = with_bad_spot(45);
    let job = pool.clean_job().expect("a segment worth packing");
    let cleaned = job.run().unwrap();
    assert!(matches!(cleaned, Cleaned::Packed(5, _)), "the live blocks, and no other");
    pool.cleaned(job, Ok(cleaned)).unwrap();
    *odd.bad.lock().unwrap() = None;
    for block in [30, 60, 61, 62, 63] {
        assert_eq!(read(&mut pool, id, block).unwrap(), [block as u8 + 1; BLOCK]);
    }
    assert_eq!(read(&mut pool, id, 45).unwrap(), [0; BLOCK]);
}

/// A live one is: the file stays as it is, so that whoever can still read it may.
#[test]
fn a_live_block_that_cannot_be_read_keeps_its_segment_as_it_is() {
    let (odd, mut pool, id) = with_bad_spot(61);
    let job = pool.clean_job().expect("a segment worth packing");
    let failed = job.run().map(drop).unwrap_err();
    pool.cleaned(job, Err(failed)).unwrap_err();
    assert_eq!(odd.list("tmp-").unwrap(), Vec::<String>::new());
    read(&mut pool, id, 61).unwrap_err();
    *odd.bad.lock().unwrap() = None;
    assert_eq!(read(&mut pool, id, 61).unwrap(), [62; BLOCK]);
}
