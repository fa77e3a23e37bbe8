//! The relay without a guest: a host over pipes, and clients of its socket.

use sandbox_protocol::{Decoder, Relay, Relayed, Side, RELAY_CONNECTIONS, RELAY_WINDOW};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

/// The host's end of a relay.
struct Host {
    process: Child,
    /// Until it goes.
    to: Option<ChildStdin>,
    from: ChildStdout,
    decoder: Decoder,
    relay: Relay,
    folder: Rc<tempfile::TempDir>,
}

impl Host {
    fn new() -> Self {
        Self::at(&Rc::new(tempfile::tempdir().expect("a folder")))
    }

    fn at(folder: &Rc<tempfile::TempDir>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cairn-agent"));
        command.args(["relay", "--at"]).arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the agent runs");
        let (to, from) = (process.stdin.take(), process.stdout.take().expect("a pipe"));
        let (decoder, relay) = (Decoder::default(), Relay::new(Side::Host));
        let mut host = Self { process, to, from, decoder, relay, folder: folder.clone() };
        assert_eq!(host.heard(), Relayed::Ready);
        host
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.socket()).expect("somebody listens");
        client.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        client
    }

    /// What the guest says next.
    fn heard(&mut self) -> Relayed {
        loop {
            if let Some((kind, payload)) = self.decoder.frame().expect("a frame") {
                let said = Relayed::decode(kind, payload).expect("as agreed");
                match self.relay.take(said).expect("as agreed") {
                    Some(said) => return said,
                    None => continue,
                }
            }
            let mut buffer = [0; 5000];
            let n = self.from.read(&mut buffer).expect("an answer");
            assert!(n > 0, "the relay has ended");
            self.decoder.push(&buffer[..n]);
        }
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.to.as_mut().expect("a host that is there").write_all(bytes).expect("the relay reads");
    }

    fn say(&mut self, what: impl FnOnce(&mut Relay, &mut Vec<u8>)) {
        let mut out = Vec::new();
        what(&mut self.relay, &mut out);
        self.raw(&out);
    }

    fn opened(&mut self) -> (UnixStream, u32) {
        let client = self.client();
        match self.heard() {
            Relayed::Open(id) => (client, id),
            other => panic!("{other:?}"),
        }
    }

    /// Everything of a connection up to its end, taken as it comes.
    fn all(&mut self, id: u32) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.heard() {
                Relayed::Data(of, bytes) if of == id => {
                    self.say(|relay, out| relay.took(id, bytes.len(), out));
                    all.extend(bytes);
                }
                Relayed::End(of) if of == id => return all,
                Relayed::Taken(..) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Sends all of it, as there is room.
    fn send(&mut self, id: u32, bytes: &[u8]) {
        let mut sent = 0;
        while sent < bytes.len() {
            self.say(|relay, out| {
                while let n @ 1.. = relay.send(id, &bytes[sent..], out) {
                    sent += n
                }
            });
            if sent < bytes.len() {
                assert!(matches!(self.heard(), Relayed::Taken(of, _) if of == id));
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn everything(mut client: &UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("an answer and its end");
    all
}

fn pattern(seed: u8, len: u32) -> Vec<u8> {
    (0..len).map(|i| (i >> 6) as u8 ^ seed).collect()
}

#[test]
fn a_question_its_end_and_the_answer_behind_it() {
    let mut host = Host::new();
    let (mut client, id) = host.opened();
    client.write_all(b"question").expect("written");
    client.shutdown(Shutdown::Write).expect("half of it");
    assert_eq!(host.all(id), b"question");
    host.send(id, b"answer");
    host.say(|relay, out| relay.end(id, out));
    assert_eq!(everything(&client), b"answer");
    drop(client);
    while host.heard() != Relayed::Close(id) {}
    assert!(host.relay.is_empty());
}

#[test]
fn a_host_that_closes_is_read_to_its_last_byte() {
    let mut host = Host::new();
    let (client, id) = host.opened();
    let answer = pattern(1, RELAY_WINDOW as u32);
    host.say(|relay, out| {
        let mut sent = 0;
        while let n @ 1.. = relay.send(id, &answer[sent..], out) {
            sent += n;
        }
        relay.close(id, out);
    });
    assert!(everything(&client) == answer);
}

#[test]
fn much_goes_both_ways_over_several_connections_at_once() {
    let mut host = Host::new();
    let (first, one) = host.opened();
    let (second, two) = host.opened();
    let writers: Vec<_> = [(first, 1), (second, 2)]
        .into_iter()
        .map(|(client, seed)| {
            std::thread::spawn(move || {
                (&client).write_all(&pattern(seed, 500_000)).expect("written");
                client.shutdown(Shutdown::Write).expect("half of it");
                assert!(everything(&client) == pattern(seed + 10, 500_000));
            })
        })
        .collect();
    let (mut got, mut ended) = ([Vec::new(), Vec::new()], 0);
    while ended < 2 {
        match host.heard() {
            Relayed::Data(id, bytes) => {
                host.say(|relay, out| relay.took(id, bytes.len(), out));
                got[usize::from(id == two)].extend(bytes);
            }
            Relayed::End(_) => ended += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(got[0] == pattern(1, 500_000) && got[1] == pattern(2, 500_000));
    for (id, seed) in [(one, 11), (two, 12)] {
        let answer = pattern(seed, 500_000);
        let mut sent = 0;
        while sent < answer.len() {
            host.say(|relay, out| {
                while let n @ 1.. = relay.send(id, &answer[sent..], out) {
                    sent += n
                }
            });
            if sent < answer.len() {
                host.heard();
            }
        }
        host.say(|relay, out| relay.end(id, out));
    }
    writers.into_iter().for_each(|writer| writer.join().expect("all came back"));
}

#[test]
fn a_client_that_does_not_read_holds_up_itself_alone() {
    let mut host = Host::new();
    let (silent, slow) = host.opened();
    // Far more than sockets hold: it stops at what the relay keeps.
    let flood = pattern(3, 4 << 20);
    let mut sent = 0;
    let (client, fast) = host.opened();
    loop {
        host.say(|relay, out| {
            while let n @ 1.. = relay.send(slow, &flood[sent..], out) {
                sent += n
            }
        });
        // While anything is taken there is an answer to this.
        host.send(fast, b"ping");
        let mut word = [0; 4];
        (&client).read_exact(&mut word).expect("the other goes on");
        assert_eq!(&word, b"ping");
        let mut was_taken = false;
        loop {
            match host.heard() {
                Relayed::Taken(id, _) if id == slow => was_taken = true,
                Relayed::Taken(id, 4) if id == fast => break,
                other => panic!("{other:?}"),
            }
        }
        if !was_taken && host.relay.room(slow) == 0 {
            break;
        }
    }
    assert!(sent < 1 << 20, "{sent} bytes are held for one that does not read");
    drop(silent);
    while host.heard() != Relayed::Close(slow) {}
    host.send(fast, b"on");
}

#[test]
fn a_host_that_does_not_read_gets_no_more_than_it_allowed() {
    let mut host = Host::new();
    let (client, id) = host.opened();
    let writer = std::thread::spawn(move || {
        (&client).write_all(&pattern(4, 2 << 20)).expect("written");
        client.shutdown(Shutdown::Write).expect("half of it");
    });
    let mut held = 0;
    while held < RELAY_WINDOW {
        match host.heard() {
            Relayed::Data(_, bytes) => held += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    assert!(!writer.is_finished());
    host.say(|relay, out| relay.took(id, held, out));
    assert_eq!(host.all(id).len() + held, 2 << 20);
    writer.join().expect("written");
}

#[test]
fn one_connection_too_many_is_told_so_and_there_is_room_again_later() {
    let mut host = Host::new();
    let mut clients: Vec<_> = (0..RELAY_CONNECTIONS).map(|_| host.opened()).collect();
    for _ in 0..20 {
        let mut client = host.client();
        client.write_all(b"GET /v1/info HTTP/1.1\r\n\r\n").expect("written");
        let said = String::from_utf8(everything(&client)).expect("text");
        assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("too many connections"), "{said}");
    }
    let (client, id) = clients.pop().expect("a client");
    drop(client);
    while host.heard() != Relayed::Close(id) {}
    host.opened();
}

#[test]
fn a_relay_ends_with_its_host_and_the_next_takes_its_place() {
    let mut first = Host::new();
    let (client, _) = first.opened();
    let path = first.folder.path().to_owned();
    let mut second = Host::at(&first.folder);
    assert!(path.join("bin/sprite-env").exists() && path.join("docs/agent-context.md").exists());
    let (_client, _) = second.opened();
    // The first one's host goes: it ends, and takes nothing of the second's with it.
    drop(first.to.take());
    assert!(first.process.wait().expect("it ends").success());
    assert_eq!(everything(&client), b"");
    second.opened();
}

#[test]
fn a_host_that_does_not_speak_as_agreed_is_left() {
    for rubbish in
        [&b"\xff\xff\xff\xff\x01"[..], &[0, 0, 0, 0, 99], &[4, 0, 0, 0, 2, 0, 0, 0, 0], &[4, 0, 0, 0, 6, 9, 0, 0, 0]]
    {
        let mut host = Host::new();
        host.raw(rubbish);
        assert!(!host.process.wait().expect("it ends").success(), "{rubbish:?}");
    }
}
