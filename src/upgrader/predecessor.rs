//! What I do towards the process before me: adopt, say hello, say ready, wait for its word.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::libc::ESRCH;
use nix::sys::socket::{MsgFlags, SockType, getsockopt, recv, sockopt};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::getppid;

use super::outbox::{Outbox, flush_post};
use crate::error::Error;
use crate::fault::{self, Point};
use crate::limits;
use crate::machine::Event;
use crate::post::Post;
use crate::sys;
use crate::token::{Kind, Token};
use crate::wire::{
    Ack, Entry, Expect, Handoff, Hello, Manifest, Message, PROTOCOL, Problem, ProtocolRange, READY,
    SchemaRange, SessionEntry, Sessions, VARIABLE, VERSION_3, WireError,
};

/// The predecessor, as long as it is there.
#[derive(Debug)]
pub(crate) struct Predecessor {
    pub(crate) pid: u32,
    /// The generation that this process has, by the predecessor's count.
    pub(crate) generation: u64,
    /// The signals to unblock; bit n is signal n + 1.
    pub(crate) blocked: u64,
    /// How long it stays after COMMIT, at the most, as it says itself.
    pub(crate) stay: Duration,
    /// Closed once the ready byte is written.
    pipe: Option<File>,
    socket: OwnedFd,
    /// The one protocol version that is spoken with it.
    speaks: ProtocolRange,
    /// Becomes readable when it dies. `None` if its id means nothing here, as across pid
    /// namespaces, or if it is dead already; the end of the socket says it then.
    process: Option<OwnedFd>,
    /// Whether its end of the socket is closed: it is dead, or dying.
    hung_up: bool,
    /// Sessions that it has sent and that have no answer yet.
    arrived: Vec<Arrived>,
    /// What its application has handed over, and what that has said since.
    state: Option<(u32, Vec<OwnedFd>)>,
    told: Vec<Vec<u8>>,
    /// What it is to be told, as soon as it reads.
    outbox: Outbox,
    /// How many sessions are still to come from it.
    pub(crate) expects: Expect,
    /// Room for one packet: of sessions, once this process has said that it serves. To fill more than is
    /// needed before takes longer than many a step of the takeover.
    packet: Vec<u8>,
}

/// A packet of sessions, with their sockets.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) packet: u32,
    pub(crate) sessions: Vec<(SessionEntry, Vec<OwnedFd>)>,
}

/// What a predecessor leaves to its successor.
pub(crate) type Inheritance = Vec<(Entry, OwnedFd)>;

impl Predecessor {
    /// Finds the predecessor that the environment points to, and what it passes on. `None` if this
    /// process was started by hand.
    pub(crate) fn find(schemas: SchemaRange) -> Result<Option<(Self, Inheritance)>, Error> {
        let Some(variable) = sys::take_variable(VARIABLE) else { return Ok(None) };
        fault::at(Point::Started);
        let handoff = parse(&variable)?;
        // Where threads were running, the variable could not be removed, and a child that is no
        // successor inherited it: its parent is somebody else, and the descriptors are not there.
        let (pipe, socket) = match adopt(handoff) {
            Ok(adopted) => adopted,
            Err(_) if !is_child_of(handoff.pid) => return Ok(None),
            Err(error) => return Err(error),
        };
        match receive_manifest(&socket) {
            Ok((manifest, inheritance)) => {
                let predecessor = Self::new(pipe, socket, &manifest, schemas)?;
                Ok(Some((predecessor, inheritance)))
            }
            Err(error) => {
                refuse(&socket, PROTOCOL.newest, &error.to_string());
                Err(error)
            }
        }
    }

