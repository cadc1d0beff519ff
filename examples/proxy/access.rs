//! Who may connect: rules by source address, of which the first that fits decides.

use std::net::IpAddr;

use tablecloth::Address;

/// Whom a rule is about.
#[derive(Clone, Copy, Debug)]
enum Whom {
    All,
    /// Clients of a Unix socket.
    Unix,
    /// Those whose address has so many first bits in common with this one.
    Net(IpAddr, u8),
}

/// The rules of a route: its own, and then those of all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    rules: Vec<(bool, Whom)>,
    own: usize,
}

impl Access {
    /// A copy whose next rules come before those that there are.
    pub(crate) fn for_route(&self) -> Self {
        Self { rules: self.rules.clone(), own: 0 }
    }

    /// Adds a rule: `allow`, or deny, `all`, `unix`, or an address with or without a number of bits.
    pub(crate) fn add(&mut self, allow: bool, text: &str) -> Result<(), String> {
        let whom = match text {
            "all" => Whom::All,
            "unix" => Whom::Unix,
            _ => net(text).ok_or("expected all, unix, ADDRESS or ADDRESS/BITS")?,
        };
        self.rules.insert(self.own, (allow, whom));
        self.own += 1;
        Ok(())
    }

    /// Whom no rule fits may connect.
    pub(crate) fn allows(&self, peer: &Address) -> bool {
        let fits = |whom: &Whom| match (whom, peer) {
            (Whom::All, _) => true,
            (Whom::Unix, Address::Internet(_)) => false,
            (Whom::Unix, _) => true,
            (Whom::Net(net, bits), Address::Internet(peer)) => {
                is_in(peer.ip().to_canonical(), *net, *bits)
            }
            (Whom::Net(..), _) => false,
        };
        self.rules.iter().find(|(_, whom)| fits(whom)).is_none_or(|(allow, _)| *allow)
    }
}

fn net(text: &str) -> Option<Whom> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(most);
    (bits <= most).then_some(Whom::Net(address, bits))
}

fn is_in(peer: IpAddr, net: IpAddr, bits: u8) -> bool {
    /// The address in the highest bits.
    fn number(ip: IpAddr) -> u128 {
        match ip {
            IpAddr::V4(ip) => u128::from(u32::from(ip)) << 96,
            IpAddr::V6(ip) => ip.into(),
        }
    }
    let differs = number(peer) ^ number(net);
    peer.is_ipv4() == net.is_ipv4()
        && (bits == 0 || differs.checked_shr(128 - u32::from(bits)).unwrap_or(0) == 0)
}
