//! For other threads: ask the loop for something, wait for the predecessor's end.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use mio::Waker;

use crate::handler::Requests;

const UPGRADE: u8 = 1;
const SHUTDOWN: u8 = 2;
const EXIT: u8 = 4;

/// Asks a server for something from another thread, as the signals do. Clone it freely.
///
/// What is asked of a server whose loop has ended is not heard.
#[derive(Clone)]
pub struct Remote {
    requests: Arc<AtomicU8>,
    waker: Arc<Waker>,
}

impl Remote {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self { requests: Arc::default(), waker }
    }

    /// Asks for an upgrade. The answer is in the log and the [`Report`](crate::Report).
    pub fn request_upgrade(&self) {
        self.request(UPGRADE);
    }

    /// Asks for a shutdown: the sessions come to their end.
    pub fn request_shutdown(&self) {
        self.request(SHUTDOWN);
    }

    /// Asks for the end at once.
    pub fn request_exit(&self) {
        self.request(EXIT);
    }

    fn request(&self, request: u8) {
        self.requests.fetch_or(request, Ordering::Release);
        // It fails only where the loop is gone, or its counter is full: then it is awake.
        let _ = self.waker.wake();
    }

    pub(crate) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    pub(crate) fn take(&self) -> Requests {
        let requests = self.requests.swap(0, Ordering::Acquire);
        let asked = |request| requests & request != 0;
        Requests { upgrade: asked(UPGRADE), shutdown: asked(SHUTDOWN), exit: asked(EXIT) }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").finish_non_exhaustive()
    }
}

/// Tells when the predecessor is gone. For threads that have to wait for it, as tableflip's
/// `WaitForParent`; on the loop's own thread there is
/// [`Handler::predecessor_gone`](crate::Handler::predecessor_gone).
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
