//! The least that a server of one's own needs; the README shows it.

use std::io::{self, Read, Write};
use tablecloth::{Accepted, Config, Context, Error, Handler, IoEvent, Server, Stream, Verdict};

struct Shout;

/// A client, and what it has not taken yet.
struct Session(Stream, Vec<u8>);

impl Session {
    /// Reads nothing more while the client does not take what it has to hear.
    fn shout(&mut self) -> io::Result<Verdict> {
        let Self(stream, unsent) = self;
        let mut buffer = [0; 1024];
        if unsent.is_empty() {
            match stream.read(&mut buffer)? {
                0 => return Ok(Verdict::Close),
                read => unsent.extend(buffer[..read].to_ascii_uppercase()),
            }
        }
        let sent = stream.write(unsent)?;
        unsent.drain(..sent);
        Ok(Verdict::Again)
    }
}

impl Handler for Shout {
    type Session = Session;

    fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Session> {
        Ok(Session(accepted.stream, Vec::new()))
    }

    fn event(&mut self, _: &mut Context<'_>, session: &mut Session, _: IoEvent) -> Verdict {
        match session.shout() {
            Ok(verdict) => verdict,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Verdict::Keep,
            Err(_) => Verdict::Close,
        }
    }
}

fn main() -> Result<(), Error> {
    let config = Config::default();
    config.hold_signals();
    let mut server = Server::new(config)?;
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    server.listen("shout", &address)?;
    server.run(Shout)?;
    Ok(())
}
