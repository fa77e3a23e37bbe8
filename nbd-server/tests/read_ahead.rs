//! How fast a volume that is in the object store alone is read in sequence, beside plain requests for the same objects.
//! A measurement, run by hand: `cargo test --release -p nbd-server --test read_ahead -- --ignored --nocapture`.

mod common;

use blockstore::object::{Created, ObjectEntry, ObjectStore, Range, StoreResult};
use blockstore::testing::{Rng, SimStore};
use common::far;
use common::wire::{self, READ};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 384 * MIB;
const LATENCY: Duration = Duration::from_millis(30);
const THREADS: usize = 16;
/// The one in the middle counts.
const ROUNDS: usize = 3;

/// A store that takes its time for every get.
struct Far(SimStore);

impl ObjectStore for Far {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        self.0.put(key, body)
    }
    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        self.0.put_if_absent(key, body)
    }
    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        std::thread::sleep(LATENCY);
        self.0.get(key, range)
    }
    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        self.0.list(prefix, after, max)
    }
    fn delete(&self, key: &str) -> StoreResult<()> {
        self.0.delete(key)
    }
}

fn rate(bytes: u64, begin: Instant) -> f64 {
    bytes as f64 / 1e6 / begin.elapsed().as_secs_f64()
}

/// All data objects, in pieces of 1 MiB, by as many threads as the daemon has.
fn plain(store: &SimStore) -> f64 {
    let far = Far(store.clone());
    let objects = store.keys().into_iter().filter(|key| key.starts_with("objects/"));
    let pieces: Vec<(String, u64)> = objects
        .flat_map(|key| {
            let len = store.body(&key).map_or(0, |body| body.len() as u64);
            (0..len).step_by(MIB as usize).map(move |at| (key.clone(), at))
        })
        .collect();
    let (next, bytes, begin) = (AtomicUsize::new(0), AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some((key, at)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let piece = far.get(key, Range::Part { offset: *at, len: MIB }).unwrap();
                    bytes.fetch_add(piece.len(), Ordering::Relaxed);
                }
            });
        }
    });
    rate(bytes.into_inner() as u64, begin)
}

/// The whole volume, in requests of `length` bytes of which `depth` are under way.
fn sequential(store: &SimStore, length: u64, depth: u64) -> f64 {
    let mut rng = Rng::new(1);
    let writes = (0..SIZE).step_by(MIB as usize).map(|at| (at, rng.bytes(MIB as usize)));
    let daemon = far::daemon(Arc::new(store.client("maker")), Arc::new(Far(store.client("taker"))), SIZE, writes);
    let mut stream = far::open(&daemon, "far");
    let (begin, count) = (Instant::now(), SIZE / length);
    let mut data = vec![0; length as usize];
    for cookie in 0..count + depth {
        if cookie < count {
            stream.write_all(&wire::request(READ, 0, cookie, cookie * length, length as u32)).unwrap();
        }
        if cookie >= depth {
            assert_eq!(wire::be(&wire::take(&mut stream, 16).unwrap()[4..8]), 0);
            std::io::Read::read_exact(&mut stream, &mut data).unwrap();
        }
    }
    rate(SIZE, begin)
}

#[test]
#[ignore = "a measurement"]
fn cold_sequential_reads_beside_plain_gets() {
    for (length, depth) in [(4096, 1), (128 << 10, 1), (256 << 10, 1), (1 << 20, 1), (256 << 10, 16), (1 << 20, 4)] {
        let mut rounds: Vec<(f64, f64)> = (0..ROUNDS)
            .map(|_| {
                let store = SimStore::new(1);
                (sequential(&store, length, depth), plain(&store))
            })
            .collect();
        rounds.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let (read, plain) = rounds[ROUNDS / 2];
        let ratios: Vec<String> = rounds.iter().map(|(read, plain)| format!("{:.2}", read / plain)).collect();
        eprintln!(
            "{:>5} KiB, {depth:>2} under way: {read:4.0} MB/s, plain gets {plain:4.0}: {}",
            length >> 10,
            ratios.join(" ")
        );
    }
}
