//! Ring three: the small first process, and what becomes of it with a server below it.
//!
//! What is said is said by a service of the tests (`tests/init/speaker.rs`), word by word; what a server does is
//! done by the demo.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Actor, PATIENCE, Start, children_of, example, is_alive, place, state_of, until};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// An init with a service that does what the test says.
struct Stage {
    init: Child,
    control: UnixListener,
    place: tempfile::TempDir,
}

/// A process of that service. It ends when the test has forgotten it.
struct Player {
    pid: u32,
    /// 0 if it is the only one.
    worker: u32,
    control: BufReader<UnixStream>,
    /// Signals that it has reported while something else was awaited.
    signals: VecDeque<String>,
}

impl Stage {
    fn new(manager: Option<&str>) -> (Self, Player) {
        let (stage, mut players) = Self::of(1, manager);
        (stage, players.remove(0))
    }

    /// That many workers.
    fn of(workers: usize, manager: Option<&str>) -> (Self, Vec<Player>) {
        let stage = Self::with(place(), &workers.to_string(), manager);
        let mut players: Vec<_> = (0..workers).map(|_| stage.player()).collect();
        players.sort_by_key(|player| player.worker);
        (stage, players)
    }

    /// As many workers as that says, or the file of that path.
    fn with(place: tempfile::TempDir, workers: &str, manager: Option<&str>) -> Self {
        let path = place.path().join("control");
        let control = UnixListener::bind(&path).expect("bound");
        let mut command = Command::new(example("speaker"));
        command.arg(&path).env("SPEAKERS", workers).stdin(Stdio::null());
        match manager {
            Some(name) => command.env("NOTIFY_SOCKET", name),
            None => command.env_remove("NOTIFY_SOCKET"),
        };
        let init = command.spawn().expect("it starts");
        Self { init, control, place }
    }

    fn pid(&self) -> u32 {
        self.init.id()
    }

    /// The next process that comes.
    fn player(&self) -> Player {
        let mut fds = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).expect("a time");
        assert_eq!(poll(&mut fds, patience), Ok(1), "nobody comes");
        let (stream, _) = self.control.accept().expect("accepted");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut player =
            Player { pid: 0, worker: 0, control: BufReader::new(stream), signals: VecDeque::new() };
        let said = player.line();
        let (pid, worker) = said.split_once(' ').expect("two numbers");
        player.pid = pid.parse().expect("a process id");
        player.worker = worker.parse().expect("a number");
        player
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).expect("it is there");
    }

    /// Which code it ends with.
    fn ends(mut self) -> i32 {
        let status = ends(&mut self.init);
        status.code().unwrap_or_else(|| panic!("{status:?}"))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.init.try_wait().is_ok_and(|status| status.is_none()) {
            for (pid, _) in children_of(self.pid()) {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
            let _ = self.init.kill();
            let _ = self.init.wait();
        }
    }
}

/// Whether all threads of a process have ended: before that it is a zombie that can still be signalled.
fn is_quite_dead(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    !is_alive(pid) && tasks <= 1
}

fn ends(process: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.try_wait().expect("it is our child") {
            return status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        thread::sleep(Duration::from_millis(2));
    }
}

impl Player {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.control.read_line(&mut line).expect("a line");
        line.trim_end().into()
    }

    fn order(&mut self, line: &str) {
        writeln!(self.control.get_mut(), "{line}").expect("ordered");
    }

    fn ask(&mut self, line: &str, answer: &str) {
        self.order(line);
        let mut said = self.line();
        while said.starts_with("signal ") {
            self.signals.push_back(said);
            said = self.line();
        }
        assert_eq!(said, answer);
    }

    /// Says something to its manager, and waits until that has been dealt with.
    fn say(&mut self, words: &str) {
        self.ask(&format!("say {words}"), "said");
        self.ask("barrier", "settled");
    }

    fn hears(&mut self, signal: Signal) {
        let said = self.signals.pop_front().unwrap_or_else(|| self.line());
        assert_eq!(said, format!("signal {}", signal as i32));
    }

    fn killed(&self) {
        kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL).expect("it is there");
    }

    /// Has it spawn a successor.
    fn successor(&mut self, stage: &Stage) -> Player {
        self.order("spawn");
        stage.player()
    }

    /// One upgrade, as a server says it.
    fn upgrade(&mut self, stage: &Stage) -> Player {
        self.say("RELOADING=1|MONOTONIC_USEC=1");
        let successor = self.successor(stage);
        self.say(&format!("MAINPID={}", successor.pid));
        self.say("READY=1");
        successor
    }
}

#[test]
fn it_ends_with_the_status_of_its_server() {
    for (end, code) in [("exit 0", 0), ("exit 3", 3), ("exit 255", 255)] {
        let (stage, mut server) = Stage::new(None);
        server.say("READY=1");
        server.order(end);
        assert_eq!(stage.ends(), code);
    }
    for (signal, code) in [(Signal::SIGKILL, 137), (Signal::SIGABRT, 134)] {
        let (stage, mut server) = Stage::new(None);
        server.say("READY=1");
        kill(Pid::from_raw(server.pid as i32), signal).expect("it is there");
        assert_eq!(stage.ends(), code);
    }
    // By a signal that has no name.
    let (stage, server) = Stage::new(None);
    let real_time = nix::libc::SIGRTMIN() + 3;
    let pid = rustix::process::Pid::from_raw(server.pid as i32).expect("a process id");
    let sent = Command::new("kill").args([&format!("-{real_time}"), &pid.to_string()]).status();
    assert!(sent.expect("kill starts").success());
    assert_eq!(stage.ends(), 128 + real_time);
}

