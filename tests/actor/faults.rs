//! What the actor does at a step of an upgrade, if a test has put it into the fault file: lines of
//! `POINT DEED`. Whoever reaches the point of a line takes it out, so that it happens once; lines of
//! one point that follow each other are done one after another.
//!
//! The lines are in order: who comes to its point while there are lines before its own waits for
//! those. That is how a test settles a race between the two processes; `pass` is a deed for it.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, raise};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::Pid;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::process::{
    PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, getpid, getrlimit, pidfd_getfd, pidfd_open,
    setrlimit,
};
use tablecloth::fault::{self, Point};
use tablecloth::wire::{Hello, Message, NO_SCHEMAS, PROTOCOL};

/// The fault file, and the directory that a full disk is under.
static FILE: OnceLock<PathBuf> = OnceLock::new();

/// Whether address space is taken away until the spawn, or the attempt at it, is over.
static STARVED: AtomicBool = AtomicBool::new(false);

/// Obeys the fault file from now on.
pub(crate) fn obey(file: PathBuf) {
    if FILE.set(file).is_ok() {
        fault::set_hook(reached);
    }
}

/// Memory is to be had again: what it was wanted for is over.
pub(crate) fn feed() {
    if STARVED.swap(false, Ordering::Relaxed) {
        let _ = limit(Resource::As, None);
    }
}

fn reached(point: Point) {
    if point == Point::Spawned {
        feed();
    }
    let Some(file) = FILE.get() else { return };
    while let Some(deed) = turn_of(point, file) {
        say_aloud(&format!("fault at {point:?}: {deed}"));
        // Who waits for this line goes on once it is out: a full disk must be full by then, while
        // most other deeds are the last that this process can do.
        let done = match deed.starts_with("fill") {
            true => strike(&deed).and_then(|()| take_line(file)),
            false => take_line(file).and_then(|()| strike(&deed)),
        };
        if let Err(error) = done {
            say_aloud(&format!("fault {deed}: {error}"));
            std::process::abort();
        }
        say_aloud(&format!("struck at {point:?}"));
    }
}

/// Not by the log: at the first points there is none yet. In one piece, because two processes write
/// here.
fn say_aloud(text: &str) {
    let line = format!("[{}] {text}\n", std::process::id());
    let _ = io::stderr().write_all(line.as_bytes());
}

/// What there is to do at this point, once it is this line's turn.
fn turn_of(point: Point, file: &Path) -> Option<String> {
    loop {
        let text = fs::read_to_string(file).ok()?;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        match lines.position(|(at, _)| at == format!("{point:?}"))? {
            0 => return text.lines().next()?.split_once(' ').map(|(_, deed)| deed.into()),
            _ => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Takes out the first line, and the file with the last one. It may be read at any moment.
fn take_line(file: &Path) -> io::Result<()> {
    let text = fs::read_to_string(file)?;
    match text.split_once('\n').filter(|(_, rest)| !rest.trim().is_empty()) {
        Some((_, rest)) => {
            let new = file.with_extension("new");
            fs::write(&new, rest)?;
            fs::rename(new, file)
        }
        None => fs::remove_file(file),
    }
}

fn strike(deed: &str) -> io::Result<()> {
    let (deed, object) = deed.split_once(' ').unwrap_or((deed, ""));
    match deed {
        "kill" => raise(Signal::SIGKILL)?,
        // The process, and not this thread, which may be the one that spawns.
        "term" => kill(Pid::this(), Signal::SIGTERM)?,
        // Until somebody continues it.
        "stop" => raise(Signal::SIGSTOP)?,
        // Only the thread that comes here: at `Spawned` the loop goes on.
        "wait" => {
            while !PathBuf::from(object).exists() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        "exit" => std::process::exit(object.parse().unwrap_or(1)),
        "panic" => panic!("as it was told"),
        // From now on so many bytes fit into the handoff socket, as the kernel counts them.
        "narrow" => {
            let bytes: usize = object.parse().map_err(io::Error::other)?;
            // The kernel doubles it (socket(7)).
            set_socket_send_buffer_size(handoff_socket()?, bytes / 2)?;
        }
        "garbage" => say(b"GET / HTTP/1.1\r\n\r\n", object.parse().unwrap_or(1))?,
        // Until nothing more fits into the handoff socket.
        "drown" => while say(b"GET / HTTP/1.1\r\n\r\n", 1).is_ok() {},
        "protocol" => {
            let mut packet = Message::Hello(Hello {
                schemas: NO_SCHEMAS,
                pid: std::process::id(),
                build: "a later one".into(),
            })
            .encode(PROTOCOL.newest);
            // The header's version is the one chosen.
            packet[4] = 99;
            say(&packet, 1)?;
        }
        "pass" => {}
        // Standard input, output and error are three: no number is left for another one, however
        // many are closed meanwhile.
        "emfile" => limit(Resource::Nofile, Some(3))?,
        // Neither a stack nor anything else can be mapped.
        "enomem" => {
            STARVED.store(true, Ordering::Relaxed);
            limit(Resource::As, Some(1))?;
        }
        "fill" => {
            let mut filler = fs::File::create(PathBuf::from(object).join("filler"))?;
            let full = loop {
                if let Err(error) = filler.write_all(&[0; 1024]) {
                    break error;
                }
            };
            if full.kind() != io::ErrorKind::StorageFull {
                return Err(full);
            }
        }
        other => return Err(io::Error::other(format!("unknown deed {other}"))),
    }
    Ok(())
}

/// Sets the soft limit, so that it can be raised again; `None` is the hard one.
fn limit(resource: Resource, most: Option<u64>) -> io::Result<()> {
    let maximum = getrlimit(resource).maximum;
    Ok(setrlimit(resource, Rlimit { current: most.or(maximum), maximum })?)
}

/// Says something so many times on the handoff socket.
fn say(packet: &[u8], times: usize) -> io::Result<()> {
    let socket = handoff_socket()?;
    for _ in 0..times {
        send(socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL)?;
    }
    Ok(())
}

/// Another descriptor of the one connected seqpacket socket that this process has.
fn handoff_socket() -> io::Result<OwnedFd> {
    let unix = fs::read_to_string("/proc/net/unix")?;
    // Num RefCount Protocol Flags Type St Inode Path (proc(5)).
    let is_handoff = |inode: &str| {
        unix.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|fields| {
            (fields.get(4), fields.get(5)) == (Some(&"0005"), Some(&"03"))
                && fields.get(6) == Some(&inode)
        })
    };
    for number in 3..64 {
        let Ok(target) = fs::read_link(format!("/proc/self/fd/{number}")) else { continue };
        let target = target.to_string_lossy().into_owned();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        if inode.is_some_and(is_handoff) {
            let own = pidfd_open(getpid(), PidfdFlags::empty())?;
            return Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?);
        }
    }
    Err(io::Error::other("no handoff socket"))
}
