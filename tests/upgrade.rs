//! Ring three: real processes replace each other, and nothing is lost.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use harness::{
    Client, Start, children_of, copy_program, descriptors_of, example, is_alive, until, who_by_udp,
};
use nix::sys::signal::Signal;

#[test]
fn a_successor_serves_on_the_same_socket_and_the_predecessor_leaves() {
    let mut actor = Start::actor().pid_file().serve();
    let (first, generation) = actor.who();
    assert_eq!((first, generation), (actor.pid(), 0));
    let sockets = |pid| -> Vec<_> {
        descriptors_of(pid).into_iter().filter(|fd| fd.starts_with("socket")).collect()
    };
    let before = sockets(first);

    let second = actor.upgrade();
    // The very same socket: bound anew it would have another inode.
    assert!(sockets(second).iter().any(|socket| before.contains(socket)));
    assert!(actor.first_exits().success());
    let pid_file = actor.place.path().join("pid");
    assert_eq!(fs::read_to_string(&pid_file).expect("a pid file"), format!("{second}\n"));
    assert!(actor.has("done; spawn"), "one line tells how it went");
    assert!(actor.has("report: ok"), "and a value");

    actor.signal(second, Signal::SIGQUIT);
    actor.wait_for("finish the process.");
    until("it is gone", || !is_alive(second));
    assert!(!pid_file.exists(), "removed at the final shutdown");
}

#[test]
fn port_zero_is_the_same_port_in_every_generation() {
    let mut actor = Start::actor().serve();
    let address = actor.address();
    for _ in 0..5 {
        actor.upgrade();
        let listening = actor.log.iter().filter(|line| line.contains("listening on"));
        assert!(listening.clone().count() > 1);
        assert!(listening.clone().all(|line| line.ends_with(&address)));
    }
}

#[test]
fn a_session_stays_with_its_process_and_every_byte_comes_back() {
    let mut actor = Start::actor().serve();
    let (mut client, first) = actor.upgrade_around_a_session();
    // New clients reach the successor, the old one still has the old process.
    let (second, generation) = actor.who();
    assert_eq!(generation, 1);
    assert_eq!(client.who(), (first, 0));
    let message = "x".repeat(5000) + "\n";
    assert_eq!(client.ask(&message), message.trim_end());
    assert!(is_alive(first));
    drop(client);
    actor.wait_for("alone");
    until("the predecessor is gone", || !is_alive(first));
    assert_eq!(actor.who(), (second, 1));
}

#[test]
fn a_hup_while_upgrading_is_carried_out_later() {
    let mut actor = Start::actor().gate(1).serve();
    let (first, _) = actor.who();
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("Running -> Upgrading");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("carried out as soon as it can be");
    actor.open_gate();
    // Twice alone: the first successor, and then the one that was asked for meanwhile.
    actor.wait_for("alone");
    actor.wait_for("alone");
    assert_eq!(actor.who().1, 2);
}

#[test]
fn a_hup_while_the_predecessor_is_still_there_is_carried_out_when_it_is_gone() {
    let mut actor = Start::actor().serve();
    let (client, _) = actor.upgrade_around_a_session();
    let (second, _) = actor.who();
    actor.signal(second, Signal::SIGHUP);
    actor.wait_for("carried out as soon as it can be");
    assert_eq!(children_of(second), [], "a third process never appears beside two");
    drop(client);
    actor.wait_for("alone");
    actor.wait_for("alone");
    assert_eq!(actor.who().1, 2);
}

#[test]
fn a_hup_to_the_draining_predecessor_reaches_the_successor() {
    let mut actor = Start::actor().serve();
    let (client, first) = actor.upgrade_around_a_session();
    actor.signal(first, Signal::SIGHUP);
    // Said by the one, and then by the other.
    actor.wait_for(&format!("[{first}]"));
    actor.wait_for("carried out as soon as it can be");
    drop(client);
    actor.wait_for("alone");
    actor.wait_for("alone");
    assert_eq!(actor.who().1, 2);
}

/// The last session of a predecessor is the one that asks: nothing is left to wake the loop again.
#[test]
fn a_request_in_the_last_turn_of_a_predecessor_reaches_the_successor() {
    for last_words in ["ask and go\n", "hup and go\n"] {
        let mut actor = Start::actor().serve();
        let (mut session, _) = actor.upgrade_around_a_session();
        // From here on it leaves with its last session, in the same turn.
        actor.wait_for("Draining (proven)");
        session.send(last_words);
        assert!(session.is_at_end());
        actor.wait_for("carried out as soon as it can be");
        actor.wait_for("alone");
        actor.wait_for("alone");
        assert_eq!(actor.who().1, 2, "{last_words:?}");
    }
}

