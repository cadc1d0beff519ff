//! The least that a server of one's own needs; the README shows it.

use std::io::{self, Read, Write};
use tablecloth::{Accepted, Config, Context, Error, Handler, IoEvent, Server, Stream, Verdict};

struct Shout;

impl Handler for Shout {
    type Session = Stream;

    fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Stream> {
        Ok(accepted.stream)
    }

    fn event(&mut self, _: &mut Context<'_>, stream: &mut Stream, _: IoEvent) -> Verdict {
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer) {
            Ok(read @ 1..) => match stream.write_all(&buffer[..read].to_ascii_uppercase()) {
                Ok(()) => Verdict::Again,
                Err(_) => Verdict::Close,
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Verdict::Keep,
            Ok(0) | Err(_) => Verdict::Close,
        }
    }
}

fn main() -> Result<(), Error> {
    let mut server = Server::new(Config::default(), Shout)?;
    server.listen("shout", "127.0.0.1:8080")?;
    server.run()
}
