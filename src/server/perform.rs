//! What the machine says is done here, and nothing is decided.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::{Pending, Server, Sweep, Walk};
use crate::error::Error;
use crate::fault::{self, Point};
use crate::handler::{Context, Handler};
use crate::limits;
use crate::machine::{Action, Drain, Event, State, Timer, Verdict};
use crate::pid_file::PidFile;
use crate::program;
use crate::report::{Cause, Failure, Report, Stage, Timings};
use crate::signals;
use crate::socket_file::Bound;
use crate::successor::{Plan, Successor};
use crate::wire::Message;

impl<H: Handler> Server<H> {
    /// Steps the machine and performs its actions; then what came of them, until nothing is left.
    pub(super) fn feed(&mut self, event: Event) {
        self.pending.push_back(Pending { event, attempt: None });
        self.step_pending();
    }

    /// The same for what the successor did or said.
    pub(super) fn feed_of_successor(&mut self, events: Vec<Event>) {
        let attempt = Some(self.attempts);
        self.pending.extend(events.into_iter().map(|event| Pending { event, attempt }));
        self.step_pending();
    }

    fn step_pending(&mut self) {
        while let Some(Pending { event, attempt }) = self.pending.pop_front() {
            if attempt.is_none_or(|attempt| attempt == self.attempts) {
                self.step(event);
            }
        }
    }

    /// The one place where the state changes, and where it is logged.
    fn step(&mut self, event: Event) {
        let before = self.shared.machine.state();
        let step = self.shared.machine.step(event);
        let after = step.machine.state();
        match step.verdict {
            Verdict::Moves if before.name() != after.name() => {
                log::info!("{} -> {}: {event}.", before.name(), after.name());
            }
            Verdict::Moves => log::debug!("{before} -> {after}: {event}."),
            Verdict::Stays if event == Event::UpgradeRequested => {
                log::info!("{event}, and carried out as soon as it can be.");
            }
            Verdict::Stays if event == Event::SessionsGone => {}
            Verdict::Stays => log::debug!("{before}: {event}."),
            Verdict::Ignored => log::debug!("{before}: {event}, which is ignored."),
            Verdict::Refused(refusal) => log::warn!("{event}, and refused: {refusal}."),
        }
        self.shared.machine = step.machine;
        self.note_cause(event, before);
        for action in step.actions {
            self.perform(*action, event);
        }
        if event == Event::PredecessorGone {
            self.part_from_predecessor();
        }
        if before != after && after == State::Exited {
            self.finish(before, event);
        }
    }

    /// What the event says of the successor, for the report.
    fn note_cause(&mut self, event: Event, before: State) {
        let Some(successor) = &mut self.successor else { return };
        let upgrading = before == State::Upgrading;
        let unserved = upgrading || before == State::Draining(Drain::Committed);
        match event {
            Event::SuccessorSilent if upgrading => {
                successor.blame(Cause::NotReady(self.config.upgrade_timeout));
            }
            Event::SuccessorSilent if unserved => {
                successor.blame(Cause::NotServing(self.config.takeover_timeout));
            }
            Event::SuccessorSilent => {
                successor.blame(Cause::NotAnswering(self.config.takeover_timeout));
            }
            Event::StatusTimedOut => successor.blame(Cause::HungUp),
            Event::ShutdownRequested | Event::ExitRequested if unserved => {
                successor.blame(Cause::ShuttingDown);
            }
            Event::TakeoverTimedOut
            | Event::Failed
            | Event::HandlerPanicked
            | Event::StoodStill
            | Event::GivenUp
            | Event::PauseOver
            | Event::ShutdownRequested
            | Event::ExitRequested
            | Event::SetUpDone
            | Event::UpgradeRequested
            | Event::SuccessorReady
            | Event::SuccessorServing
            | Event::SuccessorAnswered
            | Event::SuccessorWantsUpgrade
            | Event::SuccessorHungUp
            | Event::SuccessorLost
            | Event::SuccessorStopped
            | Event::Committed
            | Event::PidFileWritten
            | Event::PredecessorAsked
            | Event::PredecessorGone
            | Event::PredecessorSilent
            | Event::SessionsSent
            | Event::SessionsSettled
            | Event::SessionsGone
            | Event::UpgradeTimedOut
            | Event::ProbationOver
            | Event::DrainTimedOut
            | Event::DepartureTimedOut => {}
        }
    }

