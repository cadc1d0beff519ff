//! The upgrader: replaces this process by a successor, and knows nothing of what is served.
//!
//! `claims` is how names are asked for, and `estate` what passes by them. `turn` polls and hears, `perform` does
//! what the machine says. `successor` is the process after this one and `predecessor` the one before it.
//! `service` is what all of them ask of whoever serves.

mod alone;
mod announcer;
#[cfg(feature = "admin")]
mod answers;
mod claims;
mod disk;
mod estate;
mod failures;
#[cfg(feature = "systemd")]
mod notify;
#[cfg(not(feature = "systemd"))]
#[path = "upgrader/notify_off.rs"]
mod notify;
mod outbox;
mod perform;
mod pid_file;
mod predecessor;
mod service;
mod successor;
mod turn;
mod worker;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Waker};

use crate::address::Address;
#[cfg(feature = "admin")]
use crate::admin::Admin;
use crate::config::Config;
use crate::error::Error;
use crate::handed_over::HandedOver;
use crate::ledger::{self, Counter, Gauge, Histogram, Ledger};
use crate::limits;
use crate::machine::{Drain, Event, Machine, Predecessor as Rank, State};
use crate::post::{Post, TellError};
use crate::program;
use crate::remote::{PredecessorWatch, Remote};
use crate::report::Report;
use crate::room;
use crate::shared;
use crate::signals::{self, Signals};
#[cfg(feature = "admin")]
use crate::socket::SocketOptions;
use crate::standing::{Requests, Standing};
use crate::sys::{self, Command};
use crate::timers::Timers;
use crate::token::{Kind as Source, Token};
#[cfg(feature = "admin")]
use crate::user::User;
use crate::wire::{Ack, Expect, Kind, NO_SCHEMAS, SchemaRange, Sessions};
use alone::Alone;
pub use alone::Notice;
use announcer::Announcer;
use disk::Disk;
pub(crate) use estate::{Door, Estate, Make, Wanted};
use failures::Failures;
use notify::Notify;
use pid_file::PidFile;
pub(crate) use predecessor::Arrived;
use predecessor::{Inheritance, Predecessor};
pub(crate) use service::Service;
use successor::{Dying, Returned, Successor};

