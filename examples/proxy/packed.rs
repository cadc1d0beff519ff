//! A session on its way to the successor, in bytes: by which route it came, from whom, where it
//! leads, since when, how long it took to connect, and then the relay's own state.

use std::io;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tablecloth::Packed;
use tablecloth::relay::{self, Pool, Relay};

use super::connect::Lead;
use super::peer::{peer_of, text_of};
use super::routes::Route;
use super::session::{LOOKED_AFTER, ProxySession};
use super::settings::Settings;

/// The form of a packed session; the relay's is a part of it. Form 1 says nothing of times.
pub(crate) const SCHEMA: u32 = relay::SCHEMA;
pub(crate) const SCHEMAS: RangeInclusive<u32> = 1..=SCHEMA;
const WITH_TIMES: u32 = 2;

/// Takes a session apart, in a form that its next owner reads.
pub(crate) fn pack(session: ProxySession, now: Instant, schema: u32) -> Packed {
    let ProxySession { relay, peer, route, lead, opened, .. } = session;
    let Lead { upstream, tried, connected, .. } = lead;
    let mut state = Vec::new();
    for text in [&*route.name, &text_of(&peer), &upstream.text] {
        // Each of them is an address, which is no longer than a line of the routes.
        state.extend((text.len() as u16).to_le_bytes());
        state.extend(text.as_bytes());
    }
    state.extend((tried.len() as u16).to_le_bytes());
    if schema >= WITH_TIMES {
        let age = u64::try_from(now.saturating_duration_since(opened).as_micros());
        state.extend(age.unwrap_or(u64::MAX).to_le_bytes());
        state.extend(connected.unwrap_or(u32::MAX).to_le_bytes());
    }
    let streams = relay.pack(now, &mut state);
    Packed::new(schema, state, streams)
}

pub(crate) fn unpack(
    packed: Packed,
    routes: &[Rc<Route>],
    settings: &Settings,
    now: Instant,
    pool: &Pool,
) -> io::Result<ProxySession> {
    let error =
        |field: &str| io::Error::new(io::ErrorKind::InvalidData, format!("field {field:?}"));
    let Packed { schema, state, streams, .. } = packed;
    if !SCHEMAS.contains(&schema) {
        return Err(error("schema"));
    }
    let mut rest = state.as_slice();
    let name = text(&mut rest).ok_or_else(|| error("route"))?;
    let peer = text(&mut rest).ok_or_else(|| error("peer"))?;
    let leads_to = text(&mut rest).ok_or_else(|| error("upstream"))?;
    // How many upstreams were tried, which counts anew by the routes of this process.
    take::<2>(&mut rest).ok_or_else(|| error("tried"))?;
    let (mut age, mut connected) = (Duration::ZERO, None);
    if schema >= WITH_TIMES {
        let micros = take(&mut rest).map(u64::from_le_bytes).ok_or_else(|| error("age"))?;
        age = Duration::from_micros(micros);
        let took = take(&mut rest).map(u32::from_le_bytes).ok_or_else(|| error("connected"))?;
        connected = Some(took);
    }
    let relay = Relay::unpack(rest, streams, now, pool)?;
    let route = routes.iter().find(|route| *route.name == *name);
    let removed = || Rc::new(Route::removed(name, settings.clone()));
    let route = route.map_or_else(removed, Rc::clone);
    // Of one that is connected and does not say how long that took, nothing is known.
    let connected = (!relay.is_connecting()).then(|| connected.unwrap_or_default());
    route.counters.opened();
    let lead = Lead::again(&route, leads_to, connected, now);
    Ok(ProxySession {
        relay,
        peer: peer_of(peer),
        route,
        lead,
        opened: now.checked_sub(age).unwrap_or(now),
        is_cut: false,
        look_after: now.checked_add(LOOKED_AFTER),
    })
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
