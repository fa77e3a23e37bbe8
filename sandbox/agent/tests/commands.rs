//! The agent without a guest: a host at the other end of a pair of sockets.

use sandbox_protocol::{Decoder, Exec, Hello, Reply, Request, Side, Window, STDIN_WINDOW};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

struct Host {
    stream: UnixStream,
    decoder: Decoder,
    agent: Option<JoinHandle<()>>,
}

/// What a command left behind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    out: Vec<u8>,
    err: Vec<u8>,
    code: u8,
    signal: u8,
}

impl Host {
    /// An agent, and nothing said yet.
    fn silent() -> Self {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let agent = thread::spawn(move || cairn_agent::serve(&mut theirs).expect("a port that works"));
        Self { stream: ours, decoder: Decoder::default(), agent: Some(agent) }
    }

    fn new() -> Self {
        let mut host = Self::silent();
        host.greet([1; 16]);
        host
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("written");
    }

    fn greet(&mut self, nonce: [u8; 16]) {
        self.raw(&Hello::new(Side::Host, nonce).encode());
        let mut bytes = Vec::new();
        loop {
            let (found, used) = Hello::find(&bytes, Side::Agent).expect("our version");
            bytes.drain(..used);
            if found.is_some_and(|hello| hello.nonce == nonce) {
                self.decoder = Decoder::default();
                return self.decoder.push(&bytes);
            }
            let mut buffer = [0; 1000];
            let n = self.stream.read(&mut buffer).expect("an answer");
            assert!(n > 0, "the agent hung up");
            bytes.extend(&buffer[..n]);
        }
    }

