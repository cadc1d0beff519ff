//! Ring three: a start under odd circumstances, and a process that is left as it was found.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use harness::{Actor, Start, copy_program, example, is_alive, until};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask, raise};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tablecloth::{Accepted, Config, Context, Error, Handler, IoEvent, Server, Stream, Verdict};

/// The actor, executed by a shell that does something first.
fn after(script: &str) -> Start {
    let script = format!("{script} \"$0\" \"$@\"");
    let actor = example("actor");
    let arguments = ["-c", &script, actor.to_str().expect("text"), "--listen", "main=127.0.0.1:0"];
    Start::path("/bin/sh".into()).args(&arguments)
}

fn directory_of(pid: u32) -> String {
    let link = fs::read_link(format!("/proc/{pid}/cwd")).expect("the process is there");
    link.to_str().expect("text").into()
}

/// Who waits for signals with sigwait(3) or signalfd(2) blocks them, and the mask comes through
/// execve(2).
#[test]
fn signals_that_the_parent_blocks_are_heard_all_the_same() {
    let signals = [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];
    let set: SigSet = signals.into_iter().collect();
    for end in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before)).expect("blocked");
        let start = Start::actor().spawn();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).expect("as it was");
        let mut actor = start;
        actor.wait_for("generation 0, successor: false");
        // HUP in the first process and in a successor.
        actor.upgrade();
        let pid = actor.upgrade();
        actor.signal(pid, end);
        until("it has ended", || !is_alive(pid));
    }
}

/// As `trap '' CHLD` does, and many a supervisor.
#[test]
fn a_parent_that_ignores_its_children_takes_no_exit_status_away() {
    let mut actor = after("trap '' CHLD; exec").at(1, "exit:3").serve();
    let (pid, _) = actor.who();
    for _ in 0..3 {
        actor.signal(pid, Signal::SIGHUP);
        actor.wait_for("the successor exited with status 3");
    }
    assert_eq!(actor.who(), (pid, 0));
}

#[test]
fn a_program_that_exits_at_once_is_reported_with_its_status_each_time() {
    let place = harness::place();
    let server = place.path().join("server");
    copy_program(&example("actor"), &server);
    let mut actor = Start::path(server.clone()).args(&["--listen", "main=127.0.0.1:0"]).serve();
    fs::remove_file(&server).expect("removed");
    copy_program(Path::new("/bin/false"), &server);
    let (pid, _) = actor.who();
    for _ in 0..20 {
        actor.signal(pid, Signal::SIGHUP);
        let line = actor.wait_for("failed in");
        assert!(line.contains("the successor exited with status 1"), "{line}");
    }
    assert_eq!(actor.who(), (pid, 0));
}

#[test]
fn a_working_directory_that_was_removed_does_not_hinder() {
    let place = harness::place();
    let directory = place.path().join("release");
    let shown = directory.display();
    let known = format!("mkdir {shown}; cd {shown}; exec");
    // Gone before the program begins, with and without somebody who says what it was.
    let gone = format!("mkdir {shown}; cd {shown}; rmdir {shown}; exec");
    let unknown = format!("mkdir {shown}; cd {shown}; rmdir {shown}; exec env -u PWD");
    for (script, line) in [
        (known, "cannot enter its directory"),
        (gone, "cannot enter its directory"),
        (unknown, "working directory cannot be found"),
    ] {
        let mut actor = after(&script).serve();
        let _ = fs::remove_dir(&directory);
        for _ in 0..2 {
            actor.upgrade();
        }
        assert!(actor.has(line), "{script}");
        let deleted = format!("{shown} (deleted)");
        assert_eq!(directory_of(actor.who().0), deleted, "it stays where it is");
    }
}

/// And if there is one of that name again, the successor is in it.
#[test]
fn a_directory_that_has_come_back_is_entered() {
    let place = harness::place();
    let directory = place.path().join("release");
    let shown = directory.display();
    let mut actor = after(&format!("mkdir {shown}; cd {shown}; exec")).serve();
    fs::remove_dir(&directory).expect("removed");
    actor.upgrade();
    fs::create_dir(&directory).expect("made");
    let pid = actor.upgrade();
    assert_eq!(directory_of(pid), shown.to_string());
}

/// `sudo -u www server` in a directory of root's.
#[test]
fn a_working_directory_that_may_not_be_entered_does_not_hinder() {
    let has_setpriv = std::process::Command::new("setpriv").arg("--version").output().is_ok();
    if !rustix::process::geteuid().is_root() || !has_setpriv {
        eprintln!("not tried: it takes root, and setpriv");
        return;
    }
    let place = harness::place();
    let (server, home) = (place.path().join("server"), place.path().join("root"));
    copy_program(&example("actor"), &server);
    fs::create_dir(&home).expect("a directory");
    let allow = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    allow(place.path(), 0o755).expect("changed");
    allow(&server, 0o755).expect("changed");
    allow(&home, 0o700).expect("changed");
    let script = format!(
        "cd {}; exec setpriv --reuid 54321 --regid 54321 --clear-groups {} \"$@\"",
        home.display(),
        server.display(),
    );
    let shell = Start::path("/bin/sh".into()).args(&["-c", &script, "sh"]);
    let mut actor = shell.args(&["--listen", "main=127.0.0.1:0"]).serve();
    for _ in 0..2 {
        let pid = actor.upgrade();
        assert_eq!(directory_of(pid), home.to_str().expect("text"));
    }
    assert!(actor.has("cannot enter its directory"));
    assert!(actor.has("Permission denied"));
}

