//! Named sockets and files: inherited or made, verified, polled, paused, closed.
//!
//! Everything that one process hands to the next by name is in this table. A name is claimed once;
//! an inherited descriptor that is not what the new configuration wants is closed, never bent.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::libc;

use crate::address::Address;
use crate::error::Error;
use crate::limits;
use crate::socket::{self, Found, SocketOptions};
use crate::stream::Stream;
use crate::token::{Kind as TokenKind, Token};
use crate::wire::{Entry, Family, Kind};

/// The table of named descriptors.
pub(crate) struct Listeners {
    named: Vec<Named>,
    /// From the predecessor, and not claimed yet.
    inherited: Vec<Inherited>,
    /// Unix paths of inherited sockets that were not claimed: unlinked when the predecessor, which
    /// may come back to them, is gone.
    abandoned: Vec<Bound>,
    /// Counts the times that polling was started, so that events from before are stale.
    epoch: u32,
    polled: bool,
    /// Where the next accept starts, so that a flooded listener does not starve the others.
    next: usize,
    pause: Option<Pause>,
    /// Whether the pause was logged; it is one pause until a queue was seen empty.
    pause_logged: bool,
    /// Everybody who waits is let in, and then they are closed: how many more may be.
    draining: Option<usize>,
}

/// Accepting waits for a descriptor, or for a session to end.
#[derive(Clone, Copy)]
enum Pause {
    Until(Instant),
    /// The same, and before the next accept it is found out whether there is one.
    NoDescriptor(Instant),
    Full,
}

struct Named {
    name: Rc<str>,
    kind: Kind,
    address: Address,
    held: Held,
    /// Something may wait in the accept queue.
    ready: bool,
    /// Made by this process and not inherited.
    made: bool,
    /// The path that it is bound to, if it has one.
    bound: Option<Bound>,
}

/// A socket's path, and which file it was there: another server may have put its own in its place.
struct Bound {
    path: PathBuf,
    file: (u64, u64),
}

enum Held {
    /// For sessions, of that family.
    Listener {
        fd: OwnedFd,
        family: Family,
    },
    /// For the user, who has a duplicate.
    Passive {
        fd: OwnedFd,
        watched: bool,
    },
}

struct Inherited {
    entry: Entry,
    found: Found,
    fd: OwnedFd,
}

impl Listeners {
    /// A table that holds what the predecessor passed on, each of it verified.
    pub(crate) fn new(inherited: Vec<(Entry, OwnedFd)>) -> Result<Self, Error> {
        let verified = inherited.into_iter().map(|(entry, fd)| {
            let found = Found::at(&fd).map_err(Error::system("look at an inherited descriptor"))?;
            if found.serves_as(entry.kind) {
                Ok(Inherited { entry, found, fd })
            } else {
                let (expected, found) = (format!("a {}", entry.kind), found.describe());
                Err(Error::Inherited { name: entry.name, expected, found })
            }
        });
        Ok(Self {
            inherited: verified.collect::<Result<_, _>>()?,
            named: Vec::new(),
            abandoned: Vec::new(),
            epoch: 0,
            polled: false,
            next: 0,
            pause: None,
            pause_logged: false,
            draining: None,
        })
    }

    /// Claims or binds a listener for sessions.
    pub(crate) fn listen(
        &mut self,
        name: &str,
        addresses: &[Address],
        make: impl FnOnce(Kind, &Address) -> Result<OwnedFd, socket::Failed>,
    ) -> Result<Address, Error> {
        let kind = match addresses {
            [Address::Internet(_), ..] => Kind::Tcp,
            [..] => Kind::UnixStream,
        };
        let (fd, address, made) = self.obtain(name, kind, addresses, make)?;
        let family = if kind == Kind::Tcp { Family::Tcp } else { Family::Unix };
        let held = Held::Listener { fd, family };
        log::info!("listening on {address}");
        self.add(name, kind, address.clone(), held, made);
        Ok(address)
    }

