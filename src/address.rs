//! Where a socket is: an address of the internet or a name in the Unix domain.

use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::Error;

/// A socket's own address, or its peer's.
///
/// Its text is the one that is parsed, and one line of printable text whatever the name is:
///
/// ```
/// use tablecloth::Address;
///
/// for text in ["127.0.0.1:8080", "[::1]:8080", "unix:/run/echo.sock", "unix:@echo"] {
///     assert_eq!(text.parse::<Address>()?.to_string(), text);
/// }
/// # Ok::<(), tablecloth::Error>(())
/// ```
///
/// A client chooses its own name, and a Unix name may have any bytes in it. In the text, bytes that are
/// not UTF-8 and characters that would end or change a line of a log stand as `\x1b`. A backslash stands
/// for itself and nothing is parsed as an escape, so that the text of such a name is for readers only.
///
/// ```
/// # use tablecloth::Address;
/// let address = Address::Abstract(b"two\nlines\xff".to_vec());
/// assert_eq!(address.to_string(), r"unix:@two\x0alines\xff");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// IPv4 or IPv6, with a port; see ip(7) and ipv6(7).
    Internet(SocketAddr),
    /// A path in the file system, of at most 108 bytes; see unix(7). Many programs put a NUL behind a
    /// path, and can connect to 107 bytes at the most.
    Path(PathBuf),
    /// A name in the abstract namespace, which has no file: at most 107 bytes of any value; see unix(7).
    Abstract(Vec<u8>),
    /// A Unix socket without a name, as that of most clients.
    Unnamed,
}

/// The families of names, as Linux counts them on every processor (address_families(7)).
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// The bytes of `sun_path` (unix(7)). A path may take them all: the NUL behind it is optional. Of an
/// abstract name the first byte is a NUL.
const SUN_PATH_BYTES: usize = 108;

impl Address {
    /// Every address that a text stands for, one at the least; the one to bind first is in front.
    ///
    /// A host name may have several; IPv4 comes first, because `localhost` means 127.0.0.1 to most
    /// clients and scripts. Host names are looked up, which may ask a name server and block.
    ///
    /// # Errors
    ///
    /// [`Error::Address`], if the text is no address, or if its name is not known.
    pub fn resolve(text: &str) -> Result<Vec<Self>, Error> {
        let error = |reason: &str| Error::Address { text: text.into(), reason: reason.into() };
        if let Some(name) = text.strip_prefix("unix:") {
            let address = match name.strip_prefix('@') {
                Some(name) => Self::Abstract(name.into()),
                None => Self::Path(name.into()),
            };
            return match name.len() {
                0 => Err(error("the path is empty")),
                1 if name == "@" => Err(error("the abstract name is empty")),
                // The `@` stands for the NUL.
                length if length > SUN_PATH_BYTES => {
                    Err(error("a Unix path has at most 108 bytes, and an abstract name 107"))
                }
                _ if name.contains('\0') => Err(error("the name contains a NUL byte")),
                _ => Ok(vec![address]),
            };
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(vec![Self::Internet(address)]);
        }
        if !text.contains(':') {
            return Err(error("expected HOST:PORT, [V6]:PORT, unix:/PATH or unix:@NAME"));
        }
        let mut found: Vec<_> = text
            .to_socket_addrs()
            .map_err(|problem| error(&problem.to_string()))?
            .map(Self::Internet)
            .collect();
        found.sort_by_key(|address| !matches!(address, Self::Internet(SocketAddr::V4(_))));
        if found.is_empty() { Err(error("the host has no address")) } else { Ok(found) }
    }

