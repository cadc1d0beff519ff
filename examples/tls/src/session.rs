//! A client by TLS, its upstream, and the tunnel between them.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tablecloth::{Accepted, Address, Context, IoEvent, Stream, Verdict};

use super::about::About;
use super::channel::{Channel, words};
use super::connect::connect;
use super::front::Front;
use super::header;
use super::tunnel::{Pool, Tunnel, Turn};
use super::turns::Turns;
use super::upstreams::Upstream;

/// An upstream that does not answer is given up after a fifth of the time, and at most this, if there is
/// another one.
const HANGS: Duration = Duration::from_secs(1);
/// How old a session is when the kernel is told to look after its peers: most do not become so old, and
/// are spared the calls.
pub(crate) const LOOKED_AFTER: Duration = Duration::from_secs(5);

/// A client and its upstream.
pub(crate) struct TlsSession {
    pub(crate) tunnel: Tunnel,
    pub(crate) peer: Address,
    pub(crate) front: Rc<Front>,
    /// `None` until the handshake is done.
    pub(crate) link: Option<Box<Link>>,
    pub(crate) opened: Instant,
    /// It ends with its first event.
    pub(crate) is_cut: bool,
    /// When the kernel is to be told to look after its peers, if it was not yet.
    pub(crate) look_after: Option<Instant>,
}

/// What there is when the handshake is done.
pub(crate) struct Link {
    pub(crate) about: About,
    pub(crate) upstream: Rc<Upstream>,
    /// The places of the upstreams that could not be connected to.
    pub(crate) tried: Vec<u16>,
    /// When it began to connect to the upstream.
    pub(crate) attempted: Instant,
    /// How long that took, in microseconds, once it is done.
    pub(crate) connected: Option<u32>,
}

