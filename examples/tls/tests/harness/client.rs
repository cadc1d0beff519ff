//! A client by rustls whose records go out when the test says so.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, HandshakeKind, SignatureScheme,
    SupportedProtocolVersion,
};

/// Takes any certificate.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

/// What clients of one kind have in common, tickets among it.
pub(crate) fn config(
    version: &'static SupportedProtocolVersion,
    alpn: &[&str],
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_protocol_versions(&[version])
        .unwrap();
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A client.
pub(crate) struct Client {
    pub(crate) tls: ClientConnection,
    pub(crate) socket: TcpStream,
    /// The lengths of the records that came, by their heads.
    pub(crate) records: Vec<usize>,
    partial: Vec<u8>,
    /// Received, and not read by TLS yet.
    unread: Vec<u8>,
}

impl Client {
    /// Connected, and nothing said.
    pub(crate) fn mute(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(super::PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let tls = ClientConnection::new(Arc::clone(config), name).unwrap();
        Self { tls, socket, records: Vec::new(), partial: Vec::new(), unread: Vec::new() }
    }

    /// With its handshake done.
    pub(crate) fn connect(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Self {
        let mut client = Self::mute(address, config, name);
        client.shake().unwrap();
        client
    }

    pub(crate) fn shake(&mut self) -> io::Result<()> {
        while self.tls.is_handshaking() {
            self.send()?;
            if self.tls.is_handshaking() {
                self.receive()?;
            }
        }
        self.send()
    }

    /// The records of a text, encrypted and not sent.
    pub(crate) fn records_of(&mut self, text: &[u8]) -> Vec<u8> {
        let mut records = Vec::new();
        for piece in text.chunks(8192) {
            self.tls.writer().write_all(piece).unwrap();
            while self.tls.wants_write() {
                self.tls.write_tls(&mut records).unwrap();
            }
        }
        records
    }

    /// Sends what TLS has to say.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    pub(crate) fn say(&mut self, text: &[u8]) {
        let records = self.records_of(text);
        self.socket.write_all(&records).unwrap();
    }

    /// Has TLS read what has come, a piece at a time: it takes no more while there is plaintext to be heard. 0 is the
    /// end of the connection.
    fn receive(&mut self) -> io::Result<usize> {
        if self.unread.is_empty() {
            let mut buffer = [0; 16 * 1024];
            let count = self.socket.read(&mut buffer)?;
            self.note(&buffer[..count]);
            self.unread.extend(&buffer[..count]);
        }
        let (mut rest, before) = (&self.unread[..], self.unread.len());
        let count = self.tls.read_tls(&mut rest)?;
        let left = rest.len();
        self.tls.process_new_packets().map_err(io::Error::other)?;
        self.unread.drain(..before - left);
        Ok(count)
    }

    fn note(&mut self, bytes: &[u8]) {
        self.partial.extend(bytes);
        while let Some([_, _, _, high, low]) = self.partial.first_chunk().copied() {
            let length = usize::from(u16::from_be_bytes([high, low]));
            if self.partial.len() < 5 + length {
                break;
            }
            self.records.push(length);
            self.partial.drain(..5 + length);
        }
    }

    /// The next bytes of plaintext; none at the end. An end without a close_notify is an error.
    pub(crate) fn hear(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let mut text = vec![0; most];
        loop {
            match self.tls.reader().read(&mut text) {
                Ok(count) => {
                    text.truncate(count);
                    return Ok(text);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.receive()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// So many bytes of plaintext.
    pub(crate) fn hear_all(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut heard = Vec::new();
        while heard.len() < count {
            let more = self.hear(count - heard.len())?;
            if more.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            heard.extend(more);
        }
        Ok(heard)
    }

    /// Says something and hears it again.
    pub(crate) fn echo(&mut self, text: &[u8]) {
        self.say(text);
        let heard = self.hear_all(text.len()).unwrap();
        assert!(heard == text, "what came back of {} bytes is something else", text.len());
    }

    /// Says that it is at its end.
    pub(crate) fn close_notify(&mut self) {
        self.tls.send_close_notify();
        self.send().unwrap();
    }

    pub(crate) fn shutdown(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.tls.peer_certificates().unwrap()[0].to_vec()
    }
}
