//! The relay: bytes between two sockets, in both directions.
//!
//! A [`Relay`] owns two streams, each of them TCP or Unix, and is told what happened to them; it
//! needs no server and no clock. It reads and writes in the same turn, through buffers that all relays
//! share ([`Pool`]): an idle relay holds none. Small messages it may read first and write when its
//! neighbours have read theirs, too ([`Turn::Flush`]). What the other side does not take is kept, and
//! then nothing more is read in that direction until it is gone, which is what makes the sender wait.
//!
//! What it passes on beside bytes: the end of a stream, in each direction by itself, once every byte
//! before it was written; and a reset, once what its side had said before is with the other side. Urgent
//! data (tcp(7)) is not passed on.
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
    /// A side has broken off, and what it said before is on its way to the other one.
    breaking: Option<Box<Breaking>>,
    /// When a byte was moved last; when it began to connect, before there was one.
    active: Instant,
    /// Its deadline may be an earlier one than it was.
    hastened: bool,
}

/// How a side broke off.
#[derive(Debug)]
struct Breaking {
    by: Side,
    error: io::Error,
    /// When it is looked at next whether all was sent that the other side is to have before it hears of
    /// that; `None` as long as there is something to be read or written.
    look: Option<Instant>,
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
    /// The same, when one direction has come to its end and the other one has not. `None` is as long as
    /// [`Patience::idle`], and otherwise the shorter one of both counts.
    pub half_closed: Option<Duration>,
}

