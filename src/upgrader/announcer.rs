//! Who wants to hear what becomes of this process, and of its upgrades.

use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::Registry;

use super::notify::Notify;
#[cfg(feature = "admin")]
use crate::admin::Admin;
use crate::ledger::{Counter, Histogram, Ledger};
use crate::limits;
use crate::machine::{Event, Refusal, State};
use crate::report::{Cause, Failure, Report, Stage, Timings};
use crate::token::Token;

/// Tells everybody who wants to hear.
#[derive(Default)]
pub(super) struct Announcer {
    notify: Notify,
    #[cfg(feature = "admin")]
    pub(super) admin: Option<Admin>,
    tally: Option<Tally>,
}

/// A step of the machine, and who there is after it.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "not everybody who listens is always built")]
pub(super) struct Change {
    pub(super) before: State,
    pub(super) after: State,
    pub(super) event: Event,
    pub(super) generation: u64,
    /// Whether this process accepts.
    pub(super) accepts: bool,
    /// How many sessions there are, if whoever serves knows that.
    pub(super) sessions: Option<usize>,
    /// When the turn began.
    pub(super) now: Instant,
    /// The process before this one, as long as it is there.
    pub(super) predecessor: Option<u32>,
    /// The process after this one, as long as it is wanted.
    pub(super) successor: Option<u32>,
    /// That one is given up once it is ready.
    pub(super) is_check: bool,
}

/// What the counters of upgrades are.
pub(super) const UPGRADES_HELP: &str = "Upgrades by how they ended. One that is rolled back after the successor \
                                         had served was done before.";

/// What is counted of upgrades.
struct Tally {
    done: Counter,
    failed: Counter,
    rolled_back: Counter,
    checked: Counter,
    takeover: Histogram,
    longest_turn: Histogram,
    set_up: Histogram,
}

impl Tally {
    fn of(ledger: &Ledger) -> Self {
        let outcome = |outcome| {
            ledger.counter("tablecloth_upgrades_total", &[("outcome", outcome)], UPGRADES_HELP)
        };
        let histogram = |name, help| ledger.histogram(name, &[], help, &limits::LEDGER_BOUNDS);
        Self {
            done: outcome("done"),
            failed: outcome("failed"),
            rolled_back: outcome("rolled_back"),
            checked: outcome("checked"),
            takeover: histogram(
                "tablecloth_takeover_seconds",
                "From the successor's ready byte until it serves.",
            ),
            longest_turn: histogram(
                "tablecloth_longest_turn_seconds",
                "The longest turn of the predecessor's loop in an upgrade.",
            ),
            set_up: histogram(
                "tablecloth_set_up_seconds",
                "From the request of an upgrade until the successor is ready.",
            ),
        }
    }

    fn count(&self, report: &Report) {
        match &report.outcome {
            Ok(Timings { spawn, set_up, takeover, longest_turn }) => {
                self.done.add(1);
                self.takeover.observe(*takeover);
                self.longest_turn.observe(*longest_turn);
                self.set_up.observe(*spawn + *set_up);
            }
            Err(Failure { cause: Cause::Checked(_), .. }) => self.checked.add(1),
            Err(Failure { stage: Stage::Spawn | Stage::SetUp, .. }) => self.failed.add(1),
            Err(Failure { stage: Stage::Takeover | Stage::Draining, .. }) => {
                self.rolled_back.add(1)
            }
        }
    }
}

impl Announcer {
    pub(super) fn new(notify: Notify) -> Self {
        Self { notify, ..Self::default() }
    }

    /// Counts, from here on, in that ledger.
    pub(super) fn count_in(&mut self, ledger: &Ledger) {
        self.tally = Some(Tally::of(ledger));
    }

    /// The first process sets itself up.
    pub(super) fn begin(&mut self) {
        #[cfg(feature = "admin")]
        if let Some(admin) = &mut self.admin {
            admin.begin_early();
        }
    }

    /// The loop begins to turn.
    pub(super) fn set_up_done(&mut self) {
        #[cfg(feature = "admin")]
        if let Some(admin) = &mut self.admin {
            admin.end_early();
        }
    }

    /// The set-up takes longer.
    pub(super) fn needs_time(&mut self, time: Duration) {
        self.notify.needs_time(time);
    }

    /// An event of one of its own sources. Answers whether that is still there.
    pub(super) fn note(&mut self, token: Token) -> bool {
        #[cfg(feature = "admin")]
        if let Some(admin) = &mut self.admin {
            return admin.note(token);
        }
        let _ = token;
        false
    }

    /// The machine has stepped, and the actions are performed.
    pub(super) fn stepped(&mut self, change: &Change) {
        #[cfg(feature = "admin")]
        if let (Some(admin), Some(line)) = (&mut self.admin, line_of(change)) {
            admin.tell(change.is_check, &line, change.now);
        }
        self.notify.stepped(change);
    }

    /// An upgrade was requested, and is not carried out.
    pub(super) fn refused(&mut self, refusal: Refusal, now: Instant) {
        #[cfg(feature = "admin")]
        if let Some(admin) = &mut self.admin {
            admin.conclude(&format!("refused: {refusal}"), now);
        }
        let _ = (refusal, now);
    }

    /// An upgrade has ended, or a check.
    pub(super) fn reported(&mut self, report: &Report, is_check: bool, now: Instant) {
        if let Some(tally) = &self.tally {
            tally.count(report);
        }
        #[cfg(feature = "admin")]
        if let Some(admin) = &mut self.admin {
            admin.tell_outcome(report, is_check, now);
        }
        // A check changes nothing for a service manager.
        if !is_check {
            self.notify.reported(report);
        }
        let _ = (is_check, now);
    }

    /// The process has come to its end.
    pub(super) fn ended(&mut self, line: &str, registry: &Rc<Registry>, now: Instant) {
        #[cfg(feature = "admin")]
        if let Some(admin) = &mut self.admin {
            admin.poll(registry, false);
            admin.conclude(line, now);
            admin.flush(now);
        }
        let _ = (line, registry, now);
    }

    /// A turn ends, and there are so many sessions, if whoever serves knows that.
    pub(super) fn end_turn(&mut self, now: Instant, sessions: Option<usize>) {
        self.notify.end_turn(now, sessions);
    }

    /// Whether a process may leave to that successor: whoever has to know of it does.
    pub(super) fn has_taken_leave(&mut self, successor: u32, now: Instant) -> bool {
        self.notify.has_taken_leave(successor, now)
    }

    /// When it has something to do, at the latest.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        #[cfg(feature = "admin")]
        let admin = self.admin.as_ref().and_then(|admin| admin.next_deadline(now));
        #[cfg(not(feature = "admin"))]
        let admin = None;
        let _ = now;
        [self.notify.next_deadline(), admin].into_iter().flatten().min()
    }
}

/// What is told to those who wait for an upgrade.
#[cfg(feature = "admin")]
fn line_of(change: &Change) -> Option<String> {
    use crate::machine::Drain;
    let pid = change.successor.map_or_else(|| "a process".into(), |pid| format!("process {pid}"));
    match (change.before, change.after, change.event) {
        (State::Upgrading, State::Draining(_), _) => Some(format!("{pid} is ready: it takes over")),
        (State::Draining(Drain::Committed), State::Draining(Drain::Probation), _) => {
            Some(format!("{pid} serves, and is on probation"))
        }
        (State::Draining(Drain::Probation), State::Draining(Drain::Proven), _) => {
            Some(format!("{pid} is proven: sessions move to it"))
        }
        (State::Running, State::Upgrading, _) => Some("a successor is started".into()),
        _ => None,
    }
}
