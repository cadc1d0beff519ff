//! What I do for the process after me: spawn it, hear it, commit to it, bury it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Waker};
use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{pipe2, read};

use crate::fault::{self, Point};
use crate::limits;
use crate::machine::Event;
use crate::report::{Cause, Failure, Stage, Timings};
use crate::sys::{self, Command, Spawned};
use crate::token::{Kind, Token};
use crate::wire::{
    Ack, Entry, Handoff, Hello, Manifest, Message, NO_SCHEMAS, PROTOCOL, Problem, ProtocolRange,
    READY, SchemaRange, Sessions, VARIABLE,
};

/// What the spawning thread answers, and when it had the answer.
type Answer = (Result<Spawned, NotSpawned>, Instant);

/// What went wrong on the spawning thread.
#[derive(Debug)]
enum NotSpawned {
    Before(Cause),
    Spawn(sys::NotSpawned),
}

/// A successor, from the moment it is wanted.
#[derive(Debug)]
pub(crate) struct Successor {
    attempt: u32,
    pub(crate) generation: u64,
    stage: Stage,
    started: Instant,
    spawned: Option<Instant>,
    ready: Instant,
    process: Process,
    /// What is executed, and where.
    program: String,
    /// Closed once it has said ready.
    pipe: Option<OwnedFd>,
    socket: OwnedFd,
    hello: Option<Hello>,
    /// The protocol versions that are taken from it: all that this build speaks, and from HELLO on
    /// the one that it chose.
    speaks: ProtocolRange,
    /// Whether it owes an answer.
    asked: bool,
    /// Which sessions it has taken, or not, by its last answers.
    acks: Vec<Ack>,
    /// Why it is lost, once it is.
    cause: Option<Cause>,
}

/// Everything that a successor is made from.
pub(crate) struct Plan<'a> {
    pub(crate) attempt: u32,
    pub(crate) generation: u64,
    pub(crate) command: &'a Arc<Command>,
    pub(crate) blocked: SigSet,
    pub(crate) blocked_mask: u64,
    pub(crate) manifest: Vec<(Entry, BorrowedFd<'a>)>,
    pub(crate) registry: &'a Registry,
    pub(crate) waker: &'a Arc<Waker>,
    /// How long this process stays after COMMIT, at the most.
    pub(crate) stay: Duration,
    pub(crate) started: Instant,
    /// What has to be done first, on the spawning thread.
    pub(crate) before: Box<dyn FnOnce() -> Result<(), Cause> + Send>,
}

impl Successor {
    /// Puts the manifest into the handoff socket and has a short-lived thread spawn the program.
    /// Returns at once; the waker tells of the answer, which [`Successor::hear_spawn`] fetches.
    pub(crate) fn start(plan: Plan<'_>) -> Result<Self, Cause> {
        let failed = |operation: &'static str| {
            move |source: io::Error| Cause::NotSpawned { operation: operation.into(), source }
        };
        if std::process::id() == 1 {
            return Err(Cause::ProcessOne);
        }
        let (pipe, their_pipe) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .map_err(|errno| failed("make the readiness pipe")(errno.into()))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (socket, their_socket) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
                .map_err(|errno| failed("make the handoff socket")(errno.into()))?;
        send_manifest(&socket, &plan).map_err(failed("put the manifest into the socket"))?;

        let handoff = Handoff {
            pipe: their_pipe.as_raw_fd(),
            socket: their_socket.as_raw_fd(),
            pid: std::process::id(),
        };
        let variable = CString::new(format!("{VARIABLE}={handoff}"))
            .map_err(|error| failed("name the descriptors")(error.into()))?;