#[test]
fn signals_go_to_whoever_serves_and_to_the_predecessor_again_after_a_rollback() {
    let (stage, mut first) = Stage::new(None);
    let all = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
    ];
    // Before the first word there is one process that can be meant.
    for signal in all {
        stage.signal(signal);
        first.hears(signal);
    }
    first.say("READY=1");
    let mut second = first.upgrade(&stage);
    // Whoever was told to stop before is not, but its successor is.
    second.hears(Signal::SIGTERM);
    for signal in all {
        stage.signal(signal);
        second.hears(signal);
    }
    first.say(&format!("MAINPID={}", first.pid));
    first.hears(Signal::SIGTERM);
    stage.signal(Signal::SIGHUP);
    first.hears(Signal::SIGHUP);
    second.order("exit 0");
    stage.signal(Signal::SIGUSR1);
    first.hears(Signal::SIGUSR1);
    first.order("exit 5");
    assert_eq!(stage.ends(), 5);
}

#[test]
fn a_successor_that_dies_is_rolled_back_and_the_init_stays() {
    let (stage, mut first) = Stage::new(None);
    first.say("READY=1");
    let second = first.upgrade(&stage);
    second.killed();
    until("it is dead", || is_quite_dead(second.pid));
    // Nobody has said that yet; but whoever takes over is meant.
    stage.signal(Signal::SIGHUP);
    first.hears(Signal::SIGHUP);
    first.say(&format!("MAINPID={}|READY=1", first.pid));
    let mut third = first.upgrade(&stage);
    first.order("exit 0");
    until("its orphan is adopted", || children_of(stage.pid()).iter().any(|it| it.0 == third.pid));
    stage.signal(Signal::SIGTERM);
    third.hears(Signal::SIGTERM);
    third.order("exit 4");
    assert_eq!(stage.ends(), 4);
}

#[test]
fn it_waits_for_a_predecessor_that_still_has_sessions_and_ends_with_the_last_server_s_status() {
    let (stage, mut first) = Stage::new(None);
    first.say("READY=1");
    let mut second = first.upgrade(&stage);
    // It is the predecessor's child, and has no other parent yet.
    second.order("exit 9");
    until("it has ended", || is_quite_dead(second.pid));
    stage.signal(Signal::SIGUSR1);
    first.hears(Signal::SIGUSR1);
    // It has never served again. Its child's status comes to the init with the child.
    first.order("exit 0");
    assert_eq!(stage.ends(), 9);
}

#[test]
fn a_server_that_is_killed_in_an_upgrade_leaves_the_service_to_its_successor() {
    let (stage, mut first) = Stage::new(None);
    first.say("READY=1");
    first.say("RELOADING=1|MONOTONIC_USEC=1");
    let mut second = first.successor(&stage);
    first.killed();
    until("it is reaped", || state_of(first.pid).is_none());
    second.say("READY=1");
    stage.signal(Signal::SIGHUP);
    second.hears(Signal::SIGHUP);
    second.order("exit 6");
    assert_eq!(stage.ends(), 6);
}

#[test]
fn a_server_that_is_killed_when_nobody_can_take_over_ends_it_whatever_else_it_has_left() {
    let (stage, mut first) = Stage::new(None);
    first.say("READY=1");
    let second = first.upgrade(&stage);
    first.order("exit 0");
    until("it is reaped", || state_of(first.pid).is_none());
    let mut second = second;
    let elsewhere = place();
    let mark = elsewhere.path().join("mark");
    let mark = mark.to_str().expect("text").to_owned();
    let script = format!(
        "trap 'echo told > {mark}; exit' TERM; echo > {mark}; while :; do sleep 0.01; done"
    );
    second.ask(&format!("orphan {script}"), "born");
    until("the orphan is there", || fs::metadata(&mark).is_ok());
    second.killed();
    // As a subreaper it tells the rest to end, and waits.
    assert_eq!(stage.ends(), 137);
    assert_eq!(fs::read_to_string(&mark).expect("text"), "told\n");
}

#[test]
fn what_does_not_end_is_killed_at_the_next_request_to_stop() {
    let (stage, mut server) = Stage::new(None);
    server.say("READY=1");
    let pid_file = stage.place.path().join("orphan");
    let script = format!(
        "trap '' TERM; sh -c 'echo $PPID' > {0}.new; mv {0}.new {0}; while :; do sleep 0.01; done",
        pid_file.display(),
    );
    server.ask(&format!("orphan {script}"), "born");
    until("the orphan is there", || pid_file.exists());
    let orphan = fs::read_to_string(&pid_file).expect("text").trim().parse().expect("a number");
    server.order("exit 0");
    until("the server is reaped", || state_of(server.pid).is_none());
    assert!(is_alive(orphan));
    stage.signal(Signal::SIGTERM);
    assert_eq!(stage.ends(), 0);
    assert!(!is_alive(orphan));
}

#[test]
fn every_orphan_is_reaped() {
    let (stage, mut server) = Stage::new(None);
    server.say("READY=1");
    for _ in 0..50 {
        server.ask("orphan :", "born");
        server.ask("orphan kill -9 $$", "born");
    }
    until("the server is the only child", || {
        children_of(stage.pid()).iter().all(|(pid, _)| *pid == server.pid)
    });
    server.order("exit 0");
    assert_eq!(stage.ends(), 0);
}

