//! A log-structured, copy-on-write block store in which a checkpoint costs one log record.
//!
//! The promises (numbered as in `docs/DURABILITY.md`):
//!   * P1 an acknowledged write survives the death of the process;
//!   * P2 a write covered by a completed flush survives power loss;
//!   * P4 a checkpoint is byte-equal for ever to the state at its cut;
//!   * P5 a request of up to 1 MiB is all-or-nothing after a crash;
//!   * P6 no block is returned without its checksum verified;
//!   * P7 after a failed sync nothing is accepted; a full disk loses nothing acknowledged;
//!   * P9 damaged or foreign input gives an error, never a panic.
//!
//! A [`Pool`] owns volumes and is driven by one thread; what blocks is handed out as jobs. The crate
//! knows no sockets, no protocol and no clock: disk and time come in through traits, so that a
//! simulator can own them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod absent;
mod anchor;
mod apply;
mod arrival;
mod audit;
mod census;
mod check;
mod checkpoint;
pub mod disk;
mod error;
mod format;
pub mod limits;
mod log;
mod maintain;
mod map;
pub mod object;
mod ops;
mod pool;
mod read_ahead;
mod recovery;
mod replay;
mod room;
mod scrub;
mod space;
mod stats;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod types;
mod volume;
mod write_map;

pub use anchor::{AnchorJob, Cleaning};
pub use audit::{Audit, AuditJob};
pub use census::Census;
pub use check::{CheckReport, Ticker};
pub use error::{Error, ErrorKind, Result};
pub use log::{Ahead, FlushJob, WriteBack};
pub use maintain::{prepare_segment, CleanJob, Cleaned};
pub use ops::{CheckpointInfo, VolumeInfo};
pub use pool::{Pool, PoolOptions};
pub use recovery::RecoveryReport;
pub use room::Local;
pub use scrub::ScrubReport;
pub use space::{Arrival, FetchJob, Fetched, Missing};
pub use stats::{PoolStats, VolumeUsage};
pub use types::{CheckpointName, Clock, Durability, Lsn, SegmentId, VolumeId};
pub use volume::{Extent, View};
