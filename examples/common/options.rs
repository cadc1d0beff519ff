//! The flags that the example servers have in common.

use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};
use log::LevelFilter;
use nix::unistd::{Group, User};
use tablecloth::{Config, SocketOptions};

use super::init;

/// The help text of the common flags.
pub(crate) const HELP: &str =
    "  --pid-file FILE          a file that always names the serving process
  --upgrade-timeout SECS   how long a successor may take to be ready [60]
  --takeover-timeout SECS  how long the other process may take to answer [5]
  --drain-timeout SECS     how long sessions may take to end [30]
  --probation SECS         how long the old process stays, at least, to take over
                           again if the new one dies or does not answer [1]
  --socket-mode OCTAL      who may connect to a Unix socket with a path, as with chmod:
                           0660 is its owner and its group [what the umask leaves]
  --socket-owner USER[:GROUP]
                           to whom that socket belongs, by name or number
  --admin ADDRESS          an endpoint that tells how the process stands and takes commands:
                           the path of a Unix socket, unix:@NAME, or HOST:PORT, where
                           nobody may command
  --user USER[:GROUP]      started as root: the user to switch to for good, once the sockets
                           and the pid file are there, by name or number
  --init                   the first process stays as a small init, which does not serve: it
                           starts the server, follows its upgrades, passes signals on and
                           ends with its status; as process 1 it does so by itself
  --workers N              N servers below an init, one for each processor, which share the
                           TCP addresses (SO_REUSEPORT); HUP replaces them one after
                           another, and FILE of --pid-file gets .1, .2 and so on. The path
                           of a file with the number, /PATH or ./PATH, is read again with
                           each HUP [1]
  --log-level LEVEL        off, error, warn, info, debug or trace [info];
                           warn leaves out the line for each message
  --help                   this text

signals:
  HUP          replace this process by a new one of the same program
  QUIT, TERM   stop: sessions come to their end, then exit with status 0
  INT          exit at once";

/// How many workers there may be.
pub(crate) const WORKERS: std::ops::RangeInclusive<u32> = 1..=1024;

/// What the common flags say.
pub(crate) struct Common {
    pub(crate) config: Config,
    /// For every listener.
    pub(crate) socket: SocketOptions,
    pub(crate) log_level: LevelFilter,
}

impl Common {
    pub(crate) fn new() -> Self {
        let (config, socket) = (Config::default(), SocketOptions::default());
        Self { config, socket, log_level: LevelFilter::Info }
    }

