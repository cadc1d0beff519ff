//! Any bytes as a handoff message. From the repository's root:
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz decode -- -max_total_time=600`
//!
//! What it finds goes to `corpus/decode`. To keep of it only what adds coverage, move it elsewhere,
//! restore the corpus, and merge by `... decode tests/fuzz/corpus/decode ELSEWHERE --
//! -set_cover_merge=1`, which leaves the seeds under their names.

#![no_main]

use std::alloc::System;

use libfuzzer_sys::fuzz_target;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tablecloth::wire::{Message, PROTOCOL};

#[path = "../../wire/holds.rs"]
mod holds;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What a decoded message takes for each byte of its packet: an entry of three bytes becomes one of
/// 32, with a name of its own.
const BYTES_PER_BYTE: usize = 16;

fuzz_target!(|packet: &[u8]| {
    let region = Region::new(ALLOCATOR);
    let decoded = Message::decode(packet, PROTOCOL);
    let allocated = region.change().bytes_allocated;
    assert!(allocated <= packet.len() * BYTES_PER_BYTE, "{allocated} for {}", packet.len());
    drop(decoded);
    holds::for_packet(packet);
});
