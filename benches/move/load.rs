//! The clients: idle ones that say nothing until they are asked, and busy ones that send 32 bytes at
//! a constant pace and wait for them to come back. One thread, one epoll instance.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::common::{failed, wait};

const MESSAGE_BYTES: usize = 32;
/// After which a session that does not answer is broken.
const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// Echoes of idle sessions under way at a time: they are to prove that these are alive, and not to
/// make each other wait.
const ASKED_AT_A_TIME: usize = 64;

/// An echo that a busy session has waited for.
#[derive(Clone, Copy)]
pub(crate) struct Ping {
    pub(crate) session: usize,
    pub(crate) sent: Instant,
    pub(crate) took: Duration,
}

/// What is asked of the thread: to have every so many-th idle session say something.
struct Ask {
    every: usize,
    answer: Sender<usize>,
}

/// The clients' thread.
pub(crate) struct Load {
    ask: Sender<Ask>,
    thread: JoinHandle<Result<Outcome, String>>,
}

/// What became of the clients.
pub(crate) struct Outcome {
    /// In the order in which they came back.
    pub(crate) pings: Vec<Ping>,
    /// What broke, in words.
    pub(crate) broken: Vec<String>,
}

impl Load {
    /// Connects all of them, and has each say something: then it is a session.
    pub(crate) fn start(
        server: SocketAddr,
        idle: usize,
        busy: usize,
        pace: Duration,
    ) -> Result<Self, String> {
        let clients = Clients::connect(server, idle, busy, pace)?;
        let (ask, asked) = channel();
        let load = Self { ask, thread: thread::spawn(move || clients.run(&asked)) };
        load.verify(1)?;
        Ok(load)
    }

    /// Has every so many-th idle session say something, and answers how many have answered.
    pub(crate) fn verify(&self, every: usize) -> Result<usize, String> {
        let (answer, answered) = channel();
        let gone = "the clients' thread has ended";
        self.ask.send(Ask { every, answer }).map_err(|_| gone.to_owned())?;
        match answered.recv_timeout(4 * PATIENCE) {
            Ok(count) => Ok(count),
            Err(RecvTimeoutError::Timeout) => Err("the idle sessions are not asked".into()),
            Err(RecvTimeoutError::Disconnected) => Err(gone.into()),
        }
    }

    /// Closes all of them.
    pub(crate) fn finish(self) -> Result<Outcome, String> {
        drop(self.ask);
        self.thread.join().map_err(|_| "the load panicked".to_owned())?
    }
}

struct Client {
    stream: TcpStream,
    /// Not broken.
    alive: bool,
    /// When the message was sent whose echo it waits for.
    sent: Option<Instant>,
    number: u64,
    echo: [u8; MESSAGE_BYTES],
    got: usize,
}

struct Clients {
    poll: Poll,
    events: Events,
    /// The idle ones, and then the busy ones.
    clients: Vec<Client>,
    idle: usize,
    busy: usize,
    /// Between two messages of all busy sessions together.
    interval: Duration,
    pings: Vec<Ping>,
    broken: Vec<String>,
    /// The idle sessions that are to say something, and how many are under way.
    to_ask: VecDeque<usize>,
    under_way: usize,
    asked: usize,
    answer: Option<Sender<usize>>,
}

impl Clients {
    fn connect(
        server: SocketAddr,
        idle: usize,
        busy: usize,
        pace: Duration,
    ) -> Result<Self, String> {
        let poll = Poll::new().map_err(failed("make an epoll instance"))?;
        let mut clients = Vec::with_capacity(idle + busy);
        for key in 0..idle + busy {
            let stream = std::net::TcpStream::connect(server).map_err(failed("connect"))?;
            stream.set_nodelay(true).map_err(failed("set TCP_NODELAY"))?;
            stream.set_nonblocking(true).map_err(failed("make a socket non-blocking"))?;
            let mut stream = TcpStream::from_std(stream);
            let registered = poll.registry().register(&mut stream, Token(key), Interest::READABLE);
            registered.map_err(failed("register"))?;
            let (echo, number) = ([0; MESSAGE_BYTES], 0);
            clients.push(Client { stream, alive: true, sent: None, number, echo, got: 0 });
        }
        Ok(Self {
            poll,
            events: Events::with_capacity(1024),
            clients,
            idle,
            busy,
            interval: pace.checked_div(busy as u32).unwrap_or(LONGEST_WAIT),
            pings: Vec::new(),
            broken: Vec::new(),
            to_ask: VecDeque::new(),
            under_way: 0,
            asked: 0,
            answer: None,
        })
    }

