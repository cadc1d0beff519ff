//! Named sockets and files: inherited or made, verified, polled, paused, closed.
//!
//! Everything that one process hands to the next by name is in this table. A name is claimed once; an
//! inherited descriptor that is not what the new configuration wants is closed, never bent. `claim`
//! says which one is wanted, and `accept` lets clients in; they are parts of this noun.

mod accept;
mod claim;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry};

use crate::address::Address;
use crate::error::Error;
use crate::limits;
use crate::socket::Found;
use crate::socket_file::{Access, Bound};
use crate::throttle::Throttle;
use crate::token::{Kind as TokenKind, Token};
use crate::wire::{Entry, Family, FileId, Kind};
use accept::Pause;
use claim::{Claim, Inherited};
pub(crate) use claim::{Make, Wanted};

/// The table of named descriptors.
pub(crate) struct Listeners {
    named: Vec<Named>,
    /// From the predecessor, and not claimed yet.
    inherited: Vec<Inherited>,
    /// Inherited, and without the path that somebody has removed: what is to become of them is said
    /// when everything is claimed.
    rests: Vec<(Rc<str>, Inherited)>,
    /// Unix paths of inherited sockets that were not claimed: unlinked when the predecessor, which
    /// may come back to them, is gone. The sockets stay open so long, because the file's number stays
    /// theirs by that.
    abandoned: Vec<(Bound, OwnedFd)>,
    /// Counts the times that polling was started, so that events from before are stale.
    epoch: u32,
    polled: bool,
    /// Where the next accept starts, so that a flooded listener does not starve the others.
    next: usize,
    pause: Option<Pause>,
    /// Whether the pause was logged; it is one pause until a queue was seen empty.
    pause_logged: bool,
    pauses: Throttle,
    /// Everybody who waits is let in, and then they are closed: how many more may be.
    draining: Option<usize>,
    /// When it is tried again to poll those that epoll has refused, if there are any.
    poll_again: Option<Instant>,
}

struct Named {
    name: Rc<str>,
    kind: Kind,
    address: Address,
    /// The text of the address by which it was asked for, for the successor.
    asked: String,
    held: Held,
    role: Role,
    /// Something may wait in the accept queue.
    ready: bool,
    /// Epoll has refused it.
    unpolled: bool,
    /// Made by this process and not inherited.
    made: bool,
    /// The path that it is bound to, as long as that is its own.
    bound: Option<Bound>,
    /// The file that it was bound to, for the successor.
    file: Option<FileId>,
    /// What its file is given whenever this process takes over.
    access: Access,
}

/// What a socket is to the listener whose name it has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The listener itself.
    Claimed,
    /// Bound to some of the listener's addresses, by a process before this one. Who connects to those
    /// is given to this socket.
    Part,
    /// Bound to the listener's path before somebody removed that: nobody can connect to it any more,
    /// and who has is let in. It is not polled, and these come last in the table.
    Rest,
}

