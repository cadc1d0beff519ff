//! Where a socket is: an address of the internet or a name in the Unix domain.

use std::ffi::OsStr;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::Error;

/// A socket's own address, or its peer's.
///
/// Its text is the one that is parsed:
///
/// ```
/// use tablecloth::Address;
///
/// for text in ["127.0.0.1:8080", "[::1]:8080", "unix:/run/echo.sock", "unix:@echo"] {
///     assert_eq!(text.parse::<Address>()?.to_string(), text);
/// }
/// # Ok::<(), tablecloth::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// IPv4 or IPv6, with a port; see ip(7) and ipv6(7).
    Internet(SocketAddr),
    /// A path in the file system; see unix(7).
    Path(PathBuf),
    /// A name in the abstract namespace, which has no file; see unix(7).
    Abstract(Vec<u8>),
    /// A Unix socket without a name, as that of most clients.
    Unnamed,
}

/// The longest Unix path or abstract name: `sun_path` has 108 bytes, one of them taken by the NUL
/// behind a path or before an abstract name (unix(7)).
const UNIX_NAME_BYTES: usize = 107;

impl Address {
    /// Every address that a text stands for, the one to bind first in front.
    ///
    /// A host name may have several; IPv4 comes first, because `localhost` means 127.0.0.1 to most
    /// clients and scripts.
    pub(crate) fn resolve(text: &str) -> Result<Vec<Self>, Error> {
        let error = |reason: &str| Error::Address { text: text.into(), reason: reason.into() };
        if let Some(name) = text.strip_prefix("unix:") {
            let address = match name.strip_prefix('@') {
                Some(name) => Self::Abstract(name.into()),
                None => Self::Path(name.into()),
            };
            return match name.len() {
                0 => Err(error("the path is empty")),
                1 if name == "@" => Err(error("the abstract name is empty")),
                length if length - usize::from(name.starts_with('@')) > UNIX_NAME_BYTES => {
                    Err(error("a Unix socket's name has at most 107 bytes"))
                }
                _ if name.contains('\0') => Err(error("the path contains a NUL byte")),
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
                have.ip() == want.ip() && (want.port() == 0 || have.port() == want.port())
            }
            _ => self == wanted,
        }
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

impl From<std::os::unix::net::SocketAddr> for Address {
    fn from(address: std::os::unix::net::SocketAddr) -> Self {
        use std::os::linux::net::SocketAddrExt;
        match (address.as_pathname(), address.as_abstract_name()) {
            (Some(path), _) => Self::Path(path.into()),
            (None, Some(name)) => Self::Abstract(name.into()),
            (None, None) => Self::Unnamed,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internet(address) => address.fmt(f),
            Self::Path(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => {
                write!(f, "unix:@{}", OsStr::from_bytes(name).to_string_lossy())
            }
            Self::Unnamed => f.write_str("unix:(unnamed)"),
        }
    }
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
        let long = format!("unix:/{}", "x".repeat(107));
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
}
