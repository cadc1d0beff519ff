//! The servers of the latency rows: one that writes its answer at once, and one that writes it in two
//! pieces and leaves Nagle's algorithm on, as Python's http.server does. The kernel holds the second
//! piece back until the first one is acknowledged. Who asks for bulk is sent it without end, by another thread.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use crate::bulk::{self, Source};

pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: latency\r\n\r\n";
pub(crate) const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const BODY_BYTES: usize = 2;

/// How a header of the PROXY protocol begins, and what version 2 has before its addresses.
const VERSION_1: &[u8] = b"PROXY ";
const VERSION_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_BYTES: usize = 16;

const EVENTS: usize = 1024;
/// Tokens below are listeners.
const FIRST: usize = 2;

struct Session {
    stream: TcpStream,
    writes: usize,
    /// The header of the PROXY protocol, if there is one, was skipped.
    begun: bool,
    unread: Vec<u8>,
}

/// Answers once at the first port of 127.0.0.1 and in two writes at the second, until it is killed.
pub(crate) fn serve(ports: [u16; 2]) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(EVENTS);
    let mut sessions: Slab<Session> = Slab::new();
    let source = Source::new()?;
    let mut listeners = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port).into())?;
        poll.registry().register(&mut listener, Token(index), Interest::READABLE)?;
        listeners.push(listener);
    }
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for event in &events {
            let Some(index) = event.token().0.checked_sub(FIRST) else {
                let writes = event.token().0 + 1;
                while let Ok((mut stream, _)) = listeners[event.token().0].accept() {
                    let vacancy = sessions.vacant_entry();
                    let token = Token(FIRST + vacancy.key());
                    poll.registry().register(&mut stream, token, Interest::READABLE)?;
                    vacancy.insert(Session { stream, writes, begun: false, unread: Vec::new() });
                }
                continue;
            };
            let Some(session) = sessions.get_mut(index) else { continue };
            match session.serve() {
                Ok(Then::Wait) => {}
                Ok(Then::Bulk) => {
                    let mut stream = sessions.remove(index).stream;
                    poll.registry().deregister(&mut stream)?;
                    source.add(stream)?;
                }
                Ok(Then::End) | Err(_) => drop(sessions.remove(index)),
            }
        }
    }
}

/// What follows when everything that has come is answered.
enum Then {
    Wait,
    /// The client wants bulk.
    Bulk,
    /// The client has ended.
    End,
}

impl Session {
    /// Answers what has come.
    fn serve(&mut self) -> io::Result<Then> {
        let mut buffer = [0; 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(Then::End),
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Then::Wait),
                Err(error) => return Err(error),
            }
            self.skip_header();
            while self.begun && self.unread.starts_with(REQUEST) {
                self.unread.drain(..REQUEST.len());
                self.answer()?;
            }
            if self.begun && self.unread.starts_with(bulk::REQUEST) {
                return Ok(Then::Bulk);
            }
            let may_begin = |request: &[u8]| request.starts_with(&self.unread);
            if self.begun && !may_begin(REQUEST) && !may_begin(bulk::REQUEST) {
                return Err(io::Error::other("that is no request"));
            }
        }
    }

    /// A request begins with none of the bytes that a header begins with.
    fn skip_header(&mut self) {
        if self.begun {
            return;
        }
        let unread = &self.unread;
        let header = if unread.starts_with(VERSION_1) {
            unread.windows(2).position(|pair| pair == b"\r\n").map(|end| end + 2)
        } else if unread.starts_with(VERSION_2) {
            let length = unread.get(VERSION_2_BYTES - 2..VERSION_2_BYTES);
            let bytes = length.map(|length| u16::from_be_bytes([length[0], length[1]]));
            bytes.map(|bytes| VERSION_2_BYTES + usize::from(bytes))
        } else if VERSION_1.starts_with(unread) || VERSION_2.starts_with(unread) {
            None
        } else {
            Some(0)
        };
        if let Some(bytes) = header.filter(|bytes| *bytes <= unread.len()) {
            self.unread.drain(..bytes);
            self.begun = true;
        }
    }

    fn answer(&mut self) -> io::Result<()> {
        if self.writes == 1 {
            return self.stream.write_all(ANSWER);
        }
        let (head, body) = ANSWER.split_at(ANSWER.len() - BODY_BYTES);
        self.stream.write_all(head)?;
        self.stream.write_all(body)
    }
}
