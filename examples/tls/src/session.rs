//! A client by TLS, its upstream, and the tunnel between them.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tablecloth::{Accepted, Address, Context, IoEvent, Stream, Verdict};

use super::about::About;
use super::channel::{Channel, words};
use super::connect::{Lead, complain, connect};
use super::front::Front;
use super::header;
use super::tunnel::{Pool, Tunnel, Turn};
use super::turns::Turns;
use super::upstreams::Upstream;

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
    pub(crate) lead: Lead,
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
            Turn::Wait if hangs => self.fall_through(cx, io::ErrorKind::TimedOut.into()),
            Turn::Wait => Verdict::Keep,
            Turn::Again => Verdict::Again,
            Turn::Shaken => self.shaken(cx, turns),
            Turn::NotConnected(error) => self.fall_through(cx, error),
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
                self.tunnel.to(stream, &first, cx.now());
                let lead = Lead::new(upstream, tried, None, cx.now());
                self.link = Some(Box::new(Link { about, lead }));
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
        if let Some(link) = self.link.as_mut().filter(|_| !self.tunnel.connecting) {
            link.lead.note_connected(&self.front.route, now);
        }
    }

    /// The tunnel's deadline moves on with each byte; it is looked at again when it would have passed.
    pub(crate) fn wake_in_time(&self, cx: &mut Context<'_>) {
        let settings = &self.front.route.settings;
        let deadline = self.tunnel.deadline(settings.extra.handshake_timeout, settings.patience);
        let link = self.link.as_ref().filter(|_| self.tunnel.connecting);
        let hangs = link.and_then(|link| link.lead.hangs_at(&self.front.route, cx.now()));
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

    /// Whether the upstream should have answered by now, and there is another one.
    fn hangs(&self, now: Instant) -> bool {
        let link = self.link.as_ref().filter(|_| self.tunnel.connecting);
        link.is_some_and(|link| link.lead.hangs(&self.front.route, now))
    }

    /// The next upstream, after one that could not be connected to.
    fn fall_through(&mut self, cx: &mut Context<'_>, error: io::Error) -> Verdict {
        self.tunnel.forget_upstream();
        let Some(link) = &mut self.link else { return self.refuse(cx.now(), &error) };
        match link.lead.fall_through(cx, &self.front.route, false, error) {
            Ok(stream) => {
                self.reconnect(cx, stream);
                Verdict::Keep
            }
            Err((upstream, error)) => self.give_up(cx.now(), &upstream, &error),
        }
    }

    fn reconnect(&mut self, cx: &mut Context<'_>, stream: Stream) {
        self.tunnel.to(stream, &[], cx.now());
        self.wake_in_time(cx);
    }

    /// It has come from a process with other routes: if it is still connecting to an upstream that its
    /// route does not have any more, it takes one that it has.
    pub(crate) fn follow_route(&mut self, cx: &mut Context<'_>) {
        let Some(link) = &mut self.link else { return };
        let is_lost = self.tunnel.connecting && link.lead.is_lost();
        if is_lost && !self.front.route.upstreams.is_empty() {
            self.tunnel.forget_upstream();
            match link.lead.go_on(cx, &self.front.route, false) {
                Ok(stream) => self.reconnect(cx, stream),
                Err((upstream, error)) => {
                    log::debug!("upstream {} of {}: {error}", upstream.text, self.front.route.name);
                    self.is_cut = true;
                }
            }
        }
    }

    fn give_up(&mut self, now: Instant, upstream: &Upstream, error: &io::Error) -> Verdict {
        let route = &self.front.route;
        complain(&self.peer, route, upstream, error, now);
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
        link.into_iter().for_each(|link| link.lead.left());
    }

    /// It is over here: counted, and in the log if that is wanted.
    fn end(&mut self, now: Instant, how: &dyn std::fmt::Display) {
        let (there, back) = self.tunnel.moved();
        let route = &self.front.route;
        route.counters.ended(there, back);
        let (mut about, mut to, mut took) = ("no TLS".to_owned(), "(none)", 0);
        if let Some(link) = &self.link {
            link.lead.ended(there, back);
            to = &link.lead.upstream.text;
            took = link.lead.connected.unwrap_or_default();
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
