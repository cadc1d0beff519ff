//! A store of keys and values that is replaced while clients write to it: no write is lost, and none is
//! made twice, also if the new process dies and the old one comes back.
//!
//!     cargo run --release --example store
//!     nc localhost 8080
//!     put greeting hello
//!     get greeting
//!     incr visits
//!
//! The values lie in a file in memory, which passes from process to process; what moves at the commit is
//! where each of them is. From then on the new process is the only one that decides: the old one sends it
//! the writes of its own clients, and answers them when it hears that they were made. The new one tells
//! each write to the old one before it answers, so that the old one can come back.
//!
//! It keeps every value that was ever written: to give the space back is left out.

mod common;
#[path = "store/index.rs"]
mod index;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::Duration;

use common::logging;
use common::program::{Options, Program, words};
use index::{Index, Place};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tablecloth::{
    Accepted, Context, HandedOver, Handler, IoEvent, Packed, Server, SessionId, State, Stream,
    TellError, Verdict,
};

const PROGRAM: Program = Program {
    name: "store",
    help: "A store of keys and values that is replaced on HUP, and loses no write.\n\n\
           usage: store [flags]\n\n\
           A client sends `put KEY VALUE`, `incr KEY` or `get KEY`, one in a line.",
    listen: "127.0.0.1:8080",
};

const SCHEMA: u32 = 1;
/// The longest line of a client.
const LINE: usize = 64 * 1024;
const KEY: usize = 1024;
/// How soon a write is tried again that cannot be made yet.
const HOLD: Duration = Duration::from_millis(1);

/// What is to become of a value.
#[derive(Clone)]
enum Change {
    Put(Place),
    Increment,
}

struct Store {
    /// The values, in a file of which both processes write the end: each write has a place of its own.
    values: File,
    places: Index,
    /// Writes of this process's clients that the new process is to make, the oldest first.
    asked: VecDeque<(SessionId, Vec<u8>, Change)>,
    answers: HashMap<SessionId, Vec<u8>>,
    /// The new process has everything, and has not failed.
    handed_over: bool,
}

struct Client {
    stream: Stream,
    /// Read, and not done yet.
    unread: Vec<u8>,
    unsent: Vec<u8>,
    /// The new process is to make a write of it.
    waits: bool,
    ended: bool,
}

impl Store {
    fn new(file: OwnedFd) -> io::Result<Self> {
        // A description of one's own has a position of one's own (proc_pid_fd(5)).
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let values = File::options().read(true).append(true).open(path)?;
        let (places, answers) = (Index::default(), HashMap::new());
        Ok(Self { values, places, asked: VecDeque::new(), answers, handed_over: false })
    }

    /// Lays a value down at the end of the file, where no other process has one (O_APPEND, open(2)).
    fn lay_down(&mut self, value: &[u8]) -> io::Result<Place> {
        self.values.write_all(value)?;
        let end = io::Seek::stream_position(&mut self.values)?;
        Ok(Place { at: end - value.len() as u64, length: value.len() as u32 })
    }

    fn value(&self, place: Place) -> io::Result<Vec<u8>> {
        let mut value = vec![0; place.length as usize];
        self.values.read_exact_at(&mut value, place.at)?;
        Ok(value)
    }

    /// Makes a write, here and now.
    fn make(&mut self, key: &[u8], write: &Change) -> io::Result<Place> {
        let place = match write {
            Change::Put(place) => *place,
            Change::Increment => {
                let old = self.places.get(key).map(|place| self.value(place)).transpose()?;
                let old = old.and_then(|old| String::from_utf8(old).ok()?.parse::<u64>().ok());
                self.lay_down((old.unwrap_or(0) + 1).to_string().as_bytes())?
            }
        };
        self.places.insert(key, place);
        Ok(place)
    }

    /// The answer to a write that was made. What is there by now may be a later one's.
    fn answer(&self, place: Place, write: &Change) -> io::Result<Vec<u8>> {
        match write {
            Change::Put(_) => Ok(b"ok\n".into()),
            Change::Increment => Ok([&self.value(place)?[..], b"\n"].concat()),
        }
    }

