//! The handler and its sessions: who has something to do, and what its handler says to it.

use std::rc::Rc;
use std::time::Duration;

use super::Wing;
use super::guard::{Panics, caught};
use super::pace::Pace;
use super::sessions::{Lane, Sessions};
use crate::handler::{Context, Desk, Handler, Verdict};
use crate::io_event::IoEvent;
use crate::limits;
use crate::token::{Reach, SessionId};
use crate::upgrader::Upgrader;

/// The handler and its sessions.
pub(super) struct Crew<H: Handler> {
    pub(super) handler: H,
    pub(super) sessions: Sessions<H::Session>,
    /// What a method of the handler leaves here.
    pub(super) desk: Desk,
    /// How long the handler's methods take.
    pub(super) pace: Pace,
    pub(super) panics: Panics,
    /// Descriptors of the handler's own that it has to hear of.
    pub(super) watched: Vec<(Rc<str>, IoEvent)>,
    /// The same, of those that it has attached itself, by their keys.
    pub(super) owned: Vec<(u32, IoEvent)>,
}

impl<H: Handler> Crew<H> {
    /// Something happened to a watched descriptor.
    pub(super) fn note_watched(&mut self, name: Rc<str>, event: IoEvent) {
        match self.watched.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => known.merge(event),
            None => self.watched.push((name, event)),
        }
    }

    /// Something happened to a descriptor of the handler's own.
    pub(super) fn note_owned(&mut self, key: u32, event: IoEvent) {
        match self.owned.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => known.merge(event),
            None => self.owned.push((key, event)),
        }
    }
}

impl<H: Handler> Wing<H> {
    /// Serves who has something to do, within the budget of a turn.
    pub(super) fn serve_sessions(&mut self, upgrader: &mut Upgrader) {
        // What was found before the listeners were paused in this very turn is the successor's (I3).
        if upgrader.standing.machine.accepts() {
            self.serve_watched(upgrader);
        }
        self.serve_owned(upgrader);
        self.crew.sessions.ring(upgrader.standing.now);
        self.serve_lane(upgrader, Lane::Light, limits::LIGHT_TIME);
        self.serve_lane(upgrader, Lane::Heavy, limits::HEAVY_TIME);
        self.crew.desk.sessions = self.crew.sessions.len();
    }

    /// Serves those who stand in a queue, for about so long.
    fn serve_lane(&mut self, upgrader: &mut Upgrader, lane: Lane, time: Duration) {
        let queued = self.crew.sessions.queued_in(lane);
        if queued == 0 {
            return;
        }
        // What it took to note the events of many is not the first one's time.
        if queued > 1 {
            self.crew.pace.look();
        }
        let begun = self.crew.pace.last();
        let mut flushing = [(0, IoEvent::default()); limits::SESSIONS_PER_BATCH];
        let mut count = 0;
        // Who has more to do goes to the end of the queue, and has its turn in the next one.
        for _ in 0..queued.min(limits::SESSION_EVENTS_PER_TURN) {
            let Some((token, session, event)) = self.crew.sessions.next_in(lane) else { break };
            let mut cx = Context::of(&mut upgrader.standing, &mut self.crew.desk, token);
            let handler = &mut self.crew.handler;
            let mut verdict = match caught(|| handler.event(&mut cx, session, event)) {
                Ok(verdict) => verdict,
                Err(payload) => {
                    self.note_panic(upgrader, "event", Some(token.index), payload);
                    continue;
                }
            };
            let defers = verdict == Verdict::Flush;
            // If nobody waits between the two, one look at the clock is enough for what it reads and what it writes.
            if defers && count == 0 && self.crew.sessions.queued_in(lane) == 0 {
                self.conclude(upgrader, token.index, Verdict::Keep, event);
                self.flush_session(upgrader, token.index, event);
                let took = self.note_slow("event` or `flush");
                self.crew.sessions.weigh(token.index, took);
                break;
            }
            let took = self.note_slow("event");
            self.crew.sessions.weigh(token.index, took);
            if defers {
                flushing[count] = (token.index, event);
                count += 1;
                verdict = Verdict::Keep;
            }
            self.conclude(upgrader, token.index, verdict, event);
            // Who does not defer may have taken its time, and the next one may do so, too.
            if !defers || count == flushing.len() {
                self.flush_sessions(upgrader, &flushing[..count]);
                count = 0;
            }
            if self.crew.pace.last() - begun >= time {
                break;
            }
        }
        self.flush_sessions(upgrader, &flushing[..count]);
    }

