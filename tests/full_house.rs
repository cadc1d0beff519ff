//! Ring three: at a bound, in the moment of an upgrade. No session is lost by it, and whoever waits is
//! let in as soon as there is a place (I8).

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::net::TcpStream;
use std::time::Duration;

use harness::{Actor, Client, Start, descriptors_of, until};
use nix::sys::signal::Signal;

const PLACES: usize = 10;

fn full_house(args: &[&str]) -> (Actor, Vec<Client>) {
    let places = PLACES.to_string();
    let start = Start::actor().args(&["--max-sessions", &places, "--schema", "1"]).args(args);
    let mut actor = start.serve();
    let guests = served(&mut actor, PLACES);
    (actor, guests)
}

fn served(actor: &mut Actor, count: usize) -> Vec<Client> {
    (0..count)
        .map(|_| {
            let mut client = actor.connect();
            client.who();
            client
        })
        .collect()
}

/// Clients who have connected and asked, and are not let in yet.
fn waiting(actor: &mut Actor, count: usize) -> Vec<Client> {
    (0..count)
        .map(|_| {
            let mut client = actor.connect();
            client.send("who\n");
            client
        })
        .collect()
}

fn is_served(client: &mut Client) -> bool {
    client.stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
    client.stream.peek(&mut [0]).is_ok_and(|read| read > 0)
}

/// An upgrade in which nobody new is served, so that the log is what is waited for.
fn upgrade_in_a_full_house(actor: &mut Actor, guests: &mut [Client]) -> u32 {
    let (pid, generation) = guests[0].who();
    actor.signal(pid, Signal::SIGHUP);
    actor.wait_for("alone");
    let (next, its) = guests[0].who();
    assert_eq!(its, generation + 1);
    for guest in guests {
        assert_eq!(guest.who(), (next, its), "every session has moved");
    }
    next
}

#[test]
fn a_full_house_moves_and_those_who_wait_are_let_in_afterwards() {
    let (mut actor, mut guests) = full_house(&["--probation-ms", "50"]);
    let mut outside = waiting(&mut actor, PLACES);
    for _ in 0..3 {
        upgrade_in_a_full_house(&mut actor, &mut guests);
        assert!(!outside.iter_mut().any(is_served), "there is no place for them");
    }
    assert!(!actor.has("refused"), "nobody was let in who has taken another's place");
    // A place that becomes free is the next one's.
    guests.clear();
    for guest in &mut outside {
        guest.stream.set_read_timeout(Some(harness::PATIENCE)).expect("a timeout");
        guest.read_line();
    }
}

#[test]
fn a_place_that_becomes_free_during_probation_is_filled_by_the_successor() {
    let (mut actor, mut guests) = full_house(&["--probation-ms", "3600000"]);
    let mut outside = waiting(&mut actor, 1);
    let (first, _) = guests[0].who();
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("done; spawn");
    assert!(!is_served(&mut outside[0]), "the predecessor's sessions are still to come");
    drop(guests.pop());
    outside[0].stream.set_read_timeout(Some(harness::PATIENCE)).expect("a timeout");
    let line = outside[0].read_line();
    assert!(!line.starts_with(&format!("{first} ")), "the successor has let it in: {line}");
    assert_eq!(guests[0].who().0, first);
}

#[test]
fn a_successor_that_may_have_fewer_sessions_takes_all_that_there_are() {
    // The second process is told so by its own limit, which is the same for all: it is the first one
    // that has let in more, before it was set.
    let (mut actor, mut guests) = full_house(&["--at", "1:places:3"]);
    upgrade_in_a_full_house(&mut actor, &mut guests);
    let mut outside = waiting(&mut actor, 1);
    assert!(!is_served(&mut outside[0]));
    guests.truncate(2);
    outside[0].stream.set_read_timeout(Some(harness::PATIENCE)).expect("a timeout");
    outside[0].read_line();
}

#[test]
fn with_every_descriptor_for_clients_taken_an_upgrade_has_its_own() {
    let mut actor = Start::actor().args(&["--schema", "1"]).behind("ulimit -n 64;").serve();
    let first = actor.pid();
    let mut guests = served(&mut actor, 8);
    let mut outside: Vec<_> =
        (0..100).map(|_| TcpStream::connect(actor.address()).expect("it waits")).collect();
    actor.wait_for("the descriptors that are left are kept for an upgrade");
    let used = descriptors_of(first).len();
    assert!(used < 60, "{used} of 64");
    for _ in 0..3 {
        upgrade_in_a_full_house(&mut actor, &mut guests);
    }
    assert!(!actor.has("Too many open files"));
    assert!(!actor.has("descriptors are in use"));
    drop(guests);
    // Who waited gets in, one after the other.
    outside.truncate(60);
    let mut last = Client { stream: outside.pop().expect("sixty") };
    drop(outside);
    last.send("who\n");
    last.stream.set_read_timeout(Some(harness::PATIENCE)).expect("a timeout");
    last.read_line();
}

#[test]
fn where_sessions_stay_their_descriptors_are_not_counted_for_the_successor() {
    let mut actor = Start::actor().behind("ulimit -n 64;").serve();
    let first = actor.pid();
    let outside: Vec<_> =
        (0..100).map(|_| TcpStream::connect(actor.address()).expect("it waits")).collect();
    actor.wait_for("the descriptors that are left are kept for an upgrade");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("done; spawn");
    drop(outside);
    actor.wait_for("alone");
}

#[test]
fn who_waits_to_be_let_in_is_served_before_the_service_ends() {
    let mut actor = Start::actor().args(&["--drain-ms", "20000"]).at(0, "nap-in-open:30").serve();
    let first = actor.pid();
    let mut clients: Vec<_> = (0..20).map(|_| actor.connect()).collect();
    actor.signal(first, Signal::SIGQUIT);
    for client in &mut clients {
        client.send("who\n");
        assert_eq!(client.who_said(), (first, 0), "and not reset");
    }
    drop(clients);
    assert!(actor.first_exits().success());
    actor.wait_for("stop listening.");
    until("nobody listens", || TcpStream::connect(actor.address()).is_err());
}