    fn perform(&mut self, action: Action, event: Event) {
        match action {
            Action::SpawnSuccessor => self.spawn_successor(),
            Action::LookOnce => self.look_once(),
            Action::CommitUpgrade => self.commit_upgrade(),
            Action::PassOnUpgrade => {
                if let Some(successor) = &mut self.successor {
                    successor.tell(Message::Upgrade);
                }
            }
            Action::AskSuccessor => {
                fault::at(Point::ProbationOver);
                if let Some(successor) = &mut self.successor {
                    successor.ask();
                }
                fault::at(Point::PingSent);
            }
            Action::KillSuccessor => self.kill_successor(),
            Action::ReportUpgrade => self.report_upgrade(),
            Action::DropWanted => {
                log::warn!("an upgrade was requested and is not carried out: {event}.");
            }
            Action::CloseUnclaimed => self.listeners.close_unclaimed(),
            Action::AnnounceReady => {
                fault::at(Point::SetUp);
                if let Some(predecessor) = &mut self.predecessor {
                    predecessor.announce_ready();
                }
                fault::at(Point::ReadySaid);
            }
            Action::TellServing => {
                fault::at(Point::PidFileWritten);
                self.tell_predecessor(Message::Serving);
                fault::at(Point::ServingSaid);
            }
            Action::TellWanted => self.tell_predecessor(Message::Upgrade),
            Action::TellStopping => self.tell_predecessor(Message::Stopping),
            Action::AnswerPredecessor => {
                self.tell_predecessor(Message::Pong);
                fault::at(Point::PongSaid);
            }
            Action::KillPredecessor => {
                if let Some(predecessor) = &self.predecessor {
                    predecessor.kill(self.stay_of_predecessor());
                }
            }
            Action::UnlinkUnclaimed => {
                let paths = self.listeners.take_abandoned();
                self.unlink(paths, Duration::ZERO);
            }
            // Nobody is served yet, and nobody will be if it cannot be written.
            Action::WritePidFile => {
                let written = self.pid_file.as_mut().map_or(Ok(()), PidFile::publish_first);
                if let Err(error) = written {
                    self.failure = Some(error);
                    self.pending.push_back(Pending { event: Event::Failed, attempt: None });
                }
            }
            Action::TakePidFile => self.take_pid_file(),
            Action::RestorePidFile => {
                if let Some(pid_file) = &mut self.pid_file {
                    pid_file.restore(&mut self.worker);
                }
            }
            Action::RemovePidFile => {
                if let Some(pid_file) = &mut self.pid_file {
                    pid_file.remove_own(&mut self.worker);
                }
            }
            Action::ResumeAccepting => {
                // Whoever accepts does not drain, and what has moved has ended with the successor.
                (self.sweep, self.next_sweep, self.moves) = (None, None, None);
                self.listeners.resume(&self.registry, self.shared.now);
                self.open_files_up();
            }
            Action::PauseAccepting => {
                fault::at(Point::ReadyHeard);
                self.listeners.pause(&self.registry);
                log::info!("quit the listening.");
            }
            Action::CloseListeners => {
                self.listeners.close(&self.registry);
                log::info!("stop listening.");
            }
            Action::RetireListeners => {
                let paths = self.listeners.take_paths();
                self.unlink(paths, limits::UNLINK_WAIT);
                self.listeners.close(&self.registry);
                log::info!("stop listening.");
            }
            Action::DrainListeners => {
                let paths = self.listeners.take_paths();
                self.unlink(paths, limits::UNLINK_WAIT);
                self.listeners.drain(&self.registry);
                if let Some(pid_file) = &mut self.pid_file {
                    pid_file.let_go(&mut self.worker);
                }
            }
            Action::DrainSessions => {
                self.moving = Walk::Drain;
                // Sessions that are being closed need not be told to drain.
                if self.sweep.is_none_or(|sweep| sweep.walk != Walk::Close) {
                    self.sweep = Some(Sweep::new(Walk::Drain));
                }
            }
            Action::MoveSessions => self.begin_to_move(),
            Action::CloseSessions => {
                if self.sessions.len() > 0 {
                    log::warn!("closing {} sessions: {event}.", self.sessions.len());
                    self.tell_of_closing();
                    self.sweep = Some(Sweep::new(Walk::Close));
                }
            }
            Action::ClosePanicked => {
                if let Some(index) = self.panicked.take() {
                    self.end_session(index);
                }
            }
            Action::RenewTimers => {
                let (now, stood_still) = (Instant::now(), self.stood_still);
                log::debug!("stood still for {stood_still:?}: every deadline begins again.");
                self.timers.renew(now, stood_still);
            }
            Action::Arm(timer) => {
                let duration = match timer {
                    Timer::Departure => self.stay_of_predecessor(),
                    Timer::Pause => self.failures.pause(Instant::now()),
                    Timer::Upgrade
                    | Timer::Takeover
                    | Timer::Status
                    | Timer::Probation
                    | Timer::Drain => self.config.duration(timer),
                };
                // From now on and not from the turn's beginning: this process may have stood still, and
                // the other one has its time all the same.
                self.timers.arm(timer, Instant::now(), duration);
            }
            Action::Disarm(timer) => self.timers.disarm(timer),
            Action::DisarmAll => self.timers.disarm_all(),
        }
    }

