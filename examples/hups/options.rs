//! The command line: what is asked for, within bounds.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lexopt::{Arg, Parser, ValueExt};
use rustix::process::{Pid, Signal};

use crate::target::Target;

pub(crate) const HELP: &str = "\
hups: keeps an echo server under load while a signal replaces it, and tells what clients noticed

usage: hups --addr ADDRESS (--pid-file FILE | --pid PID) [options]

The server echoes what it gets. Exit status: 0 nothing was dropped, 1 something was dropped or
the run could not be finished, 2 wrong usage or no server.

server
  --addr HOST:PORT|unix:PATH  where the load goes; loopback only, without --allow-remote
  --pid-file FILE             names the process to signal; read anew before every signal
  --pid PID                   the process to signal, if it stays the same
  --allow-remote              let --addr be on another machine
load
  --short-rate N              connections a second for one message each [100] (0 to 20000)
  --long-conns N              connections that are kept [10] (0 to 15000)
  --long-rate N               messages a second, over all of those in turn [100] (0 to 50000);
                              on a connection still busy they wait, and their latency counts
  --bytes N                   length of a message [32] (1 to 16777216)
  --timeout-ms N              after which a request counts as dropped [5000] (1 to 60000)
signals
  --hups N                    how many [10] (0 to 100000); 0: load alone, for --calm-seconds
  --interval-ms N|MIN-MAX     between signals, or drawn between two bounds [1000] (1 to 600000)
  --signal NAME               HUP, USR1, USR2, QUIT, TERM or WINCH [HUP]
  --seed N                    for intervals and messages [the clock]
time
  --calm-seconds N            load before the first signal [2] (0 to 3600, 0.5 is possible)
  --settle-ms N               how long the server must be quiet at the end [1500] (0 to 60000)
  --window-ms N               before and after each signal, at most half the interval [50]
  --max-seconds N             the run is cut off then, but for --timeout-ms [300] (1 to 3600)
output
  --json                      one JSON object instead of the table
  --progress                  progress lines, also where stderr is not a terminal
  --help
";

pub(crate) struct Options {
    pub(crate) target: Target,
    pub(crate) server: Option<Named>,
    pub(crate) short_rate: u32,
    pub(crate) long_connections: usize,
    pub(crate) long_rate: u32,
    pub(crate) bytes: usize,
    pub(crate) timeout: Duration,
    pub(crate) hups: u32,
    pub(crate) interval: (Duration, Duration),
    pub(crate) signal: Signal,
    pub(crate) signal_name: &'static str,
    pub(crate) seed: u64,
    pub(crate) calm: Duration,
    pub(crate) settle: Duration,
    pub(crate) window: Duration,
    pub(crate) max_run: Duration,
    pub(crate) json: bool,
    pub(crate) progress: bool,
}

/// How the process to signal is named.
pub(crate) enum Named {
    PidFile(PathBuf),
    Pid(Pid),
}

