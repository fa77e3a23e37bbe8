//! The command against a small server in this process that answers as it is told: what no real server does on purpose.
//!
//! The whole way, with guests, is `scripts/interop/sandbox-cli`.

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::{Role, WebSocket};
use tungstenite::Message;

/// A connection, in the clear or not.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}
type Socket = WebSocket<Box<dyn Stream>>;

/// What a server does: an answer for each head of a request, and a conversation for each WebSocket.
struct Script {
    answer: fn(&str) -> (&'static str, String),
    talk: fn(&str, Socket),
}

/// A server that plays a script.
struct Fake {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
    folder: tempfile::TempDir,
}

const TOKEN: &str = "org/id/token/s3cret";

fn serve(mut stream: Box<dyn Stream>, script: &Script, heads: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return;
        }
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("a head");
    heads.lock().expect("heads").push(head.clone());
    let field = |name: &str| {
        let of =
            |line: &str| line.to_ascii_lowercase().strip_prefix(name).map(|_| line[name.len()..].trim().to_owned());
        head.lines().find_map(of)
    };
    if let Some(key) = field("sec-websocket-key:") {
        let (status, body) = (script.answer)(&head);
        if status != "200 OK" {
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            return;
        }
        let accept = derive_accept_key(key.as_bytes());
        let _ = write!(
            stream,
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        let _ = stream.flush();
        return (script.talk)(&head, WebSocket::from_raw_socket(stream, Role::Server, None));
    }
    let length = field("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    let _ = stream.read_exact(&mut body);
    let (status, body) = (script.answer)(&head);
    let location = if status.starts_with("30") { "Location: http://127.0.0.1:9/elsewhere\r\n" } else { "" };
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nConnection: close\r\n{location}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.flush();
}

impl Fake {
    fn start(script: Script, tls: Option<rustls::ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (seen, script, tls) = (heads.clone(), Arc::new(script), tls.map(Arc::new));
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                let (tcp, script, seen) = (tcp.expect("a connection"), script.clone(), seen.clone());
                let stream: Box<dyn Stream> = match &tls {
                    None => Box::new(tcp),
                    Some(config) => {
                        let tls = rustls::ServerConnection::new(config.clone()).expect("TLS");
                        Box::new(rustls::StreamOwned::new(tls, tcp))
                    }
                };
                std::thread::spawn(move || serve(stream, &script, &seen));
            }
        });
        Self { port, heads, folder: tempfile::tempdir().expect("a folder") }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("CAIRN_")) {
            command.env_remove(key);
        }
        let folder = self.folder.path();
        command.args(words).env("XDG_CONFIG_HOME", folder.join("config")).current_dir(folder).stdin(Stdio::null());
        command
    }

    /// Runs it with this server's URL and a token.
    fn run(&self, words: &[&str]) -> Output {
        self.command(words).env("CAIRN_URL", self.url()).env("CAIRN_TOKEN", TOKEN).output().expect("it runs")
    }

    fn heads(&self) -> Vec<String> {
        std::mem::take(&mut *self.heads.lock().expect("heads"))
    }
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn fed(mut command: Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let (mut stdin, input) = (child.stdin.take().expect("a pipe"), input.to_vec());
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let out = child.wait_with_output().expect("it runs");
    feeding.join().expect("a thread");
    out
}

fn fine(_: &str) -> (&'static str, String) {
    ("200 OK", "{\"organization\": {\"slug\": \"org\"}, \"sprites\": [], \"has_more\": false}".to_owned())
}

fn silent(_: &str, _: Socket) {}

fn info(socket: &mut Socket, tty: bool) {
    let text = format!("{{\"type\": \"session_info\", \"session_id\": \"42\", \"tty\": {tty}}}");
    socket.send(Message::text(text)).expect("a client");
}

/// Says what `cmd` asks for.
fn talk(head: &str, mut socket: Socket) {
    info(&mut socket, false);
    let frame = |kind: u8, bytes: &[u8]| Message::binary([&[kind], bytes].concat());
    if head.contains("cmd=streams") {
        for _ in 0..100 {
            socket.send(frame(1, &[b'o'; 40_000])).expect("a client");
            socket.send(Message::text("{\"type\": \"debug\"}")).expect("a client");
            socket.send(frame(2, b"err\n")).expect("a client");
        }
        socket.send(frame(3, &[7])).expect("a client");
        socket.send(Message::text("{\"type\": \"exit\", \"exit_code\": 7}")).expect("a client");
    } else if head.contains("cmd=echo") {
        // Nothing is taken before everything was sent back: a client that feeds more than fits would hang.
        loop {
            match socket.read().expect("a client") {
                Message::Binary(bytes) if bytes.first() == Some(&0) => {
                    socket.send(frame(1, bytes.get(1..).unwrap_or_default())).expect("a client");
                }
                Message::Binary(bytes) if bytes.first() == Some(&4) => break,
                _ => {}
            }
        }
        socket.send(Message::text("{\"type\": \"exit\", \"exit_code\": 0}")).expect("a client");
    } else if head.contains("cmd=vanish") {
        socket.send(frame(1, b"some ")).expect("a client");
        socket.send(frame(1, b"output")).expect("a client");
        return;
    } else if head.contains("cmd=rubbish") {
        socket.send(Message::text("no JSON")).expect("a client");
        socket.send(Message::binary(Vec::new())).expect("a client");
        socket.send(frame(99, b"?")).expect("a client");
        socket.send(Message::text("{\"type\": \"exit\", \"exit_code\": 999}")).expect("a client");
    }
    let _ = socket.close(None);
    while socket.read().is_ok() {}
}

