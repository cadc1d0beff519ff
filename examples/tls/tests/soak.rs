//! A thousand idle sessions and fifty busy ones, of three kinds of clients and two versions, and twenty upgrades.
//!
//!     cargo test --release --test soak -- --ignored --nocapture --test-threads 1
//!
//! Clients are rustls here, OpenSSL by python3, and Go, where there is one.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use harness::client::{Client, VERSIONS, config};
use harness::{Proxy, echo, is_alive, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const UPGRADES: usize = 20;
const IDLE: usize = 1000;
const BUSY: usize = 50;
/// Through all busy ones together, each way.
const BYTES: usize = 1024 * 1024 * 1024;

/// What the clients of a kind have said.
#[derive(Default)]
struct Told {
    opened: BTreeSet<u16>,
    broken: BTreeMap<u16, String>,
    is_ready: bool,
    done: Option<usize>,
}

#[derive(Clone, Default)]
struct Kind(Arc<(Mutex<Told>, Condvar)>);

impl Kind {
    fn tell(&self, line: &str) {
        let (told, changed) = &*self.0;
        let mut told = told.lock().unwrap();
        let mut words = line.splitn(3, ' ');
        let (word, number) = (words.next().unwrap(), words.next().unwrap_or_default());
        match word {
            "open" => drop(told.opened.insert(number.parse().unwrap())),
            "broken" => {
                let reason = words.next().unwrap_or_default();
                told.broken.insert(number.parse().unwrap(), reason.to_owned());
            }
            "ready" => told.is_ready = true,
            "done" => told.done = Some(number.parse().unwrap()),
            _ => panic!("a client says {line:?}"),
        }
        changed.notify_all();
    }

    fn wait<T>(&self, what: &str, found: impl Fn(&Told) -> Option<T>) -> T {
        let (told, changed) = &*self.0;
        let deadline = Instant::now() + Duration::from_secs(300);
        let mut told = told.lock().unwrap();
        loop {
            if let Some(found) = found(&told) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}");
            told = changed.wait_timeout(told, left).unwrap().0;
        }
    }
}

/// Clients of one kind, in a process of their own or on threads.
struct Clients {
    name: &'static str,
    kind: Kind,
    process: Option<Child>,
    ended: Arc<AtomicBool>,
}

impl Clients {
    fn spawn(name: &'static str, command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (kind, output) = (Kind::default(), process.stdout.take().unwrap());
        let told = kind.clone();
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).for_each(|line| told.tell(&line));
        });
        Self { name, kind, process: Some(process), ended: Arc::default() }
    }

    /// The same by rustls.
    fn here(address: SocketAddr, idle: usize, busy: usize, quota: usize, seed: u64) -> Self {
        let (kind, ended) = (Kind::default(), Arc::new(AtomicBool::new(false)));
        let (told, is_over) = (kind.clone(), Arc::clone(&ended));
        thread::spawn(move || {
            let configs = VERSIONS.map(|version| config(version, &[]));
            let connect = |number: usize| {
                let client = Client::connect(address, &configs[number % 2], "localhost");
                client.socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                told.tell(&format!("open {}", client.socket.local_addr().unwrap().port()));
                client
            };
            let idlers: Vec<_> = (0..idle).map(connect).collect();
            let workers: Vec<_> = (0..busy).map(connect).collect();
            let workers = workers.into_iter().enumerate().map(|(number, mut client)| {
                let (told, is_over) = (told.clone(), Arc::clone(&is_over));
                let mut dice = fastrand::Rng::with_seed(seed ^ number as u64);
                thread::spawn(move || {
                    let mut gone = 0;
                    while gone < quota || !is_over.load(Ordering::Relaxed) {
                        let length = [1, 100, 5000, 20_000, 200_000][dice.usize(..5)];
                        let text: Vec<u8> = (0..length).map(|_| dice.u8(..)).collect();
                        if !exchange(&told, &mut client, &text) {
                            return 0;
                        }
                        gone += length;
                    }
                    gone
                })
            });
            let workers: Vec<_> = workers.collect();
            told.tell("ready");
            until_ended(&is_over);
            for mut client in idlers {
                exchange(&told, &mut client, b"still here");
            }
            let gone: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
            told.tell(&format!("done {gone}"));
        });
        Self { name: "rustls", kind, process: None, ended }
    }

    fn end(&mut self) -> (usize, BTreeMap<u16, String>) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(process) = &mut self.process {
            writeln!(process.stdin.take().unwrap(), "end").unwrap();
        }
        let gone = self.kind.wait("the end of the clients", |told| told.done);
        if let Some(process) = &mut self.process {
            assert!(process.wait().unwrap().success());
        }
        (gone, self.kind.0.0.lock().unwrap().broken.clone())
    }

    fn opened(&self) -> BTreeSet<u16> {
        self.kind.0.0.lock().unwrap().opened.clone()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn until_ended(is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(20));
    }
}

