//! Processes seen from outside: what they cost, where they listen, and their end.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::failed;

/// Longer than anything here takes on a machine that is alive.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a pid file. The processors are not to be kept from those who work.
const BETWEEN_LOOKS: Duration = Duration::from_micros(10);
/// How long a wait for something that is not measured sleeps between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// Looks again and again until something is there.
pub(crate) fn await_some<T>(
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(format!("{what}: not within {PATIENCE:?}"));
        }
        sleep(PAUSE);
    }
}

/// The process that a pid file names; `None` while there is no file.
pub(crate) fn named_in(pid_file: &Path) -> Option<Pid> {
    Pid::from_raw(fs::read_to_string(pid_file).ok()?.trim().parse().ok()?)
}

/// The number of a file: another file that is renamed into its place has another one.
pub(crate) fn number_of(file: &Path) -> Result<u64, String> {
    fs::metadata(file).map(|found| found.ino()).map_err(failed(file.display()))
}

/// Looks again and again until another file than that one was renamed into the place of a pid file. Answers the
/// longest time between two looks, of which the first was at `since`.
pub(crate) fn await_renamed(
    pid_file: &Path,
    before: u64,
    since: Instant,
    patience: Duration,
) -> Result<Duration, String> {
    let (mut looked, mut blind) = (since, Duration::ZERO);
    while number_of(pid_file)? == before {
        sleep(BETWEEN_LOOKS);
        let now = Instant::now();
        blind = blind.max(now - looked);
        looked = now;
        if now - since > patience {
            return Err(format!("no successor within {patience:?}"));
        }
    }
    Ok(blind)
}

/// Processor time of a process's main thread until now, or until it last went to sleep
/// (`/proc/PID/schedstat`, nanoseconds on a processor first).
pub(crate) fn processor_time(pid: Pid) -> Result<Duration, String> {
    let path = format!("/proc/{}/schedstat", pid.as_raw_pid());
    let text = fs::read_to_string(&path).map_err(failed(&path))?;
    let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok());
    nanoseconds.map(Duration::from_nanos).ok_or_else(|| format!("{path}: {text:?}"))
}

/// Where on 127.0.0.1 a process listens, once it does. It was asked for port 0 and need not say
/// which one it got: its sockets are in /proc, and so are their addresses (proc(5)).
pub(crate) fn listening(pid: Pid) -> Result<SocketAddr, String> {
    await_some("a server that listens", || {
        let own = sockets(pid)?;
        let table = fs::read_to_string("/proc/net/tcp").map_err(failed("/proc/net/tcp"))?;
        let port = table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // sl local remote state queues timer retransmits uid timeout inode
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            if *state != "0A" || !own.contains(*inode) {
                return None;
            }
            u16::from_str_radix(local.rsplit(':').next()?, 16).ok()
        });
        Ok(port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
    })
}

/// The inode numbers of a process's sockets.
fn sockets(pid: Pid) -> Result<HashSet<String>, String> {
    let path = format!("/proc/{}/fd", pid.as_raw_pid());
    let descriptors = fs::read_dir(&path).map_err(failed(&path))?;
    let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let inode = |link: &str| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    Ok(links.filter_map(|link| inode(link.to_str()?)).collect())
}

/// Makes what a child of this process leaves behind this process's own child: a successor can be
/// waited for by whoever started its predecessor (PR_SET_CHILD_SUBREAPER, prctl(2)).
pub(crate) fn adopt_orphans() -> Result<(), String> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(failed("become a subreaper"))
}

/// Waits for a child's end and takes its status.
pub(crate) fn reap(pid: Pid) -> Result<(), String> {
    await_some("the end of a process", || {
        waitpid(Some(pid), WaitOptions::NOHANG)
            .map(|status| status.map(|_| ()))
            .map_err(failed("wait for a process"))
    })
}

/// The children of all of a process's threads.
pub(crate) fn children(pid: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())).into_iter().flatten();
    let lists = tasks.flatten().map(|task| fs::read_to_string(task.path().join("children")));
    let mut all = Vec::new();
    for list in lists.flatten() {
        all.extend(list.split_whitespace().filter_map(|word| Pid::from_raw(word.parse().ok()?)));
    }
    all
}

/// Whether a process has ended and was not waited for, or is gone.
pub(crate) fn has_ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
    // The name stands in parentheses and may hold parentheses itself.
    stat.rsplit_once(") ").is_none_or(|(_, after)| after.starts_with(['Z', 'X']))
}

/// What descends from a process.
pub(crate) fn descendants(pid: Pid) -> Vec<Pid> {
    let mut all = children(pid);
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        all.extend(children(pid));
        next += 1;
    }
    all
}

/// Memory of a process that is its own and no file's, in bytes (RssAnon, proc(5)).
pub(crate) fn anonymous_memory(pid: Pid) -> Result<f64, String> {
    let path = format!("/proc/{}/status", pid.as_raw_pid());
    let text = fs::read_to_string(&path).map_err(failed(&path))?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0).ok_or_else(|| format!("{path}: no RssAnon"))
}

/// A server that this bench started, or the successor of one. It ends with the bench, and so does
/// whoever would take over from it.
pub(crate) struct Started {
    pub(crate) pid: Pid,
}

impl Started {
    pub(crate) fn new(child: &Child) -> Self {
        Self { pid: Pid::from_child(child) }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Not reaped yet, so the number still means this process; and once they are adopted, the
        // same holds for its children.
        let heirs = children(self.pid);
        for pid in std::iter::once(self.pid).chain(heirs) {
            if kill_process(pid, Signal::KILL).is_ok() {
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
        }
    }
}
