//! The admin endpoint of an init with several workers: it asks each of them, and answers for all.
//!
//! A thread of its own lets clients in, and never waits for a worker: whatever is asked of those is asked by a thread
//! for each question, within a time.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Registry, Waker};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2, read, write};

use super::{Workers, sum};
use crate::address::Address;
use crate::admin::{Admin, Answer, Ask, Asker, Request, TEXT};
use crate::control::{Control, Controlled, control, fetch};
use crate::error::Error;
use crate::limits;
use crate::socket::{self, SocketOptions};
use crate::socket_file::Bound;
use crate::token::{Kind as Source, Token};
use crate::wire::{Family, Kind};

/// How long all workers together may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one of them may take.
const PATIENCE_WITH_ONE: Duration = Duration::from_secs(1);
/// How often one that leaves is asked what it has counted.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long it may take until all have come that are to come, or gone, before the answer to who has asked for an
/// upgrade is given without it.
const SETTLING: Duration = Duration::from_secs(60);
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
}

/// What the init and its desk know of the workers.
struct Shared {
    roster: Mutex<Roster>,
    /// The init has said that all have come, or gone.
    settled: Condvar,
}

/// Who is asked.
#[derive(Default)]
struct Roster {
    workers: Vec<(u32, String)>,
    leaving: Vec<Leaving>,
    /// What those have counted that are gone.
    counted: String,
    /// How the last upgrade has ended, until the init has heard of it.
    outcome: Option<Result<(), String>>,
    /// How it went on in the init: what went wrong.
    settled: Option<Option<String>>,
}

