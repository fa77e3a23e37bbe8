//! What every [`ObjectStore`] must do, whatever stands behind it: one function, run against all of them.

use crate::object::{Created, ObjectStore, Range, StoreErrorKind};

/// Panics if `store`, which is empty at first and at the end, breaks the contract of [`ObjectStore`].
pub fn store_conformance(store: &dyn ObjectStore) {
    objects_come_back(store);
    conditional_puts_replace_nothing(store);
    ranges_end_where_the_object_ends(store);
    lists_are_in_the_order_of_bytes(store);
    bad_keys_are_refused(store);
    assert_eq!(keys(store, "", None, 1000), [""; 0], "everything was deleted");
}

/// Panics unless of `threads` conditional puts of one key at a time exactly one makes the object, and its body stays.
pub fn one_of_many_creates(store: &dyn ObjectStore, key: &str, threads: usize) {
    let start = std::sync::Barrier::new(threads);
    let outcomes: Vec<Created> = std::thread::scope(|scope| {
        let start = &start;
        let put = move |number: usize| {
            start.wait();
            store.put_if_absent(key, format!("writer {number}").as_bytes()).expect("a working store")
        };
        let writers: Vec<_> = (0..threads).map(|number| scope.spawn(move || put(number))).collect();
        writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
    });
    let winners: Vec<usize> = (0..threads).filter(|&number| outcomes[number] == Created::Yes).collect();
    assert_eq!(winners.len(), 1, "{key}: {outcomes:?}");
    assert_eq!(get(store, key, Range::All), format!("writer {}", winners[0]).into_bytes(), "the winner's body");
    store.delete(key).expect("a delete");
}

fn get(store: &dyn ObjectStore, key: &str, range: Range) -> Vec<u8> {
    store.get(key, range).unwrap_or_else(|e| panic!("get {key} {range:?}: {e}"))
}

fn put(store: &dyn ObjectStore, key: &str, body: &[u8]) {
    store.put(key, body).unwrap_or_else(|e| panic!("put {key}: {e}"));
}

fn is_absent(store: &dyn ObjectStore, key: &str) -> bool {
    matches!(store.get(key, Range::All), Err(e) if e.kind == StoreErrorKind::NotFound && e.message.contains(key))
}

fn keys(store: &dyn ObjectStore, prefix: &str, after: Option<&str>, max: usize) -> Vec<String> {
    let listed = store.list(prefix, after, max).unwrap_or_else(|e| panic!("list {prefix:?} after {after:?}: {e}"));
    listed.into_iter().map(|entry| entry.key).collect()
}

fn delete_all(store: &dyn ObjectStore) {
    for key in keys(store, "", None, 1000) {
        store.delete(&key).unwrap_or_else(|e| panic!("delete {key}: {e}"));
        assert!(is_absent(store, &key), "{key} is gone");
    }
}

fn objects_come_back(store: &dyn ObjectStore) {
    assert!(is_absent(store, "a"), "at first there is nothing");
    let large: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for body in [b"one".as_slice(), b"", b"\0\xff\r\n\r\n", &large, b"shorter"] {
        put(store, "deep/er/a", body);
        assert!(get(store, "deep/er/a", Range::All) == body, "a put replaces: {} bytes", body.len());
        let entry = store.list("", None, 10).expect("a list");
        assert_eq!((entry.len(), entry[0].key.as_str(), entry[0].size), (1, "deep/er/a", body.len() as u64));
        assert!(entry[0].modified_us > 1_500_000_000_000_000, "microseconds since 1970");
    }
    assert!(is_absent(store, "deep/er") && is_absent(store, "deep/er/a/b"), "folders are no objects");
    for nothing in ["b", "deep", "deep/er", "deep/er/a/b"] {
        store.delete(nothing).unwrap_or_else(|e| panic!("removing what is not there ({nothing}) is no error: {e}"));
    }
    assert_eq!(get(store, "deep/er/a", Range::All), b"shorter");
    delete_all(store);
}

