//! Established sessions move: with half of a record, with what was not sent yet, with keys that are to be renewed.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod harness;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use harness::client::{Client, VERSIONS, config};
use harness::{Proxy, echo, until, upstream};
use nix::sys::signal::Signal;

#[test]
fn sessions_of_both_versions_move_five_times_with_every_byte() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let proxy = Proxy::start(&echo(), &["--probation", "0"]);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..12)
        .map(|number: usize| {
            let (stop, address) = (Arc::clone(&stop), proxy.address);
            let mut random = fastrand::Rng::with_seed(seed ^ number as u64);
            thread::spawn(move || {
                let config = config(VERSIONS[number % 2], &[]);
                let mut client = Client::connect(address, &config, "localhost");
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) || count < 5 {
                    let length = [1, 20, 4000, 50_000][random.usize(..4)];
                    let text: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
                    client.echo(&text);
                    count += 1;
                }
                client.close_notify();
                assert_eq!(client.hear(1).unwrap(), b"", "the end is said back");
            })
        })
        .collect();
    until("the sessions", || proxy.metric("tls_handshakes_total") >= 12.0);
    let first = proxy.pid();
    for _ in 0..5 {
        proxy.upgrade();
    }
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_ne!(proxy.pid(), first);
    assert_eq!(proxy.processes(), 1);
    assert!(proxy.quit().success());
}

#[test]
fn a_session_moves_in_the_middle_of_a_record() {
    let proxy = Proxy::start(&echo(), &["--probation", "0"]);
    for version in VERSIONS {
        let mut client = Client::connect(proxy.address, &config(version, &[]), "localhost");
        client.echo(b"before");
        let text = vec![7; 5000];
        let records = client.records_of(&text);
        let mut sent = 0;
        for cut in [1, 4, 5, 6, 3000, records.len()] {
            client.socket.write_all(&records[sent..cut]).unwrap();
            sent = cut;
            if cut < records.len() {
                proxy.upgrade();
            }
        }
        assert_eq!(client.hear_all(text.len()).unwrap(), text);
        client.echo(b"after");
    }
}

/// A client that reads slowly leaves ciphertext in the proxy, and an upstream that does leaves plaintext.
#[test]
fn what_nobody_has_taken_yet_moves_along() {
    const BYTES: usize = 24 * 1024 * 1024;
    let byte = |place: usize| (place.wrapping_mul(2_654_435_761) >> 13) as u8;
    let (reads, may_read) = mpsc::channel::<()>();
    let (heard, was_heard) = mpsc::channel();
    let may_read = std::sync::Mutex::new(may_read);
    let to = upstream(move |mut stream| {
        let mut writer = stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            let text: Vec<u8> = (0..BYTES).map(byte).collect();
            writer.write_all(&text).unwrap();
        });
        may_read.lock().unwrap().recv().unwrap();
        let (mut text, mut buffer) = (Vec::new(), vec![0; 65536]);
        while text.len() < BYTES {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "an end after {} bytes", text.len());
            text.extend_from_slice(&buffer[..count]);
        }
        writing.join().unwrap();
        heard.send(text.iter().enumerate().all(|(place, it)| *it == byte(place))).unwrap();
    });
    for version in VERSIONS {
        let proxy = Proxy::start(&to, &["--probation", "0"]);
        let mut client = Client::connect(proxy.address, &config(version, &[]), "localhost");
        let text: Vec<u8> = (0..BYTES).map(byte).collect();
        let records = client.records_of(&text);
        let mut socket = client.socket.try_clone().unwrap();
        let sending = thread::spawn(move || socket.write_all(&records).unwrap());
        proxy.upgrade();
        proxy.upgrade();
        reads.send(()).unwrap();
        let mut read = 0;
        while read < BYTES {
            let more = client.hear(65536).unwrap();
            assert!(!more.is_empty(), "an end after {read} bytes");
            let is_same = more.iter().enumerate().all(|(place, it)| *it == byte(read + place));
            assert!(is_same, "another byte after {read}");
            let before = read;
            read += more.len();
            if before < BYTES / 2 && read >= BYTES / 2 {
                proxy.upgrade();
            }
        }
        sending.join().unwrap();
        assert!(was_heard.recv().unwrap(), "the upstream has got something else");
    }
}

