//! The load: requests that become due by the clock alone, whether or not the server keeps up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use mio::{Registry, Token};
use nix::errno::Errno;
use slab::Slab;

use crate::channel::{Channel, Connector};
use crate::connection::{Connection, Exchange, Progress};
use crate::drops::{Class, DropKind, Drops, Example, Failure, is_client_error};
use crate::lanes::{Had, Lanes};
use crate::latency::Latency;
use crate::options::Options;
use crate::protocol::Protocol;
use crate::schedule::Schedule;

/// Larger messages go in parts of this length.
const BUFFER_BYTES: usize = 64 * 1024;
const RETRY_PAUSE: Duration = Duration::from_millis(1);
/// Requests sent in one go before events are looked at, when the client has fallen behind.
const BATCH: usize = 64;

pub(crate) struct Load {
    registry: Registry,
    connector: Connector,
    protocol: Protocol,
    timeout: Duration,
    connections_max: usize,
    buffer: Vec<u8>,

    connections: Slab<Connection<Channel>>,
    lanes: Lanes,
    deadlines: BinaryHeap<Reverse<(Instant, usize, u64)>>,
    /// Short requests that a full backlog of a Unix socket has put off.
    put_off: VecDeque<Instant>,
    number: u64,

    short: Schedule,
    long: Schedule,
    stopped_at: Option<Instant>,
    /// Messages under way.
    busy: usize,

    pub(crate) latency: Latency,
    pub(crate) drops: Drops,
    pub(crate) counts: Counts,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) short_completed: u64,
    pub(crate) long_completed: u64,
    pub(crate) long_reopened: u64,
    /// Attempts in vain to open a connection again whose drop is counted already.
    pub(crate) long_reopen_failures: u64,
    /// Long messages that went down with their connection, or waited for it in vain.
    pub(crate) long_lost: u64,
    /// Long connections that the server has closed as the protocol allows.
    pub(crate) closed_in_order: u64,
    pub(crate) verified_bytes: u64,
}

impl Load {
    pub(crate) fn new(options: &Options, registry: Registry, connections_max: usize) -> Load {
        Load {
            registry,
            connector: Connector::new(options.target.clone(), options.tls.clone()),
            protocol: options.protocol.clone(),
            timeout: options.timeout,
            connections_max,
            buffer: vec![0; BUFFER_BYTES],
            connections: Slab::new(),
            lanes: Lanes::new(options.long_connections, Instant::now()),
            deadlines: BinaryHeap::new(),
            put_off: VecDeque::new(),
            number: 0,
            short: Schedule::new(options.short_rate),
            long: Schedule::new(if options.long_connections > 0 { options.long_rate } else { 0 }),
            stopped_at: None,
            busy: 0,
            latency: Latency::new(options.window),
            drops: Drops::default(),
            counts: Counts::default(),
        }
    }

    /// Whether all long connections have been made, as far as the server lets them.
    pub(crate) fn is_open(&self) -> bool {
        self.lanes.is_all_open()
    }

    pub(crate) fn start(&mut self, now: Instant) {
        self.latency.start(now);
        self.short.start = Some(now);
        // Half a step off, so that the two do not fall together.
        self.long.start = Some(now + self.long.step() / 2);
    }

    /// Nothing becomes due any more; what is under way goes on.
    pub(crate) fn stop(&mut self, now: Instant) {
        self.stopped_at = Some(now);
        self.short.start = None;
        self.long.start = None;
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.busy == 0 && self.put_off.is_empty() && self.lanes.waiting() == 0
    }

    /// Counts the messages that still wait for a connection as lost and closes everything.
    pub(crate) fn close(&mut self) {
        self.counts.long_lost += self.lanes.waiting();
        self.connections.clear();
    }

    pub(crate) fn stopped_at(&self) -> Option<Instant> {
        self.stopped_at
    }

    pub(crate) fn short_due(&self) -> u64 {
        self.short.next
    }

    pub(crate) fn long_due(&self) -> u64 {
        self.long.next
    }

