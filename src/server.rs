//! The server: sessions are accepted, served and handed over, on top of an upgrader.
//!
//! [`Server`] is the set-up, [`Reactor`] what runs. `wing` is what the upgrader sees of them: `crew` is the
//! handler and its sessions, `door` and `acceptor` let clients in, `handoff` moves sessions and `moves` tells
//! of it, `guard` stands around the handler's methods.

mod acceptor;
mod crew;
mod door;
mod guard;
mod handoff;
mod moves;
mod pace;
mod sessions;
mod wing;

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::address::Address;
use crate::config::{Config, OnPanic};
use crate::error::Error;
use crate::handler::{Desk, Handler};
use crate::ledger::{Counter, Gauge, Histogram};
use crate::machine::State;
use crate::remote::{PredecessorWatch, Remote};
use crate::socket::SocketOptions;
use crate::upgrader::{End, Upgrader};
use acceptor::Acceptor;
use crew::Crew;
use door::Door;
use guard::Panics;
use handoff::Handoff;
use pace::Pace;
use sessions::Sessions;
use wing::Wing;

/// A server whose process can be replaced while it serves.
///
/// Make it, claim the listeners, run it with a handler. The same program does this as the first process and
/// as a successor: [`Server::listen`] binds in the one and inherits in the other.
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
/// let mut server = Server::new(Config::default())?;
/// server.listen("echo", "127.0.0.1:8080")?;
/// server.run(Echo)?;
/// # Ok(())
/// # }
/// ```
///
/// A server that is dropped before it ran lets go of everything: a successor tells its predecessor
/// why (the last error of this server), and the predecessor goes on.
pub struct Server {
    upgrader: Upgrader,
    acceptor: Acceptor,
    max_sessions: usize,
    on_panic: OnPanic,
    schemas: Option<RangeInclusive<u32>>,
}

