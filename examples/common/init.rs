//! The small process that stays, where the server is not to be the first one: `--init`, or as process 1.

use std::env;
use std::io::{self, LineWriter, Write};
use std::process::ExitCode;

use log::LevelFilter;
use simplelog::WriteLogger;
use tablecloth::Init;

use super::{logging, options, output};

/// The status to leave with, in the process that was the init. Called before anything else; the flags are looked for
/// and not parsed, because a mistake in them is the server's to complain about.
pub(crate) fn run(program: &str) -> Option<ExitCode> {
    let init = Init::default().always(is_asked_for());
    let init = match value_of("--workers") {
        Some(file) if options::is_path(&file) => init.always(true).workers_in(file),
        // A mistake is the server's to complain about.
        Some(number) => {
            let workers = number.parse().unwrap_or(1);
            init.always(workers > 1 || is_asked_for()).workers(workers)
        }
        None => init,
    };
    let init = match value_of("--admin") {
        Some(address) => init.admin(options::admin_address(&address)),
        None => init,
    };
    if init.is_wanted() {
        let level = value_of("--log-level").and_then(|level| level.parse().ok());
        let level = level.unwrap_or(LevelFilter::Info);
        // Without a log it does the same.
        let _ = logging::form().map(|form| WriteLogger::init(level, form, LineWriter::new(Stderr)));
    }
    match init.run() {
        Ok(status) => status,
        Err(error) => {
            output::complain(program, &error);
            Some(ExitCode::FAILURE)
        }
    }
}

fn is_asked_for() -> bool {
    env::args_os().any(|argument| argument == "--init")
}

/// What follows a flag, or stands behind its `=`.
fn value_of(flag: &str) -> Option<String> {
    let mut arguments = env::args_os().filter_map(|argument| argument.into_string().ok());
    loop {
        let argument = arguments.next()?;
        if argument == flag {
            return arguments.next();
        }
        if let Some(value) = argument.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
            return Some(value.into());
        }
    }
}

/// Standard error, as far as it takes a line in time: an init has one thread, and says little.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        output::complain_in_full(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
