//! What a stream says: pseudo-random bytes that its receiver can make, too.

const BLOCK_BYTES: usize = 64 * 1024;

/// The bytes of one stream, in order. They depend on the seed alone, and not on how they are taken.
pub(crate) struct Contents {
    random: fastrand::Rng,
    block: Vec<u8>,
    /// How much of the block was taken.
    taken: usize,
}

impl Contents {
    pub(crate) fn of(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, block: vec![0; BLOCK_BYTES], taken: BLOCK_BYTES }
    }

    /// The next bytes: at most so many, and at least one.
    pub(crate) fn next(&mut self, most: usize) -> &[u8] {
        if self.taken == BLOCK_BYTES {
            self.random.fill(&mut self.block);
            self.taken = 0;
        }
        let start = self.taken;
        self.taken = BLOCK_BYTES.min(start + most);
        &self.block[start..self.taken]
    }

    /// Where these bytes differ from the next ones, if they do.
    pub(crate) fn difference(&mut self, mut bytes: &[u8]) -> Option<usize> {
        let mut place = 0;
        while !bytes.is_empty() {
            let expected = self.next(bytes.len());
            let (found, rest) = bytes.split_at(expected.len());
            if found != expected {
                let differs = found.iter().zip(expected).position(|(one, other)| one != other);
                return Some(place + differs.unwrap_or(0));
            }
            place += found.len();
            bytes = rest;
        }
        None
    }
}
