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
    run_with(program, |init| init)
}

/// The same with an init that has more to do.
pub(crate) fn run_with(program: &str, furnish: impl FnOnce(Init) -> Init) -> Option<ExitCode> {
    // A question is answered by one process.
    if ["--help", "-h", "--check"].into_iter().any(is_said) {
        return None;
    }
    let init = Init::default().always(is_said("--init"));
    let init = match value_of("--workers") {
        Some(file) if options::is_path(&file) => init.always(true).workers_in(file),
        Some(number) => match number.parse() {
            Ok(workers) if options::WORKERS.contains(&workers) => {
                init.always(workers > 1 || is_said("--init")).workers(workers)
            }
            // A mistake is the server's to complain about.
            Ok(_) | Err(_) => init,
        },
        None => init,
    };
    let init = match value_of("--admin") {
        Some(address) => init.admin(options::admin_address(&address)),
        None => init,
    };
    let init = furnish(init);
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

fn is_said(flag: &str) -> bool {
    env::args_os().any(|argument| argument == flag)
}

/// What follows a flag, or stands behind its `=`; the last time counts, as it does for the server.
pub(crate) fn value_of(flag: &str) -> Option<String> {
    let mut arguments = env::args_os().filter_map(|argument| argument.into_string().ok());
    let mut found = None;
    while let Some(argument) = arguments.next() {
        if argument == flag {
            found = arguments.next();
        } else if let Some(rest) = argument.strip_prefix(flag) {
            found = rest.strip_prefix('=').map(str::to_owned).or(found);
        }
    }
    found
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
