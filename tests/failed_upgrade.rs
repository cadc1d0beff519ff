//! Ring three: a successor that fails, in each of the ways there are, leaves the predecessor
//! serving as if nothing had happened (I6), and one error line that says which way it was.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::{
    Actor, Start, children_of, copy_program, descriptors_of, example, is_alive, limit_descriptors,
    pid_of, state_of, until,
};
use nix::sys::signal::Signal;
use tablecloth::fault::Point;

/// Asks for an upgrade that must fail, and holds the world afterwards against the world before.
fn fails(mut actor: Actor, expected: &str) -> Actor {
    let mut session = actor.connect();
    let (pid, generation) = session.who();
    let before = descriptors_of(pid);
    let pid_file = actor.place.path().join("pid");
    let said = fs::read_to_string(&pid_file).ok();

    actor.signal(pid, Signal::SIGHUP);
    let line = actor.wait_for("failed in");
    assert!(line.contains(expected), "expected {expected:?}:\n{line}");
    actor.wait_for("report: failed");
    // One line, and not two, for one failure.
    assert_eq!(actor.count("failed in"), 1);

    assert_eq!(session.who(), (pid, generation), "the session never noticed");
    assert_eq!(actor.who(), (pid, generation), "and new ones are served");
    until("the successor is reaped", || children_of(pid).is_empty());
    until("no descriptor is left", || descriptors_of(pid) == before);
    until("the pid file is as it was", || fs::read_to_string(&pid_file).ok() == said);
    let litter = || {
        let entries = fs::read_dir(actor.place.path()).expect("a directory").flatten();
        entries.filter(|entry| entry.file_name() != "pid").count()
    };
    until("no litter is left", || litter() == 0);
    actor
}

#[test]
fn a_failed_upgrade_leaves_no_trace() {
    fails(Start::actor().pid_file().at(1, "exit:3").serve(), "exited with status 3");
}

#[test]
fn a_successor_that_exits_with_status_0_before_it_is_ready_has_failed_too() {
    fails(
        Start::actor().at(1, "exit:0").serve(),
        "failed in set-up: the successor exited with status 0",
    );
}

#[test]
fn a_successor_that_crashes_is_told_by_its_signal() {
    fails(
        Start::actor().at(1, "abort").serve(),
        "failed in set-up: the successor was killed by SIGABRT",
    );
}

#[test]
fn a_successor_that_panics_is_told_by_its_status() {
    fails(
        Start::actor().at(1, "panic").serve(),
        "exited with status 101: it panicked before it took over",
    );
}

#[test]
fn a_successor_that_hangs_is_killed_at_the_upgrade_timeout() {
    let actor = Start::actor().args(&["--upgrade-ms", "300"]).at(1, "hang").serve();
    fails(actor, "failed in set-up: the successor was not ready within 300ms");
}

#[test]
fn a_successor_that_hangs_before_it_says_hello_is_killed_too() {
    let actor = Start::actor().args(&["--upgrade-ms", "300"]).at(1, "raw-hang").serve();
    fails(actor, "was not ready within 300ms");
}

#[test]
fn a_successor_that_fails_in_words_is_reported_in_its_words() {
    let actor = Start::actor().at(1, "elsewhere:127.0.0.1:notaport").serve();
    fails(actor, "the successor refused and exited with status 1: address \"127.0.0.1:notaport\"");
}

#[test]
fn a_successor_that_gives_up_without_an_error_says_that_it_ended() {
    fails(
        Start::actor().at(1, "fail:no").serve(),
        "refused and exited with status 1: it ended before it took over",
    );
}

#[test]
fn a_program_that_cannot_be_executed_is_named() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let binary = place.path().join("server");
    copy_program(&example("actor"), &binary);
    let listen = ["--listen", "main=127.0.0.1:0"];
    let actor = Start::path(binary.clone()).args(&listen).serve();

    fs::remove_file(&binary).expect("removed");
    let directory = std::env::current_dir().expect("there");
    let what = format!("execute {} in {}", binary.display(), directory.display());
    let line = format!("failed in spawn: {what}: No such file");
    let mut actor = fails(actor, &line);

    copy_program(&example("actor"), &binary);
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o644)).expect("changed");
    let (pid, _) = actor.who();
    actor.signal(pid, Signal::SIGHUP);
    actor.wait_for("Permission denied");

    // And once it is there again, it is upgraded to.
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("changed");
    actor.upgrade();
}

