//! Who serves, as the upgrader sees it: the one place where the two wings of the house meet.

use std::io;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::Upgrader;
use super::predecessor::Arrived;
use crate::handed_over::HandedOver;
use crate::io_event::IoEvent;
use crate::machine::Event;
use crate::report::Report;
use crate::token::{Reach, SessionId, Token};
use crate::wire::Ack;

/// What the upgrader asks of whoever serves, and tells it. Each method but the questions is called for an
/// action of the machine, or for what the other process has said; each may feed the machine again.
///
/// Every method does nothing by default: for whoever serves by a loop of their own, and looks at the
/// [phase](super::Phase).
pub(crate) trait Service {
    /// An event of one of its own sources. Answers whether that is still there.
    fn note(&mut self, token: Token, event: IoEvent) -> bool {
        let _ = (token, event);
        false
    }

    /// When it has something to do, at the latest.
    fn next_deadline(&self, upgrader: &Upgrader) -> Option<Instant> {
        let _ = upgrader;
        None
    }

    /// A turn has begun: the events are noted.
    fn begin_turn(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// Requests and the other process were heard, which may have taken long.
    fn heard(&mut self) {}

    /// Serves, within the budget of a turn.
    fn serve(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// The last thing in a turn. Answers whether everything that was served has come to its end.
    fn end_turn(&mut self, upgrader: &mut Upgrader) -> bool {
        let _ = upgrader;
        false
    }

    /// Accept, as [`ResumeAccepting`](crate::machine::Action::ResumeAccepting) says.
    fn resume(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// Do not accept any more, for now.
    fn pause(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// Let everybody in who waits, and then no more. Answers whether it does so: then it closes the
    /// listeners itself.
    fn let_last_in(&mut self, upgrader: &mut Upgrader) -> bool {
        let _ = upgrader;
        false
    }

    /// The listeners are about to be closed.
    fn close(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// Bring what is served to its end.
    fn drain(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// Hand over what is served, or bring it to its end.
    fn hand_over(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// End what is served at once.
    fn cut(&mut self, upgrader: &mut Upgrader, because: Event) {
        let _ = (upgrader, because);
    }

    /// End the session whose method has panicked.
    fn cut_panicked(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// What the successor is to have before it accepts, in one of those schemas. An error, and it is not
    /// committed to.
    fn state(
        &mut self,
        upgrader: &mut Upgrader,
        reads: RangeInclusive<u32>,
    ) -> io::Result<Option<HandedOver>> {
        let _ = (upgrader, reads);
        Ok(None)
    }

    /// What the predecessor has handed over.
    fn take_state(&mut self, upgrader: &mut Upgrader, state: HandedOver) -> io::Result<()> {
        let _ = (upgrader, state);
        Ok(())
    }

    /// Messages of the other process's application.
    fn told(&mut self, upgrader: &mut Upgrader, messages: Vec<Vec<u8>>) {
        let _ = (upgrader, messages);
    }

    /// Whether what has arrived is not dealt with yet: what comes behind it waits.
    fn is_adopting(&self) -> bool {
        false
    }

    /// A successor that was committed to is gone, with nothing more to say.
    fn successor_gone(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// How many sessions a successor is to keep room for, and how many sockets these have.
    fn to_come(&self, upgrader: &Upgrader) -> (usize, usize) {
        let _ = upgrader;
        (0, 0)
    }

    /// How many sessions there are, if that is known here.
    fn sessions(&self) -> Option<usize> {
        None
    }

    /// How many descriptors of this process a successor does not need.
    fn staying(&self) -> u64 {
        0
    }

    /// The successor of that attempt has answered for sessions.
    fn acknowledged(&mut self, upgrader: &mut Upgrader, attempt: u32, acks: Vec<Ack>) {
        let _ = (upgrader, attempt, acks);
    }

    /// Whether a successor still owes an answer for sessions.
    fn is_sending(&self) -> bool {
        false
    }

    /// The successor of that attempt is dead, and has said all that it had to say.
    fn successor_dead(&mut self, upgrader: &mut Upgrader, attempt: u32) {
        let _ = (upgrader, attempt);
    }

    /// Fewer sessions are to come than there were.
    fn fewer_to_come(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// Sessions of the predecessor, each packet of which wants an answer. Called each time that it was
    /// listened to.
    fn arrived(&mut self, upgrader: &mut Upgrader, packets: Vec<Arrived>) {
        let _ = (upgrader, packets);
    }

    /// Another thread has woken whoever serves.
    fn woken(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// Other threads want something of sessions.
    fn reached(&mut self, upgrader: &mut Upgrader, reached: Vec<(SessionId, Reach)>) {
        let _ = (upgrader, reached);
    }

    /// One of the user's signals came.
    fn signal(&mut self, upgrader: &mut Upgrader, signal: i32) {
        let _ = (upgrader, signal);
    }

    /// An upgrade of this process has ended.
    fn upgraded(&mut self, upgrader: &mut Upgrader, report: &Arc<Report>) {
        let _ = (upgrader, report);
    }

    /// The predecessor is dead.
    fn predecessor_gone(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// The machine has come to `Exited`.
    fn exited(&mut self, upgrader: &mut Upgrader) {
        let _ = upgrader;
    }

    /// How many sessions there are of each listener.
    fn census(&self) -> Vec<(Rc<str>, usize)> {
        Vec::new()
    }

    /// The method of a handler whose panic has ended the process.
    fn panicked_in(&self) -> &'static str {
        ""
    }
}
