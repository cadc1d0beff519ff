//! One cell of the matrix, from the first process to the upgrade after the one that was disturbed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::expected::{Cell, Expected, Fault, Outcome, Released, WITHOUT_SESSIONS};
use crate::harness::{
    Actor, PATIENCE, Start, children_of, is_alive, kinds_of_descriptors, limit_descriptors, pid_of,
    place, state_of, until,
};
use crate::load::Load;

/// Long enough for a machine that stalls, short enough to be waited for in the cells in which a
/// process stands still.
#[rustfmt::skip]
const DEADLINES: [&str; 8] = [
    "--upgrade-ms", "2500", "--takeover-ms", "1000", "--probation-ms", "100", "--drain-ms", "2500",
];

/// Longer than a predecessor stays after its commit, and the successor waits on top of that.
const BEYOND_EVERY_DEADLINE: Duration = Duration::from_millis(6000);

/// Sessions move; of two that arrive, the second is refused, as often as it comes.
const MOVING: [&str; 4] = ["--schema", "1", "--take", "1"];

/// The clients whose connections are short.
const CLIENTS: usize = 2;

/// What came of it. Panics where a promise is broken.
pub(crate) fn play(cell: Cell) -> Outcome {
    let disk = Disk::for_a(cell.fault);
    let args = ["--pid-file", &disk.path_of("pid")];
    let moving: &[&str] = if cell.row.moves { &MOVING } else { &[] };
    // The house is full as soon as every client is there (I8).
    let places = (CLIENTS + 1 + usize::from(cell.row.moves)).to_string();
    let full = ["--max-sessions", &places];
    let start = Start::actor().args(&DEADLINES).args(&args).args(moving).args(&full);
    let mut actor = start.faults().serve();
    let first = actor.pid();
    let mut clients = Clients::of(&mut actor, cell.row.moves);
    let bare = clients.bare.clone();

    let deeds = cell.deeds(&disk.path());
    let deeds: Vec<_> = deeds.iter().map(|(point, deed)| (*point, deed.as_str())).collect();
    actor.faults(&deeds);
    actor.signal(first, Signal::SIGHUP);
    let (outcome, victim) = Story::of(cell, &mut actor, &mut clients).follow();

    // The fault is taken away; what it has led to is there to stay.
    match cell.fault {
        Fault::NoDescriptors if is_alive(victim) => {
            // As many as the next two processes may need.
            limit_descriptors(victim, 1024);
        }
        Fault::FullDisk | Fault::KilledOnFullDisk => {
            fs::remove_file(disk.path_of("filler")).expect("removed");
        }
        Fault::NoDescriptors
        | Fault::Killed
        | Fault::Stopped
        | Fault::StoppedForLong
        | Fault::ExitsWith0
        | Fault::ExitsWith1
        | Fault::Garbage
        | Fault::NoMemory
        | Fault::OtherProtocol
        | Fault::ToldToStop
        | Fault::BothStopped => {}
    }

    let survivor = match outcome {
        Outcome::StartedAgain | Outcome::Ended => None,
        Outcome::Failed | Outcome::RolledBack => Some((first, 0)),
        Outcome::Committed | Outcome::SoleOwner => Some((actor.who().0, 1)),
    };
    if let Some((pid, generation)) = survivor {
        assert_eq!(actor.who(), (pid, generation), "a process serves");
    }
    clients.end();
    clients.judge(cell.expected, outcome, first == victim);
    clients.judge_moving(cell.expected, survivor.map(|(pid, _)| pid));
    expect_words(&mut actor, cell, outcome);
    match survivor {
        Some((pid, _)) => {
            assert_eq!(pid == first, matches!(outcome, Outcome::Failed | Outcome::RolledBack));
            if pid != first {
                let orderly = actor.first_exits().success();
                assert!(orderly || victim == first, "the predecessor has left in order");
            }
            if outcome == Outcome::SoleOwner {
                // It is written beside the loop, and there is nobody to be told.
                let named = || fs::read_to_string(disk.path_of("pid")).ok();
                until("the pid file names it", || named() == Some(format!("{pid}\n")));
            }
            expect_clean(&mut actor, pid, &bare, &disk);
            let next = actor.upgrade();
            expect_clean(&mut actor, next, &bare, &disk);
        }
        None => {
            actor.first_exits();
            // The last line is said a moment before the end.
            until("nobody is left", || actor.alive().is_empty());
            start_again(&mut actor, &disk, &bare);
        }
    }
    outcome
}

