//! What clients and upstreams are told: certificates by name, protocols, tickets, the PROXY header, and ends.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;

use harness::client::{Client, VERSIONS, config};
use harness::{PATIENCE, Proxy, certificate, command, echo, until, upstream};
use nix::sys::signal::Signal;
use tempfile::TempDir;

#[test]
fn the_name_decides_the_certificate_and_the_first_common_protocol_is_spoken() {
    let place = TempDir::new().unwrap();
    let (one, one_key) = certificate(place.path(), "one", &["one.example"]);
    let (two, two_key) = certificate(place.path(), "two", &["two.example", "*.wild.example"]);
    let file = place.path().join("routes");
    let to = echo();
    let routes = format!(
        "cert {one}\nkey {one_key}\nalpn http/1.1\n\n127.0.0.1:0 -> {to}\n    cert {one}\n    key {one_key}\n    \
         cert {two}\n    key {two_key}\n    alpn h2,http/1.1\n"
    );
    fs::write(&file, routes).unwrap();
    let proxy = Proxy::with(place, &["--routes", file.to_str().unwrap()]);
    for version in VERSIONS {
        let with = |names: &[&str], name: &str| {
            let mut client = Client::connect(proxy.address, &config(version, names), name);
            client.echo(b"x");
            client
        };
        let of_one = with(&[], "one.example").certificate();
        let of_two = with(&[], "two.example").certificate();
        assert_ne!(of_one, of_two);
        assert_eq!(with(&[], "any.wild.example").certificate(), of_two);
        assert_eq!(with(&[], "nobody.example").certificate(), of_one);
        let spoken =
            |names: &[&str]| with(names, "one.example").tls.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(spoken(&["http/1.1", "h2"]), Some(b"h2".to_vec()));
        assert_eq!(spoken(&["http/1.1"]), Some(b"http/1.1".to_vec()));
        assert_eq!(spoken(&[]), None);
    }
}

#[test]
fn who_comes_back_after_an_upgrade_goes_on_without_a_whole_handshake() {
    let proxy = Proxy::start(&echo(), &["--probation", "0"]);
    for version in VERSIONS {
        let config = config(version, &[]);
        for round in 0..3 {
            let mut client = Client::connect(proxy.address, &config, "localhost");
            client.echo(b"the ticket comes with it");
            assert_eq!(client.is_resumed(), round > 0, "round {round}");
            proxy.upgrade();
            client.echo(b"no ticket comes with that");
        }
    }
    assert!(proxy.metric("tls_resumed_total") >= 4.0);
}

