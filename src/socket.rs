//! One named socket: how it is made, and what it really is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, sockopt};
use nix::sys::stat::{Mode, fchmod};

use crate::address::Address;
use crate::program;
use crate::socket_file::{self, Access, Bound, PERMISSIONS, is_stale};
use crate::sys::{self, Name};
use crate::wire::Kind;

/// How a socket is made, where it is not inherited. An inherited one keeps the options that it was
/// made with: they belong to the socket, which both processes share.
///
/// ```
/// use tablecloth::SocketOptions;
///
/// let options = SocketOptions::default().reuse_port(true).backlog(512);
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
pub struct SocketOptions {
    reuse_address: bool,
    reuse_port: bool,
    only_v6: Option<bool>,
    no_delay: bool,
    backlog: u16,
    access: Access,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            reuse_address: true,
            reuse_port: false,
            only_v6: None,
            no_delay: true,
            backlog: BACKLOG,
            access: Access::default(),
        }
    }
}

/// The longest accept queue that can be asked for. The kernel takes the smaller of it and
/// `net.core.somaxconn` (listen(2)), which has been 4096 since Linux 5.4.
const BACKLOG: u16 = 4096;

impl SocketOptions {
    /// SO_REUSEADDR (socket(7)) for TCP. On by default, so that a server can be started again
    /// while connections of the one before linger in TIME_WAIT.
    #[must_use]
    pub fn reuse_address(self, on: bool) -> Self {
        Self { reuse_address: on, ..self }
    }

    /// SO_REUSEPORT (socket(7)) for TCP and UDP. Off by default. Sockets that share a port have a
    /// queue each, and what waits in the queue of one that is closed is lost.
    #[must_use]
    pub fn reuse_port(self, on: bool) -> Self {
        Self { reuse_port: on, ..self }
    }

    /// IPV6_V6ONLY (ipv6(7)). By default as the system has it (`net.ipv6.bindv6only`).
    #[must_use]
    pub fn only_v6(self, on: bool) -> Self {
        Self { only_v6: Some(on), ..self }
    }

    /// TCP_NODELAY (tcp(7)) for the listener, and by inheritance for what it accepts. On by
    /// default.
    #[must_use]
    pub fn no_delay(self, on: bool) -> Self {
        Self { no_delay: on, ..self }
    }

    /// The length of the accept queue: at most 4096, and at most `net.core.somaxconn` (listen(2)),
    /// which is also the default. While an upgrade hands over, clients wait in it.
    #[must_use]
    pub fn backlog(self, connections: u16) -> Self {
        Self { backlog: connections.min(BACKLOG), ..self }
    }

    /// The mode of a Unix socket's file, of which only the bits of 0o777 count: whoever may write may
    /// connect (unix(7)). By default it is what the umask leaves of 0o777. It is set before anybody can
    /// connect. An inherited socket's file gets it when this process takes over, and is left as it is
    /// with a warning where the system refuses that.
    ///
    /// An address without a file has no mode.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.access.mode = Some(mode & PERMISSIONS);
        self
    }

    /// The user and the group to whom a Unix socket's file belongs; `None` leaves them as they are.
    /// Otherwise as [`SocketOptions::mode`]. It takes the right to give files away (chown(2)).
    #[must_use]
    pub fn owner(mut self, uid: Option<u32>, gid: Option<u32>) -> Self {
        (self.access.uid, self.access.gid) = (uid, gid);
        self
    }

    pub(crate) fn access(&self) -> Access {
        self.access
    }
}

