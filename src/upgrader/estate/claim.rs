//! Claiming: which inherited descriptor is the one that is asked for, and what becomes of the others.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::{Door, Estate, Role, family_of};
use crate::address::Address;
use crate::error::Error;
use crate::limits;
use crate::socket::{self, Failed, Found, SocketOptions};
use crate::socket_file::{Access, Bound, file_at};
use crate::wire::{Entry, FileId, Kind};

/// What is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: Kind,
    /// The address, as a text; empty for a file.
    pub(crate) asked: &'a str,
}

/// How a descriptor is made that is not inherited.
pub(crate) enum Make<'a> {
    Socket(&'a SocketOptions),
    Caller(Maker<'a>),
}

impl Make<'_> {
    /// What the socket's file is to be given.
    fn access(&self) -> Access {
        match self {
            Self::Socket(options) => options.access(),
            Self::Caller(_) => Access::default(),
        }
    }
}

/// A caller's own way of making it.
type Maker<'a> = Box<dyn FnOnce(&Address) -> Result<OwnedFd, Failed> + 'a>;

/// A descriptor from the predecessor that nobody has claimed yet.
pub(super) struct Inherited {
    pub(super) entry: Entry,
    pub(super) found: Found,
    pub(super) fd: OwnedFd,
}

/// A descriptor that is claimed or made.
pub(super) struct Claim {
    pub(super) fd: OwnedFd,
    pub(super) address: Address,
    pub(super) made: bool,
    pub(super) bound: Option<Bound>,
    pub(super) file: Option<FileId>,
    pub(super) access: Access,
}

impl Estate {
    /// Claims or binds a listener for sessions, at the address that the text stands for.
    pub(crate) fn listen(
        &mut self,
        name: &str,
        asked: &str,
        make: Make<'_>,
    ) -> Result<Address, Error> {
        let kind = if asked.starts_with("unix:") { Kind::UnixStream } else { Kind::Tcp };
        let wanted = Wanted { name, kind, asked };
        let claim = self.obtain(wanted, Role::Served, make)?;
        let address = claim.address.clone();
        log::info!("listening on {address}");
        self.add(name.into(), &wanted, Role::Served, claim);
        Ok(address)
    }

    /// Claims or binds a listener of the upgrader's own.
    pub(crate) fn own_listener(
        &mut self,
        name: &str,
        asked: &str,
        options: &SocketOptions,
    ) -> Result<Door, Error> {
        let kind = if asked.starts_with("unix:") { Kind::UnixStream } else { Kind::Tcp };
        let wanted = Wanted { name, kind, asked };
        let claim = self.obtain(wanted, Role::Own, Make::Socket(options))?;
        self.add(name.into(), &wanted, Role::Own, claim);
        // It was added behind all others.
        let [.., named] = &self.named[..] else {
            return Err(Error::Name { name: name.into(), reason: "was not kept" });
        };
        Ok(Door {
            name: Rc::clone(&named.name),
            address: named.address.clone(),
            fd: Rc::clone(&named.fd),
            family: family_of(kind),
        })
    }

    /// Claims or makes a socket that the user reads or accepts from, or a file, and gives out a duplicate
    /// of it.
    pub(crate) fn passive(&mut self, wanted: Wanted<'_>, make: Make<'_>) -> Result<OwnedFd, Error> {
        let claim = self.obtain(wanted, Role::Given, make)?;
        let duplicate = claim.fd.try_clone().map_err(Error::system("duplicate a descriptor"))?;
        self.add(wanted.name.into(), &wanted, Role::Given, claim);
        Ok(duplicate)
    }

    /// The descriptor of that name, claimed from the predecessor or made.
    ///
    /// Whoever asks by the text of the process before gets its socket, and no host is looked up: a name
    /// server that does not answer does not keep a process from being replaced. Where it is only the
    /// same address, that counts, whatever the name and the text are.
    fn obtain(&mut self, wanted: Wanted<'_>, role: Role, make: Make<'_>) -> Result<Claim, Error> {
        let Wanted { name, kind, asked } = wanted;
        let refuse = |reason| Err(Error::Name { name: name.into(), reason });
        self.check_name(name)?;
        let same_text = |it: &Inherited| !asked.is_empty() && it.entry.asked == asked;
        let same_name = |it: &Inherited| it.entry.name == name;
        let mut claimed = match kind {
            Kind::File => self.take(kind, same_name),
            Kind::Tcp | Kind::Udp | Kind::UnixStream | Kind::UnixSeqpacket | Kind::UnixDatagram => {
                self.take(kind, |it| same_name(it) && same_text(it))
                    // Any port is another one for each name.
                    .or_else(|| self.take(kind, |it| same_text(it) && !asks_for_any_port(asked)))
            }
        };
        let mut addresses = vec![Address::Unnamed];
        if claimed.is_none() && kind != Kind::File {
            addresses = Address::resolve(asked)?;
            let mut exact = addresses.iter().filter(|at| at.port() != Some(0));
            claimed = self
                .take(kind, |it| same_name(it) && addresses.iter().any(|at| it.is_at(at)))
                .or_else(|| exact.find_map(|at| self.take(kind, |it| it.is_at(at))))
                // Where it is, whoever has configured the service manager has said under that name.
                .or_else(|| self.take(kind, |it| it.is_managers() && same_name(it)));
        }
        if let Some(claimed) = claimed {
            return self.settle(wanted, role, claimed, make);
        }
        // Every text stands for at least one address.
        let [address, ..] = &addresses[..] else { return refuse("has no address") };
        let place = if kind == Kind::File { kind.to_string() } else { address.to_string() };
        let failed =
            |(step, source)| Error::Open { name: name.into(), place: place.clone(), step, source };
        self.make(kind, role, address, make).map_err(failed)?.map_err(|found| {
            let expected = format!("a {kind} on {address}");
            Error::Inherited { name: name.into(), expected, found }
        })
    }

