//! Writes that are carried out while they arrive: a front-end that has part of a large request can have
//! it put into the log before the rest is there (see `log/ahead.rs`).

use crate::error::Result;
use crate::format::record::Record;
use crate::limits::{AHEAD_BYTES_MIN, ATOMIC_BYTES_MAX, BLOCK, BLOCK_U64};
use crate::log::{Ahead, Payload};
use crate::pool::Pool;
use crate::types::VolumeId;
use crate::volume::zero_runs;
use std::io::IoSlice;

impl Pool {
    /// A hint: the first bytes, `data`, of a write of `len` bytes at `offset` have arrived. Nothing changes
    /// by it; follow it with more of the same request, or with [`Pool::write_arrived`].
    pub fn write_ahead(&mut self, volume: VolumeId, offset: u64, len: u64, data: &[u8], ahead: &mut Ahead) {
        let aligned = offset % BLOCK_U64 == 0 && len % BLOCK_U64 == 0;
        let fitting = (AHEAD_BYTES_MIN..=ATOMIC_BYTES_MAX).contains(&len) && data.len() as u64 <= len;
        let allowed = self.poisoned.is_none() && self.has_reserve() && self.head_view(volume).is_ok();
        if aligned && fitting && allowed {
            self.stream(volume).write_ahead(ahead, (len / BLOCK_U64) as usize, data);
        }
    }

    /// As [`Pool::write`], for a request whose beginning [`Pool::write_ahead`] may have been told of.
    pub fn write_arrived(&mut self, volume: VolumeId, offset: u64, data: &[u8], ahead: Ahead) -> Result<()> {
        let view = self.head_view(volume)?;
        self.bounds(view, offset, data.len() as u64)?;
        let range = |pool: &mut Self| pool.prepare_write(view, offset, data.len() as u64);
        self.prepared(range, |pool| pool.write_arrived_prepared(volume, offset, data, ahead))
    }

    fn write_arrived_prepared(&mut self, volume: VolumeId, offset: u64, data: &[u8], ahead: Ahead) -> Result<()> {
        let mut crcs = self.stream(volume).take_ahead(ahead);
        let in_place = crcs.len();
        let rest = data.get(in_place * BLOCK..).unwrap_or_default();
        let holes = zero_runs(rest).iter().any(|(zero, _)| *zero);
        let whole = offset % BLOCK_U64 == 0 && rest.len() % BLOCK == 0;
        if in_place == 0 || in_place * BLOCK > data.len() || holes || !whole {
            return self.write(volume, offset, data);
        }
        crcs.extend(rest.chunks_exact(BLOCK).map(crc32fast::hash));
        let record = Record::Write { block: offset / BLOCK_U64, count: crcs.len() as u64 };
        let rest = [IoSlice::new(rest)];
        let slices = if rest[0].is_empty() { &[][..] } else { &rest };
        self.allow_data()?;
        self.append(volume, vec![record], Payload { slices, crcs, in_place: in_place as u32 })
    }
}
