//! One direction of a relay, and what is known of each end.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use super::pool::{Kept, Pool};
use crate::io_event::IoEvent;
use crate::limits;
use crate::stream::Stream;
use crate::wire::Family;

/// One of the two streams, and what its events have said. Readiness is edge-triggered (epoll(7)):
/// what an event has said holds until a call finds out that it does no longer.
#[derive(Debug)]
pub(super) struct End {
    pub(super) stream: Stream,
    /// There may be something to read.
    readable: bool,
    /// There may be room to write.
    writable: bool,
    /// The peer's FIN is there: when everything was read, that was the end.
    fin: bool,
    /// The socket has an error, or had one.
    error: bool,
    /// There is an error, or there was urgent data, which a read stops at.
    read_on: bool,
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) kept: Option<Box<Kept>>,
    /// Bytes that were written.
    pub(super) moved: u64,
    /// The last read brought much: there is likely to be more.
    pub(super) bulk: bool,
    /// The end of the stream was read.
    pub(super) ended: bool,
    /// The end was passed on.
    pub(super) over: bool,
}

/// What is left to do in a direction, or in both: the latter of two counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Left {
    /// Nothing at present.
    Nothing,
    /// To write what was read, when others have read, too.
    Flush,
    /// More, when the others have had their turn.
    More,
}

/// What came of reading once.
enum Step {
    /// There is nothing at present.
    Nothing,
    /// The end of the stream.
    End,
    /// So many bytes, of which the sink took what it would.
    Bytes {
        count: usize,
        /// There were no more at that moment.
        emptied: bool,
        /// They are to be written in a moment.
        deferred: bool,
    },
}

impl Step {
    /// Of a read that has brought none: 0 is the end.
    fn without_bytes(read: Option<usize>) -> Self {
        if read.is_none() { Self::Nothing } else { Self::End }
    }
}

