//! Ring three: programs that serve by themselves, on an upgrader.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use harness::{Actor, PATIENCE, Start, is_alive, limit_descriptors, until};
use nix::sys::signal::Signal;

fn porter() -> Actor {
    porter_with(&["0"])
}

/// With so many seconds of probation.
fn porter_with(args: &[&str]) -> Actor {
    let start = Start::program("porter");
    let place = start.path_of("");
    start.args(&[&place]).args(args).serve()
}

/// The process that serves, by its own word.
fn who(porter: &mut Actor) -> (u32, u64) {
    porter.connect().who()
}

#[test]
fn everything_passes_by_name_and_is_made_once() {
    let mut porter = porter();
    let (first, _) = who(&mut porter);
    let address = porter.address();
    for generation in 1..=3 {
        let (pid, _) = who(&mut porter);
        porter.signal(pid, Signal::SIGHUP);
        porter.wait_for("a true true true true");
        porter.wait_for("notice PredecessorGone");
        let (next, now) = who(&mut porter);
        assert_eq!(now, generation);
        assert_ne!(next, pid);
        until("the old one is gone", || !is_alive(pid));
    }
    assert!(!is_alive(first));
    assert_eq!(porter.connect().ask("count\n"), "1", "the file was made by the first one alone");
    assert!(porter.has("the pair says \"from the first process\""));
    for socket in ["local", "datagrams", "packets"] {
        let path = porter.place.path().join(socket);
        assert!(path.metadata().is_ok_and(|it| it.file_type().is_socket()), "{socket}");
    }
    let mut last = porter.connect();
    let pid = last.who().0;
    last.send("down\n");
    porter.wait_for("the end: ShutDown");
    until("it ends", || !is_alive(pid));
    assert!(!porter.place.path().join("local").exists(), "its path goes with it");
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_connection_is_added_while_it_lives_and_goes_on_in_every_successor_until_it_is_removed() {
    let mut porter = porter();
    let mut client = porter.connect();
    assert_eq!(client.ask("keep\n"), "kept");
    assert!(client.ask("keep\n").contains("is used twice"));
    for generation in 1..=3 {
        let (pid, _) = client.who();
        porter.signal(pid, Signal::SIGHUP);
        porter.wait_for("notice PredecessorGone");
        assert_eq!(client.who().1, generation, "the same connection");
    }
    assert_eq!(client.ask("lose\n"), "true");
    assert_eq!(client.ask("lose\n"), "false");
    let (pid, _) = client.who();
    porter.signal(pid, Signal::SIGHUP);
    porter.wait_for("notice PredecessorGone");
    assert!(client.is_at_end(), "nobody has it any more");
}

#[test]
fn who_asks_for_an_upgrade_is_told_how_it_ended_also_on_another_thread() {
    // It stays for long enough to pass the answer on.
    let mut porter = porter_with(&["1"]);
    let mut client = porter.connect();
    let (first, _) = client.who();
    assert_eq!(client.ask("upgrade\n"), "true");
    porter.wait_for("notice upgraded: true");
    porter.wait_for("the end: Replaced");
    until("it ends", || !is_alive(first));
}

#[test]
fn a_successor_that_dies_in_its_probation_is_rolled_back_and_the_program_resumes() {
    let mut porter = porter_with(&["3600"]);
    let (first, _) = who(&mut porter);
    porter.signal(first, Signal::SIGHUP);
    porter.wait_for("notice upgraded: true");
    let (successor, _) = who(&mut porter);
    assert_ne!(successor, first);
    porter.signal(successor, Signal::SIGKILL);
    porter.wait_for("notice Resumed");
    porter.wait_for("notice upgraded: false");
    assert_eq!(who(&mut porter), (first, 0));
    // And the next one succeeds.
    porter.signal(first, Signal::SIGHUP);
    porter.wait_for("notice upgraded: true");
    assert_ne!(who(&mut porter).0, first);
}

#[test]
fn state_is_handed_over_and_the_two_processes_tell_each_other_things() {
    let mut porter = porter_with(&["3600"]);
    let (first, _) = who(&mut porter);
    porter.signal(first, Signal::SIGUSR1);
    porter.wait_for("told: Err(Nobody)");
    for _ in 0..2 {
        porter.signal(first, Signal::SIGHUP);
        // By either process first.
        (0..2).for_each(|_| drop(porter.wait_for_any(&["were served", "notice upgraded: true"])));
        let (successor, _) = who(&mut porter);
        porter.signal(first, Signal::SIGUSR1);
        let line = porter.wait_for(&format!("notice told by {first}"));
        assert!(line.starts_with(&format!("[{successor}]")), "{line}");
        porter.signal(successor, Signal::SIGUSR1);
        let line = porter.wait_for(&format!("notice told by {successor}"));
        assert!(line.starts_with(&format!("[{first}]")), "{line}");
        porter.signal(successor, Signal::SIGKILL);
        porter.wait_for("notice SuccessorGone");
        porter.signal(first, Signal::SIGUSR1);
        porter.wait_for("told: Err(Nobody)");
    }
    // One was served by the first one, and one by each successor, which is gone with it.
    assert!(porter.has("handed over: 1 were served"));
}

/// How a client asks, and whether the answer is a whole one.
type Ask = fn(&mut TcpStream) -> Result<(), String>;

/// Clients that come, ask and go, over ten upgrades: none of them sees an error.
fn over_ten_upgrades(program: &str, ask: Ask) {
    let start = Start::program(program).args(&["--listen", "127.0.0.1:0", "--probation", "0"]);
    let pid_file = start.path_of("pid");
    let mut server = start.pid_file().spawn();
    server.wait_for("listening on ");
    let (address, stop) = (server.address(), Arc::new(AtomicBool::new(false)));
    let answered = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (address, stop, answered) =
                (address.clone(), Arc::clone(&stop), Arc::clone(&answered));
            thread::spawn(move || -> Result<(), String> {
                while !stop.load(Ordering::Relaxed) {
                    let mut stream =
                        TcpStream::connect(&address).map_err(|error| error.to_string())?;
                    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
                    ask(&mut stream)?;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        })
        .collect();
    let named = || std::fs::read_to_string(&pid_file).ok()?.trim().parse::<u32>().ok();
    until("it serves", || named().is_some());
    for _ in 0..10 {
        let pid = named().expect("it serves");
        let before = answered.load(Ordering::Relaxed);
        until("clients are served", || answered.load(Ordering::Relaxed) > before);
        server.signal(pid, Signal::SIGHUP);
        until("it is replaced", || named().is_some_and(|now| now != pid));
        until("the old one is gone", || !is_alive(pid));
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no panic").unwrap_or_else(|error| panic!("a client: {error}"));
    }
    let last = named().expect("it serves");
    server.signal(last, Signal::SIGTERM);
    server.wait_for("finish the process.");
    until("it ends", || !is_alive(last));
}

#[test]
fn a_loop_of_one_s_own_is_replaced_ten_times_and_no_client_sees_an_error() {
    over_ten_upgrades("own_loop", |stream| {
        let mut answer = String::new();
        stream.write_all(b"hello\nabc\n").map_err(|error| format!("write: {error}"))?;
        stream.shutdown(Shutdown::Write).map_err(|error| format!("shutdown: {error}"))?;
        stream.read_to_string(&mut answer).map_err(|error| format!("read: {error}"))?;
        if answer == "olleh\ncba\n" { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

/// Twenty requests on one connection, or fewer if the server says that an answer is the last one.
#[test]
fn hyper_is_replaced_ten_times_and_no_request_fails() {
    over_ten_upgrades("hyper", |stream| {
        for _ in 0..20 {
            let request = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n";
            stream.write_all(request).map_err(|error| format!("write: {error}"))?;
            let mut answer = Vec::new();
            let mut byte = [0; 1];
            while !answer.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).map_err(|error| format!("read: {error}"))?;
                answer.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&answer).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = length.and_then(|length| length.parse().ok()).ok_or("no length")?;
            let mut body = vec![0; length];
            stream.read_exact(&mut body).map_err(|error| format!("body: {error}"))?;
            if !head.starts_with("http/1.1 200") {
                return Err(head);
            }
            if head.contains("connection: close") {
                return Ok(());
            }
        }
        Ok(())
    });
}

/// EMFILE: the connection waits in the queue, and hyper's loop does not spin over it.
#[test]
fn hyper_without_descriptors_pauses_accepting_and_resumes_by_itself() {
    let mut server = Start::program("hyper").args(&["--listen", "127.0.0.1:0"]).spawn();
    server.wait_for("listening on ");
    let pid = server.pid();
    // It serves, and has all its descriptors.
    assert_eq!(hello(&mut server.connect().stream), "200 OK");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("there");
    let open: Vec<u64> =
        open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    let lowest_free = (0..).find(|number| !open.contains(number)).expect("there is one");
    let start = Instant::now();
    let before = limit_descriptors(pid, lowest_free);
    let mut waiting: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for _ in 0..5 {
        server.wait_for("accept: Too many open files");
    }
    let failures = server.count("accept: ") as u128;
    // One at once, one more if the first session ends only now, and then one in 50 ms.
    assert!(failures <= start.elapsed().as_millis() / 50 + 2, "{failures} failures");
    limit_descriptors(pid, before);
    for client in &mut waiting {
        assert_eq!(hello(&mut client.stream), "200 OK", "those that waited are served");
    }
    drop(waiting);
    server.signal(pid, Signal::SIGTERM);
    server.wait_for("finish the process.");
}

/// The status of one request, after which the server closes.
fn hello(stream: &mut TcpStream) -> String {
    let request = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
    stream.write_all(request).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.lines().next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    status.expect("a status").to_owned()
}
