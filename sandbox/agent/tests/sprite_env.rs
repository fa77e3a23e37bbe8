//! `sprite-env` without a guest: a host that says what a test has it say.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

/// Runs `sprite-env` with `words` against a host that answers one request with `answer`; what it asked comes back, too.
fn ask(words: &[&str], answer: &str) -> (Output, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("s");
    let (listener, answer) = (UnixListener::bind(&socket).expect("a socket"), answer.to_owned());
    let host = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let (mut asked, mut buffer) = (Vec::new(), [0; 4096]);
        let is_whole = |asked: &[u8]| {
            let text = String::from_utf8_lossy(asked);
            let length = |head: &str| head.rsplit_once("Content-Length: ").and_then(|(_, n)| n.parse::<usize>().ok());
            text.split_once("\r\n\r\n").is_some_and(|(head, body)| length(head) == Some(body.len()))
        };
        while !is_whole(&asked) {
            let n = stream.read(&mut buffer).expect("a request");
            assert!(n > 0, "half a request");
            asked.extend(&buffer[..n]);
        }
        let _ = stream.write_all(answer.as_bytes());
        String::from_utf8_lossy(&asked).into_owned()
    });
    let done = run(folder.path(), &[words, &["--socket", &socket.to_string_lossy()]].concat());
    (done, host.join().expect("a request"))
}

fn run(folder: &Path, words: &[&str]) -> Output {
    let name = folder.join("sprite-env");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cairn-agent"), &name).expect("a link");
    Command::new(name).args(words).output().expect("it runs")
}

