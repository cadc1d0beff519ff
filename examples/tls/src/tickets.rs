//! The keys of session tickets, in a file in memory that all processes of the service share: a client that comes
//! back goes on without a whole handshake, whichever generation and whichever worker it finds.
//!
//! Whoever finds that the newest key is old writes another one in place of the oldest, which begins to count some
//! time later, when all have read it. The lock is one of fcntl(2): it belongs to a process, and the kernel opens it
//! when that dies.
//!
//! The file has no name in the file system, and pages of it are in no core dump: nobody maps it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use zeroize::Zeroizing;

/// The name by which it passes from process to process.
pub(crate) const NAME: &str = "tickets";

/// How long a key gives tickets before there is a new one.
const PERIOD: Duration = Duration::from_secs(3600);
/// How long a key gives tickets at the most, and how long it takes them after that.
pub(crate) const ENCRYPTS: Duration = Duration::from_secs(2 * 3600);
pub(crate) const DECRYPTS: Duration = Duration::from_secs(10 * 3600);
/// A new key begins to count when everybody has looked.
const NOTICE: Duration = Duration::from_secs(60);
/// How often a process looks whether there is a new one.
pub(crate) const LOOK: Duration = Duration::from_secs(20);

/// As many as there are hours in which one counts, and two more.
const KEYS: usize = 14;
const NAME_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;
/// When it begins, in seconds since 1970, little-endian; a name; the key.
const KEY_BYTES: usize = 8 + NAME_BYTES + SECRET_BYTES;

/// A key, which is zeroed when it is dropped.
#[derive(Clone)]
pub(crate) struct Key(Box<Zeroizing<[u8; KEY_BYTES]>>);

impl Key {
    fn new(begins: Duration) -> io::Result<Self> {
        // Where it stays: a copy of it would not be zeroed.
        let mut key = Box::new(Zeroizing::new([0; KEY_BYTES]));
        rand::fill(&mut key[8..]).map_err(|_| io::Error::other("no random bytes are to be had"))?;
        key[..8].copy_from_slice(&begins.as_secs().to_le_bytes());
        Ok(Self(key))
    }

    fn seconds(&self) -> u64 {
        self.0.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    pub(crate) fn begins(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.seconds())).unwrap_or(UNIX_EPOCH)
    }

    pub(crate) fn name(&self) -> &[u8] {
        &self.0[8..8 + NAME_BYTES]
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &self.0[8 + NAME_BYTES..]
    }
}

/// The file of keys, and what was read of it.
pub(crate) struct Tickets {
    file: File,
    keys: Vec<Key>,
}

impl Tickets {
    /// A file without a key.
    pub(crate) fn make() -> io::Result<OwnedFd> {
        Ok(memfd_create(c"tickets", MFdFlags::MFD_CLOEXEC)?)
    }

    pub(crate) fn new(file: OwnedFd) -> Self {
        Self { file: file.into(), keys: Vec::new() }
    }

    pub(crate) fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Looks whether there is a new key, and makes one if it is time for that. Answers whether the keys are others
    /// than before.
    pub(crate) fn look(&mut self) -> io::Result<bool> {
        self.look_at(SystemTime::now())
    }

    fn look_at(&mut self, now: SystemTime) -> io::Result<bool> {
        let now = now.duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        let mut keys = self.read(now)?;
        // Somebody else who is writing will be done by the next look.
        if is_due(&keys, now) && self.lock(libc::F_WRLCK)? {
            let renewed = self.renew(now);
            self.lock(libc::F_UNLCK)?;
            keys = renewed?;
        }
        let begin = |keys: &[Key]| keys.iter().map(Key::seconds).collect::<Vec<_>>();
        let is_new = begin(&keys) != begin(&self.keys);
        self.keys = keys;
        Ok(is_new)
    }

