//! A small blocking NBD client: copies whole disks with requests in flight, tells holes from data, and reads at an offset.
//!
//! Invariants
//!   * every length that the server names is bounded before anything is kept for it;
//!   * replies may come in any order: each chunk says where it belongs.

#![forbid(unsafe_code)]

mod error;

pub use error::Error;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x21e4_1c71;
const REPLY_MAGIC: u32 = 0x6e8a_278c;
const OPT_GO: u32 = 7;
const OPT_SET_META: u32 = 10;
const OPT_EXTENDED: u32 = 11;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const STATUS: u16 = 7;
const FLAG_PAYLOAD_LEN: u16 = 1 << 5;
const REPLY_DONE: u16 = 1;
const DATA: u16 = 1;
const HOLE: u16 = 2;
const EXTENTS: u16 = 6;
const ERROR: u16 = 1 << 15;
const HOLE_FLAG: u64 = 1;
/// No reply of ours is longer: data comes in pieces far below this.
const REPLY_BYTES_MAX: u64 = 64 << 20;

/// What one chunk of a reply says.
pub enum Chunk {
    /// Bytes of the export at this offset, in [`Nbd::payload`].
    Data(u64),
    /// Zeros: at this offset, so many bytes.
    Hole(u64, u64),
    /// Runs from the request's offset on: length, and whether it is a hole.
    Extents(Vec<(u64, bool)>),
    /// Nothing but that the request goes on or is done.
    Other,
}

/// A session on one export.
pub struct Nbd {
    stream: UnixStream,
    cookie: u64,
    body: Vec<u8>,
    /// Size of the export, bytes.
    pub size: u64,
    /// Requests that are not answered yet.
    pub in_flight: usize,
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, b| sum << 8 | u64::from(*b))
}

fn broken(what: &str) -> Error {
    Error::Protocol(what.to_owned())
}

fn option(kind: u32, parts: &[&[u8]]) -> Vec<u8> {
    let len: usize = parts.iter().map(|p| p.len()).sum();
    let mut out = OPTION_MAGIC.to_vec();
    out.extend(kind.to_be_bytes());
    out.extend((len as u32).to_be_bytes());
    parts.iter().for_each(|part| out.extend(*part));
    out
}

impl Nbd {
    /// Negotiates `export` on a connection on which the server is about to greet.
    pub fn new(mut stream: UnixStream, export: &str) -> Result<Self, Error> {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if !greeting.starts_with(b"NBDMAGICIHAVEOPT") {
            return Err(broken("no greeting"));
        }
        stream.write_all(&3u32.to_be_bytes())?;
        let mut nbd = Self { stream, cookie: 0, body: Vec::new(), size: 0, in_flight: 0 };
        let context = b"base:allocation";
        let (name, len) = (export.as_bytes(), (export.len() as u32).to_be_bytes());
        nbd.negotiate(OPT_EXTENDED, &[])?;
        let query = [&len[..], name, &1u32.to_be_bytes(), &(context.len() as u32).to_be_bytes(), context];
        nbd.negotiate(OPT_SET_META, &query)?;
        nbd.negotiate(OPT_GO, &[&len[..], name, &[0, 0]])?;
        Ok(nbd)
    }

    fn negotiate(&mut self, kind: u32, parts: &[&[u8]]) -> Result<(), Error> {
        self.stream.write_all(&option(kind, parts))?;
        loop {
            let mut header = [0; 20];
            self.stream.read_exact(&mut header)?;
            let (magic, rest) = header.split_at(8);
            let (code, len) = (be(&rest[4..8]) as u32, be(&rest[8..]));
            if be(magic) != OPTION_REPLY_MAGIC {
                return Err(broken("an option's reply without its magic"));
            }
            self.receive(len)?;
            match (code, self.body.get(..10)) {
                (REP_ACK, _) => return Ok(()),
                (REP_INFO, Some([0, 0, size @ ..])) => self.size = be(&size[..8]),
                (code, _) if code >> 31 == 1 => {
                    let why = String::from_utf8_lossy(&self.body).into_owned();
                    return Err(Error::Refused(why));
                }
                _ => {}
            }
        }
    }

    fn receive(&mut self, len: u64) -> Result<(), Error> {
        if len > REPLY_BYTES_MAX {
            return Err(broken("a reply beyond all bounds"));
        }
        self.body.resize(len as usize, 0);
        Ok(self.stream.read_exact(&mut self.body)?)
    }

