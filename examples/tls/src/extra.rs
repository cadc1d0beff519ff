//! What this proxy's settings have beyond those of every proxy: certificates, protocols, and a time for handshakes.

use std::time::Duration;

use lexopt::Parser;

use super::certificates::Shelf;
use super::common::options::{seconds, text};

/// The help text of these flags.
pub(crate) const HELP: &str = "\
for all routes, or in the file for one:
  --cert FILE              the server's certificate and its chain, in PEM; of several, each
                           with its --key, the client's SNI decides, and the first is for
                           those that no name fits
  --key FILE               the private key to the --cert before it [the same file]
  --alpn NAMES             what the proxy speaks, in its order: h2,http/1.1; the first that
                           the client has, too, is chosen [none]
  --min-tls VERSION        1.2 or 1.3 [1.2]
  --handshake-timeout SECS how long a handshake may take [10]

";

/// Settings of a route that only this proxy has.
#[derive(Clone, Debug)]
pub(crate) struct Extra {
    /// Files: a certificate, and its key.
    pub(crate) certificates: Vec<(String, String)>,
    /// Those are not this route's own.
    are_inherited: bool,
    pub(crate) alpn: Vec<String>,
    pub(crate) oldest: Oldest,
    pub(crate) handshake_timeout: Duration,
}

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Oldest {
    Tls12,
    Tls13,
}

impl Extra {
    pub(crate) fn new() -> Self {
        Self {
            certificates: Vec::new(),
            are_inherited: false,
            alpn: Vec::new(),
            oldest: Oldest::Tls12,
            handshake_timeout: Duration::from_secs(10),
        }
    }

    /// Those of a route, before it has said anything itself.
    pub(crate) fn for_route(&self) -> Self {
        Self { are_inherited: true, ..self.clone() }
    }

    /// Takes a flag, if it is one of these; its value follows in the parser.
    pub(crate) fn take(&mut self, flag: &str, parser: &mut Parser) -> Result<bool, String> {
        match flag {
            "--cert" => {
                let file = text(parser, flag)?;
                // A route that has certificates of its own has those only.
                if std::mem::take(&mut self.are_inherited) {
                    self.certificates.clear();
                }
                self.certificates.push((file.clone(), file));
            }
            "--key" => {
                let file = text(parser, flag)?;
                let last = self.certificates.last_mut().filter(|_| !self.are_inherited);
                match last {
                    Some((certificate, key)) if certificate == key => *key = file,
                    Some(_) | None => {
                        return Err(format!(
                            "{flag} {file}: its --cert is missing; it comes first"
                        ));
                    }
                }
            }
            "--alpn" => {
                let names = text(parser, flag)?;
                let is_name = |name: &&str| (1..=255).contains(&name.len());
                if !names.split(',').all(|name| is_name(&name)) {
                    return Err(format!("{flag} {names:?}: expected names with commas between"));
                }
                self.alpn = names.split(',').map(str::to_owned).collect();
            }
            "--min-tls" => {
                self.oldest = match text(parser, flag)?.as_str() {
                    "1.2" => Oldest::Tls12,
                    "1.3" => Oldest::Tls13,
                    other => return Err(format!("{flag} {other:?}: expected 1.2 or 1.3")),
                }
            }
            "--handshake-timeout" => {
                let time = seconds(parser, flag)?;
                if time.is_zero() {
                    return Err(format!("{flag} 0: expected more than no time"));
                }
                self.handshake_timeout = time;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What is wrong with them, as far as that is found out without a server.
    pub(crate) fn check(&self) -> Result<(), String> {
        Shelf::default().load(self).map(drop)
    }
}
