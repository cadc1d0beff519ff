//! The pid file: written by rename, so that a reader finds the old or the new, and never half.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// The pid file of this process.
///
/// Its directory is tried out when the server is made, by writing the temporary file that is to be
/// renamed; a full disk or a missing directory is found while there is still somebody to tell.
///
/// Each of these calls can take as long as the disk likes, a second on a busy one. What comes in the
/// way of an upgrade that goes well is called beside the loop.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    temporary: PathBuf,
    pid: u32,
    /// The loop and threads beside it write here, one at a time.
    writing: Mutex<()>,
}

impl PidFile {
    /// Makes the path absolute and puts the temporary file beside it.
    pub(crate) fn prepare(path: &Path, pid: u32) -> Result<Self, Error> {
        let error = |step| move |source| Error::PidFile { path: path.to_path_buf(), step, source };
        let path = std::path::absolute(path).map_err(error("make absolute"))?;
        if path.is_dir() {
            return Err(error("write")(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let Some(temporary) = temporary_beside(&path, pid) else {
            return Err(error("write")(io::Error::from(io::ErrorKind::InvalidInput)));
        };
        let file = Self { path, temporary, pid, writing: Mutex::new(()) };
        file.write_temporary().map_err(error("write"))?;
        Ok(file)
    }

    /// Removes what dead processes have left beside the file: those that were killed in the middle of
    /// an upgrade, with nobody to clear up after them. For the first process.
    pub(crate) fn clear_up(&self) {
        let Some(prefix) = temporary_beside(&self.path, 0) else { return };
        let Some(prefix) = prefix.file_name().and_then(|name| name.to_str()) else { return };
        let prefix = prefix.trim_end_matches('0');
        let directory = self.path.parent().map(fs::read_dir);
        for entry in directory.into_iter().flatten().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                // Somebody else may have been faster.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Makes the file name this process.
    pub(crate) fn publish(&self) -> Result<(), Error> {
        let error = |step| move |source| Error::PidFile { path: self.path.clone(), step, source };
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.temporary.exists() {
            self.write_temporary().map_err(error("write"))?;
        }
        fs::rename(&self.temporary, &self.path).map_err(error("rename"))
    }

    /// Puts the temporary file beside the file again, so that naming this process once more needs
    /// no space on the disk, only a rename.
    pub(crate) fn keep_spare(&self) -> Result<(), Error> {
        let error = |source| Error::PidFile { path: self.path.clone(), step: "write", source };
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_temporary().map_err(error)
    }

    /// No more of that, where it was not needed.
    pub(crate) fn discard_spare(&self) {
        // It may have been renamed.
        let _ = fs::remove_file(&self.temporary);
    }

    /// Removes the file, if it names this process.
    pub(crate) fn remove_own(&self) {
        if self.names(self.pid) {
            if let Err(problem) = fs::remove_file(&self.path) {
                log::warn!("pid file {}: remove: {problem}", self.path.display());
            }
        }
    }

    /// A process that was killed is dead now, and writes no more: what it may have left beside the
    /// file is removed, and if it was in the middle of the rename, the file names its owner again.
    pub(crate) fn forget(&self, pid: u32, owner: bool) {
        if let Some(path) = temporary_beside(&self.path, pid) {
            // Usually there is none.
            let _ = fs::remove_file(path);
        }
        if owner && self.names(pid) {
            if let Err(error) = self.publish() {
                log::error!("{error}");
            }
        }
    }

    fn names(&self, pid: u32) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|text| text.trim() == pid.to_string())
    }

    fn write_temporary(&self) -> io::Result<()> {
        // Whatever lies there is not ours, or is old; what it may point to is not written to.
        self.discard_spare();
        let mut file = fs::File::create_new(&self.temporary)?;
        let written = file.write_all(format!("{}\n", self.pid).as_bytes());
        if written.is_err() {
            // Half of it is of no use.
            self.discard_spare();
        }
        written
    }
}

/// A process that ends before it was committed to leaves nothing behind.
impl Drop for PidFile {
    fn drop(&mut self) {
        self.discard_spare();
    }
}

/// In the same directory, because rename(2) works within one file system.
fn temporary_beside(path: &Path, pid: u32) -> Option<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name()?);
    name.push(format!(".{pid}"));
    Some(path.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).expect("the pid file is there")
    }

    #[test]
    fn the_file_appears_when_it_is_published_and_goes_with_the_process_it_names() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = place.path().join("echo.pid");
        let old = PidFile::prepare(&path, 11).expect("writable");
        assert!(!path.exists());
        old.publish().expect("renamed");
        assert_eq!(read(&path), "11\n");

        let new = PidFile::prepare(&path, 22).expect("writable");
        assert_eq!(read(&path), "11\n", "not before the commit");
        new.publish().expect("renamed");
        old.remove_own();
        assert_eq!(read(&path), "22\n", "it names another process");

        old.publish().expect("restored");
        assert_eq!(read(&path), "11\n");
        old.remove_own();
        drop((old, new));
        assert_eq!(fs::read_dir(place.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error_that_names_it() {
        let place = tempfile::tempdir().expect("a temporary directory");
        for path in [place.path().join("no/such/directory/echo.pid"), place.path().into()] {
            let error = PidFile::prepare(&path, 11).expect_err("not writable").to_string();
            assert!(error.contains(path.to_str().expect("text")), "{error}");
        }
        assert_eq!(fs::read_dir(place.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn what_a_killed_process_left_beside_the_file_is_removed() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = place.path().join("echo.pid");
        let own = PidFile::prepare(&path, 11).expect("writable");
        own.publish().expect("renamed");
        std::mem::forget(PidFile::prepare(&path, 22).expect("writable"));
        own.forget(22, true);
        assert_eq!(fs::read_dir(place.path()).expect("a directory").count(), 1);
        assert_eq!(read(&path), "11\n");

        // A link that somebody has put there is replaced, and not followed.
        let (other, spare) = (place.path().join("other"), place.path().join(".echo.pid.11"));
        fs::write(&other, "not a pid").expect("written");
        std::os::unix::fs::symlink(&other, &spare).expect("linked");
        own.keep_spare().expect("written");
        assert_eq!(read(&other), "not a pid");
        assert_eq!(read(&spare), "11\n");
        own.discard_spare();
        fs::remove_file(other).expect("removed");

        // Of a process that nobody could clear up after, and of one that lives.
        let (dead, alive) = (u32::MAX, std::process::id());
        for pid in [dead, alive] {
            std::mem::forget(PidFile::prepare(&path, pid).expect("writable"));
        }
        own.clear_up();
        assert!(!place.path().join(format!(".echo.pid.{dead}")).exists());
        fs::remove_file(place.path().join(format!(".echo.pid.{alive}"))).expect("it is there");

        // Killed in the middle of its rename.
        PidFile::prepare(&path, 33).expect("writable").publish().expect("renamed");
        own.forget(33, false);
        assert_eq!(read(&path), "33\n", "it is not this process's to name");
        own.forget(33, true);
        assert_eq!(read(&path), "11\n");
    }
}
