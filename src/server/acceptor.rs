//! Letting clients in: which listeners are polled, from which one the next client is taken, pauses where
//! there is no room, and at the end everybody who still waits.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::libc;

use crate::CLIENTS;
use crate::address::Address;
use crate::error::Error;
use crate::limits;
use crate::stream::Stream;
use crate::sys;
use crate::throttle::Throttle;
use crate::token::{Kind as TokenKind, Token};
use crate::upgrader::{Door, Estate};
use crate::wire::Family;

/// What is polled while this process accepts: its listeners, and descriptors that the handler reads.
#[derive(Default)]
pub(super) struct Acceptor {
    polled: Vec<Polled>,
    /// The names of what the handler wants to hear of.
    watched: Vec<Rc<str>>,
    /// Counts the times that polling was started, so that events from before are stale.
    epoch: u32,
    is_polling: bool,
    /// Where the next accept starts, so that a flooded listener does not starve the others.
    next: usize,
    pause: Option<Pause>,
    /// Whether the pause was logged; it is one pause until a queue was seen empty.
    pause_logged: bool,
    pauses: Throttle,
    /// Everybody who waits is let in, and then they are closed: how many more may be.
    draining: Option<Draining>,
    /// When it is tried again to poll those that epoll has refused, if there are any.
    poll_again: Option<Instant>,
}

/// The last ones are let in.
struct Draining {
    /// How many more may be.
    left: usize,
    /// New ones go elsewhere; those that were on their way here come in the next moments.
    linger: Option<Linger>,
}

#[derive(Clone, Copy)]
struct Linger {
    /// When the queues are looked into again.
    look: Instant,
    /// Until when nobody may come, for it to be the end.
    quiet: Instant,
    /// The end, whoever still comes.
    end: Instant,
}

struct Polled {
    name: Rc<str>,
    what: What,
    /// Something may wait in the accept queue.
    ready: bool,
    /// Epoll has refused it.
    refused: bool,
}

enum What {
    Listener(Door),
    /// Nobody can connect to it any more, because somebody has removed its path. It is looked into and not
    /// polled, and these come last in the table.
    LastQueue(Door),
    Watched(Rc<OwnedFd>),
    /// It was watched, until the handler had enough of it.
    Unwatched(Rc<OwnedFd>),
}

/// Accepting waits for a descriptor, or for a session to end.
#[derive(Clone, Copy)]
enum Pause {
    Until(Instant),
    /// The same, and before the next accept it is found out whether there is one.
    NoDescriptor(Instant),
    Full,
}

impl Acceptor {
    /// Has events of a descriptor that the user reads reported, while this process accepts.
    pub(super) fn watch(
        &mut self,
        name: &str,
        estate: &Estate,
        registry: &Registry,
    ) -> Result<(), Error> {
        let (fd, kind) = estate.given(name)?;
        // Regular files cannot be polled (EPERM, epoll_ctl(2)); found out now, not at the start.
        let trial = Token::single(TokenKind::Listener).pack();
        registry
            .register(&mut SourceFd(&fd.as_raw_fd()), trial, Interest::READABLE)
            .and_then(|()| registry.deregister(&mut SourceFd(&fd.as_raw_fd())))
            .map_err(|source| Error::Open {
                name: name.into(),
                place: kind.to_string(),
                step: "epoll_ctl",
                source,
            })?;
        if !self.watched.iter().any(|watched| **watched == *name) {
            self.watched.push(name.into());
        }
        Ok(())
    }

    /// Its events are reported no more.
    pub(super) fn unwatch(&mut self, name: &str, registry: &Registry) {
        self.watched.retain(|watched| **watched != *name);
        let found = self.polled.iter_mut().find(|polled| *polled.name == *name);
        if let Some(polled @ Polled { what: What::Watched(_), .. }) = found {
            // Its place stays, so that those of the others stay what they are.
            polled.stop(registry);
            if let What::Watched(fd) = &polled.what {
                polled.what = What::Unwatched(Rc::clone(fd));
            }
        }
    }

