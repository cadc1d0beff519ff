//! Clients that come all the time, ask who serves, and go; and what became of them.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Sub;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::harness::PATIENCE;

/// Clients at a time.
pub(crate) const CLIENTS: usize = 2;

/// Between two connections of a client. A port can be used again a minute later, or a second on
/// loopback, so that they must not be used up faster (ip(7), tcp_tw_reuse).
const PAUSE: Duration = Duration::from_millis(1);
/// From a connection to its request: as long as that, it is there to be broken.
const HESITATION: Duration = Duration::from_millis(1);

/// How connections ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) answered: usize,
    pub(crate) refused: usize,
    pub(crate) reset: usize,
    /// The end came instead of the answer.
    pub(crate) ended: usize,
    /// Neither an answer nor an end, or an answer that is none.
    pub(crate) other: usize,
}

impl Counts {
    /// Connections that were made, and were left without an answer.
    pub(crate) fn broken(&self) -> usize {
        self.reset + self.ended
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            answered: self.answered - before.answered,
            refused: self.refused - before.refused,
            reset: self.reset - before.reset,
            ended: self.ended - before.ended,
            other: self.other - before.other,
        }
    }
}

pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    address: String,
    /// Held by each client for as long as it has a connection.
    connected: RwLock<()>,
    stopping: AtomicBool,
    counts: Mutex<Counts>,
}

impl Load {
    pub(crate) fn start(address: String) -> Self {
        let shared = Arc::new(Shared {
            address,
            connected: RwLock::new(()),
            stopping: AtomicBool::new(false),
            counts: Mutex::new(Counts::default()),
        });
        let client = |_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.come_and_go())
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { shared, clients }
    }

    /// Waits until nobody is connected, and keeps it so while the answer is held. Whatever has
    /// happened to a client until then is counted.
    pub(crate) fn quiet(&self) -> RwLockWriteGuard<'_, ()> {
        self.shared.connected.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.shared.counts()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

impl Shared {
    fn come_and_go(&self) {
        while !self.stopping.load(Ordering::Relaxed) {
            let connected = self.connected.read().unwrap_or_else(PoisonError::into_inner);
            let result = self.ask();
            let mut counts = self.counts();
            match result.map_err(|error| error.kind()) {
                Ok(()) => counts.answered += 1,
                Err(io::ErrorKind::ConnectionRefused) => counts.refused += 1,
                Err(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                    counts.reset += 1;
                }
                Err(io::ErrorKind::UnexpectedEof) => counts.ended += 1,
                Err(error) => {
                    eprintln!("a client met {error}");
                    counts.other += 1;
                }
            }
            drop((counts, connected));
            thread::sleep(PAUSE);
        }
    }

    fn ask(&self) -> io::Result<()> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        thread::sleep(HESITATION);
        stream.write_all(b"who\n")?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut part = [0; 64];
            match stream.read(&mut part)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => answer.extend_from_slice(&part[..read]),
            }
        }
        let numbers = answer.trim_ascii_end().split(|byte| *byte == b' ');
        let is_number = |word: &[u8]| !word.is_empty() && word.iter().all(u8::is_ascii_digit);
        if numbers.clone().count() == 2 && numbers.clone().all(is_number) {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
