//! The proxy's flags.

use lexopt::Parser;
use tablecloth::limits;

use super::common::options::{self, Common};
use super::settings::{Settings, on_or_off};

/// The help text, without the common flags.
pub(crate) const HELP: &str = "\
  --listen ADDRESS         where clients connect; its --to follows
  --to ADDRESS             where that leads; several, separated by commas, are used
                           in turn; one that cannot be connected to is passed over,
                           and left alone for a while. Behind an address there may
                           be weight=N and backup
  --routes FILE            routes and settings, which HUP takes anew: every flag below
                           can stand in it (examples/proxy/README.md)

  --check                  say what is wrong with the routes, and use none of them: exit
                           status 0 if nothing is, and 1 if something is

for all routes, or in the file for one:
  --connect-timeout SECS   how long an upstream may take to be connected to; a fifth
                           of it, and at most 1, if there is another one [5]
  --idle-timeout SECS      a session is reset when nothing came for so long; 0 is
                           never [0]
  --half-closed-timeout SECS
                           the same for one of which one side has ended [300]
  --keepalive SECS         after so long without a byte the kernel asks whether the
                           peer is there, and gives up after as long again; 0 is
                           never [60]
  --send-proxy             tell upstreams who the client is: PROXY protocol, version 2
  --policy POLICY          round-robin, or fewest (sessions, for its weight)
                           [round-robin]
  --allow WHOM, --deny WHOM
                           who may connect: all, unix, ADDRESS or ADDRESS/BITS; of
                           several, the first that fits decides [allow all]
  --session-log            a line for each session that has ended

for the whole process:
  --cut-removed            an upgrade resets the sessions of routes that are gone;
                           without it they go on to their own end
  --max-sessions N         at that many, accepting pauses and clients wait in the
                           kernel's queue [65536, or as many as there are
                           descriptors for]
  --buffer-mib N           how much all sessions together may keep of what their
                           receivers do not take [64]";

/// What the flags say, and the file beyond them.
pub(crate) struct Options {
    /// `--listen` and its `--to`.
    pub(crate) pairs: Vec<(String, String)>,
    pub(crate) file: Option<String>,
    pub(crate) buffer_bytes: usize,
    pub(crate) cut_removed: bool,
    /// Only say whether they can be used.
    pub(crate) check: bool,
    pub(crate) settings: Settings,
    pub(crate) common: Common,
}

/// Takes the flags. `None` if help was asked for.
pub(crate) fn parse(mut parser: Parser) -> Result<Option<Options>, String> {
    let mut options = Options {
        pairs: Vec::new(),
        file: None,
        buffer_bytes: limits::RELAY_KEPT_BYTES,
        cut_removed: false,
        check: false,
        settings: Settings::default(),
        common: Common::new(),
    };
    // A --listen whose --to is still to come.
    let mut listen = None;
    while let Some(flag) = options::next_flag(&mut parser)? {
        match flag.as_str() {
            "--help" => return Ok(None),
            "--listen" => {
                if let Some(first) = listen.replace(options::text(&mut parser, &flag)?) {
                    return Err(format!("--listen {first}: its --to is missing"));
                }
            }
            "--to" => {
                let to = options::text(&mut parser, &flag)?;
                let Some(listen) = listen.take() else {
                    return Err(format!("--to {to}: its --listen is missing; it comes first"));
                };
                options.pairs.push((listen, to));
            }
            "--check" => options.check = true,
            "--routes" => options.file = Some(options::text(&mut parser, &flag)?),
            _ if options.take(&flag, &mut parser)? => {}
            _ => return Err(format!("unknown flag {flag}; --help names all flags")),
        }
    }
    if let Some(listen) = listen {
        return Err(format!("--listen {listen}: its --to is missing"));
    }
    match (&options.file, options.pairs.is_empty()) {
        (None, true) => Err("no route: --listen and --to, or --routes; --help says more".into()),
        (Some(_), false) => Err("--routes and --listen: expected one of them".into()),
        (Some(_), true) | (None, false) => Ok(Some(options)),
    }
}

impl Options {
    /// Takes a flag that can stand in the file as well, if it is one; its value follows in the parser.
    pub(crate) fn take(&mut self, flag: &str, parser: &mut Parser) -> Result<bool, String> {
        match flag {
            "--cut-removed" => self.cut_removed = on_or_off(parser, flag)?,
            "--max-sessions" => {
                let most = number(parser, flag)?;
                if most == 0 {
                    return Err(format!("{flag} 0: expected at least 1"));
                }
                self.common.config.max_sessions = most;
            }
            "--buffer-mib" => {
                self.buffer_bytes = number(parser, flag)?.saturating_mul(1024 * 1024);
            }
            _ => {
                return Ok(self.settings.take(flag, parser)? || self.common.take(flag, parser)?);
            }
        }
        Ok(true)
    }
}

fn number(parser: &mut Parser, flag: &str) -> Result<usize, String> {
    let text = options::text(parser, flag)?;
    text.parse().map_err(|_| format!("{flag} {text:?}: expected a number"))
}
