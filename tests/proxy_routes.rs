//! Ring three: where the proxy leads, what its file of routes says, and what it tells of it.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;
#[path = "harness/proxied.rs"]
mod proxied;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use harness::until;
use nix::sys::signal::Signal;
use nix::sys::socket::{Backlog, listen};
use proxied::{
    addresses, connect, exchange, is_reset, name, name_at, proxy, refused, rewrite, route_to,
    silent, unix_upstream, upgrade, upstream,
};

fn names(address: &str, count: usize) -> String {
    (0..count).map(|_| name_at(address)).collect()
}

#[test]
fn a_route_whose_listener_has_no_known_name_waits_and_the_others_are_taken() {
    let mut proxy = proxy(&format!("127.0.0.1:0 -> {}", upstream("A")), &["--probation", "0"]);
    let at = proxy.address();
    let listen = &at;
    rewrite(
        &proxy,
        &format!("{listen} -> {}\nnobody.invalid:8000 -> {}", upstream("B"), upstream("C")),
    );
    upgrade(&mut proxy);
    assert_eq!(
        proxy.count("the route is not used until the next HUP: address \"nobody.invalid"),
        1
    );
    assert_eq!(names(&at, 1), "B");
    // With no route at all it is no server.
    rewrite(&proxy, &format!("nobody.invalid:8000 -> {}", upstream("C")));
    let alive = proxy.alive();
    proxy.signal(alive[0], Signal::SIGHUP);
    proxy.wait_for("failed in set-up");
    assert_eq!(names(&at, 1), "B");
}

#[test]
fn an_upstream_that_is_named_twice_hides_nobody_behind_it() {
    let (nobody, silent) = (refused(), silent());
    for twice in [nobody, silent.address.clone()] {
        let upstreams = format!("{twice}, {twice}, {}", upstream("A"));
        let mut proxy = route_to(&upstreams, &["--connect-timeout", "0.5"]);
        assert_eq!(names(&proxy.address(), 3), "AAA");
    }
}

#[test]
fn upstreams_have_turns_by_their_weight_and_a_backup_only_if_there_is_nobody_else() {
    let backup = upstream("C");
    let routes = format!(
        "127.0.0.1:0 -> {} weight=3, {} , {backup} backup\n127.0.0.2:0 -> {}, {backup} backup",
        upstream("A"),
        upstream("B"),
        refused(),
    );
    let mut proxy = proxy(&routes, &[]);
    let at = addresses(&mut proxy);
    assert_eq!(names(&at[0], 8), "AABAAABA");
    assert_eq!(names(&at[1], 2), "CC");
}

#[test]
fn the_one_with_the_fewest_sessions_is_next_if_that_is_the_policy() {
    let routes = format!("127.0.0.1:0 -> {}, {}\n  policy fewest", upstream("A"), upstream("B"));
    let mut proxy = proxy(&routes, &[]);
    let at = proxy.address();
    let mut sessions: Vec<_> = (0..4).map(|_| connect(&at)).collect();
    let names: String = sessions.iter_mut().map(name).collect();
    assert_eq!(names, "ABAB");
    // Both of the first upstream's end.
    for place in [2, 0] {
        sessions.remove(place);
        proxy.wait_for("finished; 0 bytes there, 1 back");
    }
    let mut more: Vec<_> = (0..2).map(|_| connect(&at)).collect();
    assert_eq!(more.iter_mut().map(name).collect::<String>(), "AA");
}

#[test]
fn turns_go_on_where_they_were_after_an_upgrade_and_a_rollback() {
    let upstreams = format!("{}, {}, {}", upstream("A"), upstream("B"), upstream("C"));
    let mut proxy = route_to(&upstreams, &["--probation", "0"]);
    let at = proxy.address();
    assert_eq!(names(&at, 4), "ABCA");
    upgrade(&mut proxy);
    assert_eq!(names(&at, 1), "B");
    upgrade(&mut proxy);
    assert_eq!(names(&at, 2), "CA");
}

