//! What a user writes, and what is at hand meanwhile.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use crate::address::Address;
use crate::handed_over::HandedOver;
use crate::io_event::IoEvent;
use crate::ledger::Ledger;
use crate::limits;
use crate::machine::{Machine, Predecessor, State};
use crate::pollable::Pollable;
use crate::post::{Post, TellError};
use crate::report::{Moved, Report};
use crate::standing::{Requests, Standing};
use crate::stream::Stream;
use crate::token::{INDEXES, Kind, Reach, SessionId, Token};

/// A server's protocol: what to do with a connection, and what to make of what happens.
///
/// Two methods are mandatory. All of them are called on the loop's thread, one at a time, and none
/// may block: while one runs, nobody else is served. Every other method does nothing by default, and keeps the
/// session that it is called for.
///
/// # Sessions that move
///
/// They do if [`Config::schemas`](field@crate::Config::schemas) is set and both [`Handler::pack`] and
/// [`Handler::unpack`] are written:
///
/// ```
/// # use std::io;
/// # use std::ops::RangeInclusive;
/// # use tablecloth::{Accepted, Config, Context, Handler, IoEvent, Packed, Stream, Verdict};
/// struct Echo;
///
/// struct Session {
///     stream: Stream,
///     unsent: Vec<u8>,
/// }
///
/// impl Handler for Echo {
///     type Session = Session;
/// #   fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Session> {
/// #       Ok(Session { stream: accepted.stream, unsent: Vec::new() })
/// #   }
/// #   fn event(&mut self, _: &mut Context<'_>, _: &mut Session, _: IoEvent) -> Verdict {
/// #       Verdict::Keep
/// #   }
///
///     // open and event as ever
///
///     fn pack(
///         &mut self,
///         _: &mut Context<'_>,
///         session: Session,
///         _reads: RangeInclusive<u32>,
///     ) -> Result<Packed, Session> {
///         Ok(Packed::new(1, session.unsent, vec![session.stream]))
///     }
///
///     fn unpack(&mut self, _: &mut Context<'_>, mut packed: Packed) -> io::Result<Session> {
///         let stream = packed.streams.pop().ok_or(io::ErrorKind::InvalidData)?;
///         Ok(Session { stream, unsent: packed.state })
///     }
/// }
///
/// let config = Config::default().schemas(1..=1);
/// ```
///
/// # Sessions that reach each other
///
/// A method is called for one session and gets that one alone. What it has to say to another one it leaves in
/// the handler, under the other one's [id](Context::id), and [wakes](Context::wake) that one; the other one
/// finds it in its next [event](Handler::event). The handler is not told of every way in which a session can end:
/// whoever keeps a list of them takes one off where it answers [`Verdict::Close`], in [`Handler::pack`], and in the
/// `Drop` of something that the session owns. `examples/chat.rs` in the repository does all of this.
pub trait Handler {
    /// What there is for each connection. It owns the connection's [`Stream`]: dropping it closes
    /// the connection.
    type Session;

