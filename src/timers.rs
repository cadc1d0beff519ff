//! Deadlines: set by actions, turned into events when they have passed.
//!
//! No clock is read here. Time is an argument, read once a turn by the loop.

use std::time::Instant;

use crate::machine::Timer;

/// At most one deadline for each [`Timer`].
#[derive(Clone, Debug, Default)]
pub struct Timers {
    deadlines: [Option<Instant>; Timer::ALL.len()],
}

impl Timers {
    /// Sets a timer's deadline, in place of the one it may have had.
    pub fn arm(&mut self, timer: Timer, deadline: Instant) {
        self.deadlines[timer as usize] = Some(deadline);
    }

    /// Takes a timer's deadline away.
    pub fn disarm(&mut self, timer: Timer) {
        self.deadlines[timer as usize] = None;
    }

    /// Takes every deadline away.
    pub fn disarm_all(&mut self) {
        *self = Self::default();
    }

    /// When the loop has to wake up at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.iter().flatten().min().copied()
    }

    /// Takes the earliest of the deadlines that have passed. Call it until it answers `None`: what
    /// one expiry causes may disarm the next.
    pub fn expire(&mut self, now: Instant) -> Option<Timer> {
        let due = |timer: &Timer| self.deadlines[*timer as usize].filter(|at| *at <= now);
        let timer = Timer::ALL.into_iter().filter(|t| due(t).is_some()).min_by_key(due)?;
        self.disarm(timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn expired_timers_come_out_in_the_order_of_their_deadlines_and_once() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        timers.arm(Timer::Upgrade, after(30));
        timers.arm(Timer::Drain, after(10));
        timers.arm(Timer::Probation, after(50));

        assert_eq!(timers.next_deadline(), Some(after(10)));
        assert_eq!(timers.expire(after(9)), None);
        assert_eq!(timers.expire(after(30)), Some(Timer::Drain));
        assert_eq!(timers.expire(after(30)), Some(Timer::Upgrade));
        assert_eq!(timers.expire(after(30)), None);
        assert_eq!(timers.next_deadline(), Some(after(50)));
    }

    #[test]
    fn a_disarmed_timer_never_expires_and_an_armed_one_can_be_moved() {
        let now = Instant::now();
        let mut timers = Timers::default();
        timers.arm(Timer::Status, now);
        timers.disarm(Timer::Status);
        assert_eq!(timers.expire(now), None);

        timers.arm(Timer::Drain, now);
        timers.arm(Timer::Drain, now + Duration::from_secs(1));
        assert_eq!(timers.expire(now), None);
        timers.disarm_all();
        assert_eq!(timers.next_deadline(), None);
    }
}
