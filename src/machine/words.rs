//! The machine's words: what there is of each kind, and what the log calls it.

use std::fmt;

use super::{Drain, Event, Machine, Predecessor, Refusal, State, Timer, Wanted};

impl State {
    /// Every state, draining once for each thing to drain for; in the order of a life.
    pub const ALL: [Self; 7] = [
        Self::Running,
        Self::Upgrading,
        Self::Draining(Drain::Committed),
        Self::Draining(Drain::Probation),
        Self::Draining(Drain::Proven),
        Self::Draining(Drain::Shutdown),
        Self::Exited,
    ];

    /// The state's name alone.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Upgrading => "Upgrading",
            Self::Draining(_) => "Draining",
            Self::Exited => "Exited",
        }
    }
}

impl Predecessor {
    /// Every predecessor there can be.
    pub const ALL: [Self; 4] = [Self::Gone, Self::Leaving, Self::Trusting, Self::Owner];
}

impl Wanted {
    /// Every way in which an upgrade can be wanted, or not.
    pub const ALL: [Self; 3] = [Self::No, Self::BySuccessor, Self::Here];
}

impl Event {
    /// Every event, in the order of this page.
    pub const ALL: [Self; 31] = [
        Self::SetUpDone,
        Self::UpgradeRequested,
        Self::ShutdownRequested,
        Self::ExitRequested,
        Self::SuccessorReady,
        Self::SuccessorServing,
        Self::SuccessorAnswered,
        Self::SuccessorWantsUpgrade,
        Self::SuccessorHungUp,
        Self::SuccessorLost,
        Self::SuccessorStopped,
        Self::SuccessorSilent,
        Self::Committed,
        Self::PidFileWritten,
        Self::PredecessorAsked,
        Self::GivenUp,
        Self::PredecessorGone,
        Self::PredecessorSilent,
        Self::SessionsSent,
        Self::SessionsSettled,
        Self::SessionsGone,
        Self::HandlerPanicked,
        Self::Failed,
        Self::StoodStill,
        Self::UpgradeTimedOut,
        Self::TakeoverTimedOut,
        Self::StatusTimedOut,
        Self::ProbationOver,
        Self::DrainTimedOut,
        Self::DepartureTimedOut,
        Self::PauseOver,
    ];
}

impl Timer {
    /// Every timer.
    pub const ALL: [Self; 7] = [
        Self::Upgrade,
        Self::Takeover,
        Self::Status,
        Self::Probation,
        Self::Drain,
        Self::Departure,
        Self::Pause,
    ];

    /// What it means that this timer ran out.
    #[must_use]
    pub const fn event(self) -> Event {
        match self {
            Self::Upgrade => Event::UpgradeTimedOut,
            Self::Takeover => Event::TakeoverTimedOut,
            Self::Status => Event::StatusTimedOut,
            Self::Probation => Event::ProbationOver,
            Self::Drain => Event::DrainTimedOut,
            Self::Departure => Event::DepartureTimedOut,
            Self::Pause => Event::PauseOver,
        }
    }
}

impl Machine {
    /// Every machine that can be written down, those that no history leads to included. The
    /// function is total over all of them.
    pub fn all() -> impl Iterator<Item = Self> {
        State::ALL.into_iter().flat_map(|state| {
            Predecessor::ALL.into_iter().flat_map(move |predecessor| {
                Wanted::ALL.into_iter().flat_map(move |wanted| {
                    [false, true].map(|pausing| Self { state, predecessor, wanted, pausing })
                })
            })
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Draining(drain) => write!(f, "Draining ({drain})"),
            Self::Running | Self::Upgrading | Self::Exited => f.write_str(self.name()),
        }
    }
}

impl fmt::Display for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Committed => "committed",
            Self::Probation => "probation",
            Self::Proven => "proven",
            Self::Shutdown => "shutdown",
        })
    }
}

impl fmt::Display for Predecessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "gone",
            Self::Leaving => "leaving",
            Self::Trusting => "trusting",
            Self::Owner => "owner",
        })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::No => "not wanted",
            Self::BySuccessor => "wanted by the successor",
            Self::Here => "wanted",
        })
    }
}

/// In words, for the log.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SetUpDone => "set up",
            Self::UpgradeRequested => "upgrade requested",
            Self::ShutdownRequested => "shutdown requested",
            Self::ExitRequested => "exit requested",
            Self::SuccessorReady => "successor ready",
            Self::SuccessorServing => "successor serving",
            Self::SuccessorWantsUpgrade => "upgrade requested of the successor",
            Self::SuccessorAnswered => "successor answered",
            Self::SuccessorHungUp => "successor hung up",
            Self::SuccessorLost => "successor lost",
            Self::SuccessorStopped => "successor stopped",
            Self::SuccessorSilent => "successor silent",
            Self::Committed => "committed to by the predecessor",
            Self::PidFileWritten => "pid file written",
            Self::PredecessorAsked => "asked by the predecessor",
            Self::GivenUp => "given up by the predecessor",
            Self::PredecessorGone => "predecessor gone",
            Self::PredecessorSilent => "not committed to in time",
            Self::SessionsSent => "sessions sent",
            Self::SessionsSettled => "sessions settled",
            Self::SessionsGone => "sessions gone",
            Self::HandlerPanicked => "a handler panicked",
            Self::Failed => "failed",
            Self::StoodStill => "stood still",
            Self::UpgradeTimedOut => "upgrade timed out",
            Self::TakeoverTimedOut => "takeover timed out",
            Self::StatusTimedOut => "successor hung up without an exit status",
            Self::ProbationOver => "probation over",
            Self::DrainTimedOut => "drain timed out",
            Self::DepartureTimedOut => "departure timed out",
            Self::PauseOver => "pause over",
        })
    }
}

/// In words, for the log.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ShuttingDown => "this process is shutting down",
            Self::Exited => "this process has exited",
        })
    }
}
