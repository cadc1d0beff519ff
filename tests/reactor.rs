//! The reactor by itself: a server in the test's own process, turn by turn; and one that runs out
//! of what it needs.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use harness::{PATIENCE, Start, until};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use rustix::process::{Resource, Rlimit};
use tablecloth::machine::State;
use tablecloth::{
    Accepted, Address, Config, Context, End, Error, Handler, IoEvent, Phase, Pollable, Reactor,
    Server, SessionId, SocketOptions, Stream, Upgrader, Verdict, limits,
};

/// Answers each byte, but for the greedy, who always have more to do.
#[derive(Default)]
struct Echo {
    greedy_calls: u64,
    /// How long each of these takes.
    greed: Duration,
    opened: u64,
}

impl Handler for Echo {
    type Session = (Stream, bool);

    fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Self::Session> {
        self.opened += 1;
        Ok((accepted.stream, false))
    }

    fn event(
        &mut self,
        _: &mut Context<'_>,
        (stream, greedy): &mut Self::Session,
        _: IoEvent,
    ) -> Verdict {
        let mut byte = [0; 1];
        loop {
            match stream.read(&mut byte) {
                Ok(0) => return Verdict::Close,
                Ok(_) if byte == *b"G" => *greedy = true,
                Ok(_) => match stream.write(&byte) {
                    Ok(1) => {}
                    Ok(_) | Err(_) => return Verdict::Close,
                },
                Err(_) if *greedy => {
                    self.greedy_calls += 1;
                    let begun = Instant::now();
                    while begun.elapsed() < self.greed {}
                    return Verdict::Again;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Verdict::Keep,
                Err(_) => return Verdict::Close,
            }
        }
    }
}

/// A server, as soon as that of no other test is left in this process.
fn new_server(config: &Config) -> Server {
    let mut server = None;
    until("there is no other server", || match Server::new(config.clone()) {
        Err(Error::AnotherServer) => false,
        made => server.insert(made).is_ok(),
    });
    server.expect("it was made").expect("a server")
}

fn listening<H: Handler>(config: &Config, handler: H) -> (Reactor<H>, String) {
    let mut server = new_server(config);
    let address = server.listen("echo", "127.0.0.1:0").expect("listens");
    (server.start(handler), address.to_string())
}

fn server(config: Config) -> (Reactor<Echo>, String) {
    listening(&config, Echo::default())
}

/// A client that is answered while somebody turns.
struct Client(TcpStream);

impl Client {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nonblocking(true).expect("non-blocking");
        Self(stream)
    }

    fn send(&mut self, byte: &[u8; 1]) {
        self.0.write_all(byte).expect("sent");
    }

    fn answered(&mut self) -> bool {
        self.0.read(&mut [0; 1]).is_ok_and(|read| read == 1)
    }
}

fn turn(server: &mut Reactor<Echo>) {
    assert_eq!(server.turn(Some(Duration::from_millis(1))).expect("a turn"), State::Running);
}

#[test]
fn a_session_that_never_has_enough_starves_neither_the_others_nor_new_ones() {
    let (mut server, address) = server(Config::default());
    let mut greedy = Client::connect(&address);
    greedy.send(b"G");
    until("it is greedy", || {
        turn(&mut server);
        server.handler().greedy_calls > 0
    });
    // From here every turn has something left over, and none waits.
    let (mut old, mut new) = (Client::connect(&address), None);
    old.send(b"x");
    until("another session is served", || {
        turn(&mut server);
        old.answered()
    });
    until("a new one is accepted and served", || {
        let client = new.get_or_insert_with(|| {
            let mut client = Client::connect(&address);
            client.send(b"y");
            client
        });
        turn(&mut server);
        client.answered()
    });
    let calls = server.handler().greedy_calls;
    turn(&mut server);
    assert_eq!(server.handler().greedy_calls, calls + 1, "once a turn");
}