    /// Whether a socket at `self` is what somebody meant who asked for `wanted`. Port 0 asks for
    /// any port of that host.
    pub(crate) fn satisfies(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Internet(have), Self::Internet(want)) => {
                // An address of IPv4 in one of IPv6 is the same place (ipv6(7)). A link-local one is
                // another on each link.
                have.ip().to_canonical() == want.ip().to_canonical()
                    && link(have) == link(want)
                    && (want.port() == 0 || have.port() == want.port())
            }
            _ => self == wanted,
        }
    }

    /// Whether a socket at `self`, if it is bound to every address of the machine, is bound to `part`,
    /// too (ip(7), ipv6(7)). One of IPv6 may be bound to those of IPv4 or not.
    pub(crate) fn may_cover(&self, part: &Self) -> bool {
        let (Self::Internet(whole), Self::Internet(part)) = (self, part) else { return false };
        let of_any = match whole.ip() {
            IpAddr::V4(ip) => ip.is_unspecified() && part.ip().to_canonical().is_ipv4(),
            IpAddr::V6(ip) => ip.is_unspecified(),
        };
        of_any && whole.port() == part.port() && whole != part
    }

    /// The port, where the address has one.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Internet(address) => Some(address.port()),
            Self::Path(_) | Self::Abstract(_) | Self::Unnamed => None,
        }
    }

    /// Whether a socket at it is one of IPv4.
    pub(crate) fn is_v4(&self) -> bool {
        matches!(self, Self::Internet(SocketAddr::V4(_)))
    }

    /// The path, where the address is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Internet(_) | Self::Abstract(_) | Self::Unnamed => None,
        }
    }
}

/// The first of the addresses that the text stands for. Host names are resolved, which may ask a
/// name server and block.
impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // `resolve` never answers with an empty list.
        Ok(Self::resolve(text)?.swap_remove(0))
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Internet(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Internet(address) => return address.fmt(f),
            Self::Path(path) => {
                f.write_str("unix:")?;
                path.as_os_str().as_bytes()
            }
            Self::Abstract(name) => {
                f.write_str("unix:@")?;
                name
            }
            Self::Unnamed => return f.write_str("unix:(unnamed)"),
        };
        let escape = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| {
            bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
        };
        for chunk in name.utf8_chunks() {
            for char in chunk.valid().chars() {
                match char {
                    _ if is_plain(char) => f.write_char(char)?,
                    _ => escape(f, char.encode_utf8(&mut [0; 4]).as_bytes())?,
                }
            }
            escape(f, chunk.invalid())?;
        }
        Ok(())
    }
}

/// Whether a character leaves the line of a log as it is: no control, no end of a line, and none that
/// has the rest of the line shown in another order.
fn is_plain(char: char) -> bool {
    !char.is_control()
        && !matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// On which link a link-local address of IPv6 is (ipv6(7)).
fn link(address: &SocketAddr) -> Option<u32> {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => Some(v6.scope_id()),
        SocketAddr::V4(_) | SocketAddr::V6(_) => None,
    }
}

/// As the kernel writes names and reads them: the family, and what is behind it (ip(7), ipv6(7),
/// unix(7)).
impl Address {
    /// The address in a name, as the kernel writes it. Any bytes are a name of some sort: of what is no
    /// address of a family that is known, and of what is cut off, nothing is known, and it is
    /// [`Address::Unnamed`].
    #[must_use]
    pub fn from_name(name: &[u8]) -> Self {
        let Some((family, rest)) = name.split_first_chunk() else { return Self::Unnamed };
        match u16::from_ne_bytes(*family) {
            AF_INET => v4(rest).map_or(Self::Unnamed, Self::Internet),
            AF_INET6 => v6(rest).map_or(Self::Unnamed, Self::Internet),
            AF_UNIX => match rest {
                [] => Self::Unnamed,
                // Every byte of it counts, as far as its length goes.
                [0, name @ ..] => Self::Abstract(name.into()),
                [..] => {
                    let path = rest.split(|byte| *byte == 0).next().unwrap_or_default();
                    Self::Path(OsStr::from_bytes(path).into())
                }
            },
            _ => Self::Unnamed,
        }
    }

