//! How late answers are behind a proxy: the first one of a new connection, and those that follow, beside
//! HAProxy and nginx, and without a proxy.
//!
//!     cargo bench --bench latency
//!
//! Requests are due at fixed times, whether or not those before them were answered (an open loop), and
//! an answer's time runs from when its request was due. The servers write their answer once, or in two
//! pieces with Nagle's algorithm, which has the second one wait for an acknowledgement. Each proxy tells
//! the upstream who the client is, or does not; nothing else happens, or it is replaced again and again:
//! ours by HUP and without a probation, HAProxy by USR2, nginx by HUP. All get the same load in turn. In the
//! last rows hundreds of streams of bulk run through the same proxy; how much that was is printed, too.
//!
//! Times are printed and make nothing fail. A wrong answer does, and a client of ours that fails. How late
//! the bench itself was in sending is printed, too: a run in which that is much means little.

mod common;

#[path = "latency/answers.rs"]
mod answers;
#[path = "latency/arrivals.rs"]
mod arrivals;
#[path = "latency/bulk.rs"]
mod bulk;
#[path = "reload/proxies.rs"]
#[allow(dead_code, reason = "the other bench uses all of it")]
mod proxies;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use arrivals::{Exchange, Schedule, Times, histogram};
use bulk::Bulk;
use common::failed;
use common::figures::median;
use common::flags::{self, Flag};
use common::peers::free_port;
use common::process::{self, Started};
use common::processors;
use common::replaced::Replaced;
use hdrhistogram::Histogram;
use proxies::{Header, kinds};

/// This program is the upstream if this is its first argument, with two ports behind it.
const SERVE: &str = "serve-answers";

/// How long the bulk of the one before needs to end.
const AFTER_BULK: Duration = Duration::from_millis(300);

struct Settings {
    rounds: usize,
    time: Duration,
    first_rate: u64,
    trip_rate: u64,
    connections: usize,
    interval: Duration,
    /// Of bulk, in the last rows.
    streams: usize,
    /// There are no other rows.
    only_bulk: bool,
}

/// What one of them has shown in a row.
struct Cell {
    /// Of each round, in microseconds.
    p50: Vec<f64>,
    p99: Vec<f64>,
    /// Of all rounds.
    all: Histogram<u64>,
    failed: u64,
    /// Of each round, in bytes a second, where there was some.
    bulk: Vec<f64>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let result = match arguments.next().as_deref() {
        Some(SERVE) => {
            let mut port = || arguments.next().and_then(|port| port.parse().ok()).unwrap_or(0);
            answers::serve([port(), port()]).map_err(failed("serve"))
        }
        Some(bulk::SINK) => {
            let mut next = || arguments.next().unwrap_or_default();
            bulk::sink(&next(), &next())
        }
        Some(_) | None => run(),
    };
    flags::report("latency", result)
}

