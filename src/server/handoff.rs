//! Sessions on their way: from this process to its successor, and from its predecessor to this one.
//!
//! A session is in one of two hands, with no third (I5). It is taken out of the loop, packed and
//! sent, and this process keeps its own copies of the sockets until the successor has acknowledged
//! it; the successor acknowledges it before it touches a byte. What is refused, or on its way to a
//! successor that has died without a word, comes back here as if it had never left.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::moves::Moves;
use super::{Server, Sweep, Walk};
use crate::fault::{self, Point};
use crate::handler::{Context, Handler, Packed};
use crate::io_event::IoEvent;
use crate::limits;
use crate::machine::{Event, State};
use crate::report::Milliseconds;
use crate::stream::Stream;
use crate::wire::{Ack, SessionEntry, Sessions};

/// A packet of sessions that was sent and not answered.
pub(super) struct InFlight {
    packet: u32,
    /// The attempt whose successor it was sent to.
    attempt: u32,
    /// When the first of the sessions was taken out of the loop.
    since: Instant,
    sessions: Vec<Packed>,
}

/// A packet that is being filled.
struct Load {
    since: Instant,
    sessions: Vec<Packed>,
    bytes: usize,
}

impl Load {
    /// Made before its first session is taken out of the loop, or packed as one too many for the
    /// load before it.
    fn new() -> Self {
        Self { since: Instant::now(), sessions: Vec::new(), bytes: 0 }
    }

    fn is_full(&self) -> bool {
        self.sessions.len() >= limits::SESSIONS_PER_PACKET
    }

    fn has_room_for(&self, packed: &Packed) -> bool {
        self.bytes + size_of_packed(packed) <= limits::SESSIONS_BYTES
    }

    fn add(&mut self, packed: Packed) {
        self.bytes += size_of_packed(&packed);
        self.sessions.push(packed);
    }
}

/// In a packet, its head included.
fn size_of_packed(packed: &Packed) -> usize {
    packed.state.len() + limits::SOURCES + 16
}

impl<H: Handler> Server<H> {
    /// Whether there is a successor that can put together what this process packs. Says so in the
    /// log if not.
    pub(super) fn can_move_sessions(&self) -> bool {
        let Some(successor) = &self.successor else { return false };
        let Some(own) = self.handler.schemas() else { return false };
        let moves = successor.understands(*own.end());
        if !moves {
            let theirs = successor.schemas();
            log::info!(
                "sessions stay and drain: this process packs schema {}, the successor \
                 understands {} to {}.",
                own.end(),
                theirs.oldest,
                theirs.newest,
            );
        }
        moves
    }

    /// Whether as many sessions are on their way as may be.
    pub(super) fn is_window_full(&self) -> bool {
        self.in_flight.len() >= limits::PACKETS_IN_FLIGHT
    }

    /// Hands over as many sessions as the window allows, from where the sweep stands. Those that
    /// cannot move now are asked to drain. Answers whether the sweep has come to its end.
    ///
    /// What the socket did not take is here again, under another index, and would be found again: once
    /// it is full, the sweep moves nobody else.
    pub(super) fn move_sessions(&mut self, sweep: &mut Sweep) -> bool {
        let mut load = Load::new();
        for _ in 0..limits::DRAINS_PER_TURN {
            if self.is_window_full() || load.is_full() {
                break;
            }
            let Some((token, _)) = self.sessions.next_from(sweep.next) else {
                self.send_sessions(load);
                return true;
            };
            sweep.next = token.index + 1;
            if sweep.full && !self.sessions.stays(token.index, self.attempts) {
                continue;
            }
            match self.pack(token.index) {
                Some(packed) if load.has_room_for(&packed) => load.add(packed),
                Some(packed) => {
                    let full = std::mem::replace(&mut load, Load::new());
                    sweep.full |= !self.send_sessions(full);
                    if !sweep.full && !self.is_window_full() {
                        load.add(packed);
                        continue;
                    }
                    // Back in another slot, where the sweep comes by once more.
                    if let Some(index) = self.take_back(packed, false) {
                        sweep.next = sweep.next.min(index);
                    }
                }
                None => {
                    let Some((token, session)) = self.sessions.get_mut(token.index) else {
                        continue;
                    };
                    let mut cx = Context::of(&mut self.shared, token);
                    let verdict = self.handler.drain(&mut cx, session);
                    self.conclude(token.index, verdict, IoEvent::default());
                }
            }
        }
        sweep.full |= !self.send_sessions(load);
        false
    }

