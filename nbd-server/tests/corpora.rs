//! Everything the fuzzer starts from, and everything it has ever found, once more: the inputs of
//! `fuzz/corpus` in ordinary tests.

use std::fs;
use std::path::Path;

/// Runs `check` on each input of a target; the fewest that must be there are named, so that a moved
/// folder does not pass for a clean one.
fn replay(target: &str, fewest: usize, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut seen = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is part of the source") {
        let path = entry.expect("an input").path();
        eprintln!("{}", path.display());
        check(&fs::read(path).expect("an input"));
        seen += 1;
    }
    assert!(seen >= fewest, "only {seen} inputs in {}", folder.display());
}

#[test]
fn nbd_handshake() {
    replay("nbd_handshake", 15, nbd_server::testing::handshake);
}

#[test]
fn nbd_transmission() {
    replay("nbd_transmission", 15, nbd_server::testing::transmission);
}

#[test]
fn store_format() {
    replay("store_format", 6, blockstore::testing::decode);
}

#[test]
fn bucket_format() {
    replay("bucket_format", 15, blockstore::testing::decode_bucket);
}

#[test]
fn vhost_user() {
    replay("vhost_user", 12, nbd_server::testing::vhost_user);
}

/// Each class of bug that has a seed of its own.
#[test]
fn every_class_has_its_seed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let classes = [
        "2005-3534",
        "2015-0847",
        "2017-15118",
        "2017-15119",
        "2017-7539",
        "2017-9524",
        "2019-14842",
        "2019-14850",
        "2019-14851",
        "2020-10761",
        "2021-3716",
        "2022-0485",
        "2022-26495",
        "2022-26496",
        "2025-47711",
        "2025-47712",
    ];
    for class in classes {
        let name = format!("cve-{class}");
        let found = ["nbd_handshake", "nbd_transmission"].iter().any(|target| folder.join(target).join(&name).exists());
        assert!(found, "no seed for {name}");
    }
}
