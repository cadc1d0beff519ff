//! The load: short connections that become due by the clock alone, and what became of each.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use slab::Slab;

use crate::common::failed;
use crate::connection::{Connection, Progress};
use crate::drops::{Class, DropKind, Failure, is_client_error};
use crate::protocol::Protocol;
use crate::protocol::echo::Echo;
use crate::schedule::Schedule;
use crate::target::{Connector, Stream, Target};

const MESSAGE_BYTES: usize = 32;
/// After which a connection counts as dropped.
const TIMEOUT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// A connection that was tried.
pub(crate) struct Attempt {
    pub(crate) started: Instant,
    pub(crate) ended: Instant,
    /// The client's address, by which the server's log names it. `None` if it was refused at once.
    pub(crate) client: Option<SocketAddr>,
    pub(crate) failure: Option<Failure>,
}

/// A thread that connects, sends, waits for the echo and closes, at a constant rate.
pub(crate) struct Load {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Attempt>, String>>,
}

impl Load {
    pub(crate) fn start(server: SocketAddr, rate: u32, seed: u64) -> Result<Self, String> {
        let stopping = Arc::new(AtomicBool::new(false));
        let client = Client::new(server, rate, seed, Arc::clone(&stopping))?;
        Ok(Self { stopping, thread: thread::spawn(move || client.run()) })
    }

    /// Starts no more connections, waits for those under way, and answers what became of all.
    pub(crate) fn finish(self) -> Result<Vec<Attempt>, String> {
        self.stopping.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the load panicked".to_owned())?
    }
}

struct Client {
    poll: Poll,
    events: Events,
    connector: Connector,
    protocol: Protocol,
    schedule: Schedule,
    buffer: Vec<u8>,
    open: Slab<(Connection, Attempt)>,
    /// Which are given up next, and when. They have the same time each, and so stay in order.
    deadlines: VecDeque<(Instant, usize, u64)>,
    number: u64,
    stopping: Arc<AtomicBool>,
    over: Vec<Attempt>,
}

impl Client {
    fn new(
        server: SocketAddr,
        rate: u32,
        seed: u64,
        stopping: Arc<AtomicBool>,
    ) -> Result<Self, String> {
        Ok(Self {
            poll: Poll::new().map_err(failed("make an epoll instance"))?,
            events: Events::with_capacity(1024),
            connector: Connector::new(Target::Tcp(server)),
            protocol: Protocol::Echo(Echo::new(seed, MESSAGE_BYTES)),
            schedule: Schedule::new(rate),
            buffer: vec![0; MESSAGE_BYTES + 1],
            open: Slab::new(),
            deadlines: VecDeque::new(),
            number: 0,
            stopping,
            over: Vec::new(),
        })
    }

    fn run(mut self) -> Result<Vec<Attempt>, String> {
        // Without it the kernel may end every wait 50 µs late.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1000));
        self.schedule.start = Some(Instant::now());
        loop {
            if self.stopping.load(Ordering::Relaxed) {
                self.schedule.start = None;
                if self.open.is_empty() {
                    return Ok(self.over);
                }
            }
            let now = Instant::now();
            while self.schedule.next_at().is_some_and(|due| due <= now) {
                self.schedule.next += 1;
                self.begin()?;
            }
            while self.deadlines.front().is_some_and(|(at, ..)| *at <= now) {
                let Some((_, key, number)) = self.deadlines.pop_front() else { break };
                if self.open.get(key).is_some_and(|(late, _)| late.awaited == number) {
                    let stage = self.open[key].0.stage();
                    self.end(key, Some(Failure::new(DropKind::Timeout, stage)));
                }
            }
            self.wait().map_err(failed("poll"))?;
        }
    }

    fn begin(&mut self) -> Result<(), String> {
        let started = Instant::now();
        let mut attempt = Attempt { started, ended: started, client: None, failure: None };
        let mut stream = match self.connector.connect() {
            Ok(stream) => stream,
            Err(error) if is_client_error(&error) => return Err(failed("connect")(error)),
            Err(error) => {
                attempt.failure = Some(Failure::from_error(&error, "connect"));
                self.over.push(attempt);
                return Ok(());
            }
        };
        if let Stream::Tcp(stream) = &stream {
            attempt.client = stream.local_addr().ok();
        }
        let entry = self.open.vacant_entry();
        let key = entry.key();
        stream.register(self.poll.registry(), Token(key)).map_err(failed("register"))?;
        self.number += 1;
        let mut connection = Connection::new(stream, Class::Short, 0, self.number);
        connection.begin(self.number, started, &self.protocol);
        entry.insert((connection, attempt));
        self.deadlines.push_back((started + TIMEOUT, key, self.number));
        Ok(())
    }

    fn end(&mut self, key: usize, failure: Option<Failure>) {
        // The connection is closed here: in order, because nothing is left unread.
        let (_, mut attempt) = self.open.remove(key);
        attempt.ended = Instant::now();
        attempt.failure = failure;
        self.over.push(attempt);
    }

    /// Waits until something happens or becomes due, and goes on with what has happened to.
    fn wait(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let until = self.schedule.next_at().unwrap_or(now + LONGEST_WAIT).min(now + LONGEST_WAIT);
        let timeout = until.saturating_duration_since(now);
        // mio waits in whole milliseconds, too coarse for a thousand connections a second.
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        match rustix::event::poll(
            &mut [PollFd::new(self.poll.registry(), PollFlags::IN)],
            Some(&timeout),
        ) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
        self.poll
            .poll(&mut self.events, Some(Duration::ZERO))
            .map_err(|error| error.to_string())?;
        let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        for key in ready {
            let Some((connection, _)) = self.open.get_mut(key) else { continue };
            match connection.advance(&self.protocol, &mut self.buffer) {
                Ok(Progress::Blocked | Progress::Connected | Progress::ClosedInOrder) => {}
                Ok(Progress::Answered(_) | Progress::AnsweredLast(_)) => self.end(key, None),
                Err(failure) => self.end(key, Some(failure)),
            }
        }
        Ok(())
    }
}