#[test]
fn workers_know_each_others_tickets() {
    let place = TempDir::new().unwrap();
    let (pem, key) = certificate(place.path(), "localhost", &["localhost"]);
    // A port that nobody has: workers share it by its number.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let to = upstream(|mut stream| {
        let _ = stream.read(&mut [0; 16]);
        let _ = stream.write_all(b"x");
        let _ = stream.read(&mut [0; 16]);
    });
    let (listen, workers) = (free.to_string(), ["--workers", "2", "--session-log"]);
    let mut arguments =
        vec!["--listen", &listen, "--to", &to, "--cert", &pem, "--key", &key, "--probation", "0"];
    arguments.extend(workers);
    let mut child = command(place.path()).args(&arguments).spawn().unwrap();
    let log = harness::Log::default();
    log.read(child.stderr.take().unwrap());
    until("both workers", || {
        log.lines().iter().filter(|line| line.contains("listening on")).count() == 2
    });
    for version in VERSIONS {
        let config = config(version, &[]);
        let mut resumed = 0;
        for round in 0..20 {
            let mut client = Client::connect(free, &config, "localhost");
            client.echo(b"x");
            resumed += u32::from(client.is_resumed());
            assert_eq!(client.is_resumed(), round > 0);
            client.close_notify();
        }
        assert_eq!(resumed, 19);
    }
    let by = |line: &String| {
        line.contains("session of").then(|| line.split(' ').next().unwrap().to_owned())
    };
    until("the last session's line", || log.lines().iter().filter_map(by).count() == 40);
    let mut workers: Vec<_> = log.lines().iter().filter_map(by).collect();
    workers.sort();
    workers.dedup();
    assert_eq!(workers.len(), 2, "both have served");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGQUIT).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_upstream_is_told_who_the_client_is_and_of_his_tls() {
    let (heads, head) = mpsc::channel();
    let to = upstream(move |mut stream| {
        let mut fixed = [0; 16];
        stream.read_exact(&mut fixed).unwrap();
        let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
        stream.read_exact(&mut rest).unwrap();
        heads.send((fixed, rest)).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let proxy = Proxy::start(&to, &["--send-proxy", "--alpn", "h2"]);
    let client = Client::connect(proxy.address, &config(VERSIONS[1], &["h2"]), "localhost");
    let (fixed, rest) = head.recv_timeout(PATIENCE).unwrap();
    assert_eq!(&fixed[..14], b"\r\n\r\n\0\r\nQUIT\n\x21\x11");
    let port = client.socket.local_addr().unwrap().port();
    assert_eq!(
        &rest[..12],
        [
            &[127, 0, 0, 1, 127, 0, 0, 1][..],
            &port.to_be_bytes(),
            &proxy.address.port().to_be_bytes()
        ]
        .concat()
    );
    let fields = &rest[12..];
    let expected = b"\x01\x00\x02h2\x02\x00\x09localhost\x20";
    assert_eq!(&fields[..expected.len()], expected);
    let text = String::from_utf8_lossy(fields);
    assert!(text.contains("TLSv1.3") && text.contains("TLS_AES_"), "{text}");
}

#[test]
fn a_hup_takes_certificates_anew_and_a_bad_one_fails_the_upgrade() {
    let proxy = Proxy::start(&echo(), &["--probation", "0"]);
    let config = config(VERSIONS[1], &[]);
    // Somebody who comes back has the certificate of his first handshake.
    let of_new = || {
        let new = crate::config(VERSIONS[1], &[]);
        Client::connect(proxy.address, &new, "localhost").certificate()
    };
    let mut session = Client::connect(proxy.address, &config, "localhost");
    let first = of_new();
    certificate(proxy.place.path(), "localhost", &["localhost"]);
    assert_eq!(of_new(), first);
    proxy.upgrade();
    let second = of_new();
    assert_ne!(second, first);
    session.echo(b"with the certificate of old");
    for (bad, expected) in [
        (&b"no PEM"[..], "no certificate with its key, in PEM"),
        (&fs::read(proxy.path("localhost.key")).unwrap(), "no certificate with its key, in PEM"),
    ] {
        let kept = fs::read(proxy.path("localhost.pem")).unwrap();
        fs::write(proxy.path("localhost.pem"), bad).unwrap();
        let (old, from) = (proxy.pid(), proxy.log.lines().len());
        proxy.signal(Signal::SIGHUP);
        let line = proxy.log.wait_from(from, expected);
        assert!(line.contains("localhost.pem"), "{line}");
        proxy.log.wait_from(from, "Upgrading -> Running");
        assert_eq!(proxy.pid(), old);
        assert_eq!(of_new(), second);
        session.echo(b"as ever");
        fs::write(proxy.path("localhost.pem"), kept).unwrap();
    }
}

#[test]
fn what_is_cut_off_does_not_look_whole() {
    let (ends, end) = mpsc::channel();
    let to = upstream(move |mut stream| {
        let mut first = [0; 5];
        stream.read_exact(&mut first).unwrap();
        match &first {
            b"reset" => {
                stream.write_all(b"half of it").unwrap();
                // Unread bytes make a reset of the end.
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            _ => ends
                .send(stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind()))
                .unwrap(),
        }
    });
    let proxy = Proxy::start(&to, &[]);
    for version in VERSIONS {
        let config = config(version, &[]);
        let mut client = Client::connect(proxy.address, &config, "localhost");
        client.say(b"upper half");
        client.shutdown();
        let heard = end.recv_timeout(PATIENCE).unwrap();
        assert_eq!(
            heard,
            Err(ErrorKind::ConnectionReset),
            "the client has not said that this was all"
        );
        let mut client = Client::connect(proxy.address, &config, "localhost");
        client.say(b"upper half");
        client.close_notify();
        assert_eq!(end.recv_timeout(PATIENCE).unwrap(), Ok(5));
        let mut client = Client::connect(proxy.address, &config, "localhost");
        client.say(b"reset, and more than that");
        assert_eq!(client.hear_all(10).unwrap(), b"half of it");
        assert!(client.hear(1).is_err(), "an end that nobody has said");
    }
}

/// Whoever ends first, the other one hears all that was said before, and an end.
#[test]
fn both_sides_end_in_either_order() {
    const BYTES: usize = 4 * 1024 * 1024;
    let (ends, end) = mpsc::channel();
    let to = upstream(move |mut stream| {
        let mut first = [0; 1];
        stream.read_exact(&mut first).unwrap();
        let answer = vec![7; BYTES];
        match &first {
            // It ends first, and goes on to listen.
            b"u" => {
                stream.write_all(&answer).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(100));
                let mut heard = Vec::new();
                let read = stream.read_to_end(&mut heard).map_err(|error| error.kind());
                ends.send(read).unwrap();
            }
            // It answers when the client is at its end.
            _ => {
                let mut heard = Vec::new();
                let read = stream.read_to_end(&mut heard).map_err(|error| error.kind());
                let _ = stream.write_all(&answer);
                ends.send(read).unwrap();
            }
        }
    });
    let proxy = Proxy::start(&to, &[]);
    for (version, has_two_ends) in VERSIONS.into_iter().zip([false, true]) {
        let config = config(version, &[]);
        // The upstream ends, and the client has nothing more to say.
        let mut client = Client::connect(proxy.address, &config, "localhost");
        client.say(b"u");
        assert_eq!(client.hear_all(BYTES).unwrap(), vec![7; BYTES]);
        assert_eq!(client.hear(1).unwrap(), b"", "an end that was said");
        client.close_notify();
        drop(client);
        assert_eq!(end.recv_timeout(PATIENCE).unwrap(), Ok(0), "{version:?}");
        // The upstream ends, and the client has more to say, which only TLS 1.3 has room for.
        let mut client = Client::connect(proxy.address, &config, "localhost");
        client.say(b"u");
        assert_eq!(client.hear_all(BYTES).unwrap(), vec![7; BYTES]);
        assert_eq!(client.hear(1).unwrap(), b"");
        let text = if has_two_ends { BYTES } else { 0 };
        client.say(&vec![9; text]);
        client.close_notify();
        client.shutdown();
        assert_eq!(end.recv_timeout(PATIENCE).unwrap(), Ok(text), "{version:?}");
        // The client ends, and is still to hear the answer, which only TLS 1.3 has room for.
        let mut client = Client::connect(proxy.address, &config, "localhost");
        client.say(b"client");
        client.close_notify();
        assert_eq!(end.recv_timeout(PATIENCE).unwrap(), Ok(5), "{version:?}");
        if has_two_ends {
            assert_eq!(client.hear_all(BYTES).unwrap(), vec![7; BYTES]);
        }
        assert_eq!(client.hear(1).unwrap(), b"", "the end is said back");
    }
}

/// The reset is found by a write, or by an event, and not by a read.
#[test]
fn an_upstream_that_resets_in_the_middle_is_no_end_for_the_client() {
    let to = upstream(|mut stream| {
        let _ = stream.read(&mut [0; 1]);
        stream.write_all(&[7; 1000]).unwrap();
        // With bytes that nobody has read it ends by a reset.
        std::thread::sleep(std::time::Duration::from_millis(50));
    });
    let proxy = Proxy::start(&to, &[]);
    for version in VERSIONS {
        for _ in 0..5 {
            let mut client = Client::connect(proxy.address, &config(version, &[]), "localhost");
            let mut socket = client.socket.try_clone().unwrap();
            let records = client.records_of(&vec![1; 8 * 1024 * 1024]);
            let sending = std::thread::spawn(move || drop(socket.write_all(&records)));
            let end = loop {
                match client.hear(1000) {
                    Ok(text) if text.is_empty() => break Ok(()),
                    Ok(_) => {}
                    Err(error) => break Err(error),
                }
            };
            assert!(end.is_err(), "an end that nobody has said");
            sending.join().unwrap();
        }
    }
}

#[test]
fn a_unix_upstream_with_a_full_queue_is_waited_for() {
    use nix::sys::socket::{Backlog, UnixAddr, bind, listen, socket};
    let place = TempDir::new().unwrap();
    let path = place.path().join("upstream");
    let kind = nix::sys::socket::SockType::Stream;
    let none = nix::sys::socket::SockFlag::empty();
    let server = socket(nix::sys::socket::AddressFamily::Unix, kind, none, None).unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&server), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&server, Backlog::new(0).unwrap()).unwrap();
    // The queue has room for one.
    let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let server = std::os::unix::net::UnixListener::from(server);
    let proxy = Proxy::start(&format!("unix:{}", path.display()), &[]);
    let mut client = Client::connect(proxy.address, &config(VERSIONS[1], &[]), "localhost");
    client.say(b"hello");
    std::thread::sleep(std::time::Duration::from_millis(200));
    let _first = server.accept().unwrap();
    let (mut stream, _) = server.accept().unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
}