/// An outer manager.
fn manager() -> (UnixDatagram, String) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("tablecloth-test-{}-{number}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let socket = UnixDatagram::bind_addr(&address).expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    (socket, format!("@{name}"))
}

/// The next words that are not about how the workers stand.
fn hears_but_status(manager: &UnixDatagram) -> String {
    loop {
        let words = hears(manager);
        if !words.starts_with("STATUS=worker 1 ") {
            return words;
        }
    }
}

fn hears(manager: &UnixDatagram) -> String {
    let mut datagram = [0; 4096];
    let length = manager.recv(&mut datagram).expect("words");
    String::from_utf8_lossy(&datagram[..length]).into()
}

#[test]
fn an_outer_manager_hears_everything_but_who_serves() {
    let (manager, name) = manager();
    let (stage, mut first) = Stage::new(Some(&name));
    first.say("READY=1|STATUS=generation 0");
    // The barrier was answered when this was passed on, and not before.
    manager.set_nonblocking(true).expect("set");
    assert_eq!(hears(&manager), "READY=1\nSTATUS=generation 0\n");
    let second = first.upgrade(&stage);
    assert_eq!(hears(&manager), "RELOADING=1\nMONOTONIC_USEC=1\n");
    assert_eq!(hears(&manager), "READY=1\n");
    let mut second = second;
    second.say(&format!("MAINPID={}|STOPPING=1", second.pid));
    assert_eq!(hears(&manager), "STOPPING=1\n");
    // More than a manager takes that does not read: nobody waits for it, and the rest comes later.
    for number in 0..40 {
        second.ask(&format!("say STATUS={number}"), "said");
    }
    second.ask("barrier", "settled");
    manager.set_nonblocking(false).expect("set");
    for number in 0..40 {
        assert_eq!(hears(&manager), format!("STATUS={number}\n"));
    }
}

#[test]
fn words_of_a_stranger_do_not_count() {
    let (manager, name) = manager();
    let (stage, mut server) = Stage::new(Some(&name));
    let environment = fs::read(format!("/proc/{}/environ", server.pid)).expect("readable");
    let own =
        environment.split(|byte| *byte == 0).find_map(|it| it.strip_prefix(b"NOTIFY_SOCKET=@"));
    let address = SocketAddr::from_abstract_name(own.expect("a socket")).expect("a name");
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.connect_addr(&address).expect("connected");
    let own = format!("MAINPID={}\nREADY=1\nSTATUS=a stranger", std::process::id());
    for words in [own.as_bytes(), b"", &[b'x'; 10_000]] {
        socket.send(words).expect("said");
    }
    server.say("READY=1");
    assert_eq!(hears(&manager), "READY=1\n");
    // Nor does a process become the server that is no descendant, whoever says so.
    server.say(&format!("MAINPID={}", std::process::id()));
    server.say("MAINPID=1");
    stage.signal(Signal::SIGUSR1);
    server.hears(Signal::SIGUSR1);
    // A descendant's words count when there is an upgrade, and not otherwise.
    let mut child = server.successor(&stage);
    child.say(&format!("MAINPID={}|READY=1", child.pid));
    stage.signal(Signal::SIGUSR2);
    server.hears(Signal::SIGUSR2);
    child.order("exit 0");
    server.order("exit 0");
    assert_eq!(stage.ends(), 0);
}

/// One system call, in which it waits without a time limit, and no turn.
#[test]
fn it_has_one_thread_and_sleeps_while_nothing_happens() {
    let (stage, mut server) = Stage::new(None);
    server.say("READY=1");
    let sleeps = || state_of(stage.pid()) == Some('S');
    until("it sleeps", sleeps);
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{}/status", stage.pid())).expect("there");
        assert!(status.contains("Threads:\t1\n"), "{status}");
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
        line.expect("counted").to_owned()
    };
    let before = switches();
    let syscall = fs::read_to_string(format!("/proc/{}/syscall", stage.pid()));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(switches(), before);
    if let Ok(syscall) = syscall {
        // poll(2) and its third argument, or ppoll(2) and its own.
        let arguments: Vec<_> = syscall.split(' ').collect();
        let for_ever = match arguments[0] {
            "7" => arguments[3] == "0xffffffff" || arguments[3] == "0xffffffffffffffff",
            "271" => arguments[3] == "0x0",
            _ => false,
        };
        assert!(for_ever, "{syscall}");
    }
    server.order("exit 0");
    assert_eq!(stage.ends(), 0);
}

/// What a worker does when it is asked for an upgrade.
fn replaced(worker: &mut Player, stage: &Stage) -> Player {
    worker.hears(Signal::SIGHUP);
    worker.upgrade(stage)
}

