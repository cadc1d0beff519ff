//! Ring three: the proxy, as a user meets it.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;
#[path = "harness/proxied.rs"]
mod proxied;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

use harness::{Start, until};
use nix::sys::signal::Signal;
use proxied::{
    addresses, connect, endless, exchange, is_reset, name, name_at, proxy, refused, rewrite,
    route_to, silent, unix_upstream, upgrade, upstream,
};

#[test]
fn every_route_leads_to_its_upstream_by_tcp_and_by_unix_sockets() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| place.path().join(name).display().to_string();
    unix_upstream(&path("b"), "B");
    let routes = format!(
        "# who listens, and where it leads\n\n  127.0.0.1:0 -> {}  # TCP to TCP\n\
         127.0.0.2:0->unix:{}\nunix:{} -> unix:{}\n",
        upstream("A"),
        path("b"),
        path("front"),
        path("b"),
    );
    let mut proxy = proxy(&routes, &[]);
    let at = addresses(&mut proxy);
    let mut tcp = connect(&at[0]);
    assert_eq!(name(&mut tcp), 'A');
    exchange(&mut tcp, b"hello");
    assert_eq!(name_at(&at[1]), 'B');
    let mut unix = UnixStream::connect(path("front")).expect("a connection");
    assert_eq!(name(&mut unix), 'B');
    exchange(&mut unix, b"hello");
}

#[test]
fn pairs_of_flags_do_what_a_file_does() {
    let (a, b) = (upstream("A"), upstream("B"));
    let mut proxy = Start::program("proxy")
        .args(&["--listen", "127.0.0.1:0", "--to", &a, "--listen", "127.0.0.2:0", "--to", &b])
        .spawn();
    for _ in 0..2 {
        proxy.wait_for("listening on");
    }
    let at = addresses(&mut proxy);
    assert_eq!((name_at(&at[0]), name_at(&at[1])), ('A', 'B'));
}

#[test]
fn megabytes_arrive_as_they_were_sent_and_the_end_behind_them() {
    let mut proxy = route_to(&upstream("A"), &[]);
    let mut stream = connect(&proxy.address());
    let message: Vec<u8> = (0..5_000_000_u32).map(|place| ((place * 7) >> 3) as u8).collect();
    let (sent, mut writer) = (message.clone(), stream.try_clone().expect("cloned"));
    let sender = thread::spawn(move || {
        writer.write_all(&sent).expect("sent");
        writer.shutdown(Shutdown::Write).expect("half-closed");
    });
    assert_eq!(name(&mut stream), 'A');
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).expect("the echo, and the end");
    sender.join().expect("it sent");
    assert!(echo == message);
    proxy.wait_for("finished; 5000000 bytes there, 5000001 back");
}

