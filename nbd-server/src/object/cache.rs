//! A cache on the local disk of what was read from an object store.
//!
//! Parts of data objects, which never change, are kept in one file, cut into slots of [`SLOT_BYTES`]: a part takes as many
//! as it needs, wherever they are, so that no room is lost but the rest of its last slot. Where what is lies in memory
//! alone: the file begins empty whenever the pool is opened.
//!
//! What stays is decided by S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: FIFO queues are all you need for cache eviction,
//! SOSP 2023): what is new goes through a short queue, and only what was read again there, or comes back soon after,
//! goes into the long one. Whoever reads a whole disk once passes through the short queue and leaves the rest alone.
//!
//! Invariants
//!   * slots of parts + free slots + slots being written == all slots: the file never grows beyond its bound;
//!   * every slot's checksum is verified before its bytes are returned: damage is a miss, never wrong data;
//!   * a disk that fails turns the cache off, with a warning: whoever reads asks the store.
//!
//! The cache lies above encryption, so that its file is as readable as the pool's own.

use blockstore::object::{Created, ObjectEntry, ObjectStore, Range, StoreResult};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tracing::warn;

/// Unit of space in the file: half of it is lost for each part, on average.
const SLOT_BYTES: usize = 16 << 10;
/// Longest part that is kept, bytes: a longer one would push out too much at once.
const PART_BYTES_MAX: u64 = 8 << 20;
/// Keys of data objects begin so; other objects may change, or are read once.
const PREFIX: &str = "objects/";
/// Parts that are looked at for one that holds a wanted one.
const OVERLAPS_SEEN: usize = 32;
/// Reads of a part that are remembered.
const READS_MAX: u8 = 3;
/// Of ten slots, those for what is new.
const SHORT_TENTHS: usize = 1;

/// What a cache did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Reads that were answered from the file.
    pub hits: u64,
    /// Reads that were answered by the store.
    pub misses: u64,
    /// Parts that gave way to others.
    pub evicted: u64,
    /// Bytes of the file in use.
    pub bytes: u64,
}

/// Names a part: object, offset, length.
type Key = (Arc<str>, u64, u64);

/// The slots of a part, each with the checksum of what it holds.
type Slots = Arc<[(u32, u32)]>;

/// A part in the file.
struct Entry {
    key: Key,
    slots: Slots,
    reads: u8,
}

/// What is where. Queues name entries by number; those that are gone are passed over.
struct Index {
    entries: HashMap<u64, Entry>,
    by_key: BTreeMap<Key, u64>,
    next: u64,
    free: Vec<u32>,
    /// Slots that were never used begin here.
    fresh: u32,
    slots: u32,
    short: VecDeque<u64>,
    short_slots: usize,
    long: VecDeque<u64>,
    /// Hashes of what was pushed out of the short queue lately, the oldest first.
    ghosts: VecDeque<u64>,
    is_ghost: HashSet<u64>,
    hasher: RandomState,
    evicted: u64,
}

impl Index {
    fn new(slots: u32) -> Self {
        Self {
            entries: HashMap::new(),
            by_key: BTreeMap::new(),
            next: 0,
            free: Vec::new(),
            fresh: 0,
            slots,
            short: VecDeque::new(),
            short_slots: 0,
            long: VecDeque::new(),
            ghosts: VecDeque::new(),
            is_ghost: HashSet::new(),
            hasher: RandomState::new(),
            evicted: 0,
        }
    }

    fn room(&self) -> usize {
        self.free.len() + (self.slots - self.fresh) as usize
    }

    /// The part that holds `len` bytes from `offset`: its number, slots and offset.
    fn find(&mut self, key: &str, offset: u64, len: u64) -> Option<(u64, Slots, u64)> {
        let end = offset.checked_add(len)?;
        let object: Arc<str> = key.into();
        let first = (object.clone(), offset.saturating_sub(PART_BYTES_MAX), 0);
        let mut near = self.by_key.range(first..=(object, offset, u64::MAX)).rev().take(OVERLAPS_SEEN);
        let ((_, at, _), id) = near.find(|((_, at, len), _)| at.saturating_add(*len) >= end)?;
        let (at, id) = (*at, *id);
        let entry = self.entries.get_mut(&id)?;
        entry.reads = READS_MAX.min(entry.reads + 1);
        Some((id, entry.slots.clone(), at))
    }