fn run() -> Result<(), String> {
    let (mut rounds, mut round_ms, mut first_rate, mut trip_rate) = (5, 1000, 500, 1000);
    let (mut connections, mut interval_ms, mut quick) = (64, 500, 0);
    let (mut streams, mut only_bulk) = (400, 0);
    let about = "how late answers are behind a proxy, ours beside HAProxy and nginx";
    let mut known = [
        Flag { name: "rounds", value: &mut rounds, help: "rounds of each row" },
        Flag { name: "round-ms", value: &mut round_ms, help: "how long a round takes" },
        Flag { name: "first-rate", value: &mut first_rate, help: "new connections a second" },
        Flag { name: "trip-rate", value: &mut trip_rate, help: "round trips a second, on" },
        Flag { name: "connections", value: &mut connections, help: "connections" },
        Flag { name: "interval-ms", value: &mut interval_ms, help: "from upgrade to upgrade" },
        Flag {
            name: "streams",
            value: &mut streams,
            help: "of bulk, in the rows beside it; 0: no such rows",
        },
        Flag { name: "only-bulk", value: &mut only_bulk, help: "1: only the rows beside bulk" },
        Flag {
            name: "quick",
            value: &mut quick,
            help: "1: one round of each, half a minute in all",
        },
    ];
    if !flags::parse(about, &mut known)? {
        return Ok(());
    }
    if quick > 0 {
        (rounds, round_ms) = (1, 600);
    }
    let settings = Settings {
        rounds: rounds.max(1) as usize,
        time: Duration::from_millis(round_ms),
        first_rate: first_rate.max(1),
        trip_rate: trip_rate.max(1),
        connections: connections.max(1) as usize,
        interval: Duration::from_millis(interval_ms.max(1)),
        streams: streams as usize,
        only_bulk: only_bulk > 0,
    };
    process::adopt_orphans()?;
    let place = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
    println!(
        "latency: {rounds} rounds of {round_ms} ms; first answers {first_rate} a second, round trips \
         {trip_rate} a second on {connections} connections; an upgrade every {interval_ms} ms"
    );
    println!(
        "in µs: p50 and p99, medians of the rounds, and p99.9 of all; ratio: ours to the better of the others"
    );
    let mut broken = Vec::new();
    let mut late = histogram();
    let headers = [Header::Nothing, Header::Proxy];
    for header in headers.into_iter().filter(|it| !settings.only_bulk || *it == Header::Nothing) {
        let place = place.path().join(if header == Header::Proxy { "header" } else { "plain" });
        std::fs::create_dir(&place).map_err(failed(place.display()))?;
        broken.extend(compare(&place, header, &settings, &mut late)?);
    }
    let late = |quantile| late.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "\nthis bench sent late by: p50 {:.0}, p99 {:.0}, p99.9 {:.0} µs",
        late(0.5),
        late(0.99),
        late(0.999)
    );
    if broken.is_empty() { Ok(()) } else { Err(broken.join("; ")) }
}

/// All rows of the proxies that say so much of the client. Answers what was broken of ours.
fn compare(
    place: &Path,
    header: Header,
    settings: &Settings,
    late: &mut Histogram<u64>,
) -> Result<Vec<String>, String> {
    let ports = [free_port()?, free_port()?];
    let processors = processors::two();
    pin(processors.map(|[rest, _]| rest));
    let mut upstream = Command::new(std::env::current_exe().map_err(failed("find this program"))?);
    upstream.arg(SERVE).args(ports.map(|at| at.port().to_string())).stdin(Stdio::null());
    let upstream = upstream.spawn().map_err(failed("start the upstream"))?;
    let _upstream = Started::new(&upstream);
    process::await_some("the upstream", || Ok(std::net::TcpStream::connect(ports[1]).ok()))?;

    let mut broken = Vec::new();
    for (at, writes) in ports.into_iter().zip(["once", "twice"]) {
        let place = place.join(writes);
        std::fs::create_dir(&place).map_err(failed(place.display()))?;
        // What a proxy starts stays on its processor.
        pin(processors.map(|[_, proxy]| proxy));
        let wanted = kinds().into_iter().filter(|kind| !kind.name.contains("probation"));
        let started = wanted.map(|kind| kind.with(header).start(&place, at));
        let proxies = started.collect::<Result<Vec<_>, _>>()?;
        pin(processors.map(|[rest, _]| rest));
        for (exchange, name, rate) in [
            (Exchange::FirstAnswer, "first answer", settings.first_rate),
            (
                Exchange::RoundTrip { connections: settings.connections },
                "round trip",
                settings.trip_rate,
            ),
        ] {
            let mut circumstances = vec![(None, 0), (Some(settings.interval), 0)];
            if header == Header::Nothing && writes == "once" && settings.streams > 0 {
                circumstances.push((None, settings.streams));
            }
            if settings.only_bulk {
                circumstances.retain(|(_, streams)| *streams > 0);
            }
            for (upgrades, streams) in circumstances {
                let schedule = Schedule { rate, time: settings.time, upgrades };
                let measured = (settings.rounds, streams);
                let cells = row(&proxies, at, exchange, schedule, measured, late)?;
                let told = if header == Header::Proxy { ", send-proxy" } else { "" };
                let when = match (upgrades, streams) {
                    (Some(_), _) => ", upgrades".to_owned(),
                    (None, 0) => String::new(),
                    (None, streams) => format!(", beside {streams} streams of bulk"),
                };
                let name = format!("{name}, written {writes}{told}{when}");
                print(&name, &proxies, &cells);
                if let Some(ours) = cells.first().filter(|ours| ours.failed > 0) {
                    broken.push(format!("{name}: {} clients of ours failed", ours.failed));
                }
            }
        }
    }
    Ok(broken)
}

