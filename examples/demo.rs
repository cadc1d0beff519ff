//! The demo: an echo server that is replaced on HUP without a client noticing.
//!
//!     cargo run --release --example demo
//!
//! and in another terminal, again and again:
//!
//!     echo hello | nc -N localhost 8080
//!
//! Then `kill -s HUP` its process id, as often as you like, and `kill -s QUIT` in the end.

mod common;

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Instant;

use common::logging;
use common::program::{Options, Program, words};
use tablecloth::{
    Accepted, Context, DRAIN_INTERVAL, Handler, IoEvent, Packed, Server, Stream, Verdict,
};

/// Bytes that one session may echo before the others have their turn.
const BYTES_PER_TURN: usize = 256 * 1024;

/// The form in which a session says of itself what its next owner has to know.
const SCHEMA: u32 = 1;

/// Echoes what it reads.
struct Echo {
    /// One for all sessions: a session keeps only what its client did not take yet.
    buffer: Box<[u8]>,
}

/// A client.
struct EchoSession {
    stream: Stream,
    /// Where it comes from, for the log: made into text when there is a line.
    peer: Box<dyn Display>,
    /// Read and not yet sent back, because the client does not read. Nothing more is read until it
    /// is gone: that is what makes the client's own writes wait.
    unsent: Vec<u8>,
    /// The client will send no more.
    ended: bool,
    /// When something was read last.
    active: Instant,
    /// The process is to stop, and the client has paused: the session ends when everything that it
    /// has sent has been sent back.
    stopping: bool,
}

impl Handler for Echo {
    type Session = EchoSession;

    fn open(&mut self, cx: &mut Context<'_>, accepted: Accepted) -> io::Result<EchoSession> {
        let Accepted { stream, peer, .. } = accepted;
        cx.wait_for_peer();
        let (unsent, active, peer) = (Vec::new(), cx.now(), Box::new(peer));
        Ok(EchoSession { stream, peer, unsent, ended: false, active, stopping: false })
    }

    fn event(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut EchoSession,
        event: IoEvent,
    ) -> Verdict {
        match session.echo(&mut self.buffer, event, cx.now()) {
            Ok(verdict) => verdict,
            // Nothing between two messages, and nothing to be done about it.
            Err(error) => {
                log::debug!("session of [{}] ended: {error}", session.peer);
                Verdict::Close
            }
        }
    }

    fn drain(&mut self, cx: &mut Context<'_>, session: &mut EchoSession) -> Verdict {
        // For a successor there is no hurry: the session stays as long as its client does.
        if !cx.shutting_down() {
            return Verdict::Keep;
        }
        // A message may be on its way in pieces, so that an empty socket says little: the boundary
        // is where the client pauses. What it has sent by then is still echoed.
        session.stopping = cx.now().saturating_duration_since(session.active) >= DRAIN_INTERVAL;
        if session.stopping { Verdict::Again } else { Verdict::Keep }
    }

    /// A line that says who it is and whether more will come, and behind it what is not sent back
    /// yet.
    fn pack(
        &mut self,
        _: &mut Context<'_>,
        session: EchoSession,
        _: RangeInclusive<u32>,
    ) -> Result<Packed, EchoSession> {
        let EchoSession { stream, peer, unsent, ended, .. } = session;
        let more = if ended { "ended" } else { "open" };
        let state = [format!("{more} {peer}\n").as_bytes(), &unsent].concat();
        Ok(Packed::new(SCHEMA, state, vec![stream]))
    }

    fn unpack(&mut self, cx: &mut Context<'_>, packed: Packed) -> io::Result<EchoSession> {
        let Packed { state, mut streams, .. } = packed;
        let error = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let end = state.iter().position(|byte| *byte == b'\n').ok_or_else(|| error("no line"))?;
        let line = std::str::from_utf8(&state[..end]).map_err(io::Error::other)?;
        let (ended, peer) = match line.split_once(' ') {
            Some(("ended", peer)) => (true, peer),
            Some(("open", peer)) => (false, peer),
            Some((_, _)) | None => return Err(error("neither open nor ended")),
        };
        let stream = streams.pop().ok_or_else(|| error("no socket"))?;
        let (peer, unsent) = (Box::new(peer.to_owned()), state[end + 1..].to_vec());
        if unsent.is_empty() && !ended {
            cx.wait_for_peer();
        }
        Ok(EchoSession { stream, peer, unsent, ended, active: cx.now(), stopping: false })
    }
}

impl EchoSession {
    fn echo(&mut self, buffer: &mut [u8], event: IoEvent, now: Instant) -> io::Result<Verdict> {
        let mut budget = BYTES_PER_TURN;
        loop {
            if !self.flush()? {
                return Ok(Verdict::Keep);
            }
            if self.ended {
                return Ok(Verdict::Close);
            }
            let read = match self.stream.read(buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(if self.stopping { Verdict::Close } else { Verdict::Keep });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let message = &buffer[..read];
            if read == 0 {
                self.ended = true;
                continue;
            }
            // It has not paused after all.
            (self.active, self.stopping) = (now, false);
            log::info!("receive message from [{}]:[{}]", self.peer, logging::printable(message));
            let sent = self.send(message)?;
            self.unsent.extend_from_slice(&message[sent..]);
            // A read that did not fill the buffer has emptied the socket (epoll(7)), unless the
            // end of the stream came with it, or urgent data, which a read stops at.
            let emptied = read < buffer.len() && !event.is_read_closed() && !event.is_urgent();
            if emptied && self.unsent.is_empty() {
                return Ok(Verdict::Keep);
            }
            budget = budget.saturating_sub(read);
            if budget == 0 {
                return Ok(Verdict::Again);
            }
        }
    }

    /// Sends what is left over; answers whether all of it is gone.
    fn flush(&mut self) -> io::Result<bool> {
        if !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            let sent = self.send(&unsent)?;
            self.unsent = unsent;
            self.unsent.drain(..sent);
            if self.unsent.is_empty() {
                self.unsent = Vec::new();
            }
        }
        Ok(self.unsent.is_empty())
    }

    /// Sends as much as the client takes.
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }
}

const PROGRAM: Program = Program {
    name: "demo",
    help: "\
An echo server that is replaced on HUP without a client noticing.

usage: demo [flags]",
    listen: "localhost:8080",
};

fn serve(Options { listen, common }: Options) -> Result<(), String> {
    let mut server = Server::new(common.config.schemas(SCHEMA..=SCHEMA)).map_err(words)?;
    logging::go();
    server.listen_with("echo", &listen, &common.socket).map_err(words)?;
    logging::finish();
    let echo = Echo { buffer: vec![0; 64 * 1024].into() };
    server.run(echo).map(drop).map_err(words)
}

fn main() -> ExitCode {
    PROGRAM.run(serve)
}