    /// A connection was accepted. The stream is registered already; its first event follows, at once if the session
    /// does not [wait for its peer](Context::wait_for_peer).
    ///
    /// # Errors
    ///
    /// An error closes the connection, and is logged as a warning. To decline a client without a warning, answer
    /// [`ConnectionReset`](io::ErrorKind::ConnectionReset), which also stands for a client that is gone already: it
    /// is logged for debugging.
    fn open(&mut self, cx: &mut Context<'_>, accepted: Accepted) -> io::Result<Self::Session>;

    /// Something happened to the session's stream. Read and write until
    /// [`WouldBlock`](io::ErrorKind::WouldBlock), or answer [`Verdict::Again`] or [`Verdict::Flush`].
    fn event(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut Self::Session,
        event: IoEvent,
    ) -> Verdict;

    /// The session has answered [`Verdict::Flush`], and is to write now. By default the same event
    /// comes again.
    fn flush(&mut self, cx: &mut Context<'_>, session: &mut Self::Session) -> Verdict {
        let _ = (cx, session);
        Verdict::Again
    }

    /// The session is to come to its end: the process was told to stop, which
    /// [`Context::shutting_down`] tells, or its successor is proven and this session does not move.
    ///
    /// Called for each such session, and again every
    /// [`DRAIN_INTERVAL`](crate::DRAIN_INTERVAL) as long as it lasts. A session that is kept
    /// goes on getting events until it closes itself or
    /// [`Config::drain_timeout`](crate::Config::drain_timeout) is over. After a rollback the calls
    /// stop, [`Context::state`] is `Running` again, and a session that was kept goes on as before.
    fn drain(&mut self, cx: &mut Context<'_>, session: &mut Self::Session) -> Verdict {
        let _ = (cx, session);
        Verdict::Keep
    }

    /// The session is closed although it has not come to its end, and not by [`Verdict::Close`]: it has not drained in time, or the
    /// process was told to exit at once. It is dropped next, and its peer sees the end of the stream, unless
    /// it is [reset](Stream::reset_on_close) here, which does not make half of something look whole.
    fn closing(&mut self, cx: &mut Context<'_>, session: &mut Self::Session) {
        let _ = (cx, session);
    }

    /// Takes a session apart, for it to move to a successor that reads these schemas: the session's sockets,
    /// and in bytes whatever the next owner has to know. Nothing of it may be read or written any more. By
    /// default no session moves.
    ///
    /// It is called where this program and the successor have a schema in common
    /// ([`Config::schemas`](field@crate::Config::schemas)), and packs in one of those that they have. The time that
    /// was asked for by [`Context::wake_at`] moves along; a [wake](Context::wake) that is still to come does not.
    ///
    /// A session that cannot move now is given back as it was, and is asked to drain. It is asked again every
    /// [`DRAIN_INTERVAL`](crate::DRAIN_INTERVAL), or as soon after it as the successor has taken what is on its
    /// way.
    ///
    /// One that could not be taken, because it is too large or because the successor has refused it, is put
    /// together again by [`Handler::unpack`] here, and asked again later, after growing pauses.
    ///
    /// While it is on its way a session hears nothing. What the predecessor [says](Context::tell) before it
    /// packs is heard before the session is put together; but what the successor says in that time reaches
    /// neither the session here, which is gone, nor the one there, which does not exist yet. A program whose
    /// sessions must miss nothing numbers what it says, packs the last number that the session has heard, keeps
    /// what was said lately, and says the rest in [`Handler::unpack`], as `examples/chat.rs` does.
    ///
    /// # Errors
    ///
    /// The session as it was, which cannot move now.
    fn pack(
        &mut self,
        cx: &mut Context<'_>,
        session: Self::Session,
        reads: RangeInclusive<u32>,
    ) -> Result<Packed, Self::Session> {
        let _ = (cx, reads);
        Err(session)
    }

    /// Puts a session together from what [`Handler::pack`] made of it, in the successor, or here
    /// again if the successor could not take it. The sockets are registered already, in their
    /// order as the sources 0, 1 and so on, and their first events follow; nothing may be read or
    /// written before. A session that has nothing to write says so by [`Context::wait_for_peer`], which
    /// spares it an event for nothing.
    ///
    /// # Errors
    ///
    /// An error gives the session back to the predecessor, which asks it again later.
    fn unpack(&mut self, cx: &mut Context<'_>, packed: Packed) -> io::Result<Self::Session> {
        let _ = (cx, packed);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The successor is about to accept in place of this process: the application's own state, if there is
    /// something to hand over, in one of the schemas that both read. Called at the commit, where both
    /// have a schema in common ([`Config::schemas`](crate::Config::schemas)).
    ///
    /// Nobody is accepted until it is done. This process keeps what it has: its sessions go on by it until
    /// they move, and if the successor fails it serves again. What changes from here on, the two processes
    /// [tell](Context::tell) each other.
    ///
    /// # Errors
    ///
    /// With an error, or a panic, the upgrade fails, and this process goes on: a successor without the state would
    /// begin anew.
    fn hand_over(
        &mut self,
        cx: &mut Context<'_>,
        reads: RangeInclusive<u32>,
    ) -> io::Result<Option<HandedOver>> {
        let _ = (cx, reads);
        Ok(None)
    }

    /// What the predecessor's [`Handler::hand_over`] has answered, before this process accepts for the
    /// first time. Not called if it has answered nothing, or has died before it was asked.
    ///
    /// # Errors
    ///
    /// An error ends this process, and the predecessor goes on.
    fn take_over(&mut self, cx: &mut Context<'_>, state: HandedOver) -> io::Result<()> {
        let _ = (cx, state);
        Ok(())
    }

    /// The other process of an upgrade has said something by [`Context::tell`]: the predecessor, as long as
    /// [there is one](Context::has_predecessor), and else the successor.
    ///
    /// What one process says arrives in the order in which it was said. It arrives before the sessions that are
    /// packed after it, and after [`Handler::unpack`] of those that were packed before it. What a process has said
    /// before it died is heard, too. See [`Handler::pack`] for what a session misses on its way.
    fn told(&mut self, cx: &mut Context<'_>, message: &[u8]) {
        let _ = (cx, message);
    }

    /// The successor that was [handed over](Handler::hand_over) or committed to is dead, and this process serves
    /// again. All that it has said is heard before this. If it died by itself, this comes before this process
    /// serves; if this process has killed it, this may come some milliseconds after that.
    fn successor_gone(&mut self, cx: &mut Context<'_>) {
        let _ = cx;
    }

    /// Another thread has [woken](crate::Remote::wake) the loop.
    fn woken(&mut self, cx: &mut Context<'_>) {
        let _ = cx;
    }

    /// The time has come that [`Context::tick_at`] was asked for.
    fn tick(&mut self, cx: &mut Context<'_>) {
        let _ = cx;
    }

    /// One of [`Config::user_signals`](crate::Config::user_signals) came, once or several times.
    fn signal(&mut self, cx: &mut Context<'_>, signal: i32) {
        let _ = (cx, signal);
    }

    /// Something happened to a descriptor of the handler's own, [attached](Context::attach_own) with this key. Read or
    /// write until [`io::ErrorKind::WouldBlock`], or answer [`Verdict::Again`] to be called again in the next turn.
    /// [`Verdict::Close`] is as good as [`Verdict::Keep`]: whoever drops the descriptor closes it.
    ///
    /// The event is a fact that may be out of date: of one that was dropped a moment ago, if its key has a new tenant.
    fn owned(&mut self, cx: &mut Context<'_>, key: u32, event: IoEvent) -> Verdict {
        let _ = (cx, key, event);
        Verdict::Keep
    }

    /// Something happened to a descriptor that [`Server::watch`](crate::Server::watch) was asked
    /// to watch.
    ///
    /// Whoever has read for long enough and not to the end answers [`Verdict::Again`], and has the same
    /// event again in the next turn; [`Verdict::Keep`] waits for the next one, and [`Verdict::Close`]
    /// ends the watching. `Flush` is the same as `Again`.
    fn watched(&mut self, cx: &mut Context<'_>, name: &str, event: IoEvent) -> Verdict {
        let _ = (cx, name, event);
        Verdict::Keep
    }

    /// An upgrade of this process ended, well or badly; [`Report`] says how. One that went well and
    /// is rolled back later ends a second time.
    fn upgraded(&mut self, cx: &mut Context<'_>, report: &Report) {
        let _ = (cx, report);
    }

    /// This process leaves: what became of its sessions in the upgrade. It is the last method that is called.
    fn moved(&mut self, cx: &mut Context<'_>, moved: &Moved) {
        let _ = (cx, moved);
    }

    /// The predecessor is dead: this process is alone. All that it has said is heard before this.
    fn predecessor_gone(&mut self, cx: &mut Context<'_>) {
        let _ = cx;
    }
}

/// A new connection.
#[derive(Debug)]
#[non_exhaustive]
pub struct Accepted {
    /// The name of the listener that accepted it.
    pub listener: Rc<str>,
    /// Where it comes from.
    pub peer: Address,
    /// The connection.
    pub stream: Stream,
}

impl Accepted {
    /// A new connection, as the tests of a handler make it.
    #[must_use]
    pub fn new(listener: Rc<str>, peer: Address, stream: Stream) -> Self {
        Self { listener, peer, stream }
    }
}

/// A session on its way from one process to the next. It is made by [`Packed::new`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Packed {
    /// The form of `state`, by the application's own count; 1 or more.
    pub schema: u32,
    /// What the next owner has to know. Up to [`STATE_BYTES`](crate::STATE_BYTES) go from hand to hand; more,
    /// up to [`Config::max_packed_bytes`](field@crate::Config::max_packed_bytes), through a file in memory, if the
    /// successor's build knows of that.
    pub state: Vec<u8>,
    /// The session's sockets, at most [`SOURCES`](crate::SOURCES).
    pub streams: Vec<Stream>,
    /// Descriptors of any other kind that belong to it, at most
    /// [`SESSION_DESCRIPTORS`](crate::SESSION_DESCRIPTORS), if the successor's build knows of them.
    pub descriptors: Vec<OwnedFd>,
}

impl Packed {
    /// A session with these sockets, and no other descriptors.
    #[must_use]
    pub fn new(schema: u32, state: Vec<u8>, streams: Vec<Stream>) -> Self {
        Self { schema, state, streams, descriptors: Vec::new() }
    }

