//! When requests become due: evenly spaced from a start, whatever became of those before.

use std::time::{Duration, Instant};

const SECOND_NS: u64 = 1_000_000_000;

pub(crate) struct Schedule {
    rate: u64,
    /// None while nothing is to become due.
    pub(crate) start: Option<Instant>,
    /// How many have become due.
    pub(crate) next: u64,
}

impl Schedule {
    pub(crate) fn new(rate_per_second: u32) -> Schedule {
        Schedule { rate: rate_per_second.into(), start: None, next: 0 }
    }

    pub(crate) fn next_at(&self) -> Option<Instant> {
        let start = self.start.filter(|_| self.rate > 0)?;
        let seconds = Duration::from_secs(self.next / self.rate);
        let rest = Duration::from_nanos(self.next % self.rate * SECOND_NS / self.rate);
        Some(start + seconds + rest)
    }

    /// The time from one to the next.
    pub(crate) fn step(&self) -> Duration {
        Duration::from_nanos(SECOND_NS.checked_div(self.rate).unwrap_or(0))
    }
}
