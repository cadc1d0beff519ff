//! The server that the tests replace: it does what it is told, and misbehaves when it is told to.
//!
//! A successor is started with the same arguments, so that what it is to do is said by generation:
//! `--at 1:exit:3` has the first successor exit with status 3 in its set-up.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

#[path = "../../examples/common/logging.rs"]
#[allow(dead_code, reason = "the demo uses all of it")]
mod logging;

#[path = "faults.rs"]
mod faults;

#[path = "other_build.rs"]
mod other_build;

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv, send};
use tablecloth::wire::{Hello, Message, NO_SCHEMAS, PROTOCOL};
use tablecloth::{
    Accepted, Config, Context, HandedOver, Handler, IoEvent, Packed, Report, Server, SocketOptions,
    Stream, Verdict,
};

/// Echoes; but answers `who` with its process id and generation, and obeys a few more words.
struct Actor {
    /// Sockets that it reads itself.
    udp: Option<mio::net::UdpSocket>,
    ballast: Vec<u8>,
    /// Whether sessions move.
    moves: bool,
    /// How long the state is in which they do.
    state_bytes: usize,
    /// Of so many that arrive it takes all but the last.
    refuse_every: Option<u64>,
    /// And not these, counted from 1.
    refuse: Vec<u64>,
    /// It takes so many, and no more.
    take: Option<u64>,
    arrived: u64,
    /// Its sessions have nothing to write until they are asked, and say so.
    patient: bool,
    /// How often `event` was called.
    events: u64,
    /// How long it takes to open a session.
    nap_in_open: Duration,
    /// It does not take over what it is handed.
    refuses_state: bool,
    /// It panics when it is to hand over.
    panics_at_hand_over: bool,
}

impl Handler for Actor {
    type Session = Stream;

    fn open(&mut self, cx: &mut Context<'_>, accepted: Accepted) -> io::Result<Stream> {
        if self.patient {
            cx.wait_for_peer();
        }
        std::thread::sleep(self.nap_in_open);
        Ok(accepted.stream)
    }

    fn event(&mut self, cx: &mut Context<'_>, stream: &mut Stream, event: IoEvent) -> Verdict {
        self.events += 1;
        if event.is_timeout() {
            let _ = stream.write_all(format!("woken by {}\n", std::process::id()).as_bytes());
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => Verdict::Close,
            // A request, and the end, in one.
            Ok(read) if &buffer[..read] == b"ask and go\n" => {
                cx.request_upgrade();
                Verdict::Close
            }
            Ok(read) if &buffer[..read] == b"hup and go\n" => {
                match nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP) {
                    Ok(()) | Err(_) => Verdict::Close,
                }
            }
            Ok(read) => match stream.write_all(&self.answer(cx, &buffer[..read])) {
                Ok(()) => Verdict::Again,
                Err(_) => Verdict::Close,
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Verdict::Keep,
            Err(_) => Verdict::Close,
        }
    }

    fn drain(&mut self, cx: &mut Context<'_>, _: &mut Stream) -> Verdict {
        log::info!("drain, shutting down: {}", cx.shutting_down());
        Verdict::Keep
    }

    fn pack(
        &mut self,
        _: &mut Context<'_>,
        stream: Stream,
        reads: RangeInclusive<u32>,
    ) -> Result<Packed, Stream> {
        match self.moves {
            true => {
                let schema = *reads.end();
                log::debug!("packed in schema {schema}");
                let mut state = b"a stream".to_vec();
                state.resize(state.len().max(self.state_bytes), b'.');
                let long = state.len() > tablecloth::STATE_BYTES;
                let null = std::fs::File::open("/dev/null").ok().filter(|_| long);
                let descriptors = null.into_iter().map(OwnedFd::from).collect();
                Ok(Packed::new(schema, state, vec![stream]).with(descriptors))
            }
            false => Err(stream),
        }
    }

    fn unpack(&mut self, cx: &mut Context<'_>, mut packed: Packed) -> io::Result<Stream> {
        self.arrived += 1;
        // What is long brings a descriptor along.
        let long = packed.state.len() > tablecloth::STATE_BYTES;
        let whole = packed.state.len() >= self.state_bytes && long != packed.descriptors.is_empty();
        if !packed.state.starts_with(b"a stream") || !whole {
            return Err(io::Error::other("that is no stream"));
        }
        // Whoever has packed it can put it together again.
        let refused = self.refuse_every.is_some_and(|every| self.arrived % every == 0)
            || self.refuse.contains(&self.arrived)
            || self.take.is_some_and(|take| self.arrived > take);
        if refused && cx.has_predecessor() {
            return Err(io::Error::other("as it was told"));
        }
        if self.patient {
            cx.wait_for_peer();
        }
        packed.streams.pop().ok_or_else(|| io::Error::other("no stream"))
    }

