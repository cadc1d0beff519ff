//! How long a TLS session stands still while it moves.
//!
//!     cargo bench --bench stand
//!
//! Many sessions are idle, and some say a word every few milliseconds. The proxy is replaced again and again. What is
//! printed: round trips in calm, those that an upgrade has met, and what the proxy itself says of the move.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a bench that cannot go on ends")]

#[path = "../../../benches/common/mod.rs"]
mod common;
#[path = "../tests/harness/mod.rs"]
mod harness;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::figures::{head, line, median};
use common::flags::{self, Flag};
use harness::client::{Client, VERSIONS, config};
use harness::{Proxy, echo};

fn main() -> ExitCode {
    flags::report("stand", run())
}

fn run() -> Result<(), String> {
    let (mut hups, mut idle, mut busy, mut pace) = (20, 1000, 20, 5);
    let mut known = [
        Flag { name: "hups", value: &mut hups, help: "upgrades" },
        Flag { name: "idle", value: &mut idle, help: "sessions that say nothing" },
        Flag { name: "busy", value: &mut busy, help: "sessions that say a word now and then" },
        Flag { name: "pace-ms", value: &mut pace, help: "between two words of one" },
    ];
    if !flags::parse("how long a TLS session stands still while it moves", &mut known)? {
        return Ok(());
    }
    let proxy = Proxy::start(&echo(), &["--probation", "0"]);
    let address = proxy.address;
    let idlers = (0..idle as usize).map(|number| {
        let mut client = Client::connect(address, &config(VERSIONS[number % 2], &[]), "localhost");
        client.echo(b"x");
        client
    });
    let idlers: Vec<_> = idlers.collect();
    let over = Arc::new(AtomicBool::new(false));
    let workers = (0..busy as usize).map(|number| {
        let over = Arc::clone(&over);
        thread::spawn(move || {
            let version = VERSIONS[number % 2];
            let mut client = Client::connect(address, &config(version, &[]), "localhost");
            let mut trips = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let said = Instant::now();
                client.echo(b"how long does this take?");
                trips.push((said, said.elapsed()));
                thread::sleep(Duration::from_millis(pace));
            }
            trips
        })
    });
    let workers: Vec<_> = workers.collect();
    thread::sleep(Duration::from_secs(2));
    let mut moves = Vec::new();
    for _ in 0..hups {
        let from = proxy.log.lines().len();
        let old = proxy.pid();
        proxy.signal(nix::sys::signal::Signal::SIGHUP);
        proxy.log.wait_from(from, "successor ready");
        let begins = Instant::now();
        harness::until("the end of the old process", || !harness::is_alive(old));
        moves.push((begins, Instant::now()));
        thread::sleep(Duration::from_millis(200));
    }
    over.store(true, Ordering::Relaxed);
    let trips: Vec<_> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
    let meets = |(said, took): &(Instant, Duration)| {
        moves.iter().any(|(begins, ends)| said < ends && *said + *took > *begins)
    };
    let (met, calm): (Vec<_>, Vec<_>) = trips.into_iter().partition(meets);
    println!("{hups} upgrades, {idle} idle sessions and {busy} busy ones\n");
    head("round trips, microseconds", ["count", "p50", "p99", "worst"]);
    for (name, trips) in [("in calm", calm), ("while sessions move", met)] {
        let mut micros: Vec<_> = trips.iter().map(|(_, took)| took.as_micros()).collect();
        micros.sort_unstable();
        let at = |share: f64| {
            let place =
                ((micros.len() as f64 * share) as usize).min(micros.len().saturating_sub(1));
            micros.get(place).map_or("-".into(), u128::to_string)
        };
        line(name, [micros.len().to_string(), at(0.5), at(0.99), at(1.0)]);
    }
    let lines = proxy.log.lines();
    let of = |before: &str| {
        let values = lines.iter().filter_map(move |line| {
            let (_, rest) = line.split_once("stood still for")?;
            rest.split_once(before)?.1.split(' ').next()?.parse::<f64>().ok()
        });
        values.collect::<Vec<_>>()
    };
    println!();
    head("as the proxy says, ms", ["median", "worst"]);
    for (name, before) in [("a session stood still", "median "), ("the longest one", "at most ")] {
        let values = of(before);
        let worst = values.iter().copied().fold(0.0, f64::max);
        line(name, [format!("{:.3}", median(values)), format!("{worst:.3}")]);
    }
    drop(idlers);
    Ok(())
}
