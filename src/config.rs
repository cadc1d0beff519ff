//! What a user may set, with the defaults.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use nix::libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::error::Error;
use crate::limits;
use crate::machine::Timer;
use crate::signals::{self, Request};
use crate::user::User;

/// What an [`Upgrader`](crate::Upgrader) or a [`Server`](crate::Server) needs to know beside its sockets. Every
/// field has a default. `max_sessions`, `max_packed_bytes` and `on_panic` mean something to a server only.
///
/// # Under systemd
///
/// There is nothing to be set: what a service manager wants to hear, and the sockets that it passes on, are found in the
/// environment. See [`Upgrader`](crate::Upgrader#under-systemd). A pid file is not needed there.
///
/// ```
/// use std::time::Duration;
/// use tablecloth::Config;
///
/// let config = Config::default().pid_file("/run/echo.pid").drain_timeout(Duration::from_secs(5));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// How long a successor may take from its spawn to its ready byte. It is killed then.
    /// 60 seconds.
    pub upgrade_timeout: Duration,
    /// How long the other side may take to answer. Predecessor: from the commit until the successor
    /// serves, from the question at the end of its probation to its answer, and from answer to
    /// answer while sessions move to it; it is killed and the upgrade rolled back then. Successor: from its ready byte to the commit; it exits then,
    /// and the predecessor goes on. 5 seconds.
    ///
    /// A predecessor whose process has not ended by this much more than [`Config::longest_stay`] is
    /// killed, whatever its program does after [`Server::run`](crate::Server::run).
    pub takeover_timeout: Duration,
    /// How long a draining process stays, at least, so that it can take over again if the
    /// successor dies, or does not answer at the end of this time; unless it is told to stop. An
    /// upgrade that is wanted meanwhile waits. 0 is allowed. 1 second.
    pub probation: Duration,
    /// How long sessions may take to move or to end once the successor is proven, and to end in a
    /// shutdown. They are closed then.
    /// 30 seconds.
    pub drain_timeout: Duration,
    /// A file that names the serving process. None.
    ///
    /// A relative path is made absolute when the server is made, and a link is followed then. A
    /// regular file there is replaced, or written in place if something is mounted on it; of anything
    /// else `/dev/null` means that there is no pid file, and the rest is an error. So is a file that
    /// another living service holds, and another user's file in a directory with the sticky bit.
    ///
    /// No disk stops the loop: where the file cannot be written in time, at most a second and at most
    /// a quarter of [`Config::takeover_timeout`], the upgrade goes on, which is logged. In memory (tmpfs(5)), as
    /// in `/run` on most systems, it is written fastest.
    pub pid_file: Option<PathBuf>,
    /// Whom the process becomes that was started as root, when its sockets and its pid file are there and before it
    /// serves: `USER` or `USER:GROUP`, each by name or number. None.
    ///
    /// It becomes that user for good, with all its threads: groups, user and group, no capability, and no way back, or
    /// the start fails ([`Error::User`](crate::Error)). Its successors are that user from their first
    /// moment on. They inherit what root has bound; a port below 1024 that is new in a new configuration fails the upgrade.
    ///
    /// - The user has to be able to write the pid file, in a directory of its own or in place: the file is
    ///   given to it, and the start fails if that is not enough. In a directory of root's it stays at the end, empty.
    ///   So does the file of a Unix socket.
    /// - The first process cannot be traced and leaves no core file (PR_SET_DUMPABLE, prctl(2)), because it may know what
    ///   only root may know. Its successors can, and do.
    /// - Programs that it executes can still be set-user-ID ones. PR_SET_NO_NEW_PRIVS, or `NoNewPrivileges` of
    ///   systemd, prevents that.
    pub user: Option<String>,
    /// The signals that ask for an upgrade. HUP.
    pub upgrade_signals: Vec<i32>,
    /// The signals that ask for a shutdown: the sessions come to their end. QUIT and TERM.
    pub shutdown_signals: Vec<i32>,
    /// The signals that ask for the end at once. INT.
    pub exit_signals: Vec<i32>,
    /// More signals, which go to [`Handler::signal`](crate::Handler::signal), or come as
    /// [`Notice::Signal`](crate::Notice::Signal). None.
    pub user_signals: Vec<i32>,
    /// How many sessions there may be at a time. Accepting pauses when there are that many, and
    /// clients wait in the kernel's queue. 65,536.
    ///
    /// The sessions of a predecessor are taken over even where it was allowed more of them.
    pub max_sessions: usize,
    /// How many bytes a packed session may have. It is asked again later if it has more. 16 MiB.
    pub max_packed_bytes: usize,
    /// What becomes of a panic in a method of the handler. [`OnPanic::CloseSession`].
    pub on_panic: OnPanic,
    /// The schemas that this program reads, of packed sessions and of its own state, oldest and newest, by its
    /// own count from 1 on. None: sessions do not move, they drain, and no state is handed over.
    pub schemas: Option<RangeInclusive<u32>>,
    /// Where the admin endpoint listens, which tells how the process stands and takes commands, over HTTP/1.1:
    /// `unix:/PATH`, whose file is given the mode 0600, or `HOST:PORT`, where nobody may command. None.
    ///
    /// See [`Upgrader`](crate::Upgrader#the-admin-endpoint).
    #[cfg(feature = "admin")]
    pub admin: Option<String>,
}