#[test]
fn a_program_that_is_no_successor_at_all_has_failed() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let binary = place.path().join("server");
    copy_program(&example("actor"), &binary);
    let actor = Start::path(binary.clone()).args(&["--listen", "main=127.0.0.1:0"]).serve();
    fs::remove_file(&binary).expect("removed");
    copy_program(Path::new("/bin/true"), &binary);
    fails(actor, "exited with status 0");
}

#[test]
fn a_successor_of_another_protocol_version_is_told_by_it() {
    let actor = Start::actor().at(1, "raw-other-protocol").serve();
    fails(actor, "the successor speaks handoff protocol 99 to 99, and this process 1 to 4");
}

#[test]
fn garbage_is_told_by_what_it_is() {
    for (deed, expected) in [
        ("raw-garbage-on-pipe", "talked nonsense: byte 0x3f on the readiness pipe"),
        ("raw-garbage-on-socket", "talked nonsense: handoff message: field \"magic\""),
        ("raw-oversized", "talked nonsense: an oversized handoff message"),
        ("raw-ready-without-hello", "talked nonsense: ready without HELLO"),
        ("raw-serving-before-commit", "talked nonsense: SERVING out of turn"),
        ("raw-stops-before-it-is-ready", "talked nonsense: STOPPING out of turn"),
    ] {
        fails(Start::actor().pid_file().at(1, deed).serve(), expected);
    }
}

#[test]
fn a_successor_that_says_ready_and_never_serves_is_rolled_back_at_the_takeover_timeout() {
    let actor = Start::actor()
        .pid_file()
        .args(&["--takeover-ms", "300"])
        .at(1, "raw-ready-and-hang")
        .serve();
    let mut actor = fails(actor, "failed in takeover: the successor did not serve within 300ms");
    assert!(actor.has("Draining -> Running"));
}

#[test]
fn a_successor_that_says_ready_and_exits_with_status_0_never_served() {
    let actor = Start::actor().pid_file().at(1, "raw-ready-and-exit").serve();
    let mut actor = fails(actor, "failed in takeover: the successor exited with status 0");
    assert!(actor.has("Draining -> Running"));
}

#[test]
fn a_successor_that_dies_while_its_predecessor_drains_is_rolled_back() {
    let mut actor = Start::actor().pid_file().serve();
    let (mut session, first) = actor.upgrade_around_a_session();
    let (second, _) = actor.who();
    actor.signal(second, Signal::SIGKILL);
    let line = actor.wait_for("failed in");
    assert!(line.contains("failed in draining: the successor was killed by SIGKILL"), "{line}");
    assert_eq!(actor.who(), (first, 0));
    assert_eq!(session.who(), (first, 0));
    actor.is_named(first);
    // And the next one is as good as any.
    drop(session);
    assert_ne!(actor.upgrade(), second);
}

#[test]
fn a_successor_that_is_killed_in_the_millisecond_of_its_ready_byte_is_rolled_back() {
    let actor = Start::actor().pid_file().faults().serve();
    actor.fault(Point::ReadySaid, "kill");
    fails(actor, "failed in takeover: the successor was killed by SIGKILL");
}

#[test]
fn a_successor_that_dies_as_it_says_that_it_serves_is_reported_in_order() {
    let mut actor = Start::actor().pid_file().faults().serve();
    let first = actor.pid();
    // The predecessor hears both in one turn.
    actor.faults(&[(Point::ServingSaid, "kill"), (Point::CommitSent, "pass")]);
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("done; spawn");
    actor.wait_for("report: ok");
    let line = actor.wait_for("failed in");
    assert!(line.contains("failed in draining: the successor was killed by SIGKILL"), "{line}");
    actor.wait_for("report: failed");
    assert_eq!(actor.who(), (first, 0));
    assert_eq!(actor.count("report: "), 2);
}

