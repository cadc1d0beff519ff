//! Named descriptors: inherited or made, verified, passed on, closed.
//!
//! Everything that one process hands to the next by name is in this table. A name is claimed once; an
//! inherited descriptor that is not what the new configuration wants is closed, never bent. `claim` says
//! which one is wanted. Nothing here is polled: that is the business of whoever serves.

mod claim;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use crate::address::Address;
use crate::error::Error;
use crate::socket::Found;
use crate::socket_file::{Access, Bound};
use crate::wire::{Entry, Family, FileId, Kind};
use claim::{Claim, Inherited};
pub(crate) use claim::{Make, Wanted};

/// The table of named descriptors.
pub(crate) struct Estate {
    named: Vec<Named>,
    /// From the predecessor, and not claimed yet.
    inherited: Vec<Inherited>,
    /// Inherited, and without the path that somebody has removed: what is to become of them is said
    /// when everything is claimed.
    rests: Vec<(Rc<str>, Inherited)>,
    /// The same, for whoever lets clients in: nobody can connect to them any more, and who has is let in.
    last_queues: Vec<Door>,
    /// Unix paths of inherited sockets that were not claimed: unlinked when the predecessor, which
    /// may come back to them, is gone. The sockets stay open so long, because the file's number stays
    /// theirs by that.
    abandoned: Vec<(Bound, OwnedFd)>,
    /// The service has come to its end in this process: its paths end, too.
    ends_here: bool,
}

struct Named {
    name: Rc<str>,
    kind: Kind,
    address: Address,
    /// The text of the address by which it was asked for, for the successor.
    asked: String,
    fd: Rc<OwnedFd>,
    role: Role,
    /// Made by this process and not inherited.
    made: bool,
    /// The path that it is bound to, as long as that is its own.
    bound: Option<Bound>,
    /// The file that it was bound to, for the successor.
    file: Option<FileId>,
    /// What its file is given whenever this process takes over.
    access: Access,
}

/// What a descriptor is to its name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A listener that this library accepts from.
    Served,
    /// The same, bound to some of the addresses of the listener whose name it has, by a process before
    /// this one. Who connects to those is given to this socket.
    Part,
    /// The user's, who has a duplicate.
    Given,
    /// The upgrader's own: it is there until the end, also when nobody else is let in any more.
    Own,
}

/// A listener, for whoever lets clients in by it.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) name: Rc<str>,
    pub(crate) address: Address,
    pub(crate) fd: Rc<OwnedFd>,
    pub(crate) family: Family,
}

