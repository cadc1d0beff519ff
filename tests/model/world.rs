//! The modelled world: real machines, and a kernel made of flags and queues.
//!
//! What is modelled: both roles of up to four processes; the readiness pipe; the handoff socket,
//! which delivers what was sent before it ends; signals, which coalesce and come in any order;
//! timers, which may fire at any time once armed; a spawn that fails; a set-up that fails or exits
//! with status 0; the death of any process at any step; a spawn whose answer comes late, so that what it
//! has made cannot be killed yet; a pause of both processes at once; two sessions of the first process,
//! which move from process to process, are refused, or end, in a house that has no place for the third,
//! who waits to be let in.
//!
//! What is assumed: a write to the pipe or the socket is there before its writer's death is heard
//! of; a killed process does nothing any more; nobody else reaps, signals or writes.

use tablecloth::machine::{
    Action, Drain, Event, Machine, Outcome, Predecessor, State, Step, Timer, Wanted,
};

/// At most this many processes in one history: the first and three generations more.
const PROCESSES: usize = 4;

/// The sessions that there may be, a bit for each; the last one waits to be let in.
pub(crate) const SESSIONS: [u8; 3] = [1, 2, 4];

/// So many sessions there may be in one process.
pub(crate) const CAPACITY: u32 = 2;

/// What the server does beside what the machine says, so that a mistake can be put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rules {
    /// A successor keeps places for the sessions that are to come.
    pub(crate) keeps_places: bool,
    /// A successor that is given up is told so.
    pub(crate) says_why: bool,
    /// Who has spoken can be killed, whether or not its spawn has its answer.
    pub(crate) kills_who_spoke: bool,
    /// The answer of a spawn may come late. It takes many states, and is left out of some worlds.
    pub(crate) late_answers: bool,
}

impl Rules {
    pub(crate) const REAL: Self =
        Self { keeps_places: true, says_why: true, kills_who_spoke: true, late_answers: false };
}

/// The function under test, so that a wrong one can be put in its place.
pub(crate) type StepFn = fn(Machine, Event) -> Step;

/// Everything there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) processes: Vec<Process>,
    pub(crate) pid_file: Option<usize>,
    pub(crate) rules: Rules,
    /// What may still go wrong, or be asked for.
    pub(crate) budget: Budget,
    /// An upgrade request was taken, and since then no process was started and no failure reported.
    pub(crate) owed: bool,
    /// Somebody asked the service to stop.
    pub(crate) stop_asked: bool,
    /// Who waits to be let in, a bit for each.
    pub(crate) waiting: u8,
    /// The sessions that have ended, or died with the process that served them.
    pub(crate) gone: u8,
    pub(crate) seen: Seen,
    pub(crate) broken: Broken,
}

/// How often each thing may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) hups: u8,
    pub(crate) stops: u8,
    pub(crate) kills: u8,
    pub(crate) failures: u8,
    pub(crate) pauses: u8,
}

/// What has happened on the way here: not part of what the processes know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) commit: bool,
    pub(crate) rollback: bool,
    pub(crate) remembered: bool,
    pub(crate) sole_owner: bool,
    pub(crate) failed: bool,
    pub(crate) last_look: bool,
    pub(crate) overdue: bool,
    pub(crate) moved: bool,
    pub(crate) refused: bool,
    pub(crate) came_back: bool,
    pub(crate) paused: bool,
    pub(crate) given_up: bool,
    pub(crate) let_in: bool,
}