    /// Slots to write a part to; fewer parts are left, if need be.
    fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        while self.room() < count {
            if !self.evict() {
                return None;
            }
        }
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.push(self.free.pop().unwrap_or_else(|| {
                self.fresh += 1;
                self.fresh - 1
            }));
        }
        Some(taken)
    }

    /// Makes room; `false` when nothing is left that could give way.
    fn evict(&mut self) -> bool {
        let is_full = self.short_slots * 10 >= self.slots as usize * SHORT_TENTHS;
        (is_full && self.evict_short()) || self.evict_long() || self.evict_short()
    }

    fn evict_short(&mut self) -> bool {
        while let Some(id) = self.short.pop_front() {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            self.short_slots -= entry.slots.len();
            if entry.reads > 0 {
                entry.reads = 0;
                self.long.push_back(id);
                continue;
            }
            let ghost = self.hasher.hash_one(&entry.key);
            self.forget(id);
            self.evicted += 1;
            if self.is_ghost.insert(ghost) {
                self.ghosts.push_back(ghost);
            }
            while self.ghosts.len() > self.entries.len().max(64) {
                let oldest = self.ghosts.pop_front();
                oldest.map(|ghost| self.is_ghost.remove(&ghost));
            }
            return true;
        }
        false
    }

    fn evict_long(&mut self) -> bool {
        while let Some(id) = self.long.pop_front() {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if entry.reads > 0 {
                entry.reads -= 1;
                self.long.push_back(id);
                continue;
            }
            self.forget(id);
            self.evicted += 1;
            return true;
        }
        false
    }

    /// Takes a part out that is in no queue, or whose place in one will be passed over.
    fn forget(&mut self, id: u64) {
        if let Some(entry) = self.entries.remove(&id) {
            self.by_key.remove(&entry.key);
            self.free.extend(entry.slots.iter().map(|(slot, _)| *slot));
        }
    }

    /// As [`Index::forget`], of a part that may wait in the short queue.
    fn drop_part(&mut self, id: u64) {
        if let Some(at) = self.short.iter().position(|queued| *queued == id) {
            self.short.remove(at);
            self.short_slots -= self.entries.get(&id).map_or(0, |entry| entry.slots.len());
        }
        self.forget(id);
    }

    fn insert(&mut self, key: Key, slots: Vec<(u32, u32)>) {
        if self.by_key.contains_key(&key) {
            // Two have read the same: the first has put it in.
            self.free.extend(slots.into_iter().map(|(slot, _)| slot));
            return;
        }
        let id = self.next;
        self.next += 1;
        if self.is_ghost.contains(&self.hasher.hash_one(&key)) {
            self.long.push_back(id);
        } else {
            self.short.push_back(id);
            self.short_slots += slots.len();
        }
        self.by_key.insert(key.clone(), id);
        self.entries.insert(id, Entry { key, slots: slots.into(), reads: 0 });
    }

    /// Parts of one object.
    fn parts_of(&self, key: &str) -> Vec<u64> {
        let object: Arc<str> = key.into();
        let all = self.by_key.range((object.clone(), 0, 0)..=(object, u64::MAX, u64::MAX));
        all.map(|(_, id)| *id).collect()
    }

    fn check_invariants(&self) {
        let held: usize = self.entries.values().map(|entry| entry.slots.len()).sum();
        debug_assert!(held + self.free.len() <= self.fresh as usize && self.fresh <= self.slots);
        debug_assert_eq!(self.entries.len(), self.by_key.len());
    }
}

/// The file and its index.
struct Cache {
    file: File,
    index: Mutex<Index>,
    hits: AtomicU64,
    misses: AtomicU64,
    /// It failed once: nothing more is asked of it.
    off: AtomicU64,
}

impl Cache {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_on(&self) -> bool {
        self.off.load(Ordering::Relaxed) == 0
    }

    fn turn_off(&self, e: &io::Error) {
        if self.off.swap(1, Ordering::Relaxed) == 0 {
            warn!(error = %e, "the cache of the object store is turned off: what is read comes from the store each time");
            *self.lock() = Index::new(0);
            // Its space may be what is missing.
            let _ = self.file.set_len(0);
        }
    }

