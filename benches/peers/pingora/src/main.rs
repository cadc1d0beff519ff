//! An echo server on pingora, as close to its own example (service/echo.rs) as an echo server can be.
//! A second process is started beside the first with `--upgrade`, here by UPGRADE=1 so that both have
//! the same command line, and the first is sent QUIT: then it passes its listener on.
//!
//! A process that was replaced stays for all of its grace period, whether it has sessions or not.

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use peer::{DRAIN_TIMEOUT, Flags};
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{RunArgs, Server, ShutdownWatch};
use pingora_core::services::listening::Service;

struct Echo;

#[async_trait]
impl ServerApp for Echo {
    async fn process_new(self: &Arc<Self>, stream: Stream, _: &ShutdownWatch) -> Option<Stream> {
        peer::echo(stream).await;
        None
    }
}

fn main() -> ExitCode {
    peer::report("pingora", run())
}

fn run() -> Result<(), String> {
    let flags = Flags::read()?;
    let pid_file = flags.pid_file.clone();
    let options = Opt { upgrade: std::env::var_os("UPGRADE").is_some(), ..Opt::default() };
    let conf = ServerConf {
        upgrade_sock: flags.pid_file.with_extension("sock").display().to_string(),
        grace_period_seconds: Some(DRAIN_TIMEOUT.as_secs()),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(options, conf);
    // With an upgrade, this waits for the listener.
    server.bootstrap();
    let mut service = Service::new("echo".to_owned(), Echo);
    service.add_tcp(&flags.listen.to_string());
    server.add_service(service);
    let mut phases = server.watch_execution_phase();
    // It writes a pid file only where it becomes a daemon.
    std::thread::spawn(move || {
        while let Ok(phase) = phases.blocking_recv() {
            if matches!(phase, pingora_core::server::ExecutionPhase::Running) {
                if let Err(error) = peer::write_pid(&pid_file) {
                    eprintln!("pingora: {}: {error}", pid_file.display());
                }
                return;
            }
        }
    });
    server.run(RunArgs::default());
    Ok(())
}