/// Records without plaintext between those with some: nothing is lost, and nobody waits.
#[test]
fn keys_are_renewed_in_the_middle_of_bulk_and_not_for_ever() {
    let proxy = Proxy::start(&echo(), &[]);
    let mut client = Client::connect(proxy.address, &config(VERSIONS[1], &[]), "localhost");
    for round in 0..10 {
        let mut records = Vec::new();
        for piece in 0..40 {
            records.extend(client.records_of(&[piece; 16 * 1024]));
            client.tls.refresh_traffic_keys().unwrap();
            while client.tls.wants_write() {
                client.tls.write_tls(&mut records).unwrap();
            }
        }
        let mut socket = client.socket.try_clone().unwrap();
        let sending = std::thread::spawn(move || socket.write_all(&records).unwrap());
        let heard = client.hear_all(40 * 16 * 1024).unwrap();
        let pieces = heard.chunks(16 * 1024).enumerate();
        assert!(
            pieces.into_iter().all(|(piece, it)| it.iter().all(|byte| usize::from(*byte) == piece)),
            "round {round}"
        );
        sending.join().unwrap();
    }
    let mut records = Vec::new();
    for _ in 0..100 {
        client.tls.refresh_traffic_keys().unwrap();
        while client.tls.wants_write() {
            client.tls.write_tls(&mut records).unwrap();
        }
    }
    client.socket.write_all(&records).unwrap();
    let end = client.hear(1).unwrap_err();
    assert_ne!(end.kind(), ErrorKind::WouldBlock, "it does nothing else, and is cut off");
}