    fn request(&mut self, kind: u16, flags: u16, offset: u64, length: u64) -> Result<(), Error> {
        self.cookie += 1;
        let mut out = [0; 32];
        out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&flags.to_be_bytes());
        out[6..8].copy_from_slice(&kind.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&offset.to_be_bytes());
        out[24..].copy_from_slice(&length.to_be_bytes());
        self.in_flight += 1;
        Ok(self.stream.write_all(&out)?)
    }

    /// Asks for bytes.
    pub fn read(&mut self, offset: u64, length: u64) -> Result<(), Error> {
        self.request(READ, 0, offset, length)
    }

    /// Sends bytes.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.request(WRITE, FLAG_PAYLOAD_LEN, offset, data.len() as u64)?;
        Ok(self.stream.write_all(data)?)
    }

    /// The header of the next chunk: its kind, and the length of what follows.
    fn chunk(&mut self) -> Result<(u16, u64), Error> {
        let mut header = [0; 32];
        self.stream.read_exact(&mut header)?;
        if be(&header[..4]) != u64::from(REPLY_MAGIC) {
            return Err(broken("a reply without its magic"));
        }
        let (flags, kind) = (be(&header[4..6]) as u16, be(&header[6..8]) as u16);
        self.in_flight = self.in_flight.saturating_sub(usize::from(flags & REPLY_DONE != 0));
        Ok((kind, be(&header[24..])))
    }

    /// What a chunk of this kind says that was received.
    fn told(&self, kind: u16) -> Result<Chunk, Error> {
        if kind & ERROR != 0 {
            let errno = self.body.get(..4).map_or(0, be) as u32;
            let why = String::from_utf8_lossy(self.body.get(6..).unwrap_or_default()).into_owned();
            return Err(Error::Server { errno, why });
        }
        match kind {
            DATA if self.body.len() >= 8 => Ok(Chunk::Data(be(&self.body[..8]))),
            HOLE if self.body.len() >= 12 => Ok(Chunk::Hole(be(&self.body[..8]), be(&self.body[8..12]))),
            EXTENTS if self.body.len() >= 8 => {
                let run = |entry: &[u8]| (be(&entry[..8]), be(&entry[8..]) & HOLE_FLAG != 0);
                Ok(Chunk::Extents(self.body[8..].chunks_exact(16).map(run).collect()))
            }
            _ => Ok(Chunk::Other),
        }
    }

    /// The next chunk of some reply.
    pub fn next_chunk(&mut self) -> Result<Chunk, Error> {
        let (kind, len) = self.chunk()?;
        self.receive(len)?;
        self.told(kind)
    }

    /// The bytes of the [`Chunk::Data`] that came last.
    pub fn payload(&self) -> &[u8] {
        self.body.get(8..).unwrap_or_default()
    }

    /// Waits for all answers that carry nothing.
    pub fn settle(&mut self) -> Result<(), Error> {
        while self.in_flight > 0 {
            self.next_chunk()?;
        }
        Ok(())
    }

    /// Data and holes from `offset` on; not necessarily up to the end.
    pub fn extents(&mut self, offset: u64) -> Result<Vec<(u64, bool)>, Error> {
        self.request(STATUS, 0, offset, self.size - offset)?;
        let mut runs = Vec::new();
        while self.in_flight > 0 {
            if let Chunk::Extents(found) = self.next_chunk()? {
                runs = found;
            }
        }
        if runs.iter().all(|(len, _)| *len == 0) {
            return Err(broken("no extents"));
        }
        Ok(runs)
    }

    /// Fills `out` with the bytes from `offset` on; nothing else may be in flight.
    pub fn read_exact_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let end = offset.checked_add(out.len() as u64).filter(|end| *end <= self.size);
        end.ok_or_else(|| broken("a read beyond the export's end"))?;
        self.read(offset, out.len() as u64)?;
        let place = |at: u64, len: u64| {
            let from = usize::try_from(at.checked_sub(offset)?).ok()?;
            Some(from..from.checked_add(usize::try_from(len).ok()?)?)
        };
        let mut told = 0;
        while self.in_flight > 0 {
            let (kind, len) = self.chunk()?;
            told += match kind {
                DATA if len >= 8 => {
                    let mut at = [0; 8];
                    self.stream.read_exact(&mut at)?;
                    let (at, len) = (be(&at), len - 8);
                    let into = place(at, len).and_then(|place| out.get_mut(place));
                    self.stream.read_exact(into.ok_or_else(|| broken("data that was not asked for"))?)?;
                    len
                }
                kind => {
                    self.receive(len)?;
                    match self.told(kind)? {
                        Chunk::Hole(at, len) => {
                            let hole = place(at, len).and_then(|place| out.get_mut(place));
                            hole.ok_or_else(|| broken("a hole that was not asked for"))?.fill(0);
                            len
                        }
                        _ => 0,
                    }
                }
            };
        }
        // Each byte is told once: a server that leaves some out has not answered.
        if told < out.len() as u64 {
            return Err(broken("a reply that leaves bytes out"));
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.settle()?;
        self.request(FLUSH, 0, 0, 0)?;
        self.settle()
    }

    /// Says goodbye.
    pub fn disconnect(mut self) -> Result<(), Error> {
        self.request(DISCONNECT, 0, 0, 0)
    }
}
