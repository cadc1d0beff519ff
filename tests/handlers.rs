//! Ring three: handlers that panic, take long, want to be woken, or are dropped with their server.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::io;
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Start, children_of, example, is_alive, place, state_of, until};
use nix::sys::signal::Signal;
use tablecloth::fault::Point;
use tablecloth::machine::State;
use tablecloth::{Accepted, Config, Context, Error, Handler, IoEvent, Server, Stream, Verdict};

const LONG: [&str; 2] = ["--probation-ms", "3600000"];

#[test]
fn a_session_whose_method_panics_is_closed_and_the_others_are_served_on() {
    let mut actor = Start::actor().serve();
    let first = (actor.pid(), 0);
    let (mut one, mut other) = (actor.connect(), actor.connect());
    assert_eq!((one.who(), other.who()), (first, first));
    one.send("panic\n");
    assert!(one.is_at_end());
    actor.wait_for("the handler's method `event` panicked: as it was told");
    assert_eq!((other.who(), actor.who()), (first, first));
    drop(other);
    actor.upgrade();
}

#[test]
fn a_panic_in_a_successor_that_is_not_proven_rolls_the_upgrade_back() {
    let mut actor = Start::actor().args(&LONG).serve();
    let (mut session, first) = actor.upgrade_around_a_session();
    let mut theirs = actor.connect();
    assert_ne!(theirs.who().0, first);
    theirs.send("panic\n");
    assert!(theirs.is_at_end());
    actor.wait_for("Draining -> Running");
    let line = actor.wait_for("failed in draining");
    assert!(line.contains("the successor exited with status 1"), "{line}");
    assert!(actor.has("the handler's method `event` panicked before this process was proven"));
    assert_eq!((session.who(), actor.who()), ((first, 0), (first, 0)));
}

#[test]
fn who_prefers_the_end_has_it() {
    let mut actor = Start::actor().args(&["--on-panic", "end"]).serve();
    let mut client = actor.connect();
    client.send("panic\n");
    assert!(client.is_at_end());
    assert_eq!(actor.first_exits().code(), Some(101));
}

#[test]
fn a_method_that_takes_long_is_named_in_the_log_with_how_long() {
    let mut actor = Start::actor().serve();
    let mut client = actor.connect();
    assert_eq!(client.ask("sleep\n"), "slept");
    let line = actor.wait_for("the handler's method `event` took ");
    assert!(line.ends_with("nobody else was served."), "{line}");
}

#[test]
fn when_a_session_wants_to_be_woken_moves_along_with_it() {
    let mut actor = Start::actor().args(&["--schema", "1"]).serve();
    let mut client = actor.connect();
    let (first, _) = client.who();
    assert_eq!(client.ask("wake me\n"), "yes");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("alone");
    let woken = client.read_line();
    assert!(woken.starts_with("woken by ") && woken != format!("woken by {first}"), "{woken}");
}

/// The predecessor has a copy of its socket until it has read the ACK.
#[test]
fn a_session_that_the_successor_closes_is_over_although_its_predecessor_stands_still() {
    let mut actor = Start::actor().faults().args(&["--schema", "1"]).serve();
    let mut client = actor.connect();
    let (first, _) = client.who();
    actor.fault(Point::AckHeard, "stop");
    actor.signal(first, Signal::SIGHUP);
    until("the predecessor stands still", || state_of(first) == Some('T'));
    assert_ne!(client.who().0, first);
    client.stream.shutdown(std::net::Shutdown::Write).expect("half-closed");
    assert!(client.is_at_end());
    assert_eq!(state_of(first), Some('T'));
    actor.signal(first, Signal::SIGCONT);
    actor.wait_for("alone");
}

/// The successor is not known yet, or has only said who it is: in words it is told to end, because it
/// would take the end of the socket for its predecessor's death, and serve.
#[test]
fn who_is_told_to_stop_before_its_spawn_has_an_answer_leaves_nobody_behind() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        for gate in ["gate", "raw-gate"] {
            let start = Start::actor().faults();
            let (answer, path) = (start.path_of("answer"), start.path_of("gate"));
            let mut actor = start.at(1, &format!("{gate}:{path}")).serve();
            let first = actor.pid();
            actor.fault(Point::Spawned, &format!("wait {answer}"));
            let successor = actor.give_birth(first);
            if gate == "gate" {
                actor.wait_for("the successor is tablecloth");
            }
            actor.signal(first, signal);
            actor.first_exits();
            actor.open_gate();
            until("nobody is left", || !is_alive(successor));
        }
    }
}