/// What must never happen, noted when it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken {
    /// A ready byte that was there at the deadline was thrown away.
    pub(crate) ready_wasted: bool,
    /// A process accepted again although the service was told to stop.
    pub(crate) resurrected: bool,
    /// A descriptor or a timer of a failed upgrade was left.
    pub(crate) left_over: bool,
    /// A session was cut off though nobody asked for the end and its time was not over.
    pub(crate) session_cut: bool,
    /// A session was sent on, or ended, by somebody who did not have it.
    pub(crate) session_forged: bool,
    /// A successor passed its probation without an answer.
    pub(crate) unproven: bool,
    /// A process came back from its end.
    pub(crate) undead: bool,
    /// A lost successor's own request was carried out.
    pub(crate) haunted: bool,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) machine: Machine,
    pub(crate) life: Life,
    pub(crate) polls: bool,
    pub(crate) has_listeners: bool,
    /// The sessions that it serves, a bit for each.
    pub(crate) serving: u8,
    /// Copies of those that are on their way to its successor.
    pub(crate) in_flight: u8,
    set_up: bool,
    /// Its predecessor has the answer of the spawn that has made it.
    answered: bool,
    /// It was given up, and is killed as soon as that answer is there.
    pub(crate) doomed: bool,
    /// It has stood still, and does not know yet.
    paused: bool,
    /// Deadlines that were over by the end of the pause.
    overdue: Vec<Timer>,
    /// The pid file is being written.
    writing: bool,
    armed: Vec<Timer>,
    hup_pending: bool,
    quit_pending: bool,
    predecessor: Option<usize>,
    pub(crate) successor: Option<usize>,
    /// The ready byte of the process after it.
    pipe: bool,
    from_successor: Vec<Word>,
    from_predecessor: Vec<Word>,
    /// Whether the end of the successor's socket was seen.
    heard_hang_up: bool,
}

/// Whether a process lives, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    Alive,
    Killed,
    Exited(u8),
    /// Dead, and everybody who had to know knows.
    Buried,
}

/// What is said on the handoff socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Word {
    Commit,
    Upgrade,
    Ping,
    Retire,
    Serving,
    Stopping,
    Pong,
    /// Sessions, a bit for each.
    Sessions(u8),
    Ack(u8),
    Nack(u8),
}

/// What happens next, and to which process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Deed {
    SendHup(usize),
    SendQuit(usize),
    Kill(usize),
    HearHup(usize),
    HearQuit(usize),
    SetUp(usize),
    FailSetUp(usize),
    ExitInSetUp(usize),
    WritePidFile(usize),
    ReadPipe(usize),
    ReadSuccessor(usize),
    ReadPredecessor(usize),
    HearHangUp(usize),
    HearSuccessorsDeath(usize),
    HearPredecessorsDeath(usize),
    Fire(usize, Timer),
    EndSession(usize, u8),
    SendSession(usize, u8),
    RefuseSession(usize),
    NoticeSessionsGone(usize),
    HearSpawn(usize),
    Pause(usize),
    HearPause(usize),
    JudgeTogether(usize),
    LetIn(usize, u8),
}

impl Process {
    fn new(machine: Machine, predecessor: Option<usize>) -> Self {
        Self {
            machine,
            life: Life::Alive,
            polls: false,
            has_listeners: true,
            serving: 0,
            in_flight: 0,
            set_up: false,
            answered: false,
            doomed: false,
            paused: false,
            overdue: Vec::new(),
            writing: false,
            armed: Vec::new(),
            hup_pending: false,
            quit_pending: false,
            predecessor,
            successor: None,
            pipe: false,
            from_successor: Vec::new(),
            from_predecessor: Vec::new(),
            heard_hang_up: false,
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.life == Life::Alive
    }

    /// Whether it hands its sessions over.
    fn moves(&self) -> bool {
        self.machine.state() == State::Draining(Drain::Proven) && self.successor.is_some()
    }

    pub(crate) fn has_timers(&self) -> bool {
        !self.armed.is_empty()
    }
}

impl World {
    /// With these sessions of the first process, and these who wait to be let in, a bit for each.
    pub(crate) fn new(rules: Rules, budget: Budget, sessions: u8, waiting: u8) -> Self {
        Self {
            processes: vec![Process { serving: sessions, ..Process::new(Machine::first(), None) }],
            pid_file: None,
            rules,
            waiting,
            budget,
            owed: false,
            stop_asked: false,
            gone: 0,
            seen: Seen::default(),
            broken: Broken::default(),
        }
    }

    pub(crate) fn alive(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(|process| process.is_alive())
    }

