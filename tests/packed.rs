//! What comes from a file or from another process is not to be trusted: routes, and the packed sessions
//! of the proxy with their relays. Whatever it is, it is understood or refused in words.

#![allow(clippy::expect_used, reason = "a test says what it expects")]
#![allow(dead_code, reason = "of the proxy a part is tried out here")]

#[path = "../examples/proxy/access.rs"]
mod access;
#[path = "../examples/common/mod.rs"]
mod common;
#[path = "../examples/proxy/connect.rs"]
mod connect;
#[path = "../examples/proxy/counters.rs"]
mod counters;
#[path = "../examples/proxy/extra.rs"]
mod extra;
#[path = "../examples/proxy/file.rs"]
mod file;
#[path = "../examples/proxy/header.rs"]
mod header;
#[path = "../examples/proxy/options.rs"]
mod options;
#[path = "../examples/proxy/packed.rs"]
mod packed;
#[path = "../examples/proxy/peer.rs"]
mod peer;
#[path = "../examples/proxy/routes.rs"]
mod routes;
#[path = "../examples/proxy/session.rs"]
mod session;
#[path = "../examples/proxy/settings.rs"]
mod settings;
#[path = "../examples/proxy/turns.rs"]
mod turns;
#[path = "../examples/proxy/upstreams.rs"]
mod upstreams;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::options::Common;
use connect::Lead;
use mio::{Events, Poll, Token};
use options::Options;
use proptest::collection::vec;
use proptest::prelude::*;
use routes::Route;
use session::ProxySession;
use settings::Settings;
use tablecloth::limits::{NAME_BYTES, RELAY_KEPT_BYTES};
use tablecloth::relay::{Patience, Pool, Relay, Turn};
use tablecloth::{Address, IoEvent, Packed, Stream};
use upstreams::Upstream;

const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(1), idle: None, half_closed: None };

/// Two streams with somebody at the other ends, who has sent something.
struct Wire {
    streams: Vec<Stream>,
    _far: Vec<mio::net::UnixStream>,
    poll: Poll,
}

impl Wire {
    fn new() -> Self {
        let poll = Poll::new().expect("epoll");
        let registry = Rc::new(poll.registry().try_clone().expect("a duplicate"));
        let (mut streams, mut far) = (Vec::new(), Vec::new());
        for source in 0..2 {
            let (near, mut other) = mio::net::UnixStream::pair().expect("a pair");
            std::io::Write::write_all(&mut other, b"hello").expect("sent");
            let mut stream = Stream::from(near);
            stream.register(&registry, Token(source)).expect("registered");
            streams.push(stream);
            far.push(other);
        }
        Self { streams, _far: far, poll }
    }

    fn events(&mut self) -> IoEvent {
        let (mut events, mut all) = (Events::with_capacity(4), IoEvent::default());
        self.poll.poll(&mut events, Some(Duration::ZERO)).expect("polled");
        events.iter().for_each(|it| all.merge(IoEvent::from_mio(it, it.token().0 as u8)));
        all
    }
}

/// A relay's state with any numbers in it, right or wrong.
fn any_state() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![any::<u64>(), Just(0), Just(u64::MAX), Just(u64::MAX / 2 - 64)];
    let kept = vec(any::<u8>(), 0..20);
    let fields = (any::<u8>(), [number.clone(), number.clone(), number], [kept.clone(), kept]);
    let whole = fields.prop_map(|(flags, numbers, kept)| {
        let mut state = vec![flags & 0b111_1111];
        numbers.iter().for_each(|number| state.extend(number.to_le_bytes()));
        for kept in kept {
            state.extend((kept.len() as u32).to_le_bytes());
            state.extend(kept);
        }
        state
    });
    let part = (whole.clone(), any::<prop::sample::Index>())
        .prop_map(|(state, end)| state[..end.index(state.len())].to_vec());
    prop_oneof![4 => whole, 1 => part, 1 => vec(any::<u8>(), 0..60)]
}

fn any_peer() -> impl Strategy<Value = Address> {
    prop_oneof![
        any::<std::net::SocketAddr>().prop_map(Address::Internet),
        vec(1..=u8::MAX, 1..=108).prop_map(|it| Address::Path(OsStr::from_bytes(&it).into())),
        "@?[ -~]{1,100}".prop_map(|it| Address::Path(it.into())),
        vec(any::<u8>(), 0..108).prop_map(Address::Abstract),
        Just(Address::Unnamed),
    ]
}

/// A file's text: words that belong in it, in any order, and others. No host is looked up.
fn any_text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        prop::sample::select(vec![
            "127.0.0.1:80",
            "127.0.0.1:0",
            "[::1]:80",
            "[::",
            "unix:/run/s",
            "unix:@s",
            "unix:",
            "->",
            "->",
            "->",
            ",",
            ",",
            "#",
            " ",
            "\t",
            "\r",
            "\n",
            "\n",
            "\n",
            "\0",
            "\u{85}",
            "\u{feff}",
            "127.0.0.1:00000000000000000000080",
            "1.2.3.4:99999",
            "@",
            "\u{1f600}",
        ])
        .prop_map(str::to_owned),
        "[^:]{0,12}",
        "unix:/[a-z]{90,120}",
        "unix:.{0,12}",
    ];
    vec(word, 0..40).prop_map(|words| words.concat())
}

