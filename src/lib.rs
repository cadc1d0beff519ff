//! Pull the process out from under its connections.
//!
//! A single-threaded [mio](https://docs.rs/mio) reactor whose process can be replaced while it
//! serves. Listeners, client sockets, signals and the readiness pipe between the old process and
//! the new one are registered tokens, and one explicit state machine, `Running → Upgrading →
//! Draining → Exited`, decides what happens.
//!
//! - [`Server`] is what you make and run; [`Handler`] is what you write; [`Config`] has a default
//!   for everything.
//! - [`state_machine`] is the contract: every state, event and action, the timers, the signals and
//!   the invariants I1 to I7. [`machine`] is the code that it is held against.
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
//! # The house
//!
//! ```text
//!  service     relay                                           bytes between two sockets
//!  loop        server (turn, perform, handoff, moves)  handler  config  remote
//!  adapters    listeners sessions successor predecessor signals pid_file   never each other
//!  kernel      sys  program  socket  socket_file  stream  outbox  room  pace  report  io_event  token
//!                                                                  the only unsafe is in sys
//!  pure        limits  timers  failures  machine  wire  address  error  fault
//!                                                                  no descriptor, no clock
//! ```
//!
//! Imports point down only. Adapters never import each other; the server is the one place where
//! they meet. The machine decides, the server performs.
//!
//! # What a process must not do
//!
//! - Reap children that it does not know (`waitpid(-1)`), or ignore SIGCHLD: the exit status of a
//!   successor is then lost to it, though not the fact of its death (waitpid(2)).
//! - Start threads before [`Server::new`], if its children are to inherit a clean environment.
//! - Restore the default of SIGPIPE, which ends a successor whose predecessor dies just before it
//!   says ready; Rust programs ignore it.
//! - Work on for long after [`Server::run`] has returned: the successor begins no upgrade before
//!   this process has ended, and kills it after [`Config::longest_stay`] and a takeover timeout.
//! - Block in a [`Handler`]: while one of its methods runs, nobody else is served.

mod address;
mod config;
mod error;
mod failures;
#[doc(hidden)]
pub mod fault;
mod handler;
mod io_event;
pub mod limits;
mod listeners;
pub mod machine;
mod outbox;
mod pace;
mod pid_file;
mod predecessor;
mod program;
pub mod relay;
mod remote;
mod report;
mod room;
mod server;
mod sessions;
mod signals;
mod socket;
mod socket_file;
mod stream;
mod successor;
#[allow(unsafe_code)]
mod sys;
pub mod timers;
mod token;
pub mod wire;

pub use address::Address;
pub use config::{Config, OnPanic};
pub use error::Error;
pub use handler::{Accepted, Context, Handler, Packed, Verdict};
pub use io_event::IoEvent;
pub use remote::{PredecessorWatch, Remote};
pub use report::{Cause, Failure, Report, Stage, Timings};
pub use server::Server;
pub use socket::SocketOptions;
pub use stream::Stream;

#[doc = include_str!("../state-machine.md")]
pub mod state_machine {}

/// The README's code is compiled like any other documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