    /// Everything that can happen now.
    pub(crate) fn deeds(&self, deeds: &mut Vec<Deed>) {
        for (id, process) in self.processes.iter().enumerate().filter(|(_, p)| p.is_alive()) {
            let Budget { hups, stops, kills, failures, pauses } = self.budget;
            let mut may = |possible: bool, deed: Deed| {
                if possible {
                    deeds.push(deed);
                }
            };
            may(!process.answered && id > 0, Deed::HearSpawn(id));
            if process.paused {
                may(true, Deed::HearPause(id));
                continue;
            }
            let both = process.successor.filter(|other| self.processes[*other].is_alive());
            may(pauses > 0 && both.is_some(), Deed::Pause(id));
            may(self.is_overdue(id), Deed::JudgeTogether(id));
            may(hups > 0 && !process.hup_pending, Deed::SendHup(id));
            may(stops > 0 && !process.quit_pending, Deed::SendQuit(id));
            may(kills > 0, Deed::Kill(id));
            may(!process.set_up, Deed::SetUp(id));
            may(!process.set_up && id > 0 && failures > 0, Deed::FailSetUp(id));
            may(!process.set_up && id > 0 && failures > 0, Deed::ExitInSetUp(id));
            // Before its set-up is done a process has no loop: what comes for it waits.
            if !process.set_up {
                continue;
            }
            may(process.writing, Deed::WritePidFile(id));
            may(process.hup_pending, Deed::HearHup(id));
            may(process.quit_pending, Deed::HearQuit(id));
            may(process.pipe, Deed::ReadPipe(id));
            may(!process.from_successor.is_empty(), Deed::ReadSuccessor(id));
            may(!process.from_predecessor.is_empty(), Deed::ReadPredecessor(id));
            let is_dead =
                |other: Option<usize>| other.is_some_and(|other| !self.processes[other].is_alive());
            // The end of the socket comes behind what was said, and before the status or not at all.
            let silent = !process.pipe && process.from_successor.is_empty();
            let hung_up = is_dead(process.successor) && silent && !process.heard_hang_up;
            may(hung_up, Deed::HearHangUp(id));
            may(is_dead(process.successor), Deed::HearSuccessorsDeath(id));
            may(is_dead(process.predecessor), Deed::HearPredecessorsDeath(id));
            process.armed.iter().for_each(|timer| may(true, Deed::Fire(id, *timer)));
            for session in SESSIONS.into_iter().filter(|session| process.serving & session != 0) {
                may(true, Deed::EndSession(id, session));
                may(process.moves(), Deed::SendSession(id, session));
            }
            for session in SESSIONS.into_iter().filter(|session| self.waiting & session != 0) {
                may(process.polls && self.has_room(id), Deed::LetIn(id, session));
            }
            let arrived = matches!(process.from_predecessor.first(), Some(Word::Sessions(_)));
            may(arrived && failures > 0, Deed::RefuseSession(id));
            let draining = matches!(process.machine.state(), State::Draining(_));
            let none = process.serving | process.in_flight == 0;
            may(draining && none, Deed::NoticeSessionsGone(id));
        }
    }