/// A handler of sessions that stay.
struct Versed;

impl Handler for Versed {
    type Session = Stream;

    fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Stream> {
        Ok(accepted.stream)
    }

    fn event(&mut self, _: &mut Context<'_>, _: &mut Stream, _: IoEvent) -> Verdict {
        Verdict::Keep
    }
}

/// There can be one server at a time in a process, and tests are threads of one.
fn new_server(config: &Config, schemas: RangeInclusive<u32>) -> Result<Server, Error> {
    let mut made = None;
    until("there is no other server", || {
        match Server::new(config.clone().schemas(schemas.clone())) {
            Err(Error::AnotherServer) => false,
            other => {
                made = Some(other);
                true
            }
        }
    });
    made.expect("made or refused")
}

#[test]
#[allow(clippy::reversed_empty_ranges, reason = "that is the mistake")]
fn schemas_that_are_none_are_an_error_at_once() {
    for (schemas, words) in [(0..=1, "schemas 0 to 1: "), (2..=1, "schemas 2 to 1: ")] {
        let error = new_server(&Config::default(), schemas).expect_err("refused").to_string();
        assert!(error.starts_with(words), "{error}");
    }
    drop(new_server(&Config::default(), 1..=1).expect("a range"));
}

#[test]
fn a_server_that_is_dropped_leaves_nothing_behind() {
    let place = place();
    let (pid_file, socket) = (place.path().join("pid"), place.path().join("socket"));
    let mut config = Config::default();
    config.pid_file = Some(pid_file.clone());
    let mut server = new_server(&config, 1..=1).expect("made");
    server.listen("it", &format!("unix:{}", socket.display())).expect("listens");
    let port = server.listen("port", "127.0.0.1:0").expect("listens").to_string();
    let mut client = UnixStream::connect(&socket).expect("connected");
    let mut server = server.start(Versed);
    for _ in 0..3 {
        let state = server.turn(Some(Duration::from_millis(1))).expect("a turn");
        assert_eq!(state, State::Running);
    }
    assert!(pid_file.exists() && socket.exists());
    drop(server);
    assert!(!pid_file.exists() && !socket.exists());
    assert!(TcpStream::connect(port).is_err());
    assert_eq!(io::Read::read(&mut client, &mut [0]).expect("the end"), 0);
    assert!(children_of(std::process::id()).iter().all(|(_, state)| *state != 'Z'));
}

/// The variable is an ancestor's, and the numbers in it are this program's own by now.
#[test]
fn a_stale_handoff_variable_costs_the_program_none_of_its_descriptors() {
    let mut child = Command::new("sh")
        .args(["-c", "sleep 60 | exec \"$0\" --listen 127.0.0.1:0 3<&0 4</dev/null"])
        .arg(example("demo"))
        .env(tablecloth::wire::VARIABLE, "pipe=3,socket=4,pid=1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh starts");
    let mut demo = None;
    until("the demo serves", || {
        let children = children_of(child.id());
        let runs = |pid: &u32| {
            let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
            exe.is_some_and(|exe| exe.ends_with("demo"))
        };
        demo = children.iter().map(|(pid, _)| *pid).chain([child.id()]).find(runs);
        let polls = |pid: u32| {
            harness::kinds_of_descriptors(pid).iter().any(|kind| kind.contains("eventpoll"))
        };
        demo.is_some_and(polls)
    });
    let demo = demo.expect("it serves");
    let third = std::fs::read_link(format!("/proc/{demo}/fd/3")).expect("it is there still");
    assert!(third.to_string_lossy().starts_with("pipe:"), "{third:?}");
    for (pid, _) in children_of(child.id()).into_iter().chain([(demo, ' ')]) {
        let pid = nix::unistd::Pid::from_raw(pid as i32);
        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    }
    let _ = child.kill();
    child.wait().expect("it is our child");
}
