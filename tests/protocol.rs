//! Ring three: this build between builds that speak the next and the previous protocol version.
//! Either both find a version, or the successor says in words that there is none, and the
//! predecessor goes on serving.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::net::TcpListener;
use std::os::fd::AsFd;

use harness::played::{Part, Played};
use harness::{Actor, Client, Start, until};
use nix::sys::signal::Signal;
use tablecloth::wire::{PROTOCOL, READY};

/// The bytes below are those of versions 1 to 3, and the fakes speak of 0 and 4 as their neighbours.
const _: () = assert!(PROTOCOL.oldest == 1 && PROTOCOL.newest == 4);

/// A message without a body.
fn word(version: u8, kind: u8) -> [u8; 7] {
    [b't', b'c', b'l', b'o', version, 0, kind]
}

const REFUSE: u8 = 3;
const COMMIT: u8 = 4;
const SERVING: u8 = 5;
const UPGRADE: u8 = 6;
const PING: u8 = 8;
const PONG: u8 = 9;

/// An actor upgrades to a build that speaks these versions.
fn upgrade_to_a_build_that_speaks(range: &str) -> Actor {
    let actor = Start::actor().at(1, &format!("raw-speaks:{range}")).serve();
    actor.signal(actor.pid(), Signal::SIGHUP);
    actor
}

#[test]
fn a_successor_that_shares_a_version_takes_over_in_that_version() {
    for (range, chosen) in [("0-1", 1), ("1-1", 1), ("1-2", 2), ("2-3", 3), ("3-4", 4), ("4-5", 4)]
    {
        let mut actor = upgrade_to_a_build_that_speaks(range);
        actor.wait_for(&format!("the successor is another build, protocol {chosen}"));
        // It holds every word that it hears against that version, and ends if one is in another.
        actor.wait_for("done; spawn");
        assert!(actor.first_exits().success(), "{range}: the predecessor leaves");
        let (pid, generation) = actor.who();
        assert_ne!((pid, generation), (actor.pid(), 0), "{range}: the other build serves");
        assert!(!actor.has("nonsense"));
    }
}

#[test]
fn a_successor_that_shares_no_version_refuses_in_words_and_the_predecessor_goes_on_serving() {
    for (range, words) in [
        ("5-5", "the predecessor speaks 1 to 4, this other build 5 to 5"),
        ("5-6", "the predecessor speaks 1 to 4, this other build 5 to 6"),
        ("0-0", "the predecessor speaks 1 to 4, this other build 0 to 0"),
    ] {
        let mut actor = upgrade_to_a_build_that_speaks(range);
        let mut session = actor.connect();
        let first = (actor.pid(), 0);
        assert_eq!(session.who(), first);
        let line = actor.wait_for("failed in");
        let reason = format!("the successor refused and exited with status 1: {words}; program ");
        assert!(line.contains(&reason), "{range}: {line}");
        assert_eq!((session.who(), actor.who()), (first, first));
        // The successor's last line is its own; the predecessor has one for it.
        let ours = format!("[{}]", actor.pid());
        let said = actor.log.iter().filter(|line| line.starts_with(&ours) && line.contains(words));
        assert_eq!(said.count(), 1, "one line:\n{}", actor.log.join("\n"));
        until("the successor is gone", || actor.alive() == [first.0]);
    }
}

#[test]
fn a_successor_that_chooses_what_was_not_offered_is_told_by_it() {
    let mut actor = Start::actor().at(1, "raw-other-protocol").serve();
    actor.signal(actor.pid(), Signal::SIGHUP);
    let line = actor.wait_for("failed in");
    assert!(line.contains("speaks handoff protocol 99 to 99, and this process 1 to 4"), "{line}");
    assert_eq!(actor.who(), (actor.pid(), 0));
}