/// Every byte is compared. Answers whether the session lives.
fn exchange(told: &Kind, client: &mut Client, text: &[u8]) -> bool {
    for piece in text.chunks(32_768) {
        let records = client.records_of(piece);
        let heard = client.socket.write_all(&records).and_then(|()| client.hear_all(piece.len()));
        let problem = match heard {
            Ok(heard) if heard == piece => continue,
            Ok(_) => "another byte".to_owned(),
            Err(error) => error.to_string(),
        };
        let port = client.socket.local_addr().map_or(0, |address| address.port());
        told.tell(&format!("broken {port} {problem}"));
        return false;
    }
    true
}

fn source(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(file)
}

/// Clients of all kinds that there are here.
fn clients(proxy: &Proxy, seed: u64) -> Vec<Clients> {
    let has = |program: &str| Command::new(program).arg("--help").output().is_ok();
    let kinds = 1 + usize::from(has("python3")) + usize::from(has("go"));
    let (idle, busy) = (IDLE.div_ceil(kinds), BUSY.div_ceil(kinds));
    let quota = BYTES / (busy * kinds);
    let SocketAddr::V4(address) = proxy.address else { panic!("it listens at an IPv4 address") };
    let arguments = [
        address.ip().to_string(),
        address.port().to_string(),
        idle.to_string(),
        busy.to_string(),
        quota.to_string(),
        (seed % 1_000_000).to_string(),
    ];
    let mut all = vec![Clients::here(proxy.address, idle, busy, quota, seed)];
    if has("python3") {
        let mut command = Command::new("python3");
        all.push(Clients::spawn("OpenSSL", command.arg(source("load.py")).args(&arguments)));
    } else {
        println!("not there: python3, for OpenSSL");
    }
    if has("go") {
        let program = proxy.path("load");
        let mut build = Command::new("go");
        build.args(["build", "-o"]).arg(&program).arg(source("load.go"));
        assert!(build.env("GO111MODULE", "off").status().unwrap().success());
        all.push(Clients::spawn("Go", Command::new(program).args(&arguments)));
    } else {
        println!("not there: go");
    }
    for clients in &all {
        clients.kind.wait("the clients", |told| told.is_ready.then_some(()));
    }
    all
}

/// Clients' connections that are open in this process, by the client's port.
fn held_by(pid: u32, address: SocketAddr) -> BTreeSet<u16> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let own: BTreeSet<_> = links
        .filter_map(|link| Some(fs::read_link(link.path()).ok()?.to_str()?.to_owned()))
        .collect();
    let port = |text: &str| u16::from_str_radix(text.split_once(':').unwrap().1, 16).unwrap();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    // sl local_address rem_address st queues timer retrnsmt uid timeout inode (proc(5)).
    let sockets = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_own = own.contains(&format!("socket:[{}]", fields.get(9)?));
        let (local, remote) = (port(fields[1]), port(fields[2]));
        (is_own && local == address.port() && remote != 0).then_some(remote)
    });
    sockets.collect()
}

