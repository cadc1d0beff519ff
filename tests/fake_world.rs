//! Ring two: both roles of real machines in a fake world.
//!
//! The kernel is made of queues, the clock stands still unless it is told to go on, and a seed
//! decides what happens next: which packet is read, which timer fires, who is killed. After each
//! step the invariants hold; when all is quiet, the promises are kept. A failure names its seed;
//! `SEED=n cargo test --test fake_world` plays that one again.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use tablecloth::Config;
use tablecloth::machine::{
    Action, Drain, Event, Machine, Outcome, Predecessor, State, Timer, Wanted,
};
use tablecloth::timers::Timers;
use tablecloth::wire::{Hello, Message, NO_SCHEMAS, PROTOCOL, READY, WireError};

const SEEDS: u64 = 20_000;
const STEPS: usize = 120;

#[test]
fn two_processes_in_a_fake_world_keep_every_promise() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("a number");
            seed..seed + 1
        }
        Err(_) => 0..SEEDS,
    };
    let mut seen = HashSet::new();
    for seed in seeds {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
            world.check();
        }
        world.settle();
        world.check_promises();
        seen.extend(world.seen);
    }
    if std::env::var_os("SEED").is_none() {
        // The interesting things do happen: a world in which nothing goes wrong proves nothing.
        for what in [
            "commit",
            "rollback",
            "rollback with a wanted upgrade",
            "upgrade after a pause",
            "given up",
            "sole owner",
            "sole owner with a wanted upgrade",
            "failed upgrade",
            "remembered request",
            "request passed on",
            "last look found the byte",
            "last look found COMMIT",
            "shutdown",
            "successor stopped while its predecessor drained",
        ] {
            assert!(seen.contains(what), "{what} never happened");
        }
    }
}

/// A process: a real machine and real timers, and the ends of fake pipes and sockets.
struct Process {
    machine: Machine,
    timers: Timers,
    pending: VecDeque<Event>,
    alive: bool,
    polls: bool,
    sessions: u32,
    predecessor: Option<usize>,
    successor: Option<usize>,
    /// When it was spawned, in steps.
    spawned: usize,
    /// What lies in its end of the handoff with the process before it.
    from_predecessor: VecDeque<Vec<u8>>,
    /// What the process after it has sent: ready bytes, and packets.
    pipe: VecDeque<u8>,
    from_successor: VecDeque<Vec<u8>>,
    status: Option<i32>,
    /// Whether its death was told to the other side.
    mourned: bool,
    set_up: bool,
}

struct World {
    seed: u64,
    random: u64,
    now: Instant,
    step: usize,
    config: Config,
    processes: Vec<Process>,
    pid_file: Option<usize>,
    stop_asked: bool,
    kills: u32,
    stops: u32,
    /// Requests that were not refused: when.
    requests: Vec<usize>,
    /// Failures that were reported, and upgrades that were dropped in words: when.
    reports: Vec<usize>,
    calm: bool,
    seen: HashSet<&'static str>,
}

