//! The relay over real sockets, without a server: a loop of this test's own drives it.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Registry, Token};
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg, setsockopt, sockopt};
use proptest::prelude::*;

use super::*;

/// How long anything may take before the test has failed.
const LIMIT: Duration = Duration::from_secs(30);
const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(5), idle: None, half_closed: None };

/// One end of a connection, as a client or an upstream has it.
enum Outside {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Outside {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn end(&self) {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
        .expect("half-closed");
    }

    fn reset(self) {
        if let Self::Tcp(stream) = &self {
            let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(stream, sockopt::Linger, &at_once).expect("set");
        }
    }
}

/// A connection: the outside, and what the relay gets.
fn connection(tcp: bool) -> (Outside, Stream) {
    if !tcp {
        let (outside, inside) = UnixStream::pair().expect("a pair");
        outside.set_nonblocking(true).expect("non-blocking");
        inside.set_nonblocking(true).expect("non-blocking");
        return (Outside::Unix(outside), mio::net::UnixStream::from_std(inside).into());
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let outside = TcpStream::connect(listener.local_addr().expect("an address")).expect("connects");
    let (inside, _) = listener.accept().expect("accepted");
    outside.set_nonblocking(true).expect("non-blocking");
    inside.set_nonblocking(true).expect("non-blocking");
    (Outside::Tcp(outside), mio::net::TcpStream::from_std(inside).into())
}

/// A relay to what is still connecting.
fn open(downstream: Stream, upstream: Stream, now: Instant, pool: &mut Pool) -> Relay {
    Relay::open(downstream, b"", pool).expect("there").to(upstream, now)
}

/// A relay and a loop that drives it.
struct Loop {
    poll: Poll,
    registry: Rc<Registry>,
    relay: Option<Relay>,
    pool: Pool,
    again: Option<IoEvent>,
    /// It was idle when it was put together, and hears of room together with what comes next.
    patient: bool,
    /// How often it was to be flushed; every other time it is.
    deferred: u32,
    ending: Option<Ending>,
}

impl Loop {
    /// A relay between two connections: their outer ends, and the loop.
    fn between(downstream: bool, upstream: bool, mut pool: Pool) -> (Outside, Outside, Self) {
        let (client, downstream) = connection(downstream);
        let (server, upstream) = connection(upstream);
        let relay = open(downstream, upstream, Instant::now(), &mut pool);
        (client, server, Self::driving(relay, pool))
    }

    fn driving(relay: Relay, pool: Pool) -> Self {
        let poll = Poll::new().expect("a poll");
        let registry = Rc::new(poll.registry().try_clone().expect("a registry"));
        let (relay, again, ending) = (Some(relay), None, None);
        let (patient, deferred) = (false, 0);
        let mut this = Self { poll, registry, relay, pool, again, patient, deferred, ending };
        this.register();
        this
    }

    fn register(&mut self) {
        let relay = self.relay.as_mut().expect("a relay");
        relay.downstream.stream.register(&self.registry, Token(0)).expect("registered");
        relay.upstream.stream.register(&self.registry, Token(1)).expect("registered");
    }

    /// What has happened, if anything.
    fn event(&mut self) -> Option<IoEvent> {
        let mut events = Events::with_capacity(8);
        self.poll.poll(&mut events, Some(Duration::ZERO)).expect("polled");
        let mut event = self.again.take();
        for found in &events {
            event.get_or_insert_default().merge(IoEvent::from_mio(found, found.token().0 as u8));
        }
        event
    }

    fn turn(&mut self) {
        let Some(event) = self.event() else { return };
        if self.patient && event.is_room_alone() {
            self.again = Some(event);
            return;
        }
        self.patient = false;
        let Some(relay) = &mut self.relay else { return };
        let mut turn = relay.turn(event, Instant::now(), PATIENCE, &mut self.pool);
        if matches!(turn, Turn::Flush) {
            self.deferred += 1;
            if self.deferred % 2 == 0 {
                turn = relay.flush(Instant::now(), &mut self.pool);
            }
        }
        match turn {
            Turn::Wait => {}
            Turn::Again => self.again = Some(event),
            // By another turn, then, or perhaps by another process.
            Turn::Flush => self.again = Some(IoEvent::default()),
            Turn::NotConnected(error) => panic!("{error}"),
            Turn::Over(ending) => {
                self.ending = Some(ending);
                self.relay = None;
            }
        }
    }

    /// The relay's answer to an event, by itself.
    fn answer(&mut self, event: IoEvent) -> Turn {
        let relay = self.relay.as_mut().expect("a relay");
        relay.turn(event, Instant::now(), PATIENCE, &mut self.pool)
    }

    /// The same for one that is to defer what it reads.
    fn defer(&mut self, event: IoEvent) -> &mut Relay {
        let turn = self.answer(event);
        assert!(matches!(turn, Turn::Flush), "{turn:?}");
        self.relay.as_mut().expect("a relay")
    }

    fn flush(&mut self) -> Turn {
        self.relay.as_mut().expect("a relay").flush(Instant::now(), &mut self.pool)
    }

    /// Turns until something holds.
    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.turn();
            if holds(self) {
                return;
            }
            assert!(Instant::now() < deadline, "never: {what}; {:?}", self.relay);
        }
    }

