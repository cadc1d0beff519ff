//! Under a service manager, which is played here: what it hears, in which order and from whom, and the
//! sockets that it passes on (sd_notify(3), sd_listen_fds(3)).

#![cfg(feature = "systemd")]
#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::io::{IoSliceMut, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use harness::{Actor, Client, PATIENCE, Start, is_alive, state_of, until, who_by_udp};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, setsockopt, sockopt};
use nix::unistd::close;
use tablecloth::fault::Point;

/// The manager's end of its socket.
struct Manager {
    socket: UnixDatagram,
    path: String,
    /// What was heard and is not talked about: the line for people.
    statuses: Vec<Word>,
    _place: tempfile::TempDir,
}

/// A message.
#[derive(Debug)]
struct Word {
    from: u32,
    text: String,
    descriptors: Vec<RawFd>,
}

impl Manager {
    fn new() -> Self {
        let place = harness::place();
        let path = place.path().join("notify").to_str().expect("text").to_owned();
        let socket = UnixDatagram::bind(&path).expect("bound");
        setsockopt(&socket, sockopt::PassCred, &true).expect("set");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { socket, path, statuses: Vec::new(), _place: place }
    }

    fn starts(&self, start: Start) -> Start {
        start.env("NOTIFY_SOCKET", &self.path)
    }

    /// The next message, whatever it is.
    fn next(&self) -> Word {
        let mut buffer = [0; 4096];
        let mut control = nix::cmsg_space!([RawFd; 4], nix::sys::socket::UnixCredentials);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<UnixAddr>(fd, &mut slices, Some(&mut control), flags);
        let message = message.expect("somebody says something");
        let (mut from, mut descriptors) = (0, Vec::new());
        for part in message.cmsgs().expect("whole") {
            if let ControlMessageOwned::ScmRights(fds) = part {
                descriptors.extend(fds);
            } else if let ControlMessageOwned::ScmCredentials(who) = part {
                from = who.pid() as u32;
            }
        }
        let length = message.bytes;
        let text = String::from_utf8(buffer[..length].to_vec()).expect("text");
        Word { from, text, descriptors }
    }

    /// The next message that is more than a line for people.
    fn hear(&mut self) -> Word {
        loop {
            let word = self.next();
            match word.text.starts_with("STATUS=") {
                true => self.statuses.push(word),
                false => return word,
            }
        }
    }

    /// The next message is this one, and who says it.
    fn hears(&mut self, from: u32, text: &str) {
        let word = self.hear();
        assert_eq!((word.from, &*word.text), (from, text), "{word:?}");
    }

    /// An upgrade of that process begins.
    fn hears_of_reloading(&mut self, from: u32) {
        let word = self.hear();
        let lines: Vec<_> = word.text.lines().collect();
        let [reloading, micros, status] = lines[..] else { panic!("{word:?}") };
        assert_eq!((word.from, reloading), (from, "RELOADING=1"));
        let micros = micros.strip_prefix("MONOTONIC_USEC=").expect("the time");
        assert!(micros.parse::<u64>().is_ok_and(|micros| micros > 0), "{word:?}");
        assert!(status.starts_with("STATUS=upgrading; generation "), "{word:?}");
    }

    /// That process serves, for all to know; answers its id.
    fn hears_of_a_successor(&mut self, generation: u64) -> u32 {
        let Word { from, text, .. } = self.hear();
        let words = format!(
            "MAINPID={from}\nREADY=1\nSTATUS=serving; generation {generation}, pid {from}, 0 sessions"
        );
        assert_eq!(text, words);
        from
    }

    /// A predecessor leaves; the answer is what it waits for.
    fn hears_a_farewell(&mut self, from: u32, successor: u32) -> RawFd {
        self.hears(from, &format!("MAINPID={successor}"));
        let word = self.hear();
        assert_eq!((word.from, &*word.text), (from, "BARRIER=1"), "alone in its message");
        let [barrier] = word.descriptors[..] else { panic!("{word:?}") };
        barrier
    }

    /// Everything that has been said by now.
    fn rest(&self) -> Vec<Word> {
        self.socket.set_nonblocking(true).expect("set");
        let mut probe = [0; 1];
        let mut words = Vec::new();
        while Peek::peek(&self.socket, &mut probe).is_ok() {
            words.push(self.next());
        }
        self.socket.set_nonblocking(false).expect("set");
        words
    }
}