/// Replaces this process by a successor, for a program that has a loop, a runtime or threads of its own.
///
/// It finds the predecessor, passes sockets and files on by name, hears signals, spawns the successor and
/// steps aside for it. What is served, and how, is the program's business. [`Server`](crate::Server) is
/// built on it, for a program that has no loop of its own.
///
/// 1. Make it with [`Upgrader::new`], before the program starts threads.
/// 2. Ask for sockets and files by name. The first process makes them, a successor inherits them.
/// 3. Call [`Upgrader::ready`] when the program could serve.
/// 4. Call [`Upgrader::turn`] again and again, or whenever its [descriptor](AsFd) is readable, and at
///    the latest at [`Upgrader::next_deadline`]. It answers in which [`Phase`] the process is:
///    accept while it is [`Phase::Serving`], and not otherwise.
/// 5. In [`Phase::Draining`] let what there is come to its end, and then call [`Upgrader::drained`]. The
///    process may come back to `Serving`: keep the listeners until it is [`Phase::Exited`].
///
/// ```no_run
/// use std::time::Duration;
/// use tablecloth::{Config, Phase, Upgrader};
///
/// # fn main() -> Result<(), tablecloth::Error> {
/// let mut upgrader = Upgrader::new(Config::default())?;
/// let web = upgrader.tcp("web", "127.0.0.1:8080")?;
/// upgrader.ready()?;
/// loop {
///     match upgrader.turn(Some(Duration::from_millis(10)))? {
///         Phase::Waiting => {}
///         Phase::Serving => while let Ok((_client, _peer)) = web.accept() {},
///         Phase::Draining => upgrader.drained(),
///         Phase::Exited(_) => return Ok(()),
///     }
/// }
/// # }
/// ```
///
/// # In a loop or a runtime
///
/// Its descriptor is an epoll instance, and it is the same one for the upgrader's life. A turn with a timeout of
/// zero does not wait; it takes out all that is there, or [`Upgrader::next_deadline`] says that there is more
/// to do at once. So an edge-triggered poll of the descriptor is enough. Ask for the deadline anew before each wait:
/// [`Upgrader::drained`], [`Upgrader::tell`] and the requests may have brought it forward. All sockets that it
/// gives out do not block.
///
/// It stays on the thread that has made it, and is neither `Send` nor `Sync`: with tokio, make it and ask for the
/// sockets before the runtime is made, and drive it in `block_on` or a `LocalSet`. From elsewhere there is
/// [`Remote`].
///
/// ```no_run
/// # use std::time::{Duration, Instant};
/// # use tablecloth::{Phase, Upgrader};
/// # use tokio::io::unix::AsyncFd;
/// # async fn serve(upgrader: Upgrader, listener: tokio::net::TcpListener) -> std::io::Result<()> {
/// #[allow(deprecated)] // What came after it in tokio is unsafe.
/// let mut upgrader = AsyncFd::with_interest(upgrader, tokio::io::Interest::READABLE)?;
/// loop {
///     let later = Instant::now() + Duration::from_secs(3600);
///     let deadline = upgrader.get_ref().next_deadline().unwrap_or(later);
///     tokio::select! {
///         ready = upgrader.readable() => ready?.clear_ready(),
///         () = tokio::time::sleep_until(deadline.into()) => {}
///         accepted = listener.accept(), if upgrader.get_ref().is_serving() => {
///             let (_client, _) = accepted?;
///             // Spawn a task that serves it, and count it.
///         }
///     }
///     match upgrader.get_mut().turn(Some(Duration::ZERO))? {
///         Phase::Waiting | Phase::Serving => {}
///         Phase::Draining => {} // and drained(), as soon as no task is left
///         Phase::Exited(_) => return Ok(()),
///     }
/// }
/// # }
/// ```
///
/// # At a shutdown
///
/// [`Upgrader::is_shutting_down`] tells a shutdown from an upgrade. In an upgrade whoever waits in the accept queue
/// is the successor's. In a shutdown nobody else will let them in: accept until it would block, then drop the
/// listener, serve what there is, and say [`Upgrader::drained`].
///
/// # How long clients may stay
///
/// In [`Phase::Draining`] the process ends after [`Config::drain_timeout`](field@Config::drain_timeout) at the
/// latest, whatever it still serves: with [`End::Replaced`] or [`End::ShutDown`]. As long as it is there, a further
/// HUP waits. Programs with long connections pass them on ([`Upgrader::add_conn`]), or are written as a
/// [`Server`](crate::Server), whose sessions move.
///
/// # State that moves
///
/// Set [`Config::schemas`](field@Config::schemas), give a closure to [`Upgrader::hand_over_with`], and take what it
/// has made by [`Upgrader::handed_over`] in the first [`Phase::Serving`]. What changes later in either process is
/// [told](Upgrader::tell). If the state cannot be read, end the process with an error: the predecessor comes back.
///
/// # The admin endpoint
///
/// With [`Config::admin`](field@Config::admin) the process answers whoever asks, over HTTP/1.1, one request for each
/// connection. The endpoint is inherited by successors, and the process that serves is the one that answers.
///
/// | request | answer |
/// | --- | --- |
/// | `GET /status` | how the process stands, as JSON, or as lines of text with `Accept: text/plain` |
/// | `GET /metrics` | all that is counted, in the text format of Prometheus |
/// | `GET /live` | 200, as long as the loop turns |
/// | `GET /ready` | 200; 503 before the first process is ready, and in a shutdown |
/// | `POST /upgrade` | a line for each step as it happens, and at last what became of it |
/// | `POST /upgrade?wait=proven` | the same; it ends when the successor is proven and the sessions have moved |
/// | `POST /upgrade?check` | the successor is started, and given up when it is ready |
/// | `POST /shutdown`, `POST /exit` | 202; as the signals do |
///
/// The last line of `/upgrade` begins with `done: `, `failed: `, `rolled back: `, `refused: ` or `checked: `. The
/// successor's last lines on standard error stand before it, if it has failed. Who asks while an upgrade is under way
/// shares what becomes of that one. [`control`](fn@crate::control) is the client.
///
/// A Unix socket gets the mode 0600, and answers root and the user that the process runs as, whatever the mode. At an
/// internet address there are no commands.
///
/// Successors have a pipe for their standard error until they serve, so that their last words are known; what they
/// write there is passed on. A child that a successor starts in its set-up keeps that pipe.
///
/// Clients are bounded in number, in size, and in time (5 seconds for a request). There are 32; one more takes the place
/// of one that was answered and has not gone, else of one that does not read its answer, else of one that has not asked
/// yet. Who waits for an upgrade keeps its place.
///
/// # Under systemd
///
/// With the feature `systemd`, which is on by default, the upgrader speaks with the service manager that has set
/// `NOTIFY_SOCKET` (sd_notify(3)). Without that variable it does nothing. A unit needs three lines, and
/// `examples/systemd` has a whole one:
///
/// ```ini
/// Type=notify
/// NotifyAccess=all
/// ExecReload=/usr/local/bin/server ctl --admin /run/server/admin upgrade
/// ```
///
/// - The unit is started when the first process serves. While an upgrade sets itself up the unit is reloading, and
///   it is active again when the upgrade is over, well or badly. `systemctl reload` waits for that; its exit
///   status tells how it ended, if `ExecReload` is a program that asks the [admin
///   endpoint](#the-admin-endpoint), as the examples' `ctl` does. With `/bin/kill -HUP $MAINPID` it tells nothing.
/// - The main process is the one that serves. A predecessor leaves when the manager knows of the successor, or a
///   second later if the manager does not answer. After a rollback the predecessor is the main process again.
///   Since each process speaks for itself, `NotifyAccess=main` is not enough.
/// - `systemctl status` shows the state, the generation, the process id, the number of sessions (of a
///   [`Server`](crate::Server)), and why the last upgrade failed.
/// - With `WatchdogSec=` the loop itself says that it turns, at half of that time. A program with a loop of its own
///   has to call [`Upgrader::turn`] by [`Upgrader::next_deadline`]. In an upgrade the predecessor goes on to say
///   so until its successor is proven: if the successor hangs, there is a rollback and not the end of both.
/// - A set-up of a successor and a shutdown that take long ask for more patience (`EXTEND_TIMEOUT_USEC`),
///   within [`Config::upgrade_timeout`](field@Config::upgrade_timeout) and
///   [`Config::drain_timeout`](field@Config::drain_timeout).
/// - Sockets of a socket unit (sd_listen_fds(3)) are claimed by the first process like those of a predecessor: by
///   `FileDescriptorName=`, wherever they are, or by their address. They keep the options that the unit has
///   given them, and the path of a Unix socket is left to the unit: it is never unlinked here, and
///   [`SocketOptions::mode`](crate::SocketOptions::mode) does not touch it. What nobody asks for is closed with a
///   warning. Variables that do not fit the descriptors are [`Error::Activation`].
/// - The variables of the manager are taken out of the environment, as far as there is one thread only. Children of
///   the application do not see them, and successors do.
///
/// # When it is dropped
///
/// An upgrader that is dropped before it was [ready](Upgrader::ready) lets go of everything: a successor tells its
/// predecessor why (the last error of this upgrader), and the predecessor goes on.
pub struct Upgrader {
    /// What handlers may see, too.
    pub(crate) standing: Standing,
    config: Config,
    kernel: Kernel,
    signals: Signals,
    remote: Remote,
    timers: Timers,
    disk: Disk,
    estate: Estate,
    before: Before,
    succession: Succession,
    steps: Steps,
    rhythm: Rhythm,
    fate: Fate,
    /// Who wants to hear what becomes of this process.
    announcer: Announcer,
    /// For a program that serves by itself.
    alone: Alone,
}

