//! The protocol, feature by feature, as a client sees it.

mod common;

use common::wire::{self, be, CACHE, DISC, FLUSH, READ, STATUS, TRIM, WRITE, ZEROES};
use common::{Daemon, DISK_BYTES};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const PAYLOAD_LEN: u16 = 32;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

const ERR_UNSUP: u32 = 1 << 31 | 1;
const ERR_INVALID: u32 = 1 << 31 | 3;
const ERR_UNKNOWN: u32 = 1 << 31 | 6;
const ERR_TOO_BIG: u32 = 1 << 31 | 9;

/// What a client may agree on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Form {
    Simple,
    Structured,
    Extended,
}

struct Client {
    stream: UnixStream,
    form: Form,
    cookie: u64,
}

#[derive(Default, Debug)]
struct Answer {
    error: u32,
    /// Kind, offset and body of each chunk.
    chunks: Vec<(u16, Vec<u8>)>,
}

impl Client {
    fn new(daemon: &Daemon, export: &str, form: Form, contexts: &[&str]) -> Self {
        let mut stream = daemon.connect();
        wire::greet(&mut stream).expect("a greeting");
        if form != Form::Simple {
            let option = if form == Form::Extended { 11 } else { 8 };
            assert_eq!(wire::ask(&mut stream, option, &[]).expect("an answer")[0].0, 1);
        }
        if !contexts.is_empty() {
            let queries: Vec<u8> = contexts.iter().flat_map(|query| wire::named(query, &[])).collect();
            let tail = [&(contexts.len() as u32).to_be_bytes()[..], &queries].concat();
            let replies = wire::ask(&mut stream, 10, &wire::named(export, &tail)).expect("an answer");
            assert_eq!(replies.len(), contexts.len() + 1, "every context is agreed on");
        }
        let replies = wire::ask(&mut stream, 7, &wire::named(export, &[0, 0])).expect("an answer");
        assert_eq!(replies.last().map(|r| r.0), Some(1), "GO is acknowledged");
        Self { stream, form, cookie: 0 }
    }

    fn ask(&mut self, kind: u16, flags: u16, offset: u64, length: u64, payload: &[u8]) -> Answer {
        self.cookie += 1;
        let mut bytes = match self.form {
            Form::Extended => wire::extended(kind, flags, self.cookie, offset, length),
            _ => wire::request(kind, flags, self.cookie, offset, length as u32),
        };
        bytes.extend(payload);
        self.stream.write_all(&bytes).expect("the server listens");
        if self.form == Form::Simple {
            let error = wire::simple(&mut self.stream, self.cookie).expect("an answer");
            let len = if kind == READ && error == 0 { length as usize } else { 0 };
            let data = wire::take(&mut self.stream, len).expect("the data");
            return Answer { error, chunks: vec![(1, [&offset.to_be_bytes()[..], &data].concat())] };
        }
        let mut answer = Answer::default();
        loop {
            let magic = be(&wire::take(&mut self.stream, 4).expect("an answer")) as u32;
            if magic == wire::SIMPLE_REPLY {
                let rest = wire::take(&mut self.stream, 12).expect("an answer");
                assert!(self.form == Form::Structured && kind != READ && kind != STATUS);
                assert_eq!(be(&rest[4..]), self.cookie);
                answer.error = be(&rest[..4]) as u32;
                return answer;
            }
            let extended = self.form == Form::Extended;
            assert_eq!(magic, if extended { wire::EXTENDED_REPLY } else { wire::CHUNK_REPLY });
            let header = wire::take(&mut self.stream, if extended { 28 } else { 16 }).expect("a header");
            assert_eq!(be(&header[4..12]), self.cookie);
            assert!(!extended || be(&header[12..20]) == offset, "extended replies repeat the offset");
            let length = be(&header[if extended { 20 } else { 12 }..]) as usize;
            let body = wire::take(&mut self.stream, length).expect("a body");
            let chunk = be(&header[2..4]) as u16;
            if chunk >> 15 == 1 {
                answer.error = be(&body[..4]) as u32;
                assert_eq!(be(&body[4..6]) as usize, body.len() - 6, "the text's length");
            } else {
                answer.chunks.push((chunk, body));
            }
            if header[1] & 1 == 1 {
                return answer;
            }
        }
    }

