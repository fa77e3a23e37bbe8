//! A store for a host without a key: what is sealed there is refused, instead of being taken for damage.

use super::super::{Created, ObjectEntry, ObjectStore, Range, StoreError, StoreErrorKind, StoreResult};
use super::chunk::looks_sealed;
use super::is_open;
use std::sync::Arc;

/// An object store whose objects are not sealed. Passes everything through, and says so when it meets a sealed object.
pub struct Plain {
    inner: Arc<dyn ObjectStore>,
}

impl Plain {
    /// Objects of `inner` as they are.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner }
    }
}

impl ObjectStore for Plain {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        self.inner.put(key, body)
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        self.inner.put_if_absent(key, body)
    }

    /// `Denied` if the object's beginning was asked for and is sealed. No plaintext object of ours begins like that.
    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        let bytes = self.inner.get(key, range)?;
        let from_start = matches!(range, Range::All | Range::Part { offset: 0, .. });
        if from_start && looks_sealed(&bytes) && !is_open(key) {
            let text = format!("object {key} is sealed; this host has no key: give --key-file or --key-command");
            return Err(StoreError::new(StoreErrorKind::Denied, text));
        }
        Ok(bytes)
    }

    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        self.inner.list(prefix, after, max)
    }

    fn delete(&self, key: &str) -> StoreResult<()> {
        self.inner.delete(key)
    }
}