/// What is polled, and what a poll has found.
struct Kernel {
    poll: Poll,
    events: Events,
}

/// The names of what is the upgrader's own, among those of sockets and files.
const LEDGER_NAME: &str = "tablecloth ledger";
#[cfg(feature = "admin")]
const ADMIN_NAME: &str = "tablecloth admin";

/// The process before this one.
struct Before {
    process: Option<Predecessor>,
    watch: PredecessorWatch,
    /// This process's own standard error, as long as it writes to a pipe of the predecessor's.
    stderr: Option<Returned>,
}

/// The processes after this one: the attempt at hand, and those that failed.
struct Succession {
    /// What a successor is spawned from.
    command: Arc<Command>,
    current: Option<Successor>,
    /// Successors that were killed and are not reaped yet.
    dying: Vec<Dying>,
    attempts: u32,
    /// How the last successor ended, until it is reported.
    obituary: Option<Report>,
    /// Whether the next attempt, and the one at hand, are checks: the successor is given up once it is ready.
    checks_next: bool,
    is_check: bool,
    /// Whether a successor's standard error is listened to.
    listens: bool,
    /// Upgrades in a row that have failed.
    failures: Failures,
}

/// Events that wait to be stepped: a step's actions are all performed before the next step.
#[derive(Default)]
struct Steps {
    pending: VecDeque<Pending>,
    under_way: bool,
}

/// An event that waits to be stepped.
#[derive(Clone, Copy)]
struct Pending {
    event: Event,
    /// The attempt that it tells of. What is left of a dead successor's last words must not be
    /// taken for those of the next one.
    attempt: Option<u32>,
}

/// The loop's own time.
#[derive(Default)]
struct Rhythm {
    /// Until when the loop wanted to sleep, if not for ever.
    asleep_until: Option<Instant>,
    /// For how long this process has stood still, when it has.
    stood_still: Duration,
    /// When words are tried again that a handoff socket had no room for.
    outbox_retry: Option<Instant>,
    /// Whether the handoff had more to say than a turn's budget.
    handoff_left: bool,
    /// The longest turn since the upgrade was requested, since sessions began to move, or since the
    /// first of them was taken over: whichever was last.
    longest_turn: Duration,
    stale_events: u64,
    /// When a successor's standard error is looked at again, which could not be passed on.
    stderr_retry: Option<Instant>,
}