/// `UnixDatagram::peek` is not stable.
trait Peek {
    fn peek(&self, buffer: &mut [u8]) -> nix::Result<usize>;
}

impl Peek for UnixDatagram {
    fn peek(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        nix::sys::socket::recv(self.as_raw_fd(), buffer, MsgFlags::MSG_PEEK)
    }
}

fn start(manager: &mut Manager, start: Start) -> Actor {
    let actor = manager.starts(start).serve();
    let pid = actor.pid();
    manager.hears(pid, &format!("READY=1\nSTATUS=serving; generation 0, pid {pid}, 0 sessions"));
    actor
}

#[test]
fn an_upgrade_is_told_step_by_step_and_the_old_process_leaves_when_it_is_heard() {
    let mut manager = Manager::new();
    let mut actor = start(&mut manager, Start::actor());
    let old = actor.pid();
    actor.signal(old, Signal::SIGHUP);
    manager.hears_of_reloading(old);
    let new = manager.hears_of_a_successor(1);
    let barrier = manager.hears_a_farewell(old, new);
    assert!(is_alive(old), "it waits");
    assert!(!actor.has("alone"));
    close(barrier).expect("open");
    actor.wait_for("alone");
    assert_eq!(actor.first_exits().code(), Some(0));
    assert_eq!(actor.who(), (new, 1));

    // And again: the next one knows the manager, too.
    actor.signal(new, Signal::SIGHUP);
    manager.hears_of_reloading(new);
    let last = manager.hears_of_a_successor(2);
    close(manager.hears_a_farewell(new, last)).expect("open");
    actor.wait_for("alone");
    actor.signal(last, Signal::SIGQUIT);
    let word = manager.hear();
    assert_eq!(word.from, last);
    let status = format!("STATUS=stopping; generation 2, pid {last}, 0 sessions");
    assert_eq!(word.text, format!("STOPPING=1\n{status}"));
    until("it ends", || !is_alive(last));
    assert!(manager.rest().is_empty());
}

#[test]
fn a_manager_that_never_answers_holds_an_upgrade_up_for_a_second_and_no_more() {
    let mut manager = Manager::new();
    let mut actor = start(&mut manager, Start::actor());
    let old = actor.pid();
    actor.signal(old, Signal::SIGHUP);
    manager.hears_of_reloading(old);
    let new = manager.hears_of_a_successor(1);
    let _never_closed = manager.hears_a_farewell(old, new);
    actor.wait_for("the service manager has not answered within 1s");
    actor.wait_for("alone");
    assert_eq!(actor.first_exits().code(), Some(0));
}

#[test]
fn a_manager_that_does_not_read_harms_nobody() {
    let manager = Manager::new();
    // Full after some of them (net.unix.max_dgram_qlen, unix(7)).
    let filler = UnixDatagram::unbound().expect("a socket");
    filler.set_nonblocking(true).expect("set");
    while filler.send_to(b"X=1", &manager.path).is_ok() {}
    let mut actor = manager.starts(Start::actor()).env("WATCHDOG_USEC", "20000").serve();
    let new = actor.upgrade();
    assert_eq!(actor.who(), (new, 1));
    // What was still to be said is said when there is room again, by whoever serves.
    let serves = format!("MAINPID={new}\nREADY=1");
    until("it is told in the end", || {
        manager.rest().iter().any(|word| word.from == new && word.text.starts_with(&serves))
    });
    actor.signal(new, Signal::SIGQUIT);
    until("it ends", || !is_alive(new));
}

#[test]
fn a_failed_upgrade_is_over_for_the_manager_and_the_status_says_why() {
    let mut manager = Manager::new();
    let mut actor = start(&mut manager, Start::actor().at(1, "exit:3"));
    let pid = actor.pid();
    actor.signal(pid, Signal::SIGHUP);
    manager.hears_of_reloading(pid);
    manager.hears(
        pid,
        &format!(
            "MAINPID={pid}\nREADY=1\nSTATUS=serving; generation 0, pid {pid}, 0 sessions; the last \
             upgrade failed in set-up: the successor exited with status 3",
        ),
    );
    assert_eq!(actor.who(), (pid, 0));
}

