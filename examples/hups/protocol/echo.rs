//! An echo server: it sends back what it gets.

use super::{Taken, Wrong};
use crate::drops::DropKind;
use crate::payload::Payload;

#[derive(Clone)]
pub(crate) struct Echo {
    payload: Payload,
    bytes: usize,
}

impl Echo {
    pub(crate) fn new(seed: u64, bytes: usize) -> Echo {
        Echo { payload: Payload::new(seed), bytes }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn fill(&self, message: u64, offset: usize, buffer: &mut [u8]) {
        self.payload.fill(message, offset, buffer);
    }

    pub(super) fn answer(&self, message: u64) -> Answer {
        Answer { payload: self.payload.clone(), message, bytes: self.bytes, received: 0 }
    }
}

pub(crate) struct Answer {
    payload: Payload,
    message: u64,
    bytes: usize,
    received: usize,
}

impl Answer {
    pub(super) fn take(&mut self, received: &[u8], sent: usize) -> Result<Taken, Wrong> {
        let wrong = |good| Wrong { kind: DropKind::WrongBytes, good };
        if let Some(at) = self.payload.mismatch(self.message, self.received, received) {
            return Err(wrong(at - self.received));
        }
        self.received += received.len();
        // A byte cannot come back before it was sent.
        if self.received > sent {
            return Err(wrong(received.len()));
        }
        Ok(if self.received == self.bytes { Taken::Whole } else { Taken::Part })
    }
}
