//! Manifests that somebody made on purpose, with right checksums: whatever is changed in one, looking through the
//! bucket and attaching the volume ends, without a panic, and the pool opens again.

#![allow(clippy::disallowed_methods, reason = "the corpus is files of the source tree")]

use blockstore::testing::{attach_manifest, Rng};
use std::path::Path;

#[test]
fn changed_manifests_never_panic_and_leave_a_pool_that_opens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/bucket_format");
    let mut attached = 0;
    for seed in ["volume-example", "volume-1", "volume-2", "volume-3"] {
        let whole = std::fs::read(folder.join(seed)).expect("the corpus is part of the source");
        let mut rng = Rng::new(11);
        // The first byte says what it is.
        let body = &whole[1..];
        attached += usize::from(attach_manifest(body));
        for at in 0..body.len() {
            for value in [0, 1, 0x80, 0xff, rng.below(256) as u8] {
                let mut changed = body.to_vec();
                changed[at] ^= value;
                attached += usize::from(attach_manifest(&changed));
            }
        }
    }
    assert!(attached > 100, "only {attached} were attached: what is shown here is little");
}
