//! One table and the next one, in one process: what is in the manifest of the first is inherited by
//! the second.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use mio::Poll;
use nix::sys::socket::{getsockopt, sockopt};

use super::*;
use crate::socket::SocketOptions;
use crate::socket_file::file_at;
use crate::upgrader::{Make, Wanted};
use crate::wire::{Entry, Kind};

/// A table of names, and who lets clients in by them.
struct Listeners {
    estate: Estate,
    acceptor: Acceptor,
}

fn first() -> Listeners {
    Listeners::of(Vec::new())
}

/// What a successor gets.
fn next(before: &Listeners) -> Listeners {
    let passed = before.estate.manifest().into_iter();
    let passed = passed.map(|(entry, fd)| (entry, fd.try_clone_to_owned().expect("a duplicate")));
    Listeners::of(passed.collect())
}

/// And from a predecessor that says neither what was asked for nor which file it was.
fn next_of_version_1(before: &Listeners) -> Listeners {
    let passed = before.estate.manifest().into_iter();
    let passed = passed.map(|(entry, fd)| {
        let entry = Entry { asked: String::new(), file: None, ..entry };
        (entry, fd.try_clone_to_owned().expect("a duplicate"))
    });
    Listeners::of(passed.collect())
}

impl Listeners {
    fn of(inherited: Vec<(Entry, OwnedFd)>) -> Self {
        let estate = Estate::new(inherited).expect("as it was passed on");
        Self { estate, acceptor: Acceptor::default() }
    }

    fn at(&mut self, name: &str, asked: &str) -> Result<Address, Error> {
        self.estate.listen(name, asked, Make::Socket(&SocketOptions::default()))
    }

    fn port(&self, name: &str) -> u16 {
        self.estate.address(name).and_then(Address::port).expect("a port")
    }

    /// Whether that one is the one that `before` has.
    fn has_inherited(&self, name: &str) -> bool {
        self.estate.is_inherited(name)
    }

    fn resume(&mut self, registry: &Registry, now: Instant) {
        self.acceptor.resume(&mut self.estate, registry, now);
    }
}

/// A loop, as far as listeners need one.
struct Loop(Poll, Instant);

impl Loop {
    fn new() -> Self {
        Self(Poll::new().expect("epoll"), Instant::now())
    }

    fn resume(&self, listeners: &mut Listeners) {
        listeners.resume(self.0.registry(), self.1);
    }

    /// Who is let in by now: the listeners' names.
    fn accepted(&mut self, listeners: &mut Listeners) -> Vec<String> {
        let mut events = mio::Events::with_capacity(8);
        self.0.poll(&mut events, Some(Duration::ZERO)).expect("polled");
        for event in &events {
            let token = Token::unpack(event.token()).expect("a token");
            listeners.acceptor.note(token).expect("a listener's");
        }
        listeners.acceptor.poll_those_refused(self.0.registry(), self.1);
        let mut names = Vec::new();
        while let Some((name, _, _)) = listeners.acceptor.accept(self.1, i32::MAX) {
            names.push((*name).to_owned());
        }
        names
    }
}

fn place() -> (tempfile::TempDir, String) {
    let place = tempfile::tempdir().expect("a directory");
    let asked = format!("unix:{}", place.path().join("s").display());
    (place, asked)
}

/// As a server does it at its end.
fn retire(listeners: &mut Listeners, registry: &Registry) {
    listeners.estate.take_paths().iter().for_each(|(path, _)| path.unlink());
    listeners.acceptor.close(registry);
    listeners.estate.close();
}

fn path_of(asked: &str) -> &Path {
    Path::new(asked.trim_start_matches("unix:"))
}

#[test]
fn who_asks_by_the_same_text_inherits_and_no_host_is_looked_up() {
    let mut before = first();
    let port = before.at("web", "127.0.0.1:0").expect("bound").port().expect("a port");
    let gone = format!("no-such-host.invalid:{port}");
    before.estate.set_asked("web", &gone);
    for name in ["web", "another name"] {
        let mut after = next(&before);
        assert_eq!(after.at(name, &gone).expect("inherited").port(), Some(port));
        assert!(after.has_inherited(name));
        assert_eq!(after.estate.manifest()[0].0.asked, gone, "and so does the next one");
    }
    assert!(next_of_version_1(&before).at("web", &gone).is_err(), "it would have to be looked up");
}

