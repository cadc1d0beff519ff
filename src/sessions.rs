//! The sessions: a bounded slab with generations, and the queue of those that have something to do.
//!
//! A slot is freed at the end of the turn in which its session ended, so that an event harvested
//! for the closed session never meets a stranger in its slot; the generation in the token catches
//! what comes later still.

use std::collections::VecDeque;

use slab::Slab;

use crate::io_event::IoEvent;
use crate::token::{Kind, Token};

/// Every session of this process.
pub(crate) struct Sessions<S> {
    slots: Slab<Slot<S>>,
    /// The slots that have an event pending, each once.
    queue: VecDeque<u32>,
    /// The slots whose session ended in this turn.
    ended: Vec<u32>,
    generation: u32,
    live: usize,
    limit: usize,
}

struct Slot<S> {
    generation: u32,
    pending: IoEvent,
    queued: bool,
    /// `None` once the session has ended, until the end of the turn.
    session: Option<S>,
}

/// A slot that a session can be put into.
pub(crate) struct Vacancy {
    index: u32,
    generation: u32,
}

impl Vacancy {
    pub(crate) fn token(&self) -> mio::Token {
        Token::new(Kind::Session, self.generation, self.index).pack()
    }
}

impl<S> Sessions<S> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            slots: Slab::new(),
            queue: VecDeque::new(),
            ended: Vec::new(),
            generation: 0,
            live: 0,
            limit,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn is_full(&self) -> bool {
        self.slots.len() >= self.limit
    }

    /// How many sessions wait for their event to be dispatched, at most.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
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
        let pending = IoEvent::default();
        self.slots.insert(Slot { generation, pending, queued: false, session: Some(session) });
        self.live += 1;
    }

    /// Notes an event for its session. `false` if it is stale.
    pub(crate) fn note(&mut self, token: Token, event: IoEvent) -> bool {
        let Some(slot) = self.slots.get_mut(token.index as usize) else { return false };
        if slot.generation != token.generation || slot.session.is_none() {
            return false;
        }
        slot.pending.merge(event);
        if !slot.queued {
            slot.queued = true;
            self.queue.push_back(token.index);
        }
        true
    }

    /// The next session that has an event, and the event; it is off the queue then.
    pub(crate) fn next_queued(&mut self) -> Option<(u32, &mut S, IoEvent)> {
        loop {
            let index = self.queue.pop_front()?;
            let Some(slot) = self.slots.get_mut(index as usize) else { continue };
            slot.queued = false;
            // Ended while it was queued: its slot is still there.
            if slot.session.is_none() {
                continue;
            }
            let slot = self.slots.get_mut(index as usize)?;
            let event = std::mem::take(&mut slot.pending);
            return Some((index, slot.session.as_mut()?, event));
        }
    }

    /// Puts a session that has more to do at the end of the queue.
    pub(crate) fn again(&mut self, index: u32, event: IoEvent) {
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.pending.merge(event);
            if !slot.queued {
                slot.queued = true;
                self.queue.push_back(index);
            }
        }
    }

    /// The session in the first occupied slot at or behind `from`.
    pub(crate) fn next_from(&mut self, from: u32) -> Option<(u32, &mut S)> {
        let end = self.slots.capacity();
        let index = (from as usize..end)
            .find(|index| self.slots.get(*index).is_some_and(|slot| slot.session.is_some()))?;
        Some((index as u32, self.slots.get_mut(index)?.session.as_mut()?))
    }

    /// Ends a session: it is dropped now, its slot is freed at the end of the turn.
    pub(crate) fn end(&mut self, index: u32) {
        let session = self.slots.get_mut(index as usize).and_then(|slot| slot.session.take());
        if session.is_some() {
            self.live -= 1;
            self.ended.push(index);
        }
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
        let token = Token::unpack(vacancy.token()).expect("one of ours");
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
        assert!(sessions.next_queued().is_none(), "queued before it ended");

        assert!(sessions.free_ended());
        let new = open(&mut sessions, "new");
        assert_eq!(new.index, old.index, "the slot is used again");
        assert!(!sessions.note(old, READABLE), "stale");
        assert!(sessions.note(new, READABLE));
        assert_eq!(sessions.next_queued().map(|(_, name, _)| *name), Some("new"));
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
        let (index, _, event) = sessions.next_queued().expect("queued once");
        assert!(event.is_readable() && event.is_writable());
        assert!(sessions.next_queued().is_none());

        sessions.again(index, event);
        assert_eq!(sessions.queued(), 1);
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
        assert!(sessions.next_queued().is_none());
        assert!(sessions.free_ended());
    }

    #[test]
    fn the_slab_is_full_at_its_limit() {
        let mut sessions = Sessions::new(2);
        open(&mut sessions, "one");
        assert!(!sessions.is_full());
        let two = open(&mut sessions, "two");
        assert!(sessions.is_full());
        sessions.end(two.index);
        assert!(sessions.is_full(), "until the end of the turn");
        sessions.free_ended();
        assert!(!sessions.is_full());
    }
}
