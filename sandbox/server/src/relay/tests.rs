//! The host's side without a guest: what comes over a relay, byte for byte, and what it can reach.

use super::serve::serve;
use super::streams::{Held, News, Streams};
use crate::lifecycle::{row, App};
use crate::limits::Limits;
use crate::pool::Pool;
use crate::registry::{Registry, Sandbox, State};
use crate::routes::guest::Guest;
use crate::wire::SpriteCreate;
use sandbox_protocol::{Decoder, Relay, Relayed, Side, RELAY_CONNECTIONS, RELAY_WINDOW};
use serde_json::{json, Value};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmm_glue::{Disk, Error, Kind, Machines, Result, Store, Transport};

/// A pool in which every volume has the checkpoint v1, which is called after it.
struct Pretended;

fn no<T>() -> Result<T> {
    Err(Error::new(Kind::Failed, "this pool is only looked at"))
}

impl Store for Pretended {
    fn fork(&self, _: &str, _: &str) -> Result<()> {
        no()
    }
    fn grow(&self, _: &str, _: u64) -> Result<()> {
        no()
    }
    fn checkpoint(&self, _: &str, _: &str) -> Result<String> {
        no()
    }
    fn identity(&self, _: &str, _: &str) -> Result<String> {
        no()
    }
    fn restore(&self, _: &str, _: &str) -> Result<String> {
        no()
    }
    fn differs(&self, _: &str, _: &str) -> Result<bool> {
        no()
    }
    fn delete_checkpoint(&self, _: &str, _: &str) -> Result<()> {
        no()
    }
    fn delete(&self, _: &str) -> Result<()> {
        no()
    }
    fn has(&self, _: &str) -> Result<bool> {
        Ok(true)
    }
    fn import(&self, _: &Path, _: &str) -> Result<u64> {
        no()
    }
    fn disk(&self, _: &str, _: Transport) -> Result<Disk> {
        no()
    }
}

impl Pool for Pretended {
    fn checkpoints(&self, volume: &str) -> Result<Vec<Value>> {
        Ok(vec![
            json!({"id": "v1", "create_time": "2026-01-31T17:02:44Z", "comment": format!("of {volume}"), "is_auto": false}),
        ])
    }
    fn checkpoint_info(&self, volume: &str, id: &str) -> Result<Value> {
        match id {
            "v1" => Ok(self.checkpoints(volume)?.remove(0)),
            _ => Err(Error::new(Kind::NotFound, format!("there is no {id}"))),
        }
    }
    fn sync(&self, _: &str) -> Result<()> {
        no()
    }
    /// Says what it was asked for.
    fn inspector(&self) -> std::process::Command {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "printf '{\"code\": \"EACCES\", \"error\": \"asked for %s\"}' \"$*\" >&2; exit 1", "sh"]);
        command
    }
}

/// A guest at the other end of a relay.
struct Talk {
    app: Arc<App>,
    own: Sandbox,
    streams: Arc<Streams>,
    guest: Arc<Guest>,
    relay: Relay,
    decoder: Decoder,
    _folder: tempfile::TempDir,
}

async fn made(app: &App, name: &str) -> Sandbox {
    let mut sandbox = row("local", "", name, &SpriteCreate::default()).expect("a row");
    sandbox.state = State::Ready;
    assert!(app.registry.add(&sandbox).await.expect("added"));
    sandbox
}

