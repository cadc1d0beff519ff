//! What a successor writes to standard error until it serves: passed on to where it would have gone, and the
//! last lines of it kept, because they say why it has failed.
//!
//! Its standard error is a pipe, from the first instruction on: so that the words of a loader, a shell or a
//! panic are heard, too. Once it serves it takes its own standard error back ([`Returned`]). Until then it has
//! the pipe's other end, too, and can write although its predecessor is dead.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;
use nix::unistd::{dup2_stderr, pipe2, read};

use crate::limits;
use crate::sys;
use crate::token::{Kind, Token};
use crate::wire::STDERR_VARIABLE;

/// The predecessor's end.
#[derive(Debug)]
pub(super) struct Stderr {
    pipe: OwnedFd,
    own: OwnedFd,
    tail: VecDeque<u8>,
    /// Another thread writes, because nobody knows how long that takes.
    writer: Option<SyncSender<Vec<u8>>>,
    /// What the writer had no room for: nothing more is read until it has.
    held: Option<Vec<u8>>,
    is_over: bool,
}

/// What the successor is given.
pub(super) struct Given {
    /// Its standard error for now.
    pub(super) pipe: OwnedFd,
    /// The other end of that, and its own standard error.
    pub(super) keep: [OwnedFd; 2],
}

/// Chunks that wait for the writer.
const WAITING: usize = 16;

impl Stderr {
    /// A pipe for a successor whose standard error would be this process's own. An error, and it is left
    /// alone.
    pub(super) fn new(registry: &Registry, attempt: u32) -> io::Result<(Self, Given)> {
        let stderr = io::stderr();
        let own = stderr.as_fd().try_clone_to_owned()?;
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        // This end of it alone must not block: the two ends have a description each (pipe(2)).
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let token = Token::new(Kind::SuccessorStderr, attempt, 0).pack();
        registry.register(&mut SourceFd(&ours.as_raw_fd()), token, Interest::READABLE)?;
        let given = Given { pipe: theirs, keep: [own.try_clone()?, ours.try_clone()?] };
        let (tail, writer, held) = (VecDeque::new(), None, None);
        Ok((Self { pipe: ours, own, tail, writer, held, is_over: false }, given))
    }

    /// Reads what there is, and passes it on. Answers whether to look again soon.
    pub(super) fn read(&mut self) -> bool {
        if let Some(held) = self.held.take() {
            self.pass_on(held);
        }
        let mut buffer = [0; limits::STDERR_BYTES];
        // No more in one turn than a pipe has room for.
        for _ in 0..WAITING {
            if self.is_over || self.held.is_some() {
                break;
            }
            match read(&self.pipe, &mut buffer) {
                Ok(0) => self.is_over = true,
                Ok(length) => {
                    self.tail.extend(&buffer[..length]);
                    let more = self.tail.len().saturating_sub(limits::STDERR_BYTES);
                    self.tail.drain(..more);
                    self.pass_on(buffer[..length].to_vec());
                }
                // EAGAIN: there is nothing more for now.
                Err(_) => break,
            }
        }
        self.held.is_some()
    }

    fn pass_on(&mut self, bytes: Vec<u8>) {
        if self.writer.is_none() {
            let (sender, chunks) = sync_channel::<Vec<u8>>(WAITING);
            let Ok(own) = self.own.try_clone() else { return };
            let mut own = File::from(own);
            let thread = thread::Builder::new().name("tablecloth-stderr".into());
            let started = thread.stack_size(limits::THREAD_STACK_BYTES).spawn(move || {
                for chunk in chunks {
                    // Nobody reads it: it would not have been read from the successor either.
                    let _ = own.write_all(&chunk);
                }
            });
            if let Err(error) = started {
                log::warn!("the successor's standard error is not passed on: {error}");
                return;
            }
            self.writer = Some(sender);
        }
        if let Some(Err(TrySendError::Full(bytes))) =
            self.writer.as_ref().map(|writer| writer.try_send(bytes))
        {
            self.held = Some(bytes);
        }
    }

    /// The last lines that it has written, whole ones as far as there are.
    pub(super) fn last_words(&mut self) -> String {
        self.read();
        let bytes: Vec<u8> = self.tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let cut = self.tail.len() >= limits::STDERR_BYTES;
        let whole = match text.split_once('\n') {
            Some((_, rest)) if cut => rest,
            Some(_) | None => &text,
        };
        // It may hold whatever a client has sent.
        let readable = |letter: char| letter == '\n' || letter == '\t' || !letter.is_control();
        whole.chars().filter(|letter| readable(*letter)).collect()
    }

    pub(super) fn deregister(&self, registry: &Registry) {
        // It was registered, and is open.
        let _ = registry.deregister(&mut SourceFd(&self.pipe.as_raw_fd()));
    }
}

impl Given {
    /// What stands in the successor's environment.
    pub(super) fn variable(&self) -> Option<CString> {
        let [own, pipe] = &self.keep;
        CString::new(format!("{STDERR_VARIABLE}={},{}", own.as_raw_fd(), pipe.as_raw_fd())).ok()
    }
}

/// The successor's side: its own standard error, until it takes that back.
#[derive(Debug)]
pub(crate) struct Returned {
    own: OwnedFd,
    /// As long as this is open, whoever writes to the pipe is not killed or refused by its end.
    _pipe: OwnedFd,
}

impl Returned {
    /// What the environment points to, if standard error is that pipe.
    pub(crate) fn find() -> Option<Self> {
        let text = sys::take_variable(STDERR_VARIABLE)?.into_string().ok()?;
        let (own, pipe) = text.split_once(',')?;
        let (own, pipe): (RawFd, RawFd) = (own.parse().ok()?, pipe.parse().ok()?);
        let same = |one: BorrowedFd<'_>| {
            let file = |fd: BorrowedFd<'_>| fstat(fd).ok().map(|it| (it.st_dev, it.st_ino));
            file(one).is_some() && file(one) == file(io::stderr().as_fd())
        };
        if own == pipe || !sys::is_inherited(pipe, same).ok()? {
            return None;
        }
        sys::is_inherited(own, |_| true).ok()?;
        let (own, pipe) = (sys::adopt(own).ok()?, sys::adopt(pipe).ok()?);
        Some(Self { own, _pipe: pipe })
    }

    /// Standard error is this process's own from here on.
    pub(crate) fn take_back(self) {
        // It fails for no descriptor that is open.
        let _ = dup2_stderr(&self.own);
    }
}

/// When to look again, if the writer had no room.
pub(super) fn retry(now: Instant) -> Instant {
    now + limits::OUTBOX_RETRY
}