#[test]
fn a_handler_can_ask_for_an_upgrade() {
    let mut actor = Start::actor().serve();
    assert_eq!(actor.connect().ask("upgrade\n"), "yes");
    actor.wait_for("alone");
    assert_eq!(actor.who().1, 1);
}

#[test]
fn sockets_and_files_of_every_kind_are_inherited_by_name() {
    let start = Start::actor();
    let (path, dgram, seqpacket, file) = (
        start.path_of("stream.sock"),
        start.path_of("datagram.sock"),
        start.path_of("seqpacket.sock"),
        start.path_of("file"),
    );
    let abstract_name = format!("tablecloth-test-{}", std::process::id());
    fs::write(&file, "abcdef").expect("a file");
    let mut actor = start
        .args(&["--listen", "six=[::1]:0", "--listen", &format!("path=unix:{path}")])
        .args(&["--listen", &format!("abstract=unix:@{abstract_name}")])
        .args(&["--udp", "udp=127.0.0.1:0", "--datagram", &format!("dgram=unix:{dgram}")])
        .args(&["--seqpacket", &format!("seq=unix:{seqpacket}")])
        .args(&["--file", &format!("letters={file}")])
        .serve();
    let line = |actor: &harness::Actor, what: &str| {
        let line = actor.log.iter().find(|line| line.contains(what)).expect(what).clone();
        line.rsplit(' ').next().expect("a word").to_owned()
    };
    let (six, udp) = (line(&actor, "listening on [::1]"), line(&actor, "udp udp on"));
    let inodes = |paths: &[&String]| -> Vec<_> {
        use std::os::unix::fs::MetadataExt;
        paths.iter().map(|path| fs::metadata(path).expect("there").ino()).collect()
    };
    let before = inodes(&[&path, &dgram, &seqpacket]);
    assert!(actor.has("file letters says a"));

    for generation in 0..3 {
        assert_eq!(Client::connect(&six).who().1, generation);
        assert!(who_by_udp(&udp).ends_with(&format!(" {generation}")));
        for mut stream in [unix(&path), unix_abstract(&abstract_name)] {
            stream.write_all(b"who\n").expect("sent");
            let mut answer = [0; 64];
            let read = stream.read(&mut answer).expect("an answer");
            assert!(answer[..read].ends_with(format!(" {generation}\n").as_bytes()));
        }
        actor.upgrade();
    }
    // One file, one position: each generation has read one letter.
    assert!(actor.has("file letters says d"));
    assert_eq!(inodes(&[&path, &dgram, &seqpacket]), before, "never unlinked at an upgrade");

    let (last, _) = actor.who();
    actor.signal(last, Signal::SIGQUIT);
    actor.wait_for("finish the process.");
    for path in [&path, &dgram, &seqpacket] {
        assert!(!Path::new(path).exists(), "{path} is unlinked at the final shutdown");
    }
}

#[test]
fn an_unclaimed_listener_is_closed_and_its_path_unlinked_once_nobody_can_come_back_to_it() {
    let start = Start::actor();
    let path = start.path_of("old.sock");
    let mut actor =
        start.args(&["--listen", &format!("old=unix:{path}")]).at(1, "skip:old").serve();
    let mut client = actor.connect();
    let (first, _) = client.who();
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for(&format!("closing Unix stream listener \"old\" (unix:{path}): not claimed"));
    actor.wait_for("done; spawn");
    // The predecessor could still come back, and would need it.
    assert!(Path::new(&path).exists());
    drop(client);
    actor.wait_for("alone");
    until("the path is unlinked", || !Path::new(&path).exists());
}

#[test]
fn a_listener_whose_address_changed_is_bound_anew() {
    let start = Start::program("actor");
    let (old, new) = (start.path_of("old.sock"), start.path_of("new.sock"));
    let path = |path: &str| format!("unix:{path}");
    let mut actor = start
        .args(&["--listen", &format!("main={}", path(&old))])
        .at(1, &format!("elsewhere:{}", path(&new)))
        .serve();
    let first = actor.pid();
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("not claimed");
    actor.wait_for("alone");
    let mut stream = unix(&new);
    stream.write_all(b"who\n").expect("sent");
    let mut answer = [0; 64];
    let read = stream.read(&mut answer).expect("an answer");
    assert!(answer[..read].ends_with(b" 1\n"));
    until("the old path is unlinked", || !Path::new(&old).exists());
}

