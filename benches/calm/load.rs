//! The load: a closed loop over some connections. Each has one message under way, and the next one
//! follows its echo.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream as StdTcpStream};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use crate::common::failed;

/// What a message is made of, again and again.
const TEXT: [u8; 32] = *b"thirty-two bytes sent and echoed";
/// The message that most rounds send.
pub(crate) const MESSAGE_BYTES: usize = TEXT.len();
/// How long the server may say nothing before the bench gives up.
const SILENCE: Duration = Duration::from_secs(5);
/// A client that closes first keeps the port for a minute (TIME_WAIT). One source address has
/// about 28,000 ports; these are enough for a minute of any rate that one processor reaches.
const SOURCES: u32 = 200;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A message and its echo on a connection that stays.
    RoundTrip,
    /// A connection for one message.
    ShortConnection,
}

/// When a round ends.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Time(Instant),
    Count(u64),
}

/// The client's side of all connections to one server.
pub(crate) struct Load {
    kind: Kind,
    target: SocketAddr,
    message: Vec<u8>,
    buffer: Vec<u8>,
    source: u32,
    poll: Poll,
    events: Events,
    lanes: Vec<Lane>,
}

/// One connection, and the message under way on it.
#[derive(Default)]
struct Lane {
    stream: Option<TcpStream>,
    sent: usize,
    received: usize,
}

impl Load {
    /// Messages of so many bytes, on so many connections at a time.
    pub(crate) fn new(
        kind: Kind,
        target: SocketAddr,
        lanes: usize,
        message_bytes: usize,
    ) -> Result<Self, String> {
        Ok(Self {
            kind,
            target,
            message: TEXT.iter().copied().cycle().take(message_bytes).collect(),
            buffer: vec![0; message_bytes + 1],
            source: 0,
            poll: Poll::new().map_err(failed("make an epoll instance"))?,
            events: Events::with_capacity(lanes.max(1)),
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
        })
    }

    /// Keeps every lane busy until then, and waits for the last echoes. Answers how many there
    /// were.
    pub(crate) fn run(&mut self, until: Until) -> Result<u64, String> {
        self.round(until).map_err(failed(format_args!("load on {}", self.target)))
    }

    fn round(&mut self, until: Until) -> io::Result<u64> {
        let mut busy = 0;
        for lane in 0..self.lanes.len() {
            self.start(lane)?;
            busy += 1;
        }
        let mut done = 0;
        let mut finished = Vec::new();
        while busy > 0 {
            self.poll.poll(&mut self.events, Some(SILENCE))?;
            if self.events.is_empty() {
                return Err(io::Error::other(format!("nothing for {SILENCE:?}")));
            }
            for event in &self.events {
                let lane = &mut self.lanes[event.token().0];
                if lane.advance(&self.message, &mut self.buffer)? {
                    finished.push(event.token().0);
                }
            }
            let over = match until {
                Until::Time(deadline) => Instant::now() >= deadline,
                Until::Count(count) => done + self.lanes.len() as u64 >= count,
            };
            for lane in finished.drain(..) {
                done += 1;
                if self.kind == Kind::ShortConnection {
                    self.lanes[lane].stream = None;
                }
                if over {
                    busy -= 1;
                } else {
                    self.start(lane)?;
                }
            }
        }
        Ok(done)
    }

    /// Sends a message, on a new connection if there is none.
    fn start(&mut self, index: usize) -> io::Result<()> {
        if self.lanes[index].stream.is_none() {
            let mut stream = self.connect()?;
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(index), both)?;
            self.lanes[index].stream = Some(stream);
        }
        let lane = &mut self.lanes[index];
        (lane.sent, lane.received) = (0, 0);
        lane.send(&self.message)
    }

    /// From the addresses 127.0.0.2 and on in turn; the port is chosen at connect, so that only the
    /// pair of addresses has to be unique.
    fn connect(&mut self) -> io::Result<TcpStream> {
        let source = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + 1 + self.source);
        self.source = (self.source + 1) % SOURCES;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
        bind(&socket, &SocketAddrV4::new(source, 0))?;
        match connect(&socket, &self.target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(TcpStream::from_std(StdTcpStream::from(socket)))
    }
}

impl Lane {
    /// Takes what has come. Answers whether the echo is complete.
    fn advance(&mut self, message: &[u8], buffer: &mut [u8]) -> io::Result<bool> {
        self.send(message)?;
        let Some(stream) = &mut self.stream else { return Ok(false) };
        while self.sent > 0 && self.received < message.len() {
            match stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) if message[self.received..].starts_with(&buffer[..count]) => {
                    self.received += count;
                }
                Ok(_) => return Err(io::Error::other("that is no echo")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // Not made yet, so that there is nothing to read either.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.received == message.len() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sends the message once the connection is made, or as much of it as there is room for.
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        while self.sent < message.len() {
            match stream.write(&message[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // On its way: the event that it is made follows.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
