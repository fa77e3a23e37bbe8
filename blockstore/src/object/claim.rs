//! Finding a volume's newest manifest.

use super::{ObjectStore, Range};
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::{manifest_number, manifest_prefix, Manifest};
use crate::space::store_error;
use crate::types::VolumeId;
use std::sync::{Arc, Mutex, PoisonError};

/// The newest manifest, if there is any.
pub(crate) type Claimed = Option<Box<Manifest>>;

/// Looks up the newest manifests of volumes; runs on any thread.
pub struct ClaimJob {
    store: Arc<dyn ObjectStore>,
    names: Vec<(VolumeId, String)>,
    pub(crate) began_us: u64,
    found: Mutex<Vec<(VolumeId, Claimed)>>,
}

impl ClaimJob {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, names: Vec<(VolumeId, String)>, began_us: u64) -> Self {
        Self { store, names, began_us, found: Mutex::default() }
    }

    /// Asks the store; blocks.
    pub fn run(&self) -> Result<()> {
        for (id, name) in &self.names {
            let newest = newest_manifest(&*self.store, name)?;
            self.found.lock().unwrap_or_else(PoisonError::into_inner).push((*id, newest.map(Box::new)));
        }
        Ok(())
    }

    pub(crate) fn take(self) -> Vec<(VolumeId, Claimed)> {
        self.found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The newest manifest of a volume of which number `number` was just put; `None` when it is that one. Whoever was
/// held for long may have put it in the place of one that was deleted long ago.
pub(crate) fn newer_than(store: &dyn ObjectStore, name: &str, number: u64) -> Result<Option<Manifest>> {
    let newest = newest_manifest(store, name)?;
    let newest =
        newest.ok_or_else(|| Error::new(ErrorKind::Unavailable, format!("the manifests of {name:?} are gone")))?;
    Ok((newest.number > number).then_some(newest))
}

/// A volume's newest manifest.
pub fn newest_manifest(store: &dyn ObjectStore, name: &str) -> Result<Option<Manifest>> {
    let wrap = |e| store_error(&format!("looking for the manifests of {name:?}"), &e);
    let listed = store.list(&manifest_prefix(name), None, 1).map_err(wrap)?;
    let Some(entry) = listed.into_iter().next() else { return Ok(None) };
    if manifest_number(&entry.key).is_none() {
        let text = format!("{} is no manifest: does the bucket hold something else? Choose another prefix", entry.key);
        return Err(Error::invalid(text));
    }
    let bytes = store.get(&entry.key, Range::All).map_err(wrap)?;
    Manifest::decode(&bytes, &entry.key).map(Some)
}