    /// Takes a flag, if it is a common one; its value follows in the parser.
    pub(crate) fn take(&mut self, flag: &str, parser: &mut Parser) -> Result<bool, String> {
        match flag {
            "--pid-file" => {
                self.config.pid_file = Some(value(parser, "--pid-file")?.into());
            }
            "--upgrade-timeout" => {
                self.config.upgrade_timeout = seconds(parser, "--upgrade-timeout")?;
            }
            "--takeover-timeout" => {
                self.config.takeover_timeout = seconds(parser, "--takeover-timeout")?;
            }
            "--drain-timeout" => {
                self.config.drain_timeout = seconds(parser, "--drain-timeout")?;
            }
            "--probation" => self.config.probation = seconds(parser, "--probation")?,
            "--socket-mode" => {
                let text = text(parser, flag)?;
                let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o777);
                let mode = mode.ok_or_else(|| {
                    format!("{flag} {text:?}: expected an octal number of 0 to 777")
                })?;
                self.socket = self.socket.clone().mode(mode);
            }
            "--user" => self.config.user = Some(text(parser, flag)?),
            "--workers" => {
                let text = text(parser, flag)?;
                let is_number = text.parse().is_ok_and(|number| WORKERS.contains(&number));
                if !is_number && !is_path(&text) {
                    return Err(format!(
                        "{flag} {text:?}: expected a number from 1 to 1024, or /PATH of a file with one"
                    ));
                }
            }
            // Somebody else has looked for it by now.
            "--init" => {}
            "--socket-owner" => {
                let text = text(parser, flag)?;
                let (user, group) =
                    owner(&text).map_err(|error| format!("{flag} {text:?}: {error}"))?;
                self.socket = self.socket.clone().owner(user, group);
            }
            "--admin" => self.config.admin = Some(admin_address(&text(parser, flag)?)),
            "--log-level" => {
                let text = text(parser, "--log-level")?;
                self.log_level = text.parse().map_err(|_| {
                    format!("--log-level {text:?}: expected off, error, warn, info, debug or trace")
                })?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Gives a worker what it has of its own, once all flags are known.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        let Some(number) = tablecloth::worker() else { return Ok(()) };
        if self.config.admin.is_some() && init::value_of("--admin").is_none() {
            return Err(
                "admin: of several workers the init has the endpoint: say it as a flag".into()
            );
        }
        self.socket = self.socket.clone().reuse_port(true);
        if let Some(path) = &mut self.config.pid_file {
            let mut name = std::mem::take(path).into_os_string();
            // The null device stands for no pid file.
            if name != "/dev/null" {
                name.push(format!(".{number}"));
            }
            *path = name.into();
        }
        Ok(())
    }
}

/// Whether a text is a path, where it could be something else.
pub(crate) fn is_path(text: &str) -> bool {
    text.starts_with(['/', '.'])
}

/// Why several workers cannot listen at an address, if they cannot.
pub(crate) fn not_shared(listen: &str) -> Option<String> {
    tablecloth::worker()?;
    if listen.starts_with("unix:") {
        return Some(format!(
            "{listen}: several workers cannot listen on one Unix socket: give HOST:PORT, or have one worker"
        ));
    }
    let is_any = listen.rsplit_once(':').is_some_and(|(_, port)| port == "0");
    is_any.then(|| {
        format!("{listen}: each of several workers would have a port of its own: say which")
    })
}

/// The address of an admin endpoint: what has no port is the path of a Unix socket.
pub(crate) fn admin_address(text: &str) -> String {
    if is_path(text) || !text.contains(':') { format!("unix:{text}") } else { text.into() }
}

/// The next flag as it was written, `-h` as `--help`. `None` at the end.
pub(crate) fn next_flag(parser: &mut Parser) -> Result<Option<String>, String> {
    match parser.next().map_err(|error| error.to_string())? {
        Some(Arg::Long(name)) => Ok(Some(format!("--{name}"))),
        Some(Arg::Short('h')) => Ok(Some("--help".into())),
        Some(other @ (Arg::Short(_) | Arg::Value(_))) => {
            Err(format!("{}; --help names all flags", other.unexpected()))
        }
        None => Ok(None),
    }
}

/// The text behind a flag.
pub(crate) fn text(parser: &mut Parser, flag: &str) -> Result<String, String> {
    value(parser, flag)?.string().map_err(|error| format!("{flag}: {error}"))
}

fn value(parser: &mut Parser, flag: &str) -> Result<std::ffi::OsString, String> {
    parser.value().map_err(|_| format!("{flag}: a value is missing"))
}

/// The number of seconds behind a flag.
pub(crate) fn seconds(parser: &mut Parser, flag: &str) -> Result<Duration, String> {
    let text = text(parser, flag)?;
    let duration = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    // A deadline is a point in time that has to exist.
    duration
        .filter(|duration| duration.as_secs() < 10 * 365 * 86_400)
        .ok_or_else(|| format!("{flag} {text:?}: expected a number of seconds"))
}

/// The numbers of `USER[:GROUP]`, either of which may be a number already.
pub(crate) fn owner(text: &str) -> Result<(Option<u32>, Option<u32>), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let user = id(user, "user", |name| {
        User::from_name(name).map(|user| user.map(|user| user.uid.as_raw()))
    })?;
    let group = group.map(|group| {
        id(group, "group", |name| {
            Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw()))
        })
    });
    Ok((Some(user), group.transpose()?))
}

fn id(
    text: &str,
    what: &str,
    look_up: impl FnOnce(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, String> {
    match text.parse() {
        // The greatest number stands for nobody (chown(2)).
        Ok(u32::MAX) => Err(format!("there is no {what} of that number")),
        Ok(id) => Ok(id),
        Err(_) => match look_up(text) {
            Ok(Some(id)) => Ok(id),
            Ok(None) => Err(format!("there is no {what} {text:?}")),
            Err(error) => Err(format!("{what} {text:?}: {error}")),
        },
    }
}
