//! How a proxy starts: its flags and routes, its listeners, its counters, and then its handler.

use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::rc::Rc;

use nix::libc::SIGUSR1;
use tablecloth::{Config, Error, Handler, Init, Server};

use super::common::options::not_shared;
use super::common::{self, descriptors, logging};
use super::options::{self, Options};
use super::routes::{self, Route};
use super::settings::Settings;
use super::turns::Turns;
use super::{check, file};

/// For standard input and output, the loop, and an upgrade.
const SPARE_DESCRIPTORS: usize = 64;

/// What flags and routes have come to.
pub(crate) struct Settled {
    pub(crate) routes: Vec<Rc<Route>>,
    /// For sessions whose route is gone.
    pub(crate) settings: Settings,
    pub(crate) cut_removed: bool,
    pub(crate) turns: Turns,
}

/// What a proxy is.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// The beginning of its help text.
    pub(crate) usage: &'static str,
    /// The flags that only this one has, with a line end, or nothing.
    pub(crate) flags: &'static str,
    pub(crate) schemas: RangeInclusive<u32>,
    /// What else its init is to do.
    pub(crate) init: fn(Init) -> Init,
}

/// The `main` of a proxy. `make` makes its handler, when the listeners are there, and gets how many bytes all
/// sessions together may keep.
pub(crate) fn main<H: Handler>(
    program: Program,
    make: impl FnOnce(&mut Server, Settled, usize) -> Result<H, String>,
) -> ExitCode {
    let Program { name, usage, flags, schemas, init } = program;
    if let Some(status) = common::ctl::run(name) {
        return status;
    }
    if let Some(status) = common::init::run_with(name, init) {
        return status;
    }
    let mut config = Config::default();
    config.user_signals = vec![SIGUSR1];
    config.hold_signals();
    let help = format!("{usage}\n{flags}{}\n{}", options::HELP, common::options::HELP);
    common::program::run(name, &help, options::parse(lexopt::Parser::from_env()), |options| {
        serve(options, schemas, make)
    })
}

/// Writes to the log what happened on each route, and to each upstream, in numbers.
pub(crate) fn log_counters(routes: &[Rc<Route>]) {
    for route in routes {
        log::info!("{}: {}", route.name, route.counters);
        for upstream in route.upstreams.iter() {
            log::info!("{} to {}: {}", route.name, upstream.text, upstream.counters);
        }
    }
}

/// Has what happens on a route told by the admin endpoint.
fn tell(server: &mut Server, route: &Route) -> Result<(), Error> {
    let by_route = ("route", &*route.name);
    route.counters.tell(server, &[by_route])?;
    for upstream in route.upstreams.iter() {
        upstream.counters.tell(server, &[by_route, ("upstream", &upstream.text)])?;
    }
    Ok(())
}

/// Makes the routes before the server, and says what is wrong with them after it: only then does a
/// predecessor hear of it.
fn serve<H: Handler>(
    mut options: Options,
    schemas: RangeInclusive<u32>,
    make: impl FnOnce(&mut Server, Settled, usize) -> Result<H, String>,
) -> Result<(), String> {
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
    let config = options.common.config.schemas(schemas);
    let is_watched = config.admin.is_some();
    let mut server = Server::new(config).map_err(|error| error.to_string())?;
    logging::go();
    let buffer_bytes = options.buffer_bytes;
    let handler = routes.and_then(|routes| {
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
                Err(error @ Error::Address { .. }) if routes::is_name_and_port(&route.listen) => {
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
        let settled = Settled {
            routes: routes.into_iter().map(Rc::new).collect(),
            settings: options.settings,
            cut_removed: options.cut_removed,
            turns: Turns::new(turns),
        };
        make(&mut server, settled, buffer_bytes)
    });
    let handler = match handler {
        Ok(handler) => handler,
        Err(error) => {
            server.refuse(&error);
            return Err(error);
        }
    };
    logging::finish();
    server.run(handler).map(drop).map_err(|error| error.to_string())
}
