//! A socket of a session, and what its events have said of it.

use std::io::{self, Read, Write};

use tablecloth::{IoEvent, Stream};

/// A socket. Readiness is edge-triggered (epoll(7)): what an event has said holds until a call finds out that it
/// does no longer.
pub(crate) struct End {
    pub(crate) stream: Stream,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The socket has an error, or had one.
    error: bool,
}

impl End {
    /// Nothing may be read or written before the first event.
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, readable: false, writable: false, error: false }
    }

    pub(crate) fn note(&mut self, event: IoEvent) {
        let broken = event.is_error() || event.is_write_closed();
        self.readable |= event.is_readable() || event.is_read_closed() || broken;
        self.writable |= event.is_writable() || broken;
        self.error |= event.is_error();
    }

    /// The error that an event told of, if it is still there: reading and writing take it, too.
    pub(crate) fn failure(&mut self) -> Option<io::Error> {
        if !std::mem::take(&mut self.error) {
            return None;
        }
        self.stream.take_error().unwrap_or_else(Some)
    }

    /// `None` if there is nothing at present; 0 is the end.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.stream.read(into) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes what the socket takes; 0 if that is nothing at present. A short write has filled it (epoll(7)).
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.stream.write(bytes) {
                Ok(count) => {
                    self.writable &= count == bytes.len();
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Ok(0);
                }
                Err(error) => return Err(error),
            }
        }
    }
}
