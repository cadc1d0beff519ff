//! The protocol of systemd: who serves, and that the loop turns (sd_notify(3)).
//!
//! Any process of the service may speak (`NotifyAccess=all`), and each speaks for itself:
//!
//! - Who begins to serve says so: READY, and MAINPID with its own process id. The first process was started by
//!   the manager, which knows its id. A successor says it together with SERVING, because nobody knows
//!   earlier; a predecessor that comes back says it again. So the manager follows the process that
//!   serves even if the other one of an upgrade dies at that moment.
//! - Who serves says what goes on: RELOADING while a successor sets itself up, STATUS, EXTEND_TIMEOUT_USEC
//!   where it takes long, STOPPING if nobody serves after it. A process that was replaced is silent.
//! - There is one exception: a predecessor that is about to leave says MAINPID for its successor once more, and
//!   waits until the manager has heard it. The successor's own word may still wait for room, and a manager
//!   that sees its main process end takes the service for ended.
//! - WATCHDOG comes from whoever serves. A predecessor goes on with it during the probation: it finds out
//!   itself whether its successor hangs, and comes back, where the manager would end both.
//!
//! Each message is one packet, of lines that are true together. All is said at the end of a turn.
//! `channel` is the way to the manager, and `activation` the sockets that it has opened.

mod activation;
mod channel;

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::read;

use super::announcer::Change;
use crate::limits;
use crate::machine::{Drain, Event, State};
use crate::report::Report;
use crate::sys;
pub(super) use activation::sockets;
use channel::{About, Channel};

/// Tells a service manager, if there is one. Without one it has no descriptor and no deadline.
#[derive(Default)]
pub(super) struct Notify {
    manager: Option<Box<Manager>>,
}

struct Manager {
    channel: Channel,
    watchdog: Option<Watchdog>,
    status: Status,
    /// How many sessions the last STATUS had, and when it was said.
    said: (Option<usize>, Option<Instant>),
    /// It is this process that speaks for the service.
    speaks: bool,
    /// When the manager is to have more patience.
    extension: Option<Instant>,
    farewell: Option<Farewell>,
}

/// How often the manager is told that the loop turns, and when it is told next.
struct Watchdog {
    every: Duration,
    next: Option<Instant>,
}

/// A predecessor's last word, until the manager has heard it.
struct Farewell {
    /// A [`BARRIER_WAIT`](limits::BARRIER_WAIT) later it leaves in any case.
    begun: Instant,
    /// It may leave.
    is_over: bool,
    /// At its end when the manager has heard everything.
    barrier: Option<OwnedFd>,
    /// When it is looked at again.
    next_look: Option<Instant>,
}

/// What `systemctl status` shows.
struct Status {
    state: State,
    generation: u64,
    sessions: Option<usize>,
    /// How the last upgrade failed, if it did.
    failure: Option<String>,
}

impl Notify {
    /// What the environment says. The variables are taken out of it: no child of the application may speak
    /// for the service. Successors are spawned with what was there before.
    pub(super) fn of_environment(is_first: bool) -> Self {
        let [socket, watchdog, watched] =
            ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"].map(sys::take_variable);
        let Some(socket) = socket.filter(|socket| !socket.is_empty()) else {
            return Self::default();
        };
        let channel = match Channel::to(&socket) {
            Ok(channel) => channel,
            Err(error) => {
                log::warn!(
                    "NOTIFY_SOCKET is {socket:?}: {error}; the service manager hears nothing"
                );
                return Self::default();
            }
        };
        // A successor's id is not the one that the manager knows, and was not told to it.
        let own = std::process::id().to_string();
        let is_meant = !is_first || watched.is_none_or(|pid| pid == *own);
        let micros =
            watchdog.filter(|_| is_meant).map(|text| match text.to_str().map(str::parse) {
                Some(Ok(micros)) if micros > 0 => Some(micros),
                _ => {
                    log::warn!("WATCHDOG_USEC is {text:?}, and no number of microseconds: ignored");
                    None
                }
            });
        let watchdog = micros.flatten().map(|micros| Watchdog {
            every: (Duration::from_micros(micros) / 2).max(limits::WATCHDOG_LEAST),
            next: None,
        });
        let status = Status { state: State::Running, generation: 0, sessions: None, failure: None };
        let manager = Manager {
            channel,
            watchdog,
            status,
            said: (None, None),
            speaks: false,
            extension: None,
            farewell: None,
        };
        Self { manager: Some(Box::new(manager)) }
    }