#[test]
fn a_listener_at_the_address_is_inherited_however_it_is_spelled_and_whatever_its_name_was() {
    let mut before = first();
    before.at("web", "localhost:0").expect("bound");
    let port = before.port("web");
    for spelled in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "127.0.0.1:0"] {
        let asked = match spelled.strip_suffix(":0") {
            Some(host) => format!("{host}:0"),
            None => format!("{spelled}:{port}"),
        };
        for mut after in [next(&before), next_of_version_1(&before)] {
            after.at("web", &asked).expect("inherited");
            assert_eq!(after.port("web"), port, "{asked}");
        }
        // Any port is that of a name.
        let mut after = next(&before);
        after.at("other", &asked).expect("there is one");
        assert_eq!(after.port("other") == port, spelled != "127.0.0.1:0", "{asked}");
    }

    let (place, asked) = place();
    before.at("unix", &asked).expect("bound");
    let roundabout = format!("unix:{}/./s", place.path().display());
    for mut after in [next(&before), next_of_version_1(&before)] {
        after.at("unix by another way", &roundabout).expect("inherited");
        assert!(after.has_inherited("unix by another way"));
    }
}

#[test]
fn files_are_claimed_by_their_names_alone() {
    let claim = |listeners: &mut Listeners, name: &str, from: &str| {
        let wanted = Wanted { name, kind: Kind::File, asked: "" };
        let open = || fs::File::open(from).map(OwnedFd::from).map_err(|error| ("open", error));
        listeners.estate.passive(wanted, Make::Caller(Box::new(|_| open()))).map(drop)
    };
    let mut before = first();
    claim(&mut before, "one", "/dev/null").expect("opened");
    let mut after = next(&before);
    assert!(claim(&mut after, "two", "/no/such/file").is_err(), "it is not the other one");
    claim(&mut after, "one", "/no/such/file").expect("inherited");
}

#[test]
fn all_addresses_are_listened_on_beside_the_one_that_the_predecessor_keeps() {
    let mut before = first();
    before.at("web", "127.0.0.1:0").expect("bound");
    let port = before.port("web");
    let waits = TcpStream::connect(("127.0.0.1", port)).expect("a connection");

    let mut after = next(&before);
    let whole = format!("0.0.0.0:{port}");
    assert_eq!(after.at("all", &whole).expect("beside it").to_string(), whole);
    after.estate.close_unclaimed();
    for (entry, fd) in after.estate.manifest() {
        let shared = getsockopt(&fd, sockopt::ReusePort).expect("an option");
        assert!(!shared, "{}: nobody else can join in", entry.name);
    }
    let mut turn = Loop::new();
    turn.resume(&mut after);
    let _local = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    let _other = TcpStream::connect(("127.0.0.2", port)).expect("a connection");
    assert_eq!(turn.accepted(&mut after), ["all", "all", "all"]);
    drop((waits, before));

    // And so it goes on, until somebody wants the part by itself.
    let mut later = next(&after);
    later.at("all", &whole).expect("inherited");
    later.estate.close_unclaimed();
    assert_eq!(later.estate.manifest().len(), 2);
    let mut apart = next(&later);
    let part = format!("127.0.0.1:{port}");
    apart.at("all", &whole).expect("inherited");
    apart.at("part", &part).expect("inherited");
    assert!(apart.has_inherited("part"));
}

#[test]
fn one_address_of_all_that_the_predecessor_listens_on_is_refused_in_words() {
    let mut before = first();
    before.at("all", "0.0.0.0:0").expect("bound");
    let port = before.port("all");
    let mut after = next(&before);
    let error = after.at("one", &format!("127.0.0.1:{port}")).expect_err("taken").to_string();
    assert!(error.contains(&format!("the predecessor listens on 0.0.0.0:{port}")), "{error}");
}

#[test]
fn a_path_that_was_removed_is_made_again_and_who_waits_for_the_old_one_is_let_in() {
    let (_place, asked) = place();
    let path = path_of(&asked);
    let mut before = first();
    before.at("s", &asked).expect("bound");
    let (_one, _two) = (UnixStream::connect(path), UnixStream::connect(path));
    fs::remove_file(path).expect("removed");

    let mut after = next(&before);
    after.at("s", &asked).expect("made again");
    after.estate.close_unclaimed();
    let _three = UnixStream::connect(path).expect("there again");
    let mut turn = Loop::new();
    assert_eq!(turn.accepted(&mut after), [""; 0], "not before it serves");
    turn.resume(&mut after);
    assert_eq!(turn.accepted(&mut after), ["s", "s", "s"]);
    assert_eq!(after.acceptor.polled.len(), 1, "nobody can come to the old one any more");
    assert_eq!(after.estate.manifest()[0].0.file, file_at(path));
    retire(&mut after, turn.0.registry());
    assert!(!path.exists());
}

