//! Signals to events, for as long as there is a server.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mio::{Interest, Registry, Token};
use nix::libc::{SIGCHLD, SIGXFSZ};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use signal_hook_mio::v1_0::Signals as Source;

use crate::error::Error;
use crate::sys::Action;

/// The signals that [`hold`] has blocked in this process; bit n is signal n + 1.
static HELD: AtomicU64 = AtomicU64::new(0);

/// Whether a server of this process has the signals.
static CLAIMED: AtomicBool = AtomicBool::new(false);

/// signal-hook's own actions. It installs its handler for a signal once, and believes for ever that it
/// is there: when it is not, because an earlier server has put back what was there before, it has to
/// be installed again.
static INSTALLED: Mutex<Vec<Action>> = Mutex::new(Vec::new());

/// What a signal asks for, strongest first: in this order the signals of one batch are heard,
/// because the kernel does not keep theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Request {
    Exit,
    Shutdown,
    Upgrade,
    User,
}

/// The signals of a process have one owner at a time. What they do belongs to the process, and so does
/// what a successor is told by them.
#[derive(Debug)]
pub(crate) struct Claim(());

impl Claim {
    pub(crate) fn new() -> Result<Self, Error> {
        match CLAIMED.swap(true, Ordering::AcqRel) {
            true => Err(Error::AnotherServer),
            false => Ok(Self(())),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.store(false, Ordering::Release);
    }
}

/// The signals that this process handles.
pub(crate) struct Signals {
    /// Dropped first: when signal-hook hears nothing any more, nothing must reach it.
    _before: Before,
    source: Source,
    meanings: Vec<(i32, Request)>,
    heard: Vec<(Request, i32)>,
}

impl Signals {
    /// Handles these signals from here on, and lets them through to this thread: those that were sent
    /// before, and were blocked, come now. `inherited` is what the predecessor has blocked for this
    /// process; bit n is signal n + 1.
    ///
    /// SIGCHLD is not ignored from here on, or no successor would leave its exit status
    /// (waitpid(2)). SIGXFSZ is ignored, so that a file at its size limit is an error of whoever
    /// writes it, and not the end of the process (setrlimit(2)); that stays. All else is undone when
    /// the signals are dropped.
    pub(crate) fn install(
        claim: Claim,
        meanings: Vec<(i32, Request)>,
        inherited: u64,
    ) -> Result<Self, Error> {
        for (place, (signal, _)) in meanings.iter().enumerate() {
            let refuse = |reason: &str| Error::Signal { signal: *signal, reason: reason.into() };
            if signal_hook::consts::FORBIDDEN.contains(signal) {
                return Err(refuse("cannot be handled"));
            }
            if Signal::try_from(*signal).is_err() {
                return Err(refuse("is not known"));
            }
            if meanings[..place].iter().any(|(other, _)| other == signal) {
                return Err(refuse("is configured twice"));
            }
        }
        let failed = Error::system("handle signals");
        let numbers = || meanings.iter().map(|(signal, _)| *signal);
        let mut before = Before { actions: Vec::new(), blocked: SigSet::empty(), _claim: claim };
        for signal in numbers() {
            before.actions.push(Action::of(signal).map_err(failed)?);
        }
        let source = Source::new(numbers()).map_err(failed)?;
        numbers().try_for_each(install_again).map_err(failed)?;
        if !numbers().any(|signal| signal == SIGCHLD) {
            before.keep_status_of_children().map_err(failed)?;
        }
        if !numbers().any(|signal| signal == SIGXFSZ) {
            Before::outlive_full_files().map_err(failed)?;
        }
        before.let_through(&set_of(&meanings), inherited).map_err(failed)?;
        Ok(Self { _before: before, source, meanings, heard: Vec::new() })
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.source, token, Interest::READABLE)
    }

    /// The signals that came since the last call: each once, however often it came.
    pub(crate) fn take(&mut self) -> Vec<(Request, i32)> {
        self.heard.clear();
        for signal in self.source.pending() {
            let meaning = self.meanings.iter().find(|(known, _)| *known == signal);
            self.heard.extend(meaning.map(|(_, request)| (*request, signal)));
        }
        self.heard.sort_unstable();
        std::mem::take(&mut self.heard)
    }

    /// The signals that would kill a successor before it can handle them, although they are meant
    /// for the service: it is spawned with them blocked, and they are delivered once it is there.
    pub(crate) fn to_block(&self) -> SigSet {
        let blocked = |request| matches!(request, Request::Upgrade | Request::User);
        self.meanings
            .iter()
            .filter(|(_, request)| blocked(*request))
            .filter_map(|(signal, _)| Signal::try_from(*signal).ok())
            .collect()
    }
}

/// What signals did before there was a server. They do it again when this is dropped, on the server's
/// thread.
#[derive(Debug)]
struct Before {
    actions: Vec<Action>,
    /// Those that were blocked.
    blocked: SigSet,
    _claim: Claim,
}

