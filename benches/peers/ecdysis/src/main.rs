//! An echo server on ecdysis, as close to its own example (tokio_echo.rs) as an echo server can be:
//! HUP upgrades, the library writes the pid file and keeps the listener, and a process that was
//! replaced waits for its sessions.

use std::process::ExitCode;

use ecdysis::tokio_ecdysis::{SignalKind, StopOnShutdown, TokioEcdysisBuilder};
use futures::StreamExt;
use peer::{BACKLOG, DRAIN_TIMEOUT, Flags, Sessions, words};

#[tokio::main]
async fn main() -> ExitCode {
    peer::report("ecdysis", run().await)
}

async fn run() -> Result<(), String> {
    let flags = Flags::read()?;
    let mut builder = TokioEcdysisBuilder::new(SignalKind::hangup()).map_err(words)?;
    builder.stop_on_signal(SignalKind::terminate()).map_err(words)?;
    builder.set_pid_file(&flags.pid_file);
    let mut clients = builder
        .build_listen_tcp(StopOnShutdown::Yes, flags.listen, |socket, address| {
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .map_err(words)?;
    let sessions = Sessions::new();
    let accepting = {
        let sessions = sessions.clone();
        tokio::spawn(async move {
            // The stream ends when the process has been replaced.
            while let Some(client) = clients.next().await {
                match client {
                    Ok(stream) => sessions.serve(stream),
                    Err(error) => eprintln!("accept: {error}"),
                }
            }
        })
    };
    let (_ecdysis, replaced) = builder.ready().map_err(words)?;
    let _ = replaced.await?;
    accepting.await.map_err(words)?;
    sessions.drain(DRAIN_TIMEOUT).await;
    Ok(())
}