        for (fd, kind) in [(&pipe, Kind::ReadinessPipe), (&socket, Kind::Successor)] {
            let token = Token::new(kind, plan.attempt, 0).pack();
            plan.registry
                .register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)
                .map_err(failed("poll the handoff"))?;
        }

        let (sender, answer) = mpsc::channel();
        let (command, waker) = (Arc::clone(plan.command), Arc::clone(plan.waker));
        let blocked = plan.blocked;
        thread::Builder::new()
            .name("tablecloth-spawn".into())
            .stack_size(limits::THREAD_STACK_BYTES)
            .spawn(move || {
                let keep = [their_pipe.as_fd(), their_socket.as_fd()];
                fault::at(Point::Spawning);
                let result = (plan.before)().map_err(NotSpawned::Before).and_then(|()| {
                    sys::spawn(&command, &variable, &keep, blocked).map_err(NotSpawned::Spawn)
                });
                fault::at(Point::Spawned);
                // The successor's ends are closed before the loop hears of it: from then on their
                // end of file means the successor.
                drop((their_pipe, their_socket));
                // A loop that has ended hears nothing, and needs to hear nothing.
                let _ = sender.send((result, Instant::now()));
                let _ = waker.wake();
            })
            .map_err(failed("start the spawning thread"))?;

        Ok(Self {
            attempt: plan.attempt,
            generation: plan.generation,
            stage: Stage::Spawn,
            started: plan.started,
            spawned: None,
            ready: plan.started,
            process: Process::Spawning(answer),
            program: match &plan.command.directory {
                Some(directory) => format!(
                    "{} in {}",
                    plan.command.executable.to_string_lossy(),
                    directory.to_string_lossy(),
                ),
                None => plan.command.executable.to_string_lossy().into_owned(),
            },
            pipe: Some(pipe),
            socket,
            hello: None,
            speaks: PROTOCOL,
            asked: false,
            acks: Vec::new(),
            cause: None,
        })
    }

    /// Whether a token is this attempt's.
    pub(crate) fn owns(&self, token: Token) -> bool {
        token.generation == Token::new(token.kind, self.attempt, 0).generation
    }

    /// Its process id: by the spawn, or where its word is here before the answer, by HELLO.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.pid().or(self.hello.as_ref().map(|hello| hello.pid))
    }

    /// Fetches the spawning thread's answer, if it is there.
    pub(crate) fn hear_spawn(&mut self, registry: &Registry, events: &mut Vec<Event>) {
        let Some((result, at)) = self.process.answer() else { return };
        self.spawned = Some(at);
        if let Ok(Spawned { not_entered: Some(errno), .. }) = &result {
            let reason = io::Error::from(*errno);
            log::warn!(
                "the successor cannot enter its directory and stays in the one that it inherits: \
                 {}: {reason}",
                self.program,
            );
        }
        let mut watch = |spawned| {
            let watched = self.process.watch(spawned, registry, self.attempt);
            watched.map_err(|source| sys::NotSpawned { step: "watch", source })
        };
        match result.and_then(|spawned| watch(spawned).map_err(NotSpawned::Spawn)) {
            // A ready byte can be here before the answer is: then it is past this stage already.
            Ok(()) if self.stage == Stage::Spawn => self.stage = Stage::SetUp,
            Ok(()) => {}
            Err(error) => {
                if let Process::Spawning(_) = self.process {
                    // There was one answer, and there is nobody to wait for.
                    self.process = Process::None;
                }
                let cause = match error {
                    NotSpawned::Before(cause) => cause,
                    NotSpawned::Spawn(sys::NotSpawned { step, source }) => {
                        let operation = format!("{step} {}", self.program);
                        Cause::NotSpawned { operation, source }
                    }
                };
                self.lose(cause, Event::SuccessorLost, events);
                // One that was killed because it could not be watched may have lived long enough to
                // say who it was, and to leave something behind.
                while self.read_socket(&mut Vec::new()) {}
            }
        }
    }

    /// Reads the readiness pipe: one byte, or its end.
    pub(crate) fn read_pipe(&mut self, registry: &Registry, now: Instant, events: &mut Vec<Event>) {
        let Some(pipe) = &self.pipe else { return };
        let mut byte = [0; 1];
        match read(pipe, &mut byte) {
            Ok(0) => events.push(Event::SuccessorHungUp),
            Ok(_) if byte != [READY] => {
                let what = format!("byte {:#04x} on the readiness pipe", byte[0]);
                self.lose(Cause::Nonsense(what), Event::SuccessorLost, events);
            }
            // It says ready once, and after HELLO, which lies in the socket by now.
            Ok(_) => {
                self.close_pipe(registry);
                self.read_socket(events);
                if self.hello.is_some() && self.cause.is_none() {
                    self.ready = now;
                    self.stage = Stage::Takeover;
                    events.push(Event::SuccessorReady);
                } else {
                    let what = "ready without HELLO".into();
                    self.lose(Cause::Nonsense(what), Event::SuccessorLost, events);
                }
            }
            // EAGAIN, or EINTR after which the next turn comes.
            Err(_) => {}
        }
    }

    /// Asks whether it still turns. One that does not read is found out like one that does not
    /// answer.
    pub(crate) fn ask(&mut self) {
        self.asked = true;
        self.tell(&Message::Ping);
    }

    /// Looks once more for the word that is awaited: ready; once it was committed to, SERVING; once
    /// it was asked, PONG; with sessions on their way, ACK. Answers whether it has come.
    pub(crate) fn look(
        &mut self,
        registry: &Registry,
        now: Instant,
        events: &mut Vec<Event>,
    ) -> bool {
        if self.pipe.is_some() {
            self.read_pipe(registry, now, events);
            events.contains(&Event::SuccessorReady)
        } else {
            self.read_socket(events);
            events.contains(&Event::SuccessorServing)
                || events.contains(&Event::SuccessorAnswered)
                || !self.acks.is_empty()
        }
    }

    fn close_pipe(&mut self, registry: &Registry) {
        if let Some(pipe) = self.pipe.take() {
            // It was registered when it was made, and is open.
            let _ = registry.deregister(&mut SourceFd(&pipe.as_raw_fd()));
        }
    }

    /// Reads the handoff socket. Answers whether there may be more.
    pub(crate) fn read_socket(&mut self, events: &mut Vec<Event>) -> bool {
        let mut packet = [0; limits::TEXT_BYTES + 64];
        for _ in 0..limits::MESSAGES_PER_TURN {
            match sys::receive(&self.socket, &mut packet) {
                Ok(received) if received.length == 0 => {
                    events.push(Event::SuccessorHungUp);
                    return false;
                }
                Ok(received) => match Message::decode(&packet[..received.length], self.speaks) {
                    Ok((protocol, message)) => self.hear(protocol, message, events),
                    Err(error) => {
                        let cause = match error.problem {
                            // Once it has chosen, another version is nonsense like any other.
                            Problem::Protocol { said, .. } if self.hello.is_none() => {
                                Cause::Protocol(said)
                            }
                            Problem::Protocol { .. }
                            | Problem::Truncated
                            | Problem::TrailingBytes
                            | Problem::TooLong
                            | Problem::Missing
                            | Problem::NotNumber
                            | Problem::Empty
                            | Problem::NotText
                            | Problem::ControlCharacter
                            | Problem::Repeated
                            | Problem::Contradiction
                            | Problem::Unknown(_) => {
                                Cause::Nonsense(format!("handoff message: {error}"))
                            }
                        };
                        self.lose(cause, Event::SuccessorLost, events);
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    let cause = Cause::Nonsense(error.to_string());
                    self.lose(cause, Event::SuccessorLost, events);
                }
                // ECONNRESET: it died with something unread.
                Err(_) => {
                    events.push(Event::SuccessorHungUp);
                    return false;
                }
            }
        }
        true
    }

    fn hear(&mut self, protocol: u16, message: Message, events: &mut Vec<Event>) {
        match message {
            Message::Hello(hello) if self.hello.is_none() => {
                log::debug!("the successor is {}, protocol {protocol}", hello.build);
                self.hello = Some(hello);
                self.speaks = ProtocolRange::only(protocol);
                fault::at(Point::HelloHeard);
            }
            // Its exit status follows; what it said is why.
            Message::Refuse(reason) => {
                let cause = Cause::Refused { reason, status: None };
                self.lose(cause, Event::SuccessorHungUp, events);
            }
            Message::Serving => {
                fault::at(Point::ServingHeard);
                if self.stage == Stage::Takeover {
                    self.stage = Stage::Draining;
                } else {
                    self.cause.get_or_insert(Cause::Nonsense("SERVING out of turn".into()));
                }
                events.push(Event::SuccessorServing);
            }
            // Who was told to stop has served, and may not have come to say so.
            Message::Stopping if self.stage == Stage::Takeover => {
                self.stage = Stage::Draining;
                events.extend([Event::SuccessorServing, Event::SuccessorStopped]);
            }
            Message::Stopping if self.stage == Stage::Draining => {
                events.push(Event::SuccessorStopped);
            }
            Message::Pong if self.asked => {
                self.asked = false;
                events.push(Event::SuccessorAnswered);
            }
            Message::Ack(ack) if self.stage == Stage::Draining => self.acks.push(ack),
            Message::Upgrade => events.push(Event::SuccessorWantsUpgrade),
            Message::Stopping
            | Message::Pong
            | Message::Ack(_)
            | Message::Sessions(_)
            | Message::Ping
            | Message::Hello(_)
            | Message::Manifest(_)
            | Message::Commit => {
                let cause = Cause::Nonsense(format!("{} out of turn", message.name()));
                self.lose(cause, Event::SuccessorLost, events);
            }
        }
    }

    /// It died, or something of it became readable. What it said before comes first: a packet
    /// socket delivers what was queued before the end. Answers whether it is dead.
    pub(crate) fn read_death(
        &mut self,
        registry: &Registry,
        now: Instant,
        events: &mut Vec<Event>,
    ) -> bool {
        let Some(ending) = self.process.ending() else { return false };
        self.read_pipe(registry, now, events);
        while self.read_socket(events) {}
        // The end of the pipe and of the socket is old news now.
        events.retain(|event| *event != Event::SuccessorHungUp);
        let event = match ending {
            Ending::Exited(0) => Event::SuccessorStopped,
            Ending::Exited(_) | Ending::Killed(_) | Ending::Unknown => Event::SuccessorLost,
        };
        if let (Some(Cause::Refused { status, .. }), Ending::Exited(exited)) =
            (&mut self.cause, ending)
        {
            *status = Some(exited);
        }
        let cause = match ending {
            Ending::Exited(status) => Cause::Exited(status),
            Ending::Killed(signal) => Cause::Killed(signal),
            Ending::Unknown => Cause::Ended,
        };
        self.lose(cause, event, events);
        true
    }

    /// The first cause is the one: what follows follows from it.
    fn lose(&mut self, cause: Cause, event: Event, events: &mut Vec<Event>) {
        self.cause.get_or_insert(cause);
        events.push(event);
    }

    /// Notes a cause that lies on this side; an earlier one stands.
    pub(crate) fn blame(&mut self, cause: Cause) {
        self.cause.get_or_insert(cause);
    }

    /// Sends a message. Answers `false` if the successor does not read, so that the socket is full;
    /// of a dead one its death will be heard, and tells more.
    pub(crate) fn tell(&self, message: &Message) -> bool {
        match sys::send(&self.socket, &message.encode(self.speaks.newest), &[]) {
            Ok(()) => true,
            Err(error) => {
                log::debug!("{} to the successor: {error}", message.name());
                error.kind() != io::ErrorKind::WouldBlock
            }
        }
    }

    /// Whether it can put together what is packed in that form.
    pub(crate) fn understands(&self, schema: u32) -> bool {
        let schemas = self.hello.as_ref().map_or(NO_SCHEMAS, |hello| hello.schemas);
        schema > 0 && (schemas.oldest..=schemas.newest).contains(&schema)
    }

    /// The schemas that it can put together.
    pub(crate) fn schemas(&self) -> SchemaRange {
        self.hello.as_ref().map_or(NO_SCHEMAS, |hello| hello.schemas)
    }

    /// Sends sessions and their sockets. An error, and nothing has been sent.
    pub(crate) fn send_sessions(
        &self,
        sessions: Sessions,
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let packet = Message::Sessions(sessions).encode(self.speaks.newest);
        sys::send(&self.socket, &packet, sockets)
    }

    /// The answers since the last call.
    pub(crate) fn take_acks(&mut self) -> Vec<Ack> {
        std::mem::take(&mut self.acks)
    }

    /// How far it came, and how it ended if it did.
    pub(crate) fn outcome(
        &mut self,
        now: Instant,
        longest_turn: Duration,
    ) -> Result<Timings, Failure> {
        match self.cause.take() {
            Some(cause) => Err(Failure { stage: self.stage, cause }),
            None => Ok(self.timings(now, longest_turn)),
        }
    }

    /// How long each step took, of one that serves.
    pub(crate) fn timings(&self, now: Instant, longest_turn: Duration) -> Timings {
        // The ready byte can be here before the spawning thread's answer: then it was spawned by the
        // time that it was ready.
        let spawned = self.spawned.unwrap_or(self.ready);
        Timings {
            spawn: spawned.saturating_duration_since(self.started),
            set_up: self.ready.saturating_duration_since(spawned),
            takeover: now.saturating_duration_since(self.ready),
            longest_turn,
        }
    }

    /// Kills it, wherever it is, and closes what belonged to it. What is left is a process to
    /// reap, or a spawn to wait for.
    pub(crate) fn kill(mut self, registry: &Registry) -> Dying {
        self.close_pipe(registry);
        // It was registered when it was made, and is open.
        let _ = registry.deregister(&mut SourceFd(&self.socket.as_raw_fd()));
        self.process.kill();
        Dying {
            attempt: self.attempt,
            said: self.hello.map(|hello| hello.pid),
            process: self.process,
            socket: self.socket,
            speaks: self.speaks,
            acks: self.acks,
        }
    }
}

