//! The pipe through which large reads go: from one socket to the other by reference, not copied
//! (splice(2)).
//!
//! All relays of a process share one, because it is empty whenever one of them is done with it:
//! what the sink does not take comes out again and is kept like everything else, so that a relay
//! owns no descriptors besides its sockets, and nothing lies where it could not be packed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::libc::SIGPIPE;
use nix::unistd::{pipe2, read};

use crate::limits;
use crate::sys;

const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_NONBLOCK.union(SpliceFFlags::SPLICE_F_MOVE);

#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    /// `None` if there is none to be had, or if SIGPIPE would end the program: splice(2), unlike
    /// send(2), cannot be told not to raise it. Rust's runtime ignores it from the start.
    pub(super) fn new() -> Option<Self> {
        if sys::is_at_its_default(SIGPIPE) {
            return None;
        }
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        // A pipe has room for a number of pieces (pipe(7)), which may be small ones. That it has no
        // more of it than by default is not an error: it is filled again.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(limits::RELAY_PIPE_BYTES));
        Some(Self { reader, writer })
    }

    /// Moves what a socket has into the empty pipe. 0 may be the end of the stream, or urgent data with
    /// the end behind it. Less than was wanted does not mean that the socket has no more.
    pub(super) fn fill(&self, from: impl AsFd, wanted: usize) -> io::Result<usize> {
        Ok(splice(from, None, &self.writer, None, wanted, FLAGS)?)
    }

    /// Moves what the pipe has into a socket. Less than was wanted does not mean that it is full: a
    /// signal ends the call between two pieces.
    pub(super) fn drain(&self, to: impl AsFd, count: usize) -> io::Result<usize> {
        Ok(splice(&self.reader, None, to, None, count, FLAGS)?)
    }

    /// Takes what is left out of it, which is as much as `buffer`.
    pub(super) fn take(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut taken = 0;
        while taken < buffer.len() {
            match read(&self.reader, &mut buffer[taken..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => taken += read,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