    fn fails(&mut self, kind: u16, flags: u16, offset: u64, length: u64, payload: &[u8], with: u32) {
        let answer = self.ask(kind, flags, offset, length, payload);
        assert_eq!(answer.error, with, "command {kind}, flags {flags}, {length} bytes at {offset}");
    }

    fn works(&mut self, kind: u16, flags: u16, offset: u64, length: u64, payload: &[u8]) -> Answer {
        let answer = self.ask(kind, flags, offset, length, payload);
        assert_eq!(answer.error, 0, "command {kind}, flags {flags}, {length} bytes at {offset}");
        answer
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let flags = if self.form == Form::Extended { PAYLOAD_LEN } else { 0 };
        self.works(WRITE, flags, offset, data.len() as u64, data);
    }

    /// Reads, and puts the chunks together.
    fn read(&mut self, flags: u16, offset: u64, length: u64) -> Vec<u8> {
        let answer = self.works(READ, flags, offset, length, &[]);
        let mut out = vec![0xee; length as usize];
        let mut covered = 0;
        for (kind, body) in &answer.chunks {
            let at = (be(&body[..8]) - offset) as usize;
            let data = match kind {
                1 => body[8..].to_vec(),
                2 => vec![0; be(&body[8..12]) as usize],
                other => panic!("chunk {other} in a read"),
            };
            out[at..at + data.len()].copy_from_slice(&data);
            covered += data.len();
        }
        assert_eq!(covered, length as usize, "every byte exactly once");
        out
    }

    /// The extents of each context: length and flags.
    fn status(&mut self, flags: u16, offset: u64, length: u64, payload: &[u8]) -> Vec<(u32, Vec<(u64, u64)>)> {
        let answer = self.works(STATUS, flags, offset, length, payload);
        let extended = self.form == Form::Extended;
        let read = |(kind, body): &(u16, Vec<u8>)| {
            assert_eq!(*kind, if extended { 6 } else { 5 });
            let (from, width) = if extended { (8, 8) } else { (4, 4) };
            let runs = body[from..].chunks(2 * width).map(|run| (be(&run[..width]), be(&run[width..]))).collect();
            (be(&body[..4]) as u32, runs)
        };
        answer.chunks.iter().map(read).collect()
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8 ^ (i >> 12) as u8 ^ seed | 1).collect()
}

#[test]
fn list_and_info_describe_the_export() {
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    wire::greet(&mut stream).expect("a greeting");
    let list = wire::ask(&mut stream, 3, &[]).expect("LIST");
    assert_eq!(list[0], (2, wire::named("disk", &[])));
    assert_eq!(wire::ask(&mut stream, 3, b"x").expect("LIST")[0].0, ERR_INVALID);
    // All information, on the default export.
    let wants = [0u8, 3, 0, 1, 0, 2, 0, 3];
    let info = wire::ask(&mut stream, 6, &wire::named("", &wants)).expect("INFO");
    let found = |kind: u16| info.iter().find(|(r, b)| *r == 3 && b[..2] == kind.to_be_bytes()).map(|(_, b)| &b[2..]);
    assert_eq!(be(&found(0).expect("the export")[..8]), DISK_BYTES);
    assert_eq!(found(1), Some(&b"disk"[..]));
    assert_eq!(found(2), Some(&b"Cairn volume"[..]));
    let sizes = found(3).expect("block sizes");
    assert_eq!([be(&sizes[..4]), be(&sizes[4..8]), be(&sizes[8..])], [1, 4096, 32 << 20]);
    let flags = |reply: &[(u32, Vec<u8>)]| be(&reply[0].1[10..12]) as u16;
    let plain = flags(&info);
    assert_eq!(plain & (1 << 7 | 1 << 12), 0, "no DF without structured replies, no filter without extended headers");
    assert_eq!(plain & 0b1101_0110_1101, 0b1101_0110_1101, "flush, FUA, trim, zeroes, multi-conn, cache, fast zero");
    wire::ask(&mut stream, 8, &[]).expect("STRUCTURED_REPLY");
    assert_eq!(flags(&wire::ask(&mut stream, 6, &wire::named("", &[0, 0])).expect("INFO")), plain | 1 << 7);
    wire::ask(&mut stream, 11, &[]).expect("EXTENDED_HEADERS");
    let extended = flags(&wire::ask(&mut stream, 6, &wire::named("", &[0, 0])).expect("INFO"));
    assert_eq!(extended, plain | 1 << 7 | 1 << 12);
}