#[test]
fn a_successor_that_changes_the_version_after_hello_talks_nonsense() {
    let mut actor = Start::actor().at(1, "raw-changes-version").serve();
    actor.signal(actor.pid(), Signal::SIGHUP);
    let line = actor.wait_for("failed in");
    let words =
        "nonsense: handoff message: field \"protocol\" says protocol 5 to 5 where 4 to 4 is";
    assert!(line.contains(words), "{line}");
    assert_eq!(actor.who(), (actor.pid(), 0));
}

#[test]
fn a_successor_that_sends_an_empty_packet_talks_nonsense() {
    let mut actor = Start::actor().at(1, "raw-empty").serve();
    actor.signal(actor.pid(), Signal::SIGHUP);
    let line = actor.wait_for("failed in");
    assert!(line.contains("talked nonsense: an empty handoff message"), "{line}");
    assert_eq!(actor.who(), (actor.pid(), 0));
}

/// A listening socket, as a predecessor has them, and its address.
fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.set_nonblocking(true).expect("a flag");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

#[test]
fn a_predecessor_is_succeeded_in_the_newest_version_that_both_speak() {
    let neighbours = [
        // A later one has added something to the manifest that only it knows.
        (
            4,
            Part { version: 5, newest: 5, added: b"\x07 fields of version 5", ..Part::new("main") },
        ),
        (4, Part { version: 4, oldest: 0, newest: 4, ..Part::new("main") }),
        (3, Part { version: 3, oldest: 0, newest: 3, ..Part::new("main") }),
        (2, Part { version: 2, newest: 2, ..Part::new("main") }),
        (1, Part { oldest: 0, ..Part::new("main") }),
    ];
    for (version, manifest) in neighbours {
        let (listener, address) = listener();
        let mut played = Played::new();
        played.say_with(&manifest.encode(), &[listener.as_fd()]);
        let mut actor = played.start(Start::actor()).spawn();
        let hello = played.hear();
        assert_eq!(hello[..7], word(version, 2), "it chooses version {version}");
        assert_eq!(hello[15..19], actor.pid().to_le_bytes());
        assert_eq!(played.hear_ready(), READY);
        played.say(&word(version, COMMIT));
        assert_eq!(played.hear(), word(version, SERVING));
        assert_eq!(Client::connect(&address).who(), (actor.pid(), 1));

        // Another version from here on is no word at all.
        let other = if version == 1 { 2 } else { version - 1 };
        played.say(&word(other, PING));
        let line = actor.wait_for("the predecessor talked nonsense");
        let (said, spoken) = (other, version);
        let words = format!("says protocol {said} to {said} where {spoken} to {spoken} is spoken");
        assert!(line.ends_with(&words), "{line}");
        played.say(&word(version, PING));
        assert_eq!(played.hear(), word(version, PONG));
    }
}

#[test]
fn an_oversized_or_empty_packet_is_nonsense_and_not_the_predecessor_s_end() {
    let (listener, address) = listener();
    let mut played = Played::new();
    played.say_with(&Part::new("main").encode(), &[listener.as_fd()]);
    // They lie in the socket one behind the other when the successor begins to listen.
    played.say(&vec![b'x'; tablecloth::limits::SESSIONS_BYTES + 1]);
    played.say(b"");
    played.say(&word(1, COMMIT));
    let mut actor = played.start(Start::actor()).spawn();
    assert_eq!(played.hear()[..7], word(1, 2));
    assert_eq!(played.hear_ready(), READY);
    assert_eq!(played.hear(), word(1, SERVING), "the COMMIT behind it was heard");
    assert_eq!(Client::connect(&address).who(), (actor.pid(), 1));
    let line = actor.wait_for("the predecessor talked nonsense");
    assert!(line.ends_with("an oversized handoff message"), "{line}");
    let line = actor.wait_for("the predecessor talked nonsense");
    assert!(line.ends_with("an empty handoff message"), "{line}");
    assert!(!actor.has("alone"));
}

