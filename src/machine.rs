//! The state machine of one process: what it does next, and nothing of how.
//!
//! [`Machine::step`] is the whole of it: a pure, total function from what is and what happened to
//! what is next and what has to be done. It knows no descriptor, no clock and no log, and it
//! allocates nothing. The server feeds it [`Event`]s, performs its [`Action`]s in their order and
//! decides nothing itself. Both roles of an upgrade run this code: the predecessor's side is told
//! by [`State`], the successor's by [`Predecessor`].
//!
//! The table of every state and event, the diagram, and the invariants `I1` to `I8` are in
//! [`state_machine`](crate::state_machine).

mod words;

/// Where the process stands. Four states, no more; `Draining` says what it drains for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Serving, and nothing is under way. A successor that has not been committed to is here too:
    /// its [`Predecessor`] is still [`Owner`](Predecessor::Owner), so it does not accept yet.
    Running,
    /// Serving, while a successor is being spawned and sets itself up.
    Upgrading,
    /// No more accepts; what there is, is served to its end.
    Draining(Drain),
    /// Over. Nothing leads out of it (I7).
    Exited,
}

/// What a draining process drains for, and how far that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Drain {
    /// For a successor that was committed to and has not yet said that it serves.
    Committed,
    /// For a successor that serves and is on probation. At its end it is asked whether it still
    /// turns.
    Probation,
    /// For a successor that has passed its probation, the question at the end included: this process
    /// leaves with its last session.
    Proven,
    /// For the end: this process does not come back.
    Shutdown,
}

/// What is known of the process before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Predecessor {
    /// There is none, or there is none any more.
    Gone,
    /// It has committed; it drains, and is still there.
    Leaving,
    /// It has asked whether this process still turns, and has its answer: this process is proven, and
    /// the sessions come.
    Trusting,
    /// It lives and has not committed: the listeners are its own, and this process must not
    /// accept (I3).
    Owner,
}

/// Whether an upgrade was requested that could not be started yet, and whom it was requested of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// There is none.
    No,
    /// Of the successor alone: if that is lost, so is what it was asked for, because a program that
    /// asks and dies would be started for ever.
    BySuccessor,
    /// Of this process, or of its predecessor.
    Here,
}

/// What happened. Facts, in the past tense; `state-machine.md` says who emits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// This process has set itself up: every listener it wants is bound or claimed.
    SetUpDone,
    /// Somebody asked for an upgrade.
    UpgradeRequested,
    /// Somebody asked for an orderly end.
    ShutdownRequested,
    /// Somebody asked for the end at once.
    ExitRequested,
    /// The successor's ready byte was read.
    SuccessorReady,
    /// The successor said that it accepts and has written its pid file.
    SuccessorServing,
    /// The successor answered that it still turns.
    SuccessorAnswered,
    /// The successor was asked for an upgrade, and can begin it only when this process is gone.
    SuccessorWantsUpgrade,
    /// The successor closed its end of the pipe or of the handoff socket; its exit status is not
    /// known yet.
    SuccessorHungUp,
    /// The successor died, could not be spawned, refused, or sent what makes no sense.
    SuccessorLost,
    /// The successor said that it was told to stop. To exit, with whatever status, is not to say so.
    SuccessorStopped,
    /// The last look found nothing of what the deadline was for: not the ready byte; once it was
    /// committed to, not SERVING; once it was asked, no answer.
    SuccessorSilent,
    /// The predecessor committed to this process.
    Committed,
    /// The pid file names this process, or could not be written, which is logged.
    PidFileWritten,
    /// The predecessor asks whether this process still turns.
    PredecessorAsked,
    /// The predecessor said that it has given this process up: it goes on by itself, or both are to
    /// stop.
    GivenUp,
    /// The predecessor is dead.
    PredecessorGone,
    /// The last look into the handoff socket found no COMMIT.
    PredecessorSilent,
    /// Sessions are on their way to the successor, or more of them are after it has answered.
    SessionsSent,
    /// No session is on its way any more.
    SessionsSettled,
    /// A draining process has no session left.
    SessionsGone,
    /// A method of the handler panicked.
    HandlerPanicked,
    /// This process cannot go on, and nobody has asked it to stop: what it serves as could not be made
    /// known, its server was dropped, or a panic is to end it.
    Failed,
    /// This process has stood still for a while, and so may have the other one: both were paused, or
    /// the machine was.
    StoodStill,
    /// The [`Upgrade`](Timer::Upgrade) timer ran out.
    UpgradeTimedOut,
    /// The [`Takeover`](Timer::Takeover) timer ran out.
    TakeoverTimedOut,
    /// The [`Status`](Timer::Status) timer ran out.
    StatusTimedOut,
    /// The [`Probation`](Timer::Probation) timer ran out.
    ProbationOver,
    /// The [`Drain`](Timer::Drain) timer ran out.
    DrainTimedOut,
    /// The [`Departure`](Timer::Departure) timer ran out.
    DepartureTimedOut,
    /// The [`Pause`](Timer::Pause) timer ran out.
    PauseOver,
}

