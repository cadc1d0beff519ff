//! What has to come of each fault at each step: the one place to look it up, and to add to.

use std::fmt;

use tablecloth::fault::Point;

/// What goes wrong: a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Killed,
    /// And continued as soon as it stands still.
    Stopped,
    /// And continued only when the other process has done what it does about it.
    StoppedForLong,
    ExitsWith0,
    ExitsWith1,
    /// On the handoff socket.
    Garbage,
    /// EMFILE.
    NoDescriptors,
    /// ENOMEM.
    NoMemory,
    /// Under the pid file.
    FullDisk,
    /// Two at once: whoever goes on has to put the pid file right without space for it.
    KilledOnFullDisk,
    OtherProtocol,
    /// TERM, which asks for an orderly end.
    ToldToStop,
    /// Together with the process beside it, for longer than every deadline; then both go on.
    BothStopped,
}

impl Fault {
    pub(crate) const ALL: [Self; 13] = [
        Self::Killed,
        Self::Stopped,
        Self::StoppedForLong,
        Self::ExitsWith0,
        Self::ExitsWith1,
        Self::Garbage,
        Self::NoDescriptors,
        Self::NoMemory,
        Self::FullDisk,
        Self::KilledOnFullDisk,
        Self::OtherProtocol,
        Self::ToldToStop,
        Self::BothStopped,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Killed => "kill -9",
            Self::Stopped => "stopped",
            Self::StoppedForLong => "stopped for long",
            Self::ExitsWith0 => "exit 0",
            Self::ExitsWith1 => "exit 1",
            Self::Garbage => "garbage",
            Self::NoDescriptors => "EMFILE",
            Self::NoMemory => "ENOMEM",
            Self::FullDisk => "full disk",
            Self::KilledOnFullDisk => "full disk, kill -9",
            Self::OtherProtocol => "other protocol",
            Self::ToldToStop => "TERM",
            Self::BothStopped => "both stopped",
        })
    }
}

/// Who serves in the end, and what became of the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    Failed,
    RolledBack,
    SoleOwner,
    StartedAgain,
    Ended,
}

impl Outcome {
    pub(crate) const ALL: [Self; 6] = [
        Self::Committed,
        Self::Failed,
        Self::RolledBack,
        Self::SoleOwner,
        Self::StartedAgain,
        Self::Ended,
    ];

    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Committed => "the successor serves, and the predecessor has left in order",
            Self::Failed => "the predecessor serves, and never stopped to",
            Self::RolledBack => "the predecessor serves again, after it had committed",
            Self::SoleOwner => "the successor serves, and the predecessor is dead",
            Self::StartedAgain => {
                "the process that died was the only one; the next one that somebody starts serves on \
                 the same address, and finds nothing in its way"
            }
            Self::Ended => {
                "somebody has told the process that serves, or is about to, to stop, and the service \
                 with it; the next one that somebody starts serves, as above"
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Committed => "committed",
            Self::Failed => "failed",
            Self::RolledBack => "rolled back",
            Self::SoleOwner => "sole owner",
            Self::StartedAgain => "started again",
            Self::Ended => "ended",
        })
    }
}

/// What a cell has to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// No connection is dropped.
    All(Outcome),
    /// Those that died with the process that had accepted them.
    Losing(Outcome),
    /// And the session that the process had acknowledged before it died.
    LosingMoved(Outcome),
    /// The fault means nothing there; why.
    Void(&'static str),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(outcome) => write!(f, "{outcome}"),
            Self::Losing(outcome) | Self::LosingMoved(outcome) => write!(f, "{outcome} †"),
            Self::Void(_) => f.write_str("—"),
        }
    }
}

/// When a process that was stopped for long is continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// There is nobody who could act on a deadline.
    Nobody,
    /// When the other process has said this.
    BySaying(&'static str),
    /// By death: the other process kills it.
    ByDeath,
}

/// A step of an upgrade.
pub(crate) struct Row {
    /// Its number in the list of steps in state-machine.md.
    pub(crate) step: u8,
    pub(crate) point: Point,
    pub(crate) released: Released,
    /// Whether sessions move.
    pub(crate) moves: bool,
    /// By fault, in the order of [`Fault::ALL`].
    pub(crate) expected: [Expected; 13],
}

impl Row {
    const fn new(step: u8, point: Point, released: Released, expected: [Expected; 13]) -> Self {
        Self { step, point, released, moves: false, expected }
    }

