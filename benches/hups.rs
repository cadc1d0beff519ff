//! Every server and proxy that can be replaced while it serves, under the same storm, in turn: what
//! clients notice, and what is left.
//!
//!     benches/peers.sh
//!     cargo bench --bench hups -- [--quick] [--peers FOLDER] [--rounds N] [--only NAME,...] \
//!         [--loads NAME,...] [--keep FOLDER]
//!
//! The storm is the example `hups`. There are four loads: short connections, long-lived ones, both,
//! and short ones in a burst of upgrades; and two groups, echo servers and proxies before one echo
//! server, so that like is compared with like. A round has every peer once, one after the other. Ours
//! comes twice: what lies between its two rows is noise. Nothing fails on a figure. A peer that is
//! missing is a row that says how to get it.
//!
//! The peers are run as their manuals have it (`hups/peer.rs`). Two words on that: `activation` is
//! systemd's socket activation with a restart, but the service manager is a program of ours
//! (`peers/plain/src/bin/activate.rs`), which keeps the socket, sends TERM, waits for the end and
//! starts anew. And shellflip passes no sockets on by itself; its listener comes from that program, too.

mod common;

#[path = "calm/bare.rs"]
mod bare;
#[path = "hups/peer.rs"]
#[allow(dead_code, reason = "the faults use all of it")]
mod peer;
#[path = "hups/running.rs"]
mod running;
#[path = "hups/storm.rs"]
mod storm;
#[path = "hups/tables.rs"]
mod tables;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::flags::{self, Flag, Other};
use common::peers::free_port;
use common::process::{self, Started};
use common::{failed, programs, surroundings};
use peer::{Group, PEERS, Peer, Setup};
use running::Running;
use rustix::process::Pid;
use storm::{Load, Outcome, Times};

/// Between two looks at the server's processes.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// After the storm, for whoever has waited for the clients' end.
const SETTLE: Duration = Duration::from_millis(500);
/// This program is the upstream if this is its first argument.
const SERVE_ECHO: &str = "serve-echo";

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some(SERVE_ECHO) => bare::serve().map_err(failed("serve")),
        Some(_) | None => run(),
    };
    flags::report("hups", result)
}

fn run() -> Result<(), String> {
    let (mut rounds, mut quick) = (3, false);
    let (mut built, mut only, mut loads, mut keep) = (None, None, None, None);
    let about =
        "every peer under the same storm: who is dropped, how late answers are, who is left";
    let mut numbers =
        [Flag { name: "rounds", value: &mut rounds, help: "in each, every peer once" }];
    let mut others = [
        Other::Switch { name: "quick", value: &mut quick, help: "one short round" },
        Other::Text { name: "peers", value: &mut built, help: "where benches/peers.sh has built" },
        Other::Text {
            name: "only",
            value: &mut only,
            help: "names of peers, or groups, and commas",
        },
        Other::Text {
            name: "loads",
            value: &mut loads,
            help: "short, long, both, burst, and commas",
        },
        Other::Text { name: "keep", value: &mut keep, help: "a folder for the storm's reports" },
    ];
    if !flags::parse_with(about, &mut numbers, &mut others)? {
        return Ok(());
    }
    let times = if quick { Times::QUICK } else { Times::FULL };
    let rounds = if quick { 1 } else { rounds };
    let keep = keep.map(PathBuf::from);
    if let Some(keep) = &keep {
        std::fs::create_dir_all(keep).map_err(failed(keep.display()))?;
    }
    let bench = Bench::new(built.map_or_else(peer::default_folder, PathBuf::from), keep, times)?;
    let peers = chosen(only.as_deref())?;
    println!("hups: {rounds} rounds; {}", times.words());
    for group in Group::ALL {
        let peers: Vec<Peer> = peers.iter().filter(|peer| peer.group == group).copied().collect();
        if peers.is_empty() {
            continue;
        }
        for load in Load::ALL {
            let named = |loads: &String| loads.split(',').any(|name| name == load.name());
            if !loads.as_ref().is_none_or(named) {
                continue;
            }
            bench.measure(group, &peers, load, rounds)?;
        }
    }
    tables::legend();
    Ok(())
}

