//! A thread beside the loop, for calls that a disk can hold up for as long as it likes.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use mio::Waker;
use nix::sys::signal::SigSet;

use crate::limits;

type Job = Box<dyn FnOnce() + Send>;

/// Does jobs one after another, in the order in which they were given.
///
/// There is one for the process. Its thread is there while there is something to do, and for a moment
/// after that: a process of one thread is served faster, by the kernel and by the allocator. The loop
/// gives a job and goes on: the waker tells that there is an answer. No job is ever waited for without a
/// bound, because a call into a disk that does not answer cannot be taken back.
#[derive(Debug)]
pub(crate) struct Worker {
    waker: Arc<Waker>,
    desk: Arc<Desk>,
    /// It was waited for in vain.
    late: bool,
}

/// Where jobs are left and fetched.
#[derive(Default)]
struct Desk {
    pile: Mutex<Pile>,
    filled: Condvar,
}

#[derive(Default)]
struct Pile {
    jobs: VecDeque<Job>,
    /// There is a thread, which looks once more before it ends.
    has_thread: bool,
}

impl Worker {
    /// A worker without a thread.
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self { waker, desk: Arc::default(), late: false }
    }

    /// Has `job` done after those that were given before. The answer comes through the receiver,
    /// which may be dropped. An error says that the system has no thread to give: nothing was done.
    pub(crate) fn order<T: Send + 'static>(
        &mut self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Receiver<T>> {
        let (job, answer) = self.answered(job);
        let job: Job = Box::new(job);
        let mut pile = self.desk.lock();
        Desk::start(&self.desk, &mut pile)?;
        pile.jobs.push_back(job);
        drop(pile);
        self.desk.filled.notify_one();
        Ok(answer)
    }

    /// Does `job` at once, on the calling thread: for one that no disk can hold up. The answer comes in the
    /// same way.
    pub(crate) fn do_here<T: Send + 'static>(
        &mut self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Receiver<T> {
        let (job, answer) = self.answered(job);
        do_safely(job);
        answer
    }

    /// The job, which also sends its answer, and wakes the loop for it.
    fn answered<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> (impl FnOnce() + Send + 'static, Receiver<T>) {
        let ((sender, answer), waker) = (channel(), Arc::clone(&self.waker));
        let job = move || {
            // Whoever gave the job may not care for the answer.
            let _ = sender.send(job());
            // A loop that has ended hears nothing, and needs to hear nothing.
            let _ = waker.wake();
        };
        (job, answer)
    }

    /// Has the thread started for a job that is about to come, so that the job does not wait for that.
    /// Where the system has no thread to give, [`Worker::order`] says so.
    pub(crate) fn get_ready(&mut self) {
        let _ = Desk::start(&self.desk, &mut self.desk.lock());
    }

    /// Waits until every job is done, and no longer than `wait`; answers whether they are. For the
    /// end of the process, when nobody is served any more. After it has waited in vain, it does not
    /// wait again.
    pub(crate) fn finish(&mut self, wait: Duration) -> bool {
        let wait = if self.late { Duration::ZERO } else { wait };
        let has_thread = self.desk.lock().has_thread;
        let done = match has_thread {
            true => self.order(|| ()).is_ok_and(|last| last.recv_timeout(wait).is_ok()),
            false => true,
        };
        self.late = !done;
        done
    }
}

impl Desk {
    /// Starts the thread, if there is none. Whoever has the pile does it, so that there is only one.
    fn start(desk: &Arc<Self>, pile: &mut Pile) -> io::Result<()> {
        if !pile.has_thread {
            let desk = Arc::clone(desk);
            thread::Builder::new()
                .name("tablecloth-disk".into())
                .stack_size(limits::THREAD_STACK_BYTES)
                .spawn(move || desk.work())?;
            pile.has_thread = true;
        }
        Ok(())
    }

    /// Held while a job is put down or picked up, and never while one is done.
    fn lock(&self) -> MutexGuard<'_, Pile> {
        self.pile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what there is, until there has been nothing for a while.
    fn work(&self) {
        // Signals are for the loop's thread, which may hold them: here they would do what they do by default.
        let _ = SigSet::all().thread_block();
        let mut pile = self.lock();
        loop {
            while let Some(job) = pile.jobs.pop_front() {
                drop(pile);
                do_safely(job);
                pile = self.lock();
            }
            let waited = self.filled.wait_timeout(pile, limits::WORKER_IDLE);
            let (again, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            pile = again;
            if waited.timed_out() && pile.jobs.is_empty() {
                pile.has_thread = false;
                return;
            }
        }
    }
}

/// A panic is told on standard error; the next job is done all the same.
fn do_safely(job: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(job));
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mio::{Poll, Token};

    use super::*;

    #[test]
    fn jobs_are_done_in_order_and_a_late_one_holds_up_only_those_behind_it() {
        let poll = Poll::new().expect("an epoll instance");
        let waker = Waker::new(poll.registry(), Token(0)).expect("a waker");
        let mut worker = Worker::new(Arc::new(waker));
        assert!(worker.finish(Duration::ZERO), "nothing was given");
        let (gate, closed) = channel::<()>();
        let late = worker.order(move || closed.recv().is_err()).expect("a thread");
        let behind = worker.order(Instant::now).expect("a thread");
        assert!(!worker.finish(Duration::from_millis(1)), "the first one hangs");
        let opened = Instant::now();
        drop(gate);
        assert!(late.recv().expect("done"));
        assert!(behind.recv().expect("done") >= opened);
        // Whatever becomes of a job, the next one is done.
        worker.order(|| panic!("as it was told")).map(drop).expect("a thread");
        let after = loop {
            if let Ok(answer) = worker.order(|| 7).expect("a thread").recv() {
                break answer;
            }
        };
        assert_eq!(after, 7);
    }
}