impl Rhythm {
    /// Whether a turn has left something of the other process to the next one.
    fn has_left_over(&self) -> bool {
        self.handoff_left || self.stderr_retry.is_some()
    }
}

/// How it began, and how it ends.
struct Fate {
    began: Instant,
    started: bool,
    /// Why this process ends, if not because it was told to.
    failure: Option<Error>,
    /// The last error of the set-up, for the predecessor.
    last_error: Option<String>,
    end: Option<End>,
    /// It has let go of everything.
    gone: bool,
    /// The init, as long as it lives.
    init: Option<(u32, OwnedFd)>,
}

/// Where a process stands, for whoever serves by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is not ready, or it is a successor that its predecessor has not committed to: it must not accept.
    Waiting,
    /// It serves: accept.
    Serving,
    /// It must not accept. What there is comes to its end, unless the process comes back to `Serving`,
    /// because its successor has failed. In a [shutdown](Upgrader::is_shutting_down) it does not come back.
    Draining,
    /// It is over. There is nothing more to do.
    Exited(End),
}

/// How a process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// A successor serves in its place.
    Replaced {
        /// The successor's process id.
        by: Option<u32>,
    },
    /// It was told to stop, and what it served has come to its end or was cut.
    ShutDown,
    /// It was told to exit at once.
    Exited,
}

impl Upgrader {
    /// Makes an upgrader, in the first process or in the successor of the one that spawned this.
    ///
    /// Handles the configured signals from here on, takes the handoff out of the environment, and
    /// tries out the pid file's place. Call it before the program starts threads: the environment
    /// can be changed only then. A variable that had to stay is inherited by children, who
    /// recognise it as not theirs.
    ///
    /// The configured signals are let through to this thread, also if the parent has blocked them, and
    /// SIGCHLD is set to its default if it is ignored, or no successor would leave an exit status.
    /// When the upgrader is gone, signals do what they did before. Those that come before this call
    /// end the process, unless [`Config::hold_signals`] holds them.
    ///
    /// # Errors
    ///
    /// There can be one upgrader, or server, in a process at a time ([`Error::AnotherServer`]). What the
    /// predecessor passes on must be what it says that it is ([`Error::Inherited`], [`Error::Handoff`],
    /// [`Error::Environment`]), and so must what a service manager passes on ([`Error::Activation`]). The pid file must be writable and nobody else's ([`Error::PidFile`],
    /// [`Error::PidFileRefused`]). A predecessor is told about each of these, and goes on.
    pub fn new(config: Config) -> Result<Self, Error> {
        let claim = signals::Claim::new()?;
        let schemas = config.schemas.as_ref().map_or(NO_SCHEMAS, |schemas| SchemaRange {
            oldest: *schemas.start(),
            newest: *schemas.end(),
        });
        let (predecessor, inheritance) = match Predecessor::find(schemas)? {
            Some((predecessor, inheritance)) => (Some(predecessor), inheritance),
            None => (None, Vec::new()),
        };
        let assembled = config
            .check()
            .and_then(|()| Self::assemble(claim, config, predecessor.as_ref(), inheritance));
        match assembled {
            Ok(mut upgrader) => {
                // From here on there may be a second thread.
                if predecessor.is_none() {
                    upgrader.announcer.begin();
                }
                upgrader.before.process = predecessor;
                Ok(upgrader)
            }
            Err(error) => {
                if let Some(predecessor) = &predecessor {
                    predecessor.refuse(&error.to_string());
                }
                Err(error)
            }
        }
    }

