//! The memory that all relays of a process share.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use super::pipe::Pipe;
use crate::limits;

/// One buffer for reading and writing at once, one pipe for what is large, a few small buffers for what
/// is read now and written in a moment ([`Relay::flush`](super::Relay::flush)), and the bound on what
/// may be kept beside them.
///
/// A pool owns the pipe's two descriptors. There is a pipe only if SIGPIPE is not at its default when
/// the pool is made, and it must not be set to it later: splice(2), which moves what is large, cannot be
/// told not to raise it. Rust's runtime ignores it from the start.
///
/// At the bound no relay stops: it looks at the bytes in the kernel's buffer, writes them, and takes
/// those that were written, for one more call and nothing kept. So relays whose clients read slowly
/// cannot hold up the others by filling the pool.
#[derive(Debug)]
pub struct Pool {
    pub(super) scratch: Box<[u8]>,
    /// Empty between two calls. `None` if there is none: then everything is copied.
    pub(super) pipe: Option<Pipe>,
    bound: usize,
    used: Rc<Cell<usize>>,
    /// Buffers for what is deferred, to be used again.
    #[allow(
        clippy::vec_box,
        reason = "a box that a relay has had is the one that the next one gets"
    )]
    spare: Vec<Box<Kept>>,
}

impl Pool {
    /// A pool that keeps no more than `bound` bytes for all relays together. What a relay has to say
    /// first, and what comes from another process, is kept in any case.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        let scratch = vec![0; limits::RELAY_READ_BYTES].into();
        Self { scratch, pipe: Pipe::new(), bound, used: Rc::default(), spare: Vec::new() }
    }

    /// Bytes that are kept at present.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Whether that many bytes more may be kept.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.bound.saturating_sub(self.used.get()) >= bytes
    }

    /// Keeps these bytes, if there are any.
    pub(super) fn keep(&self, bytes: &[u8]) -> Option<Box<Kept>> {
        if bytes.is_empty() {
            return None;
        }
        Some(Box::new(Kept::new(bytes.into(), &self.used)))
    }

    /// Keeps what stands at that place in the scratch buffer.
    pub(super) fn keep_scratch(&self, from: usize, to: usize) -> Option<Box<Kept>> {
        self.keep(&self.scratch[from..to])
    }

    /// Keeps the beginning of the scratch buffer, at most [`limits::RELAY_SMALL_BYTES`], for a moment.
    /// It counts as that many, whatever there is.
    pub(super) fn defer_scratch(&mut self, count: usize) -> Box<Kept> {
        let new = || Box::new(Kept::new([0; limits::RELAY_SMALL_BYTES].into(), &self.used));
        let mut kept = self.spare.pop().unwrap_or_else(new);
        kept.count(limits::RELAY_SMALL_BYTES);
        kept.buffer[..count].copy_from_slice(&self.scratch[..count]);
        kept.left = 0..count;
        kept
    }

    /// How many buffers wait to be used again.
    #[cfg(test)]
    pub(super) fn spare(&self) -> usize {
        self.spare.len()
    }

    /// Takes back what was written.
    pub(super) fn give_back(&mut self, mut kept: Box<Kept>) {
        let is_small = kept.buffer.len() == limits::RELAY_SMALL_BYTES;
        if is_small && self.spare.len() < limits::SESSIONS_PER_BATCH {
            kept.count(0);
            self.spare.push(kept);
        }
    }
}

impl Default for Pool {
    /// With [`limits::RELAY_KEPT_BYTES`].
    fn default() -> Self {
        Self::new(limits::RELAY_KEPT_BYTES)
    }
}

/// What was read and is still to be written. What it counts is given back when it is dropped, wherever
/// that is.
#[derive(Debug)]
pub(super) struct Kept {
    buffer: Box<[u8]>,
    /// Where in it the bytes are.
    left: Range<usize>,
    counts: usize,
    used: Rc<Cell<usize>>,
}

impl Kept {
    fn new(buffer: Box<[u8]>, used: &Rc<Cell<usize>>) -> Self {
        let (left, used) = (0..buffer.len(), Rc::clone(used));
        let mut kept = Self { buffer, left, counts: 0, used };
        kept.count(kept.buffer.len());
        kept
    }

    fn count(&mut self, bytes: usize) {
        self.used.set(self.used.get() - self.counts + bytes);
        self.counts = bytes;
    }

    /// What is still to be written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.left.clone()]
    }

    /// So much of it was written. Answers whether that was all.
    pub(super) fn wrote(&mut self, count: usize) -> bool {
        self.left.start += count;
        self.left.is_empty()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.count(0);
    }
}
