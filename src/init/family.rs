//! A server: all the generations of it, and who of them serves.

use std::ffi::{CString, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::sys::signal::SigSet;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

use super::words::{self, Words};
use super::{kin, outer};
use crate::error::Error;
use crate::shared;
use crate::sys::{self, Command, Ending, Name, Spawned};
use crate::wire::{ADMIN_VARIABLE, INIT_VARIABLE, MAY_LEAVE, WORKER_VARIABLE};

/// How many datagrams are read before signals are looked at again.
const MOST_WORDS: usize = 64;

/// The operation in an error.
const START: &str = "start the server";

/// A server and its successors.
pub(super) struct Family {
    number: Option<u32>,
    part: Part,
    /// Where they say who serves.
    socket: OwnedFd,
    /// The oldest first. Those that are dead are kept only as long as they are the one that serves.
    generations: Vec<Generation>,
    /// The one that serves, or has served last.
    main: u32,
    /// The one that has heard the signals so far.
    signalled: Option<u32>,
    speaks: bool,
    is_ready: bool,
    /// It has given a sign of life since this was asked last.
    is_well: bool,
    /// One of them has said RELOADING, and none READY since.
    is_upgrading: bool,
    /// An upgrade was asked for that has not ended.
    awaits_upgrade: bool,
    fell_back: bool,
    /// How the last one of them has ended that this process has reaped.
    reaped: Option<Ending>,
    ending: Option<Ending>,
}

/// How servers are started.
pub(super) struct Plan {
    pub(super) command: Command,
    /// The signals that are blocked in them.
    pub(super) mask: SigSet,
    /// Where the worker of a number has its admin endpoint, if its init asks it.
    pub(super) admin: Box<dyn Fn(u32) -> Option<String>>,
    /// There may be more workers some day, or fewer.
    pub(super) may_change: bool,
    /// What all servers share, by name.
    pub(super) files: Vec<(String, OwnedFd)>,
}

/// What a family is among several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It is there from the start.
    Founder,
    /// It has come later, and is not ready yet.
    Newcomer,
    /// It has come later, and serves.
    Member,
    /// It comes to its end, and the others go on.
    Leaver,
}

/// A process that serves, has served, or will.
struct Generation {
    pid: u32,
    /// `None` once it is dead.
    process: Option<OwnedFd>,
    /// `None` also if somebody else has reaped it.
    ending: Option<Ending>,
}

impl Family {
    /// Starts a server, with these signals blocked.
    pub(super) fn start(number: Option<u32>, plan: &Plan, part: Part) -> Result<Self, Error> {
        let (command, mask) = (&plan.command, plan.mask);
        let (socket, name) = listen().map_err(Error::system("make a socket to hear the server"))?;
        let mut environment = vec![format!("{}={name}", outer::VARIABLE)];
        let may_leave = if plan.may_change { MAY_LEAVE } else { "" };
        environment.extend(number.map(|it| format!("{WORKER_VARIABLE}={it}{may_leave}")));
        let admin = number.and_then(|number| (plan.admin)(number));
        environment.extend(admin.map(|address| format!("{ADMIN_VARIABLE}={address}")));
        // The watchdog is this process's, which passes the server's signs of life on (sd_watchdog_enabled(3)).
        let own = |pid| pid == std::process::id().to_string();
        if std::env::var("WATCHDOG_PID").map_or(true, own) {
            let watchdog = std::env::var("WATCHDOG_USEC");
            environment.extend(watchdog.map(|period| format!("WATCHDOG_USEC={period}")));
        }
        let replaced = [outer::VARIABLE, WORKER_VARIABLE, INIT_VARIABLE, ADMIN_VARIABLE];
        let is_replaced = |assignment: &CString| {
            let name = assignment.to_bytes().split(|byte| *byte == b'=').next();
            replaced.iter().any(|replaced| name == Some(replaced.as_bytes()))
        };
        let kept = command.environment.iter().filter(|assignment| !is_replaced(assignment));
        let texts = environment.into_iter().map(CString::new);
        let texts = texts.collect::<Result<Vec<_>, _>>().map_err(Error::system(START))?;
        let command = Command {
            executable: command.executable.clone(),
            arguments: command.arguments.clone(),
            environment: kept.cloned().chain(texts).collect(),
            directory: command.directory.clone(),
        };
        let variable = CString::new(format!("{INIT_VARIABLE}={}", std::process::id()))
            .map_err(Error::system(START))?;
        let shared = shared::assignment(&plan.files).map_err(Error::system(START))?;
        let variables: Vec<_> = [Some(variable), shared].into_iter().flatten().collect();
        let variables: Vec<_> = variables.iter().map(CString::as_c_str).collect();
        let files: Vec<_> = plan.files.iter().map(|(_, fd)| fd.as_fd()).collect();
        let spawned = sys::spawn_with_mask(&command, &variables, &files, None, |_| mask);
        let Spawned { pid, process, .. } = spawned.map_err(|error| {
            let program = command.executable.to_string_lossy();
            let reason = format!("{} {program}: {}", error.step, error.source);
            Error::system(START)(io::Error::new(error.source.kind(), reason))
        })?;
        let family = Self {
            number,
            part,
            socket,
            generations: vec![Generation { pid, process: Some(process), ending: None }],
            main: pid,
            signalled: Some(pid),
            speaks: false,
            is_ready: false,
            is_well: false,
            is_upgrading: false,
            awaits_upgrade: false,
            fell_back: false,
            reaped: None,
            ending: None,
        };
        log::debug!("started {family}");
        Ok(family)
    }

