//! The reactor: what a user makes, sets up and runs.
//!
//! `turn` polls and dispatches, `perform` does what the machine says, `handoff` moves sessions and
//! `moves` tells of it; they are parts of this noun.

mod guard;
mod handoff;
mod moves;
mod perform;
mod turn;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Registry, Waker};

use crate::address::Address;
use crate::config::Config;
use crate::error::Error;
use crate::failures::Failures;
use crate::handler::{Handler, Requests, Shared};
use crate::io_event::IoEvent;
use crate::limits;
use crate::listeners::{Listeners, Make, Wanted};
use crate::machine::{Event, Machine, Predecessor as Rank, State};
use crate::pace::Pace;
use crate::pid_file::PidFile;
use crate::predecessor::{Inheritance, Predecessor};
use crate::program;
use crate::remote::{PredecessorWatch, Remote};
use crate::report::Report;
use crate::room::{self, Room};
use crate::sessions::Sessions;
use crate::signals::{self, Signals};
use crate::socket::{self, SocketOptions};
use crate::successor::{Dying, Successor};
use crate::sys::Command;
use crate::throttle::Throttle;
use crate::timers::Timers;
use crate::token::{Kind as Source, Token};
use crate::wire::{Kind, NO_SCHEMAS, SchemaRange};
use crate::worker::Worker;
use handoff::{Adoption, InFlight};
use moves::Moves;

/// A server whose process can be replaced while it serves.
///
/// Make it, claim the listeners, run it. The same program does this as the first process and as a
/// successor: [`Server::listen`] binds in the one and inherits in the other.
///
/// ```no_run
/// use tablecloth::{Config, Server};
/// # use std::io;
/// # use tablecloth::{Accepted, Context, Handler, IoEvent, Stream, Verdict};
/// # struct Echo;
/// # impl Handler for Echo {
/// #     type Session = Stream;
/// #     fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Stream> {
/// #         Ok(accepted.stream)
/// #     }
/// #     fn event(&mut self, _: &mut Context<'_>, _: &mut Stream, _: IoEvent) -> Verdict {
/// #         Verdict::Close
/// #     }
/// # }
/// # fn main() -> Result<(), tablecloth::Error> {
/// let mut server = Server::new(Config::default(), Echo)?;
/// server.listen("echo", "127.0.0.1:8080")?;
/// server.run()
/// # }
/// ```
///
/// A server that is dropped before it ran lets go of everything: a successor tells its predecessor
/// why (the last error of this server), and the predecessor goes on.
pub struct Server<H: Handler> {
    handler: H,
    config: Config,
    /// What a handler sees of the rest, the machine included.
    shared: Shared,
    poll: Poll,
    events: Events,
    registry: Rc<Registry>,
    listeners: Listeners,
    sessions: Sessions<H::Session>,
    signals: Signals,
    remote: Remote,
    timers: Timers,
    pid_file: Option<PidFile>,
    /// For what a disk could hold up.
    worker: Worker,
    /// What a successor is spawned from.
    command: Arc<Command>,
    predecessor: Option<Predecessor>,
    predecessor_watch: PredecessorWatch,
    successor: Option<Successor>,
    /// Successors that were killed and are not reaped yet.
    dying: Vec<Dying>,
    attempts: u32,
    /// How the last successor ended, until it is reported.
    obituary: Option<Report>,
    /// Events that wait to be stepped: a step's actions are all performed before the next step.
    pending: VecDeque<Pending>,
    sweep: Option<Sweep>,
    /// How sessions are asked again.
    moving: Walk,
    /// Sessions that were sent to a successor and have no answer yet.
    in_flight: VecDeque<InFlight>,
    /// Packets of sessions that were sent.
    packets: u32,
    /// What has moved to the successor, since it is proven.
    moves: Option<Moves>,
    /// When the successor was told how many sessions are still to come.
    told_to_come: Option<Instant>,
    /// Walks over the sessions in which they were asked to move.
    walks: u32,
    /// Sessions that come from the predecessor.
    adoption: Adoption,
    /// How many descriptors there may be.
    room: Room,
    /// Upgrades in a row that have failed.
    failures: Failures,
    /// How long the handler's methods take.
    pace: Pace,
    complaints: Complaints,
    /// The session whose method has panicked, until it is closed, and the method.
    panicked: Option<u32>,
    panicked_in: &'static str,
    /// Until when the loop wanted to sleep, if not for ever.
    asleep_until: Option<Instant>,
    /// When words are tried again that a handoff socket had no room for.
    outbox_retry: Option<Instant>,
    /// Descriptors that the handler reads and has not read to the end.
    watched_again: Vec<(Rc<str>, IoEvent)>,
    /// For how long this process has stood still, when it has.
    stood_still: Duration,
    /// When a draining process asks its sessions again.
    next_sweep: Option<Instant>,
    /// Whether the handoff had more to say than a turn's budget.
    handoff_left: bool,
    /// The longest turn since the upgrade was requested, since sessions began to move, or since the
    /// first of them was taken over: whichever was last.
    longest_turn: Duration,
    stale_events: u64,
    started: bool,
    /// Why this process ends, if not because it was told to.
    failure: Option<Error>,
    /// The last error of the set-up, for the predecessor.
    last_error: Option<String>,
}