/// What bulk takes of a turn is bounded by time: that of some events, however many sessions want more.
#[test]
fn nobody_waits_for_the_bulk_of_all_neighbours() {
    let (mut server, address) = server(Config::default());
    let mut small = Client::connect(&address);
    let mut bulk: Vec<_> = (0..100).map(|_| Client::connect(&address)).collect();
    bulk.iter_mut().for_each(|client| client.send(b"G"));
    server.handler_mut().greed = 4 * limits::HEAVY_EVENT;
    let all = 100 * u64::from(2 * limits::HEAVY_AFTER);
    until("all of them are known for it", || {
        turn(&mut server);
        server.handler().greedy_calls > all
    });
    let in_a_turn = limits::HEAVY_TIME.as_micros().div_ceil(4 * limits::HEAVY_EVENT.as_micros());
    for _ in 0..20 {
        small.send(b"x");
        let before = server.handler().greedy_calls;
        turn(&mut server);
        let calls = server.handler().greedy_calls - before;
        assert!(small.answered(), "in the first turn");
        assert!((1..=in_a_turn).contains(&u128::from(calls)), "{calls} of {in_a_turn}");
    }
}

#[test]
fn a_flood_of_connections_is_accepted_in_portions() {
    let (mut server, address) = server(Config::default());
    turn(&mut server);
    let clients: Vec<_> = (0..150).map(|_| Client::connect(&address)).collect();
    let mut portions = Vec::new();
    until("all are accepted", || {
        let before = server.handler().opened;
        turn(&mut server);
        portions.push(server.handler().opened - before);
        server.handler().opened == clients.len() as u64
    });
    assert!(portions.iter().all(|portion| *portion <= tablecloth::limits::ACCEPTS_PER_TURN as u64));
}

#[test]
fn events_of_many_sessions_are_served_in_portions() {
    const CLIENTS: usize = 700;
    // Both ends of each connection are this process's.
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(maximum.unwrap_or(4000).min(4000)), maximum };
    rustix::process::setrlimit(Resource::Nofile, limit).expect("allowed");
    let (mut server, address) = server(Config::default());
    let mut clients: Vec<_> = Vec::new();
    until("all are accepted", || {
        clients.extend((clients.len()..CLIENTS).take(50).map(|_| Client::connect(&address)));
        turn(&mut server);
        server.handler().opened == CLIENTS as u64
    });
    let mut answers = 0;
    let mut portions = Vec::new();
    clients.iter_mut().for_each(|client| client.send(b"x"));
    until("all are answered", || {
        turn(&mut server);
        let before = answers;
        answers += clients.iter_mut().filter_map(|client| client.answered().then_some(())).count();
        portions.push(answers - before);
        answers == CLIENTS
    });
    let most = tablecloth::limits::SESSION_EVENTS_PER_TURN;
    assert!(portions.iter().all(|portion| *portion <= most), "{portions:?}");
}

/// Reads a byte in its event and answers it in its flush; writes down which came when.
#[derive(Default)]
struct Deferring {
    calls: String,
    /// Whether the next flush has not had enough.
    again: bool,
}

impl Handler for Deferring {
    type Session = Stream;

    fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Stream> {
        Ok(accepted.stream)
    }

    fn event(&mut self, _: &mut Context<'_>, stream: &mut Stream, _: IoEvent) -> Verdict {
        self.calls.push('r');
        match stream.read(&mut [0; 1]) {
            Ok(1..) => Verdict::Flush,
            Ok(0) => Verdict::Close,
            Err(_) => Verdict::Keep,
        }
    }

    fn flush(&mut self, _: &mut Context<'_>, stream: &mut Stream) -> Verdict {
        self.calls.push('w');
        match stream.write(b"x") {
            Ok(_) if std::mem::take(&mut self.again) => Verdict::Flush,
            Ok(_) => Verdict::Keep,
            Err(_) => Verdict::Close,
        }
    }
}

#[test]
fn a_batch_of_sessions_reads_before_the_first_of_them_writes() {
    let (mut server, address) = listening(&Config::default(), Deferring::default());
    let batch = tablecloth::limits::SESSIONS_PER_BATCH;
    let mut clients: Vec<_> = (0..batch + 3).map(|_| Client::connect(&address)).collect();
    let mut turn = |calls: usize| {
        until("they have had their events", || {
            server.turn(Some(Duration::from_millis(1))).expect("a turn");
            server.handler().calls.len() >= calls
        });
        std::mem::take(&mut server.handler_mut().calls)
    };
    // Each of them can be written to.
    turn(clients.len());
    clients.iter_mut().for_each(|client| client.send(b"x"));
    let (r, w) = ("r".repeat(batch), "w".repeat(batch));
    assert_eq!(turn(2 * clients.len()), format!("{r}{w}rrrwww"));
    assert!(clients.iter_mut().all(Client::answered));
    // One that has nothing to flush may have taken its time: nobody waits for the next one, too.
    clients[0].send(b"x");
    clients[1].0.shutdown(Shutdown::Write).expect("half-closed");
    clients[2].send(b"x");
    assert_eq!(turn(5), "rrwrw");
}

