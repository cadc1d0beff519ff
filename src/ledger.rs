//! What is counted: numbers that go on from process to process.
//!
//! The numbers lie in memory that a process and its successor share. Whoever counts adds to them where they
//! are: nothing is handed over, a rollback changes nothing, and what a process counts in its last moment is
//! there, even if it is killed. A reader never sees a counter go back.
//!
//! The table is a header and slots. A slot has its name in it, so that a successor of another build finds its
//! own counters by their names, and adds those that are new behind them.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::limits;
use crate::sys::Shared;

/// What the first number of the table must be: of this layout, and no other.
const MAGIC: u64 = u64::from_be_bytes(*b"tablecl1");
/// Words of the header: what it is, how many slots are taken, when the service began, and the last report.
const TAKEN: usize = 1;
const BEGAN: usize = 2;
const REPORT: usize = 3;
/// Words of a slot: what it is, its name, and what it has counted.
const SLOT: usize = 64;
const NAME: usize = 1;
const VALUES: usize = 26;
const NAME_BYTES: usize = (VALUES - NAME) * 8;
/// The slots before the first that has a name: the header, and the text of the last report.
const HEADERS: usize = 4;
const REPORT_BYTES: usize = (HEADERS * SLOT - REPORT - 1) * 8;
/// The words of the whole table.
const WORDS: usize = limits::LEDGER_SLOTS * SLOT;
/// The most buckets of a histogram, beside the one for all the rest.
const BUCKETS: usize = 16;
/// Of a histogram: how many bounds, the bounds in nanoseconds, how many were within each, and their sum.
const BOUNDS: usize = VALUES + 1;
const COUNTS: usize = BOUNDS + BUCKETS;
const SUM: usize = COUNTS + BUCKETS + 1;
const _: () = assert!(SUM < SLOT);

/// What sessions that moved are counted by.
pub(crate) const STOOD_STILL: (&str, &str) =
    ("tablecloth_stood_still_seconds", "How long a session stood still that moved to a successor.");
pub(crate) const HANDED_OVER: (&str, &str) =
    ("tablecloth_handed_over_total", "What became of sessions in upgrades.");
pub(crate) const ACCEPTED: (&str, &str) =
    ("tablecloth_accepted_total", "Connections that were accepted.");

/// The table of numbers, and what this process alone knows.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    memory: Arc<Memory>,
    own: Arc<Mutex<Own>>,
}

#[derive(Debug)]
enum Memory {
    Shared(Shared),
    /// For whoever has nobody to share it with.
    Private(Box<[AtomicU64]>),
}

/// What is this process's alone.
#[derive(Debug, Default)]
struct Own {
    /// What a family of series means, by its name.
    help: BTreeMap<String, String>,
    gauges: BTreeMap<String, Arc<AtomicU64>>,
}

/// What kind of number is in a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter = 1,
    Histogram = 2,
}

/// A number that only grows, and goes on from process to process. Clone it freely, and count from any thread.
///
/// It is made by [`Upgrader::counter`](crate::Upgrader::counter).
#[derive(Clone, Debug)]
pub struct Counter(Place);

/// A number that goes up and down. It is this process's own: a successor begins with its own.
///
/// It is made by [`Upgrader::gauge`](crate::Upgrader::gauge).
#[derive(Clone, Debug)]
pub struct Gauge(Arc<AtomicU64>);

/// How long something took, how often: it goes on from process to process, as a [`Counter`] does.
///
/// It is made by [`Upgrader::histogram`](crate::Upgrader::histogram).
#[derive(Clone, Debug)]
pub struct Histogram(Place);

/// Where a slot is. `None` if there was none left: then it counts for nobody.
#[derive(Clone, Debug)]
struct Place(Option<(Arc<Memory>, usize)>);

impl Place {
    fn word(&self, at: usize) -> Option<&AtomicU64> {
        let (memory, slot) = self.0.as_ref()?;
        memory.words().get(slot * SLOT + at)
    }
}

impl Counter {
    /// Adds to it.
    pub fn add(&self, count: u64) {
        if let Some(value) = self.0.word(VALUES) {
            value.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// What was counted so far, by all processes together.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.word(VALUES).map_or(0, |value| value.load(Ordering::Relaxed))
    }
}

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

impl Histogram {
    /// Notes that it took that long.
    pub fn observe(&self, took: Duration) {
        self.observe_many(took, 1);
    }