#[test]
fn a_path_that_cannot_be_made_again_does_not_keep_a_process_from_being_replaced() {
    let (place, asked) = place();
    let mut before = first();
    before.at("s", &asked).expect("bound");
    drop(place);
    let mut after = next(&before);
    after.at("s", &asked).expect("inherited");
    assert!(after.has_inherited("s"));
}

#[test]
fn a_path_that_is_another_server_s_by_now_is_left_alone_by_every_process_from_then_on() {
    let (_place, asked) = place();
    let path = path_of(&asked);
    let mut tables = vec![first()];
    tables[0].at("s", &asked).expect("bound");
    fs::remove_file(path).expect("removed");
    let _thief = UnixListener::bind(path).expect("bound");
    let theirs = file_at(path);
    for _ in 0..2 {
        let mut after = next(tables.last().expect("one"));
        after.at("s", &asked).expect("inherited");
        after.estate.close_unclaimed();
        assert!(after.has_inherited("s"));
        tables.push(after);
    }
    // Nor is it unlinked by one that does not want it any more.
    let mut last = next(tables.last().expect("one"));
    last.estate.close_unclaimed();
    tables.push(last);
    let poll = Poll::new().expect("epoll");
    for mut table in tables {
        retire(&mut table, poll.registry());
        assert_eq!(file_at(path), theirs);
    }
}

#[test]
fn the_file_of_a_predecessor_that_does_not_tell_it_is_the_one_that_is_found() {
    let (_place, asked) = place();
    let mut before = first();
    before.at("s", &asked).expect("bound");
    let mut after = next_of_version_1(&before);
    after.at("s", &asked).expect("inherited");
    assert!(after.has_inherited("s"));
    retire(&mut after, Poll::new().expect("epoll").registry());
    assert!(!path_of(&asked).exists());
}

#[test]
fn a_path_that_is_not_wanted_any_more_is_unlinked_when_nobody_can_come_back_to_it() {
    let (_place, asked) = place();
    let mut before = first();
    before.at("s", &asked).expect("bound");
    let mut after = next(&before);
    after.estate.close_unclaimed();
    assert!(path_of(&asked).exists());
    after.estate.take_abandoned().iter().for_each(|(path, _)| path.unlink());
    assert!(!path_of(&asked).exists());
}

#[test]
fn a_listener_that_epoll_refuses_is_looked_into_and_tried_again() {
    let mut listeners = first();
    listeners.at("web", "127.0.0.1:0").expect("bound");
    let mut turn = Loop::new();
    // What is there already is refused (EEXIST, epoll_ctl(2)).
    let number = listeners.estate.doors()[0].fd.as_raw_fd();
    let elsewhere = Token::single(TokenKind::Waker).pack();
    let registry = turn.0.registry().try_clone().expect("a duplicate");
    registry.register(&mut SourceFd(&number), elsewhere, Interest::WRITABLE).expect("registered");
    turn.resume(&mut listeners);
    assert_eq!(listeners.acceptor.deadline(), Some(turn.1 + limits::ACCEPT_RETRY));

    let address = ("127.0.0.1", listeners.port("web"));
    for _ in 0..2 {
        let _client = TcpStream::connect(address).expect("a connection");
        turn.1 += limits::ACCEPT_RETRY;
        assert_eq!(turn.accepted(&mut listeners), ["web"], "all the same");
    }
    registry.deregister(&mut SourceFd(&number)).expect("registered above");
    turn.1 += limits::ACCEPT_RETRY;
    assert_eq!(turn.accepted(&mut listeners), [""; 0]);
    assert_eq!(listeners.acceptor.deadline(), None);
    let _client = TcpStream::connect(address).expect("a connection");
    assert_eq!(turn.accepted(&mut listeners), ["web"]);
    listeners.acceptor.pause(&registry);
}

#[test]
fn a_socket_s_file_has_its_mode_before_anybody_can_connect_and_an_inherited_one_when_it_is_served()
{
    let mode_of = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let (_place, asked) = place();
    let path = path_of(&asked);
    let options = |mode| SocketOptions::default().mode(mode);
    let mut before = first();
    before.estate.listen("s", &asked, Make::Socket(&options(0o602))).expect("bound");
    assert_eq!(mode_of(path), 0o602, "whatever the umask is");

    let mut after = next(&before);
    after.estate.listen("s", &asked, Make::Socket(&options(0o660))).expect("inherited");
    after.estate.close_unclaimed();
    assert_eq!(mode_of(path), 0o602, "it may never serve");
    Loop::new().resume(&mut after);
    let open_up = |listeners: &Listeners| {
        for (path, access) in listeners.estate.files_to_open_up() {
            access.apply(&path).expect("changed");
        }
    };
    open_up(&after);
    assert_eq!(mode_of(path), 0o660);
    // And after a rollback.
    open_up(&before);
    assert_eq!(mode_of(path), 0o602);
}