fn json(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn lines(lines: &[&str]) -> String {
    let chunks = lines.iter().map(|line| format!("{:x}\r\n{line}\n\r\n", line.len() + 1)).collect::<String>();
    format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_list_is_a_table_or_json_and_asks_for_what_was_wanted() {
    let all =
        r#"[{"id":"Current","create_time":"x"},{"id":"v1","create_time":"2026-01-31T17:02:44.1Z","comment":"first"}]"#;
    let (done, asked) = ask(&["checkpoints", "list", "--history", "v1", "--include-auto"], &json("200 OK", all));
    assert!(
        asked.starts_with("GET /v1/checkpoints?includeAuto=true&history=v1 HTTP/1.1\r\nHost: sprite\r\n"),
        "{asked}"
    );
    let (status, out, _) = said(&done);
    assert!(status == 0 && out.ends_with("v1      2026-01-31 17:02:44  first"), "{out}");
    let (status, out, _) = said(&ask(&["checkpoints", "list", "--json"], &json("200 OK", all)).0);
    let found: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert!(status == 0 && found[1]["id"] == "v1");
}

#[test]
fn making_and_restoring_tell_how_it_went() {
    let good = lines(&[
        r#"{"type":"info","data":"Creating"}"#,
        r#"{"type":"complete","data":"Checkpoint v3 created successfully"}"#,
    ]);
    let (done, asked) = ask(&["checkpoints", "create", "--comment", "with \"quotes\""], &good);
    assert!(
        asked.starts_with("POST /v1/checkpoint ") && asked.ends_with(r#"{"comment":"with \"quotes\""}"#),
        "{asked}"
    );
    assert_eq!(said(&done), (0, "Checkpoint v3 created successfully".to_owned(), String::new()));
    let (done, asked) = ask(&["checkpoints", "restore", "v3"], &good);
    let (status, out, _) = said(&done);
    assert!(
        asked.starts_with("POST /v1/checkpoints/v3/restore ") && status == 0 && out.contains("restarts now"),
        "{out}"
    );
    let (done, _) = ask(&["checkpoints", "create"], &lines(&[r#"{"type":"error","error":"no room\u001b[2J"}"#]));
    assert_eq!(said(&done), (1, String::new(), "sprite-env: no room [2J".to_owned()));
    // An end that says nothing is no success, and neither is an answer that is cut.
    let (status, _, err) = said(&ask(&["checkpoints", "create"], &lines(&[r#"{"type":"info","data":"x"}"#])).0);
    assert!(status == 1 && err.contains("did not say how it went"), "{err}");
    let (status, _, err) = said(&ask(&["checkpoints", "create"], good.trim_end_matches("0\r\n\r\n")).0);
    assert!(status == 1 && err.contains("the connection ended"), "{err}");
}

#[test]
fn files_of_a_checkpoint_are_listed_read_and_compared() {
    let (done, asked) = ask(&["checkpoints", "cat", "v1", "/a b&c=\u{e4}"], &json("200 OK", "old\nfile"));
    assert!(asked.starts_with("GET /v1/checkpoints/v1/fs/read?path=/a%20b%26c%3D%C3%A4 HTTP/1.1\r\n"), "{asked}");
    assert_eq!(done.stdout, b"old\nfile");
    let (done, asked) =
        ask(&["checkpoints", "files", "v1"], &json("200 OK", r#"{"entries":[{"name":"x","size":1,"mode":"0644"}]}"#));
    assert!(asked.starts_with("GET /v1/checkpoints/v1/fs/list?path=/ ") && said(&done).1.ends_with("  x"), "{asked}");
    let (done, asked) =
        ask(&["checkpoints", "diff", "v1"], &json("200 OK", r#"{"files":[{"path":"x","change":"added"}]}"#));
    assert!(asked.starts_with("GET /v1/checkpoints/v1/diff/Current ") && said(&done).1 == "added       /x", "{asked}");
    let (done, _) =
        ask(&["checkpoints", "cat", "v1", "/x"], &json("404 Not Found", r#"{"code":"ENOENT","error":"no such file"}"#));
    assert_eq!(said(&done), (1, String::new(), "sprite-env: no such file".to_owned()));
    // A file that is cut is no file.
    let (done, _) = ask(&["checkpoints", "cat", "v1", "/x"], "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf");
    assert_eq!(said(&done).0, 1);
}

#[test]
fn refusals_have_their_reason_and_a_status() {
    let (done, _) = ask(&["checkpoints", "get", "v9"], &json("404 Not Found", r#"{"error":"there is no v9"}"#));
    assert_eq!(said(&done), (1, String::new(), "sprite-env: there is no v9".to_owned()));
    let (done, asked) = ask(&["checkpoints", "delete", "v9"], "HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!((asked.split(" HTTP").next(), said(&done).0), (Some("DELETE /v1/checkpoints/v9"), 0));
    let (done, _) = ask(&["info"], "HTTP/1.1 500 Internal Server Error\r\n\r\nplain text");
    assert_eq!(said(&done), (1, String::new(), "sprite-env: plain text".to_owned()));
}

#[test]
fn a_request_as_it_is_said() {
    let (done, asked) = ask(&["api", "POST", "/v1/x", "{\"a\": 1}"], &json("418 Teapot", "body"));
    assert!(asked.starts_with("POST /v1/x HTTP/1.1\r\n") && asked.ends_with("\r\n\r\n{\"a\": 1}"), "{asked}");
    assert_eq!(said(&done), (1, "body".to_owned(), "sprite-env: the host answers with status 418".to_owned()));
}

#[test]
fn what_is_not_understood_is_never_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let nobody = folder.path().join("nobody").to_string_lossy().into_owned();
    for words in [
        &["checkpoints"][..],
        &["checkpoints", "get"],
        &["checkpoints", "get", "../../v1"],
        &["checkpoints", "restore", "v1/../v2"],
        &["checkpoints", "delete", "%2e%2e"],
        &["checkpoints", "list", "--history", "v1&x=y"],
        &["checkpoints", "list", "--what"],
        &["checkpoints", "create", "--comment"],
        &["api", "GET", "no-path"],
        &["api", "GET", "/v1/a b"],
        &["api", "GET\r\nX: y", "/"],
        &["frobnicate"],
    ] {
        let link = tempfile::tempdir().expect("a folder");
        let (status, out, err) = said(&run(link.path(), &[&["--socket", &nobody], words].concat()));
        assert!(status == 2 && out.is_empty() && err.contains("--help"), "{words:?}: {status} {out} {err}");
    }
    let link = tempfile::tempdir().expect("a folder");
    let (status, out, _) = said(&run(link.path(), &["checkpoints", "--help"]));
    assert!(status == 0 && out.contains("restore ID"), "{out}");
}

#[test]
fn a_host_that_is_not_there_is_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("s");
    drop(UnixListener::bind(&socket).expect("a socket"));
    let (status, _, err) = said(&run(folder.path(), &["info", "--socket", &socket.to_string_lossy()]));
    assert!(status == 3 && err.contains("nobody listens"), "{err}");
}
