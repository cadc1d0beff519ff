//! Ring three, for a long time: a thousand upgrades under load, with a fault in every fifth.
//!
//!     cargo build --examples
//!     cargo test --test soak -- --ignored --nocapture
//!
//! `UPGRADES` in the environment says how many, and `SEED` which faults in which order. The seed
//! fixes what goes wrong and not when: clients, processes and the kernel keep their own time.
//!
//! What must hold: after every upgrade one process is left, it serves, the pid file names it, and
//! it has no child and no descriptor too many. No connection is ever refused, and one is broken only
//! where the very process died that had accepted it. In the end memory is what it was.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

#[path = "soak/family.rs"]
mod family;
#[path = "soak/fault.rs"]
mod fault;
#[path = "soak/load.rs"]
mod load;
#[path = "soak/word.rs"]
mod word;

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use family::Family;
use fault::{Deck, Deed, Fault};
use harness::{
    Actor, Client, PATIENCE, Start, children_of, kinds_of_descriptors, limit_descriptors,
    memory_of, state_of, until,
};
use load::{CLIENTS, Counts, Load};
use nix::sys::signal::Signal;
use rustix::process::{Resource, getrlimit};
use word::Word;

const UPGRADES: u64 = 1000;
/// In every so many upgrades there is a fault, and after every so many a look at memory: after one
/// without a fault, so that all samples are of processes of the same age.
const FAULT_EVERY: u64 = 5;
const SAMPLE_EVERY: u64 = 50;

/// Deadlines of the actor. Faults wait for them, so that they are short.
const DEADLINES: [&str; 8] =
    ["--probation-ms", "20", "--takeover-ms", "500", "--upgrade-ms", "1500", "--drain-ms", "1000"];
/// Longer than any of them, and than two after each other: who stands still for so long without
/// anybody doing anything about it goes on.
const LONGEST_STOP: Duration = Duration::from_secs(4);

/// At most one in so many upgrades without a fault may miss a deadline, because machines stall.
const MISSED_IN: u64 = 100;

/// Medians of so many samples, of the first and of the last, are held against each other.
const COMPARED: usize = 5;
const MEMORY_SLACK_KIB: u64 = 64;

#[test]
#[ignore = "it takes minutes"]
fn a_thousand_upgrades_with_a_fault_in_every_fifth_leave_one_process_that_serves_and_no_trace() {
    let seed = number_in("SEED").unwrap_or_else(|| fastrand::u64(..));
    let upgrades = number_in("UPGRADES").unwrap_or(UPGRADES);
    let began = Instant::now();
    let mut soak = Soak::start(seed, upgrades);
    for upgrade in 1..=upgrades {
        soak.upgrade = upgrade;
        if upgrade % FAULT_EVERY == FAULT_EVERY / 2 {
            soak.faulty_upgrade();
        } else {
            soak.plain_upgrade();
        }
        if upgrade % SAMPLE_EVERY == 0 {
            soak.sample();
        }
    }
    soak.print_summary(began.elapsed());
    soak.assert_flat();
}

fn number_in(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

struct Soak {
    seed: u64,
    upgrades: u64,
    /// The one under way, and its fault.
    upgrade: u64,
    fault: Option<Fault>,

    // In the order in which they end: nobody serves any more, and then nobody asks.
    family: Family,
    actor: Actor,
    load: Load,

    address: String,
    deck: Deck,
    /// Who serves.
    pid: u32,
    generation: u64,
    /// What a process has open that is alone and has no client.
    bare: BTreeMap<String, usize>,
    /// How many descriptors it may have.
    limit: u64,
    counted: Counts,
    memory_kib: Vec<u64>,
    outcomes: BTreeMap<(Deed, Outcome), usize>,
    broken: BTreeMap<(Deed, Outcome), usize>,
    unmet: Vec<Fault>,
    /// Upgrades without a fault that missed a deadline.
    missed: u64,
}

/// What became of an upgrade with a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The successor serves, and the predecessor has left.
    Done,
    /// The predecessor serves: it never stopped, or does so again.
    Undone,
    /// The predecessor died, and the successor serves.
    TakenOver,
}