/// Bounds on what clients can have logged, each kind by itself.
#[derive(Default)]
struct Complaints {
    refused: Throttle,
    unregistered: Throttle,
    panicked: Throttle,
}

/// An event that waits to be stepped.
#[derive(Clone, Copy)]
struct Pending {
    event: Event,
    /// The attempt that it tells of. What is left of a dead successor's last words must not be
    /// taken for those of the next one.
    attempt: Option<u32>,
}

/// A walk over all sessions, in the budget of several turns.
#[derive(Clone, Copy)]
struct Sweep {
    next: u32,
    walk: Walk,
    /// The handoff socket takes no more sessions: the rest waits for the next sweep.
    full: bool,
}

impl Sweep {
    fn new(walk: Walk) -> Self {
        Self { next: 0, walk, full: false }
    }
}

/// What it is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// To hand them over, and to tell to drain who cannot move.
    Move,
    /// To tell them to drain.
    Drain,
    /// To close them.
    Close,
}

impl<H: Handler> Server<H> {
    /// Makes a server, as the first process or as the successor of the one that spawned this.
    ///
    /// Handles the configured signals from here on, takes the handoff out of the environment, and
    /// tries out the pid file's place. Call it before the program starts threads: the environment
    /// can be changed only then. A variable that had to stay is inherited by children, who
    /// recognise it as not theirs.
    ///
    /// The configured signals are let through to this thread, also if the parent has blocked them, and
    /// SIGCHLD is set to its default if it is ignored, or no successor would leave an exit status.
    /// When the server is gone, signals do what they did before. Those that come before this call
    /// end the process, unless [`Config::hold_signals`] holds them.
    ///
    /// There can be one server in a process at a time; see [`Error::AnotherServer`].
    ///
    /// The first process is refused the pid file of another service that lives; see
    /// [`Config::pid_file`].
    pub fn new(config: Config, handler: H) -> Result<Self, Error> {
        let claim = signals::Claim::new()?;
        let schemas = handler.schemas().map_or(NO_SCHEMAS, |schemas| SchemaRange {
            oldest: *schemas.start(),
            newest: *schemas.end(),
        });
        let (predecessor, inheritance) = match Predecessor::find(schemas)? {
            Some((predecessor, inheritance)) => (Some(predecessor), inheritance),
            None => (None, Vec::new()),
        };
        let assembled = check(&handler).and_then(|()| {
            Self::assemble(claim, config, handler, predecessor.as_ref(), inheritance)
        });
        match assembled {
            Ok(mut server) => {
                server.predecessor = predecessor;
                Ok(server)
            }
            Err(error) => {
                if let Some(predecessor) = &predecessor {
                    predecessor.refuse(&error.to_string());
                }
                Err(error)
            }
        }
    }

