//! Whatever happens to a sealed object's bytes is noticed, and named.

use super::*;

fn read_all(stored: &[u8]) -> StoreResult<Vec<u8>> {
    let store = pristine(LEN);
    store.put(NAME, stored).unwrap();
    host(&store, 1, 9).get(NAME, Range::All)
}

const LEN: usize = 2 * CHUNK + 40;

fn pristine(len: usize) -> Arc<Memory> {
    let store = Arc::<Memory>::default();
    host(&store, 1, 1).put(NAME, &body(len)).unwrap();
    store
}

fn assert_corrupt(result: StoreResult<Vec<u8>>, what: &str) {
    let e = result.expect_err(what);
    assert!(e.kind == StoreErrorKind::Corrupt && e.message.contains(NAME), "{what}: {:?} {e}", e.kind);
}

#[test]
fn every_flipped_byte_of_a_small_object_is_noticed() {
    let store = pristine(40);
    let stored = store.copy()[NAME].clone();
    assert_eq!(stored.len(), chunk::HEAD + 40 + chunk::TAG);
    let sealed = host(&store, 1, 2);
    for at in 0..stored.len() {
        for bit in 0..8 {
            let mut bytes = stored.clone();
            bytes[at] ^= 1 << bit;
            store.put(NAME, &bytes).unwrap();
            assert_corrupt(sealed.get(NAME, Range::All), &format!("bit {bit} of byte {at}"));
            assert_corrupt(
                sealed.get(NAME, Range::Part { offset: 7, len: 3 }),
                &format!("bit {bit} of byte {at}, ranged"),
            );
        }
    }
}

#[test]
fn every_flipped_byte_class_of_a_large_object_is_noticed() {
    let stored = pristine(LEN).copy()[NAME].clone();
    for at in
        (0..stored.len()).filter(|at| at % SEALED_CHUNK < 48 || at % 997 == 0 || at % SEALED_CHUNK > SEALED_CHUNK - 20)
    {
        let mut bytes = stored.clone();
        bytes[at] ^= 0x41;
        assert_corrupt(read_all(&bytes), &format!("byte {at}"));
    }
}

#[test]
fn a_cut_object_is_noticed_wherever_it_is_cut() {
    let stored = pristine(LEN).copy()[NAME].clone();
    for len in [0, 1, 31, 47, 48, SEALED_CHUNK - 1, SEALED_CHUNK, SEALED_CHUNK + 48, 2 * SEALED_CHUNK, stored.len() - 1]
    {
        assert_corrupt(read_all(&stored[..len]), &format!("cut to {len}"));
        let store = pristine(LEN);
        store.put(NAME, &stored[..len]).unwrap();
        let sealed = host(&store, 1, 2);
        // Of a range only what lies before the cut can be given; behind it and across it there is an error.
        for (offset, wanted) in [(LEN - 3, 3), (LEN - 3, 100), (LEN, 1), (0, LEN), (10 * CHUNK, 5), (CHUNK - 2, LEN)] {
            let range = Range::Part { offset: offset as u64, len: wanted as u64 };
            assert_corrupt(sealed.get(NAME, range), &format!("cut to {len}, {range:?}"));
        }
    }
}

#[test]
fn a_lengthened_object_is_noticed() {
    let stored = pristine(LEN).copy()[NAME].clone();
    let again = stored[2 * SEALED_CHUNK..].to_vec();
    for extra in [vec![0], vec![0; 48], again, stored[..SEALED_CHUNK].to_vec()] {
        assert_corrupt(read_all(&[stored.as_slice(), &extra].concat()), &format!("{} bytes more", extra.len()));
    }
    let full = pristine(CHUNK).copy()[NAME].clone();
    for extra in [1, 48, SEALED_CHUNK] {
        assert_corrupt(
            read_all(&[full.as_slice(), &full[..extra]].concat()),
            &format!("{extra} bytes after a full one"),
        );
    }
}