#[test]
fn an_upstream_that_has_come_back_is_used_again() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("b").display().to_string();
    let mut proxy = route_to(&format!("{}, unix:{path}", upstream("A")), &[]);
    let at = proxy.address();
    assert_eq!(names(&at, 4), "AAAA");
    unix_upstream(&path, "B");
    until("it is tried again", || name_at(&at) == 'B');
    assert!(names(&at, 2).contains('B'), "as often as the other one");
}

#[test]
fn a_session_that_is_still_connecting_follows_its_route_to_another_upstream() {
    let silent = silent();
    let mut proxy = route_to(&silent.address, &["--probation", "0", "--connect-timeout", "1000"]);
    let mut client = connect(&proxy.address());
    client.write_all(b"early").expect("sent");
    rewrite(&proxy, &format!("127.0.0.1:0 -> {}", upstream("B")));
    upgrade(&mut proxy);
    let mut heard = [0; 6];
    client.read_exact(&mut heard).expect("a name and the echo");
    assert_eq!(&heard, b"Bearly");
}

#[test]
fn a_full_queue_of_a_unix_upstream_is_waited_for_across_an_upgrade_as_well() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("full").display().to_string();
    let listener = UnixListener::bind(&path).expect("listens");
    listen(&listener, Backlog::new(0).expect("a length")).expect("listens");
    let _first = UnixStream::connect(&path).expect("a place");
    let mut proxy = route_to(&format!("unix:{path}"), &["--probation", "0"]);
    let mut client = connect(&proxy.address());
    client.write_all(b"early").expect("sent");
    until("it is let in", || proxy.has("listening on"));
    proxy.signal(proxy.pid(), Signal::SIGHUP);
    proxy.wait_for("done; spawn");
    listener.accept().expect("the first one");
    let (mut upstream, _) = listener.accept().expect("the client");
    let mut heard = [0; 5];
    upstream.read_exact(&mut heard).expect("what it said first");
    assert_eq!(&heard, b"early");
    proxy.wait_for("predecessor gone");
    upstream.write_all(b"U").expect("sent");
    assert_eq!(name(&mut client), 'U');
}

#[test]
fn what_is_cut_is_reset_and_does_not_look_whole() {
    let mut proxy = route_to(&upstream("A"), &["--drain-timeout", "0.1"]);
    let mut client = connect(&proxy.address());
    assert_eq!(name(&mut client), 'A');
    proxy.signal(proxy.pid(), Signal::SIGTERM);
    let error = client.read(&mut [0]).expect_err("no end of the stream");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(proxy.first_exits().success());
}

#[test]
fn a_name_that_is_not_known_disables_its_upstream_and_nobody_else() {
    let routes = format!(
        "127.0.0.1:0 -> nobody.invalid:80, {}\n127.0.0.2:0 -> nobody.invalid:80",
        upstream("A")
    );
    let mut proxy = proxy(&routes, &[]);
    let at = addresses(&mut proxy);
    assert_eq!(names(&at[0], 2), "AA");
    is_reset(&at[1]);
    assert_eq!(proxy.count("not used until the next HUP"), 2);
    assert_eq!(proxy.count("leads nowhere until the next HUP"), 1);
}

#[test]
fn numbers_by_route_and_upstream_are_in_the_log_when_they_are_asked_for() {
    let (a, nobody) = (upstream("A"), refused());
    let mut proxy = route_to(&format!("{a}, {nobody}"), &["--session-log"]);
    let at = proxy.address();
    let (mut stays, mut goes) = (connect(&at), connect(&at));
    assert_eq!((name(&mut stays), name(&mut goes)), ('A', 'A'));
    exchange(&mut goes, b"hello");
    drop(goes);
    let line = proxy.wait_for("finished; 5 bytes there, 6 back; ");
    assert!(line.contains(&format!("to {a}: ")) && line.contains("connected in "), "{line}");
    proxy.signal(proxy.pid(), Signal::SIGUSR1);
    let route = "127.0.0.1:0: 1 sessions now, 2 in all, 5 bytes there, 6 back; 2 connections";
    proxy.wait_for(route);
    proxy.wait_for(&format!("to {a}: 1 sessions now, 2 in all, 5 bytes there, 6 back"));
    let line = proxy.wait_for(&format!("to {nobody}: 0 sessions now"));
    assert!(line.ends_with("1 failures, 0 refused"), "{line}");
    assert!(stays.as_raw_fd() > 0);
}

