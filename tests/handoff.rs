//! Ring three: sessions move. Whatever happens on the way, each of them is in one hand (I5).

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::time::Instant;

use harness::{Actor, Client, Start, is_alive, kinds_of_descriptors, pid_of, state_of, until};
use nix::sys::signal::Signal;
use tablecloth::fault::Point;
use tablecloth::limits::{DRAIN_INTERVAL, SESSIONS_PER_PACKET};

/// An actor whose sessions move as soon as its successor serves.
fn moving() -> Start {
    Start::actor().pid_file().faults().args(&["--schema", "1"])
}

fn clients(actor: &mut Actor, count: usize) -> Vec<Client> {
    (0..count)
        .map(|_| {
            let mut client = actor.connect();
            client.who();
            client
        })
        .collect()
}

/// Who serves each of them.
fn owners(clients: &mut [Client]) -> Vec<u32> {
    clients.iter_mut().map(|client| client.who().0).collect()
}

#[test]
fn a_session_that_has_moved_a_hundred_times_is_as_good_as_new() {
    let mut actor = moving().serve();
    let mut client = actor.connect();
    for generation in 0..100 {
        let (pid, at) = client.who();
        assert_eq!(at, generation);
        actor.signal(pid, Signal::SIGHUP);
        actor.wait_for("alone");
        assert_eq!(client.ask("still here\n"), "still here");
    }
    assert_eq!(client.who().1, 100);
    assert!(!actor.has("drain,"));
}

#[test]
fn more_sessions_than_fit_into_the_window_move_all_the_same() {
    let mut actor = moving().serve();
    let first = actor.pid();
    let mut clients = clients(&mut actor, 5 * SESSIONS_PER_PACKET + 1);
    actor.signal(first, Signal::SIGHUP);
    // The predecessor leaves with the last of them, and does not wait for anything else.
    actor.wait_for("alone");
    let (second, _) = actor.who();
    assert!(owners(&mut clients).iter().all(|owner| *owner == second));
    assert!(!is_alive(first) || state_of(first) == Some('Z'));
}

#[test]
fn a_session_that_waits_for_its_peer_is_not_called_before_the_peer_has_said_something() {
    const MANY: usize = 2 * SESSIONS_PER_PACKET;
    for patient in [true, false] {
        let mut actor = moving().args(&["--patient", if patient { "yes" } else { "no" }]).serve();
        let silent: Vec<_> = (0..MANY).map(|_| actor.connect()).collect();
        let events: usize = actor.connect().ask("events\n").parse().expect("a number");
        assert_eq!(events == 1, patient, "accepted: {events}");
        drop(silent);
        let mut clients = clients(&mut actor, MANY);
        actor.signal(actor.pid(), Signal::SIGHUP);
        actor.wait_for("alone");
        // The question is an event, too.
        let events: usize = clients[0].ask("events\n").parse().expect("a number");
        assert_eq!(events == 1, patient, "moved: {events}");
        // Each of them hears of its room all the same, once it is asked.
        let (second, _) = actor.who();
        assert_eq!(owners(&mut clients), [second; MANY]);
    }
}

#[test]
fn a_session_that_the_successor_never_takes_is_served_to_its_end_where_it_is() {
    let mut actor = moving().args(&["--take", "5"]).serve();
    let first = actor.pid();
    let mut clients = clients(&mut actor, 7);
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("2 sessions cannot move now, and are asked again later: the successor refused");
    let (second, _) = actor.who();
    let owners = owners(&mut clients);
    let stayed: Vec<_> = owners.iter().map(|owner| *owner == first).collect();
    assert_eq!(stayed, [false, false, false, false, false, true, true], "{owners:?}");
    assert!(owners.iter().all(|owner| [first, second].contains(owner)));
    assert_eq!(actor.count("cannot move now"), 1, "said once, for all of them");
    actor.wait_for("drain, shutting down: false");
    clients.clear();
    actor.wait_for("alone");
}

#[test]
fn the_first_the_last_and_any_session_of_a_packet_can_be_refused_and_moves_later() {
    let last = SESSIONS_PER_PACKET;
    let refused = [1, last / 2, last, last + 1, last + 3].map(|place| place.to_string());
    let args: Vec<_> = refused.iter().flat_map(|place| ["--refuse", place.as_str()]).collect();
    let mut actor = moving().args(&args).serve();
    let first = actor.pid();
    let mut clients = clients(&mut actor, last + 3);
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("5 sessions cannot move now");
    // They are asked again, and this time they are taken: nobody has to end.
    actor.wait_for("alone");
    let (second, _) = actor.who();
    assert_ne!(second, first);
    assert_eq!(owners(&mut clients), vec![second; last + 3]);
}

