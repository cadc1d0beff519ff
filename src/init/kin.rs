//! What the kernel knows of relations: `/proc/PID/stat` (proc(5)).

use std::fs;
use std::io;

use nix::libc;

use crate::sys;
use crate::wire::{Handoff, VARIABLE};

/// No family is deeper than this; a tree that changes while it is climbed has an end.
const MOST_STEPS: usize = 64;

/// A line of `/proc/PID/stat`, as far as it is wanted.
struct Stat {
    is_dead: bool,
    parent: u32,
    /// Ticks since the system was started.
    born: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name, in parentheses, and may contain anything.
    let mut fields = line.rsplit_once(") ")?.1.split(' ');
    let is_dead = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let born = fields.nth(17)?.parse().ok()?;
    Some(Stat { is_dead, parent, born })
}

/// Whether a process descends from this one.
pub(super) fn is_descendant(pid: u32) -> bool {
    let own = std::process::id();
    let mut at = pid;
    for _ in 0..MOST_STEPS {
        match stat(at) {
            Some(Stat { parent, .. }) if parent == own => return true,
            Some(Stat { parent, .. }) if parent > 1 => at = parent,
            Some(_) => return false,
            // Without /proc: whoever has an id here, where this is process 1, descends from it.
            None => return own == 1 && at == pid && pid > 1 && stat(own).is_none(),
        }
    }
    false
}

/// This process's children that are alive.
pub(super) fn children() -> Vec<u32> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    names.filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == own && !stat.is_dead)).collect()
}

/// The successor that one of these processes has left: an orphan that has got its handoff from one of them. Where that
/// cannot be read (another user's, proc(5)), the orphan that was born last.
pub(super) fn left_by(generations: &[u32]) -> Option<u32> {
    let born = |pid: &u32| stat(*pid).map_or(0, |stat| stat.born);
    let orphans = children().into_iter().filter(|pid| !generations.contains(pid));
    let heirs =
        orphans.filter(|pid| predecessor_of(*pid).is_none_or(|of| generations.contains(&of)));
    heirs.max_by_key(born)
}

/// Who has spawned it as a successor, by the environment that it was started with: 0 if nobody has. `None` if that is
/// not to be known.
fn predecessor_of(pid: u32) -> Option<u32> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let named = |assignment: &[u8]| {
        let text = std::str::from_utf8(assignment).ok()?;
        let handoff = text.strip_prefix(VARIABLE)?.strip_prefix('=')?;
        Handoff::parse(handoff).ok().map(|handoff| handoff.pid)
    };
    Some(environment.split(|byte| *byte == 0).find_map(named).unwrap_or(0))
}

/// Signals a child of this process: it is not reaped before this process does so, so that its id means it.
pub(super) fn signal_child(pid: u32, signal: libc::c_int) -> io::Result<()> {
    use std::os::fd::AsFd;
    sys::send_signal(sys::process_descriptor(pid)?.as_fd(), signal)
}