    /// The machine has stepped.
    pub(super) fn stepped(&mut self, change: &Change) {
        if let Some(manager) = &mut self.manager {
            manager.step(change);
        }
    }

    /// The set-up takes longer than the manager may have been told.
    pub(super) fn needs_time(&mut self, time: Duration) {
        if let Some(manager) = &mut self.manager {
            let words = format!("EXTEND_TIMEOUT_USEC={}", time.as_micros());
            manager.channel.say(About::Time, words, Instant::now());
        }
    }

    /// An upgrade has ended.
    pub(super) fn reported(&mut self, report: &Report) {
        if let Some(manager) = &mut self.manager {
            let failure = report.outcome.as_ref().err();
            manager.status.failure =
                failure.map(|failure| format!("failed in {}: {}", failure.stage, failure.cause));
        }
    }

    /// A turn ends: what is to be said is said.
    pub(super) fn end_turn(&mut self, now: Instant, sessions: Option<usize>) {
        if let Some(manager) = &mut self.manager {
            manager.status.sessions = sessions;
            manager.end_turn(now);
        }
    }

    /// Whether a process whose successor serves may leave: the manager knows of the successor, or does not
    /// answer in time.
    pub(super) fn has_taken_leave(&mut self, successor: u32, now: Instant) -> bool {
        self.manager.as_mut().is_none_or(|manager| manager.take_leave(successor, now))
    }

    /// When it has something to do, at the latest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.manager.as_ref().and_then(|manager| manager.next_deadline())
    }
}

impl Manager {
    fn step(&mut self, change: &Change) {
        let Change { before, after, event, now, .. } = *change;
        (self.status.state, self.status.generation) = (after, change.generation);
        self.status.sessions = change.sessions;
        // After SERVING, which is said when the pid file is written, or without a predecessor to say it to.
        let begins = change.accepts
            && !self.speaks
            && matches!(event, Event::SetUpDone | Event::PidFileWritten | Event::PredecessorGone);
        let comes_back =
            after == State::Running && matches!(before, State::Upgrading | State::Draining(_));
        if begins || comes_back {
            self.serve(event == Event::SetUpDone, now);
        }
        if after == State::Upgrading && before != State::Upgrading {
            self.status.failure = None;
            let micros = sys::monotonic_micros();
            self.say(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"), now);
            self.extension = Some(now + limits::NOTIFY_EXTEND);
        }
        if event == Event::SuccessorServing && after == State::Draining(Drain::Probation) {
            (self.speaks, self.extension) = (false, None);
        }
        let ends = matches!(
            event,
            Event::SuccessorStopped | Event::SuccessorLost | Event::SuccessorHungUp
        );
        if ends && after == State::Draining(Drain::Shutdown) {
            // There is nobody to leave to.
            self.farewell =
                Some(Farewell { begun: now, is_over: true, barrier: None, next_look: None });
        }
        let asked = matches!(event, Event::ShutdownRequested | Event::ExitRequested);
        if self.speaks && asked && before != after && !change.accepts {
            self.say("STOPPING=1", now);
            self.extension = Some(now + limits::NOTIFY_EXTEND);
        }
        if after == State::Exited {
            (self.speaks, self.extension) = (false, None);
        }
        let watched = self.speaks || after == State::Draining(Drain::Probation);
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.next = match watched {
                true => watchdog.next.or(Some(now + watchdog.every)),
                false => None,
            };
        }
    }

    /// This process serves, for the first time or again.
    fn serve(&mut self, is_known: bool, now: Instant) {
        let mut words = match is_known {
            true => "READY=1".to_owned(),
            false => format!("MAINPID={}\nREADY=1", std::process::id()),
        };
        if let Some(watchdog) = &mut self.watchdog {
            // Whoever had to say it before may have done so half an interval ago.
            words.push_str("\nWATCHDOG=1");
            watchdog.next = Some(now + watchdog.every);
        }
        (self.speaks, self.extension, self.farewell) = (true, None, None);
        self.say(&words, now);
    }

