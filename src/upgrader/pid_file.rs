//! The pid file: written by rename, so that a reader finds the old or the new, and never half.
//!
//! - **A link is followed.** What it leads to is replaced, and it stays. A place is found once in each
//!   process; a link that is pointed elsewhere moves the next generation's file, and each process
//!   removes what it has written.
//! - **Nothing but a regular file is replaced.** The null device means that there is no pid file; any
//!   other device, FIFO or socket is an error of the start.
//! - **What cannot be renamed over is written in place**: a mounted file (EBUSY, rename(2)), or one in a
//!   directory where this process may not make files. At the end it is left there, empty.
//! - **A file that another service holds is not taken.** The process that a file names holds a lock on
//!   it (flock(2)) until it is told to stop, or dies. A file system without locks has no such check.
//! - **In a directory with the sticky bit no other user's file is replaced**, by root neither.
//! - **Its mode is 0644**, whatever the umask.
//!
//! # Nobody waits for the disk
//!
//! Before a process serves, it finds the place and writes the spare file on its own thread. From then on
//! the [`Worker`] makes every call for a file on a disk, one job after another: to publish comes before to remove,
//! so that a process that ends in the middle of its takeover leaves no file that names it. The loop gives a job
//! and goes on. A job that takes longer than its deadline is logged; a takeover goes on then, and so
//! does a spawn.
//!
//! A file in memory (tmpfs(5)), as in /run on most systems, is the loop's own: to start a thread takes longer
//! than its calls do.

mod holding;
mod place;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::worker::Worker;
use crate::error::Error;
use crate::limits;
use crate::user::User;
use holding::Holding;

/// The pid file of this process, as the loop sees it.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    /// The worker's, once the process serves, or the loop's.
    holding: Arc<Mutex<Holding>>,
    /// It is in memory, where no call waits for a disk: the loop makes the calls itself.
    in_memory: bool,
    /// Whether there is a spare, or a job that makes one.
    spare: bool,
    /// Jobs that were given and have no answer yet, the oldest first.
    under_way: VecDeque<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    job: Job,
    given: Instant,
    /// `None` once it has passed, and that was logged.
    deadline: Option<Instant>,
    answer: Receiver<Answer>,
}

/// When it was given, because the loop may come to hear it late.
type Answer = (Result<(), Error>, Instant);

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    TakeOver,
    Restore,
    DiscardSpare,
    Forget,
    LetGo,
    Remove,
}

impl Job {
    /// In words, and what is done about it if it is late.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::TakeOver => ("to name this process in it", "the takeover goes on"),
            Self::Restore => ("to name this process in it again", "it serves all the same"),
            Self::DiscardSpare => ("to remove its spare", "nobody waits for it"),
            Self::Forget => ("to remove what a dead process left", "nobody waits for it"),
            Self::LetGo => ("to unlock it", "nobody waits for it"),
            Self::Remove => ("to remove it", "the process ends all the same"),
        }
    }
}

impl PidFile {
    /// Finds the place, and tries it out by writing the file beside it that is to be renamed: a full
    /// disk or a missing directory is found while there is still somebody to tell. `None` if the path
    /// is the null device. May take as long as the disk likes.
    pub(crate) fn prepare(
        path: &Path,
        pid: u32,
        predecessor: Option<u32>,
    ) -> Result<Option<Self>, Error> {
        let Some(holding) = Holding::prepare(path, pid, predecessor)? else {
            log::debug!("{} is the null device: there is no pid file", path.display());
            return Ok(None);
        };
        let in_memory = holding.lies_in_memory();
        let (path, holding) = (path.to_path_buf(), Arc::new(Mutex::new(holding)));
        Ok(Some(Self { path, holding, in_memory, spare: true, under_way: VecDeque::new() }))
    }

    /// Makes the file name this process, and waits for it. For the first process, before it serves.
    pub(crate) fn publish_first(&mut self) -> Result<(), Error> {
        self.spare = false;
        hold(&self.holding).publish_first()
    }

