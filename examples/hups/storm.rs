//! The upgrades: when the next is asked for, and what became of those before.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Signal;

use crate::commands::Commands;
use crate::options::Options;
use crate::payload::mix;
use crate::server::Server;
use crate::trigger::Trigger;

/// The process that a pid file names may be gone just before the file names the next one.
const TRIES_MAX: u32 = 20;
const TRY_PAUSE: Duration = Duration::from_millis(1);
/// How often it is looked at whether a command has ended.
const COMMAND_PAUSE: Duration = Duration::from_millis(1);

pub(crate) struct Storm {
    trigger: Trigger,
    hups: u32,
    interval: (Duration, Duration),
    random: u64,
    next: Option<Instant>,
    tries: u32,
    /// Upgrades asked for.
    pub(crate) sent: u32,
    /// Times that the process was gone and the pid file was read again.
    pub(crate) retries: u32,
    /// Signals given up: there was no process to send them to.
    pub(crate) undelivered: u32,
    pub(crate) last_sent: Option<Instant>,
    pub(crate) commands: Commands,
}

impl Storm {
    pub(crate) fn new(options: &Options) -> Storm {
        Storm {
            trigger: options.trigger.clone(),
            hups: options.hups,
            interval: options.interval,
            random: mix(options.seed),
            next: None,
            tries: 0,
            sent: 0,
            retries: 0,
            undelivered: 0,
            last_sent: None,
            commands: Commands::default(),
        }
    }

    pub(crate) fn start(&mut self, now: Instant) {
        self.next = (self.hups > 0).then_some(now);
    }

    pub(crate) fn stop(&mut self) {
        self.next = None;
    }

    pub(crate) fn next_at(&self, now: Instant) -> Option<Instant> {
        match self.commands.is_under_way() {
            true => Some(now + COMMAND_PAUSE),
            false => self.next,
        }
    }

    /// Whether all have been asked for, and every command has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.next.is_none() && !self.commands.is_under_way()
    }

    /// Asks for the upgrade that is due, if one is. Returns when that was.
    pub(crate) fn tick(
        &mut self,
        server: Option<&mut Server>,
        now: Instant,
    ) -> Result<Option<Instant>, String> {
        self.commands.collect();
        if self.next.is_none_or(|next| next > now) || self.commands.is_under_way() {
            return Ok(None);
        }
        let is_last = self.sent + self.undelivered + 1 == self.hups;
        let at = match (self.trigger.clone(), server) {
            (Trigger::Signal(signal, _), Some(server)) => {
                self.send_signal(server, signal, is_last, now)?
            }
            (Trigger::Signal(..), None) => return Err("no process is known".to_string()),
            (Trigger::Command(command), server) => {
                let at = expect_upgrade(server, is_last);
                self.commands.run(&command)?;
                Some(at)
            }
            (Trigger::Admin(address), server) => {
                let at = expect_upgrade(server, is_last);
                self.commands.ask(&address)?;
                Some(at)
            }
        };
        if at.is_some() {
            self.sent += 1;
            self.last_sent = at;
        }
        if self.tries == 0 {
            let left = self.sent + self.undelivered < self.hups;
            self.next = left.then(|| now + self.draw());
        }
        Ok(at)
    }

    fn send_signal(
        &mut self,
        server: &mut Server,
        signal: Signal,
        is_last: bool,
        now: Instant,
    ) -> Result<Option<Instant>, String> {
        let outcome = server.signal(signal, is_last);
        if outcome == Err(Errno::SRCH) && self.tries < TRIES_MAX {
            self.tries += 1;
            self.retries += 1;
            self.next = Some(now + TRY_PAUSE);
            return Ok(None);
        }
        self.tries = 0;
        match outcome {
            Ok(at) => Ok(Some(at)),
            Err(Errno::SRCH) => {
                self.undelivered += 1;
                Ok(None)
            }
            Err(error) => Err(format!("the signal could not be sent: {error}")),
        }
    }

    fn draw(&mut self) -> Duration {
        let (least, most) = self.interval;
        let width_us = (most - least).as_micros() as u64;
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        least + Duration::from_micros(mix(self.random) % (width_us + 1))
    }
}

/// The server, if one is known, is about to be told by another way than a signal.
fn expect_upgrade(server: Option<&mut Server>, is_last: bool) -> Instant {
    match server {
        Some(server) => server.expect_upgrade(is_last),
        None => Instant::now(),
    }
}