#[test]
fn output_comes_whole_and_in_order_with_the_status() {
    let fake = Fake::start(Script { answer: fine, talk }, None);
    let out = fake.run(&["exec", "-s", "web", "--no-port-forward", "--", "streams", "a b", "ü"]);
    assert_eq!((out.status.code(), out.stdout.len()), (Some(7), 4_000_000));
    assert_eq!(said(&out), "err\n".repeat(100));
    let head = fake.heads().join("");
    assert!(
        head.starts_with("GET /v1/sprites/web/exec?cmd=streams&cmd=a%20b&cmd=%C3%BC&path=streams&stdin=true "),
        "{head}"
    );
    assert!(head.contains(&format!("Bearer {TOKEN}")));
}

#[test]
fn input_of_any_bytes_goes_through() {
    let fake = Fake::start(Script { answer: fine, talk }, None);
    let mut command = fake.command(&["exec", "-s", "web", "--", "echo"]);
    command.env("CAIRN_URL", fake.url()).env("CAIRN_TOKEN", TOKEN);
    let input: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 / 3) as u8).collect();
    let out = fed(command, &input);
    assert!(out.status.success() && out.stdout == input, "{} bytes; {}", out.stdout.len(), said(&out));
}

#[test]
fn a_server_that_vanishes_or_speaks_strangely_is_told() {
    let fake = Fake::start(Script { answer: fine, talk }, None);
    let out = fake.run(&["exec", "-s", "web", "--", "vanish"]);
    assert_eq!((out.status.code(), &out.stdout[..]), (Some(1), &b"some output"[..]));
    assert!(said(&out).contains("broke off"), "{}", said(&out));
    // A status that is none is a failure.
    assert_eq!(fake.run(&["exec", "-s", "web", "--", "rubbish"]).status.code(), Some(1));
}

#[test]
fn a_token_is_kept_and_goes_to_its_own_server_only() {
    let answer = |head: &str| match head.contains(&format!("Bearer {TOKEN}")) {
        true => fine(head),
        false => ("401 Unauthorized", "{\"error\": \"authentication failed\"}".to_owned()),
    };
    let (fake, other) =
        (Fake::start(Script { answer, talk: silent }, None), Fake::start(Script { answer, talk: silent }, None));
    let url = fake.url();
    let out = fed(fake.command(&["login", &url]), b"org/id/token/wrong\n");
    assert!(out.status.code() == Some(1) && said(&out).contains("does not take this token"), "{}", said(&out));
    assert!(!said(&out).contains("wrong"));
    assert!(!fake.folder.path().join("config").exists());
    let out = fed(fake.command(&["login", &url]), format!("{TOKEN}\n").as_bytes());
    assert!(
        out.status.success()
            && !said(&out).contains("s3cret")
            && !String::from_utf8_lossy(&out.stdout).contains("s3cret")
    );
    assert!(fake.command(&["list"]).output().expect("it runs").status.success());
    // Another server does not get it.
    let out = fake.command(&["list"]).env("CAIRN_URL", other.url()).output().expect("it runs");
    assert!(out.status.code() == Some(1) && said(&out).contains("no token for"), "{}", said(&out));
    // And a token of the environment does not go to the server that was logged in to.
    fake.heads();
    let _ = fake.command(&["list"]).env("CAIRN_TOKEN", "org/id/token/other").output().expect("it runs");
    assert!(fake.heads().is_empty() && other.heads().is_empty());
    // Two kept ones do not mix.
    let path = Path::new("token");
    std::fs::write(fake.folder.path().join(path), format!("{TOKEN}\n")).expect("a file");
    assert!(fake
        .command(&["login", &other.url(), "--token-file", "token"])
        .output()
        .expect("it runs")
        .status
        .success());
    assert!(fake.command(&["list"]).output().expect("it runs").status.success());
    assert_eq!((fake.heads().len(), other.heads().len()), (0, 2));
}

#[test]
fn redirects_are_told_and_not_followed() {
    let answer = |_: &str| ("302 Found", String::new());
    let fake = Fake::start(Script { answer, talk: silent }, None);
    let out = fake.run(&["list"]);
    assert!(out.status.code() == Some(1) && said(&out).contains("use that URL"), "{}", said(&out));
}

