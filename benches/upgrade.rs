//! How an upgrade grows with what a process has: listeners, sessions, and resident memory.
//!
//!     cargo bench --bench upgrade -- [--quick] [--rounds N]
//!
//! Each table is about one of the three. It has a server for each size, all of them alive at once; in
//! each round they are upgraded in turn, and an empty program is spawned, run and reaped after each
//! upgrade. The columns:
//!
//! - HUP to accepting: from sending HUP until the pid file names the successor, which renames it in the
//!   step in which it starts to accept. That is seen from outside, by looking at the file again and again.
//!   What a successor needs to fill its memory is subtracted: it is the program's own, and printed.
//! - nobody accepts: what the predecessor reports as `takeover`. It begins when the predecessor has read
//!   that the successor is ready, and stops accepting. It ends when the predecessor has read that the
//!   successor accepts, which that one does a moment earlier: the gap is this long at most. Clients that
//!   connect in it wait in the listener's queue.
//!   Below the table of memory it is there once more, by a clock that both processes read: from when the
//!   predecessor has stopped accepting until the successor accepts and its pid file says so.
//! - old process gone: from the pid file's change to the predecessor's end, by its pidfd (pidfd_open(2)).
//!   There is no probation, so that this is the time in which sessions move and memory is given back.
//!   It is 0 if the predecessor had ended by the time that the file was looked at; how far apart two
//!   looks were is printed below each table.
//! - longest turn: that of the predecessor's loop, by its own word, until the last session has moved.
//!
//! No session may break, or this bench fails. It does not fail on a time.

mod common;

#[path = "upgrade/ballast.rs"]
mod ballast;
#[path = "upgrade/clients.rs"]
mod clients;
#[path = "upgrade/server.rs"]
mod server;
#[path = "upgrade/table.rs"]
mod table;

use std::fmt::Write;
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clients::Clients;
use common::failed;
use common::figures::{median, milliseconds};
use common::flags::{self, Flag, Other};
use common::process;
use common::programs;
use common::surroundings;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use server::Server;
use table::Table;

const LISTENERS: [usize; 3] = [1, 100, 1000];
const SESSIONS: [usize; 4] = [0, 1000, 5000, 15_000];
const GIBIBYTES: [usize; 3] = [0, 1, 4];
const QUICK_ROUNDS: u64 = 5;
/// Before each upgrade and each empty program: the kernel still cleans up behind a large process that
/// has ended, which is not the next one's doing.
const PAUSE: Duration = Duration::from_millis(50);
/// What a server needs beside a descriptor for each session.
const OTHER_DESCRIPTORS: u64 = 1000;
/// What is left to everybody else.
const OTHER_MEMORY_MIB: u64 = 512;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [first, address, count] if first == clients::HOLD => clients::hold(address, count),
        [first, mib, pid_file] if first == ballast::SERVE => ballast::serve(mib, pid_file.into()),
        _ => run(),
    };
    flags::report("upgrade", result)
}

fn run() -> Result<(), String> {
    let (mut rounds, mut quick) = (20, false);
    let about = "an upgrade, by listeners, sessions and resident memory";
    let mut known = [Flag { name: "rounds", value: &mut rounds, help: "upgrades of each server" }];
    let mut others = [Other::Switch {
        name: "quick",
        value: &mut quick,
        help: "no more than five upgrades of each server",
    }];
    if !flags::parse_with(about, &mut known, &mut others)? {
        return Ok(());
    }
    let rounds = if quick { rounds.min(QUICK_ROUNDS) } else { rounds };
    // Without it the kernel may end every sleep 50 µs late (prctl(2)).
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1000));
    process::adopt_orphans()?;
    let descriptors = raise_limit();
    let place = surroundings::directory()?;
    let bench = Bench { empty: programs::empty(place.path())?, place: place.path(), rounds };
    println!("upgrade: {rounds} upgrades of each server; ms, median (least)");
    bench.listeners()?;
    bench.sessions(descriptors)?;
    bench.memory()
}

/// As many descriptors as may be, for this process and all that it starts: answers how many.
fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        Err(_) => current.unwrap_or(u64::MAX),
    }
}

struct Bench<'a> {
    place: &'a Path,
    empty: PathBuf,
    rounds: u64,
}

