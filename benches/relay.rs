//! What a relayed byte costs: processor time of the proxy for a round trip, for a short connection
//! and for bulk, and its memory for an idle session, beside HAProxy and nginx.
//!
//!     cargo bench --bench relay
//!
//! All proxies are there all the time, each with upstreams of its own, and get the same load in turn,
//! A B C A B C; those that have no load sleep. Each has one thread. Proxies that are not installed
//! are left out. HAProxy is there twice, as it comes and with the options by which it does what ours
//! does unasked. The processor time is the proxy's own, as the kernel accounts it. All of that is
//! done several times with processes that are started anew. The ratio is taken round by round, to
//! each of the others, and the middle one of the better of them is printed.
//!
//! How late an answer is has a bench of its own, `latency`: a saving of processor time must not be paid
//! with it.
//!
//! It is meant for the kernel's own congestion control, cubic: bbr has a timer for each large
//! segment, also on loopback, and bulk costs what those cost.

mod common;

#[path = "calm/bare.rs"]
mod bare;
#[path = "relay/bulk.rs"]
mod bulk;
#[path = "relay/calls.rs"]
mod calls;
#[path = "calm/load.rs"]
mod load;
#[path = "relay/proxies.rs"]
mod proxies;
#[path = "calm/trace.rs"]
mod trace;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bulk::Bulk;
use common::failed;
use common::figures::{least, median};
use common::flags::{self, Flag};
use common::process::{self, Started};
use common::processors;
use load::{Kind, Load, MESSAGE_BYTES, Until};
use proxies::{Proxy, Rank};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const GOAL: f64 = 0.9;
/// Memory first, before a load has made it grow; then some connections, and the same of many.
const ROWS: [&str; 8] = [
    "idle session, bytes",
    "32 B, some, µs",
    "16 KiB, some, µs",
    "short, some, µs",
    "32 B, many, µs",
    "16 KiB, many, µs",
    "short, many, µs",
    "bulk, CPU ms per GiB",
];
/// This program is one of the upstreams if this is its first argument.
const SERVE_ECHO: &str = "serve-echo";
const SERVE_BULK: &str = "serve-bulk";
/// It is the bare relay, with a port and an upstream, and again a port and an upstream, behind it.
const SERVE_CALLS: &str = "serve-calls";
const LARGE_MESSAGE_BYTES: usize = 16 * 1024;
/// How long a proxy has after a round to close what is closed and go to sleep.
const AFTER_ROUND: Duration = Duration::from_millis(30);

struct Settings {
    rounds: u64,
    time: Duration,
    /// Some, and many.
    connections: [usize; 2],
    sessions: usize,
    bulk: usize,
    /// The only row that is measured, if not all are.
    row: Option<usize>,
}

/// A line of the table: of each start, of each of its rounds, of each proxy.
struct Row {
    name: &'static str,
    starts: Vec<Vec<Vec<f64>>>,
}

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some(SERVE_ECHO) => bare::serve().map_err(failed("serve")),
        Some(SERVE_BULK) => bulk::serve().map_err(failed("serve")),
        Some(SERVE_CALLS) => serve_calls(),
        Some(_) | None => run(),
    };
    flags::report("relay", result)
}

fn serve_calls() -> Result<(), String> {
    let mut arguments = std::env::args().skip(2);
    let mut route = || -> Option<(u16, SocketAddr)> {
        Some((arguments.next()?.parse().ok()?, arguments.next()?.parse().ok()?))
    };
    let (Some(echo), Some(bulk)) = (route(), route()) else {
        return Err("expected a port and an upstream, twice".into());
    };
    calls::serve([echo, bulk]).map_err(failed("serve"))
}

