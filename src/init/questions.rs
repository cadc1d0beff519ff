//! What an init asks its workers for: how they stand, what they have counted, and upgrades, one after another.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::write;

use super::desk::PATIENCE_WITH_ONE;
use super::{Workers, sum};
use crate::admin::{Answer, Ask, TEXT};
use crate::control::{Control, Controlled, control, fetch};

/// How long all workers together may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(3);
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
        Ok(last) | Err(last) => last,
    }
}

/// Upgrades each worker, until one fails; then there are as many as there are to be. Answers the last line.
pub(super) fn upgrade_all(
    shared: &Shared,
    workers: &Workers,
    tell: &OwnedFd,
    say: &dyn Fn(&str),
) -> String {
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
pub(super) fn answer_of_all(shared: &Shared, ask: Ask) -> Answer {
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
