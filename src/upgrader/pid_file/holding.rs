//! What this process holds at its pid file's place: the file that names it, and a spare beside it.
//!
//! Each of these calls may take as long as the disk likes. Before the process serves they are made on its own
//! thread, and later by the [`Worker`](crate::upgrader::worker::Worker), unless the file is in memory. Where all
//! goes well, no call is made that is not needed: to publish is one rename(2).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::place::{self, Holder, Unfit};
use crate::error::Error;
use crate::fault;
use crate::sys;

/// Readable for everybody, whatever the umask: it is there to be read.
const MODE: u32 = 0o644;

/// The file and the spare of one process.
#[derive(Debug)]
pub(super) struct Holding {
    /// The path that was asked for, made absolute.
    path: PathBuf,
    /// Where that led when this process began.
    place: PathBuf,
    pid: u32,
    /// The file beside the place that is to be renamed, if it is there.
    spare: Option<Lock>,
    /// The lock of the file that names this process.
    published: Lock,
    /// The place cannot be renamed over, so that the file there is written.
    in_place: bool,
    /// This process is on its way out and names itself no more.
    over: bool,
}

/// A locked file is kept open for as long as the lock is to be held. `None` where there are no locks.
type Lock = Option<File>;

impl Holding {
    /// Finds the place and writes the file beside it that is to be renamed. `None` if the path is the
    /// null device.
    pub(super) fn prepare(
        path: &Path,
        pid: u32,
        predecessor: Option<u32>,
    ) -> Result<Option<Self>, Error> {
        let error = |step| move |source| Error::PidFile { path: path.to_path_buf(), step, source };
        let absolute = std::path::absolute(path).map_err(error("make absolute"))?;
        let (place, found) = match place::find(&absolute) {
            Ok(found) => found,
            Err(Unfit::Null) => return Ok(None),
            Err(Unfit::System(source)) => return Err(error("find")(source)),
            Err(Unfit::Refused(reason)) => {
                return Err(Error::PidFileRefused { path: path.into(), reason });
            }
        };
        let mut holding = Self {
            path: absolute,
            place,
            pid,
            spare: None,
            published: None,
            in_place: false,
            over: false,
        };
        if found.is_some() {
            holding.check_holder(predecessor)?;
        }
        match holding.write_spare() {
            Ok(()) => {}
            // Nobody may make files in that directory, but this process may write this one.
            Err(refused) if is_closed(&refused) && found.is_some() => {
                holding.open_in_place().map_err(|_| error("write")(refused))?;
                holding.in_place = true;
            }
            Err(refused) => return Err(error("write")(refused)),
        }
        Ok(Some(holding))
    }

    /// Whether no call for the file leaves memory (tmpfs(5)): that is so in /run on most systems. A path that
    /// leads there by a link may lead to a disk some day.
    pub(super) fn lies_in_memory(&self) -> bool {
        if self.place != self.path || fault::takes_memory_for_disks() {
            return false;
        }
        let kind = |path: &Path| statfs(path).map(|found| found.filesystem_type());
        // Something else may be mounted at the place itself.
        self.place.parent().is_some_and(|directory| kind(directory) == Ok(TMPFS_MAGIC))
            && matches!(kind(&self.place), Ok(TMPFS_MAGIC) | Err(Errno::ENOENT))
    }

    /// A file that another service holds is not taken from it. A successor finds it locked by its
    /// predecessor.
    fn check_holder(&self, predecessor: Option<u32>) -> Result<(), Error> {
        let holder = match (place::holder(&self.place), predecessor) {
            (Holder::Nobody, _) | (Holder::Somebody, Some(_)) => return Ok(()),
            (Holder::Process(pid), Some(predecessor)) if pid == predecessor => return Ok(()),
            (Holder::Process(pid), _) => format!("process {pid}"),
            (Holder::Somebody, None) => "another process".into(),
        };
        Err(Error::PidFileRefused {
            path: self.path.clone(),
            reason: format!("{holder} serves and holds it: stop it first, or name another place"),
        })
    }

    /// The first process: removes what dead processes have left beside the file, and makes the file
    /// name this process. Two that start at the same time are told apart here, as far as that goes.
    pub(super) fn publish_first(&mut self) -> Result<(), Error> {
        // As root, before it became another user.
        if self.published.is_some() && names(&self.place, self.pid) {
            return Ok(());
        }
        self.clear_up();
        self.check_holder(None)?;
        self.publish()
    }