    /// Starts polling. What came before is found at once: registering reports a queue that has
    /// something in it (epoll_ctl(2)).
    pub(super) fn resume(&mut self, estate: &mut Estate, registry: &Registry, now: Instant) {
        self.epoch = self.epoch.wrapping_add(1);
        self.is_polling = true;
        self.pause = None;
        let mut last_queues = std::mem::take(&mut self.polled);
        last_queues.retain(|polled| matches!(polled.what, What::LastQueue(_)));
        let doors = estate.doors().into_iter().map(What::Listener);
        // What was watched is the estate's still, unless the user has taken it away.
        let given = self.watched.iter().filter_map(|name| Some((name, estate.given(name).ok()?.0)));
        let watched = given.map(|(name, fd)| Polled::new(Rc::clone(name), What::Watched(fd)));
        self.polled = doors.map(Polled::of).chain(watched).collect();
        self.polled.extend(last_queues);
        let last_queues = estate.take_last_queues().into_iter().map(What::LastQueue);
        self.polled.extend(last_queues.map(Polled::of));
        for polled in &mut self.polled {
            polled.ready = matches!(polled.what, What::LastQueue(_));
        }
        self.poll(registry, now);
    }

    /// Has those polled that are not. One that epoll has no room for (ENOMEM, ENOSPC, epoll_ctl(2)) does
    /// not silence the rest; it is tried again, and until then it is looked into as often.
    fn poll(&mut self, registry: &Registry, now: Instant) {
        let again = self.poll_again.take().is_some();
        for (index, polled) in self.polled.iter_mut().enumerate().filter(|(_, it)| it.refused) {
            let token = Token::new(TokenKind::Listener, self.epoch, index as u32).pack();
            let Some(fd) = polled.descriptor() else { continue };
            match registry.register(&mut SourceFd(&fd), token, Interest::READABLE) {
                Ok(()) => {
                    polled.refused = false;
                    if again {
                        log::info!("{polled} is polled again");
                    }
                }
                Err(error) => {
                    polled.ready = matches!(polled.what, What::Listener(_));
                    self.poll_again = Some(now + limits::ACCEPT_RETRY);
                    if !again {
                        log::error!("{polled} is not polled, and tried again: {error}");
                    }
                }
            }
        }
    }

    /// Stops polling (I3). The registration belongs to the open file description, which the other
    /// process shares: closing would not end it.
    pub(super) fn pause(&mut self, registry: &Registry) {
        (self.pause, self.poll_again) = (None, None);
        if !std::mem::take(&mut self.is_polling) {
            return;
        }
        for polled in &mut self.polled {
            polled.ready = false;
            polled.stop(registry);
        }
    }

    /// Lets go of all of them.
    pub(super) fn close(&mut self, registry: &Registry) {
        self.pause(registry);
        self.polled.clear();
    }

    /// Notes that a descriptor is readable. Answers with its name if it is watched; stale events
    /// are an error.
    pub(super) fn note(&mut self, token: Token) -> Result<Option<Rc<str>>, Stale> {
        let current = Token::new(TokenKind::Listener, self.epoch, token.index);
        let polled = self.polled.get_mut(token.index as usize);
        match polled.filter(|_| self.is_polling && token == current) {
            Some(Polled { what: What::Watched(_), name, .. }) => Ok(Some(Rc::clone(name))),
            Some(polled) => {
                polled.ready = true;
                Ok(None)
            }
            None => Err(Stale),
        }
    }

    /// Whether a connection may wait that can be accepted now.
    pub(super) fn has_ready(&self) -> bool {
        self.pause.is_none() && self.polled.iter().any(|polled| polled.ready)
    }

    /// Whether accepting has not paused, and nobody is known to wait.
    pub(super) fn is_idle(&self) -> bool {
        self.pause.is_none() && !self.polled.iter().any(|polled| polled.ready)
    }