impl Default for Patience {
    /// 5 s for the connection, for ever for the next byte, and 5 minutes for it when a direction has
    /// come to its end.
    fn default() -> Self {
        let half_closed = Some(Duration::from_secs(300));
        Self { connect: Duration::from_secs(5), idle: None, half_closed }
    }
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
#[non_exhaustive]
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
    /// Nothing came for longer than [`Patience::idle`]. Both sides are reset.
    Idle,
    /// Nothing came for longer than [`Patience::half_closed`]. Both sides are reset.
    HalfClosed,
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
        let was_connecting = self.connecting;
        if was_connecting {
            if let Some(turn) = self.connect(now, patience) {
                return turn;
            }
        }
        let turn = self.pass_on(now, true, pool);
        // A client that seemed to have something to say, and has only ended.
        if was_connecting && self.forward.moved == 0 && self.forward.kept.is_none() {
            self.upstream.stream.expect_no_write();
        }
        // Last, so that a byte that came together with the deadline wins.
        let waits = matches!(turn, Turn::Wait) && event.is_timeout();
        if waits && self.deadline(patience).is_some_and(|deadline| deadline <= now) {
            if let Some(breaking) = self.breaking.take() {
                return self.break_off(breaking.by, breaking.error);
            }
            // An end of the stream would make half of something look whole.
            self.reset();
            let idle = patience.idle.and_then(|idle| self.active.checked_add(idle));
            let is_idle = idle.is_some_and(|deadline| deadline <= now);
            return Turn::Over(if is_idle { Ending::Idle } else { Ending::HalfClosed });
        }
        turn
    }

    /// Writes what [`Relay::turn`] has read, after it has answered [`Turn::Flush`].
    pub fn flush(&mut self, now: Instant, pool: &mut Pool) -> Turn {
        self.pass_on(now, false, pool)
    }

    /// Moves what can be moved by now, in both directions, or defers the writing of what is small.
    fn pass_on(&mut self, now: Instant, mut defer: bool, pool: &mut Pool) -> Turn {
        let (before, was_half_closed) = (self.moved(), self.is_half_closed());
        let left = loop {
            match self.carry(defer, pool) {
                Ok(left) => break left,
                // At most twice: a side that has broken off is neither read nor written any more.
                Err((side, broken)) => self.lose(side, broken),
            }
            // What was deferred is to be on its way before the reset is.
            defer = false;
        };
        if self.moved() != before {
            self.active = now;
        }
        self.hastened |= !was_half_closed && self.is_half_closed();
        match left {
            _ if self.forward.over && self.back.over => self.end(now),
            Left::Nothing => Turn::Wait,
            Left::Flush => Turn::Flush,
            Left::More => Turn::Again,
        }
    }

    /// When [`Relay::turn`] has to be called with a timeout at the latest: until it is connected
    /// [`Patience::connect`] counts, and then [`Patience::idle`] and [`Patience::half_closed`]. Ask when it
    /// is made, when the last answer has passed, and when it [hastens](Relay::hastens); otherwise it
    /// only moves on, with every byte.
    #[must_use]
    pub fn deadline(&self, patience: Patience) -> Option<Instant> {
        if let Some(next) = self.upstream.stream.queues_until() {
            let last = self.active.checked_add(patience.connect);
            return Some(last.map_or(next, |last| next.min(last)));
        }
        let patience = match &self.breaking {
            _ if self.connecting => Some(patience.connect),
            Some(breaking) if breaking.look.is_some() => return breaking.look,
            Some(_) => Some(limits::RELAY_LAST_WAIT),
            None if self.is_half_closed() => {
                patience.idle.into_iter().chain(patience.half_closed).min()
            }
            None => patience.idle,
        };
        self.active.checked_add(patience?)
    }

    /// Whether [`Relay::deadline`] may have become an earlier one since the last call.
    pub fn hastens(&mut self) -> bool {
        std::mem::take(&mut self.hastened)
    }

    fn is_half_closed(&self) -> bool {
        self.forward.ended || self.back.ended
    }

    /// Takes another upstream in place of the one that could not be connected to.
    pub fn reconnect(&mut self, upstream: Stream, now: Instant) {
        // It has the same token as the new one: a process that is being spawned still has it, and
        // nothing more may be heard of it.
        self.upstream.stream.deregister();
        self.upstream = End::new(upstream);
        self.connecting = true;
        self.active = now;
        self.hastened = true;
    }

    /// Has both connections reset when the relay is dropped.
    pub fn reset(&self) {
        // Fails for a socket that is gone anyway.
        let _ = self.downstream.stream.reset_on_close();
        let _ = self.upstream.stream.reset_on_close();
    }

    /// Whether the upstream is a Unix listener whose queue is full: it is asked for a place now and then.
    /// Such a relay cannot move.
    #[must_use]
    pub fn is_queueing(&self) -> bool {
        self.upstream.stream.queues_until().is_some()
    }

    /// Looks after both peers, by [`Stream::keep_alive`].
    pub fn keep_alive(&self, after: Option<Duration>) {
        // Fails for a socket that is gone anyway.
        let _ = self.downstream.stream.keep_alive(after);
        let _ = self.upstream.stream.keep_alive(after);
    }

    /// Whether there is nothing to be done before one of the peers says something, for
    /// [`Context::wait_for_peer`](crate::Context::wait_for_peer).
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let is_idle = |way: &Way| way.kept.is_none() && way.ended == way.over;
        let is_settled = !self.connecting && self.breaking.is_none();
        is_settled && is_idle(&self.forward) && is_idle(&self.back)
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
        if self.upstream.stream.queues_until().is_some() {
            // What events say of a socket that is not connected yet is nothing.
            match self.upstream.queue_up(now) {
                Ok(()) => self.hastened = true,
                Err(error) => return Some(Turn::NotConnected(error)),
            }
        }
        if let Some(error) = self.upstream.failure() {
            return Some(Turn::NotConnected(error));
        }
        if self.upstream.is_writable() {
            self.connecting = false;
            self.active = now;
            // Another patience counts from here on.
            self.hastened = true;
            return None;
        }
        // Nobody is left to connect for.
        if let Some(error) = self.downstream.failure() {
            return Some(self.break_off(Side::Downstream, error));
        }
        if self.deadline(patience).is_some_and(|deadline| deadline <= now) {
            return Some(Turn::NotConnected(io::ErrorKind::TimedOut.into()));
        }
        Some(Turn::Wait)
    }

    fn break_off(&self, by: Side, error: io::Error) -> Turn {
        self.reset();
        Turn::Over(Ending::Reset { by, error })
    }

    /// A side has broken off. What it said before is passed on, and nothing more reaches it.
    fn lose(&mut self, by: Side, broken: Broken) {
        let (to, from, end) = match by {
            Side::Downstream => (&mut self.back, &mut self.forward, &mut self.downstream),
            Side::Upstream => (&mut self.forward, &mut self.back, &mut self.upstream),
        };
        to.give_up();
        let error = match broken {
            Broken::Source(error) => {
                from.ended = true;
                error
            }
            Broken::Sink(error) => {
                end.read_out();
                error
            }
        };
        self.breaking.get_or_insert_with(|| Box::new(Breaking { by, error, look: None }));
        self.hastened = true;
    }

    /// Both directions are over. The reset by which a side broke off waits until everything was sent that
    /// it said before: what was not is thrown away with the reset.
    fn end(&mut self, now: Instant) -> Turn {
        let Some(breaking) = &mut self.breaking else { return Turn::Over(Ending::Finished) };
        let other = match breaking.by {
            Side::Downstream => &self.upstream,
            Side::Upstream => &self.downstream,
        };
        let last = self.active.checked_add(limits::RELAY_LAST_WAIT);
        if last.is_some_and(|last| now < last) && other.stream.has_unsent() {
            breaking.look = now.checked_add(limits::RELAY_LAST_LOOK).min(last);
            self.hastened = true;
            return Turn::Wait;
        }
        match self.breaking.take() {
            Some(breaking) => self.break_off(breaking.by, breaking.error),
            None => Turn::Over(Ending::Finished),
        }
    }

    fn carry(&mut self, defer: bool, pool: &mut Pool) -> Result<Left, (Side, Broken)> {
        use Side::{Downstream, Upstream};
        let Self { downstream, upstream, forward, back, .. } = self;
        let (mut left, mut left_back) = (Left::Nothing, Left::Nothing);
        // Mostly the flush is all there is to do, or there is something in one of them only.
        forward.flush(upstream, pool).map_err(|error| (Upstream, Broken::Sink(error)))?;
        if forward.may_move(downstream, upstream) {
            left = forward
                .carry(downstream, upstream, share(back), back.over, defer, pool)
                .map_err(|broken| broken.of(Downstream, Upstream))?;
        }
        back.flush(downstream, pool).map_err(|error| (Downstream, Broken::Sink(error)))?;
        if back.may_move(upstream, downstream) {
            left_back = back
                .carry(upstream, downstream, share(forward), forward.over, defer, pool)
                .map_err(|broken| broken.of(Upstream, Downstream))?;
        }
        // What was read is on its way, or will be before the reset, and what was not read yet as well. A
        // side that is not read at present must not hide that it is gone.
        for (end, side) in [(downstream, Downstream), (upstream, Upstream)] {
            if let Some(error) = end.failure() {
                return Err((side, Broken::Sink(error)));
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
    fn of(self, from: Side, to: Side) -> (Side, Self) {
        match self {
            Self::Source(_) => (from, self),
            Self::Sink(_) => (to, self),
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
            Self::HalfClosed => f.write_str("half-closed for too long"),
        }
    }
}