    fn hand_over(
        &mut self,
        _: &mut Context<'_>,
        reads: RangeInclusive<u32>,
    ) -> io::Result<Option<HandedOver>> {
        assert!(!self.panics_at_hand_over, "as it was told");
        let null = std::fs::File::open("/dev/null")?;
        let (schema, bytes) = (*reads.end(), vec![b's'; 1 << 20]);
        Ok(Some(HandedOver::new(schema, bytes).with(vec![null.into()])))
    }

    fn take_over(&mut self, _: &mut Context<'_>, state: HandedOver) -> io::Result<()> {
        let HandedOver { schema, bytes, descriptors, .. } = state;
        log::info!("state {schema}: {} bytes, {} descriptors", bytes.len(), descriptors.len());
        if self.refuses_state { Err(io::Error::other("as it was told")) } else { Ok(()) }
    }

    fn successor_gone(&mut self, _: &mut Context<'_>) {
        log::info!("the successor is gone");
    }

    fn signal(&mut self, _: &mut Context<'_>, signal: i32) {
        log::info!("user signal {signal}");
    }

    fn watched(&mut self, cx: &mut Context<'_>, name: &str, _: IoEvent) -> Verdict {
        let Some(udp) = &self.udp else { return Verdict::Close };
        let mut buffer = [0; 512];
        // One at a time, so that nobody else waits for them all.
        if let Ok((read, peer)) = udp.recv_from(&mut buffer) {
            log::info!("datagram on {name}: {}", logging::printable(&buffer[..read]));
            let answer = format!("{} {}", std::process::id(), cx.generation());
            let _ = udp.send_to(answer.as_bytes(), peer);
            return Verdict::Again;
        }
        Verdict::Keep
    }

    fn upgraded(&mut self, _: &mut Context<'_>, report: &Report) {
        faults::feed();
        log::info!("report: {}", if report.outcome.is_ok() { "ok" } else { "failed" });
    }

    fn predecessor_gone(&mut self, _: &mut Context<'_>) {
        log::info!("alone");
    }
}

impl Actor {
    fn answer(&self, cx: &mut Context<'_>, question: &[u8]) -> Vec<u8> {
        match question {
            b"who\n" => format!("{} {}\n", std::process::id(), cx.generation()).into_bytes(),
            b"upgrade\n" => {
                cx.request_upgrade();
                b"yes\n".into()
            }
            b"shut down\n" => {
                cx.request_shutdown();
                b"yes\n".into()
            }
            // A child of any other program: what does it find of ours?
            b"child\n" => {
                let script = "echo $(ls /proc/self/fd | wc -l) ${TABLECLOTH_HANDOFF-none}";
                let child = std::process::Command::new("sh").args(["-c", script]).output();
                child.map(|child| child.stdout).unwrap_or_default()
            }
            b"environment\n" => {
                let child = std::process::Command::new("env").output();
                let said = child.map(|child| child.stdout).unwrap_or_default();
                let said = String::from_utf8_lossy(&said);
                let names = said.lines().filter_map(|line| Some(line.split_once('=')?.0));
                format!("{}\n", names.collect::<Vec<_>>().join(" ")).into_bytes()
            }
            b"panic\n" => panic!("as it was told"),
            b"sleep\n" => {
                std::thread::sleep(Duration::from_millis(300));
                b"slept\n".into()
            }
            b"wake me\n" => {
                cx.wake_at(cx.now() + Duration::from_millis(1500));
                b"yes\n".into()
            }
            b"events\n" => format!("{}\n", self.events).into_bytes(),
            b"ballast\n" => format!("{}\n", self.ballast.len()).into_bytes(),
            other => other.into(),
        }
    }
}

/// `OLDEST-NEWEST`, or one number for both.
fn range(text: &str) -> Option<RangeInclusive<u32>> {
    let (oldest, newest) = text.split_once('-').unwrap_or((text, text));
    Some(oldest.parse().ok()?..=newest.parse().ok()?)
}

/// What the arguments say.
#[derive(Default)]
struct Script {
    config: Config,
    listen: Vec<(String, String)>,
    reuse_port: bool,
    udp: Vec<(String, String)>,
    datagram: Vec<(String, String)>,
    seqpacket: Vec<(String, String)>,
    files: Vec<(String, String)>,
    /// What to do in which generation's set-up.
    at: Vec<(u64, String)>,
    ballast_mib: usize,
    schemas: Option<RangeInclusive<u32>>,
    state_bytes: usize,
    refuse_every: Option<u64>,
    refuse: Vec<u64>,
    take: Option<u64>,
    patient: bool,
    memory: bool,
}

