//! Ring one: every message, round trip and hostile bytes. proptest prints the seed of a failure.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

#[path = "wire/holds.rs"]
mod holds;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use tablecloth::limits;
use tablecloth::wire::{
    Ack, Entry, Expect, Family, FileId, Handoff, Hello, Kind, Manifest, Message, NO_SCHEMAS,
    PROTOCOL, Problem, ProtocolRange, SchemaRange, SessionEntry, Sessions,
};

fn texts() -> impl Strategy<Value = String> {
    "\\PC{0,200}"
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let file = prop_oneof![
        Just(None),
        (1u64.., any::<u64>()).prop_map(|(device, inode)| Some(FileId { device, inode })),
    ];
    let kinds = proptest::sample::select(Kind::ALL.to_vec());
    let entry = ("[a-z0-9é:/.-]{1,50}", kinds, "[a-z0-9é:/.-]{0,20}", file)
        .prop_map(|(name, kind, asked, file)| Entry { name, kind, asked, file });
    // As many as fit into a packet, whatever their names are.
    prop_oneof![
        8 => vec(entry.clone(), 0..8),
        1 => vec(entry, 0..=limits::DESCRIPTORS_PER_PACKET / 2),
    ]
}

fn schemas() -> impl Strategy<Value = SchemaRange> {
    any::<(u32, u32)>().prop_map(|(oldest, newest)| SchemaRange { oldest, newest })
}

/// A range that has something in common with this build's.
fn ranges() -> impl Strategy<Value = ProtocolRange> {
    (0..=PROTOCOL.newest, PROTOCOL.newest..)
        .prop_map(|(oldest, newest)| ProtocolRange { oldest, newest })
}

fn manifests() -> impl Strategy<Value = Manifest> {
    let parts = (0u8..4).prop_flat_map(|last| (0..=last, Just(last + 1)));
    (any::<(u64, u32, u64, u64)>(), ranges(), parts, entries()).prop_map(
        |((generation, predecessor, blocked, stay), protocol, (part, parts), entries)| Manifest {
            protocol,
            generation,
            predecessor,
            blocked,
            stay,
            part,
            parts,
            entries,
        },
    )
}

fn sessions() -> impl Strategy<Value = Sessions> {
    let family = prop_oneof![Just(Family::Tcp), Just(Family::Unix)];
    let wake = prop_oneof![Just(None), (0..u64::MAX).prop_map(Some)];
    let state = prop_oneof![Just(None), vec(any::<u8>(), 0..300).prop_map(Some)];
    let descriptors = 0..=limits::SESSION_DESCRIPTORS as u8;
    let sockets = vec(family, 0..=limits::SOURCES);
    let listener = "[a-z\u{e4} ]{0,20}";
    let session = (any::<u32>(), sockets, wake, descriptors, state, listener);
    let session = session.prop_map(|(schema, sockets, wake, descriptors, state, listener)| {
        let listener = listener.into();
        SessionEntry { schema, sockets, wake, descriptors, state, listener }
    });
    (any::<u32>(), vec(session, 0..=limits::MOST_SESSIONS_PER_PACKET))
        .prop_map(|(packet, sessions)| Sessions { packet, sessions })
}

