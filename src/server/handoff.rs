//! Sessions on their way: from this process to its successor, and from its predecessor to this one.
//!
//! A session is in one of two hands, with no third (I5). It is taken out of the loop, packed and
//! sent, and this process keeps its own copies of the sockets until the successor has acknowledged
//! it; the successor acknowledges it before it touches a byte. What is refused, or on its way to a
//! successor that has died without a word, comes back here as if it had never left, and is asked again
//! later (I8).

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Wing;
use super::guard::caught;
use super::moves::Moves;
use crate::fault::{self, Point};
use crate::handed_over::{bytes_of, file_of};
use crate::handler::{Context, Handler, Packed, Verdict};
use crate::io_event::IoEvent;
use crate::limits;
use crate::machine::{Event, State};
use crate::report::Milliseconds;
use crate::stream::Stream;
use crate::upgrader::{Arrived, Upgrader};
use crate::wire::{Ack, SessionEntry, Sessions};

/// Sessions on their way, in both directions, and the walks over those that are still to go.
pub(super) struct Handoff {
    /// The schemas that this program reads.
    schemas: Option<RangeInclusive<u32>>,
    pub(super) sweep: Option<Sweep>,
    /// How sessions are asked again.
    pub(super) moving: Walk,
    /// When a draining process asks its sessions again.
    pub(super) next_sweep: Option<Instant>,
    /// Walks over the sessions in which they were asked to move.
    walks: u32,
    /// Sessions that were sent to a successor and have no answer yet.
    pub(super) in_flight: VecDeque<InFlight>,
    /// Those that the successor has taken. This process's copies of their sockets are closed at the end of the
    /// turn, when the next packet is on its way: the successor need not wait for that.
    taken: Vec<Outgoing>,
    /// Packets of sessions that were sent.
    packets: u32,
    /// What has moved to the successor, since it is proven.
    pub(super) moves: Option<Moves>,
    /// When the successor was told how many sessions are still to come, and whether there is more to tell.
    told_to_come: Option<Instant>,
    pub(super) tells_again: Option<Instant>,
    /// Sessions that come from the predecessor.
    adoption: Adoption,
}

impl Handoff {
    pub(super) fn new(schemas: Option<RangeInclusive<u32>>) -> Self {
        Self {
            schemas,
            sweep: None,
            moving: Walk::Drain,
            next_sweep: None,
            walks: 0,
            in_flight: VecDeque::new(),
            taken: Vec::new(),
            packets: 0,
            moves: None,
            told_to_come: None,
            tells_again: None,
            adoption: Adoption::default(),
        }
    }

    /// Whether sessions of the predecessor wait to be put together.
    pub(super) fn is_adopting(&self) -> bool {
        !self.adoption.packets.is_empty()
    }

    /// Whether sessions move at all.
    pub(super) fn moves_sessions(&self) -> bool {
        self.schemas.is_some()
    }

    /// Whether as many sessions are on their way as may be.
    pub(super) fn is_window_full(&self) -> bool {
        self.in_flight.len() >= limits::PACKETS_IN_FLIGHT
    }

    /// Whether a walk goes on only when the successor has answered.
    pub(super) fn waits(&self, sweep: Sweep) -> bool {
        sweep.walk == Walk::Move && self.is_window_full()
    }

    /// Closes the copies of what the successor has taken.
    pub(super) fn let_go(&mut self) {
        self.taken.clear();
    }

    /// Whoever accepts does not drain, and what has moved has ended with the successor.
    pub(super) fn stop(&mut self) {
        (self.sweep, self.next_sweep, self.moves) = (None, None, None);
        // Whoever accepts may need their descriptors.
        self.let_go();
    }
}

/// A walk over all sessions, in the budget of several turns.
#[derive(Clone, Copy)]
pub(super) struct Sweep {
    next: u32,
    pub(super) walk: Walk,
    /// The handoff socket takes no more sessions: the rest waits for the next sweep.
    full: bool,
}

impl Sweep {
    pub(super) fn new(walk: Walk) -> Self {
        Self { next: 0, walk, full: false }
    }
}

/// What it is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Walk {
    /// To hand them over, and to tell to drain who cannot move.
    Move,
    /// To tell them to drain.
    Drain,
    /// To close them.
    Close,
}