    /// The same for so many of them at once.
    pub(crate) fn observe_many(&self, took: Duration, count: u64) {
        let Some(bounds) = self.0.word(VALUES) else { return };
        let bounds = (bounds.load(Ordering::Relaxed) as usize).min(BUCKETS);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let within = |bucket: &usize| {
            let bound = self.0.word(BOUNDS + bucket);
            bound.is_none_or(|bound| nanoseconds <= bound.load(Ordering::Relaxed))
        };
        let bucket = (0..bounds).find(within).unwrap_or(bounds);
        for (at, more) in [(COUNTS + bucket, count), (SUM, nanoseconds.saturating_mul(count))] {
            if let Some(word) = self.0.word(at) {
                word.fetch_add(more, Ordering::Relaxed);
            }
        }
    }
}

impl Memory {
    fn words(&self) -> &[AtomicU64] {
        match self {
            Self::Shared(shared) => shared.words(),
            Self::Private(words) => words,
        }
    }
}

impl Ledger {
    /// A file for a table that nobody has used yet.
    pub(crate) fn file() -> io::Result<OwnedFd> {
        Shared::file(WORDS)
    }

    /// The table in such a file. A file that is none, or that a build with another layout has made, is an
    /// error.
    pub(crate) fn of_file(file: &OwnedFd) -> io::Result<Self> {
        Self::of(Memory::Shared(Shared::map(file.as_fd(), WORDS)?))
    }

    /// A table of this process's own.
    pub(crate) fn private() -> Self {
        let words: Box<[_]> = (0..HEADERS * SLOT).map(|_| AtomicU64::new(0)).collect();
        words[TAKEN].store(HEADERS as u64, Ordering::Relaxed);
        Self { memory: Arc::new(Memory::Private(words)), own: Arc::default() }
    }

    fn of(memory: Memory) -> io::Result<Self> {
        let words = memory.words();
        match words[0].compare_exchange(0, MAGIC, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let began = began.map_or(0, |began| began.as_millis() as u64);
                words[BEGAN].store(began, Ordering::Relaxed);
                words[TAKEN].store(HEADERS as u64, Ordering::Release);
            }
            Err(MAGIC) => {}
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(Self { memory: Arc::new(memory), own: Arc::default() })
    }

    /// Whether somebody may read it.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(*self.memory, Memory::Shared(_))
    }

    /// When the first process of the service began, in milliseconds since 1970.
    pub(crate) fn began(&self) -> u64 {
        self.memory.words()[BEGAN].load(Ordering::Relaxed)
    }

    /// A counter of that name: the one that there is, or a new one.
    pub(crate) fn counter(&self, family: &str, labels: &[(&str, &str)], help: &str) -> Counter {
        Counter(self.place(family, labels, help, Kind::Counter).0)
    }

