//! A program that drives an upgrader itself, for the tests: it has one of everything that passes by name.
//!
//! A client's word is `who`, `keep` (passes the client on from now on), `lose` (does not any more),
//! `upgrade` (asks for one, and is told how it ended), `down` (asks for a shutdown) or `count` (bytes in
//! the file). What it notices, it logs.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

#[path = "../../examples/common/logging.rs"]
#[allow(dead_code, reason = "the demo uses all of it")]
mod logging;

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tablecloth::{Config, Error, HandedOver, Notice, Phase, SocketOptions, Upgrader};

const KEPT: &str = "kept";

fn main() -> ExitCode {
    logging::start(log::LevelFilter::Info).expect("a log");
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Error> {
    let place = std::env::args().nth(1).expect("a directory");
    let probation = std::env::args().nth(2).and_then(|text| text.parse().ok()).expect("seconds");
    let unix = |name: &str| format!("unix:{place}/{name}");
    let config = Config::default()
        .probation(Duration::from_secs(probation))
        .drain_timeout(Duration::from_secs(2))
        .user_signals(vec![nix::libc::SIGUSR1])
        .schemas(1..=1);
    let mut upgrader = Upgrader::new(config)?;
    let served = Rc::new(Cell::new(0u64));
    let counted = Rc::clone(&served);
    upgrader.hand_over_with(move |reads| {
        let (schema, bytes) = (*reads.end(), counted.get().to_le_bytes().into());
        Ok(Some(HandedOver::new(schema, bytes)))
    });
    let web = upgrader.tcp("web", "127.0.0.1:0")?;
    let local =
        upgrader.unix_with("local", &unix("local"), &SocketOptions::default().mode(0o600))?;
    let udp = upgrader.udp("udp", "127.0.0.1:0")?;
    let datagrams = upgrader.unix_datagram("datagrams", &unix("datagrams"))?;
    let packets = upgrader.seqpacket("packets", &unix("packets"))?;
    let mut file = File::from(upgrader.file("file", || {
        let mut file =
            File::options().read(true).append(true).create(true).open(format!("{place}/file"))?;
        file.write_all(b"made\n").map(|()| file.into())
    })?);
    // Any file, a socket of a kind that has no name included.
    let pair = upgrader.file("pair", || {
        let kind = (AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC);
        let (one, other) = socketpair(kind.0, kind.1, None, kind.2)?;
        UnixStream::from(other).write_all(b"from the first process")?;
        Ok(one)
    })?;
    let mut said = String::new();
    let _ = UnixStream::from(pair.try_clone().expect("a duplicate")).read_to_string(&mut said);
    log::info!("the pair says {said:?}");
    let kept = upgrader.conn(KEPT)?.map(TcpStream::from);
    log::info!(
        "a {} {} {} {}",
        local.local_addr().is_ok_and(|at| at.as_pathname().is_some()),
        udp.local_addr().is_ok(),
        datagrams.local_addr().is_ok_and(|at| at.as_pathname().is_some()),
        packets.as_fd().try_clone_to_owned().is_ok(),
    );
    log::info!("generation {}, successor: {}", upgrader.generation(), upgrader.is_successor());
    assert_eq!(upgrader.phase(), Phase::Waiting);
    upgrader.ready()?;

    let mut clients: Vec<TcpStream> = kept.into_iter().collect();
    loop {
        let phase = upgrader.turn(Some(Duration::from_millis(2)))?;
        while let Some(notice) = upgrader.next_notice() {
            // Says so to the other process.
            if let Notice::Signal(_) = notice {
                let told = upgrader.tell(format!("by {}", std::process::id()).as_bytes());
                log::info!("told: {told:?}");
            }
            let words = if let Notice::Upgraded(report) = notice {
                format!("upgraded: {}", report.outcome.is_ok())
            } else if let Notice::Told(words) = notice {
                format!("told {}", String::from_utf8_lossy(&words))
            } else {
                format!("{notice:?}")
            };
            log::info!("notice {words}");
        }
        match phase {
            Phase::Waiting => continue,
            Phase::Serving => {
                if let Some(state) = upgrader.handed_over() {
                    let bytes = state.bytes.try_into().expect("eight bytes");
                    served.set(u64::from_le_bytes(bytes));
                    log::info!("handed over: {} were served", served.get());
                }
                while let Ok((client, _)) = web.accept() {
                    client.set_nonblocking(true).expect("set");
                    clients.push(client);
                    served.set(served.get() + 1);
                }
            }
            Phase::Draining if clients.is_empty() => upgrader.drained(),
            // The one that is passed on is the successor's.
            Phase::Draining => clients.clear(),
            Phase::Exited(end) => {
                log::info!("the end: {end:?}");
                return Ok(());
            }
        }
        clients.retain(|client| {
            let mut word = String::new();
            match BufReader::new(client).read_line(&mut word) {
                Ok(0) => false,
                Ok(_) => {
                    answer(&mut upgrader, client, word.trim(), &mut file);
                    true
                }
                Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
            }
        });
    }
}

fn answer(upgrader: &mut Upgrader, client: &TcpStream, word: &str, file: &mut File) {
    let done = |words: String| { client }.write_all(words.as_bytes()).expect("sent");
    match word {
        "who" => done(format!("{} {}\n", std::process::id(), upgrader.generation())),
        "keep" => {
            let added = upgrader.add_conn(KEPT, client);
            done(format!("{}\n", added.map_or_else(|error| error.to_string(), |()| "kept".into())));
        }
        "lose" => done(format!("{}\n", upgrader.remove_conn(KEPT))),
        "upgrade" => {
            let (answer, own) = (upgrader.remote().upgrade(), client.try_clone().expect("a copy"));
            std::thread::spawn(move || {
                let words = match answer.wait() {
                    Some(report) => format!("{}\n", report.outcome.is_ok()),
                    None => "no answer\n".into(),
                };
                (&own).write_all(words.as_bytes()).expect("sent");
            });
        }
        "down" => upgrader.request_shutdown(),
        "count" => {
            let mut text = String::new();
            file.seek(SeekFrom::Start(0)).expect("a file");
            file.read_to_string(&mut text).expect("text");
            done(format!("{}\n", text.lines().count()));
        }
        other => done(format!("unknown: {other}\n")),
    }
}
