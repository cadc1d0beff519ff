//! An echo server whose listening socket belongs to a service manager (here `activate`), which
//! restarts it: on TERM it stops accepting, gives its sessions a second, and ends; then the next one
//! is started. Clients that come meanwhile wait in the kernel's queue.

use std::process::ExitCode;
use std::time::Duration;

use peer::{Flags, Sessions, words};
use tokio::signal::unix::{SignalKind, signal};

/// Nobody accepts meanwhile, so it is short.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> ExitCode {
    peer::report("activated", run().await)
}

async fn run() -> Result<(), String> {
    let flags = Flags::read()?;
    let mut terminated = signal(SignalKind::terminate()).map_err(words)?;
    let listener = peer::passed_listener()?;
    peer::write_pid(&flags.pid_file).map_err(words)?;
    let sessions = Sessions::new();
    tokio::select! {
        () = sessions.accept(&listener) => {}
        _ = terminated.recv() => {}
    }
    sessions.drain(DRAIN_TIMEOUT).await;
    Ok(())
}