/// What has to be done, in this order. Commands; the server performs them and decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Make the pipe and the handoff socket, queue the MANIFEST, spawn the successor.
    SpawnSuccessor,
    /// Look once more for the word that a deadline waits for, and answer with what is there, or
    /// else with [`Event::SuccessorSilent`] or [`Event::PredecessorSilent`].
    LookOnce,
    /// Send COMMIT: from here on the successor accepts.
    CommitUpgrade,
    /// Tell the successor of an upgrade request that came to this process.
    PassOnUpgrade,
    /// Tell the predecessor of an upgrade request that came to this process.
    TellWanted,
    /// Ask the successor whether it still turns.
    AskSuccessor,
    /// Tell the successor that it is given up, so that it never takes this process's end for a crash;
    /// kill it where it still lives, reap it, close what belonged to it, and take back the
    /// sessions that were on their way to it.
    KillSuccessor,
    /// Log how the upgrade ended and hand the report to the user.
    ReportUpgrade,
    /// Log that a wanted upgrade will not be carried out.
    DropWanted,
    /// Close the inherited descriptors that nobody claimed.
    CloseUnclaimed,
    /// Write the ready byte.
    AnnounceReady,
    /// Tell the predecessor that this process accepts.
    TellServing,
    /// Tell the predecessor that this process was told to stop.
    TellStopping,
    /// Tell the predecessor that this process still turns.
    AnswerPredecessor,
    /// Kill the predecessor, and log why.
    KillPredecessor,
    /// Unlink the Unix paths of inherited listeners that nobody claimed.
    UnlinkUnclaimed,
    /// Write the pid file, before anybody is served.
    WritePidFile,
    /// Have the pid file name this process, beside the loop, which a slow disk must not stop;
    /// [`Event::PidFileWritten`] follows.
    TakePidFile,
    /// Write the pid file again, after a successor may have written its own.
    RestorePidFile,
    /// Poll the listeners.
    ResumeAccepting,
    /// Stop polling the listeners, and keep them.
    PauseAccepting,
    /// Close the listeners; their Unix paths belong to somebody else.
    CloseListeners,
    /// Close the listeners for good and unlink their Unix paths.
    RetireListeners,
    /// Accept everybody who waits; then as [`Action::RetireListeners`].
    DrainListeners,
    /// Tell every session to come to its end. None moves any more.
    DrainSessions,
    /// Hand every session over to the successor that can move, and tell the others to come to their
    /// end.
    MoveSessions,
    /// Close every session.
    CloseSessions,
    /// Close the session whose method panicked, if it was one's.
    ClosePanicked,
    /// Remove the pid file, if it still names this process.
    RemovePidFile,
    /// Start a timer, anew if it runs.
    Arm(Timer),
    /// Give every timer that runs its whole time again.
    RenewTimers,
    /// Stop a timer.
    Disarm(Timer),
    /// Stop every timer.
    DisarmAll,
}

/// The deadlines of an upgrade and of a shutdown. Each ends in the event named beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timer {
    /// From the spawn to the ready byte; [`Event::UpgradeTimedOut`].
    Upgrade,
    /// Predecessor: from COMMIT until the successor serves, again from the end of its probation
    /// until it has answered, and from answer to answer while sessions are on their way. Successor:
    /// from the ready byte to COMMIT.
    /// [`Event::TakeoverTimedOut`].
    Takeover,
    /// From the successor's hang-up until its exit status is known; [`Event::StatusTimedOut`].
    Status,
    /// How long a successor has to live before it is trusted; [`Event::ProbationOver`].
    Probation,
    /// How long sessions may take to come to their end; [`Event::DrainTimedOut`].
    Drain,
    /// Successor: from COMMIT until the predecessor is gone; [`Event::DepartureTimedOut`].
    Departure,
    /// From an upgrade that failed until the next one may begin, longer with each failure in a row;
    /// [`Event::PauseOver`].
    Pause,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// This process is shutting down and does not come back.
    ShuttingDown,
    /// This process has exited.
    Exited,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The state changed.
    Moves,
    /// The state stayed; the event was taken into account.
    Stays,
    /// Late or repeated, but lawful: nothing changed and nothing is to be done.
    Ignored,
    /// A request that cannot be carried out.
    Refused(Refusal),
}

