//! What is damaged is named so that somebody can act: which volume and checkpoint, which block, where it
//! lies, and what to do; a file that is gone is one finding, however much was in it.

mod common;

use common::{damage, flush, noise, text, write, Pool};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

fn findings(pool: &Pool, args: &[&str]) -> Vec<String> {
    let out = pool.run(&[&["--json"], args].concat());
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(5), "{said}");
    assert_eq!(serde_json::from_str::<Value>(&said).expect("one JSON value")["error"]["kind"], "corrupt", "{said}");
    let answer: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let all = answer.get("damaged").or(answer.get("problems")).and_then(Value::as_array).expect("findings");
    all.iter().map(|line| line.as_str().expect("a line").to_owned()).collect()
}

/// Segment files that hold blocks, the one with most first.
fn segments(pool: &Pool) -> Vec<PathBuf> {
    let entries = fs::read_dir(pool.pool()).expect("the pool").map(|e| e.expect("an entry").path());
    let mut all: Vec<_> =
        entries.filter(|p| p.file_name().is_some_and(|n| text(n.as_ref()).starts_with("seg-"))).collect();
    all.sort_by_key(|p| std::cmp::Reverse(fs::metadata(p).expect("a file").len()));
    all
}

/// A closed pool with 40 MiB in `disk` and its v1, forked as `twin`, and one block of `disk` written since.
fn filled() -> Pool {
    let mut pool = Pool::serving();
    let mut client = pool.nbd("disk");
    (0..40).for_each(|i| write(&mut client, i << 20, &noise(i + 1, 1 << 20)));
    flush(&mut client);
    pool.json(&["checkpoint", "create", "disk"]);
    pool.json(&["fork", "disk@v1", "twin"]);
    write(&mut client, 0, &noise(99, 4096));
    flush(&mut client);
    drop(client);
    pool.end(libc::SIGTERM);
    pool
}

#[test]
fn a_scrub_names_everybody_who_holds_a_damaged_block() {
    let pool = filled();
    damage(&pool.pool(), &noise(4, 1 << 20)[8192..8256]);
    damage(&pool.pool(), &noise(99, 4096)[..64]);
    let mut found = findings(&pool, &["scrub"]);
    found.sort();
    assert_eq!(found.len(), 2, "{found:#?}");
    let line = &found[1];
    assert!(line.starts_with("disk@Current block 770, disk@v1 block 770, twin@Current block 770: segment "), "{line}");
    assert!(line.contains(" slot ") && line.ends_with("checksum mismatch"), "{line}");
    assert!(found[0].starts_with("disk@Current block 0: segment "), "{found:?}");
    assert_eq!(findings(&pool, &["scrub", "disk@v1"]).len(), 1, "what v1 does not hold is not its matter");
    let (code, said) = pool.fails(&["scrub"]);
    assert!(code == 5 && said.contains("backup"), "{said}");
}

#[test]
fn a_segment_that_is_gone_or_has_no_header_is_one_finding() {
    for harm in ["gone", "header", "cut"] {
        let mut pool = filled();
        let victim = segments(&pool).remove(0);
        let file = fs::OpenOptions::new().write(true).open(&victim).expect("a segment");
        match harm {
            "gone" => fs::remove_file(&victim).expect("a removal"),
            "header" => file.write_all_at(&[0x55; 4096], 0).expect("a patch"),
            _ => file.set_len(1 << 20).expect("a cut"),
        }
        let found = findings(&pool, &["scrub"]);
        let name = victim.file_name().and_then(|n| n.to_str()).expect("a name");
        let mine: Vec<&String> = found.iter().filter(|line| line.contains(name)).collect();
        assert!(mine.len() == 1 && found.len() <= 2, "{harm}: {found:#?}");
        assert!(mine[0].contains(" blocks of disk@Current, disk@v1, twin@Current"), "{harm}: {}", mine[0]);
        // The daemon's log has it in lines that can be read.
        pool.serve(&[]);
        assert_eq!(pool.run(&["scrub"]).status.code(), Some(5), "{harm}");
        assert!(pool.log().contains(name), "{}", pool.log());
        assert!(pool.log().lines().all(|line| line.len() < 1000), "{harm}");
    }
}

#[test]
fn a_damaged_map_page_is_one_finding_and_a_check_does_not_advise_a_check() {
    let pool = filled();
    // The map is small: its segment is the last of the files with something in it.
    let map = segments(&pool).into_iter().find(|path| {
        let bytes = fs::read(path).expect("a segment");
        bytes.get(4096..4100) == Some(&b"CMAP"[..]) || bytes.len() < 1 << 20
    });
    let Some(map) = map else { panic!("no map segment") };
    let file = fs::OpenOptions::new().write(true).open(&map).expect("a segment");
    let pages = fs::metadata(&map).expect("a file").len() / 4096;
    (1..pages).for_each(|i| file.write_all_at(&[0x55; 64], i * 4096 + 100).expect("a patch"));
    let found = findings(&pool, &["check"]);
    assert!(found.len() <= 8, "{found:#?}");
    assert!(found.iter().any(|line| line.contains("@") && line.contains(" blocks ") && line.contains("segment ")));
    assert!(!found.iter().any(|line| line.contains("cairn check")), "{found:#?}");
    let (code, said) = pool.fails(&["check"]);
    assert!(code == 5 && said.contains("cairn scrub") && !said.contains("run cairn check"), "{said}");
}

#[test]
fn an_export_that_meets_damage_names_the_file_that_was_asked_for() {
    let pool = filled();
    let copy = pool.path("copy");
    fs::create_dir(pool.path("full")).expect("a folder");
    let nowhere = pool.path("nowhere").join("copy");
    let (code, said) = pool.fails(&["volume", "export", "disk", text(&nowhere)]);
    assert!(code == 3 && said.contains("nowhere/copy:") && !said.contains(".part"), "{said}");
    damage(&pool.pool(), &noise(4, 1 << 20)[8192..8256]);
    let (code, said) = pool.fails(&["volume", "export", "disk@v1", text(&copy)]);
    assert!(code == 1 && said.contains("exporting disk@v1") && said.contains("cairn scrub"), "{code} {said}");
    assert!(!copy.exists() && !pool.path("copy.part").exists());
}

#[test]
fn a_folder_that_is_named_like_a_segment_stops_nothing() {
    let pool = filled();
    let stray = pool.pool().join("seg-000000fe");
    fs::create_dir(&stray).expect("a folder");
    fs::write(stray.join("letter"), "dear").expect("a file");
    let out = pool.run(&["volume", "list"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("seg-000000fe"), "{said}");
    assert!(pool.pool().join("stray-seg-000000fe").join("letter").exists(), "it is kept");
    assert_eq!(pool.json(&["check"])["problems"], serde_json::json!([]));
}
