//! What is sent, and the check that the same comes back.
//!
//! Every message has its own bytes, made from the seed and the message's number, so that bytes
//! that belong to another connection are seen as wrong. Any part can be made on its own:
//! a message of 16 MiB needs no buffer of 16 MiB.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Clone)]
pub(crate) struct Payload {
    seed: u64,
}

impl Payload {
    pub(crate) fn new(seed: u64) -> Payload {
        Payload { seed }
    }

    /// Fills `buffer` with the bytes of `message` from `offset` on.
    pub(crate) fn fill(&self, message: u64, offset: usize, buffer: &mut [u8]) {
        let key = self.key(message);
        let mut filled = 0;
        while filled < buffer.len() {
            let (word, start) = word_at(key, offset + filled);
            let length = (8 - start).min(buffer.len() - filled);
            buffer[filled..filled + length].copy_from_slice(&word[start..start + length]);
            filled += length;
        }
    }

    /// The place in the message of the first byte of `received` that is not as it was sent.
    pub(crate) fn mismatch(&self, message: u64, offset: usize, received: &[u8]) -> Option<usize> {
        let key = self.key(message);
        let mut checked = 0;
        while checked < received.len() {
            let (word, start) = word_at(key, offset + checked);
            let length = (8 - start).min(received.len() - checked);
            let expected = &word[start..start + length];
            let found = &received[checked..checked + length];
            if expected != found {
                let matching = expected.iter().zip(found).take_while(|(a, b)| a == b);
                return Some(offset + checked + matching.count());
            }
            checked += length;
        }
        None
    }

    fn key(&self, message: u64) -> u64 {
        mix(self.seed ^ message.wrapping_mul(GOLDEN))
    }
}

/// The eight bytes that hold `position`, and where among them it is.
fn word_at(key: u64, position: usize) -> ([u8; 8], usize) {
    let index = (position / 8) as u64;
    let word = mix(key.wrapping_add(index.wrapping_mul(GOLDEN)));
    (word.to_le_bytes(), position % 8)
}

/// The output step of SplitMix64.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
