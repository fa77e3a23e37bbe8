//! The rules of the house that a compiler does not check: which crate may depend on which, under
//! which licences, how long a file may be, and that every module says what it promises.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Our crates, and those of ours that each may depend on.
const ARROWS: [(&str, &[&str]); 10] = [
    ("blockstore", &[]),
    ("nbd-server", &["blockstore"]),
    ("nbd-client", &[]),
    ("fs-inspect", &["nbd-client"]),
    ("sandbox-protocol", &[]),
    ("cairn-agent", &["sandbox-protocol"]),
    ("vmm-glue", &["sandbox-protocol"]),
    ("sandbox-server", &["sandbox-protocol", "vmm-glue"]),
    ("cairn", &["blockstore", "nbd-server", "nbd-client", "fs-inspect", "sandbox-server", "vmm-glue"]),
    ("cairn-sim", &["blockstore"]),
];

/// Licences a dependency may have; of an `A OR B` one is enough, of an `A AND B` all are needed.
const LICENCES: [&str; 10] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Zlib",
    "CC0-1.0",
];

/// Runtimes that the store must be usable without.
const RUNTIMES: [&str; 6] = ["tokio", "async-std", "smol", "async-executor", "compio", "glommio"];

const LINES_MAX: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

fn metadata() -> Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--all-features"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("cargo metadata prints JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// Names of what each package needs to be built for use, tests left out.
fn needs(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let packages = list(metadata, "packages");
    let name: BTreeMap<&str, &str> = packages.iter().map(|p| (text(p, "id"), text(p, "name"))).collect();
    let normal = |dep: &&Value| list(dep, "dep_kinds").iter().any(|kind| text(kind, "kind") != "dev");
    let node = |node: &Value| {
        let deps = list(node, "deps").iter().filter(normal).map(|dep| name[text(dep, "pkg")].to_owned());
        (name[text(node, "id")].to_owned(), deps.collect())
    };
    list(&metadata["resolve"], "nodes").iter().map(node).collect()
}

#[test]
fn arrows_only_point_down() {
    let needs = needs(&metadata());
    let ours: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    for (name, allowed) in ARROWS {
        for need in needs[name].iter().filter(|need| ours.contains(need.as_str())) {
            assert!(allowed.contains(&need.as_str()), "{name} must not depend on {need}");
        }
    }
    assert!(needs["nbd-server"].contains("blockstore"), "the walk finds the arrows there are");
}

#[test]
fn every_crate_of_the_workspace_has_its_place() {
    let metadata = metadata();
    let members: BTreeSet<&str> = list(&metadata, "workspace_members").iter().filter_map(Value::as_str).collect();
    for package in list(&metadata, "packages").iter().filter(|p| members.contains(text(p, "id"))) {
        let name = text(package, "name");
        // What only tests or measures may look at everything.
        let path = text(package, "manifest_path");
        let known =
            ARROWS.iter().any(|(ours, _)| *ours == name) || path.contains("/fuzz/") || path.contains("/benches/");
        assert!(known, "say in ARROWS which of our crates {name} may depend on");
    }
}

#[test]
fn the_store_needs_no_runtime() {
    let needs = needs(&metadata());
    let (mut seen, mut open) = (BTreeSet::new(), vec!["blockstore"]);
    while let Some(name) = open.pop() {
        if seen.insert(name) {
            assert!(!RUNTIMES.contains(&name), "blockstore depends on {name}");
            open.extend(needs.get(name).into_iter().flatten().map(String::as_str));
        }
    }
    assert!(seen.contains("crc32fast"), "the walk finds what the store does depend on");
}

fn allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let one = |licence: &str| LICENCES.contains(&licence.trim().trim_matches(['(', ')']));
    expression.split(" AND ").all(|all| all.split(" OR ").any(one))
}

#[test]
fn every_dependency_has_a_licence_we_may_use() {
    assert!(allowed("MIT OR GPL-3.0") && allowed("(MIT OR Apache-2.0) AND Unicode-3.0") && allowed("MIT/Apache-2.0"));
    assert!(!allowed("GPL-3.0") && !allowed("MIT AND GPL-3.0") && !allowed(""));
    let metadata = metadata();
    let bad = list(&metadata, "packages").iter().filter(|package| !allowed(text(package, "license")));
    let bad: Vec<String> = bad.map(|p| format!("{} {:?}", text(p, "name"), text(p, "license"))).collect();
    assert!(bad.is_empty(), "licences to look at: {bad:?}");
}

fn rust_files(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder").map(|entry| entry.expect("an entry").path()) {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if entry.is_dir() && name != "target" && !name.starts_with('.') {
            rust_files(&entry, out);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            out.push(entry);
        }
    }
}

#[test]
fn every_module_is_short_and_says_what_it_promises() {
    let (root, mut files) = (root(), Vec::new());
    rust_files(&root, &mut files);
    assert!(files.len() > 40, "the walk finds our files");
    for path in files {
        let name = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
        let source = fs::read_to_string(&path).expect("a readable file");
        let lines = source.lines().count();
        assert!(lines <= LINES_MAX, "{name} has {lines} lines: what does it hide?");
        // A fuzz target begins with its crate attribute.
        let first = source.lines().find(|line| !line.starts_with("#![")).unwrap_or_default();
        assert!(first.starts_with("//!"), "{name} does not begin with what it promises (//!)");
    }
}