/// Every message, with the version that it is written in.
fn messages() -> impl Strategy<Value = (u16, Message)> {
    let later = prop_oneof![
        (schemas(), any::<u32>(), texts())
            .prop_map(|(schemas, pid, build)| Message::Hello(Hello { schemas, pid, build })),
        Just(Message::Commit),
        Just(Message::Serving),
        Just(Message::Upgrade),
        Just(Message::Stopping),
        Just(Message::Ping),
        Just(Message::Pong),
        sessions().prop_map(Message::Sessions),
        (any::<u32>(), vec(any::<u8>(), 0..=limits::MOST_SESSIONS_PER_PACKET))
            .prop_map(|(packet, refused)| Message::Ack(Ack { packet, refused })),
        any::<(u32, u32)>()
            .prop_map(|(sessions, sockets)| Message::Expect(Expect { sessions, sockets })),
        Just(Message::Retire),
        any::<u32>().prop_map(Message::State),
        vec(any::<u8>(), 0..400).prop_map(Message::Told),
    ];
    prop_oneof![
        manifests().prop_map(|manifest| (manifest.protocol.newest, Message::Manifest(manifest))),
        (any::<u16>(), texts()).prop_map(|(protocol, text)| (protocol, Message::Refuse(text))),
        later.prop_map(|message| (PROTOCOL.newest, message)),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_and_fits_into_a_packet((protocol, message) in messages()) {
        let packet = message.encode(protocol);
        prop_assert!(packet.len() <= limits::PACKET_BYTES);
        prop_assert_eq!(Message::decode(&packet, PROTOCOL), Ok((protocol, message)));
    }

    #[test]
    fn a_packet_that_is_cut_anywhere_is_an_error_that_names_the_field(
        (protocol, message) in messages(),
    ) {
        let packet = message.encode(protocol);
        // Of a long one, a thousand places.
        for length in (0..packet.len()).step_by(1 + packet.len() / 1000) {
            let error = Message::decode(&packet[..length], PROTOCOL).expect_err("cut");
            prop_assert_eq!(error.problem, Problem::Truncated);
            prop_assert!(!error.field.is_empty());
        }
    }

    #[test]
    fn a_packet_with_something_behind_it_is_an_error_unless_a_later_version_has_added_it(
        (protocol, message) in messages(),
        extra in vec(any::<u8>(), 1..9),
    ) {
        let mut packet = message.encode(protocol);
        packet.extend(extra);
        let decoded = Message::decode(&packet, PROTOCOL);
        if matches!(message, Message::Manifest(_)) && protocol > PROTOCOL.newest {
            prop_assert_eq!(decoded, Ok((protocol, message)));
        } else {
            prop_assert_eq!(decoded.expect_err("too long").problem, Problem::TrailingBytes);
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(packet in vec(any::<u8>(), 0..600)) {
        holds::for_packet(&packet);
    }

    #[test]
    fn no_change_of_a_byte_makes_the_decoder_panic(
        (protocol, message) in messages(),
        changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut packet = message.encode(protocol);
        for (place, byte) in changes {
            let place = place.index(packet.len());
            packet[place] = byte;
        }
        holds::for_packet(&packet);
    }

    /// Two builds, each with a range of its own: a predecessor and its successor.
    #[test]
    fn any_two_builds_speak_one_version_or_say_that_they_have_none(
        mut manifest in manifests(),
        predecessor in any::<(u16, u16)>(),
        successor in any::<(u16, u16)>(),
        added in vec(any::<u8>(), 0..9),
    ) {
        let range = |(one, other): (u16, u16)| {
            ProtocolRange { oldest: one.min(other), newest: one.max(other) }
        };
        let (predecessor, successor) = (range(predecessor), range(successor));
        manifest.protocol = predecessor;
        let mut packet = Message::Manifest(manifest).encode(predecessor.newest);
        // What the later build's version has, and the other does not know.
        if predecessor.newest > successor.newest {
            packet.extend(added);
        }
        match Message::decode(&packet, successor) {
            Ok((_, Message::Manifest(heard))) => {
                let chosen = successor.agree(heard.protocol).expect("it was decoded");
                prop_assert!(predecessor.contains(chosen) && successor.contains(chosen));
                let packet = Message::Serving.encode(chosen);
                for speaks in [predecessor, successor, ProtocolRange::only(chosen)] {
                    let expected = Ok((chosen, Message::Serving));
                    prop_assert_eq!(Message::decode(&packet, speaks), expected);
                }
            }
            Ok((_, other)) => prop_assert!(false, "{other:?}"),
            Err(error) => {
                prop_assert_eq!(predecessor.agree(successor), None);
                let problem = Problem::Protocol { said: predecessor, spoken: successor };
                prop_assert_eq!(&error.problem, &problem);
                let refusal = Message::Refuse(error.to_string());
                let heard = Message::decode(&refusal.encode(successor.newest), predecessor);
                prop_assert_eq!(heard, Ok((successor.newest, refusal)));
            }
        }
    }
}

proptest! {
    #[test]
    fn a_handoff_says_what_it_was_given(pipe in 0.., socket in 0.., pid: u32) {
        let handoff = Handoff { pipe, socket, pid };
        prop_assert_eq!(Handoff::parse(&handoff.to_string()), Ok(handoff));
    }

    #[test]
    fn no_text_makes_the_handoff_s_parser_panic(
        text in "(pipe|socket|pid|=|,|-|[0-9]{1,11}|\\PC){0,9}",
    ) {
        holds::for_variable(text.as_bytes());
    }
}

#[test]
fn a_handoff_that_is_none_is_an_error_that_names_the_field() {
    for (text, words) in [
        ("", "field \"pipe\" is missing"),
        ("pipe", "field \"pipe\" is missing"),
        ("socket=4,pipe=3,pid=1", "field \"pipe\" is missing"),
        ("pipe=3", "field \"socket\" is missing"),
        ("pipe=3,socket=4,", "field \"pid\" is missing"),
        ("pipe=,socket=4,pid=1", "field \"pipe\" is not a number"),
        ("pipe=3,socket=-4,pid=1", "field \"socket\" is not a number"),
        ("pipe=+3,socket=4,pid=1", "field \"pipe\" is not a number"),
        ("pipe=3,socket=4,pid= 1", "field \"pid\" is not a number"),
        ("pipe=3,socket=2147483648,pid=1", "field \"socket\" is not a number, or too large"),
        ("pipe=3,socket=4,pid=1,", "field \"end\" has bytes behind it"),
    ] {
        let error = Handoff::parse(text).expect_err(text).to_string();
        assert!(error.starts_with(words), "{text:?}: {error}");
    }
}

/// What two builds can say to each other, whatever else they speak: byte for byte.
#[test]
fn what_never_changes_has_not_changed() {
    const NEXT: u16 = PROTOCOL.newest + 1;
    let reason = "no common version".to_owned();
    let refusal = b"tclo\x02\x00\x03\x11\x00no common version";
    assert_eq!(Message::decode(refusal, PROTOCOL), Ok((2, Message::Refuse(reason.clone()))));
    assert_eq!(Message::Refuse(reason).encode(2), refusal);
    // The range of a MANIFEST is read, whatever is behind it.
    let manifest = b"tclo\x09\x00\x01\x05\x00\x09\x00anything at all";
    let error = Message::decode(manifest, PROTOCOL).expect_err("no version in common");
    let said = ProtocolRange { oldest: NEXT, newest: 9 };
    assert_eq!(error.problem, Problem::Protocol { said, spoken: PROTOCOL });
}

#[test]
fn once_a_version_is_chosen_no_other_is_taken() {
    let (first, second) = (ProtocolRange::only(1), ProtocolRange { oldest: 1, newest: 2 });
    let packet = Message::Serving.encode(2);
    assert_eq!(Message::decode(&packet, second), Ok((2, Message::Serving)));
    let error = Message::decode(&packet, first).expect_err("another version");
    assert_eq!(error.to_string(), "field \"protocol\" says protocol 2 to 2 where 1 to 1 is spoken");
}

#[test]
fn a_manifest_is_written_in_the_newest_version_of_its_range() {
    let manifest = |version: u8, oldest: u8, newest: u8| {
        [&b"tclo"[..], &[version, 0, 1, oldest, 0, newest, 0], &[0; 28], &[0, 1, 0]].concat()
    };
    assert!(Message::decode(&manifest(3, 1, 3), PROTOCOL).is_ok());
    for (packet, words) in [
        (manifest(2, 1, 3), "field \"protocol\" has the unknown value 2"),
        (manifest(1, 1, 0), "field \"newest protocol\" has the unknown value 0"),
    ] {
        assert_eq!(Message::decode(&packet, PROTOCOL).expect_err(words).to_string(), words);
    }
}

#[test]
fn texts_longer_than_allowed_are_cut_between_characters() {
    let even = "é".repeat(limits::TEXT_BYTES);
    let odd = "x".to_owned() + &even;
    for (text, length) in [(even, limits::TEXT_BYTES), (odd, limits::TEXT_BYTES - 1)] {
        let packet = Message::Refuse(text).encode(PROTOCOL.newest);
        let Ok((_, Message::Refuse(reason))) = Message::decode(&packet, PROTOCOL) else {
            panic!("a refusal")
        };
        assert_eq!(reason.len(), length);
    }
}

#[test]
fn a_text_cannot_end_a_line_of_the_log() {
    let reason = "one\nline\r\u{1b}[2J\u{85}\0".to_owned();
    let packet = Message::Refuse(reason).encode(PROTOCOL.newest);
    let Ok((_, message)) = Message::decode(&packet, PROTOCOL) else { panic!("a refusal") };
    assert_eq!(message, Message::Refuse("one line  [2J  ".into()));
}

fn entry(name: &str, kind: Kind) -> Entry {
    Entry { name: name.into(), kind, asked: String::new(), file: None }
}

fn manifest(names: &[&str]) -> Manifest {
    let entry = |name: &&str| entry(name, Kind::Tcp);
    Manifest {
        protocol: PROTOCOL,
        generation: 3,
        predecessor: 4,
        blocked: 5,
        stay: 6,
        part: 0,
        parts: 1,
        entries: names.iter().map(entry).collect(),
    }
}

#[test]
fn a_name_that_is_none_is_an_error() {
    let long = "x".repeat(limits::NAME_BYTES + 1);
    for (name, problem) in [
        ("", Problem::Empty),
        (&long[..], Problem::TooLong),
        ("two\nlines", Problem::ControlCharacter),
        ("\u{7f}", Problem::ControlCharacter),
    ] {
        let packet = Message::Manifest(manifest(&["first", name])).encode(PROTOCOL.newest);
        let error = Message::decode(&packet, PROTOCOL).expect_err(name);
        assert_eq!((error.field, error.problem), ("name", problem), "{name:?}");
    }
    let first = Manifest { protocol: ProtocolRange::only(1), ..manifest(&["x"]) };
    let mut packet = Message::Manifest(first).encode(1);
    *packet.last_mut().expect("a name") = 0xff;
    let error = Message::decode(&packet, PROTOCOL).expect_err("no text");
    assert_eq!(error.to_string(), "field \"name\" is not UTF-8");
}

#[test]
fn the_parts_of_a_manifest_come_in_order_and_say_the_same() {
    let part = |part, name| Manifest { part, parts: 3, ..manifest(&[name]) };
    let first = part(0, "a").behind(None).expect("the first");
    let second = part(1, "b").behind(Some(first.clone())).expect("the second");
    assert!(!second.is_whole());
    let third = part(2, "c").behind(Some(second)).expect("the third");
    assert!(third.is_whole());
    let names: Vec<_> = third.entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);

    let next = part(1, "b");
    let protocol = ProtocolRange { oldest: 0, ..PROTOCOL };
    for (bad, before, words) in [
        (part(1, "b"), None, "field \"part\" has the unknown value 1"),
        (part(0, "b"), Some(&first), "field \"part\" has the unknown value 0"),
        (part(2, "b"), Some(&first), "field \"part\" has the unknown value 2"),
        (part(1, "a"), Some(&first), "field \"name\" comes twice"),
        (Manifest { protocol, ..next.clone() }, Some(&first), "field \"protocol\" is not what"),
        (Manifest { generation: 0, ..next.clone() }, Some(&first), "\"generation\" is not what"),
        (Manifest { predecessor: 0, ..next.clone() }, Some(&first), "\"predecessor\" is not what"),
        (Manifest { blocked: 0, ..next.clone() }, Some(&first), "\"blocked signals\" is not what"),
        (Manifest { stay: 0, ..next.clone() }, Some(&first), "field \"stay\" is not what"),
        (Manifest { parts: 4, ..next.clone() }, Some(&first), "field \"parts\" is not what"),
    ] {
        let error = bad.behind(before.cloned()).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = manifest(&["a", "b", "a"]).behind(None).expect_err("twice");
    assert_eq!(error.field, "name");
}

#[test]
fn versions_agree_on_the_newest_that_both_speak() {
    let range = |oldest, newest| ProtocolRange { oldest, newest };
    assert_eq!(range(1, 3).agree(range(2, 5)), Some(3));
    assert_eq!(range(2, 5).agree(range(1, 3)), Some(3));
    assert_eq!(range(1, 1).agree(range(1, 1)), Some(1));
    assert_eq!(range(1, 2).agree(range(3, 4)), None);
}

#[test]
fn every_error_names_its_field_in_words() {
    for (packet, words) in [
        (&b"xxxx\x01\x00\x04"[..], "field \"magic\" has the unknown value"),
        (
            &b"tclo\x05\x00\x04"[..],
            "field \"protocol\" says protocol 5 to 5 where 1 to 4 is spoken",
        ),
        (&b"tclo\x01\x00\x63"[..], "field \"kind\" has the unknown value 99"),
        (&b"tclo\x01\x00\x03\x02\x00\xff\xff"[..], "field \"reason\" is not UTF-8"),
        (&b"tclo\x01\x00\x03\xff\xff"[..], "field \"reason\" is longer than allowed"),
        (&b"tclo\x01\x00\x05!"[..], "field \"end\" has bytes behind it"),
    ] {
        let error = Message::decode(packet, PROTOCOL).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
}

fn two_sessions() -> Sessions {
    let session = |sockets, state: &[u8]| SessionEntry {
        schema: 1,
        sockets,
        wake: None,
        descriptors: 0,
        state: Some(state.into()),
        listener: "".into(),
    };
    Sessions {
        packet: 7,
        sessions: vec![
            session(vec![Family::Tcp, Family::Unix], b"what the next owner has to know"),
            session(vec![], b""),
        ],
    }
}

/// What version 2 has added.
fn seeds_of_version_2() -> Vec<(&'static str, Vec<u8>)> {
    let file = Some(FileId { device: 8, inode: 4711 });
    let asked = "localhost:8080".to_owned();
    let entries = vec![
        Entry { asked, ..entry("web", Kind::Tcp) },
        Entry { asked: "unix:/run/echo".into(), file, ..entry("echo", Kind::UnixStream) },
    ];
    let protocol = ProtocolRange { oldest: 1, newest: 2 };
    let manifest = Message::Manifest(Manifest { protocol, entries, ..manifest(&[]) });
    let mut sessions = two_sessions();
    sessions.sessions[0].wake = Some(1_500_000);
    let packet = |message: Message| message.encode(2);
    vec![
        ("2-manifest", packet(manifest)),
        ("2-sessions", packet(Message::Sessions(sessions))),
        ("2-expect", packet(Message::Expect(Expect { sessions: 5000, sockets: 10_000 }))),
        ("2-retire", packet(Message::Retire)),
        (
            "hostile-expect-of-version-1",
            b"tclo\x01\x00\x0c\x07\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        ),
        ("hostile-2-expect-cut", b"tclo\x02\x00\x0c\x07\x00\x00\x00".to_vec()),
    ]
}

/// What version 3 has added.
fn seeds_of_version_3() -> Vec<(&'static str, Vec<u8>)> {
    let mut sessions = two_sessions();
    sessions.sessions[0].descriptors = 2;
    sessions.sessions[1].state = None;
    vec![
        ("3-sessions", Message::Sessions(sessions).encode(3)),
        ("3-state", Message::State(2).encode(3)),
        ("3-told", Message::Told(b"what the other process has to know".into()).encode(3)),
        ("3-told-empty", Message::Told(Vec::new()).encode(3)),
        ("hostile-state-of-version-2", b"tclo\x02\x00\x0e\x01\x00\x00\x00".to_vec()),
        ("hostile-3-told-too-long", b"tclo\x03\x00\x0f\xff\xff\xff\xff".to_vec()),
    ]
}

/// What version 4 has added.
fn seeds_of_version_4() -> Vec<(&'static str, Vec<u8>)> {
    let mut sessions = two_sessions();
    sessions.sessions[0].listener = "web".into();
    let whole = Message::Sessions(sessions).encode(4);
    let cut = whole[..whole.len() - 2].to_vec();
    vec![("4-sessions", whole), ("hostile-4-sessions-cut", cut)]
}

/// Where the fuzzer begins: each message, and packets that are none in a way of their own. The
/// messages are version 1 byte for byte, which the files keep.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let manifest =
        |names: &[&str]| Manifest { protocol: ProtocolRange::only(1), ..manifest(names) };
    let every_kind = Manifest {
        stay: u64::MAX,
        entries: Kind::ALL.map(|kind| entry(&kind.to_string(), kind)).into(),
        ..manifest(&[])
    };
    let full = vec!["a name as long as it may be"; limits::DESCRIPTORS_PER_PACKET];
    let last = Manifest { part: 3, parts: 4, ..manifest(&["echo", "unix:/run/\u{e9}cho"]) };
    let next = ProtocolRange { oldest: 1, newest: 3 };
    let hello = Hello { schemas: NO_SCHEMAS, pid: 7, build: "tablecloth 0.1.0".into() };
    let packet = |message: Message| message.encode(1);
    let mut seeds = vec![
        ("manifest", packet(Message::Manifest(every_kind))),
        ("manifest-empty", packet(Message::Manifest(manifest(&[])))),
        ("manifest-full", packet(Message::Manifest(manifest(&full)))),
        ("manifest-last-part", packet(Message::Manifest(last))),
        ("hello", packet(Message::Hello(hello))),
        ("refuse", packet(Message::Refuse("address \"x\": no port".into()))),
        ("refuse-longest", packet(Message::Refuse("\u{e9}".repeat(limits::TEXT_BYTES)))),
        ("commit", packet(Message::Commit)),
        ("serving", packet(Message::Serving)),
        ("upgrade", packet(Message::Upgrade)),
        ("stopping", packet(Message::Stopping)),
        ("ping", packet(Message::Ping)),
        ("pong", packet(Message::Pong)),
        ("sessions", packet(Message::Sessions(two_sessions()))),
        ("sessions-empty", packet(Message::Sessions(Sessions { packet: 0, sessions: vec![] }))),
        ("ack", packet(Message::Ack(Ack { packet: 7, refused: vec![] }))),
        ("ack-refused", packet(Message::Ack(Ack { packet: 7, refused: vec![1, 0] }))),
        ("refuse-of-version-3", Message::Refuse("no".into()).encode(3)),
    ];
    let grown = Message::Manifest(Manifest { protocol: next, ..manifest(&["echo"]) });
    let grown = grown.encode(3);
    seeds.push(("hostile-3-manifest-that-adds", [&grown[..], b"and what it adds"].concat()));

    let two = Message::Sessions(two_sessions()).encode(1);
    let session = |at: usize, byte: u8| {
        let mut packet = two.clone();
        packet[at] = byte;
        packet
    };
    seeds.extend([
        ("hostile-sessions-count", session(11, 255)),
        ("hostile-sessions-sockets", session(16, 255)),
        ("hostile-sessions-family", session(17, 9)),
        ("hostile-sessions-state", session(20, 255)),
        ("hostile-sessions-cut", two[..two.len() - 1].to_vec()),
        ("hostile-ack-count", b"tclo\x01\x00\x0b\x07\x00\x00\x00\xff".to_vec()),
    ]);

    let one = Message::Manifest(manifest(&["echo"])).encode(1);
    let changed = |at: usize, byte: u8| {
        let mut packet = one.clone();
        packet[at] = byte;
        packet
    };
    seeds.extend([
        ("hostile-empty", Vec::new()),
        ("hostile-http", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("hostile-version", changed(4, 2)),
        ("hostile-kind", changed(6, 99)),
        ("hostile-range", changed(9, 0)),
        ("hostile-part", changed(39, 9)),
        ("hostile-parts", changed(40, 255)),
        ("hostile-count", changed(41, 253)),
        ("hostile-descriptor-kind", changed(42, 99)),
        ("hostile-name-length", changed(43, 255)),
        ("hostile-name-empty", changed(43, 0)),
        ("hostile-name-not-text", changed(44, 0xff)),
        ("hostile-name-of-two-lines", changed(45, b'\n')),
        ("hostile-cut", one[..one.len() - 1].to_vec()),
        ("hostile-behind", [&one[..], b"!"].concat()),
        ("hostile-refuse-length", b"tclo\x01\x00\x03\xff\xff".to_vec()),
        ("refuse-of-two-lines", packet(Message::Refuse("a\nb\u{9b}2J".into()))),
    ]);
    seeds.extend(seeds_of_version_2());
    seeds.extend(seeds_of_version_3());
    seeds.extend(seeds_of_version_4());
    seeds
}

/// The fuzzer's corpus for a target; `None` in the published package, which comes without it.
fn corpus(target: &str) -> Option<PathBuf> {
    let fuzzer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    fuzzer.join("Cargo.toml").exists().then(|| fuzzer.join("corpus").join(target))
}

fn files(directory: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(directory).expect("a corpus").map(|entry| entry.expect("a file"));
    entries.map(|entry| fs::read(entry.path()).expect("a file")).collect()
}

#[test]
#[ignore = "writes the seeds of the fuzzer's corpus anew, for another version of the protocol"]
fn write_the_seeds() {
    let corpus = corpus("decode").expect("a repository");
    fs::create_dir_all(&corpus).expect("a directory");
    for (name, packet) in seeds() {
        fs::write(corpus.join(name), packet).expect("written");
    }
}

#[test]
fn each_version_is_what_it_was_byte_for_byte() {
    let Some(corpus) = corpus("decode") else { return };
    for (name, packet) in seeds() {
        let kept = fs::read(corpus.join(name)).expect(name);
        assert_eq!(kept, packet, "{name}");
        let decoded = Message::decode(&kept, PROTOCOL);
        assert_eq!(decoded.is_err(), name.starts_with("hostile"), "{name}: {decoded:?}");
    }
}

#[test]
fn what_the_fuzzer_has_found_holds() {
    let (Some(packets), Some(variables)) = (corpus("decode"), corpus("handoff")) else { return };
    let (packets, variables) = (files(&packets), files(&variables));
    packets.iter().for_each(|packet| holds::for_packet(packet));
    variables.iter().for_each(|variable| holds::for_variable(variable));
    assert!(packets.len() >= seeds().len() && !variables.is_empty());
}
