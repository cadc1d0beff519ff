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
#[path = "proxy/counters.rs"]
mod counters;
#[path = "proxy/file.rs"]
mod file;
#[path = "proxy/header.rs"]
mod header;
#[path = "proxy/options.rs"]
mod options;
#[path = "proxy/packed.rs"]
mod packed;
#[path = "proxy/routes.rs"]
mod routes;
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

use common::options::not_shared;
use common::{descriptors, logging, program};
use nix::libc::SIGUSR1;
use options::Options;
use routes::Route;
use session::ProxySession;
use settings::Settings;
use tablecloth::relay::Pool;
use tablecloth::{Accepted, Context, Handler, IoEvent, Packed, Server, Verdict};
use turns::Turns;

/// For standard input and output, the loop, and an upgrade.
const SPARE_DESCRIPTORS: usize = 64;

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
        Ok(session)
    }

    fn signal(&mut self, _: &mut Context<'_>, _: i32) {
        for route in &self.routes {
            log::info!("{}: {}", route.name, route.counters);
            for upstream in route.upstreams.iter() {
                log::info!("{} to {}: {}", route.name, upstream.text, upstream.counters);
            }
        }
    }
}

/// Has what happens on a route told by the admin endpoint.
fn tell(server: &mut Server, route: &Route) -> Result<(), tablecloth::Error> {
    let by_route = ("route", &*route.name);
    route.counters.tell(server, &[by_route])?;
    for upstream in route.upstreams.iter() {
        upstream.counters.tell(server, &[by_route, ("upstream", &upstream.text)])?;
    }
    Ok(())
}

/// Makes the routes before the server, and says what is wrong with them after it: only then does a
/// predecessor hear of it.
fn serve(mut options: Options) -> Result<(), String> {
    if options.check {
        return check::check(options);
    }
    let written = match options.file.take() {
        Some(file) => file::read(&file, &mut options),
        None => file::of_flags(&options),
    };
    let settled = options.common.settle();
    // The file may have said at which level.
    logging::start_buffered(options.common.log_level)?;
    let routes = settled.and(written).and_then(routes::make);
    // A session has two descriptors: accepting pauses before there are none left for an upstream.
    let listeners = routes.as_ref().map_or(0, Vec::len);
    let left = descriptors::raise_limit().saturating_sub(SPARE_DESCRIPTORS + listeners);
    let config = &mut options.common.config;
    config.max_sessions = config.max_sessions.min(left / 2).max(1);
    config.user_signals = vec![SIGUSR1];
    let config = options.common.config.schemas(packed::SCHEMAS);
    let is_watched = config.admin.is_some();
    let mut server = Server::new(config).map_err(|error| error.to_string())?;
    logging::go();
    let listening = routes.and_then(|routes| {
        let mut listening = 0;
        let mut unknown = None;
        for route in &routes {
            if let Some(error) = not_shared(&route.listen) {
                return Err(format!("{}: {error}", route.place));
            }
            if is_watched {
                tell(&mut server, route).map_err(|error| error.to_string())?;
            }
            let bound = server.listen_with(&route.name, &route.listen, &options.common.socket);
            let bound = match bound {
                Ok(bound) => bound,
                // As with an upstream: a name server that is away does not keep the others from a reload.
                Err(error @ tablecloth::Error::Address { .. })
                    if routes::is_name_and_port(&route.listen) =>
                {
                    let Route { place, .. } = route;
                    log::warn!("{place}: the route is not used until the next HUP: {error}");
                    unknown.get_or_insert(format!("{place}: {error}"));
                    continue;
                }
                Err(error) => return Err(format!("{}: {error}", route.place)),
            };
            listening += 1;
            if let Some(upstream) = route.leads_to_itself(&bound) {
                let Route { place, listen, .. } = route;
                return Err(format!("{place}: {listen} leads to itself, by {}", upstream.text));
            }
        }
        if let (0, Some(error)) = (listening, unknown) {
            return Err(error);
        }
        let turns = server.file("turns", Turns::make).map_err(|error| error.to_string())?;
        Ok((routes, turns))
    });
    let (routes, turns) = match listening {
        Ok(listening) => listening,
        Err(error) => {
            server.refuse(&error);
            return Err(error);
        }
    };
    let proxy = Proxy {
        routes: routes.into_iter().map(Rc::new).collect(),
        settings: options.settings,
        cut_removed: options.cut_removed,
        turns: Turns::new(turns),
        pool: Pool::new(options.buffer_bytes),
    };
    logging::finish();
    server.run(proxy).map(drop).map_err(|error| error.to_string())
}

pub(crate) fn main() -> ExitCode {
    if let Some(status) = common::ctl::run("proxy") {
        return status;
    }
    if let Some(status) = common::init::run("proxy") {
        return status;
    }
    let mut config = tablecloth::Config::default();
    config.user_signals = vec![SIGUSR1];
    config.hold_signals();
    let help = format!("{}\n{}", options::HELP, common::options::HELP);
    program::run("proxy", &help, options::parse(lexopt::Parser::from_env()), serve)
}
