//! An echo server that shares its address by SO_REUSEPORT. To replace it, another one is started, and
//! when that one serves, this one is sent TERM: it stops accepting and waits for its sessions. It
//! knows of nothing else.

use std::process::ExitCode;

use peer::{BACKLOG, DRAIN_TIMEOUT, Flags, Sessions, words};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    peer::report("reuseport", run().await)
}

async fn run() -> Result<(), String> {
    let flags = Flags::read()?;
    let mut terminated = signal(SignalKind::terminate()).map_err(words)?;
    let socket = Socket::new(Domain::for_address(flags.listen), Type::STREAM, None);
    let socket = socket.map_err(words)?;
    socket.set_reuse_port(true).map_err(words)?;
    socket.set_nonblocking(true).map_err(words)?;
    socket.bind(&flags.listen.into()).map_err(words)?;
    socket.listen(BACKLOG).map_err(words)?;
    let listener = TcpListener::from_std(socket.into()).map_err(words)?;
    peer::write_pid(&flags.pid_file).map_err(words)?;
    let sessions = Sessions::new();
    tokio::select! {
        () = sessions.accept(&listener) => {}
        _ = terminated.recv() => {}
    }
    drop(listener);
    sessions.drain(DRAIN_TIMEOUT).await;
    Ok(())
}