    /// Writes a new key in place of the oldest, if nobody else has by now.
    fn renew(&self, now: Duration) -> io::Result<Vec<Key>> {
        let keys = self.read(now)?;
        if is_due(&keys, now) {
            // The first one counts at once: nobody has to read it before.
            let begins = if keys.is_empty() { now } else { now + NOTICE };
            let all = self.read_all()?;
            let counts = |key: &Key| if is_of(key, now) { key.seconds() } else { 0 };
            let free = (0..KEYS).min_by_key(|place| all.get(*place).map_or(0, counts));
            let key = Key::new(begins)?;
            self.file.write_all_at(&**key.0, (free.unwrap_or_default() * KEY_BYTES) as u64)?;
        }
        self.read(now)
    }

    /// The keys that count, or will, in the order in which they begin.
    fn read(&self, now: Duration) -> io::Result<Vec<Key>> {
        let mut keys = self.read_all()?;
        keys.retain(|key| is_of(key, now));
        keys.sort_by_key(Key::seconds);
        Ok(keys)
    }

    fn read_all(&self) -> io::Result<Vec<Key>> {
        let mut keys = Vec::new();
        for place in 0..KEYS {
            let mut key = Box::new(Zeroizing::new([0; KEY_BYTES]));
            match self.file.read_exact_at(&mut **key, (place * KEY_BYTES) as u64) {
                Ok(()) => keys.push(Key(key)),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
        }
        Ok(keys)
    }

    /// Locks the file, or unlocks it. Answers whether that was possible.
    fn lock(&self, kind: libc::c_int) -> io::Result<bool> {
        let lock = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match fcntl(&self.file, FcntlArg::F_SETLK(&lock)) {
            Ok(_) => Ok(true),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
            Err(error) => Err(io::Error::other(format!(
                "lock the file of ticket keys (descriptor {}): {error}",
                self.file.as_raw_fd()
            ))),
        }
    }
}

/// Whether a key counts, or will soon. One of a time when the clock was ahead does not.
fn is_of(key: &Key, now: Duration) -> bool {
    let lives = (ENCRYPTS + DECRYPTS).as_secs();
    let ends = key.seconds().saturating_add(lives);
    (1..=(now + 2 * NOTICE).as_secs()).contains(&key.seconds()) && ends > now.as_secs()
}

/// Whether the newest key has given tickets for as long as it should.
fn is_due(keys: &[Key], now: Duration) -> bool {
    let newest = keys.last().map_or(0, Key::seconds);
    newest + PERIOD.as_secs() <= now.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_rotated_and_those_that_share_the_file_have_the_same() {
        let file = Tickets::make().unwrap();
        let mut one = Tickets::new(file.try_clone().unwrap());
        let mut other = Tickets::new(file);
        let begin = SystemTime::now();
        let mut secrets = Vec::new();
        for hour in 0..40 {
            // A key counts a minute after it was made.
            let now = begin + (PERIOD + NOTICE) * hour as u32;
            let (first, second) =
                if hour % 2 == 0 { (&mut one, &mut other) } else { (&mut other, &mut one) };
            assert!(first.look_at(now).unwrap(), "a new key each hour");
            assert!(!first.look_at(now).unwrap());
            assert!(second.look_at(now).unwrap());
            let of = |it: &Tickets| {
                it.keys().iter().map(|key| key.secret().to_vec()).collect::<Vec<_>>()
            };
            assert_eq!(of(first), of(second));
            // All that still count are there, and no more than so many.
            assert_eq!(first.keys().len(), (hour as usize + 1).min(12));
            let newest = first.keys().last().unwrap();
            assert!(hour == 0 || newest.begins() > now, "everybody reads it before it counts");
            secrets.push(newest.secret().to_vec());
        }
        // The clock goes back.
        assert!(one.look_at(begin).unwrap());
        assert!(one.keys().iter().any(|key| key.begins() <= begin + 2 * NOTICE));
        secrets.sort();
        secrets.dedup();
        assert_eq!(secrets.len(), 40);
    }
}
