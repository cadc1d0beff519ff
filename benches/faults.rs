//! What clients see when an upgrade goes wrong, for every server that upgrades itself.
//!
//!     benches/peers.sh
//!     cargo bench --bench faults -- [--quick] [--peers FOLDER] [--rounds N] [--only NAME,...]
//!
//! There are 500 short connections a second and 50 long-lived clients, which do not come back once they
//! are broken. Then one of these happens (`faults/fault.rs`): the successor is killed before it is
//! ready, or some time after; it is stopped 50 ms after ready, for three seconds; HUP comes twice, a
//! millisecond apart; the program is a bad one. A server is run from a file of its own, and that file is
//! another one for the time of the fault: that is how every peer meets the same fault. In the end the
//! file is good again, and HUP comes once more.
//!
//! Each fault meets a server of its own; a round has every peer once for each fault. Nothing fails on a
//! figure. Ours comes with the probation of a second that it has unless it is told otherwise, twice, so
//! that noise can be seen, and once without.

mod common;

#[path = "../examples/hups/connection.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod connection;
#[path = "../examples/hups/drops.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod drops;
#[path = "faults/fault.rs"]
mod fault;
#[path = "move/load.rs"]
#[allow(dead_code, reason = "the other bench has idle sessions, too")]
mod long;
#[path = "../examples/hups/payload.rs"]
mod payload;
#[path = "hups/peer.rs"]
#[allow(dead_code, reason = "the storms use all of it")]
mod peer;
#[path = "../examples/hups/protocol.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod protocol;
#[path = "hups/running.rs"]
#[allow(dead_code, reason = "the storms use all of it")]
mod running;
#[path = "../examples/hups/schedule.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod schedule;
#[path = "rollback/load.rs"]
#[allow(dead_code, reason = "the other bench looks at the clients' addresses")]
mod short;
#[path = "../examples/hups/target.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod target;
#[path = "faults/trial.rs"]
mod trial;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use common::failed;
use common::figures::median;
use common::flags::{self, Flag, Other};
use common::peers::free_port;
use common::process;
use common::surroundings;
use fault::{Fault, Times};
use peer::{PEERS, Peer, Setup, Upgrade};
use trial::{Later, Outcome};

const OURS: [Peer; 3] = [
    Peer::ours("ours", peer::with_probation),
    Peer::ours("ours again", peer::with_probation),
    Peer::ours("  probation 0", peer::ours),
];

fn main() -> ExitCode {
    flags::report("faults", run())
}

fn run() -> Result<(), String> {
    let (mut rounds, mut quick, mut built, mut only) = (2, false, None, None);
    let about =
        "an upgrade that goes wrong: who is dropped, who serves, and whether the next one goes";
    let mut numbers =
        [Flag { name: "rounds", value: &mut rounds, help: "in each, every peer once" }];
    let mut others = [
        Other::Switch { name: "quick", value: &mut quick, help: "one short round" },
        Other::Text { name: "peers", value: &mut built, help: "where benches/peers.sh has built" },
        Other::Text { name: "only", value: &mut only, help: "names of peers, and commas" },
    ];
    if !flags::parse_with(about, &mut numbers, &mut others)? {
        return Ok(());
    }
    let times = if quick { Times::QUICK } else { Times::FULL };
    let rounds = if quick { 1 } else { rounds };
    let built: PathBuf = built.map_or_else(peer::default_folder, PathBuf::from);
    process::adopt_orphans()?;
    let place = surroundings::directory()?;
    println!(
        "faults: {rounds} rounds; {} short connections a second, {} long-lived clients",
        trial::SHORT_RATE,
        trial::LONG_CLIENTS
    );
    let itself = |peer: &&Peer| matches!(peer.upgrade, Upgrade::Itself) && peer.is_peer();
    let mut peers: Vec<Peer> = OURS.to_vec();
    peers.extend(PEERS.iter().filter(itself));
    if let Some(only) = only {
        peers.retain(|peer| only.split(',').any(|name| name == peer.name.trim()));
    }
    let mut found = Vec::new();
    for peer in peers {
        found.push((peer, peer.find(&built)?));
    }
    for fault in Fault::ALL {
        let mut outcomes: Vec<Vec<Outcome>> = found.iter().map(|_| Vec::new()).collect();
        for round in 1..=rounds {
            for (number, (peer, program)) in found.iter().enumerate() {
                let Ok(program) = program else { continue };
                let folder = format!("{}-{number}-{round}", fault.name()).replace(' ', "-");
                let setup = Setup {
                    place: place.path().join(folder),
                    program: program.clone(),
                    built: built.clone(),
                    address: free_port()?,
                    upstream: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                };
                let outcome = trial::run(*peer, setup, fault, times, round);
                let what = format!("{}, {}", peer.name, fault.name());
                outcomes[number].push(outcome.map_err(failed(what))?);
            }
        }
        print(fault, &found, &outcomes);
    }
    legend();
    Ok(())
}

