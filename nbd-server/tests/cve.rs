//! One test for each class of bug that NBD servers have had: what the peer sends, and that the daemon
//! answers as the protocol says, or disconnects, and goes on. Classes that need TLS, a crowd or a
//! faulty disk are tested where those are: `tls.rs`, `hostile.rs`, `session/faults.rs`.

mod common;

use common::wire::{self, be, FLUSH, READ, STATUS, WRITE};
use common::Daemon;
use nbd_server::nbd::{ExportInfo, Exports, Gate, Handshake, OpenError};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

const ERR_INVALID: u32 = 1 << 31 | 3;
const ERR_UNKNOWN: u32 = 1 << 31 | 6;
const ERR_TOO_BIG: u32 = 1 << 31 | 9;

fn negotiating(daemon: &Daemon) -> UnixStream {
    let mut stream = daemon.connect();
    wire::greet(&mut stream).expect("a greeting");
    stream
}

fn answer(stream: &mut UnixStream, kind: u32, data: &[u8]) -> (u32, Vec<u8>) {
    wire::ask(stream, kind, data).expect("an answer").pop().expect("at least one")
}

/// The peer was disconnected, with nothing more said.
fn assert_closed(mut stream: UnixStream) {
    assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "the daemon should have closed");
}

/// The daemon serves a new client.
fn assert_alive(daemon: &Daemon) {
    let mut stream = daemon.connect();
    wire::go(&mut stream).expect("a new client is let in");
    stream.write_all(&wire::request(READ, 0, 5, 0, 512)).expect("heard");
    assert_eq!(wire::simple(&mut stream, 5).expect("an answer"), 0);
}

/// nbd-server: a name's length of 2^32 - 1, plus one, is nothing to allocate.
#[test]
fn cve_2022_26495_a_name_length_that_overflows() {
    let daemon = Daemon::start();
    for option in [6, 7, 9, 10] {
        let mut stream = negotiating(&daemon);
        wire::ask(&mut stream, 8, &[]).expect("structured replies");
        for lie in [u32::MAX, u32::MAX - 1, 1 << 31, 4097, 100] {
            let data = [&lie.to_be_bytes()[..], b"disk\0\0"].concat();
            assert_eq!(answer(&mut stream, option, &data).0, ERR_INVALID, "option {option}, a name of {lie} bytes");
        }
        // The same lie one level down: a query's length.
        let query = [&1u32.to_be_bytes()[..], &u32::MAX.to_be_bytes(), b"base:"].concat();
        assert_eq!(answer(&mut stream, 10, &wire::named("disk", &query)).0, ERR_INVALID);
        let count = [&u32::MAX.to_be_bytes()[..], &wire::named("base:", &[])].concat();
        assert_eq!(answer(&mut stream, 10, &wire::named("disk", &count)).0, ERR_INVALID);
    }
    assert_alive(&daemon);
}

/// nbd-server: an option's payload beyond 1024 bytes overflows the buffer it is read into.
#[test]
fn cve_2022_26496_an_option_longer_than_any_buffer() {
    let daemon = Daemon::start();
    let mut stream = negotiating(&daemon);
    for len in [1023, 1024, 1025, 8191, 8192] {
        assert_eq!(answer(&mut stream, 7, &vec![0xff; len]).0, ERR_INVALID, "{len} bytes");
    }
    for len in [8193, 16_384, 65_536] {
        assert_eq!(answer(&mut stream, 7, &vec![0xff; len]).0, ERR_TOO_BIG, "{len} bytes");
    }
    assert_eq!(answer(&mut stream, 7, &wire::named("disk", &[0, 0])).0, 1, "and the framing is intact");
}

/// QEMU: a name of 4096 bytes in a buffer of 256 on the stack.
#[test]
fn cve_2017_15118_a_name_of_the_greatest_length() {
    let daemon = Daemon::start();
    let mut stream = negotiating(&daemon);
    assert_eq!(answer(&mut stream, 6, &wire::named(&"n".repeat(4096), &[0, 0])).0, ERR_UNKNOWN);
    assert_eq!(answer(&mut stream, 6, &wire::named(&"n".repeat(4097), &[0, 0])).0, ERR_INVALID);
    for len in [4096, 4097, 8192, 8193] {
        let mut stream = negotiating(&daemon);
        stream.write_all(&wire::option(1, &vec![b'n'; len])).expect("heard");
        assert_closed(stream);
    }
    assert_alive(&daemon);
}

/// nbd-server: a request larger than the buffer for its data.
#[test]
fn cve_2005_3534_a_request_larger_than_any_buffer() {
    let daemon = Daemon::start();
    for len in [(32 << 20) + 1, 1 << 31, u32::MAX] {
        let mut stream = daemon.connect();
        wire::go(&mut stream).expect("let in");
        stream.write_all(&wire::request(READ, 0, 1, 0, len)).expect("heard");
        assert_eq!(wire::simple(&mut stream, 1).expect("an answer"), 22);
        stream.write_all(&wire::request(WRITE, 0, 2, 0, len)).expect("heard");
        assert_closed(stream);
    }
    assert_alive(&daemon);
}

