//! Data keys: one for a scope, whoever races; the right key-encryption key, or a clear error; rotation at every step.

use super::super::keyring::look_up;
use super::*;

const SCOPES: [&str; 3] = ["objects/pool/a/1", "objects/pool/b/1", "volumes/disk/1"];

/// A store with an object in every scope, sealed by a host with key 1.
fn filled() -> Arc<Memory> {
    let store = Arc::<Memory>::default();
    let sealed = host(&store, 1, 1);
    SCOPES.iter().for_each(|key| sealed.put(key, key.as_bytes()).unwrap());
    store
}

/// Whether a fresh host with key `number` reads everything.
fn reads_all(objects: &BTreeMap<String, Vec<u8>>, number: u8) -> bool {
    let sealed = host(&Memory::of(objects.clone()), number, 77);
    SCOPES.iter().all(|key| match sealed.get(key, Range::All) {
        Ok(bytes) => bytes == key.as_bytes(),
        Err(e) => {
            assert_eq!(e.kind, StoreErrorKind::Denied, "{e}");
            false
        }
    })
}

fn data_of(objects: &BTreeMap<String, Vec<u8>>) -> Vec<(&String, &Vec<u8>)> {
    objects.iter().filter(|(key, _)| !key.starts_with(KEYS)).collect()
}

#[test]
fn a_wrong_key_is_named_with_the_right_one() {
    let store = filled();
    let sealed = host(&store, 2, 1);
    let before = store.copy();
    let (theirs, ours) = (kek(1).id(), kek(2).id());
    let e = sealed.get(SCOPES[0], Range::All).unwrap_err();
    let wanted = format!("object {} is sealed with key {theirs}; this host has {ours}: check --key-file", SCOPES[0]);
    assert_eq!((e.kind, e.message), (StoreErrorKind::Denied, wanted));
    for result in [sealed.put(SCOPES[0], b"x"), sealed.put_if_absent(SCOPES[0], b"x").map(drop)] {
        let e = result.unwrap_err();
        assert!(e.kind == StoreErrorKind::Denied && e.message.contains(theirs.as_str()), "{e}");
    }
    assert_eq!(store.copy(), before, "a host with a wrong key changes nothing");
}

#[test]
fn a_lost_key_object_is_named() {
    let store = filled();
    store.delete("keys/volumes/disk/first").unwrap();
    let e = host(&store, 1, 1).get("volumes/disk/1", Range::All).unwrap_err();
    assert!(e.kind == StoreErrorKind::Denied && e.message.contains("keys/volumes/disk/first"), "{e}");
}

#[test]
fn every_flipped_byte_of_a_wrapped_key_is_noticed() {
    let store = filled();
    let name = "keys/volumes/disk/first";
    let stored = store.copy()[name].clone();
    let is_noticed = |bytes: &[u8], what: &str| {
        store.put(name, bytes).unwrap();
        let e = host(&store, 1, 1).get("volumes/disk/1", Range::All).unwrap_err();
        assert!(e.kind == StoreErrorKind::Corrupt && e.message.contains(name), "{what}: {e}");
    };
    for at in 0..stored.len() {
        let mut bytes = stored.clone();
        bytes[at] ^= 0x41;
        is_noticed(&bytes, &format!("byte {at}"));
        is_noticed(&stored[..at], &format!("cut to {at}"));
        // With a checksum that fits: whoever writes to the store can do that.
        if at >= 52 {
            crate::format::codec::seal_checksum(&mut bytes, 12);
            is_noticed(&bytes, &format!("byte {at}, forged"));
        }
    }
    is_noticed(&[stored.as_slice(), &[0]].concat(), "lengthened");
    is_noticed(&vec![0; 1 << 20], "huge");
    is_noticed(&store.copy()["keys/objects/pool/a/first"], "the key of another scope");
}

/// Two hosts that both found no key: whatever happens between their requests, they end with one data key.
#[test]
fn hosts_that_race_for_a_scope_agree() {
    struct Racing {
        store: Arc<Memory>,
        rival: Sealed,
        before: &'static str,
    }
    impl ObjectStore for Racing {
        fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
            self.store.put(key, body)
        }
        fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
            if key == self.before {
                self.rival.put("volumes/disk/1", b"the rival's").unwrap();
            }
            self.store.put_if_absent(key, body)
        }
        fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
            self.store.get(key, range)
        }
        fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
            self.store.list(prefix, after, max)
        }
        fn delete(&self, key: &str) -> StoreResult<()> {
            self.store.delete(key)
        }
    }
    for rival_key in [1, 2] {
        let store = Arc::<Memory>::default();
        let rival = host(&store, rival_key, 5);
        let racing = Racing { store: store.clone(), rival, before: "keys/volumes/disk/first" };
        let sealed = Sealed::new(Arc::new(racing), kek(1), Seeded::new(6));
        let result = sealed.put_if_absent("volumes/disk/1", b"ours");
        if rival_key == 1 {
            assert_eq!(result.unwrap(), Created::Exists);
            sealed.put("volumes/disk/2", b"ours").unwrap();
            assert_eq!(sealed.get("volumes/disk/1", Range::All).unwrap(), b"the rival's");
            assert_eq!(host(&store, 1, 7).get("volumes/disk/2", Range::All).unwrap(), b"ours");
        } else {
            assert_eq!(result.unwrap_err().kind, StoreErrorKind::Denied, "no second data key beside the rival's");
        }
        assert_eq!(store.copy().keys().filter(|key| key.starts_with(KEYS)).count(), 1);
    }
}

