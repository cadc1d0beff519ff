//! Ring three: started as root, with a low port and a pid file, and a user from then on.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use harness::{Actor, Start, children_of, is_alive, until};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;

const USER: u32 = 65534;

fn is_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        eprintln!("skipped: only root can become somebody else");
    }
    is_root
}

/// A low port that nobody listens on. Root binds it a moment later, and somebody else may be faster: a test that
/// asks for another one then would be no better.
fn low_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let first = 600 + std::process::id() % 300;
    (first as u16..1024).find(free).expect("a free port")
}

/// A place in which the user may make files, or may not.
fn open_place(start: &Start, mode: u32) -> String {
    let path = start.path_of("run");
    fs::create_dir(&path).expect("made");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
    let place = Path::new(&path).parent().expect("a place").to_path_buf();
    // The test's own directory is root's alone.
    fs::set_permissions(place, fs::Permissions::from_mode(0o755)).expect("set");
    path
}

fn demo() -> Start {
    Start::program("demo").args(&["--user", "nobody", "--probation", "0"])
}

fn served(start: Start) -> Actor {
    let mut actor = start.args(&["--log-level", "debug"]).spawn();
    actor.wait_for("Running: set up");
    actor
}

fn status(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("there");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.expect("a line").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// In every thread.
fn is_nobody(pid: u32) {
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("there").flatten() {
        let task = task.file_name().to_str().expect("text").parse().expect("a number");
        let all = |id: u32| [id; 4].map(|id| id.to_string()).join(" ");
        assert_eq!(status(task, "Uid"), all(USER));
        assert_eq!(status(task, "Gid"), all(USER));
        assert_eq!(status(task, "Groups"), USER.to_string());
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(task, set), "0000000000000000", "{set}");
        }
    }
}

fn upgraded(actor: &mut Actor, pid: u32) -> u32 {
    actor.signal(pid, Signal::SIGHUP);
    let done = actor.wait_for("done; spawn");
    actor.wait_for("finish the old process");
    let successor = done.split_once(" -> ").expect("two processes").1;
    successor.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a process id")
}

#[test]
fn a_low_port_is_inherited_by_every_successor_of_a_process_that_is_root_no_more() {
    if !is_root() {
        return;
    }
    let port = low_port();
    let address = format!("127.0.0.1:{port}");
    let start = demo();
    let file = format!("{}/pid", open_place(&start, 0o777));
    let mut actor = served(start.args(&["--listen", &address, "--pid-file", &file]));
    let mut pid = actor.pid();
    for _ in 0..3 {
        is_nobody(pid);
        let named = || fs::read_to_string(&file).is_ok_and(|named| named == format!("{pid}\n"));
        until("the pid file names it", named);
        assert_eq!(fs::metadata(&file).expect("there").uid(), USER);
        let mut client = harness::Client::connect(&address);
        assert_eq!(client.ask("who\n"), "who");
        drop(client);
        let next = upgraded(&mut actor, pid);
        until("the predecessor has ended", || !is_alive(pid));
        pid = next;
    }
    is_nobody(pid);
    actor.signal(pid, Signal::SIGTERM);
    actor.wait_for("finish the process");
    until("the pid file is gone", || !Path::new(&file).exists());
}

#[test]
fn where_only_root_makes_files_the_pid_file_is_written_in_place_and_left_empty() {
    if !is_root() {
        return;
    }
    let start = demo();
    let file = format!("{}/pid", open_place(&start, 0o755));
    let mut actor = served(start.args(&["--listen", "127.0.0.1:0", "--pid-file", &file]));
    let first = actor.pid();
    is_nobody(first);
    let named = |pid| fs::read_to_string(&file).is_ok_and(|named| named == format!("{pid}\n"));
    assert!(named(first));
    let second = upgraded(&mut actor, first);
    until("the pid file names the successor", || named(second));
    actor.signal(second, Signal::SIGTERM);
    actor.wait_for("finish the process");
    until("the pid file names nobody", || fs::read_to_string(&file).is_ok_and(|it| it.is_empty()));
    // And the next start takes it again.
    let start = demo().args(&["--listen", "127.0.0.1:0", "--pid-file", &file]);
    let again = served(start);
    assert!(named(again.pid()));
}