/// One process, no zombie, the descriptors of a process that is by itself, the right pid file and
/// nothing beside it.
fn expect_clean(actor: &mut Actor, pid: u32, bare: &[String], disk: &Disk) {
    until("nobody else is there", || actor.alive() == [pid]);
    until("no child is left, dead or alive", || children_of(pid).is_empty());
    let mut found = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while found != bare {
        assert!(Instant::now() < deadline, "descriptors {found:?} instead of {bare:?}");
        thread::sleep(Duration::from_millis(1));
        found = kinds_of_descriptors(pid);
    }
    let said = || fs::read_to_string(disk.path_of("pid")).expect("a pid file");
    until("the pid file names it", || said() == format!("{pid}\n"));
    let found = || fs::read_dir(disk.path()).expect("a directory").count();
    until("nothing is beside the pid file", || found() == 1);
}

/// What a supervisor would do: the same program with the same arguments.
fn start_again(actor: &mut Actor, disk: &Disk, bare: &[String]) {
    let listen = format!("main={}", actor.address());
    let args = ["--listen", &listen, "--pid-file", &disk.path_of("pid")];
    let mut again = Start::program("actor").args(&args).serve();
    assert_eq!(again.who(), (again.pid(), 0));
    let pid = again.pid();
    expect_clean(&mut again, pid, bare, disk);
}

fn expect_words(actor: &mut Actor, cell: Cell, outcome: Outcome) {
    let (what, causes) = cell.words(outcome);
    let lines: Vec<_> = actor.log.iter().filter(|line| line.contains(what)).collect();
    assert!(!lines.is_empty(), "no line says {what:?}");
    let known = lines.iter().any(|line| causes.iter().any(|cause| line.contains(cause)));
    assert!(known, "none of {causes:?} in {lines:?}");
}

/// What happens, line by line of the log.
struct Story<'a> {
    cell: Cell,
    actor: &'a mut Actor,
    clients: &'a mut Clients,
    /// Whom the fault has struck.
    victim: Option<u32>,
    /// Whether that is stopped, and to be continued by somebody.
    stands_still: bool,
    /// The predecessor has left, or was about to.
    left: bool,
    /// The fault has done what it does.
    struck: bool,
    /// The predecessor only ends what it has.
    parting: bool,
    /// The predecessor has gone back to `Running`.
    back: bool,
}

impl<'a> Story<'a> {
    fn of(cell: Cell, actor: &'a mut Actor, clients: &'a mut Clients) -> Self {
        let (victim, stands_still, left, back) = (None, false, false, false);
        // Or it will be, when there is no session any more.
        let struck = WITHOUT_SESSIONS.contains(&cell.row.point);
        Self { cell, actor, clients, victim, stands_still, left, struck, parting: false, back }
    }

