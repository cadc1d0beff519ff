//! Ring three: the demo, as a user meets it.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use harness::{Actor, PATIENCE, Start, is_alive, until};
use nix::sys::signal::Signal;

fn demo(args: &[&str]) -> Actor {
    let mut demo = Start::program("demo").args(&["--listen", "localhost:0"]).args(args).spawn();
    demo.wait_for("listening on 127.0.0.1:");
    demo
}

fn connect(demo: &mut Actor) -> TcpStream {
    let stream = TcpStream::connect(demo.address()).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Sends and closes its half, as `nc -N` does, and answers what came back.
fn nc(demo: &mut Actor, message: &[u8]) -> Vec<u8> {
    let mut stream = connect(demo);
    stream.write_all(message).expect("sent");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).expect("the echo, and the end");
    echo
}

/// Bytes that tell where they are.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32).map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn the_log_of_an_upgrade_reads_as_the_reference() {
    let mut demo = demo(&[]);
    let first = demo.pid();
    assert_eq!(nc(&mut demo, b"hello\n"), b"hello\n");
    demo.signal(first, Signal::SIGHUP);
    demo.wait_for("finish the old process.");
    let second = *demo.pids().iter().find(|pid| **pid != first).expect("a successor");
    assert_eq!(nc(&mut demo, b"again\n"), b"again\n");
    demo.signal(second, Signal::SIGQUIT);
    demo.wait_for("finish the process.");

    let expected = [
        (first, "listening on 127.0.0.1:"),
        (first, "receive message from [127.0.0.1:"),
        (first, "got message SIGHUP."),
        (first, "Running -> Upgrading: upgrade requested."),
        (second, "listening on 127.0.0.1:"),
        (first, "Upgrading -> Draining: successor ready."),
        (first, "quit the listening."),
        (first, "upgrade"),
        (first, "Draining -> Exited: sessions gone."),
        (first, "stop listening."),
        (first, "finish the old process."),
        (second, "receive message from [127.0.0.1:"),
        (second, "got message SIGQUIT."),
        (second, "Running -> Draining: shutdown requested."),
        (second, "stop listening."),
        (second, "Draining -> Exited: sessions gone."),
        (second, "finish the process."),
    ];
    assert_eq!(demo.log.len(), expected.len(), "{}", demo.log.join("\n"));
    for (line, (pid, text)) in demo.log.iter().zip(expected) {
        // [10185] 2021/11/11 23:34:59 listening on ...
        let rest = line.strip_prefix(&format!("[{pid}] ")).unwrap_or_else(|| panic!("{line}"));
        let (date, rest) = rest.split_at(20);
        let digits = date.replace(|c: char| c.is_ascii_digit(), "0");
        assert_eq!(digits, "0000/00/00 00:00:00 ", "{line}");
        assert!(rest.starts_with(text), "{line}: expected {text:?}");
    }
    assert!(demo.log[1].ends_with("]:[hello]"), "{}", demo.log[1]);
}

#[test]
fn a_message_is_logged_in_one_printable_line_and_not_at_level_warn() {
    let mut loud = demo(&[]);
    let message = [b"\x1b[31mred\\\x00\xff\r\n".as_slice(), &[b'x'; 200]].concat();
    assert_eq!(nc(&mut loud, &message), message);
    let line = loud.wait_for("receive message");
    let shown = format!("]:[\\x1b[31mred\\\\\\x00\\xff\\r\\n{}... (213 bytes)]", "x".repeat(51));
    assert!(line.ends_with(&shown), "{line}");

    let mut quiet = Start::program("demo")
        .args(&["--log-level", "warn", "--listen", "unix:@tablecloth-demo-quiet"])
        .spawn();
    until("it listens", || {
        use std::os::linux::net::SocketAddrExt;
        let name = std::os::unix::net::SocketAddr::from_abstract_name("tablecloth-demo-quiet");
        std::os::unix::net::UnixStream::connect_addr(&name.expect("a name")).is_ok()
    });
    quiet.signal(quiet.pid(), Signal::SIGQUIT);
    assert!(quiet.first_exits().success());
    assert_eq!(quiet.count(""), 0, "{:?}", quiet.log);
}

