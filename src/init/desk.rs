//! The admin endpoint of an init with several workers: it asks each of them, and answers for all.
//!
//! A thread of its own lets clients in, and never waits for a worker: whatever is asked of those is asked by a thread
//! for each question, within a time.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Registry, Waker};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2, read};

use super::questions::{Leaving, Roster, Shared, answer_of_all, check_one, upgrade_all};
use super::{Workers, sum};
use crate::address::Address;
use crate::admin::{Admin, Answer, Ask, Asker, Request};
use crate::control::{Control, fetch};
use crate::error::Error;
use crate::limits;
use crate::socket::{self, SocketOptions};
use crate::socket_file::Bound;
use crate::token::{Kind as Source, Token};
use crate::wire::{Family, Kind};

/// How long one of them may take.
pub(super) const PATIENCE_WITH_ONE: Duration = Duration::from_secs(1);
/// How often one that leaves is asked what it has counted.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// The name in an error.
const NAME: &str = "the admin endpoint of the init";

/// The endpoint, as long as the init lives.
pub(super) struct Desk {
    /// The file of a Unix socket, which goes with this.
    bound: Option<Bound>,
    asked: String,
    shared: Arc<Shared>,
    /// A byte for each upgrade that has ended.
    ended: OwnedFd,
    mouth: Mouth,
    /// So that the pipe does not end with the thread.
    _tell: Arc<OwnedFd>,
}

impl Desk {
    /// Begins to answer for these workers, each at its own endpoint.
    pub(super) fn open(asked: &str, count: u32, workers: Workers) -> Result<Self, Error> {
        let address = Address::resolve(asked)?.remove(0);
        let is_local = asked.starts_with("unix:");
        let kind = if is_local { Kind::UnixStream } else { Kind::Tcp };
        let options = SocketOptions::default().mode(0o600);
        let listener = socket::make(kind, &address, &options).map_err(|(step, source)| {
            Error::Open { name: NAME.into(), place: address.to_string(), step, source }
        })?;
        let bound = address.path().and_then(Bound::at);
        let family = if is_local { Family::Unix } else { Family::Tcp };
        let known = (1..=count).map(|number| (number, of_worker(asked, number))).collect();
        let roster = Mutex::new(Roster { workers: known, ..Roster::default() });
        let shared = Arc::new(Shared { roster, settled: Condvar::new() });
        const START: &str = "start the admin endpoint of the init";
        let (ended, tell) =
            pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(Error::system(START))?;
        let failed = Error::system(START);
        let poll = Poll::new().map_err(failed)?;
        let waker = Waker::new(poll.registry(), Token::single(Source::Waker).pack());
        let (said, heard) = channel();
        let mouth = Mouth { said, waker: Arc::new(waker.map_err(failed)?) };
        let (its_shared, its_mouth) = (Arc::clone(&shared), mouth.clone());
        let registry = poll.registry().try_clone().map_err(failed)?;
        let tell = Arc::new(tell);
        let its_tell = Arc::clone(&tell);
        let thread = thread::Builder::new().name("tablecloth-admin".into());
        thread
            .stack_size(limits::THREAD_STACK_BYTES)
            .spawn(move || {
                let clerk = Clerk {
                    poll,
                    registry: Rc::new(registry),
                    admin: Admin::new(Rc::new(listener), family),
                    workers,
                    shared: its_shared,
                    tell: its_tell,
                    mouth: its_mouth,
                    heard,
                    asking: Arc::default(),
                    under_way: [false; 2],
                    again: false,
                };
                clerk.work();
            })
            .map_err(failed)?;
        log::info!("the admin endpoint of all workers is {address}");
        Ok(Self { bound, asked: asked.into(), shared, ended, mouth, _tell: tell })
    }

    /// Upgrades all workers, and once more if that is under way. Answers whether somebody does.
    pub(super) fn upgrade(&self) -> bool {
        self.mouth.say(Said::Hup)
    }

    /// Whether workers are being upgraded: nobody is to come or to go meanwhile.
    pub(super) fn is_upgrading(&self) -> bool {
        self.shared.hold().upgrading
    }

    /// Whether somebody is on the way to join them: nobody is to be upgraded meanwhile.
    pub(super) fn set_coming(&self, coming: bool) {
        let mut roster = self.shared.hold();
        if std::mem::replace(&mut roster.coming, coming) != coming {
            self.shared.settled.notify_all();
        }
    }

    /// How an upgrade has ended since this was asked last: what went wrong.
    pub(super) fn outcome(&self) -> Option<Result<(), String>> {
        let mut bytes = [0; 64];
        // It is looked at when there is something, and often enough besides.
        let _ = read(&self.ended, &mut bytes);
        self.shared.hold().outcome.take()
    }