impl Estate {
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
            last_queues: Vec::new(),
            abandoned: Vec::new(),
            ends_here: false,
        })
    }

    fn add(&mut self, name: Rc<str>, wanted: &Wanted<'_>, role: Role, claim: Claim) {
        let Claim { fd, address, made, bound, file, access } = claim;
        let (kind, asked, fd) = (wanted.kind, wanted.asked.into(), Rc::new(fd));
        self.named.push(Named { name, kind, address, asked, fd, role, made, bound, file, access });
    }

    /// Passes one more descriptor on from now on, which somebody else has a duplicate of.
    pub(crate) fn give(&mut self, name: &str, fd: OwnedFd) -> Result<(), Error> {
        self.check_name(name)?;
        let wanted = Wanted { name, kind: Kind::File, asked: "" };
        self.add(name.into(), &wanted, Role::Given, Claim::of(fd, Address::Unnamed, None));
        Ok(())
    }

    /// Does not pass that one on any more. Answers whether there was one that is the user's.
    pub(crate) fn take_away(&mut self, name: &str) -> bool {
        let is_it = |named: &Named| *named.name == *name && named.role == Role::Given;
        let place = self.named.iter().position(is_it);
        place.map(|place| drop(self.named.remove(place))).is_some()
    }

    /// The address of a named socket.
    pub(crate) fn address(&self, name: &str) -> Option<&Address> {
        self.named.iter().find(|named| *named.name == *name).map(|named| &named.address)
    }

    /// What clients are let in by.
    pub(crate) fn doors(&self) -> Vec<Door> {
        let served =
            self.named.iter().filter(|named| matches!(named.role, Role::Served | Role::Part));
        let door = |named: &Named| Door {
            name: Rc::clone(&named.name),
            address: named.address.clone(),
            fd: Rc::clone(&named.fd),
            family: family_of(named.kind),
        };
        served.map(door).collect()
    }

    /// Listeners to which nobody can connect any more, and in whose queue somebody may wait. Whoever
    /// takes them closes them when nobody does.
    pub(crate) fn take_last_queues(&mut self) -> Vec<Door> {
        std::mem::take(&mut self.last_queues)
    }

    /// The descriptor of that name, if it is one of the user's, and what it is.
    pub(crate) fn given(&self, name: &str) -> Result<(Rc<OwnedFd>, Kind), Error> {
        let error = |reason| Error::Name { name: name.into(), reason };
        match self.named.iter().find(|named| *named.name == *name) {
            Some(named) if named.role == Role::Given => Ok((Rc::clone(&named.fd), named.kind)),
            Some(_) => Err(error("is a listener, which is polled anyway")),
            None => Err(error("stands for nothing that could be watched")),
        }
    }

    /// What is passed on to a successor, in the order of the table.
    pub(crate) fn manifest(&self) -> Vec<(Entry, BorrowedFd<'_>)> {
        let named = self.named.iter().enumerate();
        named
            .map(|(index, named)| {
                let name = match named.role {
                    Role::Served | Role::Given | Role::Own => (*named.name).into(),
                    Role::Part => self.name_of_part(index),
                };
                let (kind, asked, file) = (named.kind, named.asked.clone(), named.file);
                (Entry { name, kind, asked, file }, named.fd.as_fd())
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

    /// The files of Unix sockets whose mode and owner this process has a word to say about, for somebody to
    /// give them, who may have to wait for a disk. Each time that it takes over: a successor may have
    /// changed them, and be gone.
    pub(crate) fn files_to_open_up(&self) -> Vec<(PathBuf, Access)> {
        let wanted = self.named.iter().filter(|named| !named.access.is_default());
        wanted
            .filter_map(|named| Some((named.bound.as_ref()?.path().to_owned(), named.access)))
            .collect()
    }

    /// Closes everything but what is the upgrader's own; the paths belong to another process.
    pub(crate) fn close(&mut self) {
        self.named.retain(|named| named.role == Role::Own);
        self.inherited.clear();
        self.last_queues.clear();
    }

    /// The paths that end with this process, for somebody to unlink, who may have to wait for a disk.
    /// Their sockets come with them, to be open until it is done: by that the file is known for theirs.
    pub(crate) fn take_paths(&mut self) -> Vec<(Bound, Option<OwnedFd>)> {
        self.ends_here = true;
        let mut paths = self.take_abandoned();
        // The sockets themselves may be closed before that.
        let others = self.named.iter_mut().filter(|named| named.role != Role::Own);
        let bound = others.filter_map(|named| {
            let open = named.fd.try_clone().ok();
            named.bound.take().map(|bound| (bound, open))
        });
        paths.extend(bound);
        paths
    }

    /// The paths of what is the upgrader's own, likewise, when the process exits: none if the service goes on in
    /// another one.
    pub(crate) fn take_own_paths(&mut self) -> Vec<(Bound, Option<OwnedFd>)> {
        if !self.ends_here {
            return Vec::new();
        }
        let own = self.named.iter_mut().filter(|named| named.role == Role::Own);
        let bound = own.filter_map(|named| {
            let open = named.fd.try_clone().ok();
            named.bound.take().map(|bound| (bound, open))
        });
        bound.collect()
    }

    /// Unlinks the paths that this process itself has made, for a process that ends before it
    /// serves.
    pub(crate) fn unlink_made(&self) {
        let made = self.named.iter().filter(|named| named.made);
        made.filter_map(|named| named.bound.as_ref()).for_each(Bound::unlink);
    }
}

#[cfg(test)]
impl Estate {
    /// Whether that one was there before this process.
    pub(crate) fn is_inherited(&self, name: &str) -> bool {
        self.named.iter().any(|named| *named.name == *name && !named.made)
    }

    /// As if it had been asked for by that text.
    pub(crate) fn set_asked(&mut self, name: &str, asked: &str) {
        for named in self.named.iter_mut().filter(|named| *named.name == *name) {
            named.asked = asked.into();
        }
    }
}

/// Of a listener of that kind.
fn family_of(kind: Kind) -> Family {
    if kind == Kind::Tcp { Family::Tcp } else { Family::Unix }
}
