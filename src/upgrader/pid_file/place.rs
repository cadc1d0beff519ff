//! Where a pid file is, what stands there, and who holds it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use crate::sys;

/// How many links one path may lead through (path_resolution(7)).
const LINKS: usize = 40;

/// The sticky bit: only its owner may remove or rename a file there (chmod(2)).
const STICKY: u32 = libc::S_ISVTX;

/// The longest file that is read as a pid file, in bytes: a number of 64 bits and a new line.
const PID_BYTES: u64 = 24;

/// Why there is no pid file at a path.
#[derive(Debug)]
pub(super) enum Unfit {
    /// The null device: there is to be none.
    Null,
    /// It must not be written there; in words.
    Refused(String),
    /// The system says so.
    System(io::Error),
}

impl From<io::Error> for Unfit {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// Who has locked a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nobody, or the file system has no locks.
    Nobody,
    /// Some process, whose id the file does not say.
    Somebody,
    Process(u32),
}

/// Where a path leads: directory and last name without a link, and what is there.
///
/// This is done once in each process. A link that is pointed elsewhere later does not move the file
/// of a process that lives: what it has written, it restores and removes.
pub(super) fn find(path: &Path) -> Result<(PathBuf, Option<Metadata>), Unfit> {
    let mut path = path.to_path_buf();
    for _ in 0..LINKS {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        };
        let directory = fs::canonicalize(parent)?;
        let place = directory.join(name);
        let found = match fs::symlink_metadata(&place) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((place, None)),
            Err(error) => return Err(error.into()),
        };
        if !found.is_symlink() {
            check(&directory, &found)?;
            return Ok((place, Some(found)));
        }
        check_link(&directory, &found)?;
        path = directory.join(fs::read_link(&place)?);
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP).into())
}

/// Whether what stands there may be replaced by a file.
fn check(directory: &Path, found: &Metadata) -> Result<(), Unfit> {
    let kind = found.file_type();
    if kind.is_char_device() && found.rdev() == libc::makedev(1, 3) {
        return Err(Unfit::Null);
    }
    if kind.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory).into());
    }
    if !kind.is_file() {
        let kind = match () {
            () if kind.is_char_device() => "a character device",
            () if kind.is_block_device() => "a block device",
            () if kind.is_fifo() => "a FIFO",
            () => "a socket",
        };
        return Err(Unfit::Refused(format!(
            "it is {kind}, and only a regular file is replaced: name another place, or /dev/null \
             for no pid file",
        )));
    }
    let (owner, us) = (found.uid(), sys::effective_user());
    if owner != us && is_sticky(&fs::metadata(directory)?) {
        return Err(Unfit::Refused(format!(
            "it belongs to user {owner}, this process is user {us}, and in a directory with the \
             sticky bit nobody replaces another user's file: remove it, or name another place",
        )));
    }
    Ok(())
}

/// As the kernel does where `fs.protected_symlinks` is set (proc(5)), which is asked of nobody here,
/// because a link is read and not followed: anybody can put one into such a directory.
fn check_link(directory: &Path, link: &Metadata) -> Result<(), Unfit> {
    let directory = fs::metadata(directory)?;
    let trusted = [sys::effective_user(), directory.uid()];
    if is_sticky(&directory) && !trusted.contains(&link.uid()) {
        return Err(Unfit::Refused(format!(
            "it is a link that belongs to user {}, and in a directory with the sticky bit another \
             user's link is not followed: remove it, or name another place",
            link.uid(),
        )));
    }
    Ok(())
}

fn is_sticky(directory: &Metadata) -> bool {
    directory.mode() & STICKY != 0
}

/// Who holds the file at that place.
pub(super) fn holder(place: &Path) -> Holder {
    let Ok(mut file) = open(OpenOptions::new().read(true), place) else { return Holder::Nobody };
    match sys::lock_shared(file.as_fd()) {
        // Closing it gives the lock back (flock(2)).
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            pid_in(&mut file).map_or(Holder::Somebody, Holder::Process)
        }
        Ok(()) | Err(_) => Holder::Nobody,
    }
}

/// The process that the file at that place names. `None` if it is there and names none.
pub(super) fn named(place: &Path) -> io::Result<Option<u32>> {
    Ok(pid_in(&mut open(OpenOptions::new().read(true), place)?))
}

/// Opens what was a regular file a moment ago. If it is something else by now, that is not waited
/// for, and no link is followed (open(2)).
pub(super) fn open(options: &mut OpenOptions, place: &Path) -> io::Result<File> {
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(place)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

fn pid_in(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
