//! How children of this process end: one after the other, whoever they are.

use std::io;
use std::mem::MaybeUninit;

use nix::errno::Errno;
use nix::libc;

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(i32),
    Killed(i32),
}

/// Takes the status of one child that has ended, so that it is no zombie any more: its id, and how it ended.
/// `None` if there is none that has ended. Never waits.
///
/// Not by nix: it has no name for the real-time signals, and would lose a child that was killed by one.
pub(crate) fn reap() -> io::Result<Option<(u32, Ending)>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG;
    // SAFETY: the kernel fills in the structure, or leaves it as it is, which is zeroed.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) };
    match Errno::result(result) {
        Ok(_) => {}
        Err(Errno::ECHILD) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    // SAFETY: zeroed, or filled in by the call above.
    let info = unsafe { info.assume_init() };
    // SAFETY: the fields of a child's end are filled in, or 0 as before (waitid(2), WNOHANG).
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let ending = match info.si_code {
        libc::CLD_EXITED => Ending::Exited(status),
        _ => Ending::Killed(status),
    };
    Ok(u32::try_from(pid).ok().filter(|pid| *pid > 0).map(|pid| (pid, ending)))
}
