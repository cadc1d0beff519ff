//! Sessions: a client, an upstream, and a stream from each to the other, which do not wait for each
//! other. All four ends count, compare and digest what passes them, and report it when it is over.
//! TCP and Unix sockets are read and written alike, as files.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    self, AddressFamily, Shutdown, SockFlag, SockType, SockaddrIn, getsockname, setsockopt,
    shutdown, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use sha2::{Digest, Sha256};

use crate::contents::Contents;
use crate::harness::PATIENCE;

/// A chunk has from 1 byte to so many.
const CHUNK_BITS: u32 = 16;
const LONGEST_PAUSE: Duration = Duration::from_millis(30);
/// A sender pauses after one chunk of so many, on average.
const PAUSE_EVERY: u32 = 2;
const PAUSE_EVERY_IN_BULK: u32 = 32;
/// One stream in so many is read slowly. It is sent in bulk, and so are others.
const SLOW_EVERY: u32 = 3;
const BULK_EVERY: u32 = 8;
/// In one session of so many, one stream ends early, and the session is half-closed from then on.
const EARLY_EVERY: u32 = 4;
/// What a slow reader has room for, and what it reads at a time.
const SLOW_BYTES: usize = 4096;
const THREAD_STACK_BYTES: usize = 256 * 1024;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// From the client to the upstream.
    There,
    Back,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Sent,
    Received,
}

/// One end of a stream, when it is over.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) session: u32,
    pub(crate) way: Way,
    pub(crate) part: Part,
    pub(crate) bytes: u64,
    pub(crate) sha256: [u8; 32],
    /// The first byte that is not the one that was sent in its place.
    pub(crate) wrong_at: Option<u64>,
    /// What ended it, if that was not the end of the stream.
    pub(crate) error: Option<ErrorKind>,
}

/// How one stream is sent and read; the seed says it all.
struct Plan {
    session: u32,
    way: Way,
    seed: u64,
    /// It has at least so many bytes.
    least: u64,
    /// It ends there, whether or not the upgrades are over.
    is_early: bool,
    is_bulk: bool,
    is_slowly_read: bool,
}

impl Plan {
    fn of(seed: u64, session: u32, way: Way) -> Self {
        let place = session * 2 + u32::from(way == Way::Back);
        let mut random = fastrand::Rng::with_seed(seed ^ (u64::from(place) << 40));
        let is_slowly_read = place % SLOW_EVERY == 0;
        // At most one of a session's two streams.
        let early_way = if (session / EARLY_EVERY) % 2 == 0 { Way::There } else { Way::Back };
        Self {
            session,
            way,
            seed: random.u64(..),
            least: random.u64(1..500_000),
            is_early: session % EARLY_EVERY == 1 && way == early_way,
            is_bulk: place % BULK_EVERY == 0 || is_slowly_read,
            is_slowly_read,
        }
    }

    fn report(&self, part: Part, tally: Tally) -> Report {
        let Tally { bytes, hash, wrong_at, error } = tally;
        let (session, way, sha256) = (self.session, self.way, hash.finalize().into());
        Report { session, way, part, bytes, sha256, wrong_at, error }
    }
}

#[derive(Default)]
struct Tally {
    bytes: u64,
    hash: Sha256,
    wrong_at: Option<u64>,
    error: Option<ErrorKind>,
}

impl Tally {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
    }
}

/// A session's connection to the proxy: the proxy's address, and its client's.
pub(crate) type Wire = (SocketAddrV4, SocketAddrV4);

/// All sessions of a test.
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    /// By TCP and by a Unix socket: the relay keeps what is not taken of what came by the latter.
    pub(crate) upstreams: [String; 2],
    begun: Receiver<u32>,
    pub(crate) reports: Receiver<Report>,
    sessions: u32,
}

struct Shared {
    seed: u64,
    /// The streams may come to their ends.
    over: AtomicBool,
    begin: Sender<u32>,
    report: Sender<Report>,
}

