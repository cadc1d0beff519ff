//! A service of the tests: below an init, it says to the manager what it is told to say.
//!
//! Each process connects to the test by the Unix socket that is its argument, says who it is, and obeys lines:
//! `say TEXT` (`|` stands for a line end), `barrier`, `spawn`, `orphan`, `exit N`, `status`. A signal is reported.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]
#![allow(clippy::zombie_processes, reason = "that is what is tested")]

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

fn manager() -> UnixDatagram {
    let name = std::env::var("NOTIFY_SOCKET").expect("a manager");
    let name = name.strip_prefix('@').expect("an abstract name");
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.connect_addr(&address).expect("connected");
    socket
}

fn main() -> ExitCode {
    let speakers = std::env::var("SPEAKERS").unwrap_or("1".into());
    let init = tablecloth::Init::default().always(true);
    let init = match speakers.parse() {
        Ok(workers) => init.workers(workers),
        Err(_) => init.workers_in(speakers),
    };
    if let Some(status) = init.run().expect("an init") {
        return status;
    }
    let control = std::env::args().nth(1).expect("a path");
    let mut control = UnixStream::connect(control).expect("connected");
    let mut signals =
        Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH]).unwrap();
    // As a server does: what the init has blocked for it is let through now.
    nix::sys::signal::SigSet::all().thread_unblock().expect("unblocked");
    let mut reports = control.try_clone().expect("a descriptor");
    thread::spawn(move || {
        for signal in signals.forever() {
            // In one write, or it would mix with an answer; and the test may be over.
            let _ = reports.write_all(format!("signal {signal}\n").as_bytes());
        }
    });
    let who = format!("{} {}\n", std::process::id(), tablecloth::worker().unwrap_or(0));
    control.write_all(who.as_bytes()).expect("said");
    let lines = BufReader::new(control.try_clone().expect("a descriptor"));
    for line in lines.lines().map_while(Result::ok) {
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "say" => {
                manager().send(rest.replace('|', "\n").as_bytes()).expect("said");
                writeln!(control, "said").expect("answered");
            }
            "barrier" => {
                let (here, there) = nix::unistd::pipe().expect("a pipe");
                let mut here = std::fs::File::from(here);
                let numbers = [there.as_fd().as_raw_fd()];
                let rights = [ControlMessage::ScmRights(&numbers)];
                let (socket, text) = (manager(), [IoSlice::new(b"BARRIER=1")]);
                let none = MsgFlags::empty();
                sendmsg::<()>(socket.as_raw_fd(), &text, &rights, none, None).expect("sent");
                drop(there);
                here.read_to_end(&mut Vec::new()).expect("the end");
                writeln!(control, "settled").expect("answered");
            }
            // It is this process's child, and nobody's when this process ends.
            "spawn" => {
                let path = std::env::args().nth(1).expect("a path");
                let mut successor = Command::new(std::env::current_exe().unwrap());
                let handoff = format!("pipe=3,socket=4,pid={}", std::process::id());
                successor.arg(path).env("TABLECLOTH_HANDOFF", handoff).spawn().expect("spawned");
            }
            // A process that only its grandparent knows: what is given is a shell's.
            "orphan" => {
                let script = format!("({rest}) & exit 0");
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &script]).stdin(Stdio::null());
                shell.status().expect("a shell");
                writeln!(control, "born").expect("answered");
            }
            "exit" => std::process::exit(rest.parse().expect("a number")),
            _ => panic!("{line}"),
        }
    }
    ExitCode::SUCCESS
}