/// A packet of sessions that was sent and not answered.
pub(super) struct InFlight {
    packet: u32,
    /// The attempt whose successor it was sent to.
    attempt: u32,
    /// When the first of the sessions was taken out of the loop.
    since: Instant,
    sessions: Vec<Outgoing>,
}

/// A session that was taken apart to move.
pub(super) struct Outgoing {
    packed: Packed,
    /// Its state, if that is too long for a packet.
    file: Option<OwnedFd>,
    /// When it wants to be woken.
    wake: Option<Instant>,
    /// How often it has tried to move in this attempt, and could not.
    tries: u32,
    /// By which listener it came in.
    listener: Rc<str>,
}

/// A packet that is being filled.
struct Load {
    since: Instant,
    sessions: Vec<Outgoing>,
    bytes: usize,
    most: usize,
    descriptors: usize,
}

impl Load {
    /// Made before its first session is taken out of the loop, or packed as one too many for the
    /// load before it.
    fn new(most: usize) -> Self {
        let sessions = Vec::with_capacity(limits::SESSIONS_PER_PACKET);
        Self { since: Instant::now(), sessions, bytes: 0, most, descriptors: 0 }
    }

    fn is_full(&self) -> bool {
        self.sessions.len() >= limits::SESSIONS_PER_PACKET
    }

    /// Whether those in it have waited long enough for others.
    fn is_due(&self, now: Instant) -> bool {
        let enough = self.sessions.len() >= limits::FEW_SESSIONS;
        enough && now.duration_since(self.since) >= limits::FILLING_TIME
    }

    fn has_room_for(&self, session: &Outgoing) -> bool {
        let fits = self.bytes + session.size() <= self.most;
        let descriptors = self.descriptors + session.riding();
        self.sessions.is_empty() || fits && descriptors <= limits::DESCRIPTORS_PER_PACKET
    }

    fn add(&mut self, session: Outgoing) {
        self.bytes += session.size();
        self.descriptors += session.riding();
        self.sessions.push(session);
    }
}

impl Outgoing {
    /// In a packet, its head included.
    fn size(&self) -> usize {
        let state = if self.file.is_some() { 0 } else { self.packed.state.len() };
        state + self.listener.len() + limits::SOURCES + 34
    }

    /// How many descriptors ride on the packet for it.
    fn riding(&self) -> usize {
        self.packed.streams.len() + self.packed.descriptors.len() + usize::from(self.file.is_some())
    }

    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let streams = self.packed.streams.iter().map(AsFd::as_fd);
        let others = self.packed.descriptors.iter().chain(&self.file).map(AsFd::as_fd);
        streams.chain(others)
    }
}

/// A packet of the predecessor's sessions that is being put together, in the time of several turns.
/// Until all of it is, and is acknowledged, its sessions sleep.
pub(super) struct Adopting {
    packet: u32,
    waiting: std::vec::IntoIter<(u8, (SessionEntry, Vec<OwnedFd>))>,
    adopted: Vec<u32>,
    refused: Vec<u8>,
    /// Whether the answer is sent, for the streams of its sessions.
    acknowledged: Rc<Cell<bool>>,
}

impl Adopting {
    fn new(arrived: Arrived) -> Self {
        let waiting: Vec<_> = (0..).zip(arrived.sessions).collect();
        let (adopted, refused) = (Vec::new(), Vec::new());
        let (packet, waiting) = (arrived.packet, waiting.into_iter());
        Self { packet, waiting, adopted, refused, acknowledged: Rc::default() }
    }
}

/// Sessions that have come from the predecessor.
#[derive(Default)]
pub(super) struct Adoption {
    /// Packets that wait, the one at hand first.
    packets: VecDeque<Adopting>,
    /// Sessions that were taken over.
    pub(super) taken: usize,
    /// How often one was refused.
    refused: usize,
    /// The names of the listeners that they came in by.
    names: Vec<Rc<str>>,
}

impl Adoption {
    /// The name of a listener, one for all of its sessions.
    fn name(&mut self, name: &str) -> Rc<str> {
        if let Some(known) = self.names.iter().find(|known| ***known == *name) {
            return Rc::clone(known);
        }
        let new: Rc<str> = name.into();
        self.names.push(Rc::clone(&new));
        new
    }
}