fn run() -> Result<(), String> {
    let (mut starts, mut rounds, mut round_ms, mut row) = (5, 5, 300, 0);
    let (mut some, mut many, mut sessions, mut bulk, mut traced) = (64, 1000, 2000, 1, 4000);
    let about = "processor time and memory of a TCP proxy, ours beside HAProxy and nginx";
    let mut known = [
        Flag { name: "starts", value: &mut starts, help: "how often all are started anew" },
        Flag { name: "rounds", value: &mut rounds, help: "rounds of each kind, each time" },
        Flag { name: "round-ms", value: &mut round_ms, help: "how long a round takes" },
        Flag { name: "row", value: &mut row, help: "only that row of the table; 0: all" },
        Flag { name: "some", value: &mut some, help: "connections at a time, and" },
        Flag { name: "many", value: &mut many, help: "in the rows of many" },
        Flag { name: "sessions", value: &mut sessions, help: "idle, for the memory" },
        Flag { name: "bulk", value: &mut bulk, help: "bulk transfers at a time" },
        Flag { name: "traced", value: &mut traced, help: "how many under strace; 0: no strace" },
    ];
    if !flags::parse(about, &mut known)? {
        return Ok(());
    }
    let settings = Settings {
        rounds,
        time: Duration::from_millis(round_ms),
        connections: [some.max(1) as usize, many.max(1) as usize],
        sessions: sessions.max(1) as usize,
        bulk: bulk.max(1) as usize,
        row: (row as usize).checked_sub(1),
    };
    if settings.row.is_some_and(|row| row >= ROWS.len()) {
        return Err(format!("--row {row}: there are {}", ROWS.len()));
    }
    raise_limit();
    let place = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
    let mut proxies = proxies::start(place.path())?;
    // Before this process has only one of them.
    let processors = processors::two();
    let mut pinned = pin(processors, &proxies);
    let mut rows = ROWS.map(|name| Row { name, starts: Vec::new() });
    for start in 0..starts.max(1) as usize {
        if start > 0 {
            drop(proxies);
            proxies = proxies::start(place.path())?;
            pinned = pin(processors, &proxies);
        }
        for (row, rounds) in rows.iter_mut().zip(measure(&proxies, &settings, start)?) {
            row.starts.push(rounds);
        }
    }
    let names: Vec<_> = proxies.iter().map(|proxy| proxy.name).collect();
    println!(
        "relay: {}; {starts} starts of {rounds} rounds of {round_ms} ms; connections: some are \
         {some}, many {many}; {}; congestion control: {}",
        names.join(", "),
        if pinned { "proxies on one processor, the rest on another" } else { "not pinned" },
        congestion_control(),
    );
    println!();
    let heads = names.iter().map(ToString::to_string);
    println!("{}", line("medians", heads, "ratio  to all (each start's ratio)"));
    let ranks: Vec<_> = proxies.iter().map(|proxy| proxy.rank).collect();
    for (index, row) in rows.iter().enumerate() {
        if settings.wants(index) {
            row.print(&ranks);
        }
    }
    println!(
        "goal: a ratio of at most {GOAL}; the first is to the better one of those that do the same, \
         the second to the better one of all"
    );
    if traced > 0 {
        for (kind, name) in [(Kind::RoundTrip, "round trip"), (Kind::ShortConnection, "connection")]
        {
            if let Err(error) = trace_calls(kind, name, &proxies, traced, place.path()) {
                println!("\nsystem calls per {name}: not counted: {error}");
            }
        }
    }
    Ok(())
}

/// What each row's rounds have cost, beginning with another of the proxies at each start.
fn measure(
    proxies: &[Proxy],
    settings: &Settings,
    start: usize,
) -> Result<[Vec<Vec<f64>>; ROWS.len()], String> {
    let [some, many] = settings.connections;
    let load = |kind, connections, bytes| {
        move |proxy: &Proxy| Load::new(kind, proxy.echo, connections, bytes)
    };
    let bulk = |proxy: &Proxy| Bulk::new(proxy.bulk, settings.bulk);
    let (trip, short) = (Kind::RoundTrip, Kind::ShortConnection);
    let mut rows = [const { Vec::new() }; ROWS.len()];
    for (index, row) in rows.iter_mut().enumerate() {
        if !settings.wants(index) {
            continue;
        }
        let (kind, connections, bytes) = match index {
            0 => {
                *row = vec![memory(proxies, settings.sessions)?];
                continue;
            }
            1 => (trip, some, MESSAGE_BYTES),
            2 => (trip, some, LARGE_MESSAGE_BYTES),
            3 => (short, some, MESSAGE_BYTES),
            4 => (trip, many, MESSAGE_BYTES),
            5 => (trip, many, LARGE_MESSAGE_BYTES),
            6 => (short, many, MESSAGE_BYTES),
            _ => {
                *row = compare(proxies, settings, start, bulk, cost_of_bulk)?;
                continue;
            }
        };
        *row = compare(proxies, settings, start, load(kind, connections, bytes), cost)?;
    }
    Ok(rows)
}

