//! The proxy's handler.

use std::io;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Instant;

use tablecloth::{Accepted, Context, HandedOver, Handler, IoEvent, Packed, Server, Verdict};

use super::certificates::{self, Shelf};
use super::channel::words;
use super::front::Front;
use super::packed::{self, Kit};
use super::routes::Route;
use super::secrecy;
use super::serve::{self, Settled};
use super::session::TlsSession;
use super::settings::Settings;
use super::tickets::{self, Tickets};
use super::tunnel::Pool;
use super::turns::Turns;
use super::vault::Vault;

/// Relays every connection to one of its route's upstreams.
pub(crate) struct Proxy {
    fronts: Vec<Rc<Front>>,
    routes: Vec<Rc<Route>>,
    /// For sessions whose route is gone.
    settings: Settings,
    cut_removed: bool,
    turns: Turns,
    tickets: Tickets,
    pool: Pool,
    /// What seals the sessions that leave, and what has sealed those that come.
    leaving: Option<Vault>,
    coming: Option<Vault>,
    /// The successor is dead, and what it had not taken is back by the next tick.
    forgets: bool,
    /// Not every front has the newest keys of tickets.
    is_stale: bool,
    /// When the keys of tickets are looked at next.
    look: Option<Instant>,
}

impl Proxy {
    pub(crate) fn new(
        server: &mut Server,
        settled: Settled,
        buffer_bytes: usize,
    ) -> Result<Self, String> {
        let Settled { routes, settings, cut_removed, turns } = settled;
        let file = server.file(tickets::NAME, Tickets::make).map_err(|error| error.to_string())?;
        let mut tickets = Tickets::new(file);
        tickets.look().map_err(|error| format!("the keys of tickets: {error}"))?;
        let (mut shelf, keys) = (Shelf::default(), tickets.keys());
        let front = |route| Front::new(server, Rc::clone(route), &mut shelf, keys).map(Rc::new);
        let fronts = routes.iter().map(front).collect::<Result<_, _>>()?;
        let moved = certificates::config_of_moved().map_err(|error| words(&error).to_string())?;
        Ok(Self {
            fronts,
            routes,
            settings,
            cut_removed,
            turns,
            tickets,
            pool: Pool::new(buffer_bytes, moved),
            leaving: None,
            coming: None,
            forgets: false,
            is_stale: false,
            look: None,
        })
    }

    fn front(&self, listener: &str) -> Option<&Rc<Front>> {
        self.fronts.iter().find(|front| *front.route.name == *listener)
    }

    /// New connections get tickets by the keys that count by now.
    fn renew(&mut self) -> io::Result<()> {
        self.is_stale |= self.tickets.look()?;
        if self.is_stale {
            for front in &self.fronts {
                front.renew(self.tickets.keys()).map_err(|error| words(&error))?;
            }
            self.is_stale = false;
        }
        Ok(())
    }
}

impl Handler for Proxy {
    type Session = TlsSession;

    fn open(&mut self, cx: &mut Context<'_>, accepted: Accepted) -> io::Result<TlsSession> {
        let front = self.front(&accepted.listener).ok_or(io::ErrorKind::NotFound)?;
        let front = Rc::clone(front);
        // Nobody is accepted before the predecessor has ceased to accept. A handshake that ends there later may still take
        // a turn, which the two count separately then.
        self.turns.read(&self.routes);
        if self.look.is_none() {
            // The first process has changed its user by now, and with that the kernel has forgotten it (prctl(2)).
            secrecy::hide_memory();
            self.tick(cx);
        }
        TlsSession::open(cx, accepted, front, &self.pool)
    }

    fn event(&mut self, cx: &mut Context<'_>, session: &mut TlsSession, event: IoEvent) -> Verdict {
        session.event(cx, event, &self.turns, &mut self.pool)
    }

    fn closing(&mut self, cx: &mut Context<'_>, session: &mut TlsSession) {
        session.cut_off(cx.now());
    }

    fn pack(
        &mut self,
        cx: &mut Context<'_>,
        session: TlsSession,
        _: RangeInclusive<u32>,
    ) -> Result<Packed, TlsSession> {
        match &mut self.leaving {
            Some(vault) => packed::pack(session, vault, cx.now()),
            None => Err(session),
        }
    }

    /// A session of a route that is gone stays as it is, or is cut: it is taken over in any case, or
    /// the predecessor would keep it.
    fn unpack(&mut self, cx: &mut Context<'_>, packed: Packed) -> io::Result<TlsSession> {
        let kit = Kit {
            fronts: &self.fronts,
            settings: &self.settings,
            pool: &self.pool,
            vaults: [self.coming.as_ref(), self.leaving.as_ref()],
        };
        let mut session = packed::unpack(packed, &kit, cx.now())?;
        session.is_cut = session.front.route.is_removed && self.cut_removed;
        session.follow_route(cx);
        session.wake_in_time(cx);
        Ok(session)
    }

    /// The key by which the sessions are sealed.
    fn hand_over(
        &mut self,
        _: &mut Context<'_>,
        _: RangeInclusive<u32>,
    ) -> io::Result<Option<HandedOver>> {
        let (vault, file) = Vault::make()?;
        (self.leaving, self.forgets) = (Some(vault), false);
        Ok(Some(HandedOver::new(*packed::SCHEMAS.end(), Vec::new()).with(vec![file])))
    }

    fn take_over(&mut self, cx: &mut Context<'_>, mut state: HandedOver) -> io::Result<()> {
        let file = state.descriptors.pop().ok_or(io::ErrorKind::InvalidData)?;
        self.coming = Some(Vault::open(file)?);
        self.tick(cx);
        Ok(())
    }

    fn successor_gone(&mut self, _: &mut Context<'_>) {
        self.forgets = true;
    }

    /// All sessions that it had have come.
    fn predecessor_gone(&mut self, _: &mut Context<'_>) {
        self.coming = None;
    }

    fn tick(&mut self, cx: &mut Context<'_>) {
        if std::mem::take(&mut self.forgets) {
            self.leaving = None;
        }
        if let Err(error) = self.renew() {
            log::warn!("the keys of tickets stay as they are: {error}");
        }
        self.look = cx.now().checked_add(tickets::LOOK);
        self.look.into_iter().for_each(|at| cx.tick_at(at));
    }

    fn signal(&mut self, _: &mut Context<'_>, _: i32) {
        serve::log_counters(&self.routes);
    }
}