    fn run(mut self, asked: &Receiver<Ask>) -> Result<Outcome, String> {
        // Without it the kernel may end every wait 50 µs late.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1000));
        let mut next = Instant::now();
        let mut turn = 0;
        loop {
            match asked.try_recv() {
                Ok(Ask { every, answer }) => {
                    self.to_ask = (0..self.idle).step_by(every).collect();
                    (self.asked, self.answer) = (0, Some(answer));
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => break,
            }
            let now = Instant::now();
            while self.busy > 0 && next <= now {
                self.send(self.idle + turn, now);
                turn = (turn + 1) % self.busy;
                next += self.interval;
            }
            while self.under_way < ASKED_AT_A_TIME {
                let Some(key) = self.to_ask.pop_front() else { break };
                self.send(key, now);
            }
            self.give_up(now);
            if self.to_ask.is_empty() && self.under_way == 0 {
                // Nobody may wait for it any more, which is no harm.
                let _ = self.answer.take().map(|answer| answer.send(self.asked));
            }
            self.wait(next.min(now + LONGEST_WAIT))?;
        }
        Ok(Outcome { pings: self.pings, broken: self.broken })
    }

    /// Sends a message; one that still waits for its echo does not.
    fn send(&mut self, key: usize, now: Instant) {
        let client = &mut self.clients[key];
        if !client.alive || client.sent.is_some() {
            return;
        }
        client.number += 1;
        let message = message(key, client.number);
        match client.stream.write(&message) {
            Ok(MESSAGE_BYTES) => {
                client.sent = Some(now);
                self.under_way += usize::from(key < self.idle);
            }
            Ok(count) => self.fail(key, &format!("took {count} bytes")),
            Err(error) => self.fail(key, &format!("send: {error}")),
        }
    }

    fn fail(&mut self, key: usize, what: &str) {
        let client = &mut self.clients[key];
        client.alive = false;
        if client.sent.take().is_some() && key < self.idle {
            self.under_way -= 1;
        }
        let kind = if key < self.idle { "idle" } else { "busy" };
        self.broken.push(format!("{kind} session {key}: {what}"));
    }

    /// Gives up sessions that have not answered for too long. It looks at all of them, and so only
    /// while somebody waits for an answer.
    fn give_up(&mut self, now: Instant) {
        if self.answer.is_none() {
            return;
        }
        let late = |client: &Client| {
            client.sent.is_some_and(|sent| now.saturating_duration_since(sent) > PATIENCE)
        };
        if self.clients.iter().any(late) {
            for key in 0..self.clients.len() {
                if late(&self.clients[key]) {
                    self.fail(key, "no echo");
                }
            }
        }
    }

    fn wait(&mut self, until: Instant) -> Result<(), String> {
        wait::until(&mut self.poll, &mut self.events, until)?;
        let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        for key in ready {
            if let Err(what) = self.receive(key) {
                self.fail(key, &what);
            }
        }
        Ok(())
    }

    fn receive(&mut self, key: usize) -> Result<(), String> {
        let client = &mut self.clients[key];
        while client.alive {
            let mut more = [0; MESSAGE_BYTES];
            match client.stream.read(&mut more) {
                Ok(0) => return Err("closed".into()),
                Ok(count) if client.sent.is_none() || client.got + count > MESSAGE_BYTES => {
                    return Err("more came back than was sent".into());
                }
                Ok(count) => {
                    client.echo[client.got..client.got + count].copy_from_slice(&more[..count]);
                    client.got += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("receive: {error}")),
            }
            if client.got < MESSAGE_BYTES {
                continue;
            }
            if client.echo != message(key, client.number) {
                return Err("something else came back".into());
            }
            client.got = 0;
            let Some(sent) = client.sent.take() else { continue };
            if key < self.idle {
                self.under_way -= 1;
                self.asked += 1;
            } else {
                self.pings.push(Ping { session: key, sent, took: sent.elapsed() });
            }
        }
        Ok(())
    }
}

/// Bytes that say whose they are and which time it is.
fn message(key: usize, number: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [b'.'; MESSAGE_BYTES];
    message[..8].copy_from_slice(&(key as u64).to_le_bytes());
    message[8..16].copy_from_slice(&number.to_le_bytes());
    message
}