#[test]
fn a_flush_that_is_not_enough_is_followed_by_another_event() {
    let handler = Deferring { again: true, ..Deferring::default() };
    let (mut server, address) = listening(&Config::default(), handler);
    let mut client = Client::connect(&address);
    client.send(b"x");
    until("it has had its events", || {
        server.turn(Some(Duration::from_millis(1))).expect("a turn");
        server.handler().calls.len() >= 3
    });
    assert_eq!(server.handler().calls, "rwr");
}

#[test]
fn accepting_pauses_at_the_limit_of_sessions_and_resumes_when_one_ends() {
    let mut config = Config::default();
    config.max_sessions = 2;
    let (mut server, address) = server(config);
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(&address)).collect();
    clients.iter_mut().for_each(|client| client.send(b"x"));
    until("two are served", || {
        turn(&mut server);
        clients.iter_mut().filter_map(|client| client.answered().then_some(())).count() > 0
            || server.handler().opened == 2
    });
    for _ in 0..20 {
        turn(&mut server);
    }
    assert_eq!(server.handler().opened, 2, "the third waits in the kernel's queue");
    clients.remove(0);
    until("the third is served", || {
        turn(&mut server);
        server.handler().opened == 3
    });
}

#[test]
fn the_loop_can_be_embedded_by_its_descriptor() {
    let (mut server, address) = server(Config::default());
    turn(&mut server);
    let mut client = Client::connect(&address);
    client.send(b"x");
    until("the answer is there", || {
        if poll_readable(&server) {
            server.turn(Some(Duration::ZERO)).expect("a turn");
        }
        client.answered()
    });
}

/// Polls the server's epoll descriptor as an outer loop would: in an outer mio loop.
fn poll_readable(server: &Reactor<Echo>) -> bool {
    let mut outer = mio::Poll::new().expect("a poll");
    let fd = server.as_raw_fd();
    outer
        .registry()
        .register(&mut mio::unix::SourceFd(&fd), mio::Token(0), mio::Interest::READABLE)
        .expect("registered");
    let mut events = mio::Events::with_capacity(4);
    outer.poll(&mut events, Some(Duration::from_millis(1))).expect("polled");
    !events.is_empty()
}

#[test]
fn another_thread_can_ask_for_a_shutdown_and_wait_for_the_predecessor() {
    let (mut server, _) = server(Config::default());
    let upgrader = server.upgrader();
    let (remote, watch) = (server.remote(), upgrader.predecessor_watch());
    assert!(!upgrader.is_successor());
    assert_eq!((upgrader.generation(), upgrader.predecessor()), (0, None));
    let asker = std::thread::spawn(move || {
        assert!(watch.is_gone() && watch.wait(PATIENCE), "there never was one");
        remote.request_shutdown();
    });
    while server.turn(None).expect("a turn") != State::Exited {}
    asker.join().expect("it asked");
}

#[test]
fn clients_that_come_and_go_at_once_do_no_harm() {
    let (mut server, address) = server(Config::default());
    // Each of these ends with its first event; whatever comes for it later finds nobody.
    for _ in 0..50 {
        let mut client = Client::connect(&address);
        client.send(b"x");
        drop(client);
        turn(&mut server);
    }
    for _ in 0..20 {
        turn(&mut server);
    }
    let mut client = Client::connect(&address);
    client.send(b"x");
    until("the next one is served", || {
        turn(&mut server);
        client.answered()
    });
}

#[test]
fn a_listener_has_the_options_that_it_was_made_with() {
    let mut server = new_server(&Config::default());
    let options = SocketOptions::default().reuse_port(true).only_v6(true).backlog(7);
    let address = server.listen_with("six", "[::1]:0", &options).expect("listens");
    assert_eq!(server.address("six"), Some(&address));
    // SO_REUSEPORT lets a second one in, which without it is an error.
    let again = server.listen_with("six again", &address.to_string(), &options);
    assert_eq!(again.expect("shared"), address);
    let alone = SocketOptions::default().only_v6(true);
    let error = server.listen_with("alone", &address.to_string(), &alone).expect_err("in use");
    assert!(error.to_string().contains("bind: Address already in use"), "{error}");
}

