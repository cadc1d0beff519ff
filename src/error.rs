//! What can go wrong before a server runs. Each error names the operation and the object.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a server could not be set up, or had to end.
///
/// Its text is one line, fit for standard error.
#[non_exhaustive]
pub enum Error {
    /// A text that is no address, or a host name that cannot be resolved.
    Address {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that cannot be used.
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A named socket or file could not be made.
    Open {
        /// The name.
        name: String,
        /// Where it was to be: an address, or what it is.
        place: String,
        /// The step that failed: the name of the system call.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A descriptor from the predecessor is not what its name stands for.
    Inherited {
        /// The name.
        name: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The handoff variable, or what it points to, was not made by a predecessor.
    Environment {
        /// What is wrong.
        reason: String,
    },
    /// What a service manager passes on is not what its variables say (LISTEN_FDS, sd_listen_fds(3)).
    Activation {
        /// What is wrong.
        reason: String,
    },
    /// The predecessor and this build do not understand each other.
    Handoff {
        /// What is wrong.
        reason: String,
    },
    /// A signal that cannot be handled.
    Signal {
        /// Its number.
        signal: i32,
        /// Why not.
        reason: String,
    },
    /// The user that the process is to become, or that it cannot.
    User {
        /// The user, as it was said.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// There is another server in this process, and signals and the handoff belong to it.
    AnotherServer,
    /// The pid file cannot be written.
    PidFile {
        /// The file.
        path: PathBuf,
        /// The step that failed.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The pid file must not be written: another service holds it, it is no regular file, or it
    /// belongs to another user in a directory with the sticky bit.
    PidFileRefused {
        /// The file.
        path: PathBuf,
        /// What is in the way, and what can be done about it.
        reason: String,
    },
    /// The predecessor did not commit to this process in time, and is not dead: the listeners are
    /// its own, this process must not accept.
    NotCommitted {
        /// How long this process has waited, ready.
        deadline: Duration,
    },
    /// The predecessor has given this process up before it was proven, and goes on by itself, or was
    /// told to stop.
    GivenUp,
    /// A method of the handler panicked, in a successor that was not proven yet.
    Panicked {
        /// The method.
        method: &'static str,
    },
    /// What the predecessor's application has handed over cannot be taken over; the predecessor goes on.
    TakeOver {
        /// What is wrong with it.
        source: io::Error,
    },
    /// The schemas that the handler says it understands are none: an empty range, or one with 0 in it.
    Schemas {
        /// The oldest.
        oldest: u32,
        /// The newest.
        newest: u32,
    },
    /// The system refused something that every server needs.
    System {
        /// What was refused.
        operation: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: the system refused `operation`.
    pub(crate) fn system<E: Into<io::Error>>(operation: &'static str) -> impl Fn(E) -> Self + Copy {
        move |source| Self::System { operation, source: source.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { text, reason } => write!(f, "address {text:?}: {reason}"),
            Self::Name { name, reason } => write!(f, "name {name:?}: {reason}"),
            Self::Open { name, place, step, source } => {
                write!(f, "{name:?} on {place}: {step}: {source}{}", hint(place, step, source))
            }
            Self::Inherited { name, expected, found } => {
                write!(f, "inherited {name:?}: expected {expected}, found {found}")
            }
            Self::Environment { reason } => {
                write!(f, "environment variable {}: {reason}", crate::wire::VARIABLE)
            }
            Self::Activation { reason } => {
                write!(f, "sockets of the service manager: {reason}")
            }
            Self::Handoff { reason } => write!(f, "handoff from the predecessor: {reason}"),
            Self::User { text, reason } => write!(f, "user {text:?}: {reason}"),
            Self::Signal { signal, reason } => write!(f, "signal {signal}: {reason}"),
            Self::AnotherServer => f.write_str(
                "another server lives in this process and has its signals: let it end, or drop it, \
                 before the next one is made",
            ),
            Self::PidFile { path, step, source } => {
                write!(f, "pid file {}: {step}: {source}", path.display())
            }
            Self::PidFileRefused { path, reason } => {
                write!(f, "pid file {}: {reason}", path.display())
            }
            Self::NotCommitted { deadline } => write!(
                f,
                "the predecessor did not commit to this process within {deadline:?}, and keeps its \
                 listeners",
            ),
            Self::GivenUp => f.write_str("the predecessor has given this process up"),
            Self::TakeOver { source } => {
                write!(f, "the state that the predecessor has handed over: {source}")
            }
            Self::Panicked { method } => write!(
                f,
                "the handler's method `{method}` panicked before this process was proven; the \
                 predecessor goes on",
            ),
            Self::Schemas { oldest, newest } => write!(
                f,
                "schemas {oldest} to {newest}: the oldest comes first, and the least is 1; answer \
                 `None` for sessions that do not move",
            ),
            Self::System { operation, source } => write!(f, "{operation}: {source}"),
        }
    }
}

/// What can be done about a low port (ip(7)): the processes of a service that has dropped to a user have those that it
/// was started with, and get no other.
fn hint(place: &str, step: &str, source: &io::Error) -> &'static str {
    let is_refused = step == "bind" && source.kind() == io::ErrorKind::PermissionDenied;
    let port = place.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(port) if is_refused && port < 1024 => {
            "; only root binds a port below 1024, and this process can inherit one: start the service anew, as \
             root, or take a port from 1024 on"
        }
        Some(_) | None => "",
    }
}

impl std::error::Error for Error {
    /// What is behind the system's answer, which is in the text already.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open { source, .. }
            | Self::PidFile { source, .. }
            | Self::TakeOver { source }
            | Self::System { source, .. } => source.source(),
            Self::Address { .. }
            | Self::Name { .. }
            | Self::Inherited { .. }
            | Self::Environment { .. }
            | Self::Activation { .. }
            | Self::Handoff { .. }
            | Self::Signal { .. }
            | Self::User { .. }
            | Self::PidFileRefused { .. }
            | Self::AnotherServer
            | Self::NotCommitted { .. }
            | Self::GivenUp
            | Self::Panicked { .. }
            | Self::Schemas { .. } => None,
        }
    }
}

/// The same line as [`Display`](fmt::Display) has, because that is what a `main` that answers this error
/// prints.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Open { source, .. }
            | Error::PidFile { source, .. }
            | Error::TakeOver { source }
            | Error::System { source, .. } => source.kind(),
            Error::Address { .. }
            | Error::Name { .. }
            | Error::Signal { .. }
            | Error::User { .. }
            | Error::Schemas { .. }
            | Error::PidFileRefused { .. } => io::ErrorKind::InvalidInput,
            Error::Inherited { .. }
            | Error::Environment { .. }
            | Error::Activation { .. }
            | Error::Handoff { .. } => io::ErrorKind::InvalidData,
            Error::NotCommitted { .. } => io::ErrorKind::TimedOut,
            Error::AnotherServer | Error::GivenUp | Error::Panicked { .. } => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_in_every_way_to_print_it_and_says_the_system_s_answer_once() {
        let source = io::Error::from_raw_os_error(nix::libc::EADDRINUSE);
        let (name, place) = ("web".into(), "127.0.0.1:80".into());
        let error = Error::Open { name, place, step: "bind", source };
        assert_eq!(format!("{error:?}"), error.to_string());
        assert!(std::error::Error::source(&error).is_none(), "{error}");
        let error = io::Error::from(error);
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(error.to_string().matches("in use").count(), 1, "{error}");
    }
}
