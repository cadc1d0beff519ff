//! What a disk could hold up: the pid file, and the files of Unix sockets. Once the process serves, a thread
//! beside the loop makes these calls, but for those for a pid file in memory.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Waker;

use super::pid_file::PidFile;
use super::worker::Worker;
use crate::error::Error;
use crate::socket_file::{Access, Bound};
use crate::user::User;

/// The files of this process, and the thread that changes them.
pub(super) struct Disk {
    pub(super) pid_file: Option<PidFile>,
    pub(super) worker: Worker,
}

impl Disk {
    pub(super) fn new(pid_file: Option<PidFile>, waker: Arc<Waker>) -> Self {
        Self { pid_file, worker: Worker::new(waker) }
    }

    /// Has the worker unlink these paths, and waits for it as long as a turn may take: who connects to a
    /// path that is there still, while its socket is about to be closed, is reset.
    pub(super) fn unlink(&mut self, paths: Vec<(Bound, Option<OwnedFd>)>, wait: Duration) {
        if paths.is_empty() {
            return;
        }
        let unlink = move || {
            for (path, open) in paths {
                path.unlink();
                drop(open);
            }
        };
        match self.worker.order(unlink) {
            // Later is no harm: at its end the process waits for the worker once more.
            Ok(done) => drop(done.recv_timeout(wait)),
            Err(error) => log::error!("start the thread that unlinks sockets: {error}"),
        }
    }

    /// Has this process become a user. What only root can do about files is done before, on this thread, because nobody is
    /// served yet.
    pub(super) fn become_user(
        &mut self,
        user: &User,
        is_first: bool,
        files: Vec<(PathBuf, Access)>,
    ) -> Result<(), Error> {
        if user.is_own() {
            return user.become_it();
        }
        for (path, access) in files {
            if let Err((step, error)) = access.apply(&path) {
                log::warn!("{}: {step}: {error}", path.display());
            }
        }
        match &mut self.pid_file {
            Some(pid_file) => pid_file.hand_to(user, is_first, || user.become_it()),
            None => user.become_it(),
        }
    }

    /// Gives the files of Unix sockets their mode and owner. Nobody waits for that: the disk may hang.
    pub(super) fn open_files_up(&mut self, files: Vec<(PathBuf, Access)>) {
        if files.is_empty() {
            return;
        }
        let open_up = move || {
            for (path, access) in files {
                if let Err((step, error)) = access.apply(&path) {
                    let path = path.display();
                    log::warn!("{path}: {step}: {error}; mode and owner stay as they are");
                }
            }
        };
        if let Err(error) = self.worker.order(open_up) {
            log::error!("start the thread that gives sockets their mode: {error}");
        }
    }

    /// At the end of the process, when nobody is served: waits until the worker has done what it was
    /// given, or its time is over.
    pub(super) fn part(&mut self, wait: Duration) {
        if let Some(pid_file) = &mut self.pid_file {
            pid_file.discard_spare(&mut self.worker);
        }
        self.worker.finish(wait);
        if let Some(pid_file) = &mut self.pid_file {
            pid_file.hear(Instant::now());
        }
    }
}