#[test]
fn a_socket_made_by_the_caller_is_taken_if_it_is_what_it_should_be() {
    let mut server = new_server(&Config::default());
    let make = |at: &Address| {
        let Address::Internet(at) = at else { return Err(io::ErrorKind::Unsupported.into()) };
        let listener = TcpListener::bind(at)?;
        setsockopt(&listener, sockopt::KeepAlive, &true)?;
        Ok(OwnedFd::from(listener))
    };
    let file = |_: &Address| Ok(tempfile::tempfile()?.into());
    let error = server.listen_on("file", "127.0.0.1:0", file).expect_err("a file").to_string();
    assert!(error.contains("\"file\" on 127.0.0.1:0"), "{error}");
    let elsewhere = |_: &Address| Ok(TcpListener::bind("127.0.0.2:0")?.into());
    let error = server.listen_on("other", "127.0.0.1:0", elsewhere).expect_err("elsewhere");
    assert!(error.to_string().contains("expected a TCP listener on 127.0.0.1:0"), "{error}");
    let udp = |_: &Address| Ok(std::net::UdpSocket::bind("127.0.0.1:0")?.into());
    assert!(server.listen_on("udp", "127.0.0.1:0", udp).is_err());

    let address = server.listen_on("made", "127.0.0.1:0", make).expect("listens").to_string();
    let mut server = server.start(Echo::default());
    let mut client = Client::connect(&address);
    client.send(b"x");
    until("it is served", || {
        turn(&mut server);
        client.answered()
    });
}

#[test]
fn every_socket_that_is_made_is_close_on_exec_and_non_blocking() {
    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    let check = |fd: BorrowedFd<'_>| {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).expect("flags"));
        let close = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).expect("flags"));
        assert!(flags.contains(OFlag::O_NONBLOCK) && close.contains(FdFlag::FD_CLOEXEC));
    };
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| format!("unix:{}", place.path().join(name).display());
    let mut server = new_server(&Config::default());
    let udp = server.udp("udp", "127.0.0.1:0").expect("bound");
    check(udp.as_fd());
    check(server.unix_datagram("datagram", &path("datagram")).expect("bound").as_fd());
    let seqpacket = server.unix_seqpacket("seqpacket", &path("seqpacket")).expect("listens");
    check(seqpacket.as_fd());
    assert_eq!(getsockopt(&seqpacket, sockopt::AcceptConn), Ok(true));

    server.watch("udp").expect("it can be watched");
    server.file("file", || Ok(tempfile::tempfile()?.into())).expect("opened");
    let error = server.watch("file").expect_err("a regular file").to_string();
    assert!(error.contains("\"file\" on file: epoll_ctl: Operation not permitted"), "{error}");
    assert!(server.watch("nothing").is_err());
}

#[test]
fn a_timeout_beyond_all_time_is_none() {
    let mut config = Config::default();
    (config.drain_timeout, config.upgrade_timeout) = (Duration::MAX, Duration::MAX);
    let (mut server, _) = server(config);
    turn(&mut server);
    server.remote().request_shutdown();
    until("it ends", || server.turn(Some(Duration::ZERO)).expect("a turn") == State::Exited);
}

/// EMFILE: the process may not open another descriptor; the connection waits, and so does the log.
#[test]
fn a_server_without_descriptors_pauses_accepting_and_resumes_by_itself() {
    let mut actor = Start::actor().serve();
    let mut session = actor.connect();
    let (pid, _) = session.who();
    let limit = |most: u64| harness::limit_descriptors(pid, most);
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("there").count() as u64;
    let highest = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("there")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok())
        .max()
        .expect("some");
    // No number is free below the limit: fill the gaps, then there is no room.
    let before = limit(open.min(highest + 1));
    let mut waiting: Vec<_> = (0..20).map(|_| actor.connect()).collect();
    actor.wait_for("accepting pauses, and resumes by itself: accept on \"main\": Too many open");
    assert_eq!(session.who().0, pid, "the sessions that are there are served");
    limit(before);
    for client in &mut waiting {
        assert_eq!(client.who().0, pid, "those that waited are served");
    }
    assert_eq!(actor.count("accepting pauses"), 1, "one line");
    // And while it drains in that state, it does not spin.
    limit(open.min(highest + 1));
    let _unserved: Vec<_> = (0..20).map(|_| actor.connect()).collect();
    actor.signal(pid, nix::sys::signal::Signal::SIGQUIT);
    actor.wait_for("Running -> Draining");
    let busy = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("there");
        stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number")
    };
    let (start, before) = (std::time::Instant::now(), busy());
    for _ in 0..20 {
        assert_eq!(session.who().0, pid);
        std::thread::sleep(Duration::from_millis(10));
    }
    let (spent, passed) = (busy() - before, start.elapsed().as_nanos() as u64);
    assert!(spent * 2 < passed, "{spent} ns of {passed}");
}

