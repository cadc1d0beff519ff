//! A Unix socket's file: which one it is, who may use it, whether anybody is behind it, and how it is
//! taken over and unlinked.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;

use crate::address::Address;
use crate::limits;
use crate::sys::{self, Name};
use crate::wire::{FileId, Kind};

/// A socket's path, and which file it was there: another server may have put its own in its place.
///
/// As long as the socket is open no other file can have that number, even if its path is unlinked.
#[derive(Debug)]
pub(crate) struct Bound {
    path: PathBuf,
    file: FileId,
}

impl Bound {
    /// The file that is at a path now, if there is one.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        Some(Self { path: path.into(), file: file_at(path)? })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> FileId {
        self.file
    }

    /// Unlinks the path, if it still is the file that it was.
    ///
    /// It may wait for a disk. The socket is to be open until it is done: then no other file can have its
    /// number.
    pub(crate) fn unlink(&self) {
        if file_at(&self.path) == Some(self.file) {
            if let Err(error) = fs::remove_file(&self.path) {
                log::warn!("unlink {}: {error}", Address::Path(self.path.clone()));
            }
        }
    }
}

/// Which file is at a path. A link is a file of its own.
pub(crate) fn file_at(path: &Path) -> Option<FileId> {
    let found = path.symlink_metadata().ok()?;
    Some(FileId { device: found.dev(), inode: found.ino() })
}

/// Keeps others who do the same from making a socket in that directory, as long as the answer lives
/// (flock(2)): of two who look whether a socket's file is left over, each could unlink the other's.
///
/// `None` if the directory cannot be locked, or somebody has locked it for another purpose: then it has
/// to do without.
pub(crate) fn lock_directory_of(path: &Path) -> Option<File> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(directory).ok()?;
    let deadline = Instant::now() + limits::LOCK_WAIT;
    loop {
        match sys::lock(file.as_fd()) {
            Ok(()) => return Some(file),
            Err(Errno::EINTR) => {}
            Err(Errno::EWOULDBLOCK) if Instant::now() < deadline => {
                thread::sleep(limits::LOCK_RETRY);
            }
            Err(error) => {
                log::debug!("{} is not locked: {error}", directory.display());
                return None;
            }
        }
    }
}

/// Whether a path is a socket that nobody is behind, left by a process that was killed: it refuses
/// connections (connect(2)).
pub(crate) fn is_stale(path: &Path, kind: Kind) -> bool {
    let socket_type = match kind {
        Kind::UnixStream => SockType::Stream,
        Kind::UnixSeqpacket => SockType::SeqPacket,
        Kind::UnixDatagram => SockType::Datagram,
        Kind::Tcp | Kind::Udp | Kind::File => return false,
    };
    if !path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket()) {
        return false;
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, socket_type, flags, None);
    let name = Address::Path(path.into()).to_name().and_then(|name| Name::new(&name));
    match (probe, name) {
        (Ok(probe), Some(name)) => sys::connect(probe.as_fd(), &name) == Err(Errno::ECONNREFUSED),
        (Err(_), _) | (_, None) => false,
    }
}

/// Who may connect: the file's mode and owner, as far as somebody has said. Writing is what it takes
/// (unix(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

impl Access {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Gives a socket's file its mode and its owner, where it has others. It is looked up once and not
    /// followed if it is a link: who may write into the directory cannot have another file changed.
    pub(crate) fn apply(&self, path: &Path) -> Result<(), (&'static str, io::Error)> {
        if self.is_default() {
            return Ok(());
        }
        // Not by the standard library: with musl it drops O_PATH, which is part of an access mode there.
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = open(path, flags, Mode::empty()).map_err(|errno| ("open", errno.into()))?;
        let file = File::from(file);
        let found = file.metadata().map_err(|error| ("fstat", error))?;
        if !found.file_type().is_socket() {
            return Err(("open", io::Error::other("it is no socket any more")));
        }
        // A descriptor of this sort cannot be changed itself, but has a name (open(2), O_PATH).
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        let uid = self.uid.filter(|uid| *uid != found.uid());
        let gid = self.gid.filter(|gid| *gid != found.gid());
        if uid.is_some() || gid.is_some() {
            chown(&name, uid, gid).map_err(|error| ("chown", error))?;
        }
        match self.mode {
            Some(mode) if mode != found.mode() & PERMISSIONS => {
                fs::set_permissions(&name, Permissions::from_mode(mode))
                    .map_err(|error| ("chmod", error))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// The bits of a mode that say who may do what (chmod(2)).
pub(crate) const PERMISSIONS: u32 = 0o777;