/// The keys of TLS 1.3 can be renewed: a client that has asked for it is answered by the next process.
#[test]
fn a_key_update_is_answered_after_the_move() {
    /// A KeyUpdate of 5 bytes, its kind, and 16 bytes that authenticate it.
    const KEY_UPDATE: usize = 5 + 1 + 16;
    let proxy = Proxy::start(&echo(), &["--probation", "0"]);
    let mut client = Client::connect(proxy.address, &config(VERSIONS[1], &[]), "localhost");
    client.echo(b"before");
    proxy.upgrade();
    client.records.clear();
    client.echo(b"it moves without one");
    assert!(!client.records.contains(&KEY_UPDATE), "{:?}", client.records);
    client.tls.refresh_traffic_keys().unwrap();
    client.send().unwrap();
    // It was read when the session moves: nothing else tells.
    thread::sleep(std::time::Duration::from_millis(50));
    proxy.upgrade();
    client.records.clear();
    client.echo(b"after");
    assert_eq!(client.records, [KEY_UPDATE, 5 + 1 + 16]);
    for _ in 0..3 {
        proxy.upgrade();
        client.tls.refresh_traffic_keys().unwrap();
        client.echo(b"again");
    }
}

#[test]
fn a_handshake_is_waited_for_and_then_the_session_moves() {
    let proxy = Proxy::start(&echo(), &["--probation", "0"]);
    for version in VERSIONS {
        let mut shaking = Client::mute(proxy.address, &config(version, &[]), "localhost");
        let mut hello = Vec::new();
        shaking.tls.write_tls(&mut hello).unwrap();
        shaking.socket.write_all(&hello[..20]).unwrap();
        until("the connection", || proxy.metric("tablecloth_sessions") >= 1.0);
        // Who has not said all of his first message yet moves.
        proxy.upgrade();
        shaking.socket.write_all(&hello[20..]).unwrap();
        assert!(shaking.socket.peek(&mut [0; 1]).unwrap() > 0, "the answer has come");
        let old = proxy.pid();
        proxy.signal(Signal::SIGHUP);
        until("the new process", || proxy.pid() != old);
        assert!(harness::is_alive(old), "it waits for the handshake");
        shaking.shake().unwrap();
        shaking.echo(b"in the old process or in the new one");
        until("the old process to go", || !harness::is_alive(old));
        shaking.echo(b"in the new one");
    }
}

/// A client that has said that it is at its end waits for the answer still: such a connection cannot move, and the old
/// process stays for it.
#[test]
fn a_half_closed_session_drains_and_its_neighbours_move() {
    let (says, may_say) = mpsc::channel::<()>();
    let may_say = std::sync::Mutex::new(may_say);
    let to = upstream(move |mut stream| {
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        may_say.lock().unwrap().recv().unwrap();
        stream.write_all(&text).unwrap();
    });
    let proxy = Proxy::start(&to, &["--probation", "0"]);
    let config = config(VERSIONS[1], &[]);
    let mut client = Client::connect(proxy.address, &config, "localhost");
    let mut neighbour = Client::connect(proxy.address, &config, "localhost");
    client.say(b"all that it has to say");
    client.close_notify();
    let (old, from) = (proxy.pid(), proxy.log.lines().len());
    proxy.signal(Signal::SIGHUP);
    until("the new process", || proxy.pid() != old);
    // The new process has the neighbour: it goes on there.
    until("the neighbour to move", || proxy.metric("tablecloth_sessions") >= 1.0);
    assert!(harness::is_alive(old));
    says.send(()).unwrap();
    assert_eq!(client.hear_all(22).unwrap(), b"all that it has to say");
    assert_eq!(client.hear(1).unwrap(), b"");
    drop(client);
    proxy.log.wait_from(from, &format!("[{old}]"));
    until("the old process to go", || !harness::is_alive(old));
    neighbour.say(b"here");
    neighbour.close_notify();
    says.send(()).unwrap();
    assert_eq!(neighbour.hear_all(4).unwrap(), b"here");
}

#[test]
fn with_a_successor_that_dies_the_sessions_go_on() {
    let proxy = Proxy::start(&echo(), &["--probation", "5"]);
    let mut clients: Vec<_> = VERSIONS
        .map(|version| Client::connect(proxy.address, &config(version, &[]), "localhost"))
        .into();
    for round in 0..3 {
        let (old, from) = (proxy.pid(), proxy.log.lines().len());
        proxy.signal(Signal::SIGHUP);
        until("the new process", || proxy.pid() != old);
        let new = proxy.pid();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(new as i32), Signal::SIGKILL).unwrap();
        proxy.log.wait_from(from, "Draining -> Running");
        for client in &mut clients {
            client.echo(format!("round {round}").as_bytes());
        }
        until("the pid file", || proxy.pid() == old);
    }
}
