//! The first process of a container, or of a service: it starts the server, and is none.
//!
//! `watch` is its loop. `family` is a server with all its generations, `words` what one of them says, `kin` who is
//! who to this process, and `outer` the manager that this process has itself. Of several workers, `crew`
//! upgrades one after another, `desk` answers whoever asks for all of them by `questions` to each, and `sum` adds up what
//! they have counted.

mod crew;
#[cfg(feature = "admin")]
mod desk;
mod family;
mod kin;
mod outer;
#[cfg(feature = "admin")]
mod questions;
#[cfg(feature = "admin")]
mod sum;
mod watch;
mod words;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::error::Error;
use crate::wire::INIT_VARIABLE;
#[cfg(feature = "admin")]
use desk::Desk;
use watch::Watch;

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
/// - **Its own end**: a server whose init is killed comes to its end as after TERM. Whoever starts the init again starts
///   another server, and two would share the clients, or the second one could not listen.
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
    files: Vec<(String, Open)>,
    #[cfg(feature = "admin")]
    admin: Option<String>,
}

/// What opens a file that all servers share.
type Open = fn() -> io::Result<OwnedFd>;

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
            Self::So(count) if *count <= MOST_WORKERS => Ok(Some(*count)),
            Self::So(count) => {
                let reason = format!("{count} are asked for, and {MOST_WORKERS} are the most");
                Err(Error::system("start the workers")(io::Error::other(reason)))
            }
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
    /// HUP upgrades them one after another, each when the predecessor in the one before it has left, and the first
    /// upgrade that fails or is rolled back stops the rest. The other signals go to all. When one has ended without
    /// being asked the others are told to stop. The status is the greatest of all.
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
    /// - `POST /upgrade`, and HUP, upgrade them one after another, each when the one before it is proven, until one
    ///   fails or is rolled back; the last line says which of them run what. The answer comes when the last one is
    ///   proven, and when those have come, or were told to stop, that are too few or too many. A check is the first one's. A
    ///   shutdown is everybody's.
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
        is_process_one() || self.always && std::env::var_os(INIT_VARIABLE).is_none()
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
        Desk::open(asked, count, self.workers.clone()).map(Some)
    }

    /// A file that all servers share: opened once by the init, which keeps it for as long as it lives, and got by each
    /// server, and each worker that comes later, from [`Server::file`](crate::Server::file) or
    /// [`Upgrader::file`](crate::Upgrader::file) by this name. A server without an init opens its own there.
    ///
    /// All of them share one open file description: its position and its flags, too (open(2)). A file in memory
    /// (memfd_create(2)) is what several processes write to by
    /// [`write_at`](std::os::unix::fs::FileExt::write_at), with a lock of fcntl(2), which belongs to a process; one
    /// of flock(2) would belong to all of them together.
    #[must_use]
    pub fn file(mut self, name: impl Into<String>, open: fn() -> io::Result<OwnedFd>) -> Self {
        self.files.push((name.into(), open));
        self
    }

    fn open_files(&self) -> Result<Vec<(String, OwnedFd)>, Error> {
        let open = |(name, open): &(String, Open)| {
            let opened = open().map_err(|error| io::Error::other(format!("{name}: {error}")));
            Ok((name.clone(), opened.map_err(Error::system("open what the servers share"))?))
        };
        self.files.iter().map(open).collect()
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

fn is_process_one() -> bool {
    std::process::id() == 1
}
