//! Ring three: each bad input ends with one line that names the thing, a non-zero status, and
//! nothing half done.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;

use harness::played::{Part, Played};
use harness::{Start, example};

/// Runs the demo to its bad end.
fn refused(args: &[&str], status: i32, expected: &str) {
    let (ended, error) = Start::program("demo").args(args).run();
    assert_eq!(ended.code(), Some(status), "{args:?}: {error}");
    let error = error.trim_end();
    // What it logged before is not an error.
    let lines: Vec<_> = error.lines().filter(|line| !line.starts_with('[')).collect();
    assert_eq!(lines.len(), 1, "{args:?}: one line\n{error}");
    assert!(lines[0].starts_with("demo: ") && lines[0].contains(expected), "{args:?}: {error}");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("bound").to_string();
    refused(&["--listen", &address], 1, &format!("\"echo\" on {address}: bind: Address already"));
}

#[test]
fn an_address_that_is_none_is_named() {
    for address in ["", "here", "127.0.0.1", "127.0.0.1:http", "unix:", "[::1]"] {
        refused(&["--listen", address], 1, &format!("address {address:?}: "));
    }
    refused(&["--listen", "192.0.2.1:0"], 1, "\"echo\" on 192.0.2.1:0: bind: Cannot assign");
    refused(&["--listen", "unix:/no/such/place"], 1, "unix:/no/such/place: bind: No such file");
}

#[test]
fn a_pid_file_that_cannot_be_written_is_named_and_nothing_is_bound() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| place.path().join(name).to_str().expect("text").to_owned();
    let listen = format!("unix:{}", path("echo.sock"));
    for pid_file in [path("no/such/directory/pid"), path(".")] {
        refused(&["--pid-file", &pid_file, "--listen", &listen], 1, "pid file ");
    }
    assert_eq!(fs::read_dir(place.path()).expect("a directory").count(), 0);
}

#[test]
fn what_was_made_before_the_error_is_unmade() {
    let start = Start::program("actor");
    let path = start.path_of("echo.sock");
    let args = ["--listen", &format!("path=unix:{path}"), "--listen", "bad=127.0.0.1:bad"];
    let place = tempfile::tempdir().expect("a temporary directory");
    let pid_file = place.path().join("pid");
    let (status, error) =
        start.args(&args).args(&["--pid-file", pid_file.to_str().expect("text")]).run();
    assert_eq!(status.code(), Some(1));
    assert!(error.contains("address \"127.0.0.1:bad\""), "{error}");
    assert!(!std::path::Path::new(&path).exists(), "the path is unlinked");
    assert_eq!(fs::read_dir(place.path()).expect("a directory").count(), 0, "no pid file");
}

#[test]
fn two_listeners_of_one_name_are_an_error_at_once() {
    let (status, error) = Start::actor().args(&["--listen", "main=127.0.0.1:0"]).run();
    assert_eq!(status.code(), Some(1));
    assert!(error.contains("name \"main\": is used twice"), "{error}");
}

#[test]
fn a_regular_file_cannot_be_watched_and_a_signal_that_cannot_be_handled_is_refused() {
    let (status, error) = Start::actor().args(&["--user-signal", "9"]).run();
    assert_eq!(status.code(), Some(1));
    assert!(error.contains("signal 9: cannot be handled"), "{error}");
}

#[test]
fn flags_that_are_unknown_or_say_nothing_are_named() {
    refused(&["--lisen", "x"], 2, "unknown flag --lisen");
    refused(&["-x"], 2, "-x");
    refused(&["8080"], 2, "8080");
    refused(&["--listen"], 2, "--listen: a value is missing");
    refused(&["--log-level", "loud"], 2, "--log-level \"loud\": expected off, error");
    for seconds in ["soon", "-1", "NaN", "1e99"] {
        refused(&["--drain-timeout", seconds], 2, &format!("--drain-timeout {seconds:?}"));
    }
}

#[test]
fn help_goes_to_standard_output_with_status_0() {
    let output = Command::new(example("demo")).arg("--help").output().expect("it starts");
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).expect("text");
    for flag in "listen pid-file upgrade-timeout drain-timeout probation log-level help".split(' ')
    {
        assert!(help.contains(&format!("--{flag}")), "{help}");
    }
}