    /// The world after a deed.
    pub(crate) fn after(mut self, deed: Deed, step: StepFn) -> Self {
        match deed {
            Deed::SendHup(id) => {
                self.budget.hups -= 1;
                self.processes[id].hup_pending = true;
            }
            Deed::SendQuit(id) => {
                self.budget.stops -= 1;
                self.processes[id].quit_pending = true;
            }
            Deed::Kill(id) => {
                self.budget.kills -= 1;
                self.die(id, Life::Killed);
            }
            Deed::HearHup(id) => {
                self.processes[id].hup_pending = false;
                self.feed(id, Event::UpgradeRequested, step);
            }
            Deed::HearQuit(id) => {
                self.processes[id].quit_pending = false;
                // Asked of the service by asking whoever serves: one that is leaving leaves, and one
                // that never began does not begin.
                let committed = State::Draining(Drain::Committed);
                let process = &self.processes[id];
                self.stop_asked |= process.polls || process.machine.state() == committed;
                self.feed(id, Event::ShutdownRequested, step);
            }
            Deed::SetUp(id) => {
                self.processes[id].set_up = true;
                self.feed(id, Event::SetUpDone, step);
            }
            Deed::FailSetUp(id) => {
                self.budget.failures -= 1;
                self.die(id, Life::Exited(1));
            }
            Deed::ExitInSetUp(id) => {
                self.budget.failures -= 1;
                self.die(id, Life::Exited(0));
            }
            Deed::WritePidFile(id) => {
                self.processes[id].writing = false;
                self.pid_file = Some(id);
                self.feed(id, Event::PidFileWritten, step);
            }
            Deed::ReadPipe(id) => self.read_pipe(id, step),
            Deed::ReadSuccessor(id) => self.read_successor(id, step),
            Deed::ReadPredecessor(id) => self.read_predecessor(id, step),
            Deed::HearHangUp(id) => {
                self.processes[id].heard_hang_up = true;
                self.feed(id, Event::SuccessorHungUp, step);
            }
            Deed::HearSuccessorsDeath(id) => self.hear_successors_death(id, step),
            Deed::HearPredecessorsDeath(id) => self.hear_predecessors_death(id, step),
            Deed::Fire(id, timer) => {
                self.processes[id].armed.retain(|armed| *armed != timer);
                self.feed(id, timer.event(), step);
            }
            Deed::EndSession(id, session) => {
                self.processes[id].serving &= !session;
                self.gone |= session;
            }
            Deed::SendSession(id, session) => self.send_session(id, session, step),
            Deed::RefuseSession(id) => {
                self.budget.failures -= 1;
                if let Word::Sessions(sessions) = self.processes[id].from_predecessor.remove(0) {
                    self.refuse(id, sessions);
                }
            }
            Deed::HearSpawn(id) => {
                self.processes[id].answered = true;
                if self.processes[id].doomed {
                    self.die(id, Life::Killed);
                }
            }
            Deed::Pause(id) => {
                self.budget.pauses -= 1;
                self.seen.paused = true;
                for id in [Some(id), self.processes[id].successor].into_iter().flatten() {
                    let process = &mut self.processes[id];
                    process.paused = true;
                    let judges = [Timer::Upgrade, Timer::Takeover, Timer::Status, Timer::Departure];
                    process.overdue =
                        process.armed.iter().copied().filter(|t| judges.contains(t)).collect();
                }
            }
            Deed::HearPause(id) => {
                self.processes[id].paused = false;
                self.feed(id, Event::StoodStill, step);
            }
            Deed::JudgeTogether(id) => self.judge_together(id, step),
            Deed::LetIn(id, session) => {
                self.waiting &= !session;
                self.processes[id].serving |= session;
                self.seen.let_in = true;
            }
            Deed::NoticeSessionsGone(id) => {
                // The server's last look for signals on its way out.
                if std::mem::take(&mut self.processes[id].hup_pending) {
                    self.feed(id, Event::UpgradeRequested, step);
                }
                if self.processes[id].is_alive() {
                    self.feed(id, Event::SessionsGone, step);
                }
            }
        }
        self.bury();
        self
    }

    /// Whether both of an upgrade have stood still for longer than they have time for each other, and
    /// have not given each other new time.
    fn is_overdue(&self, id: usize) -> bool {
        let Some(successor) = self.processes[id].successor else { return false };
        [id, successor].into_iter().all(|id| {
            let process = &self.processes[id];
            process.is_alive() && !process.paused && !process.overdue.is_empty()
        })
    }

    /// Both find their deadlines over in the same moment, on two processors: each acts on it before the
    /// other's kill has come.
    fn judge_together(&mut self, id: usize, step: StepFn) {
        let Some(successor) = self.processes[id].successor else { return };
        let mut theirs = self.clone();
        for timer in std::mem::take(&mut theirs.processes[successor].overdue) {
            theirs.processes[successor].armed.retain(|armed| *armed != timer);
            theirs.feed(successor, timer.event(), step);
        }
        for timer in std::mem::take(&mut self.processes[id].overdue) {
            self.processes[id].armed.retain(|armed| *armed != timer);
            self.feed(id, timer.event(), step);
        }
        if !theirs.processes[id].is_alive() && self.processes[id].is_alive() {
            self.die(id, Life::Killed);
        }
    }

    /// Whether a process may let somebody in: there is a place, and nobody is to come who needs it.
    fn has_room(&self, id: usize) -> bool {
        let process = &self.processes[id];
        let to_come = process.predecessor.map_or(0, |predecessor| {
            let predecessor = &self.processes[predecessor];
            predecessor.serving | predecessor.in_flight
        });
        // What it has sent is to come, whether or not it lives.
        let to_come = to_come | sessions_in(&process.from_predecessor);
        let kept = if self.rules.keeps_places { to_come } else { 0 };
        (process.serving | kept).count_ones() < CAPACITY
    }

    fn read_pipe(&mut self, id: usize, step: StepFn) {
        if std::mem::take(&mut self.processes[id].pipe) {
            self.feed(id, Event::SuccessorReady, step);
        }
    }

