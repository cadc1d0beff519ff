//! Ring one: every cell of the machine, against `state-machine.md`, in both directions.
//!
//! `UPDATE_DOC=1 cargo test --test state_machine` rewrites the parts of the document that are
//! generated; what they say is then to be read by somebody.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs;

use document::Parts;
use tablecloth::Config;
use tablecloth::machine::{
    Action, Event, Machine, Outcome, Predecessor, Refusal, State, Step, Timer, Wanted,
};

mod document;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/state-machine.md");

/// Parts that another test holds against the code.
const GENERATED_ELSEWHERE: [&str; 1] = ["fault matrix"];

/// The function under test, so that a wrong one can be put in its place.
type StepFn<'a> = &'a dyn Fn(Machine, Event) -> Step;

fn real(machine: Machine, event: Event) -> Step {
    machine.step(event)
}

#[test]
fn document_and_code_say_the_same() {
    let document = fs::read_to_string(DOCUMENT).expect("state-machine.md");
    let parts = generate(&real);
    if std::env::var_os("UPDATE_DOC").is_some() {
        fs::write(DOCUMENT, document::rewrite(&document, &parts)).expect("state-machine.md");
        return;
    }
    let differences = compare(&document, &parts);
    assert!(differences.is_empty(), "UPDATE_DOC=1 rewrites it:\n{}", differences.join("\n"));
}

#[test]
fn any_mutation_of_a_generated_line_of_the_document_is_found() {
    let document = fs::read_to_string(DOCUMENT).expect("state-machine.md");
    let parts = generate(&real);
    let mut mutations = 0;
    let mut inside = false;
    for (number, line) in document.lines().enumerate() {
        if line.starts_with("<!-- ") {
            let elsewhere = GENERATED_ELSEWHERE.iter().any(|name| line.contains(name));
            inside = line.starts_with("<!-- begin") && !elsewhere;
            continue;
        }
        if !inside || line.is_empty() {
            continue;
        }
        let lines: Vec<_> = document.lines().collect();
        let without: Vec<_> = [&lines[..number], &lines[number + 1..]].concat();
        let changed = line.replacen(['n', 't'], "x", 1);
        let mut altered = lines.clone();
        altered[number] = &changed;
        for mutant in [without.join("\n"), altered.join("\n")] {
            if mutant.trim_end() != document.trim_end() {
                assert!(!compare(&mutant, &parts).is_empty(), "line {number}: {line}");
                mutations += 1;
            }
        }
    }
    assert!(mutations > 200, "{mutations} mutations");
}

#[test]
fn any_mutation_of_a_cell_of_the_machine_is_found() {
    let document = fs::read_to_string(DOCUMENT).expect("state-machine.md");
    let mut mutations = 0;
    for machine in reachable() {
        for event in Event::ALL {
            let right = machine.step(event);
            let elsewhere =
                Machine::all().find(|other| other.state() != right.machine.state()).expect("seven");
            let fewer = &right.actions[..right.actions.len().saturating_sub(1)];
            let outcome = match right.outcome {
                Outcome::Ignored => Outcome::Stays,
                Outcome::Moves | Outcome::Stays | Outcome::Refused(_) => Outcome::Ignored,
            };
            let wrong = [
                Step { machine: elsewhere, ..right },
                Step { actions: fewer, ..right },
                Step { outcome, ..right },
            ];
            for wrong in wrong.into_iter().filter(|wrong| *wrong != right) {
                let mutant = |at: Machine, what: Event| match (at, what) == (machine, event) {
                    true => wrong,
                    false => at.step(what),
                };
                let found = !compare(&document, &generate(&mutant)).is_empty();
                assert!(found, "{machine:?} × {event:?}: {wrong:?}");
                mutations += 1;
            }
        }
    }
    assert!(mutations > 500, "{mutations} mutations");
}

#[test]
fn every_event_and_every_invariant_has_its_place_in_the_document() {
    let document = fs::read_to_string(DOCUMENT).expect("state-machine.md");
    let emitters = section(&document, "## Who emits each event");
    for event in Event::ALL {
        let rows = emitters.lines().filter(|line| line.starts_with(&format!("| `{event:?}` |")));
        assert_eq!(rows.count(), 1, "{event:?}");
    }
    // An invariant is named by a test, and the test is there.
    let sources = sources_of_tests();
    let invariants = section(&document, "## Invariants");
    for number in 1..=8 {
        let row = invariants
            .lines()
            .find(|line| line.starts_with(&format!("| I{number} |")))
            .unwrap_or_else(|| panic!("I{number} has no row"));
        let held_by = row.rsplit('|').nth(1).unwrap_or_default();
        let tests: Vec<_> = held_by.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "I{number} names no test");
        for test in tests {
            assert!(sources.contains(&format!("fn {test}(")), "I{number}: no test {test}");
        }
    }
}

