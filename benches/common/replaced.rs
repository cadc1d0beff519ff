//! A proxy that is told again and again to take its configuration anew, with all the processes that it comes to.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};

use super::failed;
use super::process::{self, named_in};

/// How one of them is told, and by which words of its log a reload that was carried out is counted.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    signal: Signal,
    /// In a line of its log for each time that a process has taken over, but for the first.
    carried_out: &'static str,
    /// How many of those lines the start itself has written.
    at_start: usize,
}

pub(crate) const OURS: Manner =
    Manner { signal: Signal::HUP, carried_out: ": done; spawn ", at_start: 0 };
/// In master-worker mode.
pub(crate) const HAPROXY: Manner =
    Manner { signal: Signal::USR2, carried_out: "New worker (", at_start: 1 };
pub(crate) const NGINX: Manner =
    Manner { signal: Signal::HUP, carried_out: "start worker process ", at_start: 1 };

/// Where a proxy in that directory is to write its pid file.
pub(crate) fn pid_file(place: &Path) -> PathBuf {
    place.join("pid")
}

/// One that serves.
pub(crate) struct Replaced {
    pub(crate) name: &'static str,
    manner: Manner,
    place: PathBuf,
    pub(crate) address: SocketAddr,
    /// What this bench had started before it.
    others: Vec<Pid>,
}

impl Replaced {
    /// Starts it in an empty directory, and waits until it serves at that address.
    pub(crate) fn start(
        name: &'static str,
        manner: Manner,
        mut command: Command,
        place: PathBuf,
        address: SocketAddr,
    ) -> Result<Self, String> {
        let others = process::descendants(getpid());
        let log = File::create(place.join("log")).map_err(failed("make a log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.spawn().map_err(failed(format_args!("start {name}")))?;
        let proxy = Self { name, manner, place, address, others };
        process::await_some(name, || {
            let serves = TcpStream::connect(address).is_ok() && proxy.main().is_some();
            Ok(serves.then_some(()))
        })?;
        Ok(proxy)
    }

    /// The process that takes signals.
    fn main(&self) -> Option<Pid> {
        named_in(&pid_file(&self.place))
    }

    pub(crate) fn reload(&self) -> Result<(), String> {
        let main = self.main().ok_or_else(|| format!("{}: no pid file", self.name))?;
        kill_process(main, self.manner.signal).map_err(failed("send a signal"))
    }

    /// How often another process has taken over, by its own word.
    pub(crate) fn reloads(&self) -> Result<usize, String> {
        let log = fs::read(self.place.join("log")).map_err(failed("read a log"))?;
        let log = String::from_utf8_lossy(&log);
        let lines = log.lines().filter(|line| line.contains(self.manner.carried_out)).count();
        Ok(lines.saturating_sub(self.manner.at_start))
    }

    /// All its processes that live.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let own = getpid();
        // Orphans have become this process's children, which it waits for.
        for child in process::children(own).iter().filter(|pid| !self.others.contains(pid)) {
            let _ = waitpid(Some(*child), WaitOptions::NOHANG);
        }
        let mut all = process::descendants(own);
        all.retain(|pid| !self.others.contains(pid));
        all
    }

    /// Memory of all its processes that is their own and no file's, in bytes.
    pub(crate) fn memory(&self) -> Result<f64, String> {
        self.processes().into_iter().map(process::anonymous_memory).sum()
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        // None of the numbers can mean another one before it was waited for here.
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ = kill_process(pid, Signal::KILL);
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
        }
    }
}