    fn spawn_successor(&mut self) {
        fault::at(Point::Spawn);
        self.attempts = self.attempts.wrapping_add(1);
        // From here the turn under way counts too.
        self.longest_turn = Duration::ZERO;
        let blocked = self.signals.to_block();
        let generation = self.shared.generation + 1;
        // A rollback must not need space on a disk that may be full by then. The answer also says that
        // this process's own writing is over, before another process can write.
        let spare = self.pid_file.as_mut().and_then(|file| file.keep_spare(&mut self.worker));
        let wait = disk_wait(self.config.upgrade_timeout);
        // What stays here, the successor does not need.
        let moves = self.handler.schemas().is_some();
        let staying = if moves { 0 } else { self.sessions.sockets() as u64 };
        let started = Successor::start(Plan {
            attempt: self.attempts,
            generation,
            command: &self.command,
            blocked,
            blocked_mask: signals::to_mask(&blocked),
            manifest: self.listeners.manifest(),
            registry: &self.registry,
            waker: self.remote.waker(),
            stay: self.config.longest_stay(),
            started: self.shared.now,
            before: Box::new(move || {
                check_room(staying)?;
                match spare.map(|answer| answer.recv_timeout(wait)) {
                    Some(Ok(result)) => result.map_err(Cause::PidFile)?,
                    Some(Err(RecvTimeoutError::Timeout)) => log::warn!(
                        "the spawn goes on without a spare of the pid file: the disk has not \
                         answered in {wait:?}",
                    ),
                    // The worker has panicked, which was told on standard error.
                    Some(Err(RecvTimeoutError::Disconnected)) | None => {}
                }
                Ok(())
            }),
        });
        match started {
            Ok(successor) => self.successor = Some(successor),
            Err(cause) => {
                self.obituary = Some(Report {
                    from: std::process::id(),
                    to: None,
                    generation,
                    program: self.program(),
                    outcome: Err(Failure { stage: Stage::Spawn, cause }),
                });
                self.lose_successor();
            }
        }
    }

    /// Nothing of it will tell: its loss is stepped when this step's actions are done.
    fn lose_successor(&mut self) {
        let attempt = Some(self.attempts);
        self.pending.push_back(Pending { event: Event::SuccessorLost, attempt });
    }

    /// What came together with the deadline wins.
    fn look_once(&mut self) {
        fault::at(Point::LastLook);
        let (mut events, mut attempt) = (Vec::new(), None);
        if let Some(successor) = &mut self.successor {
            attempt = Some(self.attempts);
            if !successor.look(&self.registry, self.shared.now, &mut events) {
                events.push(Event::SuccessorSilent);
            }
            // What it has said of sessions is heard in the next turn, which comes at once.
            self.handoff_left = true;
        } else if let Some(predecessor) = &mut self.predecessor {
            predecessor.read(&mut events);
            // Of a dying one the death is heard in a moment, and then this process is the owner.
            // Nobody is served here yet, so that nobody is kept waiting by the look.
            if !events.contains(&Event::Committed)
                && !events.contains(&Event::GivenUp)
                && !predecessor.is_dying(limits::STATUS_WAIT)
            {
                events.push(Event::PredecessorSilent);
            }
        }
        self.pending.extend(events.into_iter().map(|event| Pending { event, attempt }));
    }

    /// A COMMIT that does not reach the successor is no commit: nobody would accept.
    fn commit_upgrade(&mut self) {
        fault::at(Point::Paused);
        let to_come = self.sessions_to_come();
        if let Some(successor) = &mut self.successor {
            // Ahead of it, so that the successor keeps their places from its first accept on (I8).
            successor.expect(to_come.0, to_come.1);
            if !successor.commit() {
                successor.blame(Cause::NotListening);
                self.lose_successor();
            }
        }
        fault::at(Point::CommitSent);
    }

    /// What the predecessor said, and some time more, because its clock began a little later.
    fn stay_of_predecessor(&self) -> Duration {
        let said = self.predecessor.as_ref().map_or(Duration::MAX, |predecessor| predecessor.stay);
        said.saturating_add(self.config.takeover_timeout)
    }