    /// To its end: how it came out, and who was struck.
    fn follow(mut self) -> (Outcome, u32) {
        let deadline = Instant::now() + PATIENCE;
        let outcome = loop {
            let line = match self.actor.next_line(deadline) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => panic!("it comes to no end"),
                // Nobody is left who could say anything.
                Err(RecvTimeoutError::Disconnected) => {
                    let told =
                        self.actor.log.iter().any(|line| line.contains("finish the process"));
                    break if told { Outcome::Ended } else { Outcome::StartedAgain };
                }
            };
            self.hear(&line);
            // What was asked for comes to its own end.
            if line.contains("failed in") && !line.contains("this process was told to stop") {
                break if self.back { Outcome::RolledBack } else { Outcome::Failed };
            }
            let is_over = self.cell.fault == Fault::ToldToStop && !self.cell.of_predecessor;
            if line.contains("] ") && line.ends_with(" alone") && !is_over {
                break if self.left { Outcome::Committed } else { Outcome::SoleOwner };
            }
        };
        (outcome, self.victim.expect("the point was come to"))
    }

    fn hear(&mut self, line: &str) {
        let point = self.cell.row.point;
        if line.contains(&format!("fault at {point:?}: ")) {
            self.strike(line);
        }
        if let Released::BySaying(words) = self.cell.row.released {
            if self.stands_still && line.contains(words) {
                self.release();
            }
        }
        self.struck |= match self.predecessor_is_to_hear() {
            true => line.contains("-> Draining (shutdown)"),
            false => line.contains(&format!("struck at {point:?}")),
        };
        let shuts_down = line.contains("(shutdown)");
        self.parting |= line.contains("-> Draining (proven)") || shuts_down;
        self.left |= line.contains("Draining -> Exited");
        self.back |= line.contains("Draining -> Running");
        // What the predecessor still serves keeps it from leaving; so that a fault that strikes
        // while it is there does not race with its end.
        if self.struck && self.parting {
            self.clients.staying.end();
        }
        // Whom nobody takes over, it serves as well.
        if shuts_down {
            self.clients.end_moving();
        }
    }

    fn strike(&mut self, line: &str) {
        let victim = pid_of(line).expect("a process id");
        assert_eq!(victim == self.actor.pid(), self.cell.of_predecessor, "{line}");
        self.victim = Some(victim);
        self.stands_still =
            matches!(self.cell.fault, Fault::Stopped | Fault::StoppedForLong | Fault::BothStopped);
        match self.cell.fault {
            Fault::Stopped => self.release(),
            Fault::BothStopped => self.pause_both(victim),
            Fault::Killed
            | Fault::StoppedForLong
            | Fault::ExitsWith0
            | Fault::ExitsWith1
            | Fault::Garbage
            | Fault::NoDescriptors
            | Fault::NoMemory
            | Fault::FullDisk
            | Fault::KilledOnFullDisk
            | Fault::OtherProtocol
            | Fault::ToldToStop => {}
        }
        // Who stands still does not say that it was struck.
        self.struck |= self.stands_still;
    }

    /// The death of a successor, or its nonsense, is heard of by a predecessor that is still there;
    /// and it is there as long as it has a session.
    fn predecessor_is_to_hear(&self) -> bool {
        let heard = self.cell.is_deadly() || self.cell.fault == Fault::Garbage;
        heard && !self.cell.of_predecessor
    }

    /// Stops the other one, too, and has both go on when every deadline is over.
    fn pause_both(&mut self, victim: u32) {
        let first = self.actor.pid();
        let successor = || children_of(first).first().map(|(child, _)| *child);
        let other = if victim == first { successor() } else { Some(first) };
        until("it stands still", || state_of(victim) == Some('T'));
        // One that leaves may be gone by now.
        let both = [Some(victim), other.filter(|other| is_alive(*other))];
        let both: Vec<_> = both.into_iter().flatten().collect();
        for pid in &both {
            self.actor.signal(*pid, Signal::SIGSTOP);
            until("both stand still", || state_of(*pid) == Some('T'));
        }
        thread::sleep(BEYOND_EVERY_DEADLINE);
        both.iter().for_each(|pid| self.actor.signal(*pid, Signal::SIGCONT));
        self.stands_still = false;
    }

    fn release(&mut self) {
        let victim = self.victim.expect("it was stopped before");
        until("it stands still", || state_of(victim) == Some('T'));
        self.actor.signal(victim, Signal::SIGCONT);
        self.stands_still = false;
    }
}

/// Everybody who is connected, or tries to be.
struct Clients {
    short: Load,
    /// Where sessions move: the one that the successor takes.
    moving: Option<Load>,
    /// The one that stays with the predecessor.
    staying: Load,
    /// The first process.
    first: u32,
    /// The descriptors that it has without them.
    bare: Vec<String>,
}