#[test]
fn sessions_that_fill_a_packet_by_their_bytes_move_three_packets_at_a_time() {
    let mut actor = moving().args(&["--state-bytes", "60000"]).serve();
    let first = actor.pid();
    let mut clients = clients(&mut actor, 7);
    actor.fault(Point::SessionsHeard, "stop");
    actor.signal(first, Signal::SIGHUP);
    let line = actor.wait_for("fault at SessionsHeard");
    let second = pid_of(&line).expect("a process id");
    until("the successor stands still", || state_of(second) == Some('T'));
    // Four of them are served by the predecessor meanwhile, and three are on their way.
    let (on_their_way, others) = clients.split_at_mut(3);
    assert_eq!(owners(others), [first; 4]);
    on_their_way.iter_mut().for_each(|client| client.send("who\n"));
    actor.signal(second, Signal::SIGCONT);
    actor.wait_for("alone");
    for client in on_their_way {
        assert!(client.read_line().starts_with(&format!("{second} ")));
    }
    assert_eq!(owners(&mut clients), [second; 7]);
}

/// Two packets do not fit into a socket as narrow as this one, and nobody takes the first out.
#[test]
fn while_the_handoff_socket_is_full_the_sessions_are_served_where_they_are() {
    let mut actor = moving().args(&["--state-bytes", "60000", "--takeover-ms", "30000"]).serve();
    let first = actor.pid();
    let mut clients = clients(&mut actor, 5);
    actor.faults(&[(Point::PingSent, "narrow 60500"), (Point::PongSaid, "stop")]);
    actor.signal(first, Signal::SIGHUP);
    let line = actor.wait_for("fault at PongSaid");
    let second = pid_of(&line).expect("a process id");
    // It is tried once in each interval, for a second.
    let began = Instant::now();
    for _ in 0..=10 {
        let line = actor.wait_for(" sessions to the successor: ");
        assert!(line.contains("Resource temporarily unavailable"), "{line}");
    }
    assert!(began.elapsed() > 9 * DRAIN_INTERVAL, "{:?}", began.elapsed());
    // The first one is on its way, and the others are not.
    let (on_its_way, others) = clients.split_at_mut(1);
    assert_eq!(owners(others), [first; 4]);
    on_its_way[0].send("who\n");
    actor.signal(second, Signal::SIGCONT);
    actor.wait_for("alone");
    assert!(on_its_way[0].read_line().starts_with(&format!("{second} ")));
    assert_eq!(owners(&mut clients), [second; 5]);
    assert!(!actor.has("cannot move now"));
}

#[test]
fn a_client_that_breaks_off_while_its_session_is_on_its_way_harms_nobody_else() {
    for point in [Point::SessionsHeard, Point::AckSaid] {
        let mut actor = moving().serve();
        let first = actor.pid();
        let mut clients = clients(&mut actor, 3);
        actor.fault(point, "stop");
        actor.signal(first, Signal::SIGHUP);
        let line = actor.wait_for(&format!("fault at {point:?}"));
        let second = pid_of(&line).expect("a process id");
        until("the successor stands still", || state_of(second) == Some('T'));
        clients.remove(1).reset();
        actor.signal(second, Signal::SIGCONT);
        actor.wait_for("alone");
        assert_eq!(owners(&mut clients), [second; 2], "{point:?}");
        let third = actor.upgrade();
        assert_eq!(owners(&mut clients), [third; 2], "{point:?}");
    }
}

#[test]
fn sessions_of_a_form_that_the_successor_does_not_know_stay_and_drain() {
    let mut actor = moving().at(1, "schema:7").serve();
    let first = actor.pid();
    let mut client = actor.connect();
    client.who();
    actor.signal(first, Signal::SIGHUP);
    let line = actor.wait_for("sessions stay and drain");
    assert!(line.contains("reads the schemas 1 to 1, the successor 7 to 7"), "{line}");
    actor.wait_for("drain, shutting down: false");
    assert_eq!(client.who().0, first);
    drop(client);
    actor.wait_for("alone");
    assert_eq!(actor.count("sessions stay and drain"), 1);
}

#[test]
fn state_is_there_before_the_first_client_and_one_that_is_not_taken_over_rolls_back() {
    let mut actor = moving().at(1, "refuse-state").serve();
    let first = actor.pid();
    let mut client = actor.connect();
    client.who();
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("state 1: 1048576 bytes, 1 descriptors");
    let line = actor.wait_for("failed in takeover");
    assert!(line.contains("the successor exited with status 1"), "{line}");
    let words = "the state that the predecessor has handed over: as it was told";
    assert!(actor.has(words));
    until("the handler hears of it", || actor.has("the successor is gone"));
    assert_eq!((client.who().0, actor.who().0), (first, first));
    actor.is_named(first);

    let mut actor = moving().serve();
    actor.upgrade();
    let log = actor.log.join("\n");
    let (state, accepts) = (log.find("state 1: 1048576 bytes"), log.find("pid file written"));
    assert!(state.is_some() && state < accepts, "{log}");
}

