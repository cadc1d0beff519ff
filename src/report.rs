//! How an upgrade ended, in numbers or in words.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;
use crate::wire::{PROTOCOL, ProtocolRange};

/// How an upgrade ended. There is one for each upgrade, and a second one if it is rolled back after
/// the successor had served.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// The predecessor's process id.
    pub from: u32,
    /// The successor's process id, if it came into being.
    pub to: Option<u32>,
    /// The successor's generation: the predecessor's and one more.
    pub generation: u64,
    /// The program that was executed, or was to be: the path by which the first process was started.
    pub program: PathBuf,
    /// What the successor has written to standard error last, before it served, if the process has an
    /// [admin endpoint](field@crate::Config::admin) and the upgrade has failed: some lines, or nothing.
    pub last_words: String,
    /// The time that each step took, or the step that failed and why.
    pub outcome: Result<Timings, Failure>,
}

/// How long each step of an upgrade took, by the monotonic clock of the predecessor.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Timings {
    /// From the request to the end of the spawn: the successor's program is executed.
    pub spawn: Duration,
    /// From there until the ready byte was read.
    pub set_up: Duration,
    /// From there until the successor said that it accepts.
    pub takeover: Duration,
    /// The longest turn of the predecessor's loop meanwhile: how long its sessions waited at most.
    pub longest_turn: Duration,
}

/// What became of the sessions in an upgrade, at its end.
///
/// `moved 10000 sessions in 61.200 ms, each stood still for at most 0.912 ms, median 0.301 ms`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Moved {
    /// How many have moved to the successor.
    pub moved: usize,
    /// How often the successor has refused one; each was asked again later.
    pub refused: usize,
    /// How many have stayed, and come to their end in this process.
    pub stayed: usize,
    /// How many were cut, because the drain timeout was over or the process was told to exit.
    pub cut: usize,
    /// How long it took, from the end of the probation to the last answer of the successor.
    pub took: Duration,
    /// How long the session stood still that did so for the longest time: from the moment in which it was
    /// taken out of this process's loop until the successor's answer was here.
    pub longest: Duration,
    /// The same for the session in the middle.
    pub median: Duration,
}

impl Moved {
    /// Whether there was no session that anything could have become of.
    pub(crate) fn is_nothing(&self) -> bool {
        self.moved + self.refused + self.stayed + self.cut == 0
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "moved {} sessions in {}, each stood still for at most {}, median {}",
            self.moved,
            Milliseconds(self.took),
            Milliseconds(self.longest),
            Milliseconds(self.median),
        )?;
        for (count, what) in
            [(self.refused, "refused"), (self.stayed, "stayed to their end"), (self.cut, "cut")]
        {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// Why an upgrade failed.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The step that failed.
    pub stage: Stage,
    /// What happened.
    pub cause: Cause,
}

/// The steps of an upgrade, as the predecessor sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The successor is being spawned.
    Spawn,
    /// The successor sets itself up.
    SetUp,
    /// The successor is ready and has not said yet that it accepts.
    Takeover,
    /// The successor serves, and the predecessor drains.
    Draining,
}

