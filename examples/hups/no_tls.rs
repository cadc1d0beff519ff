//! This build has no TLS: it says how to get one that has.

use std::io::{self, Read, Write};

/// What all connections to a server would have in common.
#[derive(Clone)]
pub(crate) enum Client {}

impl Client {
    pub(crate) fn new(_name: &str) -> Result<Client, String> {
        Err("this build has no TLS; examples/tls builds one that has: \
             cargo run --release --features hups --bin hups"
            .to_string())
    }

    pub(crate) fn session(&self) -> io::Result<Session> {
        match *self {}
    }
}

/// There is none.
pub(crate) enum Session {}

impl Session {
    pub(crate) fn shake_hands(&mut self, _socket: &mut (impl Read + Write)) -> io::Result<bool> {
        match *self {}
    }

    pub(crate) fn read(
        &mut self,
        _socket: &mut (impl Read + Write),
        _buffer: &mut [u8],
    ) -> io::Result<usize> {
        match *self {}
    }

    pub(crate) fn write(
        &mut self,
        _socket: &mut (impl Read + Write),
        _buffer: &[u8],
    ) -> io::Result<usize> {
        match *self {}
    }

    pub(crate) fn end(&mut self, _socket: &mut impl Write) {
        match *self {}
    }
}
