//! A turn of the upgrader: poll → signals → readiness pipe → handoff socket → whoever serves → timers.
//!
//! I/O comes before timers, so that a byte that came together with the deadline wins. Each stage
//! has a budget; what is left over is carried to the next turn, which does not wait then.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;

use super::Upgrader;
use super::pid_file::PidFile;
use super::predecessor::Predecessor;
use super::service::Service;
use super::successor::{Dying, Successor};
use crate::error::Error;
use crate::io_event::IoEvent;
use crate::limits;
use crate::machine::{Drain, Event, State, Timer};
use crate::signals::Request;
use crate::standing::Requests;
use crate::sys;
use crate::token::{Kind, Token};
use crate::user::User;

/// What a poll found, beside what whoever serves notes itself.
#[derive(Default, PartialEq)]
pub(super) struct Harvest {
    woken: bool,
    signals: bool,
    pipe: bool,
    successor: bool,
    successor_died: bool,
    dying: bool,
    predecessor: bool,
    predecessor_died: bool,
    stderr: bool,
    init_died: bool,
}

impl Harvest {
    /// Whether the poll has found nothing for the upgrader itself.
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Upgrader {
    /// The set-up is done: the first process serves, a successor says ready.
    pub(crate) fn set_up_done(&mut self, service: &mut dyn Service) {
        self.fate.started = true;
        self.announcer.set_up_done();
        // The set-up may have taken long; deadlines run from here.
        self.standing.now = Instant::now();
        match self.become_user() {
            Ok(()) => self.feed(Event::SetUpDone, service),
            Err(error) => {
                self.fate.failure = Some(error);
                self.feed(Event::Failed, service);
            }
        }
    }

    /// The last thing of the set-up, which is the last that needs root.
    fn become_user(&mut self) -> Result<(), Error> {
        let Some(user) = self.config.user.as_deref().map(User::find).transpose()? else {
            return Ok(());
        };
        let files = self.estate.files_to_open_up();
        self.disk.become_user(&user, self.before.process.is_none(), files)
    }

    /// One turn, for whoever serves. Answers where the process stands.
    pub(crate) fn turn_for(
        &mut self,
        timeout: Option<Duration>,
        service: &mut dyn Service,
    ) -> Result<State, Error> {
        // Somebody may have caught a panic that has left a step.
        self.steps.under_way = false;
        if self.state() != State::Exited {
            let harvest = self.harvest(timeout, service)?;
            service.begin_turn(self);
            self.notice_pause(service);
            if !harvest.is_empty() || self.rhythm.has_left_over() {
                self.hear_requests(&harvest, service);
                self.hear_handoff(&harvest, service);
                service.heard();
            }
            service.serve(self);
            self.take_requests(service);
            #[cfg(feature = "admin")]
            self.serve_admin(service);
            self.expire_timers(service);
            self.end_turn(service);
            self.say_again();
            self.announcer.end_turn(self.standing.now, service.sessions());
            if self.turn_counts() {
                self.rhythm.longest_turn = self.longest_turn_by_now();
            }
        }
        match (self.state(), self.fate.failure.take()) {
            (State::Exited, Some(error)) => {
                // Said again to the predecessor when this upgrader is dropped.
                self.fate.last_error = Some(error.to_string());
                Err(error)
            }
            (state, _) => Ok(state),
        }
    }

    /// When the next turn has to be, at the latest.
    pub(crate) fn deadline(&self, service: &dyn Service) -> Option<Instant> {
        if self.rhythm.handoff_left || self.standing.requests.any() {
            return Some(self.standing.now);
        }
        let deadlines = [
            service.next_deadline(self),
            self.timers.next_deadline(),
            self.heartbeat(),
            self.rhythm.outbox_retry,
            self.announcer.next_deadline(self.standing.now),
            self.rhythm.stderr_retry,
            self.disk.pid_file.as_ref().and_then(PidFile::next_deadline),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// While a deadline runs for the other process, the loop looks at the clock now and then: a pause of
    /// this process is to be told from sleep.
    fn heartbeat(&self) -> Option<Instant> {
        self.timers.judges().then(|| self.standing.now + limits::HEARTBEAT)
    }

    /// Who has stood still itself is no judge of who did not answer meanwhile.
    fn notice_pause(&mut self, service: &mut dyn Service) {
        let late =
            self.rhythm.asleep_until.map(|at| self.standing.now.saturating_duration_since(at));
        if let Some(late) = late.filter(|late| *late >= limits::STOOD_STILL) {
            if self.timers.judges() {
                self.rhythm.stood_still = late;
                self.feed(Event::StoodStill, service);
            }
        }
    }

    /// Sends what the application says to the other process. Answers whether something still waits.
    pub(super) fn flush_post(&mut self) -> bool {
        let post = &mut self.standing.post;
        if post.is_empty() {
            return false;
        }
        match (&self.succession.current, &self.before.process) {
            (Some(successor), _) => successor.flush_post(post),
            (None, Some(predecessor)) => predecessor.flush_post(post),
            (None, None) => false,
        }
    }

    /// Words that did not fit into a socket.
    fn say_again(&mut self) {
        let successor = self.succession.current.as_mut();
        let mut waits = successor.is_some_and(|it| it.has_said_hello() && it.flush());
        waits |= self.before.process.as_mut().is_some_and(Predecessor::flush);
        waits |= self.flush_post();
        self.rhythm.outbox_retry = waits.then(|| self.standing.now + limits::OUTBOX_RETRY);
    }

    fn harvest(
        &mut self,
        timeout: Option<Duration>,
        service: &mut dyn Service,
    ) -> Result<Harvest, Error> {
        let deadline = self.deadline(service);
        // A deadline that has passed needs no look at the clock.
        let wait = deadline.map(|at| match at <= self.standing.now {
            true => Duration::ZERO,
            false => at.saturating_duration_since(Instant::now()),
        });
        let timeout = match (timeout, wait) {
            (Some(timeout), Some(wait)) => Some(timeout.min(wait)),
            (timeout, wait) => timeout.or(wait),
        };
        // By its own deadlines, and not by those of a loop that turns when it likes.
        self.rhythm.asleep_until = deadline.map(|at| at.max(self.standing.now));
        match self.kernel.poll.poll(&mut self.kernel.events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::System { operation: "poll", source }),
        }
        self.standing.now = Instant::now();

        let mut harvest = Harvest::default();
        for event in &self.kernel.events {
            let Some(token) = Token::unpack(event.token()) else {
                self.rhythm.stale_events += 1;
                continue;
            };
            let io_event = IoEvent::from_mio(event, token.source);
            let ours =
                || self.succession.current.as_ref().is_some_and(|successor| successor.owns(token));
            let lively = match token.kind {
                Kind::Session | Kind::Listener | Kind::Owned => service.note(token, io_event),
                Kind::Signals => set(&mut harvest.signals),
                Kind::Waker => set(&mut harvest.woken),
                Kind::ReadinessPipe => ours() && set(&mut harvest.pipe),
                Kind::Successor => ours() && set(&mut harvest.successor),
                Kind::SuccessorProcess if ours() => set(&mut harvest.successor_died),
                Kind::SuccessorProcess => set(&mut harvest.dying),
                Kind::Predecessor => self.before.process.is_some() && set(&mut harvest.predecessor),
                Kind::SuccessorStderr => ours() && set(&mut harvest.stderr),
                Kind::Admin | Kind::AdminClient => self.announcer.note(token),
                Kind::InitProcess => set(&mut harvest.init_died),
                Kind::PredecessorProcess => {
                    self.before.process.is_some() && set(&mut harvest.predecessor_died)
                }
            };
            self.rhythm.stale_events += u64::from(!lively);
        }
        Ok(harvest)
    }

    /// Whoever has started the init starts another one, with a server of its own: this one must not stay beside it.
    fn mourn_init(&mut self, service: &mut dyn Service) {
        let Some((init, process)) = self.fate.init.take() else { return };
        // It was registered, and is open.
        let _ = self.standing.registry.deregister(&mut SourceFd(&process.as_raw_fd()));
        log::error!("the init, process {init}, is dead: this service comes to its end.");
        self.feed(Event::ShutdownRequested, service);
    }

    /// Signals, and what other threads ask for.
    fn hear_requests(&mut self, harvest: &Harvest, service: &mut dyn Service) {
        if harvest.signals {
            self.hear_signals(service);
        }
        if harvest.init_died {
            self.mourn_init(service);
        }
        if harvest.woken {
            let asked = self.remote.take();
            self.request(asked, service);
            let reached = self.remote.take_reached();
            service.reached(self, reached);
            self.hear_spawn(service);
            self.hear_pid_file(service);
        }
    }

    /// The last thing before an end: what came to a process on its way out, by signal, by another
    /// thread or by its own handler, is passed on (I4), as close to the end as can be.
    fn hear_out(&mut self, service: &mut dyn Service) {
        self.hear_signals(service);
        let asked = self.remote.take();
        self.request(asked, service);
        self.take_requests(service);
    }

    fn hear_signals(&mut self, service: &mut dyn Service) {
        for (request, signal) in self.signals.take() {
            log::info!("got message {}.", sys::signal_name(signal));
            match request {
                Request::Exit => self.feed(Event::ExitRequested, service),
                Request::Shutdown => self.feed(Event::ShutdownRequested, service),
                Request::Upgrade => self.feed(Event::UpgradeRequested, service),
                Request::User => service.signal(self, signal),
            }
        }
    }

    /// What handlers asked for since the last look.
    fn take_requests(&mut self, service: &mut dyn Service) {
        let asked = std::mem::take(&mut self.standing.requests);
        self.request(asked, service);
    }

    fn request(&mut self, asked: Requests, service: &mut dyn Service) {
        let Requests { upgrade, shutdown, exit, wake } = asked;
        if wake {
            service.woken(self);
        }
        for (asked, event) in [
            (exit, Event::ExitRequested),
            (shutdown, Event::ShutdownRequested),
            (upgrade, Event::UpgradeRequested),
        ] {
            if asked {
                self.feed(event, service);
            }
        }
    }

    fn hear_spawn(&mut self, service: &mut dyn Service) {
        let mut events = Vec::new();
        if let Some(successor) = &mut self.succession.current {
            successor.hear_spawn(&self.standing.registry, &mut events);
        }
        self.settle_dying(service);
        self.feed_of_successor(events, service);
    }

    /// The readiness pipe first, then both handoff sockets, then who died: in the order in which
    /// the other side has done it.
    fn hear_handoff(&mut self, harvest: &Harvest, service: &mut dyn Service) {
        let carried = std::mem::take(&mut self.rhythm.handoff_left);
        let (mut events, mut acks, mut told) = (Vec::new(), Vec::new(), Vec::new());
        let mut dead = false;
        let attempt = self.succession.attempts;
        let stderr_again =
            self.rhythm.stderr_retry.take_if(|at| *at <= self.standing.now).is_some();
        if let Some(successor) = &mut self.succession.current {
            // What it has written before it said ready stands before what this process says of that.
            if harvest.stderr || stderr_again {
                self.rhythm.stderr_retry = successor.read_stderr(self.standing.now);
            }
            if harvest.pipe {
                successor.read_pipe(&self.standing.registry, self.standing.now, &mut events);
            }
            if harvest.successor || carried {
                self.rhythm.handoff_left |=
                    successor.read_socket(&self.standing.registry, &mut events);
            }
            if harvest.successor_died {
                dead =
                    successor.read_death(&self.standing.registry, self.standing.now, &mut events);
            }
            (acks, told) = (successor.take_acks(), successor.take_told());
        }
        if !told.is_empty() {
            service.told(self, told);
        }
        let answered = !acks.is_empty();
        if answered {
            service.acknowledged(self, attempt, acks);
            let more = service.is_sending();
            self.feed(if more { Event::SessionsSent } else { Event::SessionsSettled }, service);
        }
        self.feed_of_successor(events, service);
        if dead {
            service.successor_dead(self, attempt);
            // In a shutdown nothing is rolled back, and nobody else says that it is gone.
            if self.succession.current.is_some() && self.standing.post.is_open() {
                self.standing.post.close();
                service.successor_gone(self);
            }
        }

        if harvest.predecessor || carried {
            self.rhythm.handoff_left |= self.hear_predecessor(service);
        }
        if harvest.predecessor_died && self.before.process.is_some() {
            // What it has said before it died is there, and comes first.
            // A child of it may have its socket, and may go on writing.
            for _ in 0..limits::LAST_WORDS {
                if !self.hear_predecessor(service) {
                    break;
                }
            }
            self.feed(Event::PredecessorGone, service);
        }
        if harvest.dying {
            self.settle_dying(service);
        }
    }

    /// What the predecessor has said, and the sessions that it has sent. Answers whether there may
    /// be more.
    fn hear_predecessor(&mut self, service: &mut dyn Service) -> bool {
        let Some(predecessor) = &mut self.before.process else { return false };
        // What comes behind sessions is heard when they are here.
        if service.is_adopting() {
            service.arrived(self, Vec::new());
            return true;
        }
        let mut events = Vec::new();
        let expects = predecessor.expects;
        let more = predecessor.read(&mut events);
        let (news, arrived) = (expects != predecessor.expects, predecessor.take_arrived());
        let told = predecessor.take_told();
        if news {
            // What accepting waits for may be free by that.
            service.fewer_to_come(self);
        }
        // COMMIT comes before what was said after it, and the end of the socket is behind everything.
        let (ends, others): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|event| *event == Event::PredecessorGone);
        others.into_iter().for_each(|event| self.feed(event, service));
        if !told.is_empty() {
            service.told(self, told);
        }
        service.arrived(self, arrived);
        ends.into_iter().for_each(|event| self.feed(event, service));
        more
    }

    pub(super) fn settle_dying(&mut self, service: &mut dyn Service) {
        let (registry, mut over, mut last) = (&self.standing.registry, Vec::new(), Vec::new());
        self.succession.dying.retain_mut(|dying| {
            let settled = dying.settle(registry);
            if settled {
                over.extend(dying.pid());
                last.push((dying.attempt(), dying.was_committed_to(), dying.last_words()));
            }
            !settled
        });
        for (attempt, was_committed_to, (acks, told)) in last {
            if !told.is_empty() {
                service.told(self, told);
            }
            service.acknowledged(self, attempt, acks);
            service.successor_dead(self, attempt);
            if was_committed_to {
                service.successor_gone(self);
            }
        }
        let Some(pid_file) = &mut self.disk.pid_file else { return };
        for pid in over {
            pid_file.forget_successor(&mut self.disk.worker, pid);
        }
    }

    fn expire_timers(&mut self, service: &mut dyn Service) {
        // Mostly there is none, and then nothing else reads the clock.
        self.hear_pid_file(service);
        while let Some(timer) = self.timers.expire(self.standing.now) {
            if timer == Timer::Drain {
                if !self.has_taken_leave() {
                    self.timers.arm(timer, self.standing.now, limits::BARRIER_LOOK);
                    break;
                }
                self.hear_out(service);
            }
            // One that has served may still have something to say, which the next one has to know.
            if timer == Timer::Pause && self.succession.dying.iter().any(Dying::was_committed_to) {
                self.timers.arm(timer, self.standing.now, limits::PAUSE_LEAST);
                break;
            }
            self.feed(timer.event(), service);
        }
    }

    fn end_turn(&mut self, service: &mut dyn Service) {
        // What was said is to be with the other process before this one ends.
        let gone = service.end_turn(self);
        let drained = gone && matches!(self.state(), State::Draining(_));
        if drained && !self.flush_post() && self.has_taken_leave() {
            self.hear_out(service);
            // If it was told to stop only now, nobody knows yet that it leaves.
            if self.has_taken_leave() {
                self.feed(Event::SessionsGone, service);
            }
        }
    }

    /// Whether this process may leave: if a successor serves in its place, a service manager is to know of
    /// that, or it would take the end of this one for the end of the service.
    fn has_taken_leave(&mut self) -> bool {
        if !matches!(self.state(), State::Draining(Drain::Proven | Drain::Shutdown)) {
            return true;
        }
        let successor = self.succession.current.as_ref().and_then(Successor::pid);
        let now = self.standing.now;
        successor.is_none_or(|successor| self.announcer.has_taken_leave(successor, now))
    }

    /// Whether this is a turn that an upgrade may make longer than others.
    fn turn_counts(&self) -> bool {
        match self.state() {
            State::Upgrading | State::Draining(Drain::Committed | Drain::Proven) => true,
            State::Running => self.before.process.is_some(),
            State::Draining(Drain::Probation | Drain::Shutdown) | State::Exited => false,
        }
    }

    /// The turn under way included.
    pub(crate) fn longest_turn_by_now(&self) -> Duration {
        self.rhythm.longest_turn.max(self.standing.now.elapsed())
    }
}

/// Sets a flag, and is true.
fn set(flag: &mut bool) -> bool {
    *flag = true;
    true
}