enum Held {
    /// For sessions, of that family.
    Listener { fd: OwnedFd, family: Family },
    /// For the user, who has a duplicate.
    Passive { fd: OwnedFd, watched: bool },
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
            rests: Vec::new(),
            abandoned: Vec::new(),
            epoch: 0,
            polled: false,
            next: 0,
            pause: None,
            pause_logged: false,
            pauses: Throttle::default(),
            draining: None,
            poll_again: None,
        })
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
                // It is open, so this fails only if it was not registered.
                let _ = registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
            }
        }
    }

    fn add(
        &mut self,
        name: Rc<str>,
        wanted: &Wanted<'_>,
        role: Role,
        claim: Claim,
        hold: impl FnOnce(OwnedFd) -> Held,
    ) {
        let Claim { fd, address, made, bound, file, access } = claim;
        self.named.push(Named {
            name,
            kind: wanted.kind,
            address,
            asked: wanted.asked.into(),
            held: hold(fd),
            role,
            ready: false,
            unpolled: false,
            made,
            bound,
            file,
            access,
        });
    }

    /// The address of a named socket.
    pub(crate) fn address(&self, name: &str) -> Option<&Address> {
        self.named.iter().find(|named| *named.name == *name).map(|named| &named.address)
    }

    /// What is passed on to a successor, in the order of the table.
    pub(crate) fn manifest(&self) -> Vec<(Entry, BorrowedFd<'_>)> {
        let named = self.named.iter().filter(|named| named.role != Role::Rest).enumerate();
        named
            .map(|(index, named)| {
                let name = match named.role {
                    Role::Claimed => (*named.name).into(),
                    Role::Part | Role::Rest => self.name_of_part(index),
                };
                let (kind, asked, file) = (named.kind, named.asked.clone(), named.file);
                (Entry { name, kind, asked, file }, named.held.as_fd())
            })
            .collect()
    }

    /// A name that nobody else has, for a socket that nobody has named.
    fn name_of_part(&self, index: usize) -> String {
        let mut name = format!("part {index}");
        while self.named.iter().any(|named| *named.name == *name) {
            name.push('\'');
        }
        name
    }

    /// Starts polling. What came before is found at once: registering reports a queue that has
    /// something in it (epoll_ctl(2)).
    pub(crate) fn resume(&mut self, registry: &Registry, now: Instant) {
        self.epoch = self.epoch.wrapping_add(1);
        self.polled = true;
        self.pause = None;
        for named in &mut self.named {
            named.unpolled = named.held.polled().is_some() && named.role != Role::Rest;
            named.ready = named.role == Role::Rest;
        }
        self.poll(registry, now);
    }

    /// The files of Unix sockets whose mode and owner this process has a word to say about, for somebody to
    /// give them, who may have to wait for a disk. Each time that it takes over: a successor may have
    /// changed them, and be gone.
    pub(crate) fn files_to_open_up(&self) -> Vec<(PathBuf, Access)> {
        let wanted = self.named.iter().filter(|named| !named.access.is_default());
        wanted
            .filter_map(|named| Some((named.bound.as_ref()?.path().to_owned(), named.access)))
            .collect()
    }

    /// Has those polled that are not. One that epoll has no room for (ENOMEM, ENOSPC, epoll_ctl(2)) does
    /// not silence the rest; it is tried again, and until then it is looked into as often.
    fn poll(&mut self, registry: &Registry, now: Instant) {
        let again = self.poll_again.take().is_some();
        for (index, named) in self.named.iter_mut().enumerate().filter(|(_, it)| it.unpolled) {
            let token = Token::new(TokenKind::Listener, self.epoch, index as u32).pack();
            let Some(fd) = named.held.polled() else { continue };
            match registry.register(&mut SourceFd(&fd), token, Interest::READABLE) {
                Ok(()) => {
                    named.unpolled = false;
                    if again {
                        log::info!("\"{}\" on {} is polled again", named.name, named.address);
                    }
                }
                Err(error) => {
                    named.ready = named.held.is_listener();
                    self.poll_again = Some(now + limits::ACCEPT_RETRY);
                    if !again {
                        let Named { name, address, .. } = named;
                        log::error!(
                            "\"{name}\" on {address} is not polled, and tried again: {error}"
                        );
                    }
                }
            }
        }
    }

    /// Stops polling (I3). The registration belongs to the open file description, which the other
    /// process shares: closing would not end it.
    pub(crate) fn pause(&mut self, registry: &Registry) {
        (self.pause, self.poll_again) = (None, None);
        if !std::mem::take(&mut self.polled) {
            return;
        }
        for named in &mut self.named {
            let unpolled = std::mem::take(&mut named.unpolled) || named.role == Role::Rest;
            named.ready = false;
            if let Some(fd) = named.held.polled().filter(|_| !unpolled) {
                // It was registered by `poll` and is open, so this does not fail.
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

    /// The paths that end with this process, for somebody to unlink, who may have to wait for a disk.
    /// Their sockets come with them, to be open until it is done: by that the file is known for theirs.
    pub(crate) fn take_paths(&mut self) -> Vec<(Bound, Option<OwnedFd>)> {
        let mut paths = self.take_abandoned();
        // The sockets themselves may be closed before that.
        let bound = self.named.iter_mut().filter_map(|named| {
            let open = named.held.as_fd().try_clone_to_owned().ok();
            named.bound.take().map(|bound| (bound, open))
        });
        paths.extend(bound);
        paths
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
}

/// An event for something that was closed or paused meanwhile.
#[derive(Debug)]
pub(crate) struct Stale;

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