/// The answer to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The machine after the event.
    pub machine: Machine,
    /// What became of the event.
    pub outcome: Outcome,
    /// What has to be done, in this order.
    pub actions: &'static [Action],
}

/// One process's state, and the three facts that ride along in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    state: State,
    predecessor: Predecessor,
    wanted: Wanted,
    /// An upgrade has failed a moment ago, and the next one has to wait.
    pausing: bool,
}

/// A move after which no upgrade can be carried out: a wanted one is dropped, and not in silence.
macro_rules! for_good {
    ($machine:expr, $state:expr, [$($action:expr),* $(,)?]) => {
        match $machine.wanted {
            Wanted::Here | Wanted::BySuccessor => {
                $machine.satisfied().moves($state, &[Action::DropWanted, $($action),*])
            }
            Wanted::No => $machine.moves($state, &[$($action),*]),
        }
    };
}

/// On in `Running`; or to the next upgrade, if one is wanted (I4).
macro_rules! or_upgrade {
    ($machine:expr, [$($action:expr),* $(,)?]) => {
        match $machine.wanted {
            Wanted::Here | Wanted::BySuccessor => $machine.satisfied().moves(
                State::Upgrading,
                &[$($action,)* Action::SpawnSuccessor, Action::Arm(Timer::Upgrade)],
            ),
            Wanted::No => $machine.stays(&[$($action),*]),
        }
    };
}

/// Back to `Running` after an upgrade that failed. The next one has to wait for a moment, so that a
/// program that never comes up is not started as fast as can be. What this process was asked for
/// meanwhile is carried out then (I4); what only the lost successor was asked for is dropped, and the
/// report says that it is lost.
macro_rules! fails {
    ($machine:expr, [$($action:expr),* $(,)?]) => {
        match $machine.wanted {
            Wanted::BySuccessor => $machine.satisfied().pausing().moves(
                State::Running,
                &[$($action,)* Action::DropWanted, Action::Arm(Timer::Pause)],
            ),
            Wanted::Here | Wanted::No => $machine
                .pausing()
                .moves(State::Running, &[$($action,)* Action::Arm(Timer::Pause)]),
        }
    };
}

impl Machine {
    /// The machine of a process that somebody started by hand.
    #[must_use]
    pub const fn first() -> Self {
        Self {
            state: State::Running,
            predecessor: Predecessor::Gone,
            wanted: Wanted::No,
            pausing: false,
        }
    }

    /// The machine of a process that a predecessor spawned.
    #[must_use]
    pub const fn successor() -> Self {
        Self {
            state: State::Running,
            predecessor: Predecessor::Owner,
            wanted: Wanted::No,
            pausing: false,
        }
    }

    /// Where the process stands.
    #[must_use]
    pub const fn state(self) -> State {
        self.state
    }

    /// What is known of the process before this one.
    #[must_use]
    pub const fn predecessor(self) -> Predecessor {
        self.predecessor
    }

    /// Whether an upgrade was requested that could not be started yet. While draining for a
    /// successor: one that was passed on to it, and comes back if the successor is lost (I4).
    #[must_use]
    pub const fn wanted(self) -> Wanted {
        self.wanted
    }

    /// Whether an upgrade has failed a moment ago, so that the next one has to wait.
    #[must_use]
    pub const fn is_pausing(self) -> bool {
        self.pausing
    }

    /// Whether this process polls its listeners (I3).
    #[must_use]
    pub const fn accepts(self) -> bool {
        match self.state {
            State::Running => match self.predecessor {
                Predecessor::Gone | Predecessor::Leaving | Predecessor::Trusting => true,
                Predecessor::Owner => false,
            },
            State::Upgrading => true,
            State::Draining(_) | State::Exited => false,
        }
    }

    /// What `event` means to this machine. Pure and total: no input panics, none is unanswered.
    #[must_use]
    pub const fn step(self, event: Event) -> Step {
        match self.state {
            State::Running => self.running(event),
            State::Upgrading => self.upgrading(event),
            State::Draining(drain) => match drain {
                Drain::Committed => self.committed(event),
                Drain::Probation => self.trusting(event, Drain::Probation),
                Drain::Proven => self.trusting(event, Drain::Proven),
                Drain::Shutdown => self.shutting_down(event),
            },
            State::Exited => self.exited(event),
        }
    }