    /// A row in which a session moves, while the one that the successor refuses stays.
    const fn moving(step: u8, point: Point, released: Released, expected: [Expected; 13]) -> Self {
        Self { step, point, released, moves: true, expected }
    }
}

pub(crate) const VOIDS: [&str; 4] = [ALONE, NO_SOCKET, ON_SPAWN, IN_HELLO];

const ALONE: &str = "a process that stands still with nobody beside it is merely late";
const NO_SOCKET: &str = "garbage takes a handoff socket, and somebody at its other end";
const ON_SPAWN: &str = "only the spawn can survive a failed allocation, and anywhere else a Rust program \
                        aborts, which equals kill -9";
const IN_HELLO: &str = "the protocol is said in HELLO, and there alone";

const COMMITTED: Expected = Expected::All(Outcome::Committed);
const FAILED: Expected = Expected::All(Outcome::Failed);
const BACK: Expected = Expected::All(Outcome::RolledBack);
/// The successor may have accepted before it is killed.
const BACK_L: Expected = Expected::Losing(Outcome::RolledBack);
const SOLE_L: Expected = Expected::Losing(Outcome::SoleOwner);
const AGAIN_L: Expected = Expected::Losing(Outcome::StartedAgain);
const ENDED_L: Expected = Expected::Losing(Outcome::Ended);
/// What it has acknowledged is its own, and nobody else's.
const BACK_M: Expected = Expected::LosingMoved(Outcome::RolledBack);
const ENDED_M: Expected = Expected::LosingMoved(Outcome::Ended);
const NOBODY: Expected = Expected::Void(ALONE);
const NO_SOCK: Expected = Expected::Void(NO_SOCKET);
const NO_MEM: Expected = Expected::Void(ON_SPAWN);
const NO_HELLO: Expected = Expected::Void(IN_HELLO);

/// Points that are come to only when the last session has ended.
pub(crate) const WITHOUT_SESSIONS: [Point; 2] = [Point::Leaving, Point::Alone];

const GIVEN_UP: Released = Released::BySaying("did not commit to this process within");
const LEFT: Released = Released::BySaying("finish the old process");