impl Script {
    fn from_args() -> Result<Self, String> {
        let mut script = Self::default();
        // Unless it is the test's subject, nobody waits for it.
        script.config.probation = Duration::ZERO;
        let mut args = std::env::args().skip(1);
        while let Some(flag) = args.next() {
            let value = args.next().ok_or_else(|| format!("{flag} has no value"))?;
            let pair = || {
                let (name, rest) = value.split_once('=').unwrap_or((&value, ""));
                (name.to_owned(), rest.to_owned())
            };
            let number = || value.parse::<u64>().map_err(|error| format!("{flag}: {error}"));
            let time = || number().map(Duration::from_millis);
            match flag.as_str() {
                "--listen" => script.listen.push(pair()),
                "--reuse-port" => script.reuse_port = value == "yes",
                "--udp" => script.udp.push(pair()),
                "--datagram" => script.datagram.push(pair()),
                "--seqpacket" => script.seqpacket.push(pair()),
                "--file" => script.files.push(pair()),
                "--admin" => script.config.admin = Some(value),
                "--pid-file" => script.config.pid_file = Some(value.into()),
                "--upgrade-ms" => script.config.upgrade_timeout = time()?,
                "--takeover-ms" => script.config.takeover_timeout = time()?,
                "--drain-ms" => script.config.drain_timeout = time()?,
                "--probation-ms" => script.config.probation = time()?,
                "--on-panic" => script.config.on_panic = tablecloth::OnPanic::End,
                "--max-sessions" => script.config.max_sessions = number()? as usize,
                "--user-signal" => script.config.user_signals.push(number()? as i32),
                "--ballast-mib" => script.ballast_mib = number()? as usize,
                "--memory" => script.memory = value == "yes",
                "--faults" => faults::obey(value.into()),
                "--schemas-in" => {
                    let text = std::fs::read_to_string(&value);
                    script.schemas = text.ok().and_then(|text| range(text.trim()));
                }
                "--schema" => {
                    let schema = number()? as u32;
                    script.schemas = Some(schema..=schema);
                }
                "--state-bytes" => script.state_bytes = number()? as usize,
                "--refuse" => script.refuse.push(number()?),
                "--take" => script.take = Some(number()?),
                "--patient" => script.patient = value == "yes",
                "--refuse-every" => script.refuse_every = Some(number()?),
                "--at" => {
                    let (generation, deed) = value.split_once(':').ok_or("--at GEN:DEED")?;
                    let generation = generation.parse().map_err(|_| "--at GEN:DEED")?;
                    script.at.push((generation, deed.to_owned()));
                }
                other => return Err(format!("unknown flag {other}")),
            }
        }
        Ok(script)
    }

    fn deeds(&self, generation: u64) -> impl Iterator<Item = &str> {
        self.at.iter().filter(move |(at, _)| *at == generation).map(|(_, deed)| deed.as_str())
    }
}

