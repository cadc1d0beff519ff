//! Any bytes as a socket's name, as a Unix address's text, and at both ends of a PROXY header. From the
//! repository's root:
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz names -- -max_total_time=60`

#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use tablecloth::Address;

#[path = "../../../examples/proxy/header.rs"]
mod header;

fuzz_target!(|bytes: &[u8]| {
    let (one, other) = bytes.split_at(bytes.len() / 2);
    let ends = [one, other].map(|name| {
        let address = Address::from_name(name);
        assert!(!address.to_string().contains(char::is_control));
        if let Some(again) = address.to_name() {
            assert_eq!(Address::from_name(&again), address);
        }
        address
    });
    let header = header::encode(&ends[0], &ends[1], &[]);
    assert_eq!(header.len(), 16 + usize::from(u16::from_be_bytes([header[14], header[15]])));

    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // No host is looked up.
    let is_plain = |text: &str| !text.contains(':') || text.parse::<SocketAddr>().is_ok();
    for text in [format!("unix:{text}"), text.to_owned()] {
        if text.starts_with("unix:") || is_plain(&text) {
            if let Ok(address) = text.parse::<Address>() {
                assert!(address.to_name().is_some());
            }
        }
    }
});