    /// Packs a session, if it can move.
    fn pack(&mut self, index: u32) -> Option<Packed> {
        if self.sessions.stays(index, self.attempts) {
            return None;
        }
        let (handler, shared) = (&mut self.handler, &mut self.shared);
        let mut packed = None;
        self.sessions.lend(index, |token, session| {
            match handler.pack(&mut Context::of(shared, token), session) {
                Ok(taken_apart) => {
                    packed = Some(taken_apart);
                    None
                }
                Err(session) => Some(session),
            }
        });
        self.shared.session = None;
        let packed = packed?;
        let understood = self.successor.as_ref().is_some_and(|s| s.understands(packed.schema));
        let fits = packed.state.len() <= limits::STATE_BYTES
            && packed.streams.len() <= limits::SOURCES
            && understood;
        if fits {
            return Some(packed);
        }
        log::warn!(
            "a session stays: schema {}, {} bytes and {} sockets is not what can move.",
            packed.schema,
            packed.state.len(),
            packed.streams.len(),
        );
        self.take_back(packed, true);
        None
    }

    /// Answers whether the socket has taken what there was to send.
    fn send_sessions(&mut self, mut load: Load) -> bool {
        let Some(successor) = self.successor.as_ref().filter(|_| !load.sessions.is_empty()) else {
            self.take_all_back(load.sessions);
            return true;
        };
        self.packets = self.packets.wrapping_add(1);
        let entry = |packed: &mut Packed| {
            // From here on nobody here hears of them.
            packed.streams.iter_mut().for_each(Stream::deregister);
            SessionEntry {
                schema: packed.schema,
                sockets: packed.streams.iter().map(Stream::family).collect(),
                state: packed.state.clone(),
            }
        };
        let sessions = load.sessions.iter_mut().map(entry).collect();
        let sockets: Vec<BorrowedFd<'_>> = load
            .sessions
            .iter()
            .flat_map(|packed| packed.streams.iter().map(AsFd::as_fd))
            .collect();
        let packet = self.packets;
        match successor.send_sessions(Sessions { packet, sessions }, &sockets) {
            Ok(()) => {
                let (attempt, since, sessions) = (self.attempts, load.since, load.sessions);
                debug_assert!(!self.is_window_full());
                let first = self.in_flight.is_empty();
                self.in_flight.push_back(InFlight { packet, attempt, since, sessions });
                fault::at(Point::SessionsSent);
                if first {
                    self.feed(Event::SessionsSent);
                }
                true
            }
            // The socket is full, or the kernel has too many descriptors on their way
            // (ETOOMANYREFS, unix(7)); the next sweep tries again. Of a dead one the death is heard.
            Err(error) => {
                log::debug!("{} sessions to the successor: {error}", load.sessions.len());
                self.take_all_back(load.sessions);
                false
            }
        }
    }

    /// What the successor of that attempt has taken is its own, and what it has refused stays.
    pub(super) fn hear_acks(&mut self, attempt: u32, acks: Vec<Ack>) {
        if acks.is_empty() {
            return;
        }
        let now = Instant::now();
        for Ack { packet, refused } in acks {
            let of_it = |sent: &InFlight| (sent.packet, sent.attempt) == (packet, attempt);
            let Some(place) = self.in_flight.iter().position(of_it) else {
                log::warn!("the successor acknowledged packet {packet}, which is not on its way");
                continue;
            };
            fault::at(Point::AckHeard);
            let Some(sent) = self.in_flight.remove(place) else { continue };
            let mut moved = 0;
            for (place, packed) in (0u8..).zip(sent.sessions) {
                if refused.contains(&place) {
                    log::warn!("the successor refused a session, which stays and drains.");
                    self.take_back(packed, true);
                } else {
                    moved += 1;
                }
            }
            // The last words of a successor that is dead already are no part of this handoff.
            if let Some(moves) = self.moves.as_mut().filter(|_| attempt == self.attempts) {
                moves.note(sent.since, now, moved);
            }
        }
    }

    /// The successor of that attempt is dead and has said all that it had to say: what it has not
    /// acknowledged, it has not touched.
    pub(super) fn take_back_sessions(&mut self, attempt: u32) {
        while let Some(place) = self.in_flight.iter().position(|sent| sent.attempt == attempt) {
            let Some(sent) = self.in_flight.remove(place) else { return };
            log::info!("{} sessions come back.", sent.sessions.len());
            self.take_all_back(sent.sessions);
        }
    }