impl<H: Handler> Wing<H> {
    /// Hands sessions over, tells them to drain, or closes them, as many as the budget allows.
    pub(super) fn sweep_sessions(&mut self, upgrader: &mut Upgrader) {
        if self.handoff.next_sweep.is_some_and(|at| at <= upgrader.standing.now) {
            self.handoff.next_sweep = None;
            self.handoff.sweep.get_or_insert(Sweep::new(self.handoff.moving));
            self.handoff.walks = self.handoff.walks.wrapping_add(1);
        }
        let Some(mut sweep) = self.handoff.sweep else { return };
        if sweep.walk == Walk::Move {
            let ended = self.move_sessions(upgrader, &mut sweep);
            self.handoff.sweep = (!ended).then_some(sweep);
            if ended {
                self.handoff.next_sweep = Some(upgrader.standing.now + limits::DRAIN_INTERVAL);
            }
            self.crew.desk.sessions = self.crew.sessions.len();
            return;
        }
        for _ in 0..limits::DRAINS_PER_TURN {
            let Some((token, _)) = self.crew.sessions.next_from(sweep.next) else {
                self.handoff.sweep = None;
                self.handoff.next_sweep = Some(upgrader.standing.now + limits::DRAIN_INTERVAL);
                self.crew.desk.sessions = self.crew.sessions.len();
                return;
            };
            sweep.next = token.index + 1;
            let verdict = match sweep.walk {
                Walk::Close => Verdict::Close,
                Walk::Drain | Walk::Move => self.ask_to_drain(upgrader, token.index),
            };
            self.conclude(upgrader, token.index, verdict, IoEvent::default());
        }
        self.handoff.sweep = Some(sweep);
        self.crew.desk.sessions = self.crew.sessions.len();
    }

    /// The sessions, and their sockets, that a successor is to keep room for: all that there are, if it
    /// can put them together.
    pub(super) fn sessions_to_come(&self, upgrader: &Upgrader) -> (usize, usize) {
        match upgrader.common_schemas() {
            Some(_) => (self.crew.sessions.len(), self.crew.sessions.sockets()),
            None => (0, 0),
        }
    }

    /// Tells the successor how many are still to come, if there are fewer by now. Those on their way it
    /// has places for until it has taken them. It is told now and then, and not in each turn.
    pub(super) fn tell_to_come(&mut self, upgrader: &mut Upgrader) {
        let now = upgrader.standing.now;
        self.handoff.tells_again = None;
        let draining = matches!(upgrader.state(), State::Draining(_));
        if !draining || upgrader.successor_schemas().is_none() {
            return;
        }
        let again = self.handoff.told_to_come.map(|at| at + limits::OUTBOX_RETRY);
        if again.is_some_and(|again| now < again) {
            self.handoff.tells_again = again;
            return;
        }
        let on_their_way = self.handoff.in_flight.iter().flat_map(|sent| &sent.sessions);
        let (sent, sockets) = on_their_way
            .fold((0, 0), |(count, sockets), s| (count + 1, sockets + s.packed.streams.len()));
        let (left, their_sockets) = self.sessions_to_come(upgrader);
        let news = upgrader.tell_to_come(left + sent, their_sockets + sockets);
        self.handoff.told_to_come = news.then_some(now);
    }

    /// Whether there is a successor that can put together what this process packs. Says so in the
    /// log if not.
    fn can_move_sessions(&self, upgrader: &Upgrader) -> bool {
        let (Some(own), Some(theirs)) = (&self.handoff.schemas, upgrader.successor_schemas())
        else {
            return false;
        };
        let moves = upgrader.common_schemas().is_some();
        if !moves {
            log::info!(
                "sessions stay and drain: this process reads the schemas {} to {}, the successor \
                 {} to {}.",
                own.start(),
                own.end(),
                theirs.oldest,
                theirs.newest,
            );
        }
        moves
    }

