//! Bulk beside the small answers: streams that never end, and a process of their own that takes them.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::common::failed;
use crate::common::helper::Helper;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use slab::Slab;

/// This program takes bulk if this is its first argument.
pub(crate) const SINK: &str = "sink";
/// What a client sends that wants bulk.
pub(crate) const REQUEST: &[u8] = b"BULK / HTTP/1.1\r\n\r\n";
const CHUNK_BYTES: usize = 64 * 1024;
/// How often a stream is read before the others have their turn.
const READS: usize = 4;
/// How often is looked whether all streams have begun, and for how long.
const LOOK: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(30);

static TAKEN: AtomicU64 = AtomicU64::new(0);
/// Streams that something has come through.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// A thread that sends to everybody without end, in turn. One for each stream would leave the processor to
/// nobody else.
pub(crate) struct Source {
    streams: Sender<TcpStream>,
    waker: Arc<Waker>,
}

impl Source {
    pub(crate) fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), Token(usize::MAX))?);
        let (streams, added) = channel();
        std::thread::spawn(move || send(poll, &added));
        Ok(Self { streams, waker })
    }

    /// Sends to this one, too, until it does not take it any more.
    pub(crate) fn add(&self, stream: TcpStream) -> io::Result<()> {
        let _ = self.streams.send(stream);
        self.waker.wake()
    }
}

fn send(mut poll: Poll, added: &Receiver<TcpStream>) -> io::Result<()> {
    let mut events = Events::with_capacity(1024);
    let mut streams: Slab<TcpStream> = Slab::new();
    let (chunk, mut left) = (vec![0; CHUNK_BYTES], Vec::new());
    loop {
        wait(&mut poll, &mut events, &left)?;
        let ready = ready(&events, &mut left);
        while let Ok(mut stream) = added.try_recv() {
            let vacancy = streams.vacant_entry();
            poll.registry().register(&mut stream, Token(vacancy.key()), Interest::WRITABLE)?;
            vacancy.insert(stream);
        }
        for key in ready {
            let Some(stream) = streams.get_mut(key) else { continue };
            match stream.write(&chunk) {
                Ok(_) => left.push(key),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => drop(streams.remove(key)),
            }
        }
    }
}

/// Does not sleep if there is something left to do.
fn wait(poll: &mut Poll, events: &mut Events, left: &[usize]) -> io::Result<()> {
    let timeout = if left.is_empty() { None } else { Some(Duration::ZERO) };
    match poll.poll(events, timeout) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Who has an event, or was not done, each of them once.
fn ready(events: &Events, left: &mut Vec<usize>) -> Vec<usize> {
    let mut ready = std::mem::take(left);
    ready.extend(events.iter().map(|event| event.token().0));
    ready.sort_unstable();
    ready.dedup();
    ready
}

/// The other process: takes bulk, and for each line that it reads writes how many bytes that were so far, by how
/// many streams.
pub(crate) fn sink(target: &str, count: &str) -> Result<(), String> {
    let target: SocketAddr = target.parse().map_err(failed("the address"))?;
    let count: usize = count.parse().map_err(failed("the count of streams"))?;
    std::thread::spawn(|| {
        for _ in io::stdin().lines() {
            println!("{} {}", TAKEN.load(Ordering::Relaxed), BEGUN.load(Ordering::Relaxed));
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
    let mut begun = vec![false; count];
    loop {
        wait(&mut poll, &mut events, &left)?;
        for key in ready(&events, &mut left) {
            if !std::mem::replace(&mut begun[key], true) {
                BEGUN.fetch_add(1, Ordering::Relaxed);
            }
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

/// The other process, as this one sees it.
pub(crate) struct Bulk {
    helper: Helper,
    /// How many bytes had come when all streams had begun, and when that was.
    before: (u64, Instant),
}

impl Bulk {
    /// Has so many streams run through the target.
    pub(crate) fn start(target: SocketAddr, count: usize) -> Result<Self, String> {
        let arguments = [SINK, &target.to_string(), &count.to_string()];
        let mut helper = Helper::start("the bulk", &arguments)?;
        let started = Instant::now();
        loop {
            let answer = helper.ask()?;
            if answer[1..] == [count as u64] {
                return Ok(Self { helper, before: (answer[0], Instant::now()) });
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("{count} streams of bulk through {target} do not begin"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// How many bytes a second have come since then.
    pub(crate) fn rate(&mut self) -> Result<f64, String> {
        let (bytes, since) = self.before;
        Ok((self.helper.ask()?[0] - bytes) as f64 / since.elapsed().as_secs_f64())
    }
}
