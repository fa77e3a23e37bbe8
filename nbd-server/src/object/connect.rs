//! The store behind a pool: opened, counted, sealed, and looked at before it is trusted.
//!
//! Invariants
//!   * nothing is put into a bucket that holds something else, nor into one without working conditional writes unless
//!     that was asked for: until both have been seen every request is refused;
//!   * a store that does not answer yet is asked again with the next request.

use super::{open_store, probe, Metered, StoreOptions};
use crate::keys::SystemEntropy;
use blockstore::object::sealed::{KeyWrap, Plain, Sealed, MARKER};
use blockstore::object::{
    Created, ObjectEntry, ObjectStore, ObjectTier, Range, StoreError, StoreErrorKind, StoreResult,
};
use std::sync::{Arc, Mutex, PoisonError};

/// What marks a bucket, or a prefix, as ours.
const MARK: &[u8] = b"cairn object store, version 1\n";

/// How a pool reaches its store.
pub struct ConnectOptions {
    /// `file:///folder` or `s3://bucket/prefix`.
    pub url: String,
    /// How to reach a bucket.
    pub store: StoreOptions,
    /// What wraps the keys that everything is encrypted with; without it nothing is.
    pub key: Option<Arc<dyn KeyWrap>>,
    /// The user says that nobody else writes there.
    pub single_writer: bool,
}

/// The counts of a store.
pub type Counted = Arc<Metered<Arc<dyn ObjectStore>>>;

/// A connected store.
pub struct Connected {
    /// For the pool.
    pub tier: ObjectTier,
    /// As the bucket has it, without keys: for replacing the key that wraps them.
    pub raw: Counted,
    guard: Arc<Guard>,
}

impl Connected {
    /// Opens the store; asks nothing of it.
    ///
    /// # Errors
    /// As [`open_store`].
    pub fn open(options: &ConnectOptions) -> StoreResult<Self> {
        let raw: Counted = Arc::new(Metered::new(open_store(&options.url, &options.store)?));
        let guard = Arc::new(Guard {
            url: options.url.clone(),
            inner: raw.clone(),
            single_writer: options.single_writer,
            seen: Mutex::new(false),
        });
        let guarded: Arc<dyn ObjectStore> = guard.clone();
        let store: Arc<dyn ObjectStore> = match &options.key {
            Some(key) => Arc::new(Sealed::new(guarded, key.clone(), Arc::new(SystemEntropy))),
            None => Arc::new(Plain::new(guarded)),
        };
        Ok(Self { tier: ObjectTier { store, entropy: Arc::new(SystemEntropy) }, raw, guard })
    }

    /// Looks at the store now.
    ///
    /// # Errors
    /// Why it cannot be used, or not yet.
    pub fn look(&self) -> StoreResult<()> {
        self.guard.look()
    }
}

/// Lets requests through once the store has been looked at.
struct Guard {
    url: String,
    inner: Counted,
    single_writer: bool,
    seen: Mutex<bool>,
}

impl Guard {
    fn look(&self) -> StoreResult<()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen {
            return Ok(());
        }
        let invalid = |text: String| Err(StoreError::new(StoreErrorKind::Invalid, text));
        match self.inner.get(MARKER, Range::All) {
            Ok(mark) if mark == MARK => {}
            Ok(_) => {
                return invalid(format!("{} was made by another version of cairn: use that one", self.url));
            }
            Err(e) if e.kind == StoreErrorKind::NotFound => {
                let strangers = self.inner.list("", None, 2)?;
                if let Some(stranger) = strangers.iter().find(|entry| !entry.key.starts_with("probe/")) {
                    return invalid(format!(
                        "{} holds something else ({}): give an empty bucket, or a prefix of its own",
                        self.url, stranger.key
                    ));
                }
                if !self.single_writer {
                    probe(&self.inner)?;
                }
                self.inner.put_if_absent(MARKER, MARK)?;
                *seen = true;
                return Ok(());
            }
            Err(e) => return Err(e),
        }
        if !self.single_writer {
            probe(&self.inner)?;
        }
        *seen = true;
        Ok(())
    }

    fn inner(&self) -> StoreResult<&Counted> {
        self.look()?;
        Ok(&self.inner)
    }
}

impl ObjectStore for Guard {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        self.inner()?.put(key, body)
    }
    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        self.inner()?.put_if_absent(key, body)
    }
    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        self.inner()?.get(key, range)
    }
    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        self.inner()?.list(prefix, after, max)
    }
    fn delete(&self, key: &str) -> StoreResult<()> {
        self.inner()?.delete(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &std::path::Path) -> Connected {
        let url = format!("file://{}", folder.display());
        let options = ConnectOptions { url, store: StoreOptions::default(), key: None, single_writer: false };
        Connected::open(&options).expect("the folder exists")
    }

    #[test]
    fn an_empty_folder_is_marked_and_a_strange_one_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(folder.path()).tier.store;
        store.put("volumes/disk/1", b"x").expect("the first request looks and goes on");
        open(folder.path()).look().expect("it is ours");
        let strange = tempfile::tempdir().expect("a folder");
        std::fs::write(strange.path().join("photo"), b"x").expect("a file");
        let refusal = open(strange.path()).tier.store.put("a", b"b").expect_err("not ours");
        assert!(refusal.message.contains("photo"), "{refusal}");
        assert_eq!(refusal.kind, StoreErrorKind::Invalid);
    }
}