    /// Hands over as many sessions as the window allows, from where the sweep stands. Those that
    /// cannot move now are asked to drain. Answers whether the sweep has come to its end.
    ///
    /// What the socket did not take is here again, under another index, and would be found again: once
    /// it is full, the sweep moves nobody else.
    pub(super) fn move_sessions(&mut self, upgrader: &mut Upgrader, sweep: &mut Sweep) -> bool {
        let whole = (limits::SESSIONS_BYTES, limits::SESSIONS_BYTES);
        let (most, alone) = upgrader.packet_bytes().unwrap_or(whole);
        let mut load = Load::new(most);
        let begun = Instant::now();
        for _ in 0..limits::DRAINS_PER_TURN {
            let now = Instant::now();
            let late = now.duration_since(begun) >= limits::MOVING_TIME || load.is_due(now);
            if self.handoff.is_window_full() || load.is_full() || late {
                break;
            }
            let Some((token, _)) = self.crew.sessions.next_from(sweep.next) else {
                self.send_sessions(upgrader, load);
                self.tell_of_stuck();
                return true;
            };
            sweep.next = token.index + 1;
            let rests =
                self.crew.sessions.rests(token.index, upgrader.attempt(), self.handoff.walks);
            if sweep.full && !rests {
                continue;
            }
            let packed = if rests { None } else { self.pack(upgrader, token.index, alone) };
            match packed {
                Some(session) if load.has_room_for(&session) => load.add(session),
                Some(session) => {
                    let full = std::mem::replace(&mut load, Load::new(most));
                    sweep.full |= !self.send_sessions(upgrader, full);
                    if !sweep.full && !self.handoff.is_window_full() {
                        load.add(session);
                        continue;
                    }
                    // Back in another slot, where the sweep comes by once more.
                    if let Some(index) = self.take_back(upgrader, session, false) {
                        sweep.next = sweep.next.min(index);
                    }
                }
                None => {
                    let Some((token, _)) = self.crew.sessions.get_mut(token.index) else {
                        continue;
                    };
                    let verdict = self.ask_to_drain(upgrader, token.index);
                    self.conclude(upgrader, token.index, verdict, IoEvent::default());
                }
            }
        }
        sweep.full |= !self.send_sessions(upgrader, load);
        false
    }

    /// Packs a session, if it can move, in so many bytes at the most.
    fn pack(&mut self, upgrader: &mut Upgrader, index: u32, most: usize) -> Option<Outgoing> {
        let (wake, tries) = (
            self.crew.sessions.wake_of(index),
            self.crew.sessions.tries(index, upgrader.attempt()),
        );
        let reads = upgrader.common_schemas()?;
        let listener = self.crew.sessions.listener_of(index);
        let (handler, standing) = (&mut self.crew.handler, &mut upgrader.standing);
        let desk = &mut self.crew.desk;
        let (mut taken_apart, mut panicked) = (None, None);
        self.crew.sessions.lend(index, |token, session| {
            let mut cx = Context::of(standing, desk, token);
            match caught(|| handler.pack(&mut cx, session, reads.clone())) {
                Ok(Ok(packed)) => {
                    taken_apart = Some(packed);
                    None
                }
                Ok(Err(session)) => Some(session),
                Err(payload) => {
                    panicked = Some(payload);
                    None
                }
            }
        });
        self.crew.desk.session = None;
        if let Some(payload) = panicked {
            self.note_panic(upgrader, "pack", None, payload);
            return None;
        }
        self.note_slow("pack");
        let mut session = Outgoing { packed: taken_apart?, file: None, wake, tries, listener };
        let takes_any = upgrader.successor_takes_any();
        let is_long = |session: &Outgoing| {
            session.packed.state.len() > limits::STATE_BYTES || session.size() > most
        };
        let may_be_long = session.packed.state.len() <= upgrader.max_packed_bytes();
        if takes_any && is_long(&session) && may_be_long {
            session.file = file_of(&session.packed.state).ok();
        }
        let Packed { schema, state, streams, descriptors } = &session.packed;
        let descriptors = descriptors.len();
        let fits = (session.file.is_some() || !is_long(&session))
            && streams.len() <= limits::SOURCES
            && descriptors <= if takes_any { limits::SESSION_DESCRIPTORS } else { 0 }
            && reads.contains(schema);
        if fits {
            return Some(session);
        }
        let (bytes, sockets) = (state.len(), streams.len());
        let words = format!(
            "schema {schema}, {bytes} bytes, {sockets} sockets and {descriptors} other descriptors is not \
             what can move"
        );
        self.note_stuck(|| words);
        self.take_back(upgrader, session, true);
        None
    }

