//! A server that answers a line with a line.

use std::sync::Arc;

use super::Taken;
use crate::drops::DropKind;

const LINE: &str = "hups";
/// The longest line that is sent or expected.
const LINE_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone)]
pub(crate) struct Line {
    request: Arc<[u8]>,
    expected: Arc<[u8]>,
}

impl Line {
    pub(crate) fn new(send: Option<&str>, expect: Option<&str>) -> Result<Line, String> {
        let send = send.unwrap_or(LINE);
        let expect = expect.unwrap_or(send);
        for (flag, text) in [("--send", send), ("--expect", expect)] {
            if text.contains('\n') {
                return Err(format!("{flag} is more than one line: --protocol line takes one"));
            }
            if text.len() > LINE_BYTES_MAX {
                return Err(format!("{flag} has more than {LINE_BYTES_MAX} bytes"));
            }
        }
        Ok(Line {
            request: format!("{send}\n").into_bytes().into(),
            expected: expect.as_bytes().into(),
        })
    }

    pub(super) fn request(&self) -> &[u8] {
        &self.request
    }

    pub(super) fn answer(&self) -> Answer {
        Answer { expected: Arc::clone(&self.expected), line: Vec::new() }
    }
}

pub(crate) struct Answer {
    expected: Arc<[u8]>,
    line: Vec<u8>,
}

impl Answer {
    pub(super) fn take(&mut self, received: &[u8]) -> Result<Taken, DropKind> {
        let end = received.iter().position(|byte| *byte == b'\n');
        self.line.extend_from_slice(&received[..end.unwrap_or(received.len())]);
        match end {
            Some(end) if end + 1 < received.len() => Err(DropKind::WrongBytes),
            Some(_) if without_return(&self.line) == &*self.expected => Ok(Taken::Whole),
            Some(_) => Err(DropKind::WrongAnswer),
            // With a carriage return.
            None if self.line.len() > LINE_BYTES_MAX + 1 => Err(DropKind::WrongBytes),
            None => Ok(Taken::Part),
        }
    }
}

/// A line may end with CR LF, too.
pub(super) fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}
