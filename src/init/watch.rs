//! The init's loop: what it waits for, what it hears, and what it passes on.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::crew::{Outcome, Rollout};
#[cfg(feature = "admin")]
use super::desk::Desk;
use super::family::{Family, Part, Plan};
use super::outer::Outer;
use super::{AFTER_KILL, GRACE, Init, LATE, PASSED_ON, Workers, kin};
use crate::error::Error;
use crate::program;
use crate::sys::{self, Action, Ending};

/// What the init waits for.
pub(super) struct Watch {
    signals: SignalFd,
    pub(super) families: Vec<Family>,
    pub(super) plan: Plan,
    pub(super) workers: Workers,
    /// How many workers there are to be, if they have numbers.
    pub(super) wanted: Option<u32>,
    /// So many have been there once.
    pub(super) is_complete: bool,
    /// When the next one may leave, of several.
    pub(super) next_leave: Option<Instant>,
    pub(super) outer: Option<Outer>,
    pub(super) rollout: Option<Rollout>,
    /// An upgrade is wanted as soon as everybody is there.
    pub(super) hup_waits: bool,
    pub(super) outcome: Outcome,
    #[cfg(feature = "admin")]
    pub(super) desk: Option<Desk>,
    /// The last request to stop: whoever begins to serve after it hears it, too.
    pub(super) stop: Option<i32>,
}

