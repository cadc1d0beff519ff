//! Letting clients in: from the listeners in turn, with pauses where there is no room, and at the end
//! everybody who still waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Instant;

use mio::Registry;
use nix::libc;

use super::{Held, Listeners, Named, Role};
use crate::CLIENTS;
use crate::address::Address;
use crate::limits;
use crate::stream::Stream;

/// Accepting waits for a descriptor, or for a session to end.
#[derive(Clone, Copy)]
pub(super) enum Pause {
    Until(Instant),
    /// The same, and before the next accept it is found out whether there is one.
    NoDescriptor(Instant),
    Full,
}

impl Listeners {
    /// Whether a connection may wait that can be accepted now.
    pub(crate) fn has_ready(&self) -> bool {
        self.pause.is_none() && self.named.iter().any(|named| named.ready)
    }

    /// When accepting is to be tried again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.pause {
            Some(Pause::Until(deadline) | Pause::NoDescriptor(deadline)) => Some(deadline),
            Some(Pause::Full) | None => self.poll_again,
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

    /// Tries again to poll what epoll has refused, if the time for that has come.
    pub(crate) fn poll_those_refused(&mut self, registry: &Registry, now: Instant) {
        if self.poll_again.is_some_and(|at| now >= at) {
            self.poll(registry, now);
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
        let accepted = self.accept_next(now, ceiling);
        if accepted.is_none() && self.polled {
            self.close_empty_rests();
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
        if let Some(left) = &mut self.draining {
            *left = left.checked_sub(1)?;
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
                        let name = &self.named[index].name;
                        log::debug!(target: CLIENTS, "accept on \"{name}\": {error}");
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

    /// Closes those to which nobody can connect any more and in whose queue nobody waits. They come last
    /// in the table, so that the places of the others stay what they are.
    fn close_empty_rests(&mut self) {
        let is_empty = |named: &Named| named.role == Role::Rest && !named.ready;
        while self.named.last().is_some_and(is_empty) {
            self.named.pop();
        }
    }

    /// The lowest number that is free, which the next descriptor will have.
    fn next_number(&self) -> Option<RawFd> {
        let any = self.named.first()?.held.as_fd();
        any.try_clone_to_owned().ok().map(|duplicate| duplicate.as_raw_fd())
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
    pub(crate) fn drain(&mut self, registry: &Registry) {
        self.pause(registry);
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
            self.close(registry);
            log::info!("stop listening.");
        }
        drained
    }
}

impl Named {
    fn accept(&self) -> io::Result<(Stream, Address)> {
        match &self.held {
            Held::Listener { fd, family } => Stream::accept(fd.as_fd(), *family),
            Held::Passive { .. } => Err(io::ErrorKind::WouldBlock.into()),
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
