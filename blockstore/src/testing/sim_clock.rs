//! A clock that moves when it is read.

use crate::types::Clock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts microseconds from a fixed start, one a reading.
#[derive(Default)]
pub struct SimClock {
    passed: AtomicU64,
    /// What its time of day is ahead of others'.
    skew_us: u64,
}

impl SimClock {
    /// A clock whose time of day is wrong.
    pub fn skewed(skew_us: u64) -> Self {
        Self { passed: AtomicU64::new(skew_us / 7), skew_us }
    }

    /// Time passes.
    pub fn advance_us(&self, by: u64) {
        self.passed.fetch_add(by, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now_us(&self) -> u64 {
        1_700_000_000_000_000 + self.skew_us + self.passed.fetch_add(1, Ordering::Relaxed)
    }

    fn monotonic_us(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}
