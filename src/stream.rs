//! One connection, accepted or made: a TCP or Unix stream whose place in the loop ends with it.

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{self, Shutdown};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockType, recv, setsockopt, sockopt,
};

use crate::address::Address;
use crate::limits;
use crate::socket::address_of;
use crate::sys;
use crate::wire::Family;

/// A connected TCP or Unix stream, non-blocking and close-on-exec.
///
/// Its readiness is edge-triggered (epoll(7)) and was registered for both directions when it was
/// accepted: after an event, read or write until [`io::ErrorKind::WouldBlock`], or return
/// [`Verdict::Again`](crate::Verdict::Again).
///
/// Dropping it closes the connection. A stream with unread bytes in the kernel is reset by that
/// (tcp(7)): read to the end, or shut down first.
#[derive(Debug)]
pub struct Stream {
    inner: Inner,
    registry: Option<Rc<Registry>>,
    /// Another process has the open file description, too, or had it.
    shared: bool,
    /// It has come from the predecessor, which keeps a copy until it has read the ACK; and whether that
    /// is sent, so that this process alone may end the connection.
    acknowledged: Option<Rc<Cell<bool>>>,
    /// This process has connected it to a loopback address, or it is a Unix stream.
    local: bool,
    /// It ends by a reset, and not by the end of the stream.
    resets: Cell<bool>,
    prudence: Prudence,
    /// It is not connected yet, because the listener's queue is full.
    queueing: Option<Box<Queueing>>,
}

/// A Unix listener whose queue is full says so at once, and there is nothing that tells when it has room
/// (EAGAIN, connect(2)). So it is asked now and then.
#[derive(Debug)]
struct Queueing {
    name: sys::Name,
    next: Instant,
}

/// What is put off for a connection that may live for one write only.
///
/// The acknowledgement that ends its handshake waits for that write and rides on it. With the write that
/// is over: an acknowledgement of what the peer answers must never wait, because a peer with Nagle's
/// algorithm holds the rest of its answer back until then, and would be 40 ms late. But the kernel takes
/// each write soon after the handshake for an answer, and begins to put acknowledgements off again: so it
/// is told anew with each of them, until the peer has said something.
///
/// Nagle's algorithm, which holds a small segment back while another one is not acknowledged (TCP_NODELAY,
/// tcp(7)), holds back nothing of one write, and to turn it off would be a call for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prudence {
    /// Nothing is put off.
    None,
    /// Nothing was written: acknowledgements wait, and Nagle's algorithm is on.
    Unwritten,
    /// It was written once: Nagle's algorithm is to be turned off before the next write.
    Written,
    /// It was written more than once, and nothing was read.
    Unanswered,
}

#[derive(Debug)]
pub(crate) enum Inner {
    Tcp(mio::net::TcpStream),
    Unix(mio::net::UnixStream),
}

impl Stream {
    /// A connection that this process has made.
    fn new(inner: Inner) -> Self {
        Self {
            inner,
            registry: None,
            shared: false,
            acknowledged: None,
            local: false,
            resets: Cell::new(false),
            prudence: Prudence::None,
            queueing: None,
        }
    }

    /// One of which it is not known who has it.
    fn from_elsewhere(inner: Inner) -> Self {
        let mut stream = Self::new(inner);
        stream.shared = true;
        stream
    }

