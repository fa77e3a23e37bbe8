//! Whether a store's conditional writes work: without them two writers could both succeed (P8).

use crate::open::random_id;
use blockstore::object::{Created, ObjectStore, Range, StoreError, StoreErrorKind, StoreResult};

/// Makes an object twice under the condition that there is none, and looks at what became of it. The object,
/// `probe/` and a random name, is removed again.
///
/// # Errors
/// `Invalid` if the store accepts the second, refuses the first, or returns another object than it accepted:
/// such a store is safe only with `--single-writer`. Else what the store says.
pub fn probe(store: &dyn ObjectStore) -> StoreResult<()> {
    let id = random_id().map_err(|e| StoreError::new(StoreErrorKind::Unavailable, format!("/dev/urandom: {e}")))?;
    let key = format!("probe/{:032x}", u128::from_le_bytes(id));
    let verdict = examine(store, &key);
    // Whatever the verdict, nothing is left; if the store cannot even delete, that is the lesser news.
    let removed = store.delete(&key);
    verdict.and(removed)
}

fn examine(store: &dyn ObjectStore, key: &str) -> StoreResult<()> {
    const FIRST: &[u8] = b"cairn probe: first";
    const SECOND: &[u8] = b"cairn probe: second";
    let broken = |what: &str| {
        let text = format!(
            "this store has no working conditional writes ({key}: {what}), so that nothing would stop two daemons \
             from writing the same pool: use another store, or --single-writer if only one daemon will ever use it"
        );
        Err(StoreError::new(StoreErrorKind::Invalid, text))
    };
    // `Exists` can be our own put, made again after a lost reply; its bytes tell.
    store.put_if_absent(key, FIRST)?;
    if store.get(key, Range::All)? != FIRST {
        return broken("a new object is not what was put");
    }
    if store.put_if_absent(key, SECOND)? == Created::Yes {
        return broken("an object was made although there was one");
    }
    if store.get(key, Range::All)? != FIRST {
        return broken("an object was replaced although the store said that it was not");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockstore::object::ObjectEntry;
    use blockstore::testing::{SimStore, StoreFault, StoreOp};

    /// A store that takes a conditional put for a plain one, and may lie about it.
    struct Unconditional(SimStore, Created);

    impl ObjectStore for Unconditional {
        fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
            self.0.put(key, body)
        }
        fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
            self.0.put(key, body).map(|()| self.1)
        }
        fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
            self.0.get(key, range)
        }
        fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
            self.0.list(prefix, after, max)
        }
        fn delete(&self, key: &str) -> StoreResult<()> {
            self.0.delete(key)
        }
    }

    #[test]
    fn a_store_that_ignores_the_condition_is_refused() {
        for lie in [Created::Yes, Created::Exists] {
            let store = Unconditional(SimStore::new(1), lie);
            let refusal = probe(&store).expect_err("two puts of one key");
            assert_eq!(refusal.kind, StoreErrorKind::Invalid);
            assert!(refusal.message.contains("--single-writer"), "{refusal}");
            assert_eq!(store.0.keys(), [""; 0]);
        }
    }

    #[test]
    fn a_working_store_passes_and_stays_empty() {
        let store = SimStore::new(1);
        probe(&store).expect("conditional writes work");
        assert_eq!(store.keys(), [""; 0]);
        store.fail_nth(StoreOp::PutIfAbsent, 2, StoreFault::Unavailable);
        assert_eq!(probe(&store).expect_err("no answer").kind, StoreErrorKind::Unavailable);
        assert_eq!(store.keys(), [""; 0]);
    }
}