    fn read_successor(&mut self, id: usize, step: StepFn) {
        let committed = State::Draining(Drain::Committed);
        let word = self.processes[id].from_successor.remove(0);
        if self.hear_of_sessions(id, word) {
            let more = self.processes[id].in_flight != 0;
            let event = if more { Event::SessionsSent } else { Event::SessionsSettled };
            return self.feed(id, event, step);
        }
        let event = match word {
            Word::Serving => Event::SuccessorServing,
            Word::Stopping => {
                // Who was told to stop has served, and may not have come to say so.
                if self.processes[id].machine.state() == committed {
                    self.feed(id, Event::SuccessorServing, step);
                }
                Event::SuccessorStopped
            }
            Word::Pong => Event::SuccessorAnswered,
            Word::Upgrade => Event::SuccessorWantsUpgrade,
            Word::Commit
            | Word::Ping
            | Word::Retire
            | Word::Sessions(_)
            | Word::Ack(_)
            | Word::Nack(_) => {
                unreachable!("{word:?} from a successor")
            }
        };
        self.feed(id, event, step);
    }

    fn read_predecessor(&mut self, id: usize, step: StepFn) {
        let event = match self.processes[id].from_predecessor.remove(0) {
            Word::Commit => Event::Committed,
            Word::Upgrade => Event::UpgradeRequested,
            Word::Ping => Event::PredecessorAsked,
            Word::Retire => {
                self.seen.given_up = true;
                Event::GivenUp
            }
            Word::Sessions(sessions) => {
                if self.processes[id].machine.state() == State::Running {
                    self.processes[id].serving |= sessions;
                    self.tell_predecessor(id, Word::Ack(sessions));
                } else {
                    self.refuse(id, sessions);
                }
                return;
            }
            word @ (Word::Serving | Word::Stopping | Word::Pong | Word::Ack(_) | Word::Nack(_)) => {
                unreachable!("{word:?} from a predecessor")
            }
        };
        self.feed(id, event, step);
    }

    /// What was said before the end comes first; then the end, with its status.
    fn hear_successors_death(&mut self, id: usize, step: StepFn) {
        let Some(successor) = self.processes[id].successor else { return };
        self.read_pipe(id, step);
        while !self.processes[id].from_successor.is_empty() {
            self.read_successor(id, step);
        }
        // Its last words may have been enough to give it up, or there is another one by now.
        if self.processes[id].successor != Some(successor) || !self.processes[id].is_alive() {
            return;
        }
        // Whatever its status: who was told to stop has said so.
        self.feed(id, Event::SuccessorLost, step);
        // Reaped, whatever the machine made of it.
        if self.processes[id].successor == Some(successor) {
            self.take_back(id);
            self.processes[id].successor = None;
            self.processes[id].heard_hang_up = false;
        }
    }

    fn hear_predecessors_death(&mut self, id: usize, step: StepFn) {
        while !self.processes[id].from_predecessor.is_empty() {
            self.read_predecessor(id, step);
        }
        if !self.processes[id].is_alive() {
            return;
        }
        self.processes[id].predecessor = None;
        self.seen.sole_owner |= self.processes[id].machine.predecessor() == Predecessor::Owner;
        self.feed(id, Event::PredecessorGone, step);
    }

    fn die(&mut self, id: usize, life: Life) {
        let process = &mut self.processes[id];
        process.life = life;
        process.polls = false;
        let (served, copies) = (process.serving, process.in_flight);
        (process.serving, process.in_flight) = (0, 0);
        // What it served dies with it; what was on its way is somebody else's, or nobody's.
        self.gone |= served;
        let held = self.held();
        self.gone |= copies & !held;
        let unread = std::mem::take(&mut self.processes[id].from_predecessor);
        let held = self.held();
        self.gone |= sessions_in(&unread) & !held;
    }

    /// The sessions that some process has, or will read of.
    pub(crate) fn held(&self) -> u8 {
        self.alive().fold(0, |held, process| {
            let unread = sessions_in(&process.from_predecessor);
            held | process.serving | process.in_flight | unread
        })
    }

    fn send_session(&mut self, id: usize, session: u8, step: StepFn) {
        let process = &mut self.processes[id];
        self.broken.session_forged |= process.serving & session == 0;
        let first = process.in_flight == 0;
        process.serving &= !session;
        process.in_flight |= session;
        self.tell_successor(id, Word::Sessions(session));
        self.seen.moved = true;
        if first {
            self.feed(id, Event::SessionsSent, step);
        }
    }