fn print(fault: Fault, found: &[(Peer, Result<PathBuf, String>)], outcomes: &[Vec<Outcome>]) {
    println!();
    line(
        fault.name(),
        ["dropped", "of", "broken", "answered, ms", "longest, ms", "later", "left", "zombies"]
            .map(String::from),
    );
    for ((peer, program), outcomes) in found.iter().zip(outcomes) {
        match program {
            Ok(_) => line(peer.name, cells(outcomes)),
            Err(how) => println!("{:<28} missing: {how}", peer.name),
        }
    }
}

fn cells(outcomes: &[Outcome]) -> [String; 8] {
    let sum = |figure: fn(&Outcome) -> usize| outcomes.iter().map(figure).sum::<usize>();
    let most = |figure: fn(&Outcome) -> usize| outcomes.iter().map(figure).max().unwrap_or(0);
    let count = |later| outcomes.iter().filter(|outcome| outcome.later == later).count();
    let answered = outcomes.iter().filter_map(|outcome| outcome.answered_ms);
    let never = outcomes.iter().filter(|outcome| outcome.answered_ms.is_none()).count();
    let answered = match never {
        0 => format!("{:.1}", median(answered)),
        _ => format!("never in {never}"),
    };
    let longest = outcomes.iter().map(|outcome| outcome.longest_ms).fold(0.0, f64::max);
    let later = match count(Later::AfterClients) {
        0 => count(Later::Done).to_string(),
        more => format!("{} + {more}", count(Later::Done)),
    };
    [
        sum(|outcome| outcome.dropped).to_string(),
        sum(|outcome| outcome.short).to_string(),
        sum(|outcome| outcome.broken).to_string(),
        answered,
        format!("{longest:.1}"),
        format!("{later} of {}", outcomes.len()),
        most(|outcome| outcome.left).to_string(),
        most(|outcome| outcome.zombies).to_string(),
    ]
}

fn legend() {
    println!(
        "\ndropped, of: short connections, sums of the rounds; broken: long-lived clients that are not \
         answered at the end\nanswered: from the fault until a client is answered that came after it, \
         median of the rounds\nlongest: that an answered short connection has taken, of all rounds\n\
         later: upgrades that were carried out afterwards, with a good program; + those that were only \
         carried out when all long-lived clients had left\nleft: processes half a second after all \
         clients have left, the most of the rounds; 1 is right\n\nnot applicable: pingora, \
         SO_REUSEPORT, socket activation and nginx's USR2, where whoever starts the second process also \
         looks after it; HAProxy and nginx's HUP, which take a configuration anew and not a program"
    );
}

/// A line of the table.
fn line(name: &str, cells: [String; 8]) {
    let cells: String = cells.iter().map(|cell| format!("{cell:>13}")).collect();
    println!("{}", format!("{name:<28}{cells}").trim_end());
}