    fn send(&mut self, request: &Request) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes).expect("it fits");
        self.raw(&bytes);
    }

    fn reply(&mut self) -> Reply {
        loop {
            if let Some((kind, payload)) = self.decoder.frame().expect("a frame") {
                return Reply::decode(kind, payload).expect("a reply");
            }
            let mut buffer = [0; 5000];
            let n = self.stream.read(&mut buffer).expect("an answer");
            assert!(n > 0, "the agent hung up");
            self.decoder.push(&buffer[..n]);
        }
    }

    fn start(&mut self, exec: Exec) -> u32 {
        self.send(&Request::Exec(exec));
        match self.reply() {
            Reply::Started { pid } => pid,
            other => panic!("{other:?}"),
        }
    }

    fn outcome(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            match self.reply() {
                Reply::Stdout(bytes) => outcome.out.extend(bytes),
                Reply::Stderr(bytes) => outcome.err.extend(bytes),
                Reply::Exited { code, signal } => return Outcome { code, signal, ..outcome },
                Reply::Credit(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn run(&mut self, script: &str) -> Outcome {
        self.start(sh(script));
        self.outcome()
    }

    /// Hangs up and waits until the agent has noticed.
    fn hang_up(mut self) {
        self.stream.shutdown(std::net::Shutdown::Both).expect("shut down");
        self.agent.take().expect("an agent").join().expect("it ends well");
    }
}

fn sh(script: &str) -> Exec {
    Exec { argv: vec![b"sh".to_vec(), b"-c".to_vec(), script.as_bytes().to_vec()], ..Exec::default() }
}

fn is_alive(pid: u32) -> bool {
    // A zombie is not.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn output_error_and_status_of_one_command_after_the_other() {
    let mut host = Host::new();
    for code in [0, 3, 255] {
        let outcome = host.run(&format!("echo out; echo err >&2; exit {code}"));
        assert_eq!(outcome, Outcome { out: b"out\n".to_vec(), err: b"err\n".to_vec(), code, signal: 0 });
    }
    host.hang_up();
}

#[test]
fn arguments_variables_and_folder_arrive_as_they_were_sent() {
    let mut host = Host::new();
    host.start(Exec {
        argv: ["sh", "-c", "printf '%s|' \"$@\" \"$VALUE\"; pwd", "sh", "a b", "", "'\"$x"].map(Vec::from).to_vec(),
        env: vec![(b"VALUE".to_vec(), b"1=2 3".to_vec())],
        cwd: b"/usr".to_vec(),
        tty: None,
    });
    assert_eq!(String::from_utf8_lossy(&host.outcome().out), "a b||'\"$x|1=2 3|/usr\n");
}

#[test]
fn a_command_that_is_not_there_is_told_with_the_reason() {
    let mut host = Host::new();
    for (argv, errno) in [(vec![b"/nowhere/x".to_vec()], 2), (vec![b"/etc/passwd".to_vec()], 13), (Vec::new(), 0)] {
        host.send(&Request::Exec(Exec { argv, ..Exec::default() }));
        match host.reply() {
            Reply::Failed { errno: found, .. } => assert_eq!(found, errno),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(host.run("echo on").out, b"on\n", "the connection goes on");
}

#[test]
fn a_megabyte_comes_whole_although_the_host_reads_late() {
    let mut host = Host::new();
    host.start(sh("head -c 1048576 /dev/zero | tr '\\0' x"));
    // Far more than all pipes and buffers on the way hold.
    thread::sleep(Duration::from_millis(100));
    let outcome = host.outcome();
    assert!(outcome.out.len() == 1 << 20 && outcome.out.iter().all(|byte| *byte == b'x') && outcome.code == 0);
}

#[test]
fn a_megabyte_of_input_goes_in_as_it_is_credited() {
    let mut host = Host::new();
    host.start(sh("sha256sum"));
    let data: Vec<u8> = (0..1_u32 << 20).map(|n| (n >> 8) as u8).collect();
    let (mut sent, mut room) = (0, STDIN_WINDOW);
    while sent < data.len() {
        let step = room.min(data.len() - sent).min(30_000);
        if step > 0 {
            host.send(&Request::Stdin(data[sent..sent + step].to_vec()));
            sent += step;
            room -= step;
        } else {
            match host.reply() {
                Reply::Credit(taken) => room += taken as usize,
                other => panic!("{other:?}"),
            }
        }
    }
    host.send(&Request::StdinEnd);
    let said = host.outcome();
    let mut reference = std::process::Command::new("sha256sum");
    let mut reference = reference.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn();
    let reference = reference.as_mut().expect("sha256sum runs");
    reference.stdin.take().expect("a pipe").write_all(&data).expect("written");
    let mut sum = Vec::new();
    reference.stdout.take().expect("a pipe").read_to_end(&mut sum).expect("read");
    reference.wait().expect("a child");
    assert_eq!(said.out, sum);
}

#[test]
fn a_command_that_does_not_read_keeps_no_signal_from_it() {
    let mut host = Host::new();
    host.start(sh("exec sleep 600"));
    // A pipe holds all of the window's first half; the rest stays with the agent.
    for _ in 0..2 {
        host.send(&Request::Stdin(vec![0; STDIN_WINDOW / 2]));
    }
    host.send(&Request::Signal(15));
    assert_eq!(host.outcome().signal, 15);
}

#[test]
fn a_signal_reaches_all_that_a_command_started() {
    let mut host = Host::new();
    host.start(sh("sleep 600 & echo $!; wait"));
    let Reply::Stdout(child) = host.reply() else { panic!("the child's number") };
    let child: u32 = String::from_utf8_lossy(&child).trim().parse().expect("a number");
    host.send(&Request::Signal(9));
    assert_eq!(host.outcome().signal, 9);
    while is_alive(child) {
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_a_command_leaves_running_does_not_hold_up_its_end() {
    let mut host = Host::new();
    let outcome = host.run("sleep 600 & echo $!");
    assert_eq!(outcome.code, 0);
    let child: i32 = String::from_utf8_lossy(&outcome.out).trim().parse().expect("a number");
    assert!(is_alive(child as u32), "it goes on");
    // SAFETY: a plain system call; the process is one that this test has started.
    unsafe { libc::kill(child, libc::SIGKILL) };
}

#[test]
fn a_terminal_has_a_size_that_changes_and_takes_control_characters() {
    let mut host = Host::new();
    let script = "stty -echo; stty size; read line; stty size; echo got $line; exec sleep 600";
    host.start(Exec { tty: Some(Window { rows: 24, columns: 80 }), ..sh(script) });
    let mut seen = String::new();
    let mut until = |host: &mut Host, words: &str| {
        while !seen.contains(words) {
            match host.reply() {
                Reply::Stdout(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                Reply::Credit(_) => {}
                other => panic!("{other:?} after {seen:?}"),
            }
        }
    };
    until(&mut host, "24 80");
    host.send(&Request::Resize(Window { rows: 50, columns: 132 }));
    host.send(&Request::Stdin(b"word\n".to_vec()));
    until(&mut host, "50 132");
    until(&mut host, "got word");
    // Control-C.
    host.send(&Request::Stdin(vec![3]));
    assert_eq!(host.outcome().signal, 2);
}

#[test]
fn a_host_that_goes_takes_its_command_with_it() {
    let mut host = Host::new();
    let pid = host.start(sh("exec sleep 600"));
    assert!(is_alive(pid));
    host.hang_up();
    assert!(!is_alive(pid));
}

#[test]
fn a_command_that_ignores_the_hang_up_is_ended_all_the_same() {
    let mut host = Host::new();
    host.start(sh("trap '' HUP TERM; echo ready; while :; do sleep 1; done"));
    let Reply::Stdout(_) = host.reply() else { panic!("ready") };
    host.hang_up();
}

#[test]
fn after_bytes_that_are_no_frame_the_next_host_is_heard() {
    let mut host = Host::silent();
    host.raw(b"the rest of something");
    host.greet([2; 16]);
    let pid = host.start(sh("exec sleep 600"));
    host.raw(&[0xff; 40]);
    host.greet([3; 16]);
    while is_alive(pid) {
        thread::sleep(Duration::from_millis(5));
    }
    // A hello where a frame is expected, as when one is sent twice, is answered, and what follows it heard.
    host.raw(&Hello::new(Side::Host, [4; 16]).encode());
    host.greet([5; 16]);
    assert_eq!(host.run("echo on").out, b"on\n");
}

#[test]
fn half_a_frame_does_not_hold_a_port_for_ever() {
    let mut host = Host::new();
    host.raw(&[100, 0, 0, 0, 2, b'x']);
    thread::sleep(Duration::from_millis(2500));
    host.greet([9; 16]);
    assert_eq!(host.run("echo on").out, b"on\n");
}

#[test]
fn what_is_not_frozen_cannot_be_thawed() {
    let mut host = Host::new();
    host.send(&Request::Thaw);
    assert!(matches!(host.reply(), Reply::Failed { .. }));
    host.send(&Request::Sync);
    assert_eq!(host.reply(), Reply::Done);
}