    fn read(&self, key: &str, offset: u64, len: u64) -> Option<Vec<u8>> {
        if !self.is_on() {
            return None;
        }
        let (id, slots, at) = self.lock().find(key, offset, len)?;
        let skip = (offset - at) as usize;
        let (first, last) = (skip / SLOT_BYTES, (skip + len as usize).div_ceil(SLOT_BYTES));
        let mut bytes = vec![0; (last - first) * SLOT_BYTES];
        for (piece, (slot, crc)) in bytes.chunks_exact_mut(SLOT_BYTES).zip(&slots[first..last]) {
            if let Err(e) = self.file.read_exact_at(piece, u64::from(*slot) * SLOT_BYTES as u64) {
                if e.kind() != io::ErrorKind::UnexpectedEof {
                    self.turn_off(&e);
                    return None;
                }
            } else if crc32fast::hash(piece) == *crc {
                continue;
            }
            // Damaged, or given to another part meanwhile.
            self.lock().drop_part(id);
            return None;
        }
        let from = skip - first * SLOT_BYTES;
        bytes.drain(..from);
        bytes.truncate(len as usize);
        Some(bytes)
    }

    fn keep(&self, key: &str, offset: u64, body: &[u8]) {
        let count = body.len().div_ceil(SLOT_BYTES);
        if !self.is_on() || count == 0 || body.len() as u64 > PART_BYTES_MAX {
            return;
        }
        let taken = {
            let mut index = self.lock();
            // One part takes no more than what is new may have.
            if count * 10 > (index.slots as usize * SHORT_TENTHS).max(10) {
                return;
            }
            index.take(count)
        };
        let Some(taken) = taken else { return };
        let mut slots = Vec::with_capacity(count);
        let mut last = [0; SLOT_BYTES];
        for (slot, piece) in taken.iter().zip(body.chunks(SLOT_BYTES)) {
            let whole = if piece.len() == SLOT_BYTES {
                piece
            } else {
                last[..piece.len()].copy_from_slice(piece);
                &last[..]
            };
            if let Err(e) = self.file.write_all_at(whole, u64::from(*slot) * SLOT_BYTES as u64) {
                return self.turn_off(&e);
            }
            slots.push((*slot, crc32fast::hash(whole)));
        }
        if self.is_on() {
            let mut index = self.lock();
            index.insert((key.into(), offset, body.len() as u64), slots);
            index.check_invariants();
        }
    }

    fn drop_object(&self, key: &str) {
        let mut index = self.lock();
        index.parts_of(key).into_iter().for_each(|id| index.drop_part(id));
    }
}

/// A store of which parts are kept on the local disk. Until [`CachedStore::begin`] it keeps nothing.
pub struct CachedStore {
    inner: Arc<dyn ObjectStore>,
    cache: OnceLock<Cache>,
}

impl CachedStore {
    /// Above `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, cache: OnceLock::new() }
    }

    /// From now on keeps up to `bytes` in the file `path`, which begins empty.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn begin(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let slots = u32::try_from(bytes / SLOT_BYTES as u64).unwrap_or(u32::MAX);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let index = Mutex::new(Index::new(slots));
        let (hits, misses, off) = (AtomicU64::default(), AtomicU64::default(), AtomicU64::default());
        let _ = self.cache.set(Cache { file, index, hits, misses, off });
        Ok(())
    }

    /// What it did so far.
    pub fn counts(&self) -> CacheCounts {
        let Some(cache) = self.cache.get() else { return CacheCounts::default() };
        let index = cache.lock();
        CacheCounts {
            hits: cache.hits.load(Ordering::Relaxed),
            misses: cache.misses.load(Ordering::Relaxed),
            evicted: index.evicted,
            bytes: (index.fresh as usize - index.free.len()) as u64 * SLOT_BYTES as u64,
        }
    }
}