/// What becomes of a panic in a method of the handler, if the program is built to unwind.
///
/// In a successor that is not proven yet it is the end in any case: the predecessor, which has not made
/// that mistake, rolls the upgrade back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnPanic {
    /// The session whose method panicked is dropped, with one line of the log; the others are served on.
    /// For a handler whose own state cannot be left half changed.
    #[default]
    CloseSession,
    /// The panic goes on, out of [`Reactor::turn`](crate::Reactor::turn): the process ends, unless
    /// somebody catches it.
    End,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            upgrade_timeout: Duration::from_secs(60),
            takeover_timeout: Duration::from_secs(5),
            probation: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(30),
            pid_file: None,
            user: None,
            upgrade_signals: vec![SIGHUP],
            shutdown_signals: vec![SIGQUIT, SIGTERM],
            exit_signals: vec![SIGINT],
            user_signals: Vec::new(),
            max_sessions: limits::SESSIONS,
            max_packed_bytes: limits::PACKED_BYTES,
            on_panic: OnPanic::default(),
            schemas: None,
            #[cfg(feature = "admin")]
            admin: None,
        }
    }
}

/// Setters that chain, one for each field.
impl Config {
    /// Sets [`Config::upgrade_timeout`](field@Config::upgrade_timeout).
    #[must_use]
    pub fn upgrade_timeout(self, upgrade_timeout: Duration) -> Self {
        Self { upgrade_timeout, ..self }
    }

    /// Sets [`Config::takeover_timeout`](field@Config::takeover_timeout).
    #[must_use]
    pub fn takeover_timeout(self, takeover_timeout: Duration) -> Self {
        Self { takeover_timeout, ..self }
    }

    /// Sets [`Config::probation`](field@Config::probation).
    #[must_use]
    pub fn probation(self, probation: Duration) -> Self {
        Self { probation, ..self }
    }

    /// Sets [`Config::drain_timeout`](field@Config::drain_timeout).
    #[must_use]
    pub fn drain_timeout(self, drain_timeout: Duration) -> Self {
        Self { drain_timeout, ..self }
    }

    /// Sets [`Config::upgrade_signals`](field@Config::upgrade_signals).
    #[must_use]
    pub fn upgrade_signals(self, upgrade_signals: Vec<i32>) -> Self {
        Self { upgrade_signals, ..self }
    }

    /// Sets [`Config::shutdown_signals`](field@Config::shutdown_signals).
    #[must_use]
    pub fn shutdown_signals(self, shutdown_signals: Vec<i32>) -> Self {
        Self { shutdown_signals, ..self }
    }

    /// Sets [`Config::exit_signals`](field@Config::exit_signals).
    #[must_use]
    pub fn exit_signals(self, exit_signals: Vec<i32>) -> Self {
        Self { exit_signals, ..self }
    }

    /// Sets [`Config::user_signals`](field@Config::user_signals).
    #[must_use]
    pub fn user_signals(self, user_signals: Vec<i32>) -> Self {
        Self { user_signals, ..self }
    }

    /// Sets [`Config::max_sessions`](field@Config::max_sessions).
    #[must_use]
    pub fn max_sessions(self, max_sessions: usize) -> Self {
        Self { max_sessions, ..self }
    }

    /// Sets [`Config::max_packed_bytes`](field@Config::max_packed_bytes).
    #[must_use]
    pub fn max_packed_bytes(self, max_packed_bytes: usize) -> Self {
        Self { max_packed_bytes, ..self }
    }