#[test]
fn messages_of_any_size_come_back_as_they_were_sent() {
    let mut demo = demo(&[]);
    for length in [0, 1, 65_535, 65_536, 65_537, 3_000_000] {
        let message = pattern(length);
        let mut stream = connect(&mut demo);
        let mut writer = stream.try_clone().expect("cloned");
        let sent = message.clone();
        let sender = thread::spawn(move || {
            writer.write_all(&sent).expect("sent");
            writer.shutdown(Shutdown::Write).expect("half-closed");
        });
        let mut echo = Vec::new();
        stream.read_to_end(&mut echo).expect("the echo");
        sender.join().expect("sent");
        assert!(echo == message, "{length} bytes");
    }
}

/// The client sends and does not read: the demo keeps what it read, and reads no more.
#[test]
fn a_client_that_does_not_read_is_not_read_from_and_gets_everything_in_the_end() {
    let mut demo = demo(&[]);
    let before = harness::memory_of(demo.pid());
    let mut stream = connect(&mut demo);
    stream.set_write_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    let message = pattern(64 * 1024);
    let mut sent = Vec::new();
    // Until nothing goes any more: every buffer on the way is full.
    while let Ok(count) = stream.write(&message) {
        sent.extend_from_slice(&message[..count]);
        assert!(sent.len() < 256 * 1024 * 1024, "it reads without end");
    }
    let after = harness::memory_of(demo.pid());
    assert!(after < before + 1024, "from {before} to {after} KiB: it does not hoard");
    // Others are served meanwhile.
    assert_eq!(nc(&mut demo, b"x"), b"x");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).expect("the echo");
    assert!(echo == sent, "{} of {} bytes", echo.len(), sent.len());
}

#[test]
fn a_shutdown_stops_at_a_message_boundary() {
    let mut demo = demo(&[]);
    let (mut idle, mut busy) = (connect(&mut demo), connect(&mut demo));
    idle.write_all(b"hello").expect("sent");
    idle.read_exact(&mut [0; 5]).expect("the echo");
    // The busy one has sent much and read nothing.
    busy.set_write_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    let message = pattern(32 * 1024);
    let mut sent = Vec::new();
    while let Ok(count) = busy.write(&message) {
        sent.extend_from_slice(&message[..count]);
    }
    demo.signal(demo.pid(), Signal::SIGQUIT);
    demo.wait_for("Running -> Draining");
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).expect("the end");
    assert_eq!(rest, b"", "nothing was under way");
    assert!(is_alive(demo.pid()), "for the other one");
    // All that it sent comes back, and then the end.
    let mut echo = Vec::new();
    busy.read_to_end(&mut echo).expect("the echo, and the end");
    assert!(echo == sent, "{} of {} bytes", echo.len(), sent.len());
    assert!(demo.first_exits().success());
}

#[test]
fn clients_in_a_loop_notice_none_of_twenty_upgrades() {
    let mut demo = demo(&["--probation", "0.01"]);
    let address = demo.address();
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (address, done) = (address.clone(), done.clone());
            thread::spawn(move || {
                let mut count = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut stream = TcpStream::connect(&address).expect("never refused");
                    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                    stream.write_all(b"hello").expect("never reset");
                    let mut echo = [0; 5];
                    stream.read_exact(&mut echo).expect("never cut short");
                    assert_eq!(&echo, b"hello");
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut pid = demo.pid();
    for _ in 0..20 {
        demo.signal(pid, Signal::SIGHUP);
        let line = demo.wait_for("done; spawn");
        let to = line.split("-> ").nth(1).and_then(|rest| rest.split(' ').next());
        pid = to.and_then(|pid| pid.parse().ok()).expect("a process id");
        until("it is alone", || demo.alive() == [pid]);
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        assert!(client.join().expect("it noticed nothing") > 0);
    }
}