    /// What to wait for: words, and the end of those whose parent is another process.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let living = self.generations.iter().filter_map(|one| one.process.as_ref());
        [&self.socket].into_iter().chain(living).map(AsFd::as_fd)
    }

    /// Reads what was said; `pass_on` gets what is for an outer manager.
    pub(super) fn hear(&mut self, mut pass_on: impl FnMut(&Words)) {
        let mut datagram = [0; words::BYTES];
        for _ in 0..MOST_WORDS {
            match sys::receive(&self.socket, &mut datagram) {
                Ok(received) => {
                    let words = Words::parse(&datagram[..received.length]);
                    if let Some(sender) = received.sender.filter(|pid| self.counts(*pid)) {
                        self.take(sender, &words);
                        pass_on(&words);
                    }
                    // The descriptors are closed here, at the end: that is the answer to BARRIER.
                }
                // Too long, or empty: it was taken out, and is nobody's word.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Whose words count: those of a generation; and of another descendant as long as a new generation may begin.
    fn counts(&self, sender: u32) -> bool {
        let is_known = self.generations.iter().any(|one| one.pid == sender);
        let may_be_new = !self.speaks || self.is_upgrading || !self.is_alive(self.main);
        is_known || may_be_new && kin::is_descendant(sender)
    }

    fn take(&mut self, sender: u32, words: &Words) {
        if words.ready {
            let serves = !self.speaks || !self.is_alive(self.main);
            self.know(sender);
            if serves {
                self.follow(sender);
            }
        }
        self.speaks |= words.ready || words.reloading || words.main.is_some();
        self.is_well |= words.watchdog;
        self.is_upgrading = words.reloading || self.is_upgrading && !words.ready;
        if let Some(main) = words.main {
            if self.know(main) {
                self.follow(main);
            }
        }
        if words.ready {
            (self.is_ready, self.awaits_upgrade) = (true, false);
        }
    }

    /// Has a process be one of the generations; answers whether it is.
    fn know(&mut self, pid: u32) -> bool {
        if self.generations.iter().any(|one| one.pid == pid) {
            return true;
        }
        // In this order: an id that was given to another process in between is not a descendant's.
        let Ok(process) = sys::process_descriptor(pid) else { return false };
        if !kin::is_descendant(pid) {
            return false;
        }
        self.generations.push(Generation { pid, process: Some(process), ending: None });
        true
    }

    fn follow(&mut self, pid: u32) {
        if self.main != pid {
            let place = |pid| self.generations.iter().position(|one| one.pid == pid);
            self.fell_back |= place(pid) < place(self.main);
            self.main = pid;
            log::info!("{self} serves now");
        }
    }

    /// A child of this process has ended, and is reaped.
    pub(super) fn note_end(&mut self, pid: u32, ending: Ending) {
        if let Some(one) = self.generations.iter_mut().find(|one| one.pid == pid) {
            one.ending.get_or_insert(ending);
            one.process = None;
            self.reaped = Some(ending);
        }
    }

    /// Finds out who is there and whether that is anybody. `stop` is what the server was asked for last, if it was to
    /// stop: a successor that was on its way then has not heard of it.
    pub(super) fn judge(&mut self, stop: Option<i32>) {
        if self.ending.is_some() {
            return;
        }
        if self.target().is_none() {
            self.look_for_an_heir();
        }
        let target = self.target().map(|one| one.pid);
        if target != self.signalled {
            self.signalled = target;
            if let Some(stop) = stop {
                self.signal(stop);
            }
        }
        let main = self.main;
        self.generations.retain(|one| one.process.is_some() || one.pid == main);
        if target.is_none() {
            self.end();
        }
    }

    /// Finds those that are dead, whoever their parent is.
    pub(super) fn bury(&mut self) {
        for one in &mut self.generations {
            let is_dead =
                |process: &OwnedFd| sys::is_dead_by(process.as_fd(), std::time::Instant::now());
            if one.process.as_ref().is_some_and(is_dead) {
                one.process = None;
            }
        }
    }

    /// Whoever has served is dead, and none of those that are known has said that it serves. If an upgrade was under
    /// way, the successor goes on alone. One that never says who serves may have ended because it was replaced.
    fn look_for_an_heir(&mut self) {
        let ending = self.generations.iter().find(|one| one.pid == self.main);
        let ending = ending.and_then(|one| one.ending);
        let replaced = !self.speaks && ending == Some(Ending::Exited(0));
        if !replaced && !self.is_upgrading {
            return;
        }
        let known: Vec<_> = self.generations.iter().map(|one| one.pid).collect();
        let Some(heir) = kin::left_by(&known) else { return };
        if self.know(heir) && replaced {
            self.follow(heir);
        }
    }

    pub(super) fn is_alive(&self, pid: u32) -> bool {
        self.generations.iter().any(|one| one.pid == pid && one.process.is_some())
    }

    /// Who hears signals: whoever serves, or else whoever may serve next.
    fn target(&self) -> Option<&Generation> {
        let mut alive = self.generations.iter().rev().filter(|one| one.process.is_some());
        alive.clone().find(|one| one.pid == self.main).or_else(|| alive.next())
    }

    /// Who serves.
    pub(super) fn serving(&self) -> Option<u32> {
        self.is_alive(self.main).then_some(self.main)
    }

    pub(super) fn signal(&self, signal: i32) {
        let Some(Generation { pid, process: Some(process), .. }) = self.target() else { return };
        match sys::send_signal(process.as_fd(), signal) {
            Ok(()) => log::debug!("{} is passed on to process {pid}", sys::signal_name(signal)),
            // ESRCH: it is dead, which is heard of next.
            Err(error) => {
                log::warn!(
                    "{} cannot be passed on to process {pid}: {error}",
                    sys::signal_name(signal)
                );
            }
        }
    }

    fn end(&mut self) {
        let one = self.generations.iter().find(|one| one.pid == self.main);
        // If its predecessor has reaped it, and did not serve again, both were told to stop: the predecessor's status
        // is as good.
        let ending = one.and_then(|one| one.ending).or(self.reaped).unwrap_or(Ending::Exited(1));
        self.ending = Some(ending);
        match ending {
            Ending::Exited(0) => log::info!("{self} has ended"),
            Ending::Exited(status) => log::error!("{self} has ended with status {status}"),
            Ending::Killed(signal) => {
                log::error!("{self} was killed by {}", sys::signal_name(signal));
            }
        }
    }

    /// How the last of them that has served has ended, once none is left.
    pub(super) fn ending(&self) -> Option<Ending> {
        self.ending
    }

    pub(super) fn number(&self) -> Option<u32> {
        self.number
    }

    pub(super) fn part(&self) -> Part {
        self.part
    }

    /// Whether it counts as one of those that serve together.
    pub(super) fn belongs(&self) -> bool {
        matches!(self.part, Part::Founder | Part::Member)
    }

    pub(super) fn join(&mut self) {
        self.part = Part::Member;
    }

    /// It comes to its end, and the others go on.
    pub(super) fn leave(&mut self) {
        self.part = Part::Leaver;
        self.signal(nix::libc::SIGTERM);
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    pub(super) fn is_well(&self) -> bool {
        self.is_well
    }

    pub(super) fn ask_for_life(&mut self) {
        self.is_well = false;
    }

    pub(super) fn is_upgrading(&self) -> bool {
        self.is_upgrading
    }

    /// Whether one of them has ever said who serves.
    pub(super) fn speaks(&self) -> bool {
        self.speaks
    }

    pub(super) fn await_upgrade(&mut self) {
        (self.awaits_upgrade, self.fell_back) = (true, false);
    }

    pub(super) fn upgrade_is_over(&self) -> bool {
        !self.awaits_upgrade || self.ending.is_some()
    }

    /// Whether an older generation has begun to serve again since this was asked last.
    pub(super) fn fell_back(&mut self) -> bool {
        std::mem::take(&mut self.fell_back)
    }
}

/// What the log calls it.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            None => write!(f, "the server (process {})", self.main),
            Some(number) => write!(f, "worker {number} (process {})", self.main),
        }
    }
}

/// A socket with a name that the kernel has chosen (autobind, unix(7)). No file has it, so that there is nothing to
/// remove, and nothing to write to.
fn listen() -> io::Result<(OwnedFd, String)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    // Before it has a name: the kernel notes who has sent a datagram only if somebody wants to know.
    setsockopt(&socket, sockopt::PassCred, &true)?;
    let nameless = Name::new(&outer::family()).ok_or(io::ErrorKind::InvalidInput)?;
    sys::bind(socket.as_fd(), &nameless)?;
    let name = sys::name_of(socket.as_fd())?;
    let chosen = name.as_bytes().get(3..).unwrap_or_default();
    let name = OsString::from_vec([b"@", chosen].concat());
    let name = name.into_string().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((socket, name))
}
