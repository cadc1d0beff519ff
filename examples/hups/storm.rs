//! The signals: when the next is due, and what became of those before.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::options::Options;
use crate::payload::mix;
use crate::server::Server;

/// The process that a pid file names may be gone just before the file names the next one.
const TRIES_MAX: u32 = 20;
const TRY_PAUSE: Duration = Duration::from_millis(1);

pub(crate) struct Storm {
    hups: u32,
    interval: (Duration, Duration),
    random: u64,
    next: Option<Instant>,
    tries: u32,
    pub(crate) sent: u32,
    /// Times that the process was gone and the pid file was read again.
    pub(crate) retries: u32,
    /// Signals given up: there was no process to send them to.
    pub(crate) undelivered: u32,
    pub(crate) last_sent: Option<Instant>,
}

impl Storm {
    pub(crate) fn new(options: &Options) -> Storm {
        Storm {
            hups: options.hups,
            interval: options.interval,
            random: mix(options.seed),
            next: None,
            tries: 0,
            sent: 0,
            retries: 0,
            undelivered: 0,
            last_sent: None,
        }
    }

    pub(crate) fn start(&mut self, now: Instant) {
        self.next = (self.hups > 0).then_some(now);
    }

    pub(crate) fn stop(&mut self) {
        self.next = None;
    }

    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.next
    }

    pub(crate) fn is_over(&self) -> bool {
        self.next.is_none()
    }

    /// Sends the signal that is due, if one is. Returns when it was sent.
    pub(crate) fn tick(
        &mut self,
        server: &mut Server,
        now: Instant,
    ) -> Result<Option<Instant>, String> {
        if self.next.is_none_or(|next| next > now) {
            return Ok(None);
        }
        let is_last = self.sent + self.undelivered + 1 == self.hups;
        let outcome = server.signal(is_last);
        match outcome {
            Err(Errno::SRCH) if self.tries < TRIES_MAX => {
                self.tries += 1;
                self.retries += 1;
                self.next = Some(now + TRY_PAUSE);
                return Ok(None);
            }
            Err(Errno::SRCH) => self.undelivered += 1,
            Err(error) => return Err(format!("the signal could not be sent: {error}")),
            Ok(at) => {
                self.sent += 1;
                self.last_sent = Some(at);
            }
        }
        self.tries = 0;
        self.next = (self.sent + self.undelivered < self.hups).then(|| now + self.draw());
        Ok(outcome.ok())
    }

    fn draw(&mut self) -> Duration {
        let (least, most) = self.interval;
        let width_us = (most - least).as_micros() as u64;
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        least + Duration::from_micros(mix(self.random) % (width_us + 1))
    }
}