    /// The workers are as many as there are to be, or what went wrong.
    pub(super) fn settled(&self, trouble: Option<String>) {
        let mut roster = self.shared.hold();
        // It would be the answer to the upgrade before.
        if roster.outcome.is_none() {
            roster.settled = Some(trouble);
            self.shared.settled.notify_all();
        }
    }

    /// One worker more.
    pub(super) fn comes(&self, number: u32) {
        let mut roster = self.shared.hold();
        roster.workers.retain(|(known, _)| *known != number);
        roster.workers.push((number, of_worker(&self.asked, number)));
        roster.workers.sort_unstable();
    }

    /// A worker comes to its end. Until then, and behind it, what it has counted counts.
    pub(super) fn leaves(&self, number: u32) {
        let address = of_worker(&self.asked, number);
        // Once before it is told, because it may be gone at once then.
        let first = fetch(&address, "/metrics", "*/*", Instant::now() + PATIENCE_WITH_ONE);
        if let Err(error) = &first {
            log::warn!(
                "what worker {number} has counted is lost, unless it answers later: {error}"
            );
        }
        let last = first.ok().filter(|(status, _)| *status == 200).map(|(_, text)| text);
        let mut roster = self.shared.hold();
        roster.workers.retain(|(known, _)| *known != number);
        roster.leaving.push(Leaving { number, last });
        drop(roster);
        let shared = Arc::clone(&self.shared);
        let begun = begin(move || {
            while shared.hold().leaving.iter().any(|it| it.number == number) {
                let answer = fetch(&address, "/metrics", "*/*", Instant::now() + PATIENCE_WITH_ONE);
                // It has ended meanwhile, and a new one may have its address, if it is not found any more.
                let mut roster = shared.hold();
                let found = roster.leaving.iter_mut().find(|it| it.number == number);
                if let (Some(it), Ok((200, text))) = (found, answer) {
                    it.last = Some(text);
                }
                drop(roster);
                thread::sleep(LAST_WORDS);
            }
        });
        if let Err(error) = begun {
            log::warn!("what worker {number} counts from here on is lost: {error}");
        }
    }

    /// It has ended.
    pub(super) fn is_gone(&self, number: u32) {
        let mut roster = self.shared.hold();
        let Some(place) = roster.leaving.iter().position(|it| it.number == number) else { return };
        let last = roster.leaving.remove(place).last.unwrap_or_default();
        roster.counted = sum::of(&[], &[&roster.counted, &last]);
    }
}

impl AsFd for Desk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.bound.iter().for_each(Bound::unlink);
    }
}

/// Where a worker answers, whose init answers there: a file beside that one's, or a name that no other init has.
pub(super) fn of_worker(asked: &str, number: u32) -> String {
    match asked.strip_prefix("unix:") {
        Some(_) => format!("{asked}.{number}"),
        None => format!("unix:@tablecloth-{}-{:016x}.{number}", std::process::id(), nonce()),
    }
}

/// A number that no other init has: in a container they all are process 1, and names may be those of the host.
fn nonce() -> u64 {
    static NONCE: OnceLock<u64> = OnceLock::new();
    // It is seeded by the kernel.
    *NONCE.get_or_init(|| RandomState::new().build_hasher().finish())
}

/// What another thread has found out.
enum Said {
    Answer(Asker, Request, Answer),
    /// A line of the upgrade, or of the check, that is under way.
    Line(bool, String),
    /// The last one of it.
    End(bool, String),
    /// An upgrade is wanted, and nobody waits for what becomes of it.
    Hup,
}

/// How other threads tell this one.
#[derive(Clone)]
struct Mouth {
    said: Sender<Said>,
    waker: Arc<Waker>,
}

impl Mouth {
    /// Answers whether somebody hears it.
    fn say(&self, said: Said) -> bool {
        let heard = self.said.send(said).is_ok();
        let _ = self.waker.wake();
        heard
    }
}

/// The thread's own.
struct Clerk {
    poll: Poll,
    registry: Rc<Registry>,
    admin: Admin,
    workers: Workers,
    shared: Arc<Shared>,
    /// Where the init hears that an upgrade has ended.
    tell: Arc<OwnedFd>,
    mouth: Mouth,
    heard: Receiver<Said>,
    /// How many questions are being asked.
    asking: Arc<AtomicUsize>,
    /// An upgrade is under way, a check.
    under_way: [bool; 2],
    /// An upgrade is wanted behind the one under way.
    again: bool,
}

