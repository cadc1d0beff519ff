//! The admin endpoint of an init with several workers: it asks each of them, and answers for all.
//!
//! A thread of its own lets clients in, and never waits for a worker: whatever is asked of those is asked by a thread
//! for each question, within a time.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Registry, Waker};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2, read, write};

use super::sum;
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
/// How often it may give no answer.
const MISSES: u32 = 50;
/// The name in an error.
const NAME: &str = "the admin endpoint of the init";

/// The endpoint, as long as the init lives.
pub(super) struct Desk {
    /// The file of a Unix socket, which goes with this.
    bound: Option<Bound>,
    asked: String,
    roster: Arc<Mutex<Roster>>,
    /// A byte for each upgrade that was done.
    done: OwnedFd,
}

/// Who is asked.
#[derive(Default)]
struct Roster {
    workers: Vec<(u32, String)>,
    /// Those that have left, or are about to.
    gone: Vec<Gone>,
}

/// What a worker has counted goes on to count.
struct Gone {
    number: u32,
    address: String,
    /// What it has told last.
    last: Option<String>,
}

impl Desk {
    /// Begins to answer for these workers, each at its own endpoint.
    pub(super) fn open(asked: &str, workers: u32) -> Result<Self, Error> {
        let address = Address::resolve(asked)?.remove(0);
        let is_local = asked.starts_with("unix:");
        let kind = if is_local { Kind::UnixStream } else { Kind::Tcp };
        let options = SocketOptions::default().mode(0o600);
        let listener = socket::make(kind, &address, &options).map_err(|(step, source)| {
            Error::Open { name: NAME.into(), place: address.to_string(), step, source }
        })?;
        let bound = address.path().and_then(Bound::at);
        let family = if is_local { Family::Unix } else { Family::Tcp };
        let failed = Error::system("start the admin endpoint of the init");
        let workers = (1..=workers).map(|number| (number, of_worker(asked, number))).collect();
        let roster = Arc::new(Mutex::new(Roster { workers, gone: Vec::new() }));
        let its_roster = Arc::clone(&roster);
        let (done, tell) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .map_err(Error::system("start the admin endpoint of the init"))?;
        let thread = thread::Builder::new().name("tablecloth-admin".into());
        thread
            .stack_size(limits::THREAD_STACK_BYTES)
            .spawn(move || match Clerk::new(listener, family, its_roster, tell) {
                Ok(clerk) => clerk.work(),
                Err(error) => log::error!("{NAME} answers nobody: {error}"),
            })
            .map_err(failed)?;
        log::info!("the admin endpoint of all workers is {address}");
        Ok(Self { bound, asked: asked.into(), roster, done })
    }

    /// Whether somebody has upgraded all workers since this was asked last.
    pub(super) fn is_done(&self) -> bool {
        let mut bytes = [0; 64];
        matches!(read(&self.done, &mut bytes), Ok(1..))
    }

    /// One worker more.
    pub(super) fn comes(&self, number: u32) {
        let mut roster = hold(&self.roster);
        roster.workers.retain(|(known, _)| *known != number);
        roster.workers.push((number, of_worker(&self.asked, number)));
    }

    /// A worker comes to its end. Until then, and behind it, what it has counted counts.
    pub(super) fn leaves(&self, number: u32) {
        let mut roster = hold(&self.roster);
        roster.workers.retain(|(known, _)| *known != number);
        let address = of_worker(&self.asked, number);
        roster.gone.push(Gone { number, address: address.clone(), last: None });
        let place = roster.gone.len() - 1;
        let roster = Arc::clone(&self.roster);
        // A thread that asks it until it is not there any more: nobody else knows when that is.
        let begun = begin(move || {
            let mut misses = 0;
            while misses < MISSES {
                match fetch(&address, "/metrics", "*/*", Instant::now() + PATIENCE_WITH_ONE) {
                    Ok((200, text)) => {
                        misses = 0;
                        hold(&roster).gone[place].last = Some(text);
                    }
                    Ok(_) => misses += 1,
                    Err(error) if is_gone(&error) => break,
                    Err(_) => misses += 1,
                }
                thread::sleep(LAST_WORDS);
            }
            hold(&roster).gone[place].last.get_or_insert_default();
        });
        if let Err(error) = begun {
            log::warn!("what worker {number} counts from here on is lost: {error}");
        }
    }
}

impl AsFd for Desk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

/// Nobody listens there any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// A panic of another thread has left nothing half done.
fn hold(roster: &Mutex<Roster>) -> MutexGuard<'_, Roster> {
    roster.lock().unwrap_or_else(PoisonError::into_inner)
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
    roster: Arc<Mutex<Roster>>,
    /// Where the init hears that an upgrade was done.
    tell: Arc<OwnedFd>,
    mouth: Mouth,
    heard: Receiver<Said>,
    /// How many questions are being asked.
    asking: Arc<AtomicUsize>,
    /// An upgrade is under way, a check.
    under_way: [bool; 2],
}

