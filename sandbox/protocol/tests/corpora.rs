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
