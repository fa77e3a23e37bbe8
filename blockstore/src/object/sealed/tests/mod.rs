//! Sealed objects over a store in memory.

mod damage;
pub mod golden;
mod keys;

use super::*;
use crate::testing::Rng;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// A store in memory that counts requests, and from a certain one on does not answer any more.
#[derive(Default)]
pub struct Memory {
    pub objects: Mutex<BTreeMap<String, Vec<u8>>>,
    pub requests: Mutex<u64>,
    /// Requests that are answered; the next one is done if `does_the_last`, and no reply comes.
    pub answers: Option<u64>,
    pub does_the_last: bool,
}

impl Memory {
    fn request<T>(&self, does: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> StoreResult<T>) -> StoreResult<T> {
        let number = *self.requests.lock().unwrap();
        *self.requests.lock().unwrap() += 1;
        let answers = self.answers.unwrap_or(u64::MAX);
        let reply = (number < answers || number == answers && self.does_the_last)
            .then(|| does(&mut self.objects.lock().unwrap()));
        let lost = StoreError::new(StoreErrorKind::Unavailable, "no reply");
        reply.filter(|_| number < answers).unwrap_or(Err(lost))
    }

    pub fn of(objects: BTreeMap<String, Vec<u8>>) -> Arc<Self> {
        Arc::new(Self { objects: Mutex::new(objects), ..Self::default() })
    }

    pub fn copy(&self) -> BTreeMap<String, Vec<u8>> {
        self.objects.lock().unwrap().clone()
    }

    pub fn requests_of<T>(&self, does: impl FnOnce() -> T) -> (T, u64) {
        let before = *self.requests.lock().unwrap();
        (does(), *self.requests.lock().unwrap() - before)
    }
}

impl ObjectStore for Memory {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        self.request(|objects| {
            objects.insert(key.to_owned(), body.to_vec());
            Ok(())
        })
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        self.request(|objects| {
            let is_new = !objects.contains_key(key);
            objects.entry(key.to_owned()).or_insert_with(|| body.to_vec());
            Ok(if is_new { Created::Yes } else { Created::Exists })
        })
    }

    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        self.request(|objects| {
            let missing = || StoreError::new(StoreErrorKind::NotFound, format!("there is no object {key}"));
            let bytes = objects.get(key).ok_or_else(missing)?;
            Ok(part_of(bytes, range).to_vec())
        })
    }

    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        self.request(|objects| {
            let listed = objects.iter().filter(|(key, _)| key.starts_with(prefix) && Some(key.as_str()) > after);
            let entry = |(key, bytes): (&String, &Vec<u8>)| ObjectEntry {
                key: key.clone(),
                size: bytes.len() as u64,
                modified_us: 0,
            };
            Ok(listed.take(max).map(entry).collect())
        })
    }

    fn delete(&self, key: &str) -> StoreResult<()> {
        self.request(|objects| {
            objects.remove(key);
            Ok(())
        })
    }
}

fn part_of(bytes: &[u8], range: Range) -> &[u8] {
    let Range::Part { offset, len } = range else { return bytes };
    let start = bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
    &bytes[start..bytes.len().min(start.saturating_add(usize::try_from(len).unwrap_or(usize::MAX)))]
}

/// Entropy that a seed decides: for tests only.
pub struct Seeded(Mutex<Rng>);

impl Seeded {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Rng::new(seed))))
    }
}

impl Entropy for Seeded {
    fn fill(&self, buf: &mut [u8]) {
        let bytes = self.0.lock().unwrap().bytes(buf.len());
        buf.copy_from_slice(&bytes);
    }
}

pub fn kek(number: u8) -> Arc<LocalKey> {
    Arc::new(LocalKey::new(Secret::new(&mut [number; 32]), Seeded::new(number.into())).unwrap())
}

/// A host with key `number` before `store`.
pub fn host(store: &Arc<Memory>, number: u8, seed: u64) -> Sealed {
    Sealed::new(store.clone(), kek(number), Seeded::new(seed))
}

pub fn body(len: usize) -> Vec<u8> {
    Rng::new(len as u64).bytes(len)
}

const NAME: &str = "objects/pool/volume/17";

/// Lengths around the edges of chunks.
const LENGTHS: [usize; 9] = [0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK - 5, 3 * CHUNK];

