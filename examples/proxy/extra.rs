//! What this proxy's settings have beyond those of every proxy: nothing.

use lexopt::Parser;

/// Settings of a route that only one of the proxies has.
#[derive(Clone, Debug)]
pub(crate) struct Extra;

impl Extra {
    pub(crate) fn new() -> Self {
        Self
    }

    /// Those of a route, before it has said anything itself.
    #[allow(clippy::unused_self, reason = "others have something to hand on")]
    pub(crate) fn for_route(&self) -> Self {
        Self
    }

    /// Takes a flag, if it is one of these; its value follows in the parser.
    #[allow(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "others have something to take"
    )]
    pub(crate) fn take(&mut self, _: &str, _: &mut Parser) -> Result<bool, String> {
        Ok(false)
    }

    /// What is wrong with them, as far as that is found out without a server.
    #[allow(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "others have something to say"
    )]
    pub(crate) fn check(&self) -> Result<(), String> {
        Ok(())
    }
}
