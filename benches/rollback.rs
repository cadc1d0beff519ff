//! What a successor's sudden end costs: it is killed at a random time after ready, again and again,
//! under short connections at a constant rate, and its predecessor takes over again.
//!
//!     cargo bench --bench rollback
//!
//! No connection may be refused, and none may fail but by the death of the process that had
//! accepted it. Nobody outside can see who has accepted a connection, but the predecessor does not
//! accept before it has logged that it runs again. So a connection may fail if it was started before
//! that line came and had not ended before the kill was sent, and if the log does not say that the
//! predecessor has read its message; whatever else fails makes this bench fail. Times are printed
//! and make nothing fail.

mod common;

#[path = "../examples/hups/connection.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod connection;
#[path = "../examples/hups/drops.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod drops;
#[path = "rollback/load.rs"]
mod load;
#[path = "rollback/log.rs"]
mod log;
#[path = "../examples/hups/payload.rs"]
mod payload;
#[path = "../examples/hups/protocol.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod protocol;
#[path = "../examples/hups/schedule.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod schedule;
#[path = "../examples/hups/target.rs"]
#[allow(dead_code, reason = "the storm uses all of it")]
mod target;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ChildStderr, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::failed;
use common::figures::{head, least, line, median, milliseconds};
use common::flags::{self, Flag};
use common::process::{self, Started};
use common::programs;
use drops::DropKind;
use load::{Attempt, Load};
use log::Log;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// The median of the time from the kill until somebody serves.
const GOAL_MS: f64 = 20.0;
/// A successor is killed at the latest so long after ready, while it is on probation.
const LATEST_MS: u64 = 900;
const PROBATION: &str = "--probation=1";
/// What a server says first.
const LISTENING: &str = " listening on ";
/// Between a rollback and the next upgrade.
const CALM: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    flags::report("rollback", run())
}

fn run() -> Result<(), String> {
    let (mut kills, mut rate, mut seed) = (50, 1000, fastrand::u64(..));
    let about = "successors killed after ready: who is dropped, and how soon somebody serves";
    let mut known = [
        Flag { name: "kills", value: &mut kills, help: "how many" },
        Flag { name: "rate", value: &mut rate, help: "short connections a second" },
        Flag { name: "seed", value: &mut seed, help: "for the times of the kills" },
    ];
    if !flags::parse(about, &mut known)? {
        return Ok(());
    }
    println!("rollback: {kills} kills, {rate} short connections a second, seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    process::adopt_orphans()?;
    let place = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
    let pid_file = place.path().join("demo.pid");
    let (demo, stderr) = start(&programs::example("demo")?, &pid_file)?;
    let mut log = Log::of(stderr);
    log.wait_for(LISTENING)?;
    let address = process::listening(demo.pid)?;

    let load = Load::start(address, rate as u32, seed)?;
    let mut rollbacks = Vec::new();
    for _ in 0..kills {
        sleep(CALM);
        let after_ready = Duration::from_micros(random.u64(0..=LATEST_MS * 1000));
        rollbacks.push(roll_back(&demo, &mut log, after_ready)?);
    }
    sleep(CALM);
    let attempts = load.finish()?;
    if process::named_in(&pid_file) != Some(demo.pid) {
        return Err("the pid file does not name the process that serves".into());
    }
    print(&rollbacks, &attempts);
    judge(&rollbacks, &attempts, &mut log, demo.pid)
}

fn start(demo: &Path, pid_file: &Path) -> Result<(Started, ChildStderr), String> {
    let mut child = Command::new(demo)
        // A line for each message tells who has read it.
        .args(["--listen=127.0.0.1:0", "--log-level=info", PROBATION, "--pid-file"])
        .arg(pid_file)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("start the demo"))?;
    let demo = Started::new(&child);
    let stderr = child.stderr.take().ok_or("the demo has no standard error")?;
    process::await_some("the pid file", || Ok(process::named_in(pid_file)))?;
    Ok((demo, stderr))
}

/// A successor's end.
struct Rollback {
    killed: Instant,
    /// The predecessor's word that it runs again was here.
    running: Instant,
}

fn roll_back(demo: &Started, log: &mut Log, after_ready: Duration) -> Result<Rollback, String> {
    kill_process(demo.pid, Signal::HUP).map_err(failed("send HUP"))?;
    let successor = Successor::watch(log.wait_for(LISTENING)?.pid)?;
    let ready = log.wait_for("Upgrading -> Draining: successor ready.")?.at;
    sleep((ready + after_ready).saturating_duration_since(Instant::now()));
    let killed = Instant::now();
    successor.kill().map_err(failed("kill the successor"))?;
    let running = log.wait_for("Draining -> Running")?.at;
    Ok(Rollback { killed, running })
}