/// QEMU: up to 4 GiB are read to answer one option.
#[test]
fn cve_2017_15119_an_option_of_4_gib_is_not_waited_for() {
    let daemon = Daemon::start();
    for len in [65_537, 1 << 30, u32::MAX] {
        let mut stream = negotiating(&daemon);
        let header = [&wire::OPTION[..], &3u32.to_be_bytes(), &u32::to_be_bytes(len)].concat();
        stream.write_all(&header).expect("heard");
        assert_closed(stream);
    }
    assert_alive(&daemon);
}

struct Counting(u32);

impl Exports for Counting {
    fn list(&mut self) -> Vec<String> {
        Vec::new()
    }
    fn open(&mut self, _: &str) -> Result<ExportInfo, OpenError> {
        self.0 += 1;
        Err(OpenError("no".to_owned()))
    }
    fn has_checkpoint(&mut self, _: &str, _: &str) -> bool {
        self.0 += 1;
        false
    }
    fn checkpoints(&mut self, _: &str, _: usize) -> Vec<String> {
        self.0 += 1;
        Vec::new()
    }
}

/// nbdkit: the backend is opened for clients that have only connected.
#[test]
fn cve_2019_14850_nothing_is_opened_before_a_client_names_it() {
    let (mut exports, mut out) = (Counting(0), Vec::new());
    let mut handshake = Handshake::new(&mut out);
    let before = [3u32.to_be_bytes().to_vec(), wire::option(8, &[]), wire::option(3, &[]), wire::option(99, b"x")];
    handshake.step(&before.concat(), &mut exports, &mut out);
    assert_eq!(exports.0, 0);
    handshake.step(&wire::option(6, &wire::named("disk", &[0, 0])), &mut exports, &mut out);
    assert_eq!(exports.0, 1, "the counter counts");
    // Behind the gate nothing can be opened at all: it knows no exports.
    let mut gate = Gate::new(&mut out);
    gate.step(&[3u32.to_be_bytes().to_vec(), wire::option(7, &wire::named("disk", &[0, 0]))].concat(), &mut out);
}

/// nbdkit: options and commands in an order that nobody thought of (after the repair of 2019-14850).
#[test]
fn cve_2019_14851_commands_in_the_wrong_order() {
    let daemon = Daemon::start();
    let mut stream = negotiating(&daemon);
    stream.write_all(&wire::request(READ, 0, 1, 0, 512)).expect("heard");
    assert_closed(stream);
    let mut stream = daemon.connect();
    wire::go(&mut stream).expect("let in");
    stream.write_all(&wire::option(7, &wire::named("disk", &[0, 0]))).expect("heard");
    assert_closed(stream);
    let mut stream = negotiating(&daemon);
    for _ in 0..3 {
        let asked = wire::named("disk", &[&1u32.to_be_bytes()[..], &wire::named("base:allocation", &[])].concat());
        assert_eq!(answer(&mut stream, 10, &asked).0, ERR_INVALID, "contexts without structured replies");
        assert_eq!(answer(&mut stream, 6, &wire::named("nothing", &[0, 0])).0, ERR_UNKNOWN);
        assert_eq!(answer(&mut stream, 6, &wire::named("disk", &[0, 0])).0, 1);
    }
    assert_eq!(answer(&mut stream, 7, &wire::named("disk", &[0, 0])).0, 1);
    stream.write_all(&wire::request(STATUS, 0, 1, 0, 4096)).expect("heard");
    assert_eq!(wire::simple(&mut stream, 1).expect("an answer"), 22, "no context is in force");
    assert_alive(&daemon);
}

/// QEMU: an error text that repeats a long name trips an assertion; 4096 bytes are the most a string
/// may have.
#[test]
fn cve_2020_10761_a_refusal_that_repeats_a_long_name_is_cut() {
    let daemon = Daemon::start();
    let mut stream = negotiating(&daemon);
    for name in ["n".repeat(4096), "\u{1}".repeat(4096), format!("disk@{}", "\"".repeat(4000)), "ä".repeat(2000)] {
        let (kind, text) = answer(&mut stream, 6, &wire::named(&name, &[0, 0]));
        assert_eq!(kind, ERR_UNKNOWN);
        assert!(text.len() <= 256, "a text of {} bytes", text.len());
        assert!(String::from_utf8(text).is_ok());
    }
    // The same in the transmission phase.
    wire::ask(&mut stream, 8, &[]).expect("structured replies");
    assert_eq!(answer(&mut stream, 7, &wire::named("disk", &[0, 0])).0, 1);
    stream.write_all(&wire::request(READ, 0, 1, u64::MAX, 512)).expect("heard");
    let header = wire::take(&mut stream, 20).expect("a chunk");
    let body = wire::take(&mut stream, be(&header[16..]) as usize).expect("a body");
    assert_eq!(be(&body[..4]), 22);
    assert_eq!(be(&body[4..6]) as usize, body.len() - 6);
    assert_alive(&daemon);
}