    fn new(
        pipe: OwnedFd,
        socket: OwnedFd,
        manifest: &Manifest,
        schemas: SchemaRange,
    ) -> Result<Self, Error> {
        // `receive_manifest` has made sure that there is a version that both speak.
        let protocol = PROTOCOL.agree(manifest.protocol).unwrap_or(PROTOCOL.newest);
        let build = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).into();
        let pid = std::process::id();
        let hello = Message::Hello(Hello { schemas, pid, build });
        // Its id is known to mean the predecessor as long as it is this process's parent; what the
        // id of a dead one means is found out by asking again once the descriptor is open.
        let is_parent = || is_child_of(manifest.predecessor);
        let process = is_parent()
            .then(|| sys::process_descriptor(manifest.predecessor).ok())
            .flatten()
            .filter(|_| is_parent());
        let predecessor = Self {
            pid: manifest.predecessor,
            generation: manifest.generation,
            blocked: manifest.blocked,
            stay: match manifest.stay {
                u64::MAX => Duration::MAX,
                stay => Duration::from_millis(stay),
            },
            pipe: Some(pipe.into()),
            socket,
            speaks: ProtocolRange::only(protocol),
            process,
            hung_up: false,
            arrived: Vec::new(),
            state: None,
            told: Vec::new(),
            outbox: Outbox::default(),
            expects: Expect::default(),
            packet: vec![0; limits::WORD_BYTES],
        };
        // A dead predecessor does not hear it; this process has all it needs and goes on.
        fault::at(Point::Adopted);
        predecessor.send(&hello);
        fault::at(Point::HelloSaid);
        Ok(predecessor)
    }

    pub(crate) fn register(&self, registry: &Registry) -> io::Result<()> {
        let token = Token::single(Kind::Predecessor).pack();
        registry.register(&mut SourceFd(&self.socket.as_raw_fd()), token, Interest::READABLE)?;
        if let Some(process) = &self.process {
            let token = Token::single(Kind::PredecessorProcess).pack();
            registry.register(&mut SourceFd(&process.as_raw_fd()), token, Interest::READABLE)?;
        }
        Ok(())
    }

    /// The predecessor is gone: nothing of it may stay registered.
    pub(crate) fn deregister(&self, registry: &Registry) {
        let fds = [Some(&self.socket), self.process.as_ref()];
        for fd in fds.into_iter().flatten() {
            // It may not have been registered yet, if it died during the set-up.
            let _ = registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
    }

    /// Writes the ready byte. A dead predecessor does not read it, and that is no error.
    pub(crate) fn announce_ready(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // EPIPE: it is dead, and its end will be heard of.
            let _ = pipe.write_all(&[READY]);
        }
    }

    /// Tells it something, now or as soon as it reads.
    pub(crate) fn tell(&mut self, message: Message) {
        let serves = matches!(message, Message::Serving);
        self.outbox.add(message);
        self.flush();
        // No session comes before that.
        if serves {
            self.packet = vec![0; limits::SESSIONS_BYTES];
        }
    }

    /// Sends what waits to be said. Answers whether something still waits.
    pub(crate) fn flush(&mut self) -> bool {
        self.outbox.flush(&self.socket, self.speaks.newest);
        !self.outbox.is_empty()
    }

    /// Says why this process will not take over.
    pub(crate) fn refuse(&self, reason: &str) {
        refuse(&self.socket, self.speaks.newest, reason);
    }

    /// What the predecessor has said since the last call. Answers whether it may have said more.
    pub(crate) fn read(&mut self, events: &mut Vec<Event>) -> bool {
        let mut packet = std::mem::take(&mut self.packet);
        let left = self.read_into(&mut packet, events);
        self.packet = packet;
        left
    }

    fn read_into(&mut self, packet: &mut [u8], events: &mut Vec<Event>) -> bool {
        for _ in 0..limits::MESSAGES_PER_TURN {
            // Their answer comes first, and what they cost is enough for one turn.
            if !self.arrived.is_empty() {
                return true;
            }
            // Of one that does not arrive whole nothing is taken for what lay here before.
            packet[0] = 0;
            match sys::receive(&self.socket, packet) {
                Ok(received) if received.length == 0 => {
                    self.hang_up(events);
                    return false;
                }
                Ok(mut received) => {
                    match Message::decode(&packet[..received.length], self.speaks) {
                        Ok((_, Message::Sessions(sessions))) => {
                            self.arrive(sessions, &mut received.descriptors);
                        }
                        Ok((_, Message::Commit)) => {
                            fault::at(Point::CommitHeard);
                            events.push(Event::Committed);
                        }
                        Ok((_, Message::Upgrade)) => events.push(Event::UpgradeRequested),
                        Ok((_, Message::Expect(expects))) => self.expects = expects,
                        Ok((_, Message::Retire)) => events.push(Event::GivenUp),
                        Ok((_, Message::State(schema))) => {
                            self.state = Some((schema, received.descriptors));
                        }
                        Ok((_, Message::Told(message))) => self.told.push(message),
                        Ok((_, Message::Ping)) => {
                            fault::at(Point::PingHeard);
                            events.push(Event::PredecessorAsked);
                        }
                        Ok((_, message)) => {
                            log::warn!("the predecessor sent {} out of turn", message.name())
                        }
                        Err(error) => log::warn!("the predecessor talked nonsense: {error}"),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    // Sessions without their sockets: it keeps them.
                    if let Some((packet, count)) = Message::peek_sessions(packet) {
                        log::warn!("sessions of the predecessor are refused: {error}");
                        self.acknowledge(Ack { packet, refused: (0..count).collect() });
                    } else if Message::is_state(packet) {
                        log::warn!("the state of the predecessor's application: {error}");
                        // Without the file of its bytes it cannot be taken over.
                        self.state = Some((0, Vec::new()));
                    } else {
                        log::warn!("the predecessor talked nonsense: {error}");
                    }
                }
                // It died with something unread, which is told once, and ahead of what it has said last.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(_) => {
                    self.hang_up(events);
                    return false;
                }
            }
        }
        true
    }

    /// Gives each session its sockets.
    fn arrive(&mut self, sent: Sessions, sockets: &mut Vec<OwnedFd>) {
        let expected: usize = sent.sessions.iter().map(SessionEntry::riding).sum();
        if expected != sockets.len() {
            log::warn!("SESSIONS names {expected} descriptors and brings {}", sockets.len());
            let refused = (0..).zip(&sent.sessions).map(|(place, _)| place).collect();
            self.acknowledge(Ack { packet: sent.packet, refused });
            return;
        }
        let mut sockets = sockets.drain(..);
        let sessions = sent.sessions.into_iter().map(|session| {
            let own = sockets.by_ref().take(session.riding()).collect();
            (session, own)
        });
        self.arrived.push(Arrived { packet: sent.packet, sessions: sessions.collect() });
    }

    /// What its application has handed over, once.
    pub(crate) fn take_state(&mut self) -> Option<(u32, Vec<OwnedFd>)> {
        self.state.take()
    }

    /// The messages of its application since the last call.
    pub(crate) fn take_told(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.told)
    }

    /// Whether it knows of messages of an application's.
    pub(crate) fn hears_applications(&self) -> bool {
        self.speaks.newest >= VERSION_3
    }

    /// Sends it what the application says. Answers whether something still waits.
    pub(crate) fn flush_post(&self, post: &mut Post) -> bool {
        let room = getsockopt(&self.socket, sockopt::SndBuf).unwrap_or(limits::SOCKET_BYTES);
        flush_post(post, &self.socket, self.speaks.newest, room)
    }

    /// The sessions that have arrived since the last call. Each packet wants an answer, before a
    /// byte of its sessions is touched.
    pub(crate) fn take_arrived(&mut self) -> Vec<Arrived> {
        std::mem::take(&mut self.arrived)
    }

    /// Answers a packet of sessions. `false` if the answer cannot reach a predecessor that lives:
    /// then they are still its own.
    pub(crate) fn acknowledge(&self, ack: Ack) -> bool {
        match sys::send(&self.socket, &Message::Ack(ack).encode(self.speaks.newest), &[]) {
            Ok(()) => true,
            Err(error) => {
                log::debug!("ACK to the predecessor: {error}");
                // EPIPE, ECONNRESET: it is dead, and whoever has them is their only owner.
                error.kind() != io::ErrorKind::WouldBlock
            }
        }
    }

    /// It closes the socket by dying and not before. If its death itself is watched, that comes in
    /// a moment: then it is dead and no longer dying (I2).
    fn hang_up(&mut self, events: &mut Vec<Event>) {
        if !std::mem::replace(&mut self.hung_up, true) && self.process.is_none() {
            events.push(Event::PredecessorGone);
        }
    }

    /// Whether it is on its way out, so that its death will be heard. That may take long: the kernel
    /// frees its memory before it closes its descriptors. One that has closed its end and lives on
    /// for longer than `patience` has given this process up.
    pub(crate) fn is_dying(&self, patience: Duration) -> bool {
        let Some(process) = &self.process else { return self.hung_up };
        let patience = if self.hung_up { patience } else { Duration::ZERO };
        // Its id means the predecessor as long as its pidfd does not say that it is dead.
        sys::is_dead_by(process.as_fd(), Instant::now() + patience) || sys::is_exiting(self.pid)
    }

    /// Kills it, because it is still there `after` its COMMIT. Its death will be heard.
    pub(crate) fn kill(&self, after: Duration) {
        let pid = self.pid;
        match &self.process {
            Some(process) => {
                log::warn!("the predecessor {pid} did not leave within {after:?}: killing it.");
                // ESRCH: it is dead already, which is what is wanted.
                let killed = sys::kill(process.as_fd());
                let failed = killed.err().filter(|error| error.raw_os_error() != Some(ESRCH));
                if let Some(error) = failed {
                    log::error!(
                        "kill the predecessor {pid}: {error}: no upgrade can begin before it is gone."
                    );
                }
            }
            None => log::error!(
                "the predecessor {pid} did not leave within {after:?}, and cannot be killed from \
                 here: no upgrade can begin before it is gone."
            ),
        }
    }

    fn send(&self, message: &Message) {
        if let Err(error) = sys::send(&self.socket, &message.encode(self.speaks.newest), &[]) {
            log::debug!("{} to the predecessor: {error}", message.name());
        }
    }
}