impl Clients {
    fn of(actor: &mut Actor, moves: bool) -> Self {
        let (first, address) = (actor.pid(), actor.address());
        // They arrive in the order in which they have come.
        let served = |load: Load| {
            until("it is served", || load.so_far().answered_by == [first]);
            load
        };
        let moving = moves.then(|| served(Load::of_a_long_session(&address)));
        let staying = served(Load::of_a_long_session(&address));
        // It serves, so that its set-up is over, the pid file's included.
        let mut bare = kinds_of_descriptors(first);
        for _ in 0..1 + usize::from(moves) {
            let session = bare.iter().position(|kind| kind == "socket");
            bare.remove(session.expect("a session is a socket"));
        }
        let short = served(Load::of_short_connections(&address, CLIENTS));
        Self { short, moving, staying, first, bare }
    }

    fn end_moving(&mut self) {
        if let Some(moving) = &mut self.moving {
            moving.end();
        }
    }

    fn end(&mut self) {
        self.end_moving();
        self.staying.end();
        self.short.end();
    }

    /// No connection is dropped, save those that died with their own process.
    fn judge(&self, expected: Expected, outcome: Outcome, predecessor_died: bool) {
        let (short, staying) = (self.short.so_far(), self.staying.so_far());
        assert!(short.strange.is_empty() && staying.strange.is_empty(), "{short:?}, {staying:?}");
        assert_eq!(staying.answered_by, [self.first], "a session stays where it is");
        let losing = matches!(expected, Expected::Losing(_) | Expected::LosingMoved(_));
        let gone = matches!(outcome, Outcome::StartedAgain | Outcome::Ended);
        let most = match (losing, gone) {
            (false, _) => (0, 0),
            (true, false) => (CLIENTS, usize::from(predecessor_died)),
            // Those who came again, into the queue of a listener that somebody still held for a
            // moment, are dropped with it.
            (true, true) => (2 * CLIENTS, usize::from(predecessor_died)),
        };
        let found = (short.broken, staying.broken);
        assert!(found.0 <= most.0 && found.1 <= most.1, "dropped {found:?}, at most {most:?}");
        assert!(gone || short.refused == 0, "refused: {short:?}");
    }

    /// A session that moves is served by one process after the other, or by the first again if it
    /// comes back; and it is lost only with a process that had acknowledged it.
    fn judge_moving(&self, expected: Expected, survivor: Option<u32>) {
        let Some(moving) = self.moving.as_ref().map(Load::so_far) else { return };
        assert!(moving.strange.is_empty(), "{moving:?}");
        if matches!(expected, Expected::LosingMoved(_)) && moving.broken > 0 {
            let owners = &moving.answered_by;
            assert!(owners.first() == Some(&self.first) && owners.len() <= 2, "{moving:?}");
            return;
        }
        assert_eq!(moving.broken, 0, "a session is lost on its way: {moving:?}");
        let owners = &moving.answered_by;
        if survivor.is_none() && owners.len() == 2 && owners.first() == Some(&self.first) {
            // It has moved, and then both have ended.
            return;
        }
        let second = survivor.filter(|pid| *pid != self.first);
        let owners: Vec<_> = [self.first].into_iter().chain(second).collect();
        assert_eq!(moving.answered_by, owners, "a session that moves");
    }
}

/// Where the pid file is: a directory, or where it is to be filled, a very small disk.
struct Disk {
    place: TempDir,
    mounted: bool,
}

impl Disk {
    fn for_a(fault: Fault) -> Self {
        let mut disk = Self { place: place(), mounted: false };
        if matches!(fault, Fault::FullDisk | Fault::KilledOnFullDisk) {
            let args = ["-t", "tmpfs", "-o", "size=64k", "tablecloth", &disk.path()];
            let mounted = Command::new("mount").args(args).status().expect("mount starts");
            assert!(mounted.success(), "to mount a disk takes root");
            disk.mounted = true;
        }
        disk
    }

    fn path(&self) -> String {
        self.place.path().to_str().expect("text").into()
    }

    fn path_of(&self, name: &str) -> String {
        let path: PathBuf = self.place.path().join(name);
        path.to_str().expect("text").into()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(self.place.path()).status();
        }
    }
}