    /// Answers whether the socket has taken what there was to send.
    fn send_sessions(&mut self, upgrader: &mut Upgrader, mut load: Load) -> bool {
        if load.sessions.is_empty() {
            return true;
        }
        self.handoff.packets = self.handoff.packets.wrapping_add(1);
        let now = Instant::now();
        let entry = |Outgoing { packed, file, wake, listener, .. }: &mut Outgoing| {
            // From here on nobody here hears of them.
            packed.streams.iter_mut().for_each(Stream::deregister);
            let until = |at: Instant| at.saturating_duration_since(now).as_micros();
            SessionEntry {
                schema: packed.schema,
                sockets: packed.streams.iter().map(Stream::family).collect(),
                wake: wake.and_then(|at| u64::try_from(until(at)).ok()),
                descriptors: packed.descriptors.len() as u8,
                // It is lent, and not copied.
                state: file.is_none().then(|| std::mem::take(&mut packed.state)),
                listener: Rc::clone(listener),
            }
        };
        let packet = self.handoff.packets;
        let sessions = load.sessions.iter_mut().map(entry).collect();
        let mut sockets = Vec::with_capacity(load.descriptors);
        sockets.extend(load.sessions.iter().flat_map(Outgoing::descriptors));
        let sessions = Sessions { packet, sessions };
        let sent = upgrader.send_sessions(&sessions, &sockets);
        for (outgoing, entry) in load.sessions.iter_mut().zip(sessions.sessions) {
            if let Some(state) = entry.state {
                outgoing.packed.state = state;
            }
        }
        match sent {
            Ok(()) => {
                let (attempt, since, sessions) = (upgrader.attempt(), load.since, load.sessions);
                debug_assert!(!self.handoff.is_window_full());
                let first = self.handoff.in_flight.is_empty();
                self.handoff.in_flight.push_back(InFlight { packet, attempt, since, sessions });
                fault::at(Point::SessionsSent);
                if first {
                    upgrader.feed(Event::SessionsSent, self);
                }
                true
            }
            // The socket is full, or the kernel has too many descriptors on their way
            // (ETOOMANYREFS, unix(7)); the next sweep tries again. Of a dead one the death is heard.
            Err(error) => {
                log::debug!("{} sessions to the successor: {error}", load.sessions.len());
                self.take_all_back(upgrader, load.sessions);
                false
            }
        }
    }

    /// What the successor of that attempt has taken is its own, and what it has refused is asked again
    /// later.
    pub(super) fn hear_acks(&mut self, upgrader: &mut Upgrader, attempt: u32, acks: Vec<Ack>) {
        if acks.is_empty() {
            return;
        }
        let now = Instant::now();
        for Ack { packet, refused } in acks {
            let of_it = |sent: &InFlight| (sent.packet, sent.attempt) == (packet, attempt);
            let Some(place) = self.handoff.in_flight.iter().position(of_it) else {
                log::warn!("the successor acknowledged packet {packet}, which is not on its way");
                continue;
            };
            fault::at(Point::AckHeard);
            let Some(sent) = self.handoff.in_flight.remove(place) else { continue };
            let mut moved = 0;
            for (place, session) in (0u8..).zip(sent.sessions) {
                if refused.contains(&place) {
                    self.note_stuck(|| "the successor refused it".into());
                    self.handoff.moves.iter_mut().for_each(Moves::note_refused);
                    self.take_back(upgrader, session, true);
                } else {
                    self.handoff.taken.push(session);
                    moved += 1;
                }
            }
            // The last words of a successor that is dead already are no part of this handoff.
            if let Some(moves) =
                self.handoff.moves.as_mut().filter(|_| attempt == upgrader.attempt())
            {
                moves.note(sent.since, now, moved);
            }
        }
        if self.handoff.sweep.is_none() {
            self.tell_of_stuck();
        }
    }

    /// The successor of that attempt is dead and has said all that it had to say: what it has not
    /// acknowledged, it has not touched.
    pub(super) fn take_back_sessions(&mut self, upgrader: &mut Upgrader, attempt: u32) {
        while let Some(place) =
            self.handoff.in_flight.iter().position(|sent| sent.attempt == attempt)
        {
            let Some(sent) = self.handoff.in_flight.remove(place) else { return };
            log::info!("{} sessions come back.", sent.sessions.len());
            self.take_all_back(upgrader, sent.sessions);
        }
    }

