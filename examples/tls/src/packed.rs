//! A session on its way to the successor, in bytes, all of them sealed.
//!
//! Who may encrypt for a client, at which step:
//!
//! | step | the predecessor | the successor |
//! | --- | --- | --- |
//! | before | encrypts | has nothing |
//! | packed | cannot: `Channel::sleep` has taken the keys out of the connection, and s2n-tls has wiped them there | has nothing |
//! | sent | cannot | puts the connection together, and writes nothing: that is the promise of `Handler::unpack` |
//! | acknowledged | cannot, and forgets what it has | encrypts |
//! | not acknowledged, and the successor dead | reads every acknowledgement that the kernel has; if there is none, the successor has written nothing, and it puts the connection together again and encrypts | is dead |
//!
//! So a sequence number, and with it a nonce, is used by one of them only. An acknowledgement precedes the first byte,
//! and what was sent before a death is read before the death is heard of (unix(7), `SOCK_SEQPACKET`).

use std::io;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tablecloth::{Packed, Stream};
use zeroize::Zeroizing;

use super::about::About;
use super::channel::{Channel, State, words};
use super::connect::Lead;
use super::end::End;
use super::front::Front;
use super::peer::{peer_of, text_of};
use super::session::{LOOKED_AFTER, Link, TlsSession};
use super::settings::Settings;
use super::tunnel::{Pool, Tunnel, Way};
use super::vault::Vault;

/// The forms of a packed session.
pub(crate) const SCHEMAS: RangeInclusive<u32> = 1..=1;

/// Numbers and lengths, and what is known of TLS.
const HEAD_BYTES: usize = 2048;

/// What the first byte says.
const UNTOUCHED: u8 = 0;
const ESTABLISHED: u8 = 1;

const CONNECTING: u8 = 1;
const OWES_KEYS: u8 = 2;

/// What is needed to put a session together.
pub(crate) struct Kit<'a> {
    pub(crate) fronts: &'a [Rc<Front>],
    /// For sessions whose route is gone.
    pub(crate) settings: &'a Settings,
    pub(crate) pool: &'a Pool,
    /// One of them has sealed it.
    pub(crate) vaults: [Option<&'a Vault>; 2],
}

/// Takes a session apart. It is given back if it cannot be at present.
#[allow(clippy::result_large_err, reason = "it is what the caller has given")]
pub(crate) fn pack(
    mut session: TlsSession,
    vault: &mut Vault,
    now: Instant,
) -> Result<Packed, TlsSession> {
    if session.tunnel.is_shaking() && session.tunnel.client.is_untouched() && !session.is_cut {
        return Ok(pack_untouched(session, vault, now));
    }
    let tunnel = &mut session.tunnel;
    let queues = |end: &End| end.stream.queues_until().is_some();
    let cannot = session.is_cut || tunnel.is_shaking() || tunnel.is_ending();
    if cannot || tunnel.upstream.as_ref().is_none_or(queues) || !tunnel.client.sleep() {
        return Err(session);
    }
    let Some(link) = session.link.take() else { return Err(session) };
    session.leaves(Some(&link));
    let TlsSession { tunnel, peer, front, opened, .. } = session;
    let Link { about, lead } = *link;
    let peer = text_of(&peer);
    let Tunnel { client, upstream: end, connecting, forward, back, kept, active, .. } = tunnel;
    let (stream, State { keys, owes_keys, received, unsent }) = client.into_state();
    let texts = [&*front.route.name, &*peer, &*lead.upstream.text];
    let parts = [&keys[..], &received, &unsent, kept.bytes()];
    let lengths = texts.iter().map(|text| text.len()).chain(parts.iter().map(|part| part.len()));
    // It never grows: what it left behind then would not be zeroed.
    let mut state = Zeroizing::new(Vec::with_capacity(HEAD_BYTES + lengths.sum::<usize>()));
    state.push(ESTABLISHED);
    for text in texts {
        // Each of them is an address, which is no longer than a line of the routes.
        state.extend((text.len() as u16).to_le_bytes());
        state.extend(text.as_bytes());
    }
    about.pack(&mut state);
    state.extend(micros(opened, now).to_le_bytes());
    state.extend(lead.connected.unwrap_or(u32::MAX).to_le_bytes());
    let flag = |on: bool, bit: u8| if on { bit } else { 0 };
    state.push(flag(connecting, CONNECTING) | flag(owes_keys, OWES_KEYS));
    state.extend(micros(active, now).to_le_bytes());
    state.extend(forward.moved.to_le_bytes());
    state.extend(back.moved.to_le_bytes());
    for bytes in parts {
        state.extend((bytes.len() as u32).to_le_bytes());
        state.extend(bytes);
    }
    let streams = [stream].into_iter().chain(end.map(|end| end.stream)).collect();
    // Sealing does not fail at these sizes. An empty state would be refused by `unpack`.
    let sealed = vault.seal(state).unwrap_or_default();
    Ok(Packed::new(*SCHEMAS.end(), sealed, streams))
}

/// A client of which TLS has read nothing: it is as good as one that was just accepted.
fn pack_untouched(session: TlsSession, vault: &mut Vault, now: Instant) -> Packed {
    session.leaves(None);
    let TlsSession { tunnel, peer, front, opened, .. } = session;
    let (stream, received) = tunnel.client.into_untouched();
    let peer = text_of(&peer);
    let mut state = Zeroizing::new(vec![UNTOUCHED]);
    for text in [&*front.route.name, &*peer] {
        state.extend((text.len() as u16).to_le_bytes());
        state.extend(text.as_bytes());
    }
    state.extend(micros(opened, now).to_le_bytes());
    state.extend((received.len() as u32).to_le_bytes());
    state.extend(received);
    Packed::new(*SCHEMAS.end(), vault.seal(state).unwrap_or_default(), vec![stream])
}

