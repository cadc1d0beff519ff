//! Any descriptor that can be polled, as one of a session's sources.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

/// A descriptor that is no [`Stream`](crate::Stream) and can be polled all the same (epoll(7)): a pipe, a timer
/// (timerfd_create(2)), an event counter (eventfd(2)), a process (pidfd_open(2)), a datagram socket. A session
/// [attaches](crate::Context::attach_pollable) it, and owns it.
///
/// Its readiness is edge-triggered and for both directions: after an event, read or write until
/// [`io::ErrorKind::WouldBlock`]. It must not block: that is a flag of the open file description, which is shared with
/// every duplicate (fcntl(2)), and it is left to whoever has made the descriptor.
///
/// Dropping it takes it out of the loop and closes it. To have it move, give it away by [`Pollable::into_fd`], as one of
/// [`Packed::descriptors`](field@crate::Packed::descriptors), and attach it again where it arrives.
#[derive(Debug)]
pub struct Pollable {
    fd: Option<OwnedFd>,
    registry: Option<Rc<Registry>>,
}

impl Pollable {
    /// One that is not attached yet.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd: Some(fd), registry: None }
    }

    /// Gives the descriptor away. This loop hears nothing of it any more.
    ///
    /// # Panics
    ///
    /// Never: the descriptor is there until this or the end.
    #[must_use]
    #[allow(clippy::expect_used, reason = "nothing but this takes it, and this takes `self`")]
    pub fn into_fd(mut self) -> OwnedFd {
        self.deregister();
        self.fd.take().expect("there until now")
    }

    pub(crate) fn register(&mut self, registry: &Rc<Registry>, token: Token) -> io::Result<()> {
        self.deregister();
        let all = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        registry.register(&mut SourceFd(&self.as_raw_fd()), token, all)?;
        self.registry = Some(Rc::clone(registry));
        Ok(())
    }

    /// The registration belongs to the open file description and not to the descriptor: a duplicate would go on
    /// causing events (epoll(7)).
    fn deregister(&mut self) {
        if let (Some(registry), Some(fd)) = (self.registry.take(), &self.fd) {
            // It was registered, and is open.
            let _ = registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
    }
}

impl Drop for Pollable {
    fn drop(&mut self) {
        self.deregister();
    }
}

#[allow(clippy::expect_used, reason = "only `into_fd` takes it, and nobody has `self` after that")]
impl AsFd for Pollable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("there until the end").as_fd()
    }
}

impl AsRawFd for Pollable {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