/// I7, and totality: every machine that can be written down answers every event.
#[test]
fn exited_is_final_and_no_event_is_unanswered() {
    for machine in Machine::all() {
        for event in Event::ALL {
            let step = machine.step(event);
            if machine.state() == State::Exited {
                assert_eq!(step.machine.state(), State::Exited, "{event:?}");
                assert!(step.actions.is_empty(), "{event:?}");
            }
            match step.outcome {
                Outcome::Moves => assert_ne!(step.machine.state(), machine.state()),
                Outcome::Stays => assert_eq!(step.machine.state(), machine.state()),
                Outcome::Ignored | Outcome::Refused(_) => {
                    assert_eq!(step.machine, machine, "{machine:?} × {event:?}");
                    assert!(step.actions.is_empty(), "{machine:?} × {event:?}");
                }
            }
        }
    }
}

/// I3, of one process: it starts and stops polling exactly when the machine says it accepts.
#[test]
fn a_process_polls_its_listeners_exactly_while_the_machine_says_so() {
    for machine in reachable() {
        for event in Event::ALL {
            let step = machine.step(event);
            let mut polls = machine.accepts();
            for action in step.actions {
                match action {
                    Action::ResumeAccepting => polls = true,
                    Action::PauseAccepting
                    | Action::CloseListeners
                    | Action::RetireListeners
                    | Action::DrainListeners => polls = false,
                    // The successor is told to accept only when this process has stopped.
                    Action::CommitUpgrade => assert!(!polls, "{machine:?} × {event:?}"),
                    Action::SpawnSuccessor
                    | Action::LookOnce
                    | Action::PassOnUpgrade
                    | Action::TellWanted
                    | Action::AskSuccessor
                    | Action::KillSuccessor
                    | Action::ReportUpgrade
                    | Action::DropWanted
                    | Action::CloseUnclaimed
                    | Action::AnnounceReady
                    | Action::TellServing
                    | Action::TellStopping
                    | Action::AnswerPredecessor
                    | Action::KillPredecessor
                    | Action::UnlinkUnclaimed
                    | Action::WritePidFile
                    | Action::TakePidFile
                    | Action::RestorePidFile
                    | Action::DrainSessions
                    | Action::MoveSessions
                    | Action::CloseSessions
                    | Action::ClosePanicked
                    | Action::RemovePidFile
                    | Action::RenewTimers
                    | Action::Arm(_)
                    | Action::Disarm(_)
                    | Action::DisarmAll => {}
                }
            }
            // The first process starts when its set-up is done.
            let starting = machine == Machine::first() && event != Event::SetUpDone;
            if !starting && step.machine.state() != State::Exited {
                assert_eq!(polls, step.machine.accepts(), "{machine:?} × {event:?}");
            }
        }
    }
}

/// I2, of one process: it never spawns beside a predecessor or a successor.
#[test]
fn a_successor_is_spawned_only_where_there_is_no_other_process() {
    for machine in reachable() {
        for event in Event::ALL {
            let step = machine.step(event);
            let Some(spawn) = step.actions.iter().position(|a| *a == Action::SpawnSuccessor) else {
                continue;
            };
            assert_eq!(step.machine.predecessor(), Predecessor::Gone, "{machine:?} × {event:?}");
            assert_eq!(step.machine.state(), State::Upgrading, "{machine:?} × {event:?}");
            let kill = step.actions.iter().position(|a| *a == Action::KillSuccessor);
            if machine.state() != State::Running {
                assert!(kill.is_some_and(|kill| kill < spawn), "{machine:?} × {event:?}");
            }
        }
    }
}

/// I6, of one process: a failed upgrade leaves neither a successor nor a timer.
#[test]
fn the_way_back_to_running_kills_the_successor_and_stops_every_timer() {
    for machine in reachable() {
        for event in Event::ALL {
            let step = machine.step(event);
            let back = step.machine.state() == State::Running && step.outcome == Outcome::Moves;
            if back {
                assert!(step.actions.contains(&Action::KillSuccessor), "{machine:?} × {event:?}");
                assert!(step.actions.contains(&Action::DisarmAll), "{machine:?} × {event:?}");
                assert!(step.actions.contains(&Action::ReportUpgrade), "{machine:?} × {event:?}");
            }
        }
    }
}