/// Without the state it would begin anew, and nobody would know.
#[test]
fn nobody_succeeds_a_process_whose_handler_panics_when_it_is_to_hand_over() {
    let mut actor = moving().at(0, "panic-at-hand-over").serve();
    let first = actor.pid();
    let mut client = actor.connect();
    client.who();
    actor.signal(first, Signal::SIGHUP);
    let line = actor.wait_for("failed in takeover");
    let words = "the application's state could not be handed over: the handler's method `hand_over` panicked";
    assert!(line.contains(words), "{line}");
    assert_eq!((client.who().0, actor.who().0), (first, first));
    actor.is_named(first);
}

/// Their state goes through a file, and a descriptor of another kind comes along.
#[test]
fn sessions_of_a_megabyte_each_move() {
    const SESSIONS: usize = 40;
    let mut actor = moving().args(&["--state-bytes", "1000000", "--probation-ms", "0"]).serve();
    let mut clients = clients(&mut actor, SESSIONS);
    for _ in 0..2 {
        let (pid, _) = actor.who();
        actor.signal(pid, Signal::SIGHUP);
        actor.wait_for(&format!("moved {SESSIONS} sessions in "));
        actor.wait_for("alone");
        let (next, _) = actor.who();
        assert_eq!(owners(&mut clients), vec![next; SESSIONS]);
    }
}

/// A rollout of a build that reads one schema more, and its rollback to the build before it.
#[test]
fn sessions_move_up_to_another_schema_and_down_again() {
    const SESSIONS: usize = 1000;
    let start = Start::actor();
    let schemas = start.path_of("schemas");
    std::fs::write(&schemas, "1-1").expect("written");
    let args = ["--schemas-in", &schemas, "--probation-ms", "0"];
    let mut actor = start.args(&args).serve();
    let mut clients = clients(&mut actor, SESSIONS);
    for reads in ["1-2", "1-1", "2-2"] {
        std::fs::write(&schemas, reads).expect("written");
        let (pid, _) = actor.who();
        actor.signal(pid, Signal::SIGHUP);
        if reads == "2-2" {
            // There is none that both read.
            actor.wait_for("sessions stay and drain");
            return;
        }
        actor.wait_for("packed in schema 1");
        actor.wait_for(&format!("moved {SESSIONS} sessions in "));
        actor.wait_for("alone");
        let (next, _) = actor.who();
        assert_eq!(owners(&mut clients), vec![next; SESSIONS], "{reads}");
    }
}

#[test]
fn a_successor_that_dies_before_it_has_acknowledged_gives_the_sessions_back() {
    let mut actor = moving().serve();
    let first = actor.pid();
    let mut clients = clients(&mut actor, 3);
    actor.fault(Point::SessionsHeard, "kill");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("3 sessions come back");
    actor.wait_for("failed in draining: the successor was killed by SIGKILL");
    assert_eq!(owners(&mut clients), [first; 3]);
    assert_eq!(actor.who(), (first, 0));
    // And then they move as if nothing had happened.
    let second = actor.upgrade();
    assert_eq!(owners(&mut clients), [second; 3]);
}

fn sockets_of(pid: u32) -> usize {
    kinds_of_descriptors(pid).iter().filter(|kind| *kind == "socket").count()
}

#[test]
fn what_a_successor_has_acknowledged_dies_with_it_and_nothing_else() {
    let mut actor = moving().serve();
    let first = actor.pid();
    let without = sockets_of(first);
    let mut clients = clients(&mut actor, SESSIONS_PER_PACKET + 2);
    actor.fault(Point::AckSaid, "kill");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("failed in draining: the successor was killed by SIGKILL");
    // A packet is full, or goes when its time is over: the old process has those that were in the others.
    // It closes its copies of the others at the end of that turn, and this is answered in a later one.
    let mut later = actor.connect();
    assert_eq!(later.who().0, first);
    let back = sockets_of(first) - without - 1;
    assert!(back >= 2, "{back}");
    let rest = clients.split_off(clients.len() - back);
    for mut dead in clients {
        assert!(dead.is_at_end(), "it was the successor's");
    }
    let mut rest = rest;
    assert_eq!(owners(&mut rest), vec![first; back]);
}

#[test]
fn a_predecessor_that_dies_while_sessions_are_on_their_way_leaves_them_to_the_successor() {
    for point in [Point::SessionsSent, Point::AckHeard] {
        let mut actor = moving().serve();
        let first = actor.pid();
        let mut clients = clients(&mut actor, 3);
        actor.fault(point, "kill");
        actor.signal(first, Signal::SIGHUP);
        actor.wait_for("alone");
        let (second, _) = actor.who();
        assert_eq!(owners(&mut clients), [second; 3], "{point:?}");
    }
}

