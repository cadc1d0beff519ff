//! What goes wrong, and the file that a server is run from.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{failed, process};
use crate::running::Running;

/// From ready until the successor is stopped, or killed the first time.
const AFTER_READY: Duration = Duration::from_millis(50);
/// From ready until it is killed the other times: within our probation of a second, and after it.
const LATE: Duration = Duration::from_millis(700);
const TOO_LATE: Duration = Duration::from_millis(1500);
/// How long a successor lives that is killed before it is ready.
const BEFORE_READY: Duration = Duration::from_millis(200);
const BETWEEN_HUPS: Duration = Duration::from_millis(1);
/// How long a bad program stays where the good one was.
const BAD_FOR: Duration = Duration::from_secs(1);
/// Within which whoever upgrades has named its successor.
pub(crate) const UPGRADE_TIMEOUT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(1);

/// A program that never becomes ready, and one that ends at once.
const HANGS: &str = "#!/bin/sh\nexec sleep 60\n";
const FAILS: &str = "#!/bin/sh\nexit 1\n";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    KilledBeforeReady,
    KilledAfterReady,
    KilledLate,
    KilledTooLate,
    Stopped,
    TwoHups,
    BadProgram,
}

/// How long it all takes.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    /// Before the fault.
    pub(crate) calm: Duration,
    /// How long a stopped process is stopped.
    stopped: Duration,
    /// After the fault.
    pub(crate) watched: Duration,
}

impl Times {
    pub(crate) const FULL: Times = Times {
        calm: Duration::from_millis(500),
        stopped: Duration::from_secs(3),
        watched: Duration::from_secs(2),
    };
    pub(crate) const QUICK: Times = Times {
        calm: Duration::from_millis(300),
        stopped: Duration::from_secs(1),
        watched: Duration::from_secs(1),
    };
}

impl Fault {
    pub(crate) const ALL: [Fault; 7] = [
        Fault::KilledBeforeReady,
        Fault::KilledAfterReady,
        Fault::KilledLate,
        Fault::KilledTooLate,
        Fault::Stopped,
        Fault::TwoHups,
        Fault::BadProgram,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Fault::KilledBeforeReady => "killed before ready",
            Fault::KilledAfterReady => "killed 50 ms after ready",
            Fault::KilledLate => "killed 700 ms after ready",
            Fault::KilledTooLate => "killed 1.5 s after ready",
            Fault::Stopped => "stopped 50 ms after ready",
            Fault::TwoHups => "two HUPs, 1 ms apart",
            Fault::BadProgram => "a bad program",
        }
    }

    /// Lets it happen, and answers when it did. The file is good again then.
    pub(crate) fn strike(
        self,
        server: &Running,
        file: &ProgramFile,
        times: Times,
    ) -> Result<Instant, String> {
        let old = server.named().ok_or("no pid file")?;
        match self {
            Fault::KilledBeforeReady => {
                let before = process::children(old);
                file.put(HANGS)?;
                hup(old)?;
                let child = await_within(UPGRADE_TIMEOUT, || {
                    process::children(old).into_iter().find(|child| !before.contains(child))
                });
                let child = child.ok_or("no successor was started")?;
                sleep(BEFORE_READY);
                let at = kill(child)?;
                file.restore()?;
                Ok(at)
            }
            Fault::KilledAfterReady => kill(upgraded(server, old, AFTER_READY)?),
            Fault::KilledLate => kill(upgraded(server, old, LATE)?),
            Fault::KilledTooLate => kill(upgraded(server, old, TOO_LATE)?),
            Fault::Stopped => {
                let successor = upgraded(server, old, AFTER_READY)?;
                let at = Instant::now();
                kill_process(successor, Signal::STOP).map_err(failed("stop the successor"))?;
                sleep(times.stopped);
                // Its predecessor may have ended it.
                let _ = kill_process(successor, Signal::CONT);
                Ok(at)
            }
            Fault::TwoHups => {
                hup(old)?;
                sleep(BETWEEN_HUPS);
                let at = Instant::now();
                hup(server.named().unwrap_or(old))?;
                Ok(at)
            }
            Fault::BadProgram => {
                file.put(FAILS)?;
                let at = Instant::now();
                hup(old)?;
                sleep(BAD_FOR);
                file.restore()?;
                Ok(at)
            }
        }
    }
}

pub(crate) fn hup(server: Pid) -> Result<(), String> {
    kill_process(server, Signal::HUP).map_err(failed("send HUP"))
}

fn kill(successor: Pid) -> Result<Instant, String> {
    let at = Instant::now();
    kill_process(successor, Signal::KILL).map_err(failed("kill the successor"))?;
    Ok(at)
}

/// Has it upgraded, and answers with the successor when that was ready for so long.
fn upgraded(server: &Running, old: Pid, for_so_long: Duration) -> Result<Pid, String> {
    hup(old)?;
    let successor = await_within(UPGRADE_TIMEOUT, || server.named().filter(|pid| *pid != old));
    sleep(for_so_long);
    successor.ok_or_else(|| "a good upgrade is not carried out".to_owned())
}

/// Looks again and again, and gives up.
pub(crate) fn await_within<T>(timeout: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        sleep(PAUSE);
    }
}

/// What is run when a server starts its successor.
pub(crate) struct ProgramFile {
    pub(crate) path: PathBuf,
    good: PathBuf,
}

impl ProgramFile {
    pub(crate) fn new(path: PathBuf, good: PathBuf) -> Result<Self, String> {
        let file = Self { path, good };
        file.restore()?;
        Ok(file)
    }

    fn restore(&self) -> Result<(), String> {
        let new = self.path.with_extension("new");
        fs::copy(&self.good, &new).map_err(failed(new.display()))?;
        fs::rename(&new, &self.path).map_err(failed(self.path.display()))
    }

    /// A script in its place. The file is another one, so that who runs the old one runs on.
    fn put(&self, script: &str) -> Result<(), String> {
        let new = self.path.with_extension("new");
        fs::write(&new, script).map_err(failed(new.display()))?;
        fs::set_permissions(&new, Permissions::from_mode(0o755)).map_err(failed(new.display()))?;
        fs::rename(&new, &self.path).map_err(failed(self.path.display()))
    }
}