#[test]
fn workers_are_upgraded_one_after_another_and_stopped_together() {
    let (manager, name) = manager();
    let (stage, mut workers) = Stage::of(3, Some(&name));
    let numbers: Vec<_> = workers.iter().map(|worker| worker.worker).collect();
    assert_eq!(numbers, [1, 2, 3]);
    // The manager hears of it when all of them are ready.
    workers.iter_mut().for_each(|worker| worker.say("READY=1|STATUS=here"));
    assert_eq!(hears_but_status(&manager), "READY=1");
    // And of their lives when all of them live.
    workers.iter_mut().for_each(|worker| worker.say("WATCHDOG=1"));
    assert_eq!(hears_but_status(&manager), "WATCHDOG=1");
    stage.signal(Signal::SIGHUP);
    // A worker is only asked when the one before it is done.
    for worker in &mut workers {
        let successor = replaced(worker, &stage);
        assert_eq!(successor.worker, worker.worker);
        worker.order("exit 0");
        *worker = successor;
    }
    assert_eq!(hears_but_status(&manager), "RELOADING=1\nMONOTONIC_USEC=1\n");
    assert_eq!(hears_but_status(&manager), "READY=1");
    // The next one is asked for while one is under way, and comes after it.
    stage.signal(Signal::SIGHUP);
    workers[0].hears(Signal::SIGHUP);
    workers[0].say("RELOADING=1|MONOTONIC_USEC=1");
    stage.signal(Signal::SIGHUP);
    stage.signal(Signal::SIGUSR1);
    for worker in &mut workers {
        worker.hears(Signal::SIGUSR1);
    }
    let successor = workers[0].successor(&stage);
    workers[0].say(&format!("MAINPID={}", successor.pid));
    workers[0].say("READY=1");
    workers[0].order("exit 0");
    workers[0] = successor;
    let upgraded = |worker: &mut Player| {
        let successor = replaced(worker, &stage);
        worker.order("exit 0");
        *worker = successor;
    };
    workers[1..].iter_mut().for_each(upgraded);
    workers.iter_mut().for_each(upgraded);
    stage.signal(Signal::SIGTERM);
    for (status, worker) in [0, 7, 3].iter().zip(&mut workers) {
        worker.hears(Signal::SIGTERM);
        worker.order(&format!("exit {status}"));
    }
    assert_eq!(stage.ends(), 7);
}

#[test]
fn the_first_worker_whose_upgrade_fails_stops_the_rest() {
    let (stage, mut workers) = Stage::of(3, None);
    workers.iter_mut().for_each(|worker| worker.say("READY=1"));
    stage.signal(Signal::SIGHUP);
    let mut first = replaced(&mut workers[0], &stage);
    // As long as the old one is there it may serve again.
    stage.signal(Signal::SIGUSR1);
    first.hears(Signal::SIGUSR1);
    workers[1].hears(Signal::SIGUSR1);
    workers[2].hears(Signal::SIGUSR1);
    workers[0].order("exit 0");
    workers[1].hears(Signal::SIGHUP);
    workers[1].say("RELOADING=1|MONOTONIC_USEC=1");
    // Its successor was not ready, or was rolled back.
    let own = format!("MAINPID={}", workers[1].pid);
    workers[1].say(&own);
    workers[1].say("READY=1");
    stage.signal(Signal::SIGUSR2);
    // Nobody has heard anything else.
    first.hears(Signal::SIGUSR2);
    workers[1].hears(Signal::SIGUSR2);
    workers[2].hears(Signal::SIGUSR2);
    // A later one begins with the first worker again.
    stage.signal(Signal::SIGHUP);
    first.hears(Signal::SIGHUP);
    first.say("RELOADING=1|MONOTONIC_USEC=1");
    first.say("READY=1");
    stage.signal(Signal::SIGUSR2);
    workers[1].hears(Signal::SIGUSR2);
}

/// The kernel has to know them in order, and one that leaves must not be the one that others are sent to.
#[test]
fn workers_come_and_go_one_after_another_as_a_file_says() {
    let place = place();
    let file = place.path().join("workers");
    fs::write(&file, "2\n").expect("written");
    let (manager, name) = manager();
    let stage = Stage::with(place, file.to_str().expect("text"), Some(&name));
    let mut one = stage.player();
    one.say("READY=1");
    let mut two = stage.player();
    two.say("READY=1");
    assert_eq!((one.worker, two.worker), (1, 2));
    assert_eq!(hears_but_status(&manager), "READY=1");
    // What a file says that is no number changes nothing.
    fs::write(&file, "many").expect("written");
    stage.signal(Signal::SIGHUP);
    stage.signal(Signal::SIGUSR1);
    one.hears(Signal::SIGUSR1);
    two.hears(Signal::SIGUSR1);

    fs::write(&file, "4").expect("written");
    stage.signal(Signal::SIGHUP);
    let upgraded = |worker: &mut Player| {
        let successor = replaced(worker, &stage);
        worker.order("exit 0");
        *worker = successor;
    };
    upgraded(&mut one);
    upgraded(&mut two);
    let mut three = stage.player();
    three.say("READY=1");
    // One that cannot come is not tried again before the next HUP, and harms nobody.
    let mut four = stage.player();
    assert_eq!((three.worker, four.worker), (3, 4));
    four.order("exit 1");
    stage.signal(Signal::SIGUSR2);
    for worker in [&mut one, &mut two, &mut three] {
        worker.hears(Signal::SIGUSR2);
    }

    fs::write(&file, "1").expect("written");
    stage.signal(Signal::SIGHUP);
    upgraded(&mut one);
    three.hears(Signal::SIGTERM);
    three.order("exit 0");
    two.hears(Signal::SIGTERM);
    // While it still drains its number is not free.
    fs::write(&file, "2").expect("written");
    stage.signal(Signal::SIGHUP);
    upgraded(&mut one);
    two.order("exit 9");
    let mut two = stage.player();
    assert_eq!(two.worker, 2);
    two.say("READY=1");
    // Whoever leaves is not taken for a worker in the next upgrade, wherever it stands.
    fs::write(&file, "1").expect("written");
    stage.signal(Signal::SIGHUP);
    upgraded(&mut one);
    two.hears(Signal::SIGTERM);
    stage.signal(Signal::SIGHUP);
    upgraded(&mut one);
    stage.signal(Signal::SIGTERM);
    for worker in [&mut one, &mut two] {
        worker.hears(Signal::SIGTERM);
        worker.order("exit 0");
    }
    // How those have ended that have left is no matter.
    assert_eq!(stage.ends(), 0);
}