/// Those that `--only` names; all of them without it.
fn chosen(only: Option<&str>) -> Result<Vec<Peer>, String> {
    let Some(only) = only else { return Ok(PEERS.to_vec()) };
    let mut chosen = Vec::new();
    for name in only.split(',') {
        let named = |peer: &&Peer| peer.name == name || peer.group.name() == name;
        let found: Vec<Peer> = PEERS.iter().filter(named).copied().collect();
        if found.is_empty() {
            return Err(format!("--only: {name:?} is neither a peer nor a group"));
        }
        chosen.extend(found);
    }
    Ok(chosen)
}

struct Bench {
    place: tempfile::TempDir,
    built: PathBuf,
    keep: Option<PathBuf>,
    times: Times,
    storm: PathBuf,
    _upstream: Started,
    upstream: std::net::SocketAddr,
}

impl Bench {
    fn new(built: PathBuf, keep: Option<PathBuf>, times: Times) -> Result<Self, String> {
        process::adopt_orphans()?;
        let place = surroundings::directory()?;
        let storm = programs::example("hups")?;
        let own = std::env::current_exe().map_err(failed("find this program"))?;
        let upstream = Command::new(own).arg(SERVE_ECHO).stdin(Stdio::null()).spawn();
        let started = Started::new(&upstream.map_err(failed("start the upstream"))?);
        let upstream = process::listening(started.pid)?;
        Ok(Self { place, built, keep, times, storm, _upstream: started, upstream })
    }

    /// One load, every peer, round after round; and its tables.
    fn measure(&self, group: Group, peers: &[Peer], load: Load, rounds: u64) -> Result<(), String> {
        let mut found = Vec::new();
        for peer in peers {
            found.push((*peer, peer.find(&self.built)?, Vec::new()));
        }
        for round in 1..=rounds {
            for (peer, program, outcomes) in &mut found {
                if let Ok(program) = program {
                    outcomes.push(self.storm(*peer, program, load, round)?);
                }
            }
        }
        let rows = found.into_iter().map(|(peer, program, outcomes)| match program {
            Ok(_) => tables::Row { name: peer.name, outcomes: Ok(outcomes) },
            Err(how) => tables::Row { name: peer.name, outcomes: Err(how) },
        });
        tables::print(group, load, &rows.collect::<Vec<_>>());
        Ok(())
    }

    /// One peer, from its start to its end.
    fn storm(&self, peer: Peer, program: &Path, load: Load, round: u64) -> Result<Outcome, String> {
        let name = format!("{}-{}-{}-{round}", peer.group.name(), load.name(), peer.name)
            .replace(' ', "-");
        let setup = Setup {
            place: self.place.path().join(&name),
            program: program.to_owned(),
            built: self.built.clone(),
            address: free_port()?,
            upstream: self.upstream,
        };
        let mut running = Running::start(peer, setup)?;
        let mut storm = Command::new(&self.storm);
        storm.arg(format!("--addr={}", running.setup.address));
        storm.arg(format!("--name={}", peer.name)).arg(format!("--seed={round}"));
        storm.args(running.upgrade_flags()?).args(load.flags()).args(self.times.flags(load));
        storm.arg("--json").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut storm = storm.spawn().map_err(failed("run the storm"))?;
        running.beside(Pid::from_child(&storm));
        let mut most = 0;
        // Its report is shorter than what a pipe takes.
        while storm.try_wait().map_err(failed("wait for the storm"))?.is_none() {
            most = most.max(running.living());
            sleep(LOOK_PAUSE);
        }
        let output = storm.wait_with_output().map_err(failed("read the storm's report"))?;
        sleep(SETTLE);
        if let Some(keep) = &self.keep {
            let file = keep.join(name).with_extension("json");
            std::fs::write(&file, &output.stdout).map_err(failed(file.display()))?;
        }
        let outcome = Outcome::read(&output, running.logged_upgrades()?, most, running.living());
        outcome.map_err(failed(format_args!("{}, {}", peer.name, load.name())))
    }
}
