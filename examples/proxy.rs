//! The TCP proxy: it is replaced on HUP, and its sessions move along.
//!
//!     cargo run --release --example proxy -- --listen localhost:8080 --to localhost:9090
//!
//! or with a file of routes, which every HUP takes anew:
//!
//!     # who listens, and where it leads
//!     localhost:8080 -> 10.0.0.1:80, 10.0.0.2:80
//!     unix:/run/front.sock -> localhost:9090

// The printable form of messages is the demo's alone.
#[allow(dead_code, reason = "each example uses its part of it")]
mod common;
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

use std::io;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::rc::Rc;

use common::{descriptors, logging, output};
use options::Options;
use routes::Route;
use session::{ProxySession, Settings};
use tablecloth::relay::Pool;
use tablecloth::{Accepted, Context, Handler, IoEvent, Packed, Server, Verdict};

/// For standard input and output, the loop, and an upgrade.
const SPARE_DESCRIPTORS: usize = 64;

/// Relays every connection to one of its route's upstreams.
struct Proxy {
    routes: Vec<Rc<Route>>,
    settings: Settings,
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
        ProxySession::open(cx, accepted, Rc::clone(route), &self.settings, &mut self.pool)
    }

    fn event(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut ProxySession,
        event: IoEvent,
    ) -> Verdict {
        session.event(cx, event, &self.settings, &mut self.pool)
    }

    fn flush(&mut self, cx: &mut Context<'_>, session: &mut ProxySession) -> Verdict {
        session.flush(cx, &self.settings, &mut self.pool)
    }

    fn closing(&mut self, _: &mut Context<'_>, session: &mut ProxySession) {
        session.cut_off();
    }

    fn schemas(&self) -> Option<RangeInclusive<u32>> {
        Some(packed::SCHEMAS)
    }

    fn pack(
        &mut self,
        cx: &mut Context<'_>,
        session: ProxySession,
    ) -> Result<Packed, ProxySession> {
        // It stays until its upstream has taken it into its queue.
        if session.relay.is_queueing() { Err(session) } else { Ok(session.pack(cx.now())) }
    }

    /// A session of a route that is gone stays as it is, or is cut: it is taken over in any case, or
    /// the predecessor would keep it.
    fn unpack(&mut self, cx: &mut Context<'_>, packed: Packed) -> io::Result<ProxySession> {
        let mut session = ProxySession::unpack(packed, &self.routes, cx.now(), &self.pool)?;
        if session.is_of_removed_route() && self.settings.cut_removed {
            session.cut();
        }
        session.wake_in_time(cx, &self.settings);
        Ok(session)
    }
}

/// Makes the routes before the server, and says what is wrong with them after it: only then does a
/// predecessor hear of it.
fn serve(mut options: Options) -> Result<(), String> {
    logging::start_buffered(options.common.log_level)?;
    let (routes, settings) = (routes::load(&options), options.settings);
    // A session has two descriptors: accepting pauses before there are none left for an upstream.
    let listeners = routes.as_ref().map_or(0, Vec::len);
    let left = descriptors::raise_limit().saturating_sub(SPARE_DESCRIPTORS + listeners);
    let config = &mut options.common.config;
    config.max_sessions = config.max_sessions.min(left / 2).max(1);
    let pool = Pool::new(options.buffer_bytes);
    let proxy = Proxy { routes: Vec::new(), settings, pool };
    let mut server =
        Server::new(options.common.config, proxy).map_err(|error| error.to_string())?;
    logging::go();
    let routes = match routes {
        Ok(routes) => routes,
        Err(error) => {
            server.refuse(&error);
            return Err(error);
        }
    };
    for route in &routes {
        if let Err(error) = server.listen_with(&route.name, &route.listen, &options.common.socket) {
            let error = format!("{}: {error}", route.place);
            server.refuse(&error);
            return Err(error);
        }
    }
    server.handler_mut().routes = routes.into_iter().map(Rc::new).collect();
    logging::finish();
    server.run().map_err(|error| error.to_string())
}

pub(crate) fn main() -> ExitCode {
    tablecloth::Config::default().hold_signals();
    let (status, error) = match options::parse(lexopt::Parser::from_env()) {
        Ok(None) => {
            output::print(&format_args!("{}\n{}", options::HELP, common::options::HELP));
            return ExitCode::SUCCESS;
        }
        Ok(Some(options)) => {
            let served = serve(options);
            logging::finish();
            match served {
                Ok(()) => return ExitCode::SUCCESS,
                Err(error) => (1, error),
            }
        }
        Err(error) => (2, error),
    };
    output::complain("proxy", &error);
    ExitCode::from(status)
}