#[test]
fn a_worker_that_falls_back_in_its_probation_stops_the_rest() {
    let (stage, mut workers) = Stage::of(2, None);
    workers.iter_mut().for_each(|worker| worker.say("READY=1"));
    stage.signal(Signal::SIGHUP);
    let successor = replaced(&mut workers[0], &stage);
    // It dies, and the old one serves again.
    successor.killed();
    let own = format!("MAINPID={}", workers[0].pid);
    workers[0].say(&own);
    workers[0].say("READY=1");
    stage.signal(Signal::SIGUSR2);
    workers[0].hears(Signal::SIGUSR2);
    // The other one has heard nothing else.
    workers[1].hears(Signal::SIGUSR2);
}

#[test]
fn a_worker_that_dies_unasked_ends_the_others() {
    let (stage, mut workers) = Stage::of(2, None);
    workers.iter_mut().for_each(|worker| worker.say("READY=1"));
    workers[0].killed();
    workers[1].hears(Signal::SIGTERM);
    workers[1].order("exit 0");
    assert_eq!(stage.ends(), 137);
}

/// An address that nobody listens at: workers have to be told one.
fn free_address() -> String {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    probe.local_addr().expect("an address").to_string()
}

/// Asks the endpoint of an init for something, as `ctl` does.
#[cfg(feature = "admin")]
fn ask(admin: &str, what: tablecloth::Control) -> (Option<tablecloth::Controlled>, String) {
    let mut told = Vec::new();
    let controlled = tablecloth::control(&format!("unix:{admin}"), what, &mut told);
    (controlled.ok(), String::from_utf8_lossy(&told).into_owned())
}

/// A whole answer of it; nothing, if nobody is there.
#[cfg(feature = "admin")]
fn get(admin: &str, target: &str) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = UnixStream::connect(admin) {
        let _ = write!(stream, "GET {target} HTTP/1.0\r\nAccept: text/plain\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
    }
    text
}

#[test]
fn two_demos_share_an_address_and_each_has_its_pid_file() {
    let address = free_address();
    let start = Start::program("demo").args(&["--workers", "2", "--listen", &address]);
    let (file, load) = (start.path_of("pid"), |address: &str| Load::on(address, 2));
    let mut actor = start.args(&["--pid-file", &file, "--probation", "0"]).spawn();
    for _ in 0..2 {
        actor.wait_for("listening on");
    }
    let named = |number: u32| {
        let text = fs::read_to_string(format!("{file}.{number}")).unwrap_or_default();
        text.trim().parse::<u32>().unwrap_or(0)
    };
    until("both are named", || named(1) != 0 && named(2) != 0);
    let before = [named(1), named(2)];
    let load = load(&address);
    actor.signal(actor.pid(), Signal::SIGHUP);
    until("both are replaced", || {
        let mut children = children_of(actor.pid());
        children.retain(|(pid, state)| !before.contains(pid) && *state != 'Z');
        children.len() == 2 && named(1) != before[0] && named(2) != before[1]
    });
    let (served, errors) = load.end();
    assert!(served > 0 && errors.is_empty(), "{served}: {errors:?}");
    actor.signal(actor.pid(), Signal::SIGTERM);
    assert_eq!(actor.first_exits().code(), Some(0));
}

/// Whoever connects is served, whichever worker is about to leave, and is counted once.
#[cfg(feature = "admin")]
#[test]
fn demos_come_and_go_and_refuse_nobody() {
    use tablecloth::{Control, Controlled};

    let address = free_address();
    let start = Start::program("demo").args(&["--listen", &address, "--log-level", "warn"]);
    let (admin, file) = (start.path_of("admin"), start.path_of("workers"));
    fs::write(&file, "3").expect("written");
    let start = start.args(&["--probation", "0", "--admin", &admin, "--workers", &file]);
    let mut actor = start.spawn();
    let ask = |what| ask(&admin, what);
    let workers = || ask(Control::Status).1.matches("worker ").count();
    until("all three are ready", || ask(Control::Ready).0 == Some(Controlled::Done));
    let load = Load::on(&address, 4);
    for count in [1, 2, 1, 3] {
        fs::write(&file, count.to_string()).expect("written");
        match count {
            2 => actor.signal(actor.pid(), Signal::SIGHUP),
            _ => {
                let (done, told) = ask(Control::Upgrade);
                assert_eq!(done, Some(Controlled::Done), "{told}");
            }
        }
        until("they have come, or gone", || {
            let children = children_of(actor.pid());
            let alive = children.iter().filter(|(_, state)| *state != 'Z').count();
            workers() == count && alive == count && ask(Control::Ready).0 == Some(Controlled::Done)
        });
    }
    let (served, errors) = load.end();
    assert!(errors.is_empty(), "{} of {served}: {errors:?}", errors.len());
    let text = get(&admin, "/metrics");
    let counted = format!("tablecloth_accepted_total{{listener=\"echo\"}} {served}\n");
    assert!(text.contains(&counted), "{served} in {text}");
    let (done, _) = ask(Control::Shutdown);
    assert_eq!(done, Some(Controlled::Done));
    assert_eq!(actor.first_exits().code(), Some(0));
}