#[test]
fn what_a_successor_says_of_its_failure_cannot_speak_for_the_service() {
    let mut manager = Manager::new();
    let actor = start(&mut manager, Start::actor().at(1, "fail:no\nMAINPID=1\nSTOPPING=1"));
    let pid = actor.pid();
    actor.signal(pid, Signal::SIGHUP);
    manager.hears_of_reloading(pid);
    let word = manager.hear();
    assert_eq!(word.text.lines().count(), 3, "{word:?}");
    assert!(word.text.starts_with(&format!("MAINPID={pid}\nREADY=1\nSTATUS=serving")), "{word:?}");
    assert!(word.text.contains("the last upgrade failed in set-up"), "{word:?}");
}

#[test]
fn a_rollback_makes_the_predecessor_the_main_process_again() {
    let mut manager = Manager::new();
    let mut actor = start(&mut manager, Start::actor().args(&["--probation-ms", "60000"]));
    let old = actor.pid();
    actor.signal(old, Signal::SIGHUP);
    manager.hears_of_reloading(old);
    let new = manager.hears_of_a_successor(1);
    actor.wait_for("done; spawn");
    actor.signal(new, Signal::SIGKILL);
    let word = manager.hear();
    let text = format!(
        "MAINPID={old}\nREADY=1\nSTATUS=serving; generation 0, pid {old}, 0 sessions; the last \
         upgrade failed in draining: the successor was killed by SIGKILL"
    );
    assert_eq!((word.from, word.text), (old, text));
    assert_eq!(actor.who(), (old, 0));
}

#[test]
fn a_predecessor_that_is_told_to_stop_leaves_the_service_to_its_successor() {
    let mut manager = Manager::new();
    let mut actor = start(&mut manager, Start::actor().args(&["--probation-ms", "60000"]));
    let old = actor.pid();
    actor.signal(old, Signal::SIGHUP);
    manager.hears_of_reloading(old);
    let new = manager.hears_of_a_successor(1);
    actor.wait_for("done; spawn");
    actor.signal(old, Signal::SIGTERM);
    close(manager.hears_a_farewell(old, new)).expect("open");
    actor.wait_for("alone");
    assert_eq!(actor.who(), (new, 1));
    let stopped = manager.rest().into_iter().any(|word| word.text.contains("STOPPING"));
    assert!(!stopped, "nobody stops");
}

#[test]
fn a_successor_whose_predecessor_dies_at_the_commit_is_the_main_process() {
    let mut manager = Manager::new();
    let mut actor = start(&mut manager, Start::actor().faults());
    let old = actor.pid();
    actor.fault(Point::CommitSent, "kill");
    actor.signal(old, Signal::SIGHUP);
    manager.hears_of_reloading(old);
    let new = manager.hears_of_a_successor(1);
    assert_eq!(actor.who(), (new, 1));
}

#[test]
fn a_predecessor_that_waits_to_be_heard_can_still_come_back() {
    let mut manager = Manager::new();
    let mut actor = start(&mut manager, Start::actor());
    let old = actor.pid();
    let upgrade = |manager: &mut Manager, actor: &Actor| {
        actor.signal(old, Signal::SIGHUP);
        manager.hears_of_reloading(old);
        let new = manager.hears_of_a_successor(1);
        (new, manager.hears_a_farewell(old, new))
    };
    let (new, barrier) = upgrade(&mut manager, &actor);
    actor.signal(new, Signal::SIGKILL);
    let word = manager.hear();
    assert!(word.text.starts_with(&format!("MAINPID={old}\nREADY=1\n")), "{word:?}");
    assert_eq!(actor.who(), (old, 0));
    // What it has waited for is over.
    close(barrier).expect("open");
    let (new, barrier) = upgrade(&mut manager, &actor);
    assert!(is_alive(old));
    close(barrier).expect("open");
    actor.wait_for("alone");
    assert_eq!(actor.who(), (new, 1));
}