#[test]
fn a_successor_that_dies_on_probation_is_rolled_back_even_with_no_session_left() {
    let mut actor = Start::actor().pid_file().args(&["--probation-ms", "3600000"]).serve();
    let first = actor.pid();
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("done; spawn");
    let (second, _) = actor.who();
    actor.signal(second, Signal::SIGKILL);
    actor.wait_for("Draining -> Running");
    assert_eq!(actor.who(), (first, 0));
}

#[test]
fn a_successor_that_stands_still_on_probation_is_rolled_back() {
    let deadlines = ["--probation-ms", "20", "--takeover-ms", "300"];
    let mut actor = Start::actor().pid_file().faults().args(&deadlines).serve();
    let first = actor.pid();
    actor.fault(Point::ServingSaid, "stop");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("done; spawn");
    // It serves by its own word, and does nothing: a client waits for whoever accepts.
    let line = actor.wait_for("failed in");
    let stands_still = "failed in draining: the successor stands still: it did not answer";
    assert!(line.contains(stands_still), "{line}");
    assert_eq!(actor.who(), (first, 0));
    actor.is_named(first);
    until("it is reaped", || children_of(first).is_empty());
    actor.upgrade();
}

#[test]
fn an_answer_that_nobody_asked_for_is_nonsense_and_proves_nothing() {
    let mut actor =
        Start::actor().args(&["--probation-ms", "3600000"]).at(1, "raw-answers-unasked").serve();
    let first = actor.pid();
    actor.signal(first, Signal::SIGHUP);
    let line = actor.wait_for("failed in");
    assert!(line.contains("talked nonsense: PONG out of turn"), "{line}");
    assert_eq!(actor.who(), (first, 0));
}

#[test]
fn a_successor_that_serves_and_exits_with_status_0_is_rolled_back_because_it_was_not_told_to_stop()
{
    let mut actor = Start::actor().pid_file().faults().serve();
    let mut session = actor.connect();
    let (first, _) = session.who();
    actor.fault(Point::ServingSaid, "exit 0");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("Draining -> Running");
    let line = actor.wait_for("failed in");
    assert!(line.contains("the successor exited with status 0"), "{line}");
    assert_eq!(session.who(), (first, 0), "it goes on");
    assert_eq!(actor.who(), (first, 0), "and serves whoever comes");
    actor.upgrade_around_a_session();
}

#[test]
fn a_rollback_needs_no_space_on_the_disk() {
    let mut actor = Start::actor().pid_file().args(&["--probation-ms", "3600000"]).serve();
    let first = actor.pid();
    let spare = actor.place.path().join(format!(".pid.{first}"));
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("done; spawn");
    let said = fs::read_to_string(&spare).expect("it is kept while it may be needed");
    assert_eq!(said, format!("{first}\n"));
    let (second, _) = actor.who();
    actor.signal(second, Signal::SIGKILL);
    actor.wait_for("Draining -> Running");
    until("it was renamed", || !spare.exists());
}

#[test]
fn a_hup_to_both_is_carried_out_by_the_predecessor_if_the_successor_dies() {
    let mut actor = Start::actor().args(&["--probation-ms", "3600000"]).serve();
    let first = actor.pid();
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("done; spawn");
    let (second, _) = actor.who();
    actor.signal(second, Signal::SIGHUP);
    actor.wait_for("upgrade requested of the successor");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("upgrade requested, and carried out as soon as it can be");
    actor.signal(second, Signal::SIGKILL);
    actor.wait_for("Draining -> Running");
    actor.wait_for("Running -> Upgrading: pause over");
    actor.wait_for("done; spawn");
    let (third, generation) = actor.who();
    assert_eq!(generation, 1, "in place of the one that was lost");
    assert!(![first, second].contains(&third));
}

/// Otherwise a program that asks for an upgrade and dies would be started for ever.
#[test]
fn what_only_a_lost_successor_was_asked_for_is_dropped_in_words() {
    let mut actor = Start::actor().args(&["--probation-ms", "3600000"]).serve();
    let first = actor.pid();
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("done; spawn");
    let (second, _) = actor.who();
    actor.signal(second, Signal::SIGHUP);
    actor.wait_for("upgrade requested of the successor");
    actor.signal(second, Signal::SIGKILL);
    actor.wait_for("Draining -> Running");
    actor.wait_for("failed in");
    actor.wait_for("an upgrade was requested and is not carried out");
    // The next request is another one.
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("done; spawn");
}

