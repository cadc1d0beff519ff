//! A client's address as a text that another process reads.

use std::net::SocketAddr;

use tablecloth::Address;

/// Before a name whose text does not say it, with two digits for each byte.
const NAME: &str = "name:";

/// A peer as a text of which [`peer_of`] makes the same peer. Clients choose their names, and a name may
/// have any bytes in it.
pub(crate) fn text_of(peer: &Address) -> String {
    let text = peer.to_string();
    match peer.to_name() {
        Some(name) if peer_of(&text) != *peer => {
            name.iter().fold(NAME.into(), |text, byte| format!("{text}{byte:02x}"))
        }
        Some(_) | None => text,
    }
}

/// The peer in a text. It is never looked up: a peer has an address and no host name.
pub(crate) fn peer_of(text: &str) -> Address {
    if let Some(digits) = text.strip_prefix(NAME) {
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let name: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(byte).collect();
        return name.map_or(Address::Unnamed, |name| Address::from_name(&name));
    }
    let unix = text.starts_with("unix:") && text != Address::Unnamed.to_string();
    let parsed = if unix { text.parse().ok() } else { text.parse().ok().map(SocketAddr::into) };
    parsed.unwrap_or(Address::Unnamed)
}