    /// Has this process become a user, by `become_it`, who can write the file as this process could. The first process
    /// names itself in it before. Waits for the disk: nobody is served yet.
    pub(crate) fn hand_to(
        &mut self,
        user: &User,
        is_first: bool,
        become_it: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        if is_first {
            self.publish_first()?;
            hold(&self.holding).give_to(user.user(), user.group())?;
        }
        become_it()?;
        hold(&self.holding).try_as_user()
    }

    /// Has the file name this process, which takes over. [`PidFile::hear`] tells when that is over.
    /// Answers `false` if that will not be, because there was no thread to be had.
    #[must_use]
    pub(crate) fn take_over(&mut self, worker: &mut Worker, wait: Duration) -> bool {
        self.spare = false;
        self.order(worker, Job::TakeOver, wait, Holding::publish)
    }

    /// Has the file name this process again.
    pub(crate) fn restore(&mut self, worker: &mut Worker) {
        self.spare = false;
        self.order(worker, Job::Restore, limits::DISK_WAIT, Holding::publish);
    }

    /// Has a spare file made. The answer comes through the receiver, for the spawning thread to wait
    /// for; `None` if there is no use in waiting, which is logged.
    pub(crate) fn keep_spare(
        &mut self,
        worker: &mut Worker,
    ) -> Option<Receiver<Result<(), Error>>> {
        if self.is_late() {
            log::warn!(
                "pid file {}: the disk does not answer, and no spare is kept for a rollback",
                self.path.display(),
            );
            return None;
        }
        self.spare = true;
        let holding = Arc::clone(&self.holding);
        let given = self.give(worker, move || hold(&holding).keep_spare());
        given.map_err(|error| self.log_no_thread(&error)).ok()
    }

    /// Has the spare removed, if there is one.
    pub(crate) fn discard_spare(&mut self, worker: &mut Worker) {
        if std::mem::take(&mut self.spare) {
            self.tidy_up(worker, Job::DiscardSpare, Holding::discard_spare);
        }
    }

    /// Has everything undone that a killed successor has left: it is dead now.
    pub(crate) fn forget_successor(&mut self, worker: &mut Worker, pid: u32) {
        // What is in memory is not led to by a link, and nobody has to look for a disk behind one.
        let looks_elsewhere = !self.in_memory;
        self.tidy_up(worker, Job::Forget, move |holding| {
            holding.forget_successor(pid)?;
            if looks_elsewhere { holding.forget_successor_elsewhere(pid) } else { Ok(()) }
        });
    }

    /// The same for the predecessor, which is dead now, whether it was killed or has left. Where the
    /// disk is late, those before it may not have cleared up after themselves either.
    pub(crate) fn forget_predecessor(&mut self, worker: &mut Worker, pid: u32) {
        let all = self.is_late();
        self.tidy_up(worker, Job::Forget, move |holding| {
            if all {
                holding.clear_up();
            }
            holding.forget_predecessor(pid)
        });
    }

    /// Lets another service have the file: this process serves nobody new, and may still take a while
    /// over those that it has.
    pub(crate) fn let_go(&mut self, worker: &mut Worker) {
        self.tidy_up(worker, Job::LetGo, |holding| {
            holding.let_go();
            Ok(())
        });
    }

    /// Has the file removed, if it names this process, and whatever is beside it. The last job but for
    /// [`PidFile::forget_successor`].
    pub(crate) fn remove_own(&mut self, worker: &mut Worker) {
        self.spare = false;
        self.order(worker, Job::Remove, limits::DISK_WAIT, Holding::remove_own);
    }