/// Faults of the process that was told to upgrade.
#[rustfmt::skip]
pub(crate) const PREDECESSOR: &[Row] = &[
    // Before there is a successor, its death is that of any server. From the spawn on the
    // successor has all it needs, and from the ready byte on it waits for a word or an end.
    Row::new(1, Point::Spawn, Released::Nobody,
        // kill    stopped    for long   exit 0     exit 1     garbage    EMFILE     ENOMEM  disk       and kill   protocol  TERM     both
        [AGAIN_L,  COMMITTED, NOBODY,    AGAIN_L,   AGAIN_L,   NO_SOCK,   FAILED,    FAILED, FAILED,    AGAIN_L,   NO_HELLO, ENDED_L, NOBODY]),
    Row::new(1, Point::Spawning, Released::Nobody,
        [AGAIN_L,  COMMITTED, NOBODY,    AGAIN_L,   AGAIN_L,   COMMITTED, FAILED,    FAILED, FAILED,    AGAIN_L,   NO_HELLO, ENDED_L, NOBODY]),
    // What is taken from it now, it does not need any more. A full disk is the successor's too,
    // which cannot set itself up then, for whomever.
    Row::new(1, Point::Spawned, GIVEN_UP,
        [SOLE_L,   COMMITTED, FAILED,    SOLE_L,    SOLE_L,    COMMITTED, COMMITTED, NO_MEM, FAILED,    AGAIN_L,   NO_HELLO, ENDED_L, COMMITTED]),
    Row::new(2, Point::HelloHeard, GIVEN_UP,
        [SOLE_L,   COMMITTED, FAILED,    SOLE_L,    SOLE_L,    COMMITTED, COMMITTED, NO_MEM, FAILED,    AGAIN_L,   NO_HELLO, ENDED_L, COMMITTED]),
    // It commits when it wakes up, to nobody.
    Row::new(5, Point::ReadyHeard, GIVEN_UP,
        [SOLE_L,   COMMITTED, BACK,      SOLE_L,    SOLE_L,    COMMITTED, COMMITTED, NO_MEM, COMMITTED, SOLE_L,    NO_HELLO, ENDED_L, COMMITTED]),
    Row::new(5, Point::Paused, GIVEN_UP,
        [SOLE_L,   COMMITTED, BACK,      SOLE_L,    SOLE_L,    COMMITTED, COMMITTED, NO_MEM, COMMITTED, SOLE_L,    NO_HELLO, ENDED_L, COMMITTED]),
    // From here on the successor serves, whatever becomes of this process. One that does not
    // leave is killed.
    Row::new(5, Point::CommitSent, Released::ByDeath,
        [SOLE_L,   COMMITTED, SOLE_L,    SOLE_L,    SOLE_L,    COMMITTED, COMMITTED, NO_MEM, COMMITTED, SOLE_L,    NO_HELLO, ENDED_L, COMMITTED]),
    Row::new(6, Point::ServingHeard, Released::ByDeath,
        [SOLE_L,   COMMITTED, SOLE_L,    SOLE_L,    SOLE_L,    COMMITTED, COMMITTED, NO_MEM, COMMITTED, SOLE_L,    NO_HELLO, COMMITTED, COMMITTED]),
    Row::new(6, Point::ProbationOver, Released::ByDeath,
        [SOLE_L,   COMMITTED, SOLE_L,    SOLE_L,    SOLE_L,    COMMITTED, COMMITTED, NO_MEM, COMMITTED, SOLE_L,    NO_HELLO, COMMITTED, COMMITTED]),
    Row::new(6, Point::PingSent, Released::ByDeath,
        [SOLE_L,   COMMITTED, SOLE_L,    SOLE_L,    SOLE_L,    COMMITTED, COMMITTED, NO_MEM, COMMITTED, SOLE_L,    NO_HELLO, COMMITTED, COMMITTED]),
    // What it has sent is the successor's, acknowledged or still in the socket: only the session
    // that stays dies with it.
    Row::moving(7, Point::SessionsSent, Released::ByDeath,
        [SOLE_L,   COMMITTED, SOLE_L,    SOLE_L,    SOLE_L,    COMMITTED, COMMITTED, NO_MEM, COMMITTED, SOLE_L,    NO_HELLO, COMMITTED, COMMITTED]),
    Row::moving(7, Point::AckHeard, Released::ByDeath,
        [SOLE_L,   COMMITTED, SOLE_L,    SOLE_L,    SOLE_L,    COMMITTED, COMMITTED, NO_MEM, COMMITTED, SOLE_L,    NO_HELLO, COMMITTED, COMMITTED]),
    // It has no session left that could die with it.
    Row::new(8, Point::Leaving, Released::ByDeath,
        [COMMITTED, COMMITTED, COMMITTED, COMMITTED, COMMITTED, COMMITTED, COMMITTED, NO_MEM, COMMITTED, COMMITTED, NO_HELLO, COMMITTED, COMMITTED]),
];