#[test]
fn options_that_cannot_be_are_refused_and_the_client_goes_on() {
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    wire::greet(&mut stream).expect("a greeting");
    let mut refused = |kind: u32, data: &[u8], with: u32| {
        let replies = wire::ask(&mut stream, kind, data).expect("an answer");
        assert_eq!(replies.last().map(|r| r.0), Some(with), "option {kind}");
    };
    refused(77, b"what", ERR_UNSUP);
    refused(4, &[], ERR_UNSUP);
    refused(5, &[], ERR_UNSUP);
    refused(8, b"x", ERR_INVALID);
    refused(11, b"x", ERR_INVALID);
    refused(7, &wire::named("nothing", &[0, 0]), ERR_UNKNOWN);
    refused(6, &wire::named("disk@v9", &[0, 0]), ERR_UNKNOWN);
    refused(7, &wire::named("../disk", &[0, 0]), ERR_UNKNOWN);
    refused(7, b"", ERR_INVALID);
    refused(7, &wire::named("disk", &[0, 2, 0, 0]), ERR_INVALID);
    refused(10, &wire::named("disk", &[0, 0, 0, 0]), ERR_INVALID);
    refused(9, &wire::named("nothing", &[0, 0, 0, 0]), ERR_UNKNOWN);
    refused(6, &vec![0; 9000], ERR_TOO_BIG);
    refused(7, &wire::named("disk", &[0, 0]), 1);
}

#[test]
fn the_old_way_in_pads_unless_told_not_to() {
    let daemon = Daemon::start();
    for (flags, padding) in [(3u32, 0), (1, 124), (0, 124)] {
        let mut stream = daemon.connect();
        wire::take(&mut stream, 18).expect("a greeting");
        stream.write_all(&flags.to_be_bytes()).expect("heard");
        stream.write_all(&wire::option(1, b"disk")).expect("heard");
        let found = wire::take(&mut stream, 10 + padding).expect("a description");
        assert_eq!(be(&found[..8]), DISK_BYTES);
        assert!(found[10..].iter().all(|b| *b == 0));
        stream.write_all(&wire::request(READ, 0, 9, 0, 512)).expect("heard");
        assert_eq!(wire::simple(&mut stream, 9).expect("an answer"), 0);
        assert_eq!(wire::take(&mut stream, 512).expect("data"), vec![0; 512]);
    }
    let mut stream = daemon.connect();
    wire::greet(&mut stream).expect("a greeting");
    stream.write_all(&wire::option(1, b"nothing")).expect("heard");
    assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "an unknown name ends an old client");
}

#[test]
fn abort_is_acknowledged() {
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    wire::greet(&mut stream).expect("a greeting");
    assert_eq!(wire::ask(&mut stream, 2, &[]).expect("ABORT")[0].0, 1);
    assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
}

#[test]
fn bytes_come_back_in_every_form_at_every_alignment() {
    let daemon = Daemon::start();
    let mut expected = vec![0u8; 40 << 20];
    for (i, form) in [Form::Simple, Form::Structured, Form::Extended].into_iter().enumerate() {
        let mut client = Client::new(&daemon, "disk", form, &[]);
        for (offset, len) in
            [(0, 1), (511, 2), (4095, 4098), (1 << 20, 1 << 20), (12_345, 3 << 20), (7 << 20, 32 << 20)]
        {
            let data = pattern(len, i as u8 * 16);
            client.write(offset as u64, &data);
            expected[offset..offset + len].copy_from_slice(&data);
        }
        client.works(TRIM, FUA, 8 << 20, 1 << 20, &[]);
        expected[8 << 20..9 << 20].fill(0);
        client.works(ZEROES, FUA | FAST_ZERO, (9 << 20) + 100, 70_000, &[]);
        expected[(9 << 20) + 100..(9 << 20) + 70_100].fill(0);
        client.works(FLUSH, 0, 0, 0, &[]);
        client.works(CACHE, 0, 0, 1 << 20, &[]);
        let flags = if form == Form::Simple { vec![0] } else { vec![0, DF] };
        for flags in flags {
            for (offset, len) in [(0, 1), (510, 4), (3, 9000), (1 << 20, 1 << 20), (7_654_321, 32 << 20), (0, 5 << 20)]
            {
                let got = client.read(flags, offset as u64, len as u64);
                assert!(got == expected[offset..offset + len], "{len} bytes at {offset}, flags {flags}");
            }
        }
    }
}

