//! Which data key a scope has: found in the store, made when it is missed, kept in memory.
//!
//! Names, below `keys/<scope>/`:
//!   * `first` is made once, with a conditional put, by the first writer of the scope, and is never removed. Whoever wins
//!     has chosen the scope's data key for ever, whatever key wraps it; so hosts with different key-encryption keys
//!     cannot come to two data keys. Its wrapped key goes when the key that wrapped it is retired; the name stays.
//!   * `<key id>` is the same data key wrapped by another key, made by rotation.
//!
//! Not here: replacing key-encryption keys (`rotate`).

use super::super::{Created, Entropy, ObjectStore, Range, StoreError, StoreErrorKind, StoreResult};
use super::chunk::DataKey;
use super::key::{KeyId, KeyWrap, Secret};
use super::record::{KeyRecord, WRAPPED_BYTES_MAX};
use super::KEYS;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Data keys in memory; with more scopes in use at a time all are read again.
const SCOPES_MAX: usize = 4096;
/// Key names in an error.
const NAMES_SHOWN_MAX: usize = 8;
/// Longest object that is read as a wrapped key: a record and some bytes, to notice that there are more.
const RECORD_BYTES_MAX: u64 = WRAPPED_BYTES_MAX as u64 + 256;

/// The data keys that one key-encryption key leads to.
pub struct KeyRing {
    store: Arc<dyn ObjectStore>,
    wrap: Arc<dyn KeyWrap>,
    entropy: Arc<dyn Entropy>,
    known: Mutex<HashMap<String, Arc<DataKey>>>,
}

/// What the store has for a scope.
pub enum Found {
    /// No data key yet.
    Nothing,
    /// Its data key.
    Key(DataKey),
    /// A data key that only these keys unwrap.
    Foreign(Vec<KeyId>),
}

impl KeyRing {
    pub fn new(store: Arc<dyn ObjectStore>, wrap: Arc<dyn KeyWrap>, entropy: Arc<dyn Entropy>) -> Self {
        Self { store, wrap, entropy, known: Mutex::default() }
    }

    /// The data key of `scope`, if it has one. `what` needs it and is named in errors.
    pub fn find(&self, scope: &str, what: &str) -> StoreResult<Option<Arc<DataKey>>> {
        if let Some(key) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(scope) {
            return Ok(Some(key.clone()));
        }
        match look_up(&*self.store, scope, &*self.wrap)? {
            Found::Nothing => Ok(None),
            Found::Key(key) => Ok(Some(self.keep(scope, key))),
            Found::Foreign(ids) => Err(foreign(what, &ids, &self.wrap.id())),
        }
    }

    /// The data key of `scope`, made now if it has none.
    pub fn find_or_make(&self, scope: &str) -> StoreResult<Arc<DataKey>> {
        let what = format!("what is put below {scope}");
        if let Some(key) = self.find(scope, &what)? {
            return Ok(key);
        }
        let mut bytes = [0; 32];
        self.entropy.fill(&mut bytes);
        let key = DataKey::new(Secret::new(&mut bytes), scope)?;
        let name = first_name(scope);
        match self.store.put_if_absent(&name, &wrapped(&key, &*self.wrap)?.encode()?)? {
            Created::Yes => Ok(self.keep(scope, key)),
            // Another host was faster, or we were and the reply was lost: its key is the scope's either way.
            Created::Exists => self.find(scope, &what)?.ok_or_else(|| {
                StoreError::new(StoreErrorKind::Unavailable, format!("{name} exists and is not found: try again"))
            }),
        }
    }

    fn keep(&self, scope: &str, key: DataKey) -> Arc<DataKey> {
        let key = Arc::new(key);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= SCOPES_MAX {
            known.clear();
        }
        known.insert(scope.to_owned(), key.clone());
        key
    }
}

/// The object that fixes the data key of `scope`.
pub fn first_name(scope: &str) -> String {
    format!("{KEYS}{scope}/first")
}

