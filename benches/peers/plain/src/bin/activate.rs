//! The part of a service manager that matters here: it opens a socket, starts a program with it
//! (sd_listen_fds(3)), and on HUP restarts the program as systemd does: TERM, wait for its end, start
//! it anew with the same socket.
//!
//!     activate [--once] --listen ADDRESS PROGRAM [ARGUMENT ...]
//!
//! With `--once` the program takes this process's place, and nobody restarts it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use lexopt::{Arg, Parser, ValueExt};
use peer::{BACKLOG, words};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGTERM};
use signal_hook::iterator::Signals;
use socket2::{Domain, Socket, Type};

/// The socket comes as standard input, and goes to where the program looks for it. The shell knows the
/// number that the program will have.
const START: &str = "export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\" 3<&0 </dev/null";

struct Service {
    socket: Socket,
    program: Vec<String>,
}

fn main() -> ExitCode {
    peer::report("activate", run())
}

fn run() -> Result<(), String> {
    let (once, listen, program) = parse()?;
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None).map_err(words)?;
    socket.set_reuse_address(true).map_err(words)?;
    socket.bind(&listen.into()).map_err(words)?;
    socket.listen(BACKLOG).map_err(words)?;
    let service = Service { socket, program };
    if once {
        return Err(words(service.command()?.exec()));
    }
    service.supervise()
}

fn parse() -> Result<(bool, SocketAddr, Vec<String>), String> {
    let mut parser = Parser::from_env();
    let (mut once, mut listen, mut program) = (false, None, Vec::new());
    while let Some(argument) = parser.next().map_err(words)? {
        match argument {
            Arg::Long("once") => once = true,
            Arg::Long("listen") => {
                let value = parser.value().map_err(words)?;
                listen = Some(value.parse().map_err(words)?);
            }
            Arg::Value(name) => {
                program.push(name.string().map_err(words)?);
                for argument in parser.raw_args().map_err(words)? {
                    program.push(argument.string().map_err(words)?);
                }
            }
            Arg::Long(_) | Arg::Short(_) => return Err(words(argument.unexpected())),
        }
    }
    if program.is_empty() {
        return Err("a program is missing".into());
    }
    Ok((once, listen.ok_or("--listen ADDRESS is missing")?, program))
}

impl Service {
    fn command(&self) -> Result<Command, String> {
        let socket: OwnedFd = self.socket.try_clone().map_err(words)?.into();
        let mut command = Command::new("sh");
        command.args(["-c", START, "sh"]).args(&self.program).stdin(Stdio::from(socket));
        Ok(command)
    }

    fn start(&self) -> Result<Child, String> {
        self.command()?.spawn().map_err(words)
    }

    fn supervise(&self) -> Result<(), String> {
        let mut signals = Signals::new([SIGHUP, SIGTERM, SIGCHLD]).map_err(words)?;
        let mut child = self.start()?;
        for signal in signals.forever() {
            match signal {
                SIGHUP => {
                    terminate(&mut child)?;
                    child = self.start()?;
                }
                SIGTERM => return terminate(&mut child),
                // It has ended by itself.
                _ if child.try_wait().map_err(words)?.is_some() => child = self.start()?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn terminate(child: &mut Child) -> Result<(), String> {
    // It was not waited for, so the number is still its own.
    kill_process(Pid::from_child(child), Signal::TERM).map_err(words)?;
    child.wait().map(drop).map_err(words)
}
