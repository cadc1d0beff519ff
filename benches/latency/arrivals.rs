//! An open loop: requests that are due at fixed times, whether or not those before them were
//! answered. A time is taken from when a request was due, so that a proxy that stands still is not
//! spared the requests that came meanwhile.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use crate::answers::{ANSWER, REQUEST};
use crate::common::{failed, wait};

/// How long after the last request the answers may take before their connections are broken.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// A connection, a request and its answer.
    FirstAnswer,
    /// A request and its answer on one of so many connections, which take turns.
    RoundTrip { connections: usize },
}

/// How many a second, and for how long.
#[derive(Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) rate: u64,
    pub(crate) time: Duration,
    /// Between two upgrades, the first of which comes after half of it.
    pub(crate) upgrades: Option<Duration>,
}

/// Nanoseconds.
pub(crate) struct Times {
    pub(crate) answers: Histogram<u64>,
    /// How late this program was in sending a request.
    pub(crate) lateness: Histogram<u64>,
    /// Connections that broke or were refused.
    pub(crate) failed: u64,
}

struct Connection {
    stream: TcpStream,
    /// When the requests were due that were not answered yet, of which the first is under way.
    due: VecDeque<Instant>,
    sent: usize,
    received: usize,
}

struct Clients {
    target: SocketAddr,
    exchange: Exchange,
    poll: Poll,
    connections: Slab<Connection>,
    /// In the order of their turns; a broken one is made anew at its turn.
    lanes: Vec<Option<usize>>,
    times: Times,
}

pub(crate) fn histogram() -> Histogram<u64> {
    const HIGHEST_NS: u64 = 600_000_000_000;
    #[expect(clippy::expect_used, reason = "constant bounds, and every run comes by here")]
    Histogram::new_with_bounds(1, HIGHEST_NS, 3).expect("the bounds are constants that it takes")
}

/// Sends what is due and calls `upgrade` when that is due. An answer that is not the right one is an
/// error.
pub(crate) fn run(
    target: SocketAddr,
    exchange: Exchange,
    schedule: Schedule,
    upgrade: impl Fn() -> Result<(), String>,
) -> Result<Times, String> {
    // Without it the kernel may end every wait 50 µs late.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1000));
    let lanes = match exchange {
        Exchange::FirstAnswer => 0,
        Exchange::RoundTrip { connections } => connections.max(1),
    };
    let times = Times { answers: histogram(), lateness: histogram(), failed: 0 };
    let mut clients = Clients {
        target,
        exchange,
        poll: Poll::new().map_err(failed("make an epoll instance"))?,
        connections: Slab::new(),
        lanes: vec![None; lanes],
        times,
    };
    // The first request of each connection is not a round trip on an established one.
    for lane in 0..lanes {
        clients.request(lane, Instant::now())?;
    }
    let deadline = Instant::now() + PATIENCE;
    while clients.waiting() && Instant::now() < deadline {
        clients.wait(deadline)?;
    }
    clients.times.answers.reset();

    let interval = Duration::from_secs(1) / u32::try_from(schedule.rate.max(1)).unwrap_or(1);
    let begin = Instant::now() + interval;
    let end = begin + schedule.time;
    let (mut next, mut turn) = (begin, 0);
    let mut upgrade_due = schedule.upgrades.map(|every| begin + every / 2);
    loop {
        while next <= Instant::now() && next < end {
            let late = next.elapsed().as_nanos() as u64;
            clients.times.lateness.saturating_record(late);
            clients.request(turn, next)?;
            turn = (turn + 1) % lanes.max(1);
            next += interval;
        }
        if let Some(due) = upgrade_due.filter(|due| *due <= Instant::now()) {
            upgrade()?;
            let following = schedule.upgrades.map(|every| due + every);
            upgrade_due = following.filter(|due| *due < end);
        }
        if next >= end && !clients.waiting() {
            break;
        }
        if Instant::now() >= end + PATIENCE {
            let unanswered = clients.connections.iter().filter(|(_, each)| !each.due.is_empty());
            clients.times.failed += unanswered.count() as u64;
            break;
        }
        let due = if next < end { next } else { end + PATIENCE };
        clients.wait(upgrade_due.map_or(due, |upgrade| due.min(upgrade)))?;
    }
    Ok(clients.times)
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Clients {
    fn waiting(&self) -> bool {
        self.connections.iter().any(|(_, connection)| !connection.due.is_empty())
    }

    /// Sends a request, or keeps it until the one before it on the same connection is answered.
    fn request(&mut self, lane: usize, due: Instant) -> Result<(), String> {
        let key = match self.lanes.get(lane).copied().flatten() {
            Some(key) => key,
            None => {
                // Who is refused at once has failed as one has whose connection breaks.
                let Ok(mut stream) = connect(self.target) else {
                    self.times.failed += 1;
                    return Ok(());
                };
                let vacancy = self.connections.vacant_entry();
                let key = vacancy.key();
                let both = Interest::READABLE | Interest::WRITABLE;
                let registered = self.poll.registry().register(&mut stream, Token(key), both);
                registered.map_err(failed("register"))?;
                vacancy.insert(Connection { stream, due: VecDeque::new(), sent: 0, received: 0 });
                if let Some(lane) = self.lanes.get_mut(lane) {
                    *lane = Some(key);
                }
                key
            }
        };
        self.connections[key].due.push_back(due);
        self.advance(key)
    }

    fn wait(&mut self, until: Instant) -> Result<(), String> {
        let mut events = Events::with_capacity(256);
        wait::until(&mut self.poll, &mut events, until)?;
        events.iter().try_for_each(|event| self.advance(event.token().0))
    }

    /// Takes an answer and sends the next request. What breaks is counted and forgotten.
    fn advance(&mut self, key: usize) -> Result<(), String> {
        let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
        let goes_on = match connection.advance(&mut self.times) {
            Ok(answered) => !answered || self.exchange != Exchange::FirstAnswer,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(error.to_string());
            }
            Err(_) => {
                self.times.failed += 1;
                false
            }
        };
        if !goes_on {
            self.connections.remove(key);
            for lane in self.lanes.iter_mut().filter(|lane| **lane == Some(key)) {
                *lane = None;
            }
        }
        Ok(())
    }
}

impl Connection {
    /// Answers whether there was an answer. One that is wrong is invalid data.
    fn advance(&mut self, times: &mut Times) -> io::Result<bool> {
        let mut answered = false;
        let mut buffer = [0; 256];
        loop {
            while !self.due.is_empty() && self.sent < REQUEST.len() {
                match self.stream.write(&REQUEST[self.sent..]) {
                    Ok(sent) => self.sent += sent,
                    // There is no connection yet; its event follows.
                    Err(error) if is_early(&error) => return Ok(answered),
                    Err(error) => return Err(error),
                }
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) if ANSWER[self.received..].starts_with(&buffer[..count]) => {
                    self.received += count;
                }
                Ok(_) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a wrong answer"));
                }
                Err(error) if is_early(&error) => return Ok(answered),
                Err(error) => return Err(error),
            }
            if self.received < ANSWER.len() {
                continue;
            }
            let Some(due) = self.due.pop_front() else {
                let what = "an answer that nobody asked for";
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            };
            times.answers.saturating_record(due.elapsed().as_nanos() as u64);
            (self.sent, self.received, answered) = (0, 0, true);
            if self.due.is_empty() {
                return Ok(answered);
            }
        }
    }
}

fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}
