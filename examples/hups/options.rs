//! The command line: what is asked for, within bounds.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lexopt::{Arg, Parser, ValueExt};
use rustix::process::{Pid, Signal};

use crate::protocol::Protocol;
use crate::protocol::echo::Echo;
use crate::protocol::http::Http;
use crate::protocol::line::Line;
use crate::protocol::redis::Redis;
use crate::target::Target;
use crate::tls;
use crate::trigger::Trigger;

/// What is asked for.
pub(crate) enum CommandLine {
    Help,
    /// One run after another.
    Storm {
        runs: Vec<Options>,
        output: Output,
    },
    /// Reports of earlier runs.
    Compare(Vec<PathBuf>),
}

#[derive(Default)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) svg: Option<PathBuf>,
    pub(crate) progress: bool,
}

/// One run.
#[derive(Clone)]
pub(crate) struct Options {
    /// What the report calls the server, if that is not its address.
    pub(crate) name: Option<String>,
    pub(crate) target: Target,
    pub(crate) tls: Option<tls::Client>,
    pub(crate) server: Option<Named>,
    pub(crate) protocol: Protocol,
    pub(crate) short_rate: u32,
    pub(crate) long_connections: usize,
    pub(crate) long_rate: u32,
    pub(crate) timeout: Duration,
    pub(crate) hups: u32,
    pub(crate) interval: (Duration, Duration),
    pub(crate) trigger: Trigger,
    pub(crate) seed: u64,
    pub(crate) calm: Duration,
    pub(crate) settle: Duration,
    pub(crate) window: Duration,
    pub(crate) max_run: Duration,
}

/// How the process to signal is named.
#[derive(Clone)]
pub(crate) enum Named {
    PidFile(PathBuf),
    Pid(Pid),
}

/// The flags of one server, as far as they can only be judged together.
#[derive(Clone, Default)]
struct Given {
    address: Option<String>,
    name: Option<String>,
    pid_file: Option<PathBuf>,
    pid: Option<i32>,
    command: Option<String>,
    admin: Option<String>,
    signal: Option<(Signal, &'static str)>,
    protocol: Option<String>,
    send: Option<String>,
    expect: Option<String>,
    bytes: Option<usize>,
    tls: bool,
    tls_name: Option<String>,
    allow_remote: bool,
}

const BYTES: usize = 32;

impl CommandLine {
    pub(crate) fn read() -> Result<CommandLine, String> {
        let mut parser = Parser::from_env();
        let mut given = Given::default();
        let mut options = Options::default();
        let (mut runs, mut output) = (Vec::new(), Output::default());
        let mut is_first = true;
        while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
            let Arg::Long(name) = argument else {
                return Err(argument.unexpected().to_string());
            };
            match format!("--{name}").as_str() {
                "--help" => return Ok(CommandLine::Help),
                "--compare" if is_first => return compare(parser),
                "--compare" => {
                    return Err("--compare runs nothing: no other flag goes with it".to_string());
                }
                "--json" => output.json = true,
                "--svg" => output.svg = Some(value("--svg", &mut parser)?.into()),
                "--progress" => output.progress = true,
                "--tls" => given.tls = true,
                "--allow-remote" => given.allow_remote = true,
                "--then" => {
                    runs.push(options.clone().checked(&given)?);
                    given = given.of_the_next();
                }
                option => options.take(option, &mut parser, &mut given)?,
            }
            is_first = false;
        }
        runs.push(options.checked(&given)?);
        Ok(CommandLine::Storm { runs, output })
    }
}

fn compare(mut parser: Parser) -> Result<CommandLine, String> {
    let mut files = Vec::new();
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        let Arg::Value(file) = argument else {
            return Err("--compare takes files, and no other flag goes with it".to_string());
        };
        files.push(PathBuf::from(file));
    }
    match files.is_empty() {
        true => Err("--compare needs files: reports that --json has printed".to_string()),
        false => Ok(CommandLine::Compare(files)),
    }
}

impl Default for Options {
    fn default() -> Options {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Options {
            name: None,
            target: Target::Unix(PathBuf::new()),
            tls: None,
            server: None,
            protocol: Protocol::Echo(Echo::new(seed, BYTES)),
            short_rate: 100,
            long_connections: 10,
            long_rate: 100,
            timeout: Duration::from_secs(5),
            hups: 10,
            interval: (Duration::from_secs(1), Duration::from_secs(1)),
            trigger: Trigger::Signal(Signal::HUP, "HUP"),
            seed,
            calm: Duration::from_secs(2),
            settle: Duration::from_millis(1500),
            window: Duration::from_millis(50),
            max_run: Duration::from_secs(300),
        }
    }
}