/// Faults of the process that was spawned.
#[rustfmt::skip]
pub(crate) const SUCCESSOR: &[Row] = &[
    // Until it has said ready its failure is an upgrade's failure, and nobody is served by it. A signal
    // that comes before is heard after.
    Row::new(2, Point::Started, Released::ByDeath,
        // kill   stopped    for long   exit 0   exit 1   garbage  EMFILE     ENOMEM  disk       and kill protocol  TERM   both
        [FAILED,  COMMITTED, FAILED,    FAILED,  FAILED,  FAILED,  FAILED,    NO_MEM, FAILED,    FAILED,  NO_HELLO, BACK, COMMITTED]),
    Row::new(2, Point::Adopted, Released::ByDeath,
        [FAILED,  COMMITTED, FAILED,    FAILED,  FAILED,  FAILED,  FAILED,    NO_MEM, FAILED,    FAILED,  FAILED, BACK, COMMITTED]),
    Row::new(2, Point::HelloSaid, Released::ByDeath,
        [FAILED,  COMMITTED, FAILED,    FAILED,  FAILED,  FAILED,  FAILED,    NO_MEM, FAILED,    FAILED,  NO_HELLO, BACK, COMMITTED]),
    // Set up, it has every descriptor and the pid file that it needs.
    Row::new(4, Point::SetUp, Released::ByDeath,
        [FAILED,  COMMITTED, FAILED,    FAILED,  FAILED,  FAILED,  COMMITTED, NO_MEM, COMMITTED, FAILED,  NO_HELLO, BACK, COMMITTED]),
    Row::new(4, Point::ReadySaid, Released::ByDeath,
        // While nonsense is on its way, it goes on and may accept until it is killed.
        [BACK,    COMMITTED, BACK,      BACK,    BACK,    BACK_L,  COMMITTED, NO_MEM, COMMITTED, BACK,    NO_HELLO, BACK, COMMITTED]),
    Row::new(5, Point::CommitHeard, Released::ByDeath,
        [BACK,    COMMITTED, BACK,      BACK,    BACK,    BACK_L,  COMMITTED, NO_MEM, COMMITTED, BACK,    NO_HELLO, ENDED_L, COMMITTED]),
    Row::new(6, Point::Accepting, Released::ByDeath,
        [BACK,    COMMITTED, BACK,      BACK,    BACK,    BACK_L,  COMMITTED, NO_MEM, COMMITTED, BACK,    NO_HELLO, ENDED_L, COMMITTED]),
    // The pid file is written beside the loop: it has sessions of its own by now.
    Row::new(6, Point::PidFileWritten, Released::ByDeath,
        [BACK_L,  COMMITTED, BACK_L,    BACK_L,  BACK_L,  BACK_L,  COMMITTED, NO_MEM, COMMITTED, BACK_L,  NO_HELLO, ENDED_L, COMMITTED]),
    // Status 0 does not mean that it was told to stop: who was has said so.
    Row::new(6, Point::ServingSaid, Released::ByDeath,
        [BACK_L,  COMMITTED, BACK_L,    BACK_L,  BACK_L,  BACK_L,  COMMITTED, NO_MEM, COMMITTED, BACK_L,  NO_HELLO, ENDED_L, COMMITTED]),
    Row::new(6, Point::PingHeard, Released::ByDeath,
        [BACK_L,  COMMITTED, BACK_L,    BACK_L,  BACK_L,  BACK_L,  COMMITTED, NO_MEM, COMMITTED, BACK_L,  NO_HELLO, ENDED_L, COMMITTED]),
    // Proven, and still rolled back while there is somebody to do it: the predecessor has a session.
    Row::new(6, Point::PongSaid, LEFT,
        [BACK_L,  COMMITTED, COMMITTED, BACK_L,  BACK_L,  BACK_L,  COMMITTED, NO_MEM, COMMITTED, BACK_L,  NO_HELLO, ENDED_L, COMMITTED]),
    // What it has not acknowledged comes back. After nonsense it goes on, and may acknowledge.
    Row::moving(7, Point::SessionsHeard, Released::ByDeath,
        [BACK_L,  COMMITTED, BACK_L,    BACK_L,  BACK_L,  BACK_M,  COMMITTED, NO_MEM, COMMITTED, BACK_L,  NO_HELLO, ENDED_L, COMMITTED]),
    Row::moving(7, Point::AckSaid, LEFT,
        [BACK_M,  COMMITTED, COMMITTED, BACK_M,  BACK_M,  BACK_M,  COMMITTED, NO_MEM, COMMITTED, BACK_M,  NO_HELLO, ENDED_M, COMMITTED]),
    Row::new(8, Point::Alone, Released::Nobody,
        [AGAIN_L, COMMITTED, NOBODY,    AGAIN_L, AGAIN_L, NO_SOCK, COMMITTED, NO_MEM, COMMITTED, AGAIN_L, NO_HELLO, ENDED_L, NOBODY]),
];

/// One cell.
#[derive(Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) row: &'static Row,
    pub(crate) fault: Fault,
    pub(crate) of_predecessor: bool,
    pub(crate) expected: Expected,
}

