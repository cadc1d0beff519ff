//! Listeners from process to process: whatever somebody does to a socket's path, and however an address
//! is written, a HUP ends with a server at it, or with a line that says why not.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use harness::{Actor, PATIENCE, Start, example, is_alive, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A server, and who serves.
struct Family {
    actor: Actor,
    serving: u32,
}

impl Family {
    fn start(program: &str, args: &[&str]) -> Self {
        Self::of(Start::program(program), args)
    }

    /// Without a probation, so that an upgrade is over soon.
    fn of(start: Start, args: &[&str]) -> Self {
        let mut actor = start.pid_file().args(&["--probation", "0"]).args(args).spawn();
        actor.wait_for("listening on");
        let pid_file = actor.place.path().join("pid");
        until("it serves", || pid_file.exists());
        let serving = actor.pid();
        Self { actor, serving }
    }

    /// Asks for an upgrade and waits until the successor is alone.
    fn upgrade(&mut self) {
        let old = self.serving;
        self.actor.signal(old, Signal::SIGHUP);
        let line = self.actor.wait_for_any(&["done; spawn", "failed in"]);
        let (_, new) = line.split_once(" -> ").expect("a report");
        let (new, _) = new.split_once(' ').expect("a report");
        assert!(line.contains("done; spawn"), "{line}");
        self.serving = new.parse().expect("a process id");
        until("the old process is gone", || !is_alive(old));
    }

    /// Asks for an upgrade that is refused; answers the line that says why.
    fn failing_upgrade(&mut self) -> String {
        self.actor.signal(self.serving, Signal::SIGHUP);
        self.actor.wait_for("failed in")
    }

    fn stop(&mut self) {
        self.actor.signal(self.serving, Signal::SIGQUIT);
        let serving = self.serving;
        until("it ends", || !is_alive(serving));
    }

    /// The port of the listener whose line came last.
    fn port(&mut self) -> u16 {
        let line = self.actor.log.iter().rev().find(|line| line.contains("listening on"));
        let port = line.and_then(|line| line.rsplit(':').next()?.parse().ok());
        port.expect("a port")
    }
}

fn answers(mut stream: impl Read + Write) -> bool {
    let mut answer = [0; 6];
    stream.write_all(b"hello\n").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer == *b"hello\n"
}

fn unix(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A demo at a path in its own directory.
fn demo_at_a_path(args: &[&str]) -> (Family, PathBuf) {
    let start = Start::program("demo");
    let path = start.path_of("s");
    let listen = format!("unix:{path}");
    (Family::of(start, &[&["--listen", &listen], args].concat()), path.into())
}

#[test]
fn a_path_that_somebody_has_removed_is_there_again_after_a_hup() {
    let (mut demo, path) = demo_at_a_path(&[]);
    fs::remove_file(&path).expect("removed");
    assert!(unix(&path).is_err());
    demo.upgrade();
    assert!(answers(unix(&path).expect("it is back")));
    until("it is told", || demo.actor.has("was removed, and is made again"));
    demo.upgrade();
    assert!(answers(unix(&path).expect("it is inherited like any other")));
    demo.stop();
    assert!(!path.exists());
}

#[test]
fn who_waits_in_the_queue_of_a_removed_path_is_let_in_by_the_successor() {
    // One session is all that there may be, so that the second client waits.
    let start = Start::program("proxy");
    let (path, upstream) = (start.path_of("s"), start.path_of("up"));
    let echo = UnixListener::bind(&upstream).expect("bound");
    let (listen, to) = (format!("unix:{path}"), format!("unix:{upstream}"));
    let args = ["--listen", &listen, "--to", &to, "--max-sessions", "1"];
    let mut proxy = Family::of(start, &args);
    let path = PathBuf::from(path);
    let first = unix(&path).expect("let in");
    let (mut first_served, _) = echo.accept().expect("by the proxy");
    let mut second = unix(&path).expect("it waits");
    fs::remove_file(&path).expect("removed");
    proxy.upgrade();

    second.write_all(b"hello").expect("sent");
    first.shutdown(Shutdown::Both).expect("over");
    assert_eq!(first_served.read(&mut [0]).expect("over"), 0);
    drop((first, first_served));
    let (mut served, _) = echo.accept().expect("the second one, from the old queue");
    let mut heard = [0; 5];
    served.read_exact(&mut heard).expect("it was sent");
    assert_eq!(heard, *b"hello");
}

#[test]
fn a_path_that_is_another_server_s_by_now_is_never_unlinked_by_us() {
    let (mut demo, path) = demo_at_a_path(&[]);
    fs::remove_file(&path).expect("removed");
    let _other = UnixListener::bind(&path).expect("bound");
    let theirs = fs::metadata(&path).expect("there").ino();
    for _ in 0..2 {
        demo.upgrade();
    }
    assert!(demo.actor.count("is not ours any more, and cannot be made again: bind") == 2);
    demo.stop();
    assert_eq!(fs::metadata(&path).expect("there").ino(), theirs);
}

#[test]
fn a_path_that_a_killed_server_has_taken_and_left_is_taken_back() {
    let (mut demo, path) = demo_at_a_path(&[]);
    fs::remove_file(&path).expect("removed");
    // It is not unlinked by its end.
    drop(UnixListener::bind(&path).expect("bound"));
    demo.upgrade();
    assert!(answers(unix(&path).expect("it is ours")));
    demo.stop();
    assert!(!path.exists());
}

#[test]
fn routes_are_taken_over_however_their_addresses_are_written() {
    let mut echo = Family::start("demo", &["--listen", "127.0.0.1:0"]);
    let start = Start::program("proxy");
    let routes = start.path_of("routes");
    let to = echo.port();
    let write = |listen: &str| {
        fs::write(&routes, format!("{listen} -> 127.0.0.1:{to}\n")).expect("written");
    };
    write("localhost:0");
    let mut proxy = Family::of(start, &["--routes", &routes]);
    let port = proxy.port();
    let idle = tcp("127.0.0.1", port).expect("a session that moves along");
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "0.0.0.0"] {
        write(&format!("{host}:{port}"));
        proxy.upgrade();
        assert!(answers(tcp("127.0.0.1", port).expect(host)), "{host}");
    }
    assert!(answers(tcp("127.0.0.2", port).expect("every address")));
    assert!(answers(idle));

    // Back it goes in two steps, and a process that cannot take the first says so.
    write(&format!("127.0.0.3:{port}"));
    let line = proxy.failing_upgrade();
    assert!(line.contains(&format!("the predecessor listens on 0.0.0.0:{port}")), "{line}");
    assert!(answers(tcp("127.0.0.3", port).expect("the old routes go on")));
}