#[test]
fn a_successor_that_is_out_of_descriptors_takes_no_session() {
    let mut actor = moving().serve();
    let first = actor.pid();
    let mut clients = clients(&mut actor, 3);
    actor.fault(Point::PongSaid, "emfile");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("3 sessions cannot move now");
    assert_eq!(owners(&mut clients), [first; 3]);
    assert_eq!(actor.count("cannot move now"), 1, "said once, for all of them");
    clients.clear();
    actor.wait_for("alone");
}

#[test]
fn a_predecessor_that_is_told_to_stop_hands_its_sessions_over_first() {
    let mut actor = moving().args(&["--probation-ms", "3600000"]).serve();
    let first = actor.pid();
    let mut clients = clients(&mut actor, 3);
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("done; spawn");
    assert_eq!(owners(&mut clients), [first; 3], "on probation");
    actor.signal(first, Signal::SIGTERM);
    actor.wait_for("alone");
    let (second, _) = actor.who();
    assert_eq!(owners(&mut clients), [second; 3]);
}

#[test]
fn a_successor_that_is_told_to_stop_takes_no_session_any_more() {
    let mut actor = moving().serve();
    let first = actor.pid();
    let mut clients = clients(&mut actor, 3);
    // The predecessor stands still with its sessions on their way.
    actor.fault(Point::SessionsSent, "stop");
    actor.signal(first, Signal::SIGHUP);
    until("they are on their way", || state_of(first) == Some('T'));
    let (second, _) = actor.who();
    until("they have arrived", || owners(&mut clients) == [second; 3]);
    actor.signal(second, Signal::SIGTERM);
    actor.wait_for("drain, shutting down: true");
    clients.clear();
    until("it has ended", || !is_alive(second));
    actor.signal(first, Signal::SIGCONT);
    assert!(actor.first_exits().success());
}

/// The acknowledgement and the nonsense behind it are found by the same last look.
#[test]
fn what_was_acknowledged_does_not_come_back_whatever_is_said_behind_it() {
    let mut actor = moving().args(&["--takeover-ms", "300"]).serve();
    let first = actor.pid();
    let mut clients = clients(&mut actor, 2);
    actor.faults(&[
        (Point::SessionsHeard, "stop"),
        (Point::LastLook, "stop"),
        (Point::AckSaid, "garbage"),
    ]);
    actor.signal(first, Signal::SIGHUP);
    let line = actor.wait_for("fault at SessionsHeard");
    let second = pid_of(&line).expect("a process id");
    until("the successor stands still", || state_of(second) == Some('T'));
    until("its time is over", || state_of(first) == Some('T'));
    actor.signal(second, Signal::SIGCONT);
    actor.wait_for("struck at AckSaid");
    actor.signal(first, Signal::SIGCONT);
    actor.wait_for("failed in draining: the successor talked nonsense");
    for mut client in clients.drain(..) {
        assert!(client.is_at_end(), "it was the successor's");
    }
    assert!(!actor.has("come back"));
    assert_eq!(actor.who(), (first, 0));
}

#[test]
fn a_session_that_one_successor_has_refused_is_offered_to_the_next_one() {
    let mut actor = moving().args(&["--refuse-every", "1"]).serve();
    let first = actor.pid();
    let mut clients = clients(&mut actor, 2);
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("2 sessions cannot move now");
    let (second, _) = actor.who();
    actor.signal(second, Signal::SIGKILL);
    actor.wait_for("Draining -> Running");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("2 sessions cannot move now");
    assert_eq!(owners(&mut clients), [first; 2]);
}

#[test]
fn the_log_says_how_many_sessions_moved_and_how_long_they_stood_still() {
    let mut actor = moving().serve();
    let first = actor.pid();
    let mut clients = clients(&mut actor, SESSIONS_PER_PACKET + 1);
    actor.fault(Point::SessionsHeard, "kill");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("failed in draining: the successor was killed by SIGKILL");
    assert_eq!(owners(&mut clients), [first; SESSIONS_PER_PACKET + 1]);
    assert!(!actor.has("stood still"), "nothing has moved yet");
    actor.signal(first, Signal::SIGHUP);
    let moved = format!("moved {} sessions in ", SESSIONS_PER_PACKET + 1);
    let line = actor.wait_for(&moved);
    let rest = [" ms, each stood still for at most ", " ms, median ", " ms; longest turn ", " ms."];
    assert!(rest.iter().all(|words| line.contains(words)), "{line}");
    actor.wait_for(&format!("took {} sessions over; longest turn ", SESSIONS_PER_PACKET + 1));
    actor.wait_for("alone");
    // And of none there is nothing to say.
    drop(clients);
    actor.upgrade();
    assert_eq!((actor.count("stood still"), actor.count("sessions over;")), (1, 1));
}