/// A worker that leaves with a session, and one that comes back under its number, are two; what they have counted is
/// one sum, which never goes back.
#[cfg(feature = "admin")]
#[test]
fn what_is_counted_goes_on_when_a_worker_leaves_and_comes_back() {
    let address = free_address();
    let start = Start::program("demo").args(&["--listen", &address]);
    let (admin, file) = (start.path_of("admin"), start.path_of("workers"));
    fs::write(&file, "2").expect("written");
    let start = start.args(&["--probation", "0", "--admin", &admin, "--workers", &file]);
    let mut actor = start.spawn();
    let ask = |target: &str| get(&admin, target);
    let count = || {
        let text = ask("/metrics");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("tablecloth_accepted_total{listener=\"echo\"} "));
        line.map(|number| number.parse::<u64>().expect("a number"))
    };
    until("both are ready", || ask("/ready").contains(" 200 "));
    // Clients that stay, until the second worker has one of them.
    let mut clients = Vec::new();
    until("the second worker has a session", || {
        let mut client = harness::Client::connect(&address);
        client.ask("hello\n");
        clients.push(client);
        let status = ask("/status");
        let second = status.split("worker 2\n").nth(1).unwrap_or_default().to_owned();
        second.lines().any(|line| {
            line.trim().strip_prefix("sessions").is_some_and(|count| count.trim() != "0")
        })
    });
    let mut made = clients.len() as u64;
    assert_eq!(count(), Some(made));
    fs::write(&file, "1").expect("written");
    actor.signal(actor.pid(), Signal::SIGHUP);
    actor.wait_for("is told to stop: fewer workers are wanted");
    until("it is counted", || count().is_some());
    assert_eq!(count(), Some(made));
    fs::write(&file, "2").expect("written");
    actor.signal(actor.pid(), Signal::SIGHUP);
    // Its number is free when its session has ended.
    drop(clients);
    actor.wait_for("worker 2 listening on");
    until("it has come back", || {
        ask("/ready").contains(" 200 ") && ask("/status").contains("worker 2")
    });
    for _ in 0..3 {
        for _ in 0..10 {
            harness::Client::connect(&address).ask("hello\n");
        }
        made += 10;
        assert_eq!(count(), Some(made));
        // Longer than whoever has left is asked again.
        thread::sleep(Duration::from_millis(150));
        assert_eq!(count(), Some(made));
    }
    // A file that says nothing changes nothing, whoever asks.
    fs::write(&file, "many").expect("written");
    actor.signal(actor.pid(), Signal::SIGHUP);
    let line = actor.wait_for("nothing is changed");
    assert!(line.contains("expected a number from 1 to 1024"), "{line}");
    let ending = tablecloth::control(
        &format!("unix:{admin}"),
        tablecloth::Control::Upgrade,
        &mut std::io::sink(),
    );
    assert_eq!(ending.expect("somebody is there"), tablecloth::Controlled::Failed);
    assert!(ask("/status").contains("worker 2"));
    actor.signal(actor.pid(), Signal::SIGTERM);
    assert_eq!(actor.first_exits().code(), Some(0));
}

/// Nobody waits for ever for a worker that does nothing.
#[cfg(feature = "admin")]
#[test]
fn an_upgrade_of_a_worker_that_stands_still_fails_in_words() {
    use tablecloth::{Control, Controlled};

    let address = free_address();
    let start = Start::program("demo").args(&["--workers", "2", "--listen", &address]);
    let (admin, file) = (start.path_of("admin"), start.path_of("pid"));
    let start = start.args(&["--pid-file", &file, "--probation", "0", "--admin", &admin]);
    let mut actor = start.spawn();
    let ask = |what| ask(&admin, what);
    until("both are ready", || ask(Control::Ready).0 == Some(Controlled::Done));
    let second: u32 =
        fs::read_to_string(format!("{file}.2")).expect("there").trim().parse().expect("a number");
    actor.signal(second, Signal::SIGSTOP);
    let (failed, told) = ask(Control::Upgrade);
    actor.signal(second, Signal::SIGCONT);
    assert_eq!(failed, Some(Controlled::Failed), "{told}");
    let last = told.lines().last().expect("a line");
    assert!(last.starts_with("failed: worker 2: it is there, and does not answer"), "{last}");
    let who = "worker 1 runs the new program, worker 2 the old one, as far as is known";
    assert!(last.ends_with(who), "{last}");
    actor.signal(actor.pid(), Signal::SIGTERM);
    assert_eq!(actor.first_exits().code(), Some(0));
}

/// Whoever restarts the init starts a server, too: the old one must not stay beside it.
#[test]
fn a_server_whose_init_is_killed_comes_to_its_end() {
    let mut actor = served(demo());
    let init = actor.pid();
    let (first, _) = children_of(init)[0];
    actor.signal(init, Signal::SIGHUP);
    actor.wait_for("finish the old process");
    until("the successor is alone", || {
        children_of(init).first().is_some_and(|(child, _)| *child != first)
    });
    let (server, _) = children_of(init)[0];
    actor.signal(init, Signal::SIGKILL);
    actor.wait_for("is dead: this service comes to its end");
    actor.wait_for("finish the process");
    until("it has ended", || !is_alive(server));
}