    /// What a client wants. `None` if the answer comes later.
    fn serve(&mut self, cx: &mut Context<'_>, line: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let (word, key) = (words.next().unwrap_or(b""), words.next().unwrap_or(b""));
        if key.is_empty() || key.len() > KEY {
            return Ok(Some(b"error: put KEY VALUE, incr KEY or get KEY\n".into()));
        }
        // Nobody decides while it is not known what the new process has still done, and none who cannot say
        // so to the other one.
        let waits = self.handed_over && !cx.can_tell()
            || cx.can_tell() && cx.tell_room() < KEY + Place::BYTES + 2;
        if waits && word != b"get" {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let write = match word {
            b"get" => {
                let value = self.places.get(key).map(|place| self.value(place)).transpose()?;
                return Ok(Some([&value.unwrap_or_default()[..], b"\n"].concat()));
            }
            b"put" => Change::Put(self.lay_down(words.next().unwrap_or(b""))?),
            b"incr" => Change::Increment,
            _ => return Ok(Some(b"error: put KEY VALUE, incr KEY or get KEY\n".into())),
        };
        // Once a successor serves, it alone decides.
        let leaves = matches!(cx.state(), State::Draining(_)) && cx.can_tell();
        if let Some(id) = cx.id().filter(|_| leaves) {
            tell(cx, b'w', Place { at: 0, length: 0 }, key, &write)?;
            self.asked.push_back((id, key.into(), write));
            return Ok(None);
        }
        let place = self.make(key, &write)?;
        if cx.can_tell() {
            tell(cx, b'm', place, key, &write)?;
        }
        self.answer(place, &write).map(Some)
    }

    fn turn(&mut self, cx: &mut Context<'_>, client: &mut Client) -> io::Result<Verdict> {
        if let Some(answer) = cx.id().and_then(|id| self.answers.remove(&id)) {
            client.unsent.extend(answer);
            client.waits = false;
        }
        // An answer must not be there before the other process knows of it.
        if cx.has_told_all() && !client.send()? {
            return Ok(Verdict::Keep);
        }
        if client.waits {
            return Ok(Verdict::Keep);
        }
        // The other process does not read: nothing more is done for this client until it does.
        if !cx.has_told_all() && client.unsent.len() > LINE {
            cx.wake_at(cx.now() + HOLD);
            return Ok(Verdict::Keep);
        }
        if let Some(end) = client.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<_> = client.unread.drain(..=end).collect();
            match self.serve(cx, &line[..end]) {
                Ok(Some(answer)) => client.unsent.extend(answer),
                Ok(None) => client.waits = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    client.unread.splice(..0, line);
                    cx.wake_at(cx.now() + HOLD);
                    return Ok(Verdict::Keep);
                }
                Err(error) => return Err(error),
            }
            return Ok(Verdict::Again);
        }
        if client.ended || client.unread.len() > LINE {
            return Ok(if client.unsent.is_empty() { Verdict::Close } else { Verdict::Again });
        }
        let mut buffer = [0; 8192];
        match client.stream.read(&mut buffer) {
            Ok(0) => client.ended = true,
            Ok(read) => client.unread.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(if client.unsent.is_empty() { Verdict::Keep } else { Verdict::Again });
            }
            Err(error) => return Err(error),
        }
        Ok(Verdict::Again)
    }

    /// A write of one of this process's clients was made, by the other process or by this one.
    fn settle(&mut self, cx: &mut Context<'_>, id: SessionId, answer: io::Result<Vec<u8>>) {
        let answer = answer.unwrap_or_else(|error| format!("error: {error}\n").into_bytes());
        self.answers.insert(id, answer);
        cx.wake(id);
    }
}

