//! Certificates and their keys from files, and what TLS is told of them.

use std::collections::HashMap;
use std::fs;

use s2n_tls::cert_chain::{Builder as ChainBuilder, CertificateChain};
use s2n_tls::config::{Builder, Config};
use s2n_tls::enums::SerializationVersion;
use s2n_tls::error::Error;
use s2n_tls::security::Policy;
use zeroize::Zeroizing;

use super::channel::words;
use super::extra::{Extra, Oldest};
use super::tickets::{self, Key};

/// TLS 1.2 and 1.3, with ephemeral keys, and ciphers that encrypt and authenticate at once. It is a number because a
/// name's meaning changes with the library, and both processes of an upgrade have to understand each other.
const POLICY: &str = "20251014";
/// The same for 1.3 alone.
const POLICY_13: &str = "AWS-CRT-SDK-TLSv1.3-2023";

/// Certificates of a route, in the order in which they were given.
pub(crate) type Chains = Vec<CertificateChain<'static>>;

/// Certificates that were read, so that routes that share one do not read it again.
#[derive(Default)]
pub(crate) struct Shelf(HashMap<(String, String), CertificateChain<'static>>);

impl Shelf {
    /// The certificates of a route. An error names the file.
    pub(crate) fn load(&mut self, extra: &Extra) -> Result<Chains, String> {
        if extra.certificates.is_empty() {
            let none = "it has no certificate: give --cert and --key, or cert and key in the file";
            return Err(none.into());
        }
        let mut chain = |files: &(String, String)| {
            if let Some(known) = self.0.get(files) {
                return Ok(known.clone());
            }
            let read = read(&files.0, &files.1)?;
            self.0.insert(files.clone(), read.clone());
            Ok(read)
        };
        extra.certificates.iter().map(&mut chain).collect()
    }
}

fn read(certificate: &str, key: &str) -> Result<CertificateChain<'static>, String> {
    let bytes_of = |file: &str| {
        let bytes = fs::read(file).map_err(|error| format!("{file}: {error}"))?;
        Ok::<_, String>(Zeroizing::new(bytes))
    };
    let (chain, secret) = (bytes_of(certificate)?, bytes_of(key)?);
    let failed = |error: Error| {
        let (words, expected) = (words(&error), "no certificate with its key, in PEM");
        match certificate == key {
            true => format!("{certificate}: {expected}: {words}"),
            false => format!("{certificate} and {key}: {expected}: {words}"),
        }
    };
    let mut builder = ChainBuilder::new().map_err(failed)?;
    builder.load_pem(&chain, &secret).map_err(failed)?;
    let chain = builder.build().map_err(failed)?;
    // That the one belongs to the other is found out when they are put together.
    let mut config = bare(Oldest::Tls12).map_err(failed)?;
    config.load_chain(chain.clone()).map_err(failed)?;
    Ok(chain)
}

/// For new connections of a route. Clients that come back go on by these keys.
pub(crate) fn config(extra: &Extra, chains: &Chains, keys: &[Key]) -> Result<Config, Error> {
    let mut config = bare(extra.oldest)?;
    for chain in chains {
        config.load_chain(chain.clone())?;
    }
    config.set_application_protocol_preference(&extra.alpn)?;
    if !keys.is_empty() {
        config.set_ticket_key_encrypt_decrypt_lifetime(tickets::ENCRYPTS)?;
        config.set_ticket_key_decrypt_lifetime(tickets::DECRYPTS)?;
        for key in keys {
            config.add_session_ticket_key(key.name(), key.secret(), key.begins())?;
        }
    }
    config.build()
}

/// For connections that come from another process: their handshake is over.
pub(crate) fn config_of_moved() -> Result<Config, Error> {
    bare(Oldest::Tls12)?.build()
}

fn bare(oldest: Oldest) -> Result<Builder, Error> {
    let mut config = Config::builder();
    // The proxy does not verify client certificates.
    config.with_system_certs(false)?;
    let policy = match oldest {
        Oldest::Tls12 => POLICY,
        Oldest::Tls13 => POLICY_13,
    };
    config.set_security_policy(&Policy::from_version(policy)?)?;
    config.set_serialization_version(SerializationVersion::V1)?;
    config.set_max_blinding_delay(0)?;
    Ok(config)
}
