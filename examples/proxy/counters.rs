//! What happened, in numbers: of a route, or of an upstream, since this process began to serve.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::time::Duration;

use tablecloth::{Counter, Error, Histogram, Server};

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
    /// The same for `/metrics`, if there is an admin endpoint: these go on from process to process.
    told: OnceCell<Told>,
}

#[derive(Debug)]
struct Told {
    there: Counter,
    back: Counter,
    failures: Counter,
    refused: Counter,
    connecting: Histogram,
}

/// The bounds of the times that connecting takes.
const CONNECTING: [Duration; 8] = [
    Duration::from_micros(250),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

fn add(to: &Cell<u64>, count: u64) {
    to.set(to.get().saturating_add(count));
}

impl Counters {
    /// Has what is counted from here on told by `/metrics`: of a route, or of an upstream of a route.
    pub(crate) fn tell(&self, server: &mut Server, labels: &[(&str, &str)]) -> Result<(), Error> {
        let kind = if labels.len() > 1 { "upstream" } else { "route" };
        let mut counter = |what: &str, help: &str| {
            server.counter(&format!("proxy_{kind}_{what}_total"), labels, help)
        };
        let told = Told {
            there: counter(
                "sent_bytes",
                "Bytes towards the upstream, of sessions that have ended.",
            )?,
            back: counter(
                "received_bytes",
                "Bytes towards the client, of sessions that have ended.",
            )?,
            failures: counter("failures", "Connections to an upstream that have failed.")?,
            refused: counter("refused", "Clients that were not let in.")?,
            connecting: server.histogram(
                &format!("proxy_{kind}_connecting_seconds"),
                labels,
                "How long it took to connect to an upstream.",
                &CONNECTING,
            )?,
        };
        // It is told once.
        let _ = self.told.set(told);
        Ok(())
    }

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
        if let Some(told) = self.told.get() {
            told.there.add(there);
            told.back.add(back);
        }
    }

    pub(crate) fn connected(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        add(&self.connections, 1);
        add(&self.connecting, took);
        self.longest.set(self.longest.get().max(took));
        if let Some(told) = self.told.get() {
            told.connecting.observe(Duration::from_micros(took));
        }
    }

    pub(crate) fn failed(&self) {
        add(&self.failures, 1);
        self.told.get().into_iter().for_each(|told| told.failures.add(1));
    }

    pub(crate) fn refused(&self) {
        add(&self.refused, 1);
        self.told.get().into_iter().for_each(|told| told.refused.add(1));
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
