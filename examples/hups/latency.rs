//! Latency from the time a request was due: percentiles, and the worst around each signal.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::drops::Class;
use crate::timeline::Timeline;

/// Longer than any `--timeout-ms`.
const HIGHEST_US: u64 = 600_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

pub(crate) struct Latency {
    pub(crate) short: Histogram<u64>,
    pub(crate) long: Histogram<u64>,
    /// Of all requests that were due before the first signal.
    pub(crate) calm: Histogram<u64>,
    /// Of all requests that were due within the window after a signal.
    pub(crate) after_signal: Histogram<u64>,
    /// How late the client itself was in sending what was due.
    pub(crate) lag: Histogram<u64>,
    pub(crate) windows: Windows,
    pub(crate) timeline: Timeline,
}

impl Latency {
    pub(crate) fn new(window: Duration) -> Latency {
        #[expect(clippy::expect_used, reason = "constant bounds, and every run comes by here")]
        let histogram = || {
            Histogram::new_with_bounds(1, HIGHEST_US, SIGNIFICANT_DIGITS)
                .expect("the bounds are constants that it takes")
        };
        Latency {
            short: histogram(),
            long: histogram(),
            calm: histogram(),
            after_signal: histogram(),
            lag: histogram(),
            windows: Windows::new(window),
            timeline: Timeline::new(Instant::now()),
        }
    }

    /// From here on time counts.
    pub(crate) fn start(&mut self, now: Instant) {
        self.timeline = Timeline::new(now);
    }

    pub(crate) fn record(&mut self, class: Class, due: Instant, done: Instant) {
        let latency = done.saturating_duration_since(due);
        match class {
            Class::Short => self.short.saturating_record(micros(latency)),
            Class::Long => self.long.saturating_record(micros(latency)),
        }
        match self.windows.last_signal_before(due) {
            None => self.calm.saturating_record(micros(latency)),
            Some(signal) if due < signal + self.windows.length => {
                self.after_signal.saturating_record(micros(latency));
            }
            Some(_) => {}
        }
        self.timeline.record(due, latency);
        self.windows.record(due, done, latency);
    }

    /// A request that was given up at `now`: it took at least as long.
    pub(crate) fn record_timeout(&mut self, due: Instant, now: Instant) {
        let latency = now.saturating_duration_since(due);
        self.timeline.record(due, latency);
        self.windows.record(due, now, latency);
    }

    pub(crate) fn record_lag(&mut self, due: Instant, sent: Instant) {
        let late = sent.saturating_duration_since(due);
        self.lag.saturating_record(micros(late));
        self.timeline.record_late(due, late);
    }

    pub(crate) fn worst_us(&self) -> u64 {
        self.short.max().max(self.long.max())
    }
}

/// The worst latency of the requests due within equal windows before and after each signal.
pub(crate) struct Windows {
    length: Duration,
    signals: Vec<Window>,
    /// Requests that may turn out to have been due just before the next signal.
    recent: VecDeque<Completed>,
}

struct Window {
    at: Instant,
    before: Duration,
    after: Duration,
}

struct Completed {
    due: Instant,
    done: Instant,
    latency: Duration,
}

impl Windows {
    fn new(length: Duration) -> Windows {
        Windows { length, signals: Vec::new(), recent: VecDeque::new() }
    }

    pub(crate) fn signal(&mut self, at: Instant) {
        let mut before = Duration::ZERO;
        for completed in &self.recent {
            if completed.due + self.length >= at {
                before = before.max(completed.latency);
            }
        }
        self.signals.push(Window { at, before, after: Duration::ZERO });
    }

    /// Also for requests that timed out.
    fn record(&mut self, due: Instant, done: Instant, latency: Duration) {
        let following = self.signals.partition_point(|window| window.at <= due);
        if let Some(window) = self.signals.get_mut(following) {
            if due + self.length >= window.at {
                window.before = window.before.max(latency);
            }
        } else {
            // The next signal is still to come.
            while self.recent.front().is_some_and(|first| first.done + self.length < done) {
                self.recent.pop_front();
            }
            self.recent.push_back(Completed { due, done, latency });
        }
        if let Some(window) = following.checked_sub(1).and_then(|last| self.signals.get_mut(last)) {
            if due < window.at + self.length {
                window.after = window.after.max(latency);
            }
        }
    }

    pub(crate) fn last_signal_before(&self, at: Instant) -> Option<Instant> {
        let following = self.signals.partition_point(|window| window.at <= at);
        following.checked_sub(1).map(|last| self.signals[last].at)
    }

    pub(crate) fn signals(&self) -> impl Iterator<Item = Instant> {
        self.signals.iter().map(|window| window.at)
    }

    /// The medians over all signals, before and after, in microseconds. Signals with no request
    /// in one of their windows do not take part.
    pub(crate) fn medians_us(&self) -> Option<(u64, u64)> {
        let complete = || self.complete();
        let before = median(complete().map(|window| micros(window.before)).collect())?;
        let after = median(complete().map(|window| micros(window.after)).collect())?;
        Some((before, after))
    }

    pub(crate) fn count(&self) -> usize {
        self.complete().count()
    }

    fn complete(&self) -> impl Iterator<Item = &Window> {
        self.signals.iter().filter(|window| !window.before.is_zero() && !window.after.is_zero())
    }
}

pub(crate) fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some(values[middle - 1].midpoint(values[middle])),
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
