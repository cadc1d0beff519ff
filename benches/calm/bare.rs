//! What ours is measured against: an echo server on mio, and nothing else. It cannot be replaced,
//! handles no signal, knows no timer and no bound.
//!
//! It treats a session as `examples/demo.rs` does: edge-triggered, both directions registered once,
//! a read that did not fill the buffer is the last one.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};
use slab::Slab;

/// As the demo has them.
const BUFFER_BYTES: usize = 64 * 1024;
const EVENTS: usize = 1024;
const BACKLOG: i32 = 4096;

const LISTENER: Token = Token(usize::MAX);

struct Session {
    stream: TcpStream,
    /// Read and not yet sent back, because the client does not read.
    unsent: Vec<u8>,
    ended: bool,
}

/// Serves on any port of 127.0.0.1, until it is killed.
pub(crate) fn serve() -> io::Result<()> {
    let mut listener = listen_on_any_port()?;
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(EVENTS);
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut sessions: Slab<Session> = Slab::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut readable = false;
        for event in &events {
            if event.token() == LISTENER {
                readable = true;
                continue;
            }
            let Some(session) = sessions.get_mut(event.token().0) else { continue };
            match session.echo(&mut buffer, event.is_read_closed()) {
                Ok(true) => {}
                Ok(false) | Err(_) => drop(sessions.remove(event.token().0)),
            }
        }
        if !readable {
            continue;
        }
        // After the sessions, so that no event meets a stranger in its slot.
        loop {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let vacancy = sessions.vacant_entry();
            let both = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(vacancy.key()), both)?;
            vacancy.insert(Session { stream, unsent: Vec::new(), ended: false });
        }
    }
}

/// TCP_NODELAY is inherited by what is accepted (tcp(7)).
fn listen_on_any_port() -> io::Result<TcpListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)))?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from_std(fd.into()))
}

impl Session {
    /// Answers whether the session goes on.
    fn echo(&mut self, buffer: &mut [u8], read_closed: bool) -> io::Result<bool> {
        loop {
            if !self.flush()? {
                return Ok(true);
            }
            if self.ended {
                return Ok(false);
            }
            let read = match self.stream.read(buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if read == 0 {
                self.ended = true;
                continue;
            }
            let message = &buffer[..read];
            let sent = send(&mut self.stream, message)?;
            self.unsent.extend_from_slice(&message[sent..]);
            let emptied = read < buffer.len() && !read_closed;
            if emptied && self.unsent.is_empty() {
                return Ok(true);
            }
        }
    }

    /// Answers whether nothing is left over.
    fn flush(&mut self) -> io::Result<bool> {
        if !self.unsent.is_empty() {
            let sent = send(&mut self.stream, &self.unsent)?;
            self.unsent.drain(..sent);
        }
        Ok(self.unsent.is_empty())
    }
}

/// Sends as much as the client takes.
pub(crate) fn send(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}