/// The object with the data key of `scope` wrapped by key `by`.
pub fn wrapped_name(scope: &str, by: &KeyId) -> String {
    format!("{KEYS}{scope}/{by}")
}

/// `key` wrapped by `wrap`.
pub fn wrapped(key: &DataKey, wrap: &dyn KeyWrap) -> StoreResult<KeyRecord> {
    Ok(KeyRecord { data_key: key.id, wrapped: Some((wrap.id(), wrap.wrap(&key.secret)?)) })
}

/// The record in object `name`, if there is one.
pub fn read(store: &dyn ObjectStore, name: &str) -> StoreResult<Option<KeyRecord>> {
    match store.get(name, Range::Part { offset: 0, len: RECORD_BYTES_MAX }) {
        Ok(bytes) => KeyRecord::decode(name, &bytes).map(Some),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Looks for the data key of `scope` with the key-encryption key `wrap`.
pub fn look_up(store: &dyn ObjectStore, scope: &str, wrap: &dyn KeyWrap) -> StoreResult<Found> {
    let name = first_name(scope);
    let first = read(store, &name)?;
    if let Some(record) = first.as_ref().filter(|first| first.is_wrapped_by(&wrap.id())) {
        return open(&name, scope, record, wrap).map(Found::Key);
    }
    match (look_up_own(store, scope, wrap)?, first) {
        (Some(key), Some(first)) if key.id != first.data_key => Err(misplaced(&name)),
        (Some(key), _) => Ok(Found::Key(key)),
        (None, Some(first)) => Ok(Found::Foreign(names(store, scope, first)?)),
        (None, None) => Ok(Found::Nothing),
    }
}

/// Looks for the data key of `scope` only in the object that has the name of `wrap`.
pub fn look_up_own(store: &dyn ObjectStore, scope: &str, wrap: &dyn KeyWrap) -> StoreResult<Option<DataKey>> {
    let name = wrapped_name(scope, &wrap.id());
    read(store, &name)?.map(|record| open(&name, scope, &record, wrap)).transpose()
}

/// The data key in `record`, which object `name` holds.
fn open(name: &str, scope: &str, record: &KeyRecord, wrap: &dyn KeyWrap) -> StoreResult<DataKey> {
    let id = wrap.id();
    let Some((_, wrapped)) = record.wrapped.as_ref().filter(|(by, _)| *by == id) else { return Err(misplaced(name)) };
    let secret = wrap
        .unwrap(wrapped)
        .map_err(|e| StoreError::new(e.kind, format!("unwrapping {name} with key {id}: {}", e.message)))?;
    let key = DataKey::new(secret, scope)?;
    if key.id == record.data_key {
        Ok(key)
    } else {
        Err(misplaced(name))
    }
}

/// Keys that unwrap the data key of `scope`.
fn names(store: &dyn ObjectStore, scope: &str, first: KeyRecord) -> StoreResult<Vec<KeyId>> {
    let folder = format!("{KEYS}{scope}/");
    let mut ids: Vec<KeyId> = first.wrapped.map(|(id, _)| id).into_iter().collect();
    let entries = store.list(&folder, None, NAMES_SHOWN_MAX)?;
    ids.extend(entries.iter().filter_map(|entry| KeyId::new(entry.key.strip_prefix(&folder)?).ok()));
    Ok(ids)
}

/// The error of a host whose key is not among those that unwrap the data key of `what`.
pub fn foreign(what: &str, ids: &[KeyId], ours: &KeyId) -> StoreError {
    let theirs: Vec<&str> = ids.iter().map(KeyId::as_str).collect();
    let theirs =
        if theirs.is_empty() { "a key that was lost".to_owned() } else { format!("key {}", theirs.join(" or ")) };
    let text = format!("{what} is sealed with {theirs}; this host has {ours}: check --key-file");
    StoreError::new(StoreErrorKind::Denied, text)
}

fn misplaced(name: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt, format!("wrapped key {name} is damaged or belongs elsewhere"))
}
