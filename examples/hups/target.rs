//! Where the load goes: an internet address or a Unix socket, and how to connect to it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream as StdTcpStream, ToSocketAddrs};
use std::path::PathBuf;

use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// A client that closes first keeps the port for a minute (TIME_WAIT). One source address has
/// about 28,000 ports; this many have enough for 20,000 connections a second.
const SOURCES: u32 = 64;

#[derive(Clone)]
pub(crate) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Target {
    pub(crate) fn parse(text: &str) -> Result<Target, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Target::Unix(PathBuf::from(path)));
        }
        let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
        addresses.next().map(Target::Tcp).ok_or_else(|| "the name has no address".to_string())
    }

    pub(crate) fn is_local(&self) -> bool {
        match self {
            Target::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Target::Unix(_) => true,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Tcp(address) => write!(formatter, "{address}"),
            Target::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

pub(crate) struct Connector {
    target: Target,
    source: u32,
}

impl Connector {
    pub(crate) fn new(target: Target) -> Connector {
        Connector { target, source: 0 }
    }

    /// Begins a connection. It is made when [`Stream::is_connected`] says so.
    /// `WouldBlock` is a Unix socket's way to say that its backlog is full.
    pub(crate) fn connect(&mut self) -> io::Result<Stream> {
        match &self.target {
            Target::Tcp(SocketAddr::V4(address)) if address.ip().is_loopback() => {
                let address = *address;
                self.connect_from_next_source(address).map(Stream::Tcp)
            }
            Target::Tcp(address) => TcpStream::connect(*address).map(Stream::Tcp),
            Target::Unix(path) => match UnixStream::connect(path) {
                // The socket file is not there: nobody listens.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(io::ErrorKind::ConnectionRefused.into())
                }
                other => other.map(Stream::Unix),
            },
        }
    }

    /// Takes the source addresses 127.0.0.2 and on in turn. None of them is the target's own,
    /// which also keeps a connection to a closed port from being made with itself.
    fn connect_from_next_source(&mut self, target: SocketAddrV4) -> io::Result<TcpStream> {
        let source = loop {
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + 1 + self.source);
            self.source = (self.source + 1) % SOURCES;
            if address != *target.ip() {
                break SocketAddrV4::new(address, 0);
            }
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        // The port is chosen at connect: then only the pair of addresses has to be unique.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        rustix::net::bind(&socket, &source)?;
        match rustix::net::connect(&socket, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(TcpStream::from_std(StdTcpStream::from(socket)))
    }
}

pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Whether the connection is made; an error if it was refused or failed.
    pub(crate) fn is_connected(&self) -> io::Result<bool> {
        let (failure, peer) = match self {
            Stream::Tcp(stream) => {
                let peer = stream.peer_addr();
                if peer.is_ok() && peer.as_ref().ok() == stream.local_addr().as_ref().ok() {
                    // Connected with itself: the port was free, and so nobody listens there.
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                (stream.take_error()?, peer.map(|_| ()))
            }
            Stream::Unix(stream) => (stream.take_error()?, stream.peer_addr().map(|_| ())),
        };
        if let Some(error) = failure {
            return Err(error);
        }
        match peer {
            Ok(()) => {
                if let Stream::Tcp(stream) = self {
                    stream.set_nodelay(true)?;
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self {
            Stream::Tcp(stream) => registry.register(stream, token, interest),
            Stream::Unix(stream) => registry.register(stream, token, interest),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(buffer),
            Stream::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