/// A worker that comes to its end. What it has counted goes on to count.
struct Leaving {
    number: u32,
    /// What it has told last.
    last: Option<String>,
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
        let (ended, tell) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .map_err(Error::system("start the admin endpoint of the init"))?;
        let failed = Error::system("start the admin endpoint of the init");
        let poll = Poll::new().map_err(failed)?;
        let waker = Waker::new(poll.registry(), Token::single(Source::Waker).pack());
        let (said, heard) = channel();
        let mouth = Mouth { said, waker: Arc::new(waker.map_err(failed)?) };
        let (its_shared, its_mouth) = (Arc::clone(&shared), mouth.clone());
        let thread = thread::Builder::new().name("tablecloth-admin".into());
        thread
            .stack_size(limits::THREAD_STACK_BYTES)
            .spawn(move || {
                let registry = match poll.registry().try_clone() {
                    Ok(registry) => Rc::new(registry),
                    Err(error) => return log::error!("{NAME} answers nobody: {error}"),
                };
                let clerk = Clerk {
                    poll,
                    registry,
                    admin: Admin::new(Rc::new(listener), family),
                    workers,
                    shared: its_shared,
                    tell: Arc::new(tell),
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
        Ok(Self { bound, asked: asked.into(), shared, ended, mouth })
    }

    /// Upgrades all workers, and once more if that is under way.
    pub(super) fn upgrade(&self) {
        self.mouth.say(Said::Hup);
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
        self.shared.hold().settled = Some(trouble);
        self.shared.settled.notify_all();
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
        let mut roster = self.shared.hold();
        roster.workers.retain(|(known, _)| *known != number);
        let address = of_worker(&self.asked, number);
        roster.leaving.push(Leaving { number, last: None });
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

impl Shared {
    fn hold(&self) -> MutexGuard<'_, Roster> {
        // A panic of another thread has left nothing half done.
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
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
        None => format!("unix:@tablecloth-{}.{number}", std::process::id()),
    }
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
    fn say(&self, said: Said) {
        // The other side lives as long as the process.
        let _ = self.said.send(said);
        let _ = self.waker.wake();
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
        self.admin.poll(&self.registry, true);
        loop {
            let now = Instant::now();
            let deadline = self.admin.next_deadline(now);
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
            let say = |line: &str| mouth.say(Said::Line(is_check, line.into()));
            let end = match is_check {
                true => check_one(&shared, &say),
                false => upgrade_all(&shared, &workers, &tell, &say),
            };
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

/// Has a worker check the new program, which is the same for all of them. Answers the last line.
fn check_one(shared: &Shared, say: &dyn Fn(&str)) -> String {
    let Some((number, address)) = shared.hold().workers.first().cloned() else {
        return "failed: there is no worker".into();
    };
    match ask(number, &address, Control::Check, say) {
        Ok(last) | Err(last) => last,
    }
}

/// Upgrades each worker, until one fails; then there are as many as there are to be. Answers the last line.
fn upgrade_all(shared: &Shared, workers: &Workers, tell: &OwnedFd, say: &dyn Fn(&str)) -> String {
    let end = |outcome: Result<(), String>| {
        shared.hold().outcome = Some(outcome);
        // A pipe that is full says so already.
        let _ = write(tell, b"!");
    };
    let mut known = shared.hold().workers.clone();
    match workers.count() {
        // Those that are too many are not upgraded any more.
        Ok(count) => known.retain(|(number, _)| Some(*number) <= count),
        Err(error) => {
            end(Err(error.to_string()));
            return format!("failed: {error}: nothing is changed");
        }
    }
    let old = |number: u32| {
        let last = known.last().map_or(number, |(number, _)| *number);
        if number == last {
            format!("worker {number}")
        } else {
            format!("workers {number} to {last}")
        }
    };
    for (number, address) in &known {
        if let Err(reason) = ask(*number, address, Control::UpgradeProven, say) {
            let (outcome, reason) = match reason.split_once(": ") {
                Some((outcome @ ("failed" | "rolled back" | "refused"), rest)) => (outcome, rest),
                Some(_) | None => ("failed", &*reason),
            };
            let new = match number {
                1 => "none runs the new program".into(),
                2 => "worker 1 runs the new program".into(),
                _ => format!("workers 1 to {} run the new program", number - 1),
            };
            end(Err(format!("the upgrade of worker {number} has failed")));
            return format!(
                "{outcome}: worker {number}: {reason}; {new}, {} the old one",
                old(*number)
            );
        }
    }
    let mut roster = shared.hold();
    roster.settled = None;
    drop(roster);
    end(Ok(()));
    let roster = shared.hold();
    let waited = shared.settled.wait_timeout_while(roster, SETTLING, |it| it.settled.is_none());
    let (mut roster, _) = waited.unwrap_or_else(PoisonError::into_inner);
    let there = roster.workers.len();
    match roster.settled.take() {
        Some(None) => format!("done: all workers are upgraded, and there are {there}"),
        Some(Some(trouble)) => format!("failed: {trouble}; the {there} that serve are upgraded"),
        None => format!(
            "failed: there are {there} workers, which are upgraded, and not as many as there should be"
        ),
    }
}

/// Asks one worker for it. Answers the last line, or as an error.
fn ask(number: u32, address: &str, what: Control, say: &dyn Fn(&str)) -> Result<String, String> {
    let mut lines = Lines { number, say, part: Vec::new(), last: String::new() };
    match control(address, what, &mut lines) {
        Ok(Controlled::Done) => Ok(lines.last),
        Ok(Controlled::Failed) => Err(lines.last),
        Err(error) => Err(format!("failed: {error}")),
    }
}

/// What one worker says, line by line.
struct Lines<'a> {
    number: u32,
    say: &'a dyn Fn(&str),
    part: Vec<u8>,
    last: String,
}

impl Write for Lines<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        while let Some(end) = self.part.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.part.drain(..=end).collect();
            self.last = String::from_utf8_lossy(&line).trim_end().into();
            (self.say)(&format!("worker {}: {}", self.number, self.last));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What all of them together answer to a question.
fn answer_of_all(shared: &Shared, ask: Ask) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    let (target, accept) = match ask {
        Ask::Metrics => ("/metrics", "*/*"),
        Ask::Status { json: true } => ("/status", "application/json"),
        Ask::Status { json: false } => ("/status", "text/plain"),
        Ask::Ready | Ask::Live | Ask::Upgrade { .. } | Ask::Check | Ask::Shutdown | Ask::Exit => {
            ("/ready", "*/*")
        }
    };
    // Of one moment: whoever leaves now is not to count twice.
    let roster = shared.hold();
    let workers = roster.workers.clone();
    let leaving: Vec<_> = roster.leaving.iter().map(|it| (it.number, it.last.clone())).collect();
    let counted = roster.counted.clone();
    drop(roster);
    let answers = workers.iter().map(|(number, address)| {
        let until = deadline.min(Instant::now() + PATIENCE_WITH_ONE);
        (*number, fetch(address, target, accept, until))
    });
    let answers: Vec<(u32, io::Result<(u16, String)>)> = answers.collect();
    match ask {
        Ask::Status { json } => status(&answers, json),
        Ask::Metrics => {
            let mut texts = Vec::new();
            for (number, answer) in &answers {
                match answer {
                    Ok((200, text)) => texts.push((*number, &**text)),
                    other => return missing(*number, other),
                }
            }
            let mut gone = vec![&*counted];
            for (number, last) in &leaving {
                match last {
                    Some(text) => gone.push(text),
                    // In the first moment: it is asked just now.
                    None => {
                        return Answer::text(503, &format!("worker {number} leaves: ask again"));
                    }
                }
            }
            Answer::of(200, "text/plain; version=0.0.4; charset=utf-8", sum::of(&texts, &gone))
        }
        Ask::Ready | Ask::Live | Ask::Upgrade { .. } | Ask::Check | Ask::Shutdown | Ask::Exit => {
            let late = answers.iter().find(|(_, answer)| !matches!(answer, Ok((200, _))));
            match late {
                Some((number, answer)) => missing(*number, answer),
                None => Answer::text(200, "ready"),
            }
        }
    }
}

/// One of them has no good answer: then there is none of all.
fn missing(number: u32, answer: &io::Result<(u16, String)>) -> Answer {
    let reason = match answer {
        Ok((_, text)) => text.trim_end().to_owned(),
        Err(error) => no_answer(error),
    };
    Answer::text(503, &format!("worker {number}: {reason}"))
}

fn no_answer(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it did not answer within {} s", PATIENCE_WITH_ONE.as_secs())
        }
        _ => format!("it does not answer: {error}"),
    }
}

fn status(answers: &[(u32, io::Result<(u16, String)>)], json: bool) -> Answer {
    let each = answers.iter().map(|(number, answer)| match (answer, json) {
        (Ok((200, text)), true) => {
            format!("{{\"worker\":{number},\"status\":{}}}", text.trim_end())
        }
        (_, true) => format!("{{\"worker\":{number},\"status\":null}}"),
        (Ok((200, text)), false) => {
            let lines = text.lines().map(|line| format!("  {line}\n"));
            format!("worker {number}\n{}", lines.collect::<String>())
        }
        (Ok((_, text)), false) => format!("worker {number}\n  {}\n", text.trim_end()),
        (Err(error), false) => format!("worker {number}\n  {}\n", no_answer(error)),
    });
    let each: Vec<_> = each.collect();
    match json {
        true => {
            let body = format!("{{\"workers\":[{}]}}\n", each.join(","));
            Answer::of(200, "application/json", body)
        }
        false => Answer::of(200, TEXT, each.concat()),
    }
}