    /// The same with these descriptors.
    #[must_use]
    pub fn with(self, descriptors: Vec<OwnedFd>) -> Self {
        Self { descriptors, ..self }
    }
}

/// What becomes of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It waits for its next event: the stream was read or written until it would block.
    Keep,
    /// It has read, and writes when its neighbours have read, too: [`Handler::flush`] follows in this
    /// turn, as soon as one of them answers anything else, or
    /// eight have answered this. Reading and writing are
    /// two long ways through the kernel, and to go each of them several times in a row leaves it in the
    /// processor's nearest caches.
    ///
    /// From any other method than [`Handler::event`] it is the same as `Again`.
    Flush,
    /// It has more to do, and gives way to the others: the same event comes again in the next turn.
    Again,
    /// It is over. The session is dropped, which closes what it owns.
    Close,
}

/// What is at hand in a [`Handler`]'s method.
#[derive(Debug)]
pub struct Context<'a> {
    standing: &'a mut Standing,
    desk: &'a mut Desk,
}

/// What a method of a handler leaves for the loop.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    pub(crate) sessions: usize,
    /// The session that the handler was called for, when it wants to be woken, and the sources that it
    /// has got sockets for, a bit for each.
    pub(crate) session: Option<Token>,
    pub(crate) wake: Option<Instant>,
    pub(crate) attached: u8,
    /// The session has nothing to write until it hears from a peer.
    pub(crate) patient: bool,
    /// What is wanted of other sessions.
    pub(crate) reached: Vec<(SessionId, Reach)>,
    /// When the handler itself wants to be called.
    pub(crate) tick: Option<Instant>,
}

