//! What is left of a successor that was killed: a process to reap, or a spawn to wait for, and its
//! last words.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use mio::Registry;

use super::process::Process;
use crate::limits;
use crate::sys;
use crate::wire::{Ack, Message, ProtocolRange};

/// A process that was killed and is not reaped yet. The loop does not wait for it.
#[derive(Debug)]
pub(crate) struct Dying {
    pub(super) attempt: u32,
    /// It may have served.
    pub(super) committed: bool,
    /// Its process id by its own word, where the kernel has none for it.
    pub(super) said: Option<u32>,
    pub(super) process: Process,
    /// What it said last is read when it is dead: until then it may say more.
    pub(super) socket: OwnedFd,
    pub(super) speaks: ProtocolRange,
    /// Read before that, and not heard yet.
    pub(super) acks: Vec<Ack>,
    pub(super) told: Vec<Vec<u8>>,
}

impl Dying {
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.pid().or(self.said)
    }

    pub(crate) fn was_committed_to(&self) -> bool {
        self.committed
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The sessions that it has taken, and not said so in time: it lived, and has now died with them. And
    /// what its application has said.
    ///
    /// A child of it may have the socket and may still write: no more is read than it can have said
    /// itself.
    pub(crate) fn last_words(&mut self) -> (Vec<Ack>, Vec<Vec<u8>>) {
        let mut packet = [0; limits::WORD_BYTES];
        let (mut acks, mut told) = (std::mem::take(&mut self.acks), std::mem::take(&mut self.told));
        for _ in 0..limits::LAST_WORDS {
            match sys::receive(&self.socket, &mut packet) {
                Ok(received) if received.length == 0 => break,
                // Its other words do not matter any more.
                Ok(received) => {
                    let message = Message::decode(&packet[..received.length], self.speaks);
                    if let Ok((_, Message::Ack(ack))) = message {
                        acks.push(ack);
                    } else if let Ok((_, Message::Told(message))) = message {
                        told.push(message);
                    }
                }
                // A reset is told once, and ahead of what it has said last.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::InvalidData | io::ErrorKind::ConnectionReset
                    ) => {}
                Err(_) => break,
            }
        }
        (acks, told)
    }

    /// Reaps it if it can be reaped; answers whether it is over.
    pub(crate) fn settle(&mut self, registry: &Registry) -> bool {
        if let Some((answer, _)) = self.process.answer() {
            self.hear(answer.ok(), registry);
        }
        self.process.is_over(registry)
    }

    /// Waits until it is over, and no longer than until `deadline`. For the end of the program.
    pub(crate) fn settle_until(&mut self, registry: &Registry, deadline: Instant) {
        while !self.settle(registry) && Instant::now() < deadline {
            match self.process.answer_by(deadline) {
                Some((answer, _)) => self.hear(answer.ok(), registry),
                None => self.process.wait_until(deadline),
            }
        }
    }

    /// The spawn has come out after it was given up: what it has made is killed, and reaped with the
    /// next look, watched or not.
    fn hear(&mut self, spawned: Option<sys::Spawned>, registry: &Registry) {
        match spawned {
            Some(spawned) => {
                let _ = self.process.watch(spawned, registry);
                self.process.kill();
            }
            None => self.process.not_spawned(),
        }
    }
}
