//! Ring one: every message, round trip and hostile bytes. proptest prints the seed of a failure.

use proptest::collection::vec;
use proptest::prelude::*;
use tablecloth::limits;
use tablecloth::wire::{
    Entry, Hello, Kind, Manifest, Message, PROTOCOL, Problem, ProtocolRange, SchemaRange,
};

fn texts() -> impl Strategy<Value = String> {
    "\\PC{0,200}"
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = ("[a-z0-9é:/.-]{0,50}", proptest::sample::select(Kind::ALL.to_vec()))
        .prop_map(|(name, kind)| Entry { name, kind });
    vec(entry, 0..=limits::DESCRIPTORS_PER_PACKET)
}

fn messages() -> impl Strategy<Value = Message> {
    let parts = (0u8..4).prop_flat_map(|last| (0..=last, Just(last + 1)));
    let manifest = (any::<(u64, u32, u64, u64)>(), 1u16.., parts, entries()).prop_map(
        |((generation, predecessor, blocked, stay), newest, (part, parts), entries)| {
            let protocol = ProtocolRange { oldest: 1, newest };
            Message::Manifest(Manifest {
                protocol,
                generation,
                predecessor,
                blocked,
                stay,
                part,
                parts,
                entries,
            })
        },
    );
    let hello = (any::<(u32, u32, u32)>(), texts()).prop_map(|((oldest, newest, pid), build)| {
        let schemas = SchemaRange { oldest, newest };
        Message::Hello(Hello { protocol: PROTOCOL.newest, schemas, pid, build })
    });
    prop_oneof![
        manifest,
        hello,
        texts().prop_map(Message::Refuse),
        Just(Message::Commit),
        Just(Message::Serving),
        Just(Message::Upgrade),
        Just(Message::Stopping),
        Just(Message::Ping),
        Just(Message::Pong),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_and_fits_into_a_packet(message in messages()) {
        let packet = message.encode();
        prop_assert!(packet.len() <= limits::PACKET_BYTES);
        prop_assert_eq!(Message::decode(&packet), Ok(message));
    }

    #[test]
    fn a_packet_that_is_cut_anywhere_is_an_error_that_names_the_field(message in messages()) {
        let packet = message.encode();
        for length in 0..packet.len() {
            let error = Message::decode(&packet[..length]).expect_err("cut");
            prop_assert_eq!(error.problem, Problem::Truncated);
            prop_assert!(!error.field.is_empty());
        }
    }

    #[test]
    fn a_packet_with_something_behind_it_is_an_error(message in messages(), extra in vec(any::<u8>(), 1..9)) {
        let mut packet = message.encode();
        packet.extend(extra);
        let error = Message::decode(&packet).expect_err("too long");
        prop_assert_eq!(error.problem, Problem::TrailingBytes);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(packet in vec(any::<u8>(), 0..600)) {
        let _ = Message::decode(&packet);
    }

    #[test]
    fn no_change_of_a_byte_makes_the_decoder_panic(
        message in messages(),
        changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut packet = message.encode();
        for (place, byte) in changes {
            let place = place.index(packet.len());
            packet[place] = byte;
        }
        // Whatever it is taken for has a packet of its own.
        if let Ok(message) = Message::decode(&packet) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }
}

#[test]
fn texts_longer_than_allowed_are_cut_between_characters() {
    let message = Message::Refuse("é".repeat(limits::TEXT_BYTES)).encode();
    let Ok(Message::Refuse(reason)) = Message::decode(&message) else { panic!("a refusal") };
    assert_eq!(reason.len(), limits::TEXT_BYTES);
    let odd = Message::Refuse("x".to_owned() + &"é".repeat(limits::TEXT_BYTES)).encode();
    let Ok(Message::Refuse(reason)) = Message::decode(&odd) else { panic!("a refusal") };
    assert_eq!(reason.len(), limits::TEXT_BYTES - 1);
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
            &b"tclo\x02\x00\x04"[..],
            "field \"protocol\" says protocol 2 to 2, and this build speaks",
        ),
        (&b"tclo\x01\x00\x63"[..], "field \"kind\" has the unknown value 99"),
        (&b"tclo\x01\x00\x03\x02\x00\xff\xff"[..], "field \"reason\" is not UTF-8"),
        (&b"tclo\x01\x00\x03\xff\xff"[..], "field \"reason\" is longer than allowed"),
        (&b"tclo\x01\x00\x05!"[..], "field \"end\" has bytes behind it"),
    ] {
        let error = Message::decode(packet).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
}
