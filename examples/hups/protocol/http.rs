//! An HTTP/1.1 server: one GET after another, or one for each connection.

use std::sync::Arc;

use super::Taken;
use crate::drops::{Class, DropKind};

/// The longest head of a response.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// The longest line with the size of a chunk, and the longest line after the last one.
const CHUNK_LINE_BYTES_MAX: usize = 4 * 1024;
/// How many lines may follow the last chunk.
const TRAILERS_MAX: usize = HEADERS_MAX;

#[derive(Clone)]
pub(crate) struct Http {
    short: Arc<[u8]>,
    long: Arc<[u8]>,
    expected: Arc<Expected>,
}

/// What a response has to be.
struct Expected {
    status: u16,
    /// What has to be in the body.
    text: Vec<u8>,
}

impl Http {
    pub(crate) fn new(
        host: &str,
        send: Option<&str>,
        expect: Option<&str>,
    ) -> Result<Http, String> {
        let path = send.unwrap_or("/");
        if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "--send {path} is no path: it begins with a slash and is ASCII without spaces"
            ));
        }
        let request = |connection| {
            let text = format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: hups\r\n\
                 Connection: {connection}\r\n\r\n"
            );
            Arc::from(text.into_bytes())
        };
        let expected = match expect.unwrap_or("200") {
            "" => return Err("--expect is empty".to_string()),
            text if text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                let status = text.parse().ok().filter(|status| (200..600).contains(status));
                let status = status.ok_or_else(|| {
                    format!("--expect {text} is no status of an answer (200 to 599)")
                })?;
                Expected { status, text: Vec::new() }
            }
            text => Expected { status: 200, text: text.into() },
        };
        Ok(Http {
            short: request("close"),
            long: request("keep-alive"),
            expected: Arc::new(expected),
        })
    }

    pub(super) fn request(&self, class: Class) -> &[u8] {
        match class {
            Class::Short => &self.short,
            Class::Long => &self.long,
        }
    }

    pub(super) fn answer(&self) -> Answer {
        Answer {
            expected: Arc::clone(&self.expected),
            part: Part::Head,
            line: Vec::new(),
            status: 0,
            is_last: false,
            is_found: self.expected.text.is_empty(),
            tail: Vec::new(),
        }
    }
}

pub(crate) struct Answer {
    expected: Arc<Expected>,
    part: Part,
    /// The head, or the line about a chunk, as far as it has come.
    line: Vec<u8>,
    status: u16,
    /// The server closes the connection after it.
    is_last: bool,
    /// The expected text was in the body.
    is_found: bool,
    /// The end of the body so far: the text may lie across two reads.
    tail: Vec<u8>,
}

/// What comes next.
#[derive(Clone, Copy)]
enum Part {
    Head,
    /// A body of a length that the head has said.
    Body {
        left: u64,
    },
    /// A body that ends with the connection.
    UntilClose,
    ChunkSize,
    Chunk {
        left: u64,
    },
    /// The end of the line after a chunk.
    ChunkEnd,
    /// The lines after the last chunk, up to an empty one.
    Trailers {
        lines: usize,
    },
    Nothing,
}

impl Answer {
    pub(super) fn take(&mut self, received: &[u8]) -> Result<Taken, DropKind> {
        let mut rest = received;
        while !rest.is_empty() {
            rest = match self.part {
                Part::Head => self.take_head(rest)?,
                Part::Body { left } => {
                    let (rest, left) = self.take_body(rest, left);
                    self.part = if left > 0 { Part::Body { left } } else { Part::Nothing };
                    rest
                }
                Part::UntilClose => self.take_body(rest, u64::MAX).0,
                Part::Chunk { left } => {
                    let (rest, left) = self.take_body(rest, left);
                    self.part = if left > 0 { Part::Chunk { left } } else { Part::ChunkEnd };
                    rest
                }
                Part::ChunkSize | Part::ChunkEnd | Part::Trailers { .. } => self.take_line(rest)?,
                // Nobody has asked for more.
                Part::Nothing => return Err(DropKind::WrongBytes),
            };
        }
        match self.part {
            Part::Nothing => self.judge(),
            Part::Head
            | Part::Body { .. }
            | Part::UntilClose
            | Part::ChunkSize
            | Part::Chunk { .. }
            | Part::ChunkEnd
            | Part::Trailers { .. } => Ok(Taken::Part),
        }
    }

    pub(super) fn take_end(&mut self) -> Result<Taken, DropKind> {
        match self.part {
            Part::UntilClose => self.judge(),
            Part::Nothing
            | Part::Head
            | Part::Body { .. }
            | Part::ChunkSize
            | Part::Chunk { .. }
            | Part::ChunkEnd
            | Part::Trailers { .. } => Err(DropKind::EndOfFile),
        }
    }

    /// The response is whole.
    fn judge(&self) -> Result<Taken, DropKind> {
        match self.status == self.expected.status && self.is_found {
            false => Err(DropKind::WrongAnswer),
            true if self.is_last => Ok(Taken::Last),
            true => Ok(Taken::Whole),
        }
    }