/// Prints the system calls of each proxy for one round trip on one connection, or for one short
/// connection at a time: none of them can be saved by doing several at once.
fn trace_calls(
    kind: Kind,
    name: &str,
    proxies: &[Proxy],
    wanted: u64,
    directory: &Path,
) -> Result<(), String> {
    let mut counts = Vec::new();
    for proxy in proxies {
        let mut load = Load::new(kind, proxy.echo, 1, MESSAGE_BYTES)?;
        // What belongs to the connection does not count for the round trip.
        load.run(Until::Count(1))?;
        let (done, calls) = trace::count(proxy.process.pid, directory, || {
            let done = load.run(Until::Count(wanted))?;
            sleep(AFTER_ROUND);
            Ok(done)
        })?;
        counts.push((done, calls));
    }
    println!();
    let names = proxies.iter().map(|proxy| proxy.name.to_owned());
    println!("{}", line(&format!("system calls per {name}"), names, ""));
    let calls: BTreeSet<&String> = counts.iter().flat_map(|(_, calls)| calls.keys()).collect();
    let each = |calls: u64, done: u64| format!("{:.3}", calls as f64 / done as f64);
    for call in calls {
        let of = |(done, calls): &(u64, trace::Calls)| {
            each(calls.get(call).copied().unwrap_or(0), *done)
        };
        println!("{}", line(&format!("  {call}"), counts.iter().map(of), ""));
    }
    let all = counts.iter().map(|(done, calls)| each(calls.values().sum(), *done));
    println!("{}", line("  all", all, ""));
    Ok(())
}

/// An upstream of one proxy: a proxy's connections keep their ports for a minute (TIME_WAIT), which
/// another one with the same upstream could not use.
struct Upstream {
    process: Started,
    address: SocketAddr,
}

impl Upstream {
    fn start(role: &str) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(failed("find this program"))?;
        let child = Command::new(own).arg(role).stdin(Stdio::null()).spawn();
        let process = Started::new(&child.map_err(failed("start an upstream"))?);
        let address = process::listening(process.pid)?;
        Ok(Self { process, address })
    }

    /// The echo and the source of bulk.
    fn both() -> Result<[Self; 2], String> {
        Ok([Self::start(SERVE_ECHO)?, Self::start(SERVE_BULK)?])
    }
}

/// Puts the proxies on one processor and everything else on another. Answers whether that could be
/// done.
fn pin(processors: Option<[usize; 2]>, proxies: &[Proxy]) -> bool {
    let Some([rest, proxy]) = processors else { return false };
    let put = processors::put;
    put(None, rest)
        && proxies.iter().all(|each| {
            each.upstreams.iter().all(|upstream| put(Some(upstream.process.pid), rest))
                && put(Some(each.process.pid), proxy)
        })
}

/// Puts the same load on each of the proxies in turn, and answers what each of them spent in each
/// round.
fn compare<L>(
    proxies: &[Proxy],
    settings: &Settings,
    first: usize,
    load: impl Fn(&Proxy) -> Result<L, String>,
    cost: impl Fn(&Proxy, &mut L, Duration) -> Result<f64, String>,
) -> Result<Vec<Vec<f64>>, String> {
    let mut loads = proxies.iter().map(load).collect::<Result<Vec<_>, _>>()?;
    let mut round = |time| -> Result<Vec<f64>, String> {
        let mut spent = vec![f64::NAN; proxies.len()];
        for place in (0..proxies.len()).map(|place| (first + place) % proxies.len()) {
            let proxy = &proxies[place];
            let cost = cost(proxy, &mut loads[place], time);
            spent[place] = cost.map_err(|error| format!("{}: {error}", proxy.name))?;
        }
        Ok(spent)
    };
    // The first round makes the connections and warms all of them up.
    round(settings.time / 4)?;
    (0..settings.rounds).map(|_| round(settings.time)).collect()
}

impl Settings {
    fn wants(&self, row: usize) -> bool {
        self.row.is_none_or(|only| only == row)
    }
}

