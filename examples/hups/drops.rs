//! What went wrong, by kind: connections dropped by the server, and failures of the client's own.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use nix::errno::Errno;

/// How many drops are kept in full, for the report to show.
const EXAMPLES: usize = 10;

/// A connection made for one request, or one that is kept.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Class {
    Short,
    Long,
}

impl Class {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Class::Short => "short",
            Class::Long => "long",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum DropKind {
    Refused,
    Reset,
    EndOfFile,
    /// What came is no answer, or more than one.
    WrongBytes,
    /// It is a whole answer, and not the one expected.
    WrongAnswer,
    Timeout,
    Other,
}

impl DropKind {
    pub(crate) const ALL: [DropKind; 7] = [
        DropKind::Refused,
        DropKind::Reset,
        DropKind::EndOfFile,
        DropKind::WrongBytes,
        DropKind::WrongAnswer,
        DropKind::Timeout,
        DropKind::Other,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            DropKind::Refused => "refused",
            DropKind::Reset => "reset",
            DropKind::EndOfFile => "end_of_file",
            DropKind::WrongBytes => "wrong_bytes",
            DropKind::WrongAnswer => "wrong_answer",
            DropKind::Timeout => "timeout",
            DropKind::Other => "other",
        }
    }
}

/// Why a connection was given up.
#[derive(Clone, Copy)]
pub(crate) struct Failure {
    pub(crate) kind: DropKind,
    /// While it was made, written to, read from, or had nothing to do.
    pub(crate) stage: &'static str,
    pub(crate) errno: Option<i32>,
}

impl Failure {
    pub(crate) fn new(kind: DropKind, stage: &'static str) -> Failure {
        Failure { kind, stage, errno: None }
    }

    pub(crate) fn from_error(error: &io::Error, stage: &'static str) -> Failure {
        const KINDS: [(io::ErrorKind, DropKind); 5] = [
            (io::ErrorKind::ConnectionRefused, DropKind::Refused),
            (io::ErrorKind::ConnectionReset, DropKind::Reset),
            (io::ErrorKind::BrokenPipe, DropKind::Reset),
            (io::ErrorKind::TimedOut, DropKind::Timeout),
            (io::ErrorKind::UnexpectedEof, DropKind::EndOfFile),
        ];
        let known = KINDS.into_iter().find(|(kind, _)| *kind == error.kind());
        let kind = known.map_or(DropKind::Other, |(_, kind)| kind);
        Failure { kind, stage, errno: error.raw_os_error() }
    }
}

/// One drop in full.
pub(crate) struct Example {
    pub(crate) at: Instant,
    pub(crate) class: Class,
    pub(crate) failure: Failure,
    /// How much of the answer had come.
    pub(crate) received_bytes: usize,
}

impl Example {
    fn is_unanswered(&self) -> bool {
        let is_closed = matches!(self.failure.kind, DropKind::EndOfFile | DropKind::Reset);
        is_closed && self.failure.stage == "read" && self.received_bytes == 0
    }
}

#[derive(Default)]
pub(crate) struct Drops {
    short: [u64; DropKind::ALL.len()],
    long: [u64; DropKind::ALL.len()],
    pub(crate) examples: Vec<Example>,
    /// Those of a connection that the server closed after a request and before any of its answer.
    pub(crate) unanswered: u64,
    pub(crate) other_errors: BTreeMap<String, u64>,
    /// What the client could not do for want of descriptors, ports or memory.
    pub(crate) client_errors: BTreeMap<String, u64>,
}

impl Drops {
    pub(crate) fn add(&mut self, example: Example) {
        let counts = match example.class {
            Class::Short => &mut self.short,
            Class::Long => &mut self.long,
        };
        counts[example.failure.kind as usize] += 1;
        self.unanswered += u64::from(example.is_unanswered());
        if example.failure.kind == DropKind::Other {
            let name = example.failure.errno.map_or("unknown".to_string(), errno_name);
            *self.other_errors.entry(name).or_default() += 1;
        }
        if self.examples.len() < EXAMPLES {
            self.examples.push(example);
        }
    }

    pub(crate) fn add_client_error(&mut self, error: &io::Error) {
        let name = error.raw_os_error().map_or_else(|| error.to_string(), errno_name);
        *self.client_errors.entry(name).or_default() += 1;
    }

    pub(crate) fn of_class(&self, class: Class, kind: DropKind) -> u64 {
        match class {
            Class::Short => self.short[kind as usize],
            Class::Long => self.long[kind as usize],
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.short.iter().chain(&self.long).sum()
    }

    pub(crate) fn client_error_total(&self) -> u64 {
        self.client_errors.values().sum()
    }
}

/// Whether a failed connect says something of this process, and nothing of the server.
pub(crate) fn is_client_error(error: &io::Error) -> bool {
    let Some(code) = error.raw_os_error() else {
        return false;
    };
    let own = [
        Errno::EMFILE,
        Errno::ENFILE,
        Errno::EADDRNOTAVAIL,
        Errno::EADDRINUSE,
        Errno::ENOBUFS,
        Errno::ENOMEM,
    ];
    own.contains(&Errno::from_raw(code))
}

pub(crate) fn errno_name(code: i32) -> String {
    format!("{:?}", Errno::from_raw(code))
}