    /// When [`Load::tick`] has something to do next.
    pub(crate) fn next_at(&self, now: Instant) -> Option<Instant> {
        let times = [
            self.short.next_at(),
            self.long.next_at(),
            self.lanes.next_at(),
            self.deadlines.peek().map(|Reverse((at, ..))| *at),
            self.put_off.front().map(|_| now + RETRY_PAUSE),
        ];
        times.into_iter().flatten().min()
    }

    /// Sends what is due, gives up what is overdue, opens long connections.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.expire(now);
        while let Some(lane) = self.lanes.take_closed(now) {
            if !self.open(lane, now) {
                break;
            }
        }
        for _ in 0..self.put_off.len().min(BATCH) {
            let due = self.put_off.pop_front();
            if due.is_some_and(|due| !self.send_short(due)) {
                break;
            }
        }
        for _ in 0..BATCH {
            let short = self.short.next_at().filter(|due| *due <= now);
            let long = self.long.next_at().filter(|due| *due <= now);
            match (short, long) {
                (Some(due), long) if long.is_none_or(|long| due <= long) => {
                    self.short.next += 1;
                    self.latency.record_lag(due, Instant::now());
                    self.send_short(due);
                }
                (_, Some(due)) => {
                    let lane = self.lanes.in_turn(self.long.next);
                    self.long.next += 1;
                    self.latency.record_lag(due, Instant::now());
                    self.send_long(lane, due);
                }
                _ => break,
            }
        }
    }

    /// Goes on with the connection that an event names.
    pub(crate) fn ready(&mut self, key: usize) {
        while let Some(connection) = self.connections.get_mut(key) {
            let (class, lane) = (connection.class, connection.lane);
            match connection.advance(&self.protocol, &mut self.buffer) {
                Ok(Progress::Blocked) => return,
                Ok(Progress::Connected) => {
                    self.counts.long_reopened += u64::from(self.lanes.opened(lane));
                    self.send_next(lane);
                }
                Ok(Progress::Answered(exchange)) => {
                    self.answered(class, &exchange);
                    match class {
                        // An ordinary close: nothing is left unread, so no reset is sent.
                        Class::Short => drop(self.connections.remove(key)),
                        Class::Long => drop(self.send_next(lane)),
                    }
                }
                Ok(Progress::AnsweredLast(exchange)) => {
                    self.answered(class, &exchange);
                    match class {
                        Class::Short => drop(self.connections.remove(key)),
                        Class::Long => self.closed_in_order(key),
                    }
                }
                Ok(Progress::ClosedInOrder) => return self.closed_in_order(key),
                Err(failure) => return self.fail(key, failure),
            }
        }
    }

    /// Returns false if the request had to be put off.
    fn send_short(&mut self, due: Instant) -> bool {
        let now = Instant::now();
        if due + self.timeout <= now {
            self.latency.record_timeout(due, now);
            self.add_drop(Class::Short, Failure::new(DropKind::Timeout, "connect"), 0);
            return true;
        }
        self.number += 1;
        match self.connect(Class::Short, 0) {
            Ok(key) => {
                self.connections[key].begin(self.number, due, &self.protocol);
                self.deadlines.push(Reverse((due + self.timeout, key, self.number)));
                self.busy += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.put_off.push_front(due);
                return false;
            }
            Err(error) if is_client_error(&error) => self.drops.add_client_error(&error),
            Err(error) => self.add_drop(Class::Short, Failure::from_error(&error, "connect"), 0),
        }
        true
    }

    fn send_long(&mut self, lane: usize, due: Instant) {
        self.lanes.queue(lane, due);
        if let Some(key) = self.send_next(lane) {
            self.ready(key);
        }
    }

    /// Begins the next message that waits, if the connection is made and has nothing under way.
    fn send_next(&mut self, lane: usize) -> Option<usize> {
        let key = self.lanes.connection(lane)?;
        let connection = self.connections.get_mut(key).filter(|open| open.awaited == 0)?;
        let due = self.lanes.take_queued(lane)?;
        self.number += 1;
        connection.begin(self.number, due, &self.protocol);
        self.deadlines.push(Reverse((due + self.timeout, key, self.number)));
        self.busy += 1;
        Some(key)
    }

    /// Returns false if no other can be opened now.
    fn open(&mut self, lane: usize, now: Instant) -> bool {
        self.number += 1;
        match self.connect(Class::Long, lane) {
            Ok(key) => {
                self.lanes.opening(lane, key);
                self.deadlines.push(Reverse((now + self.timeout, key, self.number)));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.lanes.blocked(lane, now);
                return false;
            }
            Err(error) if is_client_error(&error) => {
                self.lanes.dropped(lane, Had::NotConnected, now);
                self.drops.add_client_error(&error);
            }
            Err(error) => {
                self.fail_long(lane, Had::NotConnected, Failure::from_error(&error, "connect"), 0);
            }
        }
        true
    }

    fn connect(&mut self, class: Class, lane: usize) -> io::Result<usize> {
        if self.connections.len() >= self.connections_max {
            return Err(io::Error::from_raw_os_error(Errno::EMFILE as i32));
        }
        let mut channel = self.connector.connect()?;
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        channel.register(&self.registry, Token(key))?;
        entry.insert(Connection::new(channel, class, lane, self.number));
        Ok(key)
    }

    fn answered(&mut self, class: Class, exchange: &Exchange) {
        self.busy -= 1;
        self.latency.record(class, exchange.due, Instant::now());
        self.counts.verified_bytes += exchange.received as u64;
        match class {
            Class::Short => self.counts.short_completed += 1,
            Class::Long => self.counts.long_completed += 1,
        }
    }

    /// The server closes a long connection and owes nothing on it: another takes its place.
    fn closed_in_order(&mut self, key: usize) {
        let connection = self.connections.remove(key);
        self.counts.closed_in_order += 1;
        if let Some(due) = connection.due() {
            self.busy -= 1;
            self.lanes.requeue(connection.lane, due);
        }
        self.lanes.closed_in_order(connection.lane, had(&connection), Instant::now());
    }

    fn expire(&mut self, now: Instant) {
        while let Some(Reverse((at, key, number))) = self.deadlines.peek().copied() {
            if at > now {
                break;
            }
            self.deadlines.pop();
            if let Some(late) = self.connections.get(key).filter(|late| late.awaited == number) {
                let failure = Failure::new(DropKind::Timeout, late.stage());
                self.fail(key, failure);
            }
        }
    }

    fn fail(&mut self, key: usize, failure: Failure) {
        let now = Instant::now();
        let connection = self.connections.remove(key);
        if let Some(due) = connection.due() {
            self.busy -= 1;
            if failure.kind == DropKind::Timeout {
                self.latency.record_timeout(due, now);
            }
        }
        let received_bytes = connection.received_bytes();
        match connection.class {
            Class::Short => self.add_drop(Class::Short, failure, received_bytes),
            Class::Long => {
                self.counts.long_lost += u64::from(connection.due().is_some());
                self.fail_long(connection.lane, had(&connection), failure, received_bytes);
            }
        }
    }

    fn fail_long(&mut self, lane: usize, had: Had, failure: Failure, received: usize) {
        if self.lanes.dropped(lane, had, Instant::now()) {
            self.add_drop(Class::Long, failure, received);
        } else {
            self.counts.long_reopen_failures += 1;
        }
        while self.lanes.take_queued(lane).is_some() {
            self.counts.long_lost += 1;
        }
    }

    fn add_drop(&mut self, class: Class, failure: Failure, received_bytes: usize) {
        let at = Instant::now();
        self.latency.timeline.drop_at(at);
        self.drops.add(Example { at, class, failure, received_bytes });
    }
}

fn had(connection: &Connection<Channel>) -> Had {
    match (connection.is_connected(), connection.is_used()) {
        (false, _) => Had::NotConnected,
        (true, false) => Had::NoAnswer,
        (true, true) => Had::Answers,
    }
}
