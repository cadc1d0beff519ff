//! The proxy's flags.
use lexopt::Parser;
use tablecloth::limits;
use tablecloth::relay::Patience;

use super::common::options::{self, Common};
use super::session::Settings;

/// The help text, without the common flags.
pub(crate) const HELP: &str = "\
A TCP proxy that is replaced on HUP while its sessions go on.

usage: proxy --listen ADDRESS --to ADDRESS [--listen ADDRESS --to ADDRESS ...] [flags]
       proxy --routes FILE [flags]

An address is HOST:PORT, [V6]:PORT, unix:/PATH or unix:@NAME. Host names are looked up
at the start and with every HUP.

  --listen ADDRESS         where clients connect; its --to follows
  --to ADDRESS             where that leads; several, separated by commas, are used
                           in turn, and one that cannot be connected to is passed over
  --routes FILE            a line for each: LISTEN -> UPSTREAM[, UPSTREAM...]; what
                           follows a # is a comment. HUP takes the file anew
  --cut-removed            an upgrade cuts the sessions of routes that are gone;
                           without it they go on to their own end
  --max-sessions N         at that many, accepting pauses and clients wait in the
                           kernel's queue [65536, or as many as there are
                           descriptors for]
  --connect-timeout SECS   how long an upstream may take to be connected to [5]
  --idle-timeout SECS      a session is closed when nothing came for so long; 0 is
                           never [0]
  --buffer-mib N           how much all sessions together may keep of what their
                           receivers do not take [64]
  --send-proxy             tell upstreams who the client is: PROXY protocol, version 2";

/// What the flags say.
pub(crate) struct Options {
    /// `--listen` and its `--to`.
    pub(crate) pairs: Vec<(String, String)>,
    pub(crate) file: Option<String>,
    pub(crate) buffer_bytes: usize,
    pub(crate) settings: Settings,
    pub(crate) common: Common,
}

/// Takes the flags. `None` if help was asked for.
pub(crate) fn parse(mut parser: Parser) -> Result<Option<Options>, String> {
    let mut options = Options {
        pairs: Vec::new(),
        file: None,
        buffer_bytes: limits::RELAY_KEPT_BYTES,
        settings: Settings { patience: Patience::default(), send_proxy: false, cut_removed: false },
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
            "--routes" => options.file = Some(options::text(&mut parser, &flag)?),
            "--cut-removed" => options.settings.cut_removed = true,
            "--send-proxy" => options.settings.send_proxy = true,
            "--max-sessions" => {
                let most = number(&mut parser, &flag)?;
                if most == 0 {
                    return Err(format!("{flag} 0: expected at least 1"));
                }
                options.common.config.max_sessions = most;
            }
            "--buffer-mib" => {
                options.buffer_bytes = number(&mut parser, &flag)?.saturating_mul(1024 * 1024);
            }
            "--connect-timeout" => {
                options.settings.patience.connect = options::seconds(&mut parser, &flag)?;
            }
            "--idle-timeout" => {
                let idle = options::seconds(&mut parser, &flag)?;
                options.settings.patience.idle = Some(idle).filter(|idle| !idle.is_zero());
            }
            _ if options.common.take(&flag, &mut parser)? => {}
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

fn number(parser: &mut Parser, flag: &str) -> Result<usize, String> {
    let text = options::text(parser, flag)?;
    text.parse().map_err(|_| format!("{flag} {text:?}: expected a number"))
}
