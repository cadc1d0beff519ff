//! The kernel's side of a successor: first a spawn, then a process, or two where a program stands in
//! between.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::report::Cause;
use crate::sys::{self, Spawned};
use crate::token::{Kind, Token};

/// What the spawning thread answers, and when it had the answer.
pub(super) type Answer = (Result<Spawned, NotSpawned>, Instant);

/// What went wrong on the spawning thread.
#[derive(Debug)]
pub(super) enum NotSpawned {
    Before(Cause),
    Spawn(sys::NotSpawned),
}

/// What was spawned, and who spoke. Mostly that is one process; but a script that does not `exec` the
/// program stays in front of it, and then the one that spoke is the successor, and the other one is
/// only to be reaped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// Who has said HELLO, by the kernel's word, as long as that is not known to be the child.
    speaker: Option<Watched>,
    /// The successor's process id, once it is known, and for good.
    pid: Option<u32>,
    attempt: u32,
}

#[derive(Debug)]
enum Child {
    Spawning(Receiver<Answer>),
    Alive(Watched),
    Ended(Ending),
    /// It could not be spawned.
    None,
}

/// A process whose death is heard of.
#[derive(Debug)]
struct Watched {
    pid: u32,
    fd: OwnedFd,
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    Exited(i32),
    Killed(i32),
    /// Somebody else reaped it.
    Unknown,
}

impl Process {
    pub(super) fn new(answer: Receiver<Answer>, attempt: u32) -> Self {
        Self { child: Child::Spawning(answer), speaker: None, pid: None, attempt }
    }

    /// The successor's process id, if it is known.
    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The spawning thread's answer, once.
    pub(super) fn answer(&self) -> Option<Answer> {
        let Child::Spawning(answer) = &self.child else { return None };
        match answer.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            // The thread panicked: the answer will not come.
            Err(TryRecvError::Disconnected) => {
                let source = io::Error::other("the spawning thread ended without an answer");
                let error = sys::NotSpawned { step: "execute", source };
                Some((Err(NotSpawned::Spawn(error)), Instant::now()))
            }
        }
    }

    /// Waits for that answer, and no longer than until `deadline`; `None` if it did not come, or was
    /// here before.
    pub(super) fn answer_by(&self, deadline: Instant) -> Option<Answer> {
        let Child::Spawning(answer) = &self.child else { return None };
        answer.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }

    /// There was one answer, and there is nobody to wait for.
    pub(super) fn not_spawned(&mut self) {
        if let Child::Spawning(_) = self.child {
            self.child = Child::None;
        }
    }

    /// Watches a process that was spawned for its death.
    pub(super) fn watch(&mut self, spawned: Spawned, registry: &Registry) -> io::Result<()> {
        let Spawned { pid, process: fd, .. } = spawned;
        let watched = Watched { pid, fd };
        let registered = watched.register(registry, self.attempt);
        self.pid.get_or_insert(pid);
        match &self.speaker {
            Some(speaker) if speaker.pid == pid => self.forget_speaker(registry),
            // It may be dead by now, and that was heard when nothing could be made of it.
            Some(speaker) => {
                speaker.deregister(registry);
                let _ = speaker.register(registry, self.attempt);
            }
            None => {}
        }
        self.child = Child::Alive(watched);
        registered
    }

    /// Watches the process that has said HELLO, unless that is the one that was spawned: it is the one
    /// that would serve, and it can be killed from here on, whether or not the spawn has its answer.
    pub(super) fn hear_speaker(&mut self, pid: u32, registry: &Registry) {
        if self.child.watched().is_some_and(|child| child.pid == pid) {
            return;
        }
        // It has the socket's other end and was there a moment ago, so that the id means it; if it is
        // dead by now, the end of the socket tells.
        let Ok(fd) = sys::process_descriptor(pid) else { return };
        let watched = Watched { pid, fd };
        if watched.register(registry, self.attempt).is_ok() {
            self.pid = Some(pid);
            self.speaker = Some(watched);
        }
    }

    fn forget_speaker(&mut self, registry: &Registry) {
        if let Some(speaker) = self.speaker.take() {
            speaker.deregister(registry);
        }
    }

    /// Kills whatever there is of it.
    pub(super) fn kill(&self) {
        for process in self.speaker.iter().chain(self.child.watched()) {
            // ESRCH: it is dead already, which is what is wanted.
            let _ = sys::kill(process.fd.as_fd());
        }
    }

    /// How the successor has ended, if it has. Reaps what was spawned. Never blocks.
    pub(super) fn ending(&mut self, registry: &Registry) -> Option<Ending> {
        self.reap(registry);
        match (&self.speaker, &self.child) {
            // It is most likely the child, whose status is known when the spawn has its answer.
            (Some(_), Child::Spawning(_)) => None,
            // It is somebody else's child, and its status is not ours to have.
            (Some(speaker), _) => speaker.is_dead().then_some(Ending::Unknown),
            (None, Child::Ended(ending)) => Some(*ending),
            (None, Child::Spawning(_) | Child::Alive(_) | Child::None) => None,
        }
    }

    /// Whether nothing is left of it: no process, and no spawn under way.
    pub(super) fn is_over(&mut self, registry: &Registry) -> bool {
        self.reap(registry);
        if self.speaker.as_ref().is_some_and(Watched::is_dead) {
            self.forget_speaker(registry);
        }
        self.speaker.is_none() && matches!(self.child, Child::Ended(_) | Child::None)
    }

    /// Waits for what there is of it to end, and no longer than until `deadline`.
    pub(super) fn wait_until(&self, deadline: Instant) {
        for process in self.speaker.iter().chain(self.child.watched()) {
            // Whatever it answers, somebody looks again.
            sys::is_dead_by(process.fd.as_fd(), deadline);
        }
    }

    /// Reaps the process that was spawned, if it has ended.
    fn reap(&mut self, registry: &Registry) {
        let Child::Alive(child) = &self.child else { return };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        let ending = match waitid(Id::PIDFd(child.fd.as_fd()), flags) {
            Ok(WaitStatus::Exited(_, status)) => Ending::Exited(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ending::Killed(signal as i32),
            // Not yet, or stopped or continued, which is not asked for.
            Ok(_) | Err(Errno::EINTR) => return,
            // ECHILD: somebody has reaped it, or SIGCHLD is ignored (waitpid(2)).
            Err(_) => Ending::Unknown,
        };
        child.deregister(registry);
        self.child = Child::Ended(ending);
    }
}

impl Child {
    fn watched(&self) -> Option<&Watched> {
        match self {
            Self::Alive(process) => Some(process),
            Self::Spawning(_) | Self::Ended(_) | Self::None => None,
        }
    }
}

impl Watched {
    fn register(&self, registry: &Registry, attempt: u32) -> io::Result<()> {
        let token = Token::new(Kind::SuccessorProcess, attempt, 0).pack();
        registry.register(&mut SourceFd(&self.fd.as_raw_fd()), token, Interest::READABLE)
    }

    fn deregister(&self, registry: &Registry) {
        // It was registered, or that has failed; and it is open.
        let _ = registry.deregister(&mut SourceFd(&self.fd.as_raw_fd()));
    }

    fn is_dead(&self) -> bool {
        sys::is_dead_by(self.fd.as_fd(), Instant::now())
    }
}
