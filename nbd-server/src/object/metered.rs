//! Counts what is asked of a store, for metrics and bills.

use blockstore::object::{Created, ObjectEntry, ObjectStore, Range, StoreCounts, StoreErrorKind, StoreResult};
use std::sync::atomic::{AtomicU64, Ordering};

/// A store that counts its requests. A request counts when it ends, its bytes only if it succeeded.
pub struct Metered<S> {
    inner: S,
    puts: AtomicU64,
    put_bytes: AtomicU64,
    gets: AtomicU64,
    get_bytes: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    failures: AtomicU64,
}

impl<S: ObjectStore> Metered<S> {
    /// Counts what goes to `inner` from now on.
    pub fn new(inner: S) -> Self {
        let zero = AtomicU64::default;
        Self {
            inner,
            puts: zero(),
            put_bytes: zero(),
            gets: zero(),
            get_bytes: zero(),
            lists: zero(),
            deletes: zero(),
            failures: zero(),
        }
    }

    /// The figures now. Each is exact; together they are of no one instant while requests run.
    pub fn counts(&self) -> StoreCounts {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreCounts {
            puts: now(&self.puts),
            put_bytes: now(&self.put_bytes),
            gets: now(&self.gets),
            get_bytes: now(&self.get_bytes),
            lists: now(&self.lists),
            deletes: now(&self.deletes),
            failures: now(&self.failures),
        }
    }

    fn count<T>(&self, requests: &AtomicU64, outcome: StoreResult<T>) -> StoreResult<T> {
        requests.fetch_add(1, Ordering::Relaxed);
        if outcome.as_ref().is_err_and(|e| e.kind != StoreErrorKind::NotFound) {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }
}

fn add(bytes: &AtomicU64, body: &[u8]) {
    bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
}

impl<S: ObjectStore> ObjectStore for Metered<S> {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        self.count(&self.puts, self.inner.put(key, body)).inspect(|()| add(&self.put_bytes, body))
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        self.count(&self.puts, self.inner.put_if_absent(key, body)).inspect(|_| add(&self.put_bytes, body))
    }

    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        self.count(&self.gets, self.inner.get(key, range)).inspect(|body| add(&self.get_bytes, body))
    }

    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        self.count(&self.lists, self.inner.list(prefix, after, max))
    }

    fn delete(&self, key: &str) -> StoreResult<()> {
        self.count(&self.deletes, self.inner.delete(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockstore::testing::{SimStore, StoreFault, StoreOp};

    #[test]
    fn it_counts_what_the_store_counts() {
        let sim = SimStore::new(1);
        let store = Metered::new(sim.clone());
        sim.fail_nth(StoreOp::Get, 3, StoreFault::Corrupt);
        let _ = store.put("a", b"four");
        let _ = store.put_if_absent("a", b"three");
        let _ =
            (store.get("a", Range::Part { offset: 1, len: 2 }), store.get("b", Range::All), store.get("a", Range::All));
        let _ = (store.list("", None, 1), store.delete("a"), store.delete("a"));
        let expected = StoreCounts { puts: 2, put_bytes: 9, gets: 3, get_bytes: 2, lists: 1, deletes: 2, failures: 1 };
        assert_eq!(store.counts(), expected);
        assert_eq!(sim.counts(), expected);
    }
}
