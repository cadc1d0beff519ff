//! What makes the server replace itself.

use rustix::process::Signal;

#[derive(Clone)]
pub(crate) enum Trigger {
    /// To the process that serves.
    Signal(Signal, &'static str),
    /// For `sh -c`.
    Command(String),
    /// The address of an admin endpoint of this library.
    Admin(String),
}

impl Trigger {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Trigger::Signal(..) => "signal",
            Trigger::Command(_) => "command",
            Trigger::Admin(_) => "admin",
        }
    }

    pub(crate) fn signal_name(&self) -> Option<&'static str> {
        match self {
            Trigger::Signal(_, name) => Some(name),
            Trigger::Command(_) | Trigger::Admin(_) => None,
        }
    }

    /// Whether each of them has an end that tells how it went.
    pub(crate) fn has_outcome(&self) -> bool {
        match self {
            Trigger::Signal(..) => false,
            Trigger::Command(_) | Trigger::Admin(_) => true,
        }
    }
}

impl std::fmt::Display for Trigger {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trigger::Signal(_, name) => write!(formatter, "the signal {name}"),
            Trigger::Command(command) => write!(formatter, "the command {command}"),
            Trigger::Admin(address) => write!(formatter, "the endpoint {address}"),
        }
    }
}
