//! Which processor runs what: who is measured has one to itself.

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The first two that this process may use.
pub(crate) fn two() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut processors = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor));
    Some([processors.next()?, processors.next()?])
}

/// Puts a process, or this one, on that processor, with whatever it starts from here on. Answers
/// whether that could be done.
pub(crate) fn put(pid: Option<Pid>, processor: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(pid, &set).is_ok()
}
