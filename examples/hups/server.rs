//! The server as it is replaced: which process serves, how long upgrades take, what is left.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, test_kill_process};

use crate::options::Named;
use crate::process::{self, Footprint, Program, Zombies};

/// Above any that the load uses.
const TOKEN_BASE: usize = 1 << 32;
const PID_FILE_PAUSE: Duration = Duration::from_millis(1);
const SCAN_PAUSE: Duration = Duration::from_millis(100);
/// How long no process may be found before the server counts as gone.
const GONE_AFTER: Duration = Duration::from_secs(1);
const SAMPLES: u32 = 5;
const SAMPLE_PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Server {
    registry: Registry,
    pid_file: Option<PathBuf>,
    program: Program,
    pub(crate) serving: Pid,
    /// When the serving process got its first signal.
    signalled: Option<Instant>,
    /// Processes that serve or have served, until they end.
    watched: Vec<Watched>,
    next_token: usize,
    /// The serving process has ended, so long after its first signal if it got one.
    ended_early: Option<Option<Duration>>,
    seen: BTreeSet<i32>,
    at_last_signal: Option<BTreeSet<i32>>,
    read_at: Instant,
    scanned_at: Instant,
    changed_at: Instant,
    alive_at: Instant,

    pub(crate) processes_at_start: usize,
    pub(crate) upgrades: u32,
    pub(crate) upgrades_after_last_signal: u32,
    pub(crate) ready_times: Vec<Duration>,
    pub(crate) end_times: Vec<Duration>,
    pub(crate) first: Sampling,
    pub(crate) last: Sampling,
}

struct Watched {
    pid: Pid,
    pidfd: OwnedFd,
    token: usize,
    signalled: Option<Instant>,
}

impl Server {
    pub(crate) fn find(named: &Named, registry: Registry) -> Result<Server, String> {
        let (serving, pid_file) = match named {
            Named::Pid(pid) => (*pid, None),
            Named::PidFile(path) => (read_pid(path)?, Some(path.clone())),
        };
        let number = serving.as_raw_pid();
        test_kill_process(serving)
            .map_err(|error| format!("no signal can be sent to process {number}: {error}"))?;
        let program = Program::of(number)
            .map_err(|error| format!("/proc/{number} cannot be read: {error}"))?;
        let now = Instant::now();
        let mut server = Server {
            registry,
            pid_file,
            program,
            serving,
            signalled: None,
            watched: Vec::new(),
            next_token: TOKEN_BASE,
            ended_early: None,
            seen: BTreeSet::new(),
            at_last_signal: None,
            processes_at_start: 0,
            read_at: now,
            scanned_at: now,
            changed_at: now,
            alive_at: now,
            upgrades: 0,
            upgrades_after_last_signal: 0,
            ready_times: Vec::new(),
            end_times: Vec::new(),
            first: Sampling::default(),
            last: Sampling::default(),
        };
        server.watch(serving);
        server.processes_at_start = server.scan(now).len();
        Ok(server)
    }

    /// Whether new processes show in a pid file, and not only in what /proc lists.
    pub(crate) fn has_pid_file(&self) -> bool {
        self.pid_file.is_some()
    }

    pub(crate) fn next_at(&self) -> Instant {
        let pause = if self.has_pid_file() { PID_FILE_PAUSE } else { SAMPLE_PAUSE };
        self.read_at + pause
    }

    pub(crate) fn tick(&mut self, now: Instant) {
        if now < self.next_at() {
            return;
        }
        self.read_at = now;
        self.follow_pid_file();
        self.first.tick(self.serving, now);
        self.last.tick(self.serving, now);
    }

    /// Takes the event of a process that ended. Returns false if the token is not of this kind.
    pub(crate) fn ready(&mut self, token: Token) -> bool {
        if token.0 < TOKEN_BASE {
            return false;
        }
        if let Some(index) = self.watched.iter().position(|watched| watched.token == token.0) {
            let ended = self.watched.swap_remove(index);
            let now = Instant::now();
            let _ = self.registry.deregister(&mut SourceFd(&ended.pidfd.as_raw_fd()));
            self.changed_at = now;
            // The pid file may name the successor, unread as yet.
            self.follow_pid_file();
            let time = ended.signalled.map(|at| now - at);
            if ended.pid == self.serving {
                // It ended before the pid file named its successor.
                self.ended_early = Some(time);
            } else {
                self.upgraded(time, now);
            }
        }
        true
    }

    /// Sends the signal to the process that the pid file names now.
    pub(crate) fn signal(&mut self, signal: Signal, is_last: bool) -> Result<Instant, Errno> {
        let present = self.present(is_last);
        if process::has_ended(self.serving.as_raw_pid()) {
            // A signal to a process that was not waited for would be lost without an error.
            return Err(Errno::SRCH);
        }
        let at = Instant::now();
        kill_process(self.serving, signal)?;
        self.told(at, present);
        Ok(at)
    }

    /// Somebody else is about to tell the serving process to replace itself.
    pub(crate) fn expect_upgrade(&mut self, is_last: bool) -> Instant {
        let present = self.present(is_last);
        let at = Instant::now();
        self.told(at, present);
        at
    }

