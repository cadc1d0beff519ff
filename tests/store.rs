//! Ring three: the store, replaced and rolled back while clients write to it.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{PATIENCE, Start, is_alive, until};
use nix::sys::signal::Signal;

/// A client that comes back when it is cut off.
struct Client {
    address: String,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    fn new(address: &str) -> Self {
        Self { address: address.into(), stream: None }
    }

    fn ask(&mut self, line: &str) -> io::Result<String> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(&self.address)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                self.stream.insert(BufReader::new(stream))
            }
        };
        let mut answer = String::new();
        let asked = stream.get_mut().write_all(format!("{line}\n").as_bytes());
        match asked.and_then(|()| stream.read_line(&mut answer)) {
            Ok(read) if read > 0 => Ok(answer.trim_end().into()),
            Ok(_) => {
                self.stream = None;
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Err(error) => {
                self.stream = None;
                Err(error)
            }
        }
    }

    /// Adds one to a key that nobody else writes, and answers how long that took. Whoever is cut off looks
    /// whether it was done.
    fn increment(&mut self, key: &str, before: u64) -> Duration {
        let begun = Instant::now();
        match self.ask(&format!("incr {key}")) {
            Ok(answer) => assert_eq!(answer, (before + 1).to_string(), "{key}: lost, or twice"),
            Err(_) => {
                let now = loop {
                    match self.ask(&format!("get {key}")) {
                        Ok(answer) => break answer.parse().unwrap_or(0),
                        Err(_) => assert!(begun.elapsed() < PATIENCE, "nobody serves"),
                    }
                };
                assert!((before..=before + 1).contains(&now), "{key}: {before}, and now {now}");
                if now == before {
                    return begun.elapsed() + self.increment(key, before);
                }
            }
        }
        begun.elapsed()
    }
}

struct Load {
    clients: usize,
    writes: u64,
    /// Of a kilobyte each, that are there before.
    values: usize,
    upgrades: usize,
    /// Every so many of them the successor is killed while it serves.
    rolled_back_every: usize,
    probation: &'static str,
}

/// Answers how long the longest write took.
fn write(load: &Load) -> Duration {
    let Load { clients, writes, values, upgrades, rolled_back_every, probation } = *load;
    let start =
        Start::program("store").args(&["--listen", "127.0.0.1:0", "--probation", probation]);
    let pid_file = start.path_of("pid");
    let mut store = start.pid_file().spawn();
    store.wait_for("listening on ");
    let address = store.address();
    let named = || std::fs::read_to_string(&pid_file).ok()?.trim().parse::<u32>().ok();
    until("it serves", || named().is_some());
    let mut first = Client::new(&address);
    let value = |number: usize| format!("{number:0>1000}");
    for number in 0..values {
        let answer = first.ask(&format!("put value{number} {}", value(number))).expect("answered");
        assert_eq!(answer, "ok");
    }
    let done = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..clients)
        .map(|client| {
            let (address, done) = (address.clone(), Arc::clone(&done));
            thread::spawn(move || {
                let (mut client, key) = (Client::new(&address), format!("client{client}"));
                let mut longest = Duration::ZERO;
                for number in 0..writes {
                    longest = longest.max(client.increment(&key, number));
                    done.fetch_add(1, Ordering::Relaxed);
                }
                longest
            })
        })
        .collect();
    let all = clients * writes as usize;
    for upgrade in 1..=upgrades {
        until("they write", || done.load(Ordering::Relaxed) >= (upgrade - 1) * all / upgrades);
        let pid = named().expect("it serves");
        store.signal(pid, Signal::SIGHUP);
        let line = store.wait_for("done; spawn");
        if rolled_back_every > 0 && upgrade % rolled_back_every == 0 {
            let successor = line.split(" -> ").nth(1).and_then(|rest| rest.split(' ').next());
            let successor = successor.and_then(|pid| pid.parse().ok()).expect("a process id");
            store.signal(successor, Signal::SIGKILL);
            store.wait_for("failed in draining");
            until("the pid file names the old one", || named() == Some(pid));
        } else {
            until("the old one is gone", || !is_alive(pid));
        }
    }
    let longest = writers.into_iter().map(|it| it.join().expect("none lost, none twice")).max();
    for client in 0..clients {
        let now = first
            .ask(&format!("get client{client}"))
            .or_else(|_| first.ask(&format!("get client{client}")));
        assert_eq!(now.expect("answered"), writes.to_string());
    }
    for number in (0..values).step_by(1 + values / 1000) {
        assert_eq!(first.ask(&format!("get value{number}")).expect("answered"), value(number));
    }
    let last = named().expect("it serves");
    store.signal(last, Signal::SIGINT);
    until("it ends", || !is_alive(last));
    longest.unwrap_or_default()
}

#[test]
fn no_write_is_lost_and_none_is_made_twice() {
    let load = Load {
        clients: 8,
        writes: 250,
        values: 500,
        upgrades: 10,
        rolled_back_every: 3,
        probation: "0.2",
    };
    write(&load);
    write(&Load { rolled_back_every: 0, probation: "0", ..load });
}

#[test]
#[ignore = "takes a minute"]
fn a_hundred_thousand_writes_to_a_hundred_megabytes_over_twenty_upgrades() {
    let load = Load {
        clients: 20,
        writes: 5000,
        values: 100_000,
        upgrades: 20,
        rolled_back_every: 4,
        probation: "0.5",
    };
    println!("with rollbacks: the longest write took {:?}", write(&load));
    let longest = write(&Load { rolled_back_every: 0, probation: "0", ..load });
    println!("at probation 0: the longest write took {longest:?}");
}
