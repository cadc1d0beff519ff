//! A client, the upstream that it leads to, and the relay between them.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tablecloth::relay::{Pool, Relay, Turn};
use tablecloth::{Accepted, Address, Context, IoEvent, Packed, Stream, Verdict};

use super::connect::{Lead, complain, connect, gave_up};
use super::header;
use super::packed;
use super::routes::Route;
use super::turns::Turns;
use super::upstreams::Upstream;

/// How old a session is when the kernel is told to look after its peers: most do not become so old, and
/// are spared the calls.
pub(crate) const LOOKED_AFTER: Duration = Duration::from_secs(5);

/// A client and its upstream.
pub(crate) struct ProxySession {
    pub(crate) relay: Relay,
    pub(crate) peer: Address,
    pub(crate) route: Rc<Route>,
    pub(crate) lead: Lead,
    pub(crate) opened: Instant,
    /// It ends with its first event.
    pub(crate) is_cut: bool,
    /// When the kernel is to be told to look after its peers, if it was not yet.
    pub(crate) look_after: Option<Instant>,
}

impl ProxySession {
    /// Connects to the upstream whose turn it is, or the one after it, and so on.
    pub(crate) fn open(
        cx: &mut Context<'_>,
        accepted: Accepted,
        route: Rc<Route>,
        turns: &Turns,
        pool: &mut Pool,
    ) -> io::Result<Self> {
        let Accepted { stream, peer, .. } = accepted;
        if !route.settings.access.allows(&peer) {
            route.counters.refused();
            let reason = format!("{} does not allow it", route.name);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        let first = match route.settings.send_proxy {
            true => header::encode(&peer, &stream.local_address()?, &[]),
            false => Vec::new(),
        };
        let mut opening = Relay::open(stream, &first, pool)?;
        let (to_send, mut tried) = (opening.has_bytes(), Vec::new());
        let send = |upstream: &mut Stream| opening.send(upstream);
        let connected = connect(cx, &route, &mut tried, to_send, send);
        turns.write(&route);
        let (upstream, relay) = match connected {
            Ok((upstream, to)) => (upstream, opening.to(to, cx.now())),
            Err((to, error)) => {
                opening.reset();
                route.counters.failed();
                return Err(io::Error::other(gave_up(&peer, &route, &to, &error)));
            }
        };
        route.counters.opened();
        let mut session = Self {
            relay,
            peer,
            route,
            lead: Lead::new(upstream, tried, None, cx.now()),
            opened: cx.now(),
            is_cut: false,
            look_after: cx.now().checked_add(LOOKED_AFTER),
        };
        session.note_connected(cx.now());
        session.wake_in_time(cx);
        Ok(session)
    }

    pub(crate) fn event(
        &mut self,
        cx: &mut Context<'_>,
        event: IoEvent,
        pool: &mut Pool,
    ) -> Verdict {
        if self.is_cut {
            self.relay.reset();
            self.end(cx.now(), &"its route was removed");
            return Verdict::Close;
        }
        let turn = self.relay.turn(event, cx.now(), self.route.settings.patience, pool);
        self.note_connected(cx.now());
        let hangs = event.is_timeout() && matches!(turn, Turn::Wait) && self.hangs(cx.now());
        let verdict = match hangs {
            true => self.fall_through(cx, io::ErrorKind::TimedOut.into()),
            false => self.conclude(cx, turn),
        };
        if event.is_timeout() {
            self.look_after(cx.now());
            self.wake_in_time(cx);
        }
        verdict
    }

    pub(crate) fn flush(&mut self, cx: &mut Context<'_>, pool: &mut Pool) -> Verdict {
        let turn = self.relay.flush(cx.now(), pool);
        self.conclude(cx, turn)
    }

    fn conclude(&mut self, cx: &mut Context<'_>, turn: Turn) -> Verdict {
        if self.relay.hastens() {
            self.wake_in_time(cx);
        }
        match turn {
            Turn::Wait => Verdict::Keep,
            Turn::Flush => Verdict::Flush,
            Turn::Again => Verdict::Again,
            Turn::NotConnected(error) => self.fall_through(cx, error),
            Turn::Over(ending) => {
                self.end(cx.now(), &ending);
                Verdict::Close
            }
        }
    }

    fn note_connected(&mut self, now: Instant) {
        if !self.relay.is_connecting() {
            self.lead.note_connected(&self.route, now);
        }
    }

    /// The relay's deadline moves on with each byte; it is looked at again when it would have passed.
    pub(crate) fn wake_in_time(&self, cx: &mut Context<'_>) {
        let deadline = self.relay.deadline(self.route.settings.patience);
        let hangs = self.lead.hangs_at(&self.route, cx.now());
        let hangs = hangs.filter(|_| self.relay.is_connecting());
        if let Some(at) = [deadline, hangs, self.look_after].into_iter().flatten().min() {
            cx.wake_at(at);
        }
    }

    fn look_after(&mut self, now: Instant) {
        if self.look_after.take_if(|at| *at <= now).is_some() {
            self.relay.keep_alive(self.route.settings.keep_alive);
        }
    }

    /// Whether the upstream should have answered by now, and there is another one.
    fn hangs(&self, now: Instant) -> bool {
        self.relay.is_connecting() && self.lead.hangs(&self.route, now)
    }

    /// The next upstream, after one that could not be connected to.
    fn fall_through(&mut self, cx: &mut Context<'_>, error: io::Error) -> Verdict {
        let to_send = self.relay.has_bytes_to_send();
        match self.lead.fall_through(cx, &self.route, to_send, error) {
            Ok(stream) => {
                self.reconnect(cx, stream);
                Verdict::Keep
            }
            Err((upstream, error)) => self.give_up(cx.now(), &upstream, &error),
        }
    }

    fn reconnect(&mut self, cx: &mut Context<'_>, stream: Stream) {
        self.relay.reconnect(stream, cx.now());
        self.wake_in_time(cx);
    }

    /// It has come from a process with other routes: if it is still connecting to an upstream that its
    /// route does not have any more, it takes one that it has.
    pub(crate) fn follow_route(&mut self, cx: &mut Context<'_>) {
        let is_lost = self.relay.is_connecting() && self.lead.is_lost();
        if is_lost && !self.route.upstreams.is_empty() {
            let to_send = self.relay.has_bytes_to_send();
            match self.lead.go_on(cx, &self.route, to_send) {
                Ok(stream) => self.reconnect(cx, stream),
                // It may still be connected to the one that it waits for.
                Err((upstream, error)) => {
                    log::debug!("upstream {} of {}: {error}", upstream.text, self.route.name);
                }
            }
        }
    }

    fn give_up(&mut self, now: Instant, upstream: &Upstream, error: &io::Error) -> Verdict {
        complain(&self.peer, &self.route, upstream, error, now);
        self.relay.reset();
        self.route.counters.failed();
        self.end(now, &"never connected");
        Verdict::Close
    }

    pub(crate) fn cut(&mut self) {
        self.is_cut = true;
    }

    /// Neither end is to take for the whole what is only a part.
    pub(crate) fn cut_off(&mut self, now: Instant) {
        self.relay.reset();
        self.end(now, &"cut off");
    }

    /// It is over here: counted, and in the log if that is wanted.
    fn end(&mut self, now: Instant, how: &dyn std::fmt::Display) {
        let (there, back) = self.relay.moved();
        self.lead.ended(there, back);
        self.route.counters.ended(there, back);
        let level = match self.route.settings.session_log {
            true => log::Level::Info,
            false => log::Level::Debug,
        };
        log::log!(
            level,
            "session of [{}] by {} to {}: {how}; {there} bytes there, {back} back; {:.3} s, connected \
             in {:.3} ms",
            self.peer,
            self.route.name,
            self.lead.upstream.text,
            now.saturating_duration_since(self.opened).as_secs_f64(),
            f64::from(self.lead.connected.unwrap_or_default()) / 1000.0,
        );
    }

    pub(crate) fn pack(self, now: Instant, schema: u32) -> Packed {
        self.lead.left();
        self.route.counters.left();
        packed::pack(self, now, schema)
    }
}