#[test]
fn refusals_have_their_exit_codes() {
    let answer = |head: &str| match head {
        head if head.contains("/missing") => ("404 Not Found", "{\"error\": \"sprite not found\"}".to_owned()),
        head if head.starts_with("POST") => ("409 Conflict", "{\"error\": \"taken\"}".to_owned()),
        head if head.contains("/strange") => ("200 OK", "<html>".to_owned()),
        _ => ("503 Service Unavailable", "try again".to_owned()),
    };
    let fake = Fake::start(Script { answer, talk: silent }, None);
    let code = |words: &[&str]| {
        let out = fake.run(words);
        (out.status.code().unwrap_or(-1), said(&out))
    };
    let (status, text) = code(&["info", "-s", "missing"]);
    assert!(status == 3 && text.contains("there is no sandbox \"missing\""), "{text}");
    let (status, text) = code(&["exec", "-s", "missing", "--", "true"]);
    assert!(status == 3 && text.contains("there is no sandbox \"missing\""), "{text}");
    assert_eq!(code(&["create", "taken"]).0, 4);
    assert_eq!(code(&["info", "-s", "busy"]).0, 4);
    let (status, text) = code(&["info", "-s", "strange"]);
    assert!(status == 1 && text.contains("is it a server of cairn?"), "{text}");
    let out = fake.run(&["api", "GET", "/v1/sprites/missing"]);
    assert_eq!((out.status.code(), &out.stdout[..]), (Some(3), &b"{\"error\": \"sprite not found\"}"[..]));
    // Errors as JSON.
    let (status, text) = code(&["info", "-s", "missing", "--json"]);
    assert!(status == 3 && text.starts_with("{\"error\":{\"kind\":\"not_found\""), "{text}");
}

#[test]
fn a_private_authority_is_trusted_when_it_is_named() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
        .expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("TLS").with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key);
    let fake = Fake::start(Script { answer: fine, talk }, Some(config.expect("a certificate")));
    let ca = fake.folder.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).expect("a file");
    let run = |words: &[&str], url: String, ca: Option<&Path>| {
        let mut command = fake.command(words);
        command.env("CAIRN_URL", url).env("CAIRN_TOKEN", TOKEN).envs(ca.map(|ca| ("CAIRN_CA", ca)));
        command.output().expect("it runs")
    };
    let url = format!("https://127.0.0.1:{}", fake.port);
    let exec = ["exec", "-s", "web", "--", "streams"];
    for words in [&["list"][..], &exec] {
        let out = run(words, url.clone(), None);
        let known = said(&out).contains("--ca-file") || said(&out).contains("no certificate authorities");
        assert!(out.status.code() == Some(1) && known, "{}", said(&out));
    }
    assert!(fake.heads().is_empty(), "the token went to somebody who was not trusted");
    let out = run(&["list"], url.clone(), Some(&ca));
    assert!(out.status.success(), "{}", said(&out));
    let out = run(&exec, url.clone(), Some(&ca));
    assert_eq!((out.status.code(), out.stdout.len()), (Some(7), 4_000_000), "{}", said(&out));
    // Both ways at once, with more than fits anywhere.
    let mut command = fake.command(&["exec", "-s", "web", "--", "echo"]);
    command.env("CAIRN_URL", url).env("CAIRN_TOKEN", TOKEN).env("CAIRN_CA", &ca);
    let input: Vec<u8> = (0..5_000_000_u32).map(|i| (i / 3) as u8).collect();
    let out = fed(command, &input);
    assert!(out.status.success() && out.stdout == input, "{} bytes; {}", out.stdout.len(), said(&out));
    // What was logged in with goes on to be trusted, for that server.
    let mut command = fake.command(&["login", &format!("https://127.0.0.1:{}", fake.port), "--ca-file", "ca.pem"]);
    command.stdin(Stdio::piped());
    assert!(fed(command, format!("{TOKEN}\n").as_bytes()).status.success());
    assert!(fake.command(&["list"]).output().expect("it runs").status.success());
    let out = run(&["list"], fake.url(), None);
    assert!(out.status.code() == Some(1) && said(&out).contains("https://"), "{}", said(&out));
}

#[test]
fn a_pull_that_breaks_off_leaves_nothing() {
    let answer = |head: &str| match head.contains("/fs/list") {
        true => (
            "200 OK",
            "{\"entries\": [{\"path\": \"/f\", \"type\": \"file\", \"mode\": \"0644\", \"size\": 9}]}".to_owned(),
        ),
        false => ("500 Internal Server Error", "broken".to_owned()),
    };
    let fake = Fake::start(Script { answer, talk }, None);
    let out = fake.run(&["file", "pull", "-s", "web", "/f", "copy"]);
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(std::fs::read_dir(fake.folder.path()).expect("a folder").count(), 0);
}
