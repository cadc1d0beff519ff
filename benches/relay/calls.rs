//! The calls that a relay has to make, and nothing else: what there is no way below. It has no
//! timeout, no bound and no log, hands nothing over, and gives up a session at the first error.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use crate::bare::send;

const BUFFER_BYTES: usize = 64 * 1024;
const EVENTS: usize = 1024;
/// Tokens below are listeners; the others are a session's client, and its upstream.
const FIRST: usize = 2;

struct Session {
    /// The client and the upstream.
    ends: [TcpStream; 2],
    /// What came from each and was not taken by the other.
    unsent: [Vec<u8>; 2],
    /// Whose end of the stream was read.
    ended: [bool; 2],
}

/// Relays from each of the ports of 127.0.0.1 to its upstream, until it is killed.
pub(crate) fn serve(routes: [(u16, SocketAddr); 2]) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(EVENTS);
    let mut sessions: Slab<Session> = Slab::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut listeners = Vec::new();
    for (index, (port, upstream)) in routes.into_iter().enumerate() {
        let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port).into())?;
        poll.registry().register(&mut listener, Token(index), Interest::READABLE)?;
        listeners.push((listener, upstream));
    }
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut called = [false; FIRST];
        for event in &events {
            let Some(place) = event.token().0.checked_sub(FIRST) else {
                called[event.token().0] = true;
                continue;
            };
            let (index, from) = (place / 2, place % 2);
            let Some(session) = sessions.get_mut(index) else { continue };
            let flushed = !event.is_writable() || session.flush(1 - from, &mut buffer).is_ok();
            let goes_on = !event.is_readable() || session.relay(from, &mut buffer).is_ok();
            if !flushed || !goes_on || session.ended == [true; 2] {
                sessions.remove(index);
            }
        }
        for ((listener, upstream), _) in listeners.iter().zip(called).filter(|(_, called)| *called)
        {
            while let Ok((client, _)) = listener.accept() {
                let vacancy = sessions.vacant_entry();
                let session = Session::open(client, *upstream, &mut buffer, |stream, end| {
                    let token = Token(FIRST + 2 * vacancy.key() + end);
                    let both = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(stream, token, both)
                });
                if let Ok(session) = session {
                    vacancy.insert(session);
                }
            }
        }
    }
}

impl Session {
    fn open(
        mut client: TcpStream,
        upstream: SocketAddr,
        buffer: &mut [u8],
        register: impl Fn(&mut TcpStream, usize) -> io::Result<()>,
    ) -> io::Result<Self> {
        client.set_nodelay(true)?;
        // The end of the stream is read again when its event has told of it.
        let read = client.read(buffer).unwrap_or(0);
        let mut upstream = TcpStream::connect(upstream)?;
        upstream.set_nodelay(true)?;
        let sent = if read > 0 { upstream.write(&buffer[..read]).unwrap_or(0) } else { 0 };
        register(&mut client, 0)?;
        register(&mut upstream, 1)?;
        let unsent = [buffer[sent..read].to_vec(), Vec::new()];
        Ok(Self { ends: [client, upstream], unsent, ended: [false; 2] })
    }

    /// Reads from one end and writes to the other, until there is no more or no more is taken.
    fn relay(&mut self, from: usize, buffer: &mut [u8]) -> io::Result<()> {
        while self.unsent[from].is_empty() && !self.ended[from] {
            let read = match self.ends[from].read(buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if read == 0 {
                self.ended[from] = true;
                return match self.ended {
                    [true, true] => Ok(()),
                    [..] => self.ends[1 - from].shutdown(Shutdown::Write),
                };
            }
            let sent = send(&mut self.ends[1 - from], &buffer[..read])?;
            self.unsent[from].extend_from_slice(&buffer[sent..read]);
            // A read that has not filled the buffer is the last one. (Bytes with an end behind them
            // come with an event of their own here, because the load waits for its echo.)
            if read < buffer.len() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Writes what came from that end and was not taken, and then goes on with it.
    fn flush(&mut self, from: usize, buffer: &mut [u8]) -> io::Result<()> {
        if self.unsent[from].is_empty() {
            return Ok(());
        }
        let sent = send(&mut self.ends[1 - from], &self.unsent[from])?;
        self.unsent[from].drain(..sent);
        match self.unsent[from].is_empty() {
            true => self.relay(from, buffer),
            false => Ok(()),
        }
    }
}
