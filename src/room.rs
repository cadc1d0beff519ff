//! How many descriptors clients may have, so that an upgrade, and the sessions that are to come with
//! it, find theirs.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::close;

use crate::limits;

/// The bound on descriptors, looked up now and then.
#[derive(Debug)]
pub(crate) struct Room {
    limit: u64,
    looked: Instant,
}

impl Room {
    pub(crate) fn new(now: Instant) -> Self {
        Self { limit: limit(), looked: now }
    }

    /// The first number that a client's descriptor is not to have. The kernel gives the lowest number
    /// that is free (open(2)): whoever gets one of this or more is told by it that all below are taken.
    ///
    /// `to_come` are the descriptors that the sessions of a predecessor bring. A process that may have
    /// very few gives a half of them to clients, whatever it needs.
    pub(crate) fn ceiling(&mut self, now: Instant, to_come: usize) -> RawFd {
        if now.saturating_duration_since(self.looked) >= limits::LIMIT_INTERVAL {
            *self = Self::new(now);
        }
        let reserved = limits::RESERVED_DESCRIPTORS.min(self.limit / 2);
        let left = self.limit.saturating_sub(reserved).saturating_sub(to_come as u64);
        RawFd::try_from(left).unwrap_or(RawFd::MAX)
    }
}

/// Has the kernel make its table of this process's descriptors as large as it may become, up to
/// [`limits::DESCRIPTOR_SLOTS`], for the price of some microseconds.
///
/// It would double the table whenever that is full. Once there is a second thread, whoever needs the
/// descriptor then stands still for a grace period of RCU, which is 8 to 20 ms (`expand_fdtable` in the
/// kernel's fs/file.c). So this is called before the first thread is made.
pub(crate) fn reserve_table() {
    let last = limit().min(limits::DESCRIPTOR_SLOTS).saturating_sub(1);
    // A duplicate of anything under the highest number makes the table as large. Where that fails, it grows later.
    let highest = RawFd::try_from(last).map(FcntlArg::F_DUPFD_CLOEXEC);
    if let Ok(Ok(duplicate)) = highest.map(|highest| fcntl(io::stderr(), highest)) {
        let _ = close(duplicate);
    }
}

/// RLIMIT_NOFILE (getrlimit(2)). Where it cannot be asked for, there is no bound.
fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_room_for_all_descriptors_that_there_may_be() {
        reserve_table();
        // FDSize, proc_pid_status(5).
        let status = std::fs::read_to_string("/proc/self/status").expect("read");
        let slots = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        let slots: u64 = slots.expect("there").trim().parse().expect("a number");
        assert!(slots >= limit().min(limits::DESCRIPTOR_SLOTS), "{slots} slots");
    }

    #[test]
    fn what_an_upgrade_needs_and_what_comes_with_it_is_not_for_clients() {
        let now = Instant::now();
        let mut room = Room { limit: 1000, looked: now };
        let reserved = limits::RESERVED_DESCRIPTORS as RawFd;
        assert_eq!(room.ceiling(now, 0), 1000 - reserved);
        assert_eq!(room.ceiling(now, 100), 900 - reserved);
        assert_eq!(room.ceiling(now, 5000), 0);
        assert_eq!(Room { limit: 16, looked: now }.ceiling(now, 0), 8);
        assert_eq!(Room { limit: u64::MAX, looked: now }.ceiling(now, 0), RawFd::MAX);
    }

    #[test]
    fn a_limit_that_somebody_has_changed_is_noticed_a_second_later() {
        let now = Instant::now();
        let mut room = Room { limit: 4, looked: now };
        let later = now + limits::LIMIT_INTERVAL;
        assert_eq!(room.ceiling(later - std::time::Duration::from_nanos(1), 0), 2);
        assert_eq!(room.ceiling(later, 0), Room::new(later).ceiling(later, 0));
        assert_ne!(room.limit, 4);
    }
}
