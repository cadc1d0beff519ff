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

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a response, however it is cut, and then of the end of the connection.
    fn take(expect: Option<&str>, response: &str) -> [Result<Taken, DropKind>; 2] {
        let http = Http::new("localhost", None, expect).expect("good flags");
        let mut answer = http.answer();
        let whole = answer.take(response.as_bytes());
        let mut pieces = http.answer();
        let mut last = Ok(Taken::Part);
        for byte in response.as_bytes() {
            last = pieces.take(&[*byte]);
            if last.is_err() {
                break;
            }
        }
        assert_eq!(whole, last, "{response:?}");
        [whole, answer.take_end()]
    }

    fn whole(expect: Option<&str>, response: &str) -> Result<Taken, DropKind> {
        let [whole, _] = take(expect, response);
        whole
    }

    #[test]
    fn a_long_connection_asks_to_be_kept_and_a_short_one_to_be_closed() {
        let http = Http::new("127.0.0.1:80", Some("/health?deep"), None).expect("good flags");
        let text = |class| String::from_utf8(http.request(class).into()).expect("text");
        assert_eq!(
            text(Class::Long),
            "GET /health?deep HTTP/1.1\r\nHost: 127.0.0.1:80\r\nUser-Agent: hups\r\n\
             Connection: keep-alive\r\n\r\n"
        );
        assert!(text(Class::Short).contains("\r\nConnection: close\r\n"));
    }

    #[test]
    fn the_length_that_the_head_says_is_the_body_s() {
        let response = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(whole(None, response), Ok(Taken::Whole));
        assert_eq!(whole(None, &response[..response.len() - 1]), Ok(Taken::Part));
        assert_eq!(whole(None, &format!("{response}!")), Err(DropKind::WrongBytes));
        assert_eq!(whole(None, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Ok(Taken::Whole));
        assert_eq!(whole(Some("204"), "HTTP/1.1 204 No Content\r\n\r\n"), Ok(Taken::Whole));
        let half = take(None, &response[..response.len() - 1]);
        assert_eq!(half, [Ok(Taken::Part), Err(DropKind::EndOfFile)]);
    }

    #[test]
    fn chunks_are_put_together() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n";
        let chunks = "5\r\nhello\r\n6;name=value\r\n world\r\n0\r\nChecksum: 1\r\n\r\n";
        assert_eq!(whole(None, &format!("{head}{chunks}")), Ok(Taken::Whole));
        assert_eq!(whole(Some("lo wor"), &format!("{head}{chunks}")), Ok(Taken::Whole));
        assert_eq!(whole(Some("low"), &format!("{head}{chunks}")), Err(DropKind::WrongAnswer));
        assert_eq!(whole(None, &format!("{head}5\r\nhello\r\n")), Ok(Taken::Part));
        assert_eq!(whole(None, &format!("{head}x\r\n")), Err(DropKind::WrongBytes));
        assert_eq!(whole(None, &format!("{head}5\r\nhello, world")), Err(DropKind::WrongBytes));
        let big = format!("{head}{}\r\n", "f".repeat(17));
        assert_eq!(whole(None, &big), Err(DropKind::WrongBytes));
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let response = "HTTP/1.1 200 OK\r\n\r\nhello";
        assert_eq!(take(Some("hello"), response), [Ok(Taken::Part), Ok(Taken::Last)]);
    }

    #[test]
    fn a_server_says_that_an_answer_is_the_last_one() {
        let answer = |version: &str, connection: &str| {
            whole(
                None,
                &format!("HTTP/1.{version} 200 OK\r\n{connection}Content-Length: 0\r\n\r\n"),
            )
        };
        assert_eq!(answer("1", "Connection: TE, Close\r\n"), Ok(Taken::Last));
        assert_eq!(answer("1", "Connection: keep-alive\r\n"), Ok(Taken::Whole));
        assert_eq!(answer("0", ""), Ok(Taken::Last));
        assert_eq!(answer("0", "connection: Keep-Alive\r\n"), Ok(Taken::Whole));
    }

    #[test]
    fn an_interim_answer_is_no_answer_yet() {
        let early = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n";
        assert_eq!(whole(None, early), Ok(Taken::Part));
        let answer = format!("{early}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(whole(None, &answer), Ok(Taken::Whole));
    }

    #[test]
    fn another_status_or_a_body_without_the_text_is_a_wrong_answer() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno";
        assert_eq!(whole(None, answer), Err(DropKind::WrongAnswer));
        assert_eq!(whole(Some("503"), answer), Ok(Taken::Whole));
        assert_eq!(whole(Some("no"), answer), Err(DropKind::WrongAnswer));
    }

    #[test]
    fn garbage_is_told_from_an_answer() {
        for garbage in [
            "+PONG\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 two OK\r\n\r\n",
        ] {
            assert_eq!(whole(None, garbage), Err(DropKind::WrongBytes), "{garbage:?}");
        }
    }

    #[test]
    fn an_endless_head_is_not_kept_for_ever() {
        let http = Http::new("localhost", None, None).expect("good flags");
        let mut answer = http.answer();
        assert_eq!(answer.take(b"HTTP/1.1 200 OK\r\nX: "), Ok(Taken::Part));
        let fed = (0..100).find(|_| answer.take(&[b'x'; 1024]).is_err());
        assert_eq!(fed, Some(15));
        assert!(answer.line.len() <= HEAD_BYTES_MAX);
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(whole(None, &many), Err(DropKind::WrongBytes));
    }

    #[test]
    fn what_cannot_be_sent_or_expected_is_refused() {
        for (send, expect) in [
            (Some("index.html"), None),
            (Some("/a b"), None),
            (None, Some("")),
            (None, Some("100")),
        ] {
            assert!(Http::new("localhost", send, expect).is_err(), "{send:?} {expect:?}");
        }
    }
}
