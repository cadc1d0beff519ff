//! A program with a mio loop of its own, a timer and a worker thread, on an [`Upgrader`].
//!
//! A client sends lines. A thread beside the loop turns each of them around, and the answer comes back
//! through the loop's waker. Clients stay with the process that let them in.
//!
//!     cargo run --release --example own_loop
//!     echo hello | nc -N localhost 8080

mod common;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use common::logging;
use common::program::{Options, Program, words};
use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tablecloth::{Phase, Upgrader};

const PROGRAM: Program = Program {
    name: "own_loop",
    help: "A server of lines, each of which is turned around. It is replaced on HUP.\n\n\
           usage: own_loop [flags]",
    listen: "127.0.0.1:8080",
};

const UPGRADER: Token = Token(usize::MAX - 1);
const LISTENER: Token = Token(usize::MAX - 2);
const WORKER: Token = Token(usize::MAX - 3);

/// How often it is logged how many lines were turned around.
const COUNTED_EVERY: Duration = Duration::from_secs(10);

/// The longest line, about.
const LINE: usize = 64 * 1024;

/// A client, and what was read of its next line.
struct Client {
    stream: TcpStream,
    line: Vec<u8>,
    /// Lines that the worker has.
    asked: usize,
    ended: bool,
}

/// A line, and the client that it is of.
type Job = (usize, Vec<u8>);

struct Loop {
    poll: Poll,
    upgrader: Upgrader,
    listener: TcpListener,
    is_accepting: bool,
    clients: HashMap<usize, Client>,
    /// Counts clients: an answer finds its own, or nobody.
    next: usize,
    jobs: Sender<Job>,
    answers: Receiver<Job>,
    turned_around: u64,
    count_at: Instant,
}

impl Loop {
    fn run(mut self) -> Result<(), String> {
        let mut events = Events::with_capacity(256);
        loop {
            let deadline =
                self.upgrader.next_deadline().map_or(self.count_at, |at| at.min(self.count_at));
            let timeout = deadline.saturating_duration_since(Instant::now());
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(words(error));
                }
                Ok(()) | Err(_) => {}
            }
            for event in &events {
                match event.token() {
                    // Its turn comes in any case.
                    UPGRADER => {}
                    LISTENER => self.accept(),
                    WORKER => self.answer(),
                    Token(index) => self.read(index),
                }
            }
            if Instant::now() >= self.count_at {
                log::info!("{} lines were turned around.", self.turned_around);
                self.count_at += COUNTED_EVERY;
            }
            match self.upgrader.turn(Some(Duration::ZERO)).map_err(words)? {
                Phase::Waiting => {}
                Phase::Serving => self.set_accepting(true).map_err(words)?,
                Phase::Draining => {
                    // Nobody else will let them in.
                    if self.is_accepting && self.upgrader.is_shutting_down() {
                        self.accept();
                    }
                    self.set_accepting(false).map_err(words)?;
                    if self.clients.is_empty() {
                        self.upgrader.drained();
                    }
                }
                Phase::Exited(_) => return Ok(()),
            }
        }
    }

    /// Polls the listener only while this process serves: the other one polls it, too.
    fn set_accepting(&mut self, on: bool) -> io::Result<()> {
        if std::mem::replace(&mut self.is_accepting, on) != on {
            match on {
                true => {
                    let interest = Interest::READABLE;
                    self.poll.registry().register(&mut self.listener, LISTENER, interest)?;
                }
                false => self.poll.registry().deregister(&mut self.listener)?,
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        // It may have been found readable in the moment in which the process began to drain.
        while self.upgrader.is_serving() || self.upgrader.is_shutting_down() {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                // That client is gone; the next one, please.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let token = Token(self.next);
            if self.poll.registry().register(&mut stream, token, Interest::READABLE).is_ok() {
                let client = Client { stream, line: Vec::new(), asked: 0, ended: false };
                self.clients.insert(self.next, client);
                self.next += 1;
            }
        }
    }

    fn read(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(&index) else { return };
        let mut buffer = [0; 4096];
        loop {
            match client.stream.read(&mut buffer) {
                Ok(0) => client.ended = true,
                // Nobody has a line as long as that.
                Ok(_) if client.line.len() > LINE => (client.ended, client.asked) = (true, 0),
                Ok(read) => {
                    for byte in &buffer[..read] {
                        client.line.push(*byte);
                        if *byte == b'\n' {
                            client.asked += 1;
                            // The worker lives as long as the loop.
                            let _ = self.jobs.send((index, std::mem::take(&mut client.line)));
                        }
                    }
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => (client.ended, client.asked) = (true, 0),
            }
            break;
        }
        self.close_if_over(index);
    }

    fn answer(&mut self) {
        while let Ok((index, line)) = self.answers.try_recv() {
            let Some(client) = self.clients.get_mut(&index) else { continue };
            client.asked = client.asked.saturating_sub(1);
            self.turned_around += 1;
            // Who does not read their answers is not waited for.
            if client.stream.write_all(&line).is_err() {
                (client.ended, client.asked) = (true, 0);
            }
            self.close_if_over(index);
        }
    }

    fn close_if_over(&mut self, index: usize) {
        let is_over = |client: &mut Client| client.ended && client.asked == 0;
        if self.clients.get_mut(&index).is_some_and(is_over) {
            // Closing it ends its registration: nobody shares it.
            self.clients.remove(&index);
        }
    }
}

/// Turns lines around until the loop is gone.
fn work(jobs: Receiver<Job>, answers: Sender<Job>, waker: Arc<Waker>) {
    for (index, mut line) in jobs {
        let end = line.len() - 1;
        line[..end].reverse();
        if answers.send((index, line)).is_err() || waker.wake().is_err() {
            return;
        }
    }
}

fn main() -> ExitCode {
    PROGRAM.run(|Options { listen, common }| {
        let mut upgrader = Upgrader::new(common.config).map_err(words)?;
        logging::go();
        let web = upgrader.tcp_with("lines", &listen, &common.socket).map_err(words)?;
        let poll = Poll::new().map_err(words)?;
        let fd = upgrader.as_raw_fd();
        let registry = poll.registry();
        registry.register(&mut SourceFd(&fd), UPGRADER, Interest::READABLE).map_err(words)?;
        let waker = Arc::new(Waker::new(registry, WORKER).map_err(words)?);
        let ((jobs, theirs), (answered, answers)) = (channel(), channel());
        thread::spawn(move || work(theirs, answered, waker));
        logging::finish();
        upgrader.ready().map_err(words)?;
        let own = Loop {
            poll,
            upgrader,
            listener: TcpListener::from_std(web),
            is_accepting: false,
            clients: HashMap::new(),
            next: 0,
            jobs,
            answers,
            turned_around: 0,
            count_at: Instant::now() + COUNTED_EVERY,
        };
        own.run()
    })
}