impl Before {
    fn keep_status_of_children(&mut self) -> io::Result<()> {
        let action = Action::of(SIGCHLD)?;
        if let Some(other) = action.keeping_status() {
            other.put_back()?;
            self.actions.push(action);
        }
        Ok(())
    }

    /// For good: the last lines of the log are written when the server is gone.
    fn outlive_full_files() -> io::Result<()> {
        Action::of(SIGXFSZ)?.ignored().map_or(Ok(()), |ignored| ignored.put_back())
    }

    /// A parent may have blocked them for itself, and a mask comes through execve(2).
    fn let_through(&mut self, signals: &SigSet, inherited: u64) -> io::Result<()> {
        let held = HELD.load(Ordering::Relaxed);
        let signals = from_mask(to_mask(signals) | held);
        let mut mask = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&signals), Some(&mut mask))?;
        // What only the predecessor has blocked was for the time of the set-up.
        let passing = inherited & !held;
        self.blocked = from_mask(to_mask(&signals) & to_mask(&mask) & !passing);
        Ok(())
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        // Blocked first, so that a signal that is to wait finds no action that ends the process. The
        // kernel has taken both from this process before, and takes them again.
        let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&self.blocked), None);
        for action in &self.actions {
            let _ = action.put_back();
        }
    }
}

/// Has signal-hook's handler in place, which it installs for the first server only.
fn install_again(signal: i32) -> io::Result<()> {
    // A poisoned lock is as good as a whole one here: a push happens or it does not.
    let mut installed = INSTALLED.lock().unwrap_or_else(|poison| poison.into_inner());
    match installed.iter().find(|action| action.signal() == signal) {
        Some(action) => action.put_back(),
        None => {
            installed.push(Action::of(signal)?);
            Ok(())
        }
    }
}

/// Blocks these signals in this thread, and in those that it will start, until a server of this
/// process lets them through; and has a file at its size limit end nobody.
pub(crate) fn hold(meanings: &[(i32, Request)]) {
    let set = set_of(meanings);
    HELD.fetch_or(to_mask(&set), Ordering::Relaxed);
    // It fails for an unknown way to change the mask only (pthread_sigmask(3)).
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None);
    // The set-up may have something to say, too. Where that fails, the server says so.
    if !meanings.iter().any(|(signal, _)| *signal == SIGXFSZ) {
        let _ = Before::outlive_full_files();
    }
}

/// The signals of these that there are; others are refused in words when they are installed.
fn set_of(meanings: &[(i32, Request)]) -> SigSet {
    meanings.iter().filter_map(|(signal, _)| Signal::try_from(*signal).ok()).collect()
}

/// Lets signals through that were blocked by the predecessor; bit n is signal n + 1.
pub(crate) fn unblock(mask: u64) -> Result<(), Error> {
    let set: SigSet = from_mask(mask);
    pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&set), None)
        .map_err(Error::system("unblock signals"))
}

/// A set of signals as a number; bit n is signal n + 1.
pub(crate) fn to_mask(set: &SigSet) -> u64 {
    set.iter().fold(0, |mask, signal| mask | 1 << (signal as i32 - 1))
}

fn from_mask(mask: u64) -> SigSet {
    Signal::iterator().filter(|signal| mask & 1 << (*signal as i32 - 1) != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc::{SIGHUP, SIGKILL, SIGUSR1};

    #[test]
    fn a_mask_says_the_same_as_the_set() {
        let set: SigSet = [Signal::SIGHUP, Signal::SIGUSR2].into_iter().collect();
        assert_eq!(to_mask(&set), 1 | 1 << 11);
        assert_eq!(from_mask(to_mask(&set)), set);
    }

    /// A claim, as soon as no other test has it.
    fn claim() -> Claim {
        loop {
            if let Ok(claim) = Claim::new() {
                return claim;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_signals_have_one_owner_at_a_time() {
        let first = claim();
        let refused = Claim::new().expect_err("the first one lives").to_string();
        assert!(refused.contains("another server"), "{refused}");
        drop(first);
        drop(claim());
    }

    #[test]
    fn signals_that_cannot_be_handled_are_refused_by_number() {
        for (signals, reason) in [
            (vec![SIGKILL], "cannot be handled"),
            (vec![1000], "is not known"),
            (vec![SIGUSR1, SIGUSR1], "is configured twice"),
            (vec![SIGHUP], "is configured twice"),
        ] {
            let number = signals[0].to_string();
            let users = signals.into_iter().map(|signal| (signal, Request::User));
            let meanings = [(SIGHUP, Request::Upgrade)].into_iter().chain(users).collect();
            let claim = claim();
            let error = Signals::install(claim, meanings, 0).err().expect("refused").to_string();
            assert!(error.contains(&number) && error.contains(reason), "{error}");
        }
    }
}