    /// Returns what follows the head.
    fn take_head<'a>(&mut self, received: &'a [u8]) -> Result<&'a [u8], DropKind> {
        let before = self.line.len();
        let room = HEAD_BYTES_MAX - before;
        self.line.extend_from_slice(&received[..received.len().min(room)]);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(&self.line) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if self.line.len() < HEAD_BYTES_MAX => return Ok(&[]),
            Ok(httparse::Status::Partial) | Err(_) => return Err(DropKind::WrongBytes),
        };
        let head = Head::of(&response)?;
        self.line.clear();
        // The head ends in these bytes: without them it was not whole.
        let rest = &received[length - before..];
        self.status = head.status;
        self.is_last = head.is_last;
        self.part = match head.status {
            // Nobody has asked for another protocol.
            101 => return Err(DropKind::WrongAnswer),
            // Another head follows.
            100..200 => Part::Head,
            204 | 304 => Part::Nothing,
            _ => head.body,
        };
        Ok(rest)
    }

    /// Takes as much of the body as belongs to it. Returns what follows, and what is left to come.
    fn take_body<'a>(&mut self, received: &'a [u8], left: u64) -> (&'a [u8], u64) {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(received.len());
        let (body, rest) = received.split_at(taken);
        if !self.is_found {
            let text = &self.expected.text;
            self.tail.extend_from_slice(body);
            self.is_found = self.tail.windows(text.len()).any(|window| window == text);
            let kept = self.tail.len().min(text.len() - 1);
            self.tail.drain(..self.tail.len() - kept);
        }
        (rest, left - taken as u64)
    }

    /// A line of what surrounds chunks. Returns what follows it.
    fn take_line<'a>(&mut self, received: &'a [u8]) -> Result<&'a [u8], DropKind> {
        let end = received.iter().position(|byte| *byte == b'\n');
        let (line, rest) = received.split_at(end.map_or(received.len(), |end| end + 1));
        if self.line.len() + line.len() > CHUNK_LINE_BYTES_MAX {
            return Err(DropKind::WrongBytes);
        }
        self.line.extend_from_slice(line);
        if matches!(self.part, Part::ChunkEnd) && !b"\r\n".starts_with(&self.line) {
            return Err(DropKind::WrongBytes);
        }
        if end.is_none() {
            return Ok(rest);
        }
        let line = std::mem::take(&mut self.line);
        let is_empty = matches!(line.as_slice(), b"\r\n" | b"\n");
        self.part = match self.part {
            Part::ChunkSize => match httparse::parse_chunk_size(&line) {
                Ok(httparse::Status::Complete((_, 0))) => Part::Trailers { lines: 0 },
                Ok(httparse::Status::Complete((_, left))) => Part::Chunk { left },
                Ok(httparse::Status::Partial) | Err(_) => return Err(DropKind::WrongBytes),
            },
            Part::ChunkEnd if is_empty => Part::ChunkSize,
            Part::Trailers { .. } if is_empty => Part::Nothing,
            Part::Trailers { lines } if lines < TRAILERS_MAX => Part::Trailers { lines: lines + 1 },
            Part::ChunkEnd
            | Part::Trailers { .. }
            | Part::Head
            | Part::Body { .. }
            | Part::UntilClose
            | Part::Chunk { .. }
            | Part::Nothing => return Err(DropKind::WrongBytes),
        };
        Ok(rest)
    }
}

/// What the head says of the body and of the connection (RFC 9112, 6.3 and 9.3).
struct Head {
    status: u16,
    body: Part,
    is_last: bool,
}

impl Head {
    fn of(response: &httparse::Response<'_, '_>) -> Result<Head, DropKind> {
        let status = response.code.ok_or(DropKind::WrongBytes)?;
        let (mut length, mut coding, mut closes, mut stays) = (None, None, false, false);
        for header in response.headers.iter() {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                let text = std::str::from_utf8(header.value).map_err(|_| DropKind::WrongBytes)?;
                let said = text.trim().parse::<u64>().map_err(|_| DropKind::WrongBytes)?;
                if length.is_some_and(|length| length != said) {
                    return Err(DropKind::WrongBytes);
                }
                length = Some(said);
            } else if is("transfer-encoding") {
                coding = words(header.value).last();
            } else if is("connection") {
                closes |= words(header.value).any(|word| word.eq_ignore_ascii_case(b"close"));
                stays |= words(header.value).any(|word| word.eq_ignore_ascii_case(b"keep-alive"));
            }
        }
        let body = match (coding, length) {
            (Some(coding), _) if coding.eq_ignore_ascii_case(b"chunked") => Part::ChunkSize,
            (Some(_), _) | (None, None) => Part::UntilClose,
            (None, Some(0)) => Part::Nothing,
            (None, Some(left)) => Part::Body { left },
        };
        let is_old = response.version == Some(0);
        let has_body = !matches!(status, 100..200 | 204 | 304);
        let is_last =
            closes || (is_old && !stays) || (has_body && matches!(body, Part::UntilClose));
        Ok(Head { status, body, is_last })
    }
}

fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}