/// Takes the handoff variable apart. What is not UTF-8 in it becomes a character that is in no
/// handoff.
fn parse(variable: &OsStr) -> Result<Handoff, Error> {
    let text = variable.to_string_lossy();
    Handoff::parse(&text).map_err(|error| {
        // It may be long, and the error is one line.
        let found: String = text.chars().take(limits::NAME_BYTES).collect();
        let reason = format!("expected pipe=FD,socket=FD,pid=PID, found {found:?}: {error}");
        Error::Environment { reason }
    })
}

/// Adopts both descriptors, after a look at what they are. Neither is touched if one is not: where the
/// variable is an ancestor's, the numbers may be the program's own.
fn adopt(handoff: Handoff) -> Result<(OwnedFd, OwnedFd), Error> {
    let error = |number, what: &str, problem: &str| Error::Environment {
        reason: format!("descriptor {number} should be {what}, but {problem}"),
    };
    let look = |number, what: &str, is: &dyn Fn(BorrowedFd<'_>) -> bool| match sys::is_inherited(
        number, is,
    ) {
        Ok(true) => Ok(()),
        Ok(false) => Err(error(number, what, "is something else")),
        Err(_) => Err(error(number, what, "was not passed to this process")),
    };
    let (pipe, socket) = ("the readiness pipe", "the handoff socket");
    look(handoff.pipe, pipe, &|fd| {
        fstat(fd).is_ok_and(|stat| {
            SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO
        })
    })?;
    look(handoff.socket, socket, &|fd| {
        getsockopt(&fd, sockopt::SockType) == Ok(SockType::SeqPacket)
            && (is_child_of(handoff.pid) || has_manifest(fd))
    })?;
    let adopt = |number, what| {
        sys::adopt(number).map_err(|_| error(number, what, "was not passed to this process"))
    };
    Ok((adopt(handoff.pipe, pipe)?, adopt(handoff.socket, socket)?))
}

