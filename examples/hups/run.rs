//! One run: calm load, signals under load, settling, and the report.

use std::time::{Duration, Instant};

use mio::{Events, Poll};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::channel::Connector;
use crate::connection::Transport;
use crate::load::Load;
use crate::options::Options;
use crate::process::own_processor_time;
use crate::progress::ProgressLine;
use crate::report::{End, Report, ServerReport};
use crate::server::Server;
use crate::storm::Storm;

/// Descriptors for everything that is not a connection.
const DESCRIPTORS_RESERVED: u64 = 64;
const EVENTS: usize = 1024;
/// The probe and the opening of the long connections.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_millis(50);

pub(crate) struct Run {
    poll: Poll,
    events: Events,
    load: Load,
    server: Option<Server>,
    storm: Storm,
    progress: ProgressLine,
    options: Options,
    phase: Phase,
    began: Instant,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Calm {
        until: Instant,
    },
    Storm,
    Settling {
        since: Instant,
    },
    /// The last look at the server's descriptors and memory, still under load.
    Measuring,
    Draining {
        until: Instant,
    },
}

impl Run {
    /// An error here is of the command line, or there is no server.
    pub(crate) fn new(options: Options, shows_progress: bool) -> Result<Run, String> {
        let connections_max = raise_descriptor_limit();
        let wanted = options.long_connections + usize::from(options.short_rate > 0);
        if wanted > connections_max {
            let most = connections_max.saturating_sub(1);
            return Err(format!(
                "--long-conns {} is more than the limit of descriptors allows ({most})",
                options.long_connections
            ));
        }
        let poll = Poll::new().map_err(|error| error.to_string())?;
        let registry = || poll.registry().try_clone().map_err(|error| error.to_string());
        let server = match &options.server {
            Some(named) => Some(Server::find(named, registry()?)?),
            None => None,
        };
        let now = Instant::now();
        Ok(Run {
            load: Load::new(&options, registry()?, connections_max),
            server,
            storm: Storm::new(&options),
            progress: ProgressLine::new(shows_progress),
            phase: Phase::Calm { until: now + options.calm },
            began: now,
            events: Events::with_capacity(EVENTS),
            poll,
            options,
        })
    }

    pub(crate) fn finish(mut self) -> Result<Report, String> {
        // Without it the kernel may end every wait 50 µs late.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1000));
        self.open()?;
        self.began = Instant::now();
        let processor_time = own_processor_time();
        self.load.start(self.began);
        self.phase = Phase::Calm { until: self.began + self.options.calm };
        let mut end = End::Complete;
        loop {
            let now = Instant::now();
            self.step(now)?;
            if let Some(cause) = self.cut_off(now) {
                end = cause;
                self.drain(now);
            }
            if let Phase::Draining { until } = self.phase {
                if self.load.is_idle() || now >= until {
                    break;
                }
            }
            self.wait(now)?;
        }
        self.progress.clear();
        self.load.close();
        self.storm.commands.stop();
        let elapsed = self.began.elapsed();
        let busy = own_processor_time().zip(processor_time).map(|(after, before)| after - before);
        Ok(Report {
            end,
            options: self.options,
            load: self.load,
            storm: self.storm,
            server: self.server.map(ServerReport::new),
            began: self.began,
            elapsed,
            processor_time: busy,
        })
    }

    /// Makes the long connections before anything is measured.
    fn open(&mut self) -> Result<(), String> {
        while !self.load.is_open() {
            let now = Instant::now();
            if now >= self.began + OPENING_TIMEOUT {
                return Err(format!("{} does not take --long-conns", self.options.target));
            }
            self.load.tick(now);
            self.wait(now)?;
        }
        Ok(())
    }