    /// Takes the relay apart and puts it together again, as if it had moved.
    fn pack_and_unpack(&mut self) {
        let Some(relay) = self.relay.take() else { return };
        let mut state = Vec::new();
        let mut streams = relay.pack(Instant::now(), &mut state);
        assert!(state.len() <= limits::RELAY_READ_BYTES + limits::RELAY_LEAST_BYTES + 33);
        assert_eq!(self.pool.used(), 0, "it is nobody's any more");
        for stream in &mut streams {
            stream.deregister();
        }
        let relay = Relay::decode(&state, streams, Instant::now(), &self.pool);
        let relay = relay.expect("whole");
        self.patient = relay.is_idle();
        self.relay = Some(relay);
        // What was to come again comes by the new registration.
        self.again = None;
        self.register();
    }
}

/// What one side sends, and has received.
struct Peer {
    outside: Option<Outside>,
    to_send: Vec<u8>,
    sent: usize,
    ended: bool,
    received: Vec<u8>,
    saw_end: bool,
}

impl Peer {
    fn new(outside: Outside, to_send: Vec<u8>) -> Self {
        let (sent, received) = (0, Vec::new());
        Self { outside: Some(outside), to_send, sent, ended: false, received, saw_end: false }
    }

    /// Sends no more than that, and the end behind it.
    fn send(&mut self, most: usize) {
        let outside = self.outside.as_mut().expect("open");
        let end = self.to_send.len().min(self.sent + most);
        if self.sent < end {
            match outside.write(&self.to_send[self.sent..end]) {
                Ok(sent) => self.sent += sent,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        if self.sent == self.to_send.len() && !std::mem::replace(&mut self.ended, true) {
            outside.end();
        }
    }

    /// Receives no more than that.
    fn receive(&mut self, most: usize) {
        let mut buffer = vec![0; most.max(1)];
        match self.outside.as_mut().expect("open").read(&mut buffer) {
            Ok(0) => self.saw_end = true,
            Ok(read) => self.received.extend(&buffer[..read]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
    }
}

/// Bytes that tell where they are.
fn pattern(length: usize, salt: u32) -> Vec<u8> {
    let byte = |place: u32| (place.wrapping_add(salt).wrapping_mul(2_654_435_761) >> 24) as u8;
    (0..length as u32).map(byte).collect()
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    Send(usize, usize),
    Receive(usize, usize),
    Turn,
    Move,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        3 => (0..2_usize, 1..200_000_usize).prop_map(|(side, most)| Deed::Send(side, most)),
        3 => (0..2_usize, 1..200_000_usize).prop_map(|(side, most)| Deed::Receive(side, most)),
        4 => Just(Deed::Turn),
        1 => Just(Deed::Move),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever the order, the sizes, the kinds of sockets and the room for what is kept, and
    /// whenever the relay moves: each side receives what the other one sent, and then its end.
    #[test]
    fn both_streams_arrive_as_they_were_sent_whenever_the_relay_moves(
        kinds in any::<(bool, bool)>(),
        lengths in (0..1_500_000_usize, 0..1_500_000_usize),
        bound in prop_oneof![Just(0), Just(40_000), Just(limits::RELAY_KEPT_BYTES)],
        has_pipe in prop::bool::weighted(0.7),
        deeds in prop::collection::vec(deed(), 0..200),
    ) {
        let (client, server, mut turns) = Loop::between(kinds.0, kinds.1, Pool::new(bound));
        turns.pool.pipe = turns.pool.pipe.take().filter(|_| has_pipe);
        let mut peers = [
            Peer::new(client, pattern(lengths.0, 1)),
            Peer::new(server, pattern(lengths.1, 2)),
        ];
        for deed in deeds {
            match deed {
                Deed::Send(side, most) => peers[side].send(most),
                Deed::Receive(side, most) => peers[side].receive(most),
                Deed::Turn => turns.turn(),
                Deed::Move => turns.pack_and_unpack(),
            }
        }
        turns.until("both are at their end", |_| {
            for peer in &mut peers {
                peer.send(usize::MAX / 2);
                peer.receive(300_000);
            }
            peers.iter().all(|peer| peer.saw_end)
        });
        turns.until("the relay is over", |turns| turns.ending.is_some());
        prop_assert!(matches!(turns.ending, Some(Ending::Finished)), "{:?}", turns.ending);
        let [client, server] = &peers;
        prop_assert!(client.received == server.to_send, "from the upstream to the client");
        prop_assert!(server.received == client.to_send, "from the client to the upstream");
        prop_assert_eq!(turns.pool.used(), 0);
    }

    #[test]
    fn what_is_no_packed_relay_is_an_error_that_names_its_field(
        mut bytes in prop::collection::vec(any::<u8>(), 0..80),
        calm in any::<bool>(),
    ) {
        // Flags that hold, and little that is kept, lead further into the packet.
        if calm {
            for (place, byte) in bytes.iter_mut().enumerate() {
                *byte = if place == 0 || place >= 25 { *byte % 3 } else { *byte };
            }
        }
        let pool = Pool::default();
        let streams = vec![connection(false).1, connection(false).1];
        match Relay::decode(&bytes, streams, Instant::now(), &pool) {
            Ok(relay) => {
                let mut again = Vec::new();
                let _ = relay.pack(Instant::now(), &mut again);
                prop_assert_eq!(again.len(), bytes.len());
            }
            Err(error) => prop_assert!(error.to_string().starts_with("field \"")),
        }
        prop_assert_eq!(pool.used(), 0);
    }
}

#[test]
fn a_half_closed_connection_goes_on_in_the_other_direction() {
    for (first, second) in [(0, 1), (1, 0)] {
        for kinds in [(true, true), (true, false), (false, true), (false, false)] {
            let (client, server, mut turns) = Loop::between(kinds.0, kinds.1, Pool::default());
            let mut sides = [client, server];
            sides[first].write(b"all that I have to say").expect("sent");
            sides[first].end();
            let mut heard = Peer::new(sides.remove_side(second), Vec::new());
            turns.until("the end is passed on", |_| {
                heard.receive(100);
                heard.saw_end
            });
            assert_eq!(heard.received, b"all that I have to say");
            assert!(turns.ending.is_none());
            heard.outside.as_mut().expect("open").write(b"and I").expect("sent");
            heard.outside.as_ref().expect("open").end();
            let mut answered = Peer::new(sides.remove_side(first), Vec::new());
            turns.until("the other end, too", |_| {
                answered.receive(100);
                answered.saw_end
            });
            assert_eq!(answered.received, b"and I");
            assert!(matches!(turns.ending, Some(Ending::Finished)));
        }
    }
}

/// Takes one of two out, and leaves something that nobody uses.
trait RemoveSide {
    fn remove_side(&mut self, side: usize) -> Outside;
}

impl RemoveSide for [Outside; 2] {
    fn remove_side(&mut self, side: usize) -> Outside {
        std::mem::replace(&mut self[side], connection(false).0)
    }
}

#[test]
fn a_reset_is_passed_on_as_a_reset_from_either_side() {
    for from_client in [true, false] {
        let (client, server, mut turns) = Loop::between(true, true, Pool::default());
        let (broken, other) = if from_client { (client, server) } else { (server, client) };
        turns.turn();
        broken.reset();
        turns.until("it is over", |turns| turns.ending.is_some());
        let by = if from_client { Side::Downstream } else { Side::Upstream };
        match &turns.ending {
            Some(Ending::Reset { by: who, error }) => {
                assert_eq!((*who, error.kind()), (by, ErrorKind::ConnectionReset));
            }
            ending => panic!("{ending:?}"),
        }
        expect_reset(other);
    }
}

#[test]
fn a_reset_comes_through_in_time_though_nobody_reads_what_was_sent_before_it() {
    for pool in [Pool::new(0), Pool::default()] {
        let (mut client, server, mut turns) = Loop::between(true, true, pool);
        turns.until("the way is full", |_| client.write(&[0; 65_536]).is_err());
        for _ in 0..20 {
            turns.turn();
        }
        client.reset();
        turns.until("it is heard", |turns| turns.relay.as_ref().is_some_and(is_breaking));
        let relay = turns.relay.as_mut().expect("a relay");
        let deadline = relay.deadline(PATIENCE).expect("one");
        let early = relay.turn(IoEvent::timeout(), Instant::now(), PATIENCE, &mut turns.pool);
        assert!(matches!(early, Turn::Wait), "{early:?}");
        let late = relay.turn(IoEvent::timeout(), deadline, PATIENCE, &mut turns.pool);
        assert!(matches!(late, Turn::Over(Ending::Reset { by: Side::Downstream, .. })), "{late:?}");
        turns.relay = None;
        expect_reset(server);
    }
}

fn is_breaking(relay: &Relay) -> bool {
    relay.breaking.is_some()
}

/// A server that has heard enough answers and closes, and what it has not read makes a reset of that.
#[test]
fn an_answer_in_front_of_a_reset_arrives_though_the_client_is_still_sending() {
    for moves in [false, true] {
        let (mut client, mut server, mut turns) = Loop::between(true, true, Pool::default());
        client.write(b"a long upload").expect("sent");
        let mut begun = [0; 6];
        turns.until("it begins", |_| server.read(&mut begun).is_ok());
        let answer = pattern(60_000, 3);
        assert_eq!(server.write(&answer).expect("sent"), answer.len());
        drop(server);
        // It is the write that finds out.
        client.write(b" goes on").expect("sent");
        let mut client = Peer::new(client, Vec::new());
        turns.until("all of it arrives", |turns| {
            if moves {
                turns.pack_and_unpack();
            }
            client.receive(10_000);
            client.received.len() >= answer.len()
        });
        assert!(client.received == answer);
        let end = |turns: &mut Loop| {
            // It may be looking whether all of it was sent.
            let event = turns.event().unwrap_or(IoEvent::timeout());
            match turns.answer(event) {
                Turn::Over(ending) => Some(ending),
                Turn::Wait | Turn::Flush | Turn::Again | Turn::NotConnected(_) => None,
            }
        };
        turns.turn();
        while turns.ending.is_none() {
            turns.ending = end(&mut turns);
        }
        assert!(matches!(turns.ending, Some(Ending::Reset { by: Side::Upstream, .. })));
        turns.relay = None;
        expect_reset(client.outside.take().expect("there"));
    }
}

#[test]
fn a_relay_that_is_half_closed_has_a_time_of_its_own_and_its_end_is_a_reset() {
    let (client, server, mut turns) = Loop::between(true, true, Pool::default());
    let patience = Patience { half_closed: Some(Duration::from_secs(60)), ..PATIENCE };
    turns.until("it is connected", |turns| !turns.relay.as_ref().is_some_and(Relay::is_connecting));
    let relay = turns.relay.as_mut().expect("a relay");
    assert!(relay.hastens());
    assert_eq!(relay.deadline(patience), None);
    client.end();
    turns.until("it is half-closed", |turns| turns.relay.as_ref().is_some_and(|r| r.forward.over));
    turns.pack_and_unpack();
    let relay = turns.relay.as_mut().expect("a relay");
    assert!(relay.hastens() && !relay.hastens());
    let deadline = relay.deadline(patience).expect("one");
    let late = relay.turn(IoEvent::timeout(), deadline, patience, &mut turns.pool);
    assert!(matches!(late, Turn::Over(Ending::HalfClosed)), "{late:?}");
    turns.relay = None;
    expect_reset(client);
    drop(server);
}

#[test]
fn a_reset_comes_through_behind_the_end_of_a_stream() {
    let (client, mut server, mut turns) = Loop::between(true, true, Pool::default());
    client.end();
    turns.until("the end is passed on", |_| matches!(server.read(&mut [0; 8]), Ok(0)));
    client.reset();
    turns.until("it is over", |turns| turns.ending.is_some());
    assert!(matches!(turns.ending, Some(Ending::Reset { by: Side::Downstream, .. })));
    // The end was read already, so that it is the write that tells.
    let error = server.write(b"x").and_then(|_| server.write(b"y")).expect_err("reset");
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
}

fn expect_reset(mut other: Outside) {
    let deadline = Instant::now() + LIMIT;
    let mut buffer = vec![0; 65_536];
    let error = loop {
        match other.read(&mut buffer) {
            Ok(0) => panic!("an end, and no reset"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(Instant::now() < deadline, "never reset");
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// A read stops in front of urgent data: what is behind it must not be forgotten.
#[test]
fn bytes_behind_urgent_data_arrive_though_the_read_before_it_was_short() {
    let (client, server, mut turns) = Loop::between(true, true, Pool::default());
    let Outside::Tcp(client) = client else { panic!("TCP") };
    turns.turn();
    for (bytes, flags) in [
        (b"before", MsgFlags::empty()),
        (b"urgen!", MsgFlags::MSG_OOB),
        (b"behind", MsgFlags::empty()),
    ] {
        send(client.as_raw_fd(), bytes, flags).expect("sent");
    }
    let mut server = Peer::new(server, Vec::new());
    turns.until("everything arrives", |_| {
        server.receive(100);
        server.received.ends_with(b"behind")
    });
    assert_eq!(server.received, b"beforeurgenbehind", "but for the urgent byte itself");
}

/// splice(2) answers 0 in front of urgent data that has the end behind it.
#[test]
fn bytes_behind_urgent_data_in_a_bulk_transfer_arrive_though_the_end_is_there() {
    let (mut client, server, mut turns) = Loop::between(true, true, Pool::default());
    let bulk = pattern(40_000, 1);
    client.write(&bulk).expect("sent");
    turns.until("it is in bulk", |turns| turns.relay.as_ref().is_some_and(|r| r.forward.bulk));
    client.write(&bulk).expect("sent");
    let Outside::Tcp(stream) = &client else { panic!("TCP") };
    let fd = stream.as_raw_fd();
    send(fd, b"urgent!", MsgFlags::MSG_OOB).expect("sent");
    send(fd, b"the tail", MsgFlags::empty()).expect("sent");
    client.end();
    // As if no event had told of it yet.
    let relay = turns.relay.as_mut().expect("a relay");
    let turn = relay.turn(IoEvent::readable(), Instant::now(), PATIENCE, &mut turns.pool);
    assert!(matches!(turn, Turn::Wait | Turn::Again), "{turn:?}");
    let mut server = Peer::new(server, Vec::new());
    turns.until("all of it arrives", |_| {
        server.receive(100_000);
        server.saw_end
    });
    assert_eq!(server.received, [&bulk, &bulk, &b"urgentthe tail"[..]].concat());
}

/// A read of a Unix stream ends behind descriptors, whatever follows them.
#[test]
fn bytes_behind_descriptors_arrive_and_the_end_behind_them() {
    let (client, server, mut turns) = Loop::between(false, true, Pool::default());
    let Outside::Unix(stream) = &client else { panic!("Unix") };
    let rights = [nix::sys::socket::ControlMessage::ScmRights(&[stream.as_raw_fd()])];
    turns.turn();
    for (bytes, control) in [(b"one", &rights[..]), (b"two", &[][..])] {
        let bytes = [io::IoSlice::new(bytes)];
        let flags = MsgFlags::empty();
        nix::sys::socket::sendmsg::<()>(stream.as_raw_fd(), &bytes, control, flags, None)
            .expect("sent");
    }
    client.end();
    let mut server = Peer::new(server, Vec::new());
    turns.until("the end is passed on", |_| {
        server.receive(100);
        server.saw_end
    });
    assert_eq!(server.received, b"onetwo");
}

#[test]
fn what_the_upstream_is_told_first_comes_first_and_once_also_after_another_connect() {
    let (mut client, downstream) = connection(true);
    let (_nobody, refused) = connection(false);
    let (server, upstream) = connection(true);
    let mut pool = Pool::new(0);
    let opening = Relay::open(downstream, b"PROXY ", &mut pool).expect("there");
    assert!(opening.has_bytes());
    let mut relay = opening.to(refused, Instant::now());
    client.write(b"request").expect("sent");
    relay.reconnect(upstream, Instant::now());
    let mut turns = Loop::driving(relay, pool);
    let mut server = Peer::new(server, Vec::new());
    turns.until("the request arrives", |_| {
        server.receive(100);
        server.received.len() >= 13
    });
    assert_eq!(server.received, b"PROXY request");
}

/// Two connections and a relay that has passed on a small message, "one", from the client.
fn after_a_small_message(downstream: bool, upstream: bool) -> (Outside, Peer, Loop) {
    let (mut client, server, mut turns) = Loop::between(downstream, upstream, Pool::default());
    let mut server = Peer::new(server, Vec::new());
    client.write(b"one").expect("sent");
    turns.until("the first one arrives", |_| {
        server.receive(100);
        server.received.len() == 3
    });
    // A Unix stream is found empty by a read of its own.
    turns.turn();
    (client, server, turns)
}

#[test]
fn what_is_small_is_written_by_the_flush_and_its_buffer_is_used_again() {
    let (mut client, mut server, mut turns) = after_a_small_message(true, true);
    for (message, so_far) in [("two", "onetwo"), ("three", "onetwothree")] {
        client.write(message.as_bytes()).expect("sent");
        assert_eq!(turns.defer(IoEvent::readable()).kept(), (message.len(), 0));
        assert_eq!(turns.pool.used(), limits::RELAY_SMALL_BYTES);
        server.receive(100);
        assert_eq!(server.received.len() + message.len(), so_far.len(), "not yet");

        let turn = turns.flush();
        assert!(matches!(turn, Turn::Wait), "{turn:?}");
        let relay = turns.relay.as_ref().expect("a relay");
        assert_eq!((relay.kept(), turns.pool.used()), ((0, 0), 0));
        server.receive(100);
        assert_eq!(server.received, so_far.as_bytes());
        assert_eq!(turns.pool.spare(), 1);
    }
}

#[test]
fn after_a_move_only_a_relay_with_nothing_to_write_waits_for_a_peer() {
    for (downstream, upstream) in [(true, true), (true, false), (false, true), (false, false)] {
        let (mut client, mut server, mut turns) = after_a_small_message(downstream, upstream);
        // On one machine it is there when write(2) has returned, and a registration tells of it at once.
        client.write(b"two").expect("sent");
        turns.pack_and_unpack();
        assert!(turns.patient);
        let event = turns.event().expect("a message and room");
        assert_eq!(turns.defer(event).kept(), (3, 0));
        // Nobody says anything any more, and nothing but room is heard of.
        turns.pack_and_unpack();
        turns.until("what was read before the move arrives", |_| {
            server.receive(100);
            server.received == b"onetwo"
        });
    }
}

#[test]
fn a_relay_that_still_connects_is_not_idle() {
    let (_client, downstream) = connection(true);
    let (_server, upstream) = connection(true);
    let mut pool = Pool::default();
    assert!(!open(downstream, upstream, Instant::now(), &mut pool).is_idle());
}

#[test]
fn a_deferred_message_is_written_before_the_end_and_not_when_the_other_side_is_gone() {
    for is_reset in [false, true] {
        let (mut client, mut server, mut turns) = after_a_small_message(true, true);
        client.write(b"two").expect("sent");
        client.end();
        let event = turns.event().expect("one");
        turns.defer(event);
        if is_reset {
            server.outside.take().expect("there").reset();
            let turn = turns.flush();
            assert!(
                matches!(turn, Turn::Over(Ending::Reset { by: Side::Upstream, .. })),
                "{turn:?}"
            );
        } else {
            let turn = turns.flush();
            assert!(matches!(turn, Turn::Wait), "{turn:?}");
            turns.until("the end is passed on", |_| {
                server.receive(100);
                server.saw_end
            });
            assert_eq!(server.received, b"onetwo");
        }
    }
}

#[test]
fn a_small_message_with_a_reset_behind_it_is_written_before_that_is_passed_on() {
    // With an answer on its way, it is the other direction that finds it out.
    for is_answered in [false, true] {
        let (mut client, mut server, mut turns) = after_a_small_message(true, true);
        client.write(b"two").expect("sent");
        client.reset();
        if is_answered {
            server.outside.as_mut().expect("there").write(b"answer").expect("sent");
        }
        let event = turns.event().expect("one");
        let turn = turns.answer(event);
        assert!(matches!(turn, Turn::Over(Ending::Reset { by: Side::Downstream, .. })), "{turn:?}");
        assert_eq!(turns.relay.as_ref().expect("a relay").moved(), (6, 0));
        // Before the relay is dropped, which resets the upstream, too.
        server.receive(100);
        assert_eq!(server.received, b"onetwo");
    }
}

#[test]
fn a_message_that_is_larger_than_the_last_ones_goes_out_in_one_piece() {
    for size in [limits::RELAY_SMALL_BYTES, limits::RELAY_SMALL_BYTES + 1, 16 * 1024] {
        let (mut client, server, mut turns) = after_a_small_message(true, true);
        let message = pattern(size, 1);
        client.write(&message).expect("sent");
        let event = turns.event().expect("one");
        let turn = turns.answer(event);
        assert!(matches!(turn, Turn::Wait), "{turn:?}");
        let relay = turns.relay.as_ref().expect("a relay");
        assert_eq!((relay.moved().0, turns.pool.used()), (3 + size as u64, 0));
        let Some(Outside::Tcp(mut server)) = server.outside else { panic!("a TCP connection") };
        let mut received = vec![0; size + 1];
        assert_eq!(server.read(&mut received).expect("received"), size);
        assert_eq!(received[..size], message);
    }
}

/// A read of a Unix stream ends behind descriptors (unix(7)), which makes a small one in the midst of
/// much.
#[test]
fn a_small_read_at_the_end_of_a_bulk_transfer_stays_within_the_budget() {
    let (client, _server, mut turns) = after_a_small_message(false, false);
    let Outside::Unix(client) = client else { panic!("a Unix connection") };
    let relay = turns.relay.as_mut().expect("a relay");
    setsockopt(&client, sockopt::SndBuf, &(1 << 20)).expect("set");
    setsockopt(&relay.upstream.stream, sockopt::SndBuf, &(1 << 20)).expect("set");
    let descriptors = [client.as_raw_fd()];
    let with = [ControlMessage::ScmRights(&descriptors)];
    let send = |count: usize, control: &[ControlMessage<'_>]| {
        let bytes = vec![1; count];
        let bytes = [io::IoSlice::new(&bytes)];
        let flags = MsgFlags::empty();
        let sent = sendmsg::<()>(client.as_raw_fd(), &bytes, control, flags, None);
        assert_eq!(sent.expect("sent"), count);
    };
    // It leaves a budget that is less than a small read may bring.
    let bulk = limits::RELAY_BYTES_PER_TURN - 1000;
    (0..bulk / 30_000).for_each(|_| send(30_000, &[]));
    send(bulk % 30_000, &with);
    send(500, &with);
    send(3000, &[]);
    let event = turns.event().expect("one");
    let turn = turns.answer(event);
    assert!(matches!(turn, Turn::Again), "{turn:?}");
    assert_eq!(
        turns.relay.as_ref().expect("a relay").moved().0,
        3 + limits::RELAY_BYTES_PER_TURN as u64
    );
}

/// However little each read brings, the others have their turn.
#[test]
fn a_sender_of_single_bytes_holds_a_turn_for_so_many_reads_and_no_longer() {
    let (client, _server, mut turns) = after_a_small_message(false, false);
    let Outside::Unix(client) = client else { panic!("a Unix connection") };
    let descriptors = [client.as_raw_fd()];
    let with = [ControlMessage::ScmRights(&descriptors)];
    for _ in 0..limits::RELAY_READS_PER_TURN + 5 {
        let flags = MsgFlags::empty();
        // More than is deferred, and behind each of them the read ends.
        let bytes = [1; limits::RELAY_SMALL_BYTES];
        sendmsg::<()>(client.as_raw_fd(), &[io::IoSlice::new(&bytes)], &with, flags, None)
            .expect("sent");
    }
    let event = turns.event().expect("one");
    let turn = turns.answer(event);
    assert!(matches!(turn, Turn::Again), "{turn:?}");
    let moved = turns.relay.as_ref().expect("a relay").moved().0 - 3;
    let most = limits::RELAY_READS_PER_TURN as usize * limits::RELAY_SMALL_BYTES;
    assert_eq!(moved, most as u64);
}

#[test]
fn deferred_bytes_put_the_idle_timeout_off_with_any_kind_of_socket() {
    for (downstream, upstream) in [(true, true), (false, true), (true, false)] {
        let (mut client, mut server, mut turns) = after_a_small_message(downstream, upstream);
        let start = Instant::now();
        let patience = Patience { idle: Some(Duration::from_secs(60)), ..PATIENCE };
        for second in 1..100 {
            let now = start + Duration::from_secs(second);
            client.write(b"x").expect("sent");
            let relay = turns.relay.as_mut().expect("a relay");
            let turn = relay.turn(IoEvent::readable(), now, patience, &mut turns.pool);
            assert!(matches!(turn, Turn::Flush), "{turn:?}");
            let turn = relay.flush(now, &mut turns.pool);
            assert!(matches!(turn, Turn::Wait), "{turn:?}");
            assert_eq!(relay.deadline(patience), Some(now + Duration::from_secs(60)));
            server.receive(100);
        }
        assert_eq!(server.received.len(), 102);
    }
}

#[test]
fn a_deferred_message_that_the_sink_does_not_take_is_kept_until_it_does() {
    let (mut client, server, mut turns) = after_a_small_message(true, true);
    let Some(outside) = server.outside else { panic!("a connection") };
    let relay = turns.relay.as_mut().expect("a relay");
    // Behind the relay's back, until the upstream has no room.
    let filled =
        std::iter::from_fn(|| relay.upstream.stream.write(&[7; 65_536]).ok()).sum::<usize>();
    client.write(b"two").expect("sent");
    turns.defer(IoEvent::readable());
    let turn = turns.flush();
    assert!(matches!(turn, Turn::Wait), "{turn:?}");
    assert_eq!(turns.relay.as_ref().expect("a relay").kept(), (3, 0));
    let mut server = Peer::new(outside, Vec::new());
    turns.until("all of it arrives", |_| {
        server.receive(1_000_000);
        server.received.len() >= filled + 3
    });
    assert!(server.received.ends_with(b"\x07two"));
    assert_eq!(turns.pool.used(), 0);
}

#[test]
fn a_local_upstream_has_the_first_bytes_before_the_first_turn() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = listener.local_addr().expect("an address").into();
    let (mut client, downstream) = connection(true);
    client.write(b"request").expect("sent");
    let mut pool = Pool::default();
    let mut opening = Relay::open(downstream, b"PROXY ", &mut pool).expect("there");
    assert!(opening.has_bytes());
    let mut upstream = Stream::connect(&address, true).expect("connects");
    opening.send(&mut upstream).expect("sent");
    let relay = opening.to(upstream, Instant::now());
    assert!(!relay.is_connecting());
    assert_eq!((relay.moved(), relay.kept()), ((13, 0), (0, 0)));
    let (mut server, _) = listener.accept().expect("it is there");
    let mut received = [0; 13];
    server.read_exact(&mut received).expect("received");
    assert_eq!(&received, b"PROXY request");
}

#[test]
fn an_upstream_on_a_unix_socket_takes_what_it_has_room_for_and_the_rest_and_the_end_follow() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("upstream");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("listens");
    let (mut client, downstream) = connection(true);
    let said = pattern(limits::RELAY_OPENING_BYTES + 500, 3);
    client.write(&said).expect("sent");
    client.end();
    let mut pool = Pool::default();
    let mut opening = Relay::open(downstream, b"PROXY ", &mut pool).expect("there");
    let mut upstream = Stream::connect(&crate::Address::Path(path), true).expect("connects");
    // The least room there is.
    setsockopt(&upstream, sockopt::SndBuf, &1).expect("set");
    let filled = std::iter::from_fn(|| upstream.write(&[7; 100]).ok()).sum::<usize>();
    opening.send(&mut upstream).expect("not an error");
    let relay = opening.to(upstream, Instant::now());
    assert_eq!(relay.moved().0 + relay.kept().0 as u64, 6 + limits::RELAY_OPENING_BYTES as u64);
    let mut turns = Loop::driving(relay, pool);
    let (server, _) = listener.accept().expect("it is there");
    server.set_nonblocking(true).expect("non-blocking");
    let mut server = Peer::new(Outside::Unix(server), Vec::new());
    turns.until("all of it arrives", |_| {
        server.receive(1000);
        server.saw_end
    });
    assert_eq!(server.received[filled..], [b"PROXY ", &said[..]].concat());
}

#[test]
fn a_local_upstream_that_refuses_has_taken_nothing_from_the_next_one() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("listens");
    let gone = nobody.local_addr().expect("an address").into();
    drop(nobody);
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = listener.local_addr().expect("an address").into();
    let (mut client, downstream) = connection(true);
    client.write(b"request").expect("sent");
    let mut pool = Pool::default();
    let mut opening = Relay::open(downstream, b"", &mut pool).expect("there");
    // On one machine it is refused at once, by the one call or by the other.
    let refused = Stream::connect(&gone, true).and_then(|mut stream| opening.send(&mut stream));
    assert_eq!(refused.map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused));
    let mut upstream = Stream::connect(&address, true).expect("connects");
    opening.send(&mut upstream).expect("sent");
    let relay = opening.to(upstream, Instant::now());
    assert_eq!(relay.moved(), (7, 0));
    let (mut server, _) = listener.accept().expect("it is there");
    let mut received = [0; 7];
    server.read_exact(&mut received).expect("received");
    assert_eq!(&received, b"request");
}

#[test]
fn a_client_that_was_reset_before_it_began_is_not_connected_for() {
    let (client, downstream) = connection(true);
    client.reset();
    let opening = Relay::open(downstream, b"", &mut Pool::default()).map(|_| ());
    assert_eq!(opening.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_client_that_waits_for_its_upstream_stays_in_the_kernel_while_the_pool_is_full() {
    for (bound, kept) in [(0, 0), (limits::RELAY_OPENING_BYTES, 7)] {
        let (mut client, downstream) = connection(true);
        client.write(b"request").expect("sent");
        let mut pool = Pool::new(bound);
        let (_server, upstream) = connection(true);
        let relay = open(downstream, upstream, Instant::now(), &mut pool);
        assert_eq!(relay.kept(), (kept, 0), "{bound}");
        assert_eq!(pool.used(), kept);
    }
}

#[test]
fn a_slow_reader_makes_the_sender_wait_in_bounded_memory() {
    for bound in [0, limits::RELAY_KEPT_BYTES] {
        let (mut client, server, mut turns) = Loop::between(true, true, Pool::new(bound));
        let mut sent = 0;
        let mut idle = 0;
        while idle < 50 {
            match client.write(&[7; 65_536]) {
                Ok(count) => (sent, idle) = (sent + count, 0),
                Err(_) => idle += 1,
            }
            turns.turn();
            assert!(turns.pool.used() <= limits::RELAY_READ_BYTES.min(bound));
        }
        // Buffers of the kernel are some megabytes at the most; what is sent has an end.
        assert!(sent < 64 * 1024 * 1024, "{sent}");
        client.end();
        let mut server = Peer::new(server, Vec::new());
        turns.until("all of it arrives in the end", |_| {
            server.receive(1_000_000);
            server.saw_end
        });
        assert_eq!(server.received.len(), sent);
    }
}

#[test]
fn a_bulk_transfer_gives_way_after_its_share() {
    let (mut client, server, mut turns) = Loop::between(true, true, Pool::default());
    let mut server = Peer::new(server, Vec::new());
    let deadline = Instant::now() + LIMIT;
    // As soon as the kernel's buffers have grown beyond one share.
    while turns.again.is_none() {
        assert!(Instant::now() < deadline, "never more than its share");
        while client.write(&[7; 65_536]).is_ok() {}
        let before = turns.relay.as_ref().expect("a relay").moved().0;
        turns.turn();
        let moved = turns.relay.as_ref().expect("a relay").moved().0 - before;
        // What was kept of the turn before does not count.
        let most = limits::RELAY_BYTES_PER_TURN + limits::RELAY_READ_BYTES;
        assert!(moved <= most as u64, "{moved}");
        server.receive(4_000_000);
    }
}

/// All relays share the pipe, so that a byte left in it would come to a stranger.
#[test]
fn large_reads_go_through_the_pipe_and_leave_nothing_in_it() {
    for upstream_is_reset in [false, true] {
        let (mut client, server, mut turns) = Loop::between(true, true, Pool::default());
        assert!(turns.pool.pipe.is_some());
        turns.until("the way is full", |_| client.write(&[7; 65_536]).is_err());
        for _ in 0..20 {
            turns.turn();
        }
        assert!(turns.relay.as_ref().expect("a relay").forward.bulk);
        let kept = turns.pool.used();
        assert!(0 < kept && kept <= limits::RELAY_READ_BYTES, "{kept}");
        if upstream_is_reset {
            server.reset();
            turns.until("it is over", |turns| turns.ending.is_some());
        }
        let pipe = turns.pool.pipe.as_ref().expect("the same pipe");
        let error = pipe.take(&mut [0]).expect_err("empty");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn an_idle_relay_ends_at_its_time_and_a_byte_puts_that_off() {
    let (mut client, _server, mut turns) = Loop::between(true, true, Pool::default());
    let patience = Patience { idle: Some(Duration::from_secs(60)), ..PATIENCE };
    turns.until("it is connected", |turns| !turns.relay.as_ref().is_some_and(Relay::is_connecting));
    let first = turns.relay.as_ref().and_then(|relay| relay.deadline(patience)).expect("one");
    client.write(b"x").expect("sent");
    turns.until("it is moved", |turns| turns.relay.as_ref().is_some_and(|r| r.moved().0 == 1));
    let relay = turns.relay.as_mut().expect("a relay");
    let second = relay.deadline(patience).expect("one");
    assert!(second > first);
    let early = relay.turn(IoEvent::timeout(), first, patience, &mut turns.pool);
    assert!(matches!(early, Turn::Wait), "{early:?}");
    let late = relay.turn(IoEvent::timeout(), second, patience, &mut turns.pool);
    assert!(matches!(late, Turn::Over(Ending::Idle)), "{late:?}");
}

#[test]
fn a_connection_that_is_not_made_in_time_is_given_back_and_reads_nothing() {
    let (mut client, downstream) = connection(true);
    let (_server, upstream) = connection(true);
    let start = Instant::now();
    let mut pool = Pool::default();
    let mut relay = open(downstream, upstream, start, &mut pool);
    client.write(b"x").expect("sent");
    // The upstream has not said anything yet.
    let turn = relay.turn(IoEvent::readable(), start, PATIENCE, &mut pool);
    assert!(matches!(turn, Turn::Wait), "{turn:?}");
    let deadline = relay.deadline(PATIENCE).expect("one");
    assert_eq!(deadline, start + PATIENCE.connect);
    let turn = relay.turn(IoEvent::timeout(), deadline, PATIENCE, &mut pool);
    let Turn::NotConnected(error) = turn else { panic!("{turn:?}") };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let (_, other) = connection(true);
    relay.reconnect(other, deadline);
    assert_eq!(relay.deadline(PATIENCE), Some(deadline + PATIENCE.connect));
}

#[test]
fn a_moved_relay_has_waited_as_long_as_it_had() {
    let (_client, _server, mut turns) = Loop::between(true, true, Pool::default());
    turns.until("it is connected", |turns| !turns.relay.as_ref().is_some_and(Relay::is_connecting));
    let patience = Patience { idle: Some(Duration::from_secs(60)), ..PATIENCE };
    let relay = turns.relay.take().expect("a relay");
    let deadline = relay.deadline(patience).expect("one");
    let now = deadline - Duration::from_secs(59);
    let mut state = Vec::new();
    let streams = relay.pack(now, &mut state);
    let moved = Relay::decode(&state, streams, now, &turns.pool).expect("whole");
    assert_eq!(moved.deadline(patience), Some(deadline));
    assert!(!moved.is_connecting());
}

/// What an idle session costs is little more than this.
#[test]
fn an_idle_relay_is_small() {
    assert!(size_of::<Relay>() <= 208, "{}", size_of::<Relay>());
}
