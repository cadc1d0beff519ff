//! An echo server on shellflip, as close to its own example (restarter.rs) as an echo server can be.
//! The library does not pass sockets on by itself. It mends LISTEN_PID for the next process, so that a
//! socket of a service manager stays open from process to process: that is how its listener comes
//! here, and `activate --once` is the service manager.
//!
//! HUP upgrades. A successor that fails does not end the server, which is not the library's default:
//! with `exit_on_error` a bad program ends it.

use std::process::ExitCode;

use peer::{DRAIN_TIMEOUT, Flags, Sessions, words};
use shellflip::RestartConfig;
use tokio::signal::unix::SignalKind;

#[tokio::main]
async fn main() -> ExitCode {
    peer::report("shellflip", run().await)
}

async fn run() -> Result<(), String> {
    let flags = Flags::read()?;
    let config = RestartConfig {
        restart_signal: SignalKind::hangup(),
        exit_on_error: false,
        ..RestartConfig::default()
    };
    // It mends LISTEN_PID, too.
    let restarted = config.try_into_restart_task().map_err(words)?;
    let listener = peer::passed_listener()?;
    let sessions = Sessions::new();
    shellflip::startup_complete().map_err(words)?;
    peer::write_pid(&flags.pid_file).map_err(words)?;
    tokio::select! {
        () = sessions.accept(&listener) => {}
        child = restarted => drop(child.map_err(words)?),
    }
    drop(listener);
    sessions.drain(DRAIN_TIMEOUT).await;
    Ok(())
}
