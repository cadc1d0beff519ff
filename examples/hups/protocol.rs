//! What is spoken with the server: the bytes of a request, and when its answer is whole.
//!
//! A connection asks two nouns. [`Protocol`] knows what is sent. An [`Answer`] is one answer as it
//! arrives: it takes the bytes, and says when it is whole and whether it is the one expected.

#[path = "protocol/echo.rs"]
pub(crate) mod echo;
#[path = "protocol/http.rs"]
pub(crate) mod http;
#[path = "protocol/line.rs"]
pub(crate) mod line;
#[path = "protocol/redis.rs"]
pub(crate) mod redis;

use echo::Echo;
use http::Http;
use line::Line;
use redis::Redis;

use crate::drops::{Class, DropKind};

#[derive(Clone)]
pub(crate) enum Protocol {
    /// The server sends back what it gets. Every message has bytes of its own.
    Echo(Echo),
    Http(Http),
    Redis(Redis),
    Line(Line),
}

impl Protocol {
    pub(crate) const NAMES: &str = "echo, http, redis and line";

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Protocol::Echo(_) => "echo",
            Protocol::Http(_) => "http",
            Protocol::Redis(_) => "redis",
            Protocol::Line(_) => "line",
        }
    }

    /// The length of a request.
    pub(crate) fn request_bytes(&self, class: Class) -> usize {
        match self {
            Protocol::Echo(echo) => echo.bytes(),
            Protocol::Http(http) => http.request(class).len(),
            Protocol::Redis(redis) => redis.request().len(),
            Protocol::Line(line) => line.request().len(),
        }
    }

    /// Fills `buffer` with the bytes of the request from `offset` on.
    pub(crate) fn fill(&self, class: Class, message: u64, offset: usize, buffer: &mut [u8]) {
        let request = match self {
            Protocol::Echo(echo) => return echo.fill(message, offset, buffer),
            Protocol::Http(http) => http.request(class),
            Protocol::Redis(redis) => redis.request(),
            Protocol::Line(line) => line.request(),
        };
        buffer.copy_from_slice(&request[offset..offset + buffer.len()]);
    }

    /// The answer to a request, of which nothing has arrived yet.
    pub(crate) fn answer(&self, message: u64) -> Answer {
        match self {
            Protocol::Echo(echo) => Answer::Echo(echo.answer(message)),
            Protocol::Http(http) => Answer::Http(http.answer()),
            Protocol::Redis(redis) => Answer::Redis(redis.answer()),
            Protocol::Line(line) => Answer::Line(line.answer()),
        }
    }

    /// Whether a server may close a connection on which it owes no answer (RFC 9112, 9.5).
    /// Where it may not, that is a drop.
    pub(crate) fn may_close_when_idle(&self) -> bool {
        match self {
            Protocol::Http(_) => true,
            Protocol::Echo(_) | Protocol::Redis(_) | Protocol::Line(_) => false,
        }
    }
}

/// One answer as it arrives.
pub(crate) enum Answer {
    Echo(echo::Answer),
    Http(http::Answer),
    Redis(redis::Answer),
    Line(line::Answer),
}

/// What is known of an answer after some more bytes of it.
#[derive(Debug, PartialEq)]
pub(crate) enum Taken {
    /// More has to come.
    Part,
    /// It is the answer that was expected, and the connection can carry the next request.
    Whole,
    /// It is the answer that was expected, and the server has said that it is the last one on
    /// this connection.
    Last,
}

/// The answer is not the one expected.
#[derive(Debug, PartialEq)]
pub(crate) struct Wrong {
    pub(crate) kind: DropKind,
    /// How many of the bytes just taken were still as they should be.
    pub(crate) good: usize,
}

impl Answer {
    /// Takes bytes that have arrived, when `sent` bytes of the request had been sent.
    pub(crate) fn take(&mut self, received: &[u8], sent: usize) -> Result<Taken, Wrong> {
        let wrong = |kind| Wrong { kind, good: received.len() };
        match self {
            Answer::Echo(answer) => answer.take(received, sent),
            Answer::Http(answer) => answer.take(received).map_err(wrong),
            Answer::Redis(answer) => answer.take(received).map_err(wrong),
            Answer::Line(answer) => answer.take(received).map_err(wrong),
        }
    }

    /// The server has closed the connection: the end of some answers, and half of any other.
    pub(crate) fn take_end(&mut self) -> Result<Taken, DropKind> {
        match self {
            Answer::Http(answer) => answer.take_end(),
            Answer::Echo(_) | Answer::Redis(_) | Answer::Line(_) => Err(DropKind::EndOfFile),
        }
    }
}
