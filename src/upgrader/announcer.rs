//! Who wants to hear what becomes of this process, and of its upgrades.

use std::time::Instant;

use super::notify::Notify;
use crate::machine::{Event, State};
use crate::report::Report;

/// Tells everybody who wants to hear.
#[derive(Default)]
pub(super) struct Announcer {
    notify: Notify,
}

/// A step of the machine, and who there is after it.
#[allow(dead_code, reason = "who listens to it comes next")]
#[derive(Clone, Copy, Debug)]
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
}

impl Announcer {
    pub(super) fn new(notify: Notify) -> Self {
        Self { notify }
    }

    /// The machine has stepped, and the actions are performed.
    pub(super) fn stepped(&mut self, change: &Change) {
        self.notify.stepped(change);
    }

    /// An upgrade has ended.
    pub(super) fn reported(&mut self, report: &Report) {
        self.notify.reported(report);
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
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.notify.next_deadline()
    }
}