    /// A dead predecessor cannot have it back.
    fn refuse(&mut self, id: usize, sessions: u8) {
        self.tell_predecessor(id, Word::Nack(sessions));
        let held = self.held();
        self.gone |= sessions & !held;
        self.seen.refused = true;
    }

    /// Answers whether it was one.
    fn hear_of_sessions(&mut self, id: usize, word: Word) -> bool {
        let process = &mut self.processes[id];
        match word {
            Word::Ack(sessions) => process.in_flight &= !sessions,
            Word::Nack(sessions) => {
                process.in_flight &= !sessions;
                process.serving |= sessions;
            }
            Word::Commit
            | Word::Upgrade
            | Word::Ping
            | Word::Retire
            | Word::Serving
            | Word::Stopping
            | Word::Pong
            | Word::Sessions(_) => return false,
        }
        true
    }

    /// The successor is dead, and everything that it has said is heard.
    fn take_back(&mut self, id: usize) {
        let process = &mut self.processes[id];
        self.seen.came_back |= process.in_flight != 0;
        process.serving |= std::mem::take(&mut process.in_flight);
    }

    /// A dead process of which nobody has to hear any more looks like any other.
    fn bury(&mut self) {
        for id in 0..self.processes.len() {
            let awaited = self
                .alive()
                .any(|other| other.successor == Some(id) || other.predecessor == Some(id));
            if !self.processes[id].is_alive() && !awaited {
                let mut grave = Process::new(Machine::first(), None);
                (grave.life, grave.has_listeners) = (Life::Buried, false);
                self.processes[id] = grave;
            }
        }
    }

    fn feed(&mut self, id: usize, event: Event, step: StepFn) {
        let mut pending = vec![event];
        while !pending.is_empty() {
            let event = pending.remove(0);
            if !self.processes[id].is_alive() {
                return;
            }
            let before = self.processes[id].machine;
            let answer = step(before, event);
            self.processes[id].machine = answer.machine;
            // What was passed on to somebody who is given up is its predecessor's still.
            let owed = self.owed;
            self.note(before, event, answer);
            if self.processes[id].doomed {
                self.owed = owed;
            }
            for action in answer.actions {
                self.perform(id, event, *action, &mut pending);
            }
            let after = answer.machine.state();
            if after == State::Exited {
                let process = &self.processes[id];
                let lawful = is_lawful_cut(event);
                let left = process.serving | process.in_flight != 0;
                self.broken.session_cut |= left && !lawful;
                let failed = matches!(event, Event::PredecessorSilent | Event::GivenUp);
                let status = u8::from(failed);
                self.die(id, Life::Exited(status));
            }
            // I6: back where it was, nothing of the attempt is there.
            if after == State::Running && before.state() != State::Running {
                let process = &self.processes[id];
                self.broken.left_over |= process.successor.is_some()
                    || process.pipe
                    || process.armed.iter().any(|timer| *timer != Timer::Pause)
                    || (self.pid_file != Some(id) && !process.writing);
            }
        }
    }

    fn note(&mut self, before: Machine, event: Event, answer: Step) {
        let after = answer.machine;
        if event == Event::UpgradeRequested && !matches!(answer.outcome, Outcome::Refused(_)) {
            self.owed = true;
            self.seen.remembered |= after.wanted() != Wanted::No;
        }
        // Of a lost successor nothing is carried out but what was asked for here.
        let lost = before.state() != State::Running && after.state() == State::Running;
        self.broken.haunted |=
            lost && before.wanted() == Wanted::BySuccessor && after.wanted() != Wanted::No;
        let proven = State::Draining(Drain::Proven);
        let becomes_proven = after.state() == proven && before.state() != proven;
        self.broken.unproven |= becomes_proven && event != Event::SuccessorAnswered;
        let end = [State::Draining(Drain::Shutdown), State::Exited];
        let from = end.iter().position(|state| *state == before.state());
        let to = end.iter().position(|state| *state == after.state());
        self.broken.undead |= from > to;
        let drained = matches!(
            before.state(),
            State::Draining(Drain::Committed | Drain::Probation | Drain::Proven)
        );
        let serves = matches!(after.state(), State::Running | State::Upgrading);
        self.seen.rollback |= drained && serves;
        self.seen.failed |= before.state() == State::Upgrading && after.state() == State::Running;
    }