/// QEMU: a client that leaves at any point of the negotiation takes the server with it.
#[test]
fn cve_2017_7539_leaving_in_the_middle_of_the_negotiation() {
    let daemon = Daemon::start();
    let all = [
        3u32.to_be_bytes().to_vec(),
        wire::option(8, &[]),
        wire::option(3, &[]),
        wire::option(7, &wire::named("disk", &[0, 0])),
        wire::request(READ, 0, 1, 0, 4096),
        wire::request(FLUSH, 0, 2, 0, 0),
    ]
    .concat();
    for cut in 0..=all.len() {
        let mut stream = daemon.connect();
        stream.write_all(&all[..cut]).expect("heard");
    }
    assert_alive(&daemon);
}

/// QEMU: a client that is gone before the greeting is sent.
#[test]
fn cve_2017_9524_leaving_before_the_greeting() {
    let daemon = Daemon::start();
    for how in [Shutdown::Both, Shutdown::Read, Shutdown::Write].iter().cycle().take(300) {
        // The daemon may be quicker; then there is nothing left to shut down.
        let _ = daemon.connect().shutdown(*how);
    }
    assert_alive(&daemon);
}

/// nbdkit: a block status over a huge range, at and across 2^32 and 2^63.
#[test]
fn cve_2025_47711_and_47712_block_status_over_a_huge_range() {
    const HUGE: u64 = 1 << 43;
    let daemon = Daemon::start();
    daemon.control(&format!(r#"{{"op":"volume.create","volume":"huge","size_bytes":{HUGE}}}"#));
    for extended in [false, true] {
        let mut stream = negotiating(&daemon);
        wire::ask(&mut stream, if extended { 11 } else { 8 }, &[]).expect("an answer");
        let query = [&1u32.to_be_bytes()[..], &wire::named("base:allocation", &[])].concat();
        assert_eq!(answer(&mut stream, 10, &wire::named("huge", &query)).0, 1);
        assert_eq!(answer(&mut stream, 7, &wire::named("huge", &[0, 0])).0, 1);
        let small = [(0, 0xffff_ffff), (0, 0xffff_f000), (0, 0x8000_0001), (1, 0xffff_ffff), (HUGE - 4096, 4096)];
        let large = [(0, HUGE), (0, 1 << 32), (0, (1 << 32) + 1), (4095, HUGE - 4095)];
        let wrong = [(0, u64::MAX), (0, HUGE + 1), (u64::MAX, 2), (1 << 63, 1 << 63)];
        let asked: Vec<(u64, u64, bool)> = if extended {
            let good = small.iter().chain(&large).map(|(offset, length)| (*offset, *length, true));
            good.chain(wrong.map(|(offset, length)| (offset, length, false))).collect()
        } else {
            small.iter().map(|(offset, length)| (*offset, *length, true)).collect()
        };
        for (offset, length, good) in asked {
            let bytes = if extended {
                wire::extended(STATUS, 0, 1, offset, length)
            } else {
                wire::request(STATUS, 0, 1, offset, length as u32)
            };
            stream.write_all(&bytes).expect("heard");
            let header = wire::take(&mut stream, if extended { 32 } else { 20 }).expect("a chunk");
            let body = wire::take(&mut stream, be(&header[if extended { 24 } else { 16 }..]) as usize).expect("a body");
            assert_eq!(header[6] & 0x80 == 0, good, "{length} bytes at {offset}");
            let (from, width) = if extended { (8, 8) } else { (4, 4) };
            let runs = body[from..].chunks_exact(2 * width).map(|run| be(&run[..width]));
            let sum: u64 = if good { runs.sum() } else { 1 };
            assert!(sum > 0 && (!good || sum <= length), "{sum} bytes are described of {length} at {offset}");
        }
    }
    assert_alive(&daemon);
}

/// nbd-server: signal handlers that do more than a handler may. Ours is no handler: the signal is
/// read like any other input, between two requests.
#[test]
fn cve_2015_0847_a_signal_in_the_middle_of_the_work() {
    let mut daemon = Daemon::start();
    let mut stream = daemon.connect();
    wire::go(&mut stream).expect("let in");
    let asked: Vec<u8> = (0..2000).flat_map(|i| wire::request(READ, 0, i, i * 4096, 4096)).collect();
    stream.write_all(&asked).expect("heard");
    daemon.terminate();
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).expect("an end, not a reset");
    for (i, reply) in answers.chunks_exact(16 + 4096).enumerate() {
        assert_eq!((be(&reply[..4]) as u32, be(&reply[8..16])), (wire::SIMPLE_REPLY, i as u64));
    }
    daemon.join().expect("a clean end");
}