    /// Claims or makes a socket that the user reads, and gives out a duplicate of it.
    pub(crate) fn socket(
        &mut self,
        name: &str,
        kind: Kind,
        addresses: &[Address],
        options: &SocketOptions,
    ) -> Result<OwnedFd, Error> {
        let (fd, address, made) =
            self.obtain(name, kind, addresses, |kind, at| socket::make(kind, at, options))?;
        self.give_out(name, kind, address, fd, made)
    }

    /// Claims or opens a file, and gives out a duplicate of it.
    pub(crate) fn file(
        &mut self,
        name: &str,
        make: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<OwnedFd, Error> {
        let make = |_, _: &Address| make().map_err(|error| ("open", error));
        let (fd, address, made) = self.obtain(name, Kind::File, &[Address::Unnamed], make)?;
        self.give_out(name, Kind::File, address, fd, made)
    }

    fn give_out(
        &mut self,
        name: &str,
        kind: Kind,
        address: Address,
        fd: OwnedFd,
        made: bool,
    ) -> Result<OwnedFd, Error> {
        let duplicate = fd.try_clone().map_err(Error::system("duplicate a descriptor"))?;
        self.add(name, kind, address, Held::Passive { fd, watched: false }, made);
        Ok(duplicate)
    }

    /// Has events of a socket that the user reads reported, while this process accepts.
    pub(crate) fn watch(&mut self, name: &str, registry: &Registry) -> Result<(), Error> {
        let error = |reason| Error::Name { name: name.into(), reason };
        let Some(named) = self.named.iter_mut().find(|named| *named.name == *name) else {
            return Err(error("stands for nothing that could be watched"));
        };
        let Held::Passive { fd, watched } = &mut named.held else {
            return Err(error("is a listener, which is polled anyway"));
        };
        // Regular files cannot be polled (EPERM, epoll_ctl(2)); found out now, not at the start.
        let trial = Token::single(TokenKind::Listener).pack();
        registry
            .register(&mut SourceFd(&fd.as_raw_fd()), trial, Interest::READABLE)
            .and_then(|()| registry.deregister(&mut SourceFd(&fd.as_raw_fd())))
            .map_err(|source| Error::Open {
                name: name.into(),
                place: named.kind.to_string(),
                step: "epoll_ctl",
                source,
            })?;
        *watched = true;
        Ok(())
    }

    /// Its events are reported no more.
    pub(crate) fn unwatch(&mut self, name: &str, registry: &Registry) {
        let polled = self.polled;
        let named = self.named.iter_mut().find(|named| *named.name == *name);
        if let Some(Held::Passive { fd, watched }) = named.map(|named| &mut named.held) {
            if std::mem::replace(watched, false) && polled {
                // It was registered by `resume` and is open, so this does not fail.
                let _ = registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
            }
        }
    }

    /// The descriptor of that name, claimed from the predecessor or made.
    fn obtain(
        &mut self,
        name: &str,
        kind: Kind,
        addresses: &[Address],
        make: impl FnOnce(Kind, &Address) -> Result<OwnedFd, socket::Failed>,
    ) -> Result<(OwnedFd, Address, bool), Error> {
        let refuse = |reason| Err(Error::Name { name: name.into(), reason });
        if name.is_empty() || name.len() > limits::NAME_BYTES || name.contains(char::is_control) {
            return refuse("a name has 1 to 100 bytes and no control characters");
        }
        if self.named.iter().any(|named| *named.name == *name) {
            return refuse("is used twice");
        }
        if self.named.len() >= limits::NAMED {
            return refuse("is one too many: a process can pass on 1012 descriptors");
        }
        let wanted = |inherited: &Inherited| {
            inherited.entry.name == name
                && inherited.entry.kind == kind
                && addresses.iter().any(|address| inherited.found.address.satisfies(address))
        };
        if let Some(place) = self.inherited.iter().position(wanted) {
            let claimed = self.inherited.swap_remove(place);
            return Ok((claimed.fd, claimed.found.address, false));
        }
        // Every caller wants at least one address.
        let [address, ..] = addresses else { return refuse("has no address") };
        let failed = |(step, source)| Error::Open {
            name: name.into(),
            place: if kind == Kind::File { kind.to_string() } else { address.to_string() },
            step,
            source,
        };
        let fd = make(kind, address).map_err(failed)?;
        let found = Found::at(&fd).map_err(|error| failed(("getsockname", error)))?;
        if !found.serves_as(kind) || !found.address.satisfies(address) {
            let expected = format!("a {kind} on {address}");
            return Err(Error::Inherited { name: name.into(), expected, found: found.describe() });
        }
        Ok((fd, found.address, true))
    }

    fn add(&mut self, name: &str, kind: Kind, address: Address, held: Held, made: bool) {
        let bound = Bound::at(&address);
        self.named.push(Named {
            name: name.into(),
            kind,
            address,
            held,
            ready: false,
            made,
            bound,
        });
    }

    /// The address of a named socket.
    pub(crate) fn address(&self, name: &str) -> Option<&Address> {
        self.named.iter().find(|named| *named.name == *name).map(|named| &named.address)
    }

    /// What is passed on to a successor, in the order of the table.
    pub(crate) fn manifest(&self) -> Vec<(Entry, BorrowedFd<'_>)> {
        self.named
            .iter()
            .map(|named| {
                let entry = Entry {
                    name: (*named.name).into(),
                    kind: named.kind,
                    asked: String::new(),
                    file: None,
                };
                (entry, named.held.as_fd())
            })
            .collect()
    }

    /// Starts polling. What came before is found at once: registering reports a queue that has
    /// something in it (epoll_ctl(2)).
    pub(crate) fn resume(&mut self, registry: &Registry) {
        self.epoch = self.epoch.wrapping_add(1);
        self.polled = true;
        self.pause = None;
        for (index, named) in self.named.iter_mut().enumerate() {
            let token = Token::new(TokenKind::Listener, self.epoch, index as u32).pack();
            if let Some(fd) = named.held.polled() {
                // One that cannot be polled (ENOMEM, ENOSPC, epoll_ctl(2)) does not silence the rest.
                if let Err(error) = registry.register(&mut SourceFd(&fd), token, Interest::READABLE)
                {
                    log::error!("\"{}\" on {} is not polled: {error}", named.name, named.address);
                }
            }
        }
    }

    /// Stops polling (I3). The registration belongs to the open file description, which the other
    /// process shares: closing would not end it.
    pub(crate) fn pause(&mut self, registry: &Registry) {
        self.pause = None;
        if !std::mem::take(&mut self.polled) {
            return;
        }
        for named in &mut self.named {
            named.ready = false;
            if let Some(fd) = named.held.polled() {
                // It was registered by `resume` and is open, so this does not fail.
                let _ = registry.deregister(&mut SourceFd(&fd));
            }
        }
    }

    /// Closes everything; the paths belong to another process.
    pub(crate) fn close(&mut self, registry: &Registry) {
        self.pause(registry);
        self.named.clear();
        self.inherited.clear();
    }

    /// Closes everything for good, and unlinks the paths.
    pub(crate) fn retire(&mut self, registry: &Registry) {
        self.pause(registry);
        self.named.iter().filter_map(|named| named.bound.as_ref()).for_each(Bound::unlink);
        self.unlink_abandoned();
        self.close(registry);
    }

    /// Begins to let in everybody who waits, before everything is closed for good: whoever has connected
    /// by now is served. Nobody can come to a path that is unlinked; at a port those who come meanwhile
    /// are let in, too, up to a bound.
    pub(crate) fn drain(&mut self, registry: &Registry) {
        self.pause(registry);
        self.named.iter_mut().filter_map(|named| named.bound.take()).for_each(|it| it.unlink());
        self.named.iter_mut().for_each(|named| named.ready = named.held.is_listener());
        self.draining = Some(limits::LAST_ACCEPTS);
    }

    /// Whether there are still some to be let in before everything is closed.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Whether everybody was let in, or nobody more can be.
    pub(crate) fn is_drained(&self) -> bool {
        let ready = self.named.iter().any(|named| named.ready);
        self.draining.is_some_and(|left| left == 0 || !ready)
    }

    /// Everybody was let in, or nobody more can be. Answers whether it was draining.
    pub(crate) fn end_draining(&mut self, registry: &Registry) -> bool {
        let drained = self.draining.take().is_some();
        if drained {
            self.retire(registry);
            log::info!("stop listening.");
        }
        drained
    }

    /// Closes what was inherited and not claimed.
    pub(crate) fn close_unclaimed(&mut self) {
        for Inherited { entry, found, fd } in std::mem::take(&mut self.inherited) {
            log::info!(
                "closing {} \"{}\" ({}): not claimed",
                entry.kind,
                entry.name,
                found.address
            );
            drop(fd);
            let claimed = self.named.iter().any(|named| named.address == found.address);
            self.abandoned.extend(Bound::at(&found.address).filter(|_| !claimed));
        }
    }

    /// Unlinks the paths of what was not claimed.
    pub(crate) fn unlink_abandoned(&mut self) {
        std::mem::take(&mut self.abandoned).iter().for_each(Bound::unlink);
    }

    /// Unlinks the paths that this process itself has made, for a process that ends before it
    /// serves.
    pub(crate) fn unlink_made(&self) {
        let made = self.named.iter().filter(|named| named.made);
        made.filter_map(|named| named.bound.as_ref()).for_each(Bound::unlink);
    }

    /// Notes that a descriptor is readable. Answers with its name if it is watched; stale events
    /// are an error.
    pub(crate) fn note(&mut self, token: Token) -> Result<Option<Rc<str>>, Stale> {
        let current = Token::new(TokenKind::Listener, self.epoch, token.index);
        let named = self.named.get_mut(token.index as usize);
        match named.filter(|_| self.polled && token == current) {
            Some(Named { held: Held::Passive { .. }, name, .. }) => Ok(Some(Rc::clone(name))),
            Some(named) => {
                named.ready = true;
                Ok(None)
            }
            None => Err(Stale),
        }
    }

    /// Whether a connection may wait that can be accepted now.
    pub(crate) fn has_ready(&self) -> bool {
        self.pause.is_none() && self.named.iter().any(|named| named.ready)
    }

    /// When accepting is to be tried again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.pause {
            Some(Pause::Until(deadline) | Pause::NoDescriptor(deadline)) => Some(deadline),
            Some(Pause::Full) | None => None,
        }
    }

    /// A session has ended, or will not come: what it held may be what accepting waits for.
    pub(crate) fn room_made(&mut self, now: Instant) {
        self.pause = match self.pause {
            Some(Pause::NoDescriptor(_)) => Some(Pause::NoDescriptor(now)),
            Some(Pause::Until(_) | Pause::Full) | None => None,
        };
    }

    /// Accepting pauses until a session ends: there are as many as there may be, those included that
    /// are to come.
    pub(crate) fn pause_full(&mut self, sessions: usize, to_come: usize) {
        // Nobody waits for it, or it is known.
        if matches!(self.pause, Some(Pause::Full)) || !self.named.iter().any(|named| named.ready) {
            return;
        }
        self.pause = Some(Pause::Full);
        match to_come {
            0 => self.log_pause(format_args!(
                "there are {sessions} sessions, the most that are allowed"
            )),
            _ => self.log_pause(format_args!(
                "there are {sessions} sessions and {to_come} to come, the most that are allowed"
            )),
        }
    }

    /// Accepts one connection, from the listeners in turn. `None` if none waits, or if accepting
    /// has to pause. No error ends the loop (accept(2)).
    ///
    /// Who gets a descriptor of the number `ceiling` or more is the last one for now.
    pub(crate) fn accept(
        &mut self,
        now: Instant,
        ceiling: RawFd,
    ) -> Option<(Rc<str>, Stream, Address)> {
        match self.pause {
            Some(Pause::Until(deadline)) if now >= deadline => self.pause = None,
            Some(Pause::NoDescriptor(deadline)) if now >= deadline => {
                if self.next_number().is_none_or(|number| number >= ceiling) {
                    self.pause = Some(Pause::NoDescriptor(now + limits::ACCEPT_RETRY));
                    return None;
                }
                self.pause = None;
            }
            Some(_) => return None,
            None => {}
        }
        if let Some(left) = &mut self.draining {
            let Some(fewer) = left.checked_sub(1) else { return None };
            *left = fewer;
        }
        let mut broken = 0;
        for offset in 0..self.named.len() {
            let index = (self.next + offset) % self.named.len();
            while self.named[index].ready {
                if broken == limits::ACCEPTS_PER_TURN {
                    // The others first, in the next turn.
                    self.next = index + 1;
                    return None;
                }
                match self.named[index].accept() {
                    Ok((stream, peer)) => {
                        self.next = index + 1;
                        let name = Rc::clone(&self.named[index].name);
                        if stream.as_fd().as_raw_fd() >= ceiling {
                            self.pause = Some(Pause::NoDescriptor(now + limits::ACCEPT_RETRY));
                            self.log_pause(format_args!(
                                "the descriptors that are left are kept for an upgrade"
                            ));
                        }
                        return Some((name, stream, peer));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.named[index].ready = false;
                        self.pause_logged = false;
                    }
                    // The connection is broken, not the listener: the next one, please.
                    Err(error) if is_ordinary(&error) => {
                        broken += 1;
                        log::debug!("accept on \"{}\": {error}", self.named[index].name);
                    }
                    // No descriptor (EMFILE, ENFILE) or no memory, or something unheard of. The
                    // connection stays in the queue.
                    Err(error) => {
                        self.pause = Some(Pause::Until(now + limits::ACCEPT_RETRY));
                        let name = Rc::clone(&self.named[index].name);
                        self.log_pause(format_args!("accept on \"{name}\": {error}"));
                        return None;
                    }
                }
            }
        }
        None
    }

    /// The lowest number that is free, which the next descriptor will have.
    fn next_number(&self) -> Option<RawFd> {
        let any = self.named.first()?.held.as_fd();
        any.try_clone_to_owned().ok().map(|duplicate| duplicate.as_raw_fd())
    }

    fn log_pause(&mut self, reason: std::fmt::Arguments<'_>) {
        if !std::mem::replace(&mut self.pause_logged, true) {
            log::warn!("accepting pauses, and resumes by itself: {reason}");
        }
    }
}