#[test]
fn threads_that_race_for_a_scope_agree() {
    let store = Arc::<Memory>::default();
    std::thread::scope(|threads| {
        for number in 0..8u64 {
            let store = &store;
            threads.spawn(move || host(store, 1, number).put(&format!("volumes/disk/{number}"), b"x").unwrap());
        }
    });
    let sealed = host(&store, 1, 99);
    (0..8).for_each(|n| assert_eq!(sealed.get(&format!("volumes/disk/{n}"), Range::All).unwrap(), b"x"));
}

/// The reply to the put of a new data key is lost; whether it was done or not, trying again works.
#[test]
fn a_lost_reply_to_a_new_key_does_no_harm() {
    for (answers, does_the_last) in (0..5).flat_map(|n| [(n, false), (n, true)]) {
        let broken = Arc::new(Memory { answers: Some(answers), does_the_last, ..Memory::default() });
        let _ = host(&broken, 1, 1).put(SCOPES[0], b"first try");
        let store = Memory::of(broken.copy());
        host(&store, 1, 2).put(SCOPES[0], b"second try").unwrap();
        assert_eq!(host(&store, 1, 3).get(SCOPES[0], Range::All).unwrap(), b"second try");
    }
}

#[test]
fn rotation_changes_keys_and_no_data() {
    let store = filled();
    let before = store.copy();
    let done = rewrap(&*store, &*kek(1), &*kek(2)).unwrap();
    assert_eq!(done, Rotation { scopes: 3, rewrapped: 3, foreign: 0 });
    assert!(reads_all(&store.copy(), 1) && reads_all(&store.copy(), 2), "between the two steps both keys work");
    let done = retire(&*store, &*kek(1), &*kek(2)).unwrap();
    assert_eq!(done, Rotation { scopes: 3, rewrapped: 0, foreign: 0 });
    assert!(!reads_all(&store.copy(), 1) && reads_all(&store.copy(), 2));
    assert_eq!(data_of(&store.copy()), data_of(&before));
    // And on, and back to the first key, of whose time only the names are left.
    assert_eq!(rotate(&*store, &*kek(2), &*kek(3)).unwrap().rewrapped, 3);
    assert_eq!(rotate(&*store, &*kek(3), &*kek(1)).unwrap().rewrapped, 3);
    assert!(reads_all(&store.copy(), 1) && !reads_all(&store.copy(), 2) && !reads_all(&store.copy(), 3));
    host(&store, 1, 4).put("volumes/disk/2", b"written behind rotations").unwrap();
    assert_eq!(data_of(&store.copy()).len(), 4);
    assert_eq!(rotate(&*store, &*kek(1), &*kek(1)).unwrap_err().kind, StoreErrorKind::Invalid);
}

#[test]
fn a_rotation_interrupted_after_any_request_is_completed_by_the_next() {
    let start = filled().copy();
    let whole = Memory::of(start.clone());
    let (_, requests) = whole.requests_of(|| rotate(&*whole, &*kek(1), &*kek(2)).unwrap());
    assert!(requests > 20, "{requests} requests");
    for (answers, does_the_last) in (0..requests).flat_map(|n| [(n, false), (n, true)]) {
        let broken =
            Memory { objects: Mutex::new(start.clone()), answers: Some(answers), does_the_last, ..Memory::default() };
        let e = rotate(&broken, &*kek(1), &*kek(2)).unwrap_err();
        assert_eq!(e.kind, StoreErrorKind::Unavailable, "{e}");
        let left = broken.copy();
        assert!(reads_all(&left, 1) || reads_all(&left, 2), "after {answers} requests neither key reads everything");
        // Going on, and giving up: rotating back.
        for (old, new) in [(1, 2), (2, 1)] {
            let store = Memory::of(left.clone());
            rotate(&*store, &*kek(old), &*kek(new)).unwrap();
            assert!(reads_all(&store.copy(), new) && !reads_all(&store.copy(), old), "{old} to {new} after {answers}");
            assert_eq!(data_of(&store.copy()), data_of(&start));
        }
    }
}