    const fn running(self, event: Event) -> Step {
        use Action::*;
        match event {
            Event::SetUpDone => match self.predecessor {
                // The first process serves as soon as it can.
                Predecessor::Gone => self.stays(&[CloseUnclaimed, WritePidFile, ResumeAccepting]),
                // A successor says so, and accepts only when it is told to (I3).
                Predecessor::Owner => {
                    self.stays(&[CloseUnclaimed, AnnounceReady, Arm(Timer::Takeover)])
                }
                Predecessor::Leaving | Predecessor::Trusting => self.ignored(),
            },
            Event::UpgradeRequested => match self.predecessor {
                Predecessor::Gone if self.pausing => self.remembers(&[]),
                Predecessor::Gone => {
                    self.moves(State::Upgrading, &[SpawnSuccessor, Arm(Timer::Upgrade)])
                }
                // A third process never appears beside two (I2): wanted, and carried out when the
                // predecessor is gone; the predecessor knows of it, in case it dies before that (I4).
                Predecessor::Leaving | Predecessor::Trusting | Predecessor::Owner => {
                    self.remembers(&[TellWanted])
                }
            },
            Event::PauseOver => match (self.pausing, self.wanted) {
                (false, _) => self.ignored(),
                (true, Wanted::No) => self.rested().stays(&[]),
                (true, Wanted::Here | Wanted::BySuccessor) => self
                    .rested()
                    .satisfied()
                    .moves(State::Upgrading, &[SpawnSuccessor, Arm(Timer::Upgrade)]),
            },
            Event::ShutdownRequested => match self.predecessor {
                // It never served, and its predecessor still does: nothing is to be drained, and
                // nothing of the predecessor's is to be touched.
                Predecessor::Owner => for_good!(self, State::Exited, [DisarmAll]),
                Predecessor::Leaving | Predecessor::Trusting | Predecessor::Gone => for_good!(
                    self.rested(),
                    State::Draining(Drain::Shutdown),
                    [
                        Disarm(Timer::Pause),
                        DrainListeners,
                        TellStopping,
                        DrainSessions,
                        Arm(Timer::Drain)
                    ]
                ),
            },
            Event::ExitRequested => match self.predecessor {
                Predecessor::Owner => for_good!(self, State::Exited, [DisarmAll]),
                Predecessor::Leaving | Predecessor::Trusting | Predecessor::Gone => for_good!(
                    self.rested(),
                    State::Exited,
                    [RetireListeners, TellStopping, CloseSessions, RemovePidFile, DisarmAll]
                ),
            },
            Event::Failed => match self.predecessor {
                Predecessor::Owner => for_good!(self, State::Exited, [DisarmAll]),
                // The predecessor comes back: the paths and the pid file are its own again.
                Predecessor::Leaving | Predecessor::Trusting => {
                    for_good!(self, State::Exited, [CloseListeners, CloseSessions, DisarmAll])
                }
                Predecessor::Gone => for_good!(
                    self.rested(),
                    State::Exited,
                    [RetireListeners, CloseSessions, RemovePidFile, DisarmAll]
                ),
            },
            Event::HandlerPanicked => match self.predecessor {
                // Not proven yet: the predecessor has not made this mistake, and comes back.
                Predecessor::Owner => for_good!(self, State::Exited, [DisarmAll]),
                Predecessor::Leaving => {
                    for_good!(self, State::Exited, [CloseListeners, CloseSessions, DisarmAll])
                }
                // The others are served on.
                Predecessor::Trusting | Predecessor::Gone => self.stays(&[ClosePanicked]),
            },
            Event::Committed => match self.predecessor {
                // The one moment at which the listeners change hands.
                Predecessor::Owner => self.with(Predecessor::Leaving).stays(&[
                    DisarmAll,
                    ResumeAccepting,
                    TakePidFile,
                    Arm(Timer::Departure),
                ]),
                Predecessor::Leaving | Predecessor::Trusting | Predecessor::Gone => self.ignored(),
            },
            // The predecessor stays until it has heard this, so that the pid file never names a
            // dead process: whoever reads it signals one that carries the request on.
            Event::PidFileWritten => match self.predecessor {
                Predecessor::Leaving => self.stays(&[TellServing]),
                Predecessor::Owner | Predecessor::Trusting | Predecessor::Gone => self.ignored(),
            },
            Event::PredecessorAsked => match self.predecessor {
                Predecessor::Leaving | Predecessor::Trusting => {
                    self.with(Predecessor::Trusting).stays(&[AnswerPredecessor])
                }
                Predecessor::Owner | Predecessor::Gone => self.ignored(),
            },
            // Everything is the predecessor's again, or nobody's. It kills this process, too; but where
            // it cannot, or dies first, its end of the socket must not make this one the owner.
            Event::GivenUp => match self.predecessor {
                Predecessor::Owner => for_good!(self, State::Exited, [DisarmAll]),
                Predecessor::Leaving | Predecessor::Trusting => {
                    for_good!(self, State::Exited, [CloseListeners, CloseSessions, DisarmAll])
                }
                Predecessor::Gone => self.ignored(),
            },
            Event::PredecessorGone => match self.predecessor {
                // It died before it committed: this process is the sole owner and goes on (I1).
                Predecessor::Owner => or_upgrade!(
                    self.with(Predecessor::Gone),
                    [DisarmAll, ResumeAccepting, TakePidFile, UnlinkUnclaimed]
                ),
                Predecessor::Leaving | Predecessor::Trusting => or_upgrade!(
                    self.with(Predecessor::Gone),
                    [Disarm(Timer::Departure), UnlinkUnclaimed]
                ),
                Predecessor::Gone => self.ignored(),
            },
            Event::DepartureTimedOut => self.departs(),
            // COMMIT and the deadline may race: a COMMIT that is there wins.
            Event::TakeoverTimedOut => match self.predecessor {
                Predecessor::Owner => self.stays(&[LookOnce]),
                Predecessor::Leaving | Predecessor::Trusting | Predecessor::Gone => self.ignored(),
            },
            Event::PredecessorSilent => match self.predecessor {
                // Ready, and never committed to: it gives way without having touched anything. The
                // predecessor finds it dead and rolls back, whenever it comes to look.
                Predecessor::Owner => for_good!(self, State::Exited, [DisarmAll]),
                Predecessor::Leaving | Predecessor::Trusting | Predecessor::Gone => self.ignored(),
            },
            // Who was stopped together with the other one must not be the judge of it.
            Event::StoodStill => match self.predecessor {
                Predecessor::Owner | Predecessor::Leaving | Predecessor::Trusting => {
                    self.stays(&[RenewTimers])
                }
                Predecessor::Gone => self.ignored(),
            },
            Event::SuccessorReady
            | Event::SuccessorServing
            | Event::SuccessorAnswered
            | Event::SuccessorWantsUpgrade
            | Event::SuccessorHungUp
            | Event::SuccessorLost
            | Event::SuccessorStopped
            | Event::SuccessorSilent
            | Event::SessionsSent
            | Event::SessionsSettled
            | Event::SessionsGone
            | Event::UpgradeTimedOut
            | Event::StatusTimedOut
            | Event::ProbationOver
            | Event::DrainTimedOut => self.ignored(),
        }
    }

