//! Messages of the application's for the other process of an upgrade, until its socket takes them.

use std::collections::VecDeque;
use std::fmt;

use crate::limits;

/// What waits to be said to the other process, in order.
#[derive(Debug, Default)]
pub(crate) struct Post {
    /// There is somebody who understands it.
    is_open: bool,
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// Why the other process cannot be told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TellError {
    /// There is no other process that serves beside this one, or it is of a build that does not hear.
    Nobody,
    /// The other process does not read, and 4 MiB wait already. Do not read from clients what cannot be said,
    /// and try again later ([`Context::wake_at`](crate::Context::wake_at)).
    Full,
    /// The message has more than [`MESSAGE_BYTES`](crate::MESSAGE_BYTES).
    TooLong,
}

impl fmt::Display for TellError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "there is no other process that hears messages",
            Self::Full => "the other process does not read its messages",
            Self::TooLong => "the message is longer than 16 KiB",
        })
    }
}

impl std::error::Error for TellError {}

impl From<TellError> for std::io::Error {
    fn from(error: TellError) -> Self {
        let kind = match error {
            TellError::Nobody => std::io::ErrorKind::NotConnected,
            TellError::Full => std::io::ErrorKind::WouldBlock,
            TellError::TooLong => std::io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

impl Post {
    /// From here on there is somebody who hears it.
    pub(crate) fn open(&mut self) {
        self.is_open = true;
    }

    /// There is nobody any more: what was not said is forgotten.
    pub(crate) fn close(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How many bytes may still be said.
    pub(crate) fn room(&self) -> usize {
        if self.is_open { limits::MESSAGES_WAITING_BYTES - self.bytes } else { 0 }
    }

    pub(crate) fn add(&mut self, message: &[u8]) -> Result<(), TellError> {
        if message.len() > limits::MESSAGE_BYTES {
            return Err(TellError::TooLong);
        }
        if !self.is_open {
            return Err(TellError::Nobody);
        }
        if message.len() > self.room() {
            return Err(TellError::Full);
        }
        self.bytes += message.len();
        self.messages.push_back(message.to_vec());
        Ok(())
    }

    /// The next one.
    pub(crate) fn first(&self) -> Option<&[u8]> {
        self.messages.front().map(Vec::as_slice)
    }

    /// That one was said.
    pub(crate) fn said(&mut self) {
        self.bytes -= self.messages.pop_front().map_or(0, |message| message.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_wait_in_order_and_in_bounds_and_only_for_somebody() {
        let mut post = Post::default();
        assert_eq!(post.add(b"x"), Err(TellError::Nobody));
        post.open();
        assert_eq!(post.add(&vec![0; limits::MESSAGE_BYTES + 1]), Err(TellError::TooLong));
        let long = vec![0; limits::MESSAGE_BYTES];
        let most = limits::MESSAGES_WAITING_BYTES / long.len();
        assert!((0..most).all(|_| post.add(&long).is_ok()));
        assert_eq!(post.add(b"x"), Err(TellError::Full));
        post.said();
        assert_eq!(post.add(b"x"), Ok(()));
        (1..most).for_each(|_| post.said());
        assert_eq!(post.first(), Some(&b"x"[..]));
        post.close();
        assert!(post.is_empty() && post.add(b"x") == Err(TellError::Nobody));
    }
}
