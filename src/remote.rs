//! For other threads: ask the loop for something, wait for the predecessor's end.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use mio::Waker;

use crate::machine::Event;
use crate::report::Report;
use crate::standing::Requests;
use crate::token::{Reach, SessionId};

const UPGRADE: u8 = 1;
const SHUTDOWN: u8 = 2;
const EXIT: u8 = 4;
const WAKE: u8 = 8;
/// The loop has ended, and stays so.
const ENDED: u8 = 128;

/// Asks a server for something from another thread, as the signals do. Clone it freely.
///
/// What is asked of a server whose loop has ended is not heard.
#[derive(Clone)]
pub struct Remote {
    requests: Arc<AtomicU8>,
    waker: Arc<Waker>,
    /// Who waits for the report of an upgrade.
    waiting: Arc<Mutex<Vec<Sender<Arc<Report>>>>>,
    /// What is wanted of sessions.
    reached: Arc<Mutex<Vec<(SessionId, Reach)>>>,
}

impl Remote {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self { requests: Arc::default(), waker, waiting: Arc::default(), reached: Arc::default() }
    }

    /// Asks for an upgrade. The answer is in the log and the [`Report`].
    pub fn request_upgrade(&self) {
        self.request(UPGRADE);
    }

    /// Asks for an upgrade, and waits on the answer for the report of the next one that ends.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), tablecloth::Error> {
    /// # let upgrader = tablecloth::Upgrader::new(tablecloth::Config::default())?;
    /// let remote = upgrader.remote();
    /// std::thread::spawn(move || match remote.upgrade().wait() {
    ///     Some(report) => println!("{report}"),
    ///     None => println!("it was refused, or the process has ended meanwhile"),
    /// });
    /// # Ok(())
    /// # }
    /// ```
    pub fn upgrade(&self) -> UpgradeAnswer {
        let (sender, report) = channel();
        let mut waiting = self.waiting();
        // Once the loop has ended, nobody will answer.
        if !self.has_ended() {
            waiting.push(sender);
        }
        drop(waiting);
        self.request_upgrade();
        UpgradeAnswer { report }
    }

    /// Asks for a shutdown: the sessions come to their end.
    pub fn request_shutdown(&self) {
        self.request(SHUTDOWN);
    }

    /// Asks for the end at once.
    pub fn request_exit(&self) {
        self.request(EXIT);
    }

    /// Has [`Handler::woken`](crate::Handler::woken) called on the loop's thread, once for however many calls
    /// there were since the last one. With an [`Upgrader`](crate::Upgrader) it makes the descriptor readable, and
    /// nothing more.
    pub fn wake(&self) {
        self.request(WAKE);
    }

    /// Gives a session an event that [says so](crate::IoEvent::is_woken). An id that is out of date finds
    /// nobody.
    pub fn wake_session(&self, id: SessionId) {
        self.reach(id, Reach::Wake);
    }

    /// Closes a session, as [`Verdict::Close`](crate::Verdict::Close) does. An id that is out of date finds
    /// nobody.
    pub fn close_session(&self, id: SessionId) {
        self.reach(id, Reach::Close);
    }

    fn has_ended(&self) -> bool {
        self.requests.load(Ordering::Acquire) & ENDED != 0
    }

    fn reach(&self, id: SessionId, reach: Reach) {
        if self.has_ended() {
            return;
        }
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).push((id, reach));
        let _ = self.waker.wake();
    }

    /// What is wanted of sessions since the last call.
    pub(crate) fn take_reached(&self) -> Vec<(SessionId, Reach)> {
        std::mem::take(&mut *self.reached.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn request(&self, request: u8) {
        self.requests.fetch_or(request, Ordering::Release);
        // It fails only where the loop is gone, or its counter is full: then it is awake.
        let _ = self.waker.wake();
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Sender<Arc<Report>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An upgrade has ended.
    pub(crate) fn announce(&self, report: &Arc<Report>) {
        for waits in self.waiting().drain(..) {
            // Whoever waited may have given up.
            let _ = waits.send(Arc::clone(report));
        }
    }

    /// There will be no answer to an upgrade that was asked for.
    pub(crate) fn refuse(&self, event: Event) {
        if event == Event::UpgradeRequested {
            self.waiting().clear();
        }
    }

    /// The loop has ended.
    pub(crate) fn end(&self) {
        let mut waiting = self.waiting();
        self.requests.fetch_or(ENDED, Ordering::Release);
        waiting.clear();
    }

    pub(crate) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    pub(crate) fn take(&self) -> Requests {
        let requests = self.requests.fetch_and(ENDED, Ordering::Acquire);
        let asked = |request| requests & request != 0;
        Requests {
            upgrade: asked(UPGRADE),
            shutdown: asked(SHUTDOWN),
            exit: asked(EXIT),
            wake: asked(WAKE),
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").finish_non_exhaustive()
    }
}

/// The answer to [`Remote::upgrade`], which is still to come.
#[derive(Debug)]
pub struct UpgradeAnswer {
    report: Receiver<Arc<Report>>,
}

impl UpgradeAnswer {
    /// Waits for the report. `None` if there will be none: the upgrade was refused, or the process has ended
    /// or was replaced before it. Never call it on the loop's thread, which is what makes the upgrade.
    pub fn wait(&self) -> Option<Arc<Report>> {
        self.report.recv().ok()
    }

    /// The same for at most that long. `None` if it has not ended by then, too.
    pub fn wait_for(&self, timeout: Duration) -> Option<Arc<Report>> {
        self.report.recv_timeout(timeout).ok()
    }
}

/// Tells when the predecessor is gone. For threads that have to wait for it, as tableflip's
/// `WaitForParent`; on the loop's own thread there is
/// [`Handler::predecessor_gone`](crate::Handler::predecessor_gone) or
/// [`Notice::PredecessorGone`](crate::Notice::PredecessorGone).
#[derive(Clone, Debug)]
pub struct PredecessorWatch {
    gone: Arc<(Mutex<bool>, Condvar)>,
}

impl PredecessorWatch {
    pub(crate) fn new(gone: bool) -> Self {
        Self { gone: Arc::new((Mutex::new(gone), Condvar::new())) }
    }

    /// Whether there is no predecessor, or none any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        *self.lock()
    }

    /// Waits until the predecessor is gone, at most that long; answers whether it is gone. Never
    /// call it on the loop's thread: the loop is what notices.
    pub fn wait(&self, timeout: Duration) -> bool {
        // A poisoned lock is as good as a whole one: the flag is set or it is not.
        let waited = self.gone.1.wait_timeout_while(self.lock(), timeout, |gone| !*gone);
        *waited.unwrap_or_else(|poison| poison.into_inner()).0
    }

    pub(crate) fn announce(&self) {
        *self.lock() = true;
        self.gone.1.notify_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, bool> {
        self.gone.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}