    fn step(&mut self, now: Instant) -> Result<(), String> {
        self.load.tick(now);
        if let Some(server) = &mut self.server {
            server.tick(now);
        }
        if let Some(at) = self.storm.tick(self.server.as_mut(), now)? {
            self.load.latency.windows.signal(at);
        }
        self.progress.tick(now, self.began, &self.load, &self.storm, self.server.as_ref());
        match (self.phase, &mut self.server) {
            (Phase::Calm { until }, _) if now >= until => {
                self.storm.start(now);
                self.phase = Phase::Storm;
            }
            (Phase::Calm { .. }, Some(server)) if self.options.hups == 0 => server.first.start(now),
            (Phase::Storm, Some(server)) => {
                let half = self.options.interval.0 / 2;
                if !server.has_pid_file() && self.storm.last_sent.is_some_and(|at| now > at + half)
                {
                    server.first.start(now);
                }
                if self.storm.is_over() {
                    self.phase = Phase::Settling { since: now };
                }
            }
            (Phase::Settling { since }, Some(server)) => {
                let settle = self.options.settle;
                if now >= since + settle && server.is_quiet(settle, now) {
                    server.last.start(now);
                    self.phase = Phase::Measuring;
                }
            }
            (Phase::Measuring, Some(server)) if server.last.is_over() => self.drain(now),
            (Phase::Storm, None) if self.storm.is_over() => {
                self.phase = Phase::Settling { since: now };
            }
            (Phase::Settling { since }, None) => {
                // Without an upgrade there is nothing to settle.
                let settle = self.options.settle;
                if self.options.hups == 0 || now >= since + settle {
                    self.drain(now);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the run cannot go on: the server is gone, or the time is up.
    fn cut_off(&mut self, now: Instant) -> Option<End> {
        if matches!(self.phase, Phase::Draining { .. }) {
            return None;
        }
        if self.server.as_mut().is_some_and(|server| server.is_gone(now)) {
            return Some(End::ServerGone);
        }
        (now >= self.began + self.options.max_run).then_some(End::MaxSeconds)
    }

    fn drain(&mut self, now: Instant) {
        self.load.stop(now);
        self.storm.stop();
        self.phase = Phase::Draining { until: now + self.options.timeout };
    }

    /// Waits until something happens or becomes due, and takes the events.
    fn wait(&mut self, now: Instant) -> Result<(), String> {
        let mut until = now + LONGEST_WAIT;
        let server = self.server.as_ref().map(Server::next_at);
        for at in [self.load.next_at(now), self.storm.next_at(now), server].into_iter().flatten() {
            until = until.min(at);
        }
        let timeout = until.saturating_duration_since(Instant::now());
        // mio waits in whole milliseconds, too coarse for thousands of requests a second.
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let registry = self.poll.registry();
        let mut selector = [PollFd::new(registry, PollFlags::IN)];
        match rustix::event::poll(&mut selector, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
        self.poll
            .poll(&mut self.events, Some(Duration::ZERO))
            .map_err(|error| error.to_string())?;
        for event in &self.events {
            let is_server = self.server.as_mut().is_some_and(|server| server.ready(event.token()));
            if !is_server {
                self.load.ready(event.token().0);
            }
        }
        Ok(())
    }
}

/// Raises the limit of descriptors as far as is allowed. Returns how many connections it is for.
fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let current = current.unwrap_or(u64::MAX).saturating_sub(DESCRIPTORS_RESERVED);
    usize::try_from(current).unwrap_or(usize::MAX)
}

/// Makes one connection, so that a wrong address is told at once.
pub(crate) fn probe(options: &Options) -> Result<(), String> {
    let name = |error: std::io::Error| format!("--addr {}: {error}", options.target);
    let began = Instant::now();
    let mut connector = Connector::new(options.target.clone(), options.tls.clone());
    let mut channel = connector.connect().map_err(name)?;
    while !channel.is_connected().map_err(name)? {
        if began.elapsed() > OPENING_TIMEOUT {
            return Err(format!("--addr {}: no connection is made", options.target));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
