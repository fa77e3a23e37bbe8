//! An object store in memory, shared by several clients ("hosts"), that fails on demand.
//!
//! Fault model
//!   * a request may fail without having been done, or be done and fail all the same: the caller hears `Unavailable`
//!     for both and cannot tell them apart;
//!   * a get may miss an object that is there, return fewer bytes than it should, or report damage; a list may miss
//!     the latest puts. S3 promises none of these happens: they are for code that claims to survive them;
//!   * a conditional put never says `Exists` when there is no object, and never replaces one;
//!   * a client may be held before its request takes effect, or be cut off from the store.
//!
//! The same seed and the same order of calls give the same faults.

use super::rng::Rng;
use crate::object::{
    check_key, Created, ObjectEntry, ObjectStore, Range, StoreCounts, StoreError, StoreErrorKind, StoreResult,
    OBJECT_BYTES_MAX,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreOp {
    /// `put`.
    Put,
    /// `put_if_absent`.
    PutIfAbsent,
    /// `get`.
    Get,
    /// `list`.
    List,
    /// `delete`.
    Delete,
}

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFault {
    /// Nothing is done; `Unavailable`.
    Unavailable,
    /// A put or delete is done, and the reply is lost: `Unavailable`.
    LostReply,
    /// A get returns fewer bytes than it should, as if they were all.
    Short,
    /// A get says `Corrupt`.
    Corrupt,
    /// A get says `NotFound`, whatever there is.
    Missing,
    /// A list misses some of the latest puts.
    StaleList,
}

impl StoreFault {
    /// Whether a request of this kind can fail so.
    fn fits(self, op: StoreOp) -> bool {
        match self {
            Self::Unavailable => true,
            Self::LostReply => matches!(op, StoreOp::Put | StoreOp::PutIfAbsent | StoreOp::Delete),
            Self::Short | Self::Corrupt | Self::Missing => op == StoreOp::Get,
            Self::StaleList => op == StoreOp::List,
        }
    }
}

/// How many of the latest puts a stale list can miss.
const STALE_MAX: usize = 4;

struct Object {
    body: Arc<[u8]>,
    modified_us: u64,
    /// Place in the order of all puts.
    put: u64,
}

struct State {
    objects: BTreeMap<String, Object>,
    rng: Rng,
    now_us: u64,
    puts: u64,
    calls: BTreeMap<StoreOp, u64>,
    counts: StoreCounts,
    /// Faults of single calls, by number of the call among those of its kind.
    planned: Vec<(StoreOp, u64, StoreFault)>,
    /// Faults that hit one in so many calls.
    random: Vec<(StoreOp, usize, StoreFault)>,
    /// Clients whose calls (of one kind, or all) wait.
    paused: BTreeMap<String, Option<StoreOp>>,
    waiting: BTreeMap<String, usize>,
    cut_off: BTreeSet<String>,
}

impl State {
    /// Counts a call and decides what goes wrong with it. Several faults at once: the one injected first.
    fn count(&mut self, op: StoreOp) -> Option<StoreFault> {
        let number = self.calls.entry(op).or_default();
        *number += 1;
        let number = *number;
        match op {
            StoreOp::Put | StoreOp::PutIfAbsent => self.counts.puts += 1,
            StoreOp::Get => self.counts.gets += 1,
            StoreOp::List => self.counts.lists += 1,
            StoreOp::Delete => self.counts.deletes += 1,
        }
        let hit = |&(of, at, _): &(StoreOp, u64, StoreFault)| of == op && at == number;
        if let Some(at) = self.planned.iter().position(hit) {
            return Some(self.planned.remove(at).2);
        }
        let rng = &mut self.rng;
        self.random.iter().filter(|(of, one_in, _)| *of == op && rng.one_in(*one_in)).map(|(_, _, fault)| *fault).next()
    }

    fn insert(&mut self, key: &str, body: &[u8]) {
        self.now_us += 1;
        self.puts += 1;
        let object = Object { body: body.into(), modified_us: self.now_us, put: self.puts };
        self.objects.insert(key.to_owned(), object);
    }
}

struct Shared {
    state: Mutex<State>,
    resumed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The store, as one client sees it; clones and [`SimStore::client`]s share it.
#[derive(Clone)]
pub struct SimStore {
    shared: Arc<Shared>,
    client: String,
    observer: bool,
}

fn unavailable(op: StoreOp, key: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, format!("{op:?} {key}: the simulated store does not answer"))
}

impl SimStore {
    /// An empty store without faults.
    pub fn new(seed: u64) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            rng: Rng::new(seed),
            now_us: 1_700_000_000_000_000,
            puts: 0,
            calls: BTreeMap::new(),
            counts: StoreCounts::default(),
            planned: Vec::new(),
            random: Vec::new(),
            paused: BTreeMap::new(),
            waiting: BTreeMap::new(),
            cut_off: BTreeSet::new(),
        };
        let shared = Shared { state: Mutex::new(state), resumed: Condvar::new() };
        Self { shared: Arc::new(shared), client: String::new(), observer: false }
    }

    /// The same store as another client sees it.
    pub fn client(&self, name: &str) -> Self {
        Self { shared: self.shared.clone(), client: name.to_owned(), observer: false }
    }

    /// The same store for an observer: its requests do not fail, and are not counted.
    pub fn observer(&self) -> Self {
        Self { shared: self.shared.clone(), client: String::new(), observer: true }
    }

    /// The `nth` call of `op` from now on (1 is the next) fails so, whoever makes it.
    pub fn fail_nth(&self, op: StoreOp, nth: u64, fault: StoreFault) {
        assert!(fault.fits(op), "{op:?} cannot fail with {fault:?}");
        let mut state = self.shared.lock();
        let at = state.calls.get(&op).copied().unwrap_or_default() + nth;
        state.planned.push((op, at, fault));
    }

    /// On average one in `one_in` calls of `op` fails so, until [`SimStore::calm`].
    pub fn fail_one_in(&self, op: StoreOp, one_in: usize, fault: StoreFault) {
        assert!(fault.fits(op), "{op:?} cannot fail with {fault:?}");
        self.shared.lock().random.push((op, one_in, fault));
    }

    /// Takes back every fault that has not struck.
    pub fn calm(&self) {
        let mut state = self.shared.lock();
        state.planned.clear();
        state.random.clear();
    }

    /// From now on calls of `client` (of one kind, or all) wait before they have any effect.
    pub fn pause(&self, client: &str, op: Option<StoreOp>) {
        self.shared.lock().paused.insert(client.to_owned(), op);
    }

    /// How many calls of `client` wait.
    pub fn waiting(&self, client: &str) -> usize {
        self.shared.lock().waiting.get(client).copied().unwrap_or_default()
    }

    /// From now on every call of `client` fails without effect, also those that wait.
    pub fn cut_off(&self, client: &str) {
        self.shared.lock().cut_off.insert(client.to_owned());
        self.shared.resumed.notify_all();
    }

    /// Undoes [`SimStore::pause`] and [`SimStore::cut_off`].
    pub fn resume(&self, client: &str) {
        let mut state = self.shared.lock();
        state.paused.remove(client);
        state.cut_off.remove(client);
        drop(state);
        self.shared.resumed.notify_all();
    }

    /// Moves the store's clock, which else only counts puts.
    pub fn advance_us(&self, by: u64) {
        self.shared.lock().now_us += by;
    }

    /// Requests of all clients so far.
    pub fn counts(&self) -> StoreCounts {
        self.shared.lock().counts
    }

    /// All keys, without a request.
    pub fn keys(&self) -> Vec<String> {
        self.shared.lock().objects.keys().cloned().collect()
    }

    /// An object's bytes, without a request.
    pub fn body(&self, key: &str) -> Option<Vec<u8>> {
        self.shared.lock().objects.get(key).map(|object| object.body.to_vec())
    }

    /// Replaces an object behind everybody's back, or removes it: damage for tests to do.
    pub fn replace(&self, key: &str, body: Option<&[u8]>) {
        let mut state = self.shared.lock();
        match body {
            Some(body) => state.insert(key, body),
            None => drop(state.objects.remove(key)),
        }
    }

    /// Waits while this client is paused, then counts the call and decides about it.
    fn begin(&self, op: StoreOp, key: &str) -> StoreResult<(MutexGuard<'_, State>, Option<StoreFault>)> {
        let mut state = self.shared.lock();
        if self.observer {
            return Ok((state, None));
        }
        let held = |state: &State| match state.paused.get(&self.client) {
            Some(only) => only.is_none_or(|only| only == op) && !state.cut_off.contains(&self.client),
            None => false,
        };
        if held(&state) {
            *state.waiting.entry(self.client.clone()).or_default() += 1;
            while held(&state) {
                state = self.shared.resumed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            *state.waiting.entry(self.client.clone()).or_default() -= 1;
        }
        let fault = state.count(op);
        if state.cut_off.contains(&self.client) || fault == Some(StoreFault::Unavailable) {
            state.counts.failures += 1;
            return Err(unavailable(op, key));
        }
        Ok((state, fault))
    }

    /// A change: `effect` takes place, and then the reply may be lost.
    fn change<T>(&self, op: StoreOp, key: &str, effect: impl FnOnce(&mut State) -> T) -> StoreResult<T> {
        let (mut state, fault) = self.begin(op, key)?;
        let outcome = effect(&mut state);
        if fault == Some(StoreFault::LostReply) {
            state.counts.failures += 1;
            return Err(unavailable(op, key));
        }
        Ok(outcome)
    }
}

