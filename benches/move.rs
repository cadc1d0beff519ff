//! What it costs to move sessions: thousands of idle ones and some busy ones, through one upgrade
//! after another, of the echo server and then of the proxy.
//!
//!     cargo bench --bench move
//!
//! No session may break, and one process may be left each time: otherwise this bench fails. Every
//! session says something and hears it after the last upgrade, a sample of the idle ones after each.
//! Times are printed and make nothing fail. How long sessions stood still is the servers' own word;
//! how long the busy ones waited for an echo meanwhile is seen from outside.

mod common;

#[path = "move/load.rs"]
mod load;
#[path = "move/log.rs"]
mod log;

use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::failed;
use common::figures::{head, least, line, median, milliseconds};
use common::flags::{self, Flag};
use common::process::{self, Started};
use common::programs;
use load::{Load, Outcome};
use log::Log;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// The goals, for medians.
const GONE_MS: f64 = 100.0;
const STOOD_STILL_MS: f64 = 1.0;
const TURN_MS: f64 = 1.0;
/// Longer than an upgrade takes on a machine that is alive.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
/// Idle sessions that say something after each upgrade.
const SAMPLE: usize = 100;
/// Before and after the upgrades, for what a calm echo takes.
const CALM: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    flags::report("move", run())
}

fn run() -> Result<(), String> {
    let (mut idle, mut busy, mut pace, mut hups) = (10_000, 100, 10, 20);
    let (mut proxied, mut proxy_hups, mut probation) = (5000, 20, 1000);
    let about = "sessions that move: how long it takes, and how long each stands still";
    let mut known = [
        Flag { name: "idle", value: &mut idle, help: "sessions that say nothing" },
        Flag { name: "busy", value: &mut busy, help: "sessions that send and wait" },
        Flag { name: "pace-ms", value: &mut pace, help: "between two messages of a busy one" },
        Flag { name: "hups", value: &mut hups, help: "upgrades of the echo server" },
        Flag { name: "proxied", value: &mut proxied, help: "idle sessions through the proxy" },
        Flag { name: "proxy-hups", value: &mut proxy_hups, help: "upgrades of the proxy" },
        Flag { name: "probation-ms", value: &mut probation, help: "how long probation lasts" },
    ];
    if !flags::parse(about, &mut known)? {
        return Ok(());
    }
    let (pace, probation) = (Duration::from_millis(pace), Duration::from_millis(probation));
    process::adopt_orphans()?;
    raise_limit();
    let place = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
    let echo = programs::example("demo")?;
    let mut failures = Vec::new();
    if hups > 0 {
        println!("move: the demo, {idle} idle sessions, {busy} busy ones, {hups} upgrades");
        let mut command = Command::new(&echo);
        command.args(["--listen=127.0.0.1:0", "--log-level=info"]);
        let server = Server::start(command, place.path(), "demo", probation)?;
        let moved = server.measure(idle as usize, busy as usize, pace, hups)?;
        failures.extend(moved.print((idle + busy) as usize));
    }
    if proxy_hups > 0 {
        println!(
            "move: the proxy, {proxied} idle sessions, {busy} busy ones, {proxy_hups} upgrades"
        );
        let mut command = Command::new(&echo);
        command.args(["--listen=127.0.0.1:0", "--log-level=warn"]);
        let upstream = Server::start(command, place.path(), "echo", probation)?;
        let mut command = Command::new(programs::example("proxy")?);
        command.args(["--listen=127.0.0.1:0", "--to", &upstream.address.to_string()]);
        command.arg("--log-level=info");
        let server = Server::start(command, place.path(), "proxy", probation)?;
        let moved = server.measure(proxied as usize, busy as usize, pace, proxy_hups)?;
        failures.extend(moved.print((proxied + busy) as usize));
        drop(upstream);
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.join("\n")),
    }
}

/// As many descriptors as may be: there is one for each client.
fn raise_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // If that fails, so does a connection, in words.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// The server that is replaced.
struct Server {
    process: Started,
    address: SocketAddr,
    log: Log,
    probation: Duration,
}

/// What was seen of one upgrade.
struct Upgrade {
    /// When probation ended, by the log and so a millisecond late at most, and when the predecessor
    /// was dead.
    from: Instant,
    to: Instant,
    /// The predecessor's word, in milliseconds: how long all of it took, how long a session stood
    /// still at most and in the middle, and its longest turn.
    said: [f64; 4],
    moved: usize,
    /// The successor's longest turn.
    successor_turn: f64,
}

impl Server {
    fn start(
        mut command: Command,
        place: &Path,
        name: &str,
        probation: Duration,
    ) -> Result<Self, String> {
        let path = place.join(name).with_extension("log");
        let file = File::options().append(true).create(true).open(&path);
        let child = command
            .args(["--probation", &probation.as_secs_f64().to_string()])
            .stdin(Stdio::null())
            .stderr(file.map_err(failed(path.display()))?)
            .spawn()
            .map_err(failed(format_args!("start the {name}")))?;
        let process = Started::new(&child);
        let address = process::listening(process.pid)?;
        Ok(Self { process, address, log: Log::open(&path)?, probation })
    }

    fn measure(
        mut self,
        idle: usize,
        busy: usize,
        pace: Duration,
        hups: u64,
    ) -> Result<Moved, String> {
        let load = Load::start(self.address, idle, busy, pace)?;
        sleep(CALM);
        let mut upgrades = Vec::new();
        for _ in 0..hups {
            upgrades.push(self.upgrade()?);
            load.verify((idle / SAMPLE).max(1))?;
        }
        let alive = load.verify(1)?;
        sleep(CALM);
        let mut outcome = load.finish()?;
        if alive != idle {
            outcome.broken.push(format!("{} idle sessions do not answer", idle - alive));
        }
        outcome.broken.extend(self.log.complaints().map(String::from));
        Ok(Moved { upgrades, outcome })
    }