fn conditional_puts_replace_nothing(store: &dyn ObjectStore) {
    let create = |body: &[u8]| store.put_if_absent("m/1", body).expect("a conditional put");
    assert_eq!(create(b"first"), Created::Yes);
    assert_eq!(create(b"second"), Created::Exists);
    assert_eq!(create(b"first"), Created::Exists, "also when it is the same");
    assert_eq!(get(store, "m/1", Range::All), b"first");
    put(store, "m/1", b"put");
    assert_eq!(create(b"third"), Created::Exists, "what a plain put made counts");
    store.delete("m/1").expect("a delete");
    assert_eq!(create(b"fourth"), Created::Yes, "after a delete the key is free");
    delete_all(store);
    for round in 0..4 {
        one_of_many_creates(store, &format!("race/{round}"), 8);
    }
}

fn ranges_end_where_the_object_ends(store: &dyn ObjectStore) {
    put(store, "r", b"0123456789");
    put(store, "empty", b"");
    let part = |key, offset, len| get(store, key, Range::Part { offset, len });
    assert_eq!(part("r", 0, 10), b"0123456789");
    assert_eq!(part("r", 3, 4), b"3456");
    assert_eq!(part("r", 9, 1), b"9");
    assert_eq!(part("r", 8, 100), b"89");
    assert_eq!(part("r", 8, u64::MAX), b"89");
    assert_eq!(part("r", 10, 1), b"");
    assert_eq!(part("r", 1 << 40, 1), b"");
    assert_eq!(part("r", u64::MAX, 1), b"");
    assert_eq!(part("empty", 0, 1), b"");
    assert_eq!(get(store, "empty", Range::All), b"");
    let gone = store.get("gone", Range::Part { offset: 0, len: 1 }).expect_err("nothing");
    assert_eq!(gone.kind, StoreErrorKind::NotFound);
    delete_all(store);
}

fn lists_are_in_the_order_of_bytes(store: &dyn ObjectStore) {
    // '-' and '.' come before '/', digits and letters after it: folders sort among files as `name/`.
    let sorted =
        ["a-b", "a.b", "a/-", "a/0", "a/B/1", "a/B/2", "a/b", "a0", "aB/x", "ab", "b-/1", "b/1/2/3/4", "b/1/2_", "c"];
    for key in sorted.iter().rev() {
        put(store, key, key.as_bytes());
    }
    assert_eq!(keys(store, "", None, 1000), sorted);
    for (at, key) in sorted.iter().enumerate() {
        assert_eq!(keys(store, "", Some(key), 1000), sorted[at + 1..], "after {key}");
        assert_eq!(keys(store, "", Some(key), 2), sorted[at + 1..sorted.len().min(at + 3)], "two after {key}");
        assert_eq!(keys(store, "", None, at), sorted[..at], "at most {at}");
    }
    for prefix in ["a", "a/", "a/B", "a/B/", "b/1/2", "b/1/2/", "b-", "c", "c/", "d", "a/b"] {
        let all: Vec<&str> = sorted.into_iter().filter(|key| key.starts_with(prefix)).collect();
        assert_eq!(keys(store, prefix, None, 1000), all, "prefix {prefix}");
        // `after` need not be a key, nor begin with the prefix.
        for after in ["", "a/B/", "a/B/11", "a~", "b/1", "zzz"] {
            let some: Vec<&str> = all.iter().copied().filter(|key| *key > after).collect();
            assert_eq!(keys(store, prefix, Some(after), 1000), some, "prefix {prefix} after {after}");
        }
    }
    delete_all(store);
}

fn bad_keys_are_refused(store: &dyn ObjectStore) {
    for key in ["", "/", "../a", "a/../../b", "a//b", "a/", "/a", ".a", "a b", "ä"] {
        let refused = [
            store.put(key, b"").err(),
            store.put_if_absent(key, b"").err(),
            store.get(key, Range::All).err(),
            store.delete(key).err(),
        ];
        for refusal in refused {
            assert_eq!(refusal.map(|e| e.kind), Some(StoreErrorKind::Invalid), "{key:?}");
        }
    }
}
