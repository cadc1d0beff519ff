//! Deadlines: set by actions, turned into events when they have passed.
//!
//! No clock is read here. Time is an argument, read once a turn by the loop.

use std::time::{Duration, Instant};

use crate::limits;
use crate::machine::Timer;

/// At most one deadline for each [`Timer`].
#[derive(Clone, Debug, Default)]
pub struct Timers {
    running: [Option<Running>; Timer::ALL.len()],
}

/// A timer that runs.
#[derive(Clone, Copy, Debug)]
struct Running {
    deadline: Instant,
    /// How long it was to run.
    whole: Duration,
    renewed: u32,
}

impl Timers {
    /// Has a timer run for that long from `now` on, in place of the time that it may have had. A
    /// deadline that overflows the clock is none.
    pub fn arm(&mut self, timer: Timer, now: Instant, whole: Duration) {
        self.running[timer as usize] =
            now.checked_add(whole).map(|deadline| Running { deadline, whole, renewed: 0 });
    }

    /// Takes a timer's deadline away.
    pub fn disarm(&mut self, timer: Timer) {
        self.running[timer as usize] = None;
    }

    /// Takes every deadline away.
    pub fn disarm_all(&mut self) {
        *self = Self::default();
    }

    /// Gives every timer that runs its whole time again, because nothing could happen for a while.
    ///
    /// On a machine that stands still again and again this would have no end: after
    /// [`RENEWALS`](limits::RENEWALS) times a timer is only put off by how long it `stood_still`.
    pub fn renew(&mut self, now: Instant, stood_still: Duration) {
        for running in self.running.iter_mut().flatten() {
            let deadline = match running.renewed < limits::RENEWALS {
                true => now.checked_add(running.whole),
                false => running.deadline.checked_add(stood_still),
            };
            running.renewed = running.renewed.saturating_add(1);
            running.deadline = deadline.unwrap_or(running.deadline);
        }
    }

    /// Whether a timer runs at the end of which another process may be killed, or given up, or sessions
    /// cut that could not move.
    #[must_use]
    pub fn judges(&self) -> bool {
        [Timer::Upgrade, Timer::Takeover, Timer::Status, Timer::Departure, Timer::Drain]
            .into_iter()
            .any(|timer| self.running[timer as usize].is_some())
    }

    /// When the loop has to wake up at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.running.iter().flatten().map(|running| running.deadline).min()
    }

    /// Takes the earliest of the deadlines that have passed. Call it until it answers `None`: what
    /// one expiry causes may disarm the next.
    pub fn expire(&mut self, now: Instant) -> Option<Timer> {
        let due = |timer: &Timer| {
            self.running[*timer as usize].map(|running| running.deadline).filter(|at| *at <= now)
        };
        let timer = Timer::ALL.into_iter().filter(|t| due(t).is_some()).min_by_key(due)?;
        self.disarm(timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn expired_timers_come_out_in_the_order_of_their_deadlines_and_once() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.arm(Timer::Upgrade, start, 30 * MS);
        timers.arm(Timer::Drain, start, 10 * MS);
        timers.arm(Timer::Probation, start, 50 * MS);

        assert_eq!(timers.next_deadline(), Some(start + 10 * MS));
        assert_eq!(timers.expire(start + 9 * MS), None);
        assert_eq!(timers.expire(start + 30 * MS), Some(Timer::Drain));
        assert_eq!(timers.expire(start + 30 * MS), Some(Timer::Upgrade));
        assert_eq!(timers.expire(start + 30 * MS), None);
        assert_eq!(timers.next_deadline(), Some(start + 50 * MS));
    }

    #[test]
    fn a_disarmed_timer_never_expires_and_an_armed_one_can_be_moved() {
        let now = Instant::now();
        let mut timers = Timers::default();
        timers.arm(Timer::Status, now, Duration::ZERO);
        timers.disarm(Timer::Status);
        assert_eq!(timers.expire(now), None);

        timers.arm(Timer::Drain, now, Duration::ZERO);
        timers.arm(Timer::Drain, now, 1000 * MS);
        assert_eq!(timers.expire(now), None);
        timers.disarm_all();
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn a_deadline_beyond_all_time_takes_the_place_of_the_one_before() {
        let now = Instant::now();
        let mut timers = Timers::default();
        timers.arm(Timer::Drain, now, MS);
        timers.arm(Timer::Drain, now, Duration::MAX);
        assert_eq!(timers.expire(now + 1000 * MS), None);
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn after_a_pause_a_timer_has_its_whole_time_again_but_not_for_ever() {
        let mut now = Instant::now();
        let mut timers = Timers::default();
        timers.arm(Timer::Takeover, now, 100 * MS);
        for _ in 0..limits::RENEWALS {
            now += 1000 * MS;
            timers.renew(now, 1000 * MS);
            assert_eq!(timers.next_deadline(), Some(now + 100 * MS));
        }
        now += 60 * MS;
        timers.renew(now, 50 * MS);
        assert_eq!(timers.next_deadline(), Some(now + 90 * MS), "put off only");
        assert!(timers.judges());
        assert_eq!(timers.expire(now + 90 * MS), Some(Timer::Takeover));
        assert!(!timers.judges());
    }
}
