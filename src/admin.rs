//! The admin endpoint: HTTP/1.1 for whoever asks how the process stands, or gives it a command.
//!
//! It lets clients in, reads what they ask for and writes what they are told, all of it bounded: in number, in
//! size, and in time. What the answers are is the upgrader's business. `client` is one of them, `request` what
//! they can say, and `early` who answers before the loop turns.

mod client;
mod early;
mod request;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::sys::socket::{getsockopt, sockopt};
use slab::Slab;

use crate::limits;
use crate::report::{Cause, Failure, Report, Stage};
use crate::stream::Stream;
use crate::sys;
use crate::token::{Kind, Token};
use crate::wire::Family;
use client::{Awaited, Client};
use early::Early;
pub(crate) use request::{Answer, Ask, Request, TEXT};

/// The endpoint, and its clients.
pub(crate) struct Admin {
    listener: Rc<OwnedFd>,
    family: Family,
    is_polled: bool,
    /// Somebody may wait to be let in.
    is_ready: bool,
    /// When that is tried again, after the kernel had no descriptor.
    retry: Option<Instant>,
    clients: Slab<(u32, Client)>,
    /// Counts the times that polling was started: so that events from before are stale.
    polls: u32,
    /// Counts the clients, for the same reason.
    visits: u32,
    /// Who answers until the process is ready.
    early: Option<Early>,
}

/// Which client has asked.
#[derive(Clone, Copy)]
pub(crate) struct Asker {
    place: usize,
    visit: u32,
}

impl Admin {
    pub(crate) fn new(listener: Rc<OwnedFd>, family: Family) -> Self {
        let (is_polled, is_ready, retry) = (false, false, None);
        Self {
            listener,
            family,
            is_polled,
            is_ready,
            retry,
            clients: Slab::new(),
            polls: 0,
            visits: 0,
            early: None,
        }
    }

    /// Has probes answered until the process is ready.
    pub(crate) fn begin_early(&mut self) {
        match Early::begin(&self.listener, self.family) {
            Ok(early) => self.early = Some(early),
            Err(error) => log::debug!("nobody answers at the admin endpoint yet: {error}"),
        }
    }

    /// The loop answers from here on.
    pub(crate) fn end_early(&mut self) {
        self.early = None;
    }

    /// Lets clients in from here on, or not any more: one process at a time does.
    ///
    /// The registration belongs to the open file description, which the other process shares: it is ended
    /// here, and does not end by closing (epoll(7)).
    ///
    /// Answers whether it is polled.
    pub(crate) fn poll(&mut self, registry: &Registry, wanted: bool) -> bool {
        if wanted == self.is_polled {
            return wanted;
        }
        let fd = self.listener.as_raw_fd();
        if wanted {
            self.polls = self.polls.wrapping_add(1);
            let token = Token::new(Kind::Admin, self.polls, 0).pack();
            match registry.register(&mut SourceFd(&fd), token, Interest::READABLE) {
                Ok(()) => self.is_polled = true,
                // It is tried again in the next turn.
                Err(error) => log::debug!("the admin endpoint is not polled: {error}"),
            }
        } else {
            // It was registered, and is open.
            let _ = registry.deregister(&mut SourceFd(&fd));
            (self.is_polled, self.is_ready, self.retry) = (false, false, None);
        }
        self.is_polled
    }

    /// An event of the endpoint's or of a client's. Answers whether that is still there.
    pub(crate) fn note(&mut self, token: Token) -> bool {
        if token.kind == Kind::Admin {
            let is_current = self.is_polled && Token::new(Kind::Admin, self.polls, 0) == token;
            self.is_ready |= is_current;
            return is_current;
        }
        match self.clients.get_mut(token.index as usize) {
            Some((visit, client)) if token_of(*visit, token.index as usize) == token => {
                client.is_ready = true;
                true
            }
            Some(_) | None => false,
        }
    }

