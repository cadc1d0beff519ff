//! One client of the admin endpoint: it sends a request, and reads the answer.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::request::{Answer, Parsed, Request, head_of_stream, parse};
use crate::limits;
use crate::stream::Stream;

/// A client.
pub(super) struct Client {
    stream: Stream,
    stage: Stage,
    /// What it has sent of its request.
    input: Vec<u8>,
    /// What it has not read of the answer.
    output: Vec<u8>,
    /// Whether it may command.
    may_command: bool,
    /// When it has taken too long.
    deadline: Option<Instant>,
    /// Something has happened to it, and it was not looked at since.
    pub(super) is_ready: bool,
}

/// How far it is.
#[derive(Clone, Copy)]
enum Stage {
    /// It sends its request.
    Asking,
    /// Its answer is being made.
    Asked,
    /// It waits for what becomes of an upgrade.
    Waiting(Waits),
    /// It reads the rest of its answer.
    Ending,
    /// The answer is sent. What it still sends is thrown away: to close now would be a reset, which
    /// takes the answer with it (tcp(7)).
    Lingering,
}

/// For what a client waits, and since when.
#[derive(Clone, Copy)]
pub(super) struct Waits {
    pub(super) what: Awaited,
    since: Instant,
    chunked: bool,
}

/// The end that a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    Served,
    Proven,
    Checked,
}

impl Client {
    pub(super) fn new(stream: Stream, may_command: bool, now: Instant) -> Self {
        Self {
            stream,
            stage: Stage::Asking,
            input: Vec::new(),
            output: Vec::new(),
            may_command,
            deadline: Some(now + limits::ADMIN_WAIT),
            is_ready: true,
        }
    }

    /// Its claim to stay where there are too many: the least goes first. `None` if it stays.
    pub(super) fn claim(&self) -> Option<u8> {
        match self.stage {
            Stage::Lingering => Some(0),
            Stage::Ending => Some(1),
            Stage::Asking => Some(2),
            Stage::Asked | Stage::Waiting(_) => None,
        }
    }

    /// For what it waits, if it does.
    pub(super) fn waits(&self) -> Option<Waits> {
        match self.stage {
            Stage::Waiting(waits) => Some(waits),
            Stage::Asking | Stage::Asked | Stage::Ending | Stage::Lingering => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Reads and writes what there is. Answers its request, when that is whole; an error, and it is to be
    /// dropped.
    pub(super) fn serve(&mut self, now: Instant) -> io::Result<Option<Request>> {
        self.is_ready = false;
        self.write(now)?;
        let mut buffer = [0; 1024];
        // As much as a request may have, and no more in one turn.
        for _ in 0..limits::ADMIN_HEAD_BYTES / buffer.len() {
            match self.stream.read(&mut buffer) {
                Ok(0) => return self.hang_up(),
                Ok(length) => {
                    let Stage::Asking = self.stage else { continue };
                    self.input.extend_from_slice(&buffer[..length]);
                    match parse(&self.input, self.may_command) {
                        Parsed::More => {}
                        Parsed::Request(request) => {
                            (self.stage, self.input) = (Stage::Asked, Vec::new());
                            return Ok(Some(request));
                        }
                        Parsed::Refused(answer) => {
                            self.answer(&answer, false, now);
                            return Ok(None);
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.is_ready = true;
        Ok(None)
    }

    /// It sends no more. Who has asked may still want the answer.
    fn hang_up(&mut self) -> io::Result<Option<Request>> {
        match self.stage {
            Stage::Asking | Stage::Lingering => Err(io::ErrorKind::UnexpectedEof.into()),
            Stage::Asked | Stage::Waiting(_) | Stage::Ending => Ok(None),
        }
    }

    /// Its whole answer.
    pub(super) fn answer(&mut self, answer: &Answer, head_only: bool, now: Instant) {
        self.output.extend(answer.bytes(head_only));
        self.end(now);
    }

    /// Its answer begins, and goes on when there is more to tell.
    pub(super) fn wait_for(&mut self, what: Awaited, request: Request, now: Instant) {
        self.output.extend(head_of_stream(request.chunked));
        let chunked = request.chunked;
        self.stage = Stage::Waiting(Waits { what, since: now, chunked });
        // However long that takes.
        self.deadline = None;
    }

    /// A line for one who waits, with the time since it has asked.
    pub(super) fn tell(&mut self, line: &str, now: Instant) {
        let Stage::Waiting(waits) = self.stage else { return };
        let since = now.saturating_duration_since(waits.since);
        self.say(&format!("{:10.3} ms  {line}\n", since.as_secs_f64() * 1e3), waits, now);
    }

    /// A line as it is.
    pub(super) fn quote(&mut self, line: &str, now: Instant) {
        let Stage::Waiting(waits) = self.stage else { return };
        self.say(&format!("{line}\n"), waits, now);
    }

    fn say(&mut self, line: &str, waits: Waits, now: Instant) {
        match waits.chunked {
            true => self.output.extend(format!("{:x}\r\n{line}\r\n", line.len()).into_bytes()),
            false => self.output.extend(line.as_bytes()),
        }
        self.deadline.get_or_insert(now + limits::ADMIN_WAIT);
        self.is_ready = true;
    }

    /// The last line for one who waits.
    pub(super) fn conclude(&mut self, line: &str, now: Instant) {
        let Stage::Waiting(waits) = self.stage else { return };
        self.say(&format!("{line}\n"), waits, now);
        if waits.chunked {
            self.output.extend(b"0\r\n\r\n");
        }
        self.end(now);
    }

    fn end(&mut self, now: Instant) {
        self.stage = Stage::Ending;
        self.deadline = Some(now + limits::ADMIN_WAIT);
        self.is_ready = true;
    }

    /// Writes what waits to be read.
    pub(super) fn write(&mut self, now: Instant) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => {
                    self.output.drain(..length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever asks for much and reads nothing is not waited for.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let is_waiting = matches!(self.stage, Stage::Waiting(_));
                    let too_much = is_waiting && self.output.len() > limits::ADMIN_WAITING_BYTES;
                    return if too_much { Err(error) } else { Ok(()) };
                }
                Err(error) => return Err(error),
            }
        }
        match self.stage {
            // It has read everything so far.
            Stage::Waiting(_) => self.deadline = None,
            Stage::Ending => {
                self.stream.shutdown(Shutdown::Write)?;
                self.stage = Stage::Lingering;
                self.deadline = Some(now + LINGER);
            }
            Stage::Asking | Stage::Asked | Stage::Lingering => {}
        }
        Ok(())
    }
}

/// How long a client may send what nobody reads, before its end is a reset.
const LINGER: Duration = Duration::from_secs(1);
