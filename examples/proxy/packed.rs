//! A session on its way to the successor, in bytes: by which route it came, from whom, where it
//! leads, how many upstreams were tried, and then the relay's own state.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use tablecloth::relay::{self, Pool, Relay};
use tablecloth::{Address, Packed};

use super::routes::{Route, Upstream};
use super::session::ProxySession;

/// The form of a packed session; the relay's is a part of it.
pub(crate) const SCHEMA: u32 = relay::SCHEMA;

pub(crate) fn pack(session: ProxySession, now: Instant) -> Packed {
    let ProxySession { relay, peer, route, upstream, tried, is_cut: _ } = session;
    let mut state = Vec::new();
    for text in [&*route.name, &peer.to_string(), &upstream.text] {
        // Each of them is an address, a few hundred bytes at most.
        state.extend((text.len() as u16).to_le_bytes());
        state.extend(text.as_bytes());
    }
    state.extend(tried.to_le_bytes());
    let streams = relay.pack(now, &mut state);
    Packed { schema: SCHEMA, state, streams }
}

pub(crate) fn unpack(
    packed: Packed,
    routes: &[Rc<Route>],
    now: Instant,
    pool: &Pool,
) -> io::Result<ProxySession> {
    let error =
        |field: &str| io::Error::new(io::ErrorKind::InvalidData, format!("field {field:?}"));
    let Packed { schema, state, streams } = packed;
    if schema != SCHEMA {
        return Err(error("schema"));
    }
    let mut rest = state.as_slice();
    let name = text(&mut rest).ok_or_else(|| error("route"))?;
    let peer = text(&mut rest).ok_or_else(|| error("peer"))?;
    let leads_to = text(&mut rest).ok_or_else(|| error("upstream"))?;
    let tried = take::<2>(&mut rest).map(u16::from_le_bytes).ok_or_else(|| error("tried"))?;
    let relay = Relay::unpack(rest, streams, now, pool)
        .map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem))?;
    let route = routes.iter().find(|route| *route.name == *name);
    let route = route.map_or_else(|| Rc::new(Route::removed(name)), Rc::clone);
    // An upstream that the route has no longer is kept by the sessions that it has.
    let known = route.upstreams.iter().find(|upstream| *upstream.text == *leads_to);
    let unknown = || Rc::new(Upstream { text: leads_to.into(), address: None });
    let upstream = known.map_or_else(unknown, Rc::clone);
    // An unnamed peer has no address that could be parsed.
    let peer = peer.parse().unwrap_or(Address::Unnamed);
    Ok(ProxySession { relay, peer, route, upstream, tried, is_cut: false })
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::from(take::<2>(rest).map(u16::from_le_bytes)?);
    let (text, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    std::str::from_utf8(text).ok()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*taken)
}