#[test]
fn what_runs_next_is_the_file_at_the_path_even_if_it_was_replaced() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let binary = place.path().join("server");
    copy_program(&example("actor"), &binary);
    let mut actor = Start::path(binary.clone()).args(&["--listen", "main=127.0.0.1:0"]).serve();
    // A new release: another file under the same name.
    let release = place.path().join("release");
    copy_program(&example("actor"), &release);
    fs::rename(&release, &binary).expect("replaced");
    let pid = actor.upgrade();
    let runs = fs::read_link(format!("/proc/{pid}/exe")).expect("a program");
    assert_eq!(runs, binary, "and not one that was deleted");
}

#[test]
fn signals_that_come_while_the_successor_is_born_are_late_and_not_lost() {
    let start = Start::actor().args(&["--user-signal", "10"]);
    let gate = start.path_of("gate");
    let mut actor = start.at(1, &format!("raw-gate:{gate}")).serve();
    let (first, _) = actor.who();
    let successor = actor.give_birth(first);
    // It does not handle signals yet: either of these would kill it.
    actor.signal(successor, Signal::SIGUSR1);
    actor.signal(successor, Signal::SIGHUP);
    actor.open_gate();
    actor.wait_for("user signal 10");
    actor.wait_for("alone");
    actor.wait_for("alone");
    assert_eq!(actor.who().1, 2);
}

#[test]
fn a_set_up_longer_than_the_takeover_timeout_takes_over_all_the_same() {
    // The clock is what is tested: the successor needs longer than the deadline that begins after.
    let mut actor = Start::actor().args(&["--takeover-ms", "1000"]).at(1, "nap:1500").serve();
    actor.upgrade();
}

#[test]
fn a_successor_starts_in_the_first_directory_and_a_relative_pid_file_stays_where_it_was() {
    let start = Start::actor().in_its_place().args(&["--pid-file", "pid"]);
    let mut actor = start.at(0, "chdir:/").at(1, "chdir:/").env("LISTEN_FDS", "1").serve();
    let place = actor.place.path().canonicalize().expect("there");
    for _ in 0..2 {
        let pid = actor.upgrade();
        let said = fs::read_to_string(place.join("pid")).expect("a pid file");
        assert_eq!(said, format!("{pid}\n"));
        let environment = fs::read(format!("/proc/{pid}/environ")).expect("there");
        assert!(!String::from_utf8_lossy(&environment).contains("LISTEN_FDS"));
    }
    // The third stayed where it was started.
    let (last, _) = actor.who();
    assert_eq!(fs::read_link(format!("/proc/{last}/cwd")).expect("there"), place);
    actor.signal(last, Signal::SIGQUIT);
    actor.wait_for("finish the process.");
    assert!(!place.join("pid").exists());
}

#[test]
fn more_listeners_than_ride_on_one_packet_are_passed_on() {
    let mut start = Start::actor();
    for number in 0..300 {
        start = start.args(&["--listen", &format!("n{number}=127.0.0.1:0")]);
    }
    let mut actor = start.serve();
    let sockets = |pid| -> Vec<_> {
        descriptors_of(pid).into_iter().filter(|fd| fd.starts_with("socket")).collect()
    };
    let before = sockets(actor.pid());
    let pid = actor.upgrade();
    let after = sockets(pid);
    assert!(before.iter().filter(|socket| after.contains(socket)).count() >= 301);
}

#[test]
fn a_thread_of_the_successor_can_wait_for_the_predecessor() {
    let mut actor = Start::actor().serve();
    let (session, _) = actor.upgrade_around_a_session();
    assert!(!actor.has("waited for the predecessor"));
    drop(session);
    actor.wait_for("waited for the predecessor");
}

fn unix(path: &str) -> UnixStream {
    let stream = UnixStream::connect(path).expect("a connection");
    stream.set_read_timeout(Some(harness::PATIENCE)).expect("a timeout");
    stream
}

fn unix_abstract(name: &str) -> UnixStream {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("a name");
    let stream = UnixStream::connect_addr(&address).expect("a connection");
    stream.set_read_timeout(Some(harness::PATIENCE)).expect("a timeout");
    stream
}
