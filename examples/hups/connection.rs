//! One connection of the load and the request under way on it.

use std::io::{self, Read, Write};
use std::time::Instant;

use crate::drops::{Class, DropKind, Failure};
use crate::protocol::{Answer, Protocol, Taken};
use crate::target::Stream;

/// What requests go through.
pub(crate) trait Transport: Read + Write {
    /// Whether it is there; an error if it was refused or failed.
    fn is_connected(&mut self) -> io::Result<bool>;
}

impl Transport for Stream {
    fn is_connected(&mut self) -> io::Result<bool> {
        Stream::is_connected(self)
    }
}

pub(crate) struct Connection<S = Stream> {
    stream: S,
    is_connected: bool,
    /// An answer has come on it.
    is_used: bool,
    pub(crate) class: Class,
    /// The place in the load's list of long connections.
    pub(crate) lane: usize,
    /// The number of what it waits for: a message, or the connection itself. Zero for nothing.
    pub(crate) awaited: u64,
    exchange: Option<Exchange>,
}

/// A request and its answer.
pub(crate) struct Exchange {
    pub(crate) message: u64,
    pub(crate) due: Instant,
    /// The length of the request.
    bytes: usize,
    sent: usize,
    /// How much of the answer has come and was as it should be.
    pub(crate) received: usize,
    answer: Answer,
}

impl Exchange {
    /// Whether the server has something of the request, and owes an answer.
    fn is_under_way(&self) -> bool {
        self.sent > 0
    }
}

pub(crate) enum Progress {
    /// Nothing more can be done until the next event.
    Blocked,
    Connected,
    Answered(Exchange),
    /// The same, and the server takes no other request on this connection.
    AnsweredLast(Exchange),
    /// The server has closed the connection while it owed no answer, as the protocol allows.
    ClosedInOrder,
}

impl<S: Transport> Connection<S> {
    pub(crate) fn new(stream: S, class: Class, lane: usize, awaited: u64) -> Connection<S> {
        Connection {
            stream,
            is_connected: false,
            is_used: false,
            class,
            lane,
            awaited,
            exchange: None,
        }
    }

    /// Makes this the message under way. It is sent by [`Connection::advance`].
    pub(crate) fn begin(&mut self, message: u64, due: Instant, protocol: &Protocol) {
        self.awaited = message;
        self.exchange = Some(Exchange {
            message,
            due,
            bytes: protocol.request_bytes(self.class),
            sent: 0,
            received: 0,
            answer: protocol.answer(message),
        });
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Whether an answer has come on it.
    pub(crate) fn is_used(&self) -> bool {
        self.is_used
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
        protocol: &Protocol,
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
        // The server may have closed it while it was idle: then this request belongs on another.
        let is_unsent = self.exchange.as_ref().is_some_and(|exchange| !exchange.is_under_way());
        if is_unsent && self.may_be_closed(protocol) {
            let progress = self.read(protocol, buffer)?;
            if !matches!(progress, Progress::Blocked) {
                return Ok(progress);
            }
        }
        self.write(protocol, buffer)?;
        self.read(protocol, buffer)
    }

    /// Whether the server may close it while it owes no answer. A short one always owes one.
    fn may_be_closed(&self, protocol: &Protocol) -> bool {
        self.class == Class::Long && protocol.may_close_when_idle()
    }

    fn write(&mut self, protocol: &Protocol, buffer: &mut [u8]) -> Result<(), Failure> {
        let Some(exchange) = &mut self.exchange else {
            return Ok(());
        };
        while exchange.sent < exchange.bytes {
            let length = buffer.len().min(exchange.bytes - exchange.sent);
            protocol.fill(self.class, exchange.message, exchange.sent, &mut buffer[..length]);
            match self.stream.write(&buffer[..length]) {
                Ok(written) => exchange.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::from_error(&error, "write")),
            }
        }
        Ok(())
    }

    fn read(&mut self, protocol: &Protocol, buffer: &mut [u8]) -> Result<Progress, Failure> {
        loop {
            let length = match self.stream.read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // TLS that ends without an announcement cuts an answer off, and nothing else.
                Err(error)
                    if error.kind() == io::ErrorKind::UnexpectedEof
                        && !self.exchange.as_ref().is_some_and(Exchange::is_under_way) =>
                {
                    0
                }
                Err(error) => return Err(Failure::from_error(&error, self.stage())),
            };
            let stage = self.stage();
            let Some(mut exchange) = self.exchange.take_if(|exchange| exchange.is_under_way())
            else {
                return match length {
                    0 if self.may_be_closed(protocol) => Ok(Progress::ClosedInOrder),
                    0 => Err(Failure::new(DropKind::EndOfFile, stage)),
                    // Nothing was asked.
                    _ => Err(Failure::new(DropKind::WrongBytes, stage)),
                };
            };
            let taken = if length == 0 {
                exchange.answer.take_end()
            } else {
                let taken = exchange.answer.take(&buffer[..length], exchange.sent);
                let good = taken.as_ref().map_or_else(|wrong| wrong.good, |_| length);
                exchange.received += good;
                taken.map_err(|wrong| wrong.kind)
            };
            if matches!(taken, Ok(Taken::Whole | Taken::Last)) {
                self.awaited = 0;
                self.is_used = true;
            }
            match taken {
                Ok(Taken::Whole) => return Ok(Progress::Answered(exchange)),
                Ok(Taken::Last) => return Ok(Progress::AnsweredLast(exchange)),
                Ok(Taken::Part) => self.exchange = Some(exchange),
                Err(kind) => {
                    self.exchange = Some(exchange);
                    return Err(Failure::new(kind, stage));
                }
            }
        }
    }
}