    /// Which processes are there, if the upgrade to come is the last one: whatever starts after
    /// this look counts as started after the upgrade was asked for.
    fn present(&mut self, is_last: bool) -> Option<BTreeSet<i32>> {
        let mut present = is_last.then(|| self.scan(Instant::now()));
        self.follow_pid_file();
        if let Some(pids) = &mut present {
            pids.extend(process::children(self.serving.as_raw_pid()));
        }
        present
    }

    /// The serving process was told at `at` to replace itself.
    fn told(&mut self, at: Instant, present: Option<BTreeSet<i32>>) {
        self.at_last_signal = present;
        self.changed_at = at;
        self.signalled.get_or_insert(at);
        let serving = self.serving;
        if let Some(watched) = self.watched.iter_mut().find(|watched| watched.pid == serving) {
            watched.signalled.get_or_insert(at);
        }
    }

    /// Whether for so long nothing has changed and no more processes are there than at the start.
    pub(crate) fn is_quiet(&mut self, settle: Duration, now: Instant) -> bool {
        if now < self.scanned_at + SCAN_PAUSE {
            return false;
        }
        let left = self.scan(now).len();
        if left > self.processes_at_start {
            self.changed_at = now;
        }
        now >= self.changed_at + settle
    }

    /// Whether the server has ended without a successor.
    pub(crate) fn is_gone(&mut self, now: Instant) -> bool {
        if self.is_watched(self.serving) {
            self.alive_at = now;
        } else if now >= self.scanned_at + SCAN_PAUSE {
            self.scan(now);
        }
        now >= self.alive_at + GONE_AFTER
    }

    pub(crate) fn processes_left(&mut self) -> usize {
        self.scan(Instant::now()).len()
    }

    pub(crate) fn zombies(&self) -> Zombies {
        self.program.zombies(&self.seen, self.serving.as_raw_pid())
    }

    fn scan(&mut self, now: Instant) -> BTreeSet<i32> {
        self.scanned_at = now;
        let found = if self.has_pid_file() {
            self.program.processes()
        } else {
            // Workers of a lasting process often change their command line.
            process::family(self.serving.as_raw_pid())
        };
        if !found.is_empty() {
            self.alive_at = now;
        }
        self.seen.extend(&found);
        found
    }

    fn follow_pid_file(&mut self) {
        // A file that is missing or half written is read again in a moment.
        let Some(Ok(pid)) = self.pid_file.as_deref().map(read_pid) else {
            return;
        };
        if pid == self.serving {
            return;
        }
        let now = Instant::now();
        self.ready_times.extend(self.signalled.take().map(|at| now - at));
        self.upgrades += 1;
        if self.at_last_signal.as_ref().is_some_and(|pids| !pids.contains(&pid.as_raw_pid())) {
            self.upgrades_after_last_signal += 1;
        }
        self.serving = pid;
        self.changed_at = now;
        self.watch(pid);
        if let Some(time) = self.ended_early.take() {
            self.upgraded(time, now);
        }
    }

    /// The old process has ended and the new one is named.
    fn upgraded(&mut self, time_to_end: Option<Duration>, now: Instant) {
        self.end_times.extend(time_to_end);
        self.first.start(now);
    }

    fn watch(&mut self, pid: Pid) {
        self.seen.insert(pid.as_raw_pid());
        // It may have ended already; then there is nothing to wait for.
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return;
        };
        let token = self.next_token;
        self.next_token += 1;
        let number = pidfd.as_raw_fd();
        let mut source = SourceFd(&number);
        if self.registry.register(&mut source, Token(token), Interest::READABLE).is_ok() {
            self.watched.push(Watched { pid, pidfd, token, signalled: None });
        }
    }

    fn is_watched(&self, pid: Pid) -> bool {
        self.watched.iter().any(|watched| watched.pid == pid)
    }
}

/// The least of a few looks at the serving process: under load the numbers go up and down.
#[derive(Default)]
pub(crate) struct Sampling {
    left: u32,
    next: Option<Instant>,
    pub(crate) least: Option<Footprint>,
}

impl Sampling {
    /// Does nothing from the second time on.
    pub(crate) fn start(&mut self, now: Instant) {
        if self.next.is_none() {
            self.next = Some(now);
            self.left = SAMPLES;
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.next.is_some() && self.left == 0
    }

    fn tick(&mut self, pid: Pid, now: Instant) {
        if self.left == 0 || self.next.is_none_or(|next| next > now) {
            return;
        }
        self.left -= 1;
        self.next = Some(now + SAMPLE_PAUSE);
        if let Some(footprint) = Footprint::of(pid.as_raw_pid()) {
            self.least = Some(self.least.map_or(footprint, |least| least.least(footprint)));
        }
    }
}

fn read_pid(path: &Path) -> Result<Pid, String> {
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("--pid-file {name}: {error}"))?;
    let number = text.trim().parse().ok().filter(|number| *number > 0);
    number.and_then(Pid::from_raw).ok_or_else(|| format!("--pid-file {name} holds no process id"))
}