impl Clerk {
    fn work(mut self) {
        let mut events = Events::with_capacity(limits::ADMIN_CLIENTS);
        loop {
            let now = Instant::now();
            // Where epoll has no room for it, it is tried again.
            let is_polled = self.admin.poll(&self.registry, true);
            let again = (!is_polled).then(|| now + limits::ACCEPT_RETRY);
            let deadline = self.admin.next_deadline(now).into_iter().chain(again).min();
            let timeout = deadline.map(|at| at.saturating_duration_since(now));
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return log::error!("{NAME} answers nobody any more: {error}"),
            }
            let tokens = events.iter().filter_map(|event| Token::unpack(event.token()));
            for token in tokens.filter(|token| token.kind != Source::Waker) {
                self.admin.note(token);
            }
            let now = Instant::now();
            for (asker, request) in self.admin.serve(&self.registry, now) {
                self.answer(asker, request, now);
            }
            while let Ok(said) = self.heard.try_recv() {
                self.hear(said, now);
            }
        }
    }

    fn hear(&mut self, said: Said, now: Instant) {
        match said {
            Said::Answer(asker, request, answer) => {
                self.admin.answer(asker, &answer, request.head_only, now);
            }
            Said::Line(is_check, line) => self.admin.quote(is_check, &line, now),
            Said::End(is_check, line) => {
                match line.starts_with("done: ") || line.starts_with("checked: ") {
                    true => log::info!("{line}"),
                    false => log::error!("{line}"),
                }
                self.under_way[usize::from(is_check)] = false;
                self.admin.conclude_those(is_check, &line, now);
                if !is_check && std::mem::take(&mut self.again) {
                    self.begin(Control::UpgradeProven, now);
                }
            }
            Said::Hup if self.under_way[0] => self.again = true,
            Said::Hup => self.begin(Control::UpgradeProven, now),
        }
    }

    fn answer(&mut self, asker: Asker, request: Request, now: Instant) {
        let answer = match request.ask {
            Ask::Live => Answer::text(200, "live"),
            Ask::Ready | Ask::Status { .. } | Ask::Metrics => {
                return self.ask_workers(asker, request, now);
            }
            Ask::Upgrade { .. } | Ask::Check => return self.roll_out(asker, request, now),
            Ask::Shutdown | Ask::Exit => {
                let is_exit = request.ask == Ask::Exit;
                let signal = if is_exit { Signal::SIGINT } else { Signal::SIGTERM };
                // As if somebody had sent it to this process: the init hears it, and passes it on.
                match kill(Pid::this(), signal) {
                    Ok(()) => Answer::text(202, "all workers are shutting down"),
                    Err(error) => Answer::text(503, &format!("send {signal}: {error}")),
                }
            }
        };
        self.admin.answer(asker, &answer, request.head_only, now);
    }

    fn ask_workers(&mut self, asker: Asker, request: Request, now: Instant) {
        let (shared, mouth) = (Arc::clone(&self.shared), self.mouth.clone());
        let asking = Arc::clone(&self.asking);
        let is_too_much = asking.fetch_add(1, Ordering::Relaxed) >= limits::ADMIN_CLIENTS;
        let ask = move || {
            let answer = answer_of_all(&shared, request.ask);
            asking.fetch_sub(1, Ordering::Relaxed);
            mouth.say(Said::Answer(asker, request, answer));
        };
        if is_too_much || begin(ask).is_err() {
            self.asking.fetch_sub(1, Ordering::Relaxed);
            let answer = Answer::text(503, "too much is asked at once: ask again later");
            self.admin.answer(asker, &answer, request.head_only, now);
        }
    }

    /// Whoever asks while one is under way shares what becomes of that one. Each worker has to be proven before the
    /// next one is asked, because until then it may be rolled back.
    fn roll_out(&mut self, asker: Asker, request: Request, now: Instant) {
        let is_check = request.ask == Ask::Check;
        self.admin.wait(asker, request, now);
        if self.under_way[usize::from(is_check)] {
            let words = "it is under way already, and what becomes of it is told here, too";
            return self.admin.tell_one(asker, words, now);
        }
        self.begin(if is_check { Control::Check } else { Control::UpgradeProven }, now);
    }

    fn begin(&mut self, what: Control, now: Instant) {
        let is_check = what == Control::Check;
        self.under_way[usize::from(is_check)] = true;
        let (shared, workers) = (Arc::clone(&self.shared), self.workers.clone());
        let (mouth, tell) = (self.mouth.clone(), Arc::clone(&self.tell));
        let begun = begin(move || {
            let say = |line: &str| {
                let _ = mouth.say(Said::Line(is_check, line.into()));
            };
            let end = catch_unwind(AssertUnwindSafe(|| match is_check {
                true => check_one(&shared, &say),
                false => upgrade_all(&shared, &workers, &tell, &say),
            }));
            let end = end.unwrap_or_else(|_| {
                shared.hold().upgrading = false;
                "failed: the thread that asks has panicked".into()
            });
            mouth.say(Said::End(is_check, end));
        });
        if let Err(error) = begun {
            self.hear(Said::End(is_check, format!("failed: start a thread: {error}")), now);
        }
    }
}

fn begin(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name("tablecloth-ask".into());
    thread.stack_size(limits::THREAD_STACK_BYTES).spawn(work).map(drop)
}
