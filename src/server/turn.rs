//! A turn: poll → signals → readiness pipe → handoff socket → sessions → accepts → timers → free
//! the slots.
//!
//! I/O comes before timers, so that a byte that came together with the deadline wins. Each stage
//! has a budget; what is left over is carried to the next turn, which does not wait then.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::guard::caught;
use super::{Server, Sweep, Walk};
use crate::CLIENTS;
use crate::error::Error;
use crate::handler::{Accepted, Context, Handler, Requests, Verdict};
use crate::io_event::IoEvent;
use crate::limits;
use crate::machine::{Event, State, Timer};
use crate::pace::Pace;
use crate::pid_file::PidFile;
use crate::predecessor::Predecessor;
use crate::sessions::Lane;
use crate::signals::Request;
use crate::sys;
use crate::token::{Kind, Token};
use crate::wire::Expect;

/// What a poll found, beside sessions and listeners, which note it themselves.
#[derive(Default)]
struct Harvest {
    woken: bool,
    signals: bool,
    pipe: bool,
    successor: bool,
    successor_died: bool,
    dying: bool,
    predecessor: bool,
    predecessor_died: bool,
    watched: Vec<(Rc<str>, IoEvent)>,
}

impl<H: Handler> Server<H> {
    /// One turn of the loop: waits for events, at most `timeout` (for ever if `None`) and never
    /// longer than to the next deadline, and dispatches them. Answers where the process stands;
    /// after [`State::Exited`] there is nothing more to do.
    ///
    /// The first turn ends the set-up: the first process writes its pid file and starts to accept, a
    /// successor closes what it has not claimed and says ready. If the pid file cannot be written, that
    /// is the error, and nobody is served.
    ///
    /// For a loop of one's own: poll the server's descriptor ([`std::os::fd::AsRawFd`]) and call this
    /// with a zero timeout when it is readable, and at the latest at
    /// [`Server::next_deadline`].
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<State, Error> {
        if !self.started {
            self.started = true;
            // The set-up may have taken long; deadlines run from here.
            self.shared.now = Instant::now();
            self.feed(Event::SetUpDone);
        }
        if self.state() != State::Exited {
            let harvest = self.harvest(timeout)?;
            self.notice_pause();
            self.hear_requests(&harvest);
            self.hear_handoff(&harvest);
            self.serve_sessions(&harvest);
            self.accept();
            self.sweep_sessions();
            self.take_requests();
            self.expire_timers();
            self.free_slots();
            self.say_again();
            if self.turn_counts() {
                self.longest_turn = self.longest_turn_by_now();
            }
        }
        match (self.state(), self.failure.take()) {
            (State::Exited, Some(error)) => {
                // Said again to the predecessor when this server is dropped.
                self.last_error = Some(error.to_string());
                Err(error)
            }
            (state, _) => Ok(state),
        }
    }

    /// When [`Server::turn`] has to be called at the latest, whether or not there are events.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let left_over = self.sessions.queued() > 0
            || !self.watched_again.is_empty() && self.shared.machine.accepts()
            || self.sweep.is_some_and(|sweep| !self.waits(sweep))
            || self.handoff_left
            || self.shared.requests.any()
            || !self.started
            || self.can_accept() && self.listeners.has_ready()
            || self.listeners.is_drained();
        if left_over {
            return Some(self.shared.now);
        }
        let accepting = self.listeners.deadline().filter(|_| self.can_accept());
        let deadlines = [
            self.timers.next_deadline(),
            self.heartbeat(),
            self.outbox_retry,
            accepting,
            self.next_sweep,
            self.sessions.next_alarm(),
            self.pid_file.as_ref().and_then(PidFile::next_deadline),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// While a deadline runs for the other process, the loop looks at the clock now and then: a pause of
    /// this process is to be told from sleep.
    fn heartbeat(&self) -> Option<Instant> {
        self.timers.judges().then(|| self.shared.now + limits::HEARTBEAT)
    }

    /// Who has stood still itself is no judge of who did not answer meanwhile.
    fn notice_pause(&mut self) {
        let late = self.asleep_until.map(|at| self.shared.now.saturating_duration_since(at));
        if let Some(late) = late.filter(|late| *late >= limits::STOOD_STILL) {
            if self.timers.judges() {
                self.stood_still = late;
                self.feed(Event::StoodStill);
            }
        }
    }

    /// Words that did not fit into a socket, and how many sessions are still to come.
    fn say_again(&mut self) {
        let untold = self.tell_to_come();
        let mut waits = self.successor.as_mut().is_some_and(|it| it.has_said_hello() && it.flush());
        waits |= self.predecessor.as_mut().is_some_and(Predecessor::flush);
        self.outbox_retry = (waits || untold).then(|| self.shared.now + limits::OUTBOX_RETRY);
    }

    fn harvest(&mut self, timeout: Option<Duration>) -> Result<Harvest, Error> {
        let begun = Instant::now();
        let wait = self.next_deadline().map(|at| at.saturating_duration_since(begun));
        let timeout = match (timeout, wait) {
            (Some(timeout), Some(wait)) => Some(timeout.min(wait)),
            (timeout, wait) => timeout.or(wait),
        };
        // Since the last turn, this process's own work included.
        self.asleep_until = timeout.and_then(|timeout| self.shared.now.checked_add(timeout));
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::System { operation: "poll", source }),
        }
        self.shared.now = Instant::now();
        self.pace = Pace::begin(self.shared.now);