impl Bench<'_> {
    /// The proxy, with a route for each listener. They are Unix sockets without a path, so that no port
    /// can be somebody else's.
    fn listeners(&self) -> Result<(), String> {
        let proxy = programs::example("proxy")?;
        let mut servers = Vec::new();
        for count in LISTENERS {
            let mut routes = String::new();
            for number in 0..count {
                let own = std::process::id();
                // Nobody connects, and so nobody need listen there.
                let _ = writeln!(routes, "unix:@upgrade-{own}-{count}-{number} -> 127.0.0.1:1");
            }
            let path = self.place.join(format!("routes-{count}"));
            fs::write(&path, routes).map_err(failed(path.display()))?;
            let mut command = Command::new(&proxy);
            command.arg("--routes").arg(&path).args(["--log-level=info", "--probation=0"]);
            command.arg("--pid-file");
            servers.push(Server::start(command, self.place, &format!("listeners-{count}"), count)?);
        }
        self.upgrade(&mut servers)?;
        let growth = "each listener more, µs";
        Table { what: "listeners of the proxy", growth, factor: 1e3 }.print(&servers);
        Ok(())
    }

    /// The demo, with sessions that say nothing. They are held by a process of their own for each server:
    /// one process may not have descriptors enough for the clients of all.
    fn sessions(&self, descriptors: u64) -> Result<(), String> {
        let demo = programs::example("demo")?;
        let (mut servers, mut clients) = (Vec::new(), Vec::new());
        for count in SESSIONS {
            if count as u64 + OTHER_DESCRIPTORS > descriptors {
                println!("{count} sessions: left out, RLIMIT_NOFILE is {descriptors}");
                continue;
            }
            let mut command = Command::new(&demo);
            command.args(["--listen=127.0.0.1:0", "--log-level=info", "--probation=0"]);
            command.arg("--pid-file");
            let server = Server::start(command, self.place, &format!("sessions-{count}"), count)?;
            clients.push(Clients::start(process::listening(server.pid())?, count)?);
            servers.push(server);
        }
        self.upgrade(&mut servers)?;
        for clients in &mut clients {
            clients.verify()?;
        }
        let growth = "each session more, µs";
        Table { what: "sessions of the demo", growth, factor: 1e3 }.print(&servers);
        Ok(())
    }

    /// This program itself, with memory that each process of it fills before it is ready.
    fn memory(&self) -> Result<(), String> {
        let own = std::env::current_exe().map_err(failed("find this program"))?;
        let available = ballast::available_mib()?;
        let mut sizes = GIBIBYTES.to_vec();
        // All of them are there at once, and the largest is there twice while it is upgraded.
        let needed = |sizes: &[usize]| {
            let most = sizes.iter().max().copied().unwrap_or(0);
            ((sizes.iter().sum::<usize>() + most) as u64) << 10
        };
        while needed(&sizes) + OTHER_MEMORY_MIB > available {
            let Some(size) = sizes.pop() else { break };
            println!("{size} GiB: left out, {available} MiB of memory are available");
        }
        let mut servers = Vec::new();
        for gibibytes in sizes {
            let mut command = Command::new(&own);
            command.args([ballast::SERVE, &(gibibytes << 10).to_string()]);
            let name = format!("memory-{gibibytes}");
            servers.push(Server::start(command, self.place, &name, gibibytes)?);
        }
        self.upgrade(&mut servers)?;
        let growth = "each GiB more, ms";
        Table { what: "GiB resident", growth, factor: 1.0 }.print(&servers);
        let filled: Vec<String> = servers.iter().map(Server::filled).collect();
        println!("not counted: a successor of these fills its memory in {} ms", filled.join(", "));
        let huge = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        let all = servers.iter().flat_map(|server| &server.seen);
        let mut gaps: Vec<f64> = all.filter_map(|seen| seen.gap_by_clock).collect();
        gaps.sort_by(f64::total_cmp);
        if let [least, .., most] = gaps[..] {
            println!(
                "nobody accepts, by a clock that both processes read: median {:.3}, least {least:.3}, most \
                 {most:.3} of {}",
                median(gaps.iter().copied()),
                gaps.len()
            );
        }
        println!("transparent huge pages: {}", huge.as_deref().unwrap_or("unknown").trim());
        Ok(())
    }

    /// All of them in turn, round after round.
    fn upgrade(&self, servers: &mut [Server]) -> Result<(), String> {
        for _ in 0..self.rounds {
            for server in servers.iter_mut() {
                sleep(PAUSE);
                let mut seen = server.upgrade()?;
                sleep(PAUSE);
                seen.empty = milliseconds(&run_empty(&self.empty)?);
                server.seen.push(seen);
            }
        }
        Ok(())
    }
}

fn run_empty(empty: &Path) -> Result<Duration, String> {
    let began = Instant::now();
    let status = Command::new(empty).status().map_err(failed("run the empty program"))?;
    let took = began.elapsed();
    if status.success() { Ok(took) } else { Err("the empty program failed".into()) }
}