#[test]
fn chunks_open_only_in_their_place() {
    let stored = pristine(LEN).copy()[NAME].clone();
    let (first, rest) = stored.split_at(SEALED_CHUNK);
    let (second, last) = rest.split_at(SEALED_CHUNK);
    for (what, chunks) in [
        ("swapped", [second, first, last]),
        ("repeated", [first, first, last]),
        ("the last first", [last, first, second]),
    ] {
        assert_corrupt(read_all(&chunks.concat()), what);
    }
    assert_corrupt(read_all(&[first, last].concat()), "one left out");
    assert_corrupt(read_all(&[second, last].concat()), "the first left out");
}

/// Two hosts raced for a name; the store has both versions and mixes them.
#[test]
fn chunks_of_two_versions_are_not_mixed() {
    let store = pristine(LEN);
    let one = store.copy()[NAME].clone();
    host(&store, 1, 5).put(NAME, &body(LEN)).unwrap();
    let other = store.copy()[NAME].clone();
    assert_corrupt(read_all(&[&one[..SEALED_CHUNK], &other[SEALED_CHUNK..]].concat()), "mixed");
}

#[test]
fn an_object_opens_only_under_its_name() {
    let store = pristine(40);
    let sealed = host(&store, 1, 2);
    let copy = "objects/pool/volume/18";
    store.put(copy, &store.copy()[NAME].clone()).unwrap();
    let e = sealed.get(copy, Range::All).unwrap_err();
    assert!(e.kind == StoreErrorKind::Corrupt && e.message.contains(copy), "{e}");
    // In another scope it is another data key's: that is said.
    sealed.put("volumes/disk/1", b"manifest").unwrap();
    store.put("volumes/disk/1", &store.copy()[NAME].clone()).unwrap();
    let e = sealed.get("volumes/disk/1", Range::All).unwrap_err();
    assert!(e.kind == StoreErrorKind::Denied && e.message.contains("data key"), "{e}");
}

#[test]
fn plaintext_is_refused_where_a_key_is_configured() {
    let store = pristine(40);
    let sealed = host(&store, 1, 2);
    for plain in [&body(40)[..], &body(100), &body(2 * CHUNK), b"x", b""] {
        store.put(NAME, plain).unwrap();
        assert_corrupt(sealed.get(NAME, Range::All), "plaintext");
        assert_corrupt(sealed.get(NAME, Range::Part { offset: 0, len: 10 }), "plaintext, ranged");
        assert_corrupt(sealed.get(NAME, Range::Part { offset: 1 << 30, len: 10 }), "plaintext, behind it");
    }
    store.put("hosts/x", b"plaintext in a scope that has no key").unwrap();
    let e = sealed.get("hosts/x", Range::All).unwrap_err();
    assert!(e.kind == StoreErrorKind::Corrupt && e.message.contains("hosts/x is not sealed"), "{e}");
}

#[test]
fn a_host_without_a_key_is_told_so() {
    let store = pristine(40);
    let plain = Plain::new(store.clone());
    for range in [Range::All, Range::Part { offset: 0, len: 20 }] {
        let e = plain.get(NAME, range).unwrap_err();
        assert!(
            e.kind == StoreErrorKind::Denied && e.message.contains(NAME) && e.message.contains("--key-file"),
            "{e}"
        );
    }
    plain.put("objects/pool/other/1", b"in clear").unwrap();
    assert_eq!(plain.get("objects/pool/other/1", Range::All).unwrap(), b"in clear");
    assert_eq!(plain.list("objects/pool/other", None, 5).unwrap()[0].size, 8);
}

#[test]
fn a_newer_version_is_refused_as_one() {
    let store = pristine(40);
    let mut bytes = store.copy()[NAME].clone();
    bytes[4] = 2;
    bytes[40] ^= 1;
    store.put(NAME, &bytes).unwrap();
    let e = host(&store, 1, 2).get(NAME, Range::All).unwrap_err();
    assert!(e.kind == StoreErrorKind::Invalid && e.message.contains("version 2"), "{e}");
}
