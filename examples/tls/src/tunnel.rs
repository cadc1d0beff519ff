//! Bytes between a client, by TLS, and an upstream, in the clear.
//!
//! It ends, waits and breaks off as the library's relay does, and says so in the same words
//! ([`tablecloth::relay`]). Between the two there is a handshake at the beginning, and an end that is said and not
//! only happens.

use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::{Duration, Instant};

use s2n_tls::config::Config;
use tablecloth::limits;
use tablecloth::relay::{Ending, Patience, Side};
use tablecloth::{IoEvent, Stream};

use super::callbacks::READ_BYTES;
use super::channel::{Channel, Handshake, RECORD_BYTES, Read};
use super::end::End;
use super::rest::Rest;

/// How long a session has nothing to say before its connection sleeps. To be waked costs a tenth of a millisecond.
const SLEEPS_AFTER: Duration = Duration::from_secs(10);

/// What all sessions of a process share: a buffer of plaintext, and the bound on what they may keep.
pub(crate) struct Pool {
    plain: Box<[u8]>,
    /// What connections are waked with whose handshake is over.
    moved: Config,
    bound: usize,
    used: Rc<Cell<usize>>,
}

impl Pool {
    pub(crate) fn new(bound: usize, moved: Config) -> Self {
        Self { plain: vec![0; READ_BYTES].into(), moved, bound, used: Rc::default() }
    }

    /// How much may be read at a time. When the pool is full, sessions keep going, but each reads one record at a time.
    fn most(&self) -> usize {
        if self.used.get() < self.bound { READ_BYTES } else { RECORD_BYTES }
    }
}

/// What a session keeps, as far as the pool knows.
struct Account {
    used: Rc<Cell<usize>>,
    counts: usize,
}

