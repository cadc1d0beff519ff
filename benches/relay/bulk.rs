//! Bulk: an upstream that sends without end, and clients that take it.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};

use crate::common::failed;

const CHUNK_BYTES: usize = 256 * 1024;
const SILENCE: Duration = Duration::from_secs(5);

/// Sends to everybody who connects, until it is killed.
pub(crate) fn serve() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    loop {
        let (mut stream, _) = listener.accept()?;
        thread::spawn(move || while stream.write_all(&[0; CHUNK_BYTES]).is_ok() {});
    }
}

/// Clients that read at the same time. One that does not read holds the proxy up, which then sleeps.
pub(crate) struct Bulk {
    streams: Vec<TcpStream>,
}

impl Bulk {
    pub(crate) fn new(target: SocketAddr, count: usize) -> Result<Self, String> {
        let connect = |_| {
            let stream = TcpStream::connect(target)?;
            stream.set_read_timeout(Some(SILENCE))?;
            Ok(stream)
        };
        let streams = (0..count).map(connect).collect::<io::Result<_>>();
        Ok(Self { streams: streams.map_err(failed(format_args!("connect to {target}")))? })
    }

    /// Reads until then, and answers how many bytes there were.
    pub(crate) fn run(&mut self, until: Instant) -> Result<u64, String> {
        let mut bytes = 0;
        let mut buffer = vec![0; CHUNK_BYTES];
        while Instant::now() < until {
            for stream in &self.streams {
                // Thrown away in the kernel (MSG_TRUNC, tcp(7)): this must not be the bottleneck.
                let read = recv(stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC);
                match read.map_err(failed("receive"))? {
                    0 => return Err("the bulk has ended".into()),
                    read => bytes += read as u64,
                }
            }
        }
        Ok(bytes)
    }
}
