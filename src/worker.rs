//! A thread beside the loop, for calls that a disk can hold up for as long as it likes.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::thread;
use std::time::Duration;

use mio::Waker;

use crate::limits;

type Job = Box<dyn FnOnce() + Send>;

/// Does jobs one after another, in the order in which they were given.
///
/// There is one for the process, and it starts its thread with the first job. The loop gives a job
/// and goes on: the waker tells that there is an answer. No job is ever waited for without a bound,
/// because a call into a disk that does not answer cannot be taken back.
#[derive(Debug)]
pub(crate) struct Worker {
    waker: Arc<Waker>,
    jobs: Option<Sender<Job>>,
    /// It was waited for in vain.
    late: bool,
}

impl Worker {
    /// A worker without a thread.
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self { waker, jobs: None, late: false }
    }

    /// Has `job` done after those that were given before. The answer comes through the receiver,
    /// which may be dropped. An error says that the system has no thread to give: nothing was done.
    pub(crate) fn order<T: Send + 'static>(
        &mut self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Receiver<T>> {
        let ((sender, answer), waker) = (channel(), Arc::clone(&self.waker));
        let mut job: Job = Box::new(move || {
            // Whoever gave the job may not care for the answer.
            let _ = sender.send(job());
            // A loop that has ended hears nothing, and needs to hear nothing.
            let _ = waker.wake();
        });
        if let Some(jobs) = &self.jobs {
            match jobs.send(job) {
                Ok(()) => return Ok(answer),
                // A job has panicked, and the thread ended with it. Another one goes on.
                Err(SendError(returned)) => job = returned,
            }
        }
        let jobs = start()?;
        // Its other end waits in the thread that was just started.
        let _ = jobs.send(job);
        self.jobs = Some(jobs);
        Ok(answer)
    }

    /// Waits until every job is done, and no longer than `wait`; answers whether they are. For the
    /// end of the process, when nobody is served any more. After it has waited in vain, it does not
    /// wait again.
    pub(crate) fn finish(&mut self, wait: Duration) -> bool {
        let wait = if self.late { Duration::ZERO } else { wait };
        let done = match self.jobs {
            Some(_) => self.order(|| ()).is_ok_and(|last| last.recv_timeout(wait).is_ok()),
            None => true,
        };
        self.late = !done;
        done
    }
}

/// The thread ends when nobody can give it a job any more.
fn start() -> io::Result<Sender<Job>> {
    let (jobs, given) = channel::<Job>();
    thread::Builder::new()
        .name("tablecloth-disk".into())
        .stack_size(limits::THREAD_STACK_BYTES)
        .spawn(move || given.into_iter().for_each(|job| job()))?;
    Ok(jobs)
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