/// Does nothing, until the predecessor is gone, or a test has long lost its patience: it leaves
/// nobody behind.
fn hang() {
    let parent = std::os::unix::process::parent_id();
    for _ in 0..3000 {
        if std::os::unix::process::parent_id() != parent {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reads what the predecessor says, until it is a message without a body, or nothing any more.
fn wait_for_commit(socket: i32) {
    loop {
        match recv(socket, &mut [0; 512], MsgFlags::empty()) {
            Ok(7) => return,
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN) => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => return,
        }
    }
}

/// Waits for a file to appear.
fn wait_at(gate: &str) {
    while !std::path::Path::new(gate).exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a process does that is no successor of ours: it has the descriptors, and talks nonsense.
fn misbehave(deed: &str) -> Result<(), String> {
    let variable = std::env::var(tablecloth::wire::VARIABLE).unwrap_or_default();
    let number = |name: &str| {
        let field = variable.split(',').find_map(|field| field.strip_prefix(name));
        field.and_then(|number| number.parse::<i32>().ok()).ok_or("no handoff")
    };
    let (pipe, socket) = (number("pipe=")?, number("socket=")?);
    let say = |packet: &[u8]| send(socket, packet, MsgFlags::empty()).map_err(|e| e.to_string());
    let ready = |byte: u8| {
        let pipe = std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{pipe}"));
        pipe.and_then(|mut pipe| pipe.write_all(&[byte])).map_err(|error| error.to_string())
    };
    let hello = Message::Hello(Hello {
        schemas: NO_SCHEMAS,
        pid: std::process::id(),
        build: "a liar".into(),
    });
    match deed {
        "raw-exit" => std::process::exit(7),
        "raw-hang" => hang(),
        // Slow to begin with: before there is a server that handles signals.
        _ if deed.starts_with("raw-gate:") => wait_at(deed.trim_start_matches("raw-gate:")),
        "raw-garbage-on-pipe" => {
            ready(b'?')?;
            hang();
        }
        "raw-garbage-on-socket" => {
            say(b"GET / HTTP/1.1\r\n\r\n")?;
            hang();
        }
        "raw-oversized" => {
            say(&[b'x'; 20_000])?;
            hang();
        }
        "raw-empty" => {
            say(b"")?;
            hang();
        }
        "raw-other-protocol" => {
            let mut packet = hello.encode(PROTOCOL.newest);
            // The header's version is the one chosen.
            packet[4] = 99;
            say(&packet)?;
            hang();
        }
        // Another build: OLDEST-NEWEST is what it speaks.
        _ if deed.starts_with("raw-speaks:") => {
            other_build::succeed(deed.trim_start_matches("raw-speaks:"), socket, || ready(b'R'))?;
        }
        // Dies, and a child of it has the socket and goes on.
        "raw-leaves-a-writer" => {
            say(&hello.encode(PROTOCOL.newest))?;
            let own = std::env::current_exe().map_err(|error| error.to_string())?;
            let socket = socket.to_string();
            let child = std::process::Command::new(own).args(["--write-for-ever", &socket]).spawn();
            child.map_err(|error| error.to_string())?;
            std::thread::sleep(Duration::from_millis(50));
            std::process::exit(7);
        }
        "raw-changes-version" => {
            say(&hello.encode(PROTOCOL.newest))?;
            say(&Message::Serving.encode(PROTOCOL.newest + 1))?;
            hang();
        }
        "raw-ready-without-hello" => {
            ready(b'R')?;
            hang();
        }
        "raw-serving-before-commit" => {
            say(&hello.encode(PROTOCOL.newest))?;
            say(&Message::Serving.encode(PROTOCOL.newest))?;
            hang();
        }
        // Says everything right, and never serves.
        "raw-ready-and-hang" => {
            say(&hello.encode(PROTOCOL.newest))?;
            ready(b'R')?;
            hang();
        }
        "raw-answers-unasked" => {
            say(&hello.encode(PROTOCOL.newest))?;
            ready(b'R')?;
            // Once it is committed to.
            wait_for_commit(socket);
            say(&Message::Serving.encode(PROTOCOL.newest))?;
            say(&Message::Pong.encode(PROTOCOL.newest))?;
            hang();
        }
        "raw-stops-before-it-is-ready" => {
            say(&hello.encode(PROTOCOL.newest))?;
            say(&Message::Stopping.encode(PROTOCOL.newest))?;
            hang();
        }
        "raw-ready-and-exit" => {
            say(&hello.encode(PROTOCOL.newest))?;
            ready(b'R')?;
            // Committed to, and gone.
            wait_for_commit(socket);
            std::process::exit(0);
        }
        other => return Err(format!("unknown deed {other}")),
    }
    Ok(())
}

fn play(mut script: Script) -> Result<(), String> {
    let error = |error: tablecloth::Error| error.to_string();
    // Before there is a server, only the predecessor knows which generation this is.
    if std::env::var_os(tablecloth::wire::VARIABLE).is_some() {
        for deed in script.deeds(1).filter(|deed| deed.starts_with("raw-")) {
            misbehave(deed)?;
        }
        let schemas = script.deeds(1).find_map(|deed| deed.strip_prefix("schema:"));
        script.schemas = schemas.and_then(range).or(script.schemas);
        let places = script.deeds(1).find_map(|deed| deed.strip_prefix("places:"));
        let places = places.and_then(|places| places.parse().ok());
        script.config.max_sessions = places.unwrap_or(script.config.max_sessions);
    }
    let mut ballast = vec![0; script.ballast_mib * 1024 * 1024];
    // Touched, so that it is resident.
    ballast.iter_mut().step_by(4096).for_each(|byte| *byte = 1);

    let Script { state_bytes, refuse_every, patient, .. } = script;
    let schemas = script.schemas.clone();
    let (refuse, take) = (script.refuse.clone(), script.take);
    let nap = script.deeds(0).find_map(|deed| deed.strip_prefix("nap-in-open:"));
    let nap_in_open = Duration::from_millis(nap.and_then(|nap| nap.parse().ok()).unwrap_or(0));
    let mut actor = Actor {
        udp: None,
        ballast,
        moves: schemas.is_some(),
        state_bytes,
        refuse_every,
        refuse,
        take,
        arrived: 0,
        patient,
        events: 0,
        nap_in_open,
        refuses_state: false,
        panics_at_hand_over: false,
    };
    let mut config = script.config.clone();
    config.schemas = schemas.clone();
    let mut server = Server::new(config).map_err(error)?;
    let generation = server.generation();
    let mut elsewhere: Option<String> = None;
    let mut skipped: Vec<String> = Vec::new();
    for deed in script.deeds(generation).map(str::to_owned).collect::<Vec<_>>() {
        let (deed, object) = deed.split_once(':').unwrap_or((&deed, ""));
        match deed {
            "exit" => std::process::exit(object.parse().unwrap_or(1)),
            "abort" => std::process::abort(),
            "panic" => panic!("as it was told"),
            "hang" => hang(),
            // Of itself, before it serves.
            "ask" => server.remote().request_upgrade(),
            // Until the test opens it.
            "gate" => wait_at(object),
            "needs-time" => server.needs_time(Duration::from_secs(object.parse().unwrap_or(0))),
            "panic-at-hand-over" => actor.panics_at_hand_over = true,
            "refuse-state" => actor.refuses_state = true,
            "nap" => std::thread::sleep(Duration::from_millis(object.parse().unwrap_or(0))),
            "chdir" => std::env::set_current_dir(object).map_err(|error| error.to_string())?,
            "fail" => return Err(object.into()),
            "elsewhere" => elsewhere = Some(object.into()),
            "skip" => skipped.push(object.into()),
            "schema" | "places" | "nap-in-open" => {}
            _ if deed.starts_with("raw-") => {}
            other => return Err(format!("unknown deed {other}")),
        }
    }
    let claimed = |(name, _): &&(String, String)| !skipped.contains(name);
    for (name, address) in script.listen.iter().filter(claimed) {
        let address = elsewhere.as_ref().unwrap_or(address);
        let options = SocketOptions::default().reuse_port(script.reuse_port);
        server.listen_with(name, address, &options).map_err(error)?;
    }
    let (mut sockets, mut datagrams) = (Vec::new(), Vec::new());
    let mut udp = None;
    for (name, address) in script.udp.iter().filter(claimed) {
        udp = Some(server.udp(name, address).map_err(error)?);
        server.watch(name).map_err(error)?;
        log::info!(
            "udp {name} on {}",
            server.address(name).map(|a| a.to_string()).unwrap_or_default()
        );
    }
    for (name, address) in script.datagram.iter().filter(claimed) {
        datagrams.push(server.unix_datagram(name, address).map_err(error)?);
    }
    for (name, address) in script.seqpacket.iter().filter(claimed) {
        sockets.push(server.unix_seqpacket(name, address).map_err(error)?);
    }
    for (name, path) in script.files.iter().filter(claimed) {
        let open = || std::fs::File::open(path).map(OwnedFd::from);
        let mut file = std::fs::File::from(server.file(name, open).map_err(error)?);
        let mut byte = [0; 1];
        file.read_exact(&mut byte).map_err(|error| error.to_string())?;
        log::info!("file {name} says {}", char::from(byte[0]));
    }
    let mut line = String::new();
    let _ = write!(line, "generation {generation}, successor: {}", server.is_successor());
    log::info!("{line}");
    let watch = server.predecessor_watch();
    if !watch.is_gone() {
        // It may be waited for by any thread but the loop's.
        std::thread::spawn(move || {
            watch.wait(Duration::from_secs(3600));
            log::info!("waited for the predecessor");
        });
    }
    actor.udp = udp;
    server.run(actor).map(drop).map_err(error)
}

/// Says the same on the handoff socket as long as there is somebody to read it.
fn write_for_ever(socket: i32) {
    let packet = Message::Upgrade.encode(PROTOCOL.newest);
    loop {
        match send(socket, &packet, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) | Err(nix::errno::Errno::EAGAIN) => {}
            Err(_) => return,
        }
    }
}

fn main() -> std::process::ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("--write-for-ever") {
        if let Some(socket) = args.next().and_then(|socket| socket.parse().ok()) {
            write_for_ever(socket);
        }
        return std::process::ExitCode::SUCCESS;
    }
    tablecloth::Config::default().hold_signals();
    let played = Script::from_args().and_then(|script| {
        // Tests have their files in memory, where a busy disk makes none of them late.
        if !script.memory {
            tablecloth::fault::take_memory_for_disks();
        }
        logging::start(log::LevelFilter::Debug)?;
        play(script)
    });
    match played {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("actor: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