#[test]
fn a_directory_that_was_reached_by_a_link_is_reached_by_it_again() {
    let place = harness::place();
    for release in ["1", "2"] {
        fs::create_dir(place.path().join(release)).expect("a directory");
    }
    let current = place.path().join("current");
    symlink("1", &current).expect("a link");
    let mut actor = after(&format!("cd {}; exec", current.display())).serve();
    assert!(directory_of(actor.pid()).ends_with("/1"));
    for release in ["2", "1"] {
        symlink(release, place.path().join("new")).expect("a link");
        fs::rename(place.path().join("new"), &current).expect("renamed");
        let pid = actor.upgrade();
        assert!(directory_of(pid).ends_with(release));
        let environment = fs::read(format!("/proc/{pid}/environ")).expect("there");
        let told = format!("PWD={}", current.display());
        let tells = |variable: &&[u8]| *variable == told.as_bytes();
        assert_eq!(environment.split(|byte| *byte == 0).filter(tells).count(), 1);
    }
}

/// A proxy that waits for its routes, as for a slow name server.
#[test]
fn a_hup_before_there_is_a_server_is_late_and_not_deadly() {
    let start = Start::program("proxy");
    let [fifo, file] = ["routes", "file"].map(|name| start.path_of(name));
    let routes = b"127.0.0.1:0 -> 127.0.0.1:9\n";
    mkfifo(fifo.as_str(), Mode::from_bits_truncate(0o600)).expect("a fifo");
    fs::write(&file, routes).expect("written");
    let mut actor: Actor = start.args(&["--routes", &fifo]).spawn();
    // It opens once the proxy has opened it, too: then that is reading its routes.
    let mut writer = OpenOptions::new().write(true).open(&fifo).expect("opened");
    fs::rename(&file, &fifo).expect("for the successor");
    actor.signal(actor.pid(), Signal::SIGHUP);
    writer.write_all(routes).expect("written");
    drop(writer);
    actor.wait_for("Running -> Upgrading");
    actor.wait_for("done; spawn");
}

/// Counts the signals that it is told of.
#[derive(Default)]
struct Told(usize);

impl Handler for Told {
    type Session = Stream;

    fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Stream> {
        Ok(accepted.stream)
    }

    fn event(&mut self, _: &mut Context<'_>, _: &mut Stream, _: IoEvent) -> Verdict {
        Verdict::Close
    }

    fn signal(&mut self, _: &mut Context<'_>, _: i32) {
        self.0 += 1;
    }
}

/// Whether a signal is in that set of this thread (proc(5)): `SigBlk` is blocked, `SigCgt` handled.
fn is_in(set: &str, signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix(set)).expect("a set of signals");
    let mask = u64::from_str_radix(line.trim_start_matches(':').trim(), 16).expect("a mask");
    mask & 1 << (signal as i32 - 1) != 0
}

/// For the tests that have their server in this process, where there can be one at a time.
static ONE: Mutex<()> = Mutex::new(());

#[test]
fn signals_that_were_held_are_let_through_by_the_server_and_held_again_after_it() {
    let _one = ONE.lock().unwrap_or_else(|poison| poison.into_inner());
    Config::default().hold_signals();
    let held = [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGINT];
    assert!(held.iter().all(|signal| is_in("SigBlk", *signal)));
    // Also one that the server has no use for in the end.
    let mut config = Config::default();
    config.shutdown_signals = vec![Signal::SIGTERM as i32];
    let server = Server::new(config).expect("a server");
    assert!(!held.iter().any(|signal| is_in("SigBlk", *signal)));
    assert!(!is_in("SigCgt", Signal::SIGQUIT));
    drop(server);
    assert!(held.iter().all(|signal| is_in("SigBlk", *signal)));
}

#[test]
fn a_process_is_left_as_it_was_found_and_can_have_another_server() {
    let _one = ONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let mut config = Config::default();
    config.user_signals = vec![Signal::SIGUSR1 as i32];
    let make = || Ok(Server::new(config.clone())?.start(Told::default()));
    let blocked: SigSet = [Signal::SIGUSR1, Signal::SIGTERM].into_iter().collect();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None).expect("blocked");
    // Where a child's status is lost, it is lost on purpose; here nobody has said so.
    let handles_children = is_in("SigCgt", Signal::SIGCHLD);
    for round in 1..=3 {
        // What was sent before is late.
        raise(Signal::SIGUSR1).expect("sent");
        let mut server = make().expect("a server");
        for signal in [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
            assert!(is_in("SigCgt", signal), "{signal} is handled in round {round}");
            assert!(!is_in("SigBlk", signal), "{signal} is let through in round {round}");
        }
        let refused = make().expect_err("one at a time");
        assert!(matches!(refused, Error::AnotherServer), "{refused}");
        assert!(is_in("SigCgt", Signal::SIGHUP), "and the first one is as it was");
        raise(Signal::SIGUSR1).expect("sent");
        until("it is told of the signal", || {
            server.turn(Some(Duration::ZERO)).expect("a turn");
            server.handler().0 > 0
        });
        if round == 2 {
            server.remote().request_exit();
            server.run().expect("it ends");
        } else {
            drop(server);
        }
        for signal in [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
            assert!(!is_in("SigCgt", signal), "{signal} is at its default after round {round}");
            let was_blocked = blocked.contains(signal);
            assert_eq!(is_in("SigBlk", signal), was_blocked, "{signal} after round {round}");
        }
        assert_eq!(is_in("SigCgt", Signal::SIGCHLD), handles_children);
    }
}
