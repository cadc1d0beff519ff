//! Ring three: every setting of the proxy is changed by a HUP, one after the other, under load. Each is seen
//! to hold, and no session that it does not concern notices.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;
#[path = "harness/proxied.rs"]
mod proxied;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use harness::{Actor, is_alive, memory_of, until};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use proxied::{
    addresses, connect, endless, exchange, is_reset, name, name_at, proxy, silent, upstream,
};
use tempfile::TempDir;

/// Where the load comes in, and where each setting is tried.
const LOADED: &str = "127.0.0.2:0";
const TRIED: &str = "127.0.0.1:0";
/// Sessions of the load.
const LOAD: usize = 6;
/// On the command line, so that nothing of it happens unless the file says otherwise.
const NEVER: [&str; 12] = [
    "--connect-timeout",
    "1000",
    "--upgrade-timeout",
    "1000",
    "--takeover-timeout",
    "1000",
    "--drain-timeout",
    "1000",
    "--half-closed-timeout",
    "1000",
    "--probation",
    "0",
];

/// Sessions that say something all the time, and compare every byte that comes back.
struct Load {
    stop: Arc<AtomicBool>,
    sessions: Vec<JoinHandle<u64>>,
}

impl Load {
    fn on(address: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let session = |number: usize| {
            let (stop, mut stream) = (Arc::clone(&stop), connect(address));
            assert_eq!(name(&mut stream), 'A');
            thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    exchange(&mut stream, format!("message {count} of {number}").as_bytes());
                    count += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                count
            })
        };
        let sessions = (0..LOAD).map(session).collect();
        Self { stop, sessions }
    }

    /// Ends it. Each session is as it was at the beginning.
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for session in self.sessions {
            assert!(session.join().expect("a session has broken") > 0);
        }
    }
}

/// A proxy under load, whose file is written anew for each setting.
struct World {
    proxy: Actor,
    /// Echoes.
    to: String,
    tried: String,
    load: Load,
    place: TempDir,
    pid_file: PathBuf,
}

impl World {
    fn new() -> Self {
        let (to, place) = (upstream("A"), harness::place());
        let pid_file = place.path().join("pid");
        let all = format!("pid-file {}", pid_file.display());
        let mut proxy = proxy(&format!("{all}\n{LOADED} -> {to}\n{TRIED} -> {to}"), &NEVER);
        let at = addresses(&mut proxy);
        let load = Load::on(&at[0]);
        Self { proxy, to, tried: at[1].clone(), load, place, pid_file }
    }

    fn rewrite(&self, all: &str, tried: &str) {
        let (to, file) = (&self.to, self.pid_file.display());
        let routes = format!("pid-file {file}\n{all}\n{LOADED} -> {to}\n{tried}\n");
        proxied::rewrite(&self.proxy, &routes);
    }

    /// One upgrade, to the end of the old process, for settings of all, and a route.
    fn set(&mut self, all: &str, tried: &str) {
        self.rewrite(all, tried);
        let old = self.pid();
        self.proxy.signal(old, Signal::SIGHUP);
        // It may have been told to log less.
        until("another process is named", || self.named().is_some_and(|pid| pid != old));
        until("the old one is gone", || !is_alive(old));
    }

    fn named(&self) -> Option<u32> {
        fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()
    }

    fn pid(&self) -> u32 {
        self.named().expect("a process is named")
    }

    /// Who is named now, once it is not this one.
    fn successor_of(&self, pid: u32) -> u32 {
        until("a successor is named", || self.pid() != pid);
        self.pid()
    }

    /// The route where settings are tried, with settings of its own.
    fn route(&self, settings: &str) -> String {
        format!("{TRIED} -> {}\n  {settings}", self.to)
    }

    fn is_turned_away(&self) -> bool {
        TcpStream::connect(&self.tried).map_or(true, |mut it| !matches!(it.read(&mut [0]), Ok(1)))
    }
}

fn assert_reset(stream: &mut TcpStream) {
    assert_eq!(stream.read(&mut [0]).expect_err("reset").kind(), ErrorKind::ConnectionReset);
}