    /// Of the first process, which is root still and names itself in the file: gives the file to the user that it is
    /// about to become, who may not be able to put another one in its place.
    pub(super) fn give_to(&self, user: u32, group: u32) -> Result<(), Error> {
        let file = match &self.published {
            Some(file) => file.try_clone(),
            None => self.open_in_place(),
        };
        file.and_then(|file| fchown(file, Some(user), Some(group))).map_err(self.error("give away"))
    }

    /// This process has become another user a moment ago. Finds out whether that one can do what root could, so that
    /// it is told now and not when there is an upgrade.
    pub(super) fn try_as_user(&mut self) -> Result<(), Error> {
        if self.in_place {
            return self.open_in_place().map(drop).map_err(self.error("write"));
        }
        // What root has put there is not this one's to rename, where the directory is sticky.
        let kept = self.spare.take().is_some();
        let discarded = remove(&self.spare_of(self.pid));
        match discarded.and_then(|()| self.write_spare()) {
            Ok(()) if kept => Ok(()),
            Ok(()) => self.discard_spare(),
            Err(refused) if is_closed(&refused) => {
                self.in_place = true;
                self.open_in_place().map(drop).map_err(|_| self.error("write")(refused))
            }
            Err(refused) => Err(self.error("write")(refused)),
        }
    }