    const fn upgrading(self, event: Event) -> Step {
        use Action::*;
        match event {
            // Several requests become one (I4): the next process is started after the last of them,
            // by this process or, should it come to serve, by the successor.
            Event::UpgradeRequested => self.remembers(&[PassOnUpgrade]),
            Event::SuccessorWantsUpgrade => self.remembers_the_successors(),
            Event::ShutdownRequested => for_good!(
                self,
                State::Draining(Drain::Shutdown),
                [
                    KillSuccessor,
                    ReportUpgrade,
                    DisarmAll,
                    DrainListeners,
                    DrainSessions,
                    Arm(Timer::Drain),
                ]
            ),
            // Nobody has asked for an end: as after a crash, the paths and the pid file are left to
            // the successor, which goes on alone (I1).
            Event::Failed => {
                for_good!(self, State::Exited, [CloseListeners, CloseSessions, DisarmAll])
            }
            Event::ExitRequested => for_good!(
                self,
                State::Exited,
                [
                    KillSuccessor,
                    ReportUpgrade,
                    DisarmAll,
                    RetireListeners,
                    CloseSessions,
                    RemovePidFile,
                ]
            ),
            // This process stops polling before the successor is told to start (I3). Its sessions
            // notice nothing of it before the successor is proven, so that nothing has happened to
            // them if it is rolled back. A wanted upgrade is the successor's now, and kept here for
            // a rollback (I4).
            Event::SuccessorReady => self.moves(
                State::Draining(Drain::Committed),
                &[DisarmAll, PauseAccepting, CommitUpgrade, Arm(Timer::Takeover)],
            ),
            // Died, refused, talked nonsense (to serve before COMMIT is nonsense), or found silent
            // by the last look: as if nothing had happened (I6).
            Event::SuccessorLost
            | Event::SuccessorStopped
            | Event::SuccessorServing
            | Event::SuccessorSilent
            | Event::StatusTimedOut => fails!(self, [KillSuccessor, ReportUpgrade, DisarmAll]),
            // The status says which death it was; it follows the hang-up at once, or never.
            Event::SuccessorHungUp => self.stays(&[Arm(Timer::Status)]),
            // The ready byte and the deadline may race: a byte that is there wins.
            Event::UpgradeTimedOut => self.stays(&[LookOnce]),
            Event::HandlerPanicked => self.stays(&[ClosePanicked]),
            Event::StoodStill => self.stays(&[RenewTimers]),
            Event::SetUpDone
            | Event::SuccessorAnswered
            | Event::Committed
            | Event::PidFileWritten
            | Event::PredecessorAsked
            | Event::GivenUp
            | Event::PredecessorGone
            | Event::PredecessorSilent
            | Event::SessionsSent
            | Event::SessionsSettled
            | Event::SessionsGone
            | Event::TakeoverTimedOut
            | Event::ProbationOver
            | Event::DrainTimedOut
            | Event::DepartureTimedOut
            | Event::PauseOver => self.ignored(),
        }
    }

