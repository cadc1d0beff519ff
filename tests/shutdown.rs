//! Ring three: the orderly end, the end at once, and the deadlines of both.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::path::Path;

use harness::{Start, until};
use nix::sys::signal::Signal;

#[test]
fn quit_and_term_let_sessions_come_to_their_end_and_exit_with_status_0() {
    for signal in [Signal::SIGQUIT, Signal::SIGTERM] {
        let mut actor = Start::actor().pid_file().serve();
        let address = actor.address();
        let mut session = actor.connect();
        session.who();
        actor.signal(actor.pid(), signal);
        actor.wait_for(&format!("got message {signal}."));
        actor.wait_for("drain, shutting down: true");
        // No new ones, and the old one is served as long as it likes.
        until("nobody listens", || std::net::TcpStream::connect(&address).is_err());
        assert_eq!(session.ask("still there?\n"), "still there?");
        drop(session);
        assert!(actor.first_exits().success());
        assert!(!actor.place.path().join("pid").exists());
    }
}

#[test]
fn sessions_that_do_not_end_are_closed_at_the_drain_timeout() {
    let mut actor = Start::actor().args(&["--drain-ms", "200"]).serve();
    let mut sessions: Vec<_> = (0..3).map(|_| actor.connect()).collect();
    for session in &mut sessions {
        session.who();
    }
    actor.signal(actor.pid(), Signal::SIGQUIT);
    actor.wait_for("closing 3 sessions: drain timed out.");
    assert!(sessions.iter_mut().all(|session| session.is_at_end()));
    assert!(actor.first_exits().success());
}

#[test]
fn a_predecessor_closes_its_sessions_at_the_drain_timeout_and_leaves() {
    let mut actor = Start::actor().args(&["--drain-ms", "200"]).serve();
    let mut session = actor.connect();
    let (first, _) = session.who();
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("drain, shutting down: false");
    actor.wait_for("closing 1 sessions: drain timed out.");
    assert!(session.is_at_end());
    actor.wait_for("alone");
    assert_eq!(actor.who().1, 1);
}

#[test]
fn int_ends_at_once_with_the_sessions_open() {
    let start = Start::actor();
    let path = start.path_of("echo.sock");
    let mut actor = start.pid_file().args(&["--listen", &format!("path=unix:{path}")]).serve();
    let mut session = actor.connect();
    session.who();
    actor.signal(actor.pid(), Signal::SIGINT);
    assert!(session.is_at_end());
    assert!(actor.first_exits().success());
    assert!(!actor.place.path().join("pid").exists());
    assert!(!Path::new(&path).exists());
}

#[test]
fn a_pid_file_that_names_another_process_is_left_alone() {
    let mut actor = Start::actor().pid_file().serve();
    // Who answers has written its pid file.
    actor.who();
    let pid_file = actor.place.path().join("pid");
    fs::write(&pid_file, "1\n").expect("written");
    actor.signal(actor.pid(), Signal::SIGQUIT);
    assert!(actor.first_exits().success());
    assert_eq!(fs::read_to_string(&pid_file).expect("still there"), "1\n");
}

#[test]
fn a_hup_during_a_shutdown_is_refused_in_words() {
    let mut actor = Start::actor().serve();
    let mut session = actor.connect();
    session.who();
    actor.signal(actor.pid(), Signal::SIGQUIT);
    actor.wait_for("Running -> Draining");
    actor.signal(actor.pid(), Signal::SIGHUP);
    actor.wait_for("upgrade requested, and refused: this process is shutting down.");
    drop(session);
    assert!(actor.first_exits().success());
}

#[test]
fn a_handler_can_ask_for_a_shutdown_and_gets_the_signals_that_it_registered() {
    let mut actor = Start::actor().args(&["--user-signal", "12"]).serve();
    actor.signal(actor.pid(), Signal::SIGUSR2);
    actor.wait_for("user signal 12");
    assert_eq!(actor.connect().ask("shut down\n"), "yes");
    assert!(actor.first_exits().success());
}

#[test]
fn a_path_that_another_server_has_taken_meanwhile_is_left_alone() {
    let start = Start::actor();
    let path = start.path_of("echo.sock");
    let mut actor = start.args(&["--listen", &format!("path=unix:{path}")]).serve();
    fs::remove_file(&path).expect("removed by somebody");
    let _other = std::os::unix::net::UnixListener::bind(&path).expect("bound by somebody");
    actor.signal(actor.pid(), Signal::SIGQUIT);
    assert!(actor.first_exits().success());
    assert!(Path::new(&path).exists());
}

/// What killed processes leave behind does not keep the next one from starting.
#[test]
fn the_path_of_a_killed_process_is_taken_over_and_that_of_a_living_one_is_not() {
    let start = Start::program("actor");
    let path = start.path_of("echo.sock");
    let listen = format!("main=unix:{path}");
    let mut actor = start.args(&["--listen", &listen]).serve();
    let (status, error) = Start::program("actor").args(&["--listen", &listen]).run();
    assert_eq!(status.code(), Some(1));
    assert!(error.contains(&format!("\"main\" on unix:{path}: bind: Address already in use")));

    actor.signal(actor.pid(), Signal::SIGKILL);
    actor.first_exits();
    assert!(Path::new(&path).exists());
    Start::program("actor").args(&["--listen", &listen]).serve();
}
