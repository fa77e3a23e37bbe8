//! Block status: which parts of a range are holes, and which changed since a checkpoint.
//!
//! Invariants
//!   * an answer has at most `EXTENTS_MAX` extents per context and begins at the request's offset; it
//!     may end before the range does, never after;
//!   * with extended headers a payload chooses among the agreed contexts, each at most once.
//!
//! Not here: finding extents (`blockstore`).

use super::Session;
use crate::nbd::limits::EXTENTS_MAX;
use crate::nbd::{self, Errno, MetaContext, Request, StatusFilter};
use blockstore::{CheckpointName, Error, ErrorKind, Extent, Pool};

impl Session {
    /// The contexts to answer for, with the range's length.
    fn chosen(&self, request: &Request, payload: &[u8]) -> Result<(u64, Vec<u32>), &'static str> {
        let agreed = self.agreed.contexts.len() as u32;
        if agreed == 0 {
            return Err("no metadata context was agreed on");
        }
        if request.flags & nbd::FLAG_PAYLOAD_LEN == 0 {
            return Ok((request.length, (1..=agreed).collect()));
        }
        let filter = StatusFilter::parse(payload).ok_or("malformed list of metadata contexts")?;
        if filter.contexts.iter().any(|id| !(1..=agreed).contains(id)) {
            return Err("a metadata context that was not agreed on");
        }
        Ok((filter.length, filter.contexts))
    }

    pub(super) fn block_status(
        &self,
        pool: &mut Pool,
        request: &Request,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> blockstore::Result<()> {
        let chosen = self.chosen(request, payload).map_err(|why| (Errno::Inval, why)).and_then(|(length, ids)| {
            let range = Request { length, ..*request };
            self.range(&range).map(|()| (range, ids))
        });
        let (range, ids) = match chosen {
            Ok(found) if found.0.length > 0 => found,
            Ok(_) => {
                self.fail(out, request, Errno::Inval, "the range is empty");
                return Ok(());
            }
            Err((errno, why)) => {
                self.fail(out, request, errno, why);
                return Ok(());
            }
        };
        for (i, id) in ids.iter().enumerate() {
            let Some(context) = self.agreed.contexts.get(*id as usize - 1) else { continue };
            let extents = self.extents(pool, context, &range)?;
            // base:allocation: a hole that reads as zeros is 3; changed-since: 1 marks a change.
            let allocation = *context == MetaContext::Allocation;
            let flags = |hole| match (allocation, hole) {
                (true, true) => 3,
                (false, false) => 1,
                _ => 0,
            };
            let (done, extended) = (i + 1 == ids.len(), self.agreed.extended);
            nbd::block_status(out, extended, request.cookie, request.offset, *id, &extents, flags, done);
        }
        Ok(())
    }

    fn extents(&self, pool: &mut Pool, context: &MetaContext, range: &Request) -> blockstore::Result<Vec<Extent>> {
        let max = if range.flags & nbd::FLAG_REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
        match context {
            MetaContext::Allocation => pool.extents(self.view, range.offset, range.length, max),
            MetaContext::ChangedSince(name) => {
                let name = CheckpointName::parse(name);
                let name = name.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such checkpoint"))?;
                let from = pool.view(self.view.volume, Some(name))?;
                pool.changes(from, self.view, range.offset, range.length, max)
            }
        }
    }
}