    const fn committed(self, event: Event) -> Step {
        use Action::*;
        match event {
            Event::UpgradeRequested => self.remembers(&[PassOnUpgrade]),
            Event::SuccessorWantsUpgrade => self.remembers_the_successors(),
            // The upgrade is not over before the successor serves: as in `Upgrading`, to stop is to
            // stop both, and nothing of either is left.
            Event::ShutdownRequested => for_good!(
                self,
                State::Draining(Drain::Shutdown),
                [
                    KillSuccessor,
                    DisarmAll,
                    RestorePidFile,
                    ReportUpgrade,
                    DrainListeners,
                    DrainSessions,
                    Arm(Timer::Drain),
                ]
            ),
            // Nobody has asked for an end: as in `Upgrading`, the successor goes on alone (I1).
            Event::Failed => {
                for_good!(self, State::Exited, [CloseListeners, CloseSessions, DisarmAll])
            }
            Event::ExitRequested => for_good!(
                self,
                State::Exited,
                [
                    KillSuccessor,
                    DisarmAll,
                    RestorePidFile,
                    ReportUpgrade,
                    RetireListeners,
                    CloseSessions,
                    RemovePidFile,
                ]
            ),
            Event::SuccessorServing => self.moves(
                State::Draining(Drain::Probation),
                &[Disarm(Timer::Takeover), ReportUpgrade, Arm(Timer::Probation)],
            ),
            // A successor that never served is lost however it ended, and a takeover that does not
            // come to its end is one too: nobody accepts meanwhile.
            Event::SuccessorLost
            | Event::SuccessorStopped
            | Event::StatusTimedOut
            | Event::SuccessorSilent => self.rolls_back(),
            // SERVING and the deadline may race: a SERVING that is there wins.
            Event::TakeoverTimedOut => self.stays(&[LookOnce]),
            Event::SuccessorHungUp => self.stays(&[Arm(Timer::Status)]),
            Event::SessionsGone => self.stays(&[]),
            Event::HandlerPanicked => self.stays(&[ClosePanicked]),
            Event::StoodStill => self.stays(&[RenewTimers]),
            Event::SessionsSent | Event::SessionsSettled => self.ignored(),
            Event::SetUpDone
            | Event::SuccessorReady
            | Event::SuccessorAnswered
            | Event::Committed
            | Event::PidFileWritten
            | Event::PredecessorAsked
            | Event::GivenUp
            | Event::PredecessorGone
            | Event::PredecessorSilent
            | Event::UpgradeTimedOut
            | Event::ProbationOver
            | Event::DrainTimedOut
            | Event::DepartureTimedOut
            | Event::PauseOver => self.ignored(),
        }
    }

