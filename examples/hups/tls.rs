//! Clients that speak TLS.
//!
//! They take every certificate: the storm asks what becomes of connections, and not who is at the other end.
//! Every connection has a handshake of its own, so that all of them cost the same.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

/// What all connections to a server have in common.
#[derive(Clone)]
pub(crate) struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Client {
    /// With the name that the server is asked for.
    pub(crate) fn new(name: &str) -> Result<Client, String> {
        let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
        let provider = Arc::new(ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Client { config: Arc::new(config), name })
    }

    pub(crate) fn session(&self) -> io::Result<Session> {
        let session = ClientConnection::new(self.config.clone(), self.name.clone());
        session.map(Session).map_err(io::Error::other)
    }
}

/// TLS on one connection.
pub(crate) struct Session(ClientConnection);

impl Session {
    /// Goes on with the handshake. Returns whether it is done.
    pub(crate) fn shake_hands(&mut self, socket: &mut (impl Read + Write)) -> io::Result<bool> {
        while self.0.is_handshaking() {
            match self.0.complete_io(socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// An end that the server did not announce is `UnexpectedEof`.
    pub(crate) fn read(
        &mut self,
        socket: &mut (impl Read + Write),
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        rustls::Stream::new(&mut self.0, socket).read(buffer)
    }

    pub(crate) fn write(
        &mut self,
        socket: &mut (impl Read + Write),
        buffer: &[u8],
    ) -> io::Result<usize> {
        rustls::Stream::new(&mut self.0, socket).write(buffer)
    }

    /// Says that nothing more comes, as far as that can be sent at once.
    pub(crate) fn end(&mut self, socket: &mut impl Write) {
        self.0.send_close_notify();
        let _ = self.0.write_tls(socket);
    }
}

/// Takes every certificate whose key the server has.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