#[test]
fn a_rollback_gives_a_socket_the_mode_back_that_a_successor_has_changed() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("front");
    let route = format!("unix:{} -> {}", path.display(), upstream("A"));
    let mode = || path.metadata().expect("there").permissions().mode() & 0o777;
    let mut proxy = proxy(&format!("socket-mode 0666\n{route}"), &["--probation", "1000"]);
    assert_eq!(mode(), 0o666);
    let first = proxy.pid();
    rewrite(&proxy, &format!("socket-mode 0600\n{route}"));
    proxy.signal(first, Signal::SIGHUP);
    proxy.wait_for("done; spawn");
    until("the successor has changed it", || mode() == 0o600);
    let successor = proxy.alive().into_iter().find(|pid| *pid != first).expect("a successor");
    proxy.signal(successor, Signal::SIGKILL);
    proxy.wait_for("Draining -> Running");
    until("it is as it was", || mode() == 0o666);
}

#[test]
fn routes_are_checked_before_they_are_used() {
    let place = harness::place();
    let file = place.path().join("routes");
    let check = |routes: &str| {
        std::fs::write(&file, routes).expect("written");
        let checked = std::process::Command::new(harness::example("proxy"))
            .args(["--check", "--routes"])
            .arg(&file)
            .output()
            .expect("it runs");
        let text = [checked.stdout, checked.stderr].concat();
        (checked.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let (code, told) =
        check("127.0.0.1:8080 -> 127.0.0.1:1, 127.0.0.1:2\n[::]:8080 -> 127.0.0.1:1\n");
    assert!(code == Some(0) && told.contains("nothing is wrong"), "{told}");
    for (routes, words) in [
        ("127.0.0.1:8080 -> 127.0.0.1:1\n127.0.0.1:8080 -> 127.0.0.1:2\n", "routes:2:"),
        ("127.0.0.1:8080 -> 127.0.0.1:1\nlocalhost:8080 -> 127.0.0.1:2\n", "listened on already"),
        ("127.0.0.1:8080 -> 127.0.0.1:8080\n", "leads to itself"),
        ("127.0.0.1 -> 127.0.0.1:1\n", "expected HOST:PORT"),
        ("idle-timeout long\n", "routes:1:"),
        ("127.0.0.1:8080 -> 127.0.0.1:1\n0.0.0.0:8080 -> 127.0.0.1:2\n", "listened on already"),
        ("admin 127.0.0.1:8080\n127.0.0.1:8080 -> 127.0.0.1:1\n", "by the admin endpoint"),
        ("admin nonsense:1:2\n127.0.0.1:8080 -> 127.0.0.1:1\n", "admin: "),
        ("user nobody-of-that-name\n127.0.0.1:8080 -> 127.0.0.1:1\n", "there is no user"),
        ("pid-file /nowhere/pid\n127.0.0.1:8080 -> 127.0.0.1:1\n", "pid file /nowhere/pid: "),
        ("unix:/nowhere/socket -> 127.0.0.1:1\n", "No such file or directory"),
        ("127.0.0.1:8080 -> nobody.invalid:1\n", "leads nowhere"),
        ("workers 3\n127.0.0.1:8080 -> 127.0.0.1:1\n", "routes:1:"),
    ] {
        let (code, told) = check(routes);
        assert!(code == Some(1) && told.contains(words), "{routes:?}: {code:?}, {told}");
    }
}