    /// A histogram of that name. `bounds` are those of a new one.
    pub(crate) fn histogram(
        &self,
        family: &str,
        labels: &[(&str, &str)],
        help: &str,
        bounds: &[Duration],
    ) -> Histogram {
        let (place, is_new) = self.place(family, labels, help, Kind::Histogram);
        if is_new {
            let nanoseconds =
                bounds.iter().map(|at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
            for (at, bound) in (BOUNDS..COUNTS).zip(nanoseconds) {
                place.word(at).into_iter().for_each(|word| word.store(bound, Ordering::Relaxed));
            }
            let count = bounds.len().min(BUCKETS) as u64;
            place.word(VALUES).into_iter().for_each(|word| word.store(count, Ordering::Release));
        }
        Histogram(place)
    }

    /// A gauge of that name.
    pub(crate) fn gauge(&self, family: &str, labels: &[(&str, &str)], help: &str) -> Gauge {
        let mut own = self.own();
        own.help.insert(family.into(), help.into());
        Gauge(Arc::clone(own.gauges.entry(series(family, labels)).or_default()))
    }

    fn own(&self) -> std::sync::MutexGuard<'_, Own> {
        // A panic cannot have left half of an entry.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot of that name and kind, and whether it was made for this.
    fn place(
        &self,
        family: &str,
        labels: &[(&str, &str)],
        help: &str,
        kind: Kind,
    ) -> (Place, bool) {
        self.own().help.insert(family.into(), help.into());
        let name = series(family, labels);
        let words = self.memory.words();
        let mark = mark_of(kind, &name);
        let taken = (words[TAKEN].load(Ordering::Acquire) as usize).min(words.len() / SLOT);
        let place = |slot| Place(Some((Arc::clone(&self.memory), slot)));
        let is_it = |slot: &usize| {
            words[slot * SLOT].load(Ordering::Acquire) == mark && self.name_of(*slot) == name
        };
        if let Some(slot) = (HEADERS..taken).find(is_it) {
            return (place(slot), false);
        }
        let slot = words[TAKEN].fetch_add(1, Ordering::AcqRel) as usize;
        if name.len() > NAME_BYTES || slot >= words.len() / SLOT {
            words[TAKEN].fetch_sub(1, Ordering::AcqRel);
            if self.is_shared() {
                log::warn!("{name} is not counted: its name is too long, or the table is full");
            }
            return (Place(None), false);
        }
        for (word, bytes) in words[slot * SLOT + NAME..].iter().zip(name.as_bytes().chunks(8)) {
            let mut eight = [0; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(eight), Ordering::Relaxed);
        }
        // Whoever reads the mark reads the name.
        words[slot * SLOT].store(mark, Ordering::Release);
        (place(slot), true)
    }

    fn name_of(&self, slot: usize) -> String {
        let words = &self.memory.words()[slot * SLOT..(slot + 1) * SLOT];
        let length = (words[0].load(Ordering::Acquire) >> 8 & 0xffff) as usize;
        let bytes =
            words[NAME..VALUES].iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
        let bytes: Vec<u8> = bytes.take(length.min(NAME_BYTES)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Keeps the text of the last report for the processes that come.
    pub(crate) fn keep_report(&self, text: &str) {
        let words = &self.memory.words()[REPORT..HEADERS * SLOT];
        let text = &text.as_bytes()[..text.len().min(REPORT_BYTES)];
        words[0].store(0, Ordering::Release);
        for (word, bytes) in words[1..].iter().zip(text.chunks(8)) {
            let mut eight = [0; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(eight), Ordering::Relaxed);
        }
        words[0].store(text.len() as u64, Ordering::Release);
    }

    /// The text of the last report, of this process or one before it.
    pub(crate) fn last_report(&self) -> Option<String> {
        let words = &self.memory.words()[REPORT..HEADERS * SLOT];
        let length = words[0].load(Ordering::Acquire) as usize;
        let bytes = words[1..].iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
        let bytes: Vec<u8> = bytes.take(length.min(REPORT_BYTES)).collect();
        (length > 0).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// All numbers, in the text format of Prometheus.
    pub(crate) fn text(&self) -> String {
        let mut families: BTreeMap<String, (&str, Vec<String>)> = BTreeMap::new();
        let mut add = |family: &str, kind: &'static str, line: String| {
            families.entry(family.into()).or_insert_with(|| (kind, Vec::new())).1.push(line);
        };
        let words = self.memory.words();
        let taken = (words[TAKEN].load(Ordering::Acquire) as usize).min(words.len() / SLOT);
        for slot in HEADERS..taken {
            let name = self.name_of(slot);
            let (family, labels) = split(&name);
            let at = |at: usize| words[slot * SLOT + at].load(Ordering::Relaxed);
            match words[slot * SLOT].load(Ordering::Acquire) & 0xff {
                kind if kind == Kind::Counter as u64 => {
                    add(family, "counter", format!("{name} {}", at(VALUES)));
                }
                kind if kind == Kind::Histogram as u64 => {
                    let bounds = (at(VALUES) as usize).min(BUCKETS);
                    let mut within = 0;
                    for bucket in 0..=bounds {
                        within += at(COUNTS + bucket);
                        let bound = match bucket == bounds {
                            true => "+Inf".to_owned(),
                            false => seconds(at(BOUNDS + bucket)),
                        };
                        let labels = join(labels, &format!("le=\"{bound}\""));
                        add(family, "histogram", format!("{family}_bucket{{{labels}}} {within}"));
                    }
                    let labels =
                        if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
                    add(family, "histogram", format!("{family}_sum{labels} {}", seconds(at(SUM))));
                    add(family, "histogram", format!("{family}_count{labels} {within}"));
                }
                // Its name is being written.
                _ => {}
            }
        }
        let own = self.own();
        for (name, value) in &own.gauges {
            let value = f64::from_bits(value.load(Ordering::Relaxed));
            add(split(name).0, "gauge", format!("{name} {value}"));
        }
        let mut text = String::new();
        for (family, (kind, lines)) in &families {
            if let Some(help) = own.help.get(family) {
                let help = help.replace('\\', "\\\\").replace('\n', "\\n");
                // Writing to a string does not fail.
                let _ = writeln!(text, "# HELP {family} {help}");
            }
            let _ = writeln!(text, "# TYPE {family} {kind}");
            for line in lines {
                let _ = writeln!(text, "{line}");
            }
        }
        text
    }
}

/// What the first word of a slot is: its kind, the length of its name, and a number made from that, so that
/// few names have to be compared.
fn mark_of(kind: Kind, name: &str) -> u64 {
    let mixed = name.bytes().fold(0xcbf2_9ce4u64, |mixed, byte| {
        (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0193) & 0xffff_ffff
    });
    kind as u64 | (name.len() as u64) << 8 | mixed << 32
}

/// `family{label="value"}`.
fn series(family: &str, labels: &[(&str, &str)]) -> String {
    let escape =
        |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels: Vec<_> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    if labels.is_empty() { family.into() } else { format!("{family}{{{}}}", labels.join(",")) }
}

/// The family of a series, and its labels.
fn split(series: &str) -> (&str, &str) {
    match series.split_once('{') {
        Some((family, labels)) => (family, labels.strip_suffix('}').unwrap_or(labels)),
        None => (series, ""),
    }
}

fn join(labels: &str, more: &str) -> String {
    if labels.is_empty() { more.into() } else { format!("{labels},{more}") }
}

/// Nanoseconds, in seconds.
fn seconds(nanoseconds: u64) -> String {
    format!("{}", nanoseconds as f64 / 1e9)
}

/// Whether that can be the name of a family (the Prometheus data model).
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|letter: char| letter.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':')
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Ledger, Ledger) {
        let file = Ledger::file().expect("a file in memory");
        let of = |file| Ledger::of_file(file).expect("a table");
        (of(&file), of(&file))
    }