    /// Something about the service, and how it stands.
    fn say(&mut self, words: &str, now: Instant) {
        self.said = (self.status.sessions, Some(now));
        self.channel.say(About::Service, format!("{words}\nSTATUS={}", self.status), now);
    }

    fn end_turn(&mut self, now: Instant) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.status_due()) {
            self.said = (self.status.sessions, Some(now));
            self.channel.say(About::Status, format!("STATUS={}", self.status), now);
        }
        if is_due(self.extension) {
            let micros = limits::NOTIFY_PATIENCE.as_micros();
            self.channel.say(About::Time, format!("EXTEND_TIMEOUT_USEC={micros}"), now);
            self.extension = Some(now + limits::NOTIFY_EXTEND);
        }
        if let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| is_due(watchdog.next)) {
            self.channel.say(About::Loop, "WATCHDOG=1".into(), now);
            watchdog.next = Some(now + watchdog.every);
        }
        if is_due(self.channel.due()) {
            self.channel.flush(now);
        }
        // Who does not want to leave any more does not look any more.
        if let Some(farewell) = &mut self.farewell {
            farewell.next_look = farewell.next_look.filter(|at| *at > now);
        }
    }

    /// When the status is said that has changed. After the last change there is one more, and then the loop
    /// sleeps on.
    fn status_due(&self) -> Option<Instant> {
        let (sessions, at) = self.said;
        let at = at.filter(|_| self.speaks && sessions != self.status.sessions)?;
        Some(at + limits::STATUS_INTERVAL)
    }

    fn take_leave(&mut self, successor: u32, now: Instant) -> bool {
        if self.farewell.is_none() {
            self.channel.say(About::Service, format!("MAINPID={successor}"), now);
            self.farewell =
                Some(Farewell { begun: now, is_over: false, barrier: None, next_look: None });
        }
        let is_told = self.channel.flush(now);
        let Some(farewell) = self.farewell.as_mut().filter(|farewell| !farewell.is_over) else {
            return true;
        };
        farewell.next_look = Some(now + limits::BARRIER_LOOK);
        farewell.is_over = match &farewell.barrier {
            _ if now >= farewell.begun + limits::BARRIER_WAIT => {
                let wait = limits::BARRIER_WAIT;
                log::warn!(
                    "the service manager has not answered within {wait:?}: leaving all the same",
                );
                true
            }
            _ if !is_told => false,
            // Anything but "not yet": there is no writer any more.
            Some(barrier) => read(barrier, &mut [0]) != Err(Errno::EAGAIN),
            None => match self.channel.barrier() {
                Ok(barrier) => {
                    farewell.barrier = Some(barrier);
                    false
                }
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => false,
                Err(error) => {
                    log::warn!("the service manager cannot be asked what it has heard: {error}");
                    true
                }
            },
        };
        if farewell.is_over {
            let took = now.saturating_duration_since(farewell.begun);
            log::debug!("leaving, {took:?} after the service manager was told of the successor.");
        }
        farewell.is_over
    }

    fn next_deadline(&self) -> Option<Instant> {
        let watchdog = self.watchdog.as_ref().and_then(|watchdog| watchdog.next);
        let look = self.farewell.as_ref().and_then(|farewell| farewell.next_look);
        let deadlines = [self.channel.due(), watchdog, self.extension, self.status_due(), look];
        deadlines.into_iter().flatten().min()
    }
}

/// One line, whatever a successor has said of why it failed.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Running => "serving",
            State::Upgrading => "upgrading",
            State::Draining(Drain::Shutdown) | State::Exited => "stopping",
            State::Draining(Drain::Committed | Drain::Probation | Drain::Proven) => "handing over",
        })?;
        write!(f, "; generation {}, pid {}", self.generation, std::process::id())?;
        if let Some(sessions) = self.sessions {
            write!(f, ", {sessions} session{}", if sessions == 1 { "" } else { "s" })?;
        }
        let Some(failure) = &self.failure else { return Ok(()) };
        let plain = |char: char| if char.is_control() { ' ' } else { char };
        let failure: String = failure.chars().map(plain).take(limits::TEXT_BYTES / 4).collect();
        write!(f, "; the last upgrade {failure}")
    }
}