impl Clerk {
    fn new(
        listener: OwnedFd,
        family: Family,
        roster: Arc<Mutex<Roster>>,
        tell: OwnedFd,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let registry = Rc::new(poll.registry().try_clone()?);
        let waker = Arc::new(Waker::new(&registry, Token::single(Source::Waker).pack())?);
        let (said, heard) = channel();
        Ok(Self {
            poll,
            registry,
            admin: Admin::new(Rc::new(listener), family),
            roster,
            tell: Arc::new(tell),
            mouth: Mouth { said, waker },
            heard,
            asking: Arc::default(),
            under_way: [false; 2],
        })
    }

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
            Said::Line(is_check, line) => self.admin.tell(is_check, &line, now),
            Said::End(is_check, line) => {
                log::info!("{line}");
                self.under_way[usize::from(is_check)] = false;
                self.admin.conclude_those(is_check, &line, now);
            }
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
                    Ok(()) => Answer::text(202, "all workers come to their end"),
                    Err(error) => Answer::text(503, &format!("send {signal}: {error}")),
                }
            }
        };
        self.admin.answer(asker, &answer, request.head_only, now);
    }

    fn ask_workers(&mut self, asker: Asker, request: Request, now: Instant) {
        let (roster, mouth) = (Arc::clone(&self.roster), self.mouth.clone());
        let asking = Arc::clone(&self.asking);
        let is_too_much = asking.fetch_add(1, Ordering::Relaxed) >= limits::ADMIN_CLIENTS;
        let ask = move || {
            let answer = answer_of_all(&roster, request.ask);
            asking.fetch_sub(1, Ordering::Relaxed);
            mouth.say(Said::Answer(asker, request, answer));
        };
        if is_too_much || begin(ask).is_err() {
            self.asking.fetch_sub(1, Ordering::Relaxed);
            let answer = Answer::text(503, "too much is asked at once: ask again later");
            self.admin.answer(asker, &answer, request.head_only, now);
        }
    }

    /// Whoever asks while one is under way shares what becomes of that one.
    fn roll_out(&mut self, asker: Asker, request: Request, now: Instant) {
        let (what, is_check) = match request.ask {
            Ask::Check => (Control::Check, true),
            Ask::Upgrade { proven: true } => (Control::UpgradeProven, false),
            Ask::Upgrade { proven: false }
            | Ask::Status { .. }
            | Ask::Metrics
            | Ask::Live
            | Ask::Ready
            | Ask::Shutdown
            | Ask::Exit => (Control::Upgrade, false),
        };
        self.admin.wait(asker, request, now);
        if std::mem::replace(&mut self.under_way[usize::from(is_check)], true) {
            let words = "it is under way already, and what becomes of it is told here, too";
            return self.admin.tell(is_check, words, now);
        }
        let workers = hold(&self.roster).workers.clone();
        let (mouth, tell) = (self.mouth.clone(), Arc::clone(&self.tell));
        let begun = begin(move || {
            // The new program is the same for all of them.
            let workers = if is_check { &workers[..1] } else { &workers[..] };
            let say = |line: &str| mouth.say(Said::Line(is_check, line.into()));
            let end = one_after_another(workers, what, &say);
            if !is_check && end.starts_with("done: ") {
                // A pipe that is full says so already.
                let _ = write(&*tell, b"!");
            }
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

/// Asks each worker for it, until one fails. Answers the last line.
fn one_after_another(workers: &[(u32, String)], what: Control, say: &dyn Fn(&str)) -> String {
    for (number, address) in workers {
        let number = *number;
        let mut lines = Lines { number, say, part: Vec::new(), last: String::new() };
        let controlled = control(address, what, &mut lines);
        let last = lines.last;
        match controlled {
            Ok(Controlled::Done) if what == Control::Check => return last,
            Ok(Controlled::Done) => {}
            failed => {
                let reason = failed.err().map_or(last, |error| format!("failed: {error}"));
                let (outcome, reason) = reason.split_once(": ").unwrap_or(("failed", &reason));
                let new =
                    if number > 1 { format!("workers 1 to {}", number - 1) } else { "none".into() };
                let old = format!("workers {number} to {}", workers.len());
                return format!(
                    "{outcome}: worker {number}: {reason}; of the new program: {new}; of the old one: {old}"
                );
            }
        }
    }
    format!("done: all {} workers are upgraded", workers.len())
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
fn answer_of_all(roster: &Mutex<Roster>, ask: Ask) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    let (target, accept) = match ask {
        Ask::Metrics => ("/metrics", "*/*"),
        Ask::Status { json: true } => ("/status", "application/json"),
        Ask::Status { json: false } => ("/status", "text/plain"),
        Ask::Ready | Ask::Live | Ask::Upgrade { .. } | Ask::Check | Ask::Shutdown | Ask::Exit => {
            ("/ready", "*/*")
        }
    };
    let workers = hold(roster).workers.clone();
    let answers = workers.iter().map(|(number, address)| {
        let until = deadline.min(Instant::now() + PATIENCE_WITH_ONE);
        (*number, fetch(address, target, accept, until))
    });
    let answers: Vec<(u32, io::Result<(u16, String)>)> = answers.collect();
    match ask {
        Ask::Status { json } => status(&answers, json),
        Ask::Metrics => {
            let (mut texts, mut gone) = (Vec::new(), Vec::new());
            for Gone { number, address, last } in &hold(roster).gone {
                match last {
                    Some(text) => gone.push(text.clone()),
                    None => {
                        let until = deadline.min(Instant::now() + PATIENCE_WITH_ONE);
                        match fetch(address, target, accept, until) {
                            Ok((200, text)) => gone.push(text),
                            other => return missing(*number, &other),
                        }
                    }
                }
            }
            for (number, answer) in &answers {
                match answer {
                    Ok((200, text)) => texts.push((*number, &**text)),
                    other => return missing(*number, other),
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
        Err(error) => error.to_string(),
    };
    Answer::text(503, &format!("worker {number}: {reason}"))
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
        (Err(error), false) => format!("worker {number}\n  does not answer: {error}\n"),
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