    /// When accepting is to be tried again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.pause {
            Some(Pause::Until(deadline) | Pause::NoDescriptor(deadline)) => Some(deadline),
            Some(Pause::Full) | None => {
                let linger = self.draining.as_ref().and_then(|draining| draining.linger);
                let full = self.pause.is_some();
                // A full house has nothing to look for.
                let linger = linger.map(|it| if full { it.end } else { it.look.min(it.end) });
                self.poll_again.into_iter().chain(linger).min()
            }
        }
    }

    /// A session has ended, or will not come: what it held may be what accepting waits for.
    pub(super) fn room_made(&mut self, now: Instant) {
        self.pause = match self.pause {
            Some(Pause::NoDescriptor(_)) => Some(Pause::NoDescriptor(now)),
            Some(Pause::Until(_) | Pause::Full) | None => None,
        };
    }

    /// Accepting pauses until a session ends: there are as many as there may be, those included that
    /// are to come.
    pub(super) fn pause_full(&mut self, sessions: usize, to_come: usize) {
        // Nobody waits for it, or it is known.
        if matches!(self.pause, Some(Pause::Full)) || !self.polled.iter().any(|polled| polled.ready)
        {
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

    /// Tries again to poll what epoll has refused, if the time for that has come.
    pub(super) fn poll_those_refused(&mut self, registry: &Registry, now: Instant) {
        if self.poll_again.is_some_and(|at| now >= at) {
            self.poll(registry, now);
        }
    }

    /// Accepts one connection, from the listeners in turn. `None` if none waits, or if accepting
    /// has to pause. No error ends the loop (accept(2)).
    ///
    /// Who gets a descriptor of the number `ceiling` or more is the last one for now.
    pub(super) fn accept(
        &mut self,
        now: Instant,
        ceiling: RawFd,
    ) -> Option<(Rc<str>, Stream, Address)> {
        let accepted = self.accept_next(now, ceiling);
        if accepted.is_none() && self.is_polling {
            self.close_empty_queues();
        }
        accepted
    }

    fn accept_next(&mut self, now: Instant, ceiling: RawFd) -> Option<(Rc<str>, Stream, Address)> {
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
        if self.draining.as_ref().is_some_and(|draining| draining.left == 0) {
            return None;
        }
        let mut broken = 0;
        for offset in 0..self.polled.len() {
            let index = (self.next + offset) % self.polled.len();
            while self.polled[index].ready {
                if broken == limits::ACCEPTS_PER_TURN {
                    // The others first, in the next turn.
                    self.next = index + 1;
                    return None;
                }
                match self.polled[index].accept() {
                    Ok((stream, peer)) => {
                        if let Some(draining) = &mut self.draining {
                            draining.left -= 1;
                            if let Some(linger) = &mut draining.linger {
                                linger.quiet = now + limits::LEAVING_QUIET;
                            }
                        }
                        self.next = index + 1;
                        let name = Rc::clone(&self.polled[index].name);
                        if stream.as_fd().as_raw_fd() >= ceiling {
                            self.pause = Some(Pause::NoDescriptor(now + limits::ACCEPT_RETRY));
                            self.log_pause(format_args!(
                                "the descriptors that are left are kept for an upgrade"
                            ));
                        }
                        return Some((name, stream, peer));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.polled[index].ready = false;
                        self.pause_logged = false;
                    }
                    // The connection is broken, not the listener: the next one, please.
                    Err(error) if is_ordinary(&error) => {
                        broken += 1;
                        let name = &self.polled[index].name;
                        log::debug!(target: CLIENTS, "accept on \"{name}\": {error}");
                    }
                    // No descriptor (EMFILE, ENFILE) or no memory, or something unheard of. The
                    // connection stays in the queue.
                    Err(error) => {
                        self.pause = Some(Pause::Until(now + limits::ACCEPT_RETRY));
                        let name = Rc::clone(&self.polled[index].name);
                        self.log_pause(format_args!("accept on \"{name}\": {error}"));
                        return None;
                    }
                }
            }
        }
        None
    }

    /// Closes those to which nobody can connect any more and in whose queue nobody waits. They come last
    /// in the table, so that the places of the others stay what they are.
    fn close_empty_queues(&mut self) {
        let is_empty = |it: &Polled| matches!(it.what, What::LastQueue(_)) && !it.ready;
        while self.polled.last().is_some_and(is_empty) {
            self.polled.pop();
        }
    }

    /// The lowest number that is free, which the next descriptor will have.
    fn next_number(&self) -> Option<RawFd> {
        let any = self.polled.first()?.fd();
        any.try_clone().ok().map(|duplicate| duplicate.as_raw_fd())
    }

    fn log_pause(&mut self, reason: std::fmt::Arguments<'_>) {
        if !std::mem::replace(&mut self.pause_logged, true) {
            if let Some(more) = self.pauses.line(Instant::now()) {
                log::warn!(target: CLIENTS, "accepting pauses, and resumes by itself: {reason}{more}");
            }
        }
    }

    /// Begins to let in everybody who waits, before everything is closed for good: whoever has connected
    /// by now is served. Nobody can come to a path that was unlinked before; at a port those who come
    /// meanwhile are let in, too, up to a bound.
    ///
    /// Where other workers stay, so many of them, new ones go to those. Whoever has begun to connect here still
    /// comes, and a listener that is closed in the middle of that is a refusal: so it stays open until nobody has
    /// come for a while.
    pub(super) fn drain(&mut self, registry: &Registry, now: Instant, others: Option<u32>) {
        self.pause(registry);
        let turned = others.is_some_and(|others| self.turn_away(others));
        self.polled.iter_mut().for_each(|polled| {
            polled.ready = matches!(polled.what, What::Listener(_) | What::LastQueue(_));
        });
        let linger = turned.then(|| Linger {
            look: now,
            quiet: now + limits::LEAVING_QUIET,
            end: now + limits::LEAVING,
        });
        self.draining = Some(Draining { left: limits::LAST_ACCEPTS, linger });
    }

    /// Has the kernel give new connections to those who stay. Answers whether it does.
    fn turn_away(&self, others: u32) -> bool {
        let doors = self.polled.iter().filter_map(|polled| match &polled.what {
            What::Listener(door) if door.family == Family::Tcp => Some(door),
            What::Listener(_) | What::LastQueue(_) | What::Watched(_) | What::Unwatched(_) => None,
        });
        let mut turned = false;
        for door in doors {
            match sys::steer_to_the_first(door.fd.as_fd(), others) {
                Ok(()) => turned = true,
                Err(error) => log::warn!("\"{}\": new connections still come: {error}", door.name),
            }
        }
        turned
    }

    /// Looks into the queues again, if it is time to.
    pub(super) fn linger(&mut self, now: Instant) {
        let Some(Draining { linger: Some(linger), .. }) = &mut self.draining else { return };
        if now >= linger.look {
            linger.look = now + limits::LEAVING_LOOK;
            let listeners =
                self.polled.iter_mut().filter(|it| matches!(it.what, What::Listener(_)));
            listeners.for_each(|polled| polled.ready = true);
        }
    }

    /// Whether there are still some to be let in before everything is closed.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Whether everybody was let in, or nobody more can be.
    pub(super) fn is_drained(&self, now: Instant) -> bool {
        let ready = self.polled.iter().any(|polled| polled.ready);
        self.draining.as_ref().is_some_and(|draining| match draining.linger {
            _ if draining.left == 0 => true,
            None => !ready,
            Some(linger) => now >= linger.end || !ready && now >= linger.quiet,
        })
    }

    /// Everybody was let in, or nobody more can be. Answers whether it was draining.
    pub(super) fn end_draining(&mut self, registry: &Registry) -> bool {
        let drained = self.draining.take().is_some();
        if drained {
            self.close(registry);
        }
        drained
    }
}

/// An event for something that was closed or paused meanwhile.
#[derive(Debug)]
pub(super) struct Stale;

impl Polled {
    fn new(name: Rc<str>, what: What) -> Self {
        Self { name, what, ready: false, refused: true }
    }

    fn of(what: What) -> Self {
        let name = match &what {
            What::Listener(door) | What::LastQueue(door) => Rc::clone(&door.name),
            What::Watched(_) | What::Unwatched(_) => "".into(),
        };
        Self::new(name, what)
    }

    fn fd(&self) -> &OwnedFd {
        match &self.what {
            What::Listener(door) | What::LastQueue(door) => &door.fd,
            What::Watched(fd) | What::Unwatched(fd) => fd,
        }
    }

    /// The descriptor to poll, if this one is polled.
    fn descriptor(&self) -> Option<RawFd> {
        match &self.what {
            What::Listener(_) | What::Watched(_) => Some(self.fd().as_raw_fd()),
            What::LastQueue(_) | What::Unwatched(_) => None,
        }
    }

    fn stop(&mut self, registry: &Registry) {
        let was_polled = !std::mem::replace(&mut self.refused, true);
        if let Some(fd) = self.descriptor().filter(|_| was_polled) {
            // It was registered by `poll` and is open, so this does not fail.
            let _ = registry.deregister(&mut SourceFd(&fd));
        }
    }

    fn accept(&self) -> io::Result<(Stream, Address)> {
        match &self.what {
            What::Listener(door) | What::LastQueue(door) => {
                Stream::accept(door.fd.as_fd(), door.family)
            }
            What::Watched(_) | What::Unwatched(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl fmt::Display for Polled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Listener(door) | What::LastQueue(door) => {
                write!(f, "\"{}\" on {}", self.name, door.address)
            }
            What::Watched(_) | What::Unwatched(_) => write!(f, "\"{}\"", self.name),
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