#[test]
fn workers_say_where_they_cannot_listen_together() {
    for (listen, why) in
        [("unix:@nobody", "on one Unix socket"), ("127.0.0.1:0", "a port of its own")]
    {
        let start = Start::program("demo").args(&["--workers", "2", "--listen", listen]);
        let (status, text) = start.run();
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(text.contains(why), "{text}");
    }
    let (status, text) = Start::program("demo").args(&["--workers", "1025"]).run();
    assert_eq!(status.code(), Some(2), "{text}");
    assert_eq!(text.matches("expected a number from 1 to 1024").count(), 1, "{text}");
    let (_, text) = Start::program("demo").args(&["--workers", "2", "--help"]).run();
    assert!(text.is_empty(), "{text}");
}

/// The endpoint of the init answers for both of them.
#[cfg(feature = "admin")]
#[test]
fn two_workers_are_asked_as_one() {
    use tablecloth::{Control, Controlled};

    let address = free_address();
    let releases = place();
    let program = releases.path().join("demo");
    harness::copy_program(&example("demo"), &program);
    let start = Start::path(program.clone()).args(&["--workers", "2", "--listen", &address]);
    let (admin, file) = (start.path_of("admin"), start.path_of("pid"));
    let start = start.args(&["--pid-file", &file, "--probation", "0", "--admin", &admin]);
    let mut actor = start.spawn();
    let ask = |what| {
        let (controlled, told) = ask(&admin, what);
        (controlled.unwrap_or(Controlled::Failed), told)
    };
    until("both are ready", || ask(Control::Ready).0 == Controlled::Done);
    let named = |number: u32| {
        let text = fs::read_to_string(format!("{file}.{number}")).unwrap_or_default();
        text.trim().parse::<u32>().unwrap_or(0)
    };
    let count = |series: &str| {
        let text = get(&admin, "/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in {text}")).parse::<f64>().expect("a number")
    };
    let connections = "tablecloth_accepted_total{listener=\"echo\"}";
    for _ in 0..20 {
        harness::Client::connect(&address).ask("hello\n");
    }
    assert_eq!(count(connections), 20.0);

    let before = [named(1), named(2)];
    let (done, told) = ask(Control::UpgradeProven);
    assert_eq!(done, Controlled::Done, "{told}");
    assert!(told.ends_with("done: all workers are upgraded, and there are 2\n"), "{told}");
    assert!(told.contains("worker 1: done: ") && told.contains("worker 2: done: "), "{told}");
    assert!(named(1) != before[0] && named(2) != before[1], "{told}");
    assert_eq!(count("tablecloth_upgrades_total{outcome=\"done\"}"), 2.0);
    assert_eq!(count("tablecloth_generation{worker=\"2\"}"), 1.0);
    assert_eq!(count(connections), 20.0);
    let (_, status) = ask(Control::Status);
    assert!(status.starts_with("worker 1\n") && status.contains("\nworker 2\n"), "{status}");
    let (done, told) = ask(Control::Check);
    assert!(done == Controlled::Done && told.contains("checked: "), "{told}");

    // The second one has been stopped, and cannot be asked: nothing is told that is not so.
    let second = named(2);
    actor.signal(second, Signal::SIGSTOP);
    let (done, told) = ask(Control::Ready);
    let words = "worker 2: it did not answer within 1 s";
    assert!(done == Controlled::Failed && told.starts_with(words), "{told}");
    assert_eq!(ask(Control::Live).0, Controlled::Done);
    actor.signal(second, Signal::SIGCONT);
    until("both are ready again", || ask(Control::Ready).0 == Controlled::Done);
    assert_eq!(count(connections), 20.0);

    // The first one that fails is the last one that is asked.
    let crashing = releases.path().join("crashing");
    fs::write(&crashing, "#!/bin/sh\necho the cause of it >&2\nexit 3\n").expect("written");
    fs::set_permissions(&crashing, fs::Permissions::from_mode(0o755)).expect("set");
    fs::rename(&crashing, &program).expect("renamed");
    let (done, told) = ask(Control::Upgrade);
    assert_eq!(done, Controlled::Failed, "{told}");
    assert!(told.contains("worker 1: stderr: the cause of it"), "{told}");
    let last = told.lines().last().expect("a line");
    assert!(last.starts_with("failed: worker 1: upgrade "), "{last}");
    assert!(last.ends_with("; none runs the new program, workers 1 to 2 the old one"), "{last}");
    assert_eq!(count("tablecloth_upgrades_total{outcome=\"failed\"}"), 1.0);

    let (done, told) = ask(Control::Shutdown);
    assert_eq!(done, Controlled::Done, "{told}");
    assert_eq!(actor.first_exits().code(), Some(0));
    assert!(!std::path::Path::new(&admin).exists());
}

fn demo() -> Start {
    Start::program("demo").args(&["--init", "--listen", "127.0.0.1:0", "--probation", "0"])
}

/// The demo behind its init, once it serves.
fn served(start: Start) -> Actor {
    let mut actor = start.spawn();
    actor.wait_for("listening on");
    actor
}

