//! The first process of a container, or of a service: it starts the server, and is none.
//!
//! `family` is a server with all its generations, `words` what one of them says, `kin` what the kernel knows of
//! relations, and `outer` the manager that this process has itself. `desk` answers
//! whoever asks for all workers, and `sum` adds up what they have counted.

#[cfg(feature = "admin")]
mod desk;
mod family;
mod kin;
mod outer;
#[cfg(feature = "admin")]
mod sum;
mod words;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::Error;
use crate::limits;
use crate::program;
use crate::sys::{self, Action, Ending, Spawned};
#[cfg(feature = "admin")]
use desk::Desk;
use family::{Family, Part, Plan};
use outer::Outer;

/// Says to a process that it is a server below an init, and which process that is.
const VARIABLE: &str = "TABLECLOTH_INIT";

/// The greatest number of workers.
const MOST_WORKERS: u32 = 1024;

/// How long what is left may take to end, once no server is left. As process 1 there is no such time: when it ends,
/// the kernel kills the rest (pid_namespaces(7)).
const GRACE: Duration = Duration::from_secs(5);

/// How long the kernel may take to end what was killed.
const AFTER_KILL: Duration = Duration::from_secs(1);

/// What is passed on to the server.
const PASSED_ON: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// What is blocked in a server until it has its handlers, so that none of these ends it on its first way.
/// [`Server::new`](crate::Server::new) lets them through.
const LATE: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// Has process 1 of a container stay as a small init, and a process of its own be the server: the same as
/// `Init::default().run()`.
///
/// A server that is process 1 itself cannot be replaced, because the container ends with it. Call this at the
/// top of `main`, before anything else:
///
/// ```no_run
/// use std::process::ExitCode;
///
/// fn main() -> Result<ExitCode, tablecloth::Error> {
///     if let Some(status) = tablecloth::init()? {
///         return Ok(status);
///     }
///     // This process is the server, as before.
///     # Ok(ExitCode::SUCCESS)
/// }
/// ```
///
/// # Errors
///
/// See [`Init::run`].
pub fn init() -> Result<Option<ExitCode>, Error> {
    Init::default().run()
}

/// A small process that stays: it starts the server, knows who of its generations serves, passes signals on, reaps
/// orphans, and ends with the server's status.
///
/// - **Who serves** it knows by the words that services say to systemd (sd_notify(3)): the server gets a
///   `NOTIFY_SOCKET`, and `MAINPID` names the generation that serves. Only words of the server and its descendants
///   count. A server that says none is followed by what the kernel knows: when it exits with status 0 and leaves a
///   successor that it has spawned, the successor serves. For that there has to be a `/proc`, and a signal that
///   comes in the moment in which such a server exits is lost with it.
/// - **Signals**: HUP, INT, QUIT, TERM, USR1, USR2 and WINCH go to the generation that serves. One that comes before
///   the server has its handlers waits for them (not the last three). What a terminal sends is not passed on,
///   because it goes to all processes in the foreground.
/// - **The end**: when no generation is left that serves or could take over again, it ends with the status of the
///   last one that has served, or with 128 and the signal that killed it. It starts nothing again: that is the
///   orchestrator's business. As process 1 it leaves the rest to the kernel, which kills it. Otherwise it sends TERM
///   to all that its server has left, waits 5 seconds for them, and kills them then.
/// - **An outer manager**: what the server says goes on to the `NOTIFY_SOCKET` that this process was given, except who
///   serves: for the manager this process is the main one and stays it, and a process id means nothing beyond its pid
///   namespace. BARRIER is answered here, once the words before it were passed on. Descriptors to be stored
///   (FDSTORE) are not passed on.
///
/// It has one thread, a second one with an [admin endpoint](Init::admin), and makes no system call while nothing
/// happens. It logs how the server ends, and who serves:
/// install a logger without a thread before [`Init::run`] to see that.
#[derive(Clone, Debug, Default)]
pub struct Init {
    always: bool,
    workers: Workers,
    #[cfg(feature = "admin")]
    admin: Option<String>,
}

/// How many servers there are to be.
#[derive(Clone, Debug, Default)]
enum Workers {
    /// One, without a number.
    #[default]
    One,
    So(u32),
    /// So many as a file says.
    In(PathBuf),
}

