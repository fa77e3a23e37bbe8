//! What the fuzzer of vhost-user starts from, changed in a few bytes, and bytes at random: no message, ring or request may
//! panic, leave a request unanswered, or reach beyond its guest's memory or disk.

use blockstore::testing::Rng;
use nbd_server::testing::vhost_user;
use proptest::prelude::*;
use std::path::Path;

#[test]
fn changed_seeds_are_as_harmless_as_the_seeds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/vhost_user");
    let mut rng = Rng::new(17);
    let mut seeds = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus is part of the source") {
        let seed = std::fs::read(entry.expect("an input").path()).expect("an input");
        seeds += 1;
        for _ in 0..300 {
            let mut changed = seed.clone();
            for _ in 0..=rng.below(4) {
                // Descriptors and indices stand at the beginning.
                let within = if rng.below(2) == 0 { changed.len().min(160) } else { changed.len() };
                let at = rng.below(within);
                let edge = [0, 1, 0x7f, 0x80, 0xff][rng.below(5)];
                changed[at] = if rng.below(2) == 0 { edge } else { rng.below(256) as u8 };
            }
            vhost_user(&changed);
        }
    }
    assert!(seeds >= 12);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for kind in 0..3 {
            vhost_user(&[&[kind], bytes.as_slice()].concat());
        }
    }

    /// A ring of descriptors that are nearly right: small numbers where numbers can be right.
    #[test]
    fn chains_that_are_nearly_right_are_harmless(
        shape in 0u8..32,
        descriptors in prop::collection::vec((0u64..0x2000, 0u32..600, 0u16..8, 0u16..9), 8),
        heads in prop::collection::vec(0u16..9, 8),
        count in 0u16..10,
    ) {
        let mut ram = vec![0; 0x1014];
        for (i, (at, len, flags, next)) in descriptors.into_iter().enumerate() {
            ram[16 * i..16 * i + 8].copy_from_slice(&(0x1000 + at).to_le_bytes());
            ram[16 * i + 8..16 * i + 12].copy_from_slice(&len.to_le_bytes());
            ram[16 * i + 12..16 * i + 14].copy_from_slice(&flags.to_le_bytes());
            ram[16 * i + 14..16 * i + 16].copy_from_slice(&next.to_le_bytes());
        }
        ram[0x1002..0x1004].copy_from_slice(&count.to_le_bytes());
        for (i, head) in heads.into_iter().enumerate() {
            ram[0x1004 + 2 * i..0x1006 + 2 * i].copy_from_slice(&head.to_le_bytes());
        }
        vhost_user(&[&[1, shape, 0, 0], ram.as_slice()].concat());
    }
}