/// I4, of one process: a request is carried out, remembered, passed on, or refused; and one that
/// is remembered is never forgotten in silence.
#[test]
fn an_upgrade_request_is_never_forgotten_in_silence() {
    for machine in reachable() {
        let step = machine.step(Event::UpgradeRequested);
        let heard = step.actions.contains(&Action::SpawnSuccessor)
            || step.machine.wanted() != Wanted::No
            || matches!(step.outcome, Outcome::Refused(_));
        assert!(heard, "{machine:?}");

        for event in Event::ALL.into_iter().filter(|_| machine.wanted() != Wanted::No) {
            let step = machine.step(event);
            let told = [Action::SpawnSuccessor, Action::DropWanted, Action::PassOnUpgrade];
            let told = step.actions.iter().any(|action| told.contains(action));
            // While it drains for a successor, it has passed the request on.
            let passed_on = matches!(machine.state(), State::Draining(_));
            let remembered = step.machine.wanted() != Wanted::No;
            assert!(remembered || told || passed_on, "{machine:?} × {event:?}");
        }
    }
}

/// Every machine that some history leads to.
fn reachable() -> HashSet<Machine> {
    let mut found = HashSet::from([Machine::first(), Machine::successor()]);
    let mut open: VecDeque<_> = found.iter().copied().collect();
    while let Some(machine) = open.pop_front() {
        for event in Event::ALL {
            let next = machine.step(event).machine;
            if found.insert(next) {
                open.push_back(next);
            }
        }
    }
    found
}

/// The generated parts of the document, by name.
fn generate(step: StepFn<'_>) -> Parts {
    let mut parts = BTreeMap::from([
        ("diagram".into(), diagram(step)),
        ("timers".into(), timers()),
        ("signals".into(), signals()),
    ]);
    for state in State::ALL {
        parts.insert(format!("table {state}"), table(step, state));
    }
    parts
}

/// What a machine answers to an event, in the document's words.
#[derive(Clone, PartialEq, Eq)]
struct Answer {
    outcome: String,
    facts: String,
    actions: String,
}

fn answer(step: StepFn<'_>, machine: Machine, event: Event) -> Answer {
    let Step { machine: next, outcome, actions } = step(machine, event);
    let outcome = match outcome {
        Outcome::Moves => format!("→ {}", next.state()),
        Outcome::Stays if next.state() == machine.state() => "stays".into(),
        Outcome::Ignored if next == machine && actions.is_empty() => "ignored".into(),
        Outcome::Refused(Refusal::ShuttingDown) => "refused: `ShuttingDown`".into(),
        Outcome::Refused(Refusal::Exited) => "refused: `Exited`".into(),
        Outcome::Stays | Outcome::Ignored => format!("{outcome:?}, and yet {next:?}"),
    };
    let mut facts = Vec::new();
    if next.predecessor() != machine.predecessor() {
        facts.push(format!("predecessor {}", next.predecessor()));
    }
    if next.wanted() != machine.wanted() {
        facts.push(next.wanted().to_string());
    }
    if next.is_pausing() != machine.is_pausing() {
        facts.push(pausing(&next).into());
    }
    let actions: Vec<_> = actions.iter().map(|action| format!("`{action:?}`")).collect();
    Answer { outcome, facts: facts.join(", "), actions: actions.join(" ") }
}

fn table(step: StepFn<'_>, state: State) -> Vec<String> {
    let reachable = reachable();
    let here: Vec<_> =
        Machine::all().filter(|m| m.state() == state && reachable.contains(m)).collect();
    let mut lines = vec![
        "| event | when | outcome | facts | actions |".into(),
        "| --- | --- | --- | --- | --- |".into(),
    ];
    let mut ignored = Vec::new();
    for event in Event::ALL {
        // Machines that answer alike share a row.
        let mut rows: Vec<(Answer, Vec<Machine>)> = Vec::new();
        for machine in &here {
            let answer = answer(step, *machine, event);
            match rows.iter_mut().find(|(known, _)| {
                known.actions == answer.actions
                    && known.outcome == answer.outcome
                    && known.facts == answer.facts
            }) {
                Some((_, machines)) => machines.push(*machine),
                None => rows.push((answer, vec![*machine])),
            }
        }
        if let [(Answer { outcome, .. }, _)] = rows.as_slice() {
            if outcome == "ignored" {
                ignored.push(format!("`{event:?}`"));
                continue;
            }
        }
        for (answer, machines) in rows {
            let when = condition(&machines, &here);
            let Answer { outcome, facts, actions } = answer;
            lines.push(format!("| `{event:?}` | {when} | {outcome} | {facts} | {actions} |"));
        }
    }
    lines.push(String::new());
    lines.push(format!("Ignored, because late or repeated: {}.", ignored.join(", ")));
    lines
}

