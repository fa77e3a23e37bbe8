//! Wrong usage: code 2, found before anything is made, said so that it can be mended; in JSON for those who
//! asked for JSON; and what is shown on a terminal cannot move its cursor.

mod common;

use common::{text, Pool};
use serde_json::Value;
use std::fs;
use std::os::unix::net::UnixListener;

#[test]
fn a_daemon_that_cannot_be_meant_like_this_makes_nothing() {
    let pool = Pool::new();
    fs::write(pool.path("file"), "").expect("a file");
    let long = format!("unix:{}/{}", text(&pool.path(".")), "n".repeat(120));
    let (file, folder) = (format!("unix:{}", text(&pool.path("file"))), format!("unix:{}", text(&pool.path("no/x"))));
    let fine = format!("unix:{}", text(&pool.path("nbd.sock")));
    for (args, words) in [
        (&["--nbd", "tcp:0.0.0.0:1"][..], "loopback"),
        (&["--nbd", "tcp:localhost:99999"], "99999"),
        (&["--nbd", "tcp:localhost"], "tcp:HOST:PORT"),
        (&["--nbd", &folder], "no folder"),
        (&["--nbd", &file], "no socket"),
        (&["--nbd", &long], "107"),
        (&["--nbd", &fine, "--nbd", &fine], "twice"),
        (&["--map-cache", "5"], "--map-cache"),
        (&["--map-cache", "2000T"], "--map-cache"),
        (&["--map-cache", "much"], "--map-cache"),
        (&["--cache-size", "1G"], "--object-store"),
        (&["--object-store", "file:///nowhere", "--cache-size", "5"], "--cache-size"),
        (&["--spares", "5000"], "1024"),
        (&["--spares=-1"], "--spares"),
    ] {
        let (code, said) = pool.fails(&[&["serve"], args].concat());
        assert!(code == 2 && said.contains(words), "{args:?}: {code} {said}");
        assert!(!pool.pool().exists(), "{args:?}: a pool was made");
    }
}

#[test]
fn an_address_that_is_taken_is_told_with_what_to_do() {
    let pool = Pool::new();
    let _taken = UnixListener::bind(pool.path("taken.sock")).expect("a socket");
    let (code, said) = pool.fails(&["serve", "--nbd", &format!("unix:{}", text(&pool.path("taken.sock")))]);
    assert!(code == 1 && said.contains("taken.sock") && said.contains("listens there already"), "{code} {said}");
    assert!(pool.path("taken.sock").exists(), "it is not taken away");
}

#[test]
fn swapped_certificate_and_key_are_told() {
    let pool = Pool::new();
    let (cert, key) = (pool.path("cert.pem"), pool.path("key.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"])
        .args(["-subj", "/CN=localhost", "-keyout", text(&key), "-out", text(&cert)])
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let nbd = ["serve", "--nbd", "tcp:127.0.0.1:0"];
    let (code, said) = pool.fails(&[&nbd[..], &["--tls-cert", text(&key), "--tls-key", text(&cert)]].concat());
    assert!(code == 2 && said.contains("swapped"), "{code} {said}");
    assert!(!pool.pool().exists());
}

#[test]
fn a_daemon_without_listeners_says_how_to_add_one() {
    let mut pool = Pool::new();
    let log = fs::File::create(pool.path("log")).expect("a log");
    pool.daemon = Some(pool.command(&["serve"]).stderr(log).spawn().expect("the daemon starts"));
    while !pool.log().contains("serving") {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(pool.log().contains("--nbd unix:PATH"), "{}", pool.log());
}

#[test]
fn a_pool_that_is_a_file_or_no_pool_is_told_by_its_path() {
    let pool = Pool::new();
    fs::write(pool.path("file"), "").expect("a file");
    fs::create_dir(pool.path("empty")).expect("a folder");
    for (name, args, code) in [
        ("file", &["volume", "list"][..], 2),
        ("file", &["serve"], 2),
        ("empty", &["volume", "list"], 3),
        ("empty", &["check"], 3),
        ("absent", &["stats"], 3),
    ] {
        let path = pool.path(name);
        let out = pool.command(args).env("CAIRN_POOL", &path).output().expect("cairn runs");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(code) && said.contains(text(&path)), "{name} {args:?}: {said}");
    }
    assert_eq!(fs::read_dir(pool.path("empty")).expect("a folder").count(), 0, "nothing is left in it");
}

#[test]
fn errors_are_json_for_those_who_asked_for_json() {
    let pool = Pool::serving();
    for (args, kind) in [
        (&["--json", "volume", "info", "dusk"][..], "not_found"),
        (&["volume", "create", "disk", "--size", "1M", "--json"], "exists"),
        (&["--json", "volume", "create", "x", "--size", "5"], "invalid"),
        (&["--json", "volume", "explode"], "invalid"),
        (&["--json", "volume", "export", "disk", "/"], "exists"),
    ] {
        let out = pool.run(args);
        let said = String::from_utf8_lossy(&out.stderr);
        let error: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{args:?}: {said}"));
        assert_eq!(error["error"]["kind"], kind, "{args:?}: {said}");
        assert!(error["error"]["message"].as_str().is_some_and(|text| !text.is_empty()));
        assert!(out.stdout.is_empty() && !out.status.success());
    }
    assert!(pool.run(&["--json", "--help"]).status.success());
}

#[test]
fn comments_cannot_move_the_cursor() {
    let pool = Pool::serving();
    let comment = "grün \u{1b}[2J\r\nzwei\u{7f}\u{9b}31m";
    assert_eq!(pool.json(&["checkpoint", "create", "disk", "--comment", comment])["comment"], comment);
    for args in
        [&["checkpoint", "list", "disk"][..], &["checkpoint", "get", "disk", "v1"], &["volume", "info", "disk@v1"]]
    {
        let out = pool.run(args);
        let shown = String::from_utf8(out.stdout).expect("UTF-8");
        assert!(shown.contains("grün") && shown.contains("\\u{1b}[2J\\r\\nzwei"), "{shown}");
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    }
    let (code, said) = pool.fails(&["checkpoint", "create", "disk", "--comment", &"x".repeat(1025)]);
    assert!(code == 2 && said.contains("1024"), "{said}");
}

#[test]
fn man_pages_are_made_where_there_was_no_folder_and_name_the_environment() {
    let pool = Pool::new();
    let folder = pool.path("a").join("man");
    assert!(pool.run(&["man", text(&folder)]).status.success());
    let page = |name: &str| fs::read_to_string(folder.join(name)).expect("a page");
    assert!(page("cairn-volume-list.1").contains("CAIRN_POOL"), "{}", page("cairn-volume-list.1"));
    assert!(page("cairn-serve.1").contains("CAIRN_LOG"));
    fs::write(pool.path("file"), "").expect("a file");
    let (code, said) = pool.fails(&["man", text(&pool.path("file"))]);
    assert!(code != 0 && said.contains(text(&pool.path("file"))), "{said}");
}

#[test]
fn deleting_without_a_daemon_says_when_the_space_comes_back() {
    let pool = Pool::new();
    pool.json(&["volume", "create", "disk", "--size", "1M"]);
    let out = pool.run(&["volume", "delete", "disk"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("cairn serve"), "{out:?}");
}