    /// The name by which a socket is bound or connected, of which [`Address::from_name`] makes the same
    /// address. `None` if no socket can have it.
    ///
    /// A text keeps an ordinary address; this keeps any.
    #[must_use]
    pub fn to_name(&self) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        match self {
            Self::Internet(SocketAddr::V4(v4)) => {
                name.extend(AF_INET.to_ne_bytes());
                name.extend(v4.port().to_be_bytes());
                name.extend(v4.ip().octets());
                // The struct is as long as any (ip(7)).
                name.extend([0; 8]);
            }
            Self::Internet(SocketAddr::V6(v6)) => {
                name.extend(AF_INET6.to_ne_bytes());
                name.extend(v6.port().to_be_bytes());
                name.extend(v6.flowinfo().to_ne_bytes());
                name.extend(v6.ip().octets());
                name.extend(v6.scope_id().to_ne_bytes());
            }
            Self::Path(path) => {
                let path = path.as_os_str().as_bytes();
                if path.is_empty() || path.len() > SUN_PATH_BYTES || path.contains(&0) {
                    return None;
                }
                name.extend(AF_UNIX.to_ne_bytes());
                name.extend(path);
            }
            Self::Abstract(bytes) if bytes.len() < SUN_PATH_BYTES => {
                name.extend(AF_UNIX.to_ne_bytes());
                name.push(0);
                name.extend(bytes);
            }
            Self::Abstract(_) | Self::Unnamed => return None,
        }
        Some(name)
    }
}

/// What is behind the family in `sockaddr_in` (ip(7)).
fn v4(rest: &[u8]) -> Option<SocketAddr> {
    let (port, rest) = rest.split_first_chunk()?;
    let ip: [u8; 4] = *rest.first_chunk()?;
    Some((ip, u16::from_be_bytes(*port)).into())
}