        let mut harvest = Harvest::default();
        for event in &self.events {
            let Some(token) = Token::unpack(event.token()) else {
                self.stale_events += 1;
                continue;
            };
            let io_event = IoEvent::from_mio(event, token.source);
            let ours = || self.successor.as_ref().is_some_and(|successor| successor.owns(token));
            let lively = match token.kind {
                Kind::Session => self.sessions.note(token, io_event),
                Kind::Listener => match self.listeners.note(token) {
                    Ok(Some(name)) => {
                        harvest.watched.push((name, io_event));
                        true
                    }
                    Ok(None) => true,
                    Err(_) => false,
                },
                Kind::Signals => set(&mut harvest.signals),
                Kind::Waker => set(&mut harvest.woken),
                Kind::ReadinessPipe => ours() && set(&mut harvest.pipe),
                Kind::Successor => ours() && set(&mut harvest.successor),
                Kind::SuccessorProcess if ours() => set(&mut harvest.successor_died),
                Kind::SuccessorProcess => set(&mut harvest.dying),
                Kind::Predecessor => self.predecessor.is_some() && set(&mut harvest.predecessor),
                Kind::PredecessorProcess => {
                    self.predecessor.is_some() && set(&mut harvest.predecessor_died)
                }
            };
            self.stale_events += u64::from(!lively);
        }
        Ok(harvest)
    }

    /// Signals, and what other threads ask for.
    fn hear_requests(&mut self, harvest: &Harvest) {
        if harvest.signals {
            self.hear_signals();
        }
        if harvest.woken {
            let asked = self.remote.take();
            self.request(asked);
            self.hear_spawn();
            self.hear_pid_file();
        }
    }

    /// The last thing before an end: what came to a process on its way out, by signal, by another
    /// thread or by its own handler, is passed on (I4), as close to the end as can be.
    fn hear_out(&mut self) {
        self.hear_signals();
        let asked = self.remote.take();
        self.request(asked);
        self.take_requests();
    }

    fn hear_signals(&mut self) {
        for (request, signal) in self.signals.take() {
            log::info!("got message {}.", sys::signal_name(signal));
            match request {
                Request::Exit => self.feed(Event::ExitRequested),
                Request::Shutdown => self.feed(Event::ShutdownRequested),
                Request::Upgrade => self.feed(Event::UpgradeRequested),
                Request::User => {
                    self.guarded("signal", None, |server| {
                        server.handler.signal(&mut Context { shared: &mut server.shared }, signal);
                    });
                }
            }
        }
    }

    /// What handlers asked for since the last look.
    fn take_requests(&mut self) {
        let asked = std::mem::take(&mut self.shared.requests);
        self.request(asked);
    }

    fn request(&mut self, asked: Requests) {
        let Requests { upgrade, shutdown, exit } = asked;
        for (asked, event) in [
            (exit, Event::ExitRequested),
            (shutdown, Event::ShutdownRequested),
            (upgrade, Event::UpgradeRequested),
        ] {
            if asked {
                self.feed(event);
            }
        }
    }

    fn hear_spawn(&mut self) {
        let mut events = Vec::new();
        if let Some(successor) = &mut self.successor {
            successor.hear_spawn(&self.registry, &mut events);
        }
        self.settle_dying();
        self.feed_of_successor(events);
    }

    /// The readiness pipe first, then both handoff sockets, then who died: in the order in which
    /// the other side has done it.
    fn hear_handoff(&mut self, harvest: &Harvest) {
        let carried = std::mem::take(&mut self.handoff_left);
        let (mut events, mut acks, mut dead) = (Vec::new(), Vec::new(), false);
        let attempt = self.attempts;
        if let Some(successor) = &mut self.successor {
            if harvest.pipe {
                successor.read_pipe(&self.registry, self.shared.now, &mut events);
            }
            if harvest.successor || carried {
                self.handoff_left |= successor.read_socket(&self.registry, &mut events);
            }
            if harvest.successor_died {
                dead = successor.read_death(&self.registry, self.shared.now, &mut events);
            }
            acks = successor.take_acks();
        }
        let answered = !acks.is_empty();
        self.hear_acks(attempt, acks);
        if answered {
            let more = !self.in_flight.is_empty();
            self.feed(if more { Event::SessionsSent } else { Event::SessionsSettled });
        }
        self.feed_of_successor(events);
        if dead {
            self.take_back_sessions(attempt);
        }

        if harvest.predecessor || carried {
            self.handoff_left |= self.hear_predecessor();
        }
        if harvest.predecessor_died && self.predecessor.is_some() {
            // What it has said before it died is there, and comes first.
            // A child of it may have its socket, and may go on writing.
            for _ in 0..limits::LAST_WORDS {
                if !self.hear_predecessor() {
                    break;
                }
            }
            self.feed(Event::PredecessorGone);
        }
        if harvest.dying {
            self.settle_dying();
        }
    }

    /// What the predecessor has said, and the sessions that it has sent. Answers whether there may
    /// be more.
    fn hear_predecessor(&mut self) -> bool {
        let Some(predecessor) = &mut self.predecessor else { return false };
        let mut events = Vec::new();
        let expects = predecessor.expects;
        let more = predecessor.read(&mut events);
        if expects != predecessor.expects {
            // What accepting waits for may be free by that.
            self.listeners.room_made(self.shared.now);
        }
        for event in events {
            self.feed(event);
        }
        self.adopt_sessions();
        more
    }

    pub(super) fn settle_dying(&mut self) {
        let (registry, mut over, mut last) = (&self.registry, Vec::new(), Vec::new());
        self.dying.retain_mut(|dying| {
            let settled = dying.settle(registry);
            if settled {
                over.extend(dying.pid());
                last.push((dying.attempt(), dying.last_acks()));
            }
            !settled
        });
        for (attempt, acks) in last {
            self.hear_acks(attempt, acks);
            self.take_back_sessions(attempt);
        }
        let Some(pid_file) = &mut self.pid_file else { return };
        for pid in over {
            pid_file.forget_successor(&mut self.worker, pid);
        }
    }

    fn serve_sessions(&mut self, harvest: &Harvest) {
        // What was found before the listeners were paused in this very turn is the successor's (I3).
        let accepts = self.shared.machine.accepts();
        if accepts {
            self.serve_watched(&harvest.watched);
        }
        self.sessions.ring(self.shared.now);
        self.serve_lane(Lane::Light, limits::LIGHT_TIME);
        self.serve_lane(Lane::Heavy, limits::HEAVY_TIME);
        self.shared.sessions = self.sessions.len();
    }

    /// Serves those who stand in a queue, for about so long.
    fn serve_lane(&mut self, lane: Lane, time: Duration) {
        if self.sessions.queued_in(lane) == 0 {
            return;
        }
        self.pace.look();
        let begun = self.pace.last();
        let mut flushing = [(0, IoEvent::default()); limits::SESSIONS_PER_BATCH];
        let mut count = 0;
        // Who has more to do goes to the end of the queue, and has its turn in the next one.
        for _ in 0..self.sessions.queued_in(lane).min(limits::SESSION_EVENTS_PER_TURN) {
            let Some((token, session, event)) = self.sessions.next_in(lane) else { break };
            let mut cx = Context::of(&mut self.shared, token);
            let handler = &mut self.handler;
            let mut verdict = match caught(|| handler.event(&mut cx, session, event)) {
                Ok(verdict) => verdict,
                Err(payload) => {
                    self.note_panic("event", Some(token.index), payload);
                    continue;
                }
            };
            let took = self.note_slow("event");
            self.sessions.weigh(token.index, took);
            let defers = verdict == Verdict::Flush;
            if defers {
                flushing[count] = (token.index, event);
                count += 1;
                verdict = Verdict::Keep;
            }
            self.conclude(token.index, verdict, event);
            // Who does not defer may have taken its time, and the next one may do so, too.
            if !defers || count == flushing.len() {
                self.flush_sessions(&flushing[..count]);
                count = 0;
            }
            if self.pace.last() - begun >= time {
                break;
            }
        }
        self.flush_sessions(&flushing[..count]);
    }

    /// Whoever reads a socket of its own hears of it, and again if it was not read to the end.
    fn serve_watched(&mut self, watched: &[(Rc<str>, IoEvent)]) {
        let mut due = std::mem::take(&mut self.watched_again);
        for (name, event) in watched {
            match due.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => known.merge(*event),
                None => due.push((Rc::clone(name), *event)),
            }
        }
        for (name, event) in due {
            let verdict = self.guarded("watched", None, |server| {
                let mut cx = Context { shared: &mut server.shared };
                server.handler.watched(&mut cx, &name, event)
            });
            match verdict {
                Some(Verdict::Again | Verdict::Flush) => self.watched_again.push((name, event)),
                Some(Verdict::Close) => self.listeners.unwatch(&name, &self.registry),
                Some(Verdict::Keep) | None => {}
            }
        }
    }

    /// Lets them write what they have read.
    fn flush_sessions(&mut self, deferred: &[(u32, IoEvent)]) {
        for &(index, event) in deferred {
            let Some((token, session)) = self.sessions.get_mut(index) else { continue };
            let mut cx = Context::of(&mut self.shared, token);
            let handler = &mut self.handler;
            match caught(|| handler.flush(&mut cx, session)) {
                Ok(verdict) => self.conclude(index, verdict, event),
                Err(payload) => self.note_panic("flush", Some(index), payload),
            }
            self.note_slow("flush");
        }
    }

    /// Whether somebody may be let in: the machine says so, or this is the end and everybody who waits
    /// is let in first.
    fn can_accept(&self) -> bool {
        self.shared.machine.accepts() || self.listeners.is_draining()
    }

    fn accept(&mut self) {
        if !self.can_accept() {
            return;
        }
        self.accept_some();
        if self.listeners.is_drained() {
            self.listeners.end_draining(&self.registry);
        }
    }

    fn accept_some(&mut self) {
        self.listeners.poll_those_refused(&self.registry, self.shared.now);
        // What a predecessor's sessions need is kept for them (I8).
        let expects = self.predecessor.as_ref().map_or_else(Expect::default, |it| it.expects);
        let (to_come, sockets) = (expects.sessions as usize, expects.sockets as usize);
        let ceiling = self.room.ceiling(self.shared.now, sockets);
        let mut begun = None;
        for _ in 0..limits::ACCEPTS_PER_TURN {
            if begun.is_some_and(|at| self.pace.last() - at >= limits::ACCEPTING_TIME) {
                return;
            }
            if self.sessions.is_full(to_come) {
                self.listeners.pause_full(self.sessions.len(), to_come);
                return;
            }
            let Some((listener, mut stream, peer)) =
                self.listeners.accept(self.shared.now, ceiling)
            else {
                return;
            };
            let vacancy = self.sessions.vacancy();
            let token = vacancy.token();
            if let Err(error) = stream.register(&self.registry, token.pack()) {
                if let Some(more) = self.complaints.unregistered.line(self.shared.now) {
                    log::warn!(target: CLIENTS, "connection from [{peer}] closed: epoll_ctl: {error}{more}");
                }
                continue;
            }
            let mut cx = Context::of(&mut self.shared, token);
            let (handler, accepted) =
                (&mut self.handler, Accepted::new(listener, peer.clone(), stream));
            let opened = match caught(|| handler.open(&mut cx, accepted)) {
                Ok(opened) => opened,
                // The connection went with it.
                Err(payload) => {
                    self.note_panic("open", None, payload);
                    continue;
                }
            };
            self.note_slow("open");
            begun.get_or_insert(self.pace.last());
            match opened {
                Ok(session) => {
                    self.sessions.insert(vacancy, session);
                    self.conclude(token.index, Verdict::Keep, IoEvent::default());
                }
                Err(error) => {
                    self.shared.session = None;
                    // The client went away while it waited to be accepted.
                    let gone = error.kind() == io::ErrorKind::ConnectionReset;
                    if gone {
                        log::debug!(target: CLIENTS, "connection from [{peer}] is gone: {error}");
                    } else if let Some(more) = self.complaints.refused.line(self.shared.now) {
                        log::warn!(
                            target: CLIENTS,
                            "connection from [{peer}] refused by the handler: {error}{more}",
                        );
                    }
                }
            }
            self.shared.sessions = self.sessions.len();
        }
    }

    /// Whether a walk goes on only when the successor has answered.
    fn waits(&self, sweep: Sweep) -> bool {
        sweep.walk == Walk::Move && self.is_window_full()
    }

    /// Hands sessions over, tells them to drain, or closes them, as many as the budget allows.
    fn sweep_sessions(&mut self) {
        if self.next_sweep.is_some_and(|at| at <= self.shared.now) {
            self.next_sweep = None;
            self.sweep.get_or_insert(Sweep::new(self.moving));
            self.walks = self.walks.wrapping_add(1);
        }
        let Some(mut sweep) = self.sweep else { return };
        if sweep.walk == Walk::Move {
            let ended = self.move_sessions(&mut sweep);
            self.sweep = (!ended).then_some(sweep);
            if ended {
                self.next_sweep = Some(self.shared.now + limits::DRAIN_INTERVAL);
            }
            self.shared.sessions = self.sessions.len();
            return;
        }
        for _ in 0..limits::DRAINS_PER_TURN {
            let Some((token, _)) = self.sessions.next_from(sweep.next) else {
                self.sweep = None;
                self.next_sweep = Some(self.shared.now + limits::DRAIN_INTERVAL);
                self.shared.sessions = self.sessions.len();
                return;
            };
            sweep.next = token.index + 1;
            let verdict = match sweep.walk {
                Walk::Close => Verdict::Close,
                Walk::Drain | Walk::Move => self.ask_to_drain(token.index),
            };
            self.conclude(token.index, verdict, IoEvent::default());
        }
        self.sweep = Some(sweep);
        self.shared.sessions = self.sessions.len();
    }

    /// Asks a session to come to its end.
    pub(super) fn ask_to_drain(&mut self, index: u32) -> Verdict {
        let Some((token, session)) = self.sessions.get_mut(index) else { return Verdict::Keep };
        let (handler, mut cx) = (&mut self.handler, Context::of(&mut self.shared, token));
        let verdict = match caught(|| handler.drain(&mut cx, session)) {
            Ok(verdict) => verdict,
            Err(payload) => {
                self.note_panic("drain", Some(index), payload);
                Verdict::Keep
            }
        };
        self.note_slow("drain");
        verdict
    }

    /// Does with a session what its handler has said.
    pub(super) fn conclude(&mut self, index: u32, verdict: Verdict, event: IoEvent) {
        self.shared.session = None;
        if let Some(at) = self.shared.wake.take() {
            self.sessions.wake_at(index, at);
        }
        let attached = std::mem::take(&mut self.shared.attached);
        if attached != 0 {
            self.sessions.add_sources(index, attached);
        }
        match verdict {
            Verdict::Keep => {}
            Verdict::Again | Verdict::Flush => self.sessions.again(index, event),
            Verdict::Close => self.end_session(index),
        }
    }

    /// Drops a session, whose own code may be called by that.
    pub(super) fn end_session(&mut self, index: u32) {
        let session = self.sessions.end(index);
        if let Err(payload) = caught(|| drop(session)) {
            self.note_panic("drop", None, payload);
        }
    }

    fn expire_timers(&mut self) {
        // Mostly there is none, and then nothing else reads the clock.
        self.hear_pid_file();
        while let Some(timer) = self.timers.expire(self.shared.now) {
            if timer == Timer::Drain {
                self.hear_out();
            }
            self.feed(timer.event());
        }
    }

    fn free_slots(&mut self) {
        if self.sessions.free_ended() {
            self.listeners.room_made(self.shared.now);
        }
        let draining = matches!(self.state(), State::Draining(_));
        let gone = self.sessions.len() == 0
            && self.in_flight.is_empty()
            && self.sweep.is_none()
            && !self.listeners.is_draining();
        if draining && gone {
            self.hear_out();
            self.feed(Event::SessionsGone);
        }
    }
}

/// Sets a flag, and is true.
fn set(flag: &mut bool) -> bool {
    *flag = true;
    true
}
