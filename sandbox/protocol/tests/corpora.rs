//! Everything the fuzzer starts from, and everything it has ever found, once more.

use std::fs;
use std::path::Path;

#[test]
fn agent_frames() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/agent_frames");
    let mut seen = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is part of the source") {
        let path = entry.expect("an input").path();
        eprintln!("{}", path.display());
        sandbox_protocol::testing::frames(&fs::read(path).expect("an input"));
        seen += 1;
    }
    assert!(seen >= 8, "only {seen} inputs in {}", folder.display());
}

/// What a fuzzer does first, without one: a few bytes of each input changed, the same ones in every run.
#[test]
fn agent_frames_with_bytes_changed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/agent_frames");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for entry in fs::read_dir(&folder).expect("the corpus is part of the source") {
        let input = fs::read(entry.expect("an input").path()).expect("an input");
        for _ in 0..3000 {
            let mut changed = input.clone();
            for _ in 0..=next() % 4 {
                let at = next() % changed.len();
                changed[at] = next() as u8;
            }
            changed.truncate(1 + next() % changed.len());
            sandbox_protocol::testing::frames(&changed);
        }
    }
}