/// And in `sockaddr_in6` (ipv6(7)).
fn v6(rest: &[u8]) -> Option<SocketAddr> {
    let (port, rest) = rest.split_first_chunk()?;
    let (flow, rest) = rest.split_first_chunk()?;
    let (ip, rest) = rest.split_first_chunk::<16>()?;
    let (port, flow) = (u16::from_be_bytes(*port), u32::from_ne_bytes(*flow));
    let link = u32::from_ne_bytes(*rest.first_chunk()?);
    Some(SocketAddrV6::new(Ipv6Addr::from(*ip), port, flow, link).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_the_loopback_address_of_ipv4_first() {
        let addresses = Address::resolve("localhost:80").expect("every host knows localhost");
        assert_eq!(addresses[0].to_string(), "127.0.0.1:80");
    }

    #[test]
    fn what_is_no_address_is_refused_by_name_and_reason() {
        let long = format!("unix:/{}", "x".repeat(108));
        for text in ["", "8080", "localhost", "127.0.0.1:http", "1.2.3.4:70000", "unix:", "unix:@"]
            .into_iter()
            .chain([long.as_str()])
        {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn any_port_of_the_host_satisfies_port_zero() {
        let have: Address = "127.0.0.1:4711".parse().unwrap();
        assert!(have.satisfies(&"127.0.0.1:0".parse().unwrap()));
        assert!(have.satisfies(&"127.0.0.1:4711".parse().unwrap()));
        assert!(!have.satisfies(&"127.0.0.1:4712".parse().unwrap()));
        assert!(!have.satisfies(&"127.0.0.2:0".parse().unwrap()));
        assert!(!have.satisfies(&"unix:@echo".parse().unwrap()));
    }

    #[test]
    fn one_host_has_the_same_address_in_either_family_and_another_on_each_link() {
        let same = |have: &str, want: &str| {
            let (have, want): (Address, Address) = (have.parse().unwrap(), want.parse().unwrap());
            have.satisfies(&want)
        };
        assert!(same("[::ffff:127.0.0.1]:80", "127.0.0.1:80"));
        assert!(same("127.0.0.1:80", "[::ffff:127.0.0.1]:0"));
        assert!(!same("[::1]:80", "127.0.0.1:80"));
        assert!(same("[fe80::1%2]:80", "[fe80::1%2]:80"));
        assert!(!same("[fe80::1%2]:80", "[fe80::1%3]:80"));
        assert!(same("[::1]:80", "[::1%3]:80"));
    }

    #[test]
    fn every_address_of_the_machine_covers_each_one_at_that_port() {
        let covers = |whole: &str, part: &str| {
            let (whole, part): (Address, Address) = (whole.parse().unwrap(), part.parse().unwrap());
            whole.may_cover(&part)
        };
        assert!(covers("0.0.0.0:80", "127.0.0.1:80"));
        assert!(covers("[::]:80", "127.0.0.1:80") && covers("[::]:80", "0.0.0.0:80"));
        assert!(covers("0.0.0.0:80", "[::ffff:127.0.0.1]:80"));
        assert!(!covers("0.0.0.0:80", "[::1]:80") && !covers("0.0.0.0:80", "[::]:80"));
        assert!(!covers("0.0.0.0:80", "127.0.0.1:81") && !covers("0.0.0.0:80", "0.0.0.0:80"));
        assert!(!covers("127.0.0.1:80", "0.0.0.0:80") && !covers("0.0.0.0:80", "unix:@a"));
    }

    #[test]
    fn a_name_of_the_kernel_says_what_was_bound_up_to_its_last_byte() {
        let unix = |rest: &[u8]| [&AF_UNIX.to_ne_bytes()[..], rest].concat();
        let full = [b'x'; SUN_PATH_BYTES];
        for (name, expected) in [
            (unix(b""), Address::Unnamed),
            (unix(b"/run/s\0"), Address::Path("/run/s".into())),
            (unix(b"/run/s"), Address::Path("/run/s".into())),
            (unix(&full), Address::Path(OsStr::from_bytes(&full).into())),
            // As the kernel gives it back.
            (unix(&[&full[..], b"\0"].concat()), Address::Path(OsStr::from_bytes(&full).into())),
            (unix(b"\0"), Address::Abstract(Vec::new())),
            (unix(b"\0\0a\0"), Address::Abstract(b"\0a\0".to_vec())),
            (vec![], Address::Unnamed),
            (vec![0xff; 30], Address::Unnamed),
        ] {
            assert_eq!(Address::from_name(&name), expected, "{name:?}");
        }
    }

    #[test]
    fn what_a_client_calls_itself_is_one_line_that_shows_every_byte() {
        for (name, text) in [
            (&b"echo"[..], "unix:@echo"),
            ("gr\u{fc}n".as_bytes(), "unix:@gr\u{fc}n"),
            (br"a\b", r"unix:@a\b"),
            (b"a\r\n[1] 2026/01/01 forged", r"unix:@a\x0d\x0a[1] 2026/01/01 forged"),
            (b"\x1b[2J\0\x7f", r"unix:@\x1b[2J\x00\x7f"),
            (b"\xff\xc3(", r"unix:@\xff\xc3("),
            ("\u{85}\u{202e}".as_bytes(), r"unix:@\xc2\x85\xe2\x80\xae"),
        ] {
            assert_eq!(Address::Abstract(name.into()).to_string(), text);
        }
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        fn any_address() -> impl Strategy<Value = Address> {
            prop_oneof![
                any::<([u8; 4], u16)>().prop_map(|at| Address::Internet(at.into())),
                any::<([u8; 16], u16, u32, u32)>().prop_map(|(ip, port, flow, link)| {
                    Address::Internet(SocketAddrV6::new(ip.into(), port, flow, link).into())
                }),
                proptest::collection::vec(1..=u8::MAX, 1..=SUN_PATH_BYTES)
                    .prop_map(|path| Address::Path(OsStr::from_bytes(&path).into())),
                proptest::collection::vec(any::<u8>(), 0..SUN_PATH_BYTES)
                    .prop_map(Address::Abstract),
            ]
        }

        proptest! {
            #[test]
            fn any_bytes_are_a_name_of_some_sort_whose_text_is_printable(
                name in proptest::collection::vec(any::<u8>(), 0..140),
                family in proptest::option::of(prop_oneof![Just(AF_UNIX), Just(AF_INET), Just(AF_INET6)]),
            ) {
                let mut name = name;
                if let (Some(family), Some(first)) = (family, name.first_chunk_mut()) {
                    *first = family.to_ne_bytes();
                }
                let text = Address::from_name(&name).to_string();
                prop_assert!(text.chars().all(is_plain), "{text:?}");
            }

            #[test]
            fn every_address_is_the_one_in_its_name(address in any_address()) {
                let name = address.to_name().expect("it is one that a socket can have");
                prop_assert_eq!(Address::from_name(&name), address);
            }

            #[test]
            fn an_ordinary_text_is_parsed_to_what_prints_it(text in "unix:@?[ -~\u{e4}-\u{f0}]{1,50}") {
                if let Ok(address) = text.parse::<Address>() {
                    prop_assert_eq!(address.to_string(), text);
                }
            }
        }
    }
}