/// A process that was killed and is not reaped yet. The loop does not wait for it.
#[derive(Debug)]
pub(crate) struct Dying {
    attempt: u32,
    /// Its process id by its own word.
    said: Option<u32>,
    process: Process,
    /// What it said last is read when it is dead: until then it may say more.
    socket: OwnedFd,
    speaks: ProtocolRange,
    /// Read before that, and not heard yet.
    acks: Vec<Ack>,
}

impl Dying {
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.pid().or(self.said)
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The sessions that it has taken, and not said so in time: it lived, and has now died with them.
    pub(crate) fn last_acks(&mut self) -> Vec<Ack> {
        let mut packet = [0; limits::TEXT_BYTES + 64];
        let mut acks = std::mem::take(&mut self.acks);
        loop {
            match sys::receive(&self.socket, &mut packet) {
                Ok(received) if received.length == 0 => return acks,
                // Its other words do not matter any more.
                Ok(received) => {
                    let message = Message::decode(&packet[..received.length], self.speaks);
                    if let Ok((_, Message::Ack(ack))) = message {
                        acks.push(ack);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(_) => return acks,
            }
        }
    }

    /// Reaps it if it can be reaped; answers whether it is over.
    pub(crate) fn settle(&mut self, registry: &Registry) -> bool {
        if let Some((result, _)) = self.process.answer() {
            // One that cannot be watched is killed all the same; it is reaped with the next look.
            if let Ok(spawned) = result {
                let _ = self.process.watch(spawned, registry, self.attempt);
            }
            match &self.process {
                Process::Alive { .. } => self.process.kill(),
                Process::Spawning(_) | Process::None => return true,
            }
        }
        match &self.process {
            Process::Spawning(_) => false,
            Process::Alive { fd, .. } => {
                let over = self.process.ending().is_some();
                if over {
                    // It was registered by `watch` and is open.
                    let _ = registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
                }
                over
            }
            Process::None => true,
        }
    }

    /// Waits until it is over, and no longer than until `deadline`. For the end of the program.
    pub(crate) fn settle_until(&mut self, registry: &Registry, deadline: Instant) {
        while !self.settle(registry) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match &self.process {
                Process::Spawning(answer) => match answer.recv_timeout(left) {
                    Ok(answer) => self.process = Process::answered(answer),
                    Err(_) => return,
                },
                Process::Alive { fd, .. } => {
                    // Whatever it answers, `settle` looks again.
                    sys::is_dead_by(fd.as_fd(), deadline);
                }
                Process::None => return,
            }
        }
    }
}

/// The kernel's side of a successor: first a spawn, then a process.
#[derive(Debug)]
enum Process {
    Spawning(Receiver<Answer>),
    Alive {
        pid: u32,
        fd: OwnedFd,
    },
    /// It could not be spawned.
    None,
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Exited(i32),
    Killed(i32),
    /// Somebody else reaped it.
    Unknown,
}

impl Process {
    fn pid(&self) -> Option<u32> {
        match self {
            Self::Alive { pid, .. } => Some(*pid),
            Self::Spawning(_) | Self::None => None,
        }
    }

