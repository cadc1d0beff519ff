//! The memory that all relays of a process share.

use std::cell::Cell;
use std::rc::Rc;

use super::pipe::Pipe;
use crate::limits;

/// One buffer for reading and writing at once, one pipe for what is large, and the bound on what may
/// be kept beside them.
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
}

impl Pool {
    /// A pool that keeps no more than `bound` bytes for all relays together. What a relay has to say
    /// first, and what comes from another process, is kept in any case.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        let scratch = vec![0; limits::RELAY_READ_BYTES].into();
        Self { scratch, pipe: Pipe::new(), bound, used: Rc::default() }
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
        keep(&self.used, bytes)
    }

    /// Keeps what stands at that place in the scratch buffer.
    #[inline]
    pub(super) fn keep_scratch(&self, from: usize, to: usize) -> Option<Box<Kept>> {
        // Mostly there is nothing to keep.
        if from == to {
            return None;
        }
        keep(&self.used, &self.scratch[from..to])
    }
}

impl Default for Pool {
    /// With [`limits::RELAY_KEPT_BYTES`].
    fn default() -> Self {
        Self::new(limits::RELAY_KEPT_BYTES)
    }
}

fn keep(used: &Rc<Cell<usize>>, bytes: &[u8]) -> Option<Box<Kept>> {
    if bytes.is_empty() {
        return None;
    }
    used.set(used.get() + bytes.len());
    Some(Box::new(Kept { bytes: bytes.into(), written: 0, used: Rc::clone(used) }))
}

/// What was read and could not be written. It is given back when it is dropped, wherever that is.
#[derive(Debug)]
pub(super) struct Kept {
    bytes: Box<[u8]>,
    written: usize,
    used: Rc<Cell<usize>>,
}

impl Kept {
    /// What is still to be written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// So much of it was written. Answers whether that was all.
    pub(super) fn wrote(&mut self, count: usize) -> bool {
        self.written += count;
        self.written >= self.bytes.len()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.used.set(self.used.get() - self.bytes.len());
    }
}