/// The token of a descriptor of the handler's own.
fn owned(key: u32) -> io::Result<Token> {
    match usize::try_from(key) {
        Ok(index) if index < INDEXES => Ok(Token::new(Kind::Owned, 0, key)),
        Ok(_) | Err(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

impl<'a> Context<'a> {
    /// For a method that is called for this session.
    pub(crate) fn of(standing: &'a mut Standing, desk: &'a mut Desk, session: Token) -> Self {
        (desk.session, desk.wake) = (Some(session), None);
        (desk.attached, desk.patient) = (0, false);
        Self { standing, desk }
    }

    /// For a method that is called for none.
    pub(crate) fn of_none(standing: &'a mut Standing, desk: &'a mut Desk) -> Self {
        (desk.session, desk.wake) = (None, None);
        (desk.attached, desk.patient) = (0, false);
        Self { standing, desk }
    }
}

/// What the methods of a [`Handler`] are given, for its tests: there is no loop behind it, and no other process.
///
/// ```
/// # use std::io::{self, Read, Write};
/// # use std::os::unix::net::UnixStream;
/// # use tablecloth::{Accepted, Address, Context, Handler, IoEvent, Rehearsal, Stream, Verdict};
/// # struct Echo;
/// # impl Handler for Echo {
/// #     type Session = Stream;
/// #     fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Stream> {
/// #         Ok(accepted.stream)
/// #     }
/// #     fn event(&mut self, _: &mut Context<'_>, stream: &mut Stream, _: IoEvent) -> Verdict {
/// #         let mut byte = [0; 1];
/// #         match stream.read(&mut byte).and_then(|_| stream.write_all(&byte)) {
/// #             Ok(()) => Verdict::Again,
/// #             Err(_) => Verdict::Keep,
/// #         }
/// #     }
/// # }
/// # fn main() -> io::Result<()> {
/// let (near, mut client) = UnixStream::pair()?;
/// let mut rehearsal = Rehearsal::new()?;
/// let accepted = Accepted::new("echo".into(), Address::Unnamed, Stream::from_unix(near)?);
/// let mut session = Echo.open(&mut rehearsal.context(), accepted)?;
/// client.write_all(b"x")?;
/// let verdict = Echo.event(&mut rehearsal.context(), &mut session, IoEvent::readable());
/// assert_eq!(verdict, Verdict::Again);
/// client.read_exact(&mut [0; 1])?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Rehearsal {
    standing: Standing,
    desk: Desk,
    /// What sockets are registered with.
    _poll: mio::Poll,
}

impl Rehearsal {
    /// One for a first process that serves, with a single session.
    ///
    /// # Errors
    ///
    /// No epoll instance is to be had (epoll_create(2)).
    pub fn new() -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let registry = Rc::new(poll.registry().try_clone()?);
        let standing = Standing {
            machine: Machine::first(),
            generation: 0,
            now: Instant::now(),
            registry,
            requests: Requests::default(),
            post: Post::default(),
            ledger: Ledger::private(),
        };
        Ok(Self { standing, desk: Desk::default(), _poll: poll })
    }

    /// What a method is given that is called for the session, now.
    pub fn context(&mut self) -> Context<'_> {
        self.standing.now = Instant::now();
        Context::of(&mut self.standing, &mut self.desk, Token::new(Kind::Session, 0, 0))
    }
}

