//! A server that speaks the protocol of Redis (RESP, versions 2 and 3).

use std::sync::Arc;

use super::Taken;
use super::line::without_return;
use crate::drops::DropKind;

const PING: &str = "PING";
const PONG: &str = "+PONG";
/// The longest line of a reply; what is long comes as a bulk string.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// How many values may be outstanding within one reply.
const VALUES_MAX: u64 = 1 << 24;
/// The longest bulk string: Redis has this bound itself (`proto-max-bulk-len`).
const BULK_BYTES_MAX: u64 = 512 << 20;

#[derive(Clone)]
pub(crate) struct Redis {
    request: Arc<[u8]>,
    expected: Option<Arc<[u8]>>,
}

impl Redis {
    pub(crate) fn new(send: Option<&str>, expect: Option<&str>) -> Result<Redis, String> {
        let words: Vec<&str> = send.unwrap_or(PING).split_whitespace().collect();
        if words.is_empty() {
            return Err("--send holds no command".to_string());
        }
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        // What another command answers is not known here: anything but an error.
        let expected = expect.or(send.is_none().then_some(PONG));
        Ok(Redis {
            request: request.into_bytes().into(),
            expected: expected.map(|line| line.as_bytes().into()),
        })
    }

    pub(super) fn request(&self) -> &[u8] {
        &self.request
    }

    pub(super) fn answer(&self) -> Answer {
        Answer {
            expected: self.expected.clone(),
            line: Vec::new(),
            is_first: true,
            is_expected: false,
            values: 1,
            bulk: None,
        }
    }
}

pub(crate) struct Answer {
    expected: Option<Arc<[u8]>>,
    /// The line that is still without its end.
    line: Vec<u8>,
    is_first: bool,
    is_expected: bool,
    /// How many values have yet to come until the reply is whole.
    values: u64,
    /// How much is left of a bulk string and the two bytes that end it.
    bulk: Option<u64>,
}

impl Answer {
    pub(super) fn take(&mut self, mut received: &[u8]) -> Result<Taken, DropKind> {
        while !received.is_empty() {
            if self.values == 0 {
                // Nobody has asked for more.
                return Err(DropKind::WrongBytes);
            }
            if let Some(left) = self.bulk {
                let taken = left.min(received.len() as u64);
                received = &received[taken as usize..];
                self.bulk = Some(left - taken).filter(|left| *left > 0);
                self.values -= u64::from(self.bulk.is_none());
                continue;
            }
            let end = received.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(received.len(), |end| end + 1);
            self.line.extend_from_slice(&received[..taken]);
            received = &received[taken..];
            if self.line.len() > LINE_BYTES_MAX {
                return Err(DropKind::WrongBytes);
            }
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                self.take_line(&line)?;
            }
        }
        match self.values {
            0 if self.is_expected => Ok(Taken::Whole),
            0 => Err(DropKind::WrongAnswer),
            _ => Ok(Taken::Part),
        }
    }

    /// The first byte of a line is the type of the value. What follows the type of a string or an
    /// array is a length.
    fn take_line(&mut self, line: &[u8]) -> Result<(), DropKind> {
        let line = line.strip_suffix(b"\r\n").ok_or(DropKind::WrongBytes)?;
        let (kind, rest) = line.split_first().ok_or(DropKind::WrongBytes)?;
        if std::mem::take(&mut self.is_first) {
            self.is_expected = match &self.expected {
                Some(expected) => line == without_return(expected),
                None => !matches!(kind, b'-' | b'!'),
            };
        }
        let length = || -> Result<Option<u64>, DropKind> {
            let number = std::str::from_utf8(rest).ok().and_then(|text| text.parse::<i64>().ok());
            match number {
                // There is no value: a string or an array of this length is null.
                Some(-1) => Ok(None),
                Some(length) => u64::try_from(length).map(Some).map_err(|_| DropKind::WrongBytes),
                None => Err(DropKind::WrongBytes),
            }
        };
        match kind {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => self.values -= 1,
            b'$' | b'!' | b'=' => match length()? {
                Some(length) if length > BULK_BYTES_MAX => return Err(DropKind::WrongBytes),
                Some(length) => self.bulk = Some(length + 2),
                None => self.values -= 1,
            },
            b'*' | b'~' | b'>' | b'%' => {
                let pairs = if *kind == b'%' { 2 } else { 1 };
                let more = length()?.unwrap_or(0).checked_mul(pairs).ok_or(DropKind::WrongBytes)?;
                self.values = self.values.saturating_add(more) - 1;
                if self.values > VALUES_MAX {
                    return Err(DropKind::WrongBytes);
                }
            }
            _ => return Err(DropKind::WrongBytes),
        }
        Ok(())
    }
}
