//! The TCP proxy: it is replaced on HUP, and its sessions move along.
//!
//!     cargo run --release --example proxy -- --listen localhost:8080 --to localhost:9090
//!
//! or with a file of routes and settings, which every HUP takes anew (`examples/proxy/README.md`):
//!
//!     # who listens, and where it leads
//!     localhost:8080 -> 10.0.0.1:80, 10.0.0.2:80
//!     unix:/run/front.sock -> localhost:9090
//!
//! USR1 writes to the log what happened on each route, and to each upstream, in numbers.

// The printable form of messages is the demo's alone.
#[path = "proxy/access.rs"]
mod access;
#[path = "proxy/check.rs"]
mod check;
#[allow(dead_code, reason = "each example uses its part of it")]
mod common;
#[path = "proxy/connect.rs"]
mod connect;
#[path = "proxy/counters.rs"]
mod counters;
#[path = "proxy/extra.rs"]
mod extra;
#[path = "proxy/file.rs"]
mod file;
#[path = "proxy/header.rs"]
mod header;
#[path = "proxy/options.rs"]
mod options;
#[path = "proxy/packed.rs"]
mod packed;
#[path = "proxy/peer.rs"]
mod peer;
#[path = "proxy/routes.rs"]
mod routes;
#[path = "proxy/serve.rs"]
mod serve;
#[path = "proxy/session.rs"]
mod session;
#[path = "proxy/settings.rs"]
mod settings;
#[path = "proxy/turns.rs"]
mod turns;
#[path = "proxy/upstreams.rs"]
mod upstreams;

use std::io;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::rc::Rc;

use routes::Route;
use serve::{Program, Settled};
use session::ProxySession;
use settings::Settings;
use tablecloth::relay::Pool;
use tablecloth::{Accepted, Context, Handler, IoEvent, Packed, Verdict};
use turns::Turns;

/// The beginning of the help text.
const USAGE: &str = "\
A TCP proxy that is replaced on HUP while its sessions go on.

usage: proxy --listen ADDRESS --to ADDRESS [--listen ADDRESS --to ADDRESS ...] [flags]
       proxy --routes FILE [flags]

An address is HOST:PORT, [V6]:PORT, unix:/PATH or unix:@NAME. Host names are looked up
at the start and with every HUP; each of their addresses is an upstream.
";

/// Relays every connection to one of its route's upstreams.
struct Proxy {
    routes: Vec<Rc<Route>>,
    /// For sessions whose route is gone.
    settings: Settings,
    cut_removed: bool,
    turns: Turns,
    pool: Pool,
}

impl Proxy {
    fn route(&self, listener: &str) -> Option<&Rc<Route>> {
        self.routes.iter().find(|route| *route.name == *listener)
    }
}

impl Handler for Proxy {
    type Session = ProxySession;

    fn open(&mut self, cx: &mut Context<'_>, accepted: Accepted) -> io::Result<ProxySession> {
        let route = self.route(&accepted.listener).ok_or(io::ErrorKind::NotFound)?;
        let route = Rc::clone(route);
        // Nobody is accepted before the predecessor has ceased to accept, and to take turns.
        self.turns.read(&self.routes);
        ProxySession::open(cx, accepted, route, &self.turns, &mut self.pool)
    }

    fn event(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut ProxySession,
        event: IoEvent,
    ) -> Verdict {
        session.event(cx, event, &mut self.pool)
    }

    fn flush(&mut self, cx: &mut Context<'_>, session: &mut ProxySession) -> Verdict {
        session.flush(cx, &mut self.pool)
    }

    fn closing(&mut self, cx: &mut Context<'_>, session: &mut ProxySession) {
        session.cut_off(cx.now());
    }

    fn pack(
        &mut self,
        cx: &mut Context<'_>,
        session: ProxySession,
        reads: RangeInclusive<u32>,
    ) -> Result<Packed, ProxySession> {
        // It stays until its upstream has taken it into its queue.
        let schema = *reads.end();
        if session.relay.is_queueing() || !session.relay.can_pack(schema) {
            return Err(session);
        }
        Ok(session.pack(cx.now(), schema))
    }

    /// A session of a route that is gone stays as it is, or is cut: it is taken over in any case, or
    /// the predecessor would keep it.
    fn unpack(&mut self, cx: &mut Context<'_>, packed: Packed) -> io::Result<ProxySession> {
        let (routes, settings) = (&self.routes, &self.settings);
        let mut session = packed::unpack(packed, routes, settings, cx.now(), &self.pool)?;
        if session.route.is_removed && self.cut_removed {
            session.cut();
        }
        session.follow_route(cx);
        session.wake_in_time(cx);
        if session.relay.is_idle() && !session.is_cut {
            cx.wait_for_peer();
        }
        Ok(session)
    }

    fn signal(&mut self, _: &mut Context<'_>, _: i32) {
        serve::log_counters(&self.routes);
    }
}

pub(crate) fn main() -> ExitCode {
    let program = Program {
        name: "proxy",
        usage: USAGE,
        flags: "",
        schemas: packed::SCHEMAS,
        init: |init| init,
    };
    serve::main(program, |_, settled, buffer_bytes| {
        let Settled { routes, settings, cut_removed, turns } = settled;
        Ok(Proxy { routes, settings, cut_removed, turns, pool: Pool::new(buffer_bytes) })
    })
}
