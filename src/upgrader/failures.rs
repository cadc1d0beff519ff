//! How many upgrades in a row have failed, and how long the next one waits for that.

use std::time::{Duration, Instant};

use crate::limits;

/// The failures in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Failures {
    count: u32,
    last: Option<Instant>,
}

impl Failures {
    /// Another upgrade has failed: how long the next one waits.
    pub(crate) fn pause(&mut self, now: Instant) -> Duration {
        let is_old = |last: Instant| now.saturating_duration_since(last) >= limits::PAUSE_FORGOTTEN;
        if self.last.is_some_and(is_old) {
            self.count = 0;
        }
        self.last = Some(now);
        let doubled = 1u32.checked_shl(self.count).unwrap_or(u32::MAX);
        // As many as it takes to get to the most, and no number that overflows.
        self.count = self.count.saturating_add(1).min(u32::BITS - 1);
        limits::PAUSE_LEAST.saturating_mul(doubled).min(limits::PAUSE_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_in_a_row_doubles_the_pause_up_to_a_bound_and_time_heals() {
        let (mut failures, mut now) = (Failures::default(), Instant::now());
        for doubled in [1, 2, 4, 8] {
            assert_eq!(failures.pause(now), limits::PAUSE_LEAST * doubled);
        }
        for _ in 0..100 {
            now += limits::PAUSE_MOST;
            assert!(failures.pause(now) <= limits::PAUSE_MOST);
        }
        assert_eq!(failures.pause(now), limits::PAUSE_MOST);
        now += limits::PAUSE_FORGOTTEN;
        assert_eq!(failures.pause(now), limits::PAUSE_LEAST);
    }
}