    fn assemble(
        claim: signals::Claim,
        config: Config,
        handler: H,
        predecessor: Option<&Predecessor>,
        inheritance: Inheritance,
    ) -> Result<Self, Error> {
        room::reserve_table();
        let command = Arc::new(program::of_this_process()?);
        let listeners = Listeners::new(inheritance)?;
        let before = predecessor.map(|predecessor| predecessor.pid);
        let prepare = |path: &Path| PidFile::prepare(path, std::process::id(), before);
        let pid_file = config.pid_file.as_deref().map(prepare).transpose()?.flatten();
        let poll = Poll::new().map_err(Error::system("make an epoll instance"))?;
        let registry = poll.registry().try_clone().map_err(Error::system("duplicate epoll"))?;
        let registry = Rc::new(registry);
        let polled = Error::system("poll");
        let waker = Waker::new(&registry, Token::single(Source::Waker).pack()).map_err(polled)?;
        let waker = Arc::new(waker);
        let inherited = predecessor.map_or(0, |predecessor| predecessor.blocked);
        let mut signals = Signals::install(claim, config.signals(), inherited)?;
        signals.register(&registry, Token::single(Source::Signals).pack()).map_err(polled)?;
        let (machine, generation) = match predecessor {
            Some(predecessor) => {
                predecessor.register(&registry).map_err(polled)?;
                // And those that this build does not handle any more.
                signals::unblock(predecessor.blocked)?;
                (Machine::successor(), predecessor.generation)
            }
            None => (Machine::first(), 0),
        };
        Ok(Self {
            handler,
            shared: Shared {
                machine,
                generation,
                now: Instant::now(),
                sessions: 0,
                requests: Requests::default(),
                registry: Rc::clone(&registry),
                session: None,
                wake: None,
                attached: 0,
            },
            poll,
            events: Events::with_capacity(limits::EVENTS_PER_POLL),
            registry,
            listeners,
            sessions: Sessions::new(config.max_sessions),
            signals,
            worker: Worker::new(Arc::clone(&waker)),
            remote: Remote::new(waker),
            timers: Timers::default(),
            pid_file,
            command,
            predecessor: None,
            predecessor_watch: PredecessorWatch::new(predecessor.is_none()),
            successor: None,
            dying: Vec::new(),
            attempts: 0,
            obituary: None,
            pending: VecDeque::new(),
            sweep: None,
            moving: Walk::Drain,
            in_flight: VecDeque::new(),
            packets: 0,
            moves: None,
            told_to_come: None,
            walks: 0,
            adoption: Adoption::default(),
            room: Room::new(Instant::now()),
            failures: Failures::default(),
            pace: Pace::begin(Instant::now()),
            complaints: Complaints::default(),
            panicked: None,
            panicked_in: "",
            asleep_until: None,
            outbox_retry: None,
            watched_again: Vec::new(),
            stood_still: Duration::ZERO,
            next_sweep: None,
            handoff_left: false,
            longest_turn: Duration::ZERO,
            stale_events: 0,
            started: false,
            failure: None,
            last_error: None,
            config,
        })
    }

    /// Listens for sessions on an address: `HOST:PORT`, `[V6]:PORT`, `unix:/PATH` or
    /// `unix:@ABSTRACT`.
    ///
    /// A successor gets the socket that its predecessor asked for by the same text, and no host is
    /// looked up for that; or one at the same address, however that is spelled and whatever its name
    /// was. Otherwise it is bound anew. Port 0 is any port, and under one name the same one in every
    /// successor. Of the addresses of a host name the first of IPv4 is bound, or the first. The answer
    /// is the address that the socket really has.
    ///
    /// Who asks for all addresses of a port (`0.0.0.0`, `[::]`) of which the predecessor has some gets
    /// them all, and accepts at both sockets. The other way round it is an error: whoever connects to
    /// the more exact address would wait for a successor that may never serve. That takes two upgrades,
    /// the first of them to neither.
    ///
    /// A Unix socket whose path somebody has removed is bound anew, and who waits in the queue of the
    /// old one is let in. Another server's socket at the path is left alone: then the inherited one is
    /// kept, with a warning, and nothing is unlinked at the end.
    ///
    /// What a successor does not ask for is closed with the predecessor, and not before: the predecessor
    /// does not accept there any more, and keeps the socket in case it has to come back. Until it is
    /// gone, clients that connect there wait in the queue; when it goes, their connections are reset.
    ///
    /// Must be called before the server runs; a name can be used once.
    pub fn listen(&mut self, name: &str, address: &str) -> Result<Address, Error> {
        self.listen_with(name, address, &SocketOptions::default())
    }

