//! What passes by name: sockets, connections and files, asked for in the set-up.

use std::io;
use std::net;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix;

use super::Upgrader;
use super::estate::{Estate, Make, Wanted};
use crate::address::Address;
use crate::error::Error;
use crate::socket::{self, SocketOptions};
use crate::wire::Kind;

impl Upgrader {
    /// Binds or inherits a TCP listener: `HOST:PORT` or `[V6]:PORT`. It does not block, and is yours to
    /// accept from while the process is [serving](crate::Phase::Serving).
    ///
    /// A successor gets the socket that its predecessor asked for by the same text, and no host is
    /// looked up for that; or one at the same address, however that is spelled and whatever its name
    /// was. Otherwise it is bound anew. Port 0 is any port, and under one name the same one in every
    /// successor. Of the addresses of a host name the first of IPv4 is bound, or the first.
    ///
    /// What a successor does not ask for is closed with the predecessor, and not before: the predecessor
    /// keeps the socket in case it has to come back. Until it is gone, clients that connect there wait in
    /// the queue; when it goes, their connections are reset.
    ///
    /// # Errors
    ///
    /// After [`Upgrader::ready`], or with a name that is used already, it is [`Error::Name`]. An address
    /// that is none, or that cannot be bound, is named by the error, and so is an inherited socket that is
    /// something else.
    pub fn tcp(&mut self, name: &str, address: &str) -> Result<net::TcpListener, Error> {
        self.tcp_with(name, address, &SocketOptions::default())
    }

