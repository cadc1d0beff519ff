//! Where this process stands: what every part of the loop, and every method of a handler, may look at.

use std::rc::Rc;
use std::time::Instant;

use mio::Registry;

use crate::ledger::Ledger;
use crate::machine::{Machine, State};
use crate::post::Post;

/// The process, as it stands in this turn.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) machine: Machine,
    pub(crate) generation: u64,
    /// When this turn began.
    pub(crate) now: Instant,
    pub(crate) registry: Rc<Registry>,
    /// What was asked for on the loop's own thread.
    pub(crate) requests: Requests,
    /// What the application says to the other process.
    pub(crate) post: Post,
    /// What is counted.
    pub(crate) ledger: Ledger,
}

impl Standing {
    pub(crate) fn state(&self) -> State {
        self.machine.state()
    }
}

/// What was asked for and not looked at yet. Several requests of a kind are one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Requests {
    pub(crate) upgrade: bool,
    pub(crate) shutdown: bool,
    pub(crate) exit: bool,
    /// The handler is to be woken.
    pub(crate) wake: bool,
}

impl Requests {
    pub(crate) fn any(self) -> bool {
        self.upgrade || self.shutdown || self.exit
    }
}