    /// Whether that can be the name of one more.
    pub(super) fn check_name(&self, name: &str) -> Result<(), Error> {
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
        Ok(())
    }

    /// Takes out of what is inherited the first one of that kind that it holds for.
    fn take(&mut self, kind: Kind, holds: impl Fn(&Inherited) -> bool) -> Option<Inherited> {
        let is_it = |it: &Inherited| it.entry.kind == kind && holds(it);
        let place = self.inherited.iter().position(is_it)?;
        Some(self.inherited.remove(place))
    }

    /// Claims an inherited descriptor. A Unix socket whose path is no longer its own is made anew, and
    /// kept only if that cannot be done.
    fn settle(
        &mut self,
        wanted: Wanted<'_>,
        role: Role,
        claimed: Inherited,
        make: Make<'_>,
    ) -> Result<Claim, Error> {
        if claimed.is_managers() {
            // Its path is not ours to give away, to make anew or to unlink, and not a successor's.
            let Inherited { found, fd, entry } = claimed;
            return Ok(Claim { file: entry.file, ..Claim::of(fd, found.address, None) });
        }
        let access = make.access();
        if wanted.kind == Kind::File || claimed.found.address.path().is_none() {
            let Inherited { found, fd, .. } = claimed;
            return Ok(Claim { access, ..Claim::of(fd, found.address, None) });
        }
        // No host has to be looked up for a path.
        let at = Address::resolve(wanted.asked)?.swap_remove(0);
        let there = at.path().and_then(Bound::at);
        let is_own = |there: &Bound| claimed.entry.file.is_none_or(|file| file == there.file());
        if let Some(bound) = there.filter(is_own) {
            let Inherited { found, fd, .. } = claimed;
            return Ok(Claim { access, ..Claim::of(fd, found.address, Some(bound)) });
        }
        match self.make(wanted.kind, role, &at, make) {
            Ok(Ok(claim)) => {
                let waiting = match role {
                    Role::Served | Role::Part => "who waits for the old one is let in",
                    // They have one socket for each name.
                    Role::Given | Role::Own => "who waits for the old one is reset",
                };
                log::warn!("{at} was removed, and is made again; {waiting}");
                self.rests.push((wanted.name.into(), claimed));
                Ok(claim)
            }
            Ok(Err(found)) => {
                let (name, expected) = (wanted.name.into(), format!("a {} on {at}", wanted.kind));
                Err(Error::Inherited { name, expected, found })
            }
            Err((step, error)) => {
                log::warn!(
                    "{at} is not ours any more, and cannot be made again: {step}: {error}; nobody \
                     can connect to us by it"
                );
                let Inherited { entry, found, fd } = claimed;
                // The next process is told the same, and leaves the path alone, too.
                Ok(Claim { file: entry.file, ..Claim::of(fd, found.address, None) })
            }
        }
    }

    /// Makes a descriptor. If a caller has made something else, the answer says in words what it is.
    fn make(
        &mut self,
        kind: Kind,
        role: Role,
        address: &Address,
        make: Make<'_>,
    ) -> Result<Result<Claim, String>, Failed> {
        let access = make.access();
        let fd = match make {
            Make::Socket(options) => match socket::make(kind, address, options) {
                Err(("bind", error)) if error.kind() == io::ErrorKind::AddrInUse => {
                    self.make_beside((kind, role), address, options, error)
                }
                result => result,
            },
            Make::Caller(make) => make(address),
        }?;
        let found = Found::at(&fd).map_err(|error| ("getsockname", error))?;
        if kind == Kind::File {
            return Ok(Ok(Claim { made: true, ..Claim::of(fd, Address::Unnamed, None) }));
        }
        if !found.serves_as(kind) || !found.address.satisfies(address) {
            return Ok(Err(found.describe()));
        }
        let bound = found.address.path().and_then(Bound::at);
        Ok(Ok(Claim { made: true, access, ..Claim::of(fd, found.address, bound) }))
    }

