//! Framing of options and their replies, shared by both stages of the handshake.
//!
//! Invariants
//!   * every length is compared with a limit before anything is kept for it;
//!   * one handshake carries at most `OPTIONS_MAX` options, and buffers one at a time.
//!
//! Not here: what an option means (`handshake`, `gate`).

use super::limits::{OPTIONS_MAX, OPTION_BYTES_MAX, OPTION_SKIP_MAX};
use super::wire::{cut, u32_at};

const INIT_MAGIC: &[u8; 8] = b"NBDMAGIC";
/// Begins every option.
pub const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED: u32 = 8;
pub const OPT_LIST_META: u32 = 9;
pub const OPT_SET_META: u32 = 10;
pub const OPT_EXTENDED: u32 = 11;

pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META: u32 = 4;
pub const ERR_UNSUP: u32 = 1 << 31 | 1;
pub const ERR_INVALID: u32 = 1 << 31 | 3;
pub const ERR_TLS_REQD: u32 = 1 << 31 | 5;
pub const ERR_UNKNOWN: u32 = 1 << 31 | 6;
pub const ERR_TOO_BIG: u32 = 1 << 31 | 9;
pub const ERR_EXT_HEADER_REQD: u32 = 1 << 31 | 10;

const CLIENT_FIXED: u32 = 1;
const CLIENT_NO_ZEROES: u32 = 2;

/// Appends the server's greeting: fixed newstyle, and no padding for clients that can do without.
pub fn greet(out: &mut Vec<u8>) {
    out.extend(INIT_MAGIC);
    out.extend(OPTION_MAGIC);
    out.extend(3u16.to_be_bytes());
}

/// Appends one reply to `option`.
pub fn reply(out: &mut Vec<u8>, option: u32, kind: u32, body: &[u8]) {
    out.extend(REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
}

/// Appends an error reply with a text for people, cut to a bound.
pub fn refuse(out: &mut Vec<u8>, option: u32, kind: u32, why: &str) {
    reply(out, option, kind, cut(why).as_bytes());
}

/// What the client said in answer to the greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientFlags {
    /// No padding after an export's description in the old form.
    pub no_zeroes: bool,
}

/// What stands at the front of the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Framed<'a> {
    /// Not all of it yet.
    NeedMore,
    /// Not the protocol, or beyond a limit: disconnect.
    Fatal,
    /// An option, whole.
    Option(u32, &'a [u8]),
    /// An option that is too long to be kept; its payload is skipped.
    TooBig(u32),
}

/// Cuts the input into the client's flags and its options.
#[derive(Debug, Default)]
pub struct Framer {
    flags: Option<ClientFlags>,
    options: u32,
    skip: usize,
}

impl Framer {
    /// A framer for a client whose flags are known already: after STARTTLS they are not repeated.
    pub fn greeted(flags: ClientFlags) -> Self {
        Self { flags: Some(flags), ..Self::default() }
    }

    /// The client's flags, once they have come.
    pub fn flags(&self) -> Option<ClientFlags> {
        self.flags
    }

    /// The next option of `input`, from `used` on; `used` moves past what was consumed.
    pub fn next<'a>(&mut self, input: &'a [u8], used: &mut usize) -> Framed<'a> {
        if self.flags.is_none() {
            let Some(flags) = u32_at(input, *used) else { return Framed::NeedMore };
            *used += 4;
            if flags & !(CLIENT_FIXED | CLIENT_NO_ZEROES) != 0 {
                return Framed::Fatal;
            }
            self.flags = Some(ClientFlags { no_zeroes: flags & CLIENT_NO_ZEROES != 0 });
        }
        let skipped = self.skip.min(input.len().saturating_sub(*used));
        self.skip -= skipped;
        *used += skipped;
        if self.skip > 0 {
            return Framed::NeedMore;
        }
        let rest = input.get(*used..).unwrap_or_default();
        // Foreign bytes are recognised at once, not after a whole header of them.
        if !OPTION_MAGIC.starts_with(rest.get(..8).unwrap_or(rest)) {
            return Framed::Fatal;
        }
        let (Some(option), Some(len)) = (u32_at(rest, 8), u32_at(rest, 12)) else { return Framed::NeedMore };
        if self.options >= OPTIONS_MAX || len > OPTION_SKIP_MAX {
            return Framed::Fatal;
        }
        if len > OPTION_BYTES_MAX {
            self.options += 1;
            self.skip = len as usize;
            *used += 16;
            return Framed::TooBig(option);
        }
        let Some(data) = rest.get(16..16 + len as usize) else { return Framed::NeedMore };
        self.options += 1;
        *used += 16 + data.len();
        Framed::Option(option, data)
    }
}