/// An upstream that says its name, and takes no notice of anything.
fn indifferent() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = listener.local_addr().expect("an address").to_string();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"I");
            kept.push(stream);
        }
    });
    address
}

#[test]
fn settings_of_a_route() {
    let mut world = World::new();

    let route = world.route("deny 127.0.0.0/8");
    world.set("", &route);
    assert!(world.is_turned_away(), "deny");
    let route = world.route("allow 127.0.0.1");
    world.set("deny all\nallow 127.0.0.0/8", &route);
    assert_eq!(name_at(&world.tried), 'A', "allow");

    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let told = listener.local_addr().expect("an address");
    world.set("", &format!("{TRIED} -> {told}\n  send-proxy on"));
    let client = connect(&world.tried);
    let mut header = [0; 12];
    listener.accept().expect("accepted").0.read_exact(&mut header).expect("a header");
    assert_eq!(&header, b"\r\n\r\n\0\r\nQUIT\n", "send-proxy");
    drop(client);

    let route = world.route("session-log on");
    world.set("", &route);
    world.proxy.forget();
    drop(connect(&world.tried));
    world.proxy.wait_for("session of [127.0.0.1:");

    let silent = silent();
    world.set("", &format!("{TRIED} -> {}\n  connect-timeout 0.2", silent.address));
    is_reset(&world.tried);

    let route = world.route("idle-timeout 0.2");
    world.set("", &route);
    let mut idle = connect(&world.tried);
    assert_eq!(name(&mut idle), 'A');
    assert_reset(&mut idle);

    world.set("", &format!("{TRIED} -> {}\n  half-closed-timeout 0.2", indifferent()));
    let mut half_closed = connect(&world.tried);
    assert_eq!(name(&mut half_closed), 'I');
    half_closed.shutdown(Shutdown::Write).expect("ended");
    assert_reset(&mut half_closed);

    let two = format!("{TRIED} -> {}, {}\n  policy fewest", upstream("A"), upstream("B"));
    world.set("", &two);
    let mut sessions: Vec<_> = (0..4).map(|_| connect(&world.tried)).collect();
    let names: String = sessions.iter_mut().map(name).collect();
    assert!(names == "ABAB" || names == "BABA", "{names}");
    world.proxy.forget();
    let gone = names.chars().next().expect("a name");
    for place in [2, 0] {
        sessions.remove(place);
        world.proxy.wait_for("finished; 0 bytes there, 1 back");
    }
    // By turns it would be one of each.
    let mut more: Vec<_> = (0..2).map(|_| connect(&world.tried)).collect();
    assert!(more.iter_mut().all(|it| name(it) == gone), "policy");
    drop((sessions, more));

    let route = world.route("keepalive 1");
    world.set("", &route);
    let mut kept = connect(&world.tried);
    assert_eq!(name(&mut kept), 'A');
    assert!(!has_keepalive_timer(&kept), "it comes with the sixth second");
    until("a timer for keepalive", || has_keepalive_timer(&kept));
    world.load.finish();
}

/// Whether the other end of a connection waits to ask whether its peer is there (proc_net_tcp.txt in the
/// kernel's documentation: timer 2).
fn has_keepalive_timer(stream: &TcpStream) -> bool {
    let hex = |port: u16| format!("0100007F:{port:04X}");
    let local = hex(stream.peer_addr().expect("an address").port());
    let remote = hex(stream.local_addr().expect("an address").port());
    let table = fs::read_to_string("/proc/net/tcp").expect("connections");
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1..3) == Some(&[&*local, &*remote]) && fields[5].starts_with("02:")
    })
}