/// What tells some of the machines in a state from the rest, in words: as few facts as do it.
fn condition(some: &[Machine], all: &[Machine]) -> String {
    let facts: [&dyn Fn(&Machine) -> String; 3] = [
        &|machine| format!("predecessor {}", machine.predecessor()),
        &|machine| machine.wanted().to_string(),
        &|machine| pausing(machine).to_owned(),
    ];
    // Whether these facts tell them.
    let tells = |used: &[&dyn Fn(&Machine) -> String]| {
        let alike = |machine: &&Machine| {
            used.iter().all(|fact| some.iter().any(|other| fact(other) == fact(machine)))
        };
        all.iter().filter(alike).count() == some.len()
    };
    let used = (0..8u8).map(|bits| {
        let used = facts.iter().enumerate().filter(|(place, _)| bits & 1 << place != 0);
        used.map(|(_, fact)| *fact).collect::<Vec<_>>()
    });
    if let Some(used) = used.filter(|used| tells(used)).min_by_key(Vec::len) {
        let words = used.iter().map(|fact| {
            let words: BTreeSet<_> = some.iter().map(fact).collect();
            let words = words.into_iter().collect::<Vec<_>>().join(" or ");
            words.replace(" or predecessor ", " or ")
        });
        return words.collect::<Vec<_>>().join(", ");
    }
    // No product of conditions: one by one.
    let one = |m: &Machine| facts.iter().map(|fact| fact(m)).collect::<Vec<_>>().join(" and ");
    some.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn pausing(machine: &Machine) -> &'static str {
    if machine.is_pausing() { "pausing" } else { "not pausing" }
}

fn diagram(step: StepFn<'_>) -> Vec<String> {
    let node = |state: State| match state {
        State::Draining(drain) => drain.to_string(),
        State::Running | State::Upgrading | State::Exited => state.name().into(),
    };
    let inside = |state: State| matches!(state, State::Draining(_));
    let mut edges: BTreeMap<(bool, usize, usize), Vec<String>> = BTreeMap::new();
    let place = |state| State::ALL.iter().position(|other| *other == state).expect("all of them");
    let reachable = reachable();
    for event in Event::ALL {
        for machine in Machine::all().filter(|machine| reachable.contains(machine)) {
            let next = step(machine, event).machine.state();
            if next != machine.state() {
                let within = inside(machine.state()) && inside(next);
                let events =
                    edges.entry((within, place(machine.state()), place(next))).or_default();
                if events.last() != Some(&format!("{event:?}")) {
                    events.push(format!("{event:?}"));
                }
            }
        }
    }
    let mut lines = vec!["```mermaid".into(), "stateDiagram-v2".into()];
    lines.push("    [*] --> Running".into());
    let arrow = |((_, from, to), events): (&(bool, usize, usize), &Vec<String>)| {
        let (from, to) = (node(State::ALL[*from]), node(State::ALL[*to]));
        format!("    {from} --> {to}: {}", events.join(", "))
    };
    // The inner states first: a name belongs where it is mentioned first.
    let inner = edges.iter().filter(|((within, ..), _)| *within);
    lines.push("    state Draining {".into());
    lines.extend(inner.map(|edge| format!("    {}", arrow(edge))));
    lines.push("    }".into());
    lines.extend(edges.iter().filter(|((within, ..), _)| !within).map(arrow));
    lines.push("    Exited --> [*]".into());
    lines.push("```".into());
    lines
}

fn timers() -> Vec<String> {
    let config = Config::default();
    let mut lines = vec!["| timer | default | its end |".into(), "| --- | --- | --- |".into()];
    for timer in Timer::ALL {
        let (default, end) = (config.duration(timer), timer.event());
        let default = if default.is_zero() { "0s".into() } else { format!("{default:?}") };
        lines.push(format!("| `{timer:?}` | {default} | `{end:?}` |"));
    }
    lines
}

fn signals() -> Vec<String> {
    let config = Config::default();
    let mut lines = vec!["| signal | event |".into(), "| --- | --- |".into()];
    for (signals, event) in [
        (&config.upgrade_signals, Event::UpgradeRequested),
        (&config.shutdown_signals, Event::ShutdownRequested),
        (&config.exit_signals, Event::ExitRequested),
    ] {
        for signal in signals {
            let name = nix::sys::signal::Signal::try_from(*signal).expect("a signal").as_str();
            lines.push(format!("| {name} | `{event:?}` |"));
        }
    }
    assert!(config.user_signals.is_empty());
    lines
}

/// Every line that differs, and every part that nothing generates.
fn compare(document: &str, parts: &Parts) -> Vec<String> {
    let unknown = document::parse(document)
        .into_keys()
        .filter(|name| !parts.contains_key(name) && !GENERATED_ELSEWHERE.contains(&name.as_str()))
        .map(|name| format!("the document has a part \"{name}\", which nothing generates"));
    unknown.chain(document::compare(document, parts)).collect()
}

fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let start = document.find(heading).unwrap_or_else(|| panic!("no section {heading:?}"));
    let body = &document[start + heading.len()..];
    &body[..body.find("\n## ").unwrap_or(body.len())]
}

fn sources_of_tests() -> String {
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let files = fs::read_dir(tests).expect("tests").map(|entry| entry.expect("entry").path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| fs::read_to_string(path).expect("a test"))
        .collect()
}
