//! The log: one stream of record batches per volume, in segments, chained by checksums.

mod known;
mod scan;
mod stream;

pub use scan::{scan_stream, Candidates, ScannedBatch, StreamEnd, TailStart};
pub use stream::{FlushJob, OpenSegment, Stream, WriteBack};
