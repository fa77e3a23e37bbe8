//! Sealed objects: whatever leaves the host is encrypted and authenticated. `docs/FORMAT.md`, section
//! "Sealed objects", is normative for the bytes.
//!
//! [`Sealed`] is an [`ObjectStore`] over another one, with the same contract: callers see plaintext, its lengths
//! and its offsets; the store behind sees ciphertext, names, lengths and times.
//!
//! Invariants
//!   * No byte is returned whose tag did not verify under the object's own name, place and end: an object that was
//!     changed, cut, lengthened, put together differently or copied to another name is `Corrupt`.
//!   * Plaintext is never accepted in place of a sealed object, and a store's word never changes that. Only the
//!     marker (`cairn`) and the wrapped keys (`keys/…`) pass as they are.
//!   * A key and a nonce never meet twice for different bytes: every put draws a salt of 128 random bits, and the key of
//!     its chunks is derived from the scope's data key, that salt and the object's name.
//!   * A scope has one data key for ever, whoever made it and whichever keys wrapped it (`keyring`).
//!   * An operation on an object is one request of the store behind, after the first use of its scope. The exception
//!     is a ranged get behind the object's end, which asks for proof of that end.
//!   * Memory is bounded by what was asked for or put, twice; the cache of data keys by `SCOPES_MAX`.
//!
//! Why the salt stands in every chunk. A chunk must open without the rest of the object, or reading a range of an object for
//! the first time costs two requests instead of one, on the path where a guest waits for its disk. A salt derived
//! from the name alone would need no place, but two hosts that race for a name, or one that repeats an upload after a
//! crash, would seal different bytes under one key and nonce, and the store keeps both. So each chunk carries
//! the salt, 16 bytes in 16 KiB, nothing needs to be cached, and a replaced object cannot meet a stale cache.
//!
//! Not here: hiding names, lengths and times; noticing that a whole object, or a list of them, is older than it should be
//! (an old object under its own name verifies). Chunks of two versions of one name are not mixed within one get, but
//! two gets may see two versions, as with any store.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod chunk;
mod key;
mod keyring;
mod local;
mod plain;
mod record;
mod rotate;
#[cfg(any(test, feature = "testing"))]
pub(super) mod testing;
#[cfg(test)]
mod tests;

pub use chunk::{CHUNK, SEALED_CHUNK};
pub use key::{KeyId, KeyWrap, Secret, KEY_ID_BYTES_MAX};
pub use local::LocalKey;
pub use plain::Plain;
pub use record::WRAPPED_BYTES_MAX;
pub use rotate::{retire, rewrap, rotate, Rotation};

#[cfg(test)]
pub(crate) use tests::golden::examples;

use super::{Created, Entropy, ObjectEntry, ObjectStore, Range, StoreError, StoreErrorKind, StoreResult};
use chunk::Opening;
use keyring::KeyRing;
use std::sync::Arc;

/// The one object that is never sealed: it says what the store holds, and whether that is encrypted. Nobody may
/// conclude from it that plaintext is in order: with a key configured, [`Sealed`] is what reads.
pub const MARKER: &str = "cairn";
/// What the keys of wrapped data keys begin with. They pass as they are, and only this module puts and deletes them.
pub const KEYS: &str = "keys/";

const CHUNK_LEN: u64 = CHUNK as u64;
const SEALED_LEN: u64 = SEALED_CHUNK as u64;

/// An object store whose objects are sealed in another one.
pub struct Sealed {
    inner: Arc<dyn ObjectStore>,
    ring: KeyRing,
    entropy: Arc<dyn Entropy>,
}

impl Sealed {
    /// Seals what is put into `inner`, with data keys that `wrap` wraps.
    pub fn new(inner: Arc<dyn ObjectStore>, wrap: Arc<dyn KeyWrap>, entropy: Arc<dyn Entropy>) -> Self {
        let ring = KeyRing::new(inner.clone(), wrap, entropy.clone());
        Self { inner, ring, entropy }
    }

    fn seal(&self, key: &str, body: &[u8]) -> StoreResult<Vec<u8>> {
        if key.starts_with(KEYS) {
            let text = format!("{key} is a name that only wrapped keys have");
            return Err(StoreError::new(StoreErrorKind::Invalid, text));
        }
        let data_key = self.ring.find_or_make(scope(key))?;
        let mut salt = [0; chunk::SALT];
        self.entropy.fill(&mut salt);
        chunk::seal(&data_key, key, salt, body)
    }