    /// Puts a session together again that this process has packed itself, and answers where it is. One
    /// that could not move rests for a while.
    fn take_back(
        &mut self,
        upgrader: &mut Upgrader,
        session: Outgoing,
        rests: bool,
    ) -> Option<u32> {
        let Outgoing { mut packed, wake, tries, listener, .. } = session;
        packed.streams.iter_mut().for_each(Stream::deregister);
        match self.put_together(upgrader, packed, wake) {
            Ok(index) => {
                self.crew.sessions.came_by(index, &listener);
                if rests {
                    self.crew.sessions.set_rest(
                        index,
                        upgrader.attempt(),
                        self.handoff.walks,
                        tries,
                    );
                }
                Some(index)
            }
            Err(error) => {
                log::error!("a session is lost, which could not be put together again: {error}");
                None
            }
        }
    }

    fn take_all_back(&mut self, upgrader: &mut Upgrader, sessions: Vec<Outgoing>) {
        for session in sessions {
            self.take_back(upgrader, session, false);
        }
    }

    fn put_together(
        &mut self,
        upgrader: &mut Upgrader,
        mut packed: Packed,
        wake: Option<Instant>,
    ) -> std::io::Result<u32> {
        let vacancy = self.crew.sessions.vacancy();
        let token = vacancy.token();
        let mut cx = Context::of(&mut upgrader.standing, &mut self.crew.desk, token);
        for (source, stream) in (0..).zip(&mut packed.streams) {
            cx.attach(stream, source)?;
        }
        let handler = &mut self.crew.handler;
        let session = match caught(|| handler.unpack(&mut cx, packed)) {
            Ok(session) => session,
            Err(payload) => {
                self.note_panic(upgrader, "unpack", None, payload);
                Err(std::io::Error::other("the handler panicked"))
            }
        };
        self.crew.desk.session = None;
        self.note_slow("unpack");
        self.crew.sessions.insert(vacancy, session?);
        self.crew.sessions.add_sources(token.index, self.crew.desk.attached);
        if self.crew.desk.patient {
            self.crew.sessions.wait_for_peer(token.index);
        }
        // What it asked for when it was put together counts, or else what it had asked for before.
        if let Some(at) = self.crew.desk.wake.take().or(wake) {
            self.crew.sessions.wake_at(token.index, at);
        }
        self.crew.desk.sessions = self.crew.sessions.len();
        Ok(token.index)
    }

    /// Takes the sessions over that the predecessor has sent, for as long as a turn may take, and says
    /// so before a byte of them is touched.
    pub(super) fn adopt_sessions(&mut self, upgrader: &mut Upgrader, packets: Vec<Arrived>) {
        for arrived in packets {
            fault::at(Point::SessionsHeard);
            self.handoff.adoption.packets.push_back(Adopting::new(arrived));
        }
        let begun = Instant::now();
        while let Some(mut packet) = self.handoff.adoption.packets.pop_front() {
            while begun.elapsed() < limits::MOVING_TIME || packet.adopted.is_empty() {
                let Some((place, (entry, sockets))) = packet.waiting.next() else { break };
                match self.adopt(upgrader, entry, sockets, &packet.acknowledged) {
                    Ok(index) => {
                        self.crew.sessions.put_to_sleep(index);
                        packet.adopted.push(index);
                    }
                    Err(error) => {
                        let first = self.handoff.adoption.refused == 0;
                        let level = if first { log::Level::Warn } else { log::Level::Debug };
                        log::log!(level, "a session of the predecessor is refused: {error}");
                        self.handoff.adoption.refused += 1;
                        packet.refused.push(place);
                    }
                }
            }
            if packet.waiting.len() > 0 {
                // The rest in the next turn, which comes at once.
                self.handoff.adoption.packets.push_front(packet);
                upgrader.come_back_at_once();
                return;
            }
            self.acknowledge(upgrader, packet);
        }
    }

    fn acknowledge(&mut self, upgrader: &mut Upgrader, packet: Adopting) {
        let answer = Ack { packet: packet.packet, refused: packet.refused };
        if upgrader.acknowledge(answer) {
            packet.acknowledged.set(true);
            self.note_adopted(upgrader, packet.adopted.len());
            packet.adopted.into_iter().for_each(|index| self.crew.sessions.wake_up(index));
        } else {
            let count = packet.adopted.len();
            log::error!("the predecessor does not read: {count} sessions stay its own");
            packet.adopted.into_iter().for_each(|index| self.end_session(upgrader, index));
        }
        fault::at(Point::AckSaid);
    }