impl Server {
    /// Makes a server, in the first process or in the successor of the one that spawned this. What
    /// [`Upgrader::new`] says of signals, threads and the environment holds here, too.
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::new`].
    pub fn new(config: Config) -> Result<Self, Error> {
        let (max_sessions, on_panic) = (config.max_sessions, config.on_panic);
        let schemas = config.schemas.clone();
        let (upgrader, acceptor) = (Upgrader::new(config)?, Acceptor::default());
        Ok(Self { upgrader, acceptor, max_sessions, on_panic, schemas })
    }

    /// Listens for sessions on an address: `HOST:PORT`, `[V6]:PORT`, `unix:/PATH` or
    /// `unix:@ABSTRACT`. The answer is the address that the socket really has.
    ///
    /// A successor gets the socket that its predecessor asked for by the same text, and no host is
    /// looked up for that; or one at the same address, however that is spelled and whatever its name
    /// was. Otherwise it is bound anew. Port 0 is any port, and under one name the same one in every
    /// successor. Of the addresses of a host name the first of IPv4 is bound, or the first.
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
    /// # Errors
    ///
    /// A name that is used already is [`Error::Name`]. An address that is none, or that cannot be bound, is
    /// named by the error, and so is an inherited socket that is something else.
    pub fn listen(&mut self, name: &str, address: &str) -> Result<Address, Error> {
        self.listen_with(name, address, &SocketOptions::default())
    }

    /// Listens as [`Server::listen`] does, on a socket made with these options.
    ///
    /// # Errors
    ///
    /// As those of [`Server::listen`].
    pub fn listen_with(
        &mut self,
        name: &str,
        address: &str,
        options: &SocketOptions,
    ) -> Result<Address, Error> {
        self.upgrader.listen(name, address, options)
    }

    /// Listens as [`Server::listen`] does, on a socket that the caller makes, if none is
    /// inherited. It must be a stream socket bound to that address. It is made non-blocking and
    /// close-on-exec, and made to listen if it does not.
    ///
    /// # Errors
    ///
    /// As those of [`Server::listen`], and what `make` answers.
    pub fn listen_on(
        &mut self,
        name: &str,
        address: &str,
        make: impl FnOnce(&Address) -> io::Result<OwnedFd>,
    ) -> Result<Address, Error> {
        self.upgrader.listen_on(name, address, make)
    }

    /// Binds or inherits a UDP socket. The server keeps a duplicate for the successor, who shares
    /// it from then on: read it only while the process accepts, which is when
    /// [`Server::watch`] reports its events.
    ///
    /// # Errors
    ///
    /// As those of [`Server::listen`].
    pub fn udp(&mut self, name: &str, address: &str) -> Result<mio::net::UdpSocket, Error> {
        self.upgrader.udp(name, address).map(mio::net::UdpSocket::from_std)
    }

    /// Binds or inherits a Unix datagram socket; otherwise as [`Server::udp`].
    ///
    /// # Errors
    ///
    /// As those of [`Server::listen`].
    pub fn unix_datagram(
        &mut self,
        name: &str,
        address: &str,
    ) -> Result<mio::net::UnixDatagram, Error> {
        self.upgrader.unix_datagram(name, address).map(mio::net::UnixDatagram::from_std)
    }

    /// Binds or inherits a listening Unix seqpacket socket; otherwise as [`Server::udp`].
    ///
    /// # Errors
    ///
    /// As those of [`Server::listen`].
    pub fn unix_seqpacket(&mut self, name: &str, address: &str) -> Result<OwnedFd, Error> {
        self.upgrader.seqpacket(name, address)
    }

    /// Opens or inherits any file by name; `open` is called if none is inherited. Both processes
    /// share its position and its flags while both are there (open(2)).
    ///
    /// # Errors
    ///
    /// A name that is used already is [`Error::Name`]; else what `open` answers.
    pub fn file(
        &mut self,
        name: &str,
        open: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<OwnedFd, Error> {
        self.upgrader.file(name, open)
    }

    /// Has readability of a named socket or file reported to
    /// [`Handler::watched`], edge-triggered, while this process accepts: never in two processes at
    /// a time. A regular file cannot be watched.
    ///
    /// # Errors
    ///
    /// A name that stands for no such descriptor is [`Error::Name`]; a descriptor that epoll refuses is
    /// [`Error::Open`].
    pub fn watch(&mut self, name: &str) -> Result<(), Error> {
        let registry = std::rc::Rc::clone(&self.upgrader.standing.registry);
        let acceptor = &mut self.acceptor;
        self.upgrader.claim(name, |estate| acceptor.watch(name, estate, &registry))
    }

    /// A number that only grows, and goes on from process to process; see [`Upgrader::counter`].
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::counter`].
    pub fn counter(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        help: &str,
    ) -> Result<Counter, Error> {
        self.upgrader.counter(name, labels, help)
    }

    /// How long something took; see [`Upgrader::histogram`].
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::histogram`].
    pub fn histogram(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        help: &str,
        bounds: &[Duration],
    ) -> Result<Histogram, Error> {
        self.upgrader.histogram(name, labels, help, bounds)
    }

    /// Tells the service manager that the set-up takes longer; see [`Upgrader::needs_time`].
    pub fn needs_time(&mut self, time: Duration) {
        self.upgrader.needs_time(time);
    }

    /// A number of this process's that goes up and down; see [`Upgrader::gauge`].
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::gauge`].
    pub fn gauge(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        help: &str,
    ) -> Result<Gauge, Error> {
        self.upgrader.gauge(name, labels, help)
    }

    /// Ends the set-up because of something that only the application knows, a mistake in its
    /// configuration for one: a predecessor is told why, in its log and its [`Report`](crate::Report), and
    /// goes on.
    pub fn refuse(self, reason: &str) {
        self.upgrader.refuse(reason);
    }

    /// What the server is built on.
    #[must_use]
    pub fn upgrader(&self) -> &Upgrader {
        &self.upgrader
    }

    /// The address of a named socket.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<&Address> {
        self.upgrader.address(name)
    }

    /// Whether a predecessor spawned this process.
    #[must_use]
    pub fn is_successor(&self) -> bool {
        self.upgrader.is_successor()
    }

    /// 0 for the first process, and one more in each successor; after a rollback the next successor has the
    /// same number again.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.upgrader.generation()
    }

    /// The predecessor's process id, as long as it is there.
    #[must_use]
    pub fn predecessor(&self) -> Option<u32> {
        self.upgrader.predecessor()
    }

    /// For another thread that wants to wait for the predecessor's end.
    #[must_use]
    pub fn predecessor_watch(&self) -> PredecessorWatch {
        self.upgrader.predecessor_watch()
    }

    /// For another thread that wants to ask for an upgrade or an end.
    #[must_use]
    pub fn remote(&self) -> Remote {
        self.upgrader.remote()
    }

    /// Serves until the process is told to stop or its successor has taken over, and gives the handler
    /// back. The first turn is what says ready; see [`Reactor::turn`].
    ///
    /// # Errors
    ///
    /// An error means that this process could not do its work, a successor that was never
    /// committed to included; exit with a non-zero status then.
    pub fn run<H: Handler>(self, handler: H) -> Result<Ended<H>, Error> {
        self.start(handler).run()
    }

    /// Ends the set-up, for a program that turns the loop itself. Nothing is said or served before the
    /// first turn.
    pub fn start<H: Handler>(self, handler: H) -> Reactor<H> {
        let Self { upgrader, acceptor, max_sessions, on_panic, schemas } = self;
        let now = Instant::now();
        let crew = Crew {
            handler,
            sessions: Sessions::new(max_sessions),
            desk: Desk::default(),
            pace: Pace::begin(now),
            panics: Panics::new(on_panic),
            watched: Vec::new(),
            owned: Vec::new(),
        };
        let wing = Wing { crew, acceptor, door: Door::new(now), handoff: Handoff::new(schemas) };
        Reactor { upgrader, wing: Some(wing) }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("upgrader", &self.upgrader).finish_non_exhaustive()
    }
}