fn unpack_untouched(
    mut rest: Fields<'_>,
    streams: Vec<Stream>,
    kit: &Kit<'_>,
    now: Instant,
) -> io::Result<TlsSession> {
    let (name, peer) = (rest.text("route")?, rest.text("peer")?);
    let opened = rest.time_before("age", now)?;
    let received = rest.bytes("received")?.into();
    let [stream] = streams.try_into().map_err(|_| invalid("streams"))?;
    // Where its route is gone nobody would take it: it stays with the predecessor, whose route it was.
    let front = kit.fronts.iter().find(|front| *front.route.name == *name);
    let front = Rc::clone(front.ok_or(io::ErrorKind::NotFound)?);
    let config = front.config().ok_or(io::ErrorKind::NotFound)?;
    let client = Channel::accept_with(stream, received, &config).map_err(|error| words(&error))?;
    let mut tunnel = Tunnel::new(client, now, kit.pool);
    tunnel.active = opened;
    front.route.counters.opened();
    let look_after = now.checked_add(LOOKED_AFTER);
    let (peer, link, is_cut) = (peer_of(peer), None, false);
    Ok(TlsSession { tunnel, peer, front, link, opened, is_cut, look_after })
}

/// How long ago that was.
fn micros(at: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(at).as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn unpack(packed: Packed, kit: &Kit<'_>, now: Instant) -> io::Result<TlsSession> {
    let Packed { schema, state, streams, .. } = packed;
    if !SCHEMAS.contains(&schema) {
        return Err(invalid("schema"));
    }
    let unsealed = kit.vaults.into_iter().flatten().find_map(|vault| vault.unseal(&state));
    let state = unsealed.ok_or_else(|| invalid("seal"))?;
    let mut rest = Fields(&state);
    match rest.array("kind")? {
        [UNTOUCHED] => return unpack_untouched(rest, streams, kit, now),
        [ESTABLISHED] => {}
        [_] => return Err(invalid("kind")),
    }
    let name = rest.text("route")?;
    let peer = rest.text("peer")?;
    let leads_to = rest.text("upstream")?;
    let about = About::unpack(&mut rest.0).ok_or_else(|| invalid("about"))?;
    let opened = rest.time_before("age", now)?;
    let connected = u32::from_le_bytes(rest.array("connected")?);
    let [flags] = rest.array("flags")?;
    let active = rest.time_before("waited", now)?;
    let moved = [rest.moved("forward moved")?, rest.moved("back moved")?];
    let keys = Zeroizing::new(rest.bytes("keys")?.to_vec());
    let (received, unsent) = (rest.bytes("received")?.into(), rest.bytes("unsent")?.into());
    let kept = rest.bytes("kept")?;
    if !rest.0.is_empty() || flags & !(CONNECTING | OWES_KEYS) != 0 {
        return Err(invalid("flags"));
    }
    let [stream, upstream] = streams.try_into().map_err(|_| invalid("streams"))?;
    let connecting = flags & CONNECTING != 0;
    let owes_keys = flags & OWES_KEYS != 0;
    let client = Channel::restore(stream, State { keys, owes_keys, received, unsent });
    let mut tunnel = Tunnel::new(client, now, kit.pool);
    tunnel.to(upstream, kept, now);
    let [forward, back] = moved.map(|moved| Way { moved, ..Way::default() });
    (tunnel.connecting, tunnel.active) = (connecting, active);
    (tunnel.forward, tunnel.back) = (forward, back);
    let front = kit.fronts.iter().find(|front| *front.route.name == *name);
    let removed = || Rc::new(Front::removed(name, kit.settings.clone()));
    let front = front.map_or_else(removed, Rc::clone);
    front.route.counters.opened();
    let connected = (!connecting).then_some(connected);
    let lead = Lead::again(&front.route, leads_to, connected, now);
    Ok(TlsSession {
        tunnel,
        peer: peer_of(peer),
        front,
        link: Some(Box::new(Link { about, lead })),
        opened,
        is_cut: false,
        look_after: now.checked_add(LOOKED_AFTER),
    })
}

fn invalid(field: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("field {field:?}"))
}

/// What is left to decode.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self, field: &str) -> io::Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(|| invalid(field))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn take(&mut self, field: &str, count: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| invalid(field))?;
        self.0 = rest;
        Ok(taken)
    }

    fn text(&mut self, field: &str) -> io::Result<&'a str> {
        let length = u16::from_le_bytes(self.array(field)?);
        std::str::from_utf8(self.take(field, length.into())?).map_err(|_| invalid(field))
    }

    fn bytes(&mut self, field: &str) -> io::Result<&'a [u8]> {
        let length = u32::from_le_bytes(self.array(field)?);
        self.take(field, length as usize)
    }

    /// What is counted on from here has to be far from the end of all numbers.
    fn moved(&mut self, field: &str) -> io::Result<u64> {
        let moved = u64::from_le_bytes(self.array(field)?);
        if moved > u64::MAX / 2 { Err(invalid(field)) } else { Ok(moved) }
    }

    /// A clock that does not go back so far has not been running for so long.
    fn time_before(&mut self, field: &str, now: Instant) -> io::Result<Instant> {
        let ago = Duration::from_micros(u64::from_le_bytes(self.array(field)?));
        Ok(now.checked_sub(ago).unwrap_or(now))
    }
}