    fn assemble(
        claim: signals::Claim,
        mut config: Config,
        predecessor: Option<&Predecessor>,
        mut inheritance: Inheritance,
    ) -> Result<Self, Error> {
        config.be_asked_by_an_init();
        room::reserve_table();
        let command = Arc::new(program::of_this_process()?);
        // A successor is spawned with what was there before this.
        let is_first = predecessor.is_none();
        let mut announcer = Announcer::new(Notify::of_environment(is_first));
        inheritance.extend(notify::sockets(is_first)?);
        inheritance.extend(shared::take(is_first)?);
        let mut estate = Estate::new(inheritance)?;
        let mut ledger = Ledger::private();
        let is_watched = config.watches();
        if is_watched {
            ledger = share_ledger(&mut estate)?;
            announcer.count_in(&ledger);
        }
        #[cfg(feature = "admin")]
        if let Some(asked) = &config.admin {
            let mut options = SocketOptions::default().mode(0o600);
            if let Some(text) = &config.user {
                let user = User::find(text)?;
                options = options.owner(Some(user.user()), Some(user.group()));
            }
            let door = estate.own_listener(ADMIN_NAME, asked, &options)?;
            log::debug!("the admin endpoint is {}", door.address);
            announcer.admin = Some(Admin::new(door.fd, door.family));
        }
        let before = predecessor.map(|predecessor| predecessor.pid);
        let prepare = |path: &Path| PidFile::prepare(path, std::process::id(), before);
        let pid_file = config.pid_file.as_deref().map(prepare).transpose()?.flatten();
        let poll = Poll::new().map_err(Error::system("make an epoll instance"))?;
        let registry = poll.registry().try_clone().map_err(Error::system("duplicate epoll"))?;
        let registry = Rc::new(registry);
        let polled = Error::system("poll");
        let waker = Waker::new(&registry, Token::single(Source::Waker).pack()).map_err(polled)?;
        let waker = Arc::new(waker);
        let inherited = predecessor.map_or(0, |predecessor| predecessor.blocked);
        let mut signals = Signals::install(claim, config.signals(), inherited)?;
        signals.register(&registry, Token::single(Source::Signals).pack()).map_err(polled)?;
        let init = program::init_process();
        if let Some((_, process)) = &init {
            let token = Token::single(Source::InitProcess).pack();
            let mut source = SourceFd(&process.as_raw_fd());
            registry.register(&mut source, token, Interest::READABLE).map_err(polled)?;
        }
        let (machine, generation) = match predecessor {
            Some(predecessor) => {
                predecessor.register(&registry).map_err(polled)?;
                // And those that this build does not handle any more.
                signals::unblock(predecessor.blocked)?;
                (Machine::successor(), predecessor.generation)
            }
            None => (Machine::first(), 0),
        };
        let (now, requests) = (Instant::now(), Requests::default());
        let watch = PredecessorWatch::new(predecessor.is_none());
        Ok(Self {
            standing: Standing {
                machine,
                generation,
                now,
                registry,
                requests,
                post: Post::default(),
                ledger,
            },
            kernel: Kernel { poll, events: Events::with_capacity(limits::EVENTS_PER_POLL) },
            signals,
            disk: Disk::new(pid_file, Arc::clone(&waker)),
            remote: Remote::new(waker),
            timers: Timers::default(),
            estate,
            before: Before { process: None, watch, stderr: Returned::find() },
            succession: Succession {
                command,
                current: None,
                dying: Vec::new(),
                attempts: 0,
                obituary: None,
                checks_next: false,
                is_check: false,
                listens: is_watched,
                failures: Failures::default(),
            },
            steps: Steps::default(),
            rhythm: Rhythm::default(),
            fate: Fate {
                began: now,
                started: false,
                failure: None,
                last_error: None,
                end: None,
                gone: false,
                init,
            },
            announcer,
            alone: Alone::default(),
            config,
        })
    }

    /// Ends the set-up because of something that only the application knows, a mistake in its
    /// configuration for one: a predecessor is told why, in its log and its [`Report`], and goes on.
    pub fn refuse(mut self, reason: &str) {
        self.fate.last_error = Some(reason.into());
    }

