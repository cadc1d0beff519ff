//! What is known of a connection's TLS, also when it has moved: its keys do not say it.

use s2n_tls::connection::Connection;
use s2n_tls::enums::Version;

/// The kinds of fields behind a PROXY header's addresses (HAProxy, `doc/proxy-protocol.txt`, section 2.2.7).
const ALPN: u8 = 0x01;
const AUTHORITY: u8 = 0x02;
const SSL: u8 = 0x20;
const SSL_VERSION: u8 = 0x21;
const SSL_CIPHER: u8 = 0x23;
/// The client is connected by TLS; it has no certificate.
const BY_SSL: u8 = 0x01;

/// Version, cipher, SNI and ALPN of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) version: String,
    pub(crate) cipher: String,
    pub(crate) server_name: String,
    pub(crate) protocol: Vec<u8>,
    pub(crate) resumed: bool,
}

impl About {
    /// When the handshake is done.
    pub(crate) fn of(tls: &Connection) -> Self {
        let version = match tls.actual_protocol_version() {
            Ok(Version::TLS13) => "TLSv1.3",
            Ok(Version::TLS12) => "TLSv1.2",
            Ok(_) | Err(_) => "TLS",
        };
        Self {
            version: version.into(),
            cipher: tls.cipher_suite().unwrap_or_default().into(),
            server_name: tls.server_name().unwrap_or_default().into(),
            protocol: tls.application_protocol().unwrap_or_default().into(),
            resumed: tls.resumed(),
        }
    }

    /// What a PROXY header says of it behind the addresses.
    pub(crate) fn fields(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        if !self.protocol.is_empty() {
            field(&mut fields, ALPN, &self.protocol);
        }
        if !self.server_name.is_empty() {
            field(&mut fields, AUTHORITY, self.server_name.as_bytes());
        }
        // Whether its certificate was verified: it has none, which is not zero.
        let mut ssl = vec![BY_SSL, 0, 0, 0, 1];
        field(&mut ssl, SSL_VERSION, self.version.as_bytes());
        field(&mut ssl, SSL_CIPHER, self.cipher.as_bytes());
        field(&mut fields, SSL, &ssl);
        fields
    }

    /// In bytes, for the next process.
    pub(crate) fn pack(&self, state: &mut Vec<u8>) {
        state.push(self.resumed.into());
        for text in self.texts() {
            // Of a handshake, where none of them is longer.
            let length = text.len().min(usize::from(u8::MAX));
            state.push(length as u8);
            state.extend_from_slice(&text[..length]);
        }
    }

    fn texts(&self) -> [&[u8]; 4] {
        let Self { version, cipher, server_name, protocol, resumed: _ } = self;
        [version.as_bytes(), cipher.as_bytes(), server_name.as_bytes(), protocol]
    }

    /// What another process has packed, from the front of `state`. `None` if it is something else.
    pub(crate) fn unpack(state: &mut &[u8]) -> Option<Self> {
        let mut take = |count: usize| {
            let (taken, rest) = state.split_at_checked(count)?;
            *state = rest;
            Some(taken)
        };
        let resumed = take(1)? == [1];
        let mut text = || {
            let length = take(1)?.first().copied()?;
            take(length.into())
        };
        let utf8 = |bytes: &[u8]| String::from_utf8(bytes.into()).ok();
        Some(Self {
            version: utf8(text()?)?,
            cipher: utf8(text()?)?,
            server_name: utf8(text()?)?,
            protocol: text()?.into(),
            resumed,
        })
    }
}

fn field(fields: &mut Vec<u8>, kind: u8, value: &[u8]) {
    fields.push(kind);
    // Each of them is a few hundred bytes at the most.
    fields.extend((value.len() as u16).to_be_bytes());
    fields.extend_from_slice(value);
}

impl std::fmt::Display for About {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.version, self.cipher)?;
        if !self.server_name.is_empty() {
            write!(f, " for {}", self.server_name.escape_debug())?;
        }
        if !self.protocol.is_empty() {
            write!(f, " {}", self.protocol.escape_ascii())?;
        }
        if self.resumed { f.write_str(" resumed") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About {
            version: "TLSv1.3".into(),
            cipher: "TLS_AES_128_GCM_SHA256".into(),
            server_name: "example.org".into(),
            protocol: b"h2".into(),
            resumed: true,
        }
    }

    #[test]
    fn it_is_the_same_in_the_next_process() {
        for about in [about(), About::default()] {
            let mut state = Vec::new();
            about.pack(&mut state);
            for cut in 0..state.len() {
                assert_eq!(About::unpack(&mut &state[..cut]), None);
            }
            state.push(7);
            let mut rest = state.as_slice();
            assert_eq!(About::unpack(&mut rest), Some(about));
            assert_eq!(rest, [7]);
        }
    }

    #[test]
    fn the_fields_of_a_proxy_header_are_those_of_its_text() {
        let expected = [
            &b"\x01\x00\x02h2\x02\x00\x0bexample.org\x20\x00\x28\x01\x00\x00\x00\x01"[..],
            b"\x21\x00\x07TLSv1.3\x23\x00\x16TLS_AES_128_GCM_SHA256",
        ];
        assert_eq!(about().fields(), expected.concat());
    }
}
