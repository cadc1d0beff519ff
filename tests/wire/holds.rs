//! What holds for any bytes at all. The fuzzer holds the decoders against it, and so do the tests,
//! with every file of the fuzzer's corpus.

#![allow(dead_code, reason = "each fuzz target uses its part")]

use tablecloth::wire::{Handoff, Message, PROTOCOL, ProtocolRange};

/// Builds that decode: this one, before and after HELLO, its neighbours, and one that knows all.
const SPEAKERS: [ProtocolRange; 6] = [
    PROTOCOL,
    ProtocolRange { oldest: 1, newest: 1 },
    ProtocolRange { oldest: 0, newest: 0 },
    ProtocolRange { oldest: 1, newest: 2 },
    ProtocolRange { oldest: 2, newest: 2 },
    ProtocolRange { oldest: 0, newest: u16::MAX },
];

/// It is no message, and the error says where it stops being one; or it is one, and has a packet of
/// its own.
pub(crate) fn for_packet(packet: &[u8]) {
    for speaks in SPEAKERS {
        match Message::decode(packet, speaks) {
            // What it does not know of a MANIFEST it cannot write again, and this build's encoder would.
            Ok((protocol, Message::Manifest(_))) if protocol > speaks.newest => {}
            Ok((protocol, message)) => {
                let again = message.encode(protocol);
                assert!(again.len() <= packet.len(), "nothing was made up");
                assert_eq!(Message::decode(&again, speaks), Ok((protocol, message.clone())));
                if let Message::Manifest(part) = message {
                    // Alone it is the whole or the first part, and nothing comes behind itself.
                    let (number, alone) = (part.part, part.clone().behind(None));
                    assert!(alone.is_err() || number == 0);
                    assert!(part.clone().behind(Some(part)).is_err());
                }
            }
            Err(error) => {
                assert!(!error.field.is_empty());
                assert_eq!(error.to_string().lines().count(), 1);
            }
        }
    }
}

/// It is no handoff, and the error says where it stops being one; or it is one, and has a text.
pub(crate) fn for_variable(variable: &[u8]) {
    match Handoff::parse(&String::from_utf8_lossy(variable)) {
        Ok(handoff) => assert_eq!(Handoff::parse(&handoff.to_string()), Ok(handoff)),
        Err(error) => assert!(!error.field.is_empty() && error.to_string().lines().count() == 1),
    }
}