#[test]
fn a_program_that_asks_for_an_upgrade_and_dies_is_started_once_for_each_hup() {
    let mut actor = Start::actor().at(1, "ask").at(1, "exit:3").serve();
    let first = actor.pid();
    for failure in 1..=3 {
        actor.signal(first, Signal::SIGHUP);
        actor.wait_for("failed in");
        actor.wait_for("report: failed");
        assert_eq!(actor.count("failed in"), failure);
    }
    assert_eq!(actor.who(), (first, 0));
    assert_eq!(actor.count("Running -> Upgrading"), 3, "no more than were asked for");
}

#[test]
fn failures_in_a_row_wait_longer_and_longer_for_the_next_upgrade() {
    let mut actor = Start::actor().at(1, "exit:3").serve();
    let first = actor.pid();
    actor.signal(first, Signal::SIGHUP);
    for _ in 0..5 {
        // As fast as it can be heard.
        actor.wait_for("failed in");
        actor.signal(first, Signal::SIGHUP);
        actor.wait_for("upgrade requested, and carried out as soon as it can be");
        actor.wait_for("Running -> Upgrading: pause over");
    }
    actor.wait_for("failed in");
    assert_eq!(actor.who(), (first, 0));
}

#[test]
fn a_successor_that_was_slow_and_has_answered_by_the_deadline_is_proven() {
    let deadlines = ["--probation-ms", "20", "--takeover-ms", "100"];
    let mut actor = Start::actor().faults().args(&deadlines).serve();
    let first = actor.pid();
    actor.fault(Point::PingSent, "stop");
    actor.signal(first, Signal::SIGHUP);
    until("it stands still", || state_of(first) == Some('T'));
    let asked = Instant::now();
    let (second, _) = actor.who();
    assert_ne!(second, first);
    // Until its own deadline has passed: it notices that together with the answer.
    until("it is answered", || actor.has("asked by the predecessor"));
    until("its deadline is over", || asked.elapsed() > Duration::from_millis(150));
    actor.signal(first, Signal::SIGCONT);
    actor.wait_for("alone");
    assert!(!actor.has("failed in"));
}

/// The word comes after the poll and before the deadline is looked at: only the last look can find it.
#[test]
fn a_word_that_the_last_look_finds_wins_over_its_deadline() {
    for (still, said) in [
        (Point::SetUp, Point::ReadySaid),
        (Point::Paused, Point::CommitSent),
        (Point::PidFileWritten, Point::ServingSaid),
        (Point::PingHeard, Point::PongSaid),
    ] {
        let deadlines = ["--upgrade-ms", "500", "--takeover-ms", "500", "--probation-ms", "20"];
        let mut actor = Start::actor().faults().args(&deadlines).serve();
        actor.faults(&[(still, "stop"), (Point::LastLook, "stop"), (said, "pass")]);
        actor.signal(actor.pid(), Signal::SIGHUP);
        let mut stopped = |at: Point| {
            let line = actor.wait_for(&format!("fault at {at:?}"));
            let pid = pid_of(&line).expect("a process id");
            until("it stands still", || state_of(pid) == Some('T'));
            pid
        };
        let (speaker, looker) = (stopped(still), stopped(Point::LastLook));
        assert_ne!(speaker, looker);
        actor.signal(speaker, Signal::SIGCONT);
        actor.wait_for(&format!("struck at {said:?}"));
        actor.signal(looker, Signal::SIGCONT);
        actor.wait_for("alone");
        assert!(!actor.has("failed in"), "{said:?}");
    }
}