    fn perform(&mut self, id: usize, event: Event, action: Action, pending: &mut Vec<Event>) {
        match action {
            Action::SpawnSuccessor => {
                self.owed = false;
                // What it was writing is written first.
                if std::mem::take(&mut self.processes[id].writing) {
                    self.pid_file = Some(id);
                }
                let fails = self.processes.len() >= PROCESSES;
                if fails {
                    pending.push(Event::SuccessorLost);
                } else {
                    let mut successor = Process::new(Machine::successor(), Some(id));
                    successor.answered = !self.rules.late_answers;
                    self.processes.push(successor);
                    self.processes[id].successor = Some(self.processes.len() - 1);
                }
            }
            Action::LookOnce => {
                if matches!(self.processes[id].machine.state(), State::Draining(_)) {
                    let words = std::mem::take(&mut self.processes[id].from_successor);
                    let mut acks = false;
                    for word in &words {
                        self.hear_of_sessions(id, *word);
                        match word {
                            Word::Serving => pending.push(Event::SuccessorServing),
                            Word::Pong => pending.push(Event::SuccessorAnswered),
                            Word::Stopping if words.contains(&Word::Serving) => {
                                pending.push(Event::SuccessorStopped);
                            }
                            Word::Stopping => {
                                pending.extend([Event::SuccessorServing, Event::SuccessorStopped]);
                            }
                            Word::Ack(_) | Word::Nack(_) => acks = true,
                            Word::Upgrade => pending.push(Event::SuccessorWantsUpgrade),
                            Word::Commit | Word::Ping | Word::Retire | Word::Sessions(_) => {}
                        }
                    }
                    let served = pending.contains(&Event::SuccessorServing);
                    if acks {
                        let more = self.processes[id].in_flight != 0;
                        pending.push(match more {
                            true => Event::SessionsSent,
                            false => Event::SessionsSettled,
                        });
                    }
                    if !served && !acks && !words.contains(&Word::Pong) {
                        pending.push(Event::SuccessorSilent);
                    }
                } else if self.processes[id].successor.is_some() {
                    let found = std::mem::take(&mut self.processes[id].pipe);
                    self.seen.last_look |= found;
                    let silent = Event::SuccessorSilent;
                    pending.push(if found { Event::SuccessorReady } else { silent });
                } else {
                    let words = std::mem::take(&mut self.processes[id].from_predecessor);
                    let committed = words.contains(&Word::Commit);
                    pending.extend(words.iter().map(|word| match word {
                        Word::Commit => Event::Committed,
                        Word::Ping => Event::PredecessorAsked,
                        Word::Retire => Event::GivenUp,
                        Word::Upgrade
                        | Word::Serving
                        | Word::Stopping
                        | Word::Pong
                        | Word::Sessions(_)
                        | Word::Ack(_)
                        | Word::Nack(_) => Event::UpgradeRequested,
                    }));
                    // A dead one is heard of in a moment.
                    let dead = self.processes[id]
                        .predecessor
                        .is_none_or(|predecessor| !self.processes[predecessor].is_alive());
                    if !committed && !dead && !words.contains(&Word::Retire) {
                        pending.push(Event::PredecessorSilent);
                    }
                }
            }
            Action::CommitUpgrade => {
                self.seen.commit = true;
                self.tell_successor(id, Word::Commit);
            }
            Action::PassOnUpgrade => self.tell_successor(id, Word::Upgrade),
            Action::TellWanted => self.tell_predecessor(id, Word::Upgrade),
            Action::AskSuccessor => self.tell_successor(id, Word::Ping),
            Action::AnswerPredecessor => self.tell_predecessor(id, Word::Pong),
            Action::KillPredecessor => {
                if let Some(predecessor) = self.processes[id].predecessor {
                    if self.processes[predecessor].is_alive() {
                        self.seen.overdue = true;
                        self.die(predecessor, Life::Killed);
                    }
                }
            }
            Action::KillSuccessor => {
                let timed_out = matches!(event, Event::UpgradeTimedOut | Event::SuccessorSilent);
                self.broken.ready_wasted |= timed_out && self.processes[id].pipe;
                if self.rules.says_why {
                    self.tell_successor(id, Word::Retire);
                }
                if let Some(successor) = self.processes[id].successor.take() {
                    let process = &mut self.processes[successor];
                    // It has said HELLO by the time that it is set up.
                    let known = process.answered || self.rules.kills_who_spoke && process.set_up;
                    process.doomed = true;
                    if process.is_alive() && known {
                        self.die(successor, Life::Killed);
                    }
                }
                self.processes[id].pipe = false;
                self.processes[id].heard_hang_up = false;
                // Its last answers are read when it is dead, and then the rest comes back.
                for word in std::mem::take(&mut self.processes[id].from_successor) {
                    self.hear_of_sessions(id, word);
                }
                self.take_back(id);
            }
            // A request that came after the spawn is not answered for by that upgrade's end.
            Action::ReportUpgrade => {}
            Action::DropWanted => self.owed &= self.processes[id].doomed,
            Action::AnnounceReady => {
                if let Some(predecessor) = self.listening_predecessor(id) {
                    self.processes[predecessor].pipe = true;
                }
            }
            Action::TellServing => self.tell_predecessor(id, Word::Serving),
            Action::TellStopping => self.tell_predecessor(id, Word::Stopping),
            Action::TakePidFile => self.processes[id].writing = true,
            Action::WritePidFile | Action::RestorePidFile => {
                self.processes[id].writing = false;
                self.pid_file = Some(id);
            }
            // What is being written is waited for.
            Action::RemovePidFile => {
                self.processes[id].writing = false;
                self.pid_file = self.pid_file.filter(|named| *named != id);
            }
            Action::ResumeAccepting => {
                self.broken.resurrected |= self.stop_asked;
                let process = &mut self.processes[id];
                process.polls = process.has_listeners;
            }
            Action::PauseAccepting => self.processes[id].polls = false,
            // Whoever waits is let in first.
            Action::CloseListeners | Action::RetireListeners | Action::DrainListeners => {
                self.processes[id].polls = false;
                self.processes[id].has_listeners = false;
            }
            Action::CloseSessions => {
                let lawful = is_lawful_cut(event);
                self.broken.session_cut |= self.processes[id].serving != 0 && !lawful;
                self.gone |= std::mem::take(&mut self.processes[id].serving);
            }
            Action::Arm(timer) => {
                self.processes[id].overdue.retain(|overdue| *overdue != timer);
                let armed = &mut self.processes[id].armed;
                if !armed.contains(&timer) {
                    armed.push(timer);
                    armed.sort_by_key(|timer| *timer as u8);
                }
            }
            Action::Disarm(timer) => {
                self.processes[id].armed.retain(|armed| *armed != timer);
                self.processes[id].overdue.retain(|overdue| *overdue != timer);
            }
            Action::DisarmAll => {
                self.processes[id].armed.clear();
                self.processes[id].overdue.clear();
            }
            Action::RenewTimers => self.processes[id].overdue.clear(),
            Action::CloseUnclaimed
            | Action::ClosePanicked
            | Action::UnlinkUnclaimed
            | Action::DrainSessions
            | Action::MoveSessions => {}
        }
    }

