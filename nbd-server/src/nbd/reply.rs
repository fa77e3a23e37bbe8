//! Replies of the transmission phase, appended to the caller's buffer.

use super::limits::EXTENTS_MAX;
use super::wire::cut;
use blockstore::Extent;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

const FLAG_DONE: u16 = 1;
const TYPE_NONE: u16 = 0;
const TYPE_DATA: u16 = 1;
const TYPE_HOLE: u16 = 2;
const TYPE_STATUS: u16 = 5;
const TYPE_STATUS_EXT: u16 = 6;
const TYPE_ERROR: u16 = 1 << 15 | 1;

/// Error numbers of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted: the export is read-only.
    Perm = 1,
    /// The store could not read or write.
    Io = 5,
    /// The request is wrong.
    Inval = 22,
    /// No space, or past the end.
    NoSpace = 28,
    /// Not supported.
    NotSup = 95,
    /// The server is going away.
    Shutdown = 108,
}

/// A reply without data in the old form.
pub fn simple(out: &mut Vec<u8>, cookie: u64, error: u32) {
    out.extend(SIMPLE_MAGIC.to_be_bytes());
    out.extend(error.to_be_bytes());
    out.extend(cookie.to_be_bytes());
}

/// One chunk's header. In the extended form it repeats the request's offset.
fn chunk(out: &mut Vec<u8>, extended: bool, cookie: u64, offset: u64, kind: u16, done: bool, length: u64) {
    let flags = if done { FLAG_DONE } else { 0 };
    out.extend(if extended { EXTENDED_MAGIC } else { STRUCTURED_MAGIC }.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    if extended {
        out.extend(offset.to_be_bytes());
        out.extend(length.to_be_bytes());
    } else {
        out.extend((length as u32).to_be_bytes());
    }
}

/// The end of a structured answer that carried no data.
pub fn none(out: &mut Vec<u8>, extended: bool, cookie: u64, offset: u64) {
    chunk(out, extended, cookie, offset, TYPE_NONE, true, 0);
}

/// A structured error; the text is cut to a bound.
pub fn error(out: &mut Vec<u8>, extended: bool, cookie: u64, offset: u64, errno: Errno, text: &str) {
    let text = cut(text);
    chunk(out, extended, cookie, offset, TYPE_ERROR, true, 6 + text.len() as u64);
    out.extend((errno as u32).to_be_bytes());
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

/// The header of `length` data bytes at `at`; the bytes follow.
pub fn data_header(out: &mut Vec<u8>, extended: bool, cookie: u64, offset: u64, at: u64, length: u32, done: bool) {
    chunk(out, extended, cookie, offset, TYPE_DATA, done, 8 + u64::from(length));
    out.extend(at.to_be_bytes());
}

/// A hole of `length` bytes at `at`.
pub fn hole(out: &mut Vec<u8>, extended: bool, cookie: u64, offset: u64, at: u64, length: u32, done: bool) {
    chunk(out, extended, cookie, offset, TYPE_HOLE, done, 12);
    out.extend(at.to_be_bytes());
    out.extend(length.to_be_bytes());
}

/// The extents of one metadata context. `flags(hole)` gives a run's status flags.
#[expect(clippy::too_many_arguments, reason = "the fields of one chunk; a struct would only rename them")]
pub fn block_status(
    out: &mut Vec<u8>,
    extended: bool,
    cookie: u64,
    offset: u64,
    context: u32,
    extents: &[Extent],
    flags: impl Fn(bool) -> u32,
    done: bool,
) {
    // The old form has 32-bit lengths: a longer run is cut to a multiple of 4096 and ends the answer.
    const COMPACT_MAX: u64 = (u32::MAX as u64 + 1) - 4096;
    let mut body = Vec::new();
    let mut count = 0u32;
    for extent in extents.iter().take(EXTENTS_MAX) {
        count += 1;
        if extended {
            body.extend(extent.len.to_be_bytes());
            body.extend(u64::from(flags(extent.hole)).to_be_bytes());
            continue;
        }
        body.extend((extent.len.min(COMPACT_MAX) as u32).to_be_bytes());
        body.extend(flags(extent.hole).to_be_bytes());
        if extent.len > COMPACT_MAX {
            break;
        }
    }
    let prefix = if extended { 8 } else { 4 };
    let kind = if extended { TYPE_STATUS_EXT } else { TYPE_STATUS };
    chunk(out, extended, cookie, offset, kind, done, prefix + body.len() as u64);
    out.extend(context.to_be_bytes());
    if extended {
        out.extend(count.to_be_bytes());
    }
    out.extend(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cve_2020_10761_a_long_error_text_is_cut() {
        let mut out = Vec::new();
        error(&mut out, false, 1, 0, Errno::Io, &"ä".repeat(10_000));
        assert!(out.len() <= 20 + 6 + crate::nbd::limits::ERROR_TEXT_MAX);
    }

    #[test]
    fn cve_2025_47711_a_huge_run_is_cut_to_32_bits() {
        let mut out = Vec::new();
        let runs = [Extent { len: 1 << 50, hole: true }, Extent { len: 4096, hole: false }];
        block_status(&mut out, false, 1, 0, 1, &runs, |_| 3, true);
        assert_eq!(out.len(), 20 + 4 + 8, "the cut run ends the answer");
    }
}