/// Of each proxy, and at the end of the upstream by itself.
fn row(
    proxies: &[Replaced],
    upstream: SocketAddr,
    exchange: Exchange,
    schedule: Schedule,
    (rounds, streams): (usize, usize),
    late: &mut Histogram<u64>,
) -> Result<Vec<Cell>, String> {
    let new =
        || Cell { p50: Vec::new(), p99: Vec::new(), all: histogram(), failed: 0, bulk: Vec::new() };
    let mut cells: Vec<Cell> = (0..=proxies.len()).map(|_| new()).collect();
    for round in 0..rounds {
        // Each of them is the first as often as the others.
        for place in (0..cells.len()).map(|place| (place + round) % (proxies.len() + 1)) {
            let proxy = proxies.get(place);
            let address = proxy.map_or(upstream, |proxy| proxy.address);
            let upgrade = || proxy.map_or(Ok(()), Replaced::reload);
            let beside = (streams > 0).then(|| Bulk::start(address, streams)).transpose()?;
            let Times { answers, lateness, failed } =
                arrivals::run(address, exchange, schedule, upgrade)?;
            let cell = &mut cells[place];
            if let Some(mut bulk) = beside {
                cell.bulk.push(bulk.rate()?);
                drop(bulk);
                // Its connections end, and the next one finds the processors free.
                std::thread::sleep(AFTER_BULK);
            }
            cell.p50.push(answers.value_at_quantile(0.5) as f64 / 1000.0);
            cell.p99.push(answers.value_at_quantile(0.99) as f64 / 1000.0);
            cell.failed += failed;
            let added = cell.all.add(&answers).and_then(|()| late.add(&lateness));
            added.map_err(|error| format!("add up: {error}"))?;
        }
    }
    Ok(cells)
}

fn print(name: &str, proxies: &[Replaced], cells: &[Cell]) {
    println!("\n{name}");
    let of = |cell: &Cell| [median(cell.p50.iter().copied()), median(cell.p99.iter().copied())];
    let names = proxies.iter().map(|proxy| proxy.name).chain(["no proxy"]);
    for (name, cell) in names.zip(cells) {
        let [p50, p99] = of(cell);
        let p999 = cell.all.value_at_quantile(0.999) as f64 / 1000.0;
        let failed = match cell.failed {
            0 => String::new(),
            failed => format!("   {failed} failed"),
        };
        let bulk = match cell.bulk.is_empty() {
            true => String::new(),
            false => format!("{:>10.0} MB/s", median(cell.bulk.iter().copied()) / 1e6),
        };
        println!("  {name:<10}{p50:>10.0}{p99:>10.0}{p999:>10.0}{bulk}{failed}");
    }
    if let Some((ours, others)) = cells[..proxies.len()].split_first().filter(|it| !it.1.is_empty())
    {
        let ratio = |figure: usize| {
            let best = others.iter().map(|cell| of(cell)[figure]).fold(f64::INFINITY, f64::min);
            of(ours)[figure] / best
        };
        println!("  {:<10}{:>10.2}{:>10.2}", "ratio", ratio(0), ratio(1));
    }
}

/// Puts this process, and what it starts from here on, on that processor, if there are two.
fn pin(processor: Option<usize>) {
    let Some(processor) = processor else { return };
    // What is not possible makes the figures worse for all of them alike.
    let _ = processors::put(None, processor);
}
