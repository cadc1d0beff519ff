//! What happened, in numbers: of a route, or of an upstream, since this process began to serve.

use std::cell::Cell;
use std::fmt;
use std::time::Duration;

/// Counts by plain additions: nobody waits for it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    now: Cell<u32>,
    /// Sessions that were opened, or have come from the predecessor.
    all: Cell<u64>,
    /// Bytes of the sessions that have ended: towards the upstream, and towards the client.
    there: Cell<u64>,
    back: Cell<u64>,
    connections: Cell<u64>,
    /// Together, and the longest, in microseconds.
    connecting: Cell<u64>,
    longest: Cell<u64>,
    failures: Cell<u64>,
    refused: Cell<u64>,
}

fn add(to: &Cell<u64>, count: u64) {
    to.set(to.get().saturating_add(count));
}

impl Counters {
    /// Sessions at present.
    pub(crate) fn now(&self) -> u32 {
        self.now.get()
    }

    pub(crate) fn opened(&self) {
        self.now.set(self.now.get() + 1);
        add(&self.all, 1);
    }

    /// A session has gone to the successor, or to another upstream.
    pub(crate) fn left(&self) {
        self.now.set(self.now.get().saturating_sub(1));
    }

    pub(crate) fn ended(&self, there: u64, back: u64) {
        self.left();
        add(&self.there, there);
        add(&self.back, back);
    }

    pub(crate) fn connected(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        add(&self.connections, 1);
        add(&self.connecting, took);
        self.longest.set(self.longest.get().max(took));
    }

    pub(crate) fn failed(&self) {
        add(&self.failures, 1);
    }

    pub(crate) fn refused(&self) {
        add(&self.refused, 1);
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |micros: u64| micros as f64 / 1000.0;
        let mean = self.connecting.get() / self.connections.get().max(1);
        write!(
            f,
            "{} sessions now, {} in all, {} bytes there, {} back; {} connections in {:.3} ms on \
             average, {:.3} at most; {} failures, {} refused",
            self.now.get(),
            self.all.get(),
            self.there.get(),
            self.back.get(),
            self.connections.get(),
            milliseconds(mean),
            milliseconds(self.longest.get()),
            self.failures.get(),
            self.refused.get(),
        )
    }
}