    /// Hears what became of the jobs, and logs what failed and what is late. Answers whether the
    /// takeover need not be waited for any more: it is written, or it failed, or it is late.
    pub(crate) fn hear(&mut self, now: Instant) -> bool {
        if self.under_way.is_empty() {
            return false;
        }
        let (mut taken, path) = (false, self.path.display());
        self.under_way.retain_mut(|job| {
            let (what, consequence) = job.job.words();
            let takes_over = job.job == Job::TakeOver && job.deadline.is_some();
            match job.answer.try_recv() {
                Ok((result, at)) => {
                    if job.deadline.is_none() {
                        let took = at.saturating_duration_since(job.given);
                        log::warn!("pid file {path}: it took {took:.1?} {what}");
                    }
                    if let Err(error) = result {
                        // Nothing to fall back to: serving comes first.
                        log::error!("{error}");
                    }
                    taken |= takes_over;
                    false
                }
                // It has panicked, which was told on standard error.
                Err(TryRecvError::Disconnected) => {
                    taken |= takes_over;
                    false
                }
                Err(TryRecvError::Empty) => {
                    if job.deadline.take_if(|deadline| *deadline <= now).is_some() {
                        let waited = now.saturating_duration_since(job.given);
                        log::warn!(
                            "pid file {path}: the disk has not come {what} in {waited:.1?}; \
                             {consequence}",
                        );
                        taken |= takes_over;
                    }
                    true
                }
            }
        });
        taken
    }

    /// When [`PidFile::hear`] has to be called at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.under_way.iter().filter_map(|job| job.deadline).min()
    }

    /// Whether a job is late: the worker stands still.
    fn is_late(&self) -> bool {
        self.under_way.iter().any(|job| job.deadline.is_none())
    }

    /// What can be left undone is not given to a worker that stands still: what is given is kept in
    /// memory, and a disk may hang for ever. The next first process finds it.
    fn tidy_up(
        &mut self,
        worker: &mut Worker,
        job: Job,
        deed: impl FnOnce(&mut Holding) -> Result<(), Error> + Send + 'static,
    ) {
        if self.under_way.len() < limits::DISK_JOBS {
            self.order(worker, job, limits::DISK_WAIT, deed);
        } else {
            let (what, _) = job.words();
            log::warn!("pid file {}: no attempt is made {what}", self.path.display());
        }
    }

    fn order(
        &mut self,
        worker: &mut Worker,
        job: Job,
        wait: Duration,
        deed: impl FnOnce(&mut Holding) -> Result<(), Error> + Send + 'static,
    ) -> bool {
        let (holding, given) = (Arc::clone(&self.holding), Instant::now());
        let deed = move || (deed(&mut hold(&holding)), Instant::now());
        match self.give(worker, deed) {
            Ok(answer) => {
                let deadline = Some(given + wait.min(limits::DISK_WAIT));
                self.under_way.push_back(UnderWay { job, given, deadline, answer });
                true
            }
            Err(error) => {
                self.log_no_thread(&error);
                false
            }
        }
    }

    /// Has something done, here or by the worker.
    fn give<T: Send + 'static>(
        &self,
        worker: &mut Worker,
        deed: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Receiver<T>> {
        match self.in_memory {
            true => Ok(worker.do_here(deed)),
            false => worker.order(deed),
        }
    }

    /// Has the thread that makes the calls started, if there is to be one: they are about to be made.
    pub(crate) fn expect_calls(&self, worker: &mut Worker) {
        if !self.in_memory {
            worker.get_ready();
        }
    }

    fn log_no_thread(&self, error: &io::Error) {
        log::error!("pid file {}: start the thread that writes it: {error}", self.path.display());
    }
}

/// A process that ends before it had a worker leaves nothing behind. Nobody is served by it.
impl Drop for PidFile {
    fn drop(&mut self) {
        if self.spare && Arc::strong_count(&self.holding) == 1 {
            if let Err(error) = hold(&self.holding).discard_spare() {
                log::warn!("{error}");
            }
        }
    }
}

/// Only one thread ever uses it at a time. One that panicked has left facts about files, which are
/// as true as before.
fn hold(holding: &Mutex<Holding>) -> MutexGuard<'_, Holding> {
    holding.lock().unwrap_or_else(PoisonError::into_inner)
}
