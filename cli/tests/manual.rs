//! docs/CLI.md against the real command: metrics, shapes and exit codes are as it says. (Commands and
//! flags are compared where they are defined, in `args.rs`.)

mod common;

use common::Pool;
use serde_json::Value;

const MANUAL: &str = include_str!("../../docs/CLI.md");

#[test]
fn every_metric_is_in_the_manual_and_has_a_type_and_a_help() {
    let pool = Pool::serving();
    let page = pool.json(&["stats", "--metrics"]);
    let page = page.as_str().expect("a page");
    let values = page.lines().filter(|line| !line.starts_with('#'));
    let names: Vec<&str> = values.filter_map(|line| line.split(['{', ' ']).next()).filter(|n| !n.is_empty()).collect();
    assert!(names.len() > 15, "{page}");
    for name in names {
        assert!(MANUAL.contains(&format!("`{name}")), "{name} is not in docs/CLI.md");
        assert!(page.contains(&format!("# TYPE {name} ")) && page.contains(&format!("# HELP {name} ")), "{name}");
    }
    let (code, said) = Pool::new().fails(&["stats", "--metrics"]);
    assert!(code == 3 || said.contains("daemon"), "{said}");
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn json_has_the_fields_of_the_manual_before_and_after_the_verb() {
    let pool = Pool::serving();
    let checkpoint = pool.json(&["checkpoint", "create", "disk"]);
    assert_eq!(keys(&checkpoint), ["comment", "create_time", "durability", "id", "is_auto", "parent", "size_bytes"]);
    assert_eq!(pool.json(&["checkpoint", "list", "disk"])[0], checkpoint, "lists hold the same objects");
    let head = pool.json(&["checkpoint", "get", "disk", "Current"]);
    assert_eq!((keys(&head), &head["id"]), (keys(&checkpoint), &"Current".into()));
    for value in [&checkpoint, &pool.json(&["volume", "info", "disk"])] {
        for key in keys(value) {
            assert!(MANUAL.contains(&format!("`{key}`")), "{key} is not in docs/CLI.md");
        }
    }
    let out = pool.run(&["checkpoint", "list", "disk", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&out.stdout).expect("JSON")[0], checkpoint);
    pool.json(&["restore", "disk", "v1"]);
    let count = |args: &[&str]| pool.json(args).as_array().map(Vec::len);
    assert_eq!(count(&["checkpoint", "list", "disk"]), Some(1));
    assert_eq!(count(&["checkpoint", "list", "disk", "--all"]), Some(2));
}

#[test]
fn man_pages_and_completions_are_made_from_the_command() {
    let pool = Pool::new();
    let folder = pool.path("man");
    std::fs::create_dir(&folder).expect("a folder");
    assert!(pool.run(&["man", common::text(&folder)]).status.success());
    let page = std::fs::read_to_string(folder.join("cairn-volume-create.1")).expect("a page of every command");
    assert!(page.contains("size"), "{page}");
    for shell in ["bash", "zsh", "fish"] {
        let out = pool.run(&["completions", shell]);
        assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("checkpoint"), "{shell}");
    }
}

#[test]
fn make_install_puts_the_binary_its_pages_and_completions_in_place() {
    let pool = Pool::new();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let make = |bin: &str| {
        let mut command = std::process::Command::new("make");
        command.args(["-C", root, "install", &format!("PREFIX={}", pool.path("usr").display()), &format!("BIN={bin}")]);
        command.output().expect("make runs")
    };
    let out = make(common::CAIRN);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for file in [
        "bin/cairn",
        "share/man/man1/cairn.1",
        "share/man/man1/cairn-serve.1",
        "share/bash-completion/completions/cairn",
        "share/zsh/site-functions/_cairn",
        "share/fish/vendor_completions.d/cairn.fish",
    ] {
        let found = std::fs::metadata(pool.path("usr").join(file));
        assert!(found.is_ok_and(|m| m.len() > 100), "{file}");
    }
    let out = make("/nowhere/cairn");
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("make build"));
}

#[test]
fn stats_and_metrics_have_the_same_words_and_the_manual_has_them_all() {
    let pool = Pool::serving();
    let (stats, page) = (pool.json(&["stats"]), pool.json(&["stats", "--metrics"]));
    let page = page.as_str().expect("a page");
    for key in keys(&stats) {
        assert!(MANUAL.contains(&format!("`{key}`")), "{key} is not in docs/CLI.md");
        // The metrics of the object store are there only with one, and are called so.
        let shared = !["changed_nodes", "next_lsn"].contains(&key) && !key.contains("sent_");
        assert_eq!(page.contains(&format!("\ncairn_{key} ")), shared, "{key}: {page}");
    }
}
