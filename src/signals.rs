//! Signals to events.

use std::io;

use mio::{Interest, Registry, Token};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use signal_hook_mio::v1_0::Signals as Source;

use crate::error::Error;

/// What a signal asks for, strongest first: in this order the signals of one batch are heard,
/// because the kernel does not keep theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Request {
    Exit,
    Shutdown,
    Upgrade,
    User,
}

/// The signals that this process handles.
pub(crate) struct Signals {
    source: Source,
    meanings: Vec<(i32, Request)>,
    heard: Vec<(Request, i32)>,
}

impl Signals {
    /// Handles these signals from here on.
    pub(crate) fn install(meanings: Vec<(i32, Request)>) -> Result<Self, Error> {
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
        let source = Source::new(meanings.iter().map(|(signal, _)| *signal))
            .map_err(Error::system("handle signals"))?;
        Ok(Self { source, meanings, heard: Vec::new() })
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
            let error = Signals::install(meanings).err().expect("refused").to_string();
            assert!(error.contains(&number) && error.contains(reason), "{error}");
        }
    }
}