#[test]
fn a_structured_read_shows_holes_and_df_forbids_pieces() {
    let daemon = Daemon::start();
    let mut client = Client::new(&daemon, "disk", Form::Structured, &[]);
    client.write(1 << 20, &pattern(65536, 3));
    let answer = client.works(READ, 0, 0, 4 << 20, &[]);
    assert!(answer.chunks.iter().any(|(kind, _)| *kind == 2), "holes are sent as holes");
    let sent: usize = answer.chunks.iter().filter(|(kind, _)| *kind == 1).map(|(_, body)| body.len() - 8).sum();
    assert_eq!(sent, 65536, "only data is sent as data");
    let whole = client.works(READ, DF, 0, 4 << 20, &[]);
    assert_eq!(whole.chunks.len(), 1);
    let empty = client.works(READ, 0, 4096, 0, &[]);
    assert!(empty.chunks.iter().all(|(kind, _)| *kind == 0), "nothing is read as nothing");
}

#[test]
fn requests_that_cannot_be_are_refused_and_the_client_goes_on() {
    let daemon = Daemon::start();
    for form in [Form::Simple, Form::Structured, Form::Extended] {
        let mut client = Client::new(&daemon, "disk", form, &[]);
        let framed = if form == Form::Extended { PAYLOAD_LEN } else { 0 };
        for kind in [8, 9, 255, u16::MAX] {
            client.fails(kind, 0, 0, 512, &[], EINVAL);
        }
        client.fails(READ, NO_HOLE, 0, 512, &[], EINVAL);
        client.fails(READ, 1 << 9, 0, 512, &[], EINVAL);
        client.fails(WRITE, REQ_ONE | framed, 0, 512, &[0; 512], EINVAL);
        client.fails(WRITE, REQ_ONE | framed, 0, 2 << 20, &vec![0; 2 << 20], EINVAL);
        client.fails(STATUS, 0, 0, 4096, &[], EINVAL);
        client.fails(ZEROES, NO_HOLE | FAST_ZERO, 0, 4096, &[], ENOTSUP);
        for (kind, with) in [(READ, EINVAL), (TRIM, EINVAL), (CACHE, EINVAL), (ZEROES, ENOSPC)] {
            client.fails(kind, 0, DISK_BYTES - 511, 512, &[], with);
            client.fails(kind, 0, DISK_BYTES, 1, &[], with);
            client.fails(kind, 0, u64::MAX, 512, &[], with);
        }
        client.fails(WRITE, framed, DISK_BYTES - 511, 512, &[1; 512], ENOSPC);
        client.fails(WRITE, framed, u64::MAX - 1, 512, &[1; 512], ENOSPC);
        client.fails(WRITE, framed, DISK_BYTES - (1 << 20), 2 << 20, &vec![1; 2 << 20], ENOSPC);
        client.fails(READ, 0, 0, (32 << 20) + 1, &[], EINVAL);
        if form == Form::Simple {
            client.fails(READ, DF, 0, 512, &[], EINVAL);
        }
        if form == Form::Extended {
            client.fails(READ, PAYLOAD_LEN, 0, 100, &[0; 100], EINVAL);
            client.fails(TRIM, PAYLOAD_LEN, 0, 3 << 20, &vec![0; 3 << 20], EINVAL);
            client.fails(ZEROES, 0, 0, u64::MAX, &[], ENOSPC);
            client.works(ZEROES, 0, 0, DISK_BYTES, &[]);
        }
        assert_eq!(client.read(0, DISK_BYTES - 4096, 4096), vec![0; 4096], "nothing refused was done");
        client.write(DISK_BYTES - 1, &[7]);
        assert_eq!(client.read(0, DISK_BYTES - 1, 1), [7], "the last byte belongs to the disk");
        client.works(ZEROES, 0, DISK_BYTES - 1, 1, &[]);
    }
}