    /// The spawning thread's answer, once.
    fn answer(&self) -> Option<Answer> {
        match self {
            Self::Spawning(answer) => match answer.try_recv() {
                Ok(answer) => Some(answer),
                Err(TryRecvError::Empty) => None,
                // The thread panicked: the answer will not come.
                Err(TryRecvError::Disconnected) => {
                    let source = io::Error::other("the spawning thread ended without an answer");
                    let error = sys::NotSpawned { step: "execute", source };
                    Some((Err(NotSpawned::Spawn(error)), Instant::now()))
                }
            },
            Self::Alive { .. } | Self::None => None,
        }
    }

    /// Watches a process that was spawned for its death.
    fn watch(&mut self, spawned: Spawned, registry: &Registry, attempt: u32) -> io::Result<()> {
        let token = Token::new(Kind::SuccessorProcess, attempt, 0).pack();
        let Spawned { pid, process: fd, .. } = spawned;
        let registered =
            registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE);
        *self = Self::Alive { pid, fd };
        registered
    }

    fn answered((result, _): Answer) -> Self {
        match result {
            Ok(Spawned { pid, process: fd, .. }) => {
                let process = Self::Alive { pid, fd };
                process.kill();
                process
            }
            Err(_) => Self::None,
        }
    }

    fn kill(&self) {
        if let Self::Alive { fd, .. } = self {
            // ESRCH: it is dead already, which is what is wanted.
            let _ = sys::kill(fd.as_fd());
        }
    }

