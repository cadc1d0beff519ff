//! What happened to a socket.

use std::fmt;

use crate::limits;

/// What the kernel said of a session's sockets since the last event: facts that may be out of date,
/// and never a promise. The call that reads or writes decides.
///
/// Asked directly it speaks of the session's first socket, the one that was accepted; of the others
/// by [`IoEvent::of`].
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct IoEvent {
    /// Eight for each source.
    bits: u32,
}

const READABLE: u32 = 1;
const WRITABLE: u32 = 2;
const READ_CLOSED: u32 = 4;
const WRITE_CLOSED: u32 = 8;
const ERROR: u32 = 16;
/// Of the session, and not of a socket.
const TIMEOUT: u32 = 32;
const URGENT: u32 = 64;
/// Of the session, too.
const WOKEN: u32 = 128;
const SOURCE_BITS: u32 = 8;
/// Of every source.
const EACH_WRITABLE: u32 = u32::from_ne_bytes([WRITABLE as u8; 4]);

/// Every source has its bits.
const _: () = assert!(limits::SOURCES as u32 * SOURCE_BITS <= u32::BITS);

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

    /// The session's time has come.
    pub(crate) const fn timeout() -> Self {
        Self { bits: TIMEOUT }
    }

    /// Somebody has woken the session.
    pub(crate) const fn woken() -> Self {
        Self { bits: WOKEN }
    }

    /// What mio reports of the socket that is its session's `source`, for a loop of one's own.
    #[must_use]
    pub fn from_mio(event: &mio::event::Event, source: u8) -> Self {
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        let bits = bit(event.is_readable(), READABLE)
            | bit(event.is_writable(), WRITABLE)
            | bit(event.is_read_closed(), READ_CLOSED)
            | bit(event.is_write_closed(), WRITE_CLOSED)
            | bit(event.is_error(), ERROR)
            | bit(event.is_priority(), URGENT);
        Self { bits: bits.checked_shl(u32::from(source) * SOURCE_BITS).unwrap_or(0) }
    }

    /// What happened to the socket that was attached as `source`; 0 is the accepted one.
    #[must_use]
    pub const fn of(self, source: u8) -> Self {
        let shift = source as u32 * SOURCE_BITS;
        if shift >= u32::BITS {
            return Self { bits: 0 };
        }
        Self { bits: (self.bits >> shift) & ((1 << SOURCE_BITS) - 1) }
    }

    /// The time has come that [`Context::wake_at`](crate::Context::wake_at) was asked for.
    #[must_use]
    pub const fn is_timeout(self) -> bool {
        self.bits & TIMEOUT != 0
    }

    /// Somebody has [woken](crate::Context::wake) the session.
    #[must_use]
    pub const fn is_woken(self) -> bool {
        self.bits & WOKEN != 0
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

    /// There is urgent data (tcp(7)). A read stops in front of it, so that a short read does not mean
    /// that the socket is empty.
    #[must_use]
    pub const fn is_urgent(self) -> bool {
        self.bits & URGENT != 0
    }

    /// Nothing else has happened than that some of the sockets may have room.
    pub(crate) const fn is_room_alone(self) -> bool {
        self.bits & !EACH_WRITABLE == 0
    }

    /// Adds what another event says.
    pub fn merge(&mut self, other: Self) {
        self.bits |= other.bits;
    }
}

impl fmt::Debug for IoEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sources = f.debug_struct("IoEvent");
        for (source, name) in (0..).zip(["first", "second", "third", "fourth"]) {
            let of = self.of(source);
            let words = [
                (of.is_readable(), "readable"),
                (of.is_writable(), "writable"),
                (of.is_read_closed(), "read closed"),
                (of.is_write_closed(), "write closed"),
                (of.is_error(), "error"),
                (of.is_urgent(), "urgent"),
                (of.is_timeout(), "timeout"),
                (of.is_woken(), "woken"),
            ];
            let words: Vec<_> = words.into_iter().filter(|(on, _)| *on).map(|(_, w)| w).collect();
            if !words.is_empty() {
                sources.field(name, &words);
            }
        }
        sources.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_of_a_session_are_told_apart() {
        let mut event = IoEvent::readable();
        event.merge(IoEvent { bits: WRITABLE << SOURCE_BITS });
        event.merge(IoEvent::timeout());
        assert!(event.is_readable() && !event.is_writable() && event.is_timeout());
        let second = event.of(1);
        assert!(second.is_writable() && !second.is_readable() && !second.is_timeout());
        assert_eq!(event.of(2), IoEvent::default());
        assert_eq!(event.of(u8::MAX), IoEvent::default());
        let text = r#"IoEvent { first: ["readable", "timeout"], second: ["writable"] }"#;
        assert_eq!(format!("{event:?}"), text);
    }
}