#[test]
fn a_write_beyond_32_mib_ends_the_connection() {
    let daemon = Daemon::start();
    let mut client = Client::new(&daemon, "disk", Form::Simple, &[]);
    client.stream.write_all(&wire::request(WRITE, 0, 1, 0, (32 << 20) + 1)).expect("heard");
    assert_eq!(client.stream.read(&mut [0; 16]).unwrap_or(0), 0);
}

#[test]
fn zeroes_are_stored_or_punched_as_asked() {
    let daemon = Daemon::start();
    let mut client = Client::new(&daemon, "disk", Form::Structured, &["base:allocation"]);
    client.write(0, &pattern(64 << 10, 1));
    client.works(ZEROES, NO_HOLE, 0, 16 << 10, &[]);
    client.works(ZEROES, 0, 16 << 10, 16 << 10, &[]);
    client.works(TRIM, 0, 32 << 10, 16 << 10, &[]);
    let expected = vec![(16 << 10, 0), (32 << 10, 3), (16 << 10, 0), (64 << 10, 3)];
    assert_eq!(client.status(0, 0, 128 << 10, &[]), [(1, expected)]);
    assert_eq!(client.read(0, 0, 48 << 10), vec![0; 48 << 10]);
}

/// All of it was written in one go: nobody else was answered until then, with extended headers for minutes.
#[test]
fn others_are_answered_while_many_zeros_are_stored() {
    let daemon = Daemon::start();
    let mut other = Client::new(&daemon, "disk", Form::Simple, &[]);
    for form in [Form::Simple, Form::Structured, Form::Extended] {
        let mut client = Client::new(&daemon, "disk", form, &[]);
        client.write((128 << 20) - 512, &pattern(1024, 1));
        let length = (128 << 20) - 512;
        let request = match form {
            Form::Extended => wire::extended(ZEROES, NO_HOLE, 77, 512, length),
            _ => wire::request(ZEROES, NO_HOLE, 77, 512, length as u32),
        };
        client.stream.write_all(&request).expect("the server listens");
        assert_eq!(other.read(0, 200 << 20, 4096), [0; 4096]);
        client.stream.set_nonblocking(true).expect("a socket");
        let early = client.stream.read(&mut [0; 1]);
        assert_eq!(early.map_err(|e| e.kind()), Err(std::io::ErrorKind::WouldBlock), "the zeros came first");
        client.stream.set_nonblocking(false).expect("a socket");
        let header = wire::take(&mut client.stream, if form == Form::Extended { 32 } else { 16 }).expect("a reply");
        assert_eq!(be(&header[4..8]), u64::from(form == Form::Extended) << 16, "no error");
        assert_eq!(other.read(0, (128 << 20) - 512, 1024), [vec![0; 512], pattern(1024, 1)[512..].to_vec()].concat());
    }
}