impl Client {
    /// Answers whether everything is sent.
    fn send(&mut self) -> io::Result<bool> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl Handler for Store {
    type Session = Client;

    fn open(&mut self, _: &mut Context<'_>, accepted: Accepted) -> io::Result<Client> {
        let (unread, unsent) = (Vec::new(), Vec::new());
        Ok(Client { stream: accepted.stream, unread, unsent, waits: false, ended: false })
    }

    fn event(&mut self, cx: &mut Context<'_>, client: &mut Client, _: IoEvent) -> Verdict {
        match self.turn(cx, client) {
            Ok(verdict) => verdict,
            Err(error) => {
                log::debug!("a client: {error}");
                Verdict::Close
            }
        }
    }

    fn pack(
        &mut self,
        _: &mut Context<'_>,
        client: Client,
        _: RangeInclusive<u32>,
    ) -> Result<Packed, Client> {
        if client.waits || client.ended {
            return Err(client);
        }
        let Client { stream, unread, unsent, .. } = client;
        let state = [&(unsent.len() as u32).to_le_bytes()[..], &unsent, &unread].concat();
        Ok(Packed::new(SCHEMA, state, vec![stream]))
    }

    fn unpack(&mut self, cx: &mut Context<'_>, mut packed: Packed) -> io::Result<Client> {
        let error = || io::Error::from(io::ErrorKind::InvalidData);
        let (length, rest) = packed.state.split_first_chunk().ok_or_else(error)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (unsent, unread) = rest.split_at_checked(length).ok_or_else(error)?;
        let stream = packed.streams.pop().ok_or_else(error)?;
        cx.id().into_iter().for_each(|id| cx.wake(id));
        let (unread, unsent) = (unread.to_vec(), unsent.to_vec());
        Ok(Client { stream, unread, unsent, waits: false, ended: false })
    }

    fn hand_over(
        &mut self,
        _: &mut Context<'_>,
        _: RangeInclusive<u32>,
    ) -> io::Result<Option<HandedOver>> {
        let values = self.values.try_clone()?;
        self.handed_over = true;
        Ok(Some(HandedOver::new(SCHEMA, self.places.to_bytes()).with(vec![values.into()])))
    }

    fn take_over(&mut self, _: &mut Context<'_>, mut state: HandedOver) -> io::Result<()> {
        let error = || io::Error::from(io::ErrorKind::InvalidData);
        *self = Self::new(state.descriptors.pop().ok_or_else(error)?)?;
        self.places = Index::of(state.bytes).ok_or_else(error)?;
        Ok(())
    }

    fn told(&mut self, cx: &mut Context<'_>, message: &[u8]) {
        let Some((kind, place, write, key)) = message_of(message) else { return };
        match kind {
            // A client of the old process wants it.
            b'w' => {
                let made = self.make(key, &write).and_then(|at| tell(cx, b'a', at, key, &write));
                if let Err(error) = made {
                    log::error!("a write of the old process's client: {error}");
                    cx.request_exit();
                }
            }
            // It was made, for a client of the new process or of this one.
            _ => {
                self.places.insert(key, place);
                let own = if kind == b'a' { self.asked.pop_front() } else { None };
                if let Some((id, _, write)) = own {
                    let answer = self.answer(place, &write);
                    self.settle(cx, id, answer);
                }
            }
        }
    }

    /// What it was asked for and has not made is made here.
    fn successor_gone(&mut self, cx: &mut Context<'_>) {
        self.handed_over = false;
        for (id, key, write) in std::mem::take(&mut self.asked) {
            let answer = self.make(&key, &write).and_then(|place| self.answer(place, &write));
            self.settle(cx, id, answer);
        }
    }
}

/// Says a write to the other process: that it is wanted, or that it was made.
fn tell(
    cx: &mut Context<'_>,
    kind: u8,
    place: Place,
    key: &[u8],
    write: &Change,
) -> io::Result<()> {
    let (increments, put) = match write {
        Change::Put(place) => (0, *place),
        Change::Increment => (1, place),
    };
    let mut message = vec![kind, increments];
    message.extend(if kind == b'w' { put } else { place }.to_bytes());
    message.extend(key);
    cx.tell(&message).map_err(|error: TellError| error.into())
}

fn message_of(message: &[u8]) -> Option<(u8, Place, Change, &[u8])> {
    let ([kind, increments], mut rest) = message.split_first_chunk()?;
    let place = Place::take(&mut rest)?;
    let write = if *increments == 1 { Change::Increment } else { Change::Put(place) };
    Some((*kind, place, write, rest))
}

fn main() -> ExitCode {
    PROGRAM.run(|Options { listen, common }| {
        let mut server = Server::new(common.config.schemas(SCHEMA..=SCHEMA)).map_err(words)?;
        logging::go();
        server.listen_with("store", &listen, &common.socket).map_err(words)?;
        let values = memfd_create(c"values", MFdFlags::MFD_CLOEXEC).map_err(words)?;
        let store = Store::new(values).map_err(words)?;
        logging::finish();
        server.run(store).map(drop).map_err(words)
    })
}
