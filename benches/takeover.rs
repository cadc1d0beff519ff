//! How long an upgrade takes: from sending HUP to the successor accepting, beside spawning,
//! running and reaping an empty Rust program, in turn.
//!
//!     cargo bench --bench takeover
//!
//! It is seen from outside: a successor renames its pid file in the very step in which it starts
//! to accept, so the file is looked at again and again; how far apart two looks are is printed too.
//! Then a client connects and gets its echo, which proves that the new process serves: its
//! predecessor stopped accepting before it let the new one write the file.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use common::failed;
use common::figures::{head, least, line, median, milliseconds};
use common::flags::{self, Flag};
use common::process::{self, Started};
use common::programs;
use common::surroundings::{self, Journal};
use rustix::process::{Signal, kill_process};

/// At most so many times as long as the empty program.
const GOAL: f64 = 3.0;
/// Longer than an upgrade takes on a machine that is alive.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the demo's log line says of an upgrade, in this order.
const STEPS: [&str; 4] = ["spawn", "set-up", "takeover", "longest turn"];

fn main() -> ExitCode {
    flags::report("takeover", run())
}

fn run() -> Result<(), String> {
    let mut upgrades = 50;
    let about = "from HUP to the successor accepting, beside running an empty program";
    let mut known = [Flag { name: "upgrades", value: &mut upgrades, help: "how many" }];
    if !flags::parse(about, &mut known)? {
        return Ok(());
    }
    // Without it the kernel may end every sleep 50 µs late (prctl(2)).
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1000));
    process::adopt_orphans()?;
    let place = surroundings::directory()?;
    let empty = programs::empty(place.path())?;
    let pid_file = place.path().join("demo.pid");
    let journal = Journal::new(&place.path().join("demo.log"))?;
    let mut demo = start(&programs::example("demo")?, &pid_file, &journal)?;
    let address = process::listening(demo.pid)?;

    let (mut seen, mut ran) = (Vec::new(), Vec::new());
    for _ in 0..upgrades {
        seen.push(upgrade(&mut demo, &pid_file, address)?);
        ran.push(run_empty(&empty)?);
    }
    drop(demo);
    print(&seen, &ran, &journal.read()?);
    Ok(())
}

fn start(demo: &Path, pid_file: &Path, journal: &Journal) -> Result<Started, String> {
    let child = Command::new(demo)
        // A line for each upgrade, and two for each echo that this bench asks for.
        .args(["--listen=127.0.0.1:0", "--log-level=info", "--probation=0", "--pid-file"])
        .arg(pid_file)
        .stdin(Stdio::null())
        .stderr(journal.stderr()?)
        .spawn()
        .map_err(failed("start the demo"))?;
    let demo = Started::new(&child);
    process::await_some("the pid file", || Ok(process::named_in(pid_file)))?;
    Ok(demo)
}

/// What was seen of one upgrade, since HUP was sent.
struct Seen {
    accepting: Duration,
    echoed: Duration,
    /// The longest time between two looks at the pid file.
    blind: Duration,
}

fn upgrade(demo: &mut Started, pid_file: &Path, address: SocketAddr) -> Result<Seen, String> {
    let before = process::number_of(pid_file)?;
    let sent = Instant::now();
    kill_process(demo.pid, Signal::HUP).map_err(failed("send HUP"))?;
    let blind = process::await_renamed(pid_file, before, sent, PATIENCE)?;
    let accepting = sent.elapsed();
    echo(address).map_err(failed("an echo of the successor"))?;
    let echoed = sent.elapsed();

    let successor = process::named_in(pid_file).ok_or("the pid file names no process")?;
    if successor == demo.pid {
        return Err("the pid file was renamed and names the same process".into());
    }
    // A second upgrade would have to wait for its end.
    process::reap(demo.pid)?;
    demo.pid = successor;
    Ok(Seen { accepting, echoed, blind })
}

fn echo(address: SocketAddr) -> std::io::Result<()> {
    let mut client = TcpStream::connect(address)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(b"there?")?;
    let mut answer = [0; 6];
    client.read_exact(&mut answer)?;
    if answer == *b"there?" { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

fn run_empty(empty: &Path) -> Result<Duration, String> {
    let began = Instant::now();
    let status = Command::new(empty).status().map_err(failed("run the empty program"))?;
    let took = began.elapsed();
    if status.success() { Ok(took) } else { Err("the empty program failed".into()) }
}

fn print(seen: &[Seen], ran: &[Duration], log: &str) {
    println!("takeover: {} upgrades of the demo, an empty program after each", seen.len());
    println!();
    head("ms", ["median", "least"]);
    let row = |name: &str, times: &mut dyn Iterator<Item = &Duration>| {
        let times: Vec<f64> = times.map(milliseconds).collect();
        let figures = [median(times.iter().copied()), least(times)];
        line(name, figures.map(|figure| format!("{figure:.3}")));
        figures
    };
    let ours = row("HUP to accepting", &mut seen.iter().map(|seen| &seen.accepting));
    let empty = row("empty program", &mut ran.iter());
    line("ratio", [0, 1].map(|place| format!("{:.2}", ours[place] / empty[place])));
    println!("goal: a median ratio of at most {GOAL}");
    println!();
    row("HUP to an echo", &mut seen.iter().map(|seen| &seen.echoed));
    row("longest without a look", &mut seen.iter().map(|seen| &seen.blind));
    let told: Vec<_> = log.lines().filter_map(steps).collect();
    println!();
    head(&format!("predecessor's log, {} lines", told.len()), ["median", "least"]);
    for (place, name) in STEPS.iter().enumerate() {
        let of_step = || told.iter().map(|steps| steps[place]);
        line(name, [median(of_step()), least(of_step())].map(|figure| format!("{figure:.3}")));
    }
}

/// `... done; spawn A ms, set-up B ms, takeover C ms, longest turn D ms.`
fn steps(line: &str) -> Option<[f64; 4]> {
    let (_, told) = line.split_once(": done; ")?;
    let mut figures = told
        .split(", ")
        .zip(STEPS)
        .map(|(step, name)| step.strip_prefix(name)?.trim().split(' ').next()?.parse().ok());
    Some([figures.next()??, figures.next()??, figures.next()??, figures.next()??])
}
