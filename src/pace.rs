//! How long a handler's methods take: who takes long keeps everybody else waiting, and is named.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::limits;

/// The time since the last look.
#[derive(Debug)]
pub(crate) struct Pace {
    last: Duration,
}

impl Pace {
    /// A look now.
    pub(crate) fn begin() -> Self {
        Self { last: now() }
    }

    /// Looks again. Answers how long it was since the last look, if that is long for a method.
    #[inline]
    pub(crate) fn slow(&mut self) -> Option<Duration> {
        let now = now();
        let took = now.saturating_sub(std::mem::replace(&mut self.last, now));
        (took >= limits::SLOW_HANDLER).then_some(took)
    }
}

/// The coarse monotonic clock, which costs some nanoseconds and is right to some milliseconds
/// (clock_gettime(2)): enough to find what takes a hundred of them.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from)
}