impl Context<'_> {
    /// When this turn began, by the monotonic clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.standing.now
    }

    /// Where the process stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.standing.machine.state()
    }

    /// Whether the process drains for good: it was told to stop, and does not come back.
    #[must_use]
    pub fn shutting_down(&self) -> bool {
        self.state() == State::Draining(crate::machine::Drain::Shutdown)
    }

    /// 0 for the first process, and one more in each successor; after a rollback the next successor has the
    /// same number again.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.standing.generation
    }

    /// Whether the process before this one is still there.
    #[must_use]
    pub fn has_predecessor(&self) -> bool {
        self.standing.machine.predecessor() != Predecessor::Gone
    }

    /// How many sessions there are; one that is being opened is not among them.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.desk.sessions
    }

    /// Connects a stream for the session at hand, without waiting: it is registered as the session's
    /// `source`, from 1 on, and the event that says writable, or an error, tells how the connection
    /// came out ([`Stream::take_error`]). [`IoEvent::of`] tells the sources apart.
    ///
    /// # Errors
    ///
    /// In a method that is called for no session it is [`InvalidInput`](io::ErrorKind::InvalidInput), because
    /// [`Context::connect_own`] is for those; else what the system answers, if the connection fails at once (connect(2)).
    pub fn connect(&mut self, address: &Address, source: u8) -> io::Result<Stream> {
        self.attached(Stream::connect(address, false)?, source)
    }

    /// The same for a session that has bytes to send as soon as the connection is made. The last
    /// segment of a TCP handshake then rides on them: one segment less. A session that sends nothing
    /// in the end delays it instead, for up to 0.2 s (TCP_QUICKACK, tcp(7)). What the server answers is
    /// acknowledged as ever. TCP_NODELAY is set with the second write through the [`Stream`], and not
    /// before, as one write does without it.
    ///
    /// # Errors
    ///
    /// As those of [`Context::connect`].
    pub fn connect_to_send(&mut self, address: &Address, source: u8) -> io::Result<Stream> {
        self.attached(Stream::connect(address, true)?, source)
    }

    fn attached(&mut self, mut stream: Stream, source: u8) -> io::Result<Stream> {
        self.attach(&mut stream, source)?;
        Ok(stream)
    }

    /// Makes a stream one of the session at hand: it is registered as the session's `source`, from 1 on, and
    /// [`IoEvent::of`] tells the sources apart. The session owns it.
    ///
    /// # Errors
    ///
    /// In a method that is called for no session, or with a source of [`SOURCES`](crate::SOURCES) or more, it is
    /// [`InvalidInput`](io::ErrorKind::InvalidInput); else what the system answers (epoll_ctl(2)).
    pub fn attach(&mut self, stream: &mut Stream, source: u8) -> io::Result<()> {
        let Some(session) = self.desk.session.filter(|_| usize::from(source) < limits::SOURCES)
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        stream.register(&self.standing.registry, session.of_source(source).pack())?;
        self.desk.attached |= 1 << source;
        Ok(())
    }

    /// The same for a descriptor that is no stream.
    ///
    /// # Errors
    ///
    /// As those of [`Context::attach`]. A regular file cannot be polled (EPERM).
    pub fn attach_pollable(&mut self, pollable: &mut Pollable, source: u8) -> io::Result<()> {
        let Some(session) = self.desk.session.filter(|_| usize::from(source) < limits::SOURCES)
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        pollable.register(&self.standing.registry, session.of_source(source).pack())?;
        self.desk.attached |= 1 << source;
        Ok(())
    }

    /// Makes a stream one of the handler's own, which belongs to no session: [`Handler::owned`] hears of it, by this
    /// key. The handler owns it, and two should not have one key. It may be called in any method.
    ///
    /// It is served in every state of the process, and nothing hands it over: a handler that wants it to go on in
    /// the successor gives it away in [`Handler::hand_over`], and attaches it again in [`Handler::take_over`].
    ///
    /// # Errors
    ///
    /// With a key of 2^24 or more it is [`InvalidInput`](io::ErrorKind::InvalidInput); else what the system answers
    /// (epoll_ctl(2)).
    pub fn attach_own(&mut self, stream: &mut Stream, key: u32) -> io::Result<()> {
        stream.register(&self.standing.registry, owned(key)?.pack())
    }

    /// The same for a descriptor that is no stream.
    ///
    /// # Errors
    ///
    /// As those of [`Context::attach_own`]. A regular file cannot be polled (EPERM).
    pub fn attach_own_pollable(&mut self, pollable: &mut Pollable, key: u32) -> io::Result<()> {
        pollable.register(&self.standing.registry, owned(key)?.pack())
    }

    /// Connects a stream of the handler's own, without waiting, as [`Context::connect`] does for a session: a
    /// connection that all sessions share, or that is there before them.
    ///
    /// # Errors
    ///
    /// As those of [`Context::attach_own`], and what the system answers if the connection fails at once (connect(2)).
    pub fn connect_own(&mut self, address: &Address, key: u32) -> io::Result<Stream> {
        // Nobody is connected to for nothing.
        owned(key)?;
        let mut stream = Stream::connect(address, false)?;
        self.attach_own(&mut stream, key)?;
        Ok(stream)
    }

    /// Wakes the session at hand at that time, by an event that
    /// [is a timeout](IoEvent::is_timeout), in place of the time that it may have asked for before.
    /// Not called for a session, it does nothing.
    pub fn wake_at(&mut self, at: Instant) {
        self.desk.wake = self.desk.session.map(|_| at);
    }

    /// Says that the session at hand has nothing to write, so that no event need tell it that it can. It returns at
    /// once. Call it in [`Handler::unpack`] or [`Handler::open`]; in other methods it does nothing.
    ///
    /// Without this call, the first event of most sessions says nothing but that their sockets can be written to.
    /// With it, that event is held back until something else happens to the session: bytes to read, its time, a
    /// [wake](Context::wake), a call of another method for it. Then both come together. From then on each event comes
    /// as ever. So thousands of idle sessions can move, and the handler is called for none of them.
    ///
    /// Do not call it while the session has bytes to write, or while one of its sockets is still being connected:
    /// what is held back is also the news that a connection is made.
    pub fn wait_for_peer(&mut self) {
        self.desk.patient = self.desk.session.is_some();
    }

    /// Says something to the other process of an upgrade: from the commit on, for as long as both are there.
    /// It hears it by [`Handler::told`]. It may be called at any time: [`TellError::Nobody`] says that there is
    /// nobody who would have to know.
    ///
    /// # Errors
    ///
    /// See [`TellError`]. Nothing is said then.
    pub fn tell(&mut self, message: &[u8]) -> Result<(), TellError> {
        self.standing.post.add(message)
    }

    /// How many bytes can be said before [`TellError::Full`] is the answer, of messages and nothing beside them;
    /// 0 if there is nobody.
    #[must_use]
    pub fn tell_room(&self) -> usize {
        self.standing.post.room()
    }

    /// Whether everything that was [said](Context::tell) is with the kernel, which delivers it even if this
    /// process dies. What is said in one turn is given to the kernel at its end; more may wait there if the
    /// other process does not read. Where a client's answer must not be lost with this process, say it to the
    /// other one first, and answer when this is true.
    #[must_use]
    pub fn has_told_all(&self) -> bool {
        self.standing.post.is_empty()
    }

    /// Whether there is another process that [can be told](Context::tell) something.
    #[must_use]
    pub fn can_tell(&self) -> bool {
        self.standing.post.is_open()
    }

    /// The session at hand. It has an id from [`Handler::open`] or [`Handler::unpack`] on. `None` in a method
    /// that is called for no session.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.desk.session.map(SessionId::of)
    }

    /// Gives another session an event that [says so](IoEvent::is_woken), in the next turn. An id that is out
    /// of date finds nobody. A session that has come from the predecessor has it when that knows that it was
    /// taken, as it has all its events.
    pub fn wake(&mut self, id: SessionId) {
        self.desk.reached.push((id, Reach::Wake));
    }

    /// Closes a session at the end of this turn, as [`Verdict::Close`] does. An id that is out of date finds
    /// nobody.
    pub fn close(&mut self, id: SessionId) {
        self.desk.reached.push((id, Reach::Close));
    }

    /// Has [`Handler::tick`] called at that time, in place of the time that was asked for before. It belongs
    /// to no session.
    pub fn tick_at(&mut self, at: Instant) {
        self.desk.tick = Some(at);
    }

    /// Asks for an upgrade, as the signal does. The answer is in the log and the [`Report`].
    pub fn request_upgrade(&mut self) {
        self.standing.requests.upgrade = true;
    }

    /// Asks for a shutdown, as the signal does.
    pub fn request_shutdown(&mut self) {
        self.standing.requests.shutdown = true;
    }

    /// Asks for the end at once, as the signal does.
    pub fn request_exit(&mut self) {
        self.standing.requests.exit = true;
    }
}