impl Talk {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let registry = Registry::open(&folder.path().join("sandboxes.db")).await.expect("a registry");
        let machines = Machines::of(folder.path(), vec!["false".to_owned()]);
        let app = Arc::new(App::new(registry, machines, Box::new(Pretended), "tiny".to_owned(), Limits::default()));
        let own = made(&app, "mine").await;
        made(&app, "other").await;
        let at = folder.path().join("vms").join(&own.machine);
        std::fs::create_dir_all(&at).expect("a folder");
        let record = json!({"name": own.machine, "image": "tiny", "cpus": 2, "memory_mib": 256, "accel": null, "asleep_at": null});
        std::fs::write(at.join("vm.json"), record.to_string()).expect("a record");
        let (streams, guest) = (Streams::new(), Guest::new(app.clone(), &own));
        let (relay, decoder) = (Relay::new(Side::Agent), Decoder::default());
        Self { app, own, streams, guest, relay, decoder, _folder: folder }
    }

    fn say<T>(&mut self, what: impl FnOnce(&mut Relay, &mut Vec<u8>) -> T) -> Vec<News> {
        let mut out = Vec::new();
        what(&mut self.relay, &mut out);
        self.streams.hear(&out).expect("as agreed")
    }

    fn open(&mut self) -> u32 {
        match self.say(|relay, out| relay.open(out)).as_slice() {
            [News::Opened(id)] => {
                drop(tokio::spawn(serve(self.streams.clone(), *id, self.guest.clone())));
                *id
            }
            other => panic!("{other:?}"),
        }
    }

    /// What the host says next.
    async fn heard(&mut self) -> Relayed {
        loop {
            if let Some((kind, payload)) = self.decoder.frame().expect("a frame") {
                match self.relay.take(Relayed::decode(kind, payload).expect("as agreed")).expect("as agreed") {
                    Some(said) => return said,
                    None => continue,
                }
            }
            let bytes = tokio::time::timeout(std::time::Duration::from_secs(20), self.streams.to_send()).await;
            self.decoder.push(&bytes.expect("an answer"));
        }
    }

    /// Everything that is answered to `asked`.
    async fn raw(&mut self, asked: &[u8]) -> String {
        let id = self.open();
        let (mut sent, mut all) = (0, Vec::new());
        loop {
            self.say(|relay, out| {
                while let n @ 1.. = relay.send(id, &asked[sent..], out) {
                    sent += n
                }
            });
            match self.heard().await {
                Relayed::Data(_, bytes) => {
                    self.say(|relay, out| relay.took(id, bytes.len(), out));
                    all.extend(bytes);
                }
                Relayed::Taken(..) => {}
                Relayed::End(_) => self.say(|relay, out| relay.end(id, out)).clear(),
                Relayed::Close(_) => return String::from_utf8_lossy(&all).into_owned(),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn ask(&mut self, method: &str, path: &str) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: sprite\r\nConnection: close\r\nAuthorization: Bearer a/b/c/d\r\n\r\n"
        );
        let answer = self.raw(head.as_bytes()).await;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer)
    }
}

#[tokio::test]
async fn a_guest_sees_its_own_sandbox() {
    let mut talk = Talk::new().await;
    let (status, list) = talk.ask("GET", "/v1/checkpoints").await;
    assert!(status == 200 && list.contains(&format!("of {}", talk.own.machine)), "{list}");
    let (status, one) = talk.ask("GET", "/v1/checkpoints/v1").await;
    assert!(status == 200 && one.contains(&talk.own.machine), "{one}");
    let (status, info) = talk.ask("GET", "/v1/info").await;
    assert!(status == 200 && info.contains("\"name\":\"mine\"") && info.contains("\"cpus\":2"), "{info}");
    let (status, look) = talk.ask("GET", "/v1/checkpoints/v1/fs/list?path=/etc").await;
    assert!(status == 403 && look.contains(&format!("asked for list -- {} v1 /etc", talk.own.machine)), "{look}");
    let (_, look) = talk.ask("GET", "/v1/checkpoints/v1/diff/Current").await;
    assert!(look.contains(&format!("asked for diff -- {} v1 Current", talk.own.machine)), "{look}");
    assert_eq!(talk.ask("GET", "/v1/checkpoints/v9").await.0, 404);
    assert_eq!(talk.ask("POST", "/v1/checkpoints/v9/restore").await.0, 404);
    assert_eq!(talk.ask("PUT", "/v1/checkpoints").await.0, 405);
}

#[tokio::test]
async fn no_path_leads_anywhere_else() {
    let mut talk = Talk::new().await;
    let machine = talk.app.registry.find("local", "other").await.expect("rows").expect("a row").machine;
    for path in [
        "/",
        "/v1/sprites",
        "/v1/sprites/other/checkpoints",
        "/v1/sprites/mine/exec",
        "/v1/organization",
        "/v1/checkpoints/../../v1/sprites/other/checkpoints",
        "/v1/checkpoints/..%2f..%2fsprites%2fother%2fcheckpoints",
        "/v1/checkpoints/%2e%2e",
        "/v1/checkpoints/v1%2Frestore",
        "/v1/checkpoints//v1",
        "/v1/checkpoints/../other/fs/read?path=/etc/shadow",
        "/v1/checkpoints/v1/diff/..",
        "//v1/checkpoints",
        "/v1/checkpoints/",
        "http://sprite/v1/sprites/other/checkpoints",
        "/v1/exec?cmd=id",
        "/metrics",
    ] {
        for method in ["GET", "POST", "DELETE"] {
            let (status, answer) = talk.ask(method, path).await;
            assert!([404, 405].contains(&status) && !answer.contains(&machine), "{method} {path}: {answer}");
        }
    }
    // A checkpoint of another volume has no name here.
    let (status, answer) = talk.ask("GET", &format!("/v1/checkpoints/{machine}@v1")).await;
    assert!(status == 404, "{answer}");
}

#[tokio::test]
async fn whoever_has_its_name_later_is_not_it() {
    let mut talk = Talk::new().await;
    talk.app.registry.remove(&talk.own.id).await.expect("removed");
    assert_eq!(talk.ask("GET", "/v1/checkpoints").await.0, 404);
    made(&talk.app, "mine").await;
    assert_eq!(talk.ask("GET", "/v1/checkpoints").await.0, 404);
    assert_eq!(talk.ask("POST", "/v1/checkpoint").await.0, 404);
}

