//! What becomes of long-lived clients when a proxy is told again and again to take its configuration
//! anew: ours, HAProxy and nginx, under the same load.
//!
//!     cargo bench --bench reload
//!
//! The clients send a message a second each and wait for its echo; beside them short connections come
//! at a constant rate. Once all clients are there before the first signal, and once they join in
//! groups while the signals come, as clients do. What is counted at the end, while all clients are
//! still there: reloads that were carried out, clients that broke, short connections that failed, and
//! the processes and the memory that are left. A client that breaks does not come back.
//!
//! HAProxy runs as its manual advises, as a master with one worker, which passes its listeners on;
//! nginx likewise. Ours is there without a probation, because signals within one become one upgrade,
//! and once more with the probation that it has unless it is told otherwise. Proxies that are not
//! installed are left out.

mod common;

#[path = "calm/bare.rs"]
mod bare;
#[path = "../examples/hups/connection.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod connection;
#[path = "../examples/hups/drops.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod drops;
#[path = "move/load.rs"]
#[allow(dead_code, reason = "the other bench looks at every echo")]
mod long;
#[path = "../examples/hups/payload.rs"]
mod payload;
#[path = "../examples/hups/protocol.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod protocol;
#[path = "reload/proxies.rs"]
#[allow(dead_code, reason = "the rows of latency use all of it")]
mod proxies;
#[path = "../examples/hups/schedule.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod schedule;
#[path = "rollback/load.rs"]
#[allow(dead_code, reason = "the other bench looks at every time")]
mod short;
#[path = "../examples/hups/target.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod target;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::failed;
use common::figures::{head, line};
use common::flags::{self, Flag};
use common::process::{self, Started};
use proxies::Kind;

/// This program is the upstream if this is its first argument.
const SERVE_ECHO: &str = "serve-echo";
/// Between two messages of a long-lived client.
const PACE: Duration = Duration::from_secs(1);
/// After the last signal, for whoever means to leave.
const SETTLE: Duration = Duration::from_secs(3);

struct Settings {
    hups: usize,
    interval: Duration,
    clients: usize,
    rate: u32,
}

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some(SERVE_ECHO) => bare::serve().map_err(failed("serve")),
        Some(_) | None => run(),
    };
    flags::report("reload", result)
}

fn run() -> Result<(), String> {
    let (mut hups, mut interval_ms, mut clients, mut rate) = (100, 250, 500, 500);
    let mut groups = 10;
    let about = "a proxy that takes its configuration anew: who is left, and who breaks";
    let mut known = [
        Flag { name: "hups", value: &mut hups, help: "signals" },
        Flag { name: "interval-ms", value: &mut interval_ms, help: "between two of them" },
        Flag { name: "clients", value: &mut clients, help: "long-lived ones" },
        Flag { name: "rate", value: &mut rate, help: "short connections a second" },
        Flag { name: "groups", value: &mut groups, help: "in which they join, the second time" },
    ];
    if !flags::parse(about, &mut known)? {
        return Ok(());
    }
    let settings = Settings {
        hups: hups as usize,
        interval: Duration::from_millis(interval_ms),
        clients: clients as usize,
        rate: u32::try_from(rate).map_err(|_| "--rate: too many")?,
    };
    process::adopt_orphans()?;
    let place = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
    let own = std::env::current_exe().map_err(failed("find this program"))?;
    let upstream = Command::new(own).arg(SERVE_ECHO).stdin(Stdio::null()).spawn();
    let upstream = Started::new(&upstream.map_err(failed("start the upstream"))?);
    let to = process::listening(upstream.pid)?;
    println!(
        "reload: {hups} signals {interval_ms} ms apart, {clients} long-lived clients, {rate} short \
         connections a second"
    );
    for groups in [1, groups.clamp(1, hups.max(1)) as usize] {
        let place = place.path().join(groups.to_string());
        std::fs::create_dir_all(&place).map_err(failed(place.display()))?;
        println!();
        let title = match groups {
            1 => "all there from the start".to_owned(),
            groups => format!("joining in {groups} groups"),
        };
        head(&title, ["carried out", "broken", "short ones", "failed", "processes", "memory, MiB"]);
        for kind in proxies::kinds() {
            measure(kind, &place, to, &settings, groups)?;
        }
    }
    Ok(())
}

/// One proxy, from its start to its end.
fn measure(
    kind: Kind,
    place: &Path,
    upstream: std::net::SocketAddr,
    settings: &Settings,
    groups: usize,
) -> Result<(), String> {
    let proxy = kind.start(place, upstream)?;
    let short = short::Load::start(proxy.address, settings.rate, 1)?;
    let mut long = Vec::new();
    for hup in 0..settings.hups {
        let joined = long.len() * settings.hups / groups;
        if long.len() < groups && joined <= hup {
            // What does not divide evenly comes with the last group.
            let last = long.len() + 1 == groups;
            let rest = if last { settings.clients % groups } else { 0 };
            let count = settings.clients / groups + rest;
            long.push(long::Load::start(proxy.address, 0, count, PACE)?);
        }
        proxy.reload()?;
        sleep(settings.interval);
    }
    sleep(SETTLE);
    let (reloads, left, memory) = (proxy.reloads()?, proxy.processes(), proxy.memory()?);
    let mut broken = 0;
    for load in long {
        broken += load.finish()?.broken.len();
    }
    let short = short.finish()?;
    let failed = short.iter().filter(|attempt| attempt.failure.is_some()).count();
    line(
        proxy.name,
        [
            reloads.to_string(),
            broken.to_string(),
            short.len().to_string(),
            failed.to_string(),
            left.len().to_string(),
            format!("{:.1}", memory / f64::from(1 << 20)),
        ],
    );
    Ok(())
}