#[test]
fn a_program_with_a_loop_of_its_own_is_heard_like_a_server() {
    let mut manager = Manager::new();
    let start = Start::program("porter");
    let place = start.path_of("");
    let mut porter = manager.starts(start.args(&[&place, "0"])).spawn();
    let pid = porter.pid();
    manager.hears(pid, &format!("READY=1\nSTATUS=serving; generation 0, pid {pid}"));
    porter.signal(pid, Signal::SIGHUP);
    manager.hears_of_reloading(pid);
    let word = manager.hear();
    let new = word.from;
    let text = format!("MAINPID={new}\nREADY=1\nSTATUS=serving; generation 1, pid {new}");
    assert_eq!(word.text, text);
    close(manager.hears_a_farewell(pid, new)).expect("open");
    assert_eq!(porter.first_exits().code(), Some(0));
    porter.signal(new, Signal::SIGTERM);
    let word = manager.hear();
    assert!(word.from == new && word.text.starts_with("STOPPING=1\n"), "{word:?}");
    until("it ends", || !is_alive(new));
}

/// Only the first process's start has a time of the manager's.
#[test]
fn a_first_start_that_takes_long_asks_for_patience_in_its_own_words() {
    let mut manager = Manager::new();
    let actor = Start::actor().at(0, "needs-time:70").at(1, "needs-time:80");
    let mut actor = manager.starts(actor).spawn();
    let pid = actor.pid();
    manager.hears(pid, "EXTEND_TIMEOUT_USEC=70000000");
    assert!(manager.hear().text.starts_with("READY=1\n"));
    actor.signal(pid, Signal::SIGHUP);
    manager.hears_of_reloading(pid);
    let new = manager.hears_of_a_successor(1);
    close(manager.hears_a_farewell(pid, new)).expect("open");
    actor.wait_for("alone");
}

#[test]
fn a_shutdown_and_a_set_up_that_take_long_ask_for_patience() {
    let mut manager = Manager::new();
    let options = ["--drain-ms", "3000"];
    let mut actor = start(&mut manager, Start::actor().args(&options).gate(1));
    let old = actor.pid();
    actor.signal(old, Signal::SIGHUP);
    manager.hears_of_reloading(old);
    manager.hears(old, "EXTEND_TIMEOUT_USEC=10000000");
    actor.open_gate();
    let new = manager.hears_of_a_successor(1);
    close(manager.hears_a_farewell(old, new)).expect("open");
    actor.wait_for("alone");

    let mut session = actor.connect();
    session.ask("hello\n");
    actor.signal(new, Signal::SIGTERM);
    let word = manager.hear();
    assert!(word.text.starts_with("STOPPING=1\nSTATUS=stopping; "), "{word:?}");
    assert!(word.text.ends_with(", 1 session"), "{word:?}");
    manager.hears(new, "EXTEND_TIMEOUT_USEC=10000000");
    manager.hears(new, "EXTEND_TIMEOUT_USEC=10000000");
    until("it ends", || !is_alive(new));
}

#[test]
fn the_status_follows_the_sessions_and_an_idle_loop_sleeps() {
    let mut manager = Manager::new();
    let mut actor = start(&mut manager, Start::actor());
    let pid = actor.pid();
    let mut sessions: Vec<Client> = (0..3).map(|_| actor.connect()).collect();
    for session in &mut sessions {
        session.who();
    }
    let last = |manager: &Manager| manager.next().text;
    while last(&manager) != format!("STATUS=serving; generation 0, pid {pid}, 3 sessions") {}
    drop(sessions);
    while last(&manager) != format!("STATUS=serving; generation 0, pid {pid}, 0 sessions") {}
    until("it sleeps", || state_of(pid) == Some('S'));
    let before = switches(pid);
    std::thread::sleep(limits_of_status() * 2);
    assert_eq!(switches(pid), before, "it was woken");
    assert!(manager.rest().is_empty());
}

fn limits_of_status() -> Duration {
    tablecloth::limits::STATUS_INTERVAL
}

/// How often a process has gone to sleep (proc(5)).
fn switches(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|number| number.trim().parse().ok()).expect("a number")
}