    /// The plaintext of `bytes`, which the store gave for the chunks of `key` from number `first` on.
    fn open(&self, key: &str, first: u64, bytes: &mut [u8]) -> StoreResult<Opening> {
        let Some(data_key) = self.ring.find(scope(key), &format!("object {key}"))? else {
            if !chunk::looks_sealed(bytes) {
                return Err(chunk::not_sealed(key));
            }
            let text = format!(
                "object {key} is sealed, but the store has no {}: it was removed",
                keyring::first_name(scope(key))
            );
            return Err(StoreError::new(StoreErrorKind::Denied, text));
        };
        chunk::open(&data_key, key, first, bytes)
    }

    fn get_part(&self, key: &str, offset: u64, len: u64) -> StoreResult<Vec<u8>> {
        let first = offset / CHUNK_LEN;
        let skip = (offset % CHUNK_LEN) as usize;
        let last = offset.saturating_add(len.saturating_sub(1)) / CHUNK_LEN;
        let chunks = last.saturating_sub(first).saturating_add(1);
        let sealed_len = chunks.saturating_mul(SEALED_LEN);
        let Some(sealed_offset) = first.checked_mul(SEALED_LEN) else {
            return self.prove_end(key, first);
        };
        let mut bytes = self.inner.get(key, Range::Part { offset: sealed_offset, len: sealed_len })?;
        if bytes.is_empty() {
            return self.prove_end(key, first);
        }
        let mut opening = self.open(key, first, &mut bytes)?;
        if !opening.is_end && opening.chunks < chunks {
            return Err(chunk::cut(key));
        }
        let plain = &mut opening.plain;
        plain.drain(..skip.min(plain.len()));
        plain.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        Ok(opening.plain)
    }

    /// Nothing was found from chunk `end` on: that is an empty answer if the object's last chunk lies before, and a cut object
    /// if the last chunk that there is does not say that it is the last.
    fn prove_end(&self, key: &str, end: u64) -> StoreResult<Vec<u8>> {
        let found = self.inner.list(key, None, 1)?.into_iter().find(|entry| entry.key == key);
        let Some(entry) = found else {
            return Err(StoreError::new(StoreErrorKind::NotFound, format!("there is no object {key}")));
        };
        let Some(last) = entry.size.checked_sub(1).map(|at| at / SEALED_LEN).filter(|last| *last < end) else {
            return Err(chunk::cut(key));
        };
        let offset = last.saturating_mul(SEALED_LEN);
        let mut bytes = self.inner.get(key, Range::Part { offset, len: SEALED_LEN })?;
        let opening = self.open(key, last, &mut bytes)?;
        if opening.is_end {
            Ok(Vec::new())
        } else {
            Err(chunk::cut(key))
        }
    }
}

impl ObjectStore for Sealed {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        if key == MARKER {
            return self.inner.put(key, body);
        }
        self.inner.put(key, &self.seal(key, body)?)
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        if key == MARKER {
            return self.inner.put_if_absent(key, body);
        }
        self.inner.put_if_absent(key, &self.seal(key, body)?)
    }

    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        if is_open(key) {
            return self.inner.get(key, range);
        }
        match range {
            Range::Part { offset, len } => self.get_part(key, offset, len),
            Range::All => {
                let mut bytes = self.inner.get(key, Range::All)?;
                let opening = self.open(key, 0, &mut bytes)?;
                if opening.is_end {
                    Ok(opening.plain)
                } else {
                    Err(chunk::cut(key))
                }
            }
        }
    }

    /// Sizes are those of the plaintext if the objects are sealed ones: a list opens none, so they are the store's word.
    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        let mut entries = self.inner.list(prefix, after, max)?;
        for entry in entries.iter_mut().filter(|entry| !is_open(&entry.key)) {
            entry.size = chunk::plain_len(entry.size);
        }
        Ok(entries)
    }

    fn delete(&self, key: &str) -> StoreResult<()> {
        if key.starts_with(KEYS) {
            let text = format!("{key} is a wrapped key: all objects of its scope would be lost with it");
            return Err(StoreError::new(StoreErrorKind::Invalid, text));
        }
        self.inner.delete(key)
    }
}

/// Whether an object of this key is stored as it is.
fn is_open(key: &str) -> bool {
    key == MARKER || key.starts_with(KEYS)
}

/// The part of an object's key that decides which data key it is sealed with: `objects/<pool>/<volume>`,
/// `volumes/<name>`, otherwise the first component.
fn scope(key: &str) -> &str {
    let slashes_before = match key.split('/').next() {
        Some("objects") => 2,
        Some("volumes") => 1,
        _ => 0,
    };
    let end = key.match_indices('/').nth(slashes_before).map_or(key.len(), |(at, _)| at);
    key.get(..end).unwrap_or(key)
}