/// What happened to a successor.
#[derive(Debug)]
#[non_exhaustive]
pub enum Cause {
    /// It could not be executed, or what it needs could not be made.
    NotSpawned {
        /// What failed, with its object.
        operation: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The pid file could not be prepared for a rollback.
    PidFile(Error),
    /// The successor would run out of descriptors: it has the same limit as this process, and needs
    /// as many for the same listeners and sessions.
    NoRoom {
        /// How many descriptors this process has open.
        used: u64,
        /// How many it may have (RLIMIT_NOFILE, getrlimit(2)).
        limit: u64,
    },
    /// It exited with this status.
    Exited(i32),
    /// It was killed by this signal.
    Killed(i32),
    /// It ended, and somebody else has taken its status.
    Ended,
    /// It was not ready in time, and was killed.
    NotReady(Duration),
    /// It was ready and did not serve in time, and was killed.
    NotServing(Duration),
    /// It served, did not answer in time when its probation was over, and was killed.
    NotAnswering(Duration),
    /// It closed the handoff and lived on, and was killed.
    HungUp,
    /// It said why it would not take over.
    Refused {
        /// What it said.
        reason: String,
        /// The status with which it exited then, if it did in time.
        status: Option<i32>,
    },
    /// It sent what is no handoff message, or one out of turn, and was killed.
    Nonsense(String),
    /// The application's state could not be handed over to it, and it was killed.
    NotHandedOver(io::Error),
    /// It does not read the handoff socket, which is full, and was killed.
    NotListening,
    /// This process is process 1: its end would end every process of its pid namespace, the
    /// successor included (pid_namespaces(7)).
    ProcessOne,
    /// It speaks another version of the handoff protocol, and was killed.
    Protocol(ProtocolRange),
    /// The predecessor was told to stop first, and killed it.
    ShuttingDown,
    /// It was ready after this time, and was given up, because only a check was asked for.
    Checked(Duration),
    /// Its build does not take its standard error back, which a pipe stands in for, and it was killed. It is
    /// started again without that.
    KeepsStderr,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "upgrade {} -> ", self.from)?;
        match self.to {
            Some(pid) => write!(f, "{pid}")?,
            None => f.write_str("(none)")?,
        }
        write!(f, " to generation {}: ", self.generation)?;
        match &self.outcome {
            Ok(timings) => write!(
                f,
                "done; spawn {}, set-up {}, takeover {}, longest turn {}",
                Milliseconds(timings.spawn),
                Milliseconds(timings.set_up),
                Milliseconds(timings.takeover),
                Milliseconds(timings.longest_turn),
            )?,
            Err(Failure { cause: cause @ Cause::Checked(_), .. }) => write!(f, "checked: {cause}")?,
            Err(failure) => write!(f, "failed in {}: {}", failure.stage, failure.cause)?,
        }
        // Without a successor no program was executed; the cause names it where it matters.
        match self.to {
            Some(_) => write!(f, "; program {}", self.program.display()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spawn => "spawn",
            Self::SetUp => "set-up",
            Self::Takeover => "takeover",
            Self::Draining => "draining",
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSpawned { operation, source } => write!(f, "{operation}: {source}"),
            Self::PidFile(error) => write!(f, "{error}"),
            Self::NoRoom { used, limit } => write!(
                f,
                "{used} of {limit} descriptors are in use, too many for a successor to have the same \
                 and some more: raise RLIMIT_NOFILE",
            ),
            Self::Exited(status) => write!(f, "the successor exited with status {status}"),
            Self::Killed(signal) => {
                write!(f, "the successor was killed by {}", crate::sys::signal_name(*signal))
            }
            Self::Ended => f.write_str("the successor ended, and its status is not known"),
            Self::NotReady(time) => write!(f, "the successor was not ready within {time:?}"),
            Self::NotServing(time) => write!(f, "the successor did not serve within {time:?}"),
            Self::NotAnswering(time) => {
                write!(f, "the successor stands still: it did not answer within {time:?}")
            }
            Self::HungUp => f.write_str("the successor closed the handoff and lived on"),
            Self::Refused { reason, status: None } => {
                write!(f, "the successor refused: {reason}")
            }
            Self::Refused { reason, status: Some(status) } => {
                write!(f, "the successor refused and exited with status {status}: {reason}")
            }
            Self::Nonsense(what) => write!(f, "the successor talked nonsense: {what}"),
            Self::Protocol(range) => write!(
                f,
                "the successor speaks handoff protocol {range}, and this process {PROTOCOL}",
            ),
            Self::NotHandedOver(error) => {
                write!(f, "the application's state could not be handed over: {error}")
            }
            Self::NotListening => f.write_str("the successor does not read the handoff socket"),
            Self::ProcessOne => f.write_str(
                "this is process 1, whose end would end its successor; call tablecloth::init at the top of \
                 main, or run it below another init process",
            ),
            Self::ShuttingDown => f.write_str("this process was told to stop"),
            Self::Checked(time) => write!(
                f,
                "the successor was ready after {}, and was given up, as a check does",
                Milliseconds(*time),
            ),
            Self::KeepsStderr => f.write_str(
                "the successor's build does not take its standard error back; it is started again with \
                 this process's own",
            ),
        }
    }
}

/// Milliseconds with three places: the unit and the precision that an upgrade is thought about in.
pub(crate) struct Milliseconds(pub(crate) Duration);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ms", self.0.as_secs_f64() * 1e3)
    }
}
