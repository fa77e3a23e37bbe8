//! The log: one stream of record batches per volume, in segments, chained by checksums.

mod ahead;
mod jobs;
mod known;
mod scan;
mod stream;

pub use ahead::Ahead;
pub use jobs::{note_failed_sync, FlushJob, WriteBack, SYNC_FAILED_NAME};
pub use scan::{scan_stream, Candidates, ScannedBatch, StreamEnd, TailStart};
pub use stream::{OpenSegment, Payload, Stream};