/// Somebody who is no predecessor sets the variable: every lie is found out before anything is
/// bound.
#[test]
fn a_forged_or_broken_environment_is_an_error() {
    let variable = tablecloth::wire::VARIABLE;
    let pid = std::process::id();
    for text in ["", "yes", "pipe=3", "pipe=a,socket=b,pid=c", "pipe=-1,socket=4,pid=1", "\u{e9}"] {
        let (status, error) = Start::program("demo").env(variable, text).run();
        assert_eq!(status.code(), Some(1), "{text:?}: {error}");
        let expected = format!("demo: environment variable {variable}: expected pipe=FD");
        assert!(error.starts_with(&expected) && error.lines().count() == 1, "{error}");
    }
    // As long as a variable may be (execve(2)): the error is not.
    let long = format!("pipe=3,socket={}", "4".repeat(100_000));
    let (status, error) = Start::program("demo").env(variable, &long).run();
    assert_eq!(status.code(), Some(1));
    assert!(error.contains("field \"socket\" is not a number, or too large"), "{error}");
    assert!(error.len() < 300, "{error}");
    // Closed ones, and those that belong to the program itself.
    for numbers in ["pipe=100,socket=101", "pipe=0,socket=1", "pipe=2,socket=2"] {
        let text = format!("{numbers},pid={pid}");
        let (status, error) = Start::program("demo").env(variable, &text).run();
        assert_eq!(status.code(), Some(1), "{text}: {error}");
        assert!(error.contains("was not passed to this process"), "{error}");
    }
    // A regular file in the place of both, then a real pipe and a file: by way of the shell, which
    // passes on any number.
    let file = tempfile::NamedTempFile::new().expect("a file");
    let file = file.path().to_str().expect("text");
    for (redirections, expected) in [
        (
            format!("7<{file} 8<{file}"),
            "descriptor 7 should be the readiness pipe, but is something",
        ),
        (format!("7>&1 8<{file}"), "descriptor 8 should be the handoff socket, but is something"),
    ] {
        let demo = example("demo");
        let script = format!(
            "{variable}=pipe=7,socket=8,pid=$$ exec {} --listen 127.0.0.1:0 {redirections} | cat",
            demo.display()
        );
        // The pipe's first half is a child of the shell, so that pid=$$ names its parent.
        let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
    }
}

/// A demo that finds this in the handoff socket says that in one line, and ends.
fn refused_handoff(packet: &[u8], descriptors: &[BorrowedFd<'_>], expected: &str) {
    let played = Played::new();
    if !packet.is_empty() {
        played.say_with(packet, descriptors);
    }
    let demo = Start::program("demo").args(&["--listen", "127.0.0.1:0"]);
    let (status, error) = played.start(demo).run();
    assert_eq!(status.code(), Some(1), "{error}");
    assert!(error.contains(expected) && error.lines().count() == 1, "{expected}: {error}");
}

/// A manifest that says what is not so: found out before anything is bound.
#[test]
fn a_manifest_that_lies_about_its_descriptors_is_an_error() {
    let file = fs::File::open("/dev/null").expect("there");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let blocking = TcpListener::bind("127.0.0.1:0").expect("bound");
    let (file, udp, blocking) = (file.as_fd(), udp.as_fd(), blocking.as_fd());
    for (fds, expected) in [
        (vec![], "MANIFEST names 1 descriptors and brings 0"),
        (vec![file, file], "MANIFEST names 1 descriptors and brings 2"),
        (vec![file], "inherited \"echo\": expected a TCP listener, found something that is no"),
        (vec![udp], "inherited \"echo\": expected a TCP listener, found a UDP socket on 127.0.0.1"),
        (vec![blocking], "found a TCP listener on 127.0.0.1"),
    ] {
        refused_handoff(&Part::new("echo").encode(), &fds, expected);
    }
}

/// A manifest in parts that do not belong together, or with names that are none.
#[test]
fn a_manifest_that_contradicts_itself_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let fd = listener.as_fd();
    let first = Part { parts: 2, ..Part::new("echo") };
    for (second, expected) in [
        (Part { part: 1, parts: 3, ..Part::new("b") }, "field \"parts\" is not what the parts"),
        (Part { part: 1, parts: 2, generation: 9, ..Part::new("b") }, "\"generation\" is not what"),
        (Part { part: 1, parts: 2, ..Part::new("echo") }, "field \"name\" comes twice"),
        (Part { part: 1, parts: 2, ..Part::new("") }, "field \"name\" is empty"),
        (Part { part: 1, parts: 2, ..Part::new("a\nb") }, "field \"name\" has a control character"),
        (Part { parts: 2, ..Part::new("b") }, "field \"part\" has the unknown value 0"),
    ] {
        let played = Played::new();
        played.say_with(&first.encode(), &[fd]);
        played.say_with(&second.encode(), &[fd]);
        let (status, error) = played.start(Start::program("demo")).run();
        assert_eq!(status.code(), Some(1), "{error}");
        assert!(error.starts_with("demo: handoff from the predecessor: MANIFEST: "), "{error}");
        assert!(error.contains(expected) && error.lines().count() == 1, "{expected}: {error}");
    }
    // The second part never comes.
    refused_handoff(&first.encode(), &[fd], "handoff from the predecessor: receive MANIFEST: ");
}

#[test]
fn a_name_that_a_successor_would_not_take_is_an_error_at_once() {
    for name in ["", "two\nlines", &"x".repeat(101)] {
        let (status, error) =
            Start::program("actor").args(&["--listen", &format!("{name}=127.0.0.1:0")]).run();
        assert_eq!(status.code(), Some(1));
        let words = "a name has 1 to 100 bytes and no control characters";
        assert!(error.contains(words) && error.lines().count() == 1, "{error}");
    }
}

/// A handoff socket with nothing in it, or with the wrong thing in it.
#[test]
fn a_handoff_socket_without_a_manifest_is_an_error() {
    for (packet, expected) in [
        (&b""[..], "receive MANIFEST: "),
        (&b"hello"[..], "MANIFEST: field \"magic\" has the unknown value"),
        (&b"tclo\x01\x00\x04"[..], "COMMIT instead of MANIFEST"),
        (&b"tclo\x01\x00\x01\x01\x00\x01\x00"[..], "MANIFEST: field \"generation\" is cut off"),
    ] {
        refused_handoff(packet, &[], &format!("demo: handoff from the predecessor: {expected}"));
    }
}