#[test]
fn a_predecessor_that_stands_still_after_its_commit_is_killed_and_the_wanted_upgrade_begins() {
    let deadlines = ["--drain-ms", "200", "--takeover-ms", "100"];
    let mut actor = Start::actor().pid_file().faults().args(&deadlines).serve();
    let first = actor.pid();
    actor.fault(Point::CommitSent, "stop");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("fault at CommitSent");
    let (second, generation) = actor.who();
    assert_eq!(generation, 1);
    actor.signal(second, Signal::SIGHUP);
    actor.wait_for("upgrade requested, and carried out as soon as it can be");
    let line = actor.wait_for("did not leave");
    let killed = format!("the predecessor {first} did not leave within 500ms: killing it");
    assert!(line.contains(&killed), "{line}");
    actor.wait_for("alone");
    actor.wait_for("alone");
    assert_eq!(actor.who().1, 2);
}

#[test]
fn a_spawn_that_is_slower_than_the_upgrade_timeout_leaves_nothing_in_the_end() {
    let start = Start::actor().pid_file().faults().args(&["--upgrade-ms", "200"]);
    let answer = start.path_of("answer");
    let mut actor = start.at(1, "raw-hang").serve();
    let first = actor.pid();
    // It is held open, and has its name by then.
    actor.is_named(first);
    let before = descriptors_of(first);
    actor.fault(Point::Spawned, &format!("wait {answer}"));
    let successor = actor.give_birth(first);
    let line = actor.wait_for("failed in");
    assert!(line.contains("not ready within 200ms"), "{line}");
    // It is not known yet whom to kill, and nobody waits for that.
    assert_eq!(actor.who(), (first, 0));
    assert!(is_alive(successor));
    fs::write(answer, "").expect("a file");
    until("it is killed and reaped", || children_of(first).is_empty());
    until("no descriptor is left", || descriptors_of(first) == before);
}

/// Otherwise one that is quick enough to accept would go on polling beside its predecessor (I3).
#[test]
fn a_successor_that_has_said_hello_is_killed_before_its_spawn_has_an_answer() {
    let start = Start::actor().pid_file().faults().args(&["--takeover-ms", "300"]);
    let answer = start.path_of("answer");
    let mut actor = start.serve();
    let first = actor.pid();
    actor.faults(&[(Point::Spawned, &format!("wait {answer}")), (Point::ServingSaid, "stop")]);
    let successor = actor.give_birth(first);
    actor.wait_for("fault at ServingSaid");
    let line = actor.wait_for("failed in");
    assert!(line.contains("did not answer within 300ms"), "{line}");
    until("it is dead", || !is_alive(successor));
    assert_eq!(actor.who(), (first, 0));
    fs::write(answer, "").expect("a file");
    until("it is reaped", || children_of(first).is_empty());
    actor.upgrade();
}

/// What a dead process has said is read to its end; and somebody else who has its socket has no end.
#[test]
fn a_child_that_a_dead_successor_has_left_writing_holds_up_nobody() {
    let actor = Start::actor().pid_file().at(1, "raw-leaves-a-writer").serve();
    fails(actor, "the successor exited with status 7");
}

#[test]
fn a_rollback_ends_the_draining_of_the_sessions() {
    let mut actor = Start::actor().serve();
    let (mut session, first) = actor.upgrade_around_a_session();
    let (second, _) = actor.who();
    actor.wait_for("drain, shutting down: false");
    actor.signal(second, Signal::SIGKILL);
    actor.wait_for("Draining -> Running");
    let (drained, back) = (actor.count("drain, shutting down"), Instant::now());
    // They would be asked every 100 ms.
    until("they had their time", || back.elapsed() > Duration::from_millis(250));
    assert_eq!(session.who(), (first, 0));
    assert_eq!(actor.count("drain, shutting down"), drained);
}

#[test]
fn more_messages_than_a_turn_reads_are_read_in_the_next_one() {
    let mut actor = Start::actor().faults().args(&["--probation-ms", "300"]).serve();
    let first = actor.pid();
    // All at once, and then nothing that would wake the successor up.
    actor.fault(Point::ServingHeard, "garbage 200");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("asked by the predecessor");
    actor.wait_for("alone");
    assert_eq!(actor.count("talked nonsense"), 200);
}

#[test]
fn a_commit_that_does_not_fit_into_the_handoff_socket_is_none() {
    let actor = Start::actor().pid_file().faults().at(1, "raw-ready-and-hang").serve();
    actor.fault(Point::Paused, "drown");
    let mut actor = fails(actor, "failed in takeover: the successor does not read the handoff");
    assert!(actor.has("Draining -> Running"));
}

