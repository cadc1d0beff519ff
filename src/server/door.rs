//! Letting clients in: as many as there is room for, beside those who are to come from a predecessor.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Instant;

use super::Wing;
use super::guard::caught;
use crate::CLIENTS;
use crate::handler::{Accepted, Context, Handler, Verdict};
use crate::io_event::IoEvent;
use crate::ledger::{ACCEPTED, Counter, HANDED_OVER, Ledger, STOOD_STILL};
use crate::limits;
use crate::room::Room;
use crate::throttle::Throttle;
use crate::upgrader::Upgrader;

/// What is known of those who want to be let in.
pub(super) struct Door {
    /// How many descriptors there may be.
    room: Room,
    /// Bounds on what clients can have logged.
    refused: Throttle,
    unregistered: Throttle,
    /// How many were let in by each listener.
    accepted: BTreeMap<Rc<str>, Counter>,
}

impl Door {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            room: Room::new(now),
            refused: Throttle::default(),
            unregistered: Throttle::default(),
            accepted: BTreeMap::new(),
        }
    }

    /// What will be counted is there from the beginning, as 0.
    pub(super) fn begin_to_count(
        &mut self,
        ledger: &Ledger,
        listeners: impl Iterator<Item = Rc<str>>,
    ) {
        if !ledger.is_shared() {
            return;
        }
        for listener in listeners {
            let counter = ledger.counter(ACCEPTED.0, &[("listener", &listener)], ACCEPTED.1);
            self.accepted.insert(listener, counter);
        }
        for outcome in ["moved", "refused", "stayed", "cut"] {
            ledger.counter(HANDED_OVER.0, &[("outcome", outcome)], HANDED_OVER.1);
        }
        ledger.histogram(STOOD_STILL.0, &[], STOOD_STILL.1, &limits::LEDGER_BOUNDS);
    }

    /// One more was let in, if anybody wants to know.
    fn count(&mut self, upgrader: &Upgrader, listener: &Rc<str>) {
        let ledger = &upgrader.standing.ledger;
        if !ledger.is_shared() {
            return;
        }
        let counter = self
            .accepted
            .entry(Rc::clone(listener))
            .or_insert_with(|| ledger.counter(ACCEPTED.0, &[("listener", listener)], ACCEPTED.1));
        counter.add(1);
    }
}

impl<H: Handler> Wing<H> {
    /// Whether somebody may be let in: the machine says so, or this is the end and everybody who waits
    /// is let in first.
    pub(super) fn can_accept(&self, upgrader: &Upgrader) -> bool {
        upgrader.standing.machine.accepts() || self.acceptor.is_draining()
    }

    pub(super) fn accept(&mut self, upgrader: &mut Upgrader) {
        if !self.can_accept(upgrader) {
            return;
        }
        self.accept_some(upgrader);
        if self.acceptor.is_drained(upgrader.standing.now) {
            self.end_last_accepts(upgrader);
        }
    }

    fn accept_some(&mut self, upgrader: &mut Upgrader) {
        self.acceptor.poll_those_refused(&upgrader.standing.registry, upgrader.standing.now);
        self.acceptor.linger(upgrader.standing.now);
        if self.acceptor.is_idle() {
            return;
        }
        // What a predecessor's sessions need is kept for them (I8).
        let expects = upgrader.expects();
        let (to_come, sockets) = (expects.sessions as usize, expects.sockets as usize);
        let ceiling = self.door.room.ceiling(upgrader.standing.now, sockets);
        let mut begun = None;
        for _ in 0..limits::ACCEPTS_PER_TURN {
            if begun.is_some_and(|at| self.crew.pace.last() - at >= limits::ACCEPTING_TIME) {
                return;
            }
            if self.crew.sessions.is_full(to_come) {
                self.acceptor.pause_full(self.crew.sessions.len(), to_come);
                return;
            }
            let Some((listener, mut stream, peer)) =
                self.acceptor.accept(upgrader.standing.now, ceiling)
            else {
                return;
            };
            self.door.count(upgrader, &listener);
            let vacancy = self.crew.sessions.vacancy();
            let token = vacancy.token();
            if let Err(error) = stream.register(&upgrader.standing.registry, token.pack()) {
                if let Some(more) = self.door.unregistered.line(upgrader.standing.now) {
                    log::warn!(target: CLIENTS, "connection from [{peer}] closed: epoll_ctl: {error}{more}");
                }
                continue;
            }
            let came_by = Rc::clone(&listener);
            let mut cx = Context::of(&mut upgrader.standing, &mut self.crew.desk, token);
            let (handler, accepted) =
                (&mut self.crew.handler, Accepted::new(listener, peer.clone(), stream));
            let opened = match caught(|| handler.open(&mut cx, accepted)) {
                Ok(opened) => opened,
                // The connection went with it.
                Err(payload) => {
                    self.note_panic(upgrader, "open", None, payload);
                    continue;
                }
            };
            self.note_slow("open");
            begun.get_or_insert(self.crew.pace.last());
            match opened {
                Ok(session) => {
                    self.crew.sessions.insert(vacancy, session);
                    self.crew.sessions.came_by(token.index, &came_by);
                    if self.crew.desk.patient {
                        self.crew.sessions.wait_for_peer(token.index);
                    }
                    self.conclude(upgrader, token.index, Verdict::Keep, IoEvent::default());
                }
                Err(error) => {
                    self.crew.desk.session = None;
                    // The client went away while it waited to be accepted.
                    let gone = error.kind() == io::ErrorKind::ConnectionReset;
                    if gone {
                        log::debug!(target: CLIENTS, "connection from [{peer}] is gone: {error}");
                    } else if let Some(more) = self.door.refused.line(upgrader.standing.now) {
                        log::warn!(
                            target: CLIENTS,
                            "connection from [{peer}] refused by the handler: {error}{more}",
                        );
                    }
                }
            }
            self.crew.desk.sessions = self.crew.sessions.len();
        }
    }

    /// Everybody was let in who waited for the end. Answers whether that was still under way.
    pub(super) fn end_last_accepts(&mut self, upgrader: &mut Upgrader) -> bool {
        let ended = self.acceptor.end_draining(&upgrader.standing.registry);
        if ended {
            upgrader.close_listeners(self);
        }
        ended
    }
}
