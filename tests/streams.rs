//! Ring three: byte-exact streams. Sessions through the proxy send and receive without waiting for
//! an answer, in chunks of any size, some to slow readers, some half-closed; each of them moves from
//! process to process, and nobody at either end may notice.
//!
//!     cargo build --examples
//!     cargo test --test streams -- --ignored --nocapture
//!
//! `SEED` in the environment fixes what is sent in which chunks, and where successors are killed. It
//! does not fix when: clients, processes and the kernel keep their own time.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

#[path = "streams/contents.rs"]
mod contents;
#[path = "streams/traffic.rs"]
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddrV4;
use std::time::Instant;

use harness::{Actor, PATIENCE, Start, descriptors_of, is_alive, state_of, until};
use nix::sys::signal::Signal;
use tablecloth::fault::Point;
use tablecloth::limits::SESSIONS_PER_PACKET;
use traffic::{Part, Report, Traffic, Way, Wire};

/// In one upgrade of so many the successor is killed, where it is.
const KILL_EVERY: u32 = 3;

/// The steps at which a successor is killed. At all but the last it has no session yet; there it has
/// those of one packet. After that the predecessor may be gone, and nobody would be left.
const DEATHS: [Point; 13] = [
    Point::Started,
    Point::Adopted,
    Point::HelloSaid,
    Point::SetUp,
    Point::ReadySaid,
    Point::CommitHeard,
    Point::Accepting,
    Point::PidFileWritten,
    Point::ServingSaid,
    Point::PingHeard,
    Point::PongSaid,
    Point::SessionsHeard,
    Point::AckSaid,
];

#[test]
fn streams_arrive_byte_by_byte_through_six_upgrades() {
    Trial::start("proxy", 12).upgrades(6).ends();
}

#[test]
fn a_successor_that_is_killed_takes_the_streams_along_that_it_has_acknowledged_and_no_others() {
    let mut trial = Trial::start("proxy-with-faults", SESSIONS_PER_PACKET + 4);
    trial.upgrade();
    trial.killed_upgrade(Point::SessionsHeard);
    assert_eq!(trial.lost.len(), 0);
    trial.killed_upgrade(Point::AckSaid);
    let lost = trial.lost.len();
    assert!(lost > 0);
    trial.upgrade();
    assert_eq!(trial.lost.len(), lost);
    trial.ends();
}

#[test]
#[ignore = "it keeps two processors busy for up to a minute"]
fn fifty_sessions_stream_byte_by_byte_through_fifty_upgrades() {
    Trial::start("proxy", 50).upgrades(50).ends();
}

#[test]
#[ignore = "it keeps two processors busy for up to a minute"]
fn fifty_sessions_stream_on_although_every_third_of_fifty_successors_is_killed() {
    let mut trial = Trial::start("proxy-with-faults", 50);
    let mut deck = Vec::new();
    for upgrade in 1..=50 {
        if upgrade % KILL_EVERY == 0 {
            if deck.is_empty() {
                deck.extend(DEATHS);
                trial.random.shuffle(&mut deck);
            }
            let point = deck.pop().expect("filled");
            trial.killed_upgrade(point);
        } else {
            trial.upgrade();
        }
    }
    trial.ends();
}

/// A proxy, its sessions, and what became of them so far.
struct Trial {
    seed: u64,
    random: fastrand::Rng,
    began: Instant,
    proxy: Actor,
    /// Where clients connect that are led to the upstream by TCP, and by a Unix socket.
    addresses: [SocketAddrV4; 2],
    traffic: Traffic,
    /// So many at any time.
    count: usize,
    /// Those that must come to a good end, by their connections to the proxy.
    sessions: BTreeMap<Wire, u32>,
    /// Those that a killed successor had acknowledged.
    lost: BTreeSet<u32>,
    upgrades: u32,
    /// Where successors were killed.
    deaths: Vec<Point>,
}