#[test]
fn the_loop_itself_tells_the_watchdog_that_it_turns() {
    let mut manager = Manager::new();
    let every = Duration::from_millis(100);
    let start = Start::actor()
        .args(&["--probation-ms", "1000"])
        .env("WATCHDOG_USEC", "200000")
        .behind("WATCHDOG_PID=$$; export WATCHDOG_PID;");
    let mut actor = manager.starts(start).serve();
    let old = actor.pid();
    let word = manager.hear();
    assert!(word.text.starts_with("READY=1\nWATCHDOG=1\nSTATUS="), "{word:?}");
    let begun = Instant::now();
    (0..5).for_each(|_| manager.hears(old, "WATCHDOG=1"));
    assert!(begun.elapsed() >= every * 4, "{:?}", begun.elapsed());

    // One that hangs says nothing, and one that goes on does.
    actor.signal(old, Signal::SIGSTOP);
    until("it is stopped", || state_of(old) == Some('T'));
    manager.rest();
    std::thread::sleep(every * 3);
    assert!(manager.rest().is_empty());
    actor.signal(old, Signal::SIGCONT);
    manager.hears(old, "WATCHDOG=1");

    // A successor says it, too, and the predecessor as long as it may have to come back.
    actor.signal(old, Signal::SIGHUP);
    let heard = |manager: &mut Manager, from: Option<u32>, begin: &str| loop {
        let word = manager.hear();
        if word.text.starts_with(begin) && from.is_none_or(|from| from == word.from) {
            break word;
        }
    };
    heard(&mut manager, Some(old), "RELOADING=1");
    let new = heard(&mut manager, None, "MAINPID=").from;
    assert_ne!(new, old);
    heard(&mut manager, Some(old), "WATCHDOG=1");
    heard(&mut manager, Some(new), "WATCHDOG=1");
    heard(&mut manager, Some(old), "MAINPID=");
    close(heard(&mut manager, Some(old), "BARRIER=1").descriptors[0]).expect("open");
    actor.wait_for("alone");
    heard(&mut manager, Some(new), "WATCHDOG=1");
}

#[test]
fn a_watchdog_of_somebody_else_is_not_ours() {
    let mut manager = Manager::new();
    let start_it = Start::actor().env("WATCHDOG_USEC", "2000").env("WATCHDOG_PID", "1");
    let mut actor = start(&mut manager, start_it);
    let old = actor.pid();
    actor.signal(old, Signal::SIGHUP);
    manager.hears_of_reloading(old);
    let new = manager.hears_of_a_successor(1);
    close(manager.hears_a_farewell(old, new)).expect("open");
    actor.wait_for("alone");
    assert_eq!(actor.who(), (new, 1));
}

#[test]
fn no_variable_of_the_manager_s_reaches_a_child_of_the_application() {
    let mut manager = Manager::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let start_it =
        passing(Start::actor().env("WATCHDOG_USEC", "60000000"), vec![listener.into()], "1", "x");
    let mut actor = manager.starts(start_it).serve();
    manager.hear();
    for generation in 0..2 {
        let names = actor.connect().ask("environment\n");
        let of_the_manager = |name: &&str| {
            ["NOTIFY_", "WATCHDOG_", "LISTEN_", "TABLECLOTH_"]
                .iter()
                .any(|own| name.starts_with(own))
        };
        assert!(names.contains("PATH"), "{names}");
        assert_eq!(names.split(' ').find(of_the_manager), None, "generation {generation}");
        if generation == 0 {
            let (old, _) = actor.who();
            actor.signal(old, Signal::SIGHUP);
            manager.hears_of_reloading(old);
            let new = manager.hear().from;
            close(manager.hears_a_farewell(old, new)).expect("open");
            actor.wait_for("alone");
        }
    }
}

/// Started with these as descriptors 3 and 4, as a manager passes them on.
fn passing(start: Start, sockets: Vec<OwnedFd>, count: &str, names: &str) -> Start {
    let script = "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$;";
    start.env("LISTEN_FDS", count).env("LISTEN_FDNAMES", names).sockets(sockets).behind(script)
}

#[test]
fn a_socket_of_the_manager_is_claimed_by_its_name_wherever_it_is() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address").to_string();
    // Somebody is there before the service is.
    let mut early = Client::connect(&address);
    early.send("who\n");
    let start = Start::program("actor").args(&["--listen", "main=127.0.0.2:0"]);
    let mut actor = passing(start, vec![listener.into()], "1", "main").serve();
    assert_eq!(actor.address(), address);
    assert_eq!(early.who_said(), (actor.pid(), 0));
    drop(early);
    actor.upgrade();
    assert_eq!(Client::connect(&address).who().1, 1);
}