/// Sessions that reach each other: a byte from one of them has a meaning for another.
#[derive(Default)]
struct Reaching {
    ids: Vec<SessionId>,
    woken: u32,
    ticks: u32,
    /// Where a stream of one's own comes from.
    elsewhere: Option<std::os::unix::net::UnixStream>,
    given: Option<OwnedFd>,
}

impl Handler for Reaching {
    type Session = (Stream, Option<Stream>);

    fn open(&mut self, cx: &mut Context<'_>, accepted: Accepted) -> io::Result<Self::Session> {
        self.ids.extend(cx.id());
        let mut own = self.elsewhere.take().map(Stream::from_unix).transpose()?;
        if let Some(own) = &mut own {
            cx.attach(own, 1)?;
        }
        Ok((accepted.stream, own))
    }

    fn event(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut Self::Session,
        event: IoEvent,
    ) -> Verdict {
        let (stream, own) = session;
        if event.is_woken() {
            let _ = stream.write_all(b"w");
        }
        if let Some(own) = own.as_mut().filter(|_| event.of(1).is_readable()) {
            let mut byte = [0; 1];
            if own.read(&mut byte).is_ok_and(|read| read == 1) {
                let _ = stream.write_all(&byte);
            }
        }
        let mut byte = [0; 1];
        match stream.read(&mut byte) {
            Ok(0) => Verdict::Close,
            Ok(_) => {
                match byte[0] {
                    b'0'..=b'9' => cx.wake(self.ids[usize::from(byte[0] - b'0')]),
                    b'a'..=b'd' => cx.close(self.ids[usize::from(byte[0] - b'a')]),
                    b't' => cx.tick_at(cx.now()),
                    b'g' => {
                        self.given = own.take().and_then(|own| own.into_fd().ok());
                    }
                    _ => {}
                }
                Verdict::Again
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Verdict::Keep,
            Err(_) => Verdict::Close,
        }
    }

    fn woken(&mut self, _: &mut Context<'_>) {
        self.woken += 1;
    }

    fn tick(&mut self, cx: &mut Context<'_>) {
        assert_eq!(cx.id(), None, "it belongs to no session");
        self.ticks += 1;
    }
}

#[test]
fn a_session_is_woken_and_closed_by_its_id_from_other_methods_and_other_threads() {
    let (mut server, address) = listening(&Config::default(), Reaching::default());
    let mut clients: Vec<_> = Vec::new();
    for count in 1..=3 {
        clients.push(Client::connect(&address));
        until("it is let in", || {
            server.turn(Some(Duration::from_millis(1))).expect("a turn");
            server.handler().ids.len() == count
        });
    }
    let mut turn_until = |what: &str, done: &mut dyn FnMut(&Reaching) -> bool| {
        until(what, || {
            server.turn(Some(Duration::from_millis(1))).expect("a turn");
            done(server.handler())
        });
    };
    clients[0].send(b"1");
    turn_until("the second one is woken", &mut |_| clients[1].answered());
    clients[0].send(b"t");
    turn_until("the handler's own time has come", &mut |handler| handler.ticks == 1);
    clients[0].send(b"c");
    turn_until("the third one is closed", &mut |_| matches!(clients[2].0.read(&mut [0; 1]), Ok(0)));
    // An id that is out of date finds nobody, although its slot has a new tenant.
    clients[2] = Client::connect(&address);
    turn_until("a fourth one is let in", &mut |handler| handler.ids.len() == 4);
    clients[0].send(b"2");
    clients[0].send(b"3");
    turn_until("the fourth one is woken once", &mut |_| clients[2].answered());
    assert!(!clients[2].answered());

    let (remote, ids) = (server.remote(), server.handler().ids.clone());
    std::thread::spawn(move || {
        remote.wake();
        remote.wake_session(ids[1]);
        remote.close_session(ids[0]);
        remote.close_session(ids[2]);
    });
    let (mut woken, mut closed) = (false, false);
    until("another thread reaches them, too", || {
        server.turn(Some(Duration::from_millis(1))).expect("a turn");
        woken |= clients[1].answered();
        closed |= matches!(clients[0].0.read(&mut [0; 1]), Ok(0));
        woken && closed && server.handler().woken == 1
    });
}

#[test]
fn a_stream_from_elsewhere_is_a_session_s_source_and_can_be_given_away() {
    let (near, mut far) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let handler = Reaching { elsewhere: Some(near), ..Reaching::default() };
    let (mut server, address) = listening(&Config::default(), handler);
    let mut client = Client::connect(&address);
    far.write_all(b"x").expect("sent");
    until("it is passed on", || {
        server.turn(Some(Duration::from_millis(1))).expect("a turn");
        client.answered()
    });
    client.send(b"g");
    until("it is given away", || {
        server.turn(Some(Duration::from_millis(1))).expect("a turn");
        server.handler().given.is_some()
    });
    far.write_all(b"y").expect("sent");
    let given = server.handler_mut().given.take().expect("given");
    let mut byte = [0; 1];
    std::os::unix::net::UnixStream::from(given).read_exact(&mut byte).expect("it is nobody else's");
    assert_eq!(&byte, b"y");
}

#[test]
fn who_asks_for_an_upgrade_when_the_loop_has_ended_does_not_wait_for_ever() {
    let (mut server, _) = server(Config::default());
    turn(&mut server);
    let remote = server.remote();
    remote.request_exit();
    assert_eq!(server.run().expect("it ends").end, End::Exited);
    assert!(remote.upgrade().wait().is_none());
}

#[test]
fn an_upgrader_that_is_not_ready_hears_nothing_and_waits_for_nothing() {
    let mut upgrader = None;
    until("there is no other one", || match Upgrader::new(Config::default()) {
        Err(Error::AnotherServer) => false,
        made => upgrader.insert(made).is_ok(),
    });
    let mut upgrader = upgrader.expect("it was made").expect("an upgrader");
    upgrader.request_exit();
    for _ in 0..3 {
        assert_eq!(upgrader.turn(None).expect("a turn"), Phase::Waiting);
    }
    upgrader.ready().expect("ready");
    assert_eq!(upgrader.phase(), Phase::Serving);
    let deadline = upgrader.next_deadline();
    assert!(deadline.is_some_and(|at| at <= std::time::Instant::now()), "there is something to do");
    assert_eq!(upgrader.turn(None).expect("a turn"), Phase::Exited(End::Exited));
}

/// Has a counter beside its client, and sends on what is counted.
struct Counting {
    counter: std::sync::Arc<OwnedFd>,
}

struct CountingSession {
    stream: Stream,
    counter: Pollable,
}

impl Handler for Counting {
    type Session = CountingSession;