impl Options {
    /// What the report calls the server.
    pub(crate) fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.target.to_string())
    }

    fn take(&mut self, name: &str, parser: &mut Parser, given: &mut Given) -> Result<(), String> {
        let mut value = || value(name, parser);
        match name {
            "--addr" => given.address = Some(value()?),
            "--name" => given.name = Some(value()?),
            "--pid-file" => given.pid_file = Some(value()?.into()),
            "--pid" => given.pid = Some(number(name, &value()?, 1, i32::MAX)?),
            "--upgrade-command" => given.command = Some(value()?),
            "--upgrade-admin" => given.admin = Some(value()?),
            "--protocol" => given.protocol = Some(value()?),
            "--send" => given.send = Some(value()?),
            "--expect" => given.expect = Some(value()?),
            "--bytes" => given.bytes = Some(number(name, &value()?, 1, 16 << 20)?),
            "--tls-name" => given.tls_name = Some(value()?),
            "--signal" => given.signal = Some(signal(name, &value()?)?),
            "--short-rate" => self.short_rate = number(name, &value()?, 0, 20_000)?,
            "--long-conns" => self.long_connections = number(name, &value()?, 0, 15_000)?,
            "--long-rate" => self.long_rate = number(name, &value()?, 0, 50_000)?,
            "--timeout-ms" => self.timeout = milliseconds(name, &value()?, 1, 60_000)?,
            "--hups" => self.hups = number(name, &value()?, 0, 100_000)?,
            "--interval-ms" => self.interval = interval(name, &value()?)?,
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
    fn checked(mut self, given: &Given) -> Result<Options, String> {
        let address = given.address.as_ref().ok_or("--addr is missing; see --help")?;
        self.target =
            Target::parse(address).map_err(|error| format!("--addr {address}: {error}"))?;
        if !self.target.is_local() && !given.allow_remote {
            return Err(format!("--addr {address} is not on loopback; see --allow-remote"));
        }
        self.tls = given.tls_client()?;
        self.name.clone_from(&given.name);
        self.server = match (&given.pid_file, given.pid) {
            (Some(_), Some(_)) => return Err("--pid-file and --pid exclude each other".into()),
            (Some(path), None) => Some(Named::PidFile(path.clone())),
            (None, Some(pid)) => Pid::from_raw(pid).map(Named::Pid),
            (None, None) => None,
        };
        self.trigger = given.trigger()?;
        if self.server.is_none() && !self.trigger.has_outcome() && self.hups > 0 {
            return Err(
                "--pid-file or --pid is missing, or --upgrade-command or --upgrade-admin; \
                        see --help"
                    .into(),
            );
        }
        self.protocol = given.protocol(self.seed)?;
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
        Ok(self)
    }
}

impl Given {
    /// The flags that count for the next server, too.
    fn of_the_next(self) -> Given {
        Given {
            address: None,
            name: None,
            pid_file: None,
            pid: None,
            command: None,
            admin: None,
            signal: None,
            ..self
        }
    }

    fn trigger(&self) -> Result<Trigger, String> {
        match (&self.command, &self.admin, self.signal) {
            (Some(_), Some(_), _) => {
                Err("--upgrade-command and --upgrade-admin exclude each other".into())
            }
            (Some(command), None, None) => Ok(Trigger::Command(command.clone())),
            (None, Some(address), None) => Ok(Trigger::Admin(admin_address(address))),
            (Some(_), None, Some(_)) => {
                Err("--upgrade-command and --signal exclude each other".into())
            }
            (None, Some(_), Some(_)) => {
                Err("--upgrade-admin and --signal exclude each other".into())
            }
            (None, None, Some((signal, name))) => Ok(Trigger::Signal(signal, name)),
            (None, None, None) => Ok(Trigger::Signal(Signal::HUP, "HUP")),
        }
    }

    fn tls_client(&self) -> Result<Option<tls::Client>, String> {
        let name = match (self.tls, &self.tls_name) {
            (false, None) => return Ok(None),
            (false, Some(name)) => return Err(format!("--tls-name {name} is for --tls")),
            (true, Some(name)) => name,
            (true, None) => "localhost",
        };
        tls::Client::new(name).map(Some).map_err(|error| match &self.tls_name {
            Some(name) => format!("--tls --tls-name {name}: {error}"),
            None => format!("--tls: {error}"),
        })
    }

    fn protocol(&self, seed: u64) -> Result<Protocol, String> {
        let name = self.protocol.as_deref().unwrap_or("echo");
        let (send, expect) = (self.send.as_deref(), self.expect.as_deref());
        if self.bytes.is_some() && name != "echo" {
            return Err(format!("--bytes is for --protocol echo; with {name} use --send"));
        }
        match name {
            "echo" if send.or(expect).is_some() => {
                Err("--send and --expect are for --protocol http, redis or line: echo sends bytes \
                     of its own"
                    .into())
            }
            "echo" => Ok(Protocol::Echo(Echo::new(seed, self.bytes.unwrap_or(BYTES)))),
            "http" => {
                let address = self.address.as_deref().unwrap_or_default();
                let host = if address.starts_with("unix:") { "localhost" } else { address };
                Http::new(host, send, expect).map(Protocol::Http)
            }
            "redis" => Redis::new(send, expect).map(Protocol::Redis),
            "line" => Line::new(send, expect).map(Protocol::Line),
            other => Err(format!("--protocol {other} is not one of {}", Protocol::NAMES)),
        }
    }
}

/// A path is a Unix socket's, as it is for the server's own `--admin`.
fn admin_address(text: &str) -> String {
    match text.starts_with(['/', '.']) || !text.contains(':') {
        true => format!("unix:{text}"),
        false => text.to_string(),
    }
}

fn value(name: &str, parser: &mut Parser) -> Result<String, String> {
    let value = parser.value().map_err(|_| format!("{name} needs a value"))?;
    value.string().map_err(|_| format!("{name} is not UTF-8"))
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