/// A server that has come to its end.
#[derive(Debug)]
#[non_exhaustive]
pub struct Ended<H> {
    /// How: replaced, shut down or told to exit.
    pub end: End,
    /// The handler, as it was left.
    pub handler: H,
}

/// A server that runs, for a program that turns the loop itself.
///
/// Poll its descriptor ([`AsFd`]) and call [`Reactor::turn`] with a zero timeout when it is readable, and at
/// the latest at [`Reactor::next_deadline`].
pub struct Reactor<H: Handler> {
    upgrader: Upgrader,
    /// There until the end.
    wing: Option<Wing<H>>,
}

#[allow(
    clippy::expect_used,
    reason = "the wing is there until `ended` takes it, which consumes the reactor"
)]
impl<H: Handler> Reactor<H> {
    /// One turn of the loop: waits for events, at most `timeout` (for ever if `None`) and never
    /// longer than to the next deadline, and dispatches them. Answers where the process stands;
    /// after [`State::Exited`] there is nothing more to do.
    ///
    /// The first turn ends the set-up: the first process writes its pid file and starts to accept, a
    /// successor closes what it has not claimed and says ready.
    ///
    /// # Errors
    ///
    /// If the pid file cannot be written, that is the error of the first turn, and nobody is served. Later
    /// ones mean that this process could not do its work.
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<State, Error> {
        let Self { upgrader, wing: Some(wing) } = self else { return Ok(State::Exited) };
        if !upgrader.has_started() {
            upgrader.set_up_done(wing);
        }
        upgrader.turn_for(timeout, wing)
    }

    /// Turns until the end, as [`Server::run`] does.
    ///
    /// # Errors
    ///
    /// As those of [`Server::run`].
    pub fn run(mut self) -> Result<Ended<H>, Error> {
        while self.turn(None)? != State::Exited {}
        Ok(self.ended())
    }

    /// When [`Reactor::turn`] has to be called at the latest, whether or not there are events.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        match &self.wing {
            Some(wing) if self.upgrader.has_started() => self.upgrader.deadline(wing),
            Some(_) | None => Some(Instant::now()),
        }
    }

    /// Where the process stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.upgrader.state()
    }

    /// What the server is built on.
    #[must_use]
    pub fn upgrader(&self) -> &Upgrader {
        &self.upgrader
    }

    /// For another thread that wants to ask for an upgrade or an end.
    #[must_use]
    pub fn remote(&self) -> Remote {
        self.upgrader.remote()
    }

    /// How many events came too late for what they were meant for. They are ordinary.
    #[must_use]
    pub fn stale_events(&self) -> u64 {
        self.upgrader.stale_events()
    }

    /// The handler.
    pub fn handler(&self) -> &H {
        &self.wing.as_ref().expect(WING).crew.handler
    }

    /// The handler, to be changed between two turns.
    pub fn handler_mut(&mut self) -> &mut H {
        &mut self.wing.as_mut().expect(WING).crew.handler
    }

    /// Ends it, and gives the handler back. If it has not come to its end by itself, it is as if it was
    /// dropped.
    pub fn ended(mut self) -> Ended<H> {
        let end = self.upgrader.end();
        let mut wing = self.wing.take().expect(WING);
        self.upgrader.let_go(&mut wing);
        Ended { end, handler: wing.crew.handler }
    }
}

/// Only [`Reactor::ended`] takes it, which nobody can call twice.
const WING: &str = "there until the end";

/// The epoll instance (epoll(7)): readable when there is something for [`Reactor::turn`] to do
/// besides timers. It belongs to the reactor.
impl<H: Handler> AsFd for Reactor<H> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.upgrader.as_fd()
    }
}

/// See [`AsFd`].
impl<H: Handler> AsRawFd for Reactor<H> {
    fn as_raw_fd(&self) -> RawFd {
        self.upgrader.as_raw_fd()
    }
}

/// Lets go, and leaves nothing behind, as [an upgrader](Upgrader) that is dropped; sessions are closed.
impl<H: Handler> Drop for Reactor<H> {
    fn drop(&mut self) {
        if let Some(wing) = &mut self.wing {
            self.upgrader.let_go(wing);
        }
    }
}

impl<H: Handler> fmt::Debug for Reactor<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sessions = self.wing.as_ref().map(|wing| wing.crew.sessions.len());
        f.debug_struct("Reactor")
            .field("upgrader", &self.upgrader)
            .field("sessions", &sessions)
            .finish_non_exhaustive()
    }
}
