//! The server's wing: what the upgrader asks of it, and what it is told.

use std::io;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::acceptor::Acceptor;
use super::crew::Crew;
use super::door::Door;
use super::handoff::{Handoff, Sweep, Walk};
use super::pace::Pace;
use crate::handed_over::HandedOver;
use crate::handler::Handler;
use crate::io_event::IoEvent;
use crate::machine::Event;
use crate::program;
use crate::report::Report;
use crate::token::{Kind, Reach, SessionId, Token};
use crate::upgrader::{Arrived, Service, Upgrader};
use crate::wire::Ack;

/// Everybody who serves.
pub(super) struct Wing<H: Handler> {
    pub(super) crew: Crew<H>,
    pub(super) acceptor: Acceptor,
    pub(super) door: Door,
    pub(super) handoff: Handoff,
}

impl<H: Handler> Service for Wing<H> {
    fn note(&mut self, token: Token, event: IoEvent) -> bool {
        if token.kind == Kind::Session {
            return self.crew.sessions.note(token, event);
        }
        if token.kind == Kind::Owned {
            self.crew.note_owned(token.index, event);
            return true;
        }
        match self.acceptor.note(token) {
            Ok(Some(name)) => {
                self.crew.note_watched(name, event);
                true
            }
            Ok(None) => true,
            Err(_) => false,
        }
    }

    fn next_deadline(&self, upgrader: &Upgrader) -> Option<Instant> {
        let left_over = self.crew.sessions.queued() > 0
            || !self.crew.owned.is_empty()
            || !self.crew.watched.is_empty() && upgrader.standing.machine.accepts()
            || self.handoff.sweep.is_some_and(|sweep| !self.handoff.waits(sweep))
            || self.can_accept(upgrader) && self.acceptor.has_ready()
            || self.acceptor.is_drained(upgrader.standing.now);
        if left_over {
            return Some(upgrader.standing.now);
        }
        let accepting = self.acceptor.deadline().filter(|_| self.can_accept(upgrader));
        let (handoff, sessions, tick) = (&self.handoff, &self.crew.sessions, self.crew.desk.tick);
        let deadlines =
            [accepting, handoff.next_sweep, handoff.tells_again, sessions.next_alarm(), tick];
        deadlines.into_iter().flatten().min()
    }

    fn begin_turn(&mut self, upgrader: &mut Upgrader) {
        self.crew.pace = Pace::begin(upgrader.standing.now);
    }

    fn heard(&mut self) {
        self.crew.pace.look();
    }

    fn serve(&mut self, upgrader: &mut Upgrader) {
        self.serve_sessions(upgrader);
        self.accept(upgrader);
        self.sweep_sessions(upgrader);
        self.tick(upgrader);
    }

    fn end_turn(&mut self, upgrader: &mut Upgrader) -> bool {
        self.handoff.let_go();
        if self.crew.sessions.free_ended() {
            self.acceptor.room_made(upgrader.standing.now);
        }
        self.reach_those_wanted(upgrader);
        self.tell_to_come(upgrader);
        self.crew.sessions.len() == 0
            && self.handoff.in_flight.is_empty()
            && self.handoff.sweep.is_none()
            && !self.acceptor.is_draining()
    }

    fn resume(&mut self, upgrader: &mut Upgrader) {
        self.handoff.stop();
        let doors = upgrader.estate().doors();
        let names = doors.into_iter().map(|door| door.name);
        self.door.begin_to_count(&upgrader.standing.ledger, names);
        let (registry, now) =
            (std::rc::Rc::clone(&upgrader.standing.registry), upgrader.standing.now);
        self.acceptor.resume(upgrader.estate(), &registry, now);
    }

    fn pause(&mut self, upgrader: &mut Upgrader) {
        self.acceptor.pause(&upgrader.standing.registry);
    }

    fn let_last_in(&mut self, upgrader: &mut Upgrader) -> bool {
        let (registry, now) = (&upgrader.standing.registry, upgrader.standing.now);
        self.acceptor.drain(registry, now, program::who_stays());
        true
    }

    fn close(&mut self, upgrader: &mut Upgrader) {
        self.acceptor.close(&upgrader.standing.registry);
    }

    fn drain(&mut self, _: &mut Upgrader) {
        self.handoff.moving = Walk::Drain;
        // Sessions that are being closed need not be told to drain.
        if self.handoff.sweep.is_none_or(|sweep| sweep.walk != Walk::Close) {
            self.handoff.sweep = Some(Sweep::new(Walk::Drain));
        }
    }

    fn hand_over(&mut self, upgrader: &mut Upgrader) {
        self.begin_to_move(upgrader);
    }