    fn tell_predecessor(&mut self, message: Message) {
        if let Some(predecessor) = &mut self.predecessor {
            predecessor.tell(message);
        }
    }

    fn kill_successor(&mut self) {
        let report = self.draw_up_report(Successor::outcome);
        if let Some(successor) = self.successor.take() {
            self.obituary = report;
            self.dying.push(successor.kill(&self.registry));
            self.settle_dying();
        }
    }

    fn draw_up_report(
        &mut self,
        outcome: fn(&mut Successor, Instant, Duration) -> Result<Timings, Failure>,
    ) -> Option<Report> {
        let (now, longest_turn) = (Instant::now(), self.longest_turn_by_now());
        let program = self.program();
        let successor = self.successor.as_mut()?;
        Some(Report {
            from: std::process::id(),
            to: successor.pid(),
            generation: successor.generation,
            program,
            outcome: outcome(successor, now, longest_turn),
        })
    }

    /// What every successor executes.
    fn program(&self) -> PathBuf {
        OsStr::from_bytes(self.command.executable.as_bytes()).into()
    }

    fn report_upgrade(&mut self) {
        // One that was not killed has come to serve. If its death was heard of in the same turn, that
        // is the next report's.
        let served = |successor: &mut Successor, now, longest| Ok(successor.timings(now, longest));
        let report = self.obituary.take().or_else(|| self.draw_up_report(served));
        let Some(report) = report else { return };
        match &report.outcome {
            Ok(_) => log::info!("{report}."),
            Err(_) => {
                if let Some(pid_file) = &mut self.pid_file {
                    pid_file.discard_spare(&mut self.worker);
                }
                log::error!("{report}.");
            }
        }
        self.guarded("upgraded", None, |server| {
            server.handler.upgraded(&mut Context { shared: &mut server.shared }, &report);
        });
    }

    /// The worker writes it, because nobody would be served meanwhile.
    fn take_pid_file(&mut self) {
        fault::at(Point::Accepting);
        let wait = disk_wait(self.config.takeover_timeout);
        let worker = &mut self.worker;
        if !self.pid_file.as_mut().is_some_and(|pid_file| pid_file.take_over(worker, wait)) {
            // There is none, or nobody who could write it. Stepped when this step's actions are done.
            self.pending.push_back(Pending { event: Event::PidFileWritten, attempt: None });
        }
    }

    /// Hears what became of the worker's jobs. A takeover goes on when the pid file is written, and
    /// no later than at its deadline.
    pub(super) fn hear_pid_file(&mut self) {
        let now = self.shared.now;
        if self.pid_file.as_mut().is_some_and(|pid_file| pid_file.hear(now)) {
            self.feed(Event::PidFileWritten);
        }
    }

    /// At the end of the process, when nobody is served: waits until the worker has done what it was
    /// given, or its time is over.
    pub(super) fn part_from_worker(&mut self) {
        if let Some(pid_file) = &mut self.pid_file {
            pid_file.discard_spare(&mut self.worker);
        }
        self.worker.finish(disk_wait(self.config.takeover_timeout));
        if let Some(pid_file) = &mut self.pid_file {
            pid_file.hear(Instant::now());
        }
    }

    /// Has the worker unlink these paths, and waits for it as long as a turn may take: who connects to a
    /// path that is there still, while its socket is about to be closed, is reset.
    fn unlink(&mut self, paths: Vec<(Bound, Option<OwnedFd>)>, wait: Duration) {
        if paths.is_empty() {
            return;
        }
        let unlink = move || {
            for (path, open) in paths {
                path.unlink();
                drop(open);
            }
        };
        match self.worker.order(unlink) {
            // Later is no harm: at its end the process waits for the worker once more.
            Ok(done) => drop(done.recv_timeout(wait)),
            Err(error) => log::error!("start the thread that unlinks sockets: {error}"),
        }
    }

    /// Gives the files of Unix sockets their mode and owner. Nobody waits for that: the disk may hang.
    fn open_files_up(&mut self) {
        let files = self.listeners.files_to_open_up();
        if files.is_empty() {
            return;
        }
        let open_up = move || {
            for (path, access) in files {
                if let Err((step, error)) = access.apply(&path) {
                    let path = path.display();
                    log::warn!("{path}: {step}: {error}; mode and owner stay as they are");
                }
            }
        };
        if let Err(error) = self.worker.order(open_up) {
            log::error!("start the thread that gives sockets their mode: {error}");
        }
    }