/// Killed when it is dropped, at the latest. Its number may be another process's as soon as its
/// predecessor has waited for it; its descriptor is not.
struct Successor {
    process: OwnedFd,
}

impl Successor {
    fn watch(pid: Pid) -> Result<Self, String> {
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(failed("open the successor"))?;
        Ok(Self { process })
    }

    fn kill(&self) -> rustix::io::Result<()> {
        pidfd_send_signal(&self.process, Signal::KILL)
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        // Mostly it is dead.
        let _ = self.kill();
    }
}

fn print(rollbacks: &[Rollback], attempts: &[Attempt]) {
    println!();
    head("ms from the kill", ["median", "least", "most"]);
    let row = |name: &str, times: Vec<Duration>| {
        let times: Vec<f64> = times.iter().map(milliseconds).collect();
        let most = times.iter().copied().max_by(f64::total_cmp).unwrap_or(f64::NAN);
        let figures = [median(times.iter().copied()), least(times), most];
        line(name, figures.map(|figure| format!("{figure:.3}")));
    };
    let to_running = |rollback: &Rollback| rollback.running - rollback.killed;
    row("to its log: Running", rollbacks.iter().map(to_running).collect());
    let to_answer = |rollback: &Rollback| {
        let later = attempts.iter().filter(|attempt| attempt.started > rollback.killed);
        let answered = later.filter(|attempt| attempt.failure.is_none());
        answered.map(|attempt| attempt.ended - rollback.killed).min()
    };
    row("to an answer to a new client", rollbacks.iter().filter_map(to_answer).collect());
    println!("goal: a median of at most {GOAL_MS} ms");

    println!();
    let time = |attempt: &Attempt| attempt.ended - attempt.started;
    let answered: Vec<_> = attempts.iter().filter(|attempt| attempt.failure.is_none()).collect();
    head("ms of a connection", ["median", "least", "most"]);
    row("answered", answered.iter().map(|attempt| time(attempt)).collect());
    println!();
    println!("connections: {}, answered: {}", attempts.len(), answered.len());
    for kind in DropKind::ALL {
        println!("  {:<12}{:>6}", kind.name(), failures(attempts, kind));
    }
}

fn failures(attempts: &[Attempt], kind: DropKind) -> usize {
    attempts.iter().filter(|a| a.failure.is_some_and(|failure| failure.kind == kind)).count()
}

fn judge(
    rollbacks: &[Rollback],
    attempts: &[Attempt],
    log: &mut Log,
    predecessor: Pid,
) -> Result<(), String> {
    let refused = failures(attempts, DropKind::Refused);
    let (mut by_the_dead, mut by_nobody, mut others) = (0, 0, 0);
    for attempt in attempts {
        let Some(failure) = attempt.failure else { continue };
        let was_there = |rollback: &Rollback| {
            attempt.started < rollback.running && attempt.ended >= rollback.killed
        };
        // A port may be another connection's later on.
        let later = attempts.iter().filter(|later| later.started > attempt.started);
        let reused =
            later.filter(|later| later.client == attempt.client).map(|later| later.started);
        let until = reused.min().unwrap_or_else(Instant::now);
        let reader =
            attempt.client.and_then(|client| log.reader_of(client, attempt.started..until));
        if reader == Some(predecessor) || !rollbacks.iter().any(was_there) {
            others += 1;
            let by = reader.map_or("nobody".into(), |pid| pid.as_raw_pid().to_string());
            let since_kill = rollbacks.iter().rev().find(|r| r.killed <= attempt.started);
            let since_kill = since_kill.map(|rollback| attempt.started - rollback.killed);
            println!(
                "{} in {}: started {since_kill:?} after a kill, took {:?}, message read by {by}",
                failure.kind.name(),
                failure.stage,
                attempt.ended - attempt.started,
            );
        } else if reader.is_some() {
            by_the_dead += 1;
        } else {
            by_nobody += 1;
        }
    }
    println!();
    println!("failed by a kill: {}", by_the_dead + by_nobody);
    println!("  {by_the_dead} whose message the killed process had read");
    println!("  {by_nobody} whose message nobody had read");
    if refused > 0 || others > 0 {
        return Err(format!("{refused} refused, {others} failed that no kill explains"));
    }
    Ok(())
}