    /// Whoever was let in by the predecessor is taken over, however many there may be here: to let
    /// nobody else in meanwhile is the acceptor's business (I8).
    fn adopt(
        &mut self,
        upgrader: &mut Upgrader,
        entry: SessionEntry,
        sockets: Vec<OwnedFd>,
        acknowledged: &Rc<Cell<bool>>,
    ) -> std::io::Result<u32> {
        if upgrader.state() != State::Running {
            return Err(std::io::Error::other("this process is shutting down"));
        }
        if self.crew.sessions.is_exhausted() {
            return Err(std::io::Error::other("there are as many sessions as there can be"));
        }
        let mut descriptors = sockets.into_iter();
        let streams = entry.sockets.iter().zip(descriptors.by_ref());
        let streams =
            streams.map(|(family, fd)| Stream::adopt(fd, *family, acknowledged)).collect();
        let others = descriptors.by_ref().take(usize::from(entry.descriptors)).collect();
        let state = match (entry.state, descriptors.next()) {
            (Some(state), _) => state,
            (None, Some(file)) => bytes_of(file, upgrader.max_packed_bytes() as u64)?,
            (None, None) => return Err(std::io::ErrorKind::InvalidData.into()),
        };
        let wake =
            entry.wake.and_then(|after| Instant::now().checked_add(Duration::from_micros(after)));
        let packed = Packed::new(entry.schema, state, streams).with(others);
        let index = self.put_together(upgrader, packed, wake)?;
        let listener = self.handoff.adoption.name(&entry.listener);
        self.crew.sessions.came_by(index, &listener);
        Ok(index)
    }

    /// Begins to hand the sessions over, or to have them drained where they cannot move.
    pub(super) fn begin_to_move(&mut self, upgrader: &mut Upgrader) {
        let walk = if self.can_move_sessions(upgrader) { Walk::Move } else { Walk::Drain };
        self.handoff.sweep = Some(Sweep::new(walk));
        self.handoff.moving = walk;
        self.handoff.walks = 0;
        self.handoff.moves = Some(Moves::new(upgrader.standing.now, self.crew.sessions.len()));
        // From here the turn under way counts too.
        upgrader.measure_turns();
    }

    /// A session could not move, and why.
    fn note_stuck(&mut self, why: impl FnOnce() -> String) {
        if let Some(moves) = &mut self.handoff.moves {
            moves.note_stuck(why);
        }
    }

    /// Says once, for all of them, that some sessions could not move.
    fn tell_of_stuck(&mut self) {
        // Those on their way may still be refused.
        if !self.handoff.in_flight.is_empty() {
            return;
        }
        if let Some(line) = self.handoff.moves.as_mut().and_then(Moves::stuck) {
            log::warn!("{line}");
        }
    }

    /// Says what became of the sessions, if there were any.
    pub(super) fn tell_of_moves(&mut self, upgrader: &mut Upgrader) {
        let Some(moves) = self.handoff.moves.take() else { return };
        moves.count_in(&upgrader.standing.ledger);
        let moved = moves.summary();
        if moved.moved > 0 {
            log::info!("{moved}; longest turn {}.", Milliseconds(upgrader.longest_turn_by_now()));
        } else if !moved.is_nothing() {
            log::info!(
                "no session moved; {} stayed to their end; {} cut.",
                moved.stayed,
                moved.cut
            );
        }
        self.guarded(upgrader, "moved", None, |handler, cx, _| handler.moved(cx, &moved));
    }

    fn note_adopted(&mut self, upgrader: &mut Upgrader, sessions: usize) {
        if self.handoff.adoption.taken == 0 {
            // From here the turn under way counts too.
            upgrader.measure_turns();
        }
        self.handoff.adoption.taken += sessions;
    }

    /// Says what was taken over, if anything was.
    pub(super) fn tell_of_adopted(&self, upgrader: &Upgrader) {
        if self.handoff.adoption.taken > 0 {
            log::info!(
                "took {} sessions over; longest turn {}.",
                self.handoff.adoption.taken,
                Milliseconds(upgrader.longest_turn_by_now()),
            );
        }
    }
}
