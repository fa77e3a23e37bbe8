//! What the object tier asks of a store: whole puts, conditional puts, ranged gets, lists, deletes.

use std::fmt;
use std::sync::Arc;

/// Largest object in bytes: a put of more is refused as `Invalid`, a get of more as `Corrupt`, which bounds what a
/// foreign object can make us allocate.
pub const OBJECT_BYTES_MAX: u64 = 256 << 20;

/// Which bytes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// All of them.
    All,
    /// `len` bytes from `offset`; fewer at the object's end, none behind it.
    Part {
        /// First byte.
        offset: u64,
        /// Number of bytes, not 0.
        len: u64,
    },
}

/// Whether a conditional put made the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It did.
    Yes,
    /// There is an object of that key. After a lost reply it may be our own: compare.
    Exists,
}

/// One object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its key.
    pub key: String,
    /// Its length, bytes.
    pub size: u64,
    /// When it was put, by the store's clock, microseconds since 1970.
    pub modified_us: u64,
}

/// A store of immutable objects by key. Keys are relative to the store's URL; [`check_key`](super::check_key)
/// says which there can be. No key is a folder of another: a store may refuse `a/b` while there is an `a`.
///
/// Contract: a put that returned is durable, and seen by every later get and list (strong consistency, which S3
/// has had since 2020); an object is never seen in part; of two conditional puts of one key at most one makes it.
/// Implementations may repeat a request that failed, within bounds; every call ends in bounded time.
/// `testing::store_conformance` holds every implementation to this.
pub trait ObjectStore: Send + Sync {
    /// Stores `body` under `key`, replacing what was there.
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()>;
    /// Stores `body` under `key` if there is nothing (`If-None-Match: *`).
    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created>;
    /// The bytes of an object, all that `range` asks for and the object has; `NotFound` when there is none.
    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>>;
    /// Up to `max` objects whose keys begin with `prefix`, which need not end at a `/`, and come after `after`,
    /// in the order of keys' bytes. What lies in the store under names that are no keys is left out.
    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>>;
    /// Removes an object; removing what is not there is no error.
    fn delete(&self, key: &str) -> StoreResult<()>;
    /// What a get returned of this object did not verify: whoever keeps copies of it drops them.
    fn distrust(&self, _key: &str) {}
}

impl<S: ObjectStore + ?Sized> ObjectStore for Arc<S> {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        (**self).put(key, body)
    }
    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        (**self).put_if_absent(key, body)
    }
    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        (**self).get(key, range)
    }
    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        (**self).list(prefix, after, max)
    }
    fn delete(&self, key: &str) -> StoreResult<()> {
        (**self).delete(key)
    }
    fn distrust(&self, key: &str) {
        (**self).distrust(key);
    }
}

/// What a caller should do about a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// There is no such object.
    NotFound,
    /// The store does not answer, or says that it cannot now: try later. Whether a put was done is not known.
    Unavailable,
    /// Credentials are missing, wrong or not sufficient: mend them.
    Denied,
    /// The bucket or folder does not exist, or the request can never succeed: mend the URL.
    Invalid,
    /// The store answered with bytes that cannot be what was put.
    Corrupt,
}

/// A failure of a store's operation. Names the operation and the key, never a credential.
#[derive(Clone, Debug)]
pub struct StoreError {
    /// What to do.
    pub kind: StoreErrorKind,
    /// What is wrong, for people.
    pub message: String,
}

/// Result of a store's operation.
pub type StoreResult<T> = Result<T, StoreError>;

impl StoreError {
    /// An error of `kind` explained by `message`.
    pub fn new(kind: StoreErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StoreError {}