/// What arrives; nobody in this world speaks another version.
fn decoded(packet: &[u8]) -> Result<Message, WireError> {
    Message::decode(packet, PROTOCOL).map(|(_, message)| message)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut config = Config::default();
        config.probation = Duration::from_millis(seed % 3 * 500);
        let mut world = Self {
            seed,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now: Instant::now(),
            step: 0,
            config,
            processes: Vec::new(),
            pid_file: None,
            stop_asked: false,
            kills: 0,
            stops: 0,
            requests: Vec::new(),
            reports: Vec::new(),
            calm: false,
            seen: HashSet::new(),
        };
        world.create(Machine::first(), None);
        world.feed(0, Event::SetUpDone);
        world
    }

    /// xorshift64*: a seed is all it remembers.
    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    }

    fn create(&mut self, machine: Machine, predecessor: Option<usize>) {
        self.processes.push(Process {
            machine,
            timers: Timers::default(),
            pending: VecDeque::new(),
            alive: true,
            polls: false,
            sessions: 0,
            predecessor,
            successor: None,
            spawned: self.step,
            from_predecessor: VecDeque::new(),
            pipe: VecDeque::new(),
            from_successor: VecDeque::new(),
            status: None,
            mourned: false,
            set_up: predecessor.is_none(),
        });
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.processes.len()).filter(|id| self.processes[*id].alive).collect()
    }

    /// Something happens to somebody.
    fn step(&mut self) {
        self.step += 1;
        let alive = self.alive();
        if alive.is_empty() {
            return;
        }
        let id = alive[self.random(alive.len())];
        match self.random(16) {
            0 if self.random(3) == 0 => self.request(id),
            1 if self.random(12) == 0 => self.ask_to_stop(id, Event::ShutdownRequested),
            2 if self.random(24) == 0 => self.ask_to_stop(id, Event::ExitRequested),
            3 if self.random(6) == 0 && self.kills < 3 => {
                self.kills += 1;
                self.die(id, None);
            }
            4 | 5 => self.set_up(id),
            6 => self.read_pipe(id),
            7 | 8 => self.read_successor(id),
            9 | 10 => self.read_predecessor(id),
            11 => self.hear_of_deaths(id),
            12 => self.expire(id),
            13 if self.processes[id].polls => self.processes[id].sessions += 1,
            14 => self.processes[id].sessions = self.processes[id].sessions.saturating_sub(1),
            _ => self.end_turn(id),
        }
    }

    fn request(&mut self, id: usize) {
        let step = self.processes[id].machine.step(Event::UpgradeRequested);
        if !matches!(step.outcome, Outcome::Refused(_)) {
            self.requests.push(self.step);
        }
        self.feed(id, Event::UpgradeRequested);
    }

    fn ask_to_stop(&mut self, id: usize, event: Event) {
        // To tell a process that is leaving anyway, or has not begun, asks nothing of the service;
        // to tell one whose successor is not known to serve does.
        let committed = State::Draining(Drain::Committed);
        if self.processes[id].polls || self.processes[id].machine.state() == committed {
            self.stop_asked = true;
            self.seen.insert("shutdown");
        }
        self.stops += 1;
        self.feed(id, event);
    }

    fn set_up(&mut self, id: usize) {
        if std::mem::replace(&mut self.processes[id].set_up, true) {
            return;
        }
        let hello = Hello { schemas: NO_SCHEMAS, pid: 1, build: "fake".into() };
        self.send_to_predecessor(id, &Message::Hello(hello));
        match if self.calm { 9 } else { self.random(10) } {
            0 => self.die(id, Some(1)),
            1 => self.die(id, Some(0)),
            2 => {
                self.send_to_predecessor(id, &Message::Refuse("no".into()));
                self.die(id, Some(1));
            }
            // It hangs, and is never heard of again.
            3 if self.processes[id].predecessor.is_some_and(|p| self.processes[p].alive) => {}
            _ => self.feed(id, Event::SetUpDone),
        }
    }

    fn read_pipe(&mut self, id: usize) {
        if self.processes[id].successor.is_some() {
            if let Some(byte) = self.processes[id].pipe.pop_front() {
                assert_eq!(byte, READY);
                self.feed(id, Event::SuccessorReady);
            }
        }
    }

    fn read_successor(&mut self, id: usize) {
        let Some(packet) = self.processes[id].from_successor.pop_front() else { return };
        match decoded(&packet).expect("what was encoded") {
            Message::Hello(_) => {}
            Message::Refuse(_) => self.feed(id, Event::SuccessorHungUp),
            Message::Serving => self.feed(id, Event::SuccessorServing),
            Message::Stopping => {
                self.seen.insert("successor stopped while its predecessor drained");
                self.feed(id, Event::SuccessorStopped);
            }
            Message::Pong => self.feed(id, Event::SuccessorAnswered),
            Message::Upgrade => self.feed(id, Event::SuccessorWantsUpgrade),
            other @ (Message::Manifest(_)
            | Message::Expect(_)
            | Message::State(_)
            | Message::Told(_)
            | Message::Retire
            | Message::Commit
            | Message::Ping
            | Message::Sessions(_)
            | Message::Ack(_)) => panic!("{other:?} from a successor"),
        }
    }

    fn read_predecessor(&mut self, id: usize) {
        // What comes before the set-up is done waits in the socket.
        if !self.processes[id].set_up {
            return;
        }
        let Some(packet) = self.processes[id].from_predecessor.pop_front() else { return };
        match decoded(&packet).expect("what was encoded") {
            Message::Commit => self.feed(id, Event::Committed),
            Message::Upgrade => self.feed(id, Event::UpgradeRequested),
            Message::Ping => self.feed(id, Event::PredecessorAsked),
            Message::Retire => {
                self.seen.insert("given up");
                self.feed(id, Event::GivenUp);
            }
            other @ (Message::Manifest(_)
            | Message::Expect(_)
            | Message::State(_)
            | Message::Told(_)
            | Message::Hello(_)
            | Message::Refuse(_)
            | Message::Serving
            | Message::Stopping
            | Message::Pong
            | Message::Sessions(_)
            | Message::Ack(_)) => panic!("{other:?} from a predecessor"),
        }
    }

    /// The kernel delivers what was sent before the end, and then the end.
    fn hear_of_deaths(&mut self, id: usize) {
        if let Some(successor) = self.processes[id].successor {
            if !self.processes[successor].alive && !self.processes[successor].mourned {
                self.processes[successor].mourned = true;
                while !self.processes[id].pipe.is_empty() {
                    self.read_pipe(id);
                }
                while !self.processes[id].from_successor.is_empty() {
                    self.read_successor(id);
                }
                // It may have been given up by what it had said last.
                if self.processes[id].successor == Some(successor) {
                    // Whatever its status: who was told to stop has said so.
                    self.feed(id, Event::SuccessorLost);
                }
            }
        }
        if let Some(predecessor) = self.processes[id].predecessor {
            if self.processes[id].set_up && !self.processes[predecessor].alive {
                while !self.processes[id].from_predecessor.is_empty() {
                    self.read_predecessor(id);
                }
                self.processes[id].predecessor = None;
                if self.processes[id].machine.predecessor() == Predecessor::Owner {
                    self.seen.insert(match self.processes[id].machine.wanted() {
                        Wanted::Here | Wanted::BySuccessor => "sole owner with a wanted upgrade",
                        Wanted::No => "sole owner",
                    });
                }
                self.feed(id, Event::PredecessorGone);
            }
        }
    }

    /// The clock goes on to this process's next deadline.
    fn expire(&mut self, id: usize) {
        if let Some(deadline) = self.processes[id].timers.next_deadline() {
            self.now = self.now.max(deadline);
            while let Some(timer) = self.processes[id].timers.expire(self.now) {
                self.feed(id, timer.event());
            }
        }
    }

    fn end_turn(&mut self, id: usize) {
        let process = &self.processes[id];
        if matches!(process.machine.state(), State::Draining(_)) && process.sessions == 0 {
            self.feed(id, Event::SessionsGone);
        }
    }

    fn die(&mut self, id: usize, status: Option<i32>) {
        let process = &mut self.processes[id];
        process.alive = false;
        process.polls = false;
        process.status = status;
    }

    fn send_to_predecessor(&mut self, id: usize, message: &Message) {
        if let Some(predecessor) = self.processes[id].predecessor {
            self.processes[predecessor].from_successor.push_back(message.encode(PROTOCOL.newest));
        }
    }

    fn send_to_successor(&mut self, id: usize, message: &Message) {
        if let Some(successor) = self.processes[id].successor {
            self.processes[successor].from_predecessor.push_back(message.encode(PROTOCOL.newest));
        }
    }

    fn feed(&mut self, id: usize, event: Event) {
        self.processes[id].pending.push_back(event);
        while let Some(event) = self.processes[id].pending.pop_front() {
            if !self.processes[id].alive {
                return;
            }
            let before = self.processes[id].machine;
            let step = before.step(event);
            self.processes[id].machine = step.machine;
            self.note(before, event, step.machine);
            for action in step.actions {
                self.perform(id, *action);
            }
            if step.machine.state() == State::Exited {
                let failed = event == Event::PredecessorSilent;
                self.die(id, Some(i32::from(failed)));
            }
            // I6: back to where it was, with nothing left of the attempt.
            if step.machine.state() == State::Running && before.state() != State::Running {
                let process = &self.processes[id];
                assert!(process.successor.is_none(), "seed {}", self.seed);
                let mut timers = process.timers.clone();
                timers.disarm(Timer::Pause);
                assert_eq!(timers.next_deadline(), None, "seed {}", self.seed);
                assert_eq!(self.pid_file, Some(id), "seed {}", self.seed);
            }
        }
    }

    fn note(&mut self, before: Machine, event: Event, after: Machine) {
        let rollback = matches!(
            before.state(),
            State::Draining(Drain::Committed | Drain::Probation | Drain::Proven)
        );
        match (after.state(), before.wanted()) {
            (State::Running, Wanted::Here) if rollback => {
                self.seen.insert("rollback with a wanted upgrade")
            }
            (State::Running, _) if rollback => self.seen.insert("rollback"),
            (State::Upgrading, _) if event == Event::PauseOver => {
                self.seen.insert("upgrade after a pause")
            }
            (State::Running, _) if before.state() == State::Upgrading => {
                self.seen.insert("failed upgrade")
            }
            (State::Draining(Drain::Committed), _) if before.state() == State::Upgrading => {
                self.seen.insert("commit")
            }
            _ if event == Event::UpgradeRequested && after.wanted() != Wanted::No => {
                self.seen.insert("remembered request")
            }
            _ => false,
        };
    }

    fn perform(&mut self, id: usize, action: Action) {
        match action {
            Action::SpawnSuccessor => {
                assert!(self.processes[id].successor.is_none(), "seed {}", self.seed);
                // Sometimes there is no memory, or no program.
                if !self.calm && self.random(12) == 0 {
                    self.processes[id].pending.push_back(Event::SuccessorLost);
                } else {
                    self.create(Machine::successor(), Some(id));
                    self.processes[id].successor = Some(self.processes.len() - 1);
                }
            }
            Action::LookOnce => {
                let process = &mut self.processes[id];
                if process.successor.is_none() {
                    let mut found = false;
                    while let Some(packet) = process.from_predecessor.pop_front() {
                        let commit = decoded(&packet) == Ok(Message::Commit);
                        let retired = decoded(&packet) == Ok(Message::Retire);
                        found |= commit || retired;
                        process.pending.push_back(match (commit, retired) {
                            (true, _) => Event::Committed,
                            (_, true) => Event::GivenUp,
                            (false, false) => Event::UpgradeRequested,
                        });
                    }
                    match found {
                        true => drop(self.seen.insert("last look found COMMIT")),
                        false => process.pending.push_back(Event::PredecessorSilent),
                    }
                    return;
                }
                if matches!(process.machine.state(), State::Draining(_)) {
                    let words: Vec<_> = process.from_successor.drain(..).collect();
                    for packet in &words {
                        match decoded(packet) {
                            Ok(Message::Serving) => {
                                process.pending.push_back(Event::SuccessorServing);
                            }
                            Ok(Message::Stopping) => {
                                process.pending.push_back(Event::SuccessorStopped);
                            }
                            Ok(Message::Upgrade) => {
                                process.pending.push_back(Event::SuccessorWantsUpgrade);
                            }
                            Ok(Message::Pong) => {
                                process.pending.push_back(Event::SuccessorAnswered);
                            }
                            // HELLO; there is no other here.
                            Ok(_) | Err(_) => {}
                        }
                    }
                    let awaited = [&Message::Serving, &Message::Pong]
                        .map(|message| message.encode(PROTOCOL.newest));
                    if !words.iter().any(|word| awaited.contains(word)) {
                        process.pending.push_back(Event::SuccessorSilent);
                    }
                    return;
                }
                let event = match process.pipe.pop_front() {
                    Some(_) => {
                        self.seen.insert("last look found the byte");
                        Event::SuccessorReady
                    }
                    None => Event::SuccessorSilent,
                };
                self.processes[id].pending.push_back(event);
            }
            Action::CommitUpgrade => self.send_to_successor(id, &Message::Commit),
            Action::PassOnUpgrade => {
                self.seen.insert("request passed on");
                self.send_to_successor(id, &Message::Upgrade);
            }
            Action::KillSuccessor => {
                // Now and then the kill does not reach it before it has heard why: its spawn has no
                // answer yet.
                self.send_to_successor(id, &Message::Retire);
                if let Some(successor) = self.processes[id].successor.take() {
                    if self.random(3) == 0 {
                        while self.processes[successor].alive
                            && !self.processes[successor].from_predecessor.is_empty()
                            && self.processes[successor].set_up
                        {
                            self.read_predecessor(successor);
                        }
                    }
                    self.die(successor, None);
                }
                let process = &mut self.processes[id];
                process.pipe.clear();
                process.from_successor.clear();
            }
            // Of an upgrade that went well nobody is owed another report.
            Action::ReportUpgrade if self.processes[id].successor.is_some() => {}
            Action::ReportUpgrade | Action::DropWanted => self.reports.push(self.step),
            Action::AnnounceReady => {
                if let Some(predecessor) = self.processes[id].predecessor {
                    self.processes[predecessor].pipe.push_back(READY);
                }
            }
            Action::TellWanted => self.send_to_predecessor(id, &Message::Upgrade),
            Action::AskSuccessor => self.send_to_successor(id, &Message::Ping),
            Action::AnswerPredecessor => self.send_to_predecessor(id, &Message::Pong),
            Action::KillPredecessor => {
                if let Some(predecessor) = self.processes[id].predecessor {
                    self.seen.insert("a predecessor that did not leave");
                    self.kills += 1;
                    self.die(predecessor, None);
                }
            }
            Action::TellServing => self.send_to_predecessor(id, &Message::Serving),
            Action::TellStopping => self.send_to_predecessor(id, &Message::Stopping),
            Action::TakePidFile => {
                self.pid_file = Some(id);
                self.processes[id].pending.push_back(Event::PidFileWritten);
            }
            Action::WritePidFile | Action::RestorePidFile => self.pid_file = Some(id),
            Action::RemovePidFile => self.pid_file = self.pid_file.filter(|own| *own != id),
            Action::ResumeAccepting => self.processes[id].polls = true,
            Action::PauseAccepting
            | Action::CloseListeners
            | Action::RetireListeners
            | Action::DrainListeners => self.processes[id].polls = false,
            Action::CloseSessions => self.processes[id].sessions = 0,
            Action::Arm(timer) => {
                let whole = self.config.duration(timer);
                self.processes[id].timers.arm(timer, self.now, whole);
            }
            Action::Disarm(timer) => self.processes[id].timers.disarm(timer),
            Action::DisarmAll => self.processes[id].timers.disarm_all(),
            Action::RenewTimers => self.processes[id].timers.renew(self.now, Duration::ZERO),
            Action::CloseUnclaimed
            | Action::ClosePanicked
            | Action::UnlinkUnclaimed
            | Action::DrainSessions
            | Action::MoveSessions => {}
        }
    }

    /// What must hold at any time.
    fn check(&self) {
        let alive = self.alive();
        let at = format!("seed {}, step {}", self.seed, self.step);
        assert!(alive.len() <= 2, "I2: {at}");
        let unready = alive
            .iter()
            .filter(|id| self.processes[**id].machine.predecessor() == Predecessor::Owner);
        assert!(unready.count() <= 1, "I2: {at}");
        let polling = alive.iter().filter(|id| self.processes[**id].polls);
        assert!(polling.count() <= 1, "I3: {at}");
        for id in alive {
            let process = &self.processes[id];
            assert_eq!(process.polls, process.machine.accepts(), "I3: {at}");
        }
    }

    /// Nothing more goes wrong, and everything that can happen happens.
    fn settle(&mut self) {
        self.calm = true;
        for _ in 0..200 {
            self.step += 1;
            for id in self.alive() {
                self.set_up(id);
                self.read_pipe(id);
                self.read_successor(id);
                self.read_predecessor(id);
                self.hear_of_deaths(id);
                self.processes[id].sessions = 0;
                self.end_turn(id);
                self.check();
            }
            // Time passes only when nothing else is left to do, as in the real world.
            if self.random(4) == 0 {
                for id in self.alive() {
                    self.expire(id);
                }
            }
        }
    }

    /// What must have come true.
    fn check_promises(&self) {
        let at = format!("seed {}", self.seed);
        let alive = self.alive();
        if !self.stop_asked {
            if let [only] = alive.as_slice() {
                let process = &self.processes[*only];
                assert_eq!(process.machine.state(), State::Running, "I1: {at}");
                assert!(process.polls, "I1: {at}");
                assert_eq!(self.pid_file, Some(*only), "the pid file: {at}");
                assert_eq!(process.machine.wanted(), Wanted::No, "I4: {at}");
                assert_eq!(process.timers.next_deadline(), None, "I6: {at}");
                for request in &self.requests {
                    let started = self.processes.iter().any(|process| process.spawned >= *request);
                    let reported = self.reports.iter().any(|report| report >= request);
                    assert!(started || reported, "I4: {at}, requested in step {request}");
                }
            } else {
                // Nobody is left: then somebody was killed, or both were told to stop, one while it
                // left and the other before it began.
                assert!(alive.is_empty(), "two are left: {at}");
                assert!(self.kills > 0 || self.stops > 1, "I1: {at}");
            }
        } else {
            // Told to stop while serving: nobody is left, unless the other one was not meant.
            for id in alive {
                assert_eq!(self.processes[id].machine.state(), State::Running, "{at}");
                assert!(self.processes[id].polls, "{at}");
            }
        }
    }
}
