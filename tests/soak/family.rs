//! A server and all that come after it, seen from outside.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};

use crate::harness::{Actor, children_of};

/// The processes that have a path in their command line, which no others have. Ends them all when
/// it is dropped.
///
/// Who descends from whom would not tell: a child whose parent dies between two looks is seen in
/// neither.
pub(crate) struct Family {
    mark: Vec<u8>,
}

impl Family {
    /// Makes this process the parent of whom a dead server leaves behind, so that it hears of every
    /// end (PR_SET_CHILD_SUBREAPER, prctl(2)).
    pub(crate) fn around(place: &Path) -> Self {
        rustix::process::set_child_subreaper(Some(getpid())).expect("a subreaper");
        Self { mark: place.to_str().expect("text").into() }
    }

    /// Those that live: the dead have no command line (proc(5)).
    pub(crate) fn alive(&self) -> Vec<u32> {
        let is_one = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(self.mark.len()).any(|part| part == self.mark)
        };
        let pids = fs::read_dir("/proc").expect("proc").flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_one).collect()
    }

    /// Waits for the dead among this process's own children, and answers how they ended. What a
    /// server does not wait for itself is left as it is.
    pub(crate) fn reap(&self, actor: &mut Actor) -> Vec<(u32, ExitStatus)> {
        let dead = children_of(std::process::id()).into_iter().filter(|(_, state)| *state == 'Z');
        let status = |(pid, _)| match pid == actor.pid() {
            // It is known to the library as a child; the others are not.
            true => (pid, actor.first_exits()),
            false => (pid, wait_for(pid)),
        };
        dead.map(status).collect()
    }
}

fn wait_for(pid: u32) -> ExitStatus {
    let status = waitpid(Pid::from_raw(pid as i32), WaitOptions::NOHANG).expect("our child");
    let (_, status) = status.expect("it is dead");
    ExitStatus::from_raw(status.as_raw())
}

impl Drop for Family {
    fn drop(&mut self) {
        loop {
            let alive = self.alive();
            if alive.is_empty() {
                return;
            }
            for pid in alive.into_iter().filter_map(|pid| Pid::from_raw(pid as i32)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}
