//! The sessions: a bounded slab with generations, and the queues of those that have something to do.
//!
//! There are two queues, so that nobody waits for a neighbour's bulk: a session whose events take long,
//! time and again, stands in one of its own, of which a turn serves a part.
//!
//! A slot is freed at the end of the turn in which its session ended, so that an event harvested
//! for the closed session never meets a stranger in its slot; the generation in the token catches
//! what comes later still.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::io_event::IoEvent;
use crate::limits;
use crate::token::{self, Kind, Token};

/// Every session of this process.
pub(crate) struct Sessions<S> {
    slots: Slab<Slot<S>>,
    /// The slots that have an event pending, each once, in one of the two: those whose events are soon
    /// done, and those whose are not.
    light: VecDeque<u32>,
    heavy: VecDeque<u32>,
    /// The slots whose session ended in this turn.
    ended: Vec<u32>,
    /// When to look at whom. An entry may be out of date: the slot knows better.
    alarms: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    generation: u32,
    live: usize,
    /// The names of the listeners that they came in by; the first one is of those of whom it is not known.
    listeners: Vec<Rc<str>>,
    /// The sockets that they have together.
    sockets: usize,
    limit: usize,
}

/// One of the two queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Of those whose events are soon done.
    Light,
    /// Of those whose events take long.
    Heavy,
}

/// Alarms that may be there beside those of the living, without being looked through.
const ALARMS: usize = 256;

struct Slot<S> {
    generation: u32,
    pending: IoEvent,
    queued: bool,
    /// How many more of its last events have taken long than have not, as far as it matters.
    weight: u8,
    /// When the session wants to be woken.
    wake: Option<Instant>,
    /// The entry that there is among the alarms, if it is still to come.
    alarm: Option<Instant>,
    /// Which of its sources have a socket, a bit for each. One that was closed counts until the session
    /// has another one in its place, or ends.
    sources: u8,
    /// The listener that it came in by, by its place among their names.
    listener: u16,
    /// It has tried to move and could not.
    rest: Option<Rest>,
    /// Its predecessor has not heard yet that it is taken: nothing of it may be touched, and its events
    /// wait.
    dormant: bool,
    /// It has nothing to write until it hears from a peer: that there is room for it, and nothing else, is
    /// noted and waits, until its handler is called for it once.
    patient: bool,
    /// `None` once the session has ended, until the end of the turn.
    session: Option<S>,
}

impl<S> Slot<S> {
    /// Whether there is something that its session should hear by now.
    fn has_news(&self) -> bool {
        let waits = self.patient && self.pending.is_room_alone();
        self.session.is_some() && self.pending != IoEvent::default() && !waits
    }
}

/// How long a session that could not move is left alone.
#[derive(Clone, Copy)]
struct Rest {
    /// The attempt at an upgrade.
    attempt: u32,
    /// The walk in which it is asked again.
    until: u32,
    tries: u32,
}

/// A slot that a session can be put into.
pub(crate) struct Vacancy {
    index: u32,
    generation: u32,
}

impl Vacancy {
    pub(crate) fn token(&self) -> Token {
        Token::new(Kind::Session, self.generation, self.index)
    }
}

