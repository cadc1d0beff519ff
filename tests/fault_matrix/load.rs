//! Clients that never stop: short connections one after another, and long sessions.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::harness::PATIENCE;

/// Between two connections of a client: this is a load, and no flood.
const PACE: Duration = Duration::from_millis(3);

/// What clients have come upon.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Which processes answered, in the order in which they took turns.
    pub(crate) answered_by: Vec<u32>,
    /// Nobody listened.
    pub(crate) refused: usize,
    /// Accepted, and ended before there was an answer.
    pub(crate) broken: usize,
    /// What may never happen, a time-out included.
    pub(crate) strange: Vec<String>,
}

/// A few clients at work, each in a thread.
pub(crate) struct Load {
    tally: Arc<Mutex<Tally>>,
    over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Each connects, asks who serves, reads the answer, closes, and begins again.
    pub(crate) fn of_short_connections(address: &str, clients: usize) -> Self {
        let address = address.to_owned();
        Self::start(clients, move |tally, over| {
            while !over.load(Ordering::Relaxed) {
                match TcpStream::connect(&address) {
                    Ok(mut stream) => note(tally, who(&mut stream)),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        // The service is gone. To try again and again on a free port ends with a
                        // connection to oneself (RFC 9293, simultaneous open).
                        tally.lock().expect("no panic").refused += 1;
                        return;
                    }
                    Err(error) => note(tally, Err(error)),
                }
                thread::sleep(PACE);
            }
        })
    }

    /// One connection, on which the same is asked again and again, and once more at the end.
    pub(crate) fn of_a_long_session(address: &str) -> Self {
        let address = address.to_owned();
        Self::start(1, move |tally, over| {
            let mut stream = TcpStream::connect(&address).expect("a connection");
            loop {
                let is_last = over.load(Ordering::Relaxed);
                let answer = who(&mut stream);
                let is_over = is_last || answer.is_err();
                note(tally, answer);
                if is_over {
                    return;
                }
                thread::sleep(PACE);
            }
        })
    }

    fn start(
        clients: usize,
        work: impl Fn(&Mutex<Tally>, &AtomicBool) + Send + Sync + 'static,
    ) -> Self {
        let (tally, over) = (Arc::<Mutex<Tally>>::default(), Arc::<AtomicBool>::default());
        let work = Arc::new(work);
        let client = |_| {
            let (tally, over, work) = (Arc::clone(&tally), Arc::clone(&over), Arc::clone(&work));
            thread::spawn(move || work(&tally, &over))
        };
        let clients = (0..clients).map(client).collect();
        Self { tally, over, clients }
    }

    pub(crate) fn so_far(&self) -> Tally {
        self.tally.lock().expect("no panic").clone()
    }

    /// Ends when each client has its answer.
    pub(crate) fn end(&mut self) -> Tally {
        self.over.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().expect("no panic");
        }
        self.so_far()
    }
}

/// A test that has failed lets the clients go; the server they wait for is about to be killed.
impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn who(stream: &mut TcpStream) -> io::Result<u32> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"who\n")?;
    let (mut answer, mut byte) = (String::new(), [0; 1]);
    while !answer.ends_with('\n') {
        stream.read_exact(&mut byte)?;
        answer.push(char::from(byte[0]));
    }
    let pid = answer.split(' ').next().and_then(|pid| pid.parse().ok());
    pid.ok_or_else(|| io::Error::other(format!("the answer {answer:?}")))
}

fn note(tally: &Mutex<Tally>, answer: io::Result<u32>) {
    const BROKEN: [io::ErrorKind; 4] = [
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::UnexpectedEof,
    ];
    let mut tally = tally.lock().expect("no panic");
    match answer {
        Ok(pid) if tally.answered_by.last() == Some(&pid) => {}
        Ok(pid) => tally.answered_by.push(pid),
        Err(error) if BROKEN.contains(&error.kind()) => tally.broken += 1,
        Err(error) => tally.strange.push(error.to_string()),
    }
}