#[tokio::test]
async fn what_is_too_long_or_no_http_is_refused() {
    let mut talk = Talk::new().await;
    let head =
        |more: &str| format!("POST /v1/checkpoint HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n").into_bytes();
    let long = head(&format!("X: {}\r\n", "y".repeat(40_000)));
    let many = head(&(0..100).map(|n| format!("X-{n}: y\r\n")).collect::<String>());
    let body = [head("Content-Length: 100000\r\n"), vec![b'x'; 100_000]].concat();
    for (asked, wanted) in
        [(long, "431"), (many, "431"), (body, "413"), (b"\x16\x03\x01 hello\r\n\r\n".to_vec(), "400")]
    {
        let answer = talk.raw(&asked).await;
        assert_eq!(answer.split(' ').nth(1), Some(wanted), "{answer}");
    }
}

#[tokio::test]
async fn a_restore_is_answered_before_it_is_done() {
    let mut talk = Talk::new().await;
    let (status, answer) = talk.ask("POST", "/v1/checkpoints/v1/restore").await;
    assert!(
        status == 200 && answer.contains("\"type\":\"complete\"") && answer.contains("connection: close"),
        "{answer}"
    );
}

#[tokio::test]
async fn connections_that_nobody_serves_are_bounded() {
    let mut talk = Talk::new().await;
    let mut held = Vec::new();
    let mut closed = 0;
    for _ in 0..100 {
        // It opens and closes faster than it is served.
        for news in talk.say(|relay, out| {
            if let Some(id) = relay.open(out) {
                relay.close(id, out);
            }
        }) {
            match news {
                News::Opened(id) => held.push(Held::new(talk.streams.clone(), id)),
                News::Ready => {}
            }
        }
        closed = talk.relay.len();
    }
    assert_eq!((held.len(), closed), (2 * RELAY_CONNECTIONS, 0));
    held.clear();
    assert_eq!(talk.ask("GET", "/v1/checkpoints").await.0, 200, "there is room again");
}

#[tokio::test]
async fn a_connection_says_when_it_is_gone_and_what_came_before_is_read() {
    let mut talk = Talk::new().await;
    talk.say(|relay, out| {
        let id = relay.open(out).expect("there is room");
        relay.send(id, b"last words", out);
        relay.close(id, out);
    });
    let held = Held::new(talk.streams.clone(), 0);
    let mut stream = held.stream();
    let mut buffer = [0; 10];
    stream.read_exact(&mut buffer).await.expect("what came");
    assert_eq!(&buffer, b"last words");
    assert!(stream.read(&mut buffer).await.is_err() && stream.write(b"x").await.is_err());
    held.drain().await;
    // The relay ends under the next one, which waits.
    let News::Opened(id) = talk.say(|relay, out| relay.open(out)).remove(0) else { panic!("a connection") };
    let next = Held::new(talk.streams.clone(), id);
    let mut stream = next.stream();
    let reading = tokio::spawn(async move { stream.read(&mut [0; 10]).await.is_err() });
    tokio::task::yield_now().await;
    talk.streams.end();
    assert!(reading.await.expect("it ends"));
    next.drain().await;
}

#[tokio::test]
async fn one_that_does_not_read_is_held_up_at_its_window() {
    let mut talk = Talk::new().await;
    talk.say(|relay, out| relay.open(out));
    let held = Held::new(talk.streams.clone(), 0);
    let mut stream = held.stream();
    let writing = tokio::spawn(async move { stream.write_all(&vec![7; 3 * RELAY_WINDOW]).await });
    let mut got = 0;
    while got < RELAY_WINDOW {
        match talk.heard().await {
            Relayed::Data(_, bytes) => got += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    assert!(got == RELAY_WINDOW && !writing.is_finished());
    while got < 3 * RELAY_WINDOW {
        talk.say(|relay, out| relay.took(0, 1000, out));
        match talk.heard().await {
            Relayed::Data(_, bytes) => got += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    assert!(writing.await.expect("it ends").is_ok());
}

#[tokio::test]
async fn a_guest_that_does_not_read_its_relay_loses_it() {
    let mut talk = Talk::new().await;
    talk.say(|relay, out| relay.open(out));
    let held = Held::new(talk.streams.clone(), 0);
    let (mut stream, mut buffer) = (held.stream(), [0; 1]);
    let outcome = 'ended: {
        for _ in 0..1_000_000 {
            let mut out = Vec::new();
            let _ = Relayed::Data(0, vec![0]).encode(&mut out);
            if let Err(e) = talk.streams.hear(&out) {
                break 'ended e;
            }
            stream.read_exact(&mut buffer).await.expect("a byte");
        }
        panic!("it grows without end");
    };
    assert!(outcome.to_string().contains("does not read"));
}
