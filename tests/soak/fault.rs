//! What goes wrong in an upgrade of the soak: a step, and what whoever comes to it does then.

use std::fmt;
use std::time::Duration;

use tablecloth::fault::Point;

/// What a process does at a step of an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    Kill,
    ExitZero,
    ExitOne,
    Panic,
    /// It stands still for less than any deadline.
    StopShortly,
    /// It stands still until the other process has done something about it.
    StopForLong,
    Garbage,
    Protocol,
    /// It says so much nonsense that nothing more fits into the socket.
    Drown,
    NoDescriptors,
    NoMemory,
}

impl Deed {
    const ALL: [Self; 11] = [
        Self::Kill,
        Self::ExitZero,
        Self::ExitOne,
        Self::Panic,
        Self::StopShortly,
        Self::StopForLong,
        Self::Garbage,
        Self::Protocol,
        Self::Drown,
        Self::NoDescriptors,
        Self::NoMemory,
    ];

    /// As the fault file says it.
    fn words(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::ExitZero => "exit 0",
            Self::ExitOne => "exit 1",
            Self::Panic => "panic",
            Self::StopShortly | Self::StopForLong => "stop",
            Self::Garbage => "garbage",
            Self::Protocol => "protocol",
            Self::Drown => "drown",
            Self::NoDescriptors => "emfile",
            Self::NoMemory => "enomem",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) point: Point,
    pub(crate) deed: Deed,
}

impl Fault {
    /// Every fault that a service can be expected to live through.
    pub(crate) fn all() -> Vec<Self> {
        let faults = Point::ALL.into_iter().flat_map(|point| {
            Deed::ALL.into_iter().map(move |deed| Self { point, deed }).filter(Self::makes_sense)
        });
        faults.collect()
    }

    pub(crate) fn words(&self) -> &'static str {
        self.deed.words()
    }

    fn makes_sense(&self) -> bool {
        // The sessions of this actor do not move.
        let of_a_handoff =
            [Point::SessionsSent, Point::AckHeard, Point::SessionsHeard, Point::AckSaid];
        if of_a_handoff.contains(&self.point) {
            return false;
        }
        // Before the spawn, and once the successor has proved itself, there is no other process that
        // would go on, or that could be spoken to.
        let is_last_hope =
            matches!(self.point, Point::Spawn | Point::Spawning) || self.is_from(Point::PongSaid);
        match self.deed {
            Deed::Kill | Deed::ExitOne | Deed::StopForLong => !is_last_hope,
            // Status 0 of a process that serves says that it was told to stop.
            Deed::ExitZero => !is_last_hope && !self.is_from(Point::ServingSaid),
            // There it is the spawning thread that panics, and not the process; and the handoff
            // socket, to say something on, is made before.
            Deed::Panic | Deed::Garbage | Deed::Protocol | Deed::Drown => {
                !is_last_hope || self.point == Point::Spawning
            }
            Deed::StopShortly | Deed::NoDescriptors => true,
            // It is taken away until the spawn is over.
            Deed::NoMemory => self.point == Point::Spawning,
        }
    }

    /// Whether it ends the process that it strikes.
    pub(crate) fn is_deadly(&self) -> bool {
        match self.deed {
            Deed::Kill | Deed::ExitZero | Deed::ExitOne => true,
            Deed::Panic => !matches!(self.point, Point::Spawning | Point::Spawned),
            Deed::StopShortly
            | Deed::StopForLong
            | Deed::Garbage
            | Deed::Protocol
            | Deed::Drown
            | Deed::NoDescriptors
            | Deed::NoMemory => false,
        }
    }

    /// Whether the process that it strikes may have connections by then.
    pub(crate) fn strikes_a_host(&self) -> bool {
        if self.strikes_the_predecessor() {
            // Whoever is about to leave has come to the end of them.
            self.point != Point::Leaving
        } else {
            // It accepts while its pid file is written beside the loop.
            self.is_from(Point::PidFileWritten)
        }
    }

    pub(crate) fn strikes_the_predecessor(&self) -> bool {
        !self.is_from(Point::Started)
    }

    /// Whether it strikes the successor at this step of its or a later one.
    fn is_from(&self, first: Point) -> bool {
        place(self.point) >= place(first)
    }
}

/// The points stand in the order of an upgrade, the predecessor's first.
fn place(point: Point) -> usize {
    Point::ALL.iter().position(|other| *other == point).unwrap_or(usize::MAX)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.deed, self.point)
    }
}

/// All faults in random order, and again when all have been drawn: a long run meets every one.
pub(crate) struct Deck {
    random: fastrand::Rng,
    left: Vec<Fault>,
}

impl Deck {
    pub(crate) fn shuffled(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), left: Vec::new() }
    }

    pub(crate) fn draw(&mut self) -> Option<Fault> {
        if self.left.is_empty() {
            self.left = Fault::all();
            self.random.shuffle(&mut self.left);
        }
        self.left.pop()
    }

    /// How long a process stands still that stands still shortly.
    pub(crate) fn short_stop(&mut self) -> Duration {
        Duration::from_millis(self.random.u64(1..100))
    }
}
