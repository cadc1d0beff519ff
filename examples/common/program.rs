//! What an example server does around its serving: flags, log, signals, exit status.

use std::process::ExitCode;

use lexopt::Parser;
use tablecloth::Config;

use super::options::{self, Common};
use super::{ctl, descriptors, init, logging, output};

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
const LISTEN: &str = "  --listen ADDRESS         HOST:PORT, [V6]:PORT, unix:/PATH or unix:@NAME";

impl Program {
    /// Runs it: `serve` is called with what the flags say. It calls [`logging::go`] when nothing needs the
    /// process to have one thread any more, and [`logging::finish`] before it says ready.
    pub(crate) fn run(&self, serve: impl FnOnce(Options) -> Result<(), String>) -> ExitCode {
        if let Some(status) = ctl::run(self.name) {
            return status;
        }
        let Self { name, help, listen } = *self;
        if let Some(status) = init::run(name) {
            return status;
        }
        Config::default().hold_signals();
        let help = format!("{help}\n\n{LISTEN}\n{:27}[{listen}]\n{}", "", options::HELP);
        run(name, &help, self.parse(Parser::from_env()), |options| {
            if let Some(error) = options::not_shared(&options.listen) {
                tablecloth::refuse(&error);
                return Err(error);
            }
            logging::start_buffered(options.common.log_level)?;
            descriptors::raise_limit();
            serve(options)
        })
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
        options.common.settle()?;
        Ok(Some(options))
    }
}

/// Runs a server with flags of its own: what they say, if they were not a question for help.
pub(crate) fn run<T>(
    name: &str,
    help: &str,
    parsed: Result<Option<T>, String>,
    serve: impl FnOnce(T) -> Result<(), String>,
) -> ExitCode {
    let (status, error) = match parsed {
        Ok(None) => {
            output::print(&format_args!("{help}"));
            return ExitCode::SUCCESS;
        }
        Ok(Some(options)) => {
            let served = serve(options);
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
    output::complain(name, &error);
    ExitCode::from(status)
}

/// Any error in its own words.
pub(crate) fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}