    /// Makes the file name this process.
    pub(super) fn publish(&mut self) -> Result<(), Error> {
        if self.in_place {
            return self.write_in_place();
        }
        let kept = self.spare.is_some();
        if !kept {
            self.write_spare().map_err(self.error("write"))?;
        }
        let mut renamed = self.rename();
        if kept && renamed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            // Somebody has tidied up the directory.
            self.write_spare().map_err(self.error("write"))?;
            renamed = self.rename();
        }
        match renamed {
            Ok(()) => {
                self.published = self.spare.take().flatten();
                Ok(())
            }
            Err(error) => {
                let discarded = self.discard_spare();
                // Something is mounted there (rename(2)): a file of the host in a container.
                if error.raw_os_error() == Some(libc::EBUSY) {
                    self.in_place = true;
                    return discarded.and_then(|()| self.write_in_place());
                }
                Err(self.error("rename")(error))
            }
        }
    }

    fn rename(&self) -> io::Result<()> {
        fs::rename(self.spare_of(self.pid), &self.place)
    }

    /// A reader may find the file with the old number, with the new one, or in the moment between;
    /// what is written is one call.
    fn write_in_place(&mut self) -> Result<(), Error> {
        let file = self.open_in_place().map_err(self.error("open"))?;
        let text = self.text();
        file.write_all_at(text.as_bytes(), 0)
            .and_then(|()| file.set_len(text.len() as u64))
            .map_err(self.error("write"))?;
        if self.published.is_none() {
            self.published = locked(file);
        }
        Ok(())
    }

    fn open_in_place(&self) -> io::Result<File> {
        place::open(OpenOptions::new().write(true), &self.place)
    }

    /// Puts a spare beside the file, so that naming this process once more needs no space on the
    /// disk, only a rename.
    pub(super) fn keep_spare(&mut self) -> Result<(), Error> {
        if self.in_place || self.spare.is_some() {
            return Ok(());
        }
        match self.write_spare() {
            // The directory is gone, and nothing can be restored there: no reason to stay behind.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                log::warn!("{}", self.error("keep a spare")(error));
                Ok(())
            }
            result => result.map_err(self.error("write")),
        }
    }

    /// No more of that, where it was not needed.
    pub(super) fn discard_spare(&mut self) -> Result<(), Error> {
        match self.spare.take() {
            Some(_) => remove(&self.spare_of(self.pid)).map_err(self.error("remove the spare of")),
            None => Ok(()),
        }
    }

    /// Unlocks the file, for whoever is started next.
    pub(super) fn let_go(&mut self) {
        self.published = None;
    }

    /// Removes the file, if it names this process. It does not come back.
    pub(super) fn remove_own(&mut self) -> Result<(), Error> {
        self.over = true;
        let discarded = self.discard_spare();
        let removed = self.remove_if_it_names(&self.place, self.pid);
        self.published = None;
        discarded.and(removed)
    }

    /// A successor that was killed is dead now, and writes no more. What it may have left beside the
    /// file is removed, and a file that it has come to write names its owner again.
    pub(super) fn forget_successor(&mut self, pid: u32) -> Result<(), Error> {
        remove(&self.spare_of(pid)).map_err(self.error("remove the spare of"))?;
        if names(&self.place, pid) {
            match self.over {
                true => self.remove_if_it_names(&self.place, pid)?,
                false => self.publish()?,
            }
        }
        Ok(())
    }

    /// The same where the path leads by now: a link may lead elsewhere, and the successor has gone there.
    pub(super) fn forget_successor_elsewhere(&mut self, pid: u32) -> Result<(), Error> {
        match place::find(&self.path) {
            Ok((place, _)) if place != self.place => {
                remove(&beside(&place, pid)).map_err(self.error("remove the spare of"))?;
                self.remove_if_it_names(&place, pid)
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// The predecessor is dead, and writes no more. What it kept for a rollback is removed. If the
    /// disk was slow, its last call may have come after this process's: it has then taken away or
    /// overwritten what this process had written, which is written again.
    pub(super) fn forget_predecessor(&mut self, pid: u32) -> Result<(), Error> {
        remove(&self.spare_of(pid)).map_err(self.error("remove the spare of"))?;
        let lost = match place::named(&self.place) {
            Ok(named) => named == Some(pid),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        // The lock of a file that is written in place was the predecessor's until now.
        let unlocked = self.in_place && self.published.is_none();
        if !self.over && (lost || unlocked) { self.publish() } else { Ok(()) }
    }

    /// Removes what dead processes have left beside the file: those that were killed in the middle of
    /// an upgrade, with nobody to clear up after them.
    pub(super) fn clear_up(&self) {
        let prefix = self.spare_of(0);
        let Some(prefix) = prefix.file_name().and_then(|name| name.to_str()) else { return };
        let prefix = prefix.trim_end_matches('0');
        let directory = self.place.parent().map(fs::read_dir);
        for entry in directory.into_iter().flatten().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
            if pid.is_some_and(is_dead) {
                // Somebody else may have been faster.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn remove_if_it_names(&self, place: &Path, pid: u32) -> Result<(), Error> {
        if !names(place, pid) {
            return Ok(());
        }
        if self.in_place && place == self.place {
            // What is mounted there cannot be removed (unlink(2)); it names nobody then.
            let file = self.open_in_place().map_err(self.error("open"))?;
            return file.set_len(0).map_err(self.error("empty"));
        }
        remove(place).map_err(self.error("remove"))
    }

    fn write_spare(&mut self) -> io::Result<()> {
        let spare = self.spare_of(self.pid);
        let mut file = match File::create_new(&spare) {
            // It is old, or not ours; what it may point to is not written to.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&spare)?;
                File::create_new(&spare)?
            }
            result => result?,
        };
        let written = file
            .write_all(self.text().as_bytes())
            .and_then(|()| file.set_permissions(fs::Permissions::from_mode(MODE)));
        match written {
            Ok(()) => {
                self.spare = Some(locked(file));
                Ok(())
            }
            Err(error) => {
                // Half of it is of no use.
                let _ = fs::remove_file(&spare);
                Err(error)
            }
        }
    }

    fn text(&self) -> String {
        format!("{}\n", self.pid)
    }

    fn spare_of(&self, pid: u32) -> PathBuf {
        beside(&self.place, pid)
    }

    fn error(&self, step: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::PidFile { path, step, source }
    }
}

/// In the same directory, because rename(2) works within one file system.
fn beside(place: &Path, pid: u32) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(place.file_name().unwrap_or_default());
    name.push(format!(".{pid}"));
    place.with_file_name(name)
}

/// Locks a file, whoever renames it then. The descriptor is close-on-exec like every other one of
/// this process, so that no child holds the lock.
fn locked(file: File) -> Lock {
    sys::lock(file.as_fd()).is_ok().then_some(file)
}

fn names(place: &Path, pid: u32) -> bool {
    place::named(place).is_ok_and(|named| named == Some(pid))
}

/// Removes a file that may be gone already.
fn remove(place: &Path) -> io::Result<()> {
    match fs::remove_file(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether there is no such process, or only a zombie that nobody has waited for.
fn is_dead(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists() || sys::is_exiting(pid)
}

/// The directory's mode or a read-only mount forbids to make files there.
fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).expect("the pid file is there")
    }

    fn prepare(path: &Path, pid: u32) -> Holding {
        let prepared = Holding::prepare(path, pid, Some(11)).expect("writable");
        prepared.expect("no null device")
    }

    fn count(place: &Path) -> usize {
        fs::read_dir(place).expect("a directory").count()
    }

    #[test]
    fn the_file_appears_when_it_is_published_and_goes_with_the_process_it_names() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = place.path().join("echo.pid");
        let mut old = prepare(&path, 11);
        assert!(!path.exists());
        old.publish().expect("renamed");
        assert_eq!(read(&path), "11\n");

        let mut new = prepare(&path, 22);
        assert_eq!(read(&path), "11\n", "not before the commit");
        new.publish().expect("renamed");
        old.remove_own().expect("nothing to do");
        assert_eq!(read(&path), "22\n", "it names another process");

        old.publish().expect("restored");
        assert_eq!(read(&path), "11\n");
        old.remove_own().expect("removed");
        assert_eq!(count(place.path()), 0);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error_that_names_it() {
        let place = tempfile::tempdir().expect("a temporary directory");
        for path in [place.path().join("no/such/directory/echo.pid"), place.path().into()] {
            let error = Holding::prepare(&path, 11, None).expect_err("not writable").to_string();
            assert!(error.contains(path.to_str().expect("text")), "{error}");
        }
        assert_eq!(count(place.path()), 0);
    }

    #[test]
    fn what_a_killed_process_left_beside_the_file_is_removed() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = place.path().join("echo.pid");
        let mut own = prepare(&path, 11);
        own.publish().expect("renamed");
        drop(prepare(&path, 22));
        own.forget_successor(22).expect("removed");
        assert_eq!(count(place.path()), 1);
        assert_eq!(read(&path), "11\n");

        // A link that somebody has put there is replaced, and not followed.
        let (other, spare) = (place.path().join("other"), place.path().join(".echo.pid.11"));
        fs::write(&other, "not a pid").expect("written");
        std::os::unix::fs::symlink(&other, &spare).expect("linked");
        own.keep_spare().expect("written");
        assert_eq!(read(&other), "not a pid");
        assert_eq!(read(&spare), "11\n");
        own.discard_spare().expect("removed");
        fs::remove_file(other).expect("removed");

        // Of a process that nobody could clear up after, and of one that lives.
        let (dead, alive) = (u32::MAX, std::process::id());
        for pid in [dead, alive] {
            drop(prepare(&path, pid));
        }
        own.clear_up();
        assert!(!place.path().join(format!(".echo.pid.{dead}")).exists());
        fs::remove_file(place.path().join(format!(".echo.pid.{alive}"))).expect("it is there");

        // Killed in the middle of its rename, before its owner is on its way out and after.
        prepare(&path, 33).publish().expect("renamed");
        own.forget_successor(33).expect("published");
        assert_eq!(read(&path), "11\n");
        own.remove_own().expect("removed");
        prepare(&path, 44).publish().expect("renamed");
        own.forget_successor(44).expect("removed");
        assert_eq!(count(place.path()), 0);
    }

    #[test]
    fn what_a_slow_predecessor_took_away_or_overwrote_is_written_again() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = place.path().join("echo.pid");
        let (mut old, mut new) = (prepare(&path, 11), prepare(&path, 22));
        new.publish().expect("renamed");
        old.publish().expect("renamed");
        drop(old);
        new.forget_predecessor(11).expect("published");
        assert_eq!(read(&path), "22\n");
        fs::remove_file(&path).expect("removed");
        new.forget_predecessor(11).expect("published");
        assert_eq!(read(&path), "22\n");
        // Another one's is left alone.
        fs::write(&path, "33\n").expect("written");
        new.forget_predecessor(11).expect("nothing to do");
        assert_eq!(read(&path), "33\n");
    }

    #[test]
    fn a_directory_that_was_tidied_up_or_is_gone_fails_nothing_that_can_go_on() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let directory = place.path().join("release");
        fs::create_dir(&directory).expect("made");
        let path = directory.join("echo.pid");
        let mut own = prepare(&path, 11);
        fs::remove_file(directory.join(".echo.pid.11")).expect("removed");
        own.publish().expect("written again");
        assert_eq!(read(&path), "11\n");
        fs::remove_dir_all(&directory).expect("removed");
        own.keep_spare().expect("it goes on without");
        own.remove_own().expect("it is gone");
    }

    #[test]
    fn a_file_that_is_held_is_refused_by_name_unless_the_predecessor_holds_it() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = place.path().join("echo.pid");
        let mut own = prepare(&path, 11);
        own.publish().expect("renamed");
        for predecessor in [None, Some(7)] {
            let error = Holding::prepare(&path, 22, predecessor).expect_err("it is held");
            assert!(error.to_string().contains("process 11 serves and holds it"), "{error}");
        }
        drop(prepare(&path, 22));
        // A restored file is locked again, and one that nobody holds is just old.
        prepare(&path, 22).publish().expect("renamed");
        own.publish().expect("restored");
        Holding::prepare(&path, 33, None).expect_err("it is held");
        drop(own);
        Holding::prepare(&path, 33, None).expect("nobody holds it");
    }
}
