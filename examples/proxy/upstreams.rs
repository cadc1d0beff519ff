//! Where a route leads, and whose turn it is.
//!
//! An upstream that has failed is left alone for a while, which grows with each failure in a row. When
//! that is over, one session tries it, and the others follow if it was connected to. Nobody is refused
//! because of a pause: where all are left alone, the one whose pause ends first is tried.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tablecloth::Address;

use super::counters::Counters;

/// How long an upstream is left alone after its first failure in a row, and at the most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// The largest weight.
pub(crate) const WEIGHT: u16 = 100;

/// Which of several upstreams a session gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Policy {
    /// One after the other, each as often as its weight says.
    #[default]
    RoundRobin,
    /// The one with the fewest sessions for its weight.
    Fewest,
}

/// Where a session may lead.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) text: Rc<str>,
    /// `None` for one that only its session knows: it is connected, and no other one will be.
    pub(crate) address: Option<Address>,
    /// Its place among the upstreams of its route.
    place: u16,
    weight: u16,
    /// It is used if no other one can be.
    is_backup: bool,
    failures: Cell<u32>,
    /// When its pause is over.
    pause: Cell<Option<Instant>>,
    /// A session tries whether it is there again.
    is_tried: Cell<bool>,
    pub(crate) counters: Counters,
}

impl Upstream {
    pub(crate) fn new(text: &str, address: Option<Address>, weight: u16, is_backup: bool) -> Self {
        Self {
            text: text.into(),
            address,
            place: 0,
            weight,
            is_backup,
            failures: Cell::new(0),
            pause: Cell::new(None),
            is_tried: Cell::new(false),
            counters: Counters::default(),
        }
    }

    pub(crate) fn place(&self) -> u16 {
        self.place
    }

    /// It was connected to, in that time.
    pub(crate) fn connected(&self, took: Duration) {
        self.failures.set(0);
        self.pause.set(None);
        self.is_tried.set(false);
        self.counters.connected(took);
    }

    /// It could not be connected to.
    pub(crate) fn failed(&self, now: Instant) {
        self.counters.failed();
        let failures = self.failures.get();
        let pause = PAUSE.saturating_mul(1 << failures.min(8)).min(LONGEST_PAUSE);
        self.failures.set(failures.saturating_add(1));
        self.pause.set(now.checked_add(pause));
        self.is_tried.set(false);
    }

    /// The session that was connecting to it has ended, or moved, before there was an answer.
    pub(crate) fn was_left(&self) {
        self.is_tried.set(false);
    }

    fn is_available(&self, now: Instant) -> bool {
        match self.pause.get() {
            None => true,
            Some(pause) => pause <= now && !self.is_tried.get(),
        }
    }
}

/// The upstreams of a route.
#[derive(Debug, Default)]
pub(crate) struct Upstreams {
    members: Vec<Rc<Upstream>>,
    /// Whose turn follows whose: each place as often as its weight says, and evenly spread; and the same
    /// for those that are used if no other one can be.
    order: Vec<u16>,
    backups: Vec<u16>,
    /// How many turns there were, of all that there are.
    turn: Cell<u32>,
    policy: Policy,
}

impl Upstreams {
    pub(crate) fn new(mut members: Vec<Upstream>, policy: Policy) -> Self {
        for (place, member) in (0..).zip(&mut members) {
            member.place = place;
        }
        let members: Vec<_> = members.into_iter().map(Rc::new).collect();
        let (order, backups) = (in_turn(&members, false), in_turn(&members, true));
        Self { members, order, backups, turn: Cell::new(0), policy }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rc<Upstream>> {
        self.members.iter()
    }

    /// The turn, by which another process goes on where this one was.
    pub(crate) fn turn(&self) -> u32 {
        self.turn.get()
    }

    pub(crate) fn set_turn(&self, turn: u32) {
        self.turn.set(turn);
    }

    /// Whether there are turns to be taken.
    pub(crate) fn has_turns(&self) -> bool {
        self.members.len() > 1
    }

    /// The next upstream that is not among those `tried` already.
    pub(crate) fn next(&self, tried: &[u16], now: Instant) -> Option<&Rc<Upstream>> {
        let is_new = |upstream: &Rc<Upstream>| !tried.contains(&upstream.place);
        let chosen = self
            .choose(&self.order, |it| is_new(it) && it.is_available(now))
            .or_else(|| self.choose(&self.backups, |it| is_new(it) && it.is_available(now)))
            .or_else(|| {
                let left = self.members.iter().filter(|it| is_new(it));
                left.min_by_key(|it| (it.is_backup, it.pause.get()))
            })?;
        chosen.is_tried.set(chosen.pause.get().is_some());
        Some(chosen)
    }

    /// Whether another one can be connected to, for whoever waits for one that does not answer.
    pub(crate) fn has_another(&self, than: &Upstream, tried: &[u16], now: Instant) -> bool {
        let is_new = |it: &Upstream| it.place != than.place && !tried.contains(&it.place);
        self.members.iter().any(|it| is_new(it) && it.is_available(now))
    }

    fn choose(
        &self,
        order: &[u16],
        is_possible: impl Fn(&Rc<Upstream>) -> bool,
    ) -> Option<&Rc<Upstream>> {
        let start = self.turn.get() as usize % order.len().max(1);
        let places = (0..order.len()).map(|step| (step, order[(start + step) % order.len()]));
        let mut possible = places
            .map(|(step, place)| (step, &self.members[usize::from(place)]))
            .filter(|(_, it)| is_possible(it));
        let (step, chosen) = match self.policy {
            Policy::RoundRobin => possible.next()?,
            // For each of its sessions an upstream is as far on as others with more weight for several.
            Policy::Fewest => possible.min_by_key(|(step, it)| {
                let sessions = u64::from(it.counters.now()) * u64::from(WEIGHT) * 1000;
                (sessions / u64::from(it.weight), *step)
            })?,
        };
        self.turn.set(((start + step + 1) % order.len().max(1)) as u32);
        Some(chosen)
    }
}

/// Everybody's turns, as evenly spread as they can be: who has got the least for his weight is next.
fn in_turn(members: &[Rc<Upstream>], backups: bool) -> Vec<u16> {
    let of_them = || members.iter().filter(|it| it.is_backup == backups);
    let all = of_them().map(|it| u32::from(it.weight)).sum::<u32>();
    let common = of_them().map(|it| u32::from(it.weight)).fold(0, greatest_common_divisor).max(1);
    let mut credits: Vec<_> = of_them().map(|it| (0_i64, it)).collect();
    let mut order = Vec::new();
    for _ in 0..all / common {
        for (credit, it) in &mut credits {
            *credit += i64::from(it.weight);
        }
        // The first of several with as much.
        let best = credits.iter_mut().rev().max_by_key(|(credit, _)| *credit);
        let Some((credit, it)) = best else { break };
        *credit -= i64::from(all);
        order.push(it.place);
    }
    order
}

fn greatest_common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