fn report(name: &str, mut all: Vec<Clients>, lost: &BTreeSet<u16>) {
    let (mut gone, mut broken, mut opened) = (0, BTreeMap::new(), 0);
    for clients in &mut all {
        let (bytes, of_it) = clients.end();
        println!("{name}: {}: {bytes} bytes each way, {} broken", clients.name, of_it.len());
        gone += bytes;
        opened += clients.opened().len();
        broken.extend(of_it);
    }
    println!(
        "{name}: {opened} sessions, {gone} bytes each way, {} broken, {} lost",
        broken.len(),
        lost.len()
    );
    let ports: BTreeSet<u16> = broken.keys().copied().collect();
    assert_eq!(ports, *lost, "broken, and lost with the process that had them: {broken:?}");
    assert!(gone >= BYTES / 2);
}

fn twenty_upgrades(name: &str, flags: &[&str]) {
    let seed = fastrand::u64(..);
    let proxy = Proxy::start(&echo(), flags);
    let all = clients(&proxy, seed);
    let began = Instant::now();
    for _ in 0..UPGRADES {
        proxy.upgrade();
        assert!(held_by(proxy.pid(), proxy.address).len() >= IDLE, "all sessions have moved");
    }
    println!("{name}: {UPGRADES} upgrades in {:.1?}", began.elapsed());
    report(name, all, &BTreeSet::new());
    assert_eq!(proxy.processes(), 1);
    let moved = proxy.log.lines().into_iter().filter(|line| line.contains("stood still"));
    moved.for_each(|line| println!("{name}: {line}"));
    assert!(proxy.quit().success());
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_sessions_move_twenty_times_at_once() {
    twenty_upgrades("probation 0", &["--probation", "0"]);
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_sessions_move_twenty_times_after_the_usual_probation() {
    twenty_upgrades("default", &[]);
}

#[test]
#[ignore = "takes minutes"]
fn with_every_third_successor_killed_only_what_it_had_acknowledged_breaks() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let proxy = Proxy::start(&echo(), &["--probation", "0", "--takeover-timeout", "60"]);
    let all = clients(&proxy, seed);
    let mut lost = BTreeSet::new();
    let mut deaths = Vec::new();
    for upgrade in 0..UPGRADES {
        if upgrade % 3 != 2 {
            proxy.upgrade();
            continue;
        }
        let (old, from) = (proxy.pid(), proxy.log.lines().len());
        let before = held_by(old, proxy.address);
        proxy.signal(Signal::SIGHUP);
        let mut new = None;
        until("the successor", || {
            let children = fs::read_to_string(format!("/proc/{old}/task/{old}/children"));
            new = children.ok().and_then(|it| it.split_whitespace().next()?.parse::<u32>().ok());
            new.is_some()
        });
        let new = Pid::from_raw(new.unwrap() as i32);
        // Anywhere: in its set-up, at the commit, or among the sessions.
        if dice.bool() {
            proxy.log.wait_from(from, "successor ready");
            thread::sleep(Duration::from_micros(dice.u64(..20_000)));
        } else {
            thread::sleep(Duration::from_micros(dice.u64(..60_000)));
        }
        // It stands still, and if it has not taken everything by then, the old process waits for it.
        let _ = kill(new, Signal::SIGSTOP);
        thread::sleep(Duration::from_millis(100));
        if !is_alive(old) {
            kill(new, Signal::SIGCONT).unwrap();
            until("the new process", || proxy.pid() == new.as_raw() as u32);
            continue;
        }
        let _ = kill(new, Signal::SIGKILL);
        // The old process reads what the dead one had acknowledged, and goes on.
        proxy.log.wait_from(from, "failed in");
        until("the pid file", || proxy.pid() == old);
        let left = held_by(old, proxy.address);
        let gone: BTreeSet<_> = before.difference(&left).copied().collect();
        deaths.push(gone.len());
        lost.extend(gone);
    }
    println!("lost with each of {} killed successors: {deaths:?}", deaths.len());
    assert!(!deaths.is_empty());
    report("killed", all, &lost);
}