    fn part_from_predecessor(&mut self) {
        if let Some(predecessor) = self.predecessor.take() {
            predecessor.deregister(&self.registry);
            // No more sessions come.
            self.listeners.room_made(self.shared.now);
            if let Some(pid_file) = &mut self.pid_file {
                // One that was killed could not take away what it kept for a rollback.
                pid_file.forget_predecessor(&mut self.worker, predecessor.pid);
            }
            self.tell_of_adopted();
            fault::at(Point::Alone);
            self.predecessor_watch.announce();
            self.guarded("predecessor_gone", None, |server| {
                let mut cx = Context { shared: &mut server.shared };
                server.handler.predecessor_gone(&mut cx);
            });
        }
    }

    /// Whether this is a turn that an upgrade may make longer than others.
    pub(super) fn turn_counts(&self) -> bool {
        match self.state() {
            State::Upgrading | State::Draining(Drain::Committed | Drain::Proven) => true,
            State::Running => self.predecessor.is_some(),
            State::Draining(Drain::Probation | Drain::Shutdown) | State::Exited => false,
        }
    }

    /// The turn under way included.
    pub(super) fn longest_turn_by_now(&self) -> Duration {
        self.longest_turn.max(self.shared.now.elapsed())
    }

    /// Sessions that have not come to their end are closed.
    fn tell_of_closing(&mut self) {
        let mut next = 0;
        while let Some((token, _)) = self.sessions.next_from(next) {
            next = token.index + 1;
            self.guarded("closing", None, |server| {
                if let Some((token, session)) = server.sessions.get_mut(token.index) {
                    server.handler.closing(&mut Context::of(&mut server.shared, token), session);
                }
            });
            self.shared.session = None;
        }
    }

    /// `Exited`: the listeners' last copies go, and the log says what ended.
    fn finish(&mut self, before: State, event: Event) {
        match event {
            Event::PredecessorSilent => {
                let deadline = self.config.takeover_timeout;
                self.failure = Some(Error::NotCommitted { deadline });
            }
            Event::GivenUp => self.failure = Some(Error::GivenUp),
            Event::HandlerPanicked => {
                self.failure.get_or_insert(Error::Panicked { method: self.panicked_in });
            }
            Event::SetUpDone
            | Event::UpgradeRequested
            | Event::ShutdownRequested
            | Event::ExitRequested
            | Event::SuccessorReady
            | Event::SuccessorServing
            | Event::SuccessorAnswered
            | Event::SuccessorWantsUpgrade
            | Event::SuccessorHungUp
            | Event::SuccessorLost
            | Event::SuccessorStopped
            | Event::SuccessorSilent
            | Event::Committed
            | Event::PidFileWritten
            | Event::PredecessorAsked
            | Event::PredecessorGone
            | Event::SessionsSent
            | Event::SessionsSettled
            | Event::SessionsGone
            | Event::Failed
            | Event::StoodStill
            | Event::UpgradeTimedOut
            | Event::TakeoverTimedOut
            | Event::StatusTimedOut
            | Event::ProbationOver
            | Event::DrainTimedOut
            | Event::DepartureTimedOut
            | Event::PauseOver => {}
        }
        self.listeners.end_draining(&self.registry);
        self.tell_of_moves();
        let last = match before {
            State::Draining(Drain::Committed | Drain::Probation | Drain::Proven) => {
                fault::at(Point::Leaving);
                self.listeners.close(&self.registry);
                log::info!("stop listening.");
                "finish the old process."
            }
            State::Draining(Drain::Shutdown)
            | State::Running
            | State::Upgrading
            | State::Exited => "finish the process.",
        };
        self.part_from_worker();
        log::info!("{last}");
    }

    /// Waits for killed successors, so that no zombie is left to somebody else.
    pub(super) fn bury(&mut self) {
        let deadline = Instant::now() + limits::REAP_WAIT;
        for mut dying in std::mem::take(&mut self.dying) {
            dying.settle_until(&self.registry, deadline);
            if let (Some(pid_file), Some(pid)) = (&mut self.pid_file, dying.pid()) {
                pid_file.forget_successor(&mut self.worker, pid);
            }
        }
    }
}

/// Whether a successor could have what this process has. Where that cannot be found out, the spawn
/// will tell.
///
/// `staying` are descriptors of sessions that do not move, and that it does not need.
fn check_room(staying: u64) -> Result<(), Cause> {
    match program::descriptors() {
        Ok((used, limit)) if used + limits::SPARE_DESCRIPTORS > limit.saturating_add(staying) => {
            Err(Cause::NoRoom { used, limit })
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// How long a disk is waited for where the whole may take no longer than `timeout`.
fn disk_wait(timeout: Duration) -> Duration {
    limits::DISK_WAIT.min(timeout / limits::DISK_SHARE)
}