#[test]
fn a_pid_file_that_the_user_cannot_write_fails_the_start() {
    if !is_root() {
        return;
    }
    let start = demo();
    let file = format!("{}/pid", open_place(&start, 0o700));
    let (status, text) = start.args(&["--listen", "127.0.0.1:0", "--pid-file", &file]).run();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("pid file {file}: write: Permission denied")), "{text}");
}

#[test]
fn a_new_low_port_fails_the_upgrade_in_words_and_the_service_goes_on() {
    if !is_root() {
        return;
    }
    let (port, upstream) = (low_port(), TcpListener::bind("127.0.0.1:0").expect("bound"));
    let upstream = upstream.local_addr().expect("an address");
    let start = Start::program("proxy").args(&["--user", "nobody", "--probation", "0"]);
    open_place(&start, 0o755);
    let routes = start.path_of("routes");
    let old = format!("127.0.0.1:0 -> {upstream}\n");
    fs::write(&routes, &old).expect("written");
    let mut actor = served(start.args(&["--routes", &routes]));
    let pid = actor.pid();
    is_nobody(pid);
    fs::write(&routes, format!("{old}127.0.0.1:{port} -> {upstream}\n")).expect("written");
    actor.signal(pid, Signal::SIGHUP);
    let line = actor.wait_for("failed");
    assert!(line.contains(&format!("on 127.0.0.1:{port}: bind: Permission denied")), "{line}");
    assert!(line.contains("start the service anew, as root"), "{line}");
    fs::write(&routes, &old).expect("written");
    let successor = upgraded(&mut actor, pid);
    is_nobody(successor);
}

#[test]
fn who_cannot_become_the_user_does_not_serve() {
    if !is_root() {
        return;
    }
    for (user, reason) in [
        ("no-such-user", "there is no user"),
        ("root", "without privileges"),
        ("54321", "say it, as in USER:GROUP"),
    ] {
        let start = Start::program("demo").args(&["--listen", "127.0.0.1:0", "--user", user]);
        let (status, text) = start.run();
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(text.contains(reason), "{text}");
        assert!(!text.contains("Running"), "{text}");
    }
    // As somebody who is neither root nor that user.
    let demo = harness::example("demo");
    let place = harness::place();
    let copy = place.path().join("demo");
    harness::copy_program(&demo, &copy);
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("set");
    let ids = ["--reuid=12345", "--regid=12345", "--clear-groups"];
    let start = Start::path("/usr/bin/setpriv".into()).args(&ids);
    let start = start.args(&[copy.to_str().expect("text"), "--listen", "127.0.0.1:0"]);
    let (status, text) = start.args(&["--user", "nobody"]).run();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("this process is user 12345, and no longer root"), "{text}");
}

/// A number is enough: a container from scratch has no file of users.
#[test]
fn a_user_by_number_needs_no_entry() {
    if !is_root() {
        return;
    }
    let start = Start::program("demo").args(&["--listen", "127.0.0.1:0", "--probation", "0"]);
    let mut actor = served(start.args(&["--user", "54321:12345"]));
    assert_eq!(status(actor.pid(), "Uid"), "54321 54321 54321 54321");
    assert_eq!(status(actor.pid(), "Gid"), "12345 12345 12345 12345");
    assert_eq!(status(actor.pid(), "Groups"), "12345");
    let first = actor.pid();
    let successor = upgraded(&mut actor, first);
    assert_eq!(status(successor, "Uid"), "54321 54321 54321 54321");
}

