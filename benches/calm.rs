//! What the library costs while nothing is replaced: processor time of the server for an echo
//! round trip and for a short connection, beside a bare mio loop that can do nothing else.
//!
//!     cargo bench --bench calm
//!
//! Both servers are there all the time and get the same load in turn; the one that has no load
//! sleeps. The processor time is the server's own, as the kernel accounts it, so that the client's
//! does not count. The ratio is taken pair by pair, and then the middle one.

mod common;

#[path = "calm/bare.rs"]
mod bare;
#[path = "calm/load.rs"]
mod load;
#[path = "calm/trace.rs"]
mod trace;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::failed;
use common::figures::{head, least, line, median};
use common::flags::{self, Flag};
use common::process::{self, Started};
use common::processors;
use common::programs;
use load::{Kind, Load, MESSAGE_BYTES, Until};

const GOAL: f64 = 1.05;
/// This program is the bare server if this is its first argument.
const SERVE_BARE: &str = "serve-bare";
/// How long a server has after a round to close what is closed and go to sleep.
const AFTER_ROUND: Duration = Duration::from_millis(20);
const KINDS: [(Kind, &str); 2] =
    [(Kind::RoundTrip, "round trip"), (Kind::ShortConnection, "short connection")];

fn main() -> ExitCode {
    let is_server = std::env::args_os().nth(1).is_some_and(|argument| argument == SERVE_BARE);
    let result = if is_server { bare::serve().map_err(failed("serve")) } else { run() };
    flags::report("calm", result)
}

fn run() -> Result<(), String> {
    let (mut rounds, mut round_ms, mut connections, mut traced) = (10, 700, 64, 4000);
    let about = "processor time of the server in calm, ours beside a bare mio loop";
    let mut known = [
        Flag { name: "rounds", value: &mut rounds, help: "pairs of rounds of each kind" },
        Flag { name: "round-ms", value: &mut round_ms, help: "how long a round takes" },
        Flag { name: "connections", value: &mut connections, help: "at a time" },
        Flag { name: "traced", value: &mut traced, help: "how many under strace; 0: no strace" },
    ];
    if !flags::parse(about, &mut known)? {
        return Ok(());
    }
    let connections = connections.max(1) as usize;
    let place = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
    let demo = programs::example("demo")?;
    let own = std::env::current_exe().map_err(failed("find this program"))?;
    let servers = [
        Server::start(Command::new(demo).args(["--listen=127.0.0.1:0", "--log-level=warn"]))?,
        Server::start(Command::new(own).arg(SERVE_BARE))?,
    ];
    let pinned = pin(&servers);
    println!(
        "calm: {rounds} pairs of rounds of {round_ms} ms, connections: {connections}, 32 bytes; {}",
        if pinned { "servers and client on one processor each" } else { "not pinned" },
    );
    println!();
    head("server's processor time, µs", ["ours", "", "bare", "", "ratio", ""]);
    head("", ["median", "least", "median", "least", "median", "of least"]);
    for (kind, name) in KINDS {
        let pairs = measure(kind, &servers, rounds, Duration::from_millis(round_ms), connections)?;
        print_times(name, &pairs);
    }
    println!("goal: a median ratio of at most {GOAL}");
    if traced > 0 {
        for (kind, name) in KINDS {
            if let Err(error) = trace(kind, name, &servers, traced, connections, place.path()) {
                println!("\nsystem calls per {name}: not counted: {error}");
            }
        }
    }
    Ok(())
}

/// A server that is ready.
struct Server {
    process: Started,
    address: SocketAddr,
}

impl Server {
    fn start(command: &mut Command) -> Result<Self, String> {
        let child = command.stdin(Stdio::null()).spawn().map_err(failed("start a server"))?;
        let process = Started::new(&child);
        let address = process::listening(process.pid)?;
        Ok(Self { process, address })
    }
}

/// Puts both servers on one processor and the client on another, so that no pair is torn apart by
/// a migration. Answers whether that could be done.
fn pin(servers: &[Server; 2]) -> bool {
    let Some([client, server]) = processors::two() else { return false };
    let put = processors::put;
    put(None, client) && servers.iter().all(|each| put(Some(each.process.pid), server))
}

/// Microseconds of processor time for one, ours and bare, round by round.
fn measure(
    kind: Kind,
    servers: &[Server; 2],
    rounds: u64,
    time: Duration,
    connections: usize,
) -> Result<Vec<[f64; 2]>, String> {
    let [ours, bare] = servers;
    let mut ours_load = Load::new(kind, ours.address, connections, MESSAGE_BYTES)?;
    let mut bare_load = Load::new(kind, bare.address, connections, MESSAGE_BYTES)?;
    let round = |server: &Server, load: &mut Load, time| -> Result<f64, String> {
        let before = process::processor_time(server.process.pid)?;
        let count = load.run(Until::Time(Instant::now() + time))?;
        sleep(AFTER_ROUND);
        let spent = process::processor_time(server.process.pid)?.saturating_sub(before);
        Ok(spent.as_secs_f64() * 1e6 / count as f64)
    };
    // The first round makes the connections and warms both up.
    round(ours, &mut ours_load, time / 4)?;
    round(bare, &mut bare_load, time / 4)?;
    let pair = |_| Ok([round(ours, &mut ours_load, time)?, round(bare, &mut bare_load, time)?]);
    (0..rounds).map(pair).collect()
}

fn print_times(name: &str, pairs: &[[f64; 2]]) {
    let ours = || pairs.iter().map(|pair| pair[0]);
    let bare = || pairs.iter().map(|pair| pair[1]);
    let ratio = median(pairs.iter().map(|pair| pair[0] / pair[1]));
    line(
        name,
        [
            median(ours()),
            least(ours()),
            median(bare()),
            least(bare()),
            ratio,
            least(ours()) / least(bare()),
        ]
        .map(|figure| format!("{figure:.3}")),
    );
}

/// Prints the system calls of both for one round trip or connection.
fn trace(
    kind: Kind,
    name: &str,
    servers: &[Server; 2],
    wanted: u64,
    connections: usize,
    directory: &Path,
) -> Result<(), String> {
    let count = |server: &Server| {
        trace::count(server.process.pid, directory, || {
            let mut load = Load::new(kind, server.address, connections, MESSAGE_BYTES)?;
            let done = load.run(Until::Count(wanted))?;
            sleep(AFTER_ROUND);
            Ok(done)
        })
    };
    let [(ours_done, ours), (bare_done, bare)] = [count(&servers[0])?, count(&servers[1])?];
    println!();
    head(&format!("system calls per {name}"), ["ours", "bare"]);
    let calls: BTreeSet<&String> = ours.keys().chain(bare.keys()).collect();
    let each = |calls: u64, done: u64| format!("{:.3}", calls as f64 / done as f64);
    for call in calls {
        let of = |calls: &trace::Calls| calls.get(call).copied().unwrap_or(0);
        line(&format!("  {call}"), [each(of(&ours), ours_done), each(of(&bare), bare_done)]);
    }
    line("  all", [each(ours.values().sum(), ours_done), each(bare.values().sum(), bare_done)]);
    Ok(())
}
