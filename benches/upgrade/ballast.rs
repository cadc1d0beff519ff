//! A server with memory, on the library: each process of it fills its own before it is ready.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tablecloth::{Accepted, Config, Context, Handler, IoEvent, Report, Server, Stream, Verdict};

use crate::common::failed;
use crate::common::figures::milliseconds;
use crate::server::{FILLED, STAMP};

/// This program is the server if this is its first argument.
pub(crate) const SERVE: &str = "serve";

/// What can be had without swapping (proc(5)), in MiB.
pub(crate) fn available_mib() -> Result<u64, String> {
    let text = fs::read_to_string("/proc/meminfo").map_err(failed("/proc/meminfo"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.map(|kib| kib / 1024).ok_or_else(|| "/proc/meminfo: no MemAvailable".into())
}

pub(crate) fn serve(mib: &str, pid_file: PathBuf) -> Result<(), String> {
    let mib: usize = mib.parse().map_err(failed("the size"))?;
    log::set_logger(&Stamped).map_err(failed("log"))?;
    log::set_max_level(log::LevelFilter::Debug);
    let mut config = Config::default();
    config.probation = Duration::ZERO;
    config.pid_file = Some(pid_file);
    let words = |error: tablecloth::Error| error.to_string();
    let mut server = Server::new(config).map_err(words)?;
    server.listen("any", "127.0.0.1:0").map_err(words)?;
    let began = Instant::now();
    // Every byte of it is written, so that every page is there.
    let ballast = std::hint::black_box(vec![1_u8; mib << 20]);
    say(format_args!("{FILLED}{:.3} ms", milliseconds(&began.elapsed())));
    let result = server.run(Large).map(drop).map_err(words);
    // Nothing is done after it: the kernel takes the memory back when the process ends, as it does where
    // a program keeps its memory to the end.
    std::mem::forget(ballast);
    result
}

/// What the library says, and when that was by the clock that all processes read (CLOCK_MONOTONIC,
/// clock_gettime(2)).
struct Stamped;

impl log::Log for Stamped {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3;
        say(format_args!("{}{STAMP}{microseconds:.3} \u{b5}s", record.args()));
    }

    fn flush(&self) {}
}

/// A line as the examples log it, with who says it.
fn say(what: impl std::fmt::Display) {
    eprintln!("[{}] {what}", std::process::id());
}

struct Large;

impl Handler for Large {
    type Session = Stream;

    fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Stream> {
        Ok(accepted.stream)
    }

    fn event(&mut self, _: &mut Context<'_>, _: &mut Stream, _: IoEvent) -> Verdict {
        Verdict::Close
    }

    fn upgraded(&mut self, _: &mut Context<'_>, report: &Report) {
        say(report);
    }
}