impl Account {
    fn set(&mut self, counts: usize) {
        self.used.set(self.used.get() - self.counts + counts);
        self.counts = counts;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// One direction.
#[derive(Clone, Copy, Default)]
pub(crate) struct Way {
    /// Bytes of plaintext that were passed on.
    pub(crate) moved: u64,
    /// The end was read.
    pub(crate) ended: bool,
    /// The end was passed on.
    pub(crate) over: bool,
}

/// A client and its upstream.
pub(crate) struct Tunnel {
    pub(crate) client: Channel,
    /// `None` until the handshake is done, and an upstream was chosen.
    pub(crate) upstream: Option<End>,
    pub(crate) connecting: bool,
    pub(crate) forward: Way,
    pub(crate) back: Way,
    /// Decrypted, and not taken by the upstream yet.
    pub(crate) kept: Rest,
    /// When a byte was moved last, or another wait began.
    pub(crate) active: Instant,
    breaking: Option<Box<Breaking>>,
    /// The deadline may have become an earlier one.
    hastened: bool,
    account: Account,
}

/// A side has broken off, and the other one is still to have what it said before.
struct Breaking {
    by: Side,
    error: io::Error,
    /// When it is looked at next whether all of that was sent.
    look: Option<Instant>,
}

/// What a tunnel wants after a turn.
pub(crate) enum Turn {
    /// The next event, or its deadline.
    Wait,
    /// Another turn, when the others have had theirs.
    Again,
    /// An upstream, by [`Tunnel::to`]: the handshake is done.
    Shaken,
    /// Another upstream, by [`Tunnel::to`]: this one could not be connected to.
    NotConnected(io::Error),
    /// To be dropped: there was no handshake.
    Refused(io::Error),
    /// To be dropped.
    Over(Ending),
}

/// Which of a way's two ends broke, and how.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Tunnel {
    pub(crate) fn new(client: Channel, now: Instant, pool: &Pool) -> Self {
        Self {
            client,
            upstream: None,
            connecting: false,
            forward: Way::default(),
            back: Way::default(),
            kept: Rest::default(),
            active: now,
            breaking: None,
            hastened: true,
            account: Account { used: Rc::clone(&pool.used), counts: 0 },
        }
    }

    /// Leads to this upstream, which is being connected to, and tells it `first`.
    pub(crate) fn to(&mut self, upstream: Stream, first: &[u8], now: Instant) {
        self.upstream = Some(End::new(upstream));
        if self.kept.is_empty() {
            self.kept.add(first);
        }
        (self.connecting, self.active, self.hastened) = (true, now, true);
    }

    /// Takes the upstream that cannot be connected to out of the loop. The next one has the same token, and a process
    /// that is being spawned may have this socket still.
    pub(crate) fn forget_upstream(&mut self) {
        let _ = self.upstream.take().map(|upstream| upstream.stream.into_fd());
    }

    /// When it is to sleep, if nothing comes.
    pub(crate) fn bedtime(&self) -> Option<Instant> {
        let is_early = self.is_shaking() || self.connecting;
        let stays = is_early || self.is_ending() || self.client.is_asleep();
        self.active.checked_add(SLEEPS_AFTER).filter(|_| !stays)
    }

    /// Whether there is a handshake still.
    pub(crate) fn is_shaking(&self) -> bool {
        self.upstream.is_none()
    }

    /// Whether a side has ended, or broken off.
    pub(crate) fn is_ending(&self) -> bool {
        self.breaking.is_some() || self.is_half_closed()
    }

    fn is_half_closed(&self) -> bool {
        self.forward.ended || self.back.ended
    }

    /// Bytes that were passed on: upstream, and to the client.
    pub(crate) fn moved(&self) -> (u64, u64) {
        (self.forward.moved, self.back.moved)
    }

    /// Has both connections reset when they are dropped: an end would make half of something look whole.
    pub(crate) fn reset(&self) {
        // Fails for a socket that is gone anyway.
        let _ = self.client.end.stream.reset_on_close();
        let _ = self.upstream.as_ref().map(|upstream| upstream.stream.reset_on_close());
    }

    pub(crate) fn keep_alive(&self, after: Option<Duration>) {
        // Fails for a socket that is gone anyway.
        let _ = self.client.end.stream.keep_alive(after);
        let _ = self.upstream.as_ref().map(|upstream| upstream.stream.keep_alive(after));
    }

    /// Whether [`Tunnel::deadline`] may have become an earlier one since the last call.
    pub(crate) fn hastens(&mut self) -> bool {
        std::mem::take(&mut self.hastened)
    }

    /// When [`Tunnel::turn`] has to be called with a timeout at the latest.
    pub(crate) fn deadline(&self, shaking: Duration, patience: Patience) -> Option<Instant> {
        let wait = match &self.breaking {
            _ if self.is_shaking() => Some(shaking),
            _ if self.connecting => {
                let queues = self.upstream.as_ref().and_then(|it| it.stream.queues_until());
                let last = self.active.checked_add(patience.connect);
                return [queues, last].into_iter().flatten().min();
            }
            Some(breaking) if breaking.look.is_some() => return breaking.look,
            Some(_) => Some(limits::RELAY_LAST_WAIT),
            None if self.is_half_closed() => {
                patience.idle.into_iter().chain(patience.half_closed).min()
            }
            None => patience.idle,
        };
        self.active.checked_add(wait?)
    }

    /// Moves what can be moved, after an event of one of the sockets, or several.
    pub(crate) fn turn(
        &mut self,
        event: IoEvent,
        now: Instant,
        shaking: Duration,
        patience: Patience,
        pool: &mut Pool,
    ) -> Turn {
        self.client.end.note(event.of(0));
        if let Some(upstream) = &mut self.upstream {
            upstream.note(event.of(1));
        }
        if self.connecting {
            // What is left of the handshake. An error is found again when there is more to be said.
            let _ = self.client.flush();
        }
        let is_late = event.is_timeout()
            && self.deadline(shaking, patience).is_some_and(|deadline| deadline <= now);
        if self.is_shaking() {
            return match self.client.handshake() {
                Ok(Handshake::Done) => Turn::Shaken,
                Ok(Handshake::Waits) if is_late => Turn::Refused(io::ErrorKind::TimedOut.into()),
                Ok(Handshake::Waits) => Turn::Wait,
                Err(error) => Turn::Refused(error),
            };
        }
        if self.connecting
            && let Some(turn) = self.connect(now, patience)
        {
            return turn;
        }
        let slept = self.client.is_asleep();
        let turn = self.pass_on(now, pool);
        self.hastened |= slept && !self.client.is_asleep();
        // Last, so that a byte that came together with the deadline wins.
        let is_late =
            is_late && self.deadline(shaking, patience).is_some_and(|deadline| deadline <= now);
        let waits = matches!(turn, Turn::Wait);
        if waits && is_late {
            return self.time_out(now, patience);
        }
        if waits {
            if self.bedtime().is_some_and(|at| at <= now) {
                self.client.sleep();
            }
            self.client.rest();
        }
        self.account.set(self.client.kept() + self.kept.bytes().len());
        turn
    }

    fn time_out(&mut self, now: Instant, patience: Patience) -> Turn {
        if let Some(breaking) = self.breaking.take() {
            return self.break_off(breaking.by, breaking.error);
        }
        self.reset();
        let idle = patience.idle.and_then(|idle| self.active.checked_add(idle));
        let is_idle = idle.is_some_and(|deadline| deadline <= now);
        Turn::Over(if is_idle { Ending::Idle } else { Ending::HalfClosed })
    }

    /// Until the upstream is connected to, or not.
    fn connect(&mut self, now: Instant, patience: Patience) -> Option<Turn> {
        let is_late = self.active.checked_add(patience.connect).is_some_and(|last| last <= now);
        let upstream = self.upstream.as_mut()?;
        if upstream.stream.queues_until().is_some() {
            match upstream.stream.queue_up(now) {
                Ok(true) => upstream.writable = true,
                Ok(false) => {
                    upstream.writable = false;
                    self.hastened = true;
                }
                Err(error) => return Some(Turn::NotConnected(error)),
            }
        }
        if let Some(error) = upstream.failure() {
            return Some(Turn::NotConnected(error));
        }
        if upstream.writable {
            (self.connecting, self.active, self.hastened) = (false, now, true);
            return None;
        }
        // Nobody is left to connect for.
        if let Some(error) = self.client.end.failure() {
            return Some(self.break_off(Side::Downstream, error));
        }
        Some(match is_late {
            true => Turn::NotConnected(io::ErrorKind::TimedOut.into()),
            false => Turn::Wait,
        })
    }

    /// Moves what can be moved by now, in both directions.
    fn pass_on(&mut self, now: Instant, pool: &mut Pool) -> Turn {
        let (before, was_half_closed) = (self.moved(), self.is_half_closed());
        let has_more = loop {
            match self.carry(pool) {
                Ok(has_more) => break has_more,
                // At most twice: a side that has broken off is neither read nor written any more.
                Err((by, broken)) => self.lose(by, broken),
            }
        };
        if self.moved() != before {
            self.active = now;
        }
        self.hastened |= !was_half_closed && self.is_half_closed();
        let is_over = self.forward.over && self.back.over && !self.client.has_unsent();
        match has_more {
            _ if is_over => self.end(now),
            true => Turn::Again,
            false => Turn::Wait,
        }
    }

    fn carry(&mut self, pool: &mut Pool) -> Result<bool, (Side, Broken)> {
        use Side::{Downstream, Upstream};
        let there = self.carry_forward(pool).map_err(|broken| match broken {
            Broken::Source(_) => (Downstream, broken),
            Broken::Sink(_) => (Upstream, broken),
        })?;
        let back = self.carry_back(pool).map_err(|broken| match broken {
            Broken::Source(_) => (Upstream, broken),
            Broken::Sink(_) => (Downstream, broken),
        })?;
        // A side that is not read at present must not hide that it is gone.
        if let Some(error) = self.client.end.failure() {
            return Err((Downstream, Broken::Sink(error)));
        }
        if let Some(error) = self.upstream.as_mut().and_then(End::failure) {
            return Err((Upstream, Broken::Sink(error)));
        }
        Ok(there || back)
    }

    /// From the client to the upstream. Answers whether there is more.
    fn carry_forward(&mut self, pool: &mut Pool) -> Result<bool, Broken> {
        let Some(upstream) = &mut self.upstream else { return Ok(false) };
        let way = &mut self.forward;
        let mut budget = limits::RELAY_BYTES_PER_TURN;
        loop {
            if !self.kept.is_empty() {
                if !upstream.writable {
                    return Ok(false);
                }
                let written = upstream.write(self.kept.bytes()).map_err(Broken::Sink)?;
                way.moved += written as u64;
                self.kept.take(written);
                continue;
            }
            if way.ended {
                if !std::mem::replace(&mut way.over, true) && !self.back.over {
                    upstream.stream.shutdown(Shutdown::Write).map_err(Broken::Sink)?;
                }
                return Ok(false);
            }
            // What the upstream would not take stays in the kernel.
            if !upstream.writable || !self.client.may_read() {
                return Ok(false);
            }
            if budget == 0 {
                return Ok(true);
            }
            let most = pool.most();
            let (read, cost) = self.client.read(&mut pool.plain, most, &pool.moved);
            budget = budget.saturating_sub(cost);
            match read.map_err(Broken::Source)? {
                Read::Bytes(count) => {
                    let written = upstream.write(&pool.plain[..count]).map_err(Broken::Sink)?;
                    way.moved += written as u64;
                    self.kept = Rest::of(&pool.plain[written..count]);
                }
                Read::Other => {}
                Read::Nothing => return Ok(false),
                Read::End => {
                    way.ended = true;
                    // The other direction has ended with it, and what the upstream says now is for nobody.
                    if !self.client.has_two_ends(&pool.moved).map_err(Broken::Source)? {
                        self.back.ended = true;
                    }
                }
                Read::Cut => {
                    let reason = "the connection ended without a close_notify";
                    let error = io::Error::new(io::ErrorKind::UnexpectedEof, reason);
                    return Err(Broken::Source(error));
                }
            }
        }
    }

    /// From the upstream to the client. Answers whether there is more.
    fn carry_back(&mut self, pool: &mut Pool) -> Result<bool, Broken> {
        let Some(upstream) = &mut self.upstream else { return Ok(false) };
        let (client, way) = (&mut self.client, &mut self.back);
        let mut budget = limits::RELAY_BYTES_PER_TURN;
        loop {
            client.flush().map_err(Broken::Sink)?;
            if client.has_unsent() {
                return Ok(false);
            }
            if way.ended {
                // An upstream that has broken off is not at its end: the reset tells.
                if !std::mem::replace(&mut way.over, true) && self.breaking.is_none() {
                    client.close_notify(&pool.moved).map_err(Broken::Sink)?;
                    continue;
                }
                if !self.forward.over && self.breaking.is_none() {
                    client.shut();
                }
                return Ok(false);
            }
            if !client.end.writable || !upstream.readable {
                return Ok(false);
            }
            if budget == 0 {
                return Ok(true);
            }
            let most = pool.most();
            match upstream.read(&mut pool.plain[..most]).map_err(Broken::Source)? {
                None => return Ok(false),
                Some(0) => way.ended = true,
                Some(count) => {
                    budget = budget.saturating_sub(count);
                    client.write(&pool.plain[..count], &pool.moved).map_err(Broken::Sink)?;
                    way.moved += count as u64;
                }
            }
        }
    }

    /// A side has broken off. What it said before is passed on, and nothing more reaches it.
    fn lose(&mut self, by: Side, broken: Broken) {
        let (from, to) = match by {
            Side::Downstream => {
                self.client.give_up();
                (&mut self.forward, &mut self.back)
            }
            Side::Upstream => {
                self.kept = Rest::default();
                (&mut self.back, &mut self.forward)
            }
        };
        (to.ended, to.over) = (true, true);
        let error = match broken {
            Broken::Source(error) => {
                from.ended = true;
                // Its end is told by the reset.
                from.over |= by == Side::Upstream;
                error
            }
            Broken::Sink(error) => {
                // What it has said may still be there.
                match (by, &mut self.upstream) {
                    (Side::Downstream, _) => self.client.end.readable = true,
                    (Side::Upstream, Some(upstream)) => upstream.readable = true,
                    (Side::Upstream, None) => {}
                }
                error
            }
        };
        self.breaking.get_or_insert_with(|| Box::new(Breaking { by, error, look: None }));
        self.hastened = true;
    }

    /// Both directions are over. The reset by which a side broke off waits until everything was sent that it said
    /// before: what was not is thrown away with the reset.
    fn end(&mut self, now: Instant) -> Turn {
        let Some(breaking) = &mut self.breaking else { return Turn::Over(Ending::Finished) };
        let has_unsent = match (breaking.by, &self.upstream) {
            (Side::Downstream, Some(upstream)) => upstream.stream.has_unsent(),
            (Side::Downstream, None) => false,
            (Side::Upstream, _) => self.client.end.stream.has_unsent(),
        };
        let last = self.active.checked_add(limits::RELAY_LAST_WAIT);
        if last.is_some_and(|last| now < last) && has_unsent {
            breaking.look = now.checked_add(limits::RELAY_LAST_LOOK).min(last);
            self.hastened = true;
            return Turn::Wait;
        }
        match self.breaking.take() {
            Some(breaking) => self.break_off(breaking.by, breaking.error),
            None => Turn::Over(Ending::Finished),
        }
    }

    fn break_off(&self, by: Side, error: io::Error) -> Turn {
        self.reset();
        Turn::Over(Ending::Reset { by, error })
    }
}
