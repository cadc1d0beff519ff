//! A bench's flags: numbers, each with a default, and for some benches texts and switches.

use std::process::ExitCode;

use lexopt::{Arg, Parser, ValueExt};

/// `--NAME N`, and what it is for.
pub(crate) struct Flag<'a> {
    pub(crate) name: &'static str,
    pub(crate) value: &'a mut u64,
    pub(crate) help: &'static str,
}

/// A flag that is no number.
pub(crate) enum Other<'a> {
    /// `--NAME TEXT`
    Text { name: &'static str, value: &'a mut Option<String>, help: &'static str },
    /// `--NAME`
    Switch { name: &'static str, value: &'a mut bool, help: &'static str },
}

impl Other<'_> {
    fn name(&self) -> &'static str {
        match self {
            Other::Text { name, .. } | Other::Switch { name, .. } => name,
        }
    }
}

/// How a bench ends.
pub(crate) fn report(bench: &str, result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{bench}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Takes the flags from the command line. `false` if there is nothing to measure: help was asked
/// for, or this is no `cargo bench`, which passes `--bench`, but a `cargo test`, which does not.
pub(crate) fn parse(about: &str, flags: &mut [Flag<'_>]) -> Result<bool, String> {
    parse_with(about, flags, &mut [])
}

/// The same for a bench that has flags of other kinds, too.
pub(crate) fn parse_with(
    about: &str,
    flags: &mut [Flag<'_>],
    others: &mut [Other<'_>],
) -> Result<bool, String> {
    let mut parser = Parser::from_env();
    let (mut benching, mut unknown) = (false, None);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        let name = match argument {
            Arg::Long(name) => name.to_owned(),
            // A filter for the names of benches, which is not for this one.
            Arg::Value(_) => continue,
            Arg::Short(_) => return Err(argument.unexpected().to_string()),
        };
        let missing = |_| format!("--{name}: a value is missing");
        match others.iter_mut().find(|other| other.name() == name) {
            Some(Other::Switch { value, .. }) => {
                **value = true;
                continue;
            }
            Some(Other::Text { value, .. }) => {
                let text = parser.value().map_err(missing)?.string();
                **value = Some(text.map_err(|_| format!("--{name}: not UTF-8"))?);
                continue;
            }
            None => {}
        }
        match (name.as_str(), flags.iter_mut().find(|flag| flag.name == name)) {
            ("bench", _) => benching = true,
            ("help", _) => {
                print_help(about, flags, others);
                return Ok(false);
            }
            (_, Some(flag)) => {
                let value = parser.value().map_err(missing)?;
                *flag.value = value.parse().map_err(|error| format!("--{name}: {error}"))?;
            }
            // Perhaps one for a test harness, as `--list`; `--bench` comes last.
            (_, None) => unknown = Some(name),
        }
    }
    match unknown {
        Some(name) if benching => Err(format!("unknown flag --{name}; --help names all flags")),
        Some(_) | None => Ok(benching),
    }
}

fn print_help(about: &str, flags: &[Flag<'_>], others: &[Other<'_>]) {
    println!("{about}\n\nusage: cargo bench --bench NAME -- [flags]\n");
    for Flag { name, value, help } in flags {
        println!("  {:<16} {help} [{value}]", format!("--{name} N"));
    }
    for other in others {
        match other {
            Other::Text { name, help, .. } => println!("  {:<16} {help}", format!("--{name} TEXT")),
            Other::Switch { name, help, .. } => println!("  {:<16} {help}", format!("--{name}")),
        }
    }
}