fn is_child_of(pid: u32) -> bool {
    getppid().as_raw() as u32 == pid
}

/// Whether a MANIFEST lies in the socket, for a process that is no child of who wrote the variable: a
/// program that stands in between has passed both on, or both are something else by now.
fn has_manifest(socket: BorrowedFd<'_>) -> bool {
    let mut head = [0; 7];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let read = recv(socket.as_raw_fd(), &mut head, flags);
    read == Ok(head.len()) && Message::is_manifest(&head)
}

/// The whole manifest; it was put into the socket before this process existed.
fn receive_manifest(socket: &OwnedFd) -> Result<(Manifest, Inheritance), Error> {
    let handoff = |reason: String| Error::Handoff { reason };
    let mut packet = vec![0; limits::PACKET_BYTES];
    let (mut whole, mut descriptors) = (None, Vec::new());
    loop {
        let received = sys::receive(socket, &mut packet)
            .map_err(|error| handoff(format!("receive MANIFEST: {error}")))?;
        let part = match Message::decode(&packet[..received.length], PROTOCOL) {
            Ok((_, Message::Manifest(part))) => part,
            Ok((_, other)) => return Err(handoff(format!("{} instead of MANIFEST", other.name()))),
            Err(WireError { problem: Problem::Protocol { said, spoken }, .. }) => {
                return Err(handoff(format!(
                    "no protocol version in common: the predecessor speaks {said}, the successor \
                     {spoken}"
                )));
            }
            Err(error) => return Err(handoff(format!("MANIFEST: {error}"))),
        };
        if part.entries.len() != received.descriptors.len() {
            let (names, fds) = (part.entries.len(), received.descriptors.len());
            return Err(handoff(format!("MANIFEST names {names} descriptors and brings {fds}")));
        }
        descriptors.extend(received.descriptors);
        let mut manifest =
            part.behind(whole.take()).map_err(|error| handoff(format!("MANIFEST: {error}")))?;
        if manifest.is_whole() {
            let entries = std::mem::take(&mut manifest.entries);
            return Ok((manifest, entries.into_iter().zip(descriptors).collect()));
        }
        whole = Some(manifest);
    }
}

fn refuse(socket: &OwnedFd, protocol: u16, reason: &str) {
    // Nothing can be done if nobody hears it; the exit status says the rest.
    let _ = sys::send(socket, &Message::Refuse(reason.into()).encode(protocol), &[]);
}
