//! Nobody is told: the feature `systemd` is off.

use std::time::{Duration, Instant};

use super::announcer::Change;
use super::predecessor::Inheritance;
use crate::error::Error;
use crate::report::Report;

/// Stands where a service manager would be told.
#[derive(Default)]
pub(super) struct Notify;

/// Nobody has opened any.
pub(super) fn sockets(_: bool) -> Result<Inheritance, Error> {
    Ok(Vec::new())
}

impl Notify {
    pub(super) fn of_environment(_: bool) -> Self {
        Self
    }

    pub(super) fn stepped(&mut self, _: &Change) {}

    pub(super) fn needs_time(&mut self, _: Duration) {}

    pub(super) fn reported(&mut self, _: &Report) {}

    pub(super) fn end_turn(&mut self, _: Instant, _: Option<usize>) {}

    pub(super) fn has_taken_leave(&mut self, _: u32, _: Instant) -> bool {
        true
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        None
    }
}