#[test]
fn a_predecessor_that_was_told_to_stop_does_not_come_back() {
    let mut actor = Start::actor().pid_file().args(&["--probation-ms", "3600000"]).serve();
    let (mut session, first) = actor.upgrade_around_a_session();
    let (second, _) = actor.who();
    actor.signal(first, Signal::SIGTERM);
    actor.wait_for("stop listening.");
    actor.signal(second, Signal::SIGKILL);
    assert_eq!(session.who(), (first, 0), "it ends what it has");
    drop(session);
    assert!(actor.first_exits().success());
    assert!(!actor.has("Draining -> Running"));
}

#[test]
fn a_predecessor_that_panics_before_the_commit_leaves_the_listeners_to_the_successor() {
    let mut actor = Start::actor().gate(1).serve();
    let first = actor.pid();
    let mut session = actor.connect();
    session.who();
    let successor = actor.give_birth(first);
    actor.wait_for("the successor is");
    session.send("panic\n");
    assert!(session.is_at_end());
    actor.open_gate();
    actor.wait_for("alone");
    assert_eq!(actor.who(), (successor, 1));
}

/// Its server is dropped on the way out, which is not to take the service with it: nobody has asked
/// for an end.
#[test]
fn a_predecessor_that_panics_in_the_commit_leaves_the_listeners_to_the_successor() {
    let mut actor = Start::actor().pid_file().serve();
    let first = actor.pid();
    actor.fault(Point::Paused, "panic");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("alone");
    let (second, generation) = actor.who();
    assert_ne!(second, first);
    assert_eq!(generation, 1);
    actor.is_named(second);
    actor.upgrade();
}

#[test]
fn a_hundred_hups_in_a_slow_set_up_do_not_drown_the_commit() {
    let mut actor = Start::actor().gate(1).serve();
    let first = actor.pid();
    actor.give_birth(first);
    // More than the handoff socket could hold, if each of them were passed on.
    for _ in 0..600 {
        actor.signal(first, Signal::SIGHUP);
        actor.wait_for("upgrade requested, and carried out as soon as it can be");
    }
    actor.open_gate();
    actor.wait_for("alone");
    actor.wait_for("alone");
    assert_eq!(actor.who().1, 2, "all of them are one");
    assert!(!actor.has("failed in"));
}

#[test]
fn an_upgrade_that_runs_out_of_descriptors_at_any_step_leaves_no_trace() {
    let mut actor = Start::actor().pid_file().serve();
    let pid = actor.pid();
    // It is held open, and has its name by then.
    actor.is_named(pid);
    let bare = descriptors_of(pid);
    let mut failed = 0;
    for free in 0.. {
        until("no client is left", || descriptors_of(pid) == bare);
        // The limit is on the number: as many free ones as wanted lie below it.
        let taken =
            |number: &u64| std::fs::symlink_metadata(format!("/proc/{pid}/fd/{number}")).is_ok();
        let most = (0..).filter(|number| !taken(number)).nth(free).expect("endless");
        let was = limit_descriptors(pid, most);
        actor.signal(pid, Signal::SIGHUP);
        let line = actor.wait_for_any(&["failed in", "done; spawn"]);
        limit_descriptors(pid, was);
        if line.contains("done") {
            break;
        }
        failed += 1;
        until("nothing is left of it", || {
            children_of(pid).is_empty() && descriptors_of(pid) == bare
        });
        assert_eq!(actor.who(), (pid, 0), "with {free} free: {line}");
    }
    assert!(failed >= 5, "pipe, socket, pidfd: {failed} failures");
    // Before a successor meets the limit, it is refused in words.
    assert!(actor.has("descriptors are in use, too many for a successor"));
}