impl Watch {
    pub(super) fn start(init: &Init, is_first: bool) -> Result<Self, Error> {
        let set: SigSet = PASSED_ON.into_iter().chain([Signal::SIGCHLD]).collect();
        let mut before = SigSet::empty();
        let failed = Error::system("hold signals for the init");
        // A blocked signal reaches signalfd(2) even where it would be ignored, as by process 1, or by nohup(1).
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before)).map_err(failed)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags).map_err(failed)?;
        // With SIGCHLD ignored there would be no status of anybody (waitpid(2)).
        let child = Action::of(libc::SIGCHLD).map(|child| child.keeping_status());
        child
            .and_then(|keeping| keeping.map_or(Ok(()), |keeping| keeping.put_back()))
            .map_err(Error::system("keep the status of children"))?;
        if !is_first {
            prctl::set_child_subreaper(true).map_err(Error::system("adopt orphans"))?;
        }
        let wanted = init.workers.count()?;
        let mut mask = before;
        mask.extend(LATE);
        let admin = init.clone();
        let plan = Plan {
            command: program::of_this_process()?,
            mask,
            admin: Box::new(move |number| admin.admin_of(number)),
            may_change: matches!(init.workers, Workers::In(_)),
            files: init.open_files()?,
        };
        let mut watch = Self {
            signals,
            families: Vec::new(),
            plan,
            workers: init.workers.clone(),
            wanted,
            is_complete: false,
            next_leave: None,
            outer: Outer::of_environment(),
            rollout: None,
            hup_waits: false,
            outcome: Outcome::default(),
            #[cfg(feature = "admin")]
            desk: init.open_desk()?,
            stop: None,
        };
        // Where they may leave some day, the kernel has to know them in this order: one after another.
        let at_once = if watch.plan.may_change { Some(1) } else { wanted };
        let numbers = at_once.map_or(vec![None], |count| (1..=count).map(Some).collect());
        for number in numbers {
            if let Err(error) = watch.start_family(number, Part::Founder) {
                watch.ask_to_stop(libc::SIGTERM);
                return Err(error);
            }
        }
        Ok(watch)
    }

    /// Until every family has ended; answers the status.
    pub(super) fn run(&mut self) -> Result<u8, Error> {
        loop {
            let left = self.crew_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            self.wait(left.map_or(PollTimeout::NONE, |left| {
                // A millisecond more: it counts whole ones.
                (left + Duration::from_millis(1)).try_into().unwrap_or(PollTimeout::MAX)
            }))?;
            #[cfg(feature = "admin")]
            self.hear_the_desk();
            let signals = self.take_signals();
            // Words are read before whoever has said them is reaped, and once more after it: nothing that a
            // process has said comes later than its end. Who is found dead here is reaped here, if anybody is.
            self.hear();
            self.families.iter_mut().for_each(Family::bury);
            self.reap()?;
            self.hear();
            let ended = self.how_many_have_ended();
            for family in &mut self.families {
                // One that leaves is told so whoever serves in it by then.
                let leaves = family.part() == Part::Leaver;
                family.judge(self.stop.or(leaves.then_some(libc::SIGTERM)));
            }
            for signal in signals {
                self.pass_on(signal);
            }
            self.go_on_with_the_rollout();
            self.come_and_go();
            self.say_status();
            if self.families.iter().all(|family| family.ending().is_some()) {
                let codes = self.families.iter().filter_map(Family::ending).map(code_of);
                return Ok(codes.max().unwrap_or(0));
            }
            if self.how_many_have_ended() > ended && self.stop.is_none() {
                log::error!("a worker has ended without being asked: the others are told to stop");
                self.ask_to_stop(libc::SIGTERM);
            }
        }
    }

    fn how_many_have_ended(&self) -> usize {
        self.members().filter(|family| family.ending().is_some()).count()
    }

    /// What became of an upgrade that somebody has asked the endpoint for.
    #[cfg(feature = "admin")]
    fn hear_the_desk(&mut self) {
        let Some(outcome) = self.desk.as_ref().and_then(Desk::outcome) else { return };
        self.outcome.trouble = outcome.err();
        if self.outcome.trouble.is_none() {
            self.count_anew();
        }
        self.outcome.is_awaited = true;
        if let Some(outer) = &mut self.outer {
            outer.pass_on("READY=1");
        }
    }

    /// The first worker's upgrade is that of all of them.
    fn upgrade_begins(&self) -> bool {
        #[cfg(feature = "admin")]
        if self.desk.as_ref().is_some_and(Desk::is_upgrading) {
            return true;
        }
        self.rollout.is_some_and(|rollout| rollout.is_first())
    }

    /// The one place where it sleeps.
    fn wait(&mut self, timeout: PollTimeout) -> Result<(), Error> {
        let readable = PollFlags::POLLIN;
        let mut fds = vec![PollFd::new(self.signals.as_fd(), readable)];
        let descriptors = self.families.iter().flat_map(Family::descriptors);
        fds.extend(descriptors.map(|fd: BorrowedFd<'_>| PollFd::new(fd, readable)));
        #[cfg(feature = "admin")]
        fds.extend(self.desk.iter().map(|desk| PollFd::new(desk.as_fd(), readable)));
        if let Some(socket) = self.outer.as_ref().and_then(Outer::waits) {
            fds.push(PollFd::new(socket, PollFlags::POLLOUT));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::system("wait for the server")(errno)),
        }
    }

    /// The signals that have come and are to be passed on.
    fn take_signals(&mut self) -> Vec<i32> {
        let mut taken = Vec::new();
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = info.ssi_signo as i32;
            // A terminal signals everybody in the foreground by itself (SI_KERNEL, sigaction(2)).
            let for_all = info.ssi_code == libc::SI_KERNEL;
            if for_all && is_stop(signal) {
                self.stop = Some(signal);
            }
            if signal != libc::SIGCHLD && !for_all {
                taken.push(signal);
            }
        }
        taken
    }

    fn hear(&mut self) {
        let alone = !self.is_crew();
        let begins = self.upgrade_begins();
        for (number, family) in self.families.iter_mut().enumerate() {
            family.hear(|words| {
                // Of several workers the manager hears when their upgrades begin, and that they need more time; the
                // rest is said for all of them.
                let counts = alone || words.extends || words.reloading && begins && number == 0;
                if let (true, Some(outer)) = (counts, &mut self.outer) {
                    match alone {
                        true => outer.pass_on(&words.rest),
                        // How all of them stand is said here.
                        false => outer.pass_on(&words.without_status()),
                    }
                }
            });
        }
        if let (false, Some(outer)) = (alone, &mut self.outer) {
            let members = || self.families.iter().filter(|family| family.belongs());
            let all_are_there = Some(members().count() as u32) >= self.wanted;
            if all_are_there && members().all(Family::is_ready) {
                outer.say_once("READY=1");
            }
            // All of them live, or the manager is to think that none does.
            if members().filter(|it| it.ending().is_none()).all(Family::is_well) {
                self.families.iter_mut().for_each(Family::ask_for_life);
                outer.pass_on("WATCHDOG=1");
            }
        }
        if let Some(outer) = &mut self.outer {
            outer.flush();
        }
    }

    fn reap(&mut self) -> Result<(), Error> {
        while let Some((pid, ending)) = sys::reap().map_err(Error::system("reap"))? {
            for family in &mut self.families {
                family.note_end(pid, ending);
            }
        }
        Ok(())
    }

    fn pass_on(&mut self, signal: i32) {
        let speak = self.members().all(Family::speaks);
        match signal {
            libc::SIGINT | libc::SIGQUIT | libc::SIGTERM => self.ask_to_stop(signal),
            libc::SIGHUP if self.is_crew() && (speak || self.plan.may_change) => self.upgrade_all(),
            _ => self.families.iter().for_each(|family| family.signal(signal)),
        }
    }

    fn ask_to_stop(&mut self, signal: i32) {
        (self.stop, self.rollout) = (Some(signal), None);
        #[cfg(feature = "admin")]
        if let Some(desk) = &self.desk {
            desk.settled(Some("the service is shutting down".into()));
        }
        if let (true, Some(outer)) = (self.wanted.is_some(), &mut self.outer) {
            outer.say_once("STOPPING=1");
        }
        self.families.iter().for_each(|family| family.signal(signal));
    }

    /// No server is left, and this is not process 1: what the server has left ends before it does.
    pub(super) fn end_the_rest(&mut self) -> Result<(), Error> {
        let (mut told, mut deadline) = (Vec::new(), Instant::now() + GRACE);
        let mut signal = libc::SIGTERM;
        loop {
            self.reap()?;
            // Whoever was a child of those that end is one of this process then.
            let children = kin::children();
            if children.is_empty() {
                return Ok(());
            }
            for child in children {
                if !told.contains(&child) {
                    log::debug!("process {child} is left: {}", sys::signal_name(signal));
                    let _ = kin::signal_child(child, signal);
                    told.push(child);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.take_signals().iter().any(|signal| is_stop(*signal)) {
                if signal == libc::SIGKILL {
                    return Ok(());
                }
                signal = libc::SIGKILL;
                (told, deadline) = (Vec::new(), Instant::now() + AFTER_KILL);
                continue;
            }
            self.families.clear();
            self.outer = None;
            #[cfg(feature = "admin")]
            {
                self.desk = None;
            }
            self.wait(PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
        }
    }
}

fn is_stop(signal: i32) -> bool {
    matches!(signal, libc::SIGINT | libc::SIGQUIT | libc::SIGTERM)
}

/// The status that a shell would have for it.
fn code_of(ending: Ending) -> u8 {
    match ending {
        Ending::Exited(status) => u8::try_from(status & 0xff).unwrap_or(u8::MAX),
        Ending::Killed(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
    }
}