/// Which of a way's two ends broke, and how.
pub(super) enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl End {
    /// Nothing may be read or written before the first event.
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, readable: false, writable: false, fin: false, error: false, read_on: false }
    }

    pub(super) fn note(&mut self, event: IoEvent) {
        let broken = event.is_error() || event.is_write_closed();
        self.readable |= event.is_readable() || event.is_read_closed() || broken;
        self.writable |= event.is_writable() || broken;
        self.fin |= event.is_read_closed() && !broken;
        self.error |= event.is_error();
        self.read_on |= event.is_urgent() || broken;
    }

    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Asks for a place in the queue of its listener. It can be written to once it has one.
    pub(super) fn queue_up(&mut self, now: Instant) -> io::Result<()> {
        (self.readable, self.fin, self.error, self.read_on) = (false, false, false, false);
        self.writable = self.stream.queue_up(now)?;
        Ok(())
    }

    /// It is gone, and what it has said may still be there.
    pub(super) fn read_out(&mut self) {
        (self.readable, self.read_on) = (true, true);
    }

    /// The error that an event told of, if it is still there: reading and writing take it, too.
    pub(super) fn failure(&mut self) -> Option<io::Error> {
        if !std::mem::take(&mut self.error) {
            return None;
        }
        self.stream.take_error().unwrap_or_else(Some)
    }

    /// `None` if there is nothing; 0 is the end.
    fn read(
        &mut self,
        mut read: impl FnMut(&mut Stream) -> io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        loop {
            match read(&mut self.stream) {
                Ok(read) => return Ok(Some(read)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes what the socket takes. A short write has filled it (epoll(7)).
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.try_write(|stream| stream.write(bytes))?;
        self.writable &= written == bytes.len();
        Ok(written)
    }

    /// 0 if the socket takes nothing at present.
    fn try_write(
        &mut self,
        mut write: impl FnMut(&mut Stream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match write(&mut self.stream) {
                Ok(written) => return Ok(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Ok(0);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A read came back with less than was asked for: the socket is empty (epoll(7)), which spares
    /// the read that would say so. Answers whether that was the end of the stream: the FIN was there
    /// before the read. Of a Unix stream it says nothing: there a read ends behind descriptors, too
    /// (unix(7)).
    fn is_ended_by_short_read(&mut self) -> bool {
        if self.read_on || self.stream.family() != Family::Tcp {
            return false;
        }
        self.readable = false;
        self.fin
    }
}

impl Way {
    /// Whether there is anything for [`Way::carry`] to do, when what is kept was flushed.
    pub(super) fn may_move(&self, from: &End, to: &End) -> bool {
        self.kept.is_none() && (to.writable && from.readable || self.ended && !self.over)
    }

    /// Moves bytes until there are no more, the sink takes no more, or the others have to have
    /// their turn; if it may `defer` the writing, until it has read something small.
    ///
    /// `share` is how much may be read at a time. If this is the `last` way, closing the sink is
    /// what passes the end on.
    pub(super) fn carry(
        &mut self,
        from: &mut End,
        to: &mut End,
        share: usize,
        last: bool,
        defer: bool,
        pool: &mut Pool,
    ) -> Result<Left, Broken> {
        let (mut budget, mut reads) = (limits::RELAY_BYTES_PER_TURN, limits::RELAY_READS_PER_TURN);
        loop {
            if self.kept.is_some() && !self.flush(to, pool).map_err(Broken::Sink)? {
                return Ok(Left::Nothing);
            }
            if self.ended {
                if !std::mem::replace(&mut self.over, true) && !last {
                    to.stream.shutdown(Shutdown::Write).map_err(Broken::Sink)?;
                }
                return Ok(Left::Nothing);
            }
            // What the sink would not take stays in the kernel.
            if !from.readable || !to.writable {
                return Ok(Left::Nothing);
            }
            if budget == 0 || reads == 0 {
                return Ok(Left::More);
            }
            reads -= 1;
            let wanted = share.min(budget);
            let step = match pool.has_room(share) {
                true if self.bulk && !from.read_on => self.splice(from, to, wanted, pool),
                may_keep => self.copy(from, to, wanted, may_keep, defer, pool),
            }?;
            match step {
                Step::Nothing => return Ok(Left::Nothing),
                Step::End => self.ended = true,
                Step::Bytes { count, emptied, deferred } => {
                    budget -= count;
                    self.bulk = count >= limits::RELAY_LARGE_BYTES;
                    self.ended = emptied && from.is_ended_by_short_read();
                    if deferred {
                        return Ok(Left::Flush);
                    }
                }
            }
        }
    }

    /// Reads, writes, and keeps what the sink does not take; or keeps it to be written in a moment, if
    /// it may `defer` that and it is little. Where nothing may be kept, it looks at the bytes instead,
    /// writes them, and takes those that were written.
    fn copy(
        &mut self,
        from: &mut End,
        to: &mut End,
        wanted: usize,
        may_keep: bool,
        defer: bool,
        pool: &mut Pool,
    ) -> Result<Step, Broken> {
        let scratch = &mut pool.scratch[..wanted];
        let read = match may_keep {
            true => from.read(|stream| stream.read(scratch)),
            false => from.read(|stream| stream.peek(scratch)),
        };
        let read = read.map_err(Broken::Source)?;
        let Some(read @ 1..) = read else { return Ok(Step::without_bytes(read)) };
        let is_last = read < wanted;
        if defer && may_keep && is_last && read < limits::RELAY_SMALL_BYTES {
            self.kept = Some(pool.defer_scratch(read));
            return Ok(Step::Bytes { count: read, emptied: true, deferred: true });
        }
        let written = to.write(&scratch[..read]).map_err(Broken::Sink)?;
        self.moved += written as u64;
        if may_keep {
            self.kept = pool.keep_scratch(written, read);
        } else {
            take(from, &mut scratch[..written]).map_err(Broken::Source)?;
        }
        // What was only looked at and not written is still there.
        let taken = if may_keep { read } else { written };
        Ok(Step::Bytes { count: read, emptied: taken == read && is_last, deferred: false })
    }

    /// Moves bytes through the pipe, which is not to read them, and keeps what the sink does not
    /// take, so that the pipe is empty again.
    ///
    /// A short splice says nothing: the pipe has room for so many pieces only, and a signal ends it.
    /// So it is tried again until a call says that it would block.
    fn splice(
        &mut self,
        from: &mut End,
        to: &mut End,
        wanted: usize,
        pool: &mut Pool,
    ) -> Result<Step, Broken> {
        let Some(pipe) = &pool.pipe else { return self.copy(from, to, wanted, true, false, pool) };
        let read = match from.read(|stream| pipe.fill(stream, wanted)) {
            Ok(Some(read @ 1..)) => read,
            Ok(None) => return Ok(Step::Nothing),
            // In front of urgent data it is 0, too, if the end is behind that: a read knows.
            Ok(Some(0)) => return self.copy(from, to, wanted, true, false, pool),
            Err(error) if is_not_for_these(&error) => {
                pool.pipe = None;
                return self.copy(from, to, wanted, true, false, pool);
            }
            Err(error) => return Err(Broken::Source(error)),
        };
        let drained = to.try_write(|stream| stream.write_by(|stream| pipe.drain(stream, read)));
        let written = drained.as_ref().map_or(0, |written| *written);
        let taken = pipe.take(&mut pool.scratch[..read - written]);
        // What cannot be emptied or used is not used again: what is in it must not come to somebody
        // else.
        if taken.is_err() || drained.as_ref().is_err_and(is_not_for_these) {
            pool.pipe = None;
        }
        taken.map_err(Broken::Source)?;
        match drained {
            Err(error) if !is_not_for_these(&error) => return Err(Broken::Sink(error)),
            Ok(_) | Err(_) => {}
        }
        self.moved += written as u64;
        self.kept = pool.keep_scratch(0, read - written);
        Ok(Step::Bytes { count: read, emptied: false, deferred: false })
    }

    /// Writes what is kept. Answers whether nothing is left of it.
    pub(super) fn flush(&mut self, to: &mut End, pool: &mut Pool) -> io::Result<bool> {
        let Some(mut kept) = self.kept.take() else { return Ok(true) };
        let mut all = false;
        if to.writable {
            let written = to.write(kept.bytes())?;
            self.moved += written as u64;
            all = kept.wrote(written);
        }
        match all {
            true => pool.give_back(kept),
            false => self.kept = Some(kept),
        }
        Ok(all)
    }

    /// Nobody is left to take anything.
    pub(super) fn give_up(&mut self) {
        self.kept = None;
        (self.ended, self.over) = (true, true);
    }

    pub(super) fn kept_bytes(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.bytes().len())
    }
}

/// Whether splice(2) does not work here at all, by a filter of system calls or for sockets of that
/// kind. It has moved nothing then.
fn is_not_for_these(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let errors = [Errno::EINVAL, Errno::ENOSYS, Errno::EPERM, Errno::EACCES, Errno::EOPNOTSUPP];
    error.raw_os_error().is_some_and(|code| errors.contains(&Errno::from_raw(code)))
}

/// Takes bytes that were looked at and written. They are there, so that it does not wait.
fn take(from: &mut End, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match from.read(|stream| stream.discard(bytes))? {
            Some(0) | None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(read) => bytes = &mut bytes[read..],
        }
    }
    Ok(())
}
