//! Who wants to hear what becomes of this process, and of its upgrades.

use std::time::Instant;

use crate::machine::{Event, State};
use crate::report::Report;

/// Tells everybody who wants to hear.
#[derive(Default)]
pub(super) struct Announcer {}

/// A step of the machine, and who there is after it.
#[allow(dead_code, reason = "who listens to it comes next")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) before: State,
    pub(super) after: State,
    pub(super) event: Event,
    pub(super) generation: u64,
    /// The process before this one, as long as it is there.
    pub(super) predecessor: Option<u32>,
    /// The process after this one, as long as it is wanted.
    pub(super) successor: Option<u32>,
}

impl Announcer {
    /// The machine has stepped, and the actions are performed.
    pub(super) fn stepped(&mut self, change: &Change) {
        let _ = change;
    }

    /// An upgrade has ended.
    pub(super) fn reported(&mut self, report: &Report) {
        let _ = report;
    }

    /// A turn ends.
    pub(super) fn end_turn(&mut self, now: Instant) {
        let _ = now;
    }

    /// When it has something to do, at the latest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        None
    }
}
