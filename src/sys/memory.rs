//! Memory that several processes share, as numbers that each of them may change at any time.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

/// A file in memory (memfd_create(2)) that is mapped here, and wherever else it was passed on to.
#[derive(Debug)]
pub(crate) struct Shared {
    place: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: what it points to are atomic numbers, which any thread may read and change; the mapping lives as
// long as this value, and belongs to no thread.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// What holds for such a file: it keeps its length, so that no process can be killed by reading behind
/// its end (SIGBUS, mmap(2)).
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

impl Shared {
    /// A new file of so many numbers, all of them 0. Pages that nobody has written to take no memory.
    pub(crate) fn file(words: usize) -> io::Result<OwnedFd> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(c"tablecloth-metrics", flags)?;
        let length = i64::try_from(words * size_of::<u64>()).map_err(io::Error::other)?;
        ftruncate(&file, length)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS | SealFlag::F_SEAL_SEAL))?;
        Ok(file)
    }

    /// Maps such a file. Anything else, or one of another length, is an error.
    pub(crate) fn map(file: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let length = words * size_of::<u64>();
        let is_whole = fstat(file)?.st_size == i64::try_from(length).map_err(io::Error::other)?;
        let seals = fcntl(file, FcntlArg::F_GET_SEALS)?;
        if !is_whole || !SealFlag::from_bits_retain(seals).contains(SEALS) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let (fd, kind) = (file.as_fd().as_raw_fd(), libc::MAP_SHARED);
        // SAFETY: a new mapping at a place that the kernel chooses; the file has this length and keeps it.
        let place = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, fd, 0) };
        if place == libc::MAP_FAILED {
            return Err(Errno::last().into());
        }
        let place = NonNull::new(place.cast()).ok_or(io::ErrorKind::Other)?;
        Ok(Self { place, words })
    }

    /// The numbers.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has this length, is aligned as a page is, lives as long as `self`, and is
        // changed by atomic operations only, here and in the other processes.
        unsafe { std::slice::from_raw_parts(self.place.as_ptr(), self.words) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and unmapped once; nobody has a reference any more.
        unsafe { libc::munmap(self.place.as_ptr().cast(), self.words * size_of::<u64>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn what_one_adds_to_it_the_other_reads_and_neither_can_shorten_it() {
        let file = Shared::file(512).expect("a file in memory");
        let one = Shared::map(file.as_fd(), 512).expect("mapped");
        let other = Shared::map(file.as_fd(), 512).expect("mapped twice");
        one.words()[511].fetch_add(7, Ordering::Relaxed);
        assert_eq!(other.words()[511].load(Ordering::Relaxed), 7);
        assert_eq!(ftruncate(&file, 8), Err(Errno::EPERM));
    }

    #[test]
    fn a_file_that_is_something_else_is_not_mapped() {
        let file = Shared::file(512).expect("a file in memory");
        assert!(Shared::map(file.as_fd(), 1024).is_err(), "of another length");
        let open = memfd_create(c"unsealed", MFdFlags::MFD_CLOEXEC).expect("a file in memory");
        ftruncate(&open, 4096).expect("as long");
        assert!(Shared::map(open.as_fd(), 512).is_err(), "somebody may shorten it");
        let socket = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        assert!(Shared::map(socket.as_fd(), 512).is_err());
    }
}
