//! The relay: bytes between two sockets, in both directions.
//!
//! A [`Relay`] owns two streams, each of them TCP or Unix, and is told what happened to them; it
//! needs no server and no clock. It reads and writes in the same turn, through buffers that all relays
//! share ([`Pool`]): an idle relay holds none. Small messages it may read first and write when its
//! neighbours have read theirs, too ([`Turn::Flush`]). What the other side does not take is kept, and
//! then nothing more is read in that direction until it is gone, which is what makes the sender wait.
//!
//! What it passes on beside bytes: the end of a stream, in each direction by itself, once every byte
//! before it was written; and a reset, at once. Urgent data (tcp(7)) is not passed on.
//!
//! `opening` is how a relay begins, `way` is one direction, `pipe` the way of large reads, which are not
//! copied; `state` is how a relay moves to another process.

mod opening;
mod pipe;
mod pool;
mod state;
#[cfg(test)]
mod tests;
mod way;

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

pub use opening::Opening;
pub use pool::Pool;
pub use state::SCHEMA;

use crate::io_event::IoEvent;
use crate::limits;
use crate::stream::Stream;
use way::{Broken, End, Left, Way};

/// Two streams, and what is on its way between them. It begins with a client ([`Relay::open`]).
///
/// The downstream one is its session's source 0, the upstream one its source 1
/// ([`Context::connect`](crate::Context::connect)); both are registered already, and
/// [`Relay::turn`] is called with each of their events.
#[derive(Debug)]
pub struct Relay {
    downstream: End,
    upstream: End,
    forward: Way,
    back: Way,
    connecting: bool,
    /// When a byte was moved last; when it began to connect, before there was one.
    active: Instant,
}

/// One of a relay's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Towards the client.
    Downstream,
    /// Towards the server.
    Upstream,
}

/// How long a relay may take for what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For the upstream connection to be made.
    pub connect: Duration,
    /// For the next byte, in whichever direction. `None` is for ever.
    pub idle: Option<Duration>,
}

/// What a relay wants after a turn.
#[derive(Debug)]
pub enum Turn {
    /// The next event of one of its streams, or [`Relay::deadline`].
    Wait,
    /// To be flushed: it has read something small, and [`Relay::flush`] writes it, in this turn, when
    /// others have read, too. Another turn does so as well.
    Flush,
    /// Another turn, without waiting, once the others had theirs.
    Again,
    /// Another upstream: this one could not be connected to, or not in time. No byte was written to
    /// it. Give it one by [`Relay::reconnect`], or end it by [`Relay::reset`].
    NotConnected(io::Error),
    /// To be dropped, which closes both streams as they should be closed.
    Over(Ending),
}

/// How a relay ended.
#[derive(Debug)]
pub enum Ending {
    /// Both directions have come to their end.
    Finished,
    /// One side broke off, and the other one is reset.
    Reset {
        /// Who broke off.
        by: Side,
        /// The system's answer.
        error: io::Error,
    },
    /// Nothing came for longer than [`Patience::idle`].
    Idle,
}

impl Relay {
    /// Moves what can be moved, after an event of one of the streams, or several.
    pub fn turn(
        &mut self,
        event: IoEvent,
        now: Instant,
        patience: Patience,
        pool: &mut Pool,
    ) -> Turn {
        self.downstream.note(event.of(0));
        self.upstream.note(event.of(1));
        if self.connecting {
            if let Some(turn) = self.connect(now, patience) {
                return turn;
            }
        }
        let turn = self.pass_on(now, true, pool);
        // Last, so that a byte that came together with the deadline wins.
        let waits = matches!(turn, Turn::Wait) && event.is_timeout();
        if waits && self.deadline(patience).is_some_and(|deadline| deadline <= now) {
            return Turn::Over(Ending::Idle);
        }
        turn
    }

    /// Writes what [`Relay::turn`] has read, after it has answered [`Turn::Flush`].
    pub fn flush(&mut self, now: Instant, pool: &mut Pool) -> Turn {
        self.pass_on(now, false, pool)
    }

    /// Moves what can be moved by now, in both directions, or defers the writing of what is small.
    fn pass_on(&mut self, now: Instant, defer: bool, pool: &mut Pool) -> Turn {
        let before = self.moved();
        let left = match self.carry(defer, pool) {
            Ok(left) => left,
            Err(broken) => {
                // What was read and deferred would be on its way if it had not been. A side that is
                // gone takes nothing.
                let Self { downstream, upstream, forward, back, .. } = self;
                let _ = forward.flush(upstream, pool);
                let _ = back.flush(downstream, pool);
                return self.break_off(broken);
            }
        };
        if self.moved() != before {
            self.active = now;
        }
        match left {
            _ if self.forward.over && self.back.over => Turn::Over(Ending::Finished),
            Left::Nothing => Turn::Wait,
            Left::Flush => Turn::Flush,
            Left::More => Turn::Again,
        }
    }

