//! What was asked of a store: the figures of which a bill is made.

/// Requests and bytes so far; failed requests count, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Puts, conditional or not.
    pub puts: u64,
    /// Bytes of their bodies.
    pub put_bytes: u64,
    /// Gets.
    pub gets: u64,
    /// Bytes they returned.
    pub get_bytes: u64,
    /// Lists.
    pub lists: u64,
    /// Deletes.
    pub deletes: u64,
    /// Those of all these that ended in an error other than `NotFound`.
    pub failures: u64,
}
