//! How keys travel: sealed by a key of one upgrade, which goes from process to process once.
//!
//! A packed session lies in buffers of the library, in the kernel's queue and in the other process's buffers, and
//! nobody zeroes those. What lies there is ciphertext. The key to it is in a file in memory that the predecessor
//! hands over at the commit, and which the successor empties when it has read it; both forget it when the upgrade
//! is over.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use nix::sys::memfd::{MFdFlags, memfd_create};
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const NAME_BYTES: usize = 16;

/// A key, and what tells it from others.
pub(crate) struct Vault {
    name: [u8; NAME_BYTES],
    key: LessSafeKey,
    /// How often it was used: never twice with the same number, and by the predecessor alone.
    sealed: u64,
}

impl Vault {
    /// A new key, and the file in which it goes to the successor.
    pub(crate) fn make() -> io::Result<(Self, OwnedFd)> {
        let mut bytes = Zeroizing::new([0; NAME_BYTES + KEY_BYTES]);
        rand::fill(&mut *bytes).map_err(|_| io::Error::other("no random bytes are to be had"))?;
        let file = File::from(memfd_create(c"vault", MFdFlags::MFD_CLOEXEC)?);
        file.write_all_at(&*bytes, 0)?;
        Ok((Self::of(&bytes)?, file.into()))
    }

    /// The key that the predecessor has made; nobody can read it any more after that.
    pub(crate) fn open(file: OwnedFd) -> io::Result<Self> {
        let (file, mut bytes) = (File::from(file), Zeroizing::new([0; NAME_BYTES + KEY_BYTES]));
        file.read_exact_at(&mut *bytes, 0)?;
        file.set_len(0)?;
        Self::of(&bytes)
    }

    fn of(bytes: &[u8; NAME_BYTES + KEY_BYTES]) -> io::Result<Self> {
        let (name, key) = bytes.split_at(NAME_BYTES);
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| io::ErrorKind::InvalidData)?;
        let name = name.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Self { name, key: LessSafeKey::new(key), sealed: 0 })
    }

    /// Seals it: what comes out names the key and the number.
    pub(crate) fn seal(&mut self, mut state: Zeroizing<Vec<u8>>) -> io::Result<Vec<u8>> {
        let number = self.sealed;
        self.sealed += 1;
        let mut sealed = self.name.to_vec();
        sealed.extend(number.to_le_bytes());
        let aad = Aad::from(self.name);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(number), aad, &mut state)
            .map_err(|_| io::Error::other("it cannot be sealed"))?;
        sealed.extend_from_slice(&state);
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// What was sealed. `None` if it was not by this key.
    pub(crate) fn unseal(&self, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let rest = sealed.strip_prefix(&self.name)?;
        let (number, rest) = rest.split_first_chunk()?;
        let nonce = nonce(u64::from_le_bytes(*number));
        let mut state = Zeroizing::new(rest.to_vec());
        let length = self.key.open_in_place(nonce, Aad::from(self.name), &mut state).ok()?.len();
        state.truncate(length);
        Some(state)
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_opened_by_the_same_key_alone_and_not_if_a_bit_is_another() {
        let (mut here, file) = Vault::make().unwrap();
        let copy = file.try_clone().unwrap();
        let there = Vault::open(file).unwrap();
        assert!(Vault::open(copy).is_err(), "it is read once");
        let other = Vault::make().unwrap().0;
        let sealed: Vec<_> =
            (0..3).map(|_| here.seal(Zeroizing::new(b"a secret".to_vec())).unwrap()).collect();
        assert_ne!(sealed[0], sealed[1]);
        for sealed in sealed {
            assert_eq!(**there.unseal(&sealed).unwrap(), *b"a secret");
            assert_eq!(**here.unseal(&sealed).unwrap(), *b"a secret");
            assert!(other.unseal(&sealed).is_none());
            assert!(!sealed.windows(8).any(|window| window == b"a secret"));
            for bit in 0..sealed.len() * 8 {
                let mut wrong = sealed.clone();
                wrong[bit / 8] ^= 1 << (bit % 8);
                assert!(there.unseal(&wrong).is_none(), "bit {bit}");
            }
        }
    }
}
