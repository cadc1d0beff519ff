//! One named socket: how it is made, and what it really is.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, sockopt};

use crate::address::Address;
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
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            reuse_address: true,
            reuse_port: false,
            only_v6: None,
            no_delay: true,
            backlog: BACKLOG,
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
}

/// What failed: the system call, and its answer.
pub(crate) type Failed = (&'static str, io::Error);

/// Makes a socket of a kind at an address: close-on-exec, non-blocking, listening where the kind
/// listens.
///
/// The path of a Unix socket that nobody listens on any more, left by a process that was killed, is
/// taken over.
pub(crate) fn make(
    kind: Kind,
    address: &Address,
    options: &SocketOptions,
) -> Result<OwnedFd, Failed> {
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
    sys::bind(fd.as_fd(), &name).map_err(failed("bind"))?;
    if listens(kind) {
        listen(&fd, options)?;
    }
    Ok(fd)
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
    let backlog = Backlog::new(i32::from(options.backlog)).map_err(failed("listen"))?;
    socket::listen(fd, backlog).map_err(failed("listen"))
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

/// A socket in the file system that refuses connections has nobody behind it (connect(2)).
fn is_stale(path: &Path, kind: Kind) -> bool {
    let socket_type = match kind {
        Kind::UnixStream => SockType::Stream,
        Kind::UnixSeqpacket => SockType::SeqPacket,
        Kind::UnixDatagram => SockType::Datagram,
        Kind::Tcp | Kind::Udp | Kind::File => return false,
    };
    if !path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket()) {
        return false;
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket::socket(AddressFamily::Unix, socket_type, flags, None);
    let name = Address::Path(path.into()).to_name().and_then(|name| Name::new(&name));
    match (probe, name) {
        (Ok(probe), Some(name)) => {
            sys::connect(probe.as_fd(), &name) == Err(Errno::ECONNREFUSED)
        }
        (Err(_), _) | (_, None) => false,
    }
}

fn failed(step: &'static str) -> impl Fn(Errno) -> Failed + Copy {
    move |errno| (step, errno.into())
}