    /// Sets [`Config::on_panic`](field@Config::on_panic).
    #[must_use]
    pub fn on_panic(self, on_panic: OnPanic) -> Self {
        Self { on_panic, ..self }
    }

    /// Sets [`Config::pid_file`](field@Config::pid_file).
    #[must_use]
    pub fn pid_file(self, path: impl Into<PathBuf>) -> Self {
        Self { pid_file: Some(path.into()), ..self }
    }

    /// Sets [`Config::admin`](field@Config::admin).
    #[cfg(feature = "admin")]
    #[must_use]
    pub fn admin(self, address: impl Into<String>) -> Self {
        Self { admin: Some(address.into()), ..self }
    }

    /// Sets [`Config::user`](field@Config::user).
    #[must_use]
    pub fn user(self, user: impl Into<String>) -> Self {
        Self { user: Some(user.into()), ..self }
    }

    /// Sets [`Config::schemas`](field@Config::schemas).
    #[must_use]
    pub fn schemas(self, schemas: RangeInclusive<u32>) -> Self {
        Self { schemas: Some(schemas), ..self }
    }
}

impl Config {
    /// Holds the configured signals back, in this thread and in those that it starts, until
    /// [`Upgrader::new`](crate::Upgrader::new) or [`Server::new`](crate::Server::new) lets them through: a signal that comes meanwhile is late,
    /// and does not end the process. Call it before anything that takes time, the parsing of flags and
    /// the resolving of names included.
    ///
    /// What comes before the first line of a program runs, in its first milliseconds, still does what
    /// the parent has left it to do, which ends the process in most cases. Only a parent can change
    /// that: a signal that it blocks is late then (execve(2) keeps the mask), one that it ignores
    /// (`trap '' HUP`) is lost.
    ///
    /// After the server they are held again; a program that works on then and wants to hear them lets
    /// them through itself (pthread_sigmask(3)).
    ///
    /// ```
    /// tablecloth::Config::default().hold_signals();
    /// ```
    pub fn hold_signals(&self) {
        signals::hold(&self.signals());
    }

    /// Whether the schemas are a range, none of them stands for none, and there is such a user.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.user.as_deref().map(User::find).transpose()?;
        match self.schemas.clone().map(RangeInclusive::into_inner) {
            Some((oldest, newest)) if oldest == 0 || oldest > newest => {
                Err(Error::Schemas { oldest, newest })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What each of the signals asks for.
    pub(crate) fn signals(&self) -> Vec<(i32, Request)> {
        [
            (&self.exit_signals, Request::Exit),
            (&self.shutdown_signals, Request::Shutdown),
            (&self.upgrade_signals, Request::Upgrade),
            (&self.user_signals, Request::User),
        ]
        .into_iter()
        .flat_map(|(signals, request)| signals.iter().map(move |signal| (*signal, request)))
        .collect()
    }

    /// In one of several workers the endpoint is where their init asks.
    pub(crate) fn be_asked_by_an_init(&mut self) {
        #[cfg(feature = "admin")]
        if let Ok(address) = std::env::var(crate::wire::ADMIN_VARIABLE) {
            self.admin = Some(address);
        }
    }

    /// Whether somebody may ask what was counted, and what became of an upgrade.
    pub(crate) fn watches(&self) -> bool {
        #[cfg(feature = "admin")]
        return self.admin.is_some();
        #[cfg(not(feature = "admin"))]
        false
    }

    /// How long a timer of the machine runs.
    #[must_use]
    pub fn duration(&self, timer: Timer) -> Duration {
        match timer {
            Timer::Upgrade => self.upgrade_timeout,
            Timer::Takeover => self.takeover_timeout,
            Timer::Status => limits::STATUS_WAIT,
            Timer::Probation => self.probation,
            Timer::Drain => self.drain_timeout,
            // The first of a row.
            Timer::Pause => limits::PAUSE_LEAST,
            // Of a predecessor with this configuration; it says so itself.
            Timer::Departure => self.longest_stay().saturating_add(self.takeover_timeout),
        }
    }

    /// How long a predecessor stays after the commit at the most: until its successor is proven,
    /// and then until its sessions have moved or had their time.
    #[must_use]
    pub fn longest_stay(&self) -> Duration {
        let proof = self.takeover_timeout.saturating_mul(2).saturating_add(self.probation);
        proof.saturating_add(self.drain_timeout)
    }
}
