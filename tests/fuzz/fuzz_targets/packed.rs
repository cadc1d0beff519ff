//! Any bytes as the state of a relay, and as a packed session of the proxy. From the repository's root:
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz packed -- -max_total_time=60`

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

use std::rc::Rc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use settings::Settings;
use tablecloth::relay::{Patience, Pool, Relay};
use tablecloth::{IoEvent, Packed, Stream};

const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(1), idle: None, half_closed: None };

fuzz_target!(|state: &[u8]| {
    let (now, mut pool) = (Instant::now(), Pool::new(1024 * 1024));
    let streams = || match mio::net::UnixStream::pair() {
        Ok((near, far)) => vec![Stream::from(near), Stream::from(far)],
        Err(_) => Vec::new(),
    };
    if let Ok(mut relay) = Relay::unpack(state, streams(), now, &pool) {
        let _ = relay.deadline(PATIENCE);
        let _ = relay.turn(IoEvent::default(), now, PATIENCE, &mut pool);
        let _ = relay.flush(now, &mut pool);
    }
    let settings = Settings::default();
    let routes = [Rc::new(routes::Route::removed("127.0.0.1:80", settings.clone()))];
    for schema in packed::SCHEMAS {
        let packed = Packed::new(schema, state.into(), streams());
        if let Ok(session) = packed::unpack(packed, &routes, &settings, now, &pool) {
            let again = packed::pack(session, now, packed::SCHEMA);
            assert!(packed::unpack(again, &routes, &settings, now, &pool).is_ok());
        }
    }
});