/// One of several servers that are started at once.
struct Racer {
    child: Child,
    is_serving: bool,
}

impl Racer {
    fn start(path: &str) -> Self {
        let listen = format!("unix:{path}");
        let mut command = Command::new(example("demo"));
        command.args(["--listen", &listen]).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(Stdio::piped()).spawn().expect("it starts");
        Self { child, is_serving: true }
    }

    fn look(&mut self) {
        self.is_serving = self.child.try_wait().expect("ours").is_none();
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn of_several_servers_that_take_over_the_same_stale_path_one_has_it_and_the_others_say_why() {
    let place = harness::place();
    let path = place.path().join("s");
    let text = path.to_str().expect("text");
    for _ in 0..10 {
        drop(UnixListener::bind(&path).expect("bound"));
        let mut racers: Vec<_> = (0..4).map(|_| Racer::start(text)).collect();
        until("one is left", || {
            racers.iter_mut().for_each(Racer::look);
            racers.iter().filter(|it| it.is_serving).count() == 1
        });
        until("it serves", || unix(&path).is_ok());
        assert!(answers(unix(&path).expect("one listens")));
        for racer in racers.iter_mut().filter(|it| !it.is_serving) {
            let mut said = String::new();
            racer.child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
            assert!(said.contains("bind: Address already in use"), "{said}");
        }
        let names: Vec<_> = fs::read_dir(place.path()).expect("there").collect();
        assert_eq!(names.len(), 1, "no litter: {names:?}");
        for racer in racers.iter_mut().filter(|it| it.is_serving) {
            kill(Pid::from_raw(racer.child.id() as i32), Signal::SIGQUIT).expect("it is there");
            racer.child.wait().expect("ours");
        }
        assert!(!path.exists());
    }
}

#[test]
fn a_socket_has_the_mode_and_the_owner_that_the_flags_say_and_a_hup_changes_nothing() {
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let owner = format!("{uid}:{gid}");
    let (mut demo, path) = demo_at_a_path(&["--socket-mode", "0606", "--socket-owner", &owner]);
    let told = |path: &Path| {
        let found = fs::metadata(path).expect("there");
        (found.permissions().mode() & 0o777, found.uid(), found.gid())
    };
    assert_eq!(told(&path), (0o606, uid, gid));
    // Somebody changes it.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
    demo.upgrade();
    harness::until("it has them again", || told(&path) == (0o606, uid, gid));
    assert!(answers(unix(&path).expect("inherited")));
}
