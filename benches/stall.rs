//! How long an upgrade keeps the predecessor's sessions waiting, while the process is large: its
//! longest turn, beside how long `fork` and `posix_spawn` would hold the loop's thread.
//!
//!     cargo bench --bench stall
//!
//! The server is this program itself, on the library, with ballast that every generation allocates
//! and touches before it says ready. It does the other two on USR1, in the same process at the same
//! size, and leaves all figures in a file.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use common::failed;
use common::figures::{head, least, line, median, milliseconds};
use common::flags::{self, Flag};
use common::process::{self, Started};
use common::programs;
use nix::libc::SIGUSR1;
use rustix::process::{Pid, Signal, kill_process};
use tablecloth::{Accepted, Config, Context, Handler, IoEvent, Report, Server, Stream, Verdict};

/// The median of the longest turn, at most.
const GOAL_MS: f64 = 0.3;
/// This program is the server if this is its first argument.
const SERVE: &str = "serve";
/// What the servers leave in the file: figures in milliseconds, and who is about to serve.
const TURN: &str = "turn";
const SPAWN: &str = "posix_spawn";
const FORK: &str = "fork";
const PID: &str = "pid";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [first, mib, figures, empty] if first == SERVE => serve(mib, figures.into(), empty.into()),
        _ => run(),
    };
    flags::report("stall", result)
}

fn run() -> Result<(), String> {
    let (mut upgrades, mut mib) = (20, 1024);
    let about = "the predecessor's longest turn, beside fork and posix_spawn on its thread";
    let mut known = [
        Flag { name: "upgrades", value: &mut upgrades, help: "how many" },
        Flag { name: "mib", value: &mut mib, help: "ballast of each process, in MiB" },
    ];
    if !flags::parse(about, &mut known)? {
        return Ok(());
    }
    // Two processes at a time, and something for everybody else.
    let (needed, there) = (2 * mib + 512, available_mib()?);
    if there < needed {
        return Err(format!("{needed} MiB of memory are needed, {there} are available; see --mib"));
    }
    process::adopt_orphans()?;
    let place = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
    let figures = Figures { path: place.path().join("figures") };
    let empty = programs::empty(place.path())?;
    let mut server = start(mib, &figures.path, &empty)?;
    let resident = memory_mib(&format!("/proc/{}/status", server.pid.as_raw_pid()), "VmRSS:")?;
    for count in 1..=upgrades as usize {
        kill_process(server.pid, Signal::USR1).map_err(failed("send USR1"))?;
        figures.await_count(FORK, count)?;
        kill_process(server.pid, Signal::HUP).map_err(failed("send HUP"))?;
        figures.await_count(TURN, count)?;
        // A second upgrade would have to wait for its end.
        process::reap(server.pid)?;
        server.pid = figures.await_serving(count + 1)?;
    }
    drop(server);

    let huge = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    println!("stall: {upgrades} upgrades, {resident} MiB resident in each process");
    println!("transparent huge pages: {}", huge.as_deref().unwrap_or("unknown").trim());
    println!();
    let ours: Vec<f64> = figures.of(TURN)?;
    head("loop's thread held, ms", ["median", "least", "most", "to ours"]);
    for (name, what) in
        [("longest turn, ours", TURN), ("posix_spawn on the thread", SPAWN), ("fork", FORK)]
    {
        let all = figures.of(what)?;
        let middle = median(all.iter().copied());
        let most = all.iter().copied().max_by(f64::total_cmp).unwrap_or(f64::NAN);
        let ratio = format!("{:.1}", middle / median(ours.iter().copied()));
        let [middle, least, most] = [middle, least(all), most].map(|ms| format!("{ms:.3}"));
        line(name, [middle, least, most, ratio]);
    }
    println!("goal: a median of ours of at most {GOAL_MS} ms");
    Ok(())
}

fn start(mib: u64, figures: &Path, empty: &Path) -> Result<Started, String> {
    let own = std::env::current_exe().map_err(failed("find this program"))?;
    let child = Command::new(own)
        .args([SERVE, &mib.to_string()])
        .args([figures, empty])
        .stdin(Stdio::null())
        .spawn()
        .map_err(failed("start the server"))?;
    let server = Started::new(&child);
    Figures { path: figures.into() }.await_serving(1)?;
    Ok(server)
}

