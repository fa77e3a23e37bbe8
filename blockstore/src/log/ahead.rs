//! Writing ahead: the data of a large request goes to the log while the request is still arriving.
//!
//! It is put where its batch will have it if nothing else is appended before; then only the rest and the
//! header are left to write. Receiving and writing share the processor's caches, and a client that
//! sends goes on sending meanwhile (measured in `docs/decisions/0007`).
//!
//! Invariants
//!   * nothing is promised, changed or visible before the batch's header is written, which is last: until
//!     then these are bytes behind the end of the log, like those of a batch that was torn;
//!   * data in place is used only if the end of the log has not moved since, and nobody else has put
//!     data there;
//!   * a failure is no error: what could not be put ahead is written with its batch.

use super::stream::Stream;
use crate::disk::File;
use crate::limits::{BLOCK, BLOCK_U64, END_SLOT, FIRST_SLOT};
use crate::types::SegmentId;
use std::io::IoSlice;
use std::sync::Arc;

/// The place behind a log's last batch, taken for one request.
#[derive(Clone)]
pub(super) struct Claim {
    segment: SegmentId,
    slot: u32,
    ticket: Arc<()>,
}

/// The beginning of one request, put ahead. Belongs to who receives the request.
#[derive(Default)]
pub struct Ahead {
    claim: Option<Claim>,
    crcs: Vec<u32>,
    hopeless: bool,
}

impl Ahead {
    fn holds(&self, claim: &Claim) -> bool {
        self.claim.as_ref().is_some_and(|own| Arc::ptr_eq(&own.ticket, &claim.ticket))
    }

    fn give_up(&mut self) {
        *self = Self { hopeless: true, ..Self::default() };
    }
}

impl Stream {
    /// Puts those whole blocks of `data` ahead that have come since the last call; `data` begins where the
    /// request does, of which `total` blocks are to come in all.
    pub fn write_ahead(&mut self, ahead: &mut Ahead, total: usize, data: &[u8]) {
        if ahead.hopeless {
            return;
        }
        let fresh = data.get(ahead.crcs.len() * BLOCK..).unwrap_or_default();
        let (blocks, _) = fresh.split_at(fresh.len() / BLOCK * BLOCK);
        if blocks.is_empty() {
            return;
        }
        // Blocks of zeros are not stored: where one is, the data behind it lies elsewhere.
        let zero = |block: &[u8]| block.iter().all(|b| *b == 0);
        if blocks.chunks_exact(BLOCK).any(zero) {
            return ahead.give_up();
        }
        let Some((file, offset)) = self.place_ahead(ahead, total) else { return ahead.give_up() };
        if file.write_at(&[IoSlice::new(blocks)], offset).is_err() {
            return ahead.give_up();
        }
        ahead.crcs.extend(blocks.chunks_exact(BLOCK).map(crc32fast::hash));
    }

    /// Where the next blocks of `ahead` go; claims the place for a request's first ones.
    fn place_ahead(&mut self, ahead: &mut Ahead, total: usize) -> Option<(Arc<dyn File>, u64)> {
        let open = self.open.as_ref()?;
        let here = |claim: &Claim| claim.segment == open.id && claim.slot == open.next_slot;
        if ahead.claim.is_none() {
            // Another request is on its way to this place; or a segment begins or ends here.
            let taken = self.ahead.as_ref().is_some_and(here);
            let fits = open.next_slot != FIRST_SLOT && open.next_slot as usize + 1 + total <= END_SLOT as usize;
            if taken || !fits {
                return None;
            }
            let claim = Claim { segment: open.id, slot: open.next_slot, ticket: Arc::default() };
            (ahead.claim, self.ahead) = (Some(claim.clone()), Some(claim));
        }
        let claim = self.ahead.as_ref().filter(|claim| here(claim))?;
        let own = ahead.holds(claim);
        let slot = claim.slot as usize + 1 + ahead.crcs.len();
        own.then(|| (open.file.clone(), slot as u64 * BLOCK_U64))
    }

    /// Takes the blocks that are in place, by their checksums; none if their place is not the log's end.
    pub fn take_ahead(&mut self, ahead: Ahead) -> Vec<u32> {
        let end = self.open.as_ref().map(|open| (open.id, open.next_slot));
        let valid =
            self.ahead.as_ref().is_some_and(|claim| ahead.holds(claim) && Some((claim.segment, claim.slot)) == end);
        if valid {
            ahead.crcs
        } else {
            Vec::new()
        }
    }
}
