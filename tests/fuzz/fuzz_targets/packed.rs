//! Any bytes as the state of a relay, and as a packed session of the proxy. From the repository's root:
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz packed -- -max_total_time=60`

#![no_main]
#![allow(dead_code, reason = "of the proxy a part is tried out here")]

use std::rc::Rc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use tablecloth::relay::{Patience, Pool, Relay};
use tablecloth::{IoEvent, Packed, Stream};

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

const PATIENCE: Patience = Patience { connect: Duration::from_secs(1), idle: None };

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
    let packed = Packed::new(packed::SCHEMA, state.into(), streams());
    let routes = [Rc::new(routes::Route::removed("127.0.0.1:80"))];
    if let Ok(session) = packed::unpack(packed, &routes, now, &pool) {
        let again = packed::pack(session, now);
        assert!(packed::unpack(again, &routes, now, &pool).is_ok());
    }
});
