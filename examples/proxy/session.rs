//! A client, the upstream that it leads to, and the relay between them.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use tablecloth::relay::{Patience, Pool, Relay, Turn};
use tablecloth::{Accepted, Address, Context, IoEvent, Packed, Stream, Verdict};

use super::routes::{Route, Upstream};
use super::{header, packed};

/// What holds for every session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) patience: Patience,
    pub(crate) send_proxy: bool,
    pub(crate) cut_removed: bool,
}

/// A client and its upstream.
pub(crate) struct ProxySession {
    pub(crate) relay: Relay,
    pub(crate) peer: Address,
    pub(crate) route: Rc<Route>,
    pub(crate) upstream: Rc<Upstream>,
    /// How many upstreams were tried, with the one at hand.
    pub(crate) tried: u16,
    /// It ends with its first event.
    pub(crate) is_cut: bool,
}

impl ProxySession {
    /// Connects to the route's next upstream, or the one after it, and so on.
    pub(crate) fn open(
        cx: &mut Context<'_>,
        accepted: Accepted,
        route: Rc<Route>,
        settings: &Settings,
        pool: &mut Pool,
    ) -> io::Result<Self> {
        let Accepted { stream, peer, .. } = accepted;
        let first = match settings.send_proxy {
            true => header::encode(&peer, &stream.local_address()?),
            false => Vec::new(),
        };
        let mut opening = Relay::open(stream, &first, pool)?;
        let (start, mut tried) = (route.next(), 0);
        let to_send = opening.has_bytes();
        let send = |upstream: &mut Stream| opening.send(upstream);
        let (upstream, relay) = match connect(cx, &route, start, &mut tried, to_send, send) {
            Ok((upstream, to)) => (upstream, opening.to(to, cx.now())),
            Err((to, error)) => {
                opening.reset();
                return Err(io::Error::other(gave_up(&peer, &route, &to, &error)));
            }
        };
        let session = Self { relay, peer, route, upstream, tried, is_cut: false };
        session.wake_in_time(cx, settings);
        Ok(session)
    }

    pub(crate) fn event(
        &mut self,
        cx: &mut Context<'_>,
        event: IoEvent,
        settings: &Settings,
        pool: &mut Pool,
    ) -> Verdict {
        if self.is_cut {
            self.relay.reset();
            self.log_end(&"its route was removed");
            return Verdict::Close;
        }
        let turn = self.relay.turn(event, cx.now(), settings.patience, pool);
        let verdict = self.conclude(cx, turn, settings);
        if event.is_timeout() {
            self.wake_in_time(cx, settings);
        }
        verdict
    }

    pub(crate) fn flush(
        &mut self,
        cx: &mut Context<'_>,
        settings: &Settings,
        pool: &mut Pool,
    ) -> Verdict {
        let turn = self.relay.flush(cx.now(), pool);
        self.conclude(cx, turn, settings)
    }

    fn conclude(&mut self, cx: &mut Context<'_>, turn: Turn, settings: &Settings) -> Verdict {
        if self.relay.hastens() {
            self.wake_in_time(cx, settings);
        }
        match turn {
            Turn::Wait => Verdict::Keep,
            Turn::Flush => Verdict::Flush,
            Turn::Again => Verdict::Again,
            Turn::NotConnected(error) => self.fall_through(cx, error, settings),
            Turn::Over(ending) => {
                self.log_end(&ending);
                Verdict::Close
            }
        }
    }

    /// The relay's deadline moves on with each byte; it is looked at again when it would have passed.
    pub(crate) fn wake_in_time(&self, cx: &mut Context<'_>, settings: &Settings) {
        if let Some(deadline) = self.relay.deadline(settings.patience) {
            cx.wake_at(deadline);
        }
    }

    /// The next upstream, after one that could not be connected to.
    fn fall_through(
        &mut self,
        cx: &mut Context<'_>,
        error: io::Error,
        settings: &Settings,
    ) -> Verdict {
        log::debug!("upstream {} of {}: {error}", self.upstream.text, self.route.name);
        let upstreams = &self.route.upstreams;
        let Some(at) = upstreams.iter().position(|other| other.text == self.upstream.text) else {
            return self.give_up(cx.now(), &self.upstream, &error);
        };
        let to_send = self.relay.has_bytes_to_send();
        match connect(cx, &self.route, at + 1, &mut self.tried, to_send, |_| Ok(())) {
            Ok((upstream, stream)) => {
                self.upstream = upstream;
                self.relay.reconnect(stream, cx.now());
                self.wake_in_time(cx, settings);
                Verdict::Keep
            }
            Err((_, none)) if none.kind() == io::ErrorKind::NotFound => {
                self.give_up(cx.now(), &self.upstream, &error)
            }
            Err((upstream, error)) => self.give_up(cx.now(), &upstream, &error),
        }
    }

    fn give_up(&self, now: Instant, upstream: &Upstream, error: &io::Error) -> Verdict {
        if let Some(more) = self.route.complaints.borrow_mut().line(now) {
            log::warn!("{}{more}", gave_up(&self.peer, &self.route, upstream, error));
        }
        self.relay.reset();
        Verdict::Close
    }

    pub(crate) fn is_of_removed_route(&self) -> bool {
        self.route.upstreams.is_empty()
    }

    pub(crate) fn cut(&mut self) {
        self.is_cut = true;
    }

    fn log_end(&self, how: &dyn std::fmt::Display) {
        let (forward, back) = self.relay.moved();
        log::debug!(
            "session of [{}] by {} to {}: {how}; {forward} bytes there, {back} back",
            self.peer,
            self.route.name,
            self.upstream.text,
        );
    }

    /// Neither end is to take for the whole what is only a part.
    pub(crate) fn cut_off(&self) {
        self.relay.reset();
        self.log_end(&"cut off");
    }

    pub(crate) fn pack(self, now: Instant) -> Packed {
        packed::pack(self, now)
    }

    pub(crate) fn unpack(
        packed: Packed,
        routes: &[Rc<Route>],
        now: Instant,
        pool: &Pool,
    ) -> io::Result<Self> {
        packed::unpack(packed, routes, now, pool)
    }
}

/// Begins to connect to the first of the upstreams from `start` on that does not fail at once, each
/// one tried no more than once, and has what there is sent to it if it is connected by then. What is
/// not connected to is named; `NotFound` if none is left.
fn connect(
    cx: &mut Context<'_>,
    route: &Route,
    start: usize,
    tried: &mut u16,
    to_send: bool,
    mut send: impl FnMut(&mut Stream) -> io::Result<()>,
) -> Result<(Rc<Upstream>, Stream), (Rc<Upstream>, io::Error)> {
    let count = route.upstreams.len();
    let nowhere = Upstream { text: "(none)".into(), address: None };
    let mut failed = (Rc::new(nowhere), io::ErrorKind::NotFound.into());
    for offset in 0..count.saturating_sub(usize::from(*tried)) {
        let upstream = &route.upstreams[(start + offset) % count];
        *tried += 1;
        let Some(address) = &upstream.address else { continue };
        let connected = match to_send {
            true => cx.connect_to_send(address, 1),
            false => cx.connect(address, 1),
        };
        let sent = connected.and_then(|mut stream| send(&mut stream).map(|()| stream));
        match sent {
            Ok(stream) => return Ok((Rc::clone(upstream), stream)),
            Err(error) => failed = (Rc::clone(upstream), error),
        }
    }
    Err(failed)
}

fn gave_up(peer: &Address, route: &Route, upstream: &Upstream, error: &io::Error) -> String {
    format!("session of [{peer}] by {}: no upstream; {}: {error}", route.name, upstream.text)
}
