//! The admin endpoint of a process that still sets itself up: its loop does not turn yet, and a probe is to hear
//! that it lives and is not ready. A thread answers until then, one client at a time.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use super::request::{Answer, Ask, Parsed, parse};
use crate::limits;
use crate::stream::Stream;
use crate::wire::Family;

/// The thread, until this is dropped.
#[derive(Debug)]
pub(super) struct Early {
    /// Its end of file is what the thread stops by.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// How long one client may take: the next one waits.
const PATIENCE: Duration = Duration::from_millis(200);

impl Early {
    /// Begins to answer. An error, and probes wait until the process is ready.
    pub(super) fn begin(listener: &OwnedFd, family: Family) -> io::Result<Self> {
        let (stopped, stop) = pipe2(OFlag::O_CLOEXEC)?;
        let listener = listener.try_clone()?;
        let thread = thread::Builder::new().name("tablecloth-probe".into());
        let thread = thread
            .stack_size(limits::THREAD_STACK_BYTES)
            .spawn(move || answer_all(&listener, family, &stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It waits for nothing that it does not leave for the end of that pipe.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer_all(listener: &OwnedFd, family: Family, stopped: &OwnedFd) {
    while wait(listener.as_fd(), stopped, None) {
        if let Ok((mut stream, _)) = Stream::accept(listener.as_fd(), family) {
            answer(&mut stream, stopped);
        }
    }
}

/// Waits until there is something to read, or answers that it is not to be waited for any more.
fn wait(source: BorrowedFd<'_>, stopped: &OwnedFd, until: Option<Instant>) -> bool {
    let left = until.map(|at| at.saturating_duration_since(Instant::now()));
    let timeout =
        left.map_or(PollTimeout::NONE, |left| left.try_into().unwrap_or(PollTimeout::MAX));
    let mut polled =
        [PollFd::new(source, PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
    // EINTR: once more, if there is still time.
    match poll(&mut polled, timeout) {
        Ok(ready) => ready > 0 && polled[1].any() == Some(false),
        Err(_) => until.is_none_or(|at| Instant::now() < at) && wait(source, stopped, until),
    }
}

fn answer(stream: &mut Stream, stopped: &OwnedFd) {
    let (until, mut head) = (Instant::now() + PATIENCE, Vec::new());
    let mut buffer = [0; 1024];
    while wait(stream.as_fd(), stopped, Some(until)) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => head.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        }
        let (answer, head_only) = match parse(&head, true) {
            Parsed::More => continue,
            Parsed::Refused(answer) => (answer, false),
            Parsed::Request(request) => match request.ask {
                Ask::Live => (Answer::text(200, "live"), request.head_only),
                Ask::Ready
                | Ask::Status { .. }
                | Ask::Metrics
                | Ask::Upgrade { .. }
                | Ask::Check
                | Ask::Shutdown
                | Ask::Exit => {
                    (Answer::text(503, "not ready: the process sets itself up"), request.head_only)
                }
            },
        };
        // It fits into an empty socket, or nobody reads it.
        let _ = stream.write(&answer.bytes(head_only));
        return;
    }
}
