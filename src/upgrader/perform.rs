//! What the machine says is done here, and nothing is decided.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::announcer::Change;
use super::pid_file::PidFile;
use super::service::Service;
use super::successor::{Plan, Successor};
use super::{End, Pending, Upgrader};
use crate::error::Error;
use crate::fault::{self, Point};
use crate::handed_over::HandedOver;
use crate::limits;
use crate::machine::{Action, Drain, Event, Outcome, State, Timer};
use crate::program;
use crate::report::{Cause, Failure, Report, Stage, Timings};
use crate::signals;
use crate::wire::Message;

impl Upgrader {
    /// Steps the machine and performs its actions; then what came of them, until nothing is left.
    ///
    /// Whoever feeds it while a step's actions are performed is heard after the last of them.
    pub(crate) fn feed(&mut self, event: Event, service: &mut dyn Service) {
        self.steps.pending.push_back(Pending { event, attempt: None });
        self.step_pending(service);
    }

    /// The same for what the successor did or said.
    pub(super) fn feed_of_successor(&mut self, events: Vec<Event>, service: &mut dyn Service) {
        let attempt = Some(self.succession.attempts);
        self.steps.pending.extend(events.into_iter().map(|event| Pending { event, attempt }));
        self.step_pending(service);
    }

    fn step_pending(&mut self, service: &mut dyn Service) {
        if std::mem::replace(&mut self.steps.under_way, true) {
            return;
        }
        while let Some(Pending { event, attempt }) = self.steps.pending.pop_front() {
            if attempt.is_none_or(|attempt| attempt == self.succession.attempts) {
                self.step(event, service);
            }
        }
        self.steps.under_way = false;
    }

    /// The one place where the state changes, and where it is logged.
    fn step(&mut self, event: Event, service: &mut dyn Service) {
        let before = self.standing.machine.state();
        let step = self.standing.machine.step(event);
        let after = step.machine.state();
        match step.outcome {
            Outcome::Moves if before.name() != after.name() => {
                log::info!("{} -> {}: {event}.", before.name(), after.name());
            }
            Outcome::Moves => log::debug!("{before} -> {after}: {event}."),
            Outcome::Stays if event == Event::UpgradeRequested => {
                log::info!("{event}, and carried out as soon as it can be.");
            }
            Outcome::Stays if event == Event::SessionsGone => {}
            Outcome::Stays => log::debug!("{before}: {event}."),
            Outcome::Ignored => log::debug!("{before}: {event}, which is ignored."),
            Outcome::Refused(refusal) => {
                log::warn!("{event}, and refused: {refusal}.");
                self.remote.refuse(event);
                if event == Event::UpgradeRequested {
                    self.announcer.refused(refusal, self.standing.now);
                }
            }
        }
        self.standing.machine = step.machine;
        self.note_cause(event, before);
        for action in step.actions {
            self.perform(*action, event, service);
        }
        if event == Event::PredecessorGone {
            self.part_from_predecessor(service);
        }
        let change = self.change(before, event, service);
        self.announcer.stepped(&change);
        #[cfg(feature = "admin")]
        self.poll_admin();
        if before != after && after == State::Exited {
            self.finish(before, event, service);
        }
    }

    /// A step, for those who want to hear of it.
    fn change(&self, before: State, event: Event, service: &dyn Service) -> Change {
        Change {
            before,
            after: self.state(),
            event,
            generation: self.standing.generation,
            accepts: self.standing.machine.accepts(),
            sessions: service.sessions(),
            now: self.standing.now,
            predecessor: self.before.process.as_ref().map(|predecessor| predecessor.pid),
            successor: self.succession.current.as_ref().and_then(Successor::pid),
            is_check: self.succession.is_check,
        }
    }