impl Workers {
    /// The number, as it is now. `None` if there is one server and no number.
    fn count(&self) -> Result<Option<u32>, Error> {
        match self {
            Self::One => Ok(None),
            Self::So(count) => Ok(Some(*count)),
            Self::In(path) => {
                let failed = |reason: String| {
                    let reason = format!("{}: {reason}", path.display());
                    Error::system("read the number of workers")(io::Error::other(reason))
                };
                let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
                let number = text.trim().parse().ok().filter(|it| (1..=MOST_WORKERS).contains(it));
                let expected = || failed(format!("expected a number from 1 to {MOST_WORKERS}"));
                number.map(Some).ok_or_else(expected)
            }
        }
    }
}

impl Init {
    /// Whether a process that is not process 1 becomes the init, too. It adopts all orphans of its server then
    /// (PR_SET_CHILD_SUBREAPER, prctl(2)). No.
    #[must_use]
    pub fn always(self, always: bool) -> Self {
        Self { always, ..self }
    }

    /// That many servers, each with generations of its own, for as many processors; each knows its [number](crate::worker).
    /// Their listeners have to share their addresses ([`SocketOptions::reuse_port`](crate::SocketOptions)), and each
    /// needs a pid file of its own. One, without a number.
    ///
    /// HUP upgrades them one after another, and the first upgrade that fails or is rolled back stops the rest. The
    /// other signals go to all. When one has ended without being asked the others are told to stop. The status is the
    /// greatest of all.
    #[must_use]
    pub fn workers(self, workers: u32) -> Self {
        let workers = if workers > 1 { Workers::So(workers) } else { Workers::One };
        Self { workers, ..self }
    }

    /// As many as a file says, which is read at the start and with each HUP: a number from 1 to 1024. A file that
    /// says something else fails the start, and later the HUP.
    ///
    /// They start one after another. When HUP has upgraded those that are there, new ones are started, one after another,
    /// and one that fails is not tried again before the next HUP. Or the last ones leave: the kernel gives new
    /// connections to those that stay (SO_ATTACH_REUSEPORT_CBPF, socket(7)); a listener stays open until nobody
    /// has come to it for 0.3 seconds, 3 seconds at the most, so that nobody is refused; its sessions come to their
    /// end as in a shutdown.
    #[must_use]
    pub fn workers_in(self, file: impl Into<PathBuf>) -> Self {
        Self { workers: Workers::In(file.into()), ..self }
    }

    /// Where the init of several [workers](Init::workers) has an [admin
    /// endpoint](crate::Upgrader#the-admin-endpoint), which answers for all of them. None; a server that is alone has
    /// its own.
    ///
    /// - `/status` tells how each worker stands, and `/metrics` adds up what they have counted, gauges of the
    ///   application included. The generation and the two times are told for each, with a label `worker`. `/ready`
    ///   says so when all are ready, and `/metrics` is 503 while one of them does not answer, so that no sum goes back.
    /// - `POST /upgrade` upgrades them one after another, until one fails; the last line says which of them run what.
    ///   A check is the first one's. A shutdown is everybody's.
    /// - Each worker has an endpoint of its own, whatever its [`Config::admin`](field@crate::Config::admin) is: worker
    ///   2 of `unix:/run/server/admin` has `unix:/run/server/admin.2`. Where the init has an internet address, they have
    ///   abstract names that the init alone knows.
    #[cfg(feature = "admin")]
    #[must_use]
    pub fn admin(self, address: impl Into<String>) -> Self {
        Self { admin: Some(address.into()), ..self }
    }

    /// Whether [`Init::run`] stays in this process: for a program that has something to do for it, such as to install a
    /// logger.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        // A variable of an outer container says nothing to process 1, which nobody here has started.
        is_process_one() || self.always && std::env::var_os(VARIABLE).is_none()
    }

    /// Where a worker has its admin endpoint, if its init has one.
    fn admin_of(&self, number: u32) -> Option<String> {
        #[cfg(feature = "admin")]
        return self.admin.as_deref().map(|asked| desk::of_worker(asked, number));
        #[cfg(not(feature = "admin"))]
        {
            let _ = number;
            None
        }
    }

    #[cfg(feature = "admin")]
    fn open_desk(&self) -> Result<Option<Desk>, Error> {
        let (Some(asked), Some(count)) = (&self.admin, self.workers.count()?) else {
            return Ok(None);
        };
        Desk::open(asked, count).map(Some)
    }

    /// In a process that is to be the init it returns when that ends, with the status to leave with. In the server it
    /// returns `None`, at once; and so it does if no init is wanted, because this is not process 1.
    ///
    /// Call it at the top of `main`, before the program starts threads or opens anything: the server is the same
    /// program with the same arguments, started once more.
    ///
    /// # Errors
    ///
    /// If the system refuses what an init needs, or the server cannot be started.
    pub fn run(self) -> Result<Option<ExitCode>, Error> {
        if !self.is_wanted() {
            return Ok(None);
        }
        let is_first = is_process_one();
        let mut watch = Watch::start(&self, is_first)?;
        let code = watch.run()?;
        if !is_first {
            watch.end_the_rest()?;
        }
        Ok(Some(ExitCode::from(code)))
    }
}

