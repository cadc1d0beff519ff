//! Pull the process out from under its connections.

mod address;
mod config;
mod error;
mod handler;
mod io_event;
pub mod limits;
mod listeners;
pub mod machine;
mod pid_file;
mod predecessor;
mod program;
mod remote;
mod report;
mod server;
mod sessions;
mod signals;
mod socket;
mod stream;
mod successor;
#[allow(unsafe_code)]
mod sys;
pub mod timers;
mod token;
pub mod wire;

pub use address::Address;
pub use config::Config;
pub use error::Error;
pub use handler::{Accepted, Context, Handler, Verdict};
pub use io_event::IoEvent;
pub use remote::{PredecessorWatch, Remote};
pub use report::{Cause, Failure, Report, Stage, Timings};
pub use server::Server;
pub use socket::SocketOptions;
pub use stream::Stream;

#[doc = include_str!("../state-machine.md")]
pub mod state_machine {}
