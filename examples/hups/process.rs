//! What /proc tells about the server's processes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

/// What processes of the same server have in common.
pub(crate) struct Program {
    executable: PathBuf,
    /// What follows the program's name on the command line.
    arguments: Vec<u8>,
    name: String,
}

impl Program {
    pub(crate) fn of(pid: i32) -> io::Result<Program> {
        Ok(Program {
            executable: executable(pid)?,
            arguments: arguments(pid)?,
            name: Status::of(pid).map(|status| status.name).unwrap_or_default(),
        })
    }

    /// The processes that run this program with the same arguments.
    pub(crate) fn processes(&self) -> BTreeSet<i32> {
        let same = |pid: &i32| {
            executable(*pid).is_ok_and(|found| found == self.executable)
                && arguments(*pid).is_ok_and(|found| found == self.arguments)
        };
        all().filter(same).collect()
    }

    /// How many of `pids` have ended and were not waited for, and how many other such children
    /// `parent` has.
    pub(crate) fn zombies(&self, pids: &BTreeSet<i32>, parent: i32) -> Zombies {
        let mut zombies = Zombies::default();
        for pid in all() {
            let Some(status) = Status::of(pid).filter(|status| status.is_zombie) else {
                continue;
            };
            if status.parent == parent || (pids.contains(&pid) && status.name == self.name) {
                match status.parent {
                    1 => zombies.of_init += 1,
                    _ => zombies.of_others += 1,
                }
            }
        }
        zombies
    }
}

/// Processes that have ended and that nobody has waited for.
#[derive(Default)]
pub(crate) struct Zombies {
    /// Those whose parent is at fault: the server, or what started it.
    pub(crate) of_others: usize,
    /// Orphans that process 1 has yet to take: no fault of the server.
    pub(crate) of_init: usize,
}

/// `ancestor` and what descends from it.
pub(crate) fn family(ancestor: i32) -> BTreeSet<i32> {
    let mut others: Vec<(i32, Status)> =
        all().filter_map(|pid| Some((pid, Status::of(pid)?))).collect();
    others.retain(|(_, status)| !status.is_zombie);
    let mut family = BTreeSet::new();
    if others.iter().any(|(pid, _)| *pid == ancestor) {
        family.insert(ancestor);
    }
    loop {
        let size = family.len();
        let members = family.clone();
        let children = others.iter().filter(|(_, status)| members.contains(&status.parent));
        family.extend(children.map(|(pid, _)| *pid));
        if family.len() == size {
            return family;
        }
    }
}

/// The children of the main thread of `pid`. Far quicker than a look at all processes.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Whether the process is gone, or only waits to be waited for.
pub(crate) fn has_ended(pid: i32) -> bool {
    Status::of(pid).is_none_or(|status| status.is_zombie)
}

/// Descriptors and memory of a process.
#[derive(Clone, Copy)]
pub(crate) struct Footprint {
    pub(crate) descriptors: u64,
    pub(crate) resident_kib: u64,
    pub(crate) anonymous_kib: u64,
}

impl Footprint {
    pub(crate) fn of(pid: i32) -> Option<Footprint> {
        let folder = format!("/proc/{pid}/fd");
        // Since Linux 6.2 the length of this folder is the number of descriptors.
        let descriptors = match fs::metadata(&folder).ok()?.len() {
            0 => fs::read_dir(&folder).ok()?.count() as u64,
            length => length,
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kib = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Footprint {
            descriptors,
            resident_kib: kib("VmRSS:")?,
            anonymous_kib: kib("RssAnon:")?,
        })
    }

    pub(crate) fn least(self, other: Footprint) -> Footprint {
        Footprint {
            descriptors: self.descriptors.min(other.descriptors),
            resident_kib: self.resident_kib.min(other.resident_kib),
            anonymous_kib: self.anonymous_kib.min(other.anonymous_kib),
        }
    }
}

/// The processor time of this thread so far.
pub(crate) fn own_processor_time() -> Option<std::time::Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(std::time::Duration::from_nanos)
}

struct Status {
    name: String,
    is_zombie: bool,
    parent: i32,
}

impl Status {
    fn of(pid: i32) -> Option<Status> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold parentheses itself.
        let (before, after) = text.rsplit_once(')')?;
        let (_, name) = before.split_once('(')?;
        let mut fields = after.split_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        Some(Status { name: name.to_string(), is_zombie: matches!(state, "Z" | "X"), parent })
    }
}

fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn executable(pid: i32) -> io::Result<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe"))?;
    // A program file that was replaced or removed since.
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from))
}

fn arguments(pid: i32) -> io::Result<Vec<u8>> {
    let line = fs::read(format!("/proc/{pid}/cmdline"))?;
    let name_end = line.iter().position(|byte| *byte == 0).map_or(line.len(), |at| at + 1);
    Ok(line[name_end..].to_vec())
}
