//! Where a session leads: to the upstream whose turn it is, or to the one after it, and so on.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tablecloth::{Address, Context, Stream};

use super::routes::Route;
use super::upstreams::Upstream;

/// An upstream that does not answer is given up after a fifth of the time, and at most this, if there is
/// another one.
const HANGS: Duration = Duration::from_secs(1);

/// The upstream of a session, and how connecting to it goes.
pub(crate) struct Lead {
    pub(crate) upstream: Rc<Upstream>,
    /// The places of the upstreams that could not be connected to.
    pub(crate) tried: Vec<u16>,
    /// When it began to connect.
    attempted: Instant,
    /// How long that took, in microseconds, once it is done.
    pub(crate) connected: Option<u32>,
}

impl Lead {
    /// To an upstream that is being connected to, or, if it says how long that took, is connected.
    pub(crate) fn new(
        upstream: Rc<Upstream>,
        tried: Vec<u16>,
        connected: Option<u32>,
        now: Instant,
    ) -> Self {
        upstream.counters.opened();
        Self { upstream, tried, attempted: now, connected }
    }

    /// As it was in another process. An upstream that the route has no longer is kept by the sessions that it has.
    pub(crate) fn again(route: &Route, text: &str, connected: Option<u32>, now: Instant) -> Self {
        let known = route.upstreams.iter().find(|upstream| *upstream.text == *text);
        let lost = || Rc::new(Upstream::new(text, None, 1, false));
        Self::new(known.map_or_else(lost, Rc::clone), Vec::new(), connected, now)
    }

    /// Whether its route does not have the upstream any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.upstream.address.is_none()
    }

    /// The connection is made.
    pub(crate) fn note_connected(&mut self, route: &Route, now: Instant) {
        if self.connected.is_none() {
            let took = now.saturating_duration_since(self.attempted);
            self.connected = Some(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
            self.upstream.connected(took);
            route.counters.connected(took);
            // They are of no use any more.
            self.tried = Vec::new();
        }
    }

    /// When the upstream should have answered, if there may be another one and that time is still to come. It is
    /// still being connected to.
    pub(crate) fn hangs_at(&self, route: &Route, now: Instant) -> Option<Instant> {
        let at = self.attempted.checked_add(patience_with_one(route))?;
        (route.upstreams.has_turns() && at > now).then_some(at)
    }

    /// Whether the upstream should have answered by now, and there is another one.
    pub(crate) fn hangs(&self, route: &Route, now: Instant) -> bool {
        now.saturating_duration_since(self.attempted) >= patience_with_one(route)
            && route.upstreams.has_another(&self.upstream, &self.tried, now)
    }

    /// Connects to another upstream of the route, after this one could not be connected to. An error names the
    /// upstream that was tried last.
    pub(crate) fn fall_through(
        &mut self,
        cx: &mut Context<'_>,
        route: &Route,
        to_send: bool,
        error: io::Error,
    ) -> Result<Stream, (Rc<Upstream>, io::Error)> {
        log::debug!("upstream {} of {}: {error}", self.upstream.text, route.name);
        self.upstream.failed(cx.now());
        self.go_on(cx, route, to_send).map_err(|(upstream, last)| match upstream.address {
            Some(_) => (upstream, last),
            None => (Rc::clone(&self.upstream), error),
        })
    }

    /// Connects to another upstream of the route.
    pub(crate) fn go_on(
        &mut self,
        cx: &mut Context<'_>,
        route: &Route,
        to_send: bool,
    ) -> Result<Stream, (Rc<Upstream>, io::Error)> {
        if !self.is_lost() {
            self.tried.push(self.upstream.place());
        }
        let (upstream, stream) = connect(cx, route, &mut self.tried, to_send, |_| Ok(()))?;
        self.upstream.counters.left();
        upstream.counters.opened();
        (self.upstream, self.attempted) = (upstream, cx.now());
        Ok(stream)
    }

    /// The session has ended, and has moved so many bytes.
    pub(crate) fn ended(&self, there: u64, back: u64) {
        self.upstream.counters.ended(there, back);
        self.leave();
    }

    /// The session goes to another process.
    pub(crate) fn left(&self) {
        self.upstream.counters.left();
        self.leave();
    }

    fn leave(&self) {
        if self.connected.is_none() {
            self.upstream.was_left();
        }
    }
}

/// How long an upstream may take to answer if there is another one.
fn patience_with_one(route: &Route) -> Duration {
    (route.settings.patience.connect / 5).min(HANGS)
}

/// A line for a client for whom there is no upstream, as often as the route's failures may have one.
pub(crate) fn complain(
    peer: &Address,
    route: &Route,
    upstream: &Upstream,
    error: &io::Error,
    now: Instant,
) {
    if let Some(more) = route.complaints.borrow_mut().line(now) {
        log::warn!("{}{more}", gave_up(peer, route, upstream, error));
    }
}

pub(crate) fn gave_up(
    peer: &Address,
    route: &Route,
    upstream: &Upstream,
    error: &io::Error,
) -> String {
    format!("session of [{peer}] by {}: no upstream; {}: {error}", route.name, upstream.text)
}

/// Begins to connect to the first of the upstreams whose turn it is that does not fail at once, and has
/// what there is sent to it if it is connected by then. What is not connected to is named; it is one
/// without an address if none is left.
pub(crate) fn connect(
    cx: &mut Context<'_>,
    route: &Route,
    tried: &mut Vec<u16>,
    to_send: bool,
    mut send: impl FnMut(&mut Stream) -> io::Result<()>,
) -> Result<(Rc<Upstream>, Stream), (Rc<Upstream>, io::Error)> {
    let mut failed = None;
    while let Some(upstream) = route.upstreams.next(tried, cx.now()) {
        // Every one of a route has an address.
        let Some(address) = &upstream.address else { break };
        let connected = match to_send {
            true => cx.connect_to_send(address, 1),
            false => cx.connect(address, 1),
        };
        let sent = connected.and_then(|mut stream| send(&mut stream).map(|()| stream));
        match sent {
            Ok(stream) => return Ok((Rc::clone(upstream), stream)),
            Err(error) if is_our_own(&error) => {
                upstream.was_left();
                return Err((Rc::clone(upstream), error));
            }
            Err(error) => {
                upstream.failed(cx.now());
                tried.push(upstream.place());
                failed = Some((Rc::clone(upstream), error));
            }
        }
    }
    Err(failed.unwrap_or_else(|| {
        let nowhere = Upstream::new("(none)", None, 1, false);
        (Rc::new(nowhere), io::ErrorKind::NotFound.into())
    }))
}

/// Whether this process has not got what it needs to connect, wherever that would lead.
fn is_our_own(error: &io::Error) -> bool {
    let ours = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM, Errno::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| ours.contains(&Errno::from_raw(code)))
}