impl Cell {
    pub(crate) fn all() -> Vec<Self> {
        let of = |rows: &'static [Row], of_predecessor| {
            rows.iter().flat_map(move |row| {
                let faults = Fault::ALL.into_iter().zip(row.expected);
                faults.map(move |(fault, expected)| Self { row, fault, of_predecessor, expected })
            })
        };
        of(PREDECESSOR, true).chain(of(SUCCESSOR, false)).collect()
    }

    /// What is done at which point, in this order.
    pub(crate) fn deeds(&self, disk: &str) -> Vec<(Point, String)> {
        let fill = format!("fill {disk}");
        let deeds = match self.fault {
            Fault::Killed => vec!["kill"],
            Fault::Stopped | Fault::StoppedForLong => vec!["stop"],
            Fault::ExitsWith0 => vec!["exit 0"],
            Fault::ExitsWith1 => vec!["exit 1"],
            Fault::Garbage => vec!["garbage"],
            Fault::NoDescriptors => vec!["emfile"],
            Fault::NoMemory => vec!["enomem"],
            Fault::FullDisk => vec![fill.as_str()],
            Fault::KilledOnFullDisk => vec![fill.as_str(), "kill"],
            Fault::OtherProtocol => vec!["protocol"],
            Fault::ToldToStop => vec!["term"],
            Fault::BothStopped => vec!["stop"],
        };
        let mut deeds: Vec<_> =
            deeds.into_iter().map(|deed| (self.row.point, deed.to_owned())).collect();
        // Where the two processes would race, the one waits for the other.
        match (self.row.point, self.fault) {
            // What is just after the spawn is before the successor's first step.
            (Point::Spawned, _) => deeds.push((Point::Started, "pass".into())),
            // The disk is full before the successor tries it.
            (Point::HelloHeard, Fault::FullDisk | Fault::KilledOnFullDisk) => {
                deeds.push((Point::HelloSaid, "pass".into()));
            }
            // The spawn has what it needs, although the successor's words can be here before its
            // answer is.
            (Point::Spawn | Point::Spawning, Fault::NoDescriptors) => {}
            (_, Fault::NoDescriptors) if self.of_predecessor => {
                deeds.insert(0, (Point::Spawned, "pass".into()));
            }
            // The ready byte is read before the nonsense is.
            (Point::ReadySaid, Fault::Garbage) => {
                deeds.insert(0, (Point::Paused, "pass".into()));
            }
            // The test has it hear the signal only when the predecessor has committed.
            (Point::ReadySaid, Fault::ToldToStop) => {
                deeds.insert(0, (Point::CommitSent, "pass".into()));
            }
            (
                Point::Started | Point::Adopted | Point::HelloSaid | Point::SetUp,
                Fault::ToldToStop,
            ) => {
                deeds.push((Point::CommitSent, "pass".into()));
                deeds.push((Point::ReadySaid, "pass".into()));
            }
            (_, _) => {}
        }
        deeds
    }

    /// Whether the process dies of it by itself.
    pub(crate) fn is_deadly(&self) -> bool {
        matches!(
            self.fault,
            Fault::Killed | Fault::ExitsWith0 | Fault::ExitsWith1 | Fault::KilledOnFullDisk
        )
    }

    /// What the log must say, and what says that it is known why.
    pub(crate) fn words(&self, outcome: Outcome) -> (&'static str, &'static [&'static str]) {
        match outcome {
            Outcome::Committed if self.fault == Fault::Garbage => {
                ("the predecessor talked nonsense", &[""])
            }
            Outcome::Committed => ("done; spawn", &[""]),
            Outcome::SoleOwner if self.fault == Fault::StoppedForLong => {
                ("did not leave within", &["killing it"])
            }
            Outcome::SoleOwner => ("alone", &[""]),
            Outcome::StartedAgain => ("fault at", &[""]),
            Outcome::Ended => ("got message SIGTERM", &[""]),
            Outcome::Failed | Outcome::RolledBack => ("failed in", self.cause()),
        }
    }

    fn cause(&self) -> &'static [&'static str] {
        match self.fault {
            Fault::Killed | Fault::KilledOnFullDisk => &["the successor was killed by SIGKILL"],
            Fault::ExitsWith0 => &["the successor exited with status 0"],
            Fault::ExitsWith1 => &["the successor exited with status 1"],
            Fault::Stopped => &[],
            Fault::StoppedForLong if self.of_predecessor => &["did not commit to this process"],
            Fault::StoppedForLong => {
                &["was not ready within", "did not serve within", "did not answer within"]
            }
            Fault::Garbage => &["the successor talked nonsense"],
            // The spawn does not pass on what lies beyond the limit: EBADF
            // (posix_spawn_file_actions_adddup2(3)).
            Fault::NoDescriptors => {
                &["Too many open files", "RLIMIT_NOFILE", "Bad file descriptor"]
            }
            // No stack for the spawning thread: EAGAIN (pthread_create(3)).
            Fault::NoMemory => &["Cannot allocate memory", "start the spawning thread"],
            Fault::FullDisk => &["No space left on device"],
            Fault::OtherProtocol => &["the successor speaks handoff protocol 99"],
            Fault::ToldToStop => &["the successor refused and exited with status 0"],
            Fault::BothStopped => &[],
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:?}", self.fault, self.row.point)
    }
}
