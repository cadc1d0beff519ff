//! A session on its way to the successor, in bytes: by which route it came, from whom, where it
//! leads, how many upstreams were tried, and then the relay's own state.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Instant;

use tablecloth::relay::{self, Pool, Relay};
use tablecloth::{Address, Packed};

use super::routes::{Route, Upstream};
use super::session::ProxySession;

/// The form of a packed session; the relay's is a part of it.
pub(crate) const SCHEMA: u32 = relay::SCHEMA;
pub(crate) const SCHEMAS: RangeInclusive<u32> = 1..=SCHEMA;

pub(crate) fn pack(session: ProxySession, now: Instant) -> Packed {
    let ProxySession { relay, peer, route, upstream, tried, is_cut: _ } = session;
    let mut state = Vec::new();
    for text in [&*route.name, &text_of(&peer), &upstream.text] {
        // Each of them is an address, which is no longer than a line of the routes.
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
    if !SCHEMAS.contains(&schema) {
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
    let peer = peer_of(peer);
    Ok(ProxySession { relay, peer, route, upstream, tried, is_cut: false })
}

/// Before a name whose text does not say it, with two digits for each byte.
const NAME: &str = "name:";

/// A peer as a text of which [`peer_of`] makes the same peer. Clients choose their names, and a name may
/// have any bytes in it.
fn text_of(peer: &Address) -> String {
    let text = peer.to_string();
    match peer.to_name() {
        Some(name) if peer_of(&text) != *peer => {
            name.iter().fold(NAME.into(), |text, byte| format!("{text}{byte:02x}"))
        }
        Some(_) | None => text,
    }
}

/// The peer in a text. It is never looked up: a peer has an address and no host name.
fn peer_of(text: &str) -> Address {
    if let Some(digits) = text.strip_prefix(NAME) {
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let name: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(byte).collect();
        return name.map_or(Address::Unnamed, |name| Address::from_name(&name));
    }
    let unix = text.starts_with("unix:") && text != Address::Unnamed.to_string();
    let parsed = if unix { text.parse().ok() } else { text.parse().ok().map(SocketAddr::into) };
    parsed.unwrap_or(Address::Unnamed)
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