#[test]
fn a_mistake_in_the_file_is_named_with_file_line_and_reason() {
    let mistakes = [
        ("# only this\n", ": there is no route in it"),
        ("127.0.0.1:0 127.0.0.1:80", ":1:1: expected LISTEN -> UPSTREAM"),
        ("\n\nlocalhost -> 127.0.0.1:80", ":3:1: address \"localhost\": expected HOST:PORT"),
        (" a b -> 127.0.0.1:80", ":1:2: expected LISTEN -> UPSTREAM"),
        ("127.0.0.1:0 -> 127.0.0.1:80,,", ":1:29: an upstream is missing"),
        ("127.0.0.1:0 -> 127.0.0.1:http", ":1:16: address \"127.0.0.1:http\": "),
        ("127.0.0.1:0 -> unix:@a weight=0", ":1:24: \"weight=0\": expected weight=N, of 1 to 100"),
        ("127.0.0.1:0 -> unix:@a, unix:@b spare", ":1:33: \"spare\": expected weight=N"),
        (
            "127.0.0.1:0 -> unix:@a\n#\n127.0.0.1:0 -> unix:@b",
            ":3:1: 127.0.0.1:0 is listened on already, by ",
        ),
        ("192.0.2.1:9 -> unix:@a", ":1:1: \"192.0.2.1:9\" on 192.0.2.1:9: bind: "),
        ("idle-timeout soon\n", ":1:14: idle-timeout \"soon\": expected a number of seconds"),
        ("policy  random", ":1:9: policy \"random\": expected round-robin or fewest"),
        ("send-proxy maybe", ":1:12: send-proxy \"maybe\": expected on or off"),
        ("allow 10.0.0.0/33", ":1:7: allow \"10.0.0.0/33\": expected all, unix, ADDRESS"),
        ("idle 3", ":1:1: expected LISTEN -> UPSTREAM[, UPSTREAM...], or a setting"),
        ("routes other", ":1:1: expected LISTEN -> UPSTREAM[, UPSTREAM...], or a setting"),
        ("127.0.0.1:0 -> unix:@a\nkeepalive 3", ":2:1: a setting for all routes stands before"),
        ("127.0.0.1:0 -> unix:@a\n  max-sessions 3", ":2:3: expected LISTEN -> UPSTREAM"),
        ("unix:@a -> unix:@b, unix:@a", ":1:1: unix:@a leads to itself, by unix:@a"),
    ];
    for (text, reason) in mistakes {
        let start = Start::program("proxy");
        let file = start.path_of("routes");
        fs::write(&file, text).expect("written");
        let (status, said) = start.args(&["--routes", &file, "--log-level", "off"]).run();
        assert_eq!(status.code(), Some(1), "{text:?}: {said}");
        let expected = format!("proxy: {file}{reason}");
        assert!(said.starts_with(&expected), "{said}\nexpected {expected}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let (status, said) = Start::program("proxy").args(&["--routes", "/nowhere"]).run();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("proxy: /nowhere: No such file or directory"), "{said}");
    for args in
        [&[][..], &["--listen", "127.0.0.1:0"], &["--to", "127.0.0.1:1"], &["--max-sessions", "0"]]
    {
        let (status, said) = Start::program("proxy").args(args).run();
        assert_eq!(status.code(), Some(2), "{args:?}: {said}");
    }
}

#[test]
fn upstreams_are_used_in_turn_and_one_that_refuses_is_passed_over() {
    let upstreams = format!("{}, {}, {}", upstream("A"), refused(), upstream("B"));
    let mut proxy = route_to(&upstreams, &[]);
    let at = proxy.address();
    let names: String = (0..6).map(|_| name_at(&at)).collect();
    assert_eq!(names, "ABABAB", "the second one is left alone");
}

#[test]
fn a_client_is_reset_when_no_upstream_is_there_and_the_log_says_so_once() {
    let (one, two) = (refused(), "unix:/nowhere");
    let mut proxy = route_to(&format!("{one}, {two}"), &[]);
    for _ in 0..2 {
        is_reset(&proxy.address());
        proxy.wait_for("no upstream; ");
    }
    assert_eq!(proxy.count("no upstream; "), 2);
    // And when the address cannot even be tried.
    let mut nowhere = route_to(two, &[]);
    is_reset(&nowhere.address());
    nowhere.wait_for("no upstream; unix:/nowhere: No such file");
    assert_eq!(nowhere.count("no upstream; "), 1);
}

#[test]
fn an_upstream_that_does_not_answer_in_time_is_passed_over() {
    let silent = silent();
    let upstreams = format!("{}, {}", silent.address, upstream("B"));
    let mut proxy = route_to(&upstreams, &["--connect-timeout", "0.2"]);
    let mut stream = connect(&proxy.address());
    // What the client says meanwhile waits for whoever answers.
    stream.write_all(b"early").expect("sent");
    let mut heard = [0; 6];
    stream.read_exact(&mut heard).expect("a name and the echo");
    assert_eq!(&heard, b"Bearly");
    proxy.wait_for(": timed out");
    let mut alone = route_to(&silent.address, &["--connect-timeout", "0.2"]);
    let error = connect(&alone.address()).read(&mut [0]).expect_err("reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    alone.wait_for("no upstream; ");
}

#[test]
fn a_session_where_nothing_comes_is_reset_at_its_time() {
    let mut proxy =
        route_to(&upstream("A"), &["--idle-timeout", "0.3", "--connect-timeout", "1000"]);
    let mut stream = connect(&proxy.address());
    assert_eq!(name(&mut stream), 'A');
    exchange(&mut stream, b"still here");
    let error = stream.read(&mut [0]).expect_err("no end of the stream");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    proxy.wait_for("idle for too long; 10 bytes there, 11 back");
}

#[test]
fn an_upstream_that_breaks_off_resets_the_client_and_the_other_way_round() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let mut proxy = route_to(&listener.local_addr().expect("one").to_string(), &[]);
    let linger = |stream: &TcpStream| {
        let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &at_once)
            .expect("set");
    };
    let mut client = connect(&proxy.address());
    let (mut upstream, _) = listener.accept().expect("accepted");
    // Before a byte came through, it would be one that could not be connected to.
    upstream.write_all(b"U").expect("sent");
    assert_eq!(name(&mut client), 'U');
    linger(&upstream);
    drop(upstream);
    let error = client.read(&mut [0]).expect_err("reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    proxy.wait_for("broken off by the upstream: Connection reset");

    let mut client = connect(&proxy.address());
    let (mut upstream, _) = listener.accept().expect("accepted");
    upstream.write_all(b"U").expect("sent");
    assert_eq!(name(&mut client), 'U');
    linger(&client);
    drop(client);
    let error = upstream.read(&mut [0]).expect_err("reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    proxy.wait_for("broken off by the client: Connection reset");
}

#[test]
fn the_upstream_is_told_who_the_client_is() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let to = listener.local_addr().expect("an address");
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("front").display().to_string();
    let routes = format!("127.0.0.1:0 -> {to}\nunix:{path} -> {to}");
    let mut proxy = proxy(&routes, &["--send-proxy"]);

    let mut client = connect(&proxy.address());
    client.write_all(b"hello").expect("sent");
    let (mut heard, _) = listener.accept().expect("accepted");
    let mut header = [0; 28 + 5];
    heard.read_exact(&mut header).expect("a header and the message");
    let (from, at) = (client.local_addr().expect("one"), client.peer_addr().expect("one"));
    let expected = [
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(),
        &[127, 0, 0, 1, 127, 0, 0, 1],
        &from.port().to_be_bytes(),
        &at.port().to_be_bytes(),
        b"hello",
    ];
    assert_eq!(header.as_slice(), expected.concat());

    let mut client = UnixStream::connect(&path).expect("a connection");
    client.write_all(b"hello").expect("sent");
    let (mut heard, _) = listener.accept().expect("accepted");
    let mut header = [0; 16 + 5];
    heard.read_exact(&mut header).expect("a header and the message");
    // LOCAL: nothing is said of a client that has no address which means anything to the upstream.
    assert_eq!(&header, b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0hello");
}

#[test]
fn the_header_and_the_first_bytes_come_once_to_the_upstream_that_is_there() {
    let silent = silent();
    for nobody in [refused(), silent.address.clone()] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let to = listener.local_addr().expect("an address");
        let flags = ["--send-proxy", "--connect-timeout", "0.2"];
        let mut proxy = route_to(&format!("{nobody}, {to}"), &flags);
        let mut client = connect(&proxy.address());
        client.write_all(b"hello").expect("sent");
        client.shutdown(Shutdown::Write).expect("half-closed");
        let (mut heard, _) = listener.accept().expect("accepted");
        let mut all = Vec::new();
        heard.read_to_end(&mut all).expect("all of it, and the end");
        assert!(all.starts_with(b"\r\n\r\n\0\r\nQUIT\n"), "{nobody}");
        assert_eq!(&all[28..], b"hello", "{nobody}");
    }
}

#[test]
fn an_upgrade_takes_the_new_file_and_the_sessions_go_on() {
    let (a, b, c) = (upstream("A"), upstream("B"), upstream("C"));
    let old = format!("127.0.0.1:0 -> {a}\n127.0.0.2:0 -> {b}\n");
    let mut proxy = proxy(&old, &["--probation", "0"]);
    let at = addresses(&mut proxy);
    let mut sessions: Vec<_> = at.iter().map(|at| connect(at)).collect();
    let names: Vec<_> = sessions.iter_mut().map(name).collect();
    assert_eq!(names, ['A', 'B']);

    // The first leads elsewhere, the second is gone, and there is a third.
    rewrite(&proxy, &format!("127.0.0.1:0 -> {c}\n127.0.0.3:0 -> {b}\n"));
    proxy.signal(proxy.pid(), Signal::SIGHUP);
    proxy.wait_for("done; spawn");
    let after = addresses(&mut proxy);
    assert_eq!(after[2], at[0], "inherited");
    assert_eq!((name_at(&at[0]), name_at(&after[3])), ('C', 'B'));
    for session in &mut sessions {
        exchange(session, b"the same as ever");
    }
    // The old process keeps every listener as long as it may have to come back.
    drop(sessions);
    proxy.wait_for("predecessor gone");
    until("the listener of the removed route is closed", || TcpStream::connect(&at[1]).is_err());
}

#[test]
fn a_mistake_in_the_new_file_fails_the_upgrade_and_the_old_routes_go_on() {
    let mut proxy = route_to(&upstream("A"), &[]);
    let at = proxy.address();
    let mut session = connect(&at);
    assert_eq!(name(&mut session), 'A');
    rewrite(&proxy, "# changed\n127.0.0.1:0 => 127.0.0.1:80\n");
    proxy.signal(proxy.pid(), Signal::SIGHUP);
    let line = proxy.wait_for("failed in set-up");
    let file = proxy.place.path().join("routes");
    let reason = format!("{}:2:1: expected LISTEN -> UPSTREAM", file.display());
    assert!(line.contains("the successor refused") && line.contains(&reason), "{line}");
    exchange(&mut session, b"the same as ever");
    assert_eq!(name_at(&at), 'A');
    // And when the mistake is mended, the upgrade is made.
    rewrite(&proxy, &format!("127.0.0.1:0 -> {}", upstream("B")));
    proxy.signal(proxy.pid(), Signal::SIGHUP);
    proxy.wait_for("done; spawn");
    assert_eq!(name_at(&at), 'B');
}

#[test]
fn at_the_most_sessions_accepting_pauses_with_one_line_and_resumes() {
    let mut proxy = route_to(&upstream("A"), &["--max-sessions", "2"]);
    let at = proxy.address();
    let mut sessions: Vec<_> = (0..2).map(|_| connect(&at)).collect();
    assert!(sessions.iter_mut().all(|session| name(session) == 'A'));
    let mut waiting: Vec<_> = (0..3).map(|_| connect(&at)).collect();
    proxy.wait_for("accepting pauses, and resumes by itself: there are 2 sessions");
    exchange(&mut sessions[0], b"not disturbed");
    for client in &mut waiting {
        sessions.remove(0);
        assert_eq!(name(client), 'A', "as soon as there is room");
        sessions.push(client.try_clone().expect("cloned"));
        client.shutdown(Shutdown::Both).expect("ended");
    }
    assert_eq!(proxy.count("accepting pauses"), 1);
}

#[test]
fn a_session_moves_again_and_again_while_its_bytes_flow_both_ways() {
    const MEBIBYTES: u32 = 48;
    let mut proxy = route_to(&upstream("A"), &["--probation", "0"]);
    let mut stream = connect(&proxy.address());
    assert_eq!(name(&mut stream), 'A');
    let byte = |place: u32| (place.wrapping_mul(2_654_435_761) >> 24) as u8;
    let (mut writer, (send, sent)) =
        (stream.try_clone().expect("cloned"), std::sync::mpsc::channel());
    let sender = thread::spawn(move || {
        for mebibyte in 0..MEBIBYTES {
            let start = mebibyte << 20;
            let message: Vec<u8> = (start..start + (1 << 20)).map(byte).collect();
            writer.write_all(&message).expect("sent");
            // Tells the test how far it has come.
            let _ = send.send(mebibyte);
        }
        writer.shutdown(Shutdown::Write).expect("half-closed");
    });
    let reader = thread::spawn(move || {
        let (mut place, mut buffer) = (0, vec![0; 100_000]);
        loop {
            match stream.read(&mut buffer).expect("the echo") {
                0 => return place,
                read => {
                    let expected = (place..place + read as u32).map(byte);
                    assert!(buffer[..read].iter().copied().eq(expected), "at {place}");
                    place += read as u32;
                }
            }
        }
    });
    let mut upgrades = 0;
    while sent.recv().is_ok() && upgrades < 6 {
        upgrade(&mut proxy);
        upgrades += 1;
    }
    drop(sent);
    sender.join().expect("it sent");
    assert_eq!(reader.join().expect("it received"), MEBIBYTES << 20, "every byte, once");
    assert!(upgrades > 2, "{upgrades}");
    proxy.wait_for("finished; 50331648 bytes there, 50331649 back");
}

#[test]
fn a_half_closed_session_moves_and_so_does_one_that_is_still_connecting() {
    let silent = silent();
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let routes = format!(
        "127.0.0.1:0 -> {}\n127.0.0.2:0 -> {}, {}",
        listener.local_addr().expect("an address"),
        silent.address,
        upstream("B")
    );
    let mut proxy = proxy(&routes, &["--probation", "0", "--connect-timeout", "2"]);
    let at = addresses(&mut proxy);
    let mut half = connect(&at[0]);
    half.write_all(b"question").expect("sent");
    half.shutdown(Shutdown::Write).expect("half-closed");
    let (mut server, _) = listener.accept().expect("accepted");
    let mut question = Vec::new();
    server.read_to_end(&mut question).expect("the end came through");
    assert_eq!(question, b"question");
    let mut connecting = connect(&at[1]);
    connecting.write_all(b"early").expect("sent");

    upgrade(&mut proxy);
    server.write_all(b"answer").expect("sent");
    drop(server);
    let mut answer = Vec::new();
    half.read_to_end(&mut answer).expect("the answer, and the end");
    assert_eq!(answer, b"answer");
    let mut heard = [0; 6];
    connecting.read_exact(&mut heard).expect("the next upstream's name, and the echo");
    assert_eq!(&heard, b"Bearly");
}

#[test]
fn sessions_of_a_removed_route_go_on_in_the_successor_or_are_cut_by_a_flag() {
    for cut in [false, true] {
        let (a, b) = (upstream("A"), upstream("B"));
        let args = ["--probation", "0", "--cut-removed"];
        let routes = format!("127.0.0.1:0 -> {a}\n127.0.0.2:0 -> {b}");
        let mut proxy = proxy(&routes, if cut { &args } else { &args[..2] });
        let at = addresses(&mut proxy);
        let (mut stays, mut goes) = (connect(&at[0]), connect(&at[1]));
        assert_eq!((name(&mut stays), name(&mut goes)), ('A', 'B'));
        rewrite(&proxy, &format!("127.0.0.1:0 -> {b}"));
        upgrade(&mut proxy);
        assert!(TcpStream::connect(&at[1]).is_err(), "nobody listens there any more");
        exchange(&mut stays, b"by the old upstream");
        assert_eq!(name_at(&at[0]), 'B');
        if cut {
            assert!(matches!(goes.read(&mut [0]), Ok(0) | Err(_)), "cut");
            assert!(proxy.has("its route was removed"));
        } else {
            exchange(&mut goes, b"as ever");
        }
    }
}

/// A session needs two descriptors: without one for its upstream it would be reset.
#[test]
fn accepting_pauses_before_there_is_no_descriptor_left_for_an_upstream() {
    // Sixty-four are spared, one is the listener's: three sessions.
    let program = harness::example("proxy").display().to_string();
    let script = format!("ulimit -n 72; exec {program} \"$@\"");
    let mut proxy = Start::path("/bin/sh".into())
        .args(&["-c", &script, "sh", "--listen", "127.0.0.1:0", "--to", &upstream("A")])
        .spawn();
    proxy.wait_for("listening on");
    let at = proxy.address();
    let mut sessions: Vec<_> = (0..3).map(|_| connect(&at)).collect();
    assert!(sessions.iter_mut().all(|session| name(session) == 'A'));
    let mut waiting = connect(&at);
    proxy.wait_for("accepting pauses, and resumes by itself: there are 3 sessions");
    drop(sessions);
    assert_eq!(name(&mut waiting), 'A');
}

#[test]
fn clients_that_do_not_read_cost_no_more_than_the_bound_and_delay_nobody() {
    let routes = format!("127.0.0.1:0 -> {}\n127.0.0.2:0 -> {}", upstream("A"), endless());
    let mut proxy = proxy(&routes, &["--buffer-mib", "1"]);
    let at = addresses(&mut proxy);
    let mut calm = connect(&at[0]);
    assert_eq!(name(&mut calm), 'A');
    let before = harness::memory_of(proxy.pid());
    let mut deaf: Vec<_> = (0..100).map(|_| connect(&at[1])).collect();
    for _ in 0..500 {
        exchange(&mut calm, b"not disturbed");
    }
    for stream in &mut deaf {
        assert_eq!(name(stream), '\u{7}', "it has begun");
    }
    let grown = harness::memory_of(proxy.pid()) - before;
    // The bound, the shared buffer and what the sessions themselves take.
    assert!(grown < 3 * 1024, "{grown} KiB");
}
