//! A clock that moves when it is read.

use crate::types::Clock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts microseconds from a fixed start, one a reading.
#[derive(Default)]
pub struct SimClock(AtomicU64);

impl SimClock {
    /// Lets time pass.
    pub fn advance_us(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now_us(&self) -> u64 {
        1_700_000_000_000_000 + self.0.fetch_add(1, Ordering::Relaxed)
    }
}
