//! What an init asks its workers for: how they stand, what they have counted, and upgrades, one after another.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::write;

use super::desk::PATIENCE_WITH_ONE;
use super::{Workers, sum};
use crate::admin::{Answer, Ask, TEXT};
use crate::control::{Control, Controlled, control, fetch};
use crate::limits;

/// How many workers are asked at a time.
const AT_A_TIME: usize = 16;
/// How long it may take until all have come that are to come, or gone, before the answer to who has asked for an
/// upgrade is given without it.
const SETTLING: Duration = Duration::from_secs(60);
/// What the init and its desk know of the workers.
pub(super) struct Shared {
    pub(super) roster: Mutex<Roster>,
    /// The init has said that all have come, or gone.
    pub(super) settled: Condvar,
}

/// Who is asked.
#[derive(Default)]
pub(super) struct Roster {
    pub(super) workers: Vec<(u32, String)>,
    pub(super) leaving: Vec<Leaving>,
    /// What those have counted that are gone.
    pub(super) counted: String,
    /// How the last upgrade has ended, until the init has heard of it.
    pub(super) outcome: Option<Result<(), String>>,
    /// How it went on in the init: what went wrong.
    pub(super) settled: Option<Option<String>>,
    /// Workers are being upgraded.
    pub(super) upgrading: bool,
    /// Somebody is on the way to join them.
    pub(super) coming: bool,
}

/// A worker that comes to its end. What it has counted goes on to count.
pub(super) struct Leaving {
    pub(super) number: u32,
    /// What it has told last.
    pub(super) last: Option<String>,
}

impl Shared {
    pub(super) fn hold(&self) -> MutexGuard<'_, Roster> {
        // A panic of another thread has left nothing half done.
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has a worker check the new program, which is the same for all of them. Answers the last line.
pub(super) fn check_one(shared: &Shared, say: &dyn Fn(&str)) -> String {
    let Some((number, address)) = shared.hold().workers.first().cloned() else {
        return "failed: there is no worker".into();
    };
    match ask(number, &address, Control::Check, say) {
        Ok(last) => last,
        Err(last) if has_outcome(&last) => last,
        Err(last) => format!("refused: worker {number}: {last}"),
    }
}

/// Upgrades each worker, until one fails; then there are as many as there are to be. Answers the last line.
pub(super) fn upgrade_all(
    shared: &Shared,
    workers: &Workers,
    tell: &OwnedFd,
    say: &dyn Fn(&str),
) -> String {
    // Whoever joins them now is upgraded, too; one that hangs is not waited for.
    let roster = shared.hold();
    let waited = shared.settled.wait_timeout_while(roster, SETTLING, |it| it.coming);
    let (mut roster, _) = waited.unwrap_or_else(PoisonError::into_inner);
    roster.upgrading = true;
    let mut known = roster.workers.clone();
    drop(roster);
    let end = |outcome: Result<(), String>| {
        let mut roster = shared.hold();
        (roster.outcome, roster.settled, roster.upgrading) = (Some(outcome), None, false);
        drop(roster);
        // A pipe that is full says so already.
        let _ = write(tell, b"!");
    };
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
            let is_known = has_outcome(&reason);
            let (outcome, reason) = match reason.split_once(": ") {
                Some((outcome, rest)) if is_known => (outcome, rest),
                Some(_) | None => ("failed", &*reason),
            };
            // Its successor may have been committed to.
            let doubt = if is_known { "" } else { ", as far as is known" };
            let new = match number {
                1 => "none runs the new program".into(),
                2 => "worker 1 runs the new program".into(),
                _ => format!("workers 1 to {} run the new program", number - 1),
            };
            end(Err(format!("the upgrade of worker {number} has failed")));
            return format!(
                "{outcome}: worker {number}: {reason}; {new}, {} the old one{doubt}",
                old(*number)
            );
        }
    }
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

/// Whether a line says what became of it.
fn has_outcome(line: &str) -> bool {
    ["failed: ", "rolled back: ", "refused: "].iter().any(|word| line.starts_with(word))
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

/// What a worker has answered.
type Answered = (u32, io::Result<(u16, String)>);

/// Asks all of them, some at a time: one that hangs does not keep the others from answering.
fn fetch_all(workers: &[(u32, String)], target: &str, accept: &str) -> Vec<Answered> {
    let fetch = |(number, address): &(u32, String)| {
        (*number, fetch(address, target, accept, Instant::now() + PATIENCE_WITH_ONE))
    };
    let mut answers = Vec::with_capacity(workers.len());
    for some in workers.chunks(AT_A_TIME) {
        thread::scope(|scope| {
            let begin = |worker| {
                let thread = thread::Builder::new().stack_size(limits::THREAD_STACK_BYTES);
                (worker, thread.spawn_scoped(scope, move || fetch(worker)))
            };
            let begun: Vec<_> = some.iter().map(begin).collect();
            answers.extend(begun.into_iter().map(|(worker, thread)| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|_| fetch(worker)),
                // There is no room for one: without it.
                Err(_) => fetch(worker),
            }));
        });
    }
    answers
}

/// What all of them together answer to a question.
pub(super) fn answer_of_all(shared: &Shared, ask: Ask) -> Answer {
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
    let leaving: Vec<_> = roster.leaving.iter().map(|it| it.last.clone()).collect();
    let counted = roster.counted.clone();
    drop(roster);
    let answers = fetch_all(&workers, target, accept);
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
            let gone: Vec<_> =
                leaving.iter().flatten().map(String::as_str).chain([&*counted]).collect();
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
    let late = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
    match late.contains(&error.kind()) {
        true => format!("it did not answer within {} s", PATIENCE_WITH_ONE.as_secs()),
        false => format!("it does not answer: {error}"),
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