    /// Reaps the process if it has ended. Never blocks.
    fn ending(&self) -> Option<Ending> {
        let Self::Alive { fd, .. } = self else { return None };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        match waitid(Id::PIDFd(fd.as_fd()), flags) {
            Ok(WaitStatus::Exited(_, status)) => Some(Ending::Exited(status)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(Ending::Killed(signal as i32)),
            // Not yet, or stopped or continued, which is not asked for.
            Ok(_) => None,
            Err(nix::errno::Errno::EINTR) => None,
            // ECHILD: somebody has reaped it, or SIGCHLD is ignored (waitpid(2)).
            Err(_) => Some(Ending::Unknown),
        }
    }
}

fn send_manifest(socket: &OwnedFd, plan: &Plan<'_>) -> io::Result<()> {
    let mut parts: Vec<_> = plan.manifest.chunks(limits::DESCRIPTORS_PER_PACKET).collect();
    if parts.is_empty() {
        parts.push(&[]);
    }
    let count = parts.len() as u8;
    for (part, named) in (0..).zip(parts) {
        let manifest = Message::Manifest(Manifest {
            protocol: PROTOCOL,
            generation: plan.generation,
            predecessor: std::process::id(),
            blocked: plan.blocked_mask,
            stay: u64::try_from(plan.stay.as_millis()).unwrap_or(u64::MAX),
            part,
            parts: count,
            entries: named.iter().map(|(entry, _)| entry.clone()).collect(),
        });
        let fds: Vec<_> = named.iter().map(|(_, fd)| *fd).collect();
        sys::send(socket, &manifest.encode(PROTOCOL.newest), &fds)?;
    }
    Ok(())
}
