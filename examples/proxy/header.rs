//! The PROXY protocol's header, version 2, in binary form: who the client is, told to the upstream
//! ahead of everything else. (HAProxy, `doc/proxy-protocol.txt`, section 2.2.)

use std::net::{IpAddr, SocketAddr};

use tablecloth::Address;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, on behalf of another.
const PROXY: u8 = 0x21;
/// Version 2, and nothing is said of the client: he has no address that means anything to the receiver.
/// (A Unix address could be sent, but HAProxy closes the connection on which one comes.)
const LOCAL: u8 = 0x20;
const UNSPECIFIED: u8 = 0x00;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;

/// The header for a connection from `source` to `destination`, which are of one family. `fields` is what else is
/// known of it, each with its kind and length (section 2.2.7); it is said of clients with an address.
pub(crate) fn encode(source: &Address, destination: &Address, fields: &[u8]) -> Vec<u8> {
    let (command, family, addresses) = match (source, destination) {
        (Address::Internet(from), Address::Internet(to)) => {
            let (family, mut addresses) = internet(*from, *to);
            addresses.extend_from_slice(fields);
            (PROXY, family, addresses)
        }
        _ => (LOCAL, UNSPECIFIED, Vec::new()),
    };
    let mut header = SIGNATURE.to_vec();
    header.extend([command, family]);
    header.extend((addresses.len() as u16).to_be_bytes());
    header.extend(addresses);
    header
}

fn internet(from: SocketAddr, to: SocketAddr) -> (u8, Vec<u8>) {
    let mut addresses = Vec::new();
    // A client of IPv4 on a socket of IPv6 is one of IPv4.
    let family = match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            addresses.extend(from.octets());
            addresses.extend(to.octets());
            TCP_V4
        }
        (from, to) => {
            for ip in [from, to] {
                addresses.extend(match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                    IpAddr::V6(ip) => ip.octets(),
                });
            }
            TCP_V6
        }
    };
    addresses.extend(from.port().to_be_bytes());
    addresses.extend(to.port().to_be_bytes());
    (family, addresses)
}