/// What failed: the system call, and its answer.
pub(crate) type Failed = (&'static str, io::Error);

/// Makes a socket of a kind at an address: close-on-exec, non-blocking, listening where the kind
/// listens.
///
/// The path of a Unix socket that nobody listens on any more, left by a process that was killed, is
/// taken over. Of several processes that do so at once, one has it in the end.
pub(crate) fn make(
    kind: Kind,
    address: &Address,
    options: &SocketOptions,
) -> Result<OwnedFd, Failed> {
    // A socket that is bound and does not listen yet looks as one that is left over.
    let _lock = address.path().and_then(socket_file::lock_directory_of);
    match bind(kind, address, options) {
        Err(("bind", error)) if error.kind() == io::ErrorKind::AddrInUse => {
            match address.path().filter(|path| is_stale(path, kind)) {
                Some(path) => {
                    std::fs::remove_file(path).map_err(|error| ("unlink", error))?;
                    bind(kind, address, options)
                }
                None => Err(("bind", error)),
            }
        }
        result => result,
    }
}

/// Makes a listener of all addresses, although other processes listen on some of them by the sockets
/// `parts`, of which this process has descriptors.
///
/// Sockets may overlap if all of them say so (SO_REUSEPORT, socket(7)), and what each of them says is
/// looked at when one is bound or begins to listen, and then never again. So they say so for that long.
/// Who connects is given to the socket that says his address most exactly.
pub(crate) fn make_beside(
    parts: &[BorrowedFd<'_>],
    address: &Address,
    options: &SocketOptions,
) -> Result<OwnedFd, Failed> {
    let set = failed("setsockopt");
    let alone: Vec<_> = parts
        .iter()
        .filter(|part| socket::getsockopt(part, sockopt::ReusePort) == Ok(false))
        .collect();
    let share = |on: bool| {
        alone.iter().try_for_each(|part| socket::setsockopt(part, sockopt::ReusePort, &on))
    };
    let made = share(true)
        .map_err(set)
        .and_then(|()| make(Kind::Tcp, address, &options.clone().reuse_port(true)));
    // What was possible is possible again.
    share(false).map_err(set)?;
    let made = made?;
    socket::setsockopt(&made, sockopt::ReusePort, &options.reuse_port).map_err(set)?;
    Ok(made)
}

fn bind(kind: Kind, address: &Address, options: &SocketOptions) -> Result<OwnedFd, Failed> {
    let name = address.to_name().and_then(|name| Name::new(&name));
    let name = name.ok_or(("bind", Errno::EINVAL.into()))?;
    let (family, socket_type) = match (kind, address) {
        (Kind::Tcp, Address::Internet(std::net::SocketAddr::V4(_))) => {
            (AddressFamily::Inet, SockType::Stream)
        }
        (Kind::Tcp, Address::Internet(_)) => (AddressFamily::Inet6, SockType::Stream),
        (Kind::Udp, Address::Internet(std::net::SocketAddr::V4(_))) => {
            (AddressFamily::Inet, SockType::Datagram)
        }
        (Kind::Udp, Address::Internet(_)) => (AddressFamily::Inet6, SockType::Datagram),
        (Kind::UnixStream, Address::Path(_) | Address::Abstract(_)) => {
            (AddressFamily::Unix, SockType::Stream)
        }
        (Kind::UnixSeqpacket, Address::Path(_) | Address::Abstract(_)) => {
            (AddressFamily::Unix, SockType::SeqPacket)
        }
        (Kind::UnixDatagram, Address::Path(_) | Address::Abstract(_)) => {
            (AddressFamily::Unix, SockType::Datagram)
        }
        (
            Kind::Tcp
            | Kind::Udp
            | Kind::UnixStream
            | Kind::UnixSeqpacket
            | Kind::UnixDatagram
            | Kind::File,
            _,
        ) => return Err(("socket", Errno::EAFNOSUPPORT.into())),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(family, socket_type, flags, None).map_err(failed("socket"))?;
    let set = failed("setsockopt");
    if kind == Kind::Tcp {
        socket::setsockopt(&fd, sockopt::ReuseAddr, &options.reuse_address).map_err(set)?;
        socket::setsockopt(&fd, sockopt::TcpNoDelay, &options.no_delay).map_err(set)?;
    }
    if let (Kind::Tcp | Kind::Udp, true) = (kind, options.reuse_port) {
        socket::setsockopt(&fd, sockopt::ReusePort, &true).map_err(set)?;
    }
    if let (AddressFamily::Inet6, Some(only)) = (family, options.only_v6) {
        socket::setsockopt(&fd, sockopt::Ipv6V6Only, &only).map_err(set)?;
    }
    let Some(path) = address.path() else {
        sys::bind(fd.as_fd(), &name).map_err(failed("bind"))?;
        if listens(kind) {
            listen(&fd, options)?;
        }
        if kind == Kind::Tcp && options.reuse_port && program::may_leave() {
            // A worker that has left may have turned everybody to those before it. Where none can, the program that
            // is attached there is somebody else's.
            sys::steer_to_all(fd.as_fd());
        }
        return Ok(fd);
    };
    if let Some(mode) = options.access.mode {
        // The file gets what the umask leaves of it, and never more, which counts for a socket that
        // does not have to listen. Only a help: what is not set here is set below.
        let _ = fchmod(&fd, Mode::from_bits_truncate(mode));
    }
    sys::bind(fd.as_fd(), &name).map_err(failed("bind"))?;
    let bound = Bound::at(path);
    let opened = options.access.apply(path);
    // From here on others can connect.
    let opened = opened.and_then(|()| if listens(kind) { listen(&fd, options) } else { Ok(()) });
    if opened.is_err() {
        bound.iter().for_each(Bound::unlink);
    }
    opened.map(|()| fd)
}

/// Makes what a caller made as good as what is made here. It is not shared with anybody yet.
pub(crate) fn complete(fd: &OwnedFd, options: &SocketOptions) -> Result<(), Failed> {
    let set = failed("fcntl");
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).map_err(set)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(set)?;
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(set)?;
    match socket::getsockopt(fd, sockopt::AcceptConn) {
        Ok(true) => Ok(()),
        Ok(false) => listen(fd, options),
        Err(errno) => Err(failed("getsockopt")(errno)),
    }
}

fn listen(fd: &OwnedFd, options: &SocketOptions) -> Result<(), Failed> {
    sys::listen(fd.as_fd(), options.backlog).map_err(failed("listen"))
}

/// What a descriptor is, as far as it matters to whoever takes it over.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) kind: Kind,
    pub(crate) address: Address,
    pub(crate) listening: bool,
    pub(crate) nonblocking: bool,
}

impl Found {
    /// Looks at a descriptor. Anything that is no socket of a kind we know is a file.
    pub(crate) fn at(fd: impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd();
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        let nonblocking = flags.contains(OFlag::O_NONBLOCK);
        let socket_type = match socket::getsockopt(&fd, sockopt::SockType) {
            Ok(socket_type) => socket_type,
            Err(Errno::ENOTSOCK) => {
                let address = Address::Unnamed;
                return Ok(Self { kind: Kind::File, address, listening: false, nonblocking });
            }
            Err(errno) => return Err(errno.into()),
        };
        let listening = socket::getsockopt(&fd, sockopt::AcceptConn)?;
        let address = address_of(fd)?;
        // A socket without a name serves nobody, whatever its family is.
        let internet = matches!(address, Address::Internet(_));
        let unix = matches!(address, Address::Path(_) | Address::Abstract(_));
        let kind = match socket_type {
            SockType::Stream if internet => Kind::Tcp,
            SockType::Datagram if internet => Kind::Udp,
            SockType::Stream if unix => Kind::UnixStream,
            SockType::SeqPacket if unix => Kind::UnixSeqpacket,
            SockType::Datagram if unix => Kind::UnixDatagram,
            SockType::Stream
            | SockType::Datagram
            | SockType::SeqPacket
            | SockType::Raw
            | SockType::Rdm => Kind::File,
            other => {
                return Err(io::Error::other(format!("socket type {other:?} is not known")));
            }
        };
        Ok(Self { kind, address, listening, nonblocking })
    }

    /// Whether it can serve as `kind`: of that domain and type, listening where it must, and
    /// non-blocking. The flag is on the socket, which another process shares: it is verified and
    /// never changed.
    pub(crate) fn serves_as(&self, kind: Kind) -> bool {
        kind == Kind::File
            || self.kind == kind && self.listening == listens(kind) && self.nonblocking
    }

    /// In words, for an error.
    pub(crate) fn describe(&self) -> String {
        if self.kind == Kind::File {
            return "something that is no such socket".into();
        }
        let listening =
            if listens(self.kind) && !self.listening { " that does not listen" } else { "" };
        let blocking = if self.nonblocking { "" } else { " in blocking mode" };
        format!("a {} on {}{listening}{blocking}", self.kind, self.address)
    }
}

/// Whether sockets of this kind listen for connections.
pub(crate) fn listens(kind: Kind) -> bool {
    match kind {
        Kind::Tcp | Kind::UnixStream | Kind::UnixSeqpacket => true,
        Kind::Udp | Kind::UnixDatagram | Kind::File => false,
    }
}

/// The address that a socket has itself.
pub(crate) fn address_of(socket: impl AsFd) -> io::Result<Address> {
    Ok(Address::from_name(sys::name_of(socket.as_fd())?.as_bytes()))
}

/// Whether a socket of IPv6 is one of IPv4 as well (IPV6_V6ONLY, ipv6(7)).
pub(crate) fn has_both_families(socket: impl AsFd) -> bool {
    socket::getsockopt(&socket, sockopt::Ipv6V6Only) == Ok(false)
}

fn failed(step: &'static str) -> impl Fn(Errno) -> Failed + Copy {
    move |errno| (step, errno.into())
}