impl Soak {
    fn start(seed: u64, upgrades: u64) -> Self {
        println!("SEED={seed} UPGRADES={upgrades}");
        let mut actor = Start::actor().pid_file().faults().args(&DEADLINES).serve();
        let family = Family::around(actor.place.path());
        let address = actor.address();
        let mut client = Client::connect(&address);
        let (pid, generation) = client.who();
        let mut bare = counted(kinds_of_descriptors(pid));
        *bare.get_mut("socket").expect("its client's") -= 1;
        drop(client);
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(1024);
        Self {
            seed,
            upgrades,
            upgrade: 0,
            fault: None,
            bare,
            limit,
            load: Load::start(address.clone()),
            family,
            actor,
            address,
            deck: Deck::shuffled(seed),
            pid,
            generation,
            counted: Counts::default(),
            memory_kib: Vec::new(),
            outcomes: BTreeMap::new(),
            broken: BTreeMap::new(),
            unmet: Vec::new(),
            missed: 0,
        }
    }

    fn plain_upgrade(&mut self) {
        self.fault = None;
        self.actor.forget();
        self.actor.signal(self.pid, Signal::SIGHUP);
        let missed = loop {
            let line = self.next_line(PATIENCE).expect("the upgrade has an end");
            match Word::of(&line) {
                Word::Done => break false,
                // Not ready, not serving, or no answer in time.
                Word::Failed if line.contains(" within ") => break true,
                Word::Failed => panic!("nothing was wrong with it: {line}"),
                Word::Struck(_) | Word::NotStruck => panic!("nobody asked for it: {line}"),
                Word::Committed | Word::Decided | Word::Other => {}
            }
        };
        let predecessor = self.pid;
        let ended = self.settle();
        let counts = self.check();
        if missed {
            self.missed += 1;
            assert!(self.missed <= 1 + self.upgrades / MISSED_IN, "{} missed", self.missed);
            // The successor was killed, and may have served.
            assert!(counts.broken() <= CLIENTS, "{counts:?}");
        } else {
            assert_ne!(self.pid, predecessor);
            assert!(ended.is_some_and(|status| status.success()), "it ended with {ended:?}");
            assert_eq!(counts.broken(), 0, "nobody died: {counts:?}");
        }
    }

    fn faulty_upgrade(&mut self) {
        let fault = self.deck.draw().expect("there are faults");
        self.fault = Some(fault);
        self.actor.forget();
        self.actor.fault(fault.point, fault.words());
        self.actor.signal(self.pid, Signal::SIGHUP);
        let seen = self.follow(fault);
        // Whoever comes to the point next must not find it.
        if !seen.struck {
            let _ = fs::remove_file(self.actor.place.path().join("faults"));
            self.unmet.push(fault);
        }
        let predecessor = self.pid;
        let ended = self.settle();
        let died = ended.is_some_and(|status| !status.success())
            || seen.struck && fault.is_deadly() && fault.strikes_the_predecessor();
        let outcome = match (self.pid == predecessor, died) {
            (true, _) => Outcome::Undone,
            (false, true) => Outcome::TakenOver,
            (false, false) => Outcome::Done,
        };
        if fault.deed == Deed::NoDescriptors {
            // A successor that was spawned by whoever had none has none either.
            limit_descriptors(self.pid, self.limit);
        }
        let counts = self.check();
        *self.outcomes.entry((fault.deed, outcome)).or_default() += 1;
        *self.broken.entry((fault.deed, outcome)).or_default() += counts.broken();
        let most = if seen.struck && host_died(fault, outcome, &seen) { CLIENTS } else { 0 };
        assert!(counts.broken() <= most, "{outcome:?}, {most} may be broken: {counts:?}");
    }