#[test]
fn an_owner_that_cannot_be_given_leaves_no_file_behind() {
    let (_place, asked) = place();
    // Not even root can give it to nobody at all (chown(2)).
    let options = SocketOptions::default().owner(Some(u32::MAX - 1), None);
    let made = first().estate.listen("s", &asked, Make::Socket(&options));
    if let Err(error) = made {
        assert!(error.to_string().contains("chown"), "{error}");
        assert!(!path_of(&asked).exists());
    }
}

#[test]
fn a_file_that_is_no_socket_is_neither_taken_over_nor_changed() {
    let (_place, asked) = place();
    fs::write(path_of(&asked), "precious").expect("written");
    let options = SocketOptions::default().mode(0o777);
    let error = first().estate.listen("s", &asked, Make::Socket(&options)).expect_err("taken");
    let Error::Open { step: "bind", source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(fs::read(path_of(&asked)).expect("there"), b"precious");
}

/// A deadline that has passed, and of which nothing comes because the house is full, would have the loop
/// turn as fast as it can.
#[test]
fn a_full_house_that_also_waits_for_a_descriptor_waits_for_a_session_to_end() {
    for pause in [Pause::Until(Instant::now()), Pause::NoDescriptor(Instant::now())] {
        let mut table = first();
        table.at("web", "127.0.0.1:0").expect("bound");
        let poll = Poll::new().expect("epoll");
        table.resume(poll.registry(), Instant::now());
        let mut acceptor = table.acceptor;
        acceptor.polled[0].ready = true;
        acceptor.pause = Some(pause);
        assert!(acceptor.deadline().is_some());
        acceptor.pause_full(10, 0);
        assert_eq!(acceptor.deadline(), None);
        assert!(!acceptor.has_ready());
        acceptor.room_made(Instant::now());
        assert!(acceptor.has_ready());
    }
}

/// Two sockets on one port, the second of which leaves.
fn two_at_a_port() -> (Listeners, Listeners, u16) {
    let mut shared = [first(), first()];
    let options = SocketOptions::default().reuse_port(true);
    let mut listen = |place: usize, asked: &str| {
        let listeners: &mut Listeners = &mut shared[place];
        listeners.estate.listen("web", asked, Make::Socket(&options)).expect("listens")
    };
    let address = listen(0, "127.0.0.1:0");
    listen(1, &address.to_string());
    let [stays, leaves] = shared;
    (stays, leaves, address.port().expect("a port"))
}

#[test]
fn who_leaves_gets_nobody_new_and_stays_open_until_it_is_quiet() {
    let (mut stays, mut leaves, port) = two_at_a_port();
    let (mut one, other) = (Loop::new(), Loop::new());
    one.resume(&mut stays);
    other.resume(&mut leaves);
    let begun = other.1;
    leaves.acceptor.drain(other.0.registry(), begun, Some(1));
    let clients: Vec<_> =
        (0..50).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("connected")).collect();
    leaves.acceptor.linger(begun);
    assert!(leaves.acceptor.accept(begun, i32::MAX).is_none(), "the kernel sends them elsewhere");
    assert_eq!(one.accepted(&mut stays).len(), clients.len());
    assert!(!leaves.acceptor.is_drained(begun));
    assert!(leaves.acceptor.deadline().is_some_and(|at| at > begun), "it sleeps meanwhile");
    let quiet = begun + limits::LEAVING_QUIET;
    leaves.acceptor.linger(quiet);
    assert!(leaves.acceptor.accept(quiet, i32::MAX).is_none());
    assert!(leaves.acceptor.is_drained(quiet));
}

#[test]
fn who_leaves_and_is_full_sleeps_until_the_end_of_its_time() {
    let (_stays, mut leaves, port) = two_at_a_port();
    let place = Loop::new();
    place.resume(&mut leaves);
    // Whoever is sent here before it leaves waits, because there is no room.
    let _clients: Vec<_> =
        (0..50).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("connected")).collect();
    let begun = place.1;
    leaves.acceptor.drain(place.0.registry(), begun, Some(1));
    leaves.acceptor.linger(begun);
    leaves.acceptor.pause_full(1, 0);
    assert!(leaves.acceptor.deadline().is_some_and(|at| at >= begun + limits::LEAVING));
    assert!(!leaves.acceptor.has_ready());
    assert!(!leaves.acceptor.is_drained(begun + limits::LEAVING_QUIET));
    assert!(leaves.acceptor.is_drained(begun + limits::LEAVING));
}
