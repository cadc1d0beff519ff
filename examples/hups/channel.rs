//! A connection to the server, with TLS or without.

use std::io::{self, Read, Write};

use mio::{Registry, Token};

use crate::connection::Transport;
use crate::target::{self, Target};
use crate::tls;

/// Makes connections of the kind that is asked for.
pub(crate) struct Connector {
    sockets: target::Connector,
    tls: Option<tls::Client>,
}

impl Connector {
    pub(crate) fn new(target: Target, tls: Option<tls::Client>) -> Connector {
        Connector { sockets: target::Connector::new(target), tls }
    }

    /// Begins a connection. It is made when [`Channel::is_connected`] says so.
    /// `WouldBlock` is a Unix socket's way to say that its backlog is full.
    pub(crate) fn connect(&mut self) -> io::Result<Channel> {
        let tls = self.tls.as_ref().map(|client| client.session().map(Box::new)).transpose()?;
        Ok(Channel { socket: self.sockets.connect()?, tls })
    }
}

pub(crate) struct Channel {
    socket: target::Stream,
    tls: Option<Box<tls::Session>>,
}

impl Channel {
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.socket.register(registry, token)
    }
}

impl Transport for Channel {
    /// Whether the connection is made, its TLS included.
    fn is_connected(&mut self) -> io::Result<bool> {
        Ok(self.socket.is_connected()?
            && match &mut self.tls {
                Some(tls) => tls.shake_hands(&mut self.socket)?,
                None => true,
            })
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => tls.read(&mut self.socket, buffer),
            None => self.socket.read(buffer),
        }
    }
}

impl Write for Channel {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => tls.write(&mut self.socket, buffer),
            None => self.socket.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.end(&mut self.socket);
        }
    }
}