    /// Whoever reads a socket of its own hears of it, and again if it was not read to the end.
    fn serve_watched(&mut self, upgrader: &mut Upgrader) {
        for (name, event) in std::mem::take(&mut self.crew.watched) {
            let verdict = self.guarded(upgrader, "watched", None, |handler, cx, _| {
                handler.watched(cx, &name, event)
            });
            match verdict {
                Some(Verdict::Again | Verdict::Flush) => self.crew.watched.push((name, event)),
                Some(Verdict::Close) => self.acceptor.unwatch(&name, &upgrader.standing.registry),
                Some(Verdict::Keep) | None => {}
            }
        }
    }

    /// So does whoever has attached one, in every state.
    fn serve_owned(&mut self, upgrader: &mut Upgrader) {
        for (key, event) in std::mem::take(&mut self.crew.owned) {
            let verdict = self
                .guarded(upgrader, "owned", None, |handler, cx, _| handler.owned(cx, key, event));
            match verdict {
                Some(Verdict::Again | Verdict::Flush) => self.crew.note_owned(key, event),
                Some(Verdict::Keep | Verdict::Close) | None => {}
            }
        }
    }

    /// Lets them write what they have read.
    fn flush_sessions(&mut self, upgrader: &mut Upgrader, deferred: &[(u32, IoEvent)]) {
        for &(index, event) in deferred {
            self.flush_session(upgrader, index, event);
            self.note_slow("flush");
        }
    }

    /// Lets one write what it has read, if it is still there.
    fn flush_session(&mut self, upgrader: &mut Upgrader, index: u32, event: IoEvent) {
        let Some((token, session)) = self.crew.sessions.get_mut(index) else { return };
        let mut cx = Context::of(&mut upgrader.standing, &mut self.crew.desk, token);
        let handler = &mut self.crew.handler;
        match caught(|| handler.flush(&mut cx, session)) {
            Ok(verdict) => self.conclude(upgrader, index, verdict, event),
            Err(payload) => self.note_panic(upgrader, "flush", Some(index), payload),
        }
    }

    /// Asks a session to come to its end.
    pub(super) fn ask_to_drain(&mut self, upgrader: &mut Upgrader, index: u32) -> Verdict {
        let verdict = self.guarded(upgrader, "drain", Some(index), |handler, cx, session| {
            session.map_or(Verdict::Keep, |session| handler.drain(cx, session))
        });
        verdict.unwrap_or(Verdict::Keep)
    }

    /// Does with a session what its handler has said.
    pub(super) fn conclude(
        &mut self,
        upgrader: &mut Upgrader,
        index: u32,
        verdict: Verdict,
        event: IoEvent,
    ) {
        self.crew.desk.session = None;
        if let Some(at) = self.crew.desk.wake.take() {
            self.crew.sessions.wake_at(index, at);
        }
        let attached = std::mem::take(&mut self.crew.desk.attached);
        if attached != 0 {
            self.crew.sessions.add_sources(index, attached);
        }
        match verdict {
            Verdict::Keep => {}
            Verdict::Again | Verdict::Flush => self.crew.sessions.again(index, event),
            Verdict::Close => self.end_session(upgrader, index),
        }
    }

    /// Calls the handler if its time has come.
    pub(super) fn tick(&mut self, upgrader: &mut Upgrader) {
        if self.crew.desk.tick.is_some_and(|at| at <= upgrader.standing.now) {
            self.crew.desk.tick = None;
            self.guarded(upgrader, "tick", None, |handler, cx, _| handler.tick(cx));
        }
    }

    /// Does what the handler's methods want of other sessions.
    pub(super) fn reach_those_wanted(&mut self, upgrader: &mut Upgrader) {
        // To close one may call a handler's own code, which may want more.
        while !self.crew.desk.reached.is_empty() {
            let reached = std::mem::take(&mut self.crew.desk.reached);
            self.reach(upgrader, reached);
        }
    }

    /// Wakes sessions, or closes them. Who is gone is not found.
    pub(super) fn reach(&mut self, upgrader: &mut Upgrader, reached: Vec<(SessionId, Reach)>) {
        for (id, reach) in reached {
            let Some(token) = id.token() else { continue };
            // It is noted in any case: that tells whether it is there.
            if self.crew.sessions.note(token, IoEvent::woken()) && reach == Reach::Close {
                self.end_session(upgrader, token.index);
            }
        }
    }

    /// Drops a session, whose own code may be called by that.
    pub(super) fn end_session(&mut self, upgrader: &mut Upgrader, index: u32) {
        let session = self.crew.sessions.end(index);
        if let Err(payload) = caught(|| drop(session)) {
            self.note_panic(upgrader, "drop", None, payload);
        }
    }
}
