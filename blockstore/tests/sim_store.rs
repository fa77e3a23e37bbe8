//! The simulated object store: it keeps the contract, and each of its faults is what it says.

use blockstore::object::{Created, ObjectStore, Range, StoreErrorKind};
use blockstore::testing::{store_conformance, SimStore, StoreFault, StoreOp};

fn kind<T: std::fmt::Debug>(outcome: Result<T, blockstore::object::StoreError>) -> StoreErrorKind {
    outcome.expect_err("a failure").kind
}

#[test]
fn it_keeps_the_contract() {
    store_conformance(&SimStore::new(1));
}

#[test]
fn a_lost_reply_is_no_lost_put() {
    let store = SimStore::new(1);
    store.fail_nth(StoreOp::PutIfAbsent, 2, StoreFault::LostReply);
    store.fail_nth(StoreOp::PutIfAbsent, 1, StoreFault::Unavailable);
    assert_eq!(kind(store.put_if_absent("a", b"mine")), StoreErrorKind::Unavailable);
    assert_eq!(store.body("a"), None, "nothing was done");
    assert_eq!(kind(store.put_if_absent("a", b"mine")), StoreErrorKind::Unavailable);
    assert_eq!(store.body("a").as_deref(), Some(b"mine".as_slice()), "it was done");
    assert_eq!(store.put_if_absent("a", b"mine").expect("calm"), Created::Exists);
    store.fail_nth(StoreOp::Delete, 1, StoreFault::LostReply);
    assert_eq!(kind(store.delete("a")), StoreErrorKind::Unavailable);
    assert_eq!(store.keys(), [""; 0]);
    let counts = store.counts();
    assert_eq!((counts.puts, counts.deletes, counts.failures), (3, 1, 3));
}

#[test]
fn gets_and_lists_fail_as_told() {
    let store = SimStore::new(3);
    for key in ["a", "b", "c", "d", "e", "f"] {
        store.put(key, b"body").expect("a put");
    }
    for fault in [StoreFault::Corrupt, StoreFault::Missing, StoreFault::Short] {
        store.fail_nth(StoreOp::Get, 1, fault);
        let outcome = store.get("a", Range::All);
        match fault {
            StoreFault::Corrupt => assert_eq!(kind(outcome), StoreErrorKind::Corrupt),
            StoreFault::Missing => assert_eq!(kind(outcome), StoreErrorKind::NotFound),
            _ => assert!(outcome.expect("an answer").len() < 4),
        }
        assert_eq!(store.get("a", Range::All).expect("once only"), b"body");
    }
    store.fail_nth(StoreOp::List, 1, StoreFault::StaleList);
    let stale = store.list("", None, 100).expect("a list");
    assert!(
        (2..6).contains(&stale.len())
            && stale.iter().map(|e| e.key.as_str()).eq(["a", "b", "c", "d", "e"].into_iter().take(stale.len()))
    );
    assert_eq!(store.list("", None, 100).expect("a list").len(), 6);
}

#[test]
fn random_faults_follow_the_seed_and_end() {
    let run = |seed| {
        let store = SimStore::new(seed);
        store.fail_one_in(StoreOp::Put, 3, StoreFault::Unavailable);
        let failed: Vec<bool> = (0..300).map(|i| store.put(&format!("k{i}"), b"").is_err()).collect();
        store.calm();
        store.put("end", b"").expect("calm");
        failed
    };
    let failures = run(7).iter().filter(|failed| **failed).count();
    assert!((60..140).contains(&failures), "{failures} of 300");
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn one_client_waits_while_another_goes_on() {
    let store = SimStore::new(1);
    let (old, new) = (store.client("old"), store.client("new"));
    store.pause("old", Some(StoreOp::PutIfAbsent));
    old.put("log", b"").expect("only conditional puts wait");
    std::thread::scope(|scope| {
        let held = scope.spawn(|| old.put_if_absent("manifest", b"old"));
        while store.waiting("old") == 0 {
            std::thread::yield_now();
        }
        assert_eq!(new.put_if_absent("manifest", b"new").expect("not held"), Created::Yes);
        store.resume("old");
        assert_eq!(held.join().expect("no panic").expect("an answer"), Created::Exists);
    });
    store.cut_off("old");
    assert_eq!(kind(old.get("manifest", Range::All)), StoreErrorKind::Unavailable);
    assert_eq!(new.get("manifest", Range::All).expect("an answer"), b"new");
}