    /// Hears of an upgrade with a fault until it has ended, one way or the other. Whoever stands
    /// still goes on when it is time.
    fn follow(&mut self, fault: Fault) -> Seen {
        let mut seen = Seen::default();
        let mut stopped: Option<(u32, Instant)> = None;
        loop {
            let patience = match stopped {
                Some((_, until)) => until.saturating_duration_since(Instant::now()),
                None => PATIENCE,
            };
            let Some(line) = self.next_line(patience) else {
                let (pid, _) = stopped.take().expect("somebody stands still, or nothing will come");
                self.go_on(pid);
                continue;
            };
            let word = Word::of(&line);
            match word {
                Word::Struck(pid) => {
                    seen.struck = true;
                    let time = match fault.deed {
                        Deed::StopShortly => Some(self.deck.short_stop()),
                        Deed::StopForLong => Some(LONGEST_STOP),
                        Deed::Kill
                        | Deed::ExitZero
                        | Deed::ExitOne
                        | Deed::Panic
                        | Deed::Garbage
                        | Deed::Protocol
                        | Deed::Drown
                        | Deed::NoDescriptors
                        | Deed::NoMemory => None,
                    };
                    stopped = time.map(|time| (pid, Instant::now() + time));
                }
                Word::NotStruck => panic!("it cannot be done: {line}"),
                Word::Committed => seen.committed = true,
                Word::Decided if fault.deed == Deed::StopShortly => {}
                Word::Decided | Word::Done | Word::Failed => {
                    if let Some((pid, _)) = stopped.take() {
                        self.go_on(pid);
                    }
                    if word != Word::Decided {
                        return seen;
                    }
                }
                Word::Other => {}
            }
        }
    }

    fn next_line(&mut self, patience: Duration) -> Option<String> {
        // Every line contains it.
        self.actor.hears(&[""], patience)
    }

    /// Has a process go on that stands still, or is about to.
    fn go_on(&self, pid: u32) {
        let is_there = || self.family.alive().contains(&pid);
        // It may have been killed meanwhile.
        until("it stands still", || state_of(pid) == Some('T') || !is_there());
        if is_there() {
            let pid = nix::unistd::Pid::from_raw(pid as i32);
            let _ = nix::sys::signal::kill(pid, Signal::SIGCONT);
        }
    }

    /// Waits until one process is left, which serves from now on. Answers how the one ended that
    /// has served until now, if it has.
    fn settle(&mut self) -> Option<ExitStatus> {
        let predecessor = self.pid;
        let (mut left, mut ended) = (Vec::new(), None);
        let (family, actor) = (&self.family, &mut self.actor);
        until("one process is left", || {
            let dead = family.reap(actor).into_iter().find(|(pid, _)| *pid == predecessor);
            ended = dead.map(|(_, status)| status).or(ended);
            left = family.alive();
            // It is a child of this process, whoever has started it.
            left.len() == 1 && (left[0] == predecessor || ended.is_some())
        });
        self.pid = left[0];
        ended
    }

    /// Holds the process that is left, and what it has, against how it should be. Answers what has
    /// become of the clients since the last time.
    fn check(&mut self) -> Counts {
        let _quiet = self.load.quiet();
        let (pid, generation) = Client::connect(&self.address).who();
        assert_eq!(pid, self.pid, "who serves");
        assert!(generation >= self.generation);
        self.generation = generation;
        let place = self.actor.place.path();
        self.actor.is_named(pid);
        let litter = || fs::read_dir(place).expect("a directory").count() - 1;
        until("no litter is beside the pid file", || litter() == 0);
        until("it has no child, dead or alive", || children_of(pid).is_empty());
        self.until_bare();
        let counts = self.load.counts();
        let since = counts - std::mem::replace(&mut self.counted, counts);
        assert_eq!((since.refused, since.other), (0, 0), "{since:?}");
        since
    }

    /// Waits until the process that is left has closed what it had for others.
    fn until_bare(&self) {
        let mut found = BTreeMap::new();
        let deadline = Instant::now() + PATIENCE;
        while found != self.bare {
            let (pid, bare) = (self.pid, &self.bare);
            assert!(Instant::now() < deadline, "{pid} has {found:?}, and not {bare:?}");
            thread::sleep(Duration::from_millis(1));
            found = counted(kinds_of_descriptors(pid));
        }
    }

