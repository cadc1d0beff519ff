//! Pull the process out from under its connections.
//!
//! A single-threaded [mio](https://docs.rs/mio) reactor whose process can be replaced while it
//! serves. Listeners, client sockets, signals and the readiness pipe between the old process and
//! the new one are registered tokens, and one explicit state machine, `Running → Upgrading →
//! Draining → Exited`, decides what happens.
//!
//! - [`Server`] is what you make and run; [`Handler`] is what you write; [`Config`] has a default
//!   for everything.
//! - [`Upgrader`] is for a program that has a loop, a runtime or threads of its own: the same upgrades, and
//!   you serve.
//! - [`state_machine`] is the contract: every state, event and action, the timers, the signals and
//!   the invariants I1 to I8. [`machine`] is the code that it is held against.
//! - [`control`](fn@control) asks a server over its [admin endpoint](Upgrader#the-admin-endpoint); [`Counter`],
//!   [`Gauge`] and [`Histogram`] are numbers that it tells.
//! - [`init`](init()) has process 1 of a container start the server, and stay as a small process that is none.
//! - [`Report`] is how an upgrade ended, in numbers or in words.
//!
//! # An example
//!
//! Its program is the first process and every successor: [`Server::listen`] binds in the one and
//! inherits in the other.
//!
//! ```no_run
#![doc = include_str!("../examples/minimal.rs")]
//! ```
//!
//! # An upgrade
//!
#![doc = include_str!("upgrade.svg")]
//!
//! # Logging
//!
//! The library logs through [`log`], and says nothing without a logger: install one, such as `simplelog` or
//! `env_logger`, to see the lines that the README shows. It logs on the loop's thread for the most part, and so a
//! logger is part of the loop:
//!
//! - It must not block. While it waits for a reader, a disk or a lock, nobody is served, no signal is heard,
//!   and the other process of an upgrade may take this one for dead. A logger that writes to a pipe or a file
//!   puts its lines into a buffer with a bound, has another thread write them, and drops what does not fit.
//!   `examples/common/logging.rs` is one.
//! - It must not panic. A panic in it is one in the loop, and ends the process.
//! - A panic hook is part of the loop too: the one of the standard library writes to standard error, and
//!   waits for whoever reads that. One that logs the panic does not (`std::panic::set_hook`).
//!
//! How much is logged is bounded:
//!
//! - Each change of the state, each signal, each upgrade and each listener has a line or a few, whatever the
//!   clients do. At the level `info` an upgrade that goes well costs about ten.
//! - What a client can cause has the target [`CLIENTS`]: a connection that the handler refuses or that cannot
//!   be polled, and accepting that pauses. Of each kind there are ten lines a second at the most, and the next
//!   one says how many were left out ([`Throttle`] does it, also for handlers). A panic of a handler is an
//!   error of the process, with the same bound. At the level `debug` there may be a line for each broken
//!   connection.
//! - Sessions that cannot move are told once in each upgrade, in one line for all of them.
//!
//! # What a process must not do
//!
//! - Reap children that it does not know (`waitpid(-1)`), or ignore SIGCHLD while a server lives
//!   ([`Server::new`] sets it to its default if the parent has ignored it): the exit status of a
//!   successor is then lost to it, though not the fact of its death (waitpid(2)).
//! - Start threads before [`Server::new`] or [`Upgrader::new`], if its children are to inherit a clean environment.
//! - Restore the default of SIGPIPE, which ends a successor whose predecessor dies just before it
//!   says ready; Rust programs ignore it.
//! - Work on for long after [`Server::run`] has returned, or after [`Phase::Exited`]: the successor begins no upgrade before
//!   this process has ended, and kills it after [`Config::longest_stay`] and a takeover timeout.
//! - Block in a [`Handler`]: while one of its methods runs, nobody else is served.
//!
//! # The house
//!
//! Two wings on one ground. The upgrader replaces a process and knows no session; the server serves
//! sessions and knows no process. They meet where the server is built on the upgrader: `upgrader::Service` is
//! all that the one asks of the other.
//!
//! ```text
//!  wings       server                               upgrader
//!              wing  crew  door  acceptor           claims  turn  perform  service  alone
//!              handoff  moves  guard                estate  successor  predecessor
//!              sessions  pace                       pid_file  disk  worker  outbox  failures
//!                                                   announcer  notify  answers
//!              init                                 (beside both: it is a process of its own)
//!  for both    handler  handed_over  relay  config  remote  standing  report  ledger  admin
//!  kernel      sys  program  kinship  signals  socket  socket_file  stream  pollable  room  user  io_event  token
//!              control  shared                                     the only unsafe is in sys
//!  ground      machine  timers  wire  limits  throttle  address  error  fault  post
//!                                                                  no descriptor, no clock
//! ```
//!
//! Imports point down only, and nothing of one wing names a noun inside the other. The machine decides, the
//! upgrader performs. A test over the `use` lines holds this picture and the code together.

#![cfg_attr(
    not(feature = "admin"),
    allow(dead_code, reason = "some of what is known of a process is told by the endpoint alone")
)]

mod address;
#[cfg(feature = "admin")]
mod admin;
mod config;
#[cfg(feature = "admin")]
mod control;
mod error;
#[doc(hidden)]
pub mod fault;
mod handed_over;
mod handler;
mod init;
mod io_event;
mod kinship;
mod ledger;
#[doc(hidden)]
pub mod limits;
pub mod machine;
mod pollable;
mod post;
mod program;
pub mod relay;
mod remote;
mod report;
mod room;
mod server;
mod shared;
mod signals;
mod socket;
mod socket_file;
mod standing;
mod stream;
#[allow(unsafe_code)]
mod sys;
mod throttle;
#[doc(hidden)]
pub mod timers;
mod token;
mod upgrader;
mod user;
#[doc(hidden)]
pub mod wire;

pub use address::Address;
pub use config::{Config, OnPanic};
#[cfg(feature = "admin")]
pub use control::{Control, Controlled, control};
pub use error::Error;
pub use handed_over::HandedOver;
pub use handler::{Accepted, Context, Handler, Packed, Rehearsal, Verdict};
pub use init::{Init, init};
pub use io_event::IoEvent;
pub use ledger::{Counter, Gauge, Histogram};
pub use limits::{
    DRAIN_INTERVAL, MESSAGE_BYTES, SESSION_DESCRIPTORS, SOURCES, STATE_BYTES, STATE_DESCRIPTORS,
};
pub use machine::State;
/// Its sockets and events stand in signatures here.
pub use mio;
pub use pollable::Pollable;
pub use post::TellError;
pub use program::worker;
pub use remote::{PredecessorWatch, Remote, UpgradeAnswer};
pub use report::{Cause, Failure, Moved, Report, Stage, Timings};
pub use server::{Ended, Reactor, Server};
pub use socket::SocketOptions;
pub use stream::Stream;
pub use throttle::{Throttle, Unsaid};
pub use token::SessionId;
pub use upgrader::{End, Notice, Phase, Upgrader, refuse};

/// The target (`log::Record::target`) of the lines that a client can cause: about a connection that is
/// refused or broken, and about accepting that pauses. Of each kind there are at most ten a second. A
/// logger that has to drop lines drops these first.
pub const CLIENTS: &str = "tablecloth::clients";

pub mod coming_from;

#[doc = include_str!("../state-machine.md")]
pub mod state_machine {}

/// The README's code is compiled like any other documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
