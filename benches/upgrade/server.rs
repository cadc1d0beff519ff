//! A server that is upgraded again and again, seen through its pid file, its end and its log.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::common::failed;
use crate::common::figures::{median, milliseconds};
use crate::common::process::{self, Started};
use crate::common::surroundings::Journal;

/// Longer than an upgrade takes on a machine that is alive.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a program with memory says when it has filled it.
pub(crate) const FILLED: &str = "filled in ";
/// What stands between a line of such a program and when it was said, in microseconds.
pub(crate) const STAMP: &str = " at ";
/// What is said when a process has stopped accepting, and by the next one when it accepts and its pid file says so.
const PAUSED: &str = "quit the listening.";
const ACCEPTS: &str = "pid file written.";

/// What was seen of one upgrade, in milliseconds.
pub(crate) struct Seen {
    /// Without the time in which the successor filled its memory, which is the program's own.
    pub(crate) accepting: f64,
    pub(crate) gap: f64,
    /// The same by the clock that both processes read, where the program says when it is what.
    pub(crate) gap_by_clock: Option<f64>,
    pub(crate) gone: f64,
    pub(crate) turn: f64,
    filled: f64,
    /// The longest time between two looks at the pid file.
    pub(crate) blind: f64,
    /// What the empty program took after it.
    pub(crate) empty: f64,
}

pub(crate) struct Server {
    /// How many it has of what is varied.
    pub(crate) size: usize,
    pub(crate) seen: Vec<Seen>,
    process: Started,
    pid_file: PathBuf,
    journal: Journal,
}

impl Server {
    /// Starts a program. Its last argument is still missing: the pid file.
    pub(crate) fn start(
        mut command: Command,
        place: &Path,
        name: &str,
        size: usize,
    ) -> Result<Self, String> {
        let pid_file = place.join(name).with_extension("pid");
        let journal = Journal::new(&place.join(name).with_extension("log"))?;
        let child = command
            .arg(&pid_file)
            .stdin(Stdio::null())
            .stderr(journal.stderr()?)
            .spawn()
            .map_err(failed(format_args!("start {name}")))?;
        let process = Started::new(&child);
        process::await_some("the pid file", || Ok(process::named_in(&pid_file)))?;
        Ok(Self { size, seen: Vec::new(), process, pid_file, journal })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.process.pid
    }

    /// How long a successor took to fill its memory, in the middle.
    pub(crate) fn filled(&self) -> String {
        format!("{:.0}", median(self.seen.iter().map(|seen| seen.filled)))
    }

    pub(crate) fn upgrade(&mut self) -> Result<Seen, String> {
        let old = self.process.pid;
        let said_before = self.journal.read()?.len();
        let before = process::number_of(&self.pid_file)?;
        let end = pidfd_open(old, PidfdFlags::empty()).map_err(failed("open the server"))?;
        let sent = Instant::now();
        kill_process(old, Signal::HUP).map_err(failed("send HUP"))?;
        let blind = process::await_renamed(&self.pid_file, before, sent, PATIENCE)?;
        let accepting = Instant::now();
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let ended = rustix::event::poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&patience));
        let gone = milliseconds(&accepting.elapsed());
        if ended.map_err(failed("wait for the predecessor"))? == 0 {
            return Err(format!("{old:?} does not leave"));
        }
        let successor = process::named_in(&self.pid_file).ok_or("the pid file names no process")?;
        if successor == old {
            return Err("the pid file was renamed and names the same process".into());
        }
        process::reap(old)?;
        self.process.pid = successor;

        let said = self.journal.read()?.split_off(said_before);
        let of = |pid: Pid| {
            let prefix = format!("[{}]", pid.as_raw_pid());
            said.lines().filter(move |line| line.starts_with(&prefix))
        };
        let done = of(old).find_map(|line| number_behind(line, ", takeover "));
        let turns = of(old).filter_map(|line| number_behind(line, "longest turn "));
        let filled = of(successor).find_map(|line| number_behind(line, FILLED)).unwrap_or(0.0);
        let said_at = |pid: Pid, what: &str| {
            of(pid).find(|line| line.contains(what)).and_then(|line| number_behind(line, STAMP))
        };
        Ok(Seen {
            accepting: milliseconds(&(accepting - sent)) - filled,
            gap: done.ok_or_else(|| format!("no report of the upgrade in {said:?}"))?,
            gap_by_clock: said_at(successor, ACCEPTS)
                .zip(said_at(old, PAUSED))
                .map(|(accepts, paused)| (accepts - paused) / 1e3),
            gone,
            turn: turns.fold(0.0, f64::max),
            filled,
            blind: milliseconds(&blind),
            empty: f64::NAN,
        })
    }
}

/// The number in a line behind those words.
fn number_behind(line: &str, words: &str) -> Option<f64> {
    line.split_once(words)?.1.split(' ').next()?.parse().ok()
}