    /// Of a process that is alone and has no client.
    fn sample(&mut self) {
        let _quiet = self.load.quiet();
        self.until_bare();
        let memory = memory_of(self.pid);
        self.memory_kib.push(memory);
        let descriptors: usize = counted(kinds_of_descriptors(self.pid)).values().sum();
        println!(
            "upgrade {}, generation {}: {memory} KiB, {descriptors} descriptors, {} children, \
             {} connections",
            self.upgrade,
            self.generation,
            children_of(self.pid).len(),
            self.load.counts().answered,
        );
    }

    fn print_summary(&self, took: Duration) {
        println!("\n{} upgrades in {:.1} s, SEED={}", self.upgrades, took.as_secs_f64(), self.seed);
        println!("{:<16}{:>8}{:>8}{:>12}{:>8}", "fault", "done", "undone", "taken over", "broken");
        let mut deeds: Vec<_> = self.outcomes.keys().map(|(deed, _)| *deed).collect();
        deeds.dedup();
        for deed in deeds {
            let of = |outcome| self.outcomes.get(&(deed, outcome)).copied().unwrap_or(0);
            let broken: usize =
                self.broken.iter().filter(|((of, _), _)| *of == deed).map(|(_, count)| count).sum();
            println!(
                "{:<16}{:>8}{:>8}{:>12}{broken:>8}",
                format!("{deed:?}"),
                of(Outcome::Done),
                of(Outcome::Undone),
                of(Outcome::TakenOver),
            );
        }
        let unmet: Vec<_> = self.unmet.iter().map(Fault::to_string).collect();
        println!("faults whose point nobody came to: {} [{}]", unmet.len(), unmet.join(", "));
        println!("deadlines missed without a fault: {}", self.missed);
        println!("connections: {:?}", self.load.counts());
        println!("descriptors: {:?}", self.bare);
        println!("memory, KiB: {:?}", self.memory_kib);
    }

    fn assert_flat(&self) {
        let samples = &self.memory_kib;
        let compared = COMPARED.min(samples.len());
        let first = median(&samples[..compared]);
        let last = median(&samples[samples.len() - compared..]);
        let most = (first + first * 15 / 100).max(first + MEMORY_SLACK_KIB);
        println!("medians of {compared}: {first} KiB at first, {last} KiB in the end");
        assert!(last <= most, "memory went from {first} to {last} KiB: {samples:?}");
    }
}

/// What ties a failure to a run.
impl Drop for Soak {
    fn drop(&mut self) {
        if thread::panicking() {
            let fault = self.fault.map_or("none".into(), |fault| fault.to_string());
            eprintln!(
                "SEED={} UPGRADES={}: upgrade {}, fault: {fault}, clients since the last: {:?}",
                self.seed,
                self.upgrades,
                self.upgrade,
                self.load.counts() - self.counted,
            );
        }
    }
}

/// What was seen of an upgrade with a fault.
#[derive(Default)]
struct Seen {
    struck: bool,
    /// The successor was committed to, so that it may have accepted.
    committed: bool,
}

/// Whether somebody died, or was killed for what it did, who may have had connections.
fn host_died(fault: Fault, outcome: Outcome, seen: &Seen) -> bool {
    let is_over_at_once = fault.is_deadly() || fault.deed == Deed::StopForLong;
    match outcome {
        Outcome::Done => false,
        Outcome::Undone => seen.committed && (fault.strikes_a_host() || !is_over_at_once),
        Outcome::TakenOver => fault.strikes_a_host(),
    }
}

fn counted(kinds: Vec<String>) -> BTreeMap<String, usize> {
    kinds.into_iter().fold(BTreeMap::new(), |mut counts, kind| {
        *counts.entry(kind).or_default() += 1;
        counts
    })
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}