/// The kernel tells of a reset once, and ahead of what lies in the socket (unix(7)): whoever took that for the end
/// lost the last sessions that a dying process had sent.
#[test]
fn what_a_process_has_said_before_it_died_with_something_unread_is_heard() {
    let (listener, address) = listener();
    let mut played = Played::new();
    played.say_with(&Part::new("main").encode(), &[listener.as_fd()]);
    let mut actor = played.start(Start::actor()).spawn();
    assert_eq!(played.hear()[..7], word(1, 2));
    assert_eq!(played.hear_ready(), READY);
    played.say(&word(1, COMMIT));
    // Its SERVING is sent, and is never read.
    assert_eq!(Client::connect(&address).who(), (actor.pid(), 1));
    actor.wait_for("committed to by the predecessor");
    actor.signal(actor.pid(), Signal::SIGSTOP);
    until("it is stopped", || harness::state_of(actor.pid()) == Some('T'));
    played.say(&word(1, UPGRADE));
    drop(played);
    actor.signal(actor.pid(), Signal::SIGCONT);
    actor.wait_for("upgrade requested, and carried out as soon as it can be");
}

#[test]
fn a_predecessor_that_shares_no_version_is_refused_in_words() {
    for (oldest, newest) in [(5, 5), (5, 9), (0, 0)] {
        let (listener, address) = listener();
        let played = Played::new();
        // What is behind the range is in a version that this build cannot read.
        let added = b"anything at all";
        let manifest = Part { version: newest, oldest, newest, added, ..Part::new("main") };
        played.say_with(&manifest.encode(), &[listener.as_fd()]);
        let (status, error) = played.start(Start::actor()).run();
        let words = format!(
            "handoff from the predecessor: no protocol version in common: the predecessor speaks \
             {oldest} to {newest}, the successor 1 to 4"
        );
        assert_eq!(status.code(), Some(1), "{error}");
        assert_eq!(error.trim_end(), format!("actor: {words}"));
        let length = (words.len() as u16).to_le_bytes();
        let refusal = [&word(4, REFUSE)[..], &length, words.as_bytes()].concat();
        assert_eq!(played.hear(), refusal);
        // Nothing was done to the listener: it takes connections as before.
        let client = std::net::TcpStream::connect(&address).expect("a connection");
        let (_, peer) = listener.accept().expect("it waits");
        assert_eq!(peer, client.local_addr().expect("connected"));
    }
}

/// What is wrong is found before there is a server.
#[test]
fn a_mistake_in_the_flags_of_a_successor_is_told_to_its_predecessor() {
    let (listener, _) = listener();
    let played = Played::new();
    played.say_with(&Part::new("echo").encode(), &[listener.as_fd()]);
    let (status, error) = played.start(Start::program("demo").args(&["--probation", "long"])).run();
    assert_eq!(status.code(), Some(2), "{error}");
    let words = "--probation \"long\": expected a number of seconds";
    assert!(error.contains(words), "{error}");
    assert_eq!(played.hear()[..7], word(1, 2), "HELLO");
    let refusal = played.hear();
    assert_eq!(refusal[..7], word(1, REFUSE));
    assert!(String::from_utf8_lossy(&refusal).contains(words));
}

#[test]
fn a_descriptor_of_a_kind_that_is_not_known_yet_is_refused_in_words() {
    let (listener, _) = listener();
    let played = Played::new();
    let manifest = Part { version: 2, newest: 2, kind: 99, ..Part::new("main") };
    played.say_with(&manifest.encode(), &[listener.as_fd()]);
    let (status, error) = played.start(Start::actor()).run();
    assert_eq!(status.code(), Some(1), "{error}");
    let words = "MANIFEST: field \"descriptor kind\" has the unknown value 99";
    assert!(error.contains(words) && error.lines().count() == 1, "{error}");
    assert!(String::from_utf8_lossy(&played.hear()).contains(words));
}