fn check_put(key: &str, body: &[u8]) -> StoreResult<()> {
    check_key(key)?;
    if body.len() as u64 > OBJECT_BYTES_MAX {
        let text = format!("put {key}: {} bytes are more than an object may have", body.len());
        return Err(StoreError::new(StoreErrorKind::Invalid, text));
    }
    Ok(())
}

impl ObjectStore for SimStore {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        check_put(key, body)?;
        self.change(StoreOp::Put, key, |state| {
            state.counts.put_bytes += body.len() as u64;
            state.insert(key, body);
        })
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        check_put(key, body)?;
        self.change(StoreOp::PutIfAbsent, key, |state| {
            state.counts.put_bytes += body.len() as u64;
            if state.objects.contains_key(key) {
                return Created::Exists;
            }
            state.insert(key, body);
            Created::Yes
        })
    }

    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        check_key(key)?;
        let (mut state, fault) = self.begin(StoreOp::Get, key)?;
        if fault == Some(StoreFault::Corrupt) {
            state.counts.failures += 1;
            return Err(StoreError::new(StoreErrorKind::Corrupt, format!("get {key}: damaged on purpose")));
        }
        let object = state.objects.get(key).filter(|_| fault != Some(StoreFault::Missing));
        let Some(object) = object else {
            return Err(StoreError::new(StoreErrorKind::NotFound, format!("get {key}: there is no such object")));
        };
        let body = object.body.clone();
        let mut part = match range {
            Range::All => &body[..],
            Range::Part { offset, len } => {
                let from = body.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                &body[from..from.saturating_add(len).min(body.len())]
            }
        };
        if fault == Some(StoreFault::Short) && !part.is_empty() {
            part = &part[..state.rng.below(part.len())];
        }
        state.counts.get_bytes += part.len() as u64;
        Ok(part.to_vec())
    }

    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        let (mut state, fault) = self.begin(StoreOp::List, prefix)?;
        let missed = if fault == Some(StoreFault::StaleList) { 1 + state.rng.below(STALE_MAX) as u64 } else { 0 };
        let newest = state.puts - missed.min(state.puts);
        let seen = |(key, object): &(&String, &Object)| {
            key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after) && object.put <= newest
        };
        let entry = |(key, object): (&String, &Object)| ObjectEntry {
            key: key.clone(),
            size: object.body.len() as u64,
            modified_us: object.modified_us,
        };
        Ok(state.objects.iter().filter(seen).take(max).map(entry).collect())
    }

    fn delete(&self, key: &str) -> StoreResult<()> {
        check_key(key)?;
        self.change(StoreOp::Delete, key, |state| drop(state.objects.remove(key)))
    }
}
