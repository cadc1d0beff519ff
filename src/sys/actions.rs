//! What a signal does in this process: asked for, and put back.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use nix::errno::Errno;
use nix::libc;

/// What a signal does: a handler, nothing, or its default, with flags and mask (sigaction(2)).
#[derive(Clone, Copy)]
pub(crate) struct Action {
    signal: i32,
    action: libc::sigaction,
}

impl Action {
    /// What a signal does now.
    pub(crate) fn of(signal: i32) -> io::Result<Self> {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: with a null new action the call only fills in the old one, or fails.
        Errno::result(unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) })?;
        // SAFETY: zeroed, and filled in by the call above.
        Ok(Self { signal, action: unsafe { action.assume_init() } })
    }

    /// Has the signal do this again.
    pub(crate) fn put_back(&self) -> io::Result<()> {
        // SAFETY: the action was this process's for the same signal, or differs from that only in
        // what `keeping_status` and `ignored` say. So its handler, if it has one, is a function for that signal.
        Errno::result(unsafe { libc::sigaction(self.signal, &self.action, ptr::null_mut()) })?;
        Ok(())
    }

    /// The signal.
    pub(crate) fn signal(&self) -> i32 {
        self.signal
    }

    /// Of a signal that would end the process: that it is ignored. `None` if it does something else.
    pub(crate) fn ignored(&self) -> Option<Self> {
        let Self { signal, mut action } = *self;
        if action.sa_sigaction != libc::SIG_DFL {
            return None;
        }
        action.sa_sigaction = libc::SIG_IGN;
        Some(Self { signal, action })
    }

    /// Of SIGCHLD: the same without what takes the exit status of children away, which is that it is
    /// ignored, and SA_NOCLDWAIT (waitpid(2)). `None` if it takes none away.
    pub(crate) fn keeping_status(&self) -> Option<Self> {
        let Self { signal, mut action } = *self;
        let ignored = action.sa_sigaction == libc::SIG_IGN;
        if !ignored && action.sa_flags & libc::SA_NOCLDWAIT == 0 {
            return None;
        }
        if ignored {
            action.sa_sigaction = libc::SIG_DFL;
        }
        action.sa_flags &= !libc::SA_NOCLDWAIT;
        Some(Self { signal, action })
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Action").field("signal", &self.signal).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_takes_the_status_of_children_away_is_changed() {
        let with = |handler, flags| {
            let mut action = Action::of(libc::SIGCHLD).expect("an action");
            (action.action.sa_sigaction, action.action.sa_flags) = (handler, flags);
            action
                .keeping_status()
                .map(|Action { action, .. }| (action.sa_sigaction, action.sa_flags))
        };
        let (restart, lost) = (libc::SA_RESTART, libc::SA_NOCLDWAIT);
        assert_eq!(with(libc::SIG_DFL, 0), None);
        assert_eq!(with(1234, restart), None);
        assert_eq!(with(libc::SIG_IGN, 0), Some((libc::SIG_DFL, 0)));
        assert_eq!(with(libc::SIG_DFL, lost), Some((libc::SIG_DFL, 0)));
        assert_eq!(with(1234, restart | lost), Some((1234, restart)), "the handler stays");
    }
}
