//! For a program that serves by itself: what has happened, until it is asked for.

use std::collections::VecDeque;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use super::{End, Service, Upgrader};
use crate::handed_over::HandedOver;
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
    /// An upgrade of this process has ended, well or badly: it comes when the successor serves, or has failed.
    /// One that is rolled back later ends a second time.
    Upgraded(Arc<Report>),
    /// The predecessor is dead: this process is alone.
    PredecessorGone,
    /// The successor that was committed to is dead, and this process serves again. What it has said comes
    /// before this.
    SuccessorGone,
    /// The other process of an upgrade has said something by [`Upgrader::tell`]. What it says arrives in
    /// the order in which it was said, and what it has said before it died arrives, too.
    Told(Vec<u8>),
    /// One of [`Config::user_signals`](crate::Config::user_signals) came, once or several times.
    Signal(i32),
    /// It is over.
    Exited(End),
}

/// Makes the application's state for a successor that reads these schemas.
pub(super) type HandsOver = Box<dyn FnMut(RangeInclusive<u32>) -> io::Result<Option<HandedOver>>>;

/// Serves nobody, and notes what would have been said.
#[derive(Default)]
pub(super) struct Alone {
    /// Makes the state for a successor, and what the predecessor has handed over.
    hands_over: Option<HandsOver>,
    pub(super) handed_over: Option<HandedOver>,
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

    pub(super) fn hand_over_with(&mut self, hands_over: HandsOver) {
        self.hands_over = Some(hands_over);
    }

    fn note_that(&mut self, notice: Notice) {
        // What the other process says is bounded by that process, and none of it may be lost.
        let is_message = |notice: &Notice| matches!(notice, Notice::Told(_));
        if self.notices.len() >= limits::NOTICES {
            if let Some(oldest) = self.notices.iter().position(|notice| !is_message(notice)) {
                self.notices.remove(oldest);
            }
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

    fn state(
        &mut self,
        _: &mut Upgrader,
        reads: RangeInclusive<u32>,
    ) -> io::Result<Option<HandedOver>> {
        self.hands_over.as_mut().map_or(Ok(None), |hands_over| hands_over(reads))
    }

    fn take_state(&mut self, _: &mut Upgrader, state: HandedOver) -> io::Result<()> {
        self.handed_over = Some(state);
        Ok(())
    }

    fn told(&mut self, _: &mut Upgrader, messages: Vec<Vec<u8>>) {
        messages.into_iter().for_each(|message| self.note_that(Notice::Told(message)));
    }

    fn successor_gone(&mut self, _: &mut Upgrader) {
        self.note_that(Notice::SuccessorGone);
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