    /// What the event says of the successor, for the report.
    fn note_cause(&mut self, event: Event, before: State) {
        let Some(successor) = &mut self.succession.current else { return };
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

    fn perform(&mut self, action: Action, event: Event, service: &mut dyn Service) {
        match action {
            Action::SpawnSuccessor => self.spawn_successor(service),
            Action::LookOnce => self.look_once(),
            Action::CommitUpgrade => self.commit_upgrade(service),
            Action::PassOnUpgrade => {
                if let Some(successor) = &mut self.succession.current {
                    successor.tell(Message::Upgrade);
                }
            }
            Action::AskSuccessor => {
                fault::at(Point::ProbationOver);
                if let Some(successor) = &mut self.succession.current {
                    successor.ask();
                }
                fault::at(Point::PingSent);
            }
            Action::KillSuccessor => self.kill_successor(service),
            Action::ReportUpgrade => self.report_upgrade(service),
            Action::DropWanted => {
                log::warn!("an upgrade was requested and is not carried out: {event}.");
            }
            Action::CloseUnclaimed => self.estate.close_unclaimed(),
            Action::AnnounceReady => {
                fault::at(Point::SetUp);
                if let Some(predecessor) = &mut self.before.process {
                    // What is written at COMMIT does not wait for a thread to start.
                    if let Some(pid_file) = &self.disk.pid_file {
                        pid_file.expect_calls(&mut self.disk.worker);
                    }
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
                if let Some(predecessor) = &self.before.process {
                    predecessor.kill(self.stay_of_predecessor());
                }
            }
            Action::UnlinkUnclaimed => {
                let paths = self.estate.take_abandoned();
                self.disk.unlink(paths, Duration::ZERO);
            }
            // Nobody is served yet, and nobody will be if it cannot be written.
            Action::WritePidFile => {
                let written = self.disk.pid_file.as_mut().map_or(Ok(()), PidFile::publish_first);
                if let Err(error) = written {
                    self.fate.failure = Some(error);
                    self.steps.pending.push_back(Pending { event: Event::Failed, attempt: None });
                }
            }
            Action::TakePidFile => self.take_pid_file(),
            Action::RestorePidFile => {
                if let Some(pid_file) = &mut self.disk.pid_file {
                    pid_file.restore(&mut self.disk.worker);
                }
            }
            Action::RemovePidFile => {
                if let Some(pid_file) = &mut self.disk.pid_file {
                    pid_file.remove_own(&mut self.disk.worker);
                }
            }
            Action::ResumeAccepting => {
                self.begin_to_serve(service);
                service.resume(self);
                self.disk.open_files_up(self.estate.files_to_open_up());
            }
            Action::PauseAccepting => {
                fault::at(Point::ReadyHeard);
                service.pause(self);
                log::info!("quit the listening.");
            }
            Action::CloseListeners => self.close_listeners(service),
            Action::RetireListeners => {
                let paths = self.estate.take_paths();
                self.disk.unlink(paths, limits::UNLINK_WAIT);
                self.close_listeners(service);
            }
            Action::DrainListeners => {
                let paths = self.estate.take_paths();
                self.disk.unlink(paths, limits::UNLINK_WAIT);
                if !service.let_last_in(self) {
                    self.close_listeners(service);
                }
                if let Some(pid_file) = &mut self.disk.pid_file {
                    pid_file.let_go(&mut self.disk.worker);
                }
            }
            Action::DrainSessions => service.drain(self),
            Action::MoveSessions => service.hand_over(self),
            Action::CloseSessions => service.cut(self, event),
            Action::ClosePanicked => service.cut_panicked(self),
            Action::RenewTimers => {
                let (now, stood_still) = (Instant::now(), self.rhythm.stood_still);
                log::debug!("stood still for {stood_still:?}: every deadline begins again.");
                self.timers.renew(now, stood_still);
            }
            Action::Arm(timer) => {
                let duration = match timer {
                    Timer::Departure => self.stay_of_predecessor(),
                    Timer::Pause if self.succession.is_check => limits::PAUSE_LEAST,
                    Timer::Pause => self.succession.failures.pause(Instant::now()),
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

    fn spawn_successor(&mut self, service: &mut dyn Service) {
        fault::at(Point::Spawn);
        self.succession.attempts = self.succession.attempts.wrapping_add(1);
        // From here the turn under way counts too.
        self.rhythm.longest_turn = Duration::ZERO;
        self.succession.is_check = std::mem::take(&mut self.succession.checks_next);
        let blocked = self.signals.to_block();
        let generation = self.standing.generation + 1;
        // A rollback must not need space on a disk that may be full by then. The answer also says that
        // this process's own writing is over, before another process can write.
        let spare =
            self.disk.pid_file.as_mut().and_then(|file| file.keep_spare(&mut self.disk.worker));
        let wait = disk_wait(self.config.upgrade_timeout);
        // What stays here, the successor does not need.
        let staying = service.staying();
        let started = Successor::start(Plan {
            attempt: self.succession.attempts,
            generation,
            command: &self.succession.command,
            blocked,
            blocked_mask: signals::to_mask(&blocked),
            manifest: self.estate.manifest(),
            registry: &self.standing.registry,
            waker: self.remote.waker(),
            stay: self.config.longest_stay(),
            started: self.standing.now,
            is_check: self.succession.is_check,
            listens: self.succession.listens,
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
            Ok(successor) => self.succession.current = Some(successor),
            Err(cause) => {
                self.succession.obituary = Some(Report {
                    from: std::process::id(),
                    to: None,
                    generation,
                    program: self.program(),
                    last_words: String::new(),
                    outcome: Err(Failure { stage: Stage::Spawn, cause }),
                });
                self.lose_successor();
            }
        }
    }

    /// Nothing of it will tell: its loss is stepped when this step's actions are done.
    fn lose_successor(&mut self) {
        let attempt = Some(self.succession.attempts);
        self.steps.pending.push_back(Pending { event: Event::SuccessorLost, attempt });
    }

    /// What came together with the deadline wins.
    fn look_once(&mut self) {
        fault::at(Point::LastLook);
        let (mut events, mut attempt) = (Vec::new(), None);
        if let Some(successor) = &mut self.succession.current {
            attempt = Some(self.succession.attempts);
            if !successor.look(&self.standing.registry, self.standing.now, &mut events) {
                events.push(Event::SuccessorSilent);
            }
            // What it has said of sessions is heard in the next turn, which comes at once.
            self.rhythm.handoff_left = true;
        } else if let Some(predecessor) = &mut self.before.process {
            predecessor.read(&mut events);
            // What its application has said is heard in the next turn, which comes at once.
            self.rhythm.handoff_left = true;
            // Of a dying one the death is heard in a moment, and then this process is the owner.
            // Nobody is served here yet, so that nobody is kept waiting by the look.
            if !events.contains(&Event::Committed)
                && !events.contains(&Event::GivenUp)
                && !predecessor.is_dying(limits::STATUS_WAIT)
            {
                events.push(Event::PredecessorSilent);
            }
        }
        self.steps.pending.extend(events.into_iter().map(|event| Pending { event, attempt }));
    }

    /// A COMMIT that does not reach the successor is no commit: nobody would accept.
    fn commit_upgrade(&mut self, service: &mut dyn Service) {
        fault::at(Point::Paused);
        let to_come = service.to_come(self);
        if let Some(successor) = &mut self.succession.current {
            // Ahead of it, so that the successor keeps their places from its first accept on (I8).
            successor.expect(to_come.0, to_come.1);
        }
        let handed_over = self.hand_state_over(service);
        if let Some(successor) = &mut self.succession.current {
            let cause = match handed_over {
                Ok(()) if successor.commit() => None,
                Ok(()) => Some(Cause::NotListening),
                Err(error) => Some(Cause::NotHandedOver(error)),
            };
            match cause {
                Some(cause) => {
                    successor.blame(cause);
                    self.lose_successor();
                }
                None if successor.hears_applications() => self.standing.post.open(),
                None => {}
            }
        }
        fault::at(Point::CommitSent);
    }

    /// The application's own state goes ahead of the commit.
    fn hand_state_over(&mut self, service: &mut dyn Service) -> io::Result<()> {
        let Some(successor) = &self.succession.current else { return Ok(()) };
        if !successor.hears_applications() {
            return Ok(());
        }
        let Some(reads) = self.common_schemas() else { return Ok(()) };
        let Some(state) = service.state(self, reads)? else { return Ok(()) };
        match &mut self.succession.current {
            Some(successor) => successor.give(state),
            None => Ok(()),
        }
    }

    /// What the predecessor's application has handed over comes before the first client.
    fn begin_to_serve(&mut self, service: &mut dyn Service) {
        if let Some(stderr) = self.before.stderr.take() {
            stderr.take_back();
        }
        let Some(predecessor) = &mut self.before.process else { return };
        if predecessor.hears_applications() {
            self.standing.post.open();
        }
        let Some((schema, descriptors)) = predecessor.take_state() else { return };
        let taken = HandedOver::from_descriptors(schema, descriptors)
            .and_then(|state| service.take_state(self, state));
        if let Err(source) = taken {
            self.fate.failure = Some(Error::TakeOver { source });
            self.steps.pending.push_back(Pending { event: Event::Failed, attempt: None });
        }
    }

    /// What the predecessor said, and some time more, because its clock began a little later.
    fn stay_of_predecessor(&self) -> Duration {
        let said =
            self.before.process.as_ref().map_or(Duration::MAX, |predecessor| predecessor.stay);
        said.saturating_add(self.config.takeover_timeout)
    }

    fn tell_predecessor(&mut self, message: Message) {
        if let Some(predecessor) = &mut self.before.process {
            predecessor.tell(message);
        }
    }

    fn kill_successor(&mut self, service: &mut dyn Service) {
        let report = self.draw_up_report(Successor::outcome);
        if let Some(successor) = self.succession.current.take() {
            self.succession.obituary = report;
            self.succession.dying.push(successor.kill(&self.standing.registry));
            self.standing.post.close();
            self.settle_dying(service);
        }
    }

    fn draw_up_report(
        &mut self,
        outcome: fn(&mut Successor, Instant, Duration) -> Result<Timings, Failure>,
    ) -> Option<Report> {
        let (now, longest_turn) = (Instant::now(), self.longest_turn_by_now());
        let program = self.program();
        let successor = self.succession.current.as_mut()?;
        let outcome = outcome(successor, now, longest_turn);
        let last_words = match &outcome {
            Ok(_) => String::new(),
            Err(_) => successor.last_words(),
        };
        Some(Report {
            from: std::process::id(),
            to: successor.pid(),
            generation: successor.generation,
            program,
            last_words,
            outcome,
        })
    }

    /// What every successor executes.
    fn program(&self) -> PathBuf {
        OsStr::from_bytes(self.succession.command.executable.as_bytes()).into()
    }

    fn report_upgrade(&mut self, service: &mut dyn Service) {
        // One that was not killed has come to serve. If its death was heard of in the same turn, that
        // is the next report's.
        let served = |successor: &mut Successor, now, longest| Ok(successor.timings(now, longest));
        let report = self.succession.obituary.take().or_else(|| self.draw_up_report(served));
        let Some(report) = report.map(Arc::new) else { return };
        match &report.outcome {
            Ok(_) => log::info!("{report}."),
            Err(Failure { cause: Cause::Checked(_), .. }) => log::info!("{report}."),
            Err(_) => {
                if let Some(pid_file) = &mut self.disk.pid_file {
                    pid_file.discard_spare(&mut self.disk.worker);
                }
                log::error!("{report}.");
            }
        }
        self.standing.ledger.keep_report(&report.to_string());
        if let Err(Failure { cause: Cause::KeepsStderr, .. }) = report.outcome {
            self.succession.listens = false;
            self.succession.checks_next = self.succession.is_check;
            self.standing.requests.upgrade = true;
            return;
        }
        self.announcer.reported(&report, self.succession.is_check, self.standing.now);
        // Nobody has asked for an upgrade.
        if self.succession.is_check {
            return;
        }
        self.remote.announce(&report);
        service.upgraded(self, &report);
    }

    /// On a disk the worker writes it, because nobody would be served meanwhile.
    fn take_pid_file(&mut self) {
        fault::at(Point::Accepting);
        let wait = disk_wait(self.config.takeover_timeout);
        let worker = &mut self.disk.worker;
        if !self.disk.pid_file.as_mut().is_some_and(|pid_file| pid_file.take_over(worker, wait)) {
            // There is none, or nobody who could write it. Stepped when this step's actions are done.
            self.steps.pending.push_back(Pending { event: Event::PidFileWritten, attempt: None });
        }
    }

    /// Hears what became of the worker's jobs. A takeover goes on when the pid file is written, and
    /// no later than at its deadline.
    pub(super) fn hear_pid_file(&mut self, service: &mut dyn Service) {
        let now = self.standing.now;
        if self.disk.pid_file.as_mut().is_some_and(|pid_file| pid_file.hear(now)) {
            self.feed(Event::PidFileWritten, service);
        }
    }

    fn part_from_predecessor(&mut self, service: &mut dyn Service) {
        if let Some(predecessor) = self.before.process.take() {
            predecessor.deregister(&self.standing.registry);
            // No more sessions come.
            service.fewer_to_come(self);
            if let Some(pid_file) = &mut self.disk.pid_file {
                // One that was killed could not take away what it kept for a rollback.
                pid_file.forget_predecessor(&mut self.disk.worker, predecessor.pid);
            }
            fault::at(Point::Alone);
            self.standing.post.close();
            self.before.watch.announce();
            service.predecessor_gone(self);
        }
    }

    /// The listeners' last copies here go.
    pub(crate) fn close_listeners(&mut self, service: &mut dyn Service) {
        service.close(self);
        self.estate.close();
        log::info!("stop listening.");
    }

    /// `Exited`: the listeners' last copies go, and the log says what ended.
    fn finish(&mut self, before: State, event: Event, service: &mut dyn Service) {
        match event {
            Event::PredecessorSilent => {
                let deadline = self.config.takeover_timeout;
                self.fate.failure = Some(Error::NotCommitted { deadline });
            }
            Event::GivenUp => self.fate.failure = Some(Error::GivenUp),
            Event::HandlerPanicked => {
                self.fate.failure.get_or_insert(Error::Panicked { method: service.panicked_in() });
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
        let end = match before {
            // The successor was killed.
            State::Draining(Drain::Committed) if event == Event::ExitRequested => End::Exited,
            State::Draining(Drain::Committed | Drain::Probation | Drain::Proven) => {
                let by = self.succession.current.as_ref().and_then(Successor::pid);
                End::Replaced { by }
            }
            State::Draining(Drain::Shutdown) => End::ShutDown,
            State::Running | State::Upgrading | State::Exited => End::Exited,
        };
        self.fate.end = Some(end);
        self.remote.end();
        let line = match end {
            End::Replaced { by } => {
                let by = by.map_or_else(String::new, |pid| format!(" by process {pid}"));
                format!("done: this process is replaced{by}, which is proven")
            }
            End::ShutDown | End::Exited => "failed: the process has ended".to_owned(),
        };
        let paths = self.estate.take_own_paths();
        if !paths.is_empty() {
            self.disk.unlink(paths, limits::UNLINK_WAIT);
        }
        self.announcer.ended(&line, &self.standing.registry, self.standing.now);
        service.exited(self);
        let last = match end {
            End::Replaced { .. } => {
                fault::at(Point::Leaving);
                self.close_listeners(service);
                "finish the old process."
            }
            End::ShutDown | End::Exited => "finish the process.",
        };
        self.disk.part(disk_wait(self.config.takeover_timeout));
        log::info!("{last}");
    }

    /// Waits for killed successors, so that no zombie is left to somebody else.
    pub(super) fn bury(&mut self) {
        let deadline = Instant::now() + limits::REAP_WAIT;
        for mut dying in std::mem::take(&mut self.succession.dying) {
            dying.settle_until(&self.standing.registry, deadline);
            if let (Some(pid_file), Some(pid)) = (&mut self.disk.pid_file, dying.pid()) {
                pid_file.forget_successor(&mut self.disk.worker, pid);
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
pub(super) fn disk_wait(timeout: Duration) -> Duration {
    limits::DISK_WAIT.min(timeout / limits::DISK_SHARE)
}
