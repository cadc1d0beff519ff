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

use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::Error;
use crate::program;
use crate::sys::{self, Action, Ending, Spawned};
#[cfg(feature = "admin")]
use desk::Desk;
use family::Family;
use outer::Outer;

/// Says to a process that it is a server below an init, and which process that is.
const VARIABLE: &str = "TABLECLOTH_INIT";

/// Says to a server which of several it is.
const WORKER: &str = "TABLECLOTH_WORKER";

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

/// Which of several servers below an [`Init`] this process is, by [`Init::workers`]: 1 is the first. `None` if there
/// is one only.
#[must_use]
pub fn worker() -> Option<u32> {
    std::env::var(WORKER).ok()?.parse().ok().filter(|number| *number > 0)
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
    workers: Option<u32>,
    #[cfg(feature = "admin")]
    admin: Option<String>,
}

impl Init {
    /// Whether a process that is not process 1 becomes the init, too. It adopts all orphans of its server then
    /// (PR_SET_CHILD_SUBREAPER, prctl(2)). No.
    #[must_use]
    pub fn always(self, always: bool) -> Self {
        Self { always, ..self }
    }

    /// That many servers, each with generations of its own, for as many processors; each knows its [number](worker).
    /// Their listeners have to share their addresses ([`SocketOptions::reuse_port`](crate::SocketOptions)), and each
    /// needs a pid file of its own. One, without a number.
    ///
    /// HUP upgrades them one after another, and the first upgrade that fails or is rolled back stops the rest. The
    /// other signals go to all. When one has ended without being asked the others are told to stop. The status is the
    /// greatest of all.
    #[must_use]
    pub fn workers(self, workers: u32) -> Self {
        Self { workers: (workers > 1).then_some(workers), ..self }
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
        let workers = self.workers.map(|workers| (1..=workers).filter_map(|it| self.admin_of(it)));
        let (Some(asked), Some(workers)) = (&self.admin, workers) else { return Ok(None) };
        Desk::open(asked, workers.collect()).map(Some)
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
    outer: Option<Outer>,
    rollout: Option<Rollout>,
    #[cfg(feature = "admin")]
    _desk: Option<Desk>,
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
        let mut watch = Self {
            signals,
            families: Vec::new(),
            outer: Outer::of_environment(),
            rollout: None,
            #[cfg(feature = "admin")]
            _desk: init.open_desk()?,
            stop: None,
        };
        let command = program::of_this_process()?;
        let numbers: Vec<_> = match init.workers {
            None => vec![None],
            Some(workers) => (1..=workers).map(Some).collect(),
        };
        let mut mask = before;
        mask.extend(LATE);
        for number in numbers {
            let admin = number.and_then(|number| init.admin_of(number));
            match Family::start(&command, number, admin, mask) {
                Ok(family) => watch.families.push(family),
                Err(error) => {
                    watch.ask_to_stop(libc::SIGTERM);
                    return Err(error);
                }
            }
        }
        Ok(watch)
    }

    /// Until every family has ended; answers the status.
    fn run(&mut self) -> Result<u8, Error> {
        loop {
            self.wait(PollTimeout::NONE)?;
            let signals = self.take_signals();
            // Words are read before whoever has said them is reaped, and once more after it: nothing that a
            // process has said comes later than its end. Who is found dead here is reaped here, if anybody is.
            self.hear();
            self.families.iter_mut().for_each(Family::bury);
            self.reap()?;
            self.hear();
            let ended = self.families.iter().filter(|family| family.ending().is_some()).count();
            for family in &mut self.families {
                family.judge(self.stop);
            }
            for signal in signals {
                self.pass_on(signal);
            }
            self.go_on_with_the_rollout();
            if self.families.iter().all(|family| family.ending().is_some()) {
                let codes = self.families.iter().filter_map(Family::ending).map(code_of);
                return Ok(codes.max().unwrap_or(0));
            }
            let now = self.families.iter().filter(|family| family.ending().is_some()).count();
            if now > ended && self.stop.is_none() {
                log::error!("a worker has ended without being asked: the others are told to stop");
                self.ask_to_stop(libc::SIGTERM);
            }
        }
    }

    /// The one place where it sleeps.
    fn wait(&mut self, timeout: PollTimeout) -> Result<(), Error> {
        let readable = PollFlags::POLLIN;
        let mut fds = vec![PollFd::new(self.signals.as_fd(), readable)];
        let descriptors = self.families.iter().flat_map(Family::descriptors);
        fds.extend(descriptors.map(|fd: BorrowedFd<'_>| PollFd::new(fd, readable)));
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
        let alone = self.families.len() == 1;
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
            if self.families.iter().all(Family::is_ready) {
                outer.say_once("READY=1");
            }
            // All of them live, or the manager is to think that none does.
            if self.families.iter().all(Family::is_well) {
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
        let alone = self.families.len() == 1;
        match signal {
            libc::SIGINT | libc::SIGQUIT | libc::SIGTERM => self.ask_to_stop(signal),
            libc::SIGHUP if !alone && self.families.iter().all(Family::speaks) => {
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
        if let (false, Some(outer)) = (self.families.len() == 1, &mut self.outer) {
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
        if !failed && next < self.families.len() {
            self.upgrade_family(next);
            if let Some(rollout) = &mut self.rollout {
                rollout.again = again;
            }
            return;
        }
        let who = self.families.iter().map(Family::to_string).collect::<Vec<_>>().join(", ");
        match failed {
            true => {
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