fn available_mib() -> Result<u64, String> {
    memory_mib("/proc/meminfo", "MemAvailable:")
}

/// A line of a file in /proc that tells an amount of memory in kB (proc(5)).
fn memory_mib(path: &str, name: &str) -> Result<u64, String> {
    let text = fs::read_to_string(path).map_err(failed(path))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.map(|kib| kib / 1024).ok_or_else(|| format!("{path}: no {name}"))
}

/// The file that the servers leave their figures in: `NAME FIGURE` lines.
struct Figures {
    path: PathBuf,
}

impl Figures {
    fn of(&self, name: &str) -> Result<Vec<f64>, String> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.map_err(failed(self.path.display()))?,
        };
        let value = |line: &str| match line.split_once(' ') {
            Some((first, value)) if first == name => value.parse().ok(),
            Some(_) | None => None,
        };
        Ok(text.lines().filter_map(value).collect())
    }

    fn await_count(&self, name: &str, count: usize) -> Result<(), String> {
        process::await_some(name, || Ok((self.of(name)?.len() >= count).then_some(())))
    }

    /// The process that was the n-th to serve.
    fn await_serving(&self, count: usize) -> Result<Pid, String> {
        process::await_some("a server", || {
            let pid = self.of(PID)?.get(count - 1).copied();
            Ok(pid.and_then(|pid| Pid::from_raw(pid as i32)))
        })
    }
}

/// One write for each line, so that those of two processes never mix.
fn note(mut figures: &File, name: &str, figure: f64) -> Result<(), String> {
    figures.write_all(format!("{name} {figure}\n").as_bytes()).map_err(failed("leave a figure"))
}

/// The server's side.
struct Measured {
    figures: File,
    empty: PathBuf,
}

fn serve(mib: &str, figures: PathBuf, empty: PathBuf) -> Result<(), String> {
    let mib: usize = mib.parse().map_err(failed("the size"))?;
    let figures = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&figures)
        .map_err(failed(figures.display()))?;
    let mut config = Config::default();
    config.user_signals = vec![SIGUSR1];
    // The turns that count are over by then.
    config.probation = std::time::Duration::ZERO;
    let words = |error: tablecloth::Error| error.to_string();
    let own_figures = figures.try_clone().map_err(failed("duplicate a descriptor"))?;
    let mut server = Server::new(config).map_err(words)?;
    server.listen("any", "127.0.0.1:0").map_err(words)?;
    // Every byte of it is written, so that every page is there.
    let ballast = std::hint::black_box(vec![1_u8; mib << 20]);
    note(&own_figures, PID, f64::from(std::process::id()))?;
    let result = server.run(Measured { figures, empty }).map(drop).map_err(words);
    drop(ballast);
    result
}

impl Measured {
    /// How long starting the empty program holds this thread; what comes after is not counted.
    fn time_start(&self, name: &str, command: &mut Command) -> Result<(), String> {
        let began = Instant::now();
        let mut child = command.spawn().map_err(failed(name))?;
        let held = began.elapsed();
        child.wait().map_err(failed(name))?;
        note(&self.figures, name, milliseconds(&held))
    }
}

impl Handler for Measured {
    type Session = Stream;

    fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Stream> {
        Ok(accepted.stream)
    }

    fn event(&mut self, _: &mut Context<'_>, _: &mut Stream, _: IoEvent) -> Verdict {
        Verdict::Close
    }

    /// USR1: what the library's short-lived thread spares the loop.
    fn signal(&mut self, _: &mut Context<'_>, _: i32) {
        let mut spawned = Command::new(&self.empty);
        let mut forked = Command::new(&self.empty);
        // posix_spawn(3) cannot change the user: the standard library forks then, even if the
        // user stays the same.
        forked.uid(rustix::process::getuid().as_raw());
        let result =
            self.time_start(SPAWN, &mut spawned).and_then(|()| self.time_start(FORK, &mut forked));
        if let Err(error) = result {
            eprintln!("stall: {error}");
        }
    }

    fn upgraded(&mut self, _: &mut Context<'_>, report: &Report) {
        let result = match &report.outcome {
            Ok(timings) => note(&self.figures, TURN, milliseconds(&timings.longest_turn)),
            Err(_) => Err(format!("{report}")),
        };
        if let Err(error) = result {
            eprintln!("stall: {error}");
        }
    }
}
