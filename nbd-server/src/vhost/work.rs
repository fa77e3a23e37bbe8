//! A request that has been begun, and who gets its answer.
//!
//! Invariants
//!   * a head is begun once and answered once, by [`super::queue::Queue`]; what became of it meanwhile is here;
//!   * a piece is at most `PIECE` bytes, all but the last end on a block boundary.

use super::request::{Range, Request, Status, Wanted};
use crate::session::Awaited;

/// Data moved at a time; what the store makes all or nothing.
pub const PIECE: u64 = 1 << 20;
/// The same while others flush, and zeros stored at a time.
pub const SMALL_PIECE: u64 = 256 << 10;

/// A request under way.
pub struct Work {
    /// Which queue it came from.
    pub queue: u16,
    /// Where its chain begins there.
    pub head: u16,
    pub request: Request,
    /// Bytes done, of all ranges together.
    pub done: u64,
    /// What it waits for from the object store, or has waited for.
    pub awaited: Option<Awaited>,
}

impl Work {
    /// A request at its beginning.
    pub fn new(queue: u16, head: u16, request: Request) -> Self {
        Self { queue, head, request, done: 0, awaited: None }
    }

    /// Whether it stores data.
    pub fn takes_room(&self) -> bool {
        match &self.request.wanted {
            Wanted::Write(_) => true,
            Wanted::Zero(ranges) => ranges.iter().any(|range| range.store),
            _ => false,
        }
    }

    /// Place and length of the data that a read or write moves next.
    pub fn piece(&self, offset: u64, most: u64) -> (u64, u64) {
        let at = offset.saturating_add(self.done);
        let skew = at % blockstore::limits::BLOCK_U64;
        (at, self.request.length.saturating_sub(self.done).min(most - skew))
    }

    /// The range that is next, as far as it is done at a time; `None` at the end.
    pub fn range(&self) -> Option<Range> {
        let (Wanted::Discard(ranges) | Wanted::Zero(ranges)) = &self.request.wanted else { return None };
        let mut before = self.done;
        for range in ranges {
            if before < range.length {
                let (at, left) = (range.offset.saturating_add(before), range.length.saturating_sub(before));
                let skew = at % blockstore::limits::BLOCK_U64;
                let length = if range.store { left.min(SMALL_PIECE - skew) } else { left };
                return Some(Range { offset: at, length, store: range.store });
            }
            before = before.saturating_sub(range.length);
        }
        None
    }
}

/// The answer to a request, not shown to the guest yet.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub queue: u16,
    pub head: u16,
    /// Where the status goes.
    pub at: Option<u64>,
    pub status: Status,
    /// Bytes written into the guest's buffers.
    pub written: u32,
}

impl Answer {
    /// The answer to `work`.
    pub fn to(work: &Work, status: Status) -> Self {
        let data = match (&work.request.wanted, status) {
            (Wanted::Read(_), Status::Ok) => work.request.length,
            (Wanted::Id, Status::Ok) => super::request::ID_BYTES as u64,
            _ => 0,
        };
        let written = u32::try_from(data.saturating_add(1)).unwrap_or(u32::MAX);
        Self { queue: work.queue, head: work.head, at: Some(work.request.status), status, written }
    }
}
