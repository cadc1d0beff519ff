//! Bulk beside the small answers: streams that never end, and a process of their own that takes them.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::failed;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// This program takes bulk if this is its first argument.
pub(crate) const SINK: &str = "sink";
/// What a client sends that wants bulk.
pub(crate) const REQUEST: &[u8] = b"BULK / HTTP/1.1\r\n\r\n";
const CHUNK_BYTES: usize = 64 * 1024;
/// How often a stream is read before the others have their turn.
const READS: usize = 4;
/// How long the streams have to come up to speed.
const WARM: Duration = Duration::from_millis(300);

static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Sends without end, until nobody takes it any more.
pub(crate) fn send(mut stream: std::net::TcpStream) {
    if stream.set_nonblocking(false).is_ok() {
        while stream.write_all(&[0; CHUNK_BYTES]).is_ok() {}
    }
}

/// The other process: takes bulk, and for each line that it reads writes how many bytes that were so far.
pub(crate) fn sink(target: &str, count: &str) -> Result<(), String> {
    let target: SocketAddr = target.parse().map_err(failed("the address"))?;
    let count: usize = count.parse().map_err(failed("the count of streams"))?;
    std::thread::spawn(|| {
        for _ in io::stdin().lines() {
            println!("{}", TAKEN.load(Ordering::Relaxed));
        }
        // The bench has ended.
        std::process::exit(0);
    });
    take(target, count).map_err(failed("take bulk"))
}

fn take(target: SocketAddr, count: usize) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut streams = Vec::new();
    for key in 0..count {
        let stream = std::net::TcpStream::connect(target)?;
        (&stream).write_all(REQUEST)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(key), Interest::READABLE)?;
        streams.push(stream);
    }
    let (mut buffer, mut left) = (vec![0; CHUNK_BYTES], Vec::new());
    loop {
        let timeout = if left.is_empty() { None } else { Some(Duration::ZERO) };
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut ready = std::mem::take(&mut left);
        ready.extend(events.iter().map(|event| event.token().0));
        ready.sort_unstable();
        ready.dedup();
        for key in ready {
            if read(&streams[key], &mut buffer)? {
                left.push(key);
            }
        }
    }
}

/// Answers whether there may be more.
fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<bool> {
    for _ in 0..READS {
        // Thrown away in the kernel (MSG_TRUNC, tcp(7)): this must not be the bottleneck.
        match recv(stream.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => TAKEN.fetch_add(bytes as u64, Ordering::Relaxed),
            Err(Errno::EAGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
    }
    Ok(true)
}

/// The other process, as this one sees it. It ends with this.
pub(crate) struct Bulk {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    before: (u64, Instant),
}

impl Bulk {
    /// Has so many streams run through the target.
    pub(crate) fn start(target: SocketAddr, count: usize) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(failed("find this program"))?;
        let mut child = Command::new(own)
            .args([SINK, &target.to_string(), &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed("start the bulk"))?;
        let (Some(ask), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the bulk has no pipes".into());
        };
        let before = (0, Instant::now());
        let mut bulk = Self { child, ask, answers: BufReader::new(answers), before };
        std::thread::sleep(WARM);
        bulk.before = (bulk.taken()?, Instant::now());
        Ok(bulk)
    }

    fn taken(&mut self) -> Result<u64, String> {
        let mut answer = String::new();
        writeln!(self.ask).map_err(failed("ask the bulk"))?;
        self.answers.read_line(&mut answer).map_err(failed("hear the bulk"))?;
        answer.trim().parse().map_err(|_| "the bulk has ended".to_string())
    }

    /// How many bytes a second have come since the start.
    pub(crate) fn rate(&mut self) -> Result<f64, String> {
        let (bytes, since) = self.before;
        Ok((self.taken()? - bytes) as f64 / since.elapsed().as_secs_f64())
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