    /// A TCP connection that the application has made or accepted itself, for a session to
    /// [attach](crate::Context::attach). It does not block from here on, which every duplicate of it shares.
    ///
    /// # Errors
    ///
    /// What the system answers when it is made non-blocking (fcntl(2)).
    pub fn from_tcp(stream: std::net::TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::from_elsewhere(Inner::Tcp(mio::net::TcpStream::from_std(stream))))
    }

    /// The same for a Unix stream.
    ///
    /// # Errors
    ///
    /// As those of [`Stream::from_tcp`].
    pub fn from_unix(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::from_elsewhere(Inner::Unix(mio::net::UnixStream::from_std(stream))))
    }

    /// Gives the socket away: to a thread, for one, or to another library. This loop hears nothing of it any
    /// more. It still does not block.
    ///
    /// # Errors
    ///
    /// No descriptor is left (EMFILE, dup(2)); the connection is closed then.
    pub fn into_fd(mut self) -> io::Result<OwnedFd> {
        self.deregister();
        self.as_fd().try_clone_to_owned()
    }

    /// Connects, without waiting for the answer (connect(2), EINPROGRESS).
    ///
    /// If the session `has_bytes` to send, the last segment of a TCP handshake waits for them and
    /// rides on them, which spares one segment of a short connection. If they do not come, the kernel
    /// sends it when an acknowledgement has been delayed for long enough (TCP_QUICKACK, tcp(7)).
    pub(crate) fn connect(address: &Address, has_bytes: bool) -> io::Result<Self> {
        let mut stream = connect(address, has_bytes)?;
        stream.local = match address {
            Address::Internet(internet) => internet.ip().to_canonical().is_loopback(),
            Address::Path(_) | Address::Abstract(_) | Address::Unnamed => true,
        };
        if has_bytes && stream.family() == Family::Tcp {
            stream.prudence = Prudence::Unwritten;
        }
        Ok(stream)
    }

    /// Writes by that call, which is a write(2) or does as much.
    pub(crate) fn write_by(
        &mut self,
        write: impl FnOnce(&mut Self) -> io::Result<usize>,
    ) -> io::Result<usize> {
        match self.prudence {
            Prudence::None => write(self),
            Prudence::Unwritten => {
                let written = write(self)?;
                self.prudence = Prudence::Written;
                self.acknowledge_at_once();
                Ok(written)
            }
            Prudence::Written | Prudence::Unanswered => {
                if self.prudence == Prudence::Written {
                    self.turn_nagle_off();
                    self.prudence = Prudence::Unanswered;
                }
                let written = write(self);
                self.acknowledge_at_once();
                written
            }
        }
    }

    /// The peer has said something.
    #[inline]
    fn note_read(&mut self, read: io::Result<usize>) -> io::Result<usize> {
        if self.prudence == Prudence::Unanswered && read.as_ref().is_ok_and(|read| *read > 0) {
            self.prudence = Prudence::None;
        }
        read
    }

    /// There was nothing to write after all: the handshake comes to its end now.
    pub(crate) fn expect_no_write(&mut self) {
        if self.prudence == Prudence::Unwritten {
            self.acknowledge_at_once();
            self.turn_nagle_off();
        }
    }

    fn acknowledge_at_once(&self) {
        // Fails for a socket that is gone anyway.
        let _ = sys::delay_acknowledgements(self.as_fd(), false);
    }

    #[cold]
    fn turn_nagle_off(&mut self) {
        self.prudence = Prudence::None;
        if let Inner::Tcp(stream) = &self.inner {
            // Fails for a socket that is gone anyway.
            let _ = stream.set_nodelay(true);
        }
    }

    /// A Unix listener whose queue is full lets nobody wait in the kernel: when the stream that was
    /// [connected](crate::Context::connect) to it is to ask again, by [`Stream::queue_up`]. `None` if it does not wait
    /// for that. What its events say meanwhile is nothing, and it cannot move.
    #[must_use]
    pub fn queues_until(&self) -> Option<Instant> {
        self.queueing.as_ref().map(|queueing| queueing.next)
    }

    /// Asks for a place in the queue again, if the time has come. Answers whether it has one: it can be written to
    /// then.
    ///
    /// # Errors
    ///
    /// What the system answers (connect(2)): nobody listens there any more.
    pub fn queue_up(&mut self, now: Instant) -> io::Result<bool> {
        let Some(queueing) = self.queueing.as_ref().filter(|queueing| queueing.next <= now) else {
            return Ok(self.queueing.is_none());
        };
        match sys::connect(self.as_fd(), &queueing.name) {
            Ok(()) => self.queueing = None,
            Err(Errno::EAGAIN | Errno::EINTR) => {
                if let Some(queueing) = &mut self.queueing {
                    queueing.next = now + limits::QUEUE_LOOK;
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(self.queueing.is_none())
    }

    /// Has the kernel look after a peer that has gone without a word, or cannot be reached: after so long
    /// without a byte it is asked whether it is there, four times, in as much time again, and what was sent
    /// is waited for no longer than both take together (SO_KEEPALIVE, TCP_KEEPIDLE, TCP_USER_TIMEOUT, tcp(7)).
    /// Whoever does not answer is gone by an error, [`TimedOut`](io::ErrorKind::TimedOut). In seconds, from
    /// 1 to 16,383; `None` looks after nobody, which is how a stream begins.
    ///
    /// It belongs to the connection, and moves with it. A Unix stream needs none.
    ///
    /// # Errors
    ///
    /// What the system answers (setsockopt(2)).
    pub fn keep_alive(&self, after: Option<Duration>) -> io::Result<()> {
        if self.family() == Family::Unix {
            return Ok(());
        }
        let seconds = after.map(|after| after.as_secs().clamp(1, 16_383) as u32);
        if let Some(seconds) = seconds {
            setsockopt(self, sockopt::TcpKeepIdle, &seconds)?;
            setsockopt(self, sockopt::TcpKeepInterval, &seconds.div_ceil(4))?;
            setsockopt(self, sockopt::TcpKeepCount, &4)?;
        }
        setsockopt(
            self,
            sockopt::TcpUserTimeout,
            &seconds.map_or(0, |seconds| 2 * 1000 * seconds),
        )?;
        Ok(setsockopt(self, sockopt::KeepAlive, &seconds.is_some())?)
    }

    /// Whether it was connected to a peer that is known to be on this machine, so that it is likely to
    /// be connected by the time connect(2) has returned.
    pub(crate) fn is_local(&self) -> bool {
        self.local
    }

    /// The error that the socket has, which is taken from it (SO_ERROR, socket(7)): how a connection
    /// came out.
    ///
    /// # Errors
    ///
    /// What the system answers when it is asked (getsockopt(2)); the socket's own error is not one.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        match &self.inner {
            Inner::Tcp(stream) => stream.take_error(),
            Inner::Unix(stream) => stream.take_error(),
        }
    }

    /// The next connection of a listener, and its peer's address (accept(2)).
    ///
    /// Not by mio: it takes what the kernel says for a name's length as what fits into `sockaddr_un`,
    /// and a client that is bound to a path of 108 bytes ends the process by that (unix(7), BUGS). And
    /// it has no abstract names.
    pub(crate) fn accept(listener: BorrowedFd<'_>, family: Family) -> io::Result<(Self, Address)> {
        let (fd, peer) = sys::accept(listener)?;
        Ok((Self::new(Inner::of(fd, family)), Address::from_name(peer.as_bytes())))
    }

    /// A connection of that family, from the descriptor that another process has sent.
    pub(crate) fn adopt(fd: OwnedFd, family: Family, acknowledged: &Rc<Cell<bool>>) -> Self {
        let mut stream = Self::from_elsewhere(Inner::of(fd, family));
        stream.acknowledged = Some(Rc::clone(acknowledged));
        stream
    }

    pub(crate) fn family(&self) -> Family {
        match &self.inner {
            Inner::Tcp(_) => Family::Tcp,
            Inner::Unix(_) => Family::Unix,
        }
    }

    /// Takes it out of the loop and leaves it open, for another process that gets it.
    pub(crate) fn deregister(&mut self) {
        self.shared = true;
        // It may be another process's to end from here on.
        self.acknowledged = None;
        // Nobody else knows what was put off.
        self.expect_no_write();
        if self.prudence != Prudence::None {
            self.turn_nagle_off();
        }
        if let Some(registry) = self.registry.take() {
            // It was registered and is open, so this does not fail; and nothing could be done.
            let _ = self.source().deregister(&registry);
        }
    }

    /// Registers for both directions and for urgent data, once and for the stream's whole life. A
    /// server does that itself; this is for a loop of one's own.
    ///
    /// # Errors
    ///
    /// What the system answers (epoll_ctl(2)).
    pub fn register(&mut self, registry: &Rc<Registry>, token: Token) -> io::Result<()> {
        let all = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        self.source().register(registry, token, all)?;
        self.registry = Some(Rc::clone(registry));
        Ok(())
    }

    /// Ends one direction, or both, of the connection; see shutdown(2).
    ///
    /// # Errors
    ///
    /// [`NotConnected`](io::ErrorKind::NotConnected), if the peer has reset the connection.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match &self.inner {
            Inner::Tcp(stream) => stream.shutdown(how),
            Inner::Unix(stream) => stream.shutdown(how),
        }
    }

    /// The address at this end.
    ///
    /// # Errors
    ///
    /// What the system answers (getsockname(2)).
    pub fn local_address(&self) -> io::Result<Address> {
        // Not by the standard library, for the same reason as with `accept`.
        address_of(self)
    }

    /// Has the connection reset when it is closed (SO_LINGER with no time, socket(7)): what was not
    /// sent yet is thrown away, and the peer is told so. A Unix stream knows no reset and is closed
    /// as ever.
    ///
    /// # Errors
    ///
    /// What the system answers (setsockopt(2)).
    pub fn reset_on_close(&self) -> io::Result<()> {
        match &self.inner {
            Inner::Tcp(stream) => {
                let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(stream, sockopt::Linger, &at_once)?;
                self.resets.set(true);
                Ok(())
            }
            Inner::Unix(_) => Ok(()),
        }
    }

    /// Whether the kernel has not sent yet all that was written (SIOCOUTQNSD, tcp(7)): it would be thrown away with
    /// a [reset](Stream::reset_on_close). What was written to a Unix stream is with the peer.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        self.family() == Family::Tcp && sys::unsent(self.as_fd()).is_ok_and(|bytes| bytes > 0)
    }

    /// Reads and leaves the bytes where they are (MSG_PEEK, recv(2)).
    pub(crate) fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_PEEK)?)
    }

    /// Takes bytes that were looked at. A TCP stream throws them away without copying them (MSG_TRUNC,
    /// tcp(7)). Answers how many it took.
    pub(crate) fn discard(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.inner {
            Inner::Tcp(stream) => Ok(recv(stream.as_raw_fd(), bytes, MsgFlags::MSG_TRUNC)?),
            Inner::Unix(_) => self.read(bytes),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match &mut self.inner {
            Inner::Tcp(stream) => stream,
            Inner::Unix(stream) => stream,
        }
    }
}