    /// Listens as [`Server::listen`] does, on a socket made with these options.
    pub fn listen_with(
        &mut self,
        name: &str,
        address: &str,
        options: &SocketOptions,
    ) -> Result<Address, Error> {
        self.remember(name, |server| server.listeners.listen(name, address, Make::Socket(options)))
    }

    /// Listens as [`Server::listen`] does, on a socket that the caller makes, if none is
    /// inherited. It must be a stream socket bound to that address. It is made non-blocking and
    /// close-on-exec, and made to listen if it does not.
    pub fn listen_on(
        &mut self,
        name: &str,
        address: &str,
        make: impl FnOnce(&Address) -> io::Result<OwnedFd>,
    ) -> Result<Address, Error> {
        self.remember(name, |server| {
            let make = |at: &Address| {
                let fd = make(at).map_err(|error| ("make", error))?;
                socket::complete(&fd, &SocketOptions::default())?;
                Ok(fd)
            };
            server.listeners.listen(name, address, Make::Caller(Box::new(make)))
        })
    }

    /// Binds or inherits a UDP socket. The server keeps a duplicate for the successor, who shares
    /// it from then on: read it only while the process accepts, which is when
    /// [`Server::watch`] reports its events.
    pub fn udp(&mut self, name: &str, address: &str) -> Result<mio::net::UdpSocket, Error> {
        let fd = self.socket(name, Kind::Udp, address)?;
        Ok(mio::net::UdpSocket::from_std(fd.into()))
    }

    /// Binds or inherits a Unix datagram socket; otherwise as [`Server::udp`].
    pub fn unix_datagram(
        &mut self,
        name: &str,
        address: &str,
    ) -> Result<mio::net::UnixDatagram, Error> {
        let fd = self.socket(name, Kind::UnixDatagram, address)?;
        Ok(mio::net::UnixDatagram::from_std(fd.into()))
    }

    /// Binds or inherits a listening Unix seqpacket socket; otherwise as [`Server::udp`].
    pub fn unix_seqpacket(&mut self, name: &str, address: &str) -> Result<OwnedFd, Error> {
        self.socket(name, Kind::UnixSeqpacket, address)
    }

    fn socket(&mut self, name: &str, kind: Kind, address: &str) -> Result<OwnedFd, Error> {
        self.remember(name, |server| {
            let wanted = Wanted { name, kind, asked: address };
            server.listeners.passive(wanted, Make::Socket(&SocketOptions::default()))
        })
    }

    /// Opens or inherits any file by name; `open` is called if none is inherited. Both processes
    /// share its position and its flags while both are there (open(2)).
    pub fn file(
        &mut self,
        name: &str,
        open: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<OwnedFd, Error> {
        self.remember(name, |server| {
            let wanted = Wanted { name, kind: Kind::File, asked: "" };
            let make = |_: &Address| open().map_err(|error| ("open", error));
            server.listeners.passive(wanted, Make::Caller(Box::new(make)))
        })
    }

    /// Has readability of a named socket or file reported to
    /// [`Handler::watched`], edge-triggered, while this process accepts: never in two processes at
    /// a time. A regular file cannot be watched.
    pub fn watch(&mut self, name: &str) -> Result<(), Error> {
        self.remember(name, |server| server.listeners.watch(name, &server.registry))
    }

    /// Claims a name, before the server runs. Keeps the error for the predecessor, in case it is what
    /// ends this process.
    fn remember<T>(
        &mut self,
        name: &str,
        set_up: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let late = "is claimed before the first turn, or not at all";
        let result = match self.started {
            true => Err(Error::Name { name: name.into(), reason: late }),
            false => set_up(self),
        };
        self.last_error = result.as_ref().err().map(Error::to_string).or(self.last_error.take());
        result
    }

    /// Ends the set-up because of something that only the application knows, a mistake in its
    /// configuration for one: a predecessor is told why, in its log and its [`Report`], and goes on.
    pub fn refuse(mut self, reason: &str) {
        self.last_error = Some(reason.into());
    }

    /// The address of a named socket.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<&Address> {
        self.listeners.address(name)
    }