    /// When there is something to do, at the latest.
    pub(crate) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let at_once = self.is_ready && self.retry.is_none()
            || self.clients.iter().any(|(_, (_, client))| client.is_ready);
        let deadlines = self.clients.iter().filter_map(|(_, (_, client))| client.deadline());
        deadlines.chain(self.retry).chain(at_once.then_some(now)).min()
    }

    /// Lets clients in, and listens to them, within the budget of a turn. Answers what they ask for.
    pub(crate) fn serve(&mut self, registry: &Rc<Registry>, now: Instant) -> Vec<(Asker, Request)> {
        let late = |client: &Client| client.deadline().is_some_and(|at| at <= now);
        self.clients.retain(|_, (_, client)| !late(client));
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
        }
        if self.is_ready && self.retry.is_none() {
            self.let_in(registry, now);
        }
        let (mut asked, mut left) = (Vec::new(), limits::ADMIN_EVENTS_PER_TURN);
        self.clients.retain(|place, (visit, client)| {
            if !client.is_ready || left == 0 {
                return true;
            }
            left -= 1;
            match client.serve(now) {
                Ok(Some(request)) => asked.push((Asker { place, visit: *visit }, request)),
                Ok(None) => {}
                Err(error) => {
                    log::debug!("a client of the admin endpoint is gone: {error}");
                    return false;
                }
            }
            true
        });
        asked
    }

    fn let_in(&mut self, registry: &Rc<Registry>, now: Instant) {
        for _ in 0..limits::ADMIN_ACCEPTS_PER_TURN {
            match Stream::accept(self.listener.as_fd(), self.family) {
                Ok((stream, _)) => self.add(stream, registry, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_ready = false;
                    return;
                }
                // What happened to one of them in the queue (accept(2)), or there is no descriptor.
                Err(error) => {
                    log::debug!("accept at the admin endpoint: {error}");
                    self.retry = Some(now + limits::ACCEPT_RETRY);
                    return;
                }
            }
        }
    }

    fn add(&mut self, mut stream: Stream, registry: &Rc<Registry>, now: Instant) {
        if self.clients.len() >= limits::ADMIN_CLIENTS {
            // Who was answered makes room, then who does not read the answer, then who has not asked yet, and among those
            // who has had the most time. Who waits for an upgrade does not.
            let clients = self.clients.iter().filter_map(|(place, (_, client))| {
                Some((client.claim()?, client.deadline(), place))
            });
            let Some((.., place)) = clients.min() else { return };
            self.clients.remove(place);
        }
        let is_local = self.family == Family::Unix;
        self.visits = self.visits.wrapping_add(1);
        let (visit, entry) = (self.visits, self.clients.vacant_entry());
        if let Err(error) = stream.register(registry, token_of(visit, entry.key()).pack()) {
            log::debug!("a client of the admin endpoint is not polled: {error}");
            return;
        }
        let is_stranger = is_local && !is_trusted(&stream);
        let mut client = Client::new(stream, is_local && !is_stranger, now);
        if is_stranger {
            let body = "this endpoint answers root and the user that it runs as";
            client.answer(&Answer::text(403, body), false, now);
        }
        entry.insert((visit, client));
    }

    /// Answers a client.
    pub(crate) fn answer(&mut self, asker: Asker, answer: &Answer, head_only: bool, now: Instant) {
        if let Some(client) = self.who(asker) {
            client.answer(answer, head_only, now);
        }
    }

    /// The client that has asked, if it is still there.
    fn who(&mut self, asker: Asker) -> Option<&mut Client> {
        let found = self.clients.get_mut(asker.place);
        found.filter(|(visit, _)| *visit == asker.visit).map(|(_, client)| client)
    }

    /// Has a client wait for what becomes of an upgrade.
    pub(crate) fn wait(&mut self, asker: Asker, request: Request, now: Instant) {
        let what = match request.ask {
            Ask::Check => Awaited::Checked,
            Ask::Upgrade { proven: true } => Awaited::Proven,
            Ask::Upgrade { proven: false }
            | Ask::Status { .. }
            | Ask::Metrics
            | Ask::Live
            | Ask::Ready
            | Ask::Shutdown
            | Ask::Exit => Awaited::Served,
        };
        if let Some(client) = self.who(asker) {
            client.wait_for(what, request, now);
        }
    }

    /// A step of the upgrade, or of the check, for those who wait for it.
    pub(crate) fn tell(&mut self, is_check: bool, line: &str, now: Instant) {
        for client in self.waiting(is_check) {
            client.tell(line, now);
        }
    }

    /// The same for one of them.
    pub(crate) fn tell_one(&mut self, asker: Asker, line: &str, now: Instant) {
        if let Some(client) = self.who(asker) {
            client.tell(line, now);
        }
    }

    /// A line as it is, for those who wait.
    pub(crate) fn quote(&mut self, is_check: bool, line: &str, now: Instant) {
        for client in self.waiting(is_check) {
            client.quote(line, now);
        }
    }

    fn waiting(&mut self, is_check: bool) -> impl Iterator<Item = &mut Client> {
        let clients = self.clients.iter_mut().map(|(_, (_, client))| client);
        clients.filter(move |client| {
            client.waits().is_some_and(|waits| (waits.what == Awaited::Checked) == is_check)
        })
    }

    /// An upgrade has ended.
    pub(crate) fn tell_outcome(&mut self, report: &Report, is_check: bool, now: Instant) {
        let outcome = match &report.outcome {
            Ok(_) => "done",
            Err(Failure { cause: Cause::Checked(_), .. }) => "checked",
            Err(Failure { stage: Stage::Spawn | Stage::SetUp, .. }) => "failed",
            Err(Failure { stage: Stage::Takeover | Stage::Draining, .. }) => "rolled back",
        };
        let line = format!("{outcome}: {report}");
        for client in self.waiting(is_check) {
            if client.waits().is_some_and(|waits| waits.what == Awaited::Proven)
                && outcome == "done"
            {
                client.tell(&format!("the successor serves: {report}"), now);
                continue;
            }
            for said in report.last_words.lines() {
                client.quote(&format!("stderr: {said}"), now);
            }
            client.conclude(&line, now);
        }
    }

    /// There is nothing more to wait for, for those who wait for an upgrade, or for a check.
    pub(crate) fn conclude_those(&mut self, is_check: bool, line: &str, now: Instant) {
        for client in self.waiting(is_check) {
            client.conclude(line, now);
        }
    }

    /// There is nothing more to wait for.
    pub(crate) fn conclude(&mut self, line: &str, now: Instant) {
        for (_, (_, client)) in &mut self.clients {
            client.conclude(line, now);
        }
    }

    /// The last that is heard of this process: what fits into the sockets.
    pub(crate) fn flush(&mut self, now: Instant) {
        for (_, (_, client)) in &mut self.clients {
            // Who has gone, or does not read, has had its chance.
            let _ = client.write(now);
        }
    }
}

fn token_of(visit: u32, place: usize) -> Token {
    Token::new(Kind::AdminClient, visit, place as u32)
}

/// Whether a client is root, or the user that this process runs as (SO_PEERCRED, unix(7)).
fn is_trusted(stream: &Stream) -> bool {
    let peer = getsockopt(stream, sockopt::PeerCredentials);
    peer.is_ok_and(|peer| peer.uid() == 0 || peer.uid() == sys::effective_user())
}
