//! How a relay moves to another process: its state in bytes, versioned, bounded, total.
//!
//! | field | bytes | says |
//! | --- | --- | --- |
//! | flags | 1 | connecting, of each direction whether its end was read and passed on, and which side has broken off |
//! | waited | 8 | how long nothing had been moved, or it had been connecting, in nanoseconds |
//! | forward moved, back moved | 8 each | bytes that were written |
//! | forward kept, back kept | 4 and so many, each | what was read and is still to be written |
//!
//! Numbers are little-endian.

use std::io;
use std::time::{Duration, Instant};

use super::way::{End, Way};
use super::{Breaking, Pool, Relay, Side};
use crate::limits;
use crate::stream::Stream;
use crate::wire::{Problem, WireError};

/// The form of a packed relay, for an application that counts its own in step with it. Form 1, which is
/// understood as well, does not say which side has broken off.
pub const SCHEMA: u32 = 2;

const CONNECTING: u8 = 1;
const FORWARD: [u8; 2] = [2, 4];
const BACK: [u8; 2] = [8, 16];
const BROKEN_DOWNSTREAM: u8 = 32;
const BROKEN_UPSTREAM: u8 = 64;
const FLAGS: u8 =
    CONNECTING | FORWARD[0] | FORWARD[1] | BACK[0] | BACK[1] | BROKEN_DOWNSTREAM | BROKEN_UPSTREAM;

/// The most that can be kept in one direction, by this form and not only by this build: a read, or
/// what the upstream is told first.
const KEPT_BYTES: usize = 64 * 1024;
const _: () = assert!(limits::RELAY_READ_BYTES <= KEPT_BYTES);

impl Relay {
    /// Whether that form can say how this relay stands: form 1 cannot while one side has broken off, which
    /// is soon over.
    #[must_use]
    pub fn can_pack(&self, schema: u32) -> bool {
        match schema {
            0 => false,
            1 => self.breaking.is_none(),
            2.. => true,
        }
    }

    /// Takes the relay apart: its state is appended to `state`, at most 72 KiB and 33 bytes; the
    /// answer is its streams, downstream first, which must not be read or written until
    /// [`Relay::unpack`]. The bytes are of every form that [can say](Relay::can_pack) how it stands.
    #[must_use]
    pub fn pack(self, now: Instant, state: &mut Vec<u8>) -> Vec<Stream> {
        let Self { downstream, upstream, forward, back, connecting, breaking, active, .. } = self;
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let of = |way: &Way, bits: [u8; 2]| flag(way.ended, bits[0]) | flag(way.over, bits[1]);
        let broken = match breaking.map(|breaking| breaking.by) {
            Some(Side::Downstream) => BROKEN_DOWNSTREAM,
            Some(Side::Upstream) => BROKEN_UPSTREAM,
            None => 0,
        };
        let ways = of(&forward, FORWARD) | of(&back, BACK);
        state.push(flag(connecting, CONNECTING) | ways | broken);
        let waited = now.saturating_duration_since(active).as_nanos();
        state.extend(u64::try_from(waited).unwrap_or(u64::MAX).to_le_bytes());
        state.extend(forward.moved.to_le_bytes());
        state.extend(back.moved.to_le_bytes());
        for way in [&forward, &back] {
            let kept = way.kept.as_ref().map_or(&[][..], |kept| kept.bytes());
            state.extend((kept.len() as u32).to_le_bytes());
            state.extend(kept);
        }
        vec![downstream.stream, upstream.stream]
    }

