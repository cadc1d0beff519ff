//! Any text as a file of routes, as far as no host is looked up for it. From the repository's root:
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz routes -- -max_total_time=60`

#![no_main]
#![allow(dead_code, reason = "only a part of the proxy is tried out here")]

#[path = "../../../examples/proxy/access.rs"]
mod access;
#[path = "../../../examples/common/mod.rs"]
mod common;
#[path = "../../../examples/proxy/connect.rs"]
mod connect;
#[path = "../../../examples/proxy/counters.rs"]
mod counters;
#[path = "../../../examples/proxy/extra.rs"]
mod extra;
#[path = "../../../examples/proxy/file.rs"]
mod file;
#[path = "../../../examples/proxy/header.rs"]
mod header;
#[path = "../../../examples/proxy/options.rs"]
mod options;
#[path = "../../../examples/proxy/packed.rs"]
mod packed;
#[path = "../../../examples/proxy/peer.rs"]
mod peer;
#[path = "../../../examples/proxy/routes.rs"]
mod routes;
#[path = "../../../examples/proxy/session.rs"]
mod session;
#[path = "../../../examples/proxy/settings.rs"]
mod settings;
#[path = "../../../examples/proxy/turns.rs"]
mod turns;
#[path = "../../../examples/proxy/upstreams.rs"]
mod upstreams;

use std::net::SocketAddr;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use tablecloth::limits::NAME_BYTES;

/// Whether a host in it would be looked up, or only might be.
fn is_looked_up(text: &str) -> bool {
    let is_end = |char: char| char.is_whitespace() || matches!(char, ',' | '#');
    text.split("->").flat_map(|part| part.split(is_end)).any(|word| {
        word.contains(':') && !word.starts_with("unix:") && word.parse::<SocketAddr>().is_err()
    })
}

fuzz_target!(|text: &str| {
    if is_looked_up(text) {
        return;
    }
    let path = std::env::temp_dir().join(format!("tablecloth-routes-{}", std::process::id()));
    if std::fs::write(&path, text).is_err() {
        return;
    }
    let Some(path) = path.to_str() else { return };
    let mut options = options::Options {
        pairs: Vec::new(),
        file: None,
        buffer_bytes: 0,
        cut_removed: false,
        check: false,
        settings: settings::Settings::default(),
        common: common::options::Common::new(),
    };
    match file::read(path, &mut options).and_then(routes::make) {
        Ok(routes) => {
            for route in routes {
                assert!((1..=NAME_BYTES).contains(&route.name.len()));
                let next = route.upstreams.next(&[], Instant::now());
                assert_eq!(next.is_some(), !route.upstreams.is_empty());
            }
        }
        Err(error) => {
            assert!(error.starts_with(path), "{error:?}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }
});
