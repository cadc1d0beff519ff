//! One fault and one server, from its start to its end.

use std::collections::HashSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::failed;
use crate::common::figures::milliseconds;
use crate::common::process::has_ended;
use crate::fault::{Fault, ProgramFile, Times, UPGRADE_TIMEOUT, await_within, hup};
use crate::peer::{Peer, Setup};
use crate::running::Running;
use crate::{long, short};

pub(crate) const SHORT_RATE: u32 = 500;
pub(crate) const LONG_CLIENTS: usize = 50;
/// Between two messages of a long-lived client.
const PACE: Duration = Duration::from_millis(100);
/// A long-lived client that was not answered for so long at the end is broken.
const SILENT: Duration = Duration::from_secs(1);
/// After the clients have left, for whoever has waited for them.
const SETTLE: Duration = Duration::from_millis(500);

/// Whether a good upgrade is carried out afterwards.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Later {
    Done,
    /// Only when the long-lived clients had left.
    AfterClients,
    Refused,
}

pub(crate) struct Outcome {
    pub(crate) short: usize,
    pub(crate) dropped: usize,
    pub(crate) broken: usize,
    /// From the fault until a client was answered that had come after it.
    pub(crate) answered_ms: Option<f64>,
    pub(crate) longest_ms: f64,
    pub(crate) later: Later,
    pub(crate) left: usize,
    pub(crate) zombies: usize,
}

pub(crate) fn run(
    peer: Peer,
    mut setup: Setup,
    fault: Fault,
    times: Times,
    seed: u64,
) -> Result<Outcome, String> {
    std::fs::create_dir_all(&setup.place).map_err(failed(setup.place.display()))?;
    let file = ProgramFile::new(setup.place.join("server"), setup.program.clone())?;
    setup.program.clone_from(&file.path);
    let server = Running::start(peer, setup)?;
    let address = server.setup.address;
    let short = short::Load::start(address, SHORT_RATE, seed)?;
    let long = long::Load::start(address, 0, LONG_CLIENTS, PACE)?;
    sleep(times.calm);
    let struck = fault.strike(&server, &file, times)?;
    sleep(times.watched);
    let mut later = Later::Done;
    let is_done = upgrades(&server);
    let broken = silent(long)?;
    if !is_done {
        sleep(SETTLE);
        later = if upgrades(&server) { Later::AfterClients } else { Later::Refused };
    }
    let attempts = short.finish()?;
    sleep(SETTLE);
    let (zombies, left): (Vec<_>, Vec<_>) =
        server.processes().into_iter().partition(|pid| has_ended(*pid));
    let answered = || attempts.iter().filter(|attempt| attempt.failure.is_none());
    let after = answered().filter(|attempt| attempt.started > struck);
    let times = answered().map(|attempt| milliseconds(&(attempt.ended - attempt.started)));
    Ok(Outcome {
        short: attempts.len(),
        dropped: attempts.len() - answered().count(),
        broken,
        answered_ms: after
            .map(|attempt| milliseconds(&(attempt.ended - struck)))
            .min_by(f64::total_cmp),
        longest_ms: times.fold(0.0, f64::max),
        later,
        left: left.len(),
        zombies: zombies.len(),
    })
}

/// Asks for an upgrade, and answers whether it is carried out.
fn upgrades(server: &Running) -> bool {
    let Some(old) = server.named().filter(|pid| !has_ended(*pid)) else { return false };
    let is_new = || server.named().filter(|pid| *pid != old && !has_ended(*pid));
    hup(old).is_ok() && await_within(UPGRADE_TIMEOUT, is_new).is_some()
}

/// How many long-lived clients are not answered any more. All of them leave.
fn silent(load: long::Load) -> Result<usize, String> {
    let heard = Instant::now();
    // Whoever was asked before it has its answer by now.
    sleep(SILENT);
    let outcome = load.finish()?;
    let recent = outcome.pings.iter().filter(|ping| ping.sent + ping.took > heard);
    let answered: HashSet<usize> = recent.map(|ping| ping.session).collect();
    Ok(LONG_CLIENTS - answered.len())
}