    /// The address of a named socket.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<&Address> {
        self.estate.address(name)
    }

    /// Says that the program could serve. The first process writes its pid file, and serves from here on. A
    /// successor closes what it has not asked for and tells its predecessor, which answers in one of the
    /// next [turns](Upgrader::turn). A second call does nothing.
    ///
    /// # Errors
    ///
    /// If the pid file cannot be written, that is the error, and nobody is to be served.
    pub fn ready(&mut self) -> Result<(), Error> {
        if !self.fate.started {
            self.with_alone(|upgrader, alone| upgrader.set_up_done(alone));
        }
        self.fate.failure.take().map_or(Ok(()), Err)
    }

    /// One turn: waits for events, at most `timeout` (for ever if `None`) and never longer than to the
    /// next deadline, and does what is to be done about them. Answers in which phase the process is. It
    /// calls nothing of the program but what [`Upgrader::hand_over_with`] was given. Before
    /// [`Upgrader::ready`] it answers [`Phase::Waiting`] at once, and hears nothing.
    ///
    /// What is to be done takes microseconds, with three exceptions. A successor that serves nobody yet, and hears
    /// nothing of its predecessor, waits up to 100 ms to see whether that one dies. Where Unix listeners are closed, the
    /// turn waits up to 5 ms for their files to be removed. In the last turn, a disk that holds the pid file up is
    /// waited for, up to a second.
    ///
    /// # Errors
    ///
    /// An error means that this process could not do its work, a successor that was never committed to
    /// included; exit with a non-zero status then.
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<Phase, Error> {
        // What comes before the set-up is done waits for that: a successor would be given half of it.
        if self.fate.started {
            self.with_alone(|upgrader, alone| upgrader.turn_for(timeout, alone))?;
        }
        Ok(self.phase())
    }

    fn with_alone<T>(&mut self, call: impl FnOnce(&mut Self, &mut Alone) -> T) -> T {
        let mut alone = std::mem::take(&mut self.alone);
        let answer = call(self, &mut alone);
        self.alone = alone;
        answer
    }

    /// When [`Upgrader::turn`] has to be called at the latest, whether or not its descriptor is readable.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadline(&self.alone)
    }

    /// What has happened since the last call, the oldest first: [`Upgrader::turn`] notes it. At most
    /// 64 are kept for whoever does not fetch them, messages aside; the oldest go first.
    pub fn next_notice(&mut self) -> Option<Notice> {
        self.alone.next_notice()
    }

    /// Whether the process was told to stop, and there is no successor that serves in its place.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.state() == State::Draining(Drain::Shutdown) && self.succession.current.is_none()
    }

    /// In which phase the process is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.state() {
            State::Running | State::Upgrading if !self.is_serving() => Phase::Waiting,
            State::Running | State::Upgrading => Phase::Serving,
            State::Draining(_) => Phase::Draining,
            State::Exited => Phase::Exited(self.end()),
        }
    }

    /// Whether this process is the one that accepts.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.fate.started && self.standing.machine.accepts()
    }

    /// Tells that everything that was served has come to its end. A process that drains ends then, as soon
    /// as it may; without this word it ends when [`Config::drain_timeout`] is over. It counts until the
    /// process serves again.
    pub fn drained(&mut self) {
        if matches!(self.state(), State::Draining(_)) {
            self.alone.set_drained();
        }
    }

    /// Has `hands_over` called at each commit, with the schemas that both this program and the successor read:
    /// it answers the application's own state, in one of those. If there are none, or if
    /// [`Config::schemas`](field@Config::schemas) is not set, it is not called. Nobody is accepted until it is done. With an error the
    /// upgrade fails. This process keeps what it has, for the case that the successor fails.
    pub fn hand_over_with(
        &mut self,
        hands_over: impl FnMut(RangeInclusive<u32>) -> io::Result<Option<HandedOver>> + 'static,
    ) {
        self.alone.hand_over_with(Box::new(hands_over));
    }

    /// What the predecessor has handed over: there from the first turn on that answers
    /// [`Phase::Serving`], and given out once. `None` if it has handed nothing over, or has died before it could.
    pub fn handed_over(&mut self) -> Option<HandedOver> {
        self.alone.handed_over.take()
    }

    /// Says something to the other process of an upgrade: from the commit on, for as long as both are there.
    /// It gets it as [`Notice::Told`]. What one process says after it has handed its state over, or before
    /// it has taken it, is for the application to put together.
    ///
    /// # Errors
    ///
    /// See [`TellError`]. Nothing is said then.
    pub fn tell(&mut self, message: &[u8]) -> Result<(), TellError> {
        self.standing.post.add(message)?;
        if self.flush_post() {
            let again = Instant::now() + limits::OUTBOX_RETRY;
            self.rhythm.outbox_retry.get_or_insert(again);
        }
        Ok(())
    }

    /// A number of the application's that only grows: it goes on from process to process, through upgrades and
    /// rollbacks, because all of them count in the same memory. `/metrics` of the
    /// [admin endpoint](Upgrader#the-admin-endpoint) tells it, and [`Upgrader::metrics`].
    ///
    /// `name` and the labels are those of Prometheus; a counter's name ends in `_total`. Whoever asks for the same
    /// name and labels again gets the same number.
    ///
    /// # Errors
    ///
    /// What is no name of a metric is [`Error::Name`]. The first counter or histogram must be asked for before
    /// [`Upgrader::ready`], unless there is an admin endpoint.
    pub fn counter(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        help: &str,
    ) -> Result<Counter, Error> {
        self.check_metric(name, labels)?;
        Ok(self.shared_ledger(name)?.counter(name, labels, help))
    }

    /// How long something of the application's took, in buckets with these bounds, of which there are 16 at the
    /// most; otherwise as [`Upgrader::counter`]. Its name ends in `_seconds`. The bounds stay those with which it
    /// was made first, in whatever process.
    ///
    /// # Errors
    ///
    /// As those of [`Upgrader::counter`].
    pub fn histogram(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        help: &str,
        bounds: &[Duration],
    ) -> Result<Histogram, Error> {
        self.check_metric(name, labels)?;
        Ok(self.shared_ledger(name)?.histogram(name, labels, help, bounds))
    }

    /// A number of the application's that goes up and down, and belongs to this process alone.
    ///
    /// # Errors
    ///
    /// What is no name of a metric is [`Error::Name`].
    pub fn gauge(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        help: &str,
    ) -> Result<Gauge, Error> {
        self.check_metric(name, labels)?;
        Ok(self.standing.ledger.gauge(name, labels, help))
    }

    /// Tells the service manager that the set-up of the first process takes so long from now on, where it may take
    /// longer than `TimeoutStartSec=` (EXTEND_TIMEOUT_USEC, sd_notify(3)). Say it again and again while there is
    /// progress, and no longer: then a set-up that hangs is found out. A successor has its predecessor's
    /// [`Config::upgrade_timeout`] instead, and this does nothing in it, nor where there is no manager.
    pub fn needs_time(&mut self, time: Duration) {
        if self.before.process.is_none() && !self.fate.started {
            self.announcer.needs_time(time);
        }
    }

    /// All that is counted, in the text format of Prometheus: what the admin endpoint's `/metrics` tells, for
    /// whoever serves it in another way.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.standing.ledger.text()
    }

    fn check_metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<(), Error> {
        let is_label = |(label, _): &(&str, &str)| ledger::is_name(label) && !label.contains(':');
        if ledger::is_name(name) && labels.iter().all(is_label) {
            return Ok(());
        }
        let reason =
            "of a metric or of a label has letters, digits and _, and begins with no digit";
        Err(Error::Name { name: name.into(), reason })
    }

    /// The ledger that goes on from process to process.
    fn shared_ledger(&mut self, name: &str) -> Result<&Ledger, Error> {
        if !self.standing.ledger.is_shared() {
            let ledger = self.claim(name, share_ledger)?;
            self.announcer.count_in(&ledger);
            self.standing.ledger = ledger;
        }
        Ok(&self.standing.ledger)
    }

    /// Asks for an upgrade, as the signal does. What becomes of it is in the log and a [`Notice`];
    /// [`Remote::upgrade`] waits for it.
    pub fn request_upgrade(&mut self) {
        self.standing.requests.upgrade = true;
    }

    /// Asks for a shutdown, as the signal does.
    pub fn request_shutdown(&mut self) {
        self.standing.requests.shutdown = true;
    }

    /// Asks for the end at once, as the signal does.
    pub fn request_exit(&mut self) {
        self.standing.requests.exit = true;
    }

    /// Whether a predecessor spawned this process.
    #[must_use]
    pub fn is_successor(&self) -> bool {
        self.standing.generation > 0
    }

    /// 0 for the first process, and one more in each successor. It is no name for a process: after a rollback
    /// the next successor has the same number again.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.standing.generation
    }

    /// The predecessor's process id, as long as it is there.
    #[must_use]
    pub fn predecessor(&self) -> Option<u32> {
        self.before.process.as_ref().map(|predecessor| predecessor.pid)
    }

    /// For another thread that wants to wait for the predecessor's end.
    #[must_use]
    pub fn predecessor_watch(&self) -> PredecessorWatch {
        self.before.watch.clone()
    }

    /// For another thread that wants to ask for an upgrade or an end.
    #[must_use]
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }

    /// Where the machine stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.standing.state()
    }

    /// How many events came too late for what they were meant for. They are ordinary.
    #[must_use]
    pub fn stale_events(&self) -> u64 {
        self.rhythm.stale_events
    }

    /// How it has ended, once it has.
    pub(crate) fn end(&self) -> End {
        self.fate.end.unwrap_or(End::Exited)
    }

    pub(crate) fn has_started(&self) -> bool {
        self.fate.started
    }

    pub(crate) fn estate(&mut self) -> &mut Estate {
        &mut self.estate
    }

    /// Counts attempts at an upgrade.
    pub(crate) fn attempt(&self) -> u32 {
        self.succession.attempts
    }

    /// The schemas that the successor can put together, if there is one.
    pub(crate) fn successor_schemas(&self) -> Option<SchemaRange> {
        self.succession.current.as_ref().map(Successor::schemas)
    }

    /// The schemas that both this program and its successor read, if there are any.
    pub(crate) fn common_schemas(&self) -> Option<RangeInclusive<u32>> {
        let (own, theirs) = (self.config.schemas.as_ref()?, self.successor_schemas()?);
        let common = theirs.oldest.max(*own.start())..=theirs.newest.min(*own.end());
        (!common.is_empty()).then_some(common)
    }

    /// How long a packet of sessions for the successor may be, and one with a single session.
    pub(crate) fn packet_bytes(&self) -> Option<(usize, usize)> {
        self.succession.current.as_ref().map(Successor::packet_bytes)
    }

    /// Whether the successor's build knows of long states and of other descriptors than sockets.
    pub(crate) fn successor_takes_any(&self) -> bool {
        self.succession.current.as_ref().is_some_and(Successor::hears_applications)
    }

    /// Sends sessions and their sockets to the successor. An error, and nothing has been sent.
    ///
    /// What the application has said before goes ahead of them.
    pub(crate) fn send_sessions(
        &mut self,
        sessions: &Sessions,
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        if self.flush_post() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let nobody = || io::Error::from(io::ErrorKind::NotConnected);
        self.succession.current.as_ref().ok_or_else(nobody)?.send_sessions(sessions, sockets)
    }

    /// Has the successor keep room for that many sessions. Answers whether that was news to it.
    pub(crate) fn tell_to_come(&mut self, sessions: usize, sockets: usize) -> bool {
        self.succession.current.as_mut().is_some_and(|it| it.expect(sessions, sockets))
    }

    /// How many sessions are still to come from the predecessor.
    pub(crate) fn expects(&self) -> Expect {
        self.before.process.as_ref().map_or_else(Expect::default, |it| it.expects)
    }

    /// Answers a packet of the predecessor's sessions. `false` if the answer cannot reach it although it
    /// lives: then they are still its own.
    pub(crate) fn acknowledge(&self, ack: Ack) -> bool {
        self.before.process.as_ref().is_none_or(|predecessor| predecessor.acknowledge(ack))
    }

    /// The next turn comes at once, and listens to the other process.
    pub(crate) fn come_back_at_once(&mut self) {
        self.rhythm.handoff_left = true;
    }

    /// How many bytes a packed session may have.
    pub(crate) fn max_packed_bytes(&self) -> usize {
        self.config.max_packed_bytes
    }

    /// From here on the longest turn is measured, the one under way included.
    pub(crate) fn measure_turns(&mut self) {
        self.rhythm.longest_turn = Duration::ZERO;
    }

    /// Lets go of everything, before this is dropped.
    pub(crate) fn let_go(&mut self, service: &mut dyn Service) {
        if std::mem::replace(&mut self.fate.gone, true) {
            return;
        }
        // A step may have been left by a panic.
        self.steps = Steps::default();
        if self.standing.machine.predecessor() == Rank::Owner {
            if let Some(predecessor) = &self.before.process {
                let reason = self.fate.failure.as_ref().map(Error::to_string);
                let reason = reason.or_else(|| self.fate.last_error.take());
                let ended = if std::thread::panicking() { "it panicked" } else { "it ended" };
                let reason = reason.unwrap_or_else(|| format!("{ended} before it took over"));
                predecessor.refuse(&reason);
            }
            self.estate.unlink_made();
        } else if !self.fate.started {
            self.estate.unlink_made();
        }
        if self.fate.started && self.state() != State::Exited {
            self.feed(Event::Failed, service);
        }
        self.bury();
        self.remote.end();
        self.disk.part(perform::disk_wait(self.config.takeover_timeout));
    }
}