#[test]
fn a_successor_that_is_told_to_stop_ends_the_service() {
    let start = Start::actor();
    let path = start.path_of("echo.sock");
    let mut actor = start.pid_file().args(&["--listen", &format!("path=unix:{path}")]).serve();
    let (mut session, first) = actor.upgrade_around_a_session();
    let (second, _) = actor.who();
    actor.signal(second, Signal::SIGQUIT);
    actor.wait_for("drain, shutting down: true");
    // No rollback: the predecessor ends what it has, and then itself.
    assert_eq!(session.who(), (first, 0));
    until("the successor is gone", || !is_alive(second));
    drop(session);
    assert!(actor.first_exits().success());
    assert!(!actor.has("Draining -> Running"));
    assert!(!Path::new(&path).exists());
    assert!(!actor.place.path().join("pid").exists());
}

#[test]
fn a_predecessor_that_dies_before_the_commit_leaves_the_listeners_to_the_successor() {
    let mut actor = Start::actor().pid_file().gate(1).serve();
    let first = actor.pid();
    let successor = actor.give_birth(first);
    // It has said HELLO, and so has all it needs.
    actor.wait_for("the successor is");
    actor.signal(first, Signal::SIGKILL);
    actor.open_gate();
    actor.wait_for("alone");
    let (second, generation) = actor.who();
    assert_eq!((second, generation), (successor, 1));
    actor.is_named(second);
    let spare = actor.place.path().join(format!(".pid.{first}"));
    until("what it kept for a rollback went with it", || !spare.exists());
    actor.upgrade();
}

#[test]
fn a_successor_that_is_never_committed_to_gives_way() {
    let mut actor = Start::actor().pid_file().args(&["--takeover-ms", "300"]).gate(1).serve();
    let first = actor.pid();
    let successor = actor.give_birth(first);
    actor.wait_for("the successor is");
    // The predecessor stands still, and the successor says ready to nobody.
    actor.signal(first, Signal::SIGSTOP);
    actor.open_gate();
    actor.wait_for("the predecessor did not commit to this process within");
    until("it has given way", || !is_alive(successor));
    // Whenever it wakes up, it finds a ready byte, and nobody behind it.
    actor.signal(first, Signal::SIGCONT);
    let line = actor.wait_for("failed in");
    assert!(line.contains("did not commit to this process within"), "{line}");
    assert_eq!(actor.who(), (first, 0));
    actor.is_named(first);
}

#[test]
fn a_predecessor_that_is_slow_to_die_is_waited_for() {
    // The kernel frees its memory before it closes its descriptors, which takes longer than the
    // successor would wait for a commit.
    let mut actor =
        Start::actor().args(&["--ballast-mib", "256", "--takeover-ms", "1"]).gate(1).serve();
    let first = actor.pid();
    let successor = actor.give_birth(first);
    actor.wait_for("the successor is");
    actor.signal(first, Signal::SIGKILL);
    actor.open_gate();
    actor.wait_for("alone");
    assert_eq!(actor.who(), (successor, 1));
}

#[test]
fn a_shutdown_in_the_moment_of_the_takeover_stops_both() {
    let start = Start::actor();
    let path = start.path_of("echo.sock");
    let mut actor = start
        .pid_file()
        .args(&["--listen", &format!("path=unix:{path}")])
        .at(1, "raw-ready-and-hang")
        .serve();
    let first = actor.pid();
    let successor = actor.give_birth(first);
    actor.wait_for("quit the listening");
    actor.signal(first, Signal::SIGTERM);
    let line = actor.wait_for("failed in");
    assert!(line.contains("failed in takeover: this process was told to stop"), "{line}");
    assert!(actor.first_exits().success());
    until("the successor is dead", || !is_alive(successor));
    let left = fs::read_dir(actor.place.path()).expect("a directory").count();
    assert_eq!(left, 0, "no path, no pid file");
}

#[test]
fn a_shutdown_while_upgrading_kills_the_successor_first() {
    let mut actor = Start::actor().pid_file().at(1, "hang").serve();
    let first = actor.pid();
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("the successor is");
    actor.signal(first, Signal::SIGTERM);
    let line = actor.wait_for("failed in");
    assert!(line.contains("this process was told to stop"), "{line}");
    assert!(actor.first_exits().success());
    assert_eq!(actor.alive(), []);
    assert_eq!(fs::read_dir(actor.place.path()).expect("a directory").count(), 0);
}