    /// Puts a session together again that this process has packed itself, and answers where it is. One
    /// that was refused stays.
    fn take_back(&mut self, mut packed: Packed, stays: bool) -> Option<u32> {
        packed.streams.iter_mut().for_each(Stream::deregister);
        match self.put_together(packed, stays) {
            Ok(index) => Some(index),
            Err(error) => {
                log::error!("a session is lost, which could not be put together again: {error}");
                None
            }
        }
    }

    fn take_all_back(&mut self, sessions: Vec<Packed>) {
        for packed in sessions {
            self.take_back(packed, false);
        }
    }

    fn put_together(&mut self, mut packed: Packed, stays: bool) -> std::io::Result<u32> {
        let vacancy = self.sessions.vacancy();
        let token = vacancy.token();
        let mut cx = Context::of(&mut self.shared, token);
        for (source, stream) in (0..).zip(&mut packed.streams) {
            cx.attach(stream, source)?;
        }
        let session = self.handler.unpack(&mut cx, packed);
        self.shared.session = None;
        self.sessions.insert(vacancy, session?);
        if stays {
            self.sessions.set_stays(token.index, self.attempts);
        }
        if let Some(at) = self.shared.wake.take() {
            self.sessions.wake_at(token.index, at);
        }
        self.shared.sessions = self.sessions.len();
        Ok(token.index)
    }

    /// Takes the sessions over that the predecessor has sent, and says so before a byte of them is
    /// touched: their first events come with the next turn.
    pub(super) fn adopt_sessions(&mut self) {
        let arrived = match &mut self.predecessor {
            Some(predecessor) => predecessor.take_arrived(),
            None => return,
        };
        for packet in arrived {
            fault::at(Point::SessionsHeard);
            let (mut adopted, mut refused) = (Vec::new(), Vec::new());
            for (place, (entry, sockets)) in (0..).zip(packet.sessions) {
                match self.adopt(entry, sockets) {
                    Ok(index) => adopted.push(index),
                    Err(error) => {
                        log::warn!("a session of the predecessor is refused: {error}");
                        refused.push(place);
                    }
                }
            }
            let answer = Ack { packet: packet.packet, refused };
            let heard = self.predecessor.as_ref().is_some_and(|p| p.acknowledge(answer));
            if heard {
                self.note_adopted(adopted.len());
            } else {
                log::error!(
                    "the predecessor does not read: {} sessions stay its own",
                    adopted.len()
                );
                adopted.into_iter().for_each(|index| self.sessions.end(index));
            }
            fault::at(Point::AckSaid);
        }
    }

    fn adopt(&mut self, entry: SessionEntry, sockets: Vec<OwnedFd>) -> std::io::Result<u32> {
        if self.state() != State::Running {
            return Err(std::io::Error::other("this process is shutting down"));
        }
        if self.sessions.is_full() {
            return Err(std::io::Error::other("there are as many sessions as there may be"));
        }
        let streams = sockets.into_iter().zip(entry.sockets);
        let streams = streams.map(|(fd, family)| Stream::adopt(fd, family)).collect();
        self.put_together(Packed { schema: entry.schema, state: entry.state, streams }, false)
    }

    /// Begins to hand the sessions over, or to have them drained where they cannot move.
    pub(super) fn begin_to_move(&mut self) {
        let walk = if self.can_move_sessions() { Walk::Move } else { Walk::Drain };
        self.sweep = Some(Sweep::new(walk));
        self.moving = walk;
        self.moves = Some(Moves::new(self.shared.now));
        // From here the turn under way counts too.
        self.longest_turn = Duration::ZERO;
    }

    /// Says what has moved, if anything has.
    pub(super) fn tell_of_moves(&mut self) {
        if let Some(summary) = self.moves.take().and_then(Moves::summary) {
            log::info!("{summary}; longest turn {}.", Milliseconds(self.longest_turn_by_now()));
        }
    }

    fn note_adopted(&mut self, sessions: usize) {
        if self.adopted == 0 {
            // From here the turn under way counts too.
            self.longest_turn = Duration::ZERO;
        }
        self.adopted += sessions;
    }

    /// Says what was taken over, if anything was.
    pub(super) fn tell_of_adopted(&self) {
        if self.adopted > 0 {
            log::info!(
                "took {} sessions over; longest turn {}.",
                self.adopted,
                Milliseconds(self.longest_turn_by_now()),
            );
        }
    }
}