    /// Puts together what [`Relay::pack`] took apart. The streams are registered already, and their
    /// first events follow.
    ///
    /// # Errors
    ///
    /// Bytes that are no relay are [`InvalidData`](io::ErrorKind::InvalidData), and the error names the
    /// field that does not hold.
    pub fn unpack(
        state: &[u8],
        streams: Vec<Stream>,
        now: Instant,
        pool: &Pool,
    ) -> io::Result<Self> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        Self::decode(state, streams, now, pool).map_err(invalid)
    }

    pub(super) fn decode(
        state: &[u8],
        streams: Vec<Stream>,
        now: Instant,
        pool: &Pool,
    ) -> Result<Self, WireError> {
        let [downstream, upstream]: [Stream; 2] =
            streams.try_into().map_err(|streams: Vec<_>| WireError {
                field: "streams",
                problem: Problem::Unknown(streams.len() as u64),
            })?;
        let mut fields = Fields(state);
        let [flags] = fields.array("flags")?;
        let waited = u64::from_le_bytes(fields.array("waited")?);
        let moved = [fields.moved("forward moved")?, fields.moved("back moved")?];
        let forward = way(flags, FORWARD, moved[0], fields.kept("forward kept")?, pool);
        let back = way(flags, BACK, moved[1], fields.kept("back kept")?, pool);
        if !fields.0.is_empty() {
            return Err(WireError { field: "back kept", problem: Problem::TrailingBytes });
        }
        let connecting = flags & CONNECTING != 0;
        let broken = match flags & (BROKEN_DOWNSTREAM | BROKEN_UPSTREAM) {
            0 => None,
            BROKEN_DOWNSTREAM => Some(Side::Downstream),
            _ => Some(Side::Upstream),
        };
        // Whom nothing reaches any more.
        let is_given_up = match broken {
            Some(Side::Downstream) => back.over,
            Some(Side::Upstream) => forward.over,
            None => true,
        };
        // The end is passed on once it was read and nothing is kept, and a relay that has passed on
        // both is over, or only waits for a reset to be due. One that is connecting has read nothing but
        // what the client said first.
        let is_whole = |way: &Way| !way.over || way.ended && way.kept.is_none();
        let is_new = back.kept.is_none() && !forward.ended && !back.ended && broken.is_none();
        let holds = is_whole(&forward)
            && is_whole(&back)
            && (broken.is_some() || !(forward.over && back.over))
            && is_given_up
            && flags & (BROKEN_DOWNSTREAM | BROKEN_UPSTREAM) != BROKEN_DOWNSTREAM | BROKEN_UPSTREAM
            && (!connecting || is_new)
            && flags & !FLAGS == 0;
        if !holds {
            return Err(WireError { field: "flags", problem: Problem::Unknown(flags.into()) });
        }
        Ok(Self {
            downstream: End::new(downstream),
            upstream: End::new(upstream),
            forward,
            back,
            connecting,
            breaking: broken.map(|by| {
                let error = io::ErrorKind::ConnectionReset.into();
                Box::new(Breaking { by, error, look: None })
            }),
            // To be asked for its deadline anyway.
            hastened: true,
            // A clock that does not go back so far has not been running for so long.
            active: now.checked_sub(Duration::from_nanos(waited)).unwrap_or(now),
        })
    }
}

fn way(flags: u8, [ended, over]: [u8; 2], moved: u64, kept: &[u8], pool: &Pool) -> Way {
    let (ended, over) = (flags & ended != 0, flags & over != 0);
    Way { kept: pool.keep(kept), moved, ended, over, ..Way::default() }
}

/// What is left to decode.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], WireError> {
        let Some((taken, rest)) = self.0.split_at_checked(count) else {
            return Err(WireError { field, problem: Problem::Truncated });
        };
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    /// What is counted on from here has to be far from the end of all numbers.
    fn moved(&mut self, field: &'static str) -> Result<u64, WireError> {
        let moved = u64::from_le_bytes(self.array(field)?);
        if moved > u64::MAX / 2 {
            return Err(WireError { field, problem: Problem::TooLong });
        }
        Ok(moved)
    }

    fn kept(&mut self, field: &'static str) -> Result<&'a [u8], WireError> {
        let length = u32::from_le_bytes(self.array(field)?) as usize;
        if length > KEPT_BYTES {
            return Err(WireError { field, problem: Problem::TooLong });
        }
        self.take(field, length)
    }
}
