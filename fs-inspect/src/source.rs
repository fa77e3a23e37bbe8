//! Where an image's bytes come from.

use std::io;
use std::ops::Range;

/// A disk image that is only read.
pub trait ReadAt: Send + Sync {
    /// Its size, bytes.
    fn size(&self) -> u64;

    /// Fills `out` with the bytes from `offset` on. Fails when that reaches beyond the end.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// The first run of data that ends behind `offset`, clipped to begin there; `None` when only holes follow.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>>;

    /// Bytes of data in all; what is not worth being counted counts as data.
    fn data_bytes(&self) -> io::Result<u64> {
        Ok(self.size())
    }

    /// Called now and then: what has not been used for a while, and can be had again, may be let go.
    fn rest(&self) {}
}
