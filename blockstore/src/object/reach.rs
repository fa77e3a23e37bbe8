//! What the volumes in a bucket need, from the bucket alone.
//!
//! Invariants
//!   * what was needed by any volume's newest manifest at one instant is marked. That instant lies between two lists
//!     of all manifests: the first says which were newest before it, and read is everything from those on. So a
//!     reference that moves to another volume (a fork) while manifests are read is not missed;
//!   * a reference arises only from another reference to the same object, or from the pool that made it: what is
//!     unmarked, and not new, stays unreachable;
//!   * whatever cannot be read or understood ends the marking with an error: nothing is deleted then.
//!
//! Memory: forty bytes an object, and one manifest.

use super::{ObjectEntry, ObjectStore, Range, StoreErrorKind};
use crate::error::{Error, Result};
use crate::format::manifest::{manifest_number, Manifest, ObjectInfo, Tenure};
use crate::format::object::{Directory, ObjectId};
use crate::limits::OBJECT_DIRECTORY_MAX;
use crate::space::store_error;
use crate::types::VolumeId;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Keys in one list.
const PAGE: usize = 1000;
/// First bytes that are read of an object to see what it is: most directories are shorter.
const DIRECTORY_GUESS: u64 = 64 << 10;

/// A volume's newest manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub number: u64,
    /// What the volume is.
    pub tenure: Tenure,
    /// How often it has changed hands.
    pub epoch: u64,
    /// The pool that wrote it.
    pub pool: [u8; 16],
    /// The opening of that pool.
    pub pool_epoch: u64,
    /// The pool whose numbers stand in it.
    pub maker: [u8; 16],
    /// The volume's number there.
    pub volume: VolumeId,
    /// Bytes of all objects that it names.
    pub bytes: u64,
    /// The pools that made them.
    pub makers: BTreeSet<[u8; 16]>,
}

/// What is needed.
#[derive(Default)]
pub(crate) struct Marked {
    pub objects: HashSet<ObjectId>,
    pub volumes: BTreeMap<String, Seen>,
}

/// Calls `visit` for every object whose key begins with `prefix`, in order, a page at a time.
pub(crate) fn each(
    store: &dyn ObjectStore,
    prefix: &str,
    visit: &mut dyn FnMut(&ObjectEntry) -> Result<()>,
) -> Result<()> {
    let mut after: Option<String> = None;
    loop {
        let page = store.list(prefix, after.as_deref(), PAGE);
        let page = page.map_err(|e| store_error(&format!("listing {prefix}"), &e))?;
        page.iter().try_for_each(&mut *visit)?;
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
            _ => return Ok(()),
        }
    }
}

/// The volume's name and the number in a manifest's key.
pub(crate) fn manifest_place(key: &str) -> Result<(&str, u64)> {
    let parse = || {
        let (name, _) = key.strip_prefix("volumes/")?.split_once('/')?;
        let number = manifest_number(key)?;
        (crate::format::manifest::manifest_key(name, number) == key).then_some((name, number))
    };
    parse().ok_or_else(|| {
        Error::invalid(format!("{key} is no manifest: does the bucket hold something else? Choose another prefix"))
    })
}

/// Number of each volume's newest manifest.
pub(crate) fn newest_numbers(store: &dyn ObjectStore) -> Result<BTreeMap<String, u64>> {
    let mut numbers = BTreeMap::new();
    each(store, "volumes/", &mut |entry| {
        let (name, number) = manifest_place(&entry.key)?;
        // The newest comes first.
        if !numbers.contains_key(name) {
            numbers.insert(name.to_owned(), number);
        }
        Ok(())
    })?;
    Ok(numbers)
}

/// Reads the manifest under `key`.
pub(crate) fn read_manifest(store: &dyn ObjectStore, key: &str) -> Result<Manifest> {
    let bytes = store.get(key, Range::All).map_err(|e| store_error(&format!("reading manifest {key}"), &e))?;
    Manifest::decode(&bytes, key)
}

/// Marks what is needed.
pub(crate) fn mark(store: &dyn ObjectStore) -> Result<Marked> {
    let before = newest_numbers(store)?;
    let mut marked = Marked::default();
    each(store, "volumes/", &mut |entry| {
        let (name, number) = manifest_place(&entry.key)?;
        let newest = !marked.volumes.contains_key(name);
        if !newest && number < before.get(name).copied().unwrap_or(0) {
            return Ok(());
        }
        let manifest = read_manifest(store, &entry.key)?;
        marked.objects.extend(manifest.objects.keys().copied());
        if newest {
            marked.volumes.insert(name.to_owned(), seen(&manifest));
        }
        Ok(())
    })?;
    Ok(marked)
}

/// All volumes in a bucket, deleted ones too, by name.
pub fn list_volumes(store: &dyn ObjectStore) -> Result<BTreeMap<String, Seen>> {
    let read = |(name, number): (String, u64)| {
        let manifest = read_manifest(store, &crate::format::manifest::manifest_key(&name, number))?;
        Ok((name, seen(&manifest)))
    };
    newest_numbers(store)?.into_iter().map(read).collect()
}

/// One volume of a bucket, as its newest manifest says.
pub fn volume_seen(store: &dyn ObjectStore, name: &str) -> Result<Option<Seen>> {
    Ok(super::claim::newest_manifest(store, name)?.as_ref().map(seen))
}

/// What a report says of a manifest.
pub(crate) fn seen(manifest: &Manifest) -> Seen {
    Seen {
        number: manifest.number,
        tenure: manifest.tenure,
        epoch: manifest.epoch,
        pool: manifest.pool,
        pool_epoch: manifest.pool_epoch,
        maker: manifest.maker,
        volume: manifest.volume,
        bytes: manifest.objects.values().map(|info| info.len).sum(),
        makers: super::pins::makers(manifest),
    }
}

/// Deletes an object, if its directory says that it is that one; it may be gone already.
///
/// # Errors
/// `Corrupt` or `Invalid` when something else lies there: it stays.
pub(crate) fn erase(store: &dyn ObjectStore, id: &ObjectId, info: Option<&ObjectInfo>) -> Result<()> {
    let key = id.key();
    let get = |len: u64| match store.get(&key, Range::Part { offset: 0, len }) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
        Err(e) => Err(store_error(&format!("reading object {key}"), &e)),
    };
    let Some(mut bytes) = get(info.map_or(DIRECTORY_GUESS, |info| info.directory.into()))? else { return Ok(()) };
    let len = Directory::claimed_len(&bytes).unwrap_or(0);
    if len as usize > bytes.len() && len <= OBJECT_DIRECTORY_MAX {
        bytes = get(len.into())?.unwrap_or_default();
    }
    let directory = Directory::decode(&bytes, id)?;
    let own = bytes.get(..directory.len as usize).unwrap_or_default();
    if info.is_some_and(|info| Directory::check(own) != info.check) {
        return Err(Error::corrupt(format!("object {key} is not the one that was put there")));
    }
    store.delete(&key).map_err(|e| store_error(&format!("deleting object {key}"), &e))
}