impl Options {
    /// None if help was asked for.
    pub(crate) fn from_command_line() -> Result<Option<Options>, String> {
        let mut parser = Parser::from_env();
        let mut given = Given::default();
        let mut options = Options {
            target: Target::Unix(PathBuf::new()),
            server: None,
            short_rate: 100,
            long_connections: 10,
            long_rate: 100,
            bytes: 32,
            timeout: Duration::from_secs(5),
            hups: 10,
            interval: (Duration::from_secs(1), Duration::from_secs(1)),
            signal: Signal::HUP,
            signal_name: "HUP",
            seed: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            calm: Duration::from_secs(2),
            settle: Duration::from_millis(1500),
            window: Duration::from_millis(50),
            max_run: Duration::from_secs(300),
            json: false,
            progress: false,
        };
        while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
            let Arg::Long(name) = argument else {
                return Err(argument.unexpected().to_string());
            };
            match format!("--{name}").as_str() {
                "--help" => return Ok(None),
                "--json" => options.json = true,
                "--progress" => options.progress = true,
                "--allow-remote" => given.allow_remote = true,
                option => options.take(option, &mut parser, &mut given)?,
            }
        }
        options.check(given)?;
        Ok(Some(options))
    }

    fn take(&mut self, name: &str, parser: &mut Parser, given: &mut Given) -> Result<(), String> {
        let mut value = || -> Result<String, String> {
            let value = parser.value().map_err(|_| format!("{name} needs a value"))?;
            value.string().map_err(|_| format!("{name} is not UTF-8"))
        };
        match name {
            "--addr" => given.address = Some(value()?),
            "--pid-file" => given.pid_file = Some(value()?.into()),
            "--pid" => given.pid = Some(number(name, &value()?, 1, i32::MAX)?),
            "--short-rate" => self.short_rate = number(name, &value()?, 0, 20_000)?,
            "--long-conns" => self.long_connections = number(name, &value()?, 0, 15_000)?,
            "--long-rate" => self.long_rate = number(name, &value()?, 0, 50_000)?,
            "--bytes" => self.bytes = number(name, &value()?, 1, 16 << 20)?,
            "--timeout-ms" => self.timeout = milliseconds(name, &value()?, 1, 60_000)?,
            "--hups" => self.hups = number(name, &value()?, 0, 100_000)?,
            "--interval-ms" => self.interval = interval(name, &value()?)?,
            "--signal" => (self.signal, self.signal_name) = signal(name, &value()?)?,
            "--seed" => self.seed = number(name, &value()?, 0, u64::MAX)?,
            "--calm-seconds" => {
                self.calm = Duration::from_secs_f64(number(name, &value()?, 0.0, 3600.0)?);
            }
            "--settle-ms" => self.settle = milliseconds(name, &value()?, 0, 60_000)?,
            "--window-ms" => self.window = milliseconds(name, &value()?, 1, 10_000)?,
            "--max-seconds" => self.max_run = milliseconds(name, &value()?, 1, 3600)? * 1000,
            _ => return Err(format!("{name} is not an option; see --help")),
        }
        Ok(())
    }

    /// What can only be judged when everything has been read.
    fn check(&mut self, given: Given) -> Result<(), String> {
        let address = given.address.ok_or("--addr is missing; see --help")?;
        self.target =
            Target::parse(&address).map_err(|error| format!("--addr {address}: {error}"))?;
        if !self.target.is_local() && !given.allow_remote {
            return Err(format!("--addr {address} is not on loopback; see --allow-remote"));
        }
        self.server = match (given.pid_file, given.pid) {
            (Some(_), Some(_)) => return Err("--pid-file and --pid exclude each other".into()),
            (Some(path), None) => Some(Named::PidFile(path)),
            (None, Some(pid)) => Pid::from_raw(pid).map(Named::Pid),
            (None, None) => None,
        };
        if self.server.is_none() && self.hups > 0 {
            return Err("--pid-file or --pid is missing; see --help".into());
        }
        if self.short_rate == 0 && self.long_connections == 0 {
            return Err("--short-rate 0 and --long-conns 0 are no load".into());
        }
        self.window = self.window.min(self.interval.0 / 2);
        let shortest = self.calm + self.settle + self.interval.1 * self.hups.saturating_sub(1);
        if shortest > self.max_run {
            let seconds = shortest.as_secs_f64().ceil();
            return Err(format!(
                "--max-seconds {} is too short: this run takes {seconds} seconds",
                self.max_run.as_secs()
            ));
        }
        Ok(())
    }
}

#[derive(Default)]
struct Given {
    address: Option<String>,
    pid_file: Option<PathBuf>,
    pid: Option<i32>,
    allow_remote: bool,
}

fn number<T>(name: &str, text: &str, least: T, most: T) -> Result<T, String>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    match text.parse::<T>() {
        Ok(value) if value >= least && value <= most => Ok(value),
        Ok(_) => Err(format!("{name} {text} is out of range ({least} to {most})")),
        Err(_) => Err(format!("{name} {text} is not a number from {least} to {most}")),
    }
}

fn milliseconds(name: &str, text: &str, least: u64, most: u64) -> Result<Duration, String> {
    number(name, text, least, most).map(Duration::from_millis)
}

fn interval(name: &str, text: &str) -> Result<(Duration, Duration), String> {
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    let least = milliseconds(name, least, 1, 600_000)?;
    let most = milliseconds(name, most, 1, 600_000)?;
    if least > most {
        return Err(format!("{name} {text} begins with the larger bound"));
    }
    Ok((least, most))
}

fn signal(name: &str, text: &str) -> Result<(Signal, &'static str), String> {
    let upper = text.to_uppercase();
    match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "HUP" => Ok((Signal::HUP, "HUP")),
        "USR1" => Ok((Signal::USR1, "USR1")),
        "USR2" => Ok((Signal::USR2, "USR2")),
        "QUIT" => Ok((Signal::QUIT, "QUIT")),
        "TERM" => Ok((Signal::TERM, "TERM")),
        "WINCH" => Ok((Signal::WINCH, "WINCH")),
        _ => Err(format!("{name} {text} is not one of HUP, USR1, USR2, QUIT, TERM and WINCH")),
    }
}