    fn open(&mut self, cx: &mut Context<'_>, accepted: Accepted) -> io::Result<Self::Session> {
        let mut counter = Pollable::new(self.counter.try_clone()?);
        cx.attach_pollable(&mut counter, 1)?;
        let file = std::fs::File::open(std::env::current_exe()?)?;
        let refused = cx.attach_pollable(&mut Pollable::new(file.into()), 2);
        assert_eq!(refused.map_err(|error| error.raw_os_error()), Err(Some(nix::libc::EPERM)));
        Ok(CountingSession { stream: accepted.stream, counter })
    }

    fn event(
        &mut self,
        _: &mut Context<'_>,
        session: &mut CountingSession,
        event: IoEvent,
    ) -> Verdict {
        if event.of(1).is_readable() {
            let mut count = [0; 8];
            if rustix::io::read(&session.counter, &mut count).is_ok() {
                let _ = session.stream.write(&[count[0]]);
            }
        }
        let read = session.stream.read(&mut [0; 1]);
        if read.is_ok() { Verdict::Close } else { Verdict::Keep }
    }
}

#[test]
fn a_session_hears_of_any_descriptor_that_can_be_polled() {
    let flags = rustix::event::EventfdFlags::NONBLOCK;
    let counter = std::sync::Arc::new(rustix::event::eventfd(0, flags).expect("a counter"));
    let handler = Counting { counter: std::sync::Arc::clone(&counter) };
    let (mut server, address) = listening(&Config::default(), handler);
    let mut client = TcpStream::connect(&address).expect("a connection");
    client.set_nonblocking(true).expect("a flag");
    let mut turn = || server.turn(Some(Duration::from_millis(1))).expect("a turn");
    turn();
    turn();
    rustix::io::write(&*counter, &7u64.to_ne_bytes()).expect("counted");
    let mut heard = [0; 1];
    until("it is told", || {
        turn();
        client.read(&mut heard).is_ok()
    });
    assert_eq!(heard, [7]);
    // When the session has ended, its duplicate causes no events any more.
    drop(client);
    until("it has ended", || {
        turn() == State::Running && std::sync::Arc::strong_count(&counter) == 2
    });
    turn();
    rustix::io::write(&*counter, &1u64.to_ne_bytes()).expect("counted");
    turn();
}

/// Asks for everybody over one connection, which belongs to no session.
struct Shared {
    upstream: Option<Stream>,
    address: Address,
    waiting: std::collections::VecDeque<tablecloth::SessionId>,
    answers: std::collections::HashMap<tablecloth::SessionId, u8>,
}

impl Handler for Shared {
    type Session = Stream;