    fn upgrade(&mut self) -> Result<Upgrade, String> {
        let old = self.process.pid;
        let mark = self.log.mark()?;
        let others = process::children(rustix::process::getpid()).len();
        let process = pidfd_open(old, PidfdFlags::empty()).map_err(failed("open the server"))?;
        kill_process(old, Signal::HUP).map_err(failed("send HUP"))?;
        // The successor serves: from here probation lasts.
        let successor = self.log.wait_for(mark, ": done; spawn ")?;
        let from = successor.at + self.probation;
        let successor = number_behind(&successor.text, " -> ")?;
        let successor = Pid::from_raw(successor as i32).ok_or("a successor without a number")?;
        let gone =
            rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&PATIENCE));
        let to = Instant::now();
        if gone.map_err(failed("wait for the predecessor"))? == 0 {
            return Err(format!("{old:?} does not leave"));
        }
        process::reap(old)?;
        self.process.pid = successor;
        // It was the child of the dead, and is this process's now.
        let left = process::children(rustix::process::getpid());
        if left.len() != others || !left.contains(&successor) {
            return Err(format!("{left:?} are left, expected {others} with {successor:?}"));
        }
        let said = self.log.wait_for(mark, " each stood still for at most ")?.text.clone();
        let took = self.log.wait_for(mark, " sessions over; longest turn ")?;
        if took.pid != successor {
            return Err(format!("it is not {successor:?} that took over: {}", took.text));
        }
        let keys = [" sessions in ", " for at most ", ", median ", "longest turn "];
        let mut figures = [0.0; 4];
        for (figure, key) in figures.iter_mut().zip(keys) {
            *figure = number_behind(&said, key)?;
        }
        let moved = number_behind(&said, " moved ")? as usize;
        let successor_turn = number_behind(&took.text, "longest turn ")?;
        Ok(Upgrade { from, to, said: figures, moved, successor_turn })
    }
}

/// The number in a line behind those words.
fn number_behind(line: &str, words: &str) -> Result<f64, String> {
    let rest = line.split_once(words).map(|(_, rest)| rest);
    let number = rest.and_then(|rest| rest.split([' ', ':']).next()?.parse().ok());
    number.ok_or_else(|| format!("no number behind {words:?} in {line:?}"))
}

/// What was seen of all of them.
struct Moved {
    upgrades: Vec<Upgrade>,
    outcome: Outcome,
}

impl Moved {
    /// Prints the figures, and answers what makes this bench fail.
    fn print(&self, sessions: usize) -> Vec<String> {
        let row = |name: &str, values: &mut dyn Iterator<Item = f64>| {
            let values: Vec<f64> = values.collect();
            let most = values.iter().copied().max_by(f64::total_cmp).unwrap_or(f64::NAN);
            let figures = [median(values.iter().copied()), least(values), most];
            line(name, figures.map(|figure| format!("{figure:.3}")));
        };
        let of = |place: usize| self.upgrades.iter().map(move |upgrade| upgrade.said[place]);
        println!();
        head("ms of an upgrade", ["median", "least", "most"]);
        let gone = |upgrade: &Upgrade| milliseconds(&(upgrade.to - upgrade.from));
        row("probation over to gone", &mut self.upgrades.iter().map(gone));
        row("all sessions moved", &mut of(0));
        let each = |upgrade: &Upgrade| upgrade.said[0] / upgrade.moved as f64;
        row("  for each of them", &mut self.upgrades.iter().map(each));
        row("stood still, median", &mut of(2));
        row("stood still, longest", &mut of(1));
        row("longest turn, predecessor", &mut of(3));
        row("longest turn, successor", &mut self.upgrades.iter().map(|u| u.successor_turn));
        println!(
            "goals, of the medians: gone {GONE_MS} ms, stood still {STOOD_STILL_MS} ms, \
             turns {TURN_MS} ms"
        );
        println!();
        head("ms of a busy one's echo", ["median", "99 %", "most", "echoes"]);
        // Those that were under way while sessions moved, and those that were not; and of each
        // session in each upgrade the longest, which bounds how long it stood still.
        let (mut meanwhile, mut calm, mut longest) = (Vec::new(), Vec::new(), HashMap::new());
        for ping in &self.outcome.pings {
            let ended = ping.sent + ping.took;
            let moves = |upgrade: &Upgrade| ping.sent < upgrade.to && ended > upgrade.from;
            match self.upgrades.iter().position(moves) {
                Some(upgrade) => {
                    meanwhile.push(ping.took);
                    let of_it = longest.entry((upgrade, ping.session)).or_insert(Duration::ZERO);
                    *of_it = ping.took.max(*of_it);
                }
                None => calm.push(ping.took),
            }
        }
        echoes("otherwise", calm);
        echoes("while sessions move", meanwhile);
        echoes("  the longest of a session", longest.into_values().collect());
        println!();
        println!("broken: {}", self.outcome.broken.len());
        println!();
        let short = self.upgrades.iter().filter(|upgrade| upgrade.moved != sessions);
        let short = short.map(|upgrade| format!("{} of {sessions} sessions moved", upgrade.moved));
        self.outcome.broken.iter().take(10).cloned().chain(short).collect()
    }
}

fn echoes(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: f64| times.get((times.len() as f64 * part) as usize);
    let figure = |time: Option<&Duration>| format!("{:.3}", time.map_or(f64::NAN, milliseconds));
    let [middle, most_of, most] = [at(0.5), at(0.99), times.last()].map(figure);
    line(name, [middle, most_of, most, times.len().to_string()]);
}
