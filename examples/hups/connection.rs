//! One connection of the load and the message under way on it.

use std::io::{self, Read, Write};
use std::time::Instant;

use crate::drops::{Class, DropKind, Failure};
use crate::payload::Payload;
use crate::target::Stream;

pub(crate) struct Connection {
    stream: Stream,
    is_connected: bool,
    pub(crate) class: Class,
    /// The place in the load's list of long connections.
    pub(crate) lane: usize,
    /// The number of what it waits for: a message, or the connection itself. Zero for nothing.
    pub(crate) awaited: u64,
    exchange: Option<Exchange>,
}

/// A message sent and its echo.
pub(crate) struct Exchange {
    pub(crate) message: u64,
    pub(crate) due: Instant,
    pub(crate) bytes: usize,
    sent: usize,
    received: usize,
}

pub(crate) enum Progress {
    /// Nothing more can be done until the next event.
    Blocked,
    Connected,
    Echoed(Exchange),
}

impl Connection {
    pub(crate) fn new(stream: Stream, class: Class, lane: usize, awaited: u64) -> Connection {
        Connection { stream, is_connected: false, class, lane, awaited, exchange: None }
    }

    /// Makes this the message under way. It is sent by [`Connection::advance`].
    pub(crate) fn begin(&mut self, message: u64, due: Instant, bytes: usize) {
        self.awaited = message;
        self.exchange = Some(Exchange { message, due, bytes, sent: 0, received: 0 });
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.is_connected
    }

    pub(crate) fn received_bytes(&self) -> usize {
        self.exchange.as_ref().map_or(0, |exchange| exchange.received)
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.exchange.as_ref().map(|exchange| exchange.due)
    }

    pub(crate) fn stage(&self) -> &'static str {
        match &self.exchange {
            _ if !self.is_connected => "connect",
            None => "idle",
            Some(exchange) if exchange.sent < exchange.bytes => "write",
            Some(_) => "read",
        }
    }

    /// Goes on as far as it can without waiting. To be called again until it is blocked:
    /// only then does an edge-triggered selector tell of more.
    pub(crate) fn advance(
        &mut self,
        payload: &Payload,
        buffer: &mut [u8],
    ) -> Result<Progress, Failure> {
        if !self.is_connected {
            let connected = self.stream.is_connected();
            if !connected.map_err(|error| Failure::from_error(&error, "connect"))? {
                return Ok(Progress::Blocked);
            }
            self.is_connected = true;
            if self.exchange.is_none() {
                self.awaited = 0;
                return Ok(Progress::Connected);
            }
        }
        self.write(payload, buffer)?;
        self.read(payload, buffer)
    }

    fn write(&mut self, payload: &Payload, buffer: &mut [u8]) -> Result<(), Failure> {
        let Some(exchange) = &mut self.exchange else {
            return Ok(());
        };
        while exchange.sent < exchange.bytes {
            let length = buffer.len().min(exchange.bytes - exchange.sent);
            payload.fill(exchange.message, exchange.sent, &mut buffer[..length]);
            match self.stream.write(&buffer[..length]) {
                Ok(written) => exchange.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::from_error(&error, "write")),
            }
        }
        Ok(())
    }

    fn read(&mut self, payload: &Payload, buffer: &mut [u8]) -> Result<Progress, Failure> {
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => return Err(Failure::new(DropKind::EndOfFile, self.stage())),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::from_error(&error, self.stage())),
            };
            let stage = self.stage();
            let Some(mut exchange) = self.exchange.take() else {
                // Nothing was asked.
                return Err(Failure::new(DropKind::WrongBytes, stage));
            };
            let received = &buffer[..length];
            let mismatch = payload.mismatch(exchange.message, exchange.received, received);
            exchange.received = mismatch.unwrap_or(exchange.received + length);
            if mismatch.is_some() || exchange.received > exchange.sent {
                self.exchange = Some(exchange);
                return Err(Failure::new(DropKind::WrongBytes, stage));
            }
            if exchange.received == exchange.bytes {
                self.awaited = 0;
                return Ok(Progress::Echoed(exchange));
            }
            self.exchange = Some(exchange);
        }
    }
}