#[test]
fn what_is_put_is_found_and_lists_with_its_own_length() {
    let store = Arc::<Memory>::default();
    let sealed = host(&store, 1, 1);
    for len in LENGTHS {
        sealed.put(NAME, &body(len)).unwrap();
        assert_eq!(sealed.get(NAME, Range::All).unwrap(), body(len));
        let entry = sealed.list("objects/", None, 10).unwrap().remove(0);
        assert_eq!((entry.key.as_str(), entry.size), (NAME, len as u64));
        let stored = store.copy()[NAME].clone();
        assert!(
            len < 16 || !stored.windows(16).any(|bytes| body(len).starts_with(bytes)),
            "nothing is stored in clear"
        );
    }
    assert_eq!(sealed.put_if_absent(NAME, b"other").unwrap(), Created::Exists);
    assert_eq!(sealed.put_if_absent("volumes/disk/1", b"one").unwrap(), Created::Yes);
    sealed.delete(NAME).unwrap();
    assert_eq!(sealed.get(NAME, Range::All).unwrap_err().kind, StoreErrorKind::NotFound);
    let behind = Range::Part { offset: 1 << 40, len: 1 };
    assert_eq!(sealed.get(NAME, behind).unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(sealed.get("nothing/here", Range::All).unwrap_err().kind, StoreErrorKind::NotFound);
    assert!(!store.copy().keys().any(|key| key.starts_with("keys/nothing")), "a get makes no key");
}

#[test]
fn a_ranged_get_is_one_request_for_the_chunks_it_needs() {
    let store = Arc::<Memory>::default();
    host(&store, 1, 1).put(NAME, &body(10 * CHUNK)).unwrap();
    let sealed = host(&store, 1, 2);
    let range = Range::Part { offset: 3 * CHUNK as u64 + 5, len: CHUNK as u64 };
    let (_, first) = store.requests_of(|| sealed.get(NAME, range).unwrap());
    let (bytes, later) = store.requests_of(|| sealed.get(NAME, range).unwrap());
    assert_eq!(bytes, part_of(&body(10 * CHUNK), range));
    assert_eq!((first, later), (2, 1), "the scope's key is asked for once");
    // All other chunks may be gone: they are not looked at.
    let full = SEALED_CHUNK;
    let mut stored = store.copy()[NAME].clone();
    stored[..3 * full].fill(0);
    stored[5 * full..].fill(0);
    store.put(NAME, &stored).unwrap();
    assert_eq!(sealed.get(NAME, range).unwrap(), bytes);
}

proptest! {
    #[test]
    fn every_range_reads_as_of_the_plain_object(
        len in prop_oneof![0..4 * CHUNK, proptest::sample::select(LENGTHS.to_vec())],
        offset in prop_oneof![0..5 * CHUNK as u64, Just(CHUNK as u64), Just(u64::MAX), Just(u64::MAX / 2)],
        wanted in prop_oneof![1..3 * CHUNK as u64, Just(u64::MAX)],
    ) {
        let store = Arc::<Memory>::default();
        let sealed = host(&store, 1, 1);
        sealed.put(NAME, &body(len)).unwrap();
        let range = Range::Part { offset, len: wanted };
        let whole = body(len);
        prop_assert_eq!(sealed.get(NAME, range).unwrap(), part_of(&whole, range));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), like_ours in any::<bool>()) {
        let store = Arc::<Memory>::default();
        let sealed = host(&store, 1, 1);
        sealed.put(NAME, b"something").unwrap();
        let mut stored = store.copy();
        for object in stored.values_mut() {
            let keep = if like_ours { object.len().min(bytes.len()) / 2 } else { 0 };
            object.truncate(keep);
            object.extend(&bytes);
        }
        let keys_too = host(&Memory::of(stored.clone()), 1, 1);
        prop_assert!(keys_too.get(NAME, Range::All).is_err() && keys_too.put(NAME, b"other").is_err());
        store.put(NAME, &stored[NAME]).unwrap();
        prop_assert!(sealed.get(NAME, Range::All).is_err());
        let _ = sealed.get(NAME, Range::Part { offset: 3, len: 4 });
    }
}

#[test]
fn only_the_marker_and_the_wrapped_keys_are_readable() {
    let store = Arc::<Memory>::default();
    let sealed = host(&store, 1, 1);
    sealed.put_if_absent(MARKER, b"encrypted").unwrap();
    for key in ["cairn2", "cairn/x", "volumes/disk/1", "objects/p/v/1", "keysets/1"] {
        sealed.put(key, b"secret words").unwrap();
    }
    for (key, stored) in store.copy() {
        let is_clear = stored.windows(12).any(|bytes| bytes == b"secret words");
        assert!(!is_clear && (chunk::looks_sealed(&stored) || is_open(&key)), "{key}");
    }
    assert_eq!(store.copy()[MARKER], b"encrypted");
    assert_eq!(sealed.get(MARKER, Range::All).unwrap(), b"encrypted");
    assert_eq!(sealed.list(MARKER, None, 1).unwrap()[0].size, 9);
    assert_eq!(sealed.put("keys/volumes/disk/first", b"x").unwrap_err().kind, StoreErrorKind::Invalid);
    assert_eq!(sealed.delete("keys/volumes/disk/first").unwrap_err().kind, StoreErrorKind::Invalid);
    assert_eq!(sealed.get("volumes/disk/1", Range::All).unwrap(), b"secret words");
}

#[test]
fn every_put_has_a_salt_of_its_own() {
    let store = Arc::<Memory>::default();
    let (a, b) = (host(&store, 1, 1), host(&store, 1, 2));
    let mut seen = std::collections::BTreeSet::new();
    for sealed in [&a, &b, &a, &b] {
        sealed.put(NAME, &body(2 * CHUNK)).unwrap();
        let stored = store.copy()[NAME].clone();
        assert!(seen.insert(stored[16..32].to_vec()), "a salt twice");
        assert_eq!(stored[16..32], stored[SEALED_CHUNK..][16..32], "one salt for all chunks of a put");
        assert_eq!(b.get(NAME, Range::All).unwrap(), body(2 * CHUNK));
    }
}

#[test]
fn the_scope_of_an_object_is_what_its_name_begins_with() {
    for (key, wanted) in [
        ("objects/pool/disk/17", "objects/pool/disk"),
        ("objects/pool/disk/17/b", "objects/pool/disk"),
        ("objects/pool", "objects/pool"),
        ("volumes/disk/3", "volumes/disk"),
        ("volumes/disk", "volumes/disk"),
        ("hosts/a/b", "hosts"),
        ("", ""),
    ] {
        assert_eq!(scope(key), wanted, "{key}");
    }
}
