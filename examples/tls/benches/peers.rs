//! TLS ended by ours, HAProxy and nginx, each with one thread, the same certificate and the same cipher.
//!
//!     cargo bench --bench peers
//!
//! Processor time of the proxy alone, by the kernel's count, for handshakes, round trips and bulk; the memory of an idle
//! session; and what is left after a hundred reloads with clients that stay. Client and upstream are the same for all,
//! threads of this program. Rounds go A B C A B C. Proxies that are not installed are left out.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a bench that cannot go on ends")]

#[path = "../../../benches/common/mod.rs"]
mod common;
#[path = "../tests/harness/mod.rs"]
mod harness;
#[path = "peers/load.rs"]
mod load;
#[path = "peers/proxies.rs"]
mod proxies;

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use common::figures::{head, least, line, median};
use common::flags::{self, Flag};
use common::process;
use load::Load;
use proxies::{Kind, processor_time};

/// Longer than ours keeps a quiet session awake.
const QUIET: Duration = Duration::from_secs(13);

fn main() -> ExitCode {
    flags::report("peers", run())
}

fn run() -> Result<(), String> {
    let (mut rounds, mut seconds, mut reloads, mut sessions) = (5, 2, 100, 1000);
    let mut known = [
        Flag { name: "rounds", value: &mut rounds, help: "of each load" },
        Flag { name: "seconds", value: &mut seconds, help: "of each load in a round" },
        Flag { name: "reloads", value: &mut reloads, help: "with 500 clients" },
        Flag { name: "sessions", value: &mut sessions, help: "that are idle" },
    ];
    if !flags::parse("TLS ended by ours, HAProxy and nginx", &mut known)? {
        return Ok(());
    }
    process::adopt_orphans()?;
    let place = tempfile::tempdir().map_err(common::failed("make a temporary directory"))?;
    let (kinds, time) = (proxies::kinds(), Duration::from_secs(seconds));
    println!("processor time of the proxy, microseconds; {rounds} rounds of {seconds} s each");
    for load in Load::ALL {
        let mut figures = vec![Vec::new(); kinds.len()];
        for _ in 0..rounds {
            for (kind, figures) in kinds.iter().zip(&mut figures) {
                let proxy = kind.start(place.path(), load.upstream())?;
                let before = processor_time(&proxy)?;
                let count = load.run(proxy.address, time);
                let used = processor_time(&proxy)?.saturating_sub(before);
                figures.push(used.as_secs_f64() * 1e6 / count);
            }
        }
        println!();
        head(load.name(), ["median", "least", "to ours"]);
        let ours = median(figures[0].iter().copied());
        for (kind, figures) in kinds.iter().zip(figures) {
            let middle = median(figures.iter().copied());
            let cells = [
                format!("{middle:.1}"),
                format!("{:.1}", least(figures)),
                format!("{:.2}", middle / ours),
            ];
            line(kind.name, cells);
        }
    }
    println!();
    head(
        &format!("memory, bytes a session: {sessions} sessions"),
        ["at once", "after 13 s", "each more"],
    );
    for kind in &kinds {
        let proxy = kind.start(place.path(), Load::RoundTrips.upstream())?;
        let before = proxy.memory()?;
        let mut clients = load::idle(proxy.address, sessions as usize);
        sleep(Duration::from_millis(500));
        let at_once = proxy.memory()?;
        sleep(QUIET);
        let later = proxy.memory()?;
        // Those that come when the first ones have been quiet for long.
        for _ in 0..2 {
            clients.extend(load::idle(proxy.address, sessions as usize));
            sleep(QUIET);
        }
        let each = |memory: f64, count: u64| format!("{:.0}", memory / count as f64);
        let more = each(proxy.memory()? - later, 2 * sessions);
        line(kind.name, [each(at_once - before, sessions), each(later - before, sessions), more]);
        drop(clients);
    }
    println!();
    head(
        &format!("{reloads} reloads, 500 clients"),
        ["carried out", "broken", "processes", "memory, MiB"],
    );
    for kind in &kinds {
        reload(kind, place.path(), reloads as usize)?;
    }
    Ok(())
}

/// Clients join in ten groups while the proxy is told to take its configuration anew.
fn reload(kind: &Kind, place: &std::path::Path, reloads: usize) -> Result<(), String> {
    let proxy = kind.start(place, Load::RoundTrips.upstream())?;
    let mut groups = Vec::new();
    for reload in 0..reloads {
        if reload % reloads.div_ceil(10) == 0 {
            groups.push(load::Staying::start(proxy.address, 50));
        }
        proxy.reload()?;
        sleep(Duration::from_millis(250));
    }
    sleep(Duration::from_secs(3));
    let (carried_out, left) = (proxy.reloads()?, proxy.processes().len());
    let memory = proxy.memory()?;
    let broken: usize = groups.into_iter().map(load::Staying::finish).sum();
    let cells = [
        carried_out.to_string(),
        broken.to_string(),
        left.to_string(),
        format!("{:.1}", memory / f64::from(1 << 20)),
    ];
    line(kind.name, cells);
    Ok(())
}