    /// Listens on all addresses of a port, although the predecessor listens on some of them; it cannot
    /// let go of those before this process has taken over.
    ///
    /// Only for what this library accepts from: whoever has a listener of their own has one for each name.
    ///
    /// The other way round there is no good way: whoever connects to the more exact address is given to
    /// its socket at once, and would wait for a process that may never serve.
    fn make_beside(
        &self,
        (kind, role): (Kind, Role),
        address: &Address,
        options: &SocketOptions,
        error: io::Error,
    ) -> Result<OwnedFd, Failed> {
        let tcp = || self.inherited.iter().filter(|it| it.entry.kind == Kind::Tcp);
        let parts = tcp().filter(|it| address.may_cover(&it.found.address));
        let parts: Vec<BorrowedFd<'_>> = parts.map(|part| part.fd.as_fd()).collect();
        if kind == Kind::Tcp && role == Role::Served && !parts.is_empty() {
            return socket::make_beside(&parts, address, options);
        }
        let whole = tcp().find(|it| kind == Kind::Tcp && it.found.address.may_cover(address));
        let error = match whole {
            Some(whole) => io::Error::new(
                error.kind(),
                format!(
                    "{error}: the predecessor listens on {}, which includes it, and keeps that until \
                     this process is proven; first upgrade to neither of the two, and then to this one",
                    whole.found.address,
                ),
            ),
            None => error,
        };
        Err(("bind", error))
    }

    /// Says what becomes of what was inherited and not claimed: most of it is closed.
    pub(crate) fn close_unclaimed(&mut self) {
        for inherited in std::mem::take(&mut self.inherited) {
            let Inherited { entry, found, fd } = inherited;
            if let Some(name) = self.whole_of(&entry, &found) {
                log::info!("{} is a part of \"{name}\", and served with it", found.address);
                let wanted = Wanted { name: "", kind: entry.kind, asked: &entry.asked };
                self.add(name, &wanted, Role::Part, Claim::of(fd, found.address, None));
                continue;
            }
            let Entry { kind, name, .. } = &entry;
            if entry.file == Some(FileId::MANAGERS) {
                log::warn!(
                    "closing {kind} \"{name}\" ({}), which the service manager has opened: nobody asks \
                     for it",
                    found.address,
                );
                continue;
            }
            log::info!("closing {kind} \"{name}\" ({}): not claimed", found.address);
            let bound = found.address.path().and_then(Bound::at);
            let claimed = |bound: &Bound| {
                self.named
                    .iter()
                    .any(|named| named.bound.as_ref().is_some_and(|own| own.file() == bound.file()))
            };
            let is_own = |bound: &Bound| entry.file.is_none_or(|file| file == bound.file());
            let bound = bound.filter(|bound| is_own(bound) && !claimed(bound));
            self.abandoned.extend(bound.map(|bound| (bound, fd)));
        }
        for (name, Inherited { entry, found, fd }) in std::mem::take(&mut self.rests) {
            let is_served = |named: &super::Named| named.name == name && named.role == Role::Served;
            if self.named.iter().any(is_served) {
                let (address, family) = (found.address, family_of(entry.kind));
                self.last_queues.push(Door { name, address, fd: Rc::new(fd), family });
            }
        }
    }

    /// The name of the listener that is bound to an inherited one's address, too.
    fn whole_of(&self, entry: &Entry, found: &Found) -> Option<Rc<str>> {
        let is_whole = |named: &&super::Named| {
            named.role == Role::Served
                && (named.kind, entry.kind) == (Kind::Tcp, Kind::Tcp)
                && named.address.may_cover(&found.address)
                && (named.address.is_v4() == found.address.is_v4()
                    || socket::has_both_families(named.fd.as_fd()))
        };
        self.named.iter().find(is_whole).map(|named| Rc::clone(&named.name))
    }

    /// The paths of what was not claimed, for somebody to unlink, who may have to wait for a disk; and
    /// the sockets, to be open until it is done.
    pub(crate) fn take_abandoned(&mut self) -> Vec<(Bound, Option<OwnedFd>)> {
        let abandoned = std::mem::take(&mut self.abandoned).into_iter();
        abandoned.map(|(bound, fd)| (bound, Some(fd))).collect()
    }
}

impl Inherited {
    /// Whether a service manager has made it, for this process or one before.
    fn is_managers(&self) -> bool {
        self.entry.file == Some(FileId::MANAGERS)
    }

    /// Whether it is at that address, however its path is spelled.
    fn is_at(&self, address: &Address) -> bool {
        if self.found.address.satisfies(address) {
            return true;
        }
        let (Some(own), Some(path)) = (self.found.address.path(), address.path()) else {
            return false;
        };
        let file = self.entry.file.filter(|_| !self.is_managers()).or_else(|| file_at(own));
        file.is_some() && file == file_at(path)
    }
}

impl Claim {
    /// One that is inherited.
    pub(super) fn of(fd: OwnedFd, address: Address, bound: Option<Bound>) -> Self {
        let file = bound.as_ref().map(Bound::file);
        Self { fd, address, made: false, bound, file, access: Access::default() }
    }
}

/// Whether a text asks for any port, which is not looked up.
fn asks_for_any_port(asked: &str) -> bool {
    let port = asked.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    !asked.starts_with("unix:") && port == Some(Ok(0))
}