#[test]
fn block_status_names_changes_and_one_extent_when_asked() {
    let daemon = Daemon::start();
    let mut client = Client::new(&daemon, "disk", Form::Structured, &[]);
    client.write(0, &pattern(128 << 10, 1));
    assert!(daemon.control(r#"{"op":"checkpoint.create","volume":"disk"}"#).contains("v1"));
    client.write(64 << 10, &pattern(4096, 9));
    let contexts = ["base:allocation", "cairn:changed-since/v1"];
    for form in [Form::Structured, Form::Extended] {
        let mut client = Client::new(&daemon, "disk", form, &contexts);
        let allocated = vec![(128 << 10, 0), (128 << 10, 3)];
        let changed = vec![(64 << 10, 0), (4 << 10, 1), (188 << 10, 0)];
        let both = [(1, allocated.clone()), (2, changed.clone())];
        assert_eq!(client.status(0, 0, 256 << 10, &[]), both);
        let ones = client.status(REQ_ONE, 0, 256 << 10, &[]);
        assert_eq!(ones, [(1, vec![(128 << 10, 0)]), (2, vec![(64 << 10, 0)])]);
        client.fails(STATUS, 0, 0, 0, &[], EINVAL);
        if form == Form::Extended {
            let filter = |length: u64, ids: &[u32]| {
                let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
                [&length.to_be_bytes()[..], &ids].concat()
            };
            let second = filter(256 << 10, &[2]);
            assert_eq!(client.status(PAYLOAD_LEN, 0, second.len() as u64, &second), [(2, changed)]);
            for wrong in [
                filter(4096, &[3]),
                filter(4096, &[0]),
                filter(4096, &[1, 1]),
                filter(4096, &[]),
                filter(0, &[1]),
                filter(DISK_BYTES + 1, &[1]),
                filter(u64::MAX, &[1]),
                vec![0; 13],
                vec![1; 7],
            ] {
                client.fails(STATUS, PAYLOAD_LEN, 0, wrong.len() as u64, &wrong, EINVAL);
            }
            client.status(0, 0, DISK_BYTES, &[]);
        }
    }
}

#[test]
fn a_checkpoint_is_read_only() {
    let daemon = Daemon::start();
    Client::new(&daemon, "disk", Form::Simple, &[]).write(0, &[5; 4096]);
    daemon.control(r#"{"op":"checkpoint.create","volume":"disk"}"#);
    Client::new(&daemon, "disk", Form::Simple, &[]).write(0, &[6; 4096]);
    for form in [Form::Simple, Form::Structured, Form::Extended] {
        let mut client = Client::new(&daemon, "disk@v1", form, &[]);
        let framed = if form == Form::Extended { PAYLOAD_LEN } else { 0 };
        client.fails(WRITE, framed, 0, 512, &[0; 512], EPERM);
        client.fails(WRITE, framed | FUA, 0, 2 << 20, &vec![0; 2 << 20], EPERM);
        client.fails(TRIM, 0, 0, 4096, &[], EPERM);
        client.fails(ZEROES, 0, 0, 4096, &[], EPERM);
        client.works(FLUSH, 0, 0, 0, &[]);
        assert_eq!(client.read(0, 0, 4096), [5; 4096]);
    }
    let mut stream = daemon.connect();
    wire::greet(&mut stream).expect("a greeting");
    let info = wire::ask(&mut stream, 6, &wire::named("disk@v1", &[0, 0])).expect("INFO");
    let flags = be(&info[0].1[10..12]);
    assert_eq!(flags & (1 << 1 | 1 << 5 | 1 << 6 | 1 << 11), 1 << 1, "read-only, and no ways to change");
}

#[test]
fn what_one_connection_wrote_another_flushes_and_a_third_reads() {
    let daemon = Daemon::start();
    let mut clients: Vec<Client> = (0..3).map(|_| Client::new(&daemon, "disk", Form::Structured, &[])).collect();
    for i in 0..50u64 {
        let data = pattern(4096, i as u8);
        clients[(i % 3) as usize].write(i * 4096, &data);
        clients[((i + 1) % 3) as usize].works(FLUSH, 0, 0, 0, &[]);
        assert_eq!(clients[((i + 2) % 3) as usize].read(0, i * 4096, 4096), data);
    }
}

#[test]
fn a_goodbye_does_not_overtake_answers_that_are_due() {
    let daemon = Daemon::start();
    let _other = Client::new(&daemon, "disk", Form::Simple, &[]);
    let mut client = Client::new(&daemon, "disk", Form::Simple, &[]);
    let mut bytes = wire::request(WRITE, FUA, 1, 0, 4096);
    bytes.extend([1; 4096]);
    bytes.extend(wire::request(FLUSH, 0, 2, 0, 0));
    bytes.extend(wire::request(DISC, 0, 3, 0, 0));
    client.stream.write_all(&bytes).expect("heard");
    let mut answers = Vec::new();
    client.stream.read_to_end(&mut answers).expect("a clean end");
    let mut cookies: Vec<u64> = answers.chunks(16).map(|reply| be(&reply[8..])).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 2]);
}

#[test]
fn a_daemon_that_ends_closes_its_clients_cleanly() {
    let mut daemon = Daemon::start();
    let mut client = Client::new(&daemon, "disk", Form::Simple, &[]);
    client.write(0, &[9; 4096]);
    daemon.stop().expect("a clean end");
    assert_eq!(client.stream.read(&mut [0; 16]).expect("an end, not a reset"), 0);
}

/// The contexts that LIST_META_CONTEXT names for `disk`.
fn listed(daemon: &Daemon, export: &str, queries: &[&str]) -> Vec<String> {
    let mut stream = daemon.connect();
    wire::greet(&mut stream).expect("a greeting");
    let count = (queries.len() as u32).to_be_bytes().to_vec();
    let tail = queries.iter().fold(count, |out, query| [out, wire::named(query, &[])].concat());
    let replies = wire::ask(&mut stream, 9, &wire::named(export, &tail)).expect("an answer");
    assert_eq!(replies.last().map(|r| r.0), Some(1), "{queries:?}");
    let named = replies.iter().filter(|reply| reply.0 == 4);
    named.map(|reply| String::from_utf8(reply.1[4..].to_vec()).expect("UTF-8")).collect()
}

#[test]
fn contexts_of_changes_can_be_found_by_asking() {
    let daemon = Daemon::start();
    assert_eq!(listed(&daemon, "disk", &["cairn:"]), Vec::<String>::new());
    for _ in 0..3 {
        daemon.control(r#"{"op":"checkpoint.create","volume":"disk"}"#);
    }
    daemon.control(r#"{"op":"checkpoint.delete","volume":"disk","id":"v2"}"#);
    let (base, all) = ("base:allocation", ["cairn:changed-since/v1", "cairn:changed-since/v3"]);
    for export in ["disk", "disk@v3"] {
        assert_eq!(listed(&daemon, export, &["cairn:"]), all);
        assert_eq!(listed(&daemon, export, &["cairn:changed-since/", "cairn:", all[0]]), all);
        assert_eq!(listed(&daemon, export, &[]), [base, all[0], all[1]]);
        assert_eq!(listed(&daemon, export, &["cairn:", "base:"]), [base, all[0], all[1]]);
        assert_eq!(listed(&daemon, export, &[all[1]]), [all[1]]);
        assert_eq!(listed(&daemon, export, &["cairn:changed-since/v2", "other:"]), Vec::<String>::new());
    }
}

#[test]
fn the_list_of_contexts_is_bounded_and_has_the_newest() {
    let daemon = Daemon::start();
    for _ in 0..1030 {
        daemon.control(r#"{"op":"checkpoint.create","volume":"disk"}"#);
    }
    let all = listed(&daemon, "disk", &["cairn:"]);
    assert!(all.len() <= 1024 && all.len() > 1000, "{}", all.len());
    assert_eq!(all.last().map(String::as_str), Some("cairn:changed-since/v1030"));
}

#[test]
fn structured_replies_are_refused_once_headers_are_extended() {
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    wire::greet(&mut stream).expect("a greeting");
    assert_eq!(wire::ask(&mut stream, 8, &[]).expect("an answer")[0].0, 1);
    assert_eq!(wire::ask(&mut stream, 11, &[]).expect("an answer")[0].0, 1, "structured first is allowed");
    assert_eq!(wire::ask(&mut stream, 8, &[]).expect("an answer")[0].0, 1 << 31 | 10, "EXT_HEADER_REQD");
    wire::ask(&mut stream, 7, &wire::named("disk", &[0, 0])).expect("an answer");
    stream.write_all(&wire::extended(TRIM, 0, 1, 0, 4096)).expect("the server listens");
    assert_eq!(be(&wire::take(&mut stream, 32).expect("a reply")[..4]) as u32, wire::EXTENDED_REPLY);
}

#[test]
fn an_extended_write_without_its_payload_flag_ends_the_session_and_writes_nothing() {
    let daemon = Daemon::start();
    let mut client = Client::new(&daemon, "disk", Form::Extended, &[]);
    // What the guest writes looks like a request: it must not be taken for one.
    let mut bytes = wire::extended(WRITE, 0, 1, 0, 32);
    bytes.extend(wire::extended(ZEROES, NO_HOLE, 2, 0, 4096));
    client.stream.write_all(&bytes).expect("the server listens");
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.stream, &mut rest);
    assert!(rest.is_empty(), "{rest:?}");
    let mut client = Client::new(&daemon, "disk", Form::Structured, &["base:allocation"]);
    assert_eq!(client.status(0, 0, 8192, &[]), [(1, vec![(8192, 3)])]);
}
