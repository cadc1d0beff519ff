//! Waiting for events with a clock finer than mio's, which counts whole milliseconds: too coarse for
//! thousands of messages a second.

use std::time::{Duration, Instant};

use mio::{Events, Poll};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::failed;

/// Waits until something has happened, and no longer than to that time. The events are empty if
/// nothing has.
pub(crate) fn until(poll: &mut Poll, events: &mut Events, time: Instant) -> Result<(), String> {
    events.clear();
    let timeout = time.saturating_duration_since(Instant::now());
    let timeout =
        Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
    let ready = [PollFd::new(poll.registry(), PollFlags::IN)];
    match rustix::event::poll(&mut { ready }, Some(&timeout)) {
        Ok(0) | Err(Errno::INTR) => Ok(()),
        Ok(_) => poll.poll(events, Some(Duration::ZERO)).map_err(failed("poll")),
        Err(error) => Err(error.to_string()),
    }
}
