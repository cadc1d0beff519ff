//! Any text as a file of routes, as far as no host is looked up for it. From the repository's root:
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz routes -- -max_total_time=60`

#![no_main]
#![allow(dead_code, reason = "of the proxy a part is tried out here")]

use std::net::SocketAddr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tablecloth::relay::Patience;

#[path = "../../../examples/common/mod.rs"]
mod common;
#[path = "../../../examples/proxy/header.rs"]
mod header;
#[path = "../../../examples/proxy/options.rs"]
mod options;
#[path = "../../../examples/proxy/packed.rs"]
mod packed;
#[path = "../../../examples/proxy/routes.rs"]
mod routes;
#[path = "../../../examples/proxy/session.rs"]
mod session;

/// Whether an address in a line would be looked up, or only might be.
fn is_looked_up(text: &str) -> bool {
    let mut words = text.split(['\n', '\r', ',', '#']).flat_map(|part| part.split("->"));
    words.any(|word| {
        let word = word.trim();
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
    let patience = Patience { connect: Duration::from_secs(1), idle: None };
    let options = options::Options {
        pairs: Vec::new(),
        file: path.to_str().map(str::to_owned),
        buffer_bytes: 0,
        settings: session::Settings { patience, send_proxy: false, cut_removed: false },
        common: common::options::Common::new(),
    };
    if let Ok(routes) = routes::load(&options) {
        assert!(!routes.is_empty());
        routes.iter().for_each(|route| assert!(route.next() < route.upstreams.len()));
    }
});
