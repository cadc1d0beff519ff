//! The clients of one server, in a process of their own: they connect, say something and hear it, and
//! then say nothing until they are asked whether they are still there.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::common::failed;
use crate::common::helper::Helper;

/// This program holds clients if this is its first argument.
pub(crate) const HOLD: &str = "hold";
const MESSAGE: &[u8; 6] = b"there?";
/// After which a session that does not answer is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// The other process, as this one sees it.
pub(crate) struct Clients {
    helper: Helper,
    count: usize,
}

impl Clients {
    /// Connects all of them, and has each say something: then it is a session.
    pub(crate) fn start(server: SocketAddr, count: usize) -> Result<Self, String> {
        let arguments = [HOLD, &server.to_string(), &count.to_string()];
        let mut clients = Self { helper: Helper::start("the clients", &arguments)?, count };
        clients.verify()?;
        Ok(clients)
    }

    /// Has each of them say something, and fails if one does not hear it.
    pub(crate) fn verify(&mut self) -> Result<(), String> {
        match self.helper.ask()?[0] {
            alive if alive == self.count as u64 => Ok(()),
            alive => Err(format!("{alive} of {} sessions are alive", self.count)),
        }
    }
}

/// The other process: for each line that it reads it writes how many sessions are alive.
pub(crate) fn hold(server: &str, count: &str) -> Result<(), String> {
    let count: usize = count.parse().map_err(failed("the count of clients"))?;
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let client = TcpStream::connect(server).map_err(failed("connect"))?;
        client.set_nodelay(true).map_err(failed("set TCP_NODELAY"))?;
        client.set_read_timeout(Some(PATIENCE)).map_err(failed("set a timeout"))?;
        clients.push(client);
    }
    for line in io::stdin().lines() {
        line.map_err(failed("read what is asked"))?;
        let alive = clients.iter().filter(|client| is_alive(client)).count();
        writeln!(io::stdout(), "{alive}").map_err(failed("answer"))?;
    }
    Ok(())
}

fn is_alive(mut client: &TcpStream) -> bool {
    let mut echo = [0; MESSAGE.len()];
    let heard = client.write_all(MESSAGE).and_then(|()| client.read_exact(&mut echo));
    heard.is_ok() && echo == *MESSAGE
}