    /// `Draining` for a successor that serves: on probation, or proven.
    const fn trusting(self, event: Event, drain: Drain) -> Step {
        use Action::*;
        match event {
            Event::UpgradeRequested => self.remembers(&[PassOnUpgrade]),
            Event::SuccessorWantsUpgrade => self.remembers_the_successors(),
            Event::ShutdownRequested => self.comes_back_no_more(drain),
            Event::ExitRequested | Event::Failed => {
                self.satisfied().moves(State::Exited, &[CloseSessions, RemovePidFile, DisarmAll])
            }
            // It ended although nobody told it to: the upgrade never happened.
            Event::SuccessorLost | Event::StatusTimedOut => self.rolls_back(),
            // It was told to stop, and with it the service: this process only ends what it has.
            Event::SuccessorStopped => for_good!(
                self,
                State::Draining(Drain::Shutdown),
                [Disarm(Timer::Takeover), CloseListeners, DrainSessions, Arm(Timer::Drain)]
            ),
            Event::SuccessorHungUp => self.stays(&[Arm(Timer::Status)]),
            // To have lived so long is not enough: it may stand still. It proves itself by an
            // answer, because nobody takes over from it once this process has left.
            Event::ProbationOver => match drain {
                Drain::Probation => self.stays(&[AskSuccessor, Arm(Timer::Takeover)]),
                Drain::Proven | Drain::Committed | Drain::Shutdown => self.ignored(),
            },
            Event::SuccessorAnswered => match drain {
                Drain::Probation => self.moves(
                    State::Draining(Drain::Proven),
                    &[Disarm(Timer::Takeover), MoveSessions, Arm(Timer::Drain)],
                ),
                Drain::Proven | Drain::Committed | Drain::Shutdown => self.ignored(),
            },
            // The answer and the deadline may race: an answer that is there wins.
            Event::TakeoverTimedOut => self.stays(&[LookOnce]),
            Event::SuccessorSilent => self.rolls_back(),
            // Proven or not, it is given sessions only as long as it answers.
            Event::SessionsSent => match drain {
                Drain::Proven => self.stays(&[Arm(Timer::Takeover)]),
                Drain::Probation | Drain::Committed | Drain::Shutdown => self.ignored(),
            },
            Event::SessionsSettled => match drain {
                Drain::Proven => self.stays(&[Disarm(Timer::Takeover)]),
                Drain::Probation | Drain::Committed | Drain::Shutdown => self.ignored(),
            },
            Event::SessionsGone => match drain {
                Drain::Probation => self.stays(&[]),
                Drain::Proven | Drain::Committed | Drain::Shutdown => {
                    self.satisfied().moves(State::Exited, &[RemovePidFile, DisarmAll])
                }
            },
            Event::DrainTimedOut => match drain {
                Drain::Probation => self.ignored(),
                Drain::Proven | Drain::Committed | Drain::Shutdown => self
                    .satisfied()
                    .moves(State::Exited, &[CloseSessions, RemovePidFile, DisarmAll]),
            },
            Event::HandlerPanicked => self.stays(&[ClosePanicked]),
            Event::StoodStill => self.stays(&[RenewTimers]),
            Event::SetUpDone
            | Event::SuccessorReady
            | Event::SuccessorServing
            | Event::Committed
            | Event::PidFileWritten
            | Event::PredecessorAsked
            | Event::GivenUp
            | Event::PredecessorGone
            | Event::PredecessorSilent
            | Event::UpgradeTimedOut
            | Event::DepartureTimedOut
            | Event::PauseOver => self.ignored(),
        }
    }

    const fn shutting_down(self, event: Event) -> Step {
        use Action::*;
        match event {
            Event::UpgradeRequested => self.refused(Refusal::ShuttingDown),
            Event::ShutdownRequested => self.stays(&[]),
            Event::ExitRequested | Event::Failed | Event::DrainTimedOut => {
                self.moves(State::Exited, &[CloseSessions, RemovePidFile, DisarmAll])
            }
            Event::SessionsGone => self.moves(State::Exited, &[RemovePidFile, DisarmAll]),
            Event::SessionsSent | Event::SessionsSettled => self.ignored(),
            Event::PredecessorGone => match self.predecessor {
                Predecessor::Leaving | Predecessor::Trusting | Predecessor::Owner => {
                    self.with(Predecessor::Gone).stays(&[Disarm(Timer::Departure), UnlinkUnclaimed])
                }
                Predecessor::Gone => self.ignored(),
            },
            Event::DepartureTimedOut => self.departs(),
            // Nothing moves to it any more. It is not killed, because it may be the one that serves.
            Event::SuccessorStopped | Event::SuccessorLost | Event::SuccessorHungUp => {
                self.stays(&[DrainSessions])
            }
            Event::HandlerPanicked => self.stays(&[ClosePanicked]),
            Event::StoodStill => self.stays(&[RenewTimers]),
            Event::SetUpDone
            | Event::SuccessorReady
            | Event::SuccessorServing
            | Event::SuccessorAnswered
            | Event::SuccessorWantsUpgrade
            | Event::SuccessorSilent
            | Event::Committed
            | Event::PidFileWritten
            | Event::PredecessorAsked
            | Event::GivenUp
            | Event::PredecessorSilent
            | Event::UpgradeTimedOut
            | Event::TakeoverTimedOut
            | Event::StatusTimedOut
            | Event::ProbationOver
            | Event::PauseOver => self.ignored(),
        }
    }