/// An event for something that was closed or paused meanwhile.
#[derive(Debug)]
pub(crate) struct Stale;

impl Named {
    fn accept(&self) -> io::Result<(Stream, Address)> {
        match &self.held {
            Held::Listener { fd, family } => Stream::accept(fd.as_fd(), *family),
            Held::Passive { .. } => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Held {
    /// Whether it is a listener for sessions.
    fn is_listener(&self) -> bool {
        match self {
            Self::Listener { .. } => true,
            Self::Passive { .. } => false,
        }
    }

    /// The descriptor to poll, if this one is polled.
    fn polled(&self) -> Option<i32> {
        match self {
            Self::Listener { fd, .. } | Self::Passive { fd, watched: true } => Some(fd.as_raw_fd()),
            Self::Passive { watched: false, .. } => None,
        }
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener { fd, .. } | Self::Passive { fd, .. } => fd.as_fd(),
        }
    }
}

/// Errors that concern one connection: accept(2) passes on what happened to it in the queue.
fn is_ordinary(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
        )
    )
}

impl Bound {
    fn at(address: &Address) -> Option<Self> {
        let path = address.path()?;
        Some(Self { path: path.into(), file: Self::file_at(path)? })
    }

    fn file_at(path: &Path) -> Option<(u64, u64)> {
        path.symlink_metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// Unlinks the path, if it still is the file that it was.
    fn unlink(&self) {
        if Self::file_at(&self.path) == Some(self.file) {
            if let Err(error) = fs::remove_file(&self.path) {
                log::warn!("unlink {}: {error}", self.path.display());
            }
        }
    }
}
