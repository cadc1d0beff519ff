//! Ring three: what a process has, and what it leaves: descriptors, memory, children, environment.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::collections::BTreeMap;

use harness::{
    Start, children_of, inherited_by_any_child, is_alive, kinds_of_descriptors, memory_of, until,
};
use nix::sys::signal::Signal;

fn counted(kinds: Vec<String>) -> BTreeMap<String, usize> {
    kinds.into_iter().fold(BTreeMap::new(), |mut counts, kind| {
        *counts.entry(kind).or_default() += 1;
        counts
    })
}

/// What a process without sessions has open, beside standard input, output and error.
fn bare(listeners: usize) -> BTreeMap<String, usize> {
    let mut kinds = inherited_by_any_child();
    let mut add = |kind: &str, count| kinds.extend(std::iter::repeat_n(kind.to_owned(), count));
    // mio's instance, and a duplicate to register by.
    add("anon_inode:[eventpoll]", 2);
    // The waker.
    add("anon_inode:[eventfd]", 1);
    // Both ends of signal-hook's pair.
    add("socket", 2 + listeners);
    counted(kinds)
}

/// Waits until a process has exactly these descriptors.
fn settle(pid: u32, expected: &BTreeMap<String, usize>) {
    let mut found = BTreeMap::new();
    let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until("its descriptors", || {
            found = counted(kinds_of_descriptors(pid));
            found == *expected
        });
    }));
    assert!(settled.is_ok(), "{pid} has {found:?} and should have {expected:?}");
}

#[test]
fn a_fresh_successor_has_exactly_the_descriptors_that_it_needs() {
    let mut actor = Start::actor().args(&["--listen", "second=127.0.0.1:0"]).serve();
    let (first, _) = actor.who();
    let expected = bare(2);
    let settled = |pid| counted(kinds_of_descriptors(pid)) == expected;
    until("the client's connection is closed", || settled(first));
    for _ in 0..3 {
        let pid = actor.upgrade();
        until("the same in the successor", || settled(pid));
    }
}

#[test]
fn an_upgrade_in_progress_has_the_handoff_open_and_nothing_else() {
    let mut actor = Start::actor().at(1, "hang").serve();
    let (first, _) = actor.who();
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("the successor is");
    let (mut predecessor, mut successor) = (bare(1), bare(1));
    // The pipe, the socket and the successor's pidfd; and the other ends of them.
    *predecessor.entry("pipe".into()).or_default() += 1;
    *predecessor.entry("socket".into()).or_default() += 1;
    *predecessor.entry("anon_inode:[pidfd]".into()).or_default() += 1;
    *successor.entry("pipe".into()).or_default() += 1;
    *successor.entry("socket".into()).or_default() += 1;
    *successor.entry("anon_inode:[pidfd]".into()).or_default() += 1;
    until("the predecessor's", || counted(kinds_of_descriptors(first)) == predecessor);
    let [(child, _)] = children_of(first)[..] else { panic!("one child") };
    until("the successor's", || counted(kinds_of_descriptors(child)) == successor);
}

#[test]
fn over_a_hundred_chained_upgrades_descriptors_and_memory_are_flat_and_no_zombie_is_left() {
    const UPGRADES: usize = 100;
    let mut actor = Start::actor().pid_file().serve();
    let (mut figures, mut expected) = (Vec::new(), bare(1));
    // The pid file is held open for its lock.
    let pid_file = actor.place.path().join("pid");
    expected.insert(pid_file.to_str().expect("text").into(), 1);
    for _ in 0..UPGRADES {
        let pid = actor.upgrade();
        settle(pid, &expected);
        assert_eq!(children_of(pid), [], "it has no child, and no zombie");
        figures.push(memory_of(pid));
    }
    let (first, last) = (figures[..10].iter().min(), figures[UPGRADES - 10..].iter().min());
    let (first, last) = (first.expect("ten"), last.expect("ten"));
    assert!(*last <= first + first / 20, "memory went from {first} to {last} KiB");
    until("one process is left", || actor.alive().len() == 1);
}

/// Each in a row waits for longer than the one before it, up to a second.
const FAILURES: usize = 30;

#[test]
fn failed_upgrades_leave_nothing_either() {
    let mut actor = Start::actor().pid_file().at(1, "exit:1").serve();
    let (pid, _) = actor.who();
    let mut memory = Vec::new();
    for _ in 0..FAILURES {
        actor.signal(pid, Signal::SIGHUP);
        actor.wait_for("failed in");
        until("it is reaped", || children_of(pid).is_empty());
        memory.push(memory_of(pid));
    }
    let mut expected = bare(1);
    let pid_file = actor.place.path().join("pid");
    expected.insert(pid_file.to_str().expect("text").into(), 1);
    until("its descriptors", || counted(kinds_of_descriptors(pid)) == expected);
    // A thread's first allocation may cost an arena, once.
    let (early, late) = (memory[9], memory[FAILURES - 1]);
    assert!(late <= early + early / 10 + 128, "from {early} to {late} KiB");
}

#[test]
fn nothing_of_ours_leaks_into_other_children() {
    let mut actor = Start::actor().serve();
    let mut session = actor.connect();
    // Three standard descriptors, the directory that is listed, and what any child has.
    let clean = format!("{} none", 4 + inherited_by_any_child().len());
    assert_eq!(session.ask("child\n"), clean, "in the first process");
    drop(session);
    let pid = actor.upgrade();
    assert_eq!(actor.connect().ask("child\n"), clean, "in a successor");
    // And of a predecessor in the middle of an upgrade.
    let mut session = actor.connect();
    session.who();
    actor.signal(pid, Signal::SIGHUP);
    actor.wait_for("done; spawn");
    assert_eq!(session.ask("child\n"), clean, "in a draining predecessor");
    assert_eq!(actor.connect().ask("child\n"), clean, "in a successor with its predecessor");
    drop(session);
    actor.wait_for("alone");
    until("it is gone", || !is_alive(pid));
}

#[test]
fn a_drained_predecessor_does_not_spin() {
    let mut actor = Start::actor().serve();
    let (_session, first) = actor.upgrade_around_a_session();
    let ticks = |pid: u32| -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("there");
        stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number")
    };
    // Its listeners are polled by the other process: what comes there must not wake this one.
    let before = ticks(first);
    for _ in 0..200 {
        assert_eq!(actor.who().1, 1);
    }
    let (idle, busy) = (ticks(first) - before, ticks(actor.who().0));
    assert!(idle * 10 < busy, "the old process took {idle} ns while the new one took {busy} ns");
}
