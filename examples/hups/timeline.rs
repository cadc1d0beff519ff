//! The run as it went: the worst latency and the dropped connections of each 10 ms, and how late
//! this program itself was.

use std::time::{Duration, Instant};

use crate::latency::micros;

pub(crate) const SLICE: Duration = Duration::from_millis(10);
/// As many as the longest run has (`--max-seconds`, and `--timeout-ms` after it).
const SLICES_MAX: usize = 370_000;
const _: () = assert!(SLICES_MAX as u64 * SLICE.as_millis() as u64 >= (3600 + 60) * 1000);

pub(crate) struct Timeline {
    began: Instant,
    slices: Vec<Slice>,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Slice {
    /// The worst latency of the requests that were due in it. None of them has come to its end: 0.
    pub(crate) worst_us: u64,
    /// How late the request that was sent latest was sent.
    pub(crate) late_us: u64,
    pub(crate) dropped: u32,
}

impl Slice {
    fn add(&mut self, other: Slice) {
        self.worst_us = self.worst_us.max(other.worst_us);
        self.late_us = self.late_us.max(other.late_us);
        self.dropped += other.dropped;
    }
}

impl Timeline {
    pub(crate) fn new(began: Instant) -> Timeline {
        Timeline { began, slices: Vec::new() }
    }

    pub(crate) fn record(&mut self, due: Instant, latency: Duration) {
        self.add(due, Slice { worst_us: micros(latency), ..Slice::default() });
    }

    pub(crate) fn record_late(&mut self, due: Instant, late: Duration) {
        self.add(due, Slice { late_us: micros(late), ..Slice::default() });
    }

    pub(crate) fn drop_at(&mut self, at: Instant) {
        self.add(at, Slice { dropped: 1, ..Slice::default() });
    }

    fn add(&mut self, at: Instant, slice: Slice) {
        let since = at.saturating_duration_since(self.began);
        let index = (since.as_micros() / SLICE.as_micros()) as usize;
        let index = index.min(SLICES_MAX - 1);
        if self.slices.len() <= index {
            self.slices.resize(index + 1, Slice::default());
        }
        self.slices[index].add(slice);
    }

    /// At most `count` slices of equal length, and how long each of them is.
    pub(crate) fn in_slices(&self, count: usize) -> (Duration, Vec<Slice>) {
        let together = self.slices.len().div_ceil(count.max(1)).max(1);
        let merge = |slices: &[Slice]| {
            let mut merged = Slice::default();
            slices.iter().for_each(|slice| merged.add(*slice));
            merged
        };
        let factor = u32::try_from(together).unwrap_or(u32::MAX);
        (SLICE * factor, self.slices.chunks(together).map(merge).collect())
    }
}
