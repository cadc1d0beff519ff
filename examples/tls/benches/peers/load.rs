//! What clients do with a proxy.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::client::Resumption;

use crate::harness::client::{Client, VERSIONS, config};
use crate::harness::{echo, upstream};

/// A load, and what is counted of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// A connection, a word and its echo.
    Handshakes,
    /// The same by clients that come back.
    Resumed,
    /// 32 bytes and their echo, on 64 connections.
    RoundTrips,
    /// Mebibytes to clients, on 4 connections.
    Bulk,
}

impl Load {
    pub(crate) const ALL: [Self; 4] =
        [Self::Handshakes, Self::Resumed, Self::RoundTrips, Self::Bulk];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Handshakes => "a new client, TLS 1.3",
            Self::Resumed => "one that comes back",
            Self::RoundTrips => "a round trip of 32 bytes",
            Self::Bulk => "a MiB to the client",
        }
    }

    /// Where the proxy is to lead.
    pub(crate) fn upstream(self) -> String {
        match self {
            Self::Handshakes | Self::Resumed | Self::RoundTrips => echo(),
            Self::Bulk => upstream(|mut stream| {
                let zeros = vec![0; 256 * 1024];
                let _ = stream.read(&mut [0; 1]);
                while stream.write_all(&zeros).is_ok() {}
            }),
        }
    }

    /// Does it for that long; answers how often, or how many mebibytes.
    pub(crate) fn run(self, address: SocketAddr, time: Duration) -> f64 {
        let (count, ends) = (Arc::new(AtomicU64::new(0)), Instant::now() + time);
        let threads = if self == Self::Bulk { 4 } else { 8 };
        let run = |_| {
            let count = Arc::clone(&count);
            thread::spawn(move || self.run_one(address, ends, &count))
        };
        let threads: Vec<_> = (0..threads).map(run).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let count = count.load(Ordering::Relaxed) as f64;
        if self == Self::Bulk { count / f64::from(1 << 20) } else { count }
    }

    fn run_one(self, address: SocketAddr, ends: Instant, count: &AtomicU64) {
        let mut common = Arc::unwrap_or_clone(config(VERSIONS[1], &[]));
        if self != Self::Resumed {
            common.resumption = Resumption::disabled();
        }
        let common = Arc::new(common);
        let connect = || Client::connect(address, &common, "localhost");
        let add = |more| _ = count.fetch_add(more, Ordering::Relaxed);
        match self {
            Self::Handshakes | Self::Resumed => {
                while Instant::now() < ends {
                    let mut client = connect();
                    client.echo(b"x");
                    client.close_notify();
                    add(1);
                }
            }
            Self::RoundTrips => {
                let mut clients: Vec<_> = (0..8).map(|_| connect()).collect();
                while Instant::now() < ends {
                    // All of them wait at a time, as independent clients do.
                    clients.iter_mut().for_each(|client| client.say(&[7; 32]));
                    for client in &mut clients {
                        client.hear_all(32).unwrap();
                        add(1);
                    }
                }
            }
            Self::Bulk => {
                let mut client = connect();
                client.say(b"x");
                while Instant::now() < ends {
                    add(client.hear(1 << 20).unwrap().len() as u64);
                }
            }
        }
    }
}

/// Sessions that have said a word and say no more.
pub(crate) fn idle(address: SocketAddr, count: usize) -> Vec<Client> {
    let config = config(VERSIONS[1], &[]);
    let connect = |_| {
        let mut client = Client::connect(address, &config, "localhost");
        client.echo(&[7; 1000]);
        client
    };
    (0..count).map(connect).collect()
}

/// Clients that say a word each second and hear it again.
pub(crate) struct Staying {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Staying {
    pub(crate) fn start(address: SocketAddr, count: usize) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            let config = config(VERSIONS[1], &[]);
            let connect = |_| Client::connect(address, &config, "localhost");
            let mut clients: Vec<_> = (0..count).map(connect).collect();
            while !is_over.load(Ordering::Relaxed) {
                clients.retain_mut(|client| {
                    let records = client.records_of(b"still here");
                    let said = client.socket.write_all(&records);
                    said.and_then(|()| client.hear_all(10)).is_ok()
                });
                thread::sleep(Duration::from_secs(1));
            }
            count - clients.len()
        });
        Self { ended, thread }
    }

    /// How many of them were broken.
    pub(crate) fn finish(self) -> usize {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
