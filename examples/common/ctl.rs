//! `ctl`: asks a running server for something, over its admin endpoint.

use std::io;
use std::process::ExitCode;

use lexopt::{Arg, Parser, ValueExt};
use tablecloth::{Control, Controlled, control};

use super::options::admin_address;
use super::output;

const HELP: &str = "\
NAME ctl --admin ADDRESS COMMAND: asks a running server for something

  --admin ADDRESS      as the server was given it: /PATH, unix:@NAME or HOST:PORT

commands:
  status               how it stands
  live, ready          whether its loop turns, and whether it serves: for probes
  upgrade              replace it by a new process of its program; what becomes of it is
                       printed step by step, until the new process serves or has failed
  upgrade --proven     the same, until the new process is proven and the sessions have moved
  check                start the new program, and end it when it could serve
  shutdown             stop: sessions come to their end
  exit                 stop at once

exit status: 0 done; 1 failed, rolled back or refused, or it cannot be told; 2 nobody is
there, or wrong flags";

/// Runs it, if the first argument is `ctl`.
pub(crate) fn run(name: &'static str) -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != "ctl" {
        return None;
    }
    Some(match parse(Parser::from_args(arguments)) {
        Ok(None) => {
            output::print(&format_args!("{}", HELP.replace("NAME", name)));
            ExitCode::SUCCESS
        }
        Ok(Some((address, command))) => match control(&address, command, &mut io::stdout()) {
            Ok(Controlled::Done) => ExitCode::SUCCESS,
            Ok(Controlled::Failed) => ExitCode::from(1),
            // Whoever wanted to read it has gone: that is no word on the server.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(1),
            Err(error) => {
                output::complain(name, &format!("ctl: {address}: {error}"));
                ExitCode::from(2)
            }
        },
        Err(error) => {
            output::complain(name, &format!("ctl: {error}"));
            ExitCode::from(2)
        }
    })
}

fn parse(mut parser: Parser) -> Result<Option<(String, Control)>, String> {
    let (mut address, mut command, mut proven) = (None, None, false);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Long("admin") => {
                let value = parser.value().and_then(ValueExt::string);
                address = Some(admin_address(&value.map_err(|error| error.to_string())?));
            }
            Arg::Long("proven") => proven = true,
            Arg::Value(word) if command.is_none() => command = Some(word),
            other @ (Arg::Long(_) | Arg::Short(_) | Arg::Value(_)) => {
                return Err(format!("{}; ctl --help tells all", other.unexpected()));
            }
        }
    }
    let address = address.ok_or("--admin ADDRESS is missing; ctl --help tells all")?;
    let command = command.ok_or("a command is missing; ctl --help names them")?;
    let command = match (command.to_str(), proven) {
        (Some("upgrade"), true) => Control::UpgradeProven,
        (Some("upgrade"), false) => Control::Upgrade,
        (_, true) => return Err("--proven belongs to upgrade".into()),
        (Some("check"), false) => Control::Check,
        (Some("status"), false) => Control::Status,
        (Some("live"), false) => Control::Live,
        (Some("ready"), false) => Control::Ready,
        (Some("shutdown"), false) => Control::Shutdown,
        (Some("exit"), false) => Control::Exit,
        _ => return Err(format!("unknown command {command:?}; ctl --help names them")),
    };
    Ok(Some((address, command)))
}
