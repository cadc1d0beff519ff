//! Any bytes as the handoff variable. From the repository's root:
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz handoff -- -max_total_time=60`

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../wire/holds.rs"]
mod holds;

fuzz_target!(|variable: &[u8]| holds::for_variable(variable));
