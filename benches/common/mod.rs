//! What the benches share: flags, programs to measure, processes seen from outside, and figures.
//!
//! A bench compares two things in one run, in turn, and prints medians, minima and ratios. It never
//! fails on a time: the machine it runs on has other things to do.

#![allow(dead_code, reason = "each bench uses its part of it")]

pub(crate) mod figures;
pub(crate) mod flags;
pub(crate) mod helper;
pub(crate) mod peers;
pub(crate) mod process;
pub(crate) mod processors;
pub(crate) mod programs;
pub(crate) mod replaced;
pub(crate) mod surroundings;
pub(crate) mod wait;

/// An error in words, with what was being done.
pub(crate) fn failed<E: std::fmt::Display>(
    what: impl std::fmt::Display,
) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}
