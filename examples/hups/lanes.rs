//! The long connections: which are open, which are to be opened, what waits for each.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Connections in the making at a time: fewer than a listener's usual backlog.
const OPENING_MAX: usize = 64;
const REOPEN_PAUSE: Duration = Duration::from_millis(100);
const BLOCKED_PAUSE: Duration = Duration::from_millis(1);

pub(crate) struct Lanes {
    lanes: Vec<Lane>,
    /// Lanes without a connection, and when to open one.
    closed: VecDeque<(Instant, usize)>,
    opening: usize,
    /// Messages in all the queues.
    waiting: u64,
}

/// A long connection, which outlives the sockets it is made of.
#[derive(Default)]
struct Lane {
    connection: Option<usize>,
    was_open: bool,
    /// Its drop has been counted and it is not open again.
    is_down: bool,
    /// When the messages were due that wait for the one under way.
    queue: VecDeque<Instant>,
}

/// How far a connection had come. One that had carried no answer is made again after a pause: a
/// server that ends whatever it accepts is not called in a loop.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Had {
    NotConnected,
    NoAnswer,
    Answers,
}

impl Lanes {
    pub(crate) fn new(count: usize, now: Instant) -> Lanes {
        Lanes {
            lanes: (0..count).map(|_| Lane::default()).collect(),
            closed: (0..count).map(|lane| (now, lane)).collect(),
            opening: 0,
            waiting: 0,
        }
    }

    pub(crate) fn is_all_open(&self) -> bool {
        self.closed.is_empty() && self.opening == 0
    }

    pub(crate) fn next_at(&self) -> Option<Instant> {
        let next = self.closed.front().filter(|_| self.opening < OPENING_MAX);
        next.map(|(at, _)| *at)
    }

    /// Takes one that is to be opened now.
    pub(crate) fn take_closed(&mut self, now: Instant) -> Option<usize> {
        self.next_at().filter(|at| *at <= now)?;
        self.closed.pop_front().map(|(_, lane)| lane)
    }

    pub(crate) fn opening(&mut self, lane: usize, connection: usize) {
        self.opening += 1;
        self.lanes[lane].connection = Some(connection);
    }

    /// The backlog of a Unix socket is full.
    pub(crate) fn blocked(&mut self, lane: usize, now: Instant) {
        self.closed.push_front((now + BLOCKED_PAUSE, lane));
    }

    /// Returns whether it had been open before.
    pub(crate) fn opened(&mut self, lane: usize) -> bool {
        self.opening -= 1;
        self.lanes[lane].is_down = false;
        std::mem::replace(&mut self.lanes[lane].was_open, true)
    }

    /// The connection has ended, or could not be made. Returns whether that is to be counted as
    /// a drop: only once, however often it cannot be opened again.
    pub(crate) fn dropped(&mut self, lane: usize, had: Had, now: Instant) -> bool {
        if self.lanes[lane].connection.take().is_some() && had == Had::NotConnected {
            self.opening -= 1;
        }
        self.open_again(lane, had, now);
        !std::mem::replace(&mut self.lanes[lane].is_down, true)
    }

    /// The server has closed the connection in order.
    pub(crate) fn closed_in_order(&mut self, lane: usize, had: Had, now: Instant) {
        self.lanes[lane].connection = None;
        self.open_again(lane, had, now);
    }

    fn open_again(&mut self, lane: usize, had: Had, now: Instant) {
        match had {
            Had::Answers => self.closed.push_front((now, lane)),
            Had::NotConnected | Had::NoAnswer => {
                self.closed.push_back((now + REOPEN_PAUSE, lane));
            }
        }
    }

    pub(crate) fn connection(&self, lane: usize) -> Option<usize> {
        self.lanes[lane].connection
    }

    pub(crate) fn queue(&mut self, lane: usize, due: Instant) {
        self.lanes[lane].queue.push_back(due);
        self.waiting += 1;
    }

    /// A message that was begun and of which nothing was sent: it is the first again.
    pub(crate) fn requeue(&mut self, lane: usize, due: Instant) {
        self.lanes[lane].queue.push_front(due);
        self.waiting += 1;
    }

    pub(crate) fn take_queued(&mut self, lane: usize) -> Option<Instant> {
        let due = self.lanes[lane].queue.pop_front()?;
        self.waiting -= 1;
        Some(due)
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// The one whose turn it is for the message of this number.
    pub(crate) fn in_turn(&self, number: u64) -> usize {
        (number % self.lanes.len() as u64) as usize
    }
}
