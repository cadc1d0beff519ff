//! What an event belongs to: kind, generation and index in one [`mio::Token`].
//!
//! The kernel may hand out an event for something that was closed a moment ago, and its slot may
//! have a new tenant by then. The generation tells the two apart: a stale token is recognised,
//! counted and ignored.

use crate::limits;

/// What kind of source an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A named descriptor; the index is its place in the table.
    Listener,
    /// A session; the index is its slot.
    Session,
    /// Signals.
    Signals,
    /// Another thread woke the loop.
    Waker,
    /// The pipe on which the successor says ready; the generation is the attempt.
    ReadinessPipe,
    /// The handoff socket to the successor; the generation is the attempt.
    Successor,
    /// The successor's death (a pidfd); the generation is the attempt.
    SuccessorProcess,
    /// The handoff socket to the predecessor.
    Predecessor,
    /// The predecessor's death (a pidfd).
    PredecessorProcess,
    /// What the successor writes to standard error; the generation is the attempt.
    SuccessorStderr,
    /// The admin endpoint.
    Admin,
    /// A client of the admin endpoint; the index is its place.
    AdminClient,
    /// The death of the init (a pidfd).
    InitProcess,
    /// A descriptor of the handler's own; the index is its key.
    Owned,
}

const KINDS: [Kind; 14] = [
    Kind::Listener,
    Kind::Session,
    Kind::Signals,
    Kind::Waker,
    Kind::ReadinessPipe,
    Kind::Successor,
    Kind::SuccessorProcess,
    Kind::Predecessor,
    Kind::PredecessorProcess,
    Kind::SuccessorStderr,
    Kind::Admin,
    Kind::AdminClient,
    Kind::InitProcess,
    Kind::Owned,
];

const KIND_SHIFT: u32 = 56;
const GENERATION_SHIFT: u32 = 32;
const GENERATION_MASK: u32 = 0x00ff_ffff;
const SOURCE_SHIFT: u32 = 24;
const INDEX_MASK: u32 = 0x00ff_ffff;

/// How many indexes there are.
pub(crate) const INDEXES: usize = INDEX_MASK as usize + 1;
/// A session's index fits, beside its sources.
const _: () =
    assert!(limits::SESSIONS <= INDEXES && limits::SOURCES <= 1 << (u32::BITS - SOURCE_SHIFT));

/// Kind, generation, source and index share the 64 bits that the kernel keeps for an epoll registration.
const _: () = assert!(usize::BITS == 64, "tablecloth needs a 64-bit target");

/// A token, taken apart. Generations count modulo 2^24: a slot has to be reused sixteen million
/// times within one turn before a stale event could be mistaken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) generation: u32,
    pub(crate) index: u32,
    /// Which of the session's sockets.
    pub(crate) source: u8,
}

impl Token {
    pub(crate) const fn new(kind: Kind, generation: u32, index: u32) -> Self {
        let (generation, index) = (generation & GENERATION_MASK, index & INDEX_MASK);
        Self { kind, generation, index, source: 0 }
    }

    /// The same for another socket of the same session.
    pub(crate) const fn of_source(self, source: u8) -> Self {
        Self { source, ..self }
    }

    /// The token of a thing of which there is one.
    pub(crate) const fn single(kind: Kind) -> Self {
        Self::new(kind, 0, 0)
    }

    pub(crate) const fn pack(self) -> mio::Token {
        mio::Token(
            (self.kind as usize) << KIND_SHIFT
                | (self.generation as usize) << GENERATION_SHIFT
                | (self.source as usize) << SOURCE_SHIFT
                | self.index as usize,
        )
    }

    /// `None` for a token that nobody here made.
    pub(crate) fn unpack(token: mio::Token) -> Option<Self> {
        let kind = *KINDS.get(token.0 >> KIND_SHIFT)?;
        let generation = (token.0 >> GENERATION_SHIFT) as u32 & GENERATION_MASK;
        let source = (token.0 >> SOURCE_SHIFT) as u8;
        Some(Self { kind, generation, index: token.0 as u32 & INDEX_MASK, source })
    }
}

/// Which session it is, among all that this process has had. A session that moves gets another one in the
/// next process, and so does one that comes back. An id that is out of date finds nobody, until sixteen
/// million sessions have come and gone in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u64);

impl SessionId {
    pub(crate) const fn of(token: Token) -> Self {
        Self(Token::new(Kind::Session, token.generation, token.index).pack().0 as u64)
    }

    /// `None` for one that nobody here made.
    pub(crate) fn token(self) -> Option<Token> {
        Token::unpack(mio::Token(self.0 as usize)).filter(|token| token.kind == Kind::Session)
    }
}

/// What is wanted of a session from outside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Wake,
    Close,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_apart_as_it_was_put_together() {
        for (place, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, place, "the table is in the order of the enum");
            for generation in [0, 1, GENERATION_MASK] {
                for (index, source) in [(0, 0), (1, 1), (INDEX_MASK, u8::MAX)] {
                    let token = Token::new(kind, generation, index).of_source(source);
                    assert_eq!(Token::unpack(token.pack()), Some(token));
                }
            }
        }
    }

    #[test]
    fn a_slot_used_again_has_another_token() {
        let before = Token::new(Kind::Session, 7, 3);
        let after = Token::new(Kind::Session, 8, 3);
        assert_ne!(before.pack(), after.pack());
    }

    #[test]
    fn a_foreign_token_is_recognised() {
        assert_eq!(Token::unpack(mio::Token(usize::MAX)), None);
    }

    #[test]
    fn generations_wrap() {
        assert_eq!(Token::new(Kind::Session, GENERATION_MASK + 1, 0).generation, 0);
    }
}
