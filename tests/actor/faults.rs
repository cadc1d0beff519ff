//! What the actor does at a step of an upgrade, if a test has put it into the fault file:
//! one line, `POINT DEED`. Whoever reaches the point takes the file away, so that it happens once.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, raise};
use nix::sys::socket::{MsgFlags, send};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tablecloth::fault::{self, Point};
use tablecloth::wire::{Hello, Message, NO_SCHEMAS, PROTOCOL};

/// The fault file, and the directory that a full disk is under.
static FILE: OnceLock<PathBuf> = OnceLock::new();

/// Whether address space is taken away until the spawn is over.
static STARVED: AtomicBool = AtomicBool::new(false);

/// Obeys the fault file from now on.
pub(crate) fn obey(file: PathBuf) {
    if FILE.set(file).is_ok() {
        fault::set_hook(reached);
    }
}

fn reached(point: Point) {
    if point == Point::Spawned && STARVED.swap(false, Ordering::Relaxed) {
        let _ = limit(Resource::As, None);
    }
    let Some(file) = FILE.get() else { return };
    let Ok(text) = fs::read_to_string(file) else { return };
    let Some((at, deed)) = text.trim().split_once(' ') else { return };
    if at != format!("{point:?}") || fs::remove_file(file).is_err() {
        return;
    }
    say_aloud(&format!("fault at {point:?}: {deed}"));
    if let Err(error) = strike(deed) {
        say_aloud(&format!("fault {deed}: {error}"));
        std::process::abort();
    }
}

/// Not by the log: at the first points there is none yet. In one piece, because two processes write
/// here.
fn say_aloud(text: &str) {
    let line = format!("[{}] {text}\n", std::process::id());
    let _ = io::stderr().write_all(line.as_bytes());
}

fn strike(deed: &str) -> io::Result<()> {
    let (deed, object) = deed.split_once(' ').unwrap_or((deed, ""));
    match deed {
        "kill" => raise(Signal::SIGKILL)?,
        // Until somebody continues it.
        "stop" => raise(Signal::SIGSTOP)?,
        // Only the thread that comes here: at `Spawned` the loop goes on.
        "wait" => {
            while !PathBuf::from(object).exists() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        "exit" => std::process::exit(object.parse().unwrap_or(1)),
        "panic" => panic!("as it was told"),
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
        // The next descriptor would be one too many.
        "emfile" => {
            let free = (0..).find(|n| fs::symlink_metadata(format!("/proc/self/fd/{n}")).is_err());
            limit(Resource::Nofile, free)?;
        }
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

/// Says something so many times on the handoff socket: the one connected seqpacket socket that this process has.
fn say(packet: &[u8], times: usize) -> io::Result<()> {
    let unix = fs::read_to_string("/proc/net/unix")?;
    // Num RefCount Protocol Flags Type St Inode Path (proc(5)).
    let is_handoff = |inode: &str| {
        unix.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|fields| {
            fields.get(4) == Some(&"0005") && fields.get(6) == Some(&inode) && fields.len() == 7
        })
    };
    for number in 3..64 {
        let Ok(target) = fs::read_link(format!("/proc/self/fd/{number}")) else { continue };
        let target = target.to_string_lossy().into_owned();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        if inode.is_some_and(is_handoff) {
            for _ in 0..times {
                send(number, packet, MsgFlags::MSG_NOSIGNAL)?;
            }
            return Ok(());
        }
    }
    Err(io::Error::other("no handoff socket"))
}
