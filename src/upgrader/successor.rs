//! What I do for the process after me: spawn it, hear it, commit to it, bury it.
//!
//! `process` is the kernel's side of it, `stderr` what it writes to standard error until it serves, and `dying`
//! what is left of one that was killed.

mod dying;
mod process;
mod stderr;

use std::ffi::{CStr, CString};
use std::io;
use std::iter;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Waker};
use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socketpair, sockopt,
};
use nix::unistd::{pipe2, read};

use super::outbox::{Outbox, flush_post};
use crate::fault::{self, Point};
use crate::handed_over::HandedOver;
use crate::limits;
use crate::machine::Event;
use crate::post::Post;
use crate::report::{Cause, Failure, Stage, Timings};
use crate::sys::{self, Command};
use crate::token::{Kind, Token};
use crate::wire::{
    Ack, Entry, Expect, Handoff, Hello, Manifest, Message, NO_SCHEMAS, PROTOCOL, Problem,
    ProtocolRange, READY, SchemaRange, Sessions, VARIABLE, VERSION_3, VERSION_4,
};
pub(crate) use dying::Dying;
use process::{Ending, NotSpawned, Process};
pub(crate) use stderr::Returned;
use stderr::{Given, Stderr};

/// A successor, from the moment it is wanted.
#[derive(Debug)]
pub(crate) struct Successor {
    attempt: u32,
    pub(crate) generation: u64,
    stage: Stage,
    times: Times,
    process: Process,
    /// What is executed, and where.
    program: String,
    /// Closed once it has said ready.
    pipe: Option<OwnedFd>,
    socket: OwnedFd,
    /// What that has room for, in bytes.
    room: usize,
    hello: Option<Hello>,
    /// The protocol versions that are taken from it: all that this build speaks, and from HELLO on
    /// the one that it chose.
    speaks: ProtocolRange,
    /// What it is to be told, as soon as it can be.
    outbox: Outbox,
    /// What it was told last of the sessions that are to come.
    expects: Expect,
    answers: Answers,
    trial: Trial,
}

/// What it is judged by.
#[derive(Debug)]
struct Trial {
    /// It is given up once it is ready.
    is_check: bool,
    /// Why it is lost, once it is.
    cause: Option<Cause>,
    /// What it says on standard error, if that is listened to.
    stderr: Option<Stderr>,
}

/// When it came to its steps.
#[derive(Debug)]
struct Times {
    started: Instant,
    spawned: Option<Instant>,
    ready: Instant,
    committed: Option<Instant>,
}

/// What it has answered, and is to answer.
#[derive(Debug, Default)]
struct Answers {
    /// Whether it owes an answer to a question.
    asked: bool,
    /// Which sessions it has taken, or not, by its last answers.
    acks: Vec<Ack>,
    /// Messages of the application's.
    told: Vec<Vec<u8>>,
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
    /// Whether it is given up once it is ready.
    pub(crate) is_check: bool,
    /// Whether its standard error is listened to.
    pub(crate) listens: bool,
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
        make_room(&socket);
        make_room(&their_socket);
        // With each packet the kernel says who has sent it. Without that, what was spawned is taken for
        // the successor.
        let _ = setsockopt(&socket, sockopt::PassCred, &true);
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

