//! Whose child a process is: `/proc/PID/stat` (proc(5)).

use std::fs;
use std::iter::successors;

/// No family is deeper than this; a tree that changes while it is climbed has an end.
const MOST_ANCESTORS: usize = 64;

/// A line of `/proc/PID/stat`, as far as it is wanted.
pub(crate) struct Stat {
    pub(crate) is_dead: bool,
    pub(crate) parent: u32,
    /// Ticks since the system was started.
    pub(crate) born: u64,
}

/// What the kernel knows of a process. `None` if it is gone, or if there is no `/proc`.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name, in parentheses, and may contain anything.
    let mut fields = line.rsplit_once(") ")?.1.split(' ');
    let is_dead = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let born = fields.nth(17)?.parse().ok()?;
    Some(Stat { is_dead, parent, born })
}

/// The parent of a process, whose parent, and so on.
pub(crate) fn ancestors(pid: u32) -> impl Iterator<Item = u32> {
    let parent = |pid: u32| stat(pid).map(|stat| stat.parent);
    successors(parent(pid), move |pid| parent(*pid)).take(MOST_ANCESTORS)
}