impl ObjectStore for CachedStore {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        self.inner.put(key, body)
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        self.inner.put_if_absent(key, body)
    }

    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        let cache = self.cache.get().filter(|_| key.starts_with(PREFIX));
        let (Some(cache), Range::Part { offset, len }) = (cache, range) else { return self.inner.get(key, range) };
        if let Some(body) = cache.read(key, offset, len) {
            cache.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(body);
        }
        cache.misses.fetch_add(1, Ordering::Relaxed);
        let body = self.inner.get(key, range)?;
        // What ends early may have been cut off on its way.
        if body.len() as u64 == len {
            cache.keep(key, offset, &body);
        }
        Ok(body)
    }

    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        self.inner.list(prefix, after, max)
    }

    fn delete(&self, key: &str) -> StoreResult<()> {
        self.distrust(key);
        self.inner.delete(key)
    }

    fn distrust(&self, key: &str) {
        if let Some(cache) = self.cache.get() {
            cache.drop_object(key);
        }
        self.inner.distrust(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockstore::testing::{Rng, SimStore, StoreFault, StoreOp};
    use proptest::prelude::*;

    const OBJECT: &str = "objects/a/1";
    const KIB: u64 = 1 << 10;

    fn part(offset: u64, len: u64) -> Range {
        Range::Part { offset, len }
    }

    fn body(seed: u64, len: usize) -> Vec<u8> {
        Rng::new(seed).bytes(len)
    }

    struct Fixture {
        folder: tempfile::TempDir,
        sim: SimStore,
        store: CachedStore,
    }

    fn fixture(bytes: u64) -> Fixture {
        let (folder, sim) = (tempfile::tempdir().expect("a folder"), SimStore::new(1));
        let store = CachedStore::new(Arc::new(sim.clone()));
        store.begin(&folder.path().join("cache"), bytes).expect("a file");
        Fixture { folder, sim, store }
    }

    impl Fixture {
        fn gets(&self) -> u64 {
            self.sim.counts().gets
        }

        fn get(&self, key: &str, offset: u64, len: u64) -> Vec<u8> {
            self.store.get(key, part(offset, len)).expect("it is there")
        }
    }

    #[test]
    fn what_was_read_is_read_here_and_so_are_parts_of_it() {
        let all = body(1, 300 << 10);
        let f = fixture(8 << 20);
        f.sim.put(OBJECT, &all).expect("a put");
        assert_eq!(f.get(OBJECT, 1000, 200 * KIB), all[1000..1000 + (200 << 10)]);
        assert_eq!(f.gets(), 1);
        for (offset, len) in [(1000, 200 * KIB), (1000, 1), (20_000, 70_000), (1000 + 200 * KIB - 5, 5)] {
            assert_eq!(f.get(OBJECT, offset, len), all[offset as usize..(offset + len) as usize]);
        }
        assert_eq!((f.gets(), f.store.counts().hits, f.store.counts().misses), (1, 4, 1));
        // Beyond it, and at the object's end, the store answers.
        assert_eq!(f.get(OBJECT, 1000, 200 * KIB + 1).len(), (200 << 10) + 1);
        assert_eq!(f.get(OBJECT, 299 * KIB, 2 * KIB).len(), 1 << 10);
        assert_eq!(f.get(OBJECT, 299 * KIB, 2 * KIB).len(), 1 << 10);
        assert_eq!(f.gets(), 4);
        // Manifests are never kept.
        f.sim.put("volumes/a/1", b"one").expect("a put");
        (0..2).for_each(|_| assert_eq!(f.get("volumes/a/1", 0, 3), b"one"));
        assert_eq!(f.gets(), 6);
    }

    #[test]
    fn a_damaged_or_shortened_file_is_a_miss() {
        let all = body(2, 128 << 10);
        let f = fixture(8 << 20);
        f.sim.put(OBJECT, &all).expect("a put");
        f.get(OBJECT, 0, 128 * KIB);
        let path = f.folder.path().join("cache");
        for at in [5u64, 100_000] {
            let file = OpenOptions::new().write(true).open(&path).expect("it is there");
            file.write_all_at(b"damage", at).expect("a write");
            assert_eq!(f.get(OBJECT, 0, 128 * KIB), all);
        }
        assert_eq!(f.gets(), 3);
        OpenOptions::new().write(true).open(&path).expect("it is there").set_len(1000).expect("a cut");
        assert_eq!(f.get(OBJECT, 0, 128 * KIB), all);
        assert_eq!(f.get(OBJECT, 0, 128 * KIB), all);
        assert_eq!(f.gets(), 4);
    }

    #[test]
    fn what_did_not_verify_is_asked_for_again() {
        let f = fixture(8 << 20);
        f.sim.put(OBJECT, &[1; 100]).expect("a put");
        f.get(OBJECT, 0, 100);
        f.get(OBJECT, 10, 20);
        f.store.distrust(OBJECT);
        f.get(OBJECT, 10, 20);
        assert_eq!(f.gets(), 2);
        f.store.delete(OBJECT).expect("it is gone");
        assert!(f.store.get(OBJECT, part(10, 20)).is_err());
        assert_eq!(f.store.counts().bytes, 0);
    }

    #[test]
    fn what_is_cut_off_on_its_way_is_not_kept() {
        let f = fixture(8 << 20);
        f.sim.put(OBJECT, &[1; 100]).expect("a put");
        f.sim.fail_nth(StoreOp::Get, 1, StoreFault::Short);
        assert!(f.get(OBJECT, 0, 100).len() < 100);
        assert_eq!(f.get(OBJECT, 0, 100), [1; 100]);
    }

    #[test]
    fn a_scan_leaves_what_is_in_use_alone() {
        let f = fixture(16 << 20);
        let (hot, cold) = ("objects/hot/1", "objects/cold/1");
        f.sim.put(hot, &body(3, 4 << 20)).expect("a put");
        f.sim.put(cold, &vec![4; 100 << 20]).expect("a put");
        let read = |key: &str, bytes: u64| (0..bytes).step_by(64 << 10).for_each(|at| drop(f.get(key, at, 64 * KIB)));
        // Three times, so that it has been through the short queue and back.
        (0..3).for_each(|_| read(hot, 4 << 20));
        read(cold, 100 << 20);
        let before = f.gets();
        read(hot, 4 << 20);
        let missed = f.gets() - before;
        assert!(missed <= 6, "{missed} of 64 were gone");
        assert!(f.store.counts().evicted > 1000);
    }

    #[test]
    fn a_disk_that_fails_turns_it_off() {
        let sim = SimStore::new(1);
        sim.put(OBJECT, &[1; 100]).expect("a put");
        let store = CachedStore::new(Arc::new(sim.clone()));
        store.begin(Path::new("/dev/full"), 8 << 20).expect("it opens");
        for _ in 0..3 {
            assert_eq!(store.get(OBJECT, part(0, 100)).expect("the store answers"), [1; 100]);
        }
        assert_eq!((sim.counts().gets, store.counts().hits), (3, 0));
    }

    #[test]
    fn readers_at_once_get_the_right_bytes() {
        let f = fixture(3 << 20);
        let all: Vec<Vec<u8>> = (0..8).map(|n| body(10 + n, 1 << 20)).collect();
        let key = |n: usize| format!("objects/many/{n}");
        all.iter().enumerate().for_each(|(n, body)| f.sim.put(&key(n), body).expect("a put"));
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (f, all) = (&f, &all);
                scope.spawn(move || {
                    let mut rng = Rng::new(seed);
                    for _ in 0..400 {
                        let (n, at, len) = (rng.below(8), rng.below(1 << 20), rng.below(100_000) + 1);
                        let len = len.min((1 << 20) - at);
                        assert!(f.get(&key(n), at as u64, len as u64) == all[n][at..at + len]);
                    }
                });
            }
        });
        assert!(f.store.counts().hits > 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_bound_holds_and_bytes_are_right(
            bytes in 0u64..4 << 20,
            reads in prop::collection::vec((0usize..4, 0u64..1 << 20, 1u64..300 << 10), 1..200),
        ) {
            let f = fixture(bytes);
            let all: Vec<Vec<u8>> = (0..4).map(|n| body(n, 1 << 20)).collect();
            let key = |n: usize| format!("objects/any/{n}");
            all.iter().enumerate().for_each(|(n, body)| f.sim.put(&key(n), body).expect("a put"));
            for (n, at, len) in reads {
                let end = (at + len).min(1 << 20) as usize;
                prop_assert_eq!(f.get(&key(n), at, len), &all[n][at as usize..end]);
                prop_assert!(f.store.counts().bytes <= bytes);
            }
            let size = std::fs::metadata(f.folder.path().join("cache")).expect("it is there").len();
            prop_assert!(size <= bytes, "{} bytes of {}", size, bytes);
        }
    }
}