        let (stderr, given) = match plan.listens.then(|| Stderr::new(plan.registry, plan.attempt)) {
            Some(Ok((stderr, given))) => (Some(stderr), Some(given)),
            Some(Err(error)) => {
                log::debug!("the successor's standard error is left alone: {error}");
                (None, None)
            }
            None => (None, None),
        };
        let (sender, answer) = mpsc::channel();
        let (command, waker) = (Arc::clone(plan.command), Arc::clone(plan.waker));
        let blocked = plan.blocked;
        thread::Builder::new()
            .name("tablecloth-spawn".into())
            .stack_size(limits::THREAD_STACK_BYTES)
            .spawn(move || {
                let mut keep = vec![their_pipe.as_fd(), their_socket.as_fd()];
                keep.extend(given.iter().flat_map(|given| given.keep.iter().map(AsFd::as_fd)));
                let stands_in = given.as_ref().and_then(Given::variable);
                let variables: Vec<&CStr> =
                    iter::once(&variable).chain(&stands_in).map(CString::as_c_str).collect();
                let stderr = given.as_ref().map(|given| given.pipe.as_fd());
                fault::at(Point::Spawning);
                let result = (plan.before)().map_err(NotSpawned::Before).and_then(|()| {
                    sys::spawn(&command, &variables, &keep, stderr, blocked)
                        .map_err(NotSpawned::Spawn)
                });
                fault::at(Point::Spawned);
                // The successor's ends are closed before the loop hears of it: from then on their
                // end of file means the successor.
                drop((their_pipe, their_socket, given));
                // A loop that has ended hears nothing, and needs to hear nothing.
                let _ = sender.send((result, Instant::now()));
                let _ = waker.wake();
            })
            .map_err(failed("start the spawning thread"))?;

        Ok(Self {
            attempt: plan.attempt,
            generation: plan.generation,
            stage: Stage::Spawn,
            times: Times {
                started: plan.started,
                spawned: None,
                ready: plan.started,
                committed: None,
            },
            process: Process::new(answer, plan.attempt),
            program: match &plan.command.directory {
                Some(directory) => format!(
                    "{} in {}",
                    plan.command.executable.to_string_lossy(),
                    directory.to_string_lossy(),
                ),
                None => plan.command.executable.to_string_lossy().into_owned(),
            },
            pipe: Some(pipe),
            room: getsockopt(&socket, sockopt::SndBuf).unwrap_or(limits::SOCKET_BYTES),
            socket,
            hello: None,
            speaks: PROTOCOL,
            outbox: Outbox::default(),
            expects: Expect::default(),
            answers: Answers::default(),
            trial: Trial { is_check: plan.is_check, cause: None, stderr },
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
        self.times.spawned = Some(at);
        if let Ok(sys::Spawned { not_entered: Some(errno), .. }) = &result {
            let reason = io::Error::from(*errno);
            log::warn!(
                "the successor cannot enter its directory and stays in the one that it inherits: \
                 {}: {reason}",
                self.program,
            );
        }
        let mut watch = |spawned| {
            let watched = self.process.watch(spawned, registry);
            watched.map_err(|source| sys::NotSpawned { step: "watch", source })
        };
        match result.and_then(|spawned| watch(spawned).map_err(NotSpawned::Spawn)) {
            // A ready byte can be here before the answer is: then it is past this stage already.
            Ok(()) if self.stage == Stage::Spawn => self.stage = Stage::SetUp,
            Ok(()) => {}
            Err(error) => {
                self.process.not_spawned();
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
                self.read_last_words(registry, &mut Vec::new());
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
                self.read_socket(registry, events);
                if self.hello.is_none() {
                    let what = "ready without HELLO".into();
                    self.lose(Cause::Nonsense(what), Event::SuccessorLost, events);
                } else if self.trial.cause.is_none() && self.trial.is_check {
                    let took = now.saturating_duration_since(self.times.started);
                    self.lose(Cause::Checked(took), Event::SuccessorLost, events);
                } else if self.trial.cause.is_none() {
                    self.times.ready = now;
                    self.stage = Stage::Takeover;
                    events.push(Event::SuccessorReady);
                } else {
                    // It has refused since, and its exit status follows.
                    events.push(Event::SuccessorHungUp);
                }
            }
            // EAGAIN, or EINTR after which the next turn comes.
            Err(_) => {}
        }
    }

    /// Asks whether it still turns. One that does not read is found out like one that does not
    /// answer.
    pub(crate) fn ask(&mut self) {
        self.answers.asked = true;
        self.tell(Message::Ping);
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
            self.read_socket(registry, events);
            events.contains(&Event::SuccessorServing)
                || events.contains(&Event::SuccessorAnswered)
                || !self.answers.acks.is_empty()
        }
    }