impl Traffic {
    /// Starts the upstreams, one of them at that path.
    pub(crate) fn start(seed: u64, path: &str) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("listens");
        let unix = UnixListener::bind(path).expect("listens");
        let upstreams = [tcp.local_addr().expect("an address").to_string(), format!("unix:{path}")];
        let ((begin, begun), (report, reports)) = (channel(), channel());
        let shared = Arc::new(Shared { seed, over: AtomicBool::new(false), begin, report });
        let own = Arc::clone(&shared);
        spawn(move || tcp.incoming().flatten().for_each(|stream| own.begin(stream.into())));
        let own = Arc::clone(&shared);
        spawn(move || unix.incoming().flatten().for_each(|stream| own.begin(stream.into())));
        Self { shared, upstreams, begun, reports, sessions: 0 }
    }

    /// Opens one more session and waits until its upstream knows of it.
    pub(crate) fn open(&mut self, proxy: [SocketAddrV4; 2]) -> (u32, Wire) {
        let session = self.sessions;
        self.sessions += 1;
        let proxy = proxy[session as usize % 2];
        let mut client = connect(proxy, &Plan::of(self.shared.seed, session, Way::Back));
        let own: SockaddrIn = getsockname(client.as_raw_fd()).expect("an address");
        client.write_all(&session.to_le_bytes()).expect("sent");
        self.shared.stream(client, session, Way::There);
        let begun = self.begun.recv_timeout(PATIENCE).expect("the upstream hears of it");
        assert_eq!(begun, session);
        (session, (proxy, own.into()))
    }

    pub(crate) fn end(&self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    /// The upstream's side of a session; its number comes first.
    fn begin(self: &Arc<Self>, stream: OwnedFd) {
        let (own, mut stream) = (Arc::clone(self), File::from(stream));
        spawn(move || {
            let mut number = [0; 4];
            stream.read_exact(&mut number).expect("its number");
            let session = u32::from_le_bytes(number);
            own.stream(stream, session, Way::Back);
            let _ = own.begin.send(session);
        });
    }

    /// Sends in that direction and reads in the other.
    fn stream(self: &Arc<Self>, stream: File, session: u32, way: Way) {
        let patience = TimeVal::seconds(PATIENCE.as_secs() as i64);
        setsockopt(&stream, sockopt::ReceiveTimeout, &patience).expect("a timeout");
        setsockopt(&stream, sockopt::SendTimeout, &patience).expect("a timeout");
        let other = if way == Way::There { Way::Back } else { Way::There };
        let (sends, reads) =
            (Plan::of(self.seed, session, way), Plan::of(self.seed, session, other));
        let reader = stream.try_clone().expect("cloned");
        let own = Arc::clone(self);
        spawn(move || {
            let tally = own.send(stream, &sends);
            let _ = own.report.send(sends.report(Part::Sent, tally));
        });
        let own = Arc::clone(self);
        spawn(move || {
            let tally = own.receive(reader, &reads);
            let _ = own.report.send(reads.report(Part::Received, tally));
        });
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn send(&self, mut stream: File, plan: &Plan) -> Tally {
        let mut random = fastrand::Rng::with_seed(plan.seed ^ 1);
        let (mut contents, mut tally) = (Contents::of(plan.seed), Tally::default());
        while tally.bytes < plan.least || !(plan.is_early || self.is_over()) {
            // As many small ones as large ones.
            let bits = random.u32(0..=CHUNK_BITS);
            let size = random.usize(1..=1 << bits);
            let mut chunk = contents.next(size);
            while !chunk.is_empty() {
                match uninterrupted(|| stream.write(chunk)) {
                    Ok(written) => {
                        tally.add(&chunk[..written]);
                        chunk = &chunk[written..];
                    }
                    Err(error) => {
                        tally.error = Some(error.kind());
                        return tally;
                    }
                }
            }
            let pause_every = if plan.is_bulk { PAUSE_EVERY_IN_BULK } else { PAUSE_EVERY };
            if random.u32(..pause_every) == 0 {
                thread::sleep(LONGEST_PAUSE.mul_f64(random.f64()));
            }
        }
        let ended = shutdown(stream.as_raw_fd(), Shutdown::Write).map_err(io::Error::from);
        tally.error = ended.err().map(|error| error.kind());
        tally
    }

    fn receive(&self, mut stream: File, plan: &Plan) -> Tally {
        let mut random = fastrand::Rng::with_seed(plan.seed ^ 2);
        let (mut contents, mut tally) = (Contents::of(plan.seed), Tally::default());
        let mut buffer = vec![0; if plan.is_slowly_read { SLOW_BYTES } else { 1 << CHUNK_BITS }];
        loop {
            let size = random.usize(1..=buffer.len());
            match uninterrupted(|| stream.read(&mut buffer[..size])) {
                Ok(0) => return tally,
                Ok(read) => {
                    if tally.wrong_at.is_none() {
                        let place = contents.difference(&buffer[..read]);
                        tally.wrong_at = place.map(|place| tally.bytes + place as u64);
                    }
                    tally.add(&buffer[..read]);
                }
                Err(error) => {
                    tally.error = Some(error.kind());
                    return tally;
                }
            }
            // What is left in the end is read as fast as it comes.
            if plan.is_slowly_read && !self.is_over() {
                thread::sleep(LONGEST_PAUSE.mul_f64(random.f64()));
            }
        }
    }
}

/// A client, with little room for what it reads slowly. That is set before the other side has heard
/// of more room, or it would wait for it with each segment (tcp(7), RFC 1122, 4.2.3.4).
fn connect(proxy: SocketAddrV4, reads: &Plan) -> File {
    let flags = SockFlag::SOCK_CLOEXEC;
    let client = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
    if reads.is_slowly_read {
        setsockopt(&client, sockopt::RcvBuf, &SLOW_BYTES).expect("set");
    }
    socket::connect(client.as_raw_fd(), &SockaddrIn::from(proxy)).expect("a connection");
    File::from(client)
}

fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().stack_size(THREAD_STACK_BYTES);
    thread.spawn(body).expect("a thread");
}