    /// The same on a socket that is made with these options, if none is inherited.
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::tcp`].
    pub fn tcp_with(
        &mut self,
        name: &str,
        address: &str,
        options: &SocketOptions,
    ) -> Result<net::TcpListener, Error> {
        let fd = self.listener(name, Kind::Tcp, address, Make::Socket(options))?;
        Ok(fd.into())
    }

    /// The same on a socket that the caller makes, if none is inherited. It must be a stream socket bound
    /// to that address. It is made non-blocking and close-on-exec, and made to listen if it does not.
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::tcp`], and what `make` answers.
    pub fn tcp_on(
        &mut self,
        name: &str,
        address: &str,
        make: impl FnOnce(&Address) -> io::Result<OwnedFd>,
    ) -> Result<net::TcpListener, Error> {
        let fd = self.listener(name, Kind::Tcp, address, by_caller(make))?;
        Ok(fd.into())
    }

    /// Binds or inherits a listening Unix stream socket, which does not block; the address is written
    /// `unix:/PATH` or `unix:@ABSTRACT`. Otherwise as [`Upgrader::tcp`].
    ///
    /// A socket whose path somebody has removed is bound anew. Another server's socket at the path is left
    /// alone: then the inherited one is kept, with a warning, and nothing is unlinked at the end.
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::tcp`].
    pub fn unix(&mut self, name: &str, address: &str) -> Result<unix::net::UnixListener, Error> {
        self.unix_with(name, address, &SocketOptions::default())
    }

    /// The same on a socket that is made with these options, if none is inherited.
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::tcp`].
    pub fn unix_with(
        &mut self,
        name: &str,
        address: &str,
        options: &SocketOptions,
    ) -> Result<unix::net::UnixListener, Error> {
        let fd = self.listener(name, Kind::UnixStream, address, Make::Socket(options))?;
        Ok(fd.into())
    }

    /// Binds or inherits a UDP socket. A successor shares it from its set-up on: read it only while the
    /// process is [serving](crate::Phase::Serving).
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::tcp`].
    pub fn udp(&mut self, name: &str, address: &str) -> Result<net::UdpSocket, Error> {
        Ok(self.socket(name, Kind::Udp, address)?.into())
    }

    /// Binds or inherits a Unix datagram socket; otherwise as [`Upgrader::udp`].
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::tcp`].
    pub fn unix_datagram(
        &mut self,
        name: &str,
        address: &str,
    ) -> Result<unix::net::UnixDatagram, Error> {
        Ok(self.socket(name, Kind::UnixDatagram, address)?.into())
    }

    /// Binds or inherits a listening Unix seqpacket socket; otherwise as [`Upgrader::tcp`].
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::tcp`].
    pub fn seqpacket(&mut self, name: &str, address: &str) -> Result<OwnedFd, Error> {
        self.socket(name, Kind::UnixSeqpacket, address)
    }

    /// Opens or inherits any file by name, sockets included; `open` is called if none is inherited. Both
    /// processes share its position and its flags while both are there (open(2)).
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::tcp`], and what `open` answers.
    pub fn file(
        &mut self,
        name: &str,
        open: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<OwnedFd, Error> {
        self.claim(name, |estate| {
            let wanted = Wanted { name, kind: Kind::File, asked: "" };
            let make = |_: &Address| open().map_err(|error| ("open", error));
            estate.passive(wanted, Make::Caller(Box::new(make)))
        })
    }

    /// An established connection, or anything else, that the predecessor [has added](Upgrader::add_conn)
    /// under that name. `None` if it has not. It passes on to the next successor, too, until it is
    /// [removed](Upgrader::remove_conn).
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::tcp`].
    pub fn conn(&mut self, name: &str) -> Result<Option<OwnedFd>, Error> {
        let missing = || Err(io::ErrorKind::NotFound.into());
        match self.file(name, missing) {
            Ok(fd) => Ok(Some(fd)),
            Err(Error::Open { step: "open", source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                self.fate.last_error = None;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Passes a descriptor on to successors under that name, from now on: a connection, for one, which the
    /// successor takes by [`Upgrader::conn`] in its set-up. A duplicate is kept here until it is
    /// [removed](Upgrader::remove_conn) or this process has ended. May be called at any time; a successor
    /// that is spawned already does not get it.
    ///
    /// # Errors
    ///
    /// A name that is used already, or that is none, is [`Error::Name`].
    pub fn add_conn(&mut self, name: &str, conn: impl AsFd) -> Result<(), Error> {
        let duplicate = conn.as_fd().try_clone_to_owned();
        self.estate.give(name, duplicate.map_err(Error::system("duplicate a descriptor"))?)
    }

    /// Does not pass that one on any more. Answers whether there was one: a socket or a file that was asked
    /// for by name is one, too, and a listener of a [`Server`](crate::Server) is not.
    pub fn remove_conn(&mut self, name: &str) -> bool {
        self.estate.take_away(name)
    }

    fn socket(&mut self, name: &str, kind: Kind, address: &str) -> Result<OwnedFd, Error> {
        let options = SocketOptions::default();
        self.claim(name, |estate| {
            estate.passive(Wanted { name, kind, asked: address }, Make::Socket(&options))
        })
    }

    fn listener(
        &mut self,
        name: &str,
        kind: Kind,
        address: &str,
        make: Make<'_>,
    ) -> Result<OwnedFd, Error> {
        let fd =
            self.claim(name, |estate| estate.passive(Wanted { name, kind, asked: address }, make))?;
        if let Some(address) = self.address(name) {
            log::info!("listening on {address}");
        }
        Ok(fd)
    }

    /// A listener that is accepted from here: for the server.
    pub(crate) fn listen(
        &mut self,
        name: &str,
        address: &str,
        options: &SocketOptions,
    ) -> Result<Address, Error> {
        self.claim(name, |estate| estate.listen(name, address, Make::Socket(options)))
    }

    pub(crate) fn listen_on(
        &mut self,
        name: &str,
        address: &str,
        make: impl FnOnce(&Address) -> io::Result<OwnedFd>,
    ) -> Result<Address, Error> {
        self.claim(name, |estate| estate.listen(name, address, by_caller(make)))
    }

    /// Claims a name, before the set-up is done. Keeps the error for the predecessor, in case it is what
    /// ends this process.
    pub(crate) fn claim<T>(
        &mut self,
        name: &str,
        claim: impl FnOnce(&mut Estate) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let late = "is claimed before the first turn, or not at all";
        let result = match self.fate.started {
            true => Err(Error::Name { name: name.into(), reason: late }),
            false => claim(&mut self.estate),
        };
        let error = result.as_ref().err().map(Error::to_string);
        self.fate.last_error = error.or(self.fate.last_error.take());
        result
    }
}

/// A socket that the caller makes.
fn by_caller<'a>(make: impl FnOnce(&Address) -> io::Result<OwnedFd> + 'a) -> Make<'a> {
    Make::Caller(Box::new(|at: &Address| {
        let fd = make(at).map_err(|error| ("make", error))?;
        socket::complete(&fd, &SocketOptions::default())?;
        Ok(fd)
    }))
}
