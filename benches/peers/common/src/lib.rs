//! What the peers share: flags, an echo, the pid file, and how long they wait for their sessions.
//! What is particular to a library is not here.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

/// How long a process that was replaced waits for its sessions: as the demo's `--drain-timeout` has
/// it by default.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How many clients the kernel keeps until they are accepted.
pub const BACKLOG: i32 = 1024;

/// The first descriptor that a service manager passes (sd_listen_fds(3)).
const FIRST_PASSED: i32 = 3;

const BUFFER_BYTES: usize = 16 * 1024;

/// The command line of every peer: `--listen ADDRESS --pid-file FILE`.
pub struct Flags {
    pub listen: SocketAddr,
    pub pid_file: PathBuf,
}

impl Flags {
    pub fn read() -> Result<Flags, String> {
        let mut parser = Parser::from_env();
        let (mut listen, mut pid_file) = (None, None);
        while let Some(argument) = parser.next().map_err(words)? {
            match argument {
                Arg::Long("listen") => {
                    let value = parser.value().map_err(words)?;
                    listen = Some(value.parse().map_err(words)?);
                }
                Arg::Long("pid-file") => {
                    pid_file = Some(parser.value().map_err(words)?.into());
                }
                Arg::Long(_) | Arg::Short(_) | Arg::Value(_) => {
                    return Err(words(argument.unexpected()));
                }
            }
        }
        let listen = listen.ok_or("--listen ADDRESS is missing")?;
        let pid_file = pid_file.ok_or("--pid-file FILE is missing")?;
        Ok(Flags { listen, pid_file })
    }
}

/// Any error in its own words.
pub fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// How a peer ends.
pub fn report(peer: &str, result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{peer}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Names this process in a file that nobody sees half written.
pub fn write_pid(file: &Path) -> io::Result<()> {
    let own = std::process::id();
    let new = file.with_extension(format!("{own}"));
    fs::write(&new, format!("{own}\n"))?;
    fs::rename(new, file)
}

/// The listening socket that a service manager has passed.
pub fn passed_listener() -> Result<TcpListener, String> {
    let variable = |name| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let own = std::process::id().to_string();
    if variable("LISTEN_FDS")? != "1" || variable("LISTEN_PID")? != own {
        return Err("LISTEN_FDS and LISTEN_PID do not pass one socket to this process".into());
    }
    // SAFETY: whoever has started this process has put the socket there, and nothing else in this
    // process knows of the number.
    #[allow(unsafe_code, reason = "a number is all that there is")]
    let listener =
        unsafe { <std::net::TcpListener as std::os::fd::FromRawFd>::from_raw_fd(FIRST_PASSED) };
    listener.set_nonblocking(true).map_err(words)?;
    TcpListener::from_std(listener).map_err(words)
}

/// The sessions of a process, which are waited for when it has been replaced.
#[derive(Clone, Default)]
pub struct Sessions {
    tracker: TaskTracker,
}

impl Sessions {
    pub fn new() -> Sessions {
        Sessions::default()
    }

    pub fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        self.tracker.spawn(echo(stream));
    }

    /// Accepts for ever.
    pub async fn accept(&self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.serve(stream),
                Err(error) => eprintln!("accept: {error}"),
            }
        }
    }

    /// Waits for their ends, and no longer than that.
    pub async fn drain(self, timeout: Duration) {
        self.tracker.close();
        if tokio::time::timeout(timeout, self.tracker.wait()).await.is_err() {
            eprintln!("{} sessions are cut off", self.tracker.len());
        }
    }
}

/// Sends back what comes.
pub async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                let sent = stream.write_all(&buffer[..count]).await;
                if sent.is_err() || stream.flush().await.is_err() {
                    return;
                }
            }
        }
    }
}