    fn cut(&mut self, upgrader: &mut Upgrader, because: Event) {
        if self.crew.sessions.len() > 0 {
            log::warn!("closing {} sessions: {because}.", self.crew.sessions.len());
            let cut = self.crew.sessions.len();
            self.handoff.moves.iter_mut().for_each(|moves| moves.note_cut(cut));
            self.tell_of_closing(upgrader);
            self.handoff.sweep = Some(Sweep::new(Walk::Close));
        }
    }

    fn cut_panicked(&mut self, upgrader: &mut Upgrader) {
        if let Some(index) = self.crew.panics.session.take() {
            self.end_session(upgrader, index);
        }
    }

    fn state(
        &mut self,
        upgrader: &mut Upgrader,
        reads: RangeInclusive<u32>,
    ) -> io::Result<Option<HandedOver>> {
        // Without its state the successor would begin anew, and nobody would know.
        let panicked = || io::Error::other("the handler's method `hand_over` panicked");
        self.guarded(upgrader, "hand_over", None, |handler, cx, _| handler.hand_over(cx, reads))
            .unwrap_or_else(|| Err(panicked()))
    }

    fn take_state(&mut self, upgrader: &mut Upgrader, state: HandedOver) -> io::Result<()> {
        let taken = self
            .guarded(upgrader, "take_over", None, |handler, cx, _| handler.take_over(cx, state));
        taken.unwrap_or_else(|| Err(io::Error::other("the handler panicked")))
    }

    fn told(&mut self, upgrader: &mut Upgrader, messages: Vec<Vec<u8>>) {
        for message in messages {
            self.guarded(upgrader, "told", None, |handler, cx, _| handler.told(cx, &message));
        }
    }

    fn is_adopting(&self) -> bool {
        self.handoff.is_adopting()
    }

    fn successor_gone(&mut self, upgrader: &mut Upgrader) {
        self.guarded(upgrader, "successor_gone", None, |handler, cx, _| handler.successor_gone(cx));
    }

    fn to_come(&self, upgrader: &Upgrader) -> (usize, usize) {
        self.sessions_to_come(upgrader)
    }

    fn sessions(&self) -> Option<usize> {
        Some(self.crew.sessions.len())
    }

    fn staying(&self) -> u64 {
        if self.handoff.moves_sessions() { 0 } else { self.crew.sessions.sockets() as u64 }
    }

    fn acknowledged(&mut self, upgrader: &mut Upgrader, attempt: u32, acks: Vec<Ack>) {
        self.hear_acks(upgrader, attempt, acks);
    }

    fn is_sending(&self) -> bool {
        !self.handoff.in_flight.is_empty()
    }

    fn successor_dead(&mut self, upgrader: &mut Upgrader, attempt: u32) {
        self.take_back_sessions(upgrader, attempt);
    }

    fn fewer_to_come(&mut self, upgrader: &mut Upgrader) {
        // What accepting waits for may be free by that.
        self.acceptor.room_made(upgrader.standing.now);
    }

    fn arrived(&mut self, upgrader: &mut Upgrader, packets: Vec<Arrived>) {
        self.adopt_sessions(upgrader, packets);
    }

    fn woken(&mut self, upgrader: &mut Upgrader) {
        self.guarded(upgrader, "woken", None, |handler, cx, _| handler.woken(cx));
    }

    fn reached(&mut self, upgrader: &mut Upgrader, reached: Vec<(SessionId, Reach)>) {
        self.reach(upgrader, reached);
    }

    fn signal(&mut self, upgrader: &mut Upgrader, signal: i32) {
        self.guarded(upgrader, "signal", None, |handler, cx, _| handler.signal(cx, signal));
    }

    fn upgraded(&mut self, upgrader: &mut Upgrader, report: &Arc<Report>) {
        self.guarded(upgrader, "upgraded", None, |handler, cx, _| handler.upgraded(cx, report));
    }

    fn predecessor_gone(&mut self, upgrader: &mut Upgrader) {
        self.tell_of_adopted(upgrader);
        self.guarded(upgrader, "predecessor_gone", None, |handler, cx, _| {
            handler.predecessor_gone(cx);
        });
    }

    fn exited(&mut self, upgrader: &mut Upgrader) {
        self.end_last_accepts(upgrader);
        self.tell_of_moves(upgrader);
    }

    fn census(&self) -> Vec<(Rc<str>, usize)> {
        self.crew.sessions.census()
    }

    fn panicked_in(&self) -> &'static str {
        self.crew.panics.method
    }
}

impl<H: Handler> Wing<H> {
    /// Sessions that have not come to their end are closed.
    fn tell_of_closing(&mut self, upgrader: &mut Upgrader) {
        let mut next = 0;
        while let Some((token, _)) = self.crew.sessions.next_from(next) {
            next = token.index + 1;
            self.guarded(upgrader, "closing", Some(token.index), |handler, cx, session| {
                if let Some(session) = session {
                    handler.closing(cx, session);
                }
            });
            self.crew.desk.session = None;
        }
    }
}