impl Trial {
    fn start(program: &str, count: usize) -> Self {
        let seed = std::env::var("SEED").map_or_else(
            |_| fastrand::u64(..),
            |text| text.parse().unwrap_or_else(|error| panic!("SEED={text}: {error}")),
        );
        println!("SEED={seed}");
        let start = Start::program(program).pid_file();
        let traffic = Traffic::start(seed, &start.path_of("upstream"));
        let [tcp, unix] = &traffic.upstreams;
        let faults = start.path_of("faults");
        let mut proxy = start
            .env("FAULTS", &faults)
            .args(&["--listen", "127.0.0.1:0", "--to", tcp])
            .args(&["--listen", "127.0.0.2:0", "--to", unix])
            // The house is full all the time (I8).
            .args(&["--max-sessions", &count.to_string()])
            // Who stands still at a point is looked at for as long as it takes.
            .args(&["--probation", "0.02", "--takeover-timeout", "60", "--drain-timeout", "60"])
            .spawn();
        let addresses = [(); 2].map(|()| {
            let line = proxy.wait_for("listening on");
            line.rsplit(' ').next().and_then(|text| text.parse().ok()).expect("an address")
        });
        let mut trial = Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            began: Instant::now(),
            proxy,
            addresses,
            traffic,
            count,
            sessions: BTreeMap::new(),
            lost: BTreeSet::new(),
            upgrades: 0,
            deaths: Vec::new(),
        };
        trial.open_sessions();
        trial
    }

    fn open_sessions(&mut self) {
        while self.sessions.len() < self.count {
            let (session, wire) = self.traffic.open(self.addresses);
            self.sessions.insert(wire, session);
        }
    }

    fn upgrades(mut self, count: u32) -> Self {
        (0..count).for_each(|_| self.upgrade());
        self
    }

    /// One upgrade, to the end of the old process. Every session has moved.
    fn upgrade(&mut self) {
        let old = self.serving();
        self.proxy.signal(old, Signal::SIGHUP);
        let line = self.proxy.wait_for_any(&["finish the old process", "failed in"]);
        assert!(line.contains("finish the old process"), "nothing was wrong with it: {line}");
        until("the old process is gone", || !is_alive(old));
        let new = self.serving();
        assert_ne!(new, old);
        assert_eq!(self.held_by(new), self.wires(), "every session is in the new process's hand");
        self.upgrades += 1;
    }

    /// One upgrade in which the successor dies at that point. Every session is where it was, but for
    /// those that the successor had acknowledged.
    fn killed_upgrade(&mut self, point: Point) {
        let old = self.serving();
        // It stands still there, so that it can be looked at before it dies.
        self.proxy.fault(point, "stop");
        self.proxy.signal(old, Signal::SIGHUP);
        let line = self.proxy.wait_for_any(&["] fault at ", "failed in"]);
        let pid = line.strip_prefix('[').and_then(|line| line.split_once("] fault at "));
        let pid = pid.and_then(|(pid, _)| pid.parse().ok()).expect("it comes to the point");
        until("it stands still", || state_of(pid) == Some('T'));
        let taken = self.held_by(pid);
        self.proxy.signal(pid, Signal::SIGKILL);
        let line = self.proxy.wait_for_any(&["failed in", "finish the old process"]);
        assert!(line.contains("the successor was killed by SIGKILL"), "{line}");
        until("the pid file names the old process again", || self.serving() == old);

        let left = self.held_by(old);
        let lost: BTreeSet<_> = self.wires().difference(&left).copied().collect();
        assert!(lost.is_subset(&taken), "{point:?}: lost {lost:?} of {taken:?}");
        let most = if point == Point::AckSaid { SESSIONS_PER_PACKET } else { 0 };
        assert!(lost.len() <= most, "{point:?}: {lost:?}");
        assert_eq!(lost.is_empty(), most == 0, "{point:?}");
        for wire in lost {
            self.lost.extend(self.sessions.remove(&wire));
        }
        self.upgrades += 1;
        self.deaths.push(point);
        self.open_sessions();
    }

    /// Who serves, by the pid file.
    fn serving(&self) -> u32 {
        let text = fs::read_to_string(self.proxy.place.path().join("pid")).expect("a pid file");
        text.trim().parse().expect("a process id")
    }

    fn wires(&self) -> BTreeSet<Wire> {
        self.sessions.keys().copied().collect()
    }

    /// Clients' connections that are open in this process.
    fn held_by(&self, pid: u32) -> BTreeSet<Wire> {
        let own: BTreeSet<_> = descriptors_of(pid).into_iter().collect();
        let table = fs::read_to_string("/proc/net/tcp").expect("proc");
        // sl local_address rem_address st queues timer retrnsmt uid timeout inode (proc(5)); of a
        // listener's peer the port is 0.
        let sockets = table.lines().skip(1).filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let wire = (address_of(fields[1]), address_of(fields[2]));
            let is_own = own.contains(&format!("socket:[{}]", fields.get(9)?));
            let is_client = self.addresses.contains(&wire.0) && wire.1.port() != 0;
            (is_own && is_client).then_some(wire)
        });
        sockets.collect()
    }

    /// The streams may end now. Every one must have come through whole, but for those of lost
    /// sessions, of which every byte that arrived must be right.
    fn ends(self) {
        let ended = Instant::now();
        self.traffic.end();
        let mut ends: BTreeMap<(u32, Way, Part), Report> = BTreeMap::new();
        let sessions = self.sessions.len() + self.lost.len();
        while ends.len() < 4 * sessions {
            let report = self.traffic.reports.recv_timeout(PATIENCE).expect("every end reports");
            ends.insert((report.session, report.way, report.part), report);
        }
        let mut broken = BTreeSet::new();
        let mut bytes = 0;
        for session in self.sessions.values().chain(&self.lost) {
            for way in [Way::There, Way::Back] {
                let sent = &ends[&(*session, way, Part::Sent)];
                let received = &ends[&(*session, way, Part::Received)];
                assert_eq!(received.wrong_at, None, "{received:?}\n{sent:?}");
                assert!(received.bytes <= sent.bytes, "{received:?}\n{sent:?}");
                bytes += received.bytes;
                let is_whole = (sent.error, received.error) == (None, None)
                    && (sent.bytes, sent.sha256) == (received.bytes, received.sha256);
                if !is_whole {
                    broken.insert(*session);
                    if !self.lost.contains(session) {
                        println!("broken: {sent:?}, and {received:?}");
                    }
                }
            }
        }
        let [streaming, rest] = [ended.duration_since(self.began), ended.elapsed()];
        println!(
            "SEED={}: {sessions} sessions, {bytes} bytes, {} upgrades, successors killed \
             at {:?}, {} sessions broken; {streaming:.1?}, and {rest:.1?} to the end",
            self.seed,
            self.upgrades,
            self.deaths,
            broken.len(),
        );
        assert_eq!(broken, self.lost, "broken, and lost with the process that had them");
    }
}

/// An address in the kernel's table: the four bytes of the number, in memory, are those of the
/// address.
fn address_of(text: &str) -> SocketAddrV4 {
    let (ip, port) = text.split_once(':').expect("an address and a port");
    let ip = u32::from_str_radix(ip, 16).expect("a number").to_ne_bytes();
    SocketAddrV4::new(ip.into(), u16::from_str_radix(port, 16).expect("a number"))
}
