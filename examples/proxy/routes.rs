//! The routes: who listens, and where it leads.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;

use nix::ifaddrs::getifaddrs;
use tablecloth::limits::{NAME_BYTES, NAMED};
use tablecloth::{Address, Throttle};

use super::counters::Counters;
use super::file::{Written, WrittenUpstream};
use super::settings::Settings;
use super::upstreams::{Upstream, Upstreams};

/// One listener and its upstreams.
#[derive(Debug)]
pub(crate) struct Route {
    /// The listener's name, by which a successor inherits it: its address as it was written.
    pub(crate) name: Rc<str>,
    pub(crate) listen: String,
    /// Where it was written: a file, a line and a column, or a flag.
    pub(crate) place: String,
    pub(crate) upstreams: Upstreams,
    pub(crate) settings: Settings,
    pub(crate) counters: Counters,
    /// It is there no longer, and has the sessions that came by it.
    pub(crate) is_removed: bool,
    /// Where its turn stands in the file of turns, if it takes any.
    pub(crate) slot: Cell<Option<usize>>,
    /// So many lines a second its failures cost.
    pub(crate) complaints: RefCell<Throttle>,
}

impl Route {
    /// A route that there is no longer, for a session that came by it.
    pub(crate) fn removed(name: &str, settings: Settings) -> Self {
        Self {
            name: name.into(),
            listen: name.into(),
            place: String::new(),
            upstreams: Upstreams::default(),
            settings,
            counters: Counters::default(),
            is_removed: true,
            slot: Cell::new(None),
            complaints: RefCell::default(),
        }
    }

    /// Whether one of its upstreams is its own listener, which is bound to that address: a session would
    /// lead to another one, and that to the next, without an end.
    pub(crate) fn leads_to_itself(&self, bound: &Address) -> Option<&Upstream> {
        let is_own = |upstream: &&Rc<Upstream>| match (&upstream.address, bound) {
            (Some(Address::Internet(to)), Address::Internet(own)) => {
                let (to_ip, own_ip) = (to.ip().to_canonical(), own.ip().to_canonical());
                let is_there = to_ip == own_ip || own_ip.is_unspecified() && is_of_here(to_ip);
                to.port() == own.port() && is_there
            }
            (to, _) => to.as_ref() == Some(bound),
        };
        self.upstreams.iter().find(is_own).map(|upstream| &**upstream)
    }
}

/// Looks up every upstream of the routes, and says which of them cannot be used.
pub(crate) fn make(written: Vec<Written>) -> Result<Vec<Route>, String> {
    // The file of turns is passed on by name as well.
    if written.len() >= NAMED {
        let (route, most) = (&written[NAMED - 1], NAMED - 1);
        return Err(format!(
            "{}: more than {most} routes, which is as many as can be",
            route.place
        ));
    }
    let mut routes: Vec<Route> = Vec::new();
    for route in written {
        let name = name_of(&route.listen);
        if let Some(first) = routes.iter().find(|first| *first.name == *name) {
            let Written { place, listen, .. } = route;
            return Err(format!("{place}: {listen} is listened on already, by {}", first.place));
        }
        let mut upstreams = Vec::new();
        for upstream in &route.upstreams {
            upstreams.extend(look_up(upstream)?);
        }
        if upstreams.is_empty() {
            log::warn!(
                "{}: the route by {} leads nowhere until the next HUP",
                route.place,
                route.listen
            );
        }
        if upstreams.len() > usize::from(u16::MAX) {
            return Err(format!("{}: more than {} upstreams", route.place, u16::MAX));
        }
        routes.push(Route {
            name: name.into(),
            listen: route.listen,
            place: route.place,
            upstreams: Upstreams::new(upstreams, route.settings.policy),
            settings: route.settings,
            counters: Counters::default(),
            is_removed: false,
            slot: Cell::new(None),
            complaints: RefCell::default(),
        });
    }
    Ok(routes)
}

/// One upstream for each address. A name that is not known now may be with the next HUP: it is passed
/// over, and what is no address at all is an error.
fn look_up(written: &WrittenUpstream) -> Result<Vec<Upstream>, String> {
    let WrittenUpstream { place, address: text, weight, is_backup } = written;
    match Address::resolve(text) {
        Ok(addresses) => {
            let is_one = addresses.len() == 1;
            let upstream = |address: Address| {
                let name = if is_one { text.clone() } else { address.to_string() };
                Upstream::new(&name, Some(address), *weight, *is_backup)
            };
            Ok(addresses.into_iter().map(upstream).collect())
        }
        Err(error) if is_name_and_port(text) => {
            log::warn!("{place}: not used until the next HUP: {error}");
            Ok(Vec::new())
        }
        Err(error) => Err(format!("{place}: {error}")),
    }
}

/// Whether it is an address if only the name were known.
pub(crate) fn is_name_and_port(text: &str) -> bool {
    let host_and_port = text.rsplit_once(':').filter(|_| !text.starts_with("unix:"));
    host_and_port.is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains([':', '[', '/']) && port.parse::<u16>().is_ok()
    })
}

fn is_of_here(ip: IpAddr) -> bool {
    let interfaces = getifaddrs().into_iter().flatten().filter_map(|it| it.address);
    let is_it = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        v4.or(address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip()))) == Some(ip)
    };
    ip.is_loopback() || interfaces.into_iter().any(is_it)
}

/// A name that fits. Of a long address it is the end, and in front of that a number of the whole, because
/// two of them may end alike.
fn name_of(listen: &str) -> String {
    const NUMBER_BYTES: usize = 17;
    if listen.len() <= NAME_BYTES {
        return listen.into();
    }
    let mut start = listen.len() - (NAME_BYTES - NUMBER_BYTES);
    while !listen.is_char_boundary(start) {
        start += 1;
    }
    format!("{:016x}-{}", number_of(listen), &listen[start..])
}

/// A number by which texts can be told apart, the same in every build (FNV-1a).
pub(crate) fn number_of(text: &str) -> u64 {
    let add = |number: u64, byte| (number ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, add)
}