/// The ledger that the predecessor has passed on, or a new one.
fn share_ledger(estate: &mut Estate) -> Result<Ledger, Error> {
    let wanted = Wanted { name: LEDGER_NAME, kind: Kind::File, asked: "" };
    let make =
        || Make::Caller(Box::new(|_| Ledger::file().map_err(|error| ("memfd_create", error))));
    let file = estate.passive(wanted, make())?;
    if let Ok(ledger) = Ledger::of_file(&file) {
        return Ok(ledger);
    }
    // Another build's, whose layout is another one: its numbers end here.
    estate.take_away(LEDGER_NAME);
    let file = estate.passive(wanted, make())?;
    Ledger::of_file(&file).map_err(Error::system("share memory with a successor"))
}

/// Tells a predecessor why this process will not take over, before there is an upgrader or a server: because
/// of a mistake in the configuration, for one. The words stand in its log and its [`Report`], and it goes on.
/// Without a predecessor it does nothing.
///
/// Afterwards this process is nobody's successor: end it.
pub fn refuse(reason: &str) {
    if let Ok(Some((predecessor, _))) = Predecessor::find(NO_SCHEMAS) {
        predecessor.refuse(reason);
    }
}

/// The epoll instance (epoll(7)): readable when there is something for [`Upgrader::turn`] to do
/// besides timers. It belongs to the upgrader.
impl AsFd for Upgrader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::descriptor_of(&self.kernel.poll)
    }
}

/// See [`AsFd`].
impl AsRawFd for Upgrader {
    fn as_raw_fd(&self) -> RawFd {
        self.kernel.poll.as_raw_fd()
    }
}

/// Lets go, and leaves nothing behind: an upgrader that is dropped cleans up as one that exits does. What
/// was never taken over stays the predecessor's, and so does what was taken over by a process that is
/// not told to stop and ends all the same.
///
/// One that is dropped in the middle of an upgrade leaves the service to its successor, which serves as soon as
/// this process has ended. If the process lives on, the successor gives way after the takeover timeout.
impl Drop for Upgrader {
    fn drop(&mut self) {
        self.with_alone(|upgrader, alone| upgrader.let_go(alone));
    }
}

impl fmt::Debug for Upgrader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrader")
            .field("machine", &self.standing.machine)
            .field("generation", &self.standing.generation)
            .finish_non_exhaustive()
    }
}