#[test]
fn a_signal_that_comes_before_the_server_can_hear_it_waits_for_it() {
    for (signal, code) in [(Signal::SIGTERM, 0), (Signal::SIGINT, 0), (Signal::SIGQUIT, 0)] {
        let mut actor = demo().args(&["--log-level", "debug"]).spawn();
        // The server is not there, or has not begun; the init holds all of them by now.
        actor.wait_for("started the server");
        actor.signal(actor.pid(), signal);
        assert_eq!(actor.first_exits().code(), Some(code));
    }
}

#[test]
fn a_server_that_refuses_to_start_ends_it_with_its_status() {
    let (status, text) = Start::program("demo").args(&["--init", "--no-such-flag"]).run();
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(text.contains("unknown flag --no-such-flag"), "{text}");
    let (status, text) = Start::program("demo").args(&["--init", "--listen", "nonsense"]).run();
    assert_eq!(status.code(), Some(1), "{text}");
}

#[test]
fn a_demo_is_upgraded_behind_its_init_and_stopped_by_it() {
    let mut actor = served(demo());
    let init = actor.pid();
    let mut served_by = children_of(init);
    for _ in 0..10 {
        actor.signal(init, Signal::SIGHUP);
        actor.wait_for("finish the old process");
        until("the successor is alone", || {
            let children = children_of(init);
            children.len() == 1 && children[0].0 != served_by[0].0
        });
        served_by = children_of(init);
    }
    actor.signal(init, Signal::SIGTERM);
    assert_eq!(actor.first_exits().code(), Some(0));
    actor.wait_for("has ended");
    assert_eq!(actor.alive(), []);
}

#[test]
fn a_demo_that_is_killed_ends_its_init() {
    let mut actor = served(demo());
    let (server, _) = children_of(actor.pid())[0];
    actor.signal(server, Signal::SIGKILL);
    assert_eq!(actor.first_exits().code(), Some(137));
    actor.wait_for("killed by SIGKILL");
}

/// Connections, one after another, each with a message that has to come back.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<(u64, Vec<String>)>>,
}

impl Load {
    fn on(address: &str, threads: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let work = |address: String, stop: Arc<AtomicBool>| {
            move || {
                let (mut served, mut errors) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match exchange(&address) {
                        Ok(()) => served += 1,
                        Err(error) => errors.push(error.to_string()),
                    }
                    thread::sleep(Duration::from_millis(2));
                }
                (served, errors)
            }
        };
        let threads = (0..threads)
            .map(|_| thread::spawn(work(address.to_owned(), Arc::clone(&stop))))
            .collect();
        Self { stop, threads }
    }

    /// How many were served, and what went wrong.
    fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().fold((0, Vec::new()), |(served, mut errors), thread| {
            let (more, wrong) = thread.join().expect("it ends");
            errors.extend(wrong);
            (served + more, errors)
        })
    }
}

fn exchange(address: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"hello");
    Ok(())
}

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: only root makes a pid namespace");
    }
    is_root
}

/// The demo as process 1 of a pid namespace of its own. What it logs names processes by the numbers that they have in
/// there, which are those of others out here: it must not be an [`Actor`], which ends whom its log names.
struct Namespace {
    unshare: Child,
    log: BufReader<ChildStderr>,
    /// Process 1, by its number out here.
    init: u32,
    address: String,
}

impl Namespace {
    fn new(args: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(example("demo"));
        command.args(["--listen", "127.0.0.1:0", "--probation", "0"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut unshare = command.spawn().expect("unshare starts");
        let log = BufReader::new(unshare.stderr.take().expect("piped"));
        let mut namespace = Self { unshare, log, init: 0, address: String::new() };
        let line = namespace.hears("listening on");
        namespace.address = line.rsplit(' ').next().expect("an address").into();
        namespace.init = children_of(namespace.unshare.id())[0].0;
        namespace
    }

    /// Waits for a line of the log.
    fn hears(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(self.log.read_line(&mut line).expect("a line"), 0, "never: {text}");
        }
        line.trim_end().into()
    }

    fn signal(&self, pid: u32, signal: Signal) {
        kill(Pid::from_raw(pid as i32), signal).expect("it is there");
    }
}

/// With it ends everything in it.
impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// By itself, without a flag.
#[test]
fn as_process_one_it_is_upgraded_under_load_fifty_times_with_no_zombie_and_ends_with_0() {
    if !is_root() {
        return;
    }
    let mut namespace = Namespace::new(&[]);
    let init = namespace.init;
    let load = Load::on(&namespace.address, 4);
    let mut served_by = children_of(init);
    for _ in 0..50 {
        namespace.signal(init, Signal::SIGHUP);
        namespace.hears("finish the old process");
        until("the successor is alone", || {
            let children = children_of(init);
            children.len() == 1 && children[0].0 != served_by[0].0 && children[0].1 != 'Z'
        });
        served_by = children_of(init);
    }
    let (served, errors) = load.end();
    assert_eq!(errors, Vec::<String>::new());
    assert!(served > 50, "{served}");
    namespace.signal(init, Signal::SIGTERM);
    assert_eq!(ends(&mut namespace.unshare).code(), Some(0));
}

#[test]
fn as_process_one_it_ends_with_137_when_its_server_is_killed_and_the_kernel_ends_the_rest() {
    if !is_root() {
        return;
    }
    let mut namespace = Namespace::new(&[]);
    let (server, _) = children_of(namespace.init)[0];
    namespace.signal(server, Signal::SIGKILL);
    namespace.hears("was killed by SIGKILL");
    assert_eq!(ends(&mut namespace.unshare).code(), Some(137));
    until("nobody is left", || !is_alive(namespace.init));
}