#[test]
fn settings_of_the_whole_process() {
    let mut world = World::new();
    let plain = world.route("");

    world.set(&format!("max-sessions {}", LOAD + 1), &plain);
    let mut last = connect(&world.tried);
    assert_eq!(name(&mut last), 'A');
    world.proxy.wait_for(&format!("there are {} sessions", LOAD + 1));
    drop(last);

    // Clients that read nothing of what is sent without end.
    world.set("buffer-mib 1", &format!("{TRIED} -> {}", endless()));
    let pid = world.pid();
    let before = memory_of(pid);
    let mut deaf: Vec<_> = (0..100).map(|_| connect(&world.tried)).collect();
    for stream in &mut deaf {
        assert_eq!(name(stream), '\u{7}', "it has begun");
    }
    let grown = memory_of(pid).saturating_sub(before);
    assert!(grown < 3 * 1024, "buffer-mib: {grown} KiB");
    drop(deaf);

    world.set("log-level error", &plain);
    world.set("", &plain);
    // The process in between has said nothing of its own life.
    let lives = world.proxy.count("Running: set up");
    world.set("log-level error", &plain);
    world.set("", &plain);
    assert_eq!(world.proxy.count("Running: set up"), lives + 1, "log-level");

    let old = world.pid();
    let file = std::mem::replace(&mut world.pid_file, world.place.path().join("another"));
    world.rewrite("", &plain);
    world.proxy.signal(old, Signal::SIGHUP);
    until("pid-file", || world.named().is_some_and(|pid| pid != old));
    until("the old one is gone, and its file", || !is_alive(old) && !file.exists());

    let front = world.place.path().join("front");
    let with_front = format!("{plain}\nunix:{} -> {}", front.display(), world.to);
    world.set("socket-mode 0640", &with_front);
    assert_eq!(fs::metadata(&front).expect("there").permissions().mode() & 0o777, 0o640);
    if nix::unistd::getuid().is_root() {
        world.set("socket-owner 54321:54321", &with_front);
        let owner = || fs::metadata(&front).map(|it| (it.uid(), it.gid())).ok();
        until("its owner", || owner() == Some((54321, 54321)));
    }

    let extra = format!("{plain}\n127.0.0.3:0 -> {}", world.to);
    world.proxy.forget();
    world.set("", &extra);
    let line = world.proxy.wait_for("listening on 127.0.0.3:");
    let mut cut = connect(line.rsplit(' ').next().expect("an address"));
    assert_eq!(name(&mut cut), 'A');
    world.set("cut-removed on", &plain);
    assert_reset(&mut cut);

    upgrade_timeout(&mut world, &plain);
    probation(&mut world, &plain);
    takeover_timeout(&mut world, &plain);

    world.set("drain-timeout 0.3", &plain);
    let mut stays = connect(&world.tried);
    assert_eq!(name(&mut stays), 'A');
    let last = world.pid();
    world.load.finish();
    world.proxy.signal(last, Signal::SIGTERM);
    // Nothing else would end this session.
    assert_reset(&mut stays);
    until("it has ended", || !is_alive(last));
}

/// A successor that hangs over its file is given up.
fn upgrade_timeout(world: &mut World, plain: &str) {
    world.set("upgrade-timeout 0.3", plain);
    let pid = world.pid();
    let file: PathBuf = world.proxy.place.path().join("routes");
    fs::remove_file(&file).expect("there");
    mkfifo(&file, Mode::S_IRWXU).expect("a FIFO, which nobody writes to");
    world.proxy.forget();
    world.proxy.signal(pid, Signal::SIGHUP);
    world.proxy.wait_for("Upgrading -> Running");
    fs::remove_file(&file).expect("there");
    assert_eq!(world.pid(), pid);
}

/// Whoever dies within it is rolled back.
fn probation(world: &mut World, plain: &str) {
    world.set("probation 3", plain);
    let next = "probation 0.3\ntakeover-timeout 0.3";
    roll_back(world, next, plain, Signal::SIGKILL);
    world.set(next, plain);
}

/// Whoever stands still at the end of the probation is given up.
fn takeover_timeout(world: &mut World, plain: &str) {
    roll_back(world, "", plain, Signal::SIGSTOP);
}

/// Begins an upgrade, and does that to the successor when it serves: the old process serves again, alone.
fn roll_back(world: &mut World, all: &str, plain: &str, signal: Signal) {
    let pid = world.pid();
    world.rewrite(all, plain);
    world.proxy.forget();
    world.proxy.signal(pid, Signal::SIGHUP);
    world.proxy.wait_for("done; spawn");
    let successor = world.successor_of(pid);
    world.proxy.signal(successor, signal);
    world.proxy.wait_for("Draining -> Running");
    until("it is named, and alone", || world.pid() == pid && !is_alive(successor));
}
