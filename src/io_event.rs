//! What happened to a socket.

use std::fmt;

/// What the kernel said of a socket since the last event: facts that may be out of date, and never
/// a promise. The call that reads or writes decides.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct IoEvent {
    bits: u8,
}

const READABLE: u8 = 1;
const WRITABLE: u8 = 2;
const READ_CLOSED: u8 = 4;
const WRITE_CLOSED: u8 = 8;
const ERROR: u8 = 16;

impl IoEvent {
    /// An event that says readable, and nothing else.
    #[must_use]
    pub const fn readable() -> Self {
        Self { bits: READABLE }
    }

    /// An event that says writable, and nothing else.
    #[must_use]
    pub const fn writable() -> Self {
        Self { bits: WRITABLE }
    }

    pub(crate) fn from_mio(event: &mio::event::Event) -> Self {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        Self {
            bits: bit(event.is_readable(), READABLE)
                | bit(event.is_writable(), WRITABLE)
                | bit(event.is_read_closed(), READ_CLOSED)
                | bit(event.is_write_closed(), WRITE_CLOSED)
                | bit(event.is_error(), ERROR),
        }
    }

    /// There may be bytes to read, or the end of the stream.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        self.bits & READABLE != 0
    }

    /// There may be room to write.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.bits & WRITABLE != 0
    }

    /// The peer will send no more; there may be bytes before the end.
    #[must_use]
    pub const fn is_read_closed(self) -> bool {
        self.bits & READ_CLOSED != 0
    }

    /// Both directions are closed, or the peer has reset the connection.
    #[must_use]
    pub const fn is_write_closed(self) -> bool {
        self.bits & WRITE_CLOSED != 0
    }

    /// The socket has an error to report.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.bits & ERROR != 0
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.bits |= other.bits;
    }
}

impl fmt::Debug for IoEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoEvent")
            .field("readable", &self.is_readable())
            .field("writable", &self.is_writable())
            .field("read_closed", &self.is_read_closed())
            .field("write_closed", &self.is_write_closed())
            .field("error", &self.is_error())
            .finish()
    }
}