impl<S> Sessions<S> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            slots: Slab::new(),
            light: VecDeque::new(),
            heavy: VecDeque::new(),
            ended: Vec::new(),
            alarms: BinaryHeap::new(),
            generation: 0,
            live: 0,
            listeners: vec!["".into()],
            sockets: 0,
            limit: limit.min(token::INDEXES),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// The sockets of all sessions together.
    pub(crate) fn sockets(&self) -> usize {
        self.sockets
    }

    /// Whether nobody can be let in, if places are kept for so many that are to come.
    pub(crate) fn is_full(&self, to_come: usize) -> bool {
        self.slots.len().saturating_add(to_come) >= self.limit
    }

    /// Whether there is no slot left at all, which is more than a limit.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.slots.len() >= token::INDEXES
    }

    /// How many sessions wait for their event to be dispatched, at most.
    pub(crate) fn queued(&self) -> usize {
        self.light.len() + self.heavy.len()
    }

    /// How many of them stand in that queue.
    pub(crate) fn queued_in(&self, lane: Lane) -> usize {
        match lane {
            Lane::Light => self.light.len(),
            Lane::Heavy => self.heavy.len(),
        }
    }

    fn enqueue(&mut self, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        if slot.dormant || std::mem::replace(&mut slot.queued, true) {
            return;
        }
        match slot.weight {
            ..limits::HEAVY_AFTER => self.light.push_back(index),
            limits::HEAVY_AFTER.. => self.heavy.push_back(index),
        }
    }

    /// A session's event has taken so long. One that takes long now and then may only have been
    /// interrupted.
    pub(crate) fn weigh(&mut self, index: u32, took: Duration) {
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.weight = match took >= limits::HEAVY_EVENT {
                true => slot.weight.saturating_add(1).min(2 * limits::HEAVY_AFTER),
                false => slot.weight.saturating_sub(1),
            };
        }
    }

    /// Where the next session goes. The token is known before the session is.
    pub(crate) fn vacancy(&mut self) -> Vacancy {
        self.generation = self.generation.wrapping_add(1);
        let generation = Token::new(Kind::Session, self.generation, 0).generation;
        Vacancy { index: self.slots.vacant_key() as u32, generation }
    }

    /// Fills the vacancy that was asked for last.
    pub(crate) fn insert(&mut self, vacancy: Vacancy, session: S) {
        let Vacancy { generation, .. } = vacancy;
        self.slots.insert(Slot {
            generation,
            pending: IoEvent::default(),
            queued: false,
            weight: 0,
            wake: None,
            alarm: None,
            sources: 1,
            listener: 0,
            rest: None,
            dormant: false,
            patient: false,
            session: Some(session),
        });
        self.live += 1;
        self.sockets += 1;
    }

    /// Notes by which listener a session came in.
    pub(crate) fn came_by(&mut self, index: u32, name: &Rc<str>) {
        // Mostly it is the very name.
        let place = self.listeners.iter().position(|known| Rc::ptr_eq(known, name));
        let place = place.or_else(|| self.listeners.iter().position(|known| known == name));
        let place = place.unwrap_or_else(|| {
            self.listeners.push(Rc::clone(name));
            self.listeners.len() - 1
        });
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.listener = u16::try_from(place).unwrap_or(0);
        }
    }

    /// By which listener a session came in.
    pub(crate) fn listener_of(&self, index: u32) -> Rc<str> {
        let place = self.slots.get(index as usize).map_or(0, |slot| slot.listener);
        Rc::clone(&self.listeners[usize::from(place)])
    }

    /// How many there are of each listener.
    pub(crate) fn census(&self) -> Vec<(Rc<str>, usize)> {
        let mut counts = vec![0; self.listeners.len()];
        let living = self.slots.iter().filter(|(_, slot)| slot.session.is_some());
        living.for_each(|(_, slot)| counts[usize::from(slot.listener)] += 1);
        let named = self.listeners.iter().cloned().zip(counts);
        named.filter(|(name, count)| !name.is_empty() || *count > 0).collect()
    }

    /// The session has sockets for these sources, too, a bit for each.
    pub(crate) fn add_sources(&mut self, index: u32, sources: u8) {
        let Some(slot) = self.slots.get_mut(index as usize).filter(|slot| slot.session.is_some())
        else {
            return;
        };
        let before = slot.sources.count_ones();
        slot.sources |= sources;
        self.sockets += (slot.sources.count_ones() - before) as usize;
    }

    /// Puts a session to sleep: what happens to it is noted, and waits.
    pub(crate) fn put_to_sleep(&mut self, index: u32) {
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.dormant = true;
        }
    }

    /// Wakes a session: what has happened meanwhile is in the queue.
    pub(crate) fn wake_up(&mut self, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        slot.dormant = false;
        if slot.has_news() {
            self.enqueue(index);
        }
    }

    /// A session has nothing to write until it hears from a peer.
    pub(crate) fn wait_for_peer(&mut self, index: u32) {
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.patient = true;
        }
    }

    /// Notes an event for its session. `false` if it is stale.
    pub(crate) fn note(&mut self, token: Token, event: IoEvent) -> bool {
        let Some(slot) = self.slots.get_mut(token.index as usize) else { return false };
        if slot.generation != token.generation || slot.session.is_none() {
            return false;
        }
        slot.pending.merge(event);
        if slot.has_news() {
            self.enqueue(token.index);
        }
        true
    }

    /// The next session in that queue, and its event; it is off the queue then.
    pub(crate) fn next_in(&mut self, lane: Lane) -> Option<(Token, &mut S, IoEvent)> {
        loop {
            let index = match lane {
                Lane::Light => self.light.pop_front()?,
                Lane::Heavy => self.heavy.pop_front()?,
            };
            let Some(slot) = self.slots.get_mut(index as usize) else { continue };
            slot.queued = false;
            // Ended while it was queued: its slot is still there.
            if slot.session.is_none() {
                continue;
            }
            let slot = self.slots.get_mut(index as usize)?;
            let event = std::mem::take(&mut slot.pending);
            slot.patient = false;
            let token = Token::new(Kind::Session, slot.generation, index);
            return Some((token, slot.session.as_mut()?, event));
        }
    }

    /// Puts a session that has more to do at the end of the queue.
    pub(crate) fn again(&mut self, index: u32, event: IoEvent) {
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.pending.merge(event);
            self.enqueue(index);
        }
    }

    /// A method is called for a session: it may write in it, and has to hear of room from then on.
    fn hear_of_room(&mut self, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        if std::mem::take(&mut slot.patient) && slot.has_news() {
            self.enqueue(index);
        }
    }

    /// A session, for a method of its handler to be called for it.
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<(Token, &mut S)> {
        self.hear_of_room(index);
        let slot = self.slots.get_mut(index as usize)?;
        let token = Token::new(Kind::Session, slot.generation, index);
        Some((token, slot.session.as_mut()?))
    }

    /// Whether a session has tried to move in that attempt at an upgrade and could not, and is not to be
    /// asked again in that walk.
    pub(crate) fn rests(&self, index: u32, attempt: u32, walk: u32) -> bool {
        let rest = self.slots.get(index as usize).and_then(|slot| slot.rest);
        rest.is_some_and(|rest| rest.attempt == attempt && walk < rest.until)
    }

    /// How often a session has tried to move in that attempt at an upgrade, and could not.
    pub(crate) fn tries(&self, index: u32, attempt: u32) -> u32 {
        let rest = self.slots.get(index as usize).and_then(|slot| slot.rest);
        rest.filter(|rest| rest.attempt == attempt).map_or(0, |rest| rest.tries)
    }

    /// It could not, in that walk, after so many tries: it is asked again after a walk, or two, or four,
    /// and so on, because to be taken apart for nothing costs its time.
    pub(crate) fn set_rest(&mut self, index: u32, attempt: u32, walk: u32, tries: u32) {
        if let Some(slot) = self.slots.get_mut(index as usize) {
            let walks = 1 << tries.min(limits::REST_DOUBLINGS);
            slot.rest = Some(Rest { attempt, until: walk.wrapping_add(walks), tries: tries + 1 });
        }
    }

    /// When a session wants to be woken, if it does.
    pub(crate) fn wake_of(&self, index: u32) -> Option<Instant> {
        self.slots.get(index as usize).and_then(|slot| slot.wake)
    }

    /// Wakes a session at a time, in place of the one that it may have wanted before.
    pub(crate) fn wake_at(&mut self, index: u32, at: Instant) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        slot.wake = Some(at);
        // An earlier alarm looks again; most are put off many times before they ring.
        if slot.alarm.is_none_or(|alarm| at < alarm) {
            slot.alarm = Some(at);
            self.alarms.push(Reverse((at, index, slot.generation)));
            self.forget_old_alarms();
        }
    }

    /// Sessions that end leave their alarms behind, and many short ones may each want to be woken
    /// after a long time: the alarms that nobody waits for are thrown away when they outnumber the
    /// living, so that there is a bound on them and a constant cost for each.
    fn forget_old_alarms(&mut self) {
        if self.alarms.len() <= 2 * self.live + ALARMS {
            return;
        }
        let slots = &self.slots;
        self.alarms.retain(|Reverse((at, index, generation))| {
            slots
                .get(*index as usize)
                .is_some_and(|slot| slot.generation == *generation && slot.alarm == Some(*at))
        });
    }

    /// When the next alarm rings, if there is one.
    pub(crate) fn next_alarm(&self) -> Option<Instant> {
        self.alarms.peek().map(|Reverse((at, ..))| *at)
    }

    /// Queues whom the time has come for.
    pub(crate) fn ring(&mut self, now: Instant) {
        while let Some(Reverse((at, index, generation))) = self.alarms.peek().copied() {
            if at > now {
                return;
            }
            self.alarms.pop();
            let Some(slot) = self.slots.get_mut(index as usize) else { continue };
            if slot.generation != generation || slot.session.is_none() || slot.alarm != Some(at) {
                continue;
            }
            slot.alarm = None;
            match slot.wake.take() {
                Some(wake) if wake > now => self.wake_at(index, wake),
                Some(_) => self.again(index, IoEvent::timeout()),
                None => {}
            }
        }
    }

    /// The session in the first occupied slot at or behind `from`.
    pub(crate) fn next_from(&mut self, from: u32) -> Option<(Token, &mut S)> {
        let end = self.slots.capacity();
        let index = (from as usize..end)
            .find(|index| self.slots.get(*index).is_some_and(|slot| slot.session.is_some()))?;
        let slot = self.slots.get_mut(index)?;
        let token = Token::new(Kind::Session, slot.generation, index as u32);
        Some((token, slot.session.as_mut()?))
    }

    /// Takes a session out of its slot, for as long as `f` has it: what `f` gives back is put in
    /// again, and otherwise the session has ended here.
    pub(crate) fn lend(&mut self, index: u32, f: impl FnOnce(Token, S) -> Option<S>) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        let Some(session) = slot.session.take() else { return };
        slot.session = f(Token::new(Kind::Session, slot.generation, index), session);
        if slot.session.is_some() {
            self.hear_of_room(index);
        } else {
            self.live -= 1;
            self.sockets -= slot.sources.count_ones() as usize;
            self.ended.push(index);
        }
    }

    /// Ends a session, and gives it back to be dropped now; its slot is freed at the end of the turn.
    pub(crate) fn end(&mut self, index: u32) -> Option<S> {
        let slot = self.slots.get_mut(index as usize)?;
        let session = slot.session.take()?;
        self.live -= 1;
        self.sockets -= slot.sources.count_ones() as usize;
        self.ended.push(index);
        Some(session)
    }

    /// Frees the slots of this turn's ended sessions. Answers whether there were any.
    pub(crate) fn free_ended(&mut self) -> bool {
        let before = self.ended.len();
        let slots = &mut self.slots;
        // One that is in the queue would be popped for whoever comes next into its slot: it is
        // freed when it has come off.
        self.ended.retain(|index| {
            let queued = slots.get(*index as usize).is_some_and(|slot| slot.queued);
            if !queued {
                slots.remove(*index as usize);
            }
            queued
        });
        self.ended.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READABLE: IoEvent = IoEvent::readable();

    fn open(sessions: &mut Sessions<&'static str>, name: &'static str) -> Token {
        let vacancy = sessions.vacancy();
        let token = vacancy.token();
        sessions.insert(vacancy, name);
        token
    }

    #[test]
    fn an_event_for_a_closed_session_never_reaches_the_next_one_in_its_slot() {
        let mut sessions = Sessions::new(8);
        let old = open(&mut sessions, "old");
        assert!(sessions.note(old, READABLE));
        sessions.end(old.index);
        assert!(!sessions.note(old, READABLE), "ended in this turn");
        assert!(sessions.next_in(Lane::Light).is_none(), "queued before it ended");

        assert!(sessions.free_ended());
        let new = open(&mut sessions, "new");
        assert_eq!(new.index, old.index, "the slot is used again");
        assert!(!sessions.note(old, READABLE), "stale");
        assert!(sessions.note(new, READABLE));
        assert_eq!(sessions.next_in(Lane::Light).map(|(_, name, _)| *name), Some("new"));
    }

    #[test]
    fn a_slot_is_not_used_again_within_a_turn() {
        let mut sessions = Sessions::new(8);
        let old = open(&mut sessions, "old");
        sessions.end(old.index);
        let new = open(&mut sessions, "new");
        assert_ne!(new.index, old.index);
        assert_eq!(sessions.len(), 1);
    }

    #[test]
    fn events_of_one_session_merge_while_they_wait() {
        let mut sessions = Sessions::new(8);
        let token = open(&mut sessions, "one");
        sessions.note(token, READABLE);
        sessions.note(token, IoEvent::writable());
        let (token, _, event) = sessions.next_in(Lane::Light).expect("queued once");
        assert!(event.is_readable() && event.is_writable());
        assert!(sessions.next_in(Lane::Light).is_none());

        sessions.again(token.index, event);
        assert_eq!(sessions.queued(), 1);
    }

    #[test]
    fn a_session_that_waits_for_its_peer_hears_of_room_together_with_what_comes_next() {
        let mut sessions = Sessions::new(8);
        let token = open(&mut sessions, "one");
        let next =
            |sessions: &mut Sessions<_>| sessions.next_in(Lane::Light).map(|(.., event)| event);
        sessions.wait_for_peer(token.index);
        assert!(sessions.note(token, IoEvent::writable()), "noted");
        assert_eq!(next(&mut sessions), None);
        sessions.note(token, READABLE);
        let event = next(&mut sessions).expect("queued");
        assert!(event.is_readable() && event.is_writable());
        sessions.note(token, IoEvent::writable());
        assert!(next(&mut sessions).is_some(), "it has been called, and may have written");
    }

    #[test]
    fn a_session_that_is_called_for_another_reason_waits_for_its_peer_no_longer() {
        let mut sessions = Sessions::new(8);
        let token = open(&mut sessions, "one");
        let room = |sessions: &mut Sessions<_>| {
            sessions.next_in(Lane::Light).is_some_and(|(.., event)| event.is_writable())
        };
        sessions.wait_for_peer(token.index);
        sessions.note(token, IoEvent::writable());
        assert!(sessions.get_mut(token.index).is_some());
        assert!(room(&mut sessions), "asked to drain, for one");

        sessions.wait_for_peer(token.index);
        sessions.note(token, IoEvent::writable());
        sessions.lend(token.index, |_, session| Some(session));
        assert!(room(&mut sessions), "asked to move, and it could not");

        sessions.wait_for_peer(token.index);
        sessions.put_to_sleep(token.index);
        sessions.note(token, IoEvent::writable());
        sessions.wake_up(token.index);
        assert!(!room(&mut sessions), "acknowledged, and nothing has come");
        sessions.again(token.index, IoEvent::default());
        assert!(room(&mut sessions), "it has more to do");

        sessions.wait_for_peer(token.index);
        sessions.wake_at(token.index, Instant::now());
        sessions.note(token, IoEvent::writable());
        sessions.ring(Instant::now());
        assert!(room(&mut sessions), "its time has come");
    }

    #[test]
    fn a_session_whose_events_take_long_time_and_again_stands_in_a_queue_of_its_own() {
        let mut sessions = Sessions::new(8);
        let (bulk, small) = (open(&mut sessions, "bulk"), open(&mut sessions, "small"));
        let lane_of = |sessions: &mut Sessions<_>, token| {
            sessions.note(token, READABLE);
            let lanes = [Lane::Light, Lane::Heavy];
            let lane = lanes.into_iter().find(|lane| sessions.queued_in(*lane) > 0);
            assert!(lane.and_then(|lane| sessions.next_in(lane)).is_some());
            lane.expect("one of them")
        };
        for _ in 1..limits::HEAVY_AFTER {
            sessions.weigh(bulk.index, limits::HEAVY_EVENT);
            assert_eq!(lane_of(&mut sessions, bulk), Lane::Light, "it may be by chance");
        }
        for _ in 0..100 {
            sessions.weigh(bulk.index, limits::HEAVY_EVENT);
            assert_eq!(lane_of(&mut sessions, bulk), Lane::Heavy);
            assert_eq!(lane_of(&mut sessions, small), Lane::Light);
        }
        for _ in 0..=limits::HEAVY_AFTER {
            assert_eq!(lane_of(&mut sessions, bulk), Lane::Heavy, "some are short by chance, too");
            sessions.weigh(bulk.index, Duration::ZERO);
        }
        assert_eq!(lane_of(&mut sessions, bulk), Lane::Light);
    }

    #[test]
    fn a_queued_session_that_ends_leaves_nothing_in_the_queue_for_its_successor_in_the_slot() {
        let mut sessions = Sessions::new(8);
        let old = open(&mut sessions, "old");
        sessions.note(old, READABLE);
        sessions.end(old.index);
        assert!(!sessions.free_ended(), "not while it is queued");
        let new = open(&mut sessions, "new");
        assert_ne!(new.index, old.index);
        assert!(sessions.next_in(Lane::Light).is_none());
        assert!(sessions.free_ended());
    }

    #[test]
    fn a_session_is_woken_once_at_the_time_that_it_wanted_last() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut sessions = Sessions::new(8);
        let one = open(&mut sessions, "one");
        sessions.wake_at(one.index, after(10));
        sessions.wake_at(one.index, after(30));
        sessions.ring(after(20));
        assert!(sessions.next_in(Lane::Light).is_none(), "put off");
        sessions.wake_at(one.index, after(25));
        assert_eq!(sessions.next_alarm(), Some(after(25)));
        sessions.ring(after(40));
        let event = sessions.next_in(Lane::Light).map(|(_, _, event)| event);
        assert_eq!(event, Some(IoEvent::timeout()));
        sessions.ring(after(90));
        assert!(sessions.next_in(Lane::Light).is_none(), "once");
        assert_eq!(sessions.next_alarm(), None);
    }

    #[test]
    fn many_short_sessions_with_a_long_time_do_not_pile_up_alarms() {
        let far = Instant::now() + Duration::from_secs(600);
        let mut sessions = Sessions::new(8);
        let stays = open(&mut sessions, "stays");
        sessions.wake_at(stays.index, far);
        for short in 1..10_000 {
            let one = open(&mut sessions, "short");
            sessions.wake_at(one.index, far + Duration::from_millis(short));
            sessions.end(one.index);
            sessions.free_ended();
        }
        assert!(sessions.alarms.len() < 2 * ALARMS, "{}", sessions.alarms.len());
        sessions.ring(far);
        assert_eq!(sessions.next_in(Lane::Light).map(|(_, name, _)| *name), Some("stays"));
    }

    #[test]
    fn an_alarm_of_an_ended_session_does_not_wake_the_next_one_in_its_slot() {
        let start = Instant::now();
        let mut sessions = Sessions::new(8);
        let old = open(&mut sessions, "old");
        sessions.wake_at(old.index, start);
        sessions.end(old.index);
        sessions.free_ended();
        let new = open(&mut sessions, "new");
        assert_eq!(new.index, old.index);
        sessions.ring(start);
        assert!(sessions.next_in(Lane::Light).is_none());
    }

    #[test]
    fn the_slab_is_full_at_its_limit() {
        let mut sessions = Sessions::new(2);
        open(&mut sessions, "one");
        assert!(!sessions.is_full(0));
        let two = open(&mut sessions, "two");
        assert!(sessions.is_full(0));
        sessions.end(two.index);
        assert!(sessions.is_full(0), "until the end of the turn");
        sessions.free_ended();
        assert!(!sessions.is_full(0));
    }
}
