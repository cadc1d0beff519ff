//! What a server finds below a service manager, and here: files in memory, as /run is on most systems, and a
//! standard error that somebody reads. With a file on a disk in place of either, an upgrade waits for that, too.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tempfile::TempDir;

use super::{failed, process};

/// A directory in memory (shm_overview(7)); where there is none, in the usual place.
pub(crate) fn directory() -> Result<TempDir, String> {
    let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    made.map_err(failed("make a temporary directory"))
}

/// Reads what a server says on its standard error, as a journal would, and keeps it in a file.
pub(crate) struct Journal {
    path: PathBuf,
    pipe: File,
}

/// Written by [`Journal::read`], behind all that was said before.
const MARK: &str = "-- read --\n";

impl Journal {
    pub(crate) fn new(path: &Path) -> Result<Self, String> {
        let mut file =
            File::options().create(true).append(true).open(path).map_err(failed(path.display()))?;
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
        thread::spawn(move || io::copy(&mut File::from(reader), &mut file));
        Ok(Self { path: path.into(), pipe: writer.into() })
    }

    /// A standard error for the server.
    pub(crate) fn stderr(&self) -> Result<Stdio, String> {
        self.pipe.try_clone().map(Into::into).map_err(failed("copy a pipe"))
    }

    /// Everything that was said up to now, for what was said a moment ago may still be in the pipe.
    pub(crate) fn read(&self) -> Result<String, String> {
        let text = || {
            let bytes = fs::read(&self.path).map_err(failed(self.path.display()))?;
            Ok::<_, String>(String::from_utf8_lossy(&bytes).into_owned())
        };
        let marks = |text: &str| text.matches(MARK).count();
        let before = marks(&text()?);
        (&self.pipe).write_all(MARK.as_bytes()).map_err(failed("write to a pipe"))?;
        let text = process::await_some("the log", || {
            let text = text()?;
            Ok((marks(&text) > before).then_some(text))
        })?;
        Ok(text.replace(MARK, ""))
    }
}
