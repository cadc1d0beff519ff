//! How a relay begins: with a client, and what it has said before there is an upstream.

use std::io::{self, Read, Write};
use std::time::Instant;

use super::Relay;
use super::pool::Pool;
use super::way::{End, Way};
use crate::limits;
use crate::stream::Stream;

/// A client, and what it has said by now, while its upstream is being chosen ([`Relay::open`]).
///
/// Most clients speak first, and their first bytes are there when they are accepted. Read before the
/// upstream is connected to, they ride on the connection's handshake, or go out as soon as connect(2)
/// has returned.
#[derive(Debug)]
pub struct Opening<'a> {
    downstream: Stream,
    /// Its scratch buffer has the bytes.
    pool: &'a mut Pool,
    bytes: usize,
    /// So many of them were written.
    written: usize,
}

impl Relay {
    /// Begins with an accepted stream, and reads what the client has sent by now. `first` is what the
    /// upstream is told before that, at most 60 KiB; it is empty for most.
    ///
    /// # Errors
    ///
    /// The client's own: it is gone already.
    pub fn open<'a>(
        mut downstream: Stream,
        first: &[u8],
        pool: &'a mut Pool,
    ) -> io::Result<Opening<'a>> {
        let may_keep = pool.has_room(limits::RELAY_OPENING_BYTES);
        let Some((said, room)) = pool.scratch.split_at_mut_checked(first.len()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        said.copy_from_slice(first);
        let wanted = room.len().min(limits::RELAY_OPENING_BYTES);
        // The end of the stream is read again when its event has told of it.
        let read = match may_keep {
            true => nothing_if_it_would_wait(downstream.read(&mut room[..wanted]))?,
            false => 0,
        };
        let bytes = first.len() + read;
        Ok(Opening { downstream, pool, bytes, written: 0 })
    }
}

impl Opening<'_> {
    /// Whether there are bytes for the upstream, for
    /// [`Context::connect_to_send`](crate::Context::connect_to_send).
    #[must_use]
    pub fn has_bytes(&self) -> bool {
        self.bytes > 0
    }

    /// Writes the bytes to a stream that is connecting, if it can be connected by now: over loopback,
    /// and between Unix sockets, it mostly is when connect(2) has returned. The relay is then to be
    /// made [to](Opening::to) this stream.
    ///
    /// # Errors
    ///
    /// An error says that no byte was written, because it could not be connected to, or was broken off
    /// at once. The stream is deregistered then; another one may be tried.
    pub fn send(&mut self, upstream: &mut Stream) -> io::Result<()> {
        let is_queueing = upstream.queues_until().is_some();
        if !upstream.is_local() || is_queueing || self.written > 0 || self.bytes == 0 {
            return Ok(());
        }
        match nothing_if_it_would_wait(upstream.write(&self.pool.scratch[..self.bytes])) {
            Ok(written) => {
                self.written = written;
                Ok(())
            }
            Err(error) => {
                // The next one has the same token.
                upstream.deregister();
                Err(error)
            }
        }
    }

    /// The relay to the stream that the bytes were [sent](Opening::send) to, or, if they were not, to
    /// any one that is connecting.
    #[must_use]
    pub fn to(self, upstream: Stream, now: Instant) -> Relay {
        let Self { downstream, pool, bytes, written } = self;
        let kept = pool.keep_scratch(written, bytes);
        Relay {
            downstream: End::new(downstream),
            upstream: End::new(upstream),
            forward: Way { kept, moved: written as u64, ..Way::default() },
            back: Way::default(),
            // What has taken bytes is connected.
            connecting: written == 0,
            breaking: None,
            active: now,
            hastened: true,
        }
    }

    /// Has the client's connection reset, because there is no upstream for it.
    pub fn reset(self) {
        // Fails for a socket that is gone anyway.
        let _ = self.downstream.reset_on_close();
    }
}

/// An interrupted call has done nothing either, and the event that repeats it is still to come.
fn nothing_if_it_would_wait(result: io::Result<usize>) -> io::Result<usize> {
    use io::ErrorKind::{Interrupted, WouldBlock};
    match result {
        Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => Ok(0),
        result => result,
    }
}
