//! Bytes that somebody is still to take, from the front.

/// What is left of a buffer. It has no memory when nothing is left.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    bytes: Vec<u8>,
    taken: usize,
}

impl Rest {
    /// A copy of these.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), taken: 0 }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// So many were taken.
    pub(crate) fn take(&mut self, count: usize) {
        self.taken += count;
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_from_the_front_and_leaves_no_memory() {
        let mut rest = Rest::of(b"abcd");
        rest.take(2);
        rest.add(b"ef");
        assert_eq!(rest.bytes(), b"cdef");
        rest.take(4);
        assert!(rest.is_empty() && rest.bytes.capacity() == 0);
    }
}