/// A rotation was given up and undone; then the put that empties `first` arrives after all.
#[test]
fn a_late_retirement_of_the_first_key_does_no_harm() {
    let store = filled();
    rewrap(&*store, &*kek(1), &*kek(2)).unwrap();
    let before = store.copy();
    retire(&*store, &*kek(1), &*kek(2)).unwrap();
    let late: Vec<_> = store.copy().into_iter().filter(|(key, _)| key.ends_with("/first")).collect();
    let store = Memory::of(before);
    rotate(&*store, &*kek(2), &*kek(1)).unwrap();
    late.iter().for_each(|(key, bytes)| store.put(key, bytes).unwrap());
    assert!(reads_all(&store.copy(), 1));
}

/// A host that did not change over made a scope under the old key: rotating again takes it along.
#[test]
fn a_late_scope_is_taken_along_by_the_next_rotation() {
    let store = filled();
    rotate(&*store, &*kek(1), &*kek(2)).unwrap();
    host(&store, 1, 8).put("objects/pool/late/1", b"late").unwrap();
    assert_eq!(host(&store, 2, 9).get("objects/pool/late/1", Range::All).unwrap_err().kind, StoreErrorKind::Denied);
    let done = rotate(&*store, &*kek(1), &*kek(2)).unwrap();
    assert_eq!(done, Rotation { scopes: 4, rewrapped: 1, foreign: 0 });
    assert_eq!(host(&store, 2, 9).get("objects/pool/late/1", Range::All).unwrap(), b"late");
}

#[test]
fn scopes_of_a_third_key_are_left_alone() {
    let store = filled();
    host(&store, 3, 8).put("objects/pool/theirs/1", b"theirs").unwrap();
    let before = store.copy();
    let done = rotate(&*store, &*kek(1), &*kek(2)).unwrap();
    assert_eq!(done, Rotation { scopes: 4, rewrapped: 3, foreign: 1 });
    let name = "keys/objects/pool/theirs/first";
    assert_eq!(store.copy()[name], before[name]);
}

#[test]
fn a_host_with_the_data_key_in_memory_goes_on_through_a_rotation() {
    let store = filled();
    let sealed = host(&store, 1, 8);
    sealed.get(SCOPES[0], Range::All).unwrap();
    rotate(&*store, &*kek(1), &*kek(2)).unwrap();
    sealed.put("objects/pool/a/2", b"still").unwrap();
    assert_eq!(host(&store, 2, 9).get("objects/pool/a/2", Range::All).unwrap(), b"still");
}

#[test]
fn keys_are_not_shown() {
    let secret = Secret::new(&mut [7; 32]);
    assert_eq!(format!("{secret:?}"), "Secret(..)");
    let store = filled();
    let keyring::Found::Key(key) = look_up(&*store, "volumes/disk", &*kek(1)).unwrap() else { panic!("no key") };
    let (shown, digits) = (format!("{key:?}"), chunk::hex(key.secret.expose()));
    assert!(shown.contains("Secret(..)") && !shown.contains(&digits[..8]));
    let mut bytes = [7; 32];
    let _ = Secret::new(&mut bytes);
    assert_eq!(bytes, [0; 32], "the caller's copy is overwritten");
}

#[test]
fn names_of_keys_are_parts_of_names_of_objects() {
    for name in ["a", "kms-2024.key_1", &"x".repeat(KEY_ID_BYTES_MAX)] {
        assert_eq!(KeyId::new(name).unwrap().as_str(), name);
    }
    for name in ["", "first", ".", "..", "a/b", "a b", "ä", &"x".repeat(KEY_ID_BYTES_MAX + 1)] {
        assert_eq!(KeyId::new(name).unwrap_err().kind, StoreErrorKind::Invalid, "{name}");
    }
}

/// A wrapper that makes long keys: what is stored is bounded.
#[test]
fn an_overlong_wrapped_key_is_refused() {
    struct Long;
    impl KeyWrap for Long {
        fn id(&self) -> KeyId {
            KeyId::new("long").unwrap()
        }
        fn wrap(&self, _: &Secret) -> StoreResult<Vec<u8>> {
            Ok(vec![0; record::WRAPPED_BYTES_MAX + 1])
        }
        fn unwrap(&self, _: &[u8]) -> StoreResult<Secret> {
            Err(StoreError::new(StoreErrorKind::Unavailable, "no"))
        }
    }
    let store = Arc::<Memory>::default();
    let sealed = Sealed::new(store.clone(), Arc::new(Long), Seeded::new(1));
    assert_eq!(sealed.put(NAME, b"x").unwrap_err().kind, StoreErrorKind::Invalid);
    assert!(store.copy().is_empty());
}