    /// Before anybody is there.
    fn woken(&mut self, cx: &mut Context<'_>) {
        let refused = cx.connect_own(&self.address, 1 << 24);
        assert_eq!(refused.expect_err("no key").kind(), io::ErrorKind::InvalidInput);
        self.upstream = Some(cx.connect_own(&self.address, 41).expect("connected"));
    }

    fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Stream> {
        Ok(accepted.stream)
    }

    fn event(&mut self, cx: &mut Context<'_>, stream: &mut Stream, _: IoEvent) -> Verdict {
        let id = cx.id().expect("a session");
        if let Some(answer) = self.answers.remove(&id) {
            let _ = stream.write(&[answer]);
        }
        let mut asked = [0; 1];
        match stream.read(&mut asked) {
            Ok(1..) => {
                self.waiting.push_back(id);
                let _ = self.upstream.as_mut().expect("there").write(&asked);
                Verdict::Again
            }
            Ok(0) => Verdict::Close,
            Err(_) => Verdict::Keep,
        }
    }

    fn owned(&mut self, cx: &mut Context<'_>, key: u32, event: IoEvent) -> Verdict {
        assert_eq!((key, cx.id()), (41, None));
        let mut answer = [0; 1];
        let upstream = self.upstream.as_mut().expect("there");
        if event.is_readable() && upstream.read(&mut answer).is_ok_and(|read| read == 1) {
            let id = self.waiting.pop_front().expect("somebody has asked");
            self.answers.insert(id, answer[0]);
            cx.wake(id);
            return Verdict::Again;
        }
        Verdict::Keep
    }
}

#[test]
fn a_connection_that_belongs_to_no_session_serves_all_of_them() {
    let upstream = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = Address::Internet(upstream.local_addr().expect("an address"));
    let handler = Shared {
        upstream: None,
        address,
        waiting: std::collections::VecDeque::new(),
        answers: std::collections::HashMap::new(),
    };
    let (mut server, address) = listening(&Config::default(), handler);
    server.remote().wake();
    upstream.set_nonblocking(true).expect("a flag");
    let mut theirs = None;
    until("it has connected, and nobody has asked", || {
        server.turn(Some(Duration::from_millis(1))).expect("a turn");
        theirs = theirs.take().or_else(|| upstream.accept().ok());
        theirs.is_some()
    });
    let (mut theirs, _) = theirs.expect("accepted");
    theirs.set_nonblocking(true).expect("a flag");
    let mut clients: Vec<_> =
        (0..3).map(|_| TcpStream::connect(&address).expect("a connection")).collect();
    for (number, client) in (0u8..).zip(&mut clients) {
        client.set_nonblocking(true).expect("a flag");
        client.write_all(&[number]).expect("asked");
    }
    let mut asked: Vec<u8> = Vec::new();
    until("all have asked", || {
        server.turn(Some(Duration::from_millis(1))).expect("a turn");
        let mut more = [0; 8];
        let read = theirs.read(&mut more).unwrap_or(0);
        asked.extend_from_slice(&more[..read]);
        asked.len() == 3
    });
    let answers: Vec<_> = asked.iter().map(|asked| asked + 100).collect();
    theirs.write_all(&answers).expect("answered");
    for (number, client) in (100u8..).zip(&mut clients) {
        let mut answer = [0; 1];
        until("each has its own answer", || {
            server.turn(Some(Duration::from_millis(1))).expect("a turn");
            client.read(&mut answer).is_ok()
        });
        assert_eq!(answer, [number]);
    }
}
