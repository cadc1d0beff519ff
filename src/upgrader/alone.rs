//! For a program that serves by itself: what has happened, until it is asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::{End, Service, Upgrader};
use crate::limits;
use crate::report::Report;

/// What an [`Upgrader`] has to tell a program that serves by itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// Accept: the process is the one that serves, for the first time.
    Serving,
    /// Do not accept any more: a successor does, or the process was told to stop. It may come back.
    Draining,
    /// Accept again: the successor has failed.
    Resumed,
    /// An upgrade of this process has ended, well or badly. One that went well and is rolled back later
    /// ends a second time.
    Upgraded(Arc<Report>),
    /// The predecessor is dead: this process is alone.
    PredecessorGone,
    /// One of [`Config::user_signals`](crate::Config::user_signals) came, once or several times.
    Signal(i32),
    /// It is over.
    Exited(End),
}

/// Serves nobody, and notes what would have been said.
#[derive(Default)]
pub(super) struct Alone {
    notices: VecDeque<Notice>,
    has_served: bool,
    drained: bool,
    /// There is something that the program learns by a turn, or that a turn learns.
    is_news: bool,
}

impl Alone {
    pub(super) fn next_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    pub(super) fn set_drained(&mut self) {
        self.is_news |= !std::mem::replace(&mut self.drained, true);
    }

    fn note_that(&mut self, notice: Notice) {
        if self.notices.len() >= limits::NOTICES {
            self.notices.pop_front();
        }
        self.notices.push_back(notice);
    }
}

impl Service for Alone {
    fn next_deadline(&self, upgrader: &Upgrader) -> Option<Instant> {
        self.is_news.then_some(upgrader.standing.now)
    }

    fn end_turn(&mut self, _: &mut Upgrader) -> bool {
        self.is_news = false;
        self.drained
    }

    fn resume(&mut self, _: &mut Upgrader) {
        (self.drained, self.is_news) = (false, true);
        let again = std::mem::replace(&mut self.has_served, true);
        self.note_that(if again { Notice::Resumed } else { Notice::Serving });
    }

    fn pause(&mut self, _: &mut Upgrader) {
        self.note_that(Notice::Draining);
    }

    fn let_last_in(&mut self, _: &mut Upgrader) -> bool {
        self.note_that(Notice::Draining);
        false
    }

    fn signal(&mut self, _: &mut Upgrader, signal: i32) {
        self.note_that(Notice::Signal(signal));
    }

    fn upgraded(&mut self, _: &mut Upgrader, report: &Arc<Report>) {
        self.note_that(Notice::Upgraded(Arc::clone(report)));
    }

    fn predecessor_gone(&mut self, _: &mut Upgrader) {
        self.note_that(Notice::PredecessorGone);
    }

    fn exited(&mut self, upgrader: &mut Upgrader) {
        self.note_that(Notice::Exited(upgrader.end()));
    }
}