    fn close_pipe(&mut self, registry: &Registry) {
        if let Some(pipe) = self.pipe.take() {
            // It was registered when it was made, and is open.
            let _ = registry.deregister(&mut SourceFd(&pipe.as_raw_fd()));
        }
    }

    /// Passes on what it has written to standard error. Answers when to look again, if that is soon.
    pub(crate) fn read_stderr(&mut self, now: Instant) -> Option<Instant> {
        let waits = self.trial.stderr.as_mut().is_some_and(Stderr::read);
        waits.then(|| stderr::retry(now))
    }

    /// What it has written there last.
    pub(crate) fn last_words(&mut self) -> String {
        self.trial.stderr.as_mut().map_or_else(String::new, Stderr::last_words)
    }

    /// Reads the handoff socket. Answers whether there may be more.
    pub(crate) fn read_socket(&mut self, registry: &Registry, events: &mut Vec<Event>) -> bool {
        let mut packet = [0; limits::WORD_BYTES];
        for _ in 0..limits::MESSAGES_PER_TURN {
            match sys::receive(&self.socket, &mut packet) {
                Ok(received) if received.length == 0 => {
                    events.push(Event::SuccessorHungUp);
                    return false;
                }
                Ok(received) => match Message::decode(&packet[..received.length], self.speaks) {
                    Ok((protocol, message)) => {
                        if let (Message::Hello(_), Some(pid)) = (&message, received.sender) {
                            self.process.hear_speaker(pid, registry);
                        }
                        self.hear(protocol, message, events);
                    }
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
                // It died with something unread, which is told once, and ahead of what it has said last.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
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
                self.flush();
                // It would write into a pipe that nobody reads any more, once this process has left.
                if self.trial.stderr.is_some() && protocol < VERSION_4 {
                    self.lose(Cause::KeepsStderr, Event::SuccessorLost, events);
                }
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
                    self.trial.cause.get_or_insert(Cause::Nonsense("SERVING out of turn".into()));
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
            Message::Pong if self.answers.asked => {
                self.answers.asked = false;
                events.push(Event::SuccessorAnswered);
            }
            Message::Ack(ack) if self.stage == Stage::Draining => self.answers.acks.push(ack),
            Message::Told(message) if matches!(self.stage, Stage::Takeover | Stage::Draining) => {
                self.answers.told.push(message);
            }
            Message::Upgrade => events.push(Event::SuccessorWantsUpgrade),
            Message::Stopping
            | Message::Pong
            | Message::Ack(_)
            | Message::Sessions(_)
            | Message::Ping
            | Message::Hello(_)
            | Message::Manifest(_)
            | Message::Commit
            | Message::Expect(_)
            | Message::State(_)
            | Message::Told(_)
            | Message::Retire => {
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
        let Some(ending) = self.process.ending(registry) else { return false };
        self.read_pipe(registry, now, events);
        self.read_last_words(registry, events);
        // The end of the pipe and of the socket is old news now.
        events.retain(|event| *event != Event::SuccessorHungUp);
        if let (Some(Cause::Refused { status, .. }), Ending::Exited(exited)) =
            (&mut self.trial.cause, ending)
        {
            *status = Some(exited);
        }
        let cause = match ending {
            Ending::Exited(status) => Cause::Exited(status),
            Ending::Killed(signal) => Cause::Killed(signal),
            Ending::Unknown => Cause::Ended,
        };
        // Whatever its status: who was told to stop has said so, and was heard.
        self.lose(cause, Event::SuccessorLost, events);
        true
    }

    /// Reads what it has said, of one that is dead. A child of it may have the socket and go on
    /// writing: no more is read than it can have said itself.
    fn read_last_words(&mut self, registry: &Registry, events: &mut Vec<Event>) {
        for _ in 0..limits::LAST_WORDS / limits::MESSAGES_PER_TURN {
            if !self.read_socket(registry, events) {
                return;
            }
        }
    }

    /// The first cause is the one: what follows follows from it.
    fn lose(&mut self, cause: Cause, event: Event, events: &mut Vec<Event>) {
        self.trial.cause.get_or_insert(cause);
        events.push(event);
    }

    /// Notes a cause that lies on this side; an earlier one stands.
    pub(crate) fn blame(&mut self, cause: Cause) {
        self.trial.cause.get_or_insert(cause);
    }

    /// Tells it something, now or as soon as it can be told: when it has chosen a version to speak, and
    /// when the socket takes it.
    pub(crate) fn tell(&mut self, message: Message) {
        self.outbox.add(message);
        self.flush();
    }

    /// Whether it has said which version it speaks.
    pub(crate) fn has_said_hello(&self) -> bool {
        self.hello.is_some()
    }

    /// Sends what waits to be said. Answers whether something still waits.
    pub(crate) fn flush(&mut self) -> bool {
        if self.hello.is_some() {
            self.outbox.flush(&self.socket, self.speaks.newest);
        }
        !self.outbox.is_empty()
    }

    /// Commits to it. `false` if it does not read, so that the socket is full; of a dead one its death
    /// will be heard, and tells more.
    pub(crate) fn commit(&mut self) -> bool {
        !self.flush() && {
            let commit = Message::Commit.encode(self.speaks.newest);
            let sent = sys::send(&self.socket, &commit, &[]);
            self.times.committed = Some(Instant::now());
            !sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        }
    }

    /// Has it keep room for that many sessions. It hears of it only if the number has changed; one that
    /// does not know the word goes without. Answers whether it was told.
    pub(crate) fn expect(&mut self, sessions: usize, sockets: usize) -> bool {
        let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
        let expects = Expect { sessions: number(sessions), sockets: number(sockets) };
        let news = self.speaks.newest >= EXPECT_SINCE && expects != self.expects;
        if news {
            self.expects = expects;
            // Only the last number counts.
            self.outbox.forget(|message| matches!(message, Message::Expect(_)));
            self.tell(Message::Expect(expects));
        }
        news
    }

    /// The schemas that it can put together.
    pub(crate) fn schemas(&self) -> SchemaRange {
        self.hello.as_ref().map_or(NO_SCHEMAS, |hello| hello.schemas)
    }

    /// How long a packet of sessions may be, and one with a single session. As many packets as may be on
    /// their way fit into the socket, whose room the kernel counts with its own bookkeeping (SO_SNDBUF,
    /// socket(7)); a session that is too large for that travels alone, if it fits at all.
    pub(crate) fn packet_bytes(&self) -> (usize, usize) {
        let each = self.room / limits::PACKETS_IN_FLIGHT;
        let each = each.saturating_sub(limits::PACKET_OVERHEAD_BYTES);
        let alone = self.room.saturating_sub(limits::PACKET_HEAD_BYTES);
        (each.min(limits::SESSIONS_BYTES), alone.min(limits::SESSIONS_BYTES))
    }

    /// Sends sessions and their sockets. An error, and nothing has been sent.
    pub(crate) fn send_sessions(
        &self,
        sessions: &Sessions,
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        sys::send(&self.socket, &sessions.encode(self.speaks.newest), sockets)
    }

    /// Whether it knows of state and messages of an application's.
    pub(crate) fn hears_applications(&self) -> bool {
        self.hello.is_some() && self.speaks.newest >= VERSION_3
    }

    /// Gives it the application's state. To be called before the commit.
    pub(crate) fn give(&mut self, state: HandedOver) -> io::Result<()> {
        self.times.committed = Some(Instant::now());
        let message = Message::State(state.schema).encode(self.speaks.newest);
        if state.descriptors.len() > limits::STATE_DESCRIPTORS {
            return Err(io::Error::other("there are more than 252 descriptors"));
        }
        let descriptors = state.into_descriptors()?;
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        sys::send(&self.socket, &message, &borrowed)
    }

    /// Sends it what the application says. Answers whether something still waits.
    pub(crate) fn flush_post(&self, post: &mut Post) -> bool {
        flush_post(post, &self.socket, self.speaks.newest, self.room)
    }

    /// The messages of the application's since the last call.
    pub(crate) fn take_told(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.answers.told)
    }

    /// The answers since the last call.
    pub(crate) fn take_acks(&mut self) -> Vec<Ack> {
        std::mem::take(&mut self.answers.acks)
    }

    /// How far it came, and how it ended if it did.
    pub(crate) fn outcome(
        &mut self,
        now: Instant,
        longest_turn: Duration,
    ) -> Result<Timings, Failure> {
        match self.trial.cause.take() {
            Some(cause) => Err(Failure { stage: self.stage, cause }),
            None => Ok(self.timings(now, longest_turn)),
        }
    }

    /// How long each step took, of one that serves.
    pub(crate) fn timings(&self, now: Instant, longest_turn: Duration) -> Timings {
        // The ready byte can be here before the spawning thread's answer: then it was spawned by the
        // time that it was ready.
        let spawned = self.times.spawned.unwrap_or(self.times.ready);
        Timings {
            spawn: spawned.saturating_duration_since(self.times.started),
            set_up: self.times.ready.saturating_duration_since(spawned),
            takeover: now.saturating_duration_since(self.times.ready),
            longest_turn,
        }
    }

    /// Says that it is given up, kills it, wherever it is, and closes what belonged to it. What is left
    /// is a process to reap, or a spawn to wait for.
    pub(crate) fn kill(mut self, registry: &Registry) -> Dying {
        self.close_pipe(registry);
        if let Some(stderr) = &self.trial.stderr {
            stderr.deregister(registry);
        }
        // It was registered when it was made, and is open.
        let _ = registry.deregister(&mut SourceFd(&self.socket.as_raw_fd()));
        // Where it cannot be killed, because its spawn has no answer yet, it must not take the end of
        // the socket for its predecessor's death. Nothing can be done if it does not read.
        let _ = sys::send(&self.socket, &Message::Retire.encode(self.speaks.newest), &[]);
        self.process.kill();
        Dying {
            attempt: self.attempt,
            committed: self.times.committed.is_some(),
            said: self.hello.map(|hello| hello.pid),
            process: self.process,
            socket: self.socket,
            speaks: self.speaks,
            acks: self.answers.acks,
            told: self.answers.told,
        }
    }
}

/// The first version that knows EXPECT.
const EXPECT_SINCE: u16 = 2;

/// Asks for room in a handoff socket. A system that gives less gets smaller packets of sessions.
fn make_room(socket: &OwnedFd) {
    // Beyond the system's bound, for whoever may (CAP_NET_ADMIN, socket(7)); or up to it.
    if setsockopt(socket, sockopt::SndBufForce, &limits::SOCKET_BYTES).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &limits::SOCKET_BYTES);
    }
}

fn send_manifest(socket: &OwnedFd, plan: &Plan<'_>) -> io::Result<()> {
    let parts = parts_of(&plan.manifest);
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

/// As many entries in each part as fit into a packet. There is one part at least.
fn parts_of<'a, 'fd>(
    manifest: &'a [(Entry, BorrowedFd<'fd>)],
) -> Vec<&'a [(Entry, BorrowedFd<'fd>)]> {
    let (mut parts, mut start, mut bytes) = (Vec::new(), 0, limits::MANIFEST_HEAD_BYTES);
    for (place, (entry, _)) in manifest.iter().enumerate() {
        let more = limits::ENTRY_HEAD_BYTES + entry.name.len() + entry.asked.len();
        let full = place - start == limits::DESCRIPTORS_PER_PACKET;
        if full || bytes + more > limits::PACKET_BYTES {
            parts.push(&manifest[start..place]);
            (start, bytes) = (place, limits::MANIFEST_HEAD_BYTES);
        }
        bytes += more;
    }
    parts.push(&manifest[start..]);
    parts
}
