//! What can be set for all routes, or for one.

use std::time::Duration;

use lexopt::Parser;
use tablecloth::relay::Patience;

use super::access::Access;
use super::common::options::{seconds, text};
use super::extra::Extra;
use super::upstreams::Policy;

/// What holds for the sessions of a route.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) patience: Patience,
    /// After how long without a byte the kernel asks whether the peer is still there.
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) send_proxy: bool,
    pub(crate) session_log: bool,
    pub(crate) policy: Policy,
    pub(crate) access: Access,
    pub(crate) extra: Extra,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            patience: Patience::default(),
            keep_alive: Some(Duration::from_secs(60)),
            send_proxy: false,
            session_log: false,
            policy: Policy::default(),
            access: Access::default(),
            extra: Extra::new(),
        }
    }
}

impl Settings {
    /// Takes a flag, if it is one of these; its value follows in the parser.
    pub(crate) fn take(&mut self, flag: &str, parser: &mut Parser) -> Result<bool, String> {
        match flag {
            "--connect-timeout" => self.patience.connect = seconds(parser, flag)?,
            "--idle-timeout" => self.patience.idle = time_or_never(parser, flag)?,
            "--half-closed-timeout" => self.patience.half_closed = time_or_never(parser, flag)?,
            "--keepalive" => self.keep_alive = time_or_never(parser, flag)?,
            "--send-proxy" => self.send_proxy = on_or_off(parser, flag)?,
            "--session-log" => self.session_log = on_or_off(parser, flag)?,
            "--policy" => {
                self.policy = match text(parser, flag)?.as_str() {
                    "round-robin" => Policy::RoundRobin,
                    "fewest" => Policy::Fewest,
                    other => {
                        return Err(format!("{flag} {other:?}: expected round-robin or fewest"));
                    }
                }
            }
            "--allow" | "--deny" => {
                let whom = text(parser, flag)?;
                let added = self.access.add(flag == "--allow", &whom);
                added.map_err(|expected| format!("{flag} {whom:?}: {expected}"))?;
            }
            _ => return self.extra.take(flag, parser),
        }
        Ok(true)
    }

    /// Those of a route, before it has said anything itself.
    pub(crate) fn for_route(&self) -> Self {
        let (access, extra) = (self.access.for_route(), self.extra.for_route());
        Self { access, extra, ..self.clone() }
    }
}

/// A number of seconds, of which 0 is never.
fn time_or_never(parser: &mut Parser, flag: &str) -> Result<Option<Duration>, String> {
    Ok(Some(seconds(parser, flag)?).filter(|time| !time.is_zero()))
}

/// A flag is on by itself, and off by `=off`.
pub(crate) fn on_or_off(parser: &mut Parser, flag: &str) -> Result<bool, String> {
    match parser.optional_value().as_deref().map(|value| value.to_string_lossy()) {
        None => Ok(true),
        Some(value) if value == "on" => Ok(true),
        Some(value) if value == "off" => Ok(false),
        Some(value) => Err(format!("{flag} {value:?}: expected on or off")),
    }
}