/// Two processes of one user may end each other, as the protocol needs it, although the first one cannot be traced.
#[test]
fn a_successor_that_hangs_is_killed_by_a_predecessor_that_is_root_no_more() {
    if !is_root() {
        return;
    }
    let place = harness::place();
    let program = place.path().join("program");
    harness::copy_program(&harness::example("demo"), &program);
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("set");
    let start = Start::path(program.clone()).args(&["--listen", "127.0.0.1:0"]);
    let start = start.args(&["--user", "nobody", "--upgrade-timeout", "0.2"]);
    let mut actor = served(start);
    let pid = actor.pid();
    let hanging = place.path().join("hanging");
    fs::write(&hanging, "#!/bin/sh\nexec sleep 1000\n").expect("written");
    fs::set_permissions(&hanging, fs::Permissions::from_mode(0o755)).expect("set");
    fs::rename(&hanging, &program).expect("renamed");
    let child = actor.give_birth(pid);
    actor.wait_for("failed in set-up");
    until("it is killed and reaped", || !Path::new(&format!("/proc/{child}")).exists());
    is_nobody(pid);
}

/// Root made the admin endpoint; the user answers there, and may ask.
#[cfg(feature = "admin")]
#[test]
fn the_user_commands_and_is_told_the_last_words_of_a_successor() {
    if !is_root() {
        return;
    }
    let place = harness::place();
    let (program, admin) = (place.path().join("program"), place.path().join("admin"));
    harness::copy_program(&harness::example("demo"), &program);
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("set");
    let admin = admin.to_str().expect("text");
    let ids = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let ctl = harness::example("demo");
    let tool = place.path().join("tool");
    harness::copy_program(&ctl, &tool);
    let ask = |what: &str| {
        let mut setpriv = std::process::Command::new("/usr/bin/setpriv");
        let asked = setpriv.args(ids).arg(&tool).args(["ctl", "--admin", admin, what]).output();
        let asked = asked.expect("it runs");
        let text = [asked.stdout, asked.stderr].concat();
        (asked.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let start = Start::path(program.clone()).args(&["--listen", "127.0.0.1:0"]);
    let mut actor = served(start.args(&["--user", "nobody", "--probation", "0", "--admin", admin]));
    let found = fs::metadata(admin).expect("there");
    assert_eq!((found.uid(), found.mode() & 0o777), (USER, 0o600));
    let (code, text) = ask("status");
    assert_eq!(code, Some(0), "{text}");
    // The first process, which cannot be traced, and a successor of it, which can.
    for _ in 0..2 {
        let crashing = place.path().join("crashing");
        fs::write(&crashing, "#!/bin/sh\necho the cause of it >&2\nexit 3\n").expect("written");
        fs::set_permissions(&crashing, fs::Permissions::from_mode(0o755)).expect("set");
        fs::rename(&crashing, &program).expect("renamed");
        let (code, text) = ask("upgrade");
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("the cause of it"), "{text}");
        let again = place.path().join("again");
        harness::copy_program(&harness::example("demo"), &again);
        fs::rename(&again, &program).expect("renamed");
        let (code, text) = ask("upgrade");
        assert_eq!(code, Some(0), "{text}");
        actor.wait_for("finish the old process");
        let found = fs::metadata(admin).expect("there");
        assert_eq!((found.uid(), found.mode() & 0o777), (USER, 0o600));
    }
    let (code, text) = ask("shutdown");
    assert_eq!(code, Some(0), "{text}");
    actor.wait_for("finish the process");
}

/// Below an init that stays root.
#[test]
fn an_init_signals_and_follows_a_server_of_another_user() {
    if !is_root() {
        return;
    }
    let start = demo().args(&["--listen", "127.0.0.1:0", "--init"]);
    let mut actor = served(start);
    let init = actor.pid();
    let (first, _) = children_of(init)[0];
    is_nobody(first);
    let successor = upgraded(&mut actor, init);
    until("the successor is alone", || {
        let children = children_of(init);
        children.len() == 1 && children[0].0 == successor
    });
    is_nobody(successor);
    actor.signal(init, Signal::SIGTERM);
    assert_eq!(actor.first_exits().code(), Some(0));
}