    /// Whether a predecessor spawned this process.
    #[must_use]
    pub fn is_successor(&self) -> bool {
        self.shared.generation > 0
    }

    /// 0 for the first process, and one more with each commit.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.generation
    }

    /// The predecessor's process id, as long as it is there.
    #[must_use]
    pub fn predecessor(&self) -> Option<u32> {
        self.predecessor.as_ref().map(|predecessor| predecessor.pid)
    }

    /// For another thread that wants to wait for the predecessor's end.
    #[must_use]
    pub fn predecessor_watch(&self) -> PredecessorWatch {
        self.predecessor_watch.clone()
    }

    /// For another thread that wants to ask for an upgrade or an end.
    #[must_use]
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }

    /// Where the process stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.machine.state()
    }

    /// How many events came too late for what they were meant for. They are ordinary.
    #[must_use]
    pub fn stale_events(&self) -> u64 {
        self.stale_events
    }

    /// The handler.
    pub fn handler(&self) -> &H {
        &self.handler
    }

    /// The handler, to be changed between two turns.
    pub fn handler_mut(&mut self) -> &mut H {
        &mut self.handler
    }

    /// Serves until the process is told to stop or its successor has taken over. The first turn is
    /// what says ready; see [`Server::turn`].
    ///
    /// An error means that this process could not do its work, a successor that was never
    /// committed to included; exit with a non-zero status then.
    pub fn run(mut self) -> Result<(), Error> {
        while self.turn(None)? != State::Exited {}
        Ok(())
    }
}

/// Whether the handler's schemas are a range, and none of them stands for none.
fn check<H: Handler>(handler: &H) -> Result<(), Error> {
    match handler.schemas().map(RangeInclusive::into_inner) {
        Some((oldest, newest)) if oldest == 0 || oldest > newest => {
            Err(Error::Schemas { oldest, newest })
        }
        Some(_) | None => Ok(()),
    }
}

/// The epoll instance (epoll(7)): readable when there is something for [`Server::turn`] to do
/// besides timers. It belongs to the server.
impl<H: Handler> AsRawFd for Server<H> {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}

/// Lets go, and leaves nothing behind: a server that is dropped cleans up as one that exits does. What
/// was never taken over stays the predecessor's, and so does what was taken over by a process that is
/// not told to stop and ends all the same.
///
/// One that is dropped in the middle of an upgrade leaves the service to its successor, which serves as soon as
/// this process has ended. If the process lives on, the successor gives way after the takeover timeout.
impl<H: Handler> Drop for Server<H> {
    fn drop(&mut self) {
        if self.shared.machine.predecessor() == Rank::Owner {
            if let Some(predecessor) = &self.predecessor {
                let reason = self.failure.as_ref().map(Error::to_string);
                let reason = reason.or_else(|| self.last_error.take());
                let ended = if std::thread::panicking() { "it panicked" } else { "it ended" };
                let reason = reason.unwrap_or_else(|| format!("{ended} before it took over"));
                predecessor.refuse(&reason);
            }
            self.listeners.unlink_made();
        } else if !self.started {
            self.listeners.unlink_made();
        }
        if self.started && self.state() != State::Exited {
            self.feed(Event::Failed);
        }
        self.bury();
        self.part_from_worker();
    }
}

impl<H: Handler> fmt::Debug for Server<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("machine", &self.shared.machine)
            .field("generation", &self.shared.generation)
            .field("sessions", &self.sessions.len())
            .finish_non_exhaustive()
    }
}