impl Inner {
    /// The descriptor is non-blocking.
    fn of(fd: OwnedFd, family: Family) -> Self {
        match family {
            Family::Tcp => Self::Tcp(mio::net::TcpStream::from_std(fd.into())),
            Family::Unix => Self::Unix(mio::net::UnixStream::from_std(fd.into())),
        }
    }
}

/// As mio does, with the options set before there is a connection. (And mio cuts off an abstract name
/// that begins with a NUL.)
fn connect(address: &Address, has_bytes: bool) -> io::Result<Stream> {
    let name = address.to_name().and_then(|name| sys::Name::new(&name));
    let name = name.ok_or(io::ErrorKind::InvalidInput)?;
    let (domain, family) = match address {
        Address::Internet(net::SocketAddr::V4(_)) => (AddressFamily::Inet, Family::Tcp),
        Address::Internet(net::SocketAddr::V6(_)) => (AddressFamily::Inet6, Family::Tcp),
        Address::Path(_) | Address::Abstract(_) | Address::Unnamed => {
            (AddressFamily::Unix, Family::Unix)
        }
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(domain, SockType::Stream, flags, None)?;
    match family {
        // Only a saving, which some filter may not grant.
        Family::Tcp if has_bytes => drop(sys::delay_acknowledgements(socket.as_fd(), true)),
        Family::Tcp => setsockopt(&socket, sockopt::TcpNoDelay, &true)?,
        Family::Unix => {}
    }
    let queueing = match (sys::connect(socket.as_fd(), &name), family) {
        (Ok(()) | Err(Errno::EINPROGRESS), Family::Tcp) => {
            if is_connected_to_itself(&socket, address) {
                return Err(Errno::ECONNREFUSED.into());
            }
            None
        }
        (Ok(()), Family::Unix) => None,
        (Err(Errno::EAGAIN), Family::Unix) => {
            Some(Box::new(Queueing { name, next: Instant::now() + limits::QUEUE_LOOK }))
        }
        (Err(error), _) => return Err(error.into()),
    };
    let mut stream = Stream::new(Inner::of(socket, family));
    stream.queueing = queueing;
    Ok(stream)
}

/// Where nobody listens on a port that the kernel may give to whoever connects
/// (`net.ipv4.ip_local_port_range`, ip(7)), it may give that very port: the socket is its own peer then.
fn is_connected_to_itself(socket: &OwnedFd, address: &Address) -> bool {
    /// Below it no port is given by the kernel.
    const LEAST_EPHEMERAL: u16 = 1024;
    address.port().is_some_and(|port| port >= LEAST_EPHEMERAL)
        && address_of(socket).is_ok_and(|own| own.satisfies(address))
}

/// A connected stream of a loop of one's own; it is not registered yet.
impl From<mio::net::TcpStream> for Stream {
    fn from(stream: mio::net::TcpStream) -> Self {
        Self::from_elsewhere(Inner::Tcp(stream))
    }
}

/// A connected stream of a loop of one's own; it is not registered yet.
impl From<mio::net::UnixStream> for Stream {
    fn from(stream: mio::net::UnixStream) -> Self {
        Self::from_elsewhere(Inner::Unix(stream))
    }
}

/// An epoll registration lives as long as the open file description (epoll(7)). What another process
/// may have is deregistered and then closed; of what is this process's alone the close is the end of
/// both, and spares a call. (A process that is being spawned has everything until its exec. An event
/// meanwhile is one for a session that has ended, and is ignored like all of those; who goes on with
/// another stream under the same token deregisters the first one himself.)
impl Drop for Stream {
    fn drop(&mut self) {
        if self.acknowledged.as_ref().is_some_and(|sent| sent.get()) && !self.resets.get() {
            // The peer is to hear of the end now, and not when the predecessor has closed its copy. Fails
            // for a connection that is over. (A reset comes when the last copy is closed.)
            let _ = self.shutdown(Shutdown::Both);
        }
        if self.shared {
            self.deregister();
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.inner {
            Inner::Tcp(stream) => stream.read(buffer),
            Inner::Unix(stream) => stream.read(buffer),
        };
        self.note_read(read)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let read = match &mut self.inner {
            Inner::Tcp(stream) => stream.read_vectored(buffers),
            Inner::Unix(stream) => stream.read_vectored(buffers),
        };
        self.note_read(read)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_by(|stream| match &mut stream.inner {
            Inner::Tcp(stream) => stream.write(bytes),
            Inner::Unix(stream) => stream.write(bytes),
        })
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write_by(|stream| match &mut stream.inner {
            Inner::Tcp(stream) => stream.write_vectored(buffers),
            Inner::Unix(stream) => stream.write_vectored(buffers),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.inner {
            Inner::Tcp(stream) => stream.as_fd(),
            Inner::Unix(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who is to be seen at the other end as soon as connect(2) has returned: on loopback everything
    /// has happened by then.
    #[test]
    fn only_a_stream_with_bytes_to_send_waits_with_the_end_of_its_handshake() {
        let listener = net::TcpListener::bind("127.0.0.1:0").expect("listens");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("an address").into();
        let _stream = Stream::connect(&address, false).expect("connects");
        listener.accept().expect("it is there");
        // A test that stands still for 0.2 s comes too late.
        for attempt in 0.. {
            let mut stream = Stream::connect(&address, true).expect("connects");
            let early = listener.accept().map(drop).map_err(|error| error.kind());
            assert!(attempt < 20, "never waits: {early:?}");
            if early == Err(io::ErrorKind::WouldBlock) {
                stream.write_all(b"x").expect("sent");
                let (mut other, _) = listener.accept().expect("it came with the byte");
                assert_eq!(other.read(&mut [0; 2]).expect("read"), 1);
                return;
            }
        }
    }

    /// A server with Nagle's algorithm that answers in two writes has the second one wait for the
    /// acknowledgement of the first one.
    #[test]
    fn an_answer_is_acknowledged_at_once_although_the_end_of_the_handshake_was_put_off() {
        let listener = net::TcpListener::bind("127.0.0.1:0").expect("listens");
        let address = listener.local_addr().expect("an address").into();
        let mut stream = Stream::connect(&address, true).expect("connects");
        for write in 1..=5 {
            stream.write_all(b"x").expect("sent");
            assert!(sys::acknowledges_at_once(stream.as_fd()), "after write {write}");
        }
        let (mut peer, _) = listener.accept().expect("accepted");
        peer.write_all(b"y").expect("sent");
        let mut heard = [0];
        while stream.read(&mut heard).is_err() {}
        assert_eq!((stream.prudence, heard), (Prudence::None, *b"y"));
    }

    #[test]
    fn a_handshake_ends_when_there_is_nothing_to_write_after_all_or_the_stream_moves() {
        let listener = net::TcpListener::bind("127.0.0.1:0").expect("listens");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("an address").into();
        for end in [Stream::expect_no_write, Stream::deregister] {
            let mut stream = Stream::connect(&address, true).expect("connects");
            end(&mut stream);
            listener.accept().expect("it is there");
        }
    }

    #[test]
    fn a_socket_that_is_its_own_peer_is_told_from_others() {
        let name = |socket: &OwnedFd| address_of(socket).expect("a name");
        let new = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None);
            let socket = socket.expect("a socket");
            let any = Address::from(net::SocketAddr::from(([127, 0, 0, 1], 0))).to_name();
            let any = any.and_then(|any| sys::Name::new(&any)).expect("a name");
            sys::bind(socket.as_fd(), &any).expect("bound");
            socket
        };
        let alone = new();
        let own = name(&alone).to_name().and_then(|own| sys::Name::new(&own)).expect("a name");
        sys::connect(alone.as_fd(), &own).expect("connected to itself");
        assert!(is_connected_to_itself(&alone, &name(&alone)));
        let other = new();
        assert!(!is_connected_to_itself(&other, &name(&alone)));
    }

    #[test]
    fn a_unix_listener_whose_queue_is_full_is_asked_again() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = place.path().join("full");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("listens");
        socket::listen(&listener, socket::Backlog::new(0).expect("a length")).expect("listens");
        let address = Address::Path(path);
        let first = Stream::connect(&address, false).expect("connects");
        assert_eq!(first.queues_until(), None);
        let mut second = Stream::connect(&address, true).expect("waits");
        let next = second.queues_until().expect("a time");
        assert!(!second.queue_up(next).expect("full"));
        let later = second.queues_until().expect("a time");
        assert!(later > next);
        listener.accept().expect("the first one");
        assert!(!second.queue_up(next).expect("not yet"), "it is not asked before the time");
        assert!(second.queue_up(later).expect("connects"));
        second.write_all(b"x").expect("sent");
        let (mut other, _) = listener.accept().expect("the second one");
        assert_eq!(other.read(&mut [0; 2]).expect("read"), 1);
        drop(listener);
        let gone = Stream::connect(&address, false).expect_err("nobody listens");
        assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_stream_is_looked_after_for_as_long_as_is_said() {
        let listener = net::TcpListener::bind("127.0.0.1:0").expect("listens");
        let address = listener.local_addr().expect("an address").into();
        let stream = Stream::connect(&address, false).expect("connects");
        let of = |stream: &Stream| {
            let get = |option| socket::getsockopt(stream, option).expect("an option");
            let idle = socket::getsockopt(stream, sockopt::TcpKeepIdle).expect("an option");
            let most = socket::getsockopt(stream, sockopt::TcpUserTimeout).expect("an option");
            (get(sockopt::KeepAlive), idle, most)
        };
        assert!(!of(&stream).0);
        stream.keep_alive(Some(Duration::from_secs(60))).expect("set");
        assert_eq!(of(&stream), (true, 60, 120_000));
        stream.keep_alive(Some(Duration::ZERO)).expect("set");
        assert_eq!(of(&stream), (true, 1, 2000));
        stream.keep_alive(Some(Duration::MAX)).expect("set");
        stream.keep_alive(None).expect("set");
        assert_eq!((of(&stream).0, of(&stream).2), (false, 0));
    }

    #[test]
    fn nagle_is_off_before_the_second_write_and_when_it_moves() {
        let listener = net::TcpListener::bind("127.0.0.1:0").expect("listens");
        let address = listener.local_addr().expect("an address").into();
        let is_off =
            |stream: &Stream| socket::getsockopt(stream, sockopt::TcpNoDelay).expect("an option");
        assert!(is_off(&Stream::connect(&address, false).expect("connects")));

        let mut stream = Stream::connect(&address, true).expect("connects");
        assert!(!is_off(&stream));
        stream.write_all(b"x").expect("sent");
        assert!(!is_off(&stream));
        stream.write_all(b"y").expect("sent");
        assert!(is_off(&stream));

        for writes in 0..2 {
            let mut stream = Stream::connect(&address, true).expect("connects");
            (0..writes).for_each(|_| stream.write_all(b"x").expect("sent"));
            stream.deregister();
            assert!(is_off(&stream));
        }
    }
}