    /// When [`Relay::turn`] has to be called with a timeout at the latest: until it is connected
    /// [`Patience::connect`] counts, and then [`Patience::idle`]. Ask when it is made, when it ceases
    /// to [be connecting](Relay::is_connecting), and when the last answer has passed: in between it
    /// only moves on, with every byte.
    #[must_use]
    pub fn deadline(&self, patience: Patience) -> Option<Instant> {
        let patience = if self.connecting { Some(patience.connect) } else { patience.idle };
        self.active.checked_add(patience?)
    }

    /// Takes another upstream in place of the one that could not be connected to.
    pub fn reconnect(&mut self, upstream: Stream, now: Instant) {
        // It has the same token as the new one: a process that is being spawned still has it, and
        // nothing more may be heard of it.
        self.upstream.stream.deregister();
        self.upstream = End::new(upstream);
        self.connecting = true;
        self.active = now;
    }

    /// Has both connections reset when the relay is dropped.
    pub fn reset(&self) {
        // Fails for a socket that is gone anyway.
        let _ = self.downstream.stream.reset_on_close();
        let _ = self.upstream.stream.reset_on_close();
    }

    /// Whether the upstream connection is still to be made.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        self.connecting
    }

    /// Whether there are bytes for the upstream, as far as is known, for
    /// [`Context::connect_to_send`](crate::Context::connect_to_send).
    #[must_use]
    pub fn has_bytes_to_send(&self) -> bool {
        self.forward.kept.is_some() || self.downstream.is_readable()
    }

    /// Bytes that were written: upstream, and downstream.
    #[must_use]
    pub fn moved(&self) -> (u64, u64) {
        (self.forward.moved, self.back.moved)
    }

    /// Bytes that were read and not yet written: towards the upstream, and towards the client.
    #[must_use]
    pub fn kept(&self) -> (usize, usize) {
        (self.forward.kept_bytes(), self.back.kept_bytes())
    }

    /// Until the connection is made, or not.
    fn connect(&mut self, now: Instant, patience: Patience) -> Option<Turn> {
        if let Some(error) = self.upstream.failure() {
            return Some(Turn::NotConnected(error));
        }
        if self.upstream.is_writable() {
            self.connecting = false;
            self.active = now;
            return None;
        }
        // Nobody is left to connect for.
        if let Some(error) = self.downstream.failure() {
            return Some(self.break_off((Side::Downstream, error)));
        }
        if self.deadline(patience).is_some_and(|deadline| deadline <= now) {
            return Some(Turn::NotConnected(io::ErrorKind::TimedOut.into()));
        }
        Some(Turn::Wait)
    }

    fn break_off(&self, (by, error): (Side, io::Error)) -> Turn {
        self.reset();
        Turn::Over(Ending::Reset { by, error })
    }

    fn carry(&mut self, defer: bool, pool: &mut Pool) -> Result<Left, (Side, io::Error)> {
        use Side::{Downstream, Upstream};
        let Self { downstream, upstream, forward, back, .. } = self;
        let (mut left, mut left_back) = (Left::Nothing, Left::Nothing);
        // Mostly the flush is all there is to do, or there is something in one of them only.
        forward.flush(upstream, pool).map_err(|error| (Upstream, error))?;
        if forward.may_move(downstream, upstream) {
            left = forward
                .carry(downstream, upstream, share(back), back.over, defer, pool)
                .map_err(|broken| broken.of(Downstream, Upstream))?;
        }
        back.flush(downstream, pool).map_err(|error| (Downstream, error))?;
        if back.may_move(upstream, downstream) {
            left_back = back
                .carry(upstream, downstream, share(forward), forward.over, defer, pool)
                .map_err(|broken| broken.of(Upstream, Downstream))?;
        }
        // What was read is on its way, or will be before the reset; what was not is lost by it,
        // as it would be without a relay. A side that is not read at present must not hide it.
        for (end, side) in [(downstream, Downstream), (upstream, Upstream)] {
            if let Some(error) = end.failure() {
                return Err((side, error));
            }
        }
        Ok(left.max(left_back))
    }
}

/// What may be read in one direction, in bytes, so that both together can be packed.
fn share(other: &Way) -> usize {
    limits::RELAY_READ_BYTES.saturating_sub(other.kept_bytes()).max(limits::RELAY_LEAST_BYTES)
}

impl Broken {
    fn of(self, from: Side, to: Side) -> (Side, io::Error) {
        match self {
            Self::Source(error) => (from, error),
            Self::Sink(error) => (to, error),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Downstream => "client",
            Self::Upstream => "upstream",
        })
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("finished"),
            Self::Reset { by, error } => write!(f, "broken off by the {by}: {error}"),
            Self::Idle => f.write_str("idle for too long"),
        }
    }
}
