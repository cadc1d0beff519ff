//! Who is who to this process: its descendants, its children, and the heir of a server.

use std::fs;
use std::io;

use nix::libc;

use crate::kinship::{ancestors, stat};
use crate::sys;
use crate::wire::{Handoff, VARIABLE};

/// Whether a process descends from this one.
pub(super) fn is_descendant(pid: u32) -> bool {
    let own = std::process::id();
    // Without /proc: whoever has an id here, where this is process 1, descends from it.
    let is_all_there_is = || own == 1 && pid > 1 && stat(pid).is_none() && stat(own).is_none();
    ancestors(pid).any(|ancestor| ancestor == own) || is_all_there_is()
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
