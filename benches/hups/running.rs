//! A peer that serves, with all the processes that it comes to.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::common::failed;
use crate::common::process::{self, named_in};
use crate::common::surroundings::Journal;
use crate::peer::{Peer, Setup, Upgrade};

pub(crate) struct Running {
    pub(crate) peer: Peer,
    pub(crate) setup: Setup,
    journal: Journal,
    /// The process that this bench has started.
    first: Pid,
    /// What this bench had started before it.
    others: Vec<Pid>,
}

impl Running {
    pub(crate) fn start(peer: Peer, setup: Setup) -> Result<Self, String> {
        fs::create_dir_all(&setup.place).map_err(failed(setup.place.display()))?;
        let others = process::descendants(rustix::process::getpid());
        let journal = Journal::new(&setup.log())?;
        let mut command = peer.command(&setup)?;
        // A group of its own: what a master sends to its group stays there.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(journal.stderr()?);
        let child = command.spawn().map_err(failed(format_args!("start {}", peer.name)))?;
        let running = Self { peer, first: Pid::from_child(&child), setup, journal, others };
        process::await_some(peer.name, || {
            let serves = TcpStream::connect(running.setup.address).is_ok();
            Ok((serves && running.named().is_some()).then_some(()))
        })?;
        Ok(running)
    }

    /// The process that its pid file names.
    pub(crate) fn named(&self) -> Option<Pid> {
        named_in(&self.setup.pid_file())
    }

    /// The storm's flags that say how it is told to upgrade.
    pub(crate) fn upgrade_flags(&self) -> Result<Vec<String>, String> {
        let pid_file = || format!("--pid-file={}", self.setup.pid_file().display());
        Ok(match self.peer.upgrade {
            Upgrade::Itself => vec![pid_file()],
            Upgrade::Master { signal, .. } => {
                let master = self.named().ok_or("no pid file")?;
                vec![format!("--pid={}", master.as_raw_pid()), format!("--signal={signal}")]
            }
            Upgrade::Script(script) => {
                let file = self.setup.place.join("upgrade.sh");
                fs::write(&file, script(&self.setup, self.first))
                    .map_err(failed(file.display()))?;
                let command = format!("--upgrade-command=exec sh '{}'", file.display());
                vec![pid_file(), command]
            }
        })
    }

    /// How often another process has taken over, by its log; `None` where the pid file tells it.
    pub(crate) fn logged_upgrades(&self) -> Result<Option<u64>, String> {
        let Upgrade::Master { carried_out, at_start, .. } = self.peer.upgrade else {
            return Ok(None);
        };
        let log = self.journal.read()?;
        let lines = log.lines().filter(|line| line.contains(carried_out)).count();
        Ok(Some(lines.saturating_sub(at_start) as u64))
    }

    /// Something else that this bench has started meanwhile.
    pub(crate) fn beside(&mut self, other: Pid) {
        self.others.push(other);
    }

    /// All its processes, those among them that were not waited for.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let own = rustix::process::getpid();
        let mut all = process::children(own);
        all.retain(|pid| !self.others.contains(pid));
        // Orphans have become this process's children, which it waits for.
        all.retain(|pid| !matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(Some(_))));
        let heirs: Vec<Pid> = all.iter().flat_map(|pid| process::descendants(*pid)).collect();
        all.extend(heirs);
        all
    }

    /// How many of them have not ended.
    pub(crate) fn living(&self) -> usize {
        self.processes().into_iter().filter(|pid| !process::has_ended(*pid)).count()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whatever loses its parent here becomes this process's own child, so the loop ends with all of
        // them.
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in &left {
                let _ = kill_process(*pid, Signal::KILL);
            }
            for pid in left {
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
        }
    }
}