    #[test]
    fn two_processes_count_together_and_find_each_other_s_numbers_by_name() {
        let (before, after) = pair();
        let one = before.counter("accepted_total", &[("listener", "a")], "Let in.");
        let other = after.counter("accepted_total", &[("listener", "a")], "Let in.");
        let new = after.counter("accepted_total", &[("listener", "b\"\n")], "Let in.");
        one.add(2);
        other.add(3);
        new.add(1);
        drop(one);
        let text = before.text();
        assert!(
            text.contains("# TYPE accepted_total counter\naccepted_total{listener=\"a\"} 5\n"),
            "{text}"
        );
        assert!(text.contains("accepted_total{listener=\"b\\\"\\n\"} 1\n"), "{text}");
        assert_eq!(before.began(), after.began());
    }

    #[test]
    fn a_histogram_has_buckets_that_include_those_below() {
        let (before, after) = pair();
        let bounds = [Duration::from_millis(1), Duration::from_millis(10)];
        let one = before.histogram("took_seconds", &[], "It took.", &bounds);
        let other = after.histogram("took_seconds", &[], "It took.", &bounds[..1]);
        one.observe(Duration::from_micros(1000));
        other.observe(Duration::from_millis(2));
        other.observe(Duration::from_secs(2));
        let text = after.text();
        let expected = "# HELP took_seconds It took.\n# TYPE took_seconds histogram\n\
                        took_seconds_bucket{le=\"0.001\"} 1\ntook_seconds_bucket{le=\"0.01\"} 2\n\
                        took_seconds_bucket{le=\"+Inf\"} 3\ntook_seconds_sum 2.003\ntook_seconds_count 3\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_full_table_and_a_long_name_count_for_nobody_and_harm_nobody() {
        let (ledger, _) = pair();
        let long = "x".repeat(NAME_BYTES + 1);
        ledger.counter(&long, &[], "").add(1);
        for number in 0..limits::LEDGER_SLOTS {
            ledger.counter(&format!("n{number}"), &[], "").add(1);
        }
        let lost = ledger.counter("one_too_many", &[], "");
        lost.add(1);
        assert_eq!(lost.get(), 0);
        assert!(ledger.text().contains("n0 1\n"));
        let private = Ledger::private();
        private.counter("a", &[], "").add(1);
        assert_eq!(private.text(), "");
    }

    #[test]
    fn the_last_report_is_kept_for_whoever_comes() {
        let (before, after) = pair();
        assert_eq!(after.last_report(), None);
        before.keep_report("upgrade 1 -> 2 to generation 1: done");
        assert_eq!(after.last_report().as_deref(), Some("upgrade 1 -> 2 to generation 1: done"));
        before.keep_report(&"x".repeat(10_000));
        assert_eq!(after.last_report().map(|text| text.len()), Some(REPORT_BYTES));
    }

    #[test]
    fn a_table_of_another_layout_is_not_taken() {
        let file = Ledger::file().expect("a file in memory");
        let shared = Shared::map(file.as_fd(), WORDS).expect("mapped");
        shared.words()[0].store(7, Ordering::Relaxed);
        assert!(Ledger::of_file(&file).is_err());
    }

    #[test]
    fn a_gauge_is_of_this_process_alone() {
        let (before, after) = pair();
        before.gauge("sessions", &[], "Now.").set(7.0);
        after.gauge("sessions", &[], "Now.").set(1.5);
        assert!(before.text().ends_with("# TYPE sessions gauge\nsessions 7\n"));
        assert!(after.text().ends_with("sessions 1.5\n"));
        assert!(is_name("a_b:c9") && !is_name("9a") && !is_name("") && !is_name("a-b"));
    }
}
