//! What a server finds below a service manager, and here: files in memory, as /run is on most systems, and a
//! standard error that somebody reads. With a file on a disk in place of either, an upgrade waits for that, too.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use nix::fcntl::OFlag;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::pipe2;
use tempfile::TempDir;

use super::failed;

/// Where there is memory for files on Linux (shm_overview(7)).
const MEMORY: &str = "/dev/shm";

/// A directory in memory; where there is none, in the usual place.
pub(crate) fn directory() -> Result<TempDir, String> {
    let is_memory = statfs(MEMORY).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
    let made = if is_memory { tempfile::tempdir_in(MEMORY) } else { tempfile::tempdir() };
    made.map_err(failed("make a temporary directory"))
}

/// A standard error that is read, as a journal would. What comes goes into a file, a moment later.
pub(crate) fn log_into(path: &Path) -> Result<Stdio, String> {
    let mut file = File::create(path).map_err(failed(path.display()))?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
    thread::spawn(move || io::copy(&mut File::from(reader), &mut file));
    Ok(writer.into())
}