impl TlsSession {
    /// A client whose handshake is to come.
    pub(crate) fn open(
        cx: &mut Context<'_>,
        accepted: Accepted,
        front: Rc<Front>,
        pool: &Pool,
    ) -> io::Result<Self> {
        let Accepted { stream, peer, .. } = accepted;
        let route = &front.route;
        if !route.settings.access.allows(&peer) {
            route.counters.refused();
            let reason = format!("{} does not allow it", route.name);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        let config = front.config().ok_or(io::ErrorKind::NotFound)?;
        let client = Channel::accept(stream, &config).map_err(|error| words(&error))?;
        route.counters.opened();
        let session = Self {
            tunnel: Tunnel::new(client, cx.now(), pool),
            peer,
            front,
            link: None,
            opened: cx.now(),
            is_cut: false,
            look_after: cx.now().checked_add(LOOKED_AFTER),
        };
        session.wake_in_time(cx);
        Ok(session)
    }

    pub(crate) fn event(
        &mut self,
        cx: &mut Context<'_>,
        event: IoEvent,
        turns: &Turns,
        pool: &mut Pool,
    ) -> Verdict {
        if self.is_cut {
            self.tunnel.reset();
            self.end(cx.now(), &"its route was removed");
            return Verdict::Close;
        }
        let settings = &self.front.route.settings;
        let (shaking, patience) = (settings.extra.handshake_timeout, settings.patience);
        let turn = self.tunnel.turn(event, cx.now(), shaking, patience, pool);
        self.note_connected(cx.now());
        let hangs = event.is_timeout() && matches!(turn, Turn::Wait) && self.hangs(cx.now());
        let verdict = match turn {
            Turn::Wait if hangs => self.fall_through(cx, &io::ErrorKind::TimedOut.into()),
            Turn::Wait => Verdict::Keep,
            Turn::Again => Verdict::Again,
            Turn::Shaken => self.shaken(cx, turns),
            Turn::NotConnected(error) => self.fall_through(cx, &error),
            Turn::Refused(error) => self.refuse(cx.now(), &error),
            Turn::Over(ending) => {
                self.end(cx.now(), &ending);
                Verdict::Close
            }
        };
        if self.tunnel.hastens() || event.is_timeout() {
            self.look_after(cx.now());
            self.wake_in_time(cx);
        }
        verdict
    }

    /// The handshake is done: connects to the upstream whose turn it is.
    fn shaken(&mut self, cx: &mut Context<'_>, turns: &Turns) -> Verdict {
        let about = self.tunnel.client.about();
        let route = Rc::clone(&self.front.route);
        let local = self.tunnel.client.end.stream.local_address();
        let first = match (route.settings.send_proxy, local) {
            (true, Ok(local)) => header::encode(&self.peer, &local, &about.fields()),
            (true, Err(error)) => return self.refuse(cx.now(), &error),
            (false, _) => Vec::new(),
        };
        self.front.shaken(about.resumed);
        let mut tried = Vec::new();
        let connected = connect(cx, &route, &mut tried, false, |_| Ok(()));
        turns.write(&route);
        match connected {
            Ok((upstream, stream)) => {
                upstream.counters.opened();
                self.tunnel.to(stream, &first, cx.now());
                let attempted = cx.now();
                let link = Link { about, upstream, tried, attempted, connected: None };
                self.link = Some(Box::new(link));
                // What the client has said together with its last word of the handshake is there already.
                Verdict::Keep
            }
            Err((upstream, error)) => self.give_up(cx.now(), &upstream, &error),
        }
    }

    /// There was no handshake.
    fn refuse(&mut self, now: Instant, error: &io::Error) -> Verdict {
        self.front.failed();
        log::debug!("session of [{}] by {}: {error}", self.peer, self.front.route.name);
        self.end(now, &"no handshake");
        Verdict::Close
    }

    fn note_connected(&mut self, now: Instant) {
        let Some(link) = self.link.as_mut().filter(|link| link.connected.is_none()) else { return };
        if !self.tunnel.connecting {
            let took = now.saturating_duration_since(link.attempted);
            link.connected = Some(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
            link.upstream.connected(took);
            self.front.route.counters.connected(took);
            // They are of no use any more.
            link.tried = Vec::new();
        }
    }

    /// The tunnel's deadline moves on with each byte; it is looked at again when it would have passed.
    pub(crate) fn wake_in_time(&self, cx: &mut Context<'_>) {
        let settings = &self.front.route.settings;
        let deadline = self.tunnel.deadline(settings.extra.handshake_timeout, settings.patience);
        let hangs = self.link.as_ref().and_then(|link| {
            let is_connecting = self.tunnel.connecting && self.front.route.upstreams.has_turns();
            let hangs = link.attempted.checked_add(self.patience_with_one());
            hangs.filter(|at| is_connecting && *at > cx.now())
        });
        let bedtime = self.tunnel.bedtime().filter(|at| *at > cx.now());
        if let Some(at) = [deadline, hangs, self.look_after, bedtime].into_iter().flatten().min() {
            cx.wake_at(at);
        }
    }

    fn look_after(&mut self, now: Instant) {
        if self.look_after.take_if(|at| *at <= now).is_some() {
            self.tunnel.keep_alive(self.front.route.settings.keep_alive);
        }
    }

    /// How long an upstream may take to answer if there is another one.
    fn patience_with_one(&self) -> Duration {
        (self.front.route.settings.patience.connect / 5).min(HANGS)
    }

    /// Whether the upstream should have answered by now, and there is another one.
    fn hangs(&self, now: Instant) -> bool {
        let Some(link) = &self.link else { return false };
        self.tunnel.connecting
            && now.saturating_duration_since(link.attempted) >= self.patience_with_one()
            && self.front.route.upstreams.has_another(&link.upstream, &link.tried, now)
    }

    /// The next upstream, after one that could not be connected to.
    fn fall_through(&mut self, cx: &mut Context<'_>, error: &io::Error) -> Verdict {
        let route = Rc::clone(&self.front.route);
        let Some(upstream) = self.link.as_ref().map(|link| Rc::clone(&link.upstream)) else {
            return self.refuse(cx.now(), error);
        };
        log::debug!("upstream {} of {}: {error}", upstream.text, route.name);
        upstream.failed(cx.now());
        match self.go_on(cx) {
            Ok(()) => Verdict::Keep,
            Err((none, _)) if none.address.is_none() => self.give_up(cx.now(), &upstream, error),
            Err((upstream, error)) => self.give_up(cx.now(), &upstream, &error),
        }
    }

    /// Connects to another upstream of its route.
    fn go_on(&mut self, cx: &mut Context<'_>) -> Result<(), (Rc<Upstream>, io::Error)> {
        let Some(link) = &mut self.link else { return Ok(()) };
        if link.upstream.address.is_some() {
            link.tried.push(link.upstream.place());
        }
        // It has the same token as the next one: nothing more may be heard of it.
        if let Some(upstream) = self.tunnel.upstream.take() {
            // A process that is being spawned may have the socket still: it has to leave the loop by itself.
            drop(upstream.stream.into_fd());
        }
        let sent = |_: &mut Stream| Ok(());
        let (upstream, stream) = connect(cx, &self.front.route, &mut link.tried, false, sent)?;
        link.upstream.counters.left();
        upstream.counters.opened();
        (link.upstream, link.attempted) = (upstream, cx.now());
        self.tunnel.to(stream, &[], cx.now());
        self.wake_in_time(cx);
        Ok(())
    }

    /// It has come from a process with other routes: if it is still connecting to an upstream that its
    /// route does not have any more, it takes one that it has.
    pub(crate) fn follow_route(&mut self, cx: &mut Context<'_>) {
        let has_address = |link: &Link| link.upstream.address.is_some();
        let is_lost = self.tunnel.connecting && !self.link.as_deref().is_some_and(has_address);
        if is_lost
            && !self.front.route.upstreams.is_empty()
            && let Err((upstream, error)) = self.go_on(cx)
        {
            log::debug!("upstream {} of {}: {error}", upstream.text, self.front.route.name);
            self.is_cut = true;
        }
    }

    fn give_up(&mut self, now: Instant, upstream: &Upstream, error: &io::Error) -> Verdict {
        let route = &self.front.route;
        if let Some(more) = route.complaints.borrow_mut().line(now) {
            log::warn!(
                "session of [{}] by {}: no upstream; {}: {error}{more}",
                self.peer,
                route.name,
                upstream.text
            );
        }
        self.tunnel.reset();
        route.counters.failed();
        self.end(now, &"never connected");
        Verdict::Close
    }

    /// Neither end is to take for the whole what is only a part.
    pub(crate) fn cut_off(&mut self, now: Instant) {
        self.tunnel.reset();
        self.end(now, &"cut off");
    }

    /// It is counted as gone, without an end: it moves.
    pub(crate) fn leaves(&self, link: Option<&Link>) {
        self.front.route.counters.left();
        let Some(link) = link else { return };
        link.upstream.counters.left();
        if link.connected.is_none() {
            link.upstream.was_left();
        }
    }

    /// It is over here: counted, and in the log if that is wanted.
    fn end(&mut self, now: Instant, how: &dyn std::fmt::Display) {
        let (there, back) = self.tunnel.moved();
        let route = &self.front.route;
        route.counters.ended(there, back);
        let (mut about, mut to, mut took) = ("no TLS".to_owned(), "(none)", 0);
        if let Some(link) = &self.link {
            link.upstream.counters.ended(there, back);
            if link.connected.is_none() {
                link.upstream.was_left();
            }
            to = &link.upstream.text;
            took = link.connected.unwrap_or_default();
            if log::log_enabled!(log::Level::Info) {
                about = link.about.to_string();
            }
        }
        let level = match route.settings.session_log {
            true => log::Level::Info,
            false => log::Level::Debug,
        };
        log::log!(
            level,
            "session of [{}] by {} to {to}, {about}: {how}; {there} bytes there, {back} back; {:.3} s, \
             connected in {:.3} ms",
            self.peer,
            route.name,
            now.saturating_duration_since(self.opened).as_secs_f64(),
            f64::from(took) / 1000.0,
        );
    }
}