    fn tell_successor(&mut self, id: usize, word: Word) {
        if let Some(successor) = self.processes[id].successor {
            if self.processes[successor].is_alive() {
                self.processes[successor].from_predecessor.push(word);
            }
        }
    }

    fn tell_predecessor(&mut self, id: usize, word: Word) {
        if let Some(predecessor) = self.listening_predecessor(id) {
            self.processes[predecessor].from_successor.push(word);
        }
    }

    /// The process before this one, if it lives and has not closed their pipe and socket.
    fn listening_predecessor(&self, id: usize) -> Option<usize> {
        let predecessor = self.processes[id].predecessor?;
        let process = &self.processes[predecessor];
        (process.is_alive() && process.successor == Some(id)).then_some(predecessor)
    }
}

/// Whether sessions may be closed by what has happened: their time was over, somebody has asked for the
/// end, or their predecessor has taken the service back.
fn is_lawful_cut(event: Event) -> bool {
    matches!(event, Event::DrainTimedOut | Event::ExitRequested | Event::GivenUp)
}

/// The sessions that words bring.
fn sessions_in(words: &[Word]) -> u8 {
    words.iter().fold(0, |found, word| match *word {
        Word::Sessions(sessions) => found | sessions,
        Word::Commit
        | Word::Upgrade
        | Word::Ping
        | Word::Retire
        | Word::Serving
        | Word::Stopping
        | Word::Pong
        | Word::Ack(_)
        | Word::Nack(_) => found,
    })
}