#[test]
fn a_socket_of_the_manager_is_claimed_by_its_address_and_the_others_are_closed() {
    let [one, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("bound"));
    let [at, unclaimed] = [&one, &other].map(|it| it.local_addr().expect("an address").to_string());
    let start = Start::program("actor").args(&["--listen", &format!("main={at}")]);
    let sockets = vec![other.into(), one.into()];
    let mut actor = passing(start, sockets, "2", "web:web").serve();
    assert_eq!(actor.address(), at);
    let line = format!("closing TCP listener \"web\" ({unclaimed}), which the service manager");
    actor.wait_for(&line);
    assert_eq!(Client::connect(&at).who(), (actor.pid(), 0));
    assert!(std::net::TcpStream::connect(&unclaimed).is_err(), "the last copy was closed");
}

#[test]
fn sockets_of_other_kinds_are_claimed_as_what_they_are() {
    let udp = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let at = udp.local_addr().expect("an address").to_string();
    let place = harness::place();
    let path = place.path().join("datagrams");
    let datagram = UnixDatagram::bind(&path).expect("bound");
    let datagrams = format!("d=unix:{}", path.display());
    let start = Start::actor().args(&["--udp", "u=127.0.0.1:0", "--datagram", &datagrams]);
    let mut actor = passing(start, vec![udp.into(), datagram.into()], "2", "u:d").spawn();
    actor.wait_for(&format!("udp u on {at}"));
    actor.wait_for("Running: set up.");
    assert_eq!(who_by_udp(&at), format!("{} 0", actor.pid()));
    let new = actor.upgrade();
    assert_eq!(who_by_udp(&at), format!("{new} 1"));
    assert!(!actor.has("nobody asks"));
    assert!(path.exists());
}

#[test]
fn the_path_of_a_manager_s_socket_is_never_unlinked() {
    let place = harness::place();
    let path = place.path().join("socket");
    let listener = UnixListener::bind(&path).expect("bound");
    let copy = listener.try_clone().expect("the manager keeps one");
    let listen = format!("main=unix:{}", path.display());
    let start = Start::program("actor").args(&["--listen", &listen]);
    let mut actor = passing(start, vec![listener.into()], "1", "unknown").serve();
    let who = || {
        let mut stream = UnixStream::connect(&path).expect("connected");
        stream.write_all(b"who\n").expect("sent");
        let mut buffer = [0; 64];
        let read = stream.read(&mut buffer).expect("an answer");
        let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
        let (pid, generation) = text.trim().split_once(' ').expect("two numbers");
        (pid.parse::<u32>().expect("a pid"), generation.parse::<u64>().expect("a generation"))
    };
    let mut serving = actor.pid();
    for generation in 0..3 {
        assert_eq!(who(), (serving, generation));
        actor.signal(serving, Signal::SIGHUP);
        actor.wait_for("alone");
        serving = who().0;
    }
    actor.signal(serving, Signal::SIGQUIT);
    until("it ends", || !is_alive(serving));
    assert!(path.exists());
    UnixStream::connect(&path).expect("the manager still listens");
    drop(copy);
}

#[test]
fn hostile_variables_are_an_error_in_words_or_none_of_our_business() {
    let socket = || vec![TcpListener::bind("127.0.0.1:0").expect("bound").into()];
    for (count, names, word) in [
        ("999999", "", "LISTEN_FDS is \"999999\": at most 1012"),
        ("-1", "", "LISTEN_FDS is \"-1\""),
        ("three", "", "LISTEN_FDS is \"three\""),
        ("1", "a:b", "LISTEN_FDNAMES has 2 names"),
        ("9", "", "descriptor 5 (\"unknown 3\") was not passed to this process"),
    ] {
        let (status, said) = passing(Start::actor(), socket(), count, names).run();
        assert!(!status.success(), "{count} {names}: {said}");
        assert!(said.contains(word) && !said.contains("panicked"), "{said}");
    }
    let mut actor = Start::actor()
        .env("LISTEN_PID", "1")
        .env("LISTEN_FDS", "999999")
        .env("LISTEN_FDNAMES", ":::")
        .serve();
    assert_eq!(actor.who(), (actor.pid(), 0));
    let mut actor = Start::actor().env("NOTIFY_SOCKET", "nonsense").serve();
    assert!(actor.has("NOTIFY_SOCKET is \"nonsense\": expected a path or @NAME"));
    assert_eq!(actor.who(), (actor.pid(), 0));
}