/// What the init waits for.
struct Watch {
    signals: SignalFd,
    families: Vec<Family>,
    plan: Plan,
    workers: Workers,
    /// How many workers there are to be, if they have numbers.
    wanted: Option<u32>,
    /// So many have been there once.
    is_complete: bool,
    /// When the next one may leave, of several.
    next_leave: Option<Instant>,
    outer: Option<Outer>,
    rollout: Option<Rollout>,
    #[cfg(feature = "admin")]
    desk: Option<Desk>,
    /// The last request to stop: whoever begins to serve after it hears it, too.
    stop: Option<i32>,
}

/// One upgrade of all families, one after another.
struct Rollout {
    /// The family whose turn it is.
    at: usize,
    /// Who served there before.
    from: Option<u32>,
    /// It was asked for once more.
    again: bool,
}

impl Watch {
    fn start(init: &Init, is_first: bool) -> Result<Self, Error> {
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

    fn start_family(&mut self, number: Option<u32>, part: Part) -> Result<(), Error> {
        self.families.push(Family::start(number, &self.plan, part)?);
        Ok(())
    }

    /// The servers have numbers, and there may be several.
    fn is_crew(&self) -> bool {
        self.wanted.is_some()
    }

    /// Those that serve together, and are neither on their way here nor away.
    fn members(&self) -> impl Iterator<Item = &Family> {
        self.families.iter().filter(|family| family.belongs())
    }

    /// Until every family has ended; answers the status.
    fn run(&mut self) -> Result<u8, Error> {
        loop {
            let left = self.next_leave.map(|at| at.saturating_duration_since(Instant::now()));
            self.wait(left.map_or(PollTimeout::NONE, |left| {
                // A millisecond more: it counts whole ones.
                (left + Duration::from_millis(1)).try_into().unwrap_or(PollTimeout::MAX)
            }))?;
            #[cfg(feature = "admin")]
            if self.desk.as_ref().is_some_and(Desk::is_done) {
                self.count_anew();
            }
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

    /// How many there are to be, as it is now. Answers whether that is known.
    fn count_anew(&mut self) -> bool {
        let count = self.workers.count();
        match &count {
            Ok(count) => self.wanted = *count,
            Err(error) => log::error!("nothing is changed: {error}"),
        }
        count.is_ok()
    }

    fn how_many_have_ended(&self) -> usize {
        self.members().filter(|family| family.ending().is_some()).count()
    }

    /// Workers come until there are as many as are wanted, one after another, and those that are too many leave.
    fn come_and_go(&mut self) {
        if self.stop.is_some() || !self.plan.may_change {
            return;
        }
        self.next_leave = self.next_leave.filter(|at| Instant::now() < *at);
        // Whoever has left is forgotten, and whoever could not come, too.
        let gone = |it: &Family| it.ending().is_some() && !it.belongs();
        if self.families.iter().any(|it| gone(it) && it.part() == Part::Newcomer) {
            log::error!(
                "a new worker could not come: the others go on, and the next HUP tries it again"
            );
            // Somebody may have asked for even fewer meanwhile.
            let there = self.members().count() as u32;
            self.wanted = self.wanted.map(|wanted| wanted.min(there));
        }
        self.families.retain(|family| !gone(family));
        for family in self.families.iter_mut().filter(|it| it.part() == Part::Newcomer) {
            if !family.is_ready() {
                return;
            }
            family.join();
            log::info!("{family} has come");
            #[cfg(feature = "admin")]
            if let (Some(desk), Some(number)) = (&self.desk, family.number()) {
                desk.comes(number);
            }
        }
        if self.rollout.is_some() || self.members().any(|family| !family.is_ready()) {
            return;
        }
        let Some(wanted) = self.wanted else { return };
        let there = self.members().count() as u32;
        if there > wanted {
            // The last one first, and the next one when the kernel gives nobody to that one any more: it does so for one
            // after another.
            if self.next_leave.is_some() && self.families.iter().any(|it| it.part() == Part::Leaver)
            {
                return;
            }
            let settled = Instant::now() + limits::LEAVING + GRACE / 5;
            self.next_leave = (there - 1 > wanted).then_some(settled);
            let last = self.families.iter_mut().rfind(|family| family.belongs());
            if let Some(family) = last {
                log::info!("{family} leaves");
                #[cfg(feature = "admin")]
                if let (Some(desk), Some(number)) = (&self.desk, family.number()) {
                    desk.leaves(number);
                }
                family.leave();
            }
        } else if there < wanted {
            let next = there + 1;
            // One of that number that is still on its way out has the files of that number.
            if self.families.iter().any(|family| family.number() == Some(next)) {
                return;
            }
            // At the start a worker that fails is a mistake of everybody's.
            let part = if self.is_complete { Part::Newcomer } else { Part::Founder };
            if let Err(error) = self.start_family(Some(next), part) {
                log::error!("{error}");
                self.wanted = Some(there);
            }
        } else {
            self.is_complete = true;
        }
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
            if signal != libc::SIGCHLD && !for_all {
                taken.push(signal);
            }
        }
        taken
    }

    fn hear(&mut self) {
        let alone = !self.is_crew();
        let begins = self.rollout.as_ref().is_some_and(|rollout| rollout.at == 0);
        for (number, family) in self.families.iter_mut().enumerate() {
            family.hear(|words| {
                // Of several workers the manager hears when their upgrades begin, and that they need more time; the
                // rest is said for all of them.
                let counts = alone || words.extends || words.reloading && begins && number == 0;
                if let (true, Some(outer)) = (counts, &mut self.outer) {
                    outer.pass_on(&words.rest);
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
            if members().all(Family::is_well) {
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
            libc::SIGHUP if self.is_crew() && speak => {
                if !self.count_anew() {
                    return;
                }
                match &mut self.rollout {
                    Some(rollout) => {
                        rollout.again = true;
                        // A worker that has ended in the moment of the last one has not heard it.
                        let family = &self.families[rollout.at];
                        if !family.is_upgrading() {
                            family.signal(signal);
                        }
                    }
                    None => self.upgrade_family(0),
                }
            }
            _ => self.families.iter().for_each(|family| family.signal(signal)),
        }
    }

    fn ask_to_stop(&mut self, signal: i32) {
        (self.stop, self.rollout) = (Some(signal), None);
        if let (true, Some(outer)) = (self.wanted.is_some(), &mut self.outer) {
            outer.say_once("STOPPING=1");
        }
        self.families.iter().for_each(|family| family.signal(signal));
    }

    fn upgrade_family(&mut self, at: usize) {
        let family = &mut self.families[at];
        let from = family.serving();
        family.await_upgrade();
        family.signal(libc::SIGHUP);
        self.rollout = Some(Rollout { at, from, again: false });
    }

    /// The next worker's turn comes when the one before it serves in a new process.
    fn go_on_with_the_rollout(&mut self) {
        let fell_back = self.families.iter_mut().map(Family::fell_back).fold(false, |a, b| a | b);
        let Some(Rollout { at, from, again }) = self.rollout else { return };
        let family = &self.families[at];
        let (done, serving) = (family.upgrade_is_over(), family.serving());
        if !fell_back && !done {
            return;
        }
        self.rollout = None;
        let failed = fell_back || serving.is_none() || serving == from;
        let next = at + 1;
        // Those that are too many are not upgraded any more, and those that come are new.
        let count = self.members().count().min(self.wanted.map_or(1, |wanted| wanted as usize));
        if !failed && next < count {
            self.upgrade_family(next);
            if let Some(rollout) = &mut self.rollout {
                rollout.again = again;
            }
            return;
        }
        let who = self.members().map(Family::to_string).collect::<Vec<_>>().join(", ");
        match failed {
            true => {
                self.wanted = Some(self.members().count() as u32);
                log::error!("worker {next} was not upgraded, and those after it are not: {who}")
            }
            false => log::info!("all workers are upgraded: {who}"),
        }
        if let Some(outer) = &mut self.outer {
            outer.pass_on("READY=1");
        }
        if again {
            self.upgrade_family(0);
        }
    }

    /// No server is left, and this is not process 1: what the server has left ends before it does.
    fn end_the_rest(&mut self) -> Result<(), Error> {
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

fn is_process_one() -> bool {
    std::process::id() == 1
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