#[test]
fn who_does_not_speak_tls_is_gone_soon_and_who_says_nothing_after_the_timeout() {
    let proxy = Proxy::start(&echo(), &["--handshake-timeout", "0.2"]);
    let mut plain = TcpStream::connect(proxy.address).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // With an alert, and with a reset if something was not read.
    let _ = plain.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
    let mut mute = TcpStream::connect(proxy.address).unwrap();
    mute.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(mute.read(&mut [0; 16]).unwrap_or(0), 0);
    until("the count", || proxy.metric("tls_failures_total") == 2.0);
    Client::connect(proxy.address, &config(VERSIONS[0], &[]), "localhost")
        .echo(b"others are served");
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_started() {
    let place = TempDir::new().unwrap();
    let (pem, key) = certificate(place.path(), "one", &["one"]);
    let (_, other) = certificate(place.path(), "other", &["other"]);
    let route = ["--listen", "127.0.0.1:0", "--to", "127.0.0.1:1"];
    let cases: [(&[&str], &str); 7] = [
        (&[], "no certificate: give --cert and --key"),
        (&["--cert", &pem], "no certificate with its key"),
        (&["--cert", &pem, "--key", &other], "no certificate with its key"),
        (&["--cert", "nowhere.pem", "--key", &key], "nowhere.pem: No such file"),
        (&["--key", &key], "its --cert is missing"),
        (&["--cert", &pem, "--key", &key, "--alpn", "h2,,x"], "expected names"),
        (&["--cert", &pem, "--key", &key, "--min-tls", "1.1"], "expected 1.2 or 1.3"),
    ];
    for (flags, expected) in cases {
        for check in [&[][..], &["--check"]] {
            let run = command(place.path()).args(route).args(flags).args(check).output().unwrap();
            let said = String::from_utf8_lossy(&run.stderr);
            assert!(!run.status.success() && said.contains(expected), "{flags:?}: {said}");
        }
    }
    let right = ["--cert", &pem, "--key", &key, "--check"];
    assert!(command(place.path()).args(route).args(right).status().unwrap().success());
}

#[test]
fn only_new_clients_of_the_oldest_version_are_refused() {
    let proxy = Proxy::start(&echo(), &["--min-tls", "1.3"]);
    let mut client = Client::mute(proxy.address, &config(VERSIONS[0], &[]), "localhost");
    assert!(client.shake().is_err());
    Client::connect(proxy.address, &config(VERSIONS[1], &[]), "localhost").echo(b"x");
}

/// No core dump is made of it, in any generation (PR_SET_DUMPABLE, prctl(2)); of another program one is.
#[test]
fn its_memory_is_in_no_core_dump() {
    let place = TempDir::new().unwrap();
    let cores = |place: &std::path::Path| {
        let is_core = |name: &str| name.starts_with("core");
        let names = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| is_core(&name.to_string_lossy())).count()
    };
    let dump = "ulimit -c unlimited && exec \"$@\"";
    let other = ["-c", dump, "sh", "sh", "-c", "kill -s ABRT $$"];
    std::process::Command::new("sh").args(other).current_dir(place.path()).status().unwrap();
    if cores(place.path()) == 0 {
        println!("not tried: core dumps do not go to the working directory here");
        return;
    }
    for upgrades in 0..2 {
        let place = TempDir::new().unwrap();
        let (pem, key) = certificate(place.path(), "localhost", &["localhost"]);
        let program = harness::PROGRAM;
        let arguments = ["--listen", "127.0.0.1:0", "--to", &echo(), "--cert", &pem, "--key", &key];
        let mut all = vec!["-c", dump, "sh", program];
        all.extend(arguments);
        let proxy = Proxy::by("sh", place, &all);
        for _ in 0..upgrades {
            proxy.upgrade();
        }
        Client::connect(proxy.address, &config(VERSIONS[0], &[]), "localhost").echo(b"x");
        proxy.signal(Signal::SIGABRT);
        until("the end", || proxy.processes() == 0);
        assert_eq!(cores(proxy.place.path()), 0);
    }
}
