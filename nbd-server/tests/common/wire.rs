//! Bytes of the protocol as a client writes and reads them, kept apart from the server's own code so
//! that both would have to be wrong in the same way.

use std::io::{self, Read, Write};

pub const OPTION: &[u8; 8] = b"IHAVEOPT";
pub const REQUEST: u32 = 0x2560_9513;
pub const EXTENDED: u32 = 0x21e4_1c71;
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
pub const CHUNK_REPLY: u32 = 0x668e_33ef;
pub const EXTENDED_REPLY: u32 = 0x6e8a_278c;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const ZEROES: u16 = 6;
pub const STATUS: u16 = 7;

pub fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = OPTION.to_vec();
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// A string with its length, then `tail`.
pub fn named(name: &str, tail: &[u8]) -> Vec<u8> {
    let mut out = (name.len() as u32).to_be_bytes().to_vec();
    out.extend(name.as_bytes());
    out.extend(tail);
    out
}

pub fn request(kind: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut out = REQUEST.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(length.to_be_bytes());
    out
}

pub fn extended(kind: u16, flags: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut out = EXTENDED.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(length.to_be_bytes());
    out
}

pub fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, b| sum << 8 | u64::from(*b))
}

pub fn take(stream: &mut impl Read, len: usize) -> io::Result<Vec<u8>> {
    let mut out = vec![0; len];
    stream.read_exact(&mut out)?;
    Ok(out)
}

/// One reply to an option: its kind and its body.
pub fn option_reply(stream: &mut impl Read) -> io::Result<(u32, Vec<u8>)> {
    let header = take(stream, 20)?;
    assert_eq!(be(&header[..8]), 0x0003_e889_0455_65a9, "the magic of option replies");
    let body = take(stream, be(&header[16..]) as usize)?;
    Ok((be(&header[12..16]) as u32, body))
}

/// All replies to an option, up to the acknowledgement or an error.
pub fn option_replies(stream: &mut impl Read) -> io::Result<Vec<(u32, Vec<u8>)>> {
    let mut out = Vec::new();
    loop {
        let reply = option_reply(stream)?;
        let last = reply.0 == 1 || reply.0 >> 31 == 1;
        out.push(reply);
        if last {
            return Ok(out);
        }
    }
}

/// Reads the greeting and answers it with fixed newstyle, no zeroes.
pub fn greet(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let greeting = take(stream, 18)?;
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    stream.write_all(&3u32.to_be_bytes())
}

/// Sends an option and reads its replies.
pub fn ask(stream: &mut (impl Read + Write), kind: u32, data: &[u8]) -> io::Result<Vec<(u32, Vec<u8>)>> {
    stream.write_all(&option(kind, data))?;
    option_replies(stream)
}

/// Negotiates `disk` with simple replies.
pub fn go(stream: &mut (impl Read + Write)) -> io::Result<()> {
    greet(stream)?;
    let replies = ask(stream, 7, &named("disk", &[0, 0]))?;
    assert_eq!(replies.last().map(|r| r.0), Some(1), "GO is acknowledged");
    Ok(())
}

/// A simple reply: its error number. The cookie is compared.
pub fn simple(stream: &mut impl Read, cookie: u64) -> io::Result<u32> {
    let header = take(stream, 16)?;
    assert_eq!(be(&header[..4]) as u32, SIMPLE_REPLY);
    assert_eq!(be(&header[8..]), cookie, "the reply belongs to the request");
    Ok(be(&header[4..8]) as u32)
}