fn options() -> Options {
    Options {
        pairs: Vec::new(),
        file: None,
        buffer_bytes: RELAY_KEPT_BYTES,
        cut_removed: false,
        check: false,
        settings: Settings::default(),
        common: Common::new(),
    }
}

fn route() -> Rc<Route> {
    Rc::new(Route::removed("127.0.0.1:80", Settings::default()))
}

fn unpack(packed: Packed, now: Instant, pool: &Pool) -> std::io::Result<ProxySession> {
    packed::unpack(packed, &[route()], &Settings::default(), now, pool)
}

proptest! {
    #[test]
    fn any_file_is_routes_or_is_refused_with_its_place_in_one_line(text in any_text()) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        let path = file.path().to_str().expect("text");
        match file::read(path, &mut options()).and_then(routes::make) {
            Ok(routes) => for route in routes {
                prop_assert!((1..=NAME_BYTES).contains(&route.name.len()));
                let next = route.upstreams.next(&[], Instant::now());
                prop_assert_eq!(next.is_some(), !route.upstreams.is_empty());
            },
            Err(error) => {
                prop_assert!(error.starts_with(path), "{error:?}");
                prop_assert!(!error.contains(char::is_control), "{error:?}");
            }
        }
    }

    #[test]
    fn any_state_is_a_relay_that_goes_on_or_is_refused(state in any_state()) {
        let mut pool = Pool::new(RELAY_KEPT_BYTES);
        let mut wire = Wire::new();
        let (events, streams) = (wire.events(), std::mem::take(&mut wire.streams));
        let now = Instant::now();
        if let Ok(mut relay) = Relay::unpack(&state, streams, now, &pool) {
            let (before, kept) = (relay.moved(), relay.kept());
            let mut is_over = false;
            for turn in 0..4 {
                let _ = relay.deadline(PATIENCE);
                let turn = match turn % 2 {
                    0 => relay.turn(events, now, PATIENCE, &mut pool),
                    _ => relay.flush(now, &mut pool),
                };
                is_over |= matches!(turn, Turn::Over(_) | Turn::NotConnected(_));
            }
            let after = relay.moved();
            prop_assert!(after.0 >= before.0 && after.1 >= before.1);
            prop_assert!(after.0 - before.0 <= 5 + kept.0 as u64);
            prop_assert!(after.1 - before.1 <= 5 + kept.1 as u64);
            let mut again = Vec::new();
            let streams = relay.pack(now, &mut again);
            prop_assert!(is_over || Relay::unpack(&again, streams, now, &pool).is_ok());
        }
    }

    #[test]
    fn any_bytes_are_a_session_or_are_refused(
        texts in vec(vec(any::<u8>(), 0..20), 0..4),
        rest in any_state(),
        streams in 0..3_usize,
        schema in 0..4_u32,
    ) {
        let mut state = Vec::new();
        for text in texts {
            state.extend((text.len() as u16).to_le_bytes());
            state.extend(text);
        }
        state.extend(rest);
        let mut wire = Wire::new();
        wire.streams.truncate(streams);
        let packed = Packed::new(schema, state, wire.streams);
        let pool = Pool::new(RELAY_KEPT_BYTES);
        if let Err(error) = unpack(packed, Instant::now(), &pool) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn a_session_that_moves_is_the_same_whoever_its_client_is(
        peer in any_peer(),
        (age, connected) in (0..1_000_000_u64, any::<u32>()),
        flags in prop::sample::select(vec![0_u8, 1, 2, 6, 8, 24, 38, 62, 70, 88]),
    ) {
        let pool = Pool::new(RELAY_KEPT_BYTES);
        let wire = Wire::new();
        let now = Instant::now();
        let state = [&[flags][..], &[0; 32]].concat();
        let Ok(relay) = Relay::unpack(&state, wire.streams, now, &pool) else {
            // Neither of its sides is given up.
            prop_assert!(matches!(flags, 38 | 88), "{}", flags);
            return Ok(());
        };
        let connected = Some(connected).filter(|_| !relay.is_connecting());
        let opened = now.checked_sub(Duration::from_micros(age)).unwrap_or(now);
        let upstream = Rc::new(Upstream::new("unix:/run/up", None, 1, false));
        let session = ProxySession {
            relay,
            peer: peer.clone(),
            route: route(),
            lead: Lead::new(upstream, Vec::new(), connected, now),
            opened,
            is_cut: false,
            look_after: None,
        };
        let packed = packed::pack(session, now, packed::SCHEMA);
        let session = unpack(packed, now, &pool).expect("the same");
        prop_assert_eq!(&session.peer, &peer);
        prop_assert_eq!(&*session.lead.upstream.text, "unix:/run/up");
        prop_assert_eq!((session.opened, session.lead.connected), (opened, connected));
    }
}
