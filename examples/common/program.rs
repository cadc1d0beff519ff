//! What an example server does around its serving: flags, log, signals, exit status.

use std::process::ExitCode;

use lexopt::Parser;
use tablecloth::Config;

use super::options::{self, Common};
use super::{descriptors, logging, output};

/// A server with one listener.
pub(crate) struct Program {
    /// By which its errors begin.
    pub(crate) name: &'static str,
    /// The first lines of its help.
    pub(crate) help: &'static str,
    /// Where it listens if nothing is said.
    pub(crate) listen: &'static str,
}

/// What its flags say.
pub(crate) struct Options {
    pub(crate) listen: String,
    pub(crate) common: Common,
}

/// The help of `--listen`.
const LISTEN: &str = "\
  --listen ADDRESS         HOST:PORT, [V6]:PORT, unix:/PATH or unix:@NAME";

impl Program {
    /// Runs it: `serve` is called with what the flags say. It calls [`logging::go`] when nothing needs the
    /// process to have one thread any more, and [`logging::finish`] before it says ready.
    pub(crate) fn run(&self, serve: impl FnOnce(Options) -> Result<(), String>) -> ExitCode {
        Config::default().hold_signals();
        let (status, error) = match self.parse(Parser::from_env()) {
            Ok(None) => {
                let (help, listen) = (self.help, self.listen);
                output::print(&format_args!(
                    "{help}\n\n{LISTEN}\n{:27}[{listen}]\n{}",
                    "",
                    options::HELP
                ));
                return ExitCode::SUCCESS;
            }
            Ok(Some(options)) => {
                let served = logging::start_buffered(options.common.log_level).and_then(|()| {
                    descriptors::raise_limit();
                    serve(options)
                });
                logging::finish();
                match served {
                    Ok(()) => return ExitCode::SUCCESS,
                    Err(error) => (1, error),
                }
            }
            Err(error) => {
                tablecloth::refuse(&error);
                (2, error)
            }
        };
        output::complain(self.name, &error);
        ExitCode::from(status)
    }

    fn parse(&self, mut parser: Parser) -> Result<Option<Options>, String> {
        let mut options = Options { listen: self.listen.into(), common: Common::new() };
        while let Some(flag) = options::next_flag(&mut parser)? {
            match flag.as_str() {
                "--help" => return Ok(None),
                "--listen" => options.listen = options::text(&mut parser, &flag)?,
                _ if options.common.take(&flag, &mut parser)? => {}
                _ => return Err(format!("unknown flag {flag}; --help names all flags")),
            }
        }
        Ok(Some(options))
    }
}

/// Any error in its own words.
pub(crate) fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}
