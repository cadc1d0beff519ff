//! How long a handler's methods take: who takes long keeps everybody else waiting. One that does so again
//! and again gives way to the others, and one that takes very long is named.

use std::time::{Duration, Instant};

/// The time since the last look.
#[derive(Debug)]
pub(crate) struct Pace {
    last: Instant,
}

impl Pace {
    pub(crate) fn begin(now: Instant) -> Self {
        Self { last: now }
    }

    /// When it was looked last.
    #[inline]
    pub(crate) fn last(&self) -> Instant {
        self.last
    }

    /// Looks again, and answers how long it was since the last look.
    #[inline]
    pub(crate) fn look(&mut self) -> Duration {
        let now = Instant::now();
        now.saturating_duration_since(std::mem::replace(&mut self.last, now))
    }
}