impl Row {
    /// Medians of all rounds, and the median ratio to the better one of the others that do the same,
    /// and of all others; then the first of these for each start, from the least to the most, because
    /// one process may be luckier with its memory than the next one of the same program.
    fn print(&self, ranks: &[Rank]) {
        let is_peer = |column: &usize, all: bool| match ranks[*column] {
            Rank::Same => true,
            Rank::Less => all,
            Rank::Calls => false,
        };
        let rounds: Vec<_> = self.starts.iter().flatten().collect();
        let columns = rounds.first().map_or(0, |round| round.len());
        let medians = (0..columns).map(|column| median(rounds.iter().map(|round| round[column])));
        let ratio = |rounds: &[&Vec<f64>], all: bool| {
            let to = |column: usize| median(rounds.iter().map(|round| round[0] / round[column]));
            (1..columns).filter(|column| is_peer(column, all)).map(to).fold(f64::NAN, f64::max)
        };
        let of_start = |rounds: &Vec<Vec<f64>>| ratio(&rounds.iter().collect::<Vec<_>>(), false);
        let mut each: Vec<_> = self.starts.iter().map(of_start).collect();
        each.sort_by(f64::total_cmp);
        let each: Vec<_> = each.iter().map(|ratio| format!("{ratio:.3}")).collect();
        let (same, all) = (ratio(&rounds, false), ratio(&rounds, true));
        let ratio = format!("{same:.3}  {all:.3}  ({})", each.join(" "));
        println!("{}", line(self.name, medians.map(|median| format!("{median:.2}")), &ratio));
        // What nothing else on the machine has disturbed.
        let least: Vec<_> =
            (0..columns).map(|column| least(rounds.iter().map(|round| round[column]))).collect();
        let better = |all: bool| {
            let others = (1..columns).filter(|column| is_peer(column, all));
            others.map(|column| least[column]).fold(f64::NAN, f64::min)
        };
        let ratio = format!("{:.3}  {:.3}", least[0] / better(false), least[0] / better(true));
        println!("{}", line("  least", least.iter().map(|least| format!("{least:.2}")), &ratio));
    }
}

fn line(name: &str, cells: impl Iterator<Item = String>, ratio: &str) -> String {
    let cells: String = cells.map(|cell| format!("{cell:>12}")).collect();
    format!("{name:<28}{cells}    {ratio}").trim_end().to_owned()
}

/// Processor time of the proxy while it has that load, in microseconds for each message.
fn cost(proxy: &Proxy, load: &mut Load, time: Duration) -> Result<f64, String> {
    let (spent, count) = spent(proxy, || load.run(Until::Time(Instant::now() + time)))?;
    Ok(spent.as_secs_f64() * 1e6 / count as f64)
}

/// In milliseconds for each GiB.
fn cost_of_bulk(proxy: &Proxy, bulk: &mut Bulk, time: Duration) -> Result<f64, String> {
    let (spent, bytes) = spent(proxy, || bulk.run(Instant::now() + time))?;
    Ok(spent.as_secs_f64() * 1e3 / bytes as f64 * f64::from(1 << 30))
}

fn spent(
    proxy: &Proxy,
    load: impl FnOnce() -> Result<u64, String>,
) -> Result<(Duration, u64), String> {
    let before = process::processor_time(proxy.process.pid)?;
    let count = load()?;
    sleep(AFTER_ROUND);
    Ok((process::processor_time(proxy.process.pid)?.saturating_sub(before), count))
}

/// User memory for each session that has echoed a message and is idle, in bytes: what RssAnon
/// (proc(5)) has grown by.
fn memory(proxies: &[Proxy], sessions: usize) -> Result<Vec<f64>, String> {
    let mut figures = Vec::new();
    for proxy in proxies {
        let before = process::anonymous_memory(proxy.process.pid)?;
        let mut clients = Vec::new();
        for _ in 0..sessions {
            let mut client = TcpStream::connect(proxy.echo).map_err(failed("connect"))?;
            let mut echo = [0; MESSAGE_BYTES];
            client.write_all(&echo).map_err(failed("send"))?;
            client.read_exact(&mut echo).map_err(failed("receive"))?;
            clients.push(client);
        }
        sleep(AFTER_ROUND);
        figures.push((process::anonymous_memory(proxy.process.pid)? - before) / sessions as f64);
    }
    Ok(figures)
}

/// What all the proxies' sockets have (tcp(7)), because none of them chooses.
fn congestion_control() -> String {
    let name = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    name.map_or_else(|error| error.to_string(), |name| name.trim().to_owned())
}

/// Every session is two descriptors here and in the proxies, which inherit the limit.
fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