    const fn exited(self, event: Event) -> Step {
        match event {
            Event::UpgradeRequested => self.refused(Refusal::Exited),
            Event::SetUpDone
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
            | Event::GivenUp
            | Event::PredecessorGone
            | Event::PredecessorSilent
            | Event::SessionsSent
            | Event::SessionsSettled
            | Event::SessionsGone
            | Event::HandlerPanicked
            | Event::Failed
            | Event::StoodStill
            | Event::UpgradeTimedOut
            | Event::TakeoverTimedOut
            | Event::StatusTimedOut
            | Event::ProbationOver
            | Event::DrainTimedOut
            | Event::DepartureTimedOut
            | Event::PauseOver => self.ignored(),
        }
    }

    /// The listeners were kept for this: accept again, and name this process in the pid file.
    const fn rolls_back(self) -> Step {
        use Action::*;
        fails!(self, [KillSuccessor, DisarmAll, ResumeAccepting, RestorePidFile, ReportUpgrade])
    }

    /// A predecessor that has committed and does not leave stands still, and no upgrade can begin
    /// beside it (I2). It has stayed longer than it said it would, so that nothing of it is spared.
    const fn departs(self) -> Step {
        match self.predecessor {
            Predecessor::Leaving | Predecessor::Trusting => self.stays(&[Action::KillPredecessor]),
            Predecessor::Owner | Predecessor::Gone => self.ignored(),
        }
    }

    /// Both know of a wanted upgrade, and whoever serves in the end carries it out. Once is enough:
    /// what was told is remembered there, and what the successor has told need not be told to it.
    const fn remembers(self, tell: &'static [Action]) -> Step {
        match self.wanted {
            Wanted::No => self.wanting(Wanted::Here).stays(tell),
            Wanted::BySuccessor => self.wanting(Wanted::Here).stays(&[]),
            Wanted::Here => self.stays(&[]),
        }
    }

    const fn remembers_the_successors(self) -> Step {
        match self.wanted {
            Wanted::No => self.wanting(Wanted::BySuccessor).stays(&[]),
            Wanted::BySuccessor | Wanted::Here => self.stays(&[]),
        }
    }

    /// Told to stop while its successor serves, a process leaves in any case. The successor goes on;
    /// should it be lost all the same, nobody takes over from it, because this process was told to
    /// stop.
    const fn comes_back_no_more(self, drain: Drain) -> Step {
        use Action::*;
        self.satisfied().moves(
            State::Draining(Drain::Shutdown),
            match drain {
                // Nobody has asked the successor yet, and nobody will: to move is better than to end.
                Drain::Probation | Drain::Committed | Drain::Shutdown => {
                    &[Disarm(Timer::Takeover), CloseListeners, MoveSessions, Arm(Timer::Drain)]
                }
                Drain::Proven => &[CloseListeners],
            },
        )
    }

    const fn wanting(self, wanted: Wanted) -> Self {
        Self { wanted, ..self }
    }

    const fn satisfied(self) -> Self {
        self.wanting(Wanted::No)
    }

    const fn pausing(self) -> Self {
        Self { pausing: true, ..self }
    }

    const fn rested(self) -> Self {
        Self { pausing: false, ..self }
    }

    const fn with(self, predecessor: Predecessor) -> Self {
        Self { predecessor, ..self }
    }

    const fn moves(self, state: State, actions: &'static [Action]) -> Step {
        Step { machine: Self { state, ..self }, outcome: Outcome::Moves, actions }
    }

    const fn stays(self, actions: &'static [Action]) -> Step {
        Step { machine: self, outcome: Outcome::Stays, actions }
    }

    const fn ignored(self) -> Step {
        Step { machine: self, outcome: Outcome::Ignored, actions: &[] }
    }

    const fn refused(self, refusal: Refusal) -> Step {
        Step { machine: self, outcome: Outcome::Refused(refusal), actions: &[] }
    }
}
