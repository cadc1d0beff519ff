//! A small server on the library alone, so that it is built in no time: it says who it is.

#![allow(missing_docs, reason = "a program")]

use std::io::{self, Read, Write};

use tablecloth::{Accepted, Config, Context, Error, Handler, IoEvent, Server, Stream, Verdict};

struct Who {
    generation: u64,
}

impl Handler for Who {
    type Session = Stream;

    fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Stream> {
        Ok(accepted.stream)
    }

    fn event(&mut self, _: &mut Context<'_>, stream: &mut Stream, _: IoEvent) -> Verdict {
        let answer = format!("{} {}\n", std::process::id(), self.generation);
        let mut question = [0; 64];
        loop {
            match stream.read(&mut question) {
                Ok(1..) if stream.write_all(answer.as_bytes()).is_ok() => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Verdict::Keep,
                Ok(_) | Err(_) => return Verdict::Close,
            }
        }
    }
}

/// What the test reads: each line with the process that has written it.
struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // Nobody to tell of it.
        let line = format!("[{}] {}\n", std::process::id(), record.args());
        let _ = io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

fn main() -> Result<(), Error> {
    let mut config = Config::default();
    config.hold_signals();
    if log::set_logger(&Lines).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
    config.pid_file = std::env::args_os().nth(1).map(Into::into);
    config.probation = std::time::Duration::ZERO;
    let mut server = Server::new(config)?;
    server.listen("who", "127.0.0.1:0")?;
    let generation = server.generation();
    log::info!("generation {generation}, successor: {}", server.is_successor());
    server.run(Who { generation })?;
    Ok(())
}
