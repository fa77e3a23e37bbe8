//! A pool lives through seeded histories on a disk that loses power and fails, and every time it
//! comes back it is compared with a model.
//!
//! What is checked
//!   * after a power loss each volume, its checkpoints included, is a state of its history at or past
//!     what was last promised; after the death of the process, at or past what was last answered;
//!   * a failed operation leaves what was there or what was asked for;
//!   * every checkpoint is byte-equal to the model at its cut, at every reopening;
//!   * the checker finds nothing, no file is left over, and at the end nothing stays allocated.
//!
//! The same seed gives the same run and the same trace. Not here: real files and real time, which
//! the daemon's own tests have.

mod arrivals;
mod history;
mod judge;
mod model;
mod operations;
mod report;

pub use history::{run, Plan};
pub use report::{Report, Violation};
