//! Request headers of the transmission phase.

use super::limits::{CONTEXTS_MAX, PAYLOAD_MAX};
use super::wire::{u16_at, u32_at, u64_at};

const MAGIC: u32 = 0x2560_9513;
const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

/// Flag: the change must be durable before the reply.
pub const FLAG_FUA: u16 = 1 << 0;
/// Flag: zeros must be stored, not punched.
pub const FLAG_NO_HOLE: u16 = 1 << 1;
/// Flag: a read must be answered in one piece.
pub const FLAG_DF: u16 = 1 << 2;
/// Flag: one extent is enough.
pub const FLAG_REQ_ONE: u16 = 1 << 3;
/// Flag: fail instead of zeroing slowly.
pub const FLAG_FAST_ZERO: u16 = 1 << 4;
/// Flag (extended): the length is that of a payload.
pub const FLAG_PAYLOAD_LEN: u16 = 1 << 5;

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Bytes of the export.
    Read,
    /// Change bytes; the payload follows.
    Write,
    /// Goodbye.
    Disconnect,
    /// Make everything replied to durable.
    Flush,
    /// Forget blocks.
    Trim,
    /// Prefetch.
    Cache,
    /// Make zeros.
    WriteZeroes,
    /// Ask for extents.
    BlockStatus,
    /// Something else.
    Unknown(u16),
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The command.
    pub command: Command,
    /// Its flags.
    pub flags: u16,
    /// The client's mark, given back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes affected.
    pub length: u64,
    /// Bytes that follow the header.
    pub payload: u32,
    /// Length of the header itself.
    pub header: usize,
}

/// What [`parse`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The header is not complete yet.
    NeedMore,
    /// A request.
    Request(Request),
    /// Not the protocol, or a payload beyond the limit: disconnect.
    Fatal(&'static str),
}

/// Reads the request header at the front of `input`.
pub fn parse(input: &[u8], extended: bool) -> Parsed {
    let header = if extended { 32 } else { 28 };
    let Some(magic) = u32_at(input, 0) else { return Parsed::NeedMore };
    if magic != if extended { EXTENDED_MAGIC } else { MAGIC } {
        return Parsed::Fatal("wrong request magic");
    }
    let length = if extended { u64_at(input, 24) } else { u32_at(input, 24).map(u64::from) };
    let fields = (u16_at(input, 4), u16_at(input, 6), u64_at(input, 8), u64_at(input, 16), length);
    let (Some(flags), Some(kind), Some(cookie), Some(offset), Some(length)) = fields else { return Parsed::NeedMore };
    let command = match kind {
        0 => Command::Read,
        1 => Command::Write,
        2 => Command::Disconnect,
        3 => Command::Flush,
        4 => Command::Trim,
        5 => Command::Cache,
        6 => Command::WriteZeroes,
        7 => Command::BlockStatus,
        other => Command::Unknown(other),
    };
    let carries = if extended { flags & FLAG_PAYLOAD_LEN != 0 } else { command == Command::Write };
    // The protocol demands the flag, and without it no payload follows. If one does all the same, what a guest
    // writes would be read as requests: that must not be tried.
    if command == Command::Write && !carries {
        return Parsed::Fatal("a write without the flag that its payload follows");
    }
    if carries && length > u64::from(PAYLOAD_MAX) {
        return Parsed::Fatal("a payload beyond 32 MiB");
    }
    let payload = if carries { length as u32 } else { 0 };
    Parsed::Request(Request { command, flags, cookie, offset, length, payload, header })
}

/// The payload of a block status request that chooses contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusFilter {
    /// Bytes of the range.
    pub length: u64,
    /// Numbers of the chosen contexts, each once.
    pub contexts: Vec<u32>,
}

impl StatusFilter {
    /// Reads the payload; `None` when it is malformed, empty or names more contexts than a session
    /// can have.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let length = u64_at(payload, 0)?;
        let ids = payload.get(8..)?;
        let whole = ids.len() % 4 == 0 && !ids.is_empty() && ids.len() / 4 <= CONTEXTS_MAX;
        let mut contexts = Vec::with_capacity(CONTEXTS_MAX);
        for at in (0..ids.len()).step_by(4).take_while(|_| whole) {
            let id = u32_at(ids, at)?;
            if contexts.contains(&id) {
                return None;
            }
            contexts.push(id);
        }
        whole.then_some(Self { length, contexts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u16, flags: u16, length: u32) -> Vec<u8> {
        let mut out = MAGIC.to_be_bytes().to_vec();
        out.extend(flags.to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend(7u64.to_be_bytes());
        out.extend(4096u64.to_be_bytes());
        out.extend(length.to_be_bytes());
        out
    }

    #[test]
    fn a_header_split_anywhere_asks_for_more() {
        let bytes = header(1, FLAG_FUA, 512);
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut], false), Parsed::NeedMore);
        }
        let Parsed::Request(request) = parse(&bytes, false) else { panic!("a whole header parses") };
        assert_eq!((request.command, request.payload, request.header), (Command::Write, 512, 28));
    }

    #[test]
    fn a_write_beyond_the_limit_disconnects_before_anything_is_allocated() {
        assert!(matches!(parse(&header(1, 0, PAYLOAD_MAX + 1), false), Parsed::Fatal(_)));
        assert!(matches!(parse(&header(4, 0, u32::MAX), false), Parsed::Request(_)));
    }

    #[test]
    fn an_extended_write_without_its_payload_flag_disconnects() {
        let extended = |flags: u16| {
            let mut out = EXTENDED_MAGIC.to_be_bytes().to_vec();
            out.extend(flags.to_be_bytes());
            out.extend(1u16.to_be_bytes());
            [7u64, 4096, 512].iter().for_each(|field| out.extend(field.to_be_bytes()));
            out
        };
        assert!(matches!(parse(&extended(0), true), Parsed::Fatal(_)));
        let Parsed::Request(request) = parse(&extended(FLAG_PAYLOAD_LEN), true) else { panic!("it parses") };
        assert_eq!((request.payload, request.length), (512, 512));
    }

    #[test]
    fn foreign_magic_disconnects() {
        assert!(matches!(parse(b"GET / HTTP/1.1\r\n", false), Parsed::Fatal(_)));
    }
}
